"""Sheets of images: reconstructions, samples, interpolations, traversals, the manifold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

from .canvas import (
    FAINT,
    INK,
    MARGIN,
    MAX_SIDE,
    SMALL_SIZE,
    TEXT_SIZE,
    TITLE_SIZE,
    TRAIN_COLOUR,
    VALIDATION_COLOUR,
    classes_of,
    new_sheet,
    number_text,
    place_image,
    shown_images,
    text_width,
    tile_size,
    write_text,
)
from .images import errors_of

START_COLOUR, END_COLOUR = TRAIN_COLOUR, VALIDATION_COLOUR
QUANTILES = 0.02, 0.98  # of N(0, 1), between which the manifold is drawn


# ---- pictures of images --------------------------------------------------------------------------------------------


def reconstructions(
    originals: NDArray[Any],
    reconstructed: NDArray[Any],
    labels: ArrayLike | None = None,
    class_names: Sequence[str] = (),
    errors: ArrayLike | None = None,
    *,
    title: str = "Originals and reconstructions",
    error_name: str = "mean squared error per pixel",
    rows_are: tuple[str, str] = ("original", "reconstruction"),
) -> Figure:
    """Originals above their reconstructions, one column per image, in several double rows if there are many.

    Shapes: originals, reconstructed (N, H, W, C); labels (N,); errors (N,)

    Args:
        labels: the name of its class is written above each image; None: no names.
        errors: written below each pair; None: the mean squared error per pixel.
        rows_are: what stands left of the two rows.

    Raises:
        ValueError: images that are not finite, or so many that the picture cannot be drawn.
    """
    above, below = shown_images(originals), shown_images(reconstructed)
    N, H, W = above.shape[:3]
    if errors is None:
        errors = errors_of(reconstructed, originals)
    names = None
    if labels is not None:
        index, every_name = classes_of(labels, class_names)
        names = [every_name[label] for label in index]

    columns = min(10, N)
    rows = -(-N // columns)
    gap, gutter = 14, 190  # between columns; left of them, for the names of the two rows
    tile_height, tile_width = tile_size(H, W, min(1560 / columns - gap, 290), 290)
    pitch = max(tile_width, 96) + gap
    name_height = 34 if names else 0
    block = name_height + 2 * tile_height + 70
    top = MARGIN + 56
    note = f"Below each pair: {error_name}"
    texts = max(text_width(title, TITLE_SIZE, "bold"), text_width(note, SMALL_SIZE))
    width = 2 * MARGIN + max(min(1120, texts), gutter + columns * pitch)
    figure, axes = new_sheet(width, top + rows * block + 44, title)
    small: dict[str, Any] = {"size": SMALL_SIZE, "color": FAINT}
    for i, error in enumerate(np.asarray(errors)):
        x, y = MARGIN + gutter + (i % columns) * pitch, top + (i // columns) * block
        centre, room = x + (pitch - gap) / 2, pitch - gap
        if names:
            write_text(axes, centre, y + 24, names[i], width=room, va="baseline")
        y += name_height
        lower = y + tile_height + 6
        edge = x + min(0, (room - tile_width) / 2) - 16
        for image, place, row in ((above[i], y, rows_are[0]), (below[i], lower, rows_are[1])):
            place_image(axes, image, centre - tile_width / 2, place, tile_height, tile_width)
            if i % columns == 0:
                middle = place + tile_height / 2
                write_text(axes, edge, middle, row, width=gutter - 16, ha="right", va="center", color=FAINT)
        number = number_text(float(error))
        write_text(axes, centre, lower + tile_height + 28, number, width=room, va="baseline", **small)
    foot = top + rows * block + 14
    write_text(axes, MARGIN, foot, note, width=width - 2 * MARGIN, ha="left", va="center", **small)
    return figure


def samples(
    images: NDArray[Any],
    columns: int = 10,
    title: str = "Samples from the prior",
    row_names: Sequence[str] = (),
    names: Sequence[str] = (),
) -> Figure:
    """Images in a grid, row by row.

    Shapes: images (N, H, W, C)

    Args:
        columns: images in a row.
        row_names: written left of the rows; one for each, or none.
        names: written above the images; one for each, or none.

    Raises:
        ValueError: images that are not finite, or so many that the picture cannot be drawn.
    """
    pictures = shown_images(images)
    N, H, W = pictures.shape[:3]
    columns = min(columns, N)
    rows = -(-N // columns)
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
    figure, axes = new_sheet(width, top + rows * pitch - gap + MARGIN, title)
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


def interpolations(paths: NDArray[Any]) -> Figure:
    """Paths between two images, one per row: the ends framed and set apart, the steps between them in order.

    Shapes: paths (R, S, H, W, C): R paths of S >= 2 steps; the first and the last step are the ends

    Raises:
        ValueError: images that are not finite.
    """
    pictures = shown_images(paths)
    R, S, H, W = pictures.shape[:4]
    gap, row_gap, apart = 6, 22, 22  # between steps, between rows, between an end and its neighbour
    tile_height, tile_width = tile_size(H, W, min(1500 / S - gap, 260), 260)
    gaps = np.full(S - 1, gap)
    gaps[[0, -1]] = apart
    steps = np.cumsum([0, *(tile_width + gaps)])
    content = int(steps[-1]) + tile_width
    top = MARGIN + 120
    width = max(1200, content + 2 * MARGIN + 80)
    figure, axes = new_sheet(
        width, top + R * (tile_height + row_gap) - row_gap + MARGIN, "Interpolations in latent space"
    )
    places = (width - content) // 2 + steps
    ends = (places[0], START_COLOUR), (places[-1], END_COLOUR)
    for r, row in enumerate(pictures):
        y = top + r * (tile_height + row_gap)
        for x, image in zip(places, row, strict=True):
            place_image(axes, image, x, y, tile_height, tile_width)
        for x, colour in ends:
            style: dict[str, Any] = {"fill": False, "edgecolor": colour, "linewidth": 3}
            axes.add_patch(Rectangle((x - 4, y - 4), tile_width + 8, tile_height + 8, **style))
    for x, text, colour, side in (
        (places[0] - 4, "first reconstruction", START_COLOUR, "left"),
        (places[-1] + tile_width + 4, "second reconstruction", END_COLOUR, "right"),
    ):
        room = content / 2 - 20
        write_text(axes, x, top - 24, text, width=room, ha=side, va="baseline", color=colour, weight="bold")
    return figure


def traversals(
    start: NDArray[Any], rows: NDArray[Any], names: Sequence[str], values: NDArray[Any], title: str
) -> Figure:
    """What changes in an image with one latent at a time: one row per dimension, one column per value, and on the left
    the image itself.

    Shapes: start (H, W, C); rows (R, S, H, W, C); values (S,), written above the columns

    Args:
        names: of the rows, one each.

    Raises:
        ValueError: images that are not finite.
    """
    pictures, image = shown_images(rows), shown_images(start)
    R, S, H, W = pictures.shape[:4]
    gap, apart, gutter, top = 6, 22, 230, MARGIN + 96  # apart: the start from the others; gutter: for the names
    tile_height, tile_width = tile_size(H, W, min(1340 / (S + 1) - gap, 220), 220)
    pitch, left = tile_width + gap, MARGIN + gutter
    width = max(1200, left + tile_width + apart + S * pitch - gap + MARGIN)
    figure, axes = new_sheet(width, top + R * (tile_height + gap) - gap + MARGIN, title)
    heads = ["start", *(f"z = {value:.3g}".replace("-", "\N{MINUS SIGN}") for value in values)]
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


def manifold_points(side: int = 20) -> NDArray[np.float32]:
    """Latents of a ``side x side`` grid, evenly spaced in probability: z = inverse normal CDF of the quantile.

    Row by row from the top left corner of the picture that ``manifold_grid`` makes of their images: z1 grows to the
    right, z2 grows upwards, so the first point has the smallest z1 and the largest z2.

    Shapes: result (side * side, 2)

    Source: Kingma and Welling, Auto-Encoding Variational Bayes (2014), figure 4.
    """
    z = _even_in_probability(side)
    z1, z2 = np.meshgrid(z, z[::-1])  # (side, side) each: z1 varies along a row, z2 falls from row to row
    return np.stack([z1.ravel(), z2.ravel()], axis=1).astype(np.float32)


def _even_in_probability(count: int) -> list[float]:
    return [NormalDist().inv_cdf(q) for q in np.linspace(*QUANTILES, count)]


def manifold_grid(images: NDArray[Any]) -> Figure:
    """The decoded images of ``manifold_points``, tiled into one picture whose axes are labelled with z.

    Shapes: images (side * side, H, W, C), in the order of ``manifold_points``

    Raises:
        ValueError: images that are not finite.
    """
    pictures = shown_images(images)
    N, H, W, C = pictures.shape
    side = math.isqrt(N)
    mosaic = pictures.reshape(side, side, H, W, C).transpose(0, 2, 1, 3, 4).reshape(side * H, side * W, C)
    height, width = tile_size(side * H, side * W, 1400, 1400, whole_from=1)
    left, right, top, bottom = 150, 50, 110, 110
    sheet_width, sheet_height = max(1200, left + width + right), top + height + bottom
    left += (sheet_width - left - width - right) // 2
    figure, _ = new_sheet(sheet_width, sheet_height, "Decoded images over the latent plane")
    axes = figure.add_axes((left / sheet_width, bottom / sheet_height, width / sheet_width, height / sheet_height))
    place_image(axes, mosaic, -0.5, -0.5, side, side)
    z = _even_in_probability(side)
    for axis, name, values, room in (
        (axes.xaxis, "z1", z, -(-90 * side // width)),
        (axes.yaxis, "z2", z[::-1], -(-36 * side // height)),  # the top row has the largest z2
    ):
        where = _labelled(side, room)
        axis.set_ticks(where, [f"{values[i]:.2f}".replace("-", "\N{MINUS SIGN}") for i in where])
        axis.set_label_text(f"{name}, in even steps of probability", fontsize=TEXT_SIZE + 1, color=INK)
    axes.tick_params(labelsize=SMALL_SIZE, length=4, colors=INK)
    axes.spines[:].set_visible(False)
    return figure


def _labelled(count: int, step: int) -> list[int]:
    """Every ``step``-th tile from both ends towards the middle: symmetric, and never closer than ``step``."""
    half = [i for i in range(0, count // 2, step) if count - 1 - 2 * i >= step]
    middle = [count // 2] if count % 2 and (not half or count // 2 - half[-1] >= step) else []
    return half + middle + [count - 1 - i for i in reversed(half)]
