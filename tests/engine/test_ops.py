"""Every operation: values against naive loops, gradients against differences, hard inputs, and what is refused."""

from __future__ import annotations

import functools
import itertools
import math

import naive
import numpy as np
import pytest
from kernel_sets import MARKS, each_case
from op_cases import BY_OP, CASES, INTEGER, Case, case, values

import minigrad
from minigrad import Backend, Function, Tensor, nn, ops
from minigrad.backend.geometry import conv_geometry
from minigrad.testing import adjoint_check, gradcheck

F64 = 1e-12  # of the largest magnitude: some thousand roundings of 2e-16
F32 = 1e-5  # of the largest magnitude: RELIABILITY's bar for single operations, a hundred roundings of 6e-8
EPS32 = 2.0**-23


def check_close(actual: np.ndarray, expected: np.ndarray, relative: float) -> None:
    """Within `relative` of the largest expected magnitude, everywhere."""
    assert actual.shape == expected.shape
    assert np.isfinite(actual).all()
    error = np.abs(actual.astype("float64") - expected).max(initial=0)
    assert error <= relative * np.abs(expected).max(initial=0), f"{error / np.abs(expected).max():.2e} of the largest"


def tensors(case: Case, k: Backend, dtype: str, view=lambda x: x) -> list[Tensor]:
    return [Tensor(view(k.from_host(x.astype(dtype))), requires_grad=True) for x in case.inputs()]


@functools.cache
def oracle(case: Case) -> np.ndarray:
    return case.expected(naive, case.inputs())


# ---- values ----


@pytest.mark.parametrize("name", ops.__all__)
def test_every_public_operation_has_an_oracle_and_cases(name):
    assert callable(getattr(naive, name, None)), f"tests/oracles/naive.py has no {name}"
    assert BY_OP[name] or name in INTEGER, f"tests/oracles/op_cases.py has no case of {name}"
    assert getattr(naive, name).__module__ == "naive"


def in_holes(x):
    """The same values with gaps between them in memory, axes stored in reversed order."""
    if not x.ndim:
        return x
    k = minigrad.backend_of(x)
    wide = k.xp.zeros((*x.shape[::-1], 2), dtype=x.dtype)
    view = wide.transpose(*range(x.ndim)[::-1], x.ndim)[..., 1]
    view[...] = x
    return view


@each_case()
def test_values_and_gradients_in_any_layout(case, backend):
    """A later call of the same shapes with other numbers changes nothing, and no two arrays share memory."""
    plain, holes = tensors(case, backend, "float64"), tensors(case, backend, "float64", in_holes)
    assert all(x.data.strides != y.data.strides for x, y in zip(plain, holes, strict=True) if x.size > 1)
    y, z = case.run(*plain), case.run(*holes)
    for found in (y, z):
        check_close(found.numpy(), oracle(case), F64)
    there = np.random.default_rng(1).normal(size=y.shape)
    gy, result = backend.from_host(there.copy()), np.array(y.numpy())
    y.backward(gy)
    z.backward(in_holes(gy))
    gradients = [(x.grad, np.array(backend.to_host(x.grad))) for x in plain]
    case.run(*tensors(case, backend, "float64", lambda x: x * 0.5)).backward(gy)
    given = zip((x.data for x in plain), case.inputs(), strict=True)
    for x, before in [(y.data, result), (gy, there), *given, *gradients]:
        np.testing.assert_array_equal(backend.to_host(x), before)
    for a, b in zip(plain, holes, strict=True):
        # 1e-12 of the sums that stand behind a gradient, which may cancel: at most the largest value times their count
        grads = backend.to_host(b.grad), backend.to_host(a.grad)
        np.testing.assert_allclose(*grads, rtol=1e-11, atol=1e-12 * max(gy.size, 1))
    if backend.on_host:
        grads = [x.grad for x in plain]
        pairs = itertools.product(grads, [x.data for x in plain] + [gy, y.data])
        assert not any(np.shares_memory(*pair) for pair in [*pairs, *itertools.combinations(grads, 2)])


# ---- gradients ----


@each_case("cupy-double", "cuda-on-cpu")  # the first has the text of plain, the second is slow
def test_gradcheck(case, backend):
    gradcheck(case.run, *tensors(case, backend, "float64"))


def dtypes_in(*things) -> set[str]:
    """The dtypes of all floating-point arrays among the things: tensors, functions, arrays, and containers of them."""
    found, queue, seen = set(), list(things), set()
    while queue:
        thing = queue.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, Tensor | Function):
            queue += vars(thing).values()
        elif isinstance(thing, dict):
            queue += thing.values()
        elif isinstance(thing, list | tuple):
            queue += thing
        elif hasattr(thing, "dtype"):
            found |= {str(thing.dtype)} if "float" in str(thing.dtype) else set()
    return found


