"""State files: named arrays and a JSON record in one safetensors file, checked to the last bit, written atomically.

Nothing in such a file can run code. The record and a SHA-256 over the record and every array's name, dtype,
shape and bytes stand in the file's metadata, so that a changed bit anywhere is seen.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1


class DataError(ValueError):
    """A file or array cannot be used; the message says which, what was expected and what was found."""


def _digest(record: str, arrays: dict[str, np.ndarray]) -> str:
    sha = hashlib.sha256(record.encode())
    for name in sorted(arrays):
        x = arrays[name]
        sha.update(json.dumps([name, x.dtype.str, x.shape]).encode())
        sha.update(np.ascontiguousarray(x).data)
    return sha.hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Replace path by content so that it holds the old or the new bytes whole, even after a power cut.

    Raises:
        DataError: the file cannot be written; what was there is unharmed and no temporary file is left.
    """
    # a name that is known before the file is made: a signal can come right after
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(temporary, flags, 0o666), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        if os.name == "posix":
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # the new name itself
            finally:
                os.close(folder)
    except OSError as error:
        why = f"{path.parent} is no folder" if isinstance(error, FileExistsError) else error.strerror or error
        raise DataError(f"{path}: cannot be written: {why}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()  # where it has not become the file


def save_state(path: str | Path, arrays: dict[str, np.ndarray], record: dict[str, Any]) -> str:
    """Write arrays and record to path, atomically; returns the SHA-256 that identifies the content.

    Raises:
        DataError: the file cannot be written. ValueError: the record is not JSON (NaN included), or an
            array does not hold real numbers.
    """
    text = json.dumps({"format": FORMAT, **record}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    # the file holds arrays as they lie in memory, so they must be contiguous and little-endian; 0-d stays 0-d
    arrays = {name: np.array(x, np.asarray(x).dtype.newbyteorder("<"), order="C") for name, x in arrays.items()}
    digest = _digest(text, arrays)
    # Written here: where memory is short, the library would end the process. Sorted, the same state is the same bytes,
    # and the widest numbers first, each begins at a multiple of its size.
    header: dict[str, Any] = {"__metadata__": {"record": text, "sha256": digest}}
    names, end = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name)), 0
    for name in names:
        x = arrays[name]
        if x.dtype.kind not in "fiub":
            raise ValueError(f"save_state: {name} is {x.dtype} but expected are real numbers")
        kind = "BOOL" if x.dtype == bool else f"{x.dtype.kind.upper()}{8 * x.itemsize}"
        header[name] = {"dtype": kind, "shape": x.shape, "data_offsets": (end, end + x.nbytes)}
        end += x.nbytes
    start = json.dumps(header).encode()
    start += b" " * (-len(start) % 8)
    write_atomically(Path(path), b"".join([len(start).to_bytes(8, "little"), start, *(arrays[n].data for n in names)]))
    return digest


def require_file(path: Path) -> None:
    """Raise DataError where something else lies than a file: a pipe can be waited for in vain, a device has no end."""
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: kind: expected a file, found a {'folder' if path.is_dir() else 'special file'}")


def load_state(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any], str]:
    """(arrays, record, SHA-256) from a file of `save_state`.

    Raises:
        DataError: the file is missing, truncated, altered, or not of this kind. MemoryError: it takes twice its size.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    path = Path(path)
    try:
        require_file(path)
        content = path.read_bytes()
        bytearray(len(content) + 2**24)  # what the library takes next; without it, it would panic
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except MemoryError as error:
        raise MemoryError(f"{path} takes twice its {path.stat().st_size:,} bytes while it is read") from error
    try:
        size = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + size].decode())["__metadata__"]
        text, stored = metadata["record"], metadata["sha256"]
        arrays = load(content)
        record = json.loads(text)
        json.dumps(record, allow_nan=False)  # which `save_state` would refuse
        if not isinstance(record, dict):
            raise TypeError(f"its record is a {type(record).__name__}, not an object")
        found = _digest(text, arrays)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise DataError(f"{path}: not a minigrad state file, or damaged ({type(error).__name__}: {error})") from error
    if found != stored:
        raise DataError(f"{path}: damaged: its content has SHA-256 {found} but it records {stored}")
    if record.get("format") != FORMAT:
        raise DataError(f"{path}: format {record.get('format')} but this version reads format {FORMAT}")
    return arrays, record, found
