"""Pooling: the maximum or the mean of each window of an image.

The mean of whole images is `x.mean(axis=(1, 2))`.
"""

from __future__ import annotations

from ...backend import Array
from ...backend.catalogue import CatalogueBackend
from ...backend.geometry import ConvGeometry, Pair, conv_geometry, pair
from ...tensor import Function, Operand, Tensor
from ..conv import hashable

__all__ = ["avg_pool2d", "max_pool2d"]


class MaxPool2D(Function):
    """y = the largest pixel of each window.  gx adds each gy to the pixel that was the largest."""

    k: CatalogueBackend

    def __init__(self, window: Pair, stride: Pair | None, padding: Pair | str) -> None:
        self.window, self.stride, self.padding = window, stride, padding

    def forward(self, x: Array) -> Array:
        self.geometry = _geometry("max_pool2d", x.shape, self.window, self.stride, self.padding)
        y, self.winners = self.k.max_pool(x, self.geometry)
        return y

    def backward(self, gy: Array) -> tuple[Array, ...]:
        return (self.k.put_windows(gy, self.winners, self.geometry),)


def max_pool2d(x: Operand, window: Pair, *, stride: Pair | None = None, padding: Pair | str = 0) -> Tensor:
    """y[n, p, q, c] = max over i, j of padded_x[n, p*SH + i, q*SW + j, c]; windows may overlap.

    >>> ops.max_pool2d(np.ones((1, 4, 6, 3)), 2).shape
    (1, 2, 3, 3)

    Shapes: x (N, H, W, C) -> y (N, OH, OW, C), with the sizes of `conv_geometry`. Rows that no window reaches are left
        out.
    Gradients: gy goes to the largest pixel of its window, the first of equal ones. NaN is larger than all numbers.
    Args:
        window: an int or a pair (height, width). stride: the same; None: the window.
        padding: an int or a pair, at most half the window; or "same" or "valid". It is never the maximum.
    Raises:
        ValueError: x does not have 4 axes, the window is larger than the padded image, or an option is wrong.
    """
    return MaxPool2D(hashable(window), hashable(stride), hashable(padding))(x)


class AvgPool2D(Function):
    """y = the sum of each window / its number of pixels.  gx adds gy / that number to each pixel of the window."""

    k: CatalogueBackend

    def __init__(self, window: Pair, stride: Pair | None, padding: Pair | str, count_include_pad: bool) -> None:
        self.window, self.stride, self.padding, self.count_include_pad = window, stride, padding, count_include_pad

    def forward(self, x: Array) -> Array:
        self.geometry = _geometry("avg_pool2d", x.shape, self.window, self.stride, self.padding)
        return self.k.sum_windows(x, self.geometry) / self._pixels(x)

    def backward(self, gy: Array) -> tuple[Array, ...]:
        return (self.k.spread_windows(gy / self._pixels(gy), self.geometry),)

    def _pixels(self, like: Array) -> Array | int:
        """How many pixels each window has, (1, OH, OW, 1), or one number for all."""
        KH, KW = self.geometry.kernel_size
        if self.count_include_pad or not any(map(any, self.geometry.pads)):
            return KH * KW
        ones = self.k.xp.ones((1, *self.geometry.input_size, 1), dtype=like.dtype)
        return self.k.sum_windows(ones, self.geometry)


def avg_pool2d(
    x: Operand,
    window: Pair,
    *,
    stride: Pair | None = None,
    padding: Pair | str = 0,
    count_include_pad: bool = False,
) -> Tensor:
    """y[n, p, q, c] = mean over i, j of padded_x[n, p*SH + i, q*SW + j, c]; windows may overlap.

    >>> ops.avg_pool2d(np.ones((1, 4, 6, 3)), (2, 3), stride=1).shape
    (1, 3, 4, 3)

    Shapes: x (N, H, W, C) -> y (N, OH, OW, C), with the sizes of `conv_geometry`. Rows that no window reaches are left
        out.
    Gradients: gy / (number of pixels of the window) goes to each pixel of the window.
    Args:
        window: an int or a pair (height, width). stride: the same; None: the window.
        padding: an int or a pair, at most half the window; or "same" or "valid".
        count_include_pad: False: the mean of the real pixels, as in Keras. True: padding counts as zeros, which is
            PyTorch's default.
    Raises:
        ValueError: x does not have 4 axes, the window is larger than the padded image, or an option is wrong.
    """
    return AvgPool2D(hashable(window), hashable(stride), hashable(padding), count_include_pad)(x)


def _geometry(
    name: str, x_shape: tuple[int, ...], window: Pair, stride: Pair | None, padding: Pair | str
) -> ConvGeometry:
    """The geometry of the windows. Padding of at most half the window leaves a real pixel in each one."""
    if len(x_shape) != 4:
        raise ValueError(f"{name}: x must be (N, H, W, C) (x {x_shape})")
    try:
        both = pair(window, "window", 1)
        geometry = conv_geometry(x_shape[1:3], both, both if stride is None else stride, padding)
    except (ValueError, TypeError) as error:
        reason = str(error).replace("convolution: ", "").replace("kernel", "window")
        raise ValueError(f"{name}: {reason} (x {x_shape}, window {window}, stride {stride})") from None
    if padding != "same" and any(2 * pads[0] > K for pads, K in zip(geometry.pads, both, strict=True)):
        raise ValueError(f"{name}: padding is {padding} but must be at most half of the window {window} (x {x_shape})")
    return geometry
