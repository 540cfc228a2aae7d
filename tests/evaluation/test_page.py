"""The page of a model: what it says, that nothing from a model becomes markup, and what it leaves out."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import minigrad
from autoencoders import VAE, Autoencoder
from autoencoders.data import Dataset
from autoencoders.evaluation.diagnosis import diagnose, verdict
from autoencoders.evaluation.metrics import METRICS, measure
from autoencoders.page import live, page, write_page
from autoencoders.page.curves import Curve, Curves, chart
from autoencoders.page.markup import join, tag
from autoencoders.page.numbers import ERRORS, GROUPS, groups, headlines, rounded
from autoencoders.runs import report
from minigrad.serialize import DataError

NAMES = ("<b>bags</b>", "A & B", "</script>")


@pytest.fixture(autouse=True)
def _backend(restored_backends: None) -> None:
    minigrad.use(kernels="numpy", threads=1)


def dataset(shape: tuple[int, int, int] = (8, 8, 1), labelled: bool = True, count: int = 24) -> Dataset:
    images = np.random.default_rng(1).integers(0, 256, (count + 30, *shape), dtype=np.uint8)
    labels = np.arange(count + 30) % 3 if labelled else None
    halves = [None, None] if labels is None else [labels[:count], labels[count:]]
    return Dataset("<i>", images[:count], halves[0], images[count:], halves[1], NAMES if labelled else (), "made up")


def model(kind: type = VAE, shape: tuple[int, int, int] = (8, 8, 1), Z: int = 2, **options: object) -> Autoencoder:
    return kind(shape, (4, 6), (3, 3), (2, 1), Z, **options)


class Page(HTMLParser):
    """The tags of a page in order, with their attributes, and its text without scripts and style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.inside = "", ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside not in ("script", "style"):
            self.text += data

    def all(self, attribute: str) -> list[str]:
        return [attrs[attribute] or "" for _, attrs in self.found if attribute in attrs]


def measured_of(made: Autoencoder, data: Dataset) -> dict:
    found, notes = measure(made, data, iw_samples=0, progress=False)
    found |= {"model": made.config, "test_images": len(data.test_images), "training": {}}
    found |= {"diagnosis": diagnose(found), "verdict": verdict(found), "notes": notes}
    return found | {"command": "python evaluate.py <x> --out '/home/me/my runs/a'", "environment": {"numpy": "9.9"}}


def written(folder: Path, made: Autoencoder, data: Dataset, **options: object) -> str:
    write_page(folder / "page.html", model=made, dataset=data, **{"record": {}, **options})
    return (folder / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("kind", "options", "labelled"),
    [(VAE, {}, True), (VAE, {"Z": 5, "classes": 3}, True), (VAE, {"Z": 1}, False), (Autoencoder, {"Z": 3}, True)],
)
def test_the_page_is_one_file_that_says_everything(kind, options, labelled, tmp_path):
    data, made = dataset(labelled=labelled), model(kind, **options)
    runs = [Curves("", [{"loss": 9.5 - i, "reconstruction": 8.0 - i, "kl": 1.5} for i in range(3)], made.unit, {})]
    record = {"commands": ["/usr/me/python train.py --out 'a&b' \ud800"], "options": {"epochs": 7}}
    text = written(tmp_path, made, data, measured=measured_of(made, data), record=record, runs=runs)
    found = Page(text)
    addresses = [x for name in ("src", "href", "action", "srcset") for x in found.all(name)]
    assert {x for x in addresses if x.startswith("#")} <= {f"#{name}" for name in found.all("id")}
    assert all(x.startswith(("#", "data:image/png;base64,")) for x in addresses), "nothing is loaded"
    assert not re.search("https?:|url\\(|@import", re.sub(r"base64,[^\"]*", "", text))
    assert [tag for tag, _ in found.found].count("script") == 3, "no name becomes markup"
    policy = next(x["content"] for _, x in found.found if "http-equiv" in x)
    assert "default-src 'none'" in policy
    assert "'unsafe-inline'; script-src 'sha256-" in policy
    for said in (
        made.title, "made up", "24 training and 30 test images", "'a&b'", "\\ud800", "evaluate.py <x>", '"epochs": 7',
        '"latent_space_dim"', "per pixel, of the reconstruction", "9.9", "Good: ",
    ):  # fmt: skip
        assert said in found.text, said
    assert "/home/me" not in text
    assert "/usr/me" not in text
    assert ("</script>" in found.text) == labelled, "a class may be called so"


