"""What train.py, ops.py and scaling.py share: worker processes, the problem they solve, and the record of a run."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import autoencoders
import minigrad
from autoencoders.data import load_dataset
from minigrad import nn
from minigrad.backend.cpu.threads import usable_cores
from minigrad.random import generator
from minigrad.serialize import DataError, write_atomically

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results"
PAUSE = 0.3  # seconds before a measurement; see pause_of
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
# What these name is read when a process starts. OPENBLAS_CORETYPE can choose code for another processor than this one.
SETTINGS = ("MALLOC_", "OPENBLAS_")
DEFAULT_MODEL: dict[str, Any] = {
    "kind": "vae",
    "input_shape": (28, 28, 1),
    "conv_filters": (32, 64, 64, 64),
    "conv_kernels": (3, 3, 3, 3),
    "conv_strides": (1, 2, 2, 1),
    "latent_space_dim": 2,
    "momentum": 0.99,
    "epsilon": 1e-3,
    "learning_rate": 1e-4,  # tame enough that three steps can be compared; the time does not depend on it
}
COLOURED_MODEL: dict[str, Any] = {  # what a user's own pictures may need
    **DEFAULT_MODEL,
    "input_shape": (64, 64, 3),
    "conv_kernels": (5, 5, 5, 5),
    "conv_strides": (2, 2, 2, 2),
    "latent_space_dim": 32,
    "learning_rate": 1e-5,
    "likelihood": "bernoulli",
}


class BenchmarkError(RuntimeError):
    """A worker died, or does not compute what it should; the message is for the user."""


# ---- workers ----


class Worker:
    """A program in a process of its own, which answers requests (workers/protocol.py).

    Args:
        name: for messages. file: in workers/. python: the interpreter. threads: that it may use; it gets as many
            cores. environment: variables besides ours. processes: how many mpirun starts; the first one answers.
    """

    def __init__(
        self,
        name: str,
        file: str,
        *,
        python: str,
        threads: int,
        environment: Mapping[str, str] | None = None,
        processes: int = 1,
    ) -> None:
        self.name, self.threads = name, threads
        variables = dict.fromkeys(THREAD_VARIABLES, str(threads)) | dict(environment or {})
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(SETTINGS)}
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        launcher = [] if processes == 1 else [str(Path(python).with_name("mpirun")), "-n", str(processes)]
        with _cores(threads * processes):
            self.process = subprocess.Popen(
                [*launcher, python, str(FOLDER / "workers" / file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                env=inherited | variables,
                text=True,
                start_new_session=True,  # Ctrl-C goes to the driver, which ends its workers
            )

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """The worker's reply.

        Raises:
            BenchmarkError: it died; the message holds the end of what it wrote to stderr.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has died: there is no reply either
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            self.errors.seek(0)
            tail = "\n".join(self.errors.read().decode(errors="replace").splitlines()[-12:])
            raise BenchmarkError(f"worker {self.name!r} died in {do!r} (exit code {code}):\n{tail}")
        return json.loads(line)

    def build(self, **request: Any) -> dict[str, Any]:
        """Ask to build, and check that the library uses the threads that it should, where it can tell."""
        reply = self.ask("build", **request)
        if reply["threads"] not in (None, self.threads):
            raise BenchmarkError(f"worker {self.name!r} uses {reply['threads']} threads instead of {self.threads}")
        return reply

    def cpu_seconds(self) -> float:
        """Processor time used so far; 0 where the system does not tell."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End the process and those that it started."""
        for pipe in (self.process.stdin, self.process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except BrokenPipeError:
                pass
        try:
            self.process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.errors.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def _cores(count: int) -> Iterator[None]:
    """Processes that are started in this context get the first `count` cores of ours, where the system can do that."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(ours)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, ours)


# ---- the problem ----


def model_of(spec: Mapping[str, Any]) -> autoencoders.Autoencoder:
    """minigrad's model with the weights of seed 0."""
    cls = {"ae": autoencoders.Autoencoder, "vae": autoencoders.VAE}[spec["kind"]]
    return cls(**{name: value for name, value in spec.items() if name not in ("kind", "epsilon", "learning_rate")})


def write_problem(path: Path, model: autoencoders.Autoencoder, batch: int) -> None:
    """Weights, images and noise that every program starts with.

    What the model starts as zeros and ones (biases, gamma, beta, the moving statistics) is moved a little, because a
    mix-up of equal numbers would not be seen; and the first layer of the decoder is made ten times as strong, because
    fresh weights hardly let the images depend on the latents.
    """
    rng = generator(0, "benchmark")
    arrays = {}
    for name, x in model.network.state_dict().items():
        moved = x if name.endswith(".weight") else x + rng.uniform(-0.1, 0.1, x.shape)
        arrays[name] = (10 * moved if name == "decoder_dense.weight" else moved).astype(np.float32)
    H, W, C = model.input_shape
    if (H, W, C) == (28, 28, 1):
        sample = load_dataset("fashion-mnist-sample").train_images
        images = sample[np.arange(batch) % len(sample)]
    else:
        images = rng.integers(0, 256, (batch, H, W, C), dtype=np.uint8)
    noise = rng.standard_normal((batch, model.latent_space_dim), dtype=np.float32)
    np.savez(path, images=images / np.float32(255), noise=noise, **arrays)


def forward_flops(model: autoencoders.Autoencoder) -> int:
    """Floating-point operations of the layers with weights for one image: two for each multiply-add."""
    layers = model.network.layers

    def of(part: str, shape: tuple[int, ...]) -> int:
        chosen = {n: x for n, x in layers.items() if n.startswith(part) and n not in model.heads}
        return sum(row[3] for row in nn.Sequential(chosen).summary_rows(shape))

    heads = sum(head.weight.size for head in model.heads.values())  # type: ignore[attr-defined]
    return 2 * (of("encoder", model.input_shape) + heads + of("decoder", (model.latent_space_dim,)))


# ---- numbers and the record ----


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = np.percentile(values, (25, 50, 75)).tolist()
    return {"median": median, "low": low, "high": high}


def record_of(program: str, argv: Sequence[str], **fields: Any) -> dict[str, Any]:
    """What was run, when, on what; and the fields."""
    return {
        "command": shlex.join(["python", f"benchmarks/{program}", *map(without_folders, argv)]),
        "date": time.strftime("%Y-%m-%d"),
        **commit(),
        "machine": {"processor": processor(), "cores": usable_cores(), "system": platform.platform()},
        "python": platform.python_version(),
        **fields,
    }


def without_folders(argument: str) -> str:
    """An argument whose absolute paths are shortened to the last three parts: they say nothing on other machines."""
    return re.sub(r"(?<![^=])/(?:[^/]+/)*?((?:[^/]+/){0,2}[^/]+)$", r"\1", argument)


def versions_of(kernels: Iterable[str]) -> dict[str, str]:
    """Of what computes in these kernel sets."""
    found = {"minigrad": minigrad.__version__, "NumPy": np.__version__}
    return found | ({"Numba": version("numba")} if "numba" in kernels else {})


def commit() -> dict[str, Any]:
    """The commit that is measured, and whether files differ from it."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=FOLDER, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    return {
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--", "..", ":(exclude)results")),
    }


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def write_record(path: Path, record: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())


def add_row(path: Path, row: dict[str, Any], key: str) -> None:
    """Add a row to a result that is measured row by row, in place of an earlier one with the same key."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    write_record(path, {"rows": [*(old for old in rows if old[key] != row[key]), row]})


# ---- command lines ----


def parser_of(text: str, *, rounds: int, out: str) -> argparse.ArgumentParser:
    """A parser with the options that all programs have."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", metavar="N", type=positive, default=rounds, help="(default: %(default)s)")
    parser.add_argument("--threads", metavar="N", type=positive, default=usable_cores(), help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one tiny round, to see that all works; writes no result")
    parser.add_argument("--out", metavar="FILE", type=Path, help=f"the result (default: benchmarks/results/{out})")
    return parser


def chosen(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    option: str,
    known: Iterable[str],
    quick: str = "its figures are no results",
) -> argparse.Namespace:
    """The options of a program of which `option` names some of what is known, and whose --quick, for this reason, wants
    another --out."""
    args, known = parser.parse_args(argv), list(known)
    if unknown := sorted(set(getattr(args, option)) - set(known)):
        parser.error(f"{', '.join(unknown)} is not known; there are {', '.join(known)}")
    if args.quick and not args.out:
        parser.error(f"--quick needs --out: {quick}")
    return args


def pause_of(args: argparse.Namespace, seconds: float = PAUSE) -> float:
    """Seconds to wait before a measurement, in which the threads of the one before fall asleep."""
    return 0.0 if args.quick else seconds


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def list_of(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """An option's type: values separated by commas."""

    def values(text: str) -> list[Any]:
        return [kind(part) for part in text.split(",")]

    return values


def start_again_without_settings() -> None:
    """Start this program anew if the environment has settings for the C library's memory or for BLAS."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(SETTINGS)}
    if len(kept) < len(os.environ):
        os.execve(sys.executable, sys.orig_argv, kept)


def run_main(body: Callable[[], int]) -> int:
    """body's exit code; an error is told without a traceback, and Ctrl-C gives 130."""
    try:
        return body()
    except (BenchmarkError, DataError, autoencoders.DivergedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def median_ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """How many times faster the first ones are."""
    return statistics.median(others) / statistics.median(times)
