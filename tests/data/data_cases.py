"""Small data sets for the tests beside this file."""

import gzip
import hashlib
import io
import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from autoencoders.data import DataError, Dataset, collections, load_dataset
from minigrad.random import generator


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def small_arrays(seed: int) -> dict[str, np.ndarray]:
    draw = np.random.Generator(np.random.PCG64(seed))
    shapes = ((20, 4, 4), (20,), (10, 4, 4), (10,))
    return {file: draw.integers(0, 10, shape, np.uint8) for file, shape in zip(collections.SIZES, shapes, strict=True)}


def digests(arrays: dict[str, np.ndarray]) -> dict[str, str]:
    return {file: hashlib.sha256(idx(array)).hexdigest() for file, array in arrays.items()}


def put(folder: Path, arrays: dict[str, np.ndarray], suffix: str = ".gz") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file, array in arrays.items():
        (folder / f"{file}{suffix}").write_bytes(gzip.compress(idx(array)) if suffix else idx(array))
    return folder


FASHION, DIGITS = small_arrays(1), small_arrays(2)


def same(dataset: Dataset, arrays: dict[str, np.ndarray]) -> bool:
    mine = (dataset.train_images[..., 0], dataset.train_labels, dataset.test_images[..., 0], dataset.test_labels)
    return all(np.array_equal(one, other) for one, other in zip(mine, arrays.values(), strict=True))


def refuses(what: str | Path, message: str, longest: int = 250, **options: object) -> str:
    """What the error says when `what` is no data set: it matches the pattern `message`, and is short without paths."""
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(what, **options)
    assert len(str(caught.value).replace(str(what), "").replace(str(Path(what).parent), "")) < longest
    return str(caught.value)


@contextmanager
def memory_below(most: float) -> Iterator[None]:
    """What is done meanwhile takes at most so many bytes at any moment."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def leftovers(folder: Path) -> list[str]:
    """Files under `folder` that are not one of the four by name."""
    good = {f"{file}{suffix}" for file in collections.SIZES for suffix in ("", ".gz")}
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.name not in good)


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


def save(path: Path, seed: int, shape: tuple[int, ...] = (4, 6), **options: object) -> np.ndarray:
    from PIL import Image

    pixels = np.random.Generator(np.random.PCG64(seed)).integers(0, 256, shape, np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return pixels


def fill(folder: Path, *names: str) -> Path:
    """A folder of pictures of those names, each of its own grey, which tells the number of the name."""
    from PIL import Image

    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        grey = np.full((4, 6), 250 - 10 * number, np.uint8)
        Image.fromarray(grey).save(folder / name, format=None if Path(name).suffix in IMAGE_SUFFIXES else "PNG")
    return folder


IMAGE_SUFFIXES = (".png", ".jpg", ".bmp", ".webp", ".gif", ".tif", ".pgm")


def shuffled(count: int, labels: np.ndarray | None = None) -> tuple[list[int], list[int]]:
    """The split as it is documented: in the order of seed 0, a tenth of each class for testing."""
    order = list(generator(0, "shuffle").permutation(count))
    by_class = order if labels is None else sorted(order, key=lambda i: labels[i])
    test = by_class[5::10] or by_class[-1:]
    return [i for i in order if i not in test], [i for i in order if i in test]


TRAIN = ("train/1.png", "train/2.png", "train/3.png")


def encoded(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def several(kind: str) -> bytes:
    from PIL import Image

    frames = [Image.new("RGB", (6, 4), (grey, grey, grey)) for grey in (0, 9, 200)]
    return encoded(np.asarray(frames[0]), kind, save_all=True, append_images=frames[1:])


NOISE = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (4, 6), np.uint8)
PNG = encoded(NOISE, "png")


def own(tmp_path: Path, **arrays: np.ndarray) -> Dataset:
    np.savez(tmp_path / "own.npz", allow_pickle=True, **arrays)
    return load_dataset(tmp_path / "own.npz")


def put_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write_parquet(path: Path, **columns: list) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pa.table(columns), path)
    return path
