"""A strict double of CuPy: NumPy inside, with CuPy's refusals outside, so that CUDA code paths run without a GPU.

`sys.modules["cupy"] = strict_cupy.cupy` (the fixture `cupy_double` does that), and `minigrad.use(device="cuda")`
finds it. What CuPy 14 refuses raises here too; so do things that CuPy allows but that wait or copy unseen:

- NumPy arrays and lists are no operands and no arguments; only `array`, `asarray` and `ascontiguousarray` take
  host data, and copy it. NumPy scalars are scalars, and as in CuPy np.float64 makes float32 arrays float64.
- `np.asarray(x)`, `np.exp(x)`, `np.sum(x)` raise TypeError. (CuPy runs the last two on the device.)
- Index lists and NumPy index arrays, NumPy values in `x[...] = value`: refused. (CuPy copies some of them unseen.)
- Only what stands in this file exists; the rest is an AttributeError, `cupy.random` among it. test_gpu_surface.py
  checks that all of it exists in the real CuPy with the same parameters.
- Indexing and reductions give 0-d arrays, never scalars. `empty` is filled with NaN (integers: 77) to show reads
  of memory that was never written. Repeated indices in an assignment, undefined on a GPU, raise.
- Floating-point errors never warn: a GPU has no traps.

`counters` counts what costs time on a GPU. `x.get()`, `x.item()`, `float(x)`, `bool(x)`, boolean masks and
`nonzero` work but are counted as synchronisations.

While a stream captures, what waits, copies from or to the host, or calls cuBLAS raises; what is launched is written
down and undone again at the end, and the graph's `launch` does it. So whatever a step takes from anywhere but its
arrays stays as it was, as on a GPU.

Streams run beside each other. Each launch happens at once here, but it is an error if it reads what another stream
wrote, or writes what another stream wrote or read, and nothing puts the one after the other: an event that was recorded
after the first and waited for before the second, or a wait of the host in between.
"""

from __future__ import annotations

import builtins
import functools
import inspect
import itertools
import operator
import sys
import time
import types
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import cuda_on_cpu
import numpy as np

SCALARS = (bool, int, float, complex, np.generic)


@dataclass
class Counters:
    """What happened since the last `reset`."""

    launches: Counter = field(default_factory=Counter)  # kernel launches by function; views launch nothing
    to_device: int = 0  # copies from the host
    to_host: int = 0
    transferred_bytes: int = 0
    synchronisations: int = 0  # the host waited for the device
    bytes: int = 0  # what the launched kernels read and wrote
    peak_memory: int = 0  # the most bytes that arrays held at a time
    # float64 results (or arithmetic in float64) of inputs that are not all float64, by (place in the code, function)
    float64: Counter = field(default_factory=Counter)


counters = Counters()
_devices = 1
_current = 0


def reset(devices: int | None = None) -> Counters:
    """Set the counters to zero, and the number of devices if it is given; returns the counters."""
    global _devices, _current, _launched
    counters.__init__()  # type: ignore[misc]  # in place: tests hold this object
    _launched = None
    _before.clear()
    _captured.clear()
    MemoryPool.limit = 0
    if devices is not None:
        _devices, _current = devices, 0
    return counters


# ---- capturing ----

CUBLAS = ("matmul", "dot", "tensordot", "einsum")
_launched: list[Callable[[], object]] | None = None  # since a stream began to capture
_before: list[tuple[np.ndarray, np.ndarray]] = []  # what launches wrote on, and what it was
_own_memory = False  # inside using_allocator


def _write(*arrays: object) -> None:
    """Call this before a launch writes on arrays that were there before."""
    if _launched is not None:
        _before.extend((x, x.copy()) for x in arrays if isinstance(x, np.ndarray))


def _record(name: str, again: Callable[[], object]) -> None:
    """A launch, and what does it again on the same memory."""
    if _launched is not None:
        if name in CUBLAS:
            raise NotImplementedError(f"{name}: calling cuBLAS API during stream capture is currently unsupported")
        _launched.append(again)


def _refuse_in_a_capture(what: str) -> None:
    if _launched is not None:
        raise RuntimeError(f"cudaErrorStreamCaptureUnsupported: {what}")


class Graph:
    """What a stream captured."""

    def __init__(self, launches: list[Callable[[], object]], work: list[tuple[list, list]]) -> None:
        self._launches, self._work = launches, work

    def launch(self, stream: Stream | None = None) -> None:
        _refuse_in_a_capture("a graph in a graph")
        with np.errstate(all="ignore"):
            for again in self._launches:
                again()
        for reads, writes in self._work:
            _order(reads, writes, stream)
        counters.launches["graph"] += 1


# ---- what happens before what ----

# A moment of a stream is how many launches it has had. What a stream, an event or the host has seen are the moments,
# by the number of the stream, that lie before whatever it does next.
Moments = dict[int, int]
_latest: Moments = {}
_seen_by_host: Moments = {}
_captured: list[tuple[list[np.ndarray], list[np.ndarray]]] = []  # what the launches of a capture read and write


@dataclass
class _Work:
    """The last write of an array's memory, and since then the last read of each stream."""

    write: Moments = field(default_factory=dict)
    reads: Moments = field(default_factory=dict)


_work: dict[int, _Work] = {}  # of the arrays that are alive, by the id of what owns their memory


def _merge(seen: Moments, others: Moments) -> None:
    seen.update({stream: builtins.max(moment, seen.get(stream, 0)) for stream, moment in others.items()})


