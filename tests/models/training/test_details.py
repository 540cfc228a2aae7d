"""Details of trainings and runs that mutants showed to be untested."""

from __future__ import annotations

import json
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from datetime import datetime, timedelta

import numpy as np
import pytest
import tqdm
from trainings import (
    BATCH,
    COUNT,
    At,
    Killed,
    compiled,
    execute,
    files_in,
    interrupt,
    kill,
    model_of,
    pictures,
    resumed,
    run_of,
    steps_of,
    trainer_of,
    weights,
)

import minigrad
from autoencoders import Callback, DivergedError, History, TrainingOptions
from autoencoders.data import load_dataset
from autoencoders.pictures.film import SCATTERED, SHOWN
from autoencoders.pictures.gallery import film_images
from autoencoders.runs import resume_run, start_run
from autoencoders.runs.record import data_of_run, read_record, trained_on, training_of_run
from autoencoders.training.display import progress_bar
from autoencoders.training.folder import claim
from autoencoders.training.history import epoch_line
from autoencoders.training.signals import interrupt as signal_raises
from minigrad.serialize import DataError

pytestmark = pytest.mark.usefixtures("usual_signals")


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_the_record_tells_when_and_where_a_run_was_computed(tmp_path, array_file):
    minigrad.use(kernels="plain")
    folder, seen = tmp_path / "run", []
    run = run_of(array_file, folder)
    run.trainer.callbacks = [At(1, lambda _: seen.append(read_record(folder))), At(3, interrupt)]
    with pytest.raises(KeyboardInterrupt):
        execute(run)
    assert seen[0]["status"] == "running"
    for kernels, stop in (("numpy", 5), ("plain", 0)):
        again = resume_run(folder, kernels=kernels, progress=False, tell=lambda _: None)
        again.trainer.callbacks = [At(stop, interrupt)]
        with suppress(KeyboardInterrupt):
            execute(again)
    record = read_record(folder)
    assert [entry["kernels"] for entry in record["earlier_environments"]] == ["plain", "numpy"]
    assert record["environment"]["kernels"] == "plain"
    assert record["environment"]["precision"] == "fp32"
    assert record["environment"]["machine"] == platform.machine()
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"].lower()
    entry = next(entry.split() for entry in record["environment"]["libraries"] if entry.split()[0] in blas)
    assert entry[1][0].isdigit()
    began, ended = (datetime.strptime(record[name][:19], "%Y-%m-%d %H:%M:%S") for name in ("started", "finished"))
    assert began <= ended <= datetime.now() < began + timedelta(hours=1)
    assert record["started"][20:] == time.strftime("%Z")
    assert record["data"]["source"] == run.dataset.source


@pytest.mark.usefixtures("no_pictures", "restored_backends")
@pytest.mark.parametrize("name", ["figures/samples.png", "history.csv", "report.html", "model.safetensors", "run.json"])
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
        found = told.split(", ")
        assert len(found) == len({*found} & {*names}) == min(count, 3)
        assert bool(more) == (count > 3)


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_no_run_is_replaced_unless_that_is_asked_for(tmp_path, array_file):
    execute(run_of(array_file, tmp_path))
    with pytest.raises(FileExistsError, match="already holds a finished run; use --overwrite to replace it"):
        start_run(model_of("vae"), load_dataset(array_file), TrainingOptions(), tmp_path, learning_rate=1e-2)


