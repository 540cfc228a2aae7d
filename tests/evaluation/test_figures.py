"""The pictures: what stands where in them, that their text is readable, and that their files are whole or absent."""

import itertools
import math
import os
import subprocess
import sys
from bisect import bisect
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from autoencoders.pictures import canvas, charts, film, sheets

NAMES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


def images(N: int, H: int = 8, W: int = 8, C: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((N, H, W, C)).astype(np.float32)


def history(epochs: int, *, kl: bool = True, validation: bool = True) -> list[dict]:
    rows = []
    for epoch in range(1, epochs + 1):
        losses = {"reconstruction": 230 + 300 / epoch} | ({"kl": 18 - 10 / epoch} if kl else {})
        losses["loss"] = sum(losses.values())
        held_out = {"val_" + key: loss + 2 for key, loss in losses.items()} if validation else {}
        rows.append({"epoch": epoch, "learning_rate": 5e-4} | losses | held_out)
    return rows


def pixels(figure: Figure, tmp_path: Path) -> np.ndarray:
    """The saved file, (H, W, 3) in [0, 1]."""
    return imread(canvas.save(figure, tmp_path / "figure.png"))[..., :3]


def shown(figure: Figure) -> list[tuple[float, float, np.ndarray]]:
    """(left, top, values) of every image of a figure, in pixels from the top left corner."""
    height = figure.get_size_inches()[1] * figure.dpi
    figure.canvas.draw()
    found = []
    for axes in figure.axes:
        for artist in axes.images:
            box = artist.get_window_extent()
            found.append((min(box.x0, box.x1), height - max(box.y0, box.y1), np.asarray(artist.get_array())))
    return found


def texts(figure: Figure) -> list:
    """Every text that a reader sees, of a figure that was drawn or saved before."""
    every = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    gone = []
    for axes in figure.axes:
        for axis, (low, high) in ((axes.xaxis, sorted(axes.get_xlim())), (axes.yaxis, sorted(axes.get_ylim()))):
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]  # those beyond the limits are not drawn
            gone += [tick.label1 for tick in ticks if not low <= tick.get_loc() <= high]
            gone += [] if axes.axison else axis.findobj(Text)
    return [t for t in every if not any(t is other for other in gone)]


def film_of_equal_latents(Z: int) -> Figure:
    latents = np.full((30, Z), 0.1)
    axes, limits = film.plane_of_film([latents, latents])
    return charts.film_frame(images(10), images(10), latents @ axes, None, (), limits, "after epoch 1")


ten = np.arange(10)
latents = np.random.default_rng(1).normal(size=(500, 7)) * np.arange(1, 8)
LONG = ["a class with a name much longer than its column"] * 10
GALLERY = {
    "reconstructions": lambda: sheets.reconstructions(images(10), images(10), ten, NAMES, np.linspace(0.1, 40, 10)),
    "reconstructions, one": lambda: sheets.reconstructions(images(1), images(1), [3], NAMES, [241.32]),
    "reconstructions, long names": lambda: sheets.reconstructions(images(23), images(23), np.arange(23) % 10, LONG),
    "reconstructions, large rgb": lambda: sheets.reconstructions(
        images(12, 64, 48, 3).round(), np.zeros((12, 64, 48, 3)), None, (), np.full(12, 123456.7), error_name="e" * 300
    ),
    "samples": lambda: sheets.samples(images(25, 28, 28), title="A title that is far too long for one line " * 5),
    "samples, named": lambda: sheets.samples(images(12, 28, 28), names=[*NAMES, *LONG[:2]]),
    "interpolations, two steps": lambda: sheets.interpolations(images(4).reshape(2, 2, 8, 8, 1)),
    "interpolations, long": lambda: sheets.interpolations(images(80).reshape(2, 40, 8, 8, 1)),
    "traversals": lambda: sheets.traversals(
        images(1)[0], images(27).reshape(3, 9, 8, 8, 1), ["z1, 10 nats", "z2", "n" * 99], np.arange(-4, 5) / 3, "Title"
    ),
    "manifold, wide images": lambda: sheets.manifold_grid(images(225, 12, 40)),
    "manifold, many": lambda: sheets.manifold_grid(np.linspace(0, 1, 2500).repeat(900).reshape(2500, 30, 30, 1)),
    "scatter": lambda: charts.latent_scatter(latents[:, :2], np.arange(500) % 10, NAMES),
    "scatter, projected": lambda: charts.latent_scatter(latents, np.arange(500) % 10, NAMES),
    "scatter, 1 dimension": lambda: charts.latent_scatter(latents[:, :1], np.arange(500) % 10, NAMES),
    "scatter, 45 classes": lambda: charts.latent_scatter(latents[:90, :2], np.arange(90) % 45),
    "film of equal latents, 1 dimension": lambda: film_of_equal_latents(1),
    "film of equal latents, 5 dimensions": lambda: film_of_equal_latents(5),
    "losses, 1 epoch": lambda: charts.loss_curves(history(1)),
    "losses, a cut first epoch": lambda: charts.loss_curves(
        [{"loss": 1 / i**4, "val_loss": 1 / i**3} for i in range(1, 12)]
    ),
    "losses, autoencoder with schedule and validation": lambda: charts.loss_curves(
        [row | {"learning_rate": 1 / row["epoch"]} for row in history(100, kl=False)]
    ),
    "losses, autoencoder": lambda: charts.loss_curves(history(7, kl=False), unit="squared error per image"),
}


