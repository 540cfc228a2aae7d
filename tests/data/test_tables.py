"""Tables, HDF5 and parquet."""

import gzip
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from data_cases import PNG, encoded, memory_below, put_files, refuses, same, shuffled, write_parquet

from autoencoders.data import collections, load_dataset, own_arrays
from autoencoders.data.dataset import CHUNK

pytestmark = pytest.mark.usefixtures("world")


ROWS = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (12, 6, 6), np.uint8)
NUMBERS = np.arange(12) % 5
FLAT = ROWS.reshape(12, 36)
FIRST = np.column_stack([NUMBERS, FLAT])
HEADER = ",".join(f"pixel{i}" for i in range(36))


def lines(numbers: np.ndarray, header: str = "", separator: str = ",", end: str = "\n") -> bytes:
    rows = [separator.join(f"{x:g}" for x in row) for row in numbers]
    return end.join(([header] if header else []) + rows + [""]).encode()


CSV = {  # a file; whether it has labels, what the source says
    "label first": (lines(FIRST, f"label,{HEADER}"), True, "labels from the column label"),
    "label last": (lines(np.roll(FIRST, -1, axis=1), f"{HEADER},Class"), True, "labels from the column Class"),
    "no header": (lines(FIRST), True, "images of 6 x 6; labels from the column 1"),
    "no labels": (lines(FLAT, HEADER), False, "images of 6 x 6$"),
    "an index": (lines(np.column_stack([NUMBERS, FIRST]), f",label,{HEADER}"), True, "columns not used: ;"),
    "an id": (lines(FIRST, f"id,{HEADER}"), False, "columns not used: id$"),
    "quotes": (lines(FIRST, f'"label",{HEADER}', end="\r\n").replace(b"\n0,", b'\n"0",'), True, "column label"),
    "a mark of the bytes' order": (b"\xef\xbb\xbf" + lines(FIRST, f"label,{HEADER}"), True, "column label"),
    "tabs and blank lines": (lines(FIRST, separator="\t", end="\n\n"), True, ""),
    "floats": (lines(np.column_stack([NUMBERS, FLAT / 255]), f"label,{HEADER}"), True, ""),
    "gzip": (gzip.compress(lines(FIRST, f"label,{HEADER}")), True, ""),
    "text": (lines(FLAT, HEADER + ",y").replace(b"\n", b",a\n").replace(b"y,a", b"y"), False, "no labels: .*'a' to"),
}


