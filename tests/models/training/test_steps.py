"""What the steps of a training compute."""

from collections import Counter
from unittest import mock

import numpy as np
import pytest
from trainings import BATCH, SHAPE, Recorded, as_floats, compiled, pictures, recorded, timeless, weights

import minigrad
from autoencoders import Callback, TrainingOptions
from autoencoders.training import Trainer
from minigrad.backend.cpu.threads import Pool
from minigrad.random import generator


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_the_images_are_not_changed(dtype):
    x = pictures()
    x = x if dtype == "uint8" else (x / 255).astype(dtype)
    before = x.tobytes()
    x.setflags(write=False)
    compiled("vae").train(x, BATCH, 1, validation=3, progress=False)
    assert x.tobytes() == before


def test_callbacks_come_in_order():
    order: list[Callback] = []

    class Ends(Recorded):
        def on_fit_end(self, trainer):
            order.append(self)
            assert not trainer.model.network.training

    first, second = Ends(), Ends()
    options = TrainingOptions(batch_size=8, epochs=2)
    Trainer(compiled(), pictures(10), options, callbacks=[first, Callback(), second], progress=False).run()
    expected = ["fit begin"]
    for epoch in range(2):
        expected.append(f"epoch begin {epoch}")
        for step in (2 * epoch, 2 * epoch + 1):
            expected += [f"batch begin {step}", f"batch end {step + 1}"]
        expected.append(f"epoch end {epoch + 1} {epoch + 1}")
    assert first.events == expected
    assert order == [first, second]


