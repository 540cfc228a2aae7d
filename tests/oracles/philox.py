"""The generator that names its random numbers, written a second time."""

from __future__ import annotations

import hashlib

import numpy as np


def philox(text: str) -> np.random.Generator:
    """NumPy's Philox, its two key words taken from the first 16 bytes of BLAKE2b."""
    digest = hashlib.blake2b(text.encode("ascii"), digest_size=16).digest()
    low, high = (int.from_bytes(digest[i : i + 8], "little") for i in (0, 8))
    return np.random.Generator(np.random.Philox(key=np.array([low, high], dtype=np.uint64)))
