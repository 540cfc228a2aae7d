"""How far a training is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .options import TrainingOptions


@dataclass
class Progress:
    """Where a run stands. A checkpoint holds this, weights, statistics and moments, and what the run is made of: model,
    options, learning rate, data and environment."""

    epoch: int = 0  # finished epochs
    batch: int = 0  # finished steps of the running epoch
    step: int = 0  # finished steps of the run
    first_step: int = 0  # the optimiser's steps before the run
    sums: list[float] = field(default_factory=list)  # of the running epoch's losses times images
    images: int = 0  # that the sums cover
    seconds: float = 0.0  # of training in the running epoch
    rows: list[dict[str, Any]] = field(default_factory=list)  # the history
    best: dict[str, Any] | None = None  # epoch, val_loss and SHA-256 of the best checkpoint
    waited: int = 0  # epochs since
    draws_after: int = 0  # the model's steps before the run, with any optimiser: a part of the names in feed.py
    rate: float | None = None  # the learning rate that a callback has set
    beta: float | None = None  # the weight of the KL term that a callback has set

    @property
    def place(self) -> str:
        """The position of the run in words."""
        return f"in epoch {self.epoch + 1}" if self.batch else f"after epoch {self.epoch}"

    @classmethod
    def recorded(
        cls, record: dict[str, Any], options: TrainingOptions, images: int, columns: Sequence[str]
    ) -> Progress:
        """From the record of a checkpoint of a run with these options on so many images; columns: of the losses.

        Raises:
            ValueError: such a run cannot have come to this place. KeyError, TypeError: the record is of another kind.
        """
        found = cls(**record["progress"])
        found._check(options, images, columns)
        # the names in a record are sorted; in history.csv they have this order
        order = ["epoch", *columns, *(f"val_{name}" for name in columns), "learning_rate", "beta"]
        found.rows = [{**{name: row[name] for name in order if name in row}, **row} for row in found.rows]
        return found

    def _check(self, options: TrainingOptions, images: int, columns: Sequence[str]) -> None:
        def require(good: bool, what: str) -> None:
            if not good:
                raise ValueError(what)

        for name in ("epoch", "batch", "step", "first_step", "images", "waited", "draws_after"):
            value = getattr(self, name)
            require(type(value) is int and value >= 0, f"{name} is {value!r} but must be a whole number >= 0")
        batches = -(-images // options.batch_size)
        covered = min(self.batch * options.batch_size, images)
        require(self.batch <= batches, f"batch is {self.batch} but an epoch has {batches}")
        require(self.step == self.epoch * batches + self.batch, f"step is {self.step} in epoch {self.epoch}")
        require(self.images == covered, f"images is {self.images} but the steps have seen {covered}")
        sums = len(columns) if covered else 0
        require(_numbers(self.sums) and len(self.sums) == sums, f"sums is {self.sums!r}")
        require(_numbers([self.seconds]), f"seconds is {self.seconds!r}")
        for name, x in (("rate", self.rate), ("beta", self.beta)):
            require(x is None or (_numbers([x]) and x >= 0), f"{name} is {x!r}")
        rows = f"rows are not {self.epoch} of numbers with {', '.join(columns)}"
        require(isinstance(self.rows, list) and len(self.rows) == self.epoch, rows)
        for i, row in enumerate(self.rows, 1):
            require(isinstance(row, dict) and set(columns) <= set(row) and row.get("epoch") == i, rows)
            require(all(map(str.isidentifier, row)), rows)  # not what a spreadsheet would compute
            require(_numbers(list(row.values())), rows)
        best = self.best
        if best is not None:
            numbers = isinstance(best, dict) and _numbers([best.get("epoch"), best.get("val_loss")])
            require(numbers and isinstance(best.get("sha256"), str), f"best is {best!r}")


def _numbers(values: Any) -> bool:
    """Whether this is a list of finite numbers."""
    return isinstance(values, list) and all(type(x) in (int, float) and math.isfinite(x) for x in values)
