"""Real processes, started by mpirun. They exchange what they should; when one fails, all end and nothing is lost."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import Campaign

from autoencoders.training import load_checkpoint
from minigrad import DeviceError, distributed
from minigrad.serialize import DataError

WORKER = Path(__file__).with_name("mpi_worker.py")
MPIRUN = Path(sys.executable).with_name("mpirun")
NEEDS_MPI = pytest.mark.skipif(not (MPIRUN.exists() and find_spec("mpi4py")), reason="the extra mpi is not installed")
pytestmark = [NEEDS_MPI, pytest.mark.mpi]
OPEN_MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}
SECONDS = 60  # within which every run here ends


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, sys.path))
    return {**os.environ, **OPEN_MPI, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", **more}


@contextlib.contextmanager
def started(size: int, *command: object, **more: str) -> Iterator[subprocess.Popen[str]]:
    """A running mpirun, or of size 1 the program without it."""
    words = [*([str(MPIRUN), "-n", str(size)] if size > 1 else []), sys.executable, *map(str, command)]
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    how = {"text": True, "env": environment(**more), "start_new_session": True}
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, **pipes, **how) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def run(size: int, *command: object, **more: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)."""
    with started(size, *command, **more) as process:
        out, err = process.communicate(timeout=SECONDS)
        return process.returncode, out, err


def digest(folder: Path) -> dict[str, bytes]:
    """The state of the newest checkpoint; nothing if none is valid."""
    try:
        return {name: x.tobytes() for name, x in load_checkpoint(folder)[0].items()}
    except DataError:
        return {}


def newest(folder: Path) -> int:
    try:
        return int(load_checkpoint(folder)[1]["progress"]["step"])
    except DataError:
        return 0


def worker(folder: Path, save_every: int = 0, fault: dict[str, Any] | None = None) -> tuple[Path, str]:
    return WORKER, json.dumps({"folder": str(folder), "save_every": save_every, "fault": fault})


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The state at the end of a run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    assert run(1, *worker(folder))[0] == 0
    return digest(folder)


@pytest.mark.parametrize("size", [2, 4])
def test_processes_end_in_the_same_bits_as_one(size: int, expected: Any, tmp_path: Path) -> None:
    code, out, err = run(size, *worker(tmp_path))
    assert (code, err) == (0, "")
    assert sorted(line.split()[1] for line in out.splitlines() if line.startswith("pid")) == sorted(
        map(str, range(size))
    )
    assert digest(tmp_path) == expected


KINDS = "kill", "signal at mpirun", "signal at a process", "stopped", "error", "full disk", "flipped bit", "divergence"
CODES = {"divergence": (5,), "full disk": (3,), "error": (1,), "flipped bit": (1,), "stopped": (1,)}


