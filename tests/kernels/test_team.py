"""The threads that wait in compiled code; what they compute is tested in test_backends.py."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("numba")

from numba import njit

from minigrad.backend.cpu import team
from minigrad.backend.cpu.team import Team, address_of, look, part_of, share

LIMIT = 120  # seconds, in which a hang is found


@njit
def write(thread, first, stop, seen, failing):
    for i in range(first, stop):
        seen[i] += 1 + thread
    if thread == failing:
        raise ValueError("as asked for")


@njit(nogil=True)
def write_all(desks, threads, shards, seen, failing):
    arguments = seen, failing
    share(desks, threads, shards, part_of(write, arguments), address_of(arguments))


@njit
def wait(thread, first, stop, flag):
    while look(flag.ctypes.data) == 0:
        pass


@njit(nogil=True)
def wait_all(desks, threads, shards, flag):
    arguments = (flag,)
    share(desks, threads, shards, part_of(wait, arguments), address_of(arguments))


def written(of: Team, threads: int, shards: int) -> list[int]:
    seen = np.zeros(shards, np.int64)
    of.run(write_all, threads, shards, seen, -1)
    return list(seen)


def by_thread(threads: int, shards: int) -> list[int]:
    return [1 + t for t in range(threads) for _ in range(t * shards // threads, (t + 1) * shards // threads)]


def run_apart(script: str) -> None:
    """Run it in another process, with a limit."""
    command = [sys.executable, "-c", script, os.path.dirname(__file__), *sys.path]
    done = subprocess.run(command, timeout=LIMIT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def threads_of_teams() -> int:
    return sum(thread.name == "minigrad" for thread in threading.enumerate())


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_each_thread_does_its_shards_once(threads):
    of = Team(threads - 1)
    for shards in (*range(threads, 9), 64, 0):
        for few in range(1, threads + 1):
            assert written(of, few, shards) == by_thread(few, shards)


def test_a_thread_that_sleeps_is_woken_and_so_is_the_caller():
    """A lost wake-up is a hang."""
    script = """
import sys, time
sys.path[:0] = sys.argv[1:]
import numpy as np
from numba import njit
from test_team import Team, address_of, by_thread, part_of, share, written

@njit
def work(thread, first, stop, turns, out):  # thread 1 works long, so the caller falls asleep
    total = 0.0
    for i in range(turns[thread]):
        total = total * 0.5 + i
    out[thread] = total

@njit(nogil=True)
def work_all(desks, threads, shards, turns, out):
    arguments = turns, out
    share(desks, threads, shards, part_of(work, arguments), address_of(arguments))

team = Team(2)
for turn in range(300):
    time.sleep((0, 0, 0.0001, 0.003)[turn % 4])
    assert written(team, 3, 8) == by_thread(3, 8), turn
    turns = np.roll(np.array([0, 3_000_000 if turn % 10 == 0 else 10_000, 0]), turn)
    out = np.zeros(3)
    team.run(work_all, 3, 8, turns, out)
    assert list(out > 0) == list(turns > 0), turn
"""
    run_apart(script)


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_error_in_one_part_is_raised_after_all_ended(failing):
    of, seen = Team(2), np.zeros(8, np.int64)
    with pytest.raises(MemoryError):
        of.run(write_all, 3, 8, seen, failing)
    assert list(seen) == by_thread(3, 8)
    assert written(of, 3, 8) == by_thread(3, 8), "the team is as before"


def test_who_finds_the_team_busy_does_all_parts_alone():
    of, flag = Team(1), np.zeros(1, np.int64)
    wait_all(np.zeros((0, team.DESK), np.int64), 1, 1, np.ones(1, np.int64))  # compiled beforehand
    with ThreadPoolExecutor(1) as caller:
        waiting = caller.submit(of.run, wait_all, 2, 2, flag)
        while not of._busy.locked():
            time.sleep(0.001)
        assert written(of, 2, 8) == by_thread(2, 8)
        assert not waiting.done()
        flag[0] = 1
        waiting.result(LIMIT)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_has_a_team_of_its_own():
    script = """
import os, sys
sys.path[:0] = sys.argv[1:]
from test_team import Team, by_thread, written
team = Team(2)
assert written(team, 3, 8) == by_thread(3, 8)
child = os.fork()
right = written(team, 3, 8) == by_thread(3, 8)
if not child:
    os._exit(0 if right else 1)
assert right and os.waitpid(child, 0)[1] == 0
"""
    run_apart(script)


def test_threads_begin_with_the_first_job_and_end_with_the_team():
    gc.collect()
    before = threads_of_teams()
    of = Team(3)
    written(of, 1, 8)
    assert threads_of_teams() == before
    written(of, 4, 8)
    assert threads_of_teams() == before + 3
    del of
    gc.collect()
    until = time.monotonic() + LIMIT
    while threads_of_teams() > before and time.monotonic() < until:
        time.sleep(0.001)
    assert threads_of_teams() == before


def test_no_more_threads_is_a_lack_of_memory(monkeypatch):
    start, started = threading.Thread.start, []

    def limited(thread):
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    of = Team(2)
    with pytest.raises(MemoryError, match="start new thread"):
        written(of, 3, 8)
    started[0].join(LIMIT)
    assert not started[0].is_alive(), "the one that started has ended"
    monkeypatch.undo()
    assert written(of, 3, 8) == by_thread(3, 8), "tried again"
