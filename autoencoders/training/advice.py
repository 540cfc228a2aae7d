"""What to change where a training went wrong: options with values, each tried on a case that it cures (the tests)."""

from __future__ import annotations

import math
from typing import Any

from ..network import LAST_MAP, map_shapes

LEARNING_RATE = 2e-3  # with which every published run works
STEPS = 2000  # that a model needs, whatever the number of images


def remedies(model: dict[str, Any], learning_rate: float | None, epochs: int, steps: int, diverged: bool) -> list[str]:
    """The likeliest first; none if nothing is known to help.

    Args:
        model: its configuration. learning_rate, epochs, steps: of the whole training; None or 0 if unknown.
        diverged: whether the numbers ran away, so that an even smaller learning rate helps.
    """
    found = []
    if model.get("beta", 1) != 1:
        found.append(f"beta 1 (--beta 1 instead of {model['beta']:g})")
    side = max(map_shapes(model["input_shape"], model["conv_filters"], model["conv_strides"])[-1][:2])
    if side > LAST_MAP:
        found.append(f"a last feature map of {LAST_MAP} pixels, not {side} (leave out --strides)")
    if learning_rate is not None and (diverged or learning_rate > LEARNING_RATE):
        rate = LEARNING_RATE if learning_rate > LEARNING_RATE else learning_rate / 4
        found.append(f"a smaller learning rate (--lr {rate:g} instead of {learning_rate:g})")
    if not diverged and 0 < steps < STEPS:
        found.append(f"more steps (--epochs {enough_epochs(epochs, steps)} for about {STEPS:,})")
    return found


def enough_epochs(epochs: int, steps: int, before: int = 0) -> int:
    """The epochs that give a model STEPS steps, if these epochs are so many steps and it had others before."""
    return math.ceil(epochs * (STEPS - before) / steps)


def more_epochs(epochs: int, steps: int, before: int = 0) -> int | None:
    """How many epochs a training should have instead of these, if its model had less than half of the steps that it
    needs. before: the steps that the model had when the training began."""
    if not steps or before + steps >= STEPS // 2:
        return None
    return enough_epochs(epochs, steps, before)
