"""Files of Keras 3: `.keras`, a zip of config.json and an HDF5 file of weights; `.weights.h5`, that HDF5 file alone.

Nothing is made from what a file says, and nothing but the file itself is read: config.json comes as plain data, weights
as arrays by the names of their layers. The names are in files of Keras 3.6 and later. HDF5 needs h5py.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..serialize import MOST_TEXT, DataError, open_file, parse_json

CONFIG, WEIGHTS, METADATA = "config.json", "model.weights.h5", "metadata.json"
VERSION = "3.6.0"  # the first whose weights carry names
Config = dict[str, Any]  # of a layer, as in config.json
EARLIEST = (1980, 1, 1, 0, 0, 0)  # the date of the files, so that equal models are equal files


def read_keras(path: Path) -> tuple[Config, dict[str, list[np.ndarray]]]:
    """(config.json, the weights of each layer by its name) of a `.keras` file.

    Raises:
        DataError: the file is missing, damaged, or no such file. ImportError: h5py is not installed.
    """
    with open_file(path) as (file, size):
        try:
            with zipfile.ZipFile(file) as archive:
                config = parse_json(_member(archive, CONFIG, min(MOST_TEXT, size)))
                content = _member(archive, WEIGHTS, size)
            if not isinstance(config, dict):
                raise TypeError(f"{CONFIG}: expected an object, found {type(config).__name__}")
        except Exception as error:  # damaged ones raise many types
            raise DataError(f"{path}: not a .keras file, or damaged ({error})") from error
    return config, _weights(io.BytesIO(content), len(content), path)


def read_keras_weights(path: Path) -> dict[str, list[np.ndarray]]:
    """The weights of each layer by its name, from a `.weights.h5` file; errors as for `read_keras`.

    The weights of a layer are in Keras' order, for example kernel and bias.
    """
    with open_file(path) as (file, size):
        return _weights(file, size, path)


def _member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """The content of a file in the zip. Its check sum is tested. A compressed one is refused, as it could unpack to any
    size, whatever size it states."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise ValueError(f"{name} is compressed, but Keras stores it as it is")
    if info.file_size > most:
        raise ValueError(f"{name}: expected at most {most:,} bytes, found {info.file_size:,}")
    return archive.read(info)


