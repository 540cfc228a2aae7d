"""A strict double of `cupy.cuda.nccl` for the double of CuPy: its all-gather moves the bytes through MPI.

It takes raw addresses and checks that memory of the device lies there; that the data are bytes, and the stream is the
current one; and a capture of the stream writes it down, as all launches.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import strict_cupy


class NcclError(RuntimeError):
    """What CuPy raises for an error of NCCL."""


class NcclCommunicator:
    """Of ndev processes, one of which has this rank."""

    def __init__(self, ndev: int, commId: bytes, rank: int) -> None:
        if not isinstance(commId, bytes) or len(commId) != 128:
            raise TypeError(f"commId: expected 128 bytes, found {commId!r}")
        strict_cupy._refuse_in_a_capture("a new communicator")
        self._size, self._connected, self._world = ndev, False, None
        if ndev > 1:
            from mpi4py import MPI

            self._world = MPI.COMM_WORLD.Dup()
            if (self._world.size, self._world.rank) != (ndev, rank):
                raise NcclError("NCCL_ERROR_INVALID_ARGUMENT: invalid argument")
            everywhere = self._world.allgather((commId, strict_cupy._current))
            if len({number for number, _ in everywhere}) > 1:
                raise NcclError("NCCL_ERROR_INVALID_ARGUMENT: the processes have different numbers")
            if len({device for _, device in everywhere}) < ndev:
                raise NcclError("NCCL_ERROR_INVALID_USAGE: invalid usage")  # two ranks on one GPU

    def allGather(self, sendbuf: int, recvbuf: int, count: int, datatype: int, stream: int) -> None:
        if datatype != UINT8 or stream != strict_cupy._stream.ptr:
            raise NcclError(f"the double: expected bytes on the current stream, found {datatype} on {stream}")
        if not self._connected:
            strict_cupy._refuse_in_a_capture("the first call")
        self._connected = True
        (sent, mine), (received, everybody) = _memory(sendbuf, count), _memory(recvbuf, count * self._size)

        def move() -> None:
            if self._world is None:
                everybody[...] = mine
            else:
                self._world.Allgather(mine, everybody)

        strict_cupy._write(everybody)
        move()
        strict_cupy._order([sent], [received])
        strict_cupy._record("allGather", move)
        strict_cupy.counters.launches["allGather"] += 1


def _memory(address: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(the array that owns the memory, these bytes of it)."""
    for owner in strict_cupy._alive.values():
        first = address - owner.__array_interface__["data"][0]
        if first >= 0 and first + count <= owner.nbytes:
            flat = owner if owner.flags.c_contiguous else owner.T
            return owner, flat.reshape(-1).view(np.uint8)[first : first + count]
    raise NcclError(f"the double: {count} bytes at {address:#x} are no memory of the device")


UINT8 = 1


def module(available: bool = True) -> Any:
    """cupy.cuda.nccl; where the library is not installed, it has nothing but `available`."""
    if not available:
        return strict_cupy._Module("cupy.cuda.nccl", available=False)
    return strict_cupy._Module(
        "cupy.cuda.nccl",
        available=True,
        get_version=lambda: 22707,
        get_unique_id=lambda: bytes(range(128)),
        NcclCommunicator=NcclCommunicator,
        NcclError=NcclError,
        NCCL_UINT8=UINT8,
    )


def install(modules: Any = sys.modules) -> types.ModuleType:
    """`import cupy` and `import cupy.cuda.nccl` give the doubles."""
    vars(strict_cupy.cupy.cuda)["nccl"] = modules["cupy.cuda.nccl"] = module()
    modules["cupy"] = strict_cupy.cupy
    return strict_cupy.cupy
