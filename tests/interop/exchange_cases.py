"""The models that are given to other programs, with weights that matter and images."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from autoencoders import VAE, Autoencoder
from minigrad.random import generator

MODELS: dict[str, tuple[type[Autoencoder], tuple[Any, ...], dict[str, Any]]] = {
    "ae": (Autoencoder, ((28, 28, 1), (8, 16, 16, 16), (3, 3, 3, 3), (1, 2, 2, 1), 2), {}),
    "vae": (VAE, ((28, 28, 1), (8, 16, 16, 16), (3, 3, 3, 3), (1, 2, 2, 1), 2), {}),
    "cvae": (VAE, ((28, 28, 1), (8, 16), (3, 3), (2, 2), 5), {"classes": 10, "class_names": tuple("0123456'\"9")}),
    "odd": (VAE, ((27, 31, 1), (6, 7, 5), (3, (5, 4), (2, 3)), (2, (3, 2), 1), 3), {"log_variance_bounds": None}),
    "colour": (Autoencoder, ((33, 30, 3), (8, 12), (5, 3), (2, 2), 4), {}),
    "wide_stride": (VAE, ((29, 26, 2), (5, 6), ((2, 1), (3, 3)), (3, (2, 4)), 3), {"likelihood": "gaussian-learned"}),
    "cvae_odd": (VAE, ((13, 9, 3), (4, 6, 5), (3, 4, 3), (2, 2, 2), 2), {"classes": 4, "likelihood": "gaussian"}),
    "hidden": (VAE, ((13, 10, 1), (4, 6), (3, 3), (2, 2), 3), {"hidden": 7, "classes": 4}),
    "ae_hidden": (Autoencoder, ((8, 8, 3), (4,), (3,), (2,), 2), {"hidden": 5}),
    "one": (Autoencoder, ((5, 4, 1), (3,), (2,), (1,), 1), {}),
}
LATENTS = 1e-5  # relative to the largest
IMAGES = 5e-6


@cache
def model_of(name: str) -> Autoencoder:
    """The model, not to be changed."""
    cls, arguments, options = MODELS[name]
    model = cls(*arguments, **options, momentum=0.8, seed=3)
    rng = generator(3, name)
    for key, x in model.network.named_tensors():
        if key.endswith(("bias", "beta", "mean")):
            x.data[...] = 0.2 * rng.standard_normal(x.shape)
        elif key.endswith(("gamma", "moving_variance")):
            x.data[...] = rng.uniform(0.5, 2, x.shape)
        elif key == "log_variance.weight":  # beyond the bounds, too
            x.data[...] *= 20
        elif key.startswith("likelihood"):
            x.data[...] = -1.234
    return model


def images_of(name: str, count: int = 12) -> tuple[np.ndarray, np.ndarray | None]:
    """(images, labels or None)."""
    model, rng = model_of(name), generator(4, name)
    images = rng.random((count, *model.input_shape), dtype=np.float32)
    return images, rng.integers(0, model.classes, count) if model.classes else None


def expected_of(name: str, images: np.ndarray, labels: np.ndarray | None) -> tuple[list[np.ndarray], np.ndarray]:
    """(what the heads give, the images of the latents)."""
    model = model_of(name)
    vae = isinstance(model, VAE)
    heads = model.encode_distribution(images, labels=labels) if vae else [model.encode(images, labels=labels)]
    return list(heads), model.decode(heads[0], labels=labels)


def assert_heads(found: Any, heads: list[np.ndarray]) -> None:
    assert len(found) == len(heads)
    for x, y in zip(found, heads, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=LATENTS * np.abs(y).max())


def assert_images(found: Any, images: np.ndarray) -> None:
    np.testing.assert_allclose(found, images, rtol=0, atol=IMAGES)


def assert_equal(a: Autoencoder, b: Autoencoder) -> None:
    """No bit of a weight differs."""
    ours, theirs = a.network.state_dict(), b.network.state_dict()
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        assert (x.dtype, x.shape, x.tobytes()) == (theirs[name].dtype, theirs[name].shape, theirs[name].tobytes()), name
