"""The convolutional autoencoder of the Keras blog.

The encoder halves the image three times by max pooling and keeps 4 x 4 x 8 = 128 numbers of 784 pixels; the decoder
doubles it again by repeating each pixel. A sigmoid makes the output a grey value, and the loss is the binary
cross-entropy, computed from the logits so that nothing overflows. The program compares the loss on test images with
that of the mean image, and draws clothes above their reconstructions.

Source: Chollet, Building autoencoders in Keras, The Keras blog, 2016, section "Convolutional autoencoder".

    python scripts/examples/keras_autoencoder.py --out runs/keras_autoencoder

The last line, with seed 0: test loss 0.3068, that of the mean image 0.4885
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.image import imsave

from autoencoders.data import load_dataset
from minigrad import nn, no_grad, ops, optim
from minigrad.random import generator

EPOCHS = 8
PIXELS = 28 * 28


def autoencoder() -> nn.Sequential:
    """Logits of images from images, (N, 28, 28, 1) both."""
    return nn.Sequential(
        nn.Conv2D(1, 16, 3),  # (N, 28, 28, 16)
        nn.ReLU(),
        nn.MaxPool2D(2),  # (N, 14, 14, 16)
        nn.Conv2D(16, 8, 3),
        nn.ReLU(),
        nn.MaxPool2D(2),  # (N, 7, 7, 8)
        nn.Conv2D(8, 8, 3),
        nn.ReLU(),
        nn.MaxPool2D(2, padding="same"),  # (N, 4, 4, 8), the code
        nn.Conv2D(8, 8, 3),
        nn.ReLU(),
        nn.UpSample2D(2),  # (N, 8, 8, 8)
        nn.Conv2D(8, 8, 3),
        nn.ReLU(),
        nn.UpSample2D(2),  # (N, 16, 16, 8)
        nn.Conv2D(8, 16, 3, padding="valid"),  # (N, 14, 14, 16)
        nn.ReLU(),
        nn.UpSample2D(2),  # (N, 28, 28, 16)
        nn.Conv2D(16, 1, 3),  # (N, 28, 28, 1)
    )


def train(model: nn.Module, images: np.ndarray, epochs: int, batch_size: int = 64, seed: int = 0) -> Iterator[float]:
    """Minimise the binary cross-entropy with Adam; yields its mean over each epoch, in nats per pixel."""
    batches = len(images) // batch_size
    optimizer = optim.Adam(model.parameters(), optim.cosine_schedule(3e-3, epochs * batches))
    for epoch in range(epochs):
        order = generator(seed, "shuffle", epoch).permutation(len(images))
        losses = []
        for rows in np.array_split(order, batches):
            loss = ops.bce_with_logits(model(images[rows]), images[rows])  # summed over the pixels of an image
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item() / PIXELS)
        yield float(np.mean(losses))


def cross_entropy(reconstructions: np.ndarray, images: np.ndarray) -> float:
    """The binary cross-entropy in nats per pixel. Images and reconstructions have one shape and values in [0, 1]."""
    p = np.clip(reconstructions, 1e-7, 1 - 1e-7)
    return float(-np.mean(images * np.log(p) + (1 - images) * np.log(1 - p)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/keras_autoencoder"), help="folder for the picture")
    out = parser.parse_args().out
    data = load_dataset("fashion-mnist-sample")
    images, test = data.train_images / np.float32(255), data.test_images / np.float32(255)
    model = autoencoder()
    model.initialize(seed=0)
    for epoch, loss in enumerate(train(model, images, EPOCHS), 1):
        print(f"epoch {epoch}: training loss {loss:.4f}")
    with no_grad():
        reconstructions = ops.sigmoid(model(test)).numpy()
    constant = np.broadcast_to(images.mean(axis=0), test.shape)
    found, other = cross_entropy(reconstructions, test), cross_entropy(constant, test)
    pairs = np.concatenate([test, reconstructions], axis=1)[:12, :, :, 0]  # (12, 56, 28)
    out.mkdir(parents=True, exist_ok=True)
    imsave(out / "reconstructions.png", np.hstack(list(pairs)), cmap="gray", vmin=0, vmax=1)
    print(f"test loss {found:.4f}, that of the mean image {other:.4f}")


if __name__ == "__main__":
    main()
