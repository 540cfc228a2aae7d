"""Charts: the latent space, loss curves, the KL of each dimension, frames of the film."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from .canvas import (
    DPI,
    FAINT,
    INK,
    SMALL_SIZE,
    TEXT_SIZE,
    TITLE_SIZE,
    TRAIN_COLOUR,
    VALIDATION_COLOUR,
    Drawing,
    FloatArray,
    IntArray,
    classes_of,
    fitted_text,
    fonts_for,
    number_text,
    shown_images,
)

# Ten colours for classes, found by a search that makes the smallest OKLab distance of any two of them large, as seen
# with normal vision and with simulated full deuteranopia, protanopia and tritanopia (Machado et al. 2009), at lightness
# 0.36 to 0.84 so that small dots show on white. Smallest distance 0.14; matplotlib's "tab10" 0.007, "petroff10" 0.06.
CLASS_COLOURS = (
    "#257099", "#fa6a00", "#23af8b", "#b01b06", "#9c00f4", "#e2cd09", "#99d3f7", "#670e5c", "#b884ee", "#2c00b2",
)  # fmt: skip
CLASS_MARKERS = tuple("os^DvPX<p>*")  # eleven, so that colour and marker together repeat only after 110 classes
CURVES: dict[str, tuple[str, str, Any]] = {  # colour, marker and dashes of the losses
    "training": (TRAIN_COLOUR, "o", "-"),
    "validation": (VALIDATION_COLOUR, "s", (0, (5, 1.5))),
}

FIRST_EPOCH = 2.0  # times the range of the other losses: a first loss that lies farther above them is cut off
FEWEST_CUT = 10  # epochs; in shorter histories the first epoch is too important to cut off
UNUSED = 0.05  # nats per image of a latent dimension; a bar of this height looks like zero


def plane_of(latents: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(matrix (Z, 2) that projects latents (N, Z) onto the plane that is drawn, each axis's share of their variance).

    Of up to two dimensions these are the dimensions themselves, and of more the two directions of largest variance:
    ``centred = U S V'`` gives ``V[:, :2]`` and ``S[:2]**2 / sum(S**2)``. A direction's sign is fixed by making its
    largest entry positive. A second direction that a single latent lacks is zero.
    """
    Z = latents.shape[1]
    if Z <= 2:
        return np.eye(Z, 2), np.zeros(2)
    centred = latents - latents.mean(axis=0)
    centred[:, np.ptp(latents, axis=0) == 0] = 0.0  # the rounding of the mean is no variance
    _, scales, directions = np.linalg.svd(centred, full_matrices=False)  # (K,), (K, Z), K = min(N, Z)
    axes = np.zeros((Z, 2))
    for i, direction in enumerate(directions[:2]):
        axes[:, i] = direction * np.sign(direction[np.abs(direction).argmax()])
    shares = scales**2 / (scales @ scales or 1.0)
    return axes, np.pad(shares, (0, 1))[:2]


