"""The sources of operations and kernels, highlighted, each once."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer


@dataclass
class Source:
    """A function's source. lines: (number in its file, HTML) of each line."""

    number: int
    title: str
    place: str
    lines: list[tuple[int, Markup]]


class Sources:
    """The sources that a page shows."""

    def __init__(self) -> None:
        self.all: list[Source] = []
        self._known: dict[Any, Source] = {}

    def of(self, function: Any) -> Source | None:
        """The source of a Python function; None where there is none, as in an interactive session."""
        code = inspect.unwrap(function).__code__
        if code not in self._known:
            try:
                lines, first = inspect.getsourcelines(code)
            except (OSError, TypeError):
                return None
            text = inspect.cleandoc("\n" + "".join(lines))
            html = highlight(text, PythonLexer(stripnl=False), HtmlFormatter(nowrap=True)).rstrip("\n").split("\n")
            parts = Path(code.co_filename).parts
            place = "/".join(parts[parts.index("minigrad") :] if "minigrad" in parts[:-1] else parts[-2:])
            numbered = [(first + i, Markup(line)) for i, line in enumerate(html)]
            self._known[code] = Source(len(self.all), code.co_qualname, f"{place}:{first}", numbered)
            self.all.append(self._known[code])
        return self._known[code]


def colours() -> str:
    """The rules that colour the sources."""
    return HtmlFormatter(style="friendly").get_style_defs(".source")