def _order(reads: list, writes: list, stream: Stream | None = None) -> None:
    """One launch on the stream, the current one by default. What is no array is left out.

    Raises:
        RuntimeError: nothing orders it after what another stream does with the same memory.
    """
    reads, writes = ([_owner(x) for x in arrays if isinstance(x, np.ndarray)] for arrays in (reads, writes))
    if _launched is not None:
        _captured.append((reads, writes))
        return
    stream = stream or _stream
    _merge(stream._seen, _seen_by_host)
    for what, arrays in (("read", reads), ("write", writes)):
        for work in (_work[id(x)] for x in arrays if id(x) in _work):
            for other, moment in [*work.write.items(), *(work.reads.items() if what == "write" else ())]:
                if stream._seen.get(other, 0) < moment:
                    raise RuntimeError(
                        f"the double: {_place()} {what}s what another stream uses: nothing orders the two"
                    )
    _latest[stream._number] = now = _latest.get(stream._number, 0) + 1
    stream._seen[stream._number] = now
    for x in reads:
        if id(x) in _work:  # else it is no array of this device, but an argument on the way there
            _work[id(x)].reads[stream._number] = now
    for x in writes:
        _hold(x)
        _work[id(x)] = _Work({stream._number: now})


# ---- how arguments come in and results go out ----


def _place() -> str:
    """The function outside this file (and NumPy) that called, as `module.function`."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return f"{frame.f_globals.get('__name__', '').split('.')[-1]}.{frame.f_code.co_name}"


class OutOfMemoryError(MemoryError):
    """CuPy's is a MemoryError too."""


_held: dict[int, int] = {}  # bytes of the arrays that are alive, by the id of what owns their memory


def _owner(host: np.ndarray) -> np.ndarray:
    """The array that owns the memory."""
    while isinstance(host.base, np.ndarray):
        host = host.base
    return host


def _hold(host: np.ndarray) -> None:
    """Count the array's memory until nothing uses it any more."""
    host = _owner(host)
    if id(host) not in _held:
        used = builtins.sum(_held.values())
        if MemoryPool.limit and used + host.nbytes > MemoryPool.limit:
            raise OutOfMemoryError(
                f"Out of memory allocating {host.nbytes:,} bytes (allocated so far: {used:,} bytes, limit set to: "
                f"{MemoryPool.limit:,} bytes)."
            )
        _held[id(host)] = host.nbytes
        for table in (_held, _work):
            weakref.finalize(host, table.pop, id(host), None).atexit = False
        counters.peak_memory = builtins.max(counters.peak_memory, builtins.sum(_held.values()))


def _wrap(host: np.ndarray, device: int | None = None) -> ndarray:
    x = object.__new__(ndarray)
    x._host = np.asarray(host)
    _hold(x._host)
    if x._host.dtype.kind not in "biufc":
        raise ValueError(f"Unsupported dtype {x._host.dtype}")
    x._device = _current if device is None else device
    return x


def _operand(value: object, what: str, scalars: bool = True) -> object:
    """A device array's inside, or a scalar; TypeError for everything else, as in CuPy."""
    if isinstance(value, ndarray):
        return value._host
    if scalars and isinstance(value, SCALARS):
        return value
    raise TypeError(f"{what}: Unsupported type {type(value)}")


def _refuse_host_arrays(value: object, what: str) -> object:
    """For options such as axis and shape: no array may be among them."""
    for part in value if isinstance(value, tuple | list) else [value]:
        if isinstance(part, np.ndarray | ndarray):
            raise TypeError(f"{what}: Unsupported type {type(part)}")
    return value


def _same_device(what: str, arrays: list[ndarray]) -> int | None:
    devices = {x._device for x in arrays}
    if len(devices) > 1:
        raise ValueError(f"{what}: arrays are on different devices: {sorted(devices)}")
    return devices.pop() if devices else None


def _count(name: str, inputs: list, outputs: list[np.ndarray], *, computes_in: object = None) -> None:
    """One launch that reads `inputs` (arrays and scalars) and writes `outputs`."""
    counters.launches[name] += 1
    arrays = [x for x in inputs if isinstance(x, np.ndarray)]
    counters.bytes += builtins.sum(x.nbytes for x in arrays) + builtins.sum(y.nbytes for y in outputs)
    floats = [x for x in arrays if x.dtype.kind == "f"]
    pure = floats and builtins.all(x.dtype == "float64" for x in floats)
    if not pure and (computes_in == "float64" or builtins.any(y.dtype == "float64" for y in outputs)):
        counters.float64[_place(), name] += 1
    _order(inputs, outputs)


def _synchronise(to_host: int = 0, seen: Moments | None = None) -> None:
    """The host waits for what is seen there, or else for the current stream."""
    _refuse_in_a_capture("the host waits for the device")
    _merge(_seen_by_host, _stream._seen if seen is None else seen)
    counters.synchronisations += 1
    if to_host:
        counters.to_host += 1
        counters.transferred_bytes += to_host


