"""The fault campaign: tests that inject faults by the hundred and count what was lost.

Every such test takes the fixture `campaign` and runs twice: with the few faults that fit into the usual tests, and only
with `python -m pytest -m campaign` with the many that `benchmarks/results/campaign.json` then counts. The faults are
drawn from `--campaign-seed` (0 unless given), which the head of the output names: the same seed, the same faults.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minigrad
from minigrad.backend.pool import usable_cores
from minigrad.random import generator

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "campaign.json"
ROWS = pytest.StashKey[dict[str, dict[str, Any]]]()  # by what was done
STARTED = pytest.StashKey[float]()


class Campaign:
    """What a test of the campaign is given.

    Attributes:
        full: whether this is the whole campaign. seed: of all faults. faults, lost: counted by the test.
    """

    def __init__(self, name: str, full: bool, seed: int) -> None:
        self.name, self.full, self.seed = name, full, seed
        self.faults = self.lost = 0
        self.what = ""

    def count(self, few: int, many: int) -> int:
        """How many faults this run injects."""
        return many if self.full else few

    def rng(self, *key: str | int) -> np.random.Generator:
        """Random numbers of this seed and key."""
        return generator(self.seed, "campaign", self.name, *key)

    def survived(self, what: str, faults: int, lost: int = 0) -> None:
        """Record the outcome under the name that the table shows. Whatever was lost fails the test."""
        self.what, self.faults, self.lost = what, faults, lost
        assert not lost, f"{what}: {lost} of {faults} lost; seed {self.seed}"


@pytest.fixture(params=["few", pytest.param("full", marks=pytest.mark.campaign)])
def campaign(request: pytest.FixtureRequest) -> Iterator[Campaign]:
    """The counter of this test."""
    name = request.node.originalname
    made = Campaign(name, request.param == "full", request.config.getoption("--campaign-seed"))
    start = time.perf_counter()
    yield made
    if made.full and made.what:  # it was not skipped
        seconds = round(time.perf_counter() - start, 1)
        row = request.config.stash[ROWS].setdefault(made.what, {"faults": 0, "lost": 0, "seconds": 0.0})
        for key, value in (("faults", made.faults), ("lost", made.lost), ("seconds", seconds)):
            row[key] += value


@contextmanager
def started(command: list[Any], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A running program; where a test fails before the program ends, it is killed and not waited for."""
    with subprocess.Popen(command, text=True, **options) as process:
        try:
            yield process
        finally:
            process.kill()


# ---- hooks, for conftest.py ----


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--campaign-seed", type=int, default=0, metavar="N", help="of the injected faults (default: 0)")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS], config.stash[STARTED] = {}, time.perf_counter()


def pytest_report_header(config: pytest.Config) -> str:
    return f"campaign seed: {config.getoption('--campaign-seed')}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The whole campaign runs only where it is asked for by name."""
    if "campaign" in (config.getoption("-m") or ""):
        return
    left_out = [item for item in items if item.get_closest_marker("campaign")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A whole campaign leaves its result."""
    config = session.config
    whole = config.getoption("-m") == "campaign" and not config.getoption("-k") and not config.option.file_or_dir
    if not (whole and exitstatus == 0 and config.stash[ROWS]):
        return

    def git(*arguments: str) -> str:
        if not shutil.which("git"):
            return ""
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    record = {
        "command": "python -m pytest -m campaign",
        "seed": config.getoption("--campaign-seed"),
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(time.perf_counter() - config.stash[STARTED], 1),
        "commit": git("rev-parse", "HEAD") or None,
        "dirty": bool(git("status", "--porcelain")),
        "python": platform.python_version(),
        "machine": f"{usable_cores()} cores, {platform.system()} {platform.machine()}",
        "versions": {"minigrad": minigrad.__version__, "NumPy": np.__version__},
        "rows": [{"what": what, **row} for what, row in sorted(config.stash[ROWS].items())],
    }
    RESULT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