def latent_scatter(
    latents: ArrayLike, labels: ArrayLike | None, class_names: Sequence[str] = (), *, title: str | None = None
) -> Figure:
    """Where the encoder puts the images, coloured by class.

    Two latent dimensions are shown as they are; more are projected on their two principal components, with the share of
    the variance that they explain; one is shown as a histogram for each class.

    Shapes: latents (N, D), finite; labels (N,)

    Args:
        labels: integers; ``None``: one colour, no legend.
        class_names: name of class 0, 1, ...; empty: the labels that occur.
        title: replaces the first line of the heading.

    Raises:
        ValueError: too many classes for one picture.
    """
    x = np.asarray(latents, np.float64)
    N, D = x.shape
    index, names = (np.zeros(N, np.int64), [""]) if labels is None else classes_of(labels, class_names)
    names = [fitted_text(name, 330, TEXT_SIZE)[0] for name in names]
    heading = title or f"Latent space of {N:,} image{'s' if N > 1 else ''}"
    if D == 1:
        return _latent_histograms(x[:, 0], index, names, heading)
    plane, shares = plane_of(x)
    axis_names, subtitle = ["z1", "z2"], ""
    if D > 2:
        x = (x - x.mean(axis=0)) @ plane
        axis_names = [f"principal component {i} ({100 * shares[i - 1]:.1f} % of the variance)" for i in (1, 2)]
        subtitle = f"{D} dimensions projected on two principal components: {100 * shares.sum():.1f} % of the variance"

    legend_columns = 1 if labels is None else -(-len(names) // 30)
    figure = _chart(10.5 + 2.5 * (legend_columns - 1), 8.4)
    axes = figure.add_subplot()
    _scatter(axes, x, index, len(names), float(np.clip(60_000 / N, 7, 36)))
    axes.set_aspect("equal", adjustable="datalim")
    _plain_axes(axes, *axis_names)
    _headline(figure, heading, subtitle)
    if labels is not None:
        _class_legend(figure, names, legend_columns)
    return figure


def _look(i: int) -> dict[str, Any]:
    """The colour and marker of a class."""
    return {"color": CLASS_COLOURS[i % len(CLASS_COLOURS)], "marker": CLASS_MARKERS[i % len(CLASS_MARKERS)]}


def _scatter(axes: Axes, points: FloatArray, index: IntArray, classes: int, area: float) -> None:
    """Points (N, 2) in the colours and markers of their classes; area of a marker in square points."""
    parts = 8 if len(points) > 400 else 1  # classes are drawn in turns, so that the last one does not hide the others
    for part, i in itertools.product(range(parts), range(classes)):
        mine = points[index == i][part::parts]
        if len(mine):
            axes.scatter(mine[:, 0], mine[:, 1], s=area, linewidths=0, alpha=0.75, **_look(i))


def _latent_histograms(z: FloatArray, index: IntArray, names: list[str], heading: str) -> Figure:
    """One row per class, the same bins and the same scale in every row."""
    edges = np.histogram_bin_edges(z, bins=60)
    counts = np.stack([np.histogram(z[index == i], bins=edges)[0] for i in range(len(names))])  # (classes, bins)
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    figure = _chart(10.5, max(4.5, 1.6 + 0.6 * len(names)))
    axes = figure.add_subplot()
    bases = np.arange(len(names))[::-1]  # the first class on top
    for i, base in enumerate(bases):
        top = base + 0.9 * shares[i] / shares.max()
        axes.stairs(top, edges, baseline=float(base), fill=True, color=_look(i)["color"])
        axes.axhline(float(base), color=FAINT, linewidth=0.6)
    axes.set_ylim(-0.1, len(names))
    _plain_axes(axes, "z1")
    axes.set_yticks(bases, names, parse_math=False)
    for text, name in zip(axes.get_yticklabels(), names, strict=True):
        text.set_fontfamily(fonts_for(name))
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0, labelsize=TEXT_SIZE)
    each = "each class" if len(names) > 1 else "all"
    _headline(figure, heading, f"height: share of {each} in a bin; highest {100 * shares.max():.1f} %")
    return figure


def _class_legend(figure: Figure, names: list[str], columns: int) -> None:
    handles = [Line2D([], [], linestyle="none", markersize=7, markeredgewidth=0, **_look(i)) for i in range(len(names))]
    # The names are set afterwards: given as labels, a leading "_" would hide an entry and "$" would start a formula.
    legend = figure.legend(
        handles, ["class"] * len(names), loc="outside right upper", ncols=columns, frameon=False,
        fontsize=TEXT_SIZE, handletextpad=0.3, labelspacing=0.6, labelcolor=INK,
    )  # fmt: skip
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set(parse_math=False, text=name, fontfamily=fonts_for(name))


