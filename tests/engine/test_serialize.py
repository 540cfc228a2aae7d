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
    digest = save_state(tmp_path / "x.safetensors", given, RECORD)
    found, record, same = load_state(str(tmp_path / "x.safetensors"))
    assert set(found) == set(given)
    for name, x in given.items():
        assert (found[name].dtype, found[name].shape) == (x.dtype, x.shape), name
        assert found[name].tobytes() == x.tobytes(), name  # NaN and -0.0 included
    assert record == {"format": 1, **RECORD}
    assert digest == same
    assert len(digest) == 64


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i8"])
def test_foreign_byte_order_is_stored_as_the_same_numbers(tmp_path, dtype):
    save_state(tmp_path / "x", {"a": np.arange(5).astype(dtype)}, {})
    found = load_state(tmp_path / "x")[0]["a"]
    np.testing.assert_array_equal(found, np.arange(5))
    assert found.dtype == np.dtype(dtype).newbyteorder("<")


def test_nothing_at_all_comes_back(tmp_path):
    save_state(tmp_path / "x", {}, {})
    assert load_state(tmp_path / "x")[:2] == ({}, {"format": 1})


def test_the_given_arrays_are_not_changed(tmp_path):
    given = arrays()
    before = {name: x.tobytes() for name, x in given.items()}
    save_state(tmp_path / "x", given, RECORD)
    assert {name: x.tobytes() for name, x in given.items()} == before


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
        start = 8 + int.from_bytes(once[:8], "little")
        assert (start % 8, once[start:]) == (0, np.ones(i + 1).tobytes()), "data lie where they can be mapped"


def test_the_digest_is_the_documented_one(tmp_path):
    state = {"b": np.arange(6, dtype="float32").reshape(2, 3), "a": np.array(7)}
    digest = save_state(tmp_path / "x", state, {})
    write_raw(tmp_path / "y", '{"format":1}', state, digest)
    assert load_state(tmp_path / "y")[2] == digest
    write_raw(tmp_path / "z", '{"format":1}', state)  # hashed by this test
    assert load_state(tmp_path / "z")[2] == digest


def test_content_makes_the_digest(tmp_path):
    """Name, dtype, shape, a byte and the record: each changes it."""
    x = np.zeros((2, 3), "float32")
    variants = [
        ({"a": x}, {}),
        ({"b": x}, {}),
        ({"a": x.view("int32")}, {}),
        ({"a": x.T.copy()}, {}),
        ({"a": x + 1}, {}),
        ({"a": x}, {"k": 1}),
        ({"a": x, "b": x[:0]}, {}),
    ]
    assert len({save_state(tmp_path / "x", *variant) for variant in variants}) == len(variants)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_record_with_nan_is_refused_and_the_old_file_stays(tmp_path, value):
    save_state(tmp_path / "x", {}, {"good": 1})
    with pytest.raises(ValueError, match="JSON"):
        save_state(tmp_path / "x", {}, {"deep": [{"bad": value}]})
    assert load_state(tmp_path / "x")[1]["good"] == 1
    assert os.listdir(tmp_path) == ["x"]


def test_a_record_that_is_no_json_is_refused(tmp_path):
    with pytest.raises((TypeError, ValueError), match="JSON"):
        save_state(tmp_path / "x", {}, {"bad": object()})
    assert not os.listdir(tmp_path)


