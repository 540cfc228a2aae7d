"""The tables of winograd.py against the definition of a convolution, and how far its rounding errors may reach;
test_backends.py has more of the kernels that use them."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_sets import BACKENDS, NEEDS_NUMBA

from minigrad.backend.chain import ChainBackend
from minigrad.backend.cpu.winograd import ALGORITHMS, LEAST_CHANNELS, winograd
from minigrad.backend.geometry import conv_geometry


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


# ---- rounding ----

PLAIN = ChainBackend(np)


def growth(strides: tuple[int, int]) -> tuple[float, float]:
    """By how much the magnitudes of the algorithm's terms may exceed those of the convolution's: in an output or the
    weight's gradient, relative to the largest input; and in an input's gradient, relative to the largest output's.

    With y = A ((G w) * (B x)) a term of output k that has tap t is at most |A_kp| |G_pt| sum_s |B_ps| max |x|, summed
    over the products p. The gradients have the same three factors: one that is summed over the other two.
    """
    of_output = of_input = 1.0
    for stride in strides:
        outputs, pixels = np.zeros((2, 3)), np.zeros((2 * stride, 3))
        for group in ALGORITHMS[stride]:
            for inputs, taps in group.products:
                for k in group.outputs:
                    outputs[k] += np.abs(taps) * len(inputs)
                for place in inputs:
                    pixels[place % (2 * stride)] += np.abs(taps) * len(group.outputs)
        of_output, of_input = of_output * outputs.max(), of_input * pixels.max()
    return of_output, of_input


def gamma(roundings: int) -> float:
    """So many roundings in float32, one after another, change a number by at most this (Higham, Accuracy and Stability
    of Numerical Algorithms, 3.1)."""
    return roundings * 2.0**-24 / (1 - roundings * 2.0**-24)


def test_the_growth_is_a_small_factor() -> None:
    assert [growth(strides)[0] for strides in ((1, 1), (1, 2), (2, 2))] == [16, 12, 9]


def of_all_magnitudes(r: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers from 1e-4 to 1e4, of either sign, side by side."""
    return (10 ** r.uniform(-4, 4, shape) * r.choice([-1, 1], shape)).astype(np.float32)


@NEEDS_NUMBA
@pytest.mark.usefixtures("restored_backends")
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (1, 2)])
def test_rounding_errors_are_bounded_normwise(strides: tuple[int, int]) -> None:
    """By the largest input and the sum of the weights' magnitudes; over drawn sizes and channels, on numbers of very
    different magnitudes. Roundings: sums of 4 inputs or outputs (3), of 9 taps (9), of all products, and of the planes
    that one number is summed from, of which there are at most 16."""
    r, done = np.random.default_rng(sum(strides)), 0
    of_output, of_input = growth(strides)
    numba = BACKENDS["numba-1"]()
    while done < 8:
        size, (C, F) = tuple(map(int, r.integers(4, 13, 2))), map(int, r.integers(32, 49, 2))
        g, N = conv_geometry(size, (3, 3), strides, "same"), int(r.integers(1, 4))
        if winograd(g, C, F) is None:
            continue
        done += 1
        x, gy = of_all_magnitudes(r, (N, *size, C)), of_all_magnitudes(r, (N, *g.output_size, F))
        w = of_all_magnitudes(r, (3, 3, C, F))
        exact = [a.astype(np.float64) for a in (x, w, gy)]
        errors = [
            np.abs(numba.conv2d(x, w, None, g) - PLAIN.conv2d(exact[0], exact[1], None, g)),
            np.abs(numba.conv2d_grad_input(gy, w, g) - PLAIN.conv2d_grad_input(exact[2], exact[1], g)),
            np.abs(numba.conv2d_grad_weight(x, gy, g) - PLAIN.conv2d_grad_weight(exact[0], exact[2], g)),
        ]
        weights, positions = np.abs(exact[1]), N * np.prod(g.output_size)
        bounds = [
            gamma(3 + 9 + 4 * C + 16) * of_output * np.abs(x).max() * weights.sum(axis=(0, 1, 2)),
            gamma(3 + 9 + 4 * F + 16) * of_input * np.abs(gy).max() * weights.sum(axis=(0, 1, 3)),
            gamma(3 + 9 + positions + 25)
            * of_output
            * np.outer(np.abs(x).max(axis=(0, 1, 2)), np.abs(exact[2]).sum(axis=(0, 1, 2))),
        ]
        for error, bound in zip(errors, bounds, strict=True):
            assert (error <= bound).all()


@NEEDS_NUMBA
@pytest.mark.usefixtures("restored_backends")
def test_rounding_errors_are_not_bounded_elementwise() -> None:
    """An output that only the middle tap reaches has none of the large pixel beside it, but its error has. The other
    kernels keep the bound by an output's own terms."""
    g = conv_geometry((8, 8), (3, 3), 1, "same")
    r = np.random.default_rng(0)
    x, w = r.normal(size=(1, 8, 8, 32)).astype(np.float32), np.zeros((3, 3, 32, 32), np.float32)
    x[0, 2, 2], w[1, 1] = 1e6, r.normal(size=(32, 32))
    assert winograd(g, 32, 32) is not None
    exact = PLAIN.conv2d(x.astype(np.float64), w.astype(np.float64), None, g)
    terms = PLAIN.conv2d(np.abs(x).astype(np.float64), np.abs(w).astype(np.float64), None, g)
    beside = np.ones((8, 8), bool)
    beside[2, 2] = False
    for name, holds in (("numba-1", False), ("numpy-1", True)):
        error = np.abs(BACKENDS[name]().conv2d(x, w, None, g) - exact)[0][beside]
        assert (error <= gamma(9 * 32) * terms[0][beside]).all() == holds, name
