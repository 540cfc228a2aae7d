"""Everything that there is to measure on a CUDA GPU, in at most 8 minutes: `python benchmarks/gpu.py`.

First the tests that need a GPU. Then the training step of the default VAE for each batch in each precision: minigrad
with and without a CUDA graph, and with NCCL in the graph where it is installed; and PyTorch as it comes, with
channels_last and fused Adam, compiled, and as one CUDA graph, in bf16 with its autocast. All in one process, taking
turns, from the same weights on fresh images and noise, after all were seen to compute the same first losses. Then each
kernel beside the speed of a copy and of a large matrix product on the same device, and the batch from which on the GPU
is faster than the CPU. Medians and quartiles go to benchmarks/results/gpu.json, and `python benchmarks/report.py` makes
the tables.

    python benchmarks/gpu.py [--batches 32,128,1024] [--rounds 5] [--no-tests] [--quick] [--out FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import driver
import numpy as np

import minigrad
from autoencoders import TrainingOptions
from autoencoders.training import Trainer
from minigrad import DeviceError
from minigrad.backend import PRECISIONS
from minigrad.backend.chain import Layer, Norm, Source, Statistics
from minigrad.backend.cuda.driver import release
from minigrad.backend.cuda.nccl import Nccl, library
from minigrad.backend.geometry import conv_geometry, transposed_geometry
from minigrad.backend.sharing import strictly
from minigrad.distributed import ALONE, Group

# Of the first three losses, relative to the plain kernels in float64. TF32 rounds both factors of a product by up to
# 2^-11, 1e-3 together; Adam, whose first steps follow the signs of gradients, carries that on to the second and third.
# bf16 rounds both by up to 2^-8, 8e-3 together; on a CPU 4e-4 were found, of ours and of PyTorch's.
LOSS_TOLERANCE = {"fp32": 1e-4, "tf32": 3e-3, "tf32x3": 1e-4, "bf16": 8e-3}
INPUTS = 8  # batches of images and noise that a program goes through
CALLS = 20  # of a kernel in one graph
WARM_UP, STEPS = 50, 40
CPU_BATCHES = (1, 8, 32, 128, 512)
TEST_SECONDS, SECONDS = 240, 450  # for the tests; and after which nothing more is begun
WITH_NCCL = "minigrad + NCCL of one GPU"
QUICK = {"warm": 1, "count": 1, "rounds": 1}
LAYERS = [  # of the default VAE: name, geometry, C, F, transposed
    ("conv 28 1-32", conv_geometry((28, 28), (3, 3), 1, "same"), 1, 32, False),
    ("conv 28-14 32-64", conv_geometry((28, 28), (3, 3), 2, "same"), 32, 64, False),
    ("conv 14-7 64-64", conv_geometry((14, 14), (3, 3), 2, "same"), 64, 64, False),
    ("conv 7 64-64", conv_geometry((7, 7), (3, 3), 1, "same"), 64, 64, False),
    ("transposed 7 64-64", transposed_geometry((7, 7), (3, 3), 1, "same", None), 64, 64, True),
    ("transposed 7-14 64-64", transposed_geometry((7, 7), (3, 3), 2, "same", None), 64, 64, True),
    ("transposed 14-28 64-64", transposed_geometry((14, 14), (3, 3), 2, "same", None), 64, 64, True),
    ("transposed 28 64-1", transposed_geometry((28, 28), (3, 3), 1, "same", None), 1, 64, True),
]

Step = Callable[[int], Any]  # trains on input number i and returns the losses, or their sum, on the device


# ---- what is measured with ----


class Clock:
    """Seconds between two moments of the device, by its own events on the default stream."""

    def __init__(self, cupy: Any) -> None:
        self.cupy = cupy

    def of(self, call: Callable[[int], Any], count: int) -> float:
        """Seconds of one of count calls in a row."""
        start, end = self.cupy.cuda.Event(), self.cupy.cuda.Event()
        start.record()
        for i in range(count):
            call(i)
        end.record()
        end.synchronize()
        return self.cupy.cuda.get_elapsed_time(start, end) / 1000 / count

    def median(self, call: Callable[[int], Any], *, warm: int = 5, count: int = 10, rounds: int = 5) -> float:
        """The median over rounds."""
        self.of(call, warm)
        return float(np.median([self.of(call, count) for _ in range(rounds)]))


# ---- the programs ----


def batches_of(images: np.ndarray, batch: int, Z: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """INPUTS batches of images and noise."""
    rng = minigrad.random.generator(0, "benchmark", "gpu")
    return [
        (images[rng.integers(0, len(images), batch)], rng.standard_normal((batch, Z), dtype=np.float32))
        for _ in range(INPUTS)
    ]


class WithItself(Group):
    """One process whose steps exchange through NCCL whatever those of several would."""

    def __init__(self, cupy: Any) -> None:
        self.nccl = Nccl(cupy, 0, 1, self.first)

    @contextlib.contextmanager
    def sharing(self, k: Any, images: int) -> Iterator[slice]:
        with strictly(self):
            yield slice(0, images)

    def gather(self, x: Any) -> Any:
        return self.nccl.gather(x)

    def mean(self, x: Any) -> Any:
        return self.gather(x)[0]

    def mean_(self, x: Any) -> None:
        x[...] = self.mean(x)


def minigrad_step(k: Any, weights: dict[str, np.ndarray], batches: Any, capture: bool, group: Group = ALONE) -> Step:
    """minigrad's own trainer on the backend k."""
    spec = driver.DEFAULT_MODEL
    model = driver.model_of(spec)
    model.network.load_state_dict(weights)
    model.compile(spec["learning_rate"])
    options = TrainingOptions(batch_size=len(batches[0][0]))
    trainer = Trainer(model, batches[0][0], options, progress=False, group=group)
    model.network.train()
    take_step = k.capture(trainer.step) if capture else trainer.step
    images = k.from_host(np.concatenate([images for images, _ in batches]))
    order = k.from_host(np.arange(len(images)).reshape(INPUTS, -1))
    noise = [k.from_host(noise) for _, noise in batches]
    rows = [[1.0, *trainer.optimizer.scalars(step + 1)] for step in range(2000)]
    scalars = k.from_host(np.array(rows, np.float32))
    steps = iter(range(10**9))

    def step(i: int) -> Any:
        batch = k.unit_range(images, trainer.feed.dtype, order[i % INPUTS])
        return take_step(batch, noise[i % INPUTS], scalars[next(steps) % 2000])

    return step


