"""Pictures of a model's work, written to PNG files: NumPy arrays in, ``matplotlib.figure.Figure`` out.

``reconstructions``, ``samples``, ``interpolations``, ``traversals`` and ``manifold_grid`` show images;
``latent_scatter`` shows where the encoder puts them, ``kl_bars`` what each latent dimension tells of them;
``loss_curves`` shows the training. ``save`` writes a figure to a file, ``show`` opens windows.

Every figure is built on matplotlib's object API: pyplot's global state is never touched (only ``show`` imports pyplot),
so nothing needs a display and nothing is kept alive after the caller drops the figure.

Images are ``(N, H, W, C)``, uint8 or float in [0, 1]; values outside are clipped. C = 1 is shown grey, C = 3 as RGB,
of any other C the first channel.

Read next: runs.py, which draws them.
"""

import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from io import BytesIO
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

# A notebook sets MPLBACKEND for its children, too, and matplotlib does not start where that window system is missing.
if "MPLBACKEND" in os.environ and "matplotlib" not in sys.modules:
    _wanted = os.environ.pop("MPLBACKEND")
    import matplotlib

    os.environ["MPLBACKEND"] = _wanted
    with suppress(ValueError):
        matplotlib.rcParams["backend"] = _wanted
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.textpath import text_to_path
from matplotlib.ticker import MaxNLocator, ScalarFormatter
from numpy.typing import ArrayLike, NDArray

from minigrad.serialize import write_atomically

__all__ = [
    "interpolations",
    "kl_bars",
    "latent_scatter",
    "loss_curves",
    "manifold_grid",
    "manifold_points",
    "principal_components",
    "reconstructions",
    "samples",
    "save",
    "show",
    "traversals",
]

# Ten colours for classes, found by a search that makes the smallest OKLab distance of any two of them large, as seen
# with normal vision and with simulated full deuteranopia, protanopia and tritanopia (Machado et al. 2009), at lightness
# 0.36 to 0.84 so that small dots show on white. Smallest distance 0.14; matplotlib's "tab10" 0.007, "petroff10" 0.06.
CLASS_COLOURS = (
    "#257099", "#fa6a00", "#23af8b", "#b01b06", "#9c00f4", "#e2cd09", "#99d3f7", "#670e5c", "#b884ee", "#2c00b2",
)  # fmt: skip
CLASS_MARKERS = tuple("os^DvPX<p>*")  # eleven, so that colour and marker together repeat only after 110 classes

TRAIN_COLOUR, VALIDATION_COLOUR = "#0072b2", "#d55e00"  # Okabe and Ito's blue and vermilion
CURVES: dict[str, tuple[str, str, Any]] = {  # colour, marker and dashes of the losses
    "training": (TRAIN_COLOUR, "o", "-"),
    "validation": (VALIDATION_COLOUR, "s", (0, (5, 1.5))),
}
START_COLOUR, END_COLOUR = TRAIN_COLOUR, VALIDATION_COLOUR
INK, FAINT = "#222222", "#666666"

FIRST_EPOCH = 2.0  # times the range of the other losses: a first one farther above them is cut off
FEWEST_CUT = 10  # epochs; of fewer the first is much of the story
DPI = 150
MAX_SIDE = 32_000  # pixels; Agg's own limit is 65,535
MARGIN = 40  # pixels, as every size in the sheets below
UNUSED = 0.05  # nats that a latent dimension tells of an image: to the eye such a bar is one of zero
LONGEST_TICK = 10  # characters of a number at an axis
TITLE_SIZE, TEXT_SIZE, SMALL_SIZE, SMALLEST_SIZE = 13.0, 10.0, 9.0, 7.0  # points

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


# ---- what comes in -------------------------------------------------------------------------------------------------


def _pictures(images: ArrayLike, what: str, *, leading: int = 1) -> NDArray[np.float32]:
    """Images with ``leading`` axes before (H, W, C), checked, as float32 in [0, 1] with one or three channels."""
    array = np.asarray(images)
    layout = ", ".join(("N",) if leading == 1 else ("rows", "steps")[:leading])
    if array.ndim != leading + 3:
        raise ValueError(f"{what} must have the shape ({layout}, H, W, C), got {array.shape}")
    if 0 in array.shape:
        raise ValueError(f"{what} are empty: shape {array.shape}, expected ({layout}, H, W, C)")
    if array.dtype == np.uint8:
        values = array.astype(np.float32) / 255.0
    elif np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all():
            raise ValueError(f"{what} contain NaN or infinite values")
        if array.max() > 16.0:
            raise ValueError(f"{what} reach {array.max():g}, expected float in [0, 1] or uint8")
        values = array.astype(np.float32)
    else:
        raise ValueError(f"{what} must be uint8 or float in [0, 1], got {array.dtype}")
    return np.clip(values if array.shape[-1] == 3 else values[..., :1], 0.0, 1.0)


def _classes(labels: ArrayLike, class_names: Sequence[str], N: int, who: str) -> tuple[IntArray, list[str]]:
    """Class index of every image, and the name of every class; without names, the labels that occur are the names."""
    array = np.asarray(labels)
    if array.shape != (N,):
        raise ValueError(f"{who}: expected one label for each of {N} images, shape ({N},), got {array.shape}")
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{who}: labels must be integers, got {array.dtype}")
    if not len(class_names):
        present, index = np.unique(array, return_inverse=True)
        return index.astype(np.int64), [str(label) for label in present]
    if array.min() < 0 or array.max() >= len(class_names):
        wrong = int(array.min()) if array.min() < 0 else int(array.max())
        raise ValueError(f"{who}: label {wrong} has no name, class_names names 0 to {len(class_names) - 1}")
    return array.astype(np.int64), [str(name) for name in class_names]


# ---- sheets: one Axes as large as the figure, measured in pixels from the top left corner ---------------------------


