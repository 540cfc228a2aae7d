"""Tensor, Function, no_grad and evaluation: the whole autodiff engine.

A `Tensor` is an array that remembers the `Function` that made it. Functions remember their input tensors, so the
tensors and functions of one computation form a graph. `Tensor.backward` walks that graph from a result to the leaves,
in the reverse of the order in which the functions ran, and adds up gradients.

Arrays are NumPy's or CuPy's: `backend_of(x)` has the kernels for x, and its `xp` is the library itself.
"""

from __future__ import annotations

import heapq
import itertools
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from numbers import Real
from typing import Any

from .backend import Array, Backend, as_array, backend_of, default_backend, in_memory, quietly
from .checks import check_unwritten
from .context import Setting

Operand = Any  # what an operation takes as an input: a Tensor, an array, a (nested) list or a Python number

# The contexts that are active; each thread and each async task has its own.
_unrecorded: ContextVar[tuple[Setting, ...]] = ContextVar("minigrad_no_grad", default=())
_evaluating: ContextVar[tuple[Setting, ...]] = ContextVar("minigrad_evaluation", default=())
_running_order = itertools.count()


def no_grad(function: Any = None) -> Any:
    """A context in which operations record no graph, so that their results keep no memory for a backward pass.

    It applies to the thread or async task that enters it. It is also a decorator of functions and generators:
    `@no_grad()` or `@no_grad`.
    """
    return Setting("no_grad", _unrecorded).around(function)


def is_recording() -> bool:
    """Whether operations record a graph here, that is, outside `no_grad`."""
    return not _unrecorded.get()


def evaluation(function: Any = None) -> Any:
    """A context in which every module is in evaluation mode, whatever its own mode: BatchNorm uses its moving
    statistics and changes nothing.

    Like `no_grad` it applies to the thread or async task that enters it, and is also a decorator.
    """
    return Setting("evaluation", _evaluating).around(function)


def is_evaluating() -> bool:
    """Whether this is inside `evaluation`."""
    return bool(_evaluating.get())


