"""Normalisation of each example by itself."""

from __future__ import annotations

import math
from operator import index

from ...backend import Array
from ...backend.catalogue import CatalogueBackend
from ...tensor import Function, Operand, Tensor

__all__ = ["group_norm", "layer_norm"]


class Standardise(Function):
    """z = (x - mean) / s with s = sqrt(variance + epsilon), mean and biased variance over axes.

    gx = (gy - mean of gy - z * mean of gy * z) / s. backend/reference.py has the derivation, for batch_norm: there M
    values per channel are normalised together, here those over axes, and gamma is 1.
    """

    k: CatalogueBackend

    def __init__(self, axes: tuple[int, ...], epsilon: float) -> None:
        self.axes, self.epsilon = axes, epsilon

    def forward(self, x: Array) -> Array:
        self.x = x
        return self.standardised(x)[0]

    def standardised(self, x: Array) -> tuple[Array, Array]:
        """(z, s)."""
        deviations = self.k.centred(x, self.axes)
        s = self.k.xp.sqrt(self.mean(deviations * deviations) + self.epsilon)
        return deviations / s, s

    def mean(self, x: Array) -> Array:
        """With the reduced axes kept."""
        return self.k.sum(x, self.axes, keepdims=True) / math.prod(x.shape[a] for a in self.axes)

    def backward(self, gy: Array) -> tuple[Array, ...]:
        z, s = self.standardised(self.x)
        return ((self.k.centred(gy, self.axes) - z * self.mean(gy * z)) / s,)


def layer_norm(x: Operand, gamma: Operand, beta: Operand, *, epsilon: float = 1e-3) -> Tensor:
    """y = (x - mean) / sqrt(variance + epsilon) * gamma + beta, with mean and biased variance of each example over its
    last axes: as many as gamma has.

    >>> ops.layer_norm([[1.0, 3.0]], [1.0, 1.0], [0.0, 0.0], epsilon=0).numpy().tolist()
    [[-1.0, 1.0]]

    Shapes: x (..., *S), gamma and beta S, which is often (D,) -> y (..., *S).
    Gradients: with z = (y - beta) / gamma and gz = gy * gamma, gx = (gz - mean of gz - z * mean of gz * z) /
        sqrt(variance + epsilon); ggamma is the sum of gy * z and gbeta that of gy over the leading axes.
    Args:
        epsilon: 1e-3 as for `batch_norm` and in Keras. (PyTorch's default is 1e-5.)
    Raises:
        ValueError: shapes do not fit.
    Source: Ba, Kiros and Hinton, Layer Normalization, 2016.
    """
    x, gamma, beta = (a if isinstance(a, Tensor) else Tensor(a) for a in (x, gamma, beta))
    if not gamma.ndim or gamma.shape != beta.shape or x.shape[-gamma.ndim :] != gamma.shape:
        raise ValueError(
            f"layer_norm: gamma and beta must have the shape of x's last axes (x {x.shape}, gamma {gamma.shape}, "
            f"beta {beta.shape})"
        )
    axes = tuple(range(x.ndim - gamma.ndim, x.ndim))
    return Standardise(axes, float(epsilon))(x) * gamma + beta


def group_norm(x: Operand, gamma: Operand, beta: Operand, *, groups: int, epsilon: float = 1e-3) -> Tensor:
    """y = (x - mean) / sqrt(variance + epsilon) * gamma + beta, with mean and biased variance of each example over its
    pixels and the channels of a group. Group i has the channels i * C / groups and the following.

    Shapes: x (N, ..., C), gamma and beta (C,) -> y (N, ..., C).
    Gradients: as for `layer_norm`, with the means over pixels and the channels of the group.
    Args:
        groups: a number that divides C. With 1 all channels are normalised together, with C each by itself.
        epsilon: 1e-3 as for `batch_norm` and in Keras. (PyTorch's default is 1e-5.)
    Raises:
        ValueError: shapes do not fit, or groups does not divide C.
    Source: Wu and He, Group Normalization, 2018.
    """
    x, gamma, beta = (a if isinstance(a, Tensor) else Tensor(a) for a in (x, gamma, beta))
    groups = index(groups)
    shapes = f"(x {x.shape}, gamma {gamma.shape}, beta {beta.shape})"
    if x.ndim < 2 or gamma.shape != x.shape[-1:] or beta.shape != x.shape[-1:]:
        raise ValueError(f"group_norm: x (N, ..., C) needs gamma and beta (C,) {shapes}")
    N, *pixels, C = x.shape
    if groups < 1 or C % groups:
        raise ValueError(f"group_norm: {groups} groups do not divide {C} channels {shapes}")
    grouped = x.reshape(N, math.prod(pixels), groups, C // groups)
    return Standardise((1, 3), float(epsilon))(grouped).reshape(x.shape) * gamma + beta
