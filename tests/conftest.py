"""The `backend` fixture: every kernel set and device that there is, one after another.

Arrays go in by `backend.from_host(numpy_array)` and come out by `backend.to_host(array)`; on the CPU both are
the array itself. The device `cuda` is a real GPU with CuPy: skipped where there is none, but a failure with
MINIGRAD_REQUIRE_GPU=1, so that a run on a GPU machine cannot pass empty. `cupy-double` runs the plain kernels
on the strict double of CuPy in strict_cupy.py, everywhere; `cuda-on-cpu` the CUDA kernels on it, where there is a C++
compiler.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator

import faults
import pytest
import strict_cupy
import strict_nccl
from kernel_sets import BACKENDS, MARKS

import minigrad
import minigrad.backend

campaign = faults.campaign
pytest_addoption = faults.pytest_addoption
pytest_collection_modifyitems = faults.pytest_collection_modifyitems
pytest_report_header = faults.pytest_report_header


def pytest_configure(config: pytest.Config) -> None:
    faults.pytest_configure(config)
    # A script that starts the tests with & has SIGINT ignored in them, and so in the programs that they interrupt.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def hangup() -> Iterator[None]:
    """SIGHUP does what it does by default, also to children, where these tests are started by nohup."""
    if not hasattr(signal, "SIGHUP"):
        yield
        return
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(autouse=True)
def restored_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Afterwards the default backend and the registered ones are those of before: no test sees another one's."""
    monkeypatch.setattr(minigrad.backend, "_default", minigrad.backend._default)
    monkeypatch.setattr(minigrad.backend, "_threads", minigrad.backend._threads)
    monkeypatch.setattr(minigrad.backend, "_backends", dict(minigrad.backend._backends))


@pytest.fixture
def cupy_double(restored_backends: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """`import cupy` gives the strict double, with one device and counters at zero."""
    strict_cupy.reset(devices=1)
    monkeypatch.setitem(sys.modules, "cupy", strict_cupy.cupy)
    monkeypatch.setitem(sys.modules, "cupy.cuda.nccl", strict_nccl.module())
    yield strict_cupy.cupy
    strict_cupy.reset(devices=1)


@pytest.fixture(params=[pytest.param(name, marks=MARKS.get(name, ())) for name in BACKENDS])
def backend(request: pytest.FixtureRequest, restored_backends: None) -> minigrad.Backend:
    """Each backend in turn, made the default by `minigrad.use`."""
    if request.param in ("cupy-double", "cuda-on-cpu"):
        request.getfixturevalue("cupy_double")
    return BACKENDS[request.param]()
