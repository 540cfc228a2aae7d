"""Start a run in a folder, or go on with one that was interrupted."""

from __future__ import annotations

import itertools
import os
import shlex
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import minigrad
from minigrad.distributed import ALONE, Group
from minigrad.serialize import DataError

from ..conv_autoencoder import Autoencoder, from_config
from ..data import NAMES, Dataset, Reading, load_dataset
from ..pictures.film import Film
from ..pictures.gallery import film_images
from ..saved import MODEL_FILE, models_near
from ..training import Trainer, TrainingOptions, latest_checkpoint, load_checkpoint
from ..training.checkpoints import CHECKPOINTS, environment, made_by
from ..training.folder import FOLDERS, check_readable
from ..training.signals import STOPS
from .record import limit_of, model_hash
from .replace import check_folder
from .run import Run

MOST_THREADS = 1024  # each takes memory


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
    keep_old: bool = True,
    group: Group = ALONE,
) -> Run:
    """A new run in a folder that holds none, or whose run may be overwritten. init_from: the file of a model that was
    trained before, for the record.

    Raises:
        FileExistsError: the folder holds a run and overwrite is False, or another training is running there.
        DataError: data or folder cannot be used.
    """
    found = group.first(lambda: _looked_at(folder, overwrite))
    check_fit(model, dataset)
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
    trainer = _trainer(model, dataset, options, folder, data, progress, group)
    trainer.check_memory()  # before anything is written
    run = Run(trainer, dataset, folder, command, found, overwrite=overwrite, judged=judged, keep_old=keep_old)
    if init_from:
        before = {"file": str(init_from.absolute()), "sha256": model_hash(init_from)}
        run.record["init_from"] = {**before, "trained_steps": model.trained_steps}
    return run


def _looked_at(folder: Path, overwrite: bool) -> Path | None:
    """The newest checkpoint in a folder that a new run may take."""
    check_readable(folder)
    check_folder(folder, overwrite)
    return latest_checkpoint(folder)


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
    group: Group = ALONE,
) -> Run:
    """The run of a folder, ready to go on from its newest valid checkpoint, with the options recorded there.

    Args:
        device, kernels, threads, precision: replace the recorded values. With another device, kernels or precision the
            result may differ in bits from an uninterrupted run.
        dataset: the present path of the run's own images.
        data_dir: replaces the recorded folder. Nothing is downloaded into the recorded one.
        epochs: replaces the recorded number; at least the number of epochs that have begun.
        finish: do not train further; write the model and the pictures of the present state.
        tell: is called with messages. warn: is called with warnings about skipped checkpoints and about differences
            from an uninterrupted run; None: tell.
    Raises:
        DataError: there is no valid checkpoint, or the data are not those of the run.
        FileExistsError: another training is running there. ValueError: epochs cannot be changed to this number.
    """
    warn = warn or tell
    found, (arrays, record, path) = group.first(lambda: (latest_checkpoint(folder), _checkpoint(folder, warn)))
    try:
        was = {"precision": "fp32", "shards": None, "processes": 1, **record["environment"]}  # older runs had no others
        data, learning_rate = record["data"], record["learning_rate"]
        options = TrainingOptions(**record["options"])
        name, reading, _ = data["name"], Reading.recorded(data), limit_of(data)
        if not (isinstance(learning_rate, float | int) and learning_rate > 0):
            raise ValueError(f"learning_rate is {learning_rate!r}")
        named = name, data["content_hash"], data.get("data_dir") or ""
        if not all(isinstance(text, str) for text in named):
            raise ValueError(f"data is {data!r}")
        texts = all(isinstance(was[key], str) for key in ("device", "kernels", "precision"))
        counts = [was["threads"], was["processes"], 1 if was["shards"] is None else was["shards"]]
        if not (texts and all(type(count) is int and 0 < count <= MOST_THREADS for count in counts)):
            raise ValueError(f"environment is {was!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: cannot be resumed{made_by(record)} ({error})") from error
    asked = kernels
    if device is None or device.partition(":")[0] == was["device"].partition(":")[0]:
        kernels, precision = kernels or was["kernels"], precision or was["precision"]
        if threads is None and was["processes"] == group.size:
            threads = was["threads"]
    threads = group.threads if threads is None else threads
    device = group.device(device or (was["device"] if group.size == 1 else was["device"].partition(":")[0]))
    use = partial(minigrad.use, device, kernels or "auto", threads, precision or "fp32", was["shards"])
    backend = group.first_before_others(use)
    if kernels and not asked:
        backend.reason = "as before"
    tell(backend.describe())
    now = environment(backend, group.size)
    # what does not change the bits
    free = {"backend"} if backend.shards is None else {"backend", "threads", "processes"}
    if not backend.on_host:
        free.discard("processes")
    changed = [f"{key} {was.get(key)} -> {now[key]}" for key in now if key not in free and now[key] != was.get(key)]
    if changed and not group.rank:
        warn(f"the result is not bitwise that of an uninterrupted run, because these changed: {', '.join(changed)}")
    if epochs is not None and epochs != options.epochs:
        if options.schedule != "constant":
            left = epochs - options.epochs
            raise ValueError(
                f"epochs cannot change in a resumed run: its {options.schedule} schedule ends with epoch "
                f"{options.epochs}; {train_on(folder, left) if left > 0 else '--finish makes the model now'}"
            )
        options = replace(options, epochs=epochs)
    place = data_dir or data.get("data_dir")
    if dataset:
        name = str(Path(dataset).expanduser().absolute())
    try:
        how = {**vars(reading), "download": place == data_dir, "progress": progress}
        images = group.first_before_others(partial(load_dataset, name, place, **how))
    except DataError as error:
        moved = "" if name in NAMES else "; if the images were moved, give their new path with --dataset"
        raise DataError(f"{error}{moved}") from error
    images = images.as_recorded(data.get("content_hash"), "image_size" not in data)
    tell(images.source)
    if images.content_hash != data.get("content_hash"):
        raise DataError(
            f"{name}: not the data of this run (SHA-256 {images.content_hash}, recorded {data.get('content_hash')}); "
            "restore the original images, or give their path with --dataset"
        )
    try:
        model = from_config(record.get("model", {}), arrays)
        model.compile(learning_rate)
        trainer = _trainer(model, images, options, folder, {**data, "name": name}, progress, group)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    trainer.restore(arrays, record, path)
    at = trainer.progress
    if epochs is not None and at.epoch + bool(at.batch) > epochs:
        raise ValueError(f"epochs is {epochs} but the run is already {at.place}; --finish makes the model now")
    if trainer.trained_enough:
        more = "--resume --epochs N goes on, or " if options.schedule == "constant" else ""
        last = "all epochs are trained" if at.epoch >= options.epochs else f"--patience ended the run {at.place}"
        where = f"{last}; {more}{train_on(folder, options.epochs)}"
    else:
        where = f"{at.place if finish else f'in epoch {at.epoch + 1}'} of {options.epochs}"
    tell(f"{'finishing' if finish else 'resuming'} after step {at.step}, {where}")
    if finish:
        trainer.stop()
    return Run(trainer, images, folder, command, found, resumed=True)


