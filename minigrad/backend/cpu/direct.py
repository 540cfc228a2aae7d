"""Where the products of a convolution find their numbers, for the numba kernels. plan.py explains the phases.

In im2col row p of `columns` holds the numbers that pixel p of the result meets, and columns[p, t] belongs to tap t: a
kernel row, kernel column and channel. Nothing needs to be copied: in the flat padded image this number is at pixels[p]
+ taps[t]. pixels[p] is where the patch of p begins, and taps[t] how far t is from there. For 4 x 4 pixels of one
channel, a 3 x 3 kernel and no padding these are pixels = 0 1 4 5 and taps = 0 1 2 4 5 6 8 9 10. So the three products
read the image itself:

    forward   y[p, f]       = sum over t of image[pixels[p] + taps[t]] * weight[t, f]
    weight    gweight[t, f] = sum over p of image[pixels[p] + taps[t]] * gy[p, f]
    adjoint   one product like the forward one for each phase of the stride

The weight gradient is the same call as the forward one with the two tables exchanged.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..geometry import ConvGeometry
from .plan import THIN, Product, Window, convolution, phases

Array = Any

LAYER = np.dtype(
    [(name, "i8") for name in ("pixel", "channels", "images", "relu", "thin", "holes")]
    + [(name, "i8", 2) for name in ("output_size", "padded_size", "before")]
    + [(name, "i8", 2) for name in ("steps", "pixels", "taps", "matrices", "bias")]
)
"""A convolution or its adjoint.

channels: those of the result. images: how many are computed at a time.
padded_size, before: x is read in an image of this size, with so many rows and columns of zeros above and left of x. The
    image may be smaller than x, if a stride leaves out the last pixels.
