"""Coloured images: makes two data sets, trains a recipe on each, and measures it.

    python benchmarks/colour.py [--sets faces,emoji] [--data DIR] [--runs DIR] [--device cpu] [--quick]

- faces: 6,000 cartoon faces of 64 x 64 pixels, drawn by this program, so under the licence of this project (MIT).
- emoji: the 3,500 pictures in Google's Noto Color Emoji, reduced to 32 x 32 pixels on white. The font is in Debian's
  package fonts-noto-color-emoji, under the SIL Open Font License 1.1. Many differ only in the colour of skin or hair,
  and both parts of the data have some of each, so test images are no strangers to the model.

Both become folders of PNG files, like pictures of your own. A run is `autoencoders train --config colour64 --dataset
FOLDER`. The result is a row for each set: the metrics that a run records of its test images, a tenth of all.
benchmarks/report.py makes the table.
"""

from __future__ import annotations

import argparse
import colorsys
import io
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import driver
import numpy as np
from driver import BenchmarkError
from PIL import Image, ImageDraw
from quality import TRAIN, run

from autoencoders import VAE, load
from autoencoders.data.dataset import split_order
from autoencoders.runs.record import read_record
from minigrad.random import generator

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
PNG = re.compile(rb"\x89PNG\r\n\x1a\n.*?IEND....", re.DOTALL)
MOST = 6_000  # pictures of a set; the font has fewer
FACE, EMOJI = 64, 32  # pixels of a side
FINE = 4  # faces are drawn so many times larger


def colour(hue: float, saturation: float, value: float) -> tuple[int, ...]:
    return tuple(int(255 * x) for x in colorsys.hsv_to_rgb(hue % 1, saturation, value))


def face(rng: np.random.Generator) -> Image.Image:
    """A face from the front: shirt, hair, skin, eyes, brows, nose, mouth, and of some a beard or glasses."""
    S = FACE * FINE
    image = Image.new("RGB", (S, S), colour(rng.random(), rng.uniform(0.15, 0.5), rng.uniform(0.7, 0.95)))
    draw = ImageDraw.Draw(image)
    u = rng.uniform

    def oval(x: float, y: float, a: float, b: float, fill: Any = None, **options: Any) -> None:
        draw.ellipse(((x - a) * S, (y - b) * S, (x + a) * S, (y + b) * S), fill, **options)

    x, y, width, height = 0.5 + u(-0.03, 0.03), 0.5 + u(-0.03, 0.03), u(0.2, 0.26), u(0.25, 0.31)
    tone = u(0, 1)
    skin, shade = (colour(0.07 - 0.02 * tone, 0.28 + 0.35 * tone, v * (0.98 - 0.5 * tone)) for v in (1, 0.86))
    dark = u(0.1, 0.9)
    hair = colour(u(0.04, 0.12), u(0.2, 0.75), dark)
    style = rng.integers(5)  # bald, short, round, long, fringe
    if style == 3:
        draw.rounded_rectangle(
            ((x - 1.25 * width) * S, (y - 0.6 * height) * S, (x + 1.25 * width) * S, (y + 1.35 * height) * S),
            0.1 * S, hair,
        )  # fmt: skip
    if style == 2:
        oval(x, y - 0.25 * height, 1.5 * width, 1.15 * height, hair)
    oval(x, 1.08, 0.4, 0.22, colour(u(0, 1), u(0.3, 0.9), u(0.3, 0.95)))  # shirt
    draw.rectangle(((x - 0.08) * S, (y + 0.5 * height) * S, (x + 0.08) * S, 0.9 * S), shade)  # neck
    if style:
        oval(x, y - 0.18 * height, 1.1 * width, 0.98 * height, hair)
    for side in (-1, 1):
        oval(x + side * width, y + 0.05 * height, 0.04, 0.05, shade)
    oval(x, y, width, height, skin)
    if rng.random() < 0.25 and style != 3:  # beard
        box = ((x - width) * S, (y - height) * S, (x + width) * S, (y + height) * S)
        draw.chord(box, 18, 162, hair)
    if style:
        depth = u(0.45, 0.8) if style == 4 else u(0.2, 0.5)
        box = ((x - 1.04 * width) * S, (y - 1.1 * height) * S, (x + 1.04 * width) * S, (y + 0.9 * height) * S)
        angle = 20 + 50 * (1 - depth)
        draw.chord(box, 180 + angle / 2, 360 - angle / 2, hair)
    iris, open_ = colour(rng.choice([0.08, 0.33, 0.58]), u(0.4, 0.8), u(0.2, 0.7)), u(0.6, 1)
    look, brow = u(-0.012, 0.012), u(-0.02, 0.02)
    for side in (-1, 1):
        ex, ey = x + side * 0.42 * width, y - 0.08 * height
        oval(ex, ey, 0.045, 0.034 * open_, (250, 250, 250))
        oval(ex + look, ey, 0.024, 0.028 * open_, iris)
        oval(ex + look, ey, 0.011, 0.013 * open_, (15, 15, 20))
        line = [(ex - 0.05) * S, (ey - 0.065 + side * brow) * S, (ex + 0.05) * S, (ey - 0.065 - side * brow) * S]
        draw.line(line, hair if style else (60, 45, 40), int(0.018 * S))
    draw.line([x * S, (y + 0.02) * S, (x - 0.02) * S, (y + 0.3 * height) * S, (x + 0.02) * S, (y + 0.3 * height) * S],
              shade, int(0.014 * S))  # fmt: skip
    smile, mouth, wide = u(-0.03, 0.06), y + 0.58 * height, u(0.3, 0.5) * width
    lips = colour(0.98, u(0.4, 0.7), 0.75 - 0.25 * tone)
    if smile > 0.035:
        box = ((x - wide) * S, (mouth - smile) * S, (x + wide) * S, (mouth + smile) * S)
        draw.chord(box, 0, 180, (250, 245, 240), lips, 4)
    else:
        points = [((x + t * wide) * S, (mouth + smile * (1 - t * t)) * S) for t in np.linspace(-1, 1, 9)]
        draw.line(points, lips, int(0.022 * S), joint="curve")
    if rng.random() < 0.3:
        frame = colour(u(0, 1), u(0, 0.8), u(0.05, 0.4))
        for side in (-1, 1):
            oval(x + side * 0.42 * width, y - 0.06 * height, 0.075, 0.065, outline=frame, width=int(0.014 * S))
        draw.line([(x - 0.03) * S, (y - 0.06 * height) * S, (x + 0.03) * S, (y - 0.06 * height) * S], frame, 4)
    return image.resize((FACE, FACE), Image.Resampling.BOX)


