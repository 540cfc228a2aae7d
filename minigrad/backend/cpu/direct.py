"""Where the products of a convolution find their numbers, for the numba kernels. plan.py explains the phases.

In im2col row p of `columns` holds the numbers that pixel p of the result meets, and columns[p, t] belongs to tap t: a
kernel row, kernel column and channel. Nothing needs to be copied: in the flat image this number is at pixels[p] +
taps[t]. pixels[p] is where the patch of p begins, and taps[t] how far t is from there. For 4 x 4 pixels of one channel,
a 3 x 3 kernel and no padding these are pixels = 0 1 4 5 and taps = 0 1 2 4 5 6 8 9 10. So the products read the image
itself:

    forward   y[p, f]       = sum over t of image[pixels[p] + taps[t]] * weight[t, f]
    weight    gweight[t, f] = sum over p of image[pixels[p] + taps[t]] * gy[p, f]
    adjoint   one product like the forward one for each phase of the stride

Most images need no padding either. At the border some taps of a patch are outside. Pixels that have the same taps
inside are one product, whose sum is over these taps: for a 3 x 3 kernel those within, at the four sides and at the
four corners. In the same way, the sum of the weight gradient for a tap is over the pixels for which it is inside. So
a weight that meets only padding is not read, even if it is NaN. Where this would take long tables or low tiles, the
image is copied into a frame of zeros, and all taps are inside.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..geometry import ConvGeometry, Size
from .micro_kernels import ROWS
from .plan import THIN, Product, Window, axis_coverage, conv_window, convolution, phases

Array = Any
FEW_CHANNELS = 3 * ROWS[0]  # of a weight gradient: fewer make low tiles, if each has one kernel row and column
MOST_TURNS = 1 << 16  # of a plan without a frame, 1 MiB

LAYER = np.dtype(
    [(name, "i8") for name in ("channels", "images", "relu", "thin", "holes")]
    + [("output_size", "i8", 2), ("frame", "i8", 5)]
    + [(name, "i8", 2) for name in ("steps", "pixels", "turns", "matrices", "bias")]
)
"""A convolution or its adjoint.

