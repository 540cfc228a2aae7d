"""Pooling and resizing: hard inputs, and what is refused. test_ops.py has values and gradients."""

from __future__ import annotations

import re

import numpy as np
import pytest

from minigrad import Tensor, nn, ops
from minigrad.backend.geometry import conv_geometry
from minigrad.testing import adjoint_check

INF, NAN = np.inf, np.nan


def row(*pixels: float) -> np.ndarray:
    """An image of one row and one channel."""
    return np.array(pixels, float).reshape(1, 1, -1, 1)


HARD = [  # pixels, window, padding, maxima, gradients of the pixels
    ("equal pixels", (2, 2, 1, 3, 3, 3), 3, 0, [2, 3], [1, 0, 0, 1, 0, 0]),
    ("NaN", (NAN, 1, 2, 1, NAN, 2), 3, 0, [NAN, NAN], [1, 0, 0, 0, 1, 0]),
    ("two NaN", (NAN, 5, NAN), 3, 0, [NAN], [0, 0, 1]),
    ("infinities", (-INF, INF, -INF, -INF), 2, 0, [INF, -INF], [0, 1, 1, 0]),
    ("minus infinity beside padding", (-INF, -INF), 2, (0, 1), [-INF, -INF], [1, 1]),
    ("negative pixels beside padding", (-5, -3, -4), 3, (0, 1), [-3], [0, 1, 0]),
]


@pytest.mark.parametrize("case", HARD, ids=[name for name, *_ in HARD])
def test_the_largest_pixel_of_hard_windows(case, backend):
    _, pixels, width, padding, maxima, gradients = case
    x = Tensor(backend.from_host(row(*pixels)), requires_grad=True)
    y = ops.max_pool2d(x, (1, width), padding=padding)
    y.backward(backend.from_host(np.ones(y.shape)))
    np.testing.assert_array_equal(y.numpy().ravel(), maxima)
    np.testing.assert_array_equal(backend.to_host(x.grad).ravel(), gradients)


def test_the_mean_of_a_window_at_the_border():
    """Of the pixels 1 ... 6 with one pixel of padding: with it counted, the first window is (0 + 1 + 2) / 3."""
    x = row(1, 2, 3, 4, 5, 6)
    for count_include_pad, expected in ((False, [1.5, 4]), (True, [1, 4])):
        y = ops.avg_pool2d(x, (1, 3), padding=(0, 1), count_include_pad=count_include_pad)
        assert y.numpy().ravel().tolist() == expected
    assert ops.avg_pool2d(x, (1, 4), padding="same").numpy().ravel().tolist() == [2, 5]


@pytest.mark.parametrize("seed", range(20))
def test_kernels_are_adjoint(seed, backend):
    rng = np.random.default_rng(seed)
    window = tuple(int(n) for n in rng.integers(1, 5, 2))
    size = tuple(int(n) for n in rng.integers(window, 9))
    g = conv_geometry(size, window, tuple(int(n) for n in rng.integers(1, 5, 2)), ["same", "valid"][seed % 2])
    x_shape, y_shape = (2, *size, 3), (2, *g.output_size, 3)
    winners = backend.max_pool(backend.from_host(rng.normal(size=x_shape)), g)[1]
    take, put = backend.take_windows, backend.put_windows
    adjoint_check(lambda v: take(v, winners, g), lambda v: put(v, winners, g), x_shape, y_shape)
    adjoint_check(lambda v: backend.sum_windows(v, g), lambda v: backend.spread_windows(v, g), x_shape, y_shape)


def test_the_mean_of_a_large_window_keeps_its_digits():
    x = np.full((1, 200, 200, 1), 0.1, np.float32)
    found = ops.avg_pool2d(x, 200).item()
    assert abs(found / float(x[0, 0, 0, 0]) - 1) < 20 * 2**-24  # added one after another, it is some 1,000 roundings


