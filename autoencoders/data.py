"""Data sets: find, fetch, verify and decode Fashion-MNIST and MNIST.

`load_dataset` is the entrance. Below it, in reading order: the two collections with the hashes of their files, the
search and the downloads, the IDX reader. A user's own pictures are read in own_images.py, arrays in own_arrays.py.

Every fault of a file is a `DataError` whose message names the file, the field, what was expected and what was found.
A file of a published set is accepted for its content, never for its name or its place: the SHA-256 of the decompressed
bytes must be the published one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import math
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from minigrad.serialize import DataError, require_file

from .dataset import CHUNK, MAX_BYTES, Dataset, Reading, as_data_error, did_you_mean, fault
from .own_arrays import SUFFIXES, Array, Numbers, array_files, arrays_of, is_array_file, load_arrays, test_file
from .own_images import find_pictures, is_picture, load_folder

SAMPLE_FOLDER = Path(__file__).with_name("sample_data")
SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
DEBIAN_PACKAGE = "dataset-fashion-mnist"
CACHE_NAME = "minigrad-autoencoders"

MIRROR_SECONDS = 6.0  # within which a mirror must answer; all are asked at once
READ_SECONDS = 20.0  # of silence during a download
# A server that sends a byte now and then is never silent: a file gets this long, and its size at this rate besides.
SLOW_SECONDS = 60.0
SLOW_RATE = 20_000  # bytes a second; the largest file gets 40 minutes, which a mobile line of 2G does not need
STALE_SECONDS = 86_400.0  # the age at which a file begun is that of a killed download: no other can take so long
APT_SECONDS = 300.0  # for each program started

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
SIZES = {TRAIN_IMAGES: 47040016, TRAIN_LABELS: 60008, TEST_IMAGES: 7840016, TEST_LABELS: 10008}  # bytes, decompressed


@dataclass(frozen=True)
class Collection:
    """A published set of four IDX files; `sha256` is of the decompressed bytes, since mirrors compress anew."""

    title: str
    class_names: tuple[str, ...]
    sha256: dict[str, str]
    mirrors: tuple[str, ...]


COLLECTIONS = {
    "fashion-mnist": Collection(
        "Fashion-MNIST",
        (
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        {
            TRAIN_IMAGES: "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            TRAIN_LABELS: "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            TEST_IMAGES: "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            TEST_LABELS: "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
    ),
    "mnist": Collection(
        "MNIST digits",
        tuple("0123456789"),
        {
            TRAIN_IMAGES: "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            TRAIN_LABELS: "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            TEST_IMAGES: "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            TEST_LABELS: "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
    ),
}
NAMES = ("auto", "fashion-mnist", "fashion-mnist-sample", "mnist")
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")


class _NotFetchedError(DataError):
    """The set is not here and no source gave it: the one fault for which `auto` takes the sample instead."""


def load_dataset(
    name: str | os.PathLike[str] = "auto",
    data_dir: str | os.PathLike[str] | None = None,
    *,
    download: bool = True,
    progress: bool = True,
    **how: Any,
) -> Dataset:
    """Load a data set by name, or from a path.

    Args:
        name: `fashion-mnist`, `mnist`, `fashion-mnist-sample` (5,000 images that come with this package), `auto`
            (Fashion-MNIST, or the sample where the full set is neither here nor to be had; `source` says which and
            why), or the path of a folder of images, of a file of arrays (`own_arrays.SUFFIXES`), or of a folder of
            such or of IDX files.
        data_dir: folder of the IDX files, or of a sub-folder with the set's name. What it lacks is downloaded into it;
            what it holds must be right. Without it these are searched: the environment variable MINIGRAD_DATA, the
            user's cache (or the environment variable MINIGRAD_CACHE), and Debian's folder.
        download: whether the network may be used.
        progress: whether to show progress, which happens only when stderr is a terminal.
        how: image_size, grayscale and, with a path, test_dir, skip_broken and every_tenth, as in `Reading`.

    Raises:
        DataError: names the file, the field, what was expected and what was found.
    """
    reading = Reading(**how)
    progress = progress and sys.stderr is not None and sys.stderr.isatty()
    if name in NAMES:
        if reading.test_dir:
            raise DataError(f"{name} has test images of its own; leave out --test-dir")
        dataset = _load_published(str(name), data_dir, download, progress)
    else:
        path = Path(name).expanduser()
        with as_data_error(path):
            dataset = _load_own(path, reading, progress)
    with as_data_error(name):
        train, test = reading.apply(dataset.train_images), reading.apply(dataset.test_images)
    source, (_, height, width, channels) = dataset.source, train.shape
    if dataset.train_images.shape[1:3] != (height, width):
        source += f"; resized and cropped to {width} x {height}"
    if dataset.train_images.shape[3] != channels:
        source += f"; turned to {'grey' if channels == 1 else 'colour'}"
    return replace(dataset, train_images=train, test_images=test, source=source, reading=reading)


def _load_published(name: str, data_dir: str | os.PathLike[str] | None, download: bool, progress: bool) -> Dataset:
    if name == "fashion-mnist-sample":
        return _load_sample("")
    if name != "auto":
        return _load_collection(name, data_dir, download, progress)
    try:
        return _load_collection("fashion-mnist", data_dir, download, progress)
    except DataError as error:
        # A folder that the user named and that is wrong is an error; a cache that cannot be written is a reason.
        if data_dir is not None and not isinstance(error, _NotFetchedError):
            raise
        return _load_sample(f", because the full set could not be had: {error}")


def _load_own(path: Path, reading: Reading, progress: bool) -> Dataset:
    """What a path holds: arrays in IDX or other files, or pictures."""
    said = []
    if path.is_dir():
        if (path / "run.json").exists() and (path / "checkpoints").exists():
            raise fault(path, "content", "images", "a run of this project; --model-dir or --init-from takes it")
        if _own_idx(path):
            said = ["own IDX files, not compared with a published set"]
        elif not array_files(path) or find_pictures(path, []):
            return load_folder(path, reading, progress)
    elif not (is_array_file(path) and path.exists()):
        if path.suffix.lower() in ARCHIVES:
            raise DataError(f"{path}: is an archive; unpack it and give the folder")
        if path.is_file() and is_picture(path):
            raise DataError(f"{path}: is one picture; give its folder, or reconstruct it with generator.py --image")
        near = [other.name for other in path.parent.glob("*")]
        missing = f"nothing of that name{did_you_mean(path.name, [*NAMES, *near])}"
        found = "another kind of file" if path.exists() else missing
        kinds = f"an existing folder of images or IDX files, or a file of arrays ({' '.join(SUFFIXES)})"
        raise fault(path, "data set", f"{', '.join(NAMES)}, {kinds}", found)
    others = Path(reading.test_dir) if reading.test_dir else test_file(path)
    test = (others, _arrays(others, reading)) if others else None
    return load_arrays(path, _arrays(path, reading), test, reading, *said)


def _arrays(path: Path, reading: Reading) -> dict[str, Array]:
    """The arrays in the IDX files of a folder, or in other files; none if there are none."""
    with as_data_error(path):
        return (path.is_dir() and _own_idx(path)) or arrays_of(path, reading)


# ---------------------------------------------------------------------------------------- finding the published sets


def _load_sample(why: str) -> Dataset:
    arrays = {file: read_idx(SAMPLE_FOLDER / f"{file}.gz") for file in SIZES}
    counts = f"{len(arrays[TRAIN_IMAGES])} training and {len(arrays[TEST_IMAGES])} test images"
    source = f"the embedded sample of Fashion-MNIST ({counts}){why}"
    return replace(_dataset("fashion-mnist", arrays, source, []), name="fashion-mnist-sample")


def _load_collection(name: str, data_dir: str | os.PathLike[str] | None, download: bool, progress: bool) -> Dataset:
    collection = COLLECTIONS[name]
    notes: list[str] = []
    if data_dir is not None:
        folder = _home(name, Path(data_dir))
        found, wrong = _survey(name, folder)
        if wrong:
            raise DataError(wrong[0])
        if not found and folder.is_dir() and any(map(is_picture, folder.glob("*.*"))):
            hint = "for images of your own use --dataset, and for downloads another folder"
            raise fault(folder, "content", f"files of {collection.title}, or none", f"pictures; {hint}")
    else:
        with as_data_error("user cache"):
            folder = _cache_folder() / name
        places = [folder]
        if asked := os.environ.get("MINIGRAD_DATA"):
            places.insert(0, _home(name, Path(asked)))
        if name == "fashion-mnist":
            places.append(SYSTEM_FOLDER)
        for place in places:
            arrays, wrong = _survey(name, place)
            if len(arrays) == len(SIZES):
                return _dataset(name, arrays, f"{collection.title} from {place}", notes)
            if place == folder:
                found = arrays
            elif asked and place == places[0] and not wrong:
                wrong = [f"MINIGRAD_DATA={asked} lacks {next(file for file in SIZES if file not in arrays)}"]
            notes += wrong
    source = f"{collection.title} from {folder}"
    if missing := [file for file in SIZES if file not in found]:
        if not download:
            raise _NotFetchedError(_join(f"{folder}: no valid {missing[0]}, and downloads are off", notes))
        try:
            fetched, origin = _fetch(name, folder, missing, progress)
        except _NotFetchedError as error:
            raise _NotFetchedError(_join(str(error), notes)) from error
        found |= fetched
        source = f"{collection.title}, {origin}, now in {folder}"
    return _dataset(name, found, source, notes)


def _join(text: str, notes: list[str]) -> str:
    return f"{text} (skipped: {'; '.join(notes)})" if notes else text


def _dataset(name: str, arrays: dict[str, np.ndarray], source: str, notes: list[str]) -> Dataset:
    return Dataset(
        name=name,
        train_images=arrays[TRAIN_IMAGES][..., None],
        train_labels=arrays[TRAIN_LABELS],
        test_images=arrays[TEST_IMAGES][..., None],
        test_labels=arrays[TEST_LABELS],
        class_names=COLLECTIONS[name].class_names,
        source=_join(source, notes),
    )


def _cache_folder() -> Path:
    override = os.environ.get("MINIGRAD_CACHE")
    if override:
        return Path(override)
    import pooch

    return Path(pooch.os_cache(CACHE_NAME))


def _home(name: str, folder: Path) -> Path:
    """Where in a user's folder the files of a set lie, or would be put.

    Both sets use the same four file names, so MNIST gets a sub-folder unless its files already lie in `folder`.
    """
    inner = folder / name
    for place in (inner, folder):
        if any(_candidates(place, file) for file in SIZES):
            return place
    return inner if name == "mnist" else folder


def _candidates(folder: Path, file: str) -> list[Path]:
    return [path for path in (folder / f"{file}.gz", folder / file) if os.path.lexists(path)]


def _survey(name: str, folder: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """Read and verify what a folder holds: the good files' arrays, and one message for each wrong file."""
    found: dict[str, np.ndarray] = {}
    wrong: list[str] = []
    for file in SIZES:
        faults = []
        for path in _candidates(folder, file):
            try:
                found[file] = _read_verified(name, file, path)
                break
            except DataError as error:
                faults.append(str(error))
        else:
            wrong += faults[:1]
    return found, wrong