LINEAR = [c for c in CASES if c.op in ("conv2d", "conv2d_transpose", "dense", "matmul", "sum", "mean")]


@each_case()
def test_float32(case, backend):
    """Values are those of loops over the same rounded inputs, gradients those in float64, and all is float32."""
    single, double = tensors(case, backend, "float32"), tensors(case, backend, "float64")
    for x, wide in zip(single, double, strict=True):
        wide.data = x.data.astype("float64")
    y, z = case.run(*single), case.run(*double)
    rounded = [x.astype("float32") for x in case.inputs()]
    expected = case.expected(naive, rounded, "float32")
    check_close(y.numpy(), expected, F32)
    if case in LINEAR:  # a sum of K rounded products errs by at most 4 eps sqrt(K) of the sum of their magnitudes
        terms = math.prod(case.shapes[0] if case.op in ("sum", "mean") else case.shapes[1])
        magnitudes = case.expected(naive, [np.abs(x) for x in rounded])
        assert (np.abs(y.numpy() - expected) <= 4 * EPS32 * math.sqrt(max(terms, 1)) * magnitudes).all()

    assert dtypes_in(y, single) == {"float32"}  # the result, the inputs and all that the functions saved
    assert dtypes_in(z, double) == {"float64"}
    gy = np.random.default_rng(1).normal(size=y.shape).astype("float32")
    y.backward(backend.from_host(gy))
    z.backward(backend.from_host(gy.astype("float64")))
    assert [dtypes_in([x.grad for x in xs]) for xs in (single, double)] == [{"float32"}, {"float64"}]
    gradients = [(backend.to_host(x.grad), backend.to_host(wide.grad)) for x, wide in zip(single, double, strict=True)]
    magnitude = max((float(np.abs(exact).max(initial=0)) for _, exact in gradients), default=0)
    for found, exact in gradients:
        assert np.abs(found - exact).max(initial=0) <= F32 * magnitude  # of all: a single one may be zero in theory


def block(convolution: nn.Module, filters: int) -> nn.Module:
    """A fused block that owns its layers, so that they can be found by name."""
    return nn.ConvChain({"conv": (convolution, nn.ReLU(), nn.BatchNorm(filters))})


LAYERS = {
    "dense": (lambda: nn.Dense(4, 3), (2, 4)),
    "conv": (lambda: nn.Conv2D(2, 3, (3, 2), stride=2), (2, 4, 5, 2)),
    "conv with gaps": (lambda: nn.Conv2D(4, 2, (3, 2), stride=2, dilation=[2, 1], groups=2), (2, 4, 5, 4)),
    "transposed with gaps": (lambda: nn.Conv2DTranspose(4, 2, 3, stride=2, dilation=2, groups=2), (2, 2, 3, 4)),
    "depthwise": (lambda: nn.Sequential(nn.Conv2D(3, 6, 3, groups=3), nn.Conv2D(6, 2, 1)), (2, 4, 3, 3)),
    "transposed": (lambda: nn.Conv2DTranspose(3, 2, 3, stride=2), (2, 2, 3, 3)),
    "batch norm": (lambda: nn.BatchNorm(3), (5, 3)),
    "stack": (lambda: nn.Sequential(nn.Conv2D(1, 2, 3), nn.Softplus(), nn.Flatten(), nn.Dense(32, 2)), (3, 4, 4, 1)),
    "block": (lambda: block(nn.Conv2D(2, 3, 3, stride=2), 3), (2, 4, 3, 2)),
    "transposed block": (lambda: block(nn.Conv2DTranspose(2, 3, 3, stride=2, output_size=(3, 4)), 3), (2, 2, 2, 2)),
    "chain": (lambda: chain(), (2, 4, 3, 2)),
    "activations": (lambda: nn.Sequential(nn.Tanh(), nn.LeakyReLU(0.2), nn.Sigmoid(), nn.Reshape(3, 2)), (2, 6)),
    "pooling": (lambda: nn.Sequential(nn.MaxPool2D(3, stride=2, padding="same"), nn.AvgPool2D(2)), (1, 5, 4, 2)),
    "resizing": (lambda: nn.Sequential(nn.UpSample2D([2, 1]), nn.Resize((3, 5))), (1, 2, 3, 2)),
    "gelu and silu": (lambda: nn.Sequential(nn.GELU(), nn.SiLU()), (2, 6)),
    "layer norm": (lambda: nn.LayerNorm(3), (2, 4, 3)),
    "group norm": (lambda: nn.GroupNorm(2, 4), (2, 3, 2, 4)),
}


