"""Compiled layers: each takes the images of a thread through a layer, or a chain of them, block by block. They run
without the interpreter lock and call BLAS in between.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numba.core.caching import NullCache
from numba.core.dispatcher import Dispatcher

from . import pixel_loops, row_loops, tile_loops
from .compiling import compiled
from .pixel_loops import STEP, activate, dots, im2col, im2col_thin, pair, spread
from .plan import THIN
from .row_loops import (
    adam,
    add_images,
    add_moments,
    gradient_sums,
    norm_gradient,
    normalise,
    relu_norm_gradient,
    row_sums,
)
from .tile_loops import gather, scatter
from .winograd import AXIS

Array = Any
LOG = logging.getLogger("minigrad")  # Python prints its warnings on stderr by default
COLUMNS, PRODUCT, GRADIENT = 0, 1, 2  # the arrays of scratch
ROW_MAJOR, NO_TRANSPOSE, TRANSPOSE = 101, 111, 112  # of the C interface of BLAS

LAYER = np.dtype(
    [("channels", "i8"), ("relu", "i8"), ("images", "i8")]
    + [(name, "i8", 2) for name in ("output_size", "steps", "axes", "matrices", "bias")]
)
"""One layer of a chain: its size, how many images it takes at a time, and from where to where its parts are."""


@compiled
def matmul(gemm: Any, a: Array, b: Array, keep: float, out: Array) -> None:
    """out = keep * out + a @ b by BLAS; the rows or the columns of a and b, and the rows of out, must be contiguous."""
    (M, K), N, size = a.shape, b.shape[1], a.itemsize
    if min(M, N, K) == 0:
        for i in range(M):
            for j in range(N):
                out[i, j] = keep * out[i, j] if keep else 0
        return
    a_by_rows, b_by_rows = a.strides[1] == size, b.strides[1] == size
    lda = max(a.strides[0] // size, K) if a_by_rows else max(a.strides[1] // size, M)
    ldb = max(b.strides[0] // size, N) if b_by_rows else max(b.strides[1] // size, K)
    gemm(
        ROW_MAJOR,
        NO_TRANSPOSE if a_by_rows else TRANSPOSE,
        NO_TRANSPOSE if b_by_rows else TRANSPOSE,
        M,
        N,
        K,
        1.0,
        a.ctypes,
        lda,
        b.ctypes,
        ldb,
        keep,
        out.ctypes,
        out.strides[0] // size,
    )


@compiled
def fold(
    gemm: Any, norm: Array, weight: Array, bias: Array, coverage: Array, transposed: bool, folded: Array, image: Array
) -> None:
    """folded and image become what `NumpyLayers.fold` returns; image (pixels, channels of y)."""
    KH, KW, C, F = weight.shape
    scale, shift = norm[1], norm[2] - norm[0] * norm[1]
    taps = np.zeros((KH * KW + 1, len(bias)), weight.dtype)
    for k in range(len(bias)):
        taps[KH * KW, k] = bias[k]
    if transposed:
        matmul(gemm, weight.reshape(KH * KW * C, F), shift.reshape(F, 1), 0.0, taps[:-1].reshape(KH * KW * C, 1))
    for a in range(KH):
        for b in range(KW):
            for c in range(C):
                for f in range(F):
                    folded[a, b, c, f] = weight[a, b, c, f] * scale[f if transposed else c]
                if not transposed:
                    for f in range(F):
                        taps[a * KW + b, f] += weight[a, b, c, f] * shift[c]
    matmul(gemm, coverage, taps, 0.0, image)


@compiled
def unfold(
    gemm: Any,
    norm: Array,
    weight: Array,
    gweights: Array,
    totals: Array,
    coverage: Array,
    transposed: bool,
    sums: Array,
    gweight: Array,
    gbias: Array,
) -> None:
    """sums (in float64), gweight and gbias become what `NumpyLayers.unfold` returns."""
    threads, KH, KW, C, F = gweights.shape
    taps = np.zeros((KH * KW + 1, totals.shape[2]), gweight.dtype)
    for thread in range(threads):
        matmul(gemm, coverage.T, totals[thread], 1.0, taps)
    for k in range(len(gbias)):
        gbias[k] = taps[KH * KW, k]
    for a in range(KH):
        for b in range(KW):
            for c in range(C):
                for f in range(F):
                    g = gweights[0, a, b, c, f]
                    for thread in range(1, threads):
                        g += gweights[thread, a, b, c, f]
                    if len(norm):
                        x, y = (f, c) if transposed else (c, f)
                        tap, w = taps[a * KW + b, y], weight[a, b, c, f]
                        g -= tap * norm[0, x]
                        sums[0, x] += w * tap
                        sums[1, x] += w * g
                        g = g * norm[1, x] + tap * norm[2, x]
                    gweight[a, b, c, f] = g


@compiled
def patches(x: Array, step: Any, scratch: Array) -> Array:
    """The columns (n * PH * PW, KH * KW * C) of a step, in scratch."""
    n, C = x.shape[0], x.shape[3]
    (PH, PW), (KH, KW) = pair(step.output_size), pair(step.kernel_size)
    rows, K = n * PH * PW, KH * KW * C
    columns = scratch[: rows * K]
    if C < THIN:
        im2col_thin(x, pair(step.start), pair(step.stride), columns.reshape(KH, KW, C, n, PH, PW))
        return columns.reshape(K, rows).T
    im2col(x, pair(step.start), pair(step.stride), columns.reshape(n, PH, PW, KH, KW, C))
    return columns.reshape(rows, K)


@compiled
def products(
    gemm: Any,
    planes: Array,
    axes: Array,
    matrices: Array,
    result_axes: Array,
    tiles: int,
    size: tuple[int, int],
    results: Array,
) -> None:
    """results = planes @ matrices, group by group of the planes; size: channels of the images behind both."""
    a = b = c = 0  # where the group begins
    for g in range(axes[0].groups):
        for h in range(axes[1].groups):
            K, N = group_size(axes, g, h) * size[0], group_size(result_axes, g, h) * size[1]
            matrix, result = matrices[b : b + K * N].reshape(K, N), results[c : c + tiles * N].reshape(tiles, N)
            matmul(gemm, planes[a : a + tiles * K].reshape(tiles, K), matrix, 0.0, result)
            a, b, c = a + tiles * K, b + K * N, c + tiles * N


@compiled
def group_size(axes: Array, g: int, h: int) -> int:
    """Planes of the group g of rows and h of columns."""
    return (axes[0].begin[g + 1] - axes[0].begin[g]) * (axes[1].begin[h + 1] - axes[1].begin[h])


@compiled
def add_weight_gradients(
    gemm: Any, planes: Array, axes: Array, gplanes: Array, tiles: int, size: tuple[int, int], total: Array
) -> None:
    """total (products * C * F,) += planes^T @ gplanes, group by group of the planes; size: (C, F)."""
    a = b = c = 0
    for g in range(axes[0].groups):
        for h in range(axes[1].groups):
            K, F = group_size(axes, g, h) * size[0], size[1]
            columns, rows = planes[a : a + tiles * K].reshape(tiles, K), gplanes[b : b + tiles * F].reshape(tiles, F)
            matmul(gemm, columns.T, rows, 1.0, total[c : c + K * F].reshape(K, F))
            a, b, c = a + tiles * K, b + tiles * F, c + K * F


@compiled
def convolve(
    gemm: Any,
    x: Array,
    steps: Array,
    axes: Array,
    matrices: Array,
    bias: Array,
    relu: bool,
    out: Array,
    scratch: tuple[Array, ...],
) -> None:
    """out = what the steps, or else the axes (of the source and the result), compute from the block x; + bias (H, W, F)
    unless that is empty, and its ReLU if relu."""
    n, C = x.shape[0], x.shape[3]
    _, H, W, F = out.shape
    if len(axes):
        tiles = n * axes[0].tiles * axes[1].tiles
        gather(x, axes[0], axes[1], scratch[COLUMNS])
        products(gemm, scratch[COLUMNS], axes[:2], matrices, axes[2:], tiles, (C, F), scratch[PRODUCT])
        scatter(scratch[PRODUCT], axes[2], axes[3], out)
    for i in range(len(steps)):  # none where there are axes
        step = steps[i]
        PH, PW = pair(step.output_size)
        rows = n * PH * PW
        matrix = matrices[step.matrix[0] : step.matrix[1]]
        if F < THIN:
            dots(x, step, matrix, out)
            continue
        if i == 0 or step.window != steps[i - 1].window:
            columns = patches(x, step, scratch[COLUMNS])
        whole = PH == H and PW == W
        product = out.reshape(rows, F) if whole else scratch[PRODUCT][: rows * F].reshape(rows, F)
        taps = columns[:, step.taps[0] : step.taps[1]]
        matmul(gemm, taps, matrix.reshape(taps.shape[1], F), 0.0, product)
        if not whole:
            spread(product.reshape(n, PH, PW, F), pair(step.first), pair(step.every), out)
    if len(bias):
        for i in range(n):
            activate(out[i].reshape(-1), bias.reshape(-1), relu)


@compiled
def chain(
    gemm: Any,
    x: Array,
    layers: Array,
    steps: Array,
    axes: Array,
    matrices: Array,
    biases: Array,
    y: Array,
    between: tuple[Array, Array],
    scratch: tuple[Array, ...],
) -> None:
    """y = what the layers compute one after another from the block x; their results lie in `between` by turns."""
    n, source = len(x), x
    for i in range(len(layers)):
        layer = layers[i]
        (H, W), F, images = pair(layer.output_size), layer.channels, layer.images
        parts, sums = steps[layer.steps[0] : layer.steps[1]], axes[layer.axes[0] : layer.axes[1]]
        weights = matrices[layer.matrices[0] : layer.matrices[1]]
        bias = biases[layer.bias[0] : layer.bias[1]].reshape(H, W, F)
        out = y if i == len(layers) - 1 else between[i % 2][: n * H * W * F].reshape(n, H, W, F)
        for start in range(0, n, images):
            block, result = source[start : start + images], out[start : start + images]
            convolve(gemm, block, parts, sums, weights, bias, layer.relu != 0, result, scratch)
        source = out


@compiled
def conv_layer(
    gemm: Any,
    x: Array,
    steps: Array,
    axes: Array,
    matrices: Array,
    bias: Array,
    relu: bool,
    y: Array,
    shift: Array,
    sums: Array,
    block: int,
    scratch: tuple[Array, ...],
) -> None:
    """y = what the steps or the axes compute from a shard x, + bias; if relu its ReLU, and sums (2, F) += the sum of
    y - shift, and of its square, where shift (F,) becomes the mean of the first image."""
    F = y.shape[3]
    centre = np.empty(F, x.dtype)
    for start in range(0, len(x), block):
        out = y[start : start + block]
        convolve(gemm, x[start : start + block], steps, axes, matrices, bias, relu, out, scratch)
        if relu:
            rows = out.reshape(out.size // F, F)
            if start == 0:
                pixels = y.shape[1] * y.shape[2]
                row_sums(rows[:pixels], shift)
                for k in range(F):
                    centre[k] = shift[k] / pixels
                    shift[k] = centre[k]
            add_moments(rows, centre, sums)


@compiled
def conv_layer_grad(
    gemm: Any,
    gy: Array,
    grad_rows: Array,
    y: Array,
    x: Array,
    window: Array,
    axes: Array,
    taps: Array,
    weight: Array,
    transposed: bool,
    steps: Array,
    matrices: Array,
    gx: Array,
    gweight: Array,
    total: Array,
    block: int,
    scratch: tuple[Array, ...],
) -> None:
    """The gradients of conv_layer for a shard; gx is wanted if it is not empty. gweight and total are added to.

    window: the convolution's only record of STEP. axes, taps: of its Winograd algorithm, or empty. weight, gweight:
    (KH * KW * C, F). steps, matrices: for gx. total (OH * OW * F,): the sum over images behind the ReLU.
    """
    C, F = x.shape[3], y.shape[3]
    size = (F, C) if transposed else (C, F)  # of the weight
    gproducts = np.zeros((len(taps), size[0] * size[1]), x.dtype)
    for start in range(0, len(x), block):
        source, result, g = x[start : start + block], y[start : start + block], gy[start : start + block]
        x_rows, g_rows = source.reshape(source.size // C, C), g.reshape(g.size // F, F)
        if len(grad_rows):
            g = scratch[GRADIENT][: result.size].reshape(result.shape)
            gy_rows, g_rows = g_rows, g.reshape(g.size // F, F)
            relu_norm_gradient(gy_rows, result.reshape(result.size // F, F), grad_rows, g_rows)
        add_images(g.reshape(len(g), total.size), total)
        out = gx[start : start + block]
        if len(axes):
            tiles, x_planes, y_planes = len(g) * axes[0].tiles * axes[1].tiles, scratch[COLUMNS], scratch[PRODUCT]
            gather(g if transposed else source, axes[0], axes[1], x_planes)
            gather(source if transposed else g, axes[2], axes[3], y_planes)
            add_weight_gradients(gemm, x_planes, axes, y_planes, tiles, size, gproducts.reshape(-1))
            if len(gx) and transposed:
                products(gemm, x_planes, axes[:2], matrices, axes[2:], tiles, size, y_planes)
                scatter(y_planes, axes[2], axes[3], out)
            elif len(gx):
                products(gemm, y_planes, axes[2:], matrices, axes[:2], tiles, (F, C), x_planes)
                scatter(x_planes, axes[0], axes[1], out)
        elif transposed:
            columns = patches(g, window[0], scratch[COLUMNS])
            matmul(gemm, columns.T, x_rows, 1.0, gweight)
            if len(gx):
                matmul(gemm, columns, weight, 0.0, out.reshape(out.size // C, C))
        else:
            columns = patches(source, window[0], scratch[COLUMNS])
            matmul(gemm, columns.T, g_rows, 1.0, gweight)
            if len(gx):
                # An empty bias also turns off the ReLU. `transposed` is False here; a literal False has another type.
                convolve(gemm, g, steps, axes, matrices, gx[:0].reshape(0, 0, 0), transposed, out, scratch)
    if len(taps):
        matmul(gemm, taps.T, gproducts, 1.0, gweight.reshape(9, size[0] * size[1]))


def prepare(gemm: Any, dtype: Any) -> None:
    """Compile all loops for a dtype, or load them from Numba's cache on disk. Says so if it takes long.

    gemm: its matrix product in BLAS."""
    told = False
    for loop, arguments in _examples(gemm, partial(np.ones, dtype=dtype)):
        try:
            loop(*arguments)
        except Exception as error:  # the loops are checked; so it is the cache
            place = loop.stats.cache_path
            LOG.warning("minigrad: Numba's cache fails (%s), so it is not used; delete the folder %s", error, place)
            for names in (globals(), *map(vars, (pixel_loops, row_loops, tile_loops))):
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


def _examples(gemm: Any, ones: Callable[..., Array]) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Each loop that is called from outside, with arguments of the types that it is called with: a layer with one image
    of one pixel with two channels, and one tap."""
    vector, rows, image, sums = ones(2), ones((2, 2)), ones((1, 1, 1, 2)), np.ones((2, 2))
    norm, grad_rows, matrices, weights = ones((3, 2)), ones((4, 2)), ones(4), ones((1, 1, 1, 2, 2))
    steps = np.zeros(1, STEP)
    for name in ("output_size", "kernel_size", "stride", "every"):
        steps[name] = 1
    steps["taps"], steps["matrix"] = (0, 2), (0, 4)
    block, scratch = 1, 3 * (ones(8),)
    yield normalise, (rows, norm, rows)
    yield norm_gradient, (rows, rows, grad_rows, rows)
    yield add_moments, (rows, vector, sums)
    yield gradient_sums, (rows, rows, vector, sums)
    yield fold, (gemm, norm, weights[0], vector, ones((1, 2)), False, ones((1, 1, 2, 2)), ones((1, 2)))
    gradients = sums, ones((1, 1, 2, 2)), ones(2)
    yield unfold, (gemm, norm, weights[0], weights, image[0], ones((1, 2)), False, *gradients)
    layers = np.ones(1, LAYER)
    layers["channels"], layers["steps"], layers["axes"] = 2, (0, 1), (0, 0)
    layers["matrices"], layers["bias"] = (0, 4), (0, 2)
    axes = np.zeros(0, AXIS)
    yield chain, (gemm, image, layers, steps, axes, matrices, vector, image, scratch[:2], scratch)
    yield conv_layer, (gemm, image, steps, axes, matrices, image[0], True, image, sums[0], sums, block, scratch)
    arrays = gemm, image, grad_rows, image, image, steps, axes, rows[:0], rows, False, steps, matrices
    yield conv_layer_grad, (*arrays, image, rows, vector, block, scratch)
    yield adam, (vector, vector, vector, vector, vector, *ones(4))
