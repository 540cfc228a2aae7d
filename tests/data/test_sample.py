"""The embedded sample, and the hash of a data set."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from autoencoders.data import Dataset, collections, load_dataset, search

pytestmark = pytest.mark.usefixtures("world")


def test_sample_is_small_balanced_and_ordinary() -> None:
    """It is the first 400 training and 100 test images of each class of the full set, in the order of the files."""
    assert sum((search.SAMPLE_FOLDER / f"{file}.gz").stat().st_size for file in collections.SIZES) <= 3_000_000
    sample = load_dataset("fashion-mnist-sample")
    assert sample.train_images.shape == (4000, 28, 28, 1)
    assert sample.test_images.shape == (1000, 28, 28, 1)
    assert np.array_equal(np.bincount(sample.train_labels), [400] * 10)
    assert np.array_equal(np.bincount(sample.test_labels), [100] * 10)
    assert len(sample.class_names) == 10
    assert list(sample.train_labels[:10]) == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]  # the original's beginning
    # compared with the full set when it was made
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
