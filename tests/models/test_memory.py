"""How much memory a training step takes on the CPU: known before, and looked for."""

import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernel_sets import CPU_KERNELS

import minigrad
from autoencoders import VAE, Autoencoder, TrainingOptions
from autoencoders.training import Trainer, memory
from autoencoders.training.memory import COPIES, WORKSPACE, check_memory, step_memory
from minigrad.backend.chain import Layer, Source
from minigrad.backend.geometry import conv_geometry
from minigrad.backend.memory import free_memory

LINUX = pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="needs /proc")


def trainer(
    batch: int, kernels: tuple[int, int] = (3, 5), latent: int = 4, folder: Path | None = None, **options: Any
) -> Trainer:
    model = VAE((28, 28, 1), (16, 32), kernels, (1, 2), latent)
    model.compile(1e-3)
    images = np.random.default_rng(0).integers(0, 256, (batch, 28, 28, 1), dtype=np.uint8)
    return Trainer(model, images, TrainingOptions(batch, epochs=1, **options), folder=folder, progress=False)


def held(make: Callable[[], object]) -> int:
    """Bytes of NumPy arrays that are held at the worst moment of a second call, beside what was there before."""
    make()  # compiles
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    make()
    most = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    return most


def peak(batch: int, **options: Any) -> int:
    """Bytes that a training takes."""
    made = iter([trainer(batch, **{**options, "folder": None}), trainer(batch, **options)])
    return held(lambda: next(made).run())


@pytest.mark.parametrize("kernels", CPU_KERNELS)
@pytest.mark.parametrize("options", [{}, {"iw_samples": 3}, {"denoise": 0.1}], ids=str)
def test_the_memory_of_a_step_is_known_before(kernels: str, options: dict[str, Any]) -> None:
    """An image's share is what it is at the peak, or up to half as much again; the rest is within the workspace."""
    minigrad.use(kernels=kernels)
    few, many = peak(8, **options), peak(40, **options)
    fixed, bytes_per_image = step_memory(trainer(8).model, options.get("iw_samples", 1))
    share = (many - few) / 32
    assert 0.98 * share <= bytes_per_image <= 1.5 * share
    assert few - 8 * share <= fixed
    if kernels == "plain":  # which hold nothing for each thread: what is left is the last good state
        assert few - 8 * share == pytest.approx(fixed - WORKSPACE, rel=0.1)


@pytest.mark.parametrize("hidden", [None, 5])
def test_weights_are_counted_before_a_model_is_made(hidden: int | None) -> None:
    """Those of convolutions and dense layers, with one head."""
    model = VAE((9, 8, 1), (2, 3), (3, 2), (2, 1), 4, hidden=hidden)
    weights = {name: x for name, x in model.network.named_parameters() if name.endswith("weight")}
    del weights["log_variance.weight"]
    assert memory.least_weights(model.config) == sum(x.size for x in weights.values())


def test_the_memory_of_a_save_is_known_before(tmp_path: Path) -> None:
    """With a model whose weights are all that counts."""
    made = trainer(4, latent=1000)
    state = 3 * sum(p.data.nbytes for p in made.model.network.parameters())  # with its moments
    held = peak(4, latent=1000, folder=tmp_path)
    assert COPIES - 1.5 < held / state <= COPIES
    check_memory(made.model, 4, 1, COPIES * state, "cpu")
    with pytest.raises(minigrad.DeviceError, match=r"a checkpoint needs about .* while it is saved"):
        check_memory(made.model, 4, 1, COPIES * state - 1, "cpu")


