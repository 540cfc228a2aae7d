"""Find a published data set on this machine, and verify it.

A file is accepted for its content, never for its name or its place: the SHA-256 of the decompressed bytes must be the
published one.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from minigrad.serialize import DataError, open_file

from .collections import COLLECTIONS, SIZES, TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS, read_verified
from .dataset import Dataset, as_data_error, fault
from .download import NotFetchedError, fetch
from .idx import read_idx
from .own_images import is_picture

SAMPLE_FOLDER = Path(__file__).with_name("sample_data")
SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CACHE_NAME = "minigrad-autoencoders"


# ---------------------------------------------------------------------------------------- finding the published sets


def load_sample(why: str) -> Dataset:
    arrays = {file: read_idx(SAMPLE_FOLDER / f"{file}.gz") for file in SIZES}
    counts = f"{len(arrays[TRAIN_IMAGES])} training and {len(arrays[TEST_IMAGES])} test images"
    source = f"the embedded sample of Fashion-MNIST ({counts}){why}"
    return replace(_dataset("fashion-mnist", arrays, source, []), name="fashion-mnist-sample")


def load_collection(name: str, data_dir: str | os.PathLike[str] | None, download: bool, progress: bool) -> Dataset:
    collection = COLLECTIONS[name]
    notes: list[str] = []
    if data_dir is not None:
        folder = _home(name, Path(data_dir))
        found, wrong = _survey(name, folder)
        if wrong:
            raise DataError(wrong[0])
        if not found and folder.is_dir() and any(map(is_picture, folder.glob("*.*"))):
            hint = "use --dataset for your own images, or choose another folder for downloads"
            raise fault(folder, "content", f"files of {collection.title}, or none", f"pictures; {hint}")
    else:
        with as_data_error("user cache"):
            folder = _cache_folder() / name
        places = [folder]
        if asked := os.environ.get("MINIGRAD_DATA"):
            places.insert(0, _home(name, Path(asked)))
        if name == "fashion-mnist":
            places.append(SYSTEM_FOLDER)
        for place in places:
            arrays, wrong = _survey(name, place)
            if len(arrays) == len(SIZES):
                return _dataset(name, arrays, f"{collection.title} from {place}", notes)
            if place == folder:
                found = arrays
            elif asked and place == places[0] and not wrong:
                wrong = [f"MINIGRAD_DATA={asked} lacks {next(file for file in SIZES if file not in arrays)}"]
            notes += wrong
    source = f"{collection.title} from {folder}"
    if missing := [file for file in SIZES if file not in found]:
        if not download:
            raise NotFetchedError(_join(f"{folder}: no valid {missing[0]}, and downloads are off", notes))
        try:
            fetched, origin = fetch(name, folder, missing, progress)
        except NotFetchedError as error:
            raise NotFetchedError(_join(str(error), notes)) from error
        found |= fetched
        source = f"{collection.title}, {origin}, now in {folder}"
    return _dataset(name, found, source, notes)


def _join(text: str, notes: list[str]) -> str:
    return f"{text} (skipped: {'; '.join(notes)})" if notes else text


def _dataset(name: str, arrays: dict[str, np.ndarray], source: str, notes: list[str]) -> Dataset:
    return Dataset(
        name=name,
        train_images=arrays[TRAIN_IMAGES][..., None],
        train_labels=arrays[TRAIN_LABELS],
        test_images=arrays[TEST_IMAGES][..., None],
        test_labels=arrays[TEST_LABELS],
        class_names=COLLECTIONS[name].class_names,
        source=_join(source, notes),
    )


def _cache_folder() -> Path:
    override = os.environ.get("MINIGRAD_CACHE")
    if override:
        return Path(override)
    import pooch

    return Path(pooch.os_cache(CACHE_NAME))


def _home(name: str, folder: Path) -> Path:
    """Where in a user's folder the files of a set lie, or would be put.

    Both sets use the same four file names, so MNIST gets a sub-folder unless its files already lie in `folder`.
    """
    inner = folder / name
    for place in (inner, folder):
        if any(_candidates(place, file) for file in SIZES):
            return place
    return inner if name == "mnist" else folder


def _candidates(folder: Path, file: str) -> list[Path]:
    return [path for path in (folder / f"{file}.gz", folder / file) if os.path.lexists(path)]


def _survey(name: str, folder: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """Read and verify what a folder holds: the good files' arrays, and one message for each wrong file."""
    found: dict[str, np.ndarray] = {}
    wrong: list[str] = []
    for file in SIZES:
        faults = []
        for path in _candidates(folder, file):
            try:
                with as_data_error(path), open_file(path) as (content, _):
                    found[file] = read_verified(name, file, path, content)
                break
            except DataError as error:
                faults.append(str(error))
        else:
            wrong += faults[:1]
    return found, wrong
