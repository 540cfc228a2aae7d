"""Sums of products over named axes."""

from __future__ import annotations

import math

from ...tensor import Operand, Tensor
from ..dense import matmul
from ..shape import reshape, sum, transpose

__all__ = ["einsum"]


def einsum(subscripts: str, *operands: Operand) -> Tensor:
    """A sum of products by Einstein's convention: each letter names an axis, and what the result lacks is summed over.

    >>> ops.einsum("nqd,nkd->nqk", np.ones((2, 3, 5)), np.ones((2, 4, 5))).shape  # each query with each key
    (2, 3, 4)

    It is made of `sum`, `transpose`, `reshape` and one `matmul`, and so are its gradients.

    Args:
        subscripts: the letters of one or two operands and, after ->, those of the result. No letter may occur twice in
            one of them (a trace or diagonal), and there is no "...".
    Raises:
        ValueError: the subscripts cannot be read or do not fit the shapes.
    """
    tensors = [x if isinstance(x, Tensor) else Tensor(x) for x in operands]
    inputs, result, sizes = _parsed(subscripts, [x.shape for x in tensors])
    if len(tensors) == 1:
        return _arranged(tensors[0], inputs[0], result)
    (a, b), (A, B) = tensors, inputs
    batch = "".join(letter for letter in A if letter in B and letter in result)
    inner = "".join(letter for letter in A if letter in B and letter not in result)
    rows = "".join(letter for letter in A if letter not in B and letter in result)
    columns = "".join(letter for letter in B if letter not in A and letter in result)

    def size(letters: str) -> int:
        return math.prod(sizes[letter] for letter in letters)

    a = reshape(_arranged(a, A, batch + rows + inner), size(batch), size(rows), size(inner))
    b = reshape(_arranged(b, B, batch + inner + columns), size(batch), size(inner), size(columns))
    found = batch + rows + columns
    return _arranged(reshape(matmul(a, b), tuple(sizes[letter] for letter in found)), found, result)


def _arranged(x: Tensor, letters: str, wanted: str) -> Tensor:
    """x, whose axes have these letters, with the wanted ones in their order. The others are summed over."""
    dropped = tuple(i for i, letter in enumerate(letters) if letter not in wanted)
    kept = "".join(letter for letter in letters if letter in wanted)
    x = sum(x, dropped) if dropped else x
    return x if kept == wanted else transpose(x, tuple(kept.index(letter) for letter in wanted))


def _parsed(subscripts: str, shapes: list[tuple[int, ...]]) -> tuple[list[str], str, dict[str, int]]:
    """(letters of each operand, letters of the result, size of each letter)."""
    before, *after = subscripts.replace(" ", "").split("->")
    inputs, result = before.split(","), "".join(after)
    text = f"einsum: {subscripts!r} of shapes {', '.join(map(str, shapes))}"
    if len(after) != 1 or not 1 <= len(shapes) <= 2:
        raise ValueError(f"{text}: needs one or two operands and letters such as 'ij,jk->ik'")
    if [len(letters) for letters in inputs] != [len(shape) for shape in shapes]:
        raise ValueError(f"{text}: each operand needs one letter per axis")
    if any(len(set(part)) < len(part) or not (part + "a").isalpha() for part in (*inputs, result)):
        raise ValueError(f"{text}: a letter may occur only once in each operand and in the result")
    sizes: dict[str, int] = {}
    for letters, shape in zip(inputs, shapes, strict=True):
        for letter, size in zip(letters, shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise ValueError(f"{text}: {letter} has the sizes {sizes[letter]} and {size}")
    if set(result) - set(sizes):
        raise ValueError(f"{text}: no operand has {', '.join(sorted(set(result) - set(sizes)))}")
    return inputs, result, sizes
