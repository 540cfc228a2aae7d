"""The `backend` fixture: every kernel set and device that there is, one after another.

Arrays go in by `backend.from_host(numpy_array)` and come out by `backend.to_host(array)`; on the CPU both are
the array itself. The device `cuda` is a real GPU with CuPy: skipped where there is none, but a failure with
MINIGRAD_REQUIRE_GPU=1, so that a run on a GPU machine cannot pass empty. `cupy-double` runs the plain kernels
on the strict double of CuPy in strict_cupy.py, everywhere; `cuda-on-cpu` the CUDA kernels on it, where there is a C++
compiler.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Iterator

import cuda_on_cpu
import faults
import pytest
import strict_cupy

import minigrad
import minigrad.backend

campaign = faults.campaign
pytest_addoption = faults.pytest_addoption
pytest_report_header = faults.pytest_report_header
pytest_collection_modifyitems = faults.pytest_collection_modifyitems


def pytest_configure(config: pytest.Config) -> None:
    faults.pytest_configure(config)
    # A script that starts the tests with & has SIGINT ignored in them, and so in the programs that they interrupt.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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


@pytest.fixture
def hangup() -> Iterator[None]:
    """SIGHUP does what it does by default, also to children, where these tests are started by nohup."""
    if not hasattr(signal, "SIGHUP"):
        yield
        return
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def restored_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Afterwards the default backend and the registered ones are those of before."""
    monkeypatch.setattr(minigrad.backend, "_default", minigrad.backend._default)
    monkeypatch.setattr(minigrad.backend, "_backends", dict(minigrad.backend._backends))


@pytest.fixture
def cupy_double(restored_backends: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """`import cupy` gives the strict double, with one device and counters at zero."""
    strict_cupy.reset(devices=1)
    monkeypatch.setitem(sys.modules, "cupy", strict_cupy.cupy)
    yield strict_cupy.cupy
    strict_cupy.reset(devices=1)


NEEDS_COMPILER = pytest.mark.skipif(cuda_on_cpu.compiler() is None, reason="there is no g++")
MARKS = {"cuda": pytest.mark.gpu, "numba-1": NEEDS_NUMBA, "numba-3": NEEDS_NUMBA, "cuda-on-cpu": NEEDS_COMPILER}


@pytest.fixture(params=[pytest.param(name, marks=MARKS.get(name, ())) for name in BACKENDS])
def backend(request: pytest.FixtureRequest, restored_backends: None) -> minigrad.Backend:
    """Each backend in turn, made the default by `minigrad.use`."""
    if request.param in ("cupy-double", "cuda-on-cpu"):
        request.getfixturevalue("cupy_double")
    return BACKENDS[request.param]()
