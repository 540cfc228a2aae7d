"""Real processes, started by mpirun. They exchange what they should; when one fails, all end and nothing is lost."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from faults import Campaign

import minigrad
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
    minigrad.use()  # compiled before, so that nothing is said of it
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
        (4, (*SMALL, "--shards", "2"), 4, "found 2: --shards 8, or fewer processes"),
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


OWN = """
import sys, numpy as np, minigrad
from autoencoders import VAE, Callback, TrainingOptions
from autoencoders.training import Trainer
from minigrad.distributed import world

class Fails(Callback):
    def on_batch_end(self, trainer):
        if sys.argv[1] == "in training" and group.rank == int(sys.argv[2]):
            raise ValueError("boom")
        if sys.argv[1] == "exit" and group.rank == int(sys.argv[2]):
            sys.exit(3)

group = world()
minigrad.use(kernels="numpy", threads=1, shards=16 if sys.argv[1] == "shards" and group.rank else 8)
if sys.argv[1] == "before" and group.rank == int(sys.argv[2]):
    raise ValueError("boom")
images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), dtype=np.uint8)
model = VAE((8, 8, 1), (4,), (3,), (2,), 2)
model.compile(0.1 if sys.argv[1] == "rate" and group.rank else 0.001)
Trainer(model, images, TrainingOptions(16, 2), callbacks=[Fails()], progress=False, group=group).run()
print("done")
"""


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("what", ["in training", "before", "exit"])
def test_an_error_of_one_process_of_an_own_program_ends_all(what: str, rank: int) -> None:
    """Nothing in it ends the others; they would wait for ten minutes."""
    code, out, err = run(2, "-c", OWN, what, rank)
    assert (code != 0, out) == (True, "")
    assert err.count("ValueError: boom") == (what != "exit")
    assert "no answer" not in err


@pytest.mark.parametrize("what", ["nothing", "shards", "rate"])
def test_processes_of_an_own_program_must_have_equal_settings(what: str) -> None:
    code, out, err = run(2, "-c", OWN, what)
    if what == "nothing":
        assert (code, out.count("done"), err) == (0, 2, "")
    else:
        assert (code != 0, out) == (True, "")
        assert "the options and images of process 1 differ from those of process 0" in err


def test_an_error_of_another_process_says_how_the_run_goes_on(tmp_path: Path) -> None:
    program = """
import sys
from autoencoders.cli import train
from autoencoders.training import Trainer
from minigrad.distributed import told
save = Trainer.save_checkpoint
def fails(self):
    save(self)
    if told("RANK") == 1: raise ValueError("boom")
Trainer.save_checkpoint = fails
sys.exit(train.main(sys.argv[1:]))
"""
    code, _, err = run(2, "-c", program, *SMALL[3:], "--out", tmp_path / "run")
    assert (code, len(load_checkpoint(tmp_path / "run"))) == (1, 3)
    assert "process 1: error: boom; the checkpoints are kept. When this is fixed, resume with:" in " ".join(err.split())
    assert f"--out {tmp_path / 'run'} --resume" in err


def test_the_doctor_speaks_once() -> None:
    code, out, _ = run(2, "-m", "minigrad", "doctor")
    assert (code, out.count("no problems found"), out.count("2 processes")) == (0, 1, 1)
    code, out, _ = run(3, "-m", "minigrad", "doctor")
    assert (code, out.count("-> Start as many with mpirun -n")) == (4, 1)


class Other(distributed.MPIGroup):
    """A group whose attributes the tests set; there is no MPI."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update({"seconds": 0.0, **attributes})

    def _stalled(self, waited: float) -> None:
        raise distributed.StalledError


def test_time_in_which_a_process_itself_was_stopped_is_no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    now, turns = 0.0, itertools.count(1)

    def done() -> bool:
        nonlocal now
        turn = next(turns)
        now += 3600 if turn in (300, 400) else 0.01  # as if stopped for an hour
        return turn == 500

    monkeypatch.setattr(distributed, "time", SimpleNamespace(monotonic=lambda: now, sleep=lambda _: None))
    Other(limit=6.0)._wait(done)
    with pytest.raises(distributed.StalledError):
        Other(limit=6.0)._wait(done)


@pytest.mark.parametrize(
    ("cores", "usable", "threads"),
    [
        ([{0, 1, 2, 3}] * 2, 4, 2),  # all processes may use all cores
        ([{0, 1}, {2, 3}], 2, 2),  # each has its own
        ([{0}, {1}], 1, 1),
        ([{0, 1, 2}, {2, 3}], 3, 2),  # they share one
        ([set(range(8))] * 4, 4, 1),  # a limit of four cores for all
        ([{0}] * 4, 1, 1),
    ],
)
def test_processes_of_a_machine_share_its_cores(
    cores: list[set[int]], usable: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "usable_cores", lambda: usable)
    assert Other(local_cores=cores, local_rank=0, local_size=len(cores)).threads == threads


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
