"""What the programs in scripts/ share: common options, recipes, and exit codes from errors."""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib.resources import files
from typing import NoReturn

import numpy as np

from minigrad import DeviceError
from minigrad.backend.pool import keep_freed_memory
from minigrad.serialize import DataError

from .training import DivergedError, raise_signals

RECIPES = files(__package__).joinpath("recipes")


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


def run_program(
    body: Callable[[], None], *, debug: bool, what_remains: Callable[[BaseException], str] = lambda error: ""
) -> int:
    """Run a program's body and return its exit code: 0; 3 data, 4 device or memory, 5 diverged, 1 other; 128 + signal.

    An error is one line on stderr, whose end is what_remains(error); with debug a traceback comes first.
    """
    keep_freed_memory()
    _mend_outputs()
    try:
        with raise_signals(), np.errstate(all="ignore"):  # numbers that are not finite are looked for, and told
            body()
        sys.stdout.flush()
        return 0
    except KeyboardInterrupt as stop:
        number = stop.args[0] if stop.args else 2
        _tell(f"interrupted{what_remains(stop)}")
        return 128 + int(number)
    except BrokenPipeError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to be written fails no more
        _tell(f"error: the reader of the output has gone{what_remains(error)}")
        return 1
    except Exception as error:
        if debug:
            traceback.print_exc()
        text = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, MemoryError):
            text = f"out of memory: {text}; a smaller model, batch or data set needs less"
        elif isinstance(error, OSError) and error.filename is not None:
            text = f"{error.filename}: {error.strerror}"
        _tell(f"error: {text}{what_remains(error)}")
        return next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1)


def _mend_outputs() -> None:
    """Let no output fail because it was closed at the start, or cannot show a letter."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _tell(text: str) -> None:
    with suppress(OSError):  # nobody can be told where stderr, too, has gone
        print(text, file=sys.stderr, flush=True)


def text(value: str) -> str:
    """The type of options that name something: an empty one is a variable that nobody has set."""
    if not value.strip():
        raise argparse.ArgumentTypeError("is empty")
    return value


class Parser(argparse.ArgumentParser):
    """A parser whose errors, too, are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; {self.prog} --help shows all options\n")


def recipes() -> list[str]:
    """The names of the trainings that come with the package, as TOML files in RECIPES."""
    return sorted(file.name.removesuffix(".toml") for file in RECIPES.iterdir() if file.name.endswith(".toml"))


def add_model_options(parser: argparse.ArgumentParser, *, images: str, seed: str) -> None:
    """--model-dir, --seed, --dataset and --data-dir of the programs that use a saved model."""
    parser.add_argument(
        "--model-dir",
        metavar="DIR",
        type=text,
        default="variational/model",
        help="a trained model's folder (default: %(default)s)",
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help=f"{seed} (default: %(default)s)")
    parser.add_argument("--dataset", metavar="DATASET", type=text, help=f"{images} (default: the data set of the run)")
    parser.add_argument(
        "--data-dir", metavar="DIR", type=text, help="folder that holds its files (default: that of the run)"
    )


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """--device and --debug."""
    parser.add_argument("--device", metavar="DEVICE", type=text, help="cpu, cuda or cuda:<index> (default: cpu)")
    parser.add_argument("--debug", action="store_true", help="show a traceback with an error")
