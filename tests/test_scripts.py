"""The three programs as a user meets them: files, exit codes, one-line errors, resuming, and what is drawn.

Most of it calls main(argv) in this process; only what needs a process of its own (signals, no display) starts one.
"""

from __future__ import annotations

import csv
import hashlib
import html
import importlib.util
import io
import json
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import warnings
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from conftest import NEEDS_EVAL
from faults import started
from PIL import Image
from programs import EVALUATE, GENERATE, SCRIPTS, TRAIN, Script

import autoencoders
import minigrad.backend
from autoencoders.cli.program import Program, UsageError, run_program
from autoencoders.cli.settings import OPTIONS, read_config, recipes
from autoencoders.data import Dataset, load_dataset
from autoencoders.evaluation import diagnosis
from autoencoders.pictures import canvas, charts, gallery, sheets
from autoencoders.runs import run as run_module
from autoencoders.runs import start as run_start
from autoencoders.training import DivergedError, Trainer, latest_checkpoint
from minigrad import DeviceError
from minigrad.random import generator
from minigrad.serialize import DataError, load_state, save_state

SAMPLE = ("--dataset", "fashion-mnist-sample")
NETWORK = ("--filters", "4", "8", "--kernels", "3", "3", "--strides", "2", "2", "--batch-size", "32")
TINY = (*NETWORK, *SAMPLE, "--limit-train", "64", "--threads", "1")
HANGUP = pytest.param(getattr(signal, "SIGHUP", None), marks=pytest.mark.skipif(os.name == "nt", reason="has none"))
VAE_PICTURES = {"reconstructions", "latent_space", "interpolations", "samples"}
AE_PICTURES = {"reconstructions", "latent_space", "interpolations"}


PROGRAMS = pytest.mark.parametrize("program", [TRAIN, GENERATE, EVALUATE], ids=lambda p: p.__name__)
READERS = pytest.mark.parametrize("program", [GENERATE, EVALUATE], ids=lambda p: p.__name__)


@dataclass
class Done:
    code: int
    out: str
    err: str

    def failed(self, code: int, *fragments: str) -> None:
        """It ended with the code and one line on stderr that holds the fragments, after which a command may stand."""
        compiling = "minigrad: compiling the numba kernels"  # the first program on a machine says so
        lines = [line for line in self.err.splitlines() if not line.startswith((compiling, "  "))]
        assert (self.code, len(lines)) == (code, 1), self.err
        assert lines[0].startswith("error: ")
        for fragment in fragments:
            assert fragment in self.err, self.err


