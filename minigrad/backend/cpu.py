"""The CPU kernels: those of reference.py on threads, in blocks that stay in the cache.

Measured by benchmarks/ops.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from .pool import Pool, usable_cores
from .reference import Backend

if TYPE_CHECKING:
    from ..ops.conv import ConvGeometry

Array = Any
BLOCK_BYTES = 1 << 20  # scratch that a thread works on at a time; about the second-level cache of one core
CHUNK_ROWS = 512  # rows summed in the arrays' own precision; sums of these go on in float64


class CpuBackend(Backend):
    """The kernels on `threads` threads; None: the cores that this process may use."""

    kernels = "numpy"

    def __init__(self, threads: int | None = None) -> None:
        super().__init__(np)
        self.pool = Pool(threads or usable_cores())
        self.threads = self.pool.threads

    # ---- convolution ----

    def conv2d(self, x: Array, weight: Array, bias: Array | None, geometry: ConvGeometry) -> Array:
        """Faster because im2col, product and bias of a few images at a time stay in the cache."""
        N, F = x.shape[0], weight.shape[3]
        OH, OW = geometry.output_size
        matrix = weight.reshape(-1, F)  # (KH*KW*C, F)
        y = np.empty((N, OH, OW, F), x.dtype)

        def task(_: int, block: slice) -> None:
            rows = y[block].reshape(-1, F)
            np.matmul(self._columns(x[block], geometry), matrix, out=rows)
            if bias is not None:
                wide = _wide(y[block])
                wide += np.tile(bias, OW)

        self.pool.run(task, N, self._block(OH * OW * (matrix.shape[0] + F) * x.itemsize))
        return y

    def conv2d_grad_weight(self, x: Array, gy: Array, geometry: ConvGeometry) -> Array:
        """Faster because the columns stay in the cache; each thread sums its own shard."""
        C, F = x.shape[3], gy.shape[3]
        (KH, KW), (OH, OW) = geometry.kernel_size, geometry.output_size
        partial = np.zeros((self.threads, KH * KW * C, F), x.dtype)

        def task(shard: int, block: slice) -> None:
            product = self.pool.scratch("gweight", (KH * KW * C, F), x.dtype)
            np.matmul(self._columns(x[block], geometry).T, gy[block].reshape(-1, F), out=product)
            partial[shard] += product

        self.pool.run(task, x.shape[0], self._block(OH * OW * (KH * KW * C + F) * x.itemsize))
        return partial.sum(axis=0).reshape(KH, KW, C, F)

    def conv2d_grad_input(self, gy: Array, weight: Array, geometry: ConvGeometry) -> Array:
        """Faster because nothing is scattered: each phase of the stride is a small convolution of gy.

        Input rows h with the same (h + top) mod SH meet the same kernel rows, those i with i = h + top (mod SH).
        So gx[:, phase] is a stride-1 convolution of gy with these taps, in reversed order. With few channels the
        product comes first instead and its KH*KW*C thin planes are added.
        """
        N, _, _, F = gy.shape
        KH, KW, C, _ = weight.shape
        H, W = geometry.input_size
        OH, OW = geometry.output_size
        gx = np.empty((N, H, W, C), gy.dtype)
        if C < 4:
            self._grad_input_planes(gy, weight, geometry, gx)
            return gx
        row_phases = _phases(H, KH, geometry.stride[0], geometry.pads[0][0])
        column_phases = _phases(W, KW, geometry.stride[1], geometry.pads[1][0])
        top, bottom = _margins(row_phases, OH)
        left, right = _margins(column_phases, OW)
        flipped = weight.transpose(0, 1, 3, 2)  # (KH, KW, F, C)
        matrices = {
            (a, b): np.ascontiguousarray(flipped[row.taps][:, column.taps]).reshape(-1, C)  # (MH*MW*F, C)
            for a, row in enumerate(row_phases)
            for b, column in enumerate(column_phases)
        }

        def task(_: int, block: slice) -> None:
            n = block.stop - block.start
            padded = self.pool.scratch(
                f"gy {top} {left} {OH} {OW}", (n, top + OH + bottom, left + OW + right, F), gy.dtype
            )
            padded[:, top : top + OH, left : left + OW] = gy[block]
            for (a, b), matrix in matrices.items():
                row, column = row_phases[a], column_phases[b]
                target = gx[block, row.start :: geometry.stride[0], column.start :: geometry.stride[1]]
                if not matrix.size:  # stride larger than the kernel: no output pixel reads these inputs
                    target[...] = 0
                    continue
                sizes = (n, row.count, column.count, len(row.taps), len(column.taps))
                columns = self.pool.scratch("gy columns", (*sizes, F), gy.dtype)
                s = padded.strides
                first = padded[:, top + row.first :, left + column.first :]
                np.copyto(columns, as_strided(first, columns.shape, (s[0], s[1], s[2], s[1], s[2], s[3])))
                columns = columns.reshape(n * row.count * column.count, -1)
                if target.flags.c_contiguous:
                    np.matmul(columns, matrix, out=target.reshape(-1, C))
                else:
                    product = self.pool.scratch("gx", (n, row.count, column.count, C), gy.dtype)
                    np.matmul(columns, matrix, out=product.reshape(-1, C))
                    target[...] = product

        taps = -(-KH // geometry.stride[0]) * -(-KW // geometry.stride[1])
        pixels = row_phases[0].count * column_phases[0].count
        self.pool.run(task, N, self._block(pixels * (taps * F + C) * gy.itemsize))
        return gx

    def _grad_input_planes(self, gy: Array, weight: Array, geometry: ConvGeometry, gx: Array) -> None:
        KH, KW, C, F = weight.shape
        (H, W), (OH, OW) = geometry.input_size, geometry.output_size
        (top, bottom), (left, right) = geometry.pads
        matrix = np.ascontiguousarray(weight.reshape(-1, F))  # (KH*KW*C, F)

        def task(_: int, block: slice) -> None:
            n = block.stop - block.start
            planes = self.pool.scratch("planes", (KH * KW * C, n * OH * OW), gy.dtype)
            np.matmul(matrix, gy[block].reshape(-1, F).T, out=planes)
            planes = planes.reshape(KH, KW, C, n, OH, OW)
            padded = self.pool.scratch("padded planes", (C, n, top + H + bottom, left + W + right), gy.dtype)
            padded[...] = 0
            for i in range(KH):
                for j in range(KW):
                    padded[:, :, geometry.rows(i), geometry.columns(j)] += planes[i, j]
            gx[block] = padded[:, :, top : top + H, left : left + W].transpose(1, 2, 3, 0)

        self.pool.run(task, len(gy), self._block(OH * OW * (F + KH * KW * C) * gy.itemsize))

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

    def _block(self, bytes_per_image: int) -> int:
        return max(1, BLOCK_BYTES // max(bytes_per_image, 1))

    # ---- elementwise and sums ----

    def relu(self, x: Array) -> Array:
        """Faster on threads."""
        y = np.empty(x.shape, x.dtype)
        self._each_block(lambda _, block: np.maximum(x[block], 0, out=y[block]), y)
        return y

    def relu_grad(self, gy: Array, y: Array) -> Array:
        """Faster on threads."""
        gx = np.empty(y.shape, y.dtype)
        self._each_block(lambda _, block: np.multiply(gy[block], y[block] > 0, out=gx[block]), gx)
        return gx

    def add_bias(self, x: Array, bias: Array) -> Array:
        """Faster on threads, and because a row of pixels is added at once."""
        y = np.empty(x.shape, x.dtype)
        tiled = np.tile(bias, _pixels_a_row(x))
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
        """Faster on threads: one pass takes both sums of the values less a shift near the mean, as exact as two passes."""
        C = x.shape[-1]
        shift = x.reshape(-1, C)[:CHUNK_ROWS].mean(axis=0)
        partial = np.zeros((self.threads, 2, C))
        tiled = np.tile(shift, _pixels_a_row(x))

        def task(shard: int, block: slice) -> None:
            shifted = self.pool.scratch("shifted", x[block].shape, x.dtype)
            np.subtract(_wide(x[block]), tiled, out=_wide(shifted))
            rows = shifted.reshape(-1, C)
            partial[shard, 0] += _row_sums(rows)
            partial[shard, 1] += _row_dots(rows, rows)

        self._each_block(task, x)
        first, second = partial.sum(axis=0) / (x.size // C)
        mean = (shift + first).astype(x.dtype)
        variance = np.maximum(second - first * first, 0).astype(x.dtype)
        return self.batch_norm_apply(x, gamma, beta, mean, variance, epsilon), mean, variance

    def batch_norm_apply(
        self, x: Array, gamma: Array, beta: Array, mean: Array, variance: Array, epsilon: float
    ) -> Array:
        """Faster on threads, and because a row of pixels is computed at once."""
        pixels = _pixels_a_row(x)
        y = np.empty(x.shape, x.dtype)
        wide_mean, wide_beta = np.tile(mean, pixels), np.tile(beta, pixels)
        scale = np.tile(gamma / np.sqrt(variance + epsilon), pixels)

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
        C, pixels = x.shape[-1], _pixels_a_row(x)
        inverse_deviation = 1 / np.sqrt(variance + epsilon)
        wide_mean = np.tile(mean, pixels)
        partial = np.zeros((self.threads, 2, C))

        def sums(shard: int, block: slice) -> None:
            centred = self.pool.scratch("centred", x[block].shape, x.dtype)
            np.subtract(_wide(x[block]), wide_mean, out=_wide(centred))
            rows = gy[block].reshape(-1, C)
            partial[shard, 0] += _row_sums(rows)
            partial[shard, 1] += _row_dots(rows, centred.reshape(-1, C))

        self._each_block(sums, x)
        gbeta, dots = partial.sum(axis=0)
        ggamma = dots * inverse_deviation
        M = x.size // C
        # gx = scale * (gy - gbeta / M - (x - mean) * slope)
        slope = np.tile((ggamma * inverse_deviation / M).astype(x.dtype), pixels)
        offset = np.tile((gbeta / M).astype(x.dtype), pixels)
        scale = np.tile(gamma * inverse_deviation, pixels)
        gx = np.empty(x.shape, x.dtype)

        def task(_: int, block: slice) -> None:
            out, g = _wide(gx[block]), _wide(gy[block])
            np.subtract(_wide(x[block]), wide_mean, out=out)
            out *= slope
            np.subtract(g, out, out=out)
            out -= offset
            out *= scale

        self._each_block(task, gx)
        return gx, ggamma.astype(x.dtype), gbeta.astype(x.dtype)

    def _each_block(self, task: Any, x: Array) -> None:
        """Run task(shard, slice of the first axis) over x."""
        self.pool.run(task, len(x), self._block(x.nbytes // max(len(x), 1)))


class _Phase:
    """The inputs start, start + S, ... of one axis: they meet the kernel's taps (reversed), from gy row `first` on."""

    def __init__(self, start: int, size: int, kernel: int, stride: int, pad: int) -> None:
        taps = range((start + pad) % stride, kernel, stride)
        self.start = start
        self.count = len(range(start, size, stride))
        self.taps = list(reversed(taps))
        self.first = (start + pad) // stride - (len(taps) - 1)


