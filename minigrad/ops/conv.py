"""Convolution and transposed convolution of images.

Both are made of three kernels of the backend: `conv2d` and its two gradients. The transposed convolution is
the adjoint of a convolution, so it *is* that convolution's gradient with respect to its input, with the same
weight and geometry; and its own gradients are a convolution and a weight gradient.

Images are (N, H, W, C), weights (KH, KW, C, F). "Convolution" slides the kernel without flipping it, as in
all deep-learning libraries (mathematically a cross-correlation).

Read next: norm.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral
from typing import Any

from ..backend import Array
from ..tensor import Function, Operand, Tensor

Pair = int | tuple[int, int]
Size = tuple[int, int]


@dataclass(frozen=True)
class ConvGeometry:
    """The sizes of one convolution. Output pixel p reads the padded rows p * stride ... p * stride + kernel - 1.

    A transposed convolution has the geometry of the one that it transposes: input_size is that of its own output.

    Attributes: (height, width) pairs; pads is ((top, bottom), (left, right)).
    """

    input_size: Size
    kernel_size: Size
    stride: Size
    pads: tuple[Size, Size]
    output_size: Size

    def rows(self, i: int) -> slice:
        """The padded rows that kernel row i meets, one for each output row."""
        return slice(i, i + self.stride[0] * (self.output_size[0] - 1) + 1, self.stride[0])

    def columns(self, j: int) -> slice:
        """The padded columns that kernel column j meets, one for each output column."""
        return slice(j, j + self.stride[1] * (self.output_size[1] - 1) + 1, self.stride[1])


@lru_cache(maxsize=1024)
def conv_geometry(input_size: Size, kernel_size: Size, stride: Pair, padding: Pair | str) -> ConvGeometry:
    """The geometry of a convolution, axis by axis, with H the input and K the kernel size:

    - padding p: output (H + 2p - K) // stride + 1. "valid" is p = 0.
    - "same": output ceil(H / stride) with as few zeros as that takes, the odd one at the bottom and right, which is
      TensorFlow's rule.

    Raises:
        ValueError: a size is not positive, padding is unknown, or the kernel exceeds the padded input.
    """
    strides = _pair(stride, "stride", 1)
    if min(*input_size, *kernel_size) < 1:
        raise ValueError(f"convolution: sizes must be positive (input {input_size}, kernel {kernel_size})")
    pads, output_size = [], []
    for axis, (H, K, S) in enumerate(zip(input_size, kernel_size, strides, strict=True)):
        if padding == "same":
            total = max((-(-H // S) - 1) * S + K - H, 0)
            before, after = total // 2, total - total // 2
        else:
            before = after = _pair(0 if padding == "valid" else padding, "padding", 0)[axis]
        if H + before + after < K:
            raise ValueError(
                f"convolution: kernel {kernel_size} is larger than the padded input "
                f"(input {input_size}, padding {padding!r})"
            )
        pads.append((before, after))
        output_size.append((H + before + after - K) // S + 1)
    return ConvGeometry(input_size, kernel_size, strides, (pads[0], pads[1]), (output_size[0], output_size[1]))


@lru_cache(maxsize=1024)
def transposed_geometry(
    input_size: Size, kernel_size: Size, stride: Pair, padding: Pair | str, output_size: Size | None
) -> ConvGeometry:
    """The geometry of the convolution whose adjoint maps input_size to output_size; in what is returned, which is of
    that convolution, the two are the other way round.

    Without output_size, with OH the input size here: "same" gives OH * stride, "valid" Keras' OH * stride +
    max(K - stride, 0), and padding p (OH - 1) * stride + K - 2p. Several sizes are possible, because a convolution
    rounds down.

    Raises:
        ValueError: no convolution of this kind maps output_size to input_size.
    """
    strides = _pair(stride, "stride", 1)
    if output_size is None:
        sizes = []
        for axis, (OH, K, S) in enumerate(zip(input_size, kernel_size, strides, strict=True)):
            if isinstance(padding, str):
                sizes.append(OH * S + (max(K - S, 0) if padding == "valid" else 0))
            else:
                sizes.append((OH - 1) * S + K - 2 * _pair(padding, "padding", 0)[axis])
        output_size = (sizes[0], sizes[1])
    geometry = conv_geometry(output_size, kernel_size, stride, padding)
    if geometry.output_size != input_size:
        raise ValueError(
            f"conv2d_transpose: output_size {output_size} does not fit: with kernel {kernel_size}, stride {stride} and "
            f"padding {padding!r} a convolution maps it to {geometry.output_size}, but x is {input_size}"
        )
    return geometry


def _pair(value: Pair | str, name: str, least: int) -> Size:
    pair = value if isinstance(value, tuple) else (value, value)
    if len(pair) != 2 or any(not isinstance(v, Integral) or v < least for v in pair):
        kinds = ', "same" or "valid"' if name == "padding" else ""
        raise ValueError(f"convolution: {name} is {value!r} but must be an int >= {least}, or a pair of them{kinds}")
    return int(pair[0]), int(pair[1])


class Conv2D(Function):
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


class Conv2DTranspose(Function):
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


def check_conv(name: str, x_shape: tuple[int, ...], weight: Array, bias: Array | None, channel_axis: int) -> None:
    """Raise ValueError unless the shapes fit; x's channels lie along this axis of weight."""
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


def conv2d(
    x: Operand, weight: Operand, bias: Operand | None = None, *, stride: Pair = 1, padding: Pair | str = 0
) -> Tensor:
    """y[n, p, q, f] = bias[f] + sum over i, j, c of padded_x[n, p*SH + i, q*SW + j, c] * weight[i, j, c, f].

    Shapes: x (N, H, W, C), weight (KH, KW, C, F), bias (F,) -> y (N, OH, OW, F).
    Args:
        stride: an int >= 1 or a (height, width) pair. padding: zeros on each side, an int >= 0 or a pair,
            or "same" or "valid"; the sizes that follow stand in `conv_geometry`.
    Raises:
        ValueError: shapes or options do not fit; both shapes are named.
    """
    return Conv2D(_hashable(stride), _hashable(padding))(x, weight, bias)


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
        output_size: (H, W), any size that this convolution maps to (OH, OW); None: as `transposed_geometry` says.
    Raises:
        ValueError: shapes or options do not fit; both shapes are named.
    """
    size = None if output_size is None else _pair(_hashable(output_size), "output_size", 1)
    return Conv2DTranspose(_hashable(stride), _hashable(padding), size)(x, weight, bias)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value  # lists come from TOML and JSON
