"""The loops that Numba compiles for the `numba` kernels, in plain Python.

They run on the thread that calls them, without the interpreter lock: im2col, the sums of winograd.py, what follows a
product, and sums on one block of images; `conv_layer`, `conv_layer_grad` and `chain` take a thread's images through
them block by block and call BLAS in between. Sums over rows of channels are taken in the arrays' own precision over 512
rows at a time and go on in float64.

`contract` lets a product and a sum become one rounding (a fused multiply-add), `reassoc` takes a sum in any order; NaN
and infinity keep their meaning. An index that is the sum of two is unsigned (`np.uint64`): a signed one might be
negative and mean the array's end, and a loop that has to ask is not vectorised.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba.core.caching import NullCache
from numba.core.dispatcher import Dispatcher
from numba.misc.appdirs import AppDirs

from . import plan, winograd
from .plan import THIN
from .winograd import AXIS

Array = Any
LOG = logging.getLogger("minigrad")  # whose warnings Python prints on stderr, if nobody says otherwise
CHUNK_ROWS = 512
COLUMNS, PRODUCT, GRADIENT = 0, 1, 2  # the arrays of scratch
ROW_MAJOR, NO_TRANSPOSE, TRANSPOSE = 101, 111, 112  # of the C interface of BLAS
SIZES = ("output_size", "kernel_size", "stride", "start", "taps", "first", "every", "matrix")
STEP = np.dtype([("window", "i8"), *((name, "i8", 2) for name in SIZES)])
"""One product of a plan (see plan.py): matrices[matrix[0]:matrix[1]] is its matrix (transposed where the result has
few channels) and window the number of its window; it gives the pixels from `first` on, one in `every`."""

LAYER = np.dtype(
    [("channels", "i8"), ("active", "i8"), ("images", "i8")]
    + [(name, "i8", 2) for name in ("output_size", "steps", "axes", "matrices", "bias")]
)
"""One layer of a chain: its size, how many images it takes at a time, and from where to where its parts are."""


STAMP = hashlib.sha256(
    b"".join(Path(str(file)).read_bytes() for file in (__file__, plan.__file__, winograd.__file__))
    + f"{version('llvmlite')} {np.__version__}".encode()
).hexdigest()
"""Of all that is compiled in. Numba looks at the file of a function only, but freezes constants of others, too."""


def compiled(loop: Callable[..., Any], fastmath: Any = frozenset({"contract"})) -> Any:
    """The loop compiled for the arrays of its first call, without the interpreter lock and kept on disk.

    Numba's cache is a pickle, which can run code. So it is kept where nobody else can write: in NUMBA_CACHE_DIR, or
    else beside the source or in the user's cache; or not at all.
    """
    options: Any = {"nogil": True, "error_model": "numpy", "fastmath": set(fastmath)}
    config: Any = numba.config
    asked = config.CACHE_DIR
    for folder in (asked,) if asked else ("", AppDirs("minigrad", False).user_cache_dir):
        try:
            if folder:
                os.makedirs(folder, 0o700, exist_ok=True)
            config.CACHE_DIR = folder
            kept: Any = numba.njit(loop, cache=True, **options)
            kept._cache._cache_file._source_stamp = kept._cache._cache_file._source_stamp, STAMP
            if _private(Path(kept.stats.cache_path)):
                return kept
        except (RuntimeError, OSError, AttributeError):  # it cannot be written, or is that of an unknown version
            continue
        finally:
            config.CACHE_DIR = asked
    return numba.njit(loop, **options)


def _private(folder: Path) -> bool:
    """Whether only this user, or the system's, can have put files there."""
    for place in (folder.parent, folder) if hasattr(os, "getuid") else ():
        found = place.stat()
        if found.st_uid not in (0, os.getuid()):
            return False
        if not found.st_mode & 0o077:
            return True  # nobody else comes in
        if found.st_mode & 0o022:
            return False
    return True


def prepare(gemm: Any, dtype: Any) -> None:
    """Compile all loops for a dtype, or load them from Numba's cache on disk. Says so if it takes long.

    gemm: its matrix product in BLAS."""
    told = False
    for loop, arguments in _examples(gemm, partial(np.ones, dtype=dtype)):
        try:
            loop(*arguments)
        except Exception as error:  # the loops are checked; so it is the cache
            place = loop.stats.cache_path
            LOG.warning("minigrad: compiling without Numba's cache, which fails (%s); delete %s", error, place)
            cached: list[Any] = [each for each in globals().values() if isinstance(each, Dispatcher)]
            for each in cached:
                each._cache = NullCache()
            loop(*arguments)
            told = True
        if loop.stats.cache_misses and not told:
            often = "once on this machine"
            if isinstance(loop._cache, NullCache):
                often = "every time, because Numba has no folder to keep them; set NUMBA_CACHE_DIR to a private one"
            LOG.warning("minigrad: compiling the numba kernels for %s (15 s), %s", dtype, often)
            told = True


