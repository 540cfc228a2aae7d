"""Threads for the CPU kernels: the batch is cut into shards, and each shard into cache-sized blocks.

NumPy releases the interpreter lock in copies, elementwise loops and matrix products, so Python threads run them
in parallel. BLAS is limited to one thread during this time, and its own setting is restored afterwards.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Callable
from contextvars import copy_context
from functools import cache, lru_cache, partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np

from ..sharing import added, is_strict, sharers

LINE = 64  # bytes of a line of the cache


def allowed_cores() -> set[int]:
    """The cores that this process may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def usable_cores() -> int:
    """How many cores this process may use: CPU affinity and the cgroup's quota respected."""
    cores = len(allowed_cores())
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):
        pass  # no cgroup version 2 here
    return cores


@cache
def blas_libraries() -> list[Any]:
    """The BLAS libraries of this process, as threadpoolctl controls them."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas").lib_controllers


class _SingleThreadedBlas:
    """A context in which BLAS runs on one thread, for the whole process; the last one out restores what was."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: list[int] = []

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = [library.get_num_threads() for library in blas_libraries()]
                self._set([1] * len(self._before))
            self._inside += 1

    def __exit__(self, *error: Any) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._set(self._before)

    def _set(self, counts: list[int]) -> None:
        for library, before, count in zip(blas_libraries(), self._before, counts, strict=True):
            if before > 1:  # else it stays as it is
                if hasattr(library, "clear_controlling_thread"):
                    # threadpoolctl 3.8 ignores all threads but the one that set it first; here our lock decides
                    library.clear_controlling_thread(force=True)
                library.set_num_threads(count)


