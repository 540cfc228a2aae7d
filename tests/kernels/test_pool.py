"""The thread pool's own promises; what runs on it is tested in test_backends.py."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from minigrad.backend.cpu.numpy_kernels import NumpyBackend
from minigrad.backend.cpu.threads import Pool, usable_cores
from minigrad.backend.memory import free_memory

FAULTS = """
import resource, sys
import numpy as np
from minigrad.backend.memory import keep_freed_memory
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
        command, environment = [sys.executable, "-c", FAULTS], {**os.environ, "MINIGRAD_KEEP_MEMORY": value}
        return map(int, subprocess.run(command, env=environment, capture_output=True, check=True).stdout.split())

    kept, faults = run("1")
    off, usual = run("0")
    assert not off
    if kept:  # another C library than glibc says no
        assert faults < usual / 10


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_the_shards_hold_every_item_once_in_order_on_any_number_of_threads(threads):
    for case in ("1 7 2 1", "4 7 2 1", "4 2 5 1", "4 9 1 4", "2 0 1 1", "1 16 7 1", "1 19 10 1", "8 30 2 1"):
        shards, count, block, least = map(int, case.split())
        size = max(-(-count // shards), least)
        seen: dict[int, list[int]] = {}
        sizes = []

        def task(shard, rows, seen=seen, sizes=sizes):
            seen.setdefault(shard, []).extend(range(rows.start, rows.stop))
            sizes.append(rows.stop - rows.start)

        Pool(threads, shards).run(task, count, block, least)
        cut = [list(range(start, min(start + size, count))) for start in range(0, count, size)]
        assert [seen[shard] for shard in sorted(seen)] == cut
        assert all(size < 1.5 * block + 1 for size in sizes)
        if case == "1 16 7 1":
            assert sizes == [8, 8], "even: a small block at the end would make a small product"
        found = Pool(threads, shards).shares(count)
        assert found.size == max(-(-count // shards), 1)
        assert found.shards == -(-count // found.size)
        assert found.threads == max(min(threads, found.shards), 1)
        starts = [thread * found.shards // found.threads for thread in range(found.threads + 1)]
        assert all(start % found.joined == 0 for start in starts), "neighbours that are joined have the same thread"


def test_the_sums_of_shards_are_added_as_a_tree():
    huge = np.float32([1e8, 1, -1e8, 1, 3, 1e8, 1e8, -2e8])  # float32 rounds 1e8 + 1 to 1e8
    assert Pool(2, 8).total(huge) == np.float32(((1e8 + 0) + (-1e8 + 0)) + ((1e8 + 0) + (1e8 - 2e8)))
    assert Pool(8, None).total(huge[:, None])[0] == huge[:, None].sum(axis=0)[0], "one after another, as before shards"


@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("failing", [(0,), (1,), (2,), (3,), (1, 3), (0, 2)])
def test_an_error_in_any_shard_is_raised_after_all_ended(failing, fault):
    done = []

    def task(shard, rows):
        if shard in failing:
            raise fault(f"shard {shard}")
        time.sleep(0.03)  # the fault comes first
        done.append(shard)

    def run():
        with pytest.raises(fault, match=f"shard {failing[0]}"):
            pool.run(task, 4, 1)
        raised.append(fault)

    pool, raised = Pool(4, None), []
    caller = threading.Thread(target=run, daemon=True)  # so that no fault here makes the tests wait for ever
    caller.start()
    caller.join(60)
    assert raised
    assert sorted([*done, *failing]) == [0, 1, 2, 3]
    done.clear()
    failing = ()
    pool.run(task, 4, 1)
    assert sorted(done) == [0, 1, 2, 3], "it works on"


def test_every_shard_runs_in_the_context_of_the_caller():
    name, seen = ContextVar("name", default="outside"), {}

    def task(shard, rows):
        seen[shard] = name.get(), np.geterr()["over"]
        if shard:
            name.set(f"of shard {shard}")

    pool = Pool(4, None)
    for over in ("raise", "ignore"):
        token = name.set(over)
        with np.errstate(over=over):
            pool.run(task, 4, 1)
        assert seen == dict.fromkeys(range(4), (over, over))
        assert name.get() == over, "what a shard sets is its own"
        name.reset(token)


def test_who_is_free_takes_the_next_block_if_shards_need_not_be_apart():
    """The thread that waits inside its block gets no other; the two others do all the rest."""
    waiting, rest, seen = threading.Event(), threading.Event(), []

    def task(index, rows):
        if rows.start == 0:
            waiting.set()
            assert rest.wait(20), "the others do not take its blocks"
        else:
            waiting.wait(20)
        seen.append((rows.start, index))
        if len(seen) == 11:
            rest.set()

    Pool(3, None).run(task, 12, 1, shards_apart=False)
    assert sorted(start for start, _ in seen) == list(range(12))
    assert len({index for _, index in seen}) <= 3


def test_a_pool_keeps_nothing_alive_and_its_threads_end_with_it():
    class Thing:
        pass

    def ends(still) -> bool:
        for _ in range(100):
            gc.collect()
            if not still():
                return True
            time.sleep(0.01)
        return False

    before = set(threading.enumerate())
    pool, thing = Pool(3, None), Thing()
    alive = weakref.ref(thing)
    pool.run(lambda *_, thing=thing: None, 3, 1)
    workers = set(threading.enumerate()) - before
    assert len(workers) == 2
    del thing
    assert ends(lambda: alive() is not None), "a worker that waits holds its last job"
    pool.run(lambda *_: None, 3, 1)
    assert set(threading.enumerate()) - before == workers, "they are used again"
    del pool
    assert ends(lambda: any(worker.is_alive() for worker in workers))


def test_no_more_threads_is_a_lack_of_memory(monkeypatch):
    monkeypatch.setattr(threading.Thread, "start", mock.Mock(side_effect=RuntimeError("can't start new thread")))
    with pytest.raises(MemoryError, match="can't start new thread"):
        Pool(2, None).run(lambda *_: None, 2, 1)
    Pool(2, None).run(lambda *_: None, 2, 1, least=2)  # needs none


def test_scratch_is_reused_by_its_name_shape_and_dtype_only():
    pool = Pool(1, None)
    first = pool.scratch("a", (4, 3), np.float32)
    assert first.shape == (4, 3)
    assert not first.any()
    first[...] = 7
    for rows in (4, 2):
        again = pool.scratch("a", (rows, 3), np.float32)
        assert again.shape == (rows, 3)
        assert np.shares_memory(again, first)
    with ThreadPoolExecutor(1) as other:
        elsewhere = [other.submit(pool.scratch, "a", (4, 3), np.float32).result()]
    others = ("b", (4, 3), "f4"), ("a", (4, 5), "f4"), ("a", (4, 3, 1), "f4"), ("a", (4, 3), "f8"), ("a", (5, 3), "f4")
    for x in [*elsewhere, *(pool.scratch(*other) for other in others)]:
        assert not np.shares_memory(x, first)
        assert not x.any(), "zero when first made"
    assert pool.scratch("a", (4, 3), "f8").dtype == "f8"


def test_scratch_of_many_shapes_is_not_kept_for_ever():
    pool, alive = Pool(1, None), []
    for i in range(300):
        alive.append(weakref.ref(pool.scratch(f"name {i}", (1, 2), np.float32).base))
        count = sum(x() is not None for x in alive)
        assert count == i + 1 if i < 64 else 1 <= count <= 64


def test_blas_has_one_thread_inside_and_its_own_setting_outside():
    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        inside: list[set[int]] = []
        Pool(1, None).run(lambda *_: inside.append(blas_threads()), 1, 1)
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

        with ThreadPoolExecutor(2) as callers:
            for _ in range(2):
                callers.submit(Pool(1, None).run, task, 1, 1)
            entered.wait(10)
            leave.set()
        assert inside == [{1}, {1}]
        assert blas_threads() == before
        with NumpyBackend(1).session():
            assert blas_threads() == {1}, "for many kernels in a row"
        # Contexts in each other, and errors on the way out.
        pool = Pool(2, None)
        with pool.single_threaded_blas:
            with pytest.raises(ZeroDivisionError):
                pool.run(lambda shard, _: 1 // (1 - shard), 2, 1)
            assert blas_threads() == {1}, "an inner one restores nothing"
        assert blas_threads() == before
        with pytest.raises(ZeroDivisionError):
            pool.run(lambda shard, _: 1 // shard, 2, 1)
        assert blas_threads() == before


def test_usable_cores_respects_affinity_and_quota(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    quotas = {"max 100000": 4, "150000 100000": 2, "1000 100000": 1, "900000 100000": 4, "odd": 4}
    for text, expected in quotas.items():
        monkeypatch.setattr(Path, "read_text", lambda _, text=text: text)
        assert usable_cores() == expected


SYSTEM = "MemTotal: 9000 kB\nMemFree: 7 kB\nMemAvailable:    3000 kB\nSwapFree:   500 kB\n"
FREE = 1024 * 3500
CGROUP = {"memory.max": "2000000\n", "memory.current": "1500000\n", "memory.stat": "anon 1200000\nfile 300000\n"}


@pytest.mark.parametrize(
    ("meminfo", "cgroup", "limit", "wanted"),
    [
        pytest.param(SYSTEM, {}, -1, FREE, id="what is available, and swap"),
        pytest.param(SYSTEM, CGROUP, -1, 800_000, id="the cgroup's limit, where pages of files can go"),
        pytest.param(SYSTEM, CGROUP | {"memory.max": "max\n"}, -1, FREE, id="a cgroup without a limit"),
        pytest.param(SYSTEM, CGROUP | {"memory.max": "900000000\n"}, -1, FREE, id="a cgroup that leaves more"),
        pytest.param(SYSTEM, CGROUP | {"memory.current": "2500000\n"}, -1, 0, id="a cgroup that is full"),
        pytest.param(SYSTEM, CGROUP | {"memory.stat": "anon 5\n"}, -1, FREE, id="a cgroup that does not say it"),
        pytest.param(SYSTEM, {"memory.max": "1\n", "memory.current": "1\n"}, -1, FREE, id="half a cgroup"),
        pytest.param(SYSTEM, CGROUP, 705_000, 5_000, id="the limit of the process, less what it has"),
        pytest.param(SYSTEM, {}, 600_000, 0, id="a process beyond its limit"),
        pytest.param(None, CGROUP, 705_000, None, id="no /proc"),
        pytest.param("MemAvailable: 3000 kB\n", CGROUP, -1, None, id="a /proc that says half of it"),
        pytest.param("MemAvailable\n", {}, -1, None, id="a /proc that says something else"),
    ],
)
def test_free_memory_is_the_least_that_anything_leaves(meminfo, cgroup, limit, wanted, monkeypatch):
    resource = pytest.importorskip("resource")
    files = {"/proc/meminfo": meminfo, "/proc/self/statm": "700 300 200 1 0 400 0\n"}
    files |= {f"/sys/fs/cgroup/{name}": text for name, text in cgroup.items()}

    def read_text(path, *_):
        if files.get(str(path)) is None:
            raise FileNotFoundError(path)
        return files[str(path)]

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(resource, "getpagesize", lambda: 1000)
    unlimited = resource.RLIM_INFINITY
    kinds = {resource.RLIMIT_AS: unlimited if limit < 0 else limit}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (kinds[kind], unlimited))
    assert free_memory() == wanted
