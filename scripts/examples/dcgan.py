"""A deep convolutional GAN (DCGAN) learns to draw clothes.

The generator turns noise into images with transposed convolutions, and the discriminator, a convolutional network, says
which images are real. They train in turns: the discriminator to tell them apart, the generator to be taken for real.
No loss shows how good the images are, so the program measures how far they are from test images.

Source: Radford et al., Unsupervised Representation Learning with DCGANs, 2016; for images of 28 x 28.

    python scripts/examples/dcgan.py

It draws samples in runs/dcgan/samples.png and ends, with seed 0, with "energy distance to test images: 22.74
before, 0.32 after; 0.03 for training images".
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.image import imsave

from autoencoders.data import load_dataset
from minigrad import Tensor, evaluation, nn, no_grad, ops, optim
from minigrad.random import generator as random_numbers

Z, BATCH, EPOCHS = 32, 50, 6


def make_generator() -> nn.Sequential:
    """Noise (N, 32) -> images (N, 28, 28, 1) in [-1, 1]."""
    return nn.Sequential(
        nn.Dense(Z, 7 * 7 * 64), nn.Reshape(7, 7, 64),
        nn.BatchNorm(64, momentum=0.9), nn.ReLU(),
        nn.Conv2DTranspose(64, 32, 4, stride=2),  # (N, 14, 14, 32)
        nn.BatchNorm(32, momentum=0.9), nn.ReLU(),
        nn.Conv2DTranspose(32, 1, 4, stride=2),  # (N, 28, 28, 1)
        nn.Tanh(),
    )  # fmt: skip


def make_discriminator() -> nn.Sequential:
    """Images (N, 28, 28, 1) -> logits (N, 1) of being real."""
    return nn.Sequential(
        nn.Conv2D(1, 32, 4, stride=2),  # (N, 14, 14, 32)
        nn.LeakyReLU(0.2),
        nn.Conv2D(32, 64, 4, stride=2),  # (N, 7, 7, 64)
        nn.BatchNorm(64, momentum=0.9), nn.LeakyReLU(0.2),
        nn.Flatten(), nn.Dense(7 * 7 * 64, 1),
    )  # fmt: skip


def train(
    generator: nn.Module, discriminator: nn.Module, images: np.ndarray, epochs: int, seed: int = 0
) -> Iterator[tuple[float, float, float]]:
    """Yields the losses of discriminator and generator in nats per image, and the share of the fakes that the
    discriminator detects. images: (N, 28, 28, 1) in [-1, 1]."""
    generator_optimizer = optim.Adam(generator.parameters(), 5e-4, beta_1=0.5)
    discriminator_optimizer = optim.Adam(discriminator.parameters(), 5e-4, beta_1=0.5)
    real, fake = (np.full((BATCH, 1), label, np.float32) for label in (1, 0))
    for epoch in range(epochs):
        order = random_numbers(seed, "shuffle", epoch).permutation(len(images))
        noise = random_numbers(seed, "noise", epoch).standard_normal((len(images), Z), dtype=np.float32)
        for start in range(0, len(images) - BATCH + 1, BATCH):
            rows = slice(start, start + BATCH)
            drawn = generator(Tensor(noise[rows]))
            scores = discriminator(drawn.detach())  # no gradient for the generator
            loss = ops.bce_with_logits(discriminator(Tensor(images[order[rows]])), real)
            loss = loss + ops.bce_with_logits(scores, fake)
            discriminator_optimizer.zero_grad()
            loss.backward()
            discriminator_optimizer.step()

            generator_loss = ops.bce_with_logits(discriminator(drawn), real)
            generator_optimizer.zero_grad()
            generator_loss.backward()  # also fills the discriminator's gradients, which its next step sets to zero
            generator_optimizer.step()
            yield loss.item(), generator_loss.item(), float(np.mean(scores.numpy() < 0))


def sample(generator: nn.Module, count: int, seed: int = 0) -> np.ndarray:
    """New images (count, 28, 28, 1) in [-1, 1]."""
    noise = random_numbers(seed, "sample").standard_normal((count, Z), dtype=np.float32)
    with no_grad(), evaluation():
        return generator(Tensor(noise)).numpy()


def energy_distance(a: np.ndarray, b: np.ndarray) -> float:
    """2 E|a - b| - E|a - a'| - E|b - b'| with Euclidean distances; 0 only if a and b have the same distribution."""

    def mean_distance(a: np.ndarray, b: np.ndarray) -> float:
        a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
        squares = np.sum(a * a, axis=1)[:, None] + np.sum(b * b, axis=1) - 2 * a @ b.T
        return float(np.sqrt(np.maximum(squares, 0)).mean())

    return 2 * mean_distance(a, b) - mean_distance(a, a) - mean_distance(b, b)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/dcgan"), help="folder for the picture")
    out = parser.parse_args().out
    data = load_dataset("fashion-mnist-sample")
    images, test = (x / np.float32(127.5) - 1 for x in (data.train_images, data.test_images))
    generator, discriminator = make_generator(), make_discriminator()
    generator.initialize(0)
    discriminator.initialize(1)
    before = energy_distance(sample(generator, 1000), test)
    for step, (loss, generator_loss, detected) in enumerate(train(generator, discriminator, images, EPOCHS), 1):
        if step % 40 == 0:
            found = energy_distance(sample(generator, 1000), test)
            losses = f"losses {loss:.2f} and {generator_loss:.2f}"
            print(f"step {step}: {losses}, {detected:.0%} of the fakes detected, energy distance {found:.2f}")
    drawn = sample(generator, 1000)
    out.mkdir(parents=True, exist_ok=True)
    sheet = drawn[:64].reshape(8, 8, 28, 28).swapaxes(1, 2).reshape(8 * 28, 8 * 28)
    imsave(out / "samples.png", sheet, cmap="gray", vmin=-1, vmax=1)
    after, floor = energy_distance(drawn, test), energy_distance(images[:1000], test)
    print(f"energy distance to test images: {before:.2f} before, {after:.2f} after; {floor:.2f} for training images")


if __name__ == "__main__":
    main()
