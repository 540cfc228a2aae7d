"""The trained models that come with the package: what is in their files, what they compute, and how they are named."""

import hashlib
import json
import math
import re
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest

import autoencoders
from autoencoders import shipped
from autoencoders.data import load_dataset
from minigrad.serialize import DataError

NAMES = shipped.shipped()
FILES = {"model.safetensors", "run.json", "history.jsonl", "quality.json", "README.md", "samples.png"}
MOST_BYTES = 6_000_000  # of all models together
IMAGES = 300  # of the 10,000 test images that a card is about


def test_all_models_together_are_small_and_hold_no_other_files():
    files = [path for path in shipped.MODELS.rglob("*") if path.is_file()]
    assert {path.relative_to(shipped.MODELS).as_posix() for path in files} == {
        "index.json",
        *(f"{name}/{file}" for name in NAMES for file in FILES),
    }
    assert "vae16" in NAMES
    assert sum(path.stat().st_size for path in files) < MOST_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_the_index_has_the_sha256_of_each_file(name):
    index = json.loads((shipped.MODELS / "index.json").read_text())
    assert list(index) == NAMES
    folder = shipped.MODELS / name
    assert index[name] == {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in FILES}


@pytest.mark.parametrize("name", NAMES)
def test_a_model_file_holds_float32_weights_and_nothing_else(name):
    """Read as the format of safetensors says: a length, a header in JSON, and numbers to the end of the file."""
    content = (shipped.MODELS / name / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    record = json.loads(header.pop("__metadata__")["record"])
    assert {entry["dtype"] for entry in header.values()} == {"F32"}
    assert not [array for array in header if "optimizer" in array]
    sizes = [math.prod(entry["shape"]) for entry in header.values()]
    assert 8 + length + 4 * sum(sizes) == len(content)
    assert set(record) == {"format", "model", "trained_steps"}
    recipe = tomllib.loads((shipped.MODELS.parent / f"recipes/{name}.toml").read_text())
    assert record["trained_steps"] == recipe["epochs"] * math.ceil(60_000 / recipe["batch-size"]), "the whole recipe"


@pytest.mark.parametrize("name", NAMES)
def test_a_model_has_the_figures_of_its_card(name):
    """-ELBO and squared error of a few test images, computed here with NumPy, lie where the card's errors allow."""
    card = (shipped.MODELS / name / "README.md").read_text()
    model = autoencoders.load(name)
    images = load_dataset("fashion-mnist-sample").test_images[:IMAGES]
    x = images.reshape(IMAGES, -1) / 255
    mean, log_variance = (np.float64(y) for y in model.encode_distribution(images))
    z = mean + np.exp(log_variance / 2) * np.random.default_rng(0).standard_normal(mean.shape)
    p, at_mean = (np.float64(model.decode(y)).reshape(IMAGES, -1).clip(1e-7, 1 - 1e-7) for y in (z, mean))
    kl = (mean**2 + np.exp(log_variance) - 1 - log_variance).sum(axis=1) / 2
    found = {
        "neg_elbo": kl - (x * np.log(p) + (1 - x) * np.log(1 - p)).sum(axis=1),
        "mse": ((x - at_mean) ** 2).mean(axis=1),
    }
    for metric, values in found.items():
        row = re.search(rf"^\| `{metric}`: .* \| ([\d.]+) \| ± ([\d.]+) \|$", card, re.M)
        expected, error = map(float, row.groups())
        assert abs(values.mean() - expected) < 4 * error * math.sqrt(10_000 / IMAGES), metric
    new = model.sample(100)
    assert (new.min() >= 0, new.max() <= 1, new.std(axis=0).mean() > 0.1) == (True, True, True)


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the models, which the package takes for its own, and a working folder without any."""
    monkeypatch.setattr(shipped, "MODELS", shutil.copytree(shipped.MODELS, tmp_path / "models"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "models"


@pytest.mark.parametrize("file", sorted(FILES))
def test_a_changed_byte_is_one_clear_error(file, copied):
    path = copied / "vae16" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"vae16/{file}: SHA-256: expected \w+, found \w+; install the package again$"):
        autoencoders.load("vae16")
    path.unlink()
    with pytest.raises(DataError, match=rf"vae16/{file}: cannot be read"):
        autoencoders.load("vae16")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"vae16": 3}', "\0"])
def test_a_damaged_index_is_one_clear_error(text, copied):
    (copied / "index.json").write_text(text)
    with pytest.raises(DataError, match=r"index.json: does not list vae16 .*; install the package again$"):
        autoencoders.load("vae16")


def test_a_folder_in_the_working_folder_wins_over_the_package(copied):
    assert autoencoders.load("vae16").latent_space_dim == 16
    mine = autoencoders.VAE((8, 8, 1), (2, 3), latent_space_dim=3)
    mine.save("vae16")
    assert autoencoders.load("vae16").config == mine.config
    Path("vae16/model.safetensors").unlink()  # an unfinished training is not replaced by a finished one
    with pytest.raises(DataError, match=r"vae16/model.safetensors: there is no such .*rename the folder vae16 first"):
        autoencoders.load("vae16")
    Path("vae16").rename("another")
    assert autoencoders.load(Path("vae16")).latent_space_dim == 16


def test_an_unknown_name_is_answered_with_those_that_exist(copied):
    with pytest.raises(DataError, match=f"vae17/model.safetensors: there is no such model; .*{', '.join(NAMES)}"):
        autoencoders.load("vae17")
    for outside in ("../vae16", "models/vae16", "", ".", ".."):
        with pytest.raises(DataError, match="there is no such model"):
            autoencoders.load(outside)


def test_weights_and_class_come_from_a_name_too(copied):
    model = autoencoders.VAE.load("vae16")
    model.load_weights("vae16")
    other = autoencoders.VAE((28, 28, 1), latent_space_dim=16, seed=5)
    other.load_weights("vae16")
    assert np.array_equal(other.sample(3), model.sample(3))
    with pytest.raises(DataError, match="latent_space_dim is 16 in the file but 3 in the model"):
        autoencoders.VAE((28, 28, 1), latent_space_dim=3).load_weights("vae16")
