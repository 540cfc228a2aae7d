"""How time and memory of the VAE's training step grow with batch, image side, channels and threads.

Each point is measured in fresh processes, one a round; rounds go through all points of an axis, so that a drift of the
machine's speed meets all of them. The growth is the slope of log(time) and of log(memory beyond what the process held
before its first step) over log(work), work being the floating-point operations of a step: 1 is linear, above 1.1 is
called worse than linear. The result is written to benchmarks/results/scaling.json, and `python benchmarks/report.py`
makes the table and plot.

    python benchmarks/scaling.py [--axes batch,side,channels,threads] [--kernels auto] [--rounds 3]
    python benchmarks/scaling.py --processes    1 and 2 processes of one thread beside one of two threads, ours and
                                                PyTorch's, all in turns (processes.json; extra mpi)
"""

from __future__ import annotations

import argparse
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from driver import (
    DEFAULT_MODEL,
    RESULTS,
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
    versions_of,
    write_problem,
    write_record,
)
from tqdm import tqdm

import minigrad
from minigrad.backend.cpu.threads import usable_cores

LINEAR = 1.1  # the largest slope that counts as linear
# axis: its values and the batch they are measured with, each given as (full run, --quick)
AXES: dict[str, tuple[tuple[Any, ...], tuple[Any, ...], int]] = {
    "batch": ((8, 16, 32, 64, 128, 256, 512, 1024), (1, 2), 0),
    "side": ((28, 56, 84, 112, 168, 256), (8, 12), 8),
    "channels": ((0.5, 1, 2, 4), (0.25, 0.5), 32),
    "threads": ((), (1,), 128),
}


def points(axis: str, quick: bool, threads: int) -> list[dict[str, Any]]:
    """What to measure on an axis: value, model, batch and threads."""
    full, tiny, batch = AXES[axis]
    values = tiny if quick else full or tuple(range(1, usable_cores() + 1))
    found = []
    for value in values:
        spec, size = dict(DEFAULT_MODEL), 2 if quick else batch
        if axis == "batch":
            size = value
        elif axis == "side":
            spec["input_shape"] = (value, value, 1)
        elif axis == "channels":
            spec["conv_filters"] = tuple(round(value * filters) for filters in DEFAULT_MODEL["conv_filters"])
        found.append({"value": value, "spec": spec, "batch": size, "threads": value if axis == "threads" else threads})
    return found


def measure(point: dict[str, Any], kernels: str, steps: int, pause: float) -> dict[str, Any]:
    """Seconds of a step, and bytes before the first and at most, in a fresh process."""
    spec, threads = point["spec"], point["threads"]
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        problem = Path(folder) / "problem.npz"
        write_problem(problem, model_of(spec), point["batch"])
        with Worker(str(point["value"]), "minigrad_worker.py", python=sys.executable, threads=threads) as worker:
            options = {"kernels": kernels, "threads": threads}
            before = worker.build(spec=spec, arrays=str(problem), options=options)["memory"]
            time.sleep(pause)
            seconds = worker.ask("step", count=steps)["seconds"]
            return {"seconds": seconds, "before": before, "peak": worker.ask("memory")["memory"]}


def slope(work: Sequence[float], amount: Sequence[float]) -> float:
    """d log(amount) / d log(work), by least squares."""
    return float(np.polyfit(np.log(work), np.log(amount), 1)[0])


