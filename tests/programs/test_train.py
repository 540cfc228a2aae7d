"""The training program."""

import io
import json
import logging
import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from program_cases import AE_PICTURES, VAE_PICTURES, content, losses, measured, pictures, record, script
from programs import EVALUATE, GENERATE, NETWORK, SAMPLE, SCRIPTS, TINY, TRAIN

import autoencoders
from autoencoders.cli.program import Program, UsageError, run_program
from autoencoders.cli.settings import read_config, recipes
from autoencoders.data import Dataset
from autoencoders.evaluation import diagnosis
from autoencoders.runs import run as run_module
from autoencoders.shipped import shipped_folder
from autoencoders.training import Trainer, TrainingOptions
from minigrad.serialize import load_state

pytestmark = pytest.mark.usefixtures("working_folder")


@pytest.mark.parametrize(
    ("model", "folder", "drawn"),
    [("ae", "model-smoke", AE_PICTURES), ("vae", "variational/model-smoke", VAE_PICTURES | {"manifold"})],
)
def test_a_smoke_run_goes_through_every_stage_in_a_folder_of_its_own(model, folder, drawn, call):
    done = call(TRAIN, *NETWORK, *SAMPLE, "--model", model, "--smoke").ok()
    out = Path(folder)
    assert os.listdir() == [folder.split("/")[0]], "nothing elsewhere"
    assert {p.name for p in out.iterdir()} == {
        "model.safetensors", "run.json", "history.csv", "history.jsonl", "checkpoints", "figures", "film", ".lock",
    }  # fmt: skip
    assert pictures(out / "figures") == drawn | {"loss_curves", "progress"}
    assert os.listdir(out / "checkpoints") == ["step-00000002.safetensors"]  # two batches
    ran = record(out)
    assert (ran["status"], ran["model"]["kind"], type(autoencoders.load(out)).kind) == ("finished", model, model)
    assert ran["test"]["mse"] > 0
    layers, plane = "2 convolutions, 28x28x1 -> 7x7x8", "--latent-dim 2 gives a map of the images"
    for told in ("device cpu", "embedded sample", layers, plane, "epoch 1/1", "model.safetensors", "psnr"):
        assert told in done.out
    assert not {"\r", "\x1b"} & set(done.out), "this is no terminal"
    long = [line for line in done.out.splitlines() if len(line) > 80]
    explore = str(Program.installed("explore"))
    assert all(str(SCRIPTS) in line or explore in line for line in long), "commands have the paths that they have"


@pytest.mark.parametrize("model", ["ae", "vae"])
def test_explain_writes_a_page_and_trains_nothing(model, call):
    done = call(TRAIN, *NETWORK[:-2], *SAMPLE, "--model", model, "--explain", "step.html").ok("open it in a browser")
    assert os.listdir() == ["step.html"]
    page = Path("step.html").read_text()
    assert "Step 1 of the run, with 4 images: reconstruction" in page
    assert "4 x 28 x 28 x 1" in page
    assert "epoch" not in done.out
    call(TRAIN, "--explain", "step.html").failed(1, "step.html exists; --overwrite replaces it")
    call(TRAIN, *NETWORK[:-2], *SAMPLE, "--model", model, "--explain", "step.html", "--overwrite").ok()
    for words in (["--resume"], ["--out", "run"], ["--smoke"]):
        call(TRAIN, "--explain", "step.html", *words).failed(2, f"--explain trains nothing; leave out {words[0]}")


def test_a_trained_model_can_be_explained(call, trained):
    call(TRAIN, "--init-from", trained(), "--explain", "step.html", "--batch-size", "2").ok()
    assert "2 images: reconstruction" in Path("step.html").read_text()


def test_quiet_prints_nothing(call, trained, caplog):
    reading = [(x, "--model-dir", trained(), "--out", x.__name__) for x in (GENERATE, EVALUATE)]
    for program in ((TRAIN, *TINY, "--smoke", "--out", "run"), (TRAIN, "--out", "run", "--resume"), *reading):
        assert call(*program, "--quiet").ok().out == ""
    call(TRAIN, "--quiet", "--verbose").failed(2, "--verbose", "not allowed with", "--quiet")
    for quiet in (True, False):
        caplog.clear()
        run_program(lambda: logging.getLogger("minigrad").warning("compiling"), debug=False, quiet=quiet)
        assert caplog.messages == ([] if quiet else ["compiling"])


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


