"""Sheets of images: reconstructions, samples, interpolations, traversals, the manifold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

from .canvas import (
    DPI,
    FAINT,
    INK,
    MARGIN,
    MAX_SIDE,
    SMALL_SIZE,
    TEXT_SIZE,
    TITLE_SIZE,
    TRAIN_COLOUR,
    VALIDATION_COLOUR,
    Drawing,
    _normal_quantiles,
    _text_width,
    check_at_least,
    checked_classes,
    checked_images,
    figure_title,
    new_sheet,
    number_text,
    place_image,
    tile_size,
    write_text,
)

START_COLOUR, END_COLOUR = TRAIN_COLOUR, VALIDATION_COLOUR


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
    above, below = (
        checked_images(originals, f"{who}: originals"),
        checked_images(reconstructed, f"{who}: reconstructed images"),
    )
    N, H, W = above.shape[:3]
    if np.shape(originals) != np.shape(reconstructed):
        raise ValueError(f"{who}: originals are {np.shape(originals)} but reconstructed {np.shape(reconstructed)}")
    check_at_least(columns, 1, f"{who}: columns")
    columns = min(columns, N)
    names: list[str] | None = None
    if labels is not None:
        index, every_name = checked_classes(labels, class_names, N, who)
        names = [every_name[label] for label in index]
    numbers: list[str] | None = None
    if errors is not None:
        if np.shape(errors) != (N,):
            raise ValueError(f"{who}: expected one error for each of {N} images, shape ({N},), got {np.shape(errors)}")
        numbers = [number_text(float(error)) for error in np.asarray(errors)]

    gap, gutter = 14, 190  # between columns; left of them, for the names of the two rows
    tile_height, tile_width = tile_size(H, W, min(1560 / columns - gap, 290), 290)
    pitch = max(tile_width, 96) + gap
    name_height, number_height = (34 if names else 0), (34 if numbers else 0)
    block = name_height + 2 * tile_height + 6 + number_height + 30
    top = MARGIN + 56
    rows = -(-N // columns)
    note = f"Below each pair: {error_name}" if numbers else ""
    texts = max(_text_width(title, TITLE_SIZE, "bold"), _text_width(note, SMALL_SIZE))
    width = 2 * MARGIN + max(min(1120, texts), gutter + columns * pitch)
    figure, axes = new_sheet(width, top + rows * block + (44 if numbers else 10), title, who)
    for i in range(N):
        x = MARGIN + gutter + (i % columns) * pitch
        y = top + (i // columns) * block
        centre = x + (pitch - gap) / 2
        if names:
            write_text(axes, centre, y + 24, names[i], width=pitch - gap, va="baseline")
        y += name_height
        place_image(axes, above[i], centre - tile_width / 2, y, tile_height, tile_width)
        place_image(axes, below[i], centre - tile_width / 2, y + tile_height + 6, tile_height, tile_width)
        if numbers:
            low = y + 2 * tile_height + 6 + 28
            write_text(axes, centre, low, numbers[i], width=pitch - gap, size=SMALL_SIZE, color=FAINT, va="baseline")
        if i % columns == 0:
            side: dict[str, Any] = {"width": gutter - 16, "ha": "right", "va": "center", "color": FAINT}
            edge = x + min(0, (pitch - gap - tile_width) / 2) - 16
            write_text(axes, edge, y + tile_height / 2, rows_are[0], **side)
            write_text(axes, edge, y + 1.5 * tile_height + 6, rows_are[1], **side)
    if numbers:
        foot = top + rows * block + 14
        write_text(
            axes, MARGIN, foot, note, width=width - 2 * MARGIN, size=SMALL_SIZE, ha="left", va="center", color=FAINT
        )
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
    pictures = checked_images(images, "samples: images")
    N, H, W = pictures.shape[:3]
    check_at_least(columns, 1, "samples: columns")
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
    tile_height, tile_width = tile_size(H, W, min((1600 - gutter) / columns - gap, 340), highest)
    pitch = name_height + tile_height + gap
    content = gutter + columns * (tile_width + gap) - gap
    width = max(900 if gutter else 1200, 2 * MARGIN + content)
    figure, axes = new_sheet(width, top + rows * pitch - gap + MARGIN, title, "samples")
    for i in range(N):
        row, column = divmod(i, columns)
        x, y = MARGIN + gutter + column * (tile_width + gap), top + row * pitch + name_height
        place_image(axes, pictures[i], x, y, tile_height, tile_width)
        if gutter and column == 0:
            style: dict[str, Any] = {"ha": "right", "va": "center", "color": FAINT}
            write_text(axes, x - 16, y + tile_height / 2, row_names[row], width=gutter - 16, **style)
        if name_height:
            write_text(axes, x + tile_width / 2, y - 10, names[i], width=tile_width, va="baseline")
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
    pictures = checked_images(np.stack(paths), f"{who}: rows", leading=2)
    R, S, H, W = pictures.shape[:4]
    if S < 2:
        raise ValueError(f"{who}: a path needs at least 2 steps, its two ends; got {S}")
    gap, row_gap, apart = 6, 22, 22  # between steps, between rows, between an end and its neighbour
    tile_height, tile_width = tile_size(H, W, min(1500 / S - gap, 260), 260)
    between = (S - 2) * (tile_width + gap) - gap if S > 2 else 0
    content = 2 * tile_width + between + (2 if S > 2 else 1) * apart
    top = MARGIN + 120
    width = max(1200, content + 2 * MARGIN + 80)
    figure, axes = new_sheet(width, top + R * (tile_height + row_gap) - row_gap + MARGIN, title, who)
    left = (width - content) // 2
    start, end = left, left + content - tile_width
    for r in range(R):
        y = top + r * (tile_height + row_gap)
        for s in range(S):
            x = start if s == 0 else end if s == S - 1 else left + tile_width + apart + (s - 1) * (tile_width + gap)
            place_image(axes, pictures[r, s], x, y, tile_height, tile_width)
        for x, colour in ((start, START_COLOUR), (end, END_COLOUR)):
            style: dict[str, Any] = {"fill": False, "edgecolor": colour, "linewidth": 3}
            axes.add_patch(Rectangle((x - 4, y - 4), tile_width + 8, tile_height + 8, **style))
    head = top - 24
    for x, text, colour, side in (
        (start - 4, "first reconstruction", START_COLOUR, "left"),
        (end + tile_width + 4, "second reconstruction", END_COLOUR, "right"),
    ):
        room = content / 2 - 20
        write_text(axes, x, head, text, width=room, ha=side, va="baseline", color=colour, weight="bold")
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
    pictures = checked_images(rows, f"{who}: rows", leading=2)
    image = checked_images(np.asarray(start)[None], f"{who}: start")[0]
    if image.shape != pictures.shape[2:]:
        raise ValueError(f"{who}: the images of rows are {pictures.shape[2:]} but start is {image.shape}")
    R, S, H, W = pictures.shape[:4]
    if len(names) != R or np.shape(values) != (S,):
        raise ValueError(f"{who}: {R} rows of {S} images, got {len(names)} names and values of {np.shape(values)}")
    gap, apart, gutter, top = 6, 22, 230, MARGIN + 96  # apart: the start from the others; gutter: for the names
    tile_height, tile_width = tile_size(H, W, min(1340 / (S + 1) - gap, 220), 220)
    pitch, left = tile_width + gap, MARGIN + gutter
    width = max(1200, left + tile_width + apart + S * pitch - gap + MARGIN)
    figure, axes = new_sheet(width, top + R * (tile_height + gap) - gap + MARGIN, title, who)
    heads = ["start", *(f"z = {value:.3g}".replace("-", "\N{MINUS SIGN}") for value in np.asarray(values, float))]
    places = [left, *(left + tile_width + apart + s * pitch for s in range(S))]
    for x, head in zip(places, heads, strict=True):
        style: dict[str, Any] = {"size": SMALL_SIZE, "color": FAINT, "va": "baseline"}
        write_text(axes, x + tile_width / 2, top - 16, head, width=tile_width, **style)
    for r, name in enumerate(names):
        y = top + r * (tile_height + gap)
        write_text(axes, left - 18, y + tile_height / 2, name, width=gutter - 24, ha="right", va="center")
        for x, shown in zip(places, [image, *pictures[r]], strict=True):
            place_image(axes, shown, x, y, tile_height, tile_width)
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
    check_at_least(side, 2, "manifold_points: side")
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
    pictures = checked_images(array, f"{who}: images", leading=2)
    rows, columns, H, W, C = pictures.shape
    z_columns = _normal_quantiles(columns, quantiles, who)
    z_rows = _normal_quantiles(rows, quantiles, who)[::-1]  # the top row has the largest z2

    mosaic = pictures.transpose(0, 2, 1, 3, 4).reshape(rows * H, columns * W, C)  # (rows*H, columns*W, C)
    height, width = tile_size(rows * H, columns * W, 1400, 1400) if max(rows * H, columns * W) > 1400 else (0, 0)
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
    figure_title(figure, title, sheet_width, sheet_height)
    return figure


def _labelled(count: int, step: int) -> list[int]:
    """Every ``step``-th tile from both ends towards the middle: symmetric, and never closer than ``step``."""
    half = [i for i in range(0, count // 2, step) if count - 1 - 2 * i >= step]
    middle = [count // 2] if count % 2 and (not half or count // 2 - half[-1] >= step) else []
    return half + middle + [count - 1 - i for i in reversed(half)]
