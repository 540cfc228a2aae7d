"""How much memory a training step takes, known before the first one."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from minigrad import DeviceError, backend_of
from minigrad.backend import default_backend

from ..network import Shape, map_shapes, pair
from .trainable import Trainable

WORKSPACE = 16 << 20  # partial sums of the kernels, in bytes, whatever the batch
MARGIN = 1.05  # for what is small and not counted
# itself, its gradient, two moments; and the first two again while they move into the optimiser
NUMBERS_PER_WEIGHT = 6
COPIES = 3  # of weights and moments on the host while a save takes most: two states and the bytes of the file
LARGE = 256  # pixels of a side, of images that few models need
SMALLER = "take fewer latent dimensions or filters, or smaller kernels"


class LayerSizes(NamedTuple):
    """A layer with weights: how many it has, and how many numbers it holds for one image."""

    weights: int
    inputs: int
    outputs: int
    columns: int = 0  # in the matrix of im2col
    padded: int = 0  # the larger of the two images, with its padding


def layer_sizes(config: dict[str, Any]) -> tuple[list[LayerSizes], list[LayerSizes]]:
    """The layers of the encoder, without its heads, and of the decoder, from a model's configuration. Nothing is made.

    Raises:
        TypeError: a size is not a whole number.
    """
    filters, kernels, strides = config["conv_filters"], config["conv_kernels"], config["conv_strides"]
    latents = config["latent_space_dim"] + config.get("classes", 0)
    shapes = map_shapes(config["input_shape"], filters, strides)
    features, hidden = math.prod(shapes[-1]), config.get("hidden")
    sides = [latents, *([hidden] if hidden else []), features]
    encoder, decoder = [], [LayerSizes(D * F, D, F) for D, F in pairwise(sides)]
    following = [*filters[1:], filters[-1]]  # what a transposed convolution is given
    for i, (large, small, kernel, stride, channels) in enumerate(
        zip(shapes[:-1], shapes[1:], kernels, strides, following, strict=True)
    ):
        encoder.append(_convolution(large, small, pair(kernel), pair(stride)))
        back = (*large[:2], small[2] if i else large[2])
        mirrored = _convolution(back, (*small[:2], channels), pair(kernel), pair(stride))
        decoder.append(mirrored._replace(inputs=mirrored.outputs, outputs=mirrored.inputs))
    encoder += [LayerSizes(features * hidden, features, hidden)] if hidden else []
    return encoder, decoder


def _convolution(large: Shape, small: Shape, kernel: Shape, stride: Shape) -> LayerSizes:
    """A convolution from the shape `large` to `small`."""
    if not all(isinstance(size, int) for size in (*large, *small, *kernel)):
        raise TypeError("a size is not a whole number")  # texts would be multiplied to long ones
    padded = [max(x, (y - 1) * s + k) for x, y, s, k in zip(large[:2], small[:2], stride, kernel, strict=True)]
    taps = math.prod(kernel) * large[2]
    return LayerSizes(
        weights=taps * small[2],
        inputs=math.prod(large),
        outputs=math.prod(small),
        columns=math.prod(small[:2]) * taps,
        padded=math.prod(padded) * large[2],
    )


def least_weights(config: dict[str, Any]) -> int:
    """How many weights a model of this configuration has, with one head and without biases and BatchNorm."""
    encoder, decoder = layer_sizes(config)
    return sum(layer.weights for layer in encoder + decoder) + encoder[-1].outputs * config["latent_space_dim"]


def check_size(config: dict[str, Any], images: int = 1) -> None:
    """Raise DeviceError unless a model of this configuration, with an optimiser, fits into the free memory, with what
    so many images take in its largest layer."""
    k = default_backend()
    encoder, decoder = layer_sizes(config)
    weights, columns = least_weights(config), max(layer.columns for layer in encoder + decoder)
    passing = max(layer.inputs + layer.padded + layer.outputs for layer in encoder + decoder)
    needed = 4 * (NUMBERS_PER_WEIGHT * weights + images * passing + (2 * columns if k.on_host else 0))
    what = (
        f"a model with at least {weights:,} weights and {columns:,} numbers in the im2col matrix of an image, and "
        f"{images} x {passing:,} numbers in a layer,"
    )
    _require(what, needed, "", k.free_memory(), SMALLER + if_large(config["input_shape"]))


def if_large(input_shape: Sequence[int]) -> str:
    """The end of an error about memory: advice for large images."""
    return f"; smaller images need less (--image-size {LARGE})" if max(input_shape[:2]) > LARGE else ""


def step_memory(model: Trainable, iw_samples: int = 1, batch: int = 1 << 30) -> tuple[int, int]:
    """(fixed bytes, bytes per image) that a training step on a batch allocates, beside model, optimiser and data.

    The result of every layer with weights is kept until the gradients are known. The layer that the backward pass has
    reached needs more: the gradient of its result (on a GPU both after and before the ReLU) and of its input, and with
    the plain kernels two im2col matrices. With the precision bf16 convolutions store all of these in half the bytes. On
    the CPU, the other kernel sets need im2col matrices only for the images that a thread works on, and two sums for
    each shard: of the gradients of weights and of results. A test compares this with the arrays that a step holds at
    its peak.
    """
    k, itemsize = model.backend, model.dtype.itemsize
    encoder, decoder = layer_sizes(model.config)
    stored = itemsize // 2 if (k.precision, itemsize) == ("bf16", 4) else itemsize  # of a number
    pixels = math.prod(model.input_shape)
    encoded = math.prod(map_shapes(*(model.config[x] for x in ("input_shape", "conv_filters", "conv_strides")))[-1])
    results = itemsize * (encoded + iw_samples * pixels)  # after the last BatchNorm, and the gradient of the logits
    passing = per_thread = per_shard = 0
    for layer, copies in [(layer, 1) for layer in encoder] + [(layer, iw_samples) for layer in decoder]:
        inputs, outputs, columns = copies * layer.inputs, copies * layer.outputs, copies * layer.columns
        size = stored if columns else itemsize
        results += size * outputs
        if k.kernels == "plain":
            passing = max(passing, size * max(outputs + inputs + 2 * columns, 3 * outputs))
            continue
        passing = max(passing, size * ((1 if k.on_host else 2) * outputs + inputs))
        per_thread = max(per_thread, 2 * layer.columns)
        per_shard = max(per_shard, layer.weights + layer.outputs)
        if k.on_host and columns:  # a block has many images if their columns are few
            block = getattr(k, "block_bytes", 0) // (itemsize * (columns + min(outputs, inputs)) // copies)
            each = 2 * layer.columns + 2 * layer.inputs + 4 * layer.outputs
            per_thread = max(per_thread, min(block, batch) * each)
    images = (2 + 2 * iw_samples) * pixels  # as bytes and floats, and temporaries of the loss
    state = 3 * sum(p.data.nbytes for p in model.network.parameters())  # the last good one: weights and moments
    working = k.threads * per_thread + 2 * (k.shards or k.threads) * per_shard  # twice while shards are added
    fixed = WORKSPACE + (state + itemsize * working if k.on_host else 0)
    return fixed, math.ceil(MARGIN * (results + passing + itemsize * images))


def check_memory(model: Trainable, batch: int, iw_samples: int, free: int | None, device: str) -> None:
    """Raise DeviceError unless a step on such a batch, and on the CPU also a checkpoint, fits into the free bytes.

    free: None if the number of free bytes is unknown.
    """
    if free is None:
        return
    weights = model.network.parameters()
    if backend_of(weights[0].data).on_host:
        saving = COPIES * 3 * sum(p.data.nbytes for p in weights)
        _require("a checkpoint", saving, f" on {device} while it is saved", free, SMALLER)

    def needed(batch: int) -> int:
        fixed, bytes_per_image = step_memory(model, iw_samples, batch)
        return fixed + batch * bytes_per_image

    fits = bisect_right(range(1, batch), free, key=needed)
    mend = f"the largest batch that fits is {fits} (--batch-size {fits})" if fits else "not even one image fits"
    what = f"a training step on {batch} images"
    _require(what, needed(batch), f" on {device}", free, mend + if_large(model.config["input_shape"]))


def _require(what: str, needed: int, where: str, free: int | None, mend: str) -> None:
    """Raise DeviceError if more bytes are needed than are free."""
    if free is not None and needed > free:
        gibibytes = f"about {needed / 2**30:.2f} GiB{where}, but {free / 2**30:.2f} GiB are free"
        raise DeviceError(f"{what} needs {gibibytes}; {mend}")
