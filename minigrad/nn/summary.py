"""Tables of the layers of a model."""

from __future__ import annotations

import math
from typing import Any


def format_summary(rows: list[tuple[str, Any, tuple[int, ...], int]]) -> str:
    """Rows of `Sequential.summary_rows` as a table with totals. Sizes are for one input, activations in float32.
    A parameter that is used twice counts where it comes first."""
    counted: set[int] = set()
    table = [("layer", "type", "output shape", "parameters", "multiply-adds", "activation bytes")]
    totals = [0, 0, 0]
    for name, layer, shape, multiply_adds in rows:
        new = [p for p in layer.parameters() if id(p) not in counted]
        counted.update(map(id, new))
        numbers = [sum(p.size for p in new), multiply_adds, 4 * math.prod(shape)]
        totals = [total + n for total, n in zip(totals, numbers, strict=True)]
        table.append((name, type(layer).__name__, str(shape), *(f"{n:,}" for n in numbers)))  # type: ignore[arg-type]
    table.append(("total", "", "", *(f"{n:,}" for n in totals)))  # type: ignore[arg-type]
    widths = [max(len(row[i]) for row in table) for i in range(6)]
    lines = [
        "  ".join(
            cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])
