"""The kernels of ops/catalogue/ in plain code, under the rules of reference.py.

A kernel that a gradient applies to gy is linear, and its adjoint is a kernel, too: `take_windows` and `put_windows`,
`sum_windows` and `spread_windows`, `take` and `add_at`; `centred` is its own. Each one is the gradient of the other.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .geometry import ConvGeometry
from .reference import Backend

Array = Any
Key = tuple[Any, ...]  # ints, slices, None, one Ellipsis, arrays of int64 or bool

_drawing = threading.Lock()


class CatalogueBackend(Backend):
    """The plain kernels and, as plain, those of the catalogue."""

    # ---- convolutions with groups: weight is (KH, KW, C / groups, F) ----

    def conv2d(self, x: Array, weight: Array, bias: Array | None, geometry: ConvGeometry) -> Array:
        """The convolution of each group alone: its filters read its channels."""
        if geometry.groups == 1:
            return super().conv2d(x, weight, bias, geometry)
        y = self._each_group(lambda x, weight, alone: self.conv2d(x, weight, None, alone), x, weight, geometry)
        return y if bias is None else self.add_bias(y, bias)

    def conv2d_grad_input(self, gy: Array, weight: Array, geometry: ConvGeometry) -> Array:
        """The gradient of each group alone."""
        if geometry.groups == 1:
            return super().conv2d_grad_input(gy, weight, geometry)
        return self._each_group(self.conv2d_grad_input, gy, weight, geometry)

    def conv2d_grad_weight(self, x: Array, gy: Array, geometry: ConvGeometry) -> Array:
        """The gradient of each group alone."""
        if geometry.groups == 1:
            return super().conv2d_grad_weight(x, gy, geometry)
        return self._each_group(self.conv2d_grad_weight, x, gy, geometry)

    def _each_group(self, kernel: Callable[..., Array], a: Array, b: Array, geometry: ConvGeometry) -> Array:
        """kernel(a, b, geometry) of each group, side by side. What belongs to a group is adjacent on the last axis of
        a, of b and of the result."""
        A, B, alone = a.shape[3] // geometry.groups, b.shape[3] // geometry.groups, replace(geometry, groups=1)
        parts = ((a[..., g * A : (g + 1) * A], b[..., g * B : (g + 1) * B]) for g in range(geometry.groups))
        return self.xp.concatenate([kernel(*part, alone) for part in parts], axis=3)

    # ---- reductions; reduced axes keep size 1 ----

    def largest(self, x: Array, axes: tuple[int, ...]) -> Array:
        """The maximum over axes; NaN if one is NaN. An array without elements has zeros, because nothing reads them."""
        return x.max(axis=axes, keepdims=True) if x.size else self._zeros_reduced(x, axes)

    def smallest(self, x: Array, axes: tuple[int, ...]) -> Array:
        """The minimum over axes; NaN if one is NaN. An array without elements has zeros, as for `largest`."""
        return x.min(axis=axes, keepdims=True) if x.size else self._zeros_reduced(x, axes)

    def _zeros_reduced(self, x: Array, axes: tuple[int, ...]) -> Array:
        """Zeros of the reduced shape. CuPy refuses a maximum of an empty array even over an axis that has elements."""
        shape = tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))
        return self.xp.zeros(shape, dtype=x.dtype)

    def softmax(self, x: Array, axes: tuple[int, ...]) -> Array:
        """e^x / sum of e^x over axes, without overflow: exp is only taken of numbers <= 0."""
        e = self.xp.exp(x - self.largest(x, axes))
        return e / self.sum(e, axes, keepdims=True)

    def log_softmax(self, x: Array, axes: tuple[int, ...]) -> Array:
        """x - log of the sum of e^x over axes, without overflow."""
        shifted = x - self.largest(x, axes)
        return shifted - self.xp.log(self.sum(self.xp.exp(shifted), axes, keepdims=True))

    def centred(self, x: Array, axes: tuple[int, ...]) -> Array:
        """x minus its mean over axes. The map is linear and equal to its own adjoint.

        It is applied twice, because the first mean is rounded as a number of the size of x, which may be much larger
        than the deviations. The second mean, of the deviations, removes that error.
        """
        count = math.prod(x.shape[axis] for axis in axes)
        x = x - self.sum(x, axes, keepdims=True) / count
        return x - self.sum(x, axes, keepdims=True) / count

    # ---- windows of images: (N, H, W, C) to (N, OH, OW, C) with the geometry of a convolution ----

    def max_pool(self, x: Array, geometry: ConvGeometry) -> tuple[Array, Array]:
        """(y, winners): the largest pixel of each window and its number i * KW + j in the window, as int32.

        Padding never wins. Of equal pixels the first wins. NaN wins, the last one of several, as in PyTorch.
        """
        xp, (N, H, W, C), (OH, OW) = self.xp, x.shape, geometry.output_size
        pads = ((0, 0), *geometry.pads, (0, 0))
        padded = xp.pad(x, pads, constant_values=-math.inf)
        real = xp.pad(xp.ones((1, H, W, 1), dtype="bool"), pads, constant_values=False)
        y = xp.full((N, OH, OW, C), -math.inf, dtype=x.dtype)
        winners = xp.full((N, OH, OW, C), -1, dtype="int32")  # none yet
        for number, (rows, columns) in enumerate(_pixels(geometry)):
            pixels = padded[:, rows, columns]
            wins = real[:, rows, columns] & ((pixels > y) | xp.isnan(pixels) | (winners < 0))
            y, winners = xp.where(wins, pixels, y), xp.where(wins, number, winners)
        return y, winners

    def take_windows(self, x: Array, winners: Array, geometry: ConvGeometry) -> Array:
        """The pixel of each window that has the number in winners."""
        padded = self.xp.pad(x, ((0, 0), *geometry.pads, (0, 0)), constant_values=0)
        y = self.xp.zeros(winners.shape, dtype=x.dtype)
        for number, (rows, columns) in enumerate(_pixels(geometry)):
            y = self.xp.where(winners == number, padded[:, rows, columns], y)
        return y

    def put_windows(self, gy: Array, winners: Array, geometry: ConvGeometry) -> Array:
        """The adjoint of take_windows: each gy is added to the pixel that it was taken from."""
        padded = self._padded_zeros(gy, geometry)
        for number, (rows, columns) in enumerate(_pixels(geometry)):
            padded[:, rows, columns] += self.xp.where(winners == number, gy, 0)
        return _without_padding(padded, geometry)

    def sum_windows(self, x: Array, geometry: ConvGeometry) -> Array:
        """The sum of each window, first over its rows and then over its columns."""
        (KH, KW), (OH, OW) = geometry.kernel_size, geometry.output_size
        padded = self.xp.pad(x, ((0, 0), *geometry.pads, (0, 0)), constant_values=0)
        tall = self.xp.zeros((x.shape[0], OH, padded.shape[2], x.shape[3]), dtype=x.dtype)
        for i in range(KH):
            tall += padded[:, geometry.rows(i)]
        y = self.xp.zeros((x.shape[0], OH, OW, x.shape[3]), dtype=x.dtype)
        for j in range(KW):
            y += tall[:, :, geometry.columns(j)]
        return y

    def spread_windows(self, gy: Array, geometry: ConvGeometry) -> Array:
        """The adjoint of sum_windows: each gy is added to all pixels of its window."""
        (KH, KW), (OH, _) = geometry.kernel_size, geometry.output_size
        padded = self._padded_zeros(gy, geometry)
        tall = self.xp.zeros((gy.shape[0], OH, *padded.shape[2:]), dtype=gy.dtype)
        for j in range(KW):
            tall[:, :, geometry.columns(j)] += gy
        for i in range(KH):
            padded[:, geometry.rows(i)] += tall
        return _without_padding(padded, geometry)

    def _padded_zeros(self, gy: Array, geometry: ConvGeometry) -> Array:
        """Zeros in the shape of the padded images."""
        H, W = (n + sum(pads) for n, pads in zip(geometry.input_size, geometry.pads, strict=True))
        return self.xp.zeros((gy.shape[0], H, W, gy.shape[3]), dtype=gy.dtype)

    # ---- resizing ----

    def interpolation_matrix(self, size: int, new_size: int, dtype: Any) -> Array:
        """The matrix (new_size, size) that maps pixels to linearly interpolated ones.

        Pixel h has its centre at h + 1/2 and the image runs from 0 to size. Pixel p of the result has its centre at
        (p + 1/2) * size / new_size, which is moved to the nearest centre if it lies outside of all centres. The weight
        of pixel h is 1 minus its distance from there, and 0 from distance 1 on.
        """
        xp = self.xp
        centres = (xp.arange(new_size, dtype="float64") + 0.5) * (size / new_size) - 0.5
        distances = xp.abs(xp.clip(centres, 0, size - 1)[:, None] - xp.arange(size, dtype="float64"))
        return xp.maximum(1 - distances, 0).astype(dtype)

    # ---- indexing ----

    def take(self, x: Array, key: Key) -> Array:
        """x[key] with arrays in the key, which makes a copy."""
        return x[key]

    def add_at(self, gy: Array, key: Key, shape: tuple[int, ...]) -> Array:
        """The adjoint of x[key]: zeros of this shape, with each gy added to the element that it was taken from.

        Only arrays of integers can take an element twice. Without them, the elements are assigned.
        """
        total = self.xp.zeros(shape, dtype=gy.dtype)
        if not any(getattr(part, "dtype", None) == "int64" for part in key):
            total[key] = gy
            return total
        if not gy.size:
            return total
        axes = len(shape)  # those that the key chooses from; it takes those of an Ellipsis at its end whole
        if key[-1] is Ellipsis:
            axes = sum(part.ndim if getattr(part, "dtype", None) == "bool" else part is not None for part in key[:-1])
        places = self.xp.arange(math.prod(shape[:axes])).reshape(shape[:axes])[key]
        rows = gy.reshape(places.size, -1)
        return self.add_rows(rows, places.reshape(-1), math.prod(shape[:axes])).reshape(shape)

    def add_rows(self, rows: Array, places: Array, count: int) -> Array:
        """The sums (count, D) of the rows (M, D), M >= 1, that have the same place (M,), which is 0 ... count - 1.

        The rows are sorted by place. Then step s adds to each row the one s before it, if that has the same place, for
        s = 1, 2, 4, ... So the last row of a place becomes its sum. Unlike the atomic additions of a GPU this gives the
        same bits every time, and it loses as few digits as a pairwise sum.
        """
        xp = self.xp
        order = xp.argsort(places, kind="stable")
        places, rows = places[order], rows[order]
        step = 1
        while step < len(places):
            same = places[step:] == places[:-step]
            if self.on_host and not same.any():
                break
            rows[step:] += xp.where(same[:, None], rows[:-step], 0)
            step *= 2
        every = xp.arange(count)
        last = xp.searchsorted(places, every, side="right") - 1  # -1 is the last row, of another place
        return xp.where((places[last] == every)[:, None], rows[last], 0)

    # ---- random numbers ----

    def next_draw_(self, draws: Array) -> tuple[int, int]:
        """(seed, number of this draw) from draws (2,), which then counts one draw more. Two threads never get the same
        number."""
        with _drawing:
            seed, number = (int(value) for value in self.to_host(draws))
            draws[1] = number + 1
        return seed, number


def _pixels(geometry: ConvGeometry) -> list[tuple[slice, slice]]:
    """For each pixel of a window the padded rows and columns where it is, one for each window."""
    KH, KW = geometry.kernel_size
    return [(geometry.rows(i), geometry.columns(j)) for i in range(KH) for j in range(KW)]


def _without_padding(padded: Array, geometry: ConvGeometry) -> Array:
    (top, _), (left, _), (H, W) = *geometry.pads, geometry.input_size
    return padded[:, top : top + H, left : left + W].copy()
