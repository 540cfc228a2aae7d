"""A user's own images as a folder of picture files. Arrays of images are read in own_arrays.py.

No assumption is silent: `Dataset.source` names every assumption, and input that can be read in two ways is refused.
Each file is read once, and each image is read straight into its place in the data set.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from minigrad.backend.memory import free_memory
from minigrad.serialize import DataError, read_file

from .dataset import MAX_BYTES, Dataset, Reading, as_data_error, fault, listed, printable, split_order

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


class Part(NamedTuple):
    """The training or the test images, their labels, and what each is called: see `Dataset`."""

    images: np.ndarray
    labels: np.ndarray | None
    names: np.ndarray


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
    images, others = train.images, test.images
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
    more |= {"source": "; ".join(source), "train_names": train.names, "test_names": test.names}
    return Dataset(name, train.images, train.labels, test.images, test.labels, **more)


# ---------------------------------------------------------------------------------------------- folders of pictures


def load_folder(folder: Path, reading: Reading, progress: bool, broken: Collection[Path] = ()) -> Dataset:
    """The pictures of a folder, without those broken. Its sub-folders are classes, or `train` and `test` (or `val`)
    with classes or without.

    Shapes: (N, H, W, 1) if every picture is grey, else (N, H, W, 3).
    """
    passed: list[str] = []
    aside = Path(reading.test_dir) if reading.test_dir else None
    places, notes = _parts(folder, find_pictures(folder, passed, {*broken, aside}))
    if aside:
        with as_data_error(aside):
            others, more = _parts(aside, find_pictures(aside, passed, broken))
        unused = [f"not used: {place}" for place, _ in [*places[1:], *others[:-1]]]
        notes, places = [*notes, *more, f"the test images are from {aside}", *unused], [places[0], others[-1]]
    parts = [_classes(*place) for place in places]
    names, others_names = (sorted({name for _, name in part if name}) for part in (parts[0], parts[-1]))
    why = ""
    if names and others_names and names != others_names:
        differ = listed(set(names) ^ set(others_names))
        raise fault(folder, "class folders", "the same ones for training and testing", f"a difference: {differ}")
    if bool(names) != bool(others_names):
        names, why = [], "only one of the two parts has class folders"
        notes.append(f"no labels: {why}")
    elif names:
        notes.insert(0, f"classes: {listed(names)}")
    if passed:
        notes.append(f"other files passed over: {len(passed)} ({listed(passed)})")
    if broken:
        left = listed(sorted(path.name for path in broken))
        notes.append(f"left out because they cannot be read: {len(broken)} ({left})")
    pictures, first = [picture for part in parts for picture in part], len(parts[0])
    count = len(pictures)
    if count < 2 or not all(parts):
        mend = "save pictures as .png or .jpg, unpack archives, and for arrays give the path of the file"
        found = "; ".join([str(count), *notes, *[mend] * bool(passed)])
        raise fault(folder, "content", "at least 2 images" + ", of them 1 for testing" * bool(aside), found)
    number = {name: label for label, name in enumerate(names)}
    labels = np.array([number[name] for _, name in pictures]) if names else None
    if len(parts) == 2:
        shuffled = np.concatenate(split_order(count, every_tenth=True))  # as runs of earlier versions had them
        order = shuffled[shuffled < first], shuffled[shuffled >= first]
    else:
        order = split_order(count, labels, reading.every_tenth)
    paths = [path for path, _ in pictures]
    images, done, faults = _read_pictures(folder, paths, np.concatenate(order), reading, progress)
    if faults and reading.skip_broken:
        return load_folder(folder, reading, progress, {*broken, *map(Path.absolute, faults)})
    if faults:
        found = f"{next(iter(faults.values()))}, or leave out such files with --skip-broken"
        bad = listed((path.name for path in faults), 8)
        many = f"{folder}: {len(faults)} of {count} pictures cannot be read ({bad}); the first: "
        raise DataError(many * (len(faults) > 1) + found)
    split = f"{count - first} of them for testing" if len(parts) == 2 else split_said(len(order[1]), labels, reading)
    place = folder if len(parts) == 2 else places[0][0]
    source = [f"{count} images from the folder {place}, {split}", *notes, *done]
    files = [path.relative_to(folder) if path.is_relative_to(folder) else path for path in paths]
    called = np.array([printable(path.as_posix()) for path in files])
    known = tuple(map(printable, names))
    return split_dataset(
        str(folder), source, *parts_of(images, labels, called, order), class_names=known, label_fault=why, ordered=None
    )


def split_said(count: int, labels: np.ndarray | None, reading: Reading) -> str:
    """How the test images were taken from all images."""
    if reading.every_tenth:
        return "every 10th for testing"
    return f"{count} of them, drawn at random{' from each class' if labels is not None else ''}, for testing"


def parts_of(
    images: np.ndarray, labels: np.ndarray | None, names: np.ndarray, order: tuple[np.ndarray, np.ndarray]
) -> list[Part]:
    """The training and the test part of images in this order, and of labels and names in that of the files."""
    parts = images[: len(order[0])], images[len(order[0]) :]
    return [
        Part(part, None if labels is None else labels[rows], names[rows])
        for part, rows in zip(parts, order, strict=True)
    ]


def find_pictures(folder: Path, passed: list[str], aside: Collection[Path | None] = (), level: int = 1) -> list[Path]:
    """The pictures in a folder, and in its sub-folders, in sorted order, without the paths aside; appends to `passed`
    the names of other files.

    Raises:
        DataError: the sub-folders hold pairs, such as images and their masks, which are no classes.
    """
    if level > MOST_LEVELS:
        raise fault(folder, "folders", f"at most {MOST_LEVELS} levels", "more; does a link lead in a circle?")
    pictures, folders = [], {}
    for path in sorted(folder.iterdir()):
        if path.absolute() in aside or re.fullmatch(HIDDEN, path.name, re.IGNORECASE | re.DOTALL):
            continue
        if path.is_dir():
            if inner := find_pictures(path, passed, aside, level + 1):
                folders[path.name] = inner
        elif path.is_file() and is_picture(path):
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
        expected = "a folder train, at most one folder test and one folder val, and nothing else"
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
                wrong = f"a sub-folder {printable(inner)}; move it above the class folders, or remove it"
                raise fault(place / name, "content", "images of one class", wrong)
    return found


@contextlib.contextmanager
def _opened(path: str | Path, source: Path | IO[bytes]) -> Iterator[Any]:
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


def is_picture(path: Path) -> bool:
    """Whether a file is a picture by its suffix or, with any suffix or none, by its content."""
    if path.suffix[1:].lower() in SUFFIXES.split():
        return True
    try:
        with as_data_error(path), _opened(path, path):
            return True
    except DataError:
        return False


def _read_pictures(
    folder: Path, paths: list[Path], order: np.ndarray, reading: Reading, progress: bool
) -> tuple[np.ndarray, list[str], dict[Path, str]]:
    """(the pictures in this order, what was done to them, those that cannot be read and why).

    Raises:
        DataError: they are of several sizes.
    """
    images, notes = np.empty((0, 0, 0, 0), np.uint8), Counter[str]()
    broken: dict[Path, str] = {}
    sizes: dict[tuple[int, ...], list[str]] = {}
    for place, path in zip(np.argsort(order), tqdm(paths, desc="reading images", disable=not progress), strict=True):
        try:
            with as_data_error(path):
                content = read_file(path, most=MAX_BYTES)
                pixels, done = read_picture(path, content, reading, decode=len(sizes) < 2)
        except DataError as error:
            broken[path] = str(error)
            continue
        sizes.setdefault(pixels.shape[:2], []).append(path.name)
        if len(sizes) > 1:
            continue
        if pixels.shape[2] > images.shape[3]:  # the first, or the first in colour
            size = len(paths) * pixels.nbytes
            if size > MAX_BYTES and (free := free_memory()) is not None and size > free:
                what = f"memory for {len(paths)} pictures of {pixels.shape[1]} x {pixels.shape[0]}"
                raise fault(folder, what, f"{size / 2**30:.1f} GiB", f"{free / 2**30:.1f} GiB; give --image-size 64")
            grey, images = images, np.empty((len(paths), *pixels.shape), np.uint8)
            if len(grey):
                images[...] = grey
        images[place] = pixels
        notes.update(done)
    if len(sizes) > 1:
        more = f"; {len(broken)} cannot be read ({listed(path.name for path in broken)})" if broken else ""
        raise DataError(f"{size_fault(folder, sizes)}{more}")
    return images, [what.format(count) for what, count in notes.items()], broken


def size_fault(where: object, sizes: dict[tuple[int, ...], list[str]]) -> DataError:
    """What is wrong with images of several sizes (H, W), each with the names of its images, and what to do."""
    (most, held), *others = sorted(sizes.items(), key=lambda item: -len(item[1]))
    count, short = sum(map(len, sizes.values())), min(most)
    found = f"{len(sizes)}: {count - len(held)} of {count} are not {most[1]} x {most[0]} ({listed(others[0][1])})"
    fit = short if short < 32 else min(64, short // 16 * 16)
    return fault(where, "width and height", "one size", f"{found}; --image-size {fit} resizes and crops all")


def read_picture(
    path: str | Path, content: bytes, reading: Reading, decode: bool = True
) -> tuple[np.ndarray, list[str]]:
    """(a picture (H, W, 1 or 3) as it is to be seen, what was done to it).

    It is turned as its EXIF data say, transparent pixels are laid on white, and 16 bits become 8. Unless decode, the
    shape alone is right.

    Raises:
        DataError: it cannot be read, has several frames, or floats for pixels.
    """
    from PIL import ExifTags, Image, ImageOps

    done = []
    with _opened(path, io.BytesIO(content)) as image:
        image.verify()  # checksums, which decoding does not look at
    with _opened(path, io.BytesIO(content)) as image:
        if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # a camera's picture and its preview
            raise fault(path, "frames", "one", f"{image.n_frames}; save each as an image of its own")
        if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
            raise fault(path, "pixels", "8 or 16 bits", f"Pillow's mode {image.mode}; save it with 8 bits")
        turned = False
        with contextlib.suppress(Exception):
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) > 4
        size = image.size[::-1] if turned else image.size
        colourless = image.mode in ("1", "L", "LA") or image.mode.startswith("I")
        grey = colourless if reading.grayscale is None else reading.grayscale
        if not decode:
            return np.broadcast_to(np.uint8(0), (*size[::-1], 1 if grey else 3)), []
        if reading.image_size:
            image.draft(None, (2 * max(reading.image_size),) * 2)  # a large JPEG needs not be decoded in full
        with contextlib.suppress(Exception):  # a picture with damaged EXIF data is shown as it is
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):
            done.append("16 bits in {} of them scaled to 8")
            image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
        mode = "L" if grey else "RGB"
        if image.has_transparency_data:
            both = image.convert(mode + "A")
            alpha = both.getchannel("A")
            done += ["transparency in {} of them laid on white"] if alpha.getextrema()[0] < 255 else []
            image = Image.new(mode, both.size, "white")
            image.paste(both.convert(mode), mask=alpha)
        if reading.grayscale and not colourless:
            done.append("{} of them turned to grey")
        pixels = reading.fit(image.convert(mode))
        if pixels.shape[1::-1] != size:
            done.append(f"{{}} of them resized and cropped to {pixels.shape[1]} x {pixels.shape[0]}")
        return pixels, done
