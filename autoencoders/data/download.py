"""Fetch the files of a published data set: from its mirrors, or from Debian's package."""

from __future__ import annotations

import contextlib
import errno
import http.client
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
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minigrad.serialize import DataError

from .collections import COLLECTIONS, SIZES, read_verified
from .dataset import CHUNK, as_data_error, fault

DEBIAN_PACKAGE = "dataset-fashion-mnist"

MIRROR_SECONDS = 6.0  # within which a mirror must answer; all are asked at once
READ_SECONDS = 20.0  # of silence during a download
# A server that sends a byte now and then is never silent: a file gets this long, and its size at this rate besides.
SLOW_SECONDS = 60.0
SLOW_RATE = 20_000  # bytes per second; the largest file gets 40 minutes, which is enough even for a 2G connection
STALE_SECONDS = 86_400.0  # a partial file older than this is from a killed download; no live download takes so long
APT_SECONDS = 300.0  # for each program started


class NotFetchedError(DataError):
    """The set is not here and no source gave it: the one fault for which `auto` takes the sample instead."""


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


def fetch(name: str, folder: Path, files: list[str], progress: bool) -> tuple[dict[str, np.ndarray], str]:
    """Get `files` into `folder`, verified, from the mirrors or else from Debian; give their arrays and origin.

    Raises:
        NotFetchedError: no source had them all; the message says what each answered.
        DataError: the folder cannot be written.
    """
    with as_data_error(folder):
        parent = next((path for path in (folder, *folder.parents) if path.exists()), folder)
        if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
            raise fault(folder, "download folder", "a writable folder", f"that {parent} is not writable")
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
        except NotFetchedError as error:
            reasons.append(str(error))
    missing = [file for file in files if file not in arrays]
    if missing and name == "fashion-mnist":
        try:
            arrays |= _fetch_debian(folder, missing, progress)
            origins.append(f"unpacked from Debian's package {DEBIAN_PACKAGE}")
            missing = []
        except NotFetchedError as error:
            reasons.append(str(error))
    if missing:
        raise NotFetchedError(f"{folder}: {missing[0]} could not be fetched: {'; '.join(reasons)}")
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
            raise NotFetchedError(f"{url}: not done after {seconds:.0f} s")
        for error in faults:
            if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
                raise DataError(f"{target}: {error.strerror}") from error
            raise NotFetchedError(f"{url}: {error}") from error
        try:
            return read_verified(name, file, temporary)
        except DataError as error:
            raise NotFetchedError(f"{url}: {str(error).removeprefix(f'{temporary}: ')}") from error


_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM}


def _fetch_debian(folder: Path, files: list[str], progress: bool) -> dict[str, np.ndarray]:
    """Download and unpack Debian's package in a temporary folder: no root, and nothing of the system is written.

    The system's package lists are tried first; where they are missing or old, lists are made in the temporary folder.
    """
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise NotFetchedError("there is no apt-get here")
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
        except NotFetchedError as error:
            if re.search("resolv|connect|timed out|unreachable", str(error), re.IGNORECASE):
                raise  # no network: new lists would not come either
            lists = work / "state" / "lists"
            (lists / "partial").mkdir(parents=True)
            options += [f"Dir::State={work / 'state'}", f"Dir::State::lists={lists}"]
            _apt(options, "update", work=work)
            _apt(options, "download", DEBIAN_PACKAGE, work=work)
        packages = list(work.glob(f"{DEBIAN_PACKAGE}_*.deb"))
        if not packages:
            raise NotFetchedError(f"apt-get download: expected {DEBIAN_PACKAGE}_*.deb, found no such file")
        unpacked = work / "unpacked"
        _run(["dpkg-deb", "-x", str(packages[0]), str(unpacked)], work)
        arrays = {}
        for file in files:
            sources = [*unpacked.rglob(f"{file}.gz"), *unpacked.rglob(file)]
            if not sources:
                raise NotFetchedError(f"Debian's package {packages[0].name}: lacks {file}")
            target = folder / f"{file}.gz"
            with _new_file(target) as temporary:
                with as_data_error(target):
                    shutil.copyfile(sources[0], temporary)
                try:
                    arrays[file] = read_verified("fashion-mnist", file, temporary)
                except DataError as error:
                    fault = str(error).removeprefix(f"{temporary}: ")
                    raise NotFetchedError(f"Debian's package {packages[0].name}: {file}: {fault}") from error
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
                raise NotFetchedError(f"{command[0]}: not done after {APT_SECONDS:g} s") from error
            raise
    if process.returncode != 0:
        said = " ".join(line.strip() for line in errors if line.startswith(("E:", "dpkg-deb:"))) or " ".join(errors)
        raise NotFetchedError(f"{command[0]}: exit {process.returncode}: {said.strip()[:300]}")
