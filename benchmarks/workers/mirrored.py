"""The model's arrays for PyTorch, which has (N, C, H, W) images and symmetric padding.

At stride 2 "same" padding puts its odd zero at the bottom and right, which PyTorch can do only by copying the image
into a larger one. The mirrored problem has it at the top and left: padding 1 reads the same numbers, because the
zeros at the other side meet no window. So images and kernels are flipped in H and W, and the features of the dense
layers are put in the order that follows. The losses are the same, and nobody pays for a convention.
"""

from __future__ import annotations

import math

import numpy as np
from protocol import Arrays, Spec, encoded_shape


def check_sizes(spec: Spec) -> None:
    """Raise ValueError unless mirroring makes "same" padding symmetric."""
    divisible = all(side % math.prod(spec["conv_strides"]) == 0 for side in spec["input_shape"][:2])
    if not divisible or max(spec["conv_strides"]) > 2 or any(kernel % 2 == 0 for kernel in spec["conv_kernels"]):
        raise ValueError(
            f"the mirrored problem needs odd kernels, strides 1 and 2, and sides that they divide, found {spec}"
        )


def mirrored_images(images: np.ndarray) -> np.ndarray:
    """(N, H, W, C) -> (N, C, H, W), flipped."""
    return np.ascontiguousarray(images[:, ::-1, ::-1].transpose(0, 3, 1, 2))


def mirrored_back(images: np.ndarray) -> np.ndarray:
    """The inverse of mirrored_images."""
    return images.transpose(0, 2, 3, 1)[:, ::-1, ::-1]


def mirrored_weights(arrays: Arrays, spec: Spec, channels_last: bool = False) -> Arrays:
    """Weights by the same names: convolutions (F, C, KH, KW), transposed ones (in, out, KH, KW), dense (out, in).

    channels_last: the flattened features keep the order (H, W, C).
    """
    order = (0, 1, 2) if channels_last else (2, 0, 1)

    def reordered(x: np.ndarray) -> np.ndarray:
        """The features on the last axis, mirrored."""
        x = x.reshape(-1, *encoded_shape(spec))[:, ::-1, ::-1]
        return x.transpose(0, *(1 + axis for axis in order)).reshape(len(x), -1)

    found = {}
    for name, x in arrays.items():
        if x.ndim == 4 and name.endswith(".weight"):
            x = x[::-1, ::-1].transpose(3, 2, 0, 1)
        elif name == "decoder_dense.weight":
            x = reordered(x).T
        elif name == "decoder_dense.bias":
            x = reordered(x)[0]
        elif name.endswith(".weight"):
            x = reordered(x.T)
        found[name] = np.ascontiguousarray(x)
    return found
