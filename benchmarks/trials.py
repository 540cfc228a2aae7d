"""What helps on held-out images: variants of one training, each with the same images, steps and seeds.

    python benchmarks/trials.py [--trials vae2,vae2-hidden] [--seeds 0] [--runs DIR] [--threads N] [--quick]

Each trial trains on 20,000 images and is measured on 5,000 others of the training set, so that the test images play no
part in a choice. A model of binarised images gets such images. What counts is the difference to the first row with as
many latent dimensions. The result keeps the rows of earlier calls; benchmarks/report.py makes the table.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import driver
import numpy as np
from quality import TRAIN, run

import minigrad
from autoencoders import VAE, load
from autoencoders.data import load_dataset
from autoencoders.evaluation.bounds import at_the_mean, binarised, latents_of, neg_elbo, standard_error
from autoencoders.runs.record import read_record, training_of_run

COMMON = "--dataset fashion-mnist --epochs 5 --batch-size 64 --limit-train 25000 --validation 5000"
TRIALS = {
    "vae2": "--latent-dim 2",
    "vae2-hidden": "--latent-dim 2 --hidden 256",
    "vae16": "--latent-dim 16",
    "vae16-hidden": "--latent-dim 16 --hidden 256",
    "vae16-hidden-long": "--latent-dim 16 --hidden 256 --epochs 10",
    "vae16-hidden-augment": "--latent-dim 16 --hidden 256 --augment",
    "vae40-binarised": "--latent-dim 40 --binarise",
    "vae40-binarised-hidden": "--latent-dim 40 --binarise --hidden 256",
    "ae2": "--model ae --latent-dim 2",
    "ae2-hidden": "--model ae --latent-dim 2 --hidden 256",
}


def trial(name: str, seed: int, folder: Path, threads: int | None, quick: bool) -> dict[str, Any]:
    """Train if there is no such run yet, and measure on the held-out images and on as many trained ones."""
    options = [*COMMON.split(), *TRIALS[name].split(), "--seed", str(seed)]
    if quick:
        options = [*TRIALS[name].split(), "--smoke", "--dataset", "fashion-mnist-sample", "--validation", "20"]
    if read_record(folder).get("status") != "finished":
        place = ["--out", str(folder), *(["--threads", str(threads)] if threads else []), "--overwrite"]
        run(TRAIN, *options, *place)
    record, model = read_record(folder), load(folder)
    limit, training = training_of_run(folder)
    dataset = load_dataset(record["data"]["name"], record["data"].get("data_dir"))
    used = dataset.train_images[dataset.limited(*limit)]
    seen, held_out = (used[rows] for rows in training.split(len(used)))
    found: dict[str, Any] = {"parameters": sum(p.size for p in model.network.parameters())}
    for group, images in (("", held_out), ("train_", seen[: len(held_out)])):
        images = binarised(images) if training.binarise else images
        found[f"{group}mse"], _, made = at_the_mean(model, images, latents_of(model, images))
        if not group:
            found["mse_se"] = standard_error(((made - images / np.float32(255)) ** 2).mean(axis=(1, 2, 3)))
        if isinstance(model, VAE):
            losses = neg_elbo(model, images, 0)
            names = ("neg_elbo", "reconstruction", "kl", "neg_elbo_image_se") if not group else ("neg_elbo",)
            found |= {f"{group}{key}": losses[key] for key in names}
    return {
        "trial": f"{name}-{seed}",
        "options": " ".join(options),
        "images": len(seen),
        "held_out": len(held_out),
        "epochs": training.epochs,
        "seconds": record["training_seconds"],
        "environment": record["environment"],
        **found,
    }


def main(argv: list[str] | None = None) -> int:
    """Run all trials that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names, whole = driver.list_of(str), driver.list_of(int)
    parser.add_argument("--trials", metavar="A,B", type=names, default=list(TRIALS), help="(default: all)")
    parser.add_argument("--seeds", metavar="N,N", type=whole, default=[0], help="(default: 0)")
    parser.add_argument("--runs", metavar="DIR", type=Path, default=Path("runs/trials"), help="(default: %(default)s)")
    parser.add_argument("--threads", metavar="N", type=driver.positive, help="(default: all cores)")
    parser.add_argument("--quick", action="store_true", help="two batches of each, to see that all works")
    parser.add_argument("--out", metavar="FILE", type=Path, help="(default: benchmarks/results/trials.json)")
    args = driver.chosen(parser, argv, "trials", TRIALS)

    def body() -> int:
        kernels = minigrad.use("cpu", "auto", args.threads).kernels
        for seed in args.seeds:
            for name in args.trials:
                found = trial(name, seed, args.runs / f"{name}-{seed}", args.threads, args.quick)
                found["versions"] = driver.versions_of([kernels])
                row = driver.record_of("trials.py", ["--trials", name, "--seeds", str(seed)], **found)
                driver.add_row(args.out or driver.RESULTS / "trials.json", row, "trial")
                shown = [f"{key} {value:.5g}" for key, value in found.items() if "elbo" in key or "mse" in key]
                print(f"{name}-{seed}: {', '.join(shown)}", flush=True)
        return 0

    return driver.run_main(body)


if __name__ == "__main__":
    sys.exit(main())
