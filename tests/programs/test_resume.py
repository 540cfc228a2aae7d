"""Runs that are interrupted and resumed."""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from faults import started
from program_cases import VAE_PICTURES, content, losses, pictures, raising, record, weights
from programs import EVALUATE, GENERATE, NETWORK, PROGRAMS, SCRIPTS, TINY, TRAIN

import minigrad.backend
from autoencoders.runs import run as run_module, start as run_start
from autoencoders.training import Trainer
from minigrad.serialize import load_state, save_state

pytestmark = pytest.mark.usefixtures("working_folder")


STANDARDIZE = run_module.standardize


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
    told = re.fullmatch(r"interrupted; saved\. --finish .* makes the model now\. Resume with:\n  (.*)\n", err)
    assert told, err
    return process.returncode, told[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_printed_command_goes_on_to_the_same_weights(number, unbroken, call):
    code, command = interrupt(number)
    assert code == 128 + number
    assert record(Path("a run"))["status"] == "interrupted"
    assert not Path("a run/model.safetensors").exists()
    call(TRAIN, *TINY, "--out", "a run").failed(1, "unfinished run", "--resume", "--overwrite")
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "resuming after step" in done.stdout
    assert "not bitwise" not in done.stdout
    assert (weights(Path("a run")), losses(Path("a run"))) == (weights(unbroken), losses(unbroken))
    assert pictures(Path("a run/figures")) == VAE_PICTURES | {"manifold", "loss_curves", "progress"}


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
        assert not Path("run/old-1").exists()
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


def test_quiet_does_not_silence_what_changes_the_result(half, call):
    newest = max((half / "checkpoints").iterdir())
    newest.write_bytes(b"")
    done = call(TRAIN, "--out", half, "--resume", "--quiet", "--backend", "plain")
    assert (done.code, done.out) == (0, "")
    assert f"skipped a checkpoint: {newest}" in done.err
    assert [":".join(line.split(":")[:2]) for line in done.err.splitlines()[:-1]] == [
        "warning: skipped a checkpoint",
        "warning: the result is not bitwise that of an uninterrupted run, because these changed",
    ]
    assert "steps of training are few" in done.err.splitlines()[-1]
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
    assert (done.code, done.err) == (130, "interrupted before the first checkpoint; the same command starts again\n")
    assert content(half) == before


def test_ctrl_c_while_a_run_is_read_says_that_nothing_is_lost(half, call, monkeypatch):
    before = content(half)

    monkeypatch.setattr(run_start, "load_dataset", raising(KeyboardInterrupt(2)))
    done = call(TRAIN, "--out", half, "--resume")
    told = r"interrupted before the training was resumed\. Resume it with:\n  .*autoencoder.py --out run --resume\n"
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
    done.failed(3, "model.safetensors: kind: expected a file, found a folder; move it away; the checkpoints are kept.")


def test_another_file_in_the_place_of_the_model_is_named(half, call):
    newest = max((half / "checkpoints").iterdir())
    arrays, _, _ = load_state(newest)
    save_state(half / "model.safetensors", arrays, {"kind": "frame"})
    for program in (GENERATE, EVALUATE):
        call(program, "--model-dir", half).failed(3, "model.safetensors: expected a model, found a frame")


def test_without_a_record_the_default_data_are_named(half, call):
    (half / "run.json").unlink()
    told = "run.json does not name the model's training images; use --dataset to name other images\n"
    for program, *words in ((GENERATE,), (EVALUATE, "--iw-samples", 0)):
        for more in ((), ("--dataset", "fashion-mnist-sample")):
            assert (told in call(program, "--model-dir", half, *words, *more).out) == (not more)


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

    def cpu_backend(kernels, threads, shards):
        made.append(kernels)
        return plain("plain", threads, shards)

    monkeypatch.setattr(minigrad.backend, "_cpu_backend", cpu_backend)
    monkeypatch.setattr(minigrad.backend, "_default", None)
    monkeypatch.setattr(minigrad.backend, "_backends", {})
    call(TRAIN, *TINY, "--batch-size", 0, "--out", "run").failed(2, "--batch-size is 0")
    assert set(made) <= {"numpy"}


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.usefixtures("undrawn", "cupy_double")
def test_resume_keeps_the_precision_or_tells_another(call, precision):
    Path("my.toml").write_text(f'precision = "{precision}"')
    np.savez("own.npz", train_images=np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8))
    words = (*NETWORK, "--dataset", "own.npz", "--epochs", 1, "--device", "cuda")
    words += ("--schedule", "constant", "--warmup-steps", 0)  # so that a step's rate does not depend on --epochs
    assert f"precision {precision}" in call(TRAIN, *words, "--config", "my.toml", "--out", "run").out
    assert record(Path("run"))["environment"]["precision"] == precision
    done = call(TRAIN, "--out", "run", "--resume", "--epochs", 2).ok(f"precision {precision}")
    assert "not bitwise" not in done.out
    call(TRAIN, *words, "--epochs", 2, "--config", "my.toml", "--out", "whole")
    assert losses(Path("run")) == losses(Path("whole"))
    done = call(TRAIN, "--out", "run", "--resume", "--epochs", 3, "--precision", "fp32")
    assert re.search(rf"not bitwise .*precision {precision} -> fp32", done.out)
    assert record(Path("run"))["environment"]["precision"] == "fp32"


