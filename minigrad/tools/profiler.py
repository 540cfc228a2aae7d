"""Where the time goes: a table of calls, time, GFLOP/s and bytes for each operation of each layer.

    with minigrad.profile() as p:
        model.train(images, batch_size=16, num_epochs=1)
    print(p)
    p.plot("profile.png")

It costs nothing while it is off. watch.py explains how it sees operations, and what runs differently while it is on.
(A `clip_grad_norm` that was imported by its bare name is not seen; its time counts as outside operations.)
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from .. import backend, optim
from ..backend import Array
from ..nn.summary import as_table
from ..ops.conv import Conv2D, Conv2DTranspose
from ..ops.conv_chain import ConvChain, ConvChainInference
from ..ops.dense import Dense, MatMul
from ..ops.shape import Reshape, Transpose
from ..tensor import Function, Operand, Tensor
from .watch import Scope, Watcher, layer_name, names_alive

OUTSIDE = "outside operations"
COLOURS = {"forward": "#0072b2", "backward": "#d55e00", "update": "#009e73", "": "#999999"}  # Okabe and Ito's


@dataclass(frozen=True)
class Row:
    """What one operation of one layer did in one direction, over all its calls.

    Attributes:
        layer: the dotted name in the model; empty outside of layers, or where nothing alive has a name for the layer.
        operation: the Function's class, the optimiser's class, `clip_grad_norm`, or `outside operations`.
        direction: "forward", "backward", "update" (optimisers and clipping) or "" (outside).
        calls: how often it ran.
        seconds: wall time in it, without the operations that ran inside it. On a GPU the device is waited for.
        share: seconds / the profile's seconds.
        flops: 2 * the multiply-adds of matrix products and convolutions, products with padding included; forward one
            product, backward one for each gradient (of input and weight) that was computed. 0: not counted; biases,
            ReLU, normalisation and all elementwise work never are.
        bytes: compulsory traffic, each array once (a number is one element). Forward reads the inputs and writes the
            output. Backward reads gy and all inputs, and writes the gradients. The inputs stand for the saved arrays,
            so the count is too high for an operation that saves less, such as Add. An update reads values, gradients
            and moments and writes values and moments. Clipping reads and writes the gradients. Reshape and Transpose
            count 0, because they give views. The real traffic is larger (columns of a convolution, temporary arrays),
            or smaller if data stay in a cache.
    """

    layer: str
    operation: str
    direction: str
    calls: int
    seconds: float
    share: float
    flops: int
    bytes: int


class Profile:
    """What `profile` gives. Entering it again measures anew.

    Attributes:
        rows: of type Row, the longest time first; filled at the end of the `with`, empty if no operation ran. One row
            is all that was outside operations: Python between them, gradients added up, the data, the profiler itself.
        seconds: wall time of the whole `with`; the rows' seconds sum to it.
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.seconds = 0.0

    def __enter__(self) -> Profile:
        recorder, start, undo = _Recorder(), _now(), ExitStack()
        undo.enter_context(recorder.watching("profile"))
        self.rows, self.seconds = [], 0.0
        self._recorder, self._start, self._undo = recorder, start, undo
        return self

    def __exit__(self, *error: object) -> None:
        with self._undo:
            self.seconds = max(_now() - self._start, 1e-9)  # some clocks are coarse
        totals = self._recorder.by_layer()
        del self._recorder  # it keeps layers alive
        if totals:
            inside = sum(total["seconds"] for total in totals.values())
            totals["", OUTSIDE, ""] = {**_NOTHING, "seconds": max(self.seconds - inside, 0.0)}
        rows = [Row(*key, **t, share=t["seconds"] / self.seconds) for key, t in totals.items()]
        self.rows = sorted(rows, key=lambda row: -row.seconds)

    def table(self) -> str:
        """The rows as text, with units, the total last. What was not counted is blank; long names are shortened."""
        if not self.rows:
            return "profile: no operation was recorded"
        cells: list[tuple[str, ...]] = [
            ("layer", "operation", "direction", "calls", "time ms", "share %", "GFLOP/s", "MB", "GB/s")
        ]
        for r in self.rows:
            names = _shortened(r.layer), _shortened(r.operation), r.direction
            cells.append((*names, *_numbers(r.calls, r.seconds, r.share, r.flops, r.bytes)))
        calls, flops, size = (sum(getattr(row, name) for row in self.rows) for name in ("calls", "flops", "bytes"))
        cells.append(("total", "", "", *_numbers(calls, self.seconds, 1.0, flops, size)))
        return as_table(cells)

    __str__ = table

    def plot(self, path: str | Path, *, most: int = 20) -> None:
        """Write a picture: bars of time for each operation of each layer, forward and backward apart, longest first.

        Args:
            path: of the file; its ending chooses the format, e.g. `.png` or `.svg`.
            most: operations with bars of their own; the others are added up.
        Raises:
            ValueError: no operation was recorded, or most is below 1.
        """
        if not self.rows or most < 1:
            raise ValueError("plot: no operation was recorded" if not self.rows else f"plot: most is {most}, not >= 1")
        from matplotlib.figure import Figure

        bars: dict[tuple[str, str], dict[str, float]] = {}  # (layer, operation) -> direction -> seconds
        for row in self.rows:
            bars.setdefault((row.layer, row.operation), {})[row.direction] = row.seconds
        ranked = sorted(bars.items(), key=lambda item: -sum(item[1].values()))
        if len(ranked) > most:
            rest = {d: sum(times.get(d, 0.0) for _, times in ranked[most:]) for d in COLOURS}
            ranked[most:] = [(("", f"all others ({len(ranked) - most})"), {d: t for d, t in rest.items() if t})]
        figure = Figure(figsize=(10, 1.4 + 0.42 * len(ranked)), layout="constrained")
        axes = figure.add_subplot()
        for direction, colour in COLOURS.items():
            drawn = []
            for y, (_, times) in enumerate(ranked):
                if direction in times:
                    slot = [d for d in COLOURS if d in times].index(direction)
                    drawn.append((y + 0.4 * (slot - (len(times) - 1) / 2), times[direction]))
            if drawn:
                ys, seconds = zip(*drawn, strict=True)
                name = direction or "outside"
                patches = axes.barh(ys, [1e3 * t for t in seconds], height=0.38, color=colour, label=name)
                labels = [f"{1e3 * t:,.2f} ms, {t / self.seconds:.1%}" for t in seconds]
                axes.bar_label(patches, labels, padding=3, fontsize=7.5)
        names = ["  ".join(_shortened(name) for name in key if name) for key, _ in ranked]
        axes.set_yticks(range(len(ranked)), names, parse_math=False)
        axes.set(xlabel="time [ms]", ylim=(len(ranked) - 0.4, -0.6), title=f"{1e3 * self.seconds:,.1f} ms in all")
        axes.margins(x=0.2)  # room for the numbers
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower center", ncols=4, frameon=False)
        figure.savefig(path, dpi=150)