def _device_function(function=None, *, views=False):
    """A function of CuPy from its body on NumPy arrays.

    The annotations say what an argument may be: `ndarray` a device array, `Operand` a device array or scalar,
    `Arrays` a list or tuple of device arrays; what has none is an option and no array. A result that is a view
    of an argument is not a launch (with views=True).
    """
    if function is None:
        return functools.partial(_device_function, views=views)
    signature = inspect.signature(function)
    name = function.__name__.lstrip("_")

    @functools.wraps(function)
    def call(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)  # TypeError for what CuPy's function does not take
        arrays: list[ndarray] = []
        host = {}
        for key, value in bound.arguments.items():
            kind = signature.parameters[key].annotation
            if kind == "Arrays":
                if not isinstance(value, tuple | list):
                    raise TypeError(f"{name}: Only sequences are supported, found {type(value)}")
                arrays += [x for x in value if isinstance(x, ndarray)]
                host[key] = [_operand(x, name, scalars=False) for x in value]
            elif kind in ("ndarray", "Operand") or (kind == "Optional" and value is not None):
                host[key] = _operand(value, name, scalars=kind == "Operand")
                arrays += [value] if isinstance(value, ndarray) else []
            elif signature.parameters[key].kind is inspect.Parameter.VAR_POSITIONAL:
                host[key] = tuple(_refuse_host_arrays(v, name) for v in value)
            else:
                host[key] = _refuse_host_arrays(value, name)
        device = _same_device(name, arrays)
        bound.arguments = host
        out = bound.arguments.get("dst" if name == "copyto" else "out")
        _write(out)
        with np.errstate(all="ignore"):
            result = np.asarray(function(*bound.args, **bound.kwargs))
        inputs = [x._host for x in arrays]
        if not (views and builtins.any(np.may_share_memory(result, x) for x in inputs)):
            _count(name, inputs, [result])
            _record(name, lambda: np.copyto(result, function(*bound.args, **bound.kwargs)))
        if out is not None:
            return next(x for x in arrays if x._host is out)
        return _wrap(result, device)

    return call


class ufunc:
    """An elementwise function; `out`, `dtype` and `casting` are its only options."""

    PARAMETERS = ("out", "dtype", "casting")

    def __init__(self, name: str) -> None:
        self.__name__, self._numpy = name, getattr(np, name)
        self.nin, self.nout = self._numpy.nin, self._numpy.nout

    def __call__(self, *args, out=None, dtype=None, casting="same_kind"):
        name = self.__name__
        if len(args) == self.nin + 1 and out is None:
            *args, out = args
        if len(args) != self.nin:
            raise TypeError(f"Wrong number of arguments for {name}: {len(args)}")
        operands = [_operand(x, name) for x in args]
        if out is not None and not isinstance(out, ndarray):
            raise TypeError(f"{name}: return arrays must be of type cupy.ndarray, found {type(out)}")
        given = [x for x in (*args, out) if isinstance(x, ndarray)]
        device = _same_device(name, given)
        options = {"out": None if out is None else out._host, "dtype": dtype, "casting": casting}
        _write(options["out"])
        if name == "power" and isinstance(operands[1], float):  # C's pow, as on a GPU: NumPy takes a root for 0.5
            operands[1] = np.full_like(operands[0], operands[1])
        with np.errstate(all="ignore"):
            result = np.asarray(self._numpy(*operands, **options))
            floats = [x for x in operands if not isinstance(x, int)] or operands
            inner = np.result_type(*floats) if dtype is None and given else dtype
        _count(name, operands, [result], computes_in=inner)
        _record(name, lambda: np.copyto(result, self._numpy(*operands, **options)))
        return out if out is not None else _wrap(result, device)

    def __repr__(self) -> str:
        return f"<ufunc 'cupy_{self.__name__}'>"


UFUNC_NAMES = """
    add subtract multiply divide true_divide floor_divide remainder fmod power negative absolute sign
    square sqrt reciprocal exp expm1 exp2 log log1p log2 logaddexp sin cos tanh arctan2
    maximum minimum fmax fmin floor ceil trunc rint isfinite isnan isinf
    greater greater_equal less less_equal equal not_equal logical_and logical_or logical_not logical_xor
    bitwise_and bitwise_or bitwise_xor invert left_shift right_shift
"""
UFUNCS = {name: ufunc(name) for name in UFUNC_NAMES.split()}
UFUNCS["abs"] = UFUNCS["absolute"]


def _binary(name: str, swapped: bool = False, in_place: bool = False):
    def method(self, other):
        if in_place:
            return function(self, other, out=self)
        if getattr(other, "__array_ufunc__", self) is None:  # NEP 13: the other's reflected method decides
            return NotImplemented
        return function(other, self) if swapped else function(self, other)

    function = UFUNCS[name]
    return method


# ---- the array ----


@dataclass(frozen=True)
class _Pointer:
    ptr: int


@dataclass(frozen=True)
class _Flags:
    c_contiguous: bool
    f_contiguous: bool
    owndata: bool


