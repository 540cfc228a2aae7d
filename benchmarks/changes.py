"""Changes to a training, or to a trained model, that trials.py measures. All but the fitted prior are only trials.

Each function gets the model of a finished trial, the images that it was trained on and how, and returns a new model.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from autoencoders import VAE
from autoencoders.conv_autoencoder import from_config
from autoencoders.data.dataset import to_unit_range
from autoencoders.evaluation.bounds import binarised, distribution_of, draws_of, nll_rows
from autoencoders.evaluation.mixture import Mixture, fit_mixture
from autoencoders.training import Callback, Trainer, TrainingOptions
from minigrad import Tensor, evaluation, nn, no_grad, ops
from minigrad.random import generator

DECAY = 0.995  # of the averaged weights, in each step
SAMPLES, RATE = 8, 5e-4  # of z for each image, and Adam's rate, where the encoder is trained alone
COMPONENTS = 100  # of a learned prior


def trained_again(model: VAE, images: np.ndarray, options: TrainingOptions, rate: float, *callbacks: Callback) -> VAE:
    """Train a model with the options of the trial; the images held out are left out already."""
    model.compile(rate)
    chosen = {**vars(options), "validation": 0}
    Trainer(model, images, TrainingOptions(**chosen), callbacks=callbacks).run()
    return model


# ---- averaged weights ----


class Average(Callback):
    """The exponential moving average of all weights, with a shorter memory at the beginning."""

    def on_fit_begin(self, trainer: Trainer) -> None:
        self.values = trainer.optimizer.flat.values.copy()

    def on_batch_end(self, trainer: Trainer) -> None:
        step = trainer.progress.step
        self.values += (1 - min(DECAY, step / (step + 9))) * (trainer.optimizer.flat.values - self.values)

    def on_fit_end(self, trainer: Trainer) -> None:
        trainer.optimizer.flat.values[...] = self.values
        trainer.optimizer.flat.mark_written()


def averaged(model: VAE, images: np.ndarray, options: TrainingOptions, rate: float) -> VAE:
    """The same training once more, whose result is the average; BatchNorm's statistics are measured with it again."""
    model = trained_again(from_config(model.config), images, options, rate, Average())
    order = generator(0, "statistics").permutation(len(images))
    with nn.training(), no_grad():
        for start in range(0, len(order), options.batch_size):
            x = to_unit_range(images[order[start : start + options.batch_size]]).astype(model.dtype)
            noise = generator(0, "statistics", start).standard_normal((len(x), model.noise_dim))
            model.losses(Tensor(x), noise.astype(model.dtype), np.float32(1))
    return model


# ---- the encoder alone ----


class ManySamples(VAE):
    """A VAE whose loss with several samples of z is -ELBO, not the importance-weighted bound."""

    def losses(self, *arguments: Any, **more: Any) -> tuple[Tensor, list[Tensor]]:
        _, (reconstruction, kl) = super().losses(*arguments, **more)
        return reconstruction + kl, [reconstruction, kl]


def encoder_alone(model: VAE, images: np.ndarray, options: TrainingOptions, rate: float) -> VAE:
    """One more epoch for the encoder, with SAMPLES samples of z for each image, while the decoder stays as it is."""
    again = from_config(model.config, cls=ManySamples)
    again.network.load_state_dict(model.network.state_dict())
    for name, parameter in again.network.named_parameters():
        parameter.requires_grad = not name.startswith("decoder")
    for name, layer in again.network.layers.items():
        if name.startswith("decoder"):
            layer.eval()
    chosen = TrainingOptions(**{**vars(options), "epochs": 1, "iw_samples": SAMPLES})
    return trained_again(again, images, chosen, RATE)


# ---- the importance-weighted bound ----


def weighted_bound(model: VAE, images: np.ndarray, options: TrainingOptions, rate: float) -> VAE:
    """Three more epochs on the importance-weighted bound with five samples of z for each image.

    Source: Burda, Grosse and Salakhutdinov, Importance weighted autoencoders, 2016.
    """
    again = from_config(model.config)
    again.network.load_state_dict(model.network.state_dict())
    chosen = TrainingOptions(**{**vars(options), "epochs": 3, "iw_samples": 5, "seed": options.seed + 1})
    return trained_again(again, images, chosen, RATE)


# ---- a learned prior ----


class Pseudo(nn.Module):
    """The pseudo-inputs of a VampPrior as logits of pixels (K, H, W, C)."""

    def __init__(self, images: np.ndarray) -> None:
        self.logits = nn.Parameter(images.shape)
        x = to_unit_range(images).clip(0.02, 0.98)
        self.logits.data[...] = np.log(x / (1 - x))


