"""The fault campaign, part 1: trainings that are killed, interrupted and started again lose nothing.

What "nothing" means: after every fault the folder holds a valid checkpoint, at most as many steps older than the last
one that was done as there are between two checkpoints, and the run that goes on ends in the same bits as one that
nobody disturbed.

A run is named by its model, its kernels and how these work: with so many threads; or on a GPU with the step captured as
a CUDA graph, or eager.

What counts the losses of a training is a function, so that a test can plant a loss (train_server.py) and see it
counted.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cuda_on_cpu
import numpy as np
import pytest
from faults import ROOT, Campaign, halves, started
from kernel_sets import NEEDS_COMPILER, NEEDS_NUMBA, require_gpu

from autoencoders.training import load_checkpoint
from minigrad.serialize import DataError

SERVER = Path(__file__).with_name("train_server.py")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
STEPS = 80
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # after which the programs tell what remains
CPU_RUNS = ("vae-numpy-1", "ae-plain-1", "vae-numba-2", "ae-numpy-2", "vae-plain-1", "ae-numba-1")
on_gpu = partial(pytest.param, marks=pytest.mark.gpu)


def on_cpu(usual: int, *more: object) -> list[object]:
    """Both models on every kernel set; all but so many of them only in the whole campaign."""
    return [
        pytest.param(run, *more, marks=[NEEDS_NUMBA] * ("numba" in run) + [pytest.mark.campaign] * (number >= usual))
        for number, run in enumerate(CPU_RUNS)
    ]


def options_of(run: str) -> dict[str, Any]:
    """What the server is told of a run."""
    kind, kernels, how = run.split("-")
    if kernels != "cuda":
        return {"kind": kind, "kernels": kernels, "threads": int(how)}
    require_gpu()
    return {"kind": kind, "kernels": kernels, "capture": how == "captured"}


@dataclass
class Counts:
    """The counters of a row; see faults.COUNTERS."""

    runs: int = 0
    injected: int = 0
    effective: int | None = 0
    in_save: int | None = 0
    lost: int = 0


class Server:
    """A process whose children train. in_save: whether the last one's end, or a signal, came while it saved."""

    def __init__(self) -> None:
        self.in_save = False
        # BLAS without threads: a forked child has none of its parent's
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self.process = subprocess.Popen([sys.executable, str(SERVER)], **pipes, env=environment, text=True)

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
        saving = self.in_save = False
        while True:
            word, _, rest = (line := line or self.line()).partition(" ")
            if word == "exit":
                self.in_save |= saving
                return int(rest), step, said
            if word == "step":
                step = int(rest.split()[0])
            elif word == "save":
                self.in_save |= saving  # the one before has not ended
                saving = True
            elif word == "saved":
                saving = False
                self.in_save |= int(rest) > 0
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
    """The state at the end of a run; nothing if no checkpoint is valid."""
    try:
        return {name: x.tobytes() for name, x in load_checkpoint(folder)[0].items()}
    except DataError:
        return {}


def undisturbed(server: Server, folder: Path, **options: object) -> dict[str, bytes]:
    """The state at the end of a run that nobody disturbs."""
    server.start(folder=str(folder), **options)
    assert server.finish()[0] == 0
    found = digest(folder)
    assert found
    return found


def newest(folder: Path) -> tuple[int, list[str]]:
    """(step of the newest valid checkpoint, what was skipped)."""
    skipped: list[str] = []
    if not any(folder.glob("checkpoints/step-*")):
        return 0, skipped
    try:
        return load_checkpoint(folder, skipped.append)[1]["progress"]["step"], skipped
    except DataError as error:
        return 0, [*skipped, str(error)]


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
    wanted = campaign.count(15, 200, gpu=(2, 35))
    start = 1.5 if campaign.gpu else 0.2  # seconds that a training may take to begin
    counts = killed(server, tmp_path, campaign.rng(run, part), {**options_of(run), "steps": STEPS}, wanted, start)
    what = f"kill -9 at any moment of a training that saves after every or every third step ({run})"
    campaign.survived(what, **asdict(counts))


