"""Indexing, iteration and joining: what is a view, what is added up, what is refused. test_ops.py has values and
gradients of all kinds of keys."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import numpy as np
import pytest

from minigrad import Tensor, ops
from minigrad.ops import catalogue


def numbers(*shape: int) -> np.ndarray:
    return np.arange(float(np.prod(shape))).reshape(shape)


@pytest.mark.parametrize("key", [0, (1, 2), slice(None, None, -1), (..., None), (slice(1, None), 0), ()], ids=str)
def test_keys_without_arrays_give_views(key):
    x = Tensor(numbers(3, 4))
    y = x[key]
    assert np.shares_memory(y.data, x.data)
    assert isinstance(y.data, np.ndarray)
    assert y.version is x.version
    assert not np.shares_memory(x[[0, 1]].data, x.data)


def test_parts_and_reversed_tensors_are_views():
    x = Tensor(numbers(4, 4))
    assert all(np.shares_memory(part.data, x.data) for part in [*ops.split(x, 2), ops.flip(x), x.T, *x])


def test_a_view_of_what_was_written_is_noticed():
    x = Tensor(numbers(3), requires_grad=True)
    y = x[1:]
    z = y * y
    x.mark_written()
    with pytest.raises(RuntimeError, match="was changed after it was used"):
        z.sum().backward()


def test_an_index_may_change_before_backward(backend):
    for index, later in ((np.array([0, 0, 2]), 1), (np.array([True, False, True]), True)):
        there = backend.from_host(index.copy())
        x = Tensor(backend.from_host(numbers(3)), requires_grad=True)
        y = x[there]
        there[...] = later
        y.sum().backward()
        expected = np.zeros(3)
        np.add.at(expected, index, 1.0)
        np.testing.assert_array_equal(backend.to_host(x.grad), expected)


def test_an_element_that_is_taken_often_keeps_its_digits(backend):
    """Added one after another, 100,000 numbers would be off by some thousand roundings in float32."""
    M = 100_000
    gy = np.full((M, 2), 0.1, np.float32)
    x = Tensor(backend.from_host(np.zeros((3, 2), np.float32)), requires_grad=True)
    x[backend.from_host(np.repeat([1, 2], [M - 1, 1]))].backward(backend.from_host(gy))
    error = backend.to_host(x.grad)[:, 0] - np.array([0, (M - 1) * float(gy[0, 0]), float(gy[0, 0])])
    assert (np.abs(error) <= 20 * 2**-24 * M * 0.1).all()
    assert error[0] == error[2] == 0


def test_a_gradient_that_is_not_finite_stays_where_it_belongs(backend):
    x = Tensor(backend.from_host(numbers(4)), requires_grad=True)
    x[backend.from_host(np.array([2, 0, 2, 1]))].backward(backend.from_host(np.array([np.inf, 1, 2, np.nan])))
    np.testing.assert_array_equal(backend.to_host(x.grad), [1, np.nan, np.inf, 0])


def test_iteration_is_that_of_arrays():
    x = Tensor(numbers(3, 2), requires_grad=True)
    assert len(x) == 3
    first, _, last = x
    (first * 10 + last).sum().backward()
    assert x.grad.tolist() == [[10, 10], [0, 0], [1, 1]]
    assert sum(Tensor([1.0, 2.0, 3.0])).item() == 6
    assert [row.shape for row in reversed(Tensor(numbers(2, 0)))] == [(0,), (0,)]
    assert list(Tensor(numbers(0, 2))) == []
    assert Tensor(numbers(2, 3, 4)).T.shape == (4, 3, 2)
    for use in (len, iter, list):
        with pytest.raises(TypeError, match=r"unsized|0-d"):
            use(Tensor(1.0))


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(catalogue.__path__)])
def test_examples_in_docstrings_are_true(name):
    module = importlib.import_module(f"minigrad.ops.catalogue.{name}")
    found = doctest.testmod(module, extraglobs={"np": np, "ops": ops, "Tensor": Tensor})
    assert found.attempted > 0
    assert found.failed == 0
