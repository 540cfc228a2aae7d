"""How much memory a training step takes, known before the first one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from minigrad import DeviceError, backend_of, nn

if TYPE_CHECKING:
    from .conv_autoencoder import Autoencoder

WORKSPACE = 16 << 20  # partial sums of the kernels, in bytes, whatever the batch
MARGIN = 1.05  # for what is small and not counted


def step_memory(model: Autoencoder, iw_samples: int = 1) -> tuple[int, int]:
    """(bytes whatever the batch, bytes an image) that a training step allocates, beside model, optimiser and data.

    What stays until the gradients are known is the result of every layer with weights. Where the backward pass is, it
    holds more: the gradient of the layer's result, on a GPU behind and before its ReLU, and that of its input; and the
    plain kernels two matrices of im2col. Tested against what the arrays of a step hold at their peak.
    """
    k = backend_of(model.network.parameters()[0].data)
    results: list[int] = []
    passing = 0
    inputs = (("encoder", model.input_shape, 1), ("decoder", (model.latent_space_dim + model.classes,), iw_samples))
    for part, shape, copies in inputs:
        size = copies * math.prod(shape)
        for name, layer, output_shape, _ in model.layer_rows:
            if name in model.heads or not name.startswith(part):
                continue
            output = copies * math.prod(output_shape)
            if layer.parameters() and not isinstance(layer, nn.BatchNorm):
                results.append(output)
                columns = _columns(layer, size, output) if k.kernels == "plain" else 0
                passing = max(passing, (1 if k.on_host else 2) * output + size + 2 * columns)
            size = output
        results.append(size)  # what the last layer with a BatchNorm hands on; or else the logits, with their gradient
    images = 4 * math.prod(model.input_shape)  # as bytes and floats, and temporaries of the loss
    itemsize = model.dtype.itemsize
    return WORKSPACE, math.ceil(MARGIN * itemsize * (sum(results) + passing + images))


def _columns(layer: nn.Module, inputs: int, outputs: int) -> int:
    """Elements of the im2col matrix of an image, from those of a layer's input and result."""
    if not isinstance(layer, nn.Conv2D | nn.Conv2DTranspose):
        return 0
    KH, KW, C, F = layer.weight.shape
    return (outputs if isinstance(layer, nn.Conv2D) else inputs) // F * KH * KW * C


def check_memory(model: Autoencoder, batch: int, iw_samples: int, free: int | None, device: str) -> None:
    """Raise DeviceError unless a step on so many images fits into the free bytes; None: nobody knows how many."""
    if free is None:
        return
    fixed, an_image = step_memory(model, iw_samples)
    if fixed + batch * an_image <= free:
        return
    fits = max(0, (free - fixed) // an_image)
    mend = f"the largest batch that fits is {fits} (--batch-size {fits})" if fits else "not even one image fits"
    raise DeviceError(
        f"a training step on {batch} images needs about {gibibytes(fixed + batch * an_image)} on {device}, but "
        f"{gibibytes(free)} are free; {mend}"
    )


def gibibytes(size: float) -> str:
    """A number of bytes for people."""
    return f"{size / 2**30:.2f} GiB"
