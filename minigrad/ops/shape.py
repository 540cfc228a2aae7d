"""Reshaping and reductions over axes.

`axis` is an int, a tuple of ints or None (all axes); `keepdims=True` keeps reduced axes with size 1.
"""

from __future__ import annotations

import math
from operator import index
from typing import Any

from ..backend import Array
from ..tensor import Function, Operand, Tensor

__all__ = ["logsumexp", "mean", "reshape", "sum", "transpose"]

Axis = int | tuple[int, ...] | None


def as_axes(name: str, axis: Axis, ndim: int) -> tuple[int, ...]:
    """axis as a tuple of non-negative ints. `name` is the operation, for messages."""
    axes = tuple(range(ndim)) if axis is None else as_sizes((axis,))
    if any(not -ndim <= a < ndim for a in axes) or len({a % ndim for a in axes}) < len(axes):
        raise ValueError(f"{name}: axis {axis} is out of range or repeated for a tensor with {ndim} axes")
    return tuple(a % ndim for a in axes)


def as_sizes(given: tuple[Any, ...]) -> tuple[int, ...]:
    """Sizes given as several numbers, or as one tuple, list or array, as a tuple of ints."""
    several = given[0] if len(given) == 1 and hasattr(given[0], "__len__") else given
    return tuple(map(index, several))


def kept_shape(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a reduction over axes with keepdims=True."""
    return tuple(1 if i in axes else size for i, size in enumerate(shape))


class Reshape(Function):
    """y = x in another shape.  gx = gy in the shape of x."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def forward(self, x: Array) -> Array:
        self.x_shape = x.shape
        return x.reshape(self.shape)

    def backward(self, gy: Array) -> tuple[Array, ...]:
        return (gy.reshape(self.x_shape),)


def reshape(x: Operand, *shape: int | tuple[int, ...]) -> Tensor:
    """The same elements in another shape, given as ints or one tuple; one entry may be -1."""
    return Reshape(as_sizes(shape))(x)


class Transpose(Function):
    """y = x with its axes in another order.  gx = gy with the axes back in their places."""

    def __init__(self, axes: tuple[int, ...] | None) -> None:
        self.axes = axes

    def forward(self, x: Array) -> Array:
        self.axes = as_axes("transpose", self.axes or tuple(reversed(range(x.ndim))), x.ndim)
        return x.transpose(self.axes)

    def backward(self, gy: Array) -> tuple[Array, ...]:
        assert self.axes is not None
        inverse = [self.axes.index(axis) for axis in range(gy.ndim)]
        return (gy.transpose(inverse),)


def transpose(x: Operand, *axes: int | tuple[int, ...]) -> Tensor:
    """Axes in another order; without an order, reversed."""
    return Transpose(as_sizes(axes) or None)(x)


class Sum(Function):
    """y = sum of x over axes.  gx = gy, repeated along these axes."""

    def __init__(self, axis: Axis, keepdims: bool) -> None:
        self.axis, self.keepdims = axis, keepdims

    def forward(self, x: Array) -> Array:
        self.x_shape, self.axes = x.shape, as_axes("sum", self.axis, x.ndim)
        return self.k.sum(x, self.axes, self.keepdims)

    def backward(self, gy: Array) -> tuple[Array, ...]:
        gy = gy.reshape(kept_shape(self.x_shape, self.axes))
        return (self.k.xp.broadcast_to(gy, self.x_shape),)


def sum(x: Operand, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Sum over axes."""
    return Sum(axis, bool(keepdims))(x)


class LogSumExp(Function):
    """y = log(sum of e^x over axes).  gx = gy * e^(x - y), the softmax of x."""

    def __init__(self, axis: Axis, keepdims: bool) -> None:
        self.axis, self.keepdims = axis, keepdims

    def forward(self, x: Array) -> Array:
        xp = self.k.xp
        self.x, self.axes = x, as_axes("logsumexp", self.axis, x.ndim)
        if x.size:
            top = x.max(axis=self.axes, keepdims=True)
            top = xp.where(xp.isfinite(top), top, 0)  # all -inf: the result is -inf and not NaN
        else:
            top = xp.zeros(kept_shape(x.shape, self.axes), x.dtype)  # the sum of nothing is 0, its logarithm -inf
        total = self.k.sum(xp.exp(x - top), self.axes, keepdims=True)  # at least 1; 0 where all are -inf; or NaN
        self.y = xp.where(total == 0, -math.inf, xp.log(xp.where(total == 0, 1, total)) + top)
        return self.y if self.keepdims else self.y.squeeze(axis=self.axes)

    def backward(self, gy: Array) -> tuple[Array, ...]:
        xp = self.k.xp
        finite = xp.where(self.y == -math.inf, 0, self.y)  # all -inf: the gradient is 0 and not NaN
        return (gy.reshape(self.y.shape) * xp.exp(self.x - finite),)


def logsumexp(x: Operand, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """log(sum(exp(x))) over axes, without overflow. Gradients: softmax of x over those axes."""
    return LogSumExp(axis, keepdims)(x)


def mean(x: Operand, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Arithmetic mean over axes: sum / count.

    Raises:
        ValueError: there is nothing to average.
    """
    x = x if isinstance(x, Tensor) else Tensor(x)
    count = math.prod(x.shape[a] for a in as_axes("mean", axis, x.ndim))
    if count == 0:
        raise ValueError(f"mean: no elements to average over axis {axis} of shape {x.shape}")
    return sum(x, axis, keepdims) * (1 / count)