def aligned(make: Callable[..., np.ndarray], shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """make(shape, dtype), such as np.empty, that begins with a line of the cache: few vectors reach into two then."""
    numbers, size = math.prod(shape), np.dtype(dtype).itemsize
    array = make(numbers + LINE // size, dtype)
    first = -array.__array_interface__["data"][0] % LINE // size
    return array[first : first + numbers].reshape(shape)


class _Worker:
    """A thread that runs one job after another. (concurrent.futures takes ten times as long to hand one over.)"""

    def __init__(self) -> None:
        self.jobs: SimpleQueue[tuple[Callable[[], None], SimpleQueue[BaseException | None]] | None] = SimpleQueue()
        try:
            threading.Thread(target=_work, args=(self.jobs,), name="minigrad", daemon=True).start()
        except RuntimeError as error:  # the system has no memory for another thread, or allows no more threads
            raise MemoryError(str(error)) from error

    def submit(self, job: Callable[[], None]) -> Callable[[], BaseException | None]:
        """Start a job; what is returned waits for its end and gives its exception or None."""
        done: SimpleQueue[BaseException | None] = SimpleQueue()
        self.jobs.put((job, done))
        return done.get


def _work(jobs: SimpleQueue[tuple[Callable[[], None], SimpleQueue[BaseException | None]] | None]) -> None:
    while (entry := jobs.get()) is not None:
        job, done = entry
        try:
            job()
        except BaseException as error:
            done.put(error)
        else:
            done.put(None)
        del entry, job, done  # nothing is kept alive while waiting


def _stop(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.jobs.put(None)


class Shares(NamedTuple):
    """Items in each shard, of which the last one may have fewer; shards that have items; threads that get some.

    parts: the sums that `Pool.total` takes: those of the shards that have items, and zeros up to a power of two.
    joined: so many neighbouring shards are always on the same thread. It may add their sums, as `Pool.total` does, in
    the place of the first; then `total(parts[::joined])` is the sum of all.
    """

    size: int
    shards: int
    threads: int
    parts: int
    joined: int


def cut(count: int, shards: int, least: int) -> tuple[int, int]:
    """(items in each of so many shards, at least `least`; number of shards that have any)."""
    size = max(-(-count // shards), least)
    return size, -(-count // size)


@lru_cache(maxsize=256)
def shares_of(count: int, shards: int, threads: int, by_thread: bool) -> Shares:
    """How `count` items are shared among the threads, if each takes its shards at once."""
    size, filled = cut(count, shards, 1)
    used = max(min(threads, filled), 1)
    parts = max(filled, 1) if by_thread else 1 << max(filled - 1, 0).bit_length()
    joined = 1 if by_thread else math.gcd(shards, *(i * filled // used for i in range(1, used + 1)))
    return Shares(size, filled, used, parts, joined)


class Pool:
    """Runs a task over the images of a batch, cut into a fixed number of shards, on some threads.

    Results depend on the number of shards, never on the threads or on timing: a sum is taken over the images of each
    shard, and `total` adds the sums of the shards. Only where a result does not depend on the shard at all does the
    next free thread take the next block.

    Args:
        shards: a power of two. None: one for each thread, whose sums are added one after another, as in runs that were
            made before there were shards.

    Attributes:
        all_shards: how many there are; `shards` are those of this process.
    """

    single_threaded_blas = _SingleThreadedBlas()

    def __init__(self, threads: int, shards: int | None) -> None:
        self.threads, self.by_thread = threads, shards is None
        self.all_shards = shards or threads
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._scratch = threading.local()
        weakref.finalize(self, _stop, self._workers)

    @property
    def strict(self) -> bool:
        """Whether even small arrays are cut into the shards of their batch: in a step of a training."""
        return not self.by_thread and is_strict()

    @property
    def group(self) -> Any:
        """The processes that share the batch, each with its part of the shards; None: this process has all."""
        return sharers()

    @property
    def shards(self) -> int:
        """The shards of the rows that this process has."""
        return self.all_shards if self.group is None else self.all_shards // self.group.size

    def run(
        self, task: Callable[[int, slice], Any], count: int, block: int, least: int = 1, shards_apart: bool = True
    ) -> None:
        """Call task(shard index, slice of some `block` items) until all `count` items are done.

        A shard has at least `least` items, so that little work is not spread over threads. If `strict`, the work is cut
        into all shards and only the threads are fewer. Unless shards_apart, a thread that is free takes the next block:
        its index is then that of the thread.
        """
        size, shards = cut(count, self.shards, 1 if self.strict and shards_apart else least)
        block = -(-size // max(1, round(size / max(block, 1))))  # the last one as large as the others
        shared = iter(range(0, count, block))  # the interpreter lets one thread at a time take from it

        def work(thread: int, mine: range) -> None:
            if not shards_apart:
                for start in shared:
                    task(thread, slice(start, min(start + block, count)))
                return
            for shard in mine:
                stop = min((shard + 1) * size, count)
                for start in range(shard * size, stop, block):
                    task(shard, slice(start, min(start + block, stop)))

        self._on_threads(work, shards, -(-count // least))

    def shares(self, count: int) -> Shares:
        """How `count` items are shared among the threads, if each takes its shards at once."""
        return shares_of(count, self.shards, self.threads, self.by_thread)

    def total(self, parts: np.ndarray) -> np.ndarray:
        """The sum of the parts (shards, ...). Of several processes, each of which has the mean loss of its own images,
        it is the mean of their sums: that belongs to the mean loss of all."""
        return self.added(parts) if self.group is None else self.group.mean(added(parts))

    def added(self, parts: np.ndarray) -> np.ndarray:
        """The sum of the parts (shards, ...) of this process."""
        return parts.sum(axis=0) if self.by_thread else added(parts)

    def _on_threads(self, work: Callable[[int, range], Any], shards: int, most: int | None = None) -> None:
        """Call work(thread, its shards) on each thread that has some; on at most so many threads.

        The first one is the calling thread, the others run in copies of its context (`np.errstate` holds there). An
        exception in any of them is raised here, after all ended.
        """
        threads = min(self.threads, shards, shards if most is None else most)

        def job(thread: int) -> None:
            work(thread, range(thread * shards // threads, (thread + 1) * shards // threads))

        with self.single_threaded_blas:
            if threads < 2:
                for thread in range(threads):
                    job(thread)
                return
            self._hire(threads - 1)
            waits = [
                worker.submit(partial(copy_context().run, job, i))
                for i, worker in zip(range(1, threads), self._workers, strict=False)
            ]
            try:
                job(0)
            finally:
                faults = [wait() for wait in waits]
        for fault in faults:
            if fault is not None:
                raise fault

    def _hire(self, count: int) -> None:
        """Have at least so many workers in this process: a fork has no threads of its parent."""
        with self._lock:
            if self._process != os.getpid():
                self._workers.clear()
                self._process = os.getpid()
            while len(self._workers) < count:
                self._workers.append(_Worker())

    def scratch(self, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array of this thread that is reused by the next call with the same name; zero when first made.

        Buffers of one name differ only in the first axis, so what a kernel never writes (a border) stays zero.
        """
        buffers = vars(self._scratch)
        key = name, shape[1:], np.dtype(dtype).char
        found: np.ndarray | None = buffers.get(key)  # type: ignore[call-overload]
        if found is None or len(found) < shape[0]:
            if len(buffers) >= 64:
                buffers.clear()
            found = buffers[key] = aligned(np.zeros, shape, dtype)  # type: ignore[index]
        return found[: shape[0]]
