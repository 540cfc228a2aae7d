"""The strict double refuses what it says it refuses, counts what it says it counts, and computes what NumPy does."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import strict_cupy

xp = strict_cupy.cupy
counters = strict_cupy.counters
HOST = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture(autouse=True)
def fresh(cupy_double: object) -> None:
    """One device and counters at zero."""


def device(host: Any = HOST) -> Any:
    x = xp.asarray(host)
    strict_cupy.reset()
    return x


# ---- refusals ----

REFUSED = """
np.asarray(x); np.exp(x); np.sum(x); np.concatenate(x); np.add.reduce(x); np.array([x, x]); np.add(host, x);
np.full((3, 4), x); np.zeros((3, 4), np.float32).__setitem__(..., x); np.add(host, host, out=x);
xp.exp(host.tolist()); xp.sum(host); xp.sum(3.0); xp.clip(x, host, 5); xp.stack([host, host]); xp.stack(x);
xp.full((3,), host); xp.add(x, x, out=host.copy()); x.sum(axis=x);
xp.sum(x, out=np.zeros((), np.float32)); x.sum(where=x); xp.exp(x, where=x); xp.exp(x, x, x);
xp.maximum(x); xp.clip(x, min=0, max=1)
"""


@pytest.mark.parametrize("expression", [text.strip() for text in REFUSED.split(";")])
def test_host_arrays_and_unknown_options_are_refused(expression: str) -> None:
    with pytest.raises((TypeError, ValueError)):
        eval(expression, {"np": np, "xp": xp, "x": device(), "host": HOST.copy()})
    assert not counters.launches


OPERATORS = "a - b; a < b; a @ b; xp.maximum(a, b); xp.where(x > 0, a, b); xp.concatenate([a, b]); a.__iadd__(b)"
OPERATORS += "; a.__setitem__(..., b); a.__setitem__(0, b)"


@pytest.mark.parametrize("operation", OPERATORS.split("; "))
@pytest.mark.parametrize("other", [HOST, HOST.tolist(), None, "text", np.array(1.0, np.float32)], ids=str)
def test_host_operands_are_refused(operation: str, other: Any) -> None:
    x = device()
    for a, b in ((x, other), (other, x)):
        if b is not x or ".__" not in operation:
            with pytest.raises((TypeError, ValueError)):  # ValueError: where(c, x, None)
                eval(operation, {"xp": xp, "x": x, "a": a, "b": b})
    assert not counters.launches.keys() - {"greater"}
    assert (x.get() == HOST).all()


@pytest.mark.parametrize("index", [[0, 1], np.array([0, 1]), HOST > 3, (slice(None), [0]), True, "a", 1.0], ids=str)
def test_host_indices_are_refused(index: Any) -> None:
    for use in (lambda x: x[index], lambda x: x.__setitem__(index, 1.0)):
        with pytest.raises(TypeError):
            use(device())


@pytest.mark.parametrize("name", ["random", "fft", "unique", "no_such_name", "add.at", "cuda.cudnn", "lib.npyio"])
def test_only_listed_names_exist(name: str) -> None:
    with pytest.raises(AttributeError, match=name.split(".")[-1]):
        operator.attrgetter(name)(xp)


@pytest.mark.parametrize("name", ["tobytes", "ctypes", "setflags", "flat", "__array_interface__", "__array_struct__"])
def test_only_listed_attributes_exist(name: str) -> None:
    assert not hasattr(device(), name)


def test_repeated_indices_in_an_assignment_are_refused() -> None:
    x, index = device(), xp.asarray([0, 2, 0])
    with pytest.raises(IndexError, match="twice"):
        x[index] = 1.0
    x[xp.asarray([0, 2])] = 1.0
    assert (x.get()[[0, 2]] == 1).all()


def test_arrays_on_two_devices_do_not_mix() -> None:
    strict_cupy.reset(devices=2)
    x = xp.asarray(HOST)
    with xp.cuda.Device(1):
        y = xp.asarray(HOST)
    assert (x.device.id, y.device.id, (y + y).device.id, y[0].device.id) == (0, 1, 1, 1)
    assert xp.cuda.Device().id == 0
    with pytest.raises(ValueError, match="different devices"):
        x + y
    with pytest.raises(ValueError, match="different devices"):
        x[...] = y
    with pytest.raises(RuntimeError, match="invalid device"):
        xp.cuda.Device(2).use()


def test_broadcast_views_cannot_be_written() -> None:
    view = xp.broadcast_to(device(HOST[0]), (3, 4))
    with pytest.raises(ValueError, match="read-only"):
        view += 1


# ---- results ----


def test_results_are_device_arrays_never_scalars() -> None:
    x = device()
    for result in (x.sum(), x[0, 0], xp.max(x), x.mean() * 2, -x.sum(), x.sum() > 1, xp.exp(x[0, 0]), xp.maximum(1, 2)):
        assert type(result) is xp.ndarray
        assert result.shape == ()


def test_views_share_memory_and_copies_do_not() -> None:
    host = HOST.copy()
    x = device(host)
    views, copied = (x[1:], x.T[0], x[0, 0]), x.copy()
    x[...] = 7
    assert all((view.get() == 7).all() for view in views)
    assert (copied.get() == HOST).all()
    assert (host == HOST).all(), "asarray copies"
    x.get()[...] = 0
    assert (x.get() == 7).all(), "get copies"
    with pytest.raises(ValueError, match="ambiguous"):
        bool(x)


def test_unwritten_memory_is_poisoned() -> None:
    assert np.isnan(xp.empty((2, 3), dtype="float32").get()).all()
    assert (xp.empty(3, dtype="int32").get() == 77).all()


# ---- counters ----


def test_launches_are_counted_and_views_are_not() -> None:
    x = device()
    x.T, x[0], x[:, 1:2], x.reshape(4, 3), x.ravel(), xp.broadcast_to(x, (2, 3, 4)), x.swapaxes(0, 1), x[None]
    xp.empty((3, 3), dtype="float32")
    assert counters.launches.total() == 0
    x + x * 2, x.T.reshape(12), xp.zeros(3, dtype="float32"), x.sum()  # the second one is a copy
    x[0] = 1
    assert counters.launches == dict.fromkeys(("add", "multiply", "reshape", "zeros", "sum", "setitem"), 1)
    strict_cupy.reset()
    x[1:] += 1  # the copy onto itself that Python asks for launches nothing
    assert counters.launches == {"add": 1}


def test_transfers_and_synchronisations_are_counted() -> None:
    x = device()
    assert (counters.to_device, counters.to_host, counters.synchronisations) == (0, 0, 0)
    xp.asarray(HOST), xp.array([1.0, 2.0], dtype="float32")
    assert (counters.to_device, counters.transferred_bytes) == (2, HOST.nbytes + 8)
    one, gpu = x[0, 0], xp.cuda
    copies = [x.get, x.tolist, one.item, *(lambda f=f: f(one) for f in (float, int, bool, repr))]
    copies.append(lambda: range(5)[one.astype("int32")])
    waits = [gpu.Device().synchronize, gpu.get_current_stream().synchronize, lambda: x[x > 1]]
    for wait in copies + waits:
        strict_cupy.reset()
        wait()
        assert (counters.to_host, counters.synchronisations) == (int(wait in copies), 1)


def test_bytes_are_those_read_and_written() -> None:
    x = device()
    x + x
    assert counters.bytes == 3 * HOST.nbytes
    strict_cupy.reset()
    x.sum(axis=0)
    assert counters.bytes == HOST.nbytes + 16


LEAKS = """
x * np.float64(2); np.float64(2) * x; x * xp.asarray(1.0); x.astype('float64'); x.sum(dtype='float64'); xp.zeros(3);
xp.empty(3); x * xp.arange(4); xp.where(x > 0, x, np.float64(0)); (x > 0).mean(); x > np.float64(1);
x.__iadd__(xp.asarray(host.astype('float64')))
"""


@pytest.mark.parametrize("leak", [text.strip() for text in LEAKS.split(";")])
def test_float64_is_counted(leak: str) -> None:
    """Also where float32 comes out of what is computed in float64."""
    eval(leak, {"np": np, "xp": xp, "x": device(), "host": HOST, "__name__": __name__})
    assert counters.float64.total() >= 1
    assert all(place.startswith("test_strict_cupy.") for place, _ in counters.float64), counters.float64


def test_float32_and_pure_float64_work_is_not_counted_as_float64() -> None:
    x = device()
    x * 2.0 + 1, x * np.float32(2), x.mean() / 3, x > 1.5, x.argmax(axis=0), copy.deepcopy(x)
    xp.where(x > 0.5, x, 0.0), xp.full((), 1.0, dtype="float32") * x, xp.maximum(x, 0) ** 0.5
    xp.asarray((1.0, 2.0), dtype="float32")
    x = device(HOST.astype("float64"))
    (x * 2 + x.sum()) @ x.T
    assert not counters.float64


# ---- streams ----

KERNEL = 'extern "C" __global__ void twice(const float *x, float *y) { y[threadIdx.x] = 2 * x[threadIdx.x]; }'


def other() -> Any:
    return xp.cuda.Stream(non_blocking=True)


def on(stream: Any, function: Callable, *arguments: Any) -> None:
    with stream:
        function(*arguments)


def write(x: Any) -> None:
    x[...] = 1.0


def read(x: Any) -> None:
    x.sum()


def empty() -> Any:
    return xp.zeros((3, 4), dtype="float32")


def twice(x: Any, y: Any) -> None:
    xp.RawModule(code=KERNEL).get_function("twice")((1,), (12,), (x, y))


def replay(x: Any) -> None:
    stream = xp.cuda.get_current_stream()
    with xp.cuda.using_allocator(xp.cuda.MemoryPool().malloc):
        stream.begin_capture()
        x += 1.0
        stream.end_capture().launch(stream)


# what stream a does with x, what comes in between, what stream b does then; whether it may
ORDERS: dict[str, tuple[Callable, Callable | None, Callable, bool]] = {
    "reads what was written": (write, None, read, False),
    "reads another view of it": (lambda x: write(x[:1]), None, lambda x: x.T[0].copy(), False),
    "reads by an index": (write, None, lambda x: x[xp.arange(2)], False),
    "copies it": (write, None, lambda x: empty().__setitem__(..., x), False),
    "hands it to the host": (write, None, lambda x: x.get(), False),
    "reads it in a kernel": (write, None, lambda x: twice(x, x + 0), False),
    "reads what a kernel wrote": (lambda x: twice(empty(), x), None, read, False),
    "reads what a graph wrote": (replay, None, read, False),
    "writes what was written": (write, None, write, False),
    "writes what is read": (read, None, write, False),
    "writes what a kernel reads": (lambda x: twice(x, empty()), None, write, False),
    "waited for what came before": (write, lambda a, b, before: b.wait_event(before), read, False),
    "was waited for": (write, lambda a, b, before: a.wait_event(b.record()), read, False),
    "was waited for by the host": (write, lambda a, b, before: b.synchronize(), read, False),
    "reads what is read": (read, None, read, True),
    "works on other memory": (write, None, lambda x: xp.zeros(3).sum(), True),
    "waited and reads": (write, lambda a, b, before: b.wait_event(a.record()), read, True),
    "waited and writes": (write, lambda a, b, before: b.wait_event(a.record()), write, True),
    "follows a wait of the host": (write, lambda a, b, before: a.synchronize(), read, True),
    "follows one for the device": (write, lambda a, b, before: xp.cuda.Device().synchronize(), write, True),
    "follows one for an event": (write, lambda a, b, before: a.record().synchronize(), read, True),
    "follows a copy to the host": (lambda x: (write(x), x.get()), None, read, True),
}


@pytest.mark.parametrize("what", ORDERS)
@pytest.mark.parametrize("default", ["a", "b"])
def test_work_on_two_streams_needs_an_order(what: str, default: str) -> None:
    first, between, then, allowed = ORDERS[what]
    a, b = (other(), xp.cuda.get_current_stream())[:: 1 if default == "b" else -1]
    if first is replay and default == "a":
        a, b = other(), other()  # the default stream cannot capture
    x = xp.asarray(HOST)
    xp.cuda.Device().synchronize()
    before = a.record()
    on(a, first, x)
    if between:
        between(a, b, before)
    if allowed:
        on(b, then, x)
    else:
        with pytest.raises(RuntimeError, match="nothing orders the two"):
            on(b, then, x)


def test_an_order_is_handed_on() -> None:
    a, b, c, x = other(), other(), other(), xp.asarray(HOST)
    xp.cuda.Device().synchronize()
    on(a, write, x)
    b.wait_event(a.record())
    c.wait_event(b.record())
    on(c, write, x)
    with pytest.raises(RuntimeError, match="nothing orders the two"):
        on(b, write, x)
