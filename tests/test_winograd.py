"""The tables of winograd.py against the definition of a convolution; test_backends.py has the kernels that use them."""

from __future__ import annotations

import numpy as np
import pytest

from minigrad.backend.winograd import ALGORITHMS, LEAST_CHANNELS, winograd
from minigrad.ops.conv import conv_geometry


@pytest.mark.parametrize("stride", sorted(ALGORITHMS))
def test_an_algorithm_is_the_convolution(stride: int) -> None:
    """Output k of x and w is the sum of x[stride * k + t] * w[t]: exactly, term by term."""
    terms = np.zeros((2, 3, 2 * stride + 3))  # (output, tap, input)
    for group in ALGORITHMS[stride]:
        for inputs, taps in group.products:
            for k, of_output in group.outputs.items():
                for place, sign in inputs.items():
                    terms[k, :, place] += of_output * sign * np.array(taps)
    wanted = np.zeros_like(terms)
    for k in range(2):
        for t in range(3):
            wanted[k, t, stride * k + t] = 1
    np.testing.assert_array_equal(terms, wanted)


@pytest.mark.parametrize(("stride", "products"), [(1, 4), (2, 5)])
def test_it_takes_fewer_products_than_six(stride: int, products: int) -> None:
    assert sum(len(group.products) for group in ALGORITHMS[stride]) == products


def planes_of(axis: np.void, size: int) -> np.ndarray:
    """(tiles, planes, pixels): what gather takes, from `place` and `sign`."""
    matrix = np.zeros((axis["tiles"], axis["planes"], size))
    for tile in range(axis["tiles"]):
        for plane in range(axis["planes"]):
            for i in range(axis["terms"][plane]):
                pixel = axis["start"] + tile * axis["step"] + axis["place"][plane, i]
                if 0 <= pixel < size:
                    matrix[tile, plane, pixel] += axis["sign"][plane, i]
    return matrix


def sources_of(axis: np.void, size: int) -> np.ndarray:
    """The same from the table that scatter reads, pixel by pixel."""
    matrix = np.zeros((axis["tiles"], axis["planes"], size))
    for pixel in range(size):
        tile, rest = divmod(pixel - axis["start"], axis["step"])
        for i in range(axis["sources"][rest]):
            at = tile + axis["from_tile"][rest, i]
            if 0 <= at < axis["tiles"]:
                matrix[at, axis["from_plane"][rest, i], pixel] += axis["from_sign"][rest, i]
    return matrix


@pytest.mark.parametrize("stride", [1, 2, (1, 2)])
@pytest.mark.parametrize("size", [(4, 8), (11, 12), (16, 7)])
def test_both_tables_of_an_axis_say_the_same(size: tuple[int, int], stride: int | tuple[int, int]) -> None:
    geometry = conv_geometry(size, (3, 3), stride, "same")
    algorithm = winograd(geometry, LEAST_CHANNELS, LEAST_CHANNELS)
    assert algorithm is not None
    for axis, pixels in zip(algorithm.axes, (*size, *geometry.output_size), strict=True):
        np.testing.assert_array_equal(planes_of(axis, pixels), sources_of(axis, pixels))
    np.testing.assert_array_equal(algorithm.back_axes, algorithm.axes[[2, 3, 0, 1]])


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "channels"),
    [
        ((8, 8), (3, 3), 1, (LEAST_CHANNELS - 1, 64)),
        ((8, 8), (3, 3), 1, (64, LEAST_CHANNELS - 1)),
        ((8, 8), (5, 5), 1, (64, 64)),
        ((8, 8), (3, 1), 1, (64, 64)),
        ((9, 9), (3, 3), 3, (64, 64)),
        ((8, 8), (3, 3), 1, (128, 129)),
        ((1, 1), (3, 3), 1, (64, 64)),  # a tile of 16 products for an image of 9
        ((7, 7), (3, 3), 2, (64, 64)),  # 3x3 outputs take 2x2 tiles
    ],
)
def test_where_it_does_not_pay_there_is_none(
    size: tuple[int, int], kernel: tuple[int, int], stride: int, channels: tuple[int, int]
) -> None:
    geometry = conv_geometry(size, kernel, stride, "valid" if size == (7, 7) else "same")
    assert winograd(geometry, *channels) is None
