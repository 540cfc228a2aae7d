"""Where a saved model lies, and what its file holds."""

from __future__ import annotations

import glob
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minigrad.serialize import DataError, load_state

from .keras_files import PARAMETERS_FILE, WEIGHTS_FILE, read_parameters, read_weights
from .training import Progress, latest_checkpoint, load_checkpoint
from .training.checkpoints import CHECKPOINTS, MOMENT

MODEL_FILE = "model.safetensors"


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
    path = folder_of(path)
    if (path / MODEL_FILE).exists():
        return path / MODEL_FILE
    if (path / PARAMETERS_FILE).exists():
        return path / WEIGHTS_FILE
    if not latest_checkpoint(path):
        raise DataError(f"{path / MODEL_FILE}: there is no such model; {models_near(path)}")
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
    """(weights, record) of the file of `source_of`; the record holds the model's configuration and its steps.

    Raises:
        DataError: it is missing, damaged, or no model.
    """
    folder = folder_of(path)
    if path.name == WEIGHTS_FILE:
        arrays = read_weights(path, folder)
        parameters = read_parameters(path.with_name(PARAMETERS_FILE), folder)
        return arrays, {"model": {"kind": "vae" if "mu.weight" in arrays else "ae", **parameters}}
    own = path.name == MODEL_FILE or folder != path.parent  # and no file that may be a link
    try:
        arrays, record, _ = load_state(path, folder if own else None)
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
