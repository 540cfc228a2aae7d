"""The catalogue beyond the table of cases: ties, NaN, extreme numbers, many terms, and what is refused."""

from __future__ import annotations

import math
import re

import naive
import numpy as np
import pytest
from op_cases import INTEGER

from minigrad import Tensor, nn, ops

EPS32 = 2.0**-23


def leaf(k, values, dtype="float64"):
    return Tensor(k.from_host(np.array(values, dtype=dtype)), requires_grad=True)


def gradients(k, operation, *inputs, gy=None):
    y = operation(*inputs)
    y.backward(k.xp.ones_like(y.data) if gy is None else k.from_host(np.array(gy)))
    return [k.to_host(x.grad).tolist() for x in inputs]


# ---- choices ----


def test_equal_extremes_share_the_gradient(backend):
    x = [[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]
    (largest,) = gradients(backend, lambda x: ops.max(x, axis=1), leaf(backend, x), gy=[1.0, 6.0])
    assert largest == [[0, 0.5, 0.5], [2, 2, 2]]
    (smallest,) = gradients(backend, lambda x: ops.min(x, axis=0, keepdims=True), leaf(backend, x), gy=[[1.0, 2, 3]])
    assert smallest == [[1, 0, 0], [0, 2, 3]]
    (whole,) = gradients(backend, ops.max, leaf(backend, x))
    assert whole == [[0, 0.5, 0.5], [0, 0, 0]]


def test_equal_elements_of_two_inputs_halve_the_gradient(backend):
    a, b = [1.0, 2.0, 3.0, -0.0], [2.0, 2.0, 1.0, 0.0]
    assert gradients(backend, ops.maximum, leaf(backend, a), leaf(backend, b)) == [[0, 0.5, 1, 0.5], [1, 0.5, 0, 0.5]]
    assert gradients(backend, ops.minimum, leaf(backend, a), leaf(backend, b)) == [[1, 0.5, 0, 0.5], [0, 0.5, 1, 0.5]]


def test_not_a_number_wins_and_takes_the_gradient(backend):
    x = leaf(backend, [[1.0, np.nan, 2.0], [np.nan, np.nan, 0.0]])
    for op in (ops.max, ops.min):
        assert np.isnan(op(x, axis=1).numpy()).all()
        x.grad = None
        assert gradients(backend, lambda x, op=op: op(x, axis=1), x) == [[[0, 1, 0], [0.5, 0.5, 0]]]
    a, b = leaf(backend, [np.nan, 1.0]), leaf(backend, [1.0, np.nan])
    assert np.isnan(ops.maximum(a, b).numpy()).all()
    assert np.isnan(ops.minimum(a, b).numpy()).all()


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("op", INTEGER)
def test_indices_of_extremes(op, keepdims, backend):
    rng = np.random.default_rng(3)
    for shape in [(3, 4), (2, 3, 2), (5,), (1, 1), (4, 3)]:
        x = rng.integers(0, 3, shape).astype("float32")  # with many ties
        for axis in (None, *range(-len(shape), len(shape))):
            found = getattr(ops, op)(Tensor(backend.from_host(x)), axis, keepdims)
            assert type(found) is backend.xp.ndarray
            assert found.dtype.kind == "i"
            np.testing.assert_array_equal(backend.to_host(found), getattr(naive, op)(x, axis, keepdims))
    assert int(getattr(ops, op)(Tensor(backend.from_host(np.float32(2))))) == 0
    assert int(getattr(ops, op)(backend.from_host(np.array([1.0, np.nan, 5.0, -5.0])))) == 1


def test_where_takes_conditions_of_all_kinds():
    for condition, expected in ((np.array([True, False]), [1, 0]), ([True, False], [1, 0]), (True, [1, 2])):
        assert ops.where(condition, Tensor([1.0, 2.0]), 0.0).numpy().tolist() == expected
    x = Tensor([1.0, -2.0], requires_grad=True)
    ops.where(x > 0, x, 0.5 * x).sum().backward()
    assert x.grad.tolist() == [1, 0.5]


# ---- softmax and activations ----


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_softmax_of_extreme_logits(dtype, backend):
    rows = np.array([[1e4, -1e4, 0.0], [88.0, 89.0, -750.0], [-1e30, -1e30, 0.0], [5.0, -np.inf, 5.0]], dtype)
    x = leaf(backend, rows, dtype)
    y, z = ops.softmax(x), ops.log_softmax(x)
    expected = [[1, 0, 0], [1 / (1 + math.e), math.e / (1 + math.e), 0], [0, 0, 1], [0.5, 0, 0.5]]
    np.testing.assert_allclose(y.numpy(), expected, rtol=4 * EPS32 if dtype == "float32" else 1e-15)
    np.testing.assert_allclose(z.numpy()[0], [0, -2e4, -1e4])
    np.testing.assert_allclose(z.numpy()[1:2], naive.log_softmax(rows[1:2]), rtol=4 * EPS32)
    y.backward(backend.from_host(np.ones((4, 3), dtype)))
    assert np.abs(backend.to_host(x.grad)).max() < 1e-6  # the sum is 1 whatever x is
    one_sided = leaf(backend, [0.0, -1000.0], dtype)
    ops.log_softmax(one_sided).backward(backend.from_host(np.array([0, 1], dtype)))
    np.testing.assert_allclose(backend.to_host(one_sided.grad), [-1, 1])  # where log(softmax) would be log 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("op", ["gelu", "silu"])
def test_gates_over_the_whole_range(op, dtype, backend):
    """Right to some roundings of the value, also where it vanishes; the gradient is 0 or 1 far out, and finite."""
    top = float(np.finfo(dtype).max)
    steps = np.array([0, 1e-30, 1e-3, 0.1, 0.5, 1, 2, 3, 5, 8, 12, 50, 99, 101, 1e4, 1e12, 1e25, top])
    numbers = np.concatenate([steps, -steps]).astype(dtype)
    x = leaf(backend, numbers, dtype)
    y = getattr(ops, op)(x)
    eps = float(np.finfo(dtype).eps)
    expected = getattr(naive, op)(numbers)
    # the argument of the exponential is rounded to some eps of itself, so its result to that many eps
    inner = np.minimum(np.abs(numbers.astype("float64")), 30) ** (3 if op == "gelu" else 1)
    error = np.abs(y.numpy().astype("float64") - expected)
    assert (error <= eps * (8 + 4 * inner) * np.abs(expected) + 2 * float(np.finfo(dtype).tiny)).all()
    y.backward(backend.from_host(np.ones(len(numbers), dtype)))
    gradient = backend.to_host(x.grad)
    assert np.isfinite(gradient).all()
    far = np.abs(numbers) > 200
    np.testing.assert_allclose(gradient[far], numbers[far] > 0, atol=1e-30)


def test_gelu_is_near_its_exact_form():
    x = np.linspace(-6, 6, 1001)
    exact = [u * 0.5 * (1 + math.erf(u / math.sqrt(2))) for u in x]
    assert 1e-4 < np.abs(ops.gelu(x).numpy() - exact).max() < 5e-4


# ---- sums of many numbers, and of far ones ----


def test_the_variance_keeps_its_digits_when_the_mean_is_large(backend):
    """Mean 4096 and deviations of 0.25, exact in float32: the mean of x^2 minus the squared mean would lose all."""
    signs = np.where(np.arange(3 * 1000) % 3, 1.0, -1.0).reshape(3, 1000)
    x = (4096 + 0.25 * signs).astype("float32")
    exact = x.astype("float64").var(axis=1)
    found = ops.var(Tensor(backend.from_host(x)), axis=1).numpy()
    np.testing.assert_allclose(found, exact, rtol=8 * EPS32)
    np.testing.assert_allclose(ops.std(Tensor(backend.from_host(x.T)), axis=0).numpy(), np.sqrt(exact), rtol=8 * EPS32)
    ones, zeros = (backend.from_host(v) for v in (np.ones(1000, "float32"), np.zeros(1000, "float32")))
    y = ops.layer_norm(Tensor(backend.from_host(x)), ones, zeros, epsilon=0).numpy()
    deviations = x.astype("float64") - x.astype("float64").mean(axis=1, keepdims=True)
    np.testing.assert_allclose(y, deviations / np.sqrt(exact)[:, None], rtol=16 * EPS32)


def test_the_deviation_of_equal_numbers_has_the_gradient_zero(backend):
    x = leaf(backend, [[0.1, 0.1, 0.1], [1.0, 2.0, 3.0]])
    (gradient,) = gradients(backend, lambda x: ops.std(x, axis=1), x)
    np.testing.assert_allclose(gradient, [[0, 0, 0], np.array([-1, 0, 1]) / math.sqrt(6)], atol=1e-15)


def test_an_extreme_of_many_equal_numbers_gives_each_its_share(backend):
    x = leaf(backend, np.ones((100_000, 1)), "float32")
    (gradient,) = gradients(backend, ops.max, x)
    np.testing.assert_allclose(gradient, 1e-5, rtol=EPS32)


# ---- a table of vectors ----


def test_the_layer_looks_rows_up_in_its_table():
    table, ids = nn.Embedding(50, 2), np.array([[0, 3], [3, 1]])
    table.initialize(1)
    assert 0.7 < table.weight.numpy().std() < 1.3
    np.testing.assert_array_equal(table(ids).numpy(), table.weight.numpy()[ids])


# ---- empty arrays ----

EMPTY = [(0,), (0, 3), (3, 0), (2, 0, 3), (5, 0, 0)]
REDUCTIONS = ["sum", "mean", "logsumexp", "max", "min", "argmax", "argmin", "var", "std"]


@pytest.mark.parametrize("shape", EMPTY, ids=str)
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_of_empty_arrays(name, shape, backend):
    """Over axes that have elements the result is empty; over those that have none only a sum is known."""
    for axis in (*range(len(shape)), None):
        for keepdims in (False, True):
            x = leaf(backend, np.zeros(shape), "float32")
            count = math.prod(shape) if axis is None else shape[axis]
            if not count and name not in ("sum", "logsumexp"):
                with pytest.raises(ValueError, match=rf"^{name}: .*axis {axis} of shape {re.escape(str(shape))}"):
                    getattr(ops, name)(x, axis, keepdims)
                continue
            y = getattr(ops, name)(x, axis, keepdims)
            nothing = np.zeros(shape).sum(axis, keepdims=keepdims)
            assert y.shape == nothing.shape
            if name in ("sum", "logsumexp"):  # of nothing: 0, and its logarithm
                np.testing.assert_array_equal(y.numpy(), nothing - (math.inf if name == "logsumexp" else 0))
            if name not in INTEGER:
                y.backward(backend.xp.ones_like(y.data))
                assert (x.grad.shape, x.grad.dtype) == (shape, "float32")
