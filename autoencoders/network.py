"""The network of an autoencoder: which convolutions suit an image, and the layers of encoder and decoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minigrad import nn

LAST_MAP = 8  # the largest side of the last feature map, in pixels
Shape = tuple[int, ...]  # (H, W, C)
PUBLISHED = (28, 28)  # images of this size keep the network of the published figures, with kernels of 3


def network_for(
    input_shape: Sequence[int], filters: Any = None, kernels: Any = None, strides: Any = None
) -> tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]:
    """(filters, kernels, strides) of each convolution: as given, or for None what suits the image.

    Strides: enough strides of 2 to bring the last feature map to at most 8 x 8, with a stride of 1 before and after:
    1, 2, 2, 1 for 28 x 28.
    Filters: they double from 32, or from 16 for images above 32 pixels, up to 64.
    Kernels: 3 where the stride is 1, else twice the stride. Then each output pixel of a transposed convolution gets as
    many terms as its neighbours. Other sizes leave a grid in the pictures.

    One number for kernels or strides applies to every convolution. One number for filters means one convolution.

    Raises:
        ValueError: the lengths differ or a value is out of range.

    Source: Odena, Dumoulin and Olah, Deconvolution and Checkerboard Artifacts, 2016.
    """
    side = max(input_shape[:2])
    halvings = 0
    while -(-side // 2**halvings) > LAST_MAP:
        halvings += 1
    if _is_scalar(filters):
        filters = (filters,)
    several = [x for x in (filters, kernels, strides) if x is not None and not _is_scalar(x)]
    depth = len(several[0]) if several else halvings + 2
    if strides is None:
        twos = min(depth, halvings)
        strides = (min(1, depth - twos) * (1,) + twos * (2,) + depth * (1,))[:depth]
    strides = depth * (strides,) if _is_scalar(strides) else tuple(strides)
    if kernels is None:
        kernels = [
            3 if stride == 1 or tuple(input_shape[:2]) == PUBLISHED else _kernel_for(stride) for stride in strides
        ]
    if filters is None:
        filters = [min(64, (32 if side <= 32 else 16) * 2**i) for i in range(depth)]
    return _checked(tuple(filters), depth * (kernels,) if _is_scalar(kernels) else tuple(kernels), strides)


def _checked(filters: Any, kernels: Any, strides: Any) -> tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]:
    """The same in Python's own ints, because NumPy's cannot be saved as JSON."""
    if not len(filters) == len(kernels) == len(strides) > 0:
        raise ValueError(
            "conv_filters, conv_kernels and conv_strides need one entry for each convolution, found "
            f"{len(filters)}, {len(kernels)} and {len(strides)}"
        )
    if not all(map(is_size, filters)):
        raise ValueError(f"conv_filters must be whole numbers >= 1, found {filters}")
    for value in (*kernels, *strides):
        both = (value, value) if is_size(value) else value
        if not isinstance(both, tuple | list) or len(both) != 2 or not all(map(is_size, both)):
            raise ValueError(f"conv_kernels and conv_strides must be whole numbers >= 1 or pairs, found {value!r}")
    kernels, strides = (
        tuple(int(value) if is_size(value) else tuple(map(int, value)) for value in values)
        for values in (kernels, strides)
    )
    return tuple(map(int, filters)), kernels, strides


def is_size(value: Any) -> bool:
    """Whether this is a whole number >= 1 that is not absurd."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(1 <= value < 2**31)


def likelihood_for(input_shape: Sequence[int]) -> str:
    """The likelihood for images with so many channels: that of the published figures for grey ones, a density for
    colours."""
    return "bernoulli" if tuple(input_shape)[2:] in ((), (1,)) else "gaussian-learned"


def encoder_layers(
    shapes: Sequence[Shape], kernels: Sequence[Any], strides: Sequence[Any], momentum: float, hidden: int | None = None
) -> dict[str, nn.Module]:
    """Layers from images to flat features, with a convolution from each of the shapes to the next, and at the end a
    dense layer with `hidden` units and a ReLU, unless hidden is None."""
    layers: dict[str, nn.Module] = {}
    steps = zip(shapes[:-1], shapes[1:], kernels, strides, strict=True)
    for i, ((*_, channels), (*_, filters), kernel, stride) in enumerate(steps, 1):
        layers[f"encoder_conv_layer_{i}"] = nn.Conv2D(channels, filters, kernel, stride=stride)
        layers[f"encoder_relu_{i}"] = nn.ReLU()
        layers[f"encoder_bn_{i}"] = nn.BatchNorm(filters, momentum=momentum)
    layers["encoder_flatten"] = nn.Flatten()
    if hidden:
        layers |= {"encoder_hidden": nn.Dense(math.prod(shapes[-1]), hidden), "encoder_hidden_relu": nn.ReLU()}
    return layers


def decoder_layers(
    inputs: int,
    shapes: Sequence[Shape],
    kernels: Sequence[Any],
    strides: Sequence[Any],
    momentum: float,
    hidden: int | None = None,
) -> dict[str, nn.Module]:
    """Layers from latents back to the logits of the image: a dense layer with `hidden` units and a ReLU, unless hidden
    is None; then a transposed convolution for each convolution, in reverse order, with as many filters; the last one
    has as many as the image has channels."""
    layers: dict[str, nn.Module] = {}
    if hidden:
        layers |= {"decoder_hidden": nn.Dense(inputs, hidden), "decoder_hidden_relu": nn.ReLU()}
    layers["decoder_dense"] = nn.Dense(hidden or inputs, math.prod(shapes[-1]))
    layers["decoder_reshape"] = nn.Reshape(*shapes[-1])
    channels = shapes[-1][2]
    back = list(zip(shapes[:-1], shapes[1:], kernels, strides, strict=True))[::-1]
    for i, ((H, W, C), (*_, filters), kernel, stride) in enumerate(back, 1):
        last = i == len(back)
        layers[f"decoder_conv_transpose_layer_{i}"] = nn.Conv2DTranspose(
            channels, C if last else filters, kernel, stride=stride, output_size=(H, W)
        )
        if not last:
            layers[f"decoder_relu_{i}"] = nn.ReLU()
            layers[f"decoder_bn_{i}"] = nn.BatchNorm(filters, momentum=momentum)
        channels = filters
    return layers


def map_shapes(input_shape: Sequence[int], filters: Sequence[int], strides: Sequence[Any]) -> list[Shape]:
    """The shapes (H, W, C) before, between and after the convolutions."""
    shapes = [tuple(input_shape)]
    for count, stride in zip(filters, strides, strict=True):
        (H, W, _), (SH, SW) = shapes[-1], pair(stride)
        shapes.append((-(-H // SH), -(-W // SW), count))
    return shapes


def pair(value: Any) -> tuple[int, int]:
    """(height, width) of a kernel or stride."""
    return (value, value) if _is_scalar(value) else tuple(value)


def _is_scalar(value: Any) -> bool:
    """Whether this is one number for all convolutions."""
    return value is not None and not hasattr(value, "__len__")


def _kernel_for(stride: Any) -> Any:
    return 2 * stride if _is_scalar(stride) else tuple(3 if x == 1 else 2 * x for x in stride)