def torch_steps(
    weights: dict[str, np.ndarray], batches: Any, precision: str
) -> Iterator[tuple[str, Callable[[], Step]]]:
    """(name, what makes the step) of PyTorch's programs. By itself it takes TF32 for convolutions and not for products;
    here for both or none, until this is called again. In bf16 it computes what its autocast chooses, with weights in
    float32."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.compiler.reset()  # or it would compile for batches of any size when it meets the second
    sys.path.insert(0, str(driver.FOLDER / "workers"))
    from mirrored import mirrored_images, mirrored_weights
    from torch_worker import Model, load

    spec = driver.DEFAULT_MODEL

    def make(channels_last: bool = False, fused: bool = False, compiled: bool = False, graph: bool = False) -> Step:
        model = Model(spec, channels_last)
        load(model, mirrored_weights(weights, spec, channels_last))
        model.cuda()
        layout = torch.channels_last if channels_last else torch.contiguous_format
        model.to(memory_format=layout)
        inputs = [
            (torch.from_numpy(mirrored_images(x / np.float32(255))).cuda().contiguous(memory_format=layout), n)
            for x, n in ((images, torch.from_numpy(noise).cuda()) for images, noise in batches)
        ]
        optimizer = torch.optim.Adam(model.parameters(), spec["learning_rate"], fused=fused, capturable=graph)
        tuned = channels_last  # all but the program as it comes let cuDNN try its algorithms
        loss_of = torch.compile(model, mode="reduce-overhead") if compiled else model

        def step(x: Any, noise: Any) -> Any:
            torch.backends.cudnn.benchmark = tuned
            optimizer.zero_grad(set_to_none=not graph)
            # A cache of rounded weights would not survive a graph, and each is used once.
            with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
                loss = loss_of(x, noise)
            loss.backward()
            optimizer.step()
            return loss.detach()

        if not graph:
            return lambda i: step(*inputs[i % INPUTS])
        static = [part.clone() for part in inputs[0]]
        taken: list[Any] = []
        recorded = torch.cuda.CUDAGraph()
        results: list[Any] = []

        def replay(i: int) -> Any:
            for mine, given in zip(static, inputs[i % INPUTS], strict=True):
                mine.copy_(given)
            taken.append(i)
            if len(taken) <= 3:
                side = torch.cuda.Stream()
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    loss = step(*static)
                torch.cuda.current_stream().wait_stream(side)
                return loss
            if not results:
                with torch.cuda.graph(recorded):
                    results.append(step(*static))
            recorded.replay()
            return results[0].clone()

        return replay

    yield "torch", make
    yield "torch channels_last + fused Adam", lambda: make(channels_last=True, fused=True)
    yield "torch compiled", lambda: make(channels_last=True, fused=True, compiled=True)
    yield "torch as one graph", lambda: make(channels_last=True, fused=True, graph=True)


# ---- the measurements ----


def measure_steps(
    cupy: Any, batch: int, precision: str, rounds: int, quick: bool
) -> tuple[list[dict[str, Any]], list[str]]:
    """(rows, faults) of all programs for one batch."""
    gc.collect()  # an older graph that is freed while PyTorch records one would spoil that
    weights, batches, wanted = inputs_of(batch)
    k, clock = minigrad.use("cuda", precision=precision), Clock(cupy)
    makers: dict[str, Callable[[], Step]] = {
        "minigrad": lambda: minigrad_step(k, weights, batches, capture=True),
        "minigrad eager": lambda: minigrad_step(k, weights, batches, capture=False),
    }
    if library().available:
        makers[WITH_NCCL] = lambda: minigrad_step(k, weights, batches, capture=True, group=WithItself(cupy))
    with contextlib.suppress(ImportError):
        makers |= dict(torch_steps(weights, batches, precision))
    programs, rows, faults = {}, [], []
    for name, make in makers.items():
        try:
            step = make()
            losses = [float(step(i).sum()) for i in range(3)]
        except Exception as error:  # PyTorch's compiler fails where there is no C compiler, for instance
            faults.append(f"{name}, {precision}, batch {batch}: {type(error).__name__}: {error}"[:300])
            continue
        errors = [abs(a - b) / abs(b) for a, b in zip(losses, wanted, strict=True)]
        if max(errors) > LOSS_TOLERANCE[precision]:
            faults.append(f"{name}, {precision}, batch {batch}: losses {losses} instead of {wanted}")
            continue
        programs[name] = step
    times: dict[str, list[float]] = {name: [] for name in programs}
    for step in programs.values():
        clock.of(step, 1 if quick else WARM_UP)
    for _ in range(rounds):
        for name, step in programs.items():
            clock.of(step, 1 if quick else 5)
            times[name].append(clock.of(step, 1 if quick else STEPS))
    flops = 3 * batch * driver.forward_flops(driver.model_of(driver.DEFAULT_MODEL))
    for name, seconds in times.items():
        spread = driver.spread(seconds)
        row = {"what": "step", "batch": batch, "precision": precision, "program": name, "seconds": spread}
        rows.append({**row, "images_per_second": batch / spread["median"], "flops": flops})
    return rows, faults


@cache
def inputs_of(batch: int) -> tuple[dict[str, np.ndarray], Any, list[float]]:
    """(weights, batches, the first losses that all programs must compute)."""
    minigrad.use("cpu", "plain")
    model = driver.model_of(driver.DEFAULT_MODEL)
    weights = {name: x.astype(np.float32) for name, x in model.network.state_dict().items()}
    images = driver.load_dataset("fashion-mnist-sample").train_images
    batches = batches_of(images, batch, model.latent_space_dim)
    return weights, batches, reference_losses(weights, batches)


def reference_losses(weights: dict[str, np.ndarray], batches: Any) -> list[float]:
    """The first three losses by the plain kernels in float64, which are in use."""
    model = driver.model_of(driver.DEFAULT_MODEL)
    model.to(dtype="float64")
    model.network.load_state_dict(weights)
    model.compile(driver.DEFAULT_MODEL["learning_rate"])
    trainer = Trainer(model, batches[0][0], TrainingOptions(batch_size=len(batches[0][0])), progress=False)
    model.network.train()
    return [
        float(trainer.step(images / 255, noise.astype(float), np.array([1.0, *trainer.optimizer.scalars(i + 1)])).sum())
        for i, (images, noise) in enumerate(batches[:3])
    ]


def measure_kernels(cupy: Any, batch: int, precision: str, quick: bool) -> list[dict[str, Any]]:
    """Each kernel of a step at its shapes: seconds, and the bytes and operations that it cannot do without."""
    k, clock, rng = minigrad.use("cuda", precision=precision), Clock(cupy), np.random.default_rng(0)

    def array(*shape: int) -> Any:
        return k.from_host(rng.standard_normal(shape, dtype=np.float32))

    cases: list[tuple[str, Callable[[int], Any], int, int]] = []
    for name, geometry, C, F, transposed in LAYERS:
        x, y = array(batch, *geometry.input_size, C), array(batch, *geometry.output_size, F)
        weight, bias = array(3, 3, C, F), array(C if transposed else F)
        if transposed:
            x, y = y, x
        norm, grad_rows = array(3, x.shape[3]), array(4, y.shape[3])
        flops = 2 * batch * int(np.prod(geometry.output_size)) * 9 * C * F
        # As in the model: nothing is normalised before the first layer, and after the last.
        first, last = x.shape[3] == 1, y.shape[3] == 1
        after = None if last else Norm(array(y.shape[3]), array(y.shape[3]), 1e-3)
        before = Statistics(array(x.shape[3]), norm[0], array(x.shape[3]) ** 2, 1e-3)
        x, y = x if first else stored(x, precision), y if last else stored(y, precision)
        source = Source(x) if first else Source(x, norm, before)
        layer = Layer(weight, bias, geometry, transposed)
        size = x.nbytes + y.nbytes + weight.nbytes
        forth = (source, layer, after)
        cases.append((f"{name}: forward", lambda _, a=forth: k.conv_layer(*a), size, flops))
        back = (y, None if last else grad_rows, y, source, layer, not first)
        bytes_back = 4 * y.nbytes + 3 * x.nbytes + 2 * weight.nbytes
        cases.append((f"{name}: backward", lambda _, a=back: k.conv_layer_grad(*a), bytes_back, (2 - first) * flops))
    if precision == "fp32":  # with TF32 the others are the same
        big = array(batch, 28, 28, 64)
        rows, norm = array(4, 64), array(3, 64)
        cases += [
            ("normalise", lambda _: k.normalise(big, norm), 2 * big.nbytes, 0),
            ("through batch_norm", lambda _: k.norm_gradient(big, big, rows), 3 * big.nbytes, 0),
            ("moments", lambda _: k.moments(big), big.nbytes, 0),
            ("bernoulli_nll", lambda _: k.bernoulli_nll(big, big), 2 * big.nbytes, 0),
        ]
    found = []
    for name, call, size, flops in cases:
        seconds = clock.median(recorded(k, call), **QUICK if quick else {}) / CALLS
        row = {"what": "kernel", "batch": batch, "precision": precision, "kernel": name, "seconds": seconds}
        found.append({**row, "bytes": size, "flops": flops})
    return found


def stored(x: Any, precision: str) -> Any:
    """An array of float32 as this precision keeps it between layers: bf16 is the upper half of the bits."""
    return (x.view("uint32") >> 16).astype("uint16") if precision == "bf16" else x


def recorded(k: Any, call: Callable[[int], Any]) -> Callable[[int], Any]:
    """What replays CALLS calls as one graph: a small one ends on the device before Python can begin the next."""

    def calls(x: Any) -> Any:
        for i in range(CALLS):
            call(i)
        return x

    take, x = k.capture(calls), k.from_host(np.zeros(1, np.float32))
    return lambda _: take(x)


def measure_device(cupy: Any, quick: bool) -> dict[str, Any]:
    """Name, memory, driver; bytes a second of a copy, and operations a second of a large matrix product."""
    clock, N = Clock(cupy), 256 if quick else 8192
    source = cupy.ones(N * N * 4, dtype="float32")
    target = cupy.empty(N * N * 4, dtype="float32")
    target[...] = source
    copy = 2 * source.nbytes / clock.median(lambda _: cupy.copyto(target, source))
    a, b = source[: N * N].reshape(N, N), target[: N * N].reshape(N, N)
    product = 2 * N**3 / clock.median(lambda _: cupy.matmul(a, b), count=3)
    name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    return {"name": name, "driver": release(), "copy_bytes_per_second": copy, "sgemm_flops_per_second": product}


def measure_crossover(cupy: Any, quick: bool) -> list[dict[str, Any]]:
    """The step on the CPU's best kernels and on the GPU, over the batch."""
    minigrad.use("cpu")
    model = driver.model_of(driver.DEFAULT_MODEL)
    weights = {name: x.astype(np.float32) for name, x in model.network.state_dict().items()}
    images = driver.load_dataset("fashion-mnist-sample").train_images
    rows = []
    for batch in CPU_BATCHES[:1] if quick else CPU_BATCHES:
        batches = batches_of(images, batch, model.latent_space_dim)
        on_cpu = minigrad_step(minigrad.use("cpu"), weights, batches, capture=False)
        on_cpu(0)
        start, count = time.perf_counter(), 0
        while count < 3 or (time.perf_counter() - start < 1 and not quick):
            on_cpu(count)
            count += 1
        cpu = (time.perf_counter() - start) / count
        on_gpu = minigrad_step(minigrad.use("cuda"), weights, batches, capture=True)
        Clock(cupy).of(on_gpu, 5)  # the graph is recorded
        gpu = Clock(cupy).median(on_gpu, **QUICK if quick else {})
        rows.append({"what": "crossover", "batch": batch, "cpu_seconds": cpu, "gpu_seconds": gpu})
    return rows


