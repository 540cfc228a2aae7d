"""The images that the pictures of gallery.py and the page show, computed in one place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minigrad.random import generator

from ..conv_autoencoder import VAE, Autoencoder
from ..data.dataset import pick_images
from ..evaluation.bounds import to_unit_range
from ..evaluation.metrics import nearest
from ..evaluation.mixture import Mixture

TRAVERSED = 8  # latent dimensions at most
STEPS = np.linspace(-3, 3, 9)  # of a traversal, in standard deviations of N(0, I)


def labels_of(labels: np.ndarray | None, rows: Any) -> np.ndarray | None:
    """The labels of some images, if there are labels."""
    return None if labels is None else labels[rows]


def names_of(model: Autoencoder) -> list[str]:
    """The names of the classes of a conditional model, or else their numbers."""
    return list(model.class_names) or [str(i) for i in range(model.classes)]


def new_images(
    model: Autoencoder, count: int, seed: int = 0, classes: Sequence[int] = (), mixture: Mixture | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """(new images from a VAE's prior or a mixture, their labels). Of a conditional model they are of these classes, one
    after the other, rounded up to as many of each, from the same latents."""
    if mixture is not None:
        return model.decode(mixture.sample(count, seed)), None
    assert isinstance(model, VAE)
    if not model.classes:
        return model.sample(count, seed), None
    each = -(-count // len(classes))
    new = [model.sample(each, seed, labels=np.full(each, label)) for label in classes]
    return np.concatenate(new), np.repeat(classes, each)


def interpolated(
    model: Autoencoder, images: np.ndarray, labels: np.ndarray | None, paths: int, seed: int
) -> np.ndarray | None:
    """Paths of ten steps between pairs of images, (paths, 10, H, W, C) or fewer; None if there is no pair."""
    pairs = pick_images(labels, 2 * paths, len(images), seed)
    if not (half := len(pairs) // 2):
        return None
    start, end = pairs[:half], pairs[half : 2 * half]
    both = labels_of(labels, start), labels_of(labels, end)
    return model.interpolate(images[start], images[end], 10, labels=both)


def traversed(
    model: Autoencoder, latent: np.ndarray, label: np.ndarray | None, kl: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(the R latent dimensions with the largest KL divergence, images (R, S, H, W, C) with each of them at the S values
    of STEPS and the others as in the latent (1, Z) with its label (1,))."""
    dimensions = np.argsort(-kl, kind="stable")[:TRAVERSED]
    points = np.tile(latent, (len(dimensions), len(STEPS), 1))  # (R, S, Z)
    for row, dimension in zip(points, dimensions, strict=True):
        row[:, dimension] = STEPS
    labels = None if label is None else np.repeat(label, points[..., 0].size)
    decoded = model.decode(points.reshape(-1, points.shape[-1]), labels=labels)
    return dimensions, decoded.reshape(*points.shape[:2], *decoded.shape[1:])


def beside_nearest(
    model: Autoencoder, known: np.ndarray, count: int, seed: int, mixture: Mixture | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(new images, the known image nearest to each, their classes if the model is conditional: all in turn)."""
    classes = np.arange(count) % model.classes if model.classes else None
    if isinstance(model, VAE) and mixture is None:
        new = model.sample(count, seed, labels=classes)
    else:
        new = new_images(model, count, seed, mixture=mixture)[0]
    return new, known[nearest(new, known)[0]], classes


def with_noise(
    model: Autoencoder, images: np.ndarray, labels: np.ndarray | None, noise: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(the images with noise of this standard deviation, their reconstructions, the errors (N,) of both)."""
    clean = to_unit_range(images)
    noisy = (clean + noise * generator(seed, "noisy").standard_normal(clean.shape)).clip(0, 1).astype(np.float32)
    restored, _ = model.reconstruct(noisy, labels=labels)
    return noisy, restored, errors_of(noisy, clean), errors_of(restored, clean)


def errors_of(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The mean squared error per pixel of each image (N,)."""
    return ((to_unit_range(images) - to_unit_range(others)) ** 2).mean(axis=(1, 2, 3))


def extremes(errors: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the largest errors and of the smallest, from the end inwards; no index is among both, unless there is
    only one."""
    order = np.argsort(errors, kind="stable")
    count = max(1, min(most, len(order) // 2))
    return order[::-1][:count], order[:count]