def test_nothing_is_pickled(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("pickle was used")

    for name in ("dump", "dumps", "load", "loads"):
        monkeypatch.setattr(pickle, name, refuse)
    save_state(tmp_path / "x", arrays(), RECORD)
    load_state(tmp_path / "x")
    content = (tmp_path / "x").read_bytes()
    assert content[8:9] == b"{"
    assert set(header_of(content)) == {*arrays(), "__metadata__"}
    for x in (np.array([object()]), np.array(["text"])):  # what only pickle could write
        with pytest.raises(Exception, match=r"[Uu]nknown dtype|unsupported|expected"):
            save_state(tmp_path / "y", {"x": x}, {})
    assert os.listdir(tmp_path) == ["x"]


# ---- damage ----


def seen(path: Path, content: bytes, expected: tuple) -> bool:
    """Whether the damaged content is refused with a DataError that names the file. Identical content may pass."""
    path.write_bytes(content)
    try:
        found, record, digest = load_state(path)
    except DataError as error:
        return str(path) in str(error)
    same = {n: (x.dtype, x.shape, x.tobytes()) for n, x in found.items()}
    return (same, record, digest) == expected


def content_of(path: Path) -> tuple:
    found, record, digest = load_state(path)
    return {n: (x.dtype, x.shape, x.tobytes()) for n, x in found.items()}, record, digest


def test_every_flipped_bit_is_seen(tmp_path):
    path = tmp_path / "x"
    content = small_file(path)
    expected = content_of(path)
    unseen = []
    for i in range(len(content)):
        for bit in range(8):
            changed = bytearray(content)
            changed[i] ^= 1 << bit
            if not seen(path, bytes(changed), expected):
                unseen.append((i, bit))
    assert not unseen
    assert seen(path, content, expected)


def test_every_flipped_bit_of_the_data_is_refused(tmp_path):
    """In the tensors' bytes and in the digest there is no identical content: each flip must raise."""
    path = tmp_path / "x"
    content = small_file(path)
    digest = content.index(header_of(content)["__metadata__"]["sha256"].encode())
    body = len(content) - len(body_of(content))
    assert body < len(content)
    for i in [*range(digest, digest + 64), *range(body, len(content))]:
        for bit in range(8):
            changed = bytearray(content)
            changed[i] ^= 1 << bit
            path.write_bytes(changed)
            with pytest.raises(DataError):
                load_state(path)


def test_every_truncation_and_every_appendix_is_seen(tmp_path):
    path = tmp_path / "x"
    content = small_file(path)
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match="not a minigrad state file, or damaged"):
            load_state(path)
    for extra in (b"\0", b" ", b"\n", b"a" * 8, content):
        path.write_bytes(content + extra)
        with pytest.raises(DataError):
            load_state(path)
        path.write_bytes(extra + content)
        with pytest.raises(DataError):
            load_state(path)


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
        path.write_bytes(with_header(wrong, body))
        with pytest.raises(DataError, match="damaged"):
            load_state(path)
        assert wrong != header, what
    path.write_bytes(with_header(header, body))  # the tool itself is right
    load_state(path)


ODD = (None, [], [0], [0, None], ["x", "y"], {}, "x", -1, 1.5, 2**70, True)


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_odd_values_in_a_header_are_refused(tmp_path, odd):
    """Each in the place of every other, at every depth: a damaged file is a DataError, whatever it trips over."""
    path = tmp_path / "x"
    content = small_file(path)
    header, body = header_of(content), body_of(content)
    for name, entry in header.items():
        for wrong in ({**header, name: odd}, *({**header, name: {**entry, field: odd}} for field in entry)):
            path.write_bytes(with_header(wrong, body))
            if wrong != header:
                with pytest.raises(DataError, match="x: "):
                    load_state(path)


def test_bytes_of_two_files_do_not_mix(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    save_state(one, {"a": np.arange(4.0)}, {})
    save_state(two, {"a": np.arange(4.0) + 1}, {})
    first, second = one.read_bytes(), two.read_bytes()
    assert len(first) == len(second)
    one.write_bytes(first[: len(first) - 32] + second[-32:])
    with pytest.raises(DataError, match=r"damaged: its content has SHA-256 [0-9a-f]{64} but it records [0-9a-f]{64}"):
        load_state(one)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00",
        b"PK\x03\x04 a zip file",
        b"\x80\x04K\x01.",
        b"\xff" * 64,
        (2**63).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (4).to_bytes(8, "little") + b"null",
        (30000).to_bytes(8, "little") + b"[" * 30000,  # deeper than any parser goes
        with_header({"__metadata__": "text"}, b""),
        with_header({"__metadata__": {"record": 1, "sha256": 2}}, b""),
        with_header({"__metadata__": {"record": "{}", "sha256": "\ud800"}}, b""),
    ],
    ids=lambda x: repr(x[:20]),
)
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DataError, match="x: not a minigrad state file, or damaged"):
        load_state(tmp_path / "x")


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(save_plain({"a": np.zeros(2)}, metadata={"format": "pt"}))
    with pytest.raises(DataError, match="not a minigrad state file"):
        load_state(tmp_path / "x")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[]", "TypeError: its record is a list, not an object"),
        ("3", "TypeError: its record is a int, not an object"),
        ("null", "TypeError: its record is a NoneType, not an object"),
        ('"text"', "TypeError: its record is a str, not an object"),
        ("", "JSONDecodeError: "),
        ("{", "JSONDecodeError: "),
        ('{"format":1', "JSONDecodeError: "),
        ("[" * 100_000, "RecursionError: "),
        ('{"format":1,"loss":NaN}', "ValueError: Out of range float values are not JSON compliant"),
        ('{"format":1,"loss":[-Infinity]}', "ValueError: Out of range float values are not JSON compliant"),
    ],
)
def test_a_record_that_could_not_have_been_saved_is_refused(tmp_path, text, why):
    """Even with a digest that fits."""
    write_raw(tmp_path / "x", text)
    with pytest.raises(DataError, match=rf"x: not a minigrad state file, or damaged \({why}"):
        load_state(tmp_path / "x")


