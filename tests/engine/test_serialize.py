"""State files: what goes in comes out, every damaged bit is seen, and a failing disk never costs the old file."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import resource
import stat
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from safetensors.numpy import save as save_plain

from minigrad import serialize
from minigrad.serialize import DataError, load_state, save_state, write_atomically

RECORD = {"b": [1, 2.5, None], "a": {"y": "ü", "x": True}}


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    grid = rng.normal(size=(4, 6))
    return {
        "f32": rng.normal(size=(2, 3)).astype("float32"),
        "f64": grid,
        "i64": np.array([-(2**62), 0, 7]),
        "u8": np.arange(256, dtype="uint8"),
        "scalar": np.array(1.5),
        "empty": np.zeros((0, 3), "float32"),
        "transposed": grid.T,
        "strided": grid[::2, ::-3],
        "fortran": np.asfortranarray(grid),
        "nan": np.array([np.nan, -0.0, np.inf], "float32"),
        "bool": np.array([True, False]),
        "broadcast": np.broadcast_to(np.float32(3), (2, 2)),
    }


def small_file(path: Path) -> bytes:
    """A valid file of a few hundred bytes: two tensors that could be mistaken for each other, one empty, one 0-d."""
    same = {"a": np.array([1, 2], "float32"), "b": np.array([3, 4], "float32")}
    save_state(path, {**same, "e": np.zeros((0, 2)), "s": np.array(5, "uint8")}, {"x": [1, "y"]})
    return path.read_bytes()


def header_of(content: bytes) -> dict:
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def with_header(header: dict, body: bytes) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


def body_of(content: bytes) -> bytes:
    return content[8 + int.from_bytes(content[:8], "little") :]


def write_raw(path: Path, text: str, state: dict[str, np.ndarray] | None = None, digest: str | None = None) -> None:
    """A file whose record is `text`; its SHA-256 is right, computed here as the module's docstring tells."""
    state = state or {}
    sha = hashlib.sha256(text.encode())
    for name in sorted(state):
        sha.update(json.dumps([name, state[name].dtype.str, state[name].shape]).encode() + state[name].tobytes())
    path.write_bytes(save_plain(state, metadata={"record": text, "sha256": digest or sha.hexdigest()}))


# ---- round trip ----


def test_arrays_and_record_come_back_exactly(tmp_path):
    given = arrays()
    before = {name: x.tobytes() for name, x in given.items()}
    digest = save_state(tmp_path / "x.safetensors", given, RECORD)
    found, record, same = load_state(str(tmp_path / "x.safetensors"))
    for name, x in given.items():
        assert (found[name].dtype, found[name].shape) == (x.dtype, x.shape), name
    assert {name: x.tobytes() for name, x in found.items()} == before  # NaN and -0.0 included
    assert {name: x.tobytes() for name, x in given.items()} == before
    assert record == {"format": 1, **RECORD}
    assert digest == same
    assert len(digest) == 64
    save_state(tmp_path / "x", {}, {})
    assert load_state(tmp_path / "x")[:2] == ({}, {"format": 1})


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i8"])
def test_foreign_byte_order_is_stored_as_the_same_numbers(tmp_path, dtype):
    save_state(tmp_path / "x", {"a": np.arange(5).astype(dtype)}, {})
    found = load_state(tmp_path / "x")[0]["a"]
    np.testing.assert_array_equal(found, np.arange(5))
    assert found.dtype == np.dtype(dtype).newbyteorder("<")


def test_the_record_is_canonical(tmp_path):
    """The same content gives the same text, digest and bytes, whatever the order in which it was given."""
    a, b = {"p": np.zeros(2), "q": np.ones(3, "float32")}, {"q": np.ones(3, "float32"), "p": np.zeros(2)}
    first = save_state(tmp_path / "x", a, {"k": 1, "j": {"n": 2, "m": (3,)}})
    second = save_state(tmp_path / "y", b, {"j": {"m": [3], "n": 2}, "k": 1})
    assert first == second
    content = (tmp_path / "x").read_bytes()
    assert header_of(content)["__metadata__"]["record"] == '{"format":1,"j":{"m":[3],"n":2},"k":1}'
    assert (tmp_path / "y").read_bytes() == content
    for i in range(20):  # safetensors by itself orders record and SHA-256 by chance
        save_state(tmp_path / "z", {"é" * i: np.ones(i + 1)}, {"i": i})
        once = (tmp_path / "z").read_bytes()
        save_state(tmp_path / "z", {"é" * i: np.ones(i + 1)}, {"i": i})
        assert (tmp_path / "z").read_bytes() == once