STANDARDIZE = run_module.standardize


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch, restored_backends, hangup):
    """A working folder of its own, no data but the sample, no display."""
    monkeypatch.chdir(tmp_path)
    for name in ("MINIGRAD_DATA", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MINIGRAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(run_module, "fatal", lambda figures: [])  # no model of a few steps works
    monkeypatch.setattr(run_module, "standardize", lambda *_, **__: 0.0)  # a model is that of its last step


@pytest.fixture
def call(capsys):
    def call(program: Script, *argv: object) -> Done:
        capsys.readouterr()
        try:
            code = program.main([str(word) for word in argv])
        except SystemExit as stop:
            code = stop.code
        return Done(code, *capsys.readouterr())

    return call


@contextmanager
def no_pictures():
    """Training draws nothing, which takes most of a short run's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "draw", lambda *_, **__: {})
        patch.setattr(run_module, "save_pictures", lambda *_: [])
        yield patch


@pytest.fixture
def undrawn():
    with no_pictures() as patch:
        yield patch


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def trained(shelf, call):
    """The folder of a finished run, made when first asked for. Not to be changed."""

    def trained(model: str = "vae", latent: int = 2, *words: str) -> Path:
        folder = shelf / "".join((model, str(latent), *words))
        if not folder.exists():
            words = ("--model", model, "--latent-dim", str(latent), "--epochs", "2", *words)
            with no_pictures():
                done = call(TRAIN, *TINY, *words, "--out", folder)
            assert done.code == 0, done.err
        return folder

    return trained


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def weights(folder: Path) -> tuple[dict, str]:
    """What a saved model holds, and its SHA-256. (safetensors orders the header of equal files by chance.)"""
    arrays, saved, digest = load_state(folder / "model.safetensors")
    return {name: x.tobytes() for name, x in arrays.items()} | saved["model"], digest


def record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def losses(folder: Path) -> list[dict]:
    """The history without what depends on time."""
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]


def pictures(folder: Path) -> set[str]:
    for path in folder.iterdir():
        assert path.suffix == ".png"
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert np.asarray(picture.convert("L")).std() > 1, f"{path.name} is blank"
    return {path.stem for path in folder.iterdir()}


# ---- help ----


@PROGRAMS
def test_help_shows_every_option_its_default_and_examples_that_parse(program, call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done = call(program, "--help")
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= 80
    text = " ".join(done.out.split())
    parser = program.module.build_parser(Program.of_script(str(program.file)))
    for action in parser._actions:
        assert action.help, action.option_strings
        if action.nargs != 0 and action.dest != "config":  # flags are off, and there is no file
            assert "default:" in action.help or action.dest in ("dataset", "data_dir"), action.option_strings
        assert f"{action.option_strings[-1]} " in text
    examples = re.findall(r"^  python scripts/(\S+) (.*)$", done.out.partition("examples:")[2], re.MULTILINE)
    assert len(examples) >= 2
    for name, words in examples:
        assert name == f"{program.__name__}.py"
        parser.parse_args(shlex.split(words))
    common = ["--device", "--backend", "--threads", "--precision", "--quiet", "--verbose", "--debug", "--version"]
    groups = re.findall(r"^(\w+):\n((?:  .*\n)+)", done.out, re.MULTILINE)
    assert groups[0][0] == "options"
    assert all(f"  {name} " in "".join(lines for title, lines in groups if title != "options") for name in common)


def test_the_training_options_are_these_with_these_defaults_in_the_help(call):
    expected = """model epochs batch-size lr latent-dim filters kernels strides beta kl-warmup likelihood conditional
        denoise binarise iw-samples seed device backend threads precision data-dir dataset limit-train validation
        image-size grayscale augment test-dir skip-broken
        save-every out resume overwrite smoke config quiet verbose debug version"""
    text = " ".join(call(TRAIN, "--help").out.split())
    for name in expected.split():
        assert f" --{name}" in text
    for name, (default, kind, _) in OPTIONS.items():
        if default is not None:
            shown = " ".join(map(str, default)) if kind is list else str(default)
            described = re.search(rf" --{name} [^-].*?\(default: ([^)]*)\)", text.split(" options: ")[1])
            assert described, name
            assert described[1] == shown


@PROGRAMS
def test_a_usage_error_is_one_line_that_points_to_the_help(program, call):
    call(program, "--wat").failed(2, "--wat", "--help")
    call(program, "--seed", "x").failed(2, "--seed", "'x'", "--help")
    assert call(program, "--version").out.endswith(f".py {minigrad.__version__}\n")
    assert os.listdir() == []


@pytest.mark.parametrize(
    ("program", "words", "told"),
    [
        (TRAIN, "--epoch 3", "no option --epoch; did you mean --epochs?"),
        (TRAIN, "--bacth-size=3", "no option --bacth-size; did you mean --batch-size?"),
        (TRAIN, "--latent_dim 3", "did you mean --latent-dim?"),
        (TRAIN, "-epochs 3", "did you mean --epochs?"),
        (TRAIN, "--learning-rate 1", "did you mean --lr?"),
        (TRAIN, "--gpu", "did you mean --device cuda?"),
        (TRAIN, "--data x", "did you mean --dataset or --data-dir?"),
        (TRAIN, "--model VAE", "--model is 'VAE' but must be one of ae, vae; did you mean vae?"),
        (TRAIN, "--likelihood bernouli", "did you mean bernoulli?"),
        (TRAIN, "--filters 3,4", "--filters is '3,4' but must be a whole number; put spaces between"),
        (TRAIN, "images", "'images' belongs to no option; write --dataset images"),
        (TRAIN, "--config vae_10", "did you mean vae10"),
        (TRAIN, "--config my.toml", "did you mean epochs?"),
        (TRAIN, "--dataset fashion_mnist", "did you mean fashion-mnist"),
        (TRAIN, "--dataset my.tolm", "did you mean my.toml?"),
        (EVALUATE, "runs/x", "'runs/x' belongs to no option; write --model-dir runs/x"),
        (EVALUATE, "--iw-sample 3", "did you mean --iw-samples?"),
        (GENERATE, "--sample 3", "did you mean --samples?"),
        (GENERATE, "--threads 0", "--threads is 0 but must be a whole number from 1 to 1024"),
    ],
)  # fmt: skip
def test_a_typing_mistake_is_answered_with_what_may_be_meant(program, words, told, call):
    Path("my.toml").write_text("epoch = 3\n")
    done = call(program, *words.split())
    done.failed(done.code, told)
    assert done.code in (2, 3)


def test_a_script_runs_as_a_program():
    script = [sys.executable, "-W", "error", SCRIPTS / "train_conv_autoencoder.py"]
    done = subprocess.run([*script, "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: train_conv_autoencoder.py")


# ---- training ----


@pytest.mark.parametrize(
    ("model", "folder", "drawn"),
    [("ae", "model-smoke", AE_PICTURES), ("vae", "variational/model-smoke", VAE_PICTURES | {"manifold"})],
)
def test_a_smoke_run_goes_through_every_stage_in_a_folder_of_its_own(model, folder, drawn, call):
    done = call(TRAIN, *NETWORK, *SAMPLE, "--model", model, "--smoke")
    assert (done.code, done.err) == (0, "")
    out = Path(folder)
    assert os.listdir() == [folder.split("/")[0]], "nothing elsewhere"
    assert {p.name for p in out.iterdir()} == {
        "model.safetensors", "run.json", "history.csv", "history.jsonl", "checkpoints", "figures", "film", ".lock",
    }  # fmt: skip
    assert pictures(out / "figures") == drawn | {"loss_curves", "progress"}
    assert os.listdir(out / "checkpoints") == ["step-00000002.safetensors"]  # two batches
    ran = record(out)
    assert ran["status"] == "finished"
    assert ran["model"]["kind"] == model
    assert ran["test"]["mse"] > 0
    assert type(autoencoders.load(out)).kind == model
    layers = "2 convolutions, 28x28x1 -> 7x7x8"
    for told in ("device cpu", "embedded sample", layers, "epoch 1/1", "model.safetensors", "psnr"):
        assert told in done.out
    assert not {"\r", "\x1b"} & set(done.out), "this is no terminal"
    long = [line for line in done.out.splitlines() if len(line) > 80]
    assert all(str(SCRIPTS) in line for line in long), "commands to copy have the paths that they have"


def test_quiet_prints_nothing(call, trained, caplog):
    done = call(TRAIN, *TINY, "--smoke", "--quiet", "--out", "run")
    assert (done.code, done.out, done.err) == (0, "", "")
    with no_pictures():
        done = call(TRAIN, "--out", "run", "--resume", "--quiet")
    assert (done.code, done.out, done.err) == (0, "", "")
    for program in (GENERATE, EVALUATE):
        done = call(program, "--model-dir", trained(), "--quiet", "--out", program.__name__)
        assert (done.code, done.out, done.err) == (0, "", "")
    call(TRAIN, "--quiet", "--verbose").failed(2, "--verbose", "not allowed with", "--quiet")
    for quiet in (True, False):
        caplog.clear()
        run_program(lambda: logging.getLogger("minigrad").warning("compiling"), debug=False, quiet=quiet)
        assert caplog.messages == ([] if quiet else ["compiling"])


@pytest.mark.usefixtures("undrawn")
def test_verbose_shows_every_layer(call):
    assert "encoder_conv_layer_1 " in call(TRAIN, *TINY, "--epochs", 1, "--out", "run", "--verbose").out


def test_a_terminal_of_80_columns_is_enough():
    termios = pytest.importorskip("termios")
    words = [*TINY, "--epochs", "9", "--out", "run", "--validation", "8"]
    terminal, its_end = os.openpty()
    termios.tcsetwinsize(its_end, (24, 80))
    command = [sys.executable, SCRIPTS / "train_conv_autoencoder.py", *words]
    seen = b""
    plain = {**os.environ, "TERM": "dumb"}
    with subprocess.Popen(command, stdin=its_end, stdout=its_end, stderr=its_end, env=plain) as process:
        os.close(its_end)
        with suppress(OSError):  # the end
            while part := os.read(terminal, 1000):
                seen += part
        os.close(terminal)
        assert process.wait(60) in (0, 5), seen  # so short a training may give a model that does not work
    shown = [line.rstrip() for line in re.split(r"[\r\n]+", seen.decode())]
    assert max(len(line) for line in shown if str(SCRIPTS) not in line and not line.startswith("error:")) <= 80
    bars = [line for line in shown if line.endswith(" images/s")]
    assert all(re.match(r"epoch [1-9]/9  loss .{7} .* +\d+% +[\d:?]+ left ", bar) for bar in bars), bars
    assert len(bars) >= 2
    assert len(set(map(len, bars))) == 1, "they keep their shape"
    assert "\x1b" not in seen.decode()


@pytest.mark.parametrize(
    ("terminal", "kind", "no_colour", "colour"),
    [(True, "xterm", "", True), (True, "xterm", "1", False), (True, "dumb", "", False), (False, "xterm", "", False)],
)
def test_errors_have_a_colour_where_a_terminal_has_it(terminal, kind, no_colour, colour, monkeypatch):
    monkeypatch.setenv("TERM", kind)
    monkeypatch.setenv("NO_COLOR", no_colour)
    output = io.StringIO()
    output.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", output)
    assert run_program(lambda: autoencoders.load("\x1b[31mgone"), debug=False) == 3
    told = output.getvalue()
    assert told.startswith("\x1b[31merror\x1b[0m: " if colour else "error: ")
    assert told.count("\x1b") == 2 * colour, "nothing from outside is obeyed"


def events(folder: Path) -> list[tuple[str, int]]:
    """(name, epoch) of each value for TensorBoard, those left out that a later file makes void."""
    proto = pytest.importorskip("tensorboardX.proto.event_pb2")
    found: list[tuple[str, int]] = []
    for path in sorted(folder.glob("tensorboard/events.*"), key=lambda path: path.stat().st_mtime_ns):
        content = path.read_bytes()
        while content:  # length, checksum, record, checksum
            size = int.from_bytes(content[:8], "little")
            event, content = proto.Event.FromString(content[12 : 12 + size]), content[16 + size :]
            if event.HasField("session_log"):
                found = [(name, step) for name, step in found if step < event.step]
            found += [(value.tag, event.step) for value in event.summary.value]
    return sorted(found)


def test_events_for_tensorboard_go_on_with_a_resumed_run(call, undrawn, monkeypatch):
    pytest.importorskip("tensorboardX")
    words = (*TINY, "--epochs", 3, "--out", "run", "--tensorboard")
    names = {"loss", "reconstruction", "kl", "learning_rate", "beta", "images_per_second", "seconds", "reconstructions"}
    save = Trainer.save_checkpoint

    def stop(trainer: Trainer) -> None:
        if trainer.progress.epoch == 2:  # the events of the second epoch are written, its checkpoint is not
            raise KeyboardInterrupt
        save(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save_checkpoint", stop)
        done = call(TRAIN, *words)
    assert done.err.endswith("--resume --tensorboard\n")
    assert events(Path("run")) == sorted((name, epoch) for name in names for epoch in (1, 2))
    assert call(TRAIN, "--out", "run", "--resume", "--tensorboard").code == 0
    assert events(Path("run")) == sorted((name, epoch) for name in names for epoch in (1, 2, 3))
    assert call(TRAIN, *TINY, "--epochs", 1, "--out", "run", "--overwrite").code == 0
    assert events(Path("run")) == []
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    call(TRAIN, *words, "--out", "other").failed(1, "TensorBoard", "extra tensorboard: pip install")
    assert os.listdir() == ["run"]


@pytest.mark.usefixtures("undrawn")
def test_options_come_from_the_command_line_then_the_file_then_the_defaults(call):
    Path("my.toml").write_text(
        'model = "vae"\nbatch-size = 16\nbeta = 2\nlr = 0.5e-3\nepochs = 1\nfilters = [3, 5]\nkernels = [3, 1]\n'
        'strides = [2, 3]\nlatent-dim = 4\ndataset = "fashion-mnist-sample"\nlimit-train = 40\n'
        'likelihood = "gaussian"\n'
    )
    assert call(TRAIN, "--config", "my.toml", "--batch-size", 20, "--latent-dim", 3, "--out", "run").code == 0
    ran = record(Path("run"))
    assert ran["options"]["batch_size"] == 20
    assert ran["model"]["latent_space_dim"] == 3
    assert ran["model"]["conv_filters"] == [3, 5]
    assert ran["model"]["conv_kernels"] == [3, 1]
    assert ran["model"]["conv_strides"] == [2, 3]
    assert (ran["model"]["beta"], ran["model"]["likelihood"]) == (2.0, "gaussian")
    assert ran["learning_rate"] == 0.5e-3
    assert ran["data"]["limit_train"] == 40
    assert ran["options"]["schedule"] == "cosine"
    assert "--config my.toml --batch-size 20" in ran["commands"][0]


@pytest.mark.usefixtures("undrawn")
def test_every_option_reaches_the_run(call):
    words = "--epochs 3 --lr 0.004 --schedule constant --warmup-steps 3 --clip-norm 5 --beta 0.5 --kl-warmup 1.5"
    words += " --seed 9 --validation 0.25 --patience 2 --save-every 1 --backend plain --likelihood gaussian-learned"
    words += " --denoise 0.2"
    assert call(TRAIN, *TINY, *words.split(), "--out", "run").code == 0
    ran = record(Path("run"))
    assert ran["options"] == {
        "batch_size": 32, "epochs": 3, "seed": 9, "schedule": "constant", "warmup_steps": 3, "kl_warmup": 1.5,
        "validation": 0.25, "patience": 2, "clip_norm": 5.0, "save_every": 1, "denoise": 0.2, "binarise": False,
        "iw_samples": 1, "augment": False,
    }  # fmt: skip
    assert ran["model"]["seed"] == 9
    assert ran["environment"]["kernels"] == "plain"
    rows = losses(Path("run"))
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[0]["beta"] < rows[1]["beta"] == 0.5
    assert rows[2]["learning_rate"] == 0.004
    assert "val_loss" in rows[0]


@pytest.mark.usefixtures("undrawn")
def test_flags_reach_the_run_from_the_command_line_and_the_file(call):
    Path("my.toml").write_text("binarise = true\nconditional = false\n")
    assert call(TRAIN, *TINY, "--epochs", 1, "--binarise", "--conditional", "--out", "typed").code == 0
    assert call(TRAIN, *TINY, "--epochs", 1, "--config", "my.toml", "--out", "read").code == 0
    for folder, classes in (("typed", 10), ("read", 0)):
        ran = record(Path(folder))
        assert (ran["options"]["binarise"], ran["model"]["classes"]) == (True, classes)


@pytest.mark.parametrize(
    ("images", "words", "epochs", "warmup", "steps", "momentum"),
    [
        (60_000, "", 8, 200, 3752, 0.99),
        (100_000, "", 8, 200, 6256, 0.99),
        (20_000, "", 24, 200, 3768, 0.99),
        (4_000, "", 40, 200, 2520, 62 / 63),
        (1_350, "", 47, 200, 2021, 42 / 43),
        (64, "", 500, 200, 2000, 29 / 30),
        (60_000, "--limit-train 600", 53, 200, 2014, 37 / 38),
        (641, "--epochs 2", 2, 41, 82, 36 / 41),
        (640, "--epochs 1 --batch-size 32", 1, 10, 20, 0.5),
        (100, "--epochs 1 --batch-size 25", 1, 2, 4, 0.0),
        (60_000, "--smoke --batch-size 100", 1, 0, 2, 0.0),
    ],
)
def test_the_default_schedule_follows_the_number_of_images(
    images, words, epochs, warmup, steps, momentum, call, monkeypatch
):
    """BatchNorm's moving statistics forget where they started: 1 - 10 / steps to the power of the steps is 5e-5."""
    seen = []

    def enough(model, dataset, options, folder, **named):
        seen.append((model, options, dataset.train_images[: named["limit_train"]]))
        raise UsageError("enough")

    zeros = np.zeros((images, 8, 8, 1), np.uint8)
    monkeypatch.setattr(
        TRAIN.module, "load_dataset", lambda *_, **__: Dataset("many", zeros, None, zeros[:5], None, (), "made")
    )
    monkeypatch.setattr(TRAIN.module, "start_run", enough)
    call(TRAIN, *NETWORK[:-2], "--backend", "numpy", *words.split(), "--out", "run").failed(2, "enough")
    ((model, options, used),) = seen
    assert (options.epochs, options.warmup_steps) == (epochs, warmup)
    assert options.epochs * -(-len(used) // options.batch_size) == steps
    assert model.momentum == pytest.approx(momentum, abs=2e-4)
    assert model.momentum**steps < 5e-5


@pytest.mark.usefixtures("undrawn")
def test_a_finished_run_is_replaced_only_on_request(call):
    new = (*TINY, "--epochs", 1, "--out", "run")
    assert call(TRAIN, *new).code == 0
    (Path("run") / "evaluation.json").write_text("{}")
    (Path("run") / "notes.txt").write_text("mine")
    before = content(Path("run"))
    call(TRAIN, *new, "--seed", 1).failed(1, "run already holds a finished run", "--overwrite", "another --out")
    for bad in (["--epochs", 0], ["--lr", "nan"], ["--dataset", "nope"], ["--strides", 0, 2], ["--device", "tpu"]):
        assert call(TRAIN, *new, "--overwrite", *bad).code in (2, 3, 4)
    assert content(Path("run")) == before
    assert call(TRAIN, *new, "--seed", 1, "--overwrite", "--batch-size", 16).code == 0
    after = content(Path("run"))
    assert after["model.safetensors"] != before["model.safetensors"]
    assert after["notes.txt"] == b"mine"
    assert "evaluation.json" not in after, "it measured the old model"
    steps = [name for name in after if "step-" in name]
    assert steps == ["checkpoints/step-00000004.safetensors", "old-1/checkpoints/step-00000002.safetensors"]
    old = {name.removeprefix("old-1/"): x for name, x in after.items() if name.startswith("old-1/")}
    assert old == {name: x for name, x in before.items() if name not in ("notes.txt", ".lock")}


def test_a_run_that_diverges_ends_with_5_and_says_what_to_try(call):
    done = call(TRAIN, *TINY, "--epochs", 2, "--warmup-steps", 0, "--lr", "1e30", "--out", "run")
    done.failed(5, "diverged", "step", "smaller learning rate")
    assert record(Path("run"))["status"].startswith("failed: training diverged")
    assert not (Path("run") / "model.safetensors").exists()
    for path in Path("run").glob("checkpoints/*"):
        assert all(np.isfinite(x).all() for x in load_state(path)[0].values())


def test_a_numpy_warning_does_not_become_a_second_line():
    """In a process of its own, where warnings are shown as a user sees them."""
    words = [*TINY, "--epochs", "2", "--warmup-steps", "0", "--lr", "1e30", "--threads", "2", "--out", "run"]
    command = [sys.executable, SCRIPTS / "train_conv_autoencoder.py", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    Done(done.returncode, done.stdout, done.stderr).failed(5, "diverged")


def test_debug_shows_the_traceback_before_the_line(call):
    done = call(TRAIN, *TINY, "--epochs", 0, "--debug")
    assert done.code == 2
    assert done.err.startswith("Traceback")
    assert done.err.splitlines()[-1].startswith("error: --epochs is 0")


# ---- bad input: the code, one clear line, and nothing written ----

BAD_OPTIONS = [
    (2, ["--model", "gan"], "--model", "'gan'", "ae", "vae"),
    (2, ["--schedule", "linear"], "--schedule", "cosine"),
    (2, ["--likelihood", "poisson"], "--likelihood", "gaussian-learned"),
    (2, ["--epochs", "x"], "--epochs", "'x'"),
    (2, ["--filters"], "--filters"),
    (2, ["--kernels", "3", "x"], "--kernels"),
    (2, ["--epochs", "-1"], "--epochs is -1", ">= 1"),
    (2, ["--epochs", "0"], "--epochs is 0"),
    (2, ["--batch-size", "0"], "--batch-size is 0"),
    (2, ["--batch-size", "0", "--smoke"], "--batch-size is 0"),
    (2, ["--limit-train", "0"], "--limit-train is 0", ">= 1"),
    (2, ["--threads", "1000000"], "--threads is 1000000", "from 1 to 1024"),
    (2, ["--out", ""], "--out is empty"),
    (2, ["--device", ""], "--device is empty"),
    (2, ["--clip-norm", "inf"], "--clip-norm is inf", "finite"),
    (2, ["--strides", "9" * 30, "2"], ""),  # the text is NumPy's
    (2, ["--limit-train", "-5"], "--limit-train is -5"),
    (2, ["--warmup-steps", "-1"], "--warmup-steps is -1"),
    (2, ["--save-every", "-1"], "--save-every is -1"),
    (2, ["--seed", "-1"], "--seed is -1"),
    (2, ["--kl-warmup", "nan"], "--kl-warmup is nan"),
    (2, ["--patience", "2"], "validation"),
    (2, ["--model", "ae", "--conditional"], "--conditional belongs to --model vae"),
    (2, ["--model", "ae", "--binarise"], "--binarise belongs to --model vae"),
    (2, ["--likelihood", "gaussian", "--binarise"], "binarise needs", "bernoulli"),
    (2, ["--binarise", "--denoise", "0.1"], "--denoise is 0.1", "binarise"),
    (2, ["--model", "ae", "--iw-samples", "2"], "--iw-samples belongs to --model vae"),
    (2, ["--iw-samples", "2", "--beta", "2"], "--iw-samples above 1", "beta 1"),
    (2, ["--iw-samples", "0"], "--iw-samples is 0"),
    (2, ["--denoise", "-0.1"], "--denoise is -0.1"),
    (2, ["--denoise", "nan"], "--denoise is nan"),
    (2, ["--clip-norm", "0"], "--clip-norm is 0"),
    (2, ["--validation", "-0.5"], "--validation is -0.5"),
    (3, ["--validation", "64"], "validation", "64 of 64"),
    (2, ["--beta", "nan"], "beta", "nan"),
    (2, ["--beta", "-1"], "beta", "-1"),
    (2, ["--lr", "nan"], "--lr is nan"),
    (2, ["--lr", "-1"], "--lr is -1"),
    (2, ["--strides", "0", "2"], "strides", "found 0"),
    (2, ["--strides", "-1", "2"], "strides", "found -1"),
    (2, ["--strides", "2", "1", "2"], "strides", "2, 2 and 3"),
    (2, ["--filters", "4"], "filters", "1, 2 and 2"),
    (2, ["--kernels", "3", "3", "3"], "kernels", "2, 3 and 2"),
    (2, ["--filters", "4", "0"], "filters", "(4, 0)"),
    (2, ["--latent-dim", "0"], "--latent-dim", "0"),
    (2, ["--backend", "fast"], "'fast'", "numpy", "plain"),
    (4, ["--precision", "tf32"], "device cpu", "has fp32 only"),
    (2, ["--precision", "bf16"], "--precision", "'bf16'", "fp32", "tf32"),
    (2, ["--threads", "0"], "--threads is 0"),
    (2, ["--memory-limit", "nan"], "--memory-limit is nan but must be a number of GiB above 0"),
    (2, ["--memory-limit", "-1"], "--memory-limit is -1"),
    (2, ["--memory-limit", "1e300"], "--memory-limit is 1e+300"),
    (2, ["--device", "tpu"], "'tpu'", "cuda"),
    (2, ["--memory-limit", "1"], "--memory-limit is of a GPU's memory"),
    (2, ["--data-dir", "."], "--data-dir is of no use with --dataset fashion-mnist-sample"),
    (3, ["--dataset", "cifar"], "cifar", "fashion-mnist"),
    (3, ["--dataset", "gone.npz"], "gone.npz", "nothing of that name"),
    (3, ["--config", "gone.toml"], "gone.toml"),
    (2, ["--resume"], "--resume takes", "--filters"),
]


@pytest.mark.parametrize(
    ("code", "words", "fragments"), [(c, w, f) for c, w, *f in BAD_OPTIONS], ids=lambda x: str(x)[:30]
)
def test_a_bad_option(code, words, fragments, call):
    call(TRAIN, *TINY, "--epochs", 1, *words).failed(code, *fragments)
    assert os.listdir() == []


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        (b"epochs = = 3", ["TOML", "line 1"]),
        (b'dataset = "\xe9"', ["TOML"]),
        (b"epoch = 3", ["'epoch'", "epochs"]),
        (b"[table]\nepochs = 3", ["'table'"]),
        (b'epochs = "3"', ["epochs", "'3'", "int"]),
        (b"epochs = true", ["epochs", "True", "int"]),
        (b"epochs = 1.0", ["epochs", "1.0", "int"]),
        (b"conditional = 1", ["conditional", "1", "bool"]),
        (b'lr = "fast"', ["lr", "'fast'", "float"]),
        (b"filters = 32", ["filters", "32", "list"]),
        (b'filters = [32, "x"]', ["filters", "'x'", "list"]),
        (b'model = "gan"', ["model", "'gan'", "ae, vae"]),
        (b'schedule = "linear"', ["schedule", "'linear'", "constant, cosine"]),
        (b'likelihood = "poisson"', ["likelihood", "'poisson'", "bernoulli"]),
        (b'likelihood = "bernouli"', ["did you mean bernoulli?"]),
    ],
)
def test_a_bad_config_file(text, fragments, call):
    Path("my.toml").write_bytes(text)
    call(TRAIN, "--config", "my.toml").failed(3, "my.toml", *fragments)
    assert os.listdir() == ["my.toml"]


def test_a_config_file_that_asks_for_what_does_not_go_together(call):
    Path("my.toml").write_text('model = "ae"\nconditional = true\n')
    call(TRAIN, *TINY, "--config", "my.toml").failed(2, "error: my.toml: --conditional belongs to --model vae")
    Path("my.toml").write_text('model = "ae"\nbeta = 2.0\nconditional = false\niw-samples = 1\n')
    call(TRAIN, *TINY, "--config", "my.toml").failed(2, "error: my.toml: --beta belongs to --model vae")
    call(TRAIN, *TINY, "--config", "my.toml", "--beta", 3).failed(2, "error: --beta belongs to --model vae")
    Path("my.toml").write_text('model = "ae"\nbeta = 1.0\nconditional = false\nlr = 1' + 400 * "0")
    call(TRAIN, *TINY, "--config", "my.toml").failed(3, "my.toml: lr is not a finite number")
    Path("my.toml").write_text("filters = " + 5000 * "[" + 5000 * "]")
    call(TRAIN, *TINY, "--config", "my.toml").failed(3, "my.toml: cannot be read as TOML")


def test_a_data_folder_with_a_wrong_file_is_named(call):
    Path("data").mkdir()
    Path("data/train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03 not so many images")
    words = ("--dataset", "fashion-mnist", "--data-dir", "data", "--out", "run")
    call(TRAIN, *NETWORK, *words).failed(3, "train-images-idx3-ubyte", "expected")
    assert sorted(os.listdir()) == ["data"]


@PROGRAMS
def test_cuda_without_cupy_names_what_to_install(program, call, trained, monkeypatch):
    words = TINY if program is TRAIN else ("--model-dir", trained(), "--out", "out")
    monkeypatch.setitem(sys.modules, "cupy", None)
    call(program, *words, "--device", "cuda").failed(4, "CuPy", "[cuda12]", "[cuda13]")
    assert os.listdir() == []


def test_an_evaluation_that_fails_leaves_no_empty_folder(call, trained):
    np.savez("rgb.npz", train_images=np.zeros((20, 5, 4, 3), np.uint8))
    words = ("--model-dir", trained(), "--dataset", "rgb.npz", "--out", "out")
    call(EVALUATE, *words).failed(3, "(N, 28, 28, 1)", "(18, 5, 4, 3)")
    assert os.listdir() == ["rgb.npz"]


def test_a_warm_up_longer_than_the_training_is_told(call, undrawn):
    done = call(TRAIN, *TINY, "--epochs", 1, "--warmup-steps", 9, "--kl-warmup", 3, "--out", "run")
    assert done.code == 0
    assert "--warmup-steps 9 is more than all 2 steps: --lr is not reached" in done.out
    assert "--kl-warmup 3 is more than all 1 epochs: --beta is not reached" in done.out


@PROGRAMS
@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nowhere"])
def test_a_folder_that_cannot_be_written(program, place, call, trained):
    if place.startswith("/proc") and not Path("/proc/self").exists():
        pytest.skip("no /proc here")
    words = (*TINY, "--epochs", 1) if program is TRAIN else ("--model-dir", trained())
    Path("file").write_text("mine")
    call(program, *words, "--out", place).failed(3, place, "cannot be written")
    assert content(Path()) == {"file": b"mine"}


@READERS
def test_a_model_file_that_is_missing_or_damaged_is_named(program, call, trained):
    good = trained()
    content_of_model = (good / "model.safetensors").read_bytes()
    Path("bad").mkdir()
    path = Path("bad/model.safetensors")
    made = "a training with --out bad makes one"
    call(program, "--model-dir", "bad").failed(3, str(path), "there is no such model; a training", made)
    call(program, "--model-dir", "nowhere").failed(3, "nowhere/model.safetensors", "--out nowhere makes one")
    flipped = bytearray(content_of_model)
    flipped[-5] ^= 1
    for damaged in (bytes(flipped), content_of_model[:-9], content_of_model[:50], b"", b"not a model" * 9):
        path.write_bytes(damaged)
        call(program, "--model-dir", "bad").failed(3, str(path))
    assert content(Path()) == {str(path): damaged}


def test_a_damaged_model_is_saved_again_by_resume(call, trained, undrawn):
    shutil.copytree(trained(), "run")
    whole = Path("run/model.safetensors").read_bytes()
    Path("run/model.safetensors").write_bytes(whole[:-9])
    call(GENERATE, "--model-dir", "run").failed(3, "run/model.safetensors", "--out run --resume saves it again")
    assert call(TRAIN, "--out", "run", "--resume").code == 0
    assert Path("run/model.safetensors").read_bytes() == whole


@READERS
@pytest.mark.parametrize(
    "text",
    [
        "{", "[1]", '{"data": 5}', '{"data": {"name": 5}}', '{"data": {"data_dir": []}}', "[" * 100_000,
        '{"commands": 5}', '{"commands": "train"}', '{"commands": [5]}',
    ],
)  # fmt: skip
def test_a_damaged_record_is_named(program, text, call, trained):
    Path("bad").mkdir()
    Path("bad/model.safetensors").write_bytes((trained() / "model.safetensors").read_bytes())
    Path("bad/run.json").write_text(text)
    before = content(Path())
    call(program, "--model-dir", "bad").failed(3, "bad/run.json")
    assert content(Path()) == before


@READERS
@pytest.mark.parametrize(
    ("kind", "name"),
    [("vae", "mu.bias"), ("vae", "decoder_dense.weight"), ("ae", "encoder_output.bias"), ("ae", "decoder_dense.bias")],
)
def test_a_model_whose_numbers_are_not_finite_has_diverged(program, kind, name, call, trained):
    shutil.copytree(trained(kind), "run")
    arrays, fields, _ = load_state("run/model.safetensors")
    fields.pop("format")
    save_state("run/model.safetensors", {**arrays, name: np.full_like(arrays[name], np.nan)}, fields)
    call(program, "--model-dir", "run", "--out", "out").failed(5, "the model diverged", "not finite")
    assert not list(Path("out").glob("**/*.*"))


def test_a_mixture_of_latents_that_are_not_finite(call, trained):
    shutil.copytree(trained("ae"), "run")
    arrays, fields, _ = load_state("run/model.safetensors")
    fields.pop("format")
    arrays["encoder_output.weight"][:] = 3e38
    save_state("run/model.safetensors", arrays, fields)
    call(GENERATE, "--model-dir", "run", "--mixture-components", 2).failed(5, "the model diverged", "not finite")
    assert not Path("run/mixture.safetensors").exists()


@READERS
def test_data_of_another_shape_or_of_no_name(program, call, trained):
    np.savez("rgb.npz", train_images=np.zeros((20, 5, 4, 3), np.uint8))
    call(program, "--model-dir", trained(), "--dataset", "rgb.npz").failed(3, "rgb.npz: does not fit", "(18, 5, 4, 3)")
    call(program, "--model-dir", trained(), "--dataset", "nope").failed(3, "nope", "fashion-mnist")
    call(program, "--model-dir", trained(), "--seed", -1).failed(2, "--seed is -1 but must be a whole number >= 0")
    told = "--data-dir is of no use with --dataset fashion-mnist-sample; leave it out"
    call(program, "--model-dir", trained(), "--data-dir", "nope").failed(2, told)
    assert os.listdir() == ["rgb.npz"]


def test_too_few_and_too_many_samples(call, trained):
    call(GENERATE, "--model-dir", trained(), "--samples", 0).failed(2, "--samples is 0", "from 1 to 1000")
    call(GENERATE, "--model-dir", trained(), "--samples", 1001, "--out", "out").failed(2, "--samples is 1001")
    assert os.listdir() == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("x"), 3), (DeviceError("x"), 4), (DivergedError("x"), 5), (ValueError("x"), 1),
        (MemoryError("x"), 4), (KeyboardInterrupt(), 130), (KeyboardInterrupt(signal.SIGINT), 130),
        (KeyboardInterrupt(signal.SIGTERM), 143), (OSError("x"), 3), (FileExistsError("x"), 1),
    ],
)  # fmt: skip
def test_exit_codes(error, code, capsys):
    def body():
        raise error

    assert run_program(body, debug=False, what_remains=lambda _: " here") == code
    told = "out of memory: x; a smaller model, batch or data set needs less" if isinstance(error, MemoryError) else "x"
    assert capsys.readouterr().err == ("interrupted here\n" if code > 100 else f"error: {told} here\n")


