"""What limits a trained VAE: its decoder, its encoder, the form of q(z | x), or over-fitting.

    python benchmarks/limits.py runs/vae16-0 [runs/vae40-0 ...] [--images 300] [--samples 500] [--steps 300] [--quick]

For images that the run was trained on, and for its held-out images (the test images if there are none):

    -ELBO of the encoder's q  -  amortisation  -  approximation  =  NLL, -log p(x)

- amortisation: what the best Gaussian q of each image would gain. Its mean and variance are found by Adam through the
  fixed decoder, starting from the encoder's. It is the encoder's fault.
- approximation: what is left to -log p(x), because p(z | x) is no such Gaussian. -log p(x) is the importance-weighted
  bound with samples of the best q. All three are measured on the same images.
- over-fitting: how much larger -ELBO and -log p(x) are on images that the model has not seen. Images differ so much
  (the standard deviation of -ELBO is about 80 nats) that both groups are first brought to the same difficulty: the
  difference is the coefficient of "not seen" in a regression of -ELBO on what is known of an image without the model.

Adam may stop above the best q, which moves nats from amortisation to approximation; -log p(x) is a bound from above.
A model that was trained on binarised images gets binarised images, drawn once with a fixed seed.

Source: Cremer, Li and Duvenaud, Inference Suboptimality in Variational Autoencoders, 2018.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import driver
import numpy as np
from driver import BenchmarkError

import minigrad
from autoencoders import VAE, load
from autoencoders.data import load_dataset
from autoencoders.data.dataset import to_unit_range
from autoencoders.evaluation.bounds import bernoulli_entropy, binarised, distribution_of, nll_rows
from autoencoders.evaluation.metrics import some
from autoencoders.runs.record import data_of_run, trained_on, training_of_run
from minigrad import Tensor, backend_of, evaluation, nn, ops, optim
from minigrad.random import generator

MANY = 5_000  # images of each group whose -ELBO is compared
DRAWS = 20  # of z for each of the few images; the same noise for both q
RATE = 0.03  # Adam's, at first
COMPONENTS = (2, 16, 64)  # of PCA, whose errors say how difficult an image is
Q = tuple[np.ndarray, np.ndarray]  # (mu, log_variance), each (N, Z)


class Posterior(nn.Module):
    """A Gaussian q(z | x) for each of N images, whose mean and variance are parameters."""

    def __init__(self, mu: np.ndarray, log_variance: np.ndarray) -> None:
        self.mu, self.log_variance = nn.Parameter(mu.shape), nn.Parameter(mu.shape)
        for parameter, values in ((self.mu, mu), (self.log_variance, log_variance)):
            parameter.data[...] = backend_of(parameter.data).from_host(values.astype(np.float32))


def best_q(model: VAE, images: np.ndarray, start: Q, steps: int) -> Q:
    """The Gaussian q of each image with the lowest -ELBO that Adam finds, with a new draw of z in each step."""
    q, k = Posterior(*start), backend_of(model.network.parameters()[0].data)
    model.network.trainable = False
    adam = optim.Adam(q.parameters(), optim.cosine_schedule(RATE, steps))
    x = Tensor(k.unit_range(k.from_host(images), model.dtype))
    for step in range(steps):
        noise = k.from_host(generator(0, "best q", step).standard_normal(q.mu.shape).astype(model.dtype))
        with evaluation():
            logits = model.decoder(q.mu + ops.exp(q.log_variance * 0.5) * noise)
        if model.likelihood == "bernoulli":
            nll = ops.bce_with_logits(logits, x)
        else:
            nll = ops.gaussian_nll(ops.sigmoid(logits), x, model.pixel_log_variance)
        adam.zero_grad()
        (nll + ops.kl_to_standard_normal(q.mu, q.log_variance)).backward()
        adam.step()
    model.network.trainable = True
    return q.mu.numpy().astype(np.float64), q.log_variance.numpy().astype(np.float64)


def neg_elbo_rows(model: VAE, images: np.ndarray, q: Q, draws: int) -> np.ndarray:
    """-ELBO of each image under q (N,), in nats."""
    mu, log_variance = q
    kl = 0.5 * (mu**2 + np.exp(log_variance) - 1 - log_variance).sum(axis=1)
    std, found = np.exp(log_variance / 2), []
    for draw in range(draws):
        noise = generator(0, "limits", draw).standard_normal(mu.shape)
        found.append(nll_rows(model, images, mu + std * noise))
    return np.mean(found, axis=0) + kl


def nll_bound_rows(model: VAE, images: np.ndarray, q: Q, samples: int) -> np.ndarray:
    """The importance-weighted bound of -log p(x) of each image (N,) with samples of q, in nats."""
    mu, log_variance = q
    weights = np.empty((samples, len(images)))
    for sample in range(samples):
        noise = generator(0, "weights", sample).standard_normal(mu.shape)
        z = mu + np.exp(log_variance / 2) * noise
        log_ratio = 0.5 * (noise**2 - z**2 + log_variance).sum(axis=1)  # log p(z) - log q(z | x)
        weights[sample] = log_ratio - nll_rows(model, images, z)
    largest = weights.max(axis=0)
    return -(largest + np.log(np.exp(weights - largest).mean(axis=0)))


def difficulty(images: np.ndarray, axes: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """What is known of each image without the model (N, 7): 1, entropy of its greys, sum, its square, edges, and its
    squared errors under PCA."""
    x = to_unit_range(images)
    entropy = np.array([bernoulli_entropy(image[None]) for image in images])
    total = x.sum(axis=(1, 2, 3))
    edges = sum(np.abs(np.diff(x, axis=axis)).sum(axis=(1, 2, 3)) for axis in (1, 2))
    flat = x.reshape(len(x), -1) - mean
    parts = (flat @ axes) ** 2
    errors = [(flat**2).sum(axis=1) - parts[:, :count].sum(axis=1) for count in COMPONENTS]
    return np.column_stack([np.ones(len(x)), entropy, total, total**2 / 1000, edges, *errors])


def unseen_costs(seen: np.ndarray, unseen: np.ndarray, known: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    """How much larger a loss is on images not seen, at the same difficulty, with its standard error; and the share of
    the variance that the difficulty explains."""
    y = np.concatenate([seen, unseen])
    features = np.concatenate(known)
    scale = np.abs(features).max(axis=0) + 1e-12
    x = np.column_stack([features / scale, np.arange(len(y)) >= len(seen)])
    solution, *_ = np.linalg.lstsq(x, y, rcond=None)
    rest = y - x @ solution
    variance = (rest @ rest) / (len(y) - x.shape[1]) * np.linalg.pinv(x.T @ x)[-1, -1]
    return {
        "difference": float(solution[-1]),
        "difference_se": math.sqrt(variance),
        "explained": float(1 - rest.var() / y.var()),
    }


def mean_and_error(values: np.ndarray) -> list[float]:
    return [float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))]


def name_of(folder: Path) -> str:
    """The last two parts of a path: trials and recipes can have the same name."""
    return "/".join(folder.absolute().parts[-2:])


def limits_of(folder: Path, images: int, samples: int, steps: int, many: int) -> dict[str, Any]:
    """All that is measured of the model of a run."""
    model = load(folder)
    if not isinstance(model, VAE) or model.classes:
        raise BenchmarkError(f"{folder.name}: expected a VAE without classes, found a {model.title}")
    dataset = load_dataset(*data_of_run(folder, None, None))
    options = training_of_run(folder)[1]
    used = dataset.train_images[dataset.limited(*training_of_run(folder)[0])]
    trained = dataset.train_images[trained_on(folder, dataset)]
    held_out = used[options.split(len(used))[1]] if options.validation else dataset.test_images
    centre = to_unit_range(trained[some(len(trained), 20_000, 0, "pca")]).reshape(-1, trained[0].size)
    mean = centre.mean(axis=0)
    axes = np.linalg.eigh(np.cov(centre, rowvar=False))[1][:, ::-1][:, : max(COMPONENTS)]
    record: dict[str, Any] = {"run": name_of(folder), "model": model.config, "options": vars(options)}
    record["held_out"] = "held out" if options.validation else "test"
    groups: dict[str, np.ndarray] = {}
    rows: dict[str, np.ndarray] = {}
    known = []
    for name, group in (("trained", trained), ("held out", held_out)):
        group = group[some(len(group), many, 0, name)]
        groups[name] = binarised(group) if options.binarise else group
        known.append(difficulty(groups[name], axes, mean))
        rows[name] = neg_elbo_rows(model, groups[name], distribution_of(model, groups[name]), 1)
    record["many"] = {name: [len(x), *mean_and_error(x)] for name, x in rows.items()}
    record["over_fitting"] = unseen_costs(rows["trained"], rows["held out"], (known[0], known[1]))
    nll: dict[str, np.ndarray] = {}
    for name, group in groups.items():
        x = group[:images]
        encoded = distribution_of(model, x)
        best = best_q(model, x, encoded, steps)
        encoders, bests = (neg_elbo_rows(model, x, q, DRAWS) for q in (encoded, best))
        bests = np.minimum(bests, encoders)  # where Adam has not found a better one
        nll[name] = nll_bound_rows(model, x, best, samples)
        record[name] = {
            "images": len(x),
            "neg_elbo": mean_and_error(encoders),
            "amortisation": mean_and_error(encoders - bests),
            "approximation": mean_and_error(bests - nll[name]),
            "nll": mean_and_error(nll[name]),
        }
        print(f"{record['run']}, {name}: {record[name]}", flush=True)
    few = [x[: len(nll[name])] for name, x in zip(groups, known, strict=True)]
    record["over_fitting_nll"] = unseen_costs(nll["trained"], nll["held out"], (few[0], few[1]))
    return record


def main(argv: list[str] | None = None) -> int:
    """Measure all runs that are named; rows of runs measured before stay in the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="folder of a finished training")
    for name, default in (("images", 300), ("samples", 500), ("steps", 300)):
        parser.add_argument(
            f"--{name}", metavar="N", type=driver.positive, default=default, help="(default: %(default)s)"
        )
    parser.add_argument("--threads", metavar="N", type=driver.positive, help="(default: all cores)")
    parser.add_argument("--quick", action="store_true", help="a few images, to see that all works")
    parser.add_argument("--out", metavar="FILE", type=Path, help="(default: benchmarks/results/limits.json)")
    args = parser.parse_args(argv)
    if args.quick and not args.out:
        parser.error("--quick needs --out: its figures are no results")

    def body() -> int:
        kernels = minigrad.use("cpu", "auto", args.threads).kernels
        counts = (8, 3, 2, 40) if args.quick else (args.images, args.samples, args.steps, MANY)
        for folder in args.runs:
            found = limits_of(folder, *counts)
            words = ["--images", counts[0], "--samples", counts[1], "--steps", counts[2]]
            found["versions"] = driver.versions_of([kernels])
            row = driver.record_of("limits.py", [name_of(folder), *map(str, words)], **found)
            driver.add_row(args.out or driver.RESULTS / "limits.json", row, "run")
        return 0

    return driver.run_main(body)


if __name__ == "__main__":
    sys.exit(main())
