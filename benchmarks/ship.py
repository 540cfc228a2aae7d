"""Put trained models into the package: each recipe is trained and measured, and gets a folder with its card.

    python benchmarks/ship.py [--models vae2,vae16,vae40-binarised] [--runs DIR] [--device cuda] [--quick --out DIR]
    python benchmarks/ship.py --cards

Training and measurement are those of `quality.py --seeds 0`. A run that was interrupted goes on, and one that has been
measured is only copied. `--cards` trains nothing: it writes the cards of the models in the package again, from their
results, and the index.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import driver
import quality
from driver import BenchmarkError
from report import table

import autoencoders
from autoencoders.evaluation.metrics import METRICS
from autoencoders.runs.record import RECORD_FILE, model_hash, read_record, write_json
from autoencoders.saved import MODEL_FILE
from autoencoders.shipped import INDEX_FILE, MODELS
from minigrad.serialize import write_atomically

GOOD_FOR = {  # the models that are shipped, which are VAEs, and what each is for
    "vae2": "a map of clothes: every point of the latent plane is decoded while you move over it (`explore`)",
    "vae16": "pictures: samples, interpolations and changes of one latent dimension, sharper than two dimensions allow",
    "vae40-binarised": "likelihoods that compare with published tables, because it was trained on pixels of 0 and 1",
}
CARD, RESULTS, PICTURE = "README.md", "quality.json", "samples.png"
# what is kept of run.json, besides the command: nothing that is a path of this machine
KEPT = (*quality.TRAINING, "status", "model", "data", "training")
# the metrics of the card, their decimals, and the metric that is the standard error
FIGURES: list[tuple[str, int, str]] = [
    ("neg_elbo", 1, "neg_elbo_image_se"),
    ("reconstruction", 1, ""),
    ("kl", 1, ""),
    ("train_neg_elbo", 1, ""),
    ("iw_nll", 1, "iw_nll_se"),
    ("mse", 5, "mse_se"),
    ("pca_mse", 5, ""),
    ("ssim", 3, ""),
    ("active_units", 0, ""),
    ("probe_accuracy", 3, "share"),
    ("knn_accuracy", 3, "share"),
    ("fd", 1, ""),
    ("fd_floor", 1, ""),
]


def take(run: Path, measured: Path, folder: Path) -> None:
    """Copy what a model needs from the folder of its run, with its results.

    Raises:
        BenchmarkError: the run has not come to its end, or is not the one that was measured.
    """
    record, results = read_record(run), json.loads(measured.read_text(encoding="utf-8"))
    if record.get("status") != "finished" or record["training"]["epochs"] != record["options"]["epochs"]:
        raise BenchmarkError(f"{run.name}: its recipe has not run to its end; start this program again")
    if model_hash(run / MODEL_FILE) != results["evaluation"]["model_sha256"]:
        raise BenchmarkError(f"{run.name}: its model is not the one that was measured; remove {measured.name}")
    folder.mkdir(parents=True, exist_ok=True)
    for source in (run / MODEL_FILE, run / "history.jsonl", run / "figures" / PICTURE):
        shutil.copyfile(source, folder / source.name)
    write_json(folder / RECORD_FILE, {"commands": [results["training"]["command"]]} | {x: record[x] for x in KEPT})
    driver.write_record(folder / RESULTS, results)


def write_index(models: Path) -> None:
    """Write the SHA-256 of every file of every model."""
    index: dict[str, dict[str, str]] = {}
    for path in sorted(models.glob("*/*")):
        index.setdefault(path.parent.name, {})[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    write_json(models / INDEX_FILE, index)


# ---- the card ----


def card(folder: Path) -> str:
    """The model card of the model in a folder as Markdown, made from the results and the weights there."""
    name, results = folder.name, json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    training, found = results["training"], results["evaluation"]
    shape, Z = tuple(found["model"]["input_shape"]), found["model"]["latent_space_dim"]
    kept, varied = 1 - found["mse"] / found["mean_mse"], found["sample_std"] / found["image_std"]
    if training["options"]["binarise"]:
        compares = "`iw_nll` is of test images that were binarised once. It compares with models of such images only"
    else:
        compares = "Grey values count as probabilities. So -ELBO compares only with models for which they do, too"
    return f"""# {name}

A variational autoencoder of clothes with {Z} latent dimensions, for images of shape {shape}. It comes with the package
`minigrad-autoencoders`.

![New images, decoded from samples of the prior]({PICTURE})

```python
import autoencoders

model = autoencoders.load("{name}")
images = model.sample(16, seed=1)  # {(16, *shape)}, from 0 to 1
```

In a shell, `autoencoders generate --model {name}` draws new images. `autoencoders explore --model {name}`
opens a page in which you move through the latent space. `autoencoders train --init-from {name} --out FOLDER`
trains the model further.

## Use and limits

- It is good for {GOOD_FOR[name]}.
- It knows small grey pictures of clothes, centred, on black. Other pictures come out as clothes.
- Reconstructions keep {kept:.0%} of the variance of the pixels. They are smoother than the images, and so are samples:
  across samples, a pixel varies {varied:.2f} times as much as across test images.
- Some samples look like no clothes. Of all samples, {found["prior_holes"]:.1%} lie where no test image does
  (1% is ideal).
