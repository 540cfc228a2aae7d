"""Models as files of other programs: ONNX, PyTorch and Keras 3."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minigrad import Tensor, ops
from minigrad.interop import Classes, to_onnx
from minigrad.serialize import DataError, write_atomically

from .conv_autoencoder import Autoencoder
from .keras3_files import keras3_content
from .layers import append
from .saved import check_finite
from .torch_files import exchanged_config, torch_contents

FILES = {
    "onnx": ("encoder.onnx", "decoder.onnx", "autoencoder.onnx"),
    "torch": ("autoencoder.py", "autoencoder.safetensors"),
    "keras": ("autoencoder.keras",),
}


def export(model: Autoencoder, format: str, folder: str | Path, *, overwrite: bool = False) -> list[Path]:
    """Write a model for another program; returns the paths of the files.

    - "onnx": encoder, decoder and the whole round trip, in float32. Images (N, H, W, C) in and out, as here.
    - "torch": autoencoder.py, the equal module of PyTorch, and its weights in autoencoder.safetensors.
    - "keras": autoencoder.keras, a functional model with the parts "encoder" and "decoder".

    The likelihood's variance and the state of the optimiser are not among them. All contents are made before the first
    file is written.

    Raises:
        FileExistsError: a file is there already, and overwrite is False.
        DivergedError: a weight is not finite. DataError: a file cannot be written, or not hold the variance.
        ValueError: another format. ImportError: the extra of the format is not installed.
    """
    if format not in FILES:
        raise ValueError(f"export: format is {format!r} but must be one of {', '.join(FILES)}")
    folder = Path(folder)
    paths = [folder / name for name in FILES[format]]
    for path in paths:
        if os.path.lexists(path) and not overwrite:
            raise FileExistsError(f"{path} exists; use --overwrite to replace it (overwrite=True), or another folder")
        if path.is_dir() and not path.is_symlink():
            raise DataError(f"{path}: expected a file or none, found a folder; move it, or choose another folder")
    check_finite(model.network.state_dict(), "export")
    contents = CONTENTS[format](model)
    for path, content in zip(paths, contents, strict=True):
        write_atomically(path, content)
    return paths


def _onnx(model: Autoencoder, part: str) -> bytes:
    """One of the three files."""

    def encode(images: Tensor, *labels: Tensor) -> tuple[Tensor, ...]:
        features = append(model.encoder(images), *labels or (None,))
        return tuple(head(features) for head in model.heads.values())

    def decode(latents: Tensor, *labels: Tensor) -> Tensor:
        return ops.sigmoid(model.decoder(append(latents, *labels or (None,))))

    def reconstruct(images: Tensor, *labels: Tensor) -> tuple[Tensor, Tensor]:
        latents = encode(images, *labels)[0]
        return decode(latents, *labels), latents

    heads = ["latents" if name == "encoder_output" else name for name in model.heads]
    function: Any
    function, source, outputs = {
        "encoder": (encode, "images", heads),
        "decoder": (decode, "latents", ["images"]),
        "autoencoder": (reconstruct, "images", ["reconstructed", "latents"]),
    }[part]
    inputs: dict[str, Any] = {source: model.input_shape if source == "images" else (model.latent_space_dim,)}
    if model.classes:
        inputs["labels"] = Classes(model.classes)
    metadata = {"config": json.dumps(exchanged_config(model))}
    return to_onnx(function, inputs, outputs, weights=model.network, metadata=metadata)


CONTENTS: dict[str, Callable[[Autoencoder], list[bytes]]] = {
    "onnx": lambda model: [_onnx(model, part) for part in ("encoder", "decoder", "autoencoder")],
    "torch": torch_contents,
    "keras": lambda model: [keras3_content(model)],
}
