"""The memory that a process may still take, and whether the C library keeps what was freed."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any


def free_memory() -> int | None:
    """Bytes that this process may still allocate: what the system, the cgroup and the process's own limit leave, swap
    included; None where that is not known (systems without /proc).
    """
    try:
        meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = [1024 * (int(meminfo["MemAvailable"].split()[0]) + int(meminfo["SwapFree"].split()[0]))]
    except (OSError, ValueError, KeyError):
        return None
    try:
        cgroup = Path("/sys/fs/cgroup")
        most, used = ((cgroup / name).read_text().strip() for name in ("memory.max", "memory.current"))
        if most != "max":
            kept = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
            free.append(int(most) - int(used) + int(kept["file"]))  # files are dropped from memory before it is full
    except (OSError, ValueError, KeyError):
        pass  # no cgroup version 2 here
    try:
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            free.append(limit - size)
    except ImportError:
        pass  # Windows
    return max(0, min(free))


def free_memory_of_gpu(cupy: Any) -> int:
    """Bytes that new arrays may take on the current GPU."""
    pool, (free, _) = cupy.get_default_memory_pool(), cupy.cuda.runtime.memGetInfo()
    free += pool.free_bytes()
    limit = pool.get_limit()
    return min(free, limit - pool.used_bytes()) if limit else free


def keep_freed_memory() -> bool:
    """Tell the C library (glibc) to keep freed memory of this process instead of returning it to the system.

    Large arrays otherwise get fresh pages at every step, and each page costs a fault: about a tenth of the time of a
    training step. The process then holds its peak memory to its end. For programs, which own their process; nothing
    calls it in the library. MINIGRAD_KEEP_MEMORY=0 switches it off. Returns whether it was done.
    """
    if os.environ.get("MINIGRAD_KEEP_MEMORY", "1") == "0" or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries lack it
    if mallopt is None:
        return False
    mmap_threshold, trim_threshold = -3, -1  # malloc.h: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
    return bool(mallopt(mmap_threshold, 1 << 30) and mallopt(trim_threshold, (1 << 31) - 1))
