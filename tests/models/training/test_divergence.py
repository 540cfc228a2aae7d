"""Trainings that diverge; detect_anomaly names the operation that gave the first bad number."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from interruptions import At, resumed
from kernel_sets import CPU_KERNELS
from trainings import BATCH, COUNT, compiled, pictures, steps_of, trainer_of, weights

import minigrad
from autoencoders import DivergedError, TrainingOptions
from autoencoders.training import Trainer
from minigrad import AnomalyError, Tensor, nn, ops, optim
from minigrad.ops.loss import BCEWithLogits
from minigrad.random import generator
from minigrad.serialize import load_state

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
MARK = 0  # the index of the image with which the planted faults happen: late in its epoch, after sound steps


@pytest.fixture(autouse=True)
def _backend() -> None:
    minigrad.use(kernels="numpy", threads=1)


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


# ---- detect_anomaly ----


def vae_trainer(images: np.ndarray | None = None, *callbacks: At, folder: Path | None = None, **options) -> Trainer:
    images, chosen = pictures() if images is None else images, TrainingOptions(BATCH, **options)
    return Trainer(compiled("vae"), images, chosen, folder=folder, callbacks=callbacks, progress=False)


def network() -> nn.Sequential:
    model = nn.Sequential({"first": nn.Dense(3, 4), "act": nn.ReLU(), "last": nn.Dense(4, 2)})
    model.initialize(seed=0)
    return model


def x(value: float = 1.0) -> Tensor:
    return Tensor(np.full((5, 3), value, np.float32))


def test_a_result_names_layer_operation_and_count():
    model = network()
    model.layers["last"].bias.data[1] = np.inf
    with pytest.raises(AnomalyError) as error, minigrad.detect_anomaly():
        model(x())
    assert str(error.value) == "last, Dense, forward: 5 of 10 numbers of the result are not finite"


def test_the_first_bad_operation_is_named_and_none_that_follows():
    model = network()
    with pytest.raises(AnomalyError, match="first, Dense, forward"), minigrad.detect_anomaly():
        model(x(np.nan))


def test_a_gradient_is_named():
    a = Tensor(np.float32([4, 0]), requires_grad=True)
    with minigrad.detect_anomaly():
        loss = ops.sqrt(a).sum()  # 1 / (2 sqrt(0)) is infinite
        with pytest.raises(AnomalyError) as error:
            loss.backward()
    assert str(error.value) == "Sqrt, backward: 1 of 2 numbers of a gradient of shape (2,) are not finite"


@pytest.mark.parametrize("what", ["gradients", "parameters", "variance"])
def test_an_update_is_named(what):
    model = network()
    optimizer = optim.Adam(model.parameters(), 1e38 if what == "parameters" else 1e-3)
    optimizer.flat.gradients[...] = 1
    optimizer.flat.values[...] = -3e38
    optimizer.flat.gradients[3] = {"gradients": np.nan, "parameters": 1, "variance": 1e30}[what]
    named = pytest.raises(AnomalyError, match=f"^Adam, update: .* numbers of the {what} are not")
    with named, minigrad.detect_anomaly():
        optimizer.step()


def test_what_is_finite_goes_on_as_always():
    def trained() -> bytes:
        model = network()
        optimizer = optim.Adam(model.parameters(), 1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            ops.mse(model(x()), np.ones((5, 2), np.float32)).backward()
            optimizer.step()
        return optimizer.flat.values.tobytes()

    expected, call = trained(), minigrad.Function.__call__
    with minigrad.detect_anomaly():
        assert trained() == expected
    assert minigrad.Function.__call__ is call


def test_one_at_a_time_and_only_this_thread():
    refused = pytest.raises(RuntimeError, match="detect_anomaly: another profile, detect_anomaly or explain is active")
    with minigrad.profile(), refused, minigrad.detect_anomaly():
        pass
    with minigrad.detect_anomaly(), ThreadPoolExecutor(1) as pool:
        assert np.isinf(pool.submit(lambda: ops.log(x(0)).numpy()).result()).all()


# ---- the operation with which a training diverged ----


def planted(monkeypatch: pytest.MonkeyPatch, direction: str) -> np.ndarray:
    """Images of which one, all white, makes the likelihood or its gradient NaN."""
    images = pictures()
    images[MARK] = 255
    real = getattr(BCEWithLogits, direction)

    def forward(self, logits, targets):
        self.marked = bool((targets == 1).all(axis=(1, 2, 3)).any())
        y = real_forward(self, logits, targets)
        return y * np.float32("nan") if self.marked and direction == "forward" else y

    def backward(self, gy):
        marked = self.marked
        gx, *others = real(self, gy)
        gx = gx.copy()
        gx[(0,) * gx.ndim] = np.nan if marked else gx[(0,) * gx.ndim]
        return (gx, *others)

    real_forward = BCEWithLogits.forward
    monkeypatch.setattr(BCEWithLogits, "forward", forward)
    if direction == "backward":
        monkeypatch.setattr(BCEWithLogits, "backward", backward)
    return images


def expected_step(epoch: int) -> int:
    """The step of the run in which the marked image comes; there are 7 an epoch."""
    order = generator(0, "shuffle", epoch).permutation(COUNT)
    return epoch * 7 + int(np.flatnonzero(order == MARK)[0]) // BATCH + 1


@pytest.mark.parametrize("kernels", CPU_KERNELS)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_the_cause_is_found_by_doing_the_steps_again(tmp_path: Path, monkeypatch, direction, kernels):
    minigrad.use(kernels=kernels, threads=1)
    trainer = vae_trainer(planted(monkeypatch, direction), folder=tmp_path, epochs=2)
    with pytest.raises(DivergedError, match=f"; first in step {expected_step(0)}: BCEWithLogits, {direction}: 1 of"):
        trainer.run()
    assert weights(trainer.model) == weights(compiled("vae"))  # the last good state: nothing was saved before
    assert steps_of(tmp_path) == []


def test_the_model_is_left_as_it_was_saved_last(tmp_path: Path, monkeypatch, capsys):
    images = planted(monkeypatch, "backward")
    images[MARK] = 3

    def mark(trainer: Trainer) -> None:
        trainer.feed.images[MARK] = 255

    trainer = vae_trainer(images, At(8, mark), folder=tmp_path, epochs=4)  # in the second epoch
    trainer.display.show = True
    with pytest.raises(DivergedError) as error:
        trainer.run()
    step = next(s for s in (expected_step(1), expected_step(2)) if s > 8)
    assert f"first in step {step}: BCEWithLogits, backward" in str(error.value)
    kept = 7 if step <= 14 else 14
    assert steps_of(tmp_path)[-1] == trainer.progress.step == kept
    assert [row["epoch"] for row in trainer.history.rows] == list(range(1, kept // 7 + 1))
    arrays = minigrad.serialize.load_state(tmp_path / "checkpoints" / f"step-{kept:08d}.safetensors")[0]
    assert all(arrays[name].tobytes() == x for name, x in weights(trainer.model).items())
    assert trainer.optimizer.steps == kept
    assert "doing the last" in capsys.readouterr().out


def test_a_step_without_an_anomaly_is_named_all_the_same(monkeypatch):
    """Operation by operation some sums run in another order, so that the fault may hide."""
    trainer = vae_trainer(planted(monkeypatch, "forward"), epochs=2)
    monkeypatch.setattr("autoencoders.training.divergence._anomaly", lambda _: None)
    with pytest.raises(DivergedError, match=f"; first in step {expected_step(0)}; try a smaller"):
        trainer.run()


def test_a_validation_that_diverges(monkeypatch):
    planted(monkeypatch, "forward")
    trainer = vae_trainer(validation=3)
    trainer.feed.held_out.images[1] = 255
    with pytest.raises(DivergedError, match=r"after step 6 .*; in evaluation mode: BCEWithLogits, forward"):
        trainer.run()
    assert not trainer.history.rows


def test_a_signal_ends_the_search(monkeypatch):
    trainer = vae_trainer(planted(monkeypatch, "backward"), epochs=2)
    monkeypatch.setattr(trainer.display, "line", lambda _: trainer.received.append(2))  # said before the search
    with pytest.raises(DivergedError, match=r"is not finite( \([^)]*\))?; try a smaller learning rate \(--lr .*\)$"):
        trainer.run()
    assert weights(trainer.model) == weights(compiled("vae"))


def test_a_fault_that_does_not_come_again_is_told_as_that():
    """The callback that broke the weights is not called in the search."""

    def break_weights(trainer: Trainer) -> None:
        trainer.optimizer.flat.values[3] = np.nan

    trainer = vae_trainer(None, At(2, break_weights))
    told = "; repeating the steps without callbacks gave finite numbers; try a smaller"
    with pytest.raises(DivergedError, match=told):
        trainer.run()
    assert weights(trainer.model) == weights(compiled("vae"))


def test_the_advice_goes_by_what_was_set():
    trainer = vae_trainer()
    trainer.optimizer.flat.values[...] = np.nan
    with pytest.raises(DivergedError, match=r"; try a smaller learning rate \(--lr 0.002 instead of 0.01\)$"):
        trainer.save_checkpoint()
    trainer.model.beta = 4.0
    with pytest.raises(DivergedError, match=r"; try beta 1 \(--beta 1 instead of 4\), a smaller learning rate"):
        trainer.save_checkpoint()


def test_what_is_saved_outside_a_run_is_not_searched(tmp_path: Path):
    trainer = vae_trainer(folder=tmp_path)
    trainer.optimizer.flat.values[...] = np.nan
    message = r"after step 0 encoder_conv_layer_1\.weight is not finite; try a smaller learning rate \(--lr .*\)$"
    with pytest.raises(DivergedError, match=message):
        trainer.save_checkpoint()
    assert steps_of(tmp_path) == []