def killed(
    server: Server, place: Path, rng: np.random.Generator, options: dict[str, Any], wanted: int, start: float = 0.2
) -> Counts:
    """Trainings that so many kills meet. What is lost: steps that a checkpoint should hold, a run that cannot go on, or
    the bits at the end."""
    expected = undisturbed(server, place / "whole", **options)
    counts = Counts(runs=1)
    while counts.injected < wanted:
        folder = place / f"run{counts.runs}"
        options["save_every"] = every = int(rng.choice([1, 3]))
        code = 1
        while code:
            process = server.start(folder=str(folder), **options)
            first = None
            if counts.injected < wanted:
                if late := rng.random() < 0.75:
                    first = server.line()  # of its first step; however long it takes to start, most kills come later
                time.sleep(rng.uniform(0, 0.2 if late else start))
                send(process, signal.SIGKILL)
                counts.injected += 1
            code, done, said = server.finish(first)
            counts.runs += 1
            if code not in (0, -signal.SIGKILL):
                print(f"exit code {code}: {said}")
                counts.lost += 1
                break
            counts.effective += code != 0
            counts.in_save += server.in_save
            step, skipped = newest(folder)
            counts.lost += step < done - every or bool(skipped) or bool(said)
        counts.lost += digest(folder) != expected
        counts.lost += bool(leftovers(folder))
    return counts


@pytest.mark.parametrize("run", [*on_cpu(1), on_gpu("vae-cuda-captured")])
@pytest.mark.parametrize("which", ["SIGINT", "SIGTERM", "SIGINT twice"])
def test_signals(campaign: Campaign, server: Server, tmp_path: Path, which: str, run: str) -> None:
    wanted = campaign.count(5, 60, gpu=(2, 20))
    counts = signalled(server, tmp_path, campaign.rng(which, run), {**options_of(run), "steps": STEPS}, wanted, which)
    campaign.survived(f"{which} at any moment ({run})", **asdict(counts))


def signalled(
    server: Server, place: Path, rng: np.random.Generator, options: dict[str, Any], wanted: int, which: str
) -> Counts:
    """Trainings that so many signals meet. What is lost: the step in which one came, its exit code, or other bits."""
    twice = which.endswith("twice")
    options["save_every"] = 1 if twice else 7
    expected = undisturbed(server, place / "whole", **options)
    number = getattr(signal, which.split()[0])
    counts = Counts(runs=1)
    while counts.injected < wanted:
        folder = place / f"run{counts.runs}"
        code = 1
        while code:
            process = server.start(folder=str(folder), **options)
            before = newest(folder)[0]
            first = server.line()  # of its first step: its handlers are in place
            if counts.injected < wanted and first.startswith("step"):
                time.sleep(rng.uniform(0, 0.15))
                send(process, number)
                if twice:
                    time.sleep(rng.uniform(0, 0.003))
                    send(process, number)
                counts.injected += 1
            code, done, said = server.finish(first)
            counts.runs += 1
            counts.in_save += server.in_save
            if code == -number and done == STEPS:
                code = 0  # it came after the training, when nobody catches it any more
            step, skipped = newest(folder)
            if code:
                counts.effective += 1
                faults = [
                    code != 128 + number or bool(skipped),
                    # the step was finished and saved; a second signal stops at once, and what was saved before stays
                    step < max(before, done - twice),
                    any(not text.startswith("interrupted") for text in said),
                ]
                counts.lost += sum(faults)
                if any(faults):
                    print(f"{faults}: exit code {code}, step {step} of {done}, before {before}; {skipped}; {said}")
        counts.lost += digest(folder) != expected
    return counts


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


TRAINING = ["--filters", "4", "8", "--kernels", "3", "3", "--strides", "2", "2", "--batch-size", "32", "--smoke"]
TRAINING += ["--dataset", "fashion-mnist-sample", "--save-every", "1", "--backend", "numpy"]
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
    """From the first import to the end: the program prints one line, perhaps with a command; and what is written is
    whole, and the same when it is done again."""
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
    sent = ended = lost = runs = 0
    while sent < campaign.count(few, many):
        folder = tmp_path / f"{sent}"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(finished[0], folder) if before else folder.mkdir()
        number = STOPS[int(rng.integers(len(STOPS)))]
        code, alive, err = run_in(folder, script, *words, stop=(rng.uniform(0, seconds), number))
        sent, ended, runs = sent + alive, ended + (code != 0), runs + 1 + (code != 0)
        told = [line for line in err.splitlines() if not line.startswith("  ")]  # the command that goes on
        wrong = [f"exit code {code} after {number}"] * (code not in (0, 128 + number) or (code != 0 and not alive))
        wrong += told[code != 0 and bool(told) and told[0].startswith("interrupted") :]
        if code == -number or "KeyboardInterrupt" in err:  # while Python loaded the program, or ended: nothing is told
            wrong = []
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
    campaign.survived(f"{script}.py is told to stop at any moment", sent, lost, runs=runs, effective=ended)


