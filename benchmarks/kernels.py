#!/usr/bin/env python
"""How much faster the `numpy` kernels are than the plain ones, on the layers of the default VAE.

Both backends take turns within one run, because the machine's speed drifts; medians and their ratio are printed and
written to benchmarks/results/kernels.json.

    python benchmarks/kernels.py [--batch 128] [--rounds 7] [--threads N]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import minigrad
from minigrad.ops.conv import conv_geometry
from minigrad.random import generator
from minigrad.serialize import write_atomically

RESULT = Path(__file__).parent / "results" / "kernels.json"


def cases(batch: int) -> dict[str, Callable[[Any], Any]]:
    """Kernel calls on float32 arrays of the default VAE's sizes, by name."""
    rng = generator(0, "benchmark")

    def array(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    found: dict[str, Callable[[Any], Any]] = {}
    for H, C, F, stride in ((28, 1, 32, 1), (28, 32, 64, 2), (14, 64, 64, 2), (7, 64, 64, 1), (28, 64, 64, 2)):
        g = conv_geometry((H, H), (3, 3), stride, "same")
        x, weight, bias = array(batch, H, H, C), array(3, 3, C, F), array(F)
        gy = array(batch, *g.output_size, F)
        name = f"{H}x{H}x{C} -> {F}, stride {stride}"
        found[f"conv2d {name}"] = lambda k, a=(x, weight, bias, g): k.conv2d(*a)
        found[f"conv2d_grad_weight {name}"] = lambda k, a=(x, gy, g): k.conv2d_grad_weight(*a)
        found[f"conv2d_grad_input {name}"] = lambda k, a=(gy, weight, g): k.conv2d_grad_input(*a)
    x, ones = np.maximum(array(batch, 28, 28, 64), 0), np.ones(64, np.float32)
    gy, mean, variance = array(*x.shape), x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
    found["relu 28x28x64"] = lambda k: k.relu(gy)
    found["relu_grad 28x28x64"] = lambda k: k.relu_grad(gy, x)
    found["add_bias 28x28x64"] = lambda k: k.add_bias(x, ones)
    found["channel_sum 28x28x64"] = lambda k: k.channel_sum(x)
    found["batch_norm 28x28x64"] = lambda k: k.batch_norm(x, ones, ones, 1e-3)
    found["batch_norm_grad 28x28x64"] = lambda k: k.batch_norm_grad(gy, x, ones, mean, variance, 1e-3)
    small, weight, bias = array(batch, 14, 14, 64), array(3, 3, 64, 64), array(64)
    g = conv_geometry((28, 28), (3, 3), 2, "same")
    forward = (small, weight, bias, ones, bias, g, True, 1e-3)
    found["conv_block 14x14x64 -> 28x28x64"] = lambda k: k.conv_block(*forward)
    backward = (gy, small, weight, x, ones, mean, variance, g, True, 1e-3, True)
    found["conv_block_grad 14x14x64 -> 28x28x64"] = lambda k: k.conv_block_grad(*backward)
    features, head = array(batch, 3136), array(3136, 2)
    found["matmul (N, 3136) @ (3136, 2)"] = lambda k: k.matmul(features, head)
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args(argv)
    backends = {"plain": minigrad.use(kernels="plain"), "numpy": minigrad.use(kernels="numpy", threads=args.threads)}
    rows = []
    print(f"{'kernel':<52}{'plain ms':>10}{'numpy ms':>10}{'ratio':>8}")
    for name, call in cases(args.batch).items():
        times: dict[str, list[float]] = {kernels: [] for kernels in backends}
        for round_ in range(args.rounds + 1):  # the first one warms up
            for kernels, backend in backends.items():
                start = time.perf_counter()
                call(backend)
                if round_:
                    times[kernels].append(1e3 * (time.perf_counter() - start))
        plain, fast = (statistics.median(times[kernels]) for kernels in ("plain", "numpy"))
        rows.append({"kernel": name, "plain_ms": plain, "numpy_ms": fast, "ratio": plain / fast})
        print(f"{name:<52}{plain:>10.2f}{fast:>10.2f}{plain / fast:>8.2f}", flush=True)
    record = {
        "command": " ".join(["python benchmarks/kernels.py", *(sys.argv[1:] if argv is None else argv)]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.platform(),
        "processor": processor(),
        "threads": backends["numpy"].threads,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "batch": args.batch,
        "rows": rows,
    }
    write_atomically(args.out, (json.dumps(record, indent=1) + "\n").encode())
    return 0


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == "__main__":
    sys.exit(main())
