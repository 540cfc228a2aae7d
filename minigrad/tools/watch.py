"""Watcher: sees every operation, layer and update that runs, for the profiler, `detect_anomaly` and `explain`.

It costs nothing while nothing is watched, because the engine does not know it. Entering the context replaces
`Function.__call__`, `Function.run_backward`, `Module.__call__`, every optimiser's `update` and `optim.clip_grad_norm`
by wrappers, and leaving it restores the originals. Only the thread that entered is watched.
Meanwhile a ConvChain (ops/conv_chain.py, made by nn.fuse) runs link by link, so that each layer is seen. As one
operation it is some 5 % faster, and on threads its last digits may differ. On a GPU a captured step runs its kernels
one by one.
(A `clip_grad_norm` that was imported by its bare name is not seen.)
"""

from __future__ import annotations

import functools
import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from .. import nn, optim
from ..backend import Array
from ..backend.cuda.capture import Captured
from ..tensor import Function, Operand, Tensor

_one_at_a_time = threading.Lock()


@dataclass(frozen=True, eq=False)
class Scope:
    """A running module, and the one that called it."""

    module: nn.Module
    outer: Scope | None
    name: str = ""  # below the outer one, where that is known


class Watcher:
    """Subclass it: `forward`, `backward`, `update` and `clip` are called in the place of what they get as `original`.

    Attributes:
        scope: of the module that runs now; None outside of modules.
    """

    scope: Scope | None

    @contextmanager
    def watching(self, what: str) -> Iterator[None]:
        """Watch inside this context.

        Raises:
            RuntimeError: another Watcher is watching in this process; what is the name of this one.
        """
        if not _one_at_a_time.acquire(blocking=False):
            raise RuntimeError(f"{what}: another profile, detect_anomaly or explain is active; use one at a time")
        with ExitStack() as undo:
            undo.callback(_one_at_a_time.release)
            self.thread = threading.get_ident()
            self.scope = None
            self.scopes: dict[tuple[Scope | None, int], Scope] = {}
            self.updating: optim.Optimizer | None = None
            self.undo = undo
            self._replace(Function, "__call__", self._forward)
            self._replace(Function, "run_backward", self.backward)
            self._replace(nn.Module, "__call__", self._module)
            self._replace(nn.ConvChain, "forward", self._chain)
            self._replace(optim, "clip_grad_norm", self.clip)
            self._replace(Captured, "__call__", lambda _, captured, *arrays: captured.step(*arrays))
            for optimizer in _subclasses(optim.Optimizer):
                if "update" in vars(optimizer):
                    self._replace(optimizer, "update", self._update)
            yield

    # ---- for the subclass ----

    def forward(self, original: Callable[..., Tensor], function: Function, *operands: Operand) -> Tensor:
        """An operation runs."""
        return original(function, *operands)

    def backward(
        self, original: Callable[..., Any], function: Function, gy: Array, keep: bool = False
    ) -> list[tuple[Tensor, Array]]:
        """The gradient of an operation is computed."""
        return original(function, gy, keep)

    def update(self, original: Callable[..., None], optimizer: optim.Optimizer, *args: Any, **kwargs: Any) -> None:
        """An optimiser changes its parameters."""
        original(optimizer, *args, **kwargs)

    def clip(self, original: Callable[..., Array], optimizer: optim.Optimizer, *args: Any, **kwargs: Any) -> Array:
        """Gradients are clipped."""
        return original(optimizer, *args, **kwargs)

    def scope_of(self, function: Function) -> Scope | None:
        """Where the function ran."""
        return vars(function).get("made_in")

    # ---- what is put in the place of the originals ----

    def _replace(self, owner: Any, name: str, own: Callable[..., Any]) -> None:
        original = vars(owner)[name]

        @functools.wraps(original)
        def replacement(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != self.thread:
                return original(*args, **kwargs)
            return own(original, *args, **kwargs)

        self.undo.callback(setattr, owner, name, original)
        setattr(owner, name, replacement)

    def _forward(self, original: Callable[..., Tensor], function: Function, *operands: Operand) -> Tensor:
        y = self.forward(original, function, *operands)
        if y.creator is function:
            vars(function)["made_in"] = self.scope
        return y

    def _module(self, original: Callable[..., Any], module: nn.Module, *inputs: Any) -> Any:
        if isinstance(module, nn.ConvChain):  # its links have names of their own
            return original(module, *inputs)
        with self._inside(module):
            return original(module, *inputs)

    def _chain(self, original: Callable[..., Any], chain: nn.ConvChain, x: Tensor) -> Tensor:
        for name, layers in chain.links.items():
            with self._inside(layers[0], name):
                x = chain.run_link(x, layers)
        return x

    @contextmanager
    def _inside(self, module: nn.Module, name: str = "") -> Iterator[None]:
        before = self.scope
        self.scope = self.scopes.setdefault((before, id(module)), Scope(module, before, name))
        try:
            yield
        finally:
            self.scope = before

    def _update(self, original: Callable[..., None], optimizer: optim.Optimizer, *args: Any, **kwargs: Any) -> None:
        if self.updating is optimizer:  # super().update(...)
            return original(optimizer, *args, **kwargs)
        self.updating = optimizer
        try:
            self.update(original, optimizer, *args, **kwargs)
        finally:
            self.updating = None
        return None


# ---- the names of layers ----


def layer_name(scope: Scope | None, alive: dict[int, str]) -> str:
    """The name of a layer: its path below the module that called it, or in any living model, or the caller's name."""
    if scope is None:
        return ""
    outer = layer_name(scope.outer, alive)
    if scope.name:
        return f"{outer}.{scope.name}" if outer else scope.name
    if scope.outer:
        for name, module in scope.outer.module.modules(outer):
            if module is scope.module:
                return name
    return alive.get(id(scope.module)) or outer


def names_alive() -> dict[int, str]:
    """{id(module): name} in all models there are, the name with the fewest dots where there are several.

    A layer does not know its name, and a model may call a layer by itself, as the autoencoders do with their heads.
    """
    found = [x for x in gc.get_objects() if issubclass(type(x), nn.Module)]
    modules = [x for x in found if not isinstance(x, nn.Sequential) or "layers" in vars(x)]  # others are half built
    parts = {id(part) for module in modules for _, part in module.children()}
    names: dict[int, str] = {}
    for model in modules:
        for name, module in model.modules() if id(model) not in parts else ():
            names[id(module)] = min(names.get(id(module), name), name, key=lambda name: name.count("."))
    return names


def _subclasses(cls: type) -> set[Any]:
    found: set[Any] = set(cls.__subclasses__())
    return found.union(*map(_subclasses, found))
