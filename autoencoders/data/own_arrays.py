"""A user's own images as arrays: `.npy`, `.npz`, CSV, HDF5, MATLAB and parquet files, and folders of them.

Every format becomes an `Array`, a stream of numbers and their shape; so each image is read straight into its place in
the data set, and no file is ever in memory as a whole. Read next: own_images.py, whose rules hold here as well.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import math
import re
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minigrad.serialize import DataError, require_file

from .dataset import (
    CHUNK,
    MAX_BYTES,
    Dataset,
    Reading,
    as_data_error,
    class_labels,
    fault,
    listed,
    printable,
    range_fault,
    read_up_to,
    split_order,
)
from .own_images import Part, parts_of, read_picture, role, size_fault, split_dataset, split_said

NPY_HEADER = 10_000  # bytes; NumPy refuses longer ones, but reads them first, up to 4 GB
LONGEST_LINE = 1 << 24  # characters of a CSV file
SUFFIXES = (".npy", ".npz", ".csv", ".csv.gz", ".h5", ".hdf5", ".mat", ".parquet")
LABEL = r"(.*[\W_])?(y|labels?|targets?|class(es)?|digit|character)"  # names of columns
ROW = r"(.*[\W_])?(id|index)|imageid|unnamed.*|"

Numbers = tuple[tuple[int, ...], bool, np.dtype[Any], Any]  # shape, whether in Fortran's order, dtype, stream


class Array(NamedTuple):
    """An array in a file, and what opens it."""

    where: str
    opened: Callable[[], contextlib.AbstractContextManager[Numbers]]
    notes: tuple[str, ...] = ()  # what was assumed
    rows: bool = False  # whether two axes are rows of numbers for certain, and not one picture

    def labels(self) -> np.ndarray:
        with self.opened() as (shape, fortran, dtype, stream):
            data = read_up_to(stream, math.prod(shape) * dtype.itemsize)
            return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")

    def may_be_images(self) -> bool:
        try:
            with self.opened() as (shape, *_):
                return len(shape) > 2 or (len(shape) == 2 and bool(_picture(shape[1])))
        except DataError:
            return False


Arrays = dict[str, Array]  # by name


class Blocks:
    """A stream of the bytes of arrays, one after the other."""

    def __init__(self, arrays: Iterator[np.ndarray]) -> None:
        self.arrays, self.rest = arrays, np.empty(0, np.uint8)

    def read(self, count: int) -> bytearray:
        data = bytearray()
        while len(data) < count:
            if not len(self.rest):
                self.rest = np.ascontiguousarray(next(self.arrays)).reshape(-1).view(np.uint8)
            piece, self.rest = np.split(self.rest, [count - len(data)])
            data += piece.data
        return data


# ------------------------------------------------------------------------------------------------ files and folders


def array_files(folder: Path) -> list[Path]:
    """The files of arrays in a folder, or else those in its sub-folders."""
    return sorted(filter(is_array_file, folder.glob("*"))) or sorted(filter(is_array_file, folder.glob("*/*")))


def is_array_file(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".")


def _part(path: Path) -> str:
    """What a file is by a word of its name: "train", "test", "val" or ""."""
    return next(filter(None, (role(word)[0] for word in re.findall("[A-Za-z]+", path.name))), "")


def test_file(path: Path) -> Path | None:
    """The file of test images beside one of training images: set_test.csv beside set_train.csv."""
    if _part(path) != "train" or path.suffix.lower() in (".npy", ".npz"):  # these were always read alone
        return None
    names = [re.sub("train(ing)?", word, path.name, count=1, flags=re.I) for word in ("test", "Test", "val")]
    return next((path.with_name(name) for name in names if path.with_name(name).is_file()), None)


def arrays_of(path: Path, reading: Reading) -> Arrays:
    """The arrays of a file by name. Those of several files in a folder have names that say what they are for."""
    files = array_files(path) if path.is_dir() else [path]
    groups: dict[str, list[Path]] = {}
    for file in [file for file in files if _part(file)] or files:
        groups.setdefault(file.stem if file.suffix.lower() == ".npy" else _part(file), []).append(file)
    if not groups:
        raise fault(path, "content", f"a file of arrays ({' '.join(SUFFIXES)})", "none")
    found: Arrays = {}
    for key, held in groups.items():
        arrays = _arrays_in(path, held, reading)
        if len(groups) == 1:
            return arrays
        for name, array in arrays.items():
            found[key if name == "array" else f"{key} {name.removeprefix('train ')}"] = array
    return found


def _arrays_in(place: Path, files: list[Path], reading: Reading) -> Arrays:
    """The arrays of a file, or of a parquet file in several pieces."""
    path, size = files[0], Path(require_file(files[0])).stat().st_size
    kind = path.name.lower()
    with as_data_error(path):
        try:
            if kind.endswith(".parquet"):
                return _parquet(files, reading)
            if len(files) > 1:
                raise fault(place, "files", "one of training and one of test images", listed(x.name for x in files))
            if kind.endswith(".npy"):
                return {"array": _npy_array(f"{path}: array", partial(path.open, "rb"), size, size)}
            if kind.endswith(".npz"):
                return _npz(path, max(MAX_BYTES, size))
            return _csv(path) if kind.endswith((".csv", ".csv.gz")) else _hdf5(path, max(MAX_BYTES, size))
        except ImportError as error:
            raise DataError(f'{path}: needs {error.name}, which is not installed: pip install ".[data]"') from error


def _check_bytes(where: str, count: int, limit: int) -> None:
    if count > limit:
        raise fault(where, "decompressed size", f"at most {limit} bytes", f"{count} bytes")


# --------------------------------------------------------------------------------------------- NumPy's files, HDF5


def _npz(path: Path, limit: int) -> Arrays:
    @contextlib.contextmanager
    def opened(member: zipfile.ZipInfo) -> Iterator[Any]:
        with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
            yield stream

    with zipfile.ZipFile(path) as archive:
        members = {x.filename[:-4]: x for x in archive.infolist() if x.filename.endswith(".npy")}
    return {
        name: _npy_array(f"{path}: {printable(name)}", partial(opened, member), member.file_size, limit)
        for name, member in members.items()
    }


def _npy_array(where: str, opened: Callable[[], Any], size: int, limit: int) -> Array:
    """An array in an `.npy` stream of `size` bytes; its header is checked before memory is taken."""

    @contextlib.contextmanager
    def numbers() -> Iterator[Numbers]:
        with as_data_error(where):
            _check_bytes(where, size, limit)
            with opened() as stream:
                head = io.BytesIO(stream.read(NPY_HEADER))
            version = np.lib.format.read_magic(head)
            if version not in ((1, 0), (2, 0)):
                raise fault(where, "npy version", "1.0 or 2.0", ".".join(map(str, version)))
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(head)
            if dtype.hasobject:
                raise fault(where, "dtype", "numbers", "objects")
            total = head.tell() + math.prod(shape) * dtype.itemsize
            if total != size:
                raise fault(where, f"size for shape {shape} and dtype {dtype}", f"{total} bytes", f"{size} bytes")
            with opened() as stream:
                stream.read(head.tell())  # After a seek, zipfile would not check the CRC of what follows.
                yield shape, fortran, dtype, stream

    return Array(where, numbers)


def _hdf5(path: Path, limit: int) -> Arrays:
    """The arrays in an HDF5 file, which a MATLAB file of version 7.3 is, too."""
    import h5py

    if not h5py.is_hdf5(path):
        raise fault(path, "format", "HDF5 (save MATLAB files with -v7.3)", "another format")

    @contextlib.contextmanager
    def numbers(name: str) -> Iterator[Numbers]:
        where = f"{path}: {printable(name)}"
        with as_data_error(where), h5py.File(path, "r") as file:
            data = file[name]
            if data.external or data.is_virtual:
                raise fault(where, "content", "the numbers themselves", "a reference to another file")
            _check_bytes(where, data.nbytes, limit)
            rows = max(1, CHUNK * len(data) // data.nbytes, *(data.chunks or ())[:1])
            blocks = Blocks(data[start : start + rows] for start in range(0, len(data), rows))
            swapped = "MATLAB_class" in data.attrs
            yield data.shape[::-1] if swapped else data.shape, swapped, data.dtype, blocks

    names: list[str] = []
    with h5py.File(path, "r") as file:
        file.visit(names.append)
        names = [name for name in names if getattr(file[name], "size", 0) and name[0] != "#"]
    return {name: Array(f"{path}: {printable(name)}", partial(numbers, name)) for name in names}


# ------------------------------------------------------------------------------------------------------- tables


def _picture(count: int) -> tuple[int, ...]:
    """The shape of a square picture of so many numbers: (side, side), (3, side, side), or () if there is none."""
    for shape in ((), (3,)):
        side = math.isqrt(max(0, count) // math.prod(shape))
        if side > 3 and math.prod(shape) * side * side == count:
            return *shape, side, side
    return ()


def _table(path: Path, names: list[str], count: int, dtype: Any, blocks: Any, pictures: Array | None = None) -> Arrays:
    """The images and the labels in a table of count rows. blocks(columns, dtype) yields a few rows at a time.

    names: of the columns. The label column is known by its name, or it is the first column and all others are pixels.
    pictures: the images, if they are not columns of pixels.
    """

    @contextlib.contextmanager
    def numbers(where: str, used: list[int], dtype: Any) -> Iterator[Numbers]:
        with as_data_error(where):
            _check_bytes(where, count * len(used), max(MAX_BYTES, path.stat().st_size))
            yield (count, len(used)), False, np.dtype(dtype), Blocks(blocks(used, np.dtype(dtype)))

    keys = [name.strip().casefold() for name in names]
    label = next((i for i, key in enumerate(keys) if re.fullmatch(LABEL, key)), None)
    found: Arrays = {}
    if not pictures:
        pixels = [i for i, key in enumerate(keys) if not re.fullmatch(f"{LABEL}|{ROW}", key)]
        if label is None and not _picture(len(pixels)) and _picture(len(pixels) - 1):
            label = pixels.pop(0)
        if not _picture(len(pixels)):
            wrong = f"{len(pixels)}; save other images as .npy of shape (N, H, W)"
            raise fault(path, "columns", "the pixels of square images, 784 for example, and one of labels", wrong)
        unused = [names[i] for i in sorted({*range(len(names))} - {label, *pixels})]
        notes = (f"columns not used: {listed(unused)}",) * bool(unused)
        pictures = Array(str(path), partial(numbers, str(path), pixels, dtype), notes, rows=True)
    if label is not None:
        where, note = f"{path}: labels", f"labels from the column {printable(names[label])}"
        found["train labels"] = Array(where, partial(numbers, where, [label], float))
        pictures = pictures._replace(notes=(*pictures.notes, note))
    return {**found, "train images": pictures}


def _csv(path: Path) -> Arrays:
    """The images and labels of a CSV file, with names of the columns in its first line or without."""

    @contextlib.contextmanager
    def opened() -> Iterator[Iterator[str]]:
        kind = gzip.open if path.suffix.lower() == ".gz" else open
        with kind(path, "rt", encoding="utf-8-sig") as file:
            yield filter(str.strip, iter(partial(file.readline, LONGEST_LINE), ""))

    def blocks(used: list[int], dtype: np.dtype[Any]) -> Iterator[np.ndarray]:
        step = max(1, CHUNK // (dtype.itemsize * len(used)))
        with opened() as lines:
            _ = header and next(lines)
            for start in range(0, count, step):
                try:
                    yield np.loadtxt(lines, dtype, usecols=used, max_rows=step, **form)
                except ValueError as error:
                    raise ValueError(f"{error}; this message counts from data row {start + 1}") from error

    with opened() as lines:
        first = next(lines, "")
        form: dict[str, Any] = {
            "delimiter": max(",;\t ", key=first.count),
            "quotechar": '"',
            "comments": None,
            "ndmin": 2,
        }
        names = next(csv.reader([first], delimiter=form["delimiter"]), [])
        header = not all(re.fullmatch(r"[-+.\deE\s]+", name) for name in names)
        count, fractions = int(not header), "." in first and not header
        for line in lines:
            count, fractions = count + 1, fractions or "." in line
    names = names if header else [f"{i + 1}" for i in range(len(names))]
    return _table(path, names, count, np.float32 if fractions else np.int32, blocks)


def _parquet(paths: list[Path], reading: Reading) -> Arrays:
    """Columns of pixels and labels, or a column of picture files, as Hugging Face keeps them."""
    import pyarrow as pa
    import pyarrow.parquet

    pieces = [pyarrow.parquet.ParquetFile(path, pre_buffer=False) for path in paths]
    path, count = paths[0], sum(piece.metadata.num_rows for piece in pieces)
    kinds = {field.name: field.type for field in pieces[0].schema_arrow}
    files = [name for name, kind in kinds.items() if "binary" in str(kind)]  # struct<bytes: binary, path: string>
    numeric = [name for name, kind in kinds.items() if pa.types.is_integer(kind) or pa.types.is_floating(kind)]

    def batches(names: list[str], rows: int) -> Iterator[Any]:
        for piece in pieces:
            yield from piece.iter_batches(max(1, rows), columns=names)

    def blocks(used: list[int], dtype: np.dtype[Any]) -> Iterator[np.ndarray]:
        for batch in batches([numeric[i] for i in used], CHUNK // (dtype.itemsize * len(used))):
            yield np.stack([column.to_numpy(zero_copy_only=False) for column in batch.columns], axis=1).astype(dtype)

    def read(decode: bool) -> Iterator[np.ndarray]:
        cells = (cell for batch in batches(files[:1], 100) for cell in batch.column(0).to_pylist())
        for row, cell in enumerate(cells, 1):
            content = cell["bytes"] if isinstance(cell, dict) else cell
            yield read_picture(f"{path}: row {row}", content, reading, decode)[0]

    @contextlib.contextmanager
    def decoded() -> Iterator[Numbers]:
        with as_data_error(path):
            sizes: dict[tuple[int, ...], list[str]] = {}
            channels = 1
            for row, pixels in enumerate(read(False), 1):
                sizes.setdefault(pixels.shape[:2], []).append(f"row {row}")
                channels = max(channels, pixels.shape[2])
            if len(sizes) > 1 and not reading.image_size:
                raise size_fault(path, sizes)
            shape = *(reading.image_size or next(iter(sizes))), channels
            blocks = Blocks(np.broadcast_to(x, shape) for x in read(True))
            yield (count, *shape), False, np.dtype(np.uint8), blocks

    done = ("resized and cropped to {1} x {0}".format(*reading.image_size),) if reading.image_size else ()
    dtype = np.result_type(np.uint8, *[kinds[name].to_pandas_dtype() for name in numeric])
    return _table(path, numeric, count, dtype, blocks, Array(str(path), decoded, done) if files else None)


def load_arrays(path: Path, arrays: Arrays, test: tuple[Path, Arrays] | None, reading: Reading, *said: str) -> Dataset:
    """The data set of named arrays. `_axes` says how images may lie: (N, H, W), (N, H, W, C) and others.

    Values: whole numbers from 0 to 255, or floats in [0, 1]. Names: train_images or x_train and the like, and optional
    test_images (or else val_images), train_labels and test_labels; a single array of images may have any name. Without
    test images, there or in the arrays of another path, a tenth of the images is taken for testing (`split_order`).
    """
    used, more = _choose(path, arrays)
    notes, why = [*said, *more], ""
    if test:
        others, more = _choose(*test)
        part = "test" if ("test", "images") in others else "train"
        notes += [f"the test images are from {test[0]}", *more]
        used = {kind: array for kind, array in used.items() if kind[0] == "train"}
        used |= {("test", kind): array for (name, kind), array in others.items() if name == part}
    whole = ("test", "images") not in used
    parts: list[Part] = []
    for part in ("train",) if whole else ("train", "test"):
        how = reading if whole else None
        images, labels, order, more, fault_found = _read_part(used[part, "images"], used.get((part, "labels")), how)
        notes += [note for note in more if note not in notes]
        why = why or (fault_found and f"{part} {fault_found}")
        parts.append(Part(images, labels, np.arange(len(images))))
    counts = [f"{len(part.images)} {kind}" for part, kind in zip(parts, ("training", "test"), strict=False)]
    source = [f"{' and '.join(counts)} images from {path}", *notes]
    if whole:
        source[0] = f"{len(images)} images from {path}, {split_said(len(order[1]), labels, reading)}"
        parts = parts_of(*parts[0], order)
    source += [f"no labels: {why}"] if why else []
    return split_dataset(str(path), source, *parts, class_names=(), label_fault=why, ordered=None if whole else True)


def _choose(path: Path, arrays: Arrays) -> tuple[dict[tuple[str, str], Array], list[str]]:
    """The arrays that are used, by what they are: ("train" or "test", "images" or "labels"); and what was assumed."""
    found: dict[tuple[str, str], list[str]] = {}
    for name in arrays:
        found.setdefault(max(role(name), role(name.rpartition("/")[2])), []).append(name)
    notes = []
    if not any(part and kind == "images" for part, kind in found):
        one = found.get(("", "images")) or [name for name in found.get(("", ""), []) if arrays[name].may_be_images()]
        one = list(arrays) if len(arrays) == 1 else one
        found |= {("train", "images"): one, ("train", "labels"): found.get(("", "labels"), [])}
        notes += [f"the images are {listed(one)}"] if len(arrays) > 1 else []
    elif ("test", "images") not in found and ("val", "images") in found:
        notes.append(f"{listed(found['val', 'images'])} are for testing")
        found |= {("test", kind): found.get(("val", kind), []) for kind in ("images", "labels")}
    kinds = [(part, kind) for part in ("train", "test") if found.get((part, "images")) for kind in ("images", "labels")]
    kinds = [kind for kind in kinds if found.get(kind)]
    if ("train", "images") not in kinds or any(len(found[kind]) > 1 for kind in kinds):
        expected = "train_images or x_train, once, or a single array of images"
        raise fault(path, "arrays", expected, listed(arrays) or "none")
    used = {kind: found[kind][0] for kind in kinds}
    if unused := [name for name in arrays if name not in used.values()]:
        notes.append(f"not used: {listed(unused)}")
    return {kind: arrays[name] for kind, name in used.items()}, notes


def _axes(where: str, shape: tuple[int, ...], rows: bool) -> tuple[tuple[str, ...], dict[str, int], str]:
    """(what each axis is, the size of each of N, H, W and C, what was assumed).

    Taken are (N, H, W), (N, H, W, C), rows of square pictures, and (N, C, H, W) and (H, W, C, N) where C alone is at
    most 4. What can be read in two ways is refused.
    """
    grey, last, note, mend = "images[..., None]", "np.moveaxis(images, -1, 0)", "", ""
    axes, sizes = tuple("NHWC"[: len(shape)]), {}
    if len(shape) not in (2, 3, 4) or min(shape) < 1:
        mend = "no axis may be empty" if 0 in shape else "reshape it if it holds images"
    elif len(shape) == 2:
        axes, sizes, side = ("N", "CHW"), dict(zip("WHC", _picture(shape[1])[::-1], strict=False)), math.isqrt(shape[1])
        planes = "planes of red, green and blue, each" if "C" in sizes else "images of"
        note = f"rows of {shape[1]} numbers taken as {planes} {sizes.get('H')} x {sizes.get('H')}"
        # about as many rows as columns: a picture is so, too
        doubtful = shape[0] == shape[1] or (shape[1] != 784 and shape[0] < 2 * shape[1] < 4 * shape[0])
        if not sizes or (doubtful and not rows):
            mend = f"images.reshape(-1, {side}, {side})" if side * side == shape[1] else "reshape it"
            mend += " if each row is an image; one image is no data set"
    elif len(shape) == 3:
        first, height, width = shape
        if width <= 4 < height or (first == 3 and min(height, width) > 4):
            mend = f"if that is one image, more are needed; if these are {first} grey images, use {grey}"
        elif first == height != width or max(height, width) > 16 * min(height, width):
            mend = f"{last} if the images come last, {grey} if they are {height} x {width}"
    elif shape[1] <= 4 < shape[3]:
        axes, note = tuple("NCHW"), "axes taken as (N, C, H, W)"
    elif shape[2] <= 4 < min(shape[1], shape[3]):
        axes, note = tuple("HWCN"), "axes taken as (H, W, C, N)"
    elif shape[1] == shape[3] == 3 or min(shape[1:]) > 4 <= shape[0]:
        note = f"axes taken as (N, H, W, C) with {shape[3]} channels"
    elif shape[1] in (1, 3) and shape[3] > 1:
        mend = "images.transpose(0, 2, 3, 1) if the channels come first"
    elif (shape[2] in (1, 3) and shape[1] > 4 and shape[3] > 1) or (shape[0] in (1, 3) and shape[3] > 4):
        mend = f"{last} if the images come last"
    if mend:
        raise fault(where, "shape", "(N, H, W) or (N, H, W, C), unambiguously", f"{shape}; {mend}")
    return axes, {"C": 1} | dict(zip(axes, shape, strict=True)) | sizes, note


def _read_part(
    array: Array, label_array: Array | None, reading: Reading | None
) -> tuple[np.ndarray, np.ndarray | None, tuple[np.ndarray, np.ndarray], list[str], str]:
    """(the images, their labels in the order of the file, the order of the images, what was assumed, why labels are not
    used). The images are in `split_order` with a reading, which says how a whole set is split, else as they come."""
    with array.opened() as (shape, fortran, dtype, stream):
        if dtype.kind not in "uifb":
            raise fault(array.where, "dtype", "numbers", dtype.name)
        axes, sizes, note = _axes(array.where, shape, array.rows)
        count, labels, why = sizes["N"], None, ""
        if reading and count < 2:
            raise fault(array.where, "images", "at least 2", count)
        try:
            labels = label_array and class_labels(label_array.labels(), count)
        except DataError as error:  # what a training may not need must not stop it
            why = str(error)
        order = np.arange(count), np.arange(0)
        if reading:
            order = split_order(count, labels, reading.every_tenth)
        place = np.argsort(np.concatenate(order))
        images = np.empty([sizes[axis] for axis in "NHWC"], np.float32 if dtype.kind == "f" else np.uint8)
        names = "".join(axes[::-1] if fortran else axes)
        limits: list[Any] = []

        def fill(view: np.ndarray, axis: int) -> None:
            """Read into a view in the order of the file; its axis of that number counts the images."""
            row = dtype.itemsize * math.prod(view.shape[1:])
            if axis and row > CHUNK:
                for part in view:
                    fill(part, axis - 1)
                return
            step = max(1, CHUNK // row)
            for start in range(0, len(view), step):
                index: list[Any] = [slice(start, start + step), *[slice(None)] * axis]
                size = view[index[0]].shape
                block = np.frombuffer(stream.read(math.prod(size) * dtype.itemsize), dtype).reshape(size)
                limits.extend((block.min(), block.max()))
                index[axis] = place[index[axis]]
                view[tuple(index)] = block

        with np.errstate(over="ignore"):  # what is too large for float32 is refused below
            view = images if "C" in names else images[..., 0]
            fill(view.transpose(["NHWC".index(axis) for axis in names]), names.index("N"))
    low, high = float(np.min(limits)), float(np.max(limits))
    if wrong := range_fault(low, high, dtype.kind == "f"):
        raise DataError(f"{array.where}: values: {wrong}")
    if dtype.kind == "f" and (low < 0 or high > 1):
        np.clip(images, 0, 1, out=images)
    return images, labels, order, [text for text in (note, *array.notes) if text], why
