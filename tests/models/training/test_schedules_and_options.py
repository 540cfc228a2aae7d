"""Learning rates, and options that are refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from trainings import BATCH, Recorded, compiled, model_of, pictures, recorded

from autoencoders import Callback, TrainingOptions
from autoencoders.training import Trainer


def test_kl_warmup_and_the_learning_rate_of_every_step():
    """7 images in batches of 2 are 4 steps an epoch; 2 epochs, beta 0.5 warmed up over 1.5 epochs = 6 steps."""
    options = {"batch_size": 2, "kl_warmup": 1.5, "warmup_steps": 3, "schedule": "cosine"}
    callback, history, _ = recorded(images=pictures(7), rate=0.01, **options, model={"beta": 0.5})
    betas = [0.5 * step / 6 for step in (1, 2, 3, 4, 5, 6)] + [0.5, 0.5]
    rates = [0.01 / 3, 0.02 / 3, 0.01] + [0.005 * (1 + math.cos(math.pi * i / 5)) for i in range(5)]
    for step, beta, rate, i in zip(callback.steps, betas, rates, range(1, 9), strict=True):
        expected = [beta, rate, 1 / (1 - 0.9**i), 1 / (1 - 0.999**i)]
        assert step["scalars"].dtype == np.float32
        np.testing.assert_allclose(step["scalars"], expected, rtol=1e-6)
    assert history["beta"] == pytest.approx([betas[3], betas[7]])
    assert history["learning_rate"] == pytest.approx([rates[3], rates[7]])
    for epoch, row in enumerate(history.rows):  # each step's loss has its own beta
        total = 0.0
        for i in range(4 * epoch, 4 * epoch + 4):
            reconstruction, kl = callback.steps[i]["losses"].astype(float)
            total += len(callback.steps[i]["images"]) * (reconstruction + betas[i] * kl)
        assert row["loss"] == pytest.approx(total / 7, rel=1e-12)


def test_the_constant_schedule_with_warm_up():
    callback, *_ = recorded(images=pictures(7), batch_size=2, rate=0.01, warmup_steps=3)
    rates = [step["scalars"][1] for step in callback.steps]
    np.testing.assert_allclose(rates, [0.01 / 3, 0.02 / 3] + [0.01] * 6, rtol=1e-6)
    callback, *_ = recorded(images=pictures(7), batch_size=2, rate=0.01)
    assert {float(step["scalars"][1]) for step in callback.steps} == {float(np.float32(0.01))}


def test_clipping_limits_the_gradient_of_every_step():
    norms = {}
    for limit in (None, 1e-3, 1e9):
        found = norms[limit] = []

        class Norm(Callback):
            def on_batch_end(self, trainer, found=found):
                found.append(float(np.linalg.norm(trainer.optimizer.flat.gradients.astype(float))))

        options = TrainingOptions(batch_size=BATCH, epochs=1, clip_norm=limit)
        Trainer(compiled("vae"), pictures(), options, callbacks=[Norm()], progress=False).run()
    assert min(norms[None]) > 1e-2
    np.testing.assert_allclose(norms[1e-3], 1e-3, rtol=1e-5)
    np.testing.assert_allclose(norms[1e9], norms[None], rtol=1e-6)


def test_training_twice_goes_on():
    """The optimiser's steps count on, the schedule starts anew."""
    model = compiled()
    model.train(pictures(), BATCH, 1, progress=False)
    assert model.optimizer.steps == 7
    callback = Recorded()
    model.train(pictures(), BATCH, 1, schedule="cosine", callbacks=[callback], progress=False)
    assert model.optimizer.steps == 14
    np.testing.assert_allclose(callback.steps[0]["scalars"][1:3], [1e-2, 1 / (1 - 0.9**8)], rtol=1e-6)
    assert model.optimizer.learning_rate == 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch size is 0 but must be a whole number >= 1"),
        ({"batch_size": 2.0}, r"batch size is 2\.0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"epochs": "3"}, "epochs is '3'"),
        ({"seed": -1}, "seed is -1 but must be a whole number >= 0"),
        ({"warmup_steps": -1}, "warmup steps is -1"),
        ({"save_every": -1}, "save every is -1"),
        ({"save_every": 1.5}, r"save every is 1\.5"),
        ({"schedule": "linear"}, "schedule is 'linear' but must be constant or cosine"),
        ({"kl_warmup": -0.1}, r"kl warmup is -0\.1"),
        ({"kl_warmup": math.inf}, "kl warmup is inf"),
        ({"kl_warmup": math.nan}, "kl warmup is nan"),
        ({"validation": -1}, "validation is -1"),
        ({"validation": math.nan}, "validation is nan"),
        ({"patience": 0, "validation": 3}, "patience is 0 but must be at least 1"),
        ({"patience": 2}, "patience is 2 but must be used together with validation"),
        ({"clip_norm": 0}, "clip norm is 0 but must be a finite number above 0"),
        ({"clip_norm": math.inf}, "clip norm is inf but must be a finite"),
        ({"clip_norm": -1.0}, "clip norm is -1"),
        ({"clip_norm": math.nan}, "clip norm is nan"),
        ({"denoise": -0.1}, r"denoise is -0\.1 but must be a standard deviation"),
        ({"denoise": math.nan}, "denoise is nan"),
        ({"iw_samples": 0}, "iw samples is 0 but must be a whole number >= 1"),
        ({"iw_samples": 2.0}, r"iw samples is 2\.0"),
        ({"denoise": 0.1, "binarise": True}, r"denoise is 0\.1 but must be 0 together with binarise"),
    ],
    ids=str,
)
def test_bad_options_are_told(options, message):
    with pytest.raises(ValueError, match=message):
        TrainingOptions(**options)


def test_unknown_options_a_missing_compile_and_a_moved_model_are_told():
    model = compiled()
    with pytest.raises(TypeError, match="epoch"):
        model.train(pictures(), 4, 1, epoch=3)
    with pytest.raises(RuntimeError, match="compile"):
        Trainer(model_of(), pictures(), TrainingOptions())
    model.network.to(dtype="float64")
    with pytest.raises(RuntimeError, match="new optimizer"):
        model.train(pictures(), 4, 1)