channels: those of the result. images: how many are computed at a time.
holes: whether some pixels of the result meet no tap.
relu: whether a ReLU follows.
thin: whether the result has so few channels that they are computed one by one, as dot products.
frame: a Frame, in which x is read.
steps ... bias: from where to where the parts of this layer are in the tables of a chain of layers."""
STEP = np.dtype([(name, "i8", 2) for name in ("rows", "turns", "matrix")])
"""One product: from where to where its rows and turns are in the tables; where its matrix begins, and its height."""


class Frame(NamedTuple):
    """An image in which another one lies: its size; the rows and columns of zeros above and left of the other; and the
    numbers of a pixel, the channels of the other and zeros up to a whole vector in a thin layer. It may end before the
    other, if a stride leaves out the last pixels."""

    height: int
    width: int
    top: int
    left: int
    pixel: int

    def numbers(self, *shape: int) -> int:
        """Numbers that an image of this shape takes in scratch: none if the frame is the image itself."""
        same = (self.height, self.width, self.pixel) == shape and self.top == self.left == 0
        return 0 if same else self.height * self.width * self.pixel


class Tables(NamedTuple):
    """What the loops read of a layer, or of a chain of them, one after another. The table of turns has one more, which
    is read but not used."""

    steps: Array  # STEP
    pixels: Array  # (2, count): where each pixel's first tap is in x, and where its result is
    turns: Array  # (count, 2): the distance of each tap from the first, and where its row is in the matrix
    matrices: Array  # the weight in panels


class Direct(NamedTuple):
    """A plan that says which weight goes where, but not its value. steps, pixels and turns are those of Tables."""

    layer: Array  # LAYER, (1,)
    steps: Array
    pixels: Array
    turns: Array
    order: Array  # for each number of the matrices its index in the flat weight; -1 for a zero
    output: tuple[int, int, int]  # height, width and channels of the result
    images: int  # that of the layer
    padded: int  # numbers of an image in its frame, in scratch


Kind = tuple[bool, ConvGeometry, tuple[int, ...]]  # the first arguments of `direct`


@lru_cache(maxsize=256)
def direct(back: bool, geometry: ConvGeometry, shape: tuple[int, ...], block: int, panel: int) -> Direct:
    """The plan for a convolution with a weight of this shape, or for its adjoint if `back`.

    block: numbers that a thread works on at a time. panel: columns of a matrix that are stored together.
    """
    C, F = shape[2:]
    size, output_size, inputs, channels = geometry.input_size, geometry.output_size, C, F
    if back:
        size, output_size, inputs, channels = output_size, size, F, C
    indices = np.arange(math.prod(shape)).reshape(shape)  # planned as if they were weights, they say what goes where
    thin, vector, pixel = back and C < THIN, panel // 2, inputs
    if thin:
        pixel = -(-F // vector) * vector
        indices = np.pad(indices, [(0, 0)] * 3 + [(0, pixel - F)], constant_values=-1)
    parts = (phases(indices, geometry) if back else convolution(indices, geometry)).parts
    output, frame = (*output_size, channels), Frame(*size, 0, 0, pixel)
    if _most_turns(frame, output_size, parts) > MOST_TURNS:
        top, left = (max(0, *(-window.start[axis] for window, _ in parts)) for axis in (0, 1))
        height, width = (
            max(w.start[axis] + (w.output_size[axis] - 1) * w.stride[axis] + w.kernel_size[axis] for w, _ in parts)
            for axis in (0, 1)
        )
        frame = Frame(top + height, left + width, top, left, pixel)
    images = max(1, block // max(frame.height * frame.width * pixel + math.prod(output), 1))
    layer, steps, pixels, turns, order = np.zeros(1, LAYER), [], _Table(2), _Table(2), _Table()
    for name, value in {"channels": channels, "images": images, "thin": thin}.items():
        layer[name] = value
    layer["output_size"], layer["frame"] = output_size, frame
    for window, products in parts:
        for product in products:
            K, matrix = len(product.matrix), product.matrix
            start, _ = order.add(matrix.T.reshape(-1) if thin else _panels(matrix, panel))
            for places, taps, met in _sides(frame, output, images, window, product):
                pairs = np.stack([taps, met], axis=1)[::vector] if thin else np.stack([taps, met * panel], axis=1)
                if len(pairs):
                    steps.append((pixels.add(places), turns.add(pairs), (start, K)))
                else:
                    layer["holes"] = 1
    turns.add(np.zeros((1, 2), int))
    table = np.ascontiguousarray(pixels.joined.T)
    padded = frame.numbers(*size, inputs)
    return Direct(layer, np.array(steps, STEP), table, turns.joined, order.joined, output, images, padded)


class _Table:
    """Arrays one after another, with so many columns; flat with none."""

    def __init__(self, *columns: int) -> None:
        self.parts, self.length = [np.zeros((0, *columns), int)], 0

    def add(self, part: Array) -> tuple[int, int]:
        """Put an array at the end; returns from where to where it is."""
        self.parts.append(part)
        start, self.length = self.length, self.length + len(part)
        return start, self.length

    @property
    def joined(self) -> Array:
        """All of them."""
        return np.concatenate(self.parts)


def _sides(
    frame: Frame, output: tuple[int, int, int], images: int, window: Window, product: Product
) -> Iterator[tuple[Array, Array, Array]]:
    """The parts of a product whose pixels have the same taps inside the frame: (places of the pixels in it and in the
    result for a block of images, distances of the taps from the first, their rows in the matrix). Fewer images use the
    first places."""
    (H, W, _, _, C), (OH, OW, F), (KH, KW) = frame, output, window.kernel_size
    rows, columns, image = np.arange(OH)[product.rows], np.arange(OW)[product.columns], np.arange(images)[:, None, None]
    i, j, c = (index.reshape(-1)[product.taps] for index in np.indices((KH, KW, C)))
    up, across = _starts(frame, (OH, OW), window, product)
    for p, first_i, stop_i in _inside(up, KH, H):
        for q, first_j, stop_j in _inside(across, KW, W):
            met = np.flatnonzero((first_i <= i) & (i < stop_i) & (first_j <= j) & (j < stop_j))
            sources = ((image * H + up[p][:, None]) * W + across[q]) * C
            targets = ((image * OH + rows[p][:, None]) * OW + columns[q]) * F
            places = np.stack([sources.reshape(-1), targets.reshape(-1)], axis=1)
            yield places, ((i * W + j) * C + c)[met], met


def _starts(frame: Frame, output_size: Size, window: Window, product: Product) -> list[Array]:
    """For rows and columns where the patches of a product's pixels begin in the frame."""
    before, pixels = (frame.top, frame.left), (product.rows, product.columns)
    counts = [len(range(size)[chosen]) for size, chosen in zip(output_size, pixels, strict=True)]
    return [before[axis] + window.start[axis] + np.arange(counts[axis]) * window.stride[axis] for axis in (0, 1)]