def test_a_page_can_be_read_with_a_screen_reader_and_a_keyboard(tmp_path):
    data, made = dataset(), model()
    found = Page(written(tmp_path, made, data, measured=measured_of(made, data)))
    headings = [tag for tag, _ in found.found if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == "h1"
    assert set(headings[1:]) == {"h2"}
    assert all("alt" in attrs for tag, attrs in found.found if tag == "img")
    assert all(attrs.get("aria-label") for _, attrs in found.found if attrs.get("role") in ("img", "application"))
    assert len(found.all("id")) == len(set(found.all("id")))
    titles = re.findall(r"<h[12]>(.*?)</h[12]>", written(tmp_path, made, data))
    assert len(titles) == len(set(titles))


def test_a_page_says_what_was_trained(tmp_path):
    record = {"options": {"denoise": 0.2}, "training": {"epochs": 3, "steps": 60}}
    text = Page(written(tmp_path, model(), dataset(), record=record, trained=np.arange(20))).text
    assert "trained on 20 of them; 3 epochs (60 steps)" in text
    assert "noise of standard deviation 0.2" in text
    record = {"training": {"epochs": 1, "steps": 2}}
    assert "; 1 epoch (2 steps)" in Page(written(tmp_path, model(), dataset(), record=record)).text
    text = Page(written(tmp_path, model(shape=(130, 65, 3)), dataset((130, 65, 3)))).text
    assert "pictures at 1/3 of their size" in text
    assert not re.search("trained on|noise|epochs|Likelihood|All numbers", text)


def test_every_metric_is_in_one_group():
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted([*grouped, *ERRORS.values()]) == sorted(METRICS)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (274.2031, 2.66, "274.2 ± 2.7"), (274.2031, 5.1, "274 ± 5"), (0.033969, 0.00041, "0.0340 ± 0.0004"),
        (0.033969, 0.00011, "0.03397 ± 0.00011"), (1737.6, None, "1738"), (12.345, None, "12.3"), (93.0, 0.0, "93"),
        (5.0, float("inf"), "5"), (-1.5, 0.25, "-1.50 ± 0.25"), (1234.5, 31.0, "1234 ± 31"),
    ],
)  # fmt: skip
def test_a_number_has_the_digits_that_its_error_leaves(value, error, text):
    assert rounded(value, error) == text


def test_the_top_has_four_numbers_with_error_and_comparison():
    metrics = {
        **dict.fromkeys(METRICS), "mse": 0.0274, "mse_se": 0.0003, "pca_mse": 0.0461, "mean_mse": 0.0867,
        "neg_elbo": 261.1, "neg_elbo_image_se": 0.9, "train_neg_elbo": 257.7, "fd": 33.0, "fd_floor": 0.4, "kl": 6.2,
        "knn_accuracy": 0.71, "test_images": 10_000, "active_units": 2, "psnr": 15.6, "train_mse": 0.027,
        "model": model().config,
    }  # fmt: skip
    found = headlines(metrics, 0.1)
    assert [(x.value, x.comparison) for x in found] == [
        ("0.0274 ± 0.0003", "PCA 0.046, mean image 0.087"),
        ("261.1 ± 0.9", "training images 257.7"),
        ("33", "training images 0.4"),
        ("71.0 ± 0.5", "guessing 10 %"),
    ]
    plain = {name: x for name, x in metrics.items() if not name.startswith(("neg", "fd", "knn", "active"))}
    assert len(headlines(plain, None)) == 3
    assert len(headlines({"model": {}, **dict.fromkeys(METRICS)}, None)) == 0


