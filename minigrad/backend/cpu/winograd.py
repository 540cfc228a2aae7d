"""Convolutions with three taps in fewer multiplications: Winograd's minimal algorithms, for the numba kernels.

Two neighbouring outputs share inputs. With stride 1 and two taps, for one: y0 = x0 w0 + x1 w1 and y1 = x1 w0 + x2 w1
are y0 = m0 + m1 and y1 = m1 + m2 with three products instead of four,

    m0 = (x0 - x1) w0,    m1 = x1 (w0 + w1),    m2 = (x2 - x1) w1.

In matrices, y = A ((G w) * (B x)): sums B of inputs, sums G of taps (taken once for all images), products, and sums A
of products. With channels each product becomes a matrix product. The adjoint of the convolution in x is
B^T ((G w) * (A^T gy)), and the gradient of w is G^T ((B x) * (A^T gy)): the same products with other sums. An image is
cut into tiles of 2x2 outputs; its rows and its columns each have an algorithm, so the plane that rows sum as `a` and
columns as `b` takes part in product (a, b).

Only 1, -1 and 1/2 are coefficients and an output has only terms of its own inputs, so NaN reaches the same outputs. An
infinite input makes them NaN, as its terms cancel. Rounding errors are bounded normwise: by the largest input times the
sum of the weights' magnitudes, with a factor of 9 to 16. They are not bounded elementwise, by the terms of each output:
a large pixel beside small ones disturbs outputs in which its weight is zero.

Sources: Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray, Fast Algorithms for Convolutional Neural
Networks, 2016.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..geometry import ConvGeometry

Array = Any
Sum = dict[int, int]  # place: sign
LEAST_CHANNELS = 32  # with fewer, the sums cost more than the products save
MOST_WEIGHTS = 1 << 18  # numbers of G w: more of them leave no room in the cache
MOST_PRODUCTS = 0.8  # of those without an algorithm: tiles may reach over the edge

AXIS = np.dtype(
    [(name, "i8") for name in ("tiles", "start", "step", "planes", "groups")]
    + [("begin", "i8", 6)]
    + [(name, "i8", 5) for name in ("first", "size", "terms")]
    + [(name, "i8", (5, 2)) for name in ("place", "sign")]
    + [("sources", "i8", 4)]
    + [(name, "i8", (4, 4)) for name in ("from_tile", "from_plane", "from_sign")]
)
"""The planes that one axis of an image is summed to. Tile t has its first pixel at start + t * step.

