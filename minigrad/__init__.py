"""minigrad: a deep-learning engine from scratch on NumPy and CuPy.

Reading order (one evening): tensor.py, ops/, nn/, optim.py, backend/reference.py. What you read there is the
specification; backend/cpu.py computes the same faster and is compared with it.
"""

from . import init, nn, ops, optim, random
from .backend import Backend, DeviceError, available, backend_of, to_device, use
from .profiler import profile
from .tensor import Function, Tensor, no_grad

__version__ = "0.1.0"

__all__ = [
    "Backend",
    "DeviceError",
    "Function",
    "Tensor",
    "available",
    "backend_of",
    "init",
    "nn",
    "no_grad",
    "ops",
    "optim",
    "profile",
    "random",
    "to_device",
    "use",
]
