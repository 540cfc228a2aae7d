"""Saves and trains while one call of the system after another fails; under fault_layer.cpp (LD_PRELOAD).

    python tests/fault_worker.py save|run EVERY SEED FOLDER

Every EVERY-th call is made to fail, in a try of its own, with each of ENOSPC, EIO and a short write. Prints JSON: how
many faults were injected, in how many tries the documented error came, and what was lost.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import json
import shutil
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

import minigrad
from autoencoders import VAE, TrainingOptions, runs
from autoencoders.data import Dataset
from autoencoders.training import latest_checkpoint, load_checkpoint
from minigrad.serialize import DataError, load_state, save_state

LAYER = ctypes.CDLL(None)
LAYER.fault_stop.restype = ctypes.c_long
ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "short write": 0}
Outcome = tuple[int, str, list[str]]  # calls that were counted, the documented error if it came, what was lost


def save(folder: Path, inject: Callable[[], None]) -> Outcome:
    """A file is replaced."""
    path = folder / "x.safetensors"
    save_state(path, {"x": np.arange(5000.0)}, {"number": 1})
    inject()
    told = ""
    try:
        save_state(path, {"x": np.arange(5000.0) + 2}, {"number": 2})
    except DataError as error:
        told = str(error)
    calls = LAYER.fault_stop()
    arrays, record, _ = load_state(path)
    lost = []
    # after an error it is the old file, or whole the new one, where only the last call, the folder's fsync, failed
    if record["number"] != 2 and not told:
        lost.append("saved without an error, but not there")
    if not np.array_equal(arrays["x"], np.arange(5000.0) + (2 if record["number"] == 2 else 0)):
        lost.append("other content")
    if told and str(path) not in told:
        lost.append(f"the error does not name the file: {told}")
    lost += [f"left behind: {other.name}" for other in folder.iterdir() if other != path]
    return calls, told, lost


def start(folder: Path) -> runs.Run:
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), dtype=np.uint8)
    data = Dataset("toy", images[:8], np.arange(8) % 2, images[8:], np.arange(4) % 2, ("a", "b"), "made up")
    model = VAE((8, 8, 1), (2, 3), (3, 3), (2, 1), 2)
    options = TrainingOptions(4, epochs=2, save_every=1)
    runs.load_dataset = lambda *_, **__: data
    if latest_checkpoint(folder):
        return runs.resume_run(folder, progress=False, tell=lambda _: None)
    return runs.start_run(model, data, options, folder, learning_rate=1e-2, progress=False, overwrite=True)


def train(folder: Path, inject: Callable[[], None]) -> Outcome:
    """A whole run, and where it failed the same run again."""
    inject()
    told = ""
    try:
        start(folder).execute(lambda _: None)
    except DataError as error:
        told = str(error)
    calls = LAYER.fault_stop()
    lost = [] if not told or str(folder) in told else [f"the error does not name the folder: {told}"]
    if latest_checkpoint(folder):
        load_checkpoint(folder, lost.append)  # says which ones it had to skip
    if told:
        start(folder).execute(lambda _: None)
    found = {name: x.tobytes() for name, x in load_state(folder / "model.safetensors")[0].items()}
    expected = load_state(folder.parent / "whole" / "model.safetensors")[0]
    if found != {name: x.tobytes() for name, x in expected.items()}:
        lost.append("other weights at the end")
    if runs.read_record(folder)["status"] != "finished":
        lost.append("not finished")
    return calls, told, lost + [f"left behind: {path.name}" for path in folder.rglob("*.part")]


def main() -> None:
    what, every, seed, place = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    minigrad.use(kernels="plain")
    runs.draw, runs.save_pictures = lambda *_, **__: {}, lambda *_: []  # type: ignore[assignment]
    attempt, folder = (save if what == "save" else train), place / "try"
    start(place / "whole").execute(lambda _: None)
    faults, ended, lost = 0, 0, []
    for name, code in ERRORS.items():
        for at in itertools.count(seed % every, every):
            folder.mkdir()
            try:
                calls, told, found = attempt(folder, partial(LAYER.fault_set, bytes(folder), at, code))
            except Exception:
                calls, told, found = LAYER.fault_stop() + at + 1, "", [traceback.format_exc(limit=-4)]
            shutil.rmtree(folder)
            if calls <= at:  # there were no more
                break
            faults, ended = faults + 1, ended + bool(told)
            lost += [f"{name} at call {at}: {text}" for text in found]
    print(json.dumps({"faults": faults, "ended": ended, "lost": lost}))


if __name__ == "__main__":
    main()
