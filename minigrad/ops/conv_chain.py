"""Fast path, read only if curious: several operations as one Function, for backends that keep the parts in cache."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..backend import Array
from ..backend.chain import ChainBackend, Layer, Norm, Source, Statistics
from ..backend.geometry import ConvGeometry, Pair, Size, conv_geometry, transposed_geometry
from ..tensor import Function
from .conv import check_conv
from .norm import check_norm


class Link(NamedTuple):
    """The options of one convolution of a chain, and of the batch_norm behind it."""

    stride: Pair
    padding: Pair | str
    transposed: bool
    output_size: Size | None
    epsilon: float

    def check(
        self, x_shape: tuple[int, ...], weight: Array, bias: Array, gamma: Array | None, beta: Array | None
    ) -> ConvGeometry:
        """The convolution's geometry, if everything fits."""
        check_conv("conv_chain", x_shape, weight, bias, channel_axis=3 if self.transposed else 2)
        if gamma is not None and beta is not None:
            check_norm((x_shape[0], *bias.shape), gamma, beta)
        sizes = x_shape[1:3], weight.shape[:2], self.stride, self.padding
        return transposed_geometry(*sizes, self.output_size) if self.transposed else conv_geometry(*sizes)


class _Step(NamedTuple):
    """What backward needs of one link."""

    source: Source
    layer: Layer
    y: Array
    statistics: Statistics | None  # of the batch_norm behind it


class ConvChain(Function):
    """Equivalent to batch_norm(relu(conv2d(x, weight, bias)), gamma, beta) for each link in turn, with conv2d_transpose
    where it says so. The last one may have no gamma and beta; it is then the convolution alone.

    The inputs are x, and weight, bias, gamma and beta of each link. After the call `moments` holds (mean, variance) of
    the links that have gamma. No batch_norm is computed by itself. Forward, the next link normalises what it reads (the
    CPU kernels put the normalisation into its weights). Backward, that link also takes the sums that the gradient of
    the normalisation needs.
    """

    k: ChainBackend
    optional = 2

    def __init__(self, links: list[Link]) -> None:
        self.links = links

    def forward(self, x: Array, *parameters: Array | None) -> Array:
        self.steps: list[_Step] = []
        source = Source(x)
        for i, link in enumerate(self.links):
            weight, bias, gamma, beta = parameters[4 * i : 4 * i + 4]
            geometry = link.check(source.x.shape, weight, bias, gamma, beta)
            layer = Layer(weight, bias, geometry, link.transposed)
            norm = None if gamma is None else Norm(gamma, beta, link.epsilon)
            y, mean, variance, rows = self.k.conv_layer(source, layer, norm)
            statistics = None if norm is None else Statistics(gamma, mean, variance, link.epsilon)
            self.steps.append(_Step(source, layer, y, statistics))
            source = Source(y, rows, statistics)
        self.moments = [(step.statistics.mean, step.statistics.variance) for step in self.steps if step.statistics]
        return self.k.normalise(source.x, source.rows)

    def backward(self, gy: Array) -> tuple[Array | None, ...]:
        gradients: list[Array | None] = []
        gx, grad_rows, ggamma, gbeta = gy, None, None, None
        last = self.steps[-1]
        if last.statistics is not None:
            sums = self.k.batch_norm_sums(gy, last.y, last.statistics.mean)
            grad_rows, ggamma, gbeta = self.k.norm_grad_rows(sums, *last.statistics, gy.size // gy.shape[-1])
        for i, (source, layer, y, _) in reversed(list(enumerate(self.steps))):
            behind = [ggamma, gbeta]
            gx, gweight, gbias, grad_rows, ggamma, gbeta = self.k.conv_layer_grad(
                gx, grad_rows, y, source, layer, needs_gx=i > 0 or self.needs[0]
            )
            gradients = [gweight, gbias, *behind, *gradients]
        return gx, *gradients


class ConvChainInference(Function):
    """ConvChain with given statistics: mean and variance follow beta among the inputs of each link. It has no gradient:
    it is for use where no graph is recorded."""

    k: ChainBackend
    optional = 4

    def __init__(self, links: list[Link]) -> None:
        self.links = links

    def forward(self, x: Array, *arrays: Any) -> Array:
        layers: list[Layer] = []
        rows: list[Array | None] = []
        shape = x.shape
        for i, link in enumerate(self.links):
            weight, bias, gamma, beta, mean, variance = arrays[6 * i : 6 * i + 6]
            layer = Layer(weight, bias, link.check(shape, weight, bias, gamma, beta), link.transposed)
            layers.append(layer)
            known = gamma is not None and variance is not None
            rows.append(self.k.norm_rows(gamma, beta, mean, variance, link.epsilon) if known else None)
            shape = len(x), *layer.output_size, len(bias)
        return self.k.conv_chain_inference(x, layers, rows)