@pytest.mark.parametrize("name", GALLERY)
def test_every_picture_is_drawn_at_a_readable_size_without_touching_texts(name, tmp_path):
    figure = GALLERY[name]()
    picture = pixels(figure, tmp_path)
    assert (500 if name == "reconstructions, one" or "film" in name else 1200) <= picture.shape[1] <= 2000
    assert picture.std() > 0.01, "a blank picture"
    H, W = picture.shape[:2]
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts(figure)]  # where save drew them
    assert boxes
    for text, box in boxes:
        assert min(box.x0, box.y0, W - box.x1, H - box.y1) >= 0, f"{text!r} leaves the picture"
    for legend, axes in itertools.product(figure.legends, figure.axes):
        assert not legend.get_window_extent().overlaps(axes.get_window_extent()), "the legend lies on the curves"
    sheet_images = [] if "manifold" in name else [artist for axes in figure.axes for artist in axes.images]
    pictured = [("an image", artist.get_window_extent()) for artist in sheet_images]
    for (one, a), (other, b) in itertools.combinations(boxes + pictured, 2):
        apart = a.x1 <= b.x0 + 1e-6 or b.x1 <= a.x0 + 1e-6 or a.y1 <= b.y0 + 1e-6 or b.y1 <= a.y0 + 1e-6
        assert apart, f"{one!r} overlaps {other!r}"


# ---- letters ---------------------------------------------------------------------------------------------------------

# DejaVu Sans lacks the first letter; STIX, which comes with matplotlib, too, has it.
FOREIGN = "\N{LATIN SMALL LETTER D WITH PALATAL HOOK}ove"


@pytest.mark.parametrize(
    "draw",
    [
        lambda: sheets.reconstructions(images(1), images(1), [0], [FOREIGN]),
        lambda: charts.latent_scatter(latents[:, :2], np.arange(500) % 2, [FOREIGN, "other"]),
        lambda: charts.latent_scatter(latents[:, :1], np.arange(500) % 2, [FOREIGN, "other"]),
    ],
)
def test_a_letter_that_the_font_lacks_is_taken_from_another(draw, tmp_path):
    figure = draw()
    canvas.save(figure, tmp_path / "figure.png")  # a box in place of a letter would be a warning
    families = {t.get_text(): t.get_fontfamily() for t in texts(figure)}
    assert len(families.pop(FOREIGN)) == 2
    assert {tuple(family) for family in families.values()} == {("sans-serif",)}


# ---- images --------------------------------------------------------------------------------------------------------


ABOVE, BELOW, PATHS = images(13, seed=1), images(13, seed=2), images(12).reshape(2, 6, 8, 8, 1)
SHEETS = {  # a sheet, and its rows of images
    "reconstructions": (sheets.reconstructions(ABOVE, BELOW), [ABOVE[:10], BELOW[:10], ABOVE[10:], BELOW[10:]]),
    "samples": (sheets.samples(ABOVE[:7], columns=3), [ABOVE[:3], ABOVE[3:6], ABOVE[6:7]]),
    "interpolations": (sheets.interpolations(PATHS), PATHS),
    "traversals": (
        sheets.traversals(BELOW[0], PATHS, ["z4", "z1"], [-3, -2, -1, 1, 2, 3], "Title"),
        [[BELOW[0], *path] for path in PATHS],
    ),
}


