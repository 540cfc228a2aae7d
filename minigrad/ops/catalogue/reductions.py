"""Reductions over axes besides those in ../shape.py. `axis` and `keepdims` mean the same as there."""

from __future__ import annotations

import math
from operator import index

from ...backend import Array, as_array, backend_of
from ...backend.catalogue import CatalogueBackend
from ...tensor import Function, Operand, Tensor
from ..shape import Axis, as_axes, kept_shape

__all__ = ["argmax", "argmin", "max", "min", "std", "var"]


class Max(Function):
    """y = the largest x over axes.  gx = gy where x = y, shared equally where several are, else 0."""

    k: CatalogueBackend

    def __init__(self, axis: Axis, keepdims: bool) -> None:
        self.axis, self.keepdims = axis, keepdims

    def extreme(self, x: Array, axes: tuple[int, ...]) -> Array:
        """The one that is looked for."""
        return self.k.largest(x, axes)

    def forward(self, x: Array) -> Array:
        self.axes = _axes_with_elements(self.name.lower(), self.axis, x.shape)
        y = self.extreme(x, self.axes)
        self.found = (x == y) | (x != x)  # the latter: NaN, which differs from itself
        return y if self.keepdims else y.squeeze(axis=self.axes)

    def backward(self, gy: Array) -> tuple[Array, ...]:
        shares = self.found.sum(axis=self.axes, dtype=gy.dtype, keepdims=True)  # how many share a gradient
        return (self.k.xp.where(self.found, gy.reshape(shares.shape) / shares, 0),)


class Min(Max):
    """y = the smallest x over axes.  gx as for Max."""

    def extreme(self, x: Array, axes: tuple[int, ...]) -> Array:
        return self.k.smallest(x, axes)


def max(x: Operand, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The largest element over axes; NaN if one is NaN.

    Gradients: gy for the largest element and 0 for the others. Equal largest elements share gy equally, as in
        torch.amax.
    Raises:
        ValueError: there is nothing to choose from.
    """
    return Max(axis, bool(keepdims))(x)


def min(x: Operand, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The smallest element over axes; NaN if one is NaN.

    Gradients: gy for the smallest element and 0 for the others. Equal smallest elements share gy equally, as in
        torch.amin.
    Raises:
        ValueError: there is nothing to choose from.
    """
    return Min(axis, bool(keepdims))(x)


def argmax(x: Operand, axis: int | None = None, keepdims: bool = False) -> Array:
    """The index of the largest element along one axis, or in the flattened array. The first one counts if several are
    equal, and NaN counts as the largest. The result is an integer array, not a Tensor, and has no gradient.

    >>> ops.argmax([[1.0, 5.0, 2.0], [4.0, 0.0, 3.0]], axis=1)
    array([1, 0])

    Raises:
        ValueError: there is nothing to choose from, or axis is out of range.
    """
    return _index("argmax", x, axis, keepdims)


def argmin(x: Operand, axis: int | None = None, keepdims: bool = False) -> Array:
    """The index of the smallest element along one axis, or in the flattened array. The first one counts if several are
    equal, and NaN counts as the smallest. The result is an integer array, not a Tensor, and has no gradient.

    Raises:
        ValueError: there is nothing to choose from, or axis is out of range.
    """
    return _index("argmin", x, axis, keepdims)


def _index(name: str, x: Operand, axis: int | None, keepdims: bool) -> Array:
    x = x.data if isinstance(x, Tensor) else as_array(x)
    axes = _axes_with_elements(name, None if axis is None else index(axis), x.shape)
    xp = backend_of(x, what=name).xp
    if not x.size:
        shape = kept_shape(x.shape, axes)
        found = xp.zeros(shape, dtype="int64")
        return found if keepdims else found.squeeze(axis=axes)
    found = x.argmax(axis=axis, keepdims=keepdims) if name == "argmax" else x.argmin(axis=axis, keepdims=keepdims)
    return xp.asarray(found)  # NumPy gives a scalar if no axis is left


class Var(Function):
    """y = sum of (x - mean)^2 over axes / (count - correction).  gx = gy * 2 (x - mean) / (count - correction).

    (The mean moves with x as well, but to first order that changes nothing, because the deviations sum to 0.)
    """

    k: CatalogueBackend

    def __init__(self, axis: Axis, keepdims: bool, correction: float) -> None:
        self.axis, self.keepdims, self.correction = axis, keepdims, correction

    def forward(self, x: Array) -> Array:
        self.x, self.axes = x, as_axes(self.name.lower(), self.axis, x.ndim)
        count = math.prod(x.shape[a] for a in self.axes)
        self.divisor = count - self.correction
        if self.divisor <= 0:
            raise ValueError(
                f"{self.name.lower()}: {count} elements over axis {self.axis} of shape {x.shape} are too few for "
                f"correction {self.correction}"
            )
        deviations = self.k.centred(x, self.axes)
        return self.k.sum(deviations * deviations, self.axes, self.keepdims) / self.divisor

    def backward(self, gy: Array) -> tuple[Array, ...]:
        gy = gy.reshape(kept_shape(self.x.shape, self.axes))
        return (gy * self.k.centred(self.x, self.axes) * (2 / self.divisor),)


class Std(Var):
    """y = sqrt(variance).  gx = gy / y * (x - mean) / (count - correction), 0 where y = 0."""

    def forward(self, x: Array) -> Array:
        self.y = self.k.xp.sqrt(super().forward(x))
        return self.y

    def backward(self, gy: Array) -> tuple[Array, ...]:
        gy = gy / self.k.xp.where(self.y == 0, 1, self.y)  # where y is 0, all x - mean are 0
        gy = gy.reshape(kept_shape(self.x.shape, self.axes))
        return (gy * self.k.centred(self.x, self.axes) * (1 / self.divisor),)


def var(x: Operand, axis: Axis = None, keepdims: bool = False, *, correction: float = 0) -> Tensor:
    """The variance over axes: sum of (x - mean)^2 / (count - correction).

    Gradients: gx = gy * 2 (x - mean) / (count - correction).
    Args:
        correction: 0, as in NumPy; 1 gives the unbiased estimate, which is PyTorch's default.
    Raises:
        ValueError: count is not larger than correction.
    """
    return Var(axis, bool(keepdims), float(correction))(x)


def std(x: Operand, axis: Axis = None, keepdims: bool = False, *, correction: float = 0) -> Tensor:
    """The standard deviation over axes: sqrt(var(x)).

    Gradients: gx = gy * (x - mean) / (std * (count - correction)), and 0 where all elements are equal, as in PyTorch.
    Args:
        correction: as for `var`.
    Raises:
        ValueError: count is not larger than correction.
    """
    return Std(axis, bool(keepdims), float(correction))(x)


def _axes_with_elements(name: str, axis: Axis, shape: tuple[int, ...]) -> tuple[int, ...]:
    axes = as_axes(name, axis, len(shape))
    if not math.prod(shape[a] for a in axes):
        raise ValueError(f"{name}: there are no elements over axis {axis} of shape {shape}")
    return axes
