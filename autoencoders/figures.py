"""Pictures of what a model does, from arrays to PNG files. Nothing here needs a display.

Images are (N, H, W, C), uint8 or floats in [0, 1]; one channel is drawn grey, three in colour, of others the first.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from minigrad.serialize import write_atomically

# Ten colours that stay apart under the common colour-vision deficiencies; source: M. Petroff, Accessible color
# sequences for data visualization, 2021. Marker shapes tell classes apart a second time.
COLOURS = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
DPI = 150


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as a PNG file, whole or not at all.

    Raises:
        DataError: the file cannot be written.
    """
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI)
    write_atomically(Path(path), content.getvalue())


def show(figures: Sequence[Figure]) -> None:
    """Open figures in windows and wait until they are closed.

    Raises:
        RuntimeError: there is no display.
    """
    import matplotlib
    from matplotlib import pyplot

    if matplotlib.get_backend().lower() in ("agg", "pdf", "svg", "ps", "cairo", "template"):
        raise RuntimeError("--show: no display was found to open windows on; the pictures are in the files named above")
    for figure in figures:
        manager = pyplot.figure().canvas.manager
        assert manager is not None
        manager.canvas.figure = figure
        figure.set_canvas(manager.canvas)
    pyplot.show()


def reconstructions(
    originals: np.ndarray,
    reconstructed: np.ndarray,
    labels: np.ndarray | None = None,
    class_names: Sequence[str] = (),
    errors: np.ndarray | None = None,
    columns: int = 10,
) -> Figure:
    """Originals above their reconstructions, with class names above and errors (mean squared, per pixel) below."""
    top, bottom = _pixels(originals), _pixels(reconstructed)
    count = len(top)
    columns = min(columns, count)
    bands = -(-count // columns)
    height, width = top.shape[1:3]
    cell = 1.15
    tall = cell * height / width
    figure = Figure((columns * cell + 0.9, bands * (2 * tall + 0.75) + 0.5), layout="constrained")
    grid = figure.subplots(2 * bands, columns, squeeze=False)
    for ax in grid.ravel():
        ax.axis("off")
    for i in range(count):
        band, column = divmod(i, columns)
        for row, pixels in ((0, top), (1, bottom)):
            _image(grid[2 * band + row, column], pixels[i])
        if labels is not None:
            grid[2 * band, column].set_title(_class_name(labels[i], class_names), fontsize=8)
        if errors is not None:
            ax = grid[2 * band + 1, column]
            ax.text(0.5, -0.04, f"{errors[i]:.4f}", transform=ax.transAxes, ha="center", va="top", fontsize=8)
    for band in range(bands):
        for row, text in ((0, "original"), (1, "reconstruction")):
            ax = grid[2 * band + row, 0]
            ax.text(-0.1, 0.5, text, transform=ax.transAxes, rotation=90, ha="center", va="center", fontsize=8)
    below = "; below: mean squared error per pixel" if errors is not None else ""
    figure.suptitle(f"Test images and their reconstructions{below}", fontsize=11)
    return figure


def latent_scatter(latents: np.ndarray, labels: np.ndarray | None, class_names: Sequence[str] = ()) -> Figure:
    """Where images lie in the latent space, coloured by class. More than two dimensions: their two principal axes."""
    latents = np.asarray(latents, dtype=np.float64)
    if latents.ndim != 2 or not latents.size:
        raise ValueError(f"latent_scatter: latents must be (N, Z) and not empty, found {latents.shape}")
    if not np.isfinite(latents).all():
        raise ValueError("latent_scatter: latents hold NaN or infinity")
    figure = Figure((9, 7), layout="constrained")
    ax = figure.subplots()
    classes = [None] if labels is None else sorted(np.unique(labels).tolist())
    members = [np.ones(len(latents), bool) if c is None else np.asarray(labels) == c for c in classes]
    names = [None if c is None else _class_name(c, class_names) for c in classes]
    if latents.shape[1] == 1:
        edges = np.linspace(latents.min(), latents.max() + 1e-9, 61)
        for i, (mask, name) in enumerate(zip(members, names, strict=True)):
            ax.hist(latents[mask, 0], edges, histtype="step", linewidth=1.6, color=COLOURS[i % 10], label=name)
        ax.set(xlabel="z", ylabel="images", title=f"Latent space of {len(latents):,} images")
    else:
        x_name, y_name, title = "z1", "z2", f"Latent space of {len(latents):,} images"
        if latents.shape[1] > 2:
            latents, shares = principal_axes(latents)
            x_name, y_name = (f"principal axis {i + 1} ({share:.0%} of the variance)" for i, share in enumerate(shares))
            title += ", its two principal axes"
        size = float(np.clip(40_000 / len(latents), 4, 40))
        for i, (mask, name) in enumerate(zip(members, names, strict=True)):
            marker = MARKERS[i % 10]
            ax.scatter(
                *latents[mask].T, s=size, c=COLOURS[i % 10], marker=marker, alpha=0.7, linewidths=0, label=name
            )
        ax.set(xlabel=x_name, ylabel=y_name, title=title)
        ax.set_aspect("equal", adjustable="datalim")
    ax.grid(alpha=0.25)
    if labels is not None:
        legend = ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, markerscale=2.5)
        for handle in legend.legend_handles:
            if handle is not None:
                handle.set_alpha(1)
    return figure


