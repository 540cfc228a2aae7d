"""Run folders: started, resumed, replaced."""

from __future__ import annotations

import os
import signal
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from trainings import (
    BATCH,
    At,
    Killed,
    compiled,
    execute,
    files_in,
    interrupt,
    kill,
    model_of,
    pictures,
    run_of,
    steps_of,
    trainer_of,
    weights,
)

import minigrad
from autoencoders import VAE, DivergedError, TrainingOptions, load
from autoencoders.conv_autoencoder import from_config
from autoencoders.data import load_dataset
from autoencoders.evaluation.metrics import quick_metrics
from autoencoders.runs import resume_run, start_run
from autoencoders.runs.record import read_record
from autoencoders.training import Trainer, load_checkpoint
from minigrad.serialize import DataError, load_state, save_state

pytestmark = pytest.mark.usefixtures("usual_signals")


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("samples", [1, 2])
def test_the_latents_of_a_finished_run_have_the_mean_and_variance_of_the_prior(
    tmp_path, array_file, samples, monkeypatch
):
    """Over the images that it was trained on; not where the loss is another bound, and not in checkpoints."""
    monkeypatch.setattr("autoencoders.runs.run.WORTH_A_SHIFT", 0)
    run = run_of(array_file, tmp_path / "run", validation=10, iw_samples=samples)
    told = execute(run)
    images = load_dataset(array_file).train_images[run.trainer.feed.trained]
    last = VAE.load(load_checkpoint(tmp_path / "run")[2])
    for model, moved in ((VAE.load(tmp_path / "run"), samples == 1), (last, False)):
        mu, log_variance = model.encode_distribution(images)
        variance = mu.var(axis=0) + np.exp(log_variance).mean(axis=0)
        assert (np.abs(mu.mean(axis=0)).max() < 1e-3 and np.abs(variance - 1).max() < 1e-3) == moved
    assert any("latents shifted and scaled to the prior" in line for line in told) == (samples == 1)


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_a_run_that_was_interrupted_is_resumed_from_its_folder(tmp_path, array_file):
    minigrad.use(kernels="plain")
    whole = run_of(array_file, tmp_path / "whole")
    execute(whole)
    broken = run_of(array_file, tmp_path / "broken")
    broken.trainer.callbacks = [At(3, interrupt)]
    with pytest.raises(KeyboardInterrupt):
        execute(broken)
    assert read_record(tmp_path / "broken")["status"] == "interrupted"
    minigrad.use(kernels="numpy")
    told: list[str] = []
    again = resume_run(tmp_path / "broken", progress=False, tell=told.append)
    assert again.trainer.k.kernels == "plain"  # that of the run
    assert not any("not bitwise" in line for line in told)
    assert "resuming after step 3, in epoch 1 of 2" in told
    assert "kernels plain (as before)" in told[0]
    execute(again)
    files = [load_state(tmp_path / name / "model.safetensors") for name in ("whole", "broken")]
    assert files[0][2] == files[1][2]
    a, b = (read_record(tmp_path / name) for name in ("whole", "broken"))
    assert a["status"] == b["status"] == "finished"
    for key in ("test", "options", "model", "data", "learning_rate"):
        assert a[key] == b[key]


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_other_kernels_on_resume_are_told(tmp_path, array_file):
    minigrad.use(kernels="plain")
    execute(run_of(array_file, tmp_path / "run"))
    told: list[str] = []
    resume_run(tmp_path / "run", kernels="numpy", threads=2, progress=False, tell=told.append)
    line = next(line for line in told if "not bitwise" in line)
    assert "kernels plain -> numpy" in line
    assert "threads 1 -> 2" in line
    assert "kernels numpy (asked for)" in told[0]


class Chosen(Exception):
    """The device was asked for; no further."""


ON_RESUME = [  # what the run had, what is given, what is asked for
    ({"device": "cpu"}, {}, ("cpu", "plain", 3, "fp32")),
    ({"device": "cpu"}, {"device": "cpu", "kernels": "numpy", "threads": 0}, ("cpu", "numpy", 0, "fp32")),
    ({"device": "cpu"}, {"device": "cuda"}, ("cuda", "auto", None, "fp32")),
    ({"device": "cuda:0"}, {"device": "cpu"}, ("cpu", "auto", None, "fp32")),
    ({"device": "cuda:0", "precision": "tf32"}, {}, ("cuda:0", "plain", 3, "tf32")),
    ({"device": "cuda:0", "precision": "tf32"}, {"device": "cuda:1"}, ("cuda:1", "plain", 3, "tf32")),
    ({"device": "cuda:0", "precision": "tf32"}, {"precision": "fp32"}, ("cuda:0", "plain", 3, "fp32")),
    ({"device": "cuda:1"}, {"device": "cuda"}, ("cuda", "plain", 3, "fp32")),
    ({"device": "cpu"}, {"device": "cuda", "precision": "tf32"}, ("cuda", "auto", None, "tf32")),
]


