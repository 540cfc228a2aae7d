"""run.json, the record of a run: how it is written, read and used."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minigrad.serialize import DataError, open_file, parse_json, read_file, write_atomically

from ..data import Dataset
from ..keras_files import PARAMETERS_FILE, WEIGHTS_FILE
from ..saved import folder_of
from ..training import TrainingOptions

RECORD_FILE = "run.json"


def limit_of(data: dict[str, Any]) -> tuple[int | None, int | None]:
    """(limit, seed) for `Dataset.limited` from what a run has recorded of its data.

    Raises:
        ValueError: it holds something else.
    """
    limit, seed = data.get("limit_train"), data.get("limit_seed")
    for name, value, least in (("limit_train", limit, 1), ("limit_seed", seed, 0)):
        if value is not None and not (type(value) is int and value >= least):
            raise ValueError(f"data.{name} is {value!r}")
    return limit, seed


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a record as a JSON file, whole or not at all."""
    write_atomically(path, (json.dumps(record, indent=2) + "\n").encode())


def read_record(folder: Path, name: str = RECORD_FILE) -> dict[str, Any]:
    """run.json of a folder, or another such file; empty where there is none.

    Raises:
        DataError: it is not JSON, or not the record of a run.
    """
    path = folder / name
    if not os.path.lexists(path):
        return {}
    hint = "; without that file the defaults are used"
    content = read_file(path, folder)
    try:
        record = parse_json(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}){hint}") from error
    if not isinstance(record, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(record).__name__}{hint}")
    for field, kind, what in (("commands", str, "texts"), ("earlier_environments", dict, "objects")):
        found = record.get(field, [])
        if not isinstance(found, list) or not all(isinstance(entry, kind) for entry in found):
            raise DataError(f"{path}: {field}: expected a list of {what}, found {found!r}{hint}")
    data = record.get("data", {})
    named = isinstance(data, dict) and all(isinstance(data.get(x), str | None) for x in ("name", "data_dir"))
    if not named or not isinstance(record.get("options", {}), dict):
        raise DataError(f"{path}: data or options: expected objects; data.name and data.data_dir must be strings{hint}")
    training = record.get("training", {})
    if not isinstance(training, dict) or not all(type(x) in (int, float) for x in training.values()):
        raise DataError(f"{path}: training: expected an object of numbers, found {training!r}{hint}")
    return record


def data_of_run(
    folder: Path, dataset: str | None, data_dir: str | None, tell: Callable[[str], None] = lambda _: None
) -> tuple[str, str | None]:
    """Name and folder of the data to use with the model of a run: the given ones, or else those that the run used. tell
    is called with a message if run.json names no data.

    Raises:
        DataError: run.json cannot be read.
    """
    used = read_record(folder).get("data", {})
    name, place = used.get("name"), used.get("data_dir")
    if not (dataset or name):
        tell(f"{folder / RECORD_FILE} does not name the model's training images; use --dataset to name other images")
    return dataset or name or "auto", data_dir or (None if dataset else place)


def training_of_run(folder: Path) -> tuple[tuple[int | None, int | None], TrainingOptions]:
    """(which training images a run used, for `Dataset.limited`; how it was trained, the defaults if nothing says so).

    Raises:
        DataError: run.json holds something else there.
    """
    record = read_record(folder)
    try:
        return limit_of(record.get("data", {})), TrainingOptions(**record.get("options", {}))
    except (TypeError, ValueError) as error:
        raise DataError(f"{folder / RECORD_FILE}: options or data: {error}") from error


def model_hash(source: Path) -> str:
    """SHA-256 of the file that `autoencoders.load` reads, or of the original's two files one after the other."""
    paths = [source.with_name(PARAMETERS_FILE), source] if source.name == WEIGHTS_FILE else [source]
    digest = hashlib.sha256()
    for path in [path for path in paths if path.is_file()]:
        with open_file(path, folder_of(source)) as (file, _):
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def has_used(folder: Path, dataset: Dataset) -> bool:
    """Whether these are the data of the run in a folder.

    Raises:
        DataError: run.json cannot be read.
    """
    return read_record(folder).get("data", {}).get("content_hash") == dataset.content_hash


def trained_on(folder: Path, dataset: Dataset) -> np.ndarray:
    """Indices of the images that the run in a folder was trained on; all training images if it used other data.

    Raises:
        DataError: run.json holds something else there.
    """
    limit, options = training_of_run(folder)
    rows = np.arange(len(dataset.train_images))
    if not has_used(folder, dataset):
        return rows
    used = rows[dataset.limited(*limit)]
    try:
        return used[options.split(len(used))[0]]
    except DataError as error:
        raise DataError(f"{folder / RECORD_FILE}: {error}") from error
