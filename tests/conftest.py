"""The `backend` fixture: every kernel set and device that there is, one after another.

Arrays go in by `backend.from_host(numpy_array)` and come out by `backend.to_host(array)`; on the CPU both are
the array itself. The device `cuda` is a real GPU with CuPy: skipped where there is none, but a failure with
MINIGRAD_REQUIRE_GPU=1, so that a run on a GPU machine cannot pass empty. `cupy-double` runs the plain kernels
on the strict double of CuPy in strict_cupy.py, everywhere; `cuda-on-cpu` the CUDA kernels on it, where there is a C++
compiler.

The `browser` fixture: Chromium for the tests of pages; they are skipped where it or Playwright is missing.
"""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faults
import pytest
import strict_cupy
import strict_nccl
from kernel_sets import BACKENDS, EACH, require_gpu

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


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium that Playwright drives."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the extra browser is not installed")
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    if not (path := next(filter(None, map(shutil.which, names)), None)):
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as program:
        chromium = program.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """A function that opens a file in a window of its own, with Playwright's options of a page. The file may ask for no
    other one and have no errors."""
    faults: list[str] = []
    pages = []

    def open_page(path: Path, **options: Any) -> Any:
        page = browser.new_page(**options)
        pages.append(page)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: message.type != "error" or faults.append(message.text))
        page.on("request", lambda asked: asked.url.startswith(("file:", "data:")) or faults.append(asked.url))
        page.goto(path.as_uri())
        return page

    yield open_page
    for page in pages:
        page.close()
    assert faults == []


def _restore_backends(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(minigrad.backend, "_default", minigrad.backend._default)
    patch.setattr(minigrad.backend, "_threads", minigrad.backend._threads)
    patch.setattr(minigrad.backend, "_backends", dict(minigrad.backend._backends))


@pytest.fixture(autouse=True)
def restored_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Afterwards the default backend and the registered ones are those of before: no test sees another one's."""
    _restore_backends(monkeypatch)


@pytest.fixture(scope="module")
def module_backends() -> Iterator[None]:
    """The same for the fixtures of a module that choose a backend."""
    with pytest.MonkeyPatch.context() as patch:
        _restore_backends(patch)
        yield


@pytest.fixture
def cupy_double(restored_backends: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """`import cupy` gives the strict double, with one device and counters at zero."""
    strict_cupy.reset(devices=1)
    monkeypatch.setitem(sys.modules, "cupy", strict_cupy.cupy)
    monkeypatch.setitem(sys.modules, "cupy.cuda.nccl", strict_nccl.module())
    yield strict_cupy.cupy
    strict_cupy.reset(devices=1)


@pytest.fixture(params=["on-cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def cuda_device(request: pytest.FixtureRequest, restored_backends: None) -> str:
    """`minigrad.use("cuda")` gives the kernels on the double of CuPy, or on a real GPU."""
    if request.param == "on-cpu":
        request.getfixturevalue("cupy_double")
    else:
        require_gpu()
    return request.param


@pytest.fixture(params=EACH)
def backend(request: pytest.FixtureRequest, restored_backends: None) -> minigrad.Backend:
    """Each kernel set in turn, made the default by `minigrad.use`."""
    if request.param in ("cupy-double", "cuda-on-cpu"):
        request.getfixturevalue("cupy_double")
    return BACKENDS[request.param]()
