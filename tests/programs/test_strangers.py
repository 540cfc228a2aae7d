"""Folders that a stranger sent: nothing outside of them is touched, nothing hangs, and the error names the file.

And what a program leaves of the process that it runs in.
"""

import io
import json
import os
import re
import runpy
import shutil
import signal
import stat
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernel_sets import NEEDS_NUMBA
from program_cases import change_record, content, no_pictures, raising
from programs import EVALUATE, GENERATE, TRAIN

import autoencoders
import minigrad
from autoencoders import VAE, Autoencoder
from autoencoders.cli import program as cli
from autoencoders.data import load_dataset
from autoencoders.evaluation.mixture import Mixture, load_mixture, save_mixture
from autoencoders.pictures import canvas, sheets
from autoencoders.runs import record as run_record, replace as run_files, run as run_module
from autoencoders.runs.report import read_history
from autoencoders.training import latest_checkpoint, load_checkpoint
from minigrad.serialize import MOST_LISTS, MOST_TEXT, DataError, load_state, numbered, open_file, read_file, save_state

TINY = "--filters 2 --kernels 3 --strides 2 --epochs 2 --batch-size 8 --threads 1".split()  # noqa: SIM905
TINY += ["--dataset", "own.npz", "--quiet"]
REAL_MEASURE = EVALUATE.module.measure
FIFOS = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
READ, RESUME, REPLACE = "read", "resume", "replace"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """own.npz, and a finished run of a plain autoencoder on it."""
    place = tmp_path_factory.mktemp("shelf")
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
    np.savez(place / "own.npz", x_train=images[:30], y_train=np.arange(30) % 3, x_test=images[30:])
    with no_pictures() as patch:
        patch.chdir(place)
        patch.setattr(run_module, "fatal", lambda figures: [])
        assert TRAIN.main([*TINY, "--model", "ae", "--out", "run"]) == 0
    return place


