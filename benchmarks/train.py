"""How fast minigrad trains and uses the default VAE and autoencoder, beside other libraries in the same run.

Each program runs in a process of its own (workers/) with the same threads. First it has to compute the same losses and
reconstructions as minigrad's plain kernels in float64 from the same weights, images and noise. Then the programs
take turns, because a machine's speed drifts: in each round each of them does training steps in a row for `--seconds`,
at least `--steps` of them, and as many reconstructions of one batch. Medians and quartiles over the rounds are written
to benchmarks/results/train.json, and `python benchmarks/report.py` makes the tables and plots.

The C library (glibc) returns large freed blocks to the system, and the next step pays for fresh pages. Our programs
tell it to keep them (minigrad.backend.memory.keep_freed_memory). So minigrad and PyTorch are measured both ways, and a
row's `ratio` compares it with the fastest PyTorch row that has the same setting.

    python benchmarks/train.py [--models vae,ae] [--batches 32,128,256] [--rounds 7] [--threads N]
    python benchmarks/train.py --peers numpy,torch,jax --python jax=PATH
    python benchmarks/train.py --startup        from starting Python to the end of the first step (startup.json)
    python benchmarks/train.py --reconstruct    10,000 images through model.reconstruct (reconstruct.json)
    python benchmarks/train.py --coloured       a VAE of 64 x 64 coloured images with 5 x 5 filters (coloured.json)
    python benchmarks/train.py --memory         the memory before the first step, and what the steps add (memory.json)
    python benchmarks/train.py --all            the times in the README, in at most 20 minutes (train, reconstruct)
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from driver import (
    COLOURED_MODEL,
    DEFAULT_MODEL,
    RESULTS,
    BenchmarkError,
    Worker,
    forward_flops,
    list_of,
    model_of,
    parser_of,
    pause_of,
    positive,
    record_of,
    run_main,
    spread,
    write_problem,
    write_record,
)
from tqdm import tqdm

import minigrad

# How PyTorch's processes are told what keep_freed_memory tells ours, with the same numbers.
KEEP = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str((1 << 31) - 1)}
CHECK_STEPS = 3
# How far a program may be from the plain kernels in float64. The statistics of BatchNorm are sums of 100,352 numbers at
# batch 128: who adds them up in float32 is 1e-5 off. Adam makes whole steps of the rounding errors of tiny gradients,
# so the limits are wider after training.
LIMITS = {
    "first loss, relative": 5e-5,
    "last loss, relative": 1e-3,
    "reconstruction before training": 1e-5,
    "reconstruction after training": 1e-3,  # moving statistics that stand still make 3e-3
}
SGEMM_SIZE = 2048
STARTUP_BATCH = 32


@dataclass(frozen=True)
class Peer:
    """A program to measure. library: what `--python` is asked for; module: what has to be importable there; kept:
    whether the C library keeps freed memory."""

    label: str
    library: str
    module: str
    install: str
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    kept: bool = False

    @property
    def file(self) -> str:
        return f"{self.library}_worker.py"


def _minigrad(kernels: str, install: str = "-e .", *, kept: bool = True) -> Peer:
    label = f"minigrad {kernels}" + ("" if kept else ", memory returned")
    environment = {"MINIGRAD_KEEP_MEMORY": str(int(kept))}
    return Peer(label, "minigrad", "minigrad", install, {"kernels": kernels}, environment, kept)


LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {  # of PyTorch: name of the peer: label, options
    "torch": ("torch", {}),
    "torch-channels-last": ("torch channels_last", {"channels_last": True}),
    "torch-compiled": ("torch compiled", {"compile": True}),
    "torch-compiled-channels-last": ("torch compiled channels_last", {"compile": True, "channels_last": True}),
    "torch-fused": ("torch channels_last + fused Adam", {"channels_last": True, "fused": True}),
}


def _torch(label: str, options: dict[str, Any], *, kept: bool) -> Peer:
    label += ", memory kept" if kept else ""
    return Peer(label, "torch", "torch", "torch", options, KEEP if kept else {}, kept)


PEERS = {
    "plain": _minigrad("plain"),
    "numpy": _minigrad("numpy"),
    "numba": _minigrad("numba", "numba"),
    "numpy-returned": _minigrad("numpy", kept=False),
    "numba-returned": _minigrad("numba", "numba", kept=False),
    **{f"{name}-kept": _torch(*layout, kept=True) for name, layout in LAYOUTS.items()},
    **{name: _torch(*layout, kept=False) for name, layout in LAYOUTS.items()},
    "jax": Peer("jax", "jax", "jax", "jax"),
}
FEW = "numpy,numba,torch-channels-last-kept,torch-compiled-channels-last-kept"
ALL = (  # the options of `--all`, a measurement each
    ("--rounds", "3", "--seconds", "0.3", "--peers", ",".join(name for name in PEERS if name != "plain")),
    ("--reconstruct", "--rounds", "2", "--peers", FEW),
    ("--coloured", "--rounds", "3", "--seconds", "0.3", "--batches", "32,128", "--peers", f"{FEW},torch-fused-kept"),
)
SGEMM = {"minigrad": "numpy", "torch": "torch"}  # library whose interpreter runs it: who multiplies


# ---- who is there ----


def installed(names: Sequence[str], pythons: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """(the peers that can run, how to install each of the others)."""
    there: dict[tuple[str, str], bool] = {}
    found, missing = [], {}
    for name in names:
        peer = PEERS[name]
        key = python_of(peer, pythons), peer.module
        if key not in there:
            look = f"import sys, importlib.util as u; sys.exit(u.find_spec({peer.module!r}) is None)"
            there[key] = subprocess.run([key[0], "-c", look], check=False).returncode == 0
        kernels = peer.options.get("kernels")
        if there[key] and (kernels is None or kernels in minigrad.available()["cpu"]):
            found.append(name)
        else:
            missing[name] = f"not installed: pip install {peer.install}"
    return found, missing


def python_of(peer: Peer, pythons: dict[str, str]) -> str:
    return pythons.get(peer.library, sys.executable)


# ---- measuring ----


class Programs:
    """Workers on one problem, which take turns."""

    def __init__(self, args: argparse.Namespace, kind: str, batch: int) -> None:
        self.args, self.kind, self.batch = args, kind, batch
        self.spec = COLOURED_MODEL if kind == "coloured" else {**DEFAULT_MODEL, "kind": kind}
        self.model = model_of(self.spec)
        self.workers: dict[str, Worker] = {}
        self.about: dict[str, dict[str, Any]] = {}  # what each said when it was built
        self.errors: dict[str, dict[str, float]] = {}  # how far each is from the reference
        self.idle: dict[str, float] = {}  # the largest share of a core that each used while others were measured

    def __enter__(self) -> Programs:
        self.stack = ExitStack()
        self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-")))
        self.problem = self.folder / "problem.npz"
        write_problem(self.problem, self.model, self.batch)
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def worker(self, name: str, peer: Peer) -> Worker:
        """Start a worker; it ends with this context."""
        worker = Worker(
            name,
            peer.file,
            python=python_of(peer, self.args.python),
            threads=self.args.threads,
            environment=peer.environment,
        )
        self.stack.callback(worker.close)
        return worker

    def built(self, name: str, peer: Peer, **options: Any) -> tuple[Worker, dict[str, Any]]:
        """A worker that has built the model, and what it said."""
        worker = self.worker(name, peer)
        options = {**peer.options, "threads": self.args.threads, **options}
        return worker, worker.build(spec=self.spec, arrays=str(self.problem), options=options)

    def start(self, names: Sequence[str]) -> list[str]:
        """Start the peers and let each prove that it computes the same; what was wrong with those that do not."""
        reference, _ = self.built("reference", PEERS["plain"], dtype="float64")
        expected = self.checked(reference)
        reference.close()
        faults = []
        for name in names:
            try:
                worker, self.about[name] = self.built(name, PEERS[name])
                self.errors[name] = check(name, self.checked(worker), expected)
            except BenchmarkError as error:
                faults.append(f"{self.kind}, batch {self.batch}: {error}")
            else:
                self.workers[name] = worker
        return faults

    def start_sgemm(self) -> None:
        """Start those who measure what the cores do in a matrix product."""
        for library, who in SGEMM.items():
            peer = Peer(f"sgemm {who}", "sgemm", library, "")
            name = f"sgemm-{who}"
            if installed([next(n for n, p in PEERS.items() if p.library == library)], self.args.python)[0]:
                python = self.args.python.get(library, sys.executable)
                worker = Worker(name, peer.file, python=python, threads=self.args.threads)
                self.stack.callback(worker.close)
                self.about[name] = worker.build(
                    library=who, size=64 if self.args.quick else SGEMM_SIZE, threads=self.args.threads
                )
                self.workers[name] = worker

    def checked(self, worker: Worker) -> dict[str, Any]:
        """Losses and reconstructions of a worker's first steps."""
        out = self.folder / f"{worker.name}.npz"
        losses = worker.ask("check", steps=CHECK_STEPS, out=str(out))["losses"]
        with np.load(out) as file:
            return {"losses": losses, **{name: file[name] for name in file.files}}

    def measure(self, what: str, names: Sequence[str], round_: int, **request: Any) -> Iterator[tuple[str, float]]:
        """(peer, seconds) of each peer, in an order that changes from round to round."""
        order = list(names)
        random.Random(round_).shuffle(order)
        for name in order:
            time.sleep(pause_of(self.args))
            others = [n for n in self.workers if n != name]
            start, before = time.perf_counter(), {n: self.workers[n].cpu_seconds() for n in others}
            seconds = self.workers[name].ask(what, **request)["seconds"]
            elapsed = time.perf_counter() - start
            for n in others:
                share = (self.workers[n].cpu_seconds() - before[n]) / elapsed
                if elapsed > 0.1:  # processor time comes in hundredths of a second
                    self.idle[n] = max(self.idle.get(n, 0.0), share)
            yield name, seconds