class ndarray:
    """A device array. `_host` holds its values; nothing outside this file may look at it."""

    __slots__ = ("__weakref__", "_device", "_host")
    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, shape, dtype=float, memptr=None, strides=None, order="C") -> None:
        if memptr is not None or strides is not None:
            raise NotImplementedError("the double makes arrays of its own memory only")
        x = _Functions.empty(shape, dtype, order)
        self._host, self._device = x._host, x._device

    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    strides = property(lambda self: self._host.strides)
    T = property(lambda self: _wrap(self._host.T, self._device))
    device = property(lambda self: Device(self._device))
    data = property(lambda self: _Pointer(self._host.__array_interface__["data"][0]))

    @property
    def flags(self):
        flags = self._host.flags
        return _Flags(flags.c_contiguous, flags.f_contiguous, flags.owndata)

    # -- to the host: allowed, counted --

    def get(self, stream=None, order="C", out=None, blocking=True):
        _order([self._host], [], stream)
        _synchronise(self.nbytes, stream and stream._seen)
        host = self._host.copy(order=order)
        if out is None:
            return host
        out[...] = host
        return out

    def item(self):
        _order([self._host], [])
        _synchronise(to_host=self.itemsize)
        return self._host.item()

    def tolist(self):
        return self.get().tolist()

    def __bool__(self) -> bool:
        if self.size != 1:
            raise ValueError("The truth value of an array with more than one element is ambiguous.")
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        return operator.index(self.item())

    def __repr__(self) -> str:
        return repr(self.get())

    __str__ = __repr__

    # -- refused --

    def __array__(self, dtype=None, copy=None):
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __array_function__(self, function, kinds, args, kwargs):
        raise TypeError(f"NumPy's {function.__name__} of a cupy.ndarray; use cupy.{function.__name__}")

    def __array_ufunc__(self, function, method, *inputs, **kwargs):
        # `np.float32(2) * x` comes here too, and is arithmetic with a scalar
        scalar = len(inputs) == 2 and isinstance(inputs[0], np.generic) and isinstance(inputs[1], ndarray)
        if method != "__call__" or kwargs or not scalar:
            raise TypeError(f"NumPy's {function.__name__} of a cupy.ndarray; Unsupported type {type(inputs[0])}")
        return UFUNCS[function.__name__](*inputs)

    # -- indexing --

    def _key(self, key: object) -> tuple[tuple, bool, int]:
        """(key for NumPy, whether arrays are in it, on how many bytes the host waits)."""
        parts = key if isinstance(key, tuple) else (key,)
        host: list = []
        advanced, waits = False, 0
        for part in parts:
            if isinstance(part, ndarray):
                _same_device("index", [self, part])
                if part.dtype.kind not in "biu":
                    raise IndexError("arrays used as indices must be of integer or boolean type")
                advanced = True
                waits += part.nbytes if part.dtype.kind == "b" else 0
                host.append(part._host)
            elif isinstance(part, slice | int | np.integer | type(None) | type(...)) and not isinstance(part, bool):
                host.append(part)
            else:
                raise TypeError(f"index: Unsupported type {type(part)}: an implicit transfer")
        return tuple(host), advanced, waits

    def __getitem__(self, key):
        host, advanced, waits = self._key(key)
        if waits:
            _synchronise()
        if not advanced:
            host = host if builtins.any(part is Ellipsis for part in host) else (*host, Ellipsis)  # 0-d stays a view
            return _wrap(self._host[host], self._device)
        result = np.asarray(self._host[host])
        _order([self._host, *host], [])
        _count("getitem", [result], [result])
        _record("getitem", lambda: np.copyto(result, self._host[host]))
        return _wrap(result, self._device)

    def __setitem__(self, key, value) -> None:
        host, advanced, waits = self._key(key)
        if waits and not isinstance(value, SCALARS):  # a scalar is written under a mask without counting its elements
            _synchronise()
        values = _operand(value, "setitem")
        if isinstance(value, ndarray):
            _same_device("setitem", [self, value])
        if not advanced:
            target = self._host[host if builtins.any(part is Ellipsis for part in host) else (*host, Ellipsis)]
            same = isinstance(values, np.ndarray) and (
                values.__array_interface__["data"] == target.__array_interface__["data"]
                and (values.shape, values.strides, values.dtype) == (target.shape, target.strides, target.dtype)
            )
            if same:  # the end of `x[...] += y`: no launch in CuPy either
                return
        else:
            integers = [part for part in host if isinstance(part, np.ndarray) and part.dtype.kind != "b"]
            written = np.zeros(self.shape, dtype=np.int64)
            np.add.at(written, host, 1)
            if integers and written.max(initial=0) > 1:
                raise IndexError("setitem: an index occurs twice; which value stays is undefined on a GPU")
        _write(self._host)
        _order([values, *host], [self._host])
        with np.errstate(all="ignore"):
            self._host[host] = values
        _record("setitem", lambda: self._host.__setitem__(host, values))
        counters.launches["setitem"] += 1
        counters.bytes += 2 * values.nbytes if isinstance(values, np.ndarray) else 0

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self):
        if self.ndim == 0:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    # -- methods --

    def astype(self, dtype, order="K", casting=None, subok=None, copy=True):
        if not copy and self.dtype == dtype:
            return self
        result = self._host.astype(dtype, order=order, casting=casting or "unsafe")
        _count("astype", [self._host], [result])
        _record("astype", lambda: np.copyto(result, self._host, casting="unsafe"))
        return _wrap(result, self._device)

    def reshape(self, *shape, order="C", copy=None):
        shape = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
        return _Functions.reshape(self, shape, order)

    def transpose(self, *axes):
        axes = axes[0] if len(axes) == 1 and (axes[0] is None or isinstance(axes[0], tuple | list)) else axes
        return _Functions.transpose(self, axes or None)

    def copy(self, order="C"):
        return _Functions.copy(self, order)

    def flatten(self, order="C"):
        return _Functions.copy(self, order).reshape(-1, order=order)

    def ravel(self, order="C"):
        return _Functions.ravel(self, order)

    def swapaxes(self, axis1, axis2):
        return _Functions.swapaxes(self, axis1, axis2)

    def squeeze(self, axis=None):
        return _Functions.squeeze(self, axis)

    def view(self, dtype=None, type=None):
        return _wrap(self._host.view() if dtype is None else self._host.view(dtype), self._device)

    def fill(self, value) -> None:
        if not isinstance(value, SCALARS):
            raise TypeError(f"fill: Unsupported type {type(value)}")
        self[...] = value

    def sum(self, axis=None, dtype=None, out=None, keepdims=False):
        return _Functions.sum(self, axis, dtype, out, keepdims)

    def prod(self, axis=None, dtype=None, out=None, keepdims=None):
        return _Functions.prod(self, axis, dtype, out, bool(keepdims))

    def mean(self, axis=None, dtype=None, out=None, keepdims=False):
        return _Functions.mean(self, axis, dtype, out, keepdims)

    def var(self, axis=None, dtype=None, out=None, ddof=0, keepdims=False):
        return _Functions.var(self, axis, dtype, out, ddof, keepdims)

    def std(self, axis=None, dtype=None, out=None, ddof=0, keepdims=False):
        return _Functions.std(self, axis, dtype, out, ddof, keepdims)

    def max(self, axis=None, out=None, keepdims=False):
        return _Functions.max(self, axis, out, keepdims)

    def min(self, axis=None, out=None, keepdims=False):
        return _Functions.min(self, axis, out, keepdims)

    def any(self, axis=None, out=None, keepdims=False):
        return _Functions.any(self, axis, out, keepdims)

    def all(self, axis=None, out=None, keepdims=False):
        return _Functions.all(self, axis, out, keepdims)

    def argmax(self, axis=None, out=None, dtype=None, keepdims=False):
        return _Functions.argmax(self, axis, dtype, out, keepdims)

    def argmin(self, axis=None, out=None, dtype=None, keepdims=False):
        return _Functions.argmin(self, axis, dtype, out, keepdims)

    def clip(self, min=None, max=None, out=None):
        return _Functions.clip(self, min, max, out)

    def take(self, indices, axis=None, out=None):
        return _Functions.take(self, indices, axis, out)

    def dot(self, b, out=None):
        return _Functions.dot(self, b, out)

    def __copy__(self):
        return self.copy()

    def __deepcopy__(self, memo):
        return self.copy()

    def __reduce__(self):
        return _Functions.array, (self.get(),)

    def __matmul__(self, other):
        if getattr(other, "__array_ufunc__", self) is None:
            return NotImplemented
        return _Functions.matmul(self, other)

    def __rmatmul__(self, other):
        return _Functions.matmul(other, self)

    def __neg__(self):
        return UFUNCS["negative"](self)

    def __pos__(self):
        return self.copy()

    def __abs__(self):
        return UFUNCS["absolute"](self)

    def __invert__(self):
        return UFUNCS["invert"](self)