def profile() -> Profile:
    """A context that records time, products and bytes of what runs inside it: `with minigrad.profile() as p:`.

    Each operation costs some microseconds more while it is on, and on a GPU waits for the device before and after, so
    that the times are real but host and device no longer overlap: `p.seconds` may be longer than without.
    Numbers that are computed are the same to the bit.

    Returns:
        the Profile: `print(p)`, `p.table()`, `p.rows`, `p.seconds`, `p.plot(path)`.
    Raises:
        RuntimeError: on entering, while another profile is active in this process.
    """
    return Profile()


_NOTHING = {"calls": 0, "seconds": 0.0, "flops": 0, "bytes": 0}


class _Recorder(Watcher):
    """Measures what it watches."""

    def __init__(self) -> None:
        self.totals: dict[tuple[Scope | None, str, str], Any] = defaultdict(lambda: Counter(_NOTHING))
        self.inner = [0.0]  # for each operation that runs now: seconds of the operations inside it

    @contextmanager
    def _timed(self, scope: Scope | None, operation: str, direction: str) -> Iterator[Any]:
        """Count a call and its own time, without that of operations inside it, also if it raises."""
        total = self.totals[scope, operation, direction]
        self.inner.append(0.0)
        start = _now()
        try:
            yield total
        finally:
            seconds = _now() - start
            total["calls"] += 1
            total["seconds"] += seconds - self.inner.pop()
            self.inner[-1] += seconds

    def forward(self, original: Callable[..., Tensor], function: Function, *operands: Operand) -> Tensor:
        with self._timed(self.scope, function.name, "forward") as total:
            y = original(function, *operands)
        inputs = [_array(x, y.dtype) for x in operands if x is not None]
        total["flops"] += 2 * _multiply_adds(function, inputs, y.data)
        total["bytes"] += _traffic(function, [*inputs, y.data])
        return y

    def backward(
        self, original: Callable[..., Any], function: Function, gy: Array, keep: bool = False
    ) -> list[tuple[Tensor, Array]]:
        if function.inputs is None:
            return original(function, gy, keep)  # raises
        inputs = [x.data for x in function.inputs if x is not None]
        products = function.needs[0] + any(function.needs[1:2])
        flops = 2 * products * _multiply_adds(function, inputs, gy)
        with self._timed(self.scope_of(function), function.name, "backward") as total:
            pairs = original(function, gy, keep)
        total["flops"] += flops
        total["bytes"] += _traffic(function, [gy, *inputs, *(gx for _, gx in pairs)])
        return pairs

    def update(self, original: Callable[..., None], optimizer: optim.Optimizer, *args: Any, **kwargs: Any) -> None:
        with self._timed(None, type(optimizer).__name__, "update") as total:
            original(optimizer, *args, **kwargs)
        total["bytes"] += optimizer.flat.values.nbytes * (3 + 2 * len(optimizer.moments))

    def clip(self, original: Callable[..., Array], optimizer: optim.Optimizer, *args: Any, **kwargs: Any) -> Array:
        with self._timed(None, "clip_grad_norm", "update") as total:
            norm = original(optimizer, *args, **kwargs)
        total["bytes"] += 2 * optimizer.flat.gradients.nbytes
        return norm

    def by_layer(self) -> dict[tuple[str, str, str], Any]:
        """The totals by (layer's name, operation, direction)."""
        alive = names_alive() if self.scopes else {}
        merged: dict[tuple[str, str, str], Any] = defaultdict(Counter)
        for (scope, operation, direction), total in self.totals.items():
            merged[layer_name(scope, alive), operation, direction].update(total)
        return merged


