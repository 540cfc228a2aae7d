"""Tests of autoencoders/data.py, dataset.py and own_images.py.

`python tests/test_data.py` writes the embedded sample anew from the full set.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import http.server
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from autoencoders.data import collections, download, search
from autoencoders.data import idx as idx_module

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from autoencoders.data import DataError, Dataset, load_dataset, own_arrays, own_images, read_idx
from autoencoders.data.dataset import class_labels, value_fault
from minigrad.random import generator

SAMPLE_TRAIN, SAMPLE_TEST = 400, 100  # images of each class
CLASSES = 10


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def first_of_each_class(images: np.ndarray, labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` images of every class, in the order of the file."""
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == label)[:count] for label in range(CLASSES)]))
    return images[chosen], labels[chosen]


def sample_of(full: Dataset) -> dict[str, np.ndarray]:
    train = first_of_each_class(full.train_images[..., 0], full.train_labels, SAMPLE_TRAIN)
    test = first_of_each_class(full.test_images[..., 0], full.test_labels, SAMPLE_TEST)
    return dict(zip(collections.SIZES, (*train, *test), strict=True))


def make_sample() -> None:
    for file, array in sample_of(load_dataset("fashion-mnist")).items():
        (search.SAMPLE_FOLDER / f"{file}.gz").write_bytes(gzip.compress(idx(array), 9, mtime=0))


# ------------------------------------------------------------------------------------------ a small set, its hashes


def small_arrays(seed: int) -> dict[str, np.ndarray]:
    draw = np.random.Generator(np.random.PCG64(seed))
    shapes = ((20, 4, 4), (20,), (10, 4, 4), (10,))
    return {file: draw.integers(0, 10, shape, np.uint8) for file, shape in zip(collections.SIZES, shapes, strict=True)}


def digests(arrays: dict[str, np.ndarray]) -> dict[str, str]:
    return {file: hashlib.sha256(idx(array)).hexdigest() for file, array in arrays.items()}


def put(folder: Path, arrays: dict[str, np.ndarray], suffix: str = ".gz") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file, array in arrays.items():
        (folder / f"{file}{suffix}").write_bytes(gzip.compress(idx(array)) if suffix else idx(array))
    return folder


FASHION, DIGITS = small_arrays(1), small_arrays(2)


@pytest.fixture(autouse=True)
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """No real cache, no system folder, no network, no apt; two small collections in the place of the real ones."""
    if "real_set" in request.fixturenames:
        return tmp_path
    monkeypatch.setenv("MINIGRAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MINIGRAD_DATA", raising=False)
    monkeypatch.setattr(search, "SYSTEM_FOLDER", tmp_path / "system")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    for name, arrays in (("fashion-mnist", FASHION), ("mnist", DIGITS)):
        small = dataclasses.replace(collections.COLLECTIONS[name], sha256=digests(arrays), mirrors=())
        monkeypatch.setitem(collections.COLLECTIONS, name, small)
    return tmp_path


def same(dataset: Dataset, arrays: dict[str, np.ndarray]) -> bool:
    mine = (dataset.train_images[..., 0], dataset.train_labels, dataset.test_images[..., 0], dataset.test_labels)
    return all(np.array_equal(one, other) for one, other in zip(mine, arrays.values(), strict=True))


def leftovers(folder: Path) -> list[str]:
    """Files under `folder` that are not one of the four by name."""
    good = {f"{file}{suffix}" for file in collections.SIZES for suffix in ("", ".gz")}
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.name not in good)


# ------------------------------------------------------------------------------------------------------- the reader

SMALL = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("shape", [(24,), (4, 6), (2, 3, 4), (2, 1, 3, 4)])
def test_read_idx(tmp_path: Path, pack, shape: tuple[int, ...]) -> None:
    path = tmp_path / "file"
    path.write_bytes(pack(idx(SMALL.reshape(shape))))
    array = read_idx(path)
    assert array.dtype == np.uint8
    assert np.array_equal(array, SMALL.reshape(shape))
    array[...] = 0  # the caller owns it


@pytest.mark.parametrize("pack", [bytes, functools.partial(gzip.compress, compresslevel=1)], ids=["plain", "gzip"])
def test_read_idx_of_several_pieces(tmp_path: Path, pack) -> None:
    array = np.random.Generator(np.random.PCG64(0)).integers(0, 256, 2 * idx_module.CHUNK + 1, np.uint8)
    path = tmp_path / "file"
    path.write_bytes(pack(idx(array)))
    assert np.array_equal(read_idx(path), array)


GOOD = idx(SMALL)
FAULTS = {
    "empty": (b"", r"magic number: expected 4 bytes, found 0 bytes"),
    "short magic": (GOOD[:3], r"magic number: expected 4 bytes, found 3 bytes"),
    "bad magic": (b"\x89PNG" + GOOD[4:], r"magic number: expected two zero bytes first, found 0x89504e47"),
    "float type": (GOOD[:2] + b"\x0d" + GOOD[3:], r"type code: expected 0x08 \(unsigned byte\), found 0x0d"),
    "no dimensions": (GOOD[:3] + b"\0" + GOOD[4:], r"number of dimensions: expected 1 to 4, found 0"),
    "five dimensions": (GOOD[:3] + b"\5" + bytes(99), r"number of dimensions: expected 1 to 4, found 5"),
    "short sizes": (GOOD[:14], r"dimension sizes: expected 12 bytes, found 10 bytes"),
    "zero size": (GOOD[:4] + bytes(4) + GOOD[8:], r"dimension sizes: expected each at least 1, found \(0, 3, 4\)"),
    "huge": (
        GOOD[:4] + b"\xff" * 12,
        r"size announced by dimensions .*: expected at most 1073741824 bytes, found 79228",
    ),
    "truncated": (GOOD[:-1], r"data: expected 24 bytes for \(2, 3, 4\), found 23 bytes"),
    "trailing": (GOOD + b"\0", r"after the data: expected the end, found further bytes"),
}


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("case", FAULTS)
def test_read_idx_faults(tmp_path: Path, pack, case: str) -> None:
    content, message = FAULTS[case]
    path = tmp_path / "file"
    path.write_bytes(pack(content))
    with pytest.raises(DataError, match=f"^{path}: {message}"):
        read_idx(path)


def packed_to(length: int) -> bytes:
    """GOOD as gzip of just that length, with a long file name in the header."""
    buffer = io.BytesIO()
    with gzip.GzipFile("x" * (length - len(gzip.compress(GOOD)) - 1), "wb", fileobj=buffer) as file:
        file.write(GOOD)
    assert len(buffer.getvalue()) == length
    return buffer.getvalue()


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


PACKED = gzip.compress(GOOD, mtime=0)
GZIP_FAULTS = {
    "checksum": (flipped(PACKED, len(PACKED) - 8), r"gzip stream: expected valid data, found corrupt data"),
    "length": (flipped(PACKED, len(PACKED) - 1), r"gzip stream: expected valid data, found corrupt data"),
    "method": (flipped(PACKED, 2), r"gzip stream: expected valid data, found corrupt data"),
    "cut in the data": (PACKED[:-12], r"gzip stream: expected its end mark, found the end of the file \(truncated\)"),
    "cut in the trailer": (PACKED[:-1], r"gzip stream: expected its end mark, found the end of the file \(truncated\)"),
    "cut in the header": (PACKED[:5], r"gzip stream: expected its end mark, found the end of the file \(truncated\)"),
    "second member": (PACKED + PACKED, r"after the gzip stream: expected the end of the file, found further bytes"),
    "empty second member": (PACKED + gzip.compress(b""), r"after the gzip stream: expected the end of the file"),
    "data in two members": (gzip.compress(GOOD[:20]) + gzip.compress(GOOD[20:]), r"data: expected 24 bytes .* found 4"),
    "a byte after the buffer": (packed_to(1 << 16) + b"\0", r"after the gzip stream: expected the end of the file"),
    "padding": (PACKED + bytes(100_000), r"after the gzip stream: expected the end of the file"),
}


@pytest.mark.parametrize("case", GZIP_FAULTS)
def test_read_idx_gzip_faults(tmp_path: Path, case: str) -> None:
    content, message = GZIP_FAULTS[case]
    path = tmp_path / "file.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"^{path}: {message}"):
        read_idx(path)


def test_every_flipped_bit_and_cut_of_a_gzip_file_is_an_error_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "file.gz"
    harmless, named = [], True
    for position in range(len(PACKED)):
        for content in (flipped(PACKED, position), PACKED[:position]):
            path.write_bytes(content)
            try:
                assert np.array_equal(read_idx(path), SMALL)
                harmless.append((position, len(content)))
            except DataError as error:
                named = named and str(path) in str(error)
    assert named
    # The text flag, the time stamp, the extra flags and the operating system in the gzip header; no cut at all.
    assert harmless == [(position, len(PACKED)) for position in range(3, 10)]


def peak_memory(path: Path) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(DataError):
            read_idx(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_read_idx_stops_a_bomb(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(GOOD + bytes(200_000_000), 1))  # announces 24 bytes
    assert peak_memory(path) < 2_000_000
    header = struct.pack(">BBBBI", 0, 0, 8, 1, idx_module.MAX_BYTES - 8)
    for content in (header, header + bytes(1000), gzip.compress(header + bytes(1000))):
        path.write_bytes(content)  # announces 1 GiB, holds little
        assert peak_memory(path) < 4_000_000


def test_read_idx_cap_is_inclusive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(GOOD)
    monkeypatch.setattr(idx_module, "MAX_BYTES", len(GOOD))
    read_idx(path)
    monkeypatch.setattr(idx_module, "MAX_BYTES", len(GOOD) - 1)
    with pytest.raises(DataError, match=f"at most {len(GOOD) - 1} bytes, found {len(GOOD)} bytes"):
        read_idx(path)


def test_read_idx_of_what_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=f"{tmp_path}: kind: expected a file, found a folder"):
        read_idx(tmp_path)
    with pytest.raises(DataError, match=r"nothing: .*No such file"):
        read_idx(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=r"pipe: kind: expected a file, found a special file"):
        read_idx(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for bad in ("loop", "x" * 300, "nul\0"):
        with pytest.raises(DataError):
            read_idx(tmp_path / bad)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "secret").write_bytes(GOOD)
    monkeypatch.setattr(Path, "open", refuse)  # root may open everything, so the refusal is played
    with pytest.raises(DataError, match=f"{tmp_path / 'secret'}: Permission denied"):
        read_idx(tmp_path / "secret")


# ------------------------------------------------------------------------------------------------ the search order


