"""How fast each kernel is that a CPU backend overrides, on the layers of the default VAE and a few other shapes.

The kernel sets take turns in this process, and PyTorch, where it has the operation, in a process of its own, because
the machine's speed drifts. PyTorch's result is compared with ours first. Medians and quartiles over the rounds are
written to benchmarks/results/ops.json, and `python benchmarks/report.py` makes the table and plot.

    python benchmarks/ops.py [--batch 128] [--rounds 7] [--threads N] [--only conv2d,relu] [--no-torch]
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from driver import (
    RESULTS,
    BenchmarkError,
    Worker,
    list_of,
    parser_of,
    pause_of,
    positive,
    record_of,
    run_main,
    spread,
    start_again_without_settings,
    versions_of,
    write_record,
)
from tqdm import tqdm

import minigrad
from autoencoders.training.checkpoints import libraries
from minigrad.backend import Backend
from minigrad.backend.chain import ChainBackend, Layer, Norm, Source
from minigrad.backend.geometry import ConvGeometry, conv_geometry
from minigrad.backend.memory import keep_freed_memory
from minigrad.backend.reference import AdamOptions
from minigrad.random import generator

EPSILON = 1e-3
PAUSE = 0.05  # seconds before a measurement; BLAS threads wait spinning for half of it
SHORTEST = 0.1  # seconds of a measurement, in which the cores wake up; a kernel that is faster is called several times


@dataclass
class Case:
    """One call of a kernel.

    flops: 0 where only the bytes say something. torch: (operation of workers/torch_ops_worker.py, its arrays, its
    options); None: PyTorch has no such operation. Its first result must be the kernel's first (in place: its first
    argument).
    """

    kernel: str
    shape: str
    arguments: tuple[Any, ...]
    flops: float = 0
    torch: tuple[Any, ...] | None = None

    def first_result(self, k: Backend) -> tuple[np.ndarray, int]:
        """(the result that is compared, bytes that a call has to read and write at least); changes no argument."""
        arguments = [x.copy() if isinstance(x, np.ndarray) else x for x in self.arguments]
        result = getattr(k, self.kernel)(*arguments)
        pairs = [(x, y) for x, y in zip(arguments, self.arguments, strict=True) if isinstance(x, np.ndarray)]
        if result is None:
            results = [x for x, before in pairs if not np.array_equal(x, before)]
        else:
            results = [x for x in (result if isinstance(result, tuple) else (result,)) if x is not None]
        return results[0], sum(x.nbytes for x in results) + sum(x.nbytes for x, _ in pairs)


# ---- the cases ----

# image side, channels, filters, kernel, stride of the convolutions in the default VAE (the decoder's are those whose
# adjoint it takes), and of others
VAE_CONVS = (
    (28, 1, 32, 3, 1),
    (28, 32, 64, 3, 2),
    (14, 64, 64, 3, 2),
    (7, 64, 64, 3, 1),
    (28, 64, 64, 3, 2),
    (28, 1, 64, 3, 1),
)
OTHER_CONVS = ((28, 16, 32, 7, 1), (28, 3, 64, 7, 2), (28, 64, 128, 1, 1))
# the same without the kernel, and whether the block is transposed
VAE_BLOCKS = (
    (28, 1, 32, 1, False),
    (28, 32, 64, 2, False),
    (14, 64, 64, 2, False),
    (7, 64, 64, 1, False),
    (7, 64, 64, 1, True),
    (14, 64, 64, 2, True),
    (28, 64, 64, 2, True),
)


def cases(batch: int) -> Iterator[Case]:
    """All cases, on float32 arrays."""
    rng = generator(0, "benchmark")

    def array(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    for conv in VAE_CONVS + OTHER_CONVS:
        yield from conv_cases(batch, *conv, array)
    for side, C, F, stride, transposed in VAE_BLOCKS:
        yield from block_cases(batch, side, C, F, stride, transposed, array)

    images, logits, features = array(batch, 28, 28, 64), 3 * array(batch, 28, 28, 1), array(batch, 3136)
    active, ones, shift, shape = np.maximum(images, 0), np.ones(64, np.float32), array(64), "28x28x64"
    mean, variance = Backend(np).moments(active)  # in float64: NumPy's var of float32 is wrong in the fourth digit
    targets = rng.random(logits.shape, dtype=np.float32)
    head, back, few, square = array(3136, 2), array(2, 3136), array(batch, 2), array(1024, 1024)
    for text, a, b in (
        ("(N, 3136) @ (3136, 2)", features, head),
        ("(N, 2) @ (2, 3136)", few, back),
        ("(1024, 1024) @ (1024, 1024)", square, square),
    ):
        yield Case("matmul", text, (a, b), 2 * a.size * b.shape[1], ("matmul", {"a": a, "b": b}, {}))
    pair = {"a": features.T, "b": few}
    yield Case("dense_grad_weight", "(N, 3136), (N, 2)", (features, few), 4 * features.size, ("matmul", pair, {}))
    eps, grad_x = {"epsilon": EPSILON}, {"needs": ["x"]}
    yield Case("relu", shape, (images,), torch=("relu", {"x": images}, {}))
    yield Case("relu_grad", shape, (images, active), torch=("relu", {"x": active, "gradient": images}, grad_x))
    yield Case("sigmoid", "28x28x1", (logits,), torch=("sigmoid", {"x": logits}, {}))
    yield Case("softplus", "28x28x1", (logits,), torch=("softplus", {"x": logits}, {}))
    arrays = {"logits": logits, "targets": targets}
    yield Case("bernoulli_nll", "28x28x1", (logits, targets), torch=("bernoulli_nll", arrays, {}))
    yield Case("add_bias", shape, (images, shift), torch=("add_bias", {"x": images, "bias": shift}, {}))
    yield Case("sum", shape, (images,), torch=("sum", {"x": images}, {}))
    yield Case("channel_sum", shape, (images,), torch=("channel_sum", {"x": images}, {}))
    arrays = {"x": active, "gamma": ones, "beta": shift}
    yield Case("batch_norm", shape, (active, ones, shift, EPSILON), torch=("batch_norm", arrays, eps))
    norm = np.stack([mean, ones, shift])
    yield Case("normalise", shape, (active, norm))
    yield Case("moments", shape, (active,))
    yield Case("batch_norm_sums", shape, (images, active, mean))
    yield Case("norm_gradient", shape, (images, active, np.stack([mean, ones, shift, shift])))
    grad = {"needs": ["x", "gamma", "beta"], **eps}
    arguments: tuple[Any, ...] = images, active, ones, mean, variance, EPSILON
    yield Case("batch_norm_grad", shape, arguments, torch=("batch_norm", {**arrays, "gradient": images}, grad))
    arrays = {**arrays, "mean": mean, "variance": variance}
    arguments = active, ones, shift, mean, variance, EPSILON
    yield Case("batch_norm_apply", shape, arguments, torch=("batch_norm_inference", arrays, eps))
    yield Case("norm_rows", "64", (ones, shift, mean, variance, EPSILON))
    yield Case("norm_grad_rows", "64", (np.stack([shift, ones]), ones, mean, variance, EPSILON, 1 << 20))
    yield Case("batch_norm_update_", "64", (shift.copy(), ones.copy(), mean, variance, 0.99))
    D = 250_000  # about as many parameters as the default VAE has
    weights, gradients, zeros = array(D), array(D), np.zeros(D, np.float32)
    first_step = np.array([1e-3, 1 / (1 - 0.9), 1 / (1 - 0.999)], np.float32)
    arguments = weights, zeros, zeros.copy(), gradients, first_step, AdamOptions(0.9, 0.999, 1e-8, 0.0)
    arrays = {"parameters": weights, "gradients": gradients}
    yield Case("adam_step_", "250,000 parameters", arguments, torch=("adam", arrays, {}))
    arguments = weights.copy(), zeros.copy(), gradients, first_step[:1], 0.9, False
    yield Case("sgd_step_", "250,000 parameters", arguments)


def conv_cases(
    N: int, side: int, C: int, F: int, kernel: int, stride: int, array: Callable[..., np.ndarray]
) -> Iterator[Case]:
    """The three kernels of a convolution."""
    g = conv_geometry((side, side), (kernel, kernel), stride, "same")
    shape = f"{side}x{side}x{C} -> {F}, {kernel}x{kernel}, stride {stride}"
    x, weight, bias, gy = array(N, side, side, C), array(kernel, kernel, C, F), array(F), array(N, *g.output_size, F)
    flops, options = 2 * N * math.prod(g.output_size) * weight.size, mirrored_options(g)
    forward = "conv2d", {"x": x, "weight": weight, "bias": bias}, options
    yield Case("conv2d", shape, (x, weight, bias, g), flops, forward)
    grad_input = "conv2d_transpose", {"x": gy, "weight": weight}, options
    yield Case("conv2d_grad_input", shape, (gy, weight, g), flops, grad_input)
    grad_weight = "conv2d", {"x": x, "weight": weight, "gradient": gy}, {**options, "needs": ["weight"]}
    yield Case("conv2d_grad_weight", shape, (x, gy, g), flops, grad_weight)


def block_cases(
    N: int, side: int, C: int, F: int, stride: int, transposed: bool, array: Callable[..., np.ndarray]
) -> Iterator[Case]:
    """A fused block and its gradient; a transposed one maps F to C channels, back to the given side."""
    g = conv_geometry((side, side), (3, 3), stride, "same")
    large, small = (N, side, side, C), (N, *g.output_size, F)
    x_shape, y_shape = (small, large) if transposed else (large, small)
    text = " -> ".join("x".join(map(str, s[1:])) for s in (x_shape, y_shape))
    shape = f"{text}, {'transposed, ' if transposed else ''}stride {stride}"
    x, weight, gy = array(*x_shape), array(3, 3, C, F), array(*y_shape)
    gamma, bias, beta = np.ones(y_shape[3], np.float32), array(y_shape[3]), array(y_shape[3])
    flops = 2 * N * math.prod(g.output_size) * weight.size
    options = {**mirrored_options(g), "transposed": transposed, "epsilon": EPSILON}
    arrays = {"x": x, "weight": weight, "bias": bias, "gamma": gamma, "beta": beta}
    forth = Source(x), Layer(weight, bias, g, transposed), Norm(gamma, beta, EPSILON)
    yield Case("conv_layer", shape, forth, flops, ("conv_layer", arrays, options))
    y, mean, variance, norm = ChainBackend(np).conv_layer(*forth)
    inference = "conv_block_inference", {**arrays, "mean": mean, "variance": variance}, options
    arguments: tuple[Any, ...] = x, [forth[1]], [norm]
    yield Case("conv_chain_inference", shape, arguments, flops, inference)
    needs_gx = C > 1  # nobody needs the gradient of the images
    grad_rows = np.stack([mean, norm[1], beta / 1000, beta / 1000])
    arguments = gy, grad_rows, y, *forth[:2], needs_gx
    yield Case("conv_layer_grad", shape, arguments, flops * (1 + needs_gx))


def mirrored_options(g: ConvGeometry) -> dict[str, int]:
    """PyTorch's options for the mirrored problem, which pads the top and left by what "same" pads at the other side."""
    (_, bottom), _ = g.pads
    made = (g.output_size[0] - 1) * g.stride[0] - 2 * bottom + g.kernel_size[0]
    return {"stride": g.stride[0], "padding": bottom, "output_padding": g.input_size[0] - made}


