"""The layers: parameters and an operation of ops/.

Weights start as Glorot uniform and biases as zeros, as in Keras. `model.initialize(seed)` samples each by its name.
"""

from __future__ import annotations

import math
from typing import Any

from .. import init, ops
from ..backend import Array, backend_of, default_backend
from ..backend.geometry import Pair, Size
from ..ops.norm import BatchNorm as BatchNormFunction
from ..ops.shape import as_sizes
from ..tensor import Tensor
from .module import Module, Parameter


class Dense(Module):
    """y = x @ weight + bias, (..., inputs) -> (..., outputs), such as (N, inputs) or (N, length, inputs)."""

    def __init__(self, inputs: int, outputs: int, *, initializer: init.Initializer = init.glorot_uniform) -> None:
        self.weight = Parameter((inputs, outputs), initializer, (inputs, outputs))
        self.bias = Parameter((outputs,))

    def forward(self, x: Tensor) -> Tensor:
        return ops.dense(x, self.weight, self.bias)

    def multiply_adds(self, x_shape: tuple[int, ...], y_shape: tuple[int, ...]) -> int:
        return math.prod(x_shape[:-1]) * self.weight.size


class Conv2D(Module):
    """Convolution, (N, H, W, channels) -> (N, OH, OW, filters); see `ops.conv2d` (whose default padding is 0).

    Args:
        kernel_size, stride: ints or (height, width) pairs.
        padding: int, pair, "same" (output ceil(H / stride)) or "valid" (none).
        dilation: int or pair, the distance of the pixels that neighbours in the kernel read.
        groups: the number of parts of the channels, each with filters of its own; `channels`: a depthwise convolution.
    """

    def __init__(
        self,
        channels: int,
        filters: int,
        kernel_size: Pair,
        *,
        stride: Pair = 1,
        padding: Pair | str = "same",
        dilation: Pair = 1,
        groups: int = 1,
        initializer: init.Initializer = init.glorot_uniform,
    ) -> None:
        KH, KW = map(int, kernel_size if isinstance(kernel_size, tuple | list) else (kernel_size, kernel_size))
        channels, filters = int(channels), int(filters)
        _check_groups("Conv2D", channels, filters, groups)
        fans = KH * KW * channels // groups, KH * KW * filters
        self.weight = Parameter((KH, KW, channels // groups, filters), initializer, fans)
        self.bias = Parameter((filters,))
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    def forward(self, x: Tensor) -> Tensor:
        return ops.conv2d(x, self.weight, self.bias, **_options(self))

    def multiply_adds(self, x_shape: tuple[int, ...], y_shape: tuple[int, ...]) -> int:
        return math.prod(y_shape[:3]) * self.weight.size


class Conv2DTranspose(Module):
    """Transposed convolution, (N, OH, OW, channels) -> (N, H, W, filters); sizes as in `ops.conv2d_transpose`.

    weight is (KH, KW, filters, channels), as in the convolution in the other direction.

    Args:
        stride, padding, dilation, groups: those of the convolution that it transposes.
        output_size: (H, W); None: OH * stride for "same".
    """

    def __init__(
        self,
        channels: int,
        filters: int,
        kernel_size: Pair,
        *,
        stride: Pair = 1,
        padding: Pair | str = "same",
        output_size: Size | None = None,
        dilation: Pair = 1,
        groups: int = 1,
        initializer: init.Initializer = init.glorot_uniform,
    ) -> None:
        KH, KW = map(int, kernel_size if isinstance(kernel_size, tuple | list) else (kernel_size, kernel_size))
        channels, filters = int(channels), int(filters)
        _check_groups("Conv2DTranspose", channels, filters, groups)
        fans = KH * KW * channels // groups, KH * KW * filters
        self.weight = Parameter((KH, KW, filters // groups, channels), initializer, fans)
        self.bias = Parameter((filters,))
        self.stride, self.padding, self.output_size = stride, padding, output_size
        self.dilation, self.groups = dilation, groups

    def forward(self, x: Tensor) -> Tensor:
        return ops.conv2d_transpose(x, self.weight, self.bias, output_size=self.output_size, **_options(self))

    def multiply_adds(self, x_shape: tuple[int, ...], y_shape: tuple[int, ...]) -> int:
        return math.prod(x_shape[:3]) * self.weight.size


class BatchNorm(Module):
    """Batch normalisation per channel (last axis); see `ops.batch_norm`.

    In training mode it uses the statistics of the batch and updates the moving ones:
    moving = momentum * moving + (1 - momentum) * batch, with the biased variance, as in Keras. (PyTorch's momentum is 1
    minus this one, and its moving variance is the unbiased one.)
    In evaluation mode (`eval()`, or inside `minigrad.evaluation`), or if gamma and beta are both frozen
    (`requires_grad = False`), it uses the moving statistics and does not change them.
    """

    def __init__(self, channels: int, *, momentum: float = 0.99, epsilon: float = 1e-3) -> None:
        k = default_backend()
        self.gamma = Parameter((channels,), init.ones)
        self.beta = Parameter((channels,))
        self.moving_mean = Tensor(k.xp.zeros(channels, dtype="float32"))
        self.moving_variance = Tensor(k.xp.ones(channels, dtype="float32"))
        self.momentum, self.epsilon = float(momentum), float(epsilon)

    @property
    def uses_batch(self) -> bool:
        """Whether a call uses the statistics of the batch and updates the moving ones."""
        return self.training and (self.gamma.requires_grad or self.beta.requires_grad)

    def forward(self, x: Tensor) -> Tensor:
        if not self.uses_batch:
            mean, variance = self.moving_mean.data, self.moving_variance.data
            return ops.batch_norm_inference(x, self.gamma, self.beta, mean, variance, epsilon=self.epsilon)
        function = BatchNormFunction(self.epsilon)
        y = function(x, self.gamma, self.beta)
        self.update_statistics(function.mean, function.variance)
        return y

    def update_statistics(self, mean: Array, variance: Array) -> None:
        """Move the moving statistics towards those of a batch; for `forward`, and for nn.conv_chain.ConvChain, which
        does the work of this layer in the models."""
        k = backend_of(mean)
        k.batch_norm_update_(self.moving_mean.data, self.moving_variance.data, mean, variance, self.momentum)
        self.moving_mean.mark_written()
        self.moving_variance.mark_written()


class Flatten(Module):
    """(N, ...) -> (N, D)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], math.prod(x.shape[1:]))  # -1 would be ambiguous for N = 0


class Reshape(Module):
    """(N, ...) -> (N, *shape), given as ints or one tuple."""

    def __init__(self, *shape: int | tuple[int, ...]) -> None:
        self.shape = as_sizes(shape)

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], *self.shape)


class ReLU(Module):
    """max(x, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.relu(x)


def _options(conv: Conv2D | Conv2DTranspose) -> dict[str, Any]:
    return {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation, "groups": conv.groups}


def _check_groups(name: str, channels: int, filters: int, groups: int) -> None:
    if groups < 1 or channels % groups or filters % groups:
        raise ValueError(f"{name}: {groups} groups do not divide {channels} channels and {filters} filters")
