"""Elementwise operations: arithmetic with broadcasting, exp and friends, activations.

Each operation is a Function class, which has the formula and the gradient, and below it the lower-case function that
applies it. Inputs are tensors, arrays or Python numbers; shapes broadcast as in NumPy.

`self.k` is the backend of the inputs. An operation calls one of its kernels, such as `self.k.relu`, where a backend may
have a faster one. Where one call of the array library is enough, it uses an operator or a function of `self.k.xp`,
which is NumPy or CuPy.
"""

from __future__ import annotations

from numbers import Real

from ..backend import Array, Backend
from ..tensor import Function, Operand, Tensor

__all__ = [
    "add", "div", "exp", "log", "mul", "neg", "pow", "relu", "sigmoid", "softplus", "sqrt", "sub",
]  # fmt: skip


def unbroadcast(k: Backend, gy: Array, shape: tuple[int, ...]) -> Array:
    """Sum gy over the axes that broadcasting added or stretched, so that it has `shape` again.

    Broadcasting copies one input element to many output elements, so its gradient is the sum of theirs.
    """
    added = gy.ndim - len(shape)
    stretched = tuple(added + i for i, size in enumerate(shape) if size == 1 and gy.shape[added + i] != 1)
    axes = tuple(range(added)) + stretched
    return k.sum(gy, axes).reshape(shape) if axes else gy


class Add(Function):
    """y = a + b.  ga = gy, gb = gy."""

    def forward(self, a: Array, b: Array) -> Array:
        self.shapes = a.shape, b.shape
        return a + b

    def backward(self, gy: Array) -> tuple[Array, ...]:
        return unbroadcast(self.k, gy, self.shapes[0]), unbroadcast(self.k, gy, self.shapes[1])


def add(a: Operand, b: Operand) -> Tensor:
    """a + b."""
    return Add()(a, b)


class Sub(Function):
    """y = a - b.  ga = gy, gb = -gy."""

    def forward(self, a: Array, b: Array) -> Array:
        self.shapes = a.shape, b.shape
        return a - b

    def backward(self, gy: Array) -> tuple[Array, ...]:
        return unbroadcast(self.k, gy, self.shapes[0]), unbroadcast(self.k, -gy, self.shapes[1])


def sub(a: Operand, b: Operand) -> Tensor:
    """a - b."""
    return Sub()(a, b)


class Mul(Function):
    """y = a * b.  ga = gy * b, gb = gy * a."""

    bilinear = True

    def forward(self, a: Array, b: Array) -> Array:
        self.a, self.b = a, b
        return a * b

    def backward(self, gy: Array) -> tuple[Array | None, ...]:
        ga = unbroadcast(self.k, gy * self.b, self.a.shape) if self.needs[0] else None
        gb = unbroadcast(self.k, gy * self.a, self.b.shape) if self.needs[1] else None
        return ga, gb


def mul(a: Operand, b: Operand) -> Tensor:
    """a * b, element by element."""
    return Mul()(a, b)


class Div(Function):
    """y = a / b.  ga = gy / b, gb = -gy * a / b^2."""

    def forward(self, a: Array, b: Array) -> Array:
        self.shape, self.b = a.shape, b
        if self.needs[1]:
            self.a = a
        return a / b

    def backward(self, gy: Array) -> tuple[Array | None, ...]:
        ga = unbroadcast(self.k, gy / self.b, self.shape) if self.needs[0] else None
        gb = unbroadcast(self.k, -gy * self.a / (self.b * self.b), self.b.shape) if self.needs[1] else None
        return ga, gb


def div(a: Operand, b: Operand) -> Tensor:
    """a / b, element by element."""
    return Div()(a, b)


class Neg(Function):
    """y = -x.  gx = -gy."""

    def forward(self, x: Array) -> Array:
        return -x

    def backward(self, gy: Array) -> tuple[Array, ...]:
        return (-gy,)


def neg(x: Operand) -> Tensor:
    """-x."""
    return Neg()(x)


class Pow(Function):
    """y = x^p.  gx = gy * p * x^(p - 1)."""

    def __init__(self, exponent: float) -> None:
        self.exponent = exponent

    def forward(self, x: Array) -> Array:
        self.x = x
        # C and CUDA define pow(-inf, 0.5) as +inf; sqrt gives NaN, as NumPy does.
        return self.k.xp.sqrt(x) if self.exponent == 0.5 else x**self.exponent

    def backward(self, gy: Array) -> tuple[Array, ...]:
        if self.exponent == 0:  # the general formula would give 0 * inf at x = 0
            return (self.k.xp.zeros_like(gy),)
        return (gy * (self.exponent * self.x ** (self.exponent - 1)),)


def pow(x: Operand, exponent: float) -> Tensor:
    """x ** exponent for a constant exponent.

    Raises:
        TypeError: the exponent is not a Python number.
    """
    if not isinstance(exponent, Real):
        raise TypeError(f"pow: exponent is a {type(exponent).__name__} but must be a number; use exp(y * log(x))")
    return Pow(float(exponent))(x)


class Exp(Function):
    """y = e^x.  gx = gy * y."""

    def forward(self, x: Array) -> Array:
        self.y = self.k.xp.exp(x)
        return self.y

    def backward(self, gy: Array) -> tuple[Array, ...]:
        return (gy * self.y,)


def exp(x: Operand) -> Tensor:
    """e ** x."""
    return Exp()(x)


class Log(Function):
    """y = log x.  gx = gy / x."""

    def forward(self, x: Array) -> Array:
        self.x = x
        return self.k.xp.log(x)

    def backward(self, gy: Array) -> tuple[Array, ...]:
        return (gy / self.x,)


def log(x: Operand) -> Tensor:
    """Natural logarithm; -inf at 0, NaN below."""
    return Log()(x)


class Sqrt(Function):
    """y = sqrt x.  gx = gy / (2 y)."""

    def forward(self, x: Array) -> Array:
        self.y = self.k.xp.sqrt(x)
        return self.y

    def backward(self, gy: Array) -> tuple[Array, ...]:
        return (gy / (2 * self.y),)


def sqrt(x: Operand) -> Tensor:
    """Square root; NaN below 0. The gradient at 0 is infinite."""
    return Sqrt()(x)


class ReLU(Function):
    """y = max(x, 0).  gx = gy where y > 0, else 0."""

    def forward(self, x: Array) -> Array:
        self.y = self.k.relu(x)
        return self.y

    def backward(self, gy: Array) -> tuple[Array, ...]:
        return (self.k.relu_grad(gy, self.y),)


def relu(x: Operand) -> Tensor:
    """max(x, 0). Gradients: 1 above 0, 0 elsewhere."""
    return ReLU()(x)


class Sigmoid(Function):
    """y = 1 / (1 + e^-x).  gx = gy * y * (1 - y)."""

    def forward(self, x: Array) -> Array:
        self.y = self.k.sigmoid(x)
        return self.y

    def backward(self, gy: Array) -> tuple[Array, ...]:
        return (gy * self.y * (1 - self.y),)


def sigmoid(x: Operand) -> Tensor:
    """1 / (1 + exp(-x)), without overflow."""
    return Sigmoid()(x)


class Softplus(Function):
    """y = log(1 + e^x).  gx = gy * sigmoid(x)."""

    def forward(self, x: Array) -> Array:
        self.x = x
        return self.k.softplus(x)

    def backward(self, gy: Array) -> tuple[Array, ...]:
        return (gy * self.k.sigmoid(self.x),)


def softplus(x: Operand) -> Tensor:
    """log(1 + exp(x)), without overflow."""
    return Softplus()(x)
