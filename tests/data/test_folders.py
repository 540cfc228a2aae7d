"""Folders of pictures."""

import os
from pathlib import Path

import numpy as np
import pytest
from data_cases import NOISE, PNG, TRAIN, encoded, fill, flipped, own, put_files, refuses, save, several, shuffled

from autoencoders.data import load_dataset, own_images

pytestmark = pytest.mark.usefixtures("world")


def greys(images: np.ndarray) -> list[int]:
    """Which pictures of `fill` these are, in order."""
    return [(255 - int(image.flat[0])) // 10 for image in images]


LABELLINGS = {
    "in turn": np.arange(200) % 10,  # every 10th image is of one class
    "one after the other": np.arange(200) // 20,
    "of different sizes": np.repeat([0, 1, 2], [150, 40, 10]),
    "few": np.repeat([3, 7], [1, 4]),
    "two images": np.zeros(2, int),
}


@pytest.mark.parametrize("case", LABELLINGS)
def test_each_class_gives_a_tenth_for_testing(tmp_path: Path, case: str) -> None:
    labels = LABELLINGS[case]
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 4, 4), dtype=np.uint8)
    dataset = own(tmp_path, images=images, labels=labels)
    assert abs(len(dataset.test_labels) - len(labels) / 10) < 1
    for label in set(labels):
        assert abs((dataset.test_labels == label).sum() - (labels == label).sum() / 10) <= 1
    assert sorted([*dataset.train_names, *dataset.test_names]) == list(range(len(labels)))
    for part in ("train", "test"):
        rows = getattr(dataset, f"{part}_names")
        assert np.array_equal(getattr(dataset, f"{part}_images")[..., 0], images[rows])
        assert np.array_equal(getattr(dataset, f"{part}_labels"), labels[rows])