def test_an_error_of_many_lines_or_none_becomes_one_line(capsys):
    def body(error):
        raise error

    assert run_program(lambda: body(RuntimeError("one\n   two\n")), debug=False) == 1
    assert run_program(lambda: body(RuntimeError()), debug=False) == 1
    assert capsys.readouterr().err == "error: one two\nerror: RuntimeError\n"


class NotLatin(io.TextIOWrapper):
    def __init__(self):
        super().__init__(io.BytesIO(), encoding="ascii")


def test_a_picture_shows_the_first_of_very_many_classes(call, spied):
    rng = np.random.default_rng(0)
    labels = np.arange(70)
    images = rng.integers(0, 256, (70, 8, 8), np.uint8)
    np.savez("own.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    words = ("--epochs", 1, "--limit-train", 70, "--conditional", "--dataset", "own.npz", "--threads", 1)
    assert call(TRAIN, *NETWORK, *words, "--out", "run").code == 0
    assert spied["samples"][0].shape == (50, 8, 8, 1)
    assert record(Path("run"))["status"] == "finished"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_outputs_are_no_errors(closed):
    words = [*TINY, "--smoke", "--out", "run"]
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, SCRIPTS / "train_conv_autoencoder.py", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert record(Path("run"))["status"] == "finished"


def test_letters_that_an_output_does_not_know_are_told_by_number(monkeypatch):
    output = NotLatin()
    monkeypatch.setattr(sys, "stdout", output)
    assert run_program(lambda: print("Fréchet"), debug=False) == 0
    assert output.buffer.getvalue() == b"Fr\\xe9chet\n"


def test_the_fault_of_a_file_names_it(capsys):
    assert run_program(lambda: print(open("nowhere")), debug=False) == 3  # noqa: SIM115
    assert capsys.readouterr().err == "error: nowhere: No such file or directory\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, HANGUP])
def test_a_signal_ends_every_program_with_a_line(number, capsys):
    assert run_program(lambda: os.kill(os.getpid(), number), debug=False) == 128 + number
    assert capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(number) == signal.SIG_DFL


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs terminals")
def test_a_terminal_that_is_closed_loses_no_step():
    code = """if True:
        import fcntl, os, sys, termios
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        os.execv(sys.argv[1], sys.argv[1:])
    """
    words = [*TINY, "--epochs", "60", "--out", "run"]
    command = [sys.executable, "-c", code, sys.executable, SCRIPTS / "train_conv_autoencoder.py", *words]
    terminal, its_end = os.openpty()
    with subprocess.Popen(command, stdin=its_end, stdout=its_end, stderr=its_end) as process:
        os.close(its_end)
        seen = b""
        while b"epoch 2/60" not in seen:
            seen += os.read(terminal, 1000)
        os.close(terminal)
        assert process.wait(60) == 129
    assert record(Path("run"))["status"] == "interrupted"
    step = latest_checkpoint(Path("run"))
    assert step
    assert int(step.stem[5:]) >= 2


def test_a_reader_that_goes_away_is_told_of(tmp_path):
    words = [*TINY, "--epochs", "60", "--save-every", "1", "--out", "run"]
    command = [sys.executable, SCRIPTS / "train_conv_autoencoder.py", *words]
    with started(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        for line in process.stdout:
            if line.startswith("epoch 2/"):
                break
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(60) == 1
    told = r"error: the reader of the output has gone; what was saved is kept\. When .*, go on with:\n  .* --resume\n"
    assert re.fullmatch(told, err)
    assert latest_checkpoint(Path("run"))


@PROGRAMS
def test_a_window_system_that_is_not_here_does_not_matter(program):
    environment = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    command = [sys.executable, program.file, "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_left_after_an_error(call, monkeypatch, undrawn):
    """An error tells what is saved, what goes on with it, and where the run lies that it should have replaced."""
    assert call(TRAIN, *TINY, "--epochs", 1, "--out", "run").code == 0
    old = (Path("run") / "model.safetensors").read_bytes()
    real = run_module.Run._finish

    def full(*_):
        raise DataError("run/model.safetensors: no space")

    monkeypatch.setattr(run_module.Run, "_finish", full)
    done = call(TRAIN, *TINY, "--epochs", 1, "--seed", 1, "--overwrite", "--out", "run")
    where = str(Path("run/old-1"))
    done.failed(3, "no space; what was saved is kept; the run that was replaced lies in", where, "--out run --resume")
    assert (Path(where) / "model.safetensors").read_bytes() == old
    assert "no finished model: taken from checkpoints/step-00000002" in call(GENERATE, "--model-dir", "run").out
    monkeypatch.setattr(run_module.Run, "_finish", real)
    assert call(TRAIN, "--resume", "--out", "run").code == 0
    assert (Path(where) / "model.safetensors").read_bytes() == old


@pytest.mark.parametrize("rate", ["1e6", "1e30"])  # finite weights whose losses are not; weights that are not
def test_a_model_that_diverges_in_its_last_step_replaces_none(call, undrawn, rate):
    words = (*TINY, "--limit-train", 32, "--epochs", 1, "--schedule", "constant", "--warmup-steps", 0, "--out", "run")
    assert call(TRAIN, *words).code == 0
    before = content(Path("run"))
    done = call(TRAIN, *words, "--lr", rate, "--overwrite")
    done.failed(5, "diverged", "not finite", "try a smaller learning rate")
    assert "--resume" not in done.err
    assert content(Path("run")) == before


def test_letters_that_the_font_lacks_are_no_warning(capsys):
    def body():
        names = ("\u65e5\u672c", "\u0928\u092e", "\u05d0")
        canvas.save(charts.latent_scatter(np.zeros((3, 2)), np.arange(3), names), Path("chart.png"))

    assert run_program(body, debug=False) == 0
    assert capsys.readouterr().err == ""
    assert run_program(lambda: warnings.warn("another", stacklevel=1), debug=False) == 1, "that one is an error here"


def test_an_error_about_a_name_of_two_lines_is_one_line(call, capsys):
    assert run_program(lambda: print(open("a\nb")), debug=False, what_remains=lambda _: "; \r") == 3  # noqa: SIM115
    assert capsys.readouterr().err == "error: a\\nb: No such file or directory; \\r\n"
    call(TRAIN, "a\nb").failed(2, r"a\nb")


def test_a_full_output_is_named():
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    words = [sys.executable, SCRIPTS / "train_conv_autoencoder.py", *TINY, "--out", "run"]
    command = ["sh", "-c", 'exec "$@" > /dev/full', "sh", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    Done(done.returncode, done.stdout, done.stderr).failed(3, "No space left on device: the standard output, or the working folder")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--latent-dim", 50_000_000), "a model with at least 3,200,000,648 weights"),
        (("--kernels", 5001, 3), "im2col"),
        (("--filters", 4, 8, "--kernels", 3, 3, "--latent-dim", 40_000), "a checkpoint needs about"),
    ],
    ids=str,
)
def test_too_little_memory_ends_with_4_before_it_is_taken(words, told):
    words = [sys.executable, SCRIPTS / "train_conv_autoencoder.py", *TINY, *map(str, words), "--out", "run"]
    command = ["sh", "-c", 'ulimit -v 3000000 && exec "$@"', "sh", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    Done(done.returncode, done.stdout, done.stderr).failed(4, told, "GiB are free; take fewer latent dimensions")
    assert not Path("run").exists()


# ---- resuming ----

LONG = (*TINY, "--epochs", "60", "--save-every", "1")


@pytest.fixture
def unbroken(shelf, call, undrawn, monkeypatch):
    monkeypatch.setattr(run_module, "standardize", STANDARDIZE)  # as in a process of its own
    folder = shelf / "unbroken"
    if not folder.exists():
        assert call(TRAIN, *LONG, "--out", folder).code == 0
    return folder


def interrupt(number: int) -> tuple[int, str]:
    """Start the long run as a program, signal it in an early epoch; its exit code and the command that it prints."""
    command = [sys.executable, "-W", "error", SCRIPTS / "train_conv_autoencoder.py", *LONG, "--out", "a run"]
    with started(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("epoch 3/"):
                process.send_signal(number)
                break
        _, err = process.communicate(timeout=60)
    told = re.fullmatch(r"interrupted; saved\. --finish .* makes the model now\. Go on with:\n  (.*)\n", err)
    assert told, err
    return process.returncode, told[1]


def test_sigint_saves_and_the_printed_command_goes_on_to_the_same_weights(unbroken):
    code, command = interrupt(signal.SIGINT)
    assert code == 130
    assert record(Path("a run"))["status"] == "interrupted"
    assert not Path("a run/model.safetensors").exists()
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "resuming after step" in done.stdout
    assert "not bitwise" not in done.stdout
    assert weights(Path("a run")) == weights(unbroken)
    assert losses(Path("a run")) == losses(unbroken)
    assert pictures(Path("a run/figures")) == VAE_PICTURES | {"manifold", "loss_curves", "progress"}


def test_sigterm_saves_and_the_printed_command_goes_on_to_the_same_weights(unbroken, call):
    code, command = interrupt(signal.SIGTERM)
    assert code == 143
    words = shlex.split(command)
    assert words[1].endswith("train_conv_autoencoder.py")
    assert words[2:] == ["--out", "a run", "--resume"]
    call(TRAIN, *TINY, "--out", "a run").failed(1, "unfinished run", "--resume", "--overwrite")
    done = call(TRAIN, *words[2:])
    assert (done.code, done.err) == (0, "")
    assert weights(Path("a run")) == weights(unbroken)
    assert losses(Path("a run")) == losses(unbroken)


def test_a_second_process_in_the_folder_of_a_run_is_refused_until_the_first_is_gone(call):
    words = (*TINY, "--epochs", "500", "--save-every", "1", "--out", "run")
    command = [sys.executable, str(SCRIPTS / "train_conv_autoencoder.py"), *words]
    with started(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while not list(Path("run").glob("checkpoints/step-*")):
            assert process.poll() is None
        for others in (TINY, (*TINY, "--overwrite"), ("--resume",)):
            done = call(TRAIN, *others, "--out", "run")
            done.failed(1, "run", "already holds" if others == TINY else "another training is running in this folder")
        assert process.poll() is None
        process.kill()
    assert record(Path("run"))["status"] == "running"  # it could not say that it ended
    call(TRAIN, *TINY, "--epochs", "2", "--overwrite", "--out", "run")
    assert record(Path("run"))["status"] == "finished"


@pytest.fixture
def half(call, undrawn):
    """A run of four epochs (eight steps) with a constant learning rate, finished."""
    words = (*TINY, "--schedule", "constant", "--warmup-steps", "0", "--epochs", "4", "--save-every", "1")
    assert call(TRAIN, *words, "--out", "run").code == 0
    return Path("run")


def test_resume_takes_the_newest_valid_checkpoint_and_says_what_it_skipped(half, call):
    whole, saved = content(half), weights(half)
    rows = losses(half)
    names = sorted(p.name for p in (half / "checkpoints").iterdir())
    assert names == [f"step-{n:08d}.safetensors" for n in (6, 7, 8)]
    (half / "model.safetensors").unlink()
    (half / "checkpoints" / names[2]).write_bytes(whole[f"checkpoints/{names[2]}"][:-1])
    done = call(TRAIN, "--out", half, "--resume")
    assert (done.code, done.err) == (0, "")
    assert re.search(r"skipped a checkpoint: .*step-00000008", done.out)
    assert "resuming after step 7, in epoch 4 of 4" in done.out
    assert weights(half) == saved
    assert losses(half) == rows


def test_quiet_does_not_silence_what_changes_the_result(half, call):
    newest = max((half / "checkpoints").iterdir())
    newest.write_bytes(b"")
    done = call(TRAIN, "--out", half, "--resume", "--quiet", "--backend", "plain")
    assert (done.code, done.out) == (0, "")
    assert [":".join(line.split(":")[:2]) for line in done.err.splitlines()] == [
        "warning: skipped a checkpoint",
        "warning: not bitwise what an unbroken run would give, because these changed",
    ]
    assert [kept["kernels"] for kept in record(half)["earlier_environments"]] == [
        "numba" if importlib.util.find_spec("numba") else "numpy"
    ]


@pytest.mark.parametrize("part", ["options", "progress"])
def test_a_checkpoint_of_a_newer_version_is_refused_by_name(half, call, part):
    path = max((half / "checkpoints").iterdir())
    arrays, saved, _ = load_state(path)
    saved[part]["invented_later"] = 1
    saved["environment"]["minigrad"] = "9.0"
    save_state(path, arrays, saved)
    call(TRAIN, "--out", half, "--resume").failed(3, str(path), "minigrad 9.0", "invented_later")


def test_ctrl_c_before_the_first_checkpoint_of_a_replacement(half, call, monkeypatch):
    before = content(half)

    def step(*_args, **_options):
        signal.raise_signal(signal.SIGINT)
        raise KeyboardInterrupt(2)  # a second one, at once

    monkeypatch.setattr(Trainer, "step", step)
    done = call(TRAIN, *TINY, "--out", half, "--overwrite", "--epochs", "1")
    assert (done.code, done.err) == (130, "interrupted before the first checkpoint\n")
    assert content(half) == before


def test_ctrl_c_while_a_run_is_read_says_that_nothing_is_lost(half, call, monkeypatch):
    before = content(half)

    def load_dataset(*_args, **_options):
        raise KeyboardInterrupt(2)

    monkeypatch.setattr(run_start, "load_dataset", load_dataset)
    done = call(TRAIN, "--out", half, "--resume")
    told = r"interrupted before the training went on\. Go on with:\n  .*train_conv_autoencoder.py --out run --resume\n"
    assert done.code == 130
    assert re.fullmatch(told, done.err), done.err
    assert content(half) == before


def test_a_folder_that_is_moved_during_the_training_is_not_made_again(call, monkeypatch, undrawn):
    real = Trainer.step

    def step(trainer, *arguments):
        if trainer.progress.step == 2:  # one epoch is saved
            Path("run").rename("moved")
        return real(trainer, *arguments)

    monkeypatch.setattr(Trainer, "step", step)
    call(TRAIN, *TINY, "--epochs", 3, "--out", "run").failed(3, "run: was moved or removed during the training; resume")
    assert os.listdir() == ["moved"]
    monkeypatch.setattr(Trainer, "step", real)
    assert call(TRAIN, "--out", "moved", "--resume").code == 0


def test_a_missing_file_of_a_library_keeps_its_words_where_the_working_folder_is_there(capsys):
    def body():
        raise FileNotFoundError("weights.h5: unable to open")

    assert run_program(body, debug=False) == 3
    assert capsys.readouterr().err == "error: weights.h5: unable to open\n"


@pytest.mark.parametrize("how", ["file", "link to itself"])
def test_what_lies_in_the_place_of_the_checkpoints_is_named(half, call, how):
    (half / "checkpoints").rename("elsewhere")
    if how == "file":
        (half / "checkpoints").write_text("mine")
    else:
        (half / "checkpoints").symlink_to("checkpoints")
    call(TRAIN, "--out", half, "--resume").failed(3, "checkpoints: expected a folder, found something else")
    (half / "checkpoints").unlink()
    Path("elsewhere").rename(half / "checkpoints")
    assert call(TRAIN, "--out", half, "--resume").code == 0


@PROGRAMS
def test_a_folder_that_nobody_may_look_into_is_named(half, program, call, monkeypatch):
    words = ("--out", half, "--resume") if program is TRAIN else ("--model-dir", half)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    call(program, *words).failed(3, "error: run: cannot be read: Permission denied")


def test_a_folder_in_the_place_of_a_file_is_named(half, call):
    (half / "model.safetensors").unlink()
    (half / "model.safetensors").mkdir()
    done = call(EVALUATE, "--model-dir", half)
    done.failed(3, "model.safetensors: kind: expected a file, found a folder")
    assert "--resume" not in done.err, "which would not help"
    done = call(TRAIN, "--out", half, "--resume")
    done.failed(3, "model.safetensors: kind: expected a file, found a folder; move it away; what was saved is kept.")


@READERS
def test_another_file_in_the_place_of_the_model_is_named(half, program, call):
    newest = max((half / "checkpoints").iterdir())
    arrays, _, _ = load_state(newest)
    save_state(half / "model.safetensors", arrays, {"kind": "frame"})
    call(program, "--model-dir", half).failed(3, "model.safetensors: expected a model, found a frame")


@READERS
def test_without_a_record_the_default_data_are_named(half, program, call):
    (half / "run.json").unlink()
    words = ("--iw-samples", 0) if program is EVALUATE else ()
    done = call(program, "--model-dir", half, *words)
    assert "run.json does not say what the model was trained on; --dataset names other images\n" in done.out
    done = call(program, "--model-dir", half, *SAMPLE, *words)
    assert "does not say" not in done.out


def test_a_file_where_the_folder_of_pictures_is_to_be(call, trained):
    Path("mine").write_text("mine")
    call(GENERATE, "--model-dir", trained(), "--out", "mine").failed(3, "cannot be written: mine is no folder")


def test_resume_of_a_finished_run_changes_no_weight(half, call):
    before = weights(half)
    done = call(TRAIN, "--out", half, "--resume")
    assert done.code == 0
    assert "all epochs are trained" in done.out
    assert weights(half) == before


def test_other_threads_change_only_the_last_digits_and_are_told(half, call):
    """Sums in another order: their float32 losses part by less than 5e-3 in a few steps, and by something."""
    whole = losses(half)
    for path in sorted((half / "checkpoints").iterdir())[1:]:
        path.unlink()  # back to step 6, in epoch 3 of 4
    (half / "model.safetensors").unlink()
    done = call(TRAIN, "--out", half, "--resume", "--threads", "3", "--backend", "numpy")
    assert (done.code, done.err) == (0, "")
    assert re.search(r"not bitwise what an unbroken run would give, because these changed: .*threads 1 -> 3", done.out)
    found = losses(half)
    assert [row["epoch"] for row in found] == [1, 2, 3, 4]
    assert found[-1]["loss"] == pytest.approx(whole[-1]["loss"], rel=5e-3)


def test_a_folder_that_is_taken_prints_nothing(call, trained):
    """Neither does the look whether the standard output is full."""
    shutil.copytree(trained("ae"), "run")
    done = call(TRAIN, *TINY, "--quiet", "--out", "run")
    assert (done.code, done.out) == (1, "")
    assert "already holds a finished run" in done.err


def test_options_that_are_refused_compile_nothing(call, monkeypatch, restored_backends):
    """Numba's kernels take half a minute where they were never used."""
    made = []
    plain = minigrad.backend._cpu_backend

    def cpu_backend(kernels, threads):
        made.append(kernels)
        return plain("plain", threads)

    monkeypatch.setattr(minigrad.backend, "_cpu_backend", cpu_backend)
    monkeypatch.setattr(minigrad.backend, "_default", None)
    monkeypatch.setattr(minigrad.backend, "_backends", {})
    call(TRAIN, *TINY, "--batch-size", 0, "--out", "run").failed(2, "--batch-size is 0")
    assert set(made) <= {"numpy"}


@pytest.mark.usefixtures("undrawn", "cupy_double")
def test_resume_keeps_the_precision_or_tells_another(call):
    Path("my.toml").write_text('precision = "tf32"')
    np.savez("own.npz", train_images=np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8))
    words = (*NETWORK, "--dataset", "own.npz", "--epochs", 1, "--device", "cuda", "--schedule", "constant")
    assert "precision tf32" in call(TRAIN, *words, "--config", "my.toml", "--out", "run").out
    assert record(Path("run"))["environment"]["precision"] == "tf32"
    done = call(TRAIN, "--out", "run", "--resume", "--epochs", 2)
    assert done.code == 0
    assert "precision tf32" in done.out
    assert "not bitwise" not in done.out
    done = call(TRAIN, "--out", "run", "--resume", "--epochs", 3, "--precision", "fp32")
    assert re.search(r"not bitwise .*precision tf32 -> fp32", done.out)
    assert record(Path("run"))["environment"]["precision"] == "fp32"


def test_a_run_from_before_there_was_a_choice_of_precision_goes_on(half, call, monkeypatch):
    def load(*arguments):
        arrays, saved, path = load_checkpoint(*arguments)
        del saved["environment"]["precision"]
        return arrays, saved, path

    load_checkpoint = run_start.load_checkpoint
    monkeypatch.setattr(run_start, "load_checkpoint", load)
    done = call(TRAIN, "--out", half, "--resume")
    assert done.code == 0
    assert "not bitwise" not in done.out


def test_resume_can_add_epochs_where_no_schedule_depends_on_them(half, call, trained):
    rows = losses(half)
    call(TRAIN, "--out", half, "--resume", "--epochs", 3).failed(2, "epochs is 3", "after epoch 4", "--finish")
    call(TRAIN, "--out", half, "--resume", "--threads", 0).failed(2, "threads is 0")
    done = call(TRAIN, "--out", half, "--resume", "--epochs", 5, "--threads", 2, "--backend", "plain")
    assert done.code == 0
    assert "resuming after step 8, in epoch 5 of 5" in done.out
    assert re.search(r"not bitwise .*kernels \w+ -> plain", done.out)
    assert losses(half)[:4] == rows
    assert len(losses(half)) == record(half)["options"]["epochs"] == 5
    before = content(trained())
    call(TRAIN, "--out", trained(), "--resume", "--epochs", 9).failed(2, "epochs cannot change", "cosine")
    assert content(trained()) == before


@pytest.mark.parametrize("words", [["--lr", "1"], ["--batch-size", "9"], ["--seed", "1"], ["--grayscale"]])
def test_resume_takes_every_option_from_the_checkpoint(words, call, trained):
    before = content(trained())
    call(TRAIN, "--out", trained(), "--resume", *words).failed(2, words[0], "from the checkpoint")
    assert content(trained()) == before


@pytest.mark.parametrize("words", [["--smoke"], ["--overwrite"], ["--config", "x.toml"]])
def test_resume_goes_with_nothing_that_starts_anew(words, call, trained):
    before = content(trained())
    call(TRAIN, "--out", trained(), "--resume", *words).failed(2, "--resume cannot be combined", words[0])
    assert content(trained()) == before


def test_resume_without_a_run_or_with_other_data(call, undrawn):
    call(TRAIN, "--out", "nothing", "--resume").failed(3, "nothing", "no valid checkpoint")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 6, 5), dtype=np.uint8)
    np.savez("own.npz", train_images=pixels)
    assert call(TRAIN, *NETWORK, "--dataset", "own.npz", "--epochs", 1, "--out", "run").code == 0
    before = content(Path("run"))
    np.savez("own.npz", train_images=255 - pixels)
    call(TRAIN, "--out", "run", "--resume").failed(3, "own.npz", "not the data of this run")
    Path("own.npz").unlink()
    call(TRAIN, "--out", "run", "--resume").failed(3, "own.npz", "if they were moved, --dataset names the new place")
    assert content(Path("run")) == before
    np.savez("moved.npz", train_images=pixels)
    assert call(TRAIN, "--out", "run", "--resume", "--dataset", "moved.npz").code == 0
    assert record(Path("run"))["data"]["name"] == str(Path("moved.npz").absolute())


# ---- no dead ends ----


@pytest.fixture
def begun(call, monkeypatch, undrawn):
    """A run that is interrupted after so many steps, of 2 an epoch and 8 in all."""

    def begun(steps: int, *words: object, folder: str = "run") -> Path:
        def save(trainer):
            real(trainer)
            if trainer.progress.step == steps:
                raise KeyboardInterrupt(2)

        real = Trainer.save_checkpoint
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "save_checkpoint", save)
            words = (*TINY, "--epochs", 4, "--save-every", 1, *words)
            assert call(TRAIN, *words, "--out", folder).code == 130
        return Path(folder)

    return begun


BEST = ["--validation", 8, "--patience", 3]


@pytest.mark.parametrize(
    ("steps", "words", "place"),
    [(4, [], "after epoch 2"), (5, ["--model", "ae"], "in epoch 3"), (1, BEST, "in epoch 1"), (5, BEST, "in epoch 3")],
)
def test_an_interrupted_run_is_used_finished_and_resumed(steps, words, place, call, begun, capsys, monkeypatch):
    monkeypatch.setattr(EVALUATE.module, "all_pictures", lambda *_: {})
    folder = begun(steps, *words)
    newest = max((folder / "checkpoints").glob("step-*"))
    told = f"no finished model: taken from checkpoints/{newest.name}, {place} of 4\n"
    for program, *more in () if words else ((GENERATE,), (EVALUATE, "--iw-samples", 0)):
        done = call(program, "--model-dir", folder, *more)
        assert (done.code, done.err, done.out.count(told)) == (0, "", 1)
    capsys.readouterr()
    model = autoencoders.load(folder)
    assert (capsys.readouterr().out, model.trained_steps) == (told, steps)
    taken = load_state(newest)[0]
    assert all(np.array_equal(x, taken[name]) for name, x in model.network.state_dict().items())
    done = call(TRAIN, "--out", folder, "--finish")
    assert (done.code, done.err, f"finishing after step {steps}, {place}" in done.out) == (0, "", True)
    assert [row["epoch"] for row in losses(folder)] == [*range(1, -(-steps // 2) + 1)]
    best = folder / "checkpoints" / "best.safetensors"
    expected = load_state(best if best.exists() else newest)[0]
    saved = load_state(folder / "model.safetensors")[0]
    assert all(np.array_equal(x, expected[name]) for name, x in saved.items())
    assert call(TRAIN, "--out", folder, "--resume").code == 0  # what was finished too early goes on
    assert call(TRAIN, *TINY, "--epochs", 4, *words, "--out", "whole").code == 0
    assert (weights(folder), losses(folder)) == (weights(Path("whole")), losses(Path("whole")))


def test_a_run_that_is_finished_too_early_can_go_on(call, begun, monkeypatch):
    folder = begun(1)
    monkeypatch.setattr(run_module, "fatal", diagnosis.fatal)
    call(TRAIN, "--out", folder, "--finish").failed(5, "the model does not work", "try --resume, which trains on")
    call(TRAIN, *TINY, "--out", folder).failed(1, "an unfinished run; use --resume to go on with it, --finish")


def test_what_a_resumed_run_cannot_do_names_the_command_that_does(call, begun, undrawn):
    begun(4, folder="runs/cosine")
    done = call(TRAIN, "--out", "runs/cosine", "--resume", "--epochs", 9)
    done.failed(2, "cosine schedule ends with epoch 4")
    words = shlex.split(re.search(r"; (--init-from .*) trains its model on", done.err)[1])
    assert words == ["--init-from", "runs/cosine", "--out", "runs/cosine-2", "--epochs", "5"]
    assert call(TRAIN, *words, *TINY[-4:]).code == 0
    call(TRAIN, "--out", "runs/cosine", "--resume", "--epochs", 3).failed(2, "--finish makes the model now")
    assert "all epochs are trained; --init-from runs/cosine-2" in call(TRAIN, "--out", "runs/cosine-2", "--resume").out
    shutil.rmtree("runs/cosine-2/checkpoints")
    call(TRAIN, "--out", "runs/cosine-2", "--resume").failed(3, "only a model; --init-from runs/cosine-2")
    for words in (["--out", "runs", "--resume"], ["--out", "runs/another", "--finish"], ["--init-from", "runs"]):
        call(TRAIN, *words).failed(3, "there is one in runs/cosine-2, runs/cosine")
    for program in (GENERATE, EVALUATE):
        call(program).failed(3, "variational/model/model.safetensors", "there is one in runs/cosine-2, runs/cosine")
        call(program, "--model-dir", Path("empty").absolute()).failed(
            3, "a training with --out /", "makes one"
        )
        earlier = min(Path("runs/cosine/checkpoints").iterdir())
        call(program, "--model-dir", earlier).failed(2, "--out is needed", earlier.name)


@pytest.mark.parametrize("kind", ["vae", "ae"])
def test_a_saved_model_is_trained_on_in_a_new_run(kind, call, trained, undrawn):
    folder = trained(kind)
    before = content(folder)
    words = ("--batch-size", 32, "--limit-train", 64, "--epochs", 1, "--threads", 1)
    for source in (folder, folder / "model.safetensors"):
        assert call(TRAIN, "--init-from", source, *words, "--overwrite", "--out", "new").code == 0
    digest = hashlib.sha256(before["model.safetensors"]).hexdigest()
    said = {"file": str(folder / "model.safetensors"), "sha256": digest, "trained_steps": 4}
    assert (record(Path("new"))["init_from"], content(folder)) == (said, before)
    assert record(Path("new"))["data"]["name"] == "fashion-mnist-sample", "of the first run"
    assert autoencoders.load("new").trained_steps == 6
    assert losses(Path("new"))[0]["reconstruction"] < losses(folder)[0]["reconstruction"]
    np.savez("own.npz", train_images=np.zeros((20, 8, 8), np.uint8))
    for options, fragment in (
        (["--latent-dim", 3], "--latent-dim comes from the model of --init-from"),
        (["--model", "vae" if kind == "ae" else "ae"], "--model comes from the model"),
        (["--out", "new"], "new already holds a finished run"),
        (["--resume"], "--resume cannot be combined"),
        (["--dataset", "own.npz"], "own.npz: does not fit the model: images: expected (N, 28, 28, 1)"),
    ):
        done = call(TRAIN, "--init-from", folder, *words, "--out", "other", *options)
        assert (done.code in (1, 2, 3), fragment in done.err) == (True, True), done.err
    if kind == "vae":
        assert call(TRAIN, "--init-from", folder, *words, "--beta", 3, "--out", "beta").code == 0
        assert autoencoders.load("beta").beta == 3


# ---- the generator ----


@pytest.mark.parametrize(
    ("model", "latent", "expected"),
    [
        ("vae", 1, VAE_PICTURES),
        ("vae", 2, VAE_PICTURES | {"manifold"}),
        ("vae", 3, VAE_PICTURES),
        ("ae", 2, AE_PICTURES),
    ],
)
def test_the_generator_draws_what_the_model_has(model, latent, expected, call, trained):
    folder = trained(model, latent)
    before = content(folder)
    done = call(GENERATE, "--model-dir", folder, "--out", "drawn")
    assert (done.code, done.err) == (0, "")
    assert pictures(Path("drawn")) == expected
    assert f"drew {len(expected)} pictures in drawn{os.sep}\n" in done.out
    if model == "ae":
        done = call(GENERATE, "--model-dir", folder, "--out", "again", "--verbose")
        assert all(f"drew {Path('again') / name}.png\n" in done.out for name in expected)
    assert content(folder) == before


@pytest.fixture
def spied(monkeypatch):
    """What the functions of figures.py are given, by their names."""
    seen: dict[str, tuple] = {}

    def spy_on(name):
        where = charts if name == "latent_scatter" else sheets
        real = getattr(where, name)

        def spy(*args, **options):
            seen[name] = args
            return real(*args, **options)

        monkeypatch.setattr(where, name, spy)

    for name in ("reconstructions", "latent_scatter", "samples", "interpolations", "manifold_grid"):
        spy_on(name)
    monkeypatch.setattr(canvas, "save", lambda _, path: path)
    return seen


def test_what_the_generator_shows_comes_from_the_model_and_the_test_set(call, trained, spied):
    assert call(GENERATE, "--model-dir", trained(), "--samples", 7, "--seed", 3).code == 0
    model, data = autoencoders.load(trained()), load_dataset("fashion-mnist-sample")
    places = {image.tobytes(): i for i, image in enumerate(data.test_images)}
    originals, reconstructed, labels, names, errors = spied["reconstructions"]
    chosen = [places[image.tobytes()] for image in originals]
    assert len(set(chosen)) == len(chosen) == 20, "no image twice"
    np.testing.assert_array_equal(labels, data.test_labels[chosen])
    np.testing.assert_array_equal(np.bincount(labels, minlength=10), np.full(10, 2))
    assert list(names) == list(data.class_names)
    np.testing.assert_array_equal(reconstructed, model.reconstruct(originals)[0])
    np.testing.assert_allclose(
        errors, [np.mean((r - o / 255) ** 2) for r, o in zip(reconstructed, originals, strict=True)]
    )

    latents, labels, names = spied["latent_scatter"]
    np.testing.assert_array_equal(latents, model.encode(data.test_images))
    np.testing.assert_array_equal(labels, data.test_labels)
    assert list(names) == list(data.class_names)

    (drawn,) = spied["samples"]
    np.testing.assert_array_equal(drawn, model.sample(7, 3))

    (grid,) = spied["manifold_grid"]
    np.testing.assert_array_equal(grid, model.decode(sheets.manifold_points()))

    (rows,) = spied["interpolations"]
    assert rows.shape == (8, 10, 28, 28, 1)
    round_trips = model.reconstruct(data.test_images)[0].reshape(len(data.test_images), -1)
    ends = np.concatenate([rows[:, 0], rows[:, -1]]).reshape(16, -1)
    distance = np.array([np.abs(round_trips - end).max(axis=1) for end in ends])
    assert (distance.min(axis=1) < 1e-4).all(), "both ends are reconstructions of test images"
    assert len(set(distance.argmin(axis=1).tolist())) == 16, "of sixteen different ones"


def test_the_seed_decides_every_choice(call, trained):
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert call(GENERATE, "--model-dir", trained(), "--out", out, "--seed", seed, "--samples", 5).code == 0
    first, again, other = (content(Path(out)) for out in "abc")
    assert first == again
    same = {name for name in first if first[name] == other[name]}
    assert same == {"latent_space.png", "manifold.png"}  # of all images, and of fixed points


@pytest.mark.parametrize(("count", "seed"), [(10, 0), (20, 1), (23, 2), (400, 3)])
def test_images_are_picked_at_random_without_repetition_as_many_of_each_class_as_there_are(count, seed):
    labels = np.random.default_rng(5).permutation(np.repeat(np.arange(10), [3, 40, 40, 40, 40, 40, 40, 40, 40, 40]))
    picked = gallery.pick_images(labels, count, len(labels), seed)
    assert len(np.unique(picked)) == len(picked) == min(count, len(labels))
    each = np.bincount(labels[picked], minlength=10)
    level = max(each)
    assert ((each >= level - 1) | (each == np.bincount(labels))).all()
    assert (np.diff(labels[picked]) >= 0).all(), "ordered by class"
    np.testing.assert_array_equal(picked, gallery.pick_images(labels, count, len(labels), seed))
    if count < len(labels):
        assert set(picked) != set(gallery.pick_images(labels, count, len(labels), seed + 1))


def test_images_without_labels_are_picked_too():
    picked = gallery.pick_images(None, 20, 100, 0)
    assert len(set(picked.tolist())) == 20
    assert set(picked) != set(range(20))
    assert sorted(gallery.pick_images(None, 20, 7, 0)) == list(range(7))


def test_a_plain_autoencoder_draws_from_the_mixture_in_its_folder(call, spied):
    pytest.importorskip("sklearn")
    words = ("--model", "ae", "--epochs", 1, "--out", "run")
    with no_pictures():
        assert call(TRAIN, *TINY, *words).code == 0
    done = call(GENERATE, "--model-dir", "run")
    assert (done.code, "samples" in spied) == (0, False)
    assert "--mixture-components 50" in done.out
    done = call(GENERATE, "--model-dir", "run", "--mixture-components", 4)
    assert (done.code, done.err) == (0, "")
    assert "fitted 4 Gaussians to the latents of 4,000 training images" in done.out
    path = Path("run") / "mixture.safetensors"
    before, first = path.read_bytes(), spied.pop("samples")[0]
    assert first.shape == (48, 28, 28, 1)
    assert "fitted" not in call(GENERATE, "--model-dir", "run").out
    np.testing.assert_array_equal(spied.pop("samples")[0], first)
    assert call(GENERATE, "--model-dir", "run", "--mixture-components", 4).code == 0
    assert path.read_bytes() == before
    assert call(GENERATE, "--model-dir", "run", "--mixture-components", 4, "--seed", 2**40 + 1).code == 0
    assert path.read_bytes() != before, "its seed draws where the fit begins"
    np.savez("own.npz", x_train=np.random.default_rng(0).integers(0, 256, (60, 28, 28), np.uint8))
    done = call(GENERATE, "--model-dir", "run", "--mixture-components", 3, "--dataset", "own.npz", "--out", "own")
    assert "fitted 3 Gaussians to the latents of 54 training images" in done.out
    assert load_state(path)[0]["weights"].shape == (3,)
    with no_pictures():
        assert call(TRAIN, *TINY, *words, "--overwrite").code == 0
    assert not path.exists(), "it belonged to the old run"


def test_a_mixture_that_makes_no_sense(call, trained):
    call(GENERATE, "--model-dir", trained(), "--mixture-components", 5).failed(2, "a vae draws from its prior")
    call(GENERATE, "--model-dir", trained("ae"), "--mixture-components", 0).failed(2, "--mixture-components")


def test_a_conditional_model_draws_a_row_for_each_class_or_one_class(call, trained, spied):
    folder = trained("vae", 2, "--conditional")
    model, data = autoencoders.load(folder), load_dataset("fashion-mnist-sample")
    assert (model.classes, model.class_names) == (10, data.class_names)
    done = call(GENERATE, "--model-dir", folder, "--samples", 25, "--seed", 3)
    assert (done.code, done.err) == (0, "")
    (drawn,) = spied["samples"]
    assert len(drawn) == 30
    for c in range(10):
        np.testing.assert_array_equal(drawn[3 * c : 3 * c + 3], model.sample(3, 3, labels=[c, c, c]))
    assert "manifold_grid" not in spied
    np.testing.assert_array_equal(spied["latent_scatter"][0], model.encode(data.test_images, labels=data.test_labels))
    for word in ("Ankle boot", "ankle BOOT", "9"):
        assert call(GENERATE, "--model-dir", folder, "--samples", 4, "--class", word).code == 0
        np.testing.assert_array_equal(spied["samples"][0], model.sample(4, 0, labels=[9] * 4))


def test_a_class_that_the_model_does_not_know(call, trained):
    words = ("--model-dir", trained("vae", 2, "--conditional"), "--out", "drawn")
    for wrong in ("Boot", "10", "-1"):
        call(GENERATE, *words, f"--class={wrong}").failed(2, f"'{wrong}'", "T-shirt/top, Trouser", "Bag, Ankle boot")
    call(GENERATE, *words, "--class=").failed(2, "--class is empty")
    call(GENERATE, *words, "--class=ankel boot").failed(2, "did you mean Ankle boot?")
    call(GENERATE, "--model-dir", trained(), "--class", "Bag").failed(2, "--class needs a conditional model")
    assert os.listdir() == []


@pytest.mark.usefixtures("undrawn")
def test_a_conditional_model_needs_labels_and_takes_numbers_for_names(call):
    rng = np.random.default_rng(0)
    arrays = {"train_images": rng.integers(0, 256, (24, 6, 5), dtype=np.uint8)}
    np.savez("own.npz", **arrays)
    words = (*NETWORK, "--dataset", "own.npz", "--epochs", 1, "--conditional", "--out", "run")
    call(TRAIN, *words).failed(3, "own.npz", "needs labels")
    assert not Path("run").exists()
    np.savez("own.npz", **arrays, train_labels=rng.permutation(np.arange(24) % 4))
    assert call(TRAIN, *words).code == 0
    model = autoencoders.load("run")
    assert (model.classes, model.class_names) == (4, ())
    assert call(EVALUATE, "--model-dir", "run", "--dataset", "own.npz", "--iw-samples", 2).code == 0
    call(GENERATE, "--model-dir", "run", "--class", 4).failed(2, "'4'", "0 to 3")
    call(GENERATE, "--model-dir", "run", *SAMPLE).failed(3, "images: expected")


@pytest.mark.parametrize("words", [[], ["--conditional"], ["--conditional", "--class", "bag"]], ids=str)
def test_new_images_are_written_one_by_one_and_as_arrays(words, call, trained):
    folder = trained("vae", 3, *words[:1])
    options = ("--model-dir", folder, "--samples", 12, "--seed", 5, *words[1:])
    assert call(GENERATE, *options, "--format", "npz", "--out", "out").code == 0
    with np.load("out/samples.npz") as file:
        images, labels = file["images"], file["labels"] if words else None
    model = autoencoders.load(folder)
    each = 2 if words == ["--conditional"] else 12
    if words:
        np.testing.assert_array_equal(labels, np.repeat(range(10), 2) if each == 2 else np.full(12, 8))
    new = model.sample(each, 5, labels=labels[-each:] if words else None)
    np.testing.assert_array_equal(images[-each:], np.round(255 * new))
    Path("out/samples").mkdir()
    Path("out/samples/0099.png").write_text("of an earlier call")
    call(GENERATE, *options, "--format", "png", "--out", "out").failed(1, "out holds", "--overwrite")
    assert call(GENERATE, *options, "--format", "png", "--out", "out", "--overwrite").code == 0
    files = sorted(Path("out/samples").iterdir())
    assert [path.name for path in files] == [f"{i:04d}.png" for i in range(1, len(images) + 1)]
    for path, image in zip(files, images, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), image[..., 0])
    call(GENERATE, *options, "--samples", 1001).failed(2, "--samples is 1001", "--format")


@pytest.mark.parametrize("kind", ["vae", "ae"])
def test_latents_are_written_as_csv_or_npz(kind, call, trained):
    model, data = autoencoders.load(trained(kind)), load_dataset("fashion-mnist-sample")
    options = ("--model-dir", trained(kind), "--encode")
    assert call(GENERATE, *options, "z.csv").code == 0
    lines = [line.split(",") for line in Path("z.csv").read_text().splitlines()]
    assert lines[0] == ["part", "index", "label", "class", "z1", "z2"]
    wanted = [["test", str(i), str(y), data.class_names[y]] for i, y in enumerate(data.test_labels)]
    assert [line[:4] for line in lines[1:]] == wanted
    np.testing.assert_array_equal(
        np.array([line[4:] for line in lines[1:]], np.float32), model.encode(data.test_images)
    )
    assert call(GENERATE, *options, "z.npz", *SAMPLE).code == 0
    with np.load("z.npz") as file:
        assert set(file) == {"part", "index", "label", "class", "z", *(["log_variance"] if kind == "vae" else [])}
        assert np.array_equal(file["part"], ["train"] * 4000 + ["test"] * 1000)
        np.testing.assert_array_equal(file["z"][:4000], model.encode(data.train_images))
        np.testing.assert_array_equal(file["label"][4000:], data.test_labels)
    call(GENERATE, *options, "z.csv").failed(1, "z.csv exists", "--overwrite")
    call(GENERATE, *options, "z.txt").failed(2, "--encode is 'z.txt' but must end in .csv or .npz")
    call(GENERATE, *options, "z.csv", "--format", "npz").failed(2, "--encode and --format cannot be combined")
    assert {path.name for path in Path().iterdir()} == {"z.csv", "z.npz"}, "and nothing is drawn"


def test_latents_name_their_images(call, undrawn):
    folder = photos("own", 30)
    words = (*NETWORK, "--dataset", folder, "--image-size", 8, "--skip-broken", "--epochs", 1, "--out", "run")
    assert call(TRAIN, *words).code == 0
    done = call(GENERATE, "--model-dir", "run", "--dataset", folder, "--encode", "mine.csv")
    assert "latents (means) of 30 images to mine.csv: part, path, label, class, z1 to z2" in done.out
    rows = list(csv.DictReader(Path("mine.csv").read_text().splitlines()))
    assert sorted(row["path"] for row in rows) == sorted(f"{'ab'[i % 2]}/{i}.png" for i in range(30))
    assert all(row["path"][0] == row["class"] == "ab"[int(row["label"])] for row in rows)
    assert [row["part"] for row in rows] == ["train"] * 27 + ["test"] * 3
    dataset, model = load_dataset(folder, image_size=8, skip_broken=True), autoencoders.load("run")
    z = dict(zip(dataset.train_names, model.encode(dataset.train_images), strict=True))
    for row in rows[:27]:
        np.testing.assert_array_equal(np.float32([row["z1"], row["z2"]]), z[row["path"]])
    # other images: nobody has trained on them, and their order is that of their names
    other = ("--dataset", photos("other", 12))
    done = call(GENERATE, "--model-dir", "run", *other, "--encode", "other.npz")
    assert done.out.rstrip().endswith("other.npz: path, label, class, z, log_variance")
    with np.load("other.npz") as found:
        assert list(found["path"]) == sorted(f"{'ab'[i % 2]}/{i}.png" for i in range(12))
    rng = np.random.default_rng(0)
    np.savez("arrays.npz", images=rng.integers(0, 256, (25, 8, 8, 3), np.uint8), labels=np.arange(25) % 2)
    assert call(GENERATE, "--model-dir", "run", "--dataset", "arrays.npz", "--encode", "arrays.csv").code == 0
    rows = list(csv.reader(Path("arrays.csv").read_text().splitlines()))
    assert rows[0] == ["index", "label", "z1", "z2"]
    assert [row[:2] for row in rows[1:]] == [[str(i), str(i % 2)] for i in range(25)]


def test_results_of_other_images_take_no_place_of_the_run(call, trained):
    shutil.copytree(trained(), "run")
    before = content(Path("run"))
    np.savez("other.npz", images=np.random.default_rng(0).integers(0, 256, (40, 28, 28), np.uint8))
    words = ("--model-dir", "run", "--dataset", "other.npz")
    (photos("broken", 6) / "a/x.png").write_bytes(b"")
    for program in (EVALUATE, GENERATE):
        other = ("--model-dir", "run", "--dataset", "broken", "--out", "new")
        call(program, *other).failed(3, "x.png", "--skip-broken")
        assert call(program, *other, "--skip-broken").code == 0
        shutil.rmtree("new")
        call(program, *words).failed(2, "--out is needed", "its own images, not of other.npz")
        assert content(Path("run")) == before
        assert call(program, *words, "--out", "elsewhere").code == 0
        assert content(Path("run")) == before
    shutil.copytree("run/checkpoints", "copies")
    newest = max(Path("run/checkpoints").glob("step-*"))
    newest.rename(newest.with_name("step-000099999.safetensors"))
    done = call(GENERATE, "--model-dir", "run", "--image", *photos("own", 2).glob("a/0.png"))
    assert "the run has gone on since run/model.safetensors was saved" in done.out


def test_new_images_need_no_data_set(call, undrawn):
    np.savez("own.npz", images=np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8))
    assert call(TRAIN, *NETWORK, "--dataset", "own.npz", "--epochs", 1, "--out", "run").code == 0
    undrawn.undo()
    for words in ([], ["--format", "npz"]):
        done = call(GENERATE, "--model-dir", "run", *words)
        assert (done.code, done.err) == (0, "")
        assert "left out are reconstructions, latent space and interpolations" in done.out
        assert f"add --dataset {Path('own.npz').absolute()}" in done.out
    assert {path.stem for path in Path("run/figures").iterdir()} == {"samples", "manifold", "progress"}
    call(GENERATE, "--model-dir", "run", "--encode", "z.csv").failed(3, "own images", "--dataset")
    call(GENERATE, "--model-dir", "run", "--dataset", "gone.npz").failed(3, "gone.npz")
    assert call(GENERATE, "--model-dir", "run", "--dataset", "own.npz", "--format", "png").code == 0
    assert call(TRAIN, *NETWORK, "--dataset", "own.npz", "--epochs", 1, "--overwrite", "--out", "run").code == 0
    assert not list(Path("run").glob("figures/samples*/*.*")), "they are not of the new model"


def test_show_without_a_display_says_so_after_the_pictures_are_written(trained):
    command = [sys.executable, SCRIPTS / "generator.py", "--model-dir", trained(), "--out", "drawn", "--show"]
    environment = {**os.environ, "MPLBACKEND": "agg"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    Done(done.returncode, done.stdout, done.stderr).failed(1, "no display")
    assert pictures(Path("drawn")) == VAE_PICTURES | {"manifold"}


# ---- own images ----


def test_own_arrays_of_odd_size_in_colour_are_found_from_another_folder(call, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 11, 7, 3), dtype=np.uint8)
    np.savez("own.npz", train_images=pixels)
    with no_pictures():
        assert call(TRAIN, *NETWORK, "--dataset", "own.npz", "--epochs", 1, "--out", "run").code == 0
    assert record(Path("run"))["model"]["input_shape"] == [11, 7, 3]
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert call(GENERATE, "--model-dir", "../run", "--dataset", "../own.npz").code == 0
    assert pictures(Path("../run/figures")) == VAE_PICTURES | {"manifold", "progress"}
    assert call(EVALUATE, "--model-dir", "../run", "--dataset", "../own.npz", "--iw-samples", 2).code == 0
    with no_pictures():
        assert call(TRAIN, "--out", "../run", "--resume").code == 0


def photos(folder: str, count: int) -> Path:
    """Coloured pictures of two classes and sizes, and a broken one."""
    rng = np.random.default_rng(count)
    for i in range(count):
        path = Path(folder) / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20 + 8 * (i % 2), 24, 3), np.uint8)).save(path)
    (path.parent / "broken.jpg").write_bytes(b"")
    return Path(folder)


