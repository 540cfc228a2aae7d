"""The thread pool's own promises; what runs on it is tested in test_backends.py."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from minigrad.backend.pool import Pool, usable_cores

FAULTS = """
import resource, sys
import numpy as np
from minigrad.backend.pool import keep_freed_memory
done = keep_freed_memory()
def touch():
    return [np.ones(1 << 22, np.uint8) for _ in range(4)]
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    touch()
print(int(done), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def blas_threads() -> set[int]:
    """Without SciPy's own, which other tests may have loaded meanwhile, and which computes nothing here."""
    found = [x for x in threadpool_info() if x["user_api"] == "blas" and "scipy.libs" not in x["filepath"]]
    return {library["num_threads"] for library in found}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_freed_memory_is_kept_if_asked_for():
    def run(value):
        environment = {**os.environ, "MINIGRAD_KEEP_MEMORY": value}
        done = subprocess.run(
            [sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, check=True
        )
        return map(int, done.stdout.split())

    kept, faults = run("1")
    off, usual = run("0")
    assert not off
    if kept:  # another C library than glibc says no
        assert faults < usual / 10


def test_a_shard_is_every_item_once_in_order():
    for threads, count, block, least in (
        (1, 7, 2, 1),
        (3, 7, 2, 1),
        (3, 2, 5, 1),
        (4, 9, 1, 4),
        (2, 0, 1, 1),
        (1, 16, 7, 1),
    ):
        seen: dict[int, list[int]] = {}
        sizes = []

        def task(shard, rows, seen=seen, sizes=sizes):
            seen.setdefault(shard, []).extend(range(rows.start, rows.stop))
            sizes.append(rows.stop - rows.start)

        Pool(threads).run(task, count, block, least)
        assert [item for shard in sorted(seen) for item in seen[shard]] == list(range(count))
        assert all(size < 1.5 * block + 1 for size in sizes)
        assert len(seen) <= min(threads, -(-count // least))


def test_an_error_in_any_shard_is_raised_after_all_ended():
    done = []

    def task(shard, rows):
        if shard == 1:
            raise ValueError("shard 1")
        done.append(shard)

    with pytest.raises(ValueError, match="shard 1"):
        Pool(3).run(task, 3, 1)
    assert sorted(done) == [0, 2]


def test_blocks_are_even():
    """16 items in blocks of some 7 are 8 and 8: a small one at the end would make a small product."""
    sizes = []
    Pool(1).run(lambda _, rows: sizes.append(rows.stop - rows.start), 16, 7)
    assert sizes == [8, 8]


def test_blas_has_one_thread_inside_and_its_own_setting_outside():
    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        inside: list[set[int]] = []
        Pool(1).run(lambda *_: inside.append(blas_threads()), 1, 1)
        assert inside == [{1}]
        assert blas_threads() == before
        # Callers that overlap: the first must not restore before the last is out, nor the last restore "one".
        # And the thread that used BLAS's setting first, this one, has no privilege.
        entered, leave = threading.Barrier(3), threading.Event()
        inside.clear()

        def task(*_):
            entered.wait(10)
            inside.append(blas_threads())
            leave.wait(10)

        callers = [threading.Thread(target=Pool(1).run, args=(task, 1, 1)) for _ in range(2)]
        for caller in callers:
            caller.start()
        entered.wait(10)
        leave.set()
        for caller in callers:
            caller.join()
        assert inside == [{1}, {1}]
        assert blas_threads() == before


def test_a_fork_after_use_does_not_hang():
    if not hasattr(os, "fork"):
        pytest.skip("no fork")
    code = (
        "import os, numpy as np\n"
        "from minigrad.backend.pool import Pool\n"
        "pool = Pool(2)\n"
        "pool.run(lambda *_: None, 4, 1)\n"
        "child = os.fork()\n"
        "pool.run(lambda *_: None, 4, 1)\n"
        "if child: os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "os._exit(0)\n"
    )
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=60, check=False).returncode == 0


def test_usable_cores_respects_affinity_and_quota(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    for text, expected in (
        ("max 100000", 4),
        ("150000 100000", 2),
        ("1000 100000", 1),
        ("900000 100000", 4),
        ("odd", 4),
    ):
        monkeypatch.setattr(Path, "read_text", lambda _, text=text: text)
        assert usable_cores() == expected
