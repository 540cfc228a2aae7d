"""A small classifier of Fashion-MNIST whose features measure how far two sets of images are apart.

`python -m autoencoders.features` is the recipe: it trains the classifier on all 60,000 training images and writes the
weights that are shipped with the package. The distance is called FD and is no FID: other network, other features,
and values that compare only with values of this very file.

Read next: metrics.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from minigrad import Tensor, backend_of, nn, no_grad, ops, optim
from minigrad.random import generator
from minigrad.serialize import DataError, load_state, save_state

from .data import load_dataset
from .training import progress_bar

WEIGHTS = Path(__file__).with_name("fd_classifier.safetensors")
INPUT_SHAPE = (28, 28, 1)
FEATURES = 64
SEED, EPOCHS, BATCH, LEARNING_RATE = 0, 5, 128, 3e-3
LEAST_ACCURACY = 0.90  # on the test images; below it the recipe has failed and writes nothing


class Classifier(nn.Module):
    """Three convolutions of stride 2, a dense layer of 64 features, and ten classes."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        channels = 1
        for filters in (16, 32, 32):  # 28 -> 14 -> 7 -> 4 pixels a side
            layers += [nn.Conv2D(channels, filters, 3, stride=2), nn.ReLU(), nn.BatchNorm(filters, momentum=0.9)]
            channels = filters
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Dense(4 * 4 * channels, FEATURES), nn.ReLU())
        self.scores = nn.Dense(FEATURES, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.scores(self.body(images))

    def features(self, images: np.ndarray) -> np.ndarray:
        """The activations before the last layer.

        Shapes: images (N, 28, 28, 1), uint8 or floats in [0, 1] -> (N, 64), float64.
        """
        return self._map(self.body, images)

    def accuracy(self, images: np.ndarray, labels: np.ndarray) -> float:
        """The share of images that get the right class."""
        return float(np.mean(self._map(self, images).argmax(axis=1) == labels))

    def _map(self, function: nn.Module, images: np.ndarray) -> np.ndarray:
        k = backend_of(self.scores.weight.data)
        self.eval()
        parts = []
        with no_grad():
            for start in range(0, len(images), 256):
                x = k.unit_range(k.from_host(np.ascontiguousarray(images[start : start + 256])), np.dtype("float32"))
                parts.append(k.to_host(function(Tensor(x)).data).astype(np.float64))
        return np.concatenate(parts)


def load_classifier() -> Classifier:
    """The shipped classifier, on the default device.

    Raises:
        DataError: its file is missing or damaged.
    """
    classifier = Classifier()
    state, _, _ = load_state(WEIGHTS)
    classifier.load_state_dict(state)
    return classifier


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """|mean_a - mean_b|^2 + trace(C_a + C_b - 2 (C_a^(1/2) C_b C_a^(1/2))^(1/2)), all in float64.

    It is the squared 2-Wasserstein distance of the two normal distributions that have the means and covariances C of
    a and b. The trace of the last root is the sum of the roots of its argument's eigenvalues.

    Shapes: a (N, D), b (M, D), with N and M >= 2 -> a number >= 0.
    Unit: squared units of the features.
    Source: Dowson and Landau, The Fréchet distance between multivariate normal distributions, 1982.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    covariance_a, covariance_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    values, vectors = np.linalg.eigh(covariance_a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T  # (D, D)
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ covariance_b @ root), 0)).sum()
    shift = ((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum()
    return max(0.0, float(shift + np.trace(covariance_a) + np.trace(covariance_b) - 2 * cross))


def train_classifier(images: np.ndarray, labels: np.ndarray, epochs: int = EPOCHS) -> Classifier:
    """A new classifier, trained with Adam and a cosine schedule; every second image is mirrored, drawn anew each epoch.

    Shapes: images (N, 28, 28, 1), uint8; labels (N,), integers 0 ... 9.
    """
    classifier = Classifier()
    classifier.initialize(SEED)
    classifier.train()
    k, dtype = backend_of(classifier.scores.weight.data), np.dtype("float32")
    batches = -(-len(images) // BATCH)
    optimizer = optim.Adam(classifier.parameters(), optim.cosine_schedule(LEARNING_RATE, epochs * batches, warmup=100))
    with progress_bar(epochs * len(images), " images", show=True) as bar:
        for epoch in range(epochs):
            rng = generator(SEED, "features", epoch)
            order, mirrored = rng.permutation(len(images)), rng.random(len(images)) < 0.5
            for start in range(0, len(images), BATCH):
                rows = order[start : start + BATCH]
                x = np.where(mirrored[rows][:, None, None, None], images[rows][:, :, ::-1], images[rows])
                scores = classifier(Tensor(k.unit_range(k.from_host(x), dtype)))
                loss = ops.softmax_cross_entropy(scores, k.from_host(labels[rows].astype(np.int64)))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                bar.update(len(rows))
    return classifier


def main(argv: list[str] | None = None) -> int:
    """Train the classifier on Fashion-MNIST and write its weights into the package."""
    from .cli import Parser, run_program  # which import the metrics, and they this module

    parser: argparse.ArgumentParser = Parser(main.__doc__, prog="python -m autoencoders.features")
    parser.parse_args(argv)

    def body() -> None:
        dataset = load_dataset("fashion-mnist")
        print(dataset.source)
        assert dataset.train_labels is not None
        assert dataset.test_labels is not None
        classifier = train_classifier(dataset.train_images, dataset.train_labels)
        accuracy = classifier.accuracy(dataset.test_images, dataset.test_labels)
        print(f"test accuracy {accuracy:.2%}")
        if accuracy < LEAST_ACCURACY:
            raise DataError(f"test accuracy {accuracy:.2%} is below {LEAST_ACCURACY:.0%}; nothing was written")
        record = {"kind": "fd classifier", "seed": SEED, "epochs": EPOCHS, "test_accuracy": accuracy}
        save_state(WEIGHTS, classifier.state_dict(), record)
        print(f"wrote {WEIGHTS}")

    return run_program(body, debug=False)


if __name__ == "__main__":
    sys.exit(main())