def _sheet(width: float, height: float, title: str, who: str) -> tuple[Figure, Axes]:
    if height > MAX_SIDE or width > MAX_SIDE:
        raise ValueError(f"{who}: the picture would be {width:.0f} x {height:.0f} pixels; pass fewer images")
    figure = Drawing(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    _write(axes, MARGIN, MARGIN, title, width=width - 2 * MARGIN, size=TITLE_SIZE, weight="bold", ha="left", va="top")
    return figure, axes


def _write(axes: Axes, x: float, y: float, text: str, *, width: float, size: float = TEXT_SIZE, **style: Any) -> None:
    """Text at most ``width`` pixels wide: smaller where it must be, then cut with an ellipsis."""
    text, size = _fitted(text, width, size, style.get("weight", "normal"))
    style = {"ha": "center", "color": INK} | style
    axes.text(x, y, text, fontsize=size, fontfamily=_fonts(text), parse_math=False, **style)


def _fonts(text: str) -> list[str]:
    """The usual fonts, and after them those that have letters of the text which these lack, if any is installed."""
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


def _text_width(text: str, size: float, weight: str = "normal") -> float:
    font = FontProperties(family=_fonts(text), size=size, weight=weight)
    return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]) * DPI / 72


@lru_cache(maxsize=4096)  # class names come again and again
def _fitted(text: str, width: float, size: float, weight: str = "normal") -> tuple[str, float]:
    text = " ".join(text.split())[:300]  # more fit nowhere, and each is measured
    needed = _text_width(text, size, weight)
    if needed > width:
        size = max(SMALLEST_SIZE, size * width / needed * 0.98)
    if _text_width(text, size, weight) > width:
        while text and _text_width(text + "…", size, weight) > width:
            text = text[:-1]
        text = text.rstrip() + "…"
    return text, size


def _tile(H: int, W: int, width: float, height: float) -> tuple[int, int]:
    """Height and width at which an image is shown in a box of pixels; from three times its size, a whole multiple."""
    scale = min(width / W, height / H)
    if scale >= 3:
        scale = math.floor(scale)
    return max(1, round(H * scale)), max(1, round(W * scale))


def _place(axes: Axes, image: NDArray[np.float32], x: float, y: float, height: float, width: float) -> None:
    shown = image[..., 0] if image.shape[-1] == 1 else image
    axes.imshow(shown, cmap="gray", vmin=0.0, vmax=1.0, extent=(x, x + width, y + height, y), aspect="auto")


def _number(value: float) -> str:
    """Four digits or the whole part: 0.01234, 1.234, 12.34, 12345."""
    return f"{value:.4g}" if not abs(value) >= 9999.5 else f"{value:.0f}"


# ---- pictures of images --------------------------------------------------------------------------------------------


