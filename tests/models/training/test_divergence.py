"""Trainings that diverge."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from trainings import BATCH, At, compiled, pictures, resumed, steps_of, trainer_of

from autoencoders import DivergedError
from autoencoders.training import Trainer
from minigrad.serialize import load_state


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("save_every", [0, 1])
@pytest.mark.parametrize("kind", ["ae", "vae"])
def test_an_absurd_learning_rate_is_told_and_nothing_bad_is_saved(tmp_path, kind, save_every):
    trainer = trainer_of(kind, tmp_path, [At(8, lambda t: scale(t, 1e30))], save_every=save_every, schedule="constant")
    with pytest.raises(DivergedError, match=r"training diverged: .*not finite.*smaller learning rate") as error:
        trainer.run()
    kept = steps_of(tmp_path)
    assert kept[-1] in ([6] if not save_every else [7, 8, 9])
    assert f"the last good checkpoint is {tmp_path}/checkpoints/step-{kept[-1]:08d}.safetensors" in str(error.value)
    for path in (tmp_path / "checkpoints").iterdir():
        arrays, record, _ = load_state(path)
        assert all(np.isfinite(x).all() for x in arrays.values()), path
        json.dumps(record, allow_nan=False)
    assert all(math.isfinite(v) for row in trainer.history.rows for v in row.values())
    assert not trainer.model.network.training
    assert resumed(tmp_path).progress.step == kept[-1]


def scale(trainer: Trainer, factor: float) -> None:
    """From here on every update is absurdly large."""
    real = trainer.optimizer.update
    trainer.optimizer.update = lambda scalars: real(scalars * np.float32([factor, 1, 1]))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_diverging_without_a_folder_and_in_the_first_step():
    with pytest.raises(DivergedError, match="the loss of step 2 is not finite") as error:
        compiled("vae", rate=1e30).train(pictures(), BATCH, 5, progress=False)
    assert "checkpoint" not in str(error.value)


@pytest.mark.parametrize("what", ["weight", "statistics", "moment"])
def test_what_is_not_finite_is_never_saved(tmp_path, what):
    """Even where the loss did not show it yet: after the last step, in a statistic, in Adam's memory."""

    def spoil(trainer):
        if what == "weight":
            trainer.model.network.parameters()[0].data[...] = np.nan
        elif what == "statistics":
            trainer.model.network.layers["encoder_bn_1"].moving_variance.data[0] = np.inf
        else:
            trainer.optimizer.moments["variance"][3] = np.inf

    trainer = trainer_of("plain", tmp_path, [At(14, spoil)])
    name = {"weight": "encoder_conv_layer_1.weight", "statistics": "moving_variance", "moment": "variance"}[what]
    with pytest.raises(DivergedError, match=f"after step 14 .*{name} is not finite"):
        trainer.run()
    assert steps_of(tmp_path) == [7]


def test_nothing_begins_with_weights_that_are_not_finite_or_saves_them(tmp_path):
    trainer = trainer_of("vae", tmp_path, patience=None)
    trainer.model.network.parameters()[0].data.flat[0] = np.nan
    with pytest.raises(DivergedError, match=r"cannot begin: encoder_conv_layer_1\.weight is not finite"):
        trainer.run()
    with pytest.raises(DivergedError, match="not finite"):
        trainer.model.save(tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_validation_loss_that_is_not_finite_is_told(tmp_path):
    """The weights are finite and the training loss too, but not the loss with the moving statistics."""
    trainer = trainer_of("vae", tmp_path)
    trainer.validate = lambda: {"reconstruction": 1.0, "kl": math.inf}
    with pytest.raises(DivergedError, match="loss in evaluation mode after step 6 is not finite"):
        trainer.run()
    assert not steps_of(tmp_path)
    assert not trainer.history.rows
