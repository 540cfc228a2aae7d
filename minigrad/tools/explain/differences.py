"""The check of one operation: its gradients in a real step against differences of its `forward` in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...backend import quietly
from ...backend.chain import ChainBackend

STEP = 1e-5
MOST = 1 << 24  # numbers of all inputs; beyond it the check would take long
KINK = 1e-3  # two one-sided slopes that differ by this share have a kink between them


@dataclass
class Check:
    """One gradient of an operation, along a random direction.

    Attributes:
        name: of the input. slope: sum(gx * direction), from the gradient of the step.
        difference: (L(x + h * direction) - L(x - h * direction)) / 2h with L(x) = sum(gy * forward(x)), in float64.
        error: |slope - difference| / the length of gx.
        kinks: numbers of x that were left out, because the operation has a kink there (ReLU at 0).
    """

    name: str
    slope: float
    difference: float
    error: float
    kinks: int = 0


@quietly
def check(
    cls: type, options: dict[str, Any], names: list[str], xs: list[Any], gy: Any, gxs: dict[int, Any], seed: int
) -> list[Check] | str:
    """The checks of all gradients of one operation, or why there are none.

    Args:
        options: the attributes of the Function before it ran. xs, gy: arrays of the step, on the host.
        gxs: the gradients that `backward` gave, by the number of the input.
        seed: of the direction; the same step is to show the same numbers.
    """
    if sum(x.size for x in xs if x is not None) > MOST:
        return f"not checked: there are more than {MOST:,} numbers"
    wide = {name: _wide(value) for name, value in options.items()}
    inputs = [_wide(x) for x in xs]
    gy = np.asarray(gy, "float64")

    def forward(i: int, x: Any) -> Any:
        function: Any = object.__new__(cls)
        vars(function).update(wide, k=ChainBackend(np), needs=tuple(x is not None for x in xs))
        return function.forward(*inputs[:i], x, *inputs[i + 1 :])

    try:
        if xs and not np.array_equal(forward(0, inputs[0]), forward(0, inputs[0]), equal_nan=True):
            return "not checked: the operation draws random numbers"
        return [_along(forward, i, names[i], inputs[i], gy, gx, seed) for i, gx in gxs.items()]
    except Exception as error:  # an operation of a user may need anything
        return f"not checked: {type(error).__name__}: {error}"


def _along(forward: Any, i: int, name: str, x: Any, gy: Any, gx: Any, seed: int) -> Check:
    direction = np.random.default_rng((seed, i)).standard_normal(x.shape)
    gx, kinks = np.asarray(gx, "float64"), 0
    if x.shape == gy.shape:
        middle, above, below = (np.asarray(forward(i, x + h * direction)) for h in (0, STEP, -STEP))
        bend = np.abs(above - 2 * middle + below) > KINK * (np.abs(above - below) + 1e-300)
        if 0 < bend.sum() < bend.size:
            kinks, direction = int(bend.sum()), np.where(bend, 0, direction)
    change = np.asarray(forward(i, x + STEP * direction)) - forward(i, x - STEP * direction)
    slope, difference = float(np.sum(gx * direction)), float(np.sum(gy * change) / (2 * STEP))
    return Check(name, slope, difference, abs(slope - difference) / (float(np.linalg.norm(gx)) or 1.0), kinks)


def _wide(value: Any) -> Any:
    return np.asarray(value, "float64") if getattr(getattr(value, "dtype", None), "kind", "") == "f" else value