- {compares}.
- `fd` is no FID. It compares with other figures of this project only.
- The model is for learning and comparing. Nobody has examined it for a use in products.

## Data and licence

Fashion-MNIST by Zalando SE (Xiao, Rasul and Vollgraf, 2017, arXiv:1708.07747; MIT licence): 60,000 images for training
and 10,000 for testing. The model did not get their classes. SHA-256 of the data set:
`{found["data"]["content_hash"]}`.

The weights are under the MIT licence, like the rest of the package.

## Figures

{figures(found)}
The errors are standard errors over the test images. They do not include the spread between trainings with other seeds.
`autoencoders evaluate --model {name} --iw-samples {found["iw_samples"]}` repeats the measurement. It says:

{"".join(f"- {said}.{chr(10)}" for said in (found["verdict"], *found["notes"]))}
## Training

{options(results, autoencoders.load(folder))}
{provenance(results)}

`python benchmarks/ship.py --models {name}` trains and measures the model and writes its files.
`{INDEX_FILE}` has their SHA-256, which is compared when the model is loaded.
"""


def figures(found: dict[str, Any]) -> str:
    """The table of what was measured on the test images."""
    rows, count = [], found["test_images"]
    for name, digits, error in FIGURES:
        if (value := found[name]) is not None:
            off = math.sqrt(value * (1 - value) / count) if error == "share" else found[error] if error else None
            shown = "" if off is None else f"± {off:.{digits}f}"
            rows.append([f"`{name}`: {METRICS[name]}", f"{value:.{digits}f}", shown])
    return table([f"{count:,} test images of {found['data']['name']}", "value", "error"], rows)


def options(results: dict[str, Any], model: autoencoders.Autoencoder) -> str:
    """The table of how the model was trained."""
    training, chosen = results["training"], results["training"]["options"]
    network = {name: model.config[f"conv_{name}"] for name in ("filters", "kernels", "strides")}
    rate = f"{training['learning_rate']:g}, {chosen['schedule']}, {chosen['warmup_steps']} steps of warm-up"
    rows = {
        "command": f"`{training['command']}`",
        "network": "; ".join(f"{name} {' '.join(map(str, sizes))}" for name, sizes in network.items()),
        "weights": f"{sum(p.size for p in model.network.parameters()):,}, float32",
        "loss": f"{model.config['likelihood']} likelihood, beta {model.beta:g}",
        "pixels": "drawn as 0 or 1 in every step" if chosen["binarise"] else "grey values from 0 to 1",
        "epochs, batch size": f"{chosen['epochs']}, {chosen['batch_size']}",
        "Adam's learning rate": rate,
        "seed": str(chosen["seed"]),
    }
    return table(["option", "value"], rows.items()).replace("--:", "---")


def provenance(results: dict[str, Any]) -> str:
    """When, on what and with what the model was trained and measured."""
    training, machine = results["training"], results["machine"]
    where, minutes = training["environment"], training["training_seconds"] / 60
    libraries = [f"Python {where['python']}", f"NumPy {where['numpy']}", *where["libraries"]]
    libraries += [f"{name} {version}" for name, version in results["evaluation"]["versions"].items() if version]
    on = f"{machine['processor']} ({where['device']}, {where['kernels']} kernels, threads: {where['threads']})"
    changed = ", with changes" if results["dirty"] else ""
    return (
        f"Trained on {on} in {minutes:.0f} min, beside other work; finished {training['finished'][:10]}, measured "
        f"{results['date']}. Commit {(results['commit'] or 'unknown')[:12]}{changed}; minigrad {where['minigrad']}, "
        f"{', '.join(libraries)}."
    )


def main(argv: list[str] | None = None) -> int:
    """Ship all that is asked for."""
    known = list(GOOD_FOR)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", metavar="A,B", type=driver.list_of(str), default=known, help=f"(default: {','.join(known)})"
    )
    parser.add_argument("--device", metavar="DEVICE", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--runs", metavar="DIR", type=Path, default=Path("runs"), help="(default: %(default)s)")
    parser.add_argument("--cards", action="store_true", help="only write the cards of the shipped models and the index")
    parser.add_argument("--quick", action="store_true", help="two batches of each, to see that all works")
    parser.add_argument("--out", metavar="DIR", type=Path, help="(default: autoencoders/models)")
    args = driver.chosen(parser, argv, "models", known, "its models are not for use")
    models = args.out or MODELS

    def body() -> int:
        for name in [] if args.cards else args.models:
            measured = args.runs / "quality" / f"{name}-0.json"
            if not measured.exists():
                words = ["--recipes", name, "--seeds", "0", "--device", args.device, "--runs", str(args.runs)]
                words += ["--out", str(measured.parent), *["--quick"] * args.quick]
                if code := quality.main(words):
                    return code
            take(args.runs / f"{name}-0", measured, models / name)
        for folder in sorted(path for path in models.glob("*") if path.is_dir()):
            write_atomically(folder / CARD, card(folder).encode())
            print(f"wrote {folder / CARD}", flush=True)
        write_index(models)
        return 0

    return driver.run_main(body)


if __name__ == "__main__":
    sys.exit(main())
