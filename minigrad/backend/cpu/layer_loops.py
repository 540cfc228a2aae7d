"""Compiled layers: each takes the images of a thread through a layer, or a chain of them, block by block. They run
without the interpreter lock.

Numba lets a negative index count from an array's end. It would have to test each signed sum for that and then not
vectorise the loop, so an index that is the sum of two is unsigned (`np.uint64`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numba.core.caching import NullCache
from numba.core.dispatcher import Dispatcher

from . import function_loops, micro_kernels, row_loops, team
from .compiling import compiled
from .direct import LAYER, STEP, Coverage, Frame, Tables, WeightSums
from .micro_kernels import VECTOR, dots, fetch, tiles
from .row_loops import (
    activate,
    adam,
    add_moments,
    add_rows,
    gradient_sums,
    join_moments,
    norm_grad_rows,
    norm_gradient,
    norm_rows,
    normalise,
    relu_norm_gradient,
    row_sums,
    where_positive,
)
from .team import DESK, address_of, part_of, share

Array = Any
LOG = logging.getLogger("minigrad")  # Python prints its warnings on stderr by default
reordered = partial(compiled, fastmath=("contract", "reassoc"))  # sums may be taken in any order, so by vectors
PADDED, GRADIENT, SPARE = 0, 1, 2  # the arrays of scratch


@compiled
def pair(numbers: Array) -> tuple[int, int]:
    """The two numbers of an array."""
    return numbers[0], numbers[1]


@compiled
def fill_part(thread: int, first: int, stop: int, weight: Array, order: Array, matrices: Array) -> None:
    """matrices = the numbers of the flat weight in this order, and zeros for -1, for some vectors of the matrices. The
    numbers of a vector are evenly spaced in the weight; if they are neighbours there, it is copied as a whole."""
    zero, W = weight.dtype.type(0), np.uint64(VECTOR // weight.itemsize)
    for i in range(np.uint64(first) * W, np.uint64(stop) * W, W):
        begin = np.uint64(order[i])
        if order[i + W - np.uint64(1)] == order[i] + W - 1:
            for j in range(W):
                matrices[i + j] = weight[begin + j]
        else:
            for j in range(i, i + W):
                at = order[j]
                matrices[j] = weight[np.uint64(at)] if at >= 0 else zero


@compiled
def fill(desks: Array, threads: int, vectors: int, *arguments: Any) -> None:
    """fill_part on all threads."""
    share(desks, threads, vectors, part_of(fill_part, arguments), address_of(arguments))


@reordered
def fold(
    norm: Array, weight: Array, bias: Array, coverage: Coverage, transposed: bool, folded: Array, bias_image: Array
) -> None:
    """folded and bias_image (OH, OW, channels) become what `NumpyLayers.fold` in numpy_layers.py returns; it is
    explained there."""
    KH, KW, C, F = weight.shape
    rows, columns, row_kinds, column_kinds = coverage
    scale, shift = norm[1], norm[2] - norm[0] * norm[1]
    taps = np.zeros((KH, KW, len(bias)), weight.dtype)
    for a in range(KH):
        for b in range(KW):
            for c in range(C):
                for f in range(F):
                    folded[a, b, c, f] = weight[a, b, c, f] * scale[f if transposed else c]
                if transposed:
                    tap = weight.dtype.type(0)
                    for f in range(F):
                        tap += weight[a, b, c, f] * shift[f]
                    taps[a, b, c] = tap
                else:
                    for f in range(F):
                        taps[a, b, f] += weight[a, b, c, f] * shift[c]
    met = np.empty((KW, len(bias)), weight.dtype)  # by the kernel columns in a row
    sums = np.empty((len(rows), len(columns), len(bias)), weight.dtype)
    for i in range(len(rows)):
        for b in range(KW):
            for k in range(len(bias)):
                met[b, k] = 0
            for a in range(KH):
                if rows[i, a]:
                    for k in range(len(bias)):
                        met[b, k] += taps[a, b, k]
        for j in range(len(columns)):
            for k in range(len(bias)):
                sums[i, j, k] = bias[k]
            for b in range(KW):
                if columns[j, b]:
                    for k in range(len(bias)):
                        sums[i, j, k] += met[b, k]
    for h in range(len(row_kinds)):
        for w in range(len(column_kinds)):
            pixel, found = bias_image[h, w], sums[row_kinds[h], column_kinds[w]]
            for k in range(len(bias)):
                pixel[k] = found[k]


@reordered
def unfold(
    norm: Array, weight: Array, gw: Array, total: Array, coverage: Coverage, transposed: bool, sums: Array,
    gweight: Array, gbias: Array
) -> None:  # fmt: skip
    """sums (in float64), gweight and gbias become what `NumpyLayers.unfold` in numpy_layers.py returns, from the sums
    gw and total of all shards; it is explained there."""
    KH, KW, C, F = gw.shape
    rows, columns, column_kinds, channels = coverage.rows, coverage.columns, coverage.column_kinds, total.shape[2]
    pixels = np.zeros((len(rows), len(columns), channels), gweight.dtype)  # the g of each kind of pixel
    taps = np.zeros((KH, KW, channels), gweight.dtype)  # the g that each tap meets
    met = np.empty(channels, gweight.dtype)  # the g that a kernel column meets in the rows of a kind
    for k in range(len(gbias)):
        gbias[k] = 0
    for i in range(len(rows)):
        for w in range(len(column_kinds)):
            for k in range(channels):
                pixels[i, column_kinds[w], k] += total[i, w, k]
        for j in range(len(columns)):
            for k in range(len(gbias)):
                gbias[k] += pixels[i, j, k]
        for b in range(KW):
            for k in range(channels):
                met[k] = 0
            for j in range(len(columns)):
                if columns[j, b]:
                    for k in range(channels):
                        met[k] += pixels[i, j, k]
            for a in range(KH):
                if rows[i, a]:
                    for k in range(channels):
                        taps[a, b, k] += met[k]
    if not len(norm):
        result, source = gweight.reshape(-1), gw.reshape(-1)
        for i in range(len(source)):
            result[i] = source[i]
        return
    for a in range(KH):
        for b in range(KW):
            tap = taps[a, b]
            for c in range(C):
                if transposed:
                    for f in range(F):
                        g = gw[a, b, c, f] - tap[c] * norm[0, f]
                        sums[0, f] += weight[a, b, c, f] * tap[c]
                        sums[1, f] += weight[a, b, c, f] * g
                        gweight[a, b, c, f] = g * norm[1, f] + tap[c] * norm[2, f]
                else:
                    first, second = 0.0, 0.0
                    for f in range(F):
                        g = gw[a, b, c, f] - tap[f] * norm[0, c]
                        first += weight[a, b, c, f] * tap[f]
                        second += weight[a, b, c, f] * g
                        gweight[a, b, c, f] = g * norm[1, c] + tap[f] * norm[2, c]
                    sums[0, c] += first
                    sums[1, c] += second


@compiled
def padded(x: Array, frame: Frame, scratch: Array) -> Array:
    """The images of a block x (n, H, W, C), each in a frame, one after another; in scratch if the frame is no image of
    this size."""
    n, H, W, C = x.shape
    PH, PW, top, left, pixel = frame
    pixels, zero = x.reshape(-1), x.dtype.type(0)
    if top == left == 0 and PH == H and PW == W and pixel == C:
        return pixels
    inside, ahead = max(0, min(W, PW - left)), np.uint64(min(left, PW) * pixel)
    # as few runs of numbers as possible: a row of pixels, or each pixel where zeros follow it
    runs, run = (1, np.uint64(inside * C)) if pixel == C else (inside, np.uint64(C))
    for i in range(n):
        for h in range(PH):
            to, end = np.uint64((i * PH + h) * PW * pixel), np.uint64((i * PH + h + 1) * PW * pixel)
            if top <= h < top + H:
                source = np.uint64((i * H + h - top) * W * C)
                for k in range(ahead):
                    scratch[to + k] = zero
                to += ahead
                for _ in range(runs):
                    for k in range(run):
                        scratch[to + k] = pixels[source + k]
                    to, source = to + run, source + run
                    for k in range(np.uint64(pixel - C)):
                        scratch[to + k] = zero
                    to += np.uint64(pixel - C)
            for k in range(end - to):
                scratch[to + k] = zero
    return scratch


@compiled
def layer_of(x: Array, layer: Any, tables: Tables, bias: Array, out: Array, scratch: Array) -> None:
    """out = the layer of a block x, + bias (H * W * F,), and its ReLU if the layer has one. An empty bias leaves out
    both."""
    height, width, top, left, pixel = layer.frame[0], layer.frame[1], layer.frame[2], layer.frame[3], layer.frame[4]
    source = padded(x, Frame(height, width, top, left, pixel), scratch).ctypes.data
    if layer.holes:
        out[:] = 0
    results, size, panel, one = out.reshape(-1), out.itemsize, 2 * VECTOR // out.itemsize, out.dtype.type(1)
    for step in tables.steps:
        stop = step.rows[0] + (step.rows[1] - step.rows[0]) // layer.images * len(x)
        x_places, places = tables.pixels[0, step.rows[0] : stop], tables.pixels[1, step.rows[0] : stop]
        turns, (start, K) = tables.turns[step.turns[0] : step.turns[1]], pair(step.matrix)
        matrix = tables.matrices.ctypes.data + start * size
        if layer.thin:
            for c in range(layer.channels):
                y = results.ctypes.data + c * size
                dots(source, x_places, turns, matrix + c * K * size, y, places, one)
            continue
        for left in range(0, layer.channels, panel):
            weights = matrix + left * K * size  # the panel that begins at column `left`
            tiles(source, x_places, turns, weights, results, places, left, min(panel, layer.channels - left), False)
    if len(bias):
        for i in range(len(x)):
            activate(out[i].reshape(-1), bias, layer.relu != 0)


class Sums(NamedTuple):
    """Of the results y of each shard: sums (shards, 2, F) of y - shift and of its square, where shifts (shards, F) are
    the means of the first images, and counts (shards,) of pixels."""

    shifts: Array
    sums: Array
    counts: Array


class Gradients(NamedTuple):
    """gx, which is wanted if it is not empty; for each shard gweights (shards, KH * KW * C * F); and totals (shards,
    kinds of rows, OW * F), the sums of g over the rows of each kind and over images."""

    gx: Array
    gweights: Array
    totals: Array


class Blocks(NamedTuple):
    """Images in each shard and in a block; and the neighbouring shards whose sums are added in the row of the first."""

    shard: int
    block: int
    joined: int


@compiled
def even(count: int, most: int) -> int:
    """The size of as few blocks as possible, of at most `most` each and equal but for the last one."""
    blocks = (count + most - 1) // most
    return (count + blocks - 1) // blocks


@compiled
def layer_part(
    thread: int, first_shard: int, stop_shard: int, x: Array, size: int, layers: Array, tables: Tables, bias: Array,
    y: Array, moments: Sums, scratch: Array
) -> None:  # fmt: skip
    """y = the layer of x in some shards of `size` images, + bias. If it has a ReLU, moments become those of y."""
    F, layer = y.shape[3], layers[0]
    shifts, sums, counts = moments
    centre, area = np.empty(F, x.dtype), y.shape[1] * y.shape[2]
    for shard in range(first_shard, stop_shard):
        first, stop = shard * size, min((shard + 1) * size, len(x))
        each = even(stop - first, layer.images)
        for start in range(first, stop, each):
            source, out = x[start : min(start + each, stop)], y[start : min(start + each, stop)]
            fetch(source)
            layer_of(source, layer, tables, bias, out, scratch[thread])
            if layer.relu:
                rows = out.reshape(out.size // F, F)
                if start == first:
                    row_sums(rows[:area], shifts[shard])
                    for k in range(F):
                        centre[k] = shifts[shard, k] / area
                        shifts[shard, k] = centre[k]
                add_moments(rows, centre, sums[shard])
                counts[shard] += len(rows)


@compiled
def conv_layer(
    desks: Array, threads: int, shards: int, weight: Array, order: Array, matrices: Array, *arguments: Any
) -> None:
    """fill_part, and then layer_part, on all threads."""
    filling, vectors = (weight, order, matrices), len(order) * weight.itemsize // VECTOR
    share(desks, threads, vectors, part_of(fill_part, filling), address_of(filling))
    share(desks, threads, shards, part_of(layer_part, arguments), address_of(arguments))


@compiled
def chain_part(
    thread: int, first_shard: int, stop_shard: int, x: Array, layers: Array, tables: Tables, biases: Array, norm: Array,
    y: Array, blocks: Blocks, between: tuple[Array, Array], scratch: Array
) -> None:  # fmt: skip
    """y = what the layers compute one after another from the images x of some shards, block by block; normalised with
    the rows of norm if there are any. The results between them are in `between` by turns."""
    end = min(stop_shard * blocks.shard, len(x))
    first = first_shard * blocks.shard
    each = even(end - first, blocks.block)
    for start in range(first, end, each):
        source, result = x[start : min(start + each, end)], y[start : min(start + each, end)]
        n = len(source)
        for i in range(len(layers)):
            layer = layers[i]
            (H, W), F, images = pair(layer.output_size), layer.channels, layer.images
            mine = Tables(
                tables.steps[layer.steps[0] : layer.steps[1]],
                tables.pixels[layer.pixels[0] : layer.pixels[1]].reshape(2, -1),
                tables.turns[layer.turns[0] : layer.turns[1]],
                tables.matrices[layer.matrices[0] : layer.matrices[1]],
            )
            bias = biases[layer.bias[0] : layer.bias[1]]
            out = result if i == len(layers) - 1 else between[i % 2][thread, : n * H * W * F].reshape(n, H, W, F)
            some = even(n, images)
            for at in range(0, n, some):
                layer_of(source[at : at + some], layer, mine, bias, out[at : at + some], scratch[thread])
            source = out
        if len(norm):
            rows = result.reshape(result.size // len(norm[0]), len(norm[0]))
            normalise(rows, norm, rows)


@compiled
def chain(desks: Array, threads: int, shards: int, *arguments: Any) -> None:
    """chain_part on all threads."""
    share(desks, threads, shards, part_of(chain_part, arguments), address_of(arguments))


@compiled
def join(rows: Array, last: int, joined: int) -> None:
    """Add the sums that are complete when row `last` is, as a tree: ((0 + 1) + (2 + 3)) + ..., up to `joined` rows."""
    step = 1
    while step < joined and last % (2 * step) == 2 * step - 1:
        to, source = rows[last + 1 - 2 * step], rows[last + 1 - step]
        for k in range(len(to)):
            to[k] += source[k]
        step *= 2


@compiled
def layer_grad_part(
    thread: int, first_shard: int, stop_shard: int, gy: Array, grad_rows: Array, y: Array, x: Array, row_kinds: Array,
    plan: WeightSums, transposed: bool, layers: Array, tables: Tables, results: Gradients, blocks: Blocks,
    scratch: tuple[Array, Array, Array]
) -> None:  # fmt: skip
    """The gradients of layer_part for some shards. For each block of images:

    1. g is gy through the batch_norm and the ReLU.
    2. The shard's total += the sums of g over the rows of each kind.
    3. Its gweight += image^T @ factors, where image and factors are x and g, or g and x if transposed.
    4. gx from g.

    plan: of the gradient with respect to the weight of the convolution that reads `image`. layers, tables: of the layer
    that gives gx, which for a transposed layer is that convolution.
    """
    (gx, gweights, totals), size = results, blocks.shard
    C, F, panel, no_bias = x.shape[3], y.shape[3], 2 * VECTOR // x.itemsize, gweights[0, :0]
    channels = C if transposed else F
    images, grads, spare = scratch[PADDED][thread], scratch[GRADIENT][thread], scratch[SPARE][thread]
    for shard in range(first_shard, stop_shard):
        first, end = shard * size, min((shard + 1) * size, len(x))
        each, gweight, total = even(end - first, blocks.block), gweights[shard], totals[shard]
        for i in range(len(total)):
            for k in range(total.shape[1]):
                total[i, k] = 0
        for start in range(first, end, each):
            stop = min(start + each, end)
            source, result, g = x[start:stop], y[start:stop], gy[start:stop]
            if len(grad_rows):
                g, count = grads[: result.size].reshape(result.shape), result.size // F
                rows = gy[start:stop].reshape(count, F), result.reshape(count, F)
                relu_norm_gradient(*rows, grad_rows, g.reshape(count, F))
            add_rows(g.reshape(len(g), len(row_kinds), total.shape[1]), row_kinds, total)
            image, factors = (g, source) if transposed else (source, g)
            held, numbers = padded(image, plan.frame, images), factors.reshape(-1)
            if channels % (panel // 2):  # vectors reach beyond the last pixel
                for k in range(factors.size):
                    spare[k] = numbers[k]
                numbers = spare
            for step in plan.steps:
                taps, targets = plan.rows[0, step.rows[0] : step.rows[1]], plan.rows[1, step.rows[0] : step.rows[1]]
                last = step.turns[0] + (step.turns[1] - step.turns[0]) // plan.images * len(g)
                met = plan.turns[step.turns[0] : last]
                for left in range(0, channels, panel):
                    column, width = numbers.ctypes.data + left * x.itemsize, min(panel, channels - left)
                    tiles(held.ctypes.data, taps, met, column, gweight, targets, left, width, start > first)
            if len(gx):
                layer_of(g, layers[0], tables, no_bias, gx[start:stop], images)
        join(gweights, shard, blocks.joined)
        join(totals.reshape(len(totals), -1), shard, blocks.joined)


@compiled
def conv_layer_grad(
    desks: Array, threads: int, shards: int, weight: Array, order: Array, matrices: Array, *arguments: Any
) -> None:
    """fill_part, and then layer_grad_part, on all threads."""
    filling, vectors = (weight, order, matrices), len(order) * weight.itemsize // VECTOR
    share(desks, threads, vectors, part_of(fill_part, filling), address_of(filling))
    share(desks, threads, shards, part_of(layer_grad_part, arguments), address_of(arguments))


def prepare(dtype: Any) -> None:
    """Compile all loops for a dtype, or load them from Numba's cache on disk. Says so if it takes long."""
    told = False
    for loop, arguments in _examples(partial(np.ones, dtype=dtype)):
        try:
            loop(*arguments)
        except Exception as error:  # the loops are checked; so it is the cache
            place = loop.stats.cache_path
            LOG.warning("minigrad: Numba's cache fails (%s), so it is not used; delete the folder %s", error, place)
            for names in (globals(), *map(vars, (function_loops, micro_kernels, row_loops, team))):
                cached: list[Any] = [each for each in names.values() if isinstance(each, Dispatcher)]
                for each in cached:
                    each._cache = NullCache()
            loop(*arguments)
            told = True
        if loop.stats.cache_misses and not told:
            often = "once on this machine"
            if isinstance(loop._cache, NullCache):
                often = "in every process, because Numba has no cache folder; set NUMBA_CACHE_DIR to a private folder"
            LOG.warning("minigrad: compiling the numba kernels for %s (15 s), %s", dtype, often)
            told = True


