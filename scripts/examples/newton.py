"""Newton's method: each step solves hessian @ step = -gradient, with the matrix of the second derivatives.

`minigrad.grad` with create_graph gives a gradient that can be differentiated again, and row i of the Hessian is the
gradient of its element i. Near the minimum each step squares the error, so the number of correct digits doubles. The
program minimises Rosenbrock's function and then the loss of a logistic regression of pullovers and coats.

Source: Nocedal and Wright, Numerical Optimization, 2nd edition, 2006, chapters 2 and 3. No random numbers.

    python scripts/examples/newton.py

It prints the value and the error of each step (the last errors: 1.3e-01, 1.5e-03, 2.3e-07, 9e-15) and ends with
"logistic regression after 6 steps: loss 0.4690 nats, test accuracy 85.0%".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from autoencoders.data import load_dataset
from minigrad import Tensor, grad, ops

Objective = Callable[[Tensor], Tensor]
PULLOVER, COAT = 2, 4


def derivatives(function: Objective, x: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """The value of a function of a vector (D,), its gradient (D,) and its Hessian (D, D)."""
    point = Tensor(x, requires_grad=True)
    value = function(point)
    gradient = grad(value, point, create_graph=True)
    hessian = [grad(slope, point).numpy() for slope in gradient]
    return value.item(), gradient.numpy(), np.stack(hessian)


def train(function: Objective, start: np.ndarray, steps: int) -> Iterator[tuple[np.ndarray, float, float]]:
    """Newton's method; yields (x, value, norm of the gradient) before each step and after the last."""
    x = start
    for _ in range(steps + 1):
        value, gradient, hessian = derivatives(function, x)
        yield x, value, float(np.linalg.norm(gradient))
        x = x - np.linalg.solve(hessian, gradient)


def rosenbrock(x: Tensor) -> Tensor:
    """(1 - x0)^2 + 100 (x1 - x0^2)^2, a curved valley with its minimum at (1, 1)."""
    return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2


def logistic_regression(features: np.ndarray, labels: np.ndarray, decay: float = 1e-3) -> Objective:
    """The loss as a function of the weights (D,): -log p(label) in nats, plus decay * |weights|^2."""

    def loss(weights: Tensor) -> Tensor:
        logits = ops.matmul(features, weights.reshape(-1, 1))  # (N, 1)
        return ops.bce_with_logits(logits, labels[:, None]) + decay * ops.sum(weights * weights)

    return loss


def load(images: np.ndarray, labels: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Pullovers (0) and coats (1): features (N, 50), which are the means of 4 x 4 pixels and a 1, and labels (N,)."""
    assert labels is not None  # other data sets may have none
    chosen = (labels == PULLOVER) | (labels == COAT)
    blocks = images[chosen].reshape(-1, 7, 4, 7, 4).mean(axis=(2, 4)).reshape(-1, 49) / 255
    return np.hstack([blocks, np.ones((len(blocks), 1))]), (labels[chosen] == COAT).astype(float)


def report(name: str, path: list[tuple[np.ndarray, float, float]]) -> None:
    """Print each step. The error is the distance from the last point."""
    print(name)
    for step, (x, value, slope) in enumerate(path[:-1]):
        error = np.linalg.norm(x - path[-1][0])
        print(f"  step {step}: value {value:.6e}, |gradient| {slope:.1e}, error {error:.1e}")


def main() -> None:
    report("Rosenbrock's function", list(train(rosenbrock, np.array([-1.2, 1.0]), 8)))
    data = load_dataset("fashion-mnist-sample")
    features, labels = load(data.train_images, data.train_labels)
    path = list(train(logistic_regression(features, labels), np.zeros(features.shape[1]), 6))
    report("Logistic regression of pullovers and coats", path)
    weights, loss, _ = path[-1]
    features, labels = load(data.test_images, data.test_labels)
    accuracy = np.mean((features @ weights > 0) == labels)
    print(f"logistic regression after {len(path) - 1} steps: loss {loss:.4f} nats, test accuracy {accuracy:.1%}")


if __name__ == "__main__":
    main()