def test_flat_folder_of_grey_images(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    pixels = np.stack([save(folder / f"{number:02}.png", number) for number in reversed(range(12))][::-1])
    (folder / "notes.txt").write_text("ignored")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    dataset = load_dataset(folder)
    train, test = shuffled(12)
    assert np.array_equal(dataset.test_images, pixels[test][..., None])
    assert np.array_equal(dataset.train_images, pixels[train][..., None])
    assert train != sorted(train), "in the order of the files the first ones may all be of one kind"
    assert (dataset.train_labels, dataset.test_labels, dataset.class_names) == (None, None, ())
    assert list(dataset.test_names) == [f"{number:02}.png" for number in test]
    assert dataset.source == (
        f"12 images from the folder {folder}, 1 of them, drawn at random, for testing; other files passed over: 2 "
        "(notes.txt, pipe.png)"
    )


@pytest.mark.parametrize("first", ["grey", "colour"])
def test_one_colour_image_makes_all_colour(tmp_path: Path, first: str) -> None:
    grey = save(tmp_path / ("b.png" if first == "colour" else "a.png"), 1)
    colour = save(tmp_path / ("a.BMP" if first == "colour" else "b.BMP"), 2, (4, 6, 3))
    last = save(tmp_path / "c.png", 3)
    dataset = load_dataset(tmp_path)
    wanted = {image.tobytes() for image in (colour, *(np.repeat(x[..., None], 3, axis=2) for x in (grey, last)))}
    assert {image.tobytes() for image in (*dataset.train_images, *dataset.test_images)} == wanted


def test_labels_stay_with_their_images(tmp_path: Path) -> None:
    """Of a folder with classes, of one with train and test, and of arrays: the picture tells the class."""
    names = [f"{'abc'[number % 3]}/{number:02}.png" for number in range(25)]
    classes = load_dataset(fill(tmp_path / "classes", *names))
    parts = [f"{'test' if number > 19 else 'train'}/{name}" for number, name in enumerate(names)]
    split = load_dataset(fill(tmp_path / "split", *parts))
    assert sorted(greys(split.test_images)) == [20, 21, 22, 23, 24]
    greyscale = np.array([np.full((4, 6), 250 - 10 * number, np.uint8) for number in range(25)])
    np.savez(tmp_path / "x.npz", x_train=greyscale, y_train=np.arange(25) % 3)
    assert [name[0] for name in classes.test_names] == [classes.class_names[label] for label in classes.test_labels]
    assert load_dataset(tmp_path / "classes").content_hash == classes.content_hash, "the same order each time"
    for dataset in (classes, split, load_dataset(tmp_path / "x.npz")):
        pairs = (dataset.train_images, dataset.train_labels), (dataset.test_images, dataset.test_labels)
        for images, labels in pairs:
            assert [number % 3 for number in greys(images)] == list(labels)
        assert list(dataset.train_labels) != sorted(dataset.train_labels), "not class by class"
        assert not dataset.ordered


JUNK = (".ipynb_checkpoints/0-checkpoint.png", "__MACOSX/._1.png", "a/._1.png", "a/.DS_Store", ".git/x.png")
JUNK += ("@eaDir/1.png", "a/@eaDir/1.png", "b/Thumbs.db", "b/1.png~", "$RECYCLE.BIN/1.png", "a/.thumbs/1.png")
JUNK += ("@Recycle/1.png", "#recycle/1.png", "a/Icon\r")
IMAGENET = ("train/a/images/1.png", "train/b/images/1.png")
TWO = ("a/1.png", "a/2.png", "b/1.png", "b/2.png")
# what a folder holds; classes, number of images for training and for testing, what the source says
LAYOUTS = {
    "hidden": ((*TWO, *JUNK), ("a", "b"), 3, 1, ""),
    "train and test": (("Training_Set/1.png", "Training_Set/2.png", "TEST1/1.png"), (), 2, 1, "1 of them for testing"),
    "with classes": (tuple(f"{part}/{name}" for part in ("train", "test") for name in TWO), ("a", "b"), 4, 4, ""),
    "train alone": (TRAIN, (), 2, 1, "train, 1 of them, drawn at random, for testing"),
    "val is told": ((*TRAIN, "test/1.png", "valid/8.png", "valid/9.png"), (), 3, 1, "the 2 images in valid are not us"),
    "val for testing": ((*TRAIN, "validation/9.png"), (), 3, 1, "the 1 images in validation are for testing"),
    "Roboflow": (("train/images/1.png", "train/images/2.png", "test/images/1.png"), (), 2, 1, "1 of them for testing"),
    "no labels for testing": (("train/a/1.png", "train/b/1.png", "test/1.png"), (), 2, 1, "no labels: only one of"),
    "deeper": (("a/x/1.png", "a/2.png", "b/y/z/1.png"), ("a", "b"), 2, 1, ""),
    "ImageNet": ((*IMAGENET, "val/a/1.png", "val/b/1.png"), ("a", "b"), 2, 2, "the 2 images in val are"),
    "a person named Val": (("Val_Ames/1.png", "Zoe_Best/1.png"), ("Val_Ames", "Zoe_Best"), 1, 1, ""),
    "a class named dev": (("art/1.png", "dev/1.png"), ("art", "dev"), 1, 1, ""),
    "copies": (tuple(f"{x}/{y}.png" for x in "ab" for y in ("1", "1 (1)")), ("a", "b"), 3, 1, ""),
    "a folder around": (("set/images/a/1.png", "set/images/b/1.png"), ("a", "b"), 1, 1, "set/images, 1 of"),
    "train in train": (("train/train/1.png", "train/train/2.png"), (), 1, 1, "train/train, 1 of them, drawn at"),
    "a class named train": (("bus/1.png", "car/1.png", "train/1.png"), ("bus", "car", "train"), 2, 1, "train is taken"),
    "one class": (("images/1.png", "images/2.png"), ("images",), 1, 1, "classes: images"),
    "suffixes": (("1.PNG", "2.jpg", "c", "d.dat", "e.jfif", "g.txt"), (), 4, 1, "files passed over: 1 (g.txt)"),
    "others": (("1.png", "2.png", "a.txt", "b.csv", "c.heic", "d.pdf"), (), 1, 1, "over: 4 (a.txt, b.csv, c.heic"),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_what_folders_stand_for(tmp_path: Path, case: str) -> None:
    names, classes, train, test, said = LAYOUTS[case]
    fill(tmp_path, *names)
    for name in names:
        if Path(name).suffix in (".txt", ".csv", ".heic", ".pdf", ".db"):
            (tmp_path / name).write_text("no picture")
    dataset = load_dataset(tmp_path)
    assert dataset.class_names == classes
    assert (len(dataset.train_images), len(dataset.test_images)) == (train, test)
    assert (dataset.train_labels is None) == (dataset.test_labels is None) == (not classes)
    assert said in dataset.source
    assert said or ";" not in dataset.source.replace("; classes: ", "")
    if test > 1 or ("drawn" not in dataset.source and any(name.lower().startswith(("test", "val")) for name in names)):
        where = [name.lower().startswith(("test", "val")) for name in names]
        assert set(greys(dataset.train_images)) == {i for i, held in enumerate(where) if not held}


PAIRS = ("cat_3.png", "tree_7.png")
ONE = ("train/a/1.png", "train/b/1.png")
# what is refused, and what the message says
REFUSED = {
    "other classes": ((*ONE, "test/a/1.png", "test/c/1.png"), "a difference: .*[bc], .*[bc]"),
    "fewer classes": ((*ONE, "test/a/1.png"), "class folders: .* a difference: b$"),
    "no train": (("test/1.png", "val/2.png"), "a folder train, .* found test, val; move or rename the others$"),
    "unknown parts": (("seg_train/a/1.png", "seg_test/a/2.png"), "a folder train, .* found seg_test, seg_train; move"),
    "the whole once more": ((*TWO, *(f"set/{name}" for name in TWO)), "set: .* one class, found a sub-folder a; move"),
    "beside": ((*TRAIN, "test/1.png", "other/1.png"), "nothing else, found other, test, train"),
    "masks of a part": ((*TRAIN, "train_masks/1.png"), "nothing else, found train, train_masks"),
    "stray": ((*TRAIN, "x.png"), "nothing else, found x.png, train"),
    "twice": (("trainA/1.png", "trainB/1.png", "testA/1.png"), "found testA, trainA, trainB"),
    "images and masks": (("images/1.png", "images/2.png", "masks/1_mask.png"), r"pairs \(images, masks\)"),
    "within a class": (("a/Images/1.png", "a/Ground_Truth/1.png", "b/1.png"), r"pairs \(Images, Ground_Truth\)"),
    "same names": (tuple(f"{x}/{y}" for x in ("hr", "lr") for y in PAIRS), r"pairs \(hr, lr\); give one of them, or"),
    "parts of a class": (("a/train/1.png", "a/test/1.png", "b/1.png"), "found a sub-folder test; move it above"),
    "both": (("a/1.png", "1.png"), r"content: expected images, or sub-folders of images, found both \(1.png, a\)"),
    "too deep": (("/".join("abcdefgh") + "/1.png", "x/1.png"), "at most 8 levels, found more"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_folders_that_are_refused(tmp_path: Path, case: str) -> None:
    names, message = REFUSED[case]
    refuses(fill(tmp_path, *names), message)


def test_a_link_in_a_circle_and_links_that_lead_nowhere(tmp_path: Path) -> None:
    fill(tmp_path, "1.png", "2.png")
    (tmp_path / "3.png").symlink_to("/nowhere.png")
    assert "other files passed over: 1 (3.png)" in load_dataset(tmp_path).source
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "again").symlink_to(tmp_path)
    refuses(tmp_path, "does a link lead in a circle")


def test_names_from_outside_are_made_printable(tmp_path: Path) -> None:
    for name in (b"cat", b"\xff\xfe", b"\x1b[31m"):
        save(tmp_path / os.fsdecode(name) / "a.png", len(name))
    (tmp_path / "\n.txt").write_text("no picture")
    dataset = load_dataset(tmp_path)
    assert dataset.class_names == (r"\x1b[31m", "cat", r"\udcff\udcfe")
    assert r"1 (\n.txt)" in dataset.source
    assert dataset.source.isprintable()
    "".join(dataset.class_names).encode()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_pictures_are_turned_as_their_exif_data_say(tmp_path: Path, suffix: str, orientation: int) -> None:
    from PIL import Image

    ramp = np.add.outer(np.arange(0, 160, 20), np.arange(0, 96, 4)).astype(np.uint8)  # (8, 24)
    for name in "ab":
        image = Image.fromarray(np.stack([ramp] * 3, axis=2))
        exif = image.getexif()
        exif[0x0112] = orientation
        image.save(
            tmp_path / f"{name}.{suffix}", exif=exif, **({"quality": 100} if suffix == "jpg" else {"lossless": 1})
        )
    (found,) = load_dataset(tmp_path).train_images
    stored = np.stack([ramp] * 3, axis=2)
    if suffix == "jpg":
        with Image.open(tmp_path / "a.jpg") as image:
            stored = np.asarray(image)  # with small losses
    # what the first row and the first column of the file are to be seen as, by the standard
    wanted = {
        1: stored,  # top, left
        2: stored[:, ::-1],  # top, right
        3: stored[::-1, ::-1],  # bottom, right
        4: stored[::-1],  # bottom, left
        5: stored.swapaxes(0, 1),  # left, top
        6: stored.swapaxes(0, 1)[:, ::-1],  # right, top
        7: stored.swapaxes(0, 1)[::-1, ::-1],  # right, bottom
        8: stored.swapaxes(0, 1)[::-1],  # left, bottom
    }[orientation]
    assert found.shape == wanted.shape == ((8, 24, 3) if orientation < 5 else (24, 8, 3))
    assert np.array_equal(found, wanted)
    for other in (ramp[:4, :6], ramp if orientation > 4 else ramp.T):  # as large if it were not turned
        put_files(tmp_path, {"c.png": encoded(np.stack([other] * 3, axis=2), "png")})
        refuses(tmp_path, r"found 2: 1 of 3 are not (24 x 8|8 x 24) .c.png.; --image-size (4|8) resizes and crops all")


def test_damaged_exif_data_turn_nothing(tmp_path: Path) -> None:
    for name in "ab":
        save(tmp_path / f"{name}.png", 1, exif=b"Exif\0\0damaged")
    assert len(load_dataset(tmp_path).train_images) == 1


CLEAR = np.zeros((4, 6, 4), np.uint8)
CLEAR[:, :3] = 255, 0, 255, 0  # a colour that nobody sees
CLEAR[:, 3:] = 10, 20, 30, 255
HALF = np.full((4, 6, 4), (0, 100, 200, 128), np.uint8)
# mode, pixels, options of saving, what is to be seen in the first and in the last column
TRANSPARENT = {
    "RGBA": ("RGBA", CLEAR, {}, [255, 255, 255], [10, 20, 30]),
    "half": ("RGBA", HALF, {}, [127, 177, 227], [127, 177, 227]),
    "LA": ("LA", CLEAR[..., 2:], {}, [255], [30]),
    "tRNS of grey": ("L", CLEAR[..., 1], {"transparency": 0}, [255], [20]),
    "tRNS of a bit": ("1", CLEAR[..., 1] > 9, {"transparency": 0}, [255], [255]),
    "tRNS of colour": ("RGB", CLEAR[..., :3], {"transparency": (255, 0, 255)}, [255, 255, 255], [10, 20, 30]),
    "palette": ("P", CLEAR[..., 1] // 20, {"transparency": 0}, [255, 255, 255], None),
    "opaque": ("RGBA", CLEAR | np.uint8([0, 0, 0, 255]), {}, [255, 0, 255], [10, 20, 30]),
}


@pytest.mark.parametrize("case", TRANSPARENT)
def test_transparent_pixels_are_laid_on_white(tmp_path: Path, case: str) -> None:
    from PIL import Image

    mode, pixels, options, left, right = TRANSPARENT[case]
    image = Image.fromarray(pixels) if mode != "P" else Image.fromarray(pixels).convert("P")
    assert image.mode == mode
    for name in "ab":
        image.save(tmp_path / f"{name}.png", **options)
    dataset = load_dataset(tmp_path)
    assert dataset.source.endswith("; transparency in 2 of them laid on white") == (case != "opaque")
    assert dataset.train_images[0, 0, 0].tolist() == left
    assert right is None or dataset.train_images[0, 0, -1].tolist() == right


def test_each_picture_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, *(f"{number}.png" for number in range(5)))
    opened, real = [], own_images.read_file
    monkeypatch.setattr(own_images, "read_file", lambda path, most: opened.append(path.name) or real(path, most=most))
    monkeypatch.setattr(Path, "open", lambda *_, **__: pytest.fail("opened once more"))
    load_dataset(tmp_path)
    assert sorted(opened) == [f"{number}.png" for number in range(5)]


def test_a_preview_in_a_picture_of_a_camera_is_passed_over(tmp_path: Path) -> None:
    from PIL import Image

    fill(tmp_path, "a.png", "b.png")
    frames = [Image.new("RGB", (6, 4), (grey, grey, grey)) for grey in (200, 0)]
    frames[0].save(tmp_path / "c.jpg", format="MPO", save_all=True, append_images=frames[1:])
    dataset = load_dataset(tmp_path)
    assert sorted(greys(np.concatenate([dataset.train_images, dataset.test_images]))) == [0, 1, 5]


MEND = ", or leave out such files with --skip-broken$"
UNKNOWN, CUT = f"cannot identify image file; repair or remove the file{MEND}", f"[^<]+; repair or remove the file{MEND}"
FRAMES = f"frames: expected one, found 3; save each as an image of its own{MEND}"
BITS = f"pixels: expected 8 or 16 bits, found Pillow's mode [IF]; save it with 8 bits{MEND}"
PICTURE_FAULTS = {  # what is in b.png; what is said
    "empty": (b"", UNKNOWN),
    "a program for Ghostscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n%%EOF\n", UNKNOWN),
    "cut in the data": (PNG[:-20], CUT),
    "damaged header": (PNG[:20] + b"\xff" + PNG[21:], CUT),
    "damaged data": (flipped(PNG, 50), CUT),
    "cut JPEG": (encoded(NOISE, "jpeg")[:-9], CUT),
    "frames": (several("gif"), FRAMES),
    "floats": (encoded(NOISE.astype(np.float32), "tiff"), BITS),
}


@pytest.mark.parametrize("case", PICTURE_FAULTS)
def test_pictures_at_fault(tmp_path: Path, case: str) -> None:
    content, message = PICTURE_FAULTS[case]
    fill(tmp_path, "a.png", "c.png")
    (tmp_path / "b.png").write_bytes(content)
    refuses(tmp_path, f"^{tmp_path}/b.png: {message}")


def test_too_few_pictures(tmp_path: Path) -> None:
    refuses(tmp_path, f"{tmp_path}: content: expected at least 2 images, found 0$")
    fill(tmp_path, "a.png")
    (tmp_path / "b.heic").write_text("no picture")
    refuses(tmp_path, r"at least 2 images, found 1; other files .*: 1 .b.heic.; save pictures as .png or .jpg, unpack")


def test_decompression_bombs_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    for name in "ab":
        save(tmp_path / f"{name}.png", 1, (10, 10))
    for limit in (60, 40):  # Pillow warns above the limit and refuses above twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        refuses(tmp_path, "a.png: .*decompression bomb")
    monkeypatch.undo()
    monkeypatch.setattr(own_images, "MAX_BYTES", 50)
    refuses(tmp_path, "a.png: size: expected at most 50 bytes, found")