@pytest.mark.parametrize("run", [*on_cpu(1), on_gpu("vae-cuda-captured"), on_gpu("vae-cuda-eager")])
def test_resume_from_every_step(campaign: Campaign, server: Server, tmp_path: Path, run: str) -> None:
    wanted = campaign.count(6, 60, gpu=(3, 30))
    counts = resumed(server, tmp_path, campaign.rng(run), options_of(run), wanted)
    campaign.survived(f"resume from a checkpoint of any step ({run}), other bits at the end", **asdict(counts))


def resumed(server: Server, place: Path, rng: np.random.Generator, options: dict[str, Any], wanted: int) -> Counts:
    """Trainings that go on from so many of the 60 checkpoints of one. What is lost: the bits at the end."""
    options = {**options, "steps": 60}
    expected = undisturbed(server, place / "whole", keep=60, **options)
    saved = sorted((place / "whole" / "checkpoints").iterdir())
    assert len(saved) == 60
    chosen = [saved[i] for i in rng.permutation(60)[:wanted]]
    counts = Counts(1 + len(chosen), len(chosen), None, None)
    for path in chosen:
        again = place / path.stem
        (again / "checkpoints").mkdir(parents=True)
        shutil.copy(path, again / "checkpoints")
        counts.lost += undisturbed(server, again, **options) != expected
    return counts


@pytest.mark.parametrize("run", [*on_cpu(1), on_gpu("vae-cuda-captured")])
def test_the_same_bits_in_fresh_processes(campaign: Campaign, tmp_path: Path, run: str) -> None:
    """100 steps, other hash seeds: nothing depends on the order of a set or on an address."""
    seeds = [int(campaign.rng(number).integers(1, 2**32 - 1)) for number in range(campaign.count(2, 10))]
    counts = fresh(tmp_path, options_of(run), seeds)
    campaign.survived(f"100 steps in fresh processes ({run}), other bits", **asdict(counts))


def fresh(place: Path, options: dict[str, Any], seeds: list[int]) -> Counts:
    """A training in a process of its own for each of these. What is lost: the bits of the first."""
    found = []
    for number, seed in enumerate(seeds):
        line = json.dumps({"folder": str(place / str(number)), **options, "steps": 100})
        environment = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, str(SERVER)], input=f"{line}\n", env=environment, check=True, text=True)
        assert newest(place / str(number)) == (100, [])
        found.append(digest(place / str(number)))
    return Counts(len(found), len(found), None, None, sum(x != found[0] for x in found))


@pytest.mark.parametrize("run", [*on_cpu(1)[:3], on_gpu("vae-cuda-captured")])
def test_a_soak_leaves_nothing_behind(campaign: Campaign, server: Server, tmp_path: Path, run: str) -> None:
    """Memory, open files, threads and temporary files of a training that saves after every step, or on a GPU after
    every tenth."""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    steps = campaign.count(300, 5000)
    counts = soaked(server, tmp_path, {**options_of(run), "save_every": 10 if campaign.gpu else 1}, steps)
    what = "8 MB more memory, more open files, threads, temporary files" + ", device memory" * campaign.gpu
    campaign.survived(f"steps of a training that saves all the time ({run}): {what}", **asdict(counts))


