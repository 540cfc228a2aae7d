"""The differentiable operations, and Tensor's operators made of them.

Read in this order: elementwise.py, shape.py, dense.py, conv.py, norm.py, loss.py. The models need no operation of
catalogue/.
"""

from typing import Any

from ..tensor import Operand, Tensor
from . import conv as _conv
from . import dense as _dense
from . import elementwise as _elementwise
from . import loss as _loss
from . import norm as _norm
from . import shape as _shape
from .catalogue import activations as _activations
from .catalogue import axes as _axes
from .catalogue import dropout as _dropout
from .catalogue import indexing as _indexing
from .catalogue import joining as _joining
from .catalogue import norms as _norms
from .catalogue import pooling as _pooling
from .catalogue import products as _products
from .catalogue import reductions as _reductions
from .catalogue import resize as _resize
from .catalogue import selection as _selection
from .catalogue.activations import *
from .catalogue.axes import *
from .catalogue.dropout import *
from .catalogue.indexing import *
from .catalogue.joining import *
from .catalogue.norms import *
from .catalogue.pooling import *
from .catalogue.products import *
from .catalogue.reductions import *
from .catalogue.resize import *
from .catalogue.selection import *
from .conv import *
from .dense import *
from .elementwise import *
from .loss import *
from .norm import *
from .shape import *

_CORE = (_elementwise, _shape, _dense, _conv, _norm, _loss)
_CATALOGUE = (
    _activations, _axes, _dropout, _indexing, _joining, _norms, _pooling, _products, _reductions, _resize, _selection
)  # fmt: skip
__all__ = [name for file in (*_CORE, *_CATALOGUE) for name in file.__all__]


def _swapped(operation):  # type: ignore[no-untyped-def]
    """operation(b, a), for operators whose left operand is not a Tensor."""

    def swapped(b: Tensor, a: Operand) -> Tensor:
        return operation(a, b)

    return swapped


_TWO_SIDED: dict[str, Any] = {
    "add": _elementwise.add, "sub": _elementwise.sub, "mul": _elementwise.mul, "truediv": _elementwise.div,
    "matmul": _dense.matmul,
}  # fmt: skip
_OPERATORS = {"pow": _elementwise.pow, "neg": _elementwise.neg, "abs": _elementwise.abs, "getitem": _indexing.getitem}
_METHODS = (
    "abs", "argmax", "argmin", "clip", "cos", "exp", "expand_dims", "flip", "log", "log_softmax", "logsumexp", "max",
    "mean", "min", "relu", "reshape", "sigmoid", "sin", "softmax", "split", "sqrt", "squeeze", "std", "sum",
    "swapaxes", "tanh", "transpose", "var",
)  # fmt: skip
for _name, _function in _TWO_SIDED.items():
    setattr(Tensor, f"__{_name}__", _function)
    setattr(Tensor, f"__r{_name}__", _swapped(_function))
for _name, _function in (_OPERATORS | _selection.COMPARISONS).items():
    setattr(Tensor, f"__{_name}__", _function)
for _name in _METHODS:
    setattr(Tensor, _name, globals()[_name])
