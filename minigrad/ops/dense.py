"""Matrix products."""

from __future__ import annotations

import math

from ..backend import Array
from ..tensor import Function, Operand, Tensor
from .elementwise import unbroadcast

__all__ = ["dense", "matmul"]


class MatMul(Function):
    """y = a @ b.  ga = gy @ b^T, gb = a^T @ gy."""

    bilinear = True

    def forward(self, a: Array, b: Array) -> Array:
        if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
            raise ValueError(f"matmul: needs (..., I, J) @ (..., J, K), found {a.shape} @ {b.shape}")
        self.a, self.b = a, b
        return self.k.matmul(a, b)

    def backward(self, gy: Array) -> tuple[Array | None, ...]:
        ga = unbroadcast(self.k, self.k.matmul(gy, self.b.swapaxes(-1, -2)), self.a.shape) if self.needs[0] else None
        gb = unbroadcast(self.k, self.k.matmul(self.a.swapaxes(-1, -2), gy), self.b.shape) if self.needs[1] else None
        return ga, gb


def matmul(a: Operand, b: Operand) -> Tensor:
    """The matrix product a @ b.

    Shapes: (..., I, J) @ (..., J, K) -> (..., I, K); leading axes broadcast.
    Gradients: ga = gy @ b^T, gb = a^T @ gy.
    Raises:
        ValueError: fewer than two axes, or the inner sizes differ.
    """
    return MatMul()(a, b)


class Dense(Function):
    """y = x @ weight + bias.  gx = gy @ weight^T, gweight = x^T @ gy, gbias = sum of gy over all rows."""

    bilinear = True
    optional = 1

    def forward(self, x: Array, weight: Array, bias: Array | None) -> Array:
        shapes = f"(x {x.shape}, weight {weight.shape})"
        if x.ndim < 1 or weight.ndim != 2:
            raise ValueError(f"dense: x must be (..., D) and weight (D, F) {shapes}")
        D, F = weight.shape
        if x.shape[-1] != D:
            raise ValueError(f"dense: x has {x.shape[-1]} features but weight expects {D} {shapes}")
        if bias is not None and bias.shape != (F,):
            raise ValueError(f"dense: bias is {bias.shape} but weight {weight.shape} needs ({F},)")
        self.leading, count = x.shape[:-1], math.prod(x.shape[:-1])
        self.x, self.weight = x.reshape(count, D), weight  # one row for each place
        y = self.k.matmul(self.x, weight)
        return (y if bias is None else self.k.add_bias(y, bias)).reshape(*self.leading, F)

    def backward(self, gy: Array) -> tuple[Array | None, ...]:
        D, F = self.weight.shape
        gy = gy.reshape(len(self.x), F)
        gx = self.k.matmul(gy, self.weight.T).reshape(*self.leading, D) if self.needs[0] else None
        gweight = self.k.dense_grad_weight(self.x, gy) if self.needs[1] else None
        gbias = self.k.channel_sum(gy) if self.needs[2] else None
        return gx, gweight, gbias


def dense(x: Operand, weight: Operand, bias: Operand | None = None) -> Tensor:
    """y = x @ weight + bias, for each row of x.

    Shapes: x (..., D), weight (D, F), bias (F,) -> y (..., F).
    Gradients: gx = gy @ weight^T, gweight = x^T @ gy, gbias = gy, the last two summed over all rows.
    Raises:
        ValueError: shapes do not fit.
    """
    return Dense()(x, weight, bias)
