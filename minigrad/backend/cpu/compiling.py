"""How the loops of this folder are compiled by Numba, and where the result is kept."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba.misc.appdirs import AppDirs

STAMP = hashlib.sha256(
    b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))
    + f"{version('llvmlite')} {np.__version__}".encode()
).hexdigest()
"""A hash of all sources and versions that are compiled in. Numba checks only the file of a function, but it also
freezes constants from other files."""


def compiled(loop: Callable[..., Any], fastmath: Any = frozenset({"contract"})) -> Any:
    """The loop compiled for the arrays of its first call, without the interpreter lock and kept on disk.

    Numba's cache is a pickle, which can run code. So it is kept where nobody else can write: in NUMBA_CACHE_DIR, or
    else beside the source or in the user's cache; or not at all.
    """
    options: Any = {"nogil": True, "error_model": "numpy", "fastmath": set(fastmath)}
    config: Any = numba.config
    asked = config.CACHE_DIR
    for folder in (asked,) if asked else ("", AppDirs("minigrad", False).user_cache_dir):
        try:
            if folder:
                os.makedirs(folder, 0o700, exist_ok=True)
            config.CACHE_DIR = folder
            kept: Any = numba.njit(loop, cache=True, **options)
            kept._cache._cache_file._source_stamp = kept._cache._cache_file._source_stamp, STAMP
            if _private(Path(kept.stats.cache_path)):
                return kept
        except (RuntimeError, OSError, AttributeError):  # it cannot be written, or is that of an unknown version
            continue
        finally:
            config.CACHE_DIR = asked
    return numba.njit(loop, **options)


def _private(folder: Path) -> bool:
    """Whether only this user, or the system's, can have put files there."""
    for place in (folder.parent, folder) if hasattr(os, "getuid") else ():
        found = place.stat()
        if found.st_uid not in (0, os.getuid()):
            return False
        if not found.st_mode & 0o077:
            return True  # nobody else comes in
        if found.st_mode & 0o022:
            return False
    return True
