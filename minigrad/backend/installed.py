"""Which devices and kernel sets work on this machine."""

from __future__ import annotations

import importlib

from . import KERNELS


def available() -> dict[str, tuple[str, ...]]:
    """The devices that work here and their kernel sets, the best first, such as `{"cpu": ("numpy", "plain")}`."""
    found = {"cpu": KERNELS["cpu"]}
    try:
        importlib.import_module("numba")
    except ImportError:
        found["cpu"] = tuple(kernels for kernels in KERNELS["cpu"] if kernels != "numba")
    try:
        found["cuda"] = KERNELS["cuda"] if importlib.import_module("cupy").cuda.is_available() else ()
    except ImportError:
        found["cuda"] = ()
    return {device: kernels for device, kernels in found.items() if kernels}
