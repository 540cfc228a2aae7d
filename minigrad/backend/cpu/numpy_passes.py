"""What the CPU kernels do with the numbers of a block of images, with NumPy: normalise, functions, sums, gradients."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from ..reference import Backend
from .threads import Pool

Array = Any
PLAIN = Backend(np)
FUNCTION_NUMBERS = 1 << 15  # the fewest numbers worth a thread, where each takes several operations
ROW_NUMBERS = 8192  # the longest row of `wide`, unless a single image row is longer
CHUNK_ROWS = 512  # rows that are summed in their own precision; the sums of chunks are added in float64
SHIFT_ROWS = 4096  # the shift of Moments is the mean of at most this many rows of the first image


class NumpyPasses:
    """Faster than the plain kernels because a row of pixels is computed at once, and a block stays in the cache.

    Attributes:
        function_numbers: the fewest numbers that are worth a thread in `sigmoid`.
    """

    function_numbers = FUNCTION_NUMBERS

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def per_channel(self, values: Array, x: Array) -> Array:
        """Values (..., C) in the form in which these methods want them."""
        return tiled(values, x)

    def normalise(self, x: Array, rows: Array, y: Array) -> None:
        """y = (x - mean) * scale + beta."""
        mean, scale, beta = rows
        out = wide(y)
        np.subtract(wide(x), mean, out=out)
        out *= scale
        out += beta

    def add_moments(self, x: Array, moments: Moments, shard: int) -> None:
        """Add the values of a block to the moments."""
        sums, shift = moments.begin(x, shard)
        shifted = self.pool.scratch("shifted", x.shape, x.dtype)
        np.subtract(wide(x), self.per_channel(shift, x), out=wide(shifted))
        rows = shifted.reshape(-1, x.shape[-1])
        sums[0] += row_sums(rows)
        sums[1] += row_sums(np.multiply(rows, rows, out=rows))

    def gradient_sums(self, gy: Array, x: Array, wide_mean: Array, sums: Array) -> None:
        """sums (2, C) += sum of gy, and of gy * (x - mean)."""
        rows = gy.reshape(-1, x.shape[-1])
        sums[0] += row_sums(rows)
        centred = self.pool.scratch("centred", x.shape, x.dtype)
        np.subtract(wide(x), wide_mean, out=wide(centred))
        products = centred.reshape(rows.shape)
        sums[1] += row_sums(np.multiply(rows, products, out=products))

    def norm_gradient(self, gy: Array, x: Array, grad_rows: Array, gx: Array) -> None:
        """gx = scale * (gy - offset - (x - mean) * slope)."""
        mean, scale, offset, slope = grad_rows
        out = wide(gx)
        np.multiply(wide(x), slope, out=out)
        np.subtract(wide(gy), out, out=out)
        out += mean * slope - offset
        out *= scale

    def add_row_sums(self, x: Array, sums: Array) -> None:
        """sums (C,) += the sum of x (..., C) over all but the channels."""
        sums += row_sums(x.reshape(-1, x.shape[-1]))

    def where_positive(self, y: Array, gy: Array, out: Array) -> None:
        """out = gy where y > 0, else 0, computed on the bits as integers: np.where takes ten times as long, and
        gy * (y > 0) would turn infinity into NaN."""
        bits = np.dtype(f"i{gy.itemsize}")
        positive = np.greater(y, 0, out=self.pool.scratch("positive", y.shape, bits))
        np.multiply(gy.view(bits), positive, out=out.view(bits))

    def sigmoid(self, x: Array, y: Array) -> None:
        """y = 1 / (1 + exp(-x)); both (numbers,)."""
        y[:] = PLAIN.sigmoid(x)

    def bernoulli_nll(self, logits: Array, targets: Array) -> Array:
        """The sum of -log p(target | logit); both (numbers,)."""
        return PLAIN.bernoulli_nll(logits, targets)


class Moments:
    """Mean and variance of each channel, from the blocks of all shards.

    Each shard sums (value - shift) and (value - shift)^2. The shift is the mean of its first image, or of the first
    rows of a large one. It is so close to the mean of all that no digits cancel. The moments of the shards, in several
    processes those of all, are then joined in float64.

    Source: Chan, Golub and LeVeque, Algorithms for computing the sample variance, 1983, eq. 2.1 (joining).
    """

    def __init__(self, pool: Pool, channels: int) -> None:
        self.pool = pool
        self.shifts = np.zeros((pool.shards, channels))
        self.sums = np.zeros((pool.shards, 2, channels))
        self.counts = np.zeros((pool.shards, 1))

    def begin(self, x: Array, shard: int) -> tuple[Array, Array]:
        """(sums (2, C), shift (C,)) of the shard. Counts the block x (n, ..., C), which the caller adds to sums."""
        C = x.shape[-1]
        if not self.counts[shard]:
            rows = x[:1].reshape(-1, C)[:SHIFT_ROWS]
            self.shifts[shard] = (row_sums(rows) / max(len(rows), 1)).astype(x.dtype)
        self.counts[shard] += x.size // max(C, 1)
        return self.sums[shard], self.shifts[shard].astype(x.dtype)

    def result(self, dtype: Any) -> tuple[Array, Array]:
        """(mean, variance)."""
        counts, shifts, sums = self.of_all_processes()
        shares = counts / counts.sum()  # 0 for a shard that had nothing to do
        first, second = (sums / np.maximum(counts, 1)[:, None]).transpose(1, 0, 2)  # (shards, C)
        means = shifts + first
        centre = 0 if self.pool.by_thread else np.where(np.isfinite(means[0]), means[0], 0)  # equal values stay equal
        mean = centre + self.pool.added(shares * (means - centre))
        variance = self.pool.added(shares * (np.maximum(second - first * first, 0) + (means - mean) ** 2))
        return mean.astype(dtype), variance.astype(dtype)

    def of_all_processes(self) -> tuple[Array, Array, Array]:
        """(counts, shifts, sums) of all shards."""
        if self.pool.group is None:
            return self.counts, self.shifts, self.sums
        mine = np.hstack([self.counts, self.shifts, self.sums.reshape(len(self.sums), -1)])
        rows, C = self.pool.group.gather(mine).reshape(-1, mine.shape[1]), self.shifts.shape[1]
        return rows[:, :1], rows[:, 1 : 1 + C], rows[:, 1 + C :].reshape(-1, 2, C)


def tiled(values: Array, x: Array) -> Array:
    """Values (..., C) repeated along the last axis for one row of `wide(x)`. (np.tile takes ten times as long.)"""
    C = x.shape[-1]
    tiled = np.empty((*values.shape[:-1], _row_length(x.shape) // max(C, 1), C), values.dtype)
    tiled[...] = values[..., None, :]
    return tiled.reshape(*values.shape[:-1], -1)


def wide(x: Array) -> Array:
    """(N, H, W, C) as long rows of whole image rows: per-channel arithmetic is faster over them than over C."""
    return x.reshape(-1, _row_length(x.shape)) if x.size else x.reshape(0, _row_length(x.shape))


@lru_cache(maxsize=256)
def _row_length(shape: tuple[int, ...]) -> int:
    """The length of a row of `wide`: the most image rows that divide the height evenly and fit into ROW_NUMBERS."""
    if len(shape) < 4:
        return shape[-1]
    _, H, W, C = shape
    return W * C * max((r for r in range(1, H + 1) if H % r == 0 and r * W * C <= ROW_NUMBERS), default=1)


@lru_cache
def ones(count: int, dtype: Any) -> Array:
    """(1, count)."""
    return np.ones((1, count), dtype)


def row_sums(rows: Array) -> Array:
    """Sum over rows, (R, C) -> (C,): 512 rows at a time in the rows' dtype, then in float64."""
    whole = len(rows) // CHUNK_ROWS * CHUNK_ROWS
    column = ones(CHUNK_ROWS, rows.dtype)
    total = (column[:, : len(rows) - whole] @ rows[whole:])[0].astype(np.float64)
    if whole:
        total += (column @ rows[:whole].reshape(-1, CHUNK_ROWS, rows.shape[1])).sum(axis=(0, 1), dtype=np.float64)
    return total
