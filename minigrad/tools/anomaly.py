"""detect_anomaly: stops at the first operation whose result is not finite, and names it.

    with minigrad.detect_anomaly():
        loss = model(images)
        loss.backward()
        optimizer.step()

Every result is checked, and on a GPU the program waits for each one. Use it to find a fault, not for a whole training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .. import optim
from ..backend import Array, backend_of
from ..tensor import Function, Operand, Tensor
from .watch import Scope, Watcher, layer_name, names_alive


class AnomalyError(ArithmeticError):
    """An operation gave a number that is not finite; the message names the layer, the operation and the direction."""


@contextmanager
def detect_anomaly() -> Iterator[None]:
    """Inside this context the first operation, gradient or update with a result that is not finite raises.

    The inputs of an operation are not checked: infinite data are noticed only when an operation has read them. The
    context can also decorate functions, but not generators or coroutines, whose steps would run outside.

    Raises:
        AnomalyError: for example "encoder_conv_layer_1, ConvChain, forward: 3 of 50176 numbers of the result are not
            finite"; in a ConvChain a layer includes the ReLU and BatchNorm behind it.
        RuntimeError: on entering, while a profile or another detect_anomaly is active.
    """
    with _Checker().watching("detect_anomaly"):
        yield


class _Checker(Watcher):
    def forward(self, original: Callable[..., Tensor], function: Function, *operands: Operand) -> Tensor:
        y = original(function, *operands)
        _check(y.data, "the result", self.scope, function.name, "forward")
        return y

    def backward(
        self, original: Callable[..., Any], function: Function, gy: Array, keep: bool = False
    ) -> list[tuple[Tensor, Array]]:
        name, scope = function.name, self.scope_of(function)
        pairs = original(function, gy, keep)
        for _, gx in pairs:
            _check(gx, f"a gradient of shape {gx.shape}", scope, name, "backward")
        return pairs

    def update(self, original: Callable[..., None], optimizer: optim.Optimizer, *args: Any, **kwargs: Any) -> None:
        _check(optimizer.flat.gradients, "the gradients", None, type(optimizer).__name__, "update")
        original(optimizer, *args, **kwargs)
        for what, x in {"parameters": optimizer.flat.values, **optimizer.moments}.items():
            _check(x, f"the {what}", None, type(optimizer).__name__, "update")


def _check(x: Array, what: str, scope: Scope | None, operation: str, direction: str) -> None:
    xp = backend_of(x).xp
    bad = x.size - int(xp.isfinite(x).sum())
    if bad:
        layer = layer_name(scope, names_alive())
        where = ", ".join(part for part in (layer, operation, direction) if part)
        raise AnomalyError(f"{where}: {bad} of {x.size} numbers of {what} are not finite")
