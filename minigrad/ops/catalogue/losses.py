"""The loss of a classifier. It takes logits, so that nothing overflows."""

from __future__ import annotations

from ...backend import Array, as_array
from ...tensor import Function, Operand, Tensor

__all__ = ["softmax_cross_entropy"]


class SoftmaxCrossEntropy(Function):
    """y = -sum(log softmax(logits)[label]) / N.  glogits = (softmax(logits) - one_hot) / N * gy."""

    def __init__(self, labels: Array) -> None:
        self.labels = labels

    def forward(self, logits: Array) -> Array:
        labels, xp = as_array(self.labels), self.k.xp
        self.check_device(logits, labels)
        if logits.ndim != 2 or not logits.size or labels.shape not in (logits.shape[:1], (len(logits), 1)):
            raise ValueError(
                "softmax_cross_entropy: needs logits (N, K), N and K >= 1, and labels (N,), "
                f"found {logits.shape} and {labels.shape}"
            )
        labels, kind = labels.reshape(-1), labels.dtype.kind
        broken = labels[labels != xp.floor(labels)] if kind == "f" else labels[:0]  # NaN differs from itself
        if kind not in "biuf" or broken.size:
            found = f"{float(broken[0])} among them" if broken.size else labels.dtype
            raise ValueError(f"softmax_cross_entropy: labels must be whole numbers, the classes; found {found}")
        if self.k.on_host and (labels.min() < 0 or labels.max() >= logits.shape[1]):
            raise ValueError(
                f"softmax_cross_entropy: labels must lie in 0 ... {logits.shape[1] - 1}, "
                f"found {labels.min()} ... {labels.max()}"
            )
        self.one_hot = (labels[:, None] == xp.arange(logits.shape[1])).astype(logits.dtype)  # (N, K)
        shifted = logits - logits.max(axis=1, keepdims=True)
        self.log_softmax = shifted - xp.log(self.k.sum(xp.exp(shifted), (1,), keepdims=True))
        return -self.k.sum(xp.where(self.one_hot > 0, self.log_softmax, 0)) / len(logits)  # 0 * -inf would be NaN

    def backward(self, gy: Array) -> tuple[Array, ...]:
        return ((self.k.xp.exp(self.log_softmax) - self.one_hot) * (gy / len(self.one_hot)),)


def softmax_cross_entropy(logits: Operand, labels: Array) -> Tensor:
    """-log softmax(logits)[label], averaged over N.

    >>> round(ops.softmax_cross_entropy([[0.0, 0.0], [9.0, 0.0]], [1, 0]).item(), 4)  # log(2) / 2, and next to nothing
    0.3466

    Shapes: logits (N, K); labels (N,) or (N, 1), whole numbers 0 ... K - 1 of any dtype (not a Tensor) -> a single
        number.
    Unit: nats per example.
    Gradients: glogits = (softmax(logits) - one_hot(labels)) / N.
    Raises:
        TypeError: labels is a Tensor, None, text, masked, ...
        ValueError: shapes do not fit, a label is not a whole number, or it is outside 0 ... K - 1. (The range is
            checked only on the CPU, because the check would wait for a GPU. On a GPU such a label adds 0 to the loss.)
    """
    return SoftmaxCrossEntropy(labels)(logits)
