"""Softmax, further activations, sine and cosine."""

from __future__ import annotations

import math

from ...backend import Array
from ...backend.catalogue import CatalogueBackend
from ...tensor import Function, Operand, Tensor
from ..shape import Axis, as_axes

__all__ = ["cos", "gelu", "leaky_relu", "log_softmax", "silu", "sin", "softmax", "tanh"]


class Softmax(Function):
    """y = e^x / sum of e^x over axes.  gx = y * (gy - sum of gy * y)."""

    k: CatalogueBackend

    def __init__(self, axis: Axis) -> None:
        self.axis = axis

    def forward(self, x: Array) -> Array:
        self.axes = as_axes("softmax", self.axis, x.ndim)
        self.y = self.k.softmax(x, self.axes)
        return self.y

    def backward(self, gy: Array) -> tuple[Array, ...]:
        return (self.y * (gy - self.k.sum(gy * self.y, self.axes, keepdims=True)),)


def softmax(x: Operand, axis: Axis = -1) -> Tensor:
    """exp(x) / sum(exp(x)) over axes, without overflow. The results are at least 0 and sum to 1.

    >>> ops.softmax([0.0, 0.0]).numpy()
    array([0.5, 0.5], dtype=float32)

    Gradients: gx = y * (gy - sum of gy * y over axes).
    """
    return Softmax(axis)(x)


class LogSoftmax(Softmax):
    """y = x - log of the sum of e^x over axes.  gx = gy - e^y * sum of gy."""

    def forward(self, x: Array) -> Array:
        self.axes = as_axes("log_softmax", self.axis, x.ndim)
        self.y = self.k.log_softmax(x, self.axes)
        return self.y

    def backward(self, gy: Array) -> tuple[Array, ...]:
        return (gy - self.k.xp.exp(self.y) * self.k.sum(gy, self.axes, keepdims=True),)


def log_softmax(x: Operand, axis: Axis = -1) -> Tensor:
    """log(softmax(x)) over axes, without overflow and without the logarithm of a rounded 0.

    >>> bool(ops.log_softmax([0.0, -1000.0]).numpy()[1] == -1000)
    True

    Gradients: gx = gy - softmax(x) * sum of gy over axes.
    """
    return LogSoftmax(axis)(x)


class LeakyReLU(Function):
    """y = x where x > 0, else slope * x.  gx = gy there, else slope * gy."""

    def __init__(self, slope: float) -> None:
        self.slope = slope

    def forward(self, x: Array) -> Array:
        self.x = x
        return self.k.xp.where(x > 0, x, self.slope * x)

    def backward(self, gy: Array) -> tuple[Array, ...]:
        return (self.k.xp.where(self.x > 0, gy, self.slope * gy),)


def leaky_relu(x: Operand, slope: float = 0.01) -> Tensor:
    """x above 0, slope * x elsewhere."""
    return LeakyReLU(float(slope))(x)


class Tanh(Function):
    """y = tanh x.  gx = gy * (1 - y^2)."""

    def forward(self, x: Array) -> Array:
        self.y = self.k.xp.tanh(x)
        return self.y

    def backward(self, gy: Array) -> tuple[Array, ...]:
        return (gy * (1 - self.y * self.y),)


def tanh(x: Operand) -> Tensor:
    """(exp(x) - exp(-x)) / (exp(x) + exp(-x))."""
    return Tanh()(x)


class GELU(Function):
    """y = x * s with s = sigmoid(2 u), u = c (x + a x^3).  gx = gy * (s + x * s (1 - s) * 2 c (1 + 3 a x^2)).

    0.5 (1 + tanh u) = sigmoid(2 u), which keeps its digits for negative u.
    """

    A, C = 0.044715, math.sqrt(2 / math.pi)

    def forward(self, x: Array) -> Array:
        self.x = x
        return x * self.gate(x)

    def gate(self, x: Array) -> Array:
        """s."""
        return self.k.sigmoid(x * (1 + self.A * x * x) * (2 * self.C))

    def backward(self, gy: Array) -> tuple[Array, ...]:
        s = self.gate(self.x)
        x = self.k.xp.where(self.k.xp.abs(self.x) < 100, self.x, 0)  # beyond, s (1 - s) is 0 and x^2 may be infinite
        return (gy * (s + x * s * (1 - s) * (1 + 3 * self.A * x * x) * (2 * self.C)),)


def gelu(x: Operand) -> Tensor:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), which differs from x * (the normal distribution function of x)
    by less than 0.0005. It is torch's gelu(approximate="tanh"); the exact form needs erf, which NumPy does not have.

    Source: Hendrycks and Gimpel, Gaussian Error Linear Units, 2016.
    """
    return GELU()(x)


class SiLU(Function):
    """y = x * s with s = sigmoid(x).  gx = gy * (s + x * s (1 - s))."""

    def forward(self, x: Array) -> Array:
        self.x = x
        return x * self.k.sigmoid(x)

    def backward(self, gy: Array) -> tuple[Array, ...]:
        s = self.k.sigmoid(self.x)
        return (gy * (s + self.x * s * (1 - s)),)


def silu(x: Operand) -> Tensor:
    """x * sigmoid(x), also called swish.

    Source: Ramachandran et al., Searching for Activation Functions, 2017.
    """
    return SiLU()(x)


class Sin(Function):
    """y = sin x.  gx = gy * cos x."""

    def forward(self, x: Array) -> Array:
        self.x = x
        return self.k.xp.sin(x)

    def backward(self, gy: Array) -> tuple[Array, ...]:
        return (gy * self.k.xp.cos(self.x),)


def sin(x: Operand) -> Tensor:
    """The sine of x in radians."""
    return Sin()(x)


class Cos(Function):
    """y = cos x.  gx = -gy * sin x."""

    def forward(self, x: Array) -> Array:
        self.x = x
        return self.k.xp.cos(x)

    def backward(self, gy: Array) -> tuple[Array, ...]:
        return (-gy * self.k.xp.sin(self.x),)


def cos(x: Operand) -> Tensor:
    """The cosine of x in radians."""
    return Cos()(x)