def film_frame(
    originals: NDArray[Any],
    reconstructed: NDArray[Any],
    points: FloatArray,
    labels: ArrayLike | None,
    class_names: Sequence[str],
    limits: tuple[tuple[float, float], tuple[float, float]],
    title: str,
) -> Figure:
    """One frame of a film: images above their reconstructions, and where others are in the latent plane.

    Shapes: originals, reconstructed (N, H, W, C); points (M, 2); labels (M,); limits of the plane's axes
    """
    above, below = shown_images(originals), shown_images(reconstructed)
    index, names = (np.zeros(len(points), np.int64), [""]) if labels is None else classes_of(labels, class_names)
    columns = -(-len(above) // 2)
    H, W, C = above.shape[1:]
    gap = max(1, H // 9)
    mosaic = np.ones((2 * (2 * H + gap) + 2 * gap, columns * (W + gap) - gap, C), np.float32)
    for i, (first, second) in enumerate(zip(above, below, strict=True)):
        row, column = divmod(i, columns)
        y, x = row * (2 * H + 3 * gap), column * (W + gap)
        mosaic[y : y + H, x : x + W], mosaic[y + H + gap : y + 2 * H + gap, x : x + W] = first, second
    figure = _chart(11.0, 4.9)
    figure.set_dpi(90)
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    left.imshow(mosaic[..., 0] if C == 1 else mosaic, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    left.set_axis_off()
    left.set_title("images, and below them their reconstructions", loc="left", fontsize=TEXT_SIZE, color=FAINT)
    _scatter(right, points, index, len(names), 9)
    right.set(xlim=limits[0], ylim=limits[1])
    _plain_axes(right)
    if not points[:, 1].any():  # one latent dimension: the height says nothing
        right.set_yticks([])
    right.set_title("latent space", loc="left", fontsize=TEXT_SIZE, color=FAINT)
    _headline(figure, title)
    if labels is not None:
        _class_legend(figure, [fitted_text(name, 200, TEXT_SIZE)[0] for name in names], 1)
    return figure


def kl_bars(kl_per_dim: ArrayLike) -> Figure:
    """The nats that each latent dimension carries about an image on average, the largest first; near 0 it is unused.

    Shapes: kl_per_dim (Z,)
    """
    kl = np.asarray(kl_per_dim, float)
    order = np.argsort(-kl, kind="stable")
    figure = _chart(np.clip(2.0 + 0.32 * len(kl), 6.0, 16.0), 4.2)
    axes = figure.add_subplot()
    axes.bar(range(len(kl)), kl[order], color=TRAIN_COLOUR, width=0.8)
    axes.set_ylim(0, 1.05 * max(UNUSED, kl.max()))
    _plain_axes(axes, "latent dimension", "nats per image")
    step = -(-len(kl) // 40)  # labels that fit
    axes.set_xticks(range(0, len(kl), step), [f"z{i + 1}" for i in order[::step]])
    _headline(
        figure, "KL divergence of each latent dimension", f"{number_text(float(kl.sum()))} nats per image in total"
    )
    return figure


# ---- training ------------------------------------------------------------------------------------------------------


def loss_curves(history: Sequence[Mapping[str, Any]], *, unit: str = "nats per image") -> Figure:
    """The losses over the epochs, the total, the reconstruction and the KL divergence each in a panel of its own.

    A panel is left out when no epoch has its numbers, and the reconstruction also when it is the whole loss (a plain
    autoencoder). The learning rate gets a panel when it changes. Of FEWEST_CUT epochs or more, a first one so far above
    the others that they would look alike is cut off, and its losses written there. A single epoch has its values beside
    the points.

    Args:
        history: one dict per epoch, with any of ``epoch loss reconstruction kl val_loss val_reconstruction val_kl
            learning_rate``; a missing epoch number is counted from 1, other missing or ``None`` numbers leave a gap.
        unit: of the losses, written on their axes.

    Raises:
        ValueError: an empty history, one without any loss, or with epochs beyond 1e12.
    """
    if not len(history):
        raise ValueError("loss_curves: the history is empty, there is no epoch to show")

    def column(key: str) -> FloatArray:
        values = np.asarray([math.nan if row.get(key) is None else float(row[key]) for row in history])
        values[~(np.abs(values) < 1e30)] = np.nan  # what is beyond, no axis can span
        return values

    epochs = np.asarray([float(row.get("epoch", i + 1)) for i, row in enumerate(history)])
    if not (np.abs(epochs) < 1e12).all():
        raise ValueError(f"loss_curves: the epochs are {epochs.min():g} to {epochs.max():g}, which no axis can span")
    panels: dict[str, dict[str, FloatArray]] = {}
    for key, name in (("loss", "Total loss"), ("reconstruction", "Reconstruction"), ("kl", "KL divergence")):
        both = {"training": column(key), "validation": column("val_" + key)}
        if curves := {curve: losses for curve, losses in both.items() if np.isfinite(losses).any()}:
            panels[name] = curves
    if not panels:
        known = "loss, reconstruction, kl, val_loss, val_reconstruction, val_kl"
        raise ValueError(f"loss_curves: the history has no finite loss; looked for {known} in {sorted(history[0])}")
    if [*panels] == ["Total loss", "Reconstruction"]:
        total, part = panels.values()
        if all(np.allclose(total[curve], part.get(curve, math.nan), rtol=1e-6, equal_nan=True) for curve in total):
            panels = {"Total loss (reconstruction only)": total}
    rate = column("learning_rate")
    finite_rate = rate[np.isfinite(rate)]
    with_rate = len(np.unique(finite_rate)) > 1

    count = len(panels) + with_rate
    rows, columns = (2, 2) if count == 4 else (1, count)
    figure = _chart((8.5, 12.5, 13.0, 11.5)[count - 1], 4.6 * rows + 0.4)
    marked = len(epochs) <= 20
    for position, (name, curves) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, columns, position)
        for curve, losses in curves.items():
            colour, marker, dashes = CURVES[curve]
            axes.plot(
                epochs, losses, color=colour, linestyle=dashes, linewidth=1.8, label=curve,
                marker=marker if marked else "", markersize=4.5 if len(epochs) > 1 else 9,
            )  # fmt: skip
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
    legend_of = {str(line.get_label()): line for axes in figure.axes for line in axes.get_legend_handles_labels()[0]}
    _headline(figure, f"{'Training and validation' if 'validation' in legend_of else 'Training'} loss")
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
            number_text(float(losses[0])), (epoch, losses[0]), (x, 0), textcoords="offset points", ha=side, va="center",
            fontsize=TEXT_SIZE, color=CURVES[curve][0],
        )  # fmt: skip


def _mark_lowest(axes: Axes, epochs: FloatArray, curves: Mapping[str, FloatArray]) -> None:
    lines = []
    for curve, losses in curves.items():
        best = int(np.nanargmin(losses))
        axes.plot(epochs[best], losses[best], marker="o", markersize=10, fillstyle="none", color=INK)
        lines.append(f"lowest {curve} {number_text(float(losses[best]))} at epoch {epochs[best]:g}")
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
        values = [f"{curve} {number_text(float(losses[0]))}" for curve, losses in curves.items() if losses[0] > top]
        axes.annotate(  # right of the second epoch, where the curves are lower
            f"\N{UPWARDS ARROW} epoch {epochs[0]:g}: " + ",\n".join(values), (epochs[1], 1), (6, -2),
            xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=SMALL_SIZE, color=FAINT, va="top",
        )  # fmt: skip


def _epoch_axes(axes: Axes, epochs: FloatArray, name: str, unit: str) -> None:
    _plain_axes(axes, "epoch", unit)
    axes.set_title(name, loc="left", fontsize=TEXT_SIZE + 1, color=INK)
    if epochs.min() == epochs.max():
        axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
        axes.set_xticks([epochs[0]], [f"{epochs[0]:g}"])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True))


# ---- shared looks --------------------------------------------------------------------------------------------------


def _chart(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, which keeps axes, titles and legends apart by itself."""
    return Drawing(width * DPI, height * DPI, ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.14))


def _plain_axes(axes: Axes, x_name: str = "", y_name: str = "") -> None:
    """Set the style of axes, and their names, after everything is drawn on them."""
    axes.grid(visible=True, color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=SMALL_SIZE, colors=INK, length=3)
    axes.spines[:].set_color(FAINT)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(x_name, fontsize=TEXT_SIZE, color=INK, parse_math=False)
    axes.set_ylabel(y_name, fontsize=TEXT_SIZE, color=INK, parse_math=False)


def _headline(figure: Figure, heading: str, subtitle: str = "") -> None:
    """Write the heading of a figure, and a subtitle above its only axes."""
    figure.suptitle(
        heading, x=0.012, ha="left", fontsize=TITLE_SIZE, fontweight="bold", color=INK, parse_math=False
    )  # fmt: skip
    if subtitle:
        figure.axes[0].set_title(subtitle, loc="left", fontsize=TEXT_SIZE, color=FAINT)
