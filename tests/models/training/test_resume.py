"""A run that was interrupted goes on to the same bits."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import tqdm
from interruptions import At, Killed, assert_same, interrupt, interrupted, kill, outcome, resumed, unbroken
from kernel_sets import NEEDS_NUMBA
from trainings import BATCH, RESUMED, compiled, pictures, steps_of, timeless, trainer_of, weights

import minigrad
from autoencoders import Callback
from minigrad.serialize import load_state


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
        assert interrupted(trainer).args == (signal.SIGINT,)
        assert trainer.progress.step == steps_of(tmp_path / "run")[-1] == stop
        trainer = resumed(tmp_path / "run", [] if following is None else [At(following, interrupt)])
        assert trainer.progress.step == stop
    trainer.run()
    assert_same(outcome(trainer), expected)


@pytest.mark.parametrize("kind", [kind for kind in RESUMED if kind not in ("ae", "vae", "plain")])
def test_runs_of_other_kinds_end_in_the_same_bits(tmp_path, kind):
    minigrad.use(kernels="numpy", threads=2)
    test_a_run_interrupted_by_ctrl_c_ends_in_the_same_bits(tmp_path, kind, (5, 6, 7, 13), "numpy")


@pytest.mark.parametrize("numbers", [(1, 2, 3, 8), (3, 1, 8, 2)], ids=str)
@pytest.mark.parametrize("kernels", ["numpy", pytest.param("numba", marks=NEEDS_NUMBA)])
@pytest.mark.parametrize("kind", RESUMED)
def test_runs_end_in_the_same_bits_on_any_number_of_threads(tmp_path, kind, kernels, numbers):
    """Each part of the run, between the steps 5, 6 and 13, on another number; 23 images are 6 steps an epoch."""
    first, *others, whole = numbers
    minigrad.use(kernels=kernels, threads=first)
    expected = unbroken(kind, kernels, tmp_path)
    minigrad.use(kernels=kernels, threads=whole)
    trainer = trainer_of(kind, tmp_path / "run", [At(5, interrupt)])
    for threads, following in zip((*others, first), (6, 13, None), strict=True):
        interrupted(trainer)
        minigrad.use(kernels=kernels, threads=threads)
        trainer = resumed(tmp_path / "run", [] if following is None else [At(following, interrupt)])
    trainer.run()
    assert_same(outcome(trainer), expected)


@pytest.mark.parametrize("stops", [(4,), (6,), (8, 14), (18,)], ids=str)
@pytest.mark.parametrize("kind", ["vae", "plain"])
def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path, kind, stops):
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
        interrupted(trainer)
        trainer = resumed(tmp_path / "run", [] if following is None else [At(following, interrupt)])
    trainer.run()
    assert whole.feed.steps == 12
    assert_same(outcome(trainer), outcome(whole))


def test_the_times_of_an_interrupted_epoch_are_added(tmp_path):
    interrupted(trainer := trainer_of("plain", tmp_path, [At(3, interrupt)]))
    before = trainer.progress.seconds
    assert before > 0
    trainer = resumed(tmp_path, [At(5, interrupt)])
    assert trainer.progress.seconds == before
    trainer.progress.seconds = 100.0
    interrupted(trainer)
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
        assert interrupted(trainer).args == (signal.SIGINT,)
        assert trainer.progress.step == steps_of(folder)[-1] == 14
        assert len(resumed(folder).run()) == epochs


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    reached = []

    def twice(trainer):
        interrupt(trainer)
        reached.append("one")
        interrupt(trainer)
        reached.append("two")

    interrupted(trainer_of("plain", tmp_path, [At(3, twice)]))
    assert reached == ["one"]
    assert not steps_of(tmp_path)  # it did not stop to save


def handlers(*more: At) -> list:
    """The handlers of SIGINT during a training and after it."""
    seen = []
    trainer_of("plain", None, [At(1, lambda _: seen.append(signal.getsignal(signal.SIGINT))), *more], epochs=1).run()
    return [*seen, signal.getsignal(signal.SIGINT)]


def test_handlers_are_ours_during_a_run_only():
    during, after = handlers()
    assert during is not signal.default_int_handler
    assert after is signal.default_int_handler
    for action in (interrupt, kill):
        with pytest.raises((KeyboardInterrupt, Killed)):
            trainer_of("plain", None, [At(1, action)]).run()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("own", [lambda *_: None, signal.SIG_IGN], ids=["function", "ignored"])
def test_handlers_of_others_are_not_touched(own):
    signal.signal(signal.SIGINT, own)
    assert handlers(At(2, interrupt)) == [own, own]  # and it goes on: the signal was the other's
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_run_in_a_thread_touches_no_handler():
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(handlers).result() == [signal.default_int_handler] * 2


def test_a_signal_after_the_last_step_is_not_lost(monkeypatch):
    """What is raised in a `__del__` goes nowhere: the bar's must run while signals are collected."""
    monkeypatch.setattr(tqdm.tqdm, "__del__", lambda _: signal.raise_signal(signal.SIGINT))
    trainer = trainer_of("plain", None, epochs=1)
    assert interrupted(trainer).args == (signal.SIGINT,)
    assert trainer.progress.epoch == 1  # it had ended
