"""A training whose numbers run away: the error, and the search for its cause."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import minigrad

from .steps import Steps

TRY_AGAIN = "train it again with a smaller learning rate"


class DivergedError(ArithmeticError):
    """A loss or a weight is no longer a finite number, a loss is absurd, or the trained model does not work."""


def _anomaly(run: Callable[[], Any]) -> str | None:
    """What `detect_anomaly` says while something is computed; None if it finds nothing."""
    try:
        with minigrad.detect_anomaly():
            run()
    except minigrad.AnomalyError as error:
        return str(error)
    return None


def find_cause(run: Steps, steps: int, received: list[int]) -> str:
    """What made the numbers run away within so many steps from here, in words.

    The steps are done again, which gives the same bits, up to the first bad number; that step is then done operation by
    operation. received: signals; with one there, nothing more is searched.
    """
    p, drawn = run.progress, run.sample_epoch()
    for _ in range(steps):  # of one epoch, because its end is a good state
        if received:  # somebody does not want to wait for that
            return ""
        arguments, before = run.arguments(*drawn), run.state()
        losses = run.step(*arguments)
        if not np.isfinite(run.k.to_host(losses)).all() or run.not_finite():
            run.go_to(before, p)
            cause = _anomaly(lambda arguments=arguments: run.step(*arguments))  # type: ignore[misc]
            return f"; first in step {p.step + 1}" + (f": {cause}" if cause else "")
        p.batch, p.step = p.batch + 1, p.step + 1
    cause = _anomaly(run.validate)
    return f"; in evaluation mode: {cause}" if cause else "; not in the same steps without callbacks"
