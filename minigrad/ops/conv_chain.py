"""Fast path, read only if curious: several operations as one Function, for backends that keep the parts in cache."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..backend import Array
from ..backend.chain import ChainBackend, Statistics
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

    x: Array
    norm: Array | None
    weight: Array
    geometry: ConvGeometry
    y: Array
    statistics: Statistics | None  # of the batch_norm behind it


class ConvChain(Function):
    """Equivalent to batch_norm(relu(conv2d(x, weight, bias)), gamma, beta) for each link in turn, with conv2d_transpose
    where it says so. The last one may have no gamma and beta; it is then the convolution alone.

    The inputs are x, and weight, bias, gamma and beta of each link. After the call `moments` holds (mean, variance) of
    the links that have gamma. No batch_norm is computed by itself: the next link applies it while it reads, and takes
    the sums that its gradient needs while it writes.
    """

    k: ChainBackend
    optional = 2

    def __init__(self, links: list[Link]) -> None:
        self.links = links

    def forward(self, x: Array, *parameters: Array | None) -> Array:
        self.steps: list[_Step] = []
        norm = None
        for i, link in enumerate(self.links):
            weight, bias, gamma, beta = parameters[4 * i : 4 * i + 4]
            geometry = link.check(x.shape, weight, bias, gamma, beta)
            after = None if gamma is None else (gamma, beta, link.epsilon)
            y, mean, variance, next_norm = self.k.conv_layer(x, norm, weight, bias, geometry, link.transposed, after)
            statistics = None if after is None else (gamma, mean, variance, link.epsilon)
            self.steps.append(_Step(x, norm, weight, geometry, y, statistics))
            x, norm = y, next_norm
        self.moments = [step.statistics[1:3] for step in self.steps if step.statistics is not None]
        return self.k.normalise(x, norm)

    def backward(self, gy: Array) -> tuple[Array | None, ...]:
        gradients: list[Array | None] = []
        gx, through, ggamma, gbeta = gy, None, None, None
        last = self.steps[-1]
        if last.statistics is not None:
            sums = self.k.batch_norm_sums(gy, last.y, last.statistics[1])
            through, ggamma, gbeta = self.k.through_rows(sums, *last.statistics, gy.size // gy.shape[-1])
        for i, (link, step) in reversed(list(enumerate(zip(self.links, self.steps, strict=True)))):
            behind = [ggamma, gbeta]
            gx, gweight, gbias, through, ggamma, gbeta = self.k.conv_layer_grad(
                gx,
                through,
                step.y,
                step.x,
                step.norm,
                self.steps[i - 1].statistics if i else None,
                step.weight,
                step.geometry,
                link.transposed,
                needs_gx=i > 0 or self.needs[0],
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
        layers: list[tuple[Any, ...]] = []
        shape = x.shape
        for i, link in enumerate(self.links):
            weight, bias, gamma, beta, mean, variance = arrays[6 * i : 6 * i + 6]
            geometry = link.check(shape, weight, bias, gamma, beta)
            norm = None
            if gamma is not None and variance is not None:
                norm = self.k.norm_rows(gamma, beta, mean, variance, link.epsilon)
            layers.append((weight, bias, norm, geometry, link.transposed))
            size = geometry.input_size if link.transposed else geometry.output_size
            shape = len(x), *size, len(bias)
        return self.k.conv_chain_inference(x, *map(list, zip(*layers, strict=True)))