def versions() -> dict[str, str]:
    """Of the libraries that are measured."""
    found = {"minigrad": minigrad.__version__, "NumPy": np.__version__}
    with contextlib.suppress(ImportError):
        import cupy

        found["CuPy"] = cupy.__version__
        if library().available:
            found["NCCL"] = str(library().get_version())
        import torch

        found["PyTorch"] = torch.__version__
    return found


def run_tests() -> dict[str, Any]:
    """The tests that need a GPU, none of them skipped; their summary."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    options: dict[str, Any] = {"cwd": driver.FOLDER.parent, "env": {**os.environ, "MINIGRAD_REQUIRE_GPU": "1"}}
    try:
        done = subprocess.run(command, **options, capture_output=True, text=True, check=False, timeout=TEST_SECONDS)
    except subprocess.TimeoutExpired:
        return {"exit": 124, "summary": f"stopped after {TEST_SECONDS} s", "counts": {}, "failed": []}
    lines = done.stdout.strip().splitlines() or [done.stderr[-500:]]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    counts = {name: int(count) for count, name in re.findall(r"(\d+) (passed|failed|skipped|error)", lines[-1])}
    return {"exit": done.returncode, "summary": lines[-1], "counts": counts, "failed": failed[:30]}


def main(argv: list[str] | None = None) -> int:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", default="32,128,1024", help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--no-tests", action="store_true", help="measure only")
    parser.add_argument("--quick", action="store_true", help="one step of everything, to see that it works")
    parser.add_argument("--out", type=Path, help="(default: benchmarks/results/gpu.json; with --quick nothing)")
    args = parser.parse_args(argv)
    try:
        cupy = minigrad.use("cuda", precision="tf32").xp  # a GPU that can do all of this
    except DeviceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 4
    started = time.perf_counter()
    record = driver.record_of(
        "gpu.py",
        sys.argv[1:] if argv is None else argv,
        settings={"rounds": args.rounds, "steps": STEPS},
        versions={"gpu": versions()},
        device=measure_device(cupy, args.quick),
        rows=[],
        faults=[],
    )

    def keep() -> None:
        """Write what is measured so far: a machine may be taken away."""
        record["seconds"] = time.perf_counter() - started
        if args.out or not args.quick:
            driver.write_record(args.out or driver.RESULTS / "gpu.json", record)

    if not (args.no_tests or args.quick):
        record["tests"] = run_tests()
        print(record["tests"]["summary"], flush=True)
    for batch in map(int, args.batches.split(",")):
        for precision in PRECISIONS:
            keep()
            if time.perf_counter() - started > SECONDS:
                record["faults"].append(f"{precision}, batch {batch}: not measured, {SECONDS} s had passed")
                continue
            rows, faults = measure_steps(cupy, batch, precision, 1 if args.quick else args.rounds, args.quick)
            record["rows"] += rows
            record["faults"] += faults
            for row in rows:
                microseconds = 1e6 * row["seconds"]["median"]
                print(f"batch {batch:5}  {precision}  {row['program']:34} {microseconds:9.0f} us a step")
            print(*faults, sep="\n", end="\n" * bool(faults), flush=True)
            keep()
            record["rows"] += measure_kernels(cupy, batch, precision, args.quick)
    keep()
    record["rows"] += measure_crossover(cupy, args.quick)
    keep()
    return 1 if record["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
