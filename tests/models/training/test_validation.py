"""Validation and the history."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
from trainings import BATCH, COUNT, as_floats, compiled, pictures, recorded

import minigrad
from autoencoders import History, TrainingOptions
from autoencoders.training import Trainer
from autoencoders.training.validation import mean_losses
from minigrad.random import generator
from minigrad.serialize import DataError

pytestmark = pytest.mark.usefixtures("usual_signals")


@pytest.mark.parametrize("validation", [3, 0.1, 10, 25, 0.5])
def test_the_validation_images_are_taken_from_the_training_images(validation):
    images = pictures()

    def split(seed):
        options = TrainingOptions(batch_size=BATCH, epochs=1, validation=validation, seed=seed)
        trainer = Trainer(compiled(), images, options, progress=False)
        parts = trainer.feed.images[trainer.feed.trained], trainer.feed.held_out.images
        return [[x.tobytes() for x in as_floats(part)] for part in parts]

    train, held_out = split(0)
    assert len(held_out) == (validation if validation >= 1 else round(validation * COUNT))
    assert sorted(train + held_out) == sorted(x.tobytes() for x in as_floats(images))
    assert not set(train) & set(held_out)
    assert split(0) == [train, held_out]
    assert split(1) != [train, held_out]
    callback, _ = recorded(images=images, validation=validation, epochs=1)
    trained = [x.tobytes() for step in callback.steps for x in step["images"]]
    assert sorted(trained) == sorted(train)


@pytest.mark.parametrize("validation", [26, 27, 1000, 0.99, 0.01, 1e-9])
def test_an_empty_part_is_told(validation):
    with pytest.raises(DataError, match=f"validation: {validation:g} of 26 images leaves a part empty"):
        compiled().train(pictures(), BATCH, 1, validation=validation, progress=False)


def test_validation_losses_are_those_of_the_held_out_images():
    """By `mean_losses` of a copy in evaluation mode with the same noise, and that by hand for one image a time."""
    options = TrainingOptions(batch_size=BATCH, epochs=2, validation=5, kl_warmup=5)  # which validation does not see
    model = compiled("vae", beta=0.3)
    trainer = Trainer(model, pictures(), options, progress=False)
    row = trainer.run().rows[-1]
    held_out = trainer.feed.held_out.images
    noise = generator(0, "validation").standard_normal((5, 2)).astype("float32")
    total = np.zeros(2)
    with model.evaluating():
        for x, e in zip(held_out, noise, strict=True):
            _, parts = model.losses(minigrad.Tensor(x[None].astype("float32") / 255), e[None], 1.0)
            total += [part.item() for part in parts]
    reconstruction, kl = total / 5
    assert row["val_reconstruction"] == pytest.approx(reconstruction, rel=1e-5)
    assert row["val_kl"] == pytest.approx(kl, rel=1e-5)
    assert row["val_loss"] == pytest.approx(row["val_reconstruction"] + 0.3 * row["val_kl"], rel=1e-12)


def test_mean_losses_weigh_every_image_alike():
    model, images = compiled("vae"), pictures(7)
    parts = [mean_losses(model, images, generator(0, "x"), batch=batch) for batch in (7, 3, 1)]
    for part in parts[1:]:
        assert part == pytest.approx(parts[0], rel=1e-5)


@pytest.mark.parametrize("kind", ["ae", "vae"])
def test_the_logs_hold_the_history(tmp_path, kind):
    history = compiled(kind).train(pictures(), BATCH, 3, validation=3, folder=tmp_path, progress=False)
    names = ["loss", "reconstruction"] + ["kl"] * (kind == "vae")
    columns = ["epoch", *names, *(f"val_{n}" for n in names), "learning_rate", "beta", "images_per_second", "seconds"]
    assert history.columns == columns
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == history.rows
    with open(tmp_path / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [{name: float(value) for name, value in row.items()} for row in rows] == history.rows
    assert list(rows[0]) == columns
    assert len(history) == 3
    for name in columns:
        assert history[name] == [row[name] for row in history.rows]
        assert all(math.isfinite(value) for value in history[name])


def test_missing_columns_and_values():
    history = History([{"a": 1}, {"a": 2, "b": 3}])
    assert history["b"] == [None, 3]
    assert history.columns == ["a", "b"]
    with pytest.raises(KeyError, match="history has no column 'c'; it has a, b"):
        history["c"]


def test_the_history_with_missing_values_is_written(tmp_path):
    History([{"a": 1}, {"a": 2, "b": 0.1}]).write(tmp_path)
    assert (tmp_path / "history.csv").read_text() == "a,b\n1,\n2,0.1\n"


def test_an_epoch_is_shown_as_one_line(capsys):
    compiled("vae").train(pictures(), BATCH, 2, validation=3)
    out, _ = capsys.readouterr()
    assert [line.split("  ")[0] for line in out.splitlines()] == ["epoch 1/2", "epoch 2/2"]
    assert all(f"{name} " in out for name in ("loss", "nats (recon", "KL", "val", "s"))
    compiled("vae").train(pictures(), BATCH, 1, progress=False)
    assert capsys.readouterr() == ("", "")