# ---- measuring ----


class TorchOperations:
    """The worker that runs PyTorch's operations."""

    def __init__(self, threads: int) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="benchmark-")
        self.worker = Worker("torch", "torch_ops_worker.py", python=sys.executable, threads=threads)
        self.versions = self.worker.build(threads=threads)["versions"]

    def prepare(self, case: Case, expected: np.ndarray) -> None:
        """Load a case, and raise BenchmarkError unless PyTorch's result is ours."""
        assert case.torch is not None
        name, arrays, options = case.torch
        problem, out = (Path(self.folder.name) / file for file in ("arrays.npz", "result.npy"))
        np.savez(problem, **arrays)
        self.worker.ask("prepare", arrays=str(problem), name=name, options=options, out=str(out))
        found, scale = np.load(out), np.abs(expected).max()
        error = np.abs(found.reshape(expected.shape) - expected).max() / scale
        if not error <= 1e-3:
            raise BenchmarkError(f"{case.kernel} {case.shape}: PyTorch's result differs by {error:.2g}")

    def close(self) -> None:
        self.worker.close()
        self.folder.cleanup()


def seconds_of(k: Backend, case: Case, count: int) -> float:
    """Seconds of one of `count` calls, after one that is not measured."""
    call = getattr(k, case.kernel)
    call(*case.arguments)
    start = time.perf_counter()
    for _ in range(count):
        call(*case.arguments)
    return (time.perf_counter() - start) / count


