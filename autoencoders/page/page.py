"""The page of a model: what it is, how good it is, its pictures, and the latent plane to move over."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from minigrad.serialize import write_atomically

from ..conv_autoencoder import VAE, Autoencoder
from ..data import Dataset
from ..evaluation.mixture import Mixture
from ..pictures.sheets import manifold_points
from .curves import Curves, loss_charts
from .live import MOST_WEIGHTS, Film, as_bytes, live_data, plane_for, reduction, shown_of
from .markup import Markup, figure, join, picture, tag, tiled
from .numbers import error_of, groups, headlines, rounded
from .parts import (
    Maker,
    Section,
    bars,
    best_and_worst,
    denoised,
    film_strip,
    interpolations,
    kl_bars,
    live_plane,
    neighbours,
    new_tiles,
    section,
    traversals,
)

GRID_BYTES = 1 << 19  # pixels of the decoded plane, about
PAIRS = 12  # test images with their reconstructions on the first screen
MADE_BY = tag("meta", name="generator", content="minigrad autoencoders")
NO_SCRIPT = ".row, #here, #ring { display: none } canvas.pixels { aspect-ratio: auto } button { pointer-events: none }"
# an absolute path in quotes, and one without, up to its last part
PATHS = (
    re.compile(r"(?<=')(?:~|[A-Za-z]:)?[/\\][^']*[/\\](?=[^'/\\]+')"),
    re.compile(r"(?<![\w.])(?:~|[A-Za-z]:)?[/\\](?:[^\s'\"<>|:;,()/\\]+[/\\])+"),
)


def write_page(
    path: Path,
    *,
    model: Autoencoder,
    dataset: Dataset,
    record: dict[str, Any],
    measured: dict[str, Any] | None = None,
    runs: Sequence[Curves] = (),
    film: Film | None = None,
    trained: np.ndarray | None = None,
    mixture: Mixture | None = None,
    seed: int = 0,
) -> None:
    """Write the page.

    Args:
        record: run.json, empty where there is none. measured: what evaluation.json holds; None: nothing was measured.
        runs: the losses of the model's run, and those of another one to compare; none where there is no history.
        film: what `film_of` gives, if the run kept frames.
        trained: indices of the training images of the run; None: all.
        mixture: what samples are drawn from; None: the prior of a VAE.

    Raises:
        DataError: it cannot be written. DivergedError: the model gives numbers that are not finite.
    """
    shown = shown_of(model, dataset, seed)
    plane = plane_for(shown.latents)
    kl = np.array(measured["kl_per_dim"]) if measured and measured.get("kl_per_dim") else None
    if kl is None and isinstance(model, VAE):
        mu, log_variance = model.encode_distribution(shown.images, labels=shown.labels)
        kl = 0.5 * (mu**2 + np.exp(log_variance) - 1 - log_variance).mean(axis=0)
    maker = Maker(model, dataset, shown, plane, kl, mixture, seed)
    data = live_data(model, shown, plane, kl) | {"names": maker.names, "index": maker.index.tolist()}
    curves, losses = loss_charts(runs) if runs else ([], None)
    known = dataset.train_images if trained is None else dataset.train_images[trained]
    sections = [
        section("training", "Training", *curves, film_strip(film) if film else None),
        _latent_space(maker, data),
        neighbours(maker, known) if measured else None,
        best_and_worst(maker),
        denoised(maker, record.get("options", {}).get("denoise", 0.0)),
        _likelihood(measured) if measured else None,
        _table(measured) if measured else None,
        _provenance(model, measured, record),
    ]
    kept = [x for x in sections if x]
    body = [_head(maker, record, len(known), kept), tag("main", _first_screen(maker, measured), *kept)]
    scripts = {"data": data, "curves-data": losses, "film-data": film and film.data}
    text = _document(without_paths(model.title), join(*body), {name: x for name, x in scripts.items() if x})
    write_atomically(path, text.encode())


def is_page(path: Path) -> bool:
    """Whether a file begins like a page of `write_page`."""
    try:
        with path.open("rb") as file:
            return MADE_BY.encode() in file.read(1000)
    except OSError:
        return False


def without_paths(text: str) -> str:
    """The text with the last part of each absolute path only, because a page is passed on.

    >>> without_paths("/usr/bin/python train.py --out '/home/me/my runs/a'")
    "python train.py --out 'a'"
    """
    for pattern in PATHS:
        text = pattern.sub("", text)
    return text


def _document(title: str, body: Markup, data: dict[str, Any]) -> str:
    folder = files(__package__)
    style, script = ((folder / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    blocks = [
        tag("script", Markup(json.dumps(x).replace("<", "\\u003c")), type="application/json", id=name)
        for name, x in data.items()
    ]
    head = [
        tag("meta", charset="utf-8"),
        MADE_BY,
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Markup(style)),
        tag("noscript", tag("style", Markup(NO_SCRIPT))),
    ]
    page = tag("html", tag("head", *head), tag("body", body, *blocks, tag("script", Markup(script))), lang="en")
    return f"<!doctype html>\n{page}"


def _head(maker: Maker, record: dict[str, Any], known: int, sections: list[Section]) -> Markup:
    dataset, training, data = maker.dataset, record.get("training", {}), record.get("data", {})
    epochs = f"{training.get('epochs', 0):g} epoch{'s' * (training.get('epochs') != 1)}"
    length = [f"{epochs} ({training.get('steps', 0):g} steps)"] if training.get("epochs") else []
    if length and data.get("content_hash") not in (None, dataset.content_hash):
        length = [f"trained on {without_paths(data.get('name') or 'other images')} for {length[0]}"]
    source, counts = without_paths(dataset.source), [len(dataset.train_images), len(dataset.test_images)]
    if not all(str(count) in source for count in counts):
        source += "; {:,} training and {:,} test images".format(*counts)
    part = [f"trained on {known:,} of them"] if known < len(dataset.train_images) else []
    reduced = reduction(maker.model.input_shape)
    smaller = [f"pictures at 1/{reduced} of their size"] if reduced > 1 else []
    told = "; ".join([source, *part, *length, *smaller])
    links = [tag("a", section.heading, href=f"#{section.name}") for section in sections]
    contents = tag("nav", *links, aria_label="Contents")
    still = tag("noscript", tag("p", "JavaScript is off here: the pictures are complete, but none of them moves."))
    return tag("header", tag("h1", maker.model.title), tag("p", told, class_="faint"), still, contents)


def _first_screen(maker: Maker, measured: dict[str, Any] | None) -> Markup:
    parts: list[Any] = []
    if measured:
        parts.append(_verdict(measured))
        chance = float(np.bincount(maker.index).max() / len(maker.index)) if maker.names else None
        cards = [
            tag("div", tag("dt", x.name), tag("dd", tag("b", x.value), tag("span", x.unit), tag("span", x.comparison)))
            for x in headlines(measured, chance)
        ]
        parts.append(tag("dl", *cards, class_="cards"))
    pictures = []
    if maker.draws:
        pictures.append(
            figure(new_tiles(maker), "New images, which the model made up.", "Good: varied, and like the data.")
        )
    pairs = maker.pairs(
        maker.some(PAIRS), "Test images and their reconstructions", "tiles" if maker.draws else "tiles long"
    )
    sees = "Test images, and below each its reconstruction from the latent with the squared error per pixel."
    pictures.append(figure(pairs, sees, "Good: the same thing, if less sharp."))
    return tag("section", *parts, tag("div", *pictures, class_="two"), aria_label="Summary")


def _verdict(measured: dict[str, Any]) -> Markup:
    findings = measured["diagnosis"]
    parts = [tag("p", tag("strong", measured["verdict"][:1].upper() + measured["verdict"][1:]))]
    options = list(dict.fromkeys(finding["option"] for finding in findings))
    for finding in findings:  # what they are, the verdict says
        name = f"{finding['finding'].partition(':')[0]}: " if len(findings) > 1 else ""
        parts.append(tag("p", f"Because {name}{finding['why']}"))
    parts += [tag("p", "What to change: ", option) for option in options]
    parts += [tag("p", without_paths(note), class_="faint") for note in measured["notes"]]
    return tag("div", *parts, class_="verdict" if findings else "verdict healthy")


def _latent_space(maker: Maker, data: dict[str, Any]) -> Section | None:
    Z, model = maker.model.latent_space_dim, maker.model
    live = "layers" in data
    sees = f"{len(maker.shown.images):,} test images where the encoder puts them"
    if Z > 2:
        share = np.var(maker.plane.points, axis=0).sum() / max(maker.shown.latents.var(axis=0).sum(), 1e-12)
        sees += f", on the two directions in which they vary most ({share:.0%} of the variance)"
    elif Z == 1:
        sees += "; the height only spreads them"
    sees += ". Move over the plane with a pointer, a finger or the arrow keys"
    sees += (
        ": the decoder runs in this page and shows what is there. On a point it shows that image."
        if live
        else f" to see the nearest image. The decoder has more than {MOST_WEIGHTS >> 20} MB of weights, so it does not "
        "run in this page."
    )
    good = "Good: classes in groups, and no large gaps." if maker.names else "Good: no large gaps."
    parts: list[Markup | None] = [figure(live_plane(maker, live), sees, good, class_="live")]
    if isinstance(model, VAE) and Z == 2 and not model.classes:
        side = int(np.clip((GRID_BYTES / as_bytes(maker.shown.images[:1]).size) ** 0.5, 8, 20))
        decoded = as_bytes(model.decode(manifold_points(side)))
        grid = picture(tiled(decoded, side), "The latent plane, decoded on a grid")
        told = "The whole plane, decoded: z1 grows to the right, z2 upwards, in even steps of probability."
        parts.append(figure(grid, told, "Good: one thing turns smoothly into the next.", class_="square"))
    if maker.kl is not None:
        parts += [traversals(maker), kl_bars(maker.kl)]
    parts.append(interpolations(maker))
    first, *others = [x for x in parts if x]
    half = 1 if Z == 2 and len(others) > 1 else -(-len(others) // 2)
    columns = tag("div", tag("div", *others[:half]), tag("div", *others[half:]), class_="two") if others else None
    return section("latent", "Latent space", first, columns)


def _likelihood(m: dict[str, Any]) -> Section | None:
    if m.get("neg_elbo") is None:
        return None
    rows = [
        ("reconstruction", m["reconstruction"], None),
        ("KL divergence", m["kl"], None),
        ("negative ELBO, their sum", m["neg_elbo"], error_of("neg_elbo", m)),
    ]
    if m.get("mixture_neg_elbo") is not None:
        rows.append(("the same with the mixture as the prior", m["mixture_neg_elbo"], error_of("neg_elbo", m)))
    if m["model"].get("likelihood") == "bernoulli" and m.get("data_entropy") is not None:
        rows.insert(0, ("entropy of grey pixels: reconstruction cannot be lower", m["data_entropy"], None))
    if m.get("iw_nll") is not None:
        rows.append(("importance-weighted bound, binarised images", m["iw_nll"], error_of("iw_nll", m)))
    if m.get("mixture_nll") is not None:
        rows.append(("this bound with the mixture as the prior", m["mixture_nll"], error_of("mixture_nll", m)))
    told = [(name, value, rounded(value, error) if error else f"{value:.1f}") for name, value, error in rows]
    sees = "In nats per image, on test images. The negative ELBO is an upper bound of the negative log-likelihood."
    drawn = bars(told, "nats per image", "bars wide")
    return section(
        "likelihood", "Likelihood", figure(drawn, sees, "Good: lower, and no higher than on training images.")
    )


def _table(measured: dict[str, Any]) -> Section | None:
    parts = []
    for group, rows in groups(measured).items():
        cells = [
            tag("tr", tag("th", _breakable(name), scope="row"), tag("td", value), tag("td", meaning, class_="faint"))
            for name, value, meaning in rows
        ]
        parts.append(tag("details", tag("summary", group), tag("table", *cells)))
    return section("numbers", "All numbers", *parts)


def _breakable(name: str) -> Markup:
    """A name that may be broken after each underscore."""
    return Markup(name.replace("_", "_<wbr>"))


def _provenance(model: Autoencoder, measured: dict[str, Any] | None, record: dict[str, Any]) -> Section | None:
    configuration: dict[str, Any] = {"model": model.config}  # of a run, too, how it was trained
    configuration |= {name: record[name] for name in ("options", "learning_rate") if name in record}
    commands = [*record.get("commands", []), *([measured["command"]] if measured else [])]
    folded = {"Layers": model.summary(), "Configuration": json.dumps(configuration, indent=2)}
    if measured:
        folded["Environment"] = json.dumps(measured["environment"], indent=2)
    parts = [tag("pre", without_paths("\n".join(commands)), tabindex=0)] if commands else []
    for name, text in folded.items():
        block = tag("pre", without_paths(text), tabindex=0, class_="json" if text[:1] == "{" else None)
        parts.append(tag("details", tag("summary", name), block))
    return section("made", "How it was made", *parts)
