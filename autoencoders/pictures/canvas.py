"""What all pictures share: sheets measured in pixels, fonts, checks of images and classes, saving and showing."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.layout_engine import LayoutEngine
from matplotlib.textpath import text_to_path
from numpy.typing import ArrayLike, NDArray

from minigrad.serialize import write_atomically

from ..data.dataset import to_unit_range

TRAIN_COLOUR, VALIDATION_COLOUR = "#0072b2", "#d55e00"  # Okabe and Ito's blue and vermilion
INK, FAINT = "#222222", "#666666"
DPI = 150
MAX_SIDE = 32_000  # pixels; Agg's own limit is 65,535
MARGIN = 40  # pixels, as every size in the sheets below
TITLE_SIZE, TEXT_SIZE, SMALL_SIZE, SMALLEST_SIZE = 13.0, 10.0, 9.0, 7.0  # points

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


# ---- what comes in -------------------------------------------------------------------------------------------------


def shown_images(images: ArrayLike) -> NDArray[np.float32]:
    """Images (..., H, W, C) as float32 in [0, 1], with one or three channels.

    Raises:
        ValueError: they are not finite.
    """
    values = to_unit_range(np.asarray(images)).astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("images contain NaN or infinite values")
    return values if values.shape[-1] == 3 else values[..., :1]


def classes_of(labels: ArrayLike, class_names: Sequence[str]) -> tuple[IntArray, list[str]]:
    """Class index of every image, and the name of every class; without names, the labels that occur are the names."""
    if len(class_names):
        return np.asarray(labels), list(class_names)
    present, index = np.unique(labels, return_inverse=True)
    return index, [str(label) for label in present]


class Drawing(Figure):
    """An empty figure of a size in pixels, which a notebook shows."""

    def __init__(self, width: float, height: float, layout: LayoutEngine | None = None) -> None:
        if max(width, height) > MAX_SIDE:
            raise ValueError(f"the picture would be {width:.0f} x {height:.0f} pixels; use fewer images or classes")
        super().__init__(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white", layout=layout)
        FigureCanvasAgg(self)

    def _repr_png_(self) -> bytes:
        return _png(self)


# ---- sheets: one Axes as large as the figure, measured in pixels from the top left corner ---------------------------


def new_sheet(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    figure = Drawing(width, height)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    room = width - 2 * MARGIN
    write_text(axes, MARGIN, MARGIN, title, width=room, size=TITLE_SIZE, weight="bold", ha="left", va="top")
    return figure, axes


def write_text(
    axes: Axes, x: float, y: float, text: str, *, width: float, size: float = TEXT_SIZE, **style: Any
) -> None:
    """Text at most ``width`` pixels wide: smaller where it must be, then cut with an ellipsis."""
    text, size = fitted_text(text, width, size, style.get("weight", "normal"))
    style = {"ha": "center", "color": INK} | style
    axes.text(x, y, text, fontsize=size, fontfamily=fonts_for(text), parse_math=False, **style)


def fonts_for(text: str) -> list[str]:
    """The usual fonts, followed by installed fonts for those letters of the text that the usual fonts lack."""
    usual = FontProperties()
    font = get_font(findfont(usual))
    lacking = [ord(letter) for letter in text if not font.get_char_index(ord(letter))]
    found = {_other_fonts()[code] for code in lacking if code in _other_fonts()}
    return [*usual.get_family(), *sorted(found)]


@cache
def _other_fonts() -> dict[int, str]:
    """A font of each code point that an installed one has; opens them all, so only where a letter is lacking."""
    found: dict[int, str] = {}
    for entry in sorted(fontManager.ttflist, key=lambda entry: (entry.style != "normal", entry.weight != 400)):
        if not entry.name.startswith("Last Resort"):  # which has a box for everything
            with suppress(OSError, RuntimeError):  # not there any more, or damaged
                for code in get_font(entry.fname).get_charmap():
                    found.setdefault(code, entry.name)
    return found


def text_width(text: str, size: float, weight: str = "normal") -> float:
    font = FontProperties(family=fonts_for(text), size=size, weight=weight)
    return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]) * DPI / 72


@lru_cache(maxsize=4096)  # class names come again and again
def fitted_text(text: str, width: float, size: float, weight: str = "normal") -> tuple[str, float]:
    text = " ".join(text.split())[:300]  # more fit nowhere, and each is measured
    needed = text_width(text, size, weight)
    if needed > width:
        size = max(SMALLEST_SIZE, size * width / needed * 0.98)
    if text_width(text, size, weight) > width:
        while text and text_width(text + "…", size, weight) > width:
            text = text[:-1]
        text = text.rstrip() + "…"
    return text, size


def tile_size(H: int, W: int, width: float, height: float, whole_from: int = 3) -> tuple[int, int]:
    """Height and width at which an image is shown in a box of pixels; a whole multiple of its size, if `whole_from`
    times its size fit."""
    scale = min(width / W, height / H)
    if scale >= whole_from:
        scale = math.floor(scale)
    return max(1, round(H * scale)), max(1, round(W * scale))


def place_image(axes: Axes, image: NDArray[np.float32], x: float, y: float, height: float, width: float) -> None:
    shown = image[..., 0] if image.shape[-1] == 1 else image
    axes.imshow(shown, cmap="gray", vmin=0.0, vmax=1.0, extent=(x, x + width, y + height, y), aspect="auto")


def number_text(value: float) -> str:
    """Four digits or the whole part: 0.01234, 1.234, 12.34, 12345."""
    return f"{value:.4g}" if not abs(value) >= 9999.5 else f"{value:.0f}"


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """The finished figure (height, width, 3)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


# ---- files and windows ---------------------------------------------------------------------------------------------


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write the figure to a PNG file, whole or not at all.

    Missing folders are made. The same figure gives the same bytes every time.

    Returns:
        The path written.

    Raises:
        ValueError: a name that does not end in ``.png``.
        DataError: the folder or file cannot be written; what was there before is untouched.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"save: figures are PNG files, the name must end in .png: {path}")
    write_atomically(path, _png(figure))
    return path


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=figure.dpi, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def show(figures: Iterable[Figure]) -> None:
    """Open one window per figure and wait until they are closed.

    A window shows the finished picture, so it is what ``save`` would write.

    Raises:
        RuntimeError: there is no display, or matplotlib has no window system to use.
    """
    from matplotlib import pyplot  # only here: it chooses a window system when first used

    hint = "save the figures to files instead (figures.save), or set MPLBACKEND to a window system, e.g. TkAgg"
    try:
        pyplot.switch_backend(pyplot.get_backend())
    except ImportError as error:
        raise RuntimeError(f"show: matplotlib cannot open windows here: {error}; {hint}") from error
    backend = pyplot.get_backend()
    if backend.lower() in {"agg", "cairo", "pdf", "pgf", "ps", "svg", "template"}:
        raise RuntimeError(f"show: no display to open windows on (matplotlib's backend is {backend}); {hint}")
    for figure in figures:
        picture = pixels(figure)
        height, width = picture.shape[:2]
        scale = min(1.0, 1400 / width, 900 / height)
        window = pyplot.figure(figsize=(scale * width / 100, scale * height / 100), dpi=100)
        axes = window.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set_axis_off()
        axes.imshow(picture)
    pyplot.show(block=True)
    pyplot.close("all")
