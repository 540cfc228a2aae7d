"""The CPU kernels whose convolution layers are compiled by Numba (extra `fast`), products included.

Faster because a thread computes its images in one compiled call without the interpreter (layer_loops.py), because one
pass over a block does all operations, where NumPy makes one pass for each, and because the products read the images
where they are (direct.py, micro_kernels.py). Dense layers stay with BLAS.
Measured by benchmarks/ops.py and benchmarks/train.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from ..chain import Layer
from ..device import SHARDS
from ..geometry import ConvGeometry
from ..reference import AdamOptions
from . import function_loops, layer_loops, row_loops
from .direct import Direct, Kind, Tables, chained, coverage_kinds, direct, weight_sums
from .layer_loops import Blocks, Gradients, Sums
from .micro_kernels import VECTOR
from .numpy_kernels import NumpyBackend
from .numpy_layers import Planner, chain_block
from .numpy_passes import FUNCTION_NUMBERS, Moments, NumpyPasses
from .plan import adjoint
from .team import Team
from .threads import LINE, Pool, Shares, aligned

Array = Any


class CompiledMoments(Moments):
    """Faster because one call joins the moments of the shards."""

    def result(self, dtype: Any) -> tuple[Array, Array]:
        if self.pool.by_thread:
            return super().result(dtype)
        counts, shifts, sums = self.of_all_processes()
        mean, variance = np.empty(shifts.shape[1], dtype), np.empty(shifts.shape[1], dtype)
        row_loops.join_moments(*_contiguous(counts.reshape(-1), shifts, sums), mean, variance)
        return mean, variance


class NumbaLayers:
    """Runs layers on the threads of a pool, as NumpyLayers does; faster because a thread does all of its shards in one
    call, without the interpreter, and multiplies pixels where they are (direct.py)."""

    block_bytes = 1 << 19

    def __init__(self, pool: Pool) -> None:
        self.pool, self.team = pool, Team(min(pool.threads, pool.all_shards) - 1)

    def _sizes(self, dtype: Any) -> tuple[int, int]:
        """(numbers that a thread works on at a time, columns of a panel)."""
        return self.block_bytes // dtype.itemsize, 2 * VECTOR // dtype.itemsize

    def run(
        self,
        planner: Planner,
        x: Array,
        weight: Array,
        bias_image: Array | None,
        geometry: ConvGeometry,
        relu: bool,
    ) -> tuple[Array, Moments]:
        """(y, moments): y is the planner's convolution of all images plus bias. With relu, y is its ReLU and moments
        are those of y."""
        plan, tables, filling = self._plan((planner is adjoint, geometry, weight.shape), weight)
        y = aligned(np.empty, (len(x), *plan.output), x.dtype)
        moments = CompiledMoments(self.pool, plan.output[2])
        x, bias = np.ascontiguousarray(x), _or_empty(bias_image, 1, x.dtype).reshape(-1)
        shares = self.pool.shares(len(x))
        sums = Sums(moments.shifts, moments.sums, moments.counts.reshape(-1))
        scratch = self._scratch("padded", shares, plan.images * plan.padded, x.dtype)
        layers = plan.layer.copy()  # the plan is kept for the next call
        layers["relu"] = relu
        self._run(layer_loops.conv_layer, shares, *filling, x, shares.size, layers, tables, bias, y, sums, scratch)
        return y, moments

    def gradients(
        self, gy: Array, grad_rows: Array | None, y: Array, x: Array, layer: Layer, needs_gx: bool
    ) -> tuple[Array | None, Array, Array]:
        """What NumpyLayers.gradients computes, but totals (parts, kinds of rows, OW, F) are sums over the rows of each
        kind (`Coverage`). The sums of some neighbouring shards are already added."""
        weight, _, geometry, transposed = layer
        gy, y, x, weight = _contiguous(gy, y, x, weight)
        shares = self.pool.shares(len(x))
        plan = weight_sums(geometry, weight.shape, self._sizes(x.dtype)[0])
        # gx of a transposed layer is a convolution
        back, tables, filling = self._plan((needs_gx and not transposed, geometry, weight.shape), weight)
        block = min(plan.images, back.images)
        gx = aligned(np.empty, x.shape if needs_gx else (0,) * 4, x.dtype)
        gweights = np.empty((shares.parts, weight.size), x.dtype)
        coverage = coverage_kinds(geometry, transposed)
        totals = np.empty((shares.parts, len(coverage.rows), y.shape[2] * y.shape[3]), x.dtype)
        rows = _or_empty(grad_rows, 2, x.dtype)
        factors = x if transposed else y

        sizes = {
            "padded": max(plan.padded, back.padded),
            "gradient": math.prod(y.shape[1:]),
            "spare": math.prod(factors.shape[1:]),
        }
        # the last vector of `spare` may reach beyond its numbers
        scratch = tuple(self._scratch(n, shares, block * size + VECTOR, x.dtype) for n, size in sizes.items())
        plans, results = (coverage.row_kinds, plan, transposed, back.layer, tables), Gradients(gx, gweights, totals)
        blocks = Blocks(shares.size, block, shares.joined)
        self._run(layer_loops.conv_layer_grad, shares, *filling, gy, rows, y, x, *plans, results, blocks, scratch)
        gweights[shares.shards :] = totals[shares.shards :] = 0
        gweights = gweights.reshape(-1, *weight.shape)
        totals = totals.reshape(*totals.shape[:2], *y.shape[2:])
        return gx if needs_gx else None, gweights[:: shares.joined], totals[:: shares.joined]

    def _plan(self, kind: Kind, weight: Array) -> tuple[Direct, Tables, tuple[Array, ...]]:
        """(the plan for a layer of this kind, its tables, and what fills their matrices with the weight's values)."""
        plan = direct(*kind, *self._sizes(weight.dtype))
        matrices = np.empty(len(plan.order), weight.dtype)
        tables = Tables(plan.steps, plan.pixels, plan.turns, matrices)
        return plan, tables, (np.ascontiguousarray(weight).reshape(-1), plan.order, matrices)

    def _run(self, loop: Any, shares: Shares, *arguments: Any) -> None:
        if shares.shards:  # there are images
            self.team.run(loop, shares.threads, shares.shards, *arguments)

    def _scratch(self, name: str, shares: Shares, numbers: int, dtype: Any) -> Array:
        """At least so many numbers for each thread, from the beginning of a line of the cache on."""
        size = -(-numbers * dtype.itemsize // LINE) * LINE // dtype.itemsize
        return self.pool.scratch(name, (shares.threads * size,), dtype).reshape(shares.threads, size)

    def fold(self, rows: Array, layer: Layer) -> tuple[Array, Array]:
        """What NumpyLayers.fold computes."""
        weight, bias, geometry, transposed = layer
        coverage = coverage_kinds(geometry, transposed)
        folded = np.empty(weight.shape, weight.dtype)
        bias_image = np.empty((*layer.output_size, len(bias)), weight.dtype)
        layer_loops.fold(*_contiguous(rows, weight, bias), coverage, transposed, folded, bias_image)
        return folded, bias_image

    def unfold(
        self, rows: Array | None, layer: Layer, gweights: Array, totals: Array
    ) -> tuple[Array | None, Array, Array]:
        """What NumpyLayers.unfold computes."""
        weight, _, geometry, transposed = layer
        dtype, coverage = weight.dtype, coverage_kinds(geometry, transposed)
        gweight, gbias = np.empty(weight.shape, dtype), np.empty(totals.shape[3], dtype)
        sums = np.zeros((2, weight.shape[3 if transposed else 2]))
        joined = self.pool.total(gweights), self.pool.total(totals)
        arguments = _or_empty(rows, 2, dtype), np.ascontiguousarray(weight), *joined, coverage, transposed
        layer_loops.unfold(*arguments, sums, gweight, gbias)
        return None if rows is None else sums.astype(dtype), gweight, gbias

    def chain(
        self, x: Array, layers: list[Layer], folded: list[tuple[Array, Array]], rows: list[Array | None]
    ) -> Array:
        """What NumpyLayers.chain computes, in one call."""
        kinds = tuple((layer.transposed, layer.geometry, layer.weight.shape) for layer in layers)
        plan = chained(kinds, tuple(after is not None for after in rows), *self._sizes(x.dtype))
        matrices = np.empty(sum(map(len, plan.orders)), x.dtype)
        bias = np.concatenate([bias_image.reshape(-1) for _, bias_image in folded])
        shares, start = self.pool.shares(len(x)), 0
        for (weight, _), order in zip(folded, plan.orders, strict=True):
            filling = np.ascontiguousarray(weight).reshape(-1), order, matrices[start : start + len(order)]
            self.team.run(layer_loops.fill, shares.threads, len(order) * x.itemsize // VECTOR, *filling)
            start += len(order)
        y = aligned(np.empty, (len(x), *layers[-1].output_size, len(layers[-1].bias)), x.dtype)
        block = min(chain_block(plan.images), -(-len(x) // shares.threads))
        sizes = {"padded": plan.scratch, "even": block * plan.between, "odd": block * plan.between}
        padded, *between = (self._scratch(name, shares, size, x.dtype) for name, size in sizes.items())
        tables, blocks = Tables(plan.steps, plan.pixels, plan.turns, matrices), Blocks(shares.size, block, 1)
        arguments = plan.layers, tables, bias, _or_empty(rows[-1], 2, x.dtype), y, blocks, tuple(between), padded
        self._run(layer_loops.chain, shares, np.ascontiguousarray(x), *arguments)
        return y


class NumbaPasses(NumpyPasses):
    """Faster because a compiled loop does everything in one pass over a block."""

    function_numbers = 1 << 18

    def per_channel(self, values: Array, x: Array) -> Array:
        """Values (..., C) in the form in which these methods want them."""
        return np.ascontiguousarray(values)

    def normalise(self, x: Array, rows: Array, y: Array) -> None:
        """y = (x - mean) * scale + beta."""
        row_loops.normalise(_rows(x), rows, _rows(y))

    def add_moments(self, x: Array, moments: Moments, shard: int) -> None:
        """Add the values of a block to the moments."""
        sums, shift = moments.begin(x, shard)
        row_loops.add_moments(_rows(x), shift, sums)

    def gradient_sums(self, gy: Array, x: Array, mean: Array, sums: Array) -> None:
        """sums (2, C) += sum of gy, and of gy * (x - mean)."""
        row_loops.gradient_sums(_rows(gy), _rows(x), mean, sums)

    def norm_gradient(self, gy: Array, x: Array, grad_rows: Array, gx: Array) -> None:
        """gx = scale * (gy - offset - (x - mean) * slope)."""
        row_loops.norm_gradient(_rows(gy), _rows(x), grad_rows, _rows(gx))

    def add_row_sums(self, x: Array, sums: Array) -> None:
        """sums (C,) += the sum of x (..., C) over all but the channels."""
        row_loops.row_sums(_rows(x), sums)

    def where_positive(self, y: Array, gy: Array, out: Array) -> None:
        """out = gy where y > 0, else 0."""
        row_loops.where_positive(*(np.ascontiguousarray(a).reshape(-1) for a in (y, gy)), out.reshape(-1))

    def sigmoid(self, x: Array, y: Array) -> None:
        """y = 1 / (1 + exp(-x)); both (numbers,)."""
        if x.dtype == np.float32:
            function_loops.sigmoid(np.ascontiguousarray(x), y)
        else:
            super().sigmoid(x, y)

    def bernoulli_nll(self, logits: Array, targets: Array) -> Array:
        """The sum of -log p(target | logit); both (numbers,)."""
        if not logits.dtype == targets.dtype == np.float32:
            return super().bernoulli_nll(logits, targets)
        y = self.pool.scratch("nll", logits.shape, logits.dtype)
        function_loops.bernoulli_nll(np.ascontiguousarray(logits), np.ascontiguousarray(targets), y)
        return y.sum()


class NumbaBackend(NumpyBackend):
    """The kernels on `threads` threads; None: the cores that this process may use. shards: as for `Pool`."""

    kernels = "numba"

    def __init__(self, threads: int | None = None, shards: int | None = SHARDS) -> None:
        self.prepare(np.dtype("float32"))
        super().__init__(threads, shards)
        self.layers, self.passes = NumbaLayers(self.pool), NumbaPasses(self.pool)

    def prepare(self, dtype: Any) -> None:
        """Compile the loops for a dtype, or load them from Numba's cache on disk."""
        compile_loops(dtype)

    def norm_rows(self, gamma: Array, beta: Array, mean: Array, variance: Array, epsilon: float) -> Array:
        """Faster because it is one call."""
        rows = np.empty((3, len(gamma)), gamma.dtype)
        row_loops.norm_rows(*_contiguous(gamma, beta, mean, variance), gamma.dtype.type(epsilon), rows)
        return rows

    def norm_grad_rows(
        self, sums: Array, gamma: Array, mean: Array, variance: Array, epsilon: float, M: int
    ) -> tuple[Array, Array, Array]:
        """Faster because it is one call."""
        rows, ggamma = np.empty((4, len(gamma)), gamma.dtype), np.empty(len(gamma), gamma.dtype)
        numbers = gamma.dtype.type(epsilon), gamma.dtype.type(M)
        row_loops.norm_grad_rows(*_contiguous(sums, gamma, mean, variance), *numbers, rows, ggamma)
        return rows, ggamma, sums[0].copy()

    def adam_step_(
        self,
        parameters: Array,
        first_moment: Array,
        second_moment: Array,
        gradients: Array,
        scalars: Array,
        options: AdamOptions,
    ) -> None:
        """Faster because one pass on threads does all."""
        numbers = np.array(options, parameters.dtype)

        def task(_: int, block: slice) -> None:
            arrays = parameters[block], first_moment[block], second_moment[block], gradients[block]
            row_loops.adam(*arrays, scalars, *numbers)

        self.pool.run(task, len(parameters), len(parameters), least=FUNCTION_NUMBERS)


def _rows(x: Array) -> Array:
    """(..., C) -> (rows, C), contiguous."""
    return np.ascontiguousarray(x).reshape(-1, x.shape[-1])


def _contiguous(*arrays: Array) -> Iterator[Array]:
    """The arrays, contiguous: Numba compiles for one layout."""
    return map(np.ascontiguousarray, arrays)


def _or_empty(array: Array | None, axes: int, dtype: Any) -> Array:
    """The array, contiguous, or an empty one for None: Numba compiles for one type."""
    return np.empty((0,) * axes, dtype) if array is None else np.ascontiguousarray(array)


@cache
def compile_loops(dtype: Any) -> None:
    """Compile the loops for a dtype, at its first use."""
    layer_loops.prepare(dtype)