def _read_verified(name: str, file: str, path: Path) -> np.ndarray:
    array, digest = _read_idx(path, SIZES[file])
    expected = COLLECTIONS[name].sha256[file]
    if digest != expected:
        hint = ""
        for other in COLLECTIONS.values():
            if digest in other.sha256.values():
                hint = f": this is a file of {other.title}, not {COLLECTIONS[name].title}'s {file}"
        raise fault(path, "SHA-256 of the decompressed content", expected, digest + hint)
    return array


# ------------------------------------------------------------------------------------------------------- fetching


@contextlib.contextmanager
def _new_file(target: Path) -> Iterator[Path]:
    """A temporary path beside `target` that becomes `target` when the block ends well, and vanishes otherwise."""
    with as_data_error(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        for stale in target.parent.glob(f".{target.name}.*.part"):
            with contextlib.suppress(OSError):  # another process was faster, or the file is another user's
                if time.time() - stale.lstat().st_mtime > STALE_SECONDS:
                    stale.unlink()
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
        os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with as_data_error(target):
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o644)  # mkstemp lets only the owner read; others may share the folder
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _fetch(name: str, folder: Path, files: list[str], progress: bool) -> tuple[dict[str, np.ndarray], str]:
    """Get `files` into `folder`, verified, from the mirrors or else from Debian; give their arrays and origin.

    Raises:
        _NotFetchedError: no source had them all; the message says what each answered.
        DataError: the folder cannot be written.
    """
    with as_data_error(folder):
        parent = next((path for path in (folder, *folder.parents) if path.exists()), folder)
        if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
            raise fault(folder, "download folder", "a folder that can be written", f"that {parent} cannot")
    arrays: dict[str, np.ndarray] = {}
    origins: list[str] = []
    reasons: list[str] = []
    mirrors = COLLECTIONS[name].mirrors
    answering = _answering(mirrors, files[0])
    for mirror in mirrors:
        if mirror not in answering:
            reasons.append(f"{mirror} does not answer")
            continue
        try:
            for file in files:
                if file not in arrays:
                    arrays[file] = _download(name, file, mirror + f"{file}.gz", folder / f"{file}.gz", progress)
                    if (origin := f"downloaded from {mirror}") not in origins:
                        origins.append(origin)
        except _NotFetchedError as error:
            reasons.append(str(error))
    missing = [file for file in files if file not in arrays]
    if missing and name == "fashion-mnist":
        try:
            arrays |= _fetch_debian(folder, missing, progress)
            origins.append(f"unpacked from Debian's package {DEBIAN_PACKAGE}")
            missing = []
        except _NotFetchedError as error:
            reasons.append(str(error))
    if missing:
        raise _NotFetchedError(f"{folder}: {missing[0]} could not be fetched: {'; '.join(reasons)}")
    return arrays, " and ".join(origins)


