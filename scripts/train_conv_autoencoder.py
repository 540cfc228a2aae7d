#!/usr/bin/env python
"""Train a convolutional autoencoder or VAE and save it with pictures of what it
learnt."""

from __future__ import annotations

import sys

if __name__ == "__main__" and sys._getframe().f_back is None and not sys.flags.safe_path:  # a process of its own
    import early  # noqa: F401  before what takes a second to import

import argparse
import math
import os
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import minigrad
from autoencoders import VAE, Autoencoder, TrainingOptions, load
from autoencoders.advice import STEPS
from autoencoders.cli import (
    CHOICES,
    COMPUTING,
    LIMITS,
    RECIPES,
    Option,
    Output,
    Parser,
    UsageError,
    add_common_options,
    add_options,
    check_data_dir,
    number,
    reading_of_data,
    recipes,
    run_program,
    run_script,
)
from autoencoders.conv_autoencoder import folder_of, source_of
from autoencoders.data import NAMES, Dataset, load_dataset
from autoencoders.dataset import Reading, did_you_mean
from autoencoders.evaluation.metrics import table
from autoencoders.pictures.film import PROGRESS_FILE
from autoencoders.runs import Run, check_folder, data_of_run, replaced_runs, resume_run, start_run
from autoencoders.tensorboard import TensorBoard
from autoencoders.training import DivergedError, Trainer
from minigrad.serialize import DataError, read_file

