"""The embedded sample.

`python tests/data/test_sample.py` writes it anew from the full set.
"""

from __future__ import annotations

import dataclasses
import gzip

import numpy as np
import pytest
from data_cases import CLASSES, SAMPLE_TEST, SAMPLE_TRAIN, idx, sample_of

from autoencoders.data import Dataset, collections, load_dataset, read_idx, search

pytestmark = pytest.mark.usefixtures("world")


def test_sample_is_small_balanced_and_ordinary() -> None:
    assert sum((search.SAMPLE_FOLDER / f"{file}.gz").stat().st_size for file in collections.SIZES) <= 3_000_000
    sample = load_dataset("fashion-mnist-sample")
    assert sample.train_images.shape == (CLASSES * SAMPLE_TRAIN, 28, 28, 1)
    assert sample.test_images.shape == (CLASSES * SAMPLE_TEST, 28, 28, 1)
    assert sample.train_images.dtype == sample.test_images.dtype == np.uint8
    assert np.array_equal(np.bincount(sample.train_labels), [SAMPLE_TRAIN] * CLASSES)
    assert np.array_equal(np.bincount(sample.test_labels), [SAMPLE_TEST] * CLASSES)
    assert len(sample.class_names) == CLASSES
    assert list(sample.train_labels[:10]) == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]  # the original's beginning
    assert (
        (search.SAMPLE_FOLDER / "LICENSE").read_text().count("Copyright (c) 2017 Zalando SE, https://tech.zalando.com")
    )


def test_sample_is_part_of_the_real_set(real_set: Dataset) -> None:
    for file, array in sample_of(real_set).items():
        assert np.array_equal(read_idx(search.SAMPLE_FOLDER / f"{file}.gz"), array)


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


def make_sample() -> None:
    for file, array in sample_of(load_dataset("fashion-mnist")).items():
        (search.SAMPLE_FOLDER / f"{file}.gz").write_bytes(gzip.compress(idx(array), 9, mtime=0))


if __name__ == "__main__":
    make_sample()
