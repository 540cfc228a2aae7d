"""Data sets: find, fetch, verify and decode Fashion-MNIST and MNIST; read a user's own images and arrays.

`load_dataset` is the entrance and `Dataset` what it gives. Below it, in reading order: the two collections with the
hashes of their files, the search and the downloads, the IDX reader, folders of images, NumPy files.

Every fault of a file is a `DataError` whose message names the file, the field, what was expected and what was found.
A file is accepted for its content, never for its name or its place: the SHA-256 of the decompressed bytes must be the
published one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import io
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
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from minigrad.random import generator
from minigrad.serialize import DataError, require_file

SAMPLE_FOLDER = Path(__file__).with_name("sample_data")
SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
DEBIAN_PACKAGE = "dataset-fashion-mnist"
CACHE_NAME = "minigrad-autoencoders"

MAX_BYTES = 1 << 30  # what a compressed file may expand to
MAX_CLASSES = 10_000  # a conditional model has weights for each class; a label beyond is no class
NPY_HEADER = 10_000  # bytes; NumPy refuses longer ones, but reads them first, up to 4 GB
CHUNK = 1 << 20
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


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images, their labels if there are any, and where they came from.

    Shapes: images (N, H, W, C), uint8, or float32 in [0, 1] where the file held floats; labels (N,), integers.
    """

    name: str
    train_images: np.ndarray = field(repr=False)
    train_labels: np.ndarray | None = field(repr=False)
    test_images: np.ndarray = field(repr=False)
    test_labels: np.ndarray | None = field(repr=False)
    class_names: tuple[str, ...]
    source: str

    @property
    def classes(self) -> int:
        """How many classes the labels tell apart: one for each name, or up to the largest label.

        Raises:
            DataError: training or test images have no labels, or there are more than MAX_CLASSES classes.
        """
        if self.train_labels is None or self.test_labels is None:
            raise DataError(
                f"{self.name}: a conditional model needs labels of training and test images; some have none"
            )
        count = len(self.class_names) or 1 + int(max(self.train_labels.max(), self.test_labels.max()))
        if count > MAX_CLASSES:
            raise _fault(
                self.name,
                "labels",
                f"0 to {MAX_CLASSES - 1} for a conditional model",
                f"{count - 1}; number the classes from 0",
            )
        return count

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 (hex) over the name, dtype, shape and bytes of each of the four arrays, in the order above."""
        digest = hashlib.sha256()
        for name in ("train_images", "train_labels", "test_images", "test_labels"):
            array = getattr(self, name)
            if array is None:
                digest.update(f"{name} none\n".encode())
            else:
                digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
                digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()


class _NotFetchedError(DataError):
    """The set is not here and no source gave it: the one fault for which `auto` takes the sample instead."""


def load_dataset(
    name: str | os.PathLike[str] = "auto",
    data_dir: str | os.PathLike[str] | None = None,
    *,
    download: bool = True,
    progress: bool = True,
) -> Dataset:
    """Load a data set by name, or from a path.

    Args:
        name: `fashion-mnist`, `mnist`, `fashion-mnist-sample` (5,000 images that come with this package), `auto`
            (Fashion-MNIST, or the sample where the full set is neither here nor to be had; `source` says which and
            why), or the path of a folder of images, of an `.npy` or of an `.npz` file.
        data_dir: folder of the IDX files, or of a sub-folder with the set's name. What it lacks is downloaded into it;
            what it holds must be right. Without it these are searched: the environment variable MINIGRAD_DATA, the
            user's cache (or the environment variable MINIGRAD_CACHE), and Debian's folder.
        download: whether the network may be used.
        progress: whether to show progress, which happens only when stderr is a terminal.

    Raises:
        DataError: names the file, the field, what was expected and what was found.
    """
    progress = progress and sys.stderr is not None and sys.stderr.isatty()
    if name in COLLECTIONS:
        return _load_collection(str(name), data_dir, download, progress)
    if name == "fashion-mnist-sample":
        return _load_sample("")
    if name == "auto":
        try:
            return _load_collection("fashion-mnist", data_dir, download, progress)
        except DataError as error:
            # A folder that the user named and that is wrong is an error; a cache that cannot be written is a reason.
            if data_dir is not None and not isinstance(error, _NotFetchedError):
                raise
            return _load_sample(f", because the full set could not be had: {error}")
    path = Path(name)
    with _as_data_error(path):
        if path.is_dir():
            return _load_image_folder(path, progress)
        if path.suffix in (".npy", ".npz") and path.exists():
            return _load_array_file(path)
        expected = f"{', '.join(NAMES)}, or an existing folder of images, .npy or .npz file"
        raise _fault(path, "data set", expected, "another kind of file" if path.exists() else "nothing of that name")


def _fault(where: object, what: str, expected: object, found: object) -> DataError:
    return DataError(f"{where}: {what}: expected {expected}, found {found}")


@contextlib.contextmanager
def _as_data_error(where: object) -> Iterator[None]:
    """Turn whatever goes wrong inside into a DataError that names `where`: decoders raise many types."""
    try:
        yield
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{where}: {error.strerror or error}") from error
    except Exception as error:
        raise DataError(f"{where}: cannot be read: {error or type(error).__name__}") from error


# ---------------------------------------------------------------------------------------- finding the published sets


def _load_sample(why: str) -> Dataset:
    train_images, train_labels, test_images, test_labels = (read_idx(SAMPLE_FOLDER / f"{file}.gz") for file in SIZES)
    return Dataset(
        name="fashion-mnist-sample",
        train_images=train_images[..., None],
        train_labels=train_labels,
        test_images=test_images[..., None],
        test_labels=test_labels,
        class_names=COLLECTIONS["fashion-mnist"].class_names,
        source=f"the embedded sample of Fashion-MNIST ({len(train_images)} training and {len(test_images)} test images)"
        + why,
    )


def _load_collection(name: str, data_dir: str | os.PathLike[str] | None, download: bool, progress: bool) -> Dataset:
    collection = COLLECTIONS[name]
    notes: list[str] = []
    if data_dir is not None:
        folder = _home(name, Path(data_dir))
        found, wrong = _survey(name, folder)
        if wrong:
            raise DataError(wrong[0])
    else:
        with _as_data_error("user cache"):
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
        raise _fault(path, "SHA-256 of the decompressed content", expected, digest + hint)
    return array


# ------------------------------------------------------------------------------------------------------- fetching


@contextlib.contextmanager
def _new_file(target: Path) -> Iterator[Path]:
    """A temporary path beside `target` that becomes `target` when the block ends well, and vanishes otherwise."""
    with _as_data_error(target.parent):
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
        with _as_data_error(target):
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
    with _as_data_error(folder):
        parent = next((path for path in (folder, *folder.parents) if path.exists()), folder)
        if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
            raise _fault(folder, "download folder", "a folder that can be written", f"that {parent} cannot")
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
        _as_data_error("temporary folder"),
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
                with _as_data_error(target):
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


def _read_idx(path: Path, limit: int) -> tuple[np.ndarray, str]:
    """The array of an IDX file of at most `limit` decompressed bytes, and the SHA-256 of those bytes."""
    with _as_data_error(path):
        require_file(path)
        with path.open("rb") as file:
            stream = _Stream(file, path)
            magic = stream.read(4)
            if len(magic) < 4:
                raise _fault(path, "magic number", "4 bytes", f"{len(magic)} bytes")
            if magic[:2] != b"\0\0":
                raise _fault(path, "magic number", "two zero bytes first", f"0x{magic.hex()}")
            if magic[2] != 0x08:
                raise _fault(path, "type code", "0x08 (unsigned byte)", f"0x{magic[2]:02x}")
            dimensions = magic[3]
            if not 1 <= dimensions <= 4:
                raise _fault(path, "number of dimensions", "1 to 4", dimensions)
            header = stream.read(4 * dimensions)
            if len(header) < 4 * dimensions:
                raise _fault(path, "dimension sizes", f"{4 * dimensions} bytes", f"{len(header)} bytes")
            shape = tuple(int(size) for size in np.frombuffer(header, ">u4"))
            if 0 in shape:
                raise _fault(path, "dimension sizes", "each at least 1", shape)
            total = 4 + len(header) + math.prod(shape)
            if total > limit:
                raise _fault(path, f"size announced by dimensions {shape}", f"at most {limit} bytes", f"{total} bytes")
            data = stream.read(math.prod(shape))
            if len(data) < math.prod(shape):
                raise _fault(path, "data", f"{math.prod(shape)} bytes for {shape}", f"{len(data)} bytes")
            stream.expect_end()
    digest = hashlib.sha256(magic + header)
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
                    raise _fault(self.path, "gzip stream", "valid data", f"corrupt data ({error})") from error
                if not source and not piece and not self.inflate.eof:
                    raise _fault(self.path, "gzip stream", "its end mark", "the end of the file (truncated)")
            out += piece
        return out

    def expect_end(self) -> None:
        if self.read(1):
            raise _fault(self.path, "after the data", "the end", "further bytes")
        if self.inflate is not None and (self.inflate.unused_data or self.file.read(1)):
            raise _fault(self.path, "after the gzip stream", "the end of the file", "further bytes")


# ------------------------------------------------------------------------------------- a user's own images and arrays

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")  # no format whose decoder starts a program


def _load_image_folder(folder: Path, progress: bool) -> Dataset:
    """The images of a folder in sorted order, or of its sub-folders, which are then the classes; no deeper.

    Shapes: (N, H, W, 1) if every image is grey, else (N, H, W, 3); transparency is dropped.
    """
    paths, labels, class_names = _list_images(folder)
    if len(paths) < 2:
        if any(_candidates(folder, file) for file in SIZES):
            raise _fault(folder, "content", "images", "IDX files (give the folder as data_dir, with the set's name)")
        raise _fault(folder, "content", f"at least 2 images ({' '.join(IMAGE_SUFFIXES)})", f"{len(paths)}")
    size, grey, transparent = (0, 0), True, False
    for path in paths:
        with _open_image(path) as image:
            size = size if size != (0, 0) else image.size
            if image.size != size:
                raise _fault(
                    path, "width and height", f"{size} like {paths[0].name}", f"{image.size}; resize or crop them"
                )
            if getattr(image, "is_animated", False):
                raise _fault(path, "frames", "one", f"{image.n_frames}; save each as an image of its own")
            if image.mode.startswith(("I", "F")):
                raise _fault(path, "pixels", "8 bits for each channel", f"Pillow's mode {image.mode}")
            grey = grey and image.mode in ("1", "L", "LA")
            transparent = transparent or image.has_transparency_data
            image.verify()  # checksums, which decoding does not look at
    mode, channels = ("L", 1) if grey else ("RGB", 3)
    with _as_data_error(f"{folder}: {len(paths)} images of {size[0]} x {size[1]}"):
        images = np.empty((len(paths), size[1], size[0], channels), np.uint8)
    for row, path in zip(images, tqdm(paths, desc="reading images", disable=not progress), strict=True):
        with _open_image(path) as image:
            row[...] = np.asarray(image.convert(mode)).reshape(row.shape)
    dropped = ", whose transparency is dropped" if transparent else ""
    source = f"{len(paths)} images from the folder {folder}{dropped}"
    return _split(str(folder), images, labels, class_names, source)


def _list_images(folder: Path) -> tuple[list[Path], np.ndarray | None, tuple[str, ...]]:
    def images_in(place: Path) -> list[Path]:
        return sorted(path for path in place.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())

    flat = images_in(folder)
    classes = {path: images_in(path) for path in sorted(folder.iterdir()) if path.is_dir()}
    classes = {path: found for path, found in classes.items() if found}
    if flat and classes:
        raise _fault(folder, "content", "images, or sub-folders of images", f"both ({flat[0].name}, {min(classes)})")
    if not classes:
        return flat, None, ()
    paths = [path for found in classes.values() for path in found]
    labels = np.repeat(np.arange(len(classes)), [len(found) for found in classes.values()])
    # A name that is not valid UTF-8 could be written to no report.
    return paths, labels, tuple(path.name.encode("utf-8", "backslashreplace").decode() for path in classes)


@contextlib.contextmanager
def _open_image(path: Path) -> Iterator[Any]:
    from PIL import Image

    with _as_data_error(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            yield image


def _load_array_file(path: Path) -> Dataset:
    """Images (N, H, W) or (N, H, W, C), uint8 or floats in [0, 1], from `.npy`, or from `.npz` by name.

    Names in an `.npz`: train_images or x_train; optional test_images or x_test, train_labels or y_train, test_labels
    or y_test. Without test images every 10th training image becomes one.
    """
    require_file(path)
    with path.open("rb") as file:
        if path.suffix == ".npy":
            images = _images(f"{path}: array", _read_npy(file, os.fstat(file.fileno()).st_size, f"{path}: array"))
            return _split(str(path), images, None, (), f"{len(images)} images from {path}")
        arrays = _read_npz(file, path)
    if "train_images" not in arrays:
        raise _fault(path, "arrays", "train_images or x_train", ", ".join(arrays) or "none of the known names")
    train_images = _images(f"{path}: train_images", arrays["train_images"])
    train_labels = _labels(path, arrays, "train_labels", len(train_images))
    if "test_images" not in arrays:
        return _split(str(path), train_images, train_labels, (), f"{len(train_images)} images from {path}")
    test_images = _images(f"{path}: test_images", arrays["test_images"])
    for what, one, other in (
        ("image shape", train_images.shape[1:], test_images.shape[1:]),
        ("dtype", train_images.dtype, test_images.dtype),
    ):
        if one != other:
            raise _fault(f"{path}: test_images", what, f"{one} like train_images", other)
    return Dataset(
        name=str(path),
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=_labels(path, arrays, "test_labels", len(test_images)),
        class_names=(),
        source=f"{len(train_images)} training and {len(test_images)} test images from {path}",
    )


def _read_npz(file: IO[bytes], path: Path) -> dict[str, np.ndarray]:
    names = {"train_images": "x_train", "train_labels": "y_train", "test_images": "x_test", "test_labels": "y_test"}
    limit = max(MAX_BYTES, os.fstat(file.fileno()).st_size)
    arrays = {}
    with zipfile.ZipFile(file) as archive:
        for name, other in names.items():
            members = [member for member in (f"{name}.npy", f"{other}.npy") if member in archive.namelist()]
            if len(members) > 1:
                raise _fault(path, "arrays", f"{name} or {other}", "both")
            for member in members:
                size = archive.getinfo(member).file_size
                if size > limit:
                    raise _fault(f"{path}: {member}", "decompressed size", f"at most {limit} bytes", f"{size} bytes")
                with archive.open(member) as stream:
                    arrays[name] = _read_npy(stream, size, f"{path}: {member}")
    return arrays


def _read_npy(stream: IO[bytes], size: int, where: str) -> np.ndarray:
    """An array of numbers from an `.npy` stream of `size` bytes; its header is checked before memory is taken."""
    with _as_data_error(where):
        head = io.BytesIO(stream.read(NPY_HEADER))
        version = np.lib.format.read_magic(head)
        if version not in ((1, 0), (2, 0)):
            raise _fault(where, "npy version", "1.0 or 2.0", ".".join(map(str, version)))
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(head)
        if dtype.kind not in "uif":
            raise _fault(where, "dtype", "numbers", dtype)
        total = head.tell() + math.prod(shape) * dtype.itemsize
        if total != size:
            raise _fault(where, f"size for shape {shape} and dtype {dtype}", f"{total} bytes", f"{size} bytes")
        stream.seek(0)
        array: np.ndarray = np.load(stream, allow_pickle=False)
        return array


def _images(where: str, array: np.ndarray) -> np.ndarray:
    if array.ndim not in (3, 4):
        one = "; one image is no data set" if array.ndim == 2 else ""
        raise _fault(where, "shape", "(N, H, W) or (N, H, W, C)", f"{array.shape}{one}")
    if array.ndim == 4 and array.shape[1] in (1, 3) and array.shape[3] > 4:
        mend = "; are the channels first? array.transpose(0, 2, 3, 1) brings them last"
        raise _fault(where, "shape", "(N, H, W, C)", f"{array.shape}{mend}")
    if 0 in array.shape:
        raise _fault(where, "shape", "no empty dimension", array.shape)
    if array.dtype.kind == "f":
        low, high = array.min(), array.max()
        if np.isnan(low):
            raise _fault(where, "values", "numbers in [0, 1]", "NaN")
        if low < 0 or high > 1:
            mend = "; divide by 255" if low >= 0 and 1 < high <= 255 else ""
            raise _fault(where, "values", "floats in [0, 1]", f"{low:g} to {high:g}{mend}")
        array = array.astype(np.float32)
    elif array.dtype != np.uint8:
        raise _fault(where, "dtype", "uint8, or floats in [0, 1]", array.dtype)
    return np.ascontiguousarray(array.reshape(*array.shape[:3], -1))


def _labels(path: Path, arrays: dict[str, np.ndarray], name: str, count: int) -> np.ndarray | None:
    if name not in arrays:
        return None
    labels = arrays[name]
    if labels.dtype.kind not in "ui":
        raise _fault(f"{path}: {name}", "dtype", "integers", labels.dtype)
    if labels.shape != (count,):
        raise _fault(f"{path}: {name}", "shape", (count,), labels.shape)
    labels = labels.astype(np.int64)
    if labels.min() < 0:
        raise _fault(f"{path}: {name}", "values", "at least 0", labels.min())
    return labels


def _split(
    name: str, images: np.ndarray, labels: np.ndarray | None, class_names: tuple[str, ...], source: str
) -> Dataset:
    """Every 10th image, beginning with the first, is a test image, so two images are enough for a split. Both parts are
    shuffled where there are labels: images come class by class, and the first thousand must not be of one class."""
    if len(images) < 2:
        raise _fault(name, "images", "at least 2", len(images))
    order = np.arange(len(images)) if labels is None else generator(0, "shuffle").permutation(len(images))
    train, test = order[order % 10 != 0], order[order % 10 == 0]
    return Dataset(
        name=name,
        train_images=images[train],
        train_labels=None if labels is None else labels[train],
        test_images=images[test],
        test_labels=None if labels is None else labels[test],
        class_names=class_names,
        source=f"{source}, every 10th for testing",
    )