def chain() -> nn.Module:
    up = nn.Conv2DTranspose(3, 4, 3, stride=2, output_size=(4, 3))
    down, last = nn.Conv2D(2, 3, 3, stride=2), nn.Conv2DTranspose(4, 1, (3, 2))
    return nn.ConvChain({"a": (down, nn.ReLU(), nn.BatchNorm(3)), "b": (up, nn.ReLU(), nn.BatchNorm(4)), "c": (last,)})


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    ("which", "shape", "text"),
    [
        ("norm.gamma", (4,), "batch_norm: x"),
        ("norm.beta", (4,), "batch_norm: x"),
        ("conv.bias", (4,), "conv_chain: bias is"),
        ("conv.weight", (3, 3, 5, 3), "conv_chain: x has 2 channels but weight expects 5"),
    ],
)
def test_a_block_checks_its_parameters(which, shape, text, training):
    layers = {"conv": nn.Conv2D(2, 3, 3), "relu": nn.ReLU(), "norm": nn.BatchNorm(3)}
    model = nn.ConvChain({"conv": tuple(layers.values())})
    layer, name = which.split(".")
    setattr(layers[layer], name, nn.Parameter(shape))
    model.train(training)
    with minigrad.no_grad(), pytest.raises(ValueError, match=text):
        model(np.zeros((2, 4, 4, 2), np.float32))


@pytest.mark.parametrize("options", [{"dilation": 2}, {"dilation": [1, 2]}, {"groups": 2}], ids=str)
@pytest.mark.parametrize("kind", [nn.Conv2D, nn.Conv2DTranspose])
def test_convolutions_with_gaps_are_not_fused(kind, options):
    def make(**options):
        first, middle = (nn.Conv2D(2, 2, 3), kind(2, 4, 3, **options))
        layers = [first, nn.ReLU(), nn.BatchNorm(2), middle, nn.ReLU(), nn.BatchNorm(4), kind(4, 2, 3, **options)]
        return nn.fuse({str(i): layer for i, layer in enumerate(layers)})

    model = make(**options)
    assert [type(layer).__name__ for layer in model.layers.values()] == [
        "ConvChain", kind.__name__, "ReLU", "BatchNorm", kind.__name__
    ]  # fmt: skip
    assert len(make(dilation=(1, 1), groups=1).layers) == 1
    x = np.random.default_rng(0).normal(size=(2, 5, 6, 2)).astype("float32")
    assert model(Tensor(x)).shape == (2, 5, 6, 2)
    with pytest.raises(ValueError, match=r"^ConvChain: a convolution has dilation .* and groups"):
        block(kind(2, 4, 3, **options), 4)(x)


def test_a_block_of_constant_weights_has_a_gradient_for_its_input():
    model = block(nn.Conv2D(2, 3, 3, stride=2), 3)
    model.initialize(1)
    model.to(dtype="float64")
    found = []
    for frozen in (False, True):
        for name, parameter in model.named_parameters():
            parameter.requires_grad = not frozen or "gamma" in name  # one of these two keeps the batch's statistics
        x = Tensor(np.random.default_rng(0).normal(size=(2, 4, 4, 2)), requires_grad=True)
        y = model(x)
        y.backward(np.random.default_rng(1).normal(size=y.shape))
        found.append(x.grad)
    np.testing.assert_allclose(*found, rtol=1e-12)


FUSED = ("block", "transposed block", "chain")  # the others are made of operations that test_gradcheck has seen
LAYERS_ON = [(name, "plain") for name in LAYERS] + [
    pytest.param(name, where, marks=MARKS.get(where, ()))
    for name in FUSED
    for where in ("numpy-3", "numba-3", "cuda")
]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("name", "backend"), LAYERS_ON, indirect=["backend"])
def test_gradcheck_of_layers(name, training, backend):
    make, shape = LAYERS[name]
    model = make()
    model.initialize(3)
    model.to(dtype="float64")
    rng = np.random.default_rng(4)
    for full_name, tensor in model.named_tensors():  # away from zero biases and unit statistics
        shift = rng.uniform(0.2, 0.8, tensor.shape)
        tensor.data[...] += backend.from_host(shift)
        assert training or "moving" not in full_name or (tensor.numpy() != 0).all()
    model.train(training)
    gradcheck(model, Tensor(backend.from_host(values(rng, shape)), requires_grad=True), parameters=model.parameters())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", FUSED)
