"""minigrad: a deep-learning engine from scratch on NumPy and CuPy.

README.md lists the files to read, in order, beginning with tensor.py. What you read there is the specification;
backend/cpu/ and backend/cuda/ compute the same faster and are compared with it.
"""

from . import init, nn, ops, optim, random
from .backend import Backend, DeviceError, backend_of, get_num_threads, set_num_threads, to_device, use
from .backend.installed import available
from .higher_order import grad
from .tensor import Function, Tensor, evaluation, no_grad
from .tools.anomaly import AnomalyError, detect_anomaly
from .tools.display import show_in_notebooks
from .tools.explain import explain, graph
from .tools.profiler import profile

show_in_notebooks()

__version__ = "0.1.0"

__all__ = [
    "AnomalyError",
    "Backend",
    "DeviceError",
    "Function",
    "Tensor",
    "available",
    "backend_of",
    "detect_anomaly",
    "evaluation",
    "explain",
    "get_num_threads",
    "grad",
    "graph",
    "init",
    "nn",
    "no_grad",
    "ops",
    "optim",
    "profile",
    "random",
    "set_num_threads",
    "to_device",
    "use",
]
