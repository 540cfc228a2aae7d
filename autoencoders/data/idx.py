"""IDX files, the format of MNIST: unsigned bytes, plain or gzip."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np

from minigrad.serialize import require_file

from .dataset import CHUNK, MAX_BYTES, as_data_error, fault
from .own_arrays import Array, Numbers

# ------------------------------------------------------------------------------------------------------ IDX files


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an IDX file of unsigned bytes, plain or gzip.

    Layout, big-endian: two zero bytes, the type code 0x08, the number n of dimensions, n 4-byte sizes, the data.

    Shapes: 1 to 4 dimensions, each at least 1; uint8.
    Raises:
        DataError: for every fault. No more is decompressed than the header announces, plus one byte; a header that
            announces more than MAX_BYTES is refused.
    """
    return read_hashed(Path(path), MAX_BYTES)[0]


@contextlib.contextmanager
def _open_idx(path: Path, limit: int) -> Iterator[tuple[tuple[int, ...], bytes, _Stream]]:
    """(shape, header, the data) of an IDX file of at most `limit` decompressed bytes; all data are to be read."""
    with as_data_error(path):
        require_file(path)
        with path.open("rb") as file:
            stream = _Stream(file, path)
            magic = stream.read(4)
            if len(magic) < 4:
                raise fault(path, "magic number", "4 bytes", f"{len(magic)} bytes")
            if magic[:2] != b"\0\0":
                raise fault(path, "magic number", "two zero bytes first", f"0x{magic.hex()}")
            if magic[2] != 0x08:
                raise fault(path, "type code", "0x08 (unsigned byte)", f"0x{magic[2]:02x}")
            dimensions = magic[3]
            if not 1 <= dimensions <= 4:
                raise fault(path, "number of dimensions", "1 to 4", dimensions)
            header = stream.read(4 * dimensions)
            if len(header) < 4 * dimensions:
                raise fault(path, "dimension sizes", f"{4 * dimensions} bytes", f"{len(header)} bytes")
            shape = tuple(int(size) for size in np.frombuffer(header, ">u4"))
            if 0 in shape:
                raise fault(path, "dimension sizes", "each at least 1", shape)
            total = 4 + len(header) + math.prod(shape)
            if total > limit:
                raise fault(path, f"size announced by dimensions {shape}", f"at most {limit} bytes", f"{total} bytes")
            yield shape, bytes(magic + header), stream
            stream.expect_end()


def read_hashed(path: Path, limit: int) -> tuple[np.ndarray, str]:
    """The array of an IDX file of at most `limit` decompressed bytes, and the SHA-256 of those bytes."""
    with _open_idx(path, limit) as (shape, header, stream):
        data = stream.read(math.prod(shape))
        if len(data) < math.prod(shape):
            raise fault(path, "data", f"{math.prod(shape)} bytes for {shape}", f"{len(data)} bytes")
    digest = hashlib.sha256(header)
    digest.update(data)
    return np.frombuffer(data, np.uint8).reshape(shape), digest.hexdigest()


class _Stream:
    """The content of a file, decompressed if it is gzip, no further than is asked for.

    Python's gzip module reads several members as one and skips padding; here one member is the whole file.
    """

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self.file, self.path = file, path
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        self.inflate = zlib.decompressobj(31) if compressed else None  # 31: a gzip wrapper, its checksum verified

    def read(self, count: int) -> bytearray:
        """`count` bytes, or fewer at the end."""
        out = bytearray()  # grows with what is really there, whatever a header announces
        while len(out) < count:
            want = min(CHUNK, count - len(out))
            if self.inflate is None:
                piece = self.file.read(want)
                if not piece:
                    break
            elif self.inflate.eof:
                break
            else:
                source = self.inflate.unconsumed_tail or self.file.read(1 << 16)
                try:
                    piece = self.inflate.decompress(source, want)
                except zlib.error as error:
                    raise fault(self.path, "gzip stream", "valid data", f"corrupt data ({error})") from error
                if not source and not piece and not self.inflate.eof:
                    raise fault(self.path, "gzip stream", "its end mark", "the end of the file (truncated)")
            out += piece
        return out

    def expect_end(self) -> None:
        if self.read(1):
            raise fault(self.path, "after the data", "the end", "further bytes")
        if self.inflate is not None and (self.inflate.unused_data or self.file.read(1)):
            raise fault(self.path, "after the gzip stream", "the end of the file", "further bytes")


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
    with _open_idx(path, MAX_BYTES) as (shape, _, stream):
        yield shape, False, np.dtype(np.uint8), stream