def test_numbers_that_are_compared_have_the_same_digits():
    metrics = {**dict.fromkeys(METRICS), "model": {}, "mse": 0.03396, "mse_se": 0.0006, "pca_mse": 0.04637}
    metrics |= {"neg_elbo": 274.203, "neg_elbo_image_se": 2.66, "train_neg_elbo": 273.16, "kl": 5.2877}
    found = {name: text for rows in groups(metrics).values() for name, text, _ in rows}
    assert found == {
        "mse": "0.0340 ± 0.0006",
        "pca_mse": "0.0464",
        "neg_elbo": "274.2 ± 2.7",
        "train_neg_elbo": "273.2",
        "kl": "5.3",
    }


@pytest.mark.parametrize(
    ("likelihood", "images", "left"),
    [
        ("bernoulli", 200, {"mse", "bce", "data_entropy", "fd", "fd_floor"}),
        ("bernoulli", 199, {"mse", "bce", "data_entropy"}),
        ("gaussian", 500, {"mse", "fd", "fd_floor"}),
    ],
)  # fmt: skip
def test_what_means_nothing_for_the_model_or_the_images_is_left_out(likelihood, images, left):
    metrics = {**dict.fromkeys(METRICS), "bce": 1.0, "data_entropy": 0.5, "mse": 0.1, "fd": 3.0, "fd_floor": 2.0}
    metrics |= {"model": {"likelihood": likelihood, "latent_space_dim": 2}, "test_images": images}
    assert {name for rows in groups(metrics).values() for name, *_ in rows} == left
    assert any("FD" in x.unit for x in headlines(metrics, None)) == ("fd" in left)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/usr/bin/python a.py --out 'runs/x'", "python a.py --out 'runs/x'"),
        ("--out '/home/me/my runs/a b' --dataset ~/pics/", "--out 'a b' --dataset "),
        (r"C:\Users\me\python.exe", "python.exe"),
        ("28/255 and/or a/b, 3 / 4", "28/255 and/or a/b, 3 / 4"),
        ("from /data/me/x.npz; /tmp", "from x.npz; /tmp"),
    ],
)
def test_absolute_paths_are_not_passed_on(text, left):
    assert page.without_paths(text) == left


def test_what_is_in_tags_is_escaped_once():
    assert join("<", tag("b", "&"), ["a", None, 1]) == "&lt;<b>&amp;</b>a1"
    assert tag("p", class_="x", data_y='"', hidden=True, title=None) == '<p class="x" data-y="&quot;" hidden></p>'
    assert tag("img", src="a") == '<img src="a">'


@pytest.mark.parametrize("values", [[5.0], [2.0, 2.0], [None, 3.0], [1e-9, 4e5], [-3.0, -1.0]])
def test_a_chart_has_its_curve_within_its_axes(values):
    text = chart("Loss", range(1, len(values) + 1), [Curve("training", 0, "training", values)])
    ticks = [float(x) for x in re.findall(r'text-anchor="end">([-\d.e+]+)<', text)]
    known = [x for x in values if x is not None]
    assert ticks[0] <= min(known)
    assert ticks[-1] >= max(known)
    heights = [float(y) for y in re.findall(r"M[\d.]+ ([-\d.]+)h0", text)]
    assert len(heights) == len(known)
    assert 7.9 <= min(heights) <= max(heights) <= 176.1
    assert f"from {known[0]:.4g} to {known[-1]:.4g}" in text
    assert "no values" in chart("Loss", [1], [Curve("training", 0, "training", [None])])


# ---- the decoder ----


def packed(made: Autoencoder, data: Dataset) -> dict:
    shown = live.shown_of(made, data)
    return live.live_data(made, shown, live.plane_for(shown.latents), None)


def test_weights_have_half_precision_unless_that_shows():
    made, data = model(), dataset()
    kinds = {layer["weight"][2] for layer in packed(made, data)["layers"] if "weight" in layer}
    assert kinds == {"f2"}
    made.network.layers["decoder_conv_transpose_layer_2"].weight.data *= 400
    kinds = {layer["weight"][2] for layer in packed(made, data)["layers"] if "weight" in layer}
    assert kinds == {"f4"}


