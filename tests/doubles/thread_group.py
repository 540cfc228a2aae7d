"""Threads that stand for the processes of a group: the same calls at the same time, exchanged through a barrier."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

from minigrad import Backend
from minigrad.distributed import Group, MPIGroup

SECONDS = 60  # a test that hangs fails after this time


class ThreadGroup(Group):
    """One of `size` threads. board: a list of their messages; barrier: where they meet."""

    def __init__(self, rank: int, board: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size, self.local_size = rank, len(board), len(board)
        self.board, self.barrier = board, barrier

    def exchange(self, message: Any) -> list[Any]:
        self.board[self.rank] = message
        self.barrier.wait(SECONDS)
        found = list(self.board)
        self.barrier.wait(SECONDS)
        return found

    def gather(self, x: np.ndarray) -> np.ndarray:
        return np.stack(self.exchange(x.copy()))

    def mean(self, x: np.ndarray) -> np.ndarray:
        sums = self.exchange(x.copy())
        while len(sums) > 1:
            sums = [a + b for a, b in zip(sums[::2], sums[1::2], strict=True)]
        return sums[0] / self.size

    def mean_(self, x: np.ndarray) -> None:
        x[...] = self.mean(x)

    def check(self, k: Backend, batch_size: int) -> None:
        MPIGroup.check(self, k, batch_size)  # type: ignore[arg-type]

    def most(self, *numbers: int) -> list[int]:
        return np.max(self.exchange(numbers), axis=0).tolist()

    def first(self, work: Callable[[], Any]) -> Any:
        return self.exchange(work() if self.rank == 0 else None)[0]

    def same(self, what: str, arrays: dict[str, np.ndarray]) -> None:
        MPIGroup.same(self, what, arrays)  # type: ignore[arg-type]

    @contextmanager
    def together(self) -> Any:
        try:
            yield
        except BaseException:
            self.barrier.abort()  # the others do not wait
            raise


def in_threads(size: int, work: Callable[[Group], Any]) -> list[Any]:
    """What work(group) returns in each of `size` threads."""
    board, barrier = [None] * size, threading.Barrier(size)
    with ThreadPoolExecutor(size) as pool:
        jobs = [pool.submit(work, ThreadGroup(rank, board, barrier)) for rank in range(size)]
    errors = [job.exception() for job in jobs]
    real = [e for e in errors if e is not None and not isinstance(e, threading.BrokenBarrierError)]
    if real:
        raise real[0]
    return [job.result() for job in jobs]