def _checkpoint(folder: Path, warn: Callable[[str], None]) -> tuple[dict[str, Any], dict[str, Any], Path]:
    """(arrays, record, path) of the newest valid checkpoint in a run's folder."""
    check_readable(folder)
    try:
        return load_checkpoint(folder, warn)
    except DataError as error:
        if os.path.lexists(folder / FOLDERS[0]):
            raise
        only = models_near(folder, (CHECKPOINTS,))
        if (folder / MODEL_FILE).exists():
            only = f"only a model; {train_on(folder, 'N')}"
        raise DataError(f"{folder}: no valid checkpoint to resume from; {only}") from error


def train_on(folder: Path, epochs: object) -> str:
    """The options that train the model of a run on."""
    new = next(name for i in itertools.count(2) if not os.path.lexists(name := f"{folder}-{i}"))
    return f"{shlex.join(['--init-from', str(folder), '--out', new, '--epochs', str(epochs)])} trains its model further"


def _trainer(
    model: Autoencoder,
    dataset: Dataset,
    options: TrainingOptions,
    folder: Path,
    data: dict[str, Any],
    progress: bool,
    group: Group,
) -> Trainer:
    """The trainer of a run, filmed, and ended by the signals of STOPS. Of several processes the first one writes."""
    rows = dataset.limited(*limit_of(data))
    images, labels = dataset.train_images, dataset.train_labels
    filmed = (
        [] if group.rank else [(images[i], None if labels is None else labels[i]) for i in film_images(dataset, rows)]
    )
    return Trainer(
        model,
        images[rows],
        options,
        labels=None if labels is None else labels[rows],
        folder=None if group.rank else folder,
        callbacks=[Film(*filmed)] if filmed else [],
        progress=progress,
        data=data,
        signals=STOPS,
        group=group,
    )


def check_fit(model: Autoencoder, dataset: Dataset) -> None:
    """Raise DataError, which names the data set, unless the model can take its images and labels."""
    try:
        model.check_images(dataset.train_images)
        model.one_hot(dataset.train_labels, len(dataset.train_images))
        model.check_images(dataset.test_images)
        model.one_hot(dataset.test_labels, len(dataset.test_images))
    except DataError as error:
        raise DataError(f"{dataset.name}: does not fit the model: {error}") from error
