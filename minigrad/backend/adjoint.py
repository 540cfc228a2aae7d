"""The adjoint of a convolution in its input, for the CPU: the transposed convolution of a block of images.

Nothing is scattered. Input rows h with the same (h + top) mod SH meet the same kernel rows, those i with
i = h + top (mod SH), so the inputs of one phase of the stride are a small stride-1 convolution of gy with these taps
in reversed order. For 3x3 at stride 2 that is four products without overlap; at stride 1 the convolution with the
flipped kernel. Where the result has few channels the product comes first and its KH*KW*C thin planes are added.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from .pool import Pool

if TYPE_CHECKING:
    from ..ops.conv import ConvGeometry

Array = Any


class Phase:
    """The inputs start, start + stride, ... of one axis: they meet the kernel's taps, from gy's row `first` on."""

    def __init__(self, start: int, size: int, kernel: int, stride: int, pad: int) -> None:
        taps = range((start + pad) % stride, kernel, stride)
        self.start = start
        self.count = len(range(start, size, stride))
        self.taps = list(reversed(taps))
        self.first = (start + pad) // stride - (len(taps) - 1)


class Adjoint:
    """Called with a block gy (n, OH, OW, F) and an array gx (n, H, W, C) to fill."""

    def __init__(self, weight: Array, geometry: ConvGeometry, pool: Pool) -> None:
        self.weight, self.geometry, self.pool = weight, geometry, pool
        if weight.shape[2] < 4:
            self.matrix = np.ascontiguousarray(weight.reshape(-1, weight.shape[3]))  # (KH*KW*C, F)
            return
        axes = []
        for axis in (0, 1):
            size, stride = geometry.input_size[axis], geometry.stride[axis]
            kernel, pad = geometry.kernel_size[axis], geometry.pads[axis][0]
            axes.append([Phase(start, size, kernel, stride, pad) for start in range(min(stride, size))])
        self.top, self.bottom = _margins(axes[0], geometry.output_size[0])
        self.left, self.right = _margins(axes[1], geometry.output_size[1])
        flipped = weight.transpose(0, 1, 3, 2)  # (KH, KW, F, C)
        self.products = [
            (row, column, np.ascontiguousarray(flipped[row.taps][:, column.taps]).reshape(-1, weight.shape[2]))
            for row in axes[0]
            for column in axes[1]
        ]  # each matrix (MH*MW*F, C)

    def __call__(self, gy: Array, gx: Array) -> None:
        if self.weight.shape[2] < 4:
            self._add_planes(gy, gx)
            return
        n, OH, OW, F = gy.shape
        C = gx.shape[3]
        SH, SW = self.geometry.stride
        top, left = self.top, self.left
        name = f"gy {top} {left} {OH} {OW}"
        padded = self.pool.scratch(name, (n, top + OH + self.bottom, left + OW + self.right, F), gy.dtype)
        padded[:, top : top + OH, left : left + OW] = gy
        s = padded.strides
        for row, column, matrix in self.products:
            target = gx[:, row.start :: SH, column.start :: SW]
            if not matrix.size:  # stride larger than the kernel: no output pixel reads these inputs
                target[...] = 0
                continue
            shape = (n, row.count, column.count, len(row.taps), len(column.taps), F)
            columns = self.pool.scratch("gy columns", shape, gy.dtype)
            first = padded[:, top + row.first :, left + column.first :]
            np.copyto(columns, as_strided(first, shape, (s[0], s[1], s[2], s[1], s[2], s[3])))
            columns = columns.reshape(n * row.count * column.count, -1)
            if target.flags.c_contiguous:
                np.matmul(columns, matrix, out=target.reshape(-1, C))
            else:
                product = self.pool.scratch("gx", (n, row.count, column.count, C), gy.dtype)
                np.matmul(columns, matrix, out=product.reshape(-1, C))
                target[...] = product

    def _add_planes(self, gy: Array, gx: Array) -> None:
        n, OH, OW, F = gy.shape
        _, H, W, C = gx.shape
        (KH, KW), ((top, bottom), (left, right)) = self.geometry.kernel_size, self.geometry.pads
        planes = self.pool.scratch("planes", (KH * KW * C, n * OH * OW), gy.dtype)
        np.matmul(self.matrix, gy.reshape(-1, F).T, out=planes)
        planes = planes.reshape(KH, KW, C, n, OH, OW)
        padded = self.pool.scratch("padded planes", (C, n, top + H + bottom, left + W + right), gy.dtype)
        padded[...] = 0
        for i in range(KH):
            for j in range(KW):
                padded[:, :, self.geometry.rows(i), self.geometry.columns(j)] += planes[i, j]
        gx[...] = padded[:, :, top : top + H, left : left + W].transpose(1, 2, 3, 0)


def _margins(phases: list[Phase], size: int) -> tuple[int, int]:
    """Zeros needed before and after `size` rows of gy so that every phase finds its window."""
    before = max(-phase.first for phase in phases)
    last = max(phase.first + phase.count - 1 + len(phase.taps) - 1 for phase in phases)
    return max(0, before), max(0, last - (size - 1))
