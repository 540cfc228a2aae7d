"""Fast path, read only if curious: the kernels of ops.conv_chain.ConvChain, a chain of layers, each a convolution with
ReLU and batch normalisation.

Here a layer runs step by step; in faster backends it is one kernel. Each layer takes over the batch normalisation of
the previous one: it normalises its input, and gives the gradients of gamma and beta, too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from .catalogue import CatalogueBackend
from .geometry import ConvGeometry

Array = Any


class Layer(NamedTuple):
    """A convolution with a bias, or its transpose."""

    weight: Array
    bias: Array
    geometry: ConvGeometry
    transposed: bool

    @property
    def output_size(self) -> tuple[int, int]:
        """(H, W) of its result."""
        return self.geometry.input_size if self.transposed else self.geometry.output_size


class Norm(NamedTuple):
    """The parameters of a batch_norm."""

    gamma: Array
    beta: Array
    epsilon: float


class Statistics(NamedTuple):
    """What the gradient of a batch_norm needs."""

    gamma: Array
    mean: Array
    variance: Array
    epsilon: float


class Source(NamedTuple):
    """The input of a layer: x, the output of the previous layer, not normalised yet; rows (3, C) of mean, scale and
    beta, which normalise it; and previous, the batch_norm that they come from. Both are None for the first layer."""

    x: Array
    rows: Array | None = None
    previous: Statistics | None = None


class LayerOutput(NamedTuple):
    """What a layer gives: y, not normalised yet; and if a batch_norm follows, mean and variance of y, and the rows with
    which the next layer normalises it."""

    y: Array
    mean: Array | None = None
    variance: Array | None = None
    rows: Array | None = None


class LayerGradients(NamedTuple):
    """The gradients of a layer. gx is that of the normalised x. The last three belong to the batch_norm that normalised
    x; they are None if there was none."""

    gx: Array | None
    gweight: Array
    gbias: Array
    grad_rows: Array | None = None  # for the previous layer
    ggamma: Array | None = None
    gbeta: Array | None = None


class ChainBackend(CatalogueBackend):
    """All plain kernels: those of reference.py and catalogue.py, and those of a chain."""

    def norm_rows(self, gamma: Array, beta: Array, mean: Array, variance: Array, epsilon: float) -> Array:
        """What `normalise` takes: mean, scale = gamma / sqrt(variance + epsilon) and beta as rows (3, C)."""
        return self.xp.stack([mean, gamma / self.xp.sqrt(variance + epsilon), beta])

    def normalise(self, x: Array, rows: Array | None) -> Array:
        """(x - mean) * scale + beta with the rows (3, C); x where they are None."""
        return x if rows is None else (x - rows[0]) * rows[1] + rows[2]

    def batch_norm_sums(self, gy: Array, x: Array, mean: Array) -> Array:
        """The sums (2, C) of gy and of gy * (x - mean) over all axes but the last."""
        return self.xp.stack([self.channel_sum(gy), self.channel_sum(gy * (x - mean))])

    def norm_grad_rows(
        self, sums: Array, gamma: Array, mean: Array, variance: Array, epsilon: float, M: int
    ) -> tuple[Array, Array, Array]:
        """(rows (4, C), ggamma, gbeta) from the result of `batch_norm_sums` over M values per channel.

        rows is the argument of `norm_gradient`: mean, scale = gamma / sqrt(variance + epsilon), offset = gbeta / M and
        slope = ggamma / sqrt(variance + epsilon) / M.
        """
        inverse_deviation = 1 / self.xp.sqrt(variance + epsilon)
        gbeta, ggamma = self.xp.copy(sums[0]), sums[1] * inverse_deviation
        scale, slope = gamma * inverse_deviation, ggamma * inverse_deviation / M
        return self.xp.stack([mean, scale, gbeta / M, slope]), ggamma, gbeta

    def norm_gradient(self, gy: Array, x: Array, rows: Array) -> Array:
        """gx = scale * (gy - offset - (x - mean) * slope)."""
        mean, scale, offset, slope = rows
        return scale * (gy - offset - (x - mean) * slope)

    def conv_layer(self, source: Source, layer: Layer, norm: Norm | None) -> LayerOutput:
        """One layer, which normalises its input x first: y = conv2d(x) + bias (or conv2d_transpose); with norm, the
        batch_norm that follows, y = relu(conv2d(x) + bias)."""
        x = self.normalise(source.x, source.rows)
        if layer.transposed:
            y = self.add_bias(self.conv2d_grad_input(x, layer.weight, layer.geometry), layer.bias)
        else:
            y = self.conv2d(x, layer.weight, layer.bias, layer.geometry)
        if norm is None:
            return LayerOutput(y)
        y = self.relu(y)
        mean, variance = self.moments(y)
        return LayerOutput(y, mean, variance, self.norm_rows(norm.gamma, norm.beta, mean, variance, norm.epsilon))

    def conv_layer_grad(
        self, gy: Array, grad_rows: Array | None, y: Array, source: Source, layer: Layer, needs_gx: bool
    ) -> LayerGradients:
        """The gradients of conv_layer.

        grad_rows (4, F), made by `norm_grad_rows`, take gy back through the batch_norm and the ReLU after the
        convolution; None if the layer has neither.
        """
        if grad_rows is not None:
            gy = self.relu_grad(self.norm_gradient(gy, y, grad_rows), y)
        gx, z = None, self.normalise(source.x, source.rows)
        if layer.transposed:
            if needs_gx:
                gx = self.conv2d(gy, layer.weight, None, layer.geometry)
            gweight = self.conv2d_grad_weight(gy, z, layer.geometry)
        else:
            if needs_gx:
                gx = self.conv2d_grad_input(gy, layer.weight, layer.geometry)
            gweight = self.conv2d_grad_weight(z, gy, layer.geometry)
        gradients = gx, gweight, self.channel_sum(gy)
        if source.previous is None or gx is None:
            return LayerGradients(*gradients)
        x = source.x
        sums = self.batch_norm_sums(gx, x, source.previous.mean)
        return LayerGradients(*gradients, *self.norm_grad_rows(sums, *source.previous, x.size // x.shape[3]))

    def conv_chain_inference(self, x: Array, layers: list[Layer], rows: list[Array | None]) -> Array:
        """For each layer in turn normalise(relu(conv2d(x) + bias)), or transposed; without rows the convolution."""
        for layer, norm in zip(layers, rows, strict=True):
            x = self.conv_layer(Source(x), layer, None).y
            x = x if norm is None else self.normalise(self.relu(x), norm)
        return x


def without_gaps(kernel: Callable[..., Array]) -> Callable[..., Array]:
    """A faster kernel of convolutions without dilation and groups. For the others the plain kernel runs."""
    plain = getattr(ChainBackend, kernel.__name__)

    @functools.wraps(kernel)
    def chosen(self: ChainBackend, *arguments: Any) -> Array:
        geometry: ConvGeometry = arguments[-1]
        fits = geometry.groups == 1 and geometry.dilation == (1, 1)
        return (kernel if fits else plain)(self, *arguments)

    return chosen


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
        rows, ggamma, gbeta = self.norm_grad_rows(sums, gamma, mean, variance, epsilon, M)
        return self.norm_gradient(gy, x, rows), ggamma, gbeta
