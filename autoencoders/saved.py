"""Where a saved model lies, and what its file holds."""

from __future__ import annotations

import glob
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minigrad import nn
from minigrad.interop.torch import from_torch_state
from minigrad.serialize import DataError, is_state_file, load_state, read_safetensors

from .keras3_files import read_keras3, read_keras3_weights
from .keras_files import PARAMETERS_FILE, WEIGHTS_FILE, read_parameters, read_weights
from .network import network_for, pair
from .shipped import other_than
from .torch_files import config_of, exchanged_layers, with_likelihood
from .training import DivergedError, Progress, latest_checkpoint, load_checkpoint
from .training.checkpoints import CHECKPOINTS, MOMENT

MODEL_FILE = "model.safetensors"
SUFFIXES = (".keras", ".h5", ".safetensors")
OTHERS = {"latent_space_dim": None, "hidden": None, "classes": 0}  # sizes besides those of the convolutions
PICKLES = (".pt", ".pth", ".bin", ".ckpt")  # what PyTorch users call them


def folder_of(path: str | Path) -> Path:
    """The folder of a model or run, from its path or that of a model or checkpoint in it."""
    path = Path(path)
    if not path.is_file() and path.name != MODEL_FILE:
        return path
    return path.parent.parent if path.parent.name == "checkpoints" else path.parent


def source_of(path: str | Path, tell: Callable[[str], None] = print) -> Path:
    """The file that `load` reads for a path. tell is called with a message if it is a checkpoint, for lack of a model.

    Raises:
        DataError: there is none, or no valid checkpoint.
    """
    path = Path(path)
    if path.is_file():
        return path.with_name(WEIGHTS_FILE) if path.name == PARAMETERS_FILE else path
    if path.suffix in SUFFIXES and path.name not in (MODEL_FILE, WEIGHTS_FILE) and not path.exists():
        raise DataError(f"{path}: no such file; {models_near(path.parent)}")
    path = folder_of(path)
    if (path / MODEL_FILE).exists():
        return path / MODEL_FILE
    if (path / PARAMETERS_FILE).exists():
        return path / WEIGHTS_FILE
    if not latest_checkpoint(path):
        raise DataError(f"{path / MODEL_FILE}: there is no such model; {models_near(path)}{other_than(path)}")
    _, record, source = load_checkpoint(path, tell)
    try:
        when = f"{Progress(**record['progress']).place} of {record['options']['epochs']}"
    except (KeyError, TypeError) as error:
        raise DataError(f"{source}: not a checkpoint of this version ({type(error).__name__}: {error})") from error
    tell(f"there is no finished model; using {source.relative_to(path)}, {when}")
    return source


def models_near(path: Path, names: tuple[str, ...] = (MODEL_FILE, CHECKPOINTS)) -> str:
    """What to do about a folder without a model: which ones in it or beside it have some, the newest first, or how one
    is made."""
    inside, beside = glob.escape(str(path)), glob.escape(str(path.parent))
    folders = [f"{inside}/*", f"{inside}/*/*", beside, f"{beside}/*", *([] if path.is_absolute() else ["*", "*/*"])]
    files = [file for folder in folders for name in names for file in glob.glob(f"{folder}/{name}")]
    files = sorted(filter(os.path.isfile, files), key=os.path.getmtime, reverse=True)
    found = list(dict.fromkeys(str(folder_of(file)) for file in files))
    if not found:
        return f"autoencoders train --out {shlex.quote(str(path))} makes one"
    return f"there is one in {', '.join(found[:3])}{', ...' if len(found) > 3 else ''}"