def principal_axes(latents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """((N, 2) coordinates on the two axes of largest variance, their shares of the whole variance)."""
    centred = latents - latents.mean(axis=0)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    whole = float((sizes**2).sum())
    shares = sizes[:2] ** 2 / whole if whole else np.zeros(2)
    coordinates = centred @ axes[:2].T
    if coordinates.shape[1] < 2:  # a single image
        coordinates, shares = np.pad(coordinates, ((0, 0), (0, 1))), np.pad(shares, (0, 1))
    return coordinates, shares


def manifold_points(side: int = 20, low: float = 0.02, high: float = 0.98) -> np.ndarray:
    """A grid (side * side, 2) of latents at equal steps of the normal distribution's probability.

    In reading order of the picture: z1 grows to the right, z2 upwards, so the first row has the largest z2.
    """
    z = np.array([NormalDist().inv_cdf(p) for p in np.linspace(low, high, side)], dtype=np.float32)
    return np.stack([np.tile(z, side), np.repeat(z[::-1], side)], axis=1)


def manifold_grid(images: np.ndarray) -> Figure:
    """The images decoded from `manifold_points`, side by side."""
    pixels = _pixels(images)
    side = round(len(pixels) ** 0.5)
    if side * side != len(pixels):
        raise ValueError(f"manifold_grid: needs a square number of images, found {len(pixels)}")
    N, H, W = pixels.shape[:3]
    tiled = pixels.reshape(side, side, *pixels.shape[1:]).swapaxes(1, 2).reshape(side * H, side * W, *pixels.shape[3:])
    figure = Figure((9, 9 * H / W), layout="constrained")
    ax = figure.subplots()
    _image(ax, tiled)
    z = manifold_points(side)[:side, 0]
    ticks = np.unique(np.linspace(0, side - 1, min(side, 9)).round().astype(int))
    ax.set_xticks((ticks + 0.5) * W - 0.5, [f"{z[i]:.1f}" for i in ticks])
    ax.set_yticks((ticks + 0.5) * H - 0.5, [f"{z[side - 1 - i]:.1f}" for i in ticks])
    ax.set(xlabel="z1", ylabel="z2", title="Images decoded from a grid of the latent space")
    ax.tick_params(length=0)
    return figure


def samples(images: np.ndarray, columns: int = 12, title: str = "New images, decoded from samples of the prior") -> Figure:
    """A grid of images."""
    pixels = _pixels(images)
    columns = min(columns, len(pixels))
    rows = -(-len(pixels) // columns)
    H, W = pixels.shape[1:3]
    figure = Figure((max(columns * 0.9, 4), rows * 0.9 * H / W + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for ax, image in zip(grid.ravel(), pixels, strict=False):
        _image(ax, image)
    for ax in grid.ravel():
        ax.axis("off")
    figure.suptitle(title, fontsize=11)
    return figure


def interpolations(rows: np.ndarray) -> Figure:
    """Paths between pairs of images, (R, S, H, W, C): one row a pair, the ends framed."""
    rows = np.asarray(rows)
    if rows.ndim != 5:
        raise ValueError(f"interpolations: needs (R, S, H, W, C), found {rows.shape}")
    R, S, H, W, _ = rows.shape
    figure = Figure((S * 1.0, R * H / W + 0.5), layout="constrained")
    grid = figure.subplots(R, S, squeeze=False)
    for r in range(R):
        for s, image in enumerate(_pixels(rows[r])):
            ax = grid[r, s]
            _image(ax, image)
            ax.set(xticks=[], yticks=[])
            for spine in ax.spines.values():
                spine.set(visible=s in (0, S - 1), color=COLOURS[6], linewidth=2)
    figure.suptitle("Straight lines in latent space between two test images (framed)", fontsize=11)
    return figure


def loss_curves(history: Sequence[dict[str, Any]], *, unit: str) -> Figure:
    """Loss and its parts by epoch, one panel each, training and validation."""
    if not history:
        raise ValueError("loss_curves: the history is empty")
    names = [name for name in ("loss", "reconstruction", "kl") if any(name in row for row in history)]
    if len(names) == 2:  # an autoencoder's loss is its reconstruction
        names = ["loss"]
    titles = {"loss": "loss", "reconstruction": "reconstruction", "kl": "KL to the prior"}
    figure = Figure((4.6 * len(names), 3.8), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    epochs = [row["epoch"] for row in history]
    for ax, name in zip(panels, names, strict=True):
        for key, text, colour, style in ((name, "training", 0, "-"), (f"val_{name}", "validation", 6, "--")):
            values = [row.get(key, np.nan) for row in history]
            if np.isfinite(values).any():
                marker = "o" if len(epochs) <= 30 else None
                ax.plot(epochs, values, style, color=COLOURS[colour], marker=marker, markersize=4, label=text)
        ax.set(title=titles[name], xlabel="epoch", ylabel=unit)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
        ax.legend(frameon=False)
    return figure


def _pixels(images: np.ndarray) -> np.ndarray:
    """Images as (N, H, W) grey or (N, H, W, 3) floats in [0, 1]."""
    images = np.asarray(images)
    if images.ndim != 4 or not images.size:
        raise ValueError(f"expected images (N, H, W, C) and not none, found {images.shape}")
    pixels = images / 255 if images.dtype == np.uint8 else images
    if not np.isfinite(pixels).all():
        raise ValueError("images hold NaN or infinity")
    pixels = np.clip(pixels, 0, 1)
    return pixels if images.shape[3] == 3 else pixels[..., 0]


def _image(ax: Any, pixels: np.ndarray) -> None:
    ax.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")


def _class_name(label: Any, class_names: Sequence[str]) -> str:
    return class_names[int(label)] if int(label) < len(class_names) else str(int(label))