def reconstructions(
    originals: ArrayLike,
    reconstructed: ArrayLike,
    labels: ArrayLike | None = None,
    class_names: Sequence[str] = (),
    errors: ArrayLike | None = None,
    *,
    title: str = "Originals and reconstructions",
    error_name: str = "error",
    columns: int = 10,
    rows_are: tuple[str, str] = ("original", "reconstruction"),
) -> Figure:
    """Originals above their reconstructions, one column an image, in several double rows when there are many.

    Shapes: originals, reconstructed (N, H, W, C); labels (N,); errors (N,)

    Args:
        labels: integers; the class name stands above each column. ``None``: no names.
        class_names: name of class 0, 1, ...; empty: the label itself is written.
        errors: one number an image, written below it.
        error_name: what the numbers are, with their unit; written below the pictures.
        columns: images in one double row, at least 1.
        rows_are: names of the two rows, where other images are shown in pairs.

    Raises:
        ValueError: shapes that do not match, empty or non-finite images, a label without a name.
    """
    who = "reconstructions"
    above, below = _pictures(originals, f"{who}: originals"), _pictures(reconstructed, f"{who}: reconstructed images")
    N, H, W = above.shape[:3]
    if np.shape(originals) != np.shape(reconstructed):
        raise ValueError(f"{who}: originals are {np.shape(originals)} but reconstructed {np.shape(reconstructed)}")
    _at_least(columns, 1, f"{who}: columns")
    columns = min(columns, N)
    names: list[str] | None = None
    if labels is not None:
        index, every_name = _classes(labels, class_names, N, who)
        names = [every_name[label] for label in index]
    numbers: list[str] | None = None
    if errors is not None:
        if np.shape(errors) != (N,):
            raise ValueError(f"{who}: expected one error for each of {N} images, shape ({N},), got {np.shape(errors)}")
        numbers = [_number(float(error)) for error in np.asarray(errors)]

    gap, gutter = 14, 190  # between columns; left of them, for the names of the two rows
    tile_height, tile_width = _tile(H, W, min(1560 / columns - gap, 290), 290)
    pitch = max(tile_width, 96) + gap
    name_height, number_height = (34 if names else 0), (34 if numbers else 0)
    block = name_height + 2 * tile_height + 6 + number_height + 30
    top = MARGIN + 56
    rows = -(-N // columns)
    note = f"Below each pair: {error_name}" if numbers else ""
    texts = max(_text_width(title, TITLE_SIZE, "bold"), _text_width(note, SMALL_SIZE))
    width = 2 * MARGIN + max(min(1120, texts), gutter + columns * pitch)
    figure, axes = _sheet(width, top + rows * block + (44 if numbers else 10), title, who)
    for i in range(N):
        x = MARGIN + gutter + (i % columns) * pitch
        y = top + (i // columns) * block
        centre = x + (pitch - gap) / 2
        if names:
            _write(axes, centre, y + 24, names[i], width=pitch - gap, va="baseline")
        y += name_height
        _place(axes, above[i], centre - tile_width / 2, y, tile_height, tile_width)
        _place(axes, below[i], centre - tile_width / 2, y + tile_height + 6, tile_height, tile_width)
        if numbers:
            low = y + 2 * tile_height + 6 + 28
            _write(axes, centre, low, numbers[i], width=pitch - gap, size=SMALL_SIZE, color=FAINT, va="baseline")
        if i % columns == 0:
            side: dict[str, Any] = {"width": gutter - 16, "ha": "right", "va": "center", "color": FAINT}
            edge = x + min(0, (pitch - gap - tile_width) / 2) - 16
            _write(axes, edge, y + tile_height / 2, rows_are[0], **side)
            _write(axes, edge, y + 1.5 * tile_height + 6, rows_are[1], **side)
    if numbers:
        foot = top + rows * block + 14
        _write(axes, MARGIN, foot, note, width=width - 2 * MARGIN, size=SMALL_SIZE, ha="left", va="center", color=FAINT)
    return figure


def samples(
    images: ArrayLike,
    columns: int = 10,
    title: str = "Samples from the prior",
    row_names: Sequence[str] = (),
    names: Sequence[str] = (),
) -> Figure:
    """Images in a grid, row by row.

    Shapes: images (N, H, W, C)

    Args:
        columns: images in a row, at least 1.
        row_names: written left of the rows; one for each, or none.
        names: written above the images; one for each, or none.

    Raises:
        ValueError: empty, non-finite or misshapen images; so many that the picture cannot be drawn; a row or an image
            without name.
    """
    pictures = _pictures(images, "samples: images")
    N, H, W = pictures.shape[:3]
    _at_least(columns, 1, "samples: columns")
    columns = min(columns, N)
    rows = -(-N // columns)
    for given, count, what in ((row_names, rows, "rows"), (names, N, "images")):
        if len(given) not in (0, count):
            raise ValueError(f"samples: expected one name for each of {count} {what}, got {len(given)}")
    gap = 8
    gutter, name_height = 200 if len(row_names) else 0, 34 if len(names) else 0  # left of the images and above them
    top = MARGIN + 60
    highest = 340.0
    if gutter:  # a row for each class, often few columns: no higher than wide, but not too small to be seen
        least = min(48, (MAX_SIDE - top - MARGIN) / rows - gap)
        highest = max(least, min(highest, 1600 / rows - gap))
    tile_height, tile_width = _tile(H, W, min((1600 - gutter) / columns - gap, 340), highest)
    pitch = name_height + tile_height + gap
    content = gutter + columns * (tile_width + gap) - gap
    width = max(900 if gutter else 1200, 2 * MARGIN + content)
    figure, axes = _sheet(width, top + rows * pitch - gap + MARGIN, title, "samples")
    for i in range(N):
        row, column = divmod(i, columns)
        x, y = MARGIN + gutter + column * (tile_width + gap), top + row * pitch + name_height
        _place(axes, pictures[i], x, y, tile_height, tile_width)
        if gutter and column == 0:
            style: dict[str, Any] = {"ha": "right", "va": "center", "color": FAINT}
            _write(axes, x - 16, y + tile_height / 2, row_names[row], width=gutter - 16, **style)
        if name_height:
            _write(axes, x + tile_width / 2, y - 10, names[i], width=tile_width, va="baseline")
    return figure


def interpolations(rows: ArrayLike | Sequence[ArrayLike], *, title: str = "Interpolations in latent space") -> Figure:
    """Paths between two images, one row a path: the ends framed and set apart, the steps between them in order.

    Shapes: rows (R, S, H, W, C): R paths of S steps, the first and the last step are the ends, decoded like the others

    Raises:
        ValueError: no path, a path with fewer than two steps, paths of different lengths.
    """
    who = "interpolations"
    paths = [np.asarray(path) for path in rows]  # type: ignore[union-attr]
    if not paths:
        raise ValueError(f"{who}: no path to show, rows is empty")
    shapes = sorted({path.shape for path in paths})
    if len(shapes) > 1:
        raise ValueError(f"{who}: every row must have the same shape (steps, H, W, C), got {shapes}")
    pictures = _pictures(np.stack(paths), f"{who}: rows", leading=2)
    R, S, H, W = pictures.shape[:4]
    if S < 2:
        raise ValueError(f"{who}: a path needs at least 2 steps, its two ends; got {S}")
    gap, row_gap, apart = 6, 22, 22  # between steps, between rows, between an end and its neighbour
    tile_height, tile_width = _tile(H, W, min(1500 / S - gap, 260), 260)
    between = (S - 2) * (tile_width + gap) - gap if S > 2 else 0
    content = 2 * tile_width + between + (2 if S > 2 else 1) * apart
    top = MARGIN + 120
    width = max(1200, content + 2 * MARGIN + 80)
    figure, axes = _sheet(width, top + R * (tile_height + row_gap) - row_gap + MARGIN, title, who)
    left = (width - content) // 2
    start, end = left, left + content - tile_width
    for r in range(R):
        y = top + r * (tile_height + row_gap)
        for s in range(S):
            x = start if s == 0 else end if s == S - 1 else left + tile_width + apart + (s - 1) * (tile_width + gap)
            _place(axes, pictures[r, s], x, y, tile_height, tile_width)
        for x, colour in ((start, START_COLOUR), (end, END_COLOUR)):
            style: dict[str, Any] = {"fill": False, "edgecolor": colour, "linewidth": 3}
            axes.add_patch(Rectangle((x - 4, y - 4), tile_width + 8, tile_height + 8, **style))
    head = top - 24
    for x, text, colour, side in (
        (start - 4, "first reconstruction", START_COLOUR, "left"),
        (end + tile_width + 4, "second reconstruction", END_COLOUR, "right"),
    ):
        room = content / 2 - 20
        _write(axes, x, head, text, width=room, ha=side, va="baseline", color=colour, weight="bold")
    return figure


def traversals(
    start: ArrayLike,
    rows: ArrayLike,
    names: Sequence[str],
    values: ArrayLike,
    *,
    title: str = "Along single latent dimensions",
) -> Figure:
    """What changes in an image with one latent at a time: one row a dimension, that image on its left, one column a
    value.

    Shapes: start (H, W, C); rows (R, S, H, W, C); values (S,), written above the columns

    Args:
        names: of the rows, one each.

    Raises:
        ValueError: empty or non-finite images, images of different shapes, another number of names or values.
    """
    who = "traversals"
    pictures = _pictures(rows, f"{who}: rows", leading=2)
    image = _pictures(np.asarray(start)[None], f"{who}: start")[0]
    if image.shape != pictures.shape[2:]:
        raise ValueError(f"{who}: the images of rows are {pictures.shape[2:]} but start is {image.shape}")
    R, S, H, W = pictures.shape[:4]
    if len(names) != R or np.shape(values) != (S,):
        raise ValueError(f"{who}: {R} rows of {S} images, got {len(names)} names and values of {np.shape(values)}")
    gap, apart, gutter, top = 6, 22, 230, MARGIN + 96  # apart: the start from the others; gutter: for the names
    tile_height, tile_width = _tile(H, W, min(1340 / (S + 1) - gap, 220), 220)
    pitch, left = tile_width + gap, MARGIN + gutter
    width = max(1200, left + tile_width + apart + S * pitch - gap + MARGIN)
    figure, axes = _sheet(width, top + R * (tile_height + gap) - gap + MARGIN, title, who)
    heads = ["start", *(f"z = {value:.3g}".replace("-", "\N{MINUS SIGN}") for value in np.asarray(values, float))]
    places = [left, *(left + tile_width + apart + s * pitch for s in range(S))]
    for x, head in zip(places, heads, strict=True):
        style: dict[str, Any] = {"size": SMALL_SIZE, "color": FAINT, "va": "baseline"}
        _write(axes, x + tile_width / 2, top - 16, head, width=tile_width, **style)
    for r, name in enumerate(names):
        y = top + r * (tile_height + gap)
        _write(axes, left - 18, y + tile_height / 2, name, width=gutter - 24, ha="right", va="center")
        for x, shown in zip(places, [image, *pictures[r]], strict=True):
            _place(axes, shown, x, y, tile_height, tile_width)
    return figure


# ---- the latent plane ----------------------------------------------------------------------------------------------


def manifold_points(side: int = 20, low: float = 0.02, high: float = 0.98) -> NDArray[np.float32]:
    """Latents of a ``side x side`` grid, evenly spaced in probability: z = inverse normal CDF of the quantile.

    Row by row from the top left corner of the picture that ``manifold_grid`` makes of their images: z1 grows to the
    right, z2 grows upwards, so the first point has the smallest z1 and the largest z2.

    Shapes: result (side * side, 2)

    Args:
        side: points along each axis, at least 2.
        low, high: the outer quantiles, 0 < low < high < 1.

    Raises:
        ValueError: arguments outside these ranges.

    Source: Kingma and Welling, Auto-Encoding Variational Bayes (2014), figure 4.
    """
    _at_least(side, 2, "manifold_points: side")
    z = _normal_quantiles(side, (low, high), "manifold_points")
    z1, z2 = np.meshgrid(z, z[::-1])  # (side, side) each: z1 varies along a row, z2 falls from row to row
    return np.stack([z1.ravel(), z2.ravel()], axis=1).astype(np.float32)


def manifold_grid(
    images_grid: ArrayLike,
    *,
    quantiles: tuple[float, float] = (0.02, 0.98),
    title: str = "Decoded images over the latent plane",
    axis_names: tuple[str, str] = ("z1, in even steps of probability", "z2, in even steps of probability"),
) -> Figure:
    """The decoded images of ``manifold_points``, tiled into one picture whose axes are labelled with z.

    Shapes: images_grid (side * side, H, W, C), in the order of ``manifold_points``, or (rows, columns, H, W, C)

    Args:
        quantiles: the outer quantiles (low, high) that ``manifold_points`` was given.

    Raises:
        ValueError: a number of images that is no square, empty or non-finite images, quantiles outside (0, 1).
    """
    who = "manifold_grid"
    array = np.asarray(images_grid)
    if array.ndim == 4:
        side = math.isqrt(len(array))
        if side * side != len(array):
            raise ValueError(f"{who}: {len(array)} images do not fill a square; pass (rows, columns, H, W, C)")
        array = array.reshape(side, side, *array.shape[1:])
    if array.ndim != 5:
        raise ValueError(f"{who}: images must be (side * side, H, W, C) or (rows, columns, H, W, C), got {array.shape}")
    pictures = _pictures(array, f"{who}: images", leading=2)
    rows, columns, H, W, C = pictures.shape
    z_columns = _normal_quantiles(columns, quantiles, who)
    z_rows = _normal_quantiles(rows, quantiles, who)[::-1]  # the top row has the largest z2

    mosaic = pictures.transpose(0, 2, 1, 3, 4).reshape(rows * H, columns * W, C)  # (rows*H, columns*W, C)
    height, width = _tile(rows * H, columns * W, 1400, 1400) if max(rows * H, columns * W) > 1400 else (0, 0)
    if not height:
        scale = max(1, 1400 // max(rows * H, columns * W))
        height, width = scale * rows * H, scale * columns * W
    left, right, top, bottom = 150, 50, 110, 110
    sheet_width = max(1200, left + width + right)
    left += (sheet_width - left - width - right) // 2
    sheet_height = top + height + bottom
    figure = Drawing(figsize=(sheet_width / DPI, sheet_height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((left / sheet_width, bottom / sheet_height, width / sheet_width, height / sheet_height))
    shown = mosaic[..., 0] if C == 1 else mosaic
    extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    axes.imshow(shown, cmap="gray", vmin=0.0, vmax=1.0, extent=extent, aspect="auto")
    for ticks, labels, z, pixels, room in (
        (axes.set_xticks, axes.set_xticklabels, z_columns, width, 90),
        (axes.set_yticks, axes.set_yticklabels, z_rows, height, 36),
    ):
        where = _labelled(len(z), -(-room * len(z) // pixels))
        ticks(where)
        labels([f"{z[i]:.2f}".replace("-", "\N{MINUS SIGN}") for i in where])
    axes.tick_params(labelsize=SMALL_SIZE, length=4, colors=INK)
    axes.set_xlabel(axis_names[0], fontsize=TEXT_SIZE + 1, color=INK, parse_math=False)
    axes.set_ylabel(axis_names[1], fontsize=TEXT_SIZE + 1, color=INK, parse_math=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    _figure_title(figure, title, sheet_width, sheet_height)
    return figure


def _labelled(count: int, step: int) -> list[int]:
    """Every ``step``-th tile from both ends towards the middle: symmetric, and never closer than ``step``."""
    half = [i for i in range(0, count // 2, step) if count - 1 - 2 * i >= step]
    middle = [count // 2] if count % 2 and (not half or count // 2 - half[-1] >= step) else []
    return half + middle + [count - 1 - i for i in reversed(half)]


def principal_components(latents: ArrayLike, count: int = 2) -> tuple[FloatArray, FloatArray]:
    """Latents along the ``count`` directions of largest variance, and each direction's share of the whole variance.

    ``centred = U S V'``; the result is ``centred V[:, :count]`` and ``S[:count]**2 / sum(S**2)``. A direction's sign is
    fixed by making its largest entry positive. Directions that do not exist (D or N - 1 below count) give zeros.

    Shapes: latents (N, D); result (N, count), (count,)
    """
    x = np.asarray(latents, dtype=np.float64)
    centred = x - x.mean(axis=0)
    centred[:, np.ptp(x, axis=0) == 0] = 0.0  # the rounding of the mean is no variance
    _, scales, directions = np.linalg.svd(centred, full_matrices=False)  # (K,), (K, D), K = min(N, D)
    total = float((scales**2).sum())
    K = min(count, len(scales))
    projected, shares = np.zeros((len(x), count)), np.zeros(count)
    largest = np.abs(directions[:K]).argmax(axis=1)
    signs = np.where(directions[np.arange(K), largest] < 0, -1.0, 1.0)
    projected[:, :K] = centred @ (directions[:K] * signs[:, None]).T
    if total > 0:
        shares[:K] = scales[:K] ** 2 / total
    return projected, shares


def latent_scatter(
    latents: ArrayLike,
    labels: ArrayLike | None,
    class_names: Sequence[str] = (),
    *,
    axis_names: tuple[str, str] | None = None,
    title: str | None = None,
) -> Figure:
    """Where the encoder puts the images, coloured by class.

    Two latent dimensions are shown as they are; more are projected on their two principal components, with the share of
    the variance that they explain; one is shown as a histogram for each class.

    Shapes: latents (N, D); labels (N,)

    Args:
        labels: integers; ``None``: one colour, no legend.
        class_names: name of class 0, 1, ...; empty: the labels that occur.
        axis_names: names of the two axes; with one dimension the first is used.
        title: replaces the first line of the heading.

    Raises:
        ValueError: empty or non-finite latents, a label without a name, shapes that do not match.
    """
    who = "latent_scatter"
    x = np.asarray(latents)
    if x.ndim != 2:
        raise ValueError(f"{who}: latents must have the shape (N, dimensions), got {x.shape}")
    if 0 in x.shape:
        raise ValueError(f"{who}: latents are empty: shape {x.shape}")
    x = x.astype(np.float64)
    finite = np.isfinite(x).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{who}: latents contain NaN or infinite values in {int((~finite).sum())} of {len(x)} rows, "
            f"the first is row {int(finite.argmin())}"
        )
    N, D = x.shape
    index, names = (np.zeros(N, np.int64), [""]) if labels is None else _classes(labels, class_names, N, who)
    names = [_fitted(name, 330, TEXT_SIZE)[0] for name in names]
    heading = title or f"Latent space of {N:,} image{'s' if N > 1 else ''}"
    if D == 1:
        return _latent_histograms(x[:, 0], index, names, heading, (axis_names or ("z1", ""))[0])
    if D == 2:
        points, x_name, y_name = x, *(axis_names or ("z1", "z2"))
        subtitle = ""
    else:
        points, shares = principal_components(x)
        first, second = axis_names or ("principal component 1", "principal component 2")
        x_name = f"{first} ({100 * shares[0]:.1f} % of the variance)"
        y_name = f"{second} ({100 * shares[1]:.1f} % of the variance)"
        subtitle = f"{D} dimensions projected on two principal components: {100 * shares.sum():.1f} % of the variance"

    legend_columns = 0 if labels is None else -(-len(names) // 30)
    figure = _chart((10.5 + 2.5 * max(0, legend_columns - 1), 8.4), who)
    axes = figure.add_subplot()
    _scatter(axes, points, index, len(names), float(np.clip(60_000 / N, 7, 36)))
    axes.set_aspect("equal", adjustable="datalim")
    _plain_axes(axes)
    axes.set_xlabel(x_name, fontsize=TEXT_SIZE, color=INK, parse_math=False)
    axes.set_ylabel(y_name, fontsize=TEXT_SIZE, color=INK, parse_math=False)
    _headline(axes, heading, subtitle)
    if labels is not None:
        _class_legend(figure, names, legend_columns)
    return figure


def _scatter(axes: Axes, points: FloatArray, index: IntArray, classes: int, area: float) -> None:
    """Points (N, 2) in the colours and markers of their classes; area of a marker in square points."""
    parts = 8 if len(points) > 400 else 1  # classes are drawn in turns, so that the last one does not hide the others
    for part in range(parts):
        for i in range(classes):
            mine = points[index == i][part::parts]
            if len(mine):
                marker, colour = CLASS_MARKERS[i % len(CLASS_MARKERS)], CLASS_COLOURS[i % len(CLASS_COLOURS)]
                axes.scatter(mine[:, 0], mine[:, 1], s=area, marker=marker, color=colour, linewidths=0, alpha=0.75)


def _latent_histograms(z: FloatArray, index: IntArray, names: list[str], heading: str, x_name: str) -> Figure:
    """One row a class, the same bins and the same scale in every row."""
    edges = np.histogram_bin_edges(z, bins=60)
    shares = []
    for i in range(len(names)):
        counts = np.histogram(z[index == i], bins=edges)[0]
        shares.append(counts / max(1, counts.sum()))
    peak = max(float(share.max()) for share in shares)
    figure = _chart((10.5, max(4.5, 1.6 + 0.6 * len(names))), "latent_scatter")
    axes = figure.add_subplot()
    bases = np.arange(len(names))[::-1]  # the first class on top
    for i, base in enumerate(bases):
        colour = CLASS_COLOURS[i % len(CLASS_COLOURS)]
        axes.stairs(base + 0.9 * shares[i] / peak, edges, baseline=float(base), fill=True, color=colour)
        axes.axhline(float(base), color=FAINT, linewidth=0.6)
    axes.set_ylim(-0.1, len(names))
    _plain_axes(axes)
    axes.set_yticks(bases, names, parse_math=False)
    for text, name in zip(axes.get_yticklabels(), names, strict=True):
        text.set_fontfamily(_fonts(name))
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0, labelsize=TEXT_SIZE)
    axes.set_xlabel(x_name, fontsize=TEXT_SIZE, color=INK, parse_math=False)
    each = "each class" if len(names) > 1 else "all"
    _headline(axes, heading, f"height: share of {each} in a bin; highest {100 * peak:.1f} %")
    return figure


def _class_legend(figure: Figure, names: list[str], columns: int) -> None:
    handles = [
        Line2D(
            [], [], linestyle="none", markersize=7, markeredgewidth=0,
            marker=CLASS_MARKERS[i % len(CLASS_MARKERS)], color=CLASS_COLOURS[i % len(CLASS_COLOURS)],
        )
        for i in range(len(names))
    ]  # fmt: skip
    # The names are set afterwards: given as labels, a leading "_" would hide an entry and "$" would start a formula.
    legend = figure.legend(
        handles, ["class"] * len(names), loc="outside right upper", ncols=columns, frameon=False,
        fontsize=TEXT_SIZE, handletextpad=0.3, labelspacing=0.6,
    )  # fmt: skip
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(name)
        text.set_fontfamily(_fonts(name))
        text.set_color(INK)


def film_frame(
    originals: ArrayLike,
    reconstructed: ArrayLike,
    points: ArrayLike,
    labels: ArrayLike | None,
    class_names: Sequence[str],
    limits: tuple[tuple[float, float], tuple[float, float]],
    title: str,
) -> Figure:
    """One frame of a film: images above their reconstructions, and where others lie in the latent plane.

    Shapes: originals, reconstructed (N, H, W, C); points (M, 2); labels (M,); limits of the plane's axes
    """
    who = "film_frame"
    above, below = _pictures(originals, f"{who}: originals"), _pictures(reconstructed, f"{who}: reconstructed images")
    places = np.asarray(points, float)
    index, names = (np.zeros(len(places), np.int64), [""])
    if labels is not None:
        index, names = _classes(labels, class_names, len(places), who)
    columns = -(-len(above) // 2) if len(above) > 1 else 1
    H, W, C = above.shape[1:]
    gap = max(1, H // 9)
    mosaic = np.ones((2 * (2 * H + gap) + 2 * gap, columns * (W + gap) - gap, C), np.float32)
    for i, (first, second) in enumerate(zip(above, below, strict=True)):
        row, column = divmod(i, columns)
        y, x = row * (2 * H + 3 * gap), column * (W + gap)
        mosaic[y : y + H, x : x + W], mosaic[y + H + gap : y + 2 * H + gap, x : x + W] = first, second
    figure = _chart((11.0, 4.9), who)
    figure.set_dpi(90)
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    left.imshow(mosaic[..., 0] if C == 1 else mosaic, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    left.set_axis_off()
    left.set_title("images, and below them their reconstructions", loc="left", fontsize=TEXT_SIZE, color=FAINT)
    _scatter(right, places, index, len(names), 9)
    right.set(xlim=limits[0], ylim=limits[1])
    _plain_axes(right)
    if not places[:, 1].any():  # one latent dimension: the height says nothing
        right.set_yticks([])
    right.set_title("latent space", loc="left", fontsize=TEXT_SIZE, color=FAINT)
    figure.suptitle(title, x=0.012, ha="left", fontsize=TITLE_SIZE, fontweight="bold", color=INK, parse_math=False)
    if labels is not None:
        _class_legend(figure, [_fitted(name, 200, TEXT_SIZE)[0] for name in names], 1)
    return figure


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """The finished figure (height, width, 3)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def kl_bars(kl_per_dim: ArrayLike, *, title: str = "KL divergence of each latent dimension") -> Figure:
    """What each latent dimension tells of an image, in nats on average, the largest first; near 0 it is unused.

    Shapes: kl_per_dim (Z,)

    Raises:
        ValueError: no dimension, or numbers that are not finite.
    """
    kl = np.asarray(kl_per_dim, float)
    if kl.ndim != 1 or not kl.size or not np.isfinite(kl).all():
        raise ValueError(f"kl_bars: expected one finite number for each dimension, got shape {kl.shape}")
    order = np.argsort(-kl, kind="stable")
    figure = _chart((max(6.0, min(16.0, 2.0 + 0.32 * len(kl))), 4.2), "kl_bars")
    axes = figure.add_subplot()
    axes.bar(range(len(kl)), kl[order], color=TRAIN_COLOUR, width=0.8)
    axes.set_ylim(0, 1.05 * max(UNUSED, kl.max()))
    _plain_axes(axes)
    step = max(1, -(-len(kl) // 40))  # labels that fit
    axes.set_xticks(range(0, len(kl), step), [f"z{order[i] + 1}" for i in range(0, len(kl), step)])
    axes.set_xlabel("latent dimension", fontsize=TEXT_SIZE, color=INK)
    axes.set_ylabel("nats per image", fontsize=TEXT_SIZE, color=INK)
    _headline(axes, title, f"in all {_number(float(kl.sum()))} nats per image")
    return figure


# ---- training ------------------------------------------------------------------------------------------------------


def loss_curves(
    history: Sequence[Mapping[str, Any]], *, unit: str = "nats per image", title: str = "Training and validation loss"
) -> Figure:
    """The losses over the epochs, the total, the reconstruction and the KL divergence each in a panel of its own.

    A panel is left out when no epoch has its numbers, and the reconstruction also when it is the whole loss (a plain
    autoencoder). The learning rate gets a panel when it changes. Of FEWEST_CUT epochs or more, a first one so far above
    the others that they would look alike is cut off, and its losses written there. A single epoch has its values beside
    the points.

    Args:
        history: one dict an epoch, with any of ``epoch loss reconstruction kl val_loss val_reconstruction val_kl
            learning_rate``; a missing epoch number is counted from 1, other missing or ``None`` numbers leave a gap.
        unit: of the losses, written on their axes.

    Raises:
        ValueError: an empty history, one without any loss, or with epochs beyond 1e12.
    """
    if not len(history):
        raise ValueError("loss_curves: the history is empty, there is no epoch to show")

    def column(key: str) -> FloatArray:
        values = [math.nan if row.get(key) is None else float(row[key]) for row in history]
        array = np.asarray(values)
        array[~(np.abs(array) < 1e30)] = np.nan  # what is beyond, no axis can span
        return array

    epochs = np.asarray([float(row.get("epoch", i + 1)) for i, row in enumerate(history)])
    if not (np.abs(epochs) < 1e12).all():
        raise ValueError(f"loss_curves: the epochs are {epochs.min():g} to {epochs.max():g}, which no axis can span")
    panels: list[tuple[str, FloatArray, FloatArray]] = []
    for key, name in (("loss", "Total loss"), ("reconstruction", "Reconstruction"), ("kl", "KL divergence")):
        train, validation = column(key), column("val_" + key)
        if np.isfinite(train).any() or np.isfinite(validation).any():
            panels.append((name, train, validation))
    if not panels:
        known = "loss, reconstruction, kl, val_loss, val_reconstruction, val_kl"
        raise ValueError(f"loss_curves: the history has no finite loss; looked for {known} in {sorted(history[0])}")
    if len(panels) == 2 and panels[1][0] == "Reconstruction" and panels[0][0] == "Total loss":
        same = zip(panels[0][1:], panels[1][1:], strict=True)
        if all(np.allclose(total, part, rtol=1e-6, equal_nan=True) for total, part in same):
            panels = [("Total loss (reconstruction only)", *panels[0][1:])]
    rate = column("learning_rate")
    finite_rate = rate[np.isfinite(rate)]
    with_rate = len(finite_rate) > 1 and float(finite_rate.min()) != float(finite_rate.max())

    count = len(panels) + with_rate
    rows, columns = (2, 2) if count == 4 else (1, count)
    width = (8.5, 12.5, 13.0, 11.5)[count - 1]
    figure = _chart((width, 4.6 * rows + 0.4), "loss_curves")
    marked = len(epochs) <= 20
    both = False
    for position, (name, train, validation) in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, position)
        curves = {"training": train, "validation": validation}
        curves = {curve: losses for curve, losses in curves.items() if np.isfinite(losses).any()}
        for curve, losses in curves.items():
            colour, marker, dashes = CURVES[curve]
            axes.plot(
                epochs, losses, color=colour, linestyle=dashes, linewidth=1.8, label=curve,
                marker=marker if marked else "", markersize=4.5 if len(epochs) > 1 else 9,
            )  # fmt: skip
        both |= "validation" in curves
        if len(epochs) == 1:
            _write_values(axes, epochs[0], curves)
        else:
            _cut_first(axes, epochs, curves)
            if name.startswith("Total"):  # the lowest value means something for the whole only
                _mark_lowest(axes, epochs, curves)
        _epoch_axes(axes, epochs, name, unit)
    if with_rate:
        axes = figure.add_subplot(rows, columns, count)
        axes.plot(epochs, rate, color=INK, linewidth=1.8, marker="o" if marked else "", markersize=4.5)
        _epoch_axes(axes, epochs, "Learning rate", "learning rate")
        falls = finite_rate.min() > 0 and finite_rate.max() / finite_rate.min() > 10
        # by factors, not to zero: a cosine's last epoch would take the whole of a logarithmic axis
        if falls and np.abs(np.diff(np.log10(finite_rate))).max() < 1.5:
            axes.set_yscale("log")
    figure.suptitle(
        title if both else title.replace("Training and validation", "Training"), x=0.012, ha="left",
        fontsize=TITLE_SIZE, fontweight="bold", color=INK, parse_math=False,
    )  # fmt: skip
    legend_of: dict[str, Any] = {}
    for axes in figure.axes:
        legend_of |= dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(
        list(legend_of.values()), list(legend_of), loc="outside lower center", ncols=2, frameon=False,
        fontsize=TEXT_SIZE, handlelength=3.2, labelcolor=INK,
    )  # fmt: skip
    return figure


# Curves below: the losses (epochs,) by "training" and "validation".


def _write_values(axes: Axes, epoch: float, curves: Mapping[str, FloatArray]) -> None:
    axes.margins(y=0.4)
    for curve, losses in curves.items():
        side, x = ("right", -10) if curve == "training" else ("left", 10)  # never one on the other
        axes.annotate(
            _number(float(losses[0])), (epoch, losses[0]), (x, 0), textcoords="offset points", ha=side, va="center",
            fontsize=TEXT_SIZE, color=CURVES[curve][0],
        )  # fmt: skip


def _mark_lowest(axes: Axes, epochs: FloatArray, curves: Mapping[str, FloatArray]) -> None:
    lines = []
    for curve, losses in curves.items():
        best = int(np.nanargmin(losses))
        axes.plot(epochs[best], losses[best], marker="o", markersize=10, fillstyle="none", color=INK)
        lines.append(f"lowest {curve} {_number(float(losses[best]))} at epoch {epochs[best]:g}")
    axes.set_title("\n".join(lines), loc="right", fontsize=SMALL_SIZE, color=FAINT)


def _cut_first(axes: Axes, epochs: FloatArray, curves: Mapping[str, FloatArray]) -> None:
    losses = np.stack([*curves.values()])  # (curves, epochs)
    first, later = losses[:, 0], losses[:, 1:]
    if len(epochs) < FEWEST_CUT or not (np.isfinite(first).any() and np.isfinite(later).any()):
        return
    low, high, highest = np.nanmin(later), np.nanmax(later), np.nanmax(first)
    if high > low and highest - high > FIRST_EPOCH * (high - low):
        top = high + 0.15 * (high - low)
        axes.set_ylim(low - 0.05 * (high - low), top)
        values = [f"{curve} {_number(float(losses[0]))}" for curve, losses in curves.items() if losses[0] > top]
        axes.annotate(  # right of the second epoch, where the curves are lower
            f"\N{UPWARDS ARROW} epoch {epochs[0]:g}: " + ",\n".join(values), (epochs[1], 1), (6, -2),
            xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=SMALL_SIZE, color=FAINT, va="top",
        )  # fmt: skip


def _epoch_axes(axes: Axes, epochs: FloatArray, name: str, unit: str) -> None:
    _plain_axes(axes)
    axes.set_title(name, loc="left", fontsize=TEXT_SIZE + 1, color=INK)
    axes.set_xlabel("epoch", fontsize=TEXT_SIZE, color=INK)
    axes.set_ylabel(unit, fontsize=TEXT_SIZE, color=INK, parse_math=False)
    if epochs.min() == epochs.max():
        axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
        axes.set_xticks([epochs[0]], [f"{epochs[0]:g}"])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True))


# ---- shared looks --------------------------------------------------------------------------------------------------


def _chart(inches: tuple[float, float], who: str) -> Figure:
    """An empty figure that keeps axes, titles and legends apart by itself."""
    if max(inches) * DPI > MAX_SIDE:
        raise ValueError(f"{who}: the picture would be {max(inches) * DPI:.0f} pixels large; pass fewer classes")
    figure = Drawing(figsize=inches, dpi=DPI, facecolor="white", layout=ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.14))
    FigureCanvasAgg(figure)
    return figure


class _Ticks(ScalarFormatter):
    """Plain numbers, and never an offset or "1e-4" in the corner, where the title stands; with an exponent of their own
    where they would be all zeros."""

    def __init__(self) -> None:
        super().__init__(useOffset=False)
        self.set_scientific(False)

    def __call__(self, x: float, pos: int | None = None) -> str:
        text = super().__call__(x, pos)
        return text if len(text) <= LONGEST_TICK else f"{x:.6g}".replace("-", "\N{MINUS SIGN}")


def _plain_axes(axes: Axes) -> None:
    """The looks of all axes; after what is drawn on them, whose range it widens where that is nothing but rounding."""
    axes.grid(visible=True, color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=SMALL_SIZE, colors=INK, length=3)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(FAINT)
    for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        room = 1e-5 * max(abs(low), abs(high))  # below, float32 knows no differences and ticks have too many digits
        if high - low < room:
            axis.set_view_interval((low + high) / 2 - room, (low + high) / 2 + room, ignore=True)
        axis.set_major_formatter(_Ticks())


def _headline(axes: Axes, heading: str, subtitle: str) -> None:
    # The subtitle is its own, lighter text between the axes and the bold heading.
    if subtitle:
        axes.annotate(
            subtitle, (0, 1), (0, 8), xycoords="axes fraction", textcoords="offset points", fontsize=TEXT_SIZE,
            color=FAINT, va="bottom", parse_math=False,
        )  # fmt: skip
    pad = 28 if subtitle else 12
    axes.set_title(heading, loc="left", pad=pad, fontsize=TITLE_SIZE, fontweight="bold", color=INK, parse_math=False)


def _figure_title(figure: Figure, title: str, width: float, height: float) -> None:
    text, size = _fitted(title, width - 2 * MARGIN, TITLE_SIZE, "bold")
    style: dict[str, Any] = {"ha": "left", "va": "top", "fontweight": "bold", "color": INK, "parse_math": False}
    figure.text(MARGIN / width, 1 - MARGIN / height, text, fontsize=size, **style)


def _normal_quantiles(count: int, quantiles: tuple[float, float], who: str) -> FloatArray:
    low, high = (float(q) for q in quantiles)
    if not 0 < low < high < 1:
        raise ValueError(f"{who}: quantiles must satisfy 0 < low < high < 1, got low {low:g} and high {high:g}")
    normal = NormalDist()
    return np.asarray([normal.inv_cdf(q) for q in np.linspace(low, high, count)])


def _at_least(value: int, least: int, what: str) -> None:
    if value < least:
        raise ValueError(f"{what} must be at least {least}, got {value}")


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


class Drawing(Figure):
    """A figure that a notebook shows."""

    def _repr_png_(self) -> bytes:
        return _png(self)


def show(figures: Figure | Iterable[Figure]) -> None:
    """Open one window a figure and wait until they are closed.

    A window shows the finished picture, so it is what ``save`` would write.

    Raises:
        RuntimeError: there is no display, or matplotlib has no window system to use.
    """
    wanted = [figures] if isinstance(figures, Figure) else list(figures)
    if not wanted:
        return
    from matplotlib import pyplot  # only here: it chooses a window system when first used

    hint = "save the figures to files instead (figures.save), or set MPLBACKEND to a window system, e.g. TkAgg"
    try:
        pyplot.switch_backend(pyplot.get_backend())
    except ImportError as error:
        raise RuntimeError(f"show: matplotlib cannot open windows here: {error}; {hint}") from error
    backend = pyplot.get_backend()
    if backend.lower() in {"agg", "cairo", "pdf", "pgf", "ps", "svg", "template"}:
        raise RuntimeError(f"show: no display to open windows on (matplotlib's backend is {backend}); {hint}")
    windows = []
    try:
        for figure in wanted:
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
            picture = np.asarray(canvas.buffer_rgba())
            height, width = picture.shape[:2]
            scale = min(1.0, 1400 / width, 900 / height)
            window = pyplot.figure(figsize=(scale * width / 100, scale * height / 100), dpi=100)
            windows.append(window)
            axes = window.add_axes((0.0, 0.0, 1.0, 1.0))
            axes.set_axis_off()
            axes.imshow(picture)
        pyplot.show(block=True)
    finally:
        for window in windows:
            pyplot.close(window)
