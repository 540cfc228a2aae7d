"""`grad`: gradients as tensors, which can be differentiated again.

A Function is written once and read twice. `Tensor.backward` reads its `backward` with arrays. To differentiate a
gradient, `grad` reads the Function again, `forward` and `backward`, with Tensors in place of the arrays. Operators then
record what they compute, as do the kernels `self.k` (here `Recording`) and the functions of `self.k.xp` (here
`RecordingLibrary`). So the gradient is a result like any other, and what `forward` kept is one, too. A Function that
does anything else with its inputs is named in an error.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from typing import Any

from . import ops
from .backend import Array, quietly
from .backend.chain import ChainBackend
from .backend.geometry import ConvGeometry
from .ops.conv import Conv2D, Conv2DTranspose
from .ops.elementwise import unbroadcast
from .tensor import Function, Operand, Tensor, walk


@quietly
def grad(y: Tensor, xs: Tensor | Iterable[Tensor], gy: Operand = None, create_graph: bool = False) -> Any:
    """The gradient of (y * gy).sum() with respect to each x. `grad` attributes stay as they are, and the graph of y can
    be used again.

    >>> x = Tensor([3.0], requires_grad=True)
    >>> slope = minigrad.grad(x**3, x, create_graph=True)  # 3 x^2
    >>> minigrad.grad(slope, x).numpy().tolist()  # 6 x
    [18.0]

    Args:
        xs: a tensor, or several; leaves or results on the way to y.
        gy: the gradient with respect to y, of its shape. May be omitted for a single number, where it is 1. With
            create_graph it may be a Tensor of the graph.
        create_graph: whether the gradients are part of a graph, so that they can be differentiated again, to any order.

    Returns:
        a Tensor for one x, a tuple of Tensors for several.

    Raises:
        RuntimeError: y does not depend on an x; its graph was released; or a Function cannot be read with Tensors.
        ValueError: gy is missing or has the wrong shape.
        TypeError: y or an x is no Tensor.
    """
    given = (xs,) if isinstance(xs, Tensor) else tuple(xs)
    for x in (y, *given):
        if not isinstance(x, Tensor):
            raise TypeError(f"grad: y and xs must be Tensors, found a {type(x).__name__}")
    wanted = dict.fromkeys(given)  # == compares the elements of tensors
    start = y.checked_gradient(gy, "grad")
    start = (gy if isinstance(gy, Tensor) else Tensor(start)) if create_graph else start
    found: dict[Tensor, Any] = {y: start} if y in wanted else {}
    if y.creator is not None:
        leading = _leading_to(wanted, y)
        results = {x.creator.order: x for x in wanted if x.creator is not None}

        def run(function: Function, gy: Any) -> list[tuple[Tensor, Any]]:
            if function.order in results:
                found[results[function.order]] = gy
            needs = leading.get(function.order, ())
            if not any(needs):
                return []
            function.check_usable()
            return _read_again(function, gy, needs) if create_graph else _read(function, gy, needs)

        leaves = walk(y.creator, start, run, lambda a, b: a + b)
        found |= {x: gx for x, gx in leaves.items() if x in wanted}
    for i, x in enumerate(wanted):
        if x not in found:
            raise RuntimeError(f"grad: y does not depend on xs[{i}] {x.shape}, or that requires no gradient")
    gradients = {x: gx if isinstance(gx := found[x], Tensor) else Tensor(gx) for x in wanted}
    return gradients[xs] if isinstance(xs, Tensor) else tuple(gradients[x] for x in given)


def creators(ys: Iterable[Tensor], known: Container[int] = ()) -> list[tuple[Function, Tensor]]:
    """The functions that lead to ys, each with its output, in the order in which they ran. Those whose `order` is in
    `known`, and what leads to them alone, are left out."""
    found: dict[int, tuple[Function, Tensor]] = {}
    waiting = list(ys)
    while waiting:
        y = waiting.pop()
        function = y.creator
        if function is not None and function.order not in found and function.order not in known:
            found[function.order] = function, y
            waiting += [x for x in function.inputs or () if x is not None]
    return [found[order] for order in sorted(found)]


def _leading_to(wanted: dict[Tensor, None], y: Tensor) -> dict[int, tuple[bool, ...]]:
    """For each function on the way to y, by its order: which of its inputs lead to a wanted tensor."""
    leading: dict[int, tuple[bool, ...]] = {}
    for function, _ in creators([y]):
        if function.inputs is None:
            leading[function.order] = (True,)  # it was released, which its check says
            continue
        leading[function.order] = tuple(
            x is not None and needed and (x in wanted or (x.creator is not None and any(leading[x.creator.order])))
            for x, needed in zip(function.inputs, function.needs, strict=True)
        )
    return leading


def _copied(function: Function, **changes: Any) -> Function:
    """A Function of the same attributes; the original stays as it is for other walks."""
    copy = object.__new__(type(function))
    vars(copy).update(vars(function) | changes)
    return copy


def _read(function: Function, gy: Array, needs: tuple[bool, ...]) -> list[tuple[Tensor, Array]]:
    """Pairs (input, its gradient), computed with arrays."""
    copy = _copied(function, needs=needs)
    return copy.paired(copy.backward(gy))


def _read_again(function: Function, gy: Tensor, needs: tuple[bool, ...]) -> list[tuple[Tensor, Tensor]]:
    """Pairs (input, its gradient), computed with Tensors."""
    copy = _copied(function, needs=needs, k=Recording(function.k))
    assert copy.inputs is not None
    try:
        copy.forward(*copy.inputs)
        gxs = copy.backward(gy)
    except (TypeError, AttributeError, NotImplementedError) as error:
        raise RuntimeError(
            f"grad: the gradient of {function.name} cannot be differentiated: {error}. Its forward and backward must "
            "compute with operators, self.k and self.k.xp"
        ) from error
    return copy.paired(tuple(gx if gx is None or isinstance(gx, Tensor) else Tensor(gx) for gx in gxs))


def forward_again(function: Function) -> Tensor:
    """The output of a Function that was recorded, computed once more with Tensors: a graph of simpler operations.

    Raises:
        TypeError, AttributeError, NotImplementedError: its forward does something else than compute with operators,
            `self.k` and `self.k.xp`.
    """
    assert function.inputs is not None
    y = _copied(function, k=Recording(function.k)).forward(*function.inputs)
    return y if isinstance(y, Tensor) else Tensor(y)


# ---- kernels on Tensors ----


class Linear(Function):
    """y = kernel(x, *options), which is linear in x.  gx = adjoint(gy, *adjoint_options)."""

    def __init__(self, kernel: str, options: tuple[Any, ...], adjoint: str, adjoint_options: tuple[Any, ...]) -> None:
        self.kernel, self.options, self.adjoint, self.adjoint_options = kernel, options, adjoint, adjoint_options

    def forward(self, x: Array) -> Array:
        return getattr(self.k, self.kernel)(x, *self.options)

    def backward(self, gy: Array) -> tuple[Array, ...]:
        return (getattr(self.k, self.adjoint)(gy, *self.adjoint_options),)


class Convolution(Conv2D):
    """conv2d with a geometry that is known."""

    def __init__(self, geometry: ConvGeometry) -> None:
        self.geometry = geometry

    def forward(self, x: Array, weight: Array, bias: Array | None) -> Array:
        self.x, self.weight = x, weight
        return self.k.conv2d(x, weight, bias, self.geometry)


class TransposedConvolution(Conv2DTranspose):
    """conv2d_grad_input with a geometry that is known."""

    def __init__(self, geometry: ConvGeometry) -> None:
        self.geometry = geometry

    def forward(self, x: Array, weight: Array, bias: None) -> Array:
        self.x, self.weight = x, weight
        return self.k.conv2d_grad_input(x, weight, self.geometry)


class WeightGradient(Function):
    """y = conv2d_grad_weight(x, g), linear in both.  gx = conv2d_grad_input(g, gy), gg = conv2d(x, gy)."""

    bilinear = True

    def __init__(self, geometry: ConvGeometry) -> None:
        self.geometry = geometry

    def forward(self, x: Array, g: Array) -> Array:
        self.x, self.g = x, g
        return self.k.conv2d_grad_weight(x, g, self.geometry)

    def backward(self, gy: Array) -> tuple[Array | None, ...]:
        gx = self.k.conv2d_grad_input(self.g, gy, self.geometry) if self.needs[0] else None
        return gx, (self.k.conv2d(self.x, gy, None, self.geometry) if self.needs[1] else None)


class Recording(ChainBackend):
    """The kernels on Tensors. The plain ones are inherited where they are made of operators and functions of `xp`. The
    others are operations here."""

    def __init__(self, k: Any) -> None:
        self.real = k
        self.xp, self.on_host = RecordingLibrary(self.real.xp), self.real.on_host

    def from_host(self, array: Array) -> Array:
        return self.real.from_host(array)

    def sum(self, x: Any, axes: tuple[int, ...] | None = None, keepdims: bool = False) -> Any:
        return ops.sum(x, axes, keepdims) if isinstance(x, Tensor) else self.real.sum(x, axes, keepdims)

    def channel_sum(self, x: Any) -> Any:
        return ops.sum(x, tuple(range(x.ndim - 1)))

    def conv2d(self, x: Any, weight: Any, bias: Any, geometry: ConvGeometry) -> Any:
        return Convolution(geometry)(x, weight, bias)

    def conv2d_grad_input(self, gy: Any, weight: Any, geometry: ConvGeometry) -> Any:
        return TransposedConvolution(geometry)(gy, weight, None)

    def conv2d_grad_weight(self, x: Any, gy: Any, geometry: ConvGeometry) -> Any:
        return WeightGradient(geometry)(x, gy)

    def largest(self, x: Any, axes: tuple[int, ...]) -> Any:
        return ops.max(x, axes, keepdims=True)

    def smallest(self, x: Any, axes: tuple[int, ...]) -> Any:
        return ops.min(x, axes, keepdims=True)

    def bernoulli_nll(self, logits: Any, targets: Any) -> Any:
        return ops.sum(ops.softplus(logits) - logits * targets)

    def moments(self, x: Any) -> tuple[Any, Any]:
        axes = tuple(range(x.ndim - 1))
        return ops.mean(x, axes), ops.var(x, axes)

    def max_pool(self, x: Any, geometry: ConvGeometry) -> tuple[Any, Array]:
        _, winners = self.real.max_pool(x.data, geometry)
        return self.take_windows(x, winners, geometry), winners

    def take_windows(self, x: Any, winners: Array, geometry: ConvGeometry) -> Any:
        return Linear("take_windows", (winners, geometry), "put_windows", (winners, geometry))(x)

    def put_windows(self, gy: Any, winners: Array, geometry: ConvGeometry) -> Any:
        return Linear("put_windows", (winners, geometry), "take_windows", (winners, geometry))(gy)

    def sum_windows(self, x: Any, geometry: ConvGeometry) -> Any:
        return Linear("sum_windows", (geometry,), "spread_windows", (geometry,))(x)

    def spread_windows(self, gy: Any, geometry: ConvGeometry) -> Any:
        return Linear("spread_windows", (geometry,), "sum_windows", (geometry,))(gy)

    def take(self, x: Any, key: Any) -> Any:
        return Linear("take", (key,), "add_at", (key, x.shape))(x)

    def add_at(self, gy: Any, key: Any, shape: tuple[int, ...]) -> Any:
        return Linear("add_at", (key, shape), "take", (key,))(gy)

    def interpolation_matrix(self, size: int, new_size: int, dtype: Any) -> Array:
        return self.real.interpolation_matrix(size, new_size, dtype)


for name in ("matmul", "relu", "sigmoid", "softplus", "softmax", "log_softmax"):
    setattr(Recording, name, staticmethod(getattr(ops, name)))


class BroadcastTo(Function):
    """x repeated along axes that it lacks, or where it has size 1.  gx is the sum of gy over them."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def forward(self, x: Array) -> Array:
        self.x_shape = x.shape
        return self.k.xp.broadcast_to(x, self.shape)

    def backward(self, gy: Array) -> tuple[Array, ...]:
        return (unbroadcast(self.k, gy, self.x_shape),)