class VampPrior(VAE):
    """A VAE with the prior p(z) = 1/K sum over k of q(z | u_k), whose pseudo-inputs u_k are trained.

    Source: Tomczak and Welling, VAE with a VampPrior, 2018.
    """

    def components(self) -> tuple[Tensor, Tensor]:
        """(mean, log_variance) of the prior's Gaussians, each (K, Z), with the encoder's moving statistics."""
        with evaluation():
            features = self.encoder(ops.sigmoid(self.network.layers["prior"].logits))
            return self.heads["mu"](features), self.heads["log_variance"](features)

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z) of each row (N, Z) -> (N,)."""
        mean, log_variance = self.components()
        (K, Z), N = mean.shape, len(z.data)
        difference = z.reshape(N, 1, Z) - mean.reshape(1, K, Z)
        spread = log_variance.reshape(1, K, Z)
        exponents = (difference * difference * ops.exp(-spread) + spread).sum(axis=2) * -0.5
        return ops.logsumexp(exponents, axis=1) - (math.log(K) + Z / 2 * math.log(2 * math.pi))

    def losses(
        self, images: Tensor, noise: Any, beta: Any, labels: Any = None, targets: Any = None
    ) -> tuple[Tensor, list[Tensor]]:
        features = self.encoder(images)
        mu, log_variance = self.heads["mu"](features), self.heads["log_variance"](features)
        z = mu + ops.exp(log_variance * 0.5) * noise
        log_q = (log_variance + noise * noise + math.log(2 * math.pi)).sum(axis=1) * -0.5
        kl = (log_q - self.log_prior(z)).mean()
        reconstruction = ops.bce_with_logits(self.decoder(z), images)
        return reconstruction + kl * beta, [reconstruction, kl]


def vamp_prior(model: VAE, images: np.ndarray, options: TrainingOptions, rate: float) -> VAE:
    """A training from the beginning with that prior; the pseudo-inputs begin as training images."""
    again = from_config(model.config, cls=VampPrior)
    again.network.layers["prior"] = Pseudo(images[generator(0, "pseudo").permutation(len(images))[:COMPONENTS]])
    return trained_again(again, images, options, rate)


class Gaussians(nn.Module):
    """The parameters of K Gaussians of Z dimensions, whose sum is spread like N(0, I) at first."""

    def __init__(self, K: int, Z: int) -> None:
        self.mean, self.log_variance = nn.Parameter((K, Z)), nn.Parameter((K, Z))
        self.mean.data[...] = generator(0, "gaussians").normal(0, math.sqrt(0.5), (K, Z))
        self.log_variance.data[...] = math.log(0.5)


class MixturePrior(VampPrior):
    """A VAE with the prior p(z) = 1/K sum over k of N(z; mean_k, variance_k), all trained."""

    def components(self) -> tuple[Tensor, Tensor]:
        layer = self.network.layers["prior"]
        return layer.mean, layer.log_variance


def mixture_prior(model: VAE, images: np.ndarray, options: TrainingOptions, rate: float) -> VAE:
    """A training from the beginning with that prior."""
    again = from_config(model.config, cls=MixturePrior)
    again.network.layers["prior"] = Gaussians(COMPONENTS, model.noise_dim)
    return trained_again(again, images, options, rate)


class FittedPrior(VAE):
    """A trained VAE whose prior has become a mixture."""

    mixture: Mixture


def fitted_prior(model: VAE, images: np.ndarray, options: TrainingOptions, rate: float) -> VAE:
    """The same model with a mixture of 50 Gaussians, fitted to its draws of z, as the prior."""
    again = from_config(model.config, cls=FittedPrior)
    again.network.load_state_dict(model.network.state_dict())
    again.mixture = fit_mixture(draws_of(model, binarised(images) if options.binarise else images))
    return again


def log_prior_rows(model: VAE, z: np.ndarray) -> np.ndarray:
    """log p(z) of each row (M, Z) under the model's prior -> (M,), in float64."""
    if isinstance(model, FittedPrior):
        return model.mixture.log_density(z)
    if not isinstance(model, VampPrior):
        return -0.5 * (z**2 + math.log(2 * math.pi)).sum(axis=1)
    with model.evaluating():
        mean, log_variance = (x.numpy().astype(np.float64) for x in model.components())
    precision = np.exp(-log_variance)
    rows = z**2 @ precision.T - 2 * z @ (precision * mean).T + (precision * mean**2 + log_variance).sum(axis=1)
    largest = -rows.min(axis=1) / 2
    total = np.log(np.exp(-rows / 2 - largest[:, None]).mean(axis=1)) + largest
    return total - z.shape[1] / 2 * math.log(2 * math.pi)


def bounds_of(model: VAE, images: np.ndarray, samples: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(-log p(x | z) averaged over the samples, -ELBO, importance-weighted bound of -log p(x)) of each image (N,)."""
    mu, log_variance = distribution_of(model, images)
    nll, log_ratio = np.empty((samples, len(images))), np.empty((samples, len(images)))
    for sample in range(samples):
        noise = generator(0, "trial", sample).standard_normal(mu.shape)
        z = mu + np.exp(log_variance / 2) * noise
        nll[sample] = nll_rows(model, images, z)
        log_q = -0.5 * (noise**2 + log_variance + math.log(2 * math.pi)).sum(axis=1)
        log_ratio[sample] = log_prior_rows(model, z) - log_q
    weights = log_ratio - nll
    largest = weights.max(axis=0)
    weighted = -largest - np.log(np.exp(weights - largest).mean(axis=0))
    return nll.mean(axis=0), -weights.mean(axis=0), weighted
