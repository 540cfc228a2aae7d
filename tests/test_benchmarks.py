"""Every benchmark runs, if only for one step."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from test_backends import kernels_of

from minigrad.backend.cpu import CpuBackend

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.usefixtures("restored_backends")
def test_kernels(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("kernels", BENCHMARKS / "kernels.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    out = tmp_path / "kernels.json"
    assert module.main(["--batch", "2", "--rounds", "1", "--threads", "2", "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    assert len(record["rows"]) == len(capsys.readouterr().out.splitlines()) - 1
    measured = {row["kernel"].split()[0] for row in record["rows"]}
    own = {name for name in kernels_of(CpuBackend) if name != "batch_norm_apply"}  # that is part of batch_norm
    assert measured == own, "benchmarks/kernels.py must measure every kernel that the CPU backend overrides"
    assert all(row["plain_ms"] > 0 and row["numpy_ms"] > 0 for row in record["rows"])
