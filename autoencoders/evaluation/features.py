"""A small classifier of Fashion-MNIST whose features measure how far two sets of images are apart.

`python benchmarks/train_features.py` trains it on all 60,000 training images and writes the weights that come with the
package. The distance is called FD. It is not an FID: compare it only with other FDs from this file.

Read next: metrics.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from minigrad import Tensor, backend_of, nn, no_grad
from minigrad.serialize import load_state

WEIGHTS = Path(__file__).with_name("fd_classifier.safetensors")
INPUT_SHAPE = (28, 28, 1)
FEATURES = 64


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
