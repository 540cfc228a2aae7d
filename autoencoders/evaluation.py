"""How good a model is, in numbers.

Read next: runs.py.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minigrad.random import generator

from .bounds import unit
from .conv_autoencoder import VAE, Autoencoder
from .training import mean_losses


def evaluate(
    model: Autoencoder, images: np.ndarray, seed: int = 0, *, labels: np.ndarray | None = None
) -> dict[str, Any]:
    """Figures of a model on images (N, H, W, C); a conditional model needs their labels (N,).

    Returns:
        mse: mean squared error per pixel of `reconstruct`, pixels in [0, 1]; psnr: -10 log10(mse) in
        decibels, None for a perfect reconstruction.
        For a VAE also, in nats per image: reconstruction and kl, neg_elbo (their sum, with one sample of z for each
        image), and kl_per_dim, the part of each latent dimension.
    Raises:
        DataError: images or labels do not fit the model.
    """
    images = model.check_images(images)
    reconstructed, _ = model.reconstruct(images, labels=labels)
    mse = float(np.mean((reconstructed.astype(np.float64) - unit(images)) ** 2))
    figures: dict[str, Any] = {"mse": mse, "psnr": -10 * math.log10(mse) if mse else None}
    if isinstance(model, VAE):
        losses = mean_losses(
            model, images, generator(seed, "evaluation"), label_rows=model.label_rows(labels, len(images))
        )
        mu, log_variance = (x.astype(np.float64) for x in model.encode_distribution(images, labels=labels))
        kl_per_dim = 0.5 * (mu**2 + np.exp(log_variance) - 1 - log_variance).mean(axis=0)
        figures |= {"neg_elbo": sum(losses.values()), **losses, "kl_per_dim": kl_per_dim.tolist()}
    return figures


def table(figures: dict[str, Any]) -> str:
    """The figures of `evaluate` as lines of text."""
    units = {"mse": "per pixel", "psnr": "dB"}
    lines = []
    for name, value in figures.items():
        if value is None:
            continue
        text = " ".join(f"{x:.2f}" for x in value) if isinstance(value, list) else f"{value:.5g}"
        lines.append(f"  {name:<16}{text} {units.get(name, 'nats per image')}")
    return "\n".join(lines)
