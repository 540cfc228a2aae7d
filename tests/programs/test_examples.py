"""The examples in scripts/examples/ for a few steps, and their formulas."""

import dataclasses
import importlib.util
import itertools
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from autoencoders.data import load_dataset
from minigrad import nn

DATA = load_dataset("fashion-mnist-sample")
SMALL = dataclasses.replace(
    DATA,
    train_images=DATA.train_images[:256],
    train_labels=DATA.train_labels[:256],
    test_images=DATA.test_images[:64],
    test_labels=DATA.test_labels[:64],
)


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[2] / f"scripts/examples/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_energy_distance_of_points() -> None:
    a, b = np.array([[0.0], [2.0]]), np.array([[1.0], [5.0]])
    assert example("dcgan").energy_distance(a, b) == pytest.approx(2 * (1 + 5 + 1 + 3) / 4 - 1 - 2)


def test_the_penalty_of_a_linear_critic() -> None:
    critic = nn.Dense(2, 1)
    critic.weight.data[...] = [[3.0], [4.0]]
    assert example("wgan_gp").gradient_penalty(critic, np.ones((5, 2), "f4")).item() == pytest.approx((5 - 1) ** 2)


def test_a_contractive_autoencoder_has_a_smaller_jacobian() -> None:
    contractive = example("contractive_autoencoder")
    images, found = contractive.load(DATA.train_images[:500]), []
    for penalty in (0.0, 10.0):
        model = contractive.Autoencoder()
        model.initialize(0)
        losses = [loss for loss, _ in contractive.train(model, images, penalty, epochs=2)]
        assert losses[-1] < 0.9 * losses[0]
        found.append(contractive.measure(model, images, np.zeros_like(images))[0])
    assert found[1] < 0.8 * found[0]
    slopes = (h := 1 / (1 + np.exp(-images @ model.weight.data - model.code_bias.data))) * (1 - h)  # (N, 32)
    assert found[1] == pytest.approx(np.mean(slopes**2 @ np.sum(model.weight.data**2, axis=0)), rel=1e-4)


def test_newtons_method_squares_the_error(capsys) -> None:
    newton = example("newton")
    a, b = -1.2, 1.0
    hessian = newton.derivatives(newton.rosenbrock, np.array([a, b]))[2]
    np.testing.assert_allclose(hessian, [[2 - 400 * b + 1200 * a**2, -400 * a], [-400 * a, 200]])
    features, labels = newton.load(DATA.train_images[:1000], DATA.train_labels[:1000])
    path = list(newton.train(newton.logistic_regression(features, labels), np.zeros(50), 7))
    errors = [np.linalg.norm(x - path[-1][0]) for x, _, _ in path[2:5]]
    assert all(after < before**2 for before, after in itertools.pairwise(errors))
    newton.main()
    assert re.search(r"loss 0\.4\d+ nats, test accuracy 8\d", capsys.readouterr().out)


LOSSES = r"^(?:epoch|step).*?loss.*?(\d+\.\d+)"
DISTANCES = r"([\d.]+) (?:before|after)"  # of a GAN's images and the data
LEARNS = {  # an example: settings that make it short, its numbers, of which the last is this much lower, its picture
    "classifier": ({"EPOCHS": 3}, LOSSES, 0.9, None),
    "keras_autoencoder": ({"EPOCHS": 5}, LOSSES, 0.9, "reconstructions.png"),
    "unet_denoiser": ({"EPOCHS": 2}, LOSSES, 0.9, "denoised.png"),
    "attention": ({"STEPS": 30}, LOSSES, 0.9, None),
    "dcgan": ({"BATCH": 10, "EPOCHS": 2}, DISTANCES, 0.6, "samples.png"),
    "wgan_gp": ({"BATCH": 64, "STEPS": 100}, DISTANCES, 0.6, "samples.png"),
}


@pytest.mark.parametrize("name", LEARNS)
def test_an_example_learns(name, monkeypatch, capsys, tmp_path) -> None:
    changed, pattern, factor, picture = LEARNS[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [name])
    module = example(name)
    for word, value in changed.items():
        monkeypatch.setattr(module, word, value)
    if hasattr(module, "load_dataset"):
        monkeypatch.setattr(module, "load_dataset", lambda _: SMALL)
    module.main()
    numbers = [float(found) for found in re.findall(pattern, capsys.readouterr().out, re.MULTILINE)]
    assert len(numbers) >= 2
    assert numbers[-1] < factor * numbers[0]
    if picture:
        pixels = np.asarray(Image.open(tmp_path / "runs" / name / picture).convert("L"))
        assert pixels.shape[1] == 12 * 28 or pattern == DISTANCES
        assert pixels.std() > 20