for _symbol, _name in {
    "add": "add",
    "sub": "subtract",
    "mul": "multiply",
    "truediv": "true_divide",
    "floordiv": "floor_divide",
    "mod": "remainder",
    "pow": "power",
    "and": "bitwise_and",
    "or": "bitwise_or",
    "xor": "bitwise_xor",
    "lshift": "left_shift",
    "rshift": "right_shift",
}.items():
    setattr(ndarray, f"__{_symbol}__", _binary(_name))
    setattr(ndarray, f"__r{_symbol}__", _binary(_name, swapped=True))
    setattr(ndarray, f"__i{_symbol}__", _binary(_name, in_place=True))
for _symbol, _name in {
    "eq": "equal",
    "ne": "not_equal",
    "lt": "less",
    "le": "less_equal",
    "gt": "greater",
    "ge": "greater_equal",
}.items():
    setattr(ndarray, f"__{_symbol}__", _binary(_name))
ndarray.__module__ = "cupy"


# ---- the functions ----


def _upload(name: str, data: object, dtype: object, order: str) -> ndarray:
    """Host data as a new device array."""
    _refuse_in_a_capture(f"{name}: a copy from the host")
    if isinstance(data, tuple | list) and builtins.any(isinstance(x, ndarray) for x in data):
        raise TypeError(f"{name}: a sequence of device arrays; use cupy.stack")
    host = np.array(data, dtype=dtype, order=order if order in ("C", "F") else "C", copy=True)
    counters.to_device += 1
    counters.transferred_bytes += host.nbytes
    if host.dtype == "float64":
        counters.float64[_place(), name] += 1
    _order([], [host])
    return _wrap(host)


def _made(name: str, host: np.ndarray) -> ndarray:
    _count(name, [], [host])
    values = host.copy()
    _record(name, lambda: np.copyto(host, values))
    return _wrap(host)


