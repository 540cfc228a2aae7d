"""The layers that only the two models need."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from minigrad import Function, Tensor, nn

Array = Any


class SoftBound(Function):
    """y = c + t / (1 + |t|) with c = x cut to low and high, t = x - c.  gx = gy / (1 + |t|)^2.

    It keeps numbers between two bounds: low is the lower one + 1, high the upper one - 1. The result is x itself,
    except within one unit of a bound, where it saturates. y and its slope are continuous, and the slope is never 0, so
    training can bring back a value that went too far.
    """

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low + 1, high - 1

    def forward(self, x: Array) -> Array:
        inside = x.clip(self.low, self.high)
        excess = x - inside
        self.slope = 1 + abs(excess)
        return inside + excess / self.slope

    def backward(self, gy: Array) -> tuple[Array | None, ...]:
        return (gy / (self.slope * self.slope),)


class BoundedDense(nn.Dense):
    """A dense layer whose outputs are kept between bounds, if there are any."""

    def __init__(self, inputs: int, outputs: int, bounds: tuple[float, float] | None) -> None:
        super().__init__(inputs, outputs)
        self.bounds = bounds

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if self.bounds is None else SoftBound(*self.bounds)(y)


class _Append(Function):
    """y = x (N, D) and label rows (N, K) side by side.  gx = the first D columns of gy; the rows have no gradient."""

    def forward(self, x: Array, rows: Array) -> Array:
        self.features = x.shape[1]
        return self.k.xp.concatenate([x, rows], axis=1)

    def backward(self, gy: Array) -> tuple[Array | None, ...]:
        return gy[:, : self.features].copy(), None


def append(x: Tensor, one_hot: Array | None) -> Tensor:
    return x if one_hot is None else _Append()(x, one_hot)


class LogVariance(nn.Module):
    """Holds the trained logarithm of the pixels' variance."""

    def __init__(self, value: float) -> None:
        self.log_variance = nn.Parameter((1,), partial(_constant, value))


def _constant(value: float, rng: Any, shape: tuple[int, ...], fan_in: int, fan_out: int) -> np.ndarray:
    return np.full(shape, value)
