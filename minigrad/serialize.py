"""State files: named arrays and a JSON record in one safetensors file, checked to the last bit, written atomically.

Nothing in such a file can run code. The record and a SHA-256 over the record and every array's name, dtype,
shape and bytes stand in the file's metadata, so that a changed bit anywhere is seen.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1
MOST_TEXT = 1 << 25  # bytes of JSON in a file: the history of 70,000 epochs
OTHER_DTYPES = ("BF16", "F8", "F6_", "F4", "C")  # of safetensors, which NumPy or a model does not have
MOST_LISTS = 1 << 18  # lists and objects in it: two bytes of text become a hundred bytes of memory


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
    arrays = _as_stored(arrays)
    digest = _digest(text, arrays)
    write_safetensors(path, arrays, {"record": text, "sha256": digest})
    return digest


def _as_stored(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Contiguous and little-endian, because the file holds them as they lie in memory; 0-d stays 0-d."""
    return {name: np.asarray(x, np.asarray(x).dtype.newbyteorder("<"), order="C") for name, x in arrays.items()}


def write_safetensors(path: str | Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write arrays and texts as a safetensors file, atomically.

    Raises:
        DataError: the file cannot be written. ValueError: an array does not hold real numbers.
    """
    write_atomically(Path(path), safetensors_content(arrays, metadata))


def safetensors_content(arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> bytes:
    """The content of a safetensors file with these arrays and texts.

    Raises:
        ValueError: an array does not hold real numbers.
    """
    arrays = _as_stored(arrays)
    # Written here: where memory is short, the library would end the process. Sorted, the same state is the same bytes,
    # and the widest numbers first, each begins at a multiple of its size.
    header: dict[str, Any] = {"__metadata__": metadata}
    names, end = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name)), 0
    for name in names:
        x = arrays[name]
        if x.dtype.kind not in "fiub":
            raise ValueError(f"save_state: {name}: expected real numbers, found {x.dtype}")
        kind = "BOOL" if x.dtype == bool else f"{x.dtype.kind.upper()}{8 * x.itemsize}"
        header[name] = {"dtype": kind, "shape": x.shape, "data_offsets": (end, end + x.nbytes)}
        end += x.nbytes
    start = json.dumps(header).encode()
    start += b" " * (-len(start) % 8)
    return b"".join([len(start).to_bytes(8, "little"), start, *(arrays[n].data for n in names)])


def require_file(path: Path, root: Path | None = None, most: int | None = None) -> str:
    """The real path of a regular file. Everything else is refused before it is opened: reading a pipe may wait forever,
    and a device has no end.

    Args:
        root: a folder that may come from a stranger: no link in it may lead out of it.
        most: the largest number of bytes that the file may have.
    Raises:
        DataError: the file is missing, not a regular file, outside root, or too large.
    """
    try:
        real = os.path.realpath(path)
        if root is not None and not Path(real).is_relative_to(os.path.realpath(root)):
            raise DataError(f"{path}: is a link that leads out of {root}; put the file itself there")
        found = os.lstat(real)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not stat.S_ISREG(found.st_mode):
        kind = "folder" if stat.S_ISDIR(found.st_mode) else "special file"
        raise DataError(f"{path}: kind: expected a file, found a {kind}")
    if most is not None and found.st_size > most:
        raise DataError(f"{path}: size: expected at most {most:,} bytes, found {found.st_size:,}")
    return real


@contextmanager
def open_file(path: Path, root: Path | None = None, most: int | None = None) -> Iterator[tuple[BufferedReader, int]]:
    """(an open regular file, its bytes); the arguments are those of `require_file`.

    Raises:
        DataError: as `require_file`, or reading fails.
    """
    real = require_file(path, root, most)
    safe = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # whatever has taken its place since
    try:
        with open(real, "rb", opener=lambda name, flags: os.open(name, flags | safe)) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise DataError(f"{path}: kind: expected a file, found a special file")
            yield file, found.st_size if most is None else min(found.st_size, most)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_file(path: Path, root: Path | None = None, most: int | None = MOST_TEXT) -> bytes:
    """The content of a regular file; arguments and errors are those of `open_file`."""
    with open_file(path, root, most) as (file, size):
        return file.read(size)


def parse_json(text: bytes | str) -> Any:
    """What a JSON text holds. One that would take much time or memory is refused.

    Raises:
        ValueError: it is no JSON, or has too many or too deep lists. RecursionError: too deep ones, in some versions.
    """
    text = text.decode() if isinstance(text, bytes) else text  # json would guess the encoding
    if len(text) > MOST_TEXT or text.count("[") + text.count("{") > MOST_LISTS:
        raise ValueError(f"expected at most {MOST_TEXT:,} bytes and {MOST_LISTS:,} lists or objects, found more")
    return json.loads(text)


def numbered(folder: Path, pattern: str) -> list[Path]:
    """The paths in a folder that have digits for the pattern's only `*`, and nothing else, ordered by their number."""
    name = Path(pattern).name
    prefix, suffix = name.split("*")
    found = {path: path.name[len(prefix) : len(path.name) - len(suffix)] for path in folder.glob(pattern)}
    numbers = {path: int(text) for path, text in found.items() if text.isascii() and text.isdigit()}
    return sorted(numbers, key=lambda path: (numbers[path], path))


def load_state(path: str | Path, root: Path | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any], str]:
    """(arrays, record, SHA-256) from a file of `save_state`.

    root: a folder that may come from a stranger: no link in it may lead out of it.

    Raises:
        DataError: the file is missing, truncated, altered, or not of this kind. MemoryError: it takes twice its size.
    """
    path = Path(path)
    try:
        arrays, metadata = _load(path, root)
        text, stored = metadata["record"], metadata["sha256"]
        record = parse_json(text)
        json.dumps(record, allow_nan=False)  # which `save_state` would refuse
        if not isinstance(record, dict):
            raise TypeError(f"its record is a {type(record).__name__}, not an object")
        found = _digest(text, arrays)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # of the header, the library or the record
        raise DataError(f"{path}: not a minigrad state file, or damaged ({type(error).__name__}: {error})") from error
    if found != stored:
        raise DataError(f"{path}: damaged: its content has SHA-256 {found} but it records {stored}")
    if record.get("format") != FORMAT:
        raise DataError(f"{path}: format {record.get('format')} but this version reads format {FORMAT}")
    return arrays, record, found


