"""Trainings that are interrupted or killed, and what must be the same when they have gone on."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from trainings import LABELS, execute, pictures, timeless, trainer_of, weights

from autoencoders import Callback, TrainingOptions
from autoencoders.conv_autoencoder import from_config
from autoencoders.training import Trainer, load_checkpoint


class At(Callback):
    """Does something after some steps of the run."""

    def __init__(self, steps, action):
        self.steps, self.action = ({steps} if isinstance(steps, int) else set(steps)), action

    def on_batch_end(self, trainer):
        if trainer.progress.step in self.steps:
            self.action(trainer)


class Killed(Exception):
    """Stands for kill -9: nothing more is written."""


def kill(_):
    raise Killed


def interrupt(_):
    signal.raise_signal(signal.SIGINT)


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


def outcome(trainer: Trainer) -> dict:
    """Everything that must be bitwise equal, also what the last checkpoint and the logs hold."""
    arrays, record, _ = load_checkpoint(trainer.folder)
    logged = [json.loads(line) for line in (trainer.folder / "history.jsonl").read_text().splitlines()]
    return {
        "weights": weights(trainer.model),
        "moments": {name: x.tobytes() for name, x in trainer.optimizer.moments.items()},
        "steps": trainer.optimizer.steps,
        "rows": timeless(trainer.history.rows),
        "logged": timeless(logged),
        "checkpoint": {name: x.tobytes() for name, x in arrays.items()},
        "progress": {**record["progress"], "rows": timeless(record["progress"]["rows"])},
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


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def interrupted(work) -> KeyboardInterrupt:
    """Runs a trainer, or executes a run, which is interrupted."""
    with pytest.raises(KeyboardInterrupt) as error:
        work.run() if isinstance(work, Trainer) else execute(work)
    return error.value