@pytest.mark.usefixtures("no_pictures", "restored_backends")
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


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_a_model_without_its_record_comes_back_too(tmp_path, array_file):
    folder = tmp_path / "run"
    execute(run_of(array_file, folder))
    (folder / "run.json").unlink()
    before = files_in(folder)
    run = run_of(array_file, folder, overwrite=True)
    run.trainer.callbacks = [At(1, kill)]
    with pytest.raises(Killed):
        execute(run)
    assert files_in(folder) == before


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_a_record_that_cannot_be_written_does_not_hide_why_a_run_ended(tmp_path, array_file, monkeypatch):
    def full(*_) -> None:
        raise DataError("disk full")

    run = run_of(array_file, tmp_path / "run")
    run.trainer.callbacks = [
        At(8, lambda _: monkeypatch.setattr("autoencoders.runs.run.write_json", full)),
        At(9, kill),
    ]
    with pytest.raises(Killed):
        execute(run)


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_an_old_run_is_not_touched_while_another_training_holds_its_folder(tmp_path, array_file, monkeypatch):
    folder, held, done = tmp_path / "run", threading.Event(), threading.Event()
    execute(run_of(array_file, folder))
    run = run_of(array_file, folder, overwrite=True)

    def hold() -> None:
        with claim(folder):
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(60)
    try:
        before = files_in(folder)
        monkeypatch.setattr("autoencoders.runs.run.set_aside", lambda _: pytest.fail("moved the old run"))
        with pytest.raises(FileExistsError, match="another training is running"):
            execute(run)
        assert files_in(folder) == before
    finally:
        done.set()
        thread.join()


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_what_a_run_says_of_its_data(tmp_path, array_file):
    folder, dataset = tmp_path / "run", load_dataset(array_file)
    options = TrainingOptions(batch_size=1, epochs=1)
    execute(
        start_run(
            model_of(), dataset, options, folder, learning_rate=1e-2, limit_train=1, data_dir="here", progress=False
        )
    )
    assert training_of_run(folder) == ((1, options.seed), options)
    assert data_of_run(folder, None, None) == (dataset.name, "here")
    assert data_of_run(folder, None, "there") == (dataset.name, "there")
    assert data_of_run(folder, "other", None) == ("other", None)
    assert data_of_run(folder, "other", "there") == ("other", "there")
    assert data_of_run(tmp_path / "nowhere", None, None) == ("auto", None)
    assert trained_on(folder, dataset).tolist() == dataset.limited(1, options.seed).tolist()
    np.save(tmp_path / "others.npy", pictures(30, seed=9))
    others = load_dataset(tmp_path / "others.npy")
    assert trained_on(folder, others).tolist() == list(range(len(others.train_images)))
    for name, entry, kind in (("commands", 1, "texts"), ("earlier_environments", "x", "objects")):
        (folder / "run.json").write_text(json.dumps({name: [entry]}))
        with pytest.raises(DataError, match=f"{name}: expected a list of {kind}, found"):
            read_record(folder)


def test_the_film_shows_every_class():
    dataset = load_dataset("fashion-mnist-sample")
    shown, scattered = film_images(dataset, slice(500))
    labels = dataset.train_labels
    for rows, count in ((shown, SHOWN), (scattered, min(SCATTERED, 500))):
        assert len(rows) == len(set(rows.tolist())) == count
        assert max(rows) < 500
    assert set(labels[shown].tolist()) == set(labels[:500].tolist())


def test_one_held_out_image_is_a_count_and_not_a_share():
    kept, out = TrainingOptions(validation=1).split(10)
    assert len(kept) == 9
    assert len(out) == 1


def test_the_bar_of_a_run_that_goes_on_begins_where_it_stands(tmp_path, monkeypatch):
    trainer = trainer_of("plain", tmp_path, [At(9, interrupt)])
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    asked = {}

    class Bar(tqdm.tqdm):
        def __init__(self, **options):
            asked.update(options)
            super().__init__(disable=True)

    monkeypatch.setattr("tqdm.autonotebook.tqdm", Bar)
    again = resumed(tmp_path)
    for again.display.show, disable in ((True, None), (False, True)):
        again.display.open(again.progress)
        again.display.close()
        assert (asked["total"], asked["initial"], asked["unit"]) == (3 * COUNT, COUNT + 2 * BATCH, " images")
        assert asked["disable"] is disable


