"""The fault campaign, part 2: files that are damaged, or made to harm, are refused with one documented error.

fuzz_worker.py does it, in processes with a memory cap (512 MB beyond what the program has when it starts) and an audit
hook that sees unpickling, exec, imports, other programs, sockets and files opened for writing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from faults import Campaign

from autoencoders import VAE, TrainingOptions
from autoencoders.training import Trainer, latest_checkpoint, load_checkpoint
from minigrad.serialize import DataError, load_state

WORKER = Path(__file__).with_name("fuzz_worker.py")
COUNTS = {  # reader: files in the usual tests, and in the whole campaign
    "idx": (1000, 1_000_000),
    "gzipped_idx": (1000, 200_000),
    "state": (1000, 200_000),
    "model": (400, 20_000),
    "odd_checkpoint": (150, 6_000),
    "npz": (400, 10_000),
    "npy": (400, 10_000),
    "image": (300, 10_000),
    "recipe": (400, 10_000),
    "record": (400, 10_000),
    "seed_parameters": (1000, 100_000),
    "seed_weights": (200, 5_000),
    "keras": (300, 10_000),
    "keras_weights": (300, 10_000),
    "safetensors": (300, 10_000),
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and RLIMIT_AS")
@pytest.mark.parametrize("reader", COUNTS)
def test_damaged_files(campaign: Campaign, tmp_path: Path, reader: str) -> None:
    if reader in ("seed_weights", "keras", "keras_weights"):
        pytest.importorskip("h5py")
    count = campaign.count(*COUNTS[reader])
    command = [sys.executable, str(WORKER), reader, str(count), str(campaign.seed), str(tmp_path)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["refused"] > count / 5
    assert found["right"] > count / 100  # a quarter of the files is not changed; of models nearly all are
    print("\n".join(found["examples"]))
    what = f"damaged files for the reader of {reader.replace('_', ' ')}"
    campaign.survived(what, count, found["faults"], effective=found["refused"])


def test_damaged_checkpoints(campaign: Campaign, tmp_path: Path) -> None:
    """Flipped bits, cuts and splices of the checkpoints of a run: each is seen, and the one before is taken."""
    model = VAE((8, 8, 1), (2, 3), (3, 3), (2, 1), 2)
    model.compile(1e-3)
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)
    Trainer(model, images, TrainingOptions(4, epochs=2, save_every=1), folder=tmp_path, progress=False).run()
    newest = latest_checkpoint(tmp_path)
    assert newest
    content, older = newest.read_bytes(), sorted(newest.parent.iterdir())[-2].read_bytes()
    digest = load_state(newest)[2]
    rng = campaign.rng()
    count, lost, refused = campaign.count(500, 40_000), 0, 0
    for number in range(count):
        changed = bytearray(content)
        at = int(rng.integers(len(content)))
        if number % 3 == 0:
            changed[at] ^= 1 << int(rng.integers(8))
        elif number % 3 == 1:
            del changed[at:]
        else:
            end = at + 1 + int(rng.integers(len(content) - at))
            changed[at:end] = older[at:end]
        newest.unlink()  # else some file systems write the cut file to the disk each time
        newest.write_bytes(changed)
        try:
            lost += load_state(newest)[2] != digest  # taken: then it must be the very same content
        except DataError as error:
            lost += str(newest) not in str(error)
            refused += 1
            if number % 100 == 0:
                told: list[str] = []
                lost += load_checkpoint(tmp_path, told.append)[1]["progress"]["step"] != 3 or len(told) != 1
    newest.write_bytes(content)
    assert load_checkpoint(tmp_path)[1]["progress"]["step"] == 4
    what = "checkpoints with flipped bits, cuts and splices, taken for good"
    campaign.survived(what, count, lost, effective=refused)
