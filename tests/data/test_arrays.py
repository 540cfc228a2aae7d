"""Arrays in .npy and .npz files."""

import io
import os
import re
import struct
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from data_cases import PNG, encoded, fill, flipped, memory_below, own, put_files, refuses, same, shuffled, write_parquet

from autoencoders.data import DataError, Dataset, collections, load_dataset, own_arrays, own_images
from autoencoders.data.dataset import CHUNK, class_labels, value_fault
from minigrad.random import generator

pytestmark = pytest.mark.usefixtures("world")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(12, 5, 6), (12, 5, 6, 1), (12, 5, 6, 3), (23, 6, 5, 7), (12, 784)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.float64, np.float16, ">f4", ">u2"])
def test_npy(tmp_path: Path, shape: tuple[int, ...], dtype, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.Generator(np.random.PCG64(0))
    floats = np.dtype(dtype).kind == "f"
    images = (draw.random(shape) if floats else draw.integers(0, 256, shape)).astype(dtype)
    np.save(tmp_path / "images.npy", np.asarray(images, order=order))
    size = (28, 28) if shape[1:] == (784,) else shape[1:3]
    wanted = images.astype(np.float32 if floats else np.uint8).reshape(shape[0], *size, -1)
    train, test = shuffled(shape[0])
    for chunk in (CHUNK, 1000, 1):
        monkeypatch.setattr(own_arrays, "CHUNK", chunk)
        dataset = load_dataset(tmp_path / "images.npy")
        assert dataset.train_images.dtype == wanted.dtype
        assert np.array_equal(dataset.test_images, wanted[test])
        assert np.array_equal(dataset.train_images, wanted[train])
        assert dataset.train_images.flags.c_contiguous
        assert not dataset.ordered


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("chunk", [10_000_000, 1])
@pytest.mark.parametrize("axes", [(0, 3, 1, 2), (1, 2, 3, 0)])
@pytest.mark.parametrize("shape", [(11, 7, 6, 3), (20, 6, 5, 1)])
def test_axes_in_another_order_are_recognised(tmp_path, monkeypatch, axes, shape, chunk: int, order: str) -> None:
    images = np.random.Generator(np.random.PCG64(0)).integers(0, 256, shape, np.uint8)
    monkeypatch.setattr(own_arrays, "CHUNK", chunk)
    np.save(tmp_path / "x.npy", np.asarray(images.transpose(axes), order=order))
    dataset = load_dataset(tmp_path / "x.npy")
    assert np.array_equal(dataset.train_images, images[shuffled(len(images))[0]])
    assert f"axes taken as ({', '.join('NHWC'[axis] for axis in axes)})" in dataset.source


DOUBTFUL = {  # what is refused, and what helps
    (32, 32, 3): "found .32, 32, 3.; if that is one image, more are needed; if these are 32 grey images, use images",
    (3, 32, 32): "if that is one image",
    (28, 28): "one image is no data set",
    (256, 256): r"images.reshape\(-1, 16, 16\) if each row is an image; one image is no data set",
    (300, 256): r"images.reshape\(-1, 16, 16\) if each row is an image",
    (2000, 3000): "reshape it if each row is an image",
    (28, 28, 500): r"np.moveaxis\(images, -1, 0\) if the images come last, images\[..., None\] if they are 28 x 500",
    (20, 9, 300): "if the images come last",
    (5, 1, 4, 4): r"images.transpose\(0, 2, 3, 1\) if the channels come first$",
    (32, 32, 3, 4): r"np.moveaxis\(images, -1, 0\) if the images come last$",
    (3, 32, 32, 50): "50.; np.moveaxis",
    (4, 3, 3, 1, 1): "reshape it",
    (0, 3, 3): "no axis may be empty",
}


@pytest.mark.parametrize("shape", DOUBTFUL, ids=str)
def test_shapes_that_can_be_read_in_two_ways_are_refused_with_advice_that_helps(tmp_path: Path, shape) -> None:
    images = np.full(shape, 200, np.uint8)
    np.save(tmp_path / "x.npy", images)
    said = refuses(tmp_path / "x.npy", f"x.npy: array: shape: expected .*{DOUBTFUL[shape]}")
    if shape in ((256, 256), (300, 256)):  # the rows of a table are no lines of a picture
        np.savetxt(tmp_path / "x.csv", images, "%d", ",")
        assert load_dataset(tmp_path / "x.csv").train_images.shape[1:] == (16, 16, 1)
    for expression in re.findall(r"(?:np|images)\.\w+\([^)]*\)|images\[[^\]]*\]", said):
        np.save(tmp_path / "x.npy", eval(expression, {"np": np, "images": images}))
        load_dataset(tmp_path / "x.npy")


ZEROS = np.zeros((4, 3, 3), np.float32)
BYTES = np.zeros((4, 3, 3), np.uint8)
EYE = np.eye(3, dtype=np.uint8)
ONES = "0 and 1 are taken as black and white"
# values; the brightest pixel that is loaded, what the source says, or else what the error says
VALUES = {
    "bytes of 0 and 1": (BYTES + EYE, 255, ONES),
    "truth": (BYTES + EYE > 0, 255, ONES),
    "makes 1 white": (BYTES + np.uint8(255) * EYE, 255, ""),
    "dark": (BYTES + np.uint8(15), 15, "all are dark: the brightest value is 15, white is 255"),
    "divided twice": (ZEROS + np.float32(1 / 255), 1 / 255, "the brightest value is 0.00392157, white is 1"),
    "black": (BYTES, 0, ""),
    "rounding": (ZEROS + np.array([-1e-7, 1, 1.0000001]), 1, ""),
    "int32": (BYTES.astype(np.int32) + 255, 255, ""),
    "one too many": (BYTES.astype(np.int32) + 256, None, "found 256 to 256; divide by the value of white$"),
    "-1 to 1 in bytes": (BYTES + np.array([-1, 0, 1], np.int8), None, "found -1 to 1; undo the standardisation or of"),
    "excess": (ZEROS + 1.001, None, r"expected floats in \[0, 1\], found 1.001 to 1.001; images.clip\(0, 1\) clips"),
    "one NaN": (np.where(np.arange(36).reshape(4, 3, 3) == 7, np.nan, 255.0), None, "found NaN; leave out the images"),
    "infinite": (ZEROS + np.float32(np.inf), None, "found infinity; leave out the images"),
    "too large for float32": (ZEROS.astype(float) + 1e300, None, r"found 1e\+300 to 1e\+300; divide by the value of"),
    "0 to 255": (ZEROS + np.float32(255), None, "found 255 to 255; divide by 255$"),
    "0 to 16": (ZEROS + np.float32(16), None, "found 16 to 16; divide by the value of white$"),
    "-1 to 1": (ZEROS + np.array([-1, 0, 1]), None, r"found -1 to 1; use \(images \+ 1\) / 2$"),
    "-0.5 to 0.5": (ZEROS + np.array([-0.5, 0, 0.5]), None, "found -0.5 to 0.5; undo the standardisation or"),
    "resized": (ZEROS + np.array([-9, 99, 260]), None, "found -9 to 260; undo the .* offset, and clip the result$"),
    "16 bits": (BYTES.astype(np.uint16) + 40000, None, "numbers from 0 to 255, found 40000 to 40000; divide by the va"),
    "text": (np.array([[["a"]]]), None, "dtype: expected numbers, found str"),
    "objects": (np.array([[[None]]]), None, "dtype: expected numbers, found object"),
    "complex": (ZEROS.astype(complex), None, "dtype: expected numbers, found complex128"),
    "one": (ZEROS[:1], None, "images: expected at least 2, found 1"),
}


@pytest.mark.parametrize("case", VALUES)
def test_values_have_one_cause_and_one_advice_each(tmp_path: Path, case: str) -> None:
    array, brightest, said = VALUES[case]
    path = tmp_path / "images.npy"
    np.save(path, array, allow_pickle=True)
    if brightest is None:
        error = refuses(path, f"^{path}: array: .*{said}")
        if array.dtype.kind in "uif" and len(array) > 1:  # what the models say is the same
            assert value_fault(array).endswith(error.partition("values: ")[2])
        return
    dataset = load_dataset(path)
    assert dataset.train_images.max() == dataset.test_images.max() == np.float32(brightest)
    assert dataset.train_images.min() >= 0
    assert said in dataset.source
    assert said or dataset.source.endswith("testing")


def test_both_parts_have_one_scale(tmp_path: Path) -> None:
    ones = BYTES + EYE
    dataset = own(tmp_path, x_train=ones, x_test=ones.astype(bool))
    assert dataset.train_images.max() == dataset.test_images.max() == 255
    for train, test in ((ones, 255 * ones), (255 * ones, ones)):
        with pytest.raises(DataError, match=r"brightest value: .* found 1 in one and 255 in the other"):
            own(tmp_path, x_train=train, x_test=test)
    assert own(tmp_path, x_train=255 * ones, x_test=BYTES).test_images.max() == 0
    put_files(tmp_path / "folder", {f"{name}.png": encoded(ones[0], "png") for name in "ab"})
    assert "0 and 1 are taken as" in load_dataset(tmp_path / "folder").source


SPELLINGS = (
    "train_images train_labels test_images test_labels",
    "X_train Y_train X_test Y_test",
    "trainX trainY testX testY",
    "train train_targets test test_targets",
    "training_data training_labels testing_data testing_labels",
    "train/imgs train/classes val/imgs val/classes",
)


@pytest.mark.parametrize("names", SPELLINGS)
def test_both_parts_in_an_npz(tmp_path: Path, names: str) -> None:
    images = 255 - np.arange(96, dtype=np.uint8).reshape(6, 4, 4)
    arrays = (images[:4], np.arange(4), images[4:], np.array([7, 8], np.int8))
    path = tmp_path / "set.npz"
    np.savez_compressed(path, **dict(zip(names.split(), arrays, strict=True)), other=np.array(["ignored"]))
    dataset = load_dataset(path)
    assert same(dataset, dict(zip(collections.SIZES, arrays, strict=True)))
    assert dataset.train_labels.dtype == dataset.test_labels.dtype == np.int64
    assert dataset.class_names == ()
    note = "val/imgs are for testing; " if "val" in names else ""
    assert dataset.source == f"4 training and 2 test images from {path}; {note}not used: other"
    assert dataset.ordered


PICTURES = np.full((5, 6, 6), 200, np.uint8)
SIX = np.full((5, 8, 8, 6), 200)  # channels
SEVEN = np.arange(5) + 7
NAMED = {  # arrays; number of images for testing, labels of all, what the source says
    "one array": ({"arr_0": PICTURES}, 1, None, "testing$"),
    "one part": ({"x_train": PICTURES}, 1, None, "testing$"),
    "images": ({"images": PICTURES, "meta": np.arange(3)}, 1, None, "the images are images; not used: meta"),
    "images and labels": ({"images": PICTURES, "labels": SEVEN}, 1, list(SEVEN), "the images are images"),
    "x and y": ({"x": PICTURES, "y": SEVEN}, 1, list(SEVEN), "the images are x"),
    "dSprites": ({"imgs": PICTURES, "latents_values": np.zeros((5, 6))}, 1, None, "not used: latents_values"),
    "objects beside": ({"faces": PICTURES, "meta": np.array([{}, 1])}, 1, None, "the images are faces; not used: meta"),
    "rows": ({"kmnist": np.full((5, 784), 200), "ids": SEVEN}, 1, None, "the images are kmnist; rows of|not used: ids"),
    "val": ({"x_train": PICTURES, "x_test": PICTURES[:4], "x_val": PICTURES}, 4, None, "not used: x_val"),
    "channels": ({"x_train": SIX, "x_test": SIX[:4]}, 4, None, r"npz; axes taken as \(N, H, W, C\) with 6 channels$"),
    "more names": ({"x_train": PICTURES, "images": PICTURES, "data": SEVEN}, 1, None, "not used: images, data"),
}


@pytest.mark.parametrize("case", NAMED)
def test_names_in_an_npz(tmp_path: Path, case: str) -> None:
    arrays, test, labels, said = NAMED[case]
    dataset = own(tmp_path, **arrays)
    assert len(dataset.test_images) == test
    assert re.search(said, dataset.source)
    assert (dataset.train_labels is None) == (labels is None)
    assert labels is None or sorted([*dataset.train_labels, *dataset.test_labels]) == labels


LABELS = {  # labels, what is made of them, or else what is said
    "a column": (np.array([[3], [1], [2], [0]], np.uint8), [3, 1, 2, 0], ""),
    "a row": (np.array([[3, 1, 2, 0]]), [3, 1, 2, 0], ""),
    "whole floats": (np.array([0, 1, 2, 3], np.float16), [0, 1, 2, 3], ""),
    "truth": (np.array([True, False, True, False]), [1, 0, 1, 0], ""),
    "large": (np.array([0, 1, 2, 2**63 - 1], np.uint64), [0, 1, 2, 2**63 - 1], ""),
    "fractions": (np.array([0, 1.5, 2, 3]), None, r"expected whole numbers from 0 on \(4,\), found 1.5"),
    "NaN": (np.array([0, 1, 2, np.nan]), None, "found nan"),
    "infinity": (np.array([0, 1, 2, np.inf]), None, "found inf"),
    "negative": (-np.arange(4), None, "found -1"),
    "too large": (np.array([0, 1, 2, 2**63], np.uint64), None, "found 9223372036854775808"),
    "too few": (np.arange(3), None, r"found shape \(3,\)"),
    "one-hot": (np.eye(4, dtype=int), None, r"found shape \(4, 4\); labels.argmax\(axis=1\) turns one-hot rows into"),
    "text": (np.array(list("abca")), None, "found <U1; number the classes from 0, in the same way"),
    "objects": (np.array([None, 1, 2, 3]), None, "y_train: dtype: expected numbers, found objects"),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_that_nothing_needs_stop_nothing(tmp_path: Path, case: str) -> None:
    labels, wanted, said = LABELS[case]
    dataset = own(tmp_path, x_train=PICTURES[:4], y_train=labels, x_test=PICTURES[:2], y_test=np.arange(2))
    assert list(dataset.test_labels) == [0, 1]
    if wanted is not None:
        assert list(dataset.train_labels) == wanted
        assert dataset.train_labels.dtype == np.int64
        assert dataset.source.endswith("own.npz")
        return
    assert dataset.train_labels is None
    assert re.search("; no labels: train .*" + said, dataset.source)
    told = pytest.raises(DataError, match="npz: a conditional model needs labels of .* images; train .*" + said)
    with told as caught:
        print(dataset.classes)
    assert len(str(caught.value).replace(str(tmp_path), "")) < 250


def test_masked_labels_are_refused() -> None:
    with pytest.raises(DataError, match=r"labels: expected whole numbers from 0 on \(2,\), found a masked array"):
        class_labels(np.ma.array([0, 1], mask=[0, 1]), 2)


@pytest.mark.parametrize("labelled", [False, True])
def test_a_run_of_an_earlier_version_finds_its_images_as_they_were(tmp_path: Path, labelled: bool) -> None:
    """What was loaded then, written down here: the order of the files where there were no labels."""
    images = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (95, 4, 4, 1), np.uint8)
    labels = np.arange(95) % 3
    order = generator(0, "shuffle").permutation(95) if labelled else np.arange(95)
    train, test = order[order % 10 != 0], order[order % 10 == 0]
    those = (labels[train], labels[test]) if labelled else (None, None)
    then = Dataset("x", images[train], those[0], images[test], those[1], (), "")
    own(tmp_path, x_train=images, **({"y_train": labels} if labelled else {}))
    now = load_dataset(tmp_path / "own.npz", every_tenth=True)
    assert "every 10th for testing" in now.source
    found = now.as_recorded(then.content_hash)
    assert found.content_hash == then.content_hash
    assert np.array_equal(found.train_images, then.train_images)
    assert labelled or found.ordered
    assert (now.content_hash == then.content_hash) == labelled
    for other in (now.content_hash, "unknown", None):
        assert now.as_recorded(other) is now


def test_a_limit_takes_a_random_sample(tmp_path: Path) -> None:
    images = np.full((40, 4, 4), 200, np.uint8)
    sorted_classes = own(tmp_path, x_train=images, y_train=np.arange(40) // 10, x_test=images[:2])
    chosen = sorted_classes.limited(12, 5)
    assert len(set(chosen)) == 12
    assert list(chosen) == sorted(chosen) == list(sorted_classes.limited(12, 5))
    assert len(set(sorted_classes.train_labels[chosen])) > 2
    assert list(chosen) != list(sorted_classes.limited(12, 6))
    shuffled_ones = own(tmp_path, x_train=images)
    assert list(shuffled_ones.limited(12, 5)) != list(shuffled_ones.limited(12, 6))
    for dataset, limit, seed in (
        (sorted_classes, 12, None),  # a run of an earlier version
        (shuffled_ones.as_recorded("", earlier=True), 12, 5),  # another one
        (sorted_classes, 40, 5),
        (sorted_classes, None, 5),
        (load_dataset("fashion-mnist-sample"), 12, 5),  # in random order
    ):
        assert dataset.limited(limit, seed) == slice(limit)
    assert list(sorted_classes.as_recorded("", earlier=True).limited(12, 5)) == list(chosen)


def test_npy_of_a_wrong_size_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "images.npy"
    np.save(path, ZEROS)
    good = path.read_bytes()
    huge = good.replace(b"(4, 3, 3)", b"(4, 3, 9000000000000)")
    for content, message in (
        (good[:-1], r"size for shape \(4, 3, 3\) and dtype float32: expected 272 bytes, found 271 bytes"),
        (good + b"\0", "size for .* expected 272 bytes, found 273 bytes"),
        (huge, "size for .*: expected 432000000000128 bytes, found 284 bytes"),
        (good.replace(b"(4, 3, 3)", b"(-4, -3, 3)"), "cannot be read|expected"),
        (good.replace(b"NUMPY\1", b"NUMPY\3"), "npy version: expected 1.0 or 2.0, found 3.0"),
        (b"", "cannot be read"),
        (good[:30], "cannot be read"),
    ):
        path.write_bytes(content)
        refuses(path, f"^{path}: array: {message}")


LIKE = r"test images: kind: expected float32 of shape \(3, 3, 1\) like the training images, found "
NPZ_FAULTS = {
    "no images": ({"a": ZEROS[0], "b": SEVEN}, r"arrays: expected train_images or x_train, .* found a, b$"),
    "two arrays": ({"a": ZEROS, "b": ZEROS}, r"arrays: .* or a single array of images, found a, b$"),
    "only test images": ({"x_test": ZEROS}, r"arrays: expected train_images or x_train, .* found x_test"),
    "nothing": ({}, "arrays: .* found none"),
    "both names": ({"x_train": ZEROS, "train_images": ZEROS}, "arrays: .* x_train, once, .* found x_train, train_im"),
    "test shape": ({"x_train": ZEROS, "x_test": ZEROS[:, 1:]}, LIKE + r".* \(2, 3, 1\)"),
    "test dtype": ({"x_train": ZEROS, "x_test": BYTES}, LIKE + "uint8"),
    "test values": ({"x_train": ZEROS, "x_test": ZEROS - 1}, r"x_test: values: expected floats in \[0, 1\]"),
    "long names": ({"a" * 200 + str(i): ZEROS for i in range(9)}, "arrays: .* found a{40}, a{40}, a{40} and 6 more$"),
}


@pytest.mark.parametrize("case", NPZ_FAULTS)
def test_npz_faults(tmp_path: Path, case: str) -> None:
    arrays, message = NPZ_FAULTS[case]
    np.savez(tmp_path / "own.npz", **arrays)
    refuses(tmp_path / "own.npz", f"^{tmp_path / 'own.npz'}: {message}")


@pytest.mark.parametrize("save", [np.save, np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_loading_takes_the_memory_of_the_data_once(tmp_path: Path, monkeypatch, save, order: str, dtype) -> None:
    path = tmp_path / ("x.npy" if save is np.save else "x.npz")
    save(path, np.zeros((4000, 40, 5), dtype, order=order))
    monkeypatch.setattr(own_arrays, "CHUNK", 10_000)
    with memory_below(800_000 * (4 if dtype == np.float64 else 1) + 600_000):
        load_dataset(path)


def test_a_folder_takes_at_most_a_third_more_than_its_pictures(tmp_path: Path) -> None:
    shapes = [(300, 300)] * 11 + [(300, 300, 3)]  # the last one is coloured
    put_files(tmp_path, {f"{i:02}.bmp": encoded(np.zeros(x, np.uint8), "bmp") for i, x in enumerate(shapes)})
    load_dataset(tmp_path)  # imports
    with memory_below(1.34 * 12 * 300 * 300 * 3 + 1_000_000):
        load_dataset(tmp_path)


def test_special_files_are_refused_and_not_waited_for(tmp_path: Path) -> None:
    for suffix in (".npy", ".npz"):
        os.mkfifo(tmp_path / f"pipe{suffix}")
        (tmp_path / f"zeros{suffix}").symlink_to("/dev/zero")
        for name in (f"pipe{suffix}", f"zeros{suffix}"):
            refuses(tmp_path / name, f"{name}: kind: expected a file, found a special file")


def test_a_long_npy_header_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "images.npy"
    path.write_bytes(b"\x93NUMPY\2\0" + struct.pack("<I", 100_000_000))
    os.truncate(path, 200_000_000)  # a hole, which takes no room on the disk
    with memory_below(2_000_000):
        refuses(path, f"^{path}: array: cannot be read")


def test_no_memory_for_an_array_is_an_error_with_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "images.npy", ZEROS)
    monkeypatch.setattr(np, "empty", mock.Mock(side_effect=MemoryError("Unable to allocate 18.6 GiB")))
    refuses(tmp_path / "images.npy", r"images.npy: array: cannot be read: Unable to allocate 18.6 GiB")


@pytest.mark.parametrize("label", [10_000, 2**62])
def test_a_label_too_large_for_a_class_is_refused(tmp_path: Path, label: int) -> None:
    dataset = own(tmp_path, x_train=ZEROS, y_train=np.array([0, 1, 2, label]))  # of points they may be any numbers
    with pytest.raises(DataError, match=f"own.npz: labels: expected 0 to 9999 .*, found {label}; number"):
        print(dataset.classes)
    assert own(tmp_path, x_train=ZEROS, y_train=np.array([0, 1, 2, 9999])).classes == 10_000


def test_npz_bombs_and_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "set.npz"
    np.savez_compressed(path, x_train=np.zeros((100, 100, 100), np.uint8))
    with monkeypatch.context() as patch:
        patch.setattr(own_arrays, "MAX_BYTES", 100_000)
        refuses(path, r"x_train: decompressed size: expected at most 100000 bytes, found 10001")
        np.savez(path, x_train=np.zeros((100, 100, 100), np.uint8))
        assert load_dataset(path).train_images.shape == (90, 100, 100, 1)  # stored as it is: the file is as long
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((3, 2, 2), np.uint8))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:  # a small header before much
        archive.writestr("x_train.npy", buffer.getvalue() + bytes(10_000_000))
    refuses(path, r"x_train: size for shape \(3, 2, 2\) and dtype uint8: expected 140 bytes")
    np.savez(path, x_train=np.full((100, 100, 100), 200, np.uint8))
    path.write_bytes(flipped(path.read_bytes(), 500_000))  # one pixel
    refuses(path, r"x_train: cannot be read: Bad CRC-32")


def test_no_pickle_is_ever_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for function in ("load", "loads"):
        monkeypatch.setattr(f"pickle.{function}", lambda *_, **__: pytest.fail("unpickling"))
    np.save(tmp_path / "objects.npy", np.array([{}, {}]), allow_pickle=True)
    put_files(tmp_path, dict.fromkeys(("pickle.npy", "pickle.npz"), b"\x80\4N."))
    for name in ("objects.npy", "pickle.npy", "pickle.npz"):
        refuses(tmp_path / name, name)


@pytest.mark.parametrize(("size", "shape"), [(8, (8, 8)), ([8], (8, 8)), ((10, 8), (10, 8)), ((8, 20), (8, 20))])
@pytest.mark.parametrize("kind", ["folder", "bytes", "floats", "parquet"])
def test_images_are_resized_by_the_short_side_and_cropped_in_the_centre(tmp_path: Path, kind: str, size, shape) -> None:
    """Of a ramp: each pixel is the mean of the square that it covers."""
    ramp = np.add.outer(2 * np.arange(80), np.arange(60)).astype(np.uint8)
    path = tmp_path / "x.npy"
    if kind == "folder":
        path = put_files(tmp_path / "x", {f"{number}.png": encoded(ramp, "png") for number in range(4)})
    elif kind == "parquet":
        path = write_parquet(tmp_path / "x.parquet", image=[encoded(ramp, "png")] * 4)
    else:
        np.save(path, np.stack([ramp] * 4) / np.float32(255) if kind == "floats" else np.stack([ramp] * 4))
    dataset = load_dataset(path, image_size=size)
    scale = min(80 / shape[0], 60 / shape[1])  # pixels of the file to one of the result
    pairs = zip((80, 60), shape, strict=True)
    rows, columns = ((full - scale * side) / 2 + scale * (np.arange(side) + 0.5) - 0.5 for full, side in pairs)
    wanted = np.add.outer(2 * rows, columns)
    assert (dataset.train_images.shape, dataset.train_images.dtype) == ((3, *shape, 1), np.uint8)
    assert np.abs(dataset.train_images[0, ..., 0] - wanted)[1:-1, 1:-1].max() < 1.01
    assert f"resized and cropped to {shape[1]} x {shape[0]}" in dataset.source
    assert dataset.reading.image_size == shape
    assert np.array_equal(load_dataset(path, image_size=(80, 60)).train_images, load_dataset(path).train_images)


def test_images_turn_grey_as_the_eye_sees_them_and_grey_ones_coloured(tmp_path: Path) -> None:
    colours = np.zeros((4, 6, 6, 3), np.uint8) + np.uint8([200, 100, 50])
    np.save(tmp_path / "bytes.npy", colours)
    np.save(tmp_path / "floats.npy", (colours / 255).astype(np.float32))
    put_files(tmp_path / "folder", {f"{number}.png": encoded(colours[0], "png") for number in range(4)})
    for name in ("bytes.npy", "floats.npy", "folder"):
        dataset = load_dataset(tmp_path / name, grayscale=True)
        assert dataset.train_images.shape[1:] == (6, 6, 1)
        assert np.allclose(dataset.train_images, 0.299 * 200 + 0.587 * 100 + 0.114 * 50, atol=0.6)
        assert "grey" in dataset.source
    np.save(tmp_path / "grey.npy", colours[..., 0])
    assert load_dataset(tmp_path / "grey.npy", grayscale=False).train_images.shape[1:] == (6, 6, 3)
    np.save(tmp_path / "many.npy", np.zeros((9, 8, 8, 6), np.uint8) + 200)
    refuses(tmp_path / "many.npy", "channels: expected 1 or 3, to resize or recolour them, found 6", grayscale=True)


@pytest.mark.parametrize("kind", ["png", "ppm", "tiff"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path, kind: str) -> None:
    deep = np.linspace(0, 65535, 24).reshape(4, 6).astype(np.uint16)
    dataset = load_dataset(put_files(tmp_path, {f"{name}.{kind}": encoded(deep, kind) for name in "ab"}))
    assert np.array_equal(dataset.train_images[0, ..., 0], np.rint(deep / 257))
    assert dataset.source.endswith("; 16 bits in 2 of them scaled to 8")


def test_pictures_of_several_sizes_are_counted_and_the_advice_helps(tmp_path: Path) -> None:
    sizes = [(140, 130)] * 5 + [(30, 40)] * 2 + [(50, 20)]
    files = {f"{i}.png": encoded(np.full((*size, 3), i, np.uint8), "png") for i, size in enumerate(sizes)}
    put_files(tmp_path, {**files, "8.png": PNG[:-20]})
    found = "one size, found 3: 3 of 8 are not 130 x 140 .5.png, 6.png.; --image-size 64 resizes and crops all"
    refuses(tmp_path, found + "; 1 cannot be read .8.png.$")
    assert load_dataset(tmp_path, image_size=64, skip_broken=True).train_images.shape == (7, 64, 64, 3)
    table = write_parquet(tmp_path / "x.parquet", image=list(files.values()))
    refuses(table, found.replace("5.png, 6.png", "row 6, row 7"))


def test_a_folder_that_takes_more_than_the_free_memory_is_refused_at_once(tmp_path: Path, monkeypatch) -> None:
    put_files(tmp_path, {f"{name}.png": encoded(np.zeros((90, 80), np.uint8), "png") for name in "ab"})
    monkeypatch.setattr(own_images, "MAX_BYTES", 1000)
    monkeypatch.setattr(own_images, "free_memory", lambda: 14_399)
    refuses(tmp_path, r"memory for 2 pictures of 80 x 90: expected 0.0 GiB, .*; give --image-size 64$")
    monkeypatch.setattr(own_images, "free_memory", lambda: 14_400)
    load_dataset(tmp_path)


def test_broken_files_are_left_out_as_if_they_were_not_there(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{kind}/{number:02}.png" for kind in "ab" for number in range(9)))
    broken = {"a/03.png": b"", "b/04.png": PNG[:-20], "c/x.png": b"text", "a/d.gif": b"GIF89a"}
    put_files(tmp_path, broken)
    refuses(tmp_path, r"4 of 20 pictures cannot be read \(03.png, d.gif, .*; the first: .*/03.png: .*--skip-broken$")
    dataset = load_dataset(tmp_path, skip_broken=True)
    assert "left out because they cannot be read: 4 (03.png, 04.png, d.gif and 1 more)" in dataset.source
    assert dataset.class_names == ("a", "b")
    for name in broken:
        (tmp_path / name).unlink()
    assert load_dataset(tmp_path).content_hash == dataset.content_hash
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"")
    refuses(tmp_path, r"at least 2 images, found 0; left out .*: 16", skip_broken=True)


def test_a_folder_of_test_images_is_the_one_that_is_named(tmp_path: Path) -> None:
    fill(tmp_path / "x", *(f"{kind}/{number}.png" for kind in "ab" for number in range(4)))
    kept = fill(tmp_path / "x" / "kept", "a/y.png", "b/z.png", "b/w.png")
    fill(tmp_path / "y", "train/1.png", "train/2.png", "train/3.png", "test/1.png")
    np.savez(tmp_path / "a.npz", images=PICTURES, labels=SEVEN)
    np.savez(tmp_path / "b.npz", x_train=PICTURES, x_test=PICTURES[:4])
    for name, test, train, said in (
        ("x", kept, 8, "; classes: a, b; the test images are from"),  # in the data set, and not taken for a class
        ("y", kept, 3, f"not used: {tmp_path / 'y' / 'test'}"),
        ("a.npz", tmp_path / "b.npz", 5, "the test images are from"),
    ):
        dataset = load_dataset(tmp_path / name, test_dir=test)
        assert (len(dataset.train_images), len(dataset.test_images)) == (train, 4 if name == "a.npz" else 3)
        assert said in dataset.source
    assert list(dataset.train_labels) == list(SEVEN)
    for wrong in (tmp_path / "a.npz", tmp_path / "nowhere"):
        refuses(tmp_path / "y", f"^{wrong}: (Not a directory|No such file or directory)", test_dir=wrong)
    typo = kept.with_name("kpet")
    refuses(tmp_path / "x", r"kpet: No such file or directory; did you mean kept[?]$", test_dir=typo)
    refuses("mnist", "mnist has test images of its own; leave out --test-dir", test_dir=tmp_path)


@pytest.mark.parametrize("size", [0, (8, 8, 8), 5000, "large", True, ()])
def test_sizes_that_images_cannot_have(size) -> None:
    refuses("fashion-mnist-sample", "image size is .*but must be one or two numbers from 1 to 4096", image_size=size)


OTHERS = {  # a file in place of a data set; what helps
    "x.tar.gz": "is an archive; unpack it and give the folder$",
    "face": "is one picture; give its folder, or generate --image reconstructs it$",
    "x.pdf": r"data set: expected auto, .* or a file of arrays \(.npy .npz .csv .* found another kind of file$",
}


@pytest.mark.parametrize("name", OTHERS)
def test_files_that_are_no_data_set(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / name).write_bytes(PNG if name == "face" else b"text")
    refuses(f"~/{name}", f"^{tmp_path / name}: {OTHERS[name]}", 400)