class _Functions:
    """cupy.NAME for each name here. (In a class, `sum` and `max` do not hide Python's.)"""

    # creation

    @staticmethod
    def array(obj, dtype=None, copy=True, order="K", subok=False, ndmin=0, *, blocking=False):
        if isinstance(obj, ndarray):
            return obj if not copy and (dtype is None or obj.dtype == dtype) else obj.astype(dtype or obj.dtype)
        return _upload("array", obj, dtype, order)

    @staticmethod
    def asarray(a, dtype=None, order=None, *, copy=None, blocking=False):
        if isinstance(a, ndarray):
            return a.astype(a.dtype if dtype is None else dtype, copy=bool(copy))
        return _upload("asarray", a, dtype, order or "K")

    @staticmethod
    def ascontiguousarray(a, dtype=None):
        if isinstance(a, ndarray):
            same = a.flags.c_contiguous and (dtype is None or a.dtype == dtype)
            a = a if same else a.astype(dtype or a.dtype, order="C")
            return a if a.ndim else a.reshape(1)  # as seen on a GPU, and as NumPy does
        return _upload("ascontiguousarray", a, dtype, "C")

    @staticmethod
    def asnumpy(a, stream=None, order="C", out=None, *, blocking=True):
        return a.get(stream, order, out) if isinstance(a, ndarray) else np.asarray(a)

    @staticmethod
    def empty(shape, dtype=float, order="C"):
        host = np.empty(shape, dtype, order)
        host.fill(np.nan if host.dtype.kind in "fc" else host.dtype.type(77))
        if host.dtype == "float64":
            counters.float64[_place(), "empty"] += 1
        return _wrap(host)  # memory only: no launch

    @staticmethod
    def zeros(shape, dtype=float, order="C"):
        return _made("zeros", np.zeros(shape, dtype, order))

    @staticmethod
    def ones(shape, dtype=float, order="C"):
        return _made("ones", np.ones(shape, dtype, order))

    @staticmethod
    def full(shape, fill_value, dtype=None, order="C"):
        if not isinstance(fill_value, SCALARS):
            raise TypeError(f"full: Unsupported type {type(fill_value)}")
        return _made("full", np.full(shape, fill_value, dtype, order))

    @_device_function
    def empty_like(prototype: ndarray, dtype=None, order="K", subok=None, shape=None):
        host = np.empty_like(prototype, dtype, order, shape=shape)
        host.fill(np.nan if host.dtype.kind in "fc" else host.dtype.type(77))
        return host

    @_device_function
    def zeros_like(a: ndarray, dtype=None, order="K", subok=None, shape=None):
        return np.zeros_like(a, dtype, order, shape=shape)

    @_device_function
    def ones_like(a: ndarray, dtype=None, order="K", subok=None, shape=None):
        return np.ones_like(a, dtype, order, shape=shape)

    @_device_function
    def full_like(a: ndarray, fill_value, dtype=None, order="K", subok=None, shape=None):
        return np.full_like(a, fill_value, dtype, order, shape=shape)

    @staticmethod
    def arange(start, stop=None, step=1, dtype=None):
        for value in (start, stop, step):
            _refuse_host_arrays(value, "arange")
        return _made("arange", np.arange(*((start,) if stop is None else (start, stop)), step=step, dtype=dtype))

    @staticmethod
    def eye(N, M=None, k=0, dtype=float, order="C"):
        return _made("eye", np.eye(N, M, k, dtype, order))

    @_device_function
    def copy(a: ndarray, order="K"):
        return np.array(a, order=order, copy=True)

    @_device_function
    def copyto(dst: ndarray, src: Operand, casting="same_kind", where=None):  # noqa: F821
        np.copyto(dst, src, casting)
        return dst

    # shapes

    @_device_function(views=True)
    def reshape(a: ndarray, newshape, order="C", *, copy=None):
        return np.reshape(a, newshape, order)

    @_device_function(views=True)
    def ravel(a: ndarray, order="C"):
        return np.ravel(a, order)

    @_device_function(views=True)
    def transpose(a: ndarray, axes=None):
        return np.transpose(a, axes)

    @_device_function(views=True)
    def swapaxes(a: ndarray, axis1, axis2):
        return np.swapaxes(a, axis1, axis2)

    @_device_function(views=True)
    def moveaxis(a: ndarray, source, destination):
        return np.moveaxis(a, source, destination)

    @_device_function(views=True)
    def squeeze(a: ndarray, axis=None):
        return np.squeeze(a, axis)

    @_device_function(views=True)
    def expand_dims(a: ndarray, axis):
        return np.expand_dims(a, axis)

    @_device_function(views=True)
    def broadcast_to(array: ndarray, shape):
        return np.broadcast_to(array, shape)

    @_device_function(views=True)
    def flip(a: ndarray, axis=None):
        return np.flip(a, axis)

    @_device_function
    def pad(array: ndarray, pad_width, mode="constant", **kwargs):
        return np.pad(array, pad_width, mode, **kwargs)

    @_device_function
    def concatenate(tup: Arrays, axis=0, out: Optional = None, *, dtype=None, casting="same_kind"):  # noqa: F821
        return np.concatenate(tup, axis, out, dtype=dtype, casting=casting)

    @_device_function
    def stack(tup: Arrays, axis=0, out: Optional = None, *, dtype=None, casting="same_kind"):  # noqa: F821
        return np.stack(tup, axis, out, dtype=dtype, casting=casting)

    @staticmethod
    def may_share_memory(a, b, max_work=None):  # of bounds: it starts nothing on the device
        return np.may_share_memory(a._host, b._host)

    # products

    @_device_function
    def matmul(x1: ndarray, x2: ndarray, /, out: Optional = None):  # noqa: F821
        return np.matmul(x1, x2, out)

    @_device_function
    def dot(a: ndarray, b: ndarray, out: Optional = None):  # noqa: F821
        return np.dot(a, b, out)

    @_device_function
    def tensordot(a: ndarray, b: ndarray, axes=2):
        return np.tensordot(a, b, axes)

    @staticmethod
    def einsum(subscripts, *operands, **kwargs):
        if kwargs:
            raise TypeError(f"einsum: the double takes no options, found {sorted(kwargs)}")
        host = [_operand(x, "einsum", scalars=False) for x in operands]
        result = np.asarray(np.einsum(subscripts, *host))
        _count("einsum", host, [result])
        _record("einsum", lambda: None)
        return _wrap(result, _same_device("einsum", list(operands)))

    # reductions

    @_device_function
    def sum(a: ndarray, axis=None, dtype=None, out: Optional = None, keepdims=False):  # noqa: F821
        return np.sum(a, axis, dtype, out, keepdims)

    @_device_function
    def prod(a: ndarray, axis=None, dtype=None, out: Optional = None, keepdims=False):  # noqa: F821
        return np.prod(a, axis, dtype, out, keepdims)

    @_device_function
    def mean(a: ndarray, axis=None, dtype=None, out: Optional = None, keepdims=False):  # noqa: F821
        return np.mean(a, axis, dtype, out, keepdims)

    @_device_function
    def var(a: ndarray, axis=None, dtype=None, out: Optional = None, ddof=0, keepdims=False):  # noqa: F821
        return np.var(a, axis, dtype, out, ddof, keepdims)

    @_device_function
    def std(a: ndarray, axis=None, dtype=None, out: Optional = None, ddof=0, keepdims=False):  # noqa: F821
        return np.std(a, axis, dtype, out, ddof, keepdims)

    @_device_function
    def max(a: ndarray, axis=None, out: Optional = None, keepdims=False):  # noqa: F821
        return np.max(a, axis, out, keepdims)

    @_device_function
    def min(a: ndarray, axis=None, out: Optional = None, keepdims=False):  # noqa: F821
        return np.min(a, axis, out, keepdims)

    @_device_function
    def any(a: ndarray, axis=None, out: Optional = None, keepdims=False):  # noqa: F821
        return np.any(a, axis, out, keepdims)

    @_device_function
    def all(a: ndarray, axis=None, out: Optional = None, keepdims=False):  # noqa: F821
        return np.all(a, axis, out, keepdims)

    @_device_function
    def argmax(a: ndarray, axis=None, dtype=None, out: Optional = None, keepdims=False):  # noqa: F821
        return np.argmax(a, axis, out, keepdims=keepdims)

    @_device_function
    def argmin(a: ndarray, axis=None, dtype=None, out: Optional = None, keepdims=False):  # noqa: F821
        return np.argmin(a, axis, out, keepdims=keepdims)

    @_device_function
    def cumsum(a: ndarray, axis=None, dtype=None, out: Optional = None):  # noqa: F821
        return np.cumsum(a, axis, dtype, out)

    # selection

    @_device_function
    def clip(a: ndarray, a_min, a_max, out: Optional = None):  # noqa: F821
        return np.clip(a, a_min, a_max, out)

    @_device_function
    def _where(condition: ndarray, x: Operand, y: Operand):  # noqa: F821
        return np.where(condition, x, y)

    @staticmethod
    def where(condition, x=None, y=None):
        if x is None and y is None:
            return _Functions.nonzero(condition)
        if x is None or y is None:
            raise ValueError("Must provide both 'x' and 'y' or neither.")
        return _Functions._where(condition, x, y)

    @staticmethod
    def nonzero(a):
        found = np.nonzero(_operand(a, "nonzero", scalars=False))
        _synchronise()
        _count("nonzero", [a._host], list(found))
        return tuple(_wrap(x, a._device) for x in found)

    @_device_function
    def argsort(a: ndarray, axis=-1, kind=None):
        if kind not in (None, "stable"):
            raise ValueError(f"argsort: unsupported kind {kind}")
        return np.argsort(a, axis, kind="stable")

    @_device_function
    def searchsorted(a: ndarray, v: ndarray, side="left", sorter=None):
        return np.searchsorted(a, v, side, sorter)

    @_device_function
    def take(a: ndarray, indices: Operand, axis=None, out: Optional = None):  # noqa: F821
        return np.take(a, indices, axis, out)