def test_a_fused_block_equals_its_layers(name, training, dtype, backend):
    """Values, every gradient and the moving statistics, against the same layers run one after another."""
    make, shape = LAYERS[name]
    fused, apart = make(), make()
    inputs = values(np.random.default_rng(8), shape).astype(dtype)
    results = []
    for model in (fused, apart):
        model.initialize(3)
        model.to(dtype=dtype)
        model.train(training)
        x = Tensor(backend.from_host(inputs), requires_grad=True)
        y = model(x) if model is fused else nn.Sequential(dict(model.children()))(x)
        gy = np.random.default_rng(9).normal(size=y.shape).astype(dtype)
        y.backward(backend.from_host(gy))
        grads = {f"g{name}": backend.to_host(p.grad) for name, p in model.named_parameters()}
        results.append({"y": y.numpy(), "gx": backend.to_host(x.grad), **grads, **model.state_dict()})
    largest = max(np.abs(value).max() for value in results[1].values())
    for key, expected in results[1].items():
        error = np.abs(results[0][key] - expected).max()
        assert error <= (F64 if dtype == "float64" else F32) * largest, key


@pytest.mark.parametrize(
    ("op", "x", "expected"),
    [
        (ops.relu, [-1.0, 0.0, 2.0], [0.0, 0.0, 1.0]),
        (ops.leaky_relu, [-1.0, 0.0, 2.0], [0.01, 0.01, 1.0]),
        (ops.abs, [-1.0, 0.0, 2.0], [-1.0, 0.0, 1.0]),
        (lambda x: ops.clip(x, -1, 1), [-2.0, -1.0, 0.0, 1.0, 2.0], [0.0, 1.0, 1.0, 1.0, 0.0]),
        (lambda x: ops.pow(x, 0), [0.0, 2.0], [0.0, 0.0]),
        (lambda x: ops.pow(x, 1), [0.0, 2.0], [1.0, 1.0]),
        (lambda x: ops.pow(x, 2), [0.0, 2.0], [0.0, 4.0]),
    ],
)
def test_gradient_at_the_kink_is_the_documented_one(op, x, expected):
    x = Tensor(np.array(x), requires_grad=True)
    op(x).backward(np.ones(x.shape))
    assert x.grad.tolist() == expected


# ---- numerical safety: warnings are errors in this suite, so an overflow anywhere fails these tests ----


def span(dtype: str) -> np.ndarray:
    """Numbers over the whole range of a dtype, both signs, with zeros."""
    tiny, top = float(np.finfo(dtype).tiny), float(np.finfo(dtype).max)
    steps = [0.0, tiny, *np.logspace(-30, math.log10(top) - 0.01, 60), 1e4, 88.7, 103.9, 709.8, top]
    return np.array([*steps, *(-s for s in steps)], dtype=dtype)


ROUNDINGS = dict.fromkeys(["sigmoid", "softplus", "tanh", "relu", "leaky_relu", "abs"], 8) | {"log": 4, "sqrt": 4}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("op", ROUNDINGS)
def test_values_over_the_whole_range(op, dtype, backend):
    """Each value is right to a few roundings of itself, or of the smallest normal number, and nothing overflows."""
    numbers = span(dtype)
    numbers = numbers[numbers > 0] if op in ("log", "sqrt") else numbers
    x = Tensor(backend.from_host(numbers), requires_grad=True)
    y = getattr(ops, op)(x)
    tiny, eps = float(np.finfo(dtype).tiny), float(np.finfo(dtype).eps)
    found, expected = y.numpy().astype("float64"), getattr(naive, op)(numbers)
    np.testing.assert_allclose(found, expected, rtol=ROUNDINGS[op] * eps, atol=2 * tiny)
    y.backward(backend.from_host(np.ones(x.shape, dtype)))
    assert np.isfinite(backend.to_host(x.grad)).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_logsumexp_over_the_whole_range(dtype, backend):
    numbers = span(dtype)[:, None] * np.array([0.5, 0.25, -0.25], dtype=dtype)  # so that differences are in range too
    x = Tensor(backend.from_host(numbers), requires_grad=True)
    y = ops.logsumexp(x, axis=1)
    expected = [
        max(row) if max(map(abs, row)) > 1e4 else naive.precise_logsumexp(list(row)) for row in numbers.tolist()
    ]
    np.testing.assert_allclose(y.numpy().astype("float64"), expected, rtol=8 * float(np.finfo(dtype).eps))
    y.backward(backend.from_host(np.ones(y.shape, dtype)))
    np.testing.assert_allclose(backend.to_host(x.grad).sum(axis=1), 1, rtol=1e-6)