def read_saved(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(weights, record) of the file of `source_of`; the record holds the model's configuration and its steps, and the
    `program` that has written the file if that is another one. `put_weights` takes both.

    Raises:
        DataError: it is missing, damaged, or no model.
    """
    folder = folder_of(path)
    if path.name == WEIGHTS_FILE or path.name.endswith(f".{WEIGHTS_FILE}"):
        original = path.name == WEIGHTS_FILE
        arrays = read_weights(path, folder) if original else read_keras3_weights(path)
        record: dict[str, Any] = {} if original else {"program": "keras"}
        if original or path.with_name(PARAMETERS_FILE).exists():
            parameters = read_parameters(path.with_name(PARAMETERS_FILE), folder)
            record["model"] = {"kind": "vae" if "mu.weight" in arrays else "ae", **parameters}
        return arrays, record
    if path.suffix == ".keras":
        arrays, model = read_keras3(path)
        return arrays, {"program": "keras", "model": model}
    if path.suffix in PICKLES:
        raise DataError(
            f"{path}: a pickle can run code, so it is not read; in PyTorch, "
            "safetensors.torch.save_file(model.state_dict(), path) writes what is read here"
        )
    own = path.name == MODEL_FILE or folder != path.parent  # and no file that may be a link
    root = folder if own else None
    if path.suffix == ".safetensors" and path.is_file() and not is_state_file(path, root):
        arrays, metadata = read_safetensors(path, root)
        return arrays, {"program": "torch", **config_of(metadata, path)}
    try:
        arrays, record, _ = load_state(path, root)
    except DataError as error:
        hint = "a run's folder or its model.safetensors will do"
        if own and path.is_file() and latest_checkpoint(folder):
            hint = f"autoencoders train --out {shlex.quote(str(folder))} --resume saves it again"
        elif own:
            hint = "replace it with an undamaged file, or train again with --overwrite"
        raise DataError(f"{error}; {hint}") from error
    if record.get("kind", "checkpoint") != "checkpoint":
        raise DataError(f"{path}: expected a model, found a {record['kind']}")
    return {name: x for name, x in arrays.items() if not name.startswith(MOMENT)}, record


def check_finite(arrays: dict[str, np.ndarray], action: str) -> None:
    """Raise DivergedError before an action that would write an array that is not finite."""
    if name := next((name for name, x in arrays.items() if not np.isfinite(x).all()), ""):
        raise DivergedError(f"{action}: {name} is not finite; nothing was written")


def check_architecture(model: dict[str, Any], recorded: dict[str, Any]) -> None:
    """Compare the configuration of a model with the one in a file. Weights can fit a model that computes something
    else, for example with other strides.

    Raises:
        ValueError: they differ in the architecture, or the file's is none. TypeError, AttributeError: it is none.
    """
    ours, theirs = map(_architecture, (model, recorded))
    for name, size in ours.items():
        if theirs[name] != size:
            raise ValueError(f"{name} is {theirs[name]!s:.99} in the file but {size} in the model")


def _architecture(config: dict[str, Any]) -> dict[str, Any]:
    """What decides what the weights compute, each in one form."""
    names = ("input_shape", "conv_filters", "conv_kernels", "conv_strides")
    filters, kernels, strides = network_for(*(config.get(name) for name in names))  # type: ignore[arg-type]
    sizes = tuple(config["input_shape"]), tuple(filters), tuple(map(pair, kernels)), tuple(map(pair, strides))
    others = {name: config.get(name, default) for name, default in OTHERS.items()}
    return {**dict(zip(names, sizes, strict=True)), **others}


def put_weights(network: nn.Sequential, arrays: dict[str, np.ndarray], record: dict[str, Any]) -> None:
    """Set the weights of a model from what `read_saved` gives.

    Raises:
        ValueError: they do not fit, or those of another program are not finite, or are variances below 0.
    """
    for name, x in arrays.items() if "program" in record else ():
        if not np.isfinite(x).all():
            raise ValueError(f"{name} is not finite; save the model before it diverged, or train it again")
        if name.endswith(("moving_variance", "running_var")) and (x < 0).any():
            raise ValueError(f"{name} is a variance, but holds a number below 0")
    if record.get("program") == "torch":
        arrays = from_torch_state(arrays, exchanged_layers(network))
    network.load_state_dict(with_likelihood(arrays, network) if "program" in record else arrays)