def measure(
    case: Case, backends: dict[str, Backend], torch: TorchOperations | None, rounds: int, pause: float
) -> dict[str, Any]:
    """The row of a case: times of each kernel set and of PyTorch, which take turns."""
    expected, traffic = case.first_result(ChainBackend(np))
    times: dict[str, list[float]] = {name: [] for name in backends}
    if torch is not None and case.torch is not None:
        torch.prepare(case, expected)
        times["torch"] = []
    counts: dict[str, int] = {}
    for round_ in range(rounds + 1):  # the first one warms up, and tells how often to call
        for name in times:
            count = counts.get(name, 1)
            time.sleep(pause)
            if name == "torch":
                seconds = torch.worker.ask("step", count=count)["seconds"]  # type: ignore[union-attr]
            else:
                seconds = seconds_of(backends[name], case, count)
            if round_:
                times[name].append(seconds)
            elif rounds > 1:
                counts[name] = max(1, min(100, int(SHORTEST / max(seconds, 1e-6))))
    row: dict[str, Any] = {"kernel": case.kernel, "shape": case.shape, "flops": case.flops, "bytes": traffic}
    plain = float(np.median(times["plain"]))
    for name, seconds in times.items():
        median = float(np.median(seconds))
        rates = {"gflops": case.flops / median / 1e9 if case.flops else None, "gigabytes": traffic / median / 1e9}
        row[name] = {"seconds": spread(seconds), **rates, "ratio": plain / median}
    return row


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = parser_of(__doc__ or "", rounds=7, out="ops.json")
    parser.add_argument("--batch", metavar="N", type=positive, default=128, help="images (default: %(default)s)")
    parser.add_argument("--only", metavar="KERNEL,...", type=list_of(str), help="only these kernels")
    parser.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    args = parser.parse_args(argv)
    known = {case.kernel: None for case in cases(1)} if args.only else {}
    if unknown := [name for name in args.only or [] if name not in known]:
        parser.error(f"--only: {', '.join(unknown)} is not known; there are {', '.join(known)}")
    if args.quick:
        args.batch, args.rounds = min(args.batch, 2), 1
    return run_main(lambda: run(args, argv))


