"""Every kernel in plain code: the specification that all faster kernels are compared with.

A kernel takes arrays and returns new arrays; it knows nothing of tensors or graphs. A trailing underscore
means that it writes into its first arguments. `xp` is NumPy or CuPy: the same text runs on both.

Images are NHWC: (N batch, H height, W width, C channels). A convolution maps (N, H, W, C) to (N, OH, OW, F)
with weight (KH, KW, C, F).

Read next: ../random.py and ../serialize.py, then ../../autoencoders/conv_autoencoder.py, the models made of all this.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from .pool import free_memory

if TYPE_CHECKING:
    from ..ops.conv import ConvGeometry

Array = Any
Statistics = tuple[Array, Array, Array, float]  # gamma, mean, variance and epsilon of a batch_norm
LayerGradients = tuple[Array | None, Array, Array, Array | None, Array | None, Array | None]


class Backend:
    """The kernels in plain code on one array library.

    Args:
        xp: the module numpy or cupy.
    """

    kernels = "plain"
    threads = 1
    precision = "fp32"  # of convolutions of float32 arrays
    reason = ""  # why `use` chose this backend

    def __init__(self, xp: Any) -> None:
        self.xp = xp
        self.on_host = xp.__name__ == "numpy"

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles hold what was chosen, not the library and the threads."""
        from . import again

        return again, ("cpu" if self.on_host else "cuda", self.kernels, self.threads, self.precision)

    # ---- devices ----

    def device_of(self, array: Array) -> str:
        """Where the array lives: `"cpu"`, `"cuda:0"`, ..."""
        return "cpu" if self.on_host else f"cuda:{array.device.id}"

    def from_host(self, array: Array) -> Array:
        """A NumPy array as an array of this backend."""
        return array if self.on_host else self.xp.asarray(array)

    def to_host(self, array: Array) -> Array:
        """An array of this backend as a NumPy array. Waits for the device."""
        return array if self.on_host else array.get()

    def describe(self) -> str:
        """Device, kernels (and why these) and threads in one line."""
        device = "cpu" if self.on_host else f"cuda:{self.xp.cuda.Device().id}"
        return f"device {device}, kernels {self.kernels} ({self.reason}), threads {self.threads}"

    def prepare(self, dtype: Any) -> None:
        """Do now what the kernels for a dtype need once, such as being compiled: these need nothing."""

    def free_memory(self) -> int | None:
        """Bytes that new arrays may take on the current device; None where nobody knows."""
        if self.on_host:
            return free_memory()
        pool, (free, _) = self.xp.get_default_memory_pool(), self.xp.cuda.runtime.memGetInfo()
        free += pool.free_bytes()
        limit = pool.get_limit()
        return min(free, limit - pool.used_bytes()) if limit else free

    def limit_memory(self, size: int) -> None:
        """Let the arrays of the current device take no more than so many bytes; on the host this does nothing."""
        if not self.on_host:
            self.xp.get_default_memory_pool().set_limit(size=size)

    def session(self) -> AbstractContextManager[None]:
        """A context for many kernel calls in a row: the CPU's fast kernels set BLAS to one thread once for all of them
        and not in each. The results are the same without it."""
        return nullcontext()

    def capture(self, step: Callable[..., Array]) -> Callable[..., Array]:
        """The step, a function of arrays only, as something to be called again and again: here the step itself."""
        return step

    # ---- images and gradients ----

    def unit_range(self, images: Array, dtype: Any, rows: Array | None = None) -> Array:
        """The images, or those whose numbers are in rows, as floats: uint8 is divided by 255."""
        if rows is not None:
            images = images[rows]
        return images.astype(dtype) / 255 if images.dtype == "uint8" else images.astype(dtype)

    def add_all_(self, totals: list[Array], values: list[Array]) -> None:
        """total += value for each pair: the gradients of all parameters."""
        for total, value in zip(totals, values, strict=True):
            total += value

    # ---- products ----

    def matmul(self, a: Array, b: Array) -> Array:
        """a @ b of matrices, or of stacks of them."""
        return self._for_blas(a) @ self._for_blas(b)

    def _for_blas(self, x: Array) -> Array:
        """x; or a copy, where neither rows nor columns are contiguous: of those NumPy adds products one after another,
        which loses digits as in `sum`."""
        (M, K), (row, column), size = x.shape[-2:], x.strides[-2:], x.itemsize
        good = (column == size and row >= K * size) or (row == size and column >= M * size)
        return x if good else x.copy()

    # ---- convolution: three kernels serve Conv2D, Conv2DTranspose and the gradients of both ----

    def conv2d(self, x: Array, weight: Array, bias: Array | None, geometry: ConvGeometry) -> Array:
        """y[n, p, q, f] = bias[f] + sum over i, j, c of padded_x[n, p*SH + i, q*SW + j, c] * weight[i, j, c, f]."""
        F = weight.shape[3]
        columns = self.im2col(x, geometry)  # (N*OH*OW, KH*KW*C)
        y = self.matmul(columns, weight.reshape(-1, F))  # (N*OH*OW, F)
        if bias is not None:
            y += bias
        return y.reshape(x.shape[0], *geometry.output_size, F)

    def conv2d_grad_input(self, gy: Array, weight: Array, geometry: ConvGeometry) -> Array:
        """The adjoint of conv2d in x: gx with <conv2d(x, weight), gy> = <x, gx> for every x."""
        F = weight.shape[3]
        gcolumns = self.matmul(gy.reshape(-1, F), weight.reshape(-1, F).T)  # (N*OH*OW, KH*KW*C)
        return self.col2im(gcolumns, gy.shape[0], weight.shape[2], geometry)

    def conv2d_grad_weight(self, x: Array, gy: Array, geometry: ConvGeometry) -> Array:
        """The adjoint of conv2d in weight: gweight with <conv2d(x, weight), gy> = <weight, gweight>."""
        C, F = x.shape[3], gy.shape[3]
        columns = self.im2col(x, geometry)  # (N*OH*OW, KH*KW*C)
        return self.matmul(columns.T, gy.reshape(-1, F)).reshape(*geometry.kernel_size, C, F)

    def im2col(self, x: Array, geometry: ConvGeometry) -> Array:
        """The input patch under each output pixel as one row: (N, H, W, C) -> (N*OH*OW, KH*KW*C)."""
        N, H, W, C = x.shape
        (KH, KW), (OH, OW) = geometry.kernel_size, geometry.output_size
        (top, bottom), (left, right) = geometry.pads
        padded = self.xp.zeros((N, top + H + bottom, left + W + right, C), dtype=x.dtype)
        padded[:, top : top + H, left : left + W] = x
        columns = self.xp.empty((N, OH, OW, KH, KW, C), dtype=x.dtype)
        for i in range(KH):
            for j in range(KW):
                columns[:, :, :, i, j] = padded[:, geometry.rows(i), geometry.columns(j)]  # (N, OH, OW, C)
        return columns.reshape(N * OH * OW, KH * KW * C)

    def col2im(self, columns: Array, N: int, C: int, geometry: ConvGeometry) -> Array:
        """The adjoint of im2col: every row is added back onto its patch. (N*OH*OW, KH*KW*C) -> (N, H, W, C)."""
        (H, W), (KH, KW), (OH, OW) = geometry.input_size, geometry.kernel_size, geometry.output_size
        (top, bottom), (left, right) = geometry.pads
        columns = columns.reshape(N, OH, OW, KH, KW, C)
        padded = self.xp.zeros((N, top + H + bottom, left + W + right, C), dtype=columns.dtype)
        for i in range(KH):
            for j in range(KW):
                padded[:, geometry.rows(i), geometry.columns(j)] += columns[:, :, :, i, j]
        return padded[:, top : top + H, left : left + W].copy()

    # ---- elementwise and sums ----

    def sum(self, x: Array, axes: tuple[int, ...] | None = None, keepdims: bool = False) -> Array:
        """Sum over axes; None: over all.

        Numbers that follow each other in memory are added in pairs of pairs, and a few in any way. All others are added
        one after another, which in float32 loses digits with their count (up to half of the sum), so float64 adds them.
        """
        axes = tuple(range(x.ndim)) if axes is None else axes
        kept = [axis for axis, size in enumerate(x.shape) if axis not in axes and size > 1]
        one_run = x.flags.c_contiguous and max(kept, default=-1) < min(axes, default=0)
        few = math.prod(x.shape[axis] for axis in axes) <= 8
        total = x.sum(axis=axes, dtype=x.dtype if one_run or few else "float64", keepdims=keepdims)
        return total.astype(x.dtype, copy=False)

    def relu(self, x: Array) -> Array:
        """max(x, 0)."""
        return self.xp.maximum(x, 0)

    def relu_grad(self, gy: Array, y: Array) -> Array:
        """gy where the output y is positive, else 0. The gradient at 0 is 0, as in PyTorch."""
        return self.xp.where(y > 0, gy, 0)

    def sigmoid(self, x: Array) -> Array:
        """1 / (1 + exp(-x)) without overflow: exp is only taken of numbers <= 0."""
        e = self.xp.exp(-self.xp.abs(x))
        return self.xp.where(x >= 0, 1, e) / (1 + e)

    def softplus(self, x: Array) -> Array:
        """log(1 + exp(x)) without overflow and exact for very negative x."""
        return self.xp.maximum(x, 0) + self.xp.log1p(self.xp.exp(-self.xp.abs(x)))

    def add_bias(self, x: Array, bias: Array) -> Array:
        """x + bias: (..., C) + (C,)."""
        return x + bias

    def channel_sum(self, x: Array) -> Array:
        """Sum over all axes but the last, accumulated in float64: (..., C) -> (C,)."""
        return x.reshape(-1, x.shape[-1]).sum(axis=0, dtype="float64").astype(x.dtype)

    def bernoulli_nll(self, logits: Array, targets: Array) -> Array:
        """Sum over everything of -log p(target | logit) = softplus(logit) - logit * target, in nats.

        With softplus(logit) = max(logit, 0) + log(1 + exp(-|logit|)): the first part cancels with logit * target
        exactly, so that the second keeps its digits where the logit is large and right.
        """
        xp = self.xp
        return (xp.maximum(logits, 0) - logits * targets + xp.log1p(xp.exp(-xp.abs(logits)))).sum()

    # ---- batch normalisation over all axes but the last ----

    def batch_norm(self, x: Array, gamma: Array, beta: Array, epsilon: float) -> tuple[Array, Array, Array]:
        """(y, mean, variance): y = (x - mean) / sqrt(variance + epsilon) * gamma + beta, with the batch's statistics.

        The sums run in float64 and the variance is that of the deviations, because E[x^2] - E[x]^2 loses all
        digits in float32 when the mean is large against the deviation.
        """
        mean, variance = self.moments(x)
        return self.batch_norm_apply(x, gamma, beta, mean, variance, epsilon), mean, variance

    def moments(self, x: Array) -> tuple[Array, Array]:
        """(mean, biased variance) over all axes but the last."""
        rows = x.reshape(-1, x.shape[-1])  # (M, C)
        mean = rows.mean(axis=0, dtype="float64")
        variance = ((rows - mean) ** 2).mean(axis=0)
        return mean.astype(x.dtype), variance.astype(x.dtype)

    def batch_norm_apply(
        self, x: Array, gamma: Array, beta: Array, mean: Array, variance: Array, epsilon: float
    ) -> Array:
        """y = (x - mean) * (gamma / sqrt(variance + epsilon)) + beta with given statistics."""
        return self.normalise(x, self.norm_rows(gamma, beta, mean, variance, epsilon))

    def norm_rows(self, gamma: Array, beta: Array, mean: Array, variance: Array, epsilon: float) -> Array:
        """What `normalise` takes: mean, scale = gamma / sqrt(variance + epsilon) and beta as rows (3, C)."""
        return self.xp.stack([mean, gamma / self.xp.sqrt(variance + epsilon), beta])

    def normalise(self, x: Array, norm: Array | None) -> Array:
        """(x - mean) * scale + beta with the rows of norm (3, C); x where norm is None."""
        return x if norm is None else (x - norm[0]) * norm[1] + norm[2]

    def batch_norm_grad(
        self, gy: Array, x: Array, gamma: Array, mean: Array, variance: Array, epsilon: float
    ) -> tuple[Array, Array, Array]:
        """(gx, ggamma, gbeta) of batch_norm, where mean and variance depend on x too.

        With z = (x - mean) / sqrt(variance + epsilon) and M values a channel:
        gx = gamma / sqrt(variance + epsilon) * (gy - gbeta / M - z * ggamma / M).
        """
        M = x.size // max(x.shape[-1], 1)
        sums = self.batch_norm_sums(gy, x, mean)
        through, ggamma, gbeta = self.through_rows(sums, gamma, mean, variance, epsilon, M)
        return self.norm_gradient(gy, x, through), ggamma, gbeta

    def batch_norm_sums(self, gy: Array, x: Array, mean: Array) -> Array:
        """The sums (2, C) of gy and of gy * (x - mean) over all axes but the last."""
        return self.xp.stack([self.channel_sum(gy), self.channel_sum(gy * (x - mean))])

    def through_rows(
        self, sums: Array, gamma: Array, mean: Array, variance: Array, epsilon: float, M: int
    ) -> tuple[Array, Array, Array]:
        """(through (4, C), ggamma, gbeta) from batch_norm_sums of M values a channel: `through` is what `norm_gradient`
        takes, the rows mean, scale = gamma / sqrt(variance + epsilon), offset = gbeta / M and slope = ggamma /
        sqrt(variance + epsilon) / M."""
        inverse_deviation = 1 / self.xp.sqrt(variance + epsilon)
        gbeta, ggamma = sums[0].copy(), sums[1] * inverse_deviation
        scale, slope = gamma * inverse_deviation, ggamma * inverse_deviation / M
        return self.xp.stack([mean, scale, gbeta / M, slope]), ggamma, gbeta

    def norm_gradient(self, gy: Array, x: Array, through: Array) -> Array:
        """gx = scale * (gy - offset - (x - mean) * slope)."""
        mean, scale, offset, slope = through
        return scale * (gy - offset - (x - mean) * slope)

    def batch_norm_update_(
        self, moving_mean: Array, moving_variance: Array, mean: Array, variance: Array, momentum: float
    ) -> None:
        """moving = momentum * moving + (1 - momentum) * batch, in place."""
        moving_mean[...] = momentum * moving_mean + (1 - momentum) * mean
        moving_variance[...] = momentum * moving_variance + (1 - momentum) * variance

    # ---- one layer of ops.fused.ConvChain; here its steps one by one, in faster backends one kernel ----
    # The batch_norm behind a layer is applied where the next one reads it: `norm` (3, C) is mean, scale and beta of x.

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
        """(y, mean, variance, norm): y = conv2d(x) + bias, or transposed, of the normalised x. With `after`, the gamma,
        beta and epsilon of the batch_norm behind convolution and ReLU, y is the ReLU of the convolution, not yet
        normalised, mean and variance are those of y, and norm is what the next layer normalises it with."""
        x = self.normalise(x, norm)
        if transposed:
            y = self.add_bias(self.conv2d_grad_input(x, weight, geometry), bias)
        else:
            y = self.conv2d(x, weight, bias, geometry)
        if after is None:
            return y, None, None, None
        y, (gamma, beta, epsilon) = self.relu(y), after
        mean, variance = self.moments(y)
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
        """(gx, gweight, gbias, the next through, ggamma, gbeta) of conv_layer, where gx belongs to the normalised x.

        `through` (4, F), of `through_rows`, leads back through the batch_norm and the ReLU that follow y. `before` are
        gamma, mean, variance and epsilon of the batch_norm that normalised x; the last three results belong to it.
        """
        if through is not None:
            gy = self.relu_grad(self.norm_gradient(gy, y, through), y)
        gx, z = None, self.normalise(x, norm)
        if transposed:
            if needs_gx:
                gx = self.conv2d(gy, weight, None, geometry)
            gweight = self.conv2d_grad_weight(gy, z, geometry)
        else:
            if needs_gx:
                gx = self.conv2d_grad_input(gy, weight, geometry)
            gweight = self.conv2d_grad_weight(z, gy, geometry)
        gradients = gx, gweight, self.channel_sum(gy)
        if before is None or gx is None:
            return *gradients, None, None, None
        sums = self.batch_norm_sums(gx, x, before[1])
        return *gradients, *self.through_rows(sums, *before, x.size // x.shape[3])

    def conv_chain_inference(
        self,
        x: Array,
        weights: list[Array],
        biases: list[Array],
        norms: list[Array | None],
        geometries: list[ConvGeometry],
        transposed: list[bool],
    ) -> Array:
        """For each layer in turn normalise(relu(conv2d(x) + bias)), or transposed; without norm the convolution."""
        for weight, bias, norm, geometry, back in zip(weights, biases, norms, geometries, transposed, strict=True):
            x = self.conv_layer(x, None, weight, bias, geometry, back, None)[0]
            x = x if norm is None else self.normalise(self.relu(x), norm)
        return x

    # ---- optimiser steps over flat arrays; scalars is a row of numbers that change from step to step ----

    def sgd_step_(
        self, parameters: Array, velocity: Array, gradients: Array, scalars: Array, momentum: float, nesterov: bool
    ) -> None:
        """velocity = momentum * velocity + g; parameters -= rate * (velocity, or g + momentum * velocity: Nesterov).

        scalars: (rate,).
        """
        velocity[...] = momentum * velocity + gradients
        parameters -= scalars[0:1] * (gradients + momentum * velocity if nesterov else velocity)

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
        """Algorithm 1 of the Adam paper; weight_decay is the decoupled one of AdamW.

        scalars: (rate, 1 / (1 - beta_1^t), 1 / (1 - beta_2^t)).
        """
        # slices, because an index would give NumPy a scalar of its own kind
        rate, correction_1, correction_2 = scalars[0:1], scalars[1:2], scalars[2:3]
        mean[...] = beta_1 * mean + (1 - beta_1) * gradients
        variance[...] = beta_2 * variance + (1 - beta_2) * gradients * gradients
        update = mean * correction_1 / (self.xp.sqrt(variance * correction_2) + epsilon)
        if weight_decay:
            update += weight_decay * parameters
        parameters -= rate * update