def test_a_notebook_gets_its_own_bar_and_without_widgets_no_warning(monkeypatch):
    code = """if True:
        import sys, types
        shell = types.SimpleNamespace(config={"IPKernelApp": {}})  # a kernel is played
        sys.modules |= {"IPython": types.SimpleNamespace(get_ipython=lambda: shell), "ipywidgets": None}
        sys.modules["ipykernel.zmqshell"] = sys
        from autoencoders.training.display import progress_bar
        progress_bar(3, " images", show=True)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    disabled = []

    class Bar:
        def __init__(self, **options):
            disabled.append(options["disable"])

    Bar.__module__ = "tqdm.notebook"
    monkeypatch.setattr("tqdm.autonotebook.tqdm", Bar)
    progress_bar(3, " images", show=True)
    progress_bar(3, " images", show=False)
    assert disabled == [False, True]


def test_a_checkpoint_of_step_0_can_be_gone_on_from(tmp_path):
    trainer = trainer_of("plain", tmp_path / "a")
    trainer.save_checkpoint()
    again = resumed(tmp_path / "a")
    again.run()
    whole = trainer_of("plain", tmp_path / "b")
    whole.run()
    assert weights(again.model) == weights(whole.model)


def test_best_weights_that_are_gone_at_the_end_are_told(tmp_path, capsys):
    trainer = trainer_of("ae", tmp_path, patience=1, epochs=1)
    trainer.callbacks = [Gone()]
    trainer.run()
    assert capsys.readouterr().err == "the best weights are lost or damaged; the last ones are kept\n"


class Gone(Callback):
    """Removes the best weights each time that a new epoch has made them."""

    def on_epoch_end(self, trainer):
        track = trainer._track_best

        def gone(row) -> None:
            track(row)
            (trainer.folder / "checkpoints" / "best.safetensors").unlink()

        trainer._track_best = gone


def test_a_history_prints_as_a_table_and_draws_itself():
    history = compiled("vae").train(pictures(), BATCH, 2, validation=3, progress=False)
    names, *rows = [line.split() for line in repr(history).splitlines()]
    assert names == ["epoch", "loss", "reconstruction", "kl", "val_loss", "val_reconstruction", "val_kl"]
    assert [row[0] for row in rows] == ["1", "2"]
    assert float(rows[1][1]) == pytest.approx(history["loss"][1], rel=1e-4)
    assert history._repr_html_().count("<td>") == 3 * len(names)
    drawn = history.plot()
    assert drawn.axes[0].get_ylabel() == "nats per image"
    assert drawn._repr_png_().startswith(b"\x89PNG"), "a notebook shows it"
    many = [line.split()[0] for line in repr(History([{"epoch": i} for i in range(1, 1001)])).splitlines()]
    assert many[:6] + many[-1:] == ["epoch", "1", "2", "3", "...", "984", "1000"]
    assert repr(History()) == "no epochs"


def test_a_line_shows_what_an_epoch_has():
    row = {"epoch": 2, "loss": 0.0123456, "reconstruction": 0.0123456, "images_per_second": 99.6, "seconds": 3.2}
    assert epoch_line(row, 8) == "epoch 2/8  loss 0.012346  3 s"
    row |= {"loss": 1.5, "reconstruction": 1.25, "kl": 0.25, "val_loss": 2.0, "val_kl": 0.125}
    assert epoch_line(row, 8) == "epoch 2/8  loss 1.5 nats (recon 1.25, KL 0.25)  val 2  3 s"
    large = dict.fromkeys(row, 123456.789) | {"epoch": 100, "seconds": 99.0}
    assert epoch_line(large, 100) == "epoch 100/100  loss 123,457 nats (recon 123,457, KL 123,457)  val 123,457  99 s"


@pytest.mark.usefixtures("no_pictures", "restored_backends")
def test_sigterm_ends_a_run_after_its_step_with_a_checkpoint(tmp_path, array_file):
    run = run_of(array_file, tmp_path / "run")
    run.trainer.callbacks = [At(3, lambda _: signal.raise_signal(signal.SIGTERM))]
    signal.signal(signal.SIGTERM, signal_raises)  # as every program does
    try:
        with pytest.raises(KeyboardInterrupt, match=f"^{int(signal.SIGTERM)}$"):
            execute(run)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert steps_of(tmp_path / "run") == [3]