def test_logsumexp_of_what_is_not_finite(backend):
    rows = [[-np.inf, -np.inf], [-np.inf, 3.0], [1.0, 2.0], [np.nan, 0.0], [np.inf, 0.0]]
    x = Tensor(backend.from_host(np.array(rows)), requires_grad=True)
    y = ops.logsumexp(x, axis=1)
    np.testing.assert_allclose(y.numpy(), [-np.inf, 3.0, 2 + math.log1p(math.exp(-1)), np.nan, np.inf], rtol=1e-14)
    y.backward(backend.from_host(np.ones(5)))
    p = 1 / (1 + math.exp(1))
    np.testing.assert_allclose(backend.to_host(x.grad)[:3], [[0, 0], [0, 1], [p, 1 - p]], rtol=1e-14)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_the_power_of_a_half_is_the_root(backend):
    """NaN of minus infinity on every device, as in NumPy and PyTorch; C's pow has infinity there."""
    y = ops.pow(Tensor(backend.from_host(np.float32([-np.inf, -1, 4, np.inf]))), 0.5).numpy()
    np.testing.assert_array_equal(y, np.float32([np.nan, np.nan, 2, np.inf]))


LOGITS = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 30.0], [88.0, -88.0, -750.0]])
CERTAIN = np.array([[1.0, 0.0, 0.5], [1.0, 0.0, 1.0], [1.0, 0.0, 0.0]])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_losses_of_extreme_logits(dtype, backend):
    x = Tensor(backend.from_host(LOGITS.astype(dtype)), requires_grad=True)
    loss = ops.bce_with_logits(x, backend.from_host(CERTAIN.astype(dtype)))
    expected = naive.bce_with_logits(LOGITS, CERTAIN)
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-6)
    loss.backward()
    np.testing.assert_allclose(backend.to_host(x.grad), (naive.sigmoid(LOGITS) - CERTAIN) / 3, rtol=1e-6, atol=1e-7)

    labels = np.array([1, 1, 0])
    x = Tensor(backend.from_host(LOGITS.astype(dtype)), requires_grad=True)
    loss = ops.softmax_cross_entropy(x, backend.from_host(labels))
    np.testing.assert_allclose(loss.numpy(), naive.softmax_cross_entropy(LOGITS, labels), rtol=1e-6)
    loss.backward()
    np.testing.assert_allclose(backend.to_host(x.grad), [[1 / 3, -1 / 3, 0], [0, 0, 0], [0, 0, 0]], atol=1e-7)


def test_softmax_cross_entropy_of_an_excluded_class(backend):
    """A logit of -inf rules a class out; where it is not the label, loss and gradient stay finite."""
    x = Tensor(backend.from_host(np.array([[0.0, -np.inf, 1.0]])), requires_grad=True)
    loss = ops.softmax_cross_entropy(x, backend.from_host(np.array([2])))
    loss.backward()
    p = 1 / (1 + math.exp(1))
    assert loss.item() == pytest.approx(-math.log(1 - p), rel=1e-12)
    np.testing.assert_allclose(backend.to_host(x.grad), [[p, 0, -p]], rtol=1e-12)


def test_small_losses_keep_their_digits(backend):
    """-log p of a right pixel at logit 20 is exp(-20): float32 must not lose it in 20 - 20. In the KL exp(v) - 1 - v is
    v^2 / 2 + v^3 / 6: with expm1 right to 1e-9 at v = 1e-6, where exp(v) - 1 leaves 2e-4."""
    x = Tensor(backend.from_host(np.full((1, 1), 20.0, "float32")))
    loss = ops.bce_with_logits(x, backend.from_host(np.ones((1, 1), "float32"))).item()
    assert loss == pytest.approx(math.exp(-20), rel=1e-5, abs=0)
    loss = ops.kl_to_standard_normal(np.zeros((1, 1)), np.full((1, 1), 1e-6)).item()
    assert loss == pytest.approx(1e-12 / 4 + 1e-18 / 12, rel=1e-8, abs=0)


# ---- convolution ----


