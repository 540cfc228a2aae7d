"""Optimisers, clipping and schedules against loops over single numbers, PyTorch and Keras; their state."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from minigrad import Tensor, nn, optim
from minigrad.nn import Parameter

REFERENCE = Path(__file__).parents[1] / "oracles/reference"
STEPS = 12
SHAPES = [(3, 2), (4,), (1, 1, 2, 3)]


def parameters(dtype: str, seed: int = 0, k=None) -> list[Parameter]:
    found = []
    for i, shape in enumerate(SHAPES):
        p = Parameter(shape)
        values = np.random.default_rng([seed, i]).normal(size=shape).astype(dtype)
        p.data = k.from_host(values) if k else values
        p.grad = k.from_host(np.zeros_like(values)) if k else np.zeros_like(values)
        found.append(p)
    return found


def gradients(step: int, dtype: str) -> list[np.ndarray]:
    """Different scales, with exact zeros among them."""
    rng = np.random.default_rng([step, 1])
    return [(rng.normal(size=s) * 10.0 ** rng.integers(-4, 3, s) * (rng.random(s) < 0.9)).astype(dtype) for s in SHAPES]


def run(optimizer, tensors: list[Parameter], steps=range(1, STEPS + 1), k=None) -> list[np.ndarray]:
    dtype = str(tensors[0].dtype)
    for step in steps:
        optimizer.zero_grad()
        for p, g in zip(tensors, gradients(step, dtype), strict=True):
            p.grad += k.from_host(g) if k else g
        optimizer.step()
    return [np.array(p.numpy()) for p in tensors]


# ---- oracles: one number at a time ----


def sgd_oracle(value, gs, rates, momentum=0.0, nesterov=False):
    velocity = 0.0
    for g, rate in zip(gs, rates, strict=True):
        velocity = momentum * velocity + g
        value -= rate * (g + momentum * velocity if nesterov else velocity)
    return value


def adam_oracle(value, gs, rates, beta_1=0.9, beta_2=0.999, epsilon=1e-8, weight_decay=0.0):
    """Kingma and Ba's Algorithm 1; the decay of Loshchilov and Hutter's Algorithm 2 uses the value before the step."""
    m = v = 0.0
    for t, (g, rate) in enumerate(zip(gs, rates, strict=True), 1):
        m = beta_1 * m + (1 - beta_1) * g
        v = beta_2 * v + (1 - beta_2) * g**2
        m_hat, v_hat = m / (1 - math.pow(beta_1, t)), v / (1 - math.pow(beta_2, t))
        value = value - rate * weight_decay * value - rate * m_hat / (math.sqrt(v_hat) + epsilon)
    return value


def linear(step):
    return 0.01 * step


class Setup:
    """An optimiser with its options, and the number that the oracle gives for one weight."""

    def __init__(self, kind, rate=None, **options):
        self.kind, self.rate, self.options = kind, rate, options

    def make(self, tensors):
        return self.kind(tensors, **({} if self.rate is None else {"learning_rate": self.rate}), **self.options)

    def rates(self) -> list[float]:
        return [self.rate(t) if callable(self.rate) else self.rate or 1e-3 for t in range(1, STEPS + 1)]

    def expected(self, value: float, gs: list[float]) -> float:
        defaults = {"weight_decay": 0.01} if self.kind is optim.AdamW else {}
        oracle = sgd_oracle if self.kind is optim.SGD else adam_oracle
        return oracle(value, gs, self.rates(), **defaults | self.options)


OPTIMIZERS = {
    "sgd": Setup(optim.SGD, 0.05),
    "momentum": Setup(optim.SGD, 0.05, momentum=0.9),
    "nesterov": Setup(optim.SGD, linear, momentum=0.8, nesterov=True),
    "adam": Setup(optim.Adam),
    "adam options": Setup(optim.Adam, linear, beta_1=0.5, beta_2=0.9, epsilon=1e-3),
    "adamw": Setup(optim.AdamW, 0.02),
    "adamw options": Setup(optim.AdamW, linear, beta_1=0.0, beta_2=0.0, epsilon=1e-6, weight_decay=0.3),
    "adamw defaults": Setup(optim.AdamW),
}


@pytest.mark.parametrize(("dtype", "relative"), [("float64", 1e-13), ("float32", 1e-5)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_against_a_loop(name, dtype, relative, backend):
    """Twelve steps of a few roundings each, relative to the largest value at either end."""
    tensors = parameters(dtype, k=backend)
    start = [np.array(p.numpy()) for p in tensors]
    optimizer = OPTIMIZERS[name].make(tensors)
    end = run(optimizer, tensors, k=backend)
    history = [gradients(t, dtype) for t in range(1, STEPS + 1)]
    for i, (before, after) in enumerate(zip(start, end, strict=True)):
        expected = np.empty(before.shape)
        for at in np.ndindex(before.shape):
            expected[at] = OPTIMIZERS[name].expected(float(before[at]), [float(g[i][at]) for g in history])
        assert np.abs(after - expected).max() <= relative * max(np.abs(before).max(), np.abs(expected).max())
    assert optimizer.steps == STEPS


def test_keras_adam_golden():
    """Keras puts epsilon before the bias correction; with epsilon 1e-7 the two differ below 1e-6."""
    with np.load(REFERENCE / "keras_adam.npz") as file:
        golden = dict(file)
    p = Parameter(golden["p0"].shape)
    p.data, p.grad = golden["p0"].copy(), np.zeros_like(golden["p0"])
    options = {name: float(golden[name]) for name in ("beta_1", "beta_2", "epsilon")}
    optimizer = optim.Adam([p], float(golden["lr"]), **options)
    assert len(golden["grads"]) == 25
    for g, expected in zip(golden["grads"], golden["params"], strict=True):
        optimizer.zero_grad()
        p.grad += g
        optimizer.step()
        assert np.abs(p.data - expected).max() <= 1e-6 * np.abs(expected).max()
    assert np.abs(golden["params"][-1] - golden["p0"]).max() > 1e-3  # so that doing nothing would fail


# ---- state ----


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_saved_state_continues_bitwise(name, backend):
    make, dtype = OPTIMIZERS[name].make, "float64" if name == "adam" else "float32"
    whole = parameters(dtype, k=backend)
    expected = run(make(whole), whole, k=backend)

    half = parameters(dtype, k=backend)
    first = make(half)
    values, state = run(first, half, range(1, 6), k=backend), first.state_dict()
    run(first, half, range(6, 9), k=backend)  # the state is a copy: what follows does not change it
    rest = parameters(dtype, seed=1, k=backend)
    for p, value in zip(rest, values, strict=True):
        p.data[...] = backend.from_host(value)
    second = make(rest)
    second.load_state_dict(state)
    end = run(second, rest, range(6, STEPS + 1), k=backend)
    assert all(np.array_equal(a, b) for a, b in zip(expected, end, strict=True))
    assert second.steps == STEPS


def test_an_update_gets_its_numbers_in_the_parameters_dtype():
    """On a GPU they lie in the arrays that a captured step reads."""
    for dtype in ("float32", "float64"):
        optimizer, seen = optim.Adam(parameters(dtype)), []
        optimizer.update = seen.append
        optimizer.step()
        assert (str(seen[0].dtype), seen[0].shape) == (dtype, (3,))


def test_state_names():
    assert list(optim.SGD(parameters("float32"), 0.1).state_dict()) == ["steps", "velocity"]
    assert list(optim.Adam(parameters("float32"), 0.1).state_dict()) == ["steps", "mean", "variance"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda s: {key: value for key, value in s.items() if key != "steps"},
        lambda s: s | {"velocity": s["mean"]},
        lambda s: s | {"variance": s["variance"][:-1]},
        lambda s: s | {"mean": s["mean"].reshape(2, 8)},
        lambda s: {},
    ],
)
def test_wrong_state_changes_nothing(spoil):
    tensors = parameters("float64")
    optimizer = optim.Adam(tensors)
    run(optimizer, tensors)
    before = optimizer.state_dict()
    other = optim.Adam(parameters("float64")).state_dict()
    with pytest.raises(ValueError, match=r"optimizer: state holds .* but must hold"):
        optimizer.load_state_dict(spoil(other))
    assert all(np.array_equal(value, optimizer.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda p: optim.SGD([], 0.1), "^optimizer: there are no parameters$"),
        (lambda p: optim.SGD(p, -0.1), "learning_rate is -0.1"),
        (lambda p: optim.SGD(p, math.nan), "learning_rate is nan"),
        (lambda p: optim.Adam(p, math.inf), "learning_rate is inf"),
        (lambda p: optim.SGD(p, 0.1, momentum=1.0), "momentum is 1.0"),
        (lambda p: optim.SGD(p, 0.1, momentum=-0.1), "momentum is -0.1"),
        (lambda p: optim.Adam(p, beta_1=1.0), "betas must lie"),
        (lambda p: optim.Adam(p, beta_2=-0.5), "betas must lie"),
        (lambda p: optim.Adam(p, beta_2=1.0), "betas must lie"),
        (lambda p: optim.Adam(p, epsilon=0.0), "epsilon above 0"),
        (lambda p: optim.clip_grad_norm(optim.SGD(p, 0.1), 0.0), "limit is 0.0 but must be positive"),
        (lambda p: optim.clip_grad_norm(optim.SGD(p, 0.1), math.nan), "limit is nan"),
    ],
)
def test_refused_options(make, text):
    with pytest.raises(ValueError, match=text):
        make(parameters("float32"))


@pytest.mark.parametrize("what", ["data", "grad"])
def test_an_array_that_was_assigned_is_noticed(what):
    """Either of the two alone: the flat arrays would no longer be those of the parameter."""
    tensors = parameters("float32")
    optimizer = optim.SGD(tensors, 0.1)
    setattr(tensors[1], what, getattr(tensors[1], what).copy())
    told = r"^optimizer: the parameters have moved .* or data or grad was assigned; make"
    with pytest.raises(RuntimeError, match=told):
        optimizer.step()


# ---- clipping ----


@pytest.mark.parametrize(("dtype", "relative"), [("float64", 1e-14), ("float32", 1e-6)])
@pytest.mark.parametrize("share", [0.1, 0.999, 1.001, 10.0])
def test_clipping(share, dtype, relative, backend):
    tensors = parameters(dtype, k=backend)
    optimizer = optim.SGD(tensors, 0.1)
    gs = gradients(1, dtype)
    for p, g in zip(tensors, gs, strict=True):
        p.grad += backend.from_host(g)
    norm = math.sqrt(math.fsum(float(v) ** 2 for g in gs for v in g.ravel()))
    found = optim.clip_grad_norm(optimizer, share * norm)
    assert found.shape == (1,)
    assert backend.to_host(found)[0] == pytest.approx(norm, rel=relative)
    for p, g in zip(tensors, gs, strict=True):
        expected = g.astype("float64") * min(1.0, share)
        np.testing.assert_allclose(backend.to_host(p.grad), expected, rtol=3 * relative)
        assert share < 1 or np.array_equal(backend.to_host(p.grad), g)  # not a bit changes where nothing is clipped


@pytest.mark.parametrize(("gradient", "norm"), [(3e38, 6e38), (1e20, 2e20), (0.0, 0.0)])
def test_clipping_gradients_whose_squares_float32_cannot_hold(gradient, norm):
    """The length of the largest ones it cannot hold either; that of zeros is 0."""
    parameter = nn.Parameter((4,))
    optimizer = optim.SGD([parameter], 0.1)
    parameter.grad[...] = gradient
    assert float(optim.clip_grad_norm(optimizer, 1.0)[0]) == pytest.approx(norm, rel=1e-6)
    np.testing.assert_allclose(parameter.grad, 0.5 if gradient else 0.0, rtol=1e-6)


# ---- schedules ----


HALF = math.sqrt(0.125)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # 1/4, 2/4, 3/4, 4/4; then (1 + cos) / 2 from the peak towards the final rate over the 8 steps left
        (
            optim.cosine_schedule(2.0, 12, warmup=4, final=0.5),
            [0.5, 1.0, 1.5, *(2 - 0.75 * (1 - math.cos(math.pi * max(i, 0) / 8)) for i in range(-1, 9)), 0.5, 0.5],
        ),
        (optim.cosine_schedule(1.0, 4), [1, 0.5 + HALF, 0.5, 0.5 - HALF, 0, 0]),
        (optim.cosine_schedule(1.0, 2, warmup=2), [0.5, 1.0, 1.0, 0]),
        (optim.step_schedule(8.0, 3, factor=0.5, warmup=2), [4, 8, 8, 8, 8, 4, 4, 4, 2, 2, 2, 1]),
        (optim.step_schedule(1.0, 2), [1, 1, 0.1, 0.1, 0.01]),
    ],
)
def test_schedules(schedule, expected):
    assert [schedule(t) for t in range(1, len(expected) + 1)] == pytest.approx(expected, rel=1e-14, abs=1e-16)


def test_optimizer_asks_the_schedule_for_steps_from_one():
    asked = []
    tensors = parameters("float64")
    run(optim.SGD(tensors, lambda t: asked.append(t) or 0.1), tensors)
    assert asked == list(range(1, STEPS + 1))


# ---- frozen parameters ----


def moments_of(optimizer, tensors) -> list[list[np.ndarray]]:
    """The moments of each parameter."""
    ends = np.cumsum([p.size for p in tensors])[:-1]
    state = [x for name, x in optimizer.state_dict().items() if name != "steps"]
    return [list(parts) for parts in zip(*(np.split(x, ends) for x in state), strict=True)]


@pytest.mark.parametrize(("when", "frozen"), [("before", (0, 1, 2)), ("after", (1,)), ("during", (0, 2))], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_frozen_parameter_stays(name, when, frozen, backend):
    """While others move as an optimiser of them alone would move them. Its gradient, here NaN, is not looked at."""
    make = OPTIMIZERS[name].make
    tensors = parameters("float64", k=backend)
    rest = [i for i in range(len(SHAPES)) if i not in frozen]

    def freeze(trains: bool) -> None:
        for i in frozen:
            tensors[i].requires_grad = trains

    freeze(when != "before")
    optimizer, first = make(tensors), 4 if when == "during" else 1
    run(optimizer, tensors, range(1, first), k=backend)
    freeze(False)
    values, moments = [p.numpy().copy() for p in tensors], moments_of(optimizer, tensors)
    for step in range(first, 7):
        optimizer.zero_grad()
        for i, g in enumerate(gradients(step, "float64")):
            tensors[i].grad[...] = backend.from_host(np.full_like(g, np.nan) if i in frozen else g)
        norm = backend.to_host(optim.clip_grad_norm(optimizer, 1e9))
        expected = math.sqrt(math.fsum(float(v) ** 2 for i in rest for v in gradients(step, "float64")[i].ravel()))
        assert norm[0] == pytest.approx(expected, rel=1e-14)
        optimizer.step()
    assert optimizer.steps == 6
    for i in frozen:
        assert np.array_equal(tensors[i].numpy(), values[i])
        assert all(map(np.array_equal, moments_of(optimizer, tensors)[i], moments[i]))
        assert np.isnan(backend.to_host(tensors[i].grad)).all()
    if rest:
        others = [p for i, p in enumerate(parameters("float64", k=backend)) if i in rest]
        alone = make(others)
        for step in range(1, 7):
            for p, i in zip(others, rest, strict=True):
                p.grad[...] = backend.from_host(gradients(step, "float64")[i])
            alone.step()
        for p, i in zip(others, rest, strict=True):
            np.testing.assert_allclose(tensors[i].numpy(), p.numpy(), rtol=1e-12)

    freeze(True)
    optimizer.zero_grad()
    run(optimizer, tensors, range(7, 8), k=backend)
    for i in frozen:
        assert not np.array_equal(tensors[i].numpy(), values[i])


# ---- what is given ----


class Two(nn.Module):
    def __init__(self):
        self.a, self.b = Parameter((2,)), Parameter((3,))


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (lambda: Two(), "Two"),
        (lambda: Two().named_parameters(), "tuple"),
        (lambda: Two().state_dict(), "str"),
        (lambda: [{"params": Two().parameters()}], "dict"),
        (lambda: [Two().parameters()], "list"),
        (lambda: np.zeros((2, 2), "float32"), "ndarray"),
        (lambda: None, "NoneType"),
        (lambda: [*Two().parameters(), Tensor(np.zeros(2, "float32"))], "Tensor"),
        (lambda: [Two().a * 2.0], "Tensor"),
    ],
)
def test_what_is_no_parameter_is_refused(given, found):
    with pytest.raises(TypeError, match=rf"^optimizer: expected parameters, such as model.parameters\(\).*a {found}$"):
        optim.SGD(given(), 0.1)


def test_parameters_of_two_dtypes_are_refused():
    model = Two()
    model.b = nn.Parameter((3,))
    model.b.data, model.b.grad = np.zeros(3), np.zeros(3)
    with pytest.raises(TypeError, match=r"^optimizer: some parameters are float32 and some float64; .*model.to"):
        optim.Adam(model.parameters())
    assert model.a.dtype == "float32"


@pytest.mark.parametrize("given", [lambda w: [w], lambda w: w, lambda w: (x for x in [w])], ids=["list", "one", "lazy"])
@pytest.mark.parametrize("make", [OPTIMIZERS[name].make for name in ("momentum", "adam")])
def test_plain_tensors_are_optimised(make, given):
    w = Tensor(np.full((2, 2), 5.0), requires_grad=True)
    optimizer = make(given(w))
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = (w * w).sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == 5


OF_NUMBERS = {  # made with numbers x of one type and whole numbers n of another
    "sgd": lambda p, x, n: optim.SGD(p, x(0.25), momentum=x(0.5 + 2**-10)),
    "adamw": lambda p, x, n: optim.AdamW(p, x(0.125), beta_1=x(0.5), epsilon=x(0.25), weight_decay=x(0.5)),
    "cosine": lambda p, x, n: optim.Adam(p, optim.cosine_schedule(x(0.5), n(9), warmup=n(3), final=x(0.25))),
    "steps": lambda p, x, n: optim.SGD(p, optim.step_schedule(x(0.5), n(2), factor=x(0.5), warmup=n(3))),
    "own schedule": lambda p, x, n: optim.SGD(p, lambda step: x(0.5) * step),
}


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16, np.array], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("make", OF_NUMBERS.values(), ids=OF_NUMBERS)
def test_numpy_numbers_are_numbers(make, kind):
    """All of them are exact in float16, so what is computed is the same to the bit."""
    ends = []
    for x, n in ((float, int), (kind, np.uint8)):
        tensors = parameters("float32")
        optimizer = make(tensors, x, n)
        optimizer.flat.gradients[...] = np.concatenate([g.ravel() for g in gradients(1, "float32")])
        for _ in range(4):
            optim.clip_grad_norm(optimizer, x(8.0))
            optimizer.step()
        ends.append([p.numpy().tobytes() for p in tensors])
    assert ends[0] == ends[1]
    assert optimizer.flat.values.dtype == "float32"
