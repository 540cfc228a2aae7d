"""HTML from Python: tags whose contents are escaped, images as PNG, figures with captions."""

from __future__ import annotations

import base64
from html import escape
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from ..data.dataset import printable

EMPTY = {"img", "input", "meta"}  # tags without an end


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


def figure(content: Any, sees: str, good: str = "", **attributes: Any) -> Markup:
    """A picture, what one sees, and what good looks like."""
    caption = tag("figcaption", sees, Markup(" "), tag("em", good) if good else None)
    return tag("figure", content, caption, **attributes)
