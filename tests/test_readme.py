"""The README's Python is run, and what it says of the programs is true of them."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_campaign_runs import CPU_RUNS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CAMPAIGNS = {name: ROOT / f"benchmarks/results/{name}.json" for name in ("campaign", "campaign_gpu")}
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


def test_the_results_are_those_of_the_committed_run():
    assert not re.search(r"@[A-Z]+@", README)
    record = json.loads((ROOT / "benchmarks/results/default_vae/run.json").read_text())
    for name, digits in (("neg_elbo", 1), ("reconstruction", 1), ("kl", 1), ("mse", 4)):
        assert f"{record['test'][name]:.{digits}f}" in README, name
    assert record["test"]["neg_elbo"] <= 264


def test_the_table_of_recipes_is_made_of_the_committed_files(tmp_path):
    copy = tmp_path / "README.md"
    copy.write_text(README)
    report = [sys.executable, str(ROOT / "benchmarks/report.py"), "--readme", str(copy)]
    shutil.copytree(ROOT / "benchmarks/results/quality", tmp_path / "results/quality")
    for record in CAMPAIGNS.values():
        if record.exists():
            shutil.copy(record, tmp_path / "results")
    subprocess.run([*report, "--results", str(tmp_path / "results")], check=True, capture_output=True)
    assert copy.read_text() == README
    for name in ("quality.md", "campaign.md"):
        assert (tmp_path / "results" / name).read_text() == (ROOT / "benchmarks/results" / name).read_text()


def test_the_parity_is_that_of_the_committed_file():
    record = json.loads((ROOT / "benchmarks/results/parity.json").read_text())
    named = re.search(r"PyTorch's within (\S+) and (\S+) of themselves", README)
    for row, bound in zip(record["rows"], named.groups(), strict=True):
        assert 0.9 * float(bound) <= row["difference"] <= float(bound) <= 5e-3
    assert record["settings"]["images"] > 50_000
    assert not record["faults"]


LEAST = {  # faults that the whole campaign injects, by what rows begin with
    "campaign": {
        "drawn calls of operations, values (plain)": 6_400,
        "drawn calls of operations, values (numpy)": 6_400,
        "drawn calls of operations, values (numba)": 6_400,
        "drawn calls of operations, gradients": 19_200,
        "losses of drawn float32 numbers": 300_000,
        "convolutions against loops": 6_000,
        "adjoint identities": 6_000,
        "ENOSPC, EIO, short write, kill -9 at a call of a save": 20,
        "ENOSPC, EIO, short write, kill -9 at a call of a training": 1_000,
        "ENOSPC, EIO, short write, kill -9 at a call of evaluate.py": 120,
        "ENOSPC, EIO, short write, kill -9 at a call of generator.py": 50,
        "train_conv_autoencoder.py is told to stop at any moment": 20,
        "generator.py is told to stop at any moment": 20,
        "evaluate.py is told to stop at any moment": 6,
        "memory limits of any size": 150,
        **{
            row.format(run): count
            for run in CPU_RUNS
            for row, count in {
                "100 steps in fresh processes ({}), other bits": 10,
                "resume from a checkpoint of any step ({}), other bits at the end": 60,
                "resumes in one run ({}), other bits at the end": 20,
                "kill -9 while saving after every or every third step ({})": 200,
                "SIGINT at any moment ({})": 60,
                "SIGTERM at any moment ({})": 60,
                "SIGINT twice at any moment ({})": 60,
            }.items()
        },
        "checkpoints with flipped bits": 40_000,
        "damaged files for the reader of idx": 1_000_000,
        "damaged files for the reader of state": 200_000,
        "damaged files for the reader of odd checkpoint": 6_000,
        "damaged files for the reader of": 1_202_000,
        "faulty downloads": 30,
        "processes that race": 20,
        "steps of a soak (vae-numpy-1)": 5_000,
        "steps of a soak (ae-plain-1)": 5_000,
        "steps of a soak (vae-numba-2)": 5_000,
        # on the double of CuPy, the plain kernels and the CUDA ones
        "kernel calls of drawn shapes against the specification (cu": 200_000,
    },
    "campaign_gpu": {
        "drawn calls of operations, values (cuda)": 6_400,
        "drawn calls of operations, gradients (cuda)": 6_400,
        "NaN and infinity in drawn calls (cuda)": 6_000,
        "losses of drawn float32 numbers (cuda)": 20_000,
        "float32 numbers through exp, log, sqrt, tanh, sigmoid, softplus (cuda)": 1_200_000_000,
        "convolutions against loops, cuda": 6_000,
        "transposed convolutions against loops, cuda": 6_000,
        "adjoint identities of convolutions, cuda": 12_000,
        "kernel calls of drawn shapes against the specification (cuda)": 100_000,
        "100 steps in fresh processes (vae-cuda-alternating)": 10,
        "resume from a checkpoint of any step (vae-cuda-captured)": 30,
        "resume from a checkpoint of any step (vae-cuda-eager)": 30,
        "resumes in one run (vae-cuda-alternating)": 10,
        "kill -9 while saving after every or every third step (vae-cuda-captured)": 70,
        "kill -9 while saving after every or every third step (vae-cuda-eager)": 70,
        "kill -9 while saving after every or every third step (ae-cuda-captured)": 70,
        "SIGINT at any moment": 20,
        "SIGTERM at any moment": 20,
        "SIGINT twice": 20,
        "steps of a soak": 5_000,
    },
}


@pytest.mark.parametrize(("campaign", "what"), [(campaign, what) for campaign in LEAST for what in LEAST[campaign]])
def test_the_campaign_injected_enough(campaign, what):
    if campaign == "campaign_gpu" and not CAMPAIGNS[campaign].exists():
        pytest.skip("nobody has run the campaign on a GPU yet")
    rows = [row for row in json.loads(CAMPAIGNS[campaign].read_text())["rows"] if row["what"].startswith(what)]
    assert sum(row["faults"] for row in rows) >= LEAST[campaign][what]
    assert not any(row["lost"] for row in rows)


def test_pictures_exist():
    names = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert len(names) >= 1
    for name in names:
        assert (ROOT / name).stat().st_size > 1000, name