def _examples(ones: Callable[..., Array]) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Each loop that is called from outside, with arguments of the types that it is called with: a layer with one image
    of one pixel with two channels."""
    vector, rows, image, sums = ones(2), ones((2, 2)), ones((1, 1, 1, 2)), np.ones((2, 2))
    norm, grad_rows, weights, spare = ones((3, 2)), ones((4, 2)), ones((1, 1, 1, 2, 2)), ones(256)
    yield normalise, (rows, norm, rows)
    yield norm_rows, (*(vector,) * 4, ones(1)[0], norm)
    yield norm_grad_rows, (rows, *(vector,) * 3, ones(1)[0], ones(1)[0], grad_rows, vector)
    yield norm_gradient, (rows, rows, grad_rows, rows)
    yield add_moments, (rows, vector, sums)
    yield join_moments, (np.ones(1), np.ones((1, 2)), np.ones((1, 2, 2)), vector, vector)
    yield gradient_sums, (rows, rows, vector, sums)
    yield row_sums, (rows, sums[0])
    yield where_positive, (vector, vector, vector)
    desk = np.zeros(DESK, np.int64)
    filling = vector, np.zeros(64, np.int64), ones(64)
    yield fill, (np.zeros((0, DESK), np.int64), 1, 1, *filling)
    coverage = Coverage(np.ones((1, 1), bool), np.ones((1, 1), bool), np.zeros(1, np.int64), np.zeros(1, np.int64))
    yield fold, (norm, weights[0], vector, coverage, False, ones((1, 1, 2, 2)), ones((1, 1, 2)))
    gradients = sums, ones((1, 1, 2, 2)), ones(2)
    yield unfold, (norm, weights[0], weights[0], image[0], coverage, False, *gradients)
    layers, steps = np.ones(1, LAYER), np.zeros(1, STEP)
    pixels, turns = np.zeros((2, 2), np.int64), np.zeros((3, 2), np.int64)  # with the turn that is read ahead
    layers["channels"], layers["frame"], layers["thin"] = 2, (1, 1, 0, 0, 2), 0
    for name, size in {"steps": 1, "pixels": 2, "turns": 2, "matrices": 256, "bias": 2}.items():
        layers[name] = 0, size
    steps["rows"], steps["turns"], steps["matrix"] = (0, 1), (0, 2), (0, 2)
    tables, plan = Tables(steps, pixels, turns, spare), WeightSums(Frame(1, 1, 0, 0, 2), steps, pixels, turns, 1, 2)
    flat = Tables(steps, pixels[0], turns, spare)
    alone, room = (np.zeros((0, DESK), np.int64), 1, 1), spare[None]
    yield (
        conv_layer,
        (*alone, *filling, image, 1, layers, tables, vector, image, Sums(sums[:1], sums[None], np.ones(1)), room),
    )
    results, blocks = Gradients(image, room, vector[None, None]), Blocks(1, 1, 1)
    yield chain, (*alone, image, layers, flat, vector, norm, image, blocks, (room, room), room)
    arrays = *filling, image, grad_rows, image, image
    yield (
        conv_layer_grad,
        (*alone, *arrays, coverage.row_kinds, plan, False, layers, tables, results, blocks, (room, room, room)),
    )
    yield team.hand_over, (desk, 0, 0, 0, 0, 0)
    yield team.serve, (desk,)
    yield adam, (vector, vector, vector, vector, vector, *ones(4))
    single = np.ones(2, np.float32)
    yield function_loops.sigmoid, (single, single)
    yield function_loops.bernoulli_nll, (single, single, single)
