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

`counters` counts what costs time on a GPU. `x.get()`, `x.item()`, `float(x)`, `bool(x)` and boolean masks
work but are counted as synchronisations.

While a stream captures, what waits, copies from or to the host, or calls cuBLAS raises; what is launched is written
down and undone again at the end, and the graph's `launch` does it. So whatever a step takes from anywhere but its
arrays stays as it was, as on a GPU.

Streams run beside each other. Each launch happens at once here, but it is an error if it reads what another stream
wrote, or writes what another stream wrote or read, and nothing puts the one after the other: an event that was recorded
after the first and waited for before the second, or a wait of the host in between.
"""

from __future__ import annotations

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
        if name == "matmul":
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
    seen.update({stream: max(moment, seen.get(stream, 0)) for stream, moment in others.items()})


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
_alive: weakref.WeakValueDictionary[int, np.ndarray] = weakref.WeakValueDictionary()  # what owns it, by its id


def _owner(host: np.ndarray) -> np.ndarray:
    """The array that owns the memory."""
    while isinstance(host.base, np.ndarray):
        host = host.base
    return host


def _hold(host: np.ndarray) -> None:
    """Count the array's memory until nothing uses it any more."""
    host = _owner(host)
    if id(host) not in _held:
        used = sum(_held.values())
        if MemoryPool.limit and used + host.nbytes > MemoryPool.limit:
            raise OutOfMemoryError(
                f"Out of memory allocating {host.nbytes:,} bytes (allocated so far: {used:,} bytes, limit set to: "
                f"{MemoryPool.limit:,} bytes)."
            )
        _held[id(host)], _alive[id(host)] = host.nbytes, host
        for table in (_held, _work):
            weakref.finalize(host, table.pop, id(host), None).atexit = False
        counters.peak_memory = max(counters.peak_memory, sum(_held.values()))


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
    counters.bytes += sum(x.nbytes for x in arrays) + sum(y.nbytes for y in outputs)
    floats = [x for x in arrays if x.dtype.kind == "f"]
    pure = floats and all(x.dtype == "float64" for x in floats)
    if not pure and (computes_in == "float64" or any(y.dtype == "float64" for y in outputs)):
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


def _device_function(function: Callable, compute: Callable | None = None, views: bool = False) -> Callable:
    """A function of CuPy with the parameters of `function`, computed by `compute` (or itself) on NumPy arrays.

    The annotations say what an argument may be: `ndarray` a device array, `Operand` a device array or scalar,
    `Arrays` a list or tuple of device arrays; what has none is an option and no array. A result that is a view
    of an argument is not a launch (with views=True).
    """
    signature, compute = inspect.signature(function), compute or function
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
            else:
                host[key] = _refuse_host_arrays(value, name)
        device = _same_device(name, arrays)
        bound.arguments = host
        out = bound.arguments.get("dst" if name == "copyto" else "out")
        _write(out)
        with np.errstate(all="ignore"):
            result = np.asarray(compute(*bound.args, **bound.kwargs))
        inputs = [x._host for x in arrays]
        if not (views and any(np.may_share_memory(result, x) for x in inputs)):
            _count(name, inputs, [result])
            _record(name, lambda: np.copyto(result, compute(*bound.args, **bound.kwargs)))
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


def _binary(function: Callable, swapped: bool = False, in_place: bool = False) -> Callable:
    def method(self, other):
        if in_place:
            return function(self, other, out=self)
        if getattr(other, "__array_ufunc__", self) is None:  # NEP 13: the other's reflected method decides
            return NotImplemented
        return function(other, self) if swapped else function(self, other)

    return method


# ---- the array ----