LONGEST_CONFIG = 1 << 20  # bytes
FOLDERS = {"ae": "model", "vae": "variational/model"}
# An option is read from --config by the same name.
GROUPS: dict[str, dict[str, Option]] = {
    "": {  # shown first
        "model": ("vae", str, "plain or variational autoencoder"),
        "dataset": ("auto", str, "auto, fashion-mnist, mnist, a folder of images, or a file (.npz .npy .csv .h5 ...)"),
        "epochs": (None, int, "passes over the training images (default: 8, more where there are few images)"),
        "latent-dim": (2, int, "dimensions of the latent space"),
    },
    "data": {
        "data-dir": (None, str, "folder that holds the data set's files, or shall (default: the user cache)"),
        "image-size": (None, list, "N or H W: resize the short side and crop the centre (default: as they are)"),
        "grayscale": (None, bool, "turn images to grey"),
        "augment": (None, bool, "flip half of the images of each step left to right, and shift all by a few pixels"),
        "test-dir": (None, str, "folder or file of test images (default: a tenth of all, if there are no others)"),
        "skip-broken": (None, bool, "leave out picture files that cannot be read"),
        "limit-train": (None, int, "use this many training images, of own data a random sample (default: all)"),
        "validation": (0.0, float, "training images held out to measure on: a count, or a share below 1"),
        "denoise": (0.0, float, "standard deviation of noise that the encoder sees on the pixels, which are 0 to 1"),
        "binarise": (None, bool, "draw every pixel of every step as 0 or 1, its grey being the probability (vae)"),
    },
    "network": {
        "filters": (None, list, "filters of each convolution (default: by the size of the images)"),
        "kernels": (None, list, "kernel size of each convolution, or one for all (default: twice the stride, or 3)"),
        "strides": (None, list, "stride of each convolution, or one for all (default: 2 until 8 x 8 pixels are left)"),
        "conditional": (None, bool, "tell encoder and decoder the class of each image (vae; needs labels)"),
    },
    "loss": {
        "likelihood": ("bernoulli", str, "of the pixels (vae)"),
        "beta": (1.0, float, "weight of the KL term (vae)"),
        "kl-warmup": (0.0, float, "epochs in which beta rises from 0 (vae)"),
        "iw-samples": (1, int, "latents per image and step; from 2 on the importance-weighted bound is trained (vae)"),
    },
    "training": {
        "batch-size": (None, int, "images per step (default: 128, fewer where there are few images)"),
        "lr": (2e-3, float, "Adam's learning rate; with the cosine schedule its peak"),
        "schedule": ("cosine", str, "of the learning rate: constant, or from --lr to 0"),
        "warmup-steps": (None, int, "steps in which --lr is reached from 0 (default: a tenth of all, 50 to 200)"),
        "clip-norm": (None, float, "limit of the gradient's norm (default: none)"),
        "patience": (None, int, "stop after this many epochs without a better validation loss (default: never)"),
        "save-every": (0, int, "steps between checkpoints, besides one after each epoch"),
        "seed": (0, int, "of weights, shuffle, noise and split"),
    },
}
RUN: dict[str, Option] = {
    "out": (None, str, "the run's folder (default: model, or variational/model for vae)"),
    "resume": (None, bool, "go on with the run in --out, with its own options"),
    "finish": (None, bool, "make the model of the run in --out as far as it got"),
    "init-from": (None, str, "saved model to train on (default: a new one)"),
    "overwrite": (None, bool, "replace the run in --out"),
    "smoke": (None, bool, "two batches through every stage, to see that all works"),
    "config": (None, str, f"options from a TOML file, or a recipe ({', '.join(recipes())}); those typed here win"),
    "tensorboard": (None, bool, "write events for TensorBoard into the run's folder"),
}
OPTIONS = {name: option for group in (*GROUPS.values(), COMPUTING) for name, option in group.items()}
# arguments of the library that are options of another name
RENAMED = {
    "latent_space_dim": "latent-dim",
    "conv_filters": "filters",
    "conv_kernels": "kernels",
    "conv_strides": "strides",
    "learning_rate": "lr",
}
ARCHITECTURE = {"latent_dim", "filters", "kernels", "strides", "conditional", "likelihood"}
VAE_ONLY = {"beta", "kl_warmup", "likelihood", "conditional", "binarise", "iw_samples"}
WITH_RESUME = {"device", "backend", "threads", "precision", "epochs", "dataset", "data_dir"}


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        __doc__,
        "python scripts/train_conv_autoencoder.py --latent-dim 10 --out runs/vae10",
        "python scripts/train_conv_autoencoder.py --out runs/vae10 --resume",
        "python scripts/train_conv_autoencoder.py --dataset images/ --out runs/mine",
        prog="train_conv_autoencoder.py",
    )
    add_options(parser, GROUPS[""])
    add_options(parser, RUN, keep=True)
    for title, options in GROUPS.items():
        if title:
            add_options(parser.add_argument_group(title), options)
    add_common_options(parser)
    gpu = parser.add_argument_group("GPU")
    gpu.add_argument("--memory-limit", type=number(float), metavar="GIB", help="of its memory (default: all)")
    gpu.add_argument("--no-capture", action="store_true", help="launch every kernel: no CUDA graph")
    return parser


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
        if name not in OPTIONS:
            hint = did_you_mean(name, OPTIONS) or f"; known are {', '.join(OPTIONS)}"
            raise DataError(f"{path}: unknown option {name!r}{hint}")
        kind = OPTIONS[name][1]
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


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = build_parser()
    args = parser.parse_args(argv)
    typed = {name.replace("-", "_") for name in OPTIONS}
    typed = {name for name in typed if getattr(args, name) is not None}
    again = "--finish" if args.finish else "--resume"
    args.resume |= args.finish
    if args.resume and (args.overwrite or args.smoke or args.config or args.init_from):
        parser.error(f"{again} cannot be combined with --overwrite, --smoke, --config or --init-from")
    if args.resume and (refused := (typed - WITH_RESUME) - {"model"}):
        names = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(refused))
        parser.error(f"{again} takes {names} from the checkpoint; leave it out")
    program = shlex.join([as_typed(sys.executable or "python"), as_typed(__file__)])
    command = f"{program} {shlex.join(argv)}".strip()
    started: list[Run] = []
    config: dict[str, Any] = {}

    console = Output(args)

    def body() -> None:
        try:
            train()
        except UsageError as error:
            option = re.match(r"--([a-z-]+)", str(error))
            if option and option[1].replace("-", "_") in set(config) - typed:
                raise UsageError(f"{args.config}: {error}") from error
            raise

    def train() -> None:
        settings = {name.replace("-", "_"): default for name, (default, _, _) in OPTIONS.items()}
        given = set(typed)
        if args.config:
            config.update(read_config(args.config))
            if "model" not in typed:
                given |= {name for name, value in config.items() if value != (settings[name] or False)}
            settings |= config
        settings |= {name: getattr(args, name) for name in typed}
        if args.init_from:
            take_model(args.init_from, settings, given, console.line)
        folder = Path(args.out or FOLDERS[settings["model"]] + ("-smoke" if args.smoke else ""))
        check_counts(settings)
        callbacks = [TensorBoard(folder / "tensorboard")] if args.tensorboard else []
        if args.memory_limit is not None and not 0 < args.memory_limit < 2**33:
            raise UsageError(f"--memory-limit is {args.memory_limit:g} but must be a number of GiB above 0, below 2^33")
        if args.resume:
            try:
                run = resume_run(
                    folder_of(folder),
                    kernels=args.backend,
                    finish=args.finish,
                    **{name: getattr(args, name) for name in WITH_RESUME - {"backend"}},
                    command=command,
                    progress=not args.quiet,
                    tell=console.prose,
                    warn=console.warn,
                )
            except DataError:
                raise
            except ValueError as error:
                raise UsageError(in_options(str(error))) from error
            if "model" in typed and run.trainer.model.kind != settings["model"]:
                raise UsageError(f"{folder} holds a run of --model {run.trainer.model.kind}, not {settings['model']}")
        else:
            if settings["model"] == "ae" and (refused := given & VAE_ONLY):
                raise UsageError(f"--{min(refused).replace('_', '-')} belongs to --model vae")
            run = new_run(settings, args, folder, command, console)
        run.trainer.capture = not args.no_capture
        if args.memory_limit is not None:
            if run.trainer.k.on_host:
                raise UsageError("--memory-limit is of a GPU's memory; leave it out with --device cpu")
            run.trainer.k.limit_memory(int(args.memory_limit * 2**30))
        started.append(run)
        run.verbose = args.verbose
        run.trainer.callbacks = [*run.trainer.callbacks, *callbacks]
        if not args.finish:
            console.line(f"all files go to {folder}{os.sep}; after every epoch look at")
            console.line(f"  {folder / PROGRESS_FILE}")
        run.execute(console.line)
        console.tell(f"test set, {len(run.dataset.test_images):,} images:\n{table(run.record['test'])}")
        console.line(f"look at {folder / 'figures'}{os.sep}; then measure the model or draw more:")
        own = [] if run.dataset.name in NAMES else ["--dataset", as_typed(run.dataset.name)]
        for script in ("evaluate", "generator"):
            other = program.replace("train_conv_autoencoder", script)
            console.line(f"  {other} {shlex.join(['--model-dir', str(folder), *own])}")

    def what_remains(error: BaseException) -> str:
        stopped = isinstance(error, KeyboardInterrupt)
        if stopped and args.resume and not started:
            return f" before the training went on. Go on with:\n{command}"
        if not started or not started[0].resumable or isinstance(error, FileExistsError):
            return " before the first checkpoint" if stopped else ""
        folder = started[0].folder
        old = replaced_runs(folder)
        kept = (
            f"; the run that was to be replaced lies in {old[max(old)]} until a new one is finished; its files can be "
            "moved back"
            if old
            else ""
        )
        if isinstance(error, DivergedError):  # it would again
            return kept
        now = "saved" if stopped else "what was saved is kept"
        then = "--finish in place of --resume makes the model now. Go on" if stopped else "When that is mended, go on"
        again = "--resume --tensorboard" if args.tensorboard else "--resume"
        return f"; {now}{kept}. {then} with:\n{program} --out {shlex.quote(str(folder))} {again}"

    return run_program(body, debug=args.debug, quiet=args.quiet, what_remains=what_remains)


