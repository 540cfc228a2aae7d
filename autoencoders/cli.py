"""What the programs in scripts/ share: common options, recipes, and exit codes from errors."""

from __future__ import annotations

import argparse
import io
import logging
import math
import os
import re
import shlex
import signal
import sys
import textwrap
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

import minigrad
from minigrad import DeviceError, backend
from minigrad.backend import KERNELS, PRECISIONS
from minigrad.backend.memory import keep_freed_memory
from minigrad.serialize import DataError

from .conv_autoencoder import BATCH, MODEL_FILE, Autoencoder, folder_of, load, source_of
from .data import COLLECTIONS, NAMES, Dataset, load_dataset
from .dataset import Reading, did_you_mean, printable
from .memory import check_size
from .runs import (
    MOST_THREADS,
    RECORD_FILE,
    check_fit,
    data_of_run,
    model_hash,
    read_record,
    reading_for,
    recover,
)
from .seed_files import WEIGHTS_FILE
from .training import STOPS, DivergedError, interrupt, latest_checkpoint, raise_signals

RECIPES = files(__package__).joinpath("recipes")
_door = threading.Lock()
_guests: list[None] = []  # one for each program that runs in this process
_host = ExitStack()  # what the last of them puts back
COLOURS = {"error": 31, "warning": 33}  # red and yellow
LONGEST, MOST_LETTERS = 1000, 10_000  # of an error and of a line: what it quotes can be a whole file

# default, type (list: of whole numbers; bool: a flag; or what makes a number of a text), help
Option = tuple[Any, Any, str]
METAVARS = {"encode": "FILE", "config": "FILE", "init-from": "RUN"} | dict.fromkeys(
    ("out", "model-dir", "data-dir", "test-dir"), "DIR"
)
COMPUTING: dict[str, Option] = {
    "backend": ("auto", str, "kernels"),
    "threads": (None, int, "CPU threads (default: the cores this process may use)"),
    "precision": ("fp32", str, "of convolutions on a GPU; tf32 is faster and rounds more"),
}
CHOICES: dict[str, tuple[str, ...]] = {
    "model": ("ae", "vae"),
    "schedule": ("constant", "cosine"),
    "likelihood": ("bernoulli", "gaussian", "gaussian-learned"),
    "precision": PRECISIONS,
    "backend": ("auto", *KERNELS["cpu"], "cuda"),
    "format": ("png", "npz"),
}
LIMITS: dict[str, tuple[float, float]] = {"threads": (1, MOST_THREADS), "limit-train": (1, math.inf)}
# options of other programs
SYNONYMS = {"--learning-rate": "--lr", "--gpu": "--device cuda", "--cuda": "--device cuda", "--force": "--overwrite"}


class UsageError(ValueError):
    """An option has a value that it cannot have."""


EXIT_CODES: dict[type[Exception], int] = {
    UsageError: 2,
    DataError: 3,
    FileExistsError: 1,  # a folder in use, and not a fault of the file system
    OSError: 3,
    DeviceError: 4,
    MemoryError: 4,
    DivergedError: 5,
}


def run_script(main: Callable[[], int]) -> NoReturn:
    """Run a script's main, and end the process with its exit code, however often it is told to stop.

    Within another program (a notebook, a debugger, runpy, a thread) nothing of that is changed.
    """
    if sys._getframe(1).f_back is not None or sys.flags.inspect:  # somebody has called the script
        sys.exit(main())
    keep_freed_memory()
    for number in STOPS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, interrupt)
    sys.unraisablehook = _stop_again
    try:
        code = main()
    except KeyboardInterrupt as stop:  # outside run_program: of the options, or the second in a moment
        code = 128 + stop.args[0]
    finally:
        for number in (*STOPS, getattr(signal, "SIGALRM", signal.SIGTERM)):
            signal.signal(number, signal.SIG_IGN)
        _drop_stdout()
    sys.exit(code)


