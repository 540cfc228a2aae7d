"""The autodiff engine: which gradients arrive, in which order, what is kept, copied, released and refused."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import math
import operator
import threading
import tracemalloc
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction

import naive
import numpy as np
import pytest
from kernel_sets import NEEDS_NUMBA
from op_cases import CASES, Case

import minigrad.backend
from minigrad import Backend, Function, Tensor, nn, no_grad, ops, optim
from minigrad.higher_order import creators
from minigrad.tensor import is_evaluating, is_recording


def leaf(values, dtype="float64") -> Tensor:
    return Tensor(np.asarray(values, dtype=dtype), requires_grad=True)


def to_tensors(case: Case, k: Backend, dtype: str, requires_grad: bool = True) -> list[Tensor]:
    return [Tensor(k.from_host(x.astype(dtype)), requires_grad=requires_grad) for x in case.inputs()]


def random_gy(y: Tensor) -> np.ndarray:
    return np.random.default_rng(5).normal(size=y.shape).astype(str(y.dtype))


# ---- gradients arrive ----


def test_diamond_runs_every_function_once_and_after_all_its_uses():
    runs = []

    class Named(Function):
        def __init__(self, name):
            self.label = name

        def forward(self, *xs):
            return sum(xs)

        def backward(self, gy):
            runs.append((self.label, gy.item()))
            return (gy,) * len(self.needs)

    x = leaf([1.0])
    a = Named("a")(x)
    b = Named("b")(a)  # a is used by b, c and d: the long way round through b and c must be finished first
    c = Named("c")(a, b)
    d = Named("d")(c, a, b)
    d.backward()
    assert runs == [("d", 1.0), ("c", 1.0), ("b", 2.0), ("a", 4.0)]
    assert x.grad.tolist() == [4.0]


def test_chain_of_20000_operations():
    """Forward, backward, and where it is dropped."""
    x = leaf([1.0])
    y = x
    for _ in range(20_000):
        y = y + 1.0
    y.backward()
    assert (y.item(), x.grad.item()) == (20_001.0, 1.0)
    for _ in range(20_000):
        y = y + 1.0
    last = weakref.ref(y.creator)
    del y
    assert last() is None


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("make", [float, np.array, Tensor], ids=["number", "array", "tensor"])
def test_gy_may_be_a_number_an_array_or_a_tensor(make, dtype):
    x = Tensor(np.array(3.0, dtype), requires_grad=True)
    gy = make(np.array(5.0, dtype))
    (x * 2.0).backward(gy)
    x.backward(gy)  # of a leaf
    assert (x.grad, x.grad.dtype) == (15, dtype)


def test_only_leaves_that_require_gradients_get_them():
    x, constant = leaf([2.0]), Tensor(np.array([3.0]))
    middle = x * constant
    (middle * 2.0).backward()
    assert x.grad.tolist() == [6.0]
    assert constant.grad is None
    assert middle.grad is None


@pytest.mark.parametrize("case", [c for c in CASES if len(c.shapes) > 1], ids=str)
def test_each_subset_of_gradients_equals_all_of_them(case):
    """An operation may skip what is not needed; what it computes must not change."""
    k = minigrad.backend.default_backend()
    every = to_tensors(case, k, "float64")
    y = case.run(*every)
    gy = random_gy(y)
    y.backward(gy)
    for wanted in list(itertools.product((False, True), repeat=len(every)))[1:-1]:  # neither none nor all
        some = to_tensors(case, k, "float64")
        for x, needed in zip(some, wanted, strict=True):
            x.requires_grad = needed
        case.run(*some).backward(gy)
        for x, full, needed in zip(some, every, wanted, strict=True):
            assert (x.grad is not None) == needed
            assert not needed or np.array_equal(x.grad, full.grad)


# ---- what may not be done ----


def test_backward_through_what_was_used_raises():
    x = leaf([1.0])
    shared = x * 2.0
    y, other = shared * 3.0, shared / 5.0
    y.backward()
    for again, name in ((y, "Mul"), (other, "Mul")):
        with pytest.raises(RuntimeError, match=f"graph through this {name} was used before"):
            again.backward()
    assert x.grad.tolist() == [6.0]


@pytest.mark.parametrize(
    ("make", "gy", "error", "text"),
    [
        (lambda x: Tensor(np.ones(2)), None, RuntimeError, "does not require a gradient"),
        (lambda x: x.detach() * 2.0, np.ones(2), RuntimeError, "does not require a gradient"),
        (lambda x: x * 2.0, None, ValueError, r"shape \(2,\) needs gy"),
        (lambda x: x * 2.0, np.ones(3), ValueError, r"gy is float64 of shape \(3,\) .* float64 of shape \(2,\)"),
        (lambda x: x * 2.0, np.ones((1, 2)), ValueError, r"gy is float64 of shape \(1, 2\)"),
        (lambda x: x * 2.0, np.ones(2, "float32"), ValueError, r"gy is float32 .* tensor is float64"),
        (lambda x: x, np.ones(3), ValueError, r"gy is float64 of shape \(3,\)"),
    ],
)
def test_backward_refuses(make, gy, error, text):
    x = leaf([1.0, 2.0])
    with pytest.raises(error, match=text):
        make(x).backward(gy)
    assert x.grad is None


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (lambda gy: (gy[:1],), r"gradient 0 is float64 \(1,\) but input 0 is float64 \(2,\)"),
        (lambda gy: (gy.astype("float32"),), r"gradient 0 is float32 \(2,\) but input 0 is float64 \(2,\)"),
        (lambda gy: (None,), r"gradient 0 is None but input 0 is float64 \(2,\)"),
        (lambda gy: (gy, gy), "2 gradients for 1 inputs"),
        (lambda gy: (), "0 gradients for 1 inputs"),
    ],
)
def test_wrong_gradient_names_the_operation_and_both_shapes(wrong, text):
    class Planted(Function):
        forward = staticmethod(np.copy)
        backward = staticmethod(wrong)

    x = leaf([1.0, 2.0])
    with pytest.raises(ValueError, match=f"Planted.backward: {text}"):
        Planted()(x).backward(np.ones(2))
    assert x.grad is None


def test_a_function_object_serves_one_call():
    """A second call would overwrite what the first saved, and its gradient would be wrong without a word."""
    x, function = leaf([1.0]), ops.elementwise.Exp()
    y = function(x)
    for use in (y.backward, lambda: None):  # before and after it was walked
        with pytest.raises(RuntimeError, match="Exp: a Function object serves one call"):
            function(leaf([2.0]))
        use()
    assert x.grad.tolist() == [np.exp(1.0)]


def test_mixed_dtypes_are_refused():
    text = r"Mul: inputs have different dtypes: float64 \(2,\), float32 \(1, 2\)"
    with pytest.raises(TypeError, match=text):
        leaf([1.0, 2.0]) * leaf([[1.0, 2.0]], "float32")


@pytest.mark.parametrize("dtype", ["int64", "int8", "uint8", "bool", "float16", "longdouble"])
def test_other_dtypes_are_refused_with_what_to_do(dtype):
    for make in (Tensor, lambda data: leaf([1.0, 2.0]) + data):
        with pytest.raises(TypeError, match=r"must be float32 or float64; convert it, x\.astype\('float32'\)"):
            make(np.ones(2, dtype=dtype))


# ---- operands ----


NUMBERS = [2, 2.5, True, np.float64(2.5), np.float32(2.5), np.int64(2)]
OPERATORS = [f"{a} {operator} {b}" for operator in "+-*/" for a, b in ("xn", "nx")]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: f"{type(n).__name__}-{n}")
@pytest.mark.parametrize("term", OPERATORS)
def test_numbers_take_the_tensors_dtype(term, number, dtype):
    values = np.array([0.5, -1.5, 4.0], dtype=dtype)
    y = eval(term, {"x": leaf(values, dtype), "n": number})
    assert (type(y), y.dtype) == (Tensor, dtype)
    expected = [eval(term, {"x": float(v), "n": float(number)}) for v in values]
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-6 if dtype == "float32" else 1e-15)


@pytest.mark.parametrize("term", OPERATORS)
def test_an_array_on_either_side_calls_tensor(term):
    values, other = np.array([[0.5, -1.5]]), np.array([[2.0], [3.0], [4.0]])
    y = eval(term, {"x": leaf(values), "n": other})
    assert type(y) is Tensor
    assert y.creator is not None
    np.testing.assert_allclose(y.numpy(), eval(term, {"x": values, "n": other}), rtol=1e-15)


def test_remaining_operators():
    a, b = np.array([[1.0, -2.0], [3.0, 4.0]]), np.array([[0.5, 1.0], [2.0, -1.0]])
    x = leaf(a)
    assert np.allclose((x @ b).numpy(), naive.matmul(a, b), rtol=1e-15)
    assert np.allclose((b @ x).numpy(), naive.matmul(b, a), rtol=1e-15)
    assert (-x).numpy().tolist() == [[-1.0, 2.0], [-3.0, -4.0]]
    assert abs(x).numpy().tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert (x**2).numpy().tolist() == [[1.0, 4.0], [9.0, 16.0]]


@pytest.mark.parametrize("wrong", [lambda x: x**x, lambda x: x ** np.ones(2), lambda x: 2**x, lambda x: x + "1"])
def test_operands_that_make_no_sense(wrong):
    with pytest.raises((TypeError, ValueError)):
        wrong(leaf([1.0, 2.0]))


def test_an_array_is_kept_and_not_copied():
    data = np.ones(3)
    assert Tensor(data).data is data


def test_item():
    assert type(leaf([[2.5]]).item()) is float
    assert leaf([[2.5]]).item() == 2.5
    for shape in [(2,), (0,), (1, 2)]:
        with pytest.raises(ValueError, match="item: the tensor has"):
            leaf(np.ones(shape)).item()


def test_detach_shares_data_and_stops_gradients():
    x = leaf([3.0])
    y = x * x
    detached = y.detach()
    assert detached.data is y.data
    assert (detached.requires_grad, detached.creator) == (False, None)
    (x * detached).backward()
    assert x.grad.tolist() == [9.0]


def test_repr_names_shape_dtype_device_and_maker():
    text = repr(leaf([1.0, 2.0]) * 2.0)
    assert text == "Tensor([2. 4.], shape=(2,), float64, cpu, made by Mul)"
    assert repr(Tensor(np.ones(1))) == "Tensor([1.], shape=(1,), float64, cpu)"


# ---- no_grad ----


def test_no_grad_records_nothing_and_survives_exceptions():
    x = leaf([1.0])
    with no_grad():
        y = x * 2.0
    assert (y.requires_grad, y.creator) == (False, None)
    with pytest.raises(OSError, match="planted"), no_grad():
        raise OSError("planted")
    assert (x * 2.0).requires_grad


# ---- no_grad, evaluation and the like as decorators ----

LAYER = nn.ReLU()
LAYER.train(None)
CONTEXTS = {
    "no_grad": (no_grad, lambda: not is_recording()),
    "evaluation": (minigrad.evaluation, is_evaluating),
    "training": (nn.training, lambda: LAYER.training),
}


@pytest.mark.parametrize(
    ("name", "bare"),
    [("no_grad", False), ("no_grad", True), ("evaluation", False), ("evaluation", True), ("training", 0)],
)
def test_a_context_decorates_whatever_runs(name, bare):
    """Inside while it runs, not for whoever reads from it; what is sent, thrown and returned comes through."""
    context, inside = CONTEXTS[name]
    decorate = context if bare else context()
    events = []

    class Owner:
        @decorate
        def method(self, number, *, more):
            """Adds."""
            return inside() and number + more

    assert (Owner().method(1, more=2), inside(), Owner.method.__doc__) == (3, False, "Adds.")

    @decorate
    def generator(first):
        try:
            while first != "end":
                try:
                    first = yield inside(), first
                except KeyError as error:
                    first = f"caught {error.args[0]}"
            return inside()
        finally:
            events.append(inside())

    steps = generator("first")
    for step, wanted in (
        (lambda: next(steps), "first"),
        (lambda: steps.send("sent"), "sent"),
        (lambda: steps.throw(KeyError("thrown")), "caught thrown"),
    ):
        assert (step(), inside()) == ((True, wanted), False)
    with pytest.raises(StopIteration) as stop:
        steps.send("end")
    assert (stop.value.value, inside()) == (True, False)
    steps, other = generator("first"), generator("first")
    next(steps), next(other)
    with context():  # the consumer's own context is its own
        next(steps)
        assert inside()
    steps.close()
    with pytest.raises(OSError, match="planted"):
        other.throw(OSError("planted"))
    assert (list(other), events, inside()) == ([], 3 * [True], False)
    assert list(decorate(lambda: (inside() for _ in "ab"))()) == [True, True]


def test_each_async_task_has_its_own_context():
    async def inside():
        with no_grad():
            for _ in range(4):
                assert not is_recording()
                await asyncio.sleep(0)

    async def outside():
        for _ in range(4):
            assert is_recording()
            await asyncio.sleep(0)

    async def program():
        await asyncio.gather(inside(), outside(), inside())

    with ThreadPoolExecutor(1) as other:  # in this thread a browser's loop may be running
        other.submit(asyncio.run, program()).result()


def test_a_context_is_entered_again_inside_and_afterwards_and_from_many_threads():
    context = no_grad()
    for _ in range(2):
        with context:
            with context:
                assert not is_recording()
            assert not is_recording()
        assert is_recording()
    both = threading.Barrier(2, timeout=60)

    def work(delay: bool) -> bool:
        with context:
            both.wait()  # the first leaves while the second is inside
        if delay:
            both.wait()
            return is_recording()
        with context:
            both.wait()
            return not is_recording()

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(work, [True, False]))
        with context:
            assert pool.submit(is_recording).result(), "a thread has its own"
    assert is_recording()


def test_a_generator_closed_by_another_thread_leaves_that_thread_as_it_was():
    def steps():
        with no_grad():
            yield

    started = steps()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(next, started).result()
    started.close()
    assert is_recording()


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("decorate", [no_grad, no_grad(), minigrad.evaluation])
def test_what_would_silently_do_nothing_is_refused(decorate):
    async def coroutine():
        pass

    async def async_generator():
        yield

    for wrong in (int, property(lambda self: 1), staticmethod(len), classmethod(len), 3):
        with pytest.raises(TypeError, match="cannot be decorated; decorate the function"):
            decorate(wrong)
    for lazy, kind in (
        (coroutine, "coroutine"),
        (async_generator, "async_generator"),
        (lambda: map(len, "ab"), "map"),
        (contextlib.contextmanager(lambda: iter("a")), "_GeneratorContextManager"),
    ):
        with pytest.raises(TypeError, match=f"returned a {kind}, whose steps would run outside"):
            decorate(lazy)()


def test_threads_build_and_walk_graphs_at_once():
    """Each thread's gradient must be its own number, exactly."""
    weight = Tensor(np.ones(50))

    def work(i):
        x = leaf(np.full(50, float(i)))
        y = x
        for _ in range(200):
            y = y * weight + x
        y.sum().backward()
        return (x.grad == 201.0).all()

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


