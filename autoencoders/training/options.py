"""What a training is made of, besides model, data and learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from minigrad.random import generator
from minigrad.serialize import DataError

from .trainable import Trainable


@dataclass(frozen=True)
class TrainingOptions:
    """What a run is made of, besides model, data and learning rate.

    Args:
        batch_size: images a step; the last batch of an epoch may be smaller. epochs: passes over the images.
        seed: of shuffle, noise and validation split.
        schedule: "constant", or "cosine" from the learning rate to 0 at the end of the run.
        warmup_steps: steps in which the learning rate rises from 0.
        kl_warmup: epochs, possibly a fraction, over which beta rises from 0, step by step.
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
        iw_samples: samples of the latent for each image and step. With 2 or more, the loss is the importance-weighted
            bound of `VAE`, for held-out images too; beta must be 1, but may rise to 1.
        augment: in every step each image is flipped left to right with probability 1/2, and shifted by up to a 16th of
            its height and width; the edge pixels are repeated. Do not use it for letters, digits or other images that
            have a direction.

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

        for name in ("batch_size", "epochs", "iw_samples", "seed", "warmup_steps", "save_every"):
            value, least = getattr(self, name), 0 if name in ("seed", "warmup_steps", "save_every") else 1
            check(name, type(value) is int and least <= value < 2**63, f"a whole number >= {least}, below 2^63")
        for name in ("kl_warmup", "validation", "denoise", "patience", "clip_norm"):
            value, optional = getattr(self, name), name in ("patience", "clip_norm")
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
