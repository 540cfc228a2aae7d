"""Charts: the latent space, loss curves, the KL of each dimension, frames of the film."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, ScalarFormatter
from numpy.typing import ArrayLike

from .canvas import (
    DPI,
    FAINT,
    INK,
    MAX_SIDE,
    SMALL_SIZE,
    TEXT_SIZE,
    TITLE_SIZE,
    TRAIN_COLOUR,
    VALIDATION_COLOUR,
    Drawing,
    FloatArray,
    IntArray,
    checked_classes,
    checked_images,
    fitted_text,
    fonts_for,
    number_text,
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
LONGEST_TICK = 10  # characters of a number at an axis


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
    index, names = (np.zeros(N, np.int64), [""]) if labels is None else checked_classes(labels, class_names, N, who)
    names = [fitted_text(name, 330, TEXT_SIZE)[0] for name in names]
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
        text.set_fontfamily(fonts_for(name))
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
        text.set_fontfamily(fonts_for(name))
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
    above, below = (
        checked_images(originals, f"{who}: originals"),
        checked_images(reconstructed, f"{who}: reconstructed images"),
    )
    places = np.asarray(points, float)
    index, names = (np.zeros(len(places), np.int64), [""])
    if labels is not None:
        index, names = checked_classes(labels, class_names, len(places), who)
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
        _class_legend(figure, [fitted_text(name, 200, TEXT_SIZE)[0] for name in names], 1)
    return figure


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
    _headline(axes, title, f"{number_text(float(kl.sum()))} nats per image in total")
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
    """Set the style of axes, after everything is drawn on them. A range that is only rounding errors is widened."""
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