# ---- memory ----


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def network():
    """Every kind of layer once, in float32."""
    return nn.Sequential(
        nn.Conv2D(2, 3, 3, stride=2),
        nn.ReLU(),
        nn.BatchNorm(3),
        nn.Conv2DTranspose(3, 2, 3, stride=2),
        nn.LeakyReLU(),
        nn.Flatten(),
        nn.Dense(32, 18),
        nn.Tanh(),
        nn.Softplus(),
        nn.Reshape(3, 3, 2),
        nn.Sigmoid(),
    )


@pytest.mark.parametrize("walk", [False, True], ids=["dropped", "after backward"])
def test_the_graph_dies_without_the_cycle_collector(no_collector, walk):
    model = network()
    y = model(Tensor(np.random.default_rng(0).normal(size=(4, 4, 4, 2)).astype("float32"))).sum()
    functions = [function for function, _ in creators([y])]
    assert len(functions) >= 11
    arrays = [a for f in functions for a in vars(f).values() if type(a) is np.ndarray]
    kept = {id(x.data) for _, x in model.named_tensors()}
    dead = [weakref.ref(a) for a in arrays if id(a) not in kept] + [weakref.ref(f) for f in functions]
    assert len(dead) > 20
    del functions, arrays
    if walk:
        y.backward()
    del y
    assert [ref() for ref in dead if ref() is not None] == []