def test_resume_can_add_epochs_where_no_schedule_depends_on_them(half, call, trained):
    rows = losses(half)
    call(TRAIN, "--out", half, "--resume", "--epochs", 3).failed(2, "epochs is 3", "after epoch 4", "--finish")
    call(TRAIN, "--out", half, "--resume", "--threads", 0).failed(2, "threads is 0")
    done = call(TRAIN, "--out", half, "--resume", "--epochs", 5, "--threads", 2, "--backend", "plain").ok(
        "resuming after step 8, in epoch 5 of 5"
    )
    assert re.search(r"not bitwise .*kernels \w+ -> plain", done.out)
    assert losses(half)[:4] == rows
    assert len(losses(half)) == record(half)["options"]["epochs"] == 5
    before = content(trained())
    call(TRAIN, "--out", trained(), "--resume", "--epochs", 9).failed(2, "epochs cannot change", "cosine")
    assert content(trained()) == before


@pytest.mark.parametrize(
    ("words", "told"),
    [(words.split(), "from the checkpoint") for words in ("--lr 1", "--batch-size 9", "--seed 1", "--grayscale")]
    + [(words.split(), "--resume cannot be combined") for words in ("--smoke", "--overwrite", "--config x.toml")],
)
def test_resume_takes_every_option_from_the_checkpoint(words, told, call, trained):
    before = content(trained())
    call(TRAIN, "--out", trained(), "--resume", *words).failed(2, words[0], told)
    assert content(trained()) == before


def test_resume_without_a_run_or_with_other_data(call, undrawn):
    call(TRAIN, "--out", "nothing", "--resume").failed(3, "nothing", "no valid checkpoint")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 6, 5), dtype=np.uint8)
    np.savez("own.npz", train_images=pixels)
    assert call(TRAIN, *NETWORK, "--dataset", "own.npz", "--epochs", 1, "--out", "run").code == 0
    before = content(Path("run"))
    np.savez("own.npz", train_images=255 - pixels)
    hashes = r"not the data of this run (SHA-256 ", f", recorded {record(Path('run'))['data']['content_hash']})"
    call(TRAIN, "--out", "run", "--resume").failed(3, "own.npz", *hashes)
    Path("own.npz").unlink()
    moved = "if the images were moved, give their new path with --dataset"
    call(TRAIN, "--out", "run", "--resume").failed(3, "own.npz", moved)
    assert content(Path("run")) == before
    np.savez("moved.npz", train_images=pixels)
    assert call(TRAIN, "--out", "run", "--resume", "--dataset", "moved.npz").code == 0
    assert record(Path("run"))["data"]["name"] == str(Path("moved.npz").absolute())
