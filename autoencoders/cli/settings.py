"""The settings of a training: its options, recipes and configuration files, and the model that they describe."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
import tomllib
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import minigrad
from minigrad.backend import SHARDS
from minigrad.serialize import DataError, read_file

from ..conv_autoencoder import VAE, Autoencoder, load
from ..data import Dataset, Reading
from ..data.dataset import did_you_mean
from ..runs.record import data_of_run
from ..saved import folder_of, source_of
from ..shipped import as_folder
from ..training import TrainingOptions
from ..training.advice import STEPS
from .models import check_data_dir, reading_of_data
from .options import CHOICES, COMPUTING, LIMITS, Option, number
from .program import UsageError

RECIPES = files("autoencoders").joinpath("recipes")


def recipes() -> list[str]:
    """The names of the trainings that come with the package, as TOML files in RECIPES."""
    return sorted(file.name.removesuffix(".toml") for file in RECIPES.iterdir() if file.name.endswith(".toml"))


LONGEST_CONFIG = 1 << 20  # bytes
FOLDERS = {"ae": "model", "vae": "variational/model"}
# An option is read from --config by the same name.
GROUPS: dict[str, dict[str, Option]] = {
    "": {  # shown first
        "model": ("vae", str, "plain or variational autoencoder"),
        "dataset": ("auto", str, "auto, fashion-mnist, mnist, a folder of images, or a file (.npz .npy .csv .h5 ...)"),
        "epochs": (None, int, "passes over the training images (default: 8, or more for few images)"),
        "latent-dim": (2, int, "dimensions of the latent space"),
    },
    "data": {
        "data-dir": (None, str, "folder of the data set's files; missing ones are downloaded (default: user cache)"),
        "image-size": (None, list, "N or H W: resize the short side and crop the centre (default: as they are)"),
        "grayscale": (None, bool, "turn images to grey"),
        "augment": (None, bool, "flip half of the images of each step left to right, and shift all by a few pixels"),
        "test-dir": (None, str, "folder or file of test images (default: a tenth of all, if there are no others)"),
        "skip-broken": (None, bool, "leave out picture files that cannot be read"),
        "limit-train": (None, int, "use only N training images, a random sample of your own data (default: all)"),
        "validation": (0.0, float, "training images held out to measure on: a count, or a share below 1"),
        "denoise": (0.0, float, "standard deviation of the noise on the encoder's input, whose pixels are 0 to 1"),
        "binarise": (None, bool, "draw every pixel of every step as 0 or 1, with its grey as the probability (vae)"),
    },
    "network": {
        "filters": (None, list, "filters of each convolution (default: by the size of the images)"),
        "kernels": (None, list, "kernel size of each convolution, or one for all (default: twice the stride, or 3)"),
        "strides": (None, list, "stride of each convolution, or one for all (default: 2 until 8 x 8 pixels are left)"),
        "hidden": (None, int, "units of a dense layer on both sides of the latent (default: no such layer)"),
        "conditional": (None, bool, "tell encoder and decoder the class of each image (vae; needs labels)"),
    },
    "loss": {
        "likelihood": (None, str, "likelihood of the pixels (vae; default: bernoulli, for colour gaussian-learned)"),
        "beta": (1.0, float, "weight of the KL term (vae)"),
        "kl-warmup": (0.0, float, "epochs over which beta rises from 0 (vae)"),
        "iw-samples": (1, int, "latents per image and step; 2 or more train the importance-weighted bound (vae)"),
    },
    "training": {
        "batch-size": (None, int, "images per step, of all processes together (default: 128, fewer for few images)"),
        "lr": (2e-3, float, "Adam's learning rate; with the cosine schedule its peak"),
        "schedule": ("cosine", str, "learning rate schedule: constant, or a cosine from --lr to 0"),
        "warmup-steps": (None, int, "steps over which --lr is reached from 0 (default: a tenth of all, 50 to 200)"),
        "clip-norm": (None, float, "largest norm that the gradient may have (default: none)"),
        "patience": (None, int, "stop after this many epochs without a better validation loss (default: never)"),
        "save-every": (0, int, "steps between additional checkpoints; one is written after each epoch anyway"),
        "seed": (0, int, "seed of the weights, shuffle, noise and split"),
        "shards": (
            SHARDS,
            int,
            "parts of a batch, a power of two, that a CPU's threads share; last digits depend on it",
        ),
    },
}
RUN: dict[str, Option] = {
    "out": (None, str, "the run's folder (default: model, or variational/model for vae)"),
    "resume": (None, bool, "go on with the run in --out, with its own options"),
    "finish": (None, bool, "write the model of the run in --out as it is now, without further training"),
    "init-from": (None, str, "saved or shipped model to train further (default: a new model)"),
    "overwrite": (None, bool, "replace the run in --out, or the page of --explain"),
    "smoke": (None, bool, "run two batches through every stage, to check that everything works"),
    "config": (None, str, f"TOML file of options, or a recipe ({', '.join(recipes())}); options typed here win"),
    "explain": (None, str, "write one step, on 4 images, as a page to step through, and train nothing (default: off)"),
    "tensorboard": (None, bool, "write events for TensorBoard into the run's folder"),
}
OPTIONS = {name: option for group in (*GROUPS.values(), COMPUTING) for name, option in group.items()}
IN_CONFIG = OPTIONS | {"init-from": RUN["init-from"]}
# arguments of the library that are options of another name
RENAMED = {
    "latent_space_dim": "latent-dim",
    "conv_filters": "filters",
    "conv_kernels": "kernels",
    "conv_strides": "strides",
    "learning_rate": "lr",
}
ARCHITECTURE = {"latent_dim", "filters", "kernels", "strides", "hidden", "conditional", "likelihood"}
VAE_ONLY = {"beta", "kl_warmup", "likelihood", "conditional", "binarise", "iw_samples"}
WITH_RESUME = {"device", "backend", "threads", "precision", "epochs", "dataset", "data_dir"}


def read_config(path: str) -> dict[str, Any]:
    """Options from a TOML file or a recipe, named as on the command line.

    Raises:
        DataError: it cannot be read, or holds an unknown option or a value of the wrong type.
    """
    known = path in recipes()
    if not known and not os.path.lexists(path):
        hint = did_you_mean(path, recipes())
        raise DataError(f"{path}: there is no such file; the recipes are {', '.join(recipes())}{hint}")
    content = RECIPES.joinpath(f"{path}.toml").read_bytes() if known else read_file(Path(path), most=LONGEST_CONFIG)
    try:
        found = tomllib.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as TOML ({error})") from error
    for name, value in found.items():
        if name not in IN_CONFIG:
            hint = did_you_mean(name, IN_CONFIG) or f"; the options are {', '.join(IN_CONFIG)}"
            raise DataError(f"{path}: unknown option {name!r}{hint}")
        kind = IN_CONFIG[name][1]
        good = isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)
        if not good or (kind is list and not all(type(n) is int for n in value)):
            expected = "a list of whole numbers" if kind is list else f"of type {kind.__name__}"
            raise DataError(f"{path}: {name} is {value!r} but must be {expected}")
        if kind is float and not abs(value) <= sys.float_info.max:
            raise DataError(f"{path}: {name} is not a finite number")
        if value not in CHOICES.get(name, (value,)):
            hint = did_you_mean(str(value), CHOICES[name])
            raise DataError(f"{path}: {name} is {value!r} but must be one of {', '.join(CHOICES[name])}{hint}")
    return {name.replace("-", "_"): value for name, value in found.items()}


def in_options(message: str) -> str:
    """A message of the library with its arguments named as the options that are typed here."""
    message = message.removeprefix("optimizer: ").removeprefix("generator: ")
    for name, option in RENAMED.items():
        message = re.sub(rf"\b{name}\b", f"--{option}", message)
    names = "|".join(name.replace("-", " ") for name in OPTIONS)
    return re.sub(rf"^({names})\b", lambda found: "--" + found[0].replace(" ", "-"), message)


def take_model(path: str, settings: dict[str, Any], given: set[str], tell: Callable[[str], None]) -> None:
    """Take the settings from a saved model that is to be trained further: its file, kind, beta unless given, and data.

    Raises:
        DataError: there is no model. UsageError: an option would change the architecture.
    """
    minigrad.use(kernels="numpy")
    source = source_of(as_folder(path), tell)
    model = load(source)
    other = {"model"} if settings["model"] != model.kind else set()
    if refused := given & (ARCHITECTURE | other):
        raise UsageError(f"--{min(refused).replace('_', '-')} comes from the model of --init-from; leave it out")
    settings |= {"init_from": source, "model": model.kind}
    settings["beta"] = settings["beta"] if "beta" in given else model.beta
    if not given & {"dataset", "data_dir"}:
        settings["dataset"], settings["data_dir"] = data_of_run(folder_of(source), None, None, tell)
    reading = vars(reading_of_data(model, folder_of(source), settings["dataset"]))
    settings |= {name: value for name, value in reading.items() if name not in given}


def training_options(settings: dict[str, Any]) -> TrainingOptions:
    names = [name for name in TrainingOptions.__dataclass_fields__ if settings.get(name) is not None]
    return TrainingOptions(**{name: settings[name] for name in names})


def check_counts(settings: dict[str, Any]) -> None:
    """Raise UsageError unless what the library takes as None or a count is one."""
    for name, limits in LIMITS.items():
        if (value := settings[name.replace("-", "_")]) is not None:
            try:
                number(int, *limits)(value)
            except argparse.ArgumentTypeError as error:
                raise UsageError(f"--{name} {error}") from error


def check_settings(settings: dict[str, Any]) -> None:
    """Try all options before the data are loaded, or even downloaded.

    Raises:
        UsageError: one has a value that it cannot have.
    """
    if settings["conditional"] and settings["model"] != "vae":
        raise UsageError("--conditional belongs to --model vae")
    if settings["shards"] & (settings["shards"] - 1):
        raise UsageError(f"--shards is {settings['shards']} but must be a power of two: 1, 2, 4, 8 ...")
    check_data_dir(settings["dataset"], settings["data_dir"])
    try:
        Reading.of(settings)
        minigrad.use(kernels="numpy")  # nothing is to be compiled for what may be refused
        model = new_model(settings, (8, 8, 1), 0.9)
        training_options(settings).check_model(model)
        model.compile(settings["lr"])
    except (ValueError, OverflowError) as error:
        raise UsageError(in_options(str(error))) from error


def new_model(
    settings: dict[str, Any], shape: tuple[int, int, int], momentum: float, dataset: Dataset | None = None
) -> Autoencoder:
    """The model of the settings; the classes of a conditional one are those of the data set."""
    if "init_from" in settings:
        model = load(settings["init_from"])
        model.beta = settings["beta"]
        return model
    kernels, strides = (x[0] if x and len(x) == 1 else x for x in (settings["kernels"], settings["strides"]))
    architecture = settings["filters"], kernels, strides, settings["latent_dim"]
    named: dict[str, Any] = {"seed": settings["seed"], "momentum": momentum, "hidden": settings["hidden"]}
    if settings["model"] == "vae":
        if settings["conditional"] and dataset is not None:
            named |= {"classes": dataset.classes, "class_names": dataset.class_names}
        likelihood = settings["likelihood"] or ("bernoulli" if settings["binarise"] else None)
        return VAE(shape, *architecture, **named, beta=settings["beta"], likelihood=likelihood)
    return Autoencoder(shape, *architecture, **named)


def length_of(images: int, batch_size: int | None, epochs: int | None) -> tuple[int, int]:
    """(batch size, epochs) of a training on this number of images: the given values, or else values that give small
    batches and enough steps if there are few images."""
    batch_size = batch_size or max(16, min(128, 2 ** int(math.log2(max(1, images / 40)))))
    batches = -(-images // batch_size)
    return batch_size, epochs or max(8, min(40, 480_000 // images), -(-STEPS // batches))
