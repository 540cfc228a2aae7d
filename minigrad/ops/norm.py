"""Batch normalisation."""

from __future__ import annotations

from ..backend import Array
from ..tensor import Function, Operand, Tensor

__all__ = ["batch_norm", "batch_norm_inference"]


class BatchNorm(Function):
    """y = gamma * z + beta with z = (x - mean) / s, s = sqrt(variance + epsilon).  gx = gamma / s * (gy - gbeta / M - z
    * ggamma / M), ggamma = sum of gy * z, gbeta = sum of gy.

    The statistics are those of the M values per channel in the batch. After the call and until backward, `mean` and
    `variance` hold them, for the moving statistics of `nn.BatchNorm`. The gradient is derived in backend/reference.py.
    """

    def __init__(self, epsilon: float) -> None:
        self.epsilon = epsilon

    def forward(self, x: Array, gamma: Array, beta: Array) -> Array:
        check_norm(x.shape, gamma, beta)
        if not x.size:
            raise ValueError(f"batch_norm: no values to take statistics of (x {x.shape})")
        self.x, self.gamma = x, gamma
        y, self.mean, self.variance = self.k.batch_norm(x, gamma, beta, self.epsilon)
        return y

    def backward(self, gy: Array) -> tuple[Array | None, ...]:
        return self.k.batch_norm_grad(gy, self.x, self.gamma, self.mean, self.variance, self.epsilon)


def batch_norm(x: Operand, gamma: Operand, beta: Operand, *, epsilon: float = 1e-3) -> Tensor:
    """y = (x - mean) / sqrt(variance + epsilon) * gamma + beta with the batch's own statistics per channel.

    mean and variance run over all axes but the last; the variance is the biased one (divided by the count).

    Shapes: x (..., C), gamma (C,), beta (C,) -> y (..., C).
    Gradients: with z = (x - mean) / sqrt(variance + epsilon) and M values a channel, gbeta = sum gy,
        ggamma = sum gy * z, gx = gamma / sqrt(variance + epsilon) * (gy - gbeta / M - z * ggamma / M).
    Raises:
        ValueError: shapes do not fit, or x is empty.
    Source: Ioffe and Szegedy, Batch Normalization, 2015, Algorithm 1 and section 3.
    """
    return BatchNorm(float(epsilon))(x, gamma, beta)


class BatchNormInference(Function):
    """y = gamma * z + beta with z = (x - mean) / s, s = sqrt(variance + epsilon).  gx = gy * gamma / s, ggamma = sum of
    gy * z, gbeta = sum of gy.

    The statistics are given, and constants for the gradient."""

    def __init__(self, mean: Array, variance: Array, epsilon: float) -> None:
        self.mean, self.variance, self.epsilon = mean, variance, epsilon

    def forward(self, x: Array, gamma: Array, beta: Array) -> Array:
        check_norm(x.shape, gamma, beta)
        found = [(str(s.dtype), s.shape) for s in (self.mean, self.variance)]
        if found != 2 * [(str(x.dtype), gamma.shape)]:
            raise ValueError(f"batch_norm: mean and variance must be {x.dtype} {gamma.shape}, found {found}")
        self.check_device(x, self.mean, self.variance)
        self.x, self.gamma = x, gamma
        y = self.k.batch_norm_apply(x, gamma, beta, self.mean, self.variance, self.epsilon)
        self.inverse_deviation = 1 / self.k.xp.sqrt(self.variance + self.epsilon)
        self.mean = self.mean.copy()  # moving statistics may change until backward
        return y

    def backward(self, gy: Array) -> tuple[Array | None, ...]:
        gx = gy * (self.gamma * self.inverse_deviation)
        ggamma = self.k.channel_sum(gy * ((self.x - self.mean) * self.inverse_deviation))
        return gx, ggamma, self.k.channel_sum(gy)


def batch_norm_inference(
    x: Operand, gamma: Operand, beta: Operand, mean: Array, variance: Array, *, epsilon: float = 1e-3
) -> Tensor:
    """y = (x - mean) / sqrt(variance + epsilon) * gamma + beta with given statistics.

    Shapes: x (..., C); gamma, beta, mean, variance (C,) -> y (..., C). mean and variance are arrays, not tensors.
    Gradients: with z = (x - mean) / sqrt(variance + epsilon), gx = gy * gamma / sqrt(variance + epsilon), ggamma = sum
        gy * z, gbeta = sum gy; none for mean and variance.
    Raises:
        ValueError: shapes do not fit.
    """
    return BatchNormInference(mean, variance, float(epsilon))(x, gamma, beta)


def check_norm(x_shape: tuple[int, ...], gamma: Array, beta: Array) -> None:
    """Raise ValueError unless gamma and beta fit an x of this shape."""
    if len(x_shape) < 2 or gamma.shape != x_shape[-1:] or beta.shape != x_shape[-1:]:
        raise ValueError(
            f"batch_norm: x (..., C) needs gamma and beta (C,) (x {x_shape}, gamma {gamma.shape}, beta {beta.shape})"
        )
