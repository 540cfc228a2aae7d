"""The learning rate and the weight of the KL term, step by step, and what a callback may change in a run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from numbers import Real
from typing import Any

import numpy as np

from minigrad import optim

from .options import TrainingOptions
from .progress import Progress
from .trainable import Trainable


def scheduled(
    peak: float, options: TrainingOptions, steps_per_epoch: int, first_step: int, optimizer_step: int
) -> float:
    """The learning rate of the optimiser's step `optimizer_step`, in a run that began after `first_step` steps.

    It is a function and not a method, so that a copy of the model and its optimiser does not contain the Trainer.
    """
    step, warmup = optimizer_step - first_step, options.warmup_steps
    if options.schedule == "cosine":
        return optim.cosine_schedule(peak, options.epochs * steps_per_epoch, warmup=warmup)(step)
    return peak * min(1.0, step / max(warmup, 1))


class Controls:
    """What steers the steps of a run: learning rate, beta, frozen parameters, layers in evaluation mode.

    A callback may set the first two (they are kept in `Progress.rate` and `Progress.beta`) and switch the others on and
    off. Any other change is refused, because a checkpoint would not hold it.

    Args:
        steps: batches in an epoch.

    Attributes:
        peak, beta: those given for the run.
        switches: by name, each parameter with "requires_grad" and each layer with "training_mode".
    """

    def __init__(self, model: Trainable, optimizer: optim.Adam, options: TrainingOptions, steps: int) -> None:
        self.model, self.optimizer, self.options, self.steps = model, optimizer, options, steps
        self.peak, self.beta = model.learning_rate, model.beta
        named = model.network.named_parameters(), model.network.modules()
        self.switches: dict[str, tuple[Any, str]] = {
            name: (x, switch)
            for switch, things in zip(("requires_grad", "training_mode"), named, strict=True)
            for name, x in things
            if name
        }
        self.installed: float | optim.Schedule | None = None  # what `install` gives the optimiser; None outside a run
        self.fixed: dict[str, Any] = {}  # what must not change in a run

    @contextmanager
    def steering(self, at: Progress) -> Iterator[None]:
        """Set learning rate and beta for a run, and give the optimiser the plain learning rate back after it."""
        constant = self.options.schedule == "constant" and not self.options.warmup_steps
        self.installed = self.peak if constant else self.schedule(at)
        self.fixed = self._fixed()
        self.install(at)
        try:
            yield
        finally:
            self.optimizer.learning_rate, self.installed = self.peak, None

    def install(self, at: Progress) -> None:
        """Set the learning rate and beta that hold at this place of the run. Outside a run nothing is changed."""
        if self.installed is None:
            return
        self.optimizer.learning_rate = self.installed if at.rate is None else at.rate
        self.model.beta = self.beta if at.beta is None else at.beta

    def schedule(self, at: Progress) -> optim.Schedule:
        """The learning rate of each step, if no callback sets one."""
        return partial(scheduled, self.peak, self.options, self.steps, at.first_step)

    def rate_of(self, at: Progress, optimizer_step: int) -> float:
        """The learning rate of a step of the optimiser."""
        return self.schedule(at)(optimizer_step) if at.rate is None else at.rate

    def beta_of(self, at: Progress, step: int) -> float:
        """The weight of the KL term at a step of the run, which counts from 1."""
        warmup_steps = self.options.kl_warmup * self.steps
        full = self.beta if at.beta is None else at.beta
        return full * min(1.0, step / warmup_steps if warmup_steps else 1.0)

    def scalars(self, at: Progress) -> np.ndarray:
        """What changes from step to step, beta and the optimiser's scalars: a row for each step of the epoch."""
        first = at.epoch * self.steps  # steps of the run before this epoch
        return np.array(
            [
                (self.beta_of(at, step), *self.optimizer.scalars(at.first_step + step))
                for step in range(first + 1, first + self.steps + 1)
            ]
        )

    def take_changes(self, at: Progress) -> bool:
        """Apply a learning rate or beta that a callback has set. Returns whether there was one.

        Raises:
            ValueError: it is not a finite number >= 0, or something else was changed.
        """
        if self.installed is None:  # not in a run
            return False
        rate, beta = self.optimizer.learning_rate, self.model.beta
        before, now = (at.rate, at.beta), self._fixed()
        self.optimizer.flat.check()  # a callback may have called compile
        if now != self.fixed:
            name = next(name for name in {**self.fixed, **now} if now.get(name) != self.fixed.get(name))
            mend = "set trainer.optimizer.learning_rate" if "learning_rate" in name else "set it before the training"
            raise ValueError(f"{name}: a callback has changed it, which has no effect during a run; {mend}")
        at.rate = None if rate is self.installed else _number("optimizer.learning_rate", rate)
        if beta != (self.beta if at.beta is None else at.beta):
            at.beta = _number("model.beta", beta)
            self.options.check_model(self.model)
        self.install(at)  # Python's own numbers
        return before != (at.rate, at.beta)

    def switched_off(self) -> list[str]:
        """The parameters that are frozen and the layers in evaluation mode."""
        return [name for name, (x, switch) in self.switches.items() if getattr(x, switch) not in (None, True)]

    def switch_off(self, names: list[str]) -> None:
        """Freeze these parameters and put these layers into evaluation mode, and no others."""
        for name, (x, switch) in self.switches.items():
            on = True if switch == "requires_grad" else x.training_mode or None
            setattr(x, switch, False if name in names else on)

    def _fixed(self) -> dict[str, Any]:
        """Values that a callback can reach but must not change, by name."""
        config = {**self.model.config, "learning_rate": self.model.learning_rate}
        found = {f"model.{name}": x for name, x in config.items() if name != "beta"}
        own = vars(self.optimizer).items()
        found |= {f"optimizer.{n}": x for n, x in own if isinstance(x, Real) and n not in ("steps", "learning_rate")}
        return found


def _number(name: str, value: Any) -> float:
    """The number that a callback has set."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, Real) or not 0 <= float(value) < math.inf:
        found = "a function" if callable(value) else repr(value)
        raise ValueError(
            f"{name}: a callback has set it to {found}, but it must be a finite number >= 0; for a schedule set the "
            "number before each step (on_batch_begin)"
        )
    return float(value)