def test_the_digest_is_the_documented_one(tmp_path):
    state = {"b": np.arange(6, dtype="float32").reshape(2, 3), "a": np.array(7)}
    digest = save_state(tmp_path / "x", state, {})
    write_raw(tmp_path / "y", '{"format":1}', state, digest)
    assert load_state(tmp_path / "y")[2] == digest
    write_raw(tmp_path / "z", '{"format":1}', state)  # hashed by this test
    assert load_state(tmp_path / "z")[2] == digest


@pytest.mark.parametrize("value", [float("nan"), -float("inf"), object()])
def test_a_record_that_is_no_json_is_refused_and_the_old_file_stays(tmp_path, value):
    save_state(tmp_path / "x", {}, {"good": 1})
    with pytest.raises((TypeError, ValueError), match="JSON"):
        save_state(tmp_path / "x", {}, {"deep": [{"bad": value}]})
    assert load_state(tmp_path / "x")[1]["good"] == 1
    assert os.listdir(tmp_path) == ["x"]


def test_nothing_is_pickled(tmp_path, monkeypatch):
    for name in ("dump", "dumps", "load", "loads"):
        monkeypatch.setattr(pickle, name, None)  # cannot be called
    save_state(tmp_path / "x", arrays(), RECORD)
    load_state(tmp_path / "x")
    assert set(header_of((tmp_path / "x").read_bytes())) == {*arrays(), "__metadata__"}
    for x in (np.array([object()]), np.array(["text"])):  # what only pickle could write
        with pytest.raises(Exception, match=r"[Uu]nknown dtype|unsupported|expected"):
            save_state(tmp_path / "y", {"x": x}, {})
    assert os.listdir(tmp_path) == ["x"]


# ---- damage ----


def content_of(path: Path) -> tuple:
    found, record, digest = load_state(path)
    return {n: (x.dtype, x.shape, x.tobytes()) for n, x in found.items()}, record, digest


def refused(path: Path, content: bytes, match: str = "x: (not a minigrad state file, or )?damaged") -> None:
    path.write_bytes(content)
    with pytest.raises(DataError, match=match):
        load_state(path)


def test_every_flipped_bit_is_seen(tmp_path):
    """Elsewhere the content may be the same; in the tensors' bytes and in the digest each flip must raise."""
    path = tmp_path / "x"
    content = small_file(path)
    expected = content_of(path)
    digest = content.index(header_of(content)["__metadata__"]["sha256"].encode())
    must = {*range(digest, digest + 64), *range(len(content) - len(body_of(content)), len(content))}
    assert len(must) > 64
    for i in range(len(content)):
        for bit in range(8):
            changed = bytearray(content)
            changed[i] ^= 1 << bit
            if i in must:
                refused(path, changed)
                continue
            path.write_bytes(changed)
            try:
                found = content_of(path)
            except DataError as error:
                found = expected if str(path) in str(error) else error
            assert found == expected, (i, bit)


def test_every_truncation_and_every_appendix_is_seen(tmp_path):
    content = small_file(tmp_path / "x")
    for size in range(len(content)):
        refused(tmp_path / "x", content[:size])
    for extra in (b"\0", b" ", b"\n", b"a" * 8, content):
        refused(tmp_path / "x", content + extra)
        refused(tmp_path / "x", extra + content)


