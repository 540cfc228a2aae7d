"""`python -m minigrad.doctor`: each fault that a machine can have gets the command that mends it."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import strict_cupy
import strict_nccl

import minigrad
from minigrad import DeviceError, doctor
from minigrad.backend.cpu.numpy_kernels import NumpyBackend
from minigrad.backend.cuda import driver as machine, nccl


@pytest.fixture
def a_machine(monkeypatch: pytest.MonkeyPatch, restored_backends: None) -> Any:
    """make(driver's CUDA version, CuPy's wheels, fault): what driver.py finds."""

    def make(version: tuple[int, ...], wheels: list[str], fault: str = "") -> None:
        monkeypatch.setattr(machine, "driver_version", lambda: (version, fault))
        monkeypatch.setattr(machine, "cupy_wheels", lambda: wheels)
        monkeypatch.setattr(machine, "release", lambda: "580.65.06")

    return make


def test_a_machine_without_a_gpu_has_no_fault(a_machine: Any, capsys: pytest.CaptureFixture[str]) -> None:
    a_machine((), [], "no NVIDIA driver")
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    assert "none that can be used (no NVIDIA driver; no CuPy)" in out
    assert "cpu, numpy" in out
    assert out.endswith("no problems found\n")
    assert machine.advice() == ""


BOTH = ["cupy-cuda12x", "cupy-cuda13x"]


@pytest.mark.parametrize(
    ("version", "wheels", "mend"),
    [
        ((), ["cupy-cuda13x"], "Install NVIDIA's driver"),
        ((11, 4), [], "Install a newer driver: 525 for the extra cuda12, 580 for cuda13"),
        ((12, 0), [], 'pip install ".[cuda12]"'),
        ((12, 9), [], 'pip install ".[cuda12]"'),
        ((13, 0), [], 'pip install ".[cuda13]"'),
        ((12, 2), ["cupy-cuda13x"], 'pip uninstall -y cupy-cuda13x; pip install ".[cuda12]"'),
        ((13, 0), BOTH, f'pip uninstall -y {" ".join(BOTH)}; pip install ".[cuda13]"'),
    ],
)
def test_each_fault_has_its_mend(version: Any, wheels: Any, mend: str, a_machine: Any, capsys: Any, monkeypatch: Any):
    a_machine(version, wheels, "" if version else "no NVIDIA driver")
    assert doctor.main([]) == 4
    out = capsys.readouterr().out
    assert f"-> {mend}" in out
    assert out.endswith("1 problem: follow the arrows, top first\n")
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceError) as error:
        minigrad.use(device="cuda")
    assert mend in str(error.value), "--device cuda prints the same advice"


def test_a_cupy_that_cannot_be_imported_is_told(a_machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    a_machine((13, 0), ["cupy-cuda13x"])
    monkeypatch.setitem(sys.modules, "cupy", None)
    driver, cupy = machine.gpu()
    assert driver == ("driver", "580.65.06 for CUDA 13.0", "")
    assert cupy.found.startswith("cupy-cuda13x fails: ModuleNotFoundError")
    assert cupy.mend.startswith("pip install --force-reinstall cupy-cuda13x")


def test_devices_are_listed_with_their_memory(a_machine: Any, cupy_double: Any) -> None:
    a_machine((13, 0), ["cupy-cuda13x"])
    strict_cupy.reset(devices=2)
    assert [f.what for f in machine.gpu()] == ["driver", "CuPy", "cuda:0", "cuda:1"]
    assert [f.found for f in machine.gpu()[2:]] == ["double 0, 1.0 of 2.0 GiB free", "double 1, 0.5 of 2.0 GiB free"]
    assert cupy_double.cuda.Device().id == 0, "the current device stays"
    assert not machine.advice()


def test_nccl_is_told_where_there_is_a_gpu(a_machine: Any, cupy_double: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    a_machine((12, 9), ["cupy-cuda12x"])
    assert doctor.nccl() == [("NCCL", "2.27.7", "")]
    monkeypatch.setitem(sys.modules, "cupy.cuda.nccl", strict_nccl.module(available=False))
    monkeypatch.setattr(nccl, "cupy_wheels", machine.cupy_wheels)
    (missing,) = doctor.nccl()
    assert missing.found.startswith('not installed; it connects several GPUs in a training: pip install ".[nccl12]"')
    assert not missing.mend, "one GPU trains without"
    strict_cupy.reset(devices=0)
    assert doctor.nccl() == []


def test_two_wheels_of_cupy_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Distribution:
        def __init__(self, name: str | None) -> None:
            self.metadata = {"Name": name}

    found = [Distribution(n) for n in ("numpy", "cupy-cuda13x", "CuPy-CUDA12x", None, "cupy-backends", "cupy")]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: iter(found))
    assert machine.cupy_wheels() == ["cupy", "cupy-cuda12x", "cupy-cuda13x"]


def test_wrong_results_and_failing_kernels_are_faults(a_machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    a_machine((), [], "no NVIDIA driver")
    assert not any(f.mend for f in doctor.self_test())
    right = NumpyBackend.conv2d
    monkeypatch.setattr(NumpyBackend, "conv2d", lambda *args: right(*args) + np.float32(0.01))
    faults = {f.what: f.mend for f in doctor.self_test() if f.mend}
    assert "cpu, numpy" in faults
    assert "report" in faults["cpu, numpy"]
    assert "cpu, plain" not in faults
    monkeypatch.setattr(NumpyBackend, "conv2d", mock.Mock(side_effect=RuntimeError("no")))
    assert next(f.found for f in doctor.self_test() if f.what == "cpu, numpy") == "RuntimeError: no"


def test_the_driver_is_asked_without_cupy() -> None:
    """Whatever this machine has, the answer has a version or a reason."""
    version, fault = machine.driver_version()
    assert bool(version) != bool(fault)


class Driver:
    """libcuda.so.1 as ctypes loads it."""

    def __init__(self, started: int, status: int, version: int) -> None:
        self.started, self.status, self.version = started, status, version

    def cuInit(self, flags: int) -> int:
        return self.started

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = self.version
        return self.status


@pytest.mark.parametrize(
    ("driver", "found"),
    [
        (Driver(0, 0, 13000), ((13, 0), "")),
        (Driver(0, 0, 12080), ((12, 8), "")),
        (Driver(100, 0, 12080), ((), "the driver finds no GPU")),
        (Driver(803, 0, 12080), ((), "the driver's parts have different versions: restart the machine")),
        (Driver(0, 999, 12080), ((), "the driver fails with CUDA error 999")),
        (None, ((), "no NVIDIA driver")),
    ],
)
def test_what_the_driver_says(driver: Driver | None, found: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = None if driver else OSError("libcuda.so.1: cannot open shared object file")
    monkeypatch.setattr(machine.ctypes, "CDLL", mock.Mock(return_value=driver, side_effect=missing))
    assert machine.driver_version() == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul\nGCC version: gcc 13.3", "580.65.06"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64 6 570.86.15  Release Build", "570.86.15"),
        ("NVRM version: unknown", "release unknown,"),
        (None, "release unknown,"),
    ],
)
def test_the_release_of_the_driver(text: str | None, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", mock.Mock(side_effect=[text or FileNotFoundError("version")]))
    assert machine.release() == found