def test_saved_arrays_die_while_backward_walks(no_collector):
    refs, alive = [], []

    class Watch(Function):
        def forward(self, x):
            return x.copy()

        def backward(self, gy):
            alive.append([ref() is not None for ref in refs])
            return (gy,)

    y = ops.exp(Watch()(leaf(np.ones(10))))
    refs.append(weakref.ref(y.data))  # exp saves its result
    y = ops.sigmoid(y * 3.0)
    refs.append(weakref.ref(y.data))
    y = y.sum()
    assert all(ref() is not None for ref in refs)
    y.backward()
    assert alive == [[False, False]]


@pytest.fixture
def traced():
    tracemalloc.start()
    yield tracemalloc.get_traced_memory
    tracemalloc.stop()


def sigmoids(x):
    for _ in range(60):
        x = ops.sigmoid(x)
    return x


def test_backward_needs_memory_for_few_gradients_only(traced):
    """Sixty saved arrays of 80 kB: backward may hold a handful more at any time, not sixty gradients."""
    y = sigmoids(leaf(np.full(10_000, 0.5)))
    held = traced()[0]
    assert held > 60 * 80_000
    tracemalloc.reset_peak()
    y.backward(np.ones(10_000))
    assert traced()[1] < held + 6 * 80_000
    del y
    assert traced()[0] < 3 * 80_000