def check(name: str, found: dict[str, Any], expected: dict[str, Any]) -> dict[str, float]:
    """How far a program is from what the plain kernels compute in float64.

    Raises:
        BenchmarkError: an error is above its limit in LIMITS.
    """
    first, last = (abs(found["losses"][i] / expected["losses"][i] - 1) for i in (0, -1))
    before, after = (np.abs(found[name] - expected[name]).max() for name in ("before", "after"))
    errors = dict(zip(LIMITS, map(float, (first, last, before, after)), strict=True))
    if wrong := [f"{what} {e:.2g} (limit {LIMITS[what]:g})" for what, e in errors.items() if not e <= LIMITS[what]]:
        raise BenchmarkError(f"{name} does not compute what minigrad's plain kernels do; errors: {', '.join(wrong)}")
    return errors


def measure_training(args: argparse.Namespace, kind: str, batch: int, bar: Any) -> tuple[list[dict], list[str], dict]:
    """(rows, faults, versions) of one model and batch size."""
    with Programs(args, kind, batch) as programs:
        faults = programs.start(args.peers)
        names = list(programs.workers)
        programs.start_sgemm()
        times: dict[tuple[str, str], list[float]] = {}
        for round_ in range(args.rounds):
            for what, who in (("step", list(programs.workers)), ("predict", names)):
                for name, seconds in programs.measure(what, who, round_, count=args.steps, seconds=args.seconds):
                    times.setdefault((name, what), []).append(seconds)
                    bar.update()
        products = [name for name in programs.workers if name not in names]
        size = programs.about[products[0]]["remarks"]["size"]
        roofline = 2 * size**3 / min(float(np.median(times[name, "step"])) for name in products)
        flops = forward_flops(programs.model)
        rows = []
        for (name, what), found in times.items():
            if name in products:
                continue
            flop_rate = flops * (3 if what == "step" else 1) * batch / float(np.median(found))
            rows.append(
                row_of(what, kind, batch, name)
                | {
                    "seconds": spread(found),
                    "images_per_second": spread([batch / seconds for seconds in found]),
                    "gflops": flop_rate / 1e9,
                    "roofline_gflops": roofline / 1e9,
                    "roofline_share": flop_rate / roofline,
                    "errors": programs.errors[name],
                    "idle_cpu": programs.idle.get(name, 0.0),
                    "rounds": found,
                }
            )
        versions = {name: about["versions"] | about["remarks"] for name, about in programs.about.items()}
    add_ratios(rows)
    return rows, faults, versions