def test_every_array_begins_at_a_multiple_of_the_size_of_its_numbers(tmp_path):
    """So that readers which map the file into memory need no copy."""
    kinds = {"a": (1, "b1"), "b": (3, "f8"), "c": (3, "f2"), "d": (3, "f4"), "e": (3, "i8"), "f": (3, "u1")}
    state = {name: np.zeros(count, kind) for name, (count, kind) in kinds.items()}
    save_state(tmp_path / "x", state, {"text": "any length"})
    content = (tmp_path / "x").read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    del header["__metadata__"]
    begins = {name: start + entry["data_offsets"][0] for name, entry in header.items()}
    assert begins.keys() == state.keys()
    assert [name for name, begin in begins.items() if begin % state[name].itemsize] == []


@pytest.mark.parametrize("text", ['{"format":2}', '{"format":"1"}', '{"format":null}', "{}"])
def test_another_format_is_refused_with_both_numbers(tmp_path, text):
    write_raw(tmp_path / "x", text)
    with pytest.raises(DataError, match=f"format {json.loads(text).get('format')} but this version reads format 1"):
        load_state(tmp_path / "x")


def test_what_is_not_there_or_not_a_file_is_told(tmp_path):
    for path, why in [
        (tmp_path / "missing", "cannot be read: No such file"),
        (tmp_path, "kind: expected a file, found a folder"),
        (tmp_path / "no" / "folder", "cannot be read: No such file"),
    ]:
        with pytest.raises(DataError, match=why) as error:
            load_state(path)
        assert str(path) in str(error.value)


