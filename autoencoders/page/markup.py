"""HTML from Python: tags whose contents are escaped, images as PNG, small charts as SVG."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from ..data.dataset import printable

EMPTY = {"img", "input", "meta"}  # tags without an end
WIDTH, HEIGHT, LEFT, BOTTOM = 340, 200, 46, 24  # of a chart, and the room for the numbers beside its axes


class Markup(str):
    """Text that is HTML already and is not escaped again."""


def tag(name: str, /, *content: Any, **attributes: Any) -> Markup:
    """An HTML element. Text is escaped, Markup is not, and lists are joined.

    attributes: `class_` stands for class and `data_x` for data-x. None and False are left out; True has no value.

    >>> tag("p", "a < b", tag("b", 1), class_="note")
    '<p class="note">a &lt; b<b>1</b></p>'
    """
    parts = [name]
    for key, value in attributes.items():
        if value is not None and value is not False:
            key = key.rstrip("_").replace("_", "-")
            parts.append(key if value is True else f'{key}="{_escaped(value)}"')
    start = f"<{' '.join(parts)}>"
    return Markup(start if name in EMPTY else f"{start}{join(*content)}</{name}>")


def join(*content: Any) -> Markup:
    """The contents one after the other."""
    return Markup("".join(join(*x) if isinstance(x, list) else _escaped(x) for x in content if x is not None))


def _escaped(x: Any) -> str:
    return x if isinstance(x, Markup) else escape(printable(str(x), "\n"))


def picture(pixels: np.ndarray, alt: str = "", **attributes: Any) -> Markup:
    """An image (H, W, 1 or 3) of uint8 at its own size, which the browser scales.

    alt: empty for one of several images that are described together.
    """
    height, width = pixels.shape[:2]
    return tag("img", src=png(pixels), alt=alt, width=width, height=height, class_="pixels", **attributes)


def png(pixels: np.ndarray) -> str:
    """An image (H, W, 1 or 3) of uint8 as the address of a PNG."""
    buffer = BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def sheet(images: np.ndarray, columns: int) -> str:
    """Images (N, H, W, 1 or 3) of uint8 as one: a PNG if they are grey, else a JPEG, which is a quarter as large."""
    pixels = tiled(images, columns)
    if pixels.shape[2] == 1:
        return png(pixels)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def tiled(images: np.ndarray, columns: int) -> np.ndarray:
    """Images (N, H, W, C) row by row as one; places that are left over are black."""
    N, H, W, C = images.shape
    rows = -(-N // columns)
    sheet = np.zeros((rows * columns, H, W, C), images.dtype)
    sheet[:N] = images
    return sheet.reshape(rows, columns, H, W, C).swapaxes(1, 2).reshape(rows * H, columns * W, C)


def chart(title: str, unit: str, x: Sequence[float], curves: Mapping[str, Sequence[float | None]]) -> Markup:
    """Curves over x as SVG, with the first and last value of each in the description. Gaps are None or not finite."""
    known = {
        name: [(a, float(y)) for a, y in zip(x, values, strict=True) if y is not None and abs(float(y)) < 1e30]
        for name, values in curves.items()
    }
    known = {name: points for name, points in known.items() if points}
    if not known:
        return Markup("")
    every = [y for points in known.values() for _, y in points]
    low, high = _range(every)
    first, last = min(x), max(x)

    def place(a: float, y: float) -> str:
        across = LEFT + (WIDTH - LEFT - 8) * ((a - first) / (last - first) if last > first else 0.5)
        return f"{across:.1f} {8 + (HEIGHT - BOTTOM - 8) * (high - y) / (high - low):.1f}"

    drawn = []
    for y in np.linspace(low, high, 5):
        across = place(first, float(y)).split()[1]
        drawn.append(tag("path", d=f"M{LEFT} {across}H{WIDTH - 8}", class_="grid"))
        drawn.append(tag("text", f"{y:.4g}", x=LEFT - 6, y=float(across) + 4, text_anchor="end"))
    for a in sorted({first, last}):
        anchor = "end" if a == last > first else "start"
        drawn.append(tag("text", f"epoch {a:g}", x=place(a, low).split()[0], y=HEIGHT - 6, text_anchor=anchor))
    told = []
    for name, points in known.items():
        line = "M" + "L".join(place(a, y) for a, y in points)
        drawn.append(tag("path", d=line, class_=f"curve {name}"))
        if len(points) <= 30:  # a path of no length with round ends is a dot
            drawn.append(tag("path", d="".join(f"M{place(a, y)}h0" for a, y in points), class_=f"dots {name}"))
        told.append(f"{name} from {points[0][1]:.4g} to {points[-1][1]:.4g}")
    image = tag("svg", *drawn, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=f"{title}: {', '.join(told)}")
    return tag("div", tag("p", f"{title}, {unit}", class_="small"), image)


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