# ---- nothing is shared, nothing is changed ----


def test_a_leaf_owns_its_gradient():
    x, z = leaf(np.ones((3, 4))), leaf(np.ones((3, 4)))
    gy = np.full((3, 4), 5.0)
    (x + z).backward(gy)  # Add hands the same gy to both
    first = x.grad
    assert not any(np.shares_memory(first, other) for other in (z.grad, gy))
    (x * 3.0).backward(np.ones((3, 4)))
    assert x.grad is first
    assert (first == 8).all()
    y = leaf(np.ones((3, 4)))
    y.sum().backward()  # whose gradient is a broadcast view that cannot be written
    assert y.grad.flags.owndata
    assert y.grad.flags.writeable
    assert y.grad.strides == y.data.strides


def test_a_single_number_that_is_used_twice_has_an_array_as_its_gradient() -> None:
    """NumPy gives a scalar for the sum of two arrays without axes; a second backward would not know what that is."""
    w = Tensor(np.array(3.0, np.float32), requires_grad=True)
    for expected in (6.0, 12.0):
        (w * w).backward()
        assert isinstance(w.grad, np.ndarray)
        assert w.grad == expected


# ---- values that change between forward and backward ----


def ones(x, *shape):
    """An array of x's device and dtype."""
    return minigrad.backend_of(x.data).xp.ones(shape, dtype=str(x.dtype))


