"""What a model makes of images: reconstructions, and bounds on the likelihood of the images under a VAE.

Sums over pixels and everything after them are float64: some 250 nats, of which the last digits count. Nats are per
image. labels are the classes (N,) of the images, which a conditional model needs and others ignore.

Read next: metrics.py, which measures all of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from minigrad import Tensor, backend_of
from minigrad.random import generator

from ..conv_autoencoder import VAE, Autoencoder
from ..data.dataset import to_unit_range
from ..training import DivergedError
from ..training.display import progress_bar
from ..training.divergence import TRY_AGAIN
from .mixture import Mixture

Array = Any
DRAWS = 4  # of the latent for each image, which give -ELBO its Monte Carlo error
BINARISE_SEED = 0  # never --seed: the images that are binarised are part of the protocol
IW_ROWS = 1 << 16  # importance weights at a time
DECODER = "its decoder gives numbers that are"


def at_the_mean(
    model: Autoencoder, images: np.ndarray, latents: np.ndarray, labels: np.ndarray | None = None
) -> tuple[float, float, np.ndarray]:
    """(mean squared error per pixel, Bernoulli cross-entropy in nats per image, images decoded from the latents).

    Shapes: images (N, H, W, C), latents (N, Z), decoded (N, H, W, C).
    Raises:
        DivergedError: the decoder gives numbers that are not finite.
    """
    entropies, decoded = [], []
    for rows, logits in _decoder_logits(model, latents, labels):
        k = backend_of(logits)
        targets = k.unit_range(k.from_host(images[rows]), model.dtype)
        entropies.append(k.to_host(_bernoulli_rows(k.xp, logits, targets)))
        decoded.append(k.to_host(k.sigmoid(logits)))
    reconstructed = np.concatenate(decoded)
    pairs = zip(reconstructed, images, strict=True)
    squares = [np.sum((y.astype(np.float64) - to_unit_range(x)) ** 2) for y, x in pairs]
    mse, bce = float(np.sum(squares) / images.size), float(np.concatenate(entropies).mean())
    check_finite(mse + bce, DECODER)
    return mse, bce, reconstructed


def psnr(mse: float) -> float | None:
    """The peak signal-to-noise ratio in decibels of pixels in [0, 1]; None where there is no noise."""
    return -10 * math.log10(mse) if mse else None


def nll_rows(
    model: VAE,
    images: np.ndarray,
    latents: np.ndarray,
    labels: np.ndarray | None = None,
    index: np.ndarray | None = None,
) -> np.ndarray:
    """-log p(image | latent) in nats, summed over pixels in float64, for each row.

    Shapes: latents (M, Z); images (M, H, W, C), or (N, H, W, C) with index (M,), the image of each row -> (M,).
    """
    parts = []
    given = labels if labels is None or index is None else labels[index]
    for rows, logits in _decoder_logits(model, latents, given):
        k = backend_of(logits)
        targets = k.unit_range(k.from_host(images[rows if index is None else index[rows]]), model.dtype)
        if model.likelihood == "bernoulli":
            values = _bernoulli_rows(k.xp, logits, targets)
        else:
            log_variance = model.pixel_log_variance
            log_variance = log_variance.item() if isinstance(log_variance, Tensor) else log_variance
            squares = (k.sigmoid(logits) - targets) ** 2 / math.exp(log_variance)
            values = _row_sums(0.5 * (squares + (log_variance + math.log(2 * math.pi))))
        parts.append(k.to_host(values))
    return np.concatenate(parts)


def _decoder_logits(
    model: Autoencoder, latents: np.ndarray, labels: np.ndarray | None
) -> Iterator[tuple[slice, Array]]:
    """(rows, the decoder's output for them on its device), a batch at a time."""
    k = model.backend
    for rows in model.batches(len(latents)):
        z = latents[rows].astype(model.dtype)
        one_hot = model.one_hot(None if labels is None else labels[rows], len(z))
        z = z if one_hot is None else np.concatenate([z, one_hot], axis=1)
        with model.evaluating():
            logits = model.decoder(Tensor(k.from_host(z))).data
        yield rows, logits


def _bernoulli_rows(xp: Any, logits: Array, targets: Array) -> Array:
    return _row_sums(xp.maximum(logits, 0) - logits * targets + xp.log1p(xp.exp(-xp.abs(logits))))


def _row_sums(x: Array) -> Array:
    return x.reshape(len(x), -1).sum(axis=1, dtype="float64")


def latents_of(model: Autoencoder, images: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
    """The latents (N, Z), for a VAE their means; finite."""
    latents = model.encode(images, labels=labels)
    check_finite(latents, "its encoder gives latents that are")
    return latents


def reconstructions_of(model: Autoencoder, images: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
    """The images after a round trip through the latent space, for a VAE through the means; finite."""
    reconstructed = model.decode(latents_of(model, images, labels), labels=labels)
    check_finite(reconstructed, DECODER)
    return reconstructed


def distribution_of(model: VAE, images: np.ndarray, labels: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(mu, log_variance) of q(z | x) in float64, with standard deviations that the model's dtype can hold."""
    mu, log_variance = (x.astype(np.float64) for x in model.encode_distribution(images, labels=labels))
    with np.errstate(over="ignore"):
        std = np.exp(log_variance / 2).astype(model.dtype)
    check_finite(mu + std, "q(z | x) has a mean or variance that is")
    return mu, log_variance


def draws_of(model: VAE, images: np.ndarray, labels: np.ndarray | None = None, seed: int = 0) -> np.ndarray:
    """One draw of q(z | x) for each image (N, Z), in float64."""
    mu, log_variance = distribution_of(model, images, labels)
    return mu + np.exp(log_variance / 2) * generator(seed, "aggregate").standard_normal(mu.shape)


def check_finite(values: Any, whose: str) -> None:
    """Raise DivergedError, which tells whose values they are, unless all are finite."""
    if not np.isfinite(values).all():
        raise DivergedError(f"the model diverged: {whose} not finite; {TRY_AGAIN}")


def standard_error(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


# ---- likelihood bounds ----


def bits_per_dim(model: VAE, nats: float) -> float:
    """Nats per image as bits for each of the H * W * C values of an image: nats / (H W C log 2).

    A Gaussian likelihood is a density of values in [0, 1]. Times 1/255, the distance between two of the 256 grey
    levels, it is the probability of a level, as in published tables: log2(255) = 7.994 bits more. (This takes the
    density as constant within a level, so the standard deviation must not be much smaller than one.) A Bernoulli
    likelihood has a probability already, but of a pixel that is 0 or 1: its bits compare with binarised images alone.
    """
    bits = nats / (math.log(2) * math.prod(model.input_shape))
    return bits if model.likelihood == "bernoulli" else bits + math.log2(255)


def neg_elbo(
    model: VAE,
    images: np.ndarray,
    seed: int,
    draws: int = DRAWS,
    *,
    labels: np.ndarray | None = None,
    mixture: Mixture | None = None,
) -> dict[str, Any]:
    """-ELBO = E_q[-log p(x | z)] + KL(q(z | x) || N(0, I)), with `draws` samples of z for each image.

    neg_elbo_se is the error that the draws leave in the mean over these images: the KL is exact, so it is
    sqrt(mean over images of (variance over draws) / (draws * N)). neg_elbo_image_se is the standard error over images:
    what other images of the same kind would change.

    With a mixture as the prior it is mixture_neg_elbo = neg_elbo - E_q[log mixture(z) - log N(z; 0, I)], from the same
    samples of z.

    Unit: nats per image.
    """
    mu, log_variance = distribution_of(model, images, labels)
    std = np.exp(log_variance / 2)
    values, gains = np.empty((2, draws, len(mu)))
    for draw in range(draws):
        z = mu + std * generator(seed, "evaluation", draw).standard_normal(mu.shape)
        values[draw] = nll_rows(model, images, z, labels)
        gains[draw] = 0 if mixture is None else prior_gain(mixture, z)
    kl = 0.5 * (mu**2 + np.exp(log_variance) - 1 - log_variance)  # (N, Z)
    of_image = values.mean(axis=0) + kl.sum(axis=1)
    error = math.sqrt(values.var(axis=0, ddof=1).mean() / values.size) if draws > 1 else None
    return {
        "neg_elbo": float(of_image.mean()),
        "neg_elbo_se": error,
        "neg_elbo_image_se": standard_error(of_image),
        **({} if mixture is None else {"mixture_neg_elbo": float((of_image - gains.mean(axis=0)).mean())}),
        "reconstruction": float(values.mean()),
        "kl": float(kl.sum(axis=1).mean()),
        "kl_per_dim": kl.mean(axis=0).tolist(),
    }


def prior_gain(mixture: Mixture, z: np.ndarray) -> np.ndarray:
    """log mixture(z) - log N(z; 0, I) of each row: (M, Z) -> (M,)."""
    return mixture.log_density(z) + 0.5 * (z**2 + math.log(2 * math.pi)).sum(axis=1)


def binarised(images: np.ndarray) -> np.ndarray:
    """Each pixel drawn once as 0 or 255 with its grey value as the probability, the same draw in every process."""
    rng = generator(BINARISE_SEED, "binarise")
    return np.where(rng.random(images.shape, dtype=np.float32) < to_unit_range(images), 255, 0).astype(np.uint8)


def importance_weighted_nll(
    model: VAE,
    images: np.ndarray,
    samples: int,
    seed: int = 0,
    progress: bool = False,
    *,
    labels: np.ndarray | None = None,
    mixture: Mixture | None = None,
) -> np.ndarray:
    """-log of the mean over samples of p(x | z) p(z) / q(z | x), z ~ q(z | x): an upper bound of -log p(x).

    The encoder sees the images that are given. Weights and their log-sum-exp are float64; no more than IW_ROWS weights
    are held at a time.

    Args:
        mixture: a second prior, whose bound is computed from the same samples of z.

    Shapes: images (N, H, W, C) -> (N,); with a mixture (2, N), with the prior N(0, I) first.
    Unit: nats.
    Source: Burda, Grosse and Salakhutdinov, Importance Weighted Autoencoders, 2015, equation 8.
    """
    mu, log_variance = distribution_of(model, images, labels)
    rng = generator(seed, "importance")
    found, priors = [], 1 if mixture is None else 2
    group = max(1, IW_ROWS // samples)  # images at a time
    with progress_bar(len(images) * samples, " samples", progress) as bar:
        for start in range(0, len(images), group):
            rows = np.arange(start, min(start + group, len(images)))
            shape = priors, len(rows)
            largest, total = np.full(shape, -np.inf), np.zeros(shape)  # sum of weights: exp(largest) * total
            for done in range(0, samples, IW_ROWS):
                count = min(IW_ROWS, samples - done)
                index = np.repeat(rows, count)
                noise = rng.standard_normal((len(index), mu.shape[1]))
                z = mu[index] + np.exp(log_variance[index] / 2) * noise
                log_ratio = 0.5 * (noise**2 - z**2 + log_variance[index]).sum(axis=1)  # log p(z) - log q(z | x)
                log_weights = log_ratio - nll_rows(model, images, z, labels, index)
                if mixture is not None:
                    log_weights = np.stack([log_weights, log_weights + prior_gain(mixture, z)])
                log_weights = log_weights.reshape(priors, -1, count)
                before, largest = largest, np.maximum(largest, log_weights.max(axis=2))
                total = total * np.exp(before - largest) + np.exp(log_weights - largest[..., None]).sum(axis=2)
                bar.update(len(index))
            found.append(math.log(samples) - largest - np.log(total))
    both = np.concatenate(found, axis=1)
    return both[0] if mixture is None else both


def bernoulli_entropy(images: np.ndarray) -> float:
    """Mean over images of the sum over pixels of -x log x - (1 - x) log(1 - x): the least that bce can be.

    Unit: nats per image.
    """
    values, counts = np.unique(to_unit_range(images), return_counts=True)
    inner = np.clip(values, np.finfo(float).tiny, 1)
    outer = np.clip(1 - values, np.finfo(float).tiny, 1)
    return float(np.sum(counts * -(values * np.log(inner) + (1 - values) * np.log(outer))) / len(images))
