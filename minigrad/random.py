"""Random numbers as a function of a seed and a name, so that any of them can be drawn again at any time.

There is no global generator: `generator(7, "shuffle", 3)` gives the same numbers in every process, on every
device, whatever was drawn before. An interrupted training can therefore draw the same numbers again.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np


def generator(seed: int, *key: str | int) -> np.random.Generator:
    """A NumPy generator for this seed and key.

    The counter-based generator Philox is started with the first 128 bits of BLAKE2b of the JSON text of
    [seed, *key] (never Python's hash(), which changes from process to process).

    Args:
        seed: any int >= 0, also of NumPy. key: words and numbers that name the use, e.g. ("shuffle", epoch).
    Raises:
        ValueError: the seed is negative. TypeError: seed or key hold something else.
    """
    parts = [part.item() if isinstance(part, np.generic) else part for part in (seed, *key)]
    if any(isinstance(part, bool) or not isinstance(part, int | str) for part in parts) or isinstance(seed, str):
        raise TypeError(f"generator: seed must be an int and keys ints or strings, found {parts}")
    if int(parts[0]) < 0:
        raise ValueError(f"generator: seed is {seed} but must not be negative")
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
