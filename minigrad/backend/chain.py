"""Fast path, read only if curious: the kernels of ops.conv_chain.ConvChain, a chain of convolution, ReLU and batch
normalisation, here step by step; in faster backends a layer is one kernel.

The batch normalisation after a layer is applied where the next layer reads its input: `norm` (3, C) holds mean, scale
and beta of x as rows.
"""

from __future__ import annotations

from typing import Any

from .geometry import ConvGeometry
from .reference import Backend

Array = Any
Statistics = tuple[Array, Array, Array, float]  # gamma, mean, variance and epsilon of a batch_norm
LayerGradients = tuple[Array | None, Array, Array, Array | None, Array | None, Array | None]


class ChainBackend(Backend):
    """The plain kernels and, as plain, those of a chain."""

    def norm_rows(self, gamma: Array, beta: Array, mean: Array, variance: Array, epsilon: float) -> Array:
        """What `normalise` takes: mean, scale = gamma / sqrt(variance + epsilon) and beta as rows (3, C)."""
        return self.xp.stack([mean, gamma / self.xp.sqrt(variance + epsilon), beta])

    def normalise(self, x: Array, norm: Array | None) -> Array:
        """(x - mean) * scale + beta with the rows of norm (3, C); x where norm is None."""
        return x if norm is None else (x - norm[0]) * norm[1] + norm[2]

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


class FastBackend(ChainBackend):
    """Batch normalisation made of the chain's kernels, for backends that override these."""

    def batch_norm_apply(
        self, x: Array, gamma: Array, beta: Array, mean: Array, variance: Array, epsilon: float
    ) -> Array:
        """Faster because `normalise` is."""
        return self.normalise(x, self.norm_rows(gamma, beta, mean, variance, epsilon))

    def batch_norm_grad(
        self, gy: Array, x: Array, gamma: Array, mean: Array, variance: Array, epsilon: float
    ) -> tuple[Array, Array, Array]:
        """Faster because both sums take one pass, and gx another."""
        sums = self.batch_norm_sums(gy, x, mean)
        M = x.size // max(x.shape[-1], 1)
        through, ggamma, gbeta = self.through_rows(sums, gamma, mean, variance, epsilon, M)
        return self.norm_gradient(gy, x, through), ggamma, gbeta