def injected(kind: str, size: int, folder: Path, rng: np.random.Generator, every: int) -> list[str]:
    """Run until a fault of this kind ends it. What went wrong beyond that."""
    rank, step = int(rng.integers(size)), newest(folder) + int(rng.integers(1, 12))
    inside = kind in ("error", "full disk", "flipped bit", "divergence")
    fault = {"kind": kind, "rank": 0 if kind == "full disk" else rank, "step": step} if inside else None
    pids: dict[int, int] = {}
    said, faults, done = [], [], newest(folder)
    with started(size, *worker(folder, every, fault), MINIGRAD_WAIT="5" if kind == "stopped" else "60") as process:
        assert process.stdout
        assert process.stderr
        for line in process.stdout:
            word, *numbers = line.split() or [""]  # a kill cuts lines short
            if word == "pid":
                pids[int(numbers[0])] = int(numbers[1])
            elif word == "step":
                done = int(numbers[0])
                if not inside and done >= step and pids:
                    time.sleep(rng.uniform(0, 0.03))
                    number, to = {
                        "kill": (signal.SIGKILL, pids[rank]),
                        "stopped": (signal.SIGSTOP, pids[rank]),
                        "signal at a process": (signal.SIGTERM, pids[rank]),
                        "signal at mpirun": (signal.SIGINT, process.pid),
                    }[kind]
                    inside = True
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(to, number)
        said = process.stderr.read().splitlines()
        code = process.wait(SECONDS)
    until = time.monotonic() + 10
    while (alive := [pid for pid in pids.values() if is_alive(pid)]) and time.monotonic() < until:
        time.sleep(0.05)
    errors = [line for line in said if "error" in line.split(":")[0] or line.startswith(("process", "interrupted"))]
    if alive:
        faults.append(f"processes {alive} did not end")
    if code in (0, None) or code not in CODES.get(kind, (code,)):
        faults.append(f"exit code {code}")
    silent = kind == "kill" or (kind == "signal at mpirun" and not errors)  # Open MPI then shows nothing any more
    if not silent and len(errors) != 1:
        faults.append(f"errors {errors} of {said}")
    if kind in ("stopped", "flipped bit") and errors and f"process {rank} " not in errors[0] and rank:
        faults.append(f"{errors[0]} does not name process {rank}")
    if kind == "error" and rank and errors and not errors[0].startswith(f"process {rank}: error"):
        faults.append(f"{errors[0]} does not name process {rank}")
    lost = done - newest(folder)
    if lost > (0 if kind.startswith("signal") else every + 1):
        faults.append(f"{lost} steps lost")
    return faults


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_of_one_process_ends_all_and_loses_nothing(
    kind: str, campaign: Campaign, expected: Any, tmp_path: Path
) -> None:
    rng, wanted, lost, runs = campaign.rng(kind), campaign.count(1, 25), 0, 0
    for number in range(wanted):
        folder, size, every = tmp_path / str(number), int(rng.choice([2, 4])), int(rng.choice([1, 3]))
        faults = injected(kind, size, folder, rng, every)
        code, _, err = run(int(rng.choice([1, 2, 4])), *worker(folder, every))  # goes on with any number of processes
        faults += [f"resume: exit code {code}: {err}"] * (code != 0)
        faults += ["other bits"] * (digest(folder) != expected)
        lost, runs = lost + bool(faults), runs + 2
        if faults:
            print(f"{kind} of {size} processes, saved every {every} steps: {faults}")
    campaign.survived(f"{kind} of 2 and 4 processes", wanted, lost, runs=runs)


TRAIN = (
    "-m",
    "autoencoders",
    "train",
    "--dataset",
    "fashion-mnist-sample",
    "--limit-train",
    "64",
    "--batch-size",
    "32",
)
SMALL = (*TRAIN, "--filters", "4", "8", "--kernels", "3", "3", "--strides", "2", "2", "--epochs", "1", "--smoke")


def test_the_program_speaks_once(tmp_path: Path) -> None:
    code, out, err = run(2, *SMALL, "--out", tmp_path / "run")
    assert (code, err) == (0, "")
    assert out.count("epoch 1/1") == 1
    assert (tmp_path / "run/figures/samples.png").exists()
    code, out, err = run(2, *SMALL, "--out", tmp_path / "run")
    assert code == 1
    assert err.count("error") == 1


@pytest.mark.parametrize(
    ("size", "words", "code", "message"),
    [
        (2, ("-m", "autoencoders", "evaluate"), 2, "only train can use several processes"),
        (2, ("-m", "autoencoders", "train", "--bogus"), 2, "there is no option --bogus"),
        (2, ("-m", "autoencoders", "train", "--explain", "x.html"), 2, "--explain shows one process"),
        (2, (*SMALL, "--batch-size", "20"), 2, "--batch-size is 20, but several processes"),
        (3, SMALL, 4, "3 processes were started, but their number must be a power of two"),
        (1, (*SMALL, "--distributed"), 4, "this process is alone; start several with mpirun"),
    ],
)
def test_what_cannot_be_shared_is_refused_once(size: int, words: Any, code: int, message: str, tmp_path: Path) -> None:
    more = ("--out", tmp_path / "run") if "--filters" in words else ()
    found, _, err = run(size, *words, *more)
    assert found == code
    assert err.count(message) == 1, err
    assert not (tmp_path / "run").exists()


def test_an_mpirun_of_another_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import minigrad.distributed as d\ntry: d.world()\nexcept d.DeviceError as e: print(e)"
    code, out, _ = run(1, "-c", script, PMI_SIZE="4", PMI_RANK="2") if "mpich" not in str(MPIRUN) else (0, "", "")
    assert code == 0
    assert "4 processes were started, but each finds 1" in out
    monkeypatch.delenv("PMI_SIZE", raising=False)
    assert distributed.told() == 1
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    distributed.world.cache_clear()
    with pytest.raises(DeviceError, match=r'pip install "\.\[mpi\]"'):
        distributed.world()
