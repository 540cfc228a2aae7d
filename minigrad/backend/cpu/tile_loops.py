"""Compiled loops of Winograd's algorithms: the sums that winograd.py describes, before and after the products."""

from __future__ import annotations

from typing import Any

import numpy as np

from .compiling import compiled

Array = Any


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
