"""The step-through page: one file, everything of the step in it, nothing from elsewhere, and what a model is called
cannot run."""

from __future__ import annotations

import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import minigrad
from autoencoders import VAE, Autoencoder
from autoencoders.training import TrainingOptions
from autoencoders.training.explained import explain_step
from autoencoders.training.steps import Steps
from minigrad import Tensor, nn, ops
from minigrad.serialize import DataError
from minigrad.tools.explain.arrays import LIMITS, Limits, sheet, shot_of

VOID = {"meta", "br", "img", "input", "hr", "link"}


class Reader(HTMLParser):
    """The tags of a page, which must be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, Any]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, Any]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def steps_of(model: Autoencoder, count: int = 4) -> Steps:
    model.compile(1e-3)
    images = np.random.default_rng(0).random((count, *model.input_shape), dtype=np.float32)
    return Steps(model, images, TrainingOptions(batch_size=count, epochs=1))


@pytest.fixture(scope="module")
def page(module_backends: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a small VAE."""
    path = tmp_path_factory.mktemp("explain") / "step.html"
    minigrad.use(kernels="numpy")
    explain_step(steps_of(VAE((8, 8, 1), (3, 4), (3, 3), (2, 2))), path)
    return path.read_text(encoding="utf-8")


def test_a_page_has_a_stop_for_each_operation_and_direction(page: str) -> None:
    reader = Reader(page)
    stops = [attrs["class"] for tag, attrs in reader.tags if tag == "section" and "data-stop" in attrs]
    directions = [words.split()[1] for words in stops[1:]]
    assert directions == sorted(directions, key=["forward", "backward", "update"].index)
    assert directions.count("forward") == directions.count("backward") > 20
    assert directions.count("update") == 1
    facts = json.loads(re.search(r'<script type="application/json" id="facts">(.*?)</script>', page, re.S)[1])
    assert [direction for direction, *_ in facts["stops"]] == directions
    assert {"gyxt", "tyxg", "yxgt"} <= {array.get("order") for array in facts["arrays"].values()}


@pytest.mark.parametrize(
    "shown",
    [
        "<msub><mi>g</mi><mtext>weight</mtext></msub>",  # the formula of a gradient
        "encoder_conv_layer_1", "4 x 8 x 8 x 1",  # layers and shapes
        "Conv2D.backward", "minigrad/ops/conv.py", 'kernel <b>conv2d_grad_weight</b>', "what really ran: NumpyBackend",
        'class="sheet a', 'class="bars"', 'class="cells"', "norm ",
        "2 gradients arrive at the result of encoder_flatten", "the sum so far",
        "The result is used 2 times, at stops ", "autoencoders/conv_autoencoder.py:",
        "z = mu + ops.exp(<mark>log_variance * 0.5</mark>) * noise", "<b>data</b> <span>noise</span>", "Still alive:",
        "not computed: b needs no gradient",
        "Saved for backward:", "Freed after this stop:", "alive after it",
        "by differences",
        "encoder_conv_layer_1.weight", "second moment v</b>", "rate 0.001, m_hat / m 10, v_hat / v 1000, beta_1 0.9",
        "value before", "value after", "adam_step_", "SH = 2, SW = 2, DH = 1, DW = 1",
        "one tile per channel, one band per image", "this result is the loss itself",
        "where mean = 0 and log_variance = 0",
        "nats per image", "those of such a training step but for rounding",
        "Every gradient that an operation received is, bit for bit, the sum",
    ],
)  # fmt: skip
def test_a_page_shows(page: str, shown: str) -> None:
    assert shown in page


def test_the_pictures_of_a_sum_have_one_scale(tmp_path: Path) -> None:
    x = Tensor(np.float32([[1.0, -1.0]]), requires_grad=True)
    with minigrad.explain(tmp_path / "page.html"):
        y = ops.exp(x)
        (y * 3.0 + y).sum().backward()
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    (shown,) = re.findall(r'<div class="sum">(.*?)</div>', text, re.S)
    shades = [float(x) for x in re.findall(r"rgba\(213,94,0,([\d.]+)", shown)]
    before, sent, after = shades[::2]  # 1 + 3 = 4
    assert [before / after, sent / after] == pytest.approx([0.5, 0.75**0.5], abs=0.01)
    assert "The result is used 2 times, at stops" in text


def test_nothing_comes_from_elsewhere(page: str) -> None:
    urls = set(re.findall(r"\b(?:https?|ftp)://[^\s\"'<>)]*", page))
    assert urls <= {"http://www.w3.org/2000/svg"}, "the name of a language, which is not loaded"
    links = [value for _, attrs in Reader(page).tags for name, value in attrs.items() if name in ("href", "src")]
    assert links
    assert all(link.startswith("#") for link in links)
    assert set(re.findall(r"url\((.{5})", page)) == {"data:"}


