"""Fetch the files of a published data set: from its mirrors, or from Debian's package."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from minigrad.serialize import DataError, read_file, write_atomically

from .collections import COLLECTIONS, SIZES, read_verified
from .dataset import CHUNK, as_data_error, fault

DEBIAN_PACKAGE = "dataset-fashion-mnist"

MIRROR_SECONDS = 6.0  # within which a mirror must answer
READ_SECONDS = 20.0  # of silence during a download
# A server that sends a byte now and then is never silent: a file gets this long, and its size at this rate besides.
SLOW_SECONDS = 60.0
SLOW_RATE = 20_000  # bytes per second; the largest file gets 40 minutes, which is enough even for a 2G connection
APT_SECONDS = 300.0  # for each program started

Files = Iterable[tuple[str, str, bytes]]  # the name of each, where it is from, and its content


class NotFetchedError(DataError):
    """The set is not here and no source gave it: the one fault for which `auto` takes the sample instead."""


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
    sources: dict[str, Callable[[list[str], bool], Files]] = {
        f"downloaded from {mirror}": partial(_from_mirror, mirror) for mirror in COLLECTIONS[name].mirrors
    }
    if name == "fashion-mnist":
        sources[f"unpacked from Debian's package {DEBIAN_PACKAGE}"] = _from_debian
    arrays: dict[str, np.ndarray] = {}
    origins: list[str] = []
    reasons: list[str] = []
    for origin, source in sources.items():
        missing = [file for file in files if file not in arrays]
        try:
            for file, where, content in source(missing, progress) if missing else ():
                try:
                    arrays[file] = read_verified(name, file, where, io.BytesIO(content))
                except DataError as error:
                    raise NotFetchedError(str(error)) from error
                write_atomically(folder / f"{file}.gz", content)
                if origin not in origins:
                    origins.append(origin)
        except NotFetchedError as error:
            reasons.append(str(error))
    if missing := [file for file in files if file not in arrays]:
        raise NotFetchedError(f"{folder}: {missing[0]} could not be fetched: {'; '.join(reasons)}")
    return arrays, " and ".join(origins)


# -------------------------------------------------------------------------------------------------------- mirrors


class _Body(io.BytesIO):
    """What has come of a download. One that grows beyond the limit is given up."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def write(self, chunk: Any) -> int:
        if (size := self.tell() + len(chunk)) > self.limit:
            raise ValueError(f"size: expected at most {self.limit} bytes, found {size} or more")
        return super().write(chunk)


def _from_mirror(mirror: str, files: list[str], progress: bool) -> Files:
    for file in files:
        yield file, f"{mirror}{file}.gz", _download(mirror, file, progress)


def _download(mirror: str, file: str, progress: bool) -> bytes:
    import pooch
    import requests

    url = f"{mirror}{file}.gz"
    bar = tqdm(desc=file, unit="B", unit_scale=True, total=SIZES[file], disable=not progress)  # pooch sets the total
    with bar, _Body(SIZES[file] + CHUNK) as body:
        get = pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 12, timeout=(MIRROR_SECONDS, READ_SECONDS))
        faults: list[Exception] = []

        def run() -> None:
            try:
                get(url, body, None)
            except Exception as error:  # urllib3 and requests raise many types
                faults.append(error.with_traceback(None))  # its frames would keep the connection, and this list, alive

        # A thread, because looking up a name, and reading a header or a chunk while bytes drip in, have no time limit.
        # One that is left behind ends at its next chunk, because the body is closed.
        thread = threading.Thread(target=run, daemon=True)
        seconds = SLOW_SECONDS + SIZES[file] / SLOW_RATE
        thread.start()
        thread.join(MIRROR_SECONDS)
        if thread.is_alive() and body.tell():
            thread.join(seconds)
        for error in faults:
            silent = isinstance(error, requests.ConnectionError) and not isinstance(error, requests.exceptions.SSLError)
            if body.tell() or not silent:
                raise NotFetchedError(f"{url}: {error}") from error
        if not body.tell():
            raise NotFetchedError(f"{mirror} does not answer")
        if thread.is_alive():
            raise NotFetchedError(f"{url}: not done after {seconds:.0f} s")
        return body.getvalue()


# ----------------------------------------------------------------------------------------------- Debian's package


def _from_debian(files: list[str], progress: bool) -> Files:
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
        package = next(work.glob(f"{DEBIAN_PACKAGE}_*.deb"), None)
        if not package:
            raise NotFetchedError(f"apt-get download: expected {DEBIAN_PACKAGE}_*.deb, found no such file")
        unpacked = work / "unpacked"
        _run(["dpkg-deb", "-x", str(package), str(unpacked)], work)
        found = []
        for file in files:
            where = f"Debian's package {package.name}: "
            path = next((path for name in (f"{file}.gz", file) for path in unpacked.rglob(name)), None)
            if not path:
                raise NotFetchedError(f"{where}lacks {file}")
            found.append((file, f"{where}{file}", read_file(path, most=SIZES[file] + CHUNK)))
        return found


def _apt(options: list[str], *command: str, work: Path) -> None:
    _run(["apt-get", "-q", *(word for option in options for word in ("-o", option)), *command], work)


def _run(command: list[str], work: Path) -> None:
    """Run a program in `work`, for APT_SECONDS at most."""
    try:
        done = subprocess.run(
            command,
            cwd=work,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=APT_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise NotFetchedError(f"{command[0]}: not done after {APT_SECONDS:g} s") from error
    if done.returncode != 0:
        errors = done.stderr.splitlines()
        said = " ".join(line.strip() for line in errors if line.startswith(("E:", "dpkg-deb:"))) or " ".join(errors)
        raise NotFetchedError(f"{command[0]}: exit {done.returncode}: {said.strip()[:300]}")
