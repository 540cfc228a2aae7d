"""The programs with `--model`: a trained model that comes with the package."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from program_cases import VAE_PICTURES, content, pictures, record
from programs import EVALUATE, GENERATE, SAMPLE, TRAIN

import autoencoders
from autoencoders import shipped
from autoencoders.cli import explore, export
from autoencoders.cli.program import Program

pytestmark = pytest.mark.usefixtures("working_folder", "unchanged")
NAME = "vae16"


class Installed:
    """A program of the console command, called as GENERATE is."""

    def __init__(self, module):
        self.module, self.__name__ = module, module.__name__.rpartition(".")[2]

    def main(self, argv):
        return self.module.main(argv, Program.installed(self.__name__))


EXPLORE, EXPORT = Installed(explore), Installed(export)


@pytest.fixture
def unchanged():
    """Nothing is written into the package."""
    models = shipped.MODELS
    before = content(models)
    yield
    assert content(models) == before


def test_the_first_command_of_the_front_page_draws_pictures(call):
    """It needs no data and no training."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    words = re.search(r"^python3 -m venv .* && \.venv/bin/autoencoders generate (.*)$", readme, re.M)[1].split()
    assert words == ["--model", NAME]
    done = call(GENERATE, *words).ok(f"drew 4 pictures in generated/{NAME}/figures/")
    assert "the embedded sample of Fashion-MNIST" in done.out
    assert pictures(Path(f"generated/{NAME}/figures")) == VAE_PICTURES
    assert {path.parts[0] for path in Path().rglob("*")} == {"generated"}
    call(GENERATE, "--model", NAME, "--seed", 1).ok("drew 4 pictures")
    call(GENERATE, "--model", NAME, "--out", "mine").ok("drew 4 pictures in mine/")


def test_new_images_are_those_of_the_model(call, spied):
    call(GENERATE, "--model", NAME, "--samples", 6, "--seed", 3, "--format", "npz").ok()
    expected = autoencoders.load(NAME).sample(6, 3)
    np.testing.assert_array_equal(spied["samples"][0], expected)
    with np.load(f"generated/{NAME}/figures/samples.npz") as file:
        np.testing.assert_array_equal(file["images"], np.round(255 * expected))


def test_latents_are_those_of_the_test_images_of_the_sample(call):
    call(GENERATE, "--model", NAME, "--encode", "z.npz").ok("latents (means) of 1,000 images")
    with np.load("z.npz") as file:
        assert set(file["part"]) == {"test"}
    assert [path.name for path in Path().iterdir()] == ["z.npz"]


def test_an_evaluation_names_the_model_that_was_shipped(call, monkeypatch):
    monkeypatch.setattr(EVALUATE.module, "all_pictures", lambda *_: {})
    monkeypatch.setattr(EVALUATE.module, "write_report", lambda *_: None)
    call(EVALUATE, "--model", NAME, *SAMPLE).ok("these are not the images of the run")
    found = json.loads(Path(f"generated/{NAME}/evaluation.json").read_text())
    index = json.loads((shipped.MODELS / "index.json").read_text())
    assert found["model_sha256"] == index[NAME]["model.safetensors"]
    card = json.loads((shipped.MODELS / NAME / "quality.json").read_text())["evaluation"]
    assert found["mse"] == pytest.approx(card["mse"], rel=0.1)
    assert found["training"] == card["training"]


def test_an_evaluation_measures_the_images_of_the_run(call, monkeypatch):
    asked = []

    def load_dataset(name, place, **how):
        asked.append((name, place))
        raise KeyboardInterrupt

    monkeypatch.setattr("autoencoders.cli.models.load_dataset", load_dataset)
    assert call(EVALUATE, "--model", NAME).code == 130
    assert call(GENERATE, "--model", NAME).code == 130
    assert call(GENERATE, "--model", NAME, "--data-dir", "mine").code == 130
    assert call(GENERATE, "--model", NAME, "--mixture-components", 50).code == 130
    whole = "fashion-mnist", None
    assert asked == [whole, ("fashion-mnist-sample", None), ("fashion-mnist", "mine"), whole]


