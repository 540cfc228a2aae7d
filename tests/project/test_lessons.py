"""The lessons in scripts/lessons run as scripts, are notebooks, and their exercises take right answers only."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "scripts/lessons"
LESSONS = {path.stem: path for path in sorted(FOLDER.glob("[0-9]*.py"))}
MOST_LINES = 120


def wrong_sum_over_paths(y, x):
    return 1.0 if y is x else max((d * wrong_sum_over_paths(i, x) for i, d in y.inputs), default=0.0)


# exercise -> answers that look right and are wrong
WRONG: dict[str, list[Callable]] = {
    "sum_over_paths": [wrong_sum_over_paths, lambda y, x: x.gradient],
    "divide": [
        lambda a, b: type(a)(a.value / b.value, [(a, lambda gy: gy / b.value), (b, lambda gy: gy / b.value**2)]),
        lambda a, b: type(a)(a.value / b.value, [(a, lambda gy: gy / b.value)]),
        lambda a, b: type(a)(0 * a.value * b.value, SOLUTIONS.divide(a, b).inputs),
    ],
    "by_conv": [
        lambda g, w, stride: SOLUTIONS.by_conv(g, w[::-1, ::-1], stride),
        lambda g, w, stride: SOLUTIONS.by_conv(g, w, 1),
    ],
    "fold": [
        lambda weight, bias, gamma, beta, mean, variance: (weight * gamma, (bias - mean) * gamma + beta),
        lambda *values: (SOLUTIONS.fold(*values)[0], values[1] + values[3]),
    ],
    "pca": [
        lambda x, Z: SOLUTIONS.pca(x, max(Z - 1, 1)),
        lambda x, Z: x @ (v := np.linalg.svd(x)[2][:Z]).T @ v,
    ],
    "kl_between": [
        lambda mu_1, v_1, mu_2, v_2: SOLUTIONS.kl_between(mu_1, v_1, 0, 0),
        lambda mu_1, v_1, mu_2, v_2: SOLUTIONS.kl_between(mu_1 - mu_2, v_1 - v_2, 0, 0),
        lambda mu_1, v_1, mu_2, v_2: SOLUTIONS.kl_between(mu_2, v_2, mu_1, v_1),
        lambda mu_1, v_1, mu_2, v_2: SOLUTIONS.kl_between(mu_1, v_1, -mu_2, v_2),
    ],
    "adamw_step": [
        lambda p, m, v, g, t, rate, decay: SOLUTIONS.adamw_step(p, m, v, g + decay * p, t, rate, 0),
        lambda p, m, v, g, t, rate, decay: SOLUTIONS.adamw_step(p, m, v, g, 1, rate, decay),
    ],
    "key_bytes": [
        lambda *key: "".join(map(str, key)).encode(),
        lambda *key: "\0".join(map(str, key)).encode(),
        lambda *key: ",".join(f'"{part}"' if isinstance(part, str) else str(part) for part in key).encode(),
        lambda *key: ";".join(f"'{part}'" if isinstance(part, str) else str(part) for part in key).encode(),
        lambda *key: ",".join(f"{type(part).__name__[0]}{part}" for part in key).encode(),
        lambda *key: "".join(f"{type(part).__name__[0]}{len(str(part))}{part}" for part in key).encode(),
    ],
    "pad": [
        lambda x: np.pad(x, ((0, 0), (2, 0), (2, 0), (0, 0))),
        lambda x: np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge"),
    ],
    "leaky_relu": [
        lambda x, slope: (np.maximum(x, slope * x), lambda gy: gy * (x > 0)),
        lambda x, slope: (np.maximum(x, 0), lambda gy: np.where(x > 0, gy, slope * gy)),
        lambda x, slope: (y := np.maximum(x, slope * x), lambda gy: gy * np.where(y > 0, 1, slope)),
    ],
}


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DEFINITIONS = ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef


def is_constant(node: ast.stmt) -> bool:
    parts = ast.walk(node.value) if isinstance(node, ast.Assign) else [node]
    return all(isinstance(part, ast.Constant | ast.Tuple | ast.Load) for part in parts)


def definitions(path: Path) -> dict[str, object]:
    """The functions, classes, imports and constants of a lesson, without running its training."""
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if isinstance(node, DEFINITIONS) or is_constant(node)]
    names: dict[str, object] = {"__name__": path.stem}
    exec(compile(tree, path, "exec"), names)
    return names


CHECKS = {
    name.removeprefix("check_"): check
    for path in LESSONS.values()
    for name, check in definitions(path).items()
    if name.startswith("check_")
}
SOLUTIONS = load(FOLDER / "solutions.py")


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_lesson_runs_as_a_script(lesson: str, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", LESSONS[lesson]]
    environment = {**os.environ, "MPLBACKEND": "Agg", "OPENBLAS_NUM_THREADS": "1"}  # other tests use the other cores
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"th(at|ose) of minigrad", done.stdout)
    pictures = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    assert pictures == ({f"runs/lessons/{lesson}.png"} if "savefig" in LESSONS[lesson].read_text() else set())


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_lesson_is_a_short_notebook(lesson: str) -> None:
    lines = LESSONS[lesson].read_text().splitlines()
    assert len(lines) <= MOST_LINES
    number = int(lesson[:2])
    assert lines[0] == "# %% [markdown]"
    assert lines[1].startswith(f"# # {number}. ")
    cells = [i for i, line in enumerate(lines) if line.startswith("# %%")]
    assert {lines[i] for i in cells} == {"# %%", "# %% [markdown]"}
    for start, end in zip(cells, [*cells[1:], len(lines)], strict=True):
        if lines[start] == "# %% [markdown]":
            assert all(line.startswith("#") or not line for line in lines[start:end])
    imported = [(i, line) for i, line in enumerate(lines) if re.match(r"(from|import) minigrad", line)]
    assert all(i > 0.6 * len(lines) for i, _ in imported), "a lesson builds what it needs, and compares at the end"


def test_the_lessons_are_numbered_and_listed() -> None:
    assert [int(name[:2]) for name in LESSONS] == list(range(1, len(LESSONS) + 1))
    table = re.findall(r"^\| \[(\d+)\. .*?\]\((\w+\.py)\)", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert table == [(str(int(path.name[:2])), path.name) for path in LESSONS.values()]


def test_every_exercise_has_a_solution_and_wrong_answers() -> None:
    solved = {name for name, _ in inspect.getmembers(SOLUTIONS, inspect.isfunction)}
    assert set(CHECKS) == set(WRONG) == solved


@pytest.mark.parametrize("exercise", CHECKS)
def test_a_solution_passes_its_check(exercise: str) -> None:
    assert CHECKS[exercise](getattr(SOLUTIONS, exercise)) == f"{exercise}: right"


@pytest.mark.parametrize(("exercise", "wrong"), [(name, wrong) for name, answers in WRONG.items() for wrong in answers])
def test_a_wrong_answer_is_refused_with_a_reason(exercise: str, wrong: Callable) -> None:
    with pytest.raises(AssertionError, match=r"\w"):
        CHECKS[exercise](wrong)