@pytest.mark.parametrize(("count", "batch"), [(26, 4), (8, 4), (3, 10), (1, 1), (1, 4), (5, 1)])
def test_an_epoch_visits_every_image_once_and_its_mean_is_over_images(count, batch):
    """Sizes of the batches, each image once an epoch, another order each epoch; short last batches weigh less."""
    images = pictures(count)
    callback, history, _ = recorded(images=images, batch_size=batch)
    per_epoch = [batch] * (count // batch) + [count % batch] * (count % batch > 0)
    assert [len(step["images"]) for step in callback.steps] == per_epoch * 2
    half = len(per_epoch)
    orders = []
    for epoch, row in enumerate(history.rows):
        steps = callback.steps[epoch * half : (epoch + 1) * half]
        seen = np.concatenate([step["images"] for step in steps])
        orders.append([x.tobytes() for x in seen])
        assert sorted(orders[-1]) == sorted(x.tobytes() for x in as_floats(images))
        total = sum(len(step["images"]) * step["losses"].astype(float) for step in steps)
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
            seen.append(compiled("vae"))
            seen[-1].network.load_state_dict(trainer.model.network.state_dict())

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


def test_labels_stay_with_their_images():
    """In every step, and in the images that are held out; each image tells its label."""
    x = pictures(20)
    labels = x[:, 0, 0, 0] % 3
    callback, _, trainer = recorded(images=x, labels=labels, validation=6, model={"classes": 3})
    held = trainer.feed.held_out
    pairs = [(step["images"], step["labels"]) for step in callback.steps] + [(held.images / 255, held.one_hot)]
    for images, rows in pairs:
        np.testing.assert_array_equal(rows, np.eye(3)[np.rint(255 * images[:, 0, 0, 0]).astype(int) % 3])


def seen_by(kind: str, images: np.ndarray, **options) -> tuple[np.ndarray, np.ndarray]:
    """(what the encoder saw in 10 epochs, the targets), each in the order of the steps."""
    steps = recorded(kind, images, epochs=10, **options)[0].steps
    return np.concatenate([x["images"] for x in steps]), np.array([x["targets"] for x in steps])


def test_every_step_draws_its_pixels_with_their_grey_as_probability():
    grey = np.repeat(np.linspace(0, 1, 5, dtype=np.float32), 13)[:64].reshape(1, *SHAPE)
    drawn, targets = seen_by("vae", np.repeat(grey, 40, axis=0), binarise=True)  # 400 images
    assert set(np.unique(drawn)) == {0, 1}
    assert drawn.dtype == np.float32
    assert set(targets) == {None}, "it is input and target"
    error = 5 * np.sqrt(grey * (1 - grey) / len(drawn))
    assert (np.abs(drawn.mean(axis=0) - grey[0]) <= error).all(), "0 and 1 are certain"
    flat = drawn.reshape(len(drawn), -1)[:, 13:52]  # no certain ones
    assert len(np.unique(flat, axis=0)) == len(flat), "each image of each epoch anew"


def test_augmented_images_are_flipped_and_shifted_by_up_to_a_16th():
    place = np.add.outer(8 * np.arange(8), np.arange(8)).astype(np.uint8)[..., None]  # each pixel tells where it was
    drawn, targets = seen_by("ae", np.repeat(place[None], 40, axis=0), augment=True)  # 400 images
    drawn = np.rint(255 * drawn).astype(int)[..., 0]
    assert set(targets) == {None}, "it is input and target"
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
    noisy, targets = seen_by(kind, x, denoise=0.1)
    assert noisy.dtype == np.float32
    assert (targets == 0.5).all()
    count = noisy.size  # 25,600
    assert abs(noisy.mean() - 0.5) < 5 * 0.1 / count**0.5
    assert abs(noisy.std() - 0.1) < 5 * 0.1 / (2 * count) ** 0.5
    assert len(np.unique(noisy)) > count / 2
    noisy, _ = seen_by(kind, 0 * x, denoise=5.0)
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
    def held_out(**options):
        return Trainer(
            compiled(kind), pictures(), TrainingOptions(validation=6, **options), progress=False
        ).feed.held_out

    *_, trainer = recorded(kind, validation=6, **options)
    held, clean = trainer.feed.held_out, held_out().images / 255
    np.testing.assert_array_equal(held.images, held_out(**options).images)
    if kind == "vae":
        assert set(np.unique(held.images)) == {0, 1}
        assert held.targets is None
    else:
        np.testing.assert_allclose(held.targets, clean, atol=1e-7)
        assert 0.1 < np.std(held.images - clean) < 0.3
        with trainer.model.evaluating():
            rebuilt = trainer.model.reconstruct(held.images)[0]
        assert trainer.history["val_loss"][-1] == pytest.approx(np.mean((rebuilt - clean) ** 2), rel=1e-5)
    assert trainer.validate() == trainer.validate()


def test_the_importance_weighted_bound_is_the_loss_of_the_history():
    callback, history, trainer = recorded(rate=0.0, iw_samples=3, validation=5)  # the same weights all the time
    (row, last), model = history.rows, trainer.model
    x = trainer.feed.held_out.images.astype(np.float32) / 255
    noise = generator(0, "validation").standard_normal((5, 3, 2)).astype(np.float32)
    with model.evaluating():
        loss, parts = model.losses(minigrad.Tensor(x), noise, 1.0)
    expected = [loss.item(), *(part.item() for part in parts)]
    assert [last[f"val_{name}"] for name in ("loss", "reconstruction", "kl")] == pytest.approx(expected, rel=1e-6)
    drawn = np.concatenate([step["noise"].ravel() for step in callback.steps])
    assert len(np.unique(drawn)) == len(drawn) == 2 * 21 * 3 * 2, "each sample of each image anew"
    total = np.zeros(3)
    model.network.train()
    for step in callback.steps[:6]:
        loss, parts = model.losses(minigrad.Tensor(step["images"]), step["noise"], 1.0)
        np.testing.assert_allclose(step["losses"], [*(part.item() for part in parts), loss.item()], rtol=1e-6)
        total += len(step["images"]) * step["losses"]
    found = [row[name] for name in ("reconstruction", "kl", "loss")]
    np.testing.assert_allclose(found, total / 21, rtol=1e-6)
    assert row["loss"] < row["reconstruction"] + row["kl"]


PIXELS = {"binarise": True}, "binarise needs a vae with the bernoulli likelihood"
SAMPLES = {"iw_samples": 2}, "iw samples above 1 need a vae with beta 1"


@pytest.mark.parametrize(
    ("kind", "model", "options", "message"),
    [
        ("ae", {}, *PIXELS), ("vae", {"likelihood": "gaussian"}, *PIXELS),
        ("ae", {}, *SAMPLES), ("vae", {"beta": 0.5}, *SAMPLES),
    ],
)  # fmt: skip
def test_options_that_a_model_cannot_have_are_told(kind, model, options, message):
    with pytest.raises(ValueError, match=message):
        recorded(kind, model=model, **options)


def test_a_step_changes_the_threads_of_blas_only_once(monkeypatch):
    minigrad.use(kernels="numpy", threads=2)
    trainer = Trainer(compiled("vae"), pictures(5), TrainingOptions(batch_size=5, epochs=1), progress=False)
    images = trainer.k.unit_range(trainer.feed.images, "float32")
    noise = np.zeros((5, trainer.model.noise_dim), np.float32)
    monkeypatch.setattr(type(Pool.single_threaded_blas), "_set", changes := mock.Mock())
    trainer.step(images, noise, np.array([1, *trainer.optimizer.scalars(1)], np.float32))
    assert changes.call_count == 2, "it is set, and given back its own setting"


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