def run_program(
    body: Callable[[], None],
    *,
    debug: bool,
    quiet: bool = False,
    what_remains: Callable[[BaseException], str] = lambda error: "",
) -> int:
    """Run a program's body and return its exit code: 0; 3 data, 4 device or memory, 5 diverged, 1 other; 128 + signal.

    An error is one line on stderr, whose end is what_remains(error); what follows a new line there is a command, and is
    printed on a line of its own. A terminal gets lines of 80 letters. With debug a traceback comes first. With quiet,
    minigrad does not say that it compiles. Afterwards the process is what it was before, in its outputs, signals,
    warnings and kernels.
    """
    log = logging.getLogger("minigrad")
    level = log.level
    with _guest():
        try:
            log.setLevel(logging.ERROR if quiet else level)
            return _run(body, debug, what_remains)
        finally:
            log.setLevel(level)


def _run(body: Callable[[], None], debug: bool, what_remains: Callable[[BaseException], str]) -> int:
    try:
        # numbers that are not finite are looked for, and told
        with raise_signals(), np.errstate(all="ignore"):
            body()
        sys.stdout.flush()
        return 0
    except KeyboardInterrupt as stop:
        with _deaf():
            number = stop.args[0] if stop.args and isinstance(stop.args[0], int) else signal.SIGINT
            _tell("interrupted", what_remains(stop))
            return 128 + number
    except BrokenPipeError as error:
        _tell("error: the reader of the output has gone", what_remains(error))
        return 1
    except Exception as error:
        if debug:
            traceback.print_exc()
        text = " ".join(str(error).split())[:LONGEST] or type(error).__name__
        if isinstance(error, MemoryError):
            text = f"out of memory: {text}; a smaller model, batch or data set needs less"
        elif isinstance(error, FileNotFoundError) and error.filename is None and _nowhere():
            text = "the working folder has been removed; go to another one"
        elif isinstance(error, OSError) and error.filename is not None:
            text = f"{error.filename}: {error.strerror}"
        elif isinstance(error, OSError) and error.errno and _stdout_fails():  # one of our own has no number
            text = f"the standard output: {error.strerror}"
        _tell(f"error: {text}", what_remains(error))
        return next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1)


def _stop_again(lost: sys.UnraisableHookArgs) -> None:
    """What a signal raises while something is finalised, Python drops: it comes again a little later."""
    if not isinstance(lost.exc_value, KeyboardInterrupt) or not hasattr(signal, "setitimer"):
        sys.__unraisablehook__(lost)
        return
    number = lost.exc_value.args[0]
    signal.signal(signal.SIGALRM, lambda *_: interrupt(number, None))
    signal.setitimer(signal.ITIMER_REAL, 0.001)


def coloured(text: str, output: Any) -> str:
    """The text with the first word of an error or warning in colour, if the output is a terminal that shows colours and
    NO_COLOR is not set."""
    word = text.partition(":")[0]
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb"
    if word not in COLOURS or plain or not output.isatty():
        return text
    return f"\033[{COLOURS[word]}m{word}\033[0m{text[len(word) :]}"


class _Shown:
    """An output that shows what comes from outside and obeys none of it: names of files and classes can hold control
    characters. It fails neither where it was closed at the start nor at a letter that it does not know.

    keep: control characters that are obeyed, besides new lines and tabs.
    """

    def __init__(self, output: Any, keep: str = "") -> None:
        self.output, self.keep = output or io.StringIO(), f"\n\t{keep}"

    def write(self, text: str) -> int:
        code = getattr(self.output, "encoding", None) or "utf-8"
        text = printable(text, self.keep).encode(code, "backslashreplace").decode(code)
        self.output.write(coloured(text, self))
        return len(text)

    def __getattr__(self, name: str) -> Any:  # a host's own output need not have all
        return getattr(self.output if hasattr(self.output, name) else io.StringIO(), name)


@contextmanager
def _guest() -> Iterator[None]:
    """Outputs are shown. After the last of the programs that run at once, the process is what it was before the first:
    each for itself would bring back what another one has set."""
    with _door:
        if not _guests:
            _host.enter_context(_same_kernels())
            out: Any = _Shown(sys.stdout)
            err: Any = _Shown(sys.stderr, "\r")  # which progress bars need
            _host.enter_context(redirect_stdout(out))
            _host.enter_context(redirect_stderr(err))
            _host.enter_context(warnings.catch_warnings())
            # a box stands for a letter that the font lacks, and nobody here can give it another font
            warnings.filterwarnings("ignore", "Glyph .* missing from|Matplotlib .* does not support .* natively")
        _guests.append(None)
    try:
        yield
    finally:
        with _door:
            _guests.pop()
            if not _guests:
                _host.close()


