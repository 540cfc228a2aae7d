"""Saves, trains and evaluates while one call of the system after another fails; under fault_layer.cpp (LD_PRELOAD).

    python tests/campaign/fault_worker.py save|run|replace|evaluate|generator EVERY SEED FOLDER [PLANT]

Every EVERY-th call is made to fail, in a try of its own, with each of ENOSPC, EIO, a short write and kill -9. Prints
JSON: how many faults were injected, in how many tries the documented error or the kill came, and what was lost. With
any PLANT files are written in place, so that something is.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import io
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from faults import halves, toy
from matplotlib.figure import Figure

import minigrad
from autoencoders import VAE, Autoencoder, TrainingOptions
from autoencoders.cli import evaluate, generate, models as cli_models
from autoencoders.evaluation.mixture import Mixture
from autoencoders.pictures import charts
from autoencoders.runs import record as run_record, replace as run_files, run as run_module, start as run_start
from autoencoders.training import latest_checkpoint, load_checkpoint
from autoencoders.training.folder import LEFTOVERS
from minigrad.serialize import DataError, load_state, save_state

whole_save = save_state
LAYER = ctypes.CDLL(None)
LAYER.fault_stop.restype = ctypes.c_long
KILL = -1
ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "short write": 0, "kill -9": KILL}
KILLED = "killed"
PICTURE = Figure((0.5, 0.5))  # stands for all of them; how fine it is tells the seed
DATA = dataclasses.replace(toy(), name="fashion-mnist-sample")  # others would need --dataset
PROGRAMS: dict[str, tuple[Any, list[str]]] = {
    "evaluate": (evaluate, []),
    "generator": (generate, ["--mixture-components", "2"]),
}
Outcome = tuple[int, str, list[str]]  # calls that were counted, the documented error or KILLED, what was lost
Inject = Callable[[Callable[[], object]], tuple[int, str]]  # does it while a call fails; (calls, error or KILLED)


def inject(folder: Path, at: int, code: int, do: Callable[[], object]) -> tuple[int, str]:
    """Do it while call `at` in the folder fails; in a child, where it is killed."""
    if code == KILL:
        child = os.fork()
        if not child:
            LAYER.fault_set(bytes(folder), at, code)
            try:
                do()
            finally:
                os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        return (at + 1, KILLED) if killed else (at, "")
    LAYER.fault_set(bytes(folder), at, code)
    told = ""
    try:
        do()
    except DataError as error:
        told = str(error)
    return LAYER.fault_stop(), told


def unnamed(told: str, path: Path) -> list[str]:
    return [] if told in ("", KILLED) or str(path) in told else [f"the error does not name {path.name}: {told}"]


def save(folder: Path, inject: Inject) -> Outcome:
    """A file is replaced."""
    path = folder / "x.safetensors"
    save_state(path, {"x": np.arange(5000.0)}, {"number": 1})
    calls, told = inject(lambda: save_state(path, {"x": np.arange(5000.0) + 2}, {"number": 2}))
    arrays, record, _ = load_state(path)
    lost = unnamed(told, path)
    # after an error it is the old file, or whole the new one, where only the last call, the folder's fsync, failed
    if record["number"] != 2 and not told:
        lost.append("saved without an error, but not there")
    if not np.array_equal(arrays["x"], np.arange(5000.0) + (2 if record["number"] == 2 else 0)):
        lost.append("other content")
    others = [other.name for other in folder.iterdir() if other != path]
    if told == KILLED:  # who was killed cannot tidy up; the next training does
        others = [name for name in others if not (name.startswith(".x.") and name.endswith(".part"))]
    return calls, told, lost + [f"left behind: {name}" for name in others]


def start(folder: Path, seed: int = 0, *, overwrite: bool = False, kind: type[Autoencoder] = VAE) -> run_module.Run:
    """The run of a folder goes on, or a new one is ready to start."""
    PICTURE.set_dpi(30 + seed)
    if latest_checkpoint(folder) and not overwrite:
        return run_start.resume_run(folder, progress=False, tell=lambda _: None)
    model = kind((8, 8, 1), (2, 3), (3, 3), (2, 1), 2, seed=seed)
    options = TrainingOptions(4, epochs=2, save_every=1, seed=seed)
    return run_start.start_run(model, DATA, options, folder, learning_rate=1e-2, progress=False, overwrite=overwrite)


def execute(folder: Path, seed: int = 0, **options: Any) -> None:
    start(folder, seed, **options).execute(lambda _: None)


def other_weights(folder: Path, whole: str) -> list[str]:
    """What a finished run has that the undisturbed one has not."""
    found, expected = (load_state(place / "model.safetensors")[2] for place in (folder, folder.parent / whole))
    lost = [] if found == expected else ["other weights at the end"]
    if run_record.read_record(folder)["status"] != "finished":
        lost.append("not finished")
    missing = set(contents(folder.parent / whole)) - set(contents(folder))
    hidden = [path.name for path in folder.rglob(".*") if path.name != ".lock"]
    return lost + halves(folder) + [f"missing: {name}" for name in missing] + [f"left behind: {x}" for x in hidden]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but the lock, by where it lies there."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def train(folder: Path, inject: Inject) -> Outcome:
    """A whole run, and where it failed the same run again."""
    calls, told = inject(lambda: execute(folder))
    lost = unnamed(told, folder) + halves(folder)
    if latest_checkpoint(folder):
        load_checkpoint(folder, lost.append)  # says which ones it had to skip
    if told:
        execute(folder)
    return calls, told, lost + other_weights(folder, "whole")


def replace(folder: Path, inject: Inject) -> Outcome:
    """A run that replaces a finished one. Wherever it failed, the new one can go on or start again, and then every file
    of the old one is in a folder of its own."""
    shutil.copytree(folder.parent / "whole", folder, dirs_exist_ok=True)
    before = {path.relative_to(folder): path.read_bytes() for path in run_files.own_files(folder)}
    calls, told = inject(lambda: execute(folder, seed=1, overwrite=True))
    lost = unnamed(told, folder) + halves(folder)
    record = run_record.read_record(folder)
    new = record.get("options", {}).get("seed") == 1 and latest_checkpoint(folder)
    if told and not (new and record["status"] == "finished"):
        execute(folder, seed=1, overwrite=not new)
    for name, content in before.items():
        if content not in [path.read_bytes() for path in folder.glob(f"old-*/{name}")]:
            lost.append(f"the old run has lost {name}")
    return calls, told, lost + other_weights(folder, "other")


def call(what: str, folder: Path, seed: int) -> None:
    """A program on the run of a folder."""
    program, words = PROGRAMS[what]
    PICTURE.set_dpi(30 + seed)
    said = io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(said):
        code = program.main(["--model-dir", str(folder), "--seed", str(seed), *words])
    if code == 3:
        raise DataError(said.getvalue())
    if code or said.getvalue():
        raise RuntimeError(f"exit code {code}: {said.getvalue()}")


@cache
def undisturbed(what: str, folder: Path) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """What lies in the folder of a finished run after a program has written there, and after it has again, with another
    seed: every file of its own is then another one, and no other file is."""
    shutil.copytree(folder.parent / "whole", folder, dirs_exist_ok=True)
    states = []
    for seed in (0, 1):
        call(what, folder, seed)
        states.append(contents(folder))
    before, after = states
    own = {"evaluation.json", "report.html", "mixture.safetensors", *(x for x in before if x.startswith("figures"))}
    assert set(before) == set(after)
    changed = {name for name in before if before[name] != after[name]}
    assert len(changed) >= 2
    assert changed <= own
    return before, after


def look(what: str, folder: Path, inject: Inject) -> Outcome:
    """A program writes anew what it has written before."""
    before, after = undisturbed(what, folder)
    for name, content in before.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    calls, told = inject(lambda: call(what, folder, 1))
    lost = unnamed(told, folder) + halves(folder)
    found = contents(folder)
    lost += [
        f"neither old nor new: {name}" for name in before if found.pop(name, None) not in (before[name], after[name])
    ]
    if not told and contents(folder) != after:
        lost.append("not all is new, without an error")
    # who was killed cannot tidy up; the next training does
    known = [str(path.relative_to(folder)) for pattern in LEFTOVERS for path in folder.glob(pattern) if told == KILLED]
    lost += [f"left behind: {name}" for name in found if name not in known]
    call(what, folder, 1)
    if {name: content for name, content in contents(folder).items() if name not in found} != after:
        lost.append("other files after all")
    return calls, told, lost


def first_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """One that gives the same again whenever it is called."""
    given: list[Any] = []

    def call(*arguments: Any, **named: Any) -> Any:
        if not given:
            given.append(function(*arguments, **named))
        return deepcopy(given[0])

    return call


def save_in_place(path: Path, arrays: dict[str, np.ndarray], record: dict[str, Any]) -> None:
    """What `save_state` writes, but over the old file, and in parts."""
    with tempfile.TemporaryDirectory() as elsewhere:
        whole = Path(elsewhere) / path.name
        whole_save(whole, arrays, record)
        content = whole.read_bytes()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        for part in (content[:1000], content[1000:]):
            os.write(file, part)
    except OSError as error:
        raise DataError(f"{path}: {error}") from error
    finally:
        os.close(file)


def main() -> None:
    global save_state
    what, every, seed, place = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    if sys.argv[5:]:
        save_state = save_in_place
    plain = minigrad.use(kernels="plain")
    minigrad.use = lambda *_: plain
    # what takes long is not the writing
    run_start.load_dataset = cli_models.load_dataset = lambda *_, **__: DATA
    charts.loss_curves = charts.film_frame = lambda *_, **__: PICTURE
    run_module.draw = generate.draw = lambda *_, **__: {"samples": PICTURE}
    evaluate.all_pictures = lambda *_: {"samples": PICTURE, "loss_curves": PICTURE}
    evaluate.measure = first_of(evaluate.measure)
    generate.fit_mixture = lambda *_: Mixture(np.ones(2) / 2, np.full((2, 2), PICTURE.dpi), np.array([np.eye(2)] * 2))
    attempts = {"save": save, "run": train, "replace": replace, **{name: partial(look, name) for name in PROGRAMS}}
    attempt, folder = attempts[what], place / "try"
    execute(place / "whole", kind=Autoencoder if what == "generator" else VAE)
    execute(place / "other", seed=1)
    faults, ended, lost = 0, 0, []
    for name, code in ERRORS.items():
        for at in itertools.count(seed % every, every):
            folder.mkdir()
            try:
                calls, told, found = attempt(folder, partial(inject, folder, at, code))
            except Exception:
                calls, told, found = LAYER.fault_stop() + at + 1, "", [traceback.format_exc(limit=-4)]
            shutil.rmtree(folder)
            if calls <= at or len(lost) > 100:  # there were no more; or it is not the fault that makes it fail
                break
            faults, ended = faults + 1, ended + bool(told)
            lost += [f"{name} at call {at}: {text}" for text in found]
    print(json.dumps({"faults": faults, "ended": ended, "lost": lost}))


if __name__ == "__main__":
    main()
