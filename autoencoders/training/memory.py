"""How much memory a training step takes, known before the first one."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from minigrad import DeviceError, backend_of, nn
from minigrad.backend import default_backend

from .trainable import Trainable

WORKSPACE = 16 << 20  # partial sums of the kernels, in bytes, whatever the batch
MARGIN = 1.05  # for what is small and not counted
NUMBERS_PER_WEIGHT = (
    6  # numbers: itself, its gradient, two moments; and the first two again while they move into the optimiser
)
COPIES = 4  # of weights and moments on the host at the worst moment of a save: two states, one laid out, and its bytes
LARGE = 256  # pixels of a side, of images that few models need
SMALLER = "take fewer latent dimensions or filters, or smaller kernels"


def least_size(
    input_shape: Any,
    conv_filters: Any,
    conv_kernels: Any,
    conv_strides: Any,
    latent_space_dim: int,
    classes: int = 0,
    **_: Any,
) -> tuple[int, int, int]:
    """(how many weights the convolutions and two dense layers of such a model have, the numbers in the largest matrix
    of im2col of one image, and those that the largest layer takes and gives, padded), from its configuration: nothing
    is made."""
    *sides, channels = input_shape
    weights = columns = passing = 0
    for filters, kernel, stride in zip(conv_filters, conv_kernels, conv_strides, strict=True):
        kernel, stride = ((x, x) if isinstance(x, int) else x for x in (kernel, stride))
        if not all(isinstance(number, int) for number in (*kernel, *stride, channels, filters)):
            raise TypeError("a size is not a whole number")  # texts would be multiplied to long ones
        given, sides = sides, [-(-side // s) for side, s in zip(sides, stride, strict=True)]
        padded = [max(x, (y - 1) * s + k) for x, y, s, k in zip(given, sides, stride, kernel, strict=True)]
        taps = math.prod(kernel) * channels
        weights += 2 * taps * filters  # those of the decoder are as many
        columns = max(columns, math.prod(sides) * taps)
        passing = max(passing, (math.prod(given) + math.prod(padded)) * channels + math.prod(sides) * filters)
        channels = filters
    return weights + math.prod(sides) * channels * (2 * latent_space_dim + classes), columns, passing


def check_size(config: dict[str, Any], images: int = 1) -> None:
    """Raise DeviceError unless a model of this configuration, with an optimiser, fits into the free memory, with what
    so many images take in its largest layer."""
    k = default_backend()
    free = k.free_memory()
    weights, columns, passing = least_size(**config)
    needed = 4 * (NUMBERS_PER_WEIGHT * weights + images * passing + (2 * columns if k.on_host else 0))
    if free is not None and needed > free:
        raise DeviceError(
            f"a model with at least {weights:,} weights and {columns:,} numbers in the im2col matrix of an image, and "
            f"{images} x {passing:,} numbers in a layer, needs about {gibibytes(needed)}, but {gibibytes(free)} are "
            f"free; {SMALLER}{if_large(config['input_shape'])}"
        )


def if_large(input_shape: Sequence[int]) -> str:
    """The end of an error about memory: advice for large images."""
    return f"; smaller images need less (--image-size {LARGE})" if max(input_shape[:2]) > LARGE else ""


def step_memory(model: Trainable, iw_samples: int = 1, batch: int = 1 << 30) -> tuple[int, int]:
    """(fixed bytes, bytes per image) that a training step on a batch allocates, beside model, optimiser and data.

    The result of every layer with weights is kept until the gradients are known. The layer that the backward pass has
    reached needs more: the gradient of its result (on a GPU both after and before the ReLU) and of its input, and with
    the plain kernels two im2col matrices. On the CPU, the other kernel sets need im2col matrices only for the images
    that a thread works on, and a gradient of the weights for each thread. A test compares this with the arrays that a
    step holds at its peak.
    """
    k = backend_of(model.network.parameters()[0].data)
    results: list[int] = []
    passing = per_thread = 0
    itemsize = model.dtype.itemsize
    inputs = (("encoder", model.input_shape, 1), ("decoder", (model.latent_space_dim + model.classes,), iw_samples))
    for part, shape, copies in inputs:
        size = copies * math.prod(shape)
        for name, layer, output_shape, _ in model.layer_rows:
            if name in model.heads or not name.startswith(part):
                continue
            output = copies * math.prod(output_shape)
            if layer.parameters() and not isinstance(layer, nn.BatchNorm):
                results.append(output)
                columns = _columns(layer, size, output)
                if k.kernels == "plain":
                    passing = max(passing, output + size + 2 * columns, 3 * output)
                else:
                    passing = max(passing, (1 if k.on_host else 2) * output + size)
                    weights = sum(p.size for p in layer.parameters())
                    per_thread = max(per_thread, weights + (2 * columns + output) // copies)
                    if k.on_host and columns:  # a block has many images if their columns are few
                        block = min(
                            getattr(k, "block_bytes", 0) // (itemsize * (columns + min(output, size)) // copies), batch
                        )
                        per_thread = max(per_thread, weights + block * (2 * columns + 2 * size + 4 * output) // copies)
            size = output
        results.append(size)  # what the last layer with a BatchNorm hands on; or else the logits, with their gradient
    images = (2 + 2 * iw_samples) * math.prod(model.input_shape)  # as bytes and floats, and temporaries of the loss
    state = 3 * sum(p.data.nbytes for p in model.network.parameters())  # the last good one: weights and moments
    fixed = WORKSPACE + (state + k.threads * itemsize * per_thread if k.on_host else 0)
    return fixed, math.ceil(MARGIN * itemsize * (sum(results) + passing + images))


def _columns(layer: nn.Module, inputs: int, outputs: int) -> int:
    """Elements of the im2col matrix of an image, from those of a layer's input and result."""
    if not isinstance(layer, nn.Conv2D | nn.Conv2DTranspose):
        return 0
    KH, KW, C, F = layer.weight.shape
    return (outputs if isinstance(layer, nn.Conv2D) else inputs) // F * KH * KW * C


def check_memory(model: Trainable, batch: int, iw_samples: int, free: int | None, device: str) -> None:
    """Raise DeviceError unless a step on such a batch, and on the CPU also a checkpoint, fits into the free bytes.

    free: None if the number of free bytes is unknown.
    """
    if free is None:
        return
    weights = model.network.parameters()
    saving = COPIES * 3 * sum(p.data.nbytes for p in weights) if backend_of(weights[0].data).on_host else 0
    if saving > free:
        raise DeviceError(
            f"a checkpoint needs about {gibibytes(saving)} on {device} while it is saved, but {gibibytes(free)} are "
            f"free; {SMALLER}"
        )

    def needed(batch: int) -> int:
        fixed, bytes_per_image = step_memory(model, iw_samples, batch)
        return fixed + batch * bytes_per_image

    if needed(batch) <= free:
        return
    fits = bisect_right(range(1, batch), free, key=needed)
    mend = f"the largest batch that fits is {fits} (--batch-size {fits})" if fits else "not even one image fits"
    raise DeviceError(
        f"a training step on {batch} images needs about {gibibytes(needed(batch))} on {device}, but "
        f"{gibibytes(free)} are free; {mend}{if_large(model.input_shape)}"
    )


def gibibytes(size: float) -> str:
    """A number of bytes for people."""
    return f"{size / 2**30:.2f} GiB"
