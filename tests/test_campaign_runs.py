"""The fault campaign, part 1: trainings that are killed, interrupted and started again lose nothing.

What "nothing" means: after every fault the folder holds a valid checkpoint, at most as many steps older than the last
one that was done as there are between two checkpoints, and the run that goes on ends in the same bits as one that
nobody disturbed.

A run is named by its model, its kernels and how these work: with so many threads; or on a GPU with the step captured as
a CUDA graph, eager, or each in turn.
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
from functools import partial
from pathlib import Path
from typing import Any

import cuda_on_cpu
import pytest
from conftest import NEEDS_COMPILER, NEEDS_NUMBA, require_gpu
from faults import ROOT, Campaign, halves, started

from autoencoders.training import load_checkpoint

SERVER = Path(__file__).with_name("train_server.py")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
STEPS = 80
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # after which the programs tell what remains
CPU_RUNS = ("vae-numpy-1", "ae-plain-1", "vae-numba-2", "ae-numpy-2", "vae-plain-1", "ae-numba-1")
on_gpu = partial(pytest.param, marks=pytest.mark.gpu)


def on_cpu(usual: int, *more: object) -> list[object]:
    """Both models on every kernel set; all but so many of them only in the whole campaign."""
    return [
        pytest.param(
            run,
            *more,
            marks=[NEEDS_NUMBA] * ("numba" in run) + [pytest.mark.campaign] * (number >= usual),
        )
        for number, run in enumerate(CPU_RUNS)
    ]


def options_of(run: str, part: int = 0) -> dict[str, Any]:
    """What the server is told of a run, or of its part of this number."""
    kind, kernels, how = run.split("-")
    if kernels != "cuda":
        return {"kind": kind, "kernels": kernels, "threads": int(how)}
    require_gpu()
    return {"kind": kind, "kernels": kernels, "capture": {"captured": True, "eager": False}.get(how, part % 2 == 0)}


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
        """The next one that is not empty."""
        assert self.process.stdout
        while not (line := self.process.stdout.readline()).strip():
            assert line, self.process.stderr.read() if self.process.stderr else ""
        return line.strip()

    def finish(self, line: str | None = None) -> tuple[int, int, list[str]]:
        """(exit code, the last step that was done, what else was said), from this line on."""
        step, said = 0, []
        while True:
            word, _, rest = (line := line or self.line()).partition(" ")
            if word == "exit":
                return int(rest), step, said
            if word == "step":
                step = int(rest.split()[0])
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


@pytest.mark.parametrize(
    ("run", "part"),
    [
        *on_cpu(3, 1),
        # in two parts, for two workers of pytest-xdist
        *(on_gpu(run, part) for run in ("vae-cuda-captured", "vae-cuda-eager", "ae-cuda-captured") for part in (1, 2)),
    ],
)
def test_kill_9_while_saving(campaign: Campaign, server: Server, tmp_path: Path, run: str, part: int) -> None:
    options = {**options_of(run), "steps": STEPS}
    expected = undisturbed(server, tmp_path / "whole", **options)
    rng = campaign.rng(run, part)
    kills = lost = number = halves = 0
    wanted = campaign.count(15, 200, gpu=(2, 35))
    start = 1.5 if campaign.gpu else 0.2  # seconds that a training may take to begin
    while kills < wanted:
        folder = tmp_path / f"run{number}"
        number += 1
        options["save_every"] = every = int(rng.choice([1, 3]))
        code = 1
        while code:
            process = server.start(folder=str(folder), **options)
            first = None
            if kills < wanted:
                if late := rng.random() < 0.75:
                    first = server.line()  # of its first step; however long it takes to start, most kills come later
                time.sleep(rng.uniform(0, 0.2 if late else start))
                send(process, signal.SIGKILL)
            code, done, said = server.finish(first)
            assert code in (0, -signal.SIGKILL), said
            kills += code != 0
            halves += bool(leftovers(folder))
            step, skipped = newest(folder)
            lost += step < done - every or bool(skipped) or bool(said)
        lost += digest(folder) != expected
        assert not leftovers(folder)
    campaign.survived(f"kill -9 while saving after every or every third step ({run})", kills, lost)
    assert halves or not campaign.full  # some hit the middle of a save


@pytest.mark.parametrize("run", [*on_cpu(1), on_gpu("vae-cuda-captured")])
@pytest.mark.parametrize("which", ["SIGINT", "SIGTERM", "SIGINT twice"])
def test_signals(campaign: Campaign, server: Server, tmp_path: Path, which: str, run: str) -> None:
    twice = which.endswith("twice")
    options = {**options_of(run), "steps": STEPS, "save_every": 1 if twice else 7}
    expected = undisturbed(server, tmp_path / "whole", **options)
    number = getattr(signal, which.split()[0])
    rng = campaign.rng(which, run)
    sent = lost = runs = at_once = 0
    wanted = campaign.count(5, 60, gpu=(2, 20))
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
    campaign.survived(f"{which} at any moment ({run})", sent, lost)
    assert bool(at_once) == twice or not campaign.full


def listens(process: int) -> bool:
    """Whether a program has said what shall become of every signal that stops it. (SIGINT is always heard.)"""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    heard = int(status["SigCgt"], 16) | int(status["SigIgn"], 16)
    return all(heard >> number - 1 & 1 for number in STOPS)


def run_in(folder: Path, script: str, *words: str, stop: tuple[float, int] | None = None) -> tuple[int, bool, str]:
    """Run a program in a folder, and after so many seconds, if it still runs then, send it a signal; (exit code,
    whether it was sent, stderr)."""
    command = [sys.executable, str(ROOT / "scripts" / f"{script}.py"), *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
    output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with started(command, cwd=folder, env=environment, **output) as process:
        if stop:
            time.sleep(stop[0])
            while process.poll() is None and not listens(process.pid):
                time.sleep(0.001)
        alive = process.poll() is None
        if stop and alive:
            process.send_signal(stop[1])
        err = process.communicate()[1]
    return process.returncode, alive, err


def seconds_of(folder: Path, script: str, *words: str) -> float:
    """What an undisturbed program takes; not the first on a machine, which compiles, and says so."""
    err = "not yet"
    while err:
        start = time.perf_counter()
        code, _, err = run_in(folder, script, *words)
        assert code == 0, err
    return time.perf_counter() - start


TRAINING = ["--filters", "4", "8", "--kernels", "3", "3", "--strides", "2", "2", "--batch-size", "32", "--epochs", "2"]
TRAINING += ["--dataset", "fashion-mnist-sample", "--limit-train", "64", "--save-every", "1", "--backend", "numpy"]
TRAINING += ["--threads", "1", "--out", "run"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """(where the folder of a run lies that nobody has disturbed, what it has taken)."""
    place = tmp_path_factory.mktemp("finished")
    return place, seconds_of(place, "train_conv_autoencoder", *TRAINING)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
@pytest.mark.usefixtures("hangup")
@pytest.mark.parametrize(
    ("script", "few", "many"),
    [
        ("train_conv_autoencoder", 2, 24),
        ("generator", 1, 20),
        pytest.param("evaluate", 1, 6, marks=pytest.mark.campaign),
    ],
)
def test_programs_are_stopped_at_any_moment(
    campaign: Campaign, finished: tuple[Path, float], tmp_path: Path, script: str, few: int, many: int
) -> None:
    """From the first import to the end: one line, and what is written is whole, and the same when it is done again."""
    whole, seconds = finished
    before: dict[str, bytes] = {}
    words = TRAINING
    if script != "train_conv_autoencoder":
        before = contents(whole / "run")
        words = ["--model-dir", "run", "--seed", "1"]
        whole = tmp_path / "whole"
        shutil.copytree(finished[0], whole)
        seconds = seconds_of(whole, script, *words)
    after = contents(whole / "run")
    assert after != before
    rng = campaign.rng(script)
    sent = ended = lost = 0
    while sent < campaign.count(few, many):
        folder = tmp_path / f"{sent}"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(finished[0], folder) if before else folder.mkdir()
        number = STOPS[int(rng.integers(len(STOPS)))]
        code, alive, err = run_in(folder, script, *words, stop=(rng.uniform(0, seconds), number))
        sent, ended = sent + alive, ended + (code != 0)
        told = err.splitlines()
        wrong = [f"exit code {code} after {number}"] * (code not in (0, 128 + number) or (code != 0 and not alive))
        wrong += told[code != 0 and bool(told) and told[0].startswith("interrupted") :]
        wrong += halves(folder) + [str(path) for path in leftovers(folder)]
        found = contents(folder / "run")
        if before:
            wrong += [name for name in {*before, *found} if found.get(name) not in (before.get(name), after.get(name))]
        if code:
            resumed = any(name.startswith("checkpoints") for name in found) and not before
            again = run_in(folder, script, *(["--out", "run", "--resume"] if resumed else words))
            wrong += [f"the second time: {again}"] * (again != (0, again[1], ""))
        found = contents(folder / "run")
        wrong += sorted(set(found) ^ set(after)) + halves(folder)
        wrong += [name for name in after if (before or name == "model.safetensors") and found.get(name) != after[name]]
        if wrong:
            print(f"{sent}: {wrong}")
        lost += bool(wrong)
    campaign.survived(f"{script}.py is told to stop at any moment", sent, lost)
    assert ended >= sent / 2 or not campaign.full


@pytest.mark.parametrize("run", [*on_cpu(1), on_gpu("vae-cuda-captured"), on_gpu("vae-cuda-eager")])
def test_resume_from_every_step(campaign: Campaign, server: Server, tmp_path: Path, run: str) -> None:
    options = {**options_of(run), "steps": 60}
    expected = undisturbed(server, tmp_path / "whole", keep=60, **options)
    saved = sorted((tmp_path / "whole" / "checkpoints").iterdir())
    assert len(saved) == 60
    chosen = [saved[i] for i in campaign.rng(run).permutation(60)[: campaign.count(6, 60, gpu=(3, 30))]]
    lost = 0
    for path in chosen:
        again = tmp_path / path.stem
        (again / "checkpoints").mkdir(parents=True)
        shutil.copy(path, again / "checkpoints")
        lost += undisturbed(server, again, **options) != expected
    campaign.survived(f"resume from a checkpoint of any step ({run}), other bits at the end", len(chosen), lost)


@pytest.mark.parametrize("run", [*on_cpu(1), on_gpu("vae-cuda-alternating")])
def test_resume_many_times_in_one_run(campaign: Campaign, server: Server, tmp_path: Path, run: str) -> None:
    """Each part begins where Ctrl-C has ended the one before."""
    options = {**options_of(run), "steps": 60, "save_every": 0}
    expected = undisturbed(server, tmp_path / "whole", **options)
    stops = sorted(campaign.rng(run).permutation(59)[: campaign.count(4, 20, gpu=(3, 10))] + 1)
    for part, stop in enumerate(stops, 1):
        options |= options_of(run, part)
        server.start(folder=str(tmp_path / "parts"), stop_at=int(stop), **options)
        assert server.finish()[:2] == (130, stop)
        assert newest(tmp_path / "parts") == (stop, [])
    lost = undisturbed(server, tmp_path / "parts", **options) != expected
    campaign.survived(f"resumes in one run ({run}), other bits at the end", len(stops), lost)


@pytest.mark.parametrize("run", [*on_cpu(1), on_gpu("vae-cuda-alternating")])
def test_the_same_bits_in_fresh_processes(campaign: Campaign, tmp_path: Path, run: str) -> None:
    """100 steps, other hash seeds: nothing depends on the order of a set or on an address."""
    found = []
    count = campaign.count(2, 10)
    for number in range(count):
        folder = tmp_path / str(number)
        line = json.dumps({"folder": str(folder), **options_of(run, number), "steps": 100})
        environment = {**os.environ, "PYTHONHASHSEED": str(int(campaign.rng(number).integers(1, 2**32 - 1)))}
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        subprocess.run([sys.executable, str(SERVER)], input=f"{line}\n", env=environment, check=True, text=True)
        assert newest(folder) == (100, [])
        found.append(digest(folder))
    lost = sum(x != found[0] for x in found)
    campaign.survived(f"100 steps in fresh processes ({run}), other bits", count, lost)


@pytest.mark.parametrize("run", [*on_cpu(1)[:3], on_gpu("vae-cuda-captured")])
def test_a_soak_leaves_nothing_behind(campaign: Campaign, server: Server, tmp_path: Path, run: str) -> None:
    """Memory, open files, threads and temporary files of a training that saves after every step, or on a GPU after
    every tenth."""
    steps = campaign.count(300, 5000)
    options = {**options_of(run), "steps": steps, "save_every": 10 if campaign.gpu else 1}
    process = server.start(folder=str(tmp_path), **options)
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
        word, step, held = line.split()
        assert word == "step", line
        if step == "100":
            early = *usage(), int(held)
        elif int(step) % 50 == 0 and 100 < int(step) <= steps - 100:  # later it may be gone before it is looked at
            seen.append((*usage(), int(held)))
    assert line == "exit 0"
    memory, files, threads, _, held_most = (max(values) for values in zip(*seen, strict=True))
    lost = (memory - early[0] > 8 * 1024) + (files > early[1] + 2) + (threads > early[2]) + (held_most > early[4])
    assert len(os.listdir(tmp_path / "checkpoints")) == 3
    assert not leftovers(tmp_path)
    what = "memory + 8 MB, open files, threads, temporary files" + ", device memory" * campaign.gpu
    campaign.survived(f"steps of a soak ({run}): {what}", steps, lost)


@pytest.mark.parametrize("run", on_cpu(2))
def test_a_busy_machine_changes_no_bit(campaign: Campaign, server: Server, tmp_path: Path, run: str) -> None:
    options = {**options_of(run), "steps": 40}
    expected = undisturbed(server, tmp_path / "calm", **options)
    lost = 0
    count = campaign.count(1, 4)
    for others in range(4, 4 + count):
        with contextlib.ExitStack() as busy:
            for _ in range(others):
                busy.enter_context(started([sys.executable, "-c", "while True: pass"]))
            lost += undisturbed(server, tmp_path / f"busy{others}", **options) != expected
    campaign.survived(f"trainings beside programs that take all cores ({run}), other bits", count, lost)


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
    options = {"kind": "ae", "kernels": "plain", "steps": 10, "save_every": 0, "side": 96, "latent": 1}
    options["folder"] = str(tmp_path)
    server.start(**options, headroom=45 << 20)
    code, step, said = server.finish()
    assert (code, step) == (4, 0)
    assert re.match(r"error: a training step on 4 images needs about .* on cpu, .* fits is [1-3] \(--b", said[-1]), said
    assert not leftovers(tmp_path)
    server.start(**options)
    assert server.finish()[:2] == (0, 10)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and RLIMIT_AS")
@pytest.mark.parametrize("run", on_cpu(2))
def test_memory_limits_of_any_size(campaign: Campaign, server: Server, tmp_path: Path, run: str) -> None:
    """Where memory runs out, in the first step or a save, the run ends as it says it does, and can go on."""
    options = {**options_of(run), "steps": 10, "side": 32}
    expected = undisturbed(server, tmp_path / "whole", **options)
    rng = campaign.rng(run)
    count, lost, early = campaign.count(4, 30), 0, 0
    for number in range(count):
        folder = tmp_path / str(number)
        server.start(folder=str(folder), headroom=int(rng.integers(160 << 20)), **options)
        code, _, said = server.finish()
        told = [text for text in said if re.match("error: (a (model|checkpoint|training step)|out of memory)", text)]
        early += code == 4
        # Before its line tqdm may warn that its thread cannot be started. And OpenBLAS ends a process by itself: with
        # exit(1) in one thread, beside which another one may still compute in what is no more.
        by_blas = code in (1, -signal.SIGSEGV) and said[-1:] == [
            "OpenBLAS error: Memory allocation still failed after 10 retries, giving up."
        ]
        right = by_blas or (code in (0, 4) and told == (said[-1:] if code else []))
        if not right:
            print(f"{number}: exit code {code}: {said}")
        lost += not right
        lost += bool(leftovers(folder)) or undisturbed(server, folder, **options) != expected
        shutil.rmtree(folder)
    campaign.survived(f"memory limits of any size ({run})", count, lost)
    assert early


@NEEDS_COMPILER
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs LD_PRELOAD")
@pytest.mark.parametrize(
    ("what", "every"), [("save", 1), ("run", 23), ("replace", 29), ("evaluate", 13), ("generator", 5)]
)
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
    assert found["faults"] >= campaign.count(10, {"save": 20, "generator": 50, "evaluate": 120}.get(what, 200))
    assert found["ended"] >= found["faults"] / 3  # a short write ends nothing, and a folder that is there is enough
    names = {"save": "a save", "run": "a training", "replace": "a training that replaces another one"}
    names |= {"evaluate": "evaluate.py", "generator": "generator.py"}
    row = f"ENOSPC, EIO, short write, kill -9 at a call of {names[what]}"
    assert not found["lost"], "\n".join(found["lost"])
    campaign.survived(row, found["faults"])
