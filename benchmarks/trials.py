"""What helps on held-out images: variants of one training, each with the same images, steps and seeds.

    python benchmarks/trials.py [--trials vae2,vae2-hidden] [--seeds 0] [--runs DIR] [--threads N] [--quick]

Each trial trains on 20,000 images and is measured on 5,000 others of the training set, so that the test images play no
part in a choice. A model of binarised images gets such images, and -log p(x) of 1,000 of them is measured as well. For
a model with 16 dimensions a linear probe of the latents is trained on the 20,000 images. What counts is the difference
to the trial whose name lacks the last word, on the same images. It is measured if that trial is in --runs. Trials that
are no options of the training are in changes.py. The result keeps the rows of earlier calls; benchmarks/report.py makes
the table.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import driver
import numpy as np
from changes import averaged, bounds_of, encoder_alone, fitted_prior, mixture_prior, vamp_prior, weighted_bound
from quality import TRAIN, run

import minigrad
from autoencoders import VAE, load
from autoencoders.data import load_dataset
from autoencoders.data.dataset import to_unit_range
from autoencoders.evaluation.bounds import at_the_mean, binarised, latents_of, standard_error
from autoencoders.evaluation.metrics import linear_probe
from autoencoders.runs.record import read_record, training_of_run

COMMON = "--dataset fashion-mnist --epochs 5 --batch-size 64 --limit-train 25000 --validation 5000"
TRIALS = {
    "vae2": "--latent-dim 2",
    "vae2-hidden": "--latent-dim 2 --hidden 256",
    "vae16": "--latent-dim 16",
    "vae16-hidden": "--latent-dim 16 --hidden 256",
    "vae16-beta": "--latent-dim 16 --beta 0.2",
    "vae16-hidden-long": "--latent-dim 16 --hidden 256 --epochs 10",
    "vae16-hidden-augment": "--latent-dim 16 --hidden 256 --augment",
    "vae40-binarised": "--latent-dim 40 --binarise",
    "vae40-binarised-hidden": "--latent-dim 40 --binarise --hidden 256",
    "ae2": "--model ae --latent-dim 2",
    "ae2-hidden": "--model ae --latent-dim 2 --hidden 256",
    "ae16": "--model ae --latent-dim 16",
    "ae16-denoise": "--model ae --latent-dim 16 --denoise 0.3",
    "ae16-augment": "--model ae --latent-dim 16 --augment",
    "ae16-hidden": "--model ae --latent-dim 16 --hidden 256",
    "ae16-long": "--model ae --latent-dim 16 --epochs 10",
}

CHANGES = {
    "vae16-mixture": mixture_prior,
    "vae16-hidden-averaged": averaged,
    "vae16-hidden-encoder": encoder_alone,
    "vae40-binarised-vamp": vamp_prior,
    "vae40-binarised-mixture": mixture_prior,
    "vae16-hidden-fitted": fitted_prior,
    "vae40-binarised-fitted": fitted_prior,
    "vae40-binarised-weighted": weighted_bound,
}
SHOWN = "neg_elbo", "train_neg_elbo", "nll", "mse", "train_mse", "probe"
PROBED = 16  # latent dimensions for which there is a goal
ROWS = "held_out.npz"  # the losses of each image that was held out
DRAWS, WEIGHED, SAMPLES = 4, 1_000, 200  # of z for -ELBO; images and samples for -log p(x)


def before(name: str) -> str:
    """The name of the trial that this one is compared with."""
    return name.rpartition("-")[0]


def trained(name: str, seed: int, folder: Path, threads: int | None, quick: bool) -> list[str]:
    """Train if there is no such run yet; returns the options."""
    options = [*COMMON.split(), *TRIALS[name].split(), "--seed", str(seed)]
    if quick:
        options = [*TRIALS[name].split(), "--smoke", "--dataset", "fashion-mnist-sample", "--validation", "20"]
    if read_record(folder).get("status") != "finished":
        place = ["--out", str(folder), *(["--threads", str(threads)] if threads else []), "--overwrite"]
        run(TRAIN, *options, *place)
    return options


def trial(name: str, seed: int, runs: Path, threads: int | None, quick: bool) -> dict[str, Any]:
    """Train if there is no such run yet, and measure on the held-out images and on as many trained ones."""
    folder, change = runs / f"{name}-{seed}", CHANGES.get(name)
    source = runs / f"{before(name)}-{seed}" if change else folder
    options = trained(before(name) if change else name, seed, source, threads, quick)
    record, model = read_record(source), load(source)
    limit, training = training_of_run(source)
    dataset = load_dataset(record["data"]["name"], record["data"].get("data_dir"))
    used = np.arange(len(dataset.train_images))[dataset.limited(*limit)]
    parts = [used[rows] for rows in training.split(len(used))]
    seen, held_out = (dataset.train_images[part] for part in parts)
    seconds = record["training_seconds"]
    if change:
        start = time.perf_counter()
        assert isinstance(model, VAE)
        model = change(model, seen, training, record["learning_rate"])
        seconds = time.perf_counter() - start
        folder.mkdir(exist_ok=True)
    found: dict[str, Any] = {"parameters": sum(p.size for p in model.network.parameters())}
    rows: dict[str, np.ndarray] = {}
    for group, images in (("", held_out), ("train_", seen[: len(held_out)])):
        images = binarised(images) if training.binarise else images
        latents = latents_of(model, images)
        found[f"{group}mse"], _, made = at_the_mean(model, images, latents)
        if isinstance(model, VAE):
            reconstruction, bound, _ = bounds_of(model, images, DRAWS)
            found[f"{group}neg_elbo"] = float(bound.mean())
        if not group and model.latent_space_dim == PROBED:
            assert dataset.train_labels is not None
            known, labels = (dataset.train_labels[part] for part in parts)
            probe = linear_probe(latents_of(model, seen), known, seed)
            rows["probe"] = 100.0 * (probe.predict(latents.astype(np.float64)) == labels)
            found["probe"] = float(rows["probe"].mean())
        if not group:
            rows["mse"] = ((made - to_unit_range(images)) ** 2).mean(axis=(1, 2, 3))
            if isinstance(model, VAE):
                rows["neg_elbo"] = bound
                found["reconstruction"] = float(reconstruction.mean())
                found["kl"] = found["neg_elbo"] - found["reconstruction"]
                if training.binarise:
                    weighed = images[: min(WEIGHED, len(images))]
                    rows["nll"] = bounds_of(model, weighed, 2 if quick else SAMPLES)[2]
                    found["nll"] = float(rows["nll"].mean())
    np.savez(folder / ROWS, **rows)  # type: ignore[arg-type]
    return {
        "trial": f"{name}-{seed}",
        "options": " ".join(options),
        "change": change.__name__ if change else None,
        "images": len(seen),
        "held_out": len(held_out),
        "epochs": training.epochs,
        "seconds": seconds,
        "environment": record["environment"],
        **found,
        **{f"{key}_se": standard_error(values) for key, values in rows.items()},
        "changes": changes_of(rows, runs / f"{before(name)}-{seed}" / ROWS),
    }


def changes_of(rows: dict[str, np.ndarray], base: Path) -> dict[str, list[float]]:
    """Each loss minus that of the other trial, as [mean, standard error]; empty if that one has not been measured."""
    if not base.exists():
        return {}
    with np.load(base) as others:
        differences = {key: rows[key] - others[key] for key in rows if key in others}
    return {key: [float(values.mean()), standard_error(values)] for key, values in differences.items()}


def main(argv: list[str] | None = None) -> int:
    """Run all trials that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names, whole, known = driver.list_of(str), driver.list_of(int), [*TRIALS, *CHANGES]
    parser.add_argument("--trials", metavar="A,B", type=names, default=known, help="(default: all)")
    parser.add_argument("--seeds", metavar="N,N", type=whole, default=[0], help="(default: 0)")
    parser.add_argument("--runs", metavar="DIR", type=Path, default=Path("runs/trials"), help="(default: %(default)s)")
    parser.add_argument("--threads", metavar="N", type=driver.positive, help="(default: all cores)")
    parser.add_argument("--quick", action="store_true", help="two batches of each, to see that all works")
    parser.add_argument("--out", metavar="FILE", type=Path, help="(default: benchmarks/results/trials.json)")
    args = driver.chosen(parser, argv, "trials", known)

    def body() -> int:
        kernels = minigrad.use("cpu", "auto", args.threads).kernels
        for seed in args.seeds:
            for name in args.trials:
                found = trial(name, seed, args.runs, args.threads, args.quick)
                found["versions"] = driver.versions_of([kernels])
                row = driver.record_of("trials.py", ["--trials", name, "--seeds", str(seed)], **found)
                driver.add_row(args.out or driver.RESULTS / "trials.json", row, "trial")
                shown = [f"{key} {found[key]:.5g}" for key in SHOWN if key in found]
                print(f"{name}-{seed}: {', '.join(shown)}; changes {found['changes']}", flush=True)
        return 0

    return driver.run_main(body)


if __name__ == "__main__":
    sys.exit(main())
