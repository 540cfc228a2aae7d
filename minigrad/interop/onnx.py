"""ONNX files of any Module or function of Tensors, from the graph of its calls.

The function is called twice: with two rows of positive numbers, and with three rows of negative ones. Where the two
graphs differ in the shape of a reshape, the number of rows enters, and the file leaves it open. Any other difference
would be wrong for other inputs, and is refused.

Read next: onnx_nodes.py, how each operation is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..nn import Module
from ..random import generator
from .graph import Call
from .onnx_nodes import Translation

OPSET, IR_VERSION = 17, 8  # of 2022, so that the runtimes of the last years read the files


@dataclass(frozen=True)
class Classes:
    """An input of class numbers 0 ... count - 1, (N,) int64. The function gets them as one-hot rows (N, count)."""

    count: int


def to_onnx(
    function: Callable[..., Any],
    inputs: dict[str, tuple[int, ...] | Classes],
    outputs: Sequence[str] = ("output",),
    *,
    weights: Module | None = None,
    metadata: dict[str, str] | None = None,
) -> bytes:
    """A function in evaluation mode as the content of an ONNX file, in float32. The number of rows N is left open.

    >>> content = to_onnx(nn.Dense(3, 2), {"x": (3,)}, ["y"])

    Args:
        function: a Module, or a function of Tensors that gives a Tensor or several.
        inputs: by name the shape of each input without the batch axis; or Classes.
        outputs: a name for each result.
        weights: the Module whose names the file shows; None: the function, if it is one.
        metadata: texts that the file carries.

    Raises:
        ValueError: an operation has no translation, or gives an array without elements; or a result depends on the
            number of rows or on the values of the inputs in a way that a graph cannot hold.
        ImportError: the package onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError('to_onnx: needs the package onnx, which is not installed: pip install ".[onnx]"') from error
    graph = merged(*(_graph(function, inputs, outputs, weights, rows) for rows in (2, 3)))
    make, kinds = onnx.helper, onnx.TensorProto
    nodes = [make.make_node(n.kind, n.inputs, [n.output], n.name, **n.attributes) for n in graph.nodes]
    constants = [onnx.numpy_helper.from_array(x, name) for name, x in graph.constants.items()]
    given = [
        make.make_tensor_value_info(name, kinds.INT64, ("N",))
        if isinstance(shape, Classes)
        else make.make_tensor_value_info(name, kinds.FLOAT, ("N", *shape))
        for name, shape in inputs.items()
    ]
    made = [make.make_tensor_value_info(name, kinds.FLOAT, ("N", *shape)) for name, shape in graph.results.items()]
    body = make.make_graph(nodes, "minigrad", given, made, constants)
    opset = make.make_opsetid("", OPSET)
    model = make.make_model(body, producer_name="minigrad", opset_imports=[opset], ir_version=IR_VERSION)
    make.set_model_props(model, metadata or {})
    model = onnx.shape_inference.infer_shapes(model)  # for programs that draw the graph
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _graph(
    function: Callable[..., Any], inputs: dict[str, Any], outputs: Sequence[str], weights: Module | None, rows: int
) -> Translation:
    """The graph of a call with this number of rows of random numbers, up to 4 for two rows, else down to -4."""
    rng = generator(0, "to_onnx", rows)

    def example(shape: Any) -> np.ndarray:
        if isinstance(shape, Classes):
            return np.eye(shape.count)[np.arange(rows, 2 * rows) % shape.count]
        return (4 if rows == 2 else -4) * rng.random((rows, *shape))

    with np.errstate(all="ignore"):  # a logarithm of a negative number changes no graph
        call = Call(function, list(map(example, inputs.values())), weights)
    if len(outputs) != len(call.outputs):
        raise ValueError(f"to_onnx: {len(call.outputs)} results need as many names, found {list(outputs)}")
    if set(outputs) & set(inputs) or len(set(outputs)) < len(outputs):
        raise ValueError(f"to_onnx: inputs and results need names of their own, found {[*inputs, *outputs]}")
    graph = Translation(call, (*inputs, *outputs))
    for (name, shape), x in zip(inputs.items(), call.inputs, strict=True):
        graph.input(name, x, shape.count if isinstance(shape, Classes) else None)
    graph.run(call.outputs)
    for name, y in zip(outputs, call.outputs, strict=True):
        if y.shape[:1] != (rows,):
            raise ValueError(f"to_onnx: {name} is {y.shape} for {rows} rows, but must have a row for each")
        graph.result(name, y)
    return graph


def merged(a: Translation, b: Translation) -> Translation:
    """The graph for any number of rows, from those of two calls.

    Raises:
        ValueError: they differ in more than shapes, or a shape of no elements is open; the operation is named.
    """
    why = "depends on the number of rows or on the values of the inputs"
    for one, other in zip(a.nodes, b.nodes, strict=False):
        if one != other:
            raise ValueError(f"to_onnx: {one.of or other.of or 'a result'} {why}")
    if len(a.nodes) != len(b.nodes):
        raise ValueError(f"to_onnx: the number of operations {why}")
    for name, x in a.constants.items():
        y = b.constants[name]
        if x.shape == y.shape and np.array_equal(x, y, equal_nan=x.dtype.kind == "f"):
            continue
        if name not in a.open_shapes or x.shape != y.shape or np.sum(x != y) != 1:
            raise ValueError(f"to_onnx: {a.constant_of[name]} {why}")
        if 0 in x:
            raise ValueError(f"to_onnx: {a.constant_of[name]} gives an array without elements")
        copied = all(part.open_shapes[name][:1] == (shape[0],) for part, shape in ((a, x), (b, y)))
        a.constants[name] = np.where(x == y, x, 0 if copied and x[0] != y[0] else -1)  # 0: as before, -1: what is left
    return a
