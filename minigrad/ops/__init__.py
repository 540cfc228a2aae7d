"""The differentiable operations, and Tensor's operators made of them.

Read in this order: elementwise.py, shape.py, dense.py, conv.py, norm.py, loss.py. The models need no operation of
catalogue/.
"""

import inspect
from typing import Any

from ..tensor import Operand, Tensor
from .catalogue.activations import *
from .catalogue.axes import *
from .catalogue.dropout import *
from .catalogue.indexing import *
from .catalogue.joining import *
from .catalogue.losses import *
from .catalogue.norms import *
from .catalogue.pooling import *
from .catalogue.products import *
from .catalogue.reductions import *
from .catalogue.resize import *
from .catalogue.selection import *
from .catalogue.selection import COMPARISONS
from .conv import *
from .dense import *
from .elementwise import *
from .loss import *
from .norm import *
from .shape import *

# Since Python 3.14 a module has a function __annotate__, too.
__all__ = [name for name, value in globals().items() if inspect.isfunction(value) and not name.startswith("_")]


def _swapped(operation):  # type: ignore[no-untyped-def]
    """operation(b, a), for operators whose left operand is not a Tensor."""

    def swapped(b: Tensor, a: Operand) -> Tensor:
        return operation(a, b)

    return swapped


_TWO_SIDED: dict[str, Any] = {"add": add, "sub": sub, "mul": mul, "truediv": div, "matmul": matmul}
_OPERATORS = {"pow": pow, "neg": neg, "abs": abs, "getitem": getitem}
_METHODS = (
    "abs", "argmax", "argmin", "clip", "cos", "exp", "expand_dims", "flip", "log", "log_softmax", "logsumexp", "max",
    "mean", "min", "relu", "reshape", "sigmoid", "sin", "softmax", "split", "sqrt", "squeeze", "std", "sum",
    "swapaxes", "tanh", "transpose", "var",
)  # fmt: skip
for _name, _function in _TWO_SIDED.items():
    setattr(Tensor, f"__{_name}__", _function)
    setattr(Tensor, f"__r{_name}__", _swapped(_function))
for _name, _function in (_OPERATORS | COMPARISONS).items():
    setattr(Tensor, f"__{_name}__", _function)
for _name in _METHODS:
    setattr(Tensor, _name, globals()[_name])