def test_how_images_are_read_is_recorded_and_applied_again(call, monkeypatch, undrawn):
    words = (*NETWORK, "--dataset", photos("holiday photos", 40), "--epochs", 1, "--out", "run")
    call(TRAIN, *words).failed(3, "20 of 40 are not 24 x 20", "--image-size 20", "1 cannot be read (broken.jpg)")
    call(TRAIN, *words, "--image-size", 8).failed(3, "broken.jpg: cannot identify", "--skip-broken")
    call(TRAIN, *words, "--image-size", 8, 8, 8).failed(2, "--image-size is 8 8 8")
    reading = ("--image-size", 8, 12, "--grayscale", "--skip-broken", "--test-dir", photos("kept", 10))
    done = call(TRAIN, *words, *reading, "--augment", "--limit-train", 30)
    assert (done.code, done.err) == (0, "")
    assert "--model-dir run --dataset 'holiday photos'" in done.out
    recorded = record(Path("run"))
    wanted = {"image_size": [8, 12], "grayscale": True, "skip_broken": True, "test_dir": str(Path("kept").absolute())}
    assert recorded["data"] | wanted == recorded["data"]
    assert recorded["options"]["augment"]
    assert recorded["model"]["input_shape"] == [8, 12, 1]
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    words = ("--model-dir", "../run", "--dataset", "../holiday photos")
    again = ("--init-from", "../run", "--epochs", 1, "--out", "new")
    for program, *rest in ((EVALUATE, *words), (TRAIN, "--out", "../run", "--resume"), (TRAIN, *again)):
        done = call(program, *rest)
        assert (done.code, done.err) == (0, "")
        assert "10 of them for testing" in done.out
        assert "50 of them resized and cropped to 12 x 8" in done.out
    found = json.loads(Path("../run/evaluation.json").read_text())["data"]["content_hash"]
    assert found == recorded["data"]["content_hash"] == record(Path("new"))["data"]["content_hash"]
    # other pictures get the size and colour of the model's; the folder of test images is not theirs
    done = call(GENERATE, "--model-dir", "../run", "--dataset", "../kept", "--out", "drawn")
    assert (done.code, done.err) == (0, "")
    assert "10 images from the folder ../kept, 1 of them, drawn at random from each class, for testing" in done.out
    recorded["data"]["image_size"] = "large"
    Path("../run/run.json").write_text(json.dumps(recorded))
    call(GENERATE, *words).failed(3, "image size is large but must be")