def test_changed_headers_are_seen(tmp_path):
    """Names swapped, a tensor renamed, dropped or reinterpreted, records swapped: valid safetensors files all."""
    path = tmp_path / "x"
    content = small_file(path)
    header, body = header_of(content), body_of(content)
    save_state(tmp_path / "other", {"a": np.array([1, 2], "float32"), "b": np.array([3, 4], "float32")}, {"x": 2})
    other = header_of((tmp_path / "other").read_bytes())["__metadata__"]
    meta = header["__metadata__"]
    changed = {
        "swapped names": {**header, "a": header["b"], "b": header["a"]},
        "renamed": {("c" if name == "a" else name): value for name, value in header.items()},
        "dtype": {**header, "a": {**header["a"], "dtype": "I32"}},
        "shape": {**header, "a": {**header["a"], "shape": [2, 1]}},
        "shape of the empty one": {**header, "e": {**header["e"], "shape": [0, 3]}},
        "the empty one dropped": {name: value for name, value in header.items() if name != "e"},
        "record": {**header, "__metadata__": {**meta, "record": other["record"]}},
        "whole metadata": {**header, "__metadata__": other},
        "no digest": {**header, "__metadata__": {"record": meta["record"]}},
        "no record": {**header, "__metadata__": {"sha256": meta["sha256"]}},
        "no metadata": {name: value for name, value in header.items() if name != "__metadata__"},
    }
    for what, wrong in changed.items():
        refused(path, with_header(wrong, body))
        assert wrong != header, what
    path.write_bytes(with_header(header, body))  # the tool itself is right
    load_state(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00",
        b"PK\x03\x04 a zip file",
        b"\x80\x04K\x01.",
        b"\xff" * 64,
        *((n).to_bytes(8, "little") + text for n, text in ((2**63, b"{}"), (2, b"{}"), (2, b"[]"), (4, b"null"))),
        (30000).to_bytes(8, "little") + b"[" * 30000,  # deeper than any parser goes
        save_plain({"a": np.zeros(2)}, metadata={"format": "pt"}),
        with_header({"__metadata__": "text"}, b""),
        with_header({"__metadata__": {"record": 1, "sha256": 2}}, b""),
        with_header({"__metadata__": {"record": "{}", "sha256": "\ud800"}}, b""),
    ],
    ids=lambda x: repr(x[:20]),
)
def test_other_files_are_refused(tmp_path, content):
    refused(tmp_path / "x", content)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[]", "TypeError: its record is a list, not an object"),
        ("null", "TypeError: its record is a NoneType, not an object"),
        ("", "JSONDecodeError: "),
        ('{"format":1', "JSONDecodeError: "),
        ("[" * 100_000, "RecursionError: "),
        ('{"format":1,"loss":NaN}', "ValueError: Out of range float values are not JSON compliant"),
        ('{"format":1,"loss":[-Infinity]}', "ValueError: Out of range float values are not JSON compliant"),
        ('{"format":2}', "format 2 but this version reads format 1"),
        ('{"format":"1"}', "format 1 but this version reads format 1"),
        ("{}", "format None but this version reads format 1"),
    ],
)
def test_a_record_that_could_not_have_been_saved_is_refused(tmp_path, text, why):
    """Even with a digest that fits."""
    write_raw(tmp_path / "x", text)
    with pytest.raises(DataError, match=rf"x: (not a minigrad state file, or damaged \()?{why}"):
        load_state(tmp_path / "x")


def test_every_array_begins_at_a_multiple_of_the_size_of_its_numbers(tmp_path):
    """So that readers which map the file into memory need no copy."""
    kinds = {"a": (1, "b1"), "b": (3, "f8"), "c": (3, "f2"), "d": (3, "f4"), "e": (3, "i8"), "f": (3, "u1")}
    state = {name: np.zeros(count, kind) for name, (count, kind) in kinds.items()}
    save_state(tmp_path / "x", state, {"text": "any length"})
    content = (tmp_path / "x").read_bytes()
    header, start = header_of(content), len(content) - len(body_of(content))
    assert all((start + header[name]["data_offsets"][0]) % x.itemsize == 0 for name, x in state.items())


def test_what_is_not_there_or_not_a_file_is_told(tmp_path):
    for name, why in (("missing", "No such file"), ("", "a file, found a folder"), ("no/folder", "No such file")):
        with pytest.raises(DataError, match=f"{tmp_path / name}: .*{why}"):
            load_state(tmp_path / name)