def row_of(what: str, kind: str, batch: int, name: str) -> dict[str, Any]:
    """What each row of a result says of itself."""
    peer = PEERS[name]
    return {"what": what, "model": kind, "batch": batch, "peer": name, "label": peer.label, "kept": peer.kept}


def add_ratios(rows: list[dict[str, Any]]) -> None:
    """Give each row of a problem the ratio of its speed to that of the fastest PyTorch row of the same work with the
    same setting of the C library; None if there is none."""
    for row in rows:
        same = [other for other in rows if (other["what"], other["kept"]) == (row["what"], row["kept"])]
        torch = [other["seconds"]["median"] for other in same if other["peer"].startswith("torch")]
        row["ratio"] = min(torch) / row["seconds"]["median"] if torch else None


def measure_startup(args: argparse.Namespace, bar: Any) -> tuple[list[dict], list[str], dict]:
    """Seconds from starting Python to the end of the first training step, a new process each time."""
    times: dict[str, list[float]] = {name: [] for name in args.peers}
    versions = {}
    with Programs(args, "vae", 2 if args.quick else STARTUP_BATCH) as programs:
        for round_ in range(args.rounds + 1):  # the first one fills the caches of files and of compiled code
            order = list(args.peers)
            random.Random(round_).shuffle(order)
            for name in order:
                time.sleep(pause_of(args))
                start = time.perf_counter()
                worker, about = programs.built(name, PEERS[name])
                worker.ask("step", count=1, warm=0)
                if round_:
                    times[name].append(time.perf_counter() - start)
                versions[name] = about["versions"]
                worker.close()
                bar.update()
        batch = programs.batch
    rows = [
        row_of("startup", "vae", batch, name) | {"seconds": spread(seconds), "rounds": seconds}
        for name, seconds in times.items()
    ]
    add_ratios(rows)
    return rows, [], versions