class ndarray:
    """A device array. `_host` holds its values; nothing outside this file may look at it."""

    __slots__ = ("__weakref__", "_device", "_host")
    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]

    T = property(lambda self: _wrap(self._host.T, self._device))
    device = property(lambda self: Device(self._device))
    data = property(lambda self: types.SimpleNamespace(ptr=self._host.__array_interface__["data"][0]))

    @property
    def flags(self):
        names = ("c_contiguous", "f_contiguous", "owndata")
        return types.SimpleNamespace(**{name: getattr(self._host.flags, name) for name in names})

    # -- to the host: allowed, counted --

    def get(self, stream=None):
        _order([self._host], [], stream)
        _synchronise(self.nbytes, stream and stream._seen)
        return self._host.copy()

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
        raise TypeError("Implicit conversion to a NumPy array is not allowed; use `.get()`")

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
            host = host if any(part is Ellipsis for part in host) else (*host, Ellipsis)  # 0-d stays a view
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
            target = self._host[host if any(part is Ellipsis for part in host) else (*host, Ellipsis)]
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

    def view(self, dtype=None, type=None):
        return _wrap(self._host.view() if dtype is None else self._host.view(dtype), self._device)

    def clip(self, min=None, max=None, out=None):
        return _Functions.clip(self, min, max, out)

    def __deepcopy__(self, memo):
        return self.copy()

    def __reduce__(self):
        return _Functions.array, (self.get(),)

    def __pos__(self):
        return self.copy()


ARITHMETIC = """
    add:add sub:subtract mul:multiply truediv:true_divide floordiv:floor_divide mod:remainder pow:power
    and:bitwise_and or:bitwise_or xor:bitwise_xor lshift:left_shift rshift:right_shift
"""
COMPARISONS = "eq:equal ne:not_equal lt:less le:less_equal gt:greater ge:greater_equal"
for _pair in (ARITHMETIC + COMPARISONS).split():
    _symbol, _name = _pair.split(":")
    setattr(ndarray, f"__{_symbol}__", _binary(UFUNCS[_name]))
    if _pair in ARITHMETIC.split():
        setattr(ndarray, f"__r{_symbol}__", _binary(UFUNCS[_name], swapped=True))
        setattr(ndarray, f"__i{_symbol}__", _binary(UFUNCS[_name], in_place=True))
for _symbol, _name in {"neg": "negative", "abs": "absolute", "invert": "invert"}.items():
    setattr(ndarray, f"__{_symbol}__", functools.partialmethod(UFUNCS[_name]))
for _name in ("shape", "dtype", "ndim", "size", "nbytes", "itemsize", "strides"):
    setattr(ndarray, _name, property(operator.attrgetter(f"_host.{_name}")))
ndarray.__module__ = "cupy"


# ---- the functions ----


def _upload(name: str, data: object, dtype: object, order: str) -> ndarray:
    """Host data as a new device array."""
    _refuse_in_a_capture(f"{name}: a copy from the host")
    if isinstance(data, tuple | list) and any(isinstance(x, ndarray) for x in data):
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

    @staticmethod
    def arange(start, stop=None, step=1, dtype=None):
        for value in (start, stop, step):
            _refuse_host_arrays(value, "arange")
        return _made("arange", np.arange(*((start,) if stop is None else (start, stop)), step=step, dtype=dtype))

    @_device_function
    def copyto(dst: ndarray, src: Operand, casting="same_kind"):  # noqa: F821
        np.copyto(dst, src, casting)
        return dst

    @staticmethod
    def may_share_memory(a, b, max_work=None):  # of bounds: it starts nothing on the device
        return np.may_share_memory(a._host, b._host)

    @_device_function
    def argsort(a: ndarray, axis=-1, kind=None):
        if kind not in (None, "stable"):
            raise ValueError(f"argsort: unsupported kind {kind}")
        return np.argsort(a, axis, kind="stable")

    @_device_function
    def searchsorted(a: ndarray, v: ndarray, side="left", sorter=None):
        return np.searchsorted(a, v, side, sorter)


def _of_numpy(signatures: str, module: object = np, views: bool = False) -> dict[str, Callable]:
    """Functions that NumPy has as well, with these names of parameters, from one signature a line."""
    found = {}
    for line in signatures.split("\n"):
        if line := line.strip():
            exec(f"def {line}: ...", found)
            name = line.split("(")[0]
            found[name] = _device_function(found[name], getattr(module, name.lstrip("_")), views)
    return {name: function for name, function in found.items() if name != "__builtins__"}