def test_no_permission_is_told(tmp_path):
    save_state(tmp_path / "x", {}, {})
    (tmp_path / "x").chmod(0)
    if os.access(tmp_path / "x", os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        load_state(tmp_path / "x")


# ---- atomic writing ----


@pytest.fixture
def kept(tmp_path):
    """A file that a failing save must leave as it is, alone in its folder; afterwards another save works."""
    path = tmp_path / "x"
    old = save_state(path, {"a": np.arange(4)}, {})
    yield path
    assert os.listdir(tmp_path) == ["x"]
    assert load_state(path)[2] == old


def save_longer(path: Path, error: type[BaseException] = DataError, match: str | None = None) -> None:
    with pytest.raises(error, match=match and f"x: cannot be written: {match}"):
        save_state(path, {"a": np.arange(5000)}, {})


@pytest.mark.parametrize("call", ["fsync", "replace", "open", "fdopen"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_failing_system_call_leaves_the_old_file(kept, monkeypatch, call, code):
    with monkeypatch.context() as patch:
        patch.setattr(serialize.os, call, mock.Mock(side_effect=OSError(code, os.strerror(code))))
        save_longer(kept, match=os.strerror(code))
    state = load_state(kept)[0]
    save_state(kept, {"a": np.arange(5)}, {})  # and then it works again
    save_state(kept, state, {})


@pytest.mark.parametrize("call", ["open", "fsync"])
def test_ctrl_c_leaves_no_temporary_file(kept, monkeypatch, call):
    """Also right after it was made."""
    real = os.open

    def interrupted(*arguments):
        if call == "open":
            os.close(real(*arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(serialize.os, call, interrupted)
    save_longer(kept, KeyboardInterrupt)
    monkeypatch.undo()


def test_a_size_limit_leaves_the_old_file(kept):
    """A real short write: RLIMIT_FSIZE stops in the middle (Python ignores SIGXFSZ)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        save_longer(kept, match="File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_order_is_write_sync_rename_sync(tmp_path, monkeypatch):
    """The bytes reach the disk before the name does, and then the name does; until then readers see the old file. Only
    within one file system a rename is atomic; and what a kill leaves behind is known by its name."""
    path, events, fsync, replace = tmp_path / "folder" / "x", [], os.fsync, os.replace
    write_atomically(path, b"old")

    def spy_fsync(file):
        found = os.fstat(file)
        events.append(("folder" if stat.S_ISDIR(found.st_mode) else found.st_size, path.read_bytes()))
        fsync(file)

    def spy_replace(source, target):
        events.append((Path(source).parent, Path(source).name[:3], Path(source).suffix, path.read_bytes()))
        replace(source, target)

    monkeypatch.setattr(serialize.os, "fsync", spy_fsync)
    monkeypatch.setattr(serialize.os, "replace", spy_replace)
    write_atomically(path, b"12345")
    assert events == [(5, b"old"), (path.parent, ".x.", ".part", b"old"), ("folder", b"12345")]


def test_a_failing_sync_of_the_folder_is_told_and_a_whole_file_is_there(tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_atomically(path, b"old")
    real = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    monkeypatch.setattr(serialize.os, "fsync", fsync)
    opened = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    with pytest.raises(DataError, match="cannot be written"):
        write_atomically(path, b"new")
    assert path.read_bytes() in (b"old", b"new")
    assert os.listdir(tmp_path) == ["x"]
    assert not opened or len(os.listdir("/proc/self/fd")) == opened


def test_folders_are_made_and_faults_of_the_path_are_told(tmp_path):
    save_state(tmp_path / "a" / "b" / "x", {}, {})
    load_state(tmp_path / "a" / "b" / "x")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be written"):
        save_state(tmp_path / "file" / "x", {}, {})
    with pytest.raises(DataError, match="cannot be written"):
        save_state(tmp_path / "a", {}, {})  # a folder stands there
    assert sorted(os.listdir(tmp_path)) == ["a", "file"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_mode_is_that_of_any_new_file(tmp_path, umask):
    before = os.umask(umask)
    try:
        save_state(tmp_path / "x", {}, {})
        (tmp_path / "y").write_bytes(b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o666 & ~umask
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "y").stat().st_mode


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and RLIMIT_AS")
def test_a_file_that_does_not_fit_into_memory_is_told_whatever_is_free(tmp_path):
    """The library that reads the arrays would panic, which no `except Exception` catches."""
    save_state(tmp_path / "x", {str(i): np.ones(500_000) for i in range(20)}, {})  # 80 MB, of which two are needed
    code = """
import resource, sys
from minigrad.serialize import load_state
load_state(sys.argv[2])
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * resource.getpagesize()
for free in range(10_000_000, 220_000_000, 5_000_000):
    resource.setrlimit(resource.RLIMIT_AS, (size + free, -1))
    try:
        load_state(sys.argv[1])
        print("read")
    except MemoryError as error:
        print(error)
"""
    save_state(tmp_path / "small", {}, {})
    words = [sys.executable, "-c", code, tmp_path / "x", tmp_path / "small"]
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # a thread takes memory when it likes
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    told = f"{tmp_path / 'x'} takes twice its {(tmp_path / 'x').stat().st_size:,} bytes while it is read"
    assert len(lines) == 42, done.stdout
    assert set(lines) == {told, "read"}
    assert lines == sorted(lines, key=lambda line: line == "read"), "where it fits, it fits in more, too"
    assert 20 < lines.count(told) < 40