def _inside(starts: Array, taps: int, size: int) -> Iterator[tuple[Array, int, int]]:
    """(indices of positions, first tap, last tap + 1) for positions of one axis with the same taps inside the image."""
    first, stop = np.clip(-starts, 0, taps), np.clip(size - starts, 0, taps)
    for pair in sorted(set(zip(first.tolist(), stop.tolist(), strict=True))):
        yield np.flatnonzero((first == pair[0]) & (stop == pair[1])), *pair


def _most_turns(frame: Frame, output_size: Size, parts: list[tuple[Window, list[Product]]]) -> int:
    """The turns of all products, at most."""
    count = 0
    for window, products in parts:
        for product in products:
            axes = zip(_starts(frame, output_size, window, product), window.kernel_size, frame[:2], strict=True)
            taps = [sum(stop - first for _, first, stop in _inside(*axis)) for axis in axes]
            count += math.prod(taps) * frame.pixel
    return count


def _panels(matrix: Array, panel: int) -> Array:
    """The matrix (K, N) as panels (K, panel) one after another, the last one filled up with -1; flat."""
    K, N = matrix.shape
    filled = np.full((K, -(-N // panel) * panel), -1)
    filled[:, :N] = matrix
    return filled.reshape(K, filled.shape[1] // panel, panel).transpose(1, 0, 2).reshape(-1)


class WeightSums(NamedTuple):
    """How the gradient of a convolution's weight is summed over a block of images."""

    frame: Frame  # in which the image is read
    steps: Array  # STEP, without matrices
    rows: Array  # (2, count): the distance of each tap from the first, and where its row of the gradient is
    turns: Array  # (count + 1, 2): where each pixel's first tap is in the image, and where the pixel is in gy
    images: int
    padded: int  # numbers of an image in its frame, in scratch


@lru_cache(maxsize=256)
def weight_sums(geometry: ConvGeometry, shape: tuple[int, ...], block: int) -> WeightSums:
    """The plan for a weight of this shape.

    Each kernel row and column is a product of its own, over the pixels for which it is inside the image. With few
    channels or many pixels all taps are one product, and the image is read in a frame.
    """
    (H, W), (OH, OW), (KH, KW, C, F), (SH, SW) = geometry.input_size, geometry.output_size, shape, geometry.stride
    top, left = (-start for start in conv_window(geometry).start)
    groups = [(range(i, i + 1), range(j, j + 1)) for i in range(KH) for j in range(KW)]
    frame, before = Frame(H, W, 0, 0, C), (top, left)
    images = max(1, block // max(H * W * C + OH * OW * F, 1))
    if C < FEW_CHANNELS or KH * KW * OH * OW * images > MOST_TURNS:
        groups, before = [(range(KH), range(KW))], (0, 0)
        frame = Frame((OH - 1) * SH + KH, (OW - 1) * SW + KW, top, left, C)
        images = max(1, block // max(frame.height * frame.width * C + OH * OW * F, 1))
    image, rows, turns, steps = np.arange(images)[:, None, None], _Table(2), _Table(2), []
    for i, j in groups:
        up, across = np.arange(OH) * SH - before[0] + i[0], np.arange(OW) * SW - before[1] + j[0]  # of the first tap
        p, q = np.flatnonzero((up >= 0) & (up < frame.height)), np.flatnonzero((across >= 0) & (across < frame.width))
        sources = ((image * frame.height + up[p][:, None]) * frame.width + across[q]) * C
        factors = ((image * OH + p[:, None]) * OW + q) * F
        taps = (np.arange(len(i))[:, None, None] * frame.width + np.arange(len(j))[:, None]) * C + np.arange(C)
        targets = ((np.array(i)[:, None, None] * KW + np.array(j)[:, None]) * C + np.arange(C)) * F
        places, met = ([part.reshape(-1) for part in pair] for pair in ((taps, targets), (sources, factors)))
        steps.append((rows.add(np.stack(places, axis=1)), turns.add(np.stack(met, axis=1)), (0, 0)))
    turns.add(np.zeros((1, 2), int))
    table = np.ascontiguousarray(rows.joined.T)
    return WeightSums(frame, np.array(steps, STEP), table, turns.joined, images, frame.numbers(H, W, C))


class Coverage(NamedTuple):
    """Which taps meet the image: tap (a, b) does at a pixel in a row of kind i and a column of kind j if rows[i, a] and
    columns[j, b]."""

    rows: Array  # (kinds, KH)
    columns: Array  # (kinds, KW)
    row_kinds: Array  # of the result
    column_kinds: Array


@lru_cache(maxsize=64)
def coverage_kinds(geometry: ConvGeometry, transposed: bool) -> Coverage:
    """Of the pixels of a convolution's result, or of its adjoint's."""
    axes = [np.unique(axis_coverage(geometry, axis, transposed), axis=0, return_inverse=True) for axis in (0, 1)]
    (rows, row_kinds), (columns, column_kinds) = (
        (np.ascontiguousarray(patterns), kinds.reshape(-1).astype(np.int64)) for patterns, kinds in axes
    )
    return Coverage(rows, columns, row_kinds, column_kinds)


class Chain(NamedTuple):
    """Layers one after another; the tables are those of Tables, and `layers` says which parts of them are whose."""

    layers: Array  # LAYER
    steps: Array
    pixels: Array
    turns: Array
    orders: list[Array]  # as in Direct, for each layer
    images: int  # the fewest that a layer computes at a time
    between: int  # numbers of an image between two layers, at most
    scratch: int  # numbers that a layer needs for the images that it computes at a time, at most


@lru_cache(maxsize=64)
def chained(kinds: tuple[Kind, ...], relus: tuple[bool, ...], block: int, panel: int) -> Chain:
    """The plan for layers of these kinds. relus: whether a ReLU follows each."""
    plans = [direct(*kind, block, panel) for kind in kinds]
    layers = np.concatenate([plan.layer for plan in plans])
    layers["relu"] = relus
    tables = [(plan.steps, plan.pixels.reshape(-1), plan.turns, plan.order) for plan in plans]
    outputs = [math.prod(plan.output) for plan in plans]
    sizes = np.array([[*map(len, table), output] for table, output in zip(tables, outputs, strict=True)])
    stops = np.cumsum(sizes, axis=0)
    for i, name in enumerate(("steps", "pixels", "turns", "matrices", "bias")):
        layers[name] = np.stack([stops - sizes, stops], axis=2)[:, i]
    steps, pixels, turns = (np.concatenate([table[i] for table in tables]) for i in range(3))
    images, scratch = min(plan.images for plan in plans), max(plan.images * plan.padded for plan in plans)
    return Chain(layers, steps, pixels, turns, [plan.order for plan in plans], images, max(outputs), scratch)
