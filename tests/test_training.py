"""The training loop: what it computes, what it records, and that an interrupted run ends in the same bits."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import tqdm
from conftest import CPU_KERNELS

import minigrad
from autoencoders import VAE, Autoencoder, Callback, DivergedError, History, TrainingOptions, load
from autoencoders.conv_autoencoder import from_config
from autoencoders.data import load_dataset
from autoencoders.evaluation.metrics import quick_metrics
from autoencoders.pictures.film import SCATTERED, SHOWN
from autoencoders.pictures.gallery import film_images
from autoencoders.runs import resume_run, start_run
from autoencoders.runs.record import data_of_run, read_record, trained_on, training_of_run
from autoencoders.training import Trainer, load_checkpoint
from autoencoders.training.checkpoints import libraries
from autoencoders.training.display import progress_bar
from autoencoders.training.folder import claim
from autoencoders.training.history import epoch_line
from autoencoders.training.signals import catch_signals
from autoencoders.training.signals import interrupt as signal_raises
from autoencoders.training.validation import mean_losses
from minigrad.backend.cpu.threads import Pool
from minigrad.random import generator
from minigrad.serialize import DataError, load_state, save_state

SHAPE = (8, 8, 1)
COUNT, BATCH = 26, 4  # of them 3 are held out, 23 are left: 6 steps an epoch, the last with 3 images
TIMES = ("seconds", "images_per_second")


def pictures(count: int = COUNT, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), dtype=np.uint8)


def model_of(kind: str = "ae", **options) -> Autoencoder:
    cls = Autoencoder if kind == "ae" else VAE
    return cls(SHAPE, (2, 3), (3, 3), (2, 1), 2, **options)


def compiled(kind: str = "ae", rate: float = 1e-2, **options) -> Autoencoder:
    model = model_of(kind, **options)
    model.compile(rate)
    return model


def weights(model: Autoencoder) -> dict[str, bytes]:
    return {name: x.tobytes() for name, x in model.network.state_dict().items()}


def timeless(rows: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def steps_of(folder: Path) -> list[int]:
    return [int(path.stem[5:]) for path in sorted((folder / "checkpoints").glob("step-*"))]


class At(Callback):
    """Does something after some steps of the run."""

    def __init__(self, steps, action):
        self.steps, self.action = ({steps} if isinstance(steps, int) else set(steps)), action

    def on_batch_end(self, trainer):
        if trainer.progress.step in self.steps:
            self.action(trainer)


@pytest.fixture(autouse=True)
def _usual_signals():
    """Python's own handlers, as in a terminal; and after the test, those again."""
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    after = {s: signal.getsignal(s) for s in before}
    for s, handler in before.items():
        signal.signal(s, handler)
    assert after == {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


# ---- what training does ----


@pytest.mark.parametrize("kind", ["ae", "vae"])
def test_the_loss_goes_down_on_the_sample(kind):
    images = load_dataset("fashion-mnist-sample").train_images[:256]
    cls = Autoencoder if kind == "ae" else VAE
    model = cls((28, 28, 1), (4, 4), (3, 3), (2, 2), 2)
    model.compile(5e-3)
    history = model.train(images, 32, 4, progress=False)
    losses = history["loss"]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.85 * losses[0]
    assert not model.network.training


def test_three_arguments_only_train(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    history = compiled("vae").train(pictures(), BATCH, 2)
    assert not os.listdir(tmp_path)
    assert set(history.columns) == {"epoch", "loss", "reconstruction", "kl", "learning_rate", "beta", *TIMES}
    assert history["epoch"] == [1, 2]


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_the_images_are_not_changed(dtype):
    x = pictures()
    x = x if dtype == "uint8" else (x / 255).astype(dtype)
    before = x.tobytes()
    x.setflags(write=False)
    compiled("vae").train(x, BATCH, 1, validation=3, progress=False)
    assert x.tobytes() == before


def as_floats(images: np.ndarray) -> np.ndarray:
    """As a step gets them."""
    return images.astype(np.float32) / 255


class Recorded(Callback):
    """Events, and what each step received and gave."""

    def __init__(self):
        self.events: list[str] = []
        self.steps: list[dict] = []

    def on_fit_begin(self, trainer):
        self.events.append("fit begin")
        real = trainer.step

        def step(images, noise, scalars, *more):
            losses = real(images, noise, scalars, *more)
            noise = None if noise is None else np.array(noise)
            self.steps.append(
                {"images": np.array(images), "noise": noise, "scalars": np.array(scalars), "losses": np.array(losses)}
            )
            return losses

        trainer.step = step

    def on_epoch_begin(self, trainer):
        self.events.append(f"epoch begin {trainer.progress.epoch}")

    def on_batch_begin(self, trainer):
        self.events.append(f"batch begin {trainer.progress.step}")

    def on_batch_end(self, trainer):
        self.events.append(f"batch end {trainer.progress.step}")

    def on_epoch_end(self, trainer):
        self.events.append(f"epoch end {trainer.progress.epoch} {len(trainer.history)}")

    def on_fit_end(self, trainer):
        self.events.append("fit end")


def recorded(kind: str = "vae", images: np.ndarray | None = None, rate: float = 1e-2, epochs: int = 2, **options):
    """(what the callback saw, the history) of a run."""
    callback = Recorded()
    model = compiled(kind, rate, **options.pop("model", {}))
    images = pictures() if images is None else images
    chosen = TrainingOptions(**{"batch_size": BATCH, "epochs": epochs, **options})
    history = Trainer(model, images, chosen, callbacks=[callback], progress=False).run()
    return callback, history


def test_callbacks_come_in_order():
    order: list[str] = []

    class Second(Recorded):
        def on_fit_end(self, trainer):
            order.append("second")

    class First(Recorded):
        def on_fit_end(self, trainer):
            order.append("first")
            assert not trainer.model.network.training

    first = First()
    options = TrainingOptions(batch_size=8, epochs=2)
    Trainer(compiled(), pictures(10), options, callbacks=[first, Callback(), Second()], progress=False).run()
    expected = ["fit begin"]
    for epoch in range(2):
        expected.append(f"epoch begin {epoch}")
        for step in (2 * epoch, 2 * epoch + 1):
            expected += [f"batch begin {step}", f"batch end {step + 1}"]
        expected.append(f"epoch end {epoch + 1} {epoch + 1}")
    assert first.events == expected
    assert order == ["first", "second"]


@pytest.mark.parametrize(("count", "batch"), [(26, 4), (8, 4), (3, 10), (1, 1), (1, 4), (5, 1)])
def test_an_epoch_visits_every_image_once_and_its_mean_is_over_images(count, batch):
    """Sizes of the batches, each image once an epoch, another order each epoch; short last batches weigh less."""
    images = pictures(count)
    callback, history = recorded(images=images, batch_size=batch)
    sizes = [len(step["images"]) for step in callback.steps]
    per_epoch = [batch] * (count // batch) + [count % batch] * (count % batch > 0)
    assert sizes == per_epoch * 2
    half = len(per_epoch)
    orders = []
    for epoch, row in enumerate(history.rows):
        steps = callback.steps[epoch * half : (epoch + 1) * half]
        seen = np.concatenate([step["images"] for step in steps])
        orders.append([x.tobytes() for x in seen])
        assert sorted(orders[-1]) == sorted(x.tobytes() for x in as_floats(images))
        total = np.zeros(2)
        for step in steps:
            total += len(step["images"]) * step["losses"].astype(float)
        assert [row["reconstruction"], row["kl"]] == pytest.approx((total / count).tolist(), rel=1e-12)
        assert row["loss"] == pytest.approx(total.sum() / count, rel=1e-12)
        assert row["epoch"] == epoch + 1
        assert row["images_per_second"] == pytest.approx(count / row["seconds"])
    assert count < 5 or orders[0] != orders[1]


def test_the_losses_of_a_step_are_those_of_its_images():
    """An independent pass over each batch with the weights of that moment: not of another row or another noise."""
    images, seen = pictures(10), []

    class Check(Recorded):
        def on_batch_begin(self, trainer):
            state = trainer.model.network.state_dict()
            same = compiled("vae")
            same.network.load_state_dict(state)
            seen.append(same)

    callback = Check()
    options = TrainingOptions(batch_size=4, epochs=1)
    Trainer(compiled("vae"), images, options, callbacks=[callback], progress=False).run()
    assert len(seen) == 3
    order = generator(0, "shuffle", 0).permutation(10)
    noise = generator(0, "noise", 0).standard_normal((10, 2), dtype=np.float32)
    for i, (model, step) in enumerate(zip(seen, callback.steps, strict=True)):
        rows = slice(4 * i, 4 * i + 4)
        np.testing.assert_array_equal(step["images"], as_floats(images[order[rows]]))
        np.testing.assert_array_equal(step["noise"], noise[rows])
        batch = minigrad.Tensor(images[order[rows]].astype("float32") / 255)
        model.network.train()
        _, parts = model.losses(batch, noise[rows], 1.0)
        np.testing.assert_allclose(step["losses"], [part.item() for part in parts], rtol=1e-6)


def test_a_step_gets_the_labels_of_its_images():
    labels = np.random.default_rng(2).integers(0, 3, 10)
    model, seen = compiled("vae", classes=3), []
    trainer = Trainer(model, pictures(10), TrainingOptions(batch_size=4, epochs=2), labels=labels, progress=False)
    real = trainer.step
    trainer.step = lambda *arrays: (seen.append(np.array(arrays[3])), real(*arrays))[1]
    trainer.run()
    for epoch in range(2):
        order = generator(0, "shuffle", epoch).permutation(10)
        np.testing.assert_array_equal(np.concatenate(seen[3 * epoch : 3 * epoch + 3]), np.eye(3)[labels[order]])


def test_the_labels_stay_with_their_images_in_a_split():
    x = pictures(20)
    labels = (x[:, 0, 0, 0] % 3).astype(int)  # which the image tells
    options = TrainingOptions(batch_size=4, epochs=1, validation=6)
    trainer = Trainer(compiled("vae", classes=3), x, options, labels=labels, progress=False)
    for images, rows in (
        (trainer.feed.images[trainer.feed.trained], trainer.feed.labels[trainer.feed.trained]),
        (trainer.feed.held_out.images, trainer.feed.held_out.one_hot),
    ):
        np.testing.assert_array_equal(rows, np.eye(3)[images[:, 0, 0, 0] % 3])


def batches_of(model: Autoencoder, images: np.ndarray, **options) -> tuple[Trainer, list]:
    """(the trainer after its run, for each step what the encoder saw and the targets)."""
    seen: list = []
    trainer = Trainer(model, images, TrainingOptions(batch_size=BATCH, **options), progress=False)
    real = trainer.step
    trainer.step = lambda *arrays: (seen.append((np.array(arrays[0]), arrays[4])), real(*arrays))[1]
    trainer.run()
    return trainer, seen


def test_every_step_draws_its_pixels_with_their_grey_as_probability():
    grey = np.repeat(np.linspace(0, 1, 5, dtype=np.float32), 13)[:64].reshape(1, *SHAPE)
    _, seen = batches_of(compiled("vae"), np.repeat(grey, 40, axis=0), epochs=10, binarise=True)
    drawn = np.concatenate([x for x, _ in seen])  # 400 images
    assert set(np.unique(drawn)) == {0, 1}
    assert drawn.dtype == np.float32
    assert all(targets is None for _, targets in seen), "it is input and target"
    error = 5 * np.sqrt(grey * (1 - grey) / len(drawn))
    assert (np.abs(drawn.mean(axis=0) - grey[0]) <= error).all(), "0 and 1 are certain"
    flat = drawn.reshape(len(drawn), -1)[:, 13:52]  # no certain ones
    assert len(np.unique(flat, axis=0)) == len(flat), "each image of each epoch anew"


def test_augmented_images_are_flipped_and_shifted_by_up_to_a_16th():
    place = np.add.outer(8 * np.arange(8), np.arange(8)).astype(np.uint8)[..., None]  # each pixel tells where it was
    _, seen = batches_of(compiled("ae"), np.repeat(place[None], 40, axis=0), epochs=10, augment=True)
    drawn = np.concatenate([np.rint(255 * x).astype(int) for x, _ in seen])[..., 0]  # 400 images
    assert all(targets is None for _, targets in seen), "it is input and target"
    rows, columns = drawn // 8, drawn % 8
    assert (rows == rows[:, :, :1]).all()
    assert (columns == columns[:, :1]).all()
    counts = Counter()
    for down, across in zip(rows[:, :, 0], columns[:, 0], strict=True):
        flipped = across[3] > across[4]
        shifts = down[4] - 4, sorted(across)[4] - 4 if not flipped else across[::-1][4] - 4
        counts[bool(flipped), int(shifts[0]), int(shifts[1])] += 1
        wanted = np.arange(8) + shifts[1]
        assert list(down) == list((np.arange(8) + shifts[0]).clip(0, 7)), "the edge is repeated"
        assert list(across[::-1] if flipped else across) == list(wanted.clip(0, 7))
    assert set(counts) == {(flip, y, x) for flip in (False, True) for y in (-1, 0, 1) for x in (-1, 0, 1)}
    assert min(counts.values()) > 5
    held = Trainer(compiled("ae"), pictures(), TrainingOptions(validation=3, augment=True), progress=False)
    assert {image.tobytes() for image in held.feed.held_out.images} <= {image.tobytes() for image in pictures()}


@pytest.mark.parametrize("kind", ["ae", "vae"])
def test_noise_is_added_to_what_the_encoder_sees_and_not_to_the_targets(kind):
    x = np.full((40, *SHAPE), 0.5, np.float32)
    _, seen = batches_of(compiled(kind), x, epochs=10, denoise=0.1)
    noisy = np.concatenate([x for x, _ in seen])
    assert noisy.dtype == np.float32
    assert all((targets == 0.5).all() for _, targets in seen)
    count = noisy.size  # 25,600
    assert abs(noisy.mean() - 0.5) < 5 * 0.1 / count**0.5
    assert abs(noisy.std() - 0.1) < 5 * 0.1 / (2 * count) ** 0.5
    assert len(np.unique(noisy)) > count / 2
    _, seen = batches_of(compiled(kind), 0 * x, epochs=1, denoise=5.0)
    noisy = np.concatenate([x for x, _ in seen])
    assert (noisy.min(), noisy.max()) == (0, 1)
    assert abs((noisy == 0).mean() - 0.5) < 0.05


def test_the_loss_of_a_noisy_image_is_that_of_its_clean_target():
    model = compiled("vae")
    rng = np.random.default_rng(0)
    noisy, clean = (minigrad.Tensor(rng.random((3, *SHAPE), dtype=np.float32)) for _ in range(2))
    noise = np.zeros((3, 2), np.float32)
    with model.evaluating():
        reconstruction, kl = (part.item() for part in model.losses(noisy, noise, 1.0, None, clean)[1])
        expected_kl = model.losses(noisy, noise, 1.0)[1][1].item()
        mu, _ = model.encode_distribution(noisy.numpy())
        p = model.decode(mu).astype(float)
        x = clean.numpy().astype(float)
    expected = -(x * np.log(p) + (1 - x) * np.log(1 - p)).sum() / 3
    assert reconstruction == pytest.approx(expected, rel=1e-5)
    assert kl == pytest.approx(expected_kl, rel=1e-6)
    ae = compiled("ae")
    with ae.evaluating():
        loss = ae.losses(noisy, None, 1.0, None, clean)[0].item()
    assert loss == pytest.approx(np.mean((ae.reconstruct(noisy.numpy())[0] - clean.numpy()) ** 2), rel=1e-5)


@pytest.mark.parametrize(("kind", "options"), [("vae", {"binarise": True}), ("ae", {"denoise": 0.3})])
def test_held_out_images_are_disturbed_once(kind, options):
    trainer, _ = batches_of(compiled(kind), pictures(), epochs=2, validation=6, **options)
    again = Trainer(compiled(kind), pictures(), TrainingOptions(validation=6, **options), progress=False)
    np.testing.assert_array_equal(trainer.feed.held_out.images, again.feed.held_out.images)
    clean = Trainer(compiled(kind), pictures(), TrainingOptions(validation=6), progress=False).feed.held_out.images / 255
    if kind == "vae":
        assert set(np.unique(trainer.feed.held_out.images)) == {0, 1}
        assert trainer.feed.held_out.targets is None
    else:
        np.testing.assert_allclose(trainer.feed.held_out.targets, clean, atol=1e-7)
        assert 0.1 < np.std(trainer.feed.held_out.images - clean) < 0.3
        with trainer.model.evaluating():
            rebuilt = trainer.model.reconstruct(trainer.feed.held_out.images)[0]
        assert trainer.history["val_loss"][-1] == pytest.approx(np.mean((rebuilt - clean) ** 2), rel=1e-5)
    assert trainer.validate() == trainer.validate()


@pytest.mark.parametrize("model", [compiled("ae"), compiled("vae", likelihood="gaussian")], ids=["ae", "gaussian"])
def test_pixels_of_0_and_1_need_the_bernoulli_likelihood(model):
    with pytest.raises(ValueError, match="binarise needs a vae with the bernoulli likelihood"):
        model.train(pictures(), BATCH, 1, binarise=True, progress=False)


def test_the_importance_weighted_bound_is_the_loss_of_the_history():
    options = {"epochs": 2, "iw_samples": 3, "validation": 5, "schedule": "constant"}
    model, seen = compiled("vae", rate=0.0), []  # the same weights all the time
    trainer = Trainer(model, pictures(), TrainingOptions(batch_size=BATCH, **options), progress=False)
    real = trainer.step
    trainer.step = lambda *arrays: (seen.append([*arrays[:2], real(*arrays)]), seen[-1][2])[1]
    row, last = trainer.run().rows
    x = trainer.feed.held_out.images.astype(np.float32) / 255
    noise = generator(0, "validation").standard_normal((5, 3, 2)).astype(np.float32)
    with model.evaluating():
        loss, parts = model.losses(minigrad.Tensor(x), noise, 1.0)
    expected = [loss.item(), *(part.item() for part in parts)]
    assert [last[f"val_{name}"] for name in ("loss", "reconstruction", "kl")] == pytest.approx(expected, rel=1e-6)
    drawn = np.concatenate([noise.ravel() for _, noise, _ in seen])
    assert len(np.unique(drawn)) == len(drawn) == 2 * 21 * 3 * 2, "each sample of each image anew"
    total = np.zeros(3)
    model.network.train()
    for images, noise, losses in seen[:6]:
        loss, parts = model.losses(minigrad.Tensor(images), noise, 1.0)
        np.testing.assert_allclose(losses, [*(part.item() for part in parts), loss.item()], rtol=1e-6)
        total += len(images) * losses
    found = [row[name] for name in ("reconstruction", "kl", "loss")]
    np.testing.assert_allclose(found, total / 21, rtol=1e-6)
    assert row["loss"] < row["reconstruction"] + row["kl"]


@pytest.mark.parametrize("model", [compiled("ae"), compiled("vae", beta=0.5)], ids=["ae", "beta"])
def test_the_importance_weighted_bound_needs_a_vae_with_beta_1(model):
    with pytest.raises(ValueError, match="iw samples above 1 need a vae with beta 1"):
        model.train(pictures(), BATCH, 1, iw_samples=2, progress=False)


def test_a_step_changes_the_threads_of_blas_only_once(monkeypatch, restored_backends):
    minigrad.use(kernels="numpy", threads=2)
    trainer = Trainer(compiled("vae"), pictures(5), TrainingOptions(batch_size=5, epochs=1), progress=False)
    images = trainer.k.unit_range(trainer.feed.images, "float32")
    noise = np.zeros((5, trainer.model.noise_dim), np.float32)
    changes = []
    monkeypatch.setattr(type(Pool.single_threaded_blas), "_set", lambda self, counts: changes.append(counts))
    trainer.step(images, noise, np.array([1, *trainer.optimizer.scalars(1)], np.float32))
    assert len(changes) == 2, "it is set, and given back its own setting"


def test_noise_is_fresh_each_step_and_epoch():
    callback, _ = recorded(epochs=3)
    draws = np.concatenate([step["noise"] for step in callback.steps])
    assert len(np.unique(draws)) == draws.size == 3 * COUNT * 2
    callback, _ = recorded("ae")
    assert all(step["noise"] is None for step in callback.steps)


@pytest.mark.parametrize("kind", ["ae", "vae"])
def test_the_same_seed_gives_the_same_bits_and_others_do_not(kind):
    def run(seed=0, model_seed=0):
        model = compiled(kind, seed=model_seed)
        history = model.train(pictures(), BATCH, 2, seed=seed, validation=3, progress=False)
        return weights(model), timeless(history.rows)

    assert run() == run()
    for other in (run(seed=1), run(model_seed=1)):
        assert all(other[0][n] != w for n, w in run()[0].items() if n.endswith("weight"))
        assert other[1] != run()[1]


# ---- schedules ----


def test_kl_warmup_and_the_learning_rate_of_every_step():
    """7 images in batches of 2 are 4 steps an epoch; 2 epochs, beta 0.5 warmed up over 1.5 epochs = 6 steps."""
    callback, history = recorded(
        images=pictures(7),
        batch_size=2,
        rate=0.01,
        kl_warmup=1.5,
        warmup_steps=3,
        schedule="cosine",
        model={"beta": 0.5},
    )
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
    callback, _ = recorded(images=pictures(7), batch_size=2, rate=0.01, warmup_steps=3)
    rates = [step["scalars"][1] for step in callback.steps]
    np.testing.assert_allclose(rates, [0.01 / 3, 0.02 / 3] + [0.01] * 6, rtol=1e-6)
    callback, _ = recorded(images=pictures(7), batch_size=2, rate=0.01)
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


# ---- options ----


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


def test_unknown_options_and_a_missing_compile_are_told():
    with pytest.raises(TypeError, match="epoch"):
        compiled().train(pictures(), 4, 1, epoch=3)
    for train in (
        lambda model: model.train(pictures(), 4, 1),
        lambda model: Trainer(model, pictures(), TrainingOptions()),
    ):
        with pytest.raises(RuntimeError, match="compile"):
            train(model_of())


# ---- validation ----


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


# ---- the history ----


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


# ---- interrupted and resumed ----

FULL = {"validation": 3, "patience": 2, "schedule": "cosine", "warmup_steps": 4, "clip_norm": 1.0, "epochs": 3}
RESUMED = {
    "ae": {**FULL},
    "vae": {**FULL, "kl_warmup": 1.5},
    "plain": {"epochs": 3},
    "conditional": {**FULL},
    "binarised": {**FULL, "binarise": True},
    "denoising": {**FULL, "denoise": 0.3},
    "weighted": {**FULL, "iw_samples": 3, "kl_warmup": 1.5},
    "ae denoising": {**FULL, "denoise": 0.3},
    "augmented": {**FULL, "augment": True},
}
MODELS: dict[str, dict] = {"conditional": {"classes": 3}}
LABELS = np.random.default_rng(1).integers(0, 3, COUNT)


class Killed(Exception):
    """Stands for kill -9: nothing more is written."""


def kill(_):
    raise Killed


def interrupt(_):
    signal.raise_signal(signal.SIGINT)


def trainer_of(kind: str, folder: Path | None, callbacks=(), **options) -> Trainer:
    options = {"batch_size": BATCH, **RESUMED[kind], **options}
    model = compiled("ae" if kind.startswith("ae") else "vae", **MODELS.get(kind, {}))
    return Trainer(
        model, pictures(), TrainingOptions(**options), labels=LABELS, folder=folder, callbacks=callbacks, progress=False
    )


def resumed(folder: Path, callbacks=(), images: np.ndarray | None = None, **changes) -> Trainer:
    """As `runs.resume_run` does, from nothing but the files."""
    arrays, record, _ = load_checkpoint(folder)
    model = from_config(record["model"])
    model.compile(record["learning_rate"])
    options = TrainingOptions(**{**record["options"], **changes})
    images = pictures() if images is None else images
    trainer = Trainer(model, images, options, labels=LABELS, folder=folder, callbacks=callbacks, progress=False)
    trainer.restore(arrays, record)
    return trainer


def outcome(trainer: Trainer, options: bool = False) -> dict:
    """Everything that must be bitwise equal, also what the last checkpoint and the logs hold."""
    arrays, record, _ = load_checkpoint(trainer.folder)
    progress = {**record["progress"], "rows": timeless(record["progress"]["rows"])}
    logged = [json.loads(line) for line in (trainer.folder / "history.jsonl").read_text().splitlines()]
    return {
        "weights": weights(trainer.model),
        "moments": {name: x.tobytes() for name, x in trainer.optimizer.moments.items()},
        "steps": trainer.optimizer.steps,
        "rows": timeless(trainer.history.rows),
        "logged": timeless(logged),
        "checkpoint": {name: x.tobytes() for name, x in arrays.items()},
        "progress": progress,
    }


_unbroken: dict[tuple, dict] = {}


def unbroken(kind: str, kernels: str, tmp_path: Path) -> dict:
    """The run without interruption, computed once."""
    if (kind, kernels) not in _unbroken:
        trainer = trainer_of(kind, tmp_path / "unbroken")
        trainer.run()
        _unbroken[kind, kernels] = outcome(trainer)
    return _unbroken[kind, kernels]


def assert_same(found: dict, expected: dict) -> None:
    for name, value in expected.items():
        assert found[name] == value, name


@pytest.fixture(params=CPU_KERNELS)
def kernels(request, restored_backends):
    minigrad.use(kernels=request.param, threads=2 if request.param != "plain" else None)
    return request.param


class Stop(Callback):
    """Stops in an event, after some steps of the run."""

    def __init__(self, event, step):
        setattr(self, event, lambda trainer: trainer.progress.step == step and trainer.stop())


@pytest.mark.parametrize(
    ("event", "after", "steps", "rows"),
    [
        ("on_fit_begin", 0, 0, 0), ("on_epoch_begin", 0, 0, 0), ("on_epoch_begin", 6, 6, 1),
        ("on_batch_begin", 6, 7, 2), ("on_batch_end", 1, 1, 1), ("on_batch_end", 8, 8, 2),
        ("on_batch_end", 12, 12, 2), ("on_epoch_end", 12, 12, 2),
    ],
)  # fmt: skip
def test_a_callback_stops_a_run_cleanly_and_it_can_go_on(tmp_path, event, after, steps, rows):
    """6 steps an epoch, 18 in all."""
    trainer = trainer_of("vae", tmp_path / "run", [Stop(event, after)])
    history = trainer.run()
    assert (trainer.progress.step, len(history), trainer.model.trained_steps) == (steps, rows, steps)
    logged = tmp_path / "run" / "history.jsonl"
    assert [row["epoch"] for row in history.rows] == [*range(1, rows + 1)]
    assert not rows or timeless(map(json.loads, logged.read_text().splitlines())) == timeless(history.rows)
    assert (steps_of(tmp_path / "run") or [0])[-1] == steps
    best = trainer.progress.best  # patience restores those weights, if an epoch has ended
    if best is not None and steps:
        held = load_state(tmp_path / "run" / "checkpoints" / "best.safetensors")[0]
        assert weights(trainer.model) == {name: x.tobytes() for name, x in held.items()}
    if steps:
        trainer = resumed(tmp_path / "run")
        trainer.run()
        assert_same(outcome(trainer), unbroken("vae", minigrad.use().kernels, tmp_path))


def test_a_stopped_trainer_goes_on_where_it_was(tmp_path):
    trainer = trainer_of("plain", tmp_path / "run", [Stop("on_batch_end", 8)])
    assert [len(trainer.run()), len(trainer.run())] == [2, 3]
    assert_same(outcome(trainer), unbroken("plain", minigrad.use().kernels, tmp_path))


@pytest.mark.parametrize("stops", [(1,), (3,), (6,), (7,), (9,), (17,), (18,), (2, 8), (5, 6, 7, 13)], ids=str)
@pytest.mark.parametrize("kind", ["ae", "vae"])
def test_a_run_interrupted_by_ctrl_c_ends_in_the_same_bits(tmp_path, kind, stops, kernels):
    """First step, mid-epoch, epoch end (6, 12, 18), several times in one run; 23 images are 6 steps an epoch."""
    expected = unbroken(kind, kernels, tmp_path)
    trainer = trainer_of(kind, tmp_path / "run", [At(stops[0], interrupt)])
    for stop, following in zip(stops, [*stops[1:], None], strict=True):
        with pytest.raises(KeyboardInterrupt) as error:
            trainer.run()
        assert error.value.args == (signal.SIGINT,)
        assert trainer.progress.step == stop
        assert steps_of(tmp_path / "run")[-1] == stop
        trainer = resumed(tmp_path / "run", [] if following is None else [At(following, interrupt)])
        assert trainer.progress.step == stop
    trainer.run()
    assert_same(outcome(trainer), expected)


@pytest.mark.parametrize("kind", [kind for kind in RESUMED if kind not in ("ae", "vae", "plain")])
def test_runs_of_other_kinds_end_in_the_same_bits(tmp_path, kind, restored_backends):
    minigrad.use(kernels="numpy", threads=2)
    test_a_run_interrupted_by_ctrl_c_ends_in_the_same_bits(tmp_path, kind, (5, 6, 7, 13), "numpy")


@pytest.mark.parametrize("stops", [(4,), (6,), (8, 14), (18,)], ids=str)
@pytest.mark.parametrize("kind", ["vae", "plain"])
def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path, kind, stops, restored_backends):
    """With save_every = 3: at most 3 steps are lost, and done again on the same numbers."""
    minigrad.use(kernels="plain")
    expected = unbroken(kind, "plain", tmp_path)
    trainer = trainer_of(kind, tmp_path / "run", [At(stops[0], kill)], save_every=3)
    for stop, following in zip(stops, [*stops[1:], None], strict=True):
        with pytest.raises(Killed):
            trainer.run()
        trainer = resumed(tmp_path / "run", [] if following is None else [At(following, kill)])
        per_epoch = trainer.feed.steps  # killed before the checkpoint of its own step
        assert trainer.progress.step == max(n for n in range(stop) if n % 3 == 0 or n % per_epoch == 0)
    trainer.run()
    assert_same(outcome(trainer), expected)


@pytest.mark.parametrize("stops", [(5,), (11,), (10, 11, 23)], ids=str)
def test_long_epochs_end_in_the_same_bits(tmp_path, stops):
    """12 steps an epoch: more than the losses that are fetched from the device at a time."""
    whole = trainer_of("vae", tmp_path / "whole", batch_size=2, epochs=2)
    whole.run()
    trainer = trainer_of("vae", tmp_path / "run", [At(stops[0], interrupt)], batch_size=2, epochs=2)
    for following in (*stops[1:], None):
        with pytest.raises(KeyboardInterrupt):
            trainer.run()
        trainer = resumed(tmp_path / "run", [] if following is None else [At(following, interrupt)])
    trainer.run()
    assert whole.feed.steps == 12
    assert_same(outcome(trainer), outcome(whole))


def test_the_times_of_an_interrupted_epoch_are_added(tmp_path):
    trainer = trainer_of("plain", tmp_path, [At(3, interrupt)])
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    before = trainer.progress.seconds
    assert before > 0
    trainer = resumed(tmp_path, [At(5, interrupt)])
    assert trainer.progress.seconds == before
    trainer.progress.seconds = 100.0
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    trainer = resumed(tmp_path)
    assert 100 < trainer.progress.seconds < 200  # two steps
    first, second, _ = trainer.run()["seconds"]
    assert first > 100 > second > 0


def test_ctrl_c_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = compiled()
    with pytest.raises(KeyboardInterrupt):
        model.train(pictures(), BATCH, 2, callbacks=[At(3, interrupt)], progress=False)
    assert model.optimizer.steps == 3
    assert not model.network.training
    assert model.optimizer.learning_rate == 1e-2
    assert not os.listdir(tmp_path)


def test_ctrl_c_while_an_epoch_ends_is_not_lost(tmp_path):
    """Also in the last epoch, after its last step: the checkpoint is written and the interruption is told."""

    class Late(Callback):
        def on_epoch_end(self, trainer):
            if trainer.progress.epoch == 2:
                interrupt(trainer)

    for epochs in (2, 3):
        folder = tmp_path / str(epochs)
        trainer = trainer_of("plain", folder, [Late()], epochs=epochs)
        with pytest.raises(KeyboardInterrupt, match=f"^{int(signal.SIGINT)}$"):
            trainer.run()
        assert trainer.progress.step == 14
        assert steps_of(folder)[-1] == 14
        assert len(resumed(folder).run()) == epochs


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    reached = []

    def twice(trainer):
        interrupt(trainer)
        reached.append("one")
        interrupt(trainer)
        reached.append("two")

    trainer = trainer_of("plain", tmp_path, [At(3, twice)])
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert reached == ["one"]
    assert not steps_of(tmp_path)  # it did not stop to save


def test_sigterm_is_told_apart(tmp_path):
    """The scripts' two signals; the step is finished and saved for both."""
    options = TrainingOptions(batch_size=BATCH, epochs=2)
    for number in (signal.SIGINT, signal.SIGTERM):
        folder = tmp_path / str(number)
        at = At(2, lambda _, number=number: signal.raise_signal(number))
        both = (signal.SIGINT, signal.SIGTERM)
        trainer = Trainer(compiled(), pictures(), options, folder=folder, callbacks=[at], progress=False, signals=both)
        with pytest.raises(KeyboardInterrupt) as error:
            trainer.run()
        assert error.value.args == (number,)
        assert steps_of(folder) == [2]


def test_handlers_are_ours_during_a_run_only():
    during = []
    trainer_of("plain", None, [At(1, lambda _: during.append(signal.getsignal(signal.SIGINT)))], epochs=1).run()
    assert during[0] is not signal.default_int_handler
    for action in (interrupt, kill):
        with pytest.raises((KeyboardInterrupt, Killed)):
            trainer_of("plain", None, [At(1, action)]).run()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("own", [lambda *_: None, signal.SIG_IGN], ids=["function", "ignored"])
def test_handlers_of_others_are_not_touched(own):
    signal.signal(signal.SIGINT, own)
    during = []
    trainer = trainer_of(
        "plain", None, [At(1, lambda _: during.append(signal.getsignal(signal.SIGINT))), At(2, interrupt)], epochs=1
    )
    trainer.run()  # goes on: the signal was the other's
    assert during == [own]
    assert signal.getsignal(signal.SIGINT) is own
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_run_in_a_thread_touches_no_handler():
    during, failed = [], []

    def work():
        try:
            trainer_of("plain", None, [At(1, lambda _: during.append(signal.getsignal(signal.SIGINT)))]).run()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed
    assert during == [signal.default_int_handler]


def test_a_signal_after_the_last_step_is_not_lost(monkeypatch):
    """What is raised in a `__del__` goes nowhere: the bar's must run while signals are collected."""
    monkeypatch.setattr(tqdm.tqdm, "__del__", lambda _: signal.raise_signal(signal.SIGINT))
    trainer = trainer_of("plain", None, epochs=1)
    with pytest.raises(KeyboardInterrupt) as error:
        trainer.run()
    assert error.value.args == (signal.SIGINT,)
    assert trainer.progress.epoch == 1  # it had ended


def test_catch_signals_collects_the_first():
    with catch_signals((signal.SIGINT,)) as received:
        interrupt(None)
        assert received == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            interrupt(None)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# ---- checkpoints ----


def test_three_checkpoints_are_kept(tmp_path):
    trainer_of("vae", tmp_path, save_every=2, patience=None).run()
    assert steps_of(tmp_path) == [14, 16, 18]
    assert sorted(os.listdir(tmp_path / "checkpoints")) == [
        "best.safetensors",
        *(f"step-{step:08d}.safetensors" for step in (14, 16, 18)),
    ]
    assert sorted(os.listdir(tmp_path)) == [".lock", "checkpoints", "history.csv", "history.jsonl"]


def test_save_every_counts_steps(tmp_path, monkeypatch):
    for every, expected in ((0, [6, 12]), (4, [4, 6, 8, 12]), (6, [6, 12]), (100, [6, 12])):
        saved: list[str] = []
        with monkeypatch.context() as patch:
            patch.setattr(
                "autoencoders.training.checkpoints.save_state",
                lambda path, *rest, saved=saved: saved.append(path.stem) or save_state(path, *rest),
            )
            trainer_of("plain", tmp_path / str(every), save_every=every, validation=3, epochs=2).run()
        numbers = [int(name[5:]) for name in saved if name != "best"]
        assert numbers == expected


def test_a_checkpoint_records_all_that_a_run_is_made_of(tmp_path):
    trainer = trainer_of("vae", tmp_path, [At(8, interrupt)])
    trainer.data = {"name": "x", "content_hash": "abc"}
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    arrays, record, _ = load_state(tmp_path / "checkpoints" / "step-00000008.safetensors")
    assert set(arrays) == {*weights(trainer.model), "optimizer.mean", "optimizer.variance"}
    assert record["kind"] == "checkpoint"
    assert from_config(record["model"]).config == trainer.model.config
    assert TrainingOptions(**record["options"]) == trainer.options
    assert record["learning_rate"] == 1e-2
    assert record["data"] == trainer.data
    assert {"backend", "kernels", "threads", "device", "python", "numpy", "minigrad"} <= set(record["environment"])
    progress = record["progress"]
    assert (progress["epoch"], progress["batch"], progress["step"], progress["images"]) == (1, 2, 8, 8)
    assert len(progress["rows"]) == 1
    assert progress["best"]["epoch"] == 1
    assert record["progress"] == json.loads(json.dumps(asdict(trainer.progress)))


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_newest_checkpoint_is_skipped_and_told(tmp_path, restored_backends):
    minigrad.use(kernels="plain")
    expected = unbroken("plain", "plain", tmp_path)
    trainer_of("plain", tmp_path / "run").run()
    folder = tmp_path / "run" / "checkpoints"
    newest, middle, oldest = sorted(folder.iterdir(), reverse=True)
    damage(newest)
    (folder / "step-99999999.safetensors").write_bytes(b"")
    told: list[str] = []
    _, record, _ = load_checkpoint(tmp_path / "run", told.append)
    assert record["progress"]["step"] == int(middle.stem[5:]) == 14
    assert len(told) == 2
    assert "step-99999999" in told[0]
    assert f"{newest}" in told[1]
    assert "damaged" in told[1]
    (folder / "step-99999999.safetensors").unlink()
    trainer = resumed(tmp_path / "run")
    trainer.run()
    assert_same(outcome(trainer), expected)
    for path in (newest, middle, oldest):
        damage(path)
    none = "no valid checkpoint to resume from; "
    usable = "a model there can still be used, or the run be replaced with --overwrite"
    with pytest.raises(DataError, match=f"^{tmp_path / 'run'}: {none}{usable}$"):
        load_checkpoint(tmp_path / "run", told.append)
    with pytest.raises(DataError, match=f"^{tmp_path / 'nowhere'}: {none}there is none; .* without --resume$"):
        load_checkpoint(tmp_path / "nowhere")


def test_an_old_checkpoint_that_cannot_be_removed_ends_no_run(tmp_path, monkeypatch):
    def unlink(path, missing_ok=False):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    trainer = trainer_of("plain", tmp_path, save_every=1)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        trainer.run()
    assert steps_of(tmp_path) == [*range(1, trainer.progress.step + 1)]


def test_damaged_checkpoints_of_later_steps_push_no_good_one_out(tmp_path, restored_backends):
    minigrad.use(kernels="plain")
    trainer_of("plain", tmp_path, epochs=1).run()
    folder = tmp_path / "checkpoints"
    good = max(folder.iterdir())
    for step in (97, 98, 99):
        (folder / f"step-{step:08d}.safetensors").write_bytes(b"")
    trainer = resumed(tmp_path)
    trainer.save_checkpoint()
    assert load_checkpoint(tmp_path, lambda _: None)[2] == good


def test_the_last_row_of_the_logs_comes_back(tmp_path, restored_backends):
    """A kill can fall between the last checkpoint and the logs."""
    minigrad.use(kernels="plain")
    trainer_of("plain", tmp_path).run()
    logs = [tmp_path / name for name in ("history.csv", "history.jsonl")]
    whole = [path.read_text() for path in logs]
    for path in logs:
        path.unlink()
    resumed(tmp_path).run()
    assert [path.read_text() for path in logs] == whole


def test_other_state_files_are_no_checkpoints(tmp_path):
    model = compiled()
    model.save(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    os.rename(tmp_path / "model.safetensors", tmp_path / "checkpoints" / "step-00000001.safetensors")
    told: list[str] = []
    with pytest.raises(DataError):
        load_checkpoint(tmp_path, told.append)
    assert "not a checkpoint" in told[0]


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    trainer_of("plain", tmp_path, epochs=1).run()
    arrays, record, _ = load_checkpoint(tmp_path)
    other = Trainer(compiled("ae"), pictures(), TrainingOptions(), progress=False)
    with pytest.raises(DataError, match="checkpoint: does not fit"):
        other.restore(arrays, record)
    for wrong in ({}, {"progress": 3}, {"progress": {"strange": 1}}):
        with pytest.raises(DataError, match="checkpoint: does not fit"):
            trainer_of("plain", None).restore(arrays, wrong)


def test_a_folder_with_checkpoints_of_another_run_is_refused(tmp_path):
    """Their numbers could be higher: the new ones would be taken for the oldest, and deleted."""
    compiled().train(pictures(), BATCH, 3, folder=tmp_path, progress=False)
    before = steps_of(tmp_path)
    model = compiled()
    with pytest.raises(FileExistsError, match="already holds checkpoints"):
        model.train(pictures(), 26, 1, folder=tmp_path, progress=False)
    assert steps_of(tmp_path) == before
    assert model.optimizer.steps == 0


def test_a_failed_save_keeps_the_checkpoints(tmp_path, monkeypatch):
    def fail(_):
        raise OSError(28, "No space left on device")

    trainer = trainer_of("plain", tmp_path, [At(10, lambda _: monkeypatch.setattr(os, "fsync", fail))])
    with pytest.raises(DataError, match=r"step-00000014.*No space left"):
        trainer.run()
    monkeypatch.undo()
    assert steps_of(tmp_path) == [7]
    assert len(resumed(tmp_path).run()) == 3


def test_more_epochs_on_resume(tmp_path, restored_backends):
    """A run of 2 epochs that goes on to 3 is one of 3."""
    minigrad.use(kernels="plain")
    expected = unbroken("plain", "plain", tmp_path)
    trainer_of("plain", tmp_path / "run", epochs=2).run()
    trainer = resumed(tmp_path / "run", epochs=3)
    trainer.run()
    assert_same(outcome(trainer), expected)


# ---- early stopping ----


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
    worse = Worse(2)
    model = compiled(rate=1e-4)
    folder = tmp_path if with_folder else None
    history = model.train(
        pictures(), BATCH, 20, validation=3, patience=3, folder=folder, callbacks=[worse], progress=False
    )
    losses = history["val_loss"]
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
    worse = Worse(1)
    model = compiled()
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

    with pytest.raises(KeyboardInterrupt):
        trainer([Drift(), At(15, interrupt)]).run()
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


# ---- one training a folder ----


def test_what_a_killed_process_left_behind_is_removed(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    left = [tmp_path / ".history.csv.a1b2.part", tmp_path / "checkpoints" / ".step-00000001.safetensors.x_y.part"]
    left += [tmp_path / ".evaluation.json.c3d4.part"]
    mine = [tmp_path / "notes.part", tmp_path / ".hidden"]
    mine += [tmp_path / "data" / ".images.gz.e5f6.part"]
    (tmp_path / "data").mkdir()
    for path in left + mine:
        path.write_text("x")
    trainer_of("ae", tmp_path).run()
    assert [path.exists() for path in left + mine] == [False, False, False, True, True, True]


def test_a_second_training_in_the_same_folder_is_refused(tmp_path):
    """In another thread, as from another process: a lock belongs to the open file."""
    told: list[str] = []

    def other(trainer: Trainer) -> None:
        def train() -> None:
            try:
                trainer_of("ae", tmp_path).run()
            except FileExistsError as error:
                told.append(str(error))

        thread = threading.Thread(target=train)
        thread.start()
        thread.join()

    first = trainer_of("ae", tmp_path, [At(2, other)], save_every=3)
    first.run()
    assert told == [f"{tmp_path}: another training is running in this folder; wait for it or choose another folder"]
    with pytest.raises(FileExistsError, match="already holds checkpoints"):  # it is free again
        trainer_of("ae", tmp_path).run()


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_what_another_training_did_since_the_start_is_not_lost(tmp_path, array_file):
    folder = tmp_path / "run"
    late, overwriting = run_of(array_file, folder), run_of(array_file, folder, overwrite=True)
    execute(run_of(array_file, folder))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for run in (late, overwriting):
        with pytest.raises(FileExistsError, match="another training has changed this folder"):
            execute(run)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


# ---- diverging ----


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


def test_a_validation_loss_that_is_not_finite_is_told(tmp_path):
    """The weights are finite and the training loss too, but not the loss with the moving statistics."""

    class Broken(Callback):
        def on_fit_begin(self, trainer):
            trainer.validate = lambda: {"reconstruction": 1.0, "kl": math.inf}

    trainer = trainer_of("vae", tmp_path, [Broken()])
    with pytest.raises(DivergedError, match="loss in evaluation mode after step 6 is not finite"):
        trainer.run()
    assert not steps_of(tmp_path)
    assert not trainer.history.rows


# ---- run folders ----


@pytest.fixture
def array_file(tmp_path) -> Path:
    path = tmp_path / "images.npy"
    np.save(path, pictures(30))
    return path


def run_of(array_file: Path, folder: Path, overwrite: bool = False, **options):
    dataset = load_dataset(array_file)
    options = TrainingOptions(**{"batch_size": BATCH, "epochs": 2, **options})
    return start_run(
        model_of("vae"),
        dataset,
        options,
        folder,
        learning_rate=1e-2,
        overwrite=overwrite,
        progress=False,
        command="test",
    )


def execute(run) -> list[str]:
    told: list[str] = []
    run.execute(told.append)
    return told


@pytest.fixture
def no_pictures(monkeypatch):
    """Drawing takes long and is tested elsewhere."""
    monkeypatch.setattr("autoencoders.runs.run.draw", lambda *_, **__: {})
    monkeypatch.setattr("autoencoders.pictures.charts.loss_curves", lambda *_, **__: None)
    monkeypatch.setattr("autoencoders.runs.run.save_pictures", lambda *_, **__: [])


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("samples", [1, 2])
def test_the_latents_of_a_finished_run_have_the_mean_and_variance_of_the_prior(
    tmp_path, array_file, samples, monkeypatch
):
    """Over the images that it was trained on; not where the loss is another bound, and not in checkpoints."""
    monkeypatch.setattr("autoencoders.runs.run.WORTH_A_SHIFT", 0)
    run = run_of(array_file, tmp_path / "run", validation=10, iw_samples=samples)
    told = execute(run)
    images = load_dataset(array_file).train_images[run.trainer.feed.trained]
    last = VAE.load(load_checkpoint(tmp_path / "run")[2])
    for model, moved in ((VAE.load(tmp_path / "run"), samples == 1), (last, False)):
        mu, log_variance = model.encode_distribution(images)
        variance = mu.var(axis=0) + np.exp(log_variance).mean(axis=0)
        assert (np.abs(mu.mean(axis=0)).max() < 1e-3 and np.abs(variance - 1).max() < 1e-3) == moved
    assert any("latents shifted and scaled to the prior" in line for line in told) == (samples == 1)


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_a_run_that_was_interrupted_is_resumed_from_its_folder(tmp_path, array_file):
    minigrad.use(kernels="plain")
    whole = run_of(array_file, tmp_path / "whole")
    execute(whole)
    broken = run_of(array_file, tmp_path / "broken")
    broken.trainer.callbacks = [At(3, interrupt)]
    with pytest.raises(KeyboardInterrupt):
        execute(broken)
    assert read_record(tmp_path / "broken")["status"] == "interrupted"
    minigrad.use(kernels="numpy")
    told: list[str] = []
    again = resume_run(tmp_path / "broken", progress=False, tell=told.append)
    assert again.trainer.k.kernels == "plain"  # that of the run
    assert not any("not bitwise" in line for line in told)
    assert "resuming after step 3, in epoch 1 of 2" in told
    execute(again)
    files = [load_state(tmp_path / name / "model.safetensors") for name in ("whole", "broken")]
    assert files[0][2] == files[1][2]
    a, b = (read_record(tmp_path / name) for name in ("whole", "broken"))
    assert a["status"] == b["status"] == "finished"
    for key in ("test", "options", "model", "data", "learning_rate"):
        assert a[key] == b[key]


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_other_kernels_on_resume_are_told(tmp_path, array_file):
    minigrad.use(kernels="plain")
    execute(run_of(array_file, tmp_path / "run"))
    told: list[str] = []
    resume_run(tmp_path / "run", kernels="numpy", threads=2, progress=False, tell=told.append)
    line = next(line for line in told if "not bitwise" in line)
    assert "kernels plain -> numpy" in line
    assert "threads 1 -> 2" in line


class Chosen(Exception):
    """The device was asked for; no further."""


ON_RESUME = [  # what the run had, what is given, what is asked for
    ({"device": "cpu"}, {}, ("cpu", "plain", 3, "fp32")),
    ({"device": "cpu"}, {"device": "cpu", "kernels": "numpy", "threads": 0}, ("cpu", "numpy", 0, "fp32")),
    ({"device": "cpu"}, {"device": "cuda"}, ("cuda", "auto", None, "fp32")),
    ({"device": "cuda:0"}, {"device": "cpu"}, ("cpu", "auto", None, "fp32")),
    ({"device": "cuda:0", "precision": "tf32"}, {}, ("cuda:0", "plain", 3, "tf32")),
    ({"device": "cuda:0", "precision": "tf32"}, {"device": "cuda:1"}, ("cuda:1", "plain", 3, "tf32")),
    ({"device": "cuda:0", "precision": "tf32"}, {"precision": "fp32"}, ("cuda:0", "plain", 3, "fp32")),
    ({"device": "cuda:1"}, {"device": "cuda"}, ("cuda", "plain", 3, "fp32")),
    ({"device": "cpu"}, {"device": "cuda", "precision": "tf32"}, ("cuda", "auto", None, "tf32")),
]


@pytest.mark.parametrize(("was", "given", "expected"), ON_RESUME)
def test_what_is_recorded_of_a_device_holds_for_all_of_its_kind(was, given, expected, tmp_path, monkeypatch):
    """Another GPU of the kind goes on with kernels, threads and precision of the run; another kind has its own best."""
    data = {"name": "x", "limit_train": None, "content_hash": ""}
    record = {"environment": {"kernels": "plain", "threads": 3, **was}, "data": data}
    record |= {"learning_rate": 1e-3, "options": {}, "model": {}}
    monkeypatch.setattr("autoencoders.runs.start.load_checkpoint", lambda *_: ({}, record, tmp_path / "step"))
    asked = []

    def use(*arguments) -> None:
        asked.append(arguments)
        raise Chosen

    monkeypatch.setattr(minigrad, "use", use)
    with pytest.raises(Chosen):
        resume_run(tmp_path, **given)
    assert asked == [expected]


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_the_data_folder_of_a_run_is_kept_unless_another_is_given(tmp_path, array_file, monkeypatch):
    dataset, asked = load_dataset(array_file), []
    options = TrainingOptions(batch_size=BATCH, epochs=1)
    folder = tmp_path / "run"
    execute(start_run(model_of(), dataset, options, folder, learning_rate=1e-2, data_dir="here", progress=False))

    def load(name: str, data_dir: str, download: bool, progress: bool, **_: object):
        asked.append((name, data_dir, download, progress))
        return dataset

    monkeypatch.setattr("autoencoders.runs.start.load_dataset", load)
    resume_run(folder, progress=False, tell=lambda _: None)
    told: list[str] = []
    assert resume_run(folder, data_dir="there", tell=told.append).trainer.display.show
    assert asked == [(dataset.name, "here", False, False), (dataset.name, "there", True, True)]
    again = "--resume --epochs N goes on, or --init-from"
    assert told[-1].startswith(f"resuming after step 7, all epochs are trained; {again}")


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_a_checkpoint_that_claims_a_larger_model_than_it_holds_is_refused_before_it_is_built(tmp_path, array_file):
    execute(run_of(array_file, tmp_path / "run", epochs=1))
    arrays, record, path = load_checkpoint(tmp_path / "run")
    record["model"]["latent_space_dim"] = 10**12
    save_state(path, arrays, record)
    with pytest.raises(DataError, match=rf"{path}: model record: .* at least \d+ weights, but the file holds"):
        resume_run(tmp_path / "run", progress=False, tell=lambda _: None)


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_other_data_on_resume_are_refused(tmp_path, array_file):
    execute(run_of(array_file, tmp_path / "run"))
    before = sorted(p.name for p in (tmp_path / "run").rglob("*"))
    used = load_dataset(array_file).content_hash
    changed = pictures(30)
    changed[7, 3, 3, 0] ^= 1
    np.save(array_file, changed)
    found = load_dataset(array_file).content_hash
    with pytest.raises(DataError, match=rf"not the data of this run \(SHA-256 {found}, recorded {used}\)"):
        resume_run(tmp_path / "run", progress=False, tell=lambda _: None)
    array_file.unlink()
    with pytest.raises(DataError):
        resume_run(tmp_path / "run", progress=False, tell=lambda _: None)
    assert sorted(p.name for p in (tmp_path / "run").rglob("*")) == before


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_epochs_on_resume(tmp_path, array_file):
    def resume(folder, epochs):
        return resume_run(folder, epochs=epochs, progress=False, tell=lambda _: None)

    minigrad.use(kernels="plain")
    execute(run_of(array_file, tmp_path / "two"))
    execute(run_of(array_file, tmp_path / "three", epochs=3))
    with pytest.raises(ValueError, match="epochs is 1 but the run stands after epoch 2; --finish makes the model"):
        resume(tmp_path / "two", 1)
    execute(resume(tmp_path / "two", 3))
    digests = {load_state(tmp_path / name / "model.safetensors")[2] for name in ("two", "three")}
    assert len(digests) == 1
    execute(run_of(array_file, tmp_path / "cosine", schedule="cosine"))
    with pytest.raises(ValueError, match=r"schedule ends with epoch 2; --init-from .* --epochs 1 trains its model on"):
        resume(tmp_path / "cosine", 3)
    assert resume(tmp_path / "cosine", 2).trainer.options.epochs == 2


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_folders_with_a_run_are_guarded(tmp_path, array_file):
    folder = tmp_path / "run"
    first = run_of(array_file, folder)
    assert not folder.exists()  # nothing is written before the run starts
    first.trainer.callbacks = [At(1, kill)]
    with pytest.raises(Killed):
        execute(first)
    assert read_record(folder)["status"].startswith("failed")
    second = run_of(array_file, folder)  # there was no checkpoint yet, so nothing is lost
    second.trainer.callbacks = [At(2, interrupt)]
    with pytest.raises(KeyboardInterrupt):
        execute(second)
    with pytest.raises(
        FileExistsError, match=r"an unfinished run; use --resume to go on with it, --finish to make its"
    ):
        run_of(array_file, folder)
    execute(resume_run(folder, progress=False, tell=lambda _: None))
    with pytest.raises(FileExistsError, match="already holds a finished run; use --overwrite") as error:
        run_of(array_file, folder)
    assert "--resume" not in str(error.value)
    (folder / "notes.txt").write_text("mine")
    (folder / "figures").mkdir(exist_ok=True)
    (folder / "figures" / "fig1.pdf").write_text("mine")
    third = run_of(array_file, folder, overwrite=True)
    execute(third)
    assert (folder / "notes.txt").exists()  # what is not the run's stays
    assert (folder / "figures" / "fig1.pdf").exists()
    assert [path.name for path in folder.glob(".*")] == [".lock"]
    assert {"model.safetensors", "run.json", "history.csv", "history.jsonl", "checkpoints"} <= set(os.listdir(folder))


def files_in(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("stop", [kill, interrupt, "diverge"], ids=["error", "signal", "divergence"])
@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_an_old_run_comes_back_if_its_replacement_saves_nothing(stop, tmp_path, array_file, monkeypatch):
    folder = tmp_path / "run"
    execute(run_of(array_file, folder))
    before = files_in(folder)
    again = run_of(array_file, folder, overwrite=True, seed=5)
    monkeypatch.setattr(Trainer, "save_checkpoint", lambda _: None)
    if stop == "diverge":
        again.trainer.model.network.parameters()[0].data[...] = np.nan
    else:
        again.trainer.callbacks = [At(1, stop)]
    with pytest.raises((Killed, KeyboardInterrupt, DivergedError)):
        execute(again)
    assert files_in(folder) == before


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "signal"])
@pytest.mark.parametrize("call", ["mkdir", "replace", "write"])
@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_moving_an_old_run_aside_is_all_or_nothing(call, error, tmp_path, array_file, monkeypatch):
    """An older one, aside since before, and what is not ours are left alone."""
    folder = tmp_path / "run"
    execute(run_of(array_file, folder))
    execute(run_of(array_file, folder, overwrite=True, seed=5))
    (folder / "old-by-hand").mkdir()
    before = files_in(folder)
    third = run_of(array_file, folder, overwrite=True, seed=6)
    real = {"mkdir": Path.mkdir, "replace": Path.replace}
    calls = []

    def fail(path, *arguments, **options):
        calls.append(path)
        if len(calls) == (2 if call == "replace" else 1):
            raise error
        return real[call](path, *arguments, **options)

    with monkeypatch.context() as patch:
        if call == "write":
            patch.setattr("autoencoders.runs.run.write_json", lambda *_: fail(None))
        else:
            patch.setattr(Path, call, fail)
        with pytest.raises((OSError, DataError, KeyboardInterrupt)) as raised:
            execute(third)
    assert calls
    if call == "replace" and isinstance(error, OSError):
        assert str(raised.value) == f"{folder}: the old run cannot be moved aside ({error})"
    assert files_in(folder) == before
    assert read_record(folder)["options"]["seed"] == 5
    assert sorted(path.name for path in folder.glob("old-*")) == ["old-1", "old-by-hand"]


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_an_old_run_is_kept(tmp_path, array_file):
    folder = tmp_path / "run"
    execute(run_of(array_file, folder))
    before = files_in(folder)
    again = run_of(array_file, folder, overwrite=True, seed=5)
    again.trainer.callbacks = [At(3, interrupt)]
    with pytest.raises(KeyboardInterrupt):
        execute(again)
    assert files_in(folder / "old-1") == {name: x for name, x in before.items() if name != ".lock"}
    execute(resume_run(folder, progress=False, tell=lambda _: None))
    assert files_in(folder / "old-1") == {name: x for name, x in before.items() if name != ".lock"}
    told: list[str] = []
    run_of(array_file, folder, overwrite=True, seed=6).execute(told.append)
    assert read_record(folder / "old-2")["options"]["seed"] == 5
    assert read_record(folder)["options"]["seed"] == 6
    assert f"the run before lies in {folder / 'old-2'}" in told


@pytest.mark.parametrize("name", ["model.safetensors", "history.csv", "history.jsonl", "figures/loss_curves.png"])
@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_a_folder_in_the_place_of_a_result_is_told_before_the_training(name, tmp_path, array_file):
    run = run_of(array_file, tmp_path / "run")
    (tmp_path / "run" / name).mkdir(parents=True)
    with pytest.raises(DataError, match=rf"{name}: kind: expected a file, found a folder; move it away"):
        execute(run)
    assert run.trainer.progress.step == 0
    assert files_in(tmp_path / "run").keys() <= {".lock"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_a_signal_while_the_results_are_drawn_leaves_a_run_that_can_go_on(number, tmp_path, array_file, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("autoencoders.runs.run.draw", lambda *_, **__: signal.raise_signal(number))
        with pytest.raises(KeyboardInterrupt) as stop:
            execute(run_of(array_file, folder))
    assert not stop.value.args or stop.value.args[0] == number
    assert read_record(folder)["status"] == "interrupted"
    with pytest.raises(FileExistsError, match=r"an unfinished run.*--resume"):
        run_of(array_file, folder)
    execute(resume_run(folder, progress=False, tell=lambda _: None))
    record = read_record(folder)
    assert record["status"] == "finished"
    assert len(record["commands"]) == 2


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_a_model_is_saved_also_where_memory_is_too_short_to_measure_it(tmp_path, array_file, monkeypatch):
    def short(*_, **__):
        raise MemoryError("no memory")

    run = run_of(array_file, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("autoencoders.runs.run.quick_metrics", short)
        with pytest.raises(MemoryError, match="no memory"):
            execute(run)
    images = run.dataset.test_images
    np.testing.assert_array_equal(load(tmp_path).reconstruct(images)[0], run.trainer.model.reconstruct(images)[0])
    execute(resume_run(tmp_path, progress=False, tell=lambda _: None))
    assert read_record(tmp_path)["status"] == "finished"


@pytest.mark.parametrize("damage", ["gone", "of a lost epoch"])
@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_a_run_without_its_best_weights_goes_on(damage, tmp_path, array_file, capsys):
    """A kill can fall between the best weights and the checkpoint."""
    minigrad.use(kernels="plain")
    options = {"epochs": 3, "validation": 4, "patience": 3}
    execute(run_of(array_file, tmp_path / "whole", **options))
    broken = run_of(array_file, tmp_path / "broken", **options)
    broken.trainer.callbacks = [At(broken.trainer.feed.steps + 1, interrupt)]
    with pytest.raises(KeyboardInterrupt):
        execute(broken)
    best = tmp_path / "broken" / "checkpoints" / "best.safetensors"
    best.unlink()
    if damage != "gone":
        save_state(best, {"x": np.zeros(2)}, {"best": {"epoch": 2, "val_loss": 0.0}})
    execute(resume_run(tmp_path / "broken", progress=False, tell=lambda _: None))
    assert "the best weights so far are not there" in capsys.readouterr().err
    assert read_record(tmp_path / "broken")["status"] == "finished"
    if read_record(tmp_path / "whole")["status"] == "finished":
        a, b = (load_state(tmp_path / name / "model.safetensors")[2] for name in ("whole", "broken"))
        assert a == b  # the later epochs are better here, so the best weights are the same


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_a_run_is_resumed_on_another_device_with_its_best_kernels(tmp_path, array_file, cupy_double):
    minigrad.use(kernels="numpy", threads=2)
    run = run_of(array_file, tmp_path / "run")
    run.trainer.callbacks = [At(1, interrupt)]
    with pytest.raises(KeyboardInterrupt):
        execute(run)
    told: list[str] = []
    again = resume_run(tmp_path / "run", device="cuda", progress=False, tell=told.append)
    assert again.trainer.k.describe().startswith("device cuda:0, kernels cuda")
    assert any("not bitwise" in line and "cpu -> cuda:0" in line for line in told)


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    model = compiled()
    model.network.parameters()[0].data[...] = np.nan
    with pytest.raises(DivergedError, match="not finite"):
        model.save(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_bad_data_cost_no_old_run(tmp_path, array_file):
    folder = tmp_path / "run"
    execute(run_of(array_file, folder))
    with pytest.raises(DataError, match="validation"):
        run_of(array_file, folder, overwrite=True, validation=1000)
    assert (folder / "model.safetensors").exists()
    assert steps_of(folder)


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_the_record_of_a_run(tmp_path, array_file):
    run = run_of(array_file, tmp_path / "run", validation=3, seed=4)
    execute(run)
    record = read_record(tmp_path / "run")
    assert record["status"] == "finished"
    assert record["commands"] == ["test"]
    assert record["options"] == asdict(run.trainer.options)
    assert record["data"]["content_hash"] == load_dataset(array_file).content_hash
    assert record["training_seconds"] == pytest.approx(sum(run.trainer.history["seconds"]))
    assert record["test"] == quick_metrics(
        run.trainer.model, run.dataset.test_images, seed=4, train_images=run.dataset.train_images
    )
    assert read_record(tmp_path / "nowhere") == {}
    for text, message in (("{", "cannot be read as JSON"), ("[]", "expected a JSON object, found list; remove")):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(DataError, match=message):
            read_record(tmp_path)


def test_a_moved_model_is_noticed_before_the_first_step():
    model = compiled("vae")
    trainer = Trainer(model, pictures(), TrainingOptions(batch_size=BATCH, epochs=1), progress=False)
    model.network.to(dtype="float64")
    with pytest.raises(RuntimeError, match="new optimizer"):
        trainer.run()


def test_a_checkpoint_from_before_there_were_some_options_is_taken(tmp_path):
    trainer = trainer_of("vae", tmp_path, patience=None)
    trainer.run()
    arrays, record, _ = load_checkpoint(tmp_path)
    for name in ("denoise", "binarise", "iw_samples", "augment"):
        del record["options"][name]
    for name in ("classes", "class_names"):
        del record["model"][name]
    model = from_config(record["model"])
    model.compile(record["learning_rate"])
    again = Trainer(model, pictures(), TrainingOptions(**record["options"]), progress=False)
    again.restore(arrays, record)
    assert weights(model) == weights(trainer.model)


@pytest.mark.parametrize("change", [{"seed": 1}, {"batch_size": 3}, {"rate": 0.5}])
def test_a_checkpoint_of_other_options_is_refused(change, tmp_path):
    options = {"batch_size": 2, "epochs": 1, "seed": 0}
    first = compiled("vae")
    Trainer(first, pictures(), TrainingOptions(**options), folder=tmp_path, progress=False).run()
    second = compiled("vae")
    second.compile(change.pop("rate", first.learning_rate))
    trainer = Trainer(second, pictures(), TrainingOptions(**{**options, **change}), progress=False)
    with pytest.raises(DataError, match="made with another"):
        trainer.restore(*load_checkpoint(tmp_path))


@pytest.mark.parametrize("change", [{"beta": 7.0}, {"momentum": 0.3}, {"likelihood": "gaussian"}])
def test_a_checkpoint_of_another_model_of_the_same_shapes_is_refused(change, tmp_path):
    shapes = ((8, 8, 1), (4,), (3,), (2,), 2)
    options = TrainingOptions(batch_size=4, epochs=1)
    models = VAE(*shapes), VAE(*shapes, **change)
    for model in models:
        model.compile(1e-3)
    Trainer(models[0], pictures(), options, folder=tmp_path, progress=False).run()
    with pytest.raises(DataError, match="made with another model"):
        Trainer(models[1], pictures(), options, progress=False).restore(*load_checkpoint(tmp_path))


def test_a_training_does_not_begin_with_weights_that_are_not_finite(tmp_path):
    trainer = trainer_of("vae", tmp_path, patience=None)
    trainer.model.network.parameters()[0].data.flat[0] = np.nan
    with pytest.raises(DivergedError, match=r"cannot begin: encoder_conv_layer_1\.weight is not finite"):
        trainer.run()
    assert not list(tmp_path.rglob("*.safetensors"))


# ---- what mutants asked for ----


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_the_record_tells_when_and_where_a_run_was_computed(tmp_path, array_file):
    minigrad.use(kernels="plain")
    folder, seen = tmp_path / "run", []
    run = run_of(array_file, folder)
    run.trainer.callbacks = [At(1, lambda _: seen.append(read_record(folder))), At(3, interrupt)]
    with pytest.raises(KeyboardInterrupt):
        execute(run)
    assert seen[0]["status"] == "running"
    for kernels, stop in (("numpy", 5), ("plain", 0)):
        again = resume_run(folder, kernels=kernels, progress=False, tell=lambda _: None)
        again.trainer.callbacks = [At(stop, interrupt)]
        with suppress(KeyboardInterrupt):
            execute(again)
    record = read_record(folder)
    assert [entry["kernels"] for entry in record["earlier_environments"]] == ["plain", "numpy"]
    assert record["environment"]["kernels"] == "plain"
    assert record["environment"]["precision"] == "fp32"
    assert record["environment"]["machine"] == platform.machine()
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"].lower()
    entry = next(entry.split() for entry in record["environment"]["libraries"] if entry.split()[0] in blas)
    assert entry[1][0].isdigit()
    began, ended = (datetime.strptime(record[name][:19], "%Y-%m-%d %H:%M:%S") for name in ("started", "finished"))
    assert began <= ended <= datetime.now() < began + timedelta(hours=1)
    assert record["started"][20:] == time.strftime("%Z")
    assert record["data"]["source"] == run.dataset.source


@pytest.mark.usefixtures("no_pictures", "restored_backends")
@pytest.mark.parametrize("name", ["figures/samples.png", "history.csv", "report.html", "model.safetensors", "run.json"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_the_users_files_under_a_runs_names_are_left_alone(name, overwrite, tmp_path, array_file):
    """No run has made them, so --overwrite does not mean them, either."""
    folder = tmp_path / "run"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_bytes(b'{"mine": 1}')
    with pytest.raises(FileExistsError, match=rf"run holds {name}, but no run that made them; move .* another --out"):
        run_of(array_file, folder, overwrite=overwrite)
    assert files_in(folder) == {name: b'{"mine": 1}'}


def test_of_many_files_of_the_user_three_are_named(tmp_path, array_file):
    names = ["evaluation.json", "history.csv", "history.jsonl", "report.html"]
    for count, name in enumerate(names, 1):
        (tmp_path / name).touch()
        with pytest.raises(FileExistsError) as error:
            run_of(array_file, tmp_path)
        told, more = re.fullmatch(r".* holds (.*?)( and 1 more)?, but no run that .*", str(error.value)).groups()
        found = told.split(", ")
        assert len(found) == len({*found} & {*names}) == min(count, 3)
        assert bool(more) == (count > 3)


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_no_run_is_replaced_unless_that_is_asked_for(tmp_path, array_file):
    execute(run_of(array_file, tmp_path))
    with pytest.raises(FileExistsError, match="already holds a finished run; use --overwrite to replace it"):
        start_run(model_of("vae"), load_dataset(array_file), TrainingOptions(), tmp_path, learning_rate=1e-2)


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_nobody_is_told_to_go_on_with_a_run_that_has_diverged(tmp_path, array_file):
    """It would again."""
    run = run_of(array_file, tmp_path, epochs=3)
    second = run.trainer.feed.steps + 1
    run.trainer.callbacks = [At(second, lambda trainer: trainer.model.network.parameters()[0].data.fill(np.nan))]
    with pytest.raises(DivergedError):
        execute(run)
    assert steps_of(tmp_path)
    with pytest.raises(FileExistsError, match="already holds an unfinished run; use --overwrite to replace it"):
        run_of(array_file, tmp_path)


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_a_model_without_its_record_comes_back_too(tmp_path, array_file):
    folder = tmp_path / "run"
    execute(run_of(array_file, folder))
    (folder / "run.json").unlink()
    before = files_in(folder)
    run = run_of(array_file, folder, overwrite=True)
    run.trainer.callbacks = [At(1, kill)]
    with pytest.raises(Killed):
        execute(run)
    assert files_in(folder) == before


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_a_record_that_cannot_be_written_does_not_hide_why_a_run_ended(tmp_path, array_file, monkeypatch):
    def full(*_) -> None:
        raise DataError("disk full")

    run = run_of(array_file, tmp_path / "run")
    run.trainer.callbacks = [
        At(8, lambda _: monkeypatch.setattr("autoencoders.runs.run.write_json", full)),
        At(9, kill),
    ]
    with pytest.raises(Killed):
        execute(run)


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_an_old_run_is_not_touched_while_another_training_holds_its_folder(tmp_path, array_file, monkeypatch):
    folder, held, done = tmp_path / "run", threading.Event(), threading.Event()
    execute(run_of(array_file, folder))
    run = run_of(array_file, folder, overwrite=True)

    def hold() -> None:
        with claim(folder):
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(60)
    try:
        before = files_in(folder)
        monkeypatch.setattr("autoencoders.runs.run.set_aside", lambda _: pytest.fail("moved the old run"))
        with pytest.raises(FileExistsError, match="another training is running"):
            execute(run)
        assert files_in(folder) == before
    finally:
        done.set()
        thread.join()


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_what_a_run_says_of_its_data(tmp_path, array_file):
    folder, dataset = tmp_path / "run", load_dataset(array_file)
    options = TrainingOptions(batch_size=1, epochs=1)
    execute(
        start_run(
            model_of(), dataset, options, folder, learning_rate=1e-2, limit_train=1, data_dir="here", progress=False
        )
    )
    assert training_of_run(folder) == ((1, options.seed), options)
    assert data_of_run(folder, None, None) == (dataset.name, "here")
    assert data_of_run(folder, None, "there") == (dataset.name, "there")
    assert data_of_run(folder, "other", None) == ("other", None)
    assert data_of_run(folder, "other", "there") == ("other", "there")
    assert data_of_run(tmp_path / "nowhere", None, None) == ("auto", None)
    assert trained_on(folder, dataset).tolist() == dataset.limited(1, options.seed).tolist()
    np.save(tmp_path / "others.npy", pictures(30, seed=9))
    others = load_dataset(tmp_path / "others.npy")
    assert trained_on(folder, others).tolist() == list(range(len(others.train_images)))
    for name, entry, kind in (("commands", 1, "texts"), ("earlier_environments", "x", "objects")):
        (folder / "run.json").write_text(json.dumps({name: [entry]}))
        with pytest.raises(DataError, match=f"{name}: expected a list of {kind}, found"):
            read_record(folder)


def test_the_film_shows_every_class():
    dataset = load_dataset("fashion-mnist-sample")
    shown, scattered = film_images(dataset, slice(500))
    labels = dataset.train_labels
    for rows, count in ((shown, SHOWN), (scattered, min(SCATTERED, 500))):
        assert len(rows) == len(set(rows.tolist())) == count
        assert max(rows) < 500
    assert set(labels[shown].tolist()) == set(labels[:500].tolist())


def test_one_held_out_image_is_a_count_and_not_a_share():
    kept, out = TrainingOptions(validation=1).split(10)
    assert len(kept) == 9
    assert len(out) == 1


def test_the_bar_of_a_run_that_goes_on_begins_where_it_stands(tmp_path, monkeypatch):
    trainer = trainer_of("plain", tmp_path, [At(9, interrupt)])
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    asked = {}

    class Bar(tqdm.tqdm):
        def __init__(self, **options):
            asked.update(options)
            super().__init__(disable=True)

    monkeypatch.setattr("tqdm.autonotebook.tqdm", Bar)
    again = resumed(tmp_path)
    for again.display.show, disable in ((True, None), (False, True)):
        again.display.open(again.progress)
        again.display.close()
        assert (asked["total"], asked["initial"], asked["unit"]) == (3 * COUNT, COUNT + 2 * BATCH, " images")
        assert asked["disable"] is disable


def test_a_notebook_gets_its_own_bar_and_without_widgets_no_warning(monkeypatch):
    code = """if True:
        import sys, types
        shell = types.SimpleNamespace(config={"IPKernelApp": {}})  # a kernel is played
        sys.modules |= {"IPython": types.SimpleNamespace(get_ipython=lambda: shell), "ipywidgets": None}
        sys.modules["ipykernel.zmqshell"] = sys
        from autoencoders.training.display import progress_bar
        progress_bar(3, " images", show=True)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    disabled = []

    class Bar:
        def __init__(self, **options):
            disabled.append(options["disable"])

    Bar.__module__ = "tqdm.notebook"
    monkeypatch.setattr("tqdm.autonotebook.tqdm", Bar)
    progress_bar(3, " images", show=True)
    progress_bar(3, " images", show=False)
    assert disabled == [False, True]


def test_a_checkpoint_of_step_0_can_be_gone_on_from(tmp_path):
    trainer = trainer_of("plain", tmp_path / "a")
    trainer.save_checkpoint()
    again = resumed(tmp_path / "a")
    again.run()
    whole = trainer_of("plain", tmp_path / "b")
    whole.run()
    assert weights(again.model) == weights(whole.model)


def test_best_weights_that_are_gone_at_the_end_are_told(tmp_path, capsys):
    trainer = trainer_of("ae", tmp_path, patience=1, epochs=1)
    trainer.callbacks = [Gone()]
    trainer.run()
    assert capsys.readouterr().err == "the best weights are lost or damaged; the last ones are kept\n"


class Gone(Callback):
    """Removes the best weights each time that a new epoch has made them."""

    def on_epoch_end(self, trainer):
        track = trainer._track_best

        def gone(row) -> None:
            track(row)
            (trainer.folder / "checkpoints" / "best.safetensors").unlink()

        trainer._track_best = gone


def test_a_history_prints_as_a_table_and_draws_itself():
    history = compiled("vae").train(pictures(), BATCH, 2, validation=3, progress=False)
    names, *rows = [line.split() for line in repr(history).splitlines()]
    assert names == ["epoch", "loss", "reconstruction", "kl", "val_loss", "val_reconstruction", "val_kl"]
    assert [row[0] for row in rows] == ["1", "2"]
    assert float(rows[1][1]) == pytest.approx(history["loss"][1], rel=1e-4)
    assert history._repr_html_().count("<td>") == 3 * len(names)
    drawn = history.plot()
    assert drawn.axes[0].get_ylabel() == "nats per image"
    assert drawn._repr_png_().startswith(b"\x89PNG"), "a notebook shows it"
    many = [line.split()[0] for line in repr(History([{"epoch": i} for i in range(1, 1001)])).splitlines()]
    assert many[:6] + many[-1:] == ["epoch", "1", "2", "3", "...", "984", "1000"]
    assert repr(History()) == "no epochs"


def test_a_line_shows_what_an_epoch_has():
    row = {"epoch": 2, "loss": 0.0123456, "reconstruction": 0.0123456, "images_per_second": 99.6, "seconds": 3.2}
    assert epoch_line(row, 8) == "epoch 2/8  loss 0.012346  3 s"
    row |= {"loss": 1.5, "reconstruction": 1.25, "kl": 0.25, "val_loss": 2.0, "val_kl": 0.125}
    assert epoch_line(row, 8) == "epoch 2/8  loss 1.5 nats (recon 1.25, KL 0.25)  val 2  3 s"
    large = dict.fromkeys(row, 123456.789) | {"epoch": 100, "seconds": 99.0}
    assert epoch_line(large, 100) == "epoch 100/100  loss 123,457 nats (recon 123,457, KL 123,457)  val 123,457  99 s"


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_sigterm_ends_a_run_after_its_step_with_a_checkpoint(tmp_path, array_file):
    run = run_of(array_file, tmp_path / "run")
    run.trainer.callbacks = [At(3, lambda _: signal.raise_signal(signal.SIGTERM))]
    signal.signal(signal.SIGTERM, signal_raises)  # as every program does
    try:
        with pytest.raises(KeyboardInterrupt, match=f"^{int(signal.SIGTERM)}$"):
            execute(run)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert steps_of(tmp_path / "run") == [3]


# ---- checkpoints that are whole but say what cannot be ----

ODD_PROGRESS = [
    ("epoch", "1"),
    ("epoch", -1),
    ("epoch", True),
    ("epoch", 2),
    ("batch", 99),
    ("batch", 3.0),
    ("step", 0),
    ("step", 6.5),
    ("first_step", -10),
    ("images", -12),
    ("sums", None),
    ("sums", [1.0]),
    ("sums", ["x", "y", "z"]),
    ("sums", [math.nan] * 3),
    ("seconds", None),
    ("rows", [{}]),
    ("rows", {}),
    ("best", {"epoch": 1}),
    ("best", 3),
    ("waited", "x"),
]


@pytest.mark.parametrize(("name", "value"), ODD_PROGRESS, ids=str)
def test_a_place_where_no_run_can_be_is_refused(name, value, tmp_path):
    """A newer version, or somebody, has written it with its SHA-256: the file is whole."""
    trainer = trainer_of("vae", tmp_path, [At(9, interrupt)])
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    arrays, record, path = load_checkpoint(tmp_path)
    assert record["progress"]["batch"] == 3
    resumed(tmp_path)
    record["progress"][name] = value
    with pytest.raises(DataError, match=f"^{path}: does not fit the training.*{name}"):
        trainer_of("vae", tmp_path).restore(arrays, record, path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("learning_rate", "x"),
        ("learning_rate", None),
        ("learning_rate", -1),
        ("learning_rate", 0),
        ("data.name", 3),
        ("data.limit_train", 1.5),
        ("data.limit_train", -3),
        ("data.limit_train", 0),
        ("data.data_dir", 3),
        ("environment.device", 3),
        ("environment.kernels", None),
        ("environment.threads", "x"),
        ("environment.threads", 0),
        ("environment.precision", 32),
    ],
)
@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_a_record_that_cannot_be_is_refused(place, value, tmp_path, array_file):
    execute(run_of(array_file, tmp_path / "run"))
    arrays, record, path = load_checkpoint(tmp_path / "run")
    part, _, name = place.rpartition(".")
    (record[part] if part else record)[name] = value
    save_state(path, arrays, record)
    before = files_in(tmp_path / "run")
    with pytest.raises(DataError, match=rf"^{path}: cannot be resumed.*{part or name}"):
        resume_run(tmp_path / "run", progress=False, tell=lambda _: None)
    assert files_in(tmp_path / "run") == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_in_the_place_of_a_checkpoint_is_skipped(tmp_path):
    trainer_of("vae", tmp_path).run()
    newest = max((tmp_path / "checkpoints").glob("step-*"))
    newest.unlink()
    os.mkfifo(newest)
    told: list[str] = []
    assert load_checkpoint(tmp_path, told.append)[1]["progress"]["step"] == steps_of(tmp_path)[-2]
    assert told == [f"skipped a checkpoint: {newest}: kind: expected a file, found a special file"]


def test_a_checkpoint_is_not_skipped_because_memory_is_short(tmp_path, monkeypatch):
    """An older one would take as much; and there is nothing wrong with this one."""
    trainer_of("vae", tmp_path).run()
    newest = max((tmp_path / "checkpoints").glob("step-*"))

    def no_memory(_):
        raise MemoryError

    monkeypatch.setattr("minigrad.serialize.bytearray", no_memory, raising=False)
    told: list[str] = []
    with pytest.raises(MemoryError, match=rf"^{newest} takes twice its {newest.stat().st_size:,} bytes"):
        load_checkpoint(tmp_path, told.append)
    assert told == []


def test_the_clock_decides_nothing(tmp_path, monkeypatch):
    """It jumps back an hour at every look: the newest checkpoint is that of the highest step, and the bits are those of
    other times."""
    expected = trainer_of("vae", tmp_path / "calm", save_every=2)
    expected.run()
    hours = iter(range(10**6))
    with monkeypatch.context() as patch:
        for name in ("time", "perf_counter", "monotonic"):
            patch.setattr(time, name, lambda: -3600.0 * next(hours))
        trainer = trainer_of("vae", tmp_path / "run", [At(9, interrupt)], save_every=2)
        with pytest.raises(KeyboardInterrupt):
            trainer.run()
        for age, path in enumerate(sorted((tmp_path / "run" / "checkpoints").iterdir())):
            os.utime(path, (1e9 - 3600 * age,) * 2)
        trainer = resumed(tmp_path / "run")
        assert trainer.progress.step == 9
        trainer.run()
    assert weights(trainer.model) == weights(expected.model)
    assert timeless(trainer.history.rows) == timeless(expected.history.rows)


# ---- memory, and folders that cannot be written ----


def test_a_validation_takes_no_more_images_at_a_time_than_a_step(monkeypatch):
    trainer = trainer_of("vae", None, validation=15)
    seen = []
    plain = type(trainer.model).losses

    def losses(self, x, *arguments):
        seen.append(len(x.data))
        return plain(self, x, *arguments)

    monkeypatch.setattr(type(trainer.model), "losses", losses)
    trainer.validate()
    assert max(seen) == BATCH
    assert sum(seen) == 15


def test_no_memory_for_the_validation_loses_no_step(tmp_path):
    expected = trainer_of("vae", tmp_path / "whole", validation=3)
    expected.run()
    trainer = trainer_of("vae", tmp_path / "run", validation=3)

    def validate():
        raise MemoryError("Unable to allocate 1 GiB")

    trainer.validate = validate
    with pytest.raises(minigrad.DeviceError, match=r"in the validation: Unable to allocate 1 GiB"):
        trainer.run()
    assert steps_of(tmp_path / "run") == [6]
    again = resumed(tmp_path / "run")
    again.run()
    assert weights(again.model) == weights(expected.model)
    assert timeless(again.history.rows) == timeless(expected.history.rows)


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_a_run_that_does_not_fit_into_memory_writes_nothing(tmp_path, array_file, monkeypatch):
    monkeypatch.setattr(minigrad.Backend, "free_memory", lambda _: 1000)
    with pytest.raises(minigrad.DeviceError, match="needs about"):
        run_of(array_file, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["checkpoints", "film", "figures"])
@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_a_place_in_the_folder_that_cannot_be_written_is_told_before_the_training(name, tmp_path, array_file):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / name).write_text("mine")
    run = run_of(array_file, folder)
    with pytest.raises(DataError, match=f"^{folder / name}: cannot be written"):
        execute(run)
    assert sorted(os.listdir(folder)) == sorted([".lock", name])


def test_a_lock_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(DataError, match=rf"^{tmp_path}/\.lock: cannot be written"), claim(tmp_path):
        pass


# ---- what a run says ----


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_a_finished_run_can_be_resumed(tmp_path, array_file):
    """So a signal after its end is answered with that."""
    run = run_of(array_file, tmp_path / "run")
    assert not run.resumable
    execute(run)
    assert run.resumable


def _closed_terminal(*_, **__):
    raise OSError(errno.EIO, "Input/output error")


class Hangup(Callback):
    """The signal of a closed terminal comes at the end of an epoch."""

    def on_epoch_end(self, trainer):
        trainer.received.append(1)


@pytest.mark.parametrize(("callbacks", "ends"), [([Hangup()], KeyboardInterrupt), ([], OSError)])
def test_a_terminal_that_takes_no_line_any_more_hides_no_signal(callbacks, ends, tmp_path, monkeypatch):
    trainer = trainer_of("ae", tmp_path, callbacks)
    trainer.display.show = True
    monkeypatch.setattr("autoencoders.training.display.print", _closed_terminal, raising=False)
    with pytest.raises(ends):
        trainer.run()
    assert steps_of(tmp_path)


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_a_folder_with_the_name_of_a_file_of_ours_stays(tmp_path, array_file):
    folder = tmp_path / "run"
    execute(run_of(array_file, folder))
    (folder / "report.html").mkdir()
    (folder / "report.html" / "mine.txt").write_text("mine")
    execute(run_of(array_file, folder, overwrite=True, seed=5))
    assert (folder / "report.html" / "mine.txt").read_text() == "mine"


def test_scipys_blas_is_none_of_what_computes(monkeypatch):
    found = [
        {"user_api": "blas", "internal_api": "openblas", "version": "1", "filepath": f"/site-packages/{name}.libs/x.so"}
        for name in ("numpy", "scipy")
    ]
    found[1]["version"] = "2"
    monkeypatch.setattr("threadpoolctl.threadpool_info", lambda: found)
    assert libraries(minigrad.use(kernels="plain")) == ["openblas 1"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_in_the_place_of_a_record_is_refused(tmp_path):
    os.mkfifo(tmp_path / "run.json")
    with pytest.raises(DataError, match=r"run\.json: kind: expected a file, found a special file"):
        read_record(tmp_path)
