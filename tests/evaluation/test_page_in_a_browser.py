"""The page of a model in headless Chromium: its decoder, moving over the plane, classes, the film, narrow screens."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import minigrad
from autoencoders import VAE, Autoencoder
from autoencoders.data import Dataset
from autoencoders.page import live, write_page
from autoencoders.page.curves import Curves

pytestmark = pytest.mark.browser
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


class Tab:
    """A window with the page of a model."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.run("await drawn();")

    def run(self, script: str) -> Any:
        """What a script returns in the page."""
        return self.page.evaluate(f"async () => {{{HELPERS}{script}}}")

    def point(self, x: float, y: float, on: str = "#plane") -> None:
        """Move the mouse over the plane or another element; x and y in [0, 1]."""
        element = self.page.locator(on)
        element.scroll_into_view_if_needed()
        box = element.bounding_box()
        self.page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        self.run("await drawn();")

    def key(self, key: str) -> None:
        self.page.keyboard.press(key)
        self.run("await drawn();")


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
def shown(visit: Any, tmp_path: Path) -> Any:
    """A function that writes the page of a model and opens it."""

    def show(made: Autoencoder, width: int = 1200, runs: Any = (), film: Any = None, **media: Any) -> Tab:
        path = tmp_path / "page.html"
        write_page(path, model=made, dataset=dataset(made.input_shape), record={}, runs=runs, film=film)
        return Tab(visit(path, viewport={"width": width, "height": 900}, **media))

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
    originals, frames, made = film()
    tab = shown(model(), film=made, reduced_motion="reduce")
    seen = [tab.run('await wait(1500); return [$("when").textContent, pixels("frame")];')]
    seen.append(
        tab.run("""$("epoch").value = 1; $("epoch").dispatchEvent(new Event("input"));
        return [$("when").textContent, pixels("frame")];""")
    )
    assert tab.run('return $("cloud").querySelectorAll("path").length;') == 3
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


def two_runs() -> list[Curves]:
    """One of five epochs, and one of three that validates."""
    rows = [
        [{"loss": k + 100 / i, "reconstruction": 50 / i, "kl": k + 50 / i} for i in range(1, n + 1)] for k, n in RUNS
    ]
    for row in rows[1]:
        row["val_loss"] = row["loss"] + 3
    names = "a/<b>" + "long" * 20, "&"
    return [Curves(name, x, "nats per image", {"beta": k}) for k, (name, x) in enumerate(zip(names, rows, strict=True))]


RUNS = (1, 5), (2, 3)
CELLS = """const cells = [...document.querySelectorAll("#curves table")].map(table => [...table.rows].map(row =>
    [...row.cells].map(cell => cell.textContent)));
  const seen = [...document.querySelectorAll("#curves svg")].filter(x => x.checkVisibility());
  const at = seen.map(svg => svg.querySelector(".cursor").getAttribute("transform")?.match(/[\\d.]+/)[0]);"""


def number(x: float) -> str:
    """As the page's script writes it."""
    return str(float(f"{x:.5g}")).removesuffix(".0")


def cells_at(epoch: int) -> list[list[str]]:
    """What the table of the loss must say."""
    a, b = [(k + 100 / epoch if epoch <= n else None) for k, n in RUNS]
    text = ["\N{EN DASH}" if x is None else number(x) for x in (a, b, None, b and b + 3)]
    return [["training", *text[:2]], ["validation", *text[2:]]]


def test_the_values_of_two_runs_are_shown_where_the_pointer_is(shown):
    tab = shown(model(), runs=two_runs())
    assert tab.run(f"{CELLS} return [at, cells[0][0][0]];") == [[None] * 3, "last epoch"]
    for part, title in enumerate(("loss", "reconstruction", "kl")):
        for epoch in (1, 2, 4, 5):
            near = min(4, epoch - 1.2 + 0.4 * (part % 2))
            tab.point((46 + 286 * near / 4) / 340, 0.5, f"#curves svg >> nth={3 * part}")
            found, at, slider = tab.run(f'{CELLS} return [cells, at, $("at").value];')
            assert [rows[0][0] for rows in found] == [f"epoch {epoch}"] * 3, title
            assert found[0][1:] == cells_at(epoch)
            assert found[2][1][1] == number(1 + 50 / epoch)
            assert [float(x) for x in at] == pytest.approx([46 + 286 * (epoch - 1) / 4] * 3), "the line is there in all"
            assert int(slider) == epoch - 1


