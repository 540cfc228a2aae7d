"""The training loop of both models.

`Trainer.run` is the loop; its step is `Steps.step` in steps.py. Beside them: feed.py, the images, and where the random
numbers come from; controls.py, the learning rate, and what callbacks may change; checkpoints.py, what is saved, and why
a resumed run gives the same bits; divergence.py, how the cause is found when numbers are no longer finite.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from minigrad import DeviceError
from minigrad.backend import pinned
from minigrad.distributed import ALONE, Group
from minigrad.serialize import DataError
from minigrad.tensor import is_evaluating, is_recording

from .advice import remedies
from .best import BestWeights
from .checkpoints import CHECKPOINT, check_record, environment, latest_checkpoint, made_by, write_checkpoint
from .display import Display
from .divergence import DivergedError, find_cause
from .folder import alone, claim
from .history import History, short
from .options import TrainingOptions
from .progress import Progress
from .signals import catch_signals
from .steps import Steps
from .trainable import Trainable

FETCH_EVERY = 10  # steps between readings of the losses from the device
SETTLED = 100  # a loss may be far too large in this many steps at the beginning, but not after them


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


class Trainer(Steps):
    """One run of a compiled model on images (N, H, W, C). `run` starts it or, after `restore`, goes on.

    Args:
        labels: the class of each image (N,), which a conditional model needs and others ignore.
        folder: for checkpoints and logs; None: no files.
        callbacks: notified of training events.
        progress: show a bar (only on a terminal) and lines about epochs. (The attribute is the run's `Progress`.)
        data: what describes the images (name, content hash), for the record.
        signals: those that end the run after the step, with a checkpoint if there is a folder.
        group: the processes that train the model together, `minigrad.distributed.world()`. Each makes its own Trainer,
            with equal arguments; only the first one of them should get a folder, and callbacks that write.

    Attributes:
        feed: the images, on the device.
        capture: whether a GPU replays the step as a CUDA graph instead of launching each kernel; the same bits.

    Raises:
        RuntimeError: the model is not compiled. DataError: images or labels do not fit it. ValueError: options do not.
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
        group: Group = ALONE,
    ) -> None:
        super().__init__(model, images, options, labels, group)
        self.config: dict[str, Any] = model.config
        self.callbacks, self.data, self.signals = callbacks, data or {}, signals
        self.folder = None if folder is None else Path(folder)
        self.display = Display(progress, options, len(self.feed.trained))
        self.capture, self.stopping = True, False
        self.received: list[int] = []  # signals
        self.saved = False  # whether there is a checkpoint of this run, if the first process has a folder
        self.stop_signal = 0  # the one that ends the run, in all processes after the same step
        self.pending: list[tuple[int, int, float, Any]] = []  # (step, images, beta, losses) still on the device
        self.last_good: Any = None  # (arrays, progress) of the last state that was seen to be finite
        self.best = BestWeights(model, self.folder)
        self.partial_row: list[dict[str, Any]] = []  # the row of an epoch that was stopped
        self.captured_off: list[str] | None = None  # what was switched off when the step was captured last

    @property
    def history(self) -> History:
        return History([*self.progress.rows, *self.partial_row], self.model.unit)

    @property
    def trained_enough(self) -> bool:
        """Whether all epochs are trained, or as many as `patience` allows."""
        p, patience = self.progress, self.options.patience
        return p.epoch >= self.options.epochs or (patience is not None and p.waited >= patience)

    # ---- the loop ----

    def run(self) -> History:
        """Train to the end.

        Raises:
            DivergedError: a loss or weight is not finite; the model is in its last good state, whose checkpoint stays.
            KeyboardInterrupt: a signal arrived; the step was finished and saved. The argument is the signal's number.
            FileExistsError: the folder holds checkpoints of another run, which would count as newer than this one's, or
                another training is running there.
            RuntimeError: another training of this model is running, and its callback or another thread calls this; or
                this is called inside `no_grad` or `evaluation`.
        """
        if is_evaluating() or not is_recording():
            raise RuntimeError("train: nothing is learned inside evaluation() or no_grad(); call it outside of them")
        with self.group.together(), claim(self.folder), alone(self.model.network, self.folder):
            self._prepare()
            try:
                with self.controls.steering(self.progress), pinned(self.k):
                    self._call("on_fit_begin")
                    self._run_epochs()
            finally:
                self.stopping = False
            if self.folder:
                self.history.write(self.folder)  # again, in case the process was killed during the last write
            if self.options.patience is not None and self.best.state is not None:
                self.model.network.load_state_dict(self.best.state)
            self._call("on_fit_end")
            return self.history

    def stop(self) -> None:
        """End the run after the current step, or at once if no step is running. A callback or another thread may call
        this. The training so far is kept, as at the end of a run, and a resumed run continues from here."""
        self.stopping = True

    def _prepare(self) -> None:
        if self.folder and self.last_good is None and (last := latest_checkpoint(self.folder)):
            raise FileExistsError(f"{self.folder} already holds checkpoints ({last.name}); choose another folder")
        self.check_memory()
        if self.group.size > 1:
            settings = self.options, self.controls.peak, self.k.kernels, self.k.shards
            options = np.frombuffer(repr(settings).encode(), np.uint8)
            self.group.same("the options and images", {"options": options, "images": self.k.to_host(self.feed.images)})
            self.group.same("the weights before the training", self.state())
        self.k.prepare(self.feed.dtype)
        self.optimizer.flat.check()
        if name := self.not_finite():
            raise DivergedError(f"the training cannot begin: {name} is not finite")
        self.last_good = self.state(), deepcopy(self.progress)
        if not any(module.training_mode is not False for name, module in self.model.network.modules() if name):
            # network.eval() was called to use the model; it is not meant for the training
            self.model.network.train(None)
        self.partial_row = []

    def _run_epochs(self) -> None:
        with catch_signals(self.signals) as self.received, self.display.shown(self.progress):
            while not (self._asked_to_stop() or self.trained_enough):
                self._run_epoch()
            if self.progress.batch:  # ended within an epoch
                if not self.stop_signal:
                    self.partial_row = [self._row()]
                self.save_checkpoint()
        self._asked_to_stop()  # once more, for a signal that came after the last step
        if self.stop_signal:
            raise KeyboardInterrupt(self.stop_signal)

    def _asked_to_stop(self) -> bool:
        """Whether a signal, a callback or another thread wants the run to end, in any of the processes."""
        self.stop_signal, stopping = self.group.most(self.received[0] if self.received else 0, int(self.stopping))
        return bool(self.stop_signal or stopping)

    def _run_epoch(self) -> None:
        p = self.progress
        self._call("on_epoch_begin")
        self.controls.take_changes(p)
        order, noise, scalars = self.sample_epoch()
        p.sums = p.sums or [0.0] * len(self.columns)
        while p.batch < self.feed.steps and not self._asked_to_stop():
            began = time.perf_counter()
            self._call("on_batch_begin")
            if self.controls.take_changes(p):
                scalars = self._scalars()
            self.last_controls = self.rate(self.optimizer.steps + 1), self.beta(p.step + 1)
            if (off := self.controls.switched_off()) != self.captured_off:
                self.captured_off = off
                self.take_step = self.k.capture(self.step) if self.capture else self.step
            arguments = self.arguments(order, noise, scalars)
            count = len(arguments[0])
            try:
                losses = self.take_step(*arguments)
            except MemoryError as error:
                mend = f"try --batch-size {count // 2}" if count > 1 else "take a smaller model"
                raise DeviceError(f"out of memory in a step on {count} images: {error}; {mend}") from error
            p.batch, p.step = p.batch + 1, p.step + 1
            self.optimizer.steps, self.model.trained_steps = p.first_step + p.step, p.draws_after + p.step
            self.pending.append((p.step, count, self.last_controls[1], losses))
            if len(self.pending) >= FETCH_EVERY or p.batch == self.feed.steps:
                self._fetch()
            self.display.bar.update(count)
            self._call("on_batch_end")
            p.seconds += time.perf_counter() - began
            if self.options.save_every and p.step % self.options.save_every == 0 and p.batch < self.feed.steps:
                self.save_checkpoint()
        if p.batch == self.feed.steps and not self.stop_signal:
            self._end_epoch()

    def _fetch(self) -> None:
        """Read the losses of the last steps from the device and add them to the epoch's sums."""
        p = self.progress
        if self.folder and p.step and not self.folder.is_dir():  # making it again would split the run over two places
            raise DataError(f"{self.folder}: was moved or removed during the training; resume it where it is now")
        if not self.pending:
            return
        self.group.wait_for(self.k)
        rows = self.k.to_host(self.k.xp.stack([losses for *_, losses in self.pending])).astype(np.float64)
        for (step, count, beta, _), values in zip(self.pending, rows, strict=True):
            if not np.isfinite(values).all():
                found = ", ".join(f"{n} {v:g}" for n, v in zip(self.model.loss_names, values, strict=False))
                self._diverged(f"the loss of step {step} is not finite ({found})")
            parts = self.with_total(values.tolist(), beta).values()
            p.sums = [total + count * value for total, value in zip(p.sums, parts, strict=True)]
            p.images += count
        self.pending.clear()
        self.display.loss(p, short(self.running["loss"]))

    def _end_epoch(self) -> None:
        p, row = self.progress, self._row()
        p.rows.append(row)
        p.epoch, p.batch, p.sums, p.images, p.seconds = p.epoch + 1, 0, [], 0, 0.0
        self._call("on_epoch_end")
        if "val_loss" in row:
            p.waited += 1
            if p.best is None or row["val_loss"] < p.best["val_loss"]:
                self._check_finite()
                p.waited, p.best = 0, self.best.keep({"epoch": row["epoch"], "val_loss": row["val_loss"]})
        self.save_checkpoint()
        try:
            self.display.epoch(row)
        except OSError:
            if not self.received:  # a closed terminal accepts no output, but it has sent a signal
                raise

    # ---- losses ----

    def _row(self) -> dict[str, Any]:
        """A row of the history: the mean losses of the epoch's steps, and the losses on the held-out images after
        them."""
        self._fetch()
        p = self.progress
        row: dict[str, Any] = {"epoch": p.epoch + 1, **self.running}
        try:
            validation = self.with_total(list(self.validate().values()), self.model.beta)
        except MemoryError as error:
            self.save_checkpoint()  # the steps are done
            raise DeviceError(f"out of memory in the validation: {error}") from error
        if not np.isfinite(list(validation.values())).all():
            self._check_finite()
            self._diverged(f"the loss in evaluation mode after step {p.step} is not finite ({validation['loss']:g})")
        if implausible := p.step > max(self.options.warmup_steps, SETTLED) and self.model.implausible(row):
            self._diverged(f"in epoch {row['epoch']} {implausible}", search=False)
        if len(self.feed.held_out.images):
            row.update({f"val_{name}": value for name, value in validation.items()})
        row.update(zip(("learning_rate", "beta"), self.last_controls, strict=True))
        row.update(images_per_second=p.images / max(p.seconds, 1e-9), seconds=p.seconds)
        return row

    # ---- checkpoints ----

    def save_checkpoint(self) -> None:
        """Write checkpoints/step-<n>.safetensors and the logs, if there is a folder. Never saves what is not finite."""
        self._fetch()
        self._check_finite()
        self.controls.take_changes(self.progress)
        p, state = self.progress, self.state()
        self.group.same(f"the weights after step {p.step}", state)
        self.last_good = state, deepcopy(p)
        if self.folder:
            record = {
                "model": self.config,
                "options": asdict(self.options),
                "learning_rate": self.controls.peak,
                "progress": asdict(p),
                "off": self.controls.switched_off(),
                "data": self.data,
                "environment": environment(self.k, self.group.size),
            }
            write_checkpoint(self.folder, state, record, p.step)
            self.history.write(self.folder)
        self.saved = True

    def restore(self, arrays: dict[str, np.ndarray], record: dict[str, Any], source: str | Path = "checkpoint") -> None:
        """Take weights, moments and progress from a checkpoint of `load_checkpoint`; source names it in errors.

        Raises:
            DataError: the checkpoint does not belong to this model, these options or this learning rate.
        """
        try:
            check_record(record, self.config, self.options, self.controls.peak)
            at = Progress.recorded(record, self.options, len(self.feed.trained), self.columns)
            self.go_to(arrays, at)
            self.controls.switch_off(record.get("off", self.controls.switched_off()))  # older records have none
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{source}: does not fit the training{made_by(record)} ({error})") from error
        self.last_good = arrays, deepcopy(at)
        self.last_controls = self.rate(self.optimizer.steps), self.beta(at.step)  # if no step follows in the epoch
        self.best.state = self.group.first(lambda: self.best.load(at.best))
        if at.best is not None and self.best.state is None:
            # The file is damaged, or the run was killed after it wrote newer best weights and before the checkpoint. In
            # the second case the resumed run computes those weights again.
            if self.group.rank == 0:
                print("the best weights so far are not there; the best of the coming epochs are kept", file=sys.stderr)
            at.best = None

    # ---- divergence ----

    def _check_finite(self) -> None:
        """Raise DivergedError if a weight, statistic or moment is not finite, so that it is not saved."""
        if name := self.not_finite():
            self._diverged(f"after step {self.progress.step} {name} is not finite")

    def _diverged(self, what: str, search: bool = True) -> None:
        """Go back to the last good state, find out (with search) what went wrong, and stop."""
        cause = ""
        if self.controls.installed is not None:  # in a run
            state, at = self.last_good
            steps = self.progress.step - at.step
            self.pending.clear()
            self.go_to(state, deepcopy(at))
            if search:
                self.display.line(f"not finite: doing the last {steps} steps again to find the cause")
                cause = find_cause(self, steps, self.received)
                self.go_to(state, deepcopy(at))
        last = self.folder / CHECKPOINT.format(self.progress.step) if self.folder else None
        kept = f"; the last good checkpoint is {last}" if last and last.exists() else ""
        epochs, config = self.options.epochs, {**self.config, "beta": self.model.beta}
        found = remedies(config, self.given_rate, epochs, epochs * self.feed.steps, diverged=True)
        raise DivergedError(f"training diverged: {what}{cause}; try {', '.join(found)}{kept}")

    def _call(self, event: str) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self)
