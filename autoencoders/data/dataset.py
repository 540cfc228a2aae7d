"""What a data set is, and the words for arrays that are no images or no labels.

Read next: load.py.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from minigrad.random import generator
from minigrad.serialize import DataError

MAX_BYTES = 1 << 30  # what a compressed file may expand to
MAX_CLASSES = 10_000  # a conditional model has weights for each class; a label beyond is no class
CHUNK = 1 << 20  # bytes that are read at a time
MOST_PIXELS = 4096  # of a side to which images are resized
ROUNDING = 1e-5  # floats may exceed [0, 1] by this much; the readers clip them


@dataclass(frozen=True)
class Reading:
    """How images are read. A run records this, so `--resume` and the programs that use its model read images alike.

    Args:
        image_size: (H, W), or one number for both: the short side is resized and the centre is cropped.
        grayscale: True: in grey. False: in colour. None: in colour if any of the images is in colour, else in grey.
        test_dir: a folder or file of test images, if they are not in the data set itself.
        skip_broken: leave out picture files that cannot be read.
        every_tenth: if there are no test images, take every 10th image, as earlier versions did. False: a random
            tenth of each class is taken.

    Raises:
        DataError: a value is out of range.
    """

    image_size: tuple[int, int] | None = None
    grayscale: bool | None = None
    test_dir: str | None = None
    skip_broken: bool = False
    every_tenth: bool = False

    def __post_init__(self) -> None:
        size: Any = self.image_size
        if size is not None:
            size = tuple(size) if isinstance(size, list | tuple) else (size,)
            if not (len(size) in (1, 2) and all(type(n) is int and 1 <= n <= MOST_PIXELS for n in size)):
                found = " ".join(map(str, size))
                raise DataError(f"image size is {found} but must be one or two numbers from 1 to {MOST_PIXELS}")
            object.__setattr__(self, "image_size", (size[0], size[-1]))
        if self.test_dir is not None:  # found from every folder
            object.__setattr__(self, "test_dir", str(Path(str(self.test_dir)).expanduser().absolute()))

    @classmethod
    def of(cls, values: dict[str, Any]) -> Reading:
        """From options, or what a run has recorded. What is not there, or None, is as usual."""
        return cls(**{name: values[name] for name in cls.__dataclass_fields__ if values.get(name) is not None})

    @classmethod
    def recorded(cls, data: dict[str, Any]) -> Reading:
        """How the images of a run were read, from what it has recorded of its data."""
        return cls.of({"every_tenth": "content_hash" in data, **data})

    def fit(self, image: Any) -> np.ndarray:
        """The pixels (H, W, 1 or 3) of one of Pillow's images in this size and colour."""
        from PIL import ImageOps

        if self.grayscale is not None:
            image = image.convert("L" if self.grayscale else "RGB")
        if self.image_size not in (None, image.size[::-1]):
            image = ImageOps.fit(image, self.image_size[::-1])
        return np.asarray(image).reshape(image.height, image.width, -1)

    def apply(self, images: np.ndarray) -> np.ndarray:
        """Images (N, H, W, 1 or 3) in this size and colour, as bytes: the same array if they are so already."""
        from PIL import Image

        C = images.shape[3]
        shape = *(self.image_size or images.shape[1:3]), C if self.grayscale is None else 1 if self.grayscale else 3
        if shape == images.shape[1:]:
            return images
        if C not in (1, 3):
            raise fault("images", "channels", "1 or 3, to resize or recolour them", C)
        squeezed = images[..., 0] if C == 1 else images
        whole = (x if x.dtype == np.uint8 else (255 * x).round().astype(np.uint8) for x in squeezed)
        return np.fromiter((self.fit(Image.fromarray(x)) for x in whole), np.dtype((np.uint8, shape)), len(images))


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images, their labels if there are any, and where they came from.

    Shapes: images (N, H, W, C), uint8, or float32 in [0, 1] where the file held floats; labels (N,), integers.
    """

    name: str
    train_images: np.ndarray = field(repr=False)
    train_labels: np.ndarray | None = field(repr=False)
    test_images: np.ndarray = field(repr=False)
    test_labels: np.ndarray | None = field(repr=False)
    class_names: tuple[str, ...]
    source: str  # what was read, and all that was assumed about it
    label_fault: str = ""  # why labels that were found are not used
    # whether the training images may come class by class; None: not so, because they were shuffled when they were read
    ordered: bool | None = False
    reading: Reading = Reading()
    # of own images, what each is called: its file in the folder, or its row in the array, counted from 0
    train_names: np.ndarray | None = field(default=None, repr=False)
    test_names: np.ndarray | None = field(default=None, repr=False)

    @property
    def classes(self) -> int:
        """How many classes the labels tell apart: one for each name, or up to the largest label.

        Raises:
            DataError: training or test images have no labels, or there are more than MAX_CLASSES classes.
        """
        if self.train_labels is None or self.test_labels is None:
            why = self.label_fault or "there are none (use a sub-folder per class, or name the array y or labels)"
            raise DataError(f"{self.name}: a conditional model needs labels of training and test images; {why}")
        count = len(self.class_names) or 1 + int(max(self.train_labels.max(), self.test_labels.max()))
        if count > MAX_CLASSES:
            raise fault(
                self.name,
                "labels",
                f"0 to {MAX_CLASSES - 1} for a conditional model",
                f"{count - 1}; number the classes from 0",
            )
        return count

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 (hex) over the name, dtype, shape and bytes of each of the four arrays, in the order above."""
        digest = hashlib.sha256()
        for name in ("train_images", "train_labels", "test_images", "test_labels"):
            array = getattr(self, name)
            if array is None:
                digest.update(f"{name} none\n".encode())
            else:
                digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
                digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()

    def limited(self, limit: int | None, seed: int | None) -> slice | np.ndarray:
        """Which training images a run of at most `limit` images uses: a random sample in ascending order, or the first
        ones if they are in random order. Without a seed the first ones: earlier versions took those."""
        if limit is None or seed is None or limit >= len(self.train_images) or self.ordered is False:
            return slice(limit)
        return np.sort(generator(int(seed), "limit").permutation(len(self.train_images))[:limit])

    def _part(self, train: np.ndarray, test: np.ndarray) -> dict[str, Any]:
        """Its arrays of these training and test images."""
        rows = {"train": train, "test": test}
        names = [f"{part}_{what}" for part in rows for what in ("images", "labels", "names")]
        arrays = {name: getattr(self, name) for name in names}
        return {name: None if x is None else x[rows[name.partition("_")[0]]] for name, x in arrays.items()}

    def as_recorded(self, content_hash: Any, earlier: bool = False) -> Dataset:
        """This set in the order that a run has recorded. Earlier versions left images without labels in the order of
        their files; the split is the same. For a limit they took the first of the images that they had shuffled."""
        if earlier and self.ordered is None:
            self = replace(self, ordered=False)
        train, test = split_order(len(self.train_images) + len(self.test_images), every_tenth=True)
        unlabelled = self.train_labels is None and self.test_labels is None
        if unlabelled and len(test) == len(self.test_images) and content_hash != self.content_hash:
            unshuffled = replace(self, ordered=True, **self._part(np.argsort(train), np.argsort(test)))
            if unshuffled.content_hash == content_hash:
                return unshuffled
        return self


