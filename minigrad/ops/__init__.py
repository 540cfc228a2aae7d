"""The differentiable operations, and Tensor's operators made of them.

Read in this order: elementwise.py, shape.py, dense.py, conv.py, norm.py, loss.py.
"""

from ..tensor import Operand, Tensor
from .conv import conv2d, conv2d_transpose
from .dense import dense, matmul
from .elementwise import (
    abs,
    add,
    clip,
    div,
    exp,
    leaky_relu,
    log,
    mul,
    neg,
    pow,
    relu,
    sigmoid,
    softplus,
    sqrt,
    sub,
    tanh,
)
from .loss import bce_with_logits, gaussian_nll, kl_to_standard_normal, mse, softmax_cross_entropy
from .norm import batch_norm, batch_norm_inference
from .shape import logsumexp, mean, reshape, sum, transpose

__all__ = [
    "abs",
    "add",
    "batch_norm",
    "batch_norm_inference",
    "bce_with_logits",
    "clip",
    "conv2d",
    "conv2d_transpose",
    "dense",
    "div",
    "exp",
    "gaussian_nll",
    "kl_to_standard_normal",
    "leaky_relu",
    "log",
    "logsumexp",
    "matmul",
    "mean",
    "mse",
    "mul",
    "neg",
    "pow",
    "relu",
    "reshape",
    "sigmoid",
    "softmax_cross_entropy",
    "softplus",
    "sqrt",
    "sub",
    "sum",
    "tanh",
    "transpose",
]


def _swapped(operation):  # type: ignore[no-untyped-def]
    """operation(b, a), for operators whose left operand is not a Tensor."""

    def swapped(b: Tensor, a: Operand) -> Tensor:
        return operation(a, b)

    return swapped


Tensor.__add__, Tensor.__radd__ = add, _swapped(add)
Tensor.__sub__, Tensor.__rsub__ = sub, _swapped(sub)
Tensor.__mul__, Tensor.__rmul__ = mul, _swapped(mul)
Tensor.__truediv__, Tensor.__rtruediv__ = div, _swapped(div)
Tensor.__matmul__, Tensor.__rmatmul__ = matmul, _swapped(matmul)
Tensor.__pow__, Tensor.__neg__, Tensor.__abs__ = pow, neg, abs
Tensor.reshape, Tensor.transpose, Tensor.sum, Tensor.mean = reshape, transpose, sum, mean
