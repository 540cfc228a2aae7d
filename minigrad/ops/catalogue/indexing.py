"""Indexing as in NumPy: `x[key]`, and rows of a table."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from ...backend import Array, Backend, backend_of
from ...backend.catalogue import CatalogueBackend
from ...tensor import Function, Operand, Tensor

__all__ = ["embedding", "getitem"]


class GetItem(Function):
    """y = x[key].  gx is 0, with each gy added to the element that it was taken from."""

    k: CatalogueBackend

    def __init__(self, key: Any) -> None:
        self.key = key

    def forward(self, x: Array) -> Array:
        self.x_shape, self.key = x.shape, _as_key(self.k, self.key)
        arrays = [part for part in self.key if hasattr(part, "dtype")]
        self.check_device(x, *arrays)
        try:
            return self.k.take(x, self.key) if arrays else x[self.key]
        except IndexError as error:
            raise IndexError(f"getitem: {error} (x {x.shape})") from None

    def backward(self, gy: Array) -> tuple[Array, ...]:
        return (self.k.add_at(gy, self.key, self.x_shape),)


def getitem(x: Operand, key: Any) -> Tensor:
    """x[key] as in NumPy: ints, slices, `...`, None, arrays or lists of integers or booleans, or a tuple of these.

    >>> ops.getitem(np.float32([[1, 2], [3, 4]]), [1, 0, 1]).numpy().tolist()  # x[[1, 0, 1]] of a Tensor x
    [[3.0, 4.0], [1.0, 2.0], [3.0, 4.0]]

    Without arrays, the result is a view of x.

    Gradients: gx is 0, with each gy added to the element that it was taken from.
    Raises:
        IndexError: an index is out of range, or there are too many. (CuPy does not check what is in an array of
            integers, because the check would wait for the GPU: there an index counts modulo the size.)
        TypeError: key holds anything else, or an array of another device.
    """
    return GetItem(key)(x)


def embedding(weight: Operand, ids: Any) -> Tensor:
    """Row ids[i, ...] of weight for each id: a table of vectors, looked up by number.

    >>> ops.embedding([[0.0, 1.0], [2.0, 3.0]], [1, 1, 0]).shape
    (3, 2)

    Shapes: weight (K, D), ids any shape -> (*ids.shape, D).
    Gradients: row k of gweight is the sum of gy over all places where the id is k. Rows that do not occur have 0.
    Args:
        ids: integers 0 ... K - 1 on the device of weight; not a Tensor.
    Raises:
        ValueError: weight is not a table, ids are not integers, or one is out of range. (The range is checked only on
            the CPU, because the check would wait for a GPU.)
        TypeError: ids are on another device.
    """
    weight = weight if isinstance(weight, Tensor) else Tensor(weight)
    k = backend_of(weight.data)
    if k.on_host:
        ids = k.xp.asarray(ids)  # a number or a list of them
    backend_of(weight.data, ids, what="embedding")
    shapes = f"(weight {weight.shape}, ids {ids.shape})"
    if weight.ndim != 2:
        raise ValueError(f"embedding: weight must be (K, D) {shapes}")
    if ids.dtype.kind not in "iu" and ids.size:
        raise ValueError(f"embedding: ids are {ids.dtype} but must be integers {shapes}")
    if k.on_host and ids.size and not (ids.min() >= 0 and ids.max() < len(weight)):
        found = f"{ids.min()} ... {ids.max()}"
        raise ValueError(f"embedding: ids must be in 0 ... {len(weight) - 1}, found {found} {shapes}")
    return GetItem(ids.astype("int64"))(weight)


def _as_key(k: Backend, key: Any) -> tuple[Any, ...]:
    """The key as a tuple with an Ellipsis, so that the result is an array also without axes."""
    parts = tuple(_as_part(k, part) for part in (key if isinstance(key, tuple) else (key,)))
    return parts if any(part is Ellipsis for part in parts) else (*parts, Ellipsis)


def _as_part(k: Backend, part: Any) -> Any:
    """One part of a key. Arrays are copied, because they may change until backward."""
    if part is None or part is Ellipsis or isinstance(part, slice):
        return part
    if isinstance(part, Integral) and not isinstance(part, bool):
        return int(part)
    array = k.xp.asarray(part, dtype=None if part else "int64") if isinstance(part, list) else part
    kind = "" if isinstance(part, Tensor) or not hasattr(array, "dtype") else array.dtype.kind
    if kind in ("i", "u"):
        return array.astype("int64")
    if kind == "b" and array.ndim:
        return array.copy()
    found = f"an array of {array.dtype}" if kind else f"a {type(part).__name__}"
    raise TypeError(
        f"getitem: an index is {found} but must be an int, a slice, ..., None, or an array of integers or booleans"
    )
