"""IDX files, the format of MNIST: unsigned bytes, plain or gzip."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import math
import os
import re
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, cast

import numpy as np

from minigrad.serialize import open_file

from .dataset import MAX_BYTES, as_data_error, fault, read_up_to
from .own_arrays import Array, Numbers


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an IDX file of unsigned bytes, plain or gzip.

    Layout, big-endian: two zero bytes, the type code 0x08, the number n of dimensions, n 4-byte sizes, the data.

    Shapes: 1 to 4 dimensions, each at least 1; uint8.
    Raises:
        DataError: for every fault. No more is decompressed than the header announces, plus one byte; a header that
            announces more than MAX_BYTES is refused.
    """
    with as_data_error(path), open_file(Path(path)) as (file, _):
        return read_hashed(path, file, MAX_BYTES)[0]


@contextlib.contextmanager
def _open_idx(where: object, file: IO[bytes], limit: int) -> Iterator[tuple[tuple[int, ...], bytes, IO[bytes]]]:
    """(shape, header, the data) of an IDX file of at most `limit` decompressed bytes; all data are to be read."""
    compressed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    stream = cast(IO[bytes], gzip.GzipFile(fileobj=file)) if compressed else file
    try:
        magic = stream.read(4)
        if len(magic) < 4:
            raise fault(where, "magic number", "4 bytes", f"{len(magic)} bytes")
        if magic[:2] != b"\0\0":
            raise fault(where, "magic number", "two zero bytes first", f"0x{magic.hex()}")
        if magic[2] != 0x08:
            raise fault(where, "type code", "0x08 (unsigned byte)", f"0x{magic[2]:02x}")
        dimensions = magic[3]
        if not 1 <= dimensions <= 4:
            raise fault(where, "number of dimensions", "1 to 4", dimensions)
        header = stream.read(4 * dimensions)
        if len(header) < 4 * dimensions:
            raise fault(where, "dimension sizes", f"{4 * dimensions} bytes", f"{len(header)} bytes")
        shape = tuple(int(size) for size in np.frombuffer(header, ">u4"))
        if 0 in shape:
            raise fault(where, "dimension sizes", "each at least 1", shape)
        total = 4 + len(header) + math.prod(shape)
        if total > limit:
            raise fault(where, f"size announced by dimensions {shape}", f"at most {limit} bytes", f"{total} bytes")
        yield shape, magic + header, stream
        if stream.read(1):
            raise fault(where, "after the data", "the end", "further bytes")
    except EOFError as error:
        raise fault(where, "gzip stream", "its end mark", "the end of the file (truncated)") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise fault(where, "gzip stream", "valid data", f"corrupt data ({error})") from error


def read_hashed(where: object, file: IO[bytes], limit: int) -> tuple[np.ndarray, str]:
    """The array of an IDX file of at most `limit` decompressed bytes, and the SHA-256 of those bytes."""
    with as_data_error(where), _open_idx(where, file, limit) as (shape, header, stream):
        data = read_up_to(stream, math.prod(shape))
        if len(data) < math.prod(shape):
            raise fault(where, "data", f"{math.prod(shape)} bytes for {shape}", f"{len(data)} bytes")
    digest = hashlib.sha256(header)
    digest.update(data)
    return np.frombuffer(data, np.uint8).reshape(shape), digest.hexdigest()


def idx_files(folder: Path) -> dict[str, Array]:
    """The IDX files in a folder by the last two words of their names, train-images for example."""
    found: dict[str, Array] = {}
    for path in sorted(folder.iterdir()):
        name = re.fullmatch(r"(?:[^.].*)?(train|t10k|test)-(images|labels)[-.]idx\d-ubyte(?:\.gz)?", path.name)
        if name and not path.is_dir():
            key = f"{name[1].replace('t10k', 'test')}-{name[2]}"
            if key in found and path != Path(f"{found[key].where}.gz"):
                raise fault(folder, "IDX files", f"one {key}", f"{found[key].where} and {path.name}")
            found.setdefault(key, Array(str(path), partial(_idx_numbers, path)))
    return found


@contextlib.contextmanager
def _idx_numbers(path: Path) -> Iterator[Numbers]:
    with as_data_error(path), open_file(path) as (file, _), _open_idx(path, file, MAX_BYTES) as (shape, _, stream):
        yield shape, False, np.dtype(np.uint8), stream
