"""What a fitted mixture gains as the prior of a trained VAE, on the test images.

    python benchmarks/mixtures.py runs/vae16-0 [runs/vae40-binarised-0 ...] [--samples 5000] [--quick --out FILE]

50 Gaussians are fitted to draws of q(z | x) of the images that the run was trained on. Then -ELBO of all test images,
the Fréchet distance of samples and the share of samples where no image lies are measured with both priors. For a model
that was trained on binarised images, so is the importance-weighted bound of -log p(x) of the first 1,000, which takes
half an hour with 5,000 samples of z for each. The network stays as it is.

The result keeps the rows of runs measured before; benchmarks/report.py makes the table.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import driver
from changes import bounds_of, fitted_prior
from driver import BenchmarkError

import minigrad
from autoencoders import VAE, load
from autoencoders.data import load_dataset
from autoencoders.evaluation.bounds import binarised, draws_of, importance_weighted_nll, standard_error
from autoencoders.evaluation.features import frechet_distance, load_classifier
from autoencoders.evaluation.metrics import IW_IMAGES, prior_holes
from autoencoders.runs.record import data_of_run, model_hash, read_record, trained_on, training_of_run
from autoencoders.saved import MODEL_FILE
from minigrad.random import generator

DRAWS, POINTS = 4, 10_000  # of z for -ELBO; images and samples for the share of samples where no image lies


def mixture_of(folder: Path, samples: int, most: int | None) -> dict[str, Any]:
    """All that is measured of the model of a run; most: images, None for all."""
    model = load(folder)
    if not isinstance(model, VAE) or model.classes:
        raise BenchmarkError(f"{folder.name}: expected a VAE without classes, found a {model.title}")
    dataset, options = load_dataset(*data_of_run(folder, None, None)), training_of_run(folder)[1]
    seen, test = dataset.train_images[trained_on(folder, dataset)][:most], dataset.test_images[:most]
    start = time.perf_counter()
    fitted = fitted_prior(model, seen, options, 0.0)
    seconds = time.perf_counter() - start
    images = binarised(test) if options.binarise else test
    normal = generator(0, "sample").standard_normal((len(test), model.latent_space_dim))
    features, points = load_classifier().features, draws_of(model, images)[:POINTS]
    wanted = features(test)
    found: dict[str, Any] = {}
    for name, this, z in (("normal", model, normal), ("mixture", fitted, fitted.mixture.sample(len(test)))):
        bound = bounds_of(this, images, DRAWS)[1]
        found[name] = {
            "neg_elbo": [float(bound.mean()), standard_error(bound)],
            "fd": frechet_distance(features(model.decode(z)), wanted),
            "prior_holes": prior_holes(points, z[: len(points)]),
        }
        found[f"{name}_rows"] = bound
    changes = {"neg_elbo": found.pop("mixture_rows") - found.pop("normal_rows")}
    if options.binarise:
        nll = importance_weighted_nll(model, images[:IW_IMAGES], samples, mixture=fitted.mixture)
        for name, rows in zip(("normal", "mixture"), nll, strict=True):
            found[name]["nll"] = [float(rows.mean()), standard_error(rows)]
        changes["nll"] = nll[1] - nll[0]
    return {
        "run": folder.name,
        "components": len(fitted.mixture.weights),
        "images": len(seen),
        "test_images": len(test),
        "fit_seconds": seconds,
        "model": model.config,
        "model_sha256": model_hash(folder / MODEL_FILE),
        "training": {name: read_record(folder)[name] for name in ("options", "environment")},
        **found,
        "changes": {name: [float(x.mean()), standard_error(x)] for name, x in changes.items()},
    }


def main(argv: list[str] | None = None) -> int:
    """Measure all runs that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="folder of a finished training")
    parser.add_argument("--samples", metavar="N", type=driver.positive, default=5_000, help="(default: %(default)s)")
    parser.add_argument("--threads", metavar="N", type=driver.positive, help="(default: all cores)")
    parser.add_argument("--quick", action="store_true", help="a few images, to see that all works")
    parser.add_argument("--out", metavar="FILE", type=Path, help="(default: benchmarks/results/mixtures.json)")
    args = parser.parse_args(argv)
    if args.quick and not args.out:
        parser.error("--quick needs --out: its figures are no results")

    def body() -> int:
        kernels = minigrad.use("cpu", "auto", args.threads).kernels
        samples = 2 if args.quick else args.samples
        for folder in args.runs:
            found = mixture_of(folder, samples, 200 if args.quick else None)
            found["versions"] = driver.versions_of([kernels])
            row = driver.record_of("mixtures.py", [f"runs/{folder.name}", "--samples", str(samples)], **found)
            driver.add_row(args.out or driver.RESULTS / "mixtures.json", row, "run")
            print(f"{folder.name}: {found['normal']}, with a mixture {found['mixture']}", flush=True)
        return 0

    return driver.run_main(body)


if __name__ == "__main__":
    sys.exit(main())