@contextmanager
def _same_kernels() -> Iterator[None]:
    """Afterwards the default device, its kernels and threads are those of before."""
    before, kernels = (backend._default, backend._threads), dict(backend._backends)
    try:
        yield
    finally:
        backend._default, backend._threads = before
        backend._backends.clear()
        backend._backends.update(kernels)


def _nowhere() -> bool:
    """Whether the working folder has been removed."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def _stdout_fails() -> bool:
    """Whether it cannot take an empty line. (Python has forgotten what could not be written: a flush would succeed.)"""
    try:
        print(flush=True)
    except OSError:
        return True
    return False


def _drop_stdout() -> None:
    """What cannot be written fails no more."""
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _deaf() -> Iterator[None]:
    """No signal that stops a program is heard, so that its end can be told."""
    try:
        before = {number: signal.signal(number, signal.SIG_IGN) for number in STOPS}
    except ValueError:  # outside the main thread, which no signal interrupts
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell(text: str, what_remains: str) -> None:
    """Print an error, and on a line of its own the command that goes on, ready to be copied."""
    more, _, command = what_remains.partition("\n")
    message = text + more
    with suppress(OSError):  # nobody can be told where stderr, too, has gone
        for line in wrapped(message, sys.stderr):
            show(line, sys.stderr)
        if command:
            show(f"  {command}", sys.stderr)


def text(value: str) -> str:
    """The type of options that name something: an empty one is a variable that nobody has set."""
    if not value.strip():
        raise argparse.ArgumentTypeError("is empty")
    return value


def device(value: str) -> str:
    """The type of --device."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text(value)):
        raise argparse.ArgumentTypeError(f"is {value!r} but must be cpu, cuda or cuda:<index>")
    return value


def one_of(choices: Sequence[str]) -> Callable[[str], str]:
    """The type of options that have few values."""

    def check(value: str) -> str:
        if value not in choices:
            known = f"one of {', '.join(choices)}{did_you_mean(value, choices)}"
            raise argparse.ArgumentTypeError(f"is {value!r} but must be {known}")
        return value

    return check


def number(kind: type = int, least: float = -math.inf, most: float = math.inf) -> Callable[[str], Any]:
    """The type of options that are whole numbers, or numbers, from least to most."""
    limits = f" from {least} to {most}" if most < math.inf else f" >= {least}" if least > -math.inf else ""
    expected = ("a whole number" if kind is int else "a number") + limits

    def check(value: str) -> Any:
        try:
            found = kind(value)
        except ValueError as error:
            hint = "; put spaces between several numbers" if kind is int and "," in value else ""
            raise argparse.ArgumentTypeError(f"is {value!r} but must be {expected}{hint}") from error
        if not least <= found <= most and limits:
            raise argparse.ArgumentTypeError(f"is {found} but must be {expected}")
        return found

    return check


class Parser(argparse.ArgumentParser):
    """A parser whose errors, too, are one line, and say what may have been meant.

    Args:
        about: what the program does. examples: of its arguments, shown at the end of the help.
    """

    def __init__(self, about: str | None, *examples: str, **named: Any) -> None:
        super().__init__(
            usage="%(prog)s [options]",
            description=about,
            epilog="\n  ".join(("examples:", *examples)) if examples else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **named,
        )

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, rest = self.parse_known_args(args, namespace)
        if not rest:
            return found
        word = rest[0].partition("=")[0]
        options = [name for action in self._actions for name in action.option_strings]
        if word.startswith("-"):
            name = "--" + word.strip("-").replace("_", "-")
            hint = f"; did you mean {SYNONYMS[name]}?" if name in SYNONYMS else did_you_mean(name, options)
            self.error(f"there is no option {word}{hint}")
        place = next(name for name in ("--model-dir", "--dataset", "option") if name in (*options, "option"))
        self.error(f"{rest[0]!r} belongs to no option; write {place} {rest[0]}")

    def error(self, message: str) -> NoReturn:
        message = re.sub("^argument ([^ :]+): is ", r"\1 is ", message).removeprefix("argument ")
        text = f"error: {printable(message)} ({self.prog} --help shows all options)\n"
        self.exit(2, coloured(text, sys.stderr) if sys.stderr else text)