def test_a_mixture_is_saved_beside_the_results(call, spied):
    pytest.importorskip("sklearn")
    done = call(GENERATE, "--model", NAME, "--mixture-components", 2, *SAMPLE)
    done.ok("fitting 2 Gaussians to the latents of 4,000 images", f"saved generated/{NAME}/mixture.safetensors")
    first = spied["samples"][0]
    for more in ([], ["--out", "mine"]):
        call(GENERATE, "--model", NAME, *more).ok("new images come from the mixture of 2 Gaussians")
        np.testing.assert_array_equal(spied["samples"][0], first)


def test_a_page_and_files_for_other_programs(call):
    call(EXPLORE, "--model", NAME).ok(f"wrote generated/{NAME}/explore.html")
    said = re.search("<header>.*?</header>", Path(f"generated/{NAME}/explore.html").read_text())[0]
    assert re.search(r"embedded sample of Fashion-MNIST.*; trained on fashion-mnist for \d+ epochs", said)
    call(EXPORT, "--model", NAME, "--format", "torch").ok(f"wrote generated/{NAME}/export/autoencoder.safetensors")
    again = autoencoders.load(f"generated/{NAME}/export/autoencoder.safetensors")
    assert np.array_equal(again.sample(3), autoencoders.load(NAME).sample(3))
    call(EXPORT, "--model", NAME, "--format", "torch").failed(1, "exists; use --overwrite to replace it")


def test_a_shipped_model_is_trained_further(call, undrawn):
    words = (*SAMPLE, "--limit-train", 64, "--threads", 1, "--epochs", 1, "--out", "run")
    assert call(TRAIN, "--init-from", NAME, *words).code == 0
    before = autoencoders.load(NAME).trained_steps
    assert record(Path("run"))["init_from"]["trained_steps"] == before > 0
    assert autoencoders.load("run").trained_steps > before


@pytest.mark.parametrize("program", [GENERATE, EVALUATE, EXPLORE, EXPORT], ids=lambda p: p.__name__)
def test_what_is_named_wrongly_is_answered_with_what_exists(program, call):
    names = ", ".join(shipped.shipped())
    call(program, "--model", "vae17").failed(2, f"--model is 'vae17' but must be one of {names}", "did you mean vae16")
    call(program, "--model", "runs/mine").failed(2, "(--model-dir takes a folder)")
    call(program, "--model", NAME, "--model-dir", "run").failed(2, "--model-dir", "not allowed with", "--model")
    call(program, "--model-dir", NAME).failed(3, f"--model {NAME} takes the one that comes with the package")
    call(program, "--model-dir", "mine").failed(3, "there is no such model", f"(--model): {names}")
    call(program, NAME).failed(2, f"write --model {NAME}")
    assert list(Path().iterdir()) == []


def test_a_folder_of_the_same_name_is_taken_by_the_other_option(call, trained, spied):
    shutil.copytree(trained("vae", 3), NAME)
    call(GENERATE, "--model-dir", NAME, "--samples", 6).ok()
    np.testing.assert_array_equal(spied["samples"][0], autoencoders.load(trained("vae", 3)).sample(6))
    call(GENERATE, "--model", NAME, "--samples", 6).ok()
    np.testing.assert_array_equal(
        spied["samples"][0], autoencoders.load(shipped.MODELS / NAME).sample(6), "not the folder's"
    )


def test_a_changed_model_is_one_line(call, tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "MODELS", shutil.copytree(shipped.MODELS, tmp_path / "models"))
    with (tmp_path / "models" / NAME / "run.json").open("a") as file:
        file.write(" ")
    call(GENERATE, "--model", NAME).failed(3, f"{NAME}/run.json: SHA-256: expected", "install the package again")
    assert not Path("generated").exists()
