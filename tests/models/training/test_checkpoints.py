"""Checkpoints: what is in them, and damaged ones."""

import errno
import os
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from interruptions import At, assert_same, damage, interrupt, interrupted, outcome, resumed, unbroken
from trainings import BATCH, compiled, files_in, pictures, resume, run_of, steps_of, trainer_of, weights

import minigrad
from autoencoders import VAE, TrainingOptions
from autoencoders.training import Trainer, load_checkpoint
from minigrad.serialize import DataError, save_state


def test_three_checkpoints_are_kept(tmp_path):
    trainer_of("vae", tmp_path, save_every=2, patience=None).run()
    assert steps_of(tmp_path) == [14, 16, 18]
    assert sorted(os.listdir(tmp_path / "checkpoints")) == [
        "best.safetensors",
        *(f"step-{step:08d}.safetensors" for step in (14, 16, 18)),
    ]
    assert sorted(os.listdir(tmp_path)) == [".lock", "checkpoints", "history.csv", "history.jsonl"]


def test_save_every_counts_steps(tmp_path, monkeypatch):
    monkeypatch.setattr("autoencoders.training.checkpoints.save_state", save := mock.Mock(side_effect=save_state))
    for every, expected in ((0, [6, 12]), (4, [4, 6, 8, 12]), (6, [6, 12]), (100, [6, 12])):
        save.reset_mock()
        trainer_of("plain", tmp_path / str(every), save_every=every, validation=3, epochs=2).run()
        assert [int(call.args[0].stem[5:]) for call in save.call_args_list] == expected


def test_a_damaged_newest_checkpoint_is_skipped_and_told(tmp_path):
    minigrad.use(kernels="plain")
    expected = unbroken("plain", "plain", tmp_path)
    trainer_of("plain", tmp_path / "run").run()
    folder = tmp_path / "run" / "checkpoints"
    newest, middle, oldest = sorted(folder.iterdir(), reverse=True)
    damage(newest)
    (folder / "step-99999999.safetensors").write_bytes(b"")
    compiled().save(tmp_path)
    (tmp_path / "model.safetensors").rename(folder / "step-99999998.safetensors")
    told: list[str] = []
    _, record, _ = load_checkpoint(tmp_path / "run", told.append)
    assert record["progress"]["step"] == int(middle.stem[5:]) == 14
    expected_words = (("step-99999999", "skipped"), ("step-99999998", "not a checkpoint"), (newest, "damaged"))
    for words, line in zip(expected_words, told, strict=True):
        assert all(str(word) in line for word in words)
    for path in folder.glob("step-9*"):
        path.unlink()
    trainer = resumed(tmp_path / "run")
    trainer.run()
    assert_same(outcome(trainer), expected)
    for path in (newest, middle, oldest):
        damage(path)
    none = "no valid checkpoint to resume from; "
    usable = "a model there can still be used, or --overwrite replaces the run"
    with pytest.raises(DataError, match=f"^{tmp_path / 'run'}: {none}{usable}$"):
        load_checkpoint(tmp_path / "run", told.append)
    with pytest.raises(DataError, match=f"^{tmp_path / 'nowhere'}: {none}there is none; .* without --resume$"):
        load_checkpoint(tmp_path / "nowhere")


def test_an_old_checkpoint_that_cannot_be_removed_ends_no_run(tmp_path, monkeypatch):
    trainer = trainer_of("plain", tmp_path, save_every=1)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", mock.Mock(side_effect=PermissionError(errno.EACCES, "Permission denied")))
        trainer.run()
    assert steps_of(tmp_path) == [*range(1, trainer.progress.step + 1)]


def test_damaged_checkpoints_of_later_steps_push_no_good_one_out(tmp_path):
    minigrad.use(kernels="plain")
    trainer_of("plain", tmp_path, epochs=1).run()
    folder = tmp_path / "checkpoints"
    good = max(folder.iterdir())
    for step in (97, 98, 99):
        (folder / f"step-{step:08d}.safetensors").write_bytes(b"")
    trainer = resumed(tmp_path)
    trainer.save_checkpoint()
    assert load_checkpoint(tmp_path, lambda _: None)[2] == good