def measure_reconstruct(args: argparse.Namespace, bar: Any) -> tuple[list[dict], list[str], dict]:
    """Images a second through a trained model's round trip, 256 at a time."""
    batch, images = (4, 8) if args.quick else (256, 10_000)
    rows: list[dict[str, Any]] = []
    faults: list[str] = []
    versions: dict[str, Any] = {}
    for kind in args.models:
        with Programs(args, kind, batch) as programs:
            faults += programs.start(args.peers)
            times: dict[str, list[float]] = {name: [] for name in programs.workers}
            for round_ in range(args.rounds):
                for name, seconds in programs.measure("reconstruct", list(times), round_, images=images):
                    times[name].append(seconds)
                    bar.update()
            versions |= {name: about["versions"] for name, about in programs.about.items()}
        of_kind = [
            row_of("reconstruct", kind, batch, name)
            | {"seconds": spread(seconds), "images_per_second": spread([images / s for s in seconds])}
            | {"images": images, "rounds": seconds}
            for name, seconds in times.items()
        ]
        add_ratios(of_kind)
        rows += of_kind
    return rows, faults, versions


def measure_memory(args: argparse.Namespace, kind: str, batch: int, bar: Any) -> tuple[list[dict], list[str], dict]:
    """What a new process holds before its first training step, with everything imported and the model made, and the
    most that it holds during the steps; medians of bytes."""
    held: dict[str, list[tuple[int, int]]] = {name: [] for name in args.peers}
    versions = {}
    with Programs(args, kind, batch) as programs:
        for round_ in range(args.rounds + 1):  # the first one fills the caches of compiled code
            for name in args.peers:
                worker, about = programs.built(name, PEERS[name])
                worker.ask("step", count=args.steps)
                if round_:
                    held[name].append((about["memory"], worker.ask("memory")["memory"]))
                versions[name] = about["versions"]
                worker.close()
                bar.update()
    rows = []
    for name, found in held.items():
        before, peak = np.median(found, axis=0).tolist()
        rows.append(row_of("memory", kind, batch, name) | {"memory_before": before, "memory_peak": peak})
    return rows, [], versions


