"""The published data sets: what they are called, where they come from, and the hashes of their files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO

import numpy as np

from .dataset import fault
from .idx import read_hashed

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


def read_verified(name: str, file: str, where: object, content: IO[bytes]) -> np.ndarray:
    """The array in the content of a file of a published set, whose hash must be the published one."""
    array, digest = read_hashed(where, content, SIZES[file])
    expected = COLLECTIONS[name].sha256[file]
    if digest != expected:
        hint = ""
        for other in COLLECTIONS.values():
            if digest in other.sha256.values():
                hint = f": this is a file of {other.title}, not {COLLECTIONS[name].title}'s {file}"
        raise fault(where, "SHA-256 of the decompressed content", expected, digest + hint)
    return array
