"""autoencoders/minimal.py is what a reader sees first; it must train as the Trainer does."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import autoencoders
import minigrad
from autoencoders import minimal
from autoencoders.data import load_dataset
from autoencoders.training import Trainer


def test_the_first_20_losses_are_those_of_the_trainer(monkeypatch: pytest.MonkeyPatch, restored_backends: None) -> None:
    minigrad.use(kernels="plain")
    images = load_dataset("fashion-mnist-sample").train_images[:150]  # the last batch of an epoch is shorter
    model = autoencoders.VAE((28, 28, 1), (32, 64), (3, 3), (2, 2), minimal.Z, momentum=0.9)
    model.compile(2e-3)
    mine = minimal.VAE()
    mine.load_state_dict(dict(zip(mine.state_dict(), model.network.state_dict().values(), strict=True)))
    wanted: list[np.ndarray] = []
    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda *given: wanted.append(step(*given)) or wanted[-1])
    model.train(images, 32, 4, schedule="constant", progress=False)
    found = list(minimal.train(mine, images, epochs=4, batch_size=32))
    assert len(found) == len(wanted) == 20
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    np.testing.assert_allclose(minimal.sample(mine, 4, seed=3), model.sample(4, seed=3), atol=1e-4)


def test_the_program_prints_losses_and_a_picture(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = load_dataset("fashion-mnist-sample").train_images[:512]
    monkeypatch.setattr(minimal, "load_dataset", lambda _: SimpleNamespace(train_images=images))
    minimal.main()
    first, *picture = capsys.readouterr().out.splitlines()
    assert first.startswith("step 16: ")
    assert [len(row) for row in picture] == 14 * [28]