# ---- the program ----


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = parser_of(__doc__ or "", rounds=7, out="train.json")
    parser.add_argument("--models", type=list_of(str), default=["vae", "ae"], help="vae, ae or both")
    parser.add_argument("--batches", type=list_of(positive), default=[32, 128, 256], help="(default: 32,128,256)")
    parser.add_argument("--peers", type=list_of(str), default=list(PEERS), help=f"of {','.join(PEERS)} (default: all)")
    parser.add_argument("--steps", metavar="N", type=positive, default=3, help="in a row (default: %(default)s)")
    parser.add_argument("--seconds", metavar="S", type=float, default=0.5, help="of steps (default: %(default)s)")
    parser.add_argument(
        "--python", metavar="LIBRARY=PATH", action="append", default=[], help="another interpreter for a library"
    )
    parser.add_argument("--startup", action="store_true", help="measure the start instead")
    parser.add_argument("--reconstruct", action="store_true", help="measure 10,000 reconstructions instead")
    parser.add_argument("--coloured", action="store_true", help="measure a VAE of coloured images, 5 x 5 filters")
    parser.add_argument("--memory", action="store_true", help="measure the memory of training steps instead")
    parser.add_argument("--all", action="store_true", help="measure all times in the README, in at most 20 minutes")
    args = parser.parse_args(argv)
    pairs = [text.partition("=") for text in args.python]
    args.python = {library: path for library, _, path in pairs}
    libraries = {peer.library for peer in PEERS.values()}
    for known, given, option in ((PEERS, args.peers, "--peers"), (("vae", "ae"), args.models, "--models")):
        if unknown := [name for name in given if name not in known]:
            parser.error(f"{option}: {', '.join(unknown)} is not known; there are {', '.join(known)}")
    if unknown := [library for library in args.python if library not in libraries or not args.python[library]]:
        names = ", ".join(sorted(libraries))
        parser.error(f"--python: {', '.join(unknown)} is none of LIBRARY=PATH; LIBRARY is {names}")
    if unknown := [path for path in args.python.values() if shutil.which(path) is None]:
        parser.error(f"--python: {', '.join(unknown)} is no program")
    if args.startup + args.reconstruct + args.coloured + args.memory + args.all > 1:
        parser.error("--startup, --reconstruct, --coloured, --memory and --all are different measurements; ask for one")
    if args.all:
        rest = [word for word in argv if word != "--all"]
        return max(main([*part, *rest]) for part in ALL)
    if args.coloured:
        args.models = ["coloured"]
    if args.quick:
        args.batches, args.rounds, args.steps, args.seconds = [min(args.batches)], 1, 1, 0.0
    return run_main(lambda: run(args, argv))


def run(args: argparse.Namespace, argv: Sequence[str]) -> int:
    args.peers, missing = installed(args.peers, args.python)
    for name, why in missing.items():
        print(f"{PEERS[name].label}: {why}")
    what = next((name for name in ("startup", "reconstruct", "coloured", "memory") if getattr(args, name)), "train")
    rows: list[dict[str, Any]] = []
    faults: list[str] = []
    versions: dict[str, Any] = {}
    with tqdm(desc=what, unit=" measurements", disable=None) as bar:
        if args.startup:
            parts = iter([measure_startup(args, bar)])
        elif args.reconstruct:
            parts = iter([measure_reconstruct(args, bar)])
        else:
            measure = measure_memory if args.memory else measure_training
            parts = (measure(args, kind, batch, bar) for kind in args.models for batch in args.batches)
        for found, wrong, theirs in parts:
            bar.clear()
            print_rows(found)
            rows, faults, versions = rows + found, faults + wrong, versions | theirs
    settings = {"threads": args.threads, "rounds": args.rounds, "steps": args.steps, "seconds": args.seconds}
    settings["pause"] = pause_of(args)
    record = record_of("train.py", argv, measures=what, settings=settings, versions=versions)
    record |= {"missing": missing, "faults": faults, "rows": rows}
    out = args.out or (None if args.quick else RESULTS / f"{what}.json")
    if out is not None:
        write_record(out, record)
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    return 1 if faults else 0


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        where = f"{row['model']:<4} {row['batch']:>4} {row['what']:<12}{row['label']:<46}"
        if row["what"] == "memory":
            held = [row[name] / 2**20 for name in ("memory_before", "memory_peak")]
            print(f"{where}{held[0]:>8.0f} MiB before, {held[1] - held[0]:>6.0f} added", flush=True)
            continue
        speed = f"{row['images_per_second']['median']:>10.0f} images/s" if "images_per_second" in row else ""
        ratio = "" if row["ratio"] is None else f"{row['ratio']:>8.2f} x"
        print(f"{where}{1e3 * row['seconds']['median']:>10.1f} ms{speed}{ratio}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