def test_single_pictures_are_reconstructed_without_a_data_set(call, trained, monkeypatch):
    face = photos("a ü", 4) / "a/0.png"
    monkeypatch.setattr(GENERATE.module, "data_of_model", lambda *_: pytest.fail("loads a data set"))
    shutil.copytree(trained(), "run")
    done = call(GENERATE, "--model-dir", "run", "--image", face, "a ü/b/3.png")
    assert (done.code, done.err) == (0, "")
    assert f"{face}: turned to grey, resized and cropped to 28 x 28" in done.out
    before = content(Path("run"))
    call(GENERATE, "--model-dir", "run", "--image", "a ü/b/broken.jpg").failed(3, "a ü/b/broken.jpg: cannot identify")
    call(GENERATE, "--model-dir", "run", "--image", "a ü").failed(3, "a ü: kind: expected a file, found a folder")
    assert content(Path("run")) == before
    conditional = ("--model-dir", trained("vae", 2, "--conditional"), "--image", face, "--out", "drawn")
    call(GENERATE, *conditional).failed(2, "--image needs the --class of the pictures")
    assert call(GENERATE, *conditional, "--class", "Bag").code == 0
    assert pictures(Path("drawn")) == {"image"}


def test_an_own_folder_of_pictures_by_class(call):
    rng = np.random.default_rng(0)
    for label, name in enumerate(("cats", "dogs")):  # dark cats, bright dogs
        (Path("zoo") / name).mkdir(parents=True)
        for i in range(50):
            pixels = rng.integers(0, 128, (14, 9, 3), dtype=np.uint8) + np.uint8(128 * label)
            Image.fromarray(pixels).save(Path("zoo") / name / f"{i}.png")
    data = load_dataset("zoo")
    for images, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels)):
        assert labels.tolist() == (images.mean(axis=(1, 2, 3)) > 127.5).astype(int).tolist()
        assert set(labels.tolist()) == {0, 1}
    assert data.class_names == ("cats", "dogs")
    assert call(TRAIN, *NETWORK, "--model", "ae", "--dataset", "zoo", "--epochs", 1, "--out", "run").code == 0
    assert record(Path("run"))["model"]["input_shape"] == [14, 9, 3]
    done = call(GENERATE, "--model-dir", "run", "--dataset", "zoo", "--out", "drawn")
    assert (done.code, done.err) == (0, "")
    assert pictures(Path("drawn")) == AE_PICTURES


