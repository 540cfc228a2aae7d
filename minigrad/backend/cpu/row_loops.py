"""Compiled loops over rows of channels: sums, batch normalisation and its gradient; and Adam's step.

Sums are taken in the arrays' own precision over 512 rows at a time and go on in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .compiling import compiled

Array = Any
CHUNK_ROWS = 512


@compiled
def add_moments(x: Array, shift: Array, sums: Array) -> None:
    """sums (2, C) += sum of x - shift, and of its square; x (rows, C). Four rows at a time, because each sum waits for
    the one before."""
    rows, C = x.shape
    first, second = np.zeros(C, x.dtype), np.zeros(C, x.dtype)
    for start in range(0, rows, CHUNK_ROWS):
        stop = min(start + CHUNK_ROWS, rows)
        fours = start + (stop - start) // 4 * 4
        for k in range(C):
            first[k] = second[k] = 0
        for i in range(start, fours, 4):
            for k in range(C):
                p, q, r, s = x[i, k] - shift[k], x[i + 1, k] - shift[k], x[i + 2, k] - shift[k], x[i + 3, k] - shift[k]
                first[k] += (p + q) + (r + s)
                second[k] += (p * p + q * q) + (r * r + s * s)
        for i in range(fours, stop):
            for k in range(C):
                d = x[i, k] - shift[k]
                first[k] += d
                second[k] += d * d
        for k in range(C):
            sums[0, k] += first[k]
            sums[1, k] += second[k]


@compiled
def join_moments(counts: Array, shifts: Array, sums: Array, mean: Array, variance: Array) -> None:
    """mean and variance (C,) become what `Moments.result` in numpy_passes.py returns; it is explained there."""
    S, C = shifts.shape
    total, means, parts = counts.sum(), np.empty(S), np.empty(S)
    for k in range(C):
        for s in range(S):
            means[s] = shifts[s, k] + sums[s, 0, k] / max(counts[s], 1.0)
        centre = means[0] if np.isfinite(means[0]) else 0.0
        for s in range(S):
            parts[s] = counts[s] / total * (means[s] - centre)
        mean[k] = joined = centre + tree(parts)
        for s in range(S):
            first, second = sums[s, 0, k] / max(counts[s], 1.0), sums[s, 1, k] / max(counts[s], 1.0)
            spread = second - first * first
            spread = 0.0 if spread < 0 else spread
            parts[s] = counts[s] / total * (spread + (means[s] - joined) ** 2)
        variance[k] = tree(parts)


@compiled
def tree(parts: Array) -> float:
    """The sum of the numbers, a power of two, added as a tree: ((0 + 1) + (2 + 3)) + ... It overwrites them."""
    count = len(parts)
    while count > 1:
        count //= 2
        for s in range(count):
            parts[s] = parts[2 * s] + parts[2 * s + 1]
    return parts[0]


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
def norm_rows(gamma: Array, beta: Array, mean: Array, variance: Array, epsilon: float, rows: Array) -> None:
    """rows (3, C) become those of `ChainBackend.norm_rows`."""
    for k in range(len(gamma)):
        rows[0, k], rows[2, k] = mean[k], beta[k]
        rows[1, k] = gamma[k] / np.sqrt(variance[k] + epsilon)


@compiled
def norm_grad_rows(
    sums: Array, gamma: Array, mean: Array, variance: Array, epsilon: float, count: float, rows: Array, ggamma: Array
) -> None:
    """rows (4, C) and ggamma become those of `ChainBackend.norm_grad_rows` over so many values per channel."""
    for k in range(len(gamma)):
        inverse_deviation = gamma.dtype.type(1) / np.sqrt(variance[k] + epsilon)
        ggamma[k] = sums[1, k] * inverse_deviation
        rows[0, k], rows[1, k] = mean[k], gamma[k] * inverse_deviation
        rows[2, k], rows[3, k] = sums[0, k] / count, ggamma[k] * inverse_deviation / count


@compiled
def norm_gradient(gy: Array, x: Array, grad_rows: Array, gx: Array) -> None:
    """gx = scale * (gy - offset - (x - mean) * slope) with grad_rows (4, C); gy, x and gx (rows, C)."""
    rows, C = x.shape
    mean, scale, offset, slope = grad_rows[0], grad_rows[1], grad_rows[2], grad_rows[3]
    for i in range(rows):
        for k in range(C):
            gx[i, k] = scale[k] * (gy[i, k] - offset[k] - (x[i, k] - mean[k]) * slope[k])


@compiled
def relu_norm_gradient(gy: Array, y: Array, grad_rows: Array, g: Array) -> None:
    """g = norm_gradient where y > 0, else 0; gy, y and g (rows, C)."""
    rows, C = y.shape
    mean, scale, offset, slope = grad_rows[0], grad_rows[1], grad_rows[2], grad_rows[3]
    zero = y.dtype.type(0)
    for i in range(rows):
        for k in range(C):
            r = scale[k] * (gy[i, k] - offset[k] - (y[i, k] - mean[k]) * slope[k])
            g[i, k] = r if y[i, k] > 0 else zero


@compiled
def where_positive(y: Array, gy: Array, out: Array) -> None:
    """out = gy where y > 0, else 0; all (numbers,)."""
    zero = y.dtype.type(0)
    for i in range(len(y)):
        out[i] = gy[i] if y[i] > 0 else zero


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


@compiled
def add_rows(x: Array, kinds: Array, total: Array) -> None:
    """total[i] (numbers,) += the sum of the rows of x (n, rows, numbers) that are of kind i."""
    for image in range(len(x)):
        for h in range(len(kinds)):
            row, to = x[image, h], total[kinds[h]]
            for k in range(len(to)):
                to[k] += row[k]


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
def adam(
    parameters: Array,
    first_moment: Array,
    second_moment: Array,
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
        first_moment[i] = beta_1 * first_moment[i] + (one - beta_1) * g
        second_moment[i] = beta_2 * second_moment[i] + (one - beta_2) * g * g
        root = np.sqrt(second_moment[i] * scalars[2]) + epsilon
        update = first_moment[i] * scalars[1] / root + weight_decay * parameters[i]
        parameters[i] -= scalars[0] * update
