"""Initial values of parameters.

Every initialiser is called as `initializer(rng, shape, fan_in, fan_out)` and returns a float64 NumPy array.
fan_in is the number of inputs that one output value sums over, fan_out the number of outputs that one input
value goes to: for Dense (D, F) these are D and F, for Conv2D (KH, KW, C, F) KH*KW*C and KH*KW*F, and for
Conv2DTranspose, whose weight is (KH, KW, out, in), KH*KW*in and KH*KW*out. Strides are not counted, nor in fan_out
groups, as in Keras and PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Initializer = Callable[[np.random.Generator, tuple[int, ...], int, int], np.ndarray]


def zeros(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int, fan_out: int) -> np.ndarray:
    """All 0."""
    return np.zeros(shape)


def ones(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int, fan_out: int) -> np.ndarray:
    """All 1."""
    return np.ones(shape)


def glorot_uniform(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int, fan_out: int) -> np.ndarray:
    """Uniform in +-sqrt(6 / (fan_in + fan_out)): variance 2 / (fan_in + fan_out). Keras' default.

    Source: Glorot and Bengio, Understanding the difficulty of training deep feedforward networks, 2010, eq. 16.
    """
    limit = np.sqrt(6 / (fan_in + fan_out))
    return rng.uniform(-limit, limit, shape)


def glorot_normal(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int, fan_out: int) -> np.ndarray:
    """Normal with variance 2 / (fan_in + fan_out) (not truncated)."""
    return rng.normal(0, np.sqrt(2 / (fan_in + fan_out)), shape)


def he_uniform(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int, fan_out: int) -> np.ndarray:
    """Uniform in +-sqrt(6 / fan_in): variance 2 / fan_in."""
    limit = np.sqrt(6 / fan_in)
    return rng.uniform(-limit, limit, shape)


def he_normal(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int, fan_out: int) -> np.ndarray:
    """Normal with variance 2 / fan_in (not truncated), which keeps the scale of activations through ReLU layers.

    Source: He et al., Delving Deep into Rectifiers, 2015, eq. 10.
    """
    return rng.normal(0, np.sqrt(2 / fan_in), shape)
