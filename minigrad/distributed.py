"""Several processes that train one model together, started by `mpirun`.

A batch is cut into shards (backend/cpu/threads.py), and each process computes a power of two of them. What is summed
over a batch is first added in each process, then over the processes, as the upper levels of the same binary tree. So
the weights are those of one process, bit for bit. The processes only exchange bytes: MPI and its libraries promise no
order of additions.

Each process has a loss that is the mean over its own images. The mean over the processes is that of the batch, and so
for gradients. Sums that all need at once, such as those of batch normalisation, are exchanged in the kernels
(`Pool.total`); the gradients of all parameters once more at the end of a step (`mean`), which changes nothing that is
equal already, and is right for any loss.

On GPUs each process has one of its own, and there are no shards: a process computes an equal part of the rows, and its
kernels exchange only what all need at once (`CudaBackend._of_all`). NCCL moves the arrays (backend/cuda/nccl.py), and
all additions are those of a tree, so the weights depend on the number of GPUs, but on nothing else.

A wait that does not end is the typical fault here. Therefore every wait has a limit, an error that not all processes
have ends all of them, and what only the first one can see (files) is told to the others (`first`).
"""

from __future__ import annotations

import atexit
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from .backend import Backend
from .backend.cpu.threads import allowed_cores, usable_cores
from .backend.cuda.driver import working_cupy
from .backend.cuda.nccl import Nccl
from .backend.errors import DeviceError
from .backend.sharing import added, strictly

LIMIT = 600.0  # seconds that a process waits for the others, unless MINIGRAD_WAIT says otherwise
GRACE = 3.0  # seconds in which an error must reach all processes, if it is one that all have
WHOLE_NUMBERS = 1 << 13  # arrays of more numbers are added in parts, each by one process
SPINS = 200  # tries before a waiting process leaves its core to others
LONGEST_TURN = 1.0  # seconds between two tries; after more this process itself was stopped, which is no waiting


class StalledError(RuntimeError):
    """A process gave no answer within the limit."""


