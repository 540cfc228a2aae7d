"""Check what minigrad can use on this machine, and say how to fix what does not work: `minigrad doctor`.

It checks the CPU (cores, BLAS, kernel sets) and the GPU (driver, CuPy's wheels, devices), runs a small convolution with
every kernel set that works here, and compares it with the plain kernels. Exit status: 0, or 4 if an installed part does
not work.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import platform
import sys
from typing import Any

import numpy as np

from .backend.cuda.driver import Finding, gpu, install
from .backend.cuda.nccl import extra, library
from .backend.errors import DeviceError
from .backend.installed import available
from .distributed import told, world


def examine() -> list[Finding]:
    """Everything, in the order in which it should be mended."""
    return [*cpu(), *gpu(), *nccl(), *self_test()]


# ---- the CPU ----


def cpu() -> list[Finding]:
    """Python, NumPy and its BLAS, cores, Numba and MPI."""
    from .backend.cpu.threads import blas_libraries, usable_cores

    blas = ", ".join(f"{b.internal_api} {b.version} on {b.num_threads} threads" for b in blas_libraries())
    numba = f"not installed; it makes training twice as fast: {install('fast')}"
    if importlib.util.find_spec("numba"):
        numba = importlib.metadata.version("numba")
    return [
        Finding("Python", f"{platform.python_version()}, NumPy {np.__version__}"),
        Finding("processor", f"{platform.machine()}, {usable_cores()} cores for this process"),
        Finding("BLAS", blas or "no known library"),
        Finding("Numba", numba),
        mpi(),
    ]


def mpi() -> Finding:
    """The library that connects several processes, and whether it finds those that were started."""
    if not importlib.util.find_spec("mpi4py"):
        return Finding("MPI", f"not installed; it connects several processes of a training: {install('mpi')}")
    try:
        from mpi4py import MPI

        library = " ".join(MPI.Get_library_version().partition("\n")[0].split()).strip("\0")
        world()
    except (DeviceError, ImportError, RuntimeError) as fault:
        mend = f"Use one mpirun and one MPI library: {install('mpi')} brings both"
        return Finding("MPI", str(fault), "Start as many with mpirun -n" if "power of two" in str(fault) else mend)
    return Finding("MPI", f"{library}, {MPI.COMM_WORLD.size} process{'es' * (MPI.COMM_WORLD.size > 1)}")


def nccl() -> list[Finding]:
    """What connects the GPUs of several processes; nothing where there is no GPU."""
    if "cuda" not in available():
        return []
    if not (found := library()).available:
        return [Finding("NCCL", f"not installed; it connects several GPUs in a training: {extra()}")]
    number = found.get_version()
    return [Finding("NCCL", f"{number // 10000}.{number // 100 % 100}.{number % 100}")]


# ---- a small convolution, forward and backward ----


def self_test() -> list[Finding]:
    """One line for each kernel set that should work here."""
    from .backend import use

    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape, np.float32) for shape in ((3, 9, 8, 4), (3, 3, 4, 8), (8,), (3, 5, 4, 8))]
    expected = _convolve(use("cpu", "plain"), arrays)
    findings = []
    for device, sets in available().items():
        for kernels in sets:
            what = f"{device}, {kernels}"
            try:
                found = _convolve(use(device, kernels), arrays)
            except Exception as fault:  # the report goes on with the other kernel sets
                findings.append(Finding(what, f"{type(fault).__name__}: {fault}", "Fix the problems above first"))
                continue
            error = max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))
            mend = "" if error < 1e-3 else "This is a fault of minigrad: please report it with this whole output"
            findings.append(Finding(what, f"a convolution and its gradients differ by {error:.0e}", mend))
    return findings


def _convolve(k: Any, arrays: list[np.ndarray]) -> list[np.ndarray]:
    from .backend.geometry import conv_geometry

    x, weight, bias, gy = (k.from_host(a) for a in arrays)
    geometry = conv_geometry((9, 8), (3, 3), 2, "same")
    y = k.conv2d(x, weight, bias, geometry)
    gx, gweight = k.conv2d_grad_input(gy, weight, geometry), k.conv2d_grad_weight(x, gy, geometry)
    return [k.to_host(a) for a in (y, gx, gweight)]


def main(argv: list[str] | None = None) -> int:
    """Print the report."""
    parser = argparse.ArgumentParser(prog="minigrad doctor", description=__doc__.partition("\n\n")[0])
    parser.parse_args(argv)
    if told("RANK"):  # the first process speaks for all
        mpi()
        return 0
    findings = examine()
    width = max(len(f.what) for f in findings)
    for f in findings:
        print(f"{f.what:{width}}  {f.found}")
        if f.mend:
            print(f"{'':{width}}  -> {f.mend}")
    faults = sum(bool(f.mend) for f in findings)
    print("no problems found" if not faults else f"{faults} problem{'s' * (faults > 1)}: follow the arrows, top first")
    return 4 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