# ---- evaluate ----


KEYS = """mse psnr ssim bce neg_elbo neg_elbo_se reconstruction kl kl_per_dim active_units iw_nll iw_nll_se
    aggregate_mean aggregate_std probe_accuracy knn_accuracy fd data_entropy pca_mse diagnosis
    versions seed command"""


def measured(folder: str | Path) -> dict:
    return json.loads((Path(folder) / "evaluation.json").read_text())


@pytest.mark.parametrize("kind", ["vae", "ae"])
def test_evaluate_writes_its_figures(kind, call, trained):
    words = ("--model-dir", trained(kind), "--out", "measured", "--iw-samples", 2)
    done = call(EVALUATE, *words)
    assert (done.code, done.err) == (0, "")
    found = measured("measured")
    assert set(KEYS.split()) <= set(found)
    model, data = autoencoders.load(trained(kind)), load_dataset("fashion-mnist-sample")
    x = data.test_images.astype(np.float64) / 255
    z = model.encode(data.test_images)
    error = model.decode(z).astype(np.float64) - x
    mse = float(np.sum(error * error) / error.size)
    assert found["mse"] == pytest.approx(mse, rel=1e-6)
    assert found["psnr"] == pytest.approx(10 * np.log10(1 / mse), rel=1e-6)
    assert found["seed"] == 0
    assert found["command"].endswith(f"scripts/evaluate.py {shlex.join(map(str, words))}")
    assert found["data"] == {"name": "fashion-mnist-sample", "content_hash": data.content_hash}
    assert found["model_sha256"] == hashlib.sha256((trained(kind) / "model.safetensors").read_bytes()).hexdigest()
    assert found["environment"]["device"] == "cpu"
    if kind == "vae":
        mu, log_variance = (a.astype(np.float64) for a in model.encode_distribution(data.test_images))
        kl = np.mean(0.5 * (np.exp(log_variance) + mu**2 - 1 - log_variance), axis=0)
        np.testing.assert_allclose(found["kl_per_dim"], kl, rtol=1e-6)
        assert found["kl"] == pytest.approx(kl.sum(), rel=1e-5)
        assert found["neg_elbo"] == pytest.approx(found["reconstruction"] + found["kl"], rel=1e-12)
        assert found["iw_nll"] > 0
        assert "on which the model was not trained" in done.out
    else:
        assert (found["kl"], found["iw_nll"], found["fd"]) == (None, None, None)
        assert "iw_nll" not in done.out
    assert re.search(rf"mse +{mse:.5g} +per pixel", done.out)
    assert found["verdict"] in done.out
    for finding in found["diagnosis"]:
        assert finding["why"] in done.out
        assert finding["option"] in done.out
    for note in found["notes"]:
        assert note in done.out
    assert str(Path("measured/evaluation.json")) in done.out
    at_the_end = record(trained(kind))["test"]  # with another number of threads, and one draw of the latent
    for name, value in at_the_end.items():
        one_draw = 0.01 if name in ("neg_elbo", "reconstruction") else 1e-5
        assert name.endswith("_se") or value == pytest.approx(found[name], rel=one_draw), name


