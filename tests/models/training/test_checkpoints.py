"""Checkpoints: what is in them, and damaged ones."""

from __future__ import annotations

import errno
import json
import math
import os
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from trainings import (
    BATCH,
    At,
    assert_same,
    compiled,
    damage,
    execute,
    files_in,
    interrupt,
    outcome,
    pictures,
    resumed,
    run_of,
    steps_of,
    timeless,
    trainer_of,
    unbroken,
    weights,
)

import minigrad
from autoencoders import TrainingOptions
from autoencoders.conv_autoencoder import from_config
from autoencoders.runs import resume_run
from autoencoders.training import Trainer, load_checkpoint
from minigrad.serialize import DataError, load_state, save_state

pytestmark = pytest.mark.usefixtures("usual_signals")


def test_three_checkpoints_are_kept(tmp_path):
    trainer_of("vae", tmp_path, save_every=2, patience=None).run()
    assert steps_of(tmp_path) == [14, 16, 18]
    assert sorted(os.listdir(tmp_path / "checkpoints")) == [
        "best.safetensors",
        *(f"step-{step:08d}.safetensors" for step in (14, 16, 18)),
    ]
    assert sorted(os.listdir(tmp_path)) == [".lock", "checkpoints", "history.csv", "history.jsonl"]


def test_save_every_counts_steps(tmp_path, monkeypatch):
    for every, expected in ((0, [6, 12]), (4, [4, 6, 8, 12]), (6, [6, 12]), (100, [6, 12])):
        saved: list[str] = []
        with monkeypatch.context() as patch:
            patch.setattr(
                "autoencoders.training.checkpoints.save_state",
                lambda path, *rest, saved=saved: saved.append(path.stem) or save_state(path, *rest),
            )
            trainer_of("plain", tmp_path / str(every), save_every=every, validation=3, epochs=2).run()
        numbers = [int(name[5:]) for name in saved if name != "best"]
        assert numbers == expected


def test_a_checkpoint_records_all_that_a_run_is_made_of(tmp_path):
    trainer = trainer_of("vae", tmp_path, [At(8, interrupt)])
    trainer.data = {"name": "x", "content_hash": "abc"}
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    arrays, record, _ = load_state(tmp_path / "checkpoints" / "step-00000008.safetensors")
    assert set(arrays) == {*weights(trainer.model), "optimizer.mean", "optimizer.variance"}
    assert record["kind"] == "checkpoint"
    assert from_config(record["model"]).config == trainer.model.config
    assert TrainingOptions(**record["options"]) == trainer.options
    assert record["learning_rate"] == 1e-2
    assert record["data"] == trainer.data
    assert {"backend", "kernels", "threads", "device", "python", "numpy", "minigrad"} <= set(record["environment"])
    progress = record["progress"]
    assert (progress["epoch"], progress["batch"], progress["step"], progress["images"]) == (1, 2, 8, 8)
    assert len(progress["rows"]) == 1
    assert progress["best"]["epoch"] == 1
    assert record["progress"] == json.loads(json.dumps(asdict(trainer.progress)))


def test_a_damaged_newest_checkpoint_is_skipped_and_told(tmp_path, restored_backends):
    minigrad.use(kernels="plain")
    expected = unbroken("plain", "plain", tmp_path)
    trainer_of("plain", tmp_path / "run").run()
    folder = tmp_path / "run" / "checkpoints"
    newest, middle, oldest = sorted(folder.iterdir(), reverse=True)
    damage(newest)
    (folder / "step-99999999.safetensors").write_bytes(b"")
    told: list[str] = []
    _, record, _ = load_checkpoint(tmp_path / "run", told.append)
    assert record["progress"]["step"] == int(middle.stem[5:]) == 14
    assert len(told) == 2
    assert "step-99999999" in told[0]
    assert f"{newest}" in told[1]
    assert "damaged" in told[1]
    (folder / "step-99999999.safetensors").unlink()
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
    def unlink(path, missing_ok=False):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    trainer = trainer_of("plain", tmp_path, save_every=1)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        trainer.run()
    assert steps_of(tmp_path) == [*range(1, trainer.progress.step + 1)]


def test_damaged_checkpoints_of_later_steps_push_no_good_one_out(tmp_path, restored_backends):
    minigrad.use(kernels="plain")
    trainer_of("plain", tmp_path, epochs=1).run()
    folder = tmp_path / "checkpoints"
    good = max(folder.iterdir())
    for step in (97, 98, 99):
        (folder / f"step-{step:08d}.safetensors").write_bytes(b"")
    trainer = resumed(tmp_path)
    trainer.save_checkpoint()
    assert load_checkpoint(tmp_path, lambda _: None)[2] == good


def test_the_last_row_of_the_logs_comes_back(tmp_path, restored_backends):
    """A kill can fall between the last checkpoint and the logs."""
    minigrad.use(kernels="plain")
    trainer_of("plain", tmp_path).run()
    logs = [tmp_path / name for name in ("history.csv", "history.jsonl")]
    whole = [path.read_text() for path in logs]
    for path in logs:
        path.unlink()
    resumed(tmp_path).run()
    assert [path.read_text() for path in logs] == whole


