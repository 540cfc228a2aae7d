"""The steps of a training. What one does depends only on model, images, options and the place in the run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import numpy as np

from minigrad import Backend, Tensor, backend_of, nn, optim
from minigrad.backend import pinned, quietly
from minigrad.distributed import ALONE, Group
from minigrad.random import generator

from .checkpoints import MOMENT
from .controls import Controls
from .feed import Feed
from .memory import check_memory
from .options import TrainingOptions
from .progress import Progress
from .trainable import Trainable
from .validation import mean_losses

Array = Any


class Steps:
    """What a training does, without the loop: its steps and its validation.

    Attributes:
        model, optimizer, options: what is trained, and how. k: the kernels that compute it.
        feed: the images, on the device. controls: learning rate and beta. progress: where the run stands.
        group: the processes that train the model; each computes its rows of every batch.

    Raises:
        RuntimeError: the model is not compiled. DataError: images or labels do not fit it. ValueError: options do not.
    """

    def __init__(
        self,
        model: Trainable,
        images: np.ndarray,
        options: TrainingOptions,
        labels: np.ndarray | None = None,
        group: Group = ALONE,
    ) -> None:
        if model.optimizer is None:
            raise RuntimeError("train: call compile(learning_rate) first")
        options.check_model(model)
        self.k: Backend = backend_of(model.optimizer.flat.values)
        self.group = group
        group.check(self.k, options.batch_size)
        self.feed = Feed(self.k, model, images, labels, options)
        self.model: Any = model  # callbacks may use what else it has
        self.optimizer = model.optimizer
        self.controls = Controls(model, model.optimizer, options, self.feed.steps)
        before = self.optimizer.steps
        self.progress = Progress(first_step=before, draws_after=max(before, model.trained_steps))

    @property
    def options(self) -> TrainingOptions:
        """How it is trained; a run's options cannot be changed."""
        return self.controls.options

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

        noise: as for `losses`. With several samples per image the bound follows the losses.
        scalars: (beta, the optimiser's scalars), everything that changes from step to step.
        labels: rows of `one_hot`, for a conditional model. targets: the clean images, if `images` are noisy.
        """
        with self.k.session(), nn.training():
            self.optimizer.zero_grad()
            with self.group.sharing(self.k, len(images)) as rows:
                mine = (None if x is None else x[rows] for x in (images, noise, labels, targets))
                images, noise, labels, targets = mine
                clean = None if targets is None else Tensor(targets)
                loss, parts = self.model.losses(Tensor(images), noise, scalars[0:1].reshape(()), labels, clean)
                loss.backward()
            self.group.mean_(self.optimizer.flat.gradients)
            if self.options.clip_norm is not None:
                optim.clip_grad_norm(self.optimizer, self.options.clip_norm)
            self.optimizer.update(scalars[1:])
            self.optimizer.flat.mark_written()
            parts = parts if self.options.iw_samples == 1 else [*parts, loss]
            return self.group.mean(self.k.xp.concatenate([part.data.reshape(1) for part in parts]))

    def sample_epoch(self) -> tuple[Array, Array | None, Array]:
        """Order, noise and scalars of the epoch on the device; row i of each belongs to position or step i."""
        return *self.feed.sample_epoch(self.progress), self._scalars()

    def _scalars(self) -> Array:
        return self.k.from_host(self.controls.scalars(self.progress).astype(self.feed.dtype))

    def arguments(self, order: Array, noise: Array | None, scalars: Array) -> tuple[Array, ...]:
        """The arguments of the next `step`, from what was drawn for its epoch."""
        images, noise, labels, targets = self.feed.batch(self.progress, order, noise)
        return images, noise, scalars[self.progress.batch], labels, targets

    def validate(self) -> dict[str, float]:
        """Mean losses on the images of `Feed.validation`, in evaluation mode, with the same noise every time."""
        images, one_hot, targets = self.feed.validation()
        rng, samples = generator(self.options.seed, "validation"), self.options.iw_samples
        batch = min(256, self.feed.batch_size)  # what fits into a step fits into this
        given = self.model, images, rng, batch
        return mean_losses(*given, one_hot=one_hot, targets=targets, iw_samples=samples, group=self.group)

    @property
    def columns(self) -> tuple[str, ...]:
        return ("loss", *self.model.loss_names)

    @property
    def running(self) -> dict[str, float]:
        """Mean losses of the epoch so far."""
        p = self.progress
        return {name: total / p.images for name, total in zip(self.columns, p.sums, strict=True)}

    def with_total(self, parts: list[float], beta: float) -> dict[str, float]:
        """The losses by name, after "loss", which is minimised: reconstruction + beta * KL, or the bound if parts end
        with one."""
        count = len(self.model.loss_names)
        total = parts[0] + beta * sum(parts[1:]) if len(parts) == count else parts[count]
        return dict(zip(self.columns, [total, *parts[:count]], strict=True))

    def rate(self, optimizer_step: int) -> float:
        """The learning rate of a step of the optimiser."""
        return self.controls.rate_of(self.progress, optimizer_step)

    def beta(self, step: int) -> float:
        """The weight of the KL term at a step of the run, which counts from 1."""
        return self.controls.beta_of(self.progress, step)

    @property
    def given_rate(self) -> float:
        """The learning rate that a callback has set, or else the one given for the run: with a schedule its peak."""
        return self.controls.peak if self.progress.rate is None else self.progress.rate

    def state(self) -> dict[str, np.ndarray]:
        """Copies on the host of all that a step changes: weights, statistics and moments."""
        moments = {f"{MOMENT}{name}": x for name, x in self.optimizer.state_dict().items() if name != "steps"}
        return {**self.model.network.state_dict(), **moments}

    def go_to(self, arrays: dict[str, np.ndarray], at: Progress) -> None:
        """Go on from this place of the run."""
        self.progress = at
        self.controls.install(at)
        self.model.trained_steps = at.draws_after + at.step
        moments = {name.removeprefix(MOMENT): x for name, x in arrays.items() if name.startswith(MOMENT)}
        self.model.network.load_state_dict({n: x for n, x in arrays.items() if not n.startswith(MOMENT)})
        self.optimizer.load_state_dict({"steps": at.first_step + at.step, **moments})

    def not_finite(self) -> str | None:
        """The name of a weight, statistic or moment that holds NaN or infinity; None if there is none."""
        state = {name: x.data for name, x in self.model.network.named_tensors()}
        state |= {f"Adam's {name}": x for name, x in self.optimizer.moments.items()}
        return next((name for name, x in state.items() if not np.isfinite(self.k.to_host(x)).all()), None)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Inside, this process does whole steps by itself, with the same results."""
        before, self.group = self.group, ALONE
        try:
            yield
        finally:
            self.group = before

    def seconds_per_step(self) -> float:
        """How long a step takes on this machine now, tried with the first batch. Nothing is changed by it."""
        state, at = self.state(), deepcopy(self.progress)
        self.k.prepare(self.feed.dtype)
        with pinned(self.k):
            arguments = self.arguments(*self.sample_epoch())
            times = []
            for _ in range(3):
                start = time.perf_counter()
                self.k.to_host(self.step(*arguments))
                times.append(time.perf_counter() - start)
        self.go_to(state, at)
        return min(times)

    def check_memory(self) -> None:
        """Raise DeviceError unless a step fits into the free memory. The validation then fits, too: its batches are no
        larger."""
        device, free = self.k.device_of(self.optimizer.flat.values), self.k.free_memory()
        if free is not None and self.k.on_host:
            free //= self.group.local_size
        check_memory(self.model, self.feed.batch_size, self.options.iw_samples, free, device)
