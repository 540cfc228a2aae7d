"""Convolution and transposed convolution of images.

Both use three kernels, which backend/reference.py has in plain code: `conv2d` and its two gradients. The transposed
convolution is the adjoint of a convolution, so it *is* that convolution's gradient with respect to its input, with the
same weight and geometry. Its own gradients are a convolution and a weight gradient.

Images are (N, H, W, C), weights (KH, KW, C, F), or with groups (KH, KW, C / groups, F). As in all deep-learning
libraries, the kernel is not flipped: mathematically this is a cross-correlation. The sizes come from
backend/geometry.py.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any

from ..backend import Array
from ..backend.geometry import Pair, Size, conv_geometry, pair, transposed_geometry
from ..tensor import Function, Operand, Tensor

__all__ = ["conv2d", "conv2d_transpose"]


class Conv2D(Function):
    """y = conv2d(x, weight) + bias.  gx = conv2d_grad_input(gy, weight), gweight = conv2d_grad_weight(x, gy), gbias =
    sum of gy over all pixels."""

    bilinear = True
    optional = 1

    def __init__(self, *options: Any) -> None:  # those of conv_geometry
        self.options = options

    def forward(self, x: Array, weight: Array, bias: Array | None) -> Array:
        check_conv("conv2d", x.shape, weight, bias, channel_axis=2, groups=self.options[-1])
        self.x, self.weight = x, weight
        self.geometry = conv_geometry(x.shape[1:3], weight.shape[:2], *self.options)
        return self.k.conv2d(x, weight, bias, self.geometry)

    def backward(self, gy: Array) -> tuple[Array | None, ...]:
        gx = self.k.conv2d_grad_input(gy, self.weight, self.geometry) if self.needs[0] else None
        gweight = self.k.conv2d_grad_weight(self.x, gy, self.geometry) if self.needs[1] else None
        gbias = self.k.channel_sum(gy) if self.needs[2] else None
        return gx, gweight, gbias


def conv2d(
    x: Operand,
    weight: Operand,
    bias: Operand | None = None,
    *,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Tensor:
    """y[n, p, q, f] = bias[f] + sum over i, j, c of padded_x[n, p*SH + i*DH, q*SW + j*DW, c] * weight[i, j, c, f].

    Shapes: x (N, H, W, C), weight (KH, KW, C / groups, F), bias (F,) -> y (N, OH, OW, F).
    Args:
        stride: an int >= 1 or a pair (height, width). padding: zeros on each side, an int >= 0 or a pair, or "same" or
            "valid"; `conv_geometry` has the resulting sizes.
        dilation: the distance (DH, DW) of the pixels that neighbours in the kernel read, an int >= 1 or a pair.
        groups: channels and filters are divided into so many parts, and a filter reads the channels of its part. With C
            groups the convolution is depthwise.
    Gradients: gx[n, h, w, c] = sum over p, q, i, j, f of gy[n, p, q, f] * weight[i, j, c, f] where
        h = p*SH + i*DH - top, w = q*SW + j*DW - left; gweight[i, j, c, f] = sum over n, p, q of
        padded_x[n, p*SH + i*DH, q*SW + j*DW, c] * gy[n, p, q, f]; gbias[f] = sum over n, p, q of gy[n, p, q, f].
    Raises:
        ValueError: shapes or options do not fit; both shapes are named.
    """
    return Conv2D(hashable(stride), hashable(padding), hashable(dilation), groups)(x, weight, bias)


class Conv2DTranspose(Function):
    """y = conv2d_grad_input(x, weight) + bias.  gx = conv2d(gy, weight), gweight = conv2d_grad_weight(gy, x), gbias =
    sum of gy over all pixels.

    It is a convolution run backwards, so its gradient is that convolution."""

    bilinear = True
    optional = 1

    def __init__(self, *options: Any) -> None:  # those of transposed_geometry
        self.options = options

    def forward(self, x: Array, weight: Array, bias: Array | None) -> Array:
        check_conv("conv2d_transpose", x.shape, weight, bias, channel_axis=3, groups=self.options[-1])
        self.x, self.weight = x, weight
        self.geometry = transposed_geometry(x.shape[1:3], weight.shape[:2], *self.options)
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
    dilation: Pair = 1,
    groups: int = 1,
) -> Tensor:
    """The adjoint of conv2d with the same weight and options, plus bias.

    y[n, h, w, c] = bias[c] + sum over p, q, i, j, f of x[n, p, q, f] * weight[i, j, c, f] where
    h = p*SH + i*DH - top, w = q*SW + j*DW - left.

    Shapes: x (N, OH, OW, F), weight (KH, KW, C / groups, F), i.e. (KH, KW, out / groups, in), bias (C,) ->
        y (N, H, W, C).
    Args:
        stride, padding, dilation, groups: those of the convolution that is transposed.
        output_size: (H, W), any size that this convolution maps to (OH, OW); None: see `transposed_geometry`.
    Gradients: gx[n, p, q, f] = sum over i, j, c of padded_gy[n, p*SH + i*DH, q*SW + j*DW, c] * weight[i, j, c, f];
        gweight[i, j, c, f] = sum over n, p, q of padded_gy[n, p*SH + i*DH, q*SW + j*DW, c] * x[n, p, q, f];
        gbias[c] = sum over n, h, w of gy[n, h, w, c].
    Raises:
        ValueError: shapes or options do not fit; both shapes are named.
    """
    size = None if output_size is None else pair(hashable(output_size), "output_size", 1)
    return Conv2DTranspose(hashable(stride), hashable(padding), size, hashable(dilation), groups)(x, weight, bias)


def check_conv(
    name: str, x_shape: tuple[int, ...], weight: Array, bias: Array | None, channel_axis: int, groups: int = 1
) -> None:
    """Raise ValueError unless the shapes fit; channel_axis is the axis of weight that belongs to x's channels."""
    shapes = f"(x {x_shape}, weight {weight.shape})"
    if len(x_shape) != 4 or weight.ndim != 4:
        raise ValueError(f"{name}: x must be (N, H, W, C) and weight must have 4 axes {shapes}")
    if not isinstance(groups, Integral) or groups < 1 or weight.shape[3] % groups:
        raise ValueError(f"{name}: groups is {groups} but must be an int >= 1 that divides axis 3 of weight {shapes}")
    both = {2: weight.shape[2] * groups, 3: weight.shape[3]}
    if x_shape[3] != both[channel_axis]:
        expected = f"{both[channel_axis]}{f' in {groups} groups' if groups > 1 else ''}"
        raise ValueError(f"{name}: x has {x_shape[3]} channels but weight expects {expected} {shapes}")
    filters = both[5 - channel_axis]
    if bias is not None and bias.shape != (filters,):
        raise ValueError(f"{name}: bias is {bias.shape} but must be ({filters},) {shapes}")


def hashable(value: Any) -> Any:
    """An option of a geometry, for its cache."""
    return tuple(value) if isinstance(value, list) else value  # lists come from TOML and JSON