def test_the_last_row_of_the_logs_comes_back(tmp_path):
    """A kill can fall between the last checkpoint and the logs."""
    minigrad.use(kernels="plain")
    trainer_of("plain", tmp_path).run()
    logs = [tmp_path / name for name in ("history.csv", "history.jsonl")]
    whole = [path.read_text() for path in logs]
    for path in logs:
        path.unlink()
    resumed(tmp_path).run()
    assert [path.read_text() for path in logs] == whole


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1}, {"batch_size": 3}, {"learning_rate": 0.5}, {"momentum": 0.3}, {"beta": 7.0},
        {"likelihood": "gaussian"}, {"latent_space_dim": 3},
    ],
    ids=str,
)  # fmt: skip
def test_a_checkpoint_of_another_training_or_model_is_refused(change, tmp_path):
    def trainer(batch_size=2, seed=0, learning_rate=1e-2, latent_space_dim=2, **model):
        made = VAE((8, 8, 1), (4,), (3,), (2,), latent_space_dim, **model)
        made.compile(learning_rate)
        return Trainer(made, pictures(), TrainingOptions(batch_size, 1, seed), folder=tmp_path, progress=False)

    trainer().run()
    trainer().restore(*load_checkpoint(tmp_path))
    (name,) = change
    what = name if name in ("seed", "batch_size", "learning_rate") else "model"
    with pytest.raises(DataError, match=rf"does not fit the training .*made with another {what}\)"):
        trainer(**change).restore(*load_checkpoint(tmp_path))


@pytest.mark.parametrize("record", [{}, {"progress": 3}, {"progress": {"strange": 1}}], ids=str)
def test_what_is_no_record_of_a_checkpoint_is_refused(record, tmp_path):
    trainer_of("plain", tmp_path, epochs=1).run()
    with pytest.raises(DataError, match="checkpoint: does not fit"):
        trainer_of("plain", None).restore(load_checkpoint(tmp_path)[0], record)


def test_a_checkpoint_from_before_there_were_some_options_is_taken(tmp_path):
    trainer = trainer_of("vae", tmp_path, patience=None)
    trainer.run()
    arrays, record, path = load_checkpoint(tmp_path)
    for name in ("denoise", "binarise", "iw_samples", "augment"):
        del record["options"][name]
    for name in ("classes", "class_names"):
        del record["model"][name]
    save_state(path, arrays, record)
    assert weights(resumed(tmp_path).model) == weights(trainer.model)


@pytest.mark.parametrize("epochs", [0, 2])
def test_a_checkpoint_before_the_first_step_or_after_the_last_can_be_gone_on_from(epochs, tmp_path):
    """A run of 2 epochs that goes on to 3 is one of 3."""
    minigrad.use(kernels="plain")
    trainer = trainer_of("plain", tmp_path / "run", epochs=epochs or 3)
    trainer.run() if epochs else trainer.save_checkpoint()
    again = resumed(tmp_path / "run", epochs=3)
    again.run()
    assert_same(outcome(again), unbroken("plain", "plain", tmp_path))


def test_what_a_killed_process_left_behind_is_removed(tmp_path):
    names = [".history.csv.a1b2.part", "checkpoints/.step-00000001.safetensors.x_y.part", ".evaluation.json.c3d4.part"]
    mine = ["notes.part", ".hidden", "data/.images.gz.e5f6.part"]
    for path in (tmp_path / name for name in names + mine):
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    trainer_of("ae", tmp_path).run()
    assert [(tmp_path / name).exists() for name in names + mine] == [False] * 3 + [True] * 3


def test_a_folder_with_checkpoints_of_another_run_is_refused(tmp_path):
    """Their numbers could be higher: the new ones would be taken for the oldest, and deleted."""
    compiled().train(pictures(), BATCH, 3, folder=tmp_path, progress=False)
    before = steps_of(tmp_path)
    model = compiled()
    with pytest.raises(FileExistsError, match="already holds checkpoints"):
        model.train(pictures(), 26, 1, folder=tmp_path, progress=False)
    assert steps_of(tmp_path) == before
    assert model.optimizer.steps == 0