def test_a_resized_image_of_one_colour_stays_so():
    x = np.full((1, 7, 5, 1), 0.3)
    for size in (1, 3, 7, 20):
        np.testing.assert_allclose(ops.resize_bilinear(x, size).numpy(), 0.3, rtol=1e-15)


def test_an_image_of_the_same_size_stays_as_it_is():
    x = np.random.default_rng(0).normal(size=(2, 4, 3, 2))
    np.testing.assert_array_equal(ops.resize_bilinear(x, (4, 3)).numpy(), x)
    y = ops.upsample_nearest(x, 1)
    np.testing.assert_array_equal(y.numpy(), x)
    assert not np.shares_memory(y.numpy(), x)


def test_layers_take_lists_and_keep_their_options():
    x = np.random.default_rng(0).normal(size=(1, 6, 4, 2))
    for layer, expected in (
        (nn.MaxPool2D([2, 3], stride=[1, 2], padding=[1, 0]), ops.max_pool2d(x, (2, 3), stride=(1, 2), padding=(1, 0))),
        (nn.AvgPool2D(3, stride=2, padding="same"), ops.avg_pool2d(x, 3, stride=2, padding="same")),
        (nn.AvgPool2D(2, padding=1, count_include_pad=True), ops.avg_pool2d(x, 2, padding=1, count_include_pad=True)),
        (nn.UpSample2D([2, 3]), ops.upsample_nearest(x, (2, 3))),
        (nn.UpSample2D((2, 1), "bilinear"), ops.resize_bilinear(x, (12, 4))),
        (nn.Resize([5, 7]), ops.resize_bilinear(x, (5, 7))),
    ):
        np.testing.assert_array_equal(layer(Tensor(x)).numpy(), expected.numpy())


IMAGES = np.zeros((2, 6, 5, 1))
REFUSED = [
    (lambda: ops.max_pool2d(IMAGES[0], 2), "max_pool2d: x must be (N, H, W, C) (x (6, 5, 1))"),
    (lambda: ops.avg_pool2d(IMAGES, 6), "avg_pool2d: window (6, 6) is larger than the padded input (input (6, 5)"),
    (lambda: ops.max_pool2d(IMAGES, 0), "max_pool2d: window is 0 but must be an int >= 1, or a pair of them"),
    (lambda: ops.max_pool2d(IMAGES, 2, stride=-1), "max_pool2d: stride is -1 but must be an int >= 1"),
    (lambda: ops.max_pool2d(IMAGES, 2, padding="full"), "max_pool2d: padding is 'full' but must be an int >= 0"),
    (
        lambda: ops.avg_pool2d(IMAGES, (4, 3), padding=2),
        "avg_pool2d: padding is 2 but must be at most half",
    ),
    (lambda: ops.max_pool2d(IMAGES[:, :0], 1), "max_pool2d: sizes must be positive (input (0, 5), window (1, 1))"),
    (lambda: ops.upsample_nearest(IMAGES, 1.5), "upsample_nearest: factor is 1.5 but must be an int >= 1"),
    (lambda: ops.upsample_nearest(IMAGES[0], 2), "upsample_nearest: x must be (N, H, W, C) (x (6, 5, 1))"),
    (lambda: ops.resize_bilinear(IMAGES, (3, 0)), "resize_bilinear: size is (3, 0) but must be an int >= 1"),
    (lambda: ops.resize_bilinear(IMAGES[:, :, :0], 3), "resize_bilinear: x has no pixels (x (2, 6, 0, 1))"),
    (lambda: nn.UpSample2D(2, "cubic"), 'UpSample2D: mode is \'cubic\' but must be "nearest" or "bilinear"'),
    (lambda: nn.UpSample2D(0), "factor is 0 but must be an int >= 1"),
]


@pytest.mark.parametrize(("call", "text"), REFUSED, ids=[text for _, text in REFUSED])
def test_refused_with_what_was_expected(call, text):
    with pytest.raises(ValueError, match=re.escape(text)) as error:
        call()
    assert len(str(error.value)) < 300
