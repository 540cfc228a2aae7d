"""Downloads: slow, damaged, interrupted and at once; and Debian's package."""

import dataclasses
import functools
import gzip
import http.server
import io
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from data_cases import DIGITS, FASHION, digests, idx, leftovers, put, refuses, same

from autoencoders.data import DataError, collections, download, load_dataset, read_idx
from autoencoders.data.dataset import CHUNK

pytestmark = pytest.mark.usefixtures("world")


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.files`: from path to bytes, to the length to announce and the bytes, or to a function of the
    handler."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
        elif callable(content):
            content(self)
        else:
            length, body = content if isinstance(content, tuple) else (len(content), content)
            self.answer(body, length)

    def answer(self, body: bytes, length: int | None) -> None:
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
    use_mirrors(monkeypatch, name, *mirrors)
    return mirrors


def use_mirrors(monkeypatch: pytest.MonkeyPatch, name: str, *mirrors: str) -> None:
    changed = dataclasses.replace(collections.COLLECTIONS[name], mirrors=mirrors)
    monkeypatch.setitem(collections.COLLECTIONS, name, changed)


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
    here = {file: FASHION[file] for file in (collections.TRAIN_IMAGES, collections.TEST_LABELS)}
    folder = put(world / "explicit", here, "")
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
    "too long": (PACKED_FILE + bytes(collections.SIZES[FILE] + CHUNK), "size: expected at most"),
    "too long, unannounced": ((None, PACKED_FILE + bytes(2 * collections.SIZES[FILE])), "size: expected at most"),
    "bomb": (gzip.compress(idx(FASHION[FILE]) + bytes(100_000_000), 1), "after the data"),
}


@pytest.mark.parametrize("case", BAD_ANSWERS)
def test_bad_answers_leave_no_file_and_the_next_mirror_is_asked(world: Path, server, monkeypatch, case: str) -> None:
    answer, message = BAD_ANSWERS[case]
    mirrors = offer(server, monkeypatch, "fashion-mnist", FASHION)
    server.files[f"/0/{FILE}.gz"] = answer
    cache = world / "cache" / "fashion-mnist"
    refuses("fashion-mnist", f"{FILE} could not be fetched: {mirrors[0]}.*(?:{message})", 600)
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
    # What the first mirror gave and was right was kept from the first time.
    from_second = [f"/1/{FILE}.gz", f"/1/{collections.TEST_LABELS}.gz"]
    assert server.asked == [f"/0/{FILE}.gz", *from_second]
    server.asked.clear()
    assert same(load_dataset("fashion-mnist", world / "new"), FASHION)
    assert server.asked == [*(f"/0/{file}.gz" for file in list(collections.SIZES)[:3]), *from_second]


@pytest.mark.parametrize(
    ("first", "piece", "said"),
    [(b"", b"", "does not answer"), (b"", b"x", "does not answer"), (bytes(10_000), b"x", "not done after")],
    ids=["silence", "a dripping status line", "a dripping body"],
)
def test_mirrors_that_say_too_little_are_given_up(world: Path, server, monkeypatch, first, piece, said: str) -> None:
    released = threading.Event()

    def drip(handler: Handler) -> None:
        if first:
            handler.answer(first, 20_000)
        for _ in range(600):
            if released.wait(0.05):
                return
            handler.wfile.write(piece)
            handler.wfile.flush()

    monkeypatch.setattr(download, "MIRROR_SECONDS", 2.0)
    monkeypatch.setattr(download, "SLOW_SECONDS", 0.5)
    monkeypatch.setattr(download, "SLOW_RATE", 1 << 30)
    nobody = "http://127.0.0.1:1/"
    (mirror,) = offer(server, monkeypatch, "fashion-mnist", FASHION)
    server.files[f"/0/{collections.TRAIN_IMAGES}.gz"] = drip
    use_mirrors(monkeypatch, "fashion-mnist", nobody, mirror)
    refuses("fashion-mnist", f"could not be fetched: {nobody} does not answer; {mirror}.*{said}", 400)
    released.set()
    assert not (world / "cache").exists()


def test_no_permission_is_an_error_with_the_path(world: Path, server, monkeypatch) -> None:
    offer(server, monkeypatch, "fashion-mnist", FASHION)
    (world / "file").write_text("in the way")
    refuses("fashion-mnist", f"^{world / 'file' / 'sub'}: ", data_dir=world / "file" / "sub")
    monkeypatch.setattr(os, "access", lambda *_: False)
    refuses("auto", f"{world / 'new'}: download folder: expected a writable folder", data_dir=world / "new")
    assert "writable folder" in load_dataset("auto").source  # a cache nobody asked for: the sample


@pytest.mark.parametrize("function", ["os.fsync", "os.replace"])
def test_no_room_is_an_error_with_the_path(world: Path, server, monkeypatch, function: str) -> None:
    offer(server, monkeypatch, "fashion-mnist", FASHION)
    monkeypatch.setattr(function, mock.Mock(side_effect=OSError(28, "No space left on device")))
    refuses("fashion-mnist", f"^{world / 'cache'}.*{collections.TRAIN_IMAGES}.gz: .*No space left on device")
    assert list((world / "cache" / "fashion-mnist").iterdir()) == []


def test_interrupted_download_leaves_nothing(world: Path, server, monkeypatch) -> None:
    offer(server, monkeypatch, "fashion-mnist", FASHION)
    monkeypatch.setattr(os, "replace", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        load_dataset("auto")
    assert list((world / "cache" / "fashion-mnist").iterdir()) == []


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
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    command = [sys.executable, "-c", RACER]
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


@pytest.mark.parametrize(("terminal", "wanted"), [(True, True), (False, True), (True, False)])
def test_progress_is_drawn_on_a_terminal_only(world: Path, server, monkeypatch, terminal: bool, wanted: bool) -> None:
    offer(server, monkeypatch, "fashion-mnist", FASHION)
    screen = io.StringIO()
    screen.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", screen)
    load_dataset("fashion-mnist", progress=wanted)
    assert (collections.TRAIN_IMAGES in screen.getvalue()) == (terminal and wanted)


# ---- Debian's package ----


PROGRAM = """#!{python}
import os, shutil, sys, time
from pathlib import Path
here, name = Path({here!r}), Path(sys.argv[0]).name
with open(here / "calls", "a") as log:
    print(name, *sys.argv[1:], file=log)
mode = (here / "mode").read_text()
if name == "dpkg-deb":
    if mode == "broken":
        sys.exit("dpkg-deb: error: not a Debian archive")
    assert Path(sys.argv[2]).read_text() == "package"
    shutil.copytree(here / "content", Path(sys.argv[3]) / "usr" / "share" / "datasets" / "fashion-mnist")
    sys.exit()
private = any("Dir::State::lists=" in word for word in sys.argv)
if mode == "hang":
    (here / "process").write_text(str(os.getpid()))
    time.sleep(60)
if mode == "offline":
    sys.exit("E: Failed to fetch x  Temporary failure resolving 'mirror'")
if mode == "no package" or (mode == "no lists" and not private):
    sys.exit("E: Unable to locate package dataset-fashion-mnist")
if "download" in sys.argv and mode != "no file":
    Path("dataset-fashion-mnist_1_all.deb").write_text("package")
"""


@pytest.fixture
def apt(world: Path, monkeypatch: pytest.MonkeyPatch):
    """Stand-ins of apt-get and dpkg-deb; call it with a mode and with what the package holds."""
    (world / "bin").mkdir()
    for name in ("apt-get", "dpkg-deb"):
        program = world / "bin" / name
        program.write_text(PROGRAM.format(python=sys.executable, here=str(world)))
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


def test_a_hanging_apt_is_ended(world: Path, apt, monkeypatch: pytest.MonkeyPatch) -> None:
    apt("hang", FASHION)
    monkeypatch.setattr(download, "APT_SECONDS", 1.0)
    assert "apt-get: not done after 1 s" in load_dataset("auto").source
    with pytest.raises(ProcessLookupError):
        os.kill(int((world / "process").read_text()), 0)
