"""The page of a model in headless Chromium: its decoder, moving over the plane, classes, the film, narrow screens."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minigrad
from autoencoders import VAE, Autoencoder
from autoencoders.data import Dataset
from autoencoders.page import live, write_page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = [pytest.mark.browser, pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")]
NAMES = ("<b>bags</b>", "A & B", "shoes")
HELPERS = """
  const $ = name => document.getElementById(name);
  const drawn = () => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
  const wait = ms => new Promise(done => setTimeout(done, ms));
  const pixels = name => {
    const c = $(name);
    return Array.from(c.getContext("2d").getImageData(0, 0, c.width, c.height).data).filter((_, i) => i % 4 === 0);
  };
  const place = () => [+$("here").getAttribute("cx"), +$("here").getAttribute("cy")];
"""


class Chromium:
    """A headless Chromium that is driven by its own protocol over two pipes."""

    def __init__(self, folder: Path) -> None:
        (its_in, mine_out), (mine_in, its_out) = os.pipe(), os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (its_in, its_out)]  # not 3 or 4 themselves
        words = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        self.process = subprocess.Popen(
            [*words, f"--user-data-dir={folder}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=(3, 4),
            preexec_fn=lambda: (os.dup2(ends[0], 3), os.dup2(ends[1], 4)),
        )  # fmt: skip
        for end in (its_in, its_out, *ends):
            os.close(end)
        self.out, self.inn, self.buffer, self.count, self.errors = mine_out, mine_in, b"", 0, []

    def call(self, method: str, session: str | None = None, **params: Any) -> Any:
        """The result of a method of the protocol; errors of the page are kept."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.buffer:
                assert select.select([self.inn], [], [], 60)[0], f"{method}: no answer"
                self.buffer += os.read(self.inn, 1 << 20)
            first, _, self.buffer = self.buffer.partition(b"\0")
            answer = json.loads(first)
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(answer["params"]["exceptionDetails"])
            elif answer.get("method") == "Log.entryAdded" and answer["params"]["entry"]["level"] == "error":
                self.errors.append(answer["params"]["entry"]["text"])
            elif answer.get("id") == self.count:
                assert "error" not in answer, answer
                return answer["result"]

    def close(self) -> None:
        self.call("Browser.close")
        self.process.wait(30)
        os.close(self.out)
        os.close(self.inn)


class Tab:
    """A page in the browser."""

    def __init__(self, browser: Chromium, path: Path, width: int = 1200, height: int = 900, **media: str) -> None:
        self.browser = browser
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for part in ("Runtime", "Log", "Page"):
            self.call(f"{part}.enable")
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **screen)
        features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.call("Page.navigate", url=path.as_uri())
        self.run("while (document.readyState !== 'complete') await wait(10); await drawn();")

    def call(self, method: str, **params: Any) -> Any:
        return self.browser.call(method, self.session, **params)

    def run(self, script: str) -> Any:
        """What a script returns in the page."""
        text = f"(async () => {{{HELPERS}{script}}})()"
        done = self.call("Runtime.evaluate", expression=text, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        assert self.browser.errors == []
        return done["result"].get("value")

    def point(self, x: float, y: float) -> None:
        """Move the mouse over the plane; x and y in [0, 1]."""
        box = self.run("""$("plane").scrollIntoView(); const b = $("plane").getBoundingClientRect();
            return [b.left, b.top, b.width, b.height];""")
        at = {"x": box[0] + x * box[2], "y": box[1] + y * box[3]}
        self.call("Input.dispatchMouseEvent", type="mouseMoved", **at)
        self.run("await drawn();")

    def key(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key)
        self.run("await drawn();")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    made = Chromium(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _backend(restored_backends: None) -> None:
    minigrad.use(kernels="numpy", threads=1)


def dataset(shape: tuple[int, int, int]) -> Dataset:
    rng = np.random.default_rng(1)
    labels = np.arange(54) % 3
    images = (rng.integers(0, 120, (54, *shape)) + 60 * labels[:, None, None, None]).astype(np.uint8)
    return Dataset("toy", images[:24], labels[:24], images[24:], labels[24:], NAMES, "made up")


def model(kind: type = VAE, shape: tuple[int, int, int] = (12, 12, 1), Z: int = 2, **options: object) -> Autoencoder:
    """A model whose weights and moving statistics are all random, as no training leaves them."""
    made = kind(shape, **{"conv_filters": (4, 6), "conv_kernels": (3, 4), "conv_strides": (1, 2)} | options,
                latent_space_dim=Z)  # fmt: skip
    rng = np.random.default_rng(3)
    for name, x in made.network.named_tensors():
        if name.startswith("decoder"):
            size = 1.5 / np.sqrt(x.size / x.shape[-2]) if name.endswith("weight") else 0.5
            x.data[...] = rng.uniform(0.5, 1, x.shape) if name.endswith("variance") else size * rng.normal(size=x.shape)
    return made


@pytest.fixture
def shown(browser: Chromium, tmp_path: Path) -> Any:
    """A function that writes the page of a model and opens it."""
    browser.errors.clear()

    def show(made: Autoencoder, width: int = 1200, film: Any = None, **media: str) -> Tab:
        path = tmp_path / "page.html"
        write_page(path, model=made, dataset=dataset(made.input_shape), record={}, film=film)
        return Tab(browser, path, width, **media)

    return show


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (VAE, {}),
        (VAE, {"Z": 7, "shape": (13, 9, 3), "conv_kernels": (5, (2, 3)), "conv_strides": (3, (1, 2))}),
        (VAE, {"Z": 3, "classes": 3, "shape": (7, 10, 1), "conv_kernels": (2, 1), "conv_strides": (3, 2)}),
        (Autoencoder, {"Z": 1, "shape": (28, 28, 1), "conv_filters": (32, 64, 64, 64),
                       "conv_kernels": (3, 3, 3, 3), "conv_strides": (1, 2, 2, 1)}),
    ],
    ids=["grey", "odd colour", "conditional", "default size"],
)  # fmt: skip
@pytest.mark.parametrize("close", [1.0, -1.0], ids=["half", "single"])
def test_the_decoder_in_the_page_is_that_of_the_model(kind, options, close, shown, monkeypatch):
    monkeypatch.setattr(live, "CLOSE", close)
    made = model(kind, **options)
    z = np.random.default_rng(0).normal(0, 1.5, (4, made.latent_space_dim)).astype(np.float32)
    labels = np.array([0, 1, 2, 1])
    found = shown(made).run(f"""
        const decode = decoderOf(JSON.parse($("data").textContent)), labels = {labels.tolist()};
        return {z.tolist()}.map((z, i) => Array.from(decode(z, labels[i])));""")
    expected = made.decode(z, labels=labels).reshape(4, -1)
    assert expected.std() > 0.03
    assert np.abs(np.array(found) - expected).max() < (1e-3 if close > 0 else 2e-6)


