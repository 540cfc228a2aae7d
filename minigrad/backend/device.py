"""What a backend is besides its kernels: an array library, its devices and memory, and how a step runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from . import memory

Array = Any
SHARDS = 8


class Device:
    """An array library and the devices it computes on.

    Args:
        xp: the module numpy or cupy.
    """

    kernels = "plain"
    threads = 1
    shards: int | None = SHARDS  # the parts into which the kernels cut a batch, if they do; None: one for each thread
    precision = "fp32"  # of convolutions of float32 arrays
    reason = ""  # why `use` chose this backend
    make: Callable[..., Any]  # makes a backend of the same kind in another process

    def __init__(self, xp: Any) -> None:
        self.xp = xp
        self.on_host = xp.__name__ == "numpy"

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles hold what was chosen, not the library and the threads."""
        kind = "cpu" if self.on_host else "cuda"
        return self.make, (kind, self.kernels, self.threads, self.precision, self.shards)

    def device_of(self, array: Array) -> str:
        """Where the array is: `"cpu"`, `"cuda:0"`, ..."""
        return "cpu" if self.on_host else f"cuda:{array.device.id}"

    def from_host(self, array: Array) -> Array:
        """A NumPy array as an array of this backend."""
        return array if self.on_host else self.xp.asarray(array)

    def to_host(self, array: Array) -> Array:
        """An array of this backend as a NumPy array. Waits for the device."""
        return array if self.on_host else array.get()

    def describe(self) -> str:
        """Device, kernels (and why these) and threads in one line."""
        device = "cpu" if self.on_host else f"cuda:{self.xp.cuda.Device().id}"
        return f"device {device}, kernels {self.kernels} ({self.reason}), threads {self.threads}"

    def prepare(self, dtype: Any) -> None:
        """Do now what the kernels for a dtype need once, such as compiling them. Plain kernels need nothing."""

    def free_memory(self) -> int | None:
        """Bytes that new arrays may take on the current device; None if unknown."""
        return memory.free_memory() if self.on_host else memory.free_memory_of_gpu(self.xp)

    def limit_memory(self, size: int) -> None:
        """Limit the memory of all arrays on the current device to `size` bytes. Does nothing on the host."""
        if not self.on_host:
            self.xp.get_default_memory_pool().set_limit(size=size)

    def session(self) -> AbstractContextManager[None]:
        """A context for many kernel calls in a row: the fast CPU kernels then set BLAS to one thread only once. The
        results are the same without it."""
        return nullcontext()

    def capture(self, step: Callable[..., Array]) -> Callable[..., Array]:
        """A faster way to call the step, a function of arrays only, again and again. Here it is the step itself; on a
        GPU cuda/capture.py records and replays it."""
        return step
