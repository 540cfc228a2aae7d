"""Which convolutions suit an image, where nobody has chosen them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

LAST_MAP = 8  # pixels: the most that a side of the last feature map has
PUBLISHED = (28, 28)  # images of this size keep the network of the published figures, with kernels of 3


def network_for(
    input_shape: Sequence[int], filters: Any = None, kernels: Any = None, strides: Any = None
) -> tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]:
    """(filters, kernels, strides) of each convolution: those that are given, and for None what suits the image.

    As many strides of 2 as bring the last feature map to at most 8 x 8, with a stride of 1 before and after them.
    Filters double from 32, for images above 32 pixels from 16, up to 64. A kernel is twice as large as its stride,
    because others leave a grid in the pictures: each output pixel of a transposed convolution then gets as many terms
    as its neighbours. Where the stride is 1 it is 3.

    Kernels and strides of one number are those of every convolution. Filters of one number are one convolution.

    Source: Odena, Dumoulin and Olah, Deconvolution and Checkerboard Artifacts, 2016.
    """
    side = max(input_shape[:2])
    halvings = 0
    while -(-side // 2**halvings) > LAST_MAP:
        halvings += 1
    if _is_one(filters):
        filters = (filters,)
    several = [x for x in (filters, kernels, strides) if x is not None and not _is_one(x)]
    depth = len(several[0]) if several else halvings + 2
    if strides is None:
        twos = min(depth, halvings)
        strides = (min(1, depth - twos) * (1,) + twos * (2,) + depth * (1,))[:depth]
    strides = depth * (strides,) if _is_one(strides) else tuple(strides)
    if kernels is None:
        kernels = [3 if stride == 1 or tuple(input_shape[:2]) == PUBLISHED else _double(stride) for stride in strides]
    if filters is None:
        filters = [min(64, (32 if side <= 32 else 16) * 2**i) for i in range(depth)]
    return tuple(filters), depth * (kernels,) if _is_one(kernels) else tuple(kernels), strides


def last_map(model: dict[str, Any]) -> int:
    """The longer side of the last feature map, from a model's configuration."""
    sides = list(model["input_shape"][:2])
    for stride in model["conv_strides"]:
        pair = (stride, stride) if _is_one(stride) else stride
        sides = [-(-side // s) for side, s in zip(sides, pair, strict=True)]
    return max(sides)


def _is_one(value: Any) -> bool:
    """Whether this is one number for all convolutions."""
    return value is not None and not hasattr(value, "__len__")


def _double(stride: Any) -> Any:
    return 2 * stride if _is_one(stride) else tuple(3 if x == 1 else 2 * x for x in stride)