holes: whether some pixels of the result meet no tap.
relu: whether a ReLU follows.
thin: whether the result has so few channels that they are computed one by one, as dot products.
pixel: numbers that a pixel of x takes in the padded image: its channels, and zeros up to a whole vector if thin.
steps ... bias: from where to where the parts of this layer are in the tables of a chain of layers."""
STEP = np.dtype([(name, "i8", 2) for name in ("pixels", "taps", "matrix")])
"""One product of a plan: from where to where its parts are in the tables."""


class Tables(NamedTuple):
    """What the loops read of a layer, or of a chain of them, one after another. The tables of places have one entry
    more, which is read but not used."""

    steps: Array  # STEP
    pixels: Array  # (2, count): where each pixel's first tap is in the padded x, and where its result is
    taps: Array  # the distance of each tap from the first
    matrices: Array  # the weight in panels


class Direct(NamedTuple):
    """A plan that says which weight goes where, but not its value. steps, pixels and taps are those of Tables."""

    layer: Array  # LAYER, (1,)
    steps: Array
    pixels: Array
    taps: Array
    order: Array  # for each number of the matrices its index in the flat weight; -1 for a zero
    output: tuple[int, int, int]  # height, width and channels of the result
    images: int  # that of the layer
    padded: int  # numbers of a padded image


Kind = tuple[bool, ConvGeometry, tuple[int, ...], bool]  # the first arguments of `direct`


@lru_cache(maxsize=256)
def direct(back: bool, geometry: ConvGeometry, shape: tuple[int, ...], relu: bool, block: int, panel: int) -> Direct:
    """The plan for a convolution with a weight of this shape, or for its adjoint if `back`.

    relu: whether a ReLU follows. block: numbers that a thread works on at a time. panel: columns of a matrix that are
    stored together.
    """
    C, F = shape[2:]
    layer = np.zeros(1, LAYER)
    record = layer[0]
    record["pixel"], record["channels"] = (F, C) if back else (C, F)
    record["output_size"], record["relu"] = geometry.input_size if back else geometry.output_size, relu
    indices = np.arange(math.prod(shape)).reshape(shape)  # planned as if they were weights, they say what goes where
    record["thin"], vector = back and C < THIN, panel // 2
    if record["thin"]:
        record["pixel"] = -(-F // vector) * vector
        indices = np.pad(indices, [(0, 0)] * 3 + [(0, record["pixel"] - F)], constant_values=-1)
    parts = (phases(indices, geometry) if back else convolution(indices, geometry)).parts
    for axis in (0, 1):
        before = record["before"][axis] = max(0, *(-window.start[axis] for window, _ in parts))
        reach = [w.start[axis] + (w.output_size[axis] - 1) * w.stride[axis] + w.kernel_size[axis] for w, _ in parts]
        record["padded_size"][axis] = before + max(reach)
    padded, output = math.prod(record["padded_size"]) * record["pixel"], (*record["output_size"], record["channels"])
    record["images"] = max(1, block // max(padded + math.prod(output), 1))
    found: list[tuple[Array, ...]] = []
    for window, products in parts:
        for product in products:
            x, y, taps = _places(record, window, product)
            if not len(taps):
                record["holes"] = 1
            elif record["thin"]:
                found.append((x, y, taps[::vector], product.matrix.T.reshape(-1)))
            else:
                found.append((x, y, taps, _panels(product.matrix, panel)))
    x, y, taps, order = (np.concatenate([*part, [0]]) for part in (zip(*found, strict=True) if found else [()] * 4))
    steps = np.zeros(len(found), STEP)
    for name, i in (("pixels", 0), ("taps", 2), ("matrix", 3)):
        stops = np.cumsum([len(part[i]) for part in found], dtype=int)
        steps[name][:, 0], steps[name][:, 1] = stops - [len(part[i]) for part in found], stops
    H, W, channels = map(int, output)
    return Direct(layer, steps, np.stack([x, y]), taps, order, (H, W, channels), int(record["images"]), int(padded))


class Chain(NamedTuple):
    """Layers one after another; the tables are those of Tables, and `layers` says which parts of them are whose."""

    layers: Array  # LAYER
    steps: Array
    pixels: Array
    taps: Array
    orders: list[Array]  # as in Direct, for each layer
    images: int  # the fewest that a layer computes at a time
    between: int  # numbers of an image between two layers, at most
    padded: int  # numbers of the padded images that a layer computes at a time, at most


@lru_cache(maxsize=64)
def chained(kinds: tuple[Kind, ...], block: int, panel: int) -> Chain:
    """The plan for layers of these kinds."""
    plans = [direct(*kind, block, panel) for kind in kinds]
    layers = np.concatenate([plan.layer for plan in plans])
    tables = [(plan.steps, plan.pixels.reshape(-1), plan.taps, plan.order) for plan in plans]
    outputs = [math.prod(plan.output) for plan in plans]
    sizes = np.array([[*map(len, table), output] for table, output in zip(tables, outputs, strict=True)])
    stops = np.cumsum(sizes, axis=0)
    for i, name in enumerate(("steps", "pixels", "taps", "matrices", "bias")):
        layers[name] = np.stack([stops - sizes, stops], axis=2)[:, i]
    steps, pixels, taps, orders = zip(*tables, strict=True)
    steps, pixels, taps = map(np.concatenate, (steps, pixels, taps))
    images, padded = min(plan.images for plan in plans), max(plan.images * plan.padded for plan in plans)
    return Chain(layers, steps, pixels, taps, list(orders), images, max(outputs), padded)


def _places(record: Any, window: Window, product: Product) -> tuple[Array, Array, Array]:
    """(pixels in the padded x, pixels in the result, taps) of a product, for a block of images. Fewer images use the
    first part of the tables."""
    (H, W), (OH, OW), C = record["padded_size"], record["output_size"], record["pixel"]
    images = np.arange(record["images"])[:, None, None]
    rows, columns = np.arange(OH)[product.rows], np.arange(OW)[product.columns]
    up, left = (
        record["before"][axis] + window.start[axis] + np.arange(len(out)) * window.stride[axis]
        for axis, out in enumerate((rows, columns))
    )
    x = ((images * H + up[:, None]) * W + left) * C
    y = ((images * OH + rows[:, None]) * OW + columns) * record["channels"]
    taps = np.arange(window.kernel_size[0])[:, None] * W * C + np.arange(window.kernel_size[1] * C)
    return x.reshape(-1), y.reshape(-1), taps.reshape(-1)[product.taps]


def _panels(matrix: Array, panel: int) -> Array:
    """The matrix (K, N) as panels (K, panel) one after another, the last one filled up with -1; flat."""
    K, N = matrix.shape
    filled = np.full((K, -(-N // panel) * panel), -1)
    filled[:, :N] = matrix
    return filled.reshape(K, -1, panel).transpose(1, 0, 2).reshape(-1)
