"""A user's own images: a folder of picture files, an `.npy` or an `.npz` file.

Nothing is taken for something else without a word: what is assumed is said in `Dataset.source`, and what can be read in
two ways is refused. Each file is read once, each image straight into its place in the data set.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from minigrad.serialize import DataError, read_file, require_file

from .dataset import (
    CHUNK,
    MAX_BYTES,
    Dataset,
    as_data_error,
    class_labels,
    fault,
    listed,
    printable,
    range_fault,
    split_order,
)

Part = tuple[np.ndarray, np.ndarray | None]  # images and labels

NPY_HEADER = 10_000  # bytes; NumPy refuses longer ones, but reads them first, up to 4 GB
DARK = 0.25  # of white: if no pixel is brighter, the source says so
SUFFIXES = "png apng jpg jpeg jfif jpe mpo bmp gif tif tiff webp avif pgm ppm pbm pnm"  # of pictures
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "AVIF")  # no decoder of these starts a program
MOST_LEVELS = 8  # of folders; a link may lead in a circle
HIDDEN = r"\..*|.*~|(eh)?thumbs\.db|desktop\.ini|icon\r|__macosx|__pycache__|@eadir|[@#$]recycle(\.bin)?|lost\+found"
# Names without case, digits and signs: train, x_train, TrainImages, val_labels, test set.
_PART = "(?:(train|test)(?:ing)?|(val)(?:id|idation)?)"
_KINDS = {"images": "x|images?|imgs?|pictures?|data|set|dataset|", "labels": "y|labels?|targets?|classes"}
_PICTURES = "images?|imgs?|pictures?|photos?|inputs?|originals?|jpegimages"
_PARTNERS = "masks?|labels?|annotations?|segment.*|ground.?truths?|gts?|targets?|outputs?|depths?|edges?"


def role(name: str) -> tuple[str, str]:
    """What a folder or array is by its name: ("train", "test", "val" or "", "images", "labels" or "")."""
    key = re.sub("[^a-z]", "", re.sub(r"(?<=[a-z])[AB]$", "", name).casefold())
    for kind, words in _KINDS.items():
        if key and (found := re.fullmatch(f"(?:{words}){_PART}?|{_PART}(?:{words})", key)):
            return next(filter(None, found.groups()), ""), kind
    return "", ""


def split_dataset(name: str, source: list[str], train: Part, test: Part, **more: Any) -> Dataset:
    """The data set of two parts. Bytes of 0 and 1 become black and white.

    Raises:
        DataError: the parts do not fit together.
    """
    images, others = train[0], test[0]
    if (images.shape[1:], images.dtype) != (others.shape[1:], others.dtype):
        one, other = (f"{x.dtype} of shape {x.shape[1:]}" for x in (images, others))
        raise fault(f"{name}: test images", "kind", f"{one} like the training images", other)
    highs, white = [float(part.max()) for part in (images, others)], 255 if images.dtype == np.uint8 else 1
    if white == 255 and max(highs) == 1:
        for part in (images, others):
            part *= np.uint8(255)
        source = [*source, "their 0 and 1 are taken as black and white, 0 and 255"]
    elif white == 255 and 1 in highs:
        found = f"1 in one and {max(highs):g} in the other"
        raise fault(name, "brightest value", "the same scale in training and test images", found)
    elif 0 < max(highs) < DARK * white:
        source = [*source, f"all are dark: the brightest value is {max(highs):g}, white is {white}"]
    return Dataset(name, *train, *test, source="; ".join(source), **more)


# ---------------------------------------------------------------------------------------------- folders of pictures


def load_folder(folder: Path, progress: bool) -> Dataset:
    """The pictures of a folder. Its sub-folders are classes, or `train` and `test` (or `val`) with classes or without.

    Shapes: (N, H, W, 1) if every picture is grey, else (N, H, W, 3).
    """
    passed: list[str] = []
    places, notes = _parts(folder, _pictures(folder, passed))
    parts = [_classes(*place) for place in places]
    names, others = (sorted({name for _, name in part if name}) for part in (parts[0], parts[-1]))
    why = ""
    if names and others and names != others:
        differ = listed(set(names) ^ set(others))
        raise fault(folder, "class folders", "the same ones for training and testing", f"a difference: {differ}")
    if bool(names) != bool(others):
        names, why = [], "only one of the two parts has class folders"
        notes.append(f"no labels: {why}")
    elif names:
        notes.insert(0, f"classes: {listed(names)}")
    if passed:
        notes.append(f"other files passed over: {len(passed)} ({listed(passed)})")
    pictures, first = [picture for part in parts for picture in part], len(parts[0])
    count = len(pictures)
    if count < 2:
        notes += ["save pictures as .png; give .npy, .npz or the folder of IDX files by its own path"] if passed else []
        raise fault(folder, "content", "at least 2 images", "; ".join([str(count), *notes]))
    order = split_order(count)
    if len(parts) == 2:
        shuffled = np.concatenate(order)
        order = shuffled[shuffled < first], shuffled[shuffled >= first]
    images, clear = _read_pictures([path for path, _ in pictures], np.concatenate(order), progress)
    if clear:
        notes.append(f"transparency in {clear} of them laid on white")
    number = {name: label for label, name in enumerate(names)}
    labels = np.array([number[name] for _, name in pictures]) if names else None
    split = f"{count - first} of them for testing" if len(parts) == 2 else "every 10th for testing"
    source = [f"{count} images from the folder {folder if len(parts) == 2 else places[0][0]}, {split}", *notes]
    known = tuple(map(printable, names))
    return split_dataset(str(folder), source, *_parts_of(images, labels, order), class_names=known, label_fault=why)


def _pictures(folder: Path, passed: list[str], level: int = 1) -> list[Path]:
    """The pictures in a folder, and in its sub-folders, in sorted order; appends to `passed` the names of other files.

    Raises:
        DataError: the sub-folders hold pairs, such as images and their masks, which are no classes.
    """
    if level > MOST_LEVELS:
        raise fault(folder, "folders", f"at most {MOST_LEVELS} levels", "more; does a link lead in a circle?")
    pictures, folders = [], {}
    for path in sorted(folder.iterdir()):
        if re.fullmatch(HIDDEN, path.name, re.IGNORECASE | re.DOTALL):
            continue
        if path.is_dir():
            if inner := _pictures(path, passed, level + 1):
                folders[path.name] = inner
        elif path.is_file() and path.suffix[1:].lower() in SUFFIXES.split():
            pictures.append(path)
        else:
            passed.append(path.name)
    kinds = [[name for name in folders if re.fullmatch(words, name, re.I)] for words in (_PICTURES, _PARTNERS)]
    stems = [{path.stem for path in inner} for name, inner in folders.items() if not role(name)[0]]
    # Numbered names (1.png, 2.png) may be alike by chance, and each of many classes may hold the same names.
    same = len(stems) == 2 and stems[0] == stems[1] and len({re.sub(r"[\W\d_]", "", stem) for stem in stems[0]}) > 1
    if same or all(kinds):
        found = f"pairs ({listed(kinds[0] + kinds[1] if all(kinds) else folders)}); give one of them, or other names"
        raise fault(folder, "sub-folders", "classes", found)
    return pictures + [path for inner in folders.values() for path in inner]


def _by_folder(place: Path, pictures: list[Path]) -> dict[str, list[Path]]:
    """The pictures of each sub-folder by its name, and by "" those outside of sub-folders."""
    found: dict[str, list[Path]] = {}
    for path in pictures:
        name, *inner = path.parts[len(place.parts) :]
        found.setdefault(name if inner else "", []).append(path)
    return found


def _parts(place: Path, pictures: list[Path]) -> tuple[list[tuple[Path, list[Path]]], list[str]]:
    """The folder, or those for training and for testing, each with its pictures; and what was assumed."""
    folders, named = _by_folder(place, pictures), dict[str, list[str]]()
    for name in folders:
        named.setdefault(role(name)[0], []).append(name)
    classes = named.pop("", [])
    if len(folders) == 1 and (named or (classes[0] and "" not in _by_folder(place / classes[0], pictures))):
        return _parts(place / next(iter(folders)), pictures)  # a folder around the whole is no class
    words = {role(word)[0] for name in classes for word in re.findall("[A-Za-z]+", name)}
    if not named and not {"train"} < words - {""}:  # seg_train and seg_test are no classes
        return [(place, pictures)], []
    if len(classes) > 1 and classes[0] and named.keys() == {"train"} and len(named["train"]) == 1:
        return [(place, pictures)], [f"{named['train'][0]} is taken for a class like the others"]
    if classes or max(map(len, named.values())) > 1 or "train" not in named:
        found = listed(name or folders[name][0].name for name in folders)
        expected = "a folder train, at most one test and one val, and nothing beside"
        raise fault(place, "content", expected, f"{found}; move or rename the others")
    notes = []
    if "val" in named:
        (val,) = named.pop("val")
        notes = [f"the {len(folders[val])} images in {val} are {'not used' if 'test' in named else 'for testing'}"]
        named.setdefault("test", [val])
    parts = []
    for name in (named[part][0] for part in ("train", "test") if part in named):
        (only, *others), inner = _by_folder(place / name, folders[name]), place / name
        wrapped = not others and role(only)[1]  # train/images/1.png and train/train/1.png
        parts.append((inner / only if wrapped else inner, folders[name]))
    return parts, notes


def _classes(place: Path, pictures: list[Path]) -> list[tuple[Path, str]]:
    """The pictures, each with the name of its class, the sub-folder that holds it, or with "" if there are none."""
    folders = _by_folder(place, pictures)
    if "" in folders and len(folders) > 1:
        both = listed([folders[""][0].name, list(folders)[1]])
        raise fault(place, "content", "images, or sub-folders of images", f"both ({both})")
    found = [(path, name) for name, held in folders.items() for path in held]
    for path, name in found:
        for inner in path.parts[len(place.parts) + 1 : -1]:
            if role(inner)[0] or (inner in folders and inner != name):
                wrong = f"{printable(inner)}; put that above the classes, or leave it out"
                raise fault(place / name, "content", "images of one class", wrong)
    return found


@contextlib.contextmanager
def _opened(path: Path, source: IO[bytes]) -> Iterator[Any]:
    from PIL import Image

    Image.init()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(source, formats=[name for name in FORMATS if name in Image.OPEN]) as image:  # AVIF is new
                yield image
        except (OSError, SyntaxError) as error:
            raise DataError(f"{path}: {str(error).partition(' <')[0]}; repair or remove the file") from error


def _read_pictures(paths: list[Path], order: np.ndarray, progress: bool) -> tuple[np.ndarray, int]:
    """(the pictures in this order, how many of them have transparent pixels).

    Raises:
        DataError: some are at fault; the message says what is wrong with the first, and names three.
    """
    images, clear = np.empty((0, 0, 0, 0), np.uint8), 0
    faults: dict[str, str] = {}
    for place, path in zip(np.argsort(order), tqdm(paths, desc="reading images", disable=not progress), strict=True):
        try:
            with as_data_error(path):
                pixels, transparent = _read_picture(path, images.shape[1:3] if len(images) else None, paths[0].name)
                if pixels.shape[2] > images.shape[3]:  # the first, or the first in colour
                    grey, images = images, np.empty((len(paths), *pixels.shape), np.uint8)
                    if len(grey):
                        images[...] = grey
        except DataError as error:
            faults[path.name] = str(error)
            continue
        images[place] = pixels
        clear += transparent
    if faults:
        more = f"; {len(faults)} files are at fault: {listed(faults)}" if len(faults) > 1 else ""
        raise DataError(next(iter(faults.values())) + more)
    return images, clear


def _read_picture(path: Path, size: tuple[int, ...] | None, first: str) -> tuple[np.ndarray, bool]:
    """(a picture (H, W, 1 or 3) as it is to be seen, whether pixels of it were transparent).

    It is turned as its EXIF data say, and transparent pixels are laid on white.

    Raises:
        DataError: it has several frames, more than 8 bits, or another (H, W) than size, that of the first picture.
    """
    from PIL import Image, ImageOps

    content = io.BytesIO(read_file(path, most=MAX_BYTES))
    with _opened(path, content) as image:
        image.verify()  # checksums, which decoding does not look at
    content.seek(0)
    with _opened(path, content) as image:
        if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # a camera's picture and its preview
            raise fault(path, "frames", "one", f"{image.n_frames}; save each as an image of its own")
        if image.mode.startswith(("I", "F")):
            raise fault(path, "pixels", "8 bits for each channel", f"Pillow's mode {image.mode}; save it with 8 bits")
        with contextlib.suppress(Exception):  # a picture with damaged EXIF data is shown as it is
            image = ImageOps.exif_transpose(image)
        mode, transparent = "L" if image.mode in ("1", "L", "LA") else "RGB", False
        if image.has_transparency_data:
            both = image.convert(mode + "A")
            alpha = both.getchannel("A")
            transparent = alpha.getextrema()[0] < 255
            image = Image.new(mode, both.size, "white")
            image.paste(both.convert(mode), mask=alpha)
        pixels = np.asarray(image.convert(mode)).reshape(image.height, image.width, -1)
    if size and pixels.shape[:2] != size:
        found = f"{pixels.shape[1::-1]}; resize or crop them"
        raise fault(path, "width and height", f"{size[::-1]} like {printable(first)}", found)
    return pixels, transparent


# ------------------------------------------------------------------------------------------------- .npy and .npz


Numbers = tuple[tuple[int, ...], bool, np.dtype[Any], Any]  # shape, whether in Fortran's order, dtype, stream


class Array(NamedTuple):
    """An array in a file, and what opens it."""

    where: str
    opened: Callable[[], contextlib.AbstractContextManager[Numbers]]

    def labels(self) -> np.ndarray:
        with self.opened() as (shape, fortran, dtype, stream):
            data = stream.read(math.prod(shape) * dtype.itemsize)
            return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")

    def may_be_images(self) -> bool:
        try:
            with self.opened() as (shape, *_):
                return len(shape) > 2 or shape[1:] == (784,)
        except DataError:
            return False


def load_array_file(path: Path) -> Dataset:
    """The images of an `.npy`, or of an `.npz` by name."""
    require_file(path)
    size = path.stat().st_size
    if path.suffix.lower() == ".npy":
        return load_arrays(path, {"array": _npy_array(f"{path}: array", partial(path.open, "rb"), size, size)})
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name, limit = member.filename.removesuffix(".npy"), max(MAX_BYTES, size)
            if name != member.filename:
                opened = partial(archive.open, member)
                arrays[name] = _npy_array(f"{path}: {printable(name)}", opened, member.file_size, limit)
        return load_arrays(path, arrays)


def _npy_array(where: str, opened: Callable[[], Any], size: int, limit: int) -> Array:
    """An array in an `.npy` stream of `size` bytes; its header is checked before memory is taken."""

    @contextlib.contextmanager
    def numbers() -> Iterator[Numbers]:
        with as_data_error(where), opened() as stream:
            if size > limit:
                raise fault(where, "decompressed size", f"at most {limit} bytes", f"{size} bytes")
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
            stream.seek(head.tell())
            yield shape, fortran, dtype, stream

    return Array(where, numbers)


def load_arrays(path: Path, arrays: dict[str, Array], *assumed: str) -> Dataset:
    """The data set of named arrays. `_axes` says how images may lie: (N, H, W), (N, H, W, C) and others.

    Values: whole numbers from 0 to 255, or floats in [0, 1]. Names: train_images or x_train and the like, and optional
    test_images (or else val_images), train_labels and test_labels; a single array of images may have any name. Without
    test images every 10th training image becomes one.
    """
    used, notes = _choose(path, arrays)
    notes, why = [*assumed, *notes], ""
    whole = ("test", "images") not in used
    parts: list[Part] = []
    for part in ("train",) if whole else ("train", "test"):
        images, order, note = _read_images(used[part, "images"], whole)
        notes += [note] if note not in ("", *notes) else []
        labels = None
        if array := used.get((part, "labels")):
            try:
                labels = class_labels(array.labels(), len(images))
            except DataError as error:  # what a training may not need must not stop it
                why = why or f"{part} {error}"
        parts.append((images, labels))
    counts = " and ".join(f"{len(part)} {kind}" for (part, _), kind in zip(parts, ("training", "test"), strict=False))
    if whole:
        counts, parts = str(len(images)), _parts_of(images, labels, order)
    source = [f"{counts} images from {path}" + ", every 10th for testing" * whole, *notes]
    source += [f"no labels: {why}"] if why else []
    return split_dataset(str(path), source, *parts, class_names=(), label_fault=why, ordered=not whole)


def _parts_of(images: np.ndarray, labels: np.ndarray | None, order: tuple[np.ndarray, np.ndarray]) -> list[Part]:
    """The training and the test part of images in this order, and of labels in that of the files."""
    parts = images[: len(order[0])], images[len(order[0]) :]
    return [(part, None if labels is None else labels[rows]) for part, rows in zip(parts, order, strict=True)]


def _choose(path: Path, arrays: dict[str, Array]) -> tuple[dict[tuple[str, str], Array], list[str]]:
    """The arrays that are used, by what they are: ("train" or "test", "images" or "labels"); and what was assumed."""
    found: dict[tuple[str, str], list[str]] = {}
    for name in arrays:
        found.setdefault(role(name), []).append(name)
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


def _axes(where: str, shape: tuple[int, ...]) -> tuple[tuple[str, ...], dict[str, int], str]:
    """(what each axis is, the size of each of N, H, W and C, what was assumed).

    Taken are (N, H, W), (N, H, W, C), rows (N, 784), and (N, C, H, W) and (H, W, C, N) where C alone is at most 4.
    What can be read in two ways is refused.
    """
    grey, last, note, mend = "images[..., None]", "np.moveaxis(images, -1, 0)", "", ""
    axes = tuple("NHWC"[: len(shape)])
    if len(shape) not in (2, 3, 4) or min(shape) < 1:
        mend = "no axis may be empty" if 0 in shape else "reshape it if it holds images"
    elif len(shape) == 2:
        axes, note = ("N", "HW"), "rows of 784 numbers taken as images of 28 x 28"
        if shape[1] != 784 or shape[0] == 784:
            side = math.isqrt(shape[1])
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
    sizes = {"C": 1, "H": 28, "W": 28} | dict(zip(axes, shape, strict=True))
    return axes, sizes, note


def _read_images(array: Array, whole: bool) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray], str]:
    """(the images, their order in the file, what was assumed): of a whole set in `split_order`, else as they come."""
    with array.opened() as (shape, fortran, dtype, stream):
        if dtype.kind not in "uifb":
            raise fault(array.where, "dtype", "numbers", dtype.name)
        axes, sizes, note = _axes(array.where, shape)
        if whole and sizes["N"] < 2:
            raise fault(array.where, "images", "at least 2", sizes["N"])
        order = split_order(sizes["N"])
        place = np.argsort(np.concatenate(order)) if whole else np.arange(sizes["N"])
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
    return images, order, note
