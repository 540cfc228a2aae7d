"""Layers of the operations in ops/catalogue/. The models need none of them."""

from __future__ import annotations

import itertools
from typing import Any

from .. import init, ops
from ..backend import Array, backend_of, default_backend
from ..backend.geometry import Pair, pair
from ..ops.shape import as_sizes
from ..random import generator
from ..tensor import Tensor
from .module import Module, Parameter

_dropouts_made = itertools.count()


class MaxPool2D(Module):
    """The maximum of each window, (N, H, W, C) -> (N, OH, OW, C); see `ops.max_pool2d`."""

    def __init__(self, window: Pair, *, stride: Pair | None = None, padding: Pair | str = 0) -> None:
        self.window, self.stride, self.padding = window, stride, padding

    def forward(self, x: Tensor) -> Tensor:
        return ops.max_pool2d(x, self.window, stride=self.stride, padding=self.padding)


class AvgPool2D(Module):
    """The mean of each window, (N, H, W, C) -> (N, OH, OW, C); see `ops.avg_pool2d`."""

    def __init__(
        self,
        window: Pair,
        *,
        stride: Pair | None = None,
        padding: Pair | str = 0,
        count_include_pad: bool = False,
    ) -> None:
        self.window, self.stride, self.padding, self.count_include_pad = window, stride, padding, count_include_pad

    def forward(self, x: Tensor) -> Tensor:
        return ops.avg_pool2d(
            x, self.window, stride=self.stride, padding=self.padding, count_include_pad=self.count_include_pad
        )


class UpSample2D(Module):
    """Images enlarged by a whole factor, (N, H, W, C) -> (N, H * FH, W * FW, C).

    Args:
        factor: an int or a pair (FH, FW).
        mode: "nearest" (see `ops.upsample_nearest`) or "bilinear" (see `ops.resize_bilinear`).
    """

    def __init__(self, factor: Pair, mode: str = "nearest") -> None:
        if mode not in ("nearest", "bilinear"):
            raise ValueError(f'UpSample2D: mode is {mode!r} but must be "nearest" or "bilinear"')
        self.factor, self.mode = pair(tuple(factor) if isinstance(factor, list) else factor, "factor", 1), mode

    def forward(self, x: Tensor) -> Tensor:
        if self.mode == "nearest":
            return ops.upsample_nearest(x, self.factor)
        return ops.resize_bilinear(x, (x.shape[1] * self.factor[0], x.shape[2] * self.factor[1]))


class Resize(Module):
    """Images of another size, (N, H, W, C) -> (N, OH, OW, C); see `ops.resize_bilinear`.

    Args:
        size: (OH, OW), or an int for both.
    """

    def __init__(self, size: Pair) -> None:
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return ops.resize_bilinear(x, self.size)


class Dropout(Module):
    """In training mode, sets each element to 0 with probability `rate` and divides the others by 1 - rate. In
    evaluation mode it returns x as it is. See `ops.dropout`.

    Call number i in training mode uses the random numbers of generator(seed, "dropout", i), one for each element in the
    order of the elements. Row n of the batch therefore depends on seed, i and n alone, and not on the number of rows.

    The seed and the number of calls are the buffer `draws`. It is saved in `state_dict`, so that a resumed training
    continues with the masks that it would have had. A new layer's seed is the number of such layers made before in this
    process; `initialize` of the model gives it one that follows from its name, and sets the number of calls to 0.
    Several threads may call the layer; each call has its own number. The numbers are drawn on the host, so a step that
    uses this layer cannot be recorded as a CUDA graph.

    Args:
        rate: the probability of a 0, 0 <= rate < 1.
    """

    def __init__(self, rate: float) -> None:
        if not 0 <= rate < 1:
            raise ValueError(f"Dropout: rate is {rate} but must be at least 0 and below 1")
        self.rate = float(rate)
        self.draws = Tensor(default_backend().xp.zeros(2, dtype="float64"))  # counts to 2^53
        self.draws.data[0] = next(_dropouts_made)

    def restart_draws(self, rng: Any) -> None:
        self.draws.data[0], self.draws.data[1] = int(rng.integers(2**24)), 0  # exact in float32, too
        self.draws.mark_written()

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        seed, call = backend_of(self.draws.data).next_draw_(self.draws.data)  # type: ignore[attr-defined]
        self.draws.mark_written()
        return ops.dropout(x, generator(seed, "dropout", call), rate=self.rate)


class LayerNorm(Module):
    """Normalisation of each example over its last axes; see `ops.layer_norm`.

    Args:
        shape: the sizes of these axes, as ints or one tuple; often the number of features alone.
    """

    def __init__(self, *shape: int | tuple[int, ...], epsilon: float = 1e-3) -> None:
        self.gamma = Parameter(as_sizes(shape), init.ones)
        self.beta = Parameter(as_sizes(shape))
        self.epsilon = float(epsilon)

    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.gamma, self.beta, epsilon=self.epsilon)


class GroupNorm(Module):
    """Normalisation of each example over its pixels and the channels of a group; see `ops.group_norm`."""

    def __init__(self, groups: int, channels: int, *, epsilon: float = 1e-3) -> None:
        if groups < 1 or channels % groups:
            raise ValueError(f"GroupNorm: {groups} groups do not divide {channels} channels")
        self.gamma = Parameter((channels,), init.ones)
        self.beta = Parameter((channels,))
        self.groups, self.epsilon = groups, float(epsilon)

    def forward(self, x: Tensor) -> Tensor:
        return ops.group_norm(x, self.gamma, self.beta, groups=self.groups, epsilon=self.epsilon)


def standard_normal(rng: Any, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Any:
    """Normal with variance 1, an initialiser as those of init.py."""
    return rng.standard_normal(shape)


class Embedding(Module):
    """A table of `count` vectors of `features` numbers: ids of any shape -> (*ids.shape, features); see
    `ops.embedding`. The vectors start standard normal, as in PyTorch.
    """

    def __init__(self, count: int, features: int, *, initializer: init.Initializer = standard_normal) -> None:
        self.weight = Parameter((count, features), initializer, (count, features))

    def forward(self, ids: Array) -> Tensor:
        return ops.embedding(self.weight, ids)


class LeakyReLU(Module):
    """x above 0, slope * x elsewhere."""

    def __init__(self, slope: float = 0.01) -> None:
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        return ops.leaky_relu(x, self.slope)


class Sigmoid(Module):
    """1 / (1 + exp(-x))."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.sigmoid(x)


class Tanh(Module):
    """tanh(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.tanh(x)


class Softplus(Module):
    """log(1 + exp(x))."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.softplus(x)


class GELU(Module):
    """x * (the normal distribution function of x), nearly; see `ops.gelu`."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.gelu(x)


class SiLU(Module):
    """x * sigmoid(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.silu(x)
