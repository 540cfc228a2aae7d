"""Tests of autoencoders/data.py. `python tests/test_data.py` writes the embedded sample anew from the full set."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import http.server
import io
import json
import os
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

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from autoencoders import data
from autoencoders.data import DataError, Dataset, load_dataset, read_idx

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
    return dict(zip(data.SIZES, (*train, *test), strict=True))


def make_sample() -> None:
    for file, array in sample_of(load_dataset("fashion-mnist")).items():
        (data.SAMPLE_FOLDER / f"{file}.gz").write_bytes(gzip.compress(idx(array), 9, mtime=0))


# ------------------------------------------------------------------------------------------ a small set, its hashes


def small_arrays(seed: int) -> dict[str, np.ndarray]:
    draw = np.random.Generator(np.random.PCG64(seed))
    shapes = ((20, 4, 4), (20,), (10, 4, 4), (10,))
    return {file: draw.integers(0, 10, shape, np.uint8) for file, shape in zip(data.SIZES, shapes, strict=True)}


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
    monkeypatch.setattr(data, "SYSTEM_FOLDER", tmp_path / "system")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    for name, arrays in (("fashion-mnist", FASHION), ("mnist", DIGITS)):
        small = dataclasses.replace(data.COLLECTIONS[name], sha256=digests(arrays), mirrors=())
        monkeypatch.setitem(data.COLLECTIONS, name, small)
    return tmp_path


def same(dataset: Dataset, arrays: dict[str, np.ndarray]) -> bool:
    mine = (dataset.train_images[..., 0], dataset.train_labels, dataset.test_images[..., 0], dataset.test_labels)
    return all(np.array_equal(one, other) for one, other in zip(mine, arrays.values(), strict=True))


def leftovers(folder: Path) -> list[str]:
    """Files under `folder` that are not one of the four by name."""
    good = {f"{file}{suffix}" for file in data.SIZES for suffix in ("", ".gz")}
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
    array = np.random.Generator(np.random.PCG64(0)).integers(0, 256, 2 * data.CHUNK + 1, np.uint8)
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
    header = struct.pack(">BBBBI", 0, 0, 8, 1, data.MAX_BYTES - 8)
    for content in (header, header + bytes(1000), gzip.compress(header + bytes(1000))):
        path.write_bytes(content)  # announces 1 GiB, holds little
        assert peak_memory(path) < 4_000_000


def test_read_idx_cap_is_inclusive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(GOOD)
    monkeypatch.setattr(data, "MAX_BYTES", len(GOOD))
    read_idx(path)
    monkeypatch.setattr(data, "MAX_BYTES", len(GOOD) - 1)
    with pytest.raises(DataError, match=f"at most {len(GOOD) - 1} bytes, found {len(GOOD)} bytes"):
        read_idx(path)


def test_read_idx_of_what_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=f"{tmp_path}: kind: expected a file, found a folder"):
        read_idx(tmp_path)
    with pytest.raises(DataError, match=r"nothing: No such file"):
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
    put(world / "cache" / "fashion-mnist", FASHION | {data.TEST_LABELS: DIGITS[data.TEST_LABELS]})
    put(world / "system", FASHION)
    dataset = load_dataset("fashion-mnist", download=False)
    assert same(dataset, FASHION)
    assert dataset.source.startswith(f"Fashion-MNIST from {world / 'system'} (skipped: {world / 'environment'}")
    assert f"{world / 'cache' / 'fashion-mnist' / data.TEST_LABELS}.gz: SHA-256" in dataset.source
    assert dataset.source.count("this is a file of MNIST digits, not Fashion-MNIST's") == 5


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("name", ["fashion-mnist", "auto"])
def test_wrong_file_in_the_folder_asked_for_is_an_error(world: Path, name: str, suffix: str) -> None:
    file = data.TRAIN_LABELS
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
    (folder / f"{data.TEST_LABELS}.gz").write_bytes(gzip.compress(idx(np.zeros(10_001, np.uint8))))
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
    changed = dataclasses.replace(data.COLLECTIONS[name], mirrors=tuple(mirrors))
    monkeypatch.setitem(data.COLLECTIONS, name, changed)
    return mirrors


@pytest.mark.parametrize(("name", "arrays"), [("fashion-mnist", FASHION), ("mnist", DIGITS)])
def test_download_into_the_cache_happens_once(world: Path, server, monkeypatch, name: str, arrays) -> None:
    (mirror,) = offer(server, monkeypatch, name, arrays)
    dataset = load_dataset(name)
    folder = world / "cache" / name
    assert same(dataset, arrays)
    assert f"downloaded from {mirror}, now in {folder}" in dataset.source
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{file}.gz" for file in data.SIZES)
    assert len(server.asked) == 4
    again = load_dataset(name)
    assert len(server.asked) == 4
    assert again.content_hash == dataset.content_hash
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in folder.iterdir())


def test_download_into_the_folder_asked_for_and_only_what_is_missing(world: Path, server, monkeypatch) -> None:
    offer(server, monkeypatch, "fashion-mnist", FASHION)
    folder = put(world / "explicit", {file: FASHION[file] for file in (data.TRAIN_IMAGES, data.TEST_LABELS)}, "")
    assert same(load_dataset("auto", folder), FASHION)
    assert server.asked == [f"/0/{data.TRAIN_LABELS}.gz", f"/0/{data.TEST_IMAGES}.gz"]
    assert (folder / f"{data.TEST_IMAGES}.gz").is_file()
    offer(server, monkeypatch, "mnist", DIGITS)
    assert same(load_dataset("mnist", world / "new" / "folder"), DIGITS)
    assert (world / "new" / "folder" / "mnist" / f"{data.TEST_IMAGES}.gz").is_file()
    assert not (world / "cache").exists()


def test_wrong_file_in_the_cache_is_downloaded_again(world: Path, server, monkeypatch) -> None:
    offer(server, monkeypatch, "fashion-mnist", FASHION)
    bad = put(world / "cache" / "fashion-mnist", FASHION) / f"{data.TEST_IMAGES}.gz"
    bad.write_bytes(bad.read_bytes()[:-9])
    dataset = load_dataset("fashion-mnist")
    assert same(dataset, FASHION)
    assert f"skipped: {bad}: gzip stream" in dataset.source
    assert server.asked == [f"/0/{data.TEST_IMAGES}.gz"]
    assert np.array_equal(read_idx(bad), FASHION[data.TEST_IMAGES])


FILE = data.TEST_IMAGES
PACKED_FILE = gzip.compress(idx(FASHION[FILE]))
BAD_ANSWERS = {
    "missing": (None, "404"),
    "other content": (gzip.compress(idx(DIGITS[FILE])), "SHA-256 of the decompressed content"),
    "a page": (b"<html>log in</html>", "magic number"),
    "cut short": (PACKED_FILE[:-5], "truncated"),
    "connection lost": ((len(PACKED_FILE), PACKED_FILE[:-5]), "IncompleteRead|truncated"),
    "trailing member": (PACKED_FILE * 2, "after the gzip stream"),
    "too long": (PACKED_FILE + bytes(data.SIZES[FILE] + data.CHUNK), "size: expected at most"),
    "too long, unannounced": ((None, PACKED_FILE + bytes(2 * data.SIZES[FILE])), "size: expected at most"),
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
    from_second = [f"/1/{FILE}.gz", f"/1/{data.TEST_LABELS}.gz"]
    # What the first mirror gave and was right was kept from the first time.
    assert server.asked == [f"/0/{FILE}.gz", *from_second]
    server.asked.clear()
    assert same(load_dataset("fashion-mnist", world / "new"), FASHION)
    assert server.asked == [*(f"/0/{file}.gz" for file in list(data.SIZES)[:3]), *from_second]


def test_a_silent_mirror_costs_a_bounded_time(world: Path, server, monkeypatch) -> None:
    monkeypatch.setattr(data, "MIRROR_SECONDS", 0.3)
    (good,) = offer(server, monkeypatch, "fashion-mnist", FASHION)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        mirrors = [f"http://127.0.0.1:{silent.getsockname()[1]}/", good]
        changed = dataclasses.replace(data.COLLECTIONS["fashion-mnist"], mirrors=tuple(mirrors))
        monkeypatch.setitem(data.COLLECTIONS, "fashion-mnist", changed)
        start = time.monotonic()
        assert same(load_dataset("auto"), FASHION)
        changed = dataclasses.replace(changed, mirrors=(mirrors[0],) * 5)
        monkeypatch.setitem(data.COLLECTIONS, "fashion-mnist", changed)
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
    monkeypatch.setattr(data, "SLOW_SECONDS", 0.5)
    monkeypatch.setattr(data, "SLOW_RATE", 1 << 30)
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

    monkeypatch.setattr(data, "MIRROR_SECONDS", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", hang)
    changed = dataclasses.replace(data.COLLECTIONS["fashion-mnist"], mirrors=("http://a.invalid/", "http://b.invalid/"))
    monkeypatch.setitem(data.COLLECTIONS, "fashion-mnist", changed)
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
            with pytest.raises(DataError, match=f"^{world / 'cache'}.*{data.TRAIN_IMAGES}.gz: No space left on device"):
                load_dataset("fashion-mnist")
        assert list((world / "cache" / "fashion-mnist").iterdir()) == []
    import pooch

    def full_disk(self: object, url: str, output: str, pooch: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", full_disk)
    with pytest.raises(DataError, match=f"^{world / 'cache'}.*{data.TRAIN_IMAGES}.gz: No space left on device"):
        load_dataset("fashion-mnist")
    assert list((world / "cache" / "fashion-mnist").iterdir()) == []


def test_interrupted_download_leaves_nothing(world: Path, server, monkeypatch) -> None:
    offer(server, monkeypatch, "fashion-mnist", FASHION)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "_read_verified", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_dataset("auto")
    assert list((world / "cache" / "fashion-mnist").iterdir()) == []


def test_racing_downloads_and_readers_see_whole_files_only(world: Path, server, monkeypatch) -> None:
    offer(server, monkeypatch, "fashion-mnist", FASHION)
    faults: list[BaseException] = []
    done = threading.Event()
    target = world / "cache" / "fashion-mnist" / f"{data.TRAIN_IMAGES}.gz"

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
    other = gzip.compress(idx(DIGITS[list(data.SIZES)[position % 4]]))

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
    monkeypatch.setattr(data, "READ_SECONDS", 2.0)
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
from autoencoders import data
spec = json.load(sys.stdin)
small = dataclasses.replace(data.COLLECTIONS["fashion-mnist"], sha256=spec["sha256"], mirrors=tuple(spec["mirrors"]))
data.COLLECTIONS["fashion-mnist"] = small
print(data.load_dataset("fashion-mnist").content_hash)
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
        assert (data.TRAIN_IMAGES in screen.getvalue()) == (terminal and wanted)


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
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{file}.gz" for file in data.SIZES)
    assert [call[0] for call in calls(world)] == ["apt-get", "dpkg-deb"]
    assert "Dir::Cache=" in (world / "calls").read_text()
    assert load_dataset("auto").source == f"Fashion-MNIST from {folder}"
    assert len(calls(world)) == 2


def test_debian_lists_are_made_privately_where_the_system_has_none(world: Path, apt) -> None:
    apt("no lists", FASHION)
    assert same(load_dataset("fashion-mnist", world / "asked"), FASHION)
    assert (world / "asked" / f"{data.TEST_LABELS}.gz").is_file()
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
        ("lists", {data.TRAIN_IMAGES: FASHION[data.TRAIN_IMAGES]}, "lacks train-labels", 2),
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
    monkeypatch.setattr(data, "APT_SECONDS", 1.0)
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
    assert sum((data.SAMPLE_FOLDER / f"{file}.gz").stat().st_size for file in data.SIZES) <= 3_000_000
    sample = load_dataset("fashion-mnist-sample")
    assert sample.train_images.shape == (CLASSES * SAMPLE_TRAIN, 28, 28, 1)
    assert sample.test_images.shape == (CLASSES * SAMPLE_TEST, 28, 28, 1)
    assert sample.train_images.dtype == sample.test_images.dtype == np.uint8
    assert np.array_equal(np.bincount(sample.train_labels), [SAMPLE_TRAIN] * CLASSES)
    assert np.array_equal(np.bincount(sample.test_labels), [SAMPLE_TEST] * CLASSES)
    assert len(sample.class_names) == CLASSES
    assert list(sample.train_labels[:10]) == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]  # the original's beginning
    assert (data.SAMPLE_FOLDER / "LICENSE").read_text().count("Copyright (c) 2017 Zalando SE, https://tech.zalando.com")


@pytest.fixture
def real_set() -> Dataset:
    try:
        return load_dataset("fashion-mnist", download=False)
    except DataError as error:
        pytest.skip(f"the full set is not here: {error}")


def test_sample_is_part_of_the_real_set(real_set: Dataset) -> None:
    for file, array in sample_of(real_set).items():
        assert np.array_equal(read_idx(data.SAMPLE_FOLDER / f"{file}.gz"), array)


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


def test_flat_folder_of_grey_images(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    pixels = [save(folder / f"{number:02}.png", number) for number in reversed(range(12))][::-1]
    (folder / "notes.txt").write_text("ignored")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    dataset = load_dataset(folder)
    assert np.array_equal(dataset.test_images, np.stack([pixels[0], pixels[10]])[..., None])
    assert np.array_equal(dataset.train_images, np.stack(pixels[1:10] + pixels[11:])[..., None])
    assert dataset.train_labels is None
    assert dataset.test_labels is None
    assert dataset.class_names == ()
    assert f"12 images from the folder {folder}" in dataset.source


def test_one_colour_image_makes_all_colour(tmp_path: Path) -> None:
    grey = save(tmp_path / "a.png", 1)
    colour = save(tmp_path / "b.BMP", 2, (4, 6, 3))
    clear = save(tmp_path / "c.png", 3, (4, 6, 4))
    last = save(tmp_path / "d.png", 4)
    dataset = load_dataset(tmp_path)
    assert np.array_equal(dataset.test_images[0], np.repeat(grey[..., None], 3, axis=2))
    assert np.array_equal(dataset.train_images, np.stack([colour, clear[..., :3], np.stack([last] * 3, axis=2)]))


def test_sub_folders_are_classes(tmp_path: Path) -> None:
    for label, name in enumerate(("cat", "dog")):
        for number in range(11):
            save(tmp_path / name / f"{number:02}.png", 100 * label + number)
    (tmp_path / "empty").mkdir()
    dataset = load_dataset(str(tmp_path))
    assert dataset.class_names == ("cat", "dog")
    assert sorted(dataset.test_labels) == [0, 0, 1]
    assert sorted(dataset.train_labels) == [0] * 9 + [1] * 10
    assert list(dataset.train_labels) != sorted(dataset.train_labels), "not class by class"
    known = {image.tobytes(): label for image, label in zip(dataset.train_images, dataset.train_labels, strict=True)}
    alone = load_dataset(tmp_path / "cat")
    cats = {image.tobytes() for image in (*alone.train_images, *alone.test_images)}
    assert {label for image, label in known.items() if image in cats} == {0}
    assert len(known.keys() & cats) == 9
    assert load_dataset(tmp_path).content_hash == dataset.content_hash, "the same order each time"
    save(tmp_path / "stray.png", 5)
    with pytest.raises(DataError, match=r"content: expected images, or sub-folders .* found both \(stray.png, "):
        load_dataset(tmp_path)


def test_a_class_name_that_is_no_utf8_is_made_printable(tmp_path: Path) -> None:
    for name in (b"cat", b"\xff\xfe"):
        save(tmp_path / os.fsdecode(name) / "a.png", len(name))
    names = load_dataset(tmp_path).class_names
    assert names == ("cat", r"\udcff\udcfe")
    "".join(names).encode()


def test_an_image_of_several_frames_is_refused_and_dropped_transparency_told(tmp_path: Path) -> None:
    from PIL import Image

    frames = [Image.new("L", (4, 5), grey) for grey in (0, 9, 200)]
    for name in "ab":
        Image.new("RGBA", (4, 5), (1, 2, 3, 4)).save(tmp_path / f"{name}.png")
    assert f"{tmp_path}, whose transparency is dropped" in load_dataset(tmp_path).source
    frames[0].save(tmp_path / "c.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=r"c\.gif: frames: expected one, found 3; save each as an image of its own"):
        load_dataset(tmp_path)


def test_folder_faults(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    with pytest.raises(DataError, match=f"{folder}: content: expected at least 2 images .*, found 0"):
        load_dataset(folder)
    save(folder / "a.png", 1)
    with pytest.raises(DataError, match=r"expected at least 2 images .*, found 1"):
        load_dataset(folder)
    save(folder / "c.png", 2, (6, 4))
    save(folder / "b.png", 2, (5, 4))
    with pytest.raises(DataError, match=r"b.png: width and height: .* \(6, 4\) like a.png, found \(4, 5\); resize"):
        load_dataset(folder)
    save(folder / "c.png", 2)
    good = (folder / "c.png").read_bytes()
    for content in (b"", b"text", good[:40], good[:-20], good[:20] + b"\xff" + good[21:], flipped(good, 50)):
        (folder / "b.png").write_bytes(content)
        with pytest.raises(DataError, match=r"b.png: "):
            load_dataset(folder)
    (folder / "b.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n%%EOF\n")
    with pytest.raises(DataError, match=r"b.png: cannot identify"):
        load_dataset(folder)
    put(tmp_path / "set", FASHION)
    with pytest.raises(DataError, match=r"found IDX files \(give the folder as data_dir"):
        load_dataset(tmp_path / "set")


def test_sixteen_bit_images_are_refused(tmp_path: Path) -> None:
    from PIL import Image

    for name in "ab":
        Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / f"{name}.png")
    with pytest.raises(DataError, match=r"a.png: pixels: expected 8 bits for each channel, found Pillow's mode I;16"):
        load_dataset(tmp_path)


def test_decompression_bombs_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    for name in "ab":
        save(tmp_path / f"{name}.png", 1, (10, 10))
    for limit in (60, 40):  # Pillow warns above the limit and refuses above twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(DataError, match=r"a.png: .*decompression bomb"):
            load_dataset(tmp_path)


# --------------------------------------------------------------------------------------------- .npy and .npz


@pytest.mark.parametrize("shape", [(12, 4, 6), (12, 4, 6, 1), (12, 4, 6, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, np.float16, ">f4"])
def test_npy(tmp_path: Path, shape: tuple[int, ...], dtype) -> None:
    draw = np.random.Generator(np.random.PCG64(0))
    images = draw.integers(0, 256, shape, np.uint8) if dtype == np.uint8 else draw.random(shape).astype(dtype)
    path = tmp_path / "images.npy"
    np.save(path, np.asfortranarray(images))
    dataset = load_dataset(path)
    wanted = images.astype(np.uint8 if dtype == np.uint8 else np.float32).reshape(12, 4, 6, -1)
    assert dataset.train_images.dtype == wanted.dtype
    assert np.array_equal(dataset.test_images, wanted[[0, 10]])
    assert np.array_equal(dataset.train_images, np.delete(wanted, [0, 10], axis=0))
    assert dataset.train_images.flags.c_contiguous


def test_npz(tmp_path: Path) -> None:
    images = np.arange(96, dtype=np.uint8).reshape(6, 4, 4)
    path = tmp_path / "set.npz"
    for names in (
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("x_train", "y_train", "x_test", "y_test"),
    ):
        arrays = (images[:4], np.arange(4), images[4:], np.array([7, 8], np.int8))
        np.savez_compressed(path, **dict(zip(names, arrays, strict=True)), other=np.array(["ignored"]))
        dataset = load_dataset(path)
        assert same(dataset, dict(zip(data.SIZES, arrays, strict=True)))
        assert dataset.train_labels.dtype == dataset.test_labels.dtype == np.int64
        assert dataset.class_names == ()
        assert dataset.source == f"4 training and 2 test images from {path}"
    np.savez(path, x_train=images)
    dataset = load_dataset(path)
    assert dataset.train_images.shape == (5, 4, 4, 1)
    assert dataset.train_labels is None


ZEROS = np.zeros((4, 3, 3), np.float32)
NPY_FAULTS = {
    "dtype": (ZEROS.astype(np.int32), r"array: dtype: expected uint8, or floats in \[0, 1\], found int32"),
    "text": (np.array([[["a"]]]), r"array: dtype: expected numbers, found <U1"),
    "objects": (np.array([[[None]]]), r"array: dtype: expected numbers, found object"),
    "complex": (ZEROS.astype(complex), r"array: dtype: expected numbers, found complex128"),
    "flat": (ZEROS.reshape(4, 9), r"array: shape: expected \(N, H, W\) or \(N, H, W, C\), found \(4, 9\)"),
    "deep": (ZEROS.reshape(4, 3, 3, 1, 1), r"array: shape: expected \(N, H, W\) or"),
    "empty": (ZEROS[:0], r"array: shape: expected no empty dimension, found \(0, 3, 3\)"),
    "one": (ZEROS[:1], r"images: expected at least 2, found 1"),
    "NaN": (ZEROS + np.float32(np.nan), r"array: values: expected numbers in \[0, 1\], found NaN"),
    "negative": (ZEROS - np.float32(0.5), r"array: values: expected floats in \[0, 1\], found -0.5 to -0.5"),
    "range": (ZEROS + np.float32(255), r"array: values: expected floats in \[0, 1\], found 255 to 255; divide by 255$"),
    "one image": (ZEROS[0], r"array: shape: expected \(N, H, W\) or .*; one image is no data set$"),
    "channels first": (np.zeros((9, 3, 8, 8), np.uint8), r"array: shape: .* found \(9, 3, 8, 8\); are the channels f"),
    "infinite": (ZEROS + np.float32(np.inf), r"array: values: expected floats in \[0, 1\], found inf to inf"),
}


@pytest.mark.parametrize("case", NPY_FAULTS)
def test_npy_faults(tmp_path: Path, case: str) -> None:
    array, message = NPY_FAULTS[case]
    path = tmp_path / "images.npy"
    np.save(path, array, allow_pickle=True)
    with pytest.raises(DataError, match=f"^{path}: {message}"):
        load_dataset(path)


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
    "no images": ({"images": ZEROS}, r"arrays: expected train_images or x_train, found none of the known names"),
    "only test images": ({"x_test": ZEROS}, r"arrays: expected train_images or x_train, found test_images"),
    "both names": ({"x_train": ZEROS, "train_images": ZEROS}, r"arrays: expected train_images or x_train, found both"),
    "test shape": ({"x_train": ZEROS, "x_test": ZEROS[:, 1:]}, r"test_images: image shape: expected \(3, 3, 1\) like"),
    "test dtype": ({"x_train": ZEROS, "x_test": ZEROS.astype(np.uint8)}, r"test_images: dtype: expected float32 like"),
    "test values": ({"x_train": ZEROS, "x_test": ZEROS - 1}, r"test_images: values: expected floats in \[0, 1\]"),
    "label count": ({"x_train": ZEROS, "y_train": np.arange(3)}, r"train_labels: shape: expected \(4,\), found \(3,\)"),
    "one-hot": ({"x_train": ZEROS, "y_train": np.eye(4, dtype=int)}, r"train_labels: shape: expected \(4,\), found"),
    "label dtype": (
        {"x_train": ZEROS, "y_train": np.zeros(4)},
        r"train_labels: dtype: expected integers, found float64",
    ),
    "negative label": (
        {"x_train": ZEROS, "y_train": -np.arange(4)},
        r"train_labels: values: expected at least 0, found",
    ),
    "objects": ({"x_train": np.array([None, {}])}, r"x_train.npy: dtype: expected numbers, found object"),
}


@pytest.mark.parametrize("case", NPZ_FAULTS)
def test_npz_faults(tmp_path: Path, case: str) -> None:
    arrays, message = NPZ_FAULTS[case]
    path = tmp_path / "set.npz"
    np.savez(path, allow_pickle=True, **arrays)
    with pytest.raises(DataError, match=f"^{path}: {message}"):
        load_dataset(path)


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
    monkeypatch.setattr(np, "load", refuse)
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
        patch.setattr(data, "MAX_BYTES", 100_000)
        with pytest.raises(
            DataError, match=r"x_train.npy: decompressed size: expected at most 100000 bytes, found 10001"
        ):
            load_dataset(path)
        np.savez(path, x_train=np.zeros((100, 100, 100), np.uint8))
        assert load_dataset(path).train_images.shape == (90, 100, 100, 1)  # stored as it is: the file is as long
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((3, 2, 2), np.uint8))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:  # a small header before much
        archive.writestr("x_train.npy", buffer.getvalue() + bytes(10_000_000))
    with pytest.raises(DataError, match=r"x_train.npy: size for shape \(3, 2, 2\) and dtype uint8: expected 140 bytes"):
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


if __name__ == "__main__":
    make_sample()
