"""A report of a trained model as one HTML file that needs nothing else: numbers, words, pictures, and how it was made.

Read next: ../evaluation/metrics.py, whose numbers it shows.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from minigrad.serialize import DataError, parse_json, read_file, write_atomically

from ..conv_autoencoder import Autoencoder
from ..data import Dataset
from ..data.dataset import printable
from ..evaluation.metrics import lines_of
from ..evaluation.mixture import Mixture
from ..pictures import charts
from ..pictures.film import gif
from ..pictures.gallery import close_ups, denoised, draw, film_images
from .record import has_used, trained_on, training_of_run

TEMPLATE = "report.html.jinja"


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
        return charts.loss_curves(parse_json(b"[" + b",".join(lines) + b"]"), unit=unit)
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
    "reconstructions": "Reconstructions",
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
