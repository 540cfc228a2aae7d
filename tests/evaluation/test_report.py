"""The pictures of a report, its close-ups, and the film of a training."""

import dataclasses
import io
import json
from itertools import pairwise
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

import minigrad
from autoencoders import VAE, Autoencoder, TrainingOptions
from autoencoders.data import Dataset
from autoencoders.evaluation.metrics import nearest
from autoencoders.evaluation.mixture import Mixture
from autoencoders.pictures import canvas, charts, film, gallery, sheets
from autoencoders.pictures.gallery import draw
from autoencoders.runs import report, resume_run, run as run_module, start_run
from autoencoders.runs.replace import CLOSE_UPS, PICTURES, own_files
from minigrad.random import generator
from minigrad.serialize import DataError, load_state, save_state

NAMES = ("<b>bags</b>", "A & B", "$x_1$")


@pytest.fixture(autouse=True)
def _backend(restored_backends: None, monkeypatch: pytest.MonkeyPatch) -> None:
    minigrad.use(kernels="numpy", threads=1)
    monkeypatch.setattr(run_module, "standardize", lambda *_, **__: 0.0)  # the model of a run is that of its last frame
    monkeypatch.setattr(run_module, "draw", lambda *_, **__: {})  # the pictures of a run are not those of this file


def dataset(count: int = 24, labelled: bool = True, name: str = "toy") -> Dataset:
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (count + 30, 8, 8, 1), dtype=np.uint8)
    labels = np.arange(count + 30) % 3 if labelled else None
    halves = [None, None] if labels is None else [labels[:count], labels[count:]]
    return Dataset(name, images[:count], halves[0], images[count:], halves[1], NAMES if labelled else (), "made up")


def model(kind: type = VAE, Z: int = 3, **options: int) -> Autoencoder:
    made = kind((8, 8, 1), (4,), (3,), (2,), Z, **options)
    made.compile(1e-3)
    return made


def trained(
    folder: Path, data: Dataset, epochs: int = 2, kind: type = VAE, Z: int = 3, denoise: float = 0.0, **named: int
) -> Autoencoder:
    made = model(kind, Z, **named)
    options = TrainingOptions(batch_size=8, epochs=epochs, denoise=denoise)
    start_run(made, data, options, folder, learning_rate=1e-3, progress=False).execute(lambda _: None)
    return made


# ---- the film ----


def frames(folder: Path) -> list[tuple[dict[str, np.ndarray], dict]]:
    return [load_state(path)[:2] for path in sorted(folder.glob(film.FRAMES))]


def test_a_run_keeps_a_frame_before_the_first_epoch_and_after_each_and_trains_as_without(tmp_path: Path) -> None:
    data = dataset()
    filmed = trained(tmp_path / "run", data)
    assert [record["epoch"] for _, record in frames(tmp_path / "run")] == [0, 1, 2]
    shown, _ = report.film_images(data, slice(None))
    assert sorted(np.bincount(data.train_labels[shown])) == [3, 3, 4], "of all classes"
    kept = {*(tmp_path / "run").glob(film.FRAMES), tmp_path / "run" / film.PROGRESS_FILE}
    assert kept <= set(own_files(tmp_path / "run")), "--overwrite takes them along"
    plain = model()
    plain.train(data.train_images, batch_size=8, num_epochs=2, seed=0, progress=False)
    for name, value in plain.network.state_dict().items():
        np.testing.assert_array_equal(filmed.network.state_dict()[name], value, err_msg=name)


