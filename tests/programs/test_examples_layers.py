"""The examples of layers in scripts/examples/: each one trains for a few steps and gets better."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from autoencoders.data import Dataset, load_dataset

EXAMPLES = Path(__file__).parents[2] / "scripts/examples"


def load(name: str) -> ModuleType:
    """An example as a module of its own."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small_dataset(name: str) -> Dataset:
    """256 images for training and 64 for testing."""
    data = load_dataset(name)
    return dataclasses.replace(
        data,
        train_images=data.train_images[:256],
        train_labels=data.train_labels[:256],
        test_images=data.test_images[:64],
        test_labels=data.test_labels[:64],
    )


def numbers(line: str) -> list[float]:
    """The numbers in a line of output."""
    return [float(number) for number in re.findall(r"\d+\.\d+", line)]


@pytest.mark.parametrize(
    ("name", "changed", "picture"),
    [
        ("classifier", {"EPOCHS": 3}, None),
        ("keras_autoencoder", {"EPOCHS": 5}, "reconstructions.png"),
        ("unet_denoiser", {"EPOCHS": 2}, "denoised.png"),
        ("attention", {"STEPS": 30}, None),
    ],
)
def test_an_example_learns(
    name: str,
    changed: dict[str, int],
    picture: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [name])
    example = load(name)
    for word, value in changed.items():
        monkeypatch.setattr(example, word, value)
    if hasattr(example, "load_dataset"):
        monkeypatch.setattr(example, "load_dataset", small_dataset)
    example.main()
    lines = capsys.readouterr().out.splitlines()
    losses = [numbers(line)[0] for line in lines if "loss" in line and line.startswith(("epoch", "step"))]
    assert len(losses) >= 2
    assert losses[-1] < 0.9 * losses[0]
    if picture:
        pixels = np.asarray(Image.open(tmp_path / "runs" / name / picture).convert("L"))
        assert pixels.shape[1] == 12 * 28
        assert pixels.std() > 20
