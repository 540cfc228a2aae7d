"""The loops that Numba compiles for the `numba` kernels, in plain Python.

They run on the thread that calls them, without the interpreter lock: im2col, what follows a product, and sums on one
block of images; `conv_layer`, `conv_layer_grad` and `chain` take a thread's images through them block by block and
call BLAS in between. Sums over rows of channels are taken in the arrays' own precision over 512 rows at a time and go
on in float64.

`contract` lets a product and a sum become one rounding (a fused multiply-add); NaN and infinity keep their meaning.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numba
import numpy as np

from .plan import THIN

Array = Any
CHUNK_ROWS = 512
COLUMNS, PRODUCT, GRADIENT = 0, 1, 2  # the arrays of scratch
ROW_MAJOR, NO_TRANSPOSE, TRANSPOSE = 101, 111, 112  # of the C interface of BLAS
SIZES = ("output_size", "kernel_size", "stride", "start", "taps", "first", "every", "matrix")
STEP = np.dtype([("window", "i8"), ("planes", "i8"), *((name, "i8", 2) for name in SIZES)])
"""One product of a plan (see plan.py): matrices[matrix[0]:matrix[1]] is its matrix and window the number of its window;
it gives the pixels from `first` on, one in `every`. planes: it is the product of a ThinAdjoint."""

LAYER = np.dtype(
    [("channels", "i8"), ("active", "i8"), ("images", "i8")]
    + [(name, "i8", 2) for name in ("output_size", "steps", "matrices", "bias")]
)
"""One layer of a chain: its size, how many images it takes at a time, and from where to where its parts are."""


def compiled(loop: Callable[..., Any]) -> Any:
    """The loop compiled for the arrays of its first call, without the interpreter lock and kept on disk."""
    options: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
    try:
        return numba.njit(loop, cache=True, **options)
    except RuntimeError:  # there is no folder that the cache could be written to
        return numba.njit(loop, **options)


def prepare(gemm: Any, dtype: Any) -> None:
    """Compile all loops for a dtype, or load them from Numba's cache on disk. Says so if it takes long.

    gemm: its matrix product in BLAS."""
    told = False
    for loop, arguments in _examples(gemm, partial(np.ones, dtype=dtype)):
        loop(*arguments)
        if loop.stats.cache_misses and not told:
            print(
                f"minigrad: compiling the numba kernels for {dtype}, once on this machine (some 15 s)", file=sys.stderr
            )
            told = True


def _examples(gemm: Any, ones: Callable[..., Array]) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Each loop that is called from outside, with arguments of the types that it is called with: a layer with one image
    of one pixel with two channels, and one tap."""
    vector, rows, image, sums = ones(2), ones((2, 2)), ones((1, 1, 1, 2)), np.ones((2, 2))
    norm, through, matrices, weights = ones((3, 2)), ones((4, 2)), ones(4), ones((1, 1, 1, 2, 2))
    steps = np.zeros(1, STEP)
    for name in ("output_size", "kernel_size", "stride", "every"):
        steps[name] = 1
    steps["taps"], steps["matrix"] = (0, 2), (0, 4)
    block, scratch = 1, 3 * (ones(8),)
    yield normalise, (rows, norm, rows)
    yield norm_gradient, (rows, rows, through, rows)
    yield add_moments, (rows, vector, sums)
    yield gradient_sums, (rows, rows, vector, sums)
    yield fold, (gemm, norm, weights[0], vector, ones((1, 2)), False, ones((1, 1, 2, 2)), ones((1, 2)))
    gradients = sums, ones((1, 1, 2, 2)), ones(2)
    yield unfold, (gemm, norm, weights[0], weights, image[0], ones((1, 2)), False, *gradients)
    layers = np.ones(1, LAYER)
    layers["channels"], layers["steps"], layers["matrices"], layers["bias"] = 2, (0, 1), (0, 4), (0, 2)
    yield chain, (gemm, image, layers, steps, matrices, vector, image, scratch[:2], scratch)
    yield conv_layer, (gemm, image, steps, matrices, image[0], True, image, sums[0], sums, block, scratch)
    arrays = gemm, image, through, image, image, steps, rows, False, steps, matrices
    yield conv_layer_grad, (*arrays, image, rows, vector, block, scratch)
    yield adam, (vector, vector, vector, vector, vector, *ones(4))