def test_evaluate_draws_its_noise_from_the_seed(call, trained):
    found = []
    for seed in (0, 0, 1):
        words = ("--model-dir", trained(), "--out", "out", "--seed", seed, "--iw-samples", 2)
        assert call(EVALUATE, *words).code == 0
        found.append(measured("out"))
    assert found[0] == found[1]
    for name in ("reconstruction", "iw_nll", "fd"):
        assert found[0][name] != found[2][name]
    assert (found[0]["mse"], found[0]["kl"]) == (found[2]["mse"], found[2]["kl"])


@pytest.mark.parametrize(("limit", "validation"), [(64, 0), (None, 0), (64, 0.25)])
def test_evaluate_compares_with_the_images_that_were_trained_on(limit, validation, call, trained):
    shutil.copytree(trained("ae"), "run")
    changed = record(Path("run"))
    assert changed["data"]["limit_train"] == 64
    changed["data"]["limit_train"] = limit
    changed["options"]["validation"] = validation
    Path("run/run.json").write_text(json.dumps(changed))
    assert call(EVALUATE, "--model-dir", "run").code == 0
    model, images = autoencoders.load("run"), load_dataset("fashion-mnist-sample").train_images[:limit]
    if validation:
        images = images[np.sort(generator(0, "split").permutation(64)[16:])]
    seen = images[generator(0, "seen").permutation(len(images))[:1000]]
    mse = np.mean((model.reconstruct(seen)[0].astype(np.float64) - seen / 255) ** 2)
    assert measured("run")["train_mse"] == pytest.approx(mse, rel=1e-6)