SHAPES = """
    reshape(a: ndarray, newshape, order="C", *, copy=None)
    ravel(a: ndarray, order="C")
    transpose(a: ndarray, axes=None)
    swapaxes(a: ndarray, axis1, axis2)
    squeeze(a: ndarray, axis=None)
    broadcast_to(array: ndarray, shape)
"""
WINDOWS = """
    as_strided(x: ndarray, shape=None, strides=None)
    sliding_window_view(x: ndarray, window_shape, axis=None, *, subok=False, writeable=False)
"""
COMPUTED = """
    zeros_like(a: ndarray, dtype=None, order="K", subok=None, shape=None)
    ones_like(a: ndarray, dtype=None, order="K", subok=None, shape=None)
    copy(a: ndarray, order="K")
    pad(array: ndarray, pad_width, mode="constant", **kwargs)
    concatenate(tup: Arrays, axis=0, out: Optional = None, *, dtype=None, casting="same_kind")
    stack(tup: Arrays, axis=0, out: Optional = None, *, dtype=None, casting="same_kind")
    matmul(x1: ndarray, x2: ndarray, /, out: Optional = None)
    sum(a: ndarray, axis=None, dtype=None, out: Optional = None, keepdims=False)
    mean(a: ndarray, axis=None, dtype=None, out: Optional = None, keepdims=False)
    max(a: ndarray, axis=None, out: Optional = None, keepdims=False)
    min(a: ndarray, axis=None, out: Optional = None, keepdims=False)
    any(a: ndarray, axis=None, out: Optional = None, keepdims=False)
    all(a: ndarray, axis=None, out: Optional = None, keepdims=False)
    argmax(a: ndarray, axis=None, *, out: Optional = None, keepdims=False)
    argmin(a: ndarray, axis=None, *, out: Optional = None, keepdims=False)
    clip(a: ndarray, a_min, a_max, out: Optional = None)
    where(condition: ndarray, x: Operand, y: Operand)
"""


def _method(function: Callable) -> Callable:
    """The function as a method of its first argument."""

    def method(self, *args, **kwargs):
        return function(self, *args, **kwargs)

    method.__signature__ = inspect.Signature(list(inspect.signature(function).parameters.values())[1:])
    return method


METHODS = "sum mean max min any all argmax argmin ravel swapaxes squeeze"

for _name, _function in (_of_numpy(SHAPES, views=True) | _of_numpy(COMPUTED)).items():
    setattr(_Functions, _name, staticmethod(_function))
    if _name in METHODS.split():
        setattr(ndarray, _name, _method(_function))
ndarray.__matmul__ = _binary(_Functions.matmul)
ndarray.__rmatmul__ = _binary(_Functions.matmul, swapped=True)


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

    @property
    def done(self) -> bool:
        """A question that does not wait, and is answered when the work is done."""
        _refuse_in_a_capture("a question about an event")
        _merge(_seen_by_host, self._seen)
        return True


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
        self.ptr = 0 if self._default else id(self)

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
        return sum(_held.values())

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

    def __init__(self, code: str, *, options: tuple[str, ...] = ()) -> None:
        self._kernels = cuda_on_cpu.compile_kernels(
            code, tuple(option for option in options if option.startswith("-D"))
        )

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
        counters.bytes += sum(x.nbytes for x in arrays)


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
    **{name: getattr(_Functions, name) for name in vars(_Functions) if not name.startswith("_")},
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
            deviceGetPCIBusId=lambda device: f"0000:{device:02X}:00.0",
            memGetInfo=lambda: ((1 << 30) >> _current, 2 << 30),  # (free, total)
        ),
    ),
    lib=_Module(
        "cupy.lib",
        stride_tricks=_Module("cupy.lib.stride_tricks", **_of_numpy(WINDOWS, np.lib.stride_tricks, views=True)),
    ),
)