def test_a_decoder_that_is_too_large_stays_out_and_the_page_says_so(tmp_path, monkeypatch):
    made, data = model(), dataset()
    size = sum(x.size for name, x in made.network.state_dict().items() if name.startswith("decoder_"))
    monkeypatch.setattr(live, "MOST_WEIGHTS", 2 * size)
    assert "layers" in packed(made, data)
    monkeypatch.setattr(live, "MOST_WEIGHTS", 2 * size - 1)
    assert "layers" not in packed(made, data)
    found = Page(written(tmp_path, made, data))
    assert "so it does not run in this page" in found.text
    assert not {"decoded", "sliders"} & set(found.all("id"))


@pytest.mark.parametrize("Z", [1, 2, 6])
def test_a_place_on_the_plane_is_a_latent(Z):
    latents = np.random.default_rng(0).normal(1, 2, (300, Z)).astype(np.float32)
    plane = live.plane_for(latents)
    back = plane.centre + plane.points @ plane.axes.T
    if Z <= 2:
        np.testing.assert_allclose(back, latents, atol=1e-5)
    np.testing.assert_allclose((latents - plane.centre) @ plane.axes[:, :1], plane.points[:, :1], atol=1e-4)
    outside = np.abs(plane.points - plane.middle).max(axis=1) > plane.half
    assert outside.mean() < 0.02


@pytest.mark.parametrize(
    ("shape", "reduced"),
    [((28, 28, 1), (28, 28, 1)), ((64, 64, 3), (64, 64, 3)), ((65, 130, 3), (21, 43, 3)), ((1, 400, 4), (1, 57, 1))],
)
def test_large_images_are_shown_smaller(shape, reduced):
    images = np.random.default_rng(0).integers(0, 256, (2, *shape), dtype=np.uint8)
    found = live.as_bytes(images)
    assert found.shape == (2, *reduced)
    k = live.reduction(shape)
    corner = images[1, : min(k, shape[0]), :k, 0].mean()
    assert abs(int(found[1, 0, 0, 0]) - corner) <= 0.5001


def test_colour_pages_stay_small_and_grey_ones_smaller(tmp_path):
    """Noise cannot be compressed; pictures take half of that or less. With a long film and long runs."""
    rng = np.random.default_rng(0)
    rows = [dict.fromkeys(("loss", "kl", "reconstruction", "val_loss"), 1 / 3 + i) for i in range(2000)]
    for shape, most in (((28, 28, 1), 4), ((200, 200, 3), 6)):
        noisy = dataset(shape, count=24)
        made = VAE(shape, (4, 6, 8), (3, 4, 4), (1, 2, 2), 2)
        runs = [Curves(name, rows, made.unit, {}) for name in "ab"]
        count = min(60, report.FILM_PIXELS // noisy.train_images[:10].size)
        frames = [
            ({"reconstructed": rng.random((10, *shape)), "latents": rng.random((1000, 2))}, {"epoch": epoch})
            for epoch in range(max(2, count))
        ]
        film = live.film_of(noisy.train_images[:10], frames, np.arange(1000) % 3)
        assert len(written(tmp_path, made, noisy, runs=runs, film=film)) < most * 1e6


def test_large_images_are_fewer(monkeypatch):
    grey, colour = dataset((8, 8, 1), count=5000), dataset((64, 64, 3))
    many = Dataset("x", grey.test_images, grey.test_labels, grey.train_images, grey.train_labels, NAMES, "")
    assert len(live.shown_of(model(), many).images) == live.MOST_IMAGES
    shown = live.shown_of(model(shape=(64, 64, 3)), colour)
    assert len(shown.images) == 30
    with monkeypatch.context() as patch:
        patch.setattr(live, "IMAGE_BYTES", 21 * (64 * 64 * 3 // 4 + 8))
        assert sorted(np.bincount(live.shown_of(model(shape=(64, 64, 3)), colour).labels)) == [7, 7, 7]


def test_a_page_that_cannot_be_written_says_where(tmp_path):
    (tmp_path / "page.html").mkdir()
    with pytest.raises(DataError, match=r"page\.html"):
        written(tmp_path, model(), dataset())


def test_data_in_the_page_is_json_that_ends_no_script(tmp_path):
    text = written(tmp_path, model(classes=3, class_names=NAMES), dataset())
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    data = json.loads(block[1])
    assert data["classes"] == list(NAMES)
    assert (data["names"], len(data["points"])) == (list(NAMES), 30)