IMAGES, FILTERS = (1, 2, 2, 2), (1, 1, 2, 2)
# (name, result from x and the parameter, shapes of both, whether the parameter's value is needed for x's gradient, and
# whether for its own)
READS = [
    ("add", lambda x, p: x + p, (2, 2), (2, 2), False, False),
    ("sum", lambda x, p: x * 2 + p.sum(axis=0), (2, 2), (2, 2), False, False),
    ("mul", lambda x, p: x * p, (2, 2), (2, 2), True, False),
    ("div by", lambda x, p: x / p, (2, 2), (2, 2), True, True),
    ("matmul", lambda x, p: x @ p, (2, 2), (2, 2), True, False),
    ("dense", ops.dense, (2, 2), (2, 2), True, False),
    ("conv2d", ops.conv2d, IMAGES, FILTERS, True, False),
    ("bias", lambda x, p: ops.dense(x, ones(x, 2, 2), p), (2, 2), (2,), False, False),
    ("a view", lambda x, p: x @ p.transpose(), (2, 2), (2, 2), True, False),
    ("a view of a view", lambda x, p: x @ p.transpose().reshape(4).reshape(2, 2), (2, 2), (2, 2), False, False),
    ("a detached one", lambda x, p: x * p.detach(), (2, 2), (2, 2), True, False),
    ("log", lambda x, p: x + ops.log(p), (2, 2), (2, 2), False, True),
    ("exp", lambda x, p: x + ops.exp(p), (2, 2), (2, 2), False, False),
    ("pow", lambda x, p: x + p**3, (2, 2), (2, 2), False, True),
    ("square", lambda x, p: x + p * p, (2, 2), (2, 2), False, True),
    ("gamma", lambda x, p: ops.batch_norm(x, p, ones(x, 2)), (2, 2), (2,), True, True),
    ("beta", lambda x, p: ops.batch_norm(x, ones(x, 2), p), (2, 2), (2,), False, False),
]


@pytest.mark.parametrize("needs", ["x", "parameter"])
@pytest.mark.parametrize("read", READS, ids=[name for name, *_ in READS])
def test_a_step_between_is_noticed_where_it_spoils_a_gradient_and_only_there(read, needs):
    """As in PyTorch. Without the error, the gradient is that of the values which were read."""
    _, operation, x_shape, shape, for_x, for_itself = read
    values = np.random.default_rng(0).uniform(1, 2, shape)
    gradients = []
    for between in (False, True):
        x = Tensor(np.random.default_rng(1).uniform(1, 2, x_shape), requires_grad=needs == "x")
        p = Tensor(values.copy(), requires_grad=True)
        optimizer = optim.SGD([p], 1.0)
        y = operation(x, p)
        if not y.requires_grad:  # detached, and only its own gradient was asked for
            return
        gy = np.random.default_rng(2).uniform(1, 2, y.shape)
        if between:
            optimizer.flat.gradients[...] = 1
            optimizer.step()
            optimizer.zero_grad()
        spoiled = (for_x and needs == "x") or for_itself
        if between and spoiled:
            with pytest.raises(RuntimeError, match=r"backward: input \d, a float64 tensor of shape .*, was changed"):
                y.backward(gy)
            return
        y.backward(gy)
        gradients.append((x if needs == "x" else p).grad.copy())
    np.testing.assert_array_equal(*gradients)


WRITES = {
    "step": lambda model: optim.Adam(model.parameters()).step(),  # which moves the parameters into arrays of its own
    "load_state_dict": lambda model: model.load_state_dict(model.state_dict()),
    "initialize": lambda model: model.initialize(3),
    "initialize one": lambda model: model.layers["conv"].weight.initialize(np.random.default_rng(0)),
    "to": lambda model: model.to(dtype="float64"),
    "to and step": lambda model: (model.to(dtype="float32"), optim.SGD(model.parameters(), 0.1).step()),
    "zero_grad": lambda model: model.zero_grad(),
}


