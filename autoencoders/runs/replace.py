"""The files of a run in its folder, and how a new run replaces an old one."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable
from pathlib import Path

from minigrad.serialize import DataError, numbered

from ..evaluation.mixture import MIXTURE_FILE
from ..export import FILES
from ..pictures.film import FRAMES, PROGRESS_FILE
from ..saved import MODEL_FILE
from ..training import latest_checkpoint
from ..training.checkpoints import CHECKPOINTS
from ..training.folder import FOLDERS
from .record import RECORD_FILE, read_record

EVENTS = "tensorboard/events.out.tfevents.*"
RESULT_FILE = "evaluation.json"  # of `evaluate`
RESULTS = (RESULT_FILE, "report.html", "figures/film.gif")
SINGLES = ("figures/samples/*.png", "figures/samples.npz")  # of `generate`
PICTURES = ("loss_curves", "reconstructions", "latent_space", "interpolations", "samples", "manifold", "image")
CLOSE_UPS = ("denoised", "worst", "best", "kl_per_dimension", "traversals", "neighbours")  # of `evaluate`
# In the order in which a run is moved aside. The checkpoints come last: as long as one is there, a program that was
# killed meanwhile can be started again, and nothing of the run is removed.
OWN_FILES = (
    *(f"figures/{name}.png" for name in PICTURES + CLOSE_UPS),
    PROGRESS_FILE,
    *SINGLES,
    *RESULTS,
    *(f"export/{name}" for names in FILES.values() for name in names),
    "explore.html",
    FRAMES,
    EVENTS,
    "history.csv",
    "history.jsonl",
    MIXTURE_FILE,
    RECORD_FILE,
    MODEL_FILE,
    "checkpoints/best.safetensors",
    CHECKPOINTS,
)
OLD = "old-{}"  # in the folder of a run: the runs that --overwrite has replaced


def own_files(folder: Path) -> list[Path]:
    """The files in a folder that have names of OWN_FILES, in that order; none that a link leads to."""
    names = [x for x in OWN_FILES if not any((folder / place).is_symlink() for place in Path(x).parents[:-1])]
    found = (sorted(folder.glob(x)) if x == EVENTS or "*" not in x else numbered(folder, x) for x in names)
    return [path for paths in found for path in paths if path.is_file()]


def _holds_model(folder: Path) -> bool:
    """Whether there is something that would be lost: a model or a checkpoint."""
    return (folder / MODEL_FILE).exists() or latest_checkpoint(folder) is not None


def check_folder(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that holds a model or a checkpoint, unless overwrite is True. Also refuse a folder where a file
    that no run has made has the name of a run's file: overwrite does not permit this.

    Raises:
        FileExistsError: the folder is refused. DataError: run.json, which describes the folder, cannot be read.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: cannot be written: it is no folder; use another --out")
    if latest_checkpoint(folder) is None:
        check_foreign(folder, own_files(folder), "use another --out")
    if overwrite or not _holds_model(folder):
        return
    status = str(read_record(folder).get("status"))
    finished = status == "finished"
    broken = ("diverged" in status or "does not work" in status) and "--resume" not in status  # resuming does not help
    resumable = latest_checkpoint(folder) and not finished and not broken
    advice = "--resume to continue it, --finish to make its model now, " if resumable else ""
    raise FileExistsError(
        f"{folder} already holds {'a finished' if finished else 'an unfinished'} run; "
        f"use {advice}--overwrite to replace it, or another --out; use --init-from to train its model further"
    )


def check_foreign(folder: Path, paths: list[Path], advice: str) -> None:
    """Refuse to overwrite those of the paths that exist in a folder, unless a run has made it.

    Raises:
        FileExistsError: one does. DataError: run.json cannot be read.
    """
    names = [path.relative_to(folder).as_posix() for path in paths if os.path.lexists(path)]
    if names and read_record(folder).get("status") is None:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise FileExistsError(
            f"{folder} holds {', '.join(names[:3])}{more}, which no run has made; move them away, or {advice}"
        )


def check_results(folder: Path, names: tuple[str, ...]) -> None:
    """Refuse to overwrite files of these names that neither a run nor `evaluate` has made.

    Raises:
        FileExistsError: there are some. DataError: run.json cannot be read.
    """
    with contextlib.suppress(DataError):
        if "model_sha256" in read_record(folder, RESULT_FILE):
            return
    check_foreign(folder, [folder / name for name in names], "use another --out or --overwrite")


def set_aside(folder: Path, keep: bool = True) -> Path | None:
    """Move the files of a run into the first free of the folders old-1, old-2 ... in its own; returns that folder. If
    there is no model and no checkpoint, or keep is False, they are removed instead.

    Raises:
        DataError: they cannot be moved; then all are where they were.
    """
    if not keep or not _holds_model(folder):
        remove(folder)
        return None
    old = next(place for i in itertools.count(1) if not os.path.lexists(place := folder / OLD.format(i)))
    try:
        _move(own_files(folder), folder, old)
    except BaseException as error:
        put_back(old, folder)
        if isinstance(error, OSError):
            raise DataError(f"{folder}: the old run cannot be moved aside ({error})") from error
        raise
    return old


def put_back(old: Path, folder: Path) -> None:
    """Move a run from `old` back into its folder, over files of the later run; what cannot be moved stays in `old`."""
    with contextlib.suppress(OSError):
        _move(reversed(own_files(old)), old, folder)
    _remove_empty(old)


def remove(folder: Path) -> None:
    """Remove the run in a folder, as far as that can be done, and nothing else that somebody has put there."""
    for path in own_files(folder):
        with contextlib.suppress(OSError):
            path.unlink()
    _remove_empty(folder)


def _remove_empty(folder: Path) -> None:
    for name in (*FOLDERS, "."):
        with contextlib.suppress(OSError):
            (folder / name).rmdir()


def _move(files: Iterable[Path], folder: Path, other: Path) -> None:
    """Move files from one folder, or a folder in it, to the same places in another one."""
    for path in files:
        target = other / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