def test_moving_over_the_plane_shows_what_is_there(shown):
    made = model()
    tab = shown(made)
    tab.point(0.25, 0.75)
    here, decoded = tab.run('return [place(), pixels("decoded")];')
    assert np.abs(np.array(here) - [250, 750]).max() < 3
    data = dataset(made.input_shape)
    images = live.shown_of(made, data)
    plane = live.plane_for(images.latents)
    z = plane.middle + plane.half * (np.array(here) / 500 - 1) * [1, -1]
    expected = 255 * made.decode(z[None].astype(np.float32))[0].ravel()
    assert np.abs(np.array(decoded) - expected).max() <= 1
    x, y = 0.5 + (plane.points[5] - plane.middle) / plane.half / 2 * [1, -1]
    tab.point(x, y)
    decoded, image, text = tab.run('return [pixels("decoded"), pixels("nearest"), $("nearest-text").textContent];')
    np.testing.assert_array_equal(image, live.as_bytes(images.images[5]).ravel())
    assert np.abs(np.array(decoded) - 255 * images.reconstructed[5].ravel()).max() <= 1
    assert text == f"nearest test image: {NAMES[images.labels[5]]}"


def test_the_plane_and_the_sliders_work_without_a_pointer(shown):
    tab = shown(model())
    where = 'return [$("place").textContent.match(/-?\\d+\\.\\d+/g).map(Number), pixels("decoded")];'
    tab.run('$("plane").focus();')
    before, first = tab.run(where)
    tab.key("ArrowUp")
    tab.key("ArrowUp")
    after, second = tab.run(where)
    assert after[1] > before[1]
    assert after[0] == before[0]
    assert first != second
    name = tab.run('const s = $("sliders").querySelector("input"); s.focus(); return s.dataset.name;')
    tab.key("ArrowRight")
    slid, third = tab.run(where)
    assert [slid[k] > after[k] for k in range(2)] == [name == "z1", name == "z2"]
    assert third != second
    said = tab.run('await wait(800); return $("said").textContent;')
    assert f"{slid[0]:.2f}, {slid[1]:.2f}; nearest test image: " in said


def test_a_large_image_is_decoded_at_its_size_and_the_nearest_is_smaller(shown):
    made = model(shape=(70, 100, 1))
    tab = shown(made)
    images = live.shown_of(made, dataset(made.input_shape))
    plane = live.plane_for(images.latents)
    tab.point(*(0.5 + (plane.points[3] - plane.middle) / plane.half / 2 * [1, -1]))
    decoded, nearest = tab.run('return [pixels("decoded"), pixels("nearest")];')
    assert np.abs(np.array(decoded) - 255 * images.reconstructed[3].ravel()).max() <= 1
    np.testing.assert_array_equal(nearest, live.as_bytes(images.images[3]).ravel())


