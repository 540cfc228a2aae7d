"""Backends: which library computes, on which device, with which kernels.

A device is where an array is: `cpu` (NumPy) or `cuda`, `cuda:1`, ... (CuPy). A kernel set is how the work is done
there: `plain` is the readable specification (reference.py, with catalogue.py and chain.py, which add to it); the others
are faster and checked against it. Arrays choose the device: `backend_of(x).conv2d(x, ...)` runs where x is.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Real
from typing import Any

import numpy as np

from .chain import ChainBackend
from .cuda.driver import working_cupy
from .device import SHARDS
from .errors import DeviceError
from .reference import Backend

Array = Any  # numpy.ndarray or cupy.ndarray: array libraries have no common base class
KERNELS = {"cpu": ("numba", "numpy", "plain"), "cuda": ("cuda", "plain")}  # per device, in the order of `auto`
PRECISIONS = "fp32", "tf32", "tf32x3", "bf16"
# A decorator: overflow gives infinity, underflow 0 and undefined results NaN, whatever np.seterr says.
quietly = np.errstate(all="ignore")


_backends: dict[type, Backend] = {}  # array type -> the kernels that work on it
_default: Backend | None = None  # where new parameters and lists are put; None before the first use
_threads: int | None = None  # as set_num_threads was called
_pinned: ContextVar[Backend | None] = ContextVar("minigrad_pinned", default=None)  # that of the running training


def backend_of(*arrays: Array, what: str = "operation") -> Backend:
    """The kernels for these arrays.

    Raises:
        TypeError: they are on different devices (each is named), or one is not an array of a known library.
    """
    found = {kind: _lookup(x) for kind, x in {type(x): x for x in arrays}.items()}
    devices = [found[type(x)].device_of(x) for x in arrays]
    if len(set(devices)) > 1:
        places = ", ".join(f"input {i} {x.shape} on {d}" for i, (x, d) in enumerate(zip(arrays, devices, strict=True)))
        raise TypeError(f"{what}: inputs live on different devices: {places}")
    return found[type(arrays[0])]


def _lookup(array: Array) -> Backend:
    pinned_here = _pinned.get()
    if pinned_here is not None and type(array) is pinned_here.xp.ndarray:
        return pinned_here
    backend = _backends.get(type(array))
    if backend is None:
        if type(array) is np.ndarray:
            backend = _backends[np.ndarray] = _cpu_backend("auto", _threads)
            return backend
        if type(array).__module__.split(".")[0] != "cupy":
            raise TypeError(f"expected a NumPy or CuPy array, found {type(array).__name__}")
        backend = _backends[type(array)] = _cuda_backend("auto", importlib.import_module("cupy"))
    return backend


def as_array(data: Any) -> Array:
    """data as an array: arrays stay as they are; numbers and lists become float32 on the default device.

    Raises:
        TypeError: data holds anything but real numbers, or is masked.
    """
    if type(data) in _backends or type(data).__module__.split(".")[0] == "cupy":
        return data
    if isinstance(data, np.ma.MaskedArray):
        raise TypeError("expected an array without a mask; choose values for the masked elements, as in x.filled(0)")
    array = np.asarray(data)
    if isinstance(data, np.ndarray | np.floating) and array.dtype.kind in "biuf":
        return array
    wrong = "" if array.dtype.kind in "biuf" else array.dtype.name
    if array.dtype == object:  # numbers that no dtype holds, such as 2**70; or anything
        wrong = ", ".join(sorted({type(x).__name__ for x in array.flat if not isinstance(x, Real)}))
    if wrong:
        raise TypeError(f"expected an array or real numbers, found {wrong}; convert it, or choose a number for it")
    with np.errstate(all="ignore"):
        return default_backend().from_host(array.astype(np.float32))


def in_memory(x: Any) -> Any:
    """x, or a copy if it is a read-only array in a file, which is what joblib gives its worker processes."""
    return np.array(x) if isinstance(x, np.memmap) else x


def default_backend() -> Backend:
    """The kernels of the device chosen by `use`; by default the best for the CPU."""
    return _pinned.get() or _default or _lookup(np.empty(0))


@contextmanager
def pinned(backend: Backend) -> Iterator[None]:
    """Keep this backend in use inside the context, whatever other threads choose with `use` or `set_num_threads`: a
    training keeps the device, kernels, threads and precision with which it began."""
    token = _pinned.set(backend)
    try:
        yield
    finally:
        _pinned.reset(token)


def _check_not_pinned(what: str) -> None:
    if _pinned.get() is not None:
        raise RuntimeError(f"{what}: a training is running here and keeps its kernels and threads; call it before")


def use(
    device: str = "cpu",
    kernels: str = "auto",
    threads: int | None = None,
    precision: str = "fp32",
    shards: int | None = SHARDS,
) -> Backend:
    """Select the default device and its kernel set. Existing arrays on that device use the new kernels, too.

    Args:
        device: `cpu`, `cuda` or `cuda:<index>`.
        kernels: `auto` takes the best that is installed; on the CPU also `numba` (needs the extra `fast`), `numpy` or
            `plain`; on a GPU `cuda` or `plain`.
        threads: number of threads of the CPU kernels; None: as `set_num_threads` was last called.
        precision: `fp32`; or, with the kernels `cuda`, `tf32`: tensor cores compute the convolutions of float32 arrays
            (all but the smallest; see CudaBackend) and round their factors to 10 bits after the point; `tf32x3`, where
            three of their products keep 21 bits; or `bf16`, which keeps 7 bits, and what a chain of layers keeps for
            its gradients takes half the memory.
        shards: into how many parts, a power of two, the CPU kernels cut a batch. Results depend on it in their last
            digits, but not on the number of threads. None: one part for each thread, as in runs without shards.

    Returns:
        the backend; `describe()` says what was chosen and why.

    Raises:
        DeviceError: there is no such device, kernel set or precision here; the message says how to get it.
        RuntimeError: called from within a training, for example from a callback.
    """
    global _default
    _check_not_pinned("use")
    kind, index = _parse(device)
    of_gpu = [x for x in (kernels, precision) if kind == "cpu" and x in ("cuda", *PRECISIONS[1:])]
    needed = f"; {of_gpu[0]} needs a GPU (--device cuda)" if of_gpu else ""
    if kernels != "auto" and kernels not in KERNELS[kind]:
        raise DeviceError(f"kernels {kernels!r} on {kind}: choose auto, {', '.join(KERNELS[kind])}{needed}")
    known = PRECISIONS if kind == "cuda" and kernels != "plain" else PRECISIONS[:1]
    if precision not in known:
        raise DeviceError(f"precision {precision!r}: {kind} with kernels {kernels} has {', '.join(known)} only{needed}")
    if shards is not None and (shards < 1 or shards & (shards - 1)):
        raise DeviceError(f"shards is {shards} but must be a power of two: 1, 2, 4, 8 ...")
    if kind == "cuda":
        cupy = working_cupy(index)
        cupy.cuda.Device(index).use()
        _default = _cuda_backend(kernels, cupy, precision)
        _default.shards = shards  # recorded, in case the run goes on with CPU kernels
    else:
        _default = _cpu_backend(kernels, _threads if threads is None else threads, shards)
    _backends[_default.xp.ndarray] = _default
    return _default


def set_num_threads(threads: int | None) -> None:
    """Set the number of threads that the CPU kernels use; None: all cores that this process may use.

    Results do not depend on it, nor on timing. The `plain` kernels have no threads of their own. The BLAS library's own
    setting is changed only while a kernel or a training step runs, because other code may use it.

    Raises:
        DeviceError: threads is below 1. RuntimeError: called from within a training, for example from a callback.
    """
    global _default, _threads
    _check_not_pinned("set_num_threads")
    before = _lookup(np.empty(0))
    # a new one: a training may use the old one
    after = _backends[np.ndarray] = _cpu_backend(before.kernels, threads, before.shards)
    after.reason, _threads = before.reason, threads
    _default = after if _default is before else _default


def get_num_threads() -> int:
    """The number of threads of the CPU kernels."""
    return _lookup(np.empty(0)).threads


def again(kind: str, kernels: str, threads: int, precision: str, shards: int | None = None) -> Backend:
    """The backend that a pickle holds. It does not become the default of this process."""
    return (
        _cpu_backend(kernels, threads, shards) if kind == "cpu" else _cuda_backend(kernels, working_cupy(0), precision)
    )


def _cpu_backend(kernels: str, threads: int | None, shards: int | None = SHARDS) -> Backend:
    if threads is not None and threads < 1:
        raise DeviceError(f"threads is {threads} but must be at least 1")
    backend, reason = ChainBackend(np), "asked for"
    if kernels in ("auto", "numba"):
        try:
            from .cpu.numba_kernels import NumbaBackend

            backend, reason = NumbaBackend(threads, shards), "asked for" if kernels == "numba" else "the fastest"
        except ImportError as error:
            if kernels == "numba":
                raise DeviceError(
                    f'kernels numba need Numba: pip install ".[fast]" in the project\'s folder ({error})'
                ) from error
            kernels, reason = "numpy", f"the fastest without Numba, the extra fast: {error}"
    if kernels == "numpy":
        from .cpu.numpy_kernels import NumpyBackend

        backend = NumpyBackend(threads, shards)
    backend.reason, backend.make, backend.shards = reason, again, shards
    return backend


def _cuda_backend(kernels: str, cupy: Any, precision: str = "fp32") -> Backend:
    if kernels == "plain":
        backend = ChainBackend(cupy)
    else:
        from .cuda.kernels import CudaBackend

        backend = CudaBackend(cupy, precision)
    backend.reason, backend.make = "the fastest" if kernels == "auto" else "asked for", again
    return backend


def _parse(device: str) -> tuple[str, int]:
    """("cuda", 1) of "cuda:1"."""
    kind, colon, index = device.partition(":")
    if kind not in KERNELS or (colon and not (kind == "cuda" and index.isdecimal())):
        raise DeviceError(f"device {device!r} is not known; choose cpu, cuda or cuda:<index>")
    return kind, int(index or 0)


def to_device(array: Array, device: str) -> Array:
    """A copy of the array on another device; the array itself if it is there already.

    Raises:
        DeviceError: the device cannot be used here.
    """
    kind, index = _parse(device)
    host = array
    if type(array) is not np.ndarray:  # _lookup might compile kernels, which a move does not need
        source = _lookup(array)
        if source.device_of(array) == f"{kind}:{index}":
            return array
        host = source.to_host(array)
    if kind == "cpu":
        return host
    cupy = working_cupy(index)
    with cupy.cuda.Device(index):
        return _lookup(cupy.empty(0)).from_host(host)
