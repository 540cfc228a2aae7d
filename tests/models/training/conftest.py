"""Fixtures of trainings and run folders."""

import signal
from pathlib import Path

import numpy as np
import pytest
from kernel_sets import CPU_KERNELS
from trainings import pictures

import minigrad


@pytest.fixture(autouse=True)
def usual_signals():
    """Python's own handlers, as in a terminal; and after the test, those again."""
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    after = {s: signal.getsignal(s) for s in before}
    for s, handler in before.items():
        signal.signal(s, handler)
    assert after == {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


@pytest.fixture(params=CPU_KERNELS)
def kernels(request, restored_backends):
    minigrad.use(kernels=request.param, threads=2 if request.param != "plain" else None)
    return request.param


@pytest.fixture
def array_file(tmp_path) -> Path:
    path = tmp_path / "images.npy"
    np.save(path, pictures(30))
    return path


@pytest.fixture
def no_pictures(monkeypatch):
    """Drawing takes long and is tested elsewhere."""
    monkeypatch.setattr("autoencoders.runs.run.draw", lambda *_, **__: {})
    monkeypatch.setattr("autoencoders.pictures.charts.loss_curves", lambda *_, **__: None)
    monkeypatch.setattr("autoencoders.runs.run.save_pictures", lambda *_, **__: [])
