"""Dropout. The random numbers come from outside, so that a call can be repeated; `nn.Dropout` names them."""

from __future__ import annotations

from typing import Any

from ...backend import Array
from ...tensor import Function, Operand, Tensor

__all__ = ["dropout"]


class Dropout(Function):
    """y = x / (1 - rate) where kept, else 0.  gx = gy / (1 - rate) where kept, else 0."""

    def __init__(self, kept: Any, rate: float) -> None:
        self.kept, self.rate = kept, rate

    def forward(self, x: Array) -> Array:
        if hasattr(self.kept, "random"):
            self.kept = self.k.from_host(self.kept.random(x.shape, dtype="float32") >= self.rate)
        if self.k.on_host:
            self.kept = self.k.xp.asarray(self.kept)  # NumPy compares a single number to a scalar
        self.check_device(x, self.kept)
        sizes = zip(reversed(self.kept.shape), reversed(x.shape), strict=False)
        if self.kept.dtype != "bool" or self.kept.ndim > x.ndim or any(m not in (1, n) for m, n in sizes):
            raise ValueError(
                f"dropout: kept must be boolean and broadcast to x (kept {self.kept.dtype} {self.kept.shape}, "
                f"x {x.shape})"
            )
        self.kept = self.kept.copy()  # it may change until backward
        return self.masked(x)

    def masked(self, x: Array) -> Array:
        """Linear, and equal to its own adjoint."""
        return self.k.xp.where(self.kept, x * (1 / (1 - self.rate)), 0)

    def backward(self, gy: Array) -> tuple[Array, ...]:
        return (self.masked(gy),)


def dropout(x: Operand, kept: Any, *, rate: float) -> Tensor:
    """x / (1 - rate) where kept, else 0, so that the expected value is x.

    >>> ops.dropout([1.0, 2.0, 3.0], [True, False, True], rate=0.5).numpy().tolist()
    [2.0, 0.0, 6.0]

    Gradients: gy / (1 - rate) where kept, else 0.
    Args:
        kept: a boolean array on the device of x that broadcasts to it, such as (N, 1, 1, C) to drop whole channels; or
            a NumPy generator, which draws one float32 number for each element of x, in the order of the elements, and
            keeps those with a number >= rate. Row n then depends on its place n and not on the number of rows.
        rate: the probability of a 0, 0 <= rate < 1.
    Raises:
        ValueError: the rate is out of range, or kept is not boolean or does not fit.
        TypeError: kept is on another device.
    Source: Srivastava et al., Dropout, 2014.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"dropout: rate is {rate} but must be at least 0 and below 1")
    return Dropout(kept, float(rate))(x)