CONFIG = {
    "model": "vae", "filters": [3, 5], "kernels": [3, 1], "strides": [2, 3], "latent-dim": 4, "conditional": True,
    "likelihood": "gaussian", "beta": 2, "kl-warmup": 1.5, "lr": 0.5e-3, "schedule": "constant", "warmup-steps": 3,
    "clip-norm": 5, "dataset": "fashion-mnist-sample", "limit-train": 40, "validation": 0.25, "patience": 2,
    "denoise": 0.2, "batch-size": 16, "epochs": 1, "save-every": 1, "seed": 9, "backend": "plain",
}  # fmt: skip


@pytest.mark.usefixtures("undrawn")
def test_options_come_from_the_command_line_then_the_file_then_the_defaults(call):
    """And every one reaches the run."""
    Path("my.toml").write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in CONFIG.items()))
    typed = ("--batch-size", 20, "--latent-dim", 3, "--epochs", 3, "--augment", "--out", "run")
    assert call(TRAIN, "--config", "my.toml", *typed).code == 0
    ran, rows = record(Path("run")), losses(Path("run"))
    wanted = {"latent_space_dim": 3, "conv_filters": [3, 5], "conv_kernels": [3, 1], "conv_strides": [2, 3]}
    wanted |= {"beta": 2.0, "likelihood": "gaussian", "classes": 10, "seed": 9}
    assert ran["model"] == ran["model"] | wanted
    assert ran["options"] == {
        "batch_size": 20, "epochs": 3, "seed": 9, "schedule": "constant", "warmup_steps": 3, "kl_warmup": 1.5,
        "validation": 0.25, "patience": 2, "clip_norm": 5.0, "save_every": 1, "denoise": 0.2, "binarise": False,
        "iw_samples": 1, "augment": True,
    }  # fmt: skip
    assert (ran["learning_rate"], ran["data"]["limit_train"]) == (0.5e-3, 40)
    assert ran["environment"]["kernels"] == "plain"
    assert "--config my.toml --batch-size 20" in ran["commands"][0]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[0]["beta"] < rows[1]["beta"] == 2
    assert rows[2]["learning_rate"] == 0.5e-3
    assert "val_loss" in rows[0]


