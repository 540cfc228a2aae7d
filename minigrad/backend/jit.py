"""The CPU kernels with the work between matrix products compiled by Numba (extra `fast`); see loops.py.

Faster because one compiled pass does what takes NumPy one pass over the block for each operation. The matrix products
stay NumPy's BLAS. Measured by benchmarks/ops.py and benchmarks/train.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from . import loops
from .cpu import FUNCTION_NUMBERS, CpuBackend, Moments, Norm
from .plan import THIN, Plan, ThinAdjoint, Window, conv_window

Array = Any


class JitBackend(CpuBackend):
    """The kernels on `threads` threads; None: the cores that this process may use."""

    kernels = "numba"
    keeps_normalised = False  # im2col normalises in passing

    def __init__(self, threads: int | None = None) -> None:
        loops.prepare()
        super().__init__(threads)

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
        """Faster because one pass on threads does all."""
        options = np.array((beta_1, beta_2, epsilon, weight_decay), parameters.dtype)

        def task(_: int, block: slice) -> None:
            loops.adam(parameters[block], mean[block], variance[block], gradients[block], scalars, *options)

        self.pool.run(task, len(parameters), len(parameters), least=FUNCTION_NUMBERS)

    def _columns(self, x: Array, window: Window, norm: Norm = None) -> Array:
        n, C = len(x), x.shape[3]
        if C < THIN:
            x = np.ascontiguousarray(self._normalised(x, norm))
            columns = np.empty((*window.kernel_size, C, n, *window.output_size), x.dtype)
            loops.im2col_thin(x, window.start, window.stride, columns)
            return columns.reshape(-1, n * window.output_size[0] * window.output_size[1]).T
        x = np.ascontiguousarray(x)  # Numba compiles for one layout
        columns = self.pool.scratch("columns", (n, *window.output_size, *window.kernel_size, C), x.dtype)
        vectors = (columns.reshape(-1)[:0],) * 3 if norm is None else norm
        loops.im2col(x, norm is not None, *vectors, window.start, window.stride, columns)
        return columns.reshape(n * window.output_size[0] * window.output_size[1], -1)

    def _add_planes(self, plan: ThinAdjoint, gy: Array, gx: Array) -> None:
        n, OH, OW, F = gy.shape
        window = conv_window(plan.geometry)
        planes = self.pool.scratch("planes", (n, OH, OW, *window.kernel_size, plan.channels), gy.dtype)
        np.matmul(gy.reshape(-1, F), plan.matrix.T, out=planes.reshape(-1, len(plan.matrix)))
        loops.add_planes(planes, window.start, window.stride, gx)

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
        starting = moments.wide_shifts[shard] is None  # no shift yet: the moments follow in a pass of their own
        sums = np.empty((2, plan.channels)) if starting else moments.sums[shard]
        shift = wide_bias if starting else moments.begin(active, shard)[1]
        for y, first, step in self._linear(plan, x, norm, active):
            loops.activate(y, first, step, wide_bias, shift, active, sums)
        if starting:
            self._add_moments(active, moments, shard)

    def _infer(self, plan: Plan | ThinAdjoint, x: Array, wide_bias: Array, norm: Norm, y: Array) -> None:
        if norm is None:
            super()._infer(plan, x, wide_bias, norm, y)
            return
        for linear, first, step in self._linear(plan, x, None, y):
            loops.infer(linear, first, step, wide_bias, *norm, y)

    def _linear(
        self, plan: Plan | ThinAdjoint, x: Array, norm: Norm, out: Array
    ) -> Iterator[tuple[Array, tuple[int, int], tuple[int, int]]]:
        """What the plan computes from a block, part by part in scratch, and each part's first pixel and step in out."""
        if isinstance(plan, ThinAdjoint):
            y = self.pool.scratch("product", out.shape, x.dtype)
            self._add_planes(plan, self._normalised(x, norm), y)
            yield y, (0, 0), (1, 1)
            return
        for window, products in plan.parts:
            columns = self._columns(x, window, norm)
            for product in products:
                rows, pixels = product.rows, product.columns
                first, step = (rows.start or 0, pixels.start or 0), (rows.step or 1, pixels.step or 1)
                yield self._product(columns, window, product, len(x)), first, step

    def _through_relu(self, gy: Array, y: Array, through: tuple[Array, ...], g: Array, gbias: Array) -> None:
        loops.through_relu(_rows(gy), _rows(y), *through, _rows(g), gbias)

    def _per_channel(self, vector: Array, x: Array) -> Array:
        return np.ascontiguousarray(vector)

    def _normalise(self, x: Array, norm: Norm, y: Array) -> None:
        assert norm is not None
        loops.normalise(_rows(x), *norm, _rows(y))

    def _add_moments(self, x: Array, moments: Moments, shard: int) -> None:
        sums, shift = moments.begin(x, shard)
        loops.add_moments(_rows(x), shift, sums)

    def _gradient_sums(self, gy: Array, x: Array, wide_mean: Array, sums: Array) -> None:
        loops.gradient_sums(_rows(gy), _rows(x), wide_mean, sums)

    def _norm_gradient(self, gy: Array, x: Array, through: tuple[Array, ...], gx: Array) -> None:
        loops.norm_gradient(_rows(gy), _rows(x), *through, _rows(gx))


def _rows(x: Array) -> Array:
    """(..., C) -> (rows, C), contiguous."""
    return np.ascontiguousarray(x).reshape(-1, x.shape[-1])
