"""A training whose numbers run away: the error, and the search for its cause."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import minigrad

from .steps import Steps

TRY_AGAIN = "train it again with a smaller learning rate"


class DivergedError(ArithmeticError):
    """A loss or a weight is no longer a finite number, a loss is implausible, or the trained model does not work."""


def _anomaly(run: Callable[[], Any]) -> str | None:
    """What `detect_anomaly` says while something is computed; None if it finds nothing."""
    try:
        with minigrad.detect_anomaly():
            run()
    except minigrad.AnomalyError as error:
        return str(error)
    return None


@np.errstate(all="ignore")
def find_cause(run: Steps, steps: int, received: list[int]) -> str:
    """A description of what made the numbers diverge within the next `steps` steps.

    The steps are repeated, which gives the same bits, until the first number that is not finite. That step is then
    repeated with a check of every operation. received: the signals so far; the search stops when there is one. Of
    several processes each does whole steps, because the check may stop them at different operations.
    """
    with run.apart():
        return _cause(run, steps, received)


def _cause(run: Steps, steps: int, received: list[int]) -> str:
    p, drawn = run.progress, run.sample_epoch()
    for _ in range(steps):  # all in one epoch, because the search starts at a good state and each epoch ends with one
        if received:  # the user does not want to wait for the search
            return ""
        arguments, before = run.arguments(*drawn), run.state()
        losses = run.step(*arguments)
        if not np.isfinite(run.k.to_host(losses)).all() or run.not_finite():
            run.go_to(before, p)
            cause = _anomaly(lambda arguments=arguments: run.step(*arguments))  # type: ignore[misc]
            return f"; first in step {p.step + 1}" + (f": {cause}" if cause else "")
        p.batch, p.step = p.batch + 1, p.step + 1
    cause = _anomaly(run.validate)
    return f"; in evaluation mode: {cause}" if cause else "; repeating the steps without callbacks gave finite numbers"
