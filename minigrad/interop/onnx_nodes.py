"""How each operation is written in ONNX.

An operation that is not in `TRANSLATIONS` is read a second time, its `forward` with Tensors, and the operations that it
consists of are written. So an operation of your own needs no translation if it computes with operators, `self.k` and
`self.k.xp`.

Images are (N, H, W, C) here and (N, C, H, W) in ONNX. A value is transposed where an operation needs the other form,
and both are kept. Elementwise operations take the form that there is, so a chain of convolutions has one transpose
before it and one after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..backend import backend_of
from ..higher_order import BroadcastTo, Convolution, Expm1, TransposedConvolution, creators, forward_again
from ..ops.catalogue.activations import Cos, LeakyReLU, LogSoftmax, Sin, Softmax, Tanh
from ..ops.catalogue.indexing import GetItem
from ..ops.catalogue.joining import Concatenate, Pad
from ..ops.catalogue.pooling import AvgPool2D, MaxPool2D
from ..ops.catalogue.reductions import Max, Min
from ..ops.catalogue.resize import UpsampleNearest
from ..ops.catalogue.selection import Abs, Clip, Maximum, Minimum, Where
from ..ops.conv import Conv2D, Conv2DTranspose
from ..ops.dense import Dense, MatMul
from ..ops.elementwise import Add, Div, Exp, Log, Mul, Neg, Pow, ReLU, Sigmoid, Softplus, Sqrt, Sub
from ..ops.norm import BatchNormInference
from ..ops.shape import LogSumExp, Reshape, Sum, Transpose
from ..tensor import Function, Tensor
from .graph import Call, key_of

END = 2**63 - 1  # where a slice without an end ends
Inputs = Sequence[Tensor | None]


class Node(NamedTuple):
    """A node of the graph. of: the operation that it belongs to, for messages."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    output: str
    attributes: dict[str, Any]
    of: str


