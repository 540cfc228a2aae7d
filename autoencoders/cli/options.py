"""The options of the programs: their types, their errors, and those that all programs have."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import minigrad
from minigrad.backend import KERNELS, PRECISIONS

from ..data.dataset import did_you_mean, printable
from ..runs.start import MOST_THREADS
from ..shipped import shipped
from .program import Program, coloured

# (default, type, help); the type is list (of whole numbers), bool (a flag), or a function that converts the text
Option = tuple[Any, Any, str]
METAVARS = dict.fromkeys(("encode", "config", "explain"), "FILE") | dict.fromkeys(("init-from", "compare"), "RUN")
METAVARS |= dict.fromkeys(("out", "model-dir", "data-dir", "test-dir"), "DIR")
COMPUTING: dict[str, Option] = {
    "backend": ("auto", str, "kernel set"),
    "threads": (None, int, "CPU threads of each process (default: the cores it may use; several processes share them)"),
    "precision": (
        "fp32",
        str,
        "precision of convolutions on a GPU; tf32 is faster, tf32x3 keeps more digits, bf16 stores half of the bytes",
    ),
}
CHOICES: dict[str, tuple[str, ...]] = {
    "model": ("ae", "vae"),
    "schedule": ("constant", "cosine"),
    "likelihood": ("bernoulli", "gaussian", "gaussian-learned"),
    "precision": PRECISIONS,
    "backend": ("auto", *KERNELS["cpu"], "cuda"),
    "format": ("png", "npz"),
}
LIMITS: dict[str, tuple[float, float]] = {
    "threads": (1, MOST_THREADS), "shards": (1, MOST_THREADS), "limit-train": (1, math.inf),
    "hidden": (1, math.inf),
}  # fmt: skip
# options of other programs
SYNONYMS = {"--learning-rate": "--lr", "--gpu": "--device cuda", "--cuda": "--device cuda", "--force": "--overwrite"}


def text(value: str) -> str:
    """The type of options that name something. An empty value usually comes from an unset shell variable."""
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
    """A parser whose errors are one line and suggest the option that was probably meant.

    Args:
        about: what the program does. examples: options of a command, each shown at the end of the help.
    """

    def __init__(self, about: str | None, program: Program, *examples: str) -> None:
        super().__init__(
            prog=program.prog,
            usage="%(prog)s [options]",
            description=about,
            epilog="\n  ".join(("examples:", *(f"{program.example} {words}" for words in examples)))
            if examples
            else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
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
        if place == "--model-dir" and rest[0] in shipped():
            self.error(f"{rest[0]!r} belongs to no option; write --model {rest[0]}")
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