def _weights(file: Any, size: int, path: Path) -> dict[str, list[np.ndarray]]:
    """The weights in an open HDF5 file of that size. Links to other places are not followed."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f'{path}: reading it needs h5py, which is not installed: pip install ".[keras]"') from error
    found: dict[str, list[np.ndarray]] = {}
    left = size

    def name_of(group: Any) -> str | None:
        """A text alone: an array of texts, which can be many for one in the file, is not even read."""
        stored = group.attrs.get_id("name") if "name" in group.attrs else None
        if stored is None or stored.shape != () or h5py.check_string_dtype(stored.dtype) is None:
            return None
        name = group.attrs["name"]
        return name if isinstance(name, str) else None

    def take(place: str, group: Any) -> None:
        nonlocal left
        if not isinstance(group, h5py.Group) or place.rpartition("/")[2] != "vars" or place.startswith("optimizer"):
            return
        links = [group.get(str(i), getlink=True) for i in range(len(group))]
        if not links:
            return
        name = name_of(group)
        if name is None or name in found or not all(isinstance(x, h5py.HardLink) for x in links):
            raise ValueError(f"{place} is not the weights of a layer with a name of its own, as Keras {VERSION} saves")
        found[name] = []
        for i in range(len(links)):
            node = group[str(i)]
            elsewhere = not isinstance(node, h5py.Dataset) or node.external or node.is_virtual or node.chunks
            if elsewhere or node.dtype not in ("float32", "float64") or node.nbytes > left:
                raise ValueError(f"{place}/{i} is not an array of float32 in the file itself")
            left -= node.nbytes
            found[name].append(node[...])

    try:
        with h5py.File(file, "r") as opened:
            opened.visititems(take)
    except Exception as error:  # damaged ones raise many types
        raise DataError(f"{path}: not weights of Keras {VERSION} or later, or damaged ({error})") from error
    return found


# ---- writing ----


class Place(NamedTuple):
    """A tensor of a functional model: output `number` of a layer, and its shape without the batch axis."""

    layer: str
    shape: tuple[int, ...]
    number: int = 0

    @property
    def key(self) -> list[Any]:
        """How the file refers to it."""
        return [self.layer, 0, self.number]


class Functional:
    """A functional model as Keras describes it, made layer by layer."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.layers: list[Config] = []
        self.inputs: list[Place] = []

    def input(self, name: str, shape: tuple[int, ...]) -> Place:
        """An input layer."""
        config = {"batch_shape": [None, *shape], "dtype": "float32", "sparse": False, "name": name}
        self._append("InputLayer", config, [])
        self.inputs.append(Place(name, shape))
        return self.inputs[-1]

    def add(self, kind: str, name: str, sources: list[Place], shape: tuple[int, ...], **options: Any) -> Place:
        """A layer that is applied to the sources; its output has this shape."""
        self._append(kind, {"name": name, "trainable": True, "dtype": "float32", **options}, sources)
        return Place(name, shape)

    def part(self, model: Functional, sources: list[Place], outputs: list[Place]) -> list[Place]:
        """Another functional model as a layer."""
        self.layers.append({**model.config(outputs), "name": model.name, "inbound_nodes": [_call(sources)]})
        return [Place(model.name, x.shape, i) for i, x in enumerate(outputs)]

    def config(self, outputs: list[Place]) -> Config:
        """The whole model, as in config.json."""
        ends = {"input_layers": _keys(self.inputs), "output_layers": _keys(outputs)}
        config = {"name": self.name, "trainable": True, "layers": self.layers, **ends}
        return {
            "module": "keras.src.models.functional",
            "class_name": "Functional",
            "config": config,
            "registered_name": "Functional",
        }

    def _append(self, kind: str, config: Config, sources: list[Place]) -> None:
        layer = {"module": "keras.layers", "class_name": kind, "config": config, "registered_name": None}
        self.layers.append({**layer, "name": config["name"], "inbound_nodes": [_call(sources)] if sources else []})


def _keys(places: list[Place]) -> list[Any]:
    return places[0].key if len(places) == 1 else [place.key for place in places]


def _call(sources: list[Place]) -> Config:
    """How a layer is called on its sources, one tensor or a list of them."""
    tensors = [
        {
            "class_name": "__keras_tensor__",
            "config": {"shape": [None, *x.shape], "dtype": "float32", "keras_history": x.key},
        }
        for x in sources
    ]
    return {"args": tensors if len(tensors) == 1 else [tensors], "kwargs": {}}


def keras_content(config: Config, weights: dict[str, list[np.ndarray]]) -> bytes:
    """The content of a `.keras` file: config, that of a `Functional`, with the weights of its layers by their names.

    Raises:
        ImportError: h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError('keras_content: needs h5py, which is not installed: pip install ".[keras]"') from error
    content, archived = io.BytesIO(), io.BytesIO()
    with h5py.File(content, "w") as file:
        for place, name in _places(config, ""):
            for i, x in enumerate(weights.get(name, ())):
                file.create_dataset(f"{place}/vars/{i}", data=x)
            if name in weights:
                file[f"{place}/vars"].attrs["name"] = name
    metadata = {"keras_version": VERSION, "date_saved": "1980-01-01@00:00:00"}
    with zipfile.ZipFile(archived, "w") as archive:
        for name, text in ((METADATA, metadata), (CONFIG, config)):
            archive.writestr(zipfile.ZipInfo(name, EARLIEST), json.dumps(text))
        archive.writestr(zipfile.ZipInfo(WEIGHTS, EARLIEST), content.getvalue())
    return archived.getvalue()


def _places(config: Config, above: str) -> Iterator[tuple[str, str]]:
    """(where Keras keeps its weights, its name) of each layer: the class with a number, in the order of the layers."""
    counts: dict[str, int] = {}
    for layer in config["config"]["layers"]:
        kind = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=.)(?=[A-Z][a-z])", "_", layer["class_name"]).lower()
        number = counts[kind] = counts.get(kind, -1) + 1
        place = f"{above}layers/{kind}" + (f"_{number}" if number else "")
        yield place, layer["config"]["name"]
        if "layers" in layer["config"]:
            yield from _places(layer, f"{place}/")
