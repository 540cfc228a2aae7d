"""The kernel sets and devices that the tests go through, and what some of them need."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable

import cuda_on_cpu
import pytest

import minigrad


def require_gpu() -> None:
    """Skip, or with MINIGRAD_REQUIRE_GPU=1 fail, a test that needs CuPy and a CUDA device, where there is none."""
    try:
        import cupy

        found = "CuPy finds no CUDA device" if not cupy.cuda.is_available() else ""
    except ImportError as error:
        found = f"CuPy is not installed ({error})"
    if found and os.environ.get("MINIGRAD_REQUIRE_GPU") == "1":
        pytest.fail(f"MINIGRAD_REQUIRE_GPU=1 but {found}")
    elif found:
        pytest.skip(found)


def _cuda() -> minigrad.Backend:
    require_gpu()
    return minigrad.use(device="cuda")


NEEDS_NUMBA = pytest.mark.skipif(not importlib.util.find_spec("numba"), reason="the extra fast is not installed")
NEEDS_EVAL = pytest.mark.skipif(
    not (importlib.util.find_spec("sklearn") and importlib.util.find_spec("skimage")),
    reason="the extra eval is not installed",
)
CPU_KERNELS = ["plain", "numpy", pytest.param("numba", marks=NEEDS_NUMBA)]
BACKENDS: dict[str, Callable[[], minigrad.Backend]] = {
    "plain": lambda: minigrad.use(kernels="plain"),
    "numpy-1": lambda: minigrad.use(kernels="numpy", threads=1),
    "numpy-3": lambda: minigrad.use(kernels="numpy", threads=3),
    "numba-1": lambda: minigrad.use(kernels="numba", threads=1),
    "numba-3": lambda: minigrad.use(kernels="numba", threads=3),
    "cuda": _cuda,
    "cupy-double": lambda: minigrad.use(device="cuda", kernels="plain"),
    "cuda-on-cpu": lambda: minigrad.use(device="cuda"),
}
NEEDS_COMPILER = pytest.mark.skipif(cuda_on_cpu.compiler() is None, reason="there is no g++")
MARKS = {"cuda": pytest.mark.gpu, "numba-1": NEEDS_NUMBA, "numba-3": NEEDS_NUMBA, "cuda-on-cpu": NEEDS_COMPILER}
