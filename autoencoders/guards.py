"""Checks of the arguments of the models' methods, with error messages that say what to change."""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad.serialize import DataError

from .data.dataset import as_data_error, class_labels, did_you_mean, value_fault

# What other libraries call methods and arguments, and what they are here
ELSEWHERE = {
    "fit": "train(images, batch_size, num_epochs)",
    "predict": "reconstruct(images)",
    "forward": "reconstruct(images)",
    "generate": "sample(count)",
    "parameters": "network.parameters()",
    "layers": "network.layers",
    "state_dict": "network.state_dict()",
    "load_state_dict": "network.load_state_dict(state)",
    "save_weights": "save(folder)",
    "lr": "learning_rate, an argument of compile",
    "learning_rate": "learning_rate, an argument of compile",
    "epochs": "num_epochs",
    "validation_split": "validation",
    "validation_data": "validation, a count or share of the images",
    "verbose": "progress",
}


def refuse(where: str, given: dict[str, Any], known: set[str] | None = None) -> None:
    """Raise TypeError for an argument that is not known, with what it is called here."""
    for name in given.keys() - (known or set()):
        hint = f"; use {ELSEWHERE[name]}" if name in ELSEWHERE else did_you_mean(name, known or ["learning_rate"])
        raise TypeError(f"{where}: unknown argument {name!r}{hint}")


def check_count(count: Any) -> int:
    """How many samples to draw.

    Raises:
        DataError: not a whole number, or below 1.
    """
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
        raise DataError(f"sample: count is {count!s:.99} but must be a whole number >= 1")
    return int(count)


def check_images(images: Any, input_shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """The images as uint8 or as floats of that dtype in [0, 1].

    Raises:
        DataError: wrong shape, dtype or range, not finite, or none at all.
    """
    with as_data_error("images"):
        images = np.asanyarray(images)  # a masked array stays one, to be refused
    H, W, C = input_shape
    if images.ndim != 4 or images.shape[1:] != input_shape:
        mends = {
            (H, W): "; add the channel axis with images[..., None]",
            (C, H, W): "; images.transpose(0, 2, 3, 1) brings the channels last",
            (H * W * C,): f"; images.reshape(-1, {H}, {W}, {C}) makes images of the rows",
        }
        mend = "; images[None] makes one image a batch" if images.shape == input_shape else ""
        mend = mend or mends.get(images.shape[1:], "")
        raise DataError(f"images: expected (N, {H}, {W}, {C}), found {images.shape}{mend}")
    if not len(images):
        raise DataError("images: there are none")
    if fault := value_fault(images):
        raise DataError(f"images: {fault}")
    if images.dtype == np.uint8:
        return images
    with np.errstate(all="ignore"):
        images = images.astype(dtype, copy=False)
    return images if images.min() >= 0 and images.max() <= 1 else images.clip(0, 1)  # after rounding


def one_hot(labels: Any, count: int, classes: int, dtype: Any) -> np.ndarray:
    """Labels of `count` images as rows of 0 and 1, (count, classes).

    Raises:
        DataError: there are no labels, not one for each image, or they lie outside 0 ... classes - 1.
    """
    if labels is None:
        raise DataError(f"labels: a conditional model needs the class of each image, 0 to {classes - 1}")
    labels = class_labels(labels, count)
    wrong = labels[labels >= classes]
    if len(wrong):
        raise DataError(f"labels: expected 0 to {classes - 1}, found {wrong[0]}")
    return (labels[:, None] == np.arange(classes)).astype(dtype)


def check_latents(latents: Any, size: int, dtype: Any) -> np.ndarray:
    """Latents (N, size) as floats of that dtype.

    Raises:
        DataError: another shape, not numbers, or not finite.
    """
    latents = np.asanyarray(latents)
    if np.ma.isMaskedArray(latents):
        raise DataError("latents: expected a plain array, found a masked one; latents.filled(0) makes a plain one")
    if latents.ndim != 2 or latents.shape[1] != size or not len(latents):
        raise DataError(f"latents: expected (N, {size}) with N >= 1, found {latents.shape}")
    if latents.dtype.kind not in "iuf":
        raise DataError(f"latents: expected real numbers, found {latents.dtype}")
    with np.errstate(all="ignore"):
        latents = latents.astype(dtype)  # _map would divide uint8 by 255
    if not np.isfinite(latents).all():
        raise DataError("latents: expected finite numbers, found NaN or infinity")
    return latents