class Expm1(Function):
    """y = e^x - 1.  gx = gy * (y + 1)."""

    def forward(self, x: Array) -> Array:
        self.y = self.k.xp.expm1(x)
        return self.y

    def backward(self, gy: Array) -> tuple[Array, ...]:
        return (gy * (self.y + 1),)


RECORDED: dict[str, Callable[..., Any]] = {
    **{name: getattr(ops, name) for name in ("abs", "clip", "cos", "exp", "log", "sin", "sqrt", "tanh")},
    **{name: getattr(ops, name) for name in ("concatenate", "maximum", "minimum", "stack", "where")},
    "copy": lambda x: x,
    "broadcast_to": lambda x, shape: BroadcastTo(shape)(x),
    "expm1": lambda x: Expm1()(x),
    "pad": lambda x, widths, constant_values: ops.pad(x, widths, constant_values),
}
CONSTANT = {"isfinite", "isnan", "ones_like", "sign", "zeros_like"}  # their derivative is 0


class RecordingLibrary:
    """NumPy or CuPy, whose functions record when one of their arguments is a Tensor."""

    def __init__(self, xp: Any) -> None:
        self._xp = xp

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._xp, name)
        if not callable(real) or isinstance(real, type):
            return real

        def call(*arguments: Any, **options: Any) -> Any:
            listed = arguments[0] if arguments and isinstance(arguments[0], list | tuple) else ()
            if not any(isinstance(x, Tensor) for x in (*arguments, *listed)):
                return real(*arguments, **options)
            if name in CONSTANT:
                return real(arguments[0].data)
            if name not in RECORDED:
                raise NotImplementedError(f"xp.{name} is not known with a Tensor")
            return RECORDED[name](*arguments, **options)

        return call
