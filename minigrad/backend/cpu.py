"""The CPU kernels: those of reference.py on threads, in blocks that stay in the cache.

Measured against the plain kernels by benchmarks/kernels.py.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from .adjoint import Adjoint
from .pool import Pool, usable_cores
from .reference import Backend

if TYPE_CHECKING:
    from ..ops.conv import ConvGeometry

Array = Any
BLOCK_BYTES = 3 << 20  # scratch that a thread works on at a time: it should stay in the cache, but calls cost time too
PASS_BYTES = 1 << 20  # of each array in an elementwise pass
MATMUL_PRODUCTS = 1 << 20  # multiplications that are worth a thread
ROW_NUMBERS = 8192  # see _wide
CHUNK_ROWS = 512  # rows summed in the arrays' own precision; sums of these go on in float64


class CpuBackend(Backend):
    """The kernels on `threads` threads; None: the cores that this process may use."""

    kernels = "numpy"

    def __init__(self, threads: int | None = None) -> None:
        super().__init__(np)
        self.pool = Pool(threads or usable_cores())
        self.threads = self.pool.threads

    # ---- products ----

    def matmul(self, a: Array, b: Array) -> Array:
        """Faster because rows go to our threads: threads of BLAS would wait spinning, in the way of ours."""
        if a.ndim != 2 or b.ndim != 2:
            y = np.empty((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]), a.dtype)
            self.pool.run(lambda *_: np.matmul(a, b, out=y), 1, 1)
            return y
        y = np.empty((a.shape[0], b.shape[1]), a.dtype)
        least = -(-MATMUL_PRODUCTS // max(b.size, 1))
        self.pool.run(lambda _, rows: np.matmul(a[rows], b, out=y[rows]), len(a), max(len(a), 1), least)
        return y

    # ---- convolution ----

    def conv2d(self, x: Array, weight: Array, bias: Array | None, geometry: ConvGeometry) -> Array:
        """Faster because im2col, product and bias of a few images at a time stay in the cache."""
        N, F = x.shape[0], weight.shape[3]
        y = np.empty((N, *geometry.output_size, F), x.dtype)
        tiled = None if bias is None else _tiled(bias, y)

        def task(_: int, block: slice) -> None:
            self._conv_rows(x[block], weight, geometry, y[block])
            if tiled is not None:
                wide = _wide(y[block])
                wide += tiled

        self.pool.run(task, N, self._images_a_block(weight, geometry))
        return y

    def conv2d_grad_weight(self, x: Array, gy: Array, geometry: ConvGeometry) -> Array:
        """Faster because the columns stay in the cache; each thread sums its own shard."""
        C, F = x.shape[3], gy.shape[3]
        partial = np.zeros((self.threads, *geometry.kernel_size, C, F), x.dtype)

        def task(shard: int, block: slice) -> None:
            self._add_grad_weight(partial[shard], self._columns(x[block], geometry), gy[block])

        self.pool.run(task, x.shape[0], self._images_a_block(partial[0], geometry))
        return partial.sum(axis=0)

    def conv2d_grad_input(self, gy: Array, weight: Array, geometry: ConvGeometry) -> Array:
        """Faster because a few images at a time stay in the cache and nothing is scattered (see adjoint.py)."""
        gx = np.empty((gy.shape[0], *geometry.input_size, weight.shape[2]), gy.dtype)
        adjoint = Adjoint(weight, geometry, self.pool)
        self.pool.run(lambda _, block: adjoint(gy[block], gx[block]), len(gy), self._images_a_block(weight, geometry))
        return gx

    def _conv_rows(self, x: Array, weight: Array, geometry: ConvGeometry, out: Array) -> None:
        """The convolution of a block, without bias, into out."""
        F = weight.shape[3]
        np.matmul(self._columns(x, geometry), weight.reshape(-1, F), out=out.reshape(-1, F))

    def _add_grad_weight(self, total: Array, columns: Array, gy: Array) -> None:
        """total += the weight gradient of a block."""
        F = total.shape[3]
        product = self.pool.scratch("gweight", (columns.shape[1], F), total.dtype)
        np.matmul(columns.T, gy.reshape(-1, F), out=product)
        total += product.reshape(total.shape)

    def _columns(self, x: Array, geometry: ConvGeometry) -> Array:
        """im2col of a block into scratch: one copy of a window view, or one a tap where C is small."""
        n, H, W, C = x.shape
        (KH, KW), (OH, OW), (SH, SW) = geometry.kernel_size, geometry.output_size, geometry.stride
        (top, bottom), (left, right) = geometry.pads
        name = f"x {top} {left} {H} {W}"
        padded = self.pool.scratch(name, (n, top + H + bottom, left + W + right, C), x.dtype)
        padded[:, top : top + H, left : left + W] = x
        columns = self.pool.scratch("columns", (n, OH, OW, KH, KW, C), x.dtype)
        if C >= 8:
            s = padded.strides
            np.copyto(columns, as_strided(padded, columns.shape, (s[0], s[1] * SH, s[2] * SW, s[1], s[2], s[3])))
        else:
            for i in range(KH):
                for j in range(KW):
                    columns[:, :, :, i, j] = padded[:, geometry.rows(i), geometry.columns(j)]
        return columns.reshape(n * OH * OW, KH * KW * C)

    def _images_a_block(self, weight: Array, geometry: ConvGeometry) -> int:
        """Images whose columns and outputs fill a block."""
        OH, OW = geometry.output_size
        KH, KW, C, F = weight.shape
        return self._block(OH * OW * (KH * KW * C + F) * weight.itemsize)

    def _block(self, bytes_per_image: int) -> int:
        return max(1, BLOCK_BYTES // max(bytes_per_image, 1))

    # ---- the fused block ----

    def conv_block(
        self,
        x: Array,
        weight: Array,
        bias: Array,
        gamma: Array,
        beta: Array,
        geometry: ConvGeometry,
        transposed: bool,
        epsilon: float,
    ) -> tuple[Array, Array, Array, Array]:
        """Faster because bias, ReLU and the sums of the statistics are taken while the product is in the cache."""
        size, C = (geometry.input_size, weight.shape[2]) if transposed else (geometry.output_size, weight.shape[3])
        active = np.empty((len(x), *size, C), x.dtype)
        adjoint = Adjoint(weight, geometry, self.pool) if transposed else None
        wide_bias = _tiled(bias, active)

        def activate(block: slice) -> None:
            out = active[block]
            if adjoint is not None:
                adjoint(x[block], out)
            else:
                self._conv_rows(x[block], weight, geometry, out)
            wide = _wide(out)
            wide += wide_bias
            np.clip(wide, 0, np.inf, out=wide)  # a third of np.maximum's time

        self.pool.run(lambda _, block: activate(block), min(len(x), 1), 1)
        shift = active[:1].reshape(-1, C).mean(axis=0)  # of the first image: near the mean
        wide_shift = _tiled(shift, active)
        partial = np.zeros((self.threads, 2, C))

        def task(shard: int, block: slice) -> None:
            activate(block)
            self._add_moments(partial[shard], active[block], wide_shift)

        self.pool.run(task, len(x), self._images_a_block(weight, geometry))
        mean, variance = _moments(partial, shift, active)
        return self.batch_norm_apply(active, gamma, beta, mean, variance, epsilon), active, mean, variance

    def conv_block_grad(
        self,
        gy: Array,
        x: Array,
        weight: Array,
        active: Array,
        gamma: Array,
        mean: Array,
        variance: Array,
        geometry: ConvGeometry,
        transposed: bool,
        epsilon: float,
        needs_gx: bool,
    ) -> tuple[Array | None, Array, Array, Array, Array]:
        """Faster because the gradient behind the ReLU never leaves the cache: both products take it from there."""
        normalise = _BatchNormGrad(self, gy, active, gamma, mean, variance, epsilon)
        C = active.shape[-1]
        gx = np.empty(x.shape, x.dtype) if needs_gx else None
        adjoint = Adjoint(weight, geometry, self.pool) if needs_gx and not transposed else None
        partial = np.zeros((self.threads, *weight.shape), x.dtype)
        partial_bias = np.zeros((self.threads, C))

        def task(shard: int, block: slice) -> None:
            g = self.pool.scratch("glinear", active[block].shape, x.dtype)
            normalise(block, g)
            self._where_positive(active[block], g, g)
            partial_bias[shard] += _row_sums(g.reshape(-1, C))
            if transposed:
                columns = self._columns(g, geometry)
                self._add_grad_weight(partial[shard], columns, x[block])
                if gx is not None:
                    F = weight.shape[3]
                    np.matmul(columns, weight.reshape(-1, F), out=gx[block].reshape(-1, F))
            else:
                self._add_grad_weight(partial[shard], self._columns(x[block], geometry), g)
                if adjoint is not None and gx is not None:
                    adjoint(g, gx[block])

        self.pool.run(task, len(x), self._images_a_block(weight, geometry))
        gbias = partial_bias.sum(axis=0).astype(x.dtype)
        return gx, partial.sum(axis=0), gbias, normalise.ggamma, normalise.gbeta

    # ---- elementwise and sums ----

    def relu(self, x: Array) -> Array:
        """Faster on threads."""
        y = np.empty(x.shape, x.dtype)
        rows, out = np.atleast_1d(x, y)  # a single number has no first axis
        self._each_block(lambda _, block: np.clip(rows[block], 0, np.inf, out=out[block]), out)
        return y

    def relu_grad(self, gy: Array, y: Array) -> Array:
        """Faster on threads."""
        gx = np.empty(y.shape, y.dtype)
        g, rows, out = np.atleast_1d(gy, y, gx)
        self._each_block(lambda _, block: self._where_positive(rows[block], g[block], out[block]), out)
        return gx

    def add_bias(self, x: Array, bias: Array) -> Array:
        """Faster on threads, and because a row of pixels is added at once."""
        y = np.empty(x.shape, x.dtype)
        tiled = _tiled(bias, x)
        self._each_block(lambda _, block: np.add(_wide(x[block]), tiled, out=_wide(y[block])), y)
        return y

    def channel_sum(self, x: Array) -> Array:
        """Faster on threads; BLAS sums 512 rows at a time, float64 the rest."""
        C = x.shape[-1]
        partial = np.zeros((self.threads, C))

        def task(shard: int, block: slice) -> None:
            partial[shard] += _row_sums(x[block].reshape(-1, C))

        self._each_block(task, x)
        return partial.sum(axis=0).astype(x.dtype)

    # ---- batch normalisation ----

    def batch_norm(self, x: Array, gamma: Array, beta: Array, epsilon: float) -> tuple[Array, Array, Array]:
        """Faster on threads: one pass takes both sums, of the values less a shift near the mean: as exact as two."""
        C = x.shape[-1]
        shift = x.reshape(-1, C)[:CHUNK_ROWS].mean(axis=0)
        partial = np.zeros((self.threads, 2, C))
        wide_shift = _tiled(shift, x)
        self._each_block(lambda shard, block: self._add_moments(partial[shard], x[block], wide_shift), x)
        mean, variance = _moments(partial, shift, x)
        return self.batch_norm_apply(x, gamma, beta, mean, variance, epsilon), mean, variance

    def batch_norm_apply(
        self, x: Array, gamma: Array, beta: Array, mean: Array, variance: Array, epsilon: float
    ) -> Array:
        """Faster on threads, and because a row of pixels is computed at once."""
        y = np.empty(x.shape, x.dtype)
        wide_mean, wide_beta = _tiled(mean, x), _tiled(beta, x)
        scale = _tiled(gamma / np.sqrt(variance + epsilon), x)

        def task(_: int, block: slice) -> None:
            out = _wide(y[block])
            np.subtract(_wide(x[block]), wide_mean, out=out)
            out *= scale
            out += wide_beta

        self._each_block(task, y)
        return y

    def batch_norm_grad(
        self, gy: Array, x: Array, gamma: Array, mean: Array, variance: Array, epsilon: float
    ) -> tuple[Array, Array, Array]:
        """Faster on threads, and because a row of pixels is computed at once."""
        normalise = _BatchNormGrad(self, gy, x, gamma, mean, variance, epsilon)
        gx = np.empty(x.shape, x.dtype)
        self._each_block(lambda _, block: normalise(block, gx[block]), gx)
        return gx, normalise.ggamma, normalise.gbeta

    def _add_moments(self, total: Array, x: Array, wide_shift: Array) -> None:
        """total (2, C) += sum of x - shift, and of its square, over a block."""
        shifted = self.pool.scratch("shifted", x.shape, x.dtype)
        np.subtract(_wide(x), wide_shift, out=_wide(shifted))
        rows = shifted.reshape(-1, x.shape[-1])
        total[0] += _row_sums(rows)
        total[1] += _row_sums(np.multiply(rows, rows, out=rows))

    def _where_positive(self, y: Array, gy: Array, out: Array) -> None:
        """out = gy where y > 0, else 0, by masking bits: np.where takes ten times as long, and gy * (y > 0) would
        spoil infinities."""
        bits = np.dtype(f"i{gy.itemsize}")
        positive = np.greater(y, 0, out=self.pool.scratch("positive", y.shape, bool))
        mask = np.negative(positive, dtype=bits, out=self.pool.scratch("mask", y.shape, bits))
        np.bitwise_and(gy.view(bits), mask, out=out.view(bits))

    def _each_block(self, task: Any, x: Array) -> None:
        """Run task(shard, slice of the first axis) over x; on one thread if x fits one block."""
        block = max(1, PASS_BYTES // max(x.nbytes // max(len(x), 1), 1))
        self.pool.run(task, len(x), block, least=block)


class _BatchNormGrad:
    """The gradient of batch_norm: ggamma and gbeta at once, gx block by block when called."""

    def __init__(
        self, k: CpuBackend, gy: Array, x: Array, gamma: Array, mean: Array, variance: Array, epsilon: float
    ) -> None:
        C = x.shape[-1]
        self.gy, self.x = gy, x
        self.mean = _tiled(mean, x)
        partial = np.zeros((k.threads, 2, C))

        def task(shard: int, block: slice) -> None:
            centred = k.pool.scratch("centred", x[block].shape, x.dtype)
            np.subtract(_wide(x[block]), self.mean, out=_wide(centred))
            rows = gy[block].reshape(-1, C)
            partial[shard, 0] += _row_sums(rows)
            products = centred.reshape(-1, C)
            partial[shard, 1] += _row_sums(np.multiply(rows, products, out=products))

        k._each_block(task, x)
        gbeta, dots = partial.sum(axis=0)
        inverse_deviation = 1 / np.sqrt(variance + epsilon)
        ggamma = dots * inverse_deviation
        M = x.size // C
        # gx = scale * (gy - offset - (x - mean) * slope)
        self.slope = _tiled((ggamma * inverse_deviation / M).astype(x.dtype), x)
        self.offset = _tiled((gbeta / M).astype(x.dtype), x)
        self.scale = _tiled(gamma * inverse_deviation, x)
        self.ggamma, self.gbeta = ggamma.astype(x.dtype), gbeta.astype(x.dtype)

    def __call__(self, block: slice, gx: Array) -> None:
        out = _wide(gx)
        np.subtract(_wide(self.x[block]), self.mean, out=out)
        out *= self.slope
        np.subtract(_wide(self.gy[block]), out, out=out)
        out -= self.offset
        out *= self.scale


def _moments(partial: Array, shift: Array, x: Array) -> tuple[Array, Array]:
    """(mean, variance) from the sums that each thread took of x - shift and of its square."""
    first, second = partial.sum(axis=0) / (x.size // x.shape[-1])
    return (shift + first).astype(x.dtype), np.maximum(second - first * first, 0).astype(x.dtype)


def _tiled(vector: Array, x: Array) -> Array:
    """A vector of channels repeated for one row of `_wide(x)`."""
    return np.tile(vector, _row_length(x.shape) // max(x.shape[-1], 1))


def _wide(x: Array) -> Array:
    """(N, H, W, C) as long rows of whole image rows: per-channel arithmetic is faster over them than over C."""
    return x.reshape(-1, _row_length(x.shape)) if x.size else x.reshape(0, _row_length(x.shape))


@lru_cache(maxsize=256)
def _row_length(shape: tuple[int, ...]) -> int:
    """Numbers a row: as many image rows as divide the height and fit ROW_NUMBERS."""
    if len(shape) < 4:
        return shape[-1]
    _, H, W, C = shape
    return W * C * max((r for r in range(1, H + 1) if H % r == 0 and r * W * C <= ROW_NUMBERS), default=1)


def _row_sums(rows: Array) -> Array:
    """Sum over rows, (R, C) -> (C,): 512 rows at a time in the rows' dtype, then in float64."""
    whole = len(rows) // CHUNK_ROWS * CHUNK_ROWS
    ones = np.ones((1, CHUNK_ROWS), rows.dtype)
    total = (ones[:, : len(rows) - whole] @ rows[whole:])[0].astype(np.float64)
    if whole:
        total += (ones @ rows[:whole].reshape(-1, CHUNK_ROWS, rows.shape[1])).sum(axis=(0, 1), dtype=np.float64)
    return total
