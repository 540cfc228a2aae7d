"""Which kernels an operation calls and on which line, and how far each is from the plain kernel on the same arrays."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import CodeType, FrameType
from typing import Any

import numpy as np

from ... import backend
from ...backend.chain import ChainBackend
from ...backend.device import Device

NAMES = {
    name
    for cls in ChainBackend.__mro__
    if cls is not object and cls is not Device
    for name, value in vars(cls).items()
    if inspect.isfunction(value) and not name.startswith("_")
}


@dataclass
class Call:
    """A call of a kernel.

    Attributes:
        line: in the source file of the operation that called it.
        fast: the function that ran. plain: the one in plain code, after which one that calls it may come; they hold
            fast, if no faster one exists.
        difference: the largest absolute difference between their results on these arrays; size: the largest number of
            the plain result.
    """

    name: str
    line: int
    fast: Any
    plain: list[Any]
    difference: float = 0.0
    size: float = 0.0


@dataclass
class Run:
    """What ran in one call of `forward`, `backward` or `update`: the lines of its source, in order, and kernels."""

    code: CodeType
    lines: list[int] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)


class KernelWatcher:
    """Notes the kernels that are called inside `watching`, of all backends in use when it was entered."""

    def __init__(self) -> None:
        self.run: Run | None = None  # None: nothing is noted

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Put a wrapper in front of each kernel."""
        with ExitStack() as undo:
            for k in {id(k): k for k in (*backend._backends.values(), backend.default_backend())}.values():
                for name in NAMES:
                    vars(k)[name] = partial(self._call, k, name, getattr(k, name))
                    undo.callback(vars(k).pop, name)
            yield

    @contextmanager
    def watching(self, function: Any) -> Iterator[Run]:
        """Note the lines and kernels that run in a Python function, which is called inside this context."""
        run = Run(inspect.unwrap(function).__code__)

        def line(frame: FrameType, event: str, _: Any) -> Any:
            if event == "line":
                run.lines.append(frame.f_lineno)
            return line

        before, outer = sys.gettrace(), self.run
        self.run = run
        sys.settrace(lambda frame, *_: line if frame.f_code is run.code else None)
        try:
            yield run
        finally:
            sys.settrace(before)
            self.run = outer

    def _call(self, k: Any, name: str, fast: Any, *arguments: Any, **options: Any) -> Any:
        run, self.run = self.run, None  # kernels that this one calls are its own affair
        try:
            if run is None:
                return fast(*arguments, **options)
            call = Call(name, _line_in(run.code), inspect.unwrap(getattr(type(k), name)), _plain(name))
            run.calls.append(call)
            again = _copies(arguments) if name.endswith("_") else arguments
            result = fast(*arguments, **options)
            if call.fast not in call.plain:
                expected = getattr(ChainBackend(k.xp), name)(*again, **options)
                pairs = (arguments, again) if name.endswith("_") else (result, expected)
                call.difference, call.size = _largest(k, *pairs)
            return result
        finally:
            self.run = run


def _plain(name: str) -> list[Any]:
    """The plain kernel of this name, that of reference.py first, and those that extend it."""
    return [vars(cls)[name] for cls in reversed(ChainBackend.__mro__) if name in vars(cls)]


def _line_in(code: CodeType) -> int:
    """The line that runs now in a function that is being called."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return 0 if frame is None else frame.f_lineno


def _copies(value: Any) -> Any:
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(map(_copies, value))
    return value.copy() if hasattr(value, "dtype") else value


def _largest(k: Any, a: Any, b: Any) -> tuple[float, float]:
    """(the largest difference of the arrays in two nested results, the largest number in the second)."""
    if isinstance(a, list | tuple):
        found = [_largest(k, x, y) for x, y in zip(a, b, strict=True)]
        return max((d for d, _ in found), default=0.0), max((s for _, s in found), default=0.0)
    if not hasattr(a, "dtype") or not a.size or a.dtype.kind != "f":
        return 0.0, 0.0
    x, y = (np.asarray(k.to_host(array), "float64") for array in (k.xp.asarray(a), k.xp.asarray(b)))
    return float(np.abs(x - y).max()), float(np.abs(y).max())