@pytest.mark.parametrize("fused", [False, True], ids=["layers", "chain"])
@pytest.mark.parametrize("write", WRITES)
def test_whoever_writes_parameters_says_so(write, fused):
    layers = {"conv": nn.Conv2D(2, 3, 3), "relu": nn.ReLU(), "norm": nn.BatchNorm(3)}
    model = nn.fuse(layers) if fused else nn.Sequential(layers)
    owner = model if not fused else nn.Sequential(layers)  # of the layers' own names
    y = model(Tensor(np.random.default_rng(0).normal(size=(3, 4, 4, 2)).astype(np.float32), requires_grad=True))
    WRITES[write](owner)
    if write in ("load_state_dict", "initialize", "initialize one", "to"):
        with pytest.raises(RuntimeError, match=r"backward: input \d, a float\d\d tensor of shape .*, was changed"):
            y.backward(np.ones(y.shape, np.float32))
    else:  # the Functions keep the arrays of before, and nobody has written there
        y.backward(np.ones(y.shape, np.float32))


def test_what_does_not_change_a_parameter_does_not_disturb():
    first, second, x = nn.Dense(2, 2), nn.Dense(2, 2), Tensor(np.ones((1, 2), np.float32), requires_grad=True)
    of_first, of_second = (optim.SGD(model.parameters(), 0.1) for model in (first, second))
    y = first(x)
    second(y.detach()).sum().backward()
    of_second.step()  # an optimiser of other parameters: two models in turn
    (y * y).sum().backward()
    first.weight.requires_grad = False
    y = first(x).sum()
    of_first.step()  # a frozen one does not move
    y.backward()


def test_statistics_that_moved_are_those_of_the_forward_pass():
    norm = nn.BatchNorm(2)
    x = np.random.default_rng(0).normal(3, 2, (8, 2)).astype(np.float32)
    gradients = []
    for between in (False, True):
        norm.eval()
        leaf = Tensor(x, requires_grad=True)
        y, moved = norm(leaf), leaf * norm.moving_mean
        norm.gamma.zero_grad()
        if between:
            norm.train()
            norm(Tensor(x))
            with pytest.raises(RuntimeError, match=r"Mul\.backward: input 1, a float32 tensor of shape"):
                moved.sum().backward()
        y.backward(x)
        gradients += [leaf.grad, norm.gamma.grad.copy()]
    np.testing.assert_array_equal(gradients[0], gradients[2])
    np.testing.assert_array_equal(gradients[1], gradients[3])


# ---- Functions of any kind ----


def test_functions_may_be_dataclasses():
    """Also equal ones, which hash alike, and frozen ones; and those that are false."""
    kinds = [{}, {"frozen": True}, {"unsafe_hash": True}, {"order": True}, {"eq": False}, {"slots": True}]
    for options in kinds:

        @dataclass(**options)
        class Scale(Function):
            factor: float

            def forward(self, x):
                return x * np.float32(self.factor)

            def backward(self, gy):
                return (gy * np.float32(self.factor),)

            def __len__(self):
                return 0

        x = Tensor([1.0], requires_grad=True)
        with minigrad.detect_anomaly():
            a, b = Scale(2.0)(x), Scale(2.0)(x)
            (Scale(3.0)(a) + Scale(3.0)(b) + a).sum().backward()
        assert x.grad.tolist() == [14.0], options
        with minigrad.profile() as p:
            Scale(2.0)(x).sum().backward()
        assert any(row.operation == "Scale" and row.direction == "backward" for row in p.rows)


# ---- what is no number ----

NO_NUMBERS = {
    "NoneType": [None, [1, None], [[1.0, 2.0], [None, 1.0]]],
    "str": [["1", "2"], "3", ["a"]],
    "bytes": [b"1"],
    "object": [np.array([1, None]), np.array([1, "a"], object)],
    "Tensor": [[Tensor([1.0])], [[Tensor(1.0), Tensor(2.0)]]],
    "dict": [{"a": 1}],
    "complex": [1j, [1.0, 1j], np.array([1j]), np.complex64(1)],
    "datetime64": [np.array(["2020-01-01"], "datetime64[D]"), np.datetime64("2020-01-01")],
    "masked": [np.ma.masked_array([1.0, 2.0], [True, False]), np.ma.masked_array(np.float32([1, 2]))],
    r"\[\('a'": [np.zeros(2, [("a", "f4")])],
}


