"""Comparisons, and operations that choose one of several values, element by element."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from numbers import Real
from typing import Any

from ...backend import Array, as_array, backend_of, quietly
from ...tensor import Function, Operand, Tensor
from ..elementwise import unbroadcast

__all__ = ["abs", "clip", "maximum", "minimum", "where"]


class Abs(Function):
    """y = |x|.  gx = gy * sign(x)."""

    def forward(self, x: Array) -> Array:
        self.x = x
        return self.k.xp.abs(x)

    def backward(self, gy: Array) -> tuple[Array, ...]:
        return (gy * self.k.xp.sign(self.x),)


def abs(x: Operand) -> Tensor:
    """Magnitude. Gradients: sign(x), 0 at 0."""
    return Abs()(x)


class Clip(Function):
    """y = min(max(x, low), high).  gx = gy where low <= x <= high, else 0."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def forward(self, x: Array) -> Array:
        self.x = x
        return self.k.xp.clip(x, self.low, self.high)

    def backward(self, gy: Array) -> tuple[Array, ...]:
        return (self.k.xp.where((self.x >= self.low) & (self.x <= self.high), gy, 0),)


def clip(x: Operand, low: float = -math.inf, high: float = math.inf) -> Tensor:
    """min(max(x, low), high). Gradients: 1 within the limits and on them, 0 outside.

    Raises:
        ValueError: low > high, or one is NaN.
    """
    if not low <= high:
        raise ValueError(f"clip: low {low} is above high {high}")
    return Clip(float(low), float(high))(x)


class Maximum(Function):
    """y = max(a, b).  ga = gy where a > b, gy / 2 where a = b, 0 where a < b; gb = gy - ga."""

    def forward(self, a: Array, b: Array) -> Array:
        self.a, self.b = a, b
        return self.k.xp.maximum(a, b)

    def backward(self, gy: Array) -> tuple[Array | None, ...]:
        return self.shares(gy, self.a < self.b, self.b < self.a)

    def shares(self, gy: Array, b_wins: Array, a_wins: Array) -> tuple[Array | None, ...]:
        """The gradients. Where neither wins, both have half of gy if they are equal, and all of it if one is NaN."""
        xp = self.k.xp
        either = xp.where(self.a == self.b, gy / 2, gy)
        ga = unbroadcast(self.k, xp.where(b_wins, 0, either), self.a.shape) if self.needs[0] else None
        gb = unbroadcast(self.k, xp.where(a_wins, 0, either), self.b.shape) if self.needs[1] else None
        return ga, gb


class Minimum(Maximum):
    """y = min(a, b).  The gradients are those of Maximum with < and > exchanged."""

    def forward(self, a: Array, b: Array) -> Array:
        self.a, self.b = a, b
        return self.k.xp.minimum(a, b)

    def backward(self, gy: Array) -> tuple[Array | None, ...]:
        return self.shares(gy, self.b < self.a, self.a < self.b)


def maximum(a: Operand, b: Operand) -> Tensor:
    """The larger of a and b, element by element; NaN if one is NaN.

    Gradients: gy for the larger one, half of gy for each if they are equal, as in PyTorch.
    """
    return Maximum()(a, b)


def minimum(a: Operand, b: Operand) -> Tensor:
    """The smaller of a and b, element by element; NaN if one is NaN.

    Gradients: gy for the smaller one, half of gy for each if they are equal, as in PyTorch.
    """
    return Minimum()(a, b)


class Where(Function):
    """y = a where the condition holds, else b.  ga = gy where it holds, else 0; gb the other way round."""

    def __init__(self, condition: Any) -> None:
        self.condition = condition

    def forward(self, a: Array, b: Array) -> Array:
        if self.k.on_host:
            self.condition = self.k.xp.asarray(self.condition)  # a bool or a list of them
        self.check_device(a, self.condition)
        if self.condition.dtype != "bool":
            raise ValueError(
                f"where: condition is {self.condition.dtype} but must be boolean, such as x > 0 "
                f"(condition {self.condition.shape}, a {a.shape}, b {b.shape})"
            )
        self.condition = self.condition.copy()  # it may change until backward
        self.shapes = a.shape, b.shape
        return self.k.xp.where(self.condition, a, b)

    def backward(self, gy: Array) -> tuple[Array | None, ...]:
        xp = self.k.xp
        ga = unbroadcast(self.k, xp.where(self.condition, gy, 0), self.shapes[0]) if self.needs[0] else None
        gb = unbroadcast(self.k, xp.where(self.condition, 0, gy), self.shapes[1]) if self.needs[1] else None
        return ga, gb


def where(condition: Any, a: Operand, b: Operand) -> Tensor:
    """a where the condition holds, else b; all three broadcast.

    >>> x = Tensor([2.0, -2.0])
    >>> ops.where(x > 0, x, 0.5 * x).numpy().tolist()
    [2.0, -1.0]

    Gradients: gy where the element was taken, 0 elsewhere.
    Args:
        condition: a boolean array on the device of a and b, such as the result of a comparison. It is no Tensor and has
            no gradient.
    Raises:
        ValueError: the condition is not boolean, or the shapes do not broadcast.
        TypeError: the condition is on another device.
    """
    return Where(condition)(a, b)


def comparison(compare: Callable[[Any, Any], Any]) -> Callable[[Tensor, Operand], Any]:
    """The method of Tensor for one of Python's comparisons. Its result is a boolean array of the tensor's device,
    which is no part of a graph. Numbers are rounded to the tensor's dtype, as in arithmetic. Python takes its usual
    answer for text, None and the like: not equal, and no order.

    >>> (Tensor([1.0, 2.0]) > 1.5).tolist()
    [False, True]
    """

    @quietly
    def method(x: Tensor, other: Operand) -> Any:
        if other is None or isinstance(other, str):
            return NotImplemented
        k = backend_of(x.data)
        if isinstance(other, Real):
            other = float(other)
        else:
            other = other.data if isinstance(other, Tensor) else as_array(other)
            backend_of(x.data, other, what="comparison")
        return k.xp.asarray(compare(x.data, other))  # NumPy gives a scalar if there are no axes

    return method


COMPARISONS = {name: comparison(getattr(operator, name)) for name in ("eq", "ne", "lt", "le", "gt", "ge")}