def test_no_permission_is_told(tmp_path):
    save_state(tmp_path / "x", {}, {})
    (tmp_path / "x").chmod(0)
    if os.access(tmp_path / "x", os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        load_state(tmp_path / "x")


def test_a_folder_that_may_not_be_written_is_told(tmp_path):
    tmp_path.chmod(0o500)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("this user may write everywhere")
        with pytest.raises(DataError, match="cannot be written: Permission denied"):
            save_state(tmp_path / "x", {}, {})
    finally:
        tmp_path.chmod(0o700)


# ---- atomic writing ----


def fail(monkeypatch: pytest.MonkeyPatch, call: str, code: int = errno.EIO) -> None:
    def failing(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(serialize.os, call, failing)


class FullDisk:
    """A file that takes some bytes and then has no room."""

    def __init__(self, file, room: int):
        self.file, self.room = file, room

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, content: bytes) -> int:
        self.file.write(content[: self.room])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "replace", "open", "fdopen"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_failing_system_call_leaves_the_old_file(tmp_path, monkeypatch, call, code):
    old = save_state(tmp_path / "x", {"a": np.arange(4)}, {})
    with monkeypatch.context() as patch:
        fail(patch, call, code)
        with pytest.raises(DataError, match=f"x: cannot be written: {os.strerror(code)}"):
            save_state(tmp_path / "x", {"a": np.arange(5)}, {})
    assert os.listdir(tmp_path) == ["x"]
    assert load_state(tmp_path / "x")[2] == old
    new = save_state(tmp_path / "x", {"a": np.arange(5)}, {})  # and then it works again
    assert load_state(tmp_path / "x")[2] == new


def test_a_signal_right_after_the_file_was_made_leaves_none(tmp_path, monkeypatch):
    real = os.open

    def interrupted(*arguments):
        os.close(real(*arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(serialize.os, "open", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_state(tmp_path / "x", {"a": np.arange(5)}, {})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("room", [0, 1, 100])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, room):
    old = save_state(tmp_path / "x", {"a": np.arange(4)}, {})
    real = os.fdopen
    monkeypatch.setattr(serialize.os, "fdopen", lambda *a, **k: FullDisk(real(*a, **k), room))
    with pytest.raises(DataError, match="x: cannot be written: No space left on device"):
        save_state(tmp_path / "x", {"a": np.arange(5)}, {})
    assert os.listdir(tmp_path) == ["x"]
    assert load_state(tmp_path / "x")[2] == old


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_dev_full_leaves_the_old_file(tmp_path, monkeypatch):
    """The kernel's own ENOSPC, which comes only when the buffer is flushed."""
    old = save_state(tmp_path / "x", {"a": np.arange(4)}, {})

    def fdopen(descriptor, mode):
        os.close(descriptor)
        return open("/dev/full", mode)

    monkeypatch.setattr(serialize.os, "fdopen", fdopen)
    with pytest.raises(DataError, match="x: cannot be written: No space left on device"):
        save_state(tmp_path / "x", {"a": np.arange(5)}, {})
    assert os.listdir(tmp_path) == ["x"]
    assert load_state(tmp_path / "x")[2] == old


def test_a_size_limit_leaves_the_old_file(tmp_path):
    """A real short write: RLIMIT_FSIZE stops in the middle (Python ignores SIGXFSZ)."""
    old = save_state(tmp_path / "x", {"a": np.arange(4)}, {})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(DataError, match="x: cannot be written: File too large"):
            save_state(tmp_path / "x", {"a": np.arange(5000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == ["x"]
    assert load_state(tmp_path / "x")[2] == old


def test_no_temporary_file_even_for_ctrl_c(tmp_path, monkeypatch):
    old = save_state(tmp_path / "x", {"a": np.arange(4)}, {})

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(serialize.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_state(tmp_path / "x", {"a": np.arange(5)}, {})
    assert os.listdir(tmp_path) == ["x"]
    assert load_state(tmp_path / "x")[2] == old


def test_the_order_is_write_sync_rename_sync(tmp_path, monkeypatch):
    """The bytes reach the disk before the name does, and then the name does."""
    events = []

    def spy(name):
        real = getattr(os, name)

        def call(first, *rest):
            is_folder = isinstance(first, int) and stat.S_ISDIR(os.fstat(first).st_mode)
            size = os.fstat(first).st_size if isinstance(first, int) and not is_folder else None
            events.append(("folder" if is_folder else name, size))
            return real(first, *rest)

        monkeypatch.setattr(serialize.os, name, call)

    spy("fsync")
    spy("replace")
    write_atomically(tmp_path / "x", b"12345")
    assert events == [("fsync", 5), ("replace", None), ("folder", None)]


def test_the_temporary_file_lies_beside_its_target(tmp_path, monkeypatch):
    """Only within one file system a rename is atomic; and what a kill leaves behind is known by its name."""
    seen = []
    real = os.replace

    def replace(source, target):
        seen.append(Path(source))
        real(source, target)

    monkeypatch.setattr(serialize.os, "replace", replace)
    write_atomically(tmp_path / "folder" / "x", b"12345")
    (temporary,) = seen
    assert temporary.parent == tmp_path / "folder"
    assert temporary.name.startswith(".x.")
    assert temporary.suffix == ".part"


def test_readers_see_the_old_or_the_new_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_atomically(path, b"old")
    views = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def look(*args, real=real):
            views.append(path.read_bytes())
            result = real(*args)
            views.append(path.read_bytes())
            return result

        monkeypatch.setattr(serialize.os, name, look)
    write_atomically(path, b"new and longer")
    assert set(views) == {b"old", b"new and longer"}
    assert views == sorted(views, key=lambda view: view != b"old")


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
    if opened:
        assert len(os.listdir("/proc/self/fd")) == opened


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
