"""The CPU kernels: those of reference.py on threads, in blocks that stay in the cache.

Measured against the plain kernels by benchmarks/ops.py.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from ..chain import FastBackend, Layer, LayerGradients, LayerOutput, Norm, Source, without_gaps
from ..device import SHARDS
from ..geometry import ConvGeometry
from ..reference import AdamOptions, Backend
from .numpy_layers import NumpyLayers, plain_bias
from .numpy_passes import FUNCTION_NUMBERS, Moments, NumpyPasses, tiled, wide
from .plan import adjoint, convolution
from .threads import Pool, added, usable_cores

Array = Any
PASS_BYTES = 1 << 20  # bytes of each array in one block of an elementwise pass
MATMUL_PRODUCTS = 1 << 20  # the fewest multiplications worth a thread
SUM_NUMBERS = 1 << 16  # numbers of all shards that are added at a time, in the cache


class NumpyBackend(FastBackend):
    """The kernels on `threads` threads; None: the cores that this process may use. shards: as for `Pool`.

    Attributes:
        layers: runs the layers of a chain. passes: computes with the numbers of a block. Each kernel set has its own
            classes for both.
    """

    kernels = "numpy"
    layers: Any
    passes: Any

    def __init__(self, threads: int | None = None, shards: int | None = SHARDS) -> None:
        super().__init__(np)
        self.pool = Pool(threads or usable_cores(), shards)
        self.threads = self.pool.threads
        self.passes = NumpyPasses(self.pool)
        self.layers = NumpyLayers(self.pool, self.passes)

    @property
    def block_bytes(self) -> int:
        """Bytes that a thread works on at a time."""
        return self.layers.block_bytes

    def session(self) -> AbstractContextManager[None]:
        """BLAS stays on one thread. Otherwise a training step changes that a hundred times, at about 10 us each."""
        return self.pool.single_threaded_blas

    # ---- products ----

    def matmul(self, a: Array, b: Array) -> Array:
        """Faster because our threads share the rows. Threads of BLAS would spin while they wait and slow ours down."""
        a, b = self._for_blas(a), self._for_blas(b)
        if a.ndim != 2 or b.ndim != 2:
            y = np.empty((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]), a.dtype)
            self.pool.run(lambda *_: np.matmul(a, b, out=y), 1, 1)
            return y
        y = np.empty((a.shape[0], b.shape[1]), a.dtype)
        least, size = -(-MATMUL_PRODUCTS // max(b.size, 1)), len(a) // self.pool.shards
        if self.pool.strict and size * self.pool.shards == len(a) > 0 and size * self.pool.all_shards <= least:
            # one call that multiplies shard by shard: the order in which BLAS adds depends on the number of rows
            stacks = a.reshape(-1, size, a.shape[1]), y.reshape(-1, size, y.shape[1])
            self.pool.run(lambda *_: np.matmul(stacks[0], b, out=stacks[1]), 1, 1)
            return y
        self.pool.run(lambda _, rows: np.matmul(a[rows], b, out=y[rows]), len(a), max(len(a), 1), least)
        return y

    def dense_grad_weight(self, x: Array, gy: Array) -> Array:
        """The plain product. In a training each shard has a sum of its own, a few columns of x at a time."""
        pool, (N, D), F = self.pool, x.shape, gy.shape[1]
        if not pool.strict:
            return super().dense_grad_weight(x, gy)
        gweight = np.empty((D, F), x.dtype)
        size, _, _, parts, _ = pool.shares(N)
        width = max(1, SUM_NUMBERS // max(pool.all_shards * F, 1))

        def task(_: int, blocks: slice) -> None:
            columns = slice(blocks.start * width, min(blocks.stop * width, D))
            sums = pool.scratch("gweights", (parts, width, F), x.dtype)[:, : columns.stop - columns.start]
            sums[...] = 0
            for shard, start in enumerate(range(0, N, size)):
                rows = slice(start, start + size)
                np.matmul(x[rows, columns].T, gy[rows], out=sums[shard])
            gweight[columns] = added(sums)

        pool.run(task, -(-D // width), 1, shards_apart=False)
        return pool.total(gweight[None])

    # ---- convolution ----

    @without_gaps
    def conv2d(self, x: Array, weight: Array, bias: Array | None, geometry: ConvGeometry) -> Array:
        """Faster because im2col, product and bias of a few images at a time stay in the cache."""
        bias_image = None if bias is None else plain_bias(Layer(weight, bias, geometry, False))
        return self.layers.run(convolution, x, weight, bias_image, geometry, relu=False)[0]

    @without_gaps
    def conv2d_grad_weight(self, x: Array, gy: Array, geometry: ConvGeometry) -> Array:
        """Faster because the columns stay in the cache; each shard has a sum of its own."""
        weight = np.zeros((*geometry.kernel_size, x.shape[3], gy.shape[3]), x.dtype)
        layer = Layer(weight, None, geometry, transposed=False)
        return self.pool.total(self.layers.gradients(gy, None, gy, x, layer, needs_gx=False)[1])

    @without_gaps
    def conv2d_grad_input(self, gy: Array, weight: Array, geometry: ConvGeometry) -> Array:
        """Faster because a few images at a time stay in the cache and nothing is scattered (see plan.py)."""
        return self.layers.run(adjoint, gy, weight, None, geometry, relu=False)[0]

    # ---- layers of a chain ----

    def conv_layer(self, source: Source, layer: Layer, norm: Norm | None) -> LayerOutput:
        """Faster because weight and bias are changed so that x need not be normalised, and because bias, ReLU and the
        sums of the moments are computed while the product is in the cache."""
        weight, bias_image = self._folded(source.rows, layer)
        planner = adjoint if layer.transposed else convolution
        y, moments = self.layers.run(planner, source.x, weight, bias_image, layer.geometry, norm is not None)
        if norm is None:
            return LayerOutput(y)
        mean, variance = moments.result(y.dtype)
        return LayerOutput(y, mean, variance, self.norm_rows(norm.gamma, norm.beta, mean, variance, norm.epsilon))

    def conv_layer_grad(
        self, gy: Array, grad_rows: Array | None, y: Array, source: Source, layer: Layer, needs_gx: bool
    ) -> LayerGradients:
        """Faster because the gradient before the ReLU stays in the cache, where both products read it. gweight and the
        sums for the previous batch_norm follow from the weight gradient for the x that is not normalised."""
        x, rows, previous = source
        gx, gweights, totals = self.layers.gradients(gy, grad_rows, y, x, layer, needs_gx)
        sums, gweight, gbias = self.layers.unfold(rows, layer, gweights, totals)
        if previous is None or sums is None or not needs_gx:
            return LayerGradients(gx, gweight, gbias)
        return LayerGradients(gx, gweight, gbias, *self.norm_grad_rows(sums, *previous, x.size // x.shape[3]))

    def conv_chain_inference(self, x: Array, layers: list[Layer], rows: list[Array | None]) -> Array:
        """Faster because a few images at a time go through all layers, and never leave the cache between them; and
        because x is never normalised, as in conv_layer."""
        folded = [self._folded(before, layer) for before, layer in zip([None, *rows], layers, strict=False)]
        return self.layers.chain(x, layers, folded, rows)

    def _folded(self, rows: Array | None, layer: Layer) -> tuple[Array, Array]:
        """(weight, bias image) with which x need not be normalised."""
        return (layer.weight, plain_bias(layer)) if rows is None else self.layers.fold(rows, layer)

    # ---- elementwise and sums ----

    def sum(self, x: Array, axes: tuple[int, ...] | None = None, keepdims: bool = False) -> Array:
        """The plain sum. In a training each shard has a sum of its own, if the sum is over the first axis."""
        if not self.pool.strict or not x.ndim or (axes is not None and 0 not in axes):
            return super().sum(x, axes, keepdims)
        over = tuple(range(x.ndim)) if axes is None else axes
        shape = tuple(1 if axis in over else size for axis, size in enumerate(x.shape))
        shares = self.pool.shares(len(x))
        parts = np.zeros((shares.parts, *shape), x.dtype)
        for shard, start in enumerate(range(0, len(x), shares.size)):
            parts[shard] = super().sum(x[start : start + shares.size], over, keepdims=True)
        total = self.pool.total(parts)
        return total if keepdims else total.squeeze(over)

    def relu(self, x: Array) -> Array:
        """Faster on threads."""
        y = np.empty(x.shape, x.dtype)
        rows, out = np.atleast_1d(x, y)  # a single number has no first axis
        self._each_block(lambda _, block: np.clip(rows[block], 0, np.inf, out=out[block]), out, sums=False)
        return y

    def relu_grad(self, gy: Array, y: Array) -> Array:
        """Faster on threads."""
        gx = np.empty(y.shape, y.dtype)
        g, rows, out = np.atleast_1d(gy, y, gx)

        def task(_: int, block: slice) -> None:
            self.passes.where_positive(rows[block], g[block], out[block])

        self._each_block(task, out, sums=False)
        return gx

    def add_bias(self, x: Array, bias: Array) -> Array:
        """Faster on threads, and because a row of pixels is added at once."""
        y = np.empty(x.shape, x.dtype)
        bias_row = tiled(bias, x)
        self._each_block(lambda _, block: np.add(wide(x[block]), bias_row, out=wide(y[block])), y, sums=False)
        return y

    def channel_sum(self, x: Array) -> Array:
        """Faster on threads; 512 rows are summed at a time, and float64 sums the rest."""
        partial = np.zeros((self.pool.shards, x.shape[-1]))
        self._each_block(lambda shard, block: self.passes.add_row_sums(x[block], partial[shard]), x)
        return self.pool.total(partial).astype(x.dtype)

    def sigmoid(self, x: Array) -> Array:
        """Faster on threads."""
        y = np.empty(x.shape, x.dtype)
        rows, out = x.reshape(-1), y.reshape(-1)

        def task(_: int, block: slice) -> None:
            self.passes.sigmoid(rows[block], out[block])

        self.pool.run(task, x.size, 4 * FUNCTION_NUMBERS, self.passes.function_numbers, shards_apart=False)
        return y

    def bernoulli_nll(self, logits: Array, targets: Array) -> Array:
        """Faster on threads; a block's sum is taken in its own precision, the sum of blocks in float64."""
        rows, wanted = logits.reshape(-1), targets.reshape(-1)
        total = np.zeros(self.pool.shards)

        def task(shard: int, block: slice) -> None:
            total[shard] += self.passes.bernoulli_nll(rows[block], wanted[block])

        self.pool.run(task, logits.size, 4 * FUNCTION_NUMBERS, least=4 * FUNCTION_NUMBERS)
        return self.pool.total(total).astype(logits.dtype)

    def adam_step_(
        self,
        parameters: Array,
        first_moment: Array,
        second_moment: Array,
        gradients: Array,
        scalars: Array,
        options: AdamOptions,
    ) -> None:
        """Faster on threads, in parts that stay in the cache."""

        def task(_: int, block: slice) -> None:
            arrays = parameters[block], first_moment[block], second_moment[block], gradients[block]
            Backend.adam_step_(self, *arrays, scalars, options)

        self.pool.run(task, len(parameters), 4 * FUNCTION_NUMBERS, least=4 * FUNCTION_NUMBERS)

    # ---- batch normalisation ----

    def moments(self, x: Array) -> tuple[Array, Array]:
        """Faster on threads, and because one pass computes both sums. A shift near the mean is subtracted first, so the
        result is as exact as with two passes."""
        moments = Moments(self.pool, x.shape[-1])
        self._each_block(lambda shard, block: self.passes.add_moments(x[block], moments, shard), x)
        return moments.result(x.dtype)

    def normalise(self, x: Array, rows: Array | None) -> Array:
        """Faster on threads, and because a row of pixels is computed at once."""
        if rows is None:
            return x
        y = np.empty(x.shape, x.dtype)
        per_channel = self.passes.per_channel(rows, x)
        self._each_block(lambda _, block: self.passes.normalise(x[block], per_channel, y[block]), y, sums=False)
        return y

    def norm_gradient(self, gy: Array, x: Array, rows: Array) -> Array:
        """Faster on threads, and because a row of pixels is computed at once."""
        gx = np.empty(x.shape, x.dtype)
        per_channel = self.passes.per_channel(rows, x)

        def task(_: int, block: slice) -> None:
            self.passes.norm_gradient(gy[block], x[block], per_channel, gx[block])

        self._each_block(task, gx, sums=False)
        return gx

    def batch_norm_sums(self, gy: Array, x: Array, mean: Array) -> Array:
        """Faster on threads, and because a row of pixels is computed at once."""
        per_channel = self.passes.per_channel(mean, x)
        sums = np.zeros((self.pool.shards, 2, x.shape[-1]))
        self._each_block(
            lambda shard, block: self.passes.gradient_sums(gy[block], x[block], per_channel, sums[shard]), x
        )
        return self.pool.total(sums).astype(x.dtype)

    def _each_block(self, task: Any, x: Array, sums: bool = True) -> None:
        """Run task(shard, slice of the first axis) over x; on one thread if x fits one block. sums: whether the task
        adds to a sum of its shard."""
        block = max(1, PASS_BYTES // max(x.nbytes // max(len(x), 1), 1))
        self.pool.run(task, len(x), block, least=block, shards_apart=sums)
