"""The loss curves of the page: those of one run, or of two that are compared."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .markup import Markup, figure, tag

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 340, 200, 46, 8, 8, 24  # of a chart, and the margins around its axes
MOST_EPOCHS = 500  # in a page; of a longer run every second, third ... epoch
PARTS = {"loss": "Loss", "reconstruction": "Reconstruction", "kl": "KL divergence"}
KINDS = {"": "training", "val_": "validation"}
# settings that change what the losses measure
MEASURE = (
    "images", "input_shape", "likelihood", "beta", "kl_warmup", "binarise", "iw_samples", "denoise", "augment",
)  # fmt: skip
NONE = "\N{EN DASH}"


class Curves(NamedTuple):
    """The losses of a run.

    rows: its history. unit: of the losses. settings: what else is known of the run, by name, as in JSON.
    """

    name: str
    rows: Sequence[dict[str, Any]]
    unit: str
    settings: dict[str, Any]

    @property
    def epochs(self) -> list[float]:
        return [float(row.get("epoch", i)) for i, row in enumerate(self.rows, 1)]

    def column(self, key: str) -> dict[float, float]:
        """The numbers of this name that are finite, by epoch."""
        found = zip(self.epochs, (row.get(key) for row in self.rows), strict=True)
        return {epoch: float(y) for epoch, y in found if isinstance(y, int | float) and abs(y) < 1e30}


class Curve(NamedTuple):
    """A curve of a chart: what it is called, the number of its run, its kind, and its values; None in a gap."""

    words: str
    run: int
    kind: str
    values: Sequence[float | None]


def chart(title: str, x: Sequence[float], curves: Sequence[Curve], **attributes: Any) -> Markup:
    """Curves over x as SVG, with the first and last value of each in the description."""
    known = [(curve, [(a, y) for a, y in zip(x, curve.values, strict=True) if y is not None]) for curve in curves]
    low, high = _range([y for _, points in known for _, y in points] or [0.0])
    first, last = min(x), max(x)

    def place(a: float, y: float) -> str:
        across = LEFT + (WIDTH - LEFT - RIGHT) * ((a - first) / (last - first) if last > first else 0.5)
        return f"{across:.1f} {TOP + (HEIGHT - BOTTOM - TOP) * (high - y) / (high - low):.1f}"

    drawn = []
    for y in np.linspace(low, high, 5):
        across = place(first, float(y)).split()[1]
        drawn.append(tag("path", d=f"M{LEFT} {across}H{WIDTH - RIGHT}", class_="grid"))
        drawn.append(tag("text", f"{y:.4g}", x=LEFT - 6, y=float(across) + 4, text_anchor="end"))
    for a in sorted({first, last}):
        anchor = "end" if a == last > first else "start"
        drawn.append(tag("text", f"epoch {a:g}", x=place(a, low).split()[0], y=HEIGHT - 6, text_anchor=anchor))
    drawn.append(tag("path", d=f"M0 {TOP}V{HEIGHT - BOTTOM}", class_="cursor"))
    told = []
    for curve, points in known:
        if not points:
            continue
        look = f"run-{curve.run} {curve.kind}"
        drawn.append(tag("path", d="M" + "L".join(place(a, y) for a, y in points), class_=f"curve {look}"))
        if len(points) <= 30:  # a path of no length with round ends is a dot
            drawn.append(tag("path", d="".join(f"M{place(a, y)}h0" for a, y in points), class_=f"dots {look}"))
        told.append(f"{curve.words} from {points[0][1]:.4g} to {points[-1][1]:.4g}")
    label = f"{title}: {', '.join(told) or 'no values'}"
    return tag("svg", *drawn, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=label, **attributes)


def _range(values: list[float]) -> tuple[float, float]:
    """Round limits of an axis on which the values are: (low, high) with four equal steps between them."""
    low, high = min(values), max(values)
    rough = (high - low) / 4 or abs(high) / 4 or 1.0
    unit = 10.0 ** math.floor(math.log10(rough))
    for step in (unit, 2 * unit, 2.5 * unit, 5 * unit, 10 * unit, 20 * unit):
        start = math.floor(low / step) * step
        if start + 4 * step >= high:
            break
    return start, start + 4 * step


def loss_charts(runs: Sequence[Curves]) -> tuple[list[Markup], dict[str, Any]]:
    """(the losses of one run or two as figures, what the page's script needs to show the values at an epoch).

    Each part of the loss has a chart with a table of its last values; of two runs there is one chart of both and one of
    each, with axes of its own.
    """
    epochs = _shown_epochs(runs)
    choices = ["01", "0", "1"] if len(runs) == 2 else ["0"]  # the runs that are switched on
    charts: list[Markup] = []
    cells: list[list[float | None]] = []
    validated = False
    for key, title in PARTS.items():
        if key == "reconstruction" and not any(run.column("kl") for run in runs):
            continue  # the whole loss
        kinds = {kind: [run.column(prefix + key) for run in runs] for prefix, kind in KINDS.items()}
        kinds = {kind: columns for kind, columns in kinds.items() if any(columns)}
        if not kinds:
            continue
        validated |= "validation" in kinds
        curves = [
            Curve(f"{runs[i].name} {kind}".strip(), i, kind, [column.get(epoch) for epoch in epochs])
            for kind, columns in kinds.items()
            for i, column in enumerate(columns)
        ]
        drawn = [
            chart(title, epochs, [x for x in curves if str(x.run) in on], data_runs=on, hidden=on != choices[0])
            for on in choices
        ]
        charts.append(tag("div", tag("p", f"{title}, {runs[0].unit}", class_="small"), *drawn, _values(runs, kinds)))
        cells += [[y if y is None else float(f"{y:.5g}") for y in curve.values] for curve in curves]
    parts = [_switches(runs)] if len(runs) == 2 else []
    if len(epochs) > 1:
        last = len(epochs) - 1
        slider = tag("input", id="at", type="range", min=0, max=last, value=last, aria_label="Epoch of the values",
                     aria_valuetext="last epoch")  # fmt: skip
        parts.append(tag("div", tag("span", "Epoch"), slider, class_="row"))
    parts.append(tag("div", *charts, class_="charts" if len(runs) == 2 else "charts single"))
    sees = "The loss of each epoch" + (": training solid, validation dashed." if validated else " on training images.")
    sees += " Move over a chart to see the values at an epoch." if len(epochs) > 1 else ""
    good = "Good: falling, then flat" + ("; validation stays close to training." if validated else ".")
    figures = [figure(tag("div", *parts, id="curves"), sees, good)]
    if len(runs) == 2:
        figures.append(_differences(*runs))
    return figures, {"epochs": epochs, "cells": cells, "edges": (LEFT / WIDTH, 1 - RIGHT / WIDTH)}


def _shown_epochs(runs: Sequence[Curves]) -> list[float]:
    """The epochs of all runs in order; of many every k-th and the last of each run."""
    epochs = sorted({epoch for run in runs for epoch in run.epochs})
    return sorted({*epochs[:: -(-len(epochs) // MOST_EPOCHS)], *(max(run.epochs) for run in runs)})


def _switches(runs: Sequence[Curves]) -> Markup:
    buttons = [
        tag("button", tag("i", class_=f"run-{i}"), run.name, type="button", aria_pressed="true", data_run=i)
        for i, run in enumerate(runs)
    ]
    return tag("div", *buttons, class_="legend", role="group", aria_label="Runs that are shown")


def _values(runs: Sequence[Curves], kinds: dict[str, list[dict[float, float]]]) -> Markup:
    """The last losses of each run and kind, which the script replaces by those at an epoch."""
    names = [tag("th", run.name or "loss", scope="col", class_=run.name and f"run-{i}") for i, run in enumerate(runs)]
    rows = [tag("tr", tag("th", "last epoch", class_="when", scope="col"), *names)]
    for kind, columns in kinds.items():
        values = [
            tag("td", f"{column[max(column)]:.5g}" if column else NONE, data_words=f"{run.name} {kind}".strip())
            for run, column in zip(runs, columns, strict=True)
        ]
        rows.append(tag("tr", tag("th", kind, scope="row", class_=kind), *values))
    return tag("table", *rows, class_="values")


def _differences(a: Curves, b: Curves) -> Markup:
    """What differs between two runs: their settings, and their losses at the end and where they are lowest."""
    names = [x for x in dict.fromkeys([*a.settings, *b.settings]) if a.settings.get(x) != b.settings.get(x)]
    rows = {name: [_text(run.settings.get(name)) for run in (a, b)] for name in names}
    rows["epochs trained"] = [f"{max(run.epochs):g}" for run in (a, b)]
    times = [run.column("seconds") for run in (a, b)]
    rows["seconds"] = [f"{sum(x.values()):,.0f}" if x else NONE for x in times]
    for prefix, kind in KINDS.items():
        columns = [run.column(f"{prefix}loss") for run in (a, b)]
        if any(columns):
            rows[f"last {kind} loss"] = [f"{x[max(x)]:.5g}" if x else NONE for x in columns]
            best = [min(x, key=x.__getitem__, default=0.0) for x in columns]
            rows[f"lowest {kind} loss"] = [
                f"{x[i]:.5g} (epoch {i:g})" if x else NONE for x, i in zip(columns, best, strict=True)
            ]
    head = tag("tr", tag("th", "What differs", scope="col"), *(tag("th", run.name, scope="col") for run in (a, b)))
    body = [tag("tr", tag("th", name, scope="row"), *(tag("td", x) for x in texts)) for name, texts in rows.items()]
    sees = "How the runs were trained, and what came of it."
    if changed := ", ".join(name for name in names if name in MEASURE):
        sees += f" Compare with care: the losses depend on {changed}, too."
    return figure(tag("table", head, *body, class_="differences"), sees)


def _text(value: Any) -> str:
    """A value of JSON, shortened."""
    if value is None:
        return NONE
    text = f"{value:.5g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 100 else text[:99] + "…"