def edges(figure: Figure) -> tuple[list[int], list[int]]:
    """Where the rows begin, from the top, and the columns, from the left."""
    placed = shown(figure)
    return sorted({round(top) for _, top, _ in placed}), sorted({round(left) for left, _, _ in placed})


def cell(figure: Figure, text: Text) -> tuple[int, int]:
    """(row, column) in which the middle of a text is: -1 above the first row or left of the first column."""
    rows, columns = edges(figure)
    (x0, y0), (x1, y1) = text.get_window_extent().get_points()
    height = figure.get_size_inches()[1] * figure.dpi
    return bisect(rows, height - (y0 + y1) / 2) - 1, bisect(columns, (x0 + x1) / 2) - 1


@pytest.mark.parametrize("name", SHEETS)
def test_images_stand_in_their_rows_and_columns(name):
    figure, wanted = SHEETS[name]
    rows, columns = edges(figure)
    found = {(rows.index(round(top)), columns.index(round(left))): values for left, top, values in shown(figure)}
    places = [(i, j) for i, row in enumerate(wanted) for j in range(len(row))]
    assert sorted(found) == places
    for i, j in places:
        np.testing.assert_array_equal(found[i, j], wanted[i][j][..., 0])


def test_pixels_of_a_saved_reconstruction(tmp_path):
    """Read back from the file: light above, mid-grey below, and a white gap between them."""
    light, grey = np.full((1, 8, 8, 1), 0.8, np.float32), np.full((1, 8, 8, 1), 128, np.uint8)
    figure = sheets.reconstructions(light, grey)
    picture = pixels(figure, tmp_path)
    (x, y, _), (_, y2, _) = shown(figure)
    x, y, y2 = round(x), round(y), round(y2)
    for rows, value in ((slice(y + 4, y2 - 12), 0.8), (slice(y2 + 4, y2 + 100), 128 / 255), (y2 - 3, 1.0)):
        np.testing.assert_allclose(picture[rows, x + 4 : x + 100], value, atol=0.005)


def test_names_and_errors_stand_in_their_column():
    figure = sheets.reconstructions(
        images(3), images(3), [9, 0, 3], NAMES, [0.01234, 241.32, 12345.6], error_name="nats", rows_are=("one", "other")
    )
    found = {t.get_text(): cell(figure, t) for t in texts(figure)}
    for column, (name, error) in enumerate([("Ankle boot", "0.01234"), ("T-shirt/top", "241.3"), ("Dress", "12346")]):
        assert (found[name], found[error]) == ((-1, column), (1, column)), "the name is above, the error below"
    assert "Below each pair: nats" in found
    assert (found["one"], found["other"]) == ((0, -1), (1, -1)), "beside its row"


def test_the_error_of_a_pair_is_its_mean_squared_error():
    above, below = np.uint8([[[[0], [255]]], [[[51], [0]]]]), np.float32([[[[0.5], [1]]], [[[0], [0]]]])
    found = [t.get_text() for t in texts(sheets.reconstructions(above, below))]
    assert {"0.125", "0.02", "Below each pair: mean squared error per pixel"} <= set(found)