@pytest.mark.usefixtures("cupy_double")
def test_the_workspace_is_what_the_partial_sums_of_a_gpu_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the layers that have most; nothing is computed."""
    k: Any = minigrad.use(device="cuda")
    monkeypatch.setattr(type(k), "_launch", lambda *_: None)
    most = 0
    for C, F, kernel, stride in ((128, 512, 1, 1), (16, 64, 3, 2), (1, 32, 5, 1), (64, 64, 3, 1)):
        geometry = conv_geometry((28, 28), (kernel, kernel), (stride, stride), "same")
        x, weight = k.from_host(np.zeros((32, 28, 28, C), "f4")), k.from_host(np.zeros((kernel, kernel, C, F), "f4"))
        y = k.from_host(np.zeros((32, *geometry.output_size, F), "f4"))
        layer = partial(k.conv_layer_grad, y, None, y, Source(x), Layer(weight, None, geometry, False), True)
        most = max(most, held(layer) - x.nbytes - 2 * weight.nbytes)
    assert 0.7 * WORKSPACE < most <= WORKSPACE


@LINUX
def test_a_batch_that_does_not_fit_is_refused_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(40)
    ten, fixed, forty = (fixed + n * image for n in (10, 0, 40) for fixed, image in [step_memory(made.model, batch=n)])
    monkeypatch.setattr(minigrad.Backend, "free_memory", lambda _: ten)
    with pytest.raises(minigrad.DeviceError, match=r"40 images needs .* on cpu, .* that fits is 10 \(--batch-size 10"):
        made.run()
    monkeypatch.setattr(minigrad.Backend, "free_memory", lambda _: fixed)
    with pytest.raises(minigrad.DeviceError, match=r"not even one image fits$"):
        made.run()
    monkeypatch.setattr(memory, "LARGE", max(made.model.input_shape) - 1)
    with pytest.raises(minigrad.DeviceError, match=rf"one image fits; .* \(--image-size {memory.LARGE}\)$"):
        made.run()
    assert made.progress.step == 0
    for enough in (forty, None):
        monkeypatch.setattr(minigrad.Backend, "free_memory", lambda _, enough=enough: enough)
        trainer(40).run()


@pytest.mark.parametrize(
    ("side", "advice"),
    [(256, "smaller kernels"), (257, "smaller kernels; smaller images need less (--image-size 256)")],
)
def test_a_model_of_large_images_that_does_not_fit(side: int, advice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = VAE((side, 20, 1), (4,), 3, 2).config
    monkeypatch.setattr(minigrad.Backend, "free_memory", lambda _: 0)
    with pytest.raises(minigrad.DeviceError, match=f"{re.escape(advice)}$"):
        memory.check_size(config)


@LINUX
def test_what_is_free_is_less_than_there_is_and_what_a_limit_leaves() -> None:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total = sum(1024 * int(lines[name].split()[0]) for name in ("MemTotal", "SwapTotal"))
    found = free_memory()
    assert found is not None
    assert 0 < found < total
    code = """
import resource
from minigrad.backend.memory import free_memory
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 50_000_000, -1))
print(free_memory())
bytearray(free_memory() - 5_000_000)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 40_000_000 < int(done.stdout) <= 50_000_000


@pytest.mark.parametrize("kernels", CPU_KERNELS)
def test_the_batch_that_fits_fits(kernels: str) -> None:
    """Drawn models, on the batch that is the largest of 64 MiB: at its peak a training holds no more than was asked."""
    minigrad.use(kernels=kernels, threads=None if kernels == "plain" else 2)
    r, free = np.random.default_rng(5), 64 << 20
    cases = [  # those that took more than earlier estimates
        ((19, 32, 1), (2, 32), (3, 1), (1, 3)),
        ((13, 14, 1), (64, 2), (1, 3), (1, 3)),
        ((16, 13, 3), (1, 2, 32), (5, 3, 5), (1, 2, 2)),
    ]
    for layers in (1, 2, 3):
        drawn = ([1, 2, 8, 32, 64], [1, 2, 3, 5], [1, 2, 3])
        size = (*map(int, r.integers(8, 33, 2)), int(r.integers(1, 4)))
        cases.append((size, *(tuple(map(int, r.choice(values, layers))) for values in drawn)))
    for size, filters, sides, strides in cases:
        model = (VAE, Autoencoder)[int(r.integers(2))](size, filters, sides, strides, 2)
        model.compile(1e-4)
        with pytest.raises(minigrad.DeviceError) as refused:
            check_memory(model, 10**6, 1, free, "cpu")
        advised = int(re.search(r"--batch-size (\d+)", str(refused.value))[1])
        check_memory(model, advised, 1, free, "cpu")
        batch = min(advised, 400)
        images = r.integers(0, 256, (batch, *size), dtype=np.uint8)
        made = Trainer(model, images, TrainingOptions(batch, epochs=1), progress=False)
        tracemalloc.start()
        made.run()
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        fixed, bytes_per_image = step_memory(model, batch=batch)
        assert held <= fixed + batch * bytes_per_image, (size, filters, sides, strides, batch)
