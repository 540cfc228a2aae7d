"""The training loop of both models: history, checkpoints, exact resume, early stopping, callbacks.

A run is a function of its data, options and seed. All that is random is drawn from generators that are named by what
they are for:

    "init", parameter           its first values
    "split"                     which images are held out
    "shuffle", epoch            the order of the images
    "noise", epoch              of the latents; of several samples per image: "noise", epoch, batch
    "pixels", epoch, batch      of denoising and binarisation
    "augment", epoch, batch     flips and shifts
    "validation", "validation pixels"

A further run of the same model adds the steps before it to the names that have an epoch: "shuffle", epoch, "after",
steps. So `train` called twice never repeats its random numbers, also after another `compile`.

So a checkpoint needs no state of a generator, and a run that goes on from one does the same steps on the same numbers
as one that was never interrupted, to the bit.

Read next, for what a run leaves in its folder: runs.py; for how good the model is: bounds.py and metrics.py.
"""

from __future__ import annotations

import csv
import io
import json
import math
import platform
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

import minigrad
from minigrad import Backend, DeviceError, Tensor, backend_of, nn, optim
from minigrad.backend import pinned, quietly
from minigrad.random import generator
from minigrad.serialize import DataError, load_state, numbered, save_state, write_atomically
from minigrad.tensor import is_evaluating, is_recording

from .advice import remedies
from .memory import check_memory
from .trainable import Trainable

