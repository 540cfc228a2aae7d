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

    def check(self, options: TrainingOptions, images: int, columns: Sequence[str]) -> None:
        """Raise ValueError unless a run with these options, on so many images, can have come to this place."""
        batches = -(-images // options.batch_size)
        for name in ("epoch", "batch", "step", "first_step", "images", "waited", "draws_after"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise ValueError(f"{name} is {value!r} but must be a whole number >= 0")
        covered = min(self.batch * options.batch_size, images)
        for good, what in (
            (self.batch <= batches, f"batch is {self.batch} but an epoch has {batches}"),
            (self.step == self.epoch * batches + self.batch, f"step is {self.step} in epoch {self.epoch}"),
            (self.images == covered, f"images is {self.images} but the steps have seen {covered}"),
            (_numbers(self.sums) and len(self.sums) == (len(columns) if covered else 0), f"sums is {self.sums!r}"),
            (_numbers([self.seconds]), f"seconds is {self.seconds!r}"),
            *(
                (x is None or (_numbers([x]) and x >= 0), f"{name} is {x!r}")
                for name, x in (("rate", self.rate), ("beta", self.beta))
            ),
            (
                isinstance(self.rows, list)
                and len(self.rows) == self.epoch
                and all(
                    isinstance(row, dict)
                    and set(columns) <= set(row)
                    and all(map(str.isidentifier, row))  # not what a spreadsheet would compute
                    and _numbers(list(row.values()))
                    and row.get("epoch") == i
                    for i, row in enumerate(self.rows, 1)
                ),
                f"rows are not {self.epoch} of numbers with {', '.join(columns)}",
            ),
            (
                self.best is None
                or (
                    isinstance(self.best, dict)
                    and _numbers([self.best.get("epoch"), self.best.get("val_loss")])
                    and isinstance(self.best.get("sha256"), str)
                ),
                f"best is {self.best!r}",
            ),
        ):
            if not good:
                raise ValueError(what)

    def sort_columns(self, columns: Sequence[str]) -> None:
        """Bring the names of the rows into the order of history.csv; those of a checkpoint's record are sorted."""
        order = ["epoch", *columns, *(f"val_{name}" for name in columns), "learning_rate", "beta"]
        self.rows = [{**{name: row[name] for name in order if name in row}, **row} for row in self.rows]


def _numbers(values: Any) -> bool:
    """Whether this is a list of finite numbers."""
    return isinstance(values, list) and all(type(x) in (int, float) and math.isfinite(x) for x in values)
