"""The trained models that come with the package: their names, and their folders, compared with what was shipped.

models/NAME looks like the folder of a finished run (model.safetensors, run.json, history.jsonl) and also holds the
model's card (README.md), the results that the card shows (quality.json) and a picture. models/index.json holds the
SHA-256 of each file. benchmarks/ship.py makes all of this.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from minigrad.serialize import DataError, parse_json, read_file

MODELS = Path(__file__).with_name("models")
INDEX_FILE = "index.json"


def shipped() -> list[str]:
    """The names of the trained models that come with the package."""
    return sorted(folder.name for folder in MODELS.glob("*") if folder.is_dir())


def shipped_folder(name: str) -> Path:
    """The folder of the model of this name that comes with the package.

    Raises:
        DataError: a file of it is missing, or is not the file that was shipped.
    """
    index = MODELS / INDEX_FILE
    try:
        digests = parse_json(read_file(index, MODELS))[name].items()
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{index}: does not list {name} ({error}); install the package again") from error
    for file, digest in digests:
        path = MODELS / name / file
        found = hashlib.sha256(read_file(path, MODELS, most=None)).hexdigest()
        if found != digest:
            raise DataError(f"{path}: SHA-256: expected {digest}, found {found}; install the package again")
    return MODELS / name


def as_folder(path: str | Path) -> Path:
    """The path; or, if nothing is there and it is the name of a shipped model, the folder of that model.

    Raises:
        DataError: as `shipped_folder`.
    """
    return Path(path) if os.path.lexists(path) or str(path) not in shipped() else shipped_folder(str(path))


def other_than(path: Path) -> str:
    """The end of the error that there is no model at a path: which ones come with the package, and how to name them."""
    if str(path) in shipped():
        first = f" (in Python, rename the folder {path} first)" if path.exists() else ""
        return f"; --model {path} takes the one that comes with the package{first}"
    return f"; trained ones come with the package (--model): {', '.join(shipped())}"