Array = Any
FETCH_EVERY = 10  # steps between readings of the losses from the device
KEPT_CHECKPOINTS = 3
SETTLED = 100  # steps after which a loss that is far too large is no beginning any more
LINES = 50  # about as many epochs of a long training get a line
CHECKPOINT = "checkpoints/step-{:08d}.safetensors"
CHECKPOINTS = "checkpoints/step-*.safetensors"  # with digits; other names are copies that somebody keeps
LOCK_FILE = ".lock"
FOLDERS = ("checkpoints", "film", "figures/samples", "figures", "tensorboard")  # in that of a run
# what a program that was killed leaves behind; nothing that others write into the folder, or that lies deeper
LEFTOVERS = (
    ".history.*.part",
    ".run.json.*.part",
    ".model.safetensors.*.part",
    ".mixture.safetensors.*.part",
    ".evaluation.json.*.part",
    ".report.html.*.part",
    "checkpoints/.*.part",
    "film/.*.part",
    "figures/.*.part",
)
# signals that end a program: of Ctrl-C, of kill, and of a terminal that is closed (not on Windows)
STOPS = tuple(signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
LOSSES = ("loss", "reconstruction", "kl")
MOST_ROWS = 20  # of a history that is printed
MOMENT = "optimizer."  # before the names of moments in a checkpoint


TRY_AGAIN = "train it again with a smaller learning rate"


class DivergedError(ArithmeticError):
    """A loss or a weight is no longer a finite number, a loss is absurd, or the trained model does not work."""


@dataclass(frozen=True)
class TrainingOptions:
    """What a run is made of, besides model, data and learning rate.

    Args:
        batch_size: images a step; the last batch of an epoch may be smaller. epochs: passes over the images.
        seed: of shuffle, noise and validation split.
        schedule: "constant", or "cosine" from the learning rate to 0 at the end of the run.
        warmup_steps: steps in which the learning rate rises from 0.
        kl_warmup: epochs (also parts) in which beta rises from 0, step by step.
        validation: images taken from the training images to measure on: a count, or a share below 1.
        patience: stop after this many epochs without a better validation loss, and restore the best weights.
        clip_norm: limit of the gradient's norm.
        save_every: steps between checkpoints, besides those at the end of each epoch; 0: none.
        denoise: standard deviation of the normal noise that is added to the pixels (in [0, 1], and cut to that range)
            which the encoder sees; the targets stay clean. Source: Vincent et al., Extracting and Composing Robust
            Features with Denoising Autoencoders, 2008.
        binarise: in every step each pixel is drawn anew, 1 with its grey value as probability and else 0, for encoder
            and likelihood: dynamic binarisation. Source: Burda, Grosse and Salakhutdinov, Importance Weighted
            Autoencoders, 2015. The held-out images are drawn once, with the noise of `denoise` as well.
        iw_samples: of the latent for each image and step. From 2 on the loss is the importance-weighted bound of
            `VAE`, also of the held-out images; beta must be 1, but may rise to it.
        augment: in every step each image is flipped left to right with probability 1/2, and shifted by up to a 16th of
            its height and width; the edge pixels are repeated. Not for letters, digits or what else has a direction.

    Raises:
        ValueError: a value is out of range.
    """

    batch_size: int = 128
    epochs: int = 8
    seed: int = 0
    schedule: str = "constant"
    warmup_steps: int = 0
    kl_warmup: float = 0.0
    validation: float = 0
    patience: int | None = None
    clip_norm: float | None = None
    save_every: int = 0
    denoise: float = 0.0
    binarise: bool = False
    iw_samples: int = 1
    augment: bool = False

    def __post_init__(self) -> None:
        for name, value in vars(self).items():  # Python's own numbers, because NumPy's cannot be saved as JSON
            if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
                object.__setattr__(self, name, value.item())

        def check(name: str, good: bool, expected: str) -> None:
            if not good:
                value = getattr(self, name)
                found = f"an array of shape {value.shape}" if isinstance(value, np.ndarray) else repr(value)
                hint = "; train takes no targets" if name == "batch_size" and found.startswith("an array") else ""
                raise ValueError(f"{name.replace('_', ' ')} is {found} but must be {expected}{hint}")

        for name, least in (
            ("batch_size", 1),
            ("epochs", 1),
            ("seed", 0),
            ("warmup_steps", 0),
            ("save_every", 0),
            ("iw_samples", 1),
        ):
            value = getattr(self, name)
            check(name, type(value) is int and least <= value < 2**63, f"a whole number >= {least}, below 2^63")
        for name, optional in (
            ("kl_warmup", False),
            ("validation", False),
            ("denoise", False),
            ("patience", True),
            ("clip_norm", True),
        ):
            value = getattr(self, name)
            check(name, isinstance(value, int | float) or (optional and value is None), "a number")
        check("schedule", self.schedule in ("constant", "cosine"), "constant or cosine")
        check("kl_warmup", 0 <= self.kl_warmup < math.inf, "a number of epochs >= 0")
        whole = self.validation < math.inf and float(self.validation).is_integer()
        check("validation", self.validation >= 0 and (self.validation < 1 or whole), "a count or a share below 1")
        check("patience", self.patience is None or self.patience >= 1, "at least 1 epoch")
        check("patience", self.patience is None or self.validation > 0, "used together with validation")
        check("clip_norm", self.clip_norm is None or 0 < self.clip_norm < math.inf, "a finite number above 0")
        check("denoise", 0 <= self.denoise < math.inf, "a standard deviation >= 0")
        check("denoise", not (self.denoise and self.binarise), "0 together with binarise")

    def split(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(those trained on, those held out to validate on): indices, in order, of so many images.

        Raises:
            DataError: one of the two is empty.
        """
        held_out = round(self.validation * count) if self.validation < 1 else int(self.validation)
        if held_out >= count or (self.validation and not held_out):
            raise DataError(f"validation: {self.validation:g} of {count} images leaves a part empty")
        order = generator(self.seed, "split").permutation(count)
        return np.sort(order[held_out:]), np.sort(order[:held_out])

    def check_model(self, model: Trainable) -> None:
        """Raise ValueError unless this model can be trained so."""
        if self.binarise and getattr(model, "likelihood", None) != "bernoulli":
            raise ValueError("binarise needs a vae with the bernoulli likelihood")
        if self.iw_samples > 1 and (not model.noise_dim or model.beta != 1):
            raise ValueError("iw samples above 1 need a vae with beta 1")


class History:
    """One row (a dict) per epoch, `history.rows`. `history["loss"]` is the list of one column; missing values are None.
    It prints as a table of the losses, and `plot` draws them.

    unit: of the losses.
    """

    def __init__(self, rows: Sequence[dict[str, Any]] = (), unit: str = "nats per image") -> None:
        self.rows, self.unit = list(rows), unit

    def __getitem__(self, column: str) -> list[Any]:
        if not any(column in row for row in self.rows):
            raise KeyError(f"history has no column {column!r}; it has {', '.join(self.columns)}")
        return [row.get(column) for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def table(self) -> list[list[str]]:
        """The epochs and their losses as text, below the names of the columns; of many epochs the first and last."""
        names = [name for name in self.columns if name == "epoch" or name.removeprefix("val_") in LOSSES]
        rows = [[short(row[name]) if name in row else "" for name in names] for row in self.rows]
        middle = [["..."] * len(names)] if len(rows) > MOST_ROWS else []
        return [names, *(rows[:3] + middle + rows[3 - MOST_ROWS :] if middle else rows)]

    def __repr__(self) -> str:
        rows = self.table() if self.rows else [["no epochs"]]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)

    def _repr_html_(self) -> str:
        rows = ("".join(f"<td>{cell}</td>" for cell in row) for row in self.table())
        return f"<table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"

    def plot(self) -> Any:
        """The losses drawn over the epochs, as a figure of Matplotlib, which a notebook shows."""
        from .pictures import figures

        return figures.loss_curves(self.rows, unit=self.unit)

    def write(self, folder: Path) -> None:
        """Write history.csv and history.jsonl anew."""
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(folder / "history.csv", text.getvalue().encode())
        lines = "".join(json.dumps(row) + "\n" for row in self.rows)
        write_atomically(folder / "history.jsonl", lines.encode())


class Callback:
    """Override what you need; each method gets the running `Trainer`.

    To change the learning rate, set `trainer.optimizer.learning_rate` to a number, which replaces the schedule; to
    change the weight of the KL term, set `trainer.model.beta`; to freeze a parameter, its `requires_grad`; to keep a
    BatchNorm as it is, call its `eval()`. All act from the next step on; the history names the rate and beta that the
    steps used, and a resumed run goes on with all of them. Other options of model, optimiser and training cannot be
    changed in a run. `trainer.rate(trainer.optimizer.steps)` is the learning rate of the last step, whatever sets it.

    `trainer.stop()` ends the run after the current step, as if it had been the last one: a checkpoint is written, the
    history gets a row for the part of the epoch, best weights are restored if there is `patience`, and `train` returns.
    """

    def on_fit_begin(self, trainer: Trainer) -> None: ...

    def on_epoch_begin(self, trainer: Trainer) -> None: ...

    def on_batch_begin(self, trainer: Trainer) -> None: ...

    def on_batch_end(self, trainer: Trainer) -> None: ...

    def on_epoch_end(self, trainer: Trainer) -> None: ...

    def on_fit_end(self, trainer: Trainer) -> None: ...


@dataclass
class Progress:
    """Where a run stands. A checkpoint holds this, weights, statistics and moments, and what the run is made of: model,
    options, learning rate, data and environment."""

    epoch: int = 0  # finished epochs
    batch: int = 0  # finished steps of the running epoch
    step: int = 0  # finished steps of the run
    first_step: int = 0  # the optimiser's steps before the run
    sums: list[float] = field(default_factory=list)  # of the running epoch's losses times images
    images: int = 0  # that the sums cover
    seconds: float = 0.0  # of training in the running epoch
    rows: list[dict[str, Any]] = field(default_factory=list)  # the history
    best: dict[str, Any] | None = None  # epoch, val_loss and SHA-256 of the best checkpoint
    waited: int = 0  # epochs since
    draws_after: int = 0  # the model's steps before the run, a part of the names of random numbers
    rate: float | None = None  # the learning rate that a callback has set
    beta: float | None = None  # the weight of the KL term that a callback has set

    @property
    def place(self) -> str:
        """Where that is in words."""
        return f"in epoch {self.epoch + 1}" if self.batch else f"after epoch {self.epoch}"

    def check(self, options: TrainingOptions, images: int, columns: Sequence[str]) -> None:
        """Raise ValueError unless a run with these options, on so many images, can have come to this place."""
        batches = -(-images // options.batch_size)
        for name in ("epoch", "batch", "step", "first_step", "images", "waited", "draws_after"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise ValueError(f"{name} is {value!r} but must be a whole number >= 0")
        covered = min(self.batch * options.batch_size, images)
        for good, what in (
            (self.batch <= batches, f"batch is {self.batch} but an epoch has {batches}"),
            (self.step == self.epoch * batches + self.batch, f"step is {self.step} in epoch {self.epoch}"),
            (self.images == covered, f"images is {self.images} but the steps have seen {covered}"),
            (_numbers(self.sums) and len(self.sums) == (len(columns) if covered else 0), f"sums is {self.sums!r}"),
            (_numbers([self.seconds]), f"seconds is {self.seconds!r}"),
            *(
                (x is None or (_numbers([x]) and x >= 0), f"{name} is {x!r}")
                for name, x in (("rate", self.rate), ("beta", self.beta))
            ),
            (
                isinstance(self.rows, list)
                and len(self.rows) == self.epoch
                and all(
                    isinstance(row, dict)
                    and set(columns) <= set(row)
                    and all(map(str.isidentifier, row))  # not what a spreadsheet would compute
                    and _numbers(list(row.values()))
                    and row.get("epoch") == i
                    for i, row in enumerate(self.rows, 1)
                ),
                f"rows are not {self.epoch} of numbers with {', '.join(columns)}",
            ),
            (
                self.best is None
                or (
                    isinstance(self.best, dict)
                    and _numbers([self.best.get("epoch"), self.best.get("val_loss")])
                    and isinstance(self.best.get("sha256"), str)
                ),
                f"best is {self.best!r}",
            ),
        ):
            if not good:
                raise ValueError(what)


def _numbers(values: Any) -> bool:
    """Whether this is a list of finite numbers."""
    return isinstance(values, list) and all(type(x) in (int, float) and math.isfinite(x) for x in values)


_running: set[Any] = set()  # networks, by their ids, and folders of the trainings of this process


def _scheduled(peak: float, options: TrainingOptions, batches: int, first_step: int, optimizer_step: int) -> float:
    """The learning rate of a step of the optimiser in a run that began after its first_step. A function by itself, so
    that a callback can copy the model and its optimiser without the Trainer."""
    step, warmup = optimizer_step - first_step, options.warmup_steps
    if options.schedule == "cosine":
        return optim.cosine_schedule(peak, options.epochs * batches, warmup=warmup)(step)
    return peak * min(1.0, step / max(warmup, 1))


def _by_hand(name: str, value: Any) -> float:
    """The number that a callback has set."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, Real) or not 0 <= float(value) < math.inf:
        found = "a function" if callable(value) else repr(value)
        raise ValueError(
            f"{name}: a callback has set it to {found}, but it must be a finite number >= 0; for a schedule set the "
            "number before each step (on_batch_begin)"
        )
    return float(value)


class Trainer:
    """One run of a compiled model on images (N, H, W, C). `run` starts it or, after `restore`, goes on.

    Args:
        labels: the class of each image (N,), which a conditional model needs and others ignore.
        folder: for checkpoints and logs; None: no files.
        callbacks: hear of what happens.
        progress: show a bar (only on a terminal) and lines about epochs. (The attribute is the run's `Progress`.)
        data: what describes the images (name, content hash), for the record.
        signals: those that end the run after the step, with a checkpoint if there is a folder.

    Attributes:
        capture: whether a GPU replays the step as a CUDA graph instead of launching each kernel; the same bits.

    Raises:
        RuntimeError: the model is not compiled. DataError: images or labels do not fit it. ValueError: nor the options.
    """

    def __init__(
        self,
        model: Trainable,
        images: np.ndarray,
        options: TrainingOptions,
        *,
        labels: np.ndarray | None = None,
        folder: str | Path | None = None,
        callbacks: Sequence[Callback] = (),
        progress: bool = True,
        data: dict[str, Any] | None = None,
        signals: tuple[signal.Signals, ...] = (signal.SIGINT,),
    ) -> None:
        if model.optimizer is None:
            raise RuntimeError("train: call compile(learning_rate) first")
        options.check_model(model)
        self.model: Any = model  # callbacks may use what else it has
        self.optimizer, self.options = model.optimizer, options
        self.callbacks, self.show, self.data, self.signals = callbacks, progress, data or {}, signals
        self.folder = None if folder is None else Path(folder)
        images = model.check_images(images)
        one_hot = model.one_hot(labels, len(images))
        self.trained, out = options.split(len(images))
        self.k: Backend = backend_of(self.optimizer.flat.values)
        # all of them: a copy of those that are trained on would take their memory again
        self.images = self.k.from_host(images)
        self.labels = None if one_hot is None else self.k.from_host(one_hot)
        self.validation_images = images[out]
        self.validation_targets: np.ndarray | None = None
        if len(out) and (options.denoise or options.binarise):
            clean = self.k.unit_range(self.k.from_host(images[out]), self.dtype)
            seen, targets = self._disturb(clean, generator(options.seed, "validation pixels"))
            self.validation_images = self.k.to_host(seen)
            self.validation_targets = None if targets is None else self.k.to_host(targets)
        self.validation_labels = None if one_hot is None else one_hot[out]
        self.batches = -(-len(self.trained) // options.batch_size)
        before = self.optimizer.steps
        self.progress = Progress(first_step=before, draws_after=max(before, model.trained_steps))
        self.best_state: dict[str, np.ndarray] | None = None  # kept here where there is no folder
        # (step, images, beta, losses) not yet read from the device
        self.pending: list[tuple[int, int, float, Array]] = []
        self.clock = time.perf_counter()
        self.restored = False
        self.good: tuple[dict[str, np.ndarray], Progress] | None = None  # the last state that was seen to be finite
        self.received: list[int] = []  # signals
        self.stopping = False
        self.part: list[dict[str, Any]] = []  # the row of an epoch that was stopped
        self.capture = True
        named = model.network.named_parameters(), model.network.modules()
        self.switches: dict[str, tuple[Any, str]] = {
            name: (x, switch)
            for switch, things in zip(("requires_grad", "training_mode"), named, strict=True)
            for name, x in things
            if name
        }
        self.peak, self.config = model.learning_rate, model.config
        self.model_beta = model.beta
        self.scheduled: float | optim.Schedule | None = None  # what the optimiser got from here in a run
        self.off: list[str] | None = None  # what was switched off when the step was captured

    # ---- the step: a function of arrays only ----

    @quietly
    def step(
        self,
        images: Array,
        noise: Array | None,
        scalars: Array,
        labels: Array | None = None,
        targets: Array | None = None,
    ) -> Array:
        """Train on one batch of images in [0, 1] and return its losses, (len(loss_names),), on the device.

        noise: as for `losses`; if that is for several samples, the bound follows the losses.
        scalars: (beta, the optimiser's scalars), everything that changes from step to step.
        labels: rows of `one_hot`, for a conditional model. targets: clean images, where the others are noisy.
        """
        with self.k.session(), nn.training():
            self.optimizer.zero_grad()
            clean = None if targets is None else Tensor(targets)
            loss, parts = self.model.losses(Tensor(images), noise, scalars[0:1].reshape(()), labels, clean)
            loss.backward()
            if self.options.clip_norm is not None:
                optim.clip_grad_norm(self.optimizer, self.options.clip_norm)
            self.optimizer.update(scalars[1:])
            self.optimizer.flat.mark_written()
            parts = parts if self.options.iw_samples == 1 else [*parts, loss]
            return self.k.xp.concatenate([part.data.reshape(1) for part in parts])

    @property
    def dtype(self) -> Any:
        return self.optimizer.flat.values.dtype

    @property
    def batch_size(self) -> int:
        """Images of a whole batch."""
        return min(self.options.batch_size, len(self.trained))

    def rate(self, optimizer_step: int) -> float:
        """The learning rate of a step of the optimiser."""
        return self.schedule(optimizer_step) if self.progress.rate is None else self.progress.rate

    @property
    def given_rate(self) -> float:
        """The learning rate that a callback has set, or else the one given for the run: with a schedule its peak."""
        return self.peak if self.progress.rate is None else self.progress.rate

    @property
    def schedule(self) -> optim.Schedule:
        """The learning rates that no callback has set."""
        return partial(_scheduled, self.peak, self.options, self.batches, self.progress.first_step)

    def beta(self, step: int) -> float:
        """The weight of the KL term at a step of the run, which counts from 1."""
        warmup_steps = self.options.kl_warmup * self.batches
        full = self.model_beta if self.progress.beta is None else self.progress.beta
        return full * min(1.0, step / warmup_steps if warmup_steps else 1.0)

    # ---- the loop ----

    def run(self) -> History:
        """Train to the end.

        Raises:
            DivergedError: a loss or weight is not finite; the model is in its last good state, whose checkpoint stays.
            KeyboardInterrupt: a signal arrived; the step was finished and saved. The argument is the signal's number.
            FileExistsError: the folder holds checkpoints of another run, which would count as newer than this one's, or
                another training is running there.
            RuntimeError: another training of this model is running, of which a callback or another thread calls this;
                or this is called inside `no_grad` or `evaluation`.
        """
        if is_evaluating() or not is_recording():
            raise RuntimeError("train: nothing is learned inside evaluation() or no_grad(); call it outside of them")
        with claim(self.folder), self._alone():
            return self._run()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Refuse a training inside another one of the same model or, in one process, in the same folder."""
        mine = {id(self.model.network), *([self.folder.resolve()] if self.folder else [])}
        taken = mine & _running
        if id(self.model.network) in taken:
            raise RuntimeError("train: a training of this model is running; wait for its end, or copy the model")
        if taken:
            raise FileExistsError(f"{self.folder}: another training is running in this folder; choose another folder")
        _running.update(mine)
        try:
            yield
        finally:
            _running.difference_update(mine)

    def _run(self) -> History:
        if self.folder and not (self.restored or self.progress.step) and (last := latest_checkpoint(self.folder)):
            raise FileExistsError(f"{self.folder} already holds checkpoints ({last.name}); choose another folder")
        self.check_memory()
        self.k.prepare(self.dtype)
        self.optimizer.flat.check()
        if name := self._not_finite():
            raise DivergedError(f"the training cannot begin: {name} is not finite")
        self.good = self._state(), deepcopy(self.progress)
        network = self.model.network
        if not any(module.training_mode is not False for name, module in network.modules() if name):
            network.train(None)  # somebody has called network.eval(), which means the model as it is now
        self.part, self.clock = [], time.perf_counter()
        constant = self.options.schedule == "constant" and not self.options.warmup_steps
        self.scheduled = self.peak if constant else self.schedule
        self.fixed = self._fixed()
        try:
            self._set_by_hand()
            with pinned(self.k):
                self._call("on_fit_begin")
                with catch_signals(self.signals) as self.received, self._bar():
                    while not (self.trained_enough or self.received or self.stopping):
                        self._run_epoch()
                    if self.progress.batch and not self.received:  # stopped within an epoch
                        self._fetch()
                        self.part = [self._row()]
                        self.save_checkpoint()
            if self.received:  # between two epochs, with the checkpoint of the first; or before any step
                raise KeyboardInterrupt(self.received[0])
        finally:
            self.optimizer.learning_rate, self.scheduled, self.stopping = self.peak, None, False
            self.model.trained_steps = self.progress.draws_after + self.progress.step
        if self.folder and len(self.history):
            self.history.write(self.folder)  # again, in case that a kill hit the last time
        if self.options.patience is not None and self.progress.best is not None:
            self._restore_best()
        self._call("on_fit_end")
        return self.history

    def stop(self) -> None:
        """End the run after the current step, or without one if none is running. A callback or another thread may call
        this; what was trained is kept as at the end of a run, and a resumed run goes on from here."""
        self.stopping = True

    def seconds_per_step(self) -> float:
        """How long a step takes on this machine now, tried with the first batch. Nothing is changed by it."""
        state, progress = self._state(), deepcopy(self.progress)
        self.k.prepare(self.dtype)
        with pinned(self.k):
            arguments = self._arguments(*self._draw_epoch())
            times = []
            for _ in range(3):
                start = time.perf_counter()
                self.k.to_host(self.step(*arguments))
                times.append(time.perf_counter() - start)
        self._take(state, progress)
        return min(times)

    def check_memory(self) -> None:
        """Raise DeviceError unless a step fits into the free memory; so does the validation, in batches as large."""
        device, free = self.k.device_of(self.optimizer.flat.values), self.k.free_memory()
        check_memory(self.model, self.batch_size, self.options.iw_samples, free, device)

    @property
    def history(self) -> History:
        return History([*self.progress.rows, *self.part], self.model.unit)

    def _run_epoch(self) -> None:
        p, options = self.progress, self.options
        self._call("on_epoch_begin")
        self._take_changes()
        order, noise, scalars = self._draw_epoch()
        p.sums = p.sums or [0.0] * len(self.columns)
        self.clock = time.perf_counter()
        while p.batch < self.batches and not self.stopping:
            self._call("on_batch_begin")
            if self._take_changes():
                scalars = self._scalars()
            self.used = self.rate(self.optimizer.steps + 1), self.beta(p.step + 1)
            if (off := self._switched_off()) != self.off:
                self.off, self.take_step = off, self.k.capture(self.step) if self.capture else self.step
            arguments = self._arguments(order, noise, scalars)
            count = len(arguments[0])
            try:
                losses = self.take_step(*arguments)
            except MemoryError as error:
                mend = f"try --batch-size {count // 2}" if count > 1 else "take a smaller model"
                raise DeviceError(f"out of memory in a step on {count} images: {error}; {mend}") from error
            p.batch, p.step = p.batch + 1, p.step + 1
            self.optimizer.steps += 1
            self.pending.append((p.step, count, self.used[1], losses))
            if len(self.pending) >= FETCH_EVERY or p.batch == self.batches:
                self._fetch()
            self.bar.update(count)
            self._call("on_batch_end")
            if self.received:
                self.save_checkpoint()
                raise KeyboardInterrupt(self.received[0])
            if options.save_every and p.step % options.save_every == 0 and p.batch < self.batches:
                self.save_checkpoint()
        if p.batch == self.batches:
            self._end_epoch()

    def _draw_epoch(self) -> tuple[Array, Array | None, Array]:
        """Shuffle, noise and scalars of the epoch on the device; row i of each belongs to position or step i."""
        p, k = self.progress, self.k
        count = len(self.trained)
        order = k.from_host(self.trained[self._generator("shuffle", p.epoch).permutation(count)])
        noise = None
        if self.model.noise_dim and self.options.iw_samples == 1:
            rng = self._generator("noise", p.epoch)
            draws = rng.standard_normal((count, self.model.noise_dim), dtype=np.float32)
            noise = k.from_host(draws.astype(self.dtype))
        return order, noise, self._scalars()

    def _generator(self, *name: str | int) -> np.random.Generator:
        """Random numbers of this run, named as the module's docstring says."""
        after = self.progress.draws_after
        return generator(self.options.seed, *name, *(("after", after) if after else ()))

    def _scalars(self) -> Array:
        """What changes from step to step, a row for each step of the epoch."""
        p = self.progress
        first = p.epoch * self.batches  # steps of the run before this epoch
        table = [
            (self.beta(step), *self.optimizer.scalars(p.first_step + step))
            for step in range(first + 1, first + self.batches + 1)
        ]
        return self.k.from_host(np.array(table, dtype=self.dtype))

    def _take_changes(self) -> bool:
        """Take over a learning rate or beta that a callback has set; whether there was one.

        Raises:
            ValueError: it is no number that can be used, or something else was changed.
        """
        if self.scheduled is None:  # not in a run
            return False
        p, rate, beta = self.progress, self.optimizer.learning_rate, self.model.beta
        before, now = (p.rate, p.beta), self._fixed()
        self.optimizer.flat.check()  # a callback may have called compile
        if now != self.fixed:
            name = next(name for name in {**self.fixed, **now} if now.get(name) != self.fixed.get(name))
            mend = "set trainer.optimizer.learning_rate" if "learning_rate" in name else "set it before the training"
            raise ValueError(f"{name}: a callback has changed it, which does not act in a run; {mend}")
        p.rate = None if rate is self.scheduled else _by_hand("optimizer.learning_rate", rate)
        if beta != (self.model_beta if p.beta is None else p.beta):
            p.beta = _by_hand("model.beta", beta)
            self.options.check_model(self.model)
        self._set_by_hand()  # Python's own numbers
        return before != (p.rate, p.beta)

    def _fixed(self) -> dict[str, Any]:
        """By name what a callback can reach and cannot change, because no checkpoint would hold it."""
        config = {**self.model.config, "learning_rate": self.model.learning_rate}
        found = {f"model.{name}": x for name, x in config.items() if name != "beta"}
        own = vars(self.optimizer).items()
        found |= {f"optimizer.{n}": x for n, x in own if isinstance(x, Real) and n not in ("steps", "learning_rate")}
        return {**found, "trainer.options": self.options}

    def _switched_off(self) -> list[str]:
        """The parameters that are frozen and the layers in evaluation mode."""
        return [name for name, (x, switch) in self.switches.items() if getattr(x, switch) not in (None, True)]

    def _set_by_hand(self) -> None:
        """Set what a callback had set before this place of the run."""
        p = self.progress
        assert self.scheduled is not None
        self.optimizer.learning_rate = self.scheduled if p.rate is None else p.rate
        self.model.beta = self.model_beta if p.beta is None else p.beta

    def _arguments(self, order: Array, noise: Array | None, scalars: Array) -> tuple[Array, ...]:
        """Those of the next step, from what was drawn for its epoch."""
        p = self.progress
        rows = slice(p.batch * self.options.batch_size, (p.batch + 1) * self.options.batch_size)
        batch = self.k.unit_range(self.images, self.dtype, order[rows])
        if self.options.augment:
            batch = self._augmented(batch, self._generator("augment", p.epoch, p.batch))
        batch, targets = self._disturb(batch, self._generator("pixels", p.epoch, p.batch))
        labels = None if self.labels is None else self.labels[order[rows]]
        return batch, self._noise(noise, rows, len(batch)), scalars[p.batch], labels, targets

    def _augmented(self, images: Array, rng: np.random.Generator) -> Array:
        """The images, flipped and shifted at random: pixel (h, w) is taken from (rows[h], columns[w])."""
        N, H, W, _ = images.shape
        flips = rng.random((N, 1)) < 0.5
        rows, columns = (
            (np.arange(side) + rng.integers(-reach, reach + 1, (N, 1))).clip(0, side - 1)
            for side, reach in ((H, -(-H // 16)), (W, -(-W // 16)))
        )
        columns = np.where(flips, W - 1 - columns, columns)
        rows, columns = self.k.from_host(rows[:, :, None]), self.k.from_host(columns[:, None, :])
        return images[self.k.xp.arange(N)[:, None, None], rows, columns]

    def _noise(self, of_epoch: Array | None, rows: slice, count: int) -> Array | None:
        """The latent noise of a step; that of several samples is drawn for it alone, as the noise of pixels is."""
        p, options = self.progress, self.options
        if options.iw_samples == 1:
            return None if of_epoch is None else of_epoch[rows]
        shape = (count, options.iw_samples, self.model.noise_dim)
        draws = self._generator("noise", p.epoch, p.batch).standard_normal(shape, dtype=np.float32)
        return self.k.from_host(draws.astype(self.dtype))

    def _disturb(self, images: Array, rng: np.random.Generator) -> tuple[Array, Array | None]:
        """(what the encoder sees of images in [0, 1], the targets if they are something else).

        The random numbers are drawn step by step: those of an epoch would take as much memory as all images in floats.
        """
        options = self.options
        if options.binarise:
            draws = self.k.from_host(rng.random(images.shape, dtype=np.float32))
            return (draws < images).astype(self.dtype), None
        if options.denoise:
            draws = options.denoise * rng.standard_normal(images.shape, dtype=np.float32)
            return (images + self.k.from_host(draws.astype(self.dtype))).clip(0, 1), images
        return images, None

    def _fetch(self) -> None:
        """Read the losses of the last steps from the device and add them to the epoch's sums."""
        p = self.progress
        if not self.pending:
            return
        rows = self.k.to_host(self.k.xp.stack([losses for *_, losses in self.pending])).astype(np.float64)
        for (step, count, beta, _), values in zip(self.pending, rows, strict=True):
            if not np.isfinite(values).all():
                found = ", ".join(f"{n} {v:g}" for n, v in zip(self.model.loss_names, values, strict=False))
                self._diverged(f"the loss of step {step} is not finite ({found})")
            parts = self._with_total(values.tolist(), beta).values()
            p.sums = [total + count * value for total, value in zip(p.sums, parts, strict=True)]
            p.images += count
        self.pending.clear()
        self.bar.set_description_str(self._place(short(self.running["loss"])), refresh=False)

    @property
    def running(self) -> dict[str, float]:
        """Mean losses of the epoch so far."""
        p = self.progress
        return {name: total / p.images for name, total in zip(self.columns, p.sums, strict=True)}

    @property
    def columns(self) -> tuple[str, ...]:
        return ("loss", *self.model.loss_names)

    def _row(self) -> dict[str, Any]:
        """A row of the history: of the steps of the running epoch, and of the held-out images after them."""
        self._require_folder()
        p = self.progress
        seconds = p.seconds + time.perf_counter() - self.clock
        row: dict[str, Any] = {"epoch": p.epoch + 1, **self.running}
        try:
            validation = self._with_total(list(self.validate().values()), self.model.beta)
        except MemoryError as error:
            self.save_checkpoint()  # the steps are done
            raise DeviceError(f"out of memory in the validation: {error}") from error
        if not all(map(math.isfinite, validation.values())):
            self._check_finite()
            self._diverged(f"the loss in evaluation mode after step {p.step} is not finite ({validation['loss']:g})")
        if absurd := p.step > max(self.options.warmup_steps, SETTLED) and self.model.absurd(row):
            self._diverged(f"in epoch {row['epoch']} {absurd}", search=False)
        if len(self.validation_images):
            row.update({f"val_{name}": value for name, value in validation.items()})
        row.update(zip(("learning_rate", "beta"), self.used, strict=True))
        row.update(images_per_second=p.images / max(seconds, 1e-9), seconds=seconds)
        return row

    def _end_epoch(self) -> None:
        p, row = self.progress, self._row()
        p.rows.append(row)
        p.epoch, p.batch, p.sums, p.images, p.seconds = p.epoch + 1, 0, [], 0, 0.0
        self.model.trained_steps = p.draws_after + p.step  # if a callback saves the model
        self._call("on_epoch_end")
        self._track_best(row)
        self.save_checkpoint()
        if self.show and (p.epoch == self.options.epochs or not p.epoch % max(1, self.options.epochs // LINES)):
            self.bar.clear()
            try:
                print(epoch_line(row, self.options.epochs), flush=True)
            except OSError:
                if not self.received:  # a terminal that is closed takes no line, but has sent a signal
                    raise

    def _with_total(self, parts: list[float], beta: float) -> dict[str, float]:
        """The losses by name, and before them what is minimised: reconstruction + beta * KL, or the bound behind."""
        count = len(self.model.loss_names)
        total = parts[0] + beta * sum(parts[1:]) if len(parts) == count else parts[count]
        return dict(zip(self.columns, [total, *parts[:count]], strict=True))

    def validate(self) -> dict[str, float]:
        """Mean losses on the held-out images, in evaluation mode, with the same noise every time.

        Where none are held out, those on one batch of the others: finite weights can give losses that are not.
        """
        batch = min(256, self.batch_size)  # what fits into a step fits into this
        images, labels, targets = self.validation_images, self.validation_labels, self.validation_targets
        if not len(images):
            rows = self.k.from_host(self.trained[:batch])
            images = self.k.to_host(self.images[rows])
            labels = None if self.labels is None else self.k.to_host(self.labels[rows])
        rng, samples = generator(self.options.seed, "validation"), self.options.iw_samples
        return mean_losses(self.model, images, rng, batch, one_hot=labels, targets=targets, iw_samples=samples)

    # ---- the best weights ----

    def _track_best(self, row: dict[str, Any]) -> None:
        p = self.progress
        if "val_loss" not in row:
            return
        p.waited += 1
        if p.best is None or row["val_loss"] < p.best["val_loss"]:
            p.best, p.waited = {"epoch": row["epoch"], "val_loss": row["val_loss"]}, 0
            self._check_finite()
            state = self.model.network.state_dict()
            if self.folder is None:
                self.best_state = state
            else:
                record = {"model": self.config, "best": dict(p.best)}
                p.best["sha256"] = save_state(self.folder / "checkpoints" / "best.safetensors", state, record)

    @property
    def trained_enough(self) -> bool:
        """Whether all epochs are trained, or as many as `patience` allows."""
        p, patience = self.progress, self.options.patience
        return p.epoch >= self.options.epochs or (patience is not None and p.waited >= patience)

    def _best_on_disk(self) -> dict[str, np.ndarray] | None:
        """The weights in checkpoints/best.safetensors, if they are those that this run recorded."""
        if self.folder is None or self.progress.best is None:
            return None
        try:
            state, _, digest = load_state(self.folder / "checkpoints" / "best.safetensors", self.folder)
        except DataError:
            return None
        return state if digest == self.progress.best["sha256"] else None

    def _restore_best(self) -> None:
        state = self._best_on_disk() if self.folder else self.best_state
        if state is not None:
            self.model.network.load_state_dict(state)
        else:
            print("the best weights are lost or damaged; the last ones are kept", file=sys.stderr)

    # ---- checkpoints ----

    def save_checkpoint(self) -> None:
        """Write checkpoints/step-<n>.safetensors and the logs, if there is a folder. Never saves what is not finite."""
        self._fetch()
        self._check_finite()
        self._take_changes()
        p, now = self.progress, time.perf_counter()
        p.seconds, self.clock = (p.seconds + now - self.clock) if p.batch else 0.0, now
        state = self._state()
        self.good = state, deepcopy(p)
        if self.folder is None:
            return
        self._require_folder()
        record = {
            "kind": "checkpoint",
            "model": self.config,
            "options": asdict(self.options),
            "learning_rate": self.peak,
            "progress": asdict(p),
            "off": self._switched_off(),
            "data": self.data,
            "environment": environment(self.k),
        }
        path = self.folder / CHECKPOINT.format(p.step)
        save_state(path, state, record)
        # files of later steps are damaged ones that a resume has skipped: they neither count nor go
        saved = numbered(self.folder, CHECKPOINTS)
        for old in saved[: saved.index(path) + 1][:-KEPT_CHECKPOINTS]:
            with suppress(OSError):
                old.unlink()
        if len(self.history):
            self.history.write(self.folder)

    def _require_folder(self) -> None:
        """A folder that was moved is not made again: the run would lie in two places."""
        if self.folder and self.progress.step and not self.folder.is_dir():
            raise DataError(f"{self.folder}: was moved or removed during the training; resume it where it is now")

    def _state(self) -> dict[str, np.ndarray]:
        """Copies on the host of all that a step changes: weights, statistics and moments."""
        moments = {name: x for name, x in self.optimizer.state_dict().items() if name != "steps"}
        return {**self.model.network.state_dict(), **{f"{MOMENT}{name}": x for name, x in moments.items()}}

    def _take(self, arrays: dict[str, np.ndarray], progress: Progress) -> None:
        """Go on from here."""
        self.progress = progress
        moments = {name.removeprefix(MOMENT): x for name, x in arrays.items() if name.startswith(MOMENT)}
        self.model.network.load_state_dict({n: x for n, x in arrays.items() if not n.startswith(MOMENT)})
        self.optimizer.load_state_dict({"steps": progress.first_step + progress.step, **moments})

    def restore(self, arrays: dict[str, np.ndarray], record: dict[str, Any], source: str | Path = "checkpoint") -> None:
        """Take weights, moments and progress from a checkpoint of `load_checkpoint`; source names it in errors.

        Raises:
            DataError: the checkpoint does not belong to this model, these options or this learning rate.
        """
        config = json.loads(json.dumps(self.config))  # lists for tuples, as in a record
        try:
            theirs = asdict(TrainingOptions(**record["options"]))
            theirs |= {name: record[name] for name in ("learning_rate", "model")}
            ours = {**asdict(self.options), "learning_rate": self.peak}
            # an older record lacks what models could not have then
            ours["model"] = {name: value for name, value in config.items() if name in record["model"]}
            other = [name for name in ours if name != "epochs" and ours[name] != theirs[name]]
            if other:
                raise ValueError(f"made with another {', '.join(other)}")
            progress = Progress(**record["progress"])
            progress.check(self.options, len(self.trained), self.columns)
            self._take(arrays, progress)
            for name, (x, switch) in self.switches.items() if "off" in record else ():
                on = True if switch == "requires_grad" else x.training_mode or None
                setattr(x, switch, False if name in record["off"] else on)
            # a record's names are sorted; history.csv has this order
            order = ["epoch", *self.columns, *(f"val_{name}" for name in self.columns), "learning_rate", "beta"]
            rows = self.progress.rows
            self.progress.rows = [{**{name: row[name] for name in order if name in row}, **row} for row in rows]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{source}: does not fit the training{made_by(record)} ({error})") from error
        self.restored = True
        self.used = self.rate(self.optimizer.steps), self.beta(self.progress.step)  # if no step follows in the epoch
        if self.folder is not None and self.progress.best is not None and not self._best_on_disk():
            # damaged; or of a kill between the best weights and the checkpoint, and what comes again will be them again
            print("the best weights so far are not there; those of the epochs to come are kept", file=sys.stderr)
            self.progress.best = None

    # ---- divergence ----

    def _check_finite(self) -> None:
        """Nothing that is not finite may be saved."""
        if name := self._not_finite():
            self._diverged(f"after step {self.progress.step} {name} is not finite")

    def _not_finite(self) -> str | None:
        """The name of a weight, statistic or moment that holds such a number."""
        state = {name: x.data for name, x in self.model.network.named_tensors()}
        state |= {f"Adam's {name}": x for name, x in self.optimizer.moments.items()}
        return next((name for name, x in state.items() if not np.isfinite(self.k.to_host(x)).all()), None)

    def _diverged(self, what: str, search: bool = True) -> None:
        """Go back to the last good state, find out (with search) what went wrong, and stop."""
        cause = ""
        if search:
            with np.errstate(all="ignore"):
                cause = self._cause()
        else:
            self._back()
        last = self.folder / CHECKPOINT.format(self.progress.step) if self.folder and self.good else None
        kept = f"; the last good checkpoint is {last}" if last and last.exists() else ""
        epochs, config = self.options.epochs, {**self.config, "beta": self.model.beta}
        found = remedies(config, self.given_rate, epochs, epochs * self.batches, diverged=True)
        raise DivergedError(f"training diverged: {what}{cause}; try {', '.join(found)}{kept}")

    def _cause(self) -> str:
        """Do the steps since the last good state again, which gives the same bits, up to the first bad number; that
        step is then done operation by operation. The model is left in the good state."""
        if self.good is None or self.scheduled is None:  # not in a run
            return ""
        steps = self.progress.step - self.good[1].step
        self._back()
        if self.show:
            self.bar.clear()
            print(f"not finite: doing the last {steps} steps again to find the cause", flush=True)
        p = self.progress
        found = ""
        drawn = self._draw_epoch()
        for _ in range(steps):  # of one epoch, because its end is a good state
            if self.received:  # somebody does not want to wait for that
                break
            arguments, before = self._arguments(*drawn), self._state()
            losses = self.step(*arguments)
            if not np.isfinite(self.k.to_host(losses)).all() or self._not_finite():
                self._take(before, p)
                cause = self._anomaly(lambda arguments=arguments: self.step(*arguments))  # type: ignore[misc]
                found = f"; first in step {p.step + 1}" + (f": {cause}" if cause else "")
                break
            p.batch, p.step = p.batch + 1, p.step + 1
        else:
            cause = self._anomaly(self.validate)
            found = f"; in evaluation mode: {cause}" if cause else "; not in the same steps without callbacks"
        self._back()
        return found

    def _back(self) -> None:
        """Go back to the last good state."""
        assert self.good is not None
        state, progress = self.good
        self.pending.clear()
        self._take(state, deepcopy(progress))
        self._set_by_hand()

    @staticmethod
    def _anomaly(run: Callable[[], Any]) -> str | None:
        """What detect_anomaly says of a step or a validation."""
        try:
            with minigrad.detect_anomaly():
                run()
        except minigrad.AnomalyError as anomaly:
            return str(anomaly)
        return None

    # ---- what is seen ----

    def _call(self, event: str) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self)

    @contextmanager
    def _bar(self) -> Iterator[None]:
        per_epoch = len(self.trained)
        p = self.progress
        done = p.epoch * per_epoch + min(p.batch * self.options.batch_size, per_epoch)
        self.bar = progress_bar(self.options.epochs * per_epoch, " images", self.show, done, self._place(""))
        try:
            yield
        finally:
            self.bar.close()
            del self.bar  # while signals are collected: one that raises in its __del__ is lost

    def _place(self, loss: str) -> str:
        """Epoch and loss, in letters of always the same number."""
        last = str(self.options.epochs)
        epoch = min(self.progress.epoch + 1, self.options.epochs)
        return f"epoch {epoch:{len(last)}}/{last}  loss {loss:>7}"


def progress_bar(total: int, unit: str, show: bool, done: int = 0, before: str = "") -> Any:
    """A bar with fields of fixed width: a notebook's in a notebook, otherwise only on a terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a notebook without ipywidgets gets no bar
        from tqdm.autonotebook import tqdm
    in_notebook = tqdm.__module__ == "tqdm.notebook"
    return tqdm(
        desc=before,
        total=total,
        initial=done,
        unit=unit,
        unit_scale=True,
        disable=(False if in_notebook else None) if show else True,  # None: only on a terminal
        leave=False,
        dynamic_ncols=True,
        smoothing=0.05,
        bar_format="{desc} {bar} {percentage:3.0f}% {remaining:>8} left {rate_noinv_fmt:>15}",
    )


def short(value: float) -> str:
    """A number in at most 9 letters, if it is below 1e8."""
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e8 else f"{value:.5g}"


def mean_losses(
    model: Trainable,
    images: np.ndarray,
    rng: np.random.Generator,
    batch: int = 256,
    *,
    one_hot: np.ndarray | None = None,
    targets: np.ndarray | None = None,
    iw_samples: int = 1,
) -> dict[str, float]:
    """The model's losses, averaged over images, in evaluation mode, with iw_samples draws of noise an image; from 2 on
    the importance-weighted "bound" with beta 1 follows them.

    one_hot: those of the images by `one_hot`, for a conditional model. targets: as for `losses`.
    """
    k = backend_of(model.network.parameters()[0].data)
    names = model.loss_names if iw_samples == 1 else (*model.loss_names, "bound")
    totals = np.zeros(len(names))
    with model.evaluating():
        for start in range(0, len(images), batch):
            rows = slice(start, start + batch)
            x = k.unit_range(k.from_host(images[rows]), model.dtype)
            shape = (len(x), model.noise_dim) if iw_samples == 1 else (len(x), iw_samples, model.noise_dim)
            noise = k.from_host(rng.standard_normal(shape).astype(model.dtype))
            labels = None if one_hot is None else k.from_host(one_hot[rows])
            clean = None if targets is None else Tensor(k.from_host(targets[rows]))
            loss, parts = model.losses(Tensor(x), noise, 1.0, labels, clean)
            totals += len(x) * np.array([part.item() for part in (*parts, loss)[: len(names)]])
    return dict(zip(names, (totals / len(images)).tolist(), strict=True))


def epoch_line(row: dict[str, Any], epochs: int) -> str:
    """One epoch as a line of text of at most 80 letters."""
    line = f"epoch {row['epoch']}/{epochs}  loss {short(row['loss'])}"
    if "kl" in row:
        line += f" nats (recon {short(row['reconstruction'])}, KL {short(row['kl'])})"
    held_out = f"  val {short(row['val_loss'])}" if "val_loss" in row else ""
    return f"{line}{held_out}  {row['seconds']:.0f} s"


def environment(k: Backend) -> dict[str, Any]:
    """Where and with what a run is computed: results are bitwise equal only where all of this is."""
    return {
        "backend": k.describe(),
        "kernels": k.kernels,
        "precision": k.precision,
        "threads": k.threads,
        "device": "cpu" if k.on_host else f"cuda:{k.xp.cuda.Device().id}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "minigrad": minigrad.__version__,
        "machine": platform.machine(),
        "libraries": libraries(k),
    }


def libraries(k: Backend) -> list[str]:
    """What computes: BLAS libraries with the processor they chose their code for, and Numba; or GPU and CuPy."""
    if not k.on_host:
        name = k.xp.cuda.runtime.getDeviceProperties(k.xp.cuda.Device().id)["name"].decode()
        return [f"CuPy {k.xp.__version__}", name]
    from threadpoolctl import threadpool_info

    # SciPy, which others load, brings one of its own that computes nothing here
    found = [x for x in threadpool_info() if x["user_api"] == "blas"]
    found = [x for x in found if Path(x["filepath"]).parent.name != "scipy.libs"]
    blas = sorted(f"{x['internal_api']} {x['version']} {x.get('architecture', '')}".strip() for x in found)
    compiled = [f"{name} {version(name)}" for name in ("numba", "llvmlite") if k.kernels == "numba"]
    return blas + compiled


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint's path, unread; None if there is none."""
    return next(reversed(numbered(folder, CHECKPOINTS)), None)


def made_by(record: dict[str, Any]) -> str:
    """Who has written a checkpoint, where that is another version than this one."""
    environment = record.get("environment")
    theirs = environment.get("minigrad") if isinstance(environment, dict) else None
    return "" if theirs == minigrad.__version__ else f"; it is of minigrad {theirs}, this is {minigrad.__version__}"


def load_checkpoint(
    folder: str | Path, tell: Callable[[str], None] = print
) -> tuple[dict[str, np.ndarray], dict[str, Any], Path]:
    """(arrays, record, path) of the newest valid checkpoint of a run; tell hears of each skipped one, and why.

    Raises:
        DataError: there is no valid one.
    """
    place = Path(folder) / "checkpoints"
    if place.is_symlink() or (place.exists() and not place.is_dir()):
        raise DataError(f"{place}: expected a folder, found something else; put the run's checkpoints back there")
    paths = numbered(Path(folder), CHECKPOINTS)
    for path in reversed(paths):
        try:
            arrays, record, _ = load_state(path, Path(folder))
            if record.get("kind") != "checkpoint":
                raise DataError(f"{path}: not a checkpoint")
            return arrays, record, path
        except DataError as error:
            tell(f"skipped a checkpoint: {error}")
    left = "a model there can still be used, or the run be replaced with --overwrite"
    mend = left if paths else "there is none; start a training without --resume"
    raise DataError(f"{folder}: no valid checkpoint to resume from; {mend}")


def check_writable(folder: Path) -> None:
    """Make the folder and see that a file can be written there, before the work whose result shall lie there.

    Raises:
        DataError: it cannot, or a link in it would lead the results of a run elsewhere.
    """
    if link := next((folder / name for name in FOLDERS if (folder / name).is_symlink()), None):
        raise DataError(f"{link}: expected a folder, found a link; move the folder itself there, or remove the link")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except FileExistsError as error:
        raise DataError(f"{folder}: cannot be written: it is no folder") from error
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror or error}") from error


@contextmanager
def claim(folder: Path | None) -> Iterator[None]:
    """Hold a folder for one training, and remove what one that was killed left there. However this process ends, even
    killed, the folder is free then.

    Raises:
        FileExistsError: another training holds it. DataError: it cannot be written.
    """
    if folder is None:
        yield
        return
    from filelock import FileLock, Timeout

    # A singleton: who holds the folder already may claim it once more in the same thread.
    lock = FileLock(folder / LOCK_FILE, is_singleton=True)
    check_writable(folder)  # a lock that cannot be made would look like one that is held
    place = folder / LOCK_FILE
    if place.is_symlink() or (place.exists() and not place.is_file()):
        raise DataError(f"{place}: cannot be written: it is a link, or no file; remove it")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise FileExistsError(
            f"{folder}: another training is running in this folder; wait for it or choose another folder"
        ) from error
    except OSError as error:
        raise DataError(f"{folder / LOCK_FILE}: cannot be written: {error.strerror or error}") from error
    try:
        for pattern in LEFTOVERS:
            for path in folder.glob(pattern):
                with suppress(OSError):
                    path.unlink()
        yield
    finally:
        lock.release()


@contextmanager
def catch_signals(signals: tuple[signal.Signals, ...]) -> Iterator[list[int]]:
    """Collect signals instead of dying of them, so that a step can be finished and saved; a second one stops at once.

    Outside the main thread, and where somebody else already handles a signal, nothing is changed.
    """
    received: list[int] = []

    def handler(number: int, _: Any) -> None:
        if received:
            raise KeyboardInterrupt(number)
        received.append(number)

    usual = (signal.SIG_DFL, signal.default_int_handler, interrupt)
    mine = [
        s for s in signals if threading.current_thread() is threading.main_thread() and signal.getsignal(s) in usual
    ]
    previous = {s: signal.signal(s, handler) for s in mine}
    try:
        yield received
    finally:
        for s, old in previous.items():
            signal.signal(s, old)


def interrupt(number: int, _: Any) -> None:
    """A handler of signals: KeyboardInterrupt with the signal's number."""
    raise KeyboardInterrupt(number)


@contextmanager
def raise_signals() -> Iterator[None]:
    """Every signal of STOPS raises KeyboardInterrupt, as SIGINT does, so that what was begun can be told and recorded.

    Outside the main thread, and where somebody else already handles a signal, nothing is changed.
    """
    main = threading.current_thread() is threading.main_thread()
    mine = [number for number in STOPS if main and signal.getsignal(number) == signal.SIG_DFL]
    for number in mine:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)
