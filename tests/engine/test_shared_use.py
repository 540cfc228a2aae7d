"""One model in many hands: threads, callbacks, repeated training, and what each of them must leave alone."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import trainings

import minigrad
from autoencoders import VAE, Autoencoder, Callback, TrainingOptions, load
from autoencoders.evaluation.metrics import quick_metrics
from autoencoders.training import Trainer, load_checkpoint
from autoencoders.training.validation import mean_losses
from minigrad import Tensor, nn, optim
from minigrad.random import generator
from minigrad.tensor import is_evaluating

HOOKS = ("on_fit_begin", "on_epoch_begin", "on_batch_begin", "on_batch_end", "on_epoch_end", "on_fit_end")


pictures, bits = partial(trainings.pictures, 24), trainings.weights


def compiled(cls: type = VAE, **options) -> Autoencoder:
    model = cls(trainings.SHAPE, (3, 4), (3, 3), (2, 1), 2, momentum=0.5, **options)
    model.compile(1e-2)
    return model


def trainer_of(model: Autoencoder, *callbacks: Callback, folder=None, count: int = 24, **options) -> Trainer:
    chosen = TrainingOptions(**{"batch_size": 4, "epochs": 2, **options})
    return Trainer(model, trainings.pictures(count), chosen, callbacks=callbacks, folder=folder, progress=False)


def flags(model: Autoencoder) -> list[bool]:
    parts = (model.network, model.encoder, model.decoder)
    return [module.training_mode for part in parts for _, module in part.modules()]


class On(Callback):
    """Calls an action with the trainer at one of the HOOKS."""

    def __init__(self, hook: str, action) -> None:
        setattr(self, hook, action)


# ---- reading changes nothing, in any thread ----

READS = {
    "reconstruct": lambda model, x: model.reconstruct(x)[0],
    "encode": lambda model, x: model.encode(x),
    "decode": lambda model, x: model.decode(np.linspace(-1, 1, 48).reshape(24, 2)),
    "interpolate": lambda model, x: model.interpolate(x[:2], x[2:4], 3),
    "mean losses": lambda model, x: list(mean_losses(model, x, generator(0, "test")).values()),
    "figures": lambda model, x: [v for v in quick_metrics(model, x, 0).values() if isinstance(v, float)],
    "summary": lambda model, x: [len(model.summary())],
    "encoder": lambda model, x: model.encoder(Tensor(x / np.float32(255))).numpy(),
    "sample": lambda model, x: model.sample(5),
    "distribution": lambda model, x: model.encode_distribution(x)[1],
}


@pytest.mark.parametrize("cls", [Autoencoder, VAE])
def test_reading_in_threads_gives_what_it_gives_alone(cls):
    model, x = compiled(cls), pictures()
    trainer_of(model, epochs=1).run()
    reads = [read for name, read in READS.items() if hasattr(model, "sample") or name not in ("sample", "distribution")]
    alone, before, mode = [np.asarray(read(model, x)) for read in reads], bits(model), flags(model)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for found, wanted in zip(pool.map(lambda read: np.asarray(read(model, x)), reads), alone, strict=True):
                np.testing.assert_array_equal(found, wanted)
    assert (bits(model), flags(model)) == (before, mode)


def test_reading_and_choosing_kernels_in_other_threads_does_not_change_a_training(restored_backends):
    minigrad.use(kernels="numpy", threads=2)
    alone = compiled()
    trainer_of(alone).run()
    model, x, stop = compiled(), pictures(), threading.Event()
    trainer = trainer_of(model)

    def read():
        while not stop.is_set():
            for name in ("reconstruct", "encoder", "sample"):
                READS[name](model, x)

    def choose():
        while not stop.is_set():
            minigrad.use(kernels="plain")
            minigrad.use(kernels="numpy")
            minigrad.set_num_threads(3)

    with ThreadPoolExecutor(2) as pool:
        others = [pool.submit(read), pool.submit(choose)]
        try:
            trainer.run()
        finally:
            stop.set()
    assert all(other.result() is None for other in others)
    minigrad.set_num_threads(None)
    assert bits(model) == bits(alone)


def test_the_threads_of_a_model_that_is_used_elsewhere_stay(restored_backends):
    before = minigrad.use(kernels="numpy", threads=2)
    minigrad.set_num_threads(3)
    assert (before.threads, before.pool.threads, minigrad.get_num_threads()) == (2, 2, 3)
    minigrad.set_num_threads(None)


# ---- modes ----


def test_a_model_evaluates_outside_of_a_training(tmp_path):
    model = compiled()
    for _ in range(2):
        assert not any(flags(model))
        before, x = bits(model), Tensor(pictures() / np.float32(255))
        READS["encoder"](model, pictures())
        for name, layer in model.network.layers.items():
            x = layer(x) if name.startswith("encoder") else x
        assert bits(model) == before
        trainer_of(model).run()
    assert not any(flags(model))
    model.save(tmp_path)
    again = load(tmp_path)
    assert not any(flags(again))
    np.testing.assert_array_equal(READS["encoder"](again, pictures()), READS["encoder"](model, pictures()))


def test_a_loop_of_ones_own_can_train():
    model, x = compiled(), Tensor(pictures() / np.float32(255))
    before = bits(model)
    model.network.train()
    model.losses(x, np.zeros((24, 2), np.float32), np.float32(1))[0].backward()
    changed = {name for name, now in bits(model).items() if now != before[name]}
    assert changed == {name for name in before if "moving" in name}
    model.network.eval()
    before = bits(model)
    with nn.training():
        model.losses(x, np.zeros((24, 2), np.float32), np.float32(1))[0].backward()
    assert bits(model) == before


@pytest.mark.parametrize("part", ["encoder_bn_1", "decoder_bn_1"])
def test_a_layer_in_evaluation_mode_stays_there(part):
    model = compiled()
    layer = model.network.layers[part]
    layer.eval()
    model.reconstruct(pictures())
    before = layer.state_dict()
    trainer_of(model).run()
    model.sample(2)
    assert [name for name, x in model.network.layers.items() if x.training_mode is False] == [part]
    after = layer.state_dict()
    assert all((after[name] == before[name]).all() == ("moving" in name) for name in before)


def test_evaluation_holds_for_layers_of_all_kinds_in_this_thread_only():
    norm, x = nn.BatchNorm(2), np.arange(12, dtype=np.float32).reshape(6, 2)
    with nn.training(), minigrad.evaluation():
        inside = norm(Tensor(x)).numpy()
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(lambda: nn.BatchNorm(2)(Tensor(x)).numpy()).result()
    assert not norm.moving_mean.numpy().any()
    np.testing.assert_allclose(inside, x / np.sqrt(1.001), rtol=1e-6)
    np.testing.assert_allclose(other.mean(axis=0), 0, atol=1e-6)


@pytest.mark.parametrize(("gamma", "beta"), [(False, False), (True, False), (False, True)])
def test_a_frozen_batch_norm_uses_its_moving_statistics(gamma, beta):
    model = compiled()
    norm = model.network.layers["encoder_bn_1"]
    norm.gamma.requires_grad, norm.beta.requires_grad = gamma, beta
    before = norm.state_dict()
    trainer_of(model).run()
    after = norm.state_dict()
    moved = {name for name in before if (before[name] != after[name]).any()}
    statistics = {"moving_mean", "moving_variance"} if gamma or beta else set()
    assert moved == statistics | ({"gamma"} if gamma else set()) | ({"beta"} if beta else set())


# ---- training again ----


class Spy(VAE):
    def losses(self, images, noise, *more):
        if not is_evaluating():
            self.seen.append((np.array(images.data), np.array(noise)))
        return super().losses(images, noise, *more)


@pytest.mark.parametrize("options", [{}, {"binarise": True}, {"denoise": 0.2}, {"iw_samples": 2}], ids=str)
def test_every_call_of_train_draws_new_numbers_and_the_same_in_every_process(options):
    def run(calls: int) -> list:
        model = compiled(Spy)
        model.seen = []
        for _ in range(calls):
            trainer_of(model, epochs=1, **options).run()
            model.network.load_state_dict(start)
        return model.seen

    start = compiled().network.state_dict()
    three = run(3)
    steps = [image.tobytes() + noise.tobytes() for image, noise in three]
    assert len(set(steps)) == len(steps)
    assert [noise.tobytes() for _, noise in run(2)] == [noise.tobytes() for _, noise in three[: 2 * len(three) // 3]]


@pytest.mark.parametrize(
    "between",
    [
        lambda model: model.compile(1e-3),
        lambda model: (model.to(dtype="float64"), model.to(dtype="float32"), model.compile(1e-3)),
        lambda model: setattr(model, "optimizer", optim.AdamW(model.network.parameters(), 1e-3)),
    ],
    ids=["compile", "to", "own optimizer"],
)
def test_another_optimizer_does_not_repeat_random_numbers(between):
    model = compiled(Spy)
    model.seen = []
    for _ in range(3):
        trainer_of(model, epochs=1).run()
        between(model)
    assert len({noise.tobytes() for _, noise in model.seen}) == len(model.seen) == 18


@pytest.mark.parametrize("context", [minigrad.no_grad, minigrad.evaluation])
def test_a_training_that_would_learn_nothing_is_refused(context):
    trainer = trainer_of(compiled())
    with context(), pytest.raises(RuntimeError, match="train: nothing is learned inside"):
        trainer.run()
    trainer.run()


@pytest.mark.parametrize("named", [True, False])
def test_a_second_run_resumes_to_the_same_bits(named, tmp_path):
    """Also one of a version that did not yet name its random numbers by the steps before it."""

    def second(*callbacks, folder=None):
        model = compiled()
        trainer_of(model, epochs=1).run()
        trainer = trainer_of(model, *callbacks, folder=folder, save_every=2)
        if not named:
            trainer.progress.draws_after = 0
        return trainer

    whole = second()
    whole.run()

    def fail(trainer):
        if trainer.progress.step == 7:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        second(On("on_batch_end", fail), folder=tmp_path).run()
    arrays, record, path = load_checkpoint(tmp_path)
    assert record["progress"]["step"] == 6
    if not named:
        for name in ("draws_after", "rate", "beta"):
            del record["progress"][name]
    trainer = trainer_of(compiled(), save_every=2)
    trainer.restore(arrays, record, path)
    trainer.run()
    assert bits(trainer.model) == bits(whole.model)


# ---- what callbacks change ----


class Scalars(trainings.Recorded):
    """What each step was given: beta and learning rate."""

    @property
    def seen(self):
        return [tuple(map(float, step["scalars"][:2])) for step in self.steps]


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("hook", HOOKS[:-1])
def test_learning_rate_and_beta_act_at_the_next_step_and_are_written_down(hook, schedule, tmp_path):
    def change(trainer):
        if trainer.progress.step >= 3:
            trainer.optimizer.learning_rate = np.float64(0.25)
            trainer.model.beta = 0.5

    scalars = Scalars()
    folder = tmp_path / "run"
    trainer = trainer_of(compiled(), scalars, On(hook, change), folder=folder, schedule=schedule, epochs=3)
    history = trainer.run()
    first = {"on_fit_begin": 18, "on_epoch_begin": 6, "on_batch_begin": 3, "on_batch_end": 3, "on_epoch_end": 6}[hook]
    assert [step == (0.5, 0.25) for step in scalars.seen] == [i >= first for i in range(18)]
    rates = [scalars.seen[i][1] for i in (5, 11, 17)]
    np.testing.assert_allclose(history["learning_rate"], rates, rtol=1e-6)
    assert history["beta"] == [scalars.seen[i][0] for i in (5, 11, 17)]
    arrays, record, path = load_checkpoint(folder)
    assert record["model"]["beta"] == 1
    resumed = Scalars()
    trainer = trainer_of(compiled(), resumed, schedule=schedule, epochs=4 if schedule == "constant" else 3)
    trainer.restore(arrays, record, path)
    trainer.run()
    if schedule == "constant":
        assert resumed.seen == 6 * [(0.5, 0.25) if first < 18 else (1.0, float(np.float32(1e-2)))]


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_learning_rate_that_is_put_back_is_the_scheduled_one_again(schedule):
    def change(trainer):
        if trainer.progress.epoch == 1:
            change.old, trainer.optimizer.learning_rate = trainer.optimizer.learning_rate, 0.5
        elif trainer.progress.epoch == 2:
            trainer.optimizer.learning_rate = change.old

    changed = trainer_of(compiled(), On("on_epoch_begin", change), schedule=schedule, epochs=3).run()
    rates = trainer_of(compiled(), schedule=schedule, epochs=3).run()["learning_rate"]
    assert changed["learning_rate"] == [rates[0], 0.5, rates[2]]


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.array, float])
def test_numbers_that_callbacks_set_are_written_down(kind, tmp_path):
    def change(trainer):
        trainer.optimizer.learning_rate *= kind(0.5)
        trainer.model.beta = kind(0.5)

    trainer = trainer_of(compiled(), On("on_epoch_end", change), folder=tmp_path, epochs=3, validation=4)
    history = trainer.run()
    assert history["learning_rate"] == pytest.approx([1e-2, 5e-3, 2.5e-3], rel=1e-3)
    assert {type(x) for row in history.rows for x in row.values()} <= {int, float}
    value = history["val_reconstruction"][2] + 0.5 * history["val_kl"][2]
    assert history["val_loss"][2] == pytest.approx(value, rel=1e-12)


def setting(path: str, value):
    """A callback that sets an attribute, such as model.beta."""
    owner, name = path.split(".")
    return lambda trainer: setattr(getattr(trainer, owner), name, value)


UNUSABLE = "a callback has set it to .* must be a finite number >= 0"
BETWEEN_RUNS = ["model.variance", "model.likelihood"]
BETWEEN_RUNS += ["optimizer.beta_1", "optimizer.beta_2", "optimizer.epsilon", "optimizer.weight_decay"]
TO_NO_NUMBER = [("model.beta", x) for x in (-1.0, None)]
TO_NO_NUMBER += [("optimizer.learning_rate", x) for x in (lambda step: 0.1, -1, np.nan, "0.1")]
NOT_IN_A_RUN = [  # what a callback does, the options of the run, the error
    (lambda trainer: minigrad.use(kernels="plain"), {}, RuntimeError, "a training is running here"),
    (lambda trainer: minigrad.set_num_threads(1), {}, RuntimeError, "a training is running here"),
    (lambda trainer: trainer.model.compile(1e-2), {}, RuntimeError, "the parameters have moved"),
    (lambda trainer: setattr(trainer, "options", TrainingOptions()), {}, AttributeError, "options"),
    (setting("model.beta", 0.5), {"iw_samples": 2}, ValueError, "iw samples above 1 need a vae with beta 1"),
    *((setting(path, value), {}, ValueError, UNUSABLE) for path, value in TO_NO_NUMBER),
    *(
        (setting(path, 0.25), {}, ValueError, rf"{path}: a callback has changed it, .* before the training$")
        for path in BETWEEN_RUNS
    ),
]


@pytest.mark.parametrize(("action", "options", "error", "message"), NOT_IN_A_RUN)
def test_what_a_callback_cannot_do(action, options, error, message, restored_backends):
    with pytest.raises(error, match=message):
        trainer_of(compiled(), On("on_batch_end", action), **options).run()
    minigrad.use(kernels="plain")  # outside it can be chosen again


def test_what_is_frozen_in_a_run_is_frozen_from_the_next_step_on_and_after_a_resume(tmp_path):
    def change(trainer):
        network = trainer.model.network
        if trainer.progress.step == 3:
            network.layers["encoder_conv_layer_1"].weight.requires_grad = np.False_
            network.layers["encoder_bn_2"].train(0)
            self.before = network.state_dict()
        elif trainer.progress.step == 7:
            network.layers["encoder_conv_layer_1"].weight.requires_grad = True
            network.layers["encoder_bn_2"].train(None)

    self, captured = On("on_batch_begin", change), []

    def stop(trainer):
        if trainer.progress.step == 5:
            raise KeyboardInterrupt

    whole, half = (trainer_of(compiled(), self, folder=tmp_path / name, save_every=1) for name in ("whole", "half"))
    whole.k.capture = lambda step: captured.append(whole.progress.step) or step
    try:
        whole.run()
    finally:
        del whole.k.capture
    assert captured == [0, 3, 7]
    half.callbacks = [self, On("on_batch_end", stop)]
    with pytest.raises(KeyboardInterrupt):
        half.run()
    moved = {name for name, x in half.model.network.state_dict().items() if (x != self.before[name]).any()}
    assert "encoder_conv_layer_2.weight" in moved
    assert not moved & {"encoder_conv_layer_1.weight", "encoder_bn_2.moving_mean", "encoder_bn_2.moving_variance"}
    trainer = trainer_of(compiled(), self, save_every=1)
    trainer.restore(*load_checkpoint(tmp_path / "half"))
    assert trainer.progress.step == 4
    trainer.run()
    assert bits(trainer.model) == bits(whole.model)


def test_the_parts_of_an_epoch_are_weighted_with_the_beta_of_their_steps():
    betas, seen = [0.0, 0.0, 2.0, 2.0, 1.0, 0.5], trainings.Recorded()
    anneal = On("on_batch_begin", lambda trainer: setattr(trainer.model, "beta", betas[trainer.progress.step]))
    history = trainer_of(compiled(), seen, anneal, epochs=1).run()
    totals = [float(step["losses"] @ [1, beta]) for step, beta in zip(seen.steps, betas, strict=True)]
    np.testing.assert_allclose(history["loss"], [np.mean(totals)], rtol=1e-6)


# ---- callbacks that fail, and trainings inside trainings ----


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("hook", HOOKS)
def test_a_callback_that_fails_leaves_all_in_order(hook, error, tmp_path):
    whole = compiled()
    trainer_of(whole).run()

    def fail(trainer):
        if hook == "on_fit_begin" or trainer.progress.step >= (6 if hook == "on_epoch_begin" else 7):
            raise error

    model = compiled()
    with pytest.raises(error):
        trainer_of(model, On(hook, fail), folder=tmp_path, save_every=1).run()
    assert (any(flags(model)), model.optimizer.learning_rate) == (False, 1e-2)
    if hook == "on_fit_begin":
        trainer_of(model).run()
    else:
        trainer = trainer_of(compiled(), folder=tmp_path, save_every=1)
        trainer.restore(*load_checkpoint(tmp_path))
        trainer.run()
        model = trainer.model
    assert bits(model) == bits(whole)


@pytest.mark.parametrize("hook", HOOKS[:-1])
def test_trainings_inside_a_training(hook, tmp_path):
    done = []

    def inner(trainer):
        if done:
            return
        done.append(trainer.progress.step)
        with pytest.raises(RuntimeError, match="a training of this model is running"):
            trainer_of(trainer.model).run()
        with pytest.raises(FileExistsError, match=r"running in this folder|already holds checkpoints"):
            trainer_of(compiled(), folder=tmp_path / "." / "run").run()
        trainer_of(compiled(Autoencoder), folder=tmp_path / "other").run()

    model, whole = compiled(), compiled()
    trainer_of(model, On(hook, inner), folder=tmp_path / "run").run()
    trainer_of(whole).run()
    assert done
    assert bits(model) == bits(whole)
