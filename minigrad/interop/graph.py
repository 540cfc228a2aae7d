"""A call whose graph is written: the operations that lead from its inputs to its outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..backend import Array, backend_of, default_backend
from ..nn import Module
from ..tensor import Function, Tensor, evaluation, is_recording


def key_of(x: Tensor) -> int | tuple[str, int]:
    """What names a tensor of a graph. The tensors of one operation may be several objects; leaves are one each."""
    return ("leaf", id(x)) if x.creator is None else x.creator.order


class Call:
    """One call of a function in evaluation mode.

    Args:
        function: a Module or any function of Tensors that gives a Tensor or several.
        examples: the arrays of its inputs.
        weights: the Module whose parameters and buffers the graph names; None: the function, if it is one.

    Attributes:
        inputs, outputs: the tensors. names: the full name of each parameter and buffer by its id.

    Raises:
        RuntimeError: nothing is recorded, inside `no_grad`. TypeError: a result is no Tensor.
    """

    def __init__(self, function: Callable[..., Any], examples: Iterable[Array], weights: Module | None = None) -> None:
        if not is_recording():
            raise RuntimeError("export: a graph is needed, but inside no_grad none is recorded")
        weights = function if weights is None and isinstance(function, Module) else weights
        self.names = {id(x): name for name, x in weights.named_tensors()} if weights is not None else {}
        parameters = weights.parameters() if weights is not None else []
        k = backend_of(parameters[0].data) if parameters else default_backend()
        dtype = parameters[0].dtype if parameters else "float32"
        self.inputs = [Tensor(k.from_host(x.astype(dtype)), requires_grad=True) for x in examples]
        with evaluation():
            found = function(*self.inputs)
        self.outputs = [found] if isinstance(found, Tensor) else list(found)
        if wrong := [type(y).__name__ for y in self.outputs if not isinstance(y, Tensor)]:
            raise TypeError(f"export: the results must be Tensors, found {wrong[0]}")

    def layer_of(self, function: Function) -> str:
        """The name of the layer whose parameters an operation takes; empty if it takes none."""
        names = (self.names.get(id(x), "") for x in function.inputs or () if x is not None)
        return next((name.rpartition(".")[0] for name in names if "." in name), "")
