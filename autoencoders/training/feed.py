"""What the steps of a training are given: images in random order, the noise of the latents, disturbed pixels.

A run is a function of its model, learning rate, data and options, the seed among them. Every random number comes from
a generator that is named by its purpose:

    "init", parameter           the first values of a parameter
    "split"                     which images are held out
    "shuffle", epoch            the order of the images
    "noise", epoch              the noise of the latents; with several samples per image: "noise", epoch, batch
    "pixels", epoch, batch      the random numbers of denoising and binarisation
    "augment", epoch, batch     flips and shifts
    "validation"                the noise of the latents in the validation
    "validation pixels"         denoising and binarisation of the held-out images

If the model was trained before this run, the number of those earlier steps is appended to each name with an epoch:
"shuffle", epoch, "after", steps. So a second `train` never repeats random numbers, not even after another `compile`.

A checkpoint therefore needs no generator state: a resumed run draws the numbers of its epoch again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minigrad import Backend
from minigrad.random import generator

from .options import TrainingOptions
from .progress import Progress
from .trainable import Trainable

Array = Any


class HeldOut(NamedTuple):
    """The images to validate on, on the host. targets: the clean images where `images` are noisy, else None."""

    images: np.ndarray
    one_hot: np.ndarray | None
    targets: np.ndarray | None


class Feed:
    """The images of a training on the model's device, cut into batches.

    Args:
        images, labels: those of the user; both are checked by the model.

    Attributes:
        images, labels: all of them, on the device. (A copy without those held out would take the memory twice.)
        trained: indices of the images that are trained on. held_out: the others.
        steps: batches in an epoch. batch_size: images in a whole batch.

    Raises:
        DataError: images or labels do not fit the model, or the validation split leaves a part empty.
    """

    def __init__(
        self, k: Backend, model: Trainable, images: np.ndarray, labels: np.ndarray | None, options: TrainingOptions
    ) -> None:
        images = model.check_images(images)
        one_hot = model.one_hot(labels, len(images))
        self.k, self.dtype, self.options, self.noise_dim = k, model.dtype, options, model.noise_dim
        self.trained, out = options.split(len(images))
        self.images = k.from_host(images)
        self.labels = None if one_hot is None else k.from_host(one_hot)
        self.steps = -(-len(self.trained) // options.batch_size)
        self.batch_size = min(options.batch_size, len(self.trained))
        held_out, targets = images[out], None
        if len(out) and (options.denoise or options.binarise):
            clean = k.unit_range(k.from_host(held_out), self.dtype)
            held_out, targets = self._corrupt(clean, generator(options.seed, "validation pixels"))
            held_out, targets = k.to_host(held_out), None if targets is None else k.to_host(targets)
        self.held_out = HeldOut(held_out, None if one_hot is None else one_hot[out], targets)

    def sample_epoch(self, at: Progress) -> tuple[Array, Array | None]:
        """(order of the images, noise of the latents) of an epoch; row i belongs to position i."""
        count = len(self.trained)
        order = self.k.from_host(self.trained[self._generator(at, "shuffle", at.epoch).permutation(count)])
        if not self.noise_dim or self.options.iw_samples > 1:
            return order, None
        draws = self._generator(at, "noise", at.epoch).standard_normal((count, self.noise_dim), dtype=np.float32)
        return order, self.k.from_host(draws.astype(self.dtype))

    def batch(self, at: Progress, order: Array, noise: Array | None) -> tuple[Array, ...]:
        """(what the encoder sees, noise of the latents, labels, the targets if they differ) of the next batch, from
        what was drawn for its epoch."""
        rows = slice(at.batch * self.options.batch_size, (at.batch + 1) * self.options.batch_size)
        images = self.k.unit_range(self.images, self.dtype, order[rows])
        if self.options.augment:
            images = self._augment(images, self._generator(at, "augment", at.epoch, at.batch))
        images, targets = self._corrupt(images, self._generator(at, "pixels", at.epoch, at.batch))
        labels = None if self.labels is None else self.labels[order[rows]]
        if self.options.iw_samples > 1:  # too much to be drawn for a whole epoch
            shape = (len(images), self.options.iw_samples, self.noise_dim)
            draws = self._generator(at, "noise", at.epoch, at.batch).standard_normal(shape, dtype=np.float32)
            return images, self.k.from_host(draws.astype(self.dtype)), labels, targets
        return images, None if noise is None else noise[rows], labels, targets

    def validation(self) -> HeldOut:
        """The held-out images. If there are none, one batch of the others, because even finite weights can give a loss
        that is not finite, and the validation finds that."""
        if len(self.held_out.images):
            return self.held_out
        rows = self.k.from_host(self.trained[: min(256, self.batch_size)])
        labels = None if self.labels is None else self.k.to_host(self.labels[rows])
        return HeldOut(self.k.to_host(self.images[rows]), labels, None)

    def _generator(self, at: Progress, *name: str | int) -> np.random.Generator:
        after = ("after", at.draws_after) if at.draws_after else ()
        return generator(self.options.seed, *name, *after)

    def _augment(self, images: Array, rng: np.random.Generator) -> Array:
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

    def _corrupt(self, images: Array, rng: np.random.Generator) -> tuple[Array, Array | None]:
        """(what the encoder sees, the targets if they differ from it) for images in [0, 1].

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
