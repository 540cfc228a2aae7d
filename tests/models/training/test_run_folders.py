"""Run folders: started, resumed, replaced, and what stands in the way."""

import math
import os
import platform
import re
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import trainings
from interruptions import At, Killed, interrupt, interrupted, kill
from trainings import BATCH, digest, execute, files_in, model_of, resume, run_of, steps_of

import minigrad
from autoencoders import VAE, DivergedError, TrainingOptions, load
from autoencoders.data import load_dataset
from autoencoders.evaluation.metrics import quick_metrics
from autoencoders.runs import resume_run, start_run
from autoencoders.runs.record import data_of_run, read_record, trained_on, training_of_run
from autoencoders.runs.replace import check_folder, set_aside
from autoencoders.training import Trainer, load_checkpoint
from autoencoders.training.checkpoints import libraries
from minigrad.serialize import DataError, save_state

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.mark.parametrize("samples", [1, 2])
def test_the_latents_of_a_finished_run_have_the_mean_and_variance_of_the_prior(
    tmp_path, array_file, samples, monkeypatch
):
    """Over the images that it was trained on; not where the loss is another bound, and not in checkpoints."""
    monkeypatch.setattr("autoencoders.runs.run.WORTH_A_SHIFT", 0)
    run = run_of(array_file, tmp_path / "run", validation=10, iw_samples=samples)
    told = execute(run)
    images = run.dataset.train_images[run.trainer.feed.trained]
    last = VAE.load(load_checkpoint(tmp_path / "run")[2])
    for model, moved in ((VAE.load(tmp_path / "run"), samples == 1), (last, False)):
        mu, log_variance = model.encode_distribution(images)
        variance = mu.var(axis=0) + np.exp(log_variance).mean(axis=0)
        assert (np.abs(mu.mean(axis=0)).max() < 1e-3 and np.abs(variance - 1).max() < 1e-3) == moved
    assert any("latents shifted and scaled to the prior" in line for line in told) == (samples == 1)


def test_the_variance_of_a_finished_run_is_the_squared_error_of_its_images(tmp_path, array_file):
    data, options = load_dataset(array_file), TrainingOptions(batch_size=BATCH, epochs=1)
    how = {"learning_rate": 1e-3, "progress": False, "command": "test"}
    model = model_of("vae", likelihood="gaussian-learned")
    told = execute(start_run(model, data, options, tmp_path / "run", **how))
    made = model.reconstruct(data.train_images, sample=True)[0]
    error = ((made - data.train_images / 255) ** 2).mean()
    last = VAE.load(load_checkpoint(tmp_path / "run")[2])
    for saved, fitted in ((VAE.load(tmp_path / "run"), True), (last, False)):
        variance = math.exp(saved.pixel_log_variance.item())
        assert (variance == pytest.approx(error, rel=1e-2)) == fitted
    assert any("variance of the pixels set to the mean squared error" in line for line in told)


# ---- resuming ----


def test_a_run_that_was_interrupted_is_resumed_from_its_folder(tmp_path, array_file):
    minigrad.use(kernels="plain")
    whole = run_of(array_file, tmp_path / "whole")
    assert not whole.resumable
    execute(whole)
    assert whole.resumable  # so a signal after its end is answered with that
    interrupted(run_of(array_file, tmp_path / "broken", At(3, interrupt)))
    assert read_record(tmp_path / "broken")["status"] == "interrupted"
    minigrad.use(kernels="numpy")
    told: list[str] = []
    again = resume(tmp_path / "broken", told)
    assert again.trainer.k.kernels == "plain"  # that of the run
    assert not any("not bitwise" in line for line in told)
    assert "resuming after step 3, in epoch 1 of 2" in told
    assert "kernels plain (as before)" in told[0]
    execute(again)
    assert digest(tmp_path / "whole") == digest(tmp_path / "broken")
    a, b = (read_record(tmp_path / name) for name in ("whole", "broken"))
    for key in ("status", "test", "options", "model", "data", "learning_rate"):
        assert a[key] == b[key]
    told.clear()
    resume(tmp_path / "whole", told, kernels="numpy", threads=2)
    (line,) = (line for line in told if "not bitwise" in line)
    assert "kernels plain -> numpy" in line
    assert "shards" not in line
    assert "threads" not in line
    assert "kernels numpy (asked for)" in told[0]


