"""The folder of a training: one training at a time, and places that cannot be written."""

from __future__ import annotations

import os
import threading

import pytest
from trainings import BATCH, At, execute, resumed, run_of, steps_of, timeless, trainer_of, weights

import minigrad
from autoencoders.training import Trainer
from autoencoders.training.folder import claim
from minigrad.serialize import DataError

pytestmark = pytest.mark.usefixtures("usual_signals")


def test_what_a_killed_process_left_behind_is_removed(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    left = [tmp_path / ".history.csv.a1b2.part", tmp_path / "checkpoints" / ".step-00000001.safetensors.x_y.part"]
    left += [tmp_path / ".evaluation.json.c3d4.part"]
    mine = [tmp_path / "notes.part", tmp_path / ".hidden"]
    mine += [tmp_path / "data" / ".images.gz.e5f6.part"]
    (tmp_path / "data").mkdir()
    for path in left + mine:
        path.write_text("x")
    trainer_of("ae", tmp_path).run()
    assert [path.exists() for path in left + mine] == [False, False, False, True, True, True]


def test_a_second_training_in_the_same_folder_is_refused(tmp_path):
    """In another thread, as from another process: a lock belongs to the open file."""
    told: list[str] = []

    def other(trainer: Trainer) -> None:
        def train() -> None:
            try:
                trainer_of("ae", tmp_path).run()
            except FileExistsError as error:
                told.append(str(error))

        thread = threading.Thread(target=train)
        thread.start()
        thread.join()

    first = trainer_of("ae", tmp_path, [At(2, other)], save_every=3)
    first.run()
    assert told == [f"{tmp_path}: another training is running in this folder; wait for it or choose another folder"]
    with pytest.raises(FileExistsError, match="already holds checkpoints"):  # it is free again
        trainer_of("ae", tmp_path).run()


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_what_another_training_did_since_the_start_is_not_lost(tmp_path, array_file):
    folder = tmp_path / "run"
    late, overwriting = run_of(array_file, folder), run_of(array_file, folder, overwrite=True)
    execute(run_of(array_file, folder))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for run in (late, overwriting):
        with pytest.raises(FileExistsError, match="another training has changed this folder"):
            execute(run)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_validation_takes_no_more_images_at_a_time_than_a_step(monkeypatch):
    trainer = trainer_of("vae", None, validation=15)
    seen = []
    plain = type(trainer.model).losses

    def losses(self, x, *arguments):
        seen.append(len(x.data))
        return plain(self, x, *arguments)

    monkeypatch.setattr(type(trainer.model), "losses", losses)
    trainer.validate()
    assert max(seen) == BATCH
    assert sum(seen) == 15


def test_no_memory_for_the_validation_loses_no_step(tmp_path):
    expected = trainer_of("vae", tmp_path / "whole", validation=3)
    expected.run()
    trainer = trainer_of("vae", tmp_path / "run", validation=3)

    def validate():
        raise MemoryError("Unable to allocate 1 GiB")

    trainer.validate = validate
    with pytest.raises(minigrad.DeviceError, match=r"in the validation: Unable to allocate 1 GiB"):
        trainer.run()
    assert steps_of(tmp_path / "run") == [6]
    again = resumed(tmp_path / "run")
    again.run()
    assert weights(again.model) == weights(expected.model)
    assert timeless(again.history.rows) == timeless(expected.history.rows)


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_a_run_that_does_not_fit_into_memory_writes_nothing(tmp_path, array_file, monkeypatch):
    monkeypatch.setattr(minigrad.Backend, "free_memory", lambda _: 1000)
    with pytest.raises(minigrad.DeviceError, match="needs about"):
        run_of(array_file, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["checkpoints", "film", "figures"])
@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_a_place_in_the_folder_that_cannot_be_written_is_told_before_the_training(name, tmp_path, array_file):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / name).write_text("mine")
    run = run_of(array_file, folder)
    with pytest.raises(DataError, match=f"^{folder / name}: cannot be written"):
        execute(run)
    assert sorted(os.listdir(folder)) == sorted([".lock", name])


def test_a_lock_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(DataError, match=rf"^{tmp_path}/\.lock: cannot be written"), claim(tmp_path):
        pass