@pytest.mark.parametrize(
    ("kind", "wrong"), [(kind, wrong) for kind, several in NO_NUMBERS.items() for wrong in several]
)
def test_what_is_no_number_is_refused_and_named(kind, wrong):
    for make in (Tensor, lambda data: Tensor([1.0, 1.0]) + data, lambda data: ops.mse(data, [1.0]), ops.exp):
        with pytest.raises(TypeError, match=f"{kind.removesuffix('Type')}|<U1") as error:
            make(wrong)
        assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    "number", [3, 3.5, np.uint8(3), np.float32(3), True, np.bool_(True), 2**70, Fraction(1, 2)], ids=str
)
def test_numbers_of_python_and_numpy_are_taken(number):
    for data, shape in ((number, ()), ([number, 1], (2,)), ([[number]], (1, 1))):
        x = Tensor(data)
        assert (x.shape, x.dtype) == (shape, "float32")
        assert x.numpy().flat[0] == np.float32(float(number))
    assert Tensor(()).dtype == "float32"


def test_a_tensor_of_one_element_is_a_number_and_others_are_not():
    assert (bool(Tensor(0.0)), bool(Tensor([[2.0]])), float(Tensor([1.5])), int(Tensor(-2.5))) == (False, True, 1.5, -2)
    assert (f"{Tensor(1.25):.1f}", f"{Tensor([1.0])}") == ("1.2", str(Tensor([1.0])))
    for convert in (bool, float, int, "{:.1f}".format):
        with pytest.raises(ValueError, match="2 elements"):
            convert(Tensor([1.0, 2.0]))


LACKING = "1 in x; np.asarray(x); np.array([x, x]); np.dot(x, x); x.__setitem__(0, 1.0)"


@pytest.mark.parametrize("use", LACKING.split("; "))
def test_what_tensors_lack_is_refused_with_what_to_do(use):
    with pytest.raises(TypeError, match=r"x\.data|argument"):
        eval(use, {"x": Tensor([1.0, 2.0]), "np": np})


def test_tensors_are_keys_by_identity():
    a, b = Tensor([1.0, 2.0]), Tensor([1.0, 2.0])
    assert ({a: 1, b: 2}[a], {a: 1, b: 2}[b], len({a, b})) == (1, 2, 2)
    assert [a, b].index(a) == 0
    with pytest.raises(ValueError, match="ambiguous"):  # whether all elements are equal, or any, is not said
        [a, b].index(b)


COMPARISONS = [operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge]


@pytest.mark.parametrize("compare", COMPARISONS, ids=lambda compare: compare.__name__)
def test_a_comparison_gives_a_boolean_array_of_the_device(compare, backend):
    a, b = np.array([[1.0, 2.0, np.nan]]), np.array([[1.0], [3.0]])
    x, y = (Tensor(backend.from_host(v), requires_grad=True) for v in (a, b))
    pairs = [
        (x, y, [[compare(float(u), float(v)) for u in a[0]] for v in b[:, 0]]),
        (x, y.data, [[compare(float(u), float(v)) for u in a[0]] for v in b[:, 0]]),
        (y.data, x, [[compare(float(v), float(u)) for u in a[0]] for v in b[:, 0]]),
        (x, 2, [[compare(float(u), 2) for u in a[0]]]),
        (2.0, x, [[compare(2, float(u)) for u in a[0]]]),
        (x, np.float32(math.inf), [[compare(float(u), math.inf) for u in a[0]]]),
    ]
    for left, right, expected in pairs:
        found = compare(left, right)
        assert type(found) is backend.xp.ndarray
        assert found.dtype == "bool"
        assert backend.to_host(found).tolist() == expected


def test_a_comparison_with_a_number_rounds_it_as_arithmetic_does():
    x = Tensor(np.float32([0.1]))
    for number in (0.1, np.float64(0.1), np.float32(0.1)):
        assert x == number
    assert Tensor(np.float32([1.0])) < 1e300
    assert type(Tensor(1.0) == 1.0) is np.ndarray  # and no NumPy scalar
    assert (Tensor([1.0, 2.0]) == [1, 3]).tolist() == [True, False]


def test_comparisons_with_what_is_no_number():
    x = Tensor([1.0, 2.0])
    assert (x == None, x != None, x == "a", x in [None, x]) == (False, True, False, True)  # noqa: E711
    for wrong in (lambda: x < None, lambda: x >= "a", lambda: x == object(), lambda: x == np.ma.masked_array([1, 2])):
        with pytest.raises(TypeError, match=r"not supported between|real numbers|without a mask"):
            wrong()
    with pytest.raises(ValueError, match="shape"):
        x == Tensor([1.0, 2.0, 3.0])  # noqa: B015


