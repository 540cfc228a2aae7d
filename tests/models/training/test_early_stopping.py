"""Early stopping and the best weights."""

from __future__ import annotations

import os

import numpy as np
import pytest
from trainings import BATCH, At, compiled, interrupt, interrupted, pictures, resumed, weights

from autoencoders import Callback, TrainingOptions
from autoencoders.training import Trainer, load_checkpoint
from minigrad.serialize import load_state


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
