"""Axes of size 1, added and removed; axes reversed."""

from __future__ import annotations

from operator import index

from ...tensor import Operand, Tensor
from ..shape import Axis, as_axes, reshape, transpose

__all__ = ["expand_dims", "flip", "squeeze", "swapaxes"]


def squeeze(x: Operand, axis: Axis = None) -> Tensor:
    """x without the given axes, which must have size 1; None: without all axes of size 1.

    >>> ops.squeeze(np.ones((2, 1, 3, 1)), -1).shape
    (2, 1, 3)

    Raises:
        ValueError: an axis has another size or is out of range.
    """
    x = x if isinstance(x, Tensor) else Tensor(x)
    removed = as_axes("squeeze", axis, x.ndim)
    if axis is None:
        removed = tuple(a for a in removed if x.shape[a] == 1)
    if any(x.shape[a] != 1 for a in removed):
        raise ValueError(f"squeeze: axis {axis} of shape {x.shape} must have size 1")
    return reshape(x, tuple(size for a, size in enumerate(x.shape) if a not in removed))


def expand_dims(x: Operand, axis: int) -> Tensor:
    """x with a new axis of size 1, which is number `axis` of the result. (PyTorch calls it unsqueeze.)

    >>> ops.expand_dims(np.ones((2, 3)), 1).shape
    (2, 1, 3)

    Raises:
        ValueError: axis is out of range.
    """
    x = x if isinstance(x, Tensor) else Tensor(x)
    (a,) = as_axes("expand_dims", index(axis), x.ndim + 1)
    return reshape(x, (*x.shape[:a], 1, *x.shape[a:]))


def swapaxes(x: Operand, axis_1: int, axis_2: int) -> Tensor:
    """Two axes exchanged; a view of x.

    >>> ops.swapaxes(np.ones((2, 3, 4)), 0, -1).shape
    (4, 3, 2)

    Raises:
        ValueError: an axis is out of range.
    """
    x = x if isinstance(x, Tensor) else Tensor(x)
    order = list(range(x.ndim))
    (a,), (b,) = (as_axes("swapaxes", index(axis), x.ndim) for axis in (axis_1, axis_2))
    order[a], order[b] = b, a
    return transpose(x, tuple(order)) if order else x


def flip(x: Operand, axis: Axis = None) -> Tensor:
    """The elements in reverse order along an axis, several, or all (None); a view of x.

    >>> ops.flip([1.0, 2.0, 3.0]).numpy().tolist()
    [3.0, 2.0, 1.0]

    Raises:
        ValueError: an axis is out of range.
    """
    x = x if isinstance(x, Tensor) else Tensor(x)
    axes = as_axes("flip", axis, x.ndim)
    return x[tuple(slice(None, None, -1 if a in axes else 1) for a in range(x.ndim))]