def test_methods_are_the_operations_of_that_name():
    x = leaf([[0.5, 0.25, 0.75]])
    for name in ("abs", "cos", "exp", "log", "relu", "sigmoid", "sin", "sqrt", "tanh", "softmax", "log_softmax"):
        assert np.array_equal(getattr(x, name)().data, getattr(ops, name)(x).data)
    for name in ("max", "min", "std", "var", "argmax", "argmin", "sum", "mean"):
        found = [np.asarray(y.data) for y in (getattr(x, name)(axis=1, keepdims=True), getattr(ops, name)(x, 1, True))]
        assert np.array_equal(*found)
    assert x.clip(0.3, 0.6).numpy().tolist() == [[0.5, 0.3, 0.6]]
    assert x.reshape(3).shape == x.reshape((3,)).shape == x.reshape(-1).shape == (3,)
    assert x.transpose().shape == (3, 1)
    assert x.squeeze().expand_dims(1).squeeze(1).shape == (3,)
    assert f"{x.max():.2f} {float(x.min())}" == "0.75 0.25"


# ---- the gradient of what is no leaf ----


def test_retained_gradients():
    x = leaf([2.0, 3.0])
    y = x * x
    z = y * 5.0
    for tensor in (x, y, z):
        tensor.retain_grad()
    (z + y).backward(np.array([1.0, 10.0]))
    assert z.grad.tolist() == [1.0, 10.0]
    assert y.grad.tolist() == [6.0, 60.0]  # of both uses
    assert x.grad.tolist() == [24.0, 360.0]
    y.grad[...] = 0  # arrays of their own
    assert (x.grad.tolist(), z.grad.tolist()) == ([24.0, 360.0], [1.0, 10.0])


def test_only_a_retained_gradient_is_kept_and_only_where_backward_comes():
    x = leaf([2.0])
    y, aside = x * 3.0, x * 4.0
    z = y * 2.0
    aside.retain_grad()
    z.retain_grad()
    z.backward()
    assert (z.grad.tolist(), y.grad, aside.grad) == ([1.0], None, None)
    with pytest.raises(RuntimeError, match="retain_grad: this tensor requires no gradient"):
        Tensor([1.0]).retain_grad()


def test_a_retained_tensor_closes_no_circle(no_collector):
    y = leaf([2.0]) * 3.0
    y.retain_grad()
    dead = [weakref.ref(y), weakref.ref(y.creator)]
    del y
    assert [ref() for ref in dead] == [None, None]


# ---- np.seterr ----


EXTREMES = np.array([-1e30, -200, -1e-30, 0, 1e-30, 100, 1e30, np.inf, np.nan])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_operations_neither_warn_nor_raise_of_floats(dtype, backend):
    """Whatever the program has told NumPy: infinity, NaN and 0 simply appear; and its setting is left alone."""

    def extremes(shape):
        return backend.from_host(np.resize(EXTREMES.astype(dtype), shape))

    with np.errstate(all="raise"):
        for case in {case.op: case for case in CASES}.values():
            xs = [Tensor(extremes(shape), requires_grad=True) for shape in case.shapes]
            y = case.run(*xs)
            y.backward(extremes(y.shape))
            (xs[0] * xs[0] * 1e300 * 1e-300).backward(extremes(xs[0].shape))  # adds to a gradient
            assert set(np.geterr().values()) == {"raise"}, case
        assert Tensor([1e300]).numpy().tolist() == [np.inf]


@pytest.mark.parametrize("backend", ["plain", "numpy-3", pytest.param("numba-3", marks=NEEDS_NUMBA)], indirect=True)
@pytest.mark.usefixtures("backend")
def test_updates_neither_warn_nor_raise_of_floats():
    norm = nn.BatchNorm(2)
    with np.errstate(all="raise"):
        for make in (
            lambda p: optim.SGD(p, 1e30, momentum=0.9, nesterov=True),
            lambda p: optim.Adam(p, 1e30),
            lambda p: optim.AdamW(p, 1e-30),
        ):
            model = nn.Dense(400, 300)  # enough for three threads
            optimizer = make(model.parameters())
            for gradient in (1e-30, 1e30, np.nan):
                optimizer.flat.gradients[...] = gradient
                optim.clip_grad_norm(optimizer, 1e-30)
                optimizer.step()
        for values in (1e-30, 1e30, np.nan):
            norm(Tensor(np.full((5, 2), values, np.float32)))
        model.to(dtype="float64")
        model.weight.data[...] = 1e-300
        model.to(dtype="float32")
        model.load_state_dict({name: np.full(x.shape, 1e-300) for name, x in model.named_tensors()})