class Tensor:
    """An array with a gradient.

    `bool`, `float` and `int` convert a Tensor of one element. `x[key]`, `len(x)` and iteration are NumPy's. Comparisons
    such as `x > y` give boolean arrays without a gradient.

    Args:
        data: a float32 or float64 array on any device, which is not copied; or a number or nested list, which becomes a
            float32 array on the device chosen by `minigrad.use`.
        requires_grad: whether `backward` adds up a gradient in `grad`.

    Attributes:
        data: the array. grad: its gradient, an array of the same shape, or None.
        creator: the Function that computed this tensor. None for a leaf, which was made by hand, inside `no_grad`, or
            from inputs that require no gradient.
        version: a list with one number, how often `mark_written` was called. All views of one array share the list.

    Raises:
        TypeError: data is neither an array of float32 or float64 nor numbers.
    """

    __array_ufunc__ = None  # makes `ndarray + Tensor` call Tensor.__radd__ instead of NumPy's own addition

    def __init__(self, data: Operand, requires_grad: bool = False) -> None:
        self.data: Array = as_array(data)
        if self.data.dtype not in ("float32", "float64"):
            how = "convert it, x.astype('float32')" if self.data.dtype.kind in "biuf" else "give it real numbers"
            raise TypeError(f"Tensor: data is {self.data.dtype} but must be float32 or float64; {how}")
        self.requires_grad = requires_grad
        self.grad: Array | None = None
        self.creator: Function | None = None
        self.version = [0]

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of each axis."""
        return self.data.shape

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self.data.ndim

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.data.size

    @property
    def dtype(self) -> Any:
        """float32 or float64."""
        return self.data.dtype

    @property
    def device(self) -> str:
        """`"cpu"`, `"cuda:0"`, ..."""
        return backend_of(self.data).device_of(self.data)

    def __repr__(self) -> str:
        made_by = "" if self.creator is None else f", made by {self.creator.name}"
        return f"Tensor({self.numpy()}, shape={self.shape}, {self.dtype}, {self.device}{made_by})"

    def numpy(self) -> Array:
        """The data as a NumPy array. On the CPU it shares memory with the tensor."""
        return backend_of(self.data).to_host(self.data)

    def item(self) -> float:
        """The only element as a Python number.

        Raises:
            ValueError: the tensor does not have exactly one element.
        """
        if self.size != 1:
            raise ValueError(f"item: the tensor has {self.size} elements (shape {self.shape}), not 1")
        return self.numpy().item()

    def __bool__(self) -> bool:
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else str(self)

    def _for_arrays_only(self, *_: Any) -> Any:
        raise TypeError("Tensor: search, convert or assign to its array: 1.0 in x.data, x.data[0] = 1.0")

    __contains__ = __setitem__ = __array__ = _for_arrays_only
    __hash__ = object.__hash__  # each tensor is a dict key of its own

    def _operation(self, *_: Any, **__: Any) -> Tensor:
        """`ops/__init__.py` replaces it by the operation of the same name, because imports go one way."""
        raise NotImplementedError

    _for_others: Any = _operation  # operations that give no single Tensor
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = argmax = argmin = split = _for_others
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _operation
    __matmul__ = __rmatmul__ = __pow__ = __neg__ = __abs__ = __getitem__ = _operation
    abs = clip = cos = exp = log = relu = sigmoid = sin = sqrt = tanh = _operation
    log_softmax = logsumexp = max = mean = min = softmax = std = sum = var = _operation
    expand_dims = flip = reshape = squeeze = swapaxes = transpose = _operation

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    @property
    def T(self) -> Tensor:
        """The axes in reverse order."""
        return self.transpose()

    def detach(self) -> Tensor:
        """A leaf that shares this tensor's data and stops gradients."""
        y = Tensor(self.data)
        y.version = self.version
        return y

    def retain_grad(self) -> None:
        """Let `backward` add up a gradient in `grad` here as well, though this tensor is no leaf.

        Raises:
            RuntimeError: this tensor does not require a gradient.
        """
        if not self.requires_grad:
            raise RuntimeError("retain_grad: this tensor requires no gradient, nor does anything it was made from")
        if self.creator is not None:
            vars(self.creator)["retained"] = weakref.ref(self)  # a strong one would close a circle

    def mark_written(self) -> None:
        """Record that values in `data` were changed in place, so that `backward` raises if it needs the old ones.

        `optimizer.step`, `load_state_dict` and `initialize` do this. A write by hand, `x.data[...] = 0`, goes unnoticed
        and leads to wrong gradients.
        """
        self.version[0] += 1

    def __getstate__(self) -> dict[str, Any]:
        """The state that copies and pickles hold."""
        if self.creator is not None:
            raise RuntimeError(
                f"copy: a tensor made by {self.creator.name} is part of a graph, which cannot be copied or pickled; "
                "take its detach()"
            )
        return vars(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.data, self.grad = in_memory(self.data), in_memory(self.grad)

    @quietly
    def backward(self, gy: Operand = None, retain_graph: bool = False) -> None:
        """Add the gradient of (this tensor * gy).sum() to `grad` of every leaf that requires one.

        The arrays that a function saved are released as soon as they are used.

        Args:
            gy: the gradient with respect to this tensor, of its shape and dtype. May be omitted for a single number,
                where it is 1.
            retain_graph: keep what is saved, so that this graph can be used again.

        Raises:
            RuntimeError: nothing here requires a gradient; part of the graph was already used; or needed values were
                changed by an optimiser, `load_state_dict` or `initialize`.
            ValueError: gy is missing or has the wrong shape; a Function returned a gradient of wrong shape.
        """
        if not self.requires_grad:
            raise RuntimeError("backward: this tensor does not require a gradient, nor does anything it was made from")
        gy = self.checked_gradient(gy)
        if self.creator is None:
            _add_to_grad({self: gy})
            return
        retained: dict[Tensor, Array] = {}

        def run(function: Function, gy: Array) -> list[tuple[Tensor, Array]]:
            if (y := function.retained()) is not None:
                retained[y] = gy
            return function.run_backward(gy, retain_graph)

        # not in place, because gx may be shared; as_array, because NumPy adds two 0-d arrays to a scalar
        leaves = walk(self.creator, gy, run, lambda a, b: as_array(a + b))
        _add_to_grad(retained | leaves)

    def checked_gradient(self, gy: Operand, name: str = "backward") -> Array:
        """gy as an array; 1 for None and a single number. `name` is the operation, for messages."""
        if gy is None:
            if self.size != 1:
                raise ValueError(f"{name}: a tensor of shape {self.shape} needs gy; only a single number does not")
            return backend_of(self.data).xp.ones_like(self.data)
        if isinstance(gy, Real):
            gy = backend_of(self.data).xp.full((), gy, dtype=self.dtype)
        gy = as_array(gy.data if isinstance(gy, Tensor) else gy)
        backend_of(self.data, gy)
        if gy.shape != self.shape or gy.dtype != self.dtype:
            raise ValueError(
                f"{name}: gy is {gy.dtype} of shape {gy.shape} but the tensor is {self.dtype} of shape {self.shape}"
            )
        return gy


def walk(
    last: Function, gy: Any, run: Callable[[Function, Any], list[tuple[Tensor, Any]]], add: Callable[[Any, Any], Any]
) -> dict[Tensor, Any]:
    """The gradient of each leaf, from that of the last function's output.

    Functions run backward in the reverse of the order in which they ran, so that each has received the gradients of all
    its uses when its turn comes. run(function, gy) gives pairs (input, its gradient); `add` adds two gradients.
    """
    # Gradients that may not be complete yet. That of a function's only output is under the function's order, until the
    # function runs backward. That of a leaf is under the leaf, until the end.
    waiting: dict[int | Tensor, Any] = {last.order: gy}
    queue = [(-last.order, last)]  # a heap: the function that ran last comes first
    while queue:
        _, function = heapq.heappop(queue)
        for x, gx in run(function, waiting.pop(function.order)):
            receiver = x if x.creator is None else x.creator.order
            if receiver in waiting:
                waiting[receiver] = add(waiting[receiver], gx)
                continue
            waiting[receiver] = gx
            if x.creator is not None:
                heapq.heappush(queue, (-x.creator.order, x.creator))
    return {x: gx for x, gx in waiting.items() if isinstance(x, Tensor)}


def _add_to_grad(gradients: dict[Tensor, Array]) -> None:
    """Add each gradient to its tensor's `grad`, in place. A tensor without one (never a Parameter) gets a copy, because
    what `backward` returned may be shared with other tensors."""
    added = {x: gx for x, gx in gradients.items() if x.grad is not None}
    for x, gx in gradients.items():
        if x.grad is None:
            x.grad = gx.copy()
    if added:
        backend_of(*added.values()).add_all_([x.grad for x in added], list(added.values()))


class Function:
    """One application of a differentiable operation. Subclass it to add an operation:

    `__init__` takes the options, `forward` the input arrays, and `backward` the gradient of the output.
    Whatever `backward` needs, `forward` keeps as attributes.

        class Square(Function):
            def forward(self, x):
                self.x = x
                return x * x

            def backward(self, gy):
                return (2 * self.x * gy,)

        y = Square()(x)

    Attributes:
        k: the kernels of the device of the inputs; `k.xp` is the array library.
        needs: for each input, whether its gradient is needed; `backward` may return None for the others.
        bilinear: as in a product, the gradient of the first input needs only the second input, and the reverse. Then
            one of them may change if the other needs no gradient.
        optional: how many of the last inputs may be None, that is, absent.
    """

    k: Backend
    needs: tuple[bool, ...]
    bilinear = False
    optional = 0
    inputs: tuple[Tensor | None, ...] | None = None  # set by a call that is recorded
    read: list[tuple[Array, list[int], int] | None]  # for each input its array, and its version as it was
    order: int
    used = False  # whether its backward pass has run
    retained: Callable[[], Tensor | None] = staticmethod(lambda: None)  # the output, if it keeps its gradient

    @property
    def name(self) -> str:
        """The class's name, for messages."""
        return type(self).__name__

    def __repr__(self) -> str:
        read = ", ".join(str(x.shape) for x in self.inputs or () if x is not None)
        return f"<{self.name} of {read}>" if read else f"<{self.name}{', used' if self.used else ''}>"

    def forward(self, *xs: Any) -> Array:
        """The output array from the input arrays; an absent input is None. Must not change its inputs."""
        raise NotImplementedError

    def backward(self, gy: Array) -> tuple[Array | None, ...]:
        """One gradient for each input, of the input's shape. Must not change gy, but may return it or a view of it,
        even twice: nothing is written into the results."""
        raise NotImplementedError

    @quietly
    def __call__(self, *operands: Operand) -> Tensor:
        """Run forward, and record this function in the graph if a gradient may be needed.

        Raises:
            TypeError: the inputs are on different devices or have different dtypes.
            RuntimeError: this object is or was part of a graph.
        """
        if self.used or self.inputs is not None:  # what it saved for that graph would be overwritten, or is gone
            raise RuntimeError(f"{self.name}: a Function object serves one call; make a new one")
        inputs = self._as_tensors(operands)
        recording = is_recording()
        vars(self)["needs"] = tuple(x is not None and x.requires_grad and recording for x in inputs)
        y = Tensor(self.forward(*(None if x is None else x.data for x in inputs)))
        for x in inputs:
            if x is not None and self.k.xp.may_share_memory(x.data, y.data):
                y.version = x.version  # a view
        if any(self.needs):
            read = [None if x is None else (x.data, x.version, x.version[0]) for x in inputs]
            vars(self).update(inputs=inputs, read=read, order=next(_running_order))
            y.requires_grad = True
            y.creator = self
        return y

    def _as_tensors(self, operands: tuple[Operand, ...]) -> tuple[Tensor | None, ...]:
        """Operands as tensors of one device and dtype. Python numbers take those of the first tensor."""
        if any(x is None for x in operands[: len(operands) - self.optional]):
            raise TypeError(f"{self.name}: found None where an input is needed")
        given = [x if x is None or isinstance(x, Tensor | Real) else Tensor(x) for x in operands]
        tensors = [x for x in given if isinstance(x, Tensor)]
        k = backend_of(*(x.data for x in tensors), what=self.name) if tensors else default_backend()
        vars(self)["k"] = k  # a Function may be a frozen dataclass, which refuses self.k = k
        dtype = tensors[0].dtype if tensors else "float32"
        if any(x.dtype != dtype for x in tensors):
            raise TypeError(
                f"{self.name}: inputs have different dtypes: {', '.join(f'{x.dtype} {x.shape}' for x in tensors)}; "
                "convert the array, x.astype('float32'), or the model, model.to(dtype='float64')"
            )
        return tuple(x if x is None or isinstance(x, Tensor) else Tensor(k.xp.full((), x, dtype=dtype)) for x in given)

    def run_backward(self, gy: Array, keep: bool = False) -> list[tuple[Tensor, Array]]:
        """Pairs (input, its gradient) for the inputs that need one. Works only once, unless the graph is kept."""
        self.check_usable()
        pairs = [(x, as_array(gx)) for x, gx in self.paired(self.backward(gy))]
        if not keep:
            order = self.order
            vars(self).clear()  # releases the saved arrays and the way to earlier functions
            vars(self).update(order=order, used=True)  # so that a second walk comes here and is told that it was used
        return pairs

    def check_usable(self) -> None:
        """Raise RuntimeError if the graph was released, or what is needed was changed."""
        if self.inputs is None:
            raise RuntimeError(
                f"backward: the graph through this {self.name} was used before and released; compute the result again, "
                "or use retain_graph=True"
            )
        check_unwritten(self)

    def paired(self, gxs: tuple[Any, ...]) -> list[tuple[Tensor, Any]]:
        """Pairs (input, its gradient) for the inputs that need one, from the result of `backward`."""
        assert self.inputs is not None
        if len(gxs) != len(self.inputs):
            raise ValueError(f"{self.name}.backward: {len(gxs)} gradients for {len(self.inputs)} inputs")
        pairs = []
        for i, (x, gx, needed) in enumerate(zip(self.inputs, gxs, self.needs, strict=True)):
            if x is None or not needed:
                continue
            if gx is None or gx.shape != x.shape or gx.dtype != x.dtype:
                found = "None" if gx is None else f"{gx.dtype} {gx.shape}"
                raise ValueError(f"{self.name}.backward: gradient {i} is {found} but input {i} is {x.dtype} {x.shape}")
            pairs.append((x, gx))
        return pairs

    def check_device(self, x: Any, *others: Array) -> None:
        """Raise TypeError unless arrays among the options are on the device of the input x."""
        backend_of(x.data if isinstance(x, Tensor) else x, *others, what=self.name)
