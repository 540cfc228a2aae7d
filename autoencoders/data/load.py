"""Load a data set: a published one by its name, or a user's own from a path.

Read next: dataset.py, what a data set is; search.py and download.py for the published ones; own_images.py and
own_arrays.py for a user's own.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from minigrad.serialize import DataError

from .dataset import Dataset, Reading, as_data_error, fault, near_names
from .download import NotFetchedError
from .idx import idx_files
from .own_arrays import SUFFIXES, Array, array_files, arrays_of, is_array_file, load_arrays, test_file
from .own_images import find_pictures, is_picture, load_folder
from .search import load_collection, load_sample

NAMES = ("auto", "fashion-mnist", "fashion-mnist-sample", "mnist")
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")


def load_dataset(
    name: str | os.PathLike[str] = "auto",
    data_dir: str | os.PathLike[str] | None = None,
    *,
    download: bool = True,
    progress: bool = True,
    **how: Any,
) -> Dataset:
    """Load a data set by name, or from a path.

    Args:
        name: `fashion-mnist`, `mnist`, `fashion-mnist-sample` (5,000 images that come with this package), `auto`
            (Fashion-MNIST, or the sample if the full set is neither on this machine nor available for download;
            `source` says which and why), or a path: a folder of images, a file of arrays (`own_arrays.SUFFIXES`), or a
            folder of such files or of IDX files.
        data_dir: folder of the IDX files, or a folder with a sub-folder that has the set's name. Missing files are
            downloaded into it; wrong files in it are an error. None: search the folder that the environment variable
            MINIGRAD_DATA names, the user's cache (or the folder that MINIGRAD_CACHE names), and Debian's folder.
        download: whether the network may be used.
        progress: whether to show progress, which happens only when stderr is a terminal.
        how: image_size, grayscale and, with a path, test_dir, skip_broken and every_tenth, as in `Reading`.

    Raises:
        DataError: names the file, the field, what was expected and what was found.
    """
    reading = Reading(**how)
    progress = progress and sys.stderr is not None and sys.stderr.isatty()
    if name in NAMES:
        if reading.test_dir:
            raise DataError(f"{name} has test images of its own; leave out --test-dir")
        dataset = _load_published(str(name), data_dir, download, progress)
    else:
        path = Path(name).expanduser()
        with as_data_error(path):
            dataset = _load_own(path, reading, progress)
    with as_data_error(name):
        train, test = reading.apply(dataset.train_images), reading.apply(dataset.test_images)
    source, (_, height, width, channels) = dataset.source, train.shape
    if dataset.train_images.shape[1:3] != (height, width):
        source += f"; resized and cropped to {width} x {height}"
    if dataset.train_images.shape[3] != channels:
        source += f"; turned to {'grey' if channels == 1 else 'colour'}"
    return replace(dataset, train_images=train, test_images=test, source=source, reading=reading)


def _load_published(name: str, data_dir: str | os.PathLike[str] | None, download: bool, progress: bool) -> Dataset:
    if name == "fashion-mnist-sample":
        return load_sample("")
    if name != "auto":
        return load_collection(name, data_dir, download, progress)
    try:
        return load_collection("fashion-mnist", data_dir, download, progress)
    except DataError as error:
        # A folder that the user named and that is wrong is an error; a cache that cannot be written is a reason.
        if data_dir is not None and not isinstance(error, NotFetchedError):
            raise
        return load_sample(f", because the full set is not available: {error}")


def _load_own(path: Path, reading: Reading, progress: bool) -> Dataset:
    """What a path holds: arrays in IDX or other files, or pictures."""
    said = []
    if path.is_dir():
        if (path / "run.json").exists() and (path / "checkpoints").exists():
            raise fault(path, "content", "images", "a run of this project; pass it to --model-dir or --init-from")
        if idx_files(path):
            said = ["own IDX files, not compared with a published set"]
        elif not array_files(path) or find_pictures(path, []):
            return load_folder(path, reading, progress)
    elif not (is_array_file(path) and path.exists()):
        if path.suffix.lower() in ARCHIVES:
            raise DataError(f"{path}: is an archive; unpack it and give the folder")
        if path.is_file() and is_picture(path):
            raise DataError(f"{path}: is one picture; give its folder, or generate --image reconstructs it")
        missing = f"nothing of that name{near_names(path, NAMES)}"
        found = "another kind of file" if path.exists() else missing
        kinds = f"an existing folder of images or IDX files, or a file of arrays ({' '.join(SUFFIXES)})"
        raise fault(path, "data set", f"{', '.join(NAMES)}, {kinds}", found)
    others = Path(reading.test_dir) if reading.test_dir else test_file(path)
    test = (others, _arrays(others, reading)) if others else None
    return load_arrays(path, _arrays(path, reading), test, reading, *said)


def _arrays(path: Path, reading: Reading) -> dict[str, Array]:
    """The arrays in the IDX files of a folder, or in other files; none if there are none."""
    with as_data_error(path):
        return (path.is_dir() and idx_files(path)) or arrays_of(path, reading)