def _examples(gemm: Any, ones: Callable[..., Array]) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Each loop that is called from outside, with arguments of the types that it is called with: a layer with one image
    of one pixel with two channels, and one tap."""
    vector, rows, image, sums = ones(2), ones((2, 2)), ones((1, 1, 1, 2)), np.ones((2, 2))
    norm, through, matrices, weights = ones((3, 2)), ones((4, 2)), ones(4), ones((1, 1, 1, 2, 2))
    steps = np.zeros(1, STEP)
    for name in ("output_size", "kernel_size", "stride", "every"):
        steps[name] = 1
    steps["taps"], steps["matrix"] = (0, 2), (0, 4)
    block, scratch = 1, 3 * (ones(8),)
    yield normalise, (rows, norm, rows)
    yield norm_gradient, (rows, rows, through, rows)
    yield add_moments, (rows, vector, sums)
    yield gradient_sums, (rows, rows, vector, sums)
    yield fold, (gemm, norm, weights[0], vector, ones((1, 2)), False, ones((1, 1, 2, 2)), ones((1, 2)))
    gradients = sums, ones((1, 1, 2, 2)), ones(2)
    yield unfold, (gemm, norm, weights[0], weights, image[0], ones((1, 2)), False, *gradients)
    layers = np.ones(1, LAYER)
    layers["channels"], layers["steps"], layers["axes"] = 2, (0, 1), (0, 0)
    layers["matrices"], layers["bias"] = (0, 4), (0, 2)
    axes = np.zeros(0, AXIS)
    yield chain, (gemm, image, layers, steps, axes, matrices, vector, image, scratch[:2], scratch)
    yield conv_layer, (gemm, image, steps, axes, matrices, image[0], True, image, sums[0], sums, block, scratch)
    arrays = gemm, image, through, image, image, steps, axes, rows[:0], rows, False, steps, matrices
    yield conv_layer_grad, (*arrays, image, rows, vector, block, scratch)
    yield adam, (vector, vector, vector, vector, vector, *ones(4))


@compiled
def pair(numbers: Array) -> tuple[int, int]:
    """The two numbers of an array."""
    return numbers[0], numbers[1]


@compiled
def im2col(x: Array, start: tuple[int, int], stride: tuple[int, int], columns: Array) -> None:
    """columns (n, PH, PW, KH, KW, C): the patches of x (n, H, W, C); zero outside of it."""
    n, H, W, C = x.shape
    _, PH, PW, KH, KW, _ = columns.shape
    pixels, target, zero = x.reshape(-1), columns.reshape(-1), x.dtype.type(0)
    for i in range(n):
        for p in range(PH):
            for q in range(PW):
                left = q * stride[1] + start[1]
                for a in range(KH):
                    h = p * stride[0] + a + start[0]
                    first = min(max(0, -left), KW) if 0 <= h < H else KW  # the taps that meet pixels of the row
                    last = max(first, min(KW, W - left))
                    to = np.uint64((((i * PH + p) * PW + q) * KH + a) * KW * C)
                    for k in range(np.uint64(first * C)):
                        target[to + k] = zero
                    source, to = np.uint64(((i * H + h) * W + left + first) * C), to + np.uint64(first * C)
                    for k in range(np.uint64((last - first) * C)):
                        target[to + k] = pixels[source + k]
                    to += np.uint64((last - first) * C)
                    for k in range(np.uint64((KW - last) * C)):
                        target[to + k] = zero


@compiled
def im2col_thin(x: Array, start: tuple[int, int], stride: tuple[int, int], columns: Array) -> None:
    """columns (KH, KW, C, n, PH, PW): im2col transposed, which is written in longer runs where C is small."""
    n, H, W, C = x.shape
    KH, KW, _, _, PH, PW = columns.shape
    pixels, target, zero = x.reshape(-1), columns.reshape(-1), x.dtype.type(0)
    step = np.uint64(stride[1] * C)
    for a in range(KH):
        for b in range(KW):
            left = b + start[1]
            first = min(max(0, (stride[1] - 1 - left) // stride[1]), PW)  # the first patch whose pixel is inside
            last = max(min(PW, (W - 1 - left) // stride[1] + 1), first)
            for c in range(C):
                for i in range(n):
                    for p in range(PH):
                        h = p * stride[0] + a + start[0]
                        inside = last - first if 0 <= h < H else 0
                        to = np.uint64(((((a * KW + b) * C + c) * n + i) * PH + p) * PW)
                        if inside < PW:
                            for q in range(np.uint64(PW)):
                                target[to + q] = zero
                        to += np.uint64(first)
                        source = np.uint64(((i * H + h) * W + first * stride[1] + left) * C + c)
                        for q in range(np.uint64(inside)):
                            target[to + q] = pixels[source + q * step]


@partial(compiled, fastmath={"contract", "reassoc"})
def dots(x: Array, step: Any, taps: Array, out: Array) -> None:
    """The pixels of out (n, H, W, F) that the step gives, where F is small: a scalar product for each; taps: its matrix
    (F, rows of taps, KW * C)."""
    n, H, W, C = x.shape
    _, OH, OW, F = out.shape
    (PH, PW), KW = pair(step.output_size), step.kernel_size[1]
    run, pixels, zero = max(KW * C, 1), x.reshape(-1), x.dtype.type(0)
    above, KH = step.taps[0] // run, (step.taps[1] - step.taps[0]) // run  # rows of the window before them, and theirs
    rows = min(PH, (OH - step.first[0] + step.every[0] - 1) // step.every[0])
    row_length = min(PW, (OW - step.first[1] + step.every[1] - 1) // step.every[1])
    for i in range(n):
        for p in range(rows):
            q = 0
            while q < row_length:
                left = q * step.stride[1] + step.start[1]
                first = min(max(0, -left), KW)
                last = max(first, min(KW, W - left))
                # away from the border four pixels of a row share the taps that are loaded; elsewhere four times one
                inside = left >= 0 and left + 3 * step.stride[1] + KW <= W and q + 4 <= row_length
                ahead = np.uint64(step.stride[1] * C if inside else 0)
                h, w = step.first[0] + p * step.every[0], step.first[1] + q * step.every[1]
                for f in range(F):
                    y0 = y1 = y2 = y3 = zero
                    for a in range(KH):
                        row = p * step.stride[0] + above + a + step.start[0]
                        if 0 <= row < H:
                            x0 = np.uint64(((i * H + row) * W + left + first) * C)
                            x1, x2, x3 = x0 + ahead, x0 + ahead + ahead, x0 + ahead + ahead + ahead
                            tap = np.uint64((f * KH + a) * run + first * C)
                            s0 = s1 = s2 = s3 = zero
                            for k in range(np.uint64((last - first) * C)):
                                s0 += pixels[x0 + k] * taps[tap + k]
                                s1 += pixels[x1 + k] * taps[tap + k]
                                s2 += pixels[x2 + k] * taps[tap + k]
                                s3 += pixels[x3 + k] * taps[tap + k]
                            y0, y1, y2, y3 = y0 + s0, y1 + s1, y2 + s2, y3 + s3
                    out[i, h, w, f] = y0
                    if inside:
                        every = step.every[1]
                        out[i, h, w + every, f], out[i, h, w + 2 * every, f], out[i, h, w + 3 * every, f] = y1, y2, y3
                q += 4 if inside else 1


@compiled
def spread(product: Array, first: tuple[int, int], step: tuple[int, int], out: Array) -> None:
    """out[:, first[0] :: step[0], first[1] :: step[1]] = product, as far as out reaches."""
    n, PH, PW, C = product.shape
    _, H, W, _ = out.shape
    source, target, length = product.reshape(-1), out.reshape(-1), np.uint64(C)
    for i in range(n):
        for p in range(min(PH, (H - first[0] + step[0] - 1) // step[0])):
            for q in range(min(PW, (W - first[1] + step[1] - 1) // step[1])):
                at = np.uint64(((i * PH + p) * PW + q) * C)
                to = np.uint64(((i * H + first[0] + p * step[0]) * W + first[1] + q * step[1]) * C)
                for k in range(length):
                    target[to + k] = source[at + k]


@compiled
def activate(y: Array, bias: Array, active: bool) -> None:
    """y = y + bias, and its ReLU if active; (numbers,) or, for an empty bias, nothing."""
    zero = y.dtype.type(0)
    if not active:
        for k in range(len(bias)):
            y[k] += bias[k]
    else:
        for k in range(len(bias)):
            value = y[k] + bias[k]
            y[k] = zero if value < 0 else value


@compiled
def plane_start(rows: Any, columns: Any, a: int, b: int, tile: int, tiles: int) -> int:
    """Where the pixel of a tile, number `tile` of all, lies in plane (a, b): planes of one group are channels of one
    matrix (tiles, planes * C), and the groups follow each other."""
    before = rows.first[a] * columns.planes + rows.size[a] * columns.first[b]
    group, member = rows.size[a] * columns.size[b], (a - rows.first[a]) * columns.size[b] + b - columns.first[b]
    return before * tiles + tile * group + member


@compiled
def gather(x: Array, rows: Any, columns: Any, planes: Array) -> None:
    """planes: the sums of pixels of x (n, H, W, C), zero outside of it, that the AXIS of rows and of columns take."""
    n, H, W, C = x.shape
    TH, TW = rows.tiles, columns.tiles
    pixels, length, one, zero = x.reshape(-1), np.uint64(C), x.dtype.type(1), x.dtype.type(0)
    for i in range(n):
        for p in range(TH):
            for a in range(rows.planes):
                up, h = one * rows.sign[a, 0], rows.start + p * rows.step + rows.place[a, 0]
                down, lower_h = one * rows.sign[a, 1], rows.start + p * rows.step + rows.place[a, 1]
                has_up, has_down = 0 <= h < H, rows.terms[a] == 2 and 0 <= lower_h < H
                if has_down and not has_up:
                    up, h, has_up, has_down = down, lower_h, True, False
                above, below = (i * H + h) * W, (i * H + lower_h) * W
                for b in range(columns.planes):
                    to = np.uint64(plane_start(rows, columns, a, b, (i * TH + p) * TW, n * TH * TW) * C)
                    every = np.uint64(rows.size[a] * columns.size[b] * C)
                    for q in range(TW):
                        left, w = one * columns.sign[b, 0], columns.start + q * columns.step + columns.place[b, 0]
                        right, right_w = (
                            one * columns.sign[b, 1],
                            columns.start + q * columns.step + columns.place[b, 1],
                        )
                        has_left, has_right = 0 <= w < W, columns.terms[b] == 2 and 0 <= right_w < W
                        if has_right and not has_left:
                            left, w, has_left, has_right = right, right_w, True, False
                        x00, x01 = np.uint64((above + w) * C), np.uint64((above + right_w) * C)
                        x10, x11 = np.uint64((below + w) * C), np.uint64((below + right_w) * C)
                        if not (has_up and has_left):
                            for k in range(length):
                                planes[to + k] = zero
                        elif has_down and has_right:
                            for k in range(length):
                                upper = left * pixels[x00 + k] + right * pixels[x01 + k]
                                lower = left * pixels[x10 + k] + right * pixels[x11 + k]
                                planes[to + k] = up * upper + down * lower
                        elif has_down:
                            for k in range(length):
                                planes[to + k] = left * (up * pixels[x00 + k] + down * pixels[x10 + k])
                        elif has_right:
                            for k in range(length):
                                planes[to + k] = up * (left * pixels[x00 + k] + right * pixels[x01 + k])
                        else:
                            for k in range(length):
                                planes[to + k] = up * left * pixels[x00 + k]
                        to += every


@compiled
def scatter(planes: Array, rows: Any, columns: Any, out: Array) -> None:
    """out (n, H, W, C): the adjoint of gather."""
    n, H, W, C = out.shape
    TH, TW, step = rows.tiles, columns.tiles, columns.step
    target, length = out.reshape(-1), np.uint64(C)
    tiles, starts, every = np.empty(16, np.int64), np.empty(16, np.int64), np.empty(16, np.int64)
    places, factors, signs = np.empty(16, np.uint64), np.empty(16, out.dtype), np.empty(16, out.dtype)
    for i in range(n):
        for h in range(H):
            out[i, h] = 0
            tile_row, r = (h - rows.start) // rows.step, (h - rows.start) % rows.step
            for phase in range(min(step, W)):  # pixels that are `step` apart have the same sources, a tile apart
                tile_column, c = (phase - columns.start) // step, (phase - columns.start) % step
                sources = 0
                for u in range(rows.sources[r]):
                    p, a = tile_row + rows.from_tile[r, u], rows.from_plane[r, u]
                    for v in range(columns.sources[c] if 0 <= p < TH else 0):
                        q, b = tile_column + columns.from_tile[c, v], columns.from_plane[c, v]
                        tiles[sources], every[sources] = q, rows.size[a] * columns.size[b] * C
                        starts[sources] = plane_start(rows, columns, a, b, (i * TH + p) * TW + q, n * TH * TW) * C
                        factors[sources] = rows.from_sign[r, u] * columns.from_sign[c, v]
                        sources += 1
                for t in range((W - phase + step - 1) // step):
                    count = 0
                    for source in range(sources):
                        if 0 <= tiles[source] + t < TW:
                            places[count], signs[count] = starts[source] + t * every[source], factors[source]
                            count += 1
                    to, done = np.uint64(((i * H + h) * W + phase + t * step) * C), 0
                    while done < count:
                        first, sign = places[done], signs[done]
                        second, other = places[min(done + 1, count - 1)], signs[min(done + 1, count - 1)]
                        if count - done == 1:
                            for k in range(length):
                                target[to + k] += sign * planes[first + k]
                            done += 1
                        elif count - done < 4:
                            for k in range(length):
                                target[to + k] += sign * planes[first + k] + other * planes[second + k]
                            done += 2
                        else:
                            third, fourth, more, last = (
                                places[done + 2],
                                places[done + 3],
                                signs[done + 2],
                                signs[done + 3],
                            )
                            for k in range(length):
                                upper = sign * planes[first + k] + other * planes[second + k]
                                target[to + k] += upper + (more * planes[third + k] + last * planes[fourth + k])
                            done += 4


@compiled
def add_moments(x: Array, shift: Array, sums: Array) -> None:
    """sums (2, C) += sum of x - shift, and of its square; x (rows, C)."""
    rows, C = x.shape
    first, second = np.zeros(C, x.dtype), np.zeros(C, x.dtype)
    for start in range(0, rows, CHUNK_ROWS):
        first[:] = 0
        second[:] = 0
        for i in range(start, min(start + CHUNK_ROWS, rows)):
            for k in range(C):
                d = x[i, k] - shift[k]
                first[k] += d
                second[k] += d * d
        for k in range(C):
            sums[0, k] += first[k]
            sums[1, k] += second[k]


@compiled
def gradient_sums(gy: Array, x: Array, mean: Array, sums: Array) -> None:
    """sums (2, C) += sum of gy, and of gy * (x - mean); gy and x (rows, C)."""
    rows, C = x.shape
    first, second = np.zeros(C, x.dtype), np.zeros(C, x.dtype)
    for start in range(0, rows, CHUNK_ROWS):
        first[:] = 0
        second[:] = 0
        for i in range(start, min(start + CHUNK_ROWS, rows)):
            for k in range(C):
                first[k] += gy[i, k]
                second[k] += gy[i, k] * (x[i, k] - mean[k])
        for k in range(C):
            sums[0, k] += first[k]
            sums[1, k] += second[k]


@compiled
def normalise(x: Array, norm: Array, y: Array) -> None:
    """y = (x - mean) * scale + beta; x and y (rows, C)."""
    rows, C = x.shape
    for i in range(rows):
        for k in range(C):
            y[i, k] = (x[i, k] - norm[0, k]) * norm[1, k] + norm[2, k]


@compiled
def norm_gradient(gy: Array, x: Array, through: Array, gx: Array) -> None:
    """gx = scale * (gy - offset - (x - mean) * slope) with the rows of through (4, C); gy, x and gx (rows, C)."""
    rows, C = x.shape
    mean, scale, offset, slope = through[0], through[1], through[2], through[3]
    for i in range(rows):
        for k in range(C):
            gx[i, k] = scale[k] * (gy[i, k] - offset[k] - (x[i, k] - mean[k]) * slope[k])


@compiled
def through_relu(gy: Array, y: Array, through: Array, g: Array) -> None:
    """g = norm_gradient where y > 0, else 0; gy, y and g (rows, C)."""
    rows, C = y.shape
    mean, scale, offset, slope = through[0], through[1], through[2], through[3]
    zero = y.dtype.type(0)
    for i in range(rows):
        for k in range(C):
            r = scale[k] * (gy[i, k] - offset[k] - (y[i, k] - mean[k]) * slope[k])
            g[i, k] = r if y[i, k] > 0 else zero


@compiled
def add_images(x: Array, total: Array) -> None:
    """total (numbers,) += the sum of the rows of x (n, numbers)."""
    for i in range(len(x)):
        for j in range(len(total)):
            total[j] += x[i, j]


@compiled
def row_sums(x: Array, sums: Array) -> None:
    """sums (C,) += the sum of the rows of x (rows, C)."""
    rows, C = x.shape
    total = np.zeros(C, x.dtype)
    for start in range(0, rows, CHUNK_ROWS):
        total[:] = 0
        for i in range(start, min(start + CHUNK_ROWS, rows)):
            for k in range(C):
                total[k] += x[i, k]
        for k in range(C):
            sums[k] += total[k]


@compiled
def matmul(gemm: Any, a: Array, b: Array, keep: float, out: Array) -> None:
    """out = keep * out + a @ b by BLAS; the rows or the columns of a and b, and the rows of out, must be contiguous."""
    (M, K), N, size = a.shape, b.shape[1], a.itemsize
    if min(M, N, K) == 0:
        for i in range(M):
            for j in range(N):
                out[i, j] = keep * out[i, j] if keep else 0
        return
    a_by_rows, b_by_rows = a.strides[1] == size, b.strides[1] == size
    lda = max(a.strides[0] // size, K) if a_by_rows else max(a.strides[1] // size, M)
    ldb = max(b.strides[0] // size, N) if b_by_rows else max(b.strides[1] // size, K)
    gemm(
        ROW_MAJOR,
        NO_TRANSPOSE if a_by_rows else TRANSPOSE,
        NO_TRANSPOSE if b_by_rows else TRANSPOSE,
        M,
        N,
        K,
        1.0,
        a.ctypes,
        lda,
        b.ctypes,
        ldb,
        keep,
        out.ctypes,
        out.strides[0] // size,
    )


@compiled
def fold(
    gemm: Any, norm: Array, weight: Array, bias: Array, coverage: Array, transposed: bool, folded: Array, image: Array
) -> None:
    """folded and image become what `CpuBackend._folded` returns; image (pixels, channels of y)."""
    KH, KW, C, F = weight.shape
    scale, shift = norm[1], norm[2] - norm[0] * norm[1]
    taps = np.zeros((KH * KW + 1, len(bias)), weight.dtype)
    for k in range(len(bias)):
        taps[KH * KW, k] = bias[k]
    if transposed:
        matmul(gemm, weight.reshape(KH * KW * C, F), shift.reshape(F, 1), 0.0, taps[:-1].reshape(KH * KW * C, 1))
    for a in range(KH):
        for b in range(KW):
            for c in range(C):
                for f in range(F):
                    folded[a, b, c, f] = weight[a, b, c, f] * scale[f if transposed else c]
                if not transposed:
                    for f in range(F):
                        taps[a * KW + b, f] += weight[a, b, c, f] * shift[c]
    matmul(gemm, coverage, taps, 0.0, image)


@compiled
def unfold(
    gemm: Any,
    norm: Array,
    weight: Array,
    gweights: Array,
    totals: Array,
    coverage: Array,
    transposed: bool,
    sums: Array,
    gweight: Array,
    gbias: Array,
) -> None:
    """sums (in float64), gweight and gbias become what `CpuBackend._unfolded` returns."""
    threads, KH, KW, C, F = gweights.shape
    taps = np.zeros((KH * KW + 1, totals.shape[2]), gweight.dtype)
    for thread in range(threads):
        matmul(gemm, coverage.T, totals[thread], 1.0, taps)
    for k in range(len(gbias)):
        gbias[k] = taps[KH * KW, k]
    for a in range(KH):
        for b in range(KW):
            for c in range(C):
                for f in range(F):
                    g = gweights[0, a, b, c, f]
                    for thread in range(1, threads):
                        g += gweights[thread, a, b, c, f]
                    if len(norm):
                        x, y = (f, c) if transposed else (c, f)
                        tap, w = taps[a * KW + b, y], weight[a, b, c, f]
                        g -= tap * norm[0, x]
                        sums[0, x] += w * tap
                        sums[1, x] += w * g
                        g = g * norm[1, x] + tap * norm[2, x]
                    gweight[a, b, c, f] = g


@compiled
def patches(x: Array, step: Any, scratch: Array) -> Array:
    """The columns (n * PH * PW, KH * KW * C) of a step, in scratch."""
    n, C = x.shape[0], x.shape[3]
    (PH, PW), (KH, KW) = pair(step.output_size), pair(step.kernel_size)
    rows, K = n * PH * PW, KH * KW * C
    columns = scratch[: rows * K]
    if C < THIN:
        im2col_thin(x, pair(step.start), pair(step.stride), columns.reshape(KH, KW, C, n, PH, PW))
        return columns.reshape(K, rows).T
    im2col(x, pair(step.start), pair(step.stride), columns.reshape(n, PH, PW, KH, KW, C))
    return columns.reshape(rows, K)


@compiled
def products(
    gemm: Any,
    planes: Array,
    axes: Array,
    matrices: Array,
    result_axes: Array,
    tiles: int,
    size: tuple[int, int],
    results: Array,
) -> None:
    """results = planes @ matrices, group by group of the planes; size: channels of the images behind both."""
    a = b = c = 0  # where the group begins
    for g in range(axes[0].groups):
        for h in range(axes[1].groups):
            K, N = group_size(axes, g, h) * size[0], group_size(result_axes, g, h) * size[1]
            matrix, result = matrices[b : b + K * N].reshape(K, N), results[c : c + tiles * N].reshape(tiles, N)
            matmul(gemm, planes[a : a + tiles * K].reshape(tiles, K), matrix, 0.0, result)
            a, b, c = a + tiles * K, b + K * N, c + tiles * N


@compiled
def group_size(axes: Array, g: int, h: int) -> int:
    """Planes of the group g of rows and h of columns."""
    return (axes[0].begin[g + 1] - axes[0].begin[g]) * (axes[1].begin[h + 1] - axes[1].begin[h])


@compiled
def add_weight_gradients(
    gemm: Any, planes: Array, axes: Array, gplanes: Array, tiles: int, size: tuple[int, int], total: Array
) -> None:
    """total (products * C * F,) += planes^T @ gplanes, group by group of the planes; size: (C, F)."""
    a = b = c = 0
    for g in range(axes[0].groups):
        for h in range(axes[1].groups):
            K, F = group_size(axes, g, h) * size[0], size[1]
            columns, rows = planes[a : a + tiles * K].reshape(tiles, K), gplanes[b : b + tiles * F].reshape(tiles, F)
            matmul(gemm, columns.T, rows, 1.0, total[c : c + K * F].reshape(K, F))
            a, b, c = a + tiles * K, b + tiles * F, c + K * F


@compiled
def convolve(
    gemm: Any,
    x: Array,
    steps: Array,
    axes: Array,
    matrices: Array,
    bias: Array,
    active: bool,
    out: Array,
    scratch: tuple[Array, ...],
) -> None:
    """out = what the steps, or else the axes (of the source and the result), compute from the block x; + bias (H, W, F)
    unless that is empty, and its ReLU if active."""
    n, C = x.shape[0], x.shape[3]
    _, H, W, F = out.shape
    if len(axes):
        tiles = n * axes[0].tiles * axes[1].tiles
        gather(x, axes[0], axes[1], scratch[COLUMNS])
        products(gemm, scratch[COLUMNS], axes[:2], matrices, axes[2:], tiles, (C, F), scratch[PRODUCT])
        scatter(scratch[PRODUCT], axes[2], axes[3], out)
    for i in range(len(steps)):  # none where there are axes
        step = steps[i]
        PH, PW = pair(step.output_size)
        rows = n * PH * PW
        matrix = matrices[step.matrix[0] : step.matrix[1]]
        if F < THIN:
            dots(x, step, matrix, out)
            continue
        if i == 0 or step.window != steps[i - 1].window:
            columns = patches(x, step, scratch[COLUMNS])
        whole = PH == H and PW == W
        product = out.reshape(rows, F) if whole else scratch[PRODUCT][: rows * F].reshape(rows, F)
        taps = columns[:, step.taps[0] : step.taps[1]]
        matmul(gemm, taps, matrix.reshape(taps.shape[1], F), 0.0, product)
        if not whole:
            spread(product.reshape(n, PH, PW, F), pair(step.first), pair(step.every), out)
    if len(bias):
        for i in range(n):
            activate(out[i].reshape(-1), bias.reshape(-1), active)


@compiled
def chain(
    gemm: Any,
    x: Array,
    layers: Array,
    steps: Array,
    axes: Array,
    matrices: Array,
    biases: Array,
    y: Array,
    between: tuple[Array, Array],
    scratch: tuple[Array, ...],
) -> None:
    """y = what the layers compute one after another from the block x; their results lie in `between` by turns."""
    n, source = len(x), x
    for i in range(len(layers)):
        layer = layers[i]
        (H, W), F, images = pair(layer.output_size), layer.channels, layer.images
        parts, sums = steps[layer.steps[0] : layer.steps[1]], axes[layer.axes[0] : layer.axes[1]]
        weights = matrices[layer.matrices[0] : layer.matrices[1]]
        bias = biases[layer.bias[0] : layer.bias[1]].reshape(H, W, F)
        out = y if i == len(layers) - 1 else between[i % 2][: n * H * W * F].reshape(n, H, W, F)
        for start in range(0, n, images):
            block, result = source[start : start + images], out[start : start + images]
            convolve(gemm, block, parts, sums, weights, bias, layer.active != 0, result, scratch)
        source = out


@compiled
def conv_layer(
    gemm: Any,
    x: Array,
    steps: Array,
    axes: Array,
    matrices: Array,
    bias: Array,
    active: bool,
    y: Array,
    shift: Array,
    sums: Array,
    block: int,
    scratch: tuple[Array, ...],
) -> None:
    """y = what the steps or the axes compute from a shard x, + bias; if active its ReLU, and sums (2, F) += the sum of
    y - shift, and of its square, where shift (F,) becomes the mean of the first image."""
    F = y.shape[3]
    centre = np.empty(F, x.dtype)
    for start in range(0, len(x), block):
        out = y[start : start + block]
        convolve(gemm, x[start : start + block], steps, axes, matrices, bias, active, out, scratch)
        if active:
            rows = out.reshape(out.size // F, F)
            if start == 0:
                pixels = y.shape[1] * y.shape[2]
                row_sums(rows[:pixels], shift)
                for k in range(F):
                    centre[k] = shift[k] / pixels
                    shift[k] = centre[k]
            add_moments(rows, centre, sums)


@compiled
def conv_layer_grad(
    gemm: Any,
    gy: Array,
    through: Array,
    y: Array,
    x: Array,
    window: Array,
    axes: Array,
    taps: Array,
    weight: Array,
    transposed: bool,
    steps: Array,
    matrices: Array,
    gx: Array,
    gweight: Array,
    total: Array,
    block: int,
    scratch: tuple[Array, ...],
) -> None:
    """The gradients of conv_layer for a shard; gx is wanted if it is not empty. window: the convolution's only step;
    axes, taps: of its Winograd algorithm, or empty; weight, gweight: (KH * KW * C, F); steps, matrices: for gx. total
    (OH * OW * F,): the sum over images behind the ReLU. gweight and total are added to."""
    C, F = x.shape[3], y.shape[3]
    size = (F, C) if transposed else (C, F)  # of the weight
    gproducts = np.zeros((len(taps), size[0] * size[1]), x.dtype)
    for start in range(0, len(x), block):
        source, result, g = x[start : start + block], y[start : start + block], gy[start : start + block]
        x_rows, g_rows = source.reshape(source.size // C, C), g.reshape(g.size // F, F)
        if len(through):
            g = scratch[GRADIENT][: result.size].reshape(result.shape)
            gy_rows, g_rows = g_rows, g.reshape(g.size // F, F)
            through_relu(gy_rows, result.reshape(result.size // F, F), through, g_rows)
        add_images(g.reshape(len(g), total.size), total)
        out = gx[start : start + block]
        if len(axes):
            tiles, x_planes, y_planes = len(g) * axes[0].tiles * axes[1].tiles, scratch[COLUMNS], scratch[PRODUCT]
            gather(g if transposed else source, axes[0], axes[1], x_planes)
            gather(source if transposed else g, axes[2], axes[3], y_planes)
            add_weight_gradients(gemm, x_planes, axes, y_planes, tiles, size, gproducts.reshape(-1))
            if len(gx) and transposed:
                products(gemm, x_planes, axes[:2], matrices, axes[2:], tiles, size, y_planes)
                scatter(y_planes, axes[2], axes[3], out)
            elif len(gx):
                products(gemm, y_planes, axes[2:], matrices, axes[:2], tiles, (F, C), x_planes)
                scatter(x_planes, axes[0], axes[1], out)
        elif transposed:
            columns = patches(g, window[0], scratch[COLUMNS])
            matmul(gemm, columns.T, x_rows, 1.0, gweight)
            if len(gx):
                matmul(gemm, columns, weight, 0.0, out.reshape(out.size // C, C))
        else:
            columns = patches(source, window[0], scratch[COLUMNS])
            matmul(gemm, columns.T, g_rows, 1.0, gweight)
            if len(gx):
                # without bias no ReLU either: `transposed` is False here, a literal False would be another type
                convolve(gemm, g, steps, axes, matrices, gx[:0].reshape(0, 0, 0), transposed, out, scratch)
    if len(taps):
        matmul(gemm, taps.T, gproducts, 1.0, gweight.reshape(9, size[0] * size[1]))


@compiled
def adam(
    parameters: Array,
    mean: Array,
    variance: Array,
    gradients: Array,
    scalars: Array,
    beta_1: float,
    beta_2: float,
    epsilon: float,
    weight_decay: float,
) -> None:
    """The step of `Backend.adam_step_`."""
    one = parameters.dtype.type(1)
    for i in range(len(parameters)):
        g = gradients[i]
        mean[i] = beta_1 * mean[i] + (one - beta_1) * g
        variance[i] = beta_2 * variance[i] + (one - beta_2) * g * g
        update = mean[i] * scalars[1] / (np.sqrt(variance[i] * scalars[2]) + epsilon) + weight_decay * parameters[i]
        parameters[i] -= scalars[0] * update