def test_a_hidden_class_is_neither_seen_nor_nearest(shown):
    tab = shown(model(Z=5))
    hidden: set[int] = set()
    for k in (0, 1, 1, 2):
        tab.run(f'$("legend").children[{k}].click(); await drawn();')
        hidden ^= {k}
        seen, pressed = tab.run("""return [
            [...document.querySelectorAll(".points path")].map(x => getComputedStyle(x).display !== "none"),
            [...$("legend").children].map(x => x.getAttribute("aria-pressed") === "true")];""")
        assert seen == pressed == [k not in hidden for k in range(3)]
        names = set()
        for x, y in np.random.default_rng(0).random((8, 2)):
            tab.point(x, y)
            names.add(tab.run('return $("nearest-text").textContent;'))
        assert names <= {f"nearest test image: {NAMES[k]}" for k in range(3) if k not in hidden}


def test_a_chosen_class_is_what_is_decoded(shown):
    made = model(Z=2, classes=3, class_names=NAMES)
    tab = shown(made)
    assert tab.run('return [...$("sliders").querySelector("select").options].map(x => x.text);') == list(NAMES)
    for label in (1, 2):
        image = tab.run(f"""const choice = $("sliders").querySelector("select"); choice.selectedIndex = {label};
            choice.dispatchEvent(new Event("change")); await drawn(); return pixels("decoded");""")
        expected = 255 * made.decode(np.zeros((1, 2)), labels=np.array([label]))[0].ravel()
        assert np.abs(np.array(image) - expected).max() <= 1


def test_a_point_is_decoded_with_its_own_class(shown):
    made = model(Z=3, classes=3)
    tab = shown(made)
    images = live.shown_of(made, dataset(made.input_shape))
    plane = live.plane_for(images.latents)
    for i in (int(np.flatnonzero(images.labels == label)[0]) for label in (2, 1)):
        tab.point(*(0.5 + (plane.points[i] - plane.middle) / plane.half / 2 * [1, -1]))
        decoded, label = tab.run('return [pixels("decoded"), document.querySelector("#sliders select").selectedIndex];')
        assert label == images.labels[i]
        assert np.abs(np.array(decoded) - 255 * images.reconstructed[i].ravel()).max() <= 1


def test_the_film_moves_only_by_hand(shown):
    rng = np.random.default_rng(2)
    frames = [
        ({"reconstructed": rng.integers(0, 256, (4, 12, 12, 1), np.uint8),
          "latents": rng.normal(size=(9, 2)).astype(np.float32)}, {"epoch": epoch})
        for epoch in range(3)
    ]  # fmt: skip
    originals = dataset((12, 12, 1)).train_images[:4]
    tab = shown(model(), film=live.film_sheet(originals, frames, np.arange(9) % 3), prefers_reduced_motion="reduce")
    seen = [tab.run('await wait(1500); return [$("when").textContent, pixels("frame")];')]
    seen.append(
        tab.run("""$("epoch").value = 1; $("epoch").dispatchEvent(new Event("input"));
        return [$("when").textContent, pixels("frame")];""")
    )
    for (when, sheet), epoch in zip(seen, (2, 1), strict=True):
        assert when == f"after epoch {epoch}"
        rows = np.array(sheet).reshape(2, 2, 12, 2, 12)  # pairs below each other, image and reconstruction, two across
        for i in range(4):
            np.testing.assert_array_equal(rows[i // 2, 0, :, i % 2], originals[i, ..., 0])
            np.testing.assert_array_equal(rows[i // 2, 1, :, i % 2], frames[epoch][0]["reconstructed"][i, ..., 0])
    found = tab.run("""$("play").click(); const seen = [$("play").textContent];
        while ($("play").textContent === "Pause") await wait(50);
        return [...seen, $("when").textContent];""")
    assert found == ["Pause", "after epoch 2"]


@pytest.mark.parametrize("width", [390, 1600])
def test_nothing_is_wider_than_the_screen(width, shown):
    found = shown(model(Z=12), width).run("""
        for (const x of document.querySelectorAll("details")) x.open = true;
        await drawn();
        return [document.documentElement.scrollWidth, innerWidth, document.querySelectorAll("#sliders input").length];
        """)
    assert found[0] <= found[1] == width
    assert found[2] == 12


def test_a_print_shows_what_is_folded(shown):
    tab = shown(model())
    tab.run('dispatchEvent(new Event("beforeprint"));')
    assert tab.run('return [...document.querySelectorAll("details")].every(x => x.open);')


@pytest.mark.skipif("AXE_CORE" not in os.environ, reason="AXE_CORE names no axe.min.js")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(scheme, shown):
    tab = shown(model(Z=9, classes=3, class_names=NAMES), prefers_color_scheme=scheme)
    tab.run(Path(os.environ["AXE_CORE"]).read_text())  # the policy of the page permits no other script element
    found = tab.run("""for (const x of document.querySelectorAll("details")) x.open = true;
        return (await axe.run()).violations.map(x => [x.id, x.nodes.map(node => node.html)]);""")
    assert found == []
