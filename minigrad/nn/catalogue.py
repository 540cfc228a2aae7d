"""Further layers, of the operations in ops/catalogue/."""

from __future__ import annotations

from .. import ops
from ..backend.geometry import Pair, pair
from ..tensor import Tensor
from .module import Module


class MaxPool2D(Module):
    """The maximum of each window, (N, H, W, C) -> (N, OH, OW, C); see `ops.max_pool2d`."""

    def __init__(self, window: Pair, *, stride: Pair | None = None, padding: Pair | str = 0) -> None:
        self.window, self.stride, self.padding = window, stride, padding

    def forward(self, x: Tensor) -> Tensor:
        return ops.max_pool2d(x, self.window, stride=self.stride, padding=self.padding)


class AvgPool2D(Module):
    """The mean of each window, (N, H, W, C) -> (N, OH, OW, C); see `ops.avg_pool2d`."""

    def __init__(
        self,
        window: Pair,
        *,
        stride: Pair | None = None,
        padding: Pair | str = 0,
        count_include_pad: bool = False,
    ) -> None:
        self.window, self.stride, self.padding, self.count_include_pad = window, stride, padding, count_include_pad

    def forward(self, x: Tensor) -> Tensor:
        return ops.avg_pool2d(
            x, self.window, stride=self.stride, padding=self.padding, count_include_pad=self.count_include_pad
        )


class UpSample2D(Module):
    """Images enlarged by a whole factor, (N, H, W, C) -> (N, H * FH, W * FW, C).

    Args:
        factor: an int or a pair (FH, FW).
        mode: "nearest" (see `ops.upsample_nearest`) or "bilinear" (see `ops.resize_bilinear`).
    """

    def __init__(self, factor: Pair, mode: str = "nearest") -> None:
        if mode not in ("nearest", "bilinear"):
            raise ValueError(f'UpSample2D: mode is {mode!r} but must be "nearest" or "bilinear"')
        self.factor, self.mode = pair(tuple(factor) if isinstance(factor, list) else factor, "factor", 1), mode

    def forward(self, x: Tensor) -> Tensor:
        if self.mode == "nearest":
            return ops.upsample_nearest(x, self.factor)
        return ops.resize_bilinear(x, (x.shape[1] * self.factor[0], x.shape[2] * self.factor[1]))


class Resize(Module):
    """Images of another size, (N, H, W, C) -> (N, OH, OW, C); see `ops.resize_bilinear`.

    Args:
        size: (OH, OW), or an int for both.
    """

    def __init__(self, size: Pair) -> None:
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return ops.resize_bilinear(x, self.size)
