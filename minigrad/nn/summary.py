"""Tables of the layers of a model."""

from __future__ import annotations

import math
from typing import Any

from ..backend import backend_of, default_backend
from ..tensor import Tensor, evaluation, no_grad


def run_layers(model: Any, input_shape: tuple[int, ...]) -> list[tuple[str, Any, tuple[int, ...], int]]:
    """`Sequential.summary_rows`."""
    rows = []
    parameters = model.parameters()
    k = backend_of(parameters[0].data) if parameters else default_backend()
    with evaluation(), no_grad():
        x = Tensor(k.xp.zeros((1, *input_shape), dtype=parameters[0].dtype if parameters else "float32"))
        for name, layer in model.layers.items():
            y = layer(x)
            rows.append((name, layer, y.shape[1:], layer.multiply_adds(x.shape, y.shape)))
            x = y
    return rows


def format_summary(rows: list[tuple[str, Any, tuple[int, ...], int]]) -> str:
    """Rows of `Sequential.summary_rows` as a table with totals. Sizes are for one input, activations in float32.
    A parameter that is used twice counts where it comes first."""
    counted: set[int] = set()
    head = ("layer", "type", "output shape", "parameters", "multiply-adds", "activation bytes")
    table: list[tuple[str, ...]] = [head]
    totals = [0, 0, 0]
    for name, layer, shape, multiply_adds in rows:
        new = [p for p in layer.parameters() if id(p) not in counted]
        counted.update(map(id, new))
        numbers = [sum(p.size for p in new), multiply_adds, 4 * math.prod(shape)]
        totals = [total + n for total, n in zip(totals, numbers, strict=True)]
        table.append((name, type(layer).__name__, str(shape), *(f"{n:,}" for n in numbers)))
    table.append(("total", "", "", *(f"{n:,}" for n in totals)))
    return as_table(table)


def as_table(rows: list[tuple[str, ...]]) -> str:
    """A table as text: the first row is its head, the last its total, and the first three columns are words."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])
