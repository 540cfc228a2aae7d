"""What a run says."""

from __future__ import annotations

import errno
import os

import pytest
from trainings import execute, run_of, steps_of, trainer_of

import minigrad
from autoencoders import Callback
from autoencoders.runs.record import read_record
from autoencoders.training.checkpoints import libraries
from minigrad.serialize import DataError

pytestmark = pytest.mark.usefixtures("usual_signals")


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_a_finished_run_can_be_resumed(tmp_path, array_file):
    """So a signal after its end is answered with that."""
    run = run_of(array_file, tmp_path / "run")
    assert not run.resumable
    execute(run)
    assert run.resumable


def _closed_terminal(*_, **__):
    raise OSError(errno.EIO, "Input/output error")


class Hangup(Callback):
    """The signal of a closed terminal comes at the end of an epoch."""

    def on_epoch_end(self, trainer):
        trainer.received.append(1)


@pytest.mark.parametrize(("callbacks", "ends"), [([Hangup()], KeyboardInterrupt), ([], OSError)])
def test_a_terminal_that_takes_no_line_any_more_hides_no_signal(callbacks, ends, tmp_path, monkeypatch):
    trainer = trainer_of("ae", tmp_path, callbacks)
    trainer.display.show = True
    monkeypatch.setattr("autoencoders.training.display.print", _closed_terminal, raising=False)
    with pytest.raises(ends):
        trainer.run()
    assert steps_of(tmp_path)


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_a_folder_with_the_name_of_a_file_of_ours_stays(tmp_path, array_file):
    folder = tmp_path / "run"
    execute(run_of(array_file, folder))
    (folder / "report.html").mkdir()
    (folder / "report.html" / "mine.txt").write_text("mine")
    execute(run_of(array_file, folder, overwrite=True, seed=5))
    assert (folder / "report.html" / "mine.txt").read_text() == "mine"


def test_scipys_blas_is_none_of_what_computes(monkeypatch):
    found = [
        {"user_api": "blas", "internal_api": "openblas", "version": "1", "filepath": f"/site-packages/{name}.libs/x.so"}
        for name in ("numpy", "scipy")
    ]
    found[1]["version"] = "2"
    monkeypatch.setattr("threadpoolctl.threadpool_info", lambda: found)
    assert libraries(minigrad.use(kernels="plain")) == ["openblas 1"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_in_the_place_of_a_record_is_refused(tmp_path):
    os.mkfifo(tmp_path / "run.json")
    with pytest.raises(DataError, match=r"run\.json: kind: expected a file, found a special file"):
        read_record(tmp_path)
