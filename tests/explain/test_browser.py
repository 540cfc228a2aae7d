"""The step-through page in headless Chromium: by keyboard, by pointer, on a phone and without scripts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minigrad
from autoencoders import VAE
from autoencoders.training import TrainingOptions
from autoencoders.training.explained import explain_step
from autoencoders.training.steps import Steps

pytestmark = pytest.mark.browser

DESKTOP, PHONE = {"width": 1400, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).random((4, 8, 8, 1), dtype=np.float32)


@pytest.fixture(scope="module")
def path(
    browser: Any, module_backends: None, tmp_path_factory: pytest.TempPathFactory, images: np.ndarray
) -> Path:
    """The page of a small VAE."""
    path = tmp_path_factory.mktemp("browser") / "step.html"
    minigrad.use(kernels="numpy")
    vae = VAE((8, 8, 1), (3, 4), (3, 3), (2, 2))
    vae.compile(1e-3)
    explain_step(Steps(vae, images, TrainingOptions(batch_size=4, epochs=1)), path)
    return path


@pytest.fixture
def opened(visit: Any, path: Path, request: pytest.FixtureRequest) -> Any:
    return visit(path, viewport=getattr(request, "param", DESKTOP), has_touch=True)


def shown(page: Any) -> int:
    """The number of the only stop that is visible."""
    (stop,) = [stop for stop in page.query_selector_all(".stop") if stop.is_visible()]
    return int(stop.get_attribute("data-stop"))


def title(page: Any) -> str:
    return " ".join(page.inner_text(".stop.now h2").split())


def overflows(page: Any) -> bool:
    return page.evaluate("document.documentElement.scrollWidth > innerWidth")


def test_the_keyboard_goes_through_all_stops(opened: Any) -> None:
    assert shown(opened) == 0
    last = len(opened.query_selector_all(".stop")) - 1
    for number in range(1, last + 1):
        opened.keyboard.press("ArrowRight")
        assert shown(opened) == number
        assert not overflows(opened)
    opened.keyboard.press("ArrowRight")
    assert shown(opened) == last
    assert title(opened) == "update Adam"
    opened.keyboard.press("Home")
    opened.keyboard.press("b")
    assert title(opened).startswith("backward Add"), "the last operation forward is the first backward"
    opened.keyboard.press("ArrowLeft")
    assert title(opened).startswith("forward Add")
    opened.keyboard.press("End")
    assert shown(opened) == last


def test_the_map_follows_and_leads(opened: Any) -> None:
    opened.keyboard.press("ArrowRight")
    assert opened.inner_text(".map .now") == "Conv2D conv_layer_1"
    opened.click(".map .node:has-text('KLToStandardNormal')")
    assert title(opened) == "forward KLToStandardNormal"
    opened.keyboard.press("End")
    opened.click(".map .node:has-text('KLToStandardNormal')")
    assert title(opened) == "backward KLToStandardNormal", "in the backward pass the map stays there"
    lit = opened.query_selector_all(".edges path.lit")
    assert len(lit) == 2, "the edges to mean and log_variance"
    opened.click(".map .node:has-text('data noise') + .node")
    assert title(opened) == "backward Mul"
    assert len(opened.query_selector_all(".edges path.lit")) == 1, "none to the noise, which has no gradient"
    opened.keyboard.press("Home")
    opened.keyboard.press("ArrowRight")
    opened.click(".map summary:has-text('encoder')")
    assert not opened.is_visible(".map .now")
    assert opened.get_attribute(".map summary.holds", "class"), "the closed group is marked instead"


def test_a_number_is_shown_under_the_pointer(opened: Any, images: np.ndarray) -> None:
    opened.keyboard.press("ArrowRight")
    box = opened.query_selector(".stop.now .sheet").bounding_box()
    side = box["width"] / 36  # four images of 8 pixels, each with a line after it
    opened.mouse.move(box["x"] + (9 + 2.5) * side, box["y"] + 5.5 * side)
    opened.wait_for_selector(".value:visible")
    place, value = opened.inner_text(".value").split(" ≈ ")
    n, y, x, c = (int(i) for i in re.findall(r"\d+", place))
    assert (n, y, x, c) == (1, 5, 2, 0)
    assert min(abs(float(value) - image[5, 2, 0]) for image in images) < 0.005, "the images come in random order"
    opened.mouse.move(5, 890)
    opened.wait_for_selector(".value", state="hidden")


def test_kernels_open_and_mark_the_line_that_calls_them(opened: Any) -> None:
    opened.click(".map .node:has-text('Dense mu')")
    opened.keyboard.press("b")
    opened.click(".map .node:has-text('Dense mu')")
    assert "self.k.matmul(gy, self.weight.T)" in opened.inner_text(".stop.now .code .line.main")
    opened.click(".stop.now details.kernel:has-text('channel_sum') > summary")
    opened.wait_for_selector(".stop.now details.kernel:has-text('channel_sum') .line:has-text('def channel_sum')")
    assert "channel_sum" in opened.inner_text(".stop.now .code .line.main")
    opened.click(".stop.now details.kernel:has-text('channel_sum') details > summary")
    opened.wait_for_selector(".stop.now details.kernel details[open] .line:has-text('def channel_sum')")


def test_the_code_is_gone_through_line_by_line(opened: Any) -> None:
    opened.click(".map .node:has-text('Dense mu')")
    opened.keyboard.press("b")
    opened.click(".map .node:has-text('Dense mu')")
    lines = []
    for _ in range(4):
        lines.append(opened.inner_text(".stop.now .code .line.main").split("=")[0].split()[-1])
        opened.keyboard.press("l")
    assert lines == ["gx", "gweight", "gbias", "gbias"]  # the last is `return gx, gweight, gbias`
    opened.click(".stop.now .next")
    assert opened.inner_text(".stop.now .code .line.main").strip().startswith("gy = gy.reshape"), "from the start"


def test_a_click_on_the_memory_goes_there(opened: Any) -> None:
    box = opened.query_selector(".memory").bounding_box()
    opened.mouse.click(box["x"] + box["width"] - 2, box["y"] + 10)
    assert title(opened) == "update Adam"


@pytest.mark.parametrize("opened", [PHONE], indirect=True)
def test_a_phone_is_enough(opened: Any) -> None:
    last = len(opened.query_selector_all(".stop")) - 1
    for _ in range(last):
        opened.tap("[data-go=on]")
        assert not overflows(opened), title(opened)
    assert shown(opened) == last
    assert not opened.is_visible(".map")
    opened.tap(".opener")
    opened.tap(".map .node:has-text('KLToStandardNormal')")
    assert title(opened) == "backward KLToStandardNormal"
    assert not opened.is_visible(".map")


def test_without_scripts_all_stops_follow_each_other(visit: Any, path: Path) -> None:
    page = visit(path, viewport=DESKTOP, java_script_enabled=False)
    stops = page.query_selector_all(".stop")
    assert all(stop.is_visible() for stop in stops)
    assert page.is_visible("#stop-5 .sheet")
    assert page.is_visible("noscript svg circle")
    page.click("#stop-1 a.noscript")
    assert page.is_visible("#source-0 .line")


def test_a_print_has_all_stops_and_sources(opened: Any) -> None:
    opened.keyboard.press("ArrowRight")
    opened.emulate_media(media="print")
    assert all(stop.is_visible() for stop in opened.query_selector_all(".stop"))
    assert opened.is_visible("#source-0")
    assert not opened.is_visible(".bar")