ON_RESUME = [  # what the run had, what is given, what is asked for
    ({"device": "cpu", "shards": 4}, {}, ("cpu", "plain", 3, "fp32", 4)),
    ({"device": "cpu"}, {"device": "cpu", "kernels": "numpy", "threads": 0}, ("cpu", "numpy", 0, "fp32", None)),
    ({"device": "cpu"}, {"device": "cuda"}, ("cuda", "auto", None, "fp32", None)),
    ({"device": "cuda:0"}, {"device": "cpu"}, ("cpu", "auto", None, "fp32", None)),
    ({"device": "cuda:0", "precision": "tf32"}, {}, ("cuda:0", "plain", 3, "tf32", None)),
    ({"device": "cuda:0", "precision": "tf32"}, {"device": "cuda:1"}, ("cuda:1", "plain", 3, "tf32", None)),
    ({"device": "cuda:0", "precision": "tf32"}, {"precision": "fp32"}, ("cuda:0", "plain", 3, "fp32", None)),
    ({"device": "cuda:1"}, {"device": "cuda"}, ("cuda", "plain", 3, "fp32", None)),
    ({"device": "cpu"}, {"device": "cuda", "precision": "tf32"}, ("cuda", "auto", None, "tf32", None)),
]


@pytest.mark.parametrize(("was", "given", "expected"), ON_RESUME)
def test_what_is_recorded_of_a_device_holds_for_all_of_its_kind(was, given, expected, tmp_path, monkeypatch):
    """Another GPU of the kind goes on with kernels, threads and precision of the run; another kind has its own best."""
    data = {"name": "x", "limit_train": None, "content_hash": ""}
    record = {"environment": {"kernels": "plain", "threads": 3, **was}, "data": data}
    record |= {"learning_rate": 1e-3, "options": {}, "model": {}}
    monkeypatch.setattr("autoencoders.runs.start.load_checkpoint", lambda *_: ({}, record, tmp_path / "step"))
    monkeypatch.setattr(minigrad, "use", mock.Mock(side_effect=Killed))  # no further
    with pytest.raises(Killed):
        resume_run(tmp_path, **given)
    minigrad.use.assert_called_once_with(*expected)


def test_the_data_folder_of_a_run_is_kept_unless_another_is_given(tmp_path, array_file, monkeypatch):
    dataset, folder = load_dataset(array_file), tmp_path / "run"
    options = TrainingOptions(batch_size=BATCH, epochs=1)
    how = {"learning_rate": 1e-2, "data_dir": "here", "progress": False}
    execute(start_run(trainings.model_of(), dataset, options, folder, **how))
    asked = mock.Mock(return_value=dataset)
    monkeypatch.setattr("autoencoders.runs.start.load_dataset", asked)
    for given, expected in ((None, "here"), ("there", "there")):
        told: list[str] = []
        resume(folder, told, data_dir=given)
        assert asked.call_args.args == (dataset.name, expected)
        assert asked.call_args.kwargs["download"] == bool(given)  # never into the recorded folder
    again = "--resume --epochs N goes on, or --init-from"
    assert told[-1].startswith(f"resuming after step 7, all epochs are trained; {again}")


def test_a_checkpoint_that_claims_a_larger_model_than_it_holds_is_refused_before_it_is_built(tmp_path, array_file):
    execute(run_of(array_file, tmp_path / "run", epochs=1))
    arrays, record, path = load_checkpoint(tmp_path / "run")
    record["model"]["latent_space_dim"] = 10**12
    save_state(path, arrays, record)
    with pytest.raises(DataError, match=rf"{path}: model record: .* at least \d+ weights, but the file holds"):
        resume(tmp_path / "run")


def test_the_same_number_of_epochs_may_be_given_again(tmp_path, array_file):
    execute(run_of(array_file, tmp_path, schedule="cosine"))
    assert resume(tmp_path, epochs=2).trainer.options.epochs == 2


