"""The first step of a training as a page to step through."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np

import minigrad
from minigrad.backend import pinned

from .history import short
from .steps import Steps


def explain_step(steps: Steps, path: str | Path) -> None:
    """Write a page that steps through the next step. The model is afterwards as it was.

    On the page each layer runs by itself. So the same step is also taken as in a training, where a chain of layers runs
    as one operation, and the page says how far the gradients differ.

    Raises:
        ImportError, DataError: as for `minigrad.explain`.
    """
    model, k = steps.model, steps.k
    state, at = steps.state(), deepcopy(steps.progress)
    with steps.controls.steering(at), pinned(k):
        arguments = steps.arguments(*steps.sample_epoch())
        try:
            steps.step(*arguments)
            usual = k.to_host(steps.optimizer.flat.gradients).copy()
            steps.go_to(state, at)
            with minigrad.explain(path, f"One training step: {type(model).__name__}") as notes:
                losses = k.to_host(steps.step(*arguments)).tolist()
                here = k.to_host(steps.optimizer.flat.gradients)
                named = zip(model.loss_names, losses, strict=False)
                told = " and ".join(f"{name} {short(x)}" for name, x in named)
                rate, warmup = steps.rate(at.first_step + at.step + 1), steps.options.warmup_steps
                rising = f": it rises from 0 in the first {warmup} steps" if at.step < warmup else ""
                notes += [
                    f"Step {at.step + 1} of the run, with {len(arguments[0])} images: {told} "
                    f"{model.unit}. The learning rate is {short(rate)}{rising}. {k.describe().capitalize()}.",
                ]
                notes.append(
                    "A training runs each chain of convolution, ReLU and batch normalisation as one operation. Here "
                    f"its layers run one by one. The gradients of all parameters are {_compared(here, usual)}."
                )
        finally:
            steps.go_to(state, at)


def _compared(here: np.ndarray, usual: np.ndarray) -> str:
    """How two flat arrays of gradients differ."""
    if here.tobytes() == usual.tobytes():
        return "bit for bit those of such a training step"
    share = np.linalg.norm(here - usual) / np.linalg.norm(usual)
    return f"those of such a training step but for rounding: the difference has {share:.0e} of their length"
