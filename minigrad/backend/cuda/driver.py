"""What GPU this machine has: driver, CuPy's wheels and devices, each with what mends it."""

from __future__ import annotations

import ctypes
import importlib
import sys
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DeviceError


class Finding(NamedTuple):
    """One line of a report; `mend` says what to do, and is empty where all is well."""

    what: str
    found: str
    mend: str = ""


def advice() -> str:
    """The first problem of the GPU and its fix; an empty string if there is no problem."""
    return next((f"{f.what}: {f.found}. {f.mend}" for f in gpu() if f.mend), "")


def working_cupy(index: int) -> Any:
    """The cupy module, after it was found to reach device `index`; else a DeviceError says how to get there."""
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        mend = advice() or (
            "It is not installed. In the project's folder run "
            'pip install ".[cuda13]" (driver 580 or newer) or pip install ".[cuda12]" (driver 525 or newer), never both'
        )
        raise DeviceError(f"device cuda needs CuPy. {mend}; or choose device cpu ({error})") from error
    if not cupy.cuda.is_available():
        mend = advice() or (
            "Check with nvidia-smi that a driver runs, and that the extra fits it: cuda13 needs driver 580 or newer, "
            "cuda12 driver 525 or newer"
        )
        raise DeviceError(f"device cuda: CuPy is installed but finds no usable GPU. {mend}; or choose device cpu")
    count = cupy.cuda.runtime.getDeviceCount()
    if index >= count:
        raise DeviceError(f"device cuda:{index} does not exist; this machine has {count} (cuda:0 to cuda:{count - 1})")
    return cupy


def gpu() -> list[Finding]:
    """Driver, CuPy and devices. A machine without driver and CuPy has no fault: it is one without a GPU."""
    wheels = cupy_wheels()
    version, fault = driver_version()
    if not version:
        if not wheels:
            return [Finding("GPU", f"none that can be used ({fault}; no CuPy)")]
        mend = "Install NVIDIA's driver, 525 or newer; start a container with access to the GPU (docker: --gpus all)"
        return [Finding("driver", fault, mend)]
    driver = Finding("driver", f"{release()} for CUDA {version[0]}.{version[1]}")
    if version < (12, 0):
        return [driver._replace(mend="Install a newer driver: 525 for the extra cuda12, 580 for cuda13")]
    fitting = install("cuda13" if version >= (13, 0) else "cuda12")
    names = " ".join(wheels)
    if not wheels:
        return [driver, Finding("CuPy", "not installed", fitting)]
    if len(wheels) > 1:
        return [driver, Finding("CuPy", f"{names} conflict with each other", f"pip uninstall -y {names}; {fitting}")]
    if names == "cupy-cuda13x" and version < (13, 0):
        return [driver, Finding("CuPy", f"{names} needs driver 580", f"pip uninstall -y {names}; {fitting}")]
    return [driver, *_devices(names)]


def cupy_wheels() -> list[str]:
    """The installed distributions that bring a module `cupy`."""
    from importlib.metadata import distributions  # slow to import, and seldom needed

    names = {d.metadata["Name"].lower() for d in distributions() if d.metadata["Name"]}
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


def install(extra: str) -> str:
    """The command for an extra."""
    return f'pip install ".[{extra}]" in the project\'s folder'