@functools.cache
def random_convolution(op: str, seed: int) -> Case:
    """Kernel 1-5, stride 1-4, sides 1-12, all paddings, rectangular; and channel counts on both sides of 4 and 8. Every
    fourth has a dilation of 1-3, every fifth up to 3 groups, of channels and of filters as many as C and F say. A
    transposed one goes back from the output size of a convolution to its input size."""
    rng = np.random.default_rng([seed, 99])
    while True:
        kernel = tuple(int(n) for n in rng.integers(1, 6, 2))
        size = tuple(int(n) for n in rng.integers(1, 13, 2))
        stride = tuple(int(n) for n in rng.integers(1, 5, 2)) if seed % 2 else int(rng.integers(1, 5))
        pads = tuple(int(n) for n in rng.integers(0, 4, 2))
        padding = ["same", "valid", pads[0], pads][seed % 4 if seed % 3 else 0]
        dilation = tuple(int(n) for n in rng.integers(1, 4, 2)) if seed % 4 == 3 else 1
        positions = naive.conv_positions(size, kernel, stride, padding, dilation)[0]
        if min(positions) > 0:
            break
    groups = int(rng.integers(1, 4)) if seed % 5 == 2 else 1
    C, F = int(rng.choice([1, 2, 3, 4, 5, 8, 9])), int(rng.integers(1, 5)) * groups
    N = int(rng.integers(1, 5)) if max(size) < 8 else 1
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    if op == "conv2d":
        return case(op, (N, *size, C * groups), (*kernel, C, F), (F,), **options)
    return case(op, (N, *positions, F), (*kernel, C, F), output_size=size, **options)


@pytest.mark.parametrize("batch", range(10))
@pytest.mark.parametrize(("op", "what"), [("conv2d", "convolutions"), ("conv2d_transpose", "transposed convolutions")])
def test_convolution_grid_against_loops(op, what, batch, backend, campaign):
    count = campaign.count(20, 600)
    for seed in range(count * batch, count * (batch + 1)):
        drawn = random_convolution(op, seed + 1000 * (op == "conv2d_transpose"))
        check_close(drawn.run(*tensors(drawn, backend, "float64")).numpy(), oracle(drawn), F64)
    campaign.survived(f"{what} against loops, {campaign.backends}", count)


@pytest.mark.parametrize("batch", range(10))
def test_adjoint_identities(batch, backend, campaign):
    """<conv2d(x, w), v> = <x, conv2d_grad_input(v, w)> = <w, conv2d_grad_weight(x, v)> on 200 geometries or more."""
    count = campaign.count(20, 600)
    for seed in range(count * batch, count * (batch + 1)):
        drawn = random_convolution("conv2d", 5000 + seed)
        x, weight = (backend.from_host(array) for array in drawn.inputs()[:2])
        g = conv_geometry(x.shape[1:3], weight.shape[:2], **drawn.options)
        y_shape = (len(x), *g.output_size, weight.shape[3])
        adjoint_check(
            lambda v: backend.conv2d(v, weight, None, g),  # noqa: B023
            lambda v: backend.conv2d_grad_input(v, weight, g),  # noqa: B023
            x.shape,
            y_shape,
        )
        adjoint_check(
            lambda v: backend.conv2d(x, v, None, g),  # noqa: B023
            lambda v: backend.conv2d_grad_weight(x, v, g),  # noqa: B023
            weight.shape,
            y_shape,
        )
    campaign.survived(f"adjoint identities of convolutions, {campaign.backends}", 2 * count)


def test_every_legal_output_size_and_no_other(backend):
    """A convolution with stride 3 rounds down, so three sizes lead to each output size."""
    x, weight = (Tensor(backend.from_host(np.ones(shape))) for shape in ((1, 2, 2, 1), (2, 2, 1, 1)))
    legal = []
    for size in range(1, 12):
        try:
            y = ops.conv2d_transpose(x, weight, stride=3, output_size=(size, size))
        except ValueError as error:
            assert f"output_size ({size}, {size}) does not fit" in str(error) or "larger than the padded" in str(error)  # noqa: PT017
            continue
        assert y.shape == (1, size, size, 1)
        legal.append(size)
    assert legal == [5, 6, 7]


# ---- options, and work that is not needed ----


WITHOUT_NEED = "mul div matmul dense conv2d conv2d_transpose mse bce_with_logits gaussian_nll maximum minimum where"


@pytest.mark.parametrize("op", WITHOUT_NEED.split())
def test_a_gradient_that_nobody_needs_is_not_computed(op):
    """It would be half of the work of a first layer."""
    case = BY_OP[op][1]
    count = len(case.shapes)
    for needed in range(count):
        y = case.run(*(Tensor(x, requires_grad=i == needed) for i, x in enumerate(case.inputs())))
        gradients = y.creator.backward(np.ones(y.shape))
        computed = [i for i, gradient in enumerate(gradients[:count]) if gradient is not None]
        # the first gradient of these two is the second one but for its sign
        assert computed == ([0, 1] if op in ("mse", "gaussian_nll") and needed else [needed])


