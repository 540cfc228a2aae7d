"""Debian's package."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from data_cases import DIGITS, FASHION, leftovers, put, same

from autoencoders.data import DataError, collections, download, load_dataset

pytestmark = pytest.mark.usefixtures("world")


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
