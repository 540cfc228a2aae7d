"""The fault campaign: tests that inject faults by the hundred and count what was lost.

Every such test takes the fixture `campaign` and runs twice: with the few faults that fit into the usual tests, and only
with `python -m pytest -m campaign` with the many that `benchmarks/results/campaign.json` then counts, also when
something was lost: the record holds the losses and the tests that failed. The part of it that needs a GPU is `python -m
pytest -m "campaign and gpu"` and leaves `campaign_gpu.json`; that of several processes is `-m "campaign and mpi"`. The
workers of pytest-xdist can share it. The faults are drawn from `--campaign-seed` (0 unless given), which the head of
the output names: the same seed, the same faults.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence

import minigrad
from autoencoders.data import Dataset
from minigrad.backend.cpu.threads import usable_cores
from minigrad.backend.cuda.driver import release
from minigrad.random import generator

ROOT = Path(__file__).parents[2]
RESULTS = {  # by the option -m
    "campaign": "campaign.json",
    "campaign and mpi": "campaign_mpi.json",
    "campaign and gpu": "campaign_gpu.json",
}
ROW = "campaign"  # the name of a test's property that is a row of the result
COUNTERS = ("runs", "injected", "effective", "in_save", "lost")
"""Of a row: trainings or programs that were started; faults or drawn cases; those that ended a run, were refused, or
changed what was computed; those that came while a save was in progress; and those after which something was lost or
wrong. None: the test does not count it."""


class Campaign:
    """What a test of the campaign is given.

    Attributes:
        full: whether this is the whole campaign. seed: of all faults. gpu: whether the test needs a GPU.
        backends: for the name of a row, those that tests with the fixture `backend` add up in it.
        row: what the test has counted, by the names of COUNTERS.
    """

    def __init__(self, name: str, full: bool, seed: int, gpu: bool) -> None:
        self.name, self.full, self.seed, self.gpu = name, full, seed, gpu
        self.backends = "cuda" if gpu else "all backends"
        self.what = ""
        self.row: dict[str, int | None] = {}

    def count(self, few: int, many: int, gpu: tuple[int, int] | None = None) -> int:
        """How many faults this run injects; on a GPU, where a process takes a second to start, others."""
        return (gpu if gpu and self.gpu else (few, many))[self.full]

    def rng(self, *key: str | int) -> np.random.Generator:
        """Random numbers of this seed and key."""
        return generator(self.seed, "campaign", self.name, *key)

    def survived(self, what: str, injected: int, lost: int = 0, **more: int | None) -> None:
        """Record the outcome under the name that the table shows. Whatever was lost fails the test. more: the other
        COUNTERS, if the test has them."""
        self.what = what
        self.row = {name: None if value is None else int(value) for name, value in more.items()}
        self.row |= {"injected": int(injected), "lost": int(lost)}
        assert set(self.row) <= set(COUNTERS)
        assert not lost, f"{what}: {lost} of {injected} lost; seed {self.seed}"


@pytest.fixture(params=["few", pytest.param("full", marks=pytest.mark.campaign)])
def campaign(request: pytest.FixtureRequest) -> Iterator[Campaign]:
    """The counter of this test."""
    test, seed = request.node, request.config.getoption("--campaign-seed")
    made = Campaign(test.originalname, request.param == "full", seed, test.get_closest_marker("gpu") is not None)
    start = time.perf_counter()
    yield made
    if made.full and made.what:  # it was not skipped
        row = {"what": made.what, **made.row, "seconds": time.perf_counter() - start}
        test.user_properties.append((ROW, row))  # its report brings it out of a worker, too


@contextmanager
def started(command: list[Any], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A running program; where a test fails before the program ends, it is killed and not waited for."""
    with subprocess.Popen(command, text=True, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def toy() -> Dataset:
    """Eight images to train on and four to test on."""
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), dtype=np.uint8)
    return Dataset("toy", images[:8], np.arange(8) % 2, images[8:], np.arange(4) % 2, ("a", "b"), "made up")


