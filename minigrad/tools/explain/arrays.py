"""The arrays of a capture: their numbers at a glance, a sample to draw, and pictures of it.

A picture is a sheet of tiles, one for each channel of each image, for each filter, or for each row of a matrix. White
is 0, orange is positive, blue is negative; the colour grows with the square root of the number. Images are grey.
"""

from __future__ import annotations

import base64
import hashlib
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ...backend import Array, backend_of

KEPT = 1 << 22  # numbers; of a larger array only the first images are kept
CELLS, CELL_COLUMNS, BARS = 32, 6, 512  # numbers that are shown as a table, its columns; numbers shown as bars
ORANGE, BLUE = (213, 94, 0), (0, 114, 178)
GAP = 0  # the colour between tiles, transparent


class Limits(NamedTuple):
    """The most of an array that is drawn; pixels: of one tile, in each direction."""

    images: int = 4
    channels: int = 64
    pixels: int = 64


# from good to small: `page.py` takes the first that gives a page below its limit
LIMITS = Limits(), Limits(4, 32), Limits(4, 16, 32), Limits(2, 16, 32), Limits(2, 8, 32), Limits(1, 4, 16)


@dataclass
class Shot:
    """An array as it was.

    Attributes:
        kind: "weight" for filters (KH, KW, C, F), "" for others. sample: the array, or its first images.
        least, mean, most, norm: of all its finite numbers. bad: how many are not finite.
    """

    number: int
    shape: tuple[int, ...]
    kind: str
    nbytes: int
    sample: np.ndarray = field(repr=False)
    least: float
    mean: float
    most: float
    norm: float
    bad: int


class Album:
    """Takes shots. Arrays with the same numbers share one."""

    def __init__(self) -> None:
        self.shots: list[Shot] = []
        self._known: dict[Any, Shot] = {}

    def take(self, x: Array, kind: str = "") -> Shot:
        """The shot of an array of any device."""
        values = np.ascontiguousarray(backend_of(x).to_host(x))
        kind = kind if values.ndim == 4 else ""
        key = hashlib.blake2b(values.tobytes(), digest_size=16).digest(), x.shape, kind
        if key not in self._known:
            self._known[key] = shot_of(values.reshape(x.shape), kind, len(self.shots))
            self.shots.append(self._known[key])
        return self._known[key]


def shot_of(values: np.ndarray, kind: str = "", number: int = 0) -> Shot:
    """The shot of an array on the host."""
    sample = values if values.size <= KEPT or not values.ndim else values[: LIMITS[0].images]
    good = values[np.isfinite(values)].astype("float64")
    found = (good.min(), good.mean(), good.max(), np.linalg.norm(good)) if good.size else (np.nan,) * 4
    least, mean, most, norm = map(float, found)
    bad = values.size - good.size
    return Shot(number, values.shape, kind, values.nbytes, sample.copy(), least, mean, most, norm, bad)


class Sheet(NamedTuple):
    """Tiles beside each other.

    Attributes:
        codes: (height, width) of numbers 1 to 255 for the values, GAP between tiles.
        tile: (height, width) of a tile. columns: tiles in a row. per_group: tiles of one image, padding included.
        order: the letters of an index, for page.js: group g, tile t, row y and column x in it, or the place p.
        top: the number that the strongest colour stands for. grey: whether it is an image.
        note: what was left out, or "".
    """

    codes: np.ndarray
    tile: tuple[int, int]
    columns: int
    per_group: int
    order: str
    top: float
    grey: bool
    step: int
    note: str

    @property
    def tiles(self) -> str:
        """What a tile is, in words."""
        if self.order == "gyxt" and self.per_group > 1:
            return "one tile per channel, one band per image"
        return "one row per channel, one tile per filter" if self.order == "yxgt" else ""

    @property
    def png(self) -> bytes:
        """As a picture of 256 colours, whose rows are not filtered, so that page.js can read the numbers."""
        return png(self.codes, GREY if self.grey else SIGNED)


