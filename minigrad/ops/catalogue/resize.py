"""Images in other sizes: nearest and bilinear."""

from __future__ import annotations

from ...backend import Array
from ...backend.catalogue import CatalogueBackend
from ...backend.geometry import Pair, Size, pair
from ...tensor import Function, Operand, Tensor
from ..conv import hashable

__all__ = ["resize_bilinear", "upsample_nearest"]


class UpsampleNearest(Function):
    """y repeats each pixel in a block of FH * FW.  gx is the sum of gy over the block."""

    def __init__(self, factor: Size) -> None:
        self.factor = factor

    def forward(self, x: Array) -> Array:
        _check_images("upsample_nearest", x.shape)
        (N, H, W, C), (FH, FW) = x.shape, self.factor
        self.blocks = N, H, FH, W, FW, C
        y = self.k.xp.copy(self.k.xp.broadcast_to(x[:, :, None, :, None], self.blocks))
        return y.reshape(N, H * FH, W * FW, C)

    def backward(self, gy: Array) -> tuple[Array, ...]:
        return (self.k.sum(gy.reshape(self.blocks), (2, 4)),)


def upsample_nearest(x: Operand, factor: Pair) -> Tensor:
    """y[n, h, w, c] = x[n, h // FH, w // FW, c].

    >>> ops.upsample_nearest(np.ones((1, 4, 6, 3)), 2).shape
    (1, 8, 12, 3)

    Shapes: x (N, H, W, C) -> y (N, H * FH, W * FW, C).
    Gradients: gx is the sum of gy over each block of FH * FW pixels.
    Args:
        factor: an int >= 1, or a pair (FH, FW).
    Raises:
        ValueError: x does not have 4 axes, or factor is wrong.
    """
    return UpsampleNearest(_sizes("upsample_nearest", factor, "factor"))(x)


class ResizeBilinear(Function):
    """y = rows @ x @ columns^T for each image and channel.  gx = rows^T @ gy @ columns."""

    k: CatalogueBackend

    def __init__(self, size: Size) -> None:
        self.size = size

    def forward(self, x: Array) -> Array:
        _check_images("resize_bilinear", x.shape)
        self.x_size = x.shape[1:3]
        if 0 in self.x_size:
            raise ValueError(f"resize_bilinear: x has no pixels (x {x.shape})")
        return self._products(x, *self._matrices(x))

    def backward(self, gy: Array) -> tuple[Array, ...]:
        rows, columns = self._matrices(gy)
        return (self._products(gy, rows.T, columns.T),)

    def _matrices(self, like: Array) -> tuple[Array, Array]:
        """rows (OH, H) and columns (OW, W)."""
        (H, W), (OH, OW) = self.x_size, self.size
        return self.k.interpolation_matrix(H, OH, like.dtype), self.k.interpolation_matrix(W, OW, like.dtype)

    def _products(self, x: Array, rows: Array, columns: Array) -> Array:
        (N, H, W, C), OH, OW = x.shape, len(rows), len(columns)
        y = self.k.matmul(rows, x.reshape(N, H, W * C))  # (N, OH, W*C)
        y = self.k.matmul(columns, y.reshape(N * OH, W, C))  # (N*OH, OW, C)
        return y.reshape(N, OH, OW, C)


def resize_bilinear(x: Operand, size: Pair) -> Tensor:
    """Bilinear interpolation to another size: rows first, then columns, each by a product with a constant matrix.

    >>> ops.resize_bilinear(np.ones((1, 4, 6, 3)), (8, 9)).shape
    (1, 8, 9, 3)

    Pixels are squares, and the images cover the same area (half-pixel centres): align_corners=False in PyTorch, and
    what TensorFlow 2 does. A smaller image is not smoothed first. An infinite pixel or NaN spreads over its row and its
    column.

    Shapes: x (N, H, W, C) -> y (N, OH, OW, C).
    Args:
        size: (OH, OW), or an int for both.
    Raises:
        ValueError: x does not have 4 axes or has no pixels, or size is wrong.
    Source: `interpolation_matrix` in backend/catalogue.py has the weights.
    """
    return ResizeBilinear(_sizes("resize_bilinear", size, "size"))(x)


def _check_images(name: str, x_shape: tuple[int, ...]) -> None:
    if len(x_shape) != 4:
        raise ValueError(f"{name}: x must be (N, H, W, C) (x {x_shape})")


def _sizes(name: str, value: Pair, option: str) -> Size:
    try:
        return pair(hashable(value), option, 1)
    except ValueError as error:
        raise ValueError(str(error).replace("convolution", name)) from None
