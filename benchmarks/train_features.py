"""Trains the classifier of autoencoders/evaluation/features.py on Fashion-MNIST and writes its weights there.

python benchmarks/train_features.py
"""

from __future__ import annotations

import sys

import numpy as np

from autoencoders.cli.options import Parser
from autoencoders.cli.program import Program, run_program
from autoencoders.data import load_dataset
from autoencoders.evaluation.features import WEIGHTS, Classifier
from autoencoders.training.display import progress_bar
from minigrad import Tensor, backend_of, ops, optim
from minigrad.random import generator
from minigrad.serialize import DataError, save_state

SEED, EPOCHS, BATCH, LEARNING_RATE = 0, 5, 128, 3e-3
LEAST_ACCURACY = 0.90  # on the test images; below it nothing is written


def train_classifier(images: np.ndarray, labels: np.ndarray, epochs: int = EPOCHS) -> Classifier:
    """A new classifier, trained with Adam and a cosine schedule; half of the images are mirrored, others in each epoch.

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
    parser = Parser(main.__doc__, Program(("python", "benchmarks/train_features.py")))
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
