"""The kernel sets and devices that the tests go through, and what some of them need."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable

import cuda_on_cpu
import pytest
from op_cases import CASES

import minigrad
from minigrad import ops


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


# One thread runs what three run, which test_backends.py checks; there, too, are drawn calls with one thread.
EACH = [pytest.param(name, marks=MARKS.get(name, ())) for name in BACKENDS if not name.endswith("-1")]

# Cases of operations run once in each text that computes them; test_backends.py compares the kernels of all sets. No
# kernel of the catalogue is overridden: on numba-3 run those that its text calls.
CATALOGUE = {name for name in ops.__all__ if ".catalogue." in getattr(ops, name).__module__}
OF_CATALOGUE = ("plain", "numba-3", "cuda", "cupy-double")
OF_OTHERS = (*OF_CATALOGUE, "numpy-3", "cuda-on-cpu")


def each_case(*left_out: str) -> pytest.MarkDecorator:
    """The parameters `case` and `backend`: each case of an operation on each backend but those that are left out."""
    pairs = [
        pytest.param(case, name, marks=MARKS.get(name, ()), id=f"{name}-{case}")
        for case in CASES
        for name in (OF_CATALOGUE if case.op in CATALOGUE else OF_OTHERS)
        if name not in left_out
    ]
    return pytest.mark.parametrize(("case", "backend"), pairs, indirect=["backend"])