def test_the_values_can_be_had_without_a_pointer(shown):
    tab = shown(model(), runs=two_runs())
    tab.run('$("at").focus();')
    for epoch in (4, 3):
        tab.key("ArrowLeft")
        found, said = tab.run(f'{CELLS} return [cells[0].slice(1), $("at").getAttribute("aria-valuetext")];')
        assert found == cells_at(epoch)
        assert said.startswith(f"epoch {epoch}: a/<b>longlong")
        assert said.endswith(f"& validation {found[1][2]}")


def test_a_run_is_switched_off_and_the_axes_fit_the_other(shown):
    tab = shown(model(), runs=two_runs())
    state = f"""{CELLS} return [seen.length, [...document.querySelectorAll("#curves .curve, #curves .dots")]
        .filter(x => x.checkVisibility()).map(x => +x.classList[1].at(-1)), seen[0]?.querySelector("text").textContent,
        [...document.querySelectorAll("[data-run]")].map(x => x.getAttribute("aria-pressed"))];"""
    count, runs, low, _ = tab.run(state)
    assert (count, set(runs), float(low)) == (3, {0, 1}, 0)
    pressed = [True, True]
    for k in (0, 0, 1, 0, 1, 0):
        tab.run(f'document.querySelector("[data-run=\'{k}\']").click();')
        pressed[k] = not pressed[k]
        count, runs, low, told = tab.run(state)
        assert (count, set(runs)) == (3, {i for i in range(2) if pressed[i]})
        assert told == [str(x).lower() for x in pressed]
        if pressed == [False, True]:
            assert float(low) > 0, "from 35.3 on"


@pytest.mark.parametrize("epochs", [1, 2])
def test_the_curves_of_one_run_have_values_too(epochs, shown):
    rows = [{"loss": 5.0 - i, "val_loss": 6.0 - i} for i in range(epochs)]
    tab = shown(model(Z=1), runs=[Curves("", rows, "nats", {})])
    assert tab.run("return document.querySelectorAll('[data-run], .differences, #at').length;") == epochs - 1
    tab.point(0.2, 0.5, "#curves svg")
    found = tab.run(f"{CELLS} return [cells, seen.length];")
    first = "last epoch" if epochs == 1 else "epoch 1"
    assert found == [[[[first, "loss"], ["training", "5"], ["validation", "6"]]], 1]


def film() -> tuple[np.ndarray, list, live.Film]:
    """(images, frames, the film of them)."""
    rng = np.random.default_rng(2)
    frames = [
        ({"reconstructed": rng.integers(0, 256, (4, 12, 12, 1), np.uint8),
          "latents": rng.normal(size=(9, 2)).astype(np.float32)}, {"epoch": epoch})
        for epoch in range(3)
    ]  # fmt: skip
    originals = dataset((12, 12, 1)).train_images[:4]
    return originals, frames, live.film_of(originals, frames, np.arange(9) % 3)


@pytest.mark.parametrize("options", [{}, {"Z": 5, "classes": 3}, {"Z": 1}], ids=str)
def test_without_script_no_picture_is_blank(options, shown, visit, tmp_path):
    made = model(**options)
    shown(made, runs=two_runs(), film=film()[2])
    page = visit(tmp_path / "page.html", java_script_enabled=False)
    for name, count in {"decoded": 1, "nearest": 1, "frame": 1}.items():
        still = page.locator(f"#{name} img")
        assert (still.count(), still.is_visible()) == (count, True)
        shot = np.asarray(Image.open(io.BytesIO(still.screenshot())).convert("L"))
        assert shot.std() > 5, name
    assert page.locator("#cloud path").first.get_attribute("d").count("h0") == 3
    assert [page.locator(name).is_visible() for name in ("header noscript", "#epoch", "#at", "#ring")] == [
        True, False, False, False
    ]  # fmt: skip
    assert page.locator("#curves svg >> nth=0").is_visible()
    z = live.plane_for(live.shown_of(made, dataset(made.input_shape)).latents).centre
    expected = made.decode(z[None], labels=np.zeros(1, int))[0, ..., 0]
    source = page.locator("#decoded img").get_attribute("src").partition(",")[2]
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(source))))
    assert np.abs(decoded - 255 * expected).max() <= 1


@pytest.mark.parametrize("width", [390, 1600])
def test_nothing_is_wider_than_the_screen(width, shown):
    found = shown(model(Z=12), width, two_runs(), film()[2]).run("""
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
    made = model(Z=9, classes=3, class_names=NAMES)
    tab = shown(made, runs=two_runs(), film=film()[2], color_scheme=scheme)
    tab.run(Path(os.environ["AXE_CORE"]).read_text())  # the policy of the page permits no other script element
    found = tab.run("""for (const x of document.querySelectorAll("details")) x.open = true;
        return (await axe.run()).violations.map(x => [x.id, x.nodes.map(node => node.html)]);""")
    assert found == []
