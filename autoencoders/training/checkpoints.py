"""Checkpoints: what a training needs to go on, written and read.

A run that resumes from a checkpoint ends with the same weights, moments and losses, bit for bit, as one that was never
interrupted, because
- random numbers are drawn by name, so there is no generator state to save (feed.py);
- a checkpoint holds everything else that a step reads or changes: weights, statistics, moments, `Progress`, what is
  frozen, the learning rate, the options, and a hash of the data;
- the results of kernels depend on the number of shards, never on threads, processes or timing
  (minigrad/backend/cpu/threads.py, minigrad/distributed.py), and CUDA kernels use no atomic operations;
- a replayed CUDA graph gives the bits of ordinary calls (minigrad/backend/cuda/capture.py), so it does not matter after
  which step it was recorded.

The machine and the versions must be the same, too. `environment` records them, and runs/start.py warns if they differ.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import minigrad
from minigrad import Backend
from minigrad.serialize import DataError, load_state, numbered, save_state

from .options import TrainingOptions

KEPT_CHECKPOINTS = 3
CHECKPOINT = "checkpoints/step-{:08d}.safetensors"
CHECKPOINTS = "checkpoints/step-*.safetensors"  # * is digits; files with other names are the user's copies
MOMENT = "optimizer."  # before the names of moments in a checkpoint


def write_checkpoint(folder: Path, arrays: dict[str, np.ndarray], record: dict[str, Any], step: int) -> None:
    """Write checkpoints/step-<n>.safetensors, and remove all but the newest KEPT_CHECKPOINTS."""
    path = folder / CHECKPOINT.format(step)
    save_state(path, arrays, {"kind": "checkpoint", **record})
    # files of later steps are damaged ones that a resume has skipped: they are neither counted nor removed
    saved = numbered(folder, CHECKPOINTS)
    for old in saved[: saved.index(path) + 1][:-KEPT_CHECKPOINTS]:
        with suppress(OSError):
            old.unlink()


def check_record(
    record: dict[str, Any], config: dict[str, Any], options: TrainingOptions, learning_rate: float
) -> None:
    """Raise ValueError unless a checkpoint is of a model and training like these; the number of epochs may differ."""
    theirs = asdict(TrainingOptions(**record["options"]))
    theirs |= {name: record[name] for name in ("learning_rate", "model")}
    ours = {**asdict(options), "learning_rate": learning_rate}
    config = json.loads(json.dumps(config))  # lists for tuples, as in a record
    # an older record lacks what models could not have then
    ours["model"] = {name: value for name, value in config.items() if name in record["model"]}
    other = [name for name in ours if name != "epochs" and ours[name] != theirs[name]]
    if other:
        raise ValueError(f"made with another {', '.join(other)}")


def environment(k: Backend, processes: int = 1) -> dict[str, Any]:
    """The machine and software that compute a run. Results are bitwise equal only if all of these are equal, except the
    threads and, on CPUs, the processes where there are shards."""
    return {
        "backend": k.describe(),
        "kernels": k.kernels,
        "precision": k.precision,
        "threads": k.threads,
        "shards": k.shards,
        "processes": processes,
        "device": "cpu" if k.on_host else f"cuda:{k.xp.cuda.Device().id}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "minigrad": minigrad.__version__,
        "machine": platform.machine(),
        "libraries": libraries(k),
    }


def libraries(k: Backend) -> list[str]:
    """What computes: BLAS libraries with the processor they chose their code for, and Numba; or GPU and CuPy."""
    if not k.on_host:
        name = k.xp.cuda.runtime.getDeviceProperties(k.xp.cuda.Device().id)["name"].decode()
        return [f"CuPy {k.xp.__version__}", name]
    from threadpoolctl import threadpool_info

    # SciPy, if other code loads it, brings its own BLAS, which computes nothing here
    found = [x for x in threadpool_info() if x["user_api"] == "blas"]
    found = [x for x in found if Path(x["filepath"]).parent.name != "scipy.libs"]
    blas = sorted(f"{x['internal_api']} {x['version']} {x.get('architecture', '')}".strip() for x in found)
    compiled = [f"{name} {version(name)}" for name in ("numba", "llvmlite") if k.kernels == "numba"]
    return blas + compiled


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint's path, unread; None if there is none."""
    return next(reversed(numbered(folder, CHECKPOINTS)), None)


def made_by(record: dict[str, Any]) -> str:
    """A note about the minigrad version that wrote a checkpoint; empty if it is this version."""
    environment = record.get("environment")
    theirs = environment.get("minigrad") if isinstance(environment, dict) else None
    return "" if theirs == minigrad.__version__ else f"; it is of minigrad {theirs}, this is {minigrad.__version__}"


def load_checkpoint(
    folder: str | Path, tell: Callable[[str], None] = print
) -> tuple[dict[str, np.ndarray], dict[str, Any], Path]:
    """(arrays, record, path) of the newest valid checkpoint of a run. tell gets a message for each skipped one.

    Raises:
        DataError: there is no valid one.
    """
    place = Path(folder) / "checkpoints"
    if place.is_symlink() or (place.exists() and not place.is_dir()):
        raise DataError(f"{place}: expected a folder, found something else; put the run's checkpoints back there")
    paths = numbered(Path(folder), CHECKPOINTS)
    for path in reversed(paths):
        try:
            arrays, record, _ = load_state(path, Path(folder))
            if record.get("kind") != "checkpoint":
                raise DataError(f"{path}: not a checkpoint")
            return arrays, record, path
        except DataError as error:
            tell(f"skipped a checkpoint: {error}")
    left = "a model there can still be used, or --overwrite replaces the run"
    mend = left if paths else "there is none; start a training without --resume"
    raise DataError(f"{folder}: no valid checkpoint to resume from; {mend}")
