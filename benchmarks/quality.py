"""How good the recipes are: each is trained and measured with several seeds, one result file for each run.

    python benchmarks/quality.py [--recipes vae10,ae2] [--seeds 0,1,2] [--device cuda] [--runs DIR] [--quick] [--out D]

A run is what these two commands do, and nothing else (`default` is the training without --config):

    python scripts/train_conv_autoencoder.py --config vae10 --seed 0 --out runs/vae10-0
    python scripts/evaluate.py --model-dir runs/vae10-0 --iw-samples 0

A run that was interrupted goes on from its last checkpoint; one that is finished is only measured. Models that are
trained on binarised images get their importance-weighted likelihood from 5,000 samples an image, which takes half an
hour on two cores. benchmarks/report.py makes the tables.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import driver
from driver import BenchmarkError

from autoencoders.cli.settings import recipes
from autoencoders.runs.record import read_record

TRAIN, EVALUATE = "train_conv_autoencoder.py", "evaluate.py"
DEFAULT = "default"  # the recipe that is no --config
IW_SAMPLES = 5_000
# what is kept of run.json: nothing that is a path of this machine
TRAINING = ("options", "learning_rate", "environment", "training_seconds", "finished")


def run(program: str, *arguments: str) -> None:
    """Run a program of ours; raise BenchmarkError unless it ends well."""
    print(f"python scripts/{program} {shlex.join(arguments)}", flush=True)
    done = subprocess.run([sys.executable, str(driver.FOLDER.parent / "scripts" / program), *arguments], check=False)
    if done.returncode in (130, 143):
        raise KeyboardInterrupt
    if done.returncode:
        raise BenchmarkError(f"{program} ended with exit code {done.returncode}")


def started_with(record: dict[str, Any], options: list[str]) -> bool:
    """Whether a run began with these options and no others, wherever its folder and on which device: a --smoke run,
    too, is finished and named like the recipe."""
    words = shlex.split((record.get("commands") or [""])[0])[2:]  # without python and the program
    return words[: len(options)] == options and set(words[len(options) :: 2]) <= {"--out", "--device"}


def train_and_measure(recipe: str, seed: int, folder: Path, device: str, quick: bool) -> dict[str, Any]:
    """{"training": from run.json, "evaluation": evaluation.json} of a recipe."""
    record = read_record(folder)
    status = record.get("status")
    options = [] if recipe == DEFAULT else ["--config", recipe]
    options += ["--seed", str(seed)]
    if status is not None and not started_with(record, options):
        raise BenchmarkError(f"{folder.name} was not trained with {' '.join(options)} alone; use another --runs")
    place = ["--out", str(folder), "--device", device]
    if quick:
        run(TRAIN, *options, *place, "--smoke", "--dataset", "fashion-mnist-sample")
    elif status is None:
        run(TRAIN, *options, *place)
    elif status != "finished":
        run(TRAIN, "--resume", *place)
    record = read_record(folder)
    samples = (2 if quick else IW_SAMPLES) if record["options"]["binarise"] else 0
    run(EVALUATE, "--model-dir", str(folder), "--iw-samples", str(samples), "--device", device)
    evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    evaluation["command"] = f"python scripts/evaluate.py --model-dir {folder.name} --iw-samples {samples}"
    command = f"python scripts/train_conv_autoencoder.py {' '.join(options)}"
    return {"training": {"command": command} | {name: record[name] for name in TRAINING}, "evaluation": evaluation}


def main(argv: list[str] | None = None) -> int:
    """Train and measure all that is asked for."""
    known = [DEFAULT, *(name for name in recipes() if not name.startswith("colour"))]  # those are of colour.py
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names, whole = driver.list_of(str), driver.list_of(int)
    parser.add_argument("--recipes", metavar="A,B", type=names, default=known, help=f"(default: {','.join(known)})")
    parser.add_argument("--seeds", metavar="N,N", type=whole, default=[0, 1, 2], help="(default: 0,1,2)")
    parser.add_argument("--device", metavar="DEVICE", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--runs", metavar="DIR", type=Path, default=Path("runs"), help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="two batches of each, to see that all works")
    parser.add_argument("--out", metavar="DIR", type=Path, help="the results (default: benchmarks/results/quality)")
    args = driver.chosen(parser, argv, "recipes", known)

    def body() -> int:
        for seed in args.seeds:
            for recipe in args.recipes:
                name = f"{recipe}-{seed}"
                found = train_and_measure(recipe, seed, args.runs / name, args.device, args.quick)
                mine = ["--recipes", recipe, "--seeds", str(seed), "--device", args.device]
                record = driver.record_of("quality.py", mine, recipe=recipe, seed=seed, **found)
                path = (args.out or driver.RESULTS / "quality") / f"{name}.json"
                path.parent.mkdir(parents=True, exist_ok=True)
                driver.write_record(path, record)
                print(f"wrote {path}", flush=True)
        return 0

    return driver.run_main(body)


if __name__ == "__main__":
    sys.exit(main())
