"""Pooling and resizing: hard inputs, and what is refused. test_ops.py has values and gradients."""

from __future__ import annotations

import numpy as np
import pytest

from minigrad import Tensor, nn, ops

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


def test_the_mean_of_a_large_window_keeps_its_digits():
    x = np.full((1, 200, 200, 1), 0.1, np.float32)
    found = ops.avg_pool2d(x, 200).item()
    assert abs(found / float(x[0, 0, 0, 0]) - 1) < 20 * 2**-24  # added one after another, it is some 1,000 roundings


def test_an_image_of_the_same_size_is_a_copy():
    x = np.random.default_rng(0).normal(size=(2, 4, 3, 2))
    for y in (ops.resize_bilinear(x, (4, 3)).numpy(), ops.upsample_nearest(x, 1).numpy()):
        np.testing.assert_array_equal(y, x)
        assert not np.shares_memory(y, x)


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
