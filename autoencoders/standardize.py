"""After a training: latents moved onto the prior, and the variance of the pixels made the best one."""

from __future__ import annotations

import math

import numpy as np

from minigrad import backend_of
from minigrad.random import generator

from .conv_autoencoder import VAE
from .data.dataset import to_unit_range


def standardize(model: VAE, images: np.ndarray, *, labels: np.ndarray | None = None, least: float = 0.0) -> float:
    """Shift and scale each latent dimension so that z has mean 0 and variance 1 over these images, as the prior
    has, and undo it in the decoder's first layer. Returns by how many nats per image the KL falls.

    With m and s^2 the mean and variance of z over images and noise, z' = (z - m) / s has mu' = (mu - m) / s and
    log_variance' = log_variance - 2 log s; the decoder's weight of z becomes s * weight, its bias bias + m weight.
    So reconstructions stay what they are, and no other shift and scale has a smaller KL. Training finds them only
    roughly where the reconstruction counts thousands of nats: there a KL that is a few nats too large is noise.

    Args:
        least: share of the KL; where it would fall by less, nothing is changed, and 0 returned.
    """
    mu, log_variance = (x.astype(np.float64) for x in model.encode_distribution(images, labels=labels))
    with np.errstate(all="ignore"):  # of a model that has diverged, which stays as it is
        mean, power = mu.mean(axis=0), (mu**2 + np.exp(log_variance)).mean(axis=0)
        variance = power - mean**2
        kl = (power - 1 - log_variance.mean(axis=0)).sum() / 2
        gain = float((power - 1 - np.log(variance)).sum() / 2)
        worth_it = least * kl < gain < math.inf
    if not worth_it:
        return 0.0
    scale, Z = np.sqrt(variance), model.latent_space_dim
    named = dict(model.network.named_parameters())
    after = "decoder_hidden" if model.hidden else "decoder_dense"
    names = ("mu.weight", "mu.bias", "log_variance.bias", f"{after}.weight", f"{after}.bias")
    weight, bias, log_bias, first, first_bias = (named[name].numpy().astype(np.float64) for name in names)
    first_bias += mean @ first[:Z]
    first[:Z] *= scale[:, None]
    changed = weight / scale, (bias - mean) / scale, log_bias - 2 * np.log(scale), first, first_bias
    for name, values in zip(names, changed, strict=True):
        data = named[name].data
        data[...] = backend_of(data).from_host(values.astype(data.dtype))
        named[name].mark_written()
    return gain


def fit_variance(model: VAE, images: np.ndarray, *, labels: np.ndarray | None = None) -> float:
    """Set the trained variance of the pixels to the one with which these images are likeliest. Returns by how many nats
    per image -ELBO falls.

    With the mean squared error e over images, pixels and z ~ q(z | x), and variance v, the reconstruction is
    H W C (e / v + log(2 pi v)) / 2 nats. It is least where v = e. Adam moves log v by no more than the learning rate in
    a step, so a short training leaves v too large. Reconstructions and samples stay what they are.
    """
    squares, parameter = 0.0, model.pixel_log_variance
    for rows in model.batches(len(images)):
        given = None if labels is None else labels[rows]
        mu, log_variance = model.encode_distribution(images[rows], labels=given)
        noise = generator(0, "variance", rows.start).standard_normal(mu.shape)
        with np.errstate(all="ignore"):
            z = mu + np.exp(log_variance / 2) * noise
        if not np.isfinite(z).all():  # of a model that has diverged, which stays as it is
            return 0.0
        squares += float(((model.decode(z, labels=given) - to_unit_range(images[rows])) ** 2).sum())
    error = squares / images.size
    ratio = error / math.exp(parameter.item())
    if not (0 < ratio < math.inf and parameter.requires_grad):
        return 0.0
    parameter.data[...] = math.log(error)
    parameter.mark_written()
    return math.prod(model.input_shape) * (ratio - 1 - math.log(ratio)) / 2
