"""How a model learns: after each epoch of a run a picture of reconstructions and new images, and a small frame for the
film of reconstructions and latent space, which `gif` draws.

Read next: images.py and gallery.py.
"""

from __future__ import annotations

import math
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from minigrad.random import generator
from minigrad.serialize import DataError, load_state, numbered, save_state, write_atomically

from ..evaluation.bounds import to_unit_range
from ..training import Callback, Trainer
from . import canvas, charts

FRAMES = "film/epoch-*.safetensors"
PROGRESS_FILE = "figures/progress.png"
SHOWN, SCATTERED = 10, 1000  # training images whose reconstructions and whose latents are kept
NEW = 20  # images that are drawn from the same latents after each epoch
MOST_FRAMES = 60  # of a GIF
SECONDS, LAST_SECONDS = 0.4, 3.0  # a frame is shown


class Film(Callback):
    """Keeps a frame in the run's folder before the first epoch and after each one, and draws PROGRESS_FILE anew.

    Args:
        shown, scattered: (images, their labels or None): SHOWN or fewer to reconstruct, SCATTERED or fewer to encode.
    """

    def __init__(
        self, shown: tuple[np.ndarray, np.ndarray | None], scattered: tuple[np.ndarray, np.ndarray | None]
    ) -> None:
        self.shown, self.scattered = shown, scattered

    def on_fit_begin(self, trainer: Trainer) -> None:
        if trainer.progress.step == 0:
            self._keep(trainer, 0)

    def on_epoch_end(self, trainer: Trainer) -> None:
        self._keep(trainer, trainer.progress.epoch)

    def _keep(self, trainer: Trainer, epoch: int) -> None:
        if trainer.folder is None:
            return
        (shown, shown_labels), (scattered, labels) = self.shown, self.scattered
        codes = trainer.model.encode(shown, labels=shown_labels)
        latents = trainer.model.encode(scattered, labels=labels)
        if not (np.isfinite(codes).all() and np.isfinite(latents).all()):
            return  # the training diverged, and is about to say so
        reconstructed = trainer.model.decode(codes, labels=shown_labels)
        arrays: dict[str, np.ndarray] = {
            "reconstructed": np.round(255 * reconstructed).astype(np.uint8),
            "latents": latents.astype(np.float32),
        }
        save_state(trainer.folder / FRAMES.replace("*", f"{epoch:05d}"), arrays, {"kind": "frame", "epoch": epoch})
        when = f"after epoch {epoch} of {trainer.options.epochs}" if epoch else "before training"
        bands = {"training images": to_unit_range(shown), f"their reconstructions {when}": reconstructed}
        if trainer.model.noise_dim:
            z = generator(0, "progress").standard_normal((NEW, trainer.model.noise_dim))
            classes = np.arange(NEW) % trainer.model.classes if trainer.model.classes else None
            bands["new images, each from the same latents after every epoch"] = trainer.model.decode(z, labels=classes)
        write_atomically(trainer.folder / PROGRESS_FILE, progress_sheet(bands))


