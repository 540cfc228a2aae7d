"""NCCL, NVIDIA's library that moves bytes between GPUs: an all-gather on the current stream, which can be captured.

It never adds here: its own sums may differ from call to call. With an all-gather, whoever wants a sum adds by itself.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

from ..errors import DeviceError
from .driver import cupy_wheels, install

Array = Any


def library() -> Any:
    """CuPy's module for NCCL, whose `available` says whether the library is installed."""
    with warnings.catch_warnings(action="ignore"):  # of CuPy, that it is not
        return import_module("cupy.cuda.nccl")


def extra() -> str:
    """The command that installs the NCCL that fits CuPy."""
    return install("nccl12" if cupy_wheels() == ["cupy-cuda12x"] else "nccl13")


class Nccl:
    """The current GPU and those of the other processes, connected.

    Args:
        first: gives all processes what a function returns in the first one.

    Raises:
        DeviceError: NCCL is not installed, or cannot connect them.
    """

    def __init__(self, xp: Any, rank: int, size: int, first: Callable[[Callable[[], Any]], Any]) -> None:
        self.xp, self.size, nccl = xp, size, library()
        if not nccl.available:
            raise DeviceError(f"{size} processes with a GPU each need NCCL: {extra()}")
        try:
            self.communicator = nccl.NcclCommunicator(size, first(nccl.get_unique_id), rank)
            self.bytes = nccl.NCCL_UINT8
            # Its destructor would wait for the CUDA graphs that hold it, which may be freed after it: it never runs.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.communicator))
            self.gather(xp.zeros(1, dtype="float32"))  # connects them, which no capture may do
        except nccl.NcclError as error:
            raise DeviceError(f"NCCL cannot connect the GPUs of {size} processes: {error}") from error

    def gather(self, x: Array) -> Array:
        """(size, ...): x of every process."""
        x = self.xp.ascontiguousarray(x)
        found = self.xp.empty((self.size, *x.shape), dtype=x.dtype)
        stream = self.xp.cuda.get_current_stream().ptr
        self.communicator.allGather(x.data.ptr, found.data.ptr, x.nbytes, self.bytes, stream)
        return found
