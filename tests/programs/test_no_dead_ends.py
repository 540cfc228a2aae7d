"""What a program advises works."""

import hashlib
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from program_cases import content, losses, record, weights
from programs import EVALUATE, GENERATE, TINY, TRAIN

import autoencoders
from autoencoders.evaluation import diagnosis
from autoencoders.runs import run as run_module
from autoencoders.training import Trainer
from minigrad.serialize import load_state

pytestmark = pytest.mark.usefixtures("working_folder")


@pytest.fixture
def begun(call, monkeypatch, undrawn):
    """A run that is interrupted after so many steps, of 2 an epoch and 8 in all."""

    def begun(steps: int, *words: object, folder: str = "run") -> Path:
        def save(trainer):
            real(trainer)
            if trainer.progress.step == steps:
                raise KeyboardInterrupt(2)

        real = Trainer.save_checkpoint
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "save_checkpoint", save)
            words = (*TINY, "--epochs", 4, "--save-every", 1, *words)
            assert call(TRAIN, *words, "--out", folder).code == 130
        return Path(folder)

    return begun


BEST = ["--validation", 8, "--patience", 3]


@pytest.mark.parametrize(
    ("steps", "words", "place"),
    [(4, [], "after epoch 2"), (5, ["--model", "ae"], "in epoch 3"), (1, BEST, "in epoch 1"), (5, BEST, "in epoch 3")],
)
def test_an_interrupted_run_is_used_finished_and_resumed(steps, words, place, call, begun, capsys, monkeypatch):
    monkeypatch.setattr(EVALUATE.module, "all_pictures", lambda *_: {})
    folder = begun(steps, *words)
    newest = max((folder / "checkpoints").glob("step-*"))
    told = f"there is no finished model; using checkpoints/{newest.name}, {place} of 4\n"
    for program, *more in () if words else ((GENERATE,), (EVALUATE, "--iw-samples", 0)):
        done = call(program, "--model-dir", folder, *more)
        assert (done.code, done.err, done.out.count(told)) == (0, "", 1)
    capsys.readouterr()
    model = autoencoders.load(folder)
    assert (capsys.readouterr().out, model.trained_steps) == (told, steps)
    taken = load_state(newest)[0]
    assert all(np.array_equal(x, taken[name]) for name, x in model.network.state_dict().items())
    done = call(TRAIN, "--out", folder, "--finish")
    assert (done.code, done.err, f"finishing after step {steps}, {place}" in done.out) == (0, "", True)
    assert [row["epoch"] for row in losses(folder)] == [*range(1, -(-steps // 2) + 1)]
    best = folder / "checkpoints" / "best.safetensors"
    expected = load_state(best if best.exists() else newest)[0]
    saved = load_state(folder / "model.safetensors")[0]
    assert all(np.array_equal(x, expected[name]) for name, x in saved.items())
    assert call(TRAIN, "--out", folder, "--resume").code == 0  # what was finished too early goes on
    assert call(TRAIN, *TINY, "--epochs", 4, *words, "--out", "whole").code == 0
    assert (weights(folder), losses(folder)) == (weights(Path("whole")), losses(Path("whole")))


def test_a_run_that_is_finished_too_early_can_go_on(call, begun, monkeypatch):
    folder = begun(1)
    monkeypatch.setattr(run_module, "fatal", diagnosis.fatal)
    call(TRAIN, "--out", folder, "--finish").failed(5, "the model does not work", "try --resume, which trains on")
    call(TRAIN, *TINY, "--out", folder).failed(1, "an unfinished run; use --resume to continue it, --finish")


def test_what_a_resumed_run_cannot_do_names_the_command_that_does(call, begun, undrawn):
    begun(4, folder="runs/cosine")
    done = call(TRAIN, "--out", "runs/cosine", "--resume", "--epochs", 9)
    done.failed(2, "cosine schedule ends with epoch 4")
    words = shlex.split(re.search(r"; (--init-from .*) trains its model further", done.err)[1])
    assert words == ["--init-from", "runs/cosine", "--out", "runs/cosine-2", "--epochs", "5"]
    assert call(TRAIN, *words, *TINY[-4:]).code == 0
    call(TRAIN, "--out", "runs/cosine", "--resume", "--epochs", 3).failed(2, "--finish makes the model now")
    assert "all epochs are trained; --init-from runs/cosine-2" in call(TRAIN, "--out", "runs/cosine-2", "--resume").out
    shutil.rmtree("runs/cosine-2/checkpoints")
    call(TRAIN, "--out", "runs/cosine-2", "--resume").failed(3, "only a model; --init-from runs/cosine-2")
    for words in (["--out", "runs", "--resume"], ["--out", "runs/another", "--finish"], ["--init-from", "runs"]):
        found = "runs/cosine-2, runs/cosine" if words[0] == "--init-from" else "runs/cosine"  # only that can be resumed
        call(TRAIN, *words).failed(3, f"there is one in {found}")
    for program in (GENERATE, EVALUATE):
        call(program).failed(3, "variational/model/model.safetensors", "there is one in runs/cosine-2, runs/cosine")
        call(program, "--model-dir", Path("empty").absolute()).failed(3, "autoencoders train --out /", "makes one")
        earlier = min(Path("runs/cosine/checkpoints").iterdir())
        call(program, "--model-dir", earlier).failed(2, "--out is needed", earlier.name)


@pytest.mark.parametrize("kind", ["vae", "ae"])
def test_a_saved_model_is_trained_on_in_a_new_run(kind, call, trained, undrawn):
    folder = trained(kind)
    before = content(folder)
    words = ("--batch-size", 32, "--limit-train", 64, "--epochs", 1, "--threads", 1)
    for source in (folder, folder / "model.safetensors"):
        assert call(TRAIN, "--init-from", source, *words, "--overwrite", "--out", "new").code == 0
    digest = hashlib.sha256(before["model.safetensors"]).hexdigest()
    said = {"file": str(folder / "model.safetensors"), "sha256": digest, "trained_steps": 4}
    assert (record(Path("new"))["init_from"], content(folder)) == (said, before)
    assert record(Path("new"))["data"]["name"] == "fashion-mnist-sample", "of the first run"
    assert autoencoders.load("new").trained_steps == 6
    assert losses(Path("new"))[0]["reconstruction"] < losses(folder)[0]["reconstruction"]
    Path("further.toml").write_text(f"init-from = '{folder}'")
    assert call(TRAIN, "--config", "further.toml", *words, "--out", "file").code == 0
    assert record(Path("file"))["init_from"] == said
    call(TRAIN, "--config", "further.toml", "--latent-dim", 3).failed(2, "--latent-dim comes from the model")
    call(TRAIN, "--config", "further.toml", "--init-from", "none").failed(3, "none")  # what is typed wins
    np.savez("own.npz", train_images=np.zeros((20, 8, 8), np.uint8))
    for options, fragment in (
        (["--latent-dim", 3], "--latent-dim comes from the model of --init-from"),
        (["--model", "vae" if kind == "ae" else "ae"], "--model comes from the model"),
        (["--out", "new"], "new already holds a finished run"),
        (["--resume"], "--resume cannot be combined"),
        (["--dataset", "own.npz"], "own.npz: does not fit the model: images: expected (N, 28, 28, 1)"),
    ):
        done = call(TRAIN, "--init-from", folder, *words, "--out", "other", *options)
        done.failed(done.code, fragment)
        assert done.code in (1, 2, 3)
    if kind == "vae":
        assert call(TRAIN, "--init-from", folder, *words, "--beta", 3, "--out", "beta").code == 0
        assert autoencoders.load("beta").beta == 3
