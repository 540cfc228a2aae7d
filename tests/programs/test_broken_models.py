"""A model that does not work is no success."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image
from program_cases import NETWORK, SAMPLE, TINY, measured, record
from programs import EVALUATE, TRAIN

from autoencoders.evaluation import diagnosis
from autoencoders.runs import run as run_module

pytestmark = pytest.mark.usefixtures("working_folder")


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