def _strided(name: str):
    function = getattr(np.lib.stride_tricks, name)

    if name == "as_strided":

        @_device_function(views=True)
        def as_strided(x: ndarray, shape=None, strides=None):
            return function(x, shape, strides, writeable=True)

        return as_strided

    @_device_function(views=True)
    def sliding_window_view(x: ndarray, window_shape, axis=None, *, subok=False, writeable=False):
        return function(x, window_shape, axis, writeable=writeable)

    return sliding_window_view


# ---- the module ----


def _properties(device: int) -> dict[str, bytes]:
    """What CUDA says of a device; CuPy gives a dict with a name in bytes."""
    return {"name": f"double {device}".encode()}


class Device:
    """A CUDA device by index; without one, the current device."""

    id = 0
    compute_capability = "90"

    def __init__(self, device: int | None = None) -> None:
        self.id = _current if device is None else int(device)
        self._before: list[int] = []

    def use(self) -> None:
        global _current
        if not 0 <= self.id < _devices:
            raise RuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        _current = self.id

    def synchronize(self) -> None:
        _synchronise(seen=_latest)

    def __enter__(self) -> Device:
        self._before.append(_current)
        self.use()
        return self

    def __exit__(self, *error: object) -> None:
        global _current
        _current = self._before.pop()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and other.id == self.id

    def __hash__(self) -> int:
        return self.id

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"


class Event:
    """A moment of a stream."""

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self._time: float | None = None
        self._seen: Moments = {}

    def record(self, stream: Stream | None = None) -> None:
        self._time = time.perf_counter()
        self._seen = dict((stream or _stream)._seen)

    def synchronize(self) -> None:
        _synchronise(seen=self._seen)


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    """Milliseconds."""
    if start_event._time is None or end_event._time is None:
        raise RuntimeError("cudaErrorInvalidResourceHandle: an event was not recorded")
    return 1000 * (end_event._time - start_event._time)