class Translation:
    """The nodes and constants of a graph, written one after another.

    Attributes:
        constants: arrays by name. constant_of: the operation that each belongs to. open_shapes: by the names of those
            that are shapes of a reshape, the shapes before it.
        results: the shape of each result without the batch axis.
    """

    def __init__(self, call: Call, taken: Iterable[str] = ()) -> None:  # taken: names that no value may have
        self.call = call
        self.nodes: list[Node] = []
        self.constants: dict[str, np.ndarray] = {}
        self.constant_of: dict[str, str] = {}
        self.open_shapes: dict[str, tuple[int, ...]] = {}
        self.results: dict[str, tuple[int, ...]] = {}
        self._last: dict[Any, str] = {}  # the name of a value with channels last
        self._first: dict[Any, str] = {}  # and with channels first
        self._known: set[int] = set()  # the operations that are written
        self._names: dict[str, set[str]] = {"node": set(), "value": set(taken)}  # names in use
        self._kept: list[Tensor] = []  # tensors whose ids are in use
        self._open: list[type] = []  # the operations that are read again
        self._of = self._layer = ""

    # ---- the graph ----

    def input(self, name: str, x: Tensor, classes: int | None = None) -> None:
        """An input; with a number of classes they come as whole numbers and x has one-hot rows."""
        self._names["value"].add(name)
        if classes is not None:
            depth = self.constant(np.array(classes), "number of classes")
            name = self.node("OneHot", name, depth, self.constant(np.array([0.0, 1.0]), "off and on"), axis=-1)
        self._last[key_of(x)] = name

    def run(self, outputs: Sequence[Tensor]) -> None:
        """Write the operations that lead to the outputs."""
        self._kept += outputs
        for function, y in creators(outputs, self._known):
            if not self._open:
                self._of, self._layer = function.name, self.call.layer_of(function)
            translate = TRANSLATIONS.get(type(function), Translation._read_again)
            translate(self, function, function.inputs or (), y)
            self._known.add(function.order)

    def _read_again(self, function: Function, _: Inputs, y: Tensor) -> None:
        """Write what the operation consists of."""
        if type(function) in self._open:
            raise ValueError(f"to_onnx: {self._of} has no translation to ONNX ({function.name} is not known)")
        try:
            made = forward_again(function)
        except (TypeError, AttributeError, NotImplementedError) as error:
            raise ValueError(
                f"to_onnx: {self._of} has no translation to ONNX, and its forward cannot be read with Tensors: {error}"
            ) from error
        self._open.append(type(function))
        self.run([made])
        self._open.pop()
        for forms in (self._last, self._first):
            if key_of(made) in forms:
                forms[key_of(y)] = forms[key_of(made)]
        if key_of(y) not in self._last | self._first:
            self._last[key_of(y)] = self.last(made)

    def result(self, name: str, y: Tensor) -> None:
        """Give a value the name of a result, everywhere."""
        value = self.last(y)
        if value in self.results or all(node.output != value for node in self.nodes):  # an input, or given twice
            value = self.node("Identity", value)
        self.results[name] = y.shape[1:]
        forms = {value: name}
        for i, node in enumerate(self.nodes):
            inputs = tuple(forms.get(x, x) for x in node.inputs)
            self.nodes[i] = node._replace(inputs=inputs, output=forms.get(node.output, node.output))
        for known in (self._last, self._first):  # several tensors can be one value
            known.update({key: name for key, x in known.items() if x == value})

    # ---- for translations ----

    def last(self, x: Tensor) -> str:
        """The name of a value in the form that it has here."""
        key = key_of(x)
        if key not in self._last:
            if key in self._first:
                self._last[key] = self.node("Transpose", self._first[key], perm=(0, *range(2, x.ndim), 1))
            else:  # a parameter, a number, or an array from outside
                self._kept.append(x)
                self._last[key] = self.constant(x, self.call.names.get(id(x), "constant"))
        return self._last[key]

    def first(self, x: Tensor) -> str:
        """The name of a value (N, ..., C) as (N, C, ...)."""
        if x.ndim < 3:
            return self.last(x)
        key = key_of(x)
        if key not in self._first:
            self._first[key] = self.node("Transpose", self.last(x), perm=(0, x.ndim - 1, *range(1, x.ndim - 1)))
        return self._first[key]

    def filters(self, weight: Tensor) -> str:
        """The name of a weight (KH, KW, C, F) as (F, C, KH, KW)."""
        key = ("filters", key_of(weight))
        if key not in self._first:
            name = self.call.names.get(id(weight), "weight")
            self._first[key] = (
                self.constant(weight.numpy().transpose(3, 2, 0, 1), name)
                if weight.creator is None
                else self.node("Transpose", self.last(weight), perm=(3, 2, 0, 1))
            )
        return self._first[key]

    def has_first(self, xs: Inputs) -> bool:
        """Whether values of one shape, besides single numbers, are there with channels first."""
        arrays = [x for x in xs if x is not None and x.size > 1]
        same = len({x.shape for x in arrays}) == 1 and all(x is not None and x.ndim <= arrays[0].ndim for x in xs)
        return same and any(key_of(x) in self._first for x in arrays)

    def constant(self, x: Any, name: str = "constant") -> str:
        """The name of a constant: float32 numbers, or whole ones."""
        if isinstance(x, Tensor):
            x = x.numpy()
        array = np.array(x, np.int64) if isinstance(x, list | tuple) else np.asarray(backend_of(x).to_host(x))
        kind = {"b": "bool", "f": "float32"}.get(array.dtype.kind, "int64")
        name = self._unused("value", name)
        self.constants[name], self.constant_of[name] = np.array(array, kind, order="C"), self._of
        return name

    def number(self, x: float) -> str:
        """The name of a constant of one number."""
        return self.constant(np.array(x, np.float32))

    def reshape(self, y: Tensor, x: str, before: tuple[int, ...] = ()) -> None:
        """Write the reshape of x, which had the shape before if it is known, that gives y."""
        shape = self.constant(y.shape, "shape")
        self.open_shapes[shape] = before
        self.put(y, "Reshape", x, shape, allowzero=int(0 in y.shape))

    def node(self, kind: str, *inputs: str, layer: str = "", **attributes: Any) -> str:
        """Write a node; returns the name of its output."""
        name = self._unused("node", layer or kind)
        output = self._unused("value", f"{name} output")
        self.nodes.append(Node(kind, name, inputs, output, attributes, self._of))
        return output

    def put(self, y: Tensor, kind: str, *inputs: str, first: bool = False, **attributes: Any) -> None:
        """Write the node that gives y; first: with channels first."""
        forms = self._first if first and y.ndim > 2 else self._last
        forms[key_of(y)] = self.node(kind, *inputs, layer=self._layer if not self._open else "", **attributes)

    def _unused(self, what: str, name: str) -> str:
        """The name, with a number if a node or value has it already."""
        taken, count, found = self._names[what], 1, name
        while found in taken:
            count += 1
            found = f"{name} {count}"
        taken.add(found)
        return found


Translate = Callable[[Translation, Any, Any, Tensor], None]


def _elementwise(
    kind: str,
    numbers: Callable[[Any], Sequence[float]] = lambda f: (),
    attributes: Callable[[Any], dict[str, Any]] = lambda f: {},
) -> Translate:
    """numbers: those of the operation's options that are further inputs. attributes: those that are attributes."""

    def translate(g: Translation, f: Function, xs: Any, y: Tensor) -> None:
        first = g.has_first(xs)
        names = [g.first(x) if first and x.size > 1 else g.last(x) for x in xs]
        g.put(y, kind, *names, *map(g.number, numbers(f)), first=first, **attributes(f))

    return translate