def faces(count: int) -> Iterator[Image.Image]:
    for i in range(count):
        yield face(generator(0, "face", i))


def emoji(count: int, font: Path) -> Iterator[Image.Image]:
    """The pictures in the font, which it holds as PNG files one after the other; each once, in their order."""
    if not font.exists():
        raise BenchmarkError(f"{font}: not found; apt install fonts-noto-color-emoji, or use --font FILE")
    for found in list(dict.fromkeys(PNG.findall(font.read_bytes())))[:count]:
        picture = Image.open(io.BytesIO(found)).convert("RGBA")
        side = max(picture.size)
        square = Image.new("RGBA", (side, side), "white")
        square.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        yield square.convert("RGB").resize((EMOJI, EMOJI), Image.Resampling.BOX)


RECIPES = {"faces": "colour64", "emoji": "colour32"}  # of each set


def make(name: str, folder: Path, count: int, font: Path) -> None:
    """Write the pictures of a set as PNG files, unless they are there."""
    if folder.exists():
        return
    folder.mkdir(parents=True)
    for i, picture in enumerate(faces(count) if name == "faces" else emoji(count, font)):
        picture.save(folder / f"{i:05d}.png")


def measured(name: str, data: Path, folder: Path, device: str, quick: bool) -> dict[str, Any]:
    """Train the set's recipe if there is no such run yet; what the run recorded of the model on its test images."""
    recipe = RECIPES[name]
    if read_record(folder).get("status") != "finished":
        place = ["--dataset", str(data), "--device", device, "--out", str(folder), "--overwrite"]
        run(TRAIN, "--config", recipe, *place, *(["--smoke"] if quick else []))
    record, model = read_record(folder), load(folder)
    assert isinstance(model, VAE)
    train_images, test_images = map(len, split_order(len(list(data.glob("*.png")))))
    return {
        "set": name,
        "recipe": recipe,
        "training_command": f"python scripts/{TRAIN} --config {recipe} --dataset {name}",
        "images": train_images,
        "test_images": test_images,
        "model": record["model"],
        "pixel_std": math.exp(float(model.pixel_log_variance.item()) / 2),
        "options": record["options"],
        "seconds": record["training_seconds"],
        "environment": record["environment"],
        "versions": driver.versions_of([record["environment"]["kernels"]]),
        "test": record["test"],
    }


def main(argv: list[str] | None = None) -> int:
    """Make, train and measure all sets that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", metavar="A,B", type=driver.list_of(str), default=list(RECIPES), help="(default: all)")
    parser.add_argument("--font", metavar="FILE", type=Path, default=FONT, help="(default: %(default)s)")
    parser.add_argument("--data", metavar="DIR", type=Path, default=Path("data"), help="(default: %(default)s)")
    parser.add_argument("--runs", metavar="DIR", type=Path, default=Path("runs"), help="(default: %(default)s)")
    parser.add_argument("--device", metavar="DEVICE", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a few pictures and two batches, to see that all works")
    parser.add_argument("--out", metavar="FILE", type=Path, help="(default: benchmarks/results/colour.json)")
    args = driver.chosen(parser, argv, "sets", RECIPES)

    def body() -> int:
        for name in args.sets:
            make(name, args.data / name, 60 if args.quick else MOST, args.font)
            found = measured(name, args.data / name, args.runs / name, args.device, args.quick)
            row = driver.record_of("colour.py", ["--sets", name, "--device", args.device], **found)
            out = args.out or driver.RESULTS / "colour.json"
            driver.add_row(out, row, "set")
            for picture in ("reconstructions", "samples"):
                drawn = Image.open(args.runs / name / f"figures/{picture}.png").convert("RGB")
                drawn.reduce(2).save(out.with_name(f"colour_{name}_{picture}.png"), optimize=True)
        return 0

    return driver.run_main(body)


if __name__ == "__main__":
    sys.exit(main())
