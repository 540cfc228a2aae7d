"""A convolutional VAE and its training loop on the bare engine: the first file to read.

conv_autoencoder.py and training/ do the same with options, checkpoints and speed; a test compares their losses with
those of this file.

    python -m autoencoders.minimal
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from minigrad import Tensor, evaluation, nn, no_grad, ops, optim
from minigrad.random import generator

from .data import load_dataset

Z = 2  # latent dimensions


class VAE(nn.Module):
    """q(z | x) = N(mu, exp(log_variance)) and p(x | z) = Bernoulli(sigmoid(logits)), for images (N, 28, 28, 1)."""

    def __init__(self) -> None:
        self.encoder = nn.Sequential(
            nn.Conv2D(1, 32, 3, stride=2),  # (N, 14, 14, 32)
            nn.ReLU(),
            nn.BatchNorm(32, momentum=0.9),
            nn.Conv2D(32, 64, 3, stride=2),  # (N, 7, 7, 64)
            nn.ReLU(),
            nn.BatchNorm(64, momentum=0.9),
            nn.Flatten(),
        )
        self.mu = nn.Dense(7 * 7 * 64, Z)
        self.log_variance = nn.Dense(7 * 7 * 64, Z)
        self.decoder = nn.Sequential(
            nn.Dense(Z, 7 * 7 * 64),
            nn.Reshape(7, 7, 64),
            nn.Conv2DTranspose(64, 64, 3, stride=2),  # (N, 14, 14, 64)
            nn.ReLU(),
            nn.BatchNorm(64, momentum=0.9),
            nn.Conv2DTranspose(64, 1, 3, stride=2),  # (N, 28, 28, 1)
        )

    def forward(self, x: Tensor, noise: np.ndarray) -> tuple[Tensor, Tensor]:
        """(-log p(x | z), KL(q(z | x) || N(0, I))) in nats per image, with z = mu + exp(log_variance / 2) * noise."""
        features = self.encoder(x)
        mu, log_variance = self.mu(features), self.log_variance(features)
        z = mu + ops.exp(log_variance * 0.5) * noise
        return ops.bce_with_logits(self.decoder(z), x), ops.kl_to_standard_normal(mu, log_variance)


def train(
    model: VAE, images: np.ndarray, epochs: int, batch_size: int = 128, learning_rate: float = 2e-3, seed: int = 0
) -> Iterator[tuple[float, float]]:
    """Minimise the sum of both losses with Adam; yields them for each step.

    images: (N, 28, 28, 1), uint8. seed: of their order and the noise; `model.initialize(seed)` draws new weights.
    """
    optimizer = optim.Adam(model.parameters(), learning_rate)
    for epoch in range(epochs):
        order = generator(seed, "shuffle", epoch).permutation(len(images))
        noise = generator(seed, "noise", epoch).standard_normal((len(images), Z), dtype=np.float32)
        for start in range(0, len(images), batch_size):
            rows = slice(start, start + batch_size)
            reconstruction, kl = model(Tensor(images[order[rows]] / np.float32(255)), noise[rows])
            optimizer.zero_grad()
            (reconstruction + kl).backward()
            optimizer.step()
            yield reconstruction.item(), kl.item()


def sample(model: VAE, count: int, seed: int = 0) -> np.ndarray:
    """New images (count, 28, 28, 1) in [0, 1]: what is decoded from draws of N(0, I)."""
    z = generator(seed, "sample").standard_normal((count, Z)).astype(np.float32)
    with no_grad(), evaluation():
        return ops.sigmoid(model.decoder(Tensor(z))).numpy()


def main() -> None:
    images = load_dataset("fashion-mnist-sample").train_images
    model = VAE()
    for step, (reconstruction, kl) in enumerate(train(model, images, epochs=4), 1):
        if step % 16 == 0:
            print(f"step {step}: {reconstruction + kl:.1f} nats (reconstruction {reconstruction:.1f}, KL {kl:.1f})")
    picture = sample(model, 1, seed=2)[0, ::2, :, 0]
    for row in picture / picture.max():
        print("".join(" .:-=+*#%@"[int(9 * grey)] for grey in row))


if __name__ == "__main__":
    main()