class Group:
    """The processes that train one model; this class is a process alone.

    Attributes:
        rank: the number of this process; 0 writes and prints. size: how many there are. local_size: how many of them
            are on this machine.
    """

    rank, size, local_size = 0, 1, 1

    @contextmanager
    def sharing(self, k: Backend, images: int) -> Iterator[slice]:
        """Inside, k computes this process's rows of a batch of so many images, and sums over all of them. Gives the
        rows: all of them if they cannot be dealt out equally, as in the last batch of an epoch."""
        alone = self.size == 1 or images % self._parts(k) > 0
        count = images if alone else images // self.size
        with strictly(None if alone else self):
            yield slice(0, images) if alone else slice(self.rank * count, (self.rank + 1) * count)

    def _parts(self, k: Backend) -> int:
        """Into how many equal parts a batch must be cut to be shared."""
        return (k.shards or 1) if k.on_host else self.size

    @property
    def threads(self) -> int | None:
        """The threads for each process that use all cores; None: as many as a process alone has."""
        return None

    def device(self, name: str) -> str:
        """The device of this process; with several, `cuda` is another GPU for each process of a machine."""
        return name

    def gather(self, x: np.ndarray) -> np.ndarray:
        """(size, ...): x of every process."""
        return x[None]

    def mean(self, x: np.ndarray) -> np.ndarray:
        """The mean of x over the processes; the same bits in all of them."""
        return x

    def mean_(self, x: np.ndarray) -> None:
        """x becomes its mean over the processes."""

    def check(self, k: Backend, batch_size: int) -> None:
        """Raise DeviceError or ValueError unless these processes can share batches of this size with these kernels."""

    def wait_for(self, k: Backend) -> None:
        """Wait until the device has done its work, as long as for other messages: on a GPU, part of it is a message."""

    def most(self, *numbers: int) -> list[int]:
        """For each number the largest that a process has."""
        return list(numbers)

    def first(self, work: Callable[[], Any]) -> Any:
        """What `work` returns or raises in the first process, which alone does it."""
        return work()

    def same(self, what: str, arrays: dict[str, np.ndarray]) -> None:
        """Raise RuntimeError, which names the processes that differ from the first one, unless all have these arrays,
        bit for bit."""

    def first_before_others(self, work: Callable[[], Any]) -> Any:
        """What `work` returns here; the first process does it before the others: it may fill a cache for them."""
        done: list[Any] = []
        self.first(lambda: done.append(work()))
        return done[0] if done else work()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Inside, an error that other processes do not have makes this one `alone`."""
        yield

    alone = False  # whether this process has an error that the others do not have

    def part(self) -> None:
        """From here on the processes do not need each other: an error of one does not end the others."""

    def leave(self, code: int) -> None:
        """Wait until all processes end. If this one is `alone`, end all with the exit code."""


class MPIGroup(Group):
    """The processes of MPI's world."""

    def __init__(self, mpi: Any) -> None:
        world = mpi.COMM_WORLD
        self.mpi, self.rank, self.size = mpi, world.rank, world.size
        local = world.Split_type(mpi.COMM_TYPE_SHARED)
        self.local_rank, self.local_size = local.rank, local.size
        self.local_cores: list[set[int]] = local.allgather(allowed_cores())
        self.data, self.errors, self.calls, self.ends = (world.Dup() for _ in range(4))
        self.seconds, self._settled = 0.0, False  # of waiting, for benchmarks
        try:
            self.limit = float(os.environ.get("MINIGRAD_WAIT", LIMIT))
        except ValueError as error:
            found = os.environ["MINIGRAD_WAIT"]
            raise DeviceError(f"MINIGRAD_WAIT is {found!r} but must be a number of seconds, such as 600") from error
        self.nccl: Any = None  # what connects the GPUs
        self.gpus = np.zeros(0)  # which they are

    @property
    def threads(self) -> int | None:
        mine, usable = self.local_cores[self.local_rank], usable_cores()
        share = sum(1 / sum(core in cores for cores in self.local_cores) for core in mine)
        if usable < len(mine):  # a limit for all processes of the machine together
            share = min(share, usable / self.local_size)
        return max(1, int(share + 1e-6))

    # ---- GPUs ----

    def device(self, name: str) -> str:
        if name != "cuda":
            return name
        return f"cuda:{self.local_rank % working_cupy(0).cuda.runtime.getDeviceCount()}"

    def _connect(self, k: Backend) -> None:
        """Connect the GPUs of all processes, unless they are connected."""
        gpu = k.xp.cuda.runtime.deviceGetPCIBusId(k.xp.cuda.Device().id)
        name = sha256(f"{self.mpi.Get_processor_name()} {gpu}".encode()).digest()
        gpus = self.gather(np.frombuffer(name, np.uint8))
        if np.array_equal(gpus, self.gpus):
            return
        if (count := len(np.unique(gpus, axis=0))) < self.size:
            raise DeviceError(
                f"{self.size} processes use {count} GPU{'s' * (count > 1)}, but each needs one of its own: start fewer "
                "processes (mpirun -n), and let --device cuda choose the GPUs"
            )
        self.nccl, self.gpus = Nccl(k.xp, self.rank, self.size, self.first), gpus

    def wait_for(self, k: Backend) -> None:
        if not k.on_host:
            event = k.xp.cuda.Event(disable_timing=True)
            event.record()
            self._wait(lambda: event.done)

    # ---- exchange ----

    def gather(self, x: Any) -> Any:
        if not isinstance(x, np.ndarray | np.generic):
            return self.nccl.gather(x)
        x = np.ascontiguousarray(x)
        found = np.empty((self.size, *x.shape), x.dtype)
        self._wait(self.data.Iallgather(_bytes(x), _bytes(found)).Test)
        return found

    def mean(self, x: Any) -> Any:
        if x.size <= WHOLE_NUMBERS or not isinstance(x, np.ndarray):
            return added(self.gather(x)) / self.size
        part = -(-x.size // self.size)
        mine = np.zeros((self.size, part), x.dtype)
        mine.reshape(-1)[: x.size] = x.reshape(-1)
        parts = np.empty_like(mine)
        self._wait(self.data.Ialltoall(_bytes(mine), _bytes(parts)).Test)
        return (self.gather(added(parts)).reshape(-1)[: x.size] / self.size).reshape(x.shape)

    def mean_(self, x: np.ndarray) -> None:
        x[...] = self.mean(x)

    def check(self, k: Backend, batch_size: int) -> None:
        if k.kernels not in ("numba", "numpy", "cuda"):
            raise DeviceError(f"{self.size} processes need the kernels numba, numpy or cuda, found {k.describe()}")
        if k.on_host and (k.shards is None or k.shards % self.size):
            least = max(8, self.size)
            raise DeviceError(
                f"{self.size} processes need shards that they can deal out, found {k.shards}: --shards {least}, or "
                "fewer processes"
            )
        parts = self._parts(k)
        if batch_size % parts:
            least = max(1, batch_size // parts) * parts
            share = f"several processes deal out the {parts} shards of" if k.on_host else f"{parts} processes share"
            raise ValueError(
                f"batch size is {batch_size}, but {share} a batch, so it must be a multiple of {parts}, such as "
                f"{least} or {least + parts}"
            )
        if not k.on_host:
            self._connect(k)

    def most(self, *numbers: int) -> list[int]:
        return self.gather(np.array(numbers)).max(axis=0).tolist()

    def first(self, work: Callable[[], Any]) -> Any:
        result, error = None, None
        if self.rank == 0:
            try:
                result = work()
            except Exception as raised:
                error = raised
        data = np.frombuffer(self.mpi.pickle.dumps((result, error)), np.uint8) if self.rank == 0 else None
        size = np.array([0 if data is None else data.size])
        self._wait(self.data.Ibcast(size).Test)
        data = np.empty(size, np.uint8) if data is None else data
        self._wait(self.data.Ibcast(data).Test)
        if self.rank:
            result, error = self.mpi.pickle.loads(data)
        if error is not None:
            raise error
        return result

    def same(self, what: str, arrays: dict[str, np.ndarray]) -> None:
        digest = sha256()
        for name, x in sorted(arrays.items()):
            digest.update(name.encode() + np.ascontiguousarray(x).tobytes())
        found = self.gather(np.frombuffer(digest.digest(), np.uint8))
        if others := [rank for rank in range(self.size) if (found[rank] != found[0]).any()]:
            which = ", ".join(map(str, others))
            raise RuntimeError(
                f"{what} of process {which} differ from those of process 0; all processes need the same images, "
                "options, program and libraries, and memory that loses no bits"
            )

    def _wait(self, done: Callable[[], bool], limit: float | None = None) -> None:
        """Wait for the other processes; signals are handled meanwhile, and others on this core get their turn."""
        began = last = time.monotonic()
        waited, turns = 0.0, 0
        while not done():
            turns += 1
            if turns < SPINS:
                continue
            before, last = last, time.monotonic()
            waited += min(last - before, LONGEST_TURN)
            if waited > (self.limit if limit is None else limit):
                self._stalled(waited)
            if waited < 0.02 and hasattr(os, "sched_yield"):
                os.sched_yield()  # sleep(0) takes 0.07 ms on Linux, longer than most exchanges
            else:
                time.sleep(0.001)
        self.seconds += time.monotonic() - began

    def _stalled(self, waited: float) -> None:
        """Find out which processes do not wait, too, and raise StalledError in the first of those that do."""
        call = np.zeros(1)
        calls = [self.calls.Isend(call, other) for other in range(self.size)]  # kept until the end
        heard, until = set(), time.monotonic() + GRACE
        while time.monotonic() < until:
            status = self.mpi.Status()
            while self.calls.Iprobe(status=status):
                self.calls.Recv(np.zeros(1), status.source)
                heard.add(status.source)
            time.sleep(0.01)
        if min(heard) != self.rank:
            time.sleep(4 * GRACE)  # the first one tells it and ends all
        missing = ", ".join(str(rank) for rank in range(len(calls)) if rank not in heard)
        self._settled = self.alone = True
        if not missing:
            raise StalledError(f"all processes have waited for {waited:.0f} s, and none goes on")
        raise StalledError(f"no answer from process {missing} within {waited:.0f} s")

    # ---- errors and the end ----

    def part(self) -> None:
        self._settled = True

    @contextmanager
    def together(self) -> Iterator[None]:
        self._settled = False
        try:
            yield
        except BaseException:
            if not self._settled:
                request, until = self.errors.Ibarrier(), time.monotonic() + GRACE
                while not (shared := request.Test()) and time.monotonic() < until:
                    time.sleep(0.01)
                self._settled, self.alone = True, not shared
            raise

    def guard(self) -> None:
        """End all processes when this one ends with an error that they do not have, also in a program that does not
        call `leave`."""
        show = sys.excepthook

        def uncaught(*error: Any) -> None:
            show(*error)
            self.alone |= not self._settled

        sys.excepthook = uncaught
        atexit.register(self._end_all)

    def _end_all(self, code: int = 1) -> None:
        if self.alone:
            sys.stderr.flush()
            time.sleep(0.5)  # mpirun passes on what was printed
            self.mpi.COMM_WORLD.Abort(code or 1)

    def leave(self, code: int) -> None:
        self._end_all(code)
        self._wait(self.ends.Ibarrier().Test, math.inf)  # the first process may measure and draw for long


def _bytes(x: np.ndarray) -> np.ndarray:
    """The same memory as bytes: nothing else is exchanged."""
    return x.reshape(-1).view(np.uint8)


ALONE = Group()


def told(what: str = "SIZE") -> int:
    """The number of processes that were started together, as their launcher tells it; with RANK this one's number."""
    names = (f"PMI_{what}", f"OMPI_COMM_WORLD_{what}", f"PMIX_{what}")  # MPICH and Intel MPI, Open MPI, Slurm
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdecimal()), what == "SIZE")


@cache
def world(insist: bool = False) -> Group:
    """The processes that `mpirun` has started; a Group of one where it has started none.

    insist: whether one process alone is an error.

    Raises:
        DeviceError: mpi4py is missing, mpirun belongs to another MPI than mpi4py's, or the number of processes is no
            power of two.
    """
    started = told()
    if started == 1 and not insist:
        return ALONE
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise DeviceError(
            f'several processes need mpi4py and an MPI: pip install ".[mpi]" in the project\'s folder ({error})'
        ) from error
    size, library = MPI.COMM_WORLD.size, MPI.Get_library_version().split("\n")[0].strip()
    mpirun = Path(sys.executable).with_name("mpirun")
    if started > 1 and size != started:
        raise DeviceError(
            f"{started} processes were started, but each finds {size}: this mpirun does not belong to the library of "
            f"mpi4py ({library}); start them with its own{f', {mpirun}' if mpirun.exists() else ''}"
        )
    if size == 1 and insist:
        raise DeviceError("--distributed: this process is alone; start several with mpirun -n 4")
    if size & (size - 1):
        raise DeviceError(f"{size} processes were started, but their number must be a power of two: 2, 4, 8 ...")
    group = MPIGroup(MPI)
    group.guard()
    return group