@pytest.mark.parametrize("integer", [np.int64, np.uint8])
def test_options_may_be_numbers_of_numpy(integer):
    """And a float64 among them does not make the result float64."""
    x, half = np.arange(6, dtype=np.float32).reshape(2, 3), np.float64(0.5)
    zero, one, two, three = map(integer, range(4))
    assert ops.sum(x, axis=one).numpy().tolist() == ops.sum(x, axis=(one,)).numpy().tolist() == [3, 12]
    assert ops.logsumexp(x, axis=one, keepdims=True).shape == (2, 1)
    assert ops.reshape(x, three, two).shape == ops.reshape(x, (three, two)).shape == (3, 2)
    assert ops.transpose(x, one, zero).shape == (3, 2)
    images, weight = np.ones((1, 4, 4, 1), np.float32), np.ones((1, 1, 1, 1), np.float32)
    for stride in (two, (two, two), [two, two]):
        assert ops.conv2d(images, weight, stride=stride, padding=zero).shape == (1, 2, 2, 1)
        size = integer(8), integer(7)
        assert ops.conv2d_transpose(images, weight, stride=stride, output_size=size).shape == (1, 8, 7, 1)
    results = [
        ops.leaky_relu(x, half),
        ops.clip(x, half, two),
        ops.pow(x, two),
        ops.pow(x, half),
        Tensor(x) * half + two,
    ]
    results.append(ops.batch_norm(x, x[0], x[0], epsilon=half))
    results.append(ops.batch_norm_inference(x, x[0], x[0], x[0], x[1], epsilon=half))
    assert {y.dtype.name for y in results} == {"float32"}


def test_shapes_and_axes_may_be_arrays_and_lists():
    """Options read from TOML and JSON are lists."""
    x, array = Tensor(np.zeros((2, 3))), np.array
    assert x.reshape(array([3, 2])).shape == x.transpose(array([1, 0])).shape == x.reshape([3, 2]).shape == (3, 2)
    assert (x.sum(axis=array([0, 1])).shape, x.mean(axis=0, keepdims=np.True_).shape) == ((), (1, 3))
    images, weight = np.ones((1, 4, 4, 1)), np.ones((2, 2, 1, 1))
    assert ops.conv2d(images, weight, stride=[2, 1], padding=[1, 0]).shape == (1, 3, 3, 1)
    assert ops.conv2d_transpose(images, weight, stride=[2, 1], output_size=[8, 5]).shape == (1, 8, 5, 1)


# ---- sums of many numbers ----

SUM_ROUNDINGS = 40  # of one float32 sum: 16 in a row, 3 + log2(count / 128) in pairs, and those of the terms
CHANNEL_ROUNDINGS = 520  # kernels over (..., C) may add 512 rows before float64 goes on


