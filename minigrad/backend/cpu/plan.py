"""How the CPU computes a convolution, or the adjoint of one, as matrix products over im2col columns.

A convolution is one product. Its adjoint in the input (the transposed convolution) is one product for each phase of the
stride, so that nothing is scattered. Inputs h with the same (h + top) mod SH form a phase: they meet the same kernel
rows i, with i = h + top (mod SH). So a phase is a small stride-1 convolution of gy with these taps in reversed order.
A 3x3 kernel at stride 2 gives four products without overlap; at stride 1 it gives the convolution with the flipped
kernel.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..geometry import ConvGeometry, Size

Array = Any
THIN = 4  # fewer channels than this make matrices so thin that other ways are faster


class Window(NamedTuple):
    """The patches that im2col takes: patch (p, q) has its first pixel at start + (p, q) * stride; zero outside."""

    output_size: Size  # patches
    kernel_size: Size
    stride: Size
    start: Size


class Product(NamedTuple):
    """columns[:, taps] @ matrix gives the pixels out[:, rows, columns], one row per pixel."""

    matrix: Array  # (taps, channels)
    taps: slice
    rows: slice
    columns: slice


class Plan(NamedTuple):
    """Products by the window whose columns they share; output_size and channels of the result."""

    parts: list[tuple[Window, list[Product]]]
    output_size: Size
    channels: int

    def numbers(self, C: int) -> int:
        """Numbers in the columns and the result of one image with C channels."""
        columns = max(PH * PW * KH * KW * C for ((PH, PW), (KH, KW), _, _), _ in self.parts)
        return columns + self.output_size[0] * self.output_size[1] * self.channels


class ThinAdjoint(NamedTuple):
    """The adjoint where the result has few channels: the product comes first, then its KH*KW*C planes are added."""

    matrix: Array  # (KH*KW*C, F)
    geometry: ConvGeometry
    output_size: Size
    channels: int

    def numbers(self, C: int) -> int:
        """Numbers in the planes and the result of one image."""
        (OH, OW), (H, W) = self.geometry.output_size, self.output_size
        return OH * OW * len(self.matrix) + H * W * self.channels


def conv_window(geometry: ConvGeometry) -> Window:
    """The patches of a convolution."""
    (top, _), (left, _) = geometry.pads
    return Window(geometry.output_size, geometry.kernel_size, geometry.stride, (-top, -left))


def convolution(weight: Array, geometry: ConvGeometry) -> Plan:
    """x (N, H, W, C) -> (N, OH, OW, F)."""
    matrix = weight.reshape(-1, weight.shape[3])  # (KH*KW*C, F)
    everything = slice(None)
    product = Product(matrix, everything, everything, everything)
    return Plan([(conv_window(geometry), [product])], geometry.output_size, weight.shape[3])


def adjoint(weight: Array, geometry: ConvGeometry) -> Plan | ThinAdjoint:
    """gy (N, OH, OW, F) -> (N, H, W, C)."""
    if weight.shape[2] >= THIN:
        return phases(weight, geometry)
    matrix = np.ascontiguousarray(weight.reshape(-1, weight.shape[3]))
    return ThinAdjoint(matrix, geometry, geometry.input_size, weight.shape[2])


def phases(weight: Array, geometry: ConvGeometry) -> Plan:
    """The adjoint as products without overlap. Phases of the rows share the columns of one window."""
    row_phases, column_phases = (_phases(geometry, axis) for axis in (0, 1))
    F, C = weight.shape[3], weight.shape[2]
    flipped = weight[::-1, ::-1].transpose(0, 1, 3, 2)  # (KH, KW, F, C)
    top = min(phase.first for phase in row_phases)
    height = max(phase.first + phase.number for phase in row_phases) - top
    parts = []
    for column in column_phases:
        width = column.number
        window = Window((row_phases[0].extent, column.extent), (height, width), (1, 1), (top, column.first))
        products = []
        for row in row_phases:
            matrix = np.ascontiguousarray(flipped[row.taps, column.taps]).reshape(row.number * column.number * F, C)
            start = (row.first - top) * width * F
            products.append(Product(matrix, slice(start, start + len(matrix)), row.pixels, column.pixels))
        parts.append((window, products))
    return Plan(parts, geometry.input_size, C)


class _Phase(NamedTuple):
    """`extent` inputs that meet the same taps of one axis; number p of them reads gy from p + first on."""

    pixels: slice
    extent: int
    taps: slice  # of the flipped kernel
    number: int  # of taps
    first: int


@lru_cache(maxsize=256)
def _phases(geometry: ConvGeometry, axis: int) -> list[_Phase]:
    size, stride = geometry.input_size[axis], geometry.stride[axis]
    kernel, pad = geometry.kernel_size[axis], geometry.pads[axis][0]
    phases = []
    for start in range(min(stride, size)):
        taps = range((start + pad) % stride, kernel, stride)
        flipped = slice(kernel - 1 - taps[-1], None, stride) if taps else slice(0, 0)
        first = (start + pad) // stride - (len(taps) - 1)
        extent = len(range(start, size, stride))
        phases.append(_Phase(slice(start, None, stride), extent, flipped, len(taps), first))
    return phases


def axis_coverage(geometry: ConvGeometry, axis: int, transposed: bool) -> Array:
    """A matrix (positions of the result, taps) for one axis: whether the tap meets a position of the image."""
    size, steps, stride = geometry.input_size[axis], geometry.output_size[axis], geometry.stride[axis]
    taps = np.arange(geometry.kernel_size[axis]) - geometry.pads[axis][0]
    if transposed:
        step, rest = np.divmod(np.arange(size)[:, None] - taps, stride)
        return (rest == 0) & (step >= 0) & (step < steps)
    position = np.arange(steps)[:, None] * stride + taps
    return (position >= 0) & (position < size)
