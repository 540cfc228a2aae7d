"""Compiled loops between an image and a matrix product: its patches as columns, and the product's pixels in the result.

An index that is the sum of two is unsigned (`np.uint64`): a signed one might be negative and mean the array's end, and
a loop that has to check this is not vectorised. `contract` lets a product and a sum become one rounding (a fused
multiply-add), `reassoc` takes a sum in any order; NaN and infinity keep their meaning.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from .compiling import compiled

Array = Any

SIZES = ("output_size", "kernel_size", "stride", "start", "taps", "first", "every", "matrix")
STEP = np.dtype([("window", "i8"), *((name, "i8", 2) for name in SIZES)])
"""One product of a plan (see plan.py): matrices[matrix[0]:matrix[1]] is its matrix (transposed where the result has
few channels) and window the number of its window; it gives the pixels from `first` on, one in `every`."""


@compiled
def pair(numbers: Array) -> tuple[int, int]:
    """The two numbers of an array."""
    return numbers[0], numbers[1]


@compiled
def im2col(x: Array, start: tuple[int, int], stride: tuple[int, int], columns: Array) -> None:
    """columns (n, PH, PW, KH, KW, C): the patches of x (n, H, W, C); zero outside of it."""
    n, H, W, C = x.shape
    _, PH, PW, KH, KW, _ = columns.shape
    pixels, target, zero = x.reshape(-1), columns.reshape(-1), x.dtype.type(0)
    for i in range(n):
        for p in range(PH):
            for q in range(PW):
                left = q * stride[1] + start[1]
                for a in range(KH):
                    h = p * stride[0] + a + start[0]
                    first = min(max(0, -left), KW) if 0 <= h < H else KW  # the taps that meet pixels of the row
                    last = max(first, min(KW, W - left))
                    to = np.uint64((((i * PH + p) * PW + q) * KH + a) * KW * C)
                    for k in range(np.uint64(first * C)):
                        target[to + k] = zero
                    source, to = np.uint64(((i * H + h) * W + left + first) * C), to + np.uint64(first * C)
                    for k in range(np.uint64((last - first) * C)):
                        target[to + k] = pixels[source + k]
                    to += np.uint64((last - first) * C)
                    for k in range(np.uint64((KW - last) * C)):
                        target[to + k] = zero


@compiled
def im2col_thin(x: Array, start: tuple[int, int], stride: tuple[int, int], columns: Array) -> None:
    """columns (KH, KW, C, n, PH, PW): im2col transposed, which is written in longer runs where C is small."""
    n, H, W, C = x.shape
    KH, KW, _, _, PH, PW = columns.shape
    pixels, target, zero = x.reshape(-1), columns.reshape(-1), x.dtype.type(0)
    step = np.uint64(stride[1] * C)
    for a in range(KH):
        for b in range(KW):
            left = b + start[1]
            first = min(max(0, (stride[1] - 1 - left) // stride[1]), PW)  # the first patch whose pixel is inside
            last = max(min(PW, (W - 1 - left) // stride[1] + 1), first)
            for c in range(C):
                for i in range(n):
                    for p in range(PH):
                        h = p * stride[0] + a + start[0]
                        inside = last - first if 0 <= h < H else 0
                        to = np.uint64(((((a * KW + b) * C + c) * n + i) * PH + p) * PW)
                        if inside < PW:
                            for q in range(np.uint64(PW)):
                                target[to + q] = zero
                        to += np.uint64(first)
                        source = np.uint64(((i * H + h) * W + first * stride[1] + left) * C + c)
                        for q in range(np.uint64(inside)):
                            target[to + q] = pixels[source + q * step]


@partial(compiled, fastmath={"contract", "reassoc"})
def dots(x: Array, step: Any, taps: Array, out: Array) -> None:
    """The pixels of out (n, H, W, F) that the step gives, where F is small: a scalar product for each; taps: its matrix
    (F, rows of taps, KW * C)."""
    n, H, W, C = x.shape
    _, OH, OW, F = out.shape
    (PH, PW), KW = pair(step.output_size), step.kernel_size[1]
    run, pixels, zero = max(KW * C, 1), x.reshape(-1), x.dtype.type(0)
    above, KH = step.taps[0] // run, (step.taps[1] - step.taps[0]) // run  # rows of the window before them, and theirs
    rows = min(PH, (OH - step.first[0] + step.every[0] - 1) // step.every[0])
    row_length = min(PW, (OW - step.first[1] + step.every[1] - 1) // step.every[1])
    for i in range(n):
        for p in range(rows):
            q = 0
            while q < row_length:
                left = q * step.stride[1] + step.start[1]
                first = min(max(0, -left), KW)
                last = max(first, min(KW, W - left))
                # away from the border four pixels of a row share the taps that are loaded; elsewhere four times one
                inside = left >= 0 and left + 3 * step.stride[1] + KW <= W and q + 4 <= row_length
                ahead = np.uint64(step.stride[1] * C if inside else 0)
                h, w = step.first[0] + p * step.every[0], step.first[1] + q * step.every[1]
                for f in range(F):
                    y0 = y1 = y2 = y3 = zero
                    for a in range(KH):
                        row = p * step.stride[0] + above + a + step.start[0]
                        if 0 <= row < H:
                            x0 = np.uint64(((i * H + row) * W + left + first) * C)
                            x1, x2, x3 = x0 + ahead, x0 + ahead + ahead, x0 + ahead + ahead + ahead
                            tap = np.uint64((f * KH + a) * run + first * C)
                            s0 = s1 = s2 = s3 = zero
                            for k in range(np.uint64((last - first) * C)):
                                s0 += pixels[x0 + k] * taps[tap + k]
                                s1 += pixels[x1 + k] * taps[tap + k]
                                s2 += pixels[x2 + k] * taps[tap + k]
                                s3 += pixels[x3 + k] * taps[tap + k]
                            y0, y1, y2, y3 = y0 + s0, y1 + s1, y2 + s2, y3 + s3
                    out[i, h, w, f] = y0
                    if inside:
                        every = step.every[1]
                        out[i, h, w + every, f], out[i, h, w + 2 * every, f], out[i, h, w + 3 * every, f] = y1, y2, y3
                q += 4 if inside else 1


@compiled
def spread(product: Array, first: tuple[int, int], step: tuple[int, int], out: Array) -> None:
    """out[:, first[0] :: step[0], first[1] :: step[1]] = product, as far as out reaches."""
    n, PH, PW, C = product.shape
    _, H, W, _ = out.shape
    source, target, length = product.reshape(-1), out.reshape(-1), np.uint64(C)
    for i in range(n):
        for p in range(min(PH, (H - first[0] + step[0] - 1) // step[0])):
            for q in range(min(PW, (W - first[1] + step[1] - 1) // step[1])):
                at = np.uint64(((i * PH + p) * PW + q) * C)
                to = np.uint64(((i * H + first[0] + p * step[0]) * W + first[1] + q * step[1]) * C)
                for k in range(length):
                    target[to + k] = source[at + k]


@compiled
def activate(y: Array, bias: Array, relu: bool) -> None:
    """y = y + bias, and its ReLU if relu; (numbers,) or, for an empty bias, nothing."""
    zero = y.dtype.type(0)
    if not relu:
        for k in range(len(bias)):
            y[k] += bias[k]
    else:
        for k in range(len(bias)):
            value = y[k] + bias[k]
            y[k] = zero if value < 0 else value