@pytest.mark.parametrize(("was", "given", "expected"), ON_RESUME)
def test_what_is_recorded_of_a_device_holds_for_all_of_its_kind(was, given, expected, tmp_path, monkeypatch):
    """Another GPU of the kind goes on with kernels, threads and precision of the run; another kind has its own best."""
    data = {"name": "x", "limit_train": None, "content_hash": ""}
    record = {"environment": {"kernels": "plain", "threads": 3, **was}, "data": data}
    record |= {"learning_rate": 1e-3, "options": {}, "model": {}}
    monkeypatch.setattr("autoencoders.runs.start.load_checkpoint", lambda *_: ({}, record, tmp_path / "step"))
    asked = []

    def use(*arguments) -> None:
        asked.append(arguments)
        raise Chosen

    monkeypatch.setattr(minigrad, "use", use)
    with pytest.raises(Chosen):
        resume_run(tmp_path, **given)
    assert asked == [expected]


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_the_data_folder_of_a_run_is_kept_unless_another_is_given(tmp_path, array_file, monkeypatch):
    dataset, asked = load_dataset(array_file), []
    options = TrainingOptions(batch_size=BATCH, epochs=1)
    folder = tmp_path / "run"
    execute(start_run(model_of(), dataset, options, folder, learning_rate=1e-2, data_dir="here", progress=False))

    def load(name: str, data_dir: str, download: bool, progress: bool, **_: object):
        asked.append((name, data_dir, download, progress))
        return dataset

    monkeypatch.setattr("autoencoders.runs.start.load_dataset", load)
    resume_run(folder, progress=False, tell=lambda _: None)
    told: list[str] = []
    assert resume_run(folder, data_dir="there", tell=told.append).trainer.display.show
    assert asked == [(dataset.name, "here", False, False), (dataset.name, "there", True, True)]
    again = "--resume --epochs N goes on, or --init-from"
    assert told[-1].startswith(f"resuming after step 7, all epochs are trained; {again}")


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_a_checkpoint_that_claims_a_larger_model_than_it_holds_is_refused_before_it_is_built(tmp_path, array_file):
    execute(run_of(array_file, tmp_path / "run", epochs=1))
    arrays, record, path = load_checkpoint(tmp_path / "run")
    record["model"]["latent_space_dim"] = 10**12
    save_state(path, arrays, record)
    with pytest.raises(DataError, match=rf"{path}: model record: .* at least \d+ weights, but the file holds"):
        resume_run(tmp_path / "run", progress=False, tell=lambda _: None)


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_other_data_on_resume_are_refused(tmp_path, array_file):
    execute(run_of(array_file, tmp_path / "run"))
    before = sorted(p.name for p in (tmp_path / "run").rglob("*"))
    used = load_dataset(array_file).content_hash
    changed = pictures(30)
    changed[7, 3, 3, 0] ^= 1
    np.save(array_file, changed)
    found = load_dataset(array_file).content_hash
    with pytest.raises(DataError, match=rf"not the data of this run \(SHA-256 {found}, recorded {used}\)"):
        resume_run(tmp_path / "run", progress=False, tell=lambda _: None)
    array_file.unlink()
    with pytest.raises(DataError):
        resume_run(tmp_path / "run", progress=False, tell=lambda _: None)
    assert sorted(p.name for p in (tmp_path / "run").rglob("*")) == before


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_epochs_on_resume(tmp_path, array_file):
    def resume(folder, epochs):
        return resume_run(folder, epochs=epochs, progress=False, tell=lambda _: None)

    minigrad.use(kernels="plain")
    execute(run_of(array_file, tmp_path / "two"))
    execute(run_of(array_file, tmp_path / "three", epochs=3))
    with pytest.raises(ValueError, match="epochs is 1 but the run is already after epoch 2; --finish makes the model"):
        resume(tmp_path / "two", 1)
    execute(resume(tmp_path / "two", 3))
    digests = {load_state(tmp_path / name / "model.safetensors")[2] for name in ("two", "three")}
    assert len(digests) == 1
    execute(run_of(array_file, tmp_path / "cosine", schedule="cosine"))
    with pytest.raises(ValueError, match=r"schedule ends with epoch 2; --init-from .* --epochs 1 trains its model"):
        resume(tmp_path / "cosine", 3)
    assert resume(tmp_path / "cosine", 2).trainer.options.epochs == 2


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_folders_with_a_run_are_guarded(tmp_path, array_file):
    folder = tmp_path / "run"
    first = run_of(array_file, folder)
    assert not folder.exists()  # nothing is written before the run starts
    first.trainer.callbacks = [At(1, kill)]
    with pytest.raises(Killed):
        execute(first)
    assert read_record(folder)["status"].startswith("failed")
    second = run_of(array_file, folder)  # there was no checkpoint yet, so nothing is lost
    second.trainer.callbacks = [At(2, interrupt)]
    with pytest.raises(KeyboardInterrupt):
        execute(second)
    with pytest.raises(FileExistsError, match=r"an unfinished run; use --resume to continue it, --finish to make its"):
        run_of(array_file, folder)
    execute(resume_run(folder, progress=False, tell=lambda _: None))
    with pytest.raises(FileExistsError, match="already holds a finished run; use --overwrite") as error:
        run_of(array_file, folder)
    assert "--resume" not in str(error.value)
    (folder / "notes.txt").write_text("mine")
    (folder / "figures").mkdir(exist_ok=True)
    (folder / "figures" / "fig1.pdf").write_text("mine")
    third = run_of(array_file, folder, overwrite=True)
    execute(third)
    assert (folder / "notes.txt").exists()  # what is not the run's stays
    assert (folder / "figures" / "fig1.pdf").exists()
    assert [path.name for path in folder.glob(".*")] == [".lock"]
    assert {"model.safetensors", "run.json", "history.csv", "history.jsonl", "checkpoints"} <= set(os.listdir(folder))