def test_a_failed_save_keeps_the_checkpoints(tmp_path, monkeypatch):
    full = mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    trainer = trainer_of("plain", tmp_path, [At(10, lambda _: monkeypatch.setattr(os, "fsync", full))])
    with pytest.raises(DataError, match=r"step-00000014.*No space left"):
        trainer.run()
    monkeypatch.undo()
    assert steps_of(tmp_path) == [7]
    assert len(resumed(tmp_path).run()) == 3


ODD = {  # entries of a record, with values that no run writes
    "progress.epoch": ["1", -1, True, 2],
    "progress.batch": [99, 3.0],
    "progress.step": [0, 6.5],
    "progress.first_step": [-10],
    "progress.images": [-12],
    "progress.seconds": [None],
    "progress.waited": ["x"],
    "progress.sums": [None, [1.0], ["x", "y", "z"]],
    "progress.rows": [[{}], {}],
    "progress.best": [{"epoch": 1}, 3],
    "learning_rate": ["x", None, -1, 0],
    "data.limit_train": [1.5, -3, 0],
    "data.name": [3],
    "data.data_dir": [3],
    "environment.threads": ["x", 0],
    "environment.shards": ["x", 0],
    "environment.device": [3],
    "environment.kernels": [None],
    "environment.precision": [32],
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run that was interrupted in its second epoch. Not to be changed."""
    place = tmp_path_factory.mktemp("begun")
    np.save(place / "images.npy", pictures(30))
    interrupted(run_of(place / "images.npy", place / "run", At(9, interrupt), validation=3, patience=2, epochs=3))
    return place / "run"


@pytest.mark.parametrize(("place", "value"), [(place, x) for place, values in ODD.items() for x in values])
def test_a_record_that_cannot_be_is_refused(place, value, tmp_path, begun):
    """A newer version, or somebody, has written it with its SHA-256: the file is whole."""
    shutil.copytree(begun, tmp_path / "run")
    arrays, record, path = load_checkpoint(tmp_path / "run")
    assert record["progress"]["batch"] == 3
    part, _, name = place.rpartition(".")
    (record[part] if part else record)[name] = value
    save_state(path, arrays, record)
    before = files_in(tmp_path / "run")
    told = f"does not fit the training.*{name}" if part == "progress" else f"cannot be resumed.*{part or name}"
    with pytest.raises(DataError, match=f"^{path}: {told}"):
        resume(tmp_path / "run")
    assert files_in(tmp_path / "run") == before


@pytest.mark.parametrize("name", ["encoder_bn_1.gamma", "optimizer.mean"])
@pytest.mark.parametrize("shorter", [True, False])
def test_arrays_that_do_not_fit_are_refused(name, shorter, tmp_path, begun):
    """Too short, or not there."""
    shutil.copytree(begun, tmp_path / "run")
    arrays, record, path = load_checkpoint(tmp_path / "run")
    x = arrays.pop(name)
    save_state(path, {**arrays, name: x[:-1]} if shorter else arrays, record)
    with pytest.raises(DataError, match=f"^{path}: does not fit the training.*{name.removeprefix('optimizer.')}"):
        resume(tmp_path / "run")


def test_a_checkpoint_is_not_skipped_because_memory_is_short(tmp_path, monkeypatch):
    """An older one would take as much; and there is nothing wrong with this one."""
    trainer_of("vae", tmp_path).run()
    newest = max((tmp_path / "checkpoints").glob("step-*"))
    monkeypatch.setattr("minigrad.serialize.bytearray", mock.Mock(side_effect=MemoryError), raising=False)
    told: list[str] = []
    with pytest.raises(MemoryError, match=rf"^{newest} takes twice its {newest.stat().st_size:,} bytes"):
        load_checkpoint(tmp_path, told.append)
    assert told == []