def test_first_folder_that_holds_the_set_is_taken(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in ("", ".gz"):
        explicit = put(world / f"explicit{suffix}", FASHION, suffix)
        dataset = load_dataset("fashion-mnist", explicit, download=False)
        assert same(dataset, FASHION)
        assert dataset.source == f"Fashion-MNIST from {explicit}"
        assert dataset.train_images.shape == (20, 4, 4, 1)
        assert dataset.class_names[9] == "Ankle boot"
    monkeypatch.setenv("MINIGRAD_DATA", str(world / "environment"))
    for place in ("system", "cache/fashion-mnist", "environment/fashion-mnist", "environment"):
        put(world / place, FASHION)
        chosen = world / ("environment/fashion-mnist" if place == "environment" else place)
        for name in ("fashion-mnist", "auto"):
            dataset = load_dataset(name, download=False)
            assert dataset.source.startswith(f"Fashion-MNIST from {chosen}")
            assert dataset.name == "fashion-mnist"
        if not place.startswith("environment"):
            assert f"MINIGRAD_DATA={world / 'environment'} lacks train-images" in dataset.source


def test_wrong_files_elsewhere_are_skipped_and_said(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIGRAD_DATA", str(put(world / "environment", DIGITS)))
    put(world / "cache" / "fashion-mnist", FASHION | {collections.TEST_LABELS: DIGITS[collections.TEST_LABELS]})
    put(world / "system", FASHION)
    dataset = load_dataset("fashion-mnist", download=False)
    assert same(dataset, FASHION)
    assert dataset.source.startswith(f"Fashion-MNIST from {world / 'system'} (skipped: {world / 'environment'}")
    assert f"{world / 'cache' / 'fashion-mnist' / collections.TEST_LABELS}.gz: SHA-256" in dataset.source
    assert dataset.source.count("this is a file of MNIST digits, not Fashion-MNIST's") == 5


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("name", ["fashion-mnist", "auto"])
def test_wrong_file_in_the_folder_asked_for_is_an_error(world: Path, name: str, suffix: str) -> None:
    file = collections.TRAIN_LABELS
    altered = FASHION[file].copy()
    altered[3] ^= 1
    folder = put(world / "explicit", FASHION | {file: altered}, suffix)
    found = hashlib.sha256(idx(altered)).hexdigest()
    with pytest.raises(DataError) as caught:
        load_dataset(name, folder)
    expected = digests(FASHION)[file]
    assert str(caught.value) == (
        f"{folder / file}{suffix}: SHA-256 of the decompressed content: expected {expected}, found {found}"
    )


def test_the_two_sets_are_told_apart(world: Path) -> None:
    with pytest.raises(DataError, match=r"this is a file of MNIST digits, not Fashion-MNIST's train-images"):
        load_dataset("fashion-mnist", put(world / "digits", DIGITS))
    with pytest.raises(DataError, match=r"this is a file of Fashion-MNIST, not MNIST digits's train-images"):
        load_dataset("mnist", put(world / "fashion", FASHION))
    both = put(world / "both", FASHION)
    put(both / "mnist", DIGITS)
    assert same(load_dataset("fashion-mnist", both), FASHION)
    digits = load_dataset("mnist", both)
    assert same(digits, DIGITS)
    assert digits.class_names == tuple("0123456789")


def test_an_announced_size_beyond_the_set_is_refused(world: Path) -> None:
    folder = put(world / "explicit", FASHION)
    (folder / f"{collections.TEST_LABELS}.gz").write_bytes(gzip.compress(idx(np.zeros(10_001, np.uint8))))
    with pytest.raises(DataError, match=r"expected at most 10008 bytes, found 10009 bytes"):
        load_dataset("fashion-mnist", folder)


def test_the_good_one_of_two_copies_is_taken(world: Path) -> None:
    folder = put(put(world / "explicit", FASHION, ""), DIGITS, ".gz")
    assert same(load_dataset("fashion-mnist", folder), FASHION)


def test_auto_without_the_full_set_takes_the_sample_and_says_why(world: Path) -> None:
    dataset = load_dataset("auto", download=False)
    assert dataset.name == "fashion-mnist-sample"
    assert dataset.source.startswith("the embedded sample of Fashion-MNIST (4000 training and 1000 test images)")
    assert f"because the full set could not be had: {world / 'cache' / 'fashion-mnist'}: no valid" in dataset.source
    assert "downloads are off" in dataset.source
    assert dataset.content_hash == load_dataset("fashion-mnist-sample").content_hash
    with pytest.raises(DataError, match="downloads are off"):
        load_dataset("fashion-mnist", download=False)
    assert "there is no apt-get here" in load_dataset("auto", world / "typo").source
    assert not (world / "typo").exists()


def test_unknown_names(world: Path) -> None:
    (world / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"fashion: data set: expected auto, fashion-mnist, .* found nothing"):
        load_dataset("fashion")
    with pytest.raises(DataError, match=r"notes.txt: data set: .* found another kind of file"):
        load_dataset(world / "notes.txt")
    for bad in ("nul\0", "x" * 5000, ""):
        with pytest.raises(DataError):
            load_dataset(bad)


# ------------------------------------------------------------------------------------------------------- downloads


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.files`, from path to bytes, or to the length to announce and the bytes."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        length, body = content if isinstance(content, tuple) else (len(content), content)
        self.send_response(200)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files, server.asked = {}, []
        server.handle_error = lambda *_: None  # a client that hangs up is what some tests are about
        thread = threading.Thread(target=functools.partial(server.serve_forever, 0.01))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def offer(server, monkeypatch: pytest.MonkeyPatch, name: str, *offers: dict[str, np.ndarray]) -> list[str]:
    """Make mirrors of `name`, one for each of `offers`."""
    mirrors = [f"http://127.0.0.1:{server.server_port}/{number}/" for number in range(len(offers))]
    for number, arrays in enumerate(offers):
        for file, array in arrays.items():
            server.files[f"/{number}/{file}.gz"] = gzip.compress(idx(array))
    changed = dataclasses.replace(collections.COLLECTIONS[name], mirrors=tuple(mirrors))
    monkeypatch.setitem(collections.COLLECTIONS, name, changed)
    return mirrors


@pytest.mark.parametrize(("name", "arrays"), [("fashion-mnist", FASHION), ("mnist", DIGITS)])
def test_download_into_the_cache_happens_once(world: Path, server, monkeypatch, name: str, arrays) -> None:
    (mirror,) = offer(server, monkeypatch, name, arrays)
    dataset = load_dataset(name)
    folder = world / "cache" / name
    assert same(dataset, arrays)
    assert f"downloaded from {mirror}, now in {folder}" in dataset.source
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{file}.gz" for file in collections.SIZES)
    assert len(server.asked) == 4
    again = load_dataset(name)
    assert len(server.asked) == 4
    assert again.content_hash == dataset.content_hash
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in folder.iterdir())


def test_download_into_the_folder_asked_for_and_only_what_is_missing(world: Path, server, monkeypatch) -> None:
    offer(server, monkeypatch, "fashion-mnist", FASHION)
    folder = put(
        world / "explicit", {file: FASHION[file] for file in (collections.TRAIN_IMAGES, collections.TEST_LABELS)}, ""
    )
    assert same(load_dataset("auto", folder), FASHION)
    assert server.asked == [f"/0/{collections.TRAIN_LABELS}.gz", f"/0/{collections.TEST_IMAGES}.gz"]
    assert (folder / f"{collections.TEST_IMAGES}.gz").is_file()
    offer(server, monkeypatch, "mnist", DIGITS)
    assert same(load_dataset("mnist", world / "new" / "folder"), DIGITS)
    assert (world / "new" / "folder" / "mnist" / f"{collections.TEST_IMAGES}.gz").is_file()
    assert not (world / "cache").exists()


def test_wrong_file_in_the_cache_is_downloaded_again(world: Path, server, monkeypatch) -> None:
    offer(server, monkeypatch, "fashion-mnist", FASHION)
    bad = put(world / "cache" / "fashion-mnist", FASHION) / f"{collections.TEST_IMAGES}.gz"
    bad.write_bytes(bad.read_bytes()[:-9])
    dataset = load_dataset("fashion-mnist")
    assert same(dataset, FASHION)
    assert f"skipped: {bad}: gzip stream" in dataset.source
    assert server.asked == [f"/0/{collections.TEST_IMAGES}.gz"]
    assert np.array_equal(read_idx(bad), FASHION[collections.TEST_IMAGES])


FILE = collections.TEST_IMAGES
PACKED_FILE = gzip.compress(idx(FASHION[FILE]))
BAD_ANSWERS = {
    "missing": (None, "404"),
    "other content": (gzip.compress(idx(DIGITS[FILE])), "SHA-256 of the decompressed content"),
    "a page": (b"<html>log in</html>", "magic number"),
    "cut short": (PACKED_FILE[:-5], "truncated"),
    "connection lost": ((len(PACKED_FILE), PACKED_FILE[:-5]), "IncompleteRead|truncated"),
    "trailing member": (PACKED_FILE * 2, "after the gzip stream"),
    "too long": (PACKED_FILE + bytes(collections.SIZES[FILE] + idx_module.CHUNK), "size: expected at most"),
    "too long, unannounced": ((None, PACKED_FILE + bytes(2 * collections.SIZES[FILE])), "size: expected at most"),
    "announced too long": (
        (1 << 40, PACKED_FILE + bytes(1 << 17)),
        "size: expected at most [0-9]+ bytes, found 1099511627776",
    ),
    "bomb": (gzip.compress(idx(FASHION[FILE]) + bytes(100_000_000), 1), "after the data"),
    "nothing": (b"", "magic number"),
}


@pytest.mark.parametrize("case", BAD_ANSWERS)
def test_bad_answers_leave_no_file_and_the_next_mirror_is_asked(world: Path, server, monkeypatch, case: str) -> None:
    answer, message = BAD_ANSWERS[case]
    mirrors = offer(server, monkeypatch, "fashion-mnist", FASHION)
    server.files[f"/0/{FILE}.gz"] = answer
    cache = world / "cache" / "fashion-mnist"
    with pytest.raises(DataError, match=f"{FILE} could not be fetched: {mirrors[0]}.*(?:{message})"):
        load_dataset("fashion-mnist")
    assert not (cache / f"{FILE}.gz").exists()
    assert leftovers(world / "cache") == []
    dataset = load_dataset("auto")
    assert dataset.name == "fashion-mnist-sample"
    assert mirrors[0] in dataset.source

    mirrors = offer(server, monkeypatch, "fashion-mnist", FASHION, FASHION)
    server.files[f"/0/{FILE}.gz"] = answer
    server.asked.clear()
    dataset = load_dataset("auto")
    assert same(dataset, FASHION)
    assert f"downloaded from {mirrors[1]}" in dataset.source
    from_second = [f"/1/{FILE}.gz", f"/1/{collections.TEST_LABELS}.gz"]
    # What the first mirror gave and was right was kept from the first time.
    assert server.asked == [f"/0/{FILE}.gz", *from_second]
    server.asked.clear()
    assert same(load_dataset("fashion-mnist", world / "new"), FASHION)
    assert server.asked == [*(f"/0/{file}.gz" for file in list(collections.SIZES)[:3]), *from_second]


def test_a_silent_mirror_costs_a_bounded_time(world: Path, server, monkeypatch) -> None:
    monkeypatch.setattr(download, "MIRROR_SECONDS", 0.3)
    (good,) = offer(server, monkeypatch, "fashion-mnist", FASHION)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        mirrors = [f"http://127.0.0.1:{silent.getsockname()[1]}/", good]
        changed = dataclasses.replace(collections.COLLECTIONS["fashion-mnist"], mirrors=tuple(mirrors))
        monkeypatch.setitem(collections.COLLECTIONS, "fashion-mnist", changed)
        start = time.monotonic()
        assert same(load_dataset("auto"), FASHION)
        changed = dataclasses.replace(changed, mirrors=(mirrors[0],) * 5)
        monkeypatch.setitem(collections.COLLECTIONS, "fashion-mnist", changed)
        dataset = load_dataset("auto", world / "other")
        assert time.monotonic() - start < 5
    assert f"{mirrors[0]} does not answer" in dataset.source


@pytest.mark.parametrize("status_line", [True, False])
def test_a_server_that_drips_is_given_up(world: Path, server, monkeypatch, status_line: bool) -> None:
    released = threading.Event()

    def drip(handler: FaultyHandler, good: bytes) -> None:
        if status_line:
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(good) + 10_000))
            handler.end_headers()
        for _ in range(300):
            if released.wait(0.05):
                return
            handler.wfile.write(b"x")
            handler.wfile.flush()

    monkeypatch.setattr(server, "RequestHandlerClass", FaultyHandler)
    monkeypatch.setattr(download, "SLOW_SECONDS", 0.5)
    monkeypatch.setattr(download, "SLOW_RATE", 1 << 30)
    mirrors = offer(server, monkeypatch, "fashion-mnist", FASHION, FASHION)
    server.faults = [drip]
    start = time.monotonic()
    dataset = load_dataset("fashion-mnist")
    released.set()
    assert time.monotonic() - start < 10
    assert same(dataset, FASHION)
    assert f"downloaded from {mirrors[1]}" in dataset.source
    assert leftovers(world / "cache") == []


def test_what_a_killed_download_left_is_removed_a_day_later(world: Path, server, monkeypatch) -> None:
    offer(server, monkeypatch, "fashion-mnist", FASHION)
    folder = world / "cache" / "fashion-mnist"
    folder.mkdir(parents=True)
    for name, age in (("old", 2 * 86_400), ("new", 3600)):
        (folder / f".{FILE}.gz.{name}.part").write_bytes(b"begun")
        os.utime(folder / f".{FILE}.gz.{name}.part", (time.time() - age,) * 2)
    assert same(load_dataset("fashion-mnist"), FASHION)
    assert leftovers(folder) == [f".{FILE}.gz.new.part"]


def test_a_name_lookup_that_hangs_costs_a_bounded_time(world: Path, monkeypatch) -> None:
    released = threading.Event()

    def hang(*_: object, **__: object) -> None:
        released.wait(10)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(download, "MIRROR_SECONDS", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", hang)
    changed = dataclasses.replace(
        collections.COLLECTIONS["fashion-mnist"], mirrors=("http://a.invalid/", "http://b.invalid/")
    )
    monkeypatch.setitem(collections.COLLECTIONS, "fashion-mnist", changed)
    start = time.monotonic()
    assert load_dataset("auto").name == "fashion-mnist-sample"
    assert time.monotonic() - start < 5
    released.set()


def test_no_room_or_no_permission_is_an_error_with_the_path(world: Path, server, monkeypatch) -> None:
    offer(server, monkeypatch, "fashion-mnist", FASHION)
    (world / "file").write_text("in the way")
    with pytest.raises(DataError, match=f"^{world / 'file' / 'sub'}: "):
        load_dataset("fashion-mnist", world / "file" / "sub")
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        with pytest.raises(DataError, match=f"{world / 'new'}: download folder: expected a folder that can be written"):
            load_dataset("auto", world / "new")
        assert "can be written" in load_dataset("auto").source  # a cache nobody asked for: the sample
    for function in ("fsync", "replace"):

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, function, full)
            with pytest.raises(
                DataError, match=f"^{world / 'cache'}.*{collections.TRAIN_IMAGES}.gz: No space left on device"
            ):
                load_dataset("fashion-mnist")
        assert list((world / "cache" / "fashion-mnist").iterdir()) == []
    import pooch

    def full_disk(self: object, url: str, output: str, pooch: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", full_disk)
    with pytest.raises(DataError, match=f"^{world / 'cache'}.*{collections.TRAIN_IMAGES}.gz: No space left on device"):
        load_dataset("fashion-mnist")
    assert list((world / "cache" / "fashion-mnist").iterdir()) == []


def test_interrupted_download_leaves_nothing(world: Path, server, monkeypatch) -> None:
    offer(server, monkeypatch, "fashion-mnist", FASHION)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "read_verified", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_dataset("auto")
    assert list((world / "cache" / "fashion-mnist").iterdir()) == []


def test_racing_downloads_and_readers_see_whole_files_only(world: Path, server, monkeypatch) -> None:
    offer(server, monkeypatch, "fashion-mnist", FASHION)
    faults: list[BaseException] = []
    done = threading.Event()
    target = world / "cache" / "fashion-mnist" / f"{collections.TRAIN_IMAGES}.gz"

    def load() -> None:
        try:
            assert same(load_dataset("fashion-mnist"), FASHION)
        except BaseException as error:
            faults.append(error)

    def watch() -> None:
        try:
            while not done.is_set():
                if target.exists():
                    read_idx(target)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=load) for _ in range(8)]
    watcher = threading.Thread(target=watch)
    for thread in (watcher, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    watcher.join()
    assert faults == []
    assert leftovers(world / "cache") == []


class FaultyHandler(Handler):
    """Answers each request with the next of `server.faults`, a function of (handler, good bytes); then as it should."""

    def do_GET(self) -> None:
        content = self.server.files.get(self.path)
        if content and self.server.faults:
            self.server.faults.pop(0)(self, content)
        else:
            super().do_GET()

    def answer(self, body: bytes, length: int | None = None, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def random_fault(draw: np.random.Generator):
    """What a server or the way to it may do to one file."""
    kind, share, position = int(draw.integers(9)), float(draw.random()), int(draw.integers(1 << 30))
    other = gzip.compress(idx(DIGITS[list(collections.SIZES)[position % 4]]))

    def fault(handler: FaultyHandler, good: bytes) -> None:
        part = good[: int(share * len(good))]
        if kind == 0:  # cut, and told so
            handler.answer(part)
        elif kind == 1:  # the connection is lost
            handler.answer(part, len(good))
        elif kind == 2:  # a length that is not true
            handler.answer(good, int(share * 2 * len(good)))
        elif kind == 3:
            handler.answer(flipped(good, position % len(good)))
        elif kind == 4:  # MNIST's file under Fashion-MNIST's name
            handler.answer(other)
        elif kind == 5:
            handler.answer(b"<html>log in</html>", status=int((403, 404, 500, 503)[position % 4]))
        elif kind == 6:  # to a page that there is, or in a circle
            place = handler.path if share < 0.5 else "/page"
            handler.server.files["/page"] = b"<html>log in</html>"
            handler.answer(b"", status=302, Location=place)
        elif kind == 7:  # drop by drop, then nothing
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(good)))
            handler.end_headers()
            for i in range(min(20, len(part))):
                handler.wfile.write(part[i : i + 1])
                handler.wfile.flush()
                time.sleep(0.002)
        else:
            handler.answer(gzip.compress(bytes(3_000_000)))

    return fault


def test_random_faults_of_mirrors(world: Path, server, monkeypatch, campaign) -> None:
    """Whatever a mirror answers, under the file's name lies the right content or nothing."""
    monkeypatch.setattr(server, "RequestHandlerClass", FaultyHandler)
    monkeypatch.setattr(download, "READ_SECONDS", 2.0)
    count, lost = campaign.count(15, 300), 0
    for number in range(count):
        draw = campaign.rng(number)
        offer(server, monkeypatch, "fashion-mnist", FASHION, FASHION)
        server.faults = [random_fault(draw) for _ in range(int(draw.integers(1, 4)))]
        folder = world / str(number)
        dataset = load_dataset("auto", folder)  # the second mirror, at the latest, is right after three faults
        full = dataset.name == "fashion-mnist"
        lost += (full and not same(dataset, FASHION)) or bool(leftovers(folder))
        for path in folder.glob("*.gz"):
            lost += not np.array_equal(read_idx(path), FASHION[path.name.removesuffix(".gz")])
        server.faults = []
        lost += not same(load_dataset("fashion-mnist", folder), FASHION)
    campaign.survived("faulty downloads: a file with other content, or one left behind", count, lost)


RACER = """
import dataclasses, json, sys
from autoencoders.data import collections, load_dataset
spec = json.load(sys.stdin)
mirrors = tuple(spec["mirrors"])
small = dataclasses.replace(collections.COLLECTIONS["fashion-mnist"], sha256=spec["sha256"], mirrors=mirrors)
collections.COLLECTIONS["fashion-mnist"] = small
print(load_dataset("fashion-mnist").content_hash)
"""


def test_processes_that_race_for_one_download(world: Path, server, monkeypatch, campaign) -> None:
    mirrors = offer(server, monkeypatch, "fashion-mnist", FASHION)
    count = campaign.count(3, 20)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"}
    spec = json.dumps({"sha256": digests(FASHION), "mirrors": mirrors})
    command = [sys.executable, "-c", RACER]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    racers = [subprocess.Popen(command, env=environment, text=True, **pipes) for _ in range(count)]
    for racer in racers:
        racer.stdin.write(spec)
        racer.stdin.flush()
    found = [racer.communicate()[0].strip() for racer in racers]
    expected = load_dataset("fashion-mnist", download=False)
    assert same(expected, FASHION)
    assert leftovers(world / "cache") == []
    lost = sum(hash_ != expected.content_hash for hash_ in found)
    campaign.survived("processes that race for one download", count, lost)


def test_progress_is_drawn_on_a_terminal_only(world: Path, server, monkeypatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return self.terminal

    for terminal, wanted in ((True, True), (False, True), (True, False)):
        offer(server, monkeypatch, "fashion-mnist", FASHION)
        screen = Screen()
        screen.terminal = terminal
        monkeypatch.setattr(sys, "stderr", screen)
        load_dataset("fashion-mnist", world / f"{terminal}-{wanted}", progress=wanted)
        assert (collections.TRAIN_IMAGES in screen.getvalue()) == (terminal and wanted)


# ------------------------------------------------------------------------------------------------------------- apt

APT = """#!{python}
import os, shutil, sys, time
from pathlib import Path
here = Path({here!r})
with open(here / "calls", "a") as log:
    print("apt-get", *sys.argv[1:], file=log)
mode = (here / "mode").read_text()
private = any("Dir::State::lists=" in word for word in sys.argv)
if mode == "hang":
    if os.fork() == 0:
        (here / "helper").write_text(str(os.getpid()))
    time.sleep(60)
if mode == "offline":
    sys.exit("E: Failed to fetch x  Temporary failure resolving 'mirror'")
if mode == "no package" or (mode == "no lists" and not private):
    sys.exit("E: Unable to locate package dataset-fashion-mnist")
if "download" in sys.argv and mode != "no file":
    Path("dataset-fashion-mnist_1_all.deb").write_text("package")
"""
DPKG = """#!{python}
import shutil, sys
from pathlib import Path
here = Path({here!r})
with open(here / "calls", "a") as log:
    print("dpkg-deb", *sys.argv[1:], file=log)
if (here / "mode").read_text() == "broken":
    sys.exit("dpkg-deb: error: not a Debian archive")
assert Path(sys.argv[2]).read_text() == "package"
shutil.copytree(here / "content", Path(sys.argv[3]) / "usr" / "share" / "datasets" / "fashion-mnist")
"""


@pytest.fixture
def apt(world: Path, monkeypatch: pytest.MonkeyPatch):
    """Stand-ins of apt-get and dpkg-deb; call it with a mode and with what the package holds."""
    for name, text in (("apt-get", APT), ("dpkg-deb", DPKG)):
        program = world / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(text.format(python=sys.executable, here=str(world)))
        program.chmod(0o755)
    (world / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(world / "tmp"))

    def prepare(mode: str, content: dict[str, np.ndarray]) -> None:
        (world / "mode").write_text(mode)
        (world / "calls").unlink(missing_ok=True)
        put(world / "content", content)

    yield prepare
    assert list((world / "tmp").iterdir()) == []


def calls(world: Path) -> list[tuple[str, str]]:
    return [(line.split()[0], line.split()[-1]) for line in (world / "calls").read_text().splitlines()]


def test_debian_package_is_unpacked_into_the_cache(world: Path, apt) -> None:
    apt("lists", FASHION)
    dataset = load_dataset("auto")
    folder = world / "cache" / "fashion-mnist"
    assert same(dataset, FASHION)
    assert f"unpacked from Debian's package dataset-fashion-mnist, now in {folder}" in dataset.source
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{file}.gz" for file in collections.SIZES)
    assert [call[0] for call in calls(world)] == ["apt-get", "dpkg-deb"]
    assert "Dir::Cache=" in (world / "calls").read_text()
    assert load_dataset("auto").source == f"Fashion-MNIST from {folder}"
    assert len(calls(world)) == 2


def test_debian_lists_are_made_privately_where_the_system_has_none(world: Path, apt) -> None:
    apt("no lists", FASHION)
    assert same(load_dataset("fashion-mnist", world / "asked"), FASHION)
    assert (world / "asked" / f"{collections.TEST_LABELS}.gz").is_file()
    assert [call[1] for call in calls(world)][:3] == ["dataset-fashion-mnist", "update", "dataset-fashion-mnist"]
    for line in (world / "calls").read_text().splitlines()[1:3]:
        for option in ("Dir::State", "Dir::State::lists", "Dir::Cache"):
            assert f"-o {option}={world / 'tmp'}" in line
        assert "-o Debug::NoLocking=1 -o APT::Sandbox::User= " in line


@pytest.mark.parametrize(
    ("mode", "content", "message", "programs"),
    [
        ("offline", FASHION, "Temporary failure resolving", 1),
        ("no package", FASHION, "Unable to locate package", 2),
        ("no file", FASHION, "found no such file", 1),
        ("broken", FASHION, "dpkg-deb: exit 1: dpkg-deb: error: not a Debian archive", 2),
        ("lists", DIGITS, "this is a file of MNIST digits, not Fashion-MNIST's", 2),
        ("lists", {collections.TRAIN_IMAGES: FASHION[collections.TRAIN_IMAGES]}, "lacks train-labels", 2),
    ],
)
def test_debian_faults_lead_to_the_sample(world: Path, apt, mode: str, content, message: str, programs: int) -> None:
    apt(mode, content)
    dataset = load_dataset("auto")
    assert dataset.name == "fashion-mnist-sample"
    assert message in dataset.source
    assert len(calls(world)) == programs
    assert leftovers(world / "cache") == []


def test_debian_is_not_asked_for_digits(world: Path, apt) -> None:
    apt("lists", DIGITS)
    with pytest.raises(DataError):
        load_dataset("mnist")
    assert not (world / "calls").exists()


def test_a_hanging_apt_is_ended_with_its_helpers(world: Path, apt, monkeypatch: pytest.MonkeyPatch) -> None:
    apt("hang", FASHION)
    monkeypatch.setattr(download, "APT_SECONDS", 1.0)
    start = time.monotonic()
    assert "apt-get: not done after 1 s" in load_dataset("auto").source
    assert time.monotonic() - start < 10
    helper = int((world / "helper").read_text())
    for _ in range(100):
        try:
            state = Path(f"/proc/{helper}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            break
        if state == "Z":  # ended, and nobody has collected it yet
            break
        time.sleep(0.05)
    else:
        os.kill(helper, signal.SIGKILL)
        pytest.fail("apt's helper lives on")


# ------------------------------------------------------------------------------------------------- the sample


def test_sample_is_small_balanced_and_ordinary() -> None:
    assert sum((search.SAMPLE_FOLDER / f"{file}.gz").stat().st_size for file in collections.SIZES) <= 3_000_000
    sample = load_dataset("fashion-mnist-sample")
    assert sample.train_images.shape == (CLASSES * SAMPLE_TRAIN, 28, 28, 1)
    assert sample.test_images.shape == (CLASSES * SAMPLE_TEST, 28, 28, 1)
    assert sample.train_images.dtype == sample.test_images.dtype == np.uint8
    assert np.array_equal(np.bincount(sample.train_labels), [SAMPLE_TRAIN] * CLASSES)
    assert np.array_equal(np.bincount(sample.test_labels), [SAMPLE_TEST] * CLASSES)
    assert len(sample.class_names) == CLASSES
    assert list(sample.train_labels[:10]) == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]  # the original's beginning
    assert (
        (search.SAMPLE_FOLDER / "LICENSE").read_text().count("Copyright (c) 2017 Zalando SE, https://tech.zalando.com")
    )


@pytest.fixture
def real_set() -> Dataset:
    try:
        return load_dataset("fashion-mnist", download=False)
    except DataError as error:
        pytest.skip(f"the full set is not here: {error}")


def test_sample_is_part_of_the_real_set(real_set: Dataset) -> None:
    for file, array in sample_of(real_set).items():
        assert np.array_equal(read_idx(search.SAMPLE_FOLDER / f"{file}.gz"), array)


def test_content_hash_covers_dtype_shape_bytes_and_place() -> None:
    images = np.zeros((4, 2, 2, 1), np.uint8)
    labels = np.zeros(4, np.uint8)
    base = Dataset("x", images, labels, images, None, (), "here")
    others = [
        dataclasses.replace(base, train_images=images.reshape(4, 1, 4, 1)),
        dataclasses.replace(base, train_images=images.view(np.int8)),
        dataclasses.replace(base, train_images=images + np.uint8(1)),
        dataclasses.replace(base, train_labels=None),
        dataclasses.replace(base, train_labels=None, test_labels=labels),
    ]
    assert len({dataset.content_hash for dataset in (base, *others)}) == 6
    assert dataclasses.replace(base, name="y", source="there").content_hash == base.content_hash
    assert dataclasses.replace(base, train_images=np.asfortranarray(images)).content_hash == base.content_hash
    assert len(base.content_hash) == 64


# ------------------------------------------------------------------------------------------ folders of images


def save(path: Path, seed: int, shape: tuple[int, ...] = (4, 6), **options: object) -> np.ndarray:
    from PIL import Image

    pixels = np.random.Generator(np.random.PCG64(seed)).integers(0, 256, shape, np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return pixels


def fill(folder: Path, *names: str) -> Path:
    """A folder of pictures of those names, each of its own grey, which tells the number of the name."""
    from PIL import Image

    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        grey = np.full((4, 6), 250 - 10 * number, np.uint8)
        Image.fromarray(grey).save(folder / name, format=None if Path(name).suffix in IMAGE_SUFFIXES else "PNG")
    return folder


IMAGE_SUFFIXES = (".png", ".jpg", ".bmp", ".webp", ".gif", ".tif", ".pgm")


def greys(images: np.ndarray) -> list[int]:
    """Which pictures of `fill` these are, in order."""
    return [(255 - int(image.flat[0])) // 10 for image in images]


def shuffled(count: int, labels: np.ndarray | None = None) -> tuple[list[int], list[int]]:
    """The split as it is documented: in the order of seed 0, a tenth of each class for testing."""
    order = list(generator(0, "shuffle").permutation(count))
    by_class = order if labels is None else sorted(order, key=lambda i: labels[i])
    test = by_class[5::10] or by_class[-1:]
    return [i for i in order if i not in test], [i for i in order if i in test]


@pytest.mark.parametrize(
    "labels",
    [
        np.arange(200) % 10,  # every 10th image is of one class
        np.arange(200) // 20,
        np.arange(205) % 2,
        np.repeat([0, 1, 2], [150, 40, 10]),
        np.repeat([3, 7], [1, 4]),
        np.zeros(2, int),
    ],
    ids=["in turn", "one after the other", "two", "of different sizes", "few", "two images"],
)
def test_each_class_gives_a_tenth_for_testing(tmp_path: Path, labels: np.ndarray) -> None:
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 4, 4), dtype=np.uint8)
    dataset = own(tmp_path, images=images, labels=labels)
    assert abs(len(dataset.test_labels) - len(labels) / 10) < 1
    for label in set(labels):
        assert abs((dataset.test_labels == label).sum() - (labels == label).sum() / 10) <= 1
    assert sorted([*dataset.train_names, *dataset.test_names]) == list(range(len(labels)))
    for part in ("train", "test"):
        rows = getattr(dataset, f"{part}_names")
        assert np.array_equal(getattr(dataset, f"{part}_images")[..., 0], images[rows])
        assert np.array_equal(getattr(dataset, f"{part}_labels"), labels[rows])


def test_flat_folder_of_grey_images(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    pixels = np.stack([save(folder / f"{number:02}.png", number) for number in reversed(range(12))][::-1])
    (folder / "notes.txt").write_text("ignored")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    dataset = load_dataset(folder)
    train, test = shuffled(12)
    assert np.array_equal(dataset.test_images, pixels[test][..., None])
    assert np.array_equal(dataset.train_images, pixels[train][..., None])
    assert train != sorted(train), "in the order of the files the first ones may all be of one kind"
    assert dataset.train_labels is None
    assert dataset.test_labels is None
    assert dataset.class_names == ()
    assert list(dataset.test_names) == [f"{number:02}.png" for number in test]
    assert dataset.source == (
        f"12 images from the folder {folder}, 1 of them, drawn at random, for testing; other files passed over: 2 "
        "(notes.txt, pipe.png)"
    )


@pytest.mark.parametrize("first", ["grey", "colour"])
def test_one_colour_image_makes_all_colour(tmp_path: Path, first: str) -> None:
    grey = save(tmp_path / ("b.png" if first == "colour" else "a.png"), 1)
    colour = save(tmp_path / ("a.BMP" if first == "colour" else "b.BMP"), 2, (4, 6, 3))
    last = save(tmp_path / "c.png", 3)
    dataset = load_dataset(tmp_path)
    wanted = {image.tobytes() for image in (colour, *(np.repeat(x[..., None], 3, axis=2) for x in (grey, last)))}
    assert {image.tobytes() for image in (*dataset.train_images, *dataset.test_images)} == wanted


def test_sub_folders_are_classes(tmp_path: Path) -> None:
    for label, name in enumerate(("cat", "dog")):
        for number in range(11):
            save(tmp_path / name / f"{number:02}.png", 100 * label + number)
    (tmp_path / "empty").mkdir()
    dataset = load_dataset(str(tmp_path))
    assert dataset.class_names == ("cat", "dog")
    assert "; classes: cat, dog" in dataset.source
    assert sorted(dataset.test_labels) == [0, 1]
    assert sorted(dataset.train_labels) == [0] * 10 + [1] * 10
    assert [name[:3] for name in dataset.test_names] == [dataset.class_names[label] for label in dataset.test_labels]
    assert list(dataset.train_labels) != sorted(dataset.train_labels), "not class by class"
    assert load_dataset(tmp_path).content_hash == dataset.content_hash, "the same order each time"


def test_labels_stay_with_their_images(tmp_path: Path) -> None:
    """Of a folder with classes, of one with train and test, and of arrays: the picture tells the class."""
    names = [f"{'abc'[number % 3]}/{number:02}.png" for number in range(25)]
    classes = load_dataset(fill(tmp_path / "classes", *names))
    parts = [f"{'test' if number > 19 else 'train'}/{name}" for number, name in enumerate(names)]
    split = load_dataset(fill(tmp_path / "split", *parts))
    assert sorted(greys(split.test_images)) == [20, 21, 22, 23, 24]
    greyscale = np.array([np.full((4, 6), 250 - 10 * number, np.uint8) for number in range(25)])
    np.savez(tmp_path / "x.npz", x_train=greyscale, y_train=np.arange(25) % 3)
    for dataset in (classes, split, load_dataset(tmp_path / "x.npz")):
        for images, labels in (
            (dataset.train_images, dataset.train_labels),
            (dataset.test_images, dataset.test_labels),
        ):
            assert [number % 3 for number in greys(images)] == list(labels)
        assert list(dataset.train_labels) != sorted(dataset.train_labels), "not class by class"
        assert not dataset.ordered


JUNK = (".ipynb_checkpoints/0-checkpoint.png", "__MACOSX/._1.png", "a/._1.png", "a/.DS_Store", ".git/x.png")
JUNK += ("@eaDir/1.png", "a/@eaDir/1.png", "b/Thumbs.db", "b/1.png~", "$RECYCLE.BIN/1.png", "a/.thumbs/1.png")
JUNK += ("@Recycle/1.png", "#recycle/1.png", "a/Icon\r")
TWO = ("a/1.png", "a/2.png", "b/1.png", "b/2.png")
TRAIN = ("train/1.png", "train/2.png", "train/3.png")
# what a folder holds; classes, number of images for training and for testing, what the source says
LAYOUTS = {
    "hidden": ((*TWO, *JUNK), ("a", "b"), 3, 1, ""),
    "hidden, flat": (("1.png", "2.png", ".3.png", "._1.png", "Thumbs.db"), (), 1, 1, ""),
    "train and test": ((*TRAIN, "test/1.png"), (), 3, 1, "1 of them for testing"),
    "other spellings": (("Training_Set/1.png", "Training_Set/2.png", "TESTING/1.png"), (), 2, 1, "of them"),
    "with numbers": (("train1/1.png", "train1/2.png", "test1/1.png"), (), 2, 1, ""),
    "with classes": (tuple(f"{part}/{name}" for part in ("train", "test") for name in TWO), ("a", "b"), 4, 4, ""),
    "train alone": (TRAIN, (), 2, 1, "train, 1 of them, drawn at random, for testing"),
    "val is told": ((*TRAIN, "test/1.png", "val/8.png", "val/9.png"), (), 3, 1, "the 2 images in val are not used"),
    "val for testing": ((*TRAIN, "valid/9.png"), (), 3, 1, "the 1 images in valid are for testing"),
    "validation": ((*TRAIN, "validation/9.png"), (), 3, 1, "the 1 images in validation are for testing"),
    "no labels for testing": (("train/a/1.png", "train/b/1.png", "test/1.png"), (), 2, 1, "no labels: only one of"),
    "deeper": (("a/x/1.png", "a/2.png", "b/y/z/1.png"), ("a", "b"), 2, 1, ""),
    "ImageNet": (
        ("train/a/images/1.png", "train/b/images/1.png", "val/a/1.png", "val/b/1.png"),
        ("a", "b"),
        2,
        2,
        "the 2 images in val are",
    ),
    "Roboflow": (("train/images/1.png", "train/images/2.png", "test/images/1.png"), (), 2, 1, "1 of them for testing"),
    "a person named Val": (("Val_Ames/1.png", "Zoe_Best/1.png"), ("Val_Ames", "Zoe_Best"), 1, 1, ""),
    "a class named dev": (("art/1.png", "dev/1.png"), ("art", "dev"), 1, 1, ""),
    "letters of fonts": (tuple(f"{x}/{y}.png" for x in "abc" for y in ("arial", "times")), ("a", "b", "c"), 5, 1, ""),
    "copies": (tuple(f"{x}/{y}.png" for x in "ab" for y in ("1", "1 (1)")), ("a", "b"), 3, 1, ""),
    "a folder around": (("set/images/a/1.png", "set/images/b/1.png"), ("a", "b"), 1, 1, "set/images, 1 of"),
    "around train": (("set/train/1.png", "set/train/2.png", "set/test/1.png"), (), 2, 1, ""),
    "train in train": (
        ("train/train/1.png", "train/train/2.png", "test/test/3.png"),
        (),
        2,
        1,
        "1 of them for testing",
    ),
    "train alone in train": (
        ("train/train/1.png", "train/train/2.png"),
        (),
        1,
        1,
        "train/train, 1 of them, drawn at random, for testing",
    ),
    "a class named train": (("bus/1.png", "car/1.png", "train/1.png"), ("bus", "car", "train"), 2, 1, "train is taken"),
    "one class": (("images/1.png", "images/2.png"), ("images",), 1, 1, "classes: images"),
    "other contents": ((*TWO, "labels/1.txt", "x.csv"), ("a", "b"), 3, 1, "passed over: 2 (1.txt, x.csv)"),
    "suffixes": (
        ("1.PNG", "2.jpg", "c", "d.dat", "e.jfif", "f.jpe", "g.txt"),
        (),
        5,
        1,
        "other files passed over: 1 (g.txt)",
    ),
    "others": (
        ("1.png", "2.png", "a.txt", "b.csv", "c.heic", "d.pdf"),
        (),
        1,
        1,
        "passed over: 4 (a.txt, b.csv, c.heic",
    ),
    "masks among the classes": (("mask/1.png", "no_mask/1.png"), ("mask", "no_mask"), 1, 1, ""),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_what_folders_stand_for(tmp_path: Path, case: str) -> None:
    names, classes, train, test, said = LAYOUTS[case]
    fill(tmp_path, *names)
    for name in names:
        if Path(name).suffix in (".txt", ".csv", ".heic", ".pdf", ".db"):
            (tmp_path / name).write_text("no picture")
    dataset = load_dataset(tmp_path)
    assert dataset.class_names == classes
    assert (len(dataset.train_images), len(dataset.test_images)) == (train, test)
    assert (dataset.train_labels is None) == (dataset.test_labels is None) == (not classes)
    assert said in dataset.source
    assert said or ";" not in dataset.source.replace("; classes: ", "")
    if test > 1 or ("drawn" not in dataset.source and any(name.lower().startswith(("test", "val")) for name in names)):
        where = [name.lower().startswith(("test", "val")) for name in names]
        assert set(greys(dataset.train_images)) == {i for i, held in enumerate(where) if not held}


PAIRS = ("cat_3.png", "tree_7.png")
# what is refused, and what the message says
REFUSED = {
    "other classes": (
        ("train/a/1.png", "train/b/1.png", "test/a/1.png", "test/c/1.png"),
        "a difference: .*[bc], .*[bc]",
    ),
    "fewer classes": (("train/a/1.png", "train/b/1.png", "test/a/1.png"), "class folders: .* a difference: b$"),
    "no train": (
        ("test/1.png", "val/2.png"),
        "expected a folder train, .* found test, val; move or rename the others$",
    ),
    "unknown parts": (("seg_train/a/1.png", "seg_test/a/2.png"), "a folder train, .* found seg_test, seg_train; move"),
    "classes and test": ((*TWO, "test/1.png"), "a folder train, .* found a, b, test; move or rename"),
    "the whole once more": (
        (*TWO, *(f"set/{name}" for name in TWO)),
        "set: content: expected images of one class, found a; put that above the classes, or leave it out",
    ),
    "beside": ((*TRAIN, "test/1.png", "other/1.png"), "nothing beside, found other, test, train"),
    "masks of a part": (
        ("train/1.png", "train/2.png", "train_masks/1.png"),
        "nothing beside, found train, train_masks",
    ),
    "stray": ((*TRAIN, "x.png"), "nothing beside, found x.png, train"),
    "twice": (("trainA/1.png", "trainB/1.png", "testA/1.png"), "found testA, trainA, trainB"),
    "two spellings": (("train/1.png", "training/1.png"), "found train, training"),
    "images and masks": (("images/1.png", "images/2.png", "masks/1_mask.png"), r"pairs \(images, masks\)"),
    "within a part": (
        ("train/images/1.png", "train/masks/1.png", "test/images/1.png"),
        r"train: .*pairs \(images, masks\)",
    ),
    "within a class": (("a/Images/1.png", "a/Ground_Truth/1.png", "b/1.png"), r"pairs \(Images, Ground_Truth\)"),
    "same names": (
        tuple(f"{folder}/{name}" for folder in ("hr", "lr") for name in PAIRS),
        r"pairs \(hr, lr\); give one of them, or",
    ),
    "parts of a class": (
        ("a/train/1.png", "a/test/1.png", "b/1.png"),
        "images of one class, found test; put that above",
    ),
    "both": (("a/1.png", "1.png"), r"content: expected images, or sub-folders of images, found both \(1.png, a\)"),
    "too deep": (("/".join("abcdefgh") + "/1.png", "x/1.png"), "at most 8 levels, found more"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_folders_that_are_refused(tmp_path: Path, case: str) -> None:
    names, message = REFUSED[case]
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(fill(tmp_path, *names))
    assert len(str(caught.value).replace(str(tmp_path), "")) < 250


def test_a_link_in_a_circle_and_links_that_lead_nowhere(tmp_path: Path) -> None:
    fill(tmp_path, "1.png", "2.png")
    (tmp_path / "3.png").symlink_to("/nowhere.png")
    assert "other files passed over: 1 (3.png)" in load_dataset(tmp_path).source
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "again").symlink_to(tmp_path)
    with pytest.raises(DataError, match="does a link lead in a circle"):
        load_dataset(tmp_path)


def test_names_from_outside_are_made_printable(tmp_path: Path) -> None:
    for name in (b"cat", b"\xff\xfe", b"\x1b[31m"):
        save(tmp_path / os.fsdecode(name) / "a.png", len(name))
    (tmp_path / "\n.txt").write_text("no picture")
    dataset = load_dataset(tmp_path)
    assert dataset.class_names == (r"\x1b[31m", "cat", r"\udcff\udcfe")
    assert r"1 (\n.txt)" in dataset.source
    assert dataset.source.isprintable()
    "".join(dataset.class_names).encode()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_pictures_are_turned_as_their_exif_data_say(tmp_path: Path, suffix: str, orientation: int) -> None:
    from PIL import Image

    ramp = np.add.outer(np.arange(0, 160, 20), np.arange(0, 96, 4)).astype(np.uint8)  # (8, 24)
    for name in "ab":
        image = Image.fromarray(np.stack([ramp] * 3, axis=2))
        exif = image.getexif()
        exif[0x0112] = orientation
        image.save(
            tmp_path / f"{name}.{suffix}", exif=exif, **({"quality": 100} if suffix == "jpg" else {"lossless": 1})
        )
    (found,) = load_dataset(tmp_path).train_images
    stored = np.stack([ramp] * 3, axis=2)
    if suffix == "jpg":
        with Image.open(tmp_path / "a.jpg") as image:
            stored = np.asarray(image)  # with small losses
    # what the first row and the first column of the file are to be seen as, by the standard
    wanted = {
        1: stored,  # top, left
        2: stored[:, ::-1],  # top, right
        3: stored[::-1, ::-1],  # bottom, right
        4: stored[::-1],  # bottom, left
        5: stored.swapaxes(0, 1),  # left, top
        6: stored.swapaxes(0, 1)[:, ::-1],  # right, top
        7: stored.swapaxes(0, 1)[::-1, ::-1],  # right, bottom
        8: stored.swapaxes(0, 1)[::-1],  # left, bottom
    }[orientation]
    assert found.shape == wanted.shape == ((8, 24, 3) if orientation < 5 else (24, 8, 3))
    assert np.array_equal(found, wanted)
    fill(tmp_path, "c.png")  # 6 x 4
    with pytest.raises(
        DataError,
        match=r"size, found 2: 1 of 3 are not (24 x 8|8 x 24) \(c.png\); --image-size (4|8) resizes and crops all",
    ):
        load_dataset(tmp_path)
    # as large when it is turned, but not as it is to be seen
    Image.fromarray(np.stack([ramp if orientation > 4 else ramp.T] * 3, axis=2)).save(tmp_path / "c.png")
    with pytest.raises(DataError, match=r"1 of 3 are not (24 x 8|8 x 24) \(c.png\)"):
        load_dataset(tmp_path)


def test_damaged_exif_data_turn_nothing(tmp_path: Path) -> None:
    for name in "ab":
        save(tmp_path / f"{name}.png", 1, exif=b"Exif\0\0damaged")
    assert len(load_dataset(tmp_path).train_images) == 1


CLEAR = np.zeros((4, 6, 4), np.uint8)
CLEAR[:, :3] = 255, 0, 255, 0  # a colour that nobody sees
CLEAR[:, 3:] = 10, 20, 30, 255
HALF = np.full((4, 6, 4), (0, 100, 200, 128), np.uint8)
# mode, pixels, options of saving, what is to be seen in the first and in the last column
TRANSPARENT = {
    "RGBA": ("RGBA", CLEAR, {}, [255, 255, 255], [10, 20, 30]),
    "half": ("RGBA", HALF, {}, [127, 177, 227], [127, 177, 227]),
    "LA": ("LA", CLEAR[..., 2:], {}, [255], [30]),
    "tRNS of grey": ("L", CLEAR[..., 1], {"transparency": 0}, [255], [20]),
    "tRNS of a bit": ("1", CLEAR[..., 1] > 9, {"transparency": 0}, [255], [255]),
    "tRNS of colour": ("RGB", CLEAR[..., :3], {"transparency": (255, 0, 255)}, [255, 255, 255], [10, 20, 30]),
    "palette": ("P", CLEAR[..., 1] // 20, {"transparency": 0}, [255, 255, 255], None),
    "opaque": ("RGBA", CLEAR | np.uint8([0, 0, 0, 255]), {}, [255, 0, 255], [10, 20, 30]),
}


@pytest.mark.parametrize("case", TRANSPARENT)
def test_transparent_pixels_are_laid_on_white(tmp_path: Path, case: str) -> None:
    from PIL import Image

    mode, pixels, options, left, right = TRANSPARENT[case]
    image = Image.fromarray(pixels) if mode != "P" else Image.fromarray(pixels).convert("P")
    assert image.mode == mode
    for name in "ab":
        image.save(tmp_path / f"{name}.png", **options)
    dataset = load_dataset(tmp_path)
    assert dataset.source.endswith("; transparency in 2 of them laid on white") == (case != "opaque")
    assert dataset.train_images[0, 0, 0].tolist() == left
    assert right is None or dataset.train_images[0, 0, -1].tolist() == right


def test_each_picture_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, *(f"{number}.png" for number in range(5)))
    opened, real = [], own_images.read_file
    monkeypatch.setattr(own_images, "read_file", lambda path, most: opened.append(path.name) or real(path, most=most))
    monkeypatch.setattr(Path, "open", lambda *_, **__: pytest.fail("opened once more"))
    load_dataset(tmp_path)
    assert sorted(opened) == [f"{number}.png" for number in range(5)]


def test_a_preview_in_a_picture_of_a_camera_is_passed_over(tmp_path: Path) -> None:
    from PIL import Image

    fill(tmp_path, "a.png", "b.png")
    frames = [Image.new("RGB", (6, 4), (grey, grey, grey)) for grey in (200, 0)]
    frames[0].save(tmp_path / "c.jpg", format="MPO", save_all=True, append_images=frames[1:])
    dataset = load_dataset(tmp_path)
    assert sorted(greys(np.concatenate([dataset.train_images, dataset.test_images]))) == [0, 1, 5]


def encoded(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def several(kind: str) -> bytes:
    from PIL import Image

    frames = [Image.new("RGB", (6, 4), (grey, grey, grey)) for grey in (0, 9, 200)]
    return encoded(np.asarray(frames[0]), kind, save_all=True, append_images=frames[1:])


NOISE = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (4, 6), np.uint8)
PNG = encoded(NOISE, "png")
MEND = ", or leave out such files with --skip-broken$"
UNKNOWN, CUT = f"cannot identify image file; repair or remove the file{MEND}", f"[^<]+; repair or remove the file{MEND}"
FRAMES = f"frames: expected one, found 3; save each as an image of its own{MEND}"
BITS = f"pixels: expected 8 or 16 bits, found Pillow's mode [IF]; save it with 8 bits{MEND}"
PICTURE_FAULTS = {  # what is in b.png; what is said
    "empty": (b"", UNKNOWN),
    "text": (b"<html>404</html>", UNKNOWN),
    "a program for Ghostscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n%%EOF\n", UNKNOWN),
    "cut in the header": (PNG[:20], CUT),
    "cut in the data": (PNG[:-20], CUT),
    "damaged header": (PNG[:20] + b"\xff" + PNG[21:], CUT),
    "damaged data": (flipped(PNG, 50), CUT),
    "cut JPEG": (encoded(NOISE, "jpeg")[:-9], CUT),
    "frames": (several("gif"), FRAMES),
    "moving picture": (several("webp"), FRAMES),
    "pages": (several("tiff"), FRAMES),
    "32 bits": (encoded(NOISE.astype(np.int32), "tiff"), BITS),
    "floats": (encoded(NOISE.astype(np.float32), "tiff"), BITS),
}


@pytest.mark.parametrize("case", PICTURE_FAULTS)
def test_pictures_at_fault(tmp_path: Path, case: str) -> None:
    content, message = PICTURE_FAULTS[case]
    fill(tmp_path, "a.png", "c.png")
    (tmp_path / "b.png").write_bytes(content)
    with pytest.raises(DataError, match=f"^{tmp_path}/b.png: {message}"):
        load_dataset(tmp_path)


def test_too_few_pictures(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path}: content: expected at least 2 images, found 0$"):
        load_dataset(tmp_path)
    fill(tmp_path, "a.png")
    (tmp_path / "b.heic").write_text("no picture")
    with pytest.raises(
        DataError,
        match=r"at least 2 images, found 1; other files .*: 1 \(b.heic\); save pictures as .png or .jpg, unpack",
    ):
        load_dataset(tmp_path)


def test_all_files_at_fault_are_named_at_once(tmp_path: Path) -> None:
    fill(tmp_path, *"abcdefg")
    for name in "bcde":
        (tmp_path / f"{name}.png").write_bytes(b"damaged")
    with pytest.raises(
        DataError,
        match=r"4 of 11 pictures cannot be read \(b.png, c.png, d.png, e.png\); the first: .*/b.png: .*--skip-broken$",
    ):
        load_dataset(tmp_path)


def test_decompression_bombs_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    for name in "ab":
        save(tmp_path / f"{name}.png", 1, (10, 10))
    for limit in (60, 40):  # Pillow warns above the limit and refuses above twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(DataError, match=r"a.png: .*decompression bomb"):
            load_dataset(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(own_images, "MAX_BYTES", 50)
    with pytest.raises(DataError, match=r"a.png: size: expected at most 50 bytes, found"):
        load_dataset(tmp_path)


# --------------------------------------------------------------------------------------------------- IDX files


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
    with pytest.raises(
        DataError, match=r"IDX files: expected one train-images, found .* and x-train-images-idx3-ubyte"
    ):
        load_dataset(folder)
    (folder / "x-train-images-idx3-ubyte").unlink()
    path = folder / collections.TRAIN_IMAGES
    good = path.read_bytes()
    for content, message in ((good[:-1], "cannot be read"), (good + b"\0", "after the data"), (b"x", "magic number")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"^{path}: {message}"):
            load_dataset(folder)
    path.write_bytes(idx(FASHION[collections.TRAIN_LABELS]))
    with pytest.raises(DataError, match=r"shape: expected \(N, H, W\) .* found \(20,\)"):
        load_dataset(folder)


# --------------------------------------------------------------------------------------------- .npy and .npz


def own(tmp_path: Path, **arrays: np.ndarray) -> Dataset:
    np.savez(tmp_path / "own.npz", allow_pickle=True, **arrays)
    return load_dataset(tmp_path / "own.npz")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(12, 5, 6), (12, 5, 6, 1), (12, 5, 6, 3), (23, 6, 5, 7), (12, 784)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.float64, np.float16, ">f4", ">u2"])
def test_npy(tmp_path: Path, shape: tuple[int, ...], dtype, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.Generator(np.random.PCG64(0))
    floats = np.dtype(dtype).kind == "f"
    images = (draw.random(shape) if floats else draw.integers(0, 256, shape)).astype(dtype)
    path = tmp_path / "images.npy"
    np.save(path, np.asarray(images, order=order))
    wanted = images.astype(np.float32 if floats else np.uint8).reshape(
        shape[0], *((28, 28) if shape[1:] == (784,) else shape[1:3]), -1
    )
    train, test = shuffled(shape[0])
    for chunk in (idx_module.CHUNK, 1000, 1):
        monkeypatch.setattr(own_arrays, "CHUNK", chunk)
        dataset = load_dataset(path)
        assert dataset.train_images.dtype == wanted.dtype
        assert np.array_equal(dataset.test_images, wanted[test])
        assert np.array_equal(dataset.train_images, wanted[train])
        assert dataset.train_images.flags.c_contiguous
        assert not dataset.ordered


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("chunk", [10_000_000, 1])
@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        ((0, 3, 1, 2), (11, 5, 6, 3)),
        ((0, 3, 1, 2), (11, 7, 6, 1)),
        ((1, 2, 3, 0), (11, 5, 6, 3)),
        ((1, 2, 3, 0), (20, 6, 5, 1)),
    ],
)
def test_axes_in_another_order_are_recognised(tmp_path, monkeypatch, axes, shape, chunk: int, order: str) -> None:
    images = np.random.Generator(np.random.PCG64(0)).integers(0, 256, shape, np.uint8)
    monkeypatch.setattr(own_arrays, "CHUNK", chunk)
    np.save(tmp_path / "x.npy", np.asarray(images.transpose(axes), order=order))
    dataset = load_dataset(tmp_path / "x.npy")
    assert np.array_equal(dataset.train_images, images[shuffled(len(images))[0]])
    assert f"axes taken as ({', '.join('NHWC'[axis] for axis in axes)})" in dataset.source


DOUBTFUL = {  # what is refused, and what helps
    (32, 32, 3): "found .32, 32, 3.; if that is one image, more are needed; if these are 32 grey images, use images",
    (32, 32, 4): "if that is one image",
    (28, 28, 1): "if that is one image",
    (3, 32, 32): "if that is one image",
    (28, 28): "one image is no data set",
    (256, 256): r"images.reshape\(-1, 16, 16\) if each row is an image; one image is no data set",
    (784, 784): "if each row is an image; one image is no data set",
    (300, 256): r"images.reshape\(-1, 16, 16\) if each row is an image",
    (2000, 3000): "reshape it if each row is an image",
    (28, 28, 500): r"np.moveaxis\(images, -1, 0\) if the images come last, images\[..., None\] if they are 28 x 500",
    (20, 9, 300): "if the images come last",
    (5, 1, 4, 4): r"images.transpose\(0, 2, 3, 1\) if the channels come first$",
    (5, 3, 6, 4): "if the channels come first$",
    (32, 32, 3, 4): r"np.moveaxis\(images, -1, 0\) if the images come last$",
    (3, 32, 32, 50): "50.; np.moveaxis",
    (4, 3, 3, 1, 1): "reshape it",
    (0, 3, 3): "no axis may be empty",
    (20,): "reshape it",
}


@pytest.mark.parametrize("shape", DOUBTFUL, ids=str)
def test_shapes_that_can_be_read_in_two_ways_are_refused_with_advice_that_helps(tmp_path: Path, shape) -> None:
    images = np.full(shape, 200, np.uint8)
    np.save(tmp_path / "x.npy", images)
    with pytest.raises(DataError, match=f"x.npy: array: shape: expected .*{DOUBTFUL[shape]}") as caught:
        load_dataset(tmp_path / "x.npy")
    if shape in ((256, 256), (300, 256)):  # the rows of a table are no lines of a picture
        np.savetxt(tmp_path / "x.csv", images, "%d", ",")
        assert load_dataset(tmp_path / "x.csv").train_images.shape[1:] == (16, 16, 1)
    advice = re.findall(r"(?:np|images)\.\w+\([^)]*\)|images\[[^\]]*\]", str(caught.value))
    for expression in advice:
        np.save(tmp_path / "x.npy", eval(expression, {"np": np, "images": images}))
        load_dataset(tmp_path / "x.npy")


ZEROS = np.zeros((4, 3, 3), np.float32)
BYTES = np.zeros((4, 3, 3), np.uint8)
# values; the brightest pixel that is loaded, what the source says, or else what the error says
VALUES = {
    "bytes of 0 and 1": (BYTES + np.eye(3, dtype=np.uint8), 255, "0 and 1 are taken as black and white"),
    "truth": (BYTES + np.eye(3) > 0, 255, "0 and 1 are taken as black and white"),
    "whole numbers of 0 and 1": (BYTES + np.eye(3, dtype=int), 255, "0 and 1 are taken as black and white"),
    "black and white": (BYTES + np.uint8(255) * np.eye(3, dtype=np.uint8), 255, ""),
    "dark": (BYTES + np.uint8(15), 15, "all are dark: the brightest value is 15, white is 255"),
    "divided twice": (
        ZEROS + np.float32(1 / 255),
        1 / 255,
        "all are dark: the brightest value is 0.00392157, white is 1",
    ),
    "black": (BYTES, 0, ""),
    "rounding": (ZEROS + 1.0000001, 1, ""),
    "rounding below": (ZEROS + np.array([-1e-7, 1, 1]), 1, ""),
    "int32": (BYTES.astype(np.int32) + 255, 255, ""),
    "one too many": (
        BYTES.astype(np.int32) + 256,
        None,
        "found 256 to 256; divide by the value that stands for white$",
    ),
    "-1 to 1 in bytes": (
        BYTES + np.array([-1, 0, 1], np.int8),
        None,
        "found -1 to 1; undo the standardising or offset",
    ),
    "excess": (ZEROS + 1.001, None, r"expected floats in \[0, 1\], found 1.001 to 1.001; images.clip\(0, 1\) cuts off"),
    "NaN": (ZEROS + np.float32(np.nan), None, r"expected floats in \[0, 1\], found NaN; leave out the images"),
    "one NaN": (np.where(np.arange(36).reshape(4, 3, 3) == 7, np.nan, 255.0), None, "found NaN; leave out"),
    "infinite": (ZEROS + np.float32(np.inf), None, "found infinity; leave out the images"),
    "too large for float32": (
        ZEROS.astype(float) + 1e300,
        None,
        r"found 1e\+300 to 1e\+300; divide by the value that stands for white",
    ),
    "0 to 255": (ZEROS + np.float32(255), None, "found 255 to 255; divide by 255$"),
    "0 to 16": (ZEROS + np.float32(16), None, "found 16 to 16; divide by the value that stands for white$"),
    "-1 to 1": (ZEROS + np.array([-1, 0, 1]), None, r"found -1 to 1; take \(images \+ 1\) / 2$"),
    "-0.5 to 0.5": (ZEROS + np.array([-0.5, 0, 0.5]), None, "found -0.5 to 0.5; undo the standardising or offset, and"),
    "standardised": (ZEROS + np.array([-2, 0, 3]), None, "found -2 to 3; undo the standardising or offset, and"),
    "resized": (ZEROS + np.array([-9, 99, 260]), None, "found -9 to 260; undo the .* offset, and clip what exceeds$"),
    "too bright": (ZEROS + np.array([0, 1, 1.4]), None, "found 0 to 1.4; divide by the value that stands for white$"),
    "16 bits": (
        BYTES.astype(np.uint16) + 40000,
        None,
        "numbers from 0 to 255, found 40000 to 40000; divide by the value that stands for white$",
    ),
    "signed": (BYTES.astype(np.int8) - 1, None, "found -1 to -1; undo the standardising or offset, and clip"),
    "text": (np.array([[["a"]]]), None, "dtype: expected numbers, found str"),
    "objects": (np.array([[[None]]]), None, "dtype: expected numbers, found object"),
    "complex": (ZEROS.astype(complex), None, "dtype: expected numbers, found complex128"),
    "one": (ZEROS[:1], None, "images: expected at least 2, found 1"),
}


@pytest.mark.parametrize("case", VALUES)
def test_values_have_one_cause_and_one_advice_each(tmp_path: Path, case: str) -> None:
    array, brightest, said = VALUES[case]
    path = tmp_path / "images.npy"
    np.save(path, array, allow_pickle=True)
    if brightest is None:
        with pytest.raises(DataError, match=f"^{path}: array: .*{said}") as caught:
            load_dataset(path)
        assert len(str(caught.value)) - len(str(path)) < 200
        if "text" not in case and "objects" not in case:
            assert not np.ma.isMaskedArray(array)
            if array.dtype.kind in "uif" and len(array) > 1:  # what the models say is the same
                assert value_fault(array).endswith(str(caught.value).partition("values: ")[2])
        return
    dataset = load_dataset(path)
    assert dataset.train_images.max() == dataset.test_images.max() == np.float32(brightest)
    assert dataset.train_images.min() >= 0
    assert said in dataset.source
    assert said or dataset.source.endswith("testing")


def test_both_parts_have_one_scale(tmp_path: Path) -> None:
    ones = BYTES + np.eye(3, dtype=np.uint8)
    dataset = own(tmp_path, x_train=ones, x_test=ones.astype(bool))
    assert dataset.train_images.max() == dataset.test_images.max() == 255
    for train, test in ((ones, 255 * ones), (255 * ones, ones)):
        with pytest.raises(DataError, match=r"brightest value: .* found 1 in one and 255 in the other"):
            own(tmp_path, x_train=train, x_test=test)
    assert own(tmp_path, x_train=255 * ones, x_test=BYTES).test_images.max() == 0
    from PIL import Image

    fill(tmp_path / "folder", "a.png", "b.png")
    for name in "ab":
        Image.fromarray(ones[0]).save(tmp_path / "folder" / f"{name}.png")
    assert "0 and 1 are taken as" in load_dataset(tmp_path / "folder").source


SPELLINGS = (
    "train_images train_labels test_images test_labels",
    "x_train y_train x_test y_test",
    "X_train Y_train X_test Y_test",
    "trainX trainY testX testY",
    "train train_targets test test_targets",
    "training_data training_labels testing_data testing_labels",
    "train/imgs train/classes val/imgs val/classes",
)


@pytest.mark.parametrize("names", SPELLINGS)
def test_both_parts_in_an_npz(tmp_path: Path, names: str) -> None:
    images = 255 - np.arange(96, dtype=np.uint8).reshape(6, 4, 4)
    arrays = (images[:4], np.arange(4), images[4:], np.array([7, 8], np.int8))
    path = tmp_path / "set.npz"
    np.savez_compressed(path, **dict(zip(names.split(), arrays, strict=True)), other=np.array(["ignored"]))
    dataset = load_dataset(path)
    assert same(dataset, dict(zip(collections.SIZES, arrays, strict=True)))
    assert dataset.train_labels.dtype == dataset.test_labels.dtype == np.int64
    assert dataset.class_names == ()
    note = "val/imgs are for testing; " if "val" in names else ""
    assert dataset.source == f"4 training and 2 test images from {path}; {note}not used: other"
    assert dataset.ordered


PICTURES = np.full((5, 6, 6), 200, np.uint8)
SEVEN = np.arange(5) + 7
NAMED = {  # arrays; number of images for testing, labels of all, what the source says
    "one array": ({"arr_0": PICTURES}, 1, None, "testing$"),
    "one part": ({"x_train": PICTURES}, 1, None, "testing$"),
    "images": ({"images": PICTURES, "meta": np.arange(3)}, 1, None, "the images are images; not used: meta"),
    "images and labels": ({"images": PICTURES, "labels": SEVEN}, 1, list(SEVEN), "the images are images"),
    "x and y": ({"x": PICTURES, "y": SEVEN}, 1, list(SEVEN), "the images are x"),
    "dSprites": ({"imgs": PICTURES, "latents_values": np.zeros((5, 6))}, 1, None, "not used: latents_values"),
    "objects beside": ({"faces": PICTURES, "meta": np.array([{}, 1])}, 1, None, "the images are faces; not used: meta"),
    "rows": ({"kmnist": np.full((5, 784), 200), "ids": SEVEN}, 1, None, "the images are kmnist; rows of|not used: ids"),
    "val": ({"x_train": PICTURES, "x_test": PICTURES[:4], "x_val": PICTURES}, 4, None, "not used: x_val"),
    "channels": (
        {"x_train": np.full((5, 8, 8, 6), 200), "x_test": np.full((4, 8, 8, 6), 200)},
        4,
        None,
        r"npz; axes taken as \(N, H, W, C\) with 6 channels$",  # once
    ),
    "order": ({"images": PICTURES, "train_idx": SEVEN}, 1, None, "the images are images; not used: train_idx"),
    "more names": ({"x_train": PICTURES, "images": PICTURES, "data": SEVEN}, 1, None, "not used: images, data"),
}


@pytest.mark.parametrize("case", NAMED)
def test_names_in_an_npz(tmp_path: Path, case: str) -> None:
    arrays, test, labels, said = NAMED[case]
    dataset = own(tmp_path, **arrays)
    assert len(dataset.test_images) == test
    assert re.search(said, dataset.source)
    if labels is None:
        assert dataset.train_labels is None
    else:
        assert sorted([*dataset.train_labels, *dataset.test_labels]) == sorted(labels)


LABELS = {  # labels, what is made of them, or else what is said
    "a column": (np.array([[3], [1], [2], [0]], np.uint8), [3, 1, 2, 0], ""),
    "a row": (np.array([[3, 1, 2, 0]]), [3, 1, 2, 0], ""),
    "whole floats": (np.array([0.0, 1.0, 2.0, 3.0]), [0, 1, 2, 3], ""),
    "half precision": (np.array([0, 1, 2, 3], np.float16), [0, 1, 2, 3], ""),
    "truth": (np.array([True, False, True, False]), [1, 0, 1, 0], ""),
    "large": (np.array([0, 1, 2, 2**63 - 1], np.uint64), [0, 1, 2, 2**63 - 1], ""),
    "fractions": (np.array([0, 1.5, 2, 3]), None, r"expected whole numbers from 0 on \(4,\), found 1.5"),
    "NaN": (np.array([0, 1, 2, np.nan]), None, "found nan"),
    "infinity": (np.array([0, 1, 2, np.inf]), None, "found inf"),
    "negative": (-np.arange(4), None, "found -1"),
    "too large": (np.array([0, 1, 2, 2**63], np.uint64), None, "found 9223372036854775808"),
    "too few": (np.arange(3), None, r"found shape \(3,\)"),
    "one-hot": (
        np.eye(4, dtype=int),
        None,
        r"found shape \(4, 4\); labels.argmax\(axis=1\) makes one of each one-hot row",
    ),
    "text": (np.array(list("abca")), None, "found <U1; number the classes from 0 on, alike for training and testing$"),
    "objects": (np.array([None, 1, 2, 3]), None, "y_train: dtype: expected numbers, found objects"),
    "complex": (np.arange(4) + 0j, None, "found complex128"),
    "none": (np.zeros(0), None, r"found shape \(0,\)"),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_that_nothing_needs_stop_nothing(tmp_path: Path, case: str) -> None:
    labels, wanted, said = LABELS[case]
    dataset = own(tmp_path, x_train=PICTURES[:4], y_train=labels, x_test=PICTURES[:2], y_test=np.arange(2))
    assert list(dataset.test_labels) == [0, 1]
    if wanted is not None:
        assert list(dataset.train_labels) == wanted
        assert dataset.train_labels.dtype == np.int64
        assert dataset.source.endswith("own.npz")
        return
    assert dataset.train_labels is None
    assert re.search("; no labels: train .*" + said, dataset.source)
    with pytest.raises(
        DataError, match="own.npz: a conditional model needs labels of .* images; train .*" + said
    ) as caught:
        print(dataset.classes)
    assert len(str(caught.value).replace(str(tmp_path), "")) < 250


def test_masked_labels_are_refused() -> None:
    with pytest.raises(DataError, match=r"labels: expected whole numbers from 0 on \(2,\), found a masked array"):
        class_labels(np.ma.array([0, 1], mask=[0, 1]), 2)


@pytest.mark.parametrize("labelled", [False, True])
def test_a_run_of_an_earlier_version_finds_its_images_as_they_were(tmp_path: Path, labelled: bool) -> None:
    """What was loaded then, written down here: the order of the files where there were no labels."""
    images = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (95, 4, 4, 1), np.uint8)
    labels = np.arange(95) % 3 if labelled else None
    arrays = {"x_train": images, **({"y_train": labels} if labelled else {})}
    order = generator(0, "shuffle").permutation(95) if labelled else np.arange(95)
    train, test = order[order % 10 != 0], order[order % 10 == 0]
    then = Dataset(
        "x",
        images[train],
        labels if labels is None else labels[train],
        images[test],
        labels if labels is None else labels[test],
        (),
        "",
    )
    own(tmp_path, **arrays)
    now = load_dataset(tmp_path / "own.npz", every_tenth=True)
    assert "every 10th for testing" in now.source
    found = now.as_recorded(then.content_hash)
    assert found.content_hash == then.content_hash
    assert np.array_equal(found.train_images, then.train_images)
    assert labelled or found.ordered
    assert (now.content_hash == then.content_hash) == labelled
    for other in (now.content_hash, "unknown", None):
        assert now.as_recorded(other) is now


def test_a_limit_takes_a_random_sample(tmp_path: Path) -> None:
    images = np.full((40, 4, 4), 200, np.uint8)
    sorted_classes = own(tmp_path, x_train=images, y_train=np.arange(40) // 10, x_test=images[:2])
    chosen = sorted_classes.limited(12, 5)
    assert len(chosen) == len(set(chosen)) == 12
    assert list(chosen) == sorted(chosen)
    assert len(set(sorted_classes.train_labels[chosen])) > 2
    assert list(chosen) != list(sorted_classes.limited(12, 6))
    assert list(chosen) == list(sorted_classes.limited(12, 5))
    shuffled_ones = own(tmp_path, x_train=images)
    assert list(shuffled_ones.limited(12, 5)) != list(shuffled_ones.limited(12, 6))
    for dataset, limit, seed in (
        (sorted_classes, 12, None),  # a run of an earlier version
        (shuffled_ones.as_recorded("", earlier=True), 12, 5),  # another one
        (sorted_classes, 40, 5),
        (sorted_classes, None, 5),
        (load_dataset("fashion-mnist-sample"), 12, 5),  # in random order
    ):
        assert dataset.limited(limit, seed) == slice(limit)
    assert list(sorted_classes.as_recorded("", earlier=True).limited(12, 5)) == list(chosen)


def test_npy_of_a_wrong_size_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "images.npy"
    np.save(path, ZEROS)
    good = path.read_bytes()
    for content, message in (
        (good[:-1], r"size for shape \(4, 3, 3\) and dtype float32: expected 272 bytes, found 271 bytes"),
        (good + b"\0", "size for .* expected 272 bytes, found 273 bytes"),
        (
            good.replace(b"(4, 3, 3)", b"(4, 3, 9000000000000)"),
            "size for .*: expected 432000000000128 bytes, found 284 bytes",
        ),
        (good.replace(b"(4, 3, 3)", b"(-4, -3, 3)"), "cannot be read|expected"),
        (good.replace(b"NUMPY\1", b"NUMPY\3"), "npy version: expected 1.0 or 2.0, found 3.0"),
        (b"", "cannot be read"),
        (b"\x80\4N.", "cannot be read"),  # a pickle
        (good[:30], "cannot be read"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"^{path}: array: {message}"):
            load_dataset(path)


NPZ_FAULTS = {
    "no images": ({"a": ZEROS[0], "b": SEVEN}, r"arrays: expected train_images or x_train, .* found a, b$"),
    "two arrays": ({"a": ZEROS, "b": ZEROS}, r"arrays: .* or a single array of images, found a, b$"),
    "only test images": ({"x_test": ZEROS}, r"arrays: expected train_images or x_train, .* found x_test"),
    "nothing": ({}, "arrays: .* found none"),
    "both names": (
        {"x_train": ZEROS, "train_images": ZEROS},
        r"arrays: .* x_train, once, .* found x_train, train_images",
    ),
    "test shape": (
        {"x_train": ZEROS, "x_test": ZEROS[:, 1:]},
        r"test images: kind: expected float32 of shape \(3, 3, 1\) like the training images, found .* \(2, 3, 1\)",
    ),
    "test dtype": ({"x_train": ZEROS, "x_test": BYTES}, r"test images: kind: expected float32 of .* found uint8"),
    "test values": ({"x_train": ZEROS, "x_test": ZEROS - 1}, r"x_test: values: expected floats in \[0, 1\]"),
    "long names": ({"a" * 200 + str(i): ZEROS for i in range(9)}, "arrays: .* found a{40}, a{40}, a{40} and 6 more$"),
}


@pytest.mark.parametrize("case", NPZ_FAULTS)
def test_npz_faults(tmp_path: Path, case: str) -> None:
    arrays, message = NPZ_FAULTS[case]
    with pytest.raises(DataError, match=f"^{tmp_path / 'own.npz'}: {message}") as caught:
        own(tmp_path, **arrays)
    assert len(str(caught.value).replace(str(tmp_path), "")) < 250


@pytest.mark.parametrize("save", [np.save, np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_loading_takes_the_memory_of_the_data_once(tmp_path: Path, monkeypatch, save, order: str, dtype) -> None:
    path = tmp_path / ("x.npy" if save is np.save else "x.npz")
    images = np.zeros((4000, 40, 5), dtype, order=order)
    save(path, images)
    monkeypatch.setattr(own_arrays, "CHUNK", 10_000)
    images = images.astype(np.float32 if dtype == np.float64 else dtype)
    tracemalloc.start()
    try:
        load_dataset(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < images.nbytes + 600_000


def test_a_folder_takes_at_most_a_third_more_than_its_pictures(tmp_path: Path) -> None:
    from PIL import Image

    for number in range(12):  # the last one is coloured
        Image.new("RGB" if number == 11 else "L", (300, 300)).save(tmp_path / f"{number:02}.bmp")
    load_dataset(tmp_path)  # imports
    tracemalloc.start()
    try:
        images = load_dataset(tmp_path).train_images
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.34 * images.nbytes * 12 / 10 + 1_000_000


def test_special_files_are_refused_and_not_waited_for(tmp_path: Path) -> None:
    for suffix in (".npy", ".npz"):
        os.mkfifo(tmp_path / f"pipe{suffix}")
        (tmp_path / f"zeros{suffix}").symlink_to("/dev/zero")
        for name in ("pipe", "zeros"):
            with pytest.raises(DataError, match=f"{name}{suffix}: kind: expected a file, found a special file"):
                load_dataset(tmp_path / f"{name}{suffix}")


def test_a_long_npy_header_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "images.npy"
    path.write_bytes(b"\x93NUMPY\2\0" + struct.pack("<I", 100_000_000))
    os.truncate(path, 200_000_000)  # a hole, which takes no room on the disk
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=f"^{path}: array: cannot be read"):
            load_dataset(path)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_no_memory_for_an_array_is_an_error_with_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 18.6 GiB")

    np.save(tmp_path / "images.npy", ZEROS)
    monkeypatch.setattr(np, "empty", refuse)
    with pytest.raises(DataError, match=r"images.npy: array: cannot be read: Unable to allocate 18.6 GiB"):
        load_dataset(tmp_path / "images.npy")


@pytest.mark.parametrize("label", [10_000, 10**9, 2**62])
def test_a_label_too_large_for_a_class_is_refused(tmp_path: Path, label: int) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, x_train=ZEROS, y_train=np.array([0, 1, 2, label]))
    dataset = load_dataset(path)  # as labels of points they may be any numbers
    with pytest.raises(DataError, match=f"^{path}: labels: expected 0 to 9999 .*, found {label}; number"):
        print(dataset.classes)
    np.savez(path, x_train=ZEROS, y_train=np.array([0, 1, 2, 9999]))
    assert load_dataset(path).classes == 10_000


def test_npz_bombs_and_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "set.npz"
    np.savez_compressed(path, x_train=np.zeros((100, 100, 100), np.uint8))
    good = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(own_arrays, "MAX_BYTES", 100_000)
        with pytest.raises(DataError, match=r"x_train: decompressed size: expected at most 100000 bytes, found 10001"):
            load_dataset(path)
        np.savez(path, x_train=np.zeros((100, 100, 100), np.uint8))
        assert load_dataset(path).train_images.shape == (90, 100, 100, 1)  # stored as it is: the file is as long
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((3, 2, 2), np.uint8))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:  # a small header before much
        archive.writestr("x_train.npy", buffer.getvalue() + bytes(10_000_000))
    with pytest.raises(DataError, match=r"x_train: size for shape \(3, 2, 2\) and dtype uint8: expected 140 bytes"):
        load_dataset(path)
    np.savez(path, x_train=np.full((100, 100, 100), 200, np.uint8))
    path.write_bytes(flipped(path.read_bytes(), 500_000))  # one pixel
    with pytest.raises(DataError, match=r"x_train: cannot be read: Bad CRC-32"):
        load_dataset(path)
    draw = np.random.Generator(np.random.PCG64(0))
    seen = 0
    for _ in range(200):
        position = int(draw.integers(len(good)))
        path.write_bytes(flipped(good, position) if draw.random() < 0.5 else good[:position])
        try:
            load_dataset(path)
        except DataError as error:
            seen += str(path) in str(error)
    assert seen > 150


def test_no_pickle_is_ever_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    def trap(*_: object, **__: object) -> None:
        raise AssertionError("unpickling")

    monkeypatch.setattr(pickle, "load", trap)
    monkeypatch.setattr(pickle, "loads", trap)
    np.save(tmp_path / "objects.npy", np.array([{}, {}]), allow_pickle=True)
    (tmp_path / "pickle.npy").write_bytes(b"\x80\4N.")
    (tmp_path / "pickle.npz").write_bytes(b"\x80\4N.")
    for name in ("objects.npy", "pickle.npy", "pickle.npz"):
        with pytest.raises(DataError):
            load_dataset(tmp_path / name)


@pytest.mark.parametrize(("size", "shape"), [(8, (8, 8)), ([8], (8, 8)), ((10, 8), (10, 8)), ((8, 20), (8, 20))])
@pytest.mark.parametrize("kind", ["folder", "bytes", "floats", "parquet"])
def test_images_are_resized_by_the_short_side_and_cropped_in_the_centre(tmp_path: Path, kind: str, size, shape) -> None:
    """Of a ramp: each pixel is the mean of the square that it covers."""
    ramp = np.add.outer(2 * np.arange(80), np.arange(60)).astype(np.uint8)
    path = tmp_path / "x.npy"
    if kind == "folder":
        path = put_files(tmp_path / "x", {f"{number}.png": encoded(ramp, "png") for number in range(4)})
    elif kind == "parquet":
        path = write_parquet(tmp_path / "x.parquet", image=[encoded(ramp, "png")] * 4)
    else:
        np.save(path, np.stack([ramp] * 4) / np.float32(255) if kind == "floats" else np.stack([ramp] * 4))
    dataset = load_dataset(path, image_size=size)
    scale = min(80 / shape[0], 60 / shape[1])  # pixels of the file to one of the result
    middles = (
        (full - scale * side) / 2 + scale * (np.arange(side) + 0.5) - 0.5
        for full, side in zip((80, 60), shape, strict=True)
    )
    wanted = np.add.outer(2 * next(middles), next(middles))
    assert (dataset.train_images.shape, dataset.train_images.dtype) == ((3, *shape, 1), np.uint8)
    assert np.abs(dataset.train_images[0, ..., 0] - wanted)[1:-1, 1:-1].max() < 1.01
    assert f"resized and cropped to {shape[1]} x {shape[0]}" in dataset.source
    assert dataset.reading.image_size == shape
    assert np.array_equal(load_dataset(path, image_size=(80, 60)).train_images, load_dataset(path).train_images)


def put_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_images_turn_grey_as_the_eye_sees_them_and_grey_ones_coloured(tmp_path: Path) -> None:
    colours = np.zeros((4, 6, 6, 3), np.uint8) + np.uint8([200, 100, 50])
    np.save(tmp_path / "bytes.npy", colours)
    np.save(tmp_path / "floats.npy", (colours / 255).astype(np.float32))
    put_files(tmp_path / "folder", {f"{number}.png": encoded(colours[0], "png") for number in range(4)})
    for name in ("bytes.npy", "floats.npy", "folder"):
        grey = load_dataset(tmp_path / name, grayscale=True).train_images
        assert grey.shape[1:] == (6, 6, 1)
        assert np.allclose(grey, 0.299 * 200 + 0.587 * 100 + 0.114 * 50, atol=0.6)
        assert "grey" in load_dataset(tmp_path / name, grayscale=True).source
    np.save(tmp_path / "grey.npy", colours[..., 0])
    assert load_dataset(tmp_path / "grey.npy", grayscale=False).train_images.shape[1:] == (6, 6, 3)
    np.save(tmp_path / "many.npy", np.zeros((9, 8, 8, 6), np.uint8) + 200)
    with pytest.raises(DataError, match="channels: expected 1 or 3, to resize or recolour them, found 6"):
        load_dataset(tmp_path / "many.npy", grayscale=True)


@pytest.mark.parametrize("kind", ["png", "ppm", "tiff"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path, kind: str) -> None:
    deep = np.linspace(0, 65535, 24).reshape(4, 6).astype(np.uint16)
    dataset = load_dataset(put_files(tmp_path, {f"{name}.{kind}": encoded(deep, kind) for name in "ab"}))
    assert np.array_equal(dataset.train_images[0, ..., 0], np.rint(deep / 257))
    assert dataset.source.endswith("; 16 bits in 2 of them scaled to 8")


def test_pictures_of_several_sizes_are_counted_and_the_advice_helps(tmp_path: Path) -> None:
    sizes = [(140, 130)] * 5 + [(30, 40)] * 2 + [(50, 20)]
    files = {f"{i}.png": encoded(np.full((*size, 3), i, np.uint8), "png") for i, size in enumerate(sizes)}
    put_files(tmp_path, {**files, "8.png": PNG[:-20]})
    found = (
        "expected one size, found 3: 3 of 8 are not 130 x 140 .5.png, 6.png.; --image-size (64) resizes and crops all"
    )
    with pytest.raises(DataError, match=found + "; 1 cannot be read .8.png.$") as caught:
        load_dataset(tmp_path)
    size = int(re.search(r"--image-size (\d+)", str(caught.value))[1])
    assert load_dataset(tmp_path, image_size=size, skip_broken=True).train_images.shape == (7, size, size, 3)
    with pytest.raises(DataError, match=found.replace("5.png, 6.png", "row 6, row 7")):
        load_dataset(write_parquet(tmp_path / "x.parquet", image=list(files.values())))


def test_a_folder_that_takes_more_than_the_free_memory_is_refused_at_once(tmp_path: Path, monkeypatch) -> None:
    put_files(tmp_path, {f"{name}.png": encoded(np.zeros((90, 80), np.uint8), "png") for name in "ab"})
    monkeypatch.setattr(own_images, "MAX_BYTES", 1000)
    monkeypatch.setattr(own_images, "free_memory", lambda: 14_399)
    with pytest.raises(
        DataError, match=r"memory for 2 pictures of 80 x 90: expected 0.0 GiB, .*; give --image-size 64$"
    ):
        load_dataset(tmp_path)
    monkeypatch.setattr(own_images, "free_memory", lambda: 14_400)
    load_dataset(tmp_path)


def test_broken_files_are_left_out_as_if_they_were_not_there(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{kind}/{number:02}.png" for kind in "ab" for number in range(9)))
    broken = {"a/03.png": b"", "b/04.png": PNG[:-20], "c/x.png": b"text", "a/d.gif": several("gif")}
    put_files(tmp_path, broken)
    with pytest.raises(DataError, match=r"4 of 20 pictures cannot be read \(03.png, d.gif, .*--skip-broken$"):
        load_dataset(tmp_path)
    dataset = load_dataset(tmp_path, skip_broken=True)
    assert "left out because they cannot be read: 4 (03.png, 04.png, d.gif and 1 more)" in dataset.source
    assert dataset.class_names == ("a", "b")
    for name in broken:
        (tmp_path / name).unlink()
    assert load_dataset(tmp_path).content_hash == dataset.content_hash
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"at least 2 images, found 0; left out .*: 16"):
        load_dataset(tmp_path, skip_broken=True)


def test_a_folder_of_test_images_is_the_one_that_is_named(tmp_path: Path) -> None:
    fill(tmp_path / "x", *(f"{kind}/{number}.png" for kind in "ab" for number in range(4)))
    kept = fill(tmp_path / "x" / "kept", "a/y.png", "b/z.png", "b/w.png")
    fill(tmp_path / "y", *TRAIN, "test/1.png")
    np.savez(tmp_path / "a.npz", images=PICTURES, labels=SEVEN)
    np.savez(tmp_path / "b.npz", x_train=PICTURES, x_test=PICTURES[:4])
    for name, test, train, said in (
        ("x", kept, 8, "; classes: a, b; the test images are from"),  # in the data set, and not taken for a class
        ("y", kept, 3, f"not used: {tmp_path / 'y' / 'test'}"),
        ("a.npz", tmp_path / "b.npz", 5, "the test images are from"),
    ):
        dataset = load_dataset(tmp_path / name, test_dir=test)
        assert (len(dataset.train_images), len(dataset.test_images)) == (train, 4 if name == "a.npz" else 3)
        assert said in dataset.source
    assert list(dataset.train_labels) == list(SEVEN)
    for wrong in (tmp_path / "a.npz", tmp_path / "nowhere"):
        with pytest.raises(DataError, match=f"^{wrong}: (Not a directory|No such file or directory)"):
            load_dataset(tmp_path / "y", test_dir=wrong)
    with pytest.raises(DataError, match="mnist has test images of its own; leave out --test-dir"):
        load_dataset("mnist", test_dir=tmp_path)


@pytest.mark.parametrize("size", [0, (8, 8, 8), 5000, "large", True, ()])
def test_sizes_that_images_cannot_have(size) -> None:
    with pytest.raises(DataError, match=r"image size is .*but must be one or two numbers from 1 to 4096"):
        load_dataset("fashion-mnist-sample", image_size=size)


OTHERS = {  # a file in place of a data set; what helps
    "x.zip": "is an archive; unpack it and give the folder$",
    "x.tar.gz": "is an archive; unpack it and give the folder$",
    "face": "is one picture; give its folder, or generate --image reconstructs it$",
    "x.pdf": r"data set: expected auto, .* or a file of arrays \(.npy .npz .csv .* found another kind of file$",
}


@pytest.mark.parametrize("name", OTHERS)
def test_files_that_are_no_data_set(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / name).write_bytes(PNG if name == "face" else b"text")
    with pytest.raises(DataError, match=f"^{tmp_path / name}: {OTHERS[name]}"):
        load_dataset(f"~/{name}")


# ------------------------------------------------------------------------------------ tables, HDF5 and parquet

ROWS = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (12, 6, 6), np.uint8)
NUMBERS = np.arange(12) % 5
FLAT = ROWS.reshape(12, 36)
FIRST = np.column_stack([NUMBERS, FLAT])
HEADER = ",".join(f"pixel{i}" for i in range(36))


def lines(numbers: np.ndarray, header: str = "", separator: str = ",", end: str = "\n") -> bytes:
    rows = [separator.join(f"{x:g}" for x in row) for row in numbers]
    return end.join(([header] if header else []) + rows + [""]).encode()


CSV = {  # a file; whether it has labels, what the source says
    "label first": (lines(FIRST, f"label,{HEADER}"), True, "labels from the column label"),
    "label last": (lines(np.roll(FIRST, -1, axis=1), f"{HEADER},Class"), True, "labels from the column Class"),
    "no header": (lines(FIRST), True, "images of 6 x 6; labels from the column 1"),
    "no labels": (lines(FLAT, HEADER), False, "images of 6 x 6$"),
    "numbers alone": (lines(FLAT), False, "rows of 36 numbers taken as images of 6 x 6$"),
    "an index": (lines(np.column_stack([NUMBERS, FIRST]), f",label,{HEADER}"), True, "columns not used: ;"),
    "an id": (lines(FIRST, f"id,{HEADER}"), False, "columns not used: id$"),
    "names unknown": (lines(FIRST, ",".join(f"c{i}" for i in range(37))), True, "labels from the column c0"),
    "quotes": (lines(FIRST, f'"label",{HEADER}', end="\r\n").replace(b"\n0,", b'\n"0",'), True, "column label"),
    "a mark of the bytes' order": (b"\xef\xbb\xbf" + lines(FIRST, f"label,{HEADER}"), True, "column label"),
    "semicolons": (lines(FIRST, separator=";"), True, ""),
    "tabs and blank lines": (lines(FIRST, separator="\t", end="\n\n"), True, ""),
    "floats": (lines(np.column_stack([NUMBERS, FLAT / 255]), f"label,{HEADER}"), True, ""),
    "gzip": (gzip.compress(lines(FIRST, f"label,{HEADER}")), True, ""),
    "text": (lines(FLAT, HEADER + ",y").replace(b"\n", b",a\n").replace(b"y,a", b"y"), False, "no labels: .*'a' to"),
}


@pytest.mark.parametrize("case", CSV)
def test_csv(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content, labels, said = CSV[case]
    path = tmp_path / ("x.csv.gz" if case == "gzip" else "x.csv")
    path.write_bytes(content)
    train, _ = shuffled(12, NUMBERS if labels else None)
    for chunk in (idx_module.CHUNK, 500):
        monkeypatch.setattr(own_arrays, "CHUNK", chunk)
        dataset = load_dataset(path)
        assert dataset.train_images.dtype == (np.float32 if case == "floats" else np.uint8)
        wanted = ROWS / 255 if case == "floats" else ROWS
        assert np.allclose(dataset.train_images[..., 0], wanted[train], atol=1e-5)
        assert (list(NUMBERS[train]) if labels else None) == (list(dataset.train_labels) if labels else None)
        assert labels or dataset.train_labels is None
        assert re.search(said, dataset.source)


CSV_FAULTS = {
    "empty": (b"", "columns: expected the pixels of square images, 784 for example, and one of labels, found 0;"),
    "of other things": (b"name,age\nAnn,7\n", "columns: expected the pixels of square images, .* found 2; save other"),
    "of oblong images": (lines(FLAT[:, :30]), "columns: .* found 30; save other images as .npy of shape"),
    "a word": (lines(FIRST) + b"1," + b"x," * 35 + b"1\n", "cannot be read: could not convert string 'x' to int32"),
    "ragged": (lines(FIRST) + b"1,2\n", "cannot be read: .*row 13.*; rows are counted from number 1 on"),
    "too bright": (lines(FIRST + 300), "values: expected whole numbers from 0 to 255, found 300 to"),
    "damaged gzip": (gzip.compress(lines(FIRST))[:-9], "cannot be read"),
}


@pytest.mark.parametrize("case", CSV_FAULTS)
def test_csv_faults(tmp_path: Path, case: str) -> None:
    content, said = CSV_FAULTS[case]
    path = tmp_path / ("x.csv.gz" if "gzip" in case else "x.csv")
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"^{path}: {said}"):
        load_dataset(path)


def test_training_and_test_files_belong_together(tmp_path: Path) -> None:
    """In a folder, and beside each other; files that are neither are left alone."""
    files = {f"fashion-mnist_{part}.csv": lines(FIRST[:count], f"label,{HEADER}") for part, count in SPLIT.items()}
    place = put_files(tmp_path / "set", {**files, "sample_submission.csv": b"id,label\n1,2\n"})
    arrays = {"x_train": ROWS, "y_train": NUMBERS, "x_test": ROWS[:5], "y_test": NUMBERS[:5]}
    folder = put_files(tmp_path / "numpy", {})
    folder.mkdir()
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    for path in (place, place / "fashion-mnist_train.csv", folder):
        assert same(load_dataset(path), dict(zip(collections.SIZES, arrays.values(), strict=True)))
    assert load_dataset(place / "fashion-mnist_test.csv").train_images.shape == (4, 6, 6, 1)
    put_files(place, {"old_train.csv": lines(FIRST)})
    with pytest.raises(DataError, match="files: expected one of training and one of test images, found fashion"):
        load_dataset(place)


SPLIT = {"train": 12, "test": 5}


@pytest.mark.parametrize("options", [{}, {"chunks": (5, 3, 6, 1), "compression": "gzip"}])
def test_hdf5(tmp_path: Path, options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "x.h5"
    for images, labels, test in (("x_train", "y_train", "x_test"), ("data/images", "data/labels", "")):
        with h5py.File(path, "w") as file:
            file.create_dataset(images, data=ROWS[..., None], **options)
            file[labels] = NUMBERS[:, None]
            if test:
                file[test] = ROWS[:3, ..., None]
        rows = range(12) if test else shuffled(12, NUMBERS)[0]
        for chunk in (idx_module.CHUNK, 50):
            monkeypatch.setattr(own_arrays, "CHUNK", chunk)
            dataset = load_dataset(path)
            assert np.array_equal(dataset.train_images[..., 0], ROWS[rows])
            assert list(dataset.train_labels) == list(NUMBERS[rows])
    with h5py.File(tmp_path / "v7.3.mat", "w") as file:  # MATLAB's arrays are in Fortran's order
        file["X"] = ROWS.T
        file["X"].attrs["MATLAB_class"] = np.bytes_("uint8")
    assert np.array_equal(load_dataset(tmp_path / "v7.3.mat").train_images[..., 0], ROWS[shuffled(12)[0]])
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("x_train", h5py.VirtualLayout((4, 6, 6), np.uint8))
    with pytest.raises(DataError, match="x_train: content: expected the numbers themselves, found a reference"):
        load_dataset(path)
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (1 << 20, 64, 64), np.uint8, chunks=True)  # nothing is written
    with pytest.raises(DataError, match="x: decompressed size: expected at most 1073741824 bytes, found 4294967296"):
        load_dataset(path)
    path.write_bytes(b"text")
    with pytest.raises(DataError, match=f"^{path}: format: expected HDF5 .of MATLAB files that of save -v7.3., found"):
        load_dataset(path)


def write_parquet(path: Path, **columns: list) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pa.table(columns), path)
    return path


def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = {f"p{i}": FLAT[:, i].tolist() for i in range(36)}
    files = [{"bytes": encoded(row, "png"), "path": None} for row in ROWS]
    train, path, folder = shuffled(12, NUMBERS)[0], tmp_path / "x.parquet", tmp_path / "hub" / "data"
    for columns in (
        {**pixels, "label": NUMBERS.tolist(), "name": list("abcdefghijkl")},
        {"image": files, "label": NUMBERS.tolist()},
        {"fine_label": NUMBERS.tolist(), "img": [file["bytes"] for file in files]},
    ):
        write_parquet(path, **columns)
        for chunk in (idx_module.CHUNK, 50):
            monkeypatch.setattr(own_arrays, "CHUNK", chunk)
            dataset = load_dataset(path)
            assert np.array_equal(dataset.train_images[..., 0], ROWS[train])
            assert list(dataset.train_labels) == list(NUMBERS[train])
    files[5] = {"bytes": encoded(np.full((6, 6, 3), 9, np.uint8), "png")}  # one in colour makes all coloured
    assert load_dataset(write_parquet(path, image=files)).train_images.shape == (11, 6, 6, 3)
    for name, rows in (("train-00000-of-00002", slice(7)), ("train-00001-of-00002", slice(7, 12)), ("test", slice(3))):
        write_parquet(folder / f"{name}.parquet", image=files[rows], label=NUMBERS[rows].tolist())
    dataset = load_dataset(folder.parent, grayscale=True)
    assert (list(dataset.train_labels), list(dataset.test_labels)) == (list(NUMBERS), list(NUMBERS[:3]))
    files[4] = {"bytes": PNG[:-20]}
    with pytest.raises(DataError, match=r"x.parquet: row 5: .*; repair or remove the file$"):
        load_dataset(write_parquet(path, image=files))


@pytest.mark.parametrize("kind", ["csv", "h5", "parquet"])
def test_loading_a_table_takes_the_memory_of_the_images_once(tmp_path: Path, monkeypatch, kind: str) -> None:
    path, images = tmp_path / f"x.{kind}", np.full((20_000, 64), 200, np.uint8)
    if kind == "csv":
        path.write_bytes((",".join(["200"] * 64) + "\n").encode() * 20_000)
    elif kind == "h5":
        with pytest.importorskip("h5py").File(path, "w") as file:
            file["x"] = images
    else:
        write_parquet(path, **{f"p{i}": images[:, i] for i in range(64)})
    monkeypatch.setattr(own_arrays, "CHUNK", 10_000)
    tracemalloc.start()
    try:
        load_dataset(path)
        assert tracemalloc.get_traced_memory()[1] < images.nbytes + 900_000
    finally:
        tracemalloc.stop()


def test_the_folder_of_a_run_holds_no_images(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(DataError, match="expected images, found a run of this project; --model-dir or --init-from"):
        load_dataset(tmp_path)


def test_nothing_is_downloaded_among_pictures(tmp_path: Path) -> None:
    """--data-dir is easily taken for --dataset."""
    from PIL import Image

    Image.new("L", (8, 8)).save(tmp_path / "1.png")
    for name in ("auto", "fashion-mnist"):
        with pytest.raises(DataError, match="found pictures; for images of your own use --dataset"):
            load_dataset(name, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["1.png"]


@pytest.mark.parametrize(("name", "library"), [("x.h5", "h5py"), ("x.parquet", "pyarrow")])
def test_a_library_that_is_not_installed_is_named(tmp_path: Path, monkeypatch, name: str, library: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=rf'{name}: needs {library}, which is not installed: pip install "\.\[data\]"'):
        load_dataset(tmp_path / name)


if __name__ == "__main__":
    make_sample()
