"""New images and latents as files for other programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from minigrad.serialize import DataError, numbered, write_atomically

from ..conv_autoencoder import VAE, Autoencoder
from ..data import Dataset
from ..training.folder import check_writable


def save_singles(images: np.ndarray, labels: np.ndarray | None, folder: Path, kind: str) -> Path:
    """Write images (N, H, W, C) in [0, 1], each as folder/samples/<number>.png, or all with their labels as
    folder/samples.npz; returns the path. Numbered files of an earlier call are deleted.

    Raises:
        DataError: they cannot be written.
    """
    values = np.round(255 * images).astype(np.uint8)
    if kind == "npz":
        buffer = io.BytesIO()
        np.savez(buffer, images=values) if labels is None else np.savez(buffer, images=values, labels=labels)
        write_atomically(folder / "samples.npz", buffer.getvalue())
        return folder / "samples.npz"
    check_writable(folder / "samples")
    try:
        pictures = [Image.fromarray(image if image.shape[2] > 1 else image[..., 0]) for image in values]
        for path in numbered(folder, "samples/*.png"):
            path.unlink()
        for i, picture in enumerate(pictures, 1):
            picture.save(folder / "samples" / f"{i:04d}.png")
    except (OSError, TypeError) as error:  # Pillow has no type for two or five channels
        raise DataError(f"{folder / 'samples'}: cannot be written: {error}; try --format npz") from error
    return folder / "samples"


def save_latents(model: Autoencoder, dataset: Dataset, parts: Sequence[str], split: bool, path: Path) -> str:
    """Write the latents of the given parts, train or test images or both, to a .csv or .npz file, one row per image.
    Returns a text that names the file and its columns.

    The columns are: part, `train` or `test`, if split is True or an index occurs in both parts; path of the image's
    file, or index of the image in its array, from 0; label, and class (its name), if there are any; and z1 to zZ, for a
    VAE the means. An .npz file has z (N, Z), and for a VAE also log_variance.

    Raises:
        DataError: the file cannot be written.
    """
    tables = []
    for part in parts:
        images, labels, names = (getattr(dataset, f"{part}_{what}") for what in ("images", "labels", "names"))
        names = np.arange(len(images)) if names is None else names
        table = {"part": np.full(len(images), part), "path" if names.dtype.kind == "U" else "index": names}
        table["label"] = labels
        if dataset.class_names and labels is not None:
            table["class"] = np.array(dataset.class_names)[labels]
        if isinstance(model, VAE):
            table["z"], table["log_variance"] = model.encode_distribution(images, labels=labels)
        else:
            table["z"] = model.encode(images)
        tables.append(table)
    given = [name for name in tables[0] if all(table.get(name) is not None for table in tables)]
    arrays: dict[str, Any] = {name: np.concatenate([table[name] for table in tables]) for name in given}
    place = arrays[given[1]]
    if not split and len(np.unique(place)) == len(place):  # they are one pool of images, in the order of its files
        arrays = {name: values[np.argsort(place)] for name, values in arrays.items() if name != "part"}
    if path.suffix.lower() == ".npz":
        columns = list(arrays)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        content = buffer.getvalue()
    else:
        z = {f"z{i}": column for i, column in enumerate(arrays["z"].T, 1)}
        shown = {name: values for name, values in arrays.items() if name not in ("z", "log_variance")} | z
        columns = [*list(shown)[: -len(z)], "z1" + f" to z{len(z)}" * (len(z) > 1)]
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows([shown, *zip(*shown.values(), strict=True)])
        content = text.getvalue().encode()
    write_atomically(path, content)
    means = " (means)" if isinstance(model, VAE) else ""
    return f"the latents{means} of {len(place):,} images to {path}: {', '.join(columns)}"