@pytest.mark.parametrize(
    ("images", "words", "epochs", "warmup", "steps", "momentum"),
    [
        (60_000, "", 8, 200, 3752, 0.99),
        (4_000, "", 40, 200, 2520, 62 / 63),
        (64, "", 500, 200, 2000, 29 / 30),
        (60_000, "--limit-train 600", 53, 200, 2014, 37 / 38),
        (641, "--epochs 2", 2, 41, 82, 36 / 41),
        (100, "--epochs 1 --batch-size 25", 1, 2, 4, 0.0),
        (60_000, "--smoke --batch-size 100", 1, 0, 2, 0.0),
    ],
)
def test_the_default_schedule_follows_the_number_of_images(
    images, words, epochs, warmup, steps, momentum, call, monkeypatch
):
    """BatchNorm's moving statistics forget where they started: 1 - 10 / steps to the power of the steps is 5e-5."""
    start = mock.Mock(side_effect=UsageError("enough"))
    zeros = np.zeros((images, 8, 8, 1), np.uint8)
    many = Dataset("many", zeros, None, zeros[:5], None, (), "made")
    monkeypatch.setattr(TRAIN.module, "load_dataset", lambda *_, **__: many)
    monkeypatch.setattr(TRAIN.module, "start_run", start)
    call(TRAIN, *NETWORK[:-2], "--backend", "numpy", *words.split(), "--out", "run").failed(2, "enough")
    model, _, options, _ = start.call_args.args
    used = zeros[: start.call_args.kwargs["limit_train"]]
    assert (options.epochs, options.warmup_steps) == (epochs, warmup)
    assert options.epochs * -(-len(used) // options.batch_size) == steps
    assert model.momentum == pytest.approx(momentum, abs=2e-4)
    assert model.momentum**steps < 5e-5


def test_the_estimated_time_includes_what_follows_each_epoch():
    """480 images for the film and 120 that are held out are 60 batches, which take as long as 20 steps."""
    feed = SimpleNamespace(steps=30, trained=range(480), held_out=SimpleNamespace(images=range(120)))
    options = TrainingOptions(batch_size=10, epochs=2)
    trainer = SimpleNamespace(options=options, feed=feed, seconds_per_step=lambda: 0.5)
    assert TRAIN.module.plan_of(trainer) == "480 images in batches of 10, 2 epochs: 60 steps, about 50 s"


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
    steps = [name for name in after if name.startswith("checkpoints/step")]
    assert steps == ["checkpoints/step-00000004.safetensors"]
    old = {name.removeprefix("old-1/"): x for name, x in after.items() if name.startswith("old-1/")}
    assert old == {name: x for name, x in before.items() if name not in ("notes.txt", ".lock")}


def test_a_run_that_diverges_ends_with_5_and_says_what_to_try():
    """In a process of its own, where NumPy's warnings are shown as a user sees them."""
    words = ("--epochs", 2, "--warmup-steps", 0, "--lr", "1e30", "--threads", 2, "--out", "run")
    script(TRAIN, *TINY, *words).failed(5, "diverged", "step", "smaller learning rate")
    assert record(Path("run"))["status"].startswith("failed: training diverged")
    assert not (Path("run") / "model.safetensors").exists()
    for path in Path("run").glob("checkpoints/*"):
        assert all(np.isfinite(x).all() for x in load_state(path)[0].values())


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_is_an_option_file_that_everybody_has(name, call):
    """Its options are taken, and those typed win."""
    assert call(TRAIN, "--config", name, *SAMPLE, "--smoke", "--batch-size", 8, "--out", "run").code == 0
    wanted, found = read_config(name), record(Path("run"))
    if "init_from" in wanted:
        assert found["init_from"]["file"] == str(shipped_folder(wanted["init_from"]) / "model.safetensors")
    else:
        assert found["model"]["latent_space_dim"] == wanted["latent_dim"]
    assert found["options"]["schedule"] == wanted["schedule"]
    assert found["options"]["batch_size"] == 8


# ---- a model that does not work is no success ----


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


def test_a_short_training_says_that_it_is_short(call, undrawn):
    """It says how many epochs are enough, and how the model goes on, as often as it is short; not a smoke run."""
    few = "steps of training are few, so images may be blurred; "
    done = call(TRAIN, *TINY, "--epochs", 2, "--out", "run").ok()
    assert f"warning: 4 {few}--epochs 1000 makes about 2,000, or --init-from run --out run-2 --epochs 998" in done.out
    further = call(TRAIN, *TINY[len(NETWORK) :], "--init-from", "run", "--out", "run-2", "--epochs", 3).ok()
    assert f"warning: 16 {few}--epochs 499 makes" in further.out
    quiet = call(TRAIN, *TINY, "--epochs", 1, "--out", "run", "--overwrite", "--quiet")
    assert (quiet.code, quiet.out, quiet.err.count(few)) == (0, "", 1)
    words = ["--smoke"], ["--patience", 1, "--validation", 0.5]
    for more in (*([*TINY, *each] for each in words), [*TINY[len(NETWORK) :], "--init-from", "vae2"]):
        assert few not in call(TRAIN, *more, "--epochs", 1, "--overwrite", "--out", "other").ok().out


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


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_the_table_at_the_end_leaves_out_what_says_nothing(likelihood, call, undrawn):
    done = call(TRAIN, *TINY, "--epochs", 1, "--likelihood", likelihood, "--out", "run").ok("of N(0, I)")
    assert ("  bce  " in done.out, "bce" in record(Path("run"))["test"]) == (likelihood == "bernoulli", True)