class Stream:
    """A queue of launches; here each is done at once. Only one that is not the default stream can capture. One that
    blocks, which the default stream waits for and which waits for it, counts as that."""

    _numbers = itertools.count(1)

    def __init__(self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: int | None = None):
        self._default = null or not non_blocking
        self._outside: list[Stream] = []
        self._number = 0 if self._default else next(self._numbers)
        self._seen: Moments = _null_seen if self._default else {}

    def __enter__(self) -> Stream:
        global _stream
        self._outside.append(_stream)
        _stream = self
        return self

    def __exit__(self, *error: object) -> None:
        global _stream
        _stream = self._outside.pop()

    def synchronize(self) -> None:
        _synchronise(seen=self._seen)

    def record(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        _merge(self._seen, event._seen)

    def begin_capture(self, mode: int | None = None) -> None:
        global _launched
        if self._default or _stream is not self or _launched is not None:
            raise RuntimeError("cudaErrorStreamCaptureUnsupported: only the current stream, and not the default one")
        if not _own_memory:
            raise RuntimeError("the double: a graph needs memory of its own, with cupy.cuda.using_allocator")
        _launched = []

    def end_capture(self) -> Graph:
        global _launched
        if _launched is None or _stream is not self:
            raise RuntimeError("cudaErrorIllegalState: this stream is not capturing")
        graph, _launched = Graph(_launched, list(_captured)), None
        _captured.clear()
        for x, values in reversed(_before):
            np.copyto(x, values)
        _before.clear()
        return graph


_null_seen: Moments = {}
_stream = _null_stream = Stream(null=True)


class MemoryPool:
    """Memory for `using_allocator`. Only the default pool's limit is enforced, for all memory."""

    limit = 0  # of the default pool

    def __init__(self, allocator: object = None) -> None:
        self.malloc = object()
        self._limit = 0

    def used_bytes(self) -> int:
        return builtins.sum(_held.values())

    def free_bytes(self) -> int:
        return 0

    def get_limit(self) -> int:
        return MemoryPool.limit if self is _default_pool else self._limit

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        if self is _default_pool:
            MemoryPool.limit = size or 0
        self._limit = size or 0


_default_pool = MemoryPool()


@contextmanager
def using_allocator(allocator: object = None) -> Iterator[None]:
    global _own_memory
    before, _own_memory = _own_memory, allocator is not None
    try:
        yield
    finally:
        _own_memory = before


class RawModule:
    """CUDA source as CuPy compiles it; here cuda_on_cpu.py does, and the kernels run on the CPU."""

    def __init__(
        self,
        code: str | None = None,
        *,
        path: str | None = None,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        translate_cucomplex: bool = False,
        enable_cooperative_groups: bool = False,
        name_expressions: object = None,
        jitify: object = None,
    ) -> None:
        others = path, translate_cucomplex, enable_cooperative_groups, name_expressions, jitify
        if code is None or any(others) or backend != "nvrtc":
            raise NotImplementedError("the double compiles code with options only")
        macros = tuple(option for option in options if option.startswith("-D"))
        self._kernels = cuda_on_cpu.compile_kernels(code, macros)

    def get_function(self, name: str) -> _RawKernel:
        return _RawKernel(self._kernels[name])


class _RawKernel:
    def __init__(self, kernel: cuda_on_cpu.Kernel) -> None:
        self._kernel = kernel

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[object, ...], *, shared_mem: int = 0
    ) -> None:
        arrays = [x for x in args if isinstance(x, ndarray)]
        _same_device(self._kernel.name, arrays)
        structs = [x for x in args if isinstance(x, np.ndarray) and x.dtype.names and x.size == 1]  # passed by value
        if not all(isinstance(x, ndarray | np.generic) or any(x is s for s in structs) for x in args):
            raise TypeError(f"{self._kernel.name}: device arrays, NumPy scalars and structs only, found {args}")
        host = tuple(x._host if isinstance(x, ndarray) else x for x in args)
        _write(*host)
        self._kernel(grid, block, host)
        pairs = zip(self._kernel.parameters, args, strict=True)
        given = [(parameter.constant, x._host) for parameter, x in pairs if isinstance(x, ndarray)]
        _order([x for constant, x in given if constant], [x for constant, x in given if not constant])
        _record(self._kernel.name, lambda: self._kernel(grid, block, host))
        counters.launches[self._kernel.name] += 1
        counters.bytes += builtins.sum(x.nbytes for x in arrays)


class _Module(types.ModuleType):
    """A module that has the names given to it and no other."""

    def __init__(self, name: str, **names: object) -> None:
        super().__init__(name)
        vars(self).update(names)

    def __getattr__(self, name: str) -> object:
        raise AttributeError(f"the strict double has no {self.__name__}.{name}; does CuPy, and does the code need it?")


TYPES = "bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64"
CONSTANTS = "pi e inf nan newaxis"

cupy = _Module(
    "cupy",
    __version__="14.2.0",
    ndarray=ndarray,
    ufunc=ufunc,
    RawModule=RawModule,
    get_default_memory_pool=lambda: _default_pool,
    **UFUNCS,
    **{
        name: value.__func__ if isinstance(value, staticmethod) else value
        for name, value in vars(_Functions).items()
        if not name.startswith("_")
    },
    **{name: getattr(np, name) for name in TYPES.split() + CONSTANTS.split()},
    dtype=np.dtype,
    cuda=_Module(
        "cupy.cuda",
        is_available=lambda: _devices > 0,
        Device=Device,
        Stream=Stream,
        get_current_stream=lambda device_id=-1: _stream,
        Event=Event,
        get_elapsed_time=get_elapsed_time,
        MemoryPool=MemoryPool,
        using_allocator=using_allocator,
        runtime=_Module(
            "cupy.cuda.runtime",
            getDeviceCount=lambda: _devices,
            getDeviceProperties=_properties,
            memGetInfo=lambda: ((1 << 30) >> _current, 2 << 30),  # (free, total)
        ),
    ),
    lib=_Module(
        "cupy.lib",
        stride_tricks=_Module(
            "cupy.lib.stride_tricks",
            as_strided=_strided("as_strided"),
            sliding_window_view=_strided("sliding_window_view"),
        ),
    ),
)
