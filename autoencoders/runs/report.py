"""The report of the model in a folder: all its pictures, and the page with numbers, words and the live latent plane.

Read next: ../page/page.py, which writes the page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minigrad.serialize import DataError, parse_json, read_file

from ..conv_autoencoder import VAE, Autoencoder
from ..data import Dataset
from ..evaluation.mixture import Mixture
from ..page import write_page
from ..page.curves import Curves
from ..page.live import Film, film_of
from ..pictures import charts
from ..pictures.canvas import classes_of
from ..pictures.film import MOST_FRAMES, gif, read_frames
from ..pictures.gallery import close_ups, denoised, draw, film_images
from ..pictures.images import labels_of
from ..saved import models_near
from .record import RECORD_FILE, has_used, read_record, trained_on, training_of_run

HISTORY_FILE = "history.jsonl"
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
    if history := _history(folder, tell):
        found["loss_curves"] = charts.loss_curves(history, unit=model.unit)
    return found


def _history(folder: Path, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """The losses of each epoch; none where a folder has no history, or one that cannot be read, of which tell hears."""
    try:
        return read_history(folder) if (folder / HISTORY_FILE).exists() else []
    except DataError as error:
        tell(f"no loss curves: {error}")
        return []


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The losses of each epoch that a run wrote down.

    Raises:
        DataError: the file cannot be read, or holds something else.
    """
    path = folder / HISTORY_FILE
    try:
        rows = parse_json(b"[" + b",".join(read_file(path, folder).splitlines()) + b"]")
        charts.loss_curves(rows)  # which refuses what cannot be drawn
        return rows
    except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise DataError(f"{path}: no losses that can be drawn ({error})") from error


def runs_to_compare(*folders: Path) -> list[Curves]:
    """The losses of two runs for the page, and how each was trained. The runs are named by the ends of their paths.

    Raises:
        DataError: a folder holds no run, or no losses that can be drawn, or losses in another unit.
    """
    places = [folder.resolve().parts for folder in folders]
    length = next(i for i in range(1, 1 + max(map(len, places))) if len({place[-i:] for place in places}) > 1)
    units = {kind.kind: kind.unit for kind in (Autoencoder, VAE)}
    runs: list[Curves] = []
    for folder, place in zip(folders, places, strict=True):
        record = read_record(folder)
        if not record:
            raise DataError(f"{folder / RECORD_FILE}: there is no such run; {models_near(folder, (RECORD_FILE,))}")
        model = record.get("model")
        if not isinstance(model, dict) or model.get("kind") not in [*units]:
            raise DataError(f"{folder / RECORD_FILE}: model: expected one of kind ae or vae, found {model!s:.99}")
        if not (folder / HISTORY_FILE).exists():
            raise DataError(f"{folder / HISTORY_FILE}: there is no such file; a run writes it after its first epoch")
        data = record.get("data", {})
        images = f"{Path(data.get('name') or '').name}, {data.get('content_hash')!s:.8}"
        settings = {**model, **record.get("options", {}), "learning_rate": record.get("learning_rate")}
        settings |= {"images": images, "limit_train": data.get("limit_train"), "class_names": None}
        unit = units[model["kind"]]
        if runs and unit != runs[0].unit:
            raise DataError(f"{folder}: its losses are in {unit}, but those of {folders[0]} in {runs[0].unit}")
        runs.append(Curves("/".join(place[-length:]), read_history(folder), unit, settings))
    return runs


def draw_film(folder: Path, dataset: Dataset) -> bytes:
    """The film of the run in a folder as a GIF; no bytes where the run kept no frames or used other data.

    Raises:
        DataError: a frame cannot be read or does not fit.
    """
    if not (filmed := _filmed(folder, dataset)):
        return b""
    return gif(folder, *filmed, dataset.class_names)


def _filmed(folder: Path, dataset: Dataset) -> tuple[np.ndarray, np.ndarray | None] | None:
    """(the images whose reconstructions the film of a run shows, the labels of those that it encodes); None where the
    run used other data."""
    if not has_used(folder, dataset):
        return None
    shown, scattered = film_images(dataset, dataset.limited(*training_of_run(folder)[0]))
    return dataset.train_images[shown], labels_of(dataset.train_labels, scattered)


def film_data(folder: Path, dataset: Dataset) -> Film | None:
    """The film of the run in a folder for the page; None where the run kept no frames or used other data.

    Raises:
        DataError: a frame cannot be read or does not fit.
    """
    if not (filmed := _filmed(folder, dataset)):
        return None
    originals, labels = filmed
    most = max(2, min(MOST_FRAMES, FILM_PIXELS // originals.size))
    frames = read_frames(folder, originals, labels, most)
    index = None if labels is None else classes_of(labels, dataset.class_names)[0]
    return film_of(originals, frames, index) if frames else None


def write_report(
    path: Path,
    folder: Path,
    model: Autoencoder,
    dataset: Dataset,
    measured: dict[str, Any] | None = None,
    mixture: Mixture | None = None,
    seed: int = 0,
    tell: Callable[[str], None] = print,
    compared: Sequence[Curves] = (),
) -> None:
    """Write the page of the model of a folder, with its history and film where they can be read; tell hears if not.

    measured: what evaluation.json holds; None: the page has no numbers. compared: what `runs_to_compare` gives; empty:
    the page has the history of the folder alone.

    Raises:
        DataError: it cannot be written, or run.json cannot be read.
    """
    runs, film = compared, None
    if not runs and (history := _history(folder, tell)):
        runs = [Curves("", history, model.unit, {})]
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
        runs=runs,
        film=film,
        trained=trained_on(folder, dataset),
        mixture=mixture,
        seed=seed,
    )