def test_other_state_files_are_no_checkpoints(tmp_path):
    model = compiled()
    model.save(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    os.rename(tmp_path / "model.safetensors", tmp_path / "checkpoints" / "step-00000001.safetensors")
    told: list[str] = []
    with pytest.raises(DataError):
        load_checkpoint(tmp_path, told.append)
    assert "not a checkpoint" in told[0]


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    trainer_of("plain", tmp_path, epochs=1).run()
    arrays, record, _ = load_checkpoint(tmp_path)
    other = Trainer(compiled("ae"), pictures(), TrainingOptions(), progress=False)
    with pytest.raises(DataError, match="checkpoint: does not fit"):
        other.restore(arrays, record)
    for wrong in ({}, {"progress": 3}, {"progress": {"strange": 1}}):
        with pytest.raises(DataError, match="checkpoint: does not fit"):
            trainer_of("plain", None).restore(arrays, wrong)


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
    def fail(_):
        raise OSError(28, "No space left on device")

    trainer = trainer_of("plain", tmp_path, [At(10, lambda _: monkeypatch.setattr(os, "fsync", fail))])
    with pytest.raises(DataError, match=r"step-00000014.*No space left"):
        trainer.run()
    monkeypatch.undo()
    assert steps_of(tmp_path) == [7]
    assert len(resumed(tmp_path).run()) == 3


def test_more_epochs_on_resume(tmp_path, restored_backends):
    """A run of 2 epochs that goes on to 3 is one of 3."""
    minigrad.use(kernels="plain")
    expected = unbroken("plain", "plain", tmp_path)
    trainer_of("plain", tmp_path / "run", epochs=2).run()
    trainer = resumed(tmp_path / "run", epochs=3)
    trainer.run()
    assert_same(outcome(trainer), expected)


ODD_PROGRESS = [
    ("epoch", "1"),
    ("epoch", -1),
    ("epoch", True),
    ("epoch", 2),
    ("batch", 99),
    ("batch", 3.0),
    ("step", 0),
    ("step", 6.5),
    ("first_step", -10),
    ("images", -12),
    ("sums", None),
    ("sums", [1.0]),
    ("sums", ["x", "y", "z"]),
    ("sums", [math.nan] * 3),
    ("seconds", None),
    ("rows", [{}]),
    ("rows", {}),
    ("best", {"epoch": 1}),
    ("best", 3),
    ("waited", "x"),
]


@pytest.mark.parametrize(("name", "value"), ODD_PROGRESS, ids=str)
def test_a_place_where_no_run_can_be_is_refused(name, value, tmp_path):
    """A newer version, or somebody, has written it with its SHA-256: the file is whole."""
    trainer = trainer_of("vae", tmp_path, [At(9, interrupt)])
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    arrays, record, path = load_checkpoint(tmp_path)
    assert record["progress"]["batch"] == 3
    resumed(tmp_path)
    record["progress"][name] = value
    with pytest.raises(DataError, match=f"^{path}: does not fit the training.*{name}"):
        trainer_of("vae", tmp_path).restore(arrays, record, path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("learning_rate", "x"),
        ("learning_rate", None),
        ("learning_rate", -1),
        ("learning_rate", 0),
        ("data.name", 3),
        ("data.limit_train", 1.5),
        ("data.limit_train", -3),
        ("data.limit_train", 0),
        ("data.data_dir", 3),
        ("environment.device", 3),
        ("environment.kernels", None),
        ("environment.threads", "x"),
        ("environment.threads", 0),
        ("environment.precision", 32),
    ],
)
@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_a_record_that_cannot_be_is_refused(place, value, tmp_path, array_file):
    execute(run_of(array_file, tmp_path / "run"))
    arrays, record, path = load_checkpoint(tmp_path / "run")
    part, _, name = place.rpartition(".")
    (record[part] if part else record)[name] = value
    save_state(path, arrays, record)
    before = files_in(tmp_path / "run")
    with pytest.raises(DataError, match=rf"^{path}: cannot be resumed.*{part or name}"):
        resume_run(tmp_path / "run", progress=False, tell=lambda _: None)
    assert files_in(tmp_path / "run") == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_in_the_place_of_a_checkpoint_is_skipped(tmp_path):
    trainer_of("vae", tmp_path).run()
    newest = max((tmp_path / "checkpoints").glob("step-*"))
    newest.unlink()
    os.mkfifo(newest)
    told: list[str] = []
    assert load_checkpoint(tmp_path, told.append)[1]["progress"]["step"] == steps_of(tmp_path)[-2]
    assert told == [f"skipped a checkpoint: {newest}: kind: expected a file, found a special file"]


def test_a_checkpoint_is_not_skipped_because_memory_is_short(tmp_path, monkeypatch):
    """An older one would take as much; and there is nothing wrong with this one."""
    trainer_of("vae", tmp_path).run()
    newest = max((tmp_path / "checkpoints").glob("step-*"))

    def no_memory(_):
        raise MemoryError

    monkeypatch.setattr("minigrad.serialize.bytearray", no_memory, raising=False)
    told: list[str] = []
    with pytest.raises(MemoryError, match=rf"^{newest} takes twice its {newest.stat().st_size:,} bytes"):
        load_checkpoint(tmp_path, told.append)
    assert told == []


def test_the_clock_decides_nothing(tmp_path, monkeypatch):
    """It jumps back an hour at every look: the newest checkpoint is that of the highest step, and the bits are those of
    other times."""
    expected = trainer_of("vae", tmp_path / "calm", save_every=2)
    expected.run()
    hours = iter(range(10**6))
    with monkeypatch.context() as patch:
        for name in ("time", "perf_counter", "monotonic"):
            patch.setattr(time, name, lambda: -3600.0 * next(hours))
        trainer = trainer_of("vae", tmp_path / "run", [At(9, interrupt)], save_every=2)
        with pytest.raises(KeyboardInterrupt):
            trainer.run()
        for age, path in enumerate(sorted((tmp_path / "run" / "checkpoints").iterdir())):
            os.utime(path, (1e9 - 3600 * age,) * 2)
        trainer = resumed(tmp_path / "run")
        assert trainer.progress.step == 9
        trainer.run()
    assert weights(trainer.model) == weights(expected.model)
    assert timeless(trainer.history.rows) == timeless(expected.history.rows)