def as_typed(path: str) -> str:
    """A path as it would be typed here: relative where it lies below the working folder."""
    try:
        return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else path
    except OSError:  # the working folder is gone
        return path


def in_options(message: str) -> str:
    """A message of the library with its arguments named as the options that are typed here."""
    message = message.removeprefix("optimizer: ").removeprefix("generator: ")
    for name, option in RENAMED.items():
        message = re.sub(rf"\b{name}\b", f"--{option}", message)
    names = "|".join(name.replace("-", " ") for name in OPTIONS)
    return re.sub(rf"^({names})\b", lambda found: "--" + found[0].replace(" ", "-"), message)


def take_model(path: str, settings: dict[str, Any], given: set[str], tell: Callable[[str], None]) -> None:
    """Let the settings be those of a saved model that is to be trained on: its file, kind, beta unless given, and data.

    Raises:
        DataError: there is no model. UsageError: an option is of the architecture.
    """
    minigrad.use(kernels="numpy")
    source = source_of(path, tell)
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
    named: dict[str, Any] = {"seed": settings["seed"], "momentum": momentum}
    if settings["model"] == "vae":
        if settings["conditional"] and dataset is not None:
            named |= {"classes": dataset.classes, "class_names": dataset.class_names}
        return VAE(shape, *architecture, **named, beta=settings["beta"], likelihood=settings["likelihood"])
    return Autoencoder(shape, *architecture, **named)


