"""Module and Parameter: named weights and the things made of them.

A Module's attributes are parameters (trained), buffers (other tensors, saved but not trained) and further modules.
Modules are also found in lists, tuples and dicts; tensors there are not. Names follow the attributes,
`encoder.conv1.weight`, `blocks.0.weight`, in the order of assignment. Every tensor attribute is a buffer, so `forward`
must not keep results as attributes.

A tensor or module may have several names, for example a layer that is used twice, or one weight in two layers. It
counts once, under its first name; only `state_dict` holds it under every name.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from .. import init
from ..backend import Array, as_array, backend_of, default_backend, quietly, to_device
from ..context import Setting
from ..random import generator
from ..tensor import Tensor, is_evaluating
from .summary import format_summary, run_layers

_training: ContextVar[tuple[Setting, ...]] = ContextVar("minigrad_training", default=())
_parameters_made = itertools.count()


class Parameter(Tensor):
    """A trained tensor. Its `grad` is never None; it starts as zeros. An optimiser moves both into flat arrays.

    With `requires_grad = False` it is frozen: no optimiser changes it until this is True again.

    The first values depend on the number of parameters made before in this process, so that no two layers start alike.
    `Module.initialize` samples them from a seed.

    Args:
        shape: shape of the array. initializer: a function of init.py, called as initializer(rng, shape, *fans).
        fans: (fan_in, fan_out).
    """

    grad: Array

    def __init__(
        self, shape: tuple[int, ...], initializer: init.Initializer = init.zeros, fans: tuple[int, int] = (1, 1)
    ) -> None:
        if getattr(shape, "ndim", 0):
            raise TypeError(
                f"Parameter: shape must be a tuple of whole numbers, found a {type(shape).__name__} of shape "
                f"{shape.shape}; for its values, make p = Parameter(x.shape) and set p.data[...] = x"  # type: ignore[attr-defined]
            )
        k = default_backend()
        super().__init__(k.xp.zeros(shape, dtype="float32"), requires_grad=True)
        self.grad = k.xp.zeros(shape, dtype="float32")
        self.initializer, self.fans = initializer, fans
        self.initialize(generator(0, "init", next(_parameters_made)))

    def initialize(self, rng: Any) -> None:
        """Sample new values, in place."""
        values = self.initializer(rng, self.shape, *self.fans).astype(self.dtype)
        self.data[...] = backend_of(self.data).from_host(values)
        self.mark_written()

    def zero_grad(self) -> None:
        """Set the gradient to zero, in place."""
        self.grad[...] = 0


class Module:
    """Base of layers and models: define attributes in `__init__` and the computation in `forward`.

    Tensors inside lists, tuples or dicts are not found, but modules are.

    Attributes:
        training_mode: set by `train` and `eval`; None: training only inside `nn.training`.
    """

    training_mode: bool | None = True

    def __repr__(self) -> str:
        """A line for each module, with the shapes of its tensors."""
        lines = []
        for name, module in self.modules():
            place, own = name.rpartition("."), [(n, x) for n, x in vars(module).items() if isinstance(x, Tensor)]
            label = "  " * (name.count(".") + bool(name)) + (f"{place[2]}: " if name else "")
            lines.append(f"{label}{type(module).__name__}({', '.join(f'{n} {x.shape}' for n, x in own)})")
        return "\n".join(lines)

    def forward(self, *inputs: Any) -> Any:
        raise NotImplementedError

    def __call__(self, *inputs: Any) -> Any:
        return self.forward(*inputs)

    def children(self) -> Iterator[tuple[str, Module]]:
        """(name, module) for each module among the attributes, and as name.0, name.1, ... or name.key for those inside
        lists, tuples and dicts."""
        for name, value in vars(self).items():
            yield from _modules_in(name, value)

    def modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """(full name, module) for this module (named by the prefix) and all below it, parents first, each once."""
        yield from _first(self._places(prefix, ()))

    def _places(self, prefix: str, above: tuple[Module, ...]) -> Iterator[tuple[str, Module]]:
        """Like `modules`, but under every name. A module that contains itself is not entered again."""
        yield prefix, self
        above = (*above, self)
        for name, child in self.children():
            if not any(child is module for module in above):
                yield from child._places(f"{prefix}.{name}" if prefix else name, above)

    def named_tensors(self, *, every_name: bool = False) -> Iterator[tuple[str, Tensor]]:
        """(full name, tensor) for all parameters and buffers, each once or under every one of its names."""
        found = (
            (f"{prefix}.{name}" if prefix else name, value)
            for prefix, module in self._places("", ())
            for name, value in vars(module).items()
            if isinstance(value, Tensor)
        )
        yield from found if every_name else _first(found)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(full name, parameter) for all parameters, without the buffers."""
        yield from ((name, x) for name, x in self.named_tensors() if isinstance(x, Parameter))

    def parameters(self) -> list[Parameter]:
        """All parameters, in the order of assignment."""
        return [parameter for _, parameter in self.named_parameters()]

    @property
    def trainable(self) -> bool:
        """Whether no parameter of this module is frozen."""
        return all(parameter.requires_grad for parameter in self.parameters())

    @trainable.setter
    def trainable(self, value: bool) -> None:
        """Freeze (False) or unfreeze (True) all parameters of this module."""
        for parameter in self.parameters():
            parameter.requires_grad = bool(value)

    def zero_grad(self) -> None:
        """Set all gradients to zero, in place. `backward` adds to them."""
        for parameter in self.parameters():
            parameter.zero_grad()

    def initialize(self, seed: int = 0) -> None:
        """Sample all parameters anew, each from generator(seed, "init", its full name). Buffers do not change, but
        layers that draw random numbers begin anew, each with generator(seed, "draws", its full name)."""
        for name, parameter in self.named_parameters():
            parameter.initialize(generator(seed, "init", name))
        for name, module in self.modules():
            module.restart_draws(generator(seed, "draws", name))

    def restart_draws(self, rng: Any) -> None:
        """Begin anew with the random numbers of this layer; layers that draw some override it."""

    @property
    def training(self) -> bool:
        """Whether this module is in training mode here: by its own mode, and outside `evaluation`."""
        return bool(_training.get() if self.training_mode is None else self.training_mode) and not is_evaluating()

    @training.setter
    def training(self, mode: bool | None) -> None:
        """Set the mode of this module, but not of those below it."""
        self.training_mode = mode

    def train(self, mode: bool | None = True) -> None:
        """Training mode: BatchNorm uses the statistics of the batch and updates the moving ones."""
        for _, module in self.modules():
            module.training_mode = mode

    def eval(self) -> None:
        """Evaluation mode: BatchNorm uses the moving statistics."""
        self.train(False)

    @quietly
    def to(self, device: str | None = None, dtype: str | None = None) -> None:
        """Move the whole model to a device ("cpu", "cuda:0") or dtype ("float32", "float64").

        All parameters get new arrays and zero gradients, so make optimisers afterwards.
        """
        for _, x in self.named_tensors():
            x.data, x.version = to_device(x.data, device or x.device).astype(dtype or x.dtype), [0]
            if isinstance(x, Parameter):
                x.grad = backend_of(x.data).xp.zeros_like(x.data)

    def state_dict(self) -> dict[str, Array]:
        """Copies of all parameters and buffers as NumPy arrays, by full name."""
        return {name: x.numpy().copy() for name, x in self.named_tensors(every_name=True)}

    @quietly
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set all parameters and buffers, in place. Nothing changes unless everything fits.

        Raises:
            ValueError: names are missing or unexpected, shapes differ, values are not numbers, or two names of one
                tensor have different values; the message lists them all.
        """
        own = dict(self.named_tensors(every_name=True))
        first: dict[int, str] = {}  # the first name of each tensor
        faults = [f"missing {name}" for name in own if name not in state]
        faults += [f"unexpected {name}" for name in state if name not in own]
        for name, x in own.items():
            twin = first.setdefault(id(x), name)
            if name in state and tuple(state[name].shape) != x.shape:
                faults.append(f"{name} is {tuple(state[name].shape)} but must be {x.shape}")
            elif name in state and state[name].dtype.kind not in "biuf":
                faults.append(f"{name} is {state[name].dtype} but must hold real numbers")
            elif twin != name and not faults:
                ours, theirs = (as_array(state[n]).astype(x.dtype).tobytes() for n in (name, twin))
                faults += [f"{name} and {twin} are one tensor here but have different values"] * (ours != theirs)
        if faults:
            raise ValueError("load_state_dict: " + "; ".join(faults))
        for name, x in own.items():
            x.data[...] = to_device(as_array(state[name]), x.device)
            x.mark_written()

    def multiply_adds(self, x_shape: tuple[int, ...], y_shape: tuple[int, ...]) -> int:
        """The number of multiplications with weights for these shapes; layers with weights override it."""
        return 0


class Sequential(Module):
    """Modules applied one after another.

    Args:
        modules: named "0", "1", ... in order; or one dict from names to modules.
    """

    def __init__(self, *modules: Module | dict[str, Module]) -> None:
        only = modules[0] if len(modules) == 1 else None
        named = only if isinstance(only, dict) else {str(i): module for i, module in enumerate(modules)}
        self.layers: dict[str, Module] = named  # type: ignore[assignment]

    def children(self) -> Iterator[tuple[str, Module]]:
        yield from self.layers.items()

    def __getitem__(self, key: Any) -> Any:
        """A module by name or number, or a list of them by a slice."""
        return self.layers[key] if isinstance(key, str) else list(self.layers.values())[key]

    def forward(self, x: Any) -> Any:
        for layer in self.layers.values():
            x = layer(x)
        return x

    def summary(self, input_shape: tuple[int, ...]) -> str:
        """A table of the layers for one input of this shape, without the batch axis."""
        return format_summary(self.summary_rows(input_shape))

    def summary_rows(self, input_shape: tuple[int, ...]) -> list[tuple[str, Module, tuple[int, ...], int]]:
        """(name, layer, output shape, multiply-adds) of each layer, found by running one image of zeros."""
        return run_layers(self, input_shape)


def training() -> Setting:
    """A context in which modules whose mode is None are in training mode, in this thread only: a Trainer's step."""
    return Setting("nn.training", _training)


def _modules_in(name: str, value: Any) -> Iterator[tuple[str, Module]]:
    """(name, module) of a module, or of all those in nested lists, tuples and dicts."""
    if isinstance(value, Module):
        yield name, value
    elif isinstance(value, list | tuple | dict):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _modules_in(f"{name}.{key}", part)


def _first(pairs: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """The first pair (name, object) of each object."""
    seen: set[int] = set()
    for name, x in pairs:
        if id(x) not in seen:
            seen.add(id(x))
            yield name, x