@pytest.mark.parametrize("damage", ["gone", "of a lost epoch"])
def test_a_run_without_its_best_weights_goes_on(damage, tmp_path, array_file, capsys):
    """A kill can fall between the best weights and the checkpoint."""
    minigrad.use(kernels="plain")
    options = {"epochs": 3, "validation": 4, "patience": 3}
    execute(run_of(array_file, tmp_path / "whole", **options))
    broken = run_of(array_file, tmp_path / "broken", **options)
    broken.trainer.callbacks = [At(broken.trainer.feed.steps + 1, interrupt)]
    interrupted(broken)
    best = tmp_path / "broken" / "checkpoints" / "best.safetensors"
    best.unlink()
    if damage != "gone":
        save_state(best, {"x": np.zeros(2)}, {"best": {"epoch": 2, "val_loss": 0.0}})
    execute(resume(tmp_path / "broken"))
    assert "the best weights so far are not there" in capsys.readouterr().err
    assert read_record(tmp_path / "broken")["status"] == "finished"
    # the later epochs are better here, so the best weights are the same
    assert digest(tmp_path / "whole") == digest(tmp_path / "broken")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_results_are_drawn_leaves_a_run_that_can_go_on(number, tmp_path, array_file, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("autoencoders.runs.run.draw", lambda *_, **__: signal.raise_signal(number))
        stopped = interrupted(run_of(array_file, folder))
    assert not stopped.args or stopped.args[0] == number
    assert read_record(folder)["status"] == "interrupted"
    with pytest.raises(FileExistsError, match=r"an unfinished run.*--resume"):
        run_of(array_file, folder)
    execute(resume(folder))
    record = read_record(folder)
    assert (record["status"], len(record["commands"])) == ("finished", 2)


def test_a_model_is_saved_also_where_memory_is_too_short_to_measure_it(tmp_path, array_file, monkeypatch):
    run = run_of(array_file, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("autoencoders.runs.run.quick_metrics", mock.Mock(side_effect=MemoryError("no memory")))
        with pytest.raises(MemoryError, match="no memory"):
            execute(run)
    images = run.dataset.test_images
    np.testing.assert_array_equal(load(tmp_path).reconstruct(images)[0], run.trainer.model.reconstruct(images)[0])
    execute(resume(tmp_path))
    assert read_record(tmp_path)["status"] == "finished"


# ---- folders that are not empty ----


def test_folders_with_a_run_are_guarded(tmp_path, array_file):
    folder = tmp_path / "run"
    first = run_of(array_file, folder, At(1, kill))
    assert not folder.exists()  # nothing is written before the run starts
    with pytest.raises(Killed):
        execute(first)
    assert read_record(folder)["status"].startswith("failed")
    interrupted(run_of(array_file, folder, At(2, interrupt)))  # there was no checkpoint yet, so nothing is lost
    with pytest.raises(FileExistsError, match=r"an unfinished run; use --resume to continue it, --finish to make its"):
        run_of(array_file, folder)
    execute(resume(folder))
    with pytest.raises(FileExistsError, match="already holds a finished run; use --overwrite") as error:
        run_of(array_file, folder)
    assert "--resume" not in str(error.value)
    with pytest.raises(DataError, match="validation"):  # costs no old run
        run_of(array_file, folder, overwrite=True, validation=1000)
    assert (folder / "model.safetensors").exists()
    mine = [folder / name for name in ("notes.txt", "figures/fig1.pdf", "report.html/mine.txt")]
    for path in mine:  # what is not the run's stays
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    execute(run_of(array_file, folder, overwrite=True))
    assert [path.read_text() for path in mine] == 3 * ["mine"]
    assert [path.name for path in folder.glob(".*")] == [".lock"]
    assert {"model.safetensors", "run.json", "history.csv", "history.jsonl", "checkpoints"} <= set(os.listdir(folder))


def test_nobody_is_told_to_go_on_with_a_run_that_has_diverged(tmp_path, array_file):
    """It would again."""
    run = run_of(array_file, tmp_path, epochs=3)
    second = run.trainer.feed.steps + 1
    run.trainer.callbacks = [At(second, lambda trainer: trainer.model.network.parameters()[0].data.fill(np.nan))]
    with pytest.raises(DivergedError):
        execute(run)
    assert steps_of(tmp_path)
    with pytest.raises(FileExistsError, match="already holds an unfinished run; use --overwrite to replace it"):
        run_of(array_file, tmp_path)


@pytest.mark.parametrize("name", ["figures/samples.png", "history.csv", "model.safetensors", "run.json"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_the_users_files_under_a_runs_names_are_left_alone(name, overwrite, tmp_path, array_file):
    """No run has made them, so --overwrite does not mean them, either."""
    folder = tmp_path / "run"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_bytes(b'{"mine": 1}')
    with pytest.raises(FileExistsError, match=rf"run holds {name}, which no run has made; move .* another --out"):
        run_of(array_file, folder, overwrite=overwrite)
    assert files_in(folder) == {name: b'{"mine": 1}'}


def test_of_many_files_of_the_user_three_are_named(tmp_path, array_file):
    names = ["evaluation.json", "history.csv", "history.jsonl", "report.html"]
    for count, name in enumerate(names, 1):
        (tmp_path / name).touch()
        with pytest.raises(FileExistsError) as error:
            run_of(array_file, tmp_path)
        told, more = re.fullmatch(r".* holds (.*?)( and 1 more)?, which no run .*", str(error.value)).groups()
        assert len({*told.split(", ")} & {*names}) == told.count(", ") + 1 == min(count, 3)
        assert bool(more) == (count > 3)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        *((name, "folder", f"{name}: kind: expected a file, found a folder; move it away") for name in
          ("model.safetensors", "history.csv", "history.jsonl", "figures/loss_curves.png")),
        *((name, "file", f"{name}: cannot be written") for name in ("checkpoints", "film", "figures")),
        (".lock", "folder", r"\.lock: cannot be written"),
    ],
)  # fmt: skip
def test_what_is_in_the_place_of_a_result_is_told_before_the_training(name, kind, message, tmp_path, array_file):
    run, path = run_of(array_file, tmp_path / "run"), tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.mkdir() if kind == "folder" else path.write_text("mine")
    with pytest.raises(DataError, match=message):
        execute(run)
    assert run.trainer.progress.step == 0
    assert files_in(tmp_path / "run").keys() <= {".lock", name}


# ---- one training at a time ----


def test_what_another_training_did_since_the_start_is_not_lost(tmp_path, array_file):
    folder = tmp_path / "run"
    late, overwriting = run_of(array_file, folder), run_of(array_file, folder, overwrite=True)
    execute(run_of(array_file, folder))
    before = files_in(folder)
    for run in (late, overwriting):
        with pytest.raises(FileExistsError, match="another training has changed this folder"):
            execute(run)
    assert files_in(folder) == before


# ---- replacing a run ----


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("reason", [kill, interrupt, "diverge"], ids=["error", "signal", "divergence"])
def test_an_old_run_comes_back_if_its_replacement_saves_nothing(reason, recorded, tmp_path, array_file, monkeypatch):
    """Also one without its record."""
    folder = tmp_path / "run"
    execute(run_of(array_file, folder))
    if not recorded:
        (folder / "run.json").unlink()
    before = files_in(folder)
    again = run_of(array_file, folder, overwrite=True, seed=5)
    monkeypatch.setattr(Trainer, "save_checkpoint", lambda _: None)
    if reason == "diverge":
        again.trainer.model.network.parameters()[0].data[...] = np.nan
    else:
        again.trainer.callbacks = [At(1, reason)]
    with pytest.raises((Killed, KeyboardInterrupt, DivergedError)):
        execute(again)
    assert files_in(folder) == before


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "signal"])
def test_moving_an_old_run_aside_is_all_or_nothing(error, tmp_path, array_file, monkeypatch):
    """An older one, aside since before, and what is not ours are left alone."""
    folder = tmp_path / "run"
    execute(run_of(array_file, folder))
    execute(run_of(array_file, folder, overwrite=True, seed=5))
    before = files_in(folder)
    third, real, calls = run_of(array_file, folder, overwrite=True, seed=6), Path.replace, []

    def fail(path, target):
        calls.append(path)
        if len(calls) == 2:
            raise error
        return real(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises((DataError, KeyboardInterrupt)) as raised:
            execute(third)
    if isinstance(error, OSError):
        assert str(raised.value) == f"{folder}: the old run cannot be moved aside ({error})"
    assert files_in(folder) == before
    assert [path.name for path in folder.glob("old-*")] == ["old-1"]


def test_a_run_that_is_killed_while_it_moves_an_old_one_aside_loses_nothing(tmp_path, array_file, monkeypatch):
    """The next one moves the rest."""
    execute(run_of(array_file, tmp_path / "run"))
    before = {name: x for name, x in files_in(tmp_path / "run").items() if name != ".lock"}
    real = Path.replace
    for moved in range(len(before)):
        folder = tmp_path / str(moved)
        shutil.copytree(tmp_path / "run", folder)
        left = iter(range(moved))

        def replace(path, target, left=left):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return real(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", replace)
            patch.setattr("autoencoders.runs.replace.put_back", lambda *_: None)  # nobody does after a kill
            with pytest.raises(KeyboardInterrupt):
                set_aside(folder)
        check_folder(folder, overwrite=True)
        set_aside(folder)
        assert {name: x for old in folder.glob("old-*") for name, x in files_in(old).items()} == before


def test_an_old_run_is_kept(tmp_path, array_file):
    folder = tmp_path / "run"
    execute(run_of(array_file, folder))
    before = {name: x for name, x in files_in(folder).items() if name != ".lock"}
    interrupted(run_of(array_file, folder, At(3, interrupt), overwrite=True, seed=5))
    assert files_in(folder / "old-1") == before
    execute(resume(folder))
    assert files_in(folder / "old-1") == before
    told = execute(run_of(array_file, folder, overwrite=True, seed=6))
    assert read_record(folder / "old-2")["options"]["seed"] == 5
    assert read_record(folder)["options"]["seed"] == 6
    assert f"the previous run is in {folder / 'old-2'}" in told


# ---- the record ----


def test_the_record_of_a_run(tmp_path, array_file):
    run = run_of(array_file, tmp_path / "run", validation=3, seed=4)
    execute(run)
    record, data = read_record(tmp_path / "run"), run.dataset
    assert (record["status"], record["commands"]) == ("finished", ["test"])
    assert record["options"] == asdict(run.trainer.options)
    assert (record["data"]["content_hash"], record["data"]["source"]) == (data.content_hash, data.source)
    assert record["training_seconds"] == pytest.approx(sum(run.trainer.history["seconds"]))
    expected = quick_metrics(run.trainer.model, data.test_images, seed=4, train_images=data.train_images)
    assert record["test"] == expected


def test_the_record_tells_when_and_where_a_run_was_computed(tmp_path, array_file):
    minigrad.use(kernels="plain")
    folder, seen = tmp_path / "run", []
    interrupted(run_of(array_file, folder, At(1, lambda _: seen.append(read_record(folder))), At(3, interrupt)))
    assert seen[0]["status"] == "running"
    for kernels, last in (("numpy", 5), ("plain", 0)):
        again = resume(folder, kernels=kernels)
        again.trainer.callbacks = [At(last, interrupt)]
        with suppress(KeyboardInterrupt):
            execute(again)
    record = read_record(folder)
    environment = record["environment"]
    assert [entry["kernels"] for entry in record["earlier_environments"]] == ["plain", "numpy"]
    assert (environment["kernels"], environment["precision"]) == ("plain", "fp32")
    assert (environment["machine"], environment["python"]) == (platform.machine(), platform.python_version())
    assert (environment["numpy"], environment["minigrad"]) == (np.__version__, minigrad.__version__)
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"].lower()
    entry = next(entry.split() for entry in environment["libraries"] if entry.split()[0] in blas)
    assert entry[1][0].isdigit()
    began, ended = (datetime.strptime(record[name][:19], "%Y-%m-%d %H:%M:%S") for name in ("started", "finished"))
    assert began <= ended <= datetime.now() < began + timedelta(hours=1)
    assert record["started"][20:] == time.strftime("%Z")


def test_scipys_blas_is_none_of_what_computes(monkeypatch):
    blas = {"user_api": "blas", "internal_api": "openblas"}
    found = [
        blas | {"version": v, "filepath": f"/site-packages/{n}.libs/x.so"} for n, v in (("numpy", 1), ("scipy", 2))
    ]
    monkeypatch.setattr("threadpoolctl.threadpool_info", lambda: found)
    assert libraries(minigrad.use(kernels="plain")) == ["openblas 1"]


def test_a_record_that_cannot_be_written_does_not_hide_why_a_run_ended(tmp_path, array_file, monkeypatch):
    full = mock.Mock(side_effect=DataError("disk full"))
    fill = At(8, lambda _: monkeypatch.setattr("autoencoders.runs.run.write_json", full))
    with pytest.raises(Killed):
        execute(run_of(array_file, tmp_path / "run", fill, At(9, kill)))
    full.assert_called()


def test_what_a_run_says_of_its_data(tmp_path, array_file):
    folder, dataset = tmp_path / "run", load_dataset(array_file)
    options = TrainingOptions(batch_size=1, epochs=1)
    how = {"learning_rate": 1e-2, "limit_train": 1, "data_dir": "here", "progress": False}
    execute(start_run(trainings.model_of(), dataset, options, folder, **how))
    assert training_of_run(folder) == ((1, options.seed), options)
    for given, expected in (
        ((None, None), (dataset.name, "here")),
        ((None, "there"), (dataset.name, "there")),
        (("other", None), ("other", None)),
        (("other", "there"), ("other", "there")),
    ):
        assert data_of_run(folder, *given) == expected
    assert data_of_run(tmp_path / "nowhere", None, None) == ("auto", None)
    assert trained_on(folder, dataset).tolist() == dataset.limited(1, options.seed).tolist()
    np.save(tmp_path / "others.npy", trainings.pictures(30, seed=9))
    others = load_dataset(tmp_path / "others.npy")
    assert trained_on(folder, others).tolist() == list(range(len(others.train_images)))
