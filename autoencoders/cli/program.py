"""How a program starts and ends: the words that start it, exit codes from errors, signals, and what is printed."""

from __future__ import annotations

import io
import logging
import os
import shlex
import shutil
import signal
import sys
import textwrap
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from minigrad import DeviceError, backend
from minigrad.backend.memory import keep_freed_memory
from minigrad.distributed import Group, told
from minigrad.serialize import DataError

from ..data.dataset import printable
from ..training import DivergedError
from ..training.signals import raise_signals

LOG = logging.getLogger("minigrad")
_door = threading.Lock()
_guests: list[None] = []  # one for each program that runs in this process
_host = ExitStack()  # what the last of them puts back
COLOURS = {"error": 31, "warning": 33}  # red and yellow
LONGEST, MOST_LETTERS = 1000, 10_000  # characters of an error and of a line, because they may quote a whole file


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
SCRIPTS = {"train": "train_conv_autoencoder.py", "generate": "generator.py", "evaluate": "evaluate.py"}


class Program(NamedTuple):
    """The words that start one of the programs: `autoencoders train`, or a script of the repository."""

    words: tuple[str, ...]
    script: bool = False

    @classmethod
    def of_script(cls, file: str) -> Program:
        """The program that a script in scripts/ starts."""
        return cls((as_typed(sys.executable or "python"), as_typed(file)), script=True)

    @classmethod
    def installed(cls, name: str) -> Program:
        """The program as the console command starts it."""
        return cls((*console_command(), name))

    def __str__(self) -> str:
        return shlex.join(self.words)

    @property
    def prog(self) -> str:
        """What the help and its errors call it."""
        return Path(self.words[-1]).name if self.script else " ".join(("autoencoders", *self.words[-1:]))

    @property
    def example(self) -> str:
        """What the help calls it in its examples."""
        return f"python scripts/{self.prog}" if self.script else self.prog

    def other(self, name: str) -> Program:
        """Another program, started in the same way where it can be."""
        if name not in SCRIPTS:
            return Program.installed(name)
        other = str(Path(self.words[-1]).with_name(SCRIPTS[name])) if self.script else name
        return Program((*self.words[:-1], other), self.script)


def console_command() -> tuple[str, ...]:
    """The words that start this installation's `autoencoders` here, also where its environment is not activated."""
    python = sys.executable or "python"
    beside = str(Path(python).with_name("autoencoders"))
    if not os.path.exists(beside):
        return as_typed(python), "-m", "autoencoders"
    return ("autoencoders",) if shutil.which("autoencoders") == beside else (as_typed(beside),)


def as_typed(path: str) -> str:
    """A path as it would be typed here: relative where it lies below the working folder."""
    try:
        return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else path
    except OSError:  # the working folder is gone
        return path


def start(main: Callable[[], int]) -> NoReturn:
    """Run a program's main as a process of its own, and end it with the exit code."""
    keep_freed_memory()
    code = main()
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError:  # the reader has gone, which was told; Python would tell it once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def run_program(
    body: Callable[[], None],
    *,
    debug: bool,
    quiet: bool = False,
    what_remains: Callable[[BaseException], str] = lambda error: "",
    group: Callable[[], Group] | None = None,
) -> int:
    """Run a program's body and return its exit code: 0; 2 usage, 3 data, 4 device or memory, 5 diverged, 1 other; 128 +
    signal.

    An error is printed as one line on stderr that ends with what_remains(error). If that text has a second line, the
    second line is a command and is printed by itself. On a terminal, lines are wrapped at 80 characters. debug prints a
    traceback first. quiet hides minigrad's messages about compiling. At the end, outputs, signals, warnings and kernels
    of the process are restored. group: the processes that do this together; of them the first one prints, or the one
    that has an error of its own. None: one process must do it.
    """
    with _guest():
        if quiet or told("RANK"):
            LOG.setLevel(logging.ERROR)
        if group is None and told() > 1:
            body = _refuse_processes
        try:
            # numbers that are not finite are looked for, and told
            with raise_signals(), np.errstate(all="ignore"):
                body()
            sys.stdout.flush()
            return 0
        except KeyboardInterrupt as stop:
            _tell("interrupted", what_remains(stop), group)
            return 128 + (stop.args[0] if stop.args and isinstance(stop.args[0], int) else signal.SIGINT)
        except BrokenPipeError as error:
            _tell("error: the program that reads the output has ended", what_remains(error), group)
            return 1
        except Exception as error:
            if debug:
                traceback.print_exc()
            _tell(f"error: {_line_of(error)}", what_remains(error), group)
            return next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1)


def _line_of(error: Exception) -> str:
    text = " ".join(str(error).split())[:LONGEST] or type(error).__name__
    if isinstance(error, MemoryError):
        return f"out of memory: {text}; a smaller model, batch or data set needs less"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.errno:  # one of our own has no number
        return f"{error.strerror}: the standard output, or the working folder"
    return text


def _refuse_processes() -> None:
    raise UsageError("only train can use several processes; start this without mpirun")


def _tell(text: str, what_remains: str, group: Callable[[], Group] | None) -> None:
    """Print an error, and on a line of its own the command that goes on, ready to be copied."""
    if told("RANK"):
        if group is None or not group().alone:
            return
        text = f"process {told('RANK')}: {text}"
    more, _, command = what_remains.partition("\n")
    with suppress(OSError):  # nobody can be told where stderr, too, has gone
        for line in wrapped(text + more, sys.stderr):
            show(line, sys.stderr)
        if command:
            show(f"  {command}", sys.stderr)


@contextmanager
def _guest() -> Iterator[None]:
    """Make the outputs safe to print, and restore the state of the process after the last program that runs at the same
    time. A program that restored the state by itself would undo settings of the others."""
    with _door:
        if not _guests:
            _host.callback(_use_again, backend._default, backend._threads, dict(backend._backends))
            _host.callback(LOG.setLevel, LOG.level)
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


def _use_again(default: Any, threads: Any, kernels: dict[Any, Any]) -> None:
    """Make the default device, its kernels and threads those of before."""
    backend._default, backend._threads = default, threads
    backend._backends.clear()
    backend._backends.update(kernels)


# ---- what is printed ----


class _Shown:
    """An output that escapes control characters, because names of files and classes can hold some. It works even if the
    real output was closed at the start or cannot encode a character.

    keep: control characters that are not escaped, besides new lines and tabs.
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


def coloured(text: str, output: Any) -> str:
    """The text with the first word of an error or warning in colour, if the output is a terminal that shows colours and
    NO_COLOR is not set."""
    word = text.partition(":")[0]
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb"
    if word not in COLOURS or plain or not output.isatty():
        return text
    return f"\033[{COLOURS[word]}m{word}\033[0m{text[len(word) :]}"


def show(text: str, file: Any = None) -> None:
    """Print one line, whatever is in the text."""
    print(printable(text[:MOST_LETTERS]), file=file, flush=True)


def wrapped(text: str, output: Any, indent: str = "") -> list[str]:
    """A text in lines of 80 letters for a terminal; other readers look for sentences."""
    if output is None or not output.isatty():
        return [text]
    return textwrap.wrap(text, 80, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False) or [""]


class Output:
    """What a program says besides its errors; with quiet only warnings."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet

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
        """Print a warning; with quiet, too."""
        show(f"warning: {text}", sys.stderr if self.quiet else sys.stdout)
