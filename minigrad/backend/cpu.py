"""The CPU kernels: those of reference.py on threads, in blocks that stay in the cache.

Measured against the plain kernels by benchmarks/ops.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .plan import THIN, Plan, Product, ThinAdjoint, Window, adjoint, conv_window, convolution
from .pool import Pool, usable_cores
from .reference import Backend

if TYPE_CHECKING:
    from ..ops.conv import ConvGeometry

Array = Any
Norm = tuple[Array, ...] | None  # mean, scale and beta as _per_channel gives them
BLOCK_BYTES = 3 << 20  # scratch that a thread works on at a time: it should stay in the cache, but calls cost time too
CHAIN_BLOCKS = 4  # blocks of the largest layer that go through a chain together: small images make small products
PASS_BYTES = 1 << 20  # of each array in an elementwise pass
FUNCTION_NUMBERS = 1 << 15  # that are worth a thread where each takes several operations
MATMUL_PRODUCTS = 1 << 20  # multiplications that are worth a thread
ROW_NUMBERS = 8192  # see _wide
CHUNK_ROWS = 512  # rows summed in the arrays' own precision; sums of these go on in float64
SHIFT_ROWS = 4096  # of the first image, whose mean the sums of squares are shifted by


class CpuBackend(Backend):
    """The kernels on `threads` threads; None: the cores that this process may use."""

    kernels = "numpy"
    keeps_normalised = True  # normalising again in conv_layer_grad takes longer than reading it from memory

    def __init__(self, threads: int | None = None) -> None:
        super().__init__(np)
        self.set_num_threads(threads)

    def set_num_threads(self, threads: int | None) -> None:
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
        return self._run(convolution(weight, geometry), x, bias)

    def conv2d_grad_weight(self, x: Array, gy: Array, geometry: ConvGeometry) -> Array:
        """Faster because the columns stay in the cache; each thread sums its own shard."""
        C, F = x.shape[3], gy.shape[3]
        window = conv_window(geometry)
        total = np.zeros((self.threads, *geometry.kernel_size, C, F), x.dtype)

        def task(shard: int, block: slice) -> None:
            self._add_grad_weight(total[shard], self._columns(x[block], window), gy[block])

        self.pool.run(task, len(x), self._images_a_block(convolution(total[0], geometry), C, x.itemsize))
        return total.sum(axis=0)

    def conv2d_grad_input(self, gy: Array, weight: Array, geometry: ConvGeometry) -> Array:
        """Faster because a few images at a time stay in the cache and nothing is scattered (see plan.py)."""
        return self._run(adjoint(weight, geometry), gy, None)

    def _run(self, plan: Plan | ThinAdjoint, x: Array, bias: Array | None) -> Array:
        """What the plan computes from all images, plus bias."""
        y = np.empty((len(x), *plan.output_size, plan.channels), x.dtype)
        tiled_bias = None if bias is None else _tiled(bias, y)

        def task(_: int, block: slice) -> None:
            self._convolve(plan, x[block], y[block])
            if tiled_bias is not None:
                _add_tiled(y[block], tiled_bias)

        self.pool.run(task, len(x), self._images_a_block(plan, x.shape[3], x.itemsize))
        return y

    def _convolve(self, plan: Plan | ThinAdjoint, x: Array, out: Array, norm: Norm = None) -> None:
        """What the plan computes from a block of images, normalised if norm is given, into out."""
        if isinstance(plan, ThinAdjoint):
            self._add_planes(plan, self._normalised(x, norm), out)
            return
        for window, products in plan.parts:
            columns = self._columns(x, window, norm)
            for product in products:
                target = out[:, product.rows, product.columns]
                if target.flags.c_contiguous and target.shape[1:3] == window.output_size:
                    np.matmul(columns[:, product.taps], product.matrix, out=target.reshape(-1, plan.channels))
                else:
                    y = self._product(columns, window, product, len(x))
                    target[...] = y[:, : target.shape[1], : target.shape[2]]

    def _product(self, columns: Array, window: Window, product: Product, n: int) -> Array:
        """The pixels (n, PH, PW, channels) that a product gives, in scratch."""
        y = self.pool.scratch("product", (n, *window.output_size, product.matrix.shape[1]), columns.dtype)
        np.matmul(columns[:, product.taps], product.matrix, out=y.reshape(-1, y.shape[3]))
        return y

    def _add_planes(self, plan: ThinAdjoint, gy: Array, gx: Array) -> None:
        """The adjoint of a block where it has few channels."""
        n, OH, OW, F = gy.shape
        _, H, W, C = gx.shape
        geometry = plan.geometry
        (KH, KW), ((top, bottom), (left, right)) = geometry.kernel_size, geometry.pads
        pixels = self.pool.scratch("planes by pixel", (n * OH * OW, KH * KW * C), gy.dtype)
        np.matmul(gy.reshape(-1, F), plan.matrix.T, out=pixels)
        planes = np.ascontiguousarray(pixels.T).reshape(KH, KW, C, n, OH, OW)
        padded = self.pool.scratch("padded planes", (C, n, top + H + bottom, left + W + right), gy.dtype)
        padded[...] = 0
        for i in range(KH):
            for j in range(KW):
                padded[:, :, geometry.rows(i), geometry.columns(j)] += planes[i, j]
        gx[...] = padded[:, :, top : top + H, left : left + W].transpose(1, 2, 3, 0)

    def _add_grad_weight(self, total: Array, columns: Array, gy: Array) -> None:
        """total (KH, KW, C, F) += the weight gradient of a block."""
        F = total.shape[3]
        product = self.pool.scratch("gweight", (columns.shape[1], F), total.dtype)
        np.matmul(columns.T, gy.reshape(-1, F), out=product)
        total += product.reshape(total.shape)

    def _columns(self, x: Array, window: Window, norm: Norm = None) -> Array:
        """im2col of a block: one copy of a window view; transposed, which has longer runs, where C is small."""
        n, H, W, C = x.shape
        (PH, PW), (KH, KW), (SH, SW), start = window
        top, left = max(0, -start[0]), max(0, -start[1])
        bottom, right = max(0, start[0] + (PH - 1) * SH + KH - H), max(0, start[1] + (PW - 1) * SW + KW - W)
        name = f"x {top} {left} {H} {W}"  # what a border is
        padded = self.pool.scratch(name, (n, top + H + bottom, left + W + right, C), x.dtype)
        padded[:, top : top + H, left : left + W] = self._normalised(x, norm)
        s = padded.strides
        offset = (top + start[0]) * s[1] + (left + start[1]) * s[2]
        if C >= THIN:
            shape, strides = (n, PH, PW, KH, KW, C), (s[0], s[1] * SH, s[2] * SW, s[1], s[2], s[3])
            columns = self.pool.scratch("columns", shape, x.dtype)
            np.copyto(columns, np.ndarray(shape, x.dtype, padded, offset, strides))
            return columns.reshape(n * PH * PW, KH * KW * C)
        shape, strides = (KH, KW, C, n, PH, PW), (s[1], s[2], s[3], s[0], s[1] * SH, s[2] * SW)
        columns = np.ndarray(shape, x.dtype, padded, offset, strides).copy()
        return columns.reshape(KH * KW * C, n * PH * PW).T

    def _images_a_block(self, plan: Plan | ThinAdjoint, C: int, itemsize: int) -> int:
        """Images with C channels whose columns and outputs fill a block."""
        return max(1, BLOCK_BYTES // max(plan.numbers(C) * itemsize, 1))

    # ---- one layer of a chain ----

    def conv_layer(
        self,
        x: Array,
        norm: Array | None,
        weight: Array,
        bias: Array,
        geometry: ConvGeometry,
        transposed: bool,
        active: bool,
    ) -> tuple[Array, Array | None, Array | None, Array | None]:
        """Faster because x is normalised when it comes into the cache for im2col, and bias, ReLU and the sums of the
        moments are taken while the product is there."""
        plan = (adjoint if transposed else convolution)(weight, geometry)
        y = np.empty((len(x), *plan.output_size, plan.channels), x.dtype)
        wide_norm = self._wide_norm(norm, x)
        wide_bias = self._per_channel(bias, y) if active else _tiled(bias, y)
        moments = Moments(self.threads, plan.channels, partial(self._per_channel, x=y))
        read = np.empty(x.shape, x.dtype) if self.keeps_normalised and norm is not None else None

        def task(shard: int, block: slice) -> None:
            source, source_norm = x[block], wide_norm
            if read is not None:
                source, source_norm = read[block], None
                self._normalise(x[block], wide_norm, source)
            if active:
                self._activate(plan, source, source_norm, wide_bias, y[block], moments, shard)
            else:
                self._convolve(plan, source, y[block], source_norm)
                _add_tiled(y[block], wide_bias)

        self.pool.run(task, len(x), self._images_a_block(plan, x.shape[3], x.itemsize))
        mean, variance = moments.result(x.dtype) if active else (None, None)
        return y, mean, variance, read

    def _activate(
        self,
        plan: Plan | ThinAdjoint,
        x: Array,
        norm: Norm,
        wide_bias: Array,
        active: Array,
        moments: Moments,
        shard: int,
    ) -> None:
        """active = relu(convolution + bias) of a block, and its moments."""
        self._relu_rows(plan, x, norm, wide_bias, active)
        self._add_moments(active, moments, shard)

    def _relu_rows(self, plan: Plan | ThinAdjoint, x: Array, norm: Norm, wide_bias: Array, out: Array) -> None:
        """out = relu(convolution + bias) of a block."""
        self._convolve(plan, x, out, norm)
        _add_tiled(out, wide_bias)
        np.clip(out, 0, np.inf, out=out)  # a third of np.maximum's time

    def conv_chain_inference(
        self,
        x: Array,
        weights: list[Array],
        biases: list[Array],
        norms: list[Array | None],
        geometries: list[ConvGeometry],
        transposed: list[bool],
    ) -> Array:
        """Faster because a few images at a time go through all layers, and never leave the cache between them."""
        layers = []
        for weight, bias, norm, geometry, back in zip(weights, biases, norms, geometries, transposed, strict=True):
            plan = (adjoint if back else convolution)(weight, geometry)
            like = np.broadcast_to(bias, (1, *plan.output_size, plan.channels))
            wide_bias = _tiled(bias, like) if norm is None else self._per_channel(bias, like)
            layers.append((plan, wide_bias, self._wide_norm(norm, like)))
        y = np.empty((len(x), *plan.output_size, plan.channels), x.dtype)
        channels = [x.shape[3], *(plan.channels for plan, _, _ in layers)]
        sizes = [self._images_a_block(plan, C, x.itemsize) for (plan, _, _), C in zip(layers, channels, strict=False)]

        def task(_: int, block: slice) -> None:
            source = x[block]
            for i, ((plan, wide_bias, norm), size) in enumerate(zip(layers, sizes, strict=True)):
                shape = len(source), *plan.output_size, plan.channels
                out = y[block] if plan is layers[-1][0] else self.pool.scratch(f"layer {i}", shape, x.dtype)
                for start in range(0, len(source), size):
                    rows = slice(start, start + size)
                    self._infer(plan, source[rows], wide_bias, norm, out[rows])
                source = out

        self.pool.run(task, len(x), CHAIN_BLOCKS * min(sizes))
        return y

    def _infer(self, plan: Plan | ThinAdjoint, x: Array, wide_bias: Array, norm: Norm, y: Array) -> None:
        """y = relu(convolution + bias) of a block, normalised; the convolution + bias where there is no norm."""
        if norm is None:
            self._convolve(plan, x, y)
            _add_tiled(y, wide_bias)
        else:
            self._relu_rows(plan, x, None, wide_bias, y)
            self._normalise(y, norm, y)

    def conv_layer_grad(
        self,
        gy: Array,
        through: Array | None,
        y: Array,
        x: Array,
        norm: Array | None,
        read: Array | None,
        weight: Array,
        geometry: ConvGeometry,
        transposed: bool,
        needs_gx: bool,
    ) -> tuple[Array | None, Array | None, Array, Array]:
        """Faster because the gradient behind the ReLU never leaves the cache: both products take it from there, and the
        sums for the batch_norm before are taken while gx is there."""
        F, window = weight.shape[3], conv_window(geometry)
        wide_through = None if through is None else tuple(self._per_channel(vector, y) for vector in through)
        wide_norm = self._wide_norm(norm, x)
        gx = np.empty(x.shape, x.dtype) if needs_gx else None
        back = adjoint(weight, geometry) if needs_gx and not transposed else None
        gweight = np.zeros((self.threads, *weight.shape), x.dtype)
        gbias = np.zeros((self.threads, y.shape[3]))
        sums = np.zeros((self.threads, 2, x.shape[3]))

        def task(shard: int, block: slice) -> None:
            g = gy[block]
            if wide_through is not None:
                g = self.pool.scratch("glinear", y[block].shape, x.dtype)
                self._through_relu(gy[block], y[block], wide_through, g, gbias[shard])
            else:
                gbias[shard] += _row_sums(g.reshape(-1, g.shape[3]))
            source, source_norm = (x[block], wide_norm) if read is None else (read[block], None)
            if transposed:
                columns = self._columns(g, window)
                self._add_grad_weight(gweight[shard], columns, self._normalised(source, source_norm))
                if gx is not None:
                    np.matmul(columns, weight.reshape(-1, F), out=gx[block].reshape(-1, F))
            else:
                self._add_grad_weight(gweight[shard], self._columns(source, window, source_norm), g)
                if back is not None and gx is not None:
                    self._convolve(back, g, gx[block])
            if wide_norm is not None and gx is not None:
                self._gradient_sums(gx[block], x[block], wide_norm[0], sums[shard])

        forward = convolution(weight, geometry)
        self.pool.run(task, len(x), self._images_a_block(forward, weight.shape[2], x.itemsize))
        totals = None if norm is None or gx is None else sums.sum(axis=0).astype(x.dtype)
        return gx, totals, gweight.sum(axis=0), gbias.sum(axis=0).astype(x.dtype)

    def _through_relu(self, gy: Array, y: Array, through: tuple[Array, ...], g: Array, gbias: Array) -> None:
        """g = the gradient of a block behind batch_norm and ReLU, and gbias += its sum a channel."""
        self._norm_gradient(gy, y, through, g)
        self._where_positive(y, g, g)
        gbias += _row_sums(g.reshape(-1, y.shape[3]))

    def _wide_norm(self, norm: Array | None, x: Array) -> Norm:
        return None if norm is None else tuple(self._per_channel(vector, x) for vector in norm)

    def _normalised(self, x: Array, norm: Norm) -> Array:
        """A block normalised, in scratch; itself where norm is None."""
        if norm is None:
            return x
        y = self.pool.scratch("normalised", x.shape, x.dtype)
        self._normalise(x, norm, y)
        return y

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

    def sigmoid(self, x: Array) -> Array:
        """Faster on threads."""
        if x.size <= FUNCTION_NUMBERS:
            return super().sigmoid(x)
        y = np.empty(x.shape, x.dtype)
        rows, out = x.reshape(-1), y.reshape(-1)

        def task(_: int, block: slice) -> None:
            out[block] = Backend.sigmoid(self, rows[block])

        self.pool.run(task, x.size, 4 * FUNCTION_NUMBERS, least=FUNCTION_NUMBERS)
        return y

    def bernoulli_nll(self, logits: Array, targets: Array) -> Array:
        """Faster on threads; a block's sum is taken in its own precision, the sum of blocks in float64."""
        rows, wanted = logits.reshape(-1), targets.reshape(-1)
        total = np.zeros(self.threads)

        def task(shard: int, block: slice) -> None:
            total[shard] += Backend.bernoulli_nll(self, rows[block], wanted[block])

        self.pool.run(task, logits.size, 4 * FUNCTION_NUMBERS, least=FUNCTION_NUMBERS)
        return total.sum().astype(logits.dtype)

    def adam_step_(
        self,
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
        """Faster on threads, in parts that stay in the cache."""
        options = scalars, beta_1, beta_2, epsilon, weight_decay

        def task(_: int, block: slice) -> None:
            Backend.adam_step_(self, parameters[block], mean[block], variance[block], gradients[block], *options)

        self.pool.run(task, len(parameters), 4 * FUNCTION_NUMBERS, least=FUNCTION_NUMBERS)

    # ---- batch normalisation ----

    def moments(self, x: Array) -> tuple[Array, Array]:
        """Faster on threads: one pass takes both sums, of the values less a shift near the mean: as exact as two."""
        moments = Moments(self.threads, x.shape[-1], partial(self._per_channel, x=x))
        self._each_block(lambda shard, block: self._add_moments(x[block], moments, shard), x)
        return moments.result(x.dtype)

    def normalise(self, x: Array, norm: Array | None) -> Array:
        """Faster on threads, and because a row of pixels is computed at once."""
        if norm is None:
            return x
        y = np.empty(x.shape, x.dtype)
        wide = self._wide_norm(norm, x)
        self._each_block(lambda _, block: self._normalise(x[block], wide, y[block]), y)
        return y

    def norm_gradient(self, gy: Array, x: Array, through: Array) -> Array:
        """Faster on threads, and because a row of pixels is computed at once."""
        gx = np.empty(x.shape, x.dtype)
        wide = tuple(self._per_channel(vector, x) for vector in through)
        self._each_block(lambda _, block: self._norm_gradient(gy[block], x[block], wide, gx[block]), gx)
        return gx

    def batch_norm_sums(self, gy: Array, x: Array, mean: Array) -> Array:
        """Faster on threads, and because a row of pixels is computed at once."""
        wide_mean = self._per_channel(mean, x)
        sums = np.zeros((self.threads, 2, x.shape[-1]))
        self._each_block(lambda shard, block: self._gradient_sums(gy[block], x[block], wide_mean, sums[shard]), x)
        return sums.sum(axis=0).astype(x.dtype)

    # ---- what a block of images goes through; kernels of other sets replace these ----

    def _per_channel(self, vector: Array, x: Array) -> Array:
        """A vector of channels in the form in which these methods want it."""
        return _tiled(vector, x)

    def _normalise(self, x: Array, norm: Norm, y: Array) -> None:
        assert norm is not None
        mean, scale, beta = norm
        out = _wide(y)
        np.subtract(_wide(x), mean, out=out)
        out *= scale
        out += beta

    def _add_moments(self, x: Array, moments: Moments, shard: int) -> None:
        """Count the values of a block."""
        sums, wide_shift = moments.begin(x, shard)
        shifted = self.pool.scratch("shifted", x.shape, x.dtype)
        np.subtract(_wide(x), wide_shift, out=_wide(shifted))
        rows = shifted.reshape(-1, x.shape[-1])
        sums[0] += _row_sums(rows)
        sums[1] += _row_sums(np.multiply(rows, rows, out=rows))

    def _gradient_sums(self, gy: Array, x: Array, wide_mean: Array, sums: Array) -> None:
        """sums (2, C) += sum of gy, and of gy * (x - mean)."""
        rows = gy.reshape(-1, x.shape[-1])
        sums[0] += _row_sums(rows)
        centred = self.pool.scratch("centred", x.shape, x.dtype)
        np.subtract(_wide(x), wide_mean, out=_wide(centred))
        products = centred.reshape(rows.shape)
        sums[1] += _row_sums(np.multiply(rows, products, out=products))

    def _norm_gradient(self, gy: Array, x: Array, through: tuple[Array, ...], gx: Array) -> None:
        mean, scale, offset, slope = through
        out = _wide(gx)
        np.subtract(_wide(x), mean, out=out)
        out *= slope
        np.subtract(_wide(gy), out, out=out)
        out -= offset
        out *= scale

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


class Moments:
    """Mean and variance of each channel of what threads count block by block.

    A shard sums its values less a shift, and their squares; the shift is the mean of its first image, so near the mean
    that nothing cancels. The shards' moments are then joined in float64.

    Source: Chan, Golub and LeVeque, Algorithms for computing the sample variance, 1983, eq. 2.1 (joining).
    """

    def __init__(self, threads: int, channels: int, per_channel: Callable[[Array], Array]) -> None:
        self.per_channel = per_channel
        self.wide_shifts: list[Array | None] = [None] * threads  # as per_channel gives them
        self.shifts = np.zeros((threads, channels))
        self.sums = np.zeros((threads, 2, channels))
        self.counts = np.zeros((threads, 1))

    def begin(self, x: Array, shard: int) -> tuple[Array, Array]:
        """(sums (2, C), shift) of the shard to which the block x (n, ..., C) is going to be added."""
        C = x.shape[-1]
        wide_shift = self.wide_shifts[shard]
        if wide_shift is None:
            rows = x[:1].reshape(-1, C)[:SHIFT_ROWS]
            shift = (_row_sums(rows) / max(len(rows), 1)).astype(x.dtype)
            self.shifts[shard] = shift
            wide_shift = self.wide_shifts[shard] = self.per_channel(shift)
        self.counts[shard] += x.size // max(C, 1)
        return self.sums[shard], wide_shift

    def result(self, dtype: Any) -> tuple[Array, Array]:
        """(mean, variance)."""
        shares = self.counts / self.counts.sum()  # 0 for a shard that had nothing to do
        first, second = (self.sums / np.maximum(self.counts, 1)[:, None]).transpose(1, 0, 2)  # (shards, C)
        means = self.shifts + first
        mean = (shares * means).sum(axis=0)
        variance = (shares * (np.maximum(second - first * first, 0) + (means - mean) ** 2)).sum(axis=0)
        return mean.astype(dtype), variance.astype(dtype)


def _tiled(vector: Array, x: Array) -> Array:
    """A vector of channels repeated for one row of `_wide(x)`. (np.tile takes ten times as long.)"""
    C = max(x.shape[-1], 1)
    tiled = np.empty((_row_length(x.shape) // C, C), vector.dtype)
    tiled[...] = vector
    return tiled.reshape(-1)


def _wide(x: Array) -> Array:
    """(N, H, W, C) as long rows of whole image rows: per-channel arithmetic is faster over them than over C."""
    return x.reshape(-1, _row_length(x.shape)) if x.size else x.reshape(0, _row_length(x.shape))


def _add_tiled(x: Array, tiled: Array) -> None:
    """x += a vector of channels that `_tiled` gave."""
    wide = _wide(x)  # a view: x is a block of a new array
    wide += tiled


@lru_cache(maxsize=256)
def _row_length(shape: tuple[int, ...]) -> int:
    """Numbers a row: as many image rows as divide the height and fit ROW_NUMBERS."""
    if len(shape) < 4:
        return shape[-1]
    _, H, W, C = shape
    return W * C * max((r for r in range(1, H + 1) if H % r == 0 and r * W * C <= ROW_NUMBERS), default=1)


@lru_cache
def _ones(dtype: Any) -> Array:
    return np.ones((1, CHUNK_ROWS), dtype)


def _row_sums(rows: Array) -> Array:
    """Sum over rows, (R, C) -> (C,): 512 rows at a time in the rows' dtype, then in float64."""
    whole = len(rows) // CHUNK_ROWS * CHUNK_ROWS
    ones = _ones(rows.dtype)
    total = (ones[:, : len(rows) - whole] @ rows[whole:])[0].astype(np.float64)
    if whole:
        total += (ones @ rows[:whole].reshape(-1, CHUNK_ROWS, rows.shape[1])).sum(axis=(0, 1), dtype=np.float64)
    return total
