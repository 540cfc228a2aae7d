"""Where a published set is found; the embedded sample, and the hash of a data set."""

import dataclasses
import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest
from data_cases import DIGITS, FASHION, digests, idx, put, refuses, same

from autoencoders.data import DataError, Dataset, collections, load_dataset, search

pytestmark = pytest.mark.usefixtures("world")


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
    digits = put(world / "digits", DIGITS)
    refuses("fashion-mnist", "a file of MNIST digits, not Fashion-MNIST's train-images", 400, data_dir=digits)
    refuses(
        "mnist", "a file of Fashion-MNIST, not MNIST digits's train-images", 400, data_dir=put(world / "f", FASHION)
    )
    both = put(world / "both", FASHION)
    put(both / "mnist", DIGITS)
    assert same(load_dataset("fashion-mnist", both), FASHION)
    digits = load_dataset("mnist", both)
    assert same(digits, DIGITS)
    assert digits.class_names == tuple("0123456789")


def test_an_announced_size_beyond_the_set_is_refused(world: Path) -> None:
    folder = put(world / "explicit", FASHION)
    (folder / f"{collections.TEST_LABELS}.gz").write_bytes(gzip.compress(idx(np.zeros(10_001, np.uint8))))
    refuses("fashion-mnist", "expected at most 10008 bytes, found 10009 bytes", data_dir=folder)


def test_auto_without_the_full_set_takes_the_sample_and_says_why(world: Path) -> None:
    dataset = load_dataset("auto", download=False)
    assert dataset.name == "fashion-mnist-sample"
    assert dataset.source.startswith("the embedded sample of Fashion-MNIST (4000 training and 1000 test images)")
    assert f"because the full set is not available: {world / 'cache' / 'fashion-mnist'}: no valid" in dataset.source
    assert "downloads are off" in dataset.source
    assert dataset.content_hash == load_dataset("fashion-mnist-sample").content_hash
    refuses("fashion-mnist", "downloads are off", download=False)
    assert "there is no apt-get here" in load_dataset("auto", world / "typo").source
    assert not (world / "typo").exists()


def test_unknown_names(world: Path) -> None:
    (world / "notes.txt").write_text("x")
    refuses("fashion", r"fashion: data set: expected auto, fashion-mnist, .* found nothing")
    refuses(world / "notes.txt", r"notes.txt: data set: .* found another kind of file")
    for bad in ("nul\0", "x" * 5000, ""):
        with pytest.raises(DataError):
            load_dataset(bad)


# ---- the embedded sample ----


def test_sample_is_small_and_has_not_changed() -> None:
    """It is the first 400 training and 100 test images of each class of the full set, in the order of the files."""
    assert sum((search.SAMPLE_FOLDER / f"{file}.gz").stat().st_size for file in collections.SIZES) <= 3_000_000
    sample = load_dataset("fashion-mnist-sample")
    # compared with the full set when it was made: of each class 400 and 100, in the original's order
    assert sample.content_hash == "eb8b0614806a1f224829b1f0987b73f3026e0b888feb12e0438fbb2fed57159d"
    assert "Copyright (c) 2017 Zalando SE, https://tech.zalando.com" in (search.SAMPLE_FOLDER / "LICENSE").read_text()


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
