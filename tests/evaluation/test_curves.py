"""The losses of two runs side by side: runs of every kind and of every end, and folders that cannot be compared."""

from __future__ import annotations

import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import minigrad
from autoencoders import VAE, Autoencoder, TrainingOptions
from autoencoders.data import load_dataset
from autoencoders.page import curves
from autoencoders.page.curves import Curves, loss_charts
from autoencoders.runs import resume_run, run as run_module, start_run
from autoencoders.runs.report import runs_to_compare
from autoencoders.training import Callback, DivergedError
from minigrad.serialize import DataError

KINDS = ("ae", "vae", "conditional", "validated", "one epoch", "longer", "stopped early", "resumed", "diverged")


@pytest.fixture(autouse=True)
def _backend(restored_backends: None) -> None:
    minigrad.use(kernels="numpy", threads=1)


class At(Callback):
    """Does something before the second epoch."""

    def __init__(self, does):
        self.does = does

    def on_epoch_begin(self, trainer):
        if trainer.progress.epoch == 1:
            self.does(trainer)


def interrupt(_):
    raise KeyboardInterrupt


def diverge(trainer):
    trainer.optimizer.learning_rate = 1e30


@pytest.fixture(scope="module")
def shelf(module_backends: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each kind."""
    folder = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(1)
    np.savez(folder / "images.npz", images=rng.integers(0, 256, (80, 8, 8, 1), np.uint8), labels=np.arange(80) % 3)
    data = load_dataset(str(folder / "images.npz"), progress=False)
    minigrad.use(kernels="numpy", threads=1)
    held_out = {"validation": 16}
    options: dict[str, dict] = {"validated": held_out, "one epoch": {"epochs": 1}, "longer": {"epochs": 5, **held_out}}
    options["stopped early"] = {"epochs": 30, "patience": 1, **held_out}
    events = {"resumed": interrupt, "diverged": diverge}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "draw", lambda *_, **__: {})
        patch.setattr(run_module, "save_pictures", lambda *_: [])
        for kind in KINDS:
            model = (Autoencoder if kind == "ae" else VAE)(
                (8, 8, 1), (4,), (3,), (2,), 2, **({"classes": 3} if kind == "conditional" else {})
            )
            chosen = TrainingOptions(**{"batch_size": 16, "epochs": 3} | options.get(kind, {}))
            made = start_run(model, data, chosen, folder / kind, learning_rate=1e-2, progress=False)
            if kind in ("resumed", "diverged"):
                made.trainer.callbacks = [*made.trainer.callbacks, At(events[kind])]
                with pytest.raises((KeyboardInterrupt, DivergedError)):
                    made.execute(lambda _: None)
            else:
                made.execute(lambda _: None)
        resume_run(folder / "resumed", tell=lambda _: None, progress=False).execute(lambda _: None)
    return {kind: folder / kind for kind in KINDS}


class Tables(HTMLParser):
    """The texts of the cells of each table, row by row, and the labels of the charts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.labels: list[str] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.inside = True
        elif tag == "svg":
            self.labels.append(dict(attrs)["aria-label"] or "")

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.tables[-1][-1][-1] += data


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def test_the_runs_are_of_all_kinds(shelf):
    ends = {kind: len(rows_of(folder)) for kind, folder in shelf.items()}
    assert ends["diverged"] == ends["one epoch"] == 1
    assert (ends["vae"], ends["resumed"], ends["longer"]) == (3, 3, 5)
    assert 1 < ends["stopped early"] < 30
    status = {kind: json.loads((folder / "run.json").read_text())["status"] for kind, folder in shelf.items()}
    assert "diverged" in status["diverged"]
    assert status["resumed"] == "finished"


@pytest.mark.parametrize(("a", "b"), list(itertools.combinations(KINDS, 2)))
def test_any_two_runs_are_compared_or_refused(a, b, shelf):
    for one, other in ((a, b), (b, a)):
        folders = shelf[one], shelf[other]
        if "ae" in (one, other):
            with pytest.raises(DataError, match=rf"{other}: its losses are in .* but those of .*{one} in "):
                runs_to_compare(*folders)
            continue
        histories = [rows_of(folder) for folder in folders]
        figures, data = loss_charts(runs_to_compare(*folders))
        found = Tables("".join(figures))
        assert data["epochs"] == list(range(1, 1 + max(map(len, histories))))
        *values, differences = found.tables
        assert len(values) == 3
        assert len(found.labels) == 9, "of each part one of both runs, and one of each"
        cells = iter(data["cells"])
        for table, key in zip(values, ("loss", "reconstruction", "kl"), strict=True):
            kinds = ["", "val_"] if any("val_loss" in rows[0] for rows in histories) else [""]
            assert table[0] == ["last epoch", one, other]
            assert [row[0] for row in table[1:]] == ["training", "validation"][: len(kinds)]
            for row, prefix in zip(table[1:], kinds, strict=True):
                for cell, rows in zip(row[1:], histories, strict=True):
                    expected = [row.get(prefix + key) for row in rows] + [None] * (len(data["epochs"]) - len(rows))
                    assert next(cells) == [x if x is None else pytest.approx(x, rel=1e-4) for x in expected]
                    last = rows[-1].get(prefix + key)
                    assert cell == "\N{EN DASH}" if last is None else float(cell) == pytest.approx(last, rel=1e-4)
        assert next(cells, None) is None
        told = {name: texts for name, *texts in differences}
        assert told["epochs trained"] == [str(len(rows)) for rows in histories]
        for text, rows in zip(told["lowest training loss"], histories, strict=True):
            lowest = min(rows, key=lambda row: row["loss"])
            value, epoch = re.fullmatch(r"(\S+) \(epoch (\d+)\)", text).groups()
            assert (float(value), int(epoch)) == (pytest.approx(lowest["loss"], rel=1e-4), lowest["epoch"])


def test_what_differs_is_named_and_nothing_else(shelf):
    figure = Tables("".join(loss_charts(runs_to_compare(shelf["vae"], shelf["longer"]))[0]))
    rows = {name: texts for name, *texts in figure.tables[-1]}
    assert rows["epochs"] == ["3", "5"]
    assert rows["validation"] == ["0", "16"]
    results = {"What differs", "epochs trained", "seconds"}
    results |= {f"{which} {kind} loss" for which in ("last", "lowest") for kind in ("training", "validation")}
    assert set(rows) == results | {"epochs", "validation"}


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"beta": 2.0}, "beta"), ({"images": "x", "denoise": 0.1}, "images, denoise"), ({"a": 1}, "")],
)
def test_losses_that_measure_something_else_are_compared_with_care(settings, told):
    plain = Curves("a", [{"loss": 1.0}], "nats", {})
    text = "".join(loss_charts([plain, plain._replace(name="b", settings=settings)])[0])
    assert ("Compare with care" in text) == bool(told)
    assert f"depend on {told}, too" in text or not told


