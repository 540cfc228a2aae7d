"""The folder of a training: one training holds it at a time."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from minigrad.serialize import DataError

LOCK_FILE = ".lock"
FOLDERS = ("checkpoints", "film", "figures/samples", "figures", "tensorboard")  # in that of a run
# what a program that was killed leaves behind; nothing that others write into the folder, or that lies deeper
LEFTOVERS = (
    ".history.*.part",
    ".run.json.*.part",
    ".model.safetensors.*.part",
    ".mixture.safetensors.*.part",
    ".evaluation.json.*.part",
    ".report.html.*.part",
    ".explore.html.*.part",
    "checkpoints/.*.part",
    "film/.*.part",
    "figures/.*.part",
)


def check_writable(folder: Path, keep: bool = True) -> None:
    """Make the folder, and check that a file can be written there, before any work whose result goes there.

    keep: False: remove the folder if it was made here, until there is something to put into it.

    Raises:
        DataError: no file can be written, or a link in the folder would lead results of a run elsewhere.
    """
    if link := next((folder / name for name in FOLDERS if (folder / name).is_symlink()), None):
        raise DataError(f"{link}: expected a folder, found a link; move the folder itself there, or remove the link")
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        if made and not keep:
            folder.rmdir()
    except FileExistsError as error:
        raise DataError(f"{folder}: cannot be written: it is no folder") from error
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror or error}") from error


def check_readable(folder: Path) -> None:
    """Raise DataError if nobody may look into the folder: it would seem to be empty."""
    if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
        raise DataError(f"{folder}: cannot be read: {os.strerror(errno.EACCES)}")


@contextmanager
def claim(folder: Path | None) -> Iterator[None]:
    """Hold a folder for one training, and remove the leftovers of a killed training. The folder becomes free when this
    process ends, even if it is killed.

    Raises:
        FileExistsError: another training holds it. DataError: it cannot be written.
    """
    if folder is None:
        yield
        return
    from filelock import FileLock, Timeout

    # A singleton: who holds the folder already may claim it once more in the same thread.
    lock = FileLock(folder / LOCK_FILE, is_singleton=True)
    check_writable(folder)  # a lock that cannot be made would look like one that is held
    place = folder / LOCK_FILE
    if place.is_symlink() or (place.exists() and not place.is_file()):
        raise DataError(f"{place}: cannot be written: it is a link, or not a regular file; remove it")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise FileExistsError(
            f"{folder}: another training is running in this folder; wait for it or choose another folder"
        ) from error
    except OSError as error:
        raise DataError(f"{folder / LOCK_FILE}: cannot be written: {error.strerror or error}") from error
    try:
        for pattern in LEFTOVERS:
            for path in folder.glob(pattern):
                with suppress(OSError):
                    path.unlink()
        yield
    finally:
        lock.release()


_running: set[Any] = set()  # networks, by their ids, and folders of the trainings of this process


@contextmanager
def alone(network: object, folder: Path | None) -> Iterator[None]:
    """Refuse a training inside another one of the same model or, in one process, in the same folder.

    Raises:
        RuntimeError: the model is being trained. FileExistsError: the folder is used.
    """
    mine = {id(network), *([folder.resolve()] if folder else [])}
    taken = mine & _running
    if id(network) in taken:
        raise RuntimeError("train: a training of this model is running; wait for its end, or copy the model")
    if taken:
        raise FileExistsError(f"{folder}: another training is running in this folder; choose another folder")
    _running.update(mine)
    try:
        yield
    finally:
        _running.difference_update(mine)