def is_state_file(path: Path, root: Path | None = None) -> bool:
    """Whether a safetensors file is one of `save_state`, even if damaged, and not of another program.

    root: as for `load_state`.

    Raises:
        DataError: the file cannot be opened.
    """
    with open_file(path, root) as (file, _):
        try:
            return "record" in _header(file)[1]["__metadata__"]
        except Exception as error:  # damaged ones are told by those who read them
            return not isinstance(error, KeyError | TypeError)


def read_safetensors(path: Path, root: Path | None = None) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(arrays, metadata) of any safetensors file, such as one that PyTorch users have saved. root: as for `load_state`.

    Raises:
        DataError: the file is missing or damaged. MemoryError: it takes twice its size.
    """
    try:
        return _load(path, root)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # of the header or the library
        raise DataError(f"{path}: not a safetensors file, or damaged ({type(error).__name__}: {error})") from error


def _header(file: BufferedReader) -> tuple[int, dict[str, Any]]:
    """(its length in bytes, the header of a safetensors file)."""
    length = int.from_bytes(file.read(8), "little")
    return length, parse_json(file.read(min(length, MOST_TEXT + 1)))


def _load(path: Path, root: Path | None) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and the metadata; damaged files raise many types of errors."""
    from safetensors.numpy import load

    size = 0
    try:
        with open_file(path, root) as (file, size):
            length, header = _header(file)
            for name, entry in header.items():
                if name != "__metadata__" and entry["dtype"].startswith(OTHER_DTYPES):
                    raise DataError(f"{path}: {name} is {entry['dtype']}, which is not read; save it as float32")
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            end = 8 + length + max(ends, default=0)
            if end != size:  # told before memory is taken for it
                raise ValueError(f"its arrays end at byte {end}, the file at {size}")
            file.seek(0)
            content = file.read(size)
        bytearray(len(content) + 2**24)  # what the library takes next; without it, it would panic
        return load(content), header.get("__metadata__") or {}
    except MemoryError as error:
        raise MemoryError(f"{path} takes twice its {size:,} bytes while it is read") from error
