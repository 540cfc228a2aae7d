"""Train a convolutional autoencoder or VAE and save it with pictures of what it
learnt."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import minigrad
from minigrad.distributed import ALONE, Group, told, world
from minigrad.serialize import DataError

from ..conv_autoencoder import Autoencoder
from ..data import NAMES, Dataset, Reading, load_dataset
from ..evaluation.metrics import table
from ..pictures.film import PROGRESS_FILE, SCATTERED
from ..runs import Run, resume_run, start_run
from ..runs.replace import check_folder
from ..runs.start import check_fit, train_on
from ..saved import folder_of
from ..training import DivergedError, Trainer, TrainingOptions
from ..training.advice import STEPS, more_epochs
from ..training.explained import explain_step
from ..training.steps import Steps
from ..training.tensorboard import TensorBoard
from .options import Parser, add_common_options, add_options, number
from .program import Output, Program, UsageError, as_typed, run_program
from .settings import (
    FOLDERS,
    GROUPS,
    OPTIONS,
    RUN,
    VAE_ONLY,
    WITH_RESUME,
    check_counts,
    check_settings,
    in_options,
    length_of,
    new_model,
    read_config,
    take_model,
    training_options,
)

EXPLAINED = 4  # images of the step that --explain shows
WITH_A_RUN = "out", "resume", "finish", "smoke", "tensorboard", "memory_limit"


def build_parser(program: Program) -> Parser:
    """The options of the program."""
    parser = Parser(
        __doc__,
        program,
        "--latent-dim 10 --out runs/vae10",
        "--out runs/vae10 --resume",
        "--dataset images/ --out runs/mine",
    )
    add_options(parser, GROUPS[""])
    add_options(parser, RUN, keep=True)
    for title, options in GROUPS.items():
        if title:
            add_options(parser.add_argument_group(title), options)
    add_common_options(parser)
    processes = parser.add_argument_group("several processes")
    text = "insist on several processes, which mpirun starts (default: as many as mpirun has started)"
    processes.add_argument("--distributed", action="store_true", help=text)
    gpu = parser.add_argument_group("GPU")
    gpu.add_argument("--memory-limit", type=number(float), metavar="GIB", help="GPU memory to use (default: all)")
    gpu.add_argument("--no-capture", action="store_true", help="launch every kernel by itself, without a CUDA graph")
    return parser


def main(argv: list[str] | None = None, program: Program | None = None) -> int:
    """Run the program; returns its exit code."""
    program = program or Program.installed("train")
    argv = sys.argv[1:] if argv is None else argv
    parser = build_parser(program)
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere if told("RANK") else sys.stderr):
        args = parser.parse_args(argv)
    again = "--finish" if args.finish else "--resume"
    args.resume |= args.finish
    training = Training(args, program, f"{program} {shlex.join(argv)}".strip())
    if args.resume and (args.overwrite or args.smoke or args.config or args.init_from):
        parser.error(f"{again} cannot be combined with --overwrite, --smoke, --config or --init-from")
    if args.resume and (refused := (training.typed - WITH_RESUME) - {"model"}):
        names = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(refused))
        parser.error(f"{again} takes {names} from the checkpoint; leave it out")
    if args.explain and (given := [name for name in WITH_A_RUN if getattr(args, name)]):
        parser.error(f"--explain trains nothing; leave out --{given[0]}")
    how = {"debug": args.debug, "quiet": args.quiet, "what_remains": training.what_remains}
    code = run_program(training.run, **how, group=lambda: training.group)
    training.group.leave(code)
    return code


class Training:
    """One call of the program.

    Attributes:
        typed: the options on the command line. config: those of --config.
        started: the run, once it trains. group: the processes that train it.
    """

    def __init__(self, args: argparse.Namespace, program: Program, command: str) -> None:
        self.args, self.program, self.command = args, program, command
        self.group, self.console = ALONE, Output(args.quiet or told("RANK") > 0)
        names = (name.replace("-", "_") for name in OPTIONS)
        self.typed = {name for name in names if getattr(args, name) is not None}
        self.config: dict[str, Any] = {}
        self.started: Run | None = None

    def run(self) -> None:
        """Train."""
        self.group = world(self.args.distributed)
        try:
            with self.group.together():
                self._run()
        except UsageError as error:
            option = re.match(r"--([a-z-]+)", str(error))
            if option and option[1].replace("-", "_") in set(self.config) - self.typed:
                raise UsageError(f"{self.args.config}: {error}") from error
            raise

    def _run(self) -> None:
        args, console = self.args, self.console
        settings, given = self._settings()
        folder = Path(args.out or FOLDERS[settings["model"]] + ("-smoke" if args.smoke else ""))
        check_counts(settings)
        callbacks = [TensorBoard(folder / "tensorboard")] if args.tensorboard and not self.group.rank else []
        if args.explain:
            if self.group.size > 1:
                raise UsageError("--explain shows one process; start it without mpirun")
            explain(settings, args, console)
            return
        if args.memory_limit is not None and not 0 < args.memory_limit < 2**33:
            raise UsageError(f"--memory-limit is {args.memory_limit:g} but must be a number of GiB above 0, below 2^33")
        if args.resume:
            run = self._resume(folder, settings["model"])
        else:
            if settings["model"] == "ae" and (refused := given & VAE_ONLY):
                raise UsageError(f"--{min(refused).replace('_', '-')} belongs to --model vae")
            run = new_run(settings, args, folder, self.command, console, self.group)
        trainer = run.trainer
        trainer.capture = not args.no_capture
        if args.memory_limit is not None:
            if trainer.k.on_host:
                raise UsageError("--memory-limit limits the memory of a GPU; leave it out with --device cpu")
            trainer.k.limit_memory(int(args.memory_limit * 2**30))
        trainer.callbacks = [*trainer.callbacks, *callbacks]
        run.verbose, self.started = args.verbose, run
        if not args.finish:
            console.line(f"all files go to {folder}{os.sep}; redrawn after every epoch:")
            console.line(f"  {folder / PROGRESS_FILE}")
        if self.group.size > 1:
            console.line(f"{self.group.size} processes; if one of them is killed, go on with:")
            console.line(f"  {self._resuming(folder)}")
        run.execute(console.line)
        if self.group.rank:
            return
        shown = table({**run.record["test"], "model": run.trainer.model.config})
        console.tell(f"test set, {len(run.dataset.test_images):,} images:\n{shown}")
        console.line(f"look at {folder / 'figures'}{os.sep}; then measure, draw or explore it:")
        own = [] if run.dataset.name in NAMES else ["--dataset", as_typed(run.dataset.name)]
        for name in ("evaluate", "generate", "explore"):
            console.line(f"  {self.program.other(name)} {shlex.join(['--model-dir', str(folder), *own])}")
        epochs, steps = (run.record["training"][name] for name in ("epochs", "steps"))
        before = trainer.model.trained_steps - steps
        if run.record["judged"] and trainer.options.patience is None and (more := more_epochs(epochs, steps, before)):
            console.warn(
                f"{before + steps:,} steps of training are few, so images may be blurred; --epochs {more} makes about "
                f"{STEPS:,}, or {train_on(folder, more - epochs)}"
            )

    def _settings(self) -> tuple[dict[str, Any], set[str]]:
        """(all settings, the names of those that were given): typed, or else of --config, or else the defaults."""
        settings = {name.replace("-", "_"): default for name, (default, _, _) in OPTIONS.items()}
        given = set(self.typed)
        if self.args.config:
            self.config.update(read_config(self.args.config))
            if "model" not in self.typed:
                given |= {name for name, value in self.config.items() if value != (settings.get(name) or False)}
            settings |= self.config
        settings |= {name: getattr(self.args, name) for name in self.typed}
        if source := self.args.init_from or self.config.get("init_from"):
            take_model(source, settings, given, self.console.line)
        return settings, given

    def _resume(self, folder: Path, kind: str) -> Run:
        args = self.args
        try:
            run = resume_run(
                folder_of(folder),
                kernels=args.backend,
                finish=args.finish,
                **{name: getattr(args, name) for name in WITH_RESUME - {"backend"}},
                command=self.command,
                progress=not self.console.quiet,
                group=self.group,
                tell=self.console.prose,
                warn=self.console.warn,
            )
        except DataError:
            raise
        except ValueError as error:
            raise UsageError(in_options(str(error))) from error
        if "model" in self.typed and run.trainer.model.kind != kind:
            raise UsageError(f"{folder} holds a run of --model {run.trainer.model.kind}, not {kind}")
        return run

    def what_remains(self, error: BaseException) -> str:
        """After an error: what is saved, and the command that goes on with it."""
        stopped = isinstance(error, KeyboardInterrupt)
        if stopped and self.args.resume and not self.started:
            return f" before the training was resumed. Resume it with:\n{self._mpirun}{self.command}"
        if not self.started or not self.started.resumable or isinstance(error, FileExistsError):
            return " before the first checkpoint; the same command starts again" if stopped else ""
        folder, old = self.started.folder, self.started.replaced
        kept = f"; the replaced run is in {old}" if old else ""
        if isinstance(error, DivergedError):  # a resumed run would diverge again
            return kept
        now = "saved" if stopped else "the checkpoints are kept"
        then = "--finish instead of --resume makes the model now. Resume" if stopped else "When this is fixed, resume"
        return f"; {now}{kept}. {then} with:\n{self._resuming(folder)}"

    def _resuming(self, folder: Path) -> str:
        """The command that resumes the run."""
        again = "--resume --tensorboard" if self.args.tensorboard else "--resume"
        return f"{self._mpirun}{self.program} --out {shlex.quote(str(folder))} {again}"

    @property
    def _mpirun(self) -> str:
        """The words before a command that start as many processes."""
        return f"mpirun -n {self.group.size} " if self.group.size > 1 else ""


def prepared(
    settings: dict[str, Any], args: argparse.Namespace, console: Output, group: Group = ALONE
) -> tuple[Autoencoder, Dataset, TrainingOptions]:
    """The model, data and options that settings describe."""
    tell = console.prose
    threads = group.threads if settings["threads"] is None else settings["threads"]
    computing = settings["backend"], threads, settings["precision"], settings["shards"]
    device = group.device(args.device or "cpu")
    backend = group.first_before_others(lambda: minigrad.use(device, *computing))
    tell(backend.describe())
    if settings["dataset"] not in NAMES:  # a path, recorded so that it is found from every folder
        settings["dataset"] = str(Path(settings["dataset"]).expanduser().absolute())
    if settings["data_dir"] is not None:
        settings["data_dir"] = str(Path(settings["data_dir"]).absolute())
    mine = settings["data_dir"] is None or args.data_dir is not None  # and not a folder that only a record names
    how = vars(Reading.of(settings))
    how |= {"download": mine, "progress": not console.quiet}
    dataset = group.first_before_others(lambda: load_dataset(settings["dataset"], settings["data_dir"], **how))
    tell(dataset.source)
    if args.smoke:
        batch = settings["batch_size"] = settings["batch_size"] or 128
        settings |= {"epochs": 1, "limit_train": 2 * batch, "warmup_steps": 0}
    images = len(dataset.train_images[: settings["limit_train"]])
    settings["batch_size"], settings["epochs"] = length_of(images, settings["batch_size"], settings["epochs"])
    try:
        group.check(backend, settings["batch_size"])
    except ValueError as error:
        raise UsageError(in_options(str(error))) from error
    steps = settings["epochs"] * -(-images // settings["batch_size"])
    if settings["warmup_steps"] is None:
        settings["warmup_steps"] = min(200, max(steps // 10, min(50, steps // 2)))
    options = training_options(settings)
    if options.warmup_steps > steps:
        tell(f"--warmup-steps {options.warmup_steps} is more than all {steps} steps: --lr is not reached")
    if options.kl_warmup > options.epochs:
        tell(f"--kl-warmup {options.kl_warmup:g} is more than all {options.epochs} epochs: --beta is not reached")
    # BatchNorm's moving statistics must forget their initial values, even in a short training. In a long training on
    # few images they must do so early, because the pictures of the first epochs use them.
    settled = min(steps, max(300, 10 * -(-images // settings["batch_size"])))
    model = new_model(settings, (*dataset.train_images.shape[1:],), max(0.0, min(0.99, 1 - 10 / settled)), dataset)
    if "init_from" in settings:
        tell(f"training {settings['init_from']} further; it was trained for {model.trained_steps} steps")
    console.tell(model.summary() if args.verbose else model.outline())
    return model, dataset, options


def new_run(
    settings: dict[str, Any], args: argparse.Namespace, folder: Path, command: str, console: Output, group: Group
) -> Run:
    """A run from settings."""
    tell = console.prose
    overwrite = args.overwrite or (args.smoke and not args.out)
    check_settings(settings)
    group.first(lambda: check_folder(folder, overwrite))
    if settings["dataset"] not in NAMES:
        place = Path(settings["dataset"]).expanduser().resolve()
        if place.is_dir() and place in (folder.resolve(), *folder.resolve().parents):
            raise UsageError(f"--out {folder} lies in the folder of the images, {place}; choose another one")
    model, dataset, options = prepared(settings, args, console, group)
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
        progress=not console.quiet,
        judged=not args.smoke,
        keep_old=bool(args.out) or not args.smoke,
        group=group,
    )
    if not args.quiet:
        tell(network_of(model))
        if model.latent_space_dim == 2:
            tell("--latent-dim 2 gives a map of the images, --latent-dim 16 sharper pictures")
        tell(plan_of(run.trainer))
    return run


def explain(settings: dict[str, Any], args: argparse.Namespace, console: Output) -> None:
    """Write the page of --explain."""
    check_settings(settings)
    if os.path.lexists(args.explain) and not args.overwrite:
        raise FileExistsError(f"{args.explain} exists; --overwrite replaces it")
    settings["batch_size"] = args.batch_size or EXPLAINED  # and not that of a recipe
    model, dataset, options = prepared(settings, args, console)
    check_fit(model, dataset)
    model.compile(settings["lr"])
    explain_step(Steps(model, dataset.train_images, options, dataset.train_labels), args.explain)
    console.line(f"saved {args.explain}; open it in a browser and go on with the arrow keys")


def network_of(model: Autoencoder) -> str:
    """One line: the convolutions as the options that give them."""
    values = {"filters": model.conv_filters, "kernels": model.conv_kernels, "strides": model.conv_strides}
    values |= {"hidden": (model.hidden,)} if model.hidden else {}
    return " ".join(f"--{name} {' '.join(map(str, several))}" for name, several in values.items())


def plan_of(trainer: Trainer) -> str:
    """One line: how much work a training is."""
    options, steps = trainer.options, trainer.options.epochs * trainer.feed.steps
    seen = len(trainer.feed.held_out.images) + min(SCATTERED, len(trainer.feed.trained))  # after each epoch
    more = options.epochs * seen / options.batch_size / 3  # a forward pass takes about a third of a step
    minutes = (steps + more) * trainer.seconds_per_step() / 60
    time = f"{minutes:.0f} min" if minutes >= 1.5 else f"{60 * minutes:.0f} s"
    images = f"{len(trainer.feed.trained):,} images in batches of {options.batch_size}"
    epochs = f"{options.epochs} epoch{'s' * (options.epochs > 1)}"
    return f"{images}, {epochs}: {steps:,} steps, about {time}"
