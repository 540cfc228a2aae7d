"""The fault campaign, part 2: files that are damaged, or made to harm, are refused with one documented error.

fuzz_worker.py does it, in processes with a memory cap (512 MB beyond what the program has when it starts) and an audit
hook that sees unpickling, exec, imports, other programs, sockets and files opened for writing.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from faults import Campaign

WORKER = Path(__file__).with_name("fuzz_worker.py")
COUNTS = {  # reader: files in the usual tests, and in the whole campaign
    "idx": (1000, 1_000_000),
    "gzipped_idx": (1000, 200_000),
    "state": (1000, 200_000),
    "model": (400, 20_000),
    "npz": (400, 10_000),
    "npy": (400, 10_000),
    "image": (300, 10_000),
    "recipe": (400, 10_000),
    "record": (400, 10_000),
    "seed_parameters": (1000, 100_000),
    "seed_weights": (200, 5_000),
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and RLIMIT_AS")
@pytest.mark.parametrize("reader", COUNTS)
def test_damaged_files(campaign: Campaign, tmp_path: Path, reader: str) -> None:
    if reader == "seed_weights":
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
