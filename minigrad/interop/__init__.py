"""Files of other programs: ONNX, PyTorch and Keras. Each is checked by that program in tests/interop."""

from .onnx import Classes, to_onnx
from .torch import from_torch_state, torch_state

__all__ = ["Classes", "from_torch_state", "to_onnx", "torch_state"]
