"""Convolution and transposed convolution of images.

Both use three kernels, which backend/reference.py has in plain code: `conv2d` and its two gradients. The transposed
convolution is the adjoint of a convolution, so it *is* that convolution's gradient with respect to its input, with the
same weight and geometry. Its own gradients are a convolution and a weight gradient.

Images are (N, H, W, C), weights (KH, KW, C, F). As in all deep-learning libraries, the kernel is not flipped:
mathematically this is a cross-correlation. The sizes come from backend/geometry.py.

Read next: norm.py.
"""

from __future__ import annotations

from typing import Any

from ..backend import Array
from ..backend.geometry import Pair, Size, conv_geometry, pair, transposed_geometry
from ..tensor import Function, Operand, Tensor

__all__ = ["conv2d", "conv2d_transpose"]


class Conv2D(Function):
    """y = conv2d(x, weight) + bias; its gradients are the two other kernels, and the sum of gy over all pixels."""

    bilinear = True
    optional = 1

    def __init__(self, stride: Pair, padding: Pair | str) -> None:
        self.stride, self.padding = stride, padding

    def forward(self, x: Array, weight: Array, bias: Array | None) -> Array:
        check_conv("conv2d", x.shape, weight, bias, channel_axis=2)
        self.x, self.weight = x, weight
        self.geometry = conv_geometry(x.shape[1:3], weight.shape[:2], self.stride, self.padding)
        return self.k.conv2d(x, weight, bias, self.geometry)

    def backward(self, gy: Array) -> tuple[Array | None, ...]:
        gx = self.k.conv2d_grad_input(gy, self.weight, self.geometry) if self.needs[0] else None
        gweight = self.k.conv2d_grad_weight(self.x, gy, self.geometry) if self.needs[1] else None
        gbias = self.k.channel_sum(gy) if self.needs[2] else None
        return gx, gweight, gbias


def conv2d(
    x: Operand, weight: Operand, bias: Operand | None = None, *, stride: Pair = 1, padding: Pair | str = 0
) -> Tensor:
    """y[n, p, q, f] = bias[f] + sum over i, j, c of padded_x[n, p*SH + i, q*SW + j, c] * weight[i, j, c, f].

    Shapes: x (N, H, W, C), weight (KH, KW, C, F), bias (F,) -> y (N, OH, OW, F).
    Args:
        stride: an int >= 1 or a pair (height, width). padding: zeros on each side, an int >= 0 or a pair, or "same" or
            "valid"; `conv_geometry` has the resulting sizes.
    Raises:
        ValueError: shapes or options do not fit; both shapes are named.
    """
    return Conv2D(hashable(stride), hashable(padding))(x, weight, bias)


class Conv2DTranspose(Function):
    """y = conv2d_grad_input(x, weight) + bias: a convolution run backwards, so its gradient is that convolution."""

    bilinear = True
    optional = 1

    def __init__(self, stride: Pair, padding: Pair | str, output_size: Size | None) -> None:
        self.stride, self.padding, self.output_size = stride, padding, output_size

    def forward(self, x: Array, weight: Array, bias: Array | None) -> Array:
        check_conv("conv2d_transpose", x.shape, weight, bias, channel_axis=3)
        self.x, self.weight = x, weight
        self.geometry = transposed_geometry(x.shape[1:3], weight.shape[:2], self.stride, self.padding, self.output_size)
        y = self.k.conv2d_grad_input(x, weight, self.geometry)
        return y if bias is None else self.k.add_bias(y, bias)

    def backward(self, gy: Array) -> tuple[Array | None, ...]:
        gx = self.k.conv2d(gy, self.weight, None, self.geometry) if self.needs[0] else None
        gweight = self.k.conv2d_grad_weight(gy, self.x, self.geometry) if self.needs[1] else None
        gbias = self.k.channel_sum(gy) if self.needs[2] else None
        return gx, gweight, gbias


def conv2d_transpose(
    x: Operand,
    weight: Operand,
    bias: Operand | None = None,
    *,
    stride: Pair = 1,
    padding: Pair | str = 0,
    output_size: Size | None = None,
) -> Tensor:
    """The adjoint of conv2d with the same weight, stride and padding, plus bias.

    y[n, h, w, c] = bias[c] + sum over p, q, i, j, f with h = p*SH + i - top and w = q*SW + j - left
    of x[n, p, q, f] * weight[i, j, c, f].

    Shapes: x (N, OH, OW, F), weight (KH, KW, C, F), i.e. (KH, KW, out, in), bias (C,) -> y (N, H, W, C).
    Args:
        stride, padding: those of the convolution that is transposed.
        output_size: (H, W), any size that this convolution maps to (OH, OW); None: see `transposed_geometry`.
    Raises:
        ValueError: shapes or options do not fit; both shapes are named.
    """
    size = None if output_size is None else pair(hashable(output_size), "output_size", 1)
    return Conv2DTranspose(hashable(stride), hashable(padding), size)(x, weight, bias)


def check_conv(name: str, x_shape: tuple[int, ...], weight: Array, bias: Array | None, channel_axis: int) -> None:
    """Raise ValueError unless the shapes fit; channel_axis is the axis of weight that belongs to x's channels."""
    shapes = f"(x {x_shape}, weight {weight.shape})"
    if len(x_shape) != 4 or weight.ndim != 4:
        raise ValueError(f"{name}: x must be (N, H, W, C) and weight must have 4 axes {shapes}")
    if x_shape[3] != weight.shape[channel_axis]:
        raise ValueError(
            f"{name}: x has {x_shape[3]} channels but weight expects {weight.shape[channel_axis]} {shapes}"
        )
    filters = weight.shape[5 - channel_axis]  # the other one of axes 2 and 3
    if bias is not None and bias.shape != (filters,):
        raise ValueError(f"{name}: bias is {bias.shape} but must be ({filters},) {shapes}")


def hashable(value: Any) -> Any:
    """An option of a geometry, for its cache."""
    return tuple(value) if isinstance(value, list) else value  # lists come from TOML and JSON