def test_sums_of_many_numbers_keep_their_digits(backend):
    """Forward and in the gradients of what was broadcast: the error is some units of rounding of the magnitudes'
    sum, whatever the count. Adding float32 numbers one after another is a hundred times worse here."""
    k, M, unit = backend, 40_000, float(np.finfo(np.float32).eps) / 2
    x = np.repeat(np.float32([[0.1, 0.13, 0.17]]), M, axis=0)
    x[0] += np.float32(0.1)
    exact = x.astype(np.float64)

    def check(what, found, terms, axis, roundings=SUM_ROUNDINGS):
        error = abs(k.to_host(found).astype(np.float64) - terms.sum(axis))
        assert (error <= roundings * unit * abs(terms).sum(axis)).all(), f"{what}: {error}"

    rows = k.from_host(x)
    columns, pairs = k.from_host(np.ascontiguousarray(x.T)).T, k.from_host(np.repeat(x, 2, axis=1))[:, ::2]
    deep, views = rows.reshape(-1, 2, 3), {"rows": rows, "columns": columns}
    for what, array in {**views, "every other": pairs, "one": rows[:, :1].copy(), "three axes": deep}.items():
        values = exact[:, :1] if array.shape[-1] == 1 else exact.reshape(array.shape)
        for axis in (0, (0, 1), None) if array.ndim == 2 else (0, (0, 1), (0, 2), (1, 0, 2)):
            total = ops.sum(Tensor(array), axis=axis, keepdims=True).data
            check(f"sum of {what} over {axis}", total.reshape(values.sum(axis).shape), values, axis)
            mean = ops.mean(Tensor(array), axis=axis).data
            check(f"mean of {what} over {axis}", mean, values / (values.size / mean.size), axis)
            ratio = k.xp.exp(ops.logsumexp(Tensor(array), axis=axis).data.astype("float64"))
            # the logarithm of so many is some 12, and rounded
            check(f"logsumexp of {what} over {axis}", ratio, np.exp(values), axis, 16 * SUM_ROUNDINGS)
        y = Tensor(array)
        zeros_like, half = Tensor(k.xp.zeros_like(array)), values / 2
        check(f"mse of {what}", ops.mse(y, zeros_like).data, values**2 / values.size, None)
        check(f"kl of {what}", ops.kl_to_standard_normal(y, zeros_like).data, values * half / len(values), None)
        terms = (values**2 + math.log(2 * math.pi)) / 2 / len(values)
        check(f"gaussian_nll of {what}", ops.gaussian_nll(y, zeros_like).data, terms, None)
        terms = np.log1p(np.exp(values)) / len(values)
        check(f"bce_with_logits of {what}", ops.bce_with_logits(y, zeros_like).data, terms, None)
    wide = ops.softmax_cross_entropy(Tensor(columns.T), [0, 0, 0]).data  # over the classes, some 12 each
    terms = (np.log(np.exp(exact).sum(0)) - exact[0]) / 3
    check("softmax_cross_entropy", wide, terms, None)

    ones, zero, same = (k.from_host(a.astype(np.float32)) for a in (np.ones(3), np.zeros(3), np.eye(3)))
    scaled = functools.partial(ops.batch_norm_inference, epsilon=0)
    for what, of, value, terms, roundings in [
        ("add", lambda x, b: x + b, zero, exact, SUM_ROUNDINGS),
        ("sub", lambda x, b: x - b, zero, -exact, SUM_ROUNDINGS),
        ("mul", lambda x, b: x * b, ones, exact**2, SUM_ROUNDINGS),
        ("div", lambda x, b: x / b, ones, -(exact**2), SUM_ROUNDINGS),
        ("dense", lambda x, b: ops.dense(x, same, b), zero, exact, CHANNEL_ROUNDINGS),
        ("batch_norm", lambda x, b: ops.batch_norm(x, ones, b), zero, exact, CHANNEL_ROUNDINGS),
        ("gamma", lambda x, b: scaled(x, b, zero, zero, ones), ones, exact**2, CHANNEL_ROUNDINGS),
    ]:
        for view, array in views.items():
            b = Tensor(value.copy(), requires_grad=True)
            of(Tensor(array), b).backward(rows)
            check(f"gradient of {what}, {view}", b.grad, terms, 0, roundings)
    b = Tensor(k.from_host(np.float32(1)), requires_grad=True)
    (Tensor(rows) * b).backward(rows)
    check("gradient of a number", b.grad, exact**2, None)
    b = Tensor(k.from_host(np.ones((3, 1), np.float32)), requires_grad=True)
    ops.matmul(Tensor(rows.reshape(M, 1, 3)), b).backward(k.xp.ones((M, 1, 1), dtype="float32"))
    check("gradient of matmul", b.grad[:, 0], exact, 0)
    for what, left in {"columns": columns, "every other": pairs, "reversed": rows[:, ::-1]}.items():
        for multiply in (ops.matmul, ops.dense):  # of gradients with strides that BLAS does not take, too
            b = Tensor(k.from_host(np.ones((3, 1), np.float32)), requires_grad=True)
            multiply(Tensor(left), b).sum().backward()
            order = slice(None, None, -1 if what == "reversed" else 1)
            check(f"gradient of {multiply.__name__}, {what}", b.grad[:, 0], exact[:, order], 0, CHANNEL_ROUNDINGS)
    b = Tensor(zero, requires_grad=True)
    ops.gaussian_nll(Tensor(rows), k.xp.zeros_like(rows), b).backward()
    check("gradient of gaussian_nll", b.grad, (0.5 - exact**2 / 2) / M, 0)


def test_labels_may_be_whole_numbers_of_any_kind(backend):
    logits, dtypes = Tensor(backend.from_host(LOGITS)), [np.int64, np.uint8, np.int32, np.float32, np.float64, bool]
    arrays = [backend.from_host(np.array([1, 0, 1]).astype(dtype)) for dtype in dtypes]
    for labels in (*arrays, arrays[0].reshape(3, 1), [1, 0, 1]):
        assert ops.softmax_cross_entropy(logits, labels).item() == ops.softmax_cross_entropy(logits, arrays[0]).item()