def _now() -> float:
    """The clock, read after the GPU has finished what it was asked for."""
    for k in tuple(backend._backends.values()):
        if not k.on_host:
            k.xp.cuda.Device().synchronize()
    return time.perf_counter()


def _array(x: Operand, dtype: Any) -> Array:
    """What an operation reads of an operand, a number standing for any other."""
    return x.data if isinstance(x, Tensor) else dtype.type(0) if isinstance(x, Real) else backend.as_array(x)


def _multiply_adds(function: Function, inputs: list[Array], y: Array) -> int:
    """Of one product: forward, or one gradient."""
    if isinstance(function, Conv2D | Conv2DTranspose | ConvChain | ConvChainInference):
        x, weight = inputs[:2]  # weight: (KH, KW, C, F)
        transposed = isinstance(function, Conv2DTranspose)
        if isinstance(function, ConvChain | ConvChainInference):
            transposed = function.links[0].transposed  # there is but one: see `_chain`
        return (x if transposed else y).size * weight.size // weight.shape[3]
    return y.size * inputs[0].shape[-1] if isinstance(function, Dense | MatMul) else 0


def _traffic(function: Function, arrays: list[Array]) -> int:
    return 0 if isinstance(function, Reshape | Transpose) else sum(array.nbytes for array in arrays)


def _shortened(name: str, width: int = 36) -> str:
    return name if len(name) <= width else f"{name[: width // 2 - 3]}...{name[-width // 2 :]}"


def _numbers(calls: int, seconds: float, share: float, flops: int, size: int) -> tuple[str, ...]:
    """Cells of the table: ms, percent, GFLOP/s, MB, GB/s."""
    rates = [f"{amount / seconds / 1e9:,.1f}" if amount and seconds else "" for amount in (flops, size)]
    megabytes = f"{size / 1e6:,.3f}" if size else ""
    return f"{calls:,}" if calls else "", f"{1e3 * seconds:,.3f}", f"{100 * share:.1f}", rates[0], megabytes, rates[1]
