"""The loops that Numba compiles for the `numba` kernels, in plain Python: each reads and writes its arrays once.

They run on one block of images, on the thread that calls them, without the interpreter lock. Sums are taken in the
arrays' own precision over 512 rows of channels at a time and go on in float64.

`contract` lets a product and a sum become one rounding (a fused multiply-add); NaN and infinity keep their meaning.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

CHUNK_ROWS = 512
Array = Any


def compiled(loop: Callable[..., None]) -> Any:
    """The loop compiled for the arrays of its first call, without the interpreter lock and kept on disk."""
    options: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
    try:
        return numba.njit(loop, cache=True, **options)
    except RuntimeError:  # there is no folder that the cache could be written to
        return numba.njit(loop, **options)


def prepare() -> None:
    """Compile all loops for float32 and float64, or load them from Numba's cache on disk. Says so if it takes long."""
    told = False
    for dtype in (np.float32, np.float64):
        vector, rows, sums = np.ones(2, dtype), np.ones((2, 2), dtype), np.ones((2, 2))
        image, patches = np.ones((1, 2, 2, 2), dtype), np.ones((1, 1, 1, 2, 2, 2), dtype)
        start, stride = (0, 0), (1, 1)
        for loop, arguments in (
            (normalise, (rows, vector, vector, vector, rows)),
            (norm_gradient, (rows, rows, vector, vector, vector, vector, rows)),
            (through_relu, (rows, rows, vector, vector, vector, vector, rows, sums[0])),
            (add_moments, (rows, vector, sums)),
            (gradient_sums, (rows, rows, vector, sums)),
            (im2col, (image, True, vector, vector, vector, start, stride, patches)),
            (im2col_thin, (image, start, stride, patches.reshape(2, 2, 2, 1, 1, 1))),
            (add_planes, (patches, start, stride, image)),
            (activate, (image, start, stride, vector, vector, image, sums)),
            (infer, (image, start, stride, vector, vector, vector, vector, image)),
            (adam, (vector, vector, vector, vector, vector, *np.ones(4, dtype))),
        ):
            loop(*arguments)
            if loop.stats.cache_misses and not told:
                print("minigrad: compiling the numba kernels, once on this machine (some 10 s)", file=sys.stderr)
                told = True


@compiled
def im2col(
    x: Array,
    normalised: bool,
    mean: Array,
    scale: Array,
    beta: Array,
    start: tuple[int, int],
    stride: tuple[int, int],
    columns: Array,
) -> None:
    """columns (n, PH, PW, KH, KW, C): the patches of x (n, H, W, C), normalised if so; zero outside of it."""
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
                        elif normalised:
                            for k in range(C):
                                columns[i, p, q, a, b, k] = (x[i, h, w, k] - mean[k]) * scale[k] + beta[k]
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
def activate(
    product: Array, first: tuple[int, int], step: tuple[int, int], bias: Array, shift: Array, out: Array, sums: Array
) -> None:
    """out[:, first[0] :: step[0], first[1] :: step[1]] = relu(product + bias), as far as out reaches; and
    sums (2, C) += sum of it - shift, and of its square."""
    n, PH, PW, C = product.shape
    _, H, W, _ = out.shape
    zero = product.dtype.type(0)
    rows = min(PH, (H - first[0] + step[0] - 1) // step[0])
    columns = min(PW, (W - first[1] + step[1] - 1) // step[1])
    once, twice = np.zeros(C, product.dtype), np.zeros(C, product.dtype)
    counted = 0
    for i in range(n):
        for p in range(rows):
            for q in range(columns):
                for k in range(C):
                    y = product[i, p, q, k] + bias[k]
                    y = zero if y < 0 else y
                    out[i, first[0] + p * step[0], first[1] + q * step[1], k] = y
                    d = y - shift[k]
                    once[k] += d
                    twice[k] += d * d
            counted += columns
            if counted >= CHUNK_ROWS or (i == n - 1 and p == rows - 1):
                counted = 0
                for k in range(C):
                    sums[0, k] += once[k]
                    sums[1, k] += twice[k]
                once[:] = 0
                twice[:] = 0


@compiled
def infer(
    product: Array,
    first: tuple[int, int],
    step: tuple[int, int],
    bias: Array,
    mean: Array,
    scale: Array,
    beta: Array,
    out: Array,
) -> None:
    """out[:, first[0] :: step[0], first[1] :: step[1]] = (relu(product + bias) - mean) * scale + beta."""
    n, PH, PW, C = product.shape
    _, H, W, _ = out.shape
    zero = product.dtype.type(0)
    for i in range(n):
        for p in range(min(PH, (H - first[0] + step[0] - 1) // step[0])):
            for q in range(min(PW, (W - first[1] + step[1] - 1) // step[1])):
                for k in range(C):
                    y = product[i, p, q, k] + bias[k]
                    y = zero if y < 0 else y
                    out[i, first[0] + p * step[0], first[1] + q * step[1], k] = (y - mean[k]) * scale[k] + beta[k]


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
def normalise(x: Array, mean: Array, scale: Array, beta: Array, y: Array) -> None:
    """y = (x - mean) * scale + beta; x and y (rows, C)."""
    rows, C = x.shape
    for i in range(rows):
        for k in range(C):
            y[i, k] = (x[i, k] - mean[k]) * scale[k] + beta[k]


@compiled
def norm_gradient(gy: Array, x: Array, mean: Array, scale: Array, offset: Array, slope: Array, gx: Array) -> None:
    """gx = scale * (gy - offset - (x - mean) * slope); gy, x and gx (rows, C)."""
    rows, C = x.shape
    for i in range(rows):
        for k in range(C):
            gx[i, k] = scale[k] * (gy[i, k] - offset[k] - (x[i, k] - mean[k]) * slope[k])


@compiled
def through_relu(
    gy: Array, y: Array, mean: Array, scale: Array, offset: Array, slope: Array, g: Array, gbias: Array
) -> None:
    """g = norm_gradient where y > 0, else 0; gbias (C,) += its sum; gy, y and g (rows, C)."""
    rows, C = y.shape
    zero = y.dtype.type(0)
    total = np.zeros(C, y.dtype)
    for start in range(0, rows, CHUNK_ROWS):
        total[:] = 0
        for i in range(start, min(start + CHUNK_ROWS, rows)):
            for k in range(C):
                r = scale[k] * (gy[i, k] - offset[k] - (y[i, k] - mean[k]) * slope[k])
                r = r if y[i, k] > 0 else zero
                g[i, k] = r
                total[k] += r
        for k in range(C):
            gbias[k] += total[k]


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