def growth(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Slopes of time and memory over work, and whether each is linear."""
    work = [row["work"] for row in rows]
    found: dict[str, Any] = {}
    for name, amounts in (
        ("time", [row["seconds"]["median"] for row in rows]),
        ("memory", [max(row["memory_peak"] - row["memory_before"], 1) for row in rows]),
    ):
        value = slope(work, amounts)
        found[name] = {"slope": value, "linear": value <= LINEAR}
    return found


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = parser_of(__doc__ or "", rounds=3, out="scaling.json")
    parser.add_argument("--axes", type=list_of(str), default=list(AXES), help=f"of {','.join(AXES)} (default: all)")
    parser.add_argument("--processes", action="store_true", help="measure processes instead")
    parser.add_argument("--steps", metavar="N", type=positive, default=3, help="in a row (default: %(default)s)")
    parser.add_argument("--kernels", default="auto", help="auto, or one of minigrad.available() (default: %(default)s)")
    args = parser.parse_args(argv)
    if unknown := [axis for axis in args.axes if axis not in AXES]:
        parser.error(f"--axes: {', '.join(unknown)} is not known; there are {', '.join(AXES)}")
    if args.kernels not in ("auto", *minigrad.available()["cpu"]):
        parser.error(f"--kernels: {args.kernels} is not installed")
    if args.quick:
        args.rounds, args.steps = 1, 1
    return run_main(lambda: (run_processes if args.processes else run)(args, argv))


# ---- processes ----

PROCESSES = ((1, 1), (1, 2), (2, 1))  # processes, threads of each


def run_processes(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Steps of the default VAE on a batch of 128. All programs are started before the first is measured."""
    batch, sets = 128 if not args.quick else 16, [k for k in minigrad.available()["cpu"] if k != "plain"]
    peers = [(f"minigrad {kernels}", kernels) for kernels in sets] + [("torch", None)] * bool(find_spec("torch"))
    pause = pause_of(args)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder, ExitStack() as stack:
        problem = Path(folder) / "problem.npz"
        write_problem(problem, model_of(DEFAULT_MODEL), batch)
        workers: list[tuple[dict[str, Any], Worker]] = []
        for label, kernels in peers:
            for processes, threads in PROCESSES:
                file = "minigrad_worker.py" if kernels else "torch_worker.py" if processes == 1 else "ddp_worker.py"
                name = f"{label}, {processes} x {threads}"
                worker = stack.enter_context(
                    Worker(
                        name,
                        file,
                        python=sys.executable,
                        threads=threads,
                        processes=processes,
                        environment={"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())},
                    )
                )
                options = {"kernels": kernels, "threads": threads, "channels_last": True, "fused": True}
                worker.build(spec=DEFAULT_MODEL, arrays=str(problem), options=options)
                row = {"program": label, "processes": processes, "threads": threads, "rounds": [], "waits": []}
                workers.append((row, worker))
        for _ in range(args.rounds):
            for row, worker in workers:
                time.sleep(pause)
                worker.ask("step", count=1)  # all processes are awake then
                waited = worker.ask("waited")["seconds"] if "minigrad" in row["program"] else 0.0
                row["rounds"].append(worker.ask("step", count=args.steps)["seconds"])
                if "minigrad" in row["program"]:  # one step more warms up
                    row["waits"].append((worker.ask("waited")["seconds"] - waited) / (args.steps + 1))
    rows = [process_row(row, batch) for row, _ in workers]
    for row in rows:
        waits = "" if row["wait"] is None else f"  {1e3 * row['wait']:6.2f} ms of them waiting"
        print(
            f"{row['program']:16} {row['processes']} x {row['threads']} threads"
            f"{1e3 * row['seconds']['median']:8.1f} ms {row['images_per_second']:8.0f} images/s{waits}"
        )
    settings = {"batch": batch, "rounds": args.rounds, "steps": args.steps}
    record = record_of(
        "scaling.py", argv, measures="processes", settings=settings, versions=versions_of(sets), rows=rows
    )
    out = args.out or (None if args.quick else RESULTS / "processes.json")
    if out is not None:
        write_record(out, record)
    return 0


def process_row(row: dict[str, Any], batch: int) -> dict[str, Any]:
    """Medians; wait: seconds of a step in which the first process waited for the others."""
    waits, seconds = row.pop("waits"), spread(row["rounds"])
    wait = float(np.median(waits)) if waits and row["processes"] > 1 else None
    return {**row, "seconds": seconds, "images_per_second": batch / seconds["median"], "wait": wait}


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def run(args: argparse.Namespace, argv: Sequence[str]) -> int:
    kernels = minigrad.available()["cpu"][0] if args.kernels == "auto" else args.kernels
    pause = pause_of(args)
    axes: dict[str, Any] = {}
    for axis in args.axes:
        chosen = points(axis, args.quick, args.threads)
        measured: list[list[dict[str, Any]]] = [[] for _ in chosen]
        with tqdm(total=args.rounds * len(chosen), desc=axis, unit=" points", disable=None) as bar:
            for round_ in range(args.rounds):
                for i in range(len(chosen))[:: -1 if round_ % 2 else 1]:
                    measured[i].append(measure(chosen[i], kernels, args.steps, pause))
                    bar.update()
        rows = [row_of(point, results) for point, results in zip(chosen, measured, strict=True)]
        axes[axis] = {"rows": rows, **({} if axis == "threads" else {"growth": growth(rows)})}
        print_axis(axis, axes[axis])
    settings = {"kernels": kernels, "threads": args.threads, "rounds": args.rounds, "steps": args.steps}
    versions = versions_of([kernels])
    record = record_of("scaling.py", argv, measures="scaling", settings=settings, versions=versions, axes=axes)
    out = args.out or (None if args.quick else RESULTS / "scaling.json")
    if out is not None:
        write_record(out, record)
    return 0


def row_of(point: dict[str, Any], results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians of a point's rounds."""
    spec, seconds = point["spec"], [result["seconds"] for result in results]
    work = 3 * forward_flops(model_of(spec)) * point["batch"]
    return {
        "value": point["value"],
        "batch": point["batch"],
        "threads": point["threads"],
        "input_shape": spec["input_shape"],
        "conv_filters": spec["conv_filters"],
        "work": work,
        "seconds": spread(seconds),
        "images_per_second": point["batch"] / float(np.median(seconds)),
        "gflops": work / float(np.median(seconds)) / 1e9,
        "memory_before": float(np.median([result["before"] for result in results])),
        "memory_peak": float(np.median([result["peak"] for result in results])),
    }


def print_axis(axis: str, found: dict[str, Any]) -> None:
    for row in found["rows"]:
        print(
            f"{axis} {row['value']:<6} {1e3 * row['seconds']['median']:>10.1f} ms"
            f"{row['images_per_second']:>10.0f} images/s {row['gflops']:>7.0f} GFLOP/s"
            f"{row['memory_peak'] / 2**20:>8.0f} MiB"
        )
    for name, fit in found.get("growth", {}).items():
        verdict = "linear in the work" if fit["linear"] else "WORSE than linear in the work"
        print(f"{axis}: {name} grows with the power {fit['slope']:.2f} of the work: {verdict}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
