"""IDX files: whole and damaged."""

import functools
import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from data_cases import FASHION, flipped, idx, memory_below, put, refuses, same, small_arrays

from autoencoders.data import DataError, collections, idx as idx_module, load_dataset, read_idx
from autoencoders.data.dataset import CHUNK, as_data_error

pytestmark = pytest.mark.usefixtures("world")


SMALL = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize("pack", [bytes, functools.partial(gzip.compress, compresslevel=1)], ids=["plain", "gzip"])
@pytest.mark.parametrize("shape", [(24,), (4, 6), (2, 3, 4), (2, 1, 3, 4), (2 * CHUNK + 1,)])
def test_read_idx(tmp_path: Path, pack, shape: tuple[int, ...]) -> None:
    wanted = np.random.Generator(np.random.PCG64(0)).integers(0, 256, shape, np.uint8)
    path = tmp_path / "file"
    path.write_bytes(pack(idx(wanted)))
    array = read_idx(path)
    assert array.dtype == np.uint8
    assert np.array_equal(array, wanted)
    array[...] = 0  # the caller owns it


GOOD = idx(SMALL)
FAULTS = {
    "short magic": (GOOD[:3], "magic number: expected 4 bytes, found 3 bytes"),
    "bad magic": (b"\x89PNG" + GOOD[4:], r"magic number: expected two zero bytes first, found 0x89504e47"),
    "float type": (GOOD[:2] + b"\x0d" + GOOD[3:], r"type code: expected 0x08 \(unsigned byte\), found 0x0d"),
    "five dimensions": (GOOD[:3] + b"\5" + bytes(99), "number of dimensions: expected 1 to 4, found 5"),
    "short sizes": (GOOD[:14], r"dimension sizes: expected 12 bytes, found 10 bytes"),
    "zero size": (GOOD[:4] + bytes(4) + GOOD[8:], r"dimension sizes: expected each at least 1, found \(0, 3, 4\)"),
    "huge": (
        GOOD[:4] + b"\xff" * 12,
        r"size announced by dimensions .*: expected at most 1073741824 bytes, found 79228",
    ),
    "truncated": (GOOD[:-1], r"data: expected 24 bytes for \(2, 3, 4\), found 23 bytes"),
    "trailing": (GOOD + b"\0", r"after the data: expected the end, found further bytes"),
}


PACKED = gzip.compress(GOOD, mtime=0)
FAULTS |= {f"{case} in gzip": (gzip.compress(content), said) for case, (content, said) in FAULTS.items()}
FAULTS |= {
    "checksum": (flipped(PACKED, len(PACKED) - 8), r"gzip stream: expected valid data, found corrupt data"),
    "method": (flipped(PACKED, 2), r"gzip stream: expected valid data, found corrupt data"),
    "cut in the data": (PACKED[:-12], r"gzip stream: expected its end mark, found the end of the file \(truncated\)"),
    "cut in the trailer": (PACKED[:-1], r"gzip stream: expected its end mark, found the end of the file \(truncated\)"),
    "second member": (PACKED + PACKED, r"after the data: expected the end, found further bytes"),
    "no second member": (PACKED + b"x", r"gzip stream: expected valid data, found corrupt data"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_read_idx_faults(tmp_path: Path, case: str) -> None:
    content, message = FAULTS[case]
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"^{path}: {message}"):
        read_idx(path)


def test_read_idx_stops_a_bomb(tmp_path: Path) -> None:
    header = struct.pack(">BBBBI", 0, 0, 8, 1, idx_module.MAX_BYTES - 8)  # announces 1 GiB, and holds little
    bomb = gzip.compress(GOOD + bytes(200_000_000), 1)  # announces 24 bytes
    for content in (bomb, header, header + bytes(1000), gzip.compress(header + bytes(1000))):
        (tmp_path / "x.gz").write_bytes(content)
        with memory_below(2_000_000 if content is bomb else 4_000_000), pytest.raises(DataError):
            read_idx(tmp_path / "x.gz")


def test_read_idx_cap_is_inclusive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(GOOD)
    monkeypatch.setattr(idx_module, "MAX_BYTES", len(GOOD))
    read_idx(path)
    monkeypatch.setattr(idx_module, "MAX_BYTES", len(GOOD) - 1)
    with pytest.raises(DataError, match=f"at most {len(GOOD) - 1} bytes, found {len(GOOD)} bytes"):
        read_idx(path)


def test_read_idx_of_what_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, told in (
        ("", "kind: expected a file, found a folder"),
        ("pipe", "kind: expected a file, found a special file"),
        *((name, name[:3]) for name in ("nothing", "loop", "x" * 300, "nul\0")),
    ):
        with pytest.raises(DataError, match=told):
            read_idx(tmp_path / name)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "secret").write_bytes(GOOD)
    monkeypatch.setattr(os, "open", refuse)  # root may open everything, so the refusal is played
    with pytest.raises(DataError, match=f"{tmp_path / 'secret'}: cannot be read: Permission denied"):
        read_idx(tmp_path / "secret")


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("prefix", ["", "emnist-letters-"])
def test_own_idx_files(tmp_path: Path, suffix: str, prefix: str) -> None:
    own = small_arrays(3)
    folder = put(tmp_path / "own", own, suffix)
    for path in list(folder.iterdir()):
        path.rename(folder / f"{prefix}{path.name}")
    dataset = load_dataset(folder)
    assert same(dataset, own)
    assert dataset.class_names == ()
    assert dataset.ordered
    assert dataset.source.startswith(f"20 training and 10 test images from {folder}; own IDX files, not compared")
    assert dataset.name == str(folder)
    (folder / f"._x-{collections.TRAIN_IMAGES}").write_text("hidden")
    (folder / f"y-{collections.TRAIN_IMAGES}").mkdir()  # Kaggle's copies are in folders of their names
    if suffix:  # a copy of each that is unpacked
        for path in list(folder.glob("[!.]*.gz")):
            path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        assert same(load_dataset(folder), own)
    for path in folder.glob("*labels*"):
        path.unlink()
    assert load_dataset(folder).train_labels is None
    with pytest.raises(DataError, match=r"SHA-256|no valid"):  # the published names keep their check
        load_dataset("mnist", folder, download=False)


def test_idx_files_that_are_not_a_set(tmp_path: Path) -> None:
    folder = put(tmp_path / "own", FASHION, "")
    (folder / collections.TEST_IMAGES).rename(tmp_path / "test")
    dataset = load_dataset(folder)
    assert (len(dataset.train_images), len(dataset.test_images)) == (18, 2)
    (tmp_path / "test").rename(folder / "x-train-images-idx3-ubyte")
    refuses(folder, "IDX files: expected one train-images, found .* and x-train-images-idx3-ubyte")
    (folder / "x-train-images-idx3-ubyte").unlink()
    path = folder / collections.TRAIN_IMAGES
    path.write_bytes(path.read_bytes() + b"\0")
    refuses(folder, f"^{path}: after the data")
    path.write_bytes(idx(FASHION[collections.TRAIN_LABELS]))
    refuses(folder, r"shape: expected \(N, H, W\) .* found \(20,\)")


@pytest.mark.parametrize(("error", "said"), [(ValueError("odd"), "odd"), (EOFError(), "EOFError")])
def test_what_a_decoder_raises_is_named_even_if_it_has_no_text(error: Exception, said: str) -> None:
    with pytest.raises(DataError, match=f"^x: cannot be read: {said}$"), as_data_error("x"):
        raise error