def halves(folder: Path) -> list[str]:
    """The JSON files, tables, pages and pictures in a folder, or deeper, that are not whole."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            _read_whole(path)
        except (OSError, ValueError, SyntaxError) as error:  # Pillow knows all three
            found.append(f"half: {path.relative_to(folder)}: {error}")
    return found


def _read_whole(path: Path) -> None:
    """Raise ValueError, or what Pillow does, unless this is the whole of a file of its kind."""
    if path.suffix in (".png", ".gif"):
        with Image.open(path) as picture:
            for frame in ImageSequence.Iterator(picture):
                frame.load()
    elif path.suffix in (".json", ".jsonl"):
        text = path.read_text(encoding="utf-8")
        for part in [text] if path.suffix == ".json" else text.splitlines():
            json.loads(part)
    elif path.suffix == ".html" and not path.read_text(encoding="utf-8").endswith("</html>"):
        raise ValueError("no end")
    elif path.suffix == ".csv" and len({row.count(",") for row in path.read_text(encoding="utf-8").splitlines()}) > 1:
        raise ValueError("uneven rows")


# ---- hooks, for conftest.py ----


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--campaign-seed", type=int, default=0, metavar="N", help="of the injected faults (default: 0)")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # a worker's tests are reported to the process that started it
        config.pluginmanager.register(Result(config))


def pytest_report_header(config: pytest.Config) -> str:
    return f"campaign seed: {config.getoption('--campaign-seed')}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The whole campaign runs only where it is asked for by name, and then without what is marked for both counts."""
    asked = "campaign" in (config.getoption("-m") or "")
    whole = [item for item in items if item.get_closest_marker("campaign")]
    left_out = [item for item in whole if not asked or item.callspec.params["campaign"] == "few"]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


class Result:
    """Collects the rows of all tests; a whole campaign leaves its result."""

    def __init__(self, config: pytest.Config) -> None:
        self.config, self.started = config, time.perf_counter()
        self.asked = config.getoption("-m")
        self.rows: dict[str, dict[str, Any]] = {}  # by what was done
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self.asked in RESULTS:  # now: a machine may be taken away before the end
            self.failed.append(report.nodeid)
            terminal = self.config.pluginmanager.get_plugin("terminalreporter")
            terminal.write_line(f"\n{report.nodeid}\n{report.longreprtext[-3000:]}")
        for found in [value for name, value in report.user_properties if name == ROW and report.when == "teardown"]:
            row = self.rows.setdefault(found["what"], dict.fromkeys((*COUNTERS, "seconds")))
            for key in row:
                if found.get(key) is not None:
                    row[key] = (row[key] or 0) + found[key]

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        whole = self.asked in RESULTS and not self.config.getoption("-k") and not self.config.option.file_or_dir
        if whole and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and self.rows:
            text = json.dumps(self.record(), indent=1)
            (ROOT / "benchmarks" / "results" / RESULTS[self.asked]).write_text(text + "\n", encoding="utf-8")

    def record(self) -> dict[str, Any]:
        """What the file holds."""
        seconds = round(time.perf_counter() - self.started, 1)
        quoted = f'"{self.asked}"' if " " in self.asked else self.asked
        workers = getattr(self.config.option, "numprocesses", None)  # of pytest-xdist
        rows = [{"what": what, **row, "seconds": round(row["seconds"], 1)} for what, row in sorted(self.rows.items())]
        record: dict[str, Any] = {
            "command": f"python -m pytest -m {quoted}" + (f" -n {workers}" if workers else ""),
            "seed": self.config.getoption("--campaign-seed"),
            "date": time.strftime("%Y-%m-%d"),
            "seconds": seconds,
            "commit": git("rev-parse", "HEAD") or None,
            "dirty": bool(git("status", "--porcelain")),
            "python": platform.python_version(),
            "machine": f"{usable_cores()} cores, {platform.system()} {platform.machine()}",
            "versions": {"minigrad": minigrad.__version__, "NumPy": np.__version__, **installed()},
            "failed": sorted(set(self.failed)),
            "rows": rows,
        }
        if "gpu" in self.asked:
            import cupy

            name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
            record["gpu"] = {"name": name, "driver": release()}
            record["versions"]["CuPy"] = cupy.__version__
        return record


def installed() -> dict[str, str]:
    """The versions of those libraries that a campaign can do without, or whose readers it feeds."""
    found = {}
    for name, package in (("Numba", "numba"), ("safetensors", "safetensors"), ("PyTorch", "torch")):
        with suppress(PackageNotFoundError):
            found[name] = version(package)
    return found


def git(*arguments: str) -> str:
    """What git prints; nothing where there is none."""
    if not shutil.which("git"):
        return ""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
