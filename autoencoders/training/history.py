"""The losses of a training, epoch by epoch."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minigrad.serialize import write_atomically

LOSSES = ("loss", "reconstruction", "kl")
MOST_ROWS = 20  # of a history that is printed


class History:
    """One row (a dict) per epoch, `history.rows`. `history["loss"]` is the list of one column; missing values are None.
    It prints as a table of the losses, and `plot` draws them.

    unit: of the losses.
    """

    def __init__(self, rows: Sequence[dict[str, Any]] = (), unit: str = "nats per image") -> None:
        self.rows, self.unit = list(rows), unit

    def __getitem__(self, column: str) -> list[Any]:
        if not any(column in row for row in self.rows):
            raise KeyError(f"history has no column {column!r}; it has {', '.join(self.columns)}")
        return [row.get(column) for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def table(self) -> list[list[str]]:
        """The epochs and their losses as text, below the names of the columns; of many epochs the first and last."""
        names = [name for name in self.columns if name == "epoch" or name.removeprefix("val_") in LOSSES]
        rows = [[short(row[name]) if name in row else "" for name in names] for row in self.rows]
        middle = [["..."] * len(names)] if len(rows) > MOST_ROWS else []
        return [names, *(rows[:3] + middle + rows[3 - MOST_ROWS :] if middle else rows)]

    def __repr__(self) -> str:
        rows = self.table() if self.rows else [["no epochs"]]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)

    def _repr_html_(self) -> str:
        rows = ("".join(f"<td>{cell}</td>" for cell in row) for row in self.table())
        return f"<table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>{self._curve()}"

    def _curve(self) -> str:
        """The loss of each epoch as a line, the lowest at the bottom."""
        losses = [row["loss"] for row in self.rows if "loss" in row]
        if len(losses) < 2 or not max(losses) > min(losses):
            return ""
        span = max(losses) - min(losses)
        points = " ".join(f"{i},{60 - 56 * (x - min(losses)) / span:.1f}" for i, x in enumerate(losses))
        line = f'<polyline points="{points}" fill="none" stroke="#0072b2" stroke-width="2"'
        box = f'viewBox="0 0 {len(losses) - 1} 64" preserveAspectRatio="none" width="240" height="64"'
        return f'<svg {box} role="img" aria-label="loss">{line} vector-effect="non-scaling-stroke"/></svg>'

    def plot(self) -> Any:
        """The losses drawn over the epochs, as a figure of Matplotlib, which a notebook shows."""
        from ..pictures import charts

        return charts.loss_curves(self.rows, unit=self.unit)

    def write(self, folder: Path) -> None:
        """Write history.csv and history.jsonl anew, if there are rows."""
        if not self.rows:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(folder / "history.csv", text.getvalue().encode())
        lines = "".join(json.dumps(row) + "\n" for row in self.rows)
        write_atomically(folder / "history.jsonl", lines.encode())


def short(value: float) -> str:
    """A number in at most 9 letters, if it is below 1e8."""
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e8 else f"{value:.5g}"


def epoch_line(row: dict[str, Any], epochs: int) -> str:
    """One epoch as a line of text of at most 80 letters."""
    line = f"epoch {row['epoch']}/{epochs}  loss {short(row['loss'])}"
    if "kl" in row:
        line += f" nats (recon {short(row['reconstruction'])}, KL {short(row['kl'])})"
    held_out = f"  val {short(row['val_loss'])}" if "val_loss" in row else ""
    return f"{line}{held_out}  {row['seconds']:.0f} s"
