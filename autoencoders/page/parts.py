"""The pictures of the page: test images and reconstructions, new images, the plane, the film."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..conv_autoencoder import VAE, Autoencoder
from ..data import Dataset
from ..data.dataset import pick_images
from ..evaluation.mixture import Mixture
from ..pictures.charts import CLASS_COLOURS, classes_of
from ..pictures.images import (
    STEPS,
    beside_nearest,
    errors_of,
    extremes,
    interpolated,
    labels_of,
    names_of,
    new_images,
    traversed,
    with_noise,
)
from .live import Film, Plane, Shown, as_bytes
from .markup import Markup, figure, picture, tag, tiled

SAMPLES, SHOWN = 24, 12  # new images, and images beside others, of a picture
MOST_CLASSES, EACH = 12, 10  # of a conditional model, the classes of which samples are shown, and their number
MOST_BARS = 24  # latent dimensions whose KL divergence is drawn
SIDE = 1000  # of the plane, in the units of its SVG


class Maker:
    """The pictures of a model, from one choice of test images."""

    def __init__(
        self,
        model: Autoencoder,
        dataset: Dataset,
        shown: Shown,
        plane: Plane,
        kl: np.ndarray | None,
        mixture: Mixture | None,
        seed: int,
    ) -> None:
        self.model, self.dataset, self.shown, self.plane, self.kl = model, dataset, shown, plane, kl
        self.mixture, self.seed = mixture, seed
        self.index = np.zeros(len(shown.images), int)  # the class of each image
        self.names: list[str] = []
        if shown.labels is not None:
            self.index, self.names = classes_of(shown.labels, dataset.class_names)
        self.draws = isinstance(model, VAE) or mixture is not None

    def pairs(self, rows: np.ndarray, what: str, kind: str = "tiles") -> Markup:
        """Test images above their reconstructions."""
        words = [f"{self.names[self.index[i]]} " if self.names else "" for i in rows]
        under = [f"{word}{self.shown.errors[i]:.4f}" for word, i in zip(words, rows, strict=True)]
        return stacked(self.shown.images[rows], self.shown.reconstructed[rows], what, under, kind)

    def some(self, count: int) -> np.ndarray:
        return pick_images(self.shown.labels, count, len(self.shown.images), self.seed)


def stacked(above: np.ndarray, below: np.ndarray, what: str, under: Sequence[str], kind: str = "tiles") -> Markup:
    """Pairs of images (N, H, W, C), one above the other, with a text under each."""
    pairs = np.concatenate([as_bytes(above), as_bytes(below)], axis=1)
    tiles = [tag("div", picture(pair), tag("span", text)) for pair, text in zip(pairs, under, strict=True)]
    return tag("div", *tiles, class_=kind, role="img", aria_label=what)


def rows_of(images: np.ndarray, names: Sequence[str], what: str) -> Markup:
    """Rows of images (R, S, H, W, C), each with a name before it."""
    strips = [picture(tiled(as_bytes(row), len(row))) for row in images]
    cells = [tag("div", tag("span", name) if name else None, x) for name, x in zip(names, strips, strict=True)]
    return tag("div", *cells, class_="rows" if any(names) else "rows plain", role="img", aria_label=what)


class Section(Markup):
    """A section of the page, with its id and its heading."""

    name: str
    heading: str


def section(name: str, heading: str, *content: Any) -> Section | None:
    """A section; None if there is nothing in it."""
    if not (kept := [x for x in content if x]):
        return None
    made = Section(tag("section", tag("h2", heading), *kept, id=name, aria_label=heading))
    made.name, made.heading = name, heading
    return made


def new_tiles(maker: Maker) -> Markup:
    """New images, of a conditional model a row of each class."""
    model = maker.model
    if model.classes:
        shown = range(min(model.classes, MOST_CLASSES))
        images = new_images(model, EACH * len(shown), maker.seed, shown)[0].reshape(
            len(shown), EACH, *model.input_shape
        )
        return rows_of(images, names_of(model)[: len(shown)], "New images of each class")
    images = as_bytes(new_images(model, SAMPLES, maker.seed, mixture=maker.mixture)[0])
    return tag("div", *map(picture, images), class_="tiles", role="img", aria_label=f"{SAMPLES} new images")


def dots(places: np.ndarray, index: np.ndarray) -> Markup:
    """Points (N, 2), from -1 to 1, in the colours of their classes."""
    x, y = np.round(SIDE / 2 * (1 + places * [1, -1])).astype(int).T
    groups = []
    for i in range(index.max() + 1):
        line = "".join(f"M{x[k]} {y[k]}h0" for k in np.flatnonzero(index == i))
        groups.append(tag("path", d=line, style=f"--c:{CLASS_COLOURS[i % len(CLASS_COLOURS)]}", data_class=i))
    return tag("g", *groups, class_="points")


def film_strip(film: Film) -> Markup:
    """The frames of the training, to be moved through by hand."""
    count, shown = len(film.data["epochs"]), film.data["count"]
    slider = tag("input", id="epoch", type="range", min=0, max=count - 1, value=count - 1, aria_label="Epoch")
    controls = tag(
        "div", tag("button", "Play", type="button", id="play"), slider, tag("output", id="when"), class_="row"
    )
    H, W = film.data["shape"]
    every = tag("img", src=film.sheet, alt="Training images, and their reconstructions after each epoch",
                id="frames", class_="pixels")  # fmt: skip
    strips = tag("canvas", every, id="frame", width=-(-shown // 2) * W, height=4 * H, class_="pixels", role="img",
                 aria_label="Training images and their reconstructions after the epoch")  # fmt: skip
    scatter = tag("svg", dots(film.places, np.array(film.data["index"])), viewBox=f"0 0 {SIDE} {SIDE}", id="cloud",
                  role="img", aria_label="Latents after the epoch")  # fmt: skip
    sees = "Training images above their reconstructions, and where images are in the latent space, after each epoch."
    return figure(tag("div", tag("div", strips, controls), scatter, class_="film"), sees,
                  "Good: classes part, and reconstructions get sharper to the end.", class_="live")  # fmt: skip


def live_plane(maker: Maker, live: bool) -> Markup:
    """The test images as points, the images beside them, and the controls."""
    plane, shown, model = maker.plane, maker.shown, maker.model
    points = dots((plane.points - plane.middle) / plane.half, maker.index)
    marker = tag("circle", id="here", r=16), tag("circle", id="ring", r=12)
    words = "Latent plane: arrow keys move, with Shift further"
    square = tag("svg", points, *marker, viewBox=f"0 0 {SIDE} {SIDE}", id="plane",
                 tabindex=0, role="application", aria_label=words)  # fmt: skip
    legend = [
        tag("button", tag("i", style=f"--c:{CLASS_COLOURS[i % len(CLASS_COLOURS)]}"), name, type="button",
            aria_pressed="true", data_class=i)
        for i, name in enumerate(maker.names)
    ]  # fmt: skip

    def canvas(name: str, what: str, start: np.ndarray, size: tuple[int, ...]) -> Markup:
        """A canvas for images of this size; without script it shows one of them."""
        (H, W), still = size[:2], picture(as_bytes(start), what)
        drawn = tag("canvas", still, id=name, width=W, height=H, class_="pixels", role="img", aria_label=what)
        return tag("div", drawn, tag("p", what, class_="small", id=f"{name}-text"))

    decoded = model.decode(plane.centre[None], labels=np.zeros(1, int) if model.classes else None)[0]
    near = shown.images[((shown.latents - plane.centre) ** 2).sum(axis=1).argmin()]
    images = [canvas("decoded", "decoded here", decoded, model.input_shape)] if live else []
    images.append(canvas("nearest", "nearest test image", near, as_bytes(near).shape))
    side = [
        tag("div", *images, class_="images"),
        tag("p", id="place", class_="small"),
        tag("p", id="said", role="status", class_="hidden"),
        tag("div", id="sliders") if live else None,
    ]
    toggles = tag("div", *legend, class_="legend", id="legend", role="group", aria_label="Classes that are shown")
    return tag("div", square, tag("div", *side, class_="side"), toggles if legend else None, class_="plane")


def kl_bars(kl: np.ndarray) -> Markup:
    """The KL divergence of each latent dimension, the largest first."""
    order = np.argsort(-kl, kind="stable")
    rows = [(f"z{i + 1}", float(kl[i]), f"{kl[i]:.2f}") for i in order[:MOST_BARS]]
    sees = f"What each latent dimension carries about an image on average: {kl.sum():.2f} nats in all."
    if len(kl) > MOST_BARS:
        sees += f" The other {len(kl) - MOST_BARS} carry {kl[order[MOST_BARS:]].sum():.2f}."
    return figure(bars(rows, "nats per image"), sees, "Good: no unused dimension, unless there are many.")


def bars(rows: Sequence[tuple[str, float, str]], unit: str, kind: str = "bars") -> Markup:
    """Bars with (name, length, text of the number)."""
    top = max(0.05, *(abs(value) for _, value, _ in rows))
    drawn = [
        tag("div", tag("span", name), tag("i", style=f"--part:{abs(value) / top:.3f}"), tag("span", text))
        for name, value, text in rows
    ]
    told = ", ".join(f"{name} {text}" for name, _, text in rows)
    return tag("div", *drawn, class_=kind, role="img", aria_label=f"In {unit}: {told}")


def traversals(maker: Maker) -> Markup:
    """One latent dimension at a time changed, from a test image."""
    assert maker.kl is not None
    start, shown = maker.some(1), maker.shown
    dimensions, images = traversed(maker.model, shown.latents[start], labels_of(shown.labels, start), maker.kl)
    names = [f"z{i + 1}" for i in dimensions]
    rows = rows_of(images, names, "A test image with one latent dimension changed at a time")
    sees = f"One latent dimension at a time, from {STEPS[0]:g} on the left to {STEPS[-1]:g} on the right."
    return figure(rows, sees, "Good: each changes one property of the image.")


def interpolations(maker: Maker) -> Markup | None:
    """Rows of images between two test images each; None if there is only one."""
    rows = interpolated(maker.model, maker.shown.images, maker.shown.labels, 6, maker.seed + 1)
    if rows is None:
        return None
    drawn = rows_of(rows, [""] * len(rows), "Rows of images between two test images")
    sees = "On the straight line between the latents of two test images."
    return figure(drawn, sees, "Good: every step looks like an image of the data.")


def neighbours(maker: Maker, known: np.ndarray) -> Section | None:
    """New images, and below each the training image nearest to it; None if the model makes none."""
    if not maker.draws:
        return None
    new, found, _ = beside_nearest(maker.model, known, SHOWN, maker.seed + 1, maker.mixture)
    under = [f"{x:.4f}" for x in errors_of(new, found)]
    drawn = stacked(new, found, "New images and the training images nearest to them", under, "tiles long")
    sees = "New images, and below each the training image nearest to it with their squared difference per pixel."
    return section("samples", "Samples", figure(drawn, sees, "Good: of the same kind, but no copies."))


def denoised(maker: Maker, noise: float) -> Section | None:
    """Test images with the noise of the training, and what the model makes of them."""
    if not noise:
        return None
    rows, shown = maker.some(SHOWN), maker.shown
    labels = labels_of(shown.labels, rows)
    noisy, restored, before, after = with_noise(maker.model, shown.images[rows], labels, noise, maker.seed)
    drawn = stacked(noisy, restored, "Noisy images and what is left", [f"{x:.4f}" for x in after], "tiles long")
    sees = (
        f"Test images with noise of standard deviation {noise:g}, and below each its reconstruction with the squared "
        f"error to the clean image; {after.mean():.4f} on average, {before.mean():.4f} before."
    )
    return section("denoised", "Noise removed", figure(drawn, sees, "Good: the thing without the noise."))


def best_and_worst(maker: Maker) -> Section | None:
    """The test images with the largest errors, and those with the smallest."""
    rows = extremes(maker.shown.errors, SHOWN)
    count, many = len(rows[0]), f"{len(maker.shown.errors):,} test images"
    worst = maker.pairs(rows[0], "The test images that are reconstructed worst")
    best = maker.pairs(rows[1], "The test images that are reconstructed best")
    parts = [
        figure(
            worst, f"The {count} of {many} with the largest errors.", "Good: rare kinds, and no class in particular."
        ),
        figure(best, f"The {count} with the smallest errors.", "Good: not one class only."),
    ]
    return section("errors", "Best and worst", tag("div", *parts, class_="two"))