@pytest.mark.parametrize(
    ("kind", "options", "bands"), [(VAE, {}, 3), (VAE, {"classes": 3}, 3), (Autoencoder, {}, 2)], ids=str
)
def test_a_picture_shows_after_every_epoch_what_is_learnt(
    kind: type, options: dict, bands: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(film, "progress_sheet", sheet := mock.Mock(side_effect=film.progress_sheet))
    data = dataset()
    made = trained(tmp_path / "run", data, kind=kind, **options)
    drawn = [call.args[0] for call in sheet.call_args_list]
    assert [len(sheet) for sheet in drawn] == [bands] * 3
    assert [next(x for x in sheet if "reconstructions" in x) for sheet in drawn] == [
        f"their reconstructions {when}" for when in ("before training", "after epoch 1 of 2", "after epoch 2 of 2")
    ]
    first, *_, last = (list(sheet.values()) for sheet in drawn)
    np.testing.assert_array_equal(first[0], last[0])
    assert all(abs(x - y).max() > 1e-6 for x, y in zip(first[1:], last[1:], strict=True))
    shown = report.film_images(data, slice(None))[0]
    np.testing.assert_array_equal(
        last[1], made.reconstruct(data.train_images[shown], labels=data.train_labels[shown])[0]
    )
    if bands == 3:
        z, classes = generator(0, "progress").standard_normal((20, 3)), np.arange(20) % 3
        np.testing.assert_array_equal(last[2], made.decode(z, labels=classes))
    with Image.open(tmp_path / "run" / film.PROGRESS_FILE) as picture:
        assert np.asarray(picture.convert("L")).std() > 1


@pytest.mark.parametrize("shape", [(28, 28, 1), (300, 5, 3), (1, 400, 3), (90, 90, 4)])
def test_the_picture_of_progress_takes_images_of_any_size(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    content = film.progress_sheet({"a": rng.random((10, *shape)), "b": rng.random((12, *shape))})
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.mode == ("RGB" if shape[2] == 3 else "L")
        assert max(picture.size) < 1500


@pytest.fixture
def spied(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[tuple, dict]]]:
    """The arguments of every call of the functions that draw, by their names."""
    seen = {}
    for where, name in ((charts, "film_frame"), (sheets, "reconstructions")):
        monkeypatch.setattr(where, name, spy := mock.Mock(side_effect=getattr(where, name)))
        seen[name] = spy.call_args_list
    return seen


def others_of(data: Dataset) -> Dataset:
    """Data of the same shapes and labels, but other images."""
    changed = {name: 255 - getattr(data, name) for name in ("train_images", "test_images")}
    return dataclasses.replace(data, **changed)


def rows_in(some: np.ndarray, everything: np.ndarray) -> list[int]:
    """Where each row is among others."""
    return [int(np.flatnonzero((everything == row).reshape(len(everything), -1).all(axis=1))[0]) for row in some]


@pytest.mark.parametrize(("limit", "classes"), [(None, 0), (12, 3)])
def test_a_film_shows_images_that_the_run_was_trained_on_each_with_its_own_label(
    limit: int | None, classes: int, tmp_path: Path, spied: dict
) -> None:
    data, folder, made = dataset(), tmp_path / "run", model(Z=2, classes=classes)
    options = TrainingOptions(batch_size=8, epochs=2)
    started = start_run(made, data, options, folder, learning_rate=1e-3, limit_train=limit, progress=False)
    started.execute(lambda _: None)
    assert report.draw_film(folder, data)
    every = made.encode(data.train_images, labels=data.train_labels)
    assert [a[6] for a, _ in spied["film_frame"]] == ["before training", "after epoch 1", "after epoch 2"]
    first, *_, (originals, reconstructed, points, labels, names, limits, _) = (a for a, _ in spied["film_frame"])
    for given, _ in spied["film_frame"]:
        np.testing.assert_array_equal(given[0], originals)
        assert given[5] == limits
    assert not np.array_equal(points, first[2]), "every frame has its own"
    shown = rows_in(originals, data.train_images)
    assert len(set(shown)) == 10
    assert set(shown) <= set(range(limit or 24))
    assert names == NAMES
    np.testing.assert_array_equal(
        reconstructed, np.round(255 * made.reconstruct(originals, labels=data.train_labels[shown])[0])
    )
    scattered = [int(np.abs(every - point).sum(axis=1).argmin()) for point in points]
    np.testing.assert_allclose(points, every[scattered], atol=1e-6)
    assert len(set(scattered)) == len(points) == (limit or 24)
    assert set(scattered) <= set(range(limit or 24))
    np.testing.assert_array_equal(labels, data.train_labels[scattered])
    assert report.draw_film(folder, others_of(data)) == b"", "the run knows no others"
    assert report.draw_film(tmp_path, data) == b"", "a folder without frames"
    relabelled = dataclasses.replace(data, train_labels=data.train_labels[::-1].copy())
    assert report.draw_film(folder, relabelled) == b""


@pytest.mark.parametrize(("film_bytes", "encoded"), [(1 << 28, 1000), (64 * 30 + 63, 30), (64, 10)])
def test_ten_images_are_shown_and_a_thousand_encoded_or_fewer_if_they_are_large(
    film_bytes: int, encoded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "FILM_BYTES", film_bytes)
    shown, scattered = (set(rows.tolist()) for rows in report.film_images(dataset(4000), slice(None)))
    assert (len(shown), len(scattered)) == (10, encoded)
    assert not shown <= scattered, "drawn for themselves"


@pytest.mark.parametrize("labelled", [True, False])
def test_the_latent_space_of_few_test_images_shows_training_images(
    labelled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(charts, "latent_scatter", drawing := mock.Mock(side_effect=charts.latent_scatter))
    monkeypatch.setattr(gallery, "SCATTERED", 15)
    data, made = dataset(labelled=labelled), model()
    for few, expected in ((200, 45), (30, 30)):
        monkeypatch.setattr(gallery, "FEW", few)
        figure = gallery.draw(made, data)["latent_space"]
        latents, labels, _ = drawing.call_args.args
        shown = " ".join(text.get_text() for text in figure.findobj(Text))
        assert f"of {expected} {'training and test ' if few > 30 else ''}images" in shown
        np.testing.assert_array_equal(latents[-30:], made.encode(data.test_images))
        assert len(latents) == expected
        if labelled:
            every = np.concatenate([data.train_images, data.test_images])
            codes, of_every = made.encode(every), np.concatenate([data.train_labels, data.test_labels])
            nearest = [int(np.abs(codes - point).sum(axis=1).argmin()) for point in latents]
            np.testing.assert_array_equal(labels, of_every[nearest])
            assert np.bincount(labels[: expected - 30], minlength=3).tolist() == 3 * [(expected - 30) // 3]
        else:
            assert labels is None


def test_the_plane_of_a_film_is_that_of_its_end_without_what_lies_far_out() -> None:
    z = np.random.default_rng(0).uniform(0, 1, (1000, 2)).astype(np.float32)
    far = z.copy()
    far[:4] = 1000
    axes, limits = film.plane_of_film([500 * z, far, far])
    np.testing.assert_array_equal(axes, np.eye(2))
    for low, high in limits:  # with 8 % of room
        assert -0.12 < low < -0.05
        assert 1.05 < high < 1.12
    first, last = (z @ np.diag(scale) for scale in ([9, 1], [1, 6]))
    three = [np.pad(points, ((0, 0), (1, 0))) for points in (first, last)]
    assert np.argmax(np.abs(film.plane_of_film(three)[0]), axis=0).tolist() == [2, 1], "the directions at the end"


def test_a_film_has_at_most_sixty_frames_from_the_first_to_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "film").mkdir()
    arrays = {"reconstructed": np.zeros((2, 4, 4, 1), np.uint8), "latents": np.ones((3, 2), np.float32)}
    for epoch in range(150):
        path = tmp_path / film.FRAMES.replace("*", f"{epoch:05d}")
        save_state(path, arrays | {"latents": arrays["latents"] * epoch}, {"kind": "frame", "epoch": epoch})
    seen = []

    def drawn(originals, reconstructed, points, labels, names, limits, title):
        seen.append((title, int(points[0, 0])))
        assert limits[0][0] < 10 < 140 < limits[0][1], "one plane for all but what training has left behind"
        return sheets.samples(np.full((1, 4, 4, 1), len(seen) / 60))

    monkeypatch.setattr(charts, "film_frame", drawn)
    monkeypatch.setattr(canvas, "pixels", lambda _: np.full((8, 8, 3), 4 * len(seen), np.uint8))
    content = film.gif(tmp_path, np.zeros((2, 4, 4, 1), np.uint8))
    epochs = [epoch for _, epoch in seen]
    assert len(epochs) == 60
    assert epochs == sorted(set(epochs))
    assert (epochs[0], epochs[-1], max(np.diff(epochs))) == (0, 149, 3)
    assert [title for title, _ in seen] == ["before training", *(f"after epoch {epoch}" for epoch in epochs[1:])]
    with Image.open(io.BytesIO(content)) as gif:
        assert (gif.n_frames, gif.info["loop"]) == (60, 0)


def test_interpolations_go_from_one_class_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    data, made = dataset(), model(classes=3)
    monkeypatch.setattr(sheets, "interpolations", drawing := mock.Mock())
    draw(made, data, seed=4)
    every = made.reconstruct(data.test_images, labels=data.test_labels)[0]
    (rows,) = drawing.call_args.args
    away = np.array([[np.abs(every - end).max(axis=(1, 2, 3)) for end in (row[0], row[-1])] for row in rows])
    assert away.min(axis=2).max() < 1e-6, "each end is an image with its own class"
    ends = away.argmin(axis=2)
    assert len(set(ends.ravel().tolist())) == 16
    assert (data.test_labels[ends[:, 0]] != data.test_labels[ends[:, 1]]).any()


def test_a_resumed_run_goes_on_with_its_film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset()
    folder = tmp_path / "run"
    trained(folder, data, epochs=1)
    monkeypatch.setattr("autoencoders.runs.start.load_dataset", lambda *args, **kwargs: data)
    before = next(iter(sorted(folder.glob(film.FRAMES)))).read_bytes()
    resume_run(folder, epochs=3, progress=False, tell=lambda _: None).execute(lambda _: None)
    assert [record["epoch"] for _, record in frames(folder)] == [0, 1, 2, 3]
    assert next(iter(sorted(folder.glob(film.FRAMES)))).read_bytes() == before, "the first frame is of the untrained"


@pytest.mark.parametrize(("kind", "Z", "labelled"), [(VAE, 2, True), (Autoencoder, 5, True), (VAE, 1, False)])
def test_the_film_has_a_picture_a_frame(kind: type, Z: int, labelled: bool, tmp_path: Path) -> None:
    data = dataset(labelled=labelled)
    trained(tmp_path / "run", data, kind=kind, Z=Z)
    pictures, times = [], []
    with Image.open(io.BytesIO(report.draw_film(tmp_path / "run", data))) as gif:
        assert (gif.format, gif.n_frames) == ("GIF", 3)
        for i in range(3):
            gif.seek(i)
            pictures.append(np.asarray(gif.convert("RGB")).astype(int))
            times.append(gif.info["duration"])
    assert times == [400, 400, 3000]
    assert all(abs(a - b).max() > 50 for a, b in pairwise(pictures)), "they differ"
    assert (pictures[0][0, 0] == 255).all(), "paper is white"
    tinted = np.ptp(pictures[0][:, :430], axis=2)  # the half of grey images and black text
    assert tinted.max() <= 4, "grey is grey"
    for colour in charts.CLASS_COLOURS[: 3 if labelled else 0]:
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert abs(pictures[-1] - wanted).max(axis=2).min() <= 4, f"{colour} is among them"


def test_a_frame_that_cannot_be_drawn_is_named(tmp_path: Path) -> None:
    trained(tmp_path, dataset())
    with pytest.raises(DataError, match=r"epoch-00000.*expected reconstructed \(10, 8, 8, 1\) and 5 latents"):
        film.gif(tmp_path, dataset().train_images[:10], np.zeros(5, int), NAMES)
    path = tmp_path / "film/epoch-00001.safetensors"
    whole = load_state(path)[0]
    for record, changed in (
        ({}, {}),
        ({"epoch": "1"}, {}),
        ({"epoch": 1}, {"latents": np.full((24, 3), np.nan, np.float32)}),
        ({"epoch": 1}, {"latents": np.zeros(24, np.float32)}),
        ({"epoch": 1}, {"latents": np.zeros((24, 2), np.float32)}),
        ({"epoch": 1}, {"latents": np.float32(0)}),
        ({"epoch": 1}, {"reconstructed": np.zeros((10, 8, 8, 1), np.float32)}),
    ):
        save_state(path, whole | changed, {"kind": "frame", **record})
        with pytest.raises(DataError, match="epoch-00001"):
            report.draw_film(tmp_path, dataset())
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match="epoch-00001"):
        report.draw_film(tmp_path, dataset())


# ---- close-ups ----


def test_worst_and_best_are_those(spied: dict) -> None:
    data, made = dataset(), model()
    assert set(gallery.close_ups(made, data, None)) == {"worst", "best", "neighbours"}
    shown = {options["title"].split()[-1]: (a, options) for a, options in spied["reconstructions"]}
    errors = [float(np.mean((made.reconstruct(x[None])[0] - x / 255) ** 2)) for x in data.test_images]
    order = sorted(range(30), key=errors.__getitem__)
    for name, chosen in (("worst", order[::-1][:15]), ("best", order[:15])):  # none is in both
        (originals, reconstructed, labels, names), options = shown[name]
        np.testing.assert_array_equal(originals, data.test_images[chosen])
        np.testing.assert_allclose(reconstructed, made.reconstruct(data.test_images[chosen])[0], atol=1e-6)
        np.testing.assert_array_equal(labels, data.test_labels[chosen])
        assert names == NAMES
        assert options == {"title": f"The 15 test images that are reconstructed {name}"}


@pytest.mark.parametrize(
    ("kind", "classes", "source"),
    [(VAE, 0, "prior"), (VAE, 3, "prior"), (VAE, 0, "mixture"), (Autoencoder, 0, "mixture")],
)
def test_the_neighbours_of_samples_are_training_images(kind: type, classes: int, source: str, spied: dict) -> None:
    mixture = Mixture(np.ones(1), np.zeros((1, 3)), np.eye(3)[None]) if source == "mixture" else None
    made, data = model(kind, classes=classes) if classes else model(kind), dataset()
    rows = np.arange(1, len(data.train_images), 3)  # those that the model was trained on
    gallery.close_ups(made, data, None, 5, mixture, rows)
    (new, found, labels, names), options = next(x for x in spied["reconstructions"] if "rows_are" in x[1])
    numbers = [i % 3 for i in range(10)] if classes else None
    expected = made.decode(mixture.sample(10, 5)) if mixture else made.sample(10, 5, labels=numbers)
    np.testing.assert_array_equal(new, expected)
    assert (labels is None) if numbers is None else (list(labels), names) == (numbers, made.class_names)
    for image, neighbour in zip(new, found, strict=True):
        away = [float(np.mean((image.astype(float) - x / 255) ** 2)) for x in data.train_images[rows]]
        np.testing.assert_array_equal(neighbour, data.train_images[rows][int(np.argmin(away))])
    assert options == {
        "title": f"Samples from the {source}, and the training images nearest to them",
        "error_name": "mean squared difference per pixel",
        "rows_are": ("sample", "nearest image"),
    }


def test_all_pictures_are_there_and_of_one_seed(tmp_path: Path, spied: dict) -> None:
    data = dataset()
    made = trained(tmp_path / "run", data, Z=2, denoise=0.2)
    found = report.all_pictures(made, data, tmp_path / "run", [1.0, 2.0], seed=7)
    assert set(found) == {*PICTURES, *CLOSE_UPS} - {"image"}
    for name, step, count in (("samples", 1, 48), ("neighbours", 2, 10)):
        for image, new in zip(found[name].axes[0].images[::step], made.sample(count, 7), strict=True):
            np.testing.assert_array_equal(image.get_array(), new[..., 0])
    clean = {}
    for seed in (7, 8):
        spied["reconstructions"].clear()
        gallery.denoised(made, data, 0.2, seed)
        ((noisy, _, labels, *_), _), *_ = spied["reconstructions"]
        clean[seed] = [int(np.abs(data.test_images / 255 - x).mean(axis=(1, 2, 3)).argmin()) for x in noisy]
        assert labels.tolist() == data.test_labels[clean[seed]].tolist()
    assert set(clean[7]) != set(clean[8])


def test_a_denoising_run_shows_noise_and_what_is_left_of_it(spied: dict, tmp_path: Path) -> None:
    data = dataset()
    made = trained(tmp_path / "plain", data)
    assert "denoised" not in report.all_pictures(made, data, tmp_path / "plain", None)
    made = trained(tmp_path / "run", data, denoise=0.2)
    assert "denoised" in report.all_pictures(made, data, tmp_path / "run", None)
    shown = spied["reconstructions"]
    (noisy, restored, _, _, errors), options = next(x for x in shown if x[1].get("rows_are") == ("noisy", "denoised"))
    assert noisy.shape == (20, 8, 8, 1)
    assert (noisy.min(), noisy.max()) == (0, 1)
    np.testing.assert_array_equal(restored, made.reconstruct(noisy.astype(np.float32))[0])
    clean = np.array([min(data.test_images / 255, key=lambda x: np.abs(y - x).mean()) for y in noisy])
    assert 0.1 < np.std(noisy - clean) < 0.2  # the noise is cut where it leaves [0, 1]
    np.testing.assert_allclose(errors, ((restored - clean) ** 2).mean(axis=(1, 2, 3)), rtol=1e-5)
    assert f"{errors.mean():.4f} (noisy {((noisy - clean) ** 2).mean():.4f})" in options["error_name"]


ROWS = [{"epoch": 1}, {"loss": "x"}, [1], 5]  # no losses; and losses and epochs that no axis can span
ROWS += [{"epoch": epoch, "loss": loss} for epoch, loss in ((1e300, 1), (1, 1e99), (float("nan"), 1))]
HISTORIES = ["", "{", "[" * 100_000, *map(json.dumps, ROWS)]
HISTORIES += ['{"epoch": 1, "loss": 1e308}\n{"epoch": 2, "loss": -1e308}', '{"epoch": 1e308}\n{"epoch": -1e308}']


@pytest.mark.parametrize("content", [b"\xff\xfe", *map(str.encode, HISTORIES)])
def test_a_history_that_cannot_be_drawn_is_named(content: bytes, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(report, "draw", lambda *_, **__: {})
    monkeypatch.setattr(report, "close_ups", lambda *_: {})
    (tmp_path / "history.jsonl").write_bytes(content)
    told: list[str] = []
    assert "loss_curves" not in report.all_pictures(model(), dataset(), tmp_path, None, tell=told.append)
    (said,) = told
    assert said.startswith(f"no loss curves: {tmp_path / 'history.jsonl'}: no losses that can be drawn")


def test_a_plain_autoencoder_with_a_mixture_has_samples_and_their_neighbours() -> None:
    mixture = Mixture(np.ones(1), np.zeros((1, 3)), np.eye(3)[None])
    made, data = model(Autoencoder), dataset()
    assert not {"samples", "neighbours"} & set(report.all_pictures(made, data, Path(), None))
    found = report.all_pictures(made, data, Path(), None, 7, mixture)
    assert {"samples", "neighbours"} <= set(found)
    for image, new in zip(found["samples"].axes[0].images, made.decode(mixture.sample(48, 7)), strict=True):
        np.testing.assert_array_equal(image.get_array(), new[..., 0])


def test_a_traversal_changes_one_dimension(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the eight that carry most, each, with the class of the image that it starts from."""
    made, data = model(Z=10, classes=3), dataset()
    monkeypatch.setattr(made, "decode", decode := mock.Mock(side_effect=made.decode))
    pictures = gallery.close_ups(made, data, [0.1, 3.0, 2.0, *range(10, 17)], seed=2)
    assert set(pictures) == {"worst", "best", "kl_per_dimension", "traversals", "neighbours"}
    points, labels = next((z, named["labels"]) for (z,), named in decode.call_args_list if len(z) == 8 * 9)
    for row, dimension in zip(
        points.reshape(8, 9, 10), (9, 8, 7, 6, 5, 4, 3, 1), strict=True
    ):  # by their KL divergence
        np.testing.assert_allclose(row[:, dimension], np.linspace(-3, 3, 9), atol=1e-6)
        others = np.delete(row, dimension, axis=1)
        assert (others == others[0]).all()
    drawn = np.asarray(pictures["traversals"].axes[0].images[0].get_array())
    (start,) = (i for i, image in enumerate(data.test_images) if np.allclose(image[..., 0] / 255, drawn))
    image, label = data.test_images[start : start + 1], data.test_labels[start : start + 1]
    assert set(labels.tolist()) == set(label.tolist())
    np.testing.assert_allclose(others[0], np.delete(made.encode(image, labels=label)[0], dimension), atol=1e-5)
    told = [t.get_text() for t in pictures["traversals"].findobj(Text)]
    assert any("(start)" in text for text in told)
    nats = [f"z{i + 4}, {i + 10:.2f} nats" for i in range(6, -1, -1)]
    assert [text for text in told if "nats" in text] == [*nats, "z2, 3.00 nats"]


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_nearest_images_are_the_nearest(batch: int) -> None:
    rng = np.random.default_rng(0)
    images, others = rng.random((5, 4, 4, 1), np.float32), rng.integers(0, 256, (30, 4, 4, 1), dtype=np.uint8)
    found, distances = nearest(images, others, batch=batch)
    for i, image in enumerate(images):
        d = [np.sum((image.astype(float) - other / 255) ** 2) for other in others]
        assert found[i] == np.argmin(d)
        assert distances[i] ** 2 == pytest.approx(min(d), rel=1e-5)
    found, distances = nearest(others, others, batch=batch)
    assert found.tolist() == list(range(30))
    assert (distances**2 / 16).max() < 1e-12  # per pixel