def soaked(server: Server, place: Path, options: dict[str, Any], steps: int) -> Counts:
    """One training. What is lost: each kind of thing that it has more of at the end than after 100 steps."""
    process = server.start(folder=str(place), **options, steps=steps)
    mine = Path(f"/proc/{process}")

    def usage() -> tuple[int, int, int, int]:
        status = dict(line.split(":", 1) for line in (mine / "status").read_text().splitlines())
        files = len(os.listdir(mine / "fd"))
        return int(status["VmRSS"].split()[0]), files, int(status["Threads"]), len(os.listdir(place / "checkpoints"))

    early: tuple[int, ...] = ()
    seen: list[tuple[int, ...]] = []
    while not (line := server.line()).startswith("exit"):
        word, step, *held = line.split() + [""]
        if word in ("save", "saved"):
            continue
        assert word == "step", line
        if step == "100":
            early = *usage(), int(held[0])
        elif int(step) % 50 == 0 and 100 < int(step) <= steps - 100:  # later it may be gone before it is looked at
            seen.append((*usage(), int(held[0])))
    assert line == "exit 0"
    memory, files, threads, _, held_most = (max(values) for values in zip(*seen, strict=True))
    more = memory - early[0] > 8 * 1024, files > early[1] + 2, threads > early[2], held_most > early[4]
    left = len(os.listdir(place / "checkpoints")) != 3, bool(leftovers(place))
    return Counts(1, steps, None, None, sum(more) + sum(left))


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
    campaign.survived(f"trainings beside programs that take all cores ({run}), other bits", count, lost, runs=count + 1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and RLIMIT_AS")
@pytest.mark.parametrize("run", on_cpu(2))
def test_memory_limits_of_any_size(campaign: Campaign, server: Server, tmp_path: Path, run: str) -> None:
    """Where memory runs out, in the first step or a save, the run ends as it says it does, and can go on."""
    options = {**options_of(run), "steps": 10, "side": 32}
    expected = undisturbed(server, tmp_path / "whole", **options)
    rng = campaign.rng(run)
    count, lost, early, in_save = campaign.count(4, 30), 0, 0, 0
    for number in range(count):
        folder = tmp_path / str(number)
        server.start(folder=str(folder), headroom=int(rng.integers(160 << 20)), **options)
        code, _, said = server.finish()
        told = [text for text in said if re.match("error: (a (model|checkpoint|training step)|out of memory)", text)]
        early += code != 0
        in_save += code != 0 and server.in_save
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
    counts = {"runs": 2 * count + 1, "effective": early, "in_save": in_save}
    campaign.survived(f"memory limits of up to 160 MiB more than at the start ({run})", count, lost, **counts)


CALLS = {  # the name in the table, every which call fails in the usual tests, how many faults there are at least in all
    "save": ("a save", 1, 20),
    "run": ("a training", 23, 200),
    "replace": ("a training that replaces another one", 29, 200),
    "evaluate": ("evaluate.py", 13, 120),
    "generator": ("generator.py", 5, 50),
}


@NEEDS_COMPILER
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs LD_PRELOAD")
@pytest.mark.parametrize("what", CALLS)
def test_every_call_of_the_system_fails_once(campaign: Campaign, tmp_path: Path, what: str) -> None:
    """ENOSPC, EIO, short writes and kill -9 in the making, writing, flushing, renaming and removing of files, by
    fault_layer.cpp."""
    name, every, least = CALLS[what]
    found = with_failing_calls(tmp_path, what, campaign.count(every, 1), campaign.seed)
    assert found["faults"] >= campaign.count(10, least)
    assert found["ended"] >= found["faults"] / 3  # a short write ends nothing, and a folder that is there is enough
    print("\n".join(found["lost"]))
    row = f"ENOSPC, EIO, short write, kill -9 at a call of {name}"
    campaign.survived(row, found["faults"], len(found["lost"]), effective=found["ended"])


def with_failing_calls(place: Path, what: str, every: int, seed: int, *plant: str) -> dict[str, Any]:
    """What fault_worker.py prints."""
    layer = place / "layer.so"
    source = Path(__file__).with_name("fault_layer.cpp")
    build = [str(cuda_on_cpu.compiler()), "-shared", "-fPIC", "-O1", "-o", str(layer), str(source), "-ldl"]
    subprocess.run(build, check=True)
    (place / "place").mkdir()
    worker = Path(__file__).with_name("fault_worker.py")
    command = [sys.executable, str(worker), what, str(every), str(seed), str(place / "place"), *plant]
    environment = {**os.environ, "LD_PRELOAD": str(layer), "PYTHONPATH": os.pathsep.join(sys.path)}
    environment["OPENBLAS_NUM_THREADS"] = "1"
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


# ---- a loss that is planted is counted ----


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
@pytest.mark.parametrize(
    ("plant", "count"),
    [
        ("atomic", lambda *a: killed(*a, {**options_of("ae-plain-1"), "plant": "atomic", "steps": 10}, 16)),
        ("signal", lambda *a: signalled(*a, {**options_of("ae-plain-1"), "plant": "signal", "steps": 80}, 6, "SIGINT")),
        ("bits", lambda *a: resumed(*a, {**options_of("ae-plain-1"), "plant": "bits"}, 1)),
        ("bits", lambda _, place, __: fresh(place, {**options_of("ae-plain-1"), "plant": "bits"}, [1, 2])),
        ("leak", lambda server, place, _: soaked(server, place, {**options_of("ae-plain-1"), "plant": "leak"}, 250)),
    ],
    ids=["a save that is not atomic", "no save after a signal", "resumes", "processes", "open files"],
)
def test_what_is_lost_is_counted(server: Server, tmp_path: Path, plant: str, count: Callable[..., Counts]) -> None:
    counts = count(server, tmp_path, np.random.default_rng(0))
    assert counts.lost > 0
    if plant == "atomic":
        assert 0 < counts.in_save <= counts.effective <= counts.injected < counts.runs


@NEEDS_COMPILER
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs LD_PRELOAD")
def test_what_failing_calls_lose_is_counted(tmp_path: Path) -> None:
    assert with_failing_calls(tmp_path, "save", 1, 0, "in place")["lost"]