def test_every_link_has_a_place(page: str) -> None:
    tags = Reader(page).tags
    places = {attrs.get("id") for _, attrs in tags}
    assert {attrs["href"].removeprefix("#") for _, attrs in tags if "href" in attrs} <= places


def test_names_cannot_run(tmp_path: Path) -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    model = nn.Sequential({evil: nn.Dense(2, 2)})
    model.layers[evil].__class__ = type(evil, (nn.Dense,), {})
    with minigrad.explain(tmp_path / "page.html", title=evil) as notes:
        model(Tensor(np.ones((3, 2), "f4"))).sum().backward()
        notes.append(evil)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    Reader(text)
    assert "<img" not in text
    assert text.count("&lt;img src=x") > 3


def test_the_default_model_fits_into_five_megabytes(tmp_path: Path) -> None:
    minigrad.use(kernels="numpy")
    explain_step(steps_of(VAE((28, 28, 1))), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_bytes()
    assert len(page) < 5_000_000
    assert b"thinned out" not in page


def test_a_large_model_is_thinned_out_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigrad.tools.explain.page.LARGEST", 300_000)
    minigrad.use(kernels="numpy")
    explain_step(steps_of(VAE((16, 16, 3), (40, 40), 3, 2), 6), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "the pictures are thinned out: at most" in text
    assert re.search(r"shown: \d of 6 images, \d+ of 40 channels", text)


def test_a_step_that_is_explained_changes_nothing(tmp_path: Path) -> None:
    minigrad.use(kernels="plain")
    steps = steps_of(VAE((8, 8, 1), (3,), 3, 2))
    before = steps.state()
    explain_step(steps, tmp_path / "page.html")
    after = steps.state()
    assert all(x.tobytes() == after[name].tobytes() for name, x in before.items())
    assert (steps.optimizer.steps, steps.progress.step) == (0, 0)
    told = "The gradients of all parameters are bit for bit those of such a training step"
    assert told in (tmp_path / "page.html").read_text(encoding="utf-8")


# ---- pictures ----


@pytest.mark.parametrize(
    ("shape", "kind", "limits", "size"),
    [
        ((2, 5, 4, 6), "", LIMITS[0], (12, 30)),  # a row of six channels for each image
        ((3, 5, 4, 1), "", LIMITS[0], (6, 15)),  # images beside each other
        ((3, 2, 4, 5), "weight", LIMITS[0], (16, 15)),  # a row of filters for each channel
        ((3, 20), "", LIMITS[0], (3, 20)),
        ((20, 3), "", LIMITS[0], (3, 20)),  # the long side goes to the right
        ((2, 5, 4, 6), "", Limits(1, 2, 3), (4, 6)),
    ],
)
def test_a_picture_holds_the_numbers(shape: tuple[int, ...], kind: str, limits: Limits, size: tuple[int, int]) -> None:
    x = np.random.default_rng(0).normal(size=shape).astype("f4")
    drawn = sheet(shot_of(x, kind), limits)
    assert drawn.codes.shape == size
    with Image.open(io.BytesIO(drawn.png)) as picture:
        assert picture.mode == "P"
        assert np.array_equal(np.array(picture), drawn.codes)
    H, W = drawn.tile
    gap = H > 1
    for py, px in np.argwhere(drawn.codes):  # as page.js finds the number under the pointer
        tile = py // (H + gap) * drawn.columns + px // (W + gap)
        y, column = py % (H + gap) * drawn.step, px % (W + gap) * drawn.step
        at = {"g": tile // drawn.per_group, "t": tile % drawn.per_group, "y": y, "x": column, "p": y * W + column}
        value = x[tuple(at[letter] for letter in drawn.order)]
        share = (int(drawn.codes[py, px]) - 128) / 126
        assert np.sign(share) * share**2 * drawn.top == pytest.approx(value, abs=drawn.top / 60)


def test_numbers_that_are_not_finite_are_counted() -> None:
    shot = shot_of(np.float32([1.0, np.nan, -np.inf, 3.0]))
    assert (shot.bad, shot.least, shot.mean, shot.most) == (2, 1.0, 2.0, 3.0)


# ---- errors ----


def test_an_error_inside_leaves_no_page(tmp_path: Path) -> None:
    with pytest.raises(TypeError), minigrad.explain(tmp_path / "page.html"):
        ops.relu(Tensor([1.0])) + "x"
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_explained_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no operation ran inside"), minigrad.explain(tmp_path / "page.html"):
        pass
    with minigrad.profile(), pytest.raises(RuntimeError, match="explain: another"), minigrad.explain("page.html"):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is no folder"), minigrad.explain(tmp_path / "file" / "page.html"):
        ops.relu(Tensor([1.0]))
    monkeypatch.setitem(sys.modules, "pygments", None)
    for name in [name for name in sys.modules if name.startswith("minigrad.tools.explain.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r'pip install "\.\[explain\]"'), minigrad.explain("page.html"):
        pass
