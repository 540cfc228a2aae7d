"""The Python in the READMEs is run, and what they say of the programs is true of them."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from autoencoders.cli.main import PROGRAMS
from autoencoders.cli.program import Program

ROOT = Path(__file__).parents[2]
FOLDERS = (".", "autoencoders", "benchmarks", "minigrad", "scripts", "scripts/lessons", "tests")
READMES = {folder: (ROOT / folder / "README.md").read_text() for folder in FOLDERS}
SNIPPETS = [snippet for text in READMES.values() for snippet in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
BLOCKS = [block for text in READMES.values() for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)]
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]


def test_the_front_page_is_short_and_has_three_one_line_commands():
    assert READMES["."].count("\n") <= 160
    front_door = [line for line in READMES["."].splitlines() if line.startswith("python3 -m venv")]
    assert len(front_door) == 3
    assert "autoencoders generate --model " in front_door[0]
    assert "train_conv_autoencoder.py" in front_door[1]
    assert "pytest" in front_door[2]


def test_the_front_page_and_the_package_name_the_same_versions_of_python():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = re.findall(r"Python :: (3\.\d+)$", "\n".join(project["classifiers"]), re.M)
    assert f"Python {versions[0]} to {versions[-1]}," in READMES["."]
    assert project["requires-python"] == f">={versions[0]}"


NAMES = ["gradients", "a VAE", "trained", "labels", "exchange", "profile", "step", "operation", "twice"]
NAMES += ["classifier", "onnx"]
NEEDS_ONNX = [pytest.mark.onnx, pytest.mark.skipif(not importlib.util.find_spec("onnx"), reason="onnx is missing")]


@pytest.mark.parametrize(
    "snippet",
    [
        pytest.param(text, id=name, marks=NEEDS_ONNX if name == "onnx" else ())
        for text, name in zip(SNIPPETS, NAMES, strict=True)
    ],
)
def test_a_snippet_runs(snippet, tmp_path):
    command = [sys.executable, "-W", "error", "-c", snippet]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = re.findall(r"print\(.*\)  # ([\d.]+)$", snippet, re.M)
    for printed, said in zip(done.stdout.split("\n"), results, strict=False):
        assert float(printed) == pytest.approx(float(said), abs=5e-5)
    accuracy = re.search(r"accuracy ([\d.]+)%", done.stdout)
    assert accuracy is None or float(accuracy[1]) > 70, done.stdout  # PyTorch reaches as much on the sample


@pytest.mark.parametrize("command", [c for c in COMMANDS if "scripts/" in c])
def test_the_options_of_a_command_exist(command):
    words = shlex.split(command.split("&&")[-1])
    at = next(i for i, word in enumerate(words) if word.startswith("scripts/"))
    program = Program.of_script(words[at])
    programs = {"train_conv_autoencoder": "train", "generator": "generate", "evaluate": "evaluate"}
    PROGRAMS[programs[Path(words[at]).stem]].build_parser(program).parse_args(
        words[at + 1 :]
    )  # exits with SystemExit where an option is unknown


CONSOLE = [c for c in COMMANDS if "autoencoders" in re.split(r"[ /]", c.split("&& ")[-1].partition(" ")[0])]


@pytest.mark.parametrize("command", CONSOLE)
def test_the_options_of_the_console_command_exist(command):
    _, name, *words = shlex.split(command.split("&& ")[-1])
    PROGRAMS[name].build_parser(Program.installed(name)).parse_args(words)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_file_named_exists(folder):
    text = READMES[folder]
    for name in re.findall(r"`((?:minigrad|autoencoders|scripts|tests|benchmarks|backend|nn|ops)/[\w/.]+)`", text):
        assert (ROOT / name).exists() or (ROOT / "minigrad" / name).exists(), name
    for link in re.findall(r"\]\(([^)]+)\)", text):
        path, _, section = link.partition("#")
        target = (ROOT / folder / path).resolve() if path else ROOT / folder / "README.md"
        assert target.exists(), link
        titles = re.findall(r"^#+ (.*)$", target.read_text(), re.M) if section else []
        names = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
        assert not section or section in names, link


@pytest.mark.parametrize("folder", FOLDERS[1:])
def test_a_readme_beside_the_code_begins_with_its_contents(folder):
    sections = re.findall(r"^## (.*)$", READMES[folder], re.M)
    assert re.findall(r"^- \[(.*)\]\(#", READMES[folder], re.M) == sections


@pytest.fixture(scope="module")
def report():
    spec = importlib.util.spec_from_file_location("report", ROOT / "benchmarks/report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MARK = re.compile(r"<!-- (\w+): made by benchmarks/report.py -->")
TABLES = {name: folder for folder, text in READMES.items() for name in MARK.findall(text)}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_what_the_report_makes_of_its_record(report, name: str) -> None:
    begin, end = f"<!-- {name}: made by benchmarks/report.py -->\n", f"<!-- end of {name} -->"
    made, readme = report.readme_tables(report.RESULTS)[name], ROOT / TABLES[name] / "README.md"
    assert readme.read_text().partition(begin)[2].partition(end)[0] == report.linked_from(readme, made)
    if name in ("quality", "campaign"):
        assert (ROOT / f"benchmarks/results/{name}.md").read_text().endswith(made)


def test_every_record_with_a_table_stands_in_a_readme(report) -> None:
    assert set(TABLES) == set(report.readme_tables(report.RESULTS))


def test_the_parity_is_that_of_the_committed_file():
    record = json.loads((ROOT / "benchmarks/results/parity.json").read_text())
    named = re.search(r"at most (\S+) in the first epoch and (\S+) in\s+the second", READMES["tests"])
    for row, bound in zip(record["rows"], named.groups(), strict=True):
        assert 0.9 * float(bound) <= row["difference"] <= float(bound)