@pytest.fixture
def run(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restored_backends: None) -> Path:
    """A run to change, in the working folder, beside what belongs to the user: the folder `mine`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINIGRAD_CACHE", str(tmp_path / "cache"))
    for drawing in ("run.draw", "report.draw", "report.close_ups"):
        monkeypatch.setattr(f"autoencoders.runs.{drawing}", lambda *_, **__: {})
    monkeypatch.setattr(EVALUATE.module, "measure", measure)
    monkeypatch.setattr(run_module, "fatal", lambda figures: [])  # no model of a few steps works
    monkeypatch.setattr("autoencoders.pictures.charts.film_frame", lambda *_: None)
    monkeypatch.setattr("autoencoders.pictures.canvas.pixels", lambda _: np.zeros((8, 8, 3), np.uint8))
    shutil.copytree(shelf / "run", "run")
    shutil.copy(shelf / "own.npz", "own.npz")
    for name in (*run_files.OWN_FILES, "id_rsa", "sub/diary.txt", ".history.csv.a.part", ".step-1.safetensors.b.part"):
        path = Path("mine") / name.replace("*", "00000001")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"mine, {name}")
    for folder in ("checkpoints", "figures", "film"):
        (Path("mine") / folder / ".x.c.part").write_text("mine")
    return Path("run")


@cache
def measured() -> str:
    return json.dumps(REAL_MEASURE(autoencoders.load("run"), load_dataset("own.npz"), iw_samples=0))


def measure(*_: Any, **__: Any) -> Any:
    """What is measured of the run, once for all tests."""
    return json.loads(measured())


def programs(run: Path, kind: str) -> list[tuple[Any, ...]]:
    """The programs that meet the fault, with their options."""
    read = ["--model-dir", run, "--dataset", "own.npz"]
    if kind == READ:
        return [(GENERATE, *read), (EVALUATE, *read, "--iw-samples", 0)]
    return [(TRAIN, *(("--resume", "--quiet") if kind == RESUME else (*TINY, "--overwrite")), "--out", run)]


# ---- what lies in a folder ----


def cleared(path: Path) -> Path:
    """The path with nothing there."""
    shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    return path


def link(name: str, target: str = "mine") -> Callable[[Path], None]:
    return lambda run: cleared(run / name).symlink_to(
        target if target[0] == "/" else os.path.relpath(target, (run / name).parent)
    )


def link_to_file(name: str) -> Callable[[Path], None]:
    return link(name, "mine/id_rsa")


def pipe(name: str) -> Callable[[Path], None]:
    return lambda run: os.mkfifo(cleared(run / name))


def sparse(name: str) -> Callable[[Path], None]:
    def make(run: Path) -> None:
        (run / name).write_bytes(b" ")
        os.truncate(run / name, 10 << 30)

    return make


def brackets(name: str) -> Callable[[Path], None]:
    text = b'{"data": [' + b"[]," * MOST_LISTS + b"[]]}"
    length = len(text).to_bytes(8, "little") if "safetensors" in name else b""
    return lambda run: (run / name).write_bytes(length + text)


EVERY = (READ, RESUME, REPLACE)
FOLDERS = [
    (link(".lock", "mine/not there yet"), (RESUME, REPLACE), 3, ".lock: cannot be written: it is a link"),
    (link("figures"), EVERY, 3, "figures: expected a folder, found a link"),
    (link("film"), (RESUME, REPLACE), 3, "film: expected a folder, found a link"),
    (link("checkpoints"), (RESUME,), 3, "checkpoints: expected a folder, found something else"),
    (link_to_file("run.json"), (REPLACE,), 0, ""),
    (link_to_file("run.json"), (READ,), 3, "run.json: is a link that leads out of run"),
    (link_to_file("mixture.safetensors"), (READ,), 3, "mixture.safetensors: is a link that leads out of run"),
    (brackets("run.json"), (READ,), 3, "run.json: cannot be read as JSON (expected at most"),
    (brackets("model.safetensors"), (READ,), 3, "model.safetensors: not a minigrad state file"),
    (sparse("run.json"), (READ,), 3, "run.json: size: expected at most"),
    (sparse("mixture.safetensors"), (READ,), 3, "mixture.safetensors: not a minigrad state file"),
    pytest.param(pipe("run.json"), (READ,), 3, "run.json: kind: expected a file", marks=FIFOS),
    pytest.param(pipe("mixture.safetensors"), (READ,), 3, "mixture.safetensors: kind: expected a", marks=FIFOS),
    pytest.param(pipe(".lock"), (RESUME, REPLACE), 3, ".lock: cannot be written: it is a link, or no", marks=FIFOS),
]  # fmt: skip


@pytest.mark.parametrize(("make", "kinds", "code", "told"), FOLDERS)
def test_a_folder_of_a_stranger_touches_nothing_of_the_users(make, kinds, code, told, run, call):
    make(run)
    before = content(Path("mine"))
    for program in [program for kind in kinds for program in programs(run, kind)]:
        done = call(*program)
        if code:
            done.failed(code, told)
        else:
            said = [line for line in done.err.splitlines() if "steps of training are few" not in line]
            assert (done.code, said) == (0, [])
        assert content(Path("mine")) == before
    assert not list(Path("mine").rglob("not there yet"))


@pytest.mark.parametrize("inside", ["history.jsonl", "film/epoch-00001.safetensors"])
@pytest.mark.parametrize(
    "make", [link_to_file, sparse, brackets, pytest.param(pipe, marks=FIFOS), lambda name: link(name, "/dev/zero")]
)
def test_what_an_evaluation_can_do_without_is_told_and_left_out(make, inside, run, call):
    pytest.importorskip("sklearn")
    make(inside)(run)
    before = content(Path("mine"))
    done = call(*programs(run, READ)[1]).ok()
    assert inside in done.out or "no losses that can be drawn" in done.out
    assert "no loss curves: " in done.out or "no film: " in done.out
    assert content(Path("mine")) == before


@pytest.mark.parametrize(
    ("epochs", "losses"),
    [([1e308, -1e308], [1, 2]), ([float("nan"), 1], [1, 2]), ([1e300], [1]), ([1, 2], [1e308, -1e308]), ([1], [1e99])],
)
def test_a_history_that_no_axis_can_span_is_told_and_left_out(epochs, losses, run):
    rows = [{"epoch": epoch, "loss": loss} for epoch, loss in zip(epochs, losses, strict=True)]
    (run / "history.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with pytest.raises(DataError, match=r"history\.jsonl: no losses that can be drawn"):
        read_history(run)


@pytest.mark.parametrize("changes", [{"options": [1]}, {"options": {"validation": 1e300}}, {"data": None}])
def test_a_record_that_cannot_be_is_named(changes, run):
    change_record(run, **changes)
    with pytest.raises(DataError, match=r"^run/run\.json: "):
        run_record.trained_on(run, load_dataset("own.npz"))


def test_links_that_stay_in_the_folder_and_links_to_it_are_fine(run, call):
    (run / "model.safetensors").rename(run / "kept.safetensors")
    (run / "model.safetensors").symlink_to("kept.safetensors")
    Path("link").symlink_to("run")
    for kind in (READ, RESUME):
        assert call(*programs(Path("link"), kind)[0]).code == 0


def test_what_is_not_of_a_run_stays_where_it_is(run, call):
    """In the place of an old run, too."""
    for place in ("old-1", "old-2"):
        (run / place / "checkpoints").mkdir(parents=True)
        for name in ("diary.txt", "checkpoints/step-good.safetensors"):
            (run / place / name).write_text("mine")
    before = {name: x for name, x in content(run).items() if x == b"mine"}
    assert len(before) == 4
    for program in (*programs(run, READ), *programs(run, RESUME)):
        assert call(*program).code == 0
    assert {name: x for name, x in content(run).items() if x == b"mine"} == before


def test_copies_of_checkpoints_neither_count_nor_go(run, call):
    names = ("step-good", "step-00000009_mine", "step-00000009 (copy)", "step-", "step-٣", "step--5", "step-1e9")
    newest = latest_checkpoint(run)
    for name in names:
        shutil.copy(newest, run / "checkpoints" / f"{name}.safetensors")
    assert latest_checkpoint(run) == newest
    assert load_checkpoint(run, pytest.fail)[2] == newest
    assert call(*programs(run, REPLACE)[0]).code == 0
    left = {path.stem for path in (run / "checkpoints").iterdir()}
    assert set(names) <= left
    assert len(left - set(names)) == 2, "one for each epoch"


def test_numbers_decide_the_order_also_of_many_digits(tmp_path):
    for number in ("99999999", "100000000", "00000007", "8"):
        (tmp_path / f"x-{number}.y").write_text("")
    assert [path.name[2:-2] for path in numbered(tmp_path, "x-*.y")] == ["00000007", "8", "99999999", "100000000"]


# ---- what is read is bounded ----


def test_a_file_grows_no_further_than_allowed_and_is_a_file(tmp_path):
    (tmp_path / "x").write_bytes(b"1234")
    with open_file(tmp_path / "x", tmp_path, 4) as (file, size):
        assert (file.read(), size) == (b"1234", 4)
    with pytest.raises(DataError, match="x: size: expected at most 3 bytes, found 4"):
        read_file(tmp_path / "x", None, 3)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DataError, match="loop: "):
        read_file(tmp_path / "loop")


@FIFOS
def test_what_takes_the_place_of_a_file_meanwhile_is_not_waited_for(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr("minigrad.serialize.require_file", lambda path, *_: str(path))
    with pytest.raises(DataError, match="pipe: kind: expected a file, found a special file"):
        read_file(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    with pytest.raises(DataError, match="link: cannot be read"):
        read_file(tmp_path / "link")


def test_no_honest_header_comes_near_the_bounds(tmp_path):
    rows = [dict.fromkeys(("epoch", *"abcdefghij"), 1 / 3) for _ in range(20_000)]
    save_state(tmp_path / "x", {}, {"progress": {"rows": rows}})
    assert (tmp_path / "x").stat().st_size < MOST_TEXT / 3
    assert load_state(tmp_path / "x")[1]["progress"]["rows"] == rows


# the input, the result, and the padding, though so many weights would not fit either
@pytest.mark.parametrize("sizes", [(10**6, 1, 10**6, 1), (1000, 1, 1, 10**6), (1, 10**6, 1, 1)])
def test_a_small_file_that_claims_large_layers_is_refused(sizes):
    side, kernel, stride, filters = sizes
    with pytest.raises(
        minigrad.DeviceError, match=r"1 x [1-9](,\d{3}){4,} numbers in a layer, needs about .* are free"
    ):
        Autoencoder((side, side, 1), (filters,), (kernel,), (stride,), 1)


def test_what_a_layer_takes_counts_for_all_images_of_a_batch(run, call, monkeypatch):
    passing = 64 + 9 * 9 + 4 * 4 * 2  # what the convolution is given, padded, and gives
    monkeypatch.setattr(minigrad.Backend, "free_memory", lambda _: 4 * 256 * passing)
    for program in programs(run, READ):
        call(*program).failed(4, f"256 x {passing} numbers in a layer")


# ---- a mixture ----

EYE = np.eye(2)[None].repeat(2, axis=0)
GOOD = {"weights": np.array([0.25, 0.75]), "means": np.zeros((2, 2)), "covariances": EYE}


def made_for(run: Path) -> dict[str, str]:
    """The record of a mixture for a model."""
    return {"kind": "mixture", "fitted_to": load_state(run / "model.safetensors")[2]}


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": np.array([0.5, np.nan])},
        {"weights": np.array([-1.0, 2.0])},
        {"weights": np.array([1.0, 1.0])},
        {"weights": np.zeros(0), "means": np.zeros((0, 2)), "covariances": np.zeros((0, 2, 2))},
        {"weights": np.array([[0.25], [0.75]])},
        {"means": np.zeros((3, 2))},
        {"means": np.zeros((2, 3)), "covariances": np.eye(3)[None].repeat(2, axis=0)},
        {"means": np.full((2, 2), 1e300)},
        {"covariances": -EYE},
        {"covariances": EYE * np.nan},
        {"covariances": EYE[0]},
        {"more": np.zeros(2)},
    ],
    ids=str,
)
def test_a_mixture_that_is_none_is_named(changes, run):
    save_state(run / "mixture.safetensors", GOOD | changes, made_for(run))
    told = "not a mixture" if "more" in changes else "expected weights .* found others"
    with pytest.raises(DataError, match=rf"mixture.safetensors: {told}; remove it, and fit another one"):
        load_mixture(run)
    save_mixture(run, Mixture(**GOOD))
    assert load_mixture(run)


def test_a_mixture_that_is_none_ends_the_programs_with_3(run, call):
    save_state(run / "mixture.safetensors", GOOD | {"covariances": -EYE}, made_for(run))
    for program in programs(run, READ):
        call(*program).failed(3, "mixture.safetensors: expected weights")


# ---- data ----


def without_data(program: Any, *words: Any) -> tuple[Any, ...]:
    return program, *(word for word in words if word not in ("--dataset", "own.npz"))


def test_own_images_that_only_the_folder_names_need_the_option(run, call):
    for program in programs(run, READ):
        done = call(*without_data(*program))
        done.failed(3, "run.json: data: names images by a path", "--dataset")
        assert done.out == ""


@pytest.mark.parametrize("kind", [READ, RESUME])
def test_nothing_is_downloaded_to_where_only_the_folder_says(kind, run, call, monkeypatch):
    data = json.loads((run / "run.json").read_text())["data"]
    data |= {"name": "fashion-mnist", "data_dir": str(Path("mine").absolute())}
    change_record(run, data=data)
    path = latest_checkpoint(run)
    arrays, saved, _ = load_state(path)
    saved.pop("format")
    save_state(path, arrays, saved | {"data": data})
    monkeypatch.setattr("autoencoders.data.search.fetch", lambda *_: pytest.fail("downloads"), raising=False)
    before = content(Path("mine"))
    for program in programs(run, kind):
        call(*without_data(*program)).failed(3, "downloads are off", *["--data-dir"] * (kind == READ))
    assert content(Path("mine")) == before


# ---- results beside files of the user's ----


@pytest.mark.parametrize(
    ("program", "words", "names"),
    [
        (EVALUATE, ["--iw-samples", 0], ["evaluation.json", "report.html", "figures/worst.png", "figures/film.gif"]),
        (GENERATE, [], ["samples.png", "reconstructions.png"]),
    ],
)
def test_out_replaces_what_no_run_made_only_on_request(program, words, names, run, call, monkeypatch):
    pytest.importorskip("sklearn")
    drawn = {"reconstructions": sheets.samples(np.zeros((1, 8, 8, 1)))}
    monkeypatch.setattr(GENERATE.module, "draw", lambda *_, **__: drawn)
    words = ["--model-dir", run, "--dataset", "own.npz", *words]
    for name in names:
        out = Path("out") / name
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("mine")
        told = f"out holds {name}, which no run has made; move them away, or use another --out or --overwrite"
        call(program, *words, "--out", "out").failed(1, told)
        assert out.read_text() == "mine"
        out.unlink()
    Path("out", names[0]).write_text("mine")
    for last in (["--out", "out", "--overwrite"], []):  # and in the run's folder
        assert call(program, *words, *last).code == 0
    if program is EVALUATE:
        assert call(program, *words, "--out", "out").code == 0, "what it has made itself"


# ---- the path of a model ----


def test_the_path_of_a_model_is_as_good_as_its_folder(run, call):
    shutil.copy(run / "model.safetensors", "copy.safetensors")
    Path("link").symlink_to("copy.safetensors")
    expected = autoencoders.load(run).config
    for path in (run / "model.safetensors", "copy.safetensors", str(Path("link").absolute())):
        assert autoencoders.load(path).config == Autoencoder.load(path).config == expected
    assert autoencoders.load(latest_checkpoint(run)).config == expected
    for program, _, _, *words in programs(run, READ):
        assert call(program, "--model-dir", run / "model.safetensors", *words).code == 0


def test_a_class_of_ones_own_is_loaded_as_that(tmp_path):
    Mine, Plain = type("Mine", (VAE,), {}), type("Plain", (Autoencoder,), {})
    Named = type("Named", (VAE,), {"kind": "named"})
    shape = (8, 8, 1), (2,), (3,), (2,), 2
    for name, made in (("vae", VAE), ("mine", Mine), ("plain", Plain), ("named", Named)):
        made(*shape).save(tmp_path / name)
    for wanted, name in ((Mine, "mine"), (Mine, "vae"), (VAE, "mine"), (Plain, "plain"), (Named, "named")):
        assert type(wanted.load(tmp_path / name)) is wanted
    assert type(Autoencoder.load(tmp_path / "mine")) is VAE
    assert type(autoencoders.load(tmp_path / "mine")) is VAE
    for wanted, name in ((Mine, "plain"), (Plain, "vae"), (VAE, "named"), (VAE, "plain")):
        with pytest.raises(DataError, match=f"not a ({wanted.__name__}|model)"):
            wanted.load(tmp_path / name)


# ---- what is printed ----

NASTY = "a\x1b[2J\x07\r\n\x9b31m\u202eb\u2028c"


def test_what_comes_from_outside_is_shown_and_not_obeyed(run, call):
    """A name of data, and names of classes."""
    VAE((8, 8, 1), (2,), (3,), (2,), 2, classes=2, class_names=(NASTY, "b")).save("conditional")
    change_record(run, data={"name": NASTY})
    conditional = (GENERATE, "--model-dir", "conditional", "--class", "c", "--dataset", "own.npz")
    for code, program in ((3, (GENERATE, "--model-dir", run)), (3, (EVALUATE, "--model-dir", run)), (2, conditional)):
        done = call(*program)
        done.failed(code, "x1b[2J")
        assert (done.out + done.err).replace("\n", "").isprintable()


@pytest.mark.parametrize("output", ["stdout", "stderr"])
def test_every_output_of_a_program_is_escaped(output, capsys):
    def body() -> None:
        print(NASTY, file=getattr(sys, output))
        cli.show(NASTY)

    assert cli.run_program(body, debug=False) == 0
    out, err = capsys.readouterr()
    assert (out + err).replace("\n", "").replace("\r", "").isprintable()
    assert "\r" not in out
    assert r"a\x1b[2J\x07\r\n\x9b31m\u202eb\u2028c" in out.splitlines()


def test_a_class_name_as_long_as_a_file_is_cut_before_it_is_measured(monkeypatch):
    lengths: list[int] = []
    monkeypatch.setattr(canvas, "text_width", lambda text, *_: lengths.append(len(text)) or 8.0 * len(text))
    sheets.reconstructions(*np.zeros((2, 2, 8, 8, 1)), np.arange(2), ["x" * 10**6, "b\n" * 10**5])
    assert max(lengths) <= 301
    assert len(lengths) < 1000


def test_an_error_quotes_no_whole_file(capsys):
    assert cli.run_program(raising(DataError("x" * 10**6)), debug=False) == 3
    assert len(capsys.readouterr().err) < 1100


def test_the_report_escapes_what_it_is_told(run, call):
    change_record(run, commands=[f"<script>alert(1)</script>{NASTY}\ud800"])
    assert call(*programs(run, READ)[1]).code == 0
    text = (run / "report.html").read_text()
    assert "<script>alert" not in text
    assert r"&lt;script&gt;alert(1)&lt;/script&gt;a\x1b[2J\x07\r" in text
    assert text.replace("\n", "").isprintable()


# ---- the process that a program runs in ----


def state() -> dict[str, Any]:
    """What another program would notice."""
    return {
        "handlers": {n: signal.getsignal(n) for n in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}},
        "hooks": (sys.unraisablehook, sys.excepthook, threading.excepthook),
        "errstate": np.geterr(),
        "filters": list(warnings.filters),
        "environment": dict(os.environ),
        "outputs": (sys.stdout, sys.stderr, sys.stdout.errors, sys.stderr.errors),
        "words": (list(sys.argv), os.getcwd(), list(sys.path)),
        "kernels": (minigrad.backend._default, minigrad.backend._threads, dict(minigrad.backend._backends)),
        "backend": sys.modules["matplotlib"].rcParams._get_backend_or_none(),
        "timer": signal.getitimer(signal.ITIMER_REAL),
    }


ENDS = {  # how a program ends: its options or an error, and its exit code
    "well": ([], None, 0),
    "usage": (["--epochs", "none"], None, 2),
    "help": (["--help"], None, 0),
    "data": (["--dataset", "nowhere"], None, 3),
    "interrupt": ([], KeyboardInterrupt(), 130),
    "stop": ([], KeyboardInterrupt("by a callback"), 130),
    "crash": ([], RuntimeError("x"), 1),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("where", ["main", "runpy", "thread", "threads"])
def test_a_program_leaves_the_process_as_it_was(where, end, run, capsys, monkeypatch):
    minigrad.use(kernels="plain")
    more, error, code = ENDS[end]
    words = [*TINY, "--out", "new", *more, "--threads", "2"]
    if error:
        monkeypatch.setattr(run_module.Run, "execute", raising(error))
    monkeypatch.setattr(sys, "argv", ["train", *words])
    codes: list[Any] = []

    def start() -> None:
        try:
            if where in ("main", "threads"):  # runpy is not for two threads
                codes.append(TRAIN.main(words))
            else:
                runpy.run_path(str(TRAIN.file), run_name="__main__")
        except SystemExit as stop:
            codes.append(stop.code)

    before = state()
    if where.startswith("thread"):
        with ThreadPoolExecutor(2) as pool:
            wait([pool.submit(start) for _ in range(1 + where.count("s"))])
    else:
        start()
    assert state() == before
    assert min(codes) == code, "of two, the second may find the run of the first"


class Notebook:
    """An output with nothing but `write`."""

    text = ""

    def write(self, text: str) -> None:
        self.text += text


class Gone(io.StringIO):
    def flush(self) -> None:
        raise BrokenPipeError


@pytest.mark.parametrize(
    ("output", "code"), [(Notebook(), 0), (None, 0), (Gone(), 1)], ids=["notebook", "none", "gone"]
)
def test_any_output_is_enough_and_the_host_keeps_it(output, code, monkeypatch, capsys):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, output)
    assert cli.run_program(lambda: print("Fréchet \x1b"[sys.stdout.isatty() :], flush=True), debug=False) == code
    assert (sys.stdout, sys.stderr) == (output, output)
    assert not isinstance(output, Notebook) or output.text == "Fréchet \\x1b\n"


# ---- the cache of Numba ----

CACHED = "from minigrad.backend.cpu.compiling import compiled\n@compiled\ndef twice(x):\n    return 2 * x\n"


@NEEDS_NUMBA
@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize(
    ("outer", "inner", "kept"),
    [(0o700, 0o700, True), (0o755, 0o755, True), (0o700, 0o777, True), (0o755, 0o775, False), (0o777, 0o755, False)],
)
def test_a_cache_that_others_can_write_is_not_used(outer, inner, kept, asked, tmp_path, monkeypatch):
    import numba

    from minigrad.backend.cpu import compiling

    (tmp_path / "source").mkdir()
    source = tmp_path / "source" / "of_twice.py"
    source.write_text(CACHED)
    place = tmp_path / ("asked" if asked else "source")
    place.mkdir(exist_ok=True)
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(place) if asked else "")
    monkeypatch.setattr(compiling.AppDirs, "user_cache_dir", property(lambda _: str(tmp_path / "user")))

    found = Path(runpy.run_path(str(source))["twice"].stats.cache_path)
    found.chmod(inner)
    found.parent.chmod(outer)
    assert found.parent == place
    again = runpy.run_path(str(source))["twice"].stats.cache_path
    if kept:
        assert Path(again) == found
    elif asked:
        assert again is None, "it is not used, and what was asked for is not replaced by another"
    else:
        assert Path(again).parent == tmp_path / "user"
        assert stat.S_IMODE((tmp_path / "user").stat().st_mode) == 0o700
    assert (str(place) if asked else "") == numba.config.CACHE_DIR


@NEEDS_NUMBA
def test_the_cache_of_another_owner_is_not_used(tmp_path, monkeypatch):
    from minigrad.backend.cpu import compiling

    assert compiling._private(tmp_path)
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    assert compiling._private(tmp_path) == (tmp_path.stat().st_uid == tmp_path.parent.stat().st_uid == 0)
    monkeypatch.setattr(Path, "stat", lambda _: os.stat_result((0o40755, 0, 0, 0, 4321, 0, 0, 0, 0, 0)))
    assert not compiling._private(tmp_path)


@NEEDS_NUMBA
def test_another_stamp_compiles_anew(tmp_path, monkeypatch):
    """A constant of another module is frozen in, which Numba does not look at."""
    from minigrad.backend.cpu import compiling

    (tmp_path / "of_twice.py").write_text(CACHED)
    misses = []
    for stamp in ("one", "one", "two"):
        monkeypatch.setattr(compiling, "STAMP", stamp)
        twice = runpy.run_path(str(tmp_path / "of_twice.py"))["twice"]
        assert twice(2.0) == 4.0
        misses.append(bool(twice.stats.cache_misses))
    assert misses == [True, False, True]


@NEEDS_NUMBA
def test_the_stamp_covers_every_constant_that_is_frozen_in():
    from minigrad.backend.cpu import compiling, layer_loops

    modules = layer_loops, layer_loops.micro_kernels, layer_loops.row_loops
    dispatchers = {x for module in modules for x in vars(module).values() if isinstance(x, layer_loops.Dispatcher)}
    assert len(dispatchers) > 10
    used = [(name, x.py_func.__globals__.get(name)) for x in dispatchers for name in x.py_func.__code__.co_names]
    constants = {name for name, value in used if isinstance(value, int | float | tuple | np.dtype)}
    assert "VECTOR" in constants
    source = "".join(file.read_text() for file in Path(compiling.__file__).parent.glob("*.py"))
    for name in constants:
        assert re.search(rf"^(\w+, )*{name}(, \w+)* = ", source, re.MULTILINE), name