def sheet(shot: Shot, limits: Limits, top: float = 0.0) -> Sheet:
    """The picture of an array with two or more axes, or of a long vector. top: as in a Sheet; 0: the array's own."""
    x, note, step = shot.sample, [], 1
    if shot.kind == "weight":  # (KH, KW, C, F): a row of tiles for each channel
        C, F = x.shape[2:]
        x = x[:, :, : limits.channels, : limits.channels]
        tiles, columns, per_group, order = x.transpose(2, 3, 0, 1), x.shape[3], x.shape[3], "yxgt"
        note = _left_out("channels", C, x.shape[2]) + _left_out("filters", F, x.shape[3])
    elif x.ndim == 4:  # (N, H, W, C): a block of tiles for each image
        N, H, W, C = shot.shape
        step = -(-max(H, W) // limits.pixels)
        x = x[: limits.images, ::step, ::step, : limits.channels]
        tiles, order = x.transpose(0, 3, 1, 2), "gyxt"
        fitting = (480 if x.shape[2] >= 16 else 280) // (x.shape[2] + 1)  # small ones are enlarged
        columns = min(x.shape[3], max(4, 1 << max(0, fitting.bit_length() - 1)))
        per_group = -(-x.shape[3] // columns) * columns
        if x.shape[3] == 1:
            tiles, columns, per_group, order = x.transpose(3, 0, 1, 2), len(x), len(x), "tyxg"
        note = _left_out("images", N, len(x)) + _left_out("channels", C, x.shape[3])
        note += [f"every {step}th pixel"] * (step > 1)
    else:  # rows; a long one is folded
        rows = x.reshape(-1, x.shape[-1]) if x.ndim > 1 else x.reshape(1, -1)
        order = "tp"
        if len(rows) > rows.shape[1]:
            rows, order = rows.T, "pt"
        total = max(shot.shape[-1], int(np.prod(shot.shape[:-1]))), len(rows)
        rows = rows[: limits.channels, : 64 * limits.channels]
        side = rows.shape[1] if rows.shape[1] <= 128 else int(np.ceil(np.sqrt(rows.shape[1])))
        high = -(-rows.shape[1] // side)
        padded = np.full((len(rows), high * side), np.nan, "float64")
        padded[:, : rows.shape[1]] = rows
        tiles = padded.reshape(1, len(rows), high, side)
        columns = per_group = 1 if high == 1 else min(len(rows), max(1, 448 // side))
        per_group = -(-len(rows) // columns) * columns
        note = _left_out("numbers of a row", total[0], rows.shape[1]) + _left_out("rows", total[1], len(rows))
    image = order in ("gyxt", "tyxg") and shot.shape[-1] in (1, 3)
    grey = image and shot.least >= 0 and shot.most <= 1 and not top
    top = 1.0 if grey else top or max(abs(shot.least), abs(shot.most)) if shot.least == shot.least else 0.0
    codes = _laid_out(_coded(tiles, top, grey), columns, per_group, gap=tiles.shape[2] > 1)
    return Sheet(codes, tiles.shape[2:], columns, per_group, order, top, grey, step, ", ".join(note))


def _left_out(what: str, all_of_them: int, shown: int) -> list[str]:
    return [f"{shown:,} of {all_of_them:,} {what}"] if shown < all_of_them else []


def _coded(x: np.ndarray, top: float, grey: bool) -> np.ndarray:
    """Numbers as 1 to 255; what is not finite as GAP. Numbers with a sign have every second code, which makes the
    pictures of noise a tenth smaller."""
    with np.errstate(all="ignore"):
        share = x.astype("float64") / (top or 1.0)
        codes = 1 + np.rint(254 * share) if grey else 128 + 2 * np.rint(63 * np.sign(share) * np.sqrt(np.abs(share)))
    return np.where(np.isfinite(x), np.clip(codes, 1, 255), GAP).astype("uint8")


def _laid_out(tiles: np.ndarray, columns: int, per_group: int, gap: bool) -> np.ndarray:
    """(groups, tiles, height, width) as one picture, a line between tiles and three between groups."""
    G, T, H, W = tiles.shape
    padded = np.full((G, per_group, H + gap, W + gap), GAP, "uint8")
    padded[:, :T, :H, :W] = tiles
    rows = per_group // columns
    sheet = padded.reshape(G, rows, columns, H + gap, W + gap).transpose(0, 1, 3, 2, 4)
    return sheet.reshape(G * rows * (H + gap), columns * (W + gap))


def png(codes: np.ndarray, palette: bytes) -> bytes:
    """A PNG of 256 colours, of which the first is transparent."""
    height, width = codes.shape
    rows = np.concatenate([np.zeros((height, 1), "uint8"), codes], axis=1).tobytes()

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">2I5B", width, height, 8, 3, 0, 0, 0)
    parts = (b"IHDR", head), (b"PLTE", palette), (b"tRNS", b"\0"), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def _palette(signed: bool) -> bytes:
    share = np.linspace(-1, 1, 255)[:, None]
    if not signed:
        colours = np.repeat(255 * (share + 1) / 2, 3, axis=1)
    else:
        end = np.where(share > 0, ORANGE, BLUE)
        colours = 255 + (end - 255.0) * np.abs(share)
    return bytes(3) + np.rint(colours).astype("uint8").tobytes()


SIGNED, GREY = _palette(True), _palette(False)


def data_url(content: bytes) -> str:
    """A PNG as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(content).decode()


def bars(values: np.ndarray, top: float = 0.0) -> str:
    """One path of an SVG, 100 high with 0 in the middle: a bar for each number. top: of the longest bar."""
    top = top or float(np.abs(values[np.isfinite(values)]).max(initial=0.0)) or 1.0
    heights = np.nan_to_num(50 - 48 * values.ravel().astype("float64") / top, nan=50.0, posinf=2, neginf=98)
    return "".join(f"M{i}.1,50V{height:.0f}h.8V50z" for i, height in enumerate(heights))