@pytest.mark.parametrize("stop", [kill, interrupt, "diverge"], ids=["error", "signal", "divergence"])
@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_an_old_run_comes_back_if_its_replacement_saves_nothing(stop, tmp_path, array_file, monkeypatch):
    folder = tmp_path / "run"
    execute(run_of(array_file, folder))
    before = files_in(folder)
    again = run_of(array_file, folder, overwrite=True, seed=5)
    monkeypatch.setattr(Trainer, "save_checkpoint", lambda _: None)
    if stop == "diverge":
        again.trainer.model.network.parameters()[0].data[...] = np.nan
    else:
        again.trainer.callbacks = [At(1, stop)]
    with pytest.raises((Killed, KeyboardInterrupt, DivergedError)):
        execute(again)
    assert files_in(folder) == before


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "signal"])
@pytest.mark.parametrize("call", ["mkdir", "replace", "write"])
@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_moving_an_old_run_aside_is_all_or_nothing(call, error, tmp_path, array_file, monkeypatch):
    """An older one, aside since before, and what is not ours are left alone."""
    folder = tmp_path / "run"
    execute(run_of(array_file, folder))
    execute(run_of(array_file, folder, overwrite=True, seed=5))
    (folder / "old-by-hand").mkdir()
    before = files_in(folder)
    third = run_of(array_file, folder, overwrite=True, seed=6)
    real = {"mkdir": Path.mkdir, "replace": Path.replace}
    calls = []

    def fail(path, *arguments, **options):
        calls.append(path)
        if len(calls) == (2 if call == "replace" else 1):
            raise error
        return real[call](path, *arguments, **options)

    with monkeypatch.context() as patch:
        if call == "write":
            patch.setattr("autoencoders.runs.run.write_json", lambda *_: fail(None))
        else:
            patch.setattr(Path, call, fail)
        with pytest.raises((OSError, DataError, KeyboardInterrupt)) as raised:
            execute(third)
    assert calls
    if call == "replace" and isinstance(error, OSError):
        assert str(raised.value) == f"{folder}: the old run cannot be moved aside ({error})"
    assert files_in(folder) == before
    assert read_record(folder)["options"]["seed"] == 5
    assert sorted(path.name for path in folder.glob("old-*")) == ["old-1", "old-by-hand"]


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_an_old_run_is_kept(tmp_path, array_file):
    folder = tmp_path / "run"
    execute(run_of(array_file, folder))
    before = files_in(folder)
    again = run_of(array_file, folder, overwrite=True, seed=5)
    again.trainer.callbacks = [At(3, interrupt)]
    with pytest.raises(KeyboardInterrupt):
        execute(again)
    assert files_in(folder / "old-1") == {name: x for name, x in before.items() if name != ".lock"}
    execute(resume_run(folder, progress=False, tell=lambda _: None))
    assert files_in(folder / "old-1") == {name: x for name, x in before.items() if name != ".lock"}
    told: list[str] = []
    run_of(array_file, folder, overwrite=True, seed=6).execute(told.append)
    assert read_record(folder / "old-2")["options"]["seed"] == 5
    assert read_record(folder)["options"]["seed"] == 6
    assert f"the previous run is in {folder / 'old-2'}" in told


