"""The fault campaign, part 1: trainings that are killed, interrupted and started again lose nothing.

What "nothing" means: after every fault the folder holds a valid checkpoint, at most one step older than the last one
that was done (checkpoints are written after every step here), and the run that goes on ends in the same bits as one
that nobody disturbed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cuda_on_cpu
import pytest
from conftest import NEEDS_COMPILER, NEEDS_NUMBA
from faults import Campaign

from autoencoders.training import load_checkpoint

SERVER = Path(__file__).with_name("train_server.py")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
STEPS = 80
RUNS = ["vae-numpy-1", "ae-plain-1", pytest.param("vae-numba-2", marks=NEEDS_NUMBA)]  # model, kernels, threads


class Server:
    """A process whose children train."""

    def __init__(self) -> None:
        # BLAS without threads: a forked child has none of its parent's
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        self.process = subprocess.Popen(
            [sys.executable, str(SERVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def start(self, **options: object) -> int:
        """Begin a training; its process id."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps(options) + "\n")
        self.process.stdin.flush()
        word, pid = self.line().split()
        assert word == "pid", word
        return int(pid)

    def line(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline().strip()
        assert line, self.process.stderr.read() if self.process.stderr else ""
        return line

    def finish(self, line: str | None = None) -> tuple[int, int, list[str]]:
        """(exit code, the last step that was done, what else was said), from this line on."""
        step, said = 0, []
        while True:
            word, _, rest = (line := line or self.line()).partition(" ")
            if word == "exit":
                return int(rest), step, said
            if word == "step":
                step = int(rest)
            else:
                said.append(line)
            line = None


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.process.kill()
    made.process.communicate()


def digest(folder: Path) -> dict[str, bytes]:
    """The state at the end of a run."""
    return {name: x.tobytes() for name, x in load_checkpoint(folder)[0].items()}


def undisturbed(server: Server, folder: Path, **options: object) -> dict[str, bytes]:
    """The state at the end of a run that nobody disturbs."""
    server.start(folder=str(folder), **options)
    assert server.finish()[0] == 0
    return digest(folder)


def newest(folder: Path) -> tuple[int, list[str]]:
    """(step of the newest valid checkpoint, what was skipped)."""
    skipped: list[str] = []
    if not any(folder.glob("checkpoints/step-*")):
        return 0, skipped
    return load_checkpoint(folder, skipped.append)[1]["progress"]["step"], skipped


def send(process: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it was faster
        os.kill(process, number)


def leftovers(folder: Path) -> list[Path]:
    return [*folder.rglob("*.part")]


@pytest.mark.parametrize("run", RUNS)
def test_kill_9_while_saving(campaign: Campaign, server: Server, tmp_path: Path, run: str) -> None:
    kind, kernels, threads = run.split("-")
    options = {"kind": kind, "kernels": kernels, "threads": int(threads), "steps": STEPS}
    expected = undisturbed(server, tmp_path / "whole", **options)
    rng = campaign.rng(run)
    kills = lost = number = halves = 0
    wanted = campaign.count(15, 200)
    while kills < wanted:
        folder = tmp_path / f"run{number}"
        number += 1
        code = 1
        while code:
            process = server.start(folder=str(folder), **options)
            first = None
            if kills < wanted:
                if rng.random() < 0.75:
                    first = server.line()  # of its first step; however long it takes to start, most kills come later
                time.sleep(rng.uniform(0, 0.2))
                send(process, signal.SIGKILL)
            code, done, said = server.finish(first)
            assert code in (0, -signal.SIGKILL), said
            kills += code != 0
            halves += bool(leftovers(folder))
            step, skipped = newest(folder)
            lost += step < done - 1 or bool(skipped) or bool(said)
        lost += digest(folder) != expected
        assert not leftovers(folder)
    campaign.survived(f"kill -9 while saving after every step ({run})", kills, lost)
    assert halves or not campaign.full  # some hit the middle of a save


@pytest.mark.parametrize("which", ["SIGINT", "SIGTERM", "SIGINT twice"])
def test_signals(campaign: Campaign, server: Server, tmp_path: Path, which: str) -> None:
    twice = which.endswith("twice")
    options = {"kind": "vae", "kernels": "numpy", "steps": STEPS, "save_every": 1 if twice else 7}
    expected = undisturbed(server, tmp_path / "whole", **options)
    number = getattr(signal, which.split()[0])
    rng = campaign.rng(which)
    sent = lost = runs = at_once = 0
    wanted = campaign.count(5, 60)
    while sent < wanted:
        folder = tmp_path / f"run{runs}"
        runs += 1
        code = 1
        while code:
            process = server.start(folder=str(folder), **options)
            before = newest(folder)[0]
            first = server.line()  # of its first step: its handlers are in place
            if sent < wanted and first.startswith("step"):
                time.sleep(rng.uniform(0, 0.15))
                send(process, number)
                if twice:
                    time.sleep(rng.uniform(0, 0.003))
                    send(process, number)
            code, done, said = server.finish(first)
            if code == -number and done == STEPS:
                code = 0  # it came after the training, when nobody catches it any more
            step, skipped = newest(folder)
            if code:
                sent += 1
                lost += code != 128 + number or bool(skipped)
                # the step was finished and saved; a second signal stops at once, and what was saved before stays
                at_once += "interrupted at once" in said
                lost += step < max(before, done - twice)
                lost += any(not text.startswith("interrupted") for text in said)
        lost += digest(folder) != expected
    campaign.survived(f"{which} at any moment", sent, lost)
    assert bool(at_once) == twice or not campaign.full


def test_resume_from_every_step(campaign: Campaign, server: Server, tmp_path: Path) -> None:
    options = {"kind": "vae", "kernels": "numpy", "steps": 60}
    expected = undisturbed(server, tmp_path / "whole", keep=60, **options)
    saved = sorted((tmp_path / "whole" / "checkpoints").iterdir())
    assert len(saved) == 60
    chosen = [saved[i] for i in campaign.rng().permutation(60)[: campaign.count(6, 60)]]
    lost = 0
    for path in chosen:
        again = tmp_path / path.stem
        (again / "checkpoints").mkdir(parents=True)
        shutil.copy(path, again / "checkpoints")
        lost += undisturbed(server, again, **options) != expected
    campaign.survived("resume from a checkpoint of any step, other bits at the end", len(chosen), lost)


def test_resume_many_times_in_one_run(campaign: Campaign, server: Server, tmp_path: Path) -> None:
    """Each part begins where Ctrl-C has ended the one before."""
    options = {"kind": "vae", "kernels": "numpy", "steps": 60, "save_every": 0}
    expected = undisturbed(server, tmp_path / "whole", **options)
    stops = sorted(campaign.rng().permutation(59)[: campaign.count(4, 20)] + 1)
    for stop in stops:
        server.start(folder=str(tmp_path / "parts"), stop_at=int(stop), **options)
        assert server.finish()[:2] == (130, stop)
        assert newest(tmp_path / "parts") == (stop, [])
    lost = undisturbed(server, tmp_path / "parts", **options) != expected
    campaign.survived("resumes in one run, other bits at the end", len(stops), lost)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_bits_in_fresh_processes(campaign: Campaign, tmp_path: Path, threads: int) -> None:
    """100 steps, other hash seeds: nothing depends on the order of a set or on an address."""
    found = []
    count = campaign.count(2, 10)
    options = {"kind": "vae", "kernels": "numpy", "steps": 100, "threads": threads}
    for number in range(count):
        folder = tmp_path / str(number)
        line = json.dumps({"folder": str(folder), **options})
        environment = {**os.environ, "PYTHONHASHSEED": str(int(campaign.rng(number).integers(1, 2**32 - 1)))}
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        subprocess.run([sys.executable, str(SERVER)], input=f"{line}\n", env=environment, check=True, text=True)
        assert newest(folder) == (100, [])
        found.append(digest(folder))
    lost = sum(x != found[0] for x in found)
    campaign.survived(f"100 steps in fresh processes ({threads} threads), other bits", count, lost)


def test_a_soak_leaves_nothing_behind(campaign: Campaign, server: Server, tmp_path: Path) -> None:
    """Memory, open files, threads and temporary files of a training that saves after every step."""
    steps = campaign.count(300, 5000)
    process = server.start(folder=str(tmp_path), kind="vae", kernels="numpy", steps=steps)
    place = Path(f"/proc/{process}")
    if not place.exists():
        server.finish()
        pytest.skip("needs /proc")

    def usage() -> tuple[int, int, int, int]:
        status = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
        files = len(os.listdir(place / "fd"))
        return int(status["VmRSS"].split()[0]), files, int(status["Threads"]), len(os.listdir(tmp_path / "checkpoints"))

    early: tuple[int, ...] = ()
    seen: list[tuple[int, ...]] = []
    while not (line := server.line()).startswith("exit"):
        step = int(line.split()[1])
        if step == 100:
            early = usage()
        elif step > 100 and step % 50 == 0 and step < steps:
            seen.append(usage())
    assert line == "exit 0"
    memory, files, threads, _ = (max(values) for values in zip(*seen, strict=True))
    lost = (memory - early[0] > 8 * 1024) + (files > early[1] + 2) + (threads > early[2])
    assert len(os.listdir(tmp_path / "checkpoints")) == 3
    assert not leftovers(tmp_path)
    campaign.survived("steps of a soak: memory + 8 MB, open files, threads, temporary files", steps, lost)


def test_a_busy_machine_changes_no_bit(server: Server, tmp_path: Path) -> None:
    options = {"kind": "vae", "kernels": "numpy", "steps": 40}
    expected = undisturbed(server, tmp_path / "calm", **options)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        server.start(folder=str(tmp_path / "busy"), **options)
        assert server.finish()[0] == 0
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert digest(tmp_path / "busy") == expected


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root, to become somebody else")
def test_a_folder_without_permission(server: Server, tmp_path: Path) -> None:
    """One line that names the folder, exit code 3, and nothing there; also where a run lies that may only be read."""
    tmp_path.chmod(0o755)
    for place in tmp_path.parents[:2]:
        place.chmod(place.stat().st_mode | 0o55)
    options = {"kind": "vae", "kernels": "numpy", "steps": 20, "user": 65534}
    server.start(folder=str(tmp_path / "new"), **options)
    code, _, said = server.finish()
    assert code == 3
    assert [text.partition(":")[0] for text in said] == ["error"]
    assert str(tmp_path / "new") in said[0]
    assert not (tmp_path / "new").exists()
    server.start(folder=str(tmp_path / "old"), **{**options, "user": None, "steps": 10})
    assert server.finish()[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "old").rglob("*") if path.is_file()}
    server.start(folder=str(tmp_path / "old"), **options)
    assert server.finish()[0] == 3
    assert {path: path.read_bytes() for path in (tmp_path / "old").rglob("*") if path.is_file()} == before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and RLIMIT_AS")
def test_a_memory_limit_ends_the_run_with_advice_and_without_harm(server: Server, tmp_path: Path) -> None:
    options = {"kind": "ae", "kernels": "plain", "steps": 20, "side": 96, "folder": str(tmp_path)}
    server.start(**options, headroom=45 << 20)
    code, step, said = server.finish()
    assert (code, step) == (4, 0)
    assert re.match(r"error: a training step on 4 images needs about .* on cpu, .* fits is [1-3] \(--b", said[-1]), said
    assert not leftovers(tmp_path)
    server.start(**options)
    assert server.finish()[:2] == (0, 20)


@NEEDS_COMPILER
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs LD_PRELOAD")
@pytest.mark.parametrize(("what", "every"), [("save", 1), ("run", 23), ("replace", 29)])
def test_every_call_of_the_system_fails_once(campaign: Campaign, tmp_path: Path, what: str, every: int) -> None:
    """ENOSPC, EIO, short writes and kill -9 in the making, writing, flushing, renaming and removing of files, by
    fault_layer.cpp."""
    layer = tmp_path / "layer.so"
    source = Path(__file__).with_name("fault_layer.cpp")
    build = [str(cuda_on_cpu.compiler()), "-shared", "-fPIC", "-O1", "-o", str(layer), str(source), "-ldl"]
    subprocess.run(build, check=True)
    place = tmp_path / "place"
    place.mkdir()
    worker = Path(__file__).with_name("fault_worker.py")
    command = [sys.executable, str(worker), what, str(campaign.count(every, 1)), str(campaign.seed), str(place)]
    environment = {**os.environ, "LD_PRELOAD": str(layer), "PYTHONPATH": os.pathsep.join(sys.path)}
    environment["OPENBLAS_NUM_THREADS"] = "1"
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["faults"] >= campaign.count(10, 20 if what == "save" else 200)
    assert found["ended"] >= found["faults"] / 3  # a short write ends nothing, and a folder that is there is enough
    names = {"save": "a save", "run": "a training", "replace": "a training that replaces another one"}
    row = f"ENOSPC, EIO, short write, kill -9 at a call of {names[what]}"
    assert not found["lost"], "\n".join(found["lost"])
    campaign.survived(row, found["faults"])
