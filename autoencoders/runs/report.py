"""The report of the model in a folder: all its pictures, and the page with numbers, words and the live latent plane.

Read next: ../page/page.py, which writes the page.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from minigrad.serialize import DataError, parse_json, read_file

from ..conv_autoencoder import Autoencoder
from ..data import Dataset
from ..evaluation.mixture import Mixture
from ..page import write_page
from ..page.live import film_sheet
from ..pictures import charts
from ..pictures.canvas import classes_of
from ..pictures.film import MOST_FRAMES, gif, read_frames
from ..pictures.gallery import close_ups, denoised, draw, film_images
from .record import has_used, read_record, trained_on, training_of_run

FILM_PIXELS = 1 << 20  # of the reconstructions of a film in a page


def all_pictures(
    model: Autoencoder,
    dataset: Dataset,
    folder: Path,
    kl_per_dim: list[float] | None,
    seed: int = 0,
    mixture: Mixture | None = None,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Every picture of a model, by name; the loss curves where the folder has a history.

    tell hears of a history that cannot be read.
    """
    found = draw(model, dataset, seed=seed, mixture=mixture)
    found |= close_ups(model, dataset, kl_per_dim, seed, mixture, trained_on(folder, dataset))
    if noise := training_of_run(folder)[1].denoise:
        found["denoised"] = denoised(model, dataset, noise, seed)
    if (folder / "history.jsonl").exists():
        try:
            found["loss_curves"] = charts.loss_curves(read_history(folder), unit=model.unit)
        except DataError as error:
            tell(f"no loss curves: {error}")
    return found


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The losses of each epoch that a run wrote down.

    Raises:
        DataError: the file cannot be read, or holds something else.
    """
    path = folder / "history.jsonl"
    try:
        rows = parse_json(b"[" + b",".join(read_file(path, folder).splitlines()) + b"]")
        charts.loss_curves(rows)  # which refuses what cannot be drawn
        return rows
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


def film_data(folder: Path, dataset: Dataset) -> dict[str, Any] | None:
    """The film of the run in a folder for the page; None where the run kept no frames or used other data.

    Raises:
        DataError: a frame cannot be read or does not fit.
    """
    if not has_used(folder, dataset):
        return None
    shown, scattered = film_images(dataset, dataset.limited(*training_of_run(folder)[0]))
    labels = None if dataset.train_labels is None else dataset.train_labels[scattered]
    originals = dataset.train_images[shown]
    most = max(2, min(MOST_FRAMES, FILM_PIXELS // originals.size))
    frames = read_frames(folder, originals, labels, most)
    index = None if labels is None else classes_of(labels, dataset.class_names)[0]
    return film_sheet(originals, frames, index) if frames else None


def write_report(
    path: Path,
    folder: Path,
    model: Autoencoder,
    dataset: Dataset,
    measured: dict[str, Any] | None = None,
    mixture: Mixture | None = None,
    seed: int = 0,
    tell: Callable[[str], None] = print,
) -> None:
    """Write the page of the model of a folder, with its history and film where they can be read; tell hears if not.

    measured: what evaluation.json holds; None: the page has no numbers.

    Raises:
        DataError: it cannot be written, or run.json cannot be read.
    """
    history: list[dict[str, Any]] = []
    film = None
    try:
        history = read_history(folder) if (folder / "history.jsonl").exists() else []
    except DataError as error:
        tell(f"no loss curves: {error}")
    try:
        film = film_data(folder, dataset)
    except DataError as error:
        tell(f"no film: {error}")
    write_page(
        path,
        model=model,
        dataset=dataset,
        record=read_record(folder),
        measured=measured,
        history=history,
        film=film,
        trained=trained_on(folder, dataset),
        mixture=mixture,
        seed=seed,
    )
