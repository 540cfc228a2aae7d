"""The pictures of a model: samples, reconstructions, latent space and others, drawn and saved."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minigrad.serialize import DataError, read_file

from ..conv_autoencoder import VAE, Autoencoder
from ..data import Dataset, Reading
from ..data.dataset import MAX_BYTES, as_data_error, near_names, pick_images
from ..data.own_images import read_picture
from ..evaluation.bounds import latents_of, reconstructions_of
from ..evaluation.mixture import Mixture
from . import canvas, charts, sheets
from .film import SCATTERED, SHOWN
from .images import (
    STEPS,
    beside_nearest,
    errors_of,
    extremes,
    interpolated,
    labels_of,
    names_of,
    new_images,
    traversed,
    with_noise,
)

MOST_CLASSES, MOST_COLUMNS = 50, 12  # of a conditional model, that one picture of samples shows
FILM_BYTES = 1 << 28  # of the images that a run's film encodes
FEW = 200  # test images; if there are fewer, the picture of the latent space shows training images, too
NEIGHBOURS = 10  # prior samples shown beside their nearest training images


def film_images(dataset: Dataset, rows: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training images that the film of a run on these rows shows, and of those that it encodes: at most
    SCATTERED, and fewer if they are large."""
    most = max(SHOWN, min(SCATTERED, FILM_BYTES // dataset.train_images[0].nbytes))
    labels = labels_of(dataset.train_labels, rows)
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

    A conditional model's samples are of the class `label`, or some of every class from the same latents. Those of other
    models come from a mixture, where one is given.

    Raises:
        DataError: the images do not fit the model. DivergedError: it gives numbers that are not finite.
    """
    pictures = {} if dataset is None else _draw_data(model, dataset, seed)
    if isinstance(model, VAE) or mixture is not None:
        pictures["samples"] = _draw_samples(model, seed, count, label, mixture)
    if isinstance(model, VAE) and model.latent_space_dim == 2 and not model.classes:
        pictures["manifold"] = sheets.manifold_grid(model.decode(sheets.manifold_points()))
    return pictures


def _draw_data(model: Autoencoder, dataset: Dataset, seed: int) -> dict[str, Any]:
    """The pictures that need images."""
    images, labels, names = dataset.test_images, dataset.test_labels, dataset.class_names
    chosen = pick_images(labels, 20, len(images), seed)
    chosen_labels = labels_of(labels, chosen)
    reconstructed = reconstructions_of(model, images[chosen], chosen_labels)
    pictures = {
        "reconstructions": sheets.reconstructions(images[chosen], reconstructed, chosen_labels, names),
        "latent_space": _draw_latent_space(model, dataset, seed),
    }
    if (paths := interpolated(model, images, labels, 8, seed + 1)) is not None:
        pictures["interpolations"] = sheets.interpolations(paths)
    return pictures


def _draw_latent_space(model: Autoencoder, dataset: Dataset, seed: int) -> Any:
    """Where the test images are in the latent space; if they are few, training images, too."""
    labels, title = dataset.test_labels, None
    latents = latents_of(model, dataset.test_images, labels)
    if len(latents) < FEW:
        chosen = pick_images(dataset.train_labels, SCATTERED, len(dataset.train_images), seed)
        known = labels_of(dataset.train_labels, chosen)
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
    given = model.check_images(np.stack(images))
    reconstructed = reconstructions_of(model, given, labels)
    names = [path.name for path in paths]
    return {"image": sheets.reconstructions(given, reconstructed, np.arange(len(paths)), names)}


def reading_for(model: Autoencoder) -> Reading:
    """How pictures are read to fit a model."""
    height, width, channels = model.input_shape
    return Reading((height, width), {1: True, 3: False}.get(channels))


def _draw_samples(model: Autoencoder, seed: int, count: int, label: int | None, mixture: Mixture | None) -> Any:
    """New images; of a conditional model of one class, or full rows of each class."""
    classes = range(model.classes)[:MOST_CLASSES] if label is None else [label]
    names = [names_of(model)[i] for i in classes]
    shown: dict[str, Any] = {}
    if mixture is not None:
        shown["title"] = f"Samples from a {mixture} fitted to the latents"
    elif len(names) == 1:
        shown["title"] = f"Samples of the class {names[0]}"
    elif names:
        which = "every class" if len(names) == model.classes else f"the first {len(names)} of {model.classes} classes"
        each = -(-count // len(names))
        rows = -(-each // MOST_COLUMNS)
        columns = -(-each // rows)
        count = len(names) * rows * columns
        if columns == 1:  # rows of one image would leave most of the picture white
            shown = {"title": f"Samples of {which}; all from one latent", "names": names}
        else:
            row_names = [name for first in names for name in (first, *[""] * (rows - 1))]
            title = f"Samples of {which}, each from the same latents"
            shown = {"columns": columns, "title": title, "row_names": row_names}
    return sheets.samples(new_images(model, count, seed, classes, mixture)[0], **shown)


def save_pictures(
    pictures: dict[str, Any], folder: Path, tell: Callable[[str], None], verbose: bool = False
) -> list[Path]:
    """Write each picture as folder/<name>.png; returns the paths. tell hears how many there are, or with verbose which.

    Raises:
        DataError: one cannot be written.
    """
    paths = [canvas.save(figure, folder / f"{name}.png") for name, figure in pictures.items()]
    if len(paths) > 1 and not verbose:
        tell(f"drew {len(paths)} pictures in {folder}{os.sep}")
    else:
        for path in paths:
            tell(f"drew {path}")
    return paths


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
    pictures = {}
    for name, chosen in zip(("worst", "best"), extremes(errors_of(reconstructed, images), 20), strict=True):
        title = f"The {len(chosen)} test images that are reconstructed {name}"
        pairs = images[chosen], reconstructed[chosen], labels_of(labels, chosen)
        pictures[name] = sheets.reconstructions(*pairs, names, title=title)
    if isinstance(model, VAE) or mixture is not None:
        known = dataset.train_images if trained is None else dataset.train_images[trained]
        pictures["neighbours"] = _draw_neighbours(model, known, seed, mixture)
    if kl_per_dim is not None:
        kl, start = np.array(kl_per_dim), pick_images(labels, 1, len(images), seed)
        pictures["kl_per_dimension"] = charts.kl_bars(kl)
        pictures["traversals"] = _draw_traversals(model, images[start], latents[start], labels_of(labels, start), kl)
    return pictures


def _draw_neighbours(model: Autoencoder, known: np.ndarray, seed: int, mixture: Mixture | None) -> Any:
    """New images and the known images nearest to them."""
    new, found, classes = beside_nearest(model, known, NEIGHBOURS, seed, mixture)
    return sheets.reconstructions(
        new,
        found,
        classes,
        model.class_names,
        title=f"Samples from the {'mixture' if mixture else 'prior'}, and the training images nearest to them",
        error_name="mean squared difference per pixel",
        rows_are=("sample", "nearest image"),
    )


def _draw_traversals(
    model: Autoencoder, image: np.ndarray, latent: np.ndarray, label: np.ndarray | None, kl: np.ndarray
) -> Any:
    """What changes in an image (1, H, W, C) along the latent dimensions with the largest KL divergence."""
    dimensions, rows = traversed(model, latent, label, kl)
    return sheets.traversals(
        image[0],
        rows,
        [f"z{i + 1}, {kl[i]:.2f} nats" for i in dimensions],
        STEPS,
        title="A test image (start), with one latent dimension changed at a time",
    )


def denoised(model: Autoencoder, dataset: Dataset, noise: float, seed: int = 0) -> Any:
    """Test images with the noise of the training, and what the model makes of them."""
    chosen = pick_images(dataset.test_labels, 20, len(dataset.test_images), seed)
    labels = labels_of(dataset.test_labels, chosen)
    noisy, restored, before, after = with_noise(model, dataset.test_images[chosen], labels, noise, seed)
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