def progress_sheet(bands: dict[str, np.ndarray]) -> bytes:
    """A PNG file of images (N, H, W, C) in [0, 1] in rows of SHOWN, each band of them below its title. It is made
    without matplotlib, which would take longer than a short epoch."""
    H, W, C = next(iter(bands.values())).shape[1:]
    zoom = 84 // max(H, W) or 1 / -(-max(H, W) // 128)  # large images are made smaller
    height, width = math.ceil(zoom * H), math.ceil(zoom * W)
    rows = {title: -(-len(images) // SHOWN) for title, images in bands.items()}
    size = max(560, SHOWN * (width + 4) + 40), sum(rows.values()) * (height + 4) + 40 * len(rows) + 20
    sheet = Image.new("L" if C != 3 else "RGB", size, "white")
    draw, font, y = ImageDraw.Draw(sheet), ImageFont.load_default(16), 10
    for title, images in bands.items():
        draw.text((20, y + 8), title, fill="black", font=font)
        for i, image in enumerate(np.round(255 * images).astype(np.uint8)):
            tile = Image.fromarray(image if C == 3 else image[..., 0]).resize((width, height), Image.Resampling.BOX)
            sheet.paste(tile, (20 + i % SHOWN * (width + 4), y + 36 + i // SHOWN * (height + 4)))
        y += rows[title] * (height + 4) + 40
    buffer = BytesIO()
    sheet.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def gif(
    folder: str | Path, originals: np.ndarray, labels: np.ndarray | None = None, class_names: tuple[str, ...] = ()
) -> bytes:
    """The frames of a run drawn as a GIF; no bytes where it kept none.

    Shapes: originals, the images that were reconstructed, (N, H, W, C); labels of the encoded ones (M,)

    Raises:
        DataError: a frame cannot be read or does not fit.
    """
    frames = read_frames(Path(folder), originals, labels)
    if not frames:
        return b""
    axes, limits = plane_of_film([arrays["latents"] for arrays, _ in frames])
    pictures = []
    for arrays, record in frames:
        plane = arrays["latents"] @ axes
        when = f"after epoch {record['epoch']}" if record["epoch"] else "before training"
        figure = charts.film_frame(originals, arrays["reconstructed"], plane, labels, class_names, limits, when)
        pictures.append(Image.fromarray(canvas.pixels(figure)))
    palette = _palette(pictures[-1])
    dither = Image.Dither.FLOYDSTEINBERG if originals.shape[3] == 3 else Image.Dither.NONE
    drawn = [picture.quantize(palette=palette, dither=dither) for picture in pictures]
    times = [int(1000 * SECONDS)] * (len(drawn) - 1) + [int(1000 * LAST_SECONDS)]
    buffer = BytesIO()
    drawn[0].save(buffer, "GIF", save_all=True, append_images=drawn[1:], duration=times, loop=0, optimize=True)
    return buffer.getvalue()


def read_frames(
    folder: Path, originals: np.ndarray, labels: np.ndarray | None, most: int = MOST_FRAMES
) -> list[tuple[dict[str, np.ndarray], dict[str, Any]]]:
    """(arrays, record) of at most so many frames of a run, from the first to the last.

    Raises:
        DataError: a frame cannot be read or does not fit.
    """
    paths = numbered(folder, FRAMES)
    kept = np.linspace(0, len(paths) - 1, min(len(paths), most)).round().astype(int)
    paths = [paths[i] for i in kept]
    frames = [load_state(frame, folder)[:2] for frame in paths]
    Z = (*frames[-1][0].get("latents", np.zeros(0)).shape, 0, 0)[1] if frames else 0  # of the newest latents; 0: none
    for frame, (arrays, record) in zip(paths, frames, strict=True):
        found = {name: x.shape for name, x in arrays.items()}
        points = (*found.get("latents", ()), 0)[0] if labels is None else len(labels)
        if found.get("reconstructed") != originals.shape or found.get("latents") != (points, Z) or not points * Z:
            raise DataError(f"{frame}: expected reconstructed {originals.shape} and {points} latents, found {found}")
        types = arrays["reconstructed"].dtype, arrays["latents"].dtype, type(record.get("epoch"))
        if types != (np.uint8, np.float32, int) or not np.isfinite(arrays["latents"]).all():
            raise DataError(f"{frame}: expected pixels as uint8, finite float32 latents and the number of an epoch")
    return frames


def _palette(picture: Image.Image) -> Image.Image:
    """256 colours for all frames: greys, white, the colours of the classes, and colours that are frequent in a picture.
    The dots of a class cover few pixels, so without an entry of their own they would get another class's colour."""
    # Pillow compares only six bits per channel, so no other colour may be close to white
    greys = [(grey, grey, grey) for grey in (*range(0, 248, 4), 255)]
    classes = [ImageColor.getrgb(colour) for colour in charts.CLASS_COLOURS]
    found = picture.quantize(256 - len(greys + classes), method=Image.Quantize.MAXCOVERAGE).getpalette()
    frequent = np.array(found).reshape(-1, 3)
    frequent[(frequent >= 248).all(axis=1)] = 255
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate([greys, classes, frequent]).ravel().tolist())
    return palette


def plane_of_film(latents: list[np.ndarray]) -> tuple[np.ndarray, Any]:
    """(matrix (Z, 2) onto the plane that is drawn, its limits ((low, high), (low, high))): the latents themselves, or
    the principal directions at the end, the same for all frames; without the 1 % that lie farthest out."""
    axes, _ = charts.plane_of(latents[-1].astype(np.float64))
    points = np.concatenate([z @ axes for z in latents[1:] or latents])
    low, high = np.quantile(points, 0.005, axis=0), np.quantile(points, 0.995, axis=0)
    room = np.maximum(0.08 * (high - low), 0.05)  # of latents that are all alike, numbers short enough to stand apart
    return axes, tuple(zip((low - room).tolist(), (high + room).tolist(), strict=True))