@pytest.mark.parametrize("case", CSV)
def test_csv(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content, labels, said = CSV[case]
    path = tmp_path / ("x.csv.gz" if case == "gzip" else "x.csv")
    path.write_bytes(content)
    train, _ = shuffled(12, NUMBERS if labels else None)
    for chunk in (CHUNK, 500):
        monkeypatch.setattr(own_arrays, "CHUNK", chunk)
        dataset = load_dataset(path)
        assert dataset.train_images.dtype == (np.float32 if case == "floats" else np.uint8)
        wanted = ROWS / 255 if case == "floats" else ROWS
        assert np.allclose(dataset.train_images[..., 0], wanted[train], atol=1e-5)
        assert (list(NUMBERS[train]) if labels else None) == (list(dataset.train_labels) if labels else None)
        assert labels or dataset.train_labels is None
        assert re.search(said, dataset.source)


CSV_FAULTS = {
    "empty": (b"", "columns: expected the pixels of square images, 784 for example, and one of labels, found 0;"),
    "of other things": (b"name,age\nAnn,7\n", "columns: expected the pixels of square images, .* found 2; save other"),
    "of oblong images": (lines(FLAT[:, :30]), "columns: .* found 30; save other images as .npy of shape"),
    "a word": (lines(FIRST) + b"1," + b"x," * 35 + b"1\n", "cannot be read: could not convert string 'x' to int32"),
    "ragged": (lines(FIRST) + b"1,2\n", "cannot be read: .*row 13.*; this message counts from data row 1"),
    "too bright": (lines(FIRST + 300), "values: expected whole numbers from 0 to 255, found 300 to"),
    "damaged gzip": (gzip.compress(lines(FIRST))[:-9], "cannot be read"),
}


@pytest.mark.parametrize("case", CSV_FAULTS)
def test_csv_faults(tmp_path: Path, case: str) -> None:
    content, said = CSV_FAULTS[case]
    path = tmp_path / ("x.csv.gz" if "gzip" in case else "x.csv")
    path.write_bytes(content)
    refuses(path, f"^{path}: {said}")


def test_training_and_test_files_belong_together(tmp_path: Path) -> None:
    """In a folder, and beside each other; files that are neither are left alone."""
    files = {f"fashion-mnist_{part}.csv": lines(FIRST[:count], f"label,{HEADER}") for part, count in SPLIT.items()}
    place = put_files(tmp_path / "set", {**files, "sample_submission.csv": b"id,label\n1,2\n"})
    arrays = {"x_train": ROWS, "y_train": NUMBERS, "x_test": ROWS[:5], "y_test": NUMBERS[:5]}
    folder = put_files(tmp_path / "numpy", {})
    folder.mkdir()
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    for path in (place, place / "fashion-mnist_train.csv", folder):
        assert same(load_dataset(path), dict(zip(collections.SIZES, arrays.values(), strict=True)))
    assert load_dataset(place / "fashion-mnist_test.csv").train_images.shape == (4, 6, 6, 1)
    put_files(place, {"old_train.csv": lines(FIRST)})
    refuses(place, "files: expected one of training and one of test images, found fashion")


SPLIT = {"train": 12, "test": 5}


@pytest.mark.parametrize("options", [{}, {"chunks": (5, 3, 6, 1), "compression": "gzip"}])
def test_hdf5(tmp_path: Path, options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "x.h5"
    for images, labels, test in (("x_train", "y_train", "x_test"), ("data/images", "data/labels", "")):
        with h5py.File(path, "w") as file:
            file.create_dataset(images, data=ROWS[..., None], **options)
            file[labels] = NUMBERS[:, None]
            if test:
                file[test] = ROWS[:3, ..., None]
        rows = range(12) if test else shuffled(12, NUMBERS)[0]
        for chunk in (CHUNK, 50):
            monkeypatch.setattr(own_arrays, "CHUNK", chunk)
            dataset = load_dataset(path)
            assert np.array_equal(dataset.train_images[..., 0], ROWS[rows])
            assert list(dataset.train_labels) == list(NUMBERS[rows])
    with h5py.File(tmp_path / "v7.3.mat", "w") as file:  # MATLAB's arrays are in Fortran's order
        file["X"] = ROWS.T
        file["X"].attrs["MATLAB_class"] = np.bytes_("uint8")
    assert np.array_equal(load_dataset(tmp_path / "v7.3.mat").train_images[..., 0], ROWS[shuffled(12)[0]])
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("x_train", h5py.VirtualLayout((4, 6, 6), np.uint8))
    refuses(path, "x_train: content: expected the numbers themselves, found a reference")
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (1 << 20, 64, 64), np.uint8, chunks=True)  # nothing is written
    refuses(path, "x: decompressed size: expected at most 1073741824 bytes, found 4294967296")
    path.write_bytes(b"text")
    refuses(path, f"^{path}: format: expected HDF5 .save MATLAB files with -v7.3., found")


def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = {f"p{i}": FLAT[:, i].tolist() for i in range(36)}
    files = [{"bytes": encoded(row, "png"), "path": None} for row in ROWS]
    train, path, folder = shuffled(12, NUMBERS)[0], tmp_path / "x.parquet", tmp_path / "hub" / "data"
    for columns in (
        {**pixels, "label": NUMBERS.tolist(), "name": list("abcdefghijkl")},
        {"image": files, "label": NUMBERS.tolist()},
        {"fine_label": NUMBERS.tolist(), "img": [file["bytes"] for file in files]},
    ):
        write_parquet(path, **columns)
        for chunk in (CHUNK, 50):
            monkeypatch.setattr(own_arrays, "CHUNK", chunk)
            dataset = load_dataset(path)
            assert np.array_equal(dataset.train_images[..., 0], ROWS[train])
            assert list(dataset.train_labels) == list(NUMBERS[train])
    files[5] = {"bytes": encoded(np.full((6, 6, 3), 9, np.uint8), "png")}  # one in colour makes all coloured
    assert load_dataset(write_parquet(path, image=files)).train_images.shape == (11, 6, 6, 3)
    for name, rows in (("train-00000-of-00002", slice(7)), ("train-00001-of-00002", slice(7, 12)), ("test", slice(3))):
        write_parquet(folder / f"{name}.parquet", image=files[rows], label=NUMBERS[rows].tolist())
    dataset = load_dataset(folder.parent, grayscale=True)
    assert (list(dataset.train_labels), list(dataset.test_labels)) == (list(NUMBERS), list(NUMBERS[:3]))
    files[4] = {"bytes": PNG[:-20]}
    refuses(write_parquet(path, image=files), r"x.parquet: row 5: .*; repair or remove the file$")


@pytest.mark.parametrize("kind", ["csv", "h5", "parquet"])
def test_loading_a_table_takes_the_memory_of_the_images_once(tmp_path: Path, monkeypatch, kind: str) -> None:
    path, images = tmp_path / f"x.{kind}", np.full((20_000, 64), 200, np.uint8)
    if kind == "csv":
        path.write_bytes((",".join(["200"] * 64) + "\n").encode() * 20_000)
    elif kind == "h5":
        with pytest.importorskip("h5py").File(path, "w") as file:
            file["x"] = images
    else:
        write_parquet(path, **{f"p{i}": images[:, i] for i in range(64)})
    monkeypatch.setattr(own_arrays, "CHUNK", 10_000)
    with memory_below(images.nbytes + 900_000):
        load_dataset(path)


def test_the_folder_of_a_run_holds_no_images(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "run.json").write_text("{}")
    refuses(tmp_path, "expected images, found a run of this project; pass it to --model-dir")


def test_nothing_is_downloaded_among_pictures(tmp_path: Path) -> None:
    """--data-dir is easily taken for --dataset."""
    from PIL import Image

    Image.new("L", (8, 8)).save(tmp_path / "1.png")
    for name in ("auto", "fashion-mnist"):
        refuses(name, "found pictures; use --dataset for your own images", data_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["1.png"]


@pytest.mark.parametrize(("name", "library"), [("x.h5", "h5py"), ("x.parquet", "pyarrow")])
def test_a_library_that_is_not_installed_is_named(tmp_path: Path, monkeypatch, name: str, library: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    (tmp_path / name).write_bytes(b"")
    refuses(tmp_path / name, rf'{name}: needs {library}, which is not installed: pip install "\.\[data\]"')