def _phases(size: int, kernel: int, stride: int, pad: int) -> list[_Phase]:
    return [_Phase(start, size, kernel, stride, pad) for start in range(min(stride, size))]


def _margins(phases: list[_Phase], size: int) -> tuple[int, int]:
    """Zeros needed before and after `size` rows of gy so that every phase finds its window."""
    before = max(0, *(-phase.first for phase in phases)) if len(phases) > 1 else max(0, -phases[0].first)
    last = max(phase.first + phase.count - 1 + len(phase.taps) - 1 for phase in phases)
    return before, max(0, last - (size - 1))


def _pixels_a_row(x: Array) -> int:
    """How many channel vectors `_wide` puts side by side: one image row."""
    return x.shape[-2] if x.ndim > 2 else 1


def _wide(x: Array) -> Array:
    """(..., H, W, C) as rows of W*C numbers: per-channel arithmetic runs faster over long rows."""
    return x.reshape(*x.shape[:-2], -1) if x.ndim > 2 else x


def _row_sums(rows: Array) -> Array:
    """Sum over rows, (R, C) -> (C,): 512 rows at a time in the rows' dtype, then in float64."""
    whole = len(rows) // CHUNK_ROWS * CHUNK_ROWS
    ones = np.ones((1, CHUNK_ROWS), rows.dtype)
    total = (ones[:, : len(rows) - whole] @ rows[whole:])[0].astype(np.float64)
    if whole:
        total += (ones @ rows[:whole].reshape(-1, CHUNK_ROWS, rows.shape[1])).sum(axis=(0, 1), dtype=np.float64)
    return total


def _row_dots(a: Array, b: Array) -> Array:
    """Sum over rows of a * b, (R, C) -> (C,): 512 rows at a time in their dtype, then in float64."""
    total = np.zeros(a.shape[1])
    for start in range(0, len(a), CHUNK_ROWS):
        total += np.einsum("rc,rc->c", a[start : start + CHUNK_ROWS], b[start : start + CHUNK_ROWS])
    return total