def _answering(mirrors: Iterable[str], file: str) -> list[str]:
    """The mirrors that answer within MIRROR_SECONDS.

    A name look-up has no time limit of its own, and a connection has one for each address: hence the threads.
    """
    answered: list[str] = []

    def ask(mirror: str) -> None:
        request = urllib.request.Request(f"{mirror}{file}.gz", method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=MIRROR_SECONDS).close()
        except urllib.error.HTTPError as error:
            error.close()
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ssl.SSLError):  # the download brings its own certificates
                return
        except (OSError, http.client.HTTPException):
            return
        answered.append(mirror)

    threads = [threading.Thread(target=ask, args=(mirror,), daemon=True) for mirror in mirrors]
    deadline = time.monotonic() + MIRROR_SECONDS
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return list(answered)


class _Meter:
    """What pooch takes for a progress bar: stops a download that grows too long, and draws a bar where wanted."""

    def __init__(self, path: Path, limit: int, label: str, show: bool) -> None:
        self.path, self.limit, self.total = path, limit, 0
        self.bar = tqdm(desc=label, unit="B", unit_scale=True, disable=not show)

    def update(self, count: int) -> None:
        size = max(self.total, self.path.stat().st_size)
        if size > self.limit:
            raise ValueError(f"size: expected at most {self.limit} bytes, found {size} or more")
        self.bar.total = self.total or None
        self.bar.update(count)

    def reset(self) -> None:
        self.bar.reset()

    def close(self) -> None:
        self.bar.close()