def test_names_are_as_short_as_tells_them_apart_and_escaped(shelf, tmp_path):
    places = [tmp_path / x for x in ("a/<b>/run", "a/&/run", "a/<b>/other")]
    for place in places:
        place.mkdir(parents=True)
        for name in ("run.json", "history.jsonl"):
            (place / name).write_bytes((shelf["vae"] / name).read_bytes())
    first, second, third = places
    runs = runs_to_compare(first, second)
    assert [run.name for run in runs] == ["<b>/run", "&/run"]
    text = "".join(loss_charts(runs)[0])
    assert "&lt;b&gt;/run" in text
    assert "<b>" not in text
    assert [run.name for run in runs_to_compare(first, third)] == ["run", "other"]


@pytest.mark.parametrize("counts", [(1, 1), (499, 500), (3, 2000), (1301, 70_000)], ids=str)
def test_a_long_run_is_thinned_to_what_a_page_can_hold(counts):
    histories = [[{"loss": 1 / i, "kl": 1.0} for i in range(1, n + 1)] for n in counts]
    runs = [Curves(f"run {k}", rows, "", {}) for k, rows in enumerate(histories)]
    figures, data = loss_charts(runs)
    epochs = data["epochs"]
    assert len(epochs) <= curves.MOST_EPOCHS + 2
    assert epochs[0] == 1
    assert {*counts} <= set(epochs), "the last of each"
    if max(counts) <= curves.MOST_EPOCHS:
        assert len(epochs) == max(counts)
    assert len("".join(figures)) < 2e5
    assert len(json.dumps(data)) < 1e5


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), 1e300, 10**400, "1.5", "<b>", [1], {}])
def test_a_value_that_is_no_number_is_a_gap(value):
    rows = [{"loss": 2.0}, {"loss": value, "seconds": value}, {"loss": 1.0}]
    _, data = loss_charts([Curves("a", rows, "", {}), Curves("b", rows[:1], "", {"x": value})])
    assert data["cells"] == [[2.0, None, 1.0], [2.0, None, None]]
    json.dumps(data, allow_nan=False)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda folder: folder.rename(folder.with_name("away")), r"run\.json: there is no such run"),
        (lambda folder: (folder / "run.json").unlink(), r"run\.json: there is no such run"),
        (lambda folder: (folder / "run.json").write_text("{"), r"run\.json: cannot be read as JSON"),
        (lambda folder: (folder / "run.json").write_text('{"model": {"kind": []}}'), r"run\.json: model: expected"),
        (lambda folder: (folder / "run.json").write_text('{"model": 3}'), r"run\.json: model: expected"),
        (lambda folder: (folder / "history.jsonl").unlink(), r"history\.jsonl: there is no such file"),
        (lambda folder: (folder / "history.jsonl").write_text(""), r"history\.jsonl: no losses that can be drawn"),
        (lambda folder: (folder / "history.jsonl").write_text("[]"), r"history\.jsonl: no losses that can be drawn"),
    ],
    ids=["no folder", "no record", "cut", "odd kind", "odd model", "no history", "empty", "odd history"],
)  # fmt: skip
@pytest.mark.parametrize("first", [True, False], ids=["model", "other"])
def test_a_folder_that_cannot_be_compared_is_named(change, told, first, shelf, tmp_path):
    bad = tmp_path / "bad"
    bad.mkdir()
    for name in ("run.json", "history.jsonl"):
        (bad / name).write_bytes((shelf["vae"] / name).read_bytes())
    change(bad)
    with pytest.raises(DataError, match=f"bad.{told}|bad: {told}"):
        runs_to_compare(*([bad, shelf["longer"]] if first else [shelf["longer"], bad]))