@pytest.mark.parametrize("name", ["model.safetensors", "history.csv", "history.jsonl", "figures/loss_curves.png"])
@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_a_folder_in_the_place_of_a_result_is_told_before_the_training(name, tmp_path, array_file):
    run = run_of(array_file, tmp_path / "run")
    (tmp_path / "run" / name).mkdir(parents=True)
    with pytest.raises(DataError, match=rf"{name}: kind: expected a file, found a folder; move it away"):
        execute(run)
    assert run.trainer.progress.step == 0
    assert files_in(tmp_path / "run").keys() <= {".lock"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_a_signal_while_the_results_are_drawn_leaves_a_run_that_can_go_on(number, tmp_path, array_file, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("autoencoders.runs.run.draw", lambda *_, **__: signal.raise_signal(number))
        with pytest.raises(KeyboardInterrupt) as stop:
            execute(run_of(array_file, folder))
    assert not stop.value.args or stop.value.args[0] == number
    assert read_record(folder)["status"] == "interrupted"
    with pytest.raises(FileExistsError, match=r"an unfinished run.*--resume"):
        run_of(array_file, folder)
    execute(resume_run(folder, progress=False, tell=lambda _: None))
    record = read_record(folder)
    assert record["status"] == "finished"
    assert len(record["commands"]) == 2


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_a_model_is_saved_also_where_memory_is_too_short_to_measure_it(tmp_path, array_file, monkeypatch):
    def short(*_, **__):
        raise MemoryError("no memory")

    run = run_of(array_file, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("autoencoders.runs.run.quick_metrics", short)
        with pytest.raises(MemoryError, match="no memory"):
            execute(run)
    images = run.dataset.test_images
    np.testing.assert_array_equal(load(tmp_path).reconstruct(images)[0], run.trainer.model.reconstruct(images)[0])
    execute(resume_run(tmp_path, progress=False, tell=lambda _: None))
    assert read_record(tmp_path)["status"] == "finished"


@pytest.mark.parametrize("damage", ["gone", "of a lost epoch"])
@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_a_run_without_its_best_weights_goes_on(damage, tmp_path, array_file, capsys):
    """A kill can fall between the best weights and the checkpoint."""
    minigrad.use(kernels="plain")
    options = {"epochs": 3, "validation": 4, "patience": 3}
    execute(run_of(array_file, tmp_path / "whole", **options))
    broken = run_of(array_file, tmp_path / "broken", **options)
    broken.trainer.callbacks = [At(broken.trainer.feed.steps + 1, interrupt)]
    with pytest.raises(KeyboardInterrupt):
        execute(broken)
    best = tmp_path / "broken" / "checkpoints" / "best.safetensors"
    best.unlink()
    if damage != "gone":
        save_state(best, {"x": np.zeros(2)}, {"best": {"epoch": 2, "val_loss": 0.0}})
    execute(resume_run(tmp_path / "broken", progress=False, tell=lambda _: None))
    assert "the best weights so far are not there" in capsys.readouterr().err
    assert read_record(tmp_path / "broken")["status"] == "finished"
    if read_record(tmp_path / "whole")["status"] == "finished":
        a, b = (load_state(tmp_path / name / "model.safetensors")[2] for name in ("whole", "broken"))
        assert a == b  # the later epochs are better here, so the best weights are the same


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_a_run_is_resumed_on_another_device_with_its_best_kernels(tmp_path, array_file, cupy_double):
    minigrad.use(kernels="numpy", threads=2)
    run = run_of(array_file, tmp_path / "run")
    run.trainer.callbacks = [At(1, interrupt)]
    with pytest.raises(KeyboardInterrupt):
        execute(run)
    told: list[str] = []
    again = resume_run(tmp_path / "run", device="cuda", progress=False, tell=told.append)
    assert again.trainer.k.describe().startswith("device cuda:0, kernels cuda")
    assert any("not bitwise" in line and "cpu -> cuda:0" in line for line in told)


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    model = compiled()
    model.network.parameters()[0].data[...] = np.nan
    with pytest.raises(DivergedError, match="not finite"):
        model.save(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_bad_data_cost_no_old_run(tmp_path, array_file):
    folder = tmp_path / "run"
    execute(run_of(array_file, folder))
    with pytest.raises(DataError, match="validation"):
        run_of(array_file, folder, overwrite=True, validation=1000)
    assert (folder / "model.safetensors").exists()
    assert steps_of(folder)


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_the_record_of_a_run(tmp_path, array_file):
    run = run_of(array_file, tmp_path / "run", validation=3, seed=4)
    execute(run)
    record = read_record(tmp_path / "run")
    assert record["status"] == "finished"
    assert record["commands"] == ["test"]
    assert record["options"] == asdict(run.trainer.options)
    assert record["data"]["content_hash"] == load_dataset(array_file).content_hash
    assert record["training_seconds"] == pytest.approx(sum(run.trainer.history["seconds"]))
    assert record["test"] == quick_metrics(
        run.trainer.model, run.dataset.test_images, seed=4, train_images=run.dataset.train_images
    )
    assert read_record(tmp_path / "nowhere") == {}
    for text, message in (("{", "cannot be read as JSON"), ("[]", "expected a JSON object, found list; without")):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(DataError, match=message):
            read_record(tmp_path)


def test_a_moved_model_is_noticed_before_the_first_step():
    model = compiled("vae")
    trainer = Trainer(model, pictures(), TrainingOptions(batch_size=BATCH, epochs=1), progress=False)
    model.network.to(dtype="float64")
    with pytest.raises(RuntimeError, match="new optimizer"):
        trainer.run()


def test_a_checkpoint_from_before_there_were_some_options_is_taken(tmp_path):
    trainer = trainer_of("vae", tmp_path, patience=None)
    trainer.run()
    arrays, record, _ = load_checkpoint(tmp_path)
    for name in ("denoise", "binarise", "iw_samples", "augment"):
        del record["options"][name]
    for name in ("classes", "class_names"):
        del record["model"][name]
    model = from_config(record["model"])
    model.compile(record["learning_rate"])
    again = Trainer(model, pictures(), TrainingOptions(**record["options"]), progress=False)
    again.restore(arrays, record)
    assert weights(model) == weights(trainer.model)


@pytest.mark.parametrize("change", [{"seed": 1}, {"batch_size": 3}, {"rate": 0.5}])
def test_a_checkpoint_of_other_options_is_refused(change, tmp_path):
    options = {"batch_size": 2, "epochs": 1, "seed": 0}
    first = compiled("vae")
    Trainer(first, pictures(), TrainingOptions(**options), folder=tmp_path, progress=False).run()
    second = compiled("vae")
    second.compile(change.pop("rate", first.learning_rate))
    trainer = Trainer(second, pictures(), TrainingOptions(**{**options, **change}), progress=False)
    with pytest.raises(DataError, match="made with another"):
        trainer.restore(*load_checkpoint(tmp_path))


@pytest.mark.parametrize("change", [{"beta": 7.0}, {"momentum": 0.3}, {"likelihood": "gaussian"}])
def test_a_checkpoint_of_another_model_of_the_same_shapes_is_refused(change, tmp_path):
    shapes = ((8, 8, 1), (4,), (3,), (2,), 2)
    options = TrainingOptions(batch_size=4, epochs=1)
    models = VAE(*shapes), VAE(*shapes, **change)
    for model in models:
        model.compile(1e-3)
    Trainer(models[0], pictures(), options, folder=tmp_path, progress=False).run()
    with pytest.raises(DataError, match="made with another model"):
        Trainer(models[1], pictures(), options, progress=False).restore(*load_checkpoint(tmp_path))


def test_a_training_does_not_begin_with_weights_that_are_not_finite(tmp_path):
    trainer = trainer_of("vae", tmp_path, patience=None)
    trainer.model.network.parameters()[0].data.flat[0] = np.nan
    with pytest.raises(DivergedError, match=r"cannot begin: encoder_conv_layer_1\.weight is not finite"):
        trainer.run()
    assert not list(tmp_path.rglob("*.safetensors"))
