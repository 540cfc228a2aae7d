"""Run folders: what a training leaves behind, how it goes on after an interruption, and the pictures of a model.

A folder holds model.safetensors, checkpoints/, history.csv, history.jsonl, run.json, figures/ and film/; what
scripts/evaluate.py adds (evaluation.json, report.html); and hidden, .lock, which one training holds, and while a new
run replaces an old one, .replaced-N with the old one.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import itertools
import json
import os
import re
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import minigrad
from minigrad.random import generator
from minigrad.serialize import DataError, numbered, open_file, parse_json, read_file, write_atomically

from .conv_autoencoder import MODEL_FILE, VAE, Autoencoder, folder_of, from_config, models_near
from .data import NAMES, Dataset, load_dataset
from .dataset import MAX_BYTES, Reading, as_data_error
from .evaluation.bounds import latents_of, reconstructions_of, to_unit_range
from .evaluation.diagnosis import fatal
from .evaluation.metrics import quick_figures
from .evaluation.mixture import MIXTURE_FILE, Mixture
from .own_images import read_picture
from .pictures import figures
from .pictures.film import FRAMES, PROGRESS_FILE, SCATTERED, SHOWN, Film
from .seed_files import PARAMETERS_FILE, WEIGHTS_FILE
from .training import (
    CHECKPOINTS,
    FOLDERS,
    STOPS,
    DivergedError,
    History,
    Trainer,
    TrainingOptions,
    check_writable,
    claim,
    environment,
    latest_checkpoint,
    load_checkpoint,
    made_by,
    raise_signals,
)

RECORD_FILE = "run.json"
EVENTS = "tensorboard/events.out.tfevents.*"
RESULT_FILE = "evaluation.json"  # of evaluate.py
RESULTS = (RESULT_FILE, "report.html", "figures/film.gif")
SINGLES = ("figures/samples/*.png", "figures/samples.npz")  # of generator.py
PICTURES = ("loss_curves", "reconstructions", "latent_space", "interpolations", "samples", "manifold", "image")
CLOSE_UPS = ("denoised", "worst", "best", "kl_per_dimension", "traversals", "neighbours")  # of evaluate.py
OWN_FILES = (
    MODEL_FILE,
    MIXTURE_FILE,
    RECORD_FILE,
    "history.csv",
    "history.jsonl",
    CHECKPOINTS,
    "checkpoints/best.safetensors",
    FRAMES,
    *RESULTS,
    *SINGLES,
    PROGRESS_FILE,
    *(f"figures/{name}.png" for name in PICTURES + CLOSE_UPS),
)
MOST_ENCODED, WORTH_A_SHIFT = 10_000, 0.02  # images, and share of the KL, for `VAE.standardize`
MOST_THREADS = 1024  # each takes memory
MOST_CLASSES, MOST_COLUMNS = 50, 12  # of a conditional model, that one picture of samples shows
REPLACED = ".replaced-"  # and a number: where --overwrite keeps the old run until the new one is finished
MOVING = ".moving"  # an old run on its way there or back; what lies here belongs back


class Run:
    """One training in one folder.

    Args:
        trainer: ready to run. dataset: its images. folder: where everything goes.
        command: recorded as what was typed. found: the newest checkpoint there when this run was made ready.
        resumed: whether run.json is to be continued. overwrite: whether a new run may replace one in the folder.
        judged: whether a model that does not work is an error.

    Attributes:
        resumable: whether `execute`, ended by an error or signal, leaves a checkpoint of this run.
        verbose: whether it names every picture.
    """

    def __init__(
        self,
        trainer: Trainer,
        dataset: Dataset,
        folder: Path,
        command: str,
        found: Path | None,
        *,
        resumed: bool = False,
        overwrite: bool = False,
        judged: bool = False,
    ) -> None:
        self.trainer, self.dataset, self.folder = trainer, dataset, folder
        self.resumed, self.overwrite = resumed, overwrite
        self.found, self.resumable, self.verbose = found, resumed, False
        before = read_record(folder) if resumed else {}
        self.record: dict[str, Any] = {
            "started": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
            "judged": judged and not resumed,  # a resumed run goes by what it has recorded
            **before,
            "status": "running",
            "commands": [*before.get("commands", []), command],
            "model": trainer.model.config,
            "options": vars(trainer.options),
            "learning_rate": trainer.peak,
            "data": trainer.data,
            "environment": environment(trainer.k),
        }
        earlier = before.get("environment")
        if isinstance(earlier, dict) and earlier != self.record["environment"]:
            self.record["earlier_environments"] = [*before.get("earlier_environments", []), earlier]

    def execute(self, tell: Callable[[str], None]) -> None:
        """Train to the end, save the model, measure it on the test images and draw it.

        An error or signal leaves what was there before, or a run that can be resumed; run.json says which.

        Raises:
            FileExistsError: another training is running in the folder, or has meanwhile.
        """
        with claim(self.folder):
            if latest_checkpoint(self.folder) != self.found:
                raise FileExistsError(f"{self.folder}: another training has changed this folder meanwhile; start again")
            for name in FOLDERS:
                if (self.folder / name).exists():
                    check_writable(self.folder / name)
            drawn = PROGRESS_FILE, *(f"figures/{name}.png" for name in PICTURES)
            for name in (MODEL_FILE, "history.csv", "history.jsonl", *drawn):
                if (self.folder / name).is_dir():
                    raise DataError(f"{self.folder / name}: kind: expected a file, found a folder; move it away")
            if not self.resumed:
                check_folder(self.folder, self.overwrite)
                with raise_signals():
                    set_aside(self.folder)
            self._execute(tell)

    def _execute(self, tell: Callable[[str], None]) -> None:
        try:
            self._write_record()
            history = self.trainer.run()
            with raise_signals():
                self._finish(history, tell)
        except BaseException as error:
            self.record["status"] = "interrupted" if isinstance(error, KeyboardInterrupt) else f"failed: {error}"
            self.resumable = latest_checkpoint(self.folder) is not None
            if self.folder.is_dir() and (self.resumable or not replaced_runs(self.folder)):
                with contextlib.suppress(DataError):
                    self._write_record()
            bring_back(self.folder)
            raise
        self.resumable = True
        for replaced in replaced_runs(self.folder).values():
            _remove(replaced)

    def _finish(self, history: History, tell: Callable[[str], None]) -> None:
        model, seed = self.trainer.model, self.trainer.options.seed
        self.record["training_seconds"] = sum(history["seconds"])
        p = self.trainer.progress
        self.record["training"] = {"learning_rate": self.trainer.given_rate, "epochs": p.epoch, "steps": p.step}
        self._standardize(tell)
        images, labels = self.dataset.test_images, self.dataset.test_labels
        try:  # first, because a model that gives numbers that are not finite is not saved
            self.record["test"] = quick_figures(
                model, images, seed, labels=labels, train_images=self.dataset.train_images
            )
        except MemoryError:
            model.save(self.folder)
            raise
        model.save(self.folder)
        tell(f"saved {self.folder / MODEL_FILE}")
        if self.resumed and (self.folder / RESULT_FILE).exists():
            tell(f"{RESULT_FILE} and report.html there are of the model before")
        pictures = {"loss_curves": figures.loss_curves(history.rows, unit=model.unit)}
        pictures |= draw(model, self.dataset, seed=seed, count=48)
        tell_pictures(save_pictures(pictures, self.folder / "figures"), tell, self.verbose)
        self.record.update(status="finished", finished=time.strftime("%Y-%m-%d %H:%M:%S %Z"))
        found = fatal({**self.record["test"], "model": model.config, "training": self.record["training"]})
        if self.record["judged"] and found:
            fault = found[0]
            more = fault["option"] if self.trainer.trained_enough else "--resume, which trains on"
            again = "" if more.startswith("--resume") else ", with another --out or --overwrite"
            raise DivergedError(f"the model does not work: {fault['finding']} ({fault['why']}); try {more}{again}")
        self._write_record()

    def _standardize(self, tell: Callable[[str], None]) -> None:
        """Move the latents of a VAE onto the prior, where the training has left them far from it."""
        trainer, model = self.trainer, self.trainer.model
        if not isinstance(model, VAE) or trainer.options.iw_samples > 1:  # whose bound has another optimum
            return
        rows = trainer.k.from_host(trainer.trained[:: -(-len(trainer.trained) // MOST_ENCODED)])
        labels = None if trainer.labels is None else trainer.k.to_host(trainer.labels[rows]).argmax(axis=1)
        gain = model.standardize(trainer.k.to_host(trainer.images[rows]), labels=labels, least=WORTH_A_SHIFT)
        if gain:
            tell(f"latents shifted and scaled to the prior: the KL falls by {gain:.2g} nats")

    def _write_record(self) -> None:
        write_json(self.folder / RECORD_FILE, self.record)


def own_files(folder: Path) -> list[Path]:
    """The files of a run in a folder, whatever else it holds; none if there is no run."""
    return _own_names(folder) if _holds_model(folder) or (folder / RECORD_FILE).exists() else []


def _own_names(folder: Path) -> list[Path]:
    """The files that have the name of a run's file; none that a link leads to."""
    names = [x for x in OWN_FILES if not any((folder / place).is_symlink() for place in list(Path(x).parents)[:-1])]
    found = [numbered(folder, name) if "*" in name else [folder / name] for name in names]
    found.append([] if (folder / EVENTS).parent.is_symlink() else sorted(folder.glob(EVENTS)))
    return [path for paths in found for path in paths if path.is_file()]


