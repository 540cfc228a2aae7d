"""What this machine offers minigrad, whether it works, and how to mend what does not: `python -m minigrad.doctor`.

It looks at the CPU (cores, BLAS, kernel sets) and at the GPU (driver, CuPy's wheels, devices), runs a small convolution with
every kernel set that works here, and compares it with the plain kernels. Exit status: 0, or 4 where something is there
that should work and does not.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import importlib.metadata
import importlib.util
import platform
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

LEAST_DRIVER = {"cuda13": "580", "cuda12": "525"}  # for the extra, by the driver's release on Linux
WHEELS = {"cupy-cuda13x": "cuda13", "cupy-cuda12x": "cuda12"}  # the extra that installs each


class Finding(NamedTuple):
    """One line of the report; `mend` says what to do, and is empty where all is well."""

    what: str
    found: str
    mend: str = ""


def examine() -> list[Finding]:
    """Everything, in the order in which it should be mended."""
    return [*cpu(), *gpu(), *self_test()]


def advice() -> str:
    """What to do so that device cuda works here: the first fault of the GPU; without one, an empty string."""
    return next((f"{f.what}: {f.found}. {f.mend}" for f in gpu() if f.mend), "")


# ---- the CPU ----


def cpu() -> list[Finding]:
    """Python, NumPy and its BLAS, cores, and Numba."""
    from .backend.pool import blas_libraries, usable_cores

    blas = ", ".join(f"{b.internal_api} {b.version} on {b.num_threads} threads" for b in blas_libraries())
    numba = importlib.util.find_spec("numba")
    return [
        Finding("Python", f"{platform.python_version()}, NumPy {np.__version__}"),
        Finding("processor", f"{platform.machine()}, {usable_cores()} cores for this process"),
        Finding("BLAS", blas or "none that is known"),
        Finding("Numba", f"{importlib.metadata.version('numba')}" if numba else f'none; twice the speed: {_install("fast")}'),
    ]


# ---- the GPU ----


def gpu() -> list[Finding]:
    """Driver, CuPy and devices. A machine without driver and CuPy has no fault: it is one without a GPU."""
    wheels = cupy_wheels()
    driver, fault = driver_version()
    fitting = "cuda13" if driver >= (13, 0) else "cuda12"
    findings = []
    if not driver:
        if not wheels:
            return [Finding("GPU", f"none that can be used ({fault}; no CuPy)")]
        mend = "Install NVIDIA's driver, 525 or newer; inside a container, start that with the GPU (docker: --gpus all)"
        return [Finding("driver", fault, mend)]
    mend = "" if driver >= (12, 0) else "Install a newer driver: 525 for the extra cuda12, 580 for cuda13"
    findings.append(Finding("driver", f"{release()} for CUDA {driver[0]}.{driver[1]}", mend))
    if len(wheels) > 1:
        names = " ".join(wheels)
        findings.append(Finding("CuPy", f"{names} together break each other", f"pip uninstall -y {names}; {_install(fitting)}"))
    elif not wheels:
        findings.append(Finding("CuPy", "not installed", _install(fitting)))
    elif WHEELS.get(wheels[0]) == "cuda13" and driver < (13, 0):
        findings.append(Finding("CuPy", f"{wheels[0]} needs driver 580", f"pip uninstall -y {wheels[0]}; {_install(fitting)}"))
    else:
        findings += _devices(wheels[0])
    return findings


def cupy_wheels() -> list[str]:
    """The installed distributions that bring a module `cupy`."""
    names = {d.metadata["Name"].lower() for d in importlib.metadata.distributions() if d.metadata["Name"]}
    return sorted(name for name in names if name == "cupy" or name.startswith(("cupy-cuda", "cupy-rocm")))


def driver_version() -> tuple[tuple[int, ...], str]:
    """(the CUDA version that the driver can do, or () ; what is wrong)."""
    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return (), "no NVIDIA driver"
    version = ctypes.c_int()
    status = library.cuInit(0) or library.cuDriverGetVersion(ctypes.byref(version))
    if status:
        known = {100: "the driver finds no GPU", 803: "the driver's parts have different versions: restart the machine"}
        return (), known.get(status, f"the driver fails with CUDA error {status}")
    return (version.value // 1000, version.value % 1000 // 10), ""


def release() -> str:
    """The driver's release, e.g. 580.65.06."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text().split()
    except OSError:
        return "release unknown,"
    return next((word for word in words if word[0].isdigit() and word.count(".") >= 1), "release unknown,")


def _devices(wheel: str) -> list[Finding]:
    """CuPy's version and each device with its memory."""
    try:
        cupy = importlib.import_module("cupy")
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # whatever CuPy, CUDA or the loader raise is what there is to report
        mend = f"pip install --force-reinstall {wheel}; if that does not help, update the driver"
        return [Finding("CuPy", f"{wheel} fails: {type(error).__name__}: {error}", mend)]
    findings = [Finding("CuPy", f"{wheel} {cupy.__version__}")]
    for i in range(count):
        with cupy.cuda.Device(i):
            free, total = cupy.cuda.runtime.memGetInfo()
        name = cupy.cuda.runtime.getDeviceProperties(i)["name"].decode()
        findings.append(Finding(f"cuda:{i}", f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"))
    return findings


def _install(extra: str) -> str:
    return f'pip install ".[{extra}]" in the project\'s folder'


# ---- a small convolution, forward and backward ----


def self_test() -> list[Finding]:
    """One line for each kernel set that should work here."""
    from .backend import available, use

    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape, np.float32) for shape in ((3, 9, 8, 4), (3, 3, 4, 8), (8,), (3, 5, 4, 8))]
    expected = _convolve(use("cpu", "plain"), arrays)
    findings = []
    for device, sets in available().items():
        for kernels in sets:
            try:
                found = _convolve(use(device, kernels), arrays)
            except Exception as error:  # the report goes on with the other kernel sets
                findings.append(Finding(f"{device}, {kernels}", f"{type(error).__name__}: {error}", "See the lines above"))
                continue
            error = max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))
            mend = "" if error < 1e-3 else "This is a fault of minigrad: please report it with this whole output"
            findings.append(Finding(f"{device}, {kernels}", f"a convolution and its gradients differ by {error:.0e}", mend))
    return findings


def _convolve(k: Any, arrays: list[np.ndarray]) -> list[np.ndarray]:
    from .ops.conv import conv_geometry

    x, weight, bias, gy = (k.from_host(a) for a in arrays)
    geometry = conv_geometry((9, 8), (3, 3), 2, "same")
    y = k.conv2d(x, weight, bias, geometry)
    gx, gweight = k.conv2d_grad_input(gy, weight, geometry), k.conv2d_grad_weight(x, gy, geometry)
    return [k.to_host(a) for a in (y, gx, gweight)]


def main(argv: list[str] | None = None) -> int:
    """Print the report."""
    parser = argparse.ArgumentParser(prog="python -m minigrad.doctor", description=__doc__.partition("\n\n")[0])
    parser.parse_args(argv)
    findings = examine()
    width = max(len(f.what) for f in findings)
    for f in findings:
        print(f"{f.what:{width}}  {f.found}")
        if f.mend:
            print(f"{'':{width}}  -> {f.mend}")
    faults = sum(bool(f.mend) for f in findings)
    print("all is well" if not faults else f"{faults} fault{'s' * (faults > 1)}: follow the arrows, from the top")
    return 4 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
