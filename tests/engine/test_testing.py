"""The checkers themselves: they must pass what is right and fail on every planted error."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest

from minigrad import Function, Tensor, nn, ops
from minigrad.testing import adjoint_check, gradcheck


def tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    rng = np.random.default_rng(1)
    return [Tensor(rng.normal(size=shape), requires_grad=True) for shape in shapes]


class PlantedDense(Function):
    """dense with a right gradient that `plant` then spoils."""

    def __init__(self, plant):
        self.plant = plant

    def forward(self, x, weight, bias):
        self.x, self.weight = x, weight
        return x @ weight + bias

    def backward(self, gy):
        return self.plant(gy @ self.weight.T, self.x.T @ gy, gy.sum(axis=0))


def one_element(g, factor):
    g = g.copy()
    g[1, 2] *= factor
    return g


PLANTS = {
    "zero": (lambda gx, gw, gb: (gx, gw * 0, gb), "input 1"),
    "negated": (lambda gx, gw, gb: (-gx, gw, gb), "input 0"),
    "0.1 % off": (lambda gx, gw, gb: (gx, gw * 1.001, gb), "input 1"),
    "five millionths off": (lambda gx, gw, gb: (gx, gw * (1 + 5e-6), gb), "input 1"),
    "transposed": (lambda gx, gw, gb: (gx, gw.T.copy(), gb), "input 1"),
    "missing bias": (lambda gx, gw, gb: (gx, gw, gb * 0), "input 2"),
    "bias of one row only": (lambda gx, gw, gb: (gx, gw, gb / 4), "input 2"),
    "one element": (lambda gx, gw, gb: (gx, one_element(gw, 1.001), gb), r"input 1 of shape \(4, 4\) at \[1, 2\]"),
    "one element negated": (lambda gx, gw, gb: (one_element(gx, -1), gw, gb), r"input 0 of shape \(4, 4\) at \[1, 2\]"),
    "NaN": (lambda gx, gw, gb: (gx, gw * np.nan, gb), "input 1"),
}


@pytest.mark.parametrize("name", PLANTS)
def test_gradcheck_catches(name):
    plant, where = PLANTS[name]
    x, weight, bias = tensors((4, 4), (4, 4), (4,))
    with pytest.raises(AssertionError, match=where):
        gradcheck(lambda *inputs: PlantedDense(plant)(*inputs), x, weight, bias)


def test_gradcheck_names_both_values():
    with pytest.raises(AssertionError, match="16 of 16 elements are wrong") as caught:
        gradcheck(lambda *xs: PlantedDense(lambda gx, gw, gb: (1.5 * gx, gw, gb))(*xs), *tensors((4, 4), (4, 4), (4,)))
    analytic, numeric = re.search(r"analytic (\S+) but numeric (\S+)", str(caught.value)).groups()
    assert float(analytic) / float(numeric) == pytest.approx(1.5, rel=1e-6)


def test_gradcheck_uses_a_random_gy():
    """With gy = 1 the gradient of softmax is zero, so an implementation that returns zero would pass."""

    class SoftmaxWithZeroGradient(Function):
        def forward(self, x):
            e = np.exp(x)
            return e / e.sum(axis=1, keepdims=True)

        def backward(self, gy):
            return (gy * 0,)

    with pytest.raises(AssertionError, match=r"analytic -?0 "):
        gradcheck(lambda x: SoftmaxWithZeroGradient()(x), *tensors((3, 4)))


def test_gradcheck_of_a_gradient_that_is_zero():
    """logsumexp(x) - logsumexp(x + 1) is constant; differences give rounding noise, which must not fail the check."""
    gradcheck(lambda x: ops.logsumexp(x, axis=1) - ops.logsumexp(x + 1.0, axis=1), *tensors((3, 4)))


def test_gradcheck_catches_a_path_that_was_cut():
    with pytest.raises(AssertionError, match="input 0"):
        gradcheck(lambda x: x * x.detach(), *tensors((3,)))


def test_gradcheck_reaches_parameters_and_restores_everything():
    model = nn.Sequential(nn.Dense(3, 2), nn.Tanh())
    model.to(dtype="float64")
    (x,) = tensors((4, 3))
    before = model.state_dict(), x.data.copy()
    arrays = [(p.data, p.grad) for p in model.parameters()]
    model.parameters()[0].grad[...] = 7.0

    gradcheck(model, x, parameters=model.parameters())
    gradcheck(lambda: model(x.detach()), parameters=model.parameters())

    assert all(np.array_equal(before[0][name], value) for name, value in model.state_dict().items())
    assert np.array_equal(before[1], x.data)
    assert x.grad is None
    assert all(p.data is data and p.grad is grad for p, (data, grad) in zip(model.parameters(), arrays, strict=True))
    assert (model.parameters()[0].grad == 7.0).all()


def test_gradcheck_names_a_wrong_parameter():
    x, *parameters = tensors((4, 4), (4, 4), (4,))
    planted = PlantedDense(lambda gx, gw, gb: (gx, gw, 0 * gb))
    with pytest.raises(AssertionError, match="parameter 1"):
        gradcheck(lambda x: copy.copy(planted)(x, *parameters), x, parameters=parameters)


def test_gradcheck_restores_data_after_an_error():
    (x,) = tensors((3,))
    before, calls = x.data.copy(), []

    def fails_late(x):
        calls.append(1)
        if len(calls) == 3:
            raise OSError("planted")
        return x * 2.0

    with pytest.raises(OSError, match="planted"):
        gradcheck(fails_late, x)
    assert np.array_equal(x.data, before)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([Tensor(np.ones(2, dtype="float32"), requires_grad=True)], TypeError),
        ([Tensor(np.ones(2))], ValueError),
        ([], ValueError),
    ],
)
def test_gradcheck_refuses_what_it_cannot_check(arguments, error):
    with pytest.raises(error, match="gradcheck"):
        gradcheck(lambda *xs: Tensor(np.ones(2)) if not xs else xs[0] * 1.0, *arguments)


MATRIX = np.random.default_rng(2).normal(size=(5, 4))
ADJOINTS = {
    "negated": lambda y: -(MATRIX.T @ y),
    "zero": lambda y: 0 * (MATRIX.T @ y),
    "scaled by 1 + 1e-9": lambda y: (1 + 1e-9) * (MATRIX.T @ y),
    "one entry": lambda y: one_element(MATRIX, 0.999).T @ y,
    "one entry missing": lambda y: one_element(MATRIX, 0).T @ y,
    "wrong shape": lambda y: (MATRIX.T @ y)[:3],
    "NaN": lambda y: np.nan * (MATRIX.T @ y),
}


def test_adjoint_check_passes_the_adjoint():
    adjoint_check(lambda x: MATRIX @ x, lambda y: MATRIX.T @ y, (4,), (5,))


@pytest.mark.parametrize("name", ADJOINTS)
def test_adjoint_check_catches(name):
    with pytest.raises(AssertionError, match="adjoint_check"):
        adjoint_check(lambda x: MATRIX @ x, ADJOINTS[name], (4,), (5,))


def test_adjoint_check_of_a_map_that_is_not_linear():
    with pytest.raises(AssertionError):
        adjoint_check(lambda x: MATRIX @ x + 1, lambda y: MATRIX.T @ y, (4,), (5,))
