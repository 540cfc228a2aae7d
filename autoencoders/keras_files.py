"""Models saved by the original, the Keras program that this project rebuilds: parameters.pkl and weights.h5.

The pickle holds sizes only. It is never unpickled: `read_parameters` accepts only the few opcodes for whole numbers,
tuples and lists. The weights have the same names as our layers. Reading them needs h5py, which the extra `keras`
installs.
"""

from __future__ import annotations

import pickletools
from pathlib import Path
from typing import Any

import numpy as np

from minigrad.serialize import DataError, read_file, require_file

PARAMETERS_FILE, WEIGHTS_FILE = "parameters.pkl", "weights.h5"
LARGEST = 10_000  # bytes of a parameters.pkl; the original's have 62
LONGEST, DEEPEST = 100, 3  # of its tuples: a small file can share them, so that they have 2^40 leaves
NAMES = {"kernel:0": "weight"} | {f"{x}:0": x for x in ("bias", "gamma", "beta", "moving_mean", "moving_variance")}
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


def read_parameters(path: Path, root: Path | None = None) -> dict[str, Any]:
    """The original's constructor arguments, by name. root: as for `require_file`.

    Raises:
        DataError: the file is missing or no regular one, or holds anything but whole numbers in tuples and lists.
    """
    content = read_file(path, root)
    try:
        if len(content) > LARGEST:
            raise ValueError(f"expected at most {LARGEST} bytes, found more")
        stack: list[Any] = []
        memo: dict[int, Any] = {}
        for opcode, argument, _ in pickletools.genops(content):
            name = opcode.name
            if name in ("BININT", "BININT1", "BININT2", "INT", "LONG1") and isinstance(argument, int):
                stack.append(argument)
            elif name == "MARK":
                stack.append(_MARK)
            elif name == "EMPTY_LIST":
                stack.append([])
            elif name in TUPLES:
                start = len(stack) - TUPLES[name]
                stack[start:] = [tuple(stack[start:])]
            elif name in ("TUPLE", "LIST", "APPENDS"):
                start = len(stack) - 1 - stack[::-1].index(_MARK)
                items = stack[start + 1 :]
                stack[start:] = [tuple(items) if name == "TUPLE" else items] if name != "APPENDS" else []
                if name == "APPENDS":
                    stack[-1].extend(items)
            elif name == "APPEND":
                item = stack.pop()
                stack[-1].append(item)
            elif name in ("BINGET", "LONG_BINGET", "GET"):
                stack.append(memo[int(str(argument))])
            elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT"):
                memo[len(memo) if argument is None else int(argument)] = stack[-1]
            elif name not in ("PROTO", "FRAME", "STOP"):
                raise ValueError(f"opcode {name} is not allowed")
        (values,) = stack
        if not _whole(values):
            raise ValueError("something else than whole numbers in short tuples")
        shape, filters, kernels, strides, latent = values
    except Exception as error:  # pickletools raises many types on damaged files
        raise DataError(f"{path}: not the original's parameters ({type(error).__name__}: {error})") from error
    names = ("input_shape", "conv_filters", "conv_kernels", "conv_strides", "latent_space_dim")
    return dict(zip(names, (shape, filters, kernels, strides, latent), strict=True))


def _whole(x: Any, depth: int = DEEPEST) -> bool:
    if isinstance(x, tuple | list):
        return depth > 0 and len(x) <= LONGEST and all(_whole(item, depth - 1) for item in x)
    return isinstance(x, int)


def read_weights(path: Path, root: Path | None = None) -> dict[str, np.ndarray]:
    """The weights by our names, e.g. `encoder_conv_layer_1.weight`. root: as for `require_file`.

    Raises:
        DataError: the file is missing, damaged or no regular one. ImportError: h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f'{path}: reading it needs h5py, which is not installed: pip install ".[keras]"') from error
    found: dict[str, np.ndarray] = {}

    def take(name: str, node: Any) -> None:
        layer, _, weight = name.rpartition("/")
        if not isinstance(node, h5py.Dataset) or weight not in NAMES:
            return
        elsewhere = node.external or node.is_virtual or node.chunks
        if elsewhere or node.dtype.kind != "f" or node.nbytes > path.stat().st_size:
            raise ValueError(f"{name} is not an array of floats in the file itself")
        found[f"{layer.rpartition('/')[2]}.{NAMES[weight]}"] = node[...].astype(np.float32)

    real = require_file(path, root)
    try:
        with h5py.File(real, "r") as file:
            file.visititems(take)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not the original's weights ({error})") from error
    return found