def add_options(group: Any, options: dict[str, Option], keep: bool = False) -> None:
    """Add options of a table to a parser or a group of it. One that is not typed is None, or its default with keep."""
    for name, (default, kind, about) in options.items():
        if default is not None:
            about += f" (default: {' '.join(map(str, default)) if kind is list else default})"
        default = default if keep else None
        if kind is bool:
            group.add_argument(f"--{name}", action="store_true", default=False if keep else None, help=about)
            continue
        choices = CHOICES.get(name)
        of_text = {
            int: number(int, *LIMITS.get(name, ())),
            list: number(int),
            float: number(float),
            str: one_of(choices) if choices else text,
        }.get(kind, kind)
        shown = "X" if kind is float else "N" if kind is not str else METAVARS.get(name, name.upper())
        group.add_argument(
            f"--{name}",
            type=of_text,
            default=default,
            nargs="+" if kind is list else None,
            metavar=f"{{{','.join(choices)}}}" if choices else shown,
            help=about,
        )


def recipes() -> list[str]:
    """The names of the trainings that come with the package, as TOML files in RECIPES."""
    return sorted(file.name.removesuffix(".toml") for file in RECIPES.iterdir() if file.name.endswith(".toml"))


def add_model_options(parser: argparse.ArgumentParser, options: dict[str, Option], *, images: str, seed: str) -> None:
    """--model-dir, what is done with the model, which images and random numbers it gets, and the common options."""
    add_options(parser, {"model-dir": ("variational/model", str, "a trained model's folder"), **options}, keep=True)
    data: dict[str, Option] = {
        "dataset": (None, str, f"{images} (default: those of the run; own ones must be named again)"),
        "skip-broken": (None, bool, "leave out picture files that cannot be read"),
        "data-dir": (None, str, "folder of its files (default: that of the run)"),
        "seed": (0, number(least=0), seed),
    }
    add_options(parser.add_argument_group("data"), data, keep=True)
    add_common_options(parser)


def model_of(args: argparse.Namespace, tell: Callable[[str], None]) -> tuple[Autoencoder, Path, Callable[[], None]]:
    """(the model of --model-dir, its file, what raises RuntimeError if the folder holds another model meanwhile).

    A checkpoint counts as long as no model is there, also if the run goes on.

    Raises:
        DataError: there is no model, or no valid one. UsageError: --out is needed for results of this file.
    """
    folder = folder_of(args.model_dir)
    recover(folder, tell)
    source = source_of(args.model_dir, tell)
    if Path(args.model_dir).is_file() and source.name not in (MODEL_FILE, WEIGHTS_FILE) and not args.out:
        raise UsageError(f"--out is needed: the results in {folder} are of its own model, not of {source.name}")
    watched = source if source.parent == folder else folder / MODEL_FILE
    known = model_hash(watched)
    steps = read_record(folder).get("training", {}).get("steps")
    newest = latest_checkpoint(folder)
    if source.name == MODEL_FILE and steps and newest and int(newest.stem.rpartition("-")[2]) > steps:
        tell(f"the run has gone on since {source} was saved; training with --finish makes a model of {newest.name}")

    def check() -> None:
        if model_hash(watched) != known:
            raise RuntimeError(f"{folder}: the model has changed meanwhile; run this again")

    return load(source), source, check


def check_data_dir(dataset: str, data_dir: str | None) -> None:
    """Raise UsageError where a folder is given for a data set that takes none."""
    if data_dir is not None and dataset not in ("auto", *COLLECTIONS):
        raise UsageError(f"--data-dir is of no use with --dataset {dataset}; leave it out")


def reading_of_data(model: Autoencoder, folder: Path, dataset: str) -> Reading:
    """How a data set is read for a model: as in its run, but folders always in the model's size and colour."""
    data = read_record(folder).get("data", {})
    path, found = Path(dataset).expanduser(), Reading.recorded(data)
    if os.path.realpath(path) != os.path.realpath(data.get("name") or ""):  # of the run's own data set alone
        found = replace(found, test_dir=None, every_tenth=False)
    if found.image_size or found.grayscale or path.is_dir():
        fitting = reading_for(model)
        found = replace(found, image_size=fitting.image_size, grayscale=fitting.grayscale)
    return found