def test_the_film_of_an_earlier_report_is_not_shown_again(call, trained):
    pytest.importorskip("jinja2")
    shutil.copytree(trained("ae"), "run")
    words = ("--model-dir", "run", "--out", "out")
    assert call(EVALUATE, *words).code == 0
    assert "data:image/gif" in Path("out/report.html").read_text()
    for frame in Path("run/film").iterdir():
        frame.write_text("damaged")
    done = call(EVALUATE, *words)
    assert (done.code, done.err) == (0, "")
    assert "no film: " in done.out
    assert "data:image/gif" not in Path("out/report.html").read_text()


def test_evaluate_notes_that_a_model_was_not_trained_on_binarised_images(call, trained):
    shutil.copytree(trained(), "run")
    changed = record(Path("run"))
    changed["options"]["binarise"] = True
    Path("run/run.json").write_text(json.dumps(changed))
    assert "not trained" not in call(EVALUATE, "--model-dir", "run", "--iw-samples", 2).out
    done = call(EVALUATE, "--model-dir", "run", "--iw-samples", 0)
    assert "iw_nll" not in done.out
    assert measured("run")["iw_nll"] is None


def test_evaluate_says_that_weights_like_the_seeds_are_not_a_working_vae(call, trained):
    model = autoencoders.load(trained())
    state = model.network.state_dict()
    factors = {"mu.weight": 40, "mu.bias": 40, "decoder_dense.weight": 1 / 40, "log_variance.weight": 0}
    for name, factor in factors.items():
        state[name] = state[name] * np.float32(factor)
    state["log_variance.bias"] = state["log_variance.bias"] * 0 - 80
    model.network.load_state_dict(state)
    model.save("seed")
    done = call(EVALUATE, "--model-dir", "seed", "--iw-samples", 2, *SAMPLE)
    assert done.code == 0
    assert "this is not a working VAE" in done.out
    assert "diverged variance" in measured("seed")["verdict"]


@pytest.mark.parametrize(
    ("program", "step", "words"),
    [
        (EVALUATE, "measure", []),
        (EVALUATE, "all_pictures", []),
        (GENERATE, "draw", []),
        pytest.param(GENERATE, "fit_mixture", ["--mixture-components", 2], marks=NEEDS_EVAL),
    ],
)
@pytest.mark.parametrize("removed", [False, True, None])  # None: a checkpoint was taken, and now there is a model
def test_a_model_that_is_replaced_meanwhile_gets_no_results_of_the_old_one(
    program, step, words, removed, call, trained, monkeypatch
):
    shutil.copytree(trained("ae"), "run")
    if removed is None:
        Path("run/model.safetensors").unlink()
    real = getattr(program.module, step)

    def step_meanwhile(*args, **options):
        result = real(*args, **options)
        if removed:
            Path("run/model.safetensors").unlink()
        else:
            shutil.copy(trained() / "model.safetensors", "run")
        return result

    monkeypatch.setattr(program.module, step, step_meanwhile)
    before = set(content(Path("run")))
    call(program, "--model-dir", "run", *words).failed(1, "run: the model has changed meanwhile", "again")
    written = set(content(Path("run"))) - before - {"model.safetensors"}
    assert written == ({"evaluation.json"} if step == "all_pictures" else set()), "what was right when it was written"


def test_evaluate_takes_every_name_of_a_folder(call, trained):
    pytest.importorskip("jinja2")
    shutil.copytree(trained("ae"), os.fsdecode(b"r\xffun"))
    done = call(EVALUATE, "--model-dir", os.fsdecode(b"r\xffun"), "--out", os.fsdecode(b"o\xffut"))
    assert (done.code, done.err) == (0, "")
    assert r"--out 'o\udcffut'" in html.unescape(Path(os.fsdecode(b"o\xffut/report.html")).read_text(encoding="utf-8"))


def test_evaluate_refuses_what_it_cannot_use(call, trained):
    call(EVALUATE, "--model-dir", trained(), "--iw-samples", -1).failed(2, "--iw-samples is -1")
    call(EVALUATE, "--model-dir", trained(), "--iw-samples", 10**11).failed(2, "from 0 to 1000000")
    shutil.copytree(trained(), "run")
    Path("run/run.json").write_text(json.dumps({"data": {"limit_train": "all"}}))
    call(EVALUATE, "--model-dir", "run").failed(3, "run.json", "limit_train", "'all'")
    Path("run/run.json").write_text(json.dumps({"options": {"denoise": -1}}))
    call(EVALUATE, "--model-dir", "run").failed(3, "run.json", "options", "denoise", "-1")


# ---- recipes ----


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_is_an_option_file_that_everybody_has(name, call):
    """Its options are taken, and those typed win."""
    assert call(TRAIN, "--config", name, *SAMPLE, "--smoke", "--batch-size", 8, "--out", "run").code == 0
    wanted, found = read_config(name), record(Path("run"))
    assert found["model"]["latent_space_dim"] == wanted["latent_dim"]
    assert found["options"]["schedule"] == wanted["schedule"]
    assert found["options"]["batch_size"] == 8


def test_an_unknown_recipe_names_the_known_ones(call):
    call(TRAIN, "--config", "vae11").failed(3, "vae11", "the recipes are", *recipes())


# ---- a model that does not work ----


def test_a_model_that_does_not_work_is_exit_code_5(call, undrawn, monkeypatch):
    """Training and evaluate.py agree. The run that was to be replaced is kept."""
    assert call(TRAIN, *TINY, "--epochs", 1, "--out", "run").code == 0
    monkeypatch.setattr(run_module, "fatal", diagnosis.fatal)
    done = call(TRAIN, *TINY, "--epochs", 1, "--seed", 1, "--overwrite", "--out", "run")
    done.failed(5, "the model does not work: ", "--epochs 1000 for about 2,000", "run/old-1")
    assert record(Path("run"))["status"].startswith("failed: the model does not work")
    assert call(EVALUATE, "--model-dir", "run").code == 0
    assert "this is not a working VAE" in measured("run")["verdict"]
    call(TRAIN, *TINY, "--out", "run").failed(1, "an unfinished run; use --overwrite")
    assert call(TRAIN, *TINY, "--smoke", "--out", "smoke").code == 0


@pytest.mark.parametrize("kind", ["vae", "ae"])
def test_a_model_that_works_is_exit_code_0(kind, call, undrawn, monkeypatch):
    monkeypatch.setattr(run_module, "fatal", diagnosis.fatal)
    words = (*NETWORK, *SAMPLE, "--limit-train", 1000, "--lr", 0.01, "--epochs", 4, "--model", kind, "--out", "run")
    assert call(TRAIN, *words).code == 0
    assert call(EVALUATE, "--model-dir", "run").code == 0
    assert "this is not" not in measured("run")["verdict"]


def test_an_absurd_loss_ends_a_training(call):
    words = (*NETWORK, *SAMPLE, "--limit-train", 640, "--lr", 3, "--warmup-steps", 0, "--epochs", 9, "--out", "run")
    call(TRAIN, *words).failed(5, "training diverged", "--lr 0.002 instead of 3")
    assert "diverged" in record(Path("run"))["status"]


def test_a_run_does_not_go_among_its_images(call):
    """Its pictures would be images the next time."""
    Path("mine/runs").mkdir(parents=True)
    for i in range(20):
        Image.new("L", (8, 8), 10 * i).save(f"mine/{i}.png")
    for out in ("mine", "mine/runs/new"):
        call(TRAIN, *NETWORK, "--dataset", "mine", "--epochs", 1, "--out", out).failed(
            2, f"--out {out} lies in", "images"
        )
    assert sorted(os.listdir("mine")) == sorted(["runs", *(f"{i}.png" for i in range(20))])