def _download(name: str, file: str, url: str, target: Path, progress: bool) -> np.ndarray:
    import pooch

    with _new_file(target) as temporary:
        meter = _Meter(temporary, SIZES[file] + CHUNK, file, progress)
        get = pooch.HTTPDownloader(progressbar=meter, chunk_size=1 << 16, timeout=(MIRROR_SECONDS, READ_SECONDS))
        faults: list[Exception] = []

        def run() -> None:
            try:
                get(url, str(temporary), None)
            except Exception as error:  # urllib3 and requests raise many types
                faults.append(error.with_traceback(None))  # its frames would keep the connection, and this list, alive

        # A thread, because reading a header or a chunk has no time limit while bytes drip in. One that is left behind
        # ends at its next chunk, when the meter finds no file.
        thread = threading.Thread(target=run, daemon=True)
        seconds = SLOW_SECONDS + SIZES[file] / SLOW_RATE
        try:
            thread.start()
            thread.join(seconds)
        finally:
            meter.close()
        if thread.is_alive():
            raise _NotFetchedError(f"{url}: not done after {seconds:.0f} s")
        for error in faults:
            if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
                raise DataError(f"{target}: {error.strerror}") from error
            raise _NotFetchedError(f"{url}: {error}") from error
        try:
            return _read_verified(name, file, temporary)
        except DataError as error:
            raise _NotFetchedError(f"{url}: {str(error).removeprefix(f'{temporary}: ')}") from error