def split_order(
    count: int, labels: np.ndarray | None = None, every_tenth: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """(training images, test images) of `count` images, at least two, both in random order.

    A tenth are test images, drawn from each class alike where there are labels. every_tenth: see `Reading`.
    """
    order = generator(0, "shuffle").permutation(count)
    if every_tenth:
        test = order % 10 == 0
    else:
        by_class = np.arange(count) if labels is None else np.argsort(labels[order], kind="stable")
        test = np.isin(np.arange(count), by_class[min(5, count - 1) :: 10])
    return order[~test], order[test]


# ------------------------------------------------------------------------------------------------ what is wrong


def fault(where: object, what: str, expected: object, found: object) -> DataError:
    return DataError(f"{where}: {what}: expected {expected}, found {found}")


@contextlib.contextmanager
def as_data_error(where: object) -> Iterator[None]:
    """Turn whatever goes wrong inside into a DataError that names `where`: decoders raise many types."""
    try:
        yield
    except DataError:
        raise
    except OSError as error:
        near = near_names(Path(error.filename)) if isinstance(error, FileNotFoundError) and error.filename else ""
        raise DataError(f"{where}: {error.strerror or error}{near}") from error
    except MemoryError as error:  # a damaged file says that something in it is huge
        why = str(error) or "its decoder asks for more memory than there is"
        raise DataError(f"{where}: cannot be read: {why}") from error
    except Exception as error:
        raise DataError(f"{where}: cannot be read: {str(error) or type(error).__name__}") from error


def read_up_to(stream: Any, count: int) -> bytearray:
    """`count` bytes, or fewer at the end. Memory grows with what is really there, whatever a header announces."""
    data = bytearray()
    while len(data) < count and (piece := stream.read(min(CHUNK, count - len(data)))):
        data += piece
    return data


def printable(text: str, keep: str = "") -> str:
    """The text with escapes for its control characters, and for all else that prints nothing by itself."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of an error about a word: a question that names what is known and alike, if anything is."""
    names = {name.casefold(): name for name in known}
    begun = [name for name in names if name.startswith(word.casefold())]
    alike = begun if 0 < len(begun) <= 3 else difflib.get_close_matches(word.casefold(), names, 2, 0.7)
    return f"; did you mean {' or '.join(names[name] for name in alike)}?" if alike else ""


def near_names(path: Path, known: Iterable[str] = ()) -> str:
    """The end of an error about a file or folder that does not exist: names like its own, of those known and of those
    in its folder."""
    return did_you_mean(path.name, [*known, *(other.name for other in path.parent.glob("*"))])


def listed(names: Iterable[str], most: int = 3) -> str:
    """The first of many names."""
    shown = [printable(name[:40]) for name in names]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


def value_fault(images: Any) -> str | None:
    """Why these are not pixels, which are uint8 or floats in [0, 1], and what to do; None if they are."""
    if np.ma.isMaskedArray(images):
        return "expected plain arrays, found a masked one; images.filled(0) replaces the masked values by 0"
    if images.dtype == np.uint8:
        dark = "found only 0 and 1, but white is 255 in uint8; images.astype('float32') makes 1 white"
        return dark if images.max() == 1 else None
    wrong = f"expected uint8, or floats in [0, 1], found {images.dtype}"
    if images.dtype.kind not in "fiub":
        return wrong
    low, high, floats = float(images.min()), float(images.max()), images.dtype.kind == "f"
    mend = f"{wrong}; np.asarray(images, np.{'float32' if high <= 1 else 'uint8'}) makes them so"
    return range_fault(low, high, floats) or (None if floats else mend)


def range_fault(low: float, high: float, floats: bool) -> str | None:
    """Why floats, or whole numbers, from low to high are not pixels, and what to do; None if they are."""
    if not (math.isfinite(low) and math.isfinite(high)):
        found = "NaN" if math.isnan(low) or math.isnan(high) else "infinity"
        mend = "leave out the images that hold it, or repair them"
    elif low >= -ROUNDING and high <= (1 + ROUNDING if floats else 255):
        return None
    else:
        found = f"{low:g} to {high:g}"
        if floats and low > -0.2 and high < 1.2:
            mend = "images.clip(0, 1) clips them"
        elif low < 0:
            half = floats and -1 <= low < -0.5 and high <= 1
            mend = "use (images + 1) / 2" if half else "undo the standardisation or offset, and clip the result"
        else:
            mend = "divide by 255" if 100 < high <= 255 else "divide by the value of white"
    return f"expected {'floats in [0, 1]' if floats else 'whole numbers from 0 to 255'}, found {found}; {mend}"


def class_labels(labels: Any, count: int) -> np.ndarray:
    """The labels of `count` images as whole numbers (count,), int64.

    (count, 1) is taken, and so are bool and floats without a fraction.

    Raises:
        DataError: they are something else; the message says what to do.
    """
    with as_data_error("labels"):
        masked, labels = np.ma.isMaskedArray(labels), np.asarray(labels)
    found = None
    if masked:
        found = "a masked array"
    elif labels.dtype.kind not in "uifb":
        found = f"{labels.dtype}; number the classes from 0, in the same way for training and test images"
    elif not labels.size == count == max(labels.shape, default=1):
        several = "; labels.argmax(axis=1) turns one-hot rows into labels" if labels.ndim == 2 else ""
        found = f"shape {labels.shape}{several}"
    else:
        kind = {"f": np.float64, "b": np.uint8}.get(labels.dtype.kind, labels.dtype)
        labels = labels.reshape(count).astype(kind, copy=False)
        with np.errstate(invalid="ignore"):
            wrong = labels[~((labels >= 0) & (labels < 2**63) & (labels % 1 == 0))]
        found = str(wrong[0]) if len(wrong) else None
    if found is not None:
        raise DataError(f"labels: expected whole numbers from 0 on ({count},), found {found}")
    return labels.astype(np.int64)


def to_unit_range(images: np.ndarray) -> np.ndarray:
    """The images as float64 in [0, 1]."""
    return images / 255 if images.dtype == np.uint8 else images.astype(np.float64)


def pick_images(labels: np.ndarray | None, count: int, total: int, seed: int) -> np.ndarray:
    """Indices of `count` different random images: as many of each class as possible, ordered by class."""
    rng = generator(seed, "pick")
    if labels is None:
        return np.sort(rng.permutation(total)[:count])
    shuffled = rng.permutation(total)
    seen: dict[int, int] = {}
    rank = np.empty(total, int)  # how many of its class come before an image in the shuffle
    for index in shuffled:
        label = int(labels[index])
        rank[index] = seen.get(label, 0)
        seen[label] = rank[index] + 1
    chosen = sorted(shuffled, key=lambda index: rank[index])[:count]
    return np.array(sorted(chosen, key=lambda index: (labels[index], rank[index])))