@pytest.mark.parametrize(
    ("draw", "expected"),
    [
        (lambda: sheets.reconstructions(images(2), images(2), np.array([41, 7], np.uint8)), {"41", "7"}),
        (lambda: sheets.reconstructions(images(1), images(1), [0], [r"$\broken$"]), {r"$\broken$"}),
        (lambda: charts.latent_scatter(latents[:, :2], np.arange(500) % 2, ["_hidden", "$x"]), {"_hidden", "$x"}),
        (lambda: charts.latent_scatter(latents[:, :2], np.full(500, 7), NAMES), set(NAMES)),  # also without images
    ],
)
def test_classes_without_names_and_with_awkward_ones(draw, expected, tmp_path):
    figure = draw()
    canvas.save(figure, tmp_path / "figure.png")
    assert expected <= {t.get_text() for t in texts(figure)}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        *((images(2, 6, 5, C), images(2, 6, 5, C)[..., 0]) for C in (1, 2, 4)),
        (images(2, 6, 5, 3), images(2, 6, 5, 3)),
        (np.uint8([0, 51, 255, 102]).reshape(1, 2, 2, 1), [[[0, 0.2], [1, 0.4]]]),
    ],
)
def test_images_of_all_kinds_are_shown(given, expected):
    for (_, _, values), image in zip(shown(sheets.samples(given)), expected, strict=True):
        np.testing.assert_allclose(values, image, rtol=1e-6)


@pytest.mark.parametrize(("H", "W"), [(28, 28), (10, 40), (200, 300)])
def test_the_pixels_of_an_image_are_shown_square(H, W):
    x = images(25, H, W)
    for figure in (sheets.samples(x), sheets.reconstructions(x, x), sheets.manifold_grid(x)):
        figure.canvas.draw()
        boxes = [artist.get_window_extent() for artist in figure.axes[-1].images]
        np.testing.assert_allclose([abs(box.width / box.height) * H / W for box in boxes], 1, atol=0.03)