def _holds_model(folder: Path) -> bool:
    """Whether there is something that would be lost: a model or a checkpoint."""
    return (folder / MODEL_FILE).exists() or latest_checkpoint(folder) is not None


def check_folder(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that holds a model or a checkpoint, unless it may be overwritten; and one where a file that is
    not of a run has the name of a run's file, because nobody has allowed to overwrite that.

    Raises:
        FileExistsError: it does. DataError: run.json, which says what lies there, cannot be read.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: cannot be written: it is no folder; use another --out")
    if latest_checkpoint(folder) is None:
        check_foreign(folder, _own_names(folder), "use another --out")
    if overwrite or not _holds_model(folder):
        return
    status = str(read_record(folder).get("status"))
    finished = status == "finished"
    broken = ("diverged" in status or "does not work" in status) and "--resume" not in status  # it would be again
    resumable = latest_checkpoint(folder) and not finished and not broken
    advice = "--resume to go on with it, --finish to make its model now, " if resumable else ""
    raise FileExistsError(
        f"{folder} already holds {'a finished' if finished else 'an unfinished'} run; "
        f"use {advice}--overwrite to replace it, or another --out; --init-from trains its model on"
    )


def check_foreign(folder: Path, paths: list[Path], advice: str) -> None:
    """Refuse to overwrite those of the paths that exist in a folder, unless a run has made it.

    Raises:
        FileExistsError: one does. DataError: run.json cannot be read.
    """
    names = [path.relative_to(folder).as_posix() for path in paths if os.path.lexists(path)]
    if names and read_record(folder).get("status") is None:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise FileExistsError(
            f"{folder} holds {', '.join(names[:3])}{more}, but no run that made them; move them away, or {advice}"
        )


def check_results(folder: Path, names: tuple[str, ...]) -> None:
    """Refuse to overwrite files of these names that neither a run nor evaluate.py has made.

    Raises:
        FileExistsError: there are some. DataError: run.json cannot be read.
    """
    with contextlib.suppress(DataError):
        if "model_sha256" in read_record(folder, RESULT_FILE):
            return
    check_foreign(folder, [folder / name for name in names], "use another --out or --overwrite")


def replaced_runs(folder: Path) -> dict[int, Path]:
    """Where old runs lie, by their numbers, of which the last one has the highest: clocks jump.

    Raises:
        DataError: something there, or on its way, is none: what a link leads to is not ours to move or remove.
    """
    found = numbered(folder, f"{REPLACED}*")
    for place in (*found, folder / MOVING):
        links = [path for path in (place, *(place / name for name in FOLDERS)) if path.is_symlink()]
        if links or (place.exists() and not place.is_dir()):
            raise DataError(f"{(*links, place)[0]}: expected a folder of an old run, found something else; remove it")
    return {int(path.name.removeprefix(REPLACED)): path for path in found}


def set_aside(folder: Path) -> None:
    """Move the files of a run into a hidden folder beside them; all or none.

    Raises:
        DataError: they cannot be moved.
    """
    files = own_files(folder)
    if not files:
        return
    number = max(replaced_runs(folder), default=0) + 1
    try:
        (folder / MOVING).mkdir()
        for path in files:
            _move(path, folder, folder / MOVING)
        (folder / MOVING).rename(folder / f"{REPLACED}{number}")
    except BaseException as error:
        bring_back(folder)
        if isinstance(error, OSError):
            raise DataError(f"{folder}: the old run cannot be moved aside ({error})") from error
        raise


def bring_back(folder: Path) -> bool:
    """Put an old run back where it was half moved, or where the run that should replace it has no checkpoint yet;
    whether there was one.

    What cannot be moved now stays where it is until the next start.
    """
    files: list[Path] = []
    with contextlib.suppress(OSError):
        replaced = replaced_runs(folder)
        if replaced and not ((folder / MOVING).exists() or _holds_model(folder)):
            for path in own_files(folder):
                path.unlink()
            replaced[max(replaced)].rename(folder / MOVING)
        files = _own_names(folder / MOVING)
        for path in files:
            _move(path, folder / MOVING, folder)
        _remove(folder / MOVING)
    return bool(files)


def _remove(folder: Path) -> None:
    """Remove an old run, as far as that can be done, and nothing else that somebody has put there."""
    for path in _own_names(folder):
        with contextlib.suppress(OSError):
            path.unlink()
    for name in (*FOLDERS, "."):
        with contextlib.suppress(OSError):
            (folder / name).rmdir()


def _move(path: Path, folder: Path, other: Path) -> None:
    """Move a file from one folder, or a folder in it, to the same place in another one."""
    target = other / path.relative_to(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    path.replace(target)


def recover(folder: Path, tell: Callable[[str], None] = lambda _: None) -> None:
    """Bring an old run back where a kill has hit the one that should replace it; tell hears of that.

    Raises:
        FileExistsError: another training is running there. DataError: nobody may look into the folder.
    """
    if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
        raise DataError(f"{folder}: cannot be read: {os.strerror(errno.EACCES)}")
    if replaced_runs(folder) or (folder / MOVING).exists():
        with claim(folder):
            if bring_back(folder):
                tell("the run that was to replace this one ended before its first checkpoint; the old one is back")


def start_run(
    model: Autoencoder,
    dataset: Dataset,
    options: TrainingOptions,
    folder: Path,
    *,
    learning_rate: float,
    limit_train: int | None = None,
    data_dir: str | None = None,
    overwrite: bool = False,
    init_from: Path | None = None,
    command: str = "",
    progress: bool = True,
    judged: bool = False,
) -> Run:
    """A new run in a folder that holds none, or whose run may be overwritten. init_from: the file of a model that was
    trained before, for the record.

    Raises:
        FileExistsError: the folder holds a run and overwrite is False, or another training is running there.
        DataError: data or folder cannot be used.
    """
    recover(folder)
    check_folder(folder, overwrite)
    check_fit(model, dataset)
    found = latest_checkpoint(folder)
    model.compile(learning_rate)
    data = {
        "name": dataset.name,
        "source": dataset.source,
        "content_hash": dataset.content_hash,
        "limit_train": limit_train,
        "limit_seed": options.seed,
        "data_dir": data_dir,
        **vars(dataset.reading),
    }
    trainer = _trainer(model, dataset, options, folder, data, progress)
    trainer.check_memory()  # before anything is written
    run = Run(trainer, dataset, folder, command, found, overwrite=overwrite, judged=judged)
    if init_from:
        before = {"file": str(init_from.absolute()), "sha256": model_hash(init_from)}
        run.record["init_from"] = {**before, "trained_steps": model.trained_steps}
    return run


def resume_run(
    folder: Path,
    *,
    device: str | None = None,
    kernels: str | None = None,
    threads: int | None = None,
    precision: str | None = None,
    epochs: int | None = None,
    dataset: str | None = None,
    data_dir: str | None = None,
    finish: bool = False,
    command: str = "",
    progress: bool = True,
    tell: Callable[[str], None] = print,
    warn: Callable[[str], None] | None = None,
) -> Run:
    """The run of a folder, ready to go on from its newest valid checkpoint, with the options recorded there.

    Args:
        device, kernels, threads, precision: others than those recorded; the result is then not bitwise that of an
            unbroken run.
        dataset: where the run's own images are now.
        data_dir: another one than that recorded, into which nothing is downloaded.
        epochs: another number than recorded, not below that of the epochs that are trained.
        finish: train no further, and make model and pictures of what is trained.
        tell: hears what is done. warn: hears of checkpoints that were skipped, and why the result will not be that of
            an unbroken run; None: tell does.
    Raises:
        DataError: no valid checkpoint, or the data are not those of the run.
        FileExistsError: another training is running there. ValueError: epochs cannot be changed so.
    """
    warn = warn or tell
    recover(folder, warn)
    found = latest_checkpoint(folder)
    try:
        arrays, record, path = load_checkpoint(folder, warn)
    except DataError as error:
        if os.path.lexists(folder / FOLDERS[0]):
            raise
        only = f"only a model; {_train_on(folder, 'N')}" if (folder / MODEL_FILE).exists() else models_near(folder)
        raise DataError(f"{folder}: no valid checkpoint to resume from; {only}") from error
    try:
        was = {"precision": "fp32", **record["environment"]}  # older runs had no other
        data, learning_rate = record["data"], record["learning_rate"]
        options = TrainingOptions(**record["options"])
        name, reading, _ = data["name"], Reading.recorded(data), _limit_of(data)
        if not (isinstance(learning_rate, float | int) and learning_rate > 0):
            raise ValueError(f"learning_rate is {learning_rate!r}")
        named = name, data["content_hash"], data.get("data_dir") or ""
        if not all(isinstance(text, str) for text in named):
            raise ValueError(f"data is {data!r}")
        texts = all(isinstance(was[key], str) for key in ("device", "kernels", "precision"))
        if not (texts and isinstance(was["threads"], int) and 0 < was["threads"] <= MOST_THREADS):
            raise ValueError(f"environment is {was!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: cannot be resumed{made_by(record)} ({error})") from error
    if device is None or device.partition(":")[0] == was["device"].partition(":")[0]:
        kernels, threads = kernels or was["kernels"], was["threads"] if threads is None else threads
        precision = precision or was["precision"]
    backend = minigrad.use(device or was["device"], kernels or "auto", threads, precision or "fp32")
    tell(backend.describe())
    now = environment(backend)
    changed = [f"{key} {was.get(key)} -> {now[key]}" for key in now if key != "backend" and now[key] != was.get(key)]
    if changed:
        warn(f"not bitwise what an unbroken run would give, because these changed: {', '.join(changed)}")
    if epochs is not None and epochs != options.epochs:
        if options.schedule != "constant":
            left = epochs - options.epochs
            raise ValueError(
                f"epochs cannot change in a resumed run: its {options.schedule} schedule ends with epoch "
                f"{options.epochs}; {_train_on(folder, left) if left > 0 else '--finish makes the model now'}"
            )
        options = replace(options, epochs=epochs)
    place = data_dir or data.get("data_dir")
    if dataset:
        name = str(Path(dataset).expanduser().absolute())
    try:
        images = load_dataset(name, place, **vars(reading), download=place == data_dir, progress=progress)
    except DataError as error:
        moved = "" if name in NAMES else "; if they were moved, --dataset names the new place"
        raise DataError(f"{error}{moved}") from error
    images = images.as_recorded(data.get("content_hash"), "image_size" not in data)
    tell(images.source)
    if images.content_hash != data.get("content_hash"):
        raise DataError(
            f"{name}: not the data of this run (SHA-256 {images.content_hash}, recorded {data.get('content_hash')}); "
            "put those back where they were, or name their place with --dataset"
        )
    try:
        model = from_config(record.get("model", {}), arrays)
        model.compile(learning_rate)
        trainer = _trainer(model, images, options, folder, {**data, "name": name}, progress)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    trainer.restore(arrays, record, path)
    at = trainer.progress
    if epochs is not None and at.epoch + bool(at.batch) > epochs:
        raise ValueError(f"epochs is {epochs} but the run stands {at.place}; --finish makes the model now")
    if trainer.trained_enough:
        more = "--resume --epochs N goes on, or " if options.schedule == "constant" else ""
        last = "all epochs are trained" if at.epoch >= options.epochs else f"--patience has ended it {at.place}"
        where = f"{last}; {more}{_train_on(folder, options.epochs)}"
    else:
        where = f"{at.place if finish else f'in epoch {at.epoch + 1}'} of {options.epochs}"
    tell(f"{'finishing' if finish else 'resuming'} after step {at.step}, {where}")
    if finish:
        trainer.stop()
    return Run(trainer, images, folder, command, found, resumed=True)


def _train_on(folder: Path, epochs: object) -> str:
    """The options that train the model of a run on."""
    new = next(name for i in itertools.count(2) if not os.path.lexists(name := f"{folder}-{i}"))
    return f"{shlex.join(['--init-from', str(folder), '--out', new, '--epochs', str(epochs)])} trains its model on"


def _trainer(
    model: Autoencoder,
    dataset: Dataset,
    options: TrainingOptions,
    folder: Path,
    data: dict[str, Any],
    progress: bool,
) -> Trainer:
    """The trainer of a run, filmed, and ended by the signals of STOPS."""
    rows = dataset.limited(*_limit_of(data))
    images, labels = dataset.train_images, dataset.train_labels
    return Trainer(
        model,
        images[rows],
        options,
        labels=None if labels is None else labels[rows],
        folder=folder,
        callbacks=[Film(*((images[i], None if labels is None else labels[i]) for i in film_images(dataset, rows)))],
        progress=progress,
        data=data,
        signals=STOPS,
    )


def film_images(dataset: Dataset, rows: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training images that the film of a run on these rows shows, and of those that it scatters."""
    labels = None if dataset.train_labels is None else dataset.train_labels[rows]
    used = np.arange(len(dataset.train_images))[rows]
    return used[pick_images(labels, SHOWN, len(used), 0)], used[pick_images(labels, SCATTERED, len(used), 1)]


def _limit_of(data: dict[str, Any]) -> tuple[int | None, int | None]:
    """(limit, seed) for `Dataset.limited` from what a run has recorded of its data.

    Raises:
        ValueError: it holds something else.
    """
    limit, seed = data.get("limit_train"), data.get("limit_seed")
    for name, value, least in (("limit_train", limit, 1), ("limit_seed", seed, 0)):
        if value is not None and not (type(value) is int and value >= least):
            raise ValueError(f"data.{name} is {value!r}")
    return limit, seed


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a record as a JSON file, whole or not at all."""
    write_atomically(path, (json.dumps(record, indent=2) + "\n").encode())


def read_record(folder: Path, name: str = RECORD_FILE) -> dict[str, Any]:
    """run.json of a folder, or another such file; empty where there is none.

    Raises:
        DataError: it is not JSON, or not the record of a run.
    """
    path = folder / name
    if not os.path.lexists(path):
        return {}
    hint = "; remove that file, and the defaults hold"
    content = read_file(path, folder)
    try:
        record = parse_json(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}){hint}") from error
    if not isinstance(record, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(record).__name__}{hint}")
    for field, kind, what in (("commands", str, "texts"), ("earlier_environments", dict, "objects")):
        found = record.get(field, [])
        if not isinstance(found, list) or not all(isinstance(entry, kind) for entry in found):
            raise DataError(f"{path}: {field}: expected a list of {what}, found {found!r}{hint}")
    data = record.get("data", {})
    named = isinstance(data, dict) and all(isinstance(data.get(x), str | None) for x in ("name", "data_dir"))
    if not named or not isinstance(record.get("options", {}), dict):
        raise DataError(f"{path}: data or options: expected objects, with the name and folder of data as texts{hint}")
    training = record.get("training", {})
    if not isinstance(training, dict) or not all(type(x) in (int, float) for x in training.values()):
        raise DataError(f"{path}: training: expected an object of numbers, found {training!r}{hint}")
    return record


def data_of_run(
    folder: Path, dataset: str | None, data_dir: str | None, tell: Callable[[str], None] = lambda _: None
) -> tuple[str, str | None]:
    """Name and folder of the data to use with the model of a run: what is given, otherwise what the run used. tell
    hears where nothing says what that was.

    Raises:
        DataError: run.json cannot be read.
    """
    used = read_record(folder).get("data", {})
    name, place = used.get("name"), used.get("data_dir")
    if not (dataset or name):
        tell(f"{folder / RECORD_FILE} does not say what the model was trained on; --dataset names other images")
    return dataset or name or "auto", data_dir or (None if dataset else place)


def check_fit(model: Autoencoder, dataset: Dataset) -> None:
    """Raise DataError, which names the data set, unless the model can take its images and labels."""
    try:
        for images, labels in (
            (dataset.train_images, dataset.train_labels),
            (dataset.test_images, dataset.test_labels),
        ):
            model.check_images(images)
            model.one_hot(labels, len(images))
    except DataError as error:
        raise DataError(f"{dataset.name}: does not fit the model: {error}") from error


def training_of_run(folder: Path) -> tuple[tuple[int | None, int | None], TrainingOptions]:
    """(which training images a run used, for `Dataset.limited`; how it was trained, the defaults if nothing says so).

    Raises:
        DataError: run.json holds something else there.
    """
    record = read_record(folder)
    try:
        return _limit_of(record.get("data", {})), TrainingOptions(**record.get("options", {}))
    except (TypeError, ValueError) as error:
        raise DataError(f"{folder / RECORD_FILE}: options or data: {error}") from error


def model_hash(source: Path) -> str:
    """SHA-256 of the file that `autoencoders.load` reads, or of the seed's two files one after the other."""
    paths = [source.with_name(PARAMETERS_FILE), source] if source.name == WEIGHTS_FILE else [source]
    digest = hashlib.sha256()
    for path in [path for path in paths if path.is_file()]:
        with open_file(path, folder_of(source)) as (file, _):
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def has_used(folder: Path, dataset: Dataset) -> bool:
    """Whether these are the data of the run in a folder.

    Raises:
        DataError: run.json cannot be read.
    """
    return read_record(folder).get("data", {}).get("content_hash") == dataset.content_hash


def trained_on(folder: Path, dataset: Dataset) -> np.ndarray:
    """Indices of the training images whose losses the run in a folder went down; all if it used other data.

    Raises:
        DataError: run.json holds something else there.
    """
    limit, options = training_of_run(folder)
    rows = np.arange(len(dataset.train_images))
    if not has_used(folder, dataset):
        return rows
    used = rows[dataset.limited(*limit)]
    try:
        return used[options.split(len(used))[0]]
    except DataError as error:
        raise DataError(f"{folder / RECORD_FILE}: {error}") from error


def pick_images(labels: np.ndarray | None, count: int, total: int, seed: int) -> np.ndarray:
    """Indices of `count` different random images: as many of each class as possible, ordered by class."""
    rng = generator(seed, "pick")
    if labels is None:
        return np.sort(rng.permutation(total)[:count])
    shuffled = rng.permutation(total)
    seen: dict[int, int] = {}
    rank = np.empty(total, int)  # how many of its class come before an image in the shuffle
    for index in shuffled:
        label = int(labels[index])
        rank[index] = seen.get(label, 0)
        seen[label] = rank[index] + 1
    chosen = sorted(shuffled, key=lambda index: rank[index])[:count]
    return np.array(sorted(chosen, key=lambda index: (labels[index], rank[index])))


def draw(
    model: Autoencoder,
    dataset: Dataset | None,
    *,
    seed: int = 0,
    count: int = 48,
    label: int | None = None,
    mixture: Mixture | None = None,
) -> dict[str, Any]:
    """Pictures of what a model has learnt, by name: reconstructions, interpolations and latent space of the test
    images, if there is a data set, and for a VAE samples of the prior and the manifold (two latent dimensions; not of a
    conditional model).

    A conditional model's samples are of the class `label`, or some of every class from the same latents. A plain
    autoencoder's come from a mixture, where one is given.

    Raises:
        DataError: the images do not fit the model. DivergedError: it gives numbers that are not finite.
    """
    pictures = {} if dataset is None else _draw_data(model, dataset, seed)
    if isinstance(model, VAE) or mixture is not None:
        classes = range(model.classes)[:MOST_CLASSES] if label is None else [label]
        rows = columns = 0
        if len(classes) > 1 and mixture is None:  # one or more full rows of each class
            each = -(-count // len(classes))
            rows = -(-each // MOST_COLUMNS)
            columns = -(-each // rows)
            count = len(classes) * rows * columns
        new, _ = new_images(model, count, seed, classes, mixture)
        pictures["samples"] = figures.samples(new, **_caption(model, classes, rows, columns, mixture))
    if isinstance(model, VAE) and model.latent_space_dim == 2 and not model.classes:
        pictures["manifold"] = figures.manifold_grid(model.decode(figures.manifold_points()))
    return pictures


def _draw_data(model: Autoencoder, dataset: Dataset, seed: int) -> dict[str, Any]:
    """The pictures that need images."""
    images, labels, names = dataset.test_images, dataset.test_labels, dataset.class_names
    chosen = pick_images(labels, 20, len(images), seed)
    chosen_labels = None if labels is None else labels[chosen]
    pictures = {
        "reconstructions": _draw_pairs(model, images[chosen], chosen_labels, chosen_labels, names),
        "latent_space": figures.latent_scatter(latents_of(model, images, labels), labels, names),
    }
    pairs = pick_images(labels, 16, len(images), seed + 1)
    half = len(pairs) // 2
    if half:
        start, end = pairs[:half], pairs[half : 2 * half]
        both = (None, None) if labels is None else (labels[start], labels[end])
        rows = model.interpolate(images[start], images[end], 10, labels=both)
        pictures["interpolations"] = figures.interpolations(rows)
    return pictures


def draw_files(model: Autoencoder, paths: list[Path], label: int | None, tell: Callable[[str], None]) -> dict[str, Any]:
    """Picture files, brought to the size and colour of the model's images, and their reconstructions; tell hears what
    was done to the files. label: the class of them all, which a conditional model needs.

    Raises:
        DataError: a file cannot be read. DivergedError: the model gives numbers that are not finite.
    """
    images = []
    for path in paths:
        with as_data_error(path):
            pixels, done = read_picture(path, read_file(path.expanduser(), most=MAX_BYTES), reading_for(model))
        if done:
            tell(f"{path}: {', '.join(re.sub('( in)? ?{} of them ', ' ', what).strip() for what in done)}")
        images.append(pixels)
    labels = None if label is None else np.full(len(paths), label)
    names = [path.name for path in paths]
    return {"image": _draw_pairs(model, model.check_images(np.stack(images)), labels, np.arange(len(paths)), names)}


def reading_for(model: Autoencoder) -> Reading:
    """How pictures are read to fit a model."""
    height, width, channels = model.input_shape
    return Reading((height, width), {1: True, 3: False}.get(channels))


def _draw_pairs(
    model: Autoencoder, images: np.ndarray, labels: np.ndarray | None, numbers: np.ndarray | None, names: Sequence[str]
) -> Any:
    """Images and their reconstructions; above each image the name of its number, if there are numbers."""
    reconstructed = reconstructions_of(model, images, labels)
    errors = ((reconstructed - to_unit_range(images)) ** 2).mean(axis=(1, 2, 3))
    what = "mean squared error per pixel"
    return figures.reconstructions(images, reconstructed, numbers, names, errors, error_name=what)


def _caption(
    model: Autoencoder, classes: Sequence[int], rows: int, columns: int, mixture: Mixture | None
) -> dict[str, Any]:
    """What `figures.samples` is told of new images; rows and columns are those of each of several classes."""
    if mixture is not None:
        return {"title": f"Samples from a mixture of {len(mixture.weights)} Gaussians fitted to the latents"}
    if not model.classes:
        return {}
    shown = [model.class_names[i] if model.class_names else str(i) for i in classes]
    if len(shown) == 1:
        return {"title": f"Samples of the class {shown[0]}"}
    which = "every class" if len(shown) == model.classes else f"the first {len(shown)} of {model.classes} classes"
    if columns == 1:  # rows of one image would leave most of the picture white
        return {"title": f"Samples of {which}; all from one latent", "names": shown}
    row_names = [name for first in shown for name in (first, *[""] * (rows - 1))]
    return {"columns": columns, "title": f"Samples of {which}, each from the same latents", "row_names": row_names}


def new_images(
    model: Autoencoder, count: int, seed: int = 0, classes: Sequence[int] = (), mixture: Mixture | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """(new images from a VAE's prior or a mixture, their labels). Of a conditional model they are of these classes, one
    after the other, rounded up to as many of each, from the same latents."""
    if mixture is not None:
        return model.decode(mixture.sample(count, seed)), None
    assert isinstance(model, VAE)
    if not model.classes:
        return model.sample(count, seed), None
    each = -(-count // len(classes))
    new = [model.sample(each, seed, labels=np.full(each, label)) for label in classes]
    return np.concatenate(new), np.repeat(classes, each)


def save_pictures(pictures: dict[str, Any], folder: Path) -> list[Path]:
    """Write each picture as folder/<name>.png; returns the paths.

    Raises:
        DataError: one cannot be written.
    """
    return [figures.save(figure, folder / f"{name}.png") for name, figure in pictures.items()]


def tell_pictures(paths: list[Path], tell: Callable[[str], None], verbose: bool) -> None:
    """Tell how many pictures were drawn, or with verbose which."""
    if len(paths) > 1 and not verbose:
        tell(f"drew {len(paths)} pictures in {paths[0].parent}{os.sep}")
    else:
        for path in paths:
            tell(f"drew {path}")


def save_singles(images: np.ndarray, labels: np.ndarray | None, folder: Path, kind: str) -> Path:
    """Write images (N, H, W, C) in [0, 1], each as folder/samples/<number>.png, or all and their labels as
    folder/samples.npz; returns the path. Numbered files of earlier ones go.

    Raises:
        DataError: they cannot be written.
    """
    values = np.round(255 * images).astype(np.uint8)
    if kind == "npz":
        buffer = io.BytesIO()
        np.savez(buffer, images=values) if labels is None else np.savez(buffer, images=values, labels=labels)
        write_atomically(folder / "samples.npz", buffer.getvalue())
        return folder / "samples.npz"
    check_writable(folder / "samples")
    try:
        pictures = [Image.fromarray(image if image.shape[2] > 1 else image[..., 0]) for image in values]
        for path in numbered(folder, "samples/*.png"):
            path.unlink()
        for i, picture in enumerate(pictures, 1):
            picture.save(folder / "samples" / f"{i:04d}.png")
    except (OSError, TypeError) as error:  # Pillow has no type for two or five channels
        raise DataError(f"{folder / 'samples'}: cannot be written: {error}; try --format npz") from error
    return folder / "samples"


def save_latents(model: Autoencoder, dataset: Dataset, parts: Sequence[str], split: bool, path: Path) -> str:
    """Write the latents of the train and test images, as parts says, as a .csv or .npz file, a row for each image.
    Returns what was written, and what the columns are.

    The columns are: part, `train` or `test`, if split or if an index is there in both; path, of the image's file, or
    index, of the image in its array, from 0; label, and class, its name, if there are any; and z1 to zZ, of a VAE the
    means. An .npz has z (N, Z), and of a VAE log_variance.

    Raises:
        DataError: the file cannot be written.
    """
    tables = []
    for part in parts:
        images, labels, names = (getattr(dataset, f"{part}_{what}") for what in ("images", "labels", "names"))
        names = np.arange(len(images)) if names is None else names
        table = {"part": np.full(len(images), part), "path" if names.dtype.kind == "U" else "index": names}
        table["label"] = labels
        if dataset.class_names and labels is not None:
            table["class"] = np.array(dataset.class_names)[labels]
        if isinstance(model, VAE):
            table["z"], table["log_variance"] = model.encode_distribution(images, labels=labels)
        else:
            table["z"] = model.encode(images)
        tables.append(table)
    given = [name for name in tables[0] if all(table.get(name) is not None for table in tables)]
    arrays: dict[str, Any] = {name: np.concatenate([table[name] for table in tables]) for name in given}
    place = arrays[given[1]]
    if not split and len(np.unique(place)) == len(place):  # they are one pool of images, in the order of its files
        arrays = {name: values[np.argsort(place)] for name, values in arrays.items() if name != "part"}
    if path.suffix.lower() == ".npz":
        columns = list(arrays)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        content = buffer.getvalue()
    else:
        z = {f"z{i}": column for i, column in enumerate(arrays["z"].T, 1)}
        shown = {name: values for name, values in arrays.items() if name not in ("z", "log_variance")} | z
        columns = [*list(shown)[: -len(z)], "z1" + f" to z{len(z)}" * (len(z) > 1)]
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows([shown, *zip(*shown.values(), strict=True)])
        content = text.getvalue().encode()
    write_atomically(path, content)
    means = " (means)" if isinstance(model, VAE) else ""
    return f"the latents{means} of {len(place):,} images to {path}: {', '.join(columns)}"
