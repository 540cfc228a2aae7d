"""Where an operation was asked for: the line of the model or script outside of minigrad, and its names for data."""

from __future__ import annotations

import linecache
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

from ...tensor import Tensor

INSIDE = f"{Path(__file__).parents[2]}{os.sep}"


@dataclass(frozen=True)
class Origin:
    """A line of code. place: its file and number. text: all its lines. start, end: of the expression in it."""

    place: str
    text: str
    start: int
    end: int


def origin_of(frame: FrameType | None) -> Origin | None:
    """The innermost line outside of minigrad; None without a file, as in an interactive session."""
    for outer in _outside(frame):
        file, number = outer.f_code.co_filename, outer.f_lineno
        if not linecache.getline(file, number):
            return None
        _, last, start, end = next(islice(outer.f_code.co_positions(), outer.f_lasti // 2, None))
        lines = [linecache.getline(file, i) for i in range(number, (last or number) + 1)]
        before, after = lines[0].encode()[:start].decode(), lines[-1].encode()[end:].decode()  # columns count bytes
        text, margin = "".join(lines).rstrip(), len(lines[0]) - len(lines[0].lstrip())
        place = f"{'/'.join(Path(file).parts[-2:])}:{number}"
        return Origin(place, text[margin:], len(before) - margin, len(text) - len(after.rstrip()) - margin)
    return None


def variable_of(x: Any, frame: FrameType | None) -> str:
    """What the innermost function outside of minigrad that has a variable for x calls it."""
    for outer in _outside(frame):
        for name, value in outer.f_locals.items():
            same = value is x or (isinstance(x, Tensor) and value is x.data)
            if same and name.isidentifier() and not name.startswith("_"):
                return name
    return ""


def _outside(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        if not frame.f_code.co_filename.startswith(INSIDE):
            yield frame
        frame = frame.f_back
