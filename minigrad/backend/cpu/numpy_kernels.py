"""The CPU kernels: those of reference.py on threads, in blocks that stay in the cache.

Measured against the plain kernels by benchmarks/ops.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any

import numpy as np

from ..chain import FastBackend, LayerGradients, Statistics
from ..geometry import ConvGeometry
from ..reference import Backend
from .plan import THIN, Plan, Product, ThinAdjoint, Window, adjoint, conv_window, convolution
from .threads import Pool, usable_cores

Array = Any
Planner = Callable[[Array, Any], Plan | ThinAdjoint]  # `convolution` or `adjoint`
CHAIN_BLOCKS = 4  # blocks of the largest layer that go through a chain together: small images make small products
PASS_BYTES = 1 << 20  # of each array in an elementwise pass
FUNCTION_NUMBERS = 1 << 15  # that are worth a thread where each takes several operations
MATMUL_PRODUCTS = 1 << 20  # multiplications that are worth a thread
ROW_NUMBERS = 8192  # see _wide
CHUNK_ROWS = 512  # rows summed in the arrays' own precision; sums of these go on in float64
SHIFT_ROWS = 4096  # of the first image, whose mean the sums of squares are shifted by


class CpuBackend(FastBackend):
    """The kernels on `threads` threads; None: the cores that this process may use."""

    kernels = "numpy"
    block_bytes = 3 << 20  # that a thread works on at a time: they should stay in the cache, but calls cost time too

    def __init__(self, threads: int | None = None) -> None:
        super().__init__(np)
        self.pool = Pool(threads or usable_cores())
        self.threads = self.pool.threads

    def session(self) -> AbstractContextManager[None]:
        """BLAS stays on one thread: each of the hundred changes in a training step took some 10 us."""
        return self.pool.single_threaded_blas

    # ---- products ----

    def matmul(self, a: Array, b: Array) -> Array:
        """Faster because rows go to our threads: threads of BLAS would wait spinning, in the way of ours."""
        a, b = self._for_blas(a), self._for_blas(b)
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
        bias_image = None if bias is None else self._folded(None, weight, bias, geometry, False)[1]
        return self._layer(convolution, x, weight, bias_image, geometry, active=False)[0]

    def conv2d_grad_weight(self, x: Array, gy: Array, geometry: ConvGeometry) -> Array:
        """Faster because the columns stay in the cache; each thread sums its own shard."""
        weight = np.zeros((*geometry.kernel_size, x.shape[3], gy.shape[3]), x.dtype)
        _, gweights, _ = self._layer_grad(gy, None, gy, x, weight, geometry, transposed=False, needs_gx=False)
        return gweights.sum(axis=0)

    def conv2d_grad_input(self, gy: Array, weight: Array, geometry: ConvGeometry) -> Array:
        """Faster because a few images at a time stay in the cache and nothing is scattered (see plan.py)."""
        return self._layer(adjoint, gy, weight, None, geometry, active=False)[0]

    def _layer(
        self,
        planner: Planner,
        x: Array,
        weight: Array,
        bias_image: Array | None,
        geometry: ConvGeometry,
        active: bool,
    ) -> tuple[Array, Moments]:
        """What `_convolve` computes, from all images; and its moments, if active."""
        plan = planner(weight, geometry)
        y = np.empty((len(x), *plan.output_size, plan.channels), x.dtype)
        moments = Moments(self.threads, plan.channels)

        def task(shard: int, block: slice) -> None:
            self._convolve(plan, x[block], bias_image, active, y[block])
            if active:
                self._add_moments(y[block], moments, shard)

        self.pool.run(task, len(x), self._images_a_block(plan, x.shape[3], x.itemsize))
        return y, moments

    def _layer_grad(
        self,
        gy: Array,
        through: Array | None,
        y: Array,
        x: Array,
        weight: Array,
        geometry: ConvGeometry,
        transposed: bool,
        needs_gx: bool,
    ) -> tuple[Array | None, Array, Array]:
        """(gx, gweights, totals) as in conv_layer_grad for an x that is not normalised, where gweights
        (threads, KH, KW, C, F) are the gradients of weight that threads found, and totals (threads, OH * OW, F) their
        sums over images of the gradient behind the ReLU."""
        F, window = weight.shape[3], conv_window(geometry)
        wide_through = None if through is None else self._per_channel(through, y)
        gx = np.empty(x.shape, x.dtype) if needs_gx else None
        back = adjoint(weight, geometry) if needs_gx and not transposed else None
        gweights = np.empty((self.threads, *weight.shape), x.dtype)
        totals = np.empty((self.threads, math.prod(y.shape[1:])), x.dtype)
        begun = [False] * self.threads

        def task(shard: int, block: slice) -> None:
            first, begun[shard] = not begun[shard], True
            g = gy[block]
            if wide_through is not None:
                g = self.pool.scratch("glinear", y[block].shape, x.dtype)
                self._norm_gradient(gy[block], y[block], wide_through, g)
                self._where_positive(y[block], g, g)
            self._add_product(totals[shard, None], _ones(len(g), x.dtype), g.reshape(len(g), -1), first)
            gweight = gweights[shard].reshape(-1, F)
            if transposed:
                columns = self._columns(g, window)
                self._add_product(gweight, columns.T, x[block].reshape(-1, F), first)
                if gx is not None:
                    np.matmul(columns, weight.reshape(-1, F), out=gx[block].reshape(-1, F))
            else:
                self._add_product(gweight, self._columns(x[block], window).T, g.reshape(-1, F), first)
                if back is not None and gx is not None:
                    self._convolve(back, g, None, False, gx[block])

        forward = convolution(weight, geometry)
        self.pool.run(task, len(x), self._images_a_block(forward, weight.shape[2], x.itemsize))
        for shard in range(self.threads):
            if not begun[shard]:  # fewer images than threads
                gweights[shard] = totals[shard] = 0
        return gx, gweights, totals.reshape(self.threads, -1, y.shape[3])

    def _convolve(self, plan: Plan | ThinAdjoint, x: Array, bias_image: Array | None, active: bool, out: Array) -> None:
        """out = what the plan computes from a block of images, + bias, and its ReLU if active."""
        n = len(x)
        if isinstance(plan, ThinAdjoint):
            self._add_planes(plan, x, out)
        else:
            for window, products in plan.parts:
                columns = self._columns(x, window)
                for product in products:
                    target = out[:, product.rows, product.columns]
                    if target.flags.c_contiguous and target.shape[1:3] == window.output_size:
                        np.matmul(columns[:, product.taps], product.matrix, out=target.reshape(-1, plan.channels))
                    else:
                        y = self._product(columns, window, product, n)
                        target[...] = y[:, : target.shape[1], : target.shape[2]]
        if bias_image is not None:
            images = out.reshape(n, -1)
            images += bias_image.reshape(-1)
        if active:
            np.clip(out, 0, np.inf, out=out)  # a third of np.maximum's time

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

    def _add_product(self, total: Array, a: Array, b: Array, first: bool) -> None:
        """total += a @ b; the first product is put there."""
        if first:
            np.matmul(a, b, out=total)
        else:
            total += np.matmul(a, b, out=self.pool.scratch("added", total.shape, total.dtype))

    def _columns(self, x: Array, window: Window) -> Array:
        """im2col of a block: one copy of a window view; transposed, which has longer runs, where C is small."""
        n, H, W, C = x.shape
        (PH, PW), (KH, KW), (SH, SW), start = window
        if KH * KW == 0:  # pixels that no tap meets: the stride is larger than the kernel
            return np.empty((n * PH * PW, 0), x.dtype)
        top, left = max(0, -start[0]), max(0, -start[1])
        bottom, right = max(0, start[0] + (PH - 1) * SH + KH - H), max(0, start[1] + (PW - 1) * SW + KW - W)
        name = f"x {top} {left} {H} {W}"  # what a border is
        padded = self.pool.scratch(name, (n, top + H + bottom, left + W + right, C), x.dtype)
        padded[:, top : top + H, left : left + W] = x
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

    def _images_a_block(self, plan: Any, C: int, itemsize: int) -> int:
        """Images with C channels whose columns and outputs fill a block."""
        return max(1, self.block_bytes // max(plan.numbers(C) * itemsize, 1))

    # ---- layers of a chain ----

    def conv_layer(
        self,
        x: Array,
        norm: Array | None,
        weight: Array,
        bias: Array,
        geometry: ConvGeometry,
        transposed: bool,
        after: tuple[Array, Array, float] | None,
    ) -> tuple[Array, Array | None, Array | None, Array | None]:
        """Faster because x is not normalised but weight and bias changed instead; and because bias, ReLU and the sums
        of the moments are taken while the product is in the cache."""
        weight, bias_image = self._folded(norm, weight, bias, geometry, transposed)
        planner = adjoint if transposed else convolution
        y, moments = self._layer(planner, x, weight, bias_image, geometry, after is not None)
        if after is None:
            return y, None, None, None
        (gamma, beta, epsilon), (mean, variance) = after, moments.result(x.dtype)
        return y, mean, variance, self.norm_rows(gamma, beta, mean, variance, epsilon)

    def conv_layer_grad(
        self,
        gy: Array,
        through: Array | None,
        y: Array,
        x: Array,
        norm: Array | None,
        before: Statistics | None,
        weight: Array,
        geometry: ConvGeometry,
        transposed: bool,
        needs_gx: bool,
    ) -> LayerGradients:
        """Faster because the gradient behind the ReLU never leaves the cache: both products take it from there. gweight
        and the sums for the batch_norm before come from the gradient for the x that is not normalised."""
        gx, gweights, totals = self._layer_grad(gy, through, y, x, weight, geometry, transposed, needs_gx)
        sums, gweight, gbias = self._unfolded(norm, weight, gweights, totals, geometry, transposed)
        if before is None or sums is None or not needs_gx:
            return gx, gweight, gbias, None, None, None
        return gx, gweight, gbias, *self.through_rows(sums, *before, x.size // x.shape[3])

    def _folded(
        self, norm: Array | None, weight: Array, bias: Array, geometry: ConvGeometry, transposed: bool
    ) -> tuple[Array, Array]:
        """(weight, bias image (OH, OW, F)) with which the convolution of x is that of scale * x + shift, the x
        normalised: what shift adds is the same for all images, less at the border, where taps meet zeros."""
        size = geometry.input_size if transposed else geometry.output_size
        if norm is None:
            return weight, np.broadcast_to(bias, (*size, len(bias))).copy()
        scale, shift = norm[1], norm[2] - norm[0] * norm[1]
        taps = np.empty((weight[..., 0, 0].size + 1, len(bias)), weight.dtype)
        taps[-1] = bias
        with self.pool.single_threaded_blas:
            added = weight @ shift if transposed else shift @ weight  # by each tap to each channel of y
            taps[:-1] = added.reshape(-1, len(bias))
            bias_image = coverage_of(geometry, transposed, weight.dtype) @ taps
        return weight * (scale if transposed else scale[:, None]), bias_image.reshape(*size, -1)

    def _unfolded(
        self,
        norm: Array | None,
        weight: Array,
        gweights: Array,
        totals: Array,
        geometry: ConvGeometry,
        transposed: bool,
    ) -> tuple[Array | None, Array, Array]:
        """(sums, gweight, gbias) of the layer from what `_layer_grad` found for the folded one; gweights are used up.

        Neither sum needs a pass over gx: with gx = W^T g, the sum of gx * x is that of W * (g x^T), which is the
        gradient of W; and the sum of gx that of W and the g which its taps meet.
        """
        KH, KW, C, F = weight.shape
        gweight, weight = gweights[0], weight.reshape(KH * KW, C, F)
        for other in gweights[1:]:
            gweight += other
        with self.pool.single_threaded_blas:
            taps = (coverage_of(geometry, transposed, totals.dtype).T @ totals).sum(axis=0)  # the g that each tap meets
            gbias, taps = taps[-1], taps[:-1]
            if norm is None:
                return None, gweight, gbias
            mean, scale, beta = norm
            g = gweight.reshape(weight.shape)
            if transposed:  # C are the channels of y, F those of x
                first = taps.reshape(-1) @ weight.reshape(-1, F)
                second = (_ones(KH * KW * C, g.dtype) @ (weight * g).reshape(-1, F))[0]
            else:
                first = (weight @ taps[:, :, None]).sum(axis=0)[:, 0]
                second = np.vecdot(weight, g).sum(axis=0)
        shift = beta - mean * scale
        if transposed:
            g *= scale
            g += taps[:, :, None] * shift
        else:
            g *= scale[:, None]
            g += taps[:, None, :] * shift[:, None]
        return np.stack([first, second - mean * first]), gweight, gbias

    def conv_chain_inference(
        self,
        x: Array,
        weights: list[Array],
        biases: list[Array],
        norms: list[Array | None],
        geometries: list[ConvGeometry],
        transposed: list[bool],
    ) -> Array:
        """Faster because a few images at a time go through all layers, and never leave the cache between them; and
        because x is never normalised, as in conv_layer."""
        layers: list[tuple[Any, Array, bool, int]] = []
        C = x.shape[3]
        for norm, weight, bias, after, geometry, back in zip(
            [None, *norms], weights, biases, norms, geometries, transposed, strict=False
        ):
            weight, bias_image = self._folded(norm, weight, bias, geometry, back)
            plan = self._plan(adjoint if back else convolution, weight, geometry)
            layers.append((plan, bias_image, after is not None, self._images_a_block(plan, C, x.itemsize)))
            C = plan.channels
        y = np.empty((len(x), *plan.output_size, C), x.dtype)
        last_norm = None if norms[-1] is None else self._per_channel(norms[-1], y)
        infer = self._chain(layers)

        def task(_: int, block: slice) -> None:
            infer(x[block], y[block])
            if last_norm is not None:
                self._normalise(y[block], last_norm, y[block])

        self.pool.run(task, len(x), CHAIN_BLOCKS * min(images for *_, images in layers), shards_apart=False)
        return y

    def _chain(self, layers: list[tuple[Any, Array, bool, int]]) -> Callable[[Array, Array], None]:
        """The function of a block x and its result y that takes x through layers (plan, bias image, active, images at a
        time)."""

        def infer(x: Array, y: Array) -> None:
            for i, (plan, bias_image, active, images) in enumerate(layers):
                out = y
                if i < len(layers) - 1:
                    out = self.pool.scratch(f"layer {i}", (len(x), *plan.output_size, plan.channels), x.dtype)
                for start in range(0, len(x), images):
                    rows = slice(start, start + images)
                    self._convolve(plan, x[rows], bias_image, active, out[rows])
                x = out

        return infer

    def _plan(self, planner: Planner, weight: Array, geometry: ConvGeometry) -> Any:
        """What `_convolve` takes."""
        return planner(weight, geometry)

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

        self.pool.run(task, logits.size, 4 * FUNCTION_NUMBERS, least=4 * FUNCTION_NUMBERS)
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

        self.pool.run(task, len(parameters), 4 * FUNCTION_NUMBERS, least=4 * FUNCTION_NUMBERS)

    # ---- batch normalisation ----

    def moments(self, x: Array) -> tuple[Array, Array]:
        """Faster on threads: one pass takes both sums, of the values less a shift near the mean: as exact as two."""
        moments = Moments(self.threads, x.shape[-1])
        self._each_block(lambda shard, block: self._add_moments(x[block], moments, shard), x)
        return moments.result(x.dtype)

    def normalise(self, x: Array, norm: Array | None) -> Array:
        """Faster on threads, and because a row of pixels is computed at once."""
        if norm is None:
            return x
        y = np.empty(x.shape, x.dtype)
        wide = self._per_channel(norm, x)
        self._each_block(lambda _, block: self._normalise(x[block], wide, y[block]), y)
        return y

    def norm_gradient(self, gy: Array, x: Array, through: Array) -> Array:
        """Faster on threads, and because a row of pixels is computed at once."""
        gx = np.empty(x.shape, x.dtype)
        wide = self._per_channel(through, x)
        self._each_block(lambda _, block: self._norm_gradient(gy[block], x[block], wide, gx[block]), gx)
        return gx

    def batch_norm_sums(self, gy: Array, x: Array, mean: Array) -> Array:
        """Faster on threads, and because a row of pixels is computed at once."""
        wide_mean = self._per_channel(mean, x)
        sums = np.zeros((self.threads, 2, x.shape[-1]))
        self._each_block(lambda shard, block: self._gradient_sums(gy[block], x[block], wide_mean, sums[shard]), x)
        return sums.sum(axis=0).astype(x.dtype)

    # ---- what a block of images goes through; kernels of other sets replace these ----

    def _per_channel(self, values: Array, x: Array) -> Array:
        """Values (..., C) in the form in which these methods want them."""
        return _tiled(values, x)

    def _normalise(self, x: Array, norm: Array, y: Array) -> None:
        mean, scale, beta = norm
        out = _wide(y)
        np.subtract(_wide(x), mean, out=out)
        out *= scale
        out += beta

    def _add_moments(self, x: Array, moments: Moments, shard: int) -> None:
        """Count the values of a block."""
        sums, shift = moments.begin(x, shard)
        shifted = self.pool.scratch("shifted", x.shape, x.dtype)
        np.subtract(_wide(x), self._per_channel(shift, x), out=_wide(shifted))
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

    def _norm_gradient(self, gy: Array, x: Array, through: Array, gx: Array) -> None:
        mean, scale, offset, slope = through
        out = _wide(gx)
        np.multiply(_wide(x), slope, out=out)
        np.subtract(_wide(gy), out, out=out)
        out += mean * slope - offset
        out *= scale

    def _where_positive(self, y: Array, gy: Array, out: Array) -> None:
        """out = gy where y > 0, else 0, by integers: np.where takes ten times as long, and gy * (y > 0) would spoil
        infinities."""
        bits = np.dtype(f"i{gy.itemsize}")
        positive = np.greater(y, 0, out=self.pool.scratch("positive", y.shape, bits))
        np.multiply(gy.view(bits), positive, out=out.view(bits))

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

    def __init__(self, threads: int, channels: int) -> None:
        self.shifts = np.zeros((threads, channels))
        self.sums = np.zeros((threads, 2, channels))
        self.counts = np.zeros((threads, 1))

    def begin(self, x: Array, shard: int) -> tuple[Array, Array]:
        """(sums (2, C), shift (C,)) of the shard to which the block x (n, ..., C) is going to be added."""
        C = x.shape[-1]
        if not self.counts[shard]:
            rows = x[:1].reshape(-1, C)[:SHIFT_ROWS]
            self.shifts[shard] = (_row_sums(rows) / max(len(rows), 1)).astype(x.dtype)
        self.counts[shard] += x.size // max(C, 1)
        return self.sums[shard], self.shifts[shard].astype(x.dtype)

    def result(self, dtype: Any) -> tuple[Array, Array]:
        """(mean, variance)."""
        shares = self.counts / self.counts.sum()  # 0 for a shard that had nothing to do
        first, second = (self.sums / np.maximum(self.counts, 1)[:, None]).transpose(1, 0, 2)  # (shards, C)
        means = self.shifts + first
        mean = (shares * means).sum(axis=0)
        variance = (shares * (np.maximum(second - first * first, 0) + (means - mean) ** 2)).sum(axis=0)
        return mean.astype(dtype), variance.astype(dtype)


def _tiled(values: Array, x: Array) -> Array:
    """Values (..., C) repeated along the last axis for one row of `_wide(x)`. (np.tile takes ten times as long.)"""
    C = x.shape[-1]
    tiled = np.empty((*values.shape[:-1], _row_length(x.shape) // max(C, 1), C), values.dtype)
    tiled[...] = values[..., None, :]
    return tiled.reshape(*values.shape[:-1], -1)


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


@lru_cache(maxsize=64)
def coverage_of(geometry: ConvGeometry, transposed: bool, dtype: Any) -> Array:
    """(pixels of the result, KH * KW + 1): 1 where a tap meets a pixel of the image, 0 where it meets the border; and
    1 for the bias."""
    rows, columns = (_axis_coverage(geometry, axis, transposed).astype(dtype) for axis in (0, 1))
    covered = np.kron(rows, columns)
    return np.hstack([covered, np.ones((len(covered), 1), dtype)])


def _axis_coverage(geometry: ConvGeometry, axis: int, transposed: bool) -> Array:
    """(positions of the result, taps), whether the tap meets a position of the image, for rows or columns."""
    size, steps, stride = geometry.input_size[axis], geometry.output_size[axis], geometry.stride[axis]
    taps = np.arange(geometry.kernel_size[axis]) - geometry.pads[axis][0]
    if transposed:
        step, rest = np.divmod(np.arange(size)[:, None] - taps, stride)
        return (rest == 0) & (step >= 0) & (step < steps)
    position = np.arange(steps)[:, None] * stride + taps
    return (position >= 0) & (position < size)


@lru_cache
def _ones(count: int, dtype: Any) -> Array:
    return np.ones((1, count), dtype)


def _row_sums(rows: Array) -> Array:
    """Sum over rows, (R, C) -> (C,): 512 rows at a time in the rows' dtype, then in float64."""
    whole = len(rows) // CHUNK_ROWS * CHUNK_ROWS
    ones = _ones(CHUNK_ROWS, rows.dtype)
    total = (ones[:, : len(rows) - whole] @ rows[whole:])[0].astype(np.float64)
    if whole:
        total += (ones @ rows[:whole].reshape(-1, CHUNK_ROWS, rows.shape[1])).sum(axis=(0, 1), dtype=np.float64)
    return total
