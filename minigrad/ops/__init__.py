"""The differentiable operations, and Tensor's operators made of them.

Read in this order: elementwise.py, shape.py, dense.py, conv.py, norm.py, loss.py. The models need no operation of
catalogue/.
"""

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


Tensor.__add__, Tensor.__radd__ = _elementwise.add, _swapped(_elementwise.add)
Tensor.__sub__, Tensor.__rsub__ = _elementwise.sub, _swapped(_elementwise.sub)
Tensor.__mul__, Tensor.__rmul__ = _elementwise.mul, _swapped(_elementwise.mul)
Tensor.__truediv__, Tensor.__rtruediv__ = _elementwise.div, _swapped(_elementwise.div)
Tensor.__matmul__, Tensor.__rmatmul__ = _dense.matmul, _swapped(_dense.matmul)
Tensor.__pow__, Tensor.__neg__, Tensor.__abs__ = _elementwise.pow, _elementwise.neg, _elementwise.abs
Tensor.reshape, Tensor.transpose, Tensor.sum, Tensor.mean = _shape.reshape, _shape.transpose, _shape.sum, _shape.mean
Tensor.__getitem__ = _indexing.getitem

_METHODS = (
    "abs", "argmax", "argmin", "clip", "cos", "exp", "expand_dims", "flip", "log", "log_softmax", "logsumexp", "max",
    "min", "relu", "sigmoid", "sin", "softmax", "split", "sqrt", "squeeze", "std",
    "swapaxes", "tanh", "var",
)  # fmt: skip
for _name in _METHODS:
    setattr(Tensor, _name, globals()[_name])
for _name, _method in _selection.COMPARISONS.items():
    setattr(Tensor, _name, _method)