_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM}


def _fetch_debian(folder: Path, files: list[str], progress: bool) -> dict[str, np.ndarray]:
    """Download and unpack Debian's package in a temporary folder: no root, and nothing of the system is written.

    The system's package lists are tried first; where they are missing or old, lists are made in the temporary folder.
    """
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise _NotFetchedError("there is no apt-get here")
    if progress:
        print(f"fetching Debian's package {DEBIAN_PACKAGE} (31 MB)", file=sys.stderr)
    with (
        as_data_error("temporary folder"),
        tempfile.TemporaryDirectory(prefix="minigrad-", ignore_cleanup_errors=True) as name,
    ):
        work = Path(name)
        options = [f"Dir::Cache={work / 'cache'}", "Debug::NoLocking=1", "APT::Sandbox::User="]
        options += ["Acquire::Retries=0", "Acquire::http::Timeout=10", "Acquire::https::Timeout=10"]
        try:
            _apt(options, "download", DEBIAN_PACKAGE, work=work)
        except _NotFetchedError as error:
            if re.search("resolv|connect|timed out|unreachable", str(error), re.IGNORECASE):
                raise  # no network: new lists would not come either
            lists = work / "state" / "lists"
            (lists / "partial").mkdir(parents=True)
            options += [f"Dir::State={work / 'state'}", f"Dir::State::lists={lists}"]
            _apt(options, "update", work=work)
            _apt(options, "download", DEBIAN_PACKAGE, work=work)
        packages = list(work.glob(f"{DEBIAN_PACKAGE}_*.deb"))
        if not packages:
            raise _NotFetchedError(f"apt-get download: expected {DEBIAN_PACKAGE}_*.deb, found no such file")
        unpacked = work / "unpacked"
        _run(["dpkg-deb", "-x", str(packages[0]), str(unpacked)], work)
        arrays = {}
        for file in files:
            sources = [*unpacked.rglob(f"{file}.gz"), *unpacked.rglob(file)]
            if not sources:
                raise _NotFetchedError(f"Debian's package {packages[0].name}: lacks {file}")
            target = folder / f"{file}.gz"
            with _new_file(target) as temporary:
                with as_data_error(target):
                    shutil.copyfile(sources[0], temporary)
                try:
                    arrays[file] = _read_verified("fashion-mnist", file, temporary)
                except DataError as error:
                    fault = str(error).removeprefix(f"{temporary}: ")
                    raise _NotFetchedError(f"Debian's package {packages[0].name}: {file}: {fault}") from error
        return arrays


def _apt(options: list[str], *command: str, work: Path) -> None:
    _run(["apt-get", "-q", *(word for option in options for word in ("-o", option)), *command], work)


def _run(command: list[str], work: Path) -> None:
    """Run a program in `work`, for APT_SECONDS at most."""
    # A session of its own, so that the helpers a program starts can be ended with it.
    with subprocess.Popen(
        command,
        cwd=work,
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            errors = process.communicate(timeout=APT_SECONDS)[1].decode(errors="replace").splitlines()
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise _NotFetchedError(f"{command[0]}: not done after {APT_SECONDS:g} s") from error
            raise
    if process.returncode != 0:
        said = " ".join(line.strip() for line in errors if line.startswith(("E:", "dpkg-deb:"))) or " ".join(errors)
        raise _NotFetchedError(f"{command[0]}: exit {process.returncode}: {said.strip()[:300]}")


# ------------------------------------------------------------------------------------------------------ IDX files


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an IDX file of unsigned bytes, plain or gzip.

    Layout, big-endian: two zero bytes, the type code 0x08, the number n of dimensions, n 4-byte sizes, the data.

    Shapes: 1 to 4 dimensions, each at least 1; uint8.
    Raises:
        DataError: for every fault. No more is decompressed than the header announces, plus one byte; a header that
            announces more than MAX_BYTES is refused.
    """
    return _read_idx(Path(path), MAX_BYTES)[0]


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


def _read_idx(path: Path, limit: int) -> tuple[np.ndarray, str]:
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


def _own_idx(folder: Path) -> dict[str, Array]:
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