Plane j is the sum of `terms[j]` pixels, sign[j, i] times the one at place[j, i]. Planes begin[g] ... begin[g + 1] - 1
are group g: they share one matrix product; first[j] and size[j] say this for the group of plane j. The adjoint: pixel h
with remainder r of (h - start) / step is the sum of sources[r] planes, from_sign[r, i] times plane from_plane[r, i] of
the tile from_tile[r, i] after the pixel's.
"""


class Group(NamedTuple):
    """Products that are added to the same outputs, so that one matrix product does them all."""

    outputs: Sum
    products: tuple[tuple[Sum, tuple[float, float, float]], ...]  # (sum of inputs, sum of taps)


ALGORITHMS = {  # by stride
    1: (
        Group({0: 1}, (({0: 1, 2: -1}, (1, 0, 0)),)),
        Group({0: 1, 1: 1}, (({1: 1, 2: 1}, (0.5, 0.5, 0.5)),)),
        Group({0: 1, 1: -1}, (({2: 1, 1: -1}, (0.5, -0.5, 0.5)),)),
        Group({1: -1}, (({1: 1, 3: -1}, (0, 0, 1)),)),
    ),
    2: (  # the algorithm above for the taps 0 and 2, which meet inputs 0, 2 and 4; tap 1 as it is
        Group({0: 1}, (({0: 1, 2: -1}, (1, 0, 0)), ({1: 1}, (0, 1, 0)))),
        Group({0: 1, 1: 1}, (({2: 1}, (1, 0, 1)),)),
        Group({1: 1}, (({4: 1, 2: -1}, (0, 0, 1)), ({3: 1}, (0, 1, 0)))),
    ),
}


class Winograd(NamedTuple):
    """The algorithm for a convolution from an image x to an image y, or for its adjoint from y to x."""

    axes: Array  # AXIS of rows and columns of x, which are B, and of y, A^T
    back_axes: Array  # those of y first
    taps: Array  # (products, 9): G of rows and columns
    groups: list[tuple[int, int]]  # from and to which product, for each pair of groups

    def matrices(self, weight: Array, adjoint: bool) -> Array:
        """G w for the weight (3, 3, C, F): a matrix (products * C, F) for each group one after another; for the adjoint
        (F, products * C)."""
        _, _, C, F = weight.shape
        taps = self.taps.astype(weight.dtype)
        if not adjoint:
            return (taps @ weight.reshape(9, C * F)).reshape(-1)
        turned = np.ascontiguousarray(weight.transpose(0, 1, 3, 2))
        products = (taps @ turned.reshape(9, F * C)).reshape(-1, F, C)
        return np.concatenate([products[start:stop].transpose(1, 0, 2).reshape(-1) for start, stop in self.groups])

    def numbers(self, C: int, F: int) -> tuple[int, int]:
        """Numbers in the planes of one image x with C channels, and of y with F."""
        rows, columns, y_rows, y_columns = (int(axis["tiles"] * axis["planes"]) for axis in self.axes)
        return rows * columns * C, y_rows * y_columns * F


@lru_cache(maxsize=256)
def winograd(geometry: ConvGeometry, C: int, F: int) -> Winograd | None:
    """The algorithm for a convolution from C to F channels; None if there is none or it does not pay."""
    if geometry.kernel_size != (3, 3) or min(C, F) < LEAST_CHANNELS or not set(geometry.stride) <= set(ALGORITHMS):
        return None
    algorithms = [ALGORITHMS[stride] for stride in geometry.stride]
    axes = np.zeros(4, AXIS)
    for axis, groups in enumerate(algorithms):
        tiles, stride = -(-geometry.output_size[axis] // 2), geometry.stride[axis]
        inputs = [[sums for sums, _ in group.products] for group in groups]
        _fill(axes[axis], tiles, -geometry.pads[axis][0], 2 * stride, inputs)
        _fill(axes[axis + 2], tiles, 0, 2, [[group.outputs] for group in groups])
    taps: list[Array] = []
    bounds: list[tuple[int, int]] = []
    for rows in algorithms[0]:
        for columns in algorithms[1]:
            products = [np.outer(a, b).reshape(-1) for _, a in rows.products for _, b in columns.products]
            bounds.append((len(taps), len(taps) + len(products)))
            taps += products
    too_many = np.prod(axes["tiles"][:2]) * len(taps) > MOST_PRODUCTS * 9 * np.prod(geometry.output_size)
    if too_many or len(taps) * C * F > MOST_WEIGHTS:
        return None
    return Winograd(axes, axes[[2, 3, 0, 1]], np.array(taps), bounds)


def _fill(axis: Any, tiles: int, start: int, step: int, groups: list[list[Sum]]) -> None:
    """Make the axis the one whose planes are these sums."""
    planes = [sums for group in groups for sums in group]
    axis["tiles"], axis["start"], axis["step"] = tiles, start, step
    axis["planes"], axis["groups"] = len(planes), len(groups)
    axis["begin"][1 : len(groups) + 1] = np.cumsum([len(group) for group in groups])
    axis["size"][: len(planes)] = [len(group) for group in groups for _ in group]
    axis["first"][: len(planes)] = [axis["begin"][g] for g, group in enumerate(groups) for _ in group]
    for j, sums in enumerate(planes):
        axis["terms"][j] = len(sums)
        for i, (place, sign) in enumerate(sums.items()):
            axis["place"][j, i], axis["sign"][j, i] = place, sign
            later, r = divmod(place, step)
            source = axis["sources"][r]
            axis["from_tile"][r, source], axis["from_plane"][r, source] = -later, j
            axis["from_sign"][r, source] = sign
            axis["sources"][r] += 1