def _expm1(g: Translation, _: Expm1, xs: Any, y: Tensor) -> None:
    g.put(y, "Sub", g.node("Exp", g.last(xs[0])), g.number(1))


def _where(g: Translation, f: Where, xs: Any, y: Tensor) -> None:
    g.put(y, "Where", g.constant(f.condition), *map(g.last, xs))


def _reshape(g: Translation, _: Reshape, xs: Any, y: Tensor) -> None:
    g.reshape(y, g.last(xs[0]), xs[0].shape)


def _transpose(g: Translation, f: Transpose, xs: Any, y: Tensor) -> None:
    if y.ndim:
        g.put(y, "Transpose", g.last(xs[0]), perm=f.axes)
    else:
        g.put(y, "Identity", g.last(xs[0]))


def _broadcast_to(g: Translation, f: BroadcastTo, xs: Any, y: Tensor) -> None:
    shape = [1] * (y.ndim - xs[0].ndim) + list(xs[0].shape)  # 1: as it is
    wanted = [1 if size == has else size for size, has in zip(f.shape, shape, strict=True)]
    g.put(y, "Expand", g.last(xs[0]), g.constant(wanted, "shape"))


def _sum(g: Translation, f: Sum, xs: Any, y: Tensor) -> None:
    g.put(y, "ReduceSum", g.last(xs[0]), g.constant(f.axes, "axes"), keepdims=int(f.keepdims), noop_with_empty_axes=1)


def _reduction(kind: str) -> Translate:
    def translate(g: Translation, f: Any, xs: Any, y: Tensor) -> None:
        if not f.axes:
            g.put(y, "Identity", g.last(xs[0]))
        else:
            g.put(y, kind, g.last(xs[0]), axes=f.axes, keepdims=int(f.keepdims))

    return translate


def _softmax(kind: str) -> Translate:
    def translate(g: Translation, f: Softmax, xs: Any, y: Tensor) -> None:
        if len(f.axes) == 1:
            g.put(y, kind, g.last(xs[0]), axis=f.axes[0])
            return
        x = g.last(xs[0])
        total = g.node("ReduceLogSumExp", x, axes=f.axes, keepdims=1) if f.axes else x
        if kind == "LogSoftmax":
            g.put(y, "Sub", x, total)
        else:
            g.put(y, "Exp", g.node("Sub", x, total))

    return translate


def _concatenate(g: Translation, f: Concatenate, xs: Any, y: Tensor) -> None:
    first = y.ndim > 2 and all(g.has_first([x]) for x in xs)
    axis = ((0, *range(2, y.ndim), 1)[f.axis]) if first else f.axis
    g.put(y, "Concat", *(g.first(x) if first else g.last(x) for x in xs), first=first, axis=axis)


def _pad(g: Translation, f: Pad, xs: Any, y: Tensor) -> None:
    before = [part.start for part in f.inside]
    after = [size - part.stop for part, size in zip(f.inside, y.shape, strict=True)]
    g.put(y, "Pad", g.last(xs[0]), g.constant([*before, *after], "widths"), g.number(f.value))


def _getitem(g: Translation, f: GetItem, xs: Any, y: Tensor) -> None:
    """Slices, numbers and None; or one array of whole numbers and whole axes besides."""
    (x,), parts = xs, list(f.key)
    arrays = [part for part in parts if hasattr(part, "dtype")]
    at = next(i for i, part in enumerate(parts) if part is Ellipsis)
    parts[at : at + 1] = [slice(None)] * (x.ndim - sum(part is not None and part is not Ellipsis for part in parts))
    if arrays:
        others = [part for part in parts if not hasattr(part, "dtype")]
        if len(arrays) > 1 or arrays[0].dtype == bool or others != [slice(None)] * len(others):
            raise ValueError("to_onnx: GetItem has no translation to ONNX for more than one array of whole numbers")
        place = next(i for i, part in enumerate(parts) if hasattr(part, "dtype"))
        g.put(y, "Gather", g.last(x), g.constant(arrays[0], "indices"), axis=place)
        return
    bounds = []
    for axis, part in enumerate(part for part in parts if part is not None):
        if isinstance(part, int):
            bounds.append((part, part + 1 if part != -1 else END, axis, 1))
        elif part != slice(None):
            step = part.step or 1
            start = (0 if step > 0 else END) if part.start is None else part.start
            bounds.append((start, (END if step > 0 else -END) if part.stop is None else part.stop, axis, step))
    name = g.last(x)
    if bounds:
        name = g.node("Slice", name, *(g.constant(values, "slice") for values in zip(*bounds, strict=True)))
    g.reshape(y, name)


def _matmul(g: Translation, _: MatMul, xs: Any, y: Tensor) -> None:
    g.put(y, "MatMul", *map(g.last, xs))


