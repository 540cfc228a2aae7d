"""Fast path, read only if curious: several operations as one Function, for backends that keep the parts in cache."""

from __future__ import annotations

from ..backend import Array
from ..tensor import Function
from .conv import ConvGeometry, Pair, Size, check_conv, conv_geometry, transposed_geometry
from .norm import check_norm


class Block(Function):
    """The options of a block."""

    def __init__(
        self, stride: Pair, padding: Pair | str, epsilon: float, transposed: bool, output_size: Size | None = None
    ) -> None:
        self.stride, self.padding, self.epsilon = stride, padding, epsilon
        self.transposed, self.output_size = transposed, output_size

    def check(self, x: Array, weight: Array, bias: Array, gamma: Array, beta: Array) -> ConvGeometry:
        """The convolution's geometry, if everything fits."""
        check_conv("conv_block", x, weight, bias, channel_axis=3 if self.transposed else 2)
        check_norm((len(x), *bias.shape), gamma, beta)
        sizes = x.shape[1:3], weight.shape[:2], self.stride, self.padding
        return transposed_geometry(*sizes, self.output_size) if self.transposed else conv_geometry(*sizes)


class ConvBlock(Block):
    """Equivalent to batch_norm(relu(conv2d(x, weight, bias)), gamma, beta), or the same with conv2d_transpose.

    After the call `mean` and `variance` hold the batch's statistics.
    """

    def forward(self, x: Array, weight: Array, bias: Array, gamma: Array, beta: Array) -> Array:
        self.geometry = self.check(x, weight, bias, gamma, beta)
        self.x, self.weight, self.gamma = x, weight, gamma
        y, self.active, self.mean, self.variance = self.k.conv_block(
            x, weight, bias, gamma, beta, self.geometry, self.transposed, self.epsilon
        )
        return y

    def backward(self, gy: Array) -> tuple[Array | None, ...]:
        return self.k.conv_block_grad(
            gy,
            self.x,
            self.weight,
            self.active,
            self.gamma,
            self.mean,
            self.variance,
            self.geometry,
            self.transposed,
            self.epsilon,
            self.needs[0],
        )


class ConvBlockInference(Block):
    """Equivalent to batch_norm_inference(relu(conv2d(x, weight, bias)), gamma, beta, mean, variance), or the same with
    conv2d_transpose; without a gradient, for use where no graph is recorded."""

    def forward(
        self, x: Array, weight: Array, bias: Array, gamma: Array, beta: Array, mean: Array, variance: Array
    ) -> Array:
        geometry = self.check(x, weight, bias, gamma, beta)
        return self.k.conv_block_inference(
            x, weight, bias, gamma, beta, mean, variance, geometry, self.transposed, self.epsilon
        )
