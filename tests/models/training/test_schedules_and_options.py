"""Learning rates, and options that are refused."""

import math
import re

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


@pytest.mark.parametrize(("limit", "most"), [(1e-3, 1e-3), (1e9, 1e9), (None, 1e9)])
def test_clipping_limits_the_gradient_of_every_step(limit, most):
    norms = []

    class Norm(Callback):
        def on_batch_end(self, trainer):
            norms.append(float(np.linalg.norm(trainer.optimizer.flat.gradients.astype(float))))

    options = TrainingOptions(batch_size=BATCH, epochs=1, clip_norm=limit)
    Trainer(compiled("vae"), pictures(), options, callbacks=[Norm()], progress=False).run()
    assert max(norms) <= 1.00001 * most
    assert min(norms) > min(0.999 * most, 1e-2)


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


BAD_OPTIONS = {  # what an option must be, and what it is not
    "batch_size": ("a whole number >= 1", [0, 2.0]),
    "epochs": ("a whole number >= 1", [0, "3"]),
    "iw_samples": ("a whole number >= 1", [0, 2.0]),
    "seed": ("a whole number >= 0", [-1]),
    "warmup_steps": ("a whole number >= 0", [-1]),
    "save_every": ("a whole number >= 0", [-1, 1.5]),
    "schedule": ("constant or cosine", ["linear"]),
    "kl_warmup": ("a number of epochs >= 0", [-0.1, math.inf, math.nan]),
    "validation": ("a count or a share below 1", [-1, math.nan]),
    "patience": ("at least 1", [0]),
    "clip_norm": ("a finite number above 0", [0, math.inf, -1.0, math.nan]),
    "denoise": ("a standard deviation", [-0.1, math.nan]),
}


@pytest.mark.parametrize(("name", "value"), [(name, x) for name, (_, bad) in BAD_OPTIONS.items() for x in bad])
def test_bad_options_are_told(name, value):
    told = f"{name.replace('_', ' ')} is {value!r} but must be {BAD_OPTIONS[name][0]}"
    with pytest.raises(ValueError, match=re.escape(told)):
        TrainingOptions(**{name: value})


def test_options_that_do_not_go_together_are_told():
    with pytest.raises(ValueError, match="patience is 2 but must be used together with validation"):
        TrainingOptions(patience=2)
    with pytest.raises(ValueError, match=r"denoise is 0\.1 but must be 0 together with binarise"):
        TrainingOptions(denoise=0.1, binarise=True)


def test_unknown_options_a_missing_compile_and_a_moved_model_are_told():
    model = compiled()
    with pytest.raises(TypeError, match="epoch"):
        model.train(pictures(), 4, 1, epoch=3)
    with pytest.raises(RuntimeError, match="compile"):
        Trainer(model_of(), pictures(), TrainingOptions())
    model.network.to(dtype="float64")
    with pytest.raises(RuntimeError, match="new optimizer"):
        model.train(pictures(), 4, 1)
