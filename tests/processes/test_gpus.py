"""A training on several GPUs, one for each process, gives the weights of one GPU. All of it runs without one: the CUDA
kernels on the CPU, and NCCL through MPI (doubles/strict_nccl.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernel_sets import NEEDS_COMPILER
from test_mpirun import NEEDS_MPI, run

WORKER = Path(__file__).with_name("gpu_worker.py")
pytestmark = [NEEDS_MPI, NEEDS_COMPILER, pytest.mark.mpi]
CAPTURED, EAGER = "vae, float64, captured", "vae, float64"
Found = list[dict[str, np.ndarray]]  # of each process


def worked(size: int, what: str, folder: Path, devices: int = 4) -> None:
    code, out, err = run(size, WORKER, what, folder, devices)
    assert (code, out, err) == (0, "", "")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Found]:
    """What one, two and four processes found."""
    folder, found = tmp_path_factory.mktemp("gpus"), {}
    for size in (1, 2, 4):
        worked(size, "train", folder)
        found[size] = [dict(np.load(folder / f"train-{size}-{rank}.npz")) for rank in range(size)]
    return found


def close(found: np.ndarray, wanted: np.ndarray, tolerance: float) -> bool:
    return bool(np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max())


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("case", ["autoencoder, float64, captured", CAPTURED, EAGER, "vae, float32, captured"])
def test_several_gpus_train_as_one(case: str, size: int, results: Any) -> None:
    wanted = {name: x for name, x in results[1][0].items() if name.startswith(f"{case}/")}
    assert len(wanted) > 20
    for name, x in wanted.items():
        assert close(results[size][0][name], x, 1e-12 if "float64" in case else 1e-4), name


@pytest.mark.parametrize("size", [2, 4])
def test_all_processes_have_the_same_bits_and_a_captured_step_those_of_an_eager_one(size: int, results: Any) -> None:
    first, *others = results[size]
    for name, x in first.items():
        assert "rows" in name or all(other[name].tobytes() == x.tobytes() for other in others), name
        if name.startswith(f"{CAPTURED}/"):
            assert first[name.replace(CAPTURED, EAGER)].tobytes() == x.tobytes(), name


@pytest.mark.parametrize("size", [2, 4])
def test_a_step_reads_nothing_back_and_exchanges_only_what_all_need_at_once(size: int, results: Any) -> None:
    found = results[size][0]
    copies, graphs, exchanges = found[f"{EAGER}: copies, graphs, exchanges"]
    assert (copies, graphs) == (0, 0)
    # 7 whole batches: forward 2 for each of 3 batch normalisations in float64, 1 backward; in all 8, gradients, losses
    assert exchanges == 7 * 3 * (2 + 1) + 8 * 2
    copies, graphs, _ = found[f"{CAPTURED}: copies, graphs, exchanges"]
    assert (copies, graphs) == (0, 7 - 3)
    assert found["vae, float32, captured: copies, graphs, exchanges"][2] == 4 * (3 * 2 + 2) + 2, "4 eager calls"
    assert results[1][0][f"{EAGER}: copies, graphs, exchanges"][2] == 0


@pytest.mark.parametrize("size", [2, 4])
def test_batch_norm_of_rows_of_several_gpus_is_that_of_one(size: int, results: Any) -> None:
    wanted = {name: x for name, x in results[1][0].items() if name.startswith("batch_norm: ")}
    assert len(wanted) == 6
    for name, x in wanted.items():
        mine = [found[name] for found in results[size]]
        assert close(np.concatenate(mine) if "rows" in name else mine[0], x, 1e-11), name


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    worked(2, "refuse", tmp_path)
    found, other = (json.loads((tmp_path / f"refuse-2-{rank}.json").read_text()) for rank in (0, 1))
    assert {**found, "kernels": found["kernels"].replace("cuda:0", "cuda:1")} == other
    assert found["kernels"].startswith("2 processes need the kernels numba, numpy or cuda, found device cuda:0")
    assert found["batch"].endswith("but 2 processes share a batch, so it must be a multiple of 2, such as 4 or 6")
    assert found["one GPU"].startswith("2 processes use 1 GPU, but each needs one of its own: start fewer processes")
    assert found["no NCCL"].startswith("2 processes with a GPU each need NCCL: pip install")
    assert found["nothing"] == ""


TRAIN = "--dataset fashion-mnist-sample --limit-train 64 --batch-size 32 --filters 2 2 --kernels 3 3 --strides 4 2"


@pytest.mark.parametrize("devices", [1, 2])
def test_the_program_trains_on_two_gpus_or_says_why_not(devices: int, tmp_path: Path) -> None:
    install = f"import sys, strict_cupy, strict_nccl; strict_nccl.install(); strict_cupy.reset(devices={devices})"
    words = f"train {TRAIN} --epochs 1 --smoke --device cuda --out {tmp_path / 'run'}".split()
    code, out, err = run(2, "-c", f"{install}\nsys.argv[1:] = {words}\nfrom autoencoders.cli.main import main\nmain()")
    if devices == 1:
        assert code == 4
        assert err.count("error: 2 processes use 1 GPU, but each needs one of its own") == err.count("error") == 1
        return
    assert (code, err) == (0, "")
    assert "device cuda:0, kernels cuda" in out
    assert out.count("epoch 1/1") == 1


def test_a_gpu_that_gives_no_answer_ends_the_wait() -> None:
    script = """
import strict_nccl, strict_cupy
strict_nccl.install()
strict_cupy.Event.done = False
import minigrad
from mpi4py import MPI
from minigrad.distributed import MPIGroup
try:
    MPIGroup(MPI).wait_for(minigrad.use("cuda"))
except RuntimeError as error:
    print(error)
"""
    code, out, err = run(1, "-c", script, MINIGRAD_WAIT="0.1")
    assert (code, err) == (0, "")
    assert out.startswith("all processes have waited for 0 s")