def test_samples_may_have_names_of_rows_and_of_images():
    rows, above = ["Bag", "Coat", "Hat"], [*NAMES, "Hat", "Scarf"]
    by_row = sheets.samples(images(7), columns=3, title="Drawn", row_names=rows)
    by_image = sheets.samples(images(12), names=above)
    title, *_ = by_row.axes[0].texts
    assert title.get_text() == "Drawn"
    for figure, names, places in (
        (by_row, rows, [(i, -1) for i in range(3)]),
        (by_image, above, [(i // 10 - 1, i % 10) for i in range(12)]),
    ):
        assert [(t.get_text(), cell(figure, t)) for t in figure.axes[0].texts[1:]] == [*zip(names, places, strict=True)]


@pytest.mark.parametrize(("classes", "each", "highest"), [(10, 1, 1800), (10, 2, 1800), (99, 1, 6500)])
def test_a_row_for_each_of_many_classes_is_neither_a_tower_nor_a_wide_white_sheet(classes, each, highest):
    x = np.zeros((classes * each, 28, 28, 1))
    picture = sheets.samples(x, columns=each, row_names=[str(i) for i in range(classes)])
    width, height = picture.get_size_inches() * picture.dpi
    assert height <= highest
    assert each == 1 or max(artist.get_extent()[1] for artist in picture.axes[0].images) > 0.5 * width


def test_interpolations_mark_both_ends_of_every_row():
    figure = sheets.interpolations(PATHS)
    figure.canvas.draw()
    axes = figure.axes[0]
    frames = [patch.get_window_extent() for patch in axes.patches]
    middles = [np.mean(artist.get_window_extent().get_points(), axis=0) for artist in axes.images]
    assert sorted(i for i, middle in enumerate(middles) for f in frames if f.contains(*middle)) == [0, 5, 6, 11]
    heads = {t.get_text(): t.get_color() for t in texts(figure)}
    for patch in axes.patches:
        left = patch.get_x() < figure.get_size_inches()[0] * figure.dpi / 2
        assert patch.get_edgecolor()[:3] == to_rgb(heads["first reconstruction" if left else "second reconstruction"])
    assert len({p.get_edgecolor() for p in axes.patches}) == 2
    first, *between, last = np.diff(edges(figure)[1])
    assert min(first, last) > max(between), "both ends are set apart"


def test_traversals_set_the_image_apart_that_they_start_from():
    figure = SHEETS["traversals"][0]
    _, columns = edges(figure)
    gaps = np.diff(columns)
    assert gaps[0] > max(gaps[1:]) >= min(gaps[1:]) >= max(gaps[1:]) - 1
    found = {t.get_text().replace("\N{MINUS SIGN}", "-"): cell(figure, t) for t in texts(figure)}
    heads = ["start", *(f"z = {z}" for z in (-3, -2, -1, 1, 2, 3))]
    assert [found[head] for head in heads] == [(-1, column) for column in range(7)]
    assert (found["z4"], found["z1"]) == ((0, -1), (1, -1))


# ---- the manifold --------------------------------------------------------------------------------------------------


def test_manifold_points_are_evenly_spaced_in_probability():
    """The oracle is the normal distribution function by the error function, where the package inverts it."""
    points = sheets.manifold_points()
    assert (points.shape, points.dtype) == ((400, 2), np.float32)
    grid = np.array([0.5 * (1 + math.erf(float(z) / math.sqrt(2))) for z in points.ravel()]).reshape(20, 20, 2)
    even = np.broadcast_to(np.linspace(0.02, 0.98, 20), (20, 20))
    np.testing.assert_allclose(grid[..., 0], even, atol=1e-6)  # z1 grows to the right
    np.testing.assert_allclose(grid[..., 1], even.T[::-1], atol=1e-6)  # z2 grows upwards


def test_manifold_picture_has_the_points_where_its_axes_say():
    """The images carry their own z as grey values, so the picture itself shows where each point is."""
    side, H, W = 4, 3, 5
    z = sheets.manifold_points(side)
    for axis in (0, 1):
        x = np.broadcast_to((z[:, axis] + 3) / 6, (H, W, 1, side * side)).transpose(3, 0, 1, 2).astype(np.float32)
        axes = sheets.manifold_grid(x).axes[-1]
        mosaic = np.asarray(axes.images[0].get_array())
        assert mosaic.shape == (side * H, side * W)
        of_axis = axes.yaxis if axis else axes.xaxis
        places, labels = of_axis.get_ticklocs(), of_axis.get_ticklabels()
        assert len(labels) == side
        for place, label in zip(places, labels, strict=True):
            row, column = (1, int(place)) if axis == 0 else (int(place), 1)
            tile = mosaic[row * H : (row + 1) * H, column * W : (column + 1) * W]
            np.testing.assert_allclose(tile * 6 - 3, float(label.get_text().replace("\N{MINUS SIGN}", "-")), atol=0.006)
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "row 0 of the mosaic is the top of the picture"
    assert [label.partition(",")[0] for label in (axes.get_xlabel(), axes.get_ylabel())] == ["z1", "z2"]


# ---- the latent space ----------------------------------------------------------------------------------------------


def test_the_plane_has_signs_of_its_own_and_needs_no_variance():
    x = np.random.default_rng(5).normal(size=(300, 6))
    for given in (x, -x):  # whichever sign the SVD happens to choose
        axes, _ = charts.plane_of(given)
        assert (axes.max(axis=0) == np.abs(axes).max(axis=0)).all()
    assert not charts.plane_of(np.full((60, 5), 0.1))[1].any(), "equal ones have no variance"
    assert not charts.plane_of(x[:1])[1].any()
    np.testing.assert_array_equal(charts.plane_of(x[:, :1])[0], [[1, 0]])


def test_more_than_two_dimensions_say_how_much_of_the_variance_is_shown():
    values, vectors = np.linalg.eigh(np.cov(latents, rowvar=False))
    first, second = 100 * values[:-3:-1] / values.sum()
    figure = charts.latent_scatter(latents, np.arange(500) % 10, NAMES)
    axes = figure.axes[0]
    assert (f"{first:.1f} %" in axes.get_xlabel(), f"{second:.1f} %" in axes.get_ylabel()) == (True, True)
    heading = " ".join(t.get_text() for t in texts(figure))
    assert f"7 dimensions projected on two principal components: {first + second:.1f} %" in heading
    drawn = np.array(sorted({tuple(np.abs(point)) for points in scattered(axes).values() for point in points}))
    expected = np.array(sorted(map(tuple, np.abs((latents - latents.mean(axis=0)) @ vectors[:, :-3:-1]))))
    np.testing.assert_allclose(drawn, expected, atol=1e-9)


def scattered(axes) -> dict[tuple, set]:
    """The points of a scatter by face colour."""
    found: dict[tuple, set] = {}
    for collection in axes.collections:
        colour = tuple(collection.get_facecolor()[0][:3])
        found.setdefault(colour, set()).update(map(tuple, np.asarray(collection.get_offsets())))
    return found


def test_two_dimensions_are_shown_as_they_are_with_one_colour_and_legend_entry_a_class():
    z, labels = latents[:, :2], np.arange(500) % 10
    figure = charts.latent_scatter(z, labels, NAMES)
    (entries,), axes = figure.legends, figure.axes[0]
    assert [t.get_text() for t in entries.get_texts()] == NAMES
    by_colour = scattered(axes)
    assert len(by_colour) == 10
    for c, handle in enumerate(entries.legend_handles):
        assert by_colour[to_rgb(handle.get_color())] == set(map(tuple, z[labels == c]))
    assert (axes.get_aspect(), axes.get_xlabel(), axes.get_ylabel()) == (1.0, "z1", "z2")
    unlabelled = charts.latent_scatter(z, None, NAMES)
    assert not unlabelled.legends
    assert sum(map(len, scattered(unlabelled.axes[0]).values())) == 500
    only = charts.latent_scatter(z, np.full(500, 7), NAMES)
    assert set(scattered(only.axes[0])) == {to_rgb(charts.CLASS_COLOURS[7])}


def test_one_dimension_is_a_histogram_a_class():
    z, labels = latents[:, :1], np.arange(500) % 3
    figure = charts.latent_scatter(z, labels, ["a", "b", "c"])
    axes, largest = figure.axes[0], 0.0
    steps = [patch.get_data() for patch in axes.patches]
    for c, (values, edges, baseline) in enumerate(steps):
        heights, counts = values - baseline, np.histogram(z[labels == c], edges)[0]
        assert counts.sum() == np.sum(labels == c)
        largest = max(largest, counts.max() / counts.sum())
        np.testing.assert_allclose(heights / heights.sum(), counts / counts.sum(), atol=1e-9)
        assert heights.max() < 1, "a row must not grow into the next"
    assert f"highest {100 * largest:.1f} %" in " ".join(t.get_text() for t in texts(figure))
    names = {t.get_text(): t.get_window_extent().y0 for t in axes.get_yticklabels()}
    assert names["a"] > names["b"] > names["c"]


def test_bars_stand_in_the_order_of_their_divergences_with_the_number_of_their_dimension():
    axes = charts.kl_bars([0.5, 3.0, 0.0, 1.25]).axes[0]
    assert [bar.get_height() for bar in axes.patches] == [3.0, 1.25, 0.5, 0.0]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["z2", "z4", "z1", "z3"]
    assert axes.get_title(loc="left") == "4.75 nats per image in total"
    for kl, top in ((0.0, 0.05), (1e-17, 0.05), (0.01, 0.05), (3.0, 3.0)):  # no divergence is no high bar
        assert charts.kl_bars(np.full(3, kl)).axes[0].get_ylim() == (0, pytest.approx(1.05 * top))


def test_a_frame_of_a_film_shows_each_image_above_its_reconstruction_and_each_class_in_its_colour():
    above, below, points = images(5, 4, 3, seed=1), images(5, 4, 3, seed=2), latents[:60, :2]
    labels = np.arange(60) % 3
    figure = charts.film_frame(above, below, points, labels, NAMES[:3], ((-4, 5), (-6, 7)), "after epoch 3")
    (picture,) = figure.axes[0].images
    mosaic = np.asarray(picture.get_array())
    assert picture.get_clim() == (0, 1)
    for i, (row, column) in enumerate(itertools.product(range(2), range(3))):
        pair = mosaic[row * 11 :, column * 4 : column * 4 + 3]  # one pixel between images, and two more between rows
        if i < 5:
            np.testing.assert_array_equal(pair[:4], above[i, ..., 0])
            np.testing.assert_array_equal(pair[5:9], below[i, ..., 0])
        else:
            assert (pair == 1).all()
    assert figure.get_suptitle() == "after epoch 3"
    axes, found = figure.axes[1], scattered(figure.axes[1])
    assert (axes.get_xlim(), axes.get_ylim()) == ((-4, 5), (-6, 7))
    assert [t.get_text() for t in figure.legends[0].get_texts()] == NAMES[:3]
    for c in range(3):
        assert found[to_rgb(charts.CLASS_COLOURS[c])] == set(map(tuple, points[labels == c]))
    assert not charts.film_frame(above, below, points, None, (), ((-4, 5), (-6, 7)), "").legends
    for Z in (1, 5):
        assert (len(film_of_equal_latents(Z).axes[1].get_yticks()) > 0) == (Z > 1), "one dimension has no second axis"


# ---- losses --------------------------------------------------------------------------------------------------------


def lines(axes) -> dict[str, tuple[list, list]]:
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def test_total_reconstruction_and_kl_have_panels_of_their_own():
    rows, epochs = history(5), [1, 2, 3, 4, 5]
    figure = charts.loss_curves(rows, unit="bits per image")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Total loss", "Reconstruction", "KL divergence"]
    for axes, key in zip(figure.axes, ("loss", "reconstruction", "kl"), strict=True):
        drawn = lines(axes)
        assert drawn["training"] == (epochs, [row[key] for row in rows])
        assert drawn["validation"] == (epochs, [row["val_" + key] for row in rows])
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "bits per image")
        train, validation = axes.lines[:2]
        assert train.get_color() != validation.get_color()
        assert train.get_linestyle() != validation.get_linestyle(), "told apart without colour too"
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["training", "validation"]
    assert charts.loss_curves(rows).axes[0].get_ylabel() == "nats per image"


def test_the_lowest_loss_of_each_curve_is_marked_and_named():
    rows = history(6)
    rows[3]["val_loss"] = 201.23
    axes = charts.loss_curves(rows).axes[0]
    assert axes.get_title(loc="right") == "lowest training 296.3 at epoch 6\nlowest validation 201.2 at epoch 4"
    rings = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines[2:]]
    assert rings == [([6], [pytest.approx(296 + 1 / 3)]), ([4], [201.23])]
    alone = charts.loss_curves(history(6, validation=False)).axes[0]
    assert alone.get_title(loc="right") == "lowest training 296.3 at epoch 6"


def test_a_single_epoch_has_large_markers_with_their_values():
    for axes, key in zip(charts.loss_curves(history(1)).axes, ("loss", "reconstruction", "kl"), strict=True):
        assert axes.get_title(loc="right") == "", "there is nothing to be lower than"
        assert [t.get_text() for t in axes.texts] == [f"{history(1)[0][name]:g}" for name in (key, "val_" + key)]
        assert [t.get_ha() for t in axes.texts] == ["right", "left"], "on either side, so that they never overlap"
        for line, text in zip(axes.lines, axes.texts, strict=True):
            assert line.get_markersize() >= 8
            assert text.get_color() == line.get_color()
            low, high = axes.get_ylim()
            assert low + 0.1 * (high - low) < line.get_ydata()[0] < high - 0.1 * (high - low)


def test_an_autoencoder_has_one_panel_and_without_validation_one_line():
    rows = history(3, kl=False, validation=False)
    figure = charts.loss_curves(rows)
    (axes,) = figure.axes
    assert {"training", "validation"} & set(lines(axes)) == {"training"}
    assert figure.get_suptitle() == "Training loss"
    different = [row | {"loss": row["loss"] + 1} for row in rows]
    assert len(charts.loss_curves(different).axes) == 2, "a reconstruction that is not the whole loss keeps its panel"


def test_a_first_epoch_far_above_the_others_is_cut_off():
    rows = [{"loss": loss, "val_loss": loss - 60} for loss in (570.0, 275.0, 268.0, 262.0, 258.0, *range(257, 252, -1))]
    figure = charts.loss_curves(rows)
    axes = figure.axes[0]
    low, high = axes.get_ylim()
    assert low < 193
    assert 275 < high < 300
    (text,) = axes.texts
    assert text.get_text() == "\N{UPWARDS ARROW} epoch 1: training 570,\nvalidation 510"
    figure.canvas.draw()
    box = text.get_window_extent()
    for line in axes.lines:
        assert not line.get_path().transformed(line.get_transform()).intersects_bbox(box, filled=False)
    rows[0]["val_loss"] = 250.0
    assert charts.loss_curves(rows).axes[0].texts[0].get_text().endswith("epoch 1: training 570"), "the other is seen"
    few = [{"loss": row["loss"]} for row in rows[:9]]
    rows[0]["loss"] = 300.0
    for whole, highest in ((rows, 300), (few, 570)):  # a small step is not cut off, and of few epochs none
        axes = charts.loss_curves(whole).axes[0]
        assert axes.get_ylim()[1] >= highest
        assert not axes.texts


def test_missing_and_non_finite_numbers_leave_gaps():
    rows = [{"loss": 3.0}, {"epoch": 2}, {"loss": None}, {"loss": math.inf}, {"loss": 1.0}]
    x, y = lines(charts.loss_curves(rows).axes[0])["training"]
    assert x == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(y, [3, math.nan, math.nan, math.nan, 1])


def test_the_learning_rate_has_a_panel_only_when_it_changes():
    assert len(charts.loss_curves(history(4)).axes) == 3
    for rates, scale in (([0.1, 0.01, 0.001, 0.0001], "log"), ([2e-3, 1e-3, 2e-4, 1e-8], "linear")):
        rows = [row | {"learning_rate": rate} for row, rate in zip(history(4), rates, strict=True)]
        panel = charts.loss_curves(rows).axes[3]
        assert panel.get_yscale() == scale
        np.testing.assert_allclose(panel.lines[0].get_ydata(), rates)


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: charts.loss_curves([]), "history is empty"),
        (lambda: charts.loss_curves([{"epoch": 1, "accuracy": 0.5}]), "no finite loss.*accuracy"),
        (lambda: sheets.samples(np.full((1, 8, 8, 1), np.nan)), "NaN or infinite"),
        (lambda: sheets.samples(np.zeros((3000, 8, 8, 1), np.uint8), columns=1), "use fewer images"),
        (lambda: charts.latent_scatter(latents[:, :1], np.arange(500)), "x 45240 pixels; use fewer images or classes"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- files and windows ---------------------------------------------------------------------------------------------


def test_save_makes_folders_and_replaces_and_is_repeatable(tmp_path):
    path = tmp_path / "a" / "b" / "figure.png"
    assert canvas.save(sheets.samples(images(2)), str(path)) == path
    first = path.read_bytes()
    assert first.startswith(b"\x89PNG\r\n\x1a\n")
    canvas.save(sheets.samples(images(3)), path)
    assert path.read_bytes() != first
    canvas.save(sheets.samples(images(2)), path)
    assert path.read_bytes() == first
    with pytest.raises(ValueError, match=r"must end in \.png"):
        canvas.save(sheets.samples(images(1)), path.with_suffix(".jpg"))
    assert os.listdir(path.parent) == ["figure.png"]


@pytest.mark.parametrize("backend", ["agg", "tkagg"])
def test_show_needs_a_display_and_the_others_never_touch_pyplot(backend, tmp_path):
    """In a fresh process, where pyplot has not chosen a window system yet and there is no display."""
    if backend != "agg" and sys.platform != "linux":
        pytest.skip("this system may well have a display")
    code = """if True:
        import sys
        from autoencoders.pictures import canvas, charts
        figure = charts.loss_curves([{'loss': 2.0}, {'loss': 1.0}])
        canvas.save(figure, sys.argv[1])
        assert 'matplotlib.pyplot' not in sys.modules
        try:
            canvas.show([figure])
        except RuntimeError as error:
            print(error)
    """
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    environment |= {"MPLBACKEND": backend, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "figure.png")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("show: ")
    assert "save the figures to files instead" in done.stdout


def test_show_opens_one_window_a_figure_and_closes_them(monkeypatch):
    """With a window system that is played."""
    from matplotlib import pyplot

    def windows(block: bool) -> None:
        for number in pyplot.get_fignums():
            window = pyplot.figure(number).canvas
            window.draw()
            seen.append((block, np.asarray(window.buffer_rgba()).mean() < 254))

    seen: list[tuple[bool, bool]] = []
    pyplot.switch_backend("agg")
    monkeypatch.setattr(pyplot, "get_backend", lambda: "played")
    monkeypatch.setattr(pyplot, "switch_backend", lambda _: None)
    monkeypatch.setattr(pyplot, "show", windows)
    canvas.show(sheets.samples(np.zeros((n, 4, 4, 1))) for n in (1, 2))
    assert seen == [(True, True)] * 2
    assert pyplot.get_fignums() == []