def _dense(g: Translation, _: Dense, xs: Any, y: Tensor) -> None:
    x, _, bias = xs
    names = [g.last(part) for part in xs if part is not None]
    if x.ndim == 2:
        g.put(y, "Gemm", *names)
    elif bias is None:
        g.put(y, "MatMul", *names)
    else:
        g.put(y, "Add", g.node("MatMul", *names[:2]), names[2])


def _sides(pads: Any) -> list[int]:
    """Top, left, bottom, right."""
    (top, bottom), (left, right) = pads
    return [top, left, bottom, right]


def _convolution(g: Translation, f: Conv2D, xs: Any, y: Tensor) -> None:
    _any_convolution("Conv", g, f, xs, y)


def _transposed_convolution(g: Translation, f: Conv2DTranspose, xs: Any, y: Tensor) -> None:
    """output_padding: the rows and columns at the end of the result that no filter reaches."""
    c = f.geometry
    spans = [(K - 1) * D + 1 for K, D in zip(c.kernel_size, c.dilation, strict=True)]
    sizes = zip(c.input_size, c.pads, spans, c.stride, strict=True)
    _any_convolution("ConvTranspose", g, f, xs, y, output_padding=[(H + sum(p) - K) % S for H, p, K, S in sizes])


def _any_convolution(
    kind: str, g: Translation, f: Conv2D | Conv2DTranspose, xs: Any, y: Tensor, **more: list[int]
) -> None:
    (x, weight, bias), c = xs, f.geometry
    names = [g.first(x), g.filters(weight), *([] if bias is None else [g.last(bias)])]
    sizes = {"kernel_shape": c.kernel_size, "strides": c.stride, "dilations": c.dilation, "pads": _sides(c.pads)}
    g.put(y, kind, *names, first=True, group=c.groups, **sizes, **more)


def _batch_norm(g: Translation, f: BatchNormInference, xs: Any, y: Tensor) -> None:
    x, gamma, beta = xs
    layer = g.call.names.get(id(gamma), "norm.gamma").rpartition(".")[0]
    statistics = [g.constant(f.mean, f"{layer}.moving_mean"), g.constant(f.variance, f"{layer}.moving_variance")]
    names = [g.first(x), g.last(gamma), g.last(beta), *statistics]
    g.put(y, "BatchNormalization", *names, first=True, epsilon=f.epsilon)


def _pool(kind: str) -> Translate:
    def translate(g: Translation, f: Any, xs: Any, y: Tensor) -> None:
        c = f.geometry
        counts = {"count_include_pad": int(f.count_include_pad)} if kind == "AveragePool" else {}
        sizes = {"kernel_shape": c.kernel_size, "strides": c.stride, "pads": _sides(c.pads)}
        g.put(y, kind, g.first(xs[0]), first=True, **sizes, **counts)

    return translate


def _upsample(g: Translation, f: UpsampleNearest, xs: Any, y: Tensor) -> None:
    scales = g.constant(np.array([1.0, 1.0, *f.factor]), "scales")
    how = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
    g.put(y, "Resize", g.first(xs[0]), "", scales, first=True, **how)


TRANSLATIONS: dict[type[Function], Translate] = {
    **{function: _elementwise(function.__name__) for function in (Add, Sub, Mul, Div, Neg, Exp, Log, Sqrt)},
    **{function: _elementwise(function.__name__) for function in (Sigmoid, Softplus, Tanh, Sin, Cos, Abs)},
    ReLU: _elementwise("Relu"),
    Maximum: _elementwise("Max"),
    Minimum: _elementwise("Min"),
    LeakyReLU: _elementwise("LeakyRelu", attributes=lambda f: {"alpha": f.slope}),
    Clip: _elementwise("Clip", lambda f: (f.low, f.high)),
    Pow: _elementwise("Pow", lambda f: (f.exponent,)),
    Expm1: _expm1,
    Where: _where,
    Reshape: _reshape,
    Transpose: _transpose,
    BroadcastTo: _broadcast_to,
    Sum: _sum,
    Max: _reduction("ReduceMax"),
    Min: _reduction("ReduceMin"),
    LogSumExp: _reduction("ReduceLogSumExp"),
    Softmax: _softmax("Softmax"),
    LogSoftmax: _softmax("LogSoftmax"),
    Concatenate: _concatenate,
    Pad: _pad,
    GetItem: _getitem,
    MatMul: _matmul,
    Dense: _dense,
    Conv2D: _convolution,
    Convolution: _convolution,
    Conv2DTranspose: _transposed_convolution,
    TransposedConvolution: _transposed_convolution,
    BatchNormInference: _batch_norm,
    MaxPool2D: _pool("MaxPool"),
    AvgPool2D: _pool("AveragePool"),
    UpsampleNearest: _upsample,
}