def data_of_model(model: Autoencoder, folder: Path, args: argparse.Namespace, tell: Callable[[str], None]) -> Dataset:
    """The data set that the options name, or else the published one of the run in a folder; tell hears which it is.

    A folder may come from a stranger: what only its run.json names is not read as own images, and gets no downloads.

    Raises:
        UsageError: --data-dir is of no use. DataError: it cannot be had, or does not fit the model. DeviceError: the
            model takes more memory than there is.
    """
    name, place = data_of_run(folder, args.dataset, args.data_dir, tell)
    record = folder / RECORD_FILE
    if not args.dataset and name not in NAMES:
        raise DataError(f"{record}: data: names own images; if you trust it, add --dataset {shlex.quote(name)}")
    check_data_dir(name, args.data_dir)
    mine = place == args.data_dir
    try:
        how = vars(reading_of_data(model, folder, name))
        how["skip_broken"] |= args.skip_broken
        dataset = load_dataset(name, place, **how, download=mine, progress=not args.quiet)
    except DataError as error:
        hint = "" if mine else f"; {record} names this folder, and only with --data-dir is anything put there"
        raise DataError(f"{error}{hint}") from error
    data = read_record(folder).get("data", {})
    dataset = dataset.as_recorded(data.get("content_hash"), "image_size" not in data)
    tell(dataset.source)
    check_fit(model, dataset)
    check_size(model.config, next(model.batches(BATCH)).stop)
    return dataset


def check_place(args: argparse.Namespace, folder: Path, dataset: Dataset) -> None:
    """Raise UsageError where results of other images would take the place of those of the run's own."""
    recorded = read_record(folder).get("data", {}).get("content_hash")
    if not args.out and recorded not in (None, dataset.content_hash):
        raise UsageError(f"--out is needed: the results in {folder} are of its own images, not of {dataset.name}")


def show(text: str, file: Any = None) -> None:
    """Print one line, whatever is in the text."""
    print(printable(text[:MOST_LETTERS]), file=file, flush=True)


def wrapped(text: str, output: Any, indent: str = "") -> list[str]:
    """A text in lines of 80 letters for a terminal; other readers look for sentences."""
    if output is None or not output.isatty():
        return [text]
    return textwrap.wrap(text, 80, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False) or [""]


class Output:
    """What a program says besides its errors; with --quiet only warnings."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.quiet, self.verbose = args.quiet, args.verbose

    def tell(self, text: str) -> None:
        """Print text of our own, which may have several lines."""
        if not self.quiet:
            print(text, flush=True)

    def line(self, text: str) -> None:
        """Print one line, whatever is in the text."""
        if not self.quiet:
            show(text)

    def prose(self, text: str, indent: str = "") -> None:
        """Print a text, for a terminal in lines of 80 letters."""
        for line in wrapped(text, sys.stdout, indent):
            self.line(line)

    def warn(self, text: str) -> None:
        """Print a warning; with --quiet, too."""
        show(f"warning: {text}", sys.stderr if self.quiet else sys.stdout)


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """What all programs have: where it is computed and what is printed."""
    computing = parser.add_argument_group("computing")
    computing.add_argument("--device", metavar="DEVICE", type=device, help="cpu, cuda or cuda:<index> (default: cpu)")
    add_options(computing, COMPUTING)
    messages = parser.add_argument_group("messages")
    either = messages.add_mutually_exclusive_group()
    either.add_argument("--quiet", action="store_true", help="print errors and warnings only")
    either.add_argument("--verbose", action="store_true", help="print more: every layer and every file")
    messages.add_argument("--debug", action="store_true", help="show a traceback with an error")
    messages.add_argument(
        "--version", action="version", version=f"%(prog)s {minigrad.__version__}", help="print the version"
    )


def use_backend(args: argparse.Namespace) -> Any:
    """The device and kernels of the options."""
    return minigrad.use(args.device or "cpu", args.backend or "auto", args.threads, args.precision or "fp32")
