"""Tensors joined, cut and padded."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from numbers import Integral
from operator import index
from typing import Any

from ...backend import Array
from ...tensor import Function, Operand, Tensor
from ..shape import as_axes
from .axes import expand_dims

__all__ = ["concatenate", "pad", "split", "stack"]

Widths = int | tuple[int, int] | Sequence[tuple[int, int]]


class Concatenate(Function):
    """y = the xs one after another along an axis.  Each gx is its part of gy."""

    def __init__(self, axis: int) -> None:
        self.axis = axis

    def forward(self, *xs: Array) -> Array:
        shapes = [x.shape for x in xs]
        (self.axis,) = as_axes("concatenate", index(self.axis), len(shapes[0])) if shapes[0] else (0,)
        others = {shape[: self.axis] + shape[self.axis + 1 :] for shape in shapes}
        if () in shapes or len({len(shape) for shape in shapes}) > 1 or len(others) > 1:
            raise ValueError(f"concatenate: shapes must be equal but for axis {self.axis}, found {_listed(shapes)}")
        self.sizes = [shape[self.axis] for shape in shapes]
        return self.k.xp.concatenate(xs, axis=self.axis)

    def backward(self, gy: Array) -> tuple[Array, ...]:
        bounds = pairwise([0, *accumulate(self.sizes)])
        return tuple(gy[_along(self.axis, slice(*both))] for both in bounds)


def concatenate(xs: Sequence[Operand], axis: int = 0) -> Tensor:
    """Tensors one after another along an axis.

    >>> ops.concatenate([np.ones((2, 3)), np.zeros((1, 3))]).shape
    (3, 3)

    Shapes: equal but for this axis, at least one axis.
    Gradients: each gx is its part of gy.
    Raises:
        ValueError: there is none, shapes do not fit, or the axis is out of range.
    """
    return Concatenate(axis)(*_checked("concatenate", xs))


def stack(xs: Sequence[Operand], axis: int = 0) -> Tensor:
    """Tensors of one shape side by side along a new axis, which is `axis` of the result.

    >>> ops.stack([np.ones(3), np.zeros(3)], axis=-1).shape
    (3, 2)

    Gradients: each gx is its part of gy.
    Raises:
        ValueError: there is none, shapes differ, or the axis is out of range.
    """
    tensors = [x if isinstance(x, Tensor) else Tensor(x) for x in _checked("stack", xs)]
    shape = tensors[0].shape
    if any(x.shape != shape for x in tensors):
        raise ValueError(f"stack: shapes must be equal, found {_listed([x.shape for x in tensors])}")
    (axis,) = as_axes("stack", index(axis), len(shape) + 1)
    return concatenate([expand_dims(x, axis) for x in tensors], axis)


def split(x: Operand, sections: int | Sequence[int], axis: int = 0) -> list[Tensor]:
    """x cut along an axis, as by numpy.split; the parts are views.

    >>> [part.shape for part in ops.split(np.ones((5, 2)), [1, 3])]
    [(1, 2), (2, 2), (2, 2)]

    Args:
        sections: the number of equal parts, or where parts 1, 2, ... begin.
    Raises:
        ValueError: the axis is out of range, or its size is not a multiple of the number of parts.
    """
    x = x if isinstance(x, Tensor) else Tensor(x)
    (axis,) = as_axes("split", index(axis), x.ndim)
    size = x.shape[axis]
    if isinstance(sections, int | Integral):  # mypy does not know that an int is Integral
        count = int(sections)
        if count < 1 or size % count:
            raise ValueError(f"split: axis {axis} of size {size} has no {count} equal parts (x {x.shape})")
        sections = [size // count * i for i in range(1, count)]
    bounds = [0, *map(index, sections), size]
    return [x[_along(axis, slice(*both))] for both in pairwise(bounds)]


class Pad(Function):
    """y = x with a constant around it.  gx is the inner part of gy."""

    def __init__(self, widths: Any, value: float) -> None:
        self.widths, self.value = widths, value

    def forward(self, x: Array) -> Array:
        pairs = _as_pairs(self.widths, x.shape)
        self.inside = tuple(slice(before, before + size) for (before, _), size in zip(pairs, x.shape, strict=True))
        return self.k.xp.pad(x, pairs, constant_values=self.value)

    def backward(self, gy: Array) -> tuple[Array, ...]:
        return (gy[self.inside],)


def pad(x: Operand, widths: Widths, value: float = 0.0) -> Tensor:
    """x with a constant before and after it on each axis.

    >>> ops.pad(np.ones((2, 3)), [(0, 0), (1, 2)]).shape
    (2, 6)

    Gradients: gx is the inner part of gy.
    Args:
        widths: an int >= 0 for all sides, (before, after) for all axes, or one such pair for each axis.
    Raises:
        ValueError: widths are negative or do not fit x.
    """
    return Pad(widths, float(value))(x)


def _as_pairs(widths: Any, shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """(before, after) for each axis."""
    if isinstance(widths, Integral):
        widths = (widths, widths)
    found = list(widths)
    if len(found) == 2 and all(isinstance(width, Integral) for width in found):
        found = [found] * len(shape)
    pairs = tuple(tuple(map(index, both)) for both in found)
    if not shape or len(pairs) != len(shape) or any(len(both) != 2 or min(both) < 0 for both in pairs):
        raise ValueError(
            f"pad: widths are {widths!s:.99} but must be an int >= 0, a pair (before, after), or a pair for each axis "
            f"(x {shape})"
        )
    return pairs  # type: ignore[return-value]


def _along(axis: int, part: slice) -> tuple[slice, ...]:
    """The key that takes a part of one axis, and the axes before it whole."""
    return (*[slice(None)] * axis, part)


def _checked(name: str, xs: Sequence[Operand]) -> list[Operand]:
    """The tensors as a list."""
    found = list(xs)
    if not found:
        raise ValueError(f"{name}: needs at least one tensor")
    return found


def _listed(shapes: list[tuple[int, ...]]) -> str:
    """The first shapes, for a message."""
    return ", ".join(map(str, shapes[:6])) + (f" and {len(shapes) - 6} more" if len(shapes) > 6 else "")
