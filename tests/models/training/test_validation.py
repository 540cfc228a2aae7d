"""Validation, early stopping and the history."""

import csv
import json
import math
import os
from unittest import mock

import numpy as np
import pytest
from interruptions import At, interrupt, interrupted, resumed
from trainings import BATCH, COUNT, as_floats, compiled, pictures, recorded, steps_of, timeless, trainer_of, weights

import minigrad
from autoencoders import Callback, History, TrainingOptions
from autoencoders.training import Trainer, load_checkpoint
from minigrad.random import generator
from minigrad.serialize import DataError, load_state


@pytest.mark.parametrize("validation", [1, 3, 0.1, 25, 0.5])
def test_the_validation_images_are_taken_from_the_training_images(validation):
    """A whole number is a count, also 1."""

    def split(seed):
        callback, _, trainer = recorded("ae", validation=validation, epochs=1, seed=seed)
        trained = [x.tobytes() for step in callback.steps for x in step["images"]]
        return sorted(trained), [x.tobytes() for x in as_floats(trainer.feed.held_out.images)]

    train, held_out = split(0)
    assert len(held_out) == (validation if validation >= 1 else round(validation * COUNT))
    assert sorted(train + held_out) == sorted(x.tobytes() for x in as_floats(pictures()))
    assert not set(train) & set(held_out)
    assert split(0) == (train, held_out)
    assert split(1) != (train, held_out)


@pytest.mark.parametrize("validation", [26, 1000, 0.99, 1e-9])
def test_an_empty_part_is_told(validation):
    with pytest.raises(DataError, match=f"validation: {validation:g} of 26 images leaves a part empty"):
        compiled().train(pictures(), BATCH, 1, validation=validation, progress=False)


def test_validation_losses_are_those_of_the_held_out_images():
    """By `mean_losses` of a copy in evaluation mode with the same noise, and that by hand for one image a time."""
    _, history, trainer = recorded(
        validation=5, kl_warmup=5, model={"beta": 0.3}
    )  # validation does not see the warm-up
    row, model = history.rows[-1], trainer.model
    noise = generator(0, "validation").standard_normal((5, 2)).astype("float32")
    total = np.zeros(2)
    with model.evaluating():
        for x, e in zip(trainer.feed.held_out.images, noise, strict=True):
            _, parts = model.losses(minigrad.Tensor(x[None].astype("float32") / 255), e[None], 1.0)
            total += [part.item() for part in parts]
    assert [row["val_reconstruction"], row["val_kl"]] == pytest.approx(list(total / 5), rel=1e-5)
    assert row["val_loss"] == pytest.approx(row["val_reconstruction"] + 0.3 * row["val_kl"], rel=1e-12)


def test_a_validation_takes_no_more_images_at_a_time_than_a_step(monkeypatch):
    trainer = trainer_of("vae", None, validation=15)
    losses = mock.Mock(side_effect=trainer.model.losses)
    monkeypatch.setattr(trainer.model, "losses", losses)
    trainer.validate()
    seen = [len(call.args[0].data) for call in losses.call_args_list]
    assert (max(seen), sum(seen)) == (BATCH, 15)


def test_no_memory_for_the_validation_loses_no_step(tmp_path):
    expected = trainer_of("vae", tmp_path / "whole", validation=3)
    expected.run()
    trainer = trainer_of("vae", tmp_path / "run", validation=3)
    trainer.validate = mock.Mock(side_effect=MemoryError("Unable to allocate 1 GiB"))
    with pytest.raises(minigrad.DeviceError, match=r"in the validation: Unable to allocate 1 GiB"):
        trainer.run()
    assert steps_of(tmp_path / "run") == [6]
    again = resumed(tmp_path / "run")
    again.run()
    assert weights(again.model) == weights(expected.model)
    assert timeless(again.history.rows) == timeless(expected.history.rows)


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


def test_missing_columns_and_values(tmp_path):
    history = History([{"a": 1}, {"a": 2, "b": 0.1}, {"a": 3}])
    assert history["b"] == [None, 0.1, None]
    assert history.columns == ["a", "b"]
    with pytest.raises(KeyError, match="history has no column 'c'; it has a, b"):
        history["c"]
    history.write(tmp_path)
    assert (tmp_path / "history.csv").read_text() == "a,b\n1,\n2,0.1\n3,\n"


# ---- early stopping and the best weights ----


class Worse(Callback):
    """Makes the weights bad after some epochs, so that validation is sure to get worse."""

    def __init__(self, after: int):
        self.after, self.states = after, []

    def on_epoch_begin(self, trainer):
        if trainer.progress.epoch == self.after:
            for p in trainer.model.network.parameters():
                p.data += 3

    def on_epoch_end(self, trainer):
        self.states.append(weights(trainer.model))


@pytest.mark.parametrize("with_folder", [True, False])
def test_the_best_weights_are_restored(tmp_path, with_folder):
    worse, model = Worse(2), compiled(rate=1e-4)
    how = {"validation": 3, "patience": 3, "folder": tmp_path if with_folder else None, "callbacks": [worse]}
    losses = model.train(pictures(), BATCH, 20, **how, progress=False)["val_loss"]
    best = int(np.argmin(losses))
    assert best < 2
    assert len(losses) == best + 1 + 3  # three epochs without a better one
    assert weights(model) == worse.states[best]
    assert weights(model) != worse.states[-1]
    if with_folder:
        arrays, record, digest = load_state(tmp_path / "checkpoints" / "best.safetensors")
        assert {name: x.tobytes() for name, x in arrays.items()} == worse.states[best]
        assert record["best"] == {"epoch": best + 1, "val_loss": losses[best]}
        assert load_checkpoint(tmp_path)[1]["progress"]["best"]["sha256"] == digest


def test_without_patience_the_last_weights_stay(tmp_path):
    worse, model = Worse(1), compiled()
    model.train(pictures(), BATCH, 3, validation=3, folder=tmp_path, callbacks=[worse], progress=False)
    assert weights(model) == worse.states[-1]
    assert (tmp_path / "checkpoints" / "best.safetensors").exists()


def test_early_stopping_goes_on_after_an_interruption(tmp_path):
    """The counter of bad epochs and the best weights survive; a best file of another run is not taken."""

    def trainer(callbacks):
        options = TrainingOptions(batch_size=BATCH, epochs=20, validation=3, patience=3)
        return Trainer(compiled(rate=0.0), pictures(), options, folder=tmp_path, callbacks=callbacks, progress=False)

    class Drift(Callback):
        """The rate is 0: only this changes the weights, for the worse after the first epoch."""

        def on_epoch_begin(self, trainer):
            if trainer.progress.epoch and not trainer.progress.batch:
                trainer.model.network.layers["decoder_conv_transpose_layer_2"].bias.data += 1

    interrupted(trainer([Drift(), At(15, interrupt)]))
    second = resumed(tmp_path, [Drift()])
    assert second.progress.waited == 1
    history = second.run()
    assert len(history) == 4
    path = tmp_path / "checkpoints" / "best.safetensors"
    assert {n: x.tobytes() for n, x in load_state(path)[0].items()} == weights(second.model)
    compiled().save(tmp_path / "other")
    os.replace(tmp_path / "other" / "model.safetensors", path)
    third = resumed(tmp_path)  # best.safetensors is of another model now: the last weights are kept
    assert third.progress.best is None
    last = weights(third.model)
    third.run()
    assert weights(third.model) == last
