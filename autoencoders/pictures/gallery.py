"""The pictures of a model: samples, reconstructions, latent space and others, drawn and saved."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minigrad.random import generator
from minigrad.serialize import DataError, read_file

from ..conv_autoencoder import VAE, Autoencoder
from ..data import Dataset, Reading
from ..data.dataset import MAX_BYTES, as_data_error, near_names, pick_images
from ..data.own_images import read_picture
from ..evaluation.bounds import latents_of, reconstructions_of, to_unit_range
from ..evaluation.metrics import nearest
from ..evaluation.mixture import Mixture
from . import canvas, charts, sheets
from .film import SCATTERED, SHOWN

MOST_CLASSES, MOST_COLUMNS = 50, 12  # of a conditional model, that one picture of samples shows
FILM_BYTES = 1 << 28  # of the images that a run's film encodes
FEW = 200  # test images; if there are fewer, the picture of the latent space shows training images, too
TRAVERSED = 8  # latent dimensions at most
STEPS = np.linspace(-3, 3, 9)  # of a traversal, in standard deviations of N(0, I)
NEIGHBOURS = 10  # prior samples shown beside their nearest training images


def film_images(dataset: Dataset, rows: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training images that the film of a run on these rows shows, and of those that it encodes: at most
    SCATTERED, and fewer if they are large."""
    most = max(SHOWN, min(SCATTERED, FILM_BYTES // dataset.train_images[0].nbytes))
    labels = None if dataset.train_labels is None else dataset.train_labels[rows]
    used = np.arange(len(dataset.train_images))[rows]
    return used[pick_images(labels, SHOWN, len(used), 0)], used[pick_images(labels, most, len(used), 1)]


def draw(
    model: Autoencoder,
    dataset: Dataset | None,
    *,
    seed: int = 0,
    count: int = 48,
    label: int | None = None,
    mixture: Mixture | None = None,
) -> dict[str, Any]:
    """Pictures of what a model has learnt, by name: reconstructions, interpolations and latent space of the test
    images, if there is a data set, and for a VAE samples of the prior and the manifold (two latent dimensions; not of a
    conditional model).

    A conditional model's samples are of the class `label`, or some of every class from the same latents. A plain
    autoencoder's come from a mixture, where one is given.

    Raises:
        DataError: the images do not fit the model. DivergedError: it gives numbers that are not finite.
    """
    pictures = {} if dataset is None else _draw_data(model, dataset, seed)
    if isinstance(model, VAE) or mixture is not None:
        classes = range(model.classes)[:MOST_CLASSES] if label is None else [label]
        rows = columns = 0
        if len(classes) > 1 and mixture is None:  # one or more full rows of each class
            each = -(-count // len(classes))
            rows = -(-each // MOST_COLUMNS)
            columns = -(-each // rows)
            count = len(classes) * rows * columns
        new, _ = new_images(model, count, seed, classes, mixture)
        pictures["samples"] = sheets.samples(new, **_caption(model, classes, rows, columns, mixture))
    if isinstance(model, VAE) and model.latent_space_dim == 2 and not model.classes:
        pictures["manifold"] = sheets.manifold_grid(model.decode(sheets.manifold_points()))
    return pictures


def _draw_data(model: Autoencoder, dataset: Dataset, seed: int) -> dict[str, Any]:
    """The pictures that need images."""
    images, labels, names = dataset.test_images, dataset.test_labels, dataset.class_names
    chosen = pick_images(labels, 20, len(images), seed)
    chosen_labels = None if labels is None else labels[chosen]
    pictures = {
        "reconstructions": _draw_pairs(model, images[chosen], chosen_labels, chosen_labels, names),
        "latent_space": _draw_latent_space(model, dataset, seed),
    }
    pairs = pick_images(labels, 16, len(images), seed + 1)
    half = len(pairs) // 2
    if half:
        start, end = pairs[:half], pairs[half : 2 * half]
        both = (None, None) if labels is None else (labels[start], labels[end])
        rows = model.interpolate(images[start], images[end], 10, labels=both)
        pictures["interpolations"] = sheets.interpolations(rows)
    return pictures


def _draw_latent_space(model: Autoencoder, dataset: Dataset, seed: int) -> Any:
    """Where the test images are in the latent space; if they are few, training images, too."""
    labels, title = dataset.test_labels, None
    latents = latents_of(model, dataset.test_images, labels)
    if len(latents) < FEW:
        known = dataset.train_labels
        chosen = pick_images(known, SCATTERED, len(dataset.train_images), seed)
        known = None if known is None else known[chosen]
        latents = np.concatenate([latents_of(model, dataset.train_images[chosen], known), latents])
        labels = None if labels is None or known is None else np.concatenate([known, labels])
        title = f"Latent space of {len(latents):,} training and test images"
    return charts.latent_scatter(latents, labels, dataset.class_names, title=title)


def draw_files(model: Autoencoder, paths: list[Path], label: int | None, tell: Callable[[str], None]) -> dict[str, Any]:
    """Picture files, brought to the size and colour of the model's images, and their reconstructions; tell hears what
    was done to the files. label: the class of them all, which a conditional model needs.

    Raises:
        DataError: a file cannot be read. DivergedError: the model gives numbers that are not finite.
    """
    images = []
    for path in map(Path.expanduser, paths):
        with as_data_error(path):
            if path.is_dir():
                raise DataError(f"{path}: is a folder; --image {shlex.quote(str(path))}/* takes its pictures")
            if not path.exists():
                raise DataError(f"{path}: there is no such file{near_names(path)}")
            pixels, done = read_picture(path, read_file(path, most=MAX_BYTES), reading_for(model))
        if done:
            tell(f"{path}: {', '.join(re.sub('( in)? ?{} of them ', ' ', what).strip() for what in done)}")
        images.append(pixels)
    labels = None if label is None else np.full(len(paths), label)
    names = [path.name for path in paths]
    return {"image": _draw_pairs(model, model.check_images(np.stack(images)), labels, np.arange(len(paths)), names)}


def reading_for(model: Autoencoder) -> Reading:
    """How pictures are read to fit a model."""
    height, width, channels = model.input_shape
    return Reading((height, width), {1: True, 3: False}.get(channels))


def _draw_pairs(
    model: Autoencoder, images: np.ndarray, labels: np.ndarray | None, numbers: np.ndarray | None, names: Sequence[str]
) -> Any:
    """Images and their reconstructions; above each image the name of its number, if there are numbers."""
    reconstructed = reconstructions_of(model, images, labels)
    errors = ((reconstructed - to_unit_range(images)) ** 2).mean(axis=(1, 2, 3))
    what = "mean squared error per pixel"
    return sheets.reconstructions(images, reconstructed, numbers, names, errors, error_name=what)


def _caption(
    model: Autoencoder, classes: Sequence[int], rows: int, columns: int, mixture: Mixture | None
) -> dict[str, Any]:
    """What `sheets.samples` is told of new images; rows and columns are those of each of several classes."""
    if mixture is not None:
        return {"title": f"Samples from a mixture of {len(mixture.weights)} Gaussians fitted to the latents"}
    if not model.classes:
        return {}
    shown = [model.class_names[i] if model.class_names else str(i) for i in classes]
    if len(shown) == 1:
        return {"title": f"Samples of the class {shown[0]}"}
    which = "every class" if len(shown) == model.classes else f"the first {len(shown)} of {model.classes} classes"
    if columns == 1:  # rows of one image would leave most of the picture white
        return {"title": f"Samples of {which}; all from one latent", "names": shown}
    row_names = [name for first in shown for name in (first, *[""] * (rows - 1))]
    return {"columns": columns, "title": f"Samples of {which}, each from the same latents", "row_names": row_names}


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


def save_pictures(pictures: dict[str, Any], folder: Path) -> list[Path]:
    """Write each picture as folder/<name>.png; returns the paths.

    Raises:
        DataError: one cannot be written.
    """
    return [canvas.save(figure, folder / f"{name}.png") for name, figure in pictures.items()]


def tell_pictures(paths: list[Path], tell: Callable[[str], None], verbose: bool) -> None:
    """Tell how many pictures were drawn, or with verbose which."""
    if len(paths) > 1 and not verbose:
        tell(f"drew {len(paths)} pictures in {paths[0].parent}{os.sep}")
    else:
        for path in paths:
            tell(f"drew {path}")


def close_ups(
    model: Autoencoder,
    dataset: Dataset,
    kl_per_dim: list[float] | None,
    seed: int = 0,
    mixture: Mixture | None = None,
    trained: np.ndarray | None = None,
) -> dict[str, Any]:
    """Pictures in addition to those of `draw`, by name: the images that the model reconstructs worst and best; for a
    VAE also traversals of the latent dimensions, and the KL divergence of each dimension. If the model can draw new
    images, some of them (one of each class if it is conditional) beside their nearest neighbours among the images that
    it was trained on. `trained` holds the indices of these; None: all training images."""
    images, labels, names = dataset.test_images, dataset.test_labels, dataset.class_names
    reconstructed, latents = model.reconstruct(images, labels=labels)
    errors = ((reconstructed - to_unit_range(images)) ** 2).mean(axis=(1, 2, 3))
    order = np.argsort(errors, kind="stable")
    pictures = {}
    shown = max(1, min(20, len(images) // 2))  # no image is among the best and the worst
    for name, chosen in (("worst", order[::-1][:shown]), ("best", order[:shown])):
        pictures[name] = sheets.reconstructions(
            images[chosen],
            reconstructed[chosen],
            None if labels is None else labels[chosen],
            names,
            errors[chosen],
            title=f"The {len(chosen)} test images that are reconstructed {name}",
            error_name="mean squared error per pixel",
        )
    new, source, classes = None, "prior", None
    if isinstance(model, VAE):
        classes = np.arange(NEIGHBOURS) % model.classes if model.classes else None
        new = model.sample(NEIGHBOURS, seed, labels=classes)
    elif mixture is not None:
        new, source = model.decode(mixture.sample(NEIGHBOURS, seed)), "mixture"
    if new is not None:
        known = dataset.train_images if trained is None else dataset.train_images[trained]
        index, distances = nearest(new, known)
        pictures["neighbours"] = sheets.reconstructions(
            new,
            to_unit_range(known[index]),
            classes,
            model.class_names,
            distances**2 / new[0].size,
            title=f"Samples from the {source}, and the training images nearest to them",
            error_name="mean squared difference per pixel",
            rows_are=("sample", "nearest image"),
        )
    if kl_per_dim is None:
        return pictures
    kl = np.array(kl_per_dim)
    pictures["kl_per_dimension"] = charts.kl_bars(kl)
    chosen = pick_images(labels, 1, len(images), seed)
    start = latents[chosen[0]]
    dimensions = np.argsort(-kl, kind="stable")[:TRAVERSED]
    points = np.repeat(start[None, None], len(dimensions), axis=0).repeat(len(STEPS), axis=1)  # (R, S, Z)
    for row, dimension in enumerate(dimensions):
        points[row, :, dimension] = STEPS
    classes = None if labels is None else np.repeat(labels[chosen], points[..., 0].size)
    decoded = model.decode(points.reshape(-1, points.shape[-1]), labels=classes)
    pictures["traversals"] = sheets.traversals(
        images[chosen[0]],
        decoded.reshape(*points.shape[:2], *decoded.shape[1:]),
        [f"z{i + 1}, {kl[i]:.2f} nats" for i in dimensions],
        STEPS,
        title="A test image (start), with one latent dimension changed at a time",
    )
    return pictures


def denoised(model: Autoencoder, dataset: Dataset, noise: float, seed: int = 0) -> Any:
    """Test images with the noise of the training, and what the model makes of them."""
    chosen = pick_images(dataset.test_labels, 20, len(dataset.test_images), seed)
    clean = to_unit_range(dataset.test_images[chosen])
    noisy = (clean + noise * generator(seed, "noisy").standard_normal(clean.shape)).clip(0, 1)
    labels = None if dataset.test_labels is None else dataset.test_labels[chosen]
    restored, _ = model.reconstruct(noisy.astype(np.float32), labels=labels)
    before, after = (((images - clean) ** 2).mean(axis=(1, 2, 3)) for images in (noisy, restored))
    return sheets.reconstructions(
        noisy,
        restored,
        labels,
        dataset.class_names,
        after,
        title=f"Test images with noise of standard deviation {noise:g}, and their reconstructions",
        error_name=f"mean squared error to the clean image, on average {after.mean():.4f} (noisy {before.mean():.4f})",
        rows_are=("noisy", "denoised"),
    )
