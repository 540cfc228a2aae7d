"""The README's Python is run, and what it says of the programs is true of them."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]


def test_there_are_snippets_and_two_one_line_commands():
    assert len(SNIPPETS) == 4
    front_door = [line for line in COMMANDS if line.startswith("python3 -m venv")]
    assert len(front_door) == 2
    assert "train_conv_autoencoder.py" in front_door[0]
    assert "pytest" in front_door[1]


@pytest.mark.parametrize("snippet", SNIPPETS, ids=["profile", "autoencoders", "classifier", "operation"])
def test_a_snippet_runs(snippet, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", snippet], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    accuracy = re.search(r"accuracy ([\d.]+)%", done.stdout)
    assert accuracy is None or float(accuracy[1]) > 70, done.stdout  # PyTorch reaches as much on the sample


@pytest.mark.parametrize("command", [c for c in COMMANDS if "scripts/" in c])
def test_the_options_of_a_command_exist(command):
    words = shlex.split(command.split("&&")[-1])
    at = next(i for i, word in enumerate(words) if word.startswith("scripts/"))
    spec = importlib.util.spec_from_file_location("program", ROOT / words[at])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.build_parser().parse_args(words[at + 1 :])  # exits with SystemExit where an option is unknown
    assert callable(module.main)


def test_every_file_named_exists():
    for name in re.findall(r"`((?:minigrad|autoencoders|scripts|tests|backend)/[\w/.]+)`", README):
        assert (ROOT / name).exists() or (ROOT / "minigrad" / name).exists(), name


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What benchmarks/report.py makes of the committed records, by the name in the README's marks."""
    spec = importlib.util.spec_from_file_location("report", ROOT / "benchmarks/report.py")
    report = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(report)
    return report.readme_tables(report.RESULTS)


@pytest.mark.parametrize("name", re.findall(r"<!-- (\w+): made by benchmarks/report.py -->", README))
def test_a_table_is_what_the_report_makes_of_its_record(tables: dict[str, str], name: str) -> None:
    begin, end = f"<!-- {name}: made by benchmarks/report.py -->\n", f"<!-- end of {name} -->"
    assert README.partition(begin)[2].partition(end)[0] == tables[name]
    page = ROOT / f"benchmarks/results/{name}.md"
    if name in ("quality", "campaign"):
        assert page.read_text().endswith(tables[name])


def test_every_record_with_a_table_stands_in_the_readme(tables: dict[str, str]) -> None:
    assert set(re.findall(r"<!-- end of (\w+) -->", README)) == set(tables)


def test_the_parity_is_that_of_the_committed_file():
    record = json.loads((ROOT / "benchmarks/results/parity.json").read_text())
    named = re.search(r"PyTorch's within (\S+) and (\S+) of themselves", README)
    for row, bound in zip(record["rows"], named.groups(), strict=True):
        assert 0.9 * float(bound) <= row["difference"] <= float(bound)


def test_pictures_exist():
    names = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert len(names) >= 1
    for name in names:
        assert (ROOT / name).stat().st_size > 1000, name
