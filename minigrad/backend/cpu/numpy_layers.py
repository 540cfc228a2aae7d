"""How the CPU kernels run a layer with NumPy: im2col, product, bias and ReLU of a few images at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from ..chain import Layer
from ..geometry import ConvGeometry
from .numpy_passes import Moments, NumpyPasses, ones
from .plan import THIN, Plan, Product, ThinAdjoint, Window, adjoint, axis_coverage, conv_window, convolution
from .threads import Pool

Array = Any
Planner = Callable[[Array, Any], Plan | ThinAdjoint]  # `convolution` or `adjoint`


class NumpyLayers:
    """Runs layers on the threads of a pool. passes: normalises and sums the channels of a block.

    Attributes:
        block_bytes: bytes that a thread works on at a time. They should stay in the cache, but small blocks mean more
            calls, which cost time, too.
    """

    block_bytes = 3 << 20

    def __init__(self, pool: Pool, passes: NumpyPasses) -> None:
        self.pool, self.passes = pool, passes

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
        plan = planner(weight, geometry)
        y = np.empty((len(x), *plan.output_size, plan.channels), x.dtype)
        moments = Moments(self.pool, plan.channels)

        def task(shard: int, block: slice) -> None:
            self._convolve(plan, x[block], bias_image, relu, y[block])
            if relu:
                self.passes.add_moments(y[block], moments, shard)

        self.pool.run(task, len(x), images_per_block(self, plan, x))
        return y, moments

    def gradients(
        self, gy: Array, grad_rows: Array | None, y: Array, x: Array, layer: Layer, needs_gx: bool
    ) -> tuple[Array | None, Array, Array]:
        """(gx, gweights, totals), as in conv_layer_grad but with the x that is not normalised.

        Each shard has a sum over its own images, for `Pool.total`: gweights (parts, KH, KW, C, F) for the gradient of
        weight, and totals (parts, OH * OW, F) for the gradient of the convolution's output, before the ReLU.
        """
        weight, _, geometry, transposed = layer
        F, window, parts = weight.shape[3], conv_window(geometry), self.pool.shares(len(x)).parts
        wide_rows = None if grad_rows is None else self.passes.per_channel(grad_rows, y)
        gx = np.empty(x.shape, x.dtype) if needs_gx else None
        back = adjoint(weight, geometry) if needs_gx and not transposed else None
        gweights = np.empty((parts, *weight.shape), x.dtype)
        totals = np.empty((parts, math.prod(y.shape[1:])), x.dtype)
        begun = [False] * parts

        def task(shard: int, block: slice) -> None:
            first, begun[shard] = not begun[shard], True
            g = gy[block]
            if wide_rows is not None:
                g = self.pool.scratch("glinear", y[block].shape, x.dtype)
                self.passes.norm_gradient(gy[block], y[block], wide_rows, g)
                self.passes.where_positive(y[block], g, g)
            self._add_product(totals[shard, None], ones(len(g), x.dtype), g.reshape(len(g), -1), first)
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
        self.pool.run(task, len(x), max(1, self.block_bytes // max(forward.numbers(weight.shape[2]) * x.itemsize, 1)))
        for shard in range(parts):
            if not begun[shard]:
                gweights[shard] = totals[shard] = 0
        return gx, gweights, totals.reshape(parts, -1, y.shape[3])

    def fold(self, rows: Array, layer: Layer) -> tuple[Array, Array]:
        """(weight, bias image (OH, OW, F)) that include the normalisation of x.

        Their convolution of x equals the layer's convolution of the normalised x, which is scale * x + shift. What
        shift adds is the same for all images. At the border fewer taps add it, because padding stays 0.
        """
        weight, bias, geometry, transposed = layer
        scale, shift = rows[1], rows[2] - rows[0] * rows[1]
        taps = np.empty((weight[..., 0, 0].size + 1, len(bias)), weight.dtype)
        taps[-1] = bias
        with self.pool.single_threaded_blas:
            added = weight @ shift if transposed else shift @ weight  # by each tap to each channel of y
            taps[:-1] = added.reshape(-1, len(bias))
            bias_image = coverage_of(geometry, transposed, weight.dtype) @ taps
        return weight * (scale if transposed else scale[:, None]), bias_image.reshape(*layer.output_size, -1)

    def unfold(
        self, rows: Array | None, layer: Layer, gweights: Array, totals: Array
    ) -> tuple[Array | None, Array, Array]:
        """(sums, gweight, gbias) of the layer, from the results of `gradients`.

        sums (2, C) are the sums of gx and of gx * (x - mean), computed without a pass over gx. gx = W^T g, so the sum
        of gx * x is the sum of W * (g x^T), where g x^T is the gradient of W. In the same way the sum of gx is the
        product of W and `taps`: for each tap, the sum of g over the pixels that it meets.
        """
        weight, _, geometry, transposed = layer
        KH, KW, C, F = weight.shape
        gweight, weight = self.pool.total(gweights), weight.reshape(KH * KW, C, F)
        with self.pool.single_threaded_blas:
            # the g that each tap meets
            taps = self.pool.total(coverage_of(geometry, transposed, totals.dtype).T @ totals)
            gbias, taps = taps[-1], taps[:-1]
            if rows is None:
                return None, gweight, gbias
            mean, scale, beta = rows
            g = gweight.reshape(weight.shape)
            if transposed:  # C are the channels of y, F those of x
                first = taps.reshape(-1) @ weight.reshape(-1, F)
                second = (ones(KH * KW * C, g.dtype) @ (weight * g).reshape(-1, F))[0]
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

    def chain(
        self, x: Array, layers: list[Layer], folded: list[tuple[Array, Array]], rows: list[Array | None]
    ) -> Array:
        """The layers, one after another, of x, with these weights and bias images; each is followed by a ReLU if it has
        rows, and the last one is normalised with its rows (3, C)."""
        plans = [
            (adjoint if layer.transposed else convolution)(weight, layer.geometry)
            for layer, (weight, _) in zip(layers, folded, strict=True)
        ]
        images, source = [], x  # for each layer how many are computed at a time
        for plan in plans:
            images.append(images_per_block(self, plan, source))
            source = np.empty((0, *plan.output_size, plan.channels), x.dtype)
        y = np.empty((len(x), *source.shape[1:]), x.dtype)
        wide_rows = None if rows[-1] is None else self.passes.per_channel(rows[-1], y)

        def task(_: int, block: slice) -> None:
            source, result = x[block], y[block]
            for i, plan in enumerate(plans):
                out = result
                if i < len(plans) - 1:
                    shape = len(source), *plan.output_size, plan.channels
                    out = self.pool.scratch(f"layer {i}", shape, x.dtype)
                for start in range(0, len(source), images[i]):
                    part = slice(start, start + images[i])
                    self._convolve(plan, source[part], folded[i][1], rows[i] is not None, out[part])
                source = out
            if wide_rows is not None:
                self.passes.normalise(result, wide_rows, result)

        self.pool.run(task, len(x), chain_block(min(images)), shards_apart=False)
        return y

    # ---- a block of images ----

    def _convolve(self, plan: Plan | ThinAdjoint, x: Array, bias_image: Array | None, relu: bool, out: Array) -> None:
        """out = what the plan computes from a block of images, + bias, and its ReLU if asked for."""
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
        if relu:
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
        """total += a @ b; the first time total = a @ b, because total is not initialised."""
        if first:
            np.matmul(a, b, out=total)
        else:
            total += np.matmul(a, b, out=self.pool.scratch("added", total.shape, total.dtype))

    def _columns(self, x: Array, window: Window) -> Array:
        """im2col of a block, as one copy of a window view. Where C is small the copy is transposed, because its
        contiguous runs are then longer."""
        n, H, W, C = x.shape
        (PH, PW), (KH, KW), (SH, SW), start = window
        if KH * KW == 0:  # pixels that no tap meets: the stride is larger than the kernel
            return np.empty((n * PH * PW, 0), x.dtype)
        top, left = max(0, -start[0]), max(0, -start[1])
        bottom, right = max(0, start[0] + (PH - 1) * SH + KH - H), max(0, start[1] + (PW - 1) * SW + KW - W)
        name = f"x {top} {left} {H} {W}"  # buffers of this name have the same border, which therefore stays zero
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


def chain_block(images: int) -> int:
    """Images that pass a chain together, if the largest layer takes so many at a time: four blocks, because small
    layers need more images."""
    return 4 * images


def images_per_block(layers: NumpyLayers, plan: Plan | ThinAdjoint, x: Array) -> int:
    """Images of x whose columns and outputs fill a block."""
    return max(1, layers.block_bytes // max(plan.numbers(x.shape[3]) * x.itemsize, 1))


def plain_bias(layer: Layer) -> Array:
    """The bias as an image (OH, OW, F)."""
    return np.broadcast_to(layer.bias, (*layer.output_size, len(layer.bias))).copy()


@lru_cache(maxsize=64)
def coverage_of(geometry: ConvGeometry, transposed: bool, dtype: Any) -> Array:
    """A matrix (pixels of the result, KH * KW + 1): 1 where a tap meets a pixel of the image, 0 where it meets padding.
    The last column is 1, for the bias."""
    rows, columns = (axis_coverage(geometry, axis, transposed).astype(dtype) for axis in (0, 1))
    covered = np.kron(rows, columns)
    return np.hstack([covered, np.ones((len(covered), 1), dtype)])