def run(args: argparse.Namespace, argv: Sequence[str]) -> int:
    keep_freed_memory()  # as scripts/ do
    backends = {
        name: minigrad.use(kernels=name, threads=args.threads) for name in reversed(minigrad.available()["cpu"])
    }
    torch = None if args.no_torch or find_spec("torch") is None else TorchOperations(args.threads)
    rows = []
    names = [*backends, *(["torch"] if torch else [])]
    print(f"{'kernel':<72}" + "".join(f"{name + ' ms':>12}" for name in names))
    try:
        chosen = [case for case in cases(args.batch) if not args.only or case.kernel in args.only]
        for case in tqdm(chosen, unit=" kernels", disable=None):
            row = measure(case, backends, torch, args.rounds, pause_of(args, PAUSE))
            rows.append(row)
            shown = (f"{1e3 * row[name]['seconds']['median']:>12.3f}" if name in row else " " * 12 for name in names)
            tqdm.write(f"{case.kernel + ' ' + case.shape:<72}" + "".join(shown))
    finally:
        if torch:
            torch.close()
    blas = (libraries(backends["numpy"]) or ["unknown"])[0]
    versions = versions_of(backends) | {"BLAS": blas} | (torch.versions if torch else {})
    settings = {"threads": args.threads, "rounds": args.rounds, "batch": args.batch}
    record = record_of("ops.py", argv, measures="ops", settings=settings, versions=versions, programs=names, rows=rows)
    out = args.out or (None if args.quick else RESULTS / "ops.json")
    if out is not None:
        write_record(out, record)
    return 0


if __name__ == "__main__":
    start_again_without_settings()
    sys.exit(main())