def length_of(images: int, batch_size: int | None, epochs: int | None) -> tuple[int, int]:
    """(batch size, epochs) of a training on so many images: those that are given; or else, where there are few images,
    small batches and enough steps."""
    batch_size = batch_size or max(16, min(128, 2 ** int(math.log2(max(1, images / 40)))))
    batches = -(-images // batch_size)
    return batch_size, epochs or max(8, min(40, 480_000 // images), -(-STEPS // batches))


def new_run(settings: dict[str, Any], args: argparse.Namespace, folder: Path, command: str, console: Output) -> Any:
    """A run from settings."""
    tell = console.prose
    overwrite = args.overwrite or (args.smoke and not args.out)
    check_settings(settings)
    check_folder(folder, overwrite)
    backend = minigrad.use(args.device or "cpu", settings["backend"], settings["threads"], settings["precision"])
    tell(backend.describe())
    if settings["dataset"] not in NAMES:  # a path, recorded so that it is found from every folder
        settings["dataset"] = str(Path(settings["dataset"]).expanduser().absolute())
        place = Path(settings["dataset"]).resolve()
        if place.is_dir() and place in (folder.resolve(), *folder.resolve().parents):
            raise UsageError(f"--out {folder} lies in the folder of the images, {place}; choose another one")
    if settings["data_dir"] is not None:
        settings["data_dir"] = str(Path(settings["data_dir"]).absolute())
    mine = settings["data_dir"] is None or args.data_dir is not None  # and not a folder that only a record names
    how = vars(Reading.of(settings))
    dataset = load_dataset(settings["dataset"], settings["data_dir"], **how, download=mine, progress=not args.quiet)
    tell(dataset.source)
    if args.smoke:
        batch = settings["batch_size"] = settings["batch_size"] or 128
        settings |= {"epochs": 1, "limit_train": 2 * batch, "warmup_steps": 0}
    images = len(dataset.train_images[: settings["limit_train"]])
    settings["batch_size"], settings["epochs"] = length_of(images, settings["batch_size"], settings["epochs"])
    steps = settings["epochs"] * -(-images // settings["batch_size"])
    if settings["warmup_steps"] is None:
        settings["warmup_steps"] = min(200, max(steps // 10, min(50, steps // 2)))
    options = training_options(settings)
    if options.warmup_steps > steps:
        tell(f"--warmup-steps {options.warmup_steps} is more than all {steps} steps: --lr is not reached")
    if options.kl_warmup > options.epochs:
        tell(f"--kl-warmup {options.kl_warmup:g} is more than all {options.epochs} epochs: --beta is not reached")
    # BatchNorm's moving statistics shall forget where they started, also in a short training, and in a long one of few
    # images soon enough for those who look at its first epochs.
    settled = min(steps, max(300, 10 * -(-images // settings["batch_size"])))
    model = new_model(settings, (*dataset.train_images.shape[1:],), max(0.0, min(0.99, 1 - 10 / settled)), dataset)
    if "init_from" in settings:
        tell(f"training {settings['init_from']} on, after {model.trained_steps} steps")
    console.tell(model.summary() if args.verbose else model.outline())
    run = start_run(
        model,
        dataset,
        options,
        folder,
        learning_rate=settings["lr"],
        limit_train=settings["limit_train"],
        data_dir=settings["data_dir"],
        overwrite=overwrite,
        init_from=settings.get("init_from"),
        command=command,
        progress=not args.quiet,
        judged=not args.smoke,
    )
    if not args.quiet:
        tell(network_of(model))
        tell(plan_of(run.trainer))
    return run


def network_of(model: Autoencoder) -> str:
    """One line: the convolutions as the options that give them."""
    values = {"filters": model.conv_filters, "kernels": model.conv_kernels, "strides": model.conv_strides}
    return " ".join(f"--{name} {' '.join(map(str, several))}" for name, several in values.items())


def plan_of(trainer: Trainer) -> str:
    """One line: how much work a training is."""
    options, steps = trainer.options, trainer.options.epochs * trainer.batches
    minutes = steps * trainer.seconds_per_step() / 60
    time = f"{minutes:.0f} min" if minutes >= 1.5 else f"{60 * minutes:.0f} s"
    images = f"{len(trainer.trained):,} images in batches of {options.batch_size}"
    epochs = f"{options.epochs} epoch{'s' * (options.epochs > 1)}"
    return f"{images}, {epochs}: {steps:,} steps, about {time}"


if __name__ == "__main__":
    run_script(main)