@compiled
def pair(numbers: Array) -> tuple[int, int]:
    """The two numbers of an array."""
    return numbers[0], numbers[1]


@compiled
def im2col(x: Array, start: tuple[int, int], stride: tuple[int, int], columns: Array) -> None:
    """columns (n, PH, PW, KH, KW, C): the patches of x (n, H, W, C); zero outside of it."""
    n, H, W, C = x.shape
    _, PH, PW, KH, KW, _ = columns.shape
    zero = x.dtype.type(0)
    for i in range(n):
        for p in range(PH):
            for q in range(PW):
                for a in range(KH):
                    h = p * stride[0] + a + start[0]
                    for b in range(KW):
                        w = q * stride[1] + b + start[1]
                        if h < 0 or h >= H or w < 0 or w >= W:
                            for k in range(C):
                                columns[i, p, q, a, b, k] = zero
                        else:
                            for k in range(C):
                                columns[i, p, q, a, b, k] = x[i, h, w, k]


@compiled
def im2col_thin(x: Array, start: tuple[int, int], stride: tuple[int, int], columns: Array) -> None:
    """columns (KH, KW, C, n, PH, PW): im2col transposed, which is written in longer runs where C is small."""
    n, H, W, C = x.shape
    KH, KW, _, _, PH, PW = columns.shape
    zero = x.dtype.type(0)
    for a in range(KH):
        for b in range(KW):
            left = b + start[1]
            first = min(max(0, (stride[1] - 1 - left) // stride[1]), PW)  # the first patch whose pixel is inside
            last = max(min(PW, (W - 1 - left) // stride[1] + 1), first)
            for c in range(C):
                for i in range(n):
                    for p in range(PH):
                        h = p * stride[0] + a + start[0]
                        if h < 0 or h >= H:
                            for q in range(PW):
                                columns[a, b, c, i, p, q] = zero
                            continue
                        for q in range(first):
                            columns[a, b, c, i, p, q] = zero
                        for q in range(first, last):
                            columns[a, b, c, i, p, q] = x[i, h, q * stride[1] + left, c]
                        for q in range(last, PW):
                            columns[a, b, c, i, p, q] = zero


@compiled
def add_planes(planes: Array, start: tuple[int, int], stride: tuple[int, int], out: Array) -> None:
    """out (n, H, W, C) = planes (n, OH, OW, KH, KW, C) added, each onto its patch: the adjoint of im2col."""
    n, OH, OW, KH, KW, C = planes.shape
    _, H, W, _ = out.shape
    for i in range(n):
        out[i] = 0
        for p in range(OH):
            for a in range(KH):
                h = p * stride[0] + a + start[0]
                if h < 0 or h >= H:
                    continue
                for b in range(KW):
                    left = b + start[1]
                    first = min(max(0, (stride[1] - 1 - left) // stride[1]), OW)
                    last = max(min(OW, (W - 1 - left) // stride[1] + 1), first)
                    for c in range(C):
                        for q in range(first, last):
                            out[i, h, q * stride[1] + left, c] += planes[i, p, q, a, b, c]


@compiled
def finish(
    product: Array, first: tuple[int, int], step: tuple[int, int], bias: Array, active: bool, out: Array
) -> None:
    """out[:, first[0] :: step[0], first[1] :: step[1]] = product, as far as out reaches, + bias (H, W, C) unless that
    is empty, and its ReLU if active."""
    n, PH, PW, C = product.shape
    _, H, W, _ = out.shape
    zero = product.dtype.type(0)
    for i in range(n):
        for p in range(min(PH, (H - first[0] + step[0] - 1) // step[0])):
            for q in range(min(PW, (W - first[1] + step[1] - 1) // step[1])):
                h, w = first[0] + p * step[0], first[1] + q * step[1]
                if not len(bias):
                    for k in range(C):
                        out[i, h, w, k] = product[i, p, q, k]
                elif not active:
                    for k in range(C):
                        out[i, h, w, k] = product[i, p, q, k] + bias[h, w, k]
                else:
                    for k in range(C):
                        y = product[i, p, q, k] + bias[h, w, k]
                        out[i, h, w, k] = zero if y < 0 else y


@compiled
def add_moments(x: Array, shift: Array, sums: Array) -> None:
    """sums (2, C) += sum of x - shift, and of its square; x (rows, C)."""
    rows, C = x.shape
    first, second = np.zeros(C, x.dtype), np.zeros(C, x.dtype)
    for start in range(0, rows, CHUNK_ROWS):
        first[:] = 0
        second[:] = 0
        for i in range(start, min(start + CHUNK_ROWS, rows)):
            for k in range(C):
                d = x[i, k] - shift[k]
                first[k] += d
                second[k] += d * d
        for k in range(C):
            sums[0, k] += first[k]
            sums[1, k] += second[k]


@compiled
def gradient_sums(gy: Array, x: Array, mean: Array, sums: Array) -> None:
    """sums (2, C) += sum of gy, and of gy * (x - mean); gy and x (rows, C)."""
    rows, C = x.shape
    first, second = np.zeros(C, x.dtype), np.zeros(C, x.dtype)
    for start in range(0, rows, CHUNK_ROWS):
        first[:] = 0
        second[:] = 0
        for i in range(start, min(start + CHUNK_ROWS, rows)):
            for k in range(C):
                first[k] += gy[i, k]
                second[k] += gy[i, k] * (x[i, k] - mean[k])
        for k in range(C):
            sums[0, k] += first[k]
            sums[1, k] += second[k]


@compiled
def normalise(x: Array, norm: Array, y: Array) -> None:
    """y = (x - mean) * scale + beta; x and y (rows, C)."""
    rows, C = x.shape
    for i in range(rows):
        for k in range(C):
            y[i, k] = (x[i, k] - norm[0, k]) * norm[1, k] + norm[2, k]


@compiled
def norm_gradient(gy: Array, x: Array, through: Array, gx: Array) -> None:
    """gx = scale * (gy - offset - (x - mean) * slope) with the rows of through (4, C); gy, x and gx (rows, C)."""
    rows, C = x.shape
    mean, scale, offset, slope = through[0], through[1], through[2], through[3]
    for i in range(rows):
        for k in range(C):
            gx[i, k] = scale[k] * (gy[i, k] - offset[k] - (x[i, k] - mean[k]) * slope[k])


@compiled
def through_relu(gy: Array, y: Array, through: Array, g: Array) -> None:
    """g = norm_gradient where y > 0, else 0; gy, y and g (rows, C)."""
    rows, C = y.shape
    mean, scale, offset, slope = through[0], through[1], through[2], through[3]
    zero = y.dtype.type(0)
    for i in range(rows):
        for k in range(C):
            r = scale[k] * (gy[i, k] - offset[k] - (y[i, k] - mean[k]) * slope[k])
            g[i, k] = r if y[i, k] > 0 else zero


@compiled
def add_images(x: Array, total: Array) -> None:
    """total (numbers,) += the sum of the rows of x (n, numbers)."""
    for i in range(len(x)):
        for j in range(len(total)):
            total[j] += x[i, j]


@compiled
def row_sums(x: Array, sums: Array) -> None:
    """sums (C,) += the sum of the rows of x (rows, C)."""
    rows, C = x.shape
    total = np.zeros(C, x.dtype)
    for start in range(0, rows, CHUNK_ROWS):
        total[:] = 0
        for i in range(start, min(start + CHUNK_ROWS, rows)):
            for k in range(C):
                total[k] += x[i, k]
        for k in range(C):
            sums[k] += total[k]


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
    """folded and image become what `CpuBackend._folded` returns; image (pixels, channels of y)."""
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
    """sums (in float64), gweight and gbias become what `CpuBackend._unfolded` returns."""
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
def convolve(
    gemm: Any,
    x: Array,
    steps: Array,
    matrices: Array,
    bias: Array,
    active: bool,
    out: Array,
    scratch: tuple[Array, ...],
) -> None:
    """out = what the steps compute from the block x, with bias and active as `finish` has them."""
    n, C = x.shape[0], x.shape[3]
    _, H, W, F = out.shape
    for i in range(len(steps)):
        step = steps[i]
        PH, PW = pair(step.output_size)
        rows = n * PH * PW
        matrix = matrices[step.matrix[0] : step.matrix[1]]
        if step.planes:
            KH, KW = pair(step.kernel_size)
            planes = scratch[COLUMNS][: rows * KH * KW * F].reshape(rows, KH * KW * F)
            matmul(gemm, x.reshape(rows, C), matrix.reshape(KH * KW * F, C).T, 0.0, planes)
            add_planes(planes.reshape(n, PH, PW, KH, KW, F), pair(step.start), pair(step.stride), out)
            if len(bias):
                finish(out, pair(step.first), pair(step.every), bias, active, out)
            continue
        if i == 0 or step.window != steps[i - 1].window:
            columns = patches(x, step, scratch[COLUMNS])
        whole = PH == H and PW == W
        product = out.reshape(rows, F) if whole else scratch[PRODUCT][: rows * F].reshape(rows, F)
        taps = columns[:, step.taps[0] : step.taps[1]]
        matmul(gemm, taps, matrix.reshape(taps.shape[1], F), 0.0, product)
        if len(bias) or not whole:
            finish(product.reshape(n, PH, PW, F), pair(step.first), pair(step.every), bias, active, out)


@compiled
def chain(
    gemm: Any,
    x: Array,
    layers: Array,
    steps: Array,
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
        parts = steps[layer.steps[0] : layer.steps[1]]
        weights = matrices[layer.matrices[0] : layer.matrices[1]]
        bias = biases[layer.bias[0] : layer.bias[1]].reshape(H, W, F)
        out = y if i == len(layers) - 1 else between[i % 2][: n * H * W * F].reshape(n, H, W, F)
        for start in range(0, n, images):
            block, result = source[start : start + images], out[start : start + images]
            convolve(gemm, block, parts, weights, bias, layer.active != 0, result, scratch)
        source = out


@compiled
def conv_layer(
    gemm: Any,
    x: Array,
    steps: Array,
    matrices: Array,
    bias: Array,
    active: bool,
    y: Array,
    shift: Array,
    sums: Array,
    block: int,
    scratch: tuple[Array, ...],
) -> None:
    """y = what the steps compute from a shard x, + bias; if active its ReLU, and sums (2, F) += the sum of y - shift,
    and of its square, where shift (F,) becomes the mean of the first image."""
    F = y.shape[3]
    centre = np.empty(F, x.dtype)
    for start in range(0, len(x), block):
        out = y[start : start + block]
        convolve(gemm, x[start : start + block], steps, matrices, bias, active, out, scratch)
        if active:
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
    through: Array,
    y: Array,
    x: Array,
    window: Array,
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
    """The gradients of conv_layer for a shard; gx is wanted if it is not empty. window: the convolution's only step;
    steps, matrices: of its adjoint; weight, gweight: (KH * KW * C, F); total (OH * OW * F,): the sum over images behind
    the ReLU; gweight and total are added to."""
    C, F = x.shape[3], y.shape[3]
    for start in range(0, len(x), block):
        source, result, g = x[start : start + block], y[start : start + block], gy[start : start + block]
        x_rows, g_rows = source.reshape(source.size // C, C), g.reshape(g.size // F, F)
        if len(through):
            g = scratch[GRADIENT][: result.size].reshape(result.shape)
            gy_rows, g_rows = g_rows, g.reshape(g.size // F, F)
            through_relu(gy_rows, result.reshape(result.size // F, F), through, g_rows)
        add_images(g.reshape(len(g), total.size), total)
        if transposed:
            columns = patches(g, window[0], scratch[COLUMNS])
            matmul(gemm, columns.T, x_rows, 1.0, gweight)
            if len(gx):
                out = gx[start : start + block]
                matmul(gemm, columns, weight, 0.0, out.reshape(out.size // C, C))
        else:
            columns = patches(source, window[0], scratch[COLUMNS])
            matmul(gemm, columns.T, g_rows, 1.0, gweight)
            if len(gx):
                out = gx[start : start + block]
                # without bias no ReLU either: `transposed` is False here, a literal False would be another type
                convolve(gemm, g, steps, matrices, gx[:0].reshape(0, 0, 0), transposed, out, scratch)


@compiled
def adam(
    parameters: Array,
    mean: Array,
    variance: Array,
    gradients: Array,
    scalars: Array,
    beta_1: float,
    beta_2: float,
    epsilon: float,
    weight_decay: float,
) -> None:
    """The step of `Backend.adam_step_`."""
    one = parameters.dtype.type(1)
    for i in range(len(parameters)):
        g = gradients[i]
        mean[i] = beta_1 * mean[i] + (one - beta_1) * g
        variance[i] = beta_2 * variance[i] + (one - beta_2) * g * g
        update = mean[i] * scalars[1] / (np.sqrt(variance[i] * scalars[2]) + epsilon) + weight_decay * parameters[i]
        parameters[i] -= scalars[0] * update
