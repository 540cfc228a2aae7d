"""Losses: one number from a batch. Losses of probabilities take logits, so that nothing overflows.

Negative log-likelihoods are in nats per image: summed over all axes but the first and averaged over the first (N). So
they do not depend on the batch size and can be added to each other.
"""

from __future__ import annotations

import math

from ..backend import Array
from ..tensor import Function, Operand, Tensor
from .elementwise import unbroadcast

__all__ = ["bce_with_logits", "gaussian_nll", "kl_to_standard_normal", "mse"]

LOG_2_PI = math.log(2 * math.pi)


class MSE(Function):
    """y = mean((x - targets)^2).  gx = 2 (x - targets) / size * gy, gtargets = -gx."""

    def forward(self, x: Array, targets: Array) -> Array:
        _check_shapes("mse", "x", x, targets)
        self.difference = x - targets
        return self.k.sum(self.difference * self.difference) / self.difference.size

    def backward(self, gy: Array) -> tuple[Array | None, ...]:
        gx = self.difference * (gy * (2 / self.difference.size))
        return gx, (-gx if self.needs[1] else None)


def mse(x: Operand, targets: Operand) -> Tensor:
    """mean((x - targets)^2).

    Shapes: any, the same for both -> a single number.
    Unit: squared units of x, averaged over all elements (not nats).
    Raises:
        ValueError: shapes differ or are empty.
    """
    return MSE()(x, targets)


class BCEWithLogits(Function):
    """y = sum(softplus(logits) - logits * targets) / N.  glogits = (sigmoid(logits) - targets) / N * gy,
    gtargets = -logits / N * gy.

    N is the number of images.
    """

    def forward(self, logits: Array, targets: Array) -> Array:
        _check_shapes("bce_with_logits", "logits", logits, targets)
        self.logits, self.targets = logits, targets
        return self.k.bernoulli_nll(logits, targets) / len(logits)

    def backward(self, gy: Array) -> tuple[Array | None, ...]:
        scale = gy / len(self.logits)
        glogits = (self.k.sigmoid(self.logits) - self.targets) * scale if self.needs[0] else None
        gtargets = self.logits * -scale if self.needs[1] else None
        return glogits, gtargets


def bce_with_logits(logits: Operand, targets: Operand) -> Tensor:
    """-log p(targets) under independent Bernoulli distributions: sum of (softplus(logit) - logit * target) / N.

    Shapes: (N, ...), the same for both -> a single number. targets lie in [0, 1]; grey values count as probabilities.
    Unit: nats per image: summed over all axes but the first, averaged over the first.
    Gradients: glogits = (sigmoid(logits) - targets) / N.
    Raises:
        ValueError: shapes differ or are empty.
    """
    return BCEWithLogits()(logits, targets)


class GaussianNLL(Function):
    """y = sum(d^2 / v + log v + log 2 pi) / 2N, with d = mean - targets and v = e^log_variance.

    gmean = d / v / N * gy, gtargets = -gmean, glog_variance = (1 - d^2 / v) / 2N * gy.
    """

    def forward(self, mean: Array, targets: Array, log_variance: Array) -> Array:
        _check_shapes("gaussian_nll", "mean", mean, targets)
        self.log_variance_shape, self.count = log_variance.shape, len(mean)
        log_variance = self.k.xp.broadcast_to(log_variance, mean.shape)
        self.precision = self.k.xp.exp(-log_variance)
        self.difference = mean - targets
        squares = self.difference * self.difference * self.precision
        return 0.5 * self.k.sum(squares + log_variance + LOG_2_PI) / self.count

    def backward(self, gy: Array) -> tuple[Array | None, ...]:
        scale = gy / self.count
        gmean = self.difference * self.precision * scale
        glog_variance = (0.5 - 0.5 * self.difference * self.difference * self.precision) * scale
        gtargets = -gmean if self.needs[1] else None
        return gmean, gtargets, unbroadcast(self.k, glog_variance, self.log_variance_shape)


def gaussian_nll(mean: Operand, targets: Operand, log_variance: Operand = 0.0) -> Tensor:
    """-log p(targets) under independent normal distributions:
    sum of ((mean - target)^2 / exp(log_variance) + log_variance + log(2 pi)) / 2, divided by N.

    Shapes: mean and targets (N, ...); log_variance anything that broadcasts to it -> a single number.
    Unit: nats per image: summed over all axes but the first, averaged over the first.
    Raises:
        ValueError: shapes differ or are empty.
    """
    return GaussianNLL()(mean, targets, log_variance)


class KLToStandardNormal(Function):
    """y = sum(mean^2 + v - 1 - log v) / 2N with v = e^log_variance.

    gmean = mean / N * gy, glog_variance = (v - 1) / 2N * gy.

    It is 0, and so are both gradients, where mean = 0 and log_variance = 0: there the distribution is the prior. N is
    the number of images.
    """

    def forward(self, mean: Array, log_variance: Array) -> Array:
        _check_shapes("kl_to_standard_normal", "mean", mean, log_variance, second="log_variance")
        self.mean, self.variance_minus_1 = mean, self.k.xp.expm1(log_variance)
        return 0.5 * self.k.sum(mean * mean + (self.variance_minus_1 - log_variance)) / len(mean)

    def backward(self, gy: Array) -> tuple[Array, ...]:
        scale = gy / len(self.mean)
        return self.mean * scale, self.variance_minus_1 * (0.5 * scale)


def kl_to_standard_normal(mean: Operand, log_variance: Operand) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) = sum of (mean^2 + exp(log_variance) - 1 - log_variance) / 2N.

    Shapes: (N, Z) both -> a single number.
    Unit: nats per image: summed over Z, averaged over N.
    Raises:
        ValueError: shapes differ or are empty.
    Source: Kingma and Welling, Auto-Encoding Variational Bayes, 2014, appendix B.
    """
    return KLToStandardNormal()(mean, log_variance)


def _check_shapes(name: str, first: str, a: Array, b: Array, second: str = "targets") -> None:
    if a.shape != b.shape or a.ndim < 1 or not a.size:
        raise ValueError(f"{name}: {first} {a.shape} and {second} {b.shape} must have one shape and not be empty")
