"""A report of a trained model as one HTML file that needs nothing else: numbers, words, pictures, and how it was made.

Read next: metrics.py, whose numbers it shows.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from minigrad.random import generator
from minigrad.serialize import DataError, parse_json, read_file, write_atomically

from ..conv_autoencoder import VAE, Autoencoder
from ..data import Dataset
from ..dataset import printable
from ..evaluation.bounds import to_unit_range
from ..evaluation.metrics import lines_of, nearest
from ..evaluation.mixture import Mixture
from ..runs import draw, film_images, has_used, pick_images, trained_on, training_of_run
from . import figures
from .film import gif

TRAVERSED = 8  # latent dimensions at most
STEPS = np.linspace(-3, 3, 9)  # of a traversal, in standard deviations of N(0, I)
NEIGHBOURS = 10  # prior samples shown beside their nearest training images
TEMPLATE = "report.html.jinja"


def close_ups(
    model: Autoencoder,
    dataset: Dataset,
    kl_per_dim: list[float] | None,
    seed: int = 0,
    mixture: Mixture | None = None,
    trained: np.ndarray | None = None,
) -> dict[str, Any]:
    """Pictures beyond those of `runs.draw`, by name: the images that the model reconstructs worst and best; for a VAE
    also traversals of the latent dimensions and the KL divergence of each; for whatever draws new images, some (of a
    conditional model one of each class) beside their nearest neighbours among the images that it was trained on, whose
    indices are `trained` (None: all training images)."""
    images, labels, names = dataset.test_images, dataset.test_labels, dataset.class_names
    reconstructed, latents = model.reconstruct(images, labels=labels)
    errors = ((reconstructed - to_unit_range(images)) ** 2).mean(axis=(1, 2, 3))
    order = np.argsort(errors, kind="stable")
    pictures = {}
    shown = max(1, min(20, len(images) // 2))  # no image is among the best and the worst
    for name, chosen in (("worst", order[::-1][:shown]), ("best", order[:shown])):
        pictures[name] = figures.reconstructions(
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
        pictures["neighbours"] = figures.reconstructions(
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
    pictures["kl_per_dimension"] = figures.kl_bars(kl)
    chosen = pick_images(labels, 1, len(images), seed)
    start = latents[chosen[0]]
    dimensions = np.argsort(-kl, kind="stable")[:TRAVERSED]
    points = np.repeat(start[None, None], len(dimensions), axis=0).repeat(len(STEPS), axis=1)  # (R, S, Z)
    for row, dimension in enumerate(dimensions):
        points[row, :, dimension] = STEPS
    classes = None if labels is None else np.repeat(labels[chosen], points[..., 0].size)
    decoded = model.decode(points.reshape(-1, points.shape[-1]), labels=classes)
    pictures["traversals"] = figures.traversals(
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
    return figures.reconstructions(
        noisy,
        restored,
        labels,
        dataset.class_names,
        after,
        title=f"Test images with noise of standard deviation {noise:g}, and what the model makes of them",
        error_name=f"mean squared error to the clean image, on average {after.mean():.4f} (noisy {before.mean():.4f})",
        rows_are=("noisy", "denoised"),
    )


def all_pictures(
    model: Autoencoder,
    dataset: Dataset,
    folder: Path,
    kl_per_dim: list[float] | None,
    seed: int = 0,
    mixture: Mixture | None = None,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Every picture of a model in the order of the report, by name; the loss curves where the folder has a history.

    tell hears of a history that cannot be read.
    """
    found = draw(model, dataset, seed=seed, mixture=mixture)
    found |= close_ups(model, dataset, kl_per_dim, seed, mixture, trained_on(folder, dataset))
    if noise := training_of_run(folder)[1].denoise:
        found["denoised"] = denoised(model, dataset, noise, seed)
    if (folder / "history.jsonl").exists():
        try:
            found["loss_curves"] = loss_curves(folder / "history.jsonl", model.unit)
        except DataError as error:
            tell(f"no loss curves: {error}")
    return {name: found[name] for name in TITLES if name in found}


def loss_curves(path: Path, unit: str) -> Any:
    """The losses that a run wrote down.

    Raises:
        DataError: the file cannot be read, or holds something else.
    """
    try:
        lines = read_file(path, path.parent).splitlines()
        return figures.loss_curves(parse_json(b"[" + b",".join(lines) + b"]"), unit=unit)
    except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise DataError(f"{path}: no losses that can be drawn ({error})") from error


def draw_film(folder: Path, dataset: Dataset) -> bytes:
    """The film of the run in a folder as a GIF; no bytes where the run kept no frames or used other data.

    Raises:
        DataError: a frame cannot be read or does not fit.
    """
    if not has_used(folder, dataset):
        return b""
    shown, scattered = film_images(dataset, dataset.limited(*training_of_run(folder)[0]))
    labels = None if dataset.train_labels is None else dataset.train_labels[scattered]
    return gif(folder, dataset.train_images[shown], labels, dataset.class_names)


def write_report(
    path: Path,
    *,
    model: Autoencoder,
    dataset: Dataset,
    measured: dict[str, Any],
    pictures: list[Path],
    film: Path | None,
    record: dict[str, Any],
) -> None:
    """Write the report.

    Args:
        measured: what evaluation.json holds. pictures: PNG files of the names in TITLES. film: a GIF, if there is one.
        record: run.json, empty where there is none.

    Raises:
        DataError: it cannot be written.
        ImportError: Jinja2 is missing, of the extra eval.
    """
    from jinja2 import Environment

    source = files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    configuration = {"model": measured["model"]}  # of a run, too, how it was trained
    configuration |= {name: record[name] for name in ("options", "learning_rate") if name in record}
    page = Environment(
        autoescape=True, finalize=lambda x: printable(str(x), "\n"), trim_blocks=True, lstrip_blocks=True
    )
    text = page.from_string(source).render(
        title=model.title,
        summary=model.summary(),
        data=f"{dataset.source}; {len(dataset.train_images):,} training and {len(dataset.test_images):,} test images",
        verdict=measured["verdict"],
        diagnosis=measured["diagnosis"],
        notes=measured["notes"],
        lines=lines_of(measured),
        pictures=[(TITLES[path.stem], encoded(path, "png")) for path in pictures],
        film=encoded(film, "gif") if film else None,
        commands=record.get("commands", []),
        command=measured["command"],
        configuration=json.dumps(configuration, indent=2),
        environment=json.dumps(measured["environment"], indent=2),
        measured=json.dumps(measured, indent=2),
    )
    write_atomically(path, text.encode())


TITLES = {
    "loss_curves": "Training",
    "reconstructions": "Reconstructions of all classes",
    "denoised": "Noise removed",
    "latent_space": "Latent space",
    "manifold": "The latent plane, decoded",
    "samples": "Samples",
    "neighbours": "Samples and the training images nearest to them",
    "interpolations": "Interpolations",
    "traversals": "Traversals",
    "kl_per_dimension": "KL divergence per dimension",
    "worst": "Worst",
    "best": "Best",
}


def encoded(path: Path, kind: str) -> str:
    """A picture as the text that stands in the page."""
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
