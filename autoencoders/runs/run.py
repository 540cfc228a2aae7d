"""One training in one folder: train, save the model, measure it, draw it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigrad.serialize import DataError

from ..conv_autoencoder import VAE
from ..data import Dataset
from ..evaluation.diagnosis import fatal
from ..evaluation.metrics import quick_metrics
from ..pictures import charts
from ..pictures.film import PROGRESS_FILE
from ..pictures.gallery import draw, save_pictures
from ..saved import MODEL_FILE
from ..standardize import fit_variance, standardize
from ..training import DivergedError, History, Trainer, latest_checkpoint
from ..training.checkpoints import environment
from ..training.folder import FOLDERS, check_writable, claim
from ..training.signals import raise_signals
from .record import RECORD_FILE, read_record, write_json
from .replace import PICTURES, RESULT_FILE, check_folder, put_back, remove, set_aside

MOST_ENCODED, WORTH_A_SHIFT = 10_000, 0.02  # images, and share of the KL, for `standardize`


@dataclass(eq=False)
class Run:
    """One training in one folder.

    Args:
        trainer: ready to run. dataset: its images. folder: where everything goes.
        command: recorded as what was typed. found: the newest checkpoint there when this run was made ready.
        resumed: whether run.json is to be continued. overwrite: whether a new run may replace one in the folder.
        judged: whether a model that does not work is an error. keep_old: whether a run that is replaced is kept.

    Attributes:
        resumable: whether `execute`, ended by an error or signal, leaves a checkpoint of this run.
        replaced: where the run lies that this one has replaced.
        verbose: whether it names every picture.
    """

    trainer: Trainer
    dataset: Dataset
    folder: Path
    command: str
    found: Path | None
    resumed: bool = False
    overwrite: bool = False
    judged: bool = False
    keep_old: bool = True

    def __post_init__(self) -> None:
        trainer = self.trainer
        self.resumable, self.verbose = self.resumed, False
        self.replaced: Path | None = None
        before = read_record(self.folder) if self.resumed and not trainer.group.rank else {}
        self.record: dict[str, Any] = {
            "started": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
            "judged": self.judged and not self.resumed,  # a resumed run goes by what it has recorded
            **before,
            "status": "running",
            "commands": [*before.get("commands", []), self.command],
            "model": trainer.model.config,
            "options": vars(trainer.options),
            "learning_rate": trainer.controls.peak,
            "data": trainer.data,
            "environment": environment(trainer.k, trainer.group.size),
        }
        earlier = before.get("environment")
        if isinstance(earlier, dict) and earlier != self.record["environment"]:
            self.record["earlier_environments"] = [*before.get("earlier_environments", []), earlier]

    def execute(self, tell: Callable[[str], None]) -> None:
        """Train to the end, save the model, measure it on the test images and draw it.

        An error or signal leaves what was there before, or a run that can be resumed; run.json says which.

        Raises:
            FileExistsError: another training is running in the folder, or has run there since this one was made.
        """
        if self.trainer.group.rank:  # the first process does all the rest
            try:
                self.trainer.run()
            finally:
                self.resumable |= self.trainer.saved
            return
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
                    self.replaced = set_aside(self.folder, self.keep_old)
            self._execute(tell)

    def _execute(self, tell: Callable[[str], None]) -> None:
        try:
            self._write_record()
            history = self.trainer.run()
            self.trainer.group.part()
            with raise_signals():
                self._finish(history, tell)
        except BaseException as error:
            self.record["status"] = "interrupted" if isinstance(error, KeyboardInterrupt) else f"failed: {error}"
            self.resumable = latest_checkpoint(self.folder) is not None
            if self.replaced and not self.resumable:
                remove(self.folder)
                put_back(self.replaced, self.folder)
                self.replaced = None
            elif self.folder.is_dir():
                with contextlib.suppress(DataError):
                    self._write_record()
            raise
        self.resumable = True
        if self.replaced:
            tell(f"the previous run is in {self.replaced}")

    def _finish(self, history: History, tell: Callable[[str], None]) -> None:
        model, seed = self.trainer.model, self.trainer.options.seed
        self.record["training_seconds"] = sum(history["seconds"])
        p = self.trainer.progress
        self.record["training"] = {"learning_rate": self.trainer.given_rate, "epochs": p.epoch, "steps": p.step}
        self._adjust(tell)
        images, labels = self.dataset.test_images, self.dataset.test_labels
        try:  # first, because a model that gives numbers that are not finite is not saved
            self.record["test"] = quick_metrics(
                model, images, seed, labels=labels, train_images=self.dataset.train_images
            )
        except MemoryError:
            model.save(self.folder)
            raise
        model.save(self.folder)
        tell(f"saved {self.folder / MODEL_FILE}")
        if self.resumed and (self.folder / RESULT_FILE).exists():
            tell(f"{RESULT_FILE} and report.html in this folder still describe the previous model")
        pictures = {"loss_curves": charts.loss_curves(history.rows, unit=model.unit)}
        pictures |= draw(model, self.dataset, seed=seed, count=48)
        save_pictures(pictures, self.folder / "figures", tell, self.verbose)
        self.record.update(status="finished", finished=time.strftime("%Y-%m-%d %H:%M:%S %Z"))
        found = fatal({**self.record["test"], "model": model.config, "training": self.record["training"]})
        if self.record["judged"] and found:
            fault = found[0]
            more = fault["option"] if self.trainer.trained_enough else "--resume, which trains on"
            again = "" if more.startswith("--resume") else ", with another --out or --overwrite"
            raise DivergedError(f"the model does not work: {fault['finding']} ({fault['why']}); try {more}{again}")
        self._write_record()

    def _adjust(self, tell: Callable[[str], None]) -> None:
        """Move the latents of a VAE onto the prior if the training has left them far from it, and set a trained
        variance of the pixels to its best value."""
        trainer, model = self.trainer, self.trainer.model
        if not isinstance(model, VAE) or trainer.options.iw_samples > 1:  # whose bound has another optimum
            return
        feed = trainer.feed
        rows = trainer.k.from_host(feed.trained[:: -(-len(feed.trained) // MOST_ENCODED)])
        images = trainer.k.to_host(feed.images[rows])
        labels = None if feed.labels is None else trainer.k.to_host(feed.labels[rows]).argmax(axis=1)
        if gain := standardize(model, images, labels=labels, least=WORTH_A_SHIFT):
            tell(f"latents shifted and scaled to the prior: the KL falls by {gain:,.2f} nats")
        if model.likelihood == "gaussian-learned":
            gain = fit_variance(model, images, labels=labels)
            tell(f"variance of the pixels set to the mean squared error: -ELBO falls by {gain:,.2f} nats")

    def _write_record(self) -> None:
        write_json(self.folder / RECORD_FILE, self.record)
