"""The kernels of the two models in plain code: the specification that all faster kernels are compared with.

A kernel takes arrays and returns new arrays; it knows nothing of tensors or graphs. A trailing underscore means that it
writes into its first arguments. `xp` is NumPy or CuPy: the same code runs on both.

Images are NHWC: (N batch, H height, W width, C channels). A convolution maps (N, H, W, C) to (N, OH, OW, F)
with weight (KH, KW, C, F).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from .device import Device
from .geometry import ConvGeometry

Array = Any


class AdamOptions(NamedTuple):
    """What stays the same in all steps of Adam."""

    beta_1: float
    beta_2: float
    epsilon: float
    weight_decay: float  # 0: none


class Backend(Device):
    """The kernels in plain code on one array library, NumPy or CuPy: `self.xp`."""

    # ---- images and gradients ----

    def unit_range(self, images: Array, dtype: Any, rows: Array | None = None) -> Array:
        """The images, or only those with the indices in `rows`, as floats; uint8 is divided by 255."""
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

    def dense_grad_weight(self, x: Array, gy: Array) -> Array:
        """The gradient of x @ weight with respect to weight, x.T @ gy: a sum over the rows."""
        return self.matmul(x.T, gy)

    def _for_blas(self, x: Array) -> Array:
        """x, or a copy if neither its rows nor its columns are contiguous: then NumPy would add the products one after
        another, which loses digits as in `sum`."""
        (M, K), (row, column), size = x.shape[-2:], x.strides[-2:], x.itemsize
        good = (column == size and row >= K * size) or (row == size and column >= M * size)
        return x if good else x.copy()

    # ---- convolution: three kernels serve Conv2D, Conv2DTranspose and the gradients of both ----

    def conv2d(self, x: Array, weight: Array, bias: Array | None, geometry: ConvGeometry) -> Array:
        """y[n, p, q, f] = bias[f] + sum over i, j, c of padded_x[n, p*SH + i*DH, q*SW + j*DW, c] * weight[i, j, c, f].

        (DH, DW) is the dilation, usually (1, 1). catalogue.py adds the convolutions with groups.
        """
        F = weight.shape[3]
        columns = self.im2col(x, geometry)  # (N*OH*OW, KH*KW*C)
        y = self.matmul(columns, weight.reshape(-1, F))  # (N*OH*OW, F)
        if bias is not None:
            y += bias
        return y.reshape(x.shape[0], *geometry.output_size, F)

    def conv2d_grad_input(self, gy: Array, weight: Array, geometry: ConvGeometry) -> Array:
        """The gradient of conv2d with respect to x.

        y = im2col(x) @ W is linear in x, so the gradient applies the transposes in reverse order. First gy @ W.T is the
        gradient of the columns. Then col2im, the transpose of im2col: im2col copies pixels into patches, and col2im
        adds each patch back onto its pixels. A one-dimensional example with the kernel (a, b): y[0] = a x[0] + b x[1]
        and y[1] = a x[1] + b x[2], so gx = (a gy[0], b gy[0] + a gy[1], b gy[1]).

        It is also the adjoint: <conv2d(x, weight), gy> = <x, gx> for every x.
        """
        F = weight.shape[3]
        gcolumns = self.matmul(gy.reshape(-1, F), weight.reshape(-1, F).T)  # (N*OH*OW, KH*KW*C)
        return self.col2im(gcolumns, gy.shape[0], weight.shape[2], geometry)

    def conv2d_grad_weight(self, x: Array, gy: Array, geometry: ConvGeometry) -> Array:
        """The gradient of conv2d with respect to weight: y = im2col(x) @ W gives gW = im2col(x).T @ gy."""
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
        """The adjoint of im2col: every row is added back onto its patch. (N*OH*OW, KH*KW*C) -> (N, H, W, C).

        One tap adds to different pixels, so `+=` on the slice loses nothing; only the taps of different turns overlap.
        """
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

        NumPy adds numbers that are adjacent in memory pairwise, and others one after another. In float32 the second way
        loses digits: with many numbers, up to half of the sum. So it adds in float64 here, unless the numbers are few.
        """
        axes = tuple(range(x.ndim)) if axes is None else axes
        kept = [axis for axis, size in enumerate(x.shape) if axis not in axes and size > 1]
        one_run = x.flags.c_contiguous and max(kept, default=-1) < min(axes, default=0)
        dtype = x.dtype if one_run or math.prod(x.shape[axis] for axis in axes) <= 8 else "float64"
        return x.sum(axis=axes, dtype=dtype, keepdims=keepdims).astype(x.dtype, copy=False)

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

        softplus(logit) = max(logit, 0) + log(1 + exp(-|logit|)). The first part cancels exactly with logit * target, so
        the second keeps its digits if the logit is large and right.
        """
        xp = self.xp
        return (xp.maximum(logits, 0) - logits * targets + xp.log1p(xp.exp(-xp.abs(logits)))).sum()

    # ---- batch normalisation over all axes but the last ----

    def batch_norm(self, x: Array, gamma: Array, beta: Array, epsilon: float) -> tuple[Array, Array, Array]:
        """(y, mean, variance): y = (x - mean) / sqrt(variance + epsilon) * gamma + beta, with the batch's statistics.

        The sums run in float64, and the variance is the mean of the squared deviations, because E[x^2] - E[x]^2 loses
        all digits in float32 if the mean is much larger than the deviation.
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
        return (x - mean) * (gamma / self.xp.sqrt(variance + epsilon)) + beta

    def batch_norm_grad(
        self, gy: Array, x: Array, gamma: Array, mean: Array, variance: Array, epsilon: float
    ) -> tuple[Array, Array, Array]:
        """(gx, ggamma, gbeta) of batch_norm, where mean and variance depend on x, too.

        Per channel let s = sqrt(variance + epsilon), z = (x - mean) / s, y = gamma * z + beta, and M the number of
        values. Then gbeta = sum gy and ggamma = sum gy * z, and the gradient of z is gz = gamma * gy.

        If x_i grows by a small d, the loss changes in three ways:
        - Its own z_i grows by d / s: gz_i / s.
        - The mean grows by d / M, and with it every z_j by -d / (M s): -sum(gz) / (M s). This leaves the variance
          alone, to first order, because the deviations sum to 0.
        - The variance grows by 2 (x_i - mean) d / M = 2 s z_i d / M. Since dz_j / dvariance = -z_j / (2 s^2), every z_j
          grows by -z_i z_j d / (M s): -z_i sum(gz * z) / (M s).

        The sum of the three is gx = gamma / s * (gy - gbeta / M - z * ggamma / M). With given statistics, which do not
        depend on x, only the first term is left.
        """
        M = x.size // max(x.shape[-1], 1)
        inverse_deviation = 1 / self.xp.sqrt(variance + epsilon)
        gbeta = self.channel_sum(gy)
        ggamma = self.channel_sum(gy * (x - mean)) * inverse_deviation
        z_term = (x - mean) * (ggamma * inverse_deviation / M)  # z * ggamma / M
        gx = gamma * inverse_deviation * (gy - gbeta / M - z_term)
        return gx, ggamma, gbeta

    def batch_norm_update_(
        self, moving_mean: Array, moving_variance: Array, mean: Array, variance: Array, momentum: float
    ) -> None:
        """moving = momentum * moving + (1 - momentum) * batch, in place."""
        moving_mean[...] = momentum * moving_mean + (1 - momentum) * mean
        moving_variance[...] = momentum * moving_variance + (1 - momentum) * variance

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
        first_moment: Array,
        second_moment: Array,
        gradients: Array,
        scalars: Array,
        options: AdamOptions,
    ) -> None:
        """Algorithm 1 of the Adam paper; options.weight_decay is the decoupled one of AdamW.

        scalars: (rate, 1 / (1 - beta_1^t), 1 / (1 - beta_2^t)).
        """
        # slices, because an index would give NumPy a scalar of its own kind
        rate, correction_1, correction_2 = scalars[0:1], scalars[1:2], scalars[2:3]
        beta_1, beta_2, epsilon, weight_decay = options
        first_moment[...] = beta_1 * first_moment + (1 - beta_1) * gradients
        second_moment[...] = beta_2 * second_moment + (1 - beta_2) * gradients * gradients
        update = first_moment * correction_1 / (self.xp.sqrt(second_moment * correction_2) + epsilon)
        if weight_decay:
            update += weight_decay * parameters
        parameters -= rate * update
