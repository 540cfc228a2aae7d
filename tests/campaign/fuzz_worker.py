"""Feeds damaged files to one reader, under a memory cap and an audit hook; in a process of its own, because neither can
be taken off again.

    python tests/campaign/fuzz_worker.py READER COUNT SEED FOLDER

Prints JSON: how many were refused with the documented error, how many were taken and were right, and whatever else
happened, which is a fault: another exception, a wrong result, memory, or something the hook saw.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import os
import pickle  # to make hostile files with
import resource
import shutil
import struct
import sys
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from faults import toy
from PIL import Image
from safetensors.numpy import save as save_arrays

import autoencoders
import minigrad
from autoencoders import Callback, TrainingOptions
from autoencoders.cli import settings
from autoencoders.conv_autoencoder import VAE
from autoencoders.data import load_dataset, read_idx
from autoencoders.keras3_files import read_keras3_weights
from autoencoders.keras_files import read_parameters, read_weights
from autoencoders.pictures import charts
from autoencoders.runs import record as run_record, start as run_start
from autoencoders.training import DivergedError, Trainer
from minigrad import DeviceError
from minigrad.random import generator
from minigrad.serialize import DataError, _digest, load_state, save_state

HEADROOM = 512 << 20  # bytes of address space beyond what the process has when everything is imported
# What no reader of files may do. "exec", "compile" and "import" are watched too, once every module is there.
FORBIDDEN = ("pickle.", "marshal.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "socket.")
FORBIDDEN += ("ctypes.dlopen", "shutil.", "os.remove", "os.rename", "os.rmdir", "import", "exec", "compile")
ODD = (b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\1", b"\xff" * 8, b"NaN", b"1e999")
ODD_VALUES: tuple[Any, ...] = (0, -1, 1, 2**31, 2**63, 10**30, 1e308, float("nan"), float("inf"), 0.5, None, True)
ODD_VALUES += ("", "x", "ae", "vae", "gaussian-learned", [], [1], [0, 2], [[3, 3]], [10**6] * 4, {}, {"a": 1}, [None])

ODD_ARRAYS = ("f8", "f2", "i1", "u8", "?", "nan", "inf", "1e38", "flat", "more", "empty", "number", "renamed")

inside = [False]  # whether a reader runs, and not this program

Check = Callable[[Path], bool]  # reads a file; whether what it gave is right


def damaged(good: list[bytes], rng: np.random.Generator) -> Iterator[bytes]:
    """Endlessly: one of the files with none to three things changed."""
    while True:
        content = bytearray(good[int(rng.integers(len(good)))])
        for _ in range(int(rng.integers(4))):
            _damage(content, good, rng)
        yield bytes(content)


def _damage(content: bytearray, good: list[bytes], rng: np.random.Generator) -> None:
    size = len(content)
    # half of the places lie in the first bytes, where the headers are
    at = int(rng.integers(min(size, 64) if rng.random() < 0.5 else size)) if size else 0
    span = int(rng.integers(1, 17))
    kind = int(rng.integers(8))
    if kind == 0 and size:
        content[at] ^= 1 << int(rng.integers(8))
    elif kind == 1 and size:
        content[at] = int(rng.integers(256))
    elif kind == 2:
        del content[at:]
    elif kind == 3:
        del content[at : at + span]
    elif kind == 4:
        content[at:at] = rng.bytes(span)
    elif kind == 5:
        content[at:at] = content[at : at + span]
    elif kind == 6:
        odd = ODD[int(rng.integers(len(ODD)))]
        content[at : at + len(odd)] = odd
    else:
        other = good[int(rng.integers(len(good)))]
        content[at:] = other[int(rng.integers(len(other))) :]


def odd(good: list[bytes], rng: np.random.Generator) -> Iterator[bytes]:
    """Endlessly: the document with one to three drawn parts of it left out or replaced; "changes" says which."""
    while True:
        document = json.loads(good[0])
        changes = [_make_odd(document, rng) for _ in range(int(rng.integers(1, 4)))]
        yield json.dumps({**document, "changes": changes}).encode()


def _make_odd(document: dict[str, Any], rng: np.random.Generator) -> list[Any]:
    """Change one part; [where it lies, what is there now]."""
    places = list(_places(document))
    way = list(places[int(rng.integers(len(places)))])
    *outer, last = way
    around = document
    for key in outer:
        around = around[key]
    if rng.random() < 0.2:
        del around[last]
        return [way]
    if way[0] == "arrays":
        value: Any = ODD_ARRAYS[int(rng.integers(len(ODD_ARRAYS)))]
    elif rng.random() < 0.7:
        value = deepcopy(ODD_VALUES[int(rng.integers(len(ODD_VALUES)))])
    else:  # what stands elsewhere
        value = document
        for key in places[int(rng.integers(len(places)))]:
            value = value[key]
        value = deepcopy(value)
    around[last] = value
    return [way, value]


def _places(part: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to all parts of a document, but not those that it is made of."""
    keys: Any = part if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ()
    for key in keys:
        if way:
            yield (*way, key)
        yield from _places(part[key], (*way, key))


# ---- the readers: (good files, the name that the file gets, what reads it and says whether that is right) ----


def _idx_is_right(content: bytes, found: np.ndarray) -> bool:
    """By the format's description alone."""
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    zero, kind, dimensions = struct.unpack(">HBB", content[:4])
    start = 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    return (zero, kind) == (0, 8) and found.shape == shape and found.tobytes() == content[start:]


def idx(folder: Path) -> tuple[list[bytes], str, Check]:
    good = []
    for shape in ((5,), (3, 4), (2, 3, 4), (2, 2, 2, 3)):
        header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
        good.append(header + bytes(range(int(np.prod(shape)))))
    return good, "x-ubyte", lambda path: _idx_is_right(path.read_bytes(), read_idx(path))


def written(save: Callable[..., object], *arguments: Any, **named: Any) -> bytes:
    """What a function writes into the file that it is given first."""
    buffer = io.BytesIO()
    save(buffer, *arguments, **named)
    return buffer.getvalue()


def gzipped_idx(folder: Path) -> tuple[list[bytes], str, Check]:
    good = []
    for content in idx(folder)[0]:
        for level in (0, 9):
            deflate = zlib.compressobj(level, wbits=31)
            good.append(deflate.compress(content) + deflate.flush())
    return good, "x-ubyte.gz", lambda path: _idx_is_right(path.read_bytes(), read_idx(path))


def state(folder: Path) -> tuple[list[bytes], str, Check]:
    """Model files, checkpoints and frames of films are all of this kind. Nothing but what was saved is ever right."""
    good, known = [], []
    for number in range(3):
        arrays = {"a": np.arange(6, dtype="f4").reshape(2, 3) + number, "b": np.zeros((0, 2)), "c": np.array(number)}
        save_state(folder / "good", arrays, {"number": number, "text": "abc"})
        good.append((folder / "good").read_bytes())
        known.append({name: x.tobytes() for name, x in arrays.items()})

    def check(path: Path) -> bool:
        arrays, record, _ = load_state(path)
        return {name: x.tobytes() for name, x in arrays.items()} == known[record["number"]]

    return good, "x.safetensors", check


def with_odd_values(record: dict[str, Any]) -> list[bytes]:
    """The record as JSON, and with every value in the place of every other."""
    texts = [json.dumps(record).encode()]
    for name, value in record.items():
        if isinstance(value, dict):
            texts += [json.dumps({**record, name: json.loads(inner)}).encode() for inner in with_odd_values(value)]
        texts += [json.dumps({**record, name: odd}).encode() for odd in ODD_VALUES]
    return texts


def model(folder: Path) -> tuple[list[bytes], str, Check]:
    """A valid digest over a record or arrays that are not a model's: what only somebody who means it can make."""
    made = VAE((8, 8, 1), (2,), (3,), (2,), 2)
    return with_odd_values(made.config), "model.safetensors", _checked_model(made.network.state_dict())


def _checked_model(arrays: dict[str, np.ndarray]) -> Check:
    def check(path: Path) -> bool:
        text = path.read_bytes()
        try:
            config = json.loads(text.decode())
            inside[0] = False
            save_state(path, arrays, {"model": config})
        except (ValueError, UnicodeDecodeError, RecursionError) as error:
            raise DataError(f"{path}: {error}") from error  # no such file can be made
        inside[0] = True
        found = autoencoders.load(path.parent)
        return {name: x.shape for name, x in found.network.state_dict().items()} == {
            name: x.shape for name, x in arrays.items()
        }

    return check


def odd_checkpoint(folder: Path) -> tuple[list[bytes], str, Check]:
    """A valid digest over a record or arrays that no run has written, or the run.json beside it: what only somebody who
    means it can make."""
    whole, place, data = folder / "whole", folder / "run", toy()
    minigrad.use()  # imports what "" may choose
    minigrad.use(kernels="numpy", threads=1)
    options = TrainingOptions(4, epochs=3, validation=2, patience=2, save_every=1, schedule="cosine", clip_norm=9.0)
    run = run_start.start_run(
        VAE((8, 8, 1), (2,), (3,), (2,), 2), data, options, whole, learning_rate=1e-2, progress=False
    )
    run.trainer.callbacks = [*run.trainer.callbacks, _Stop(3)]
    with suppress(KeyboardInterrupt):
        run.execute(print)
    *older, checkpoint = sorted(whole.glob("checkpoints/step-*"))
    for path in older:
        path.unlink()
    arrays, record, _ = load_state(checkpoint)
    os.fsync = lambda _: None  # what is written is thrown away
    run_start.load_dataset = lambda *_, **__: data
    autoencoders.training.checkpoints.libraries = lambda _: []  # it opens the libraries anew to ask them

    def make(document: dict[str, Any]) -> Path:
        """The run that a document describes; its checkpoint."""
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(whole, place)
        (place / "run.json").write_text(json.dumps(document["run"]))
        odd = dict(_odd_array(name, arrays[name], kind) for name, kind in document["arrays"].items())
        text, path = json.dumps(document["record"], sort_keys=True), place / checkpoint.relative_to(whole)
        path.write_bytes(save_arrays(odd, metadata={"record": text, "sha256": _digest(text, odd)}))
        return path

    def check(path: Path) -> bool:
        content = path.read_bytes()
        inside[0] = False
        try:
            document = json.loads(content.decode())
        except ValueError as error:
            raise DataError(f"{path}: {error}") from error
        names = [make(document).name, "run.json", f"{data.name}:"]  # what an error may be about
        with suppress(KeyError, TypeError):
            names.append(f"{document['record']['data']['name']}:")
        told: list[str] = []
        inside[0] = True
        try:
            run = run_start.resume_run(place, progress=False, tell=told.append)
        except (DataError, DeviceError) as error:
            inside[0] = False
            if isinstance(error, DataError) and not any(name in f"{error} {told}" for name in names):
                raise RuntimeError(f"the error does not name the file: {error}") from error
            raise DataError(f"{path}: {error}") from error
        inside[0] = False
        run.trainer.callbacks = [*run.trainer.callbacks, _Stop(run.trainer.progress.step + 3)]
        with suppress(DataError, DivergedError, DeviceError, KeyboardInterrupt):
            run._write_record()
            run.trainer.run()
        if "rows" in str(document["changes"]):
            charts.loss_curves(run.trainer.history.rows)
        return True

    document = {"changes": [], "record": record, "run": run_record.read_record(whole)}
    document["arrays"] = dict.fromkeys(arrays, "")
    return [json.dumps(document).encode()], "changes.json", check


class _Stop(Callback):
    """Ends a training after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_batch_end(self, trainer: Trainer) -> None:
        if trainer.progress.step >= self.step:
            trainer.received.append(2)


def _odd_array(name: str, x: np.ndarray, kind: str) -> tuple[str, np.ndarray]:
    if kind == "renamed":
        return f"{name}.x", x
    if kind in ("nan", "inf", "1e38"):
        return name, np.full_like(x, float(kind))
    other = {"flat": x.ravel(), "more": np.concatenate([x.ravel()] * 2), "empty": x.ravel()[:0], "number": x.sum()}
    return name, np.ascontiguousarray(other[kind]) if kind in other else x.astype(kind or x.dtype)


def _is_dataset(path: Path) -> bool:
    found = load_dataset(path, progress=False)
    images = [found.train_images, found.test_images]
    shaped = all(x.ndim == 4 and len(x) and x.shape[1:] == images[0].shape[1:] for x in images)
    valued = all(x.dtype == np.uint8 or (x.dtype == np.float32 and x.min() >= 0 and x.max() <= 1) for x in images)
    return shaped and valued


def npz(folder: Path) -> tuple[list[bytes], str, Check]:
    images = np.arange(96, dtype=np.uint8).reshape(6, 4, 4)
    arrays = {"x_train": images, "y_train": np.arange(6), "x_test": images[:2], "y_test": np.arange(2)}
    return [written(save, **arrays) for save in (np.savez, np.savez_compressed)], "x.npz", _is_dataset


def npy(folder: Path) -> tuple[list[bytes], str, Check]:
    sets = np.arange(96, dtype=np.uint8).reshape(6, 4, 4), np.linspace(0, 1, 48).reshape(4, 2, 2, 3)
    return [written(np.save, images) for images in sets], "x.npy", _is_dataset


def image(folder: Path) -> tuple[list[bytes], str, Check]:
    """One damaged file in a folder with a good one."""
    picture = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    good = [written(picture.save, kind) for kind in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")]
    (folder / "images").mkdir()
    for name in ("a.png", "b.png"):
        (folder / "images" / name).write_bytes(good[0])
    return good, "images/c.png", lambda path: _is_dataset(path.parent)


def recipe(folder: Path) -> tuple[list[bytes], str, Check]:
    def check(path: Path) -> bool:
        found = settings.read_config(str(path))
        return all(
            isinstance(value, settings.IN_CONFIG[name.replace("_", "-")][1] | int) for name, value in found.items()
        )

    return [file.read_bytes() for file in settings.RECIPES.iterdir()], "x.toml", check


def record(folder: Path) -> tuple[list[bytes], str, Check]:
    good: dict[str, Any] = {"data": {"name": "auto", "data_dir": None, "limit_train": 5}}
    good |= {"options": vars(TrainingOptions()), "commands": ["x"], "earlier_environments": [{"numpy": "2"}]}

    def check(path: Path) -> bool:
        found = run_record.read_record(path.parent)
        lists = {str: found.get("commands", []), dict: found.get("earlier_environments", [])}
        if not all(isinstance(values, list) and all(isinstance(x, of) for x in values) for of, values in lists.items()):
            return False
        name, place = run_record.data_of_run(path.parent, None, None)
        limit, options = run_record.training_of_run(path.parent)
        kinds = isinstance(name, str) and isinstance(place, str | None) and isinstance(limit[0], int | None)
        return kinds and isinstance(options, TrainingOptions)

    return with_odd_values(good), "run.json", check


def seed_parameters(folder: Path) -> tuple[list[bytes], str, Check]:
    """The pickle of sizes that the original writes, by every protocol, and pickles of other things."""
    sizes = [(28, 28, 1), (32, 64, 64, 64), (3, 3, 3, 3), (1, 2, 2, 1), 2]
    good = [pickle.dumps(sizes, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    codecs.lookup("raw-unicode-escape")  # Python reads it when the first text of protocol 0 is parsed
    bad = [pickle.dumps(x, 4) for x in (print, Path("x"), {"a": b"b"}, [1.5], np.arange(3), struct.Struct("i").size)]

    def whole(x: Any) -> bool:
        return all(map(whole, x)) if isinstance(x, tuple | list) else isinstance(x, int)

    return good + bad, "parameters.pkl", lambda path: whole(list(read_parameters(path).values()))


def seed_weights(folder: Path) -> tuple[list[bytes], str, Check]:
    good = [path.read_bytes() for path in sorted(Path(__file__).parents[1].glob("oracles/reference/seed_*/weights.h5"))]

    def check(path: Path) -> bool:
        return all(x.dtype == np.float32 and x.nbytes <= path.stat().st_size for x in read_weights(path).values())

    return good, "weights.h5", check


def exported(name: str) -> Callable[[Path], tuple[list[bytes], str, Check]]:
    """Files of `export` with this name, of models of both kinds."""

    def reader(folder: Path) -> tuple[list[bytes], str, Check]:
        kind, good = "keras" if name.endswith("keras") else "torch", []
        for cls in (autoencoders.Autoencoder, VAE):
            model = cls((8, 8, 1), (2, 3), 3, 2, 2)
            good.append(autoencoders.export(model, kind, folder / "exported", overwrite=True)[-1].read_bytes())

        def check(path: Path) -> bool:
            model = autoencoders.load(path)
            return 4 * sum(x.size for x in model.network.parameters()) <= path.stat().st_size

        return good, name, check

    reader.__name__ = Path(name).suffix[1:]
    return reader


def keras_weights(folder: Path) -> tuple[list[bytes], str, Check]:
    """The weights in .keras files."""
    archives, _, _ = exported("autoencoder.keras")(folder)
    good = [zipfile.ZipFile(io.BytesIO(content)).read("model.weights.h5") for content in archives]

    def check(path: Path) -> bool:
        return sum(x.nbytes for x in read_keras3_weights(path).values()) <= path.stat().st_size

    return good, "model.weights.h5", check


ALL = (idx, gzipped_idx, state, model, odd_checkpoint, npz, npy, image, recipe, record, seed_parameters, seed_weights)
ALL += (exported("autoencoder.keras"), keras_weights, exported("autoencoder.safetensors"))
READERS: dict[str, Callable[[Path], tuple[list[bytes], str, Check]]] = {reader.__name__: reader for reader in ALL}


def main() -> None:
    reader, count, seed, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    good, name, check = READERS[reader](folder)
    path = folder / name
    path.write_bytes(good[0])
    assert check(path), "what is good is refused"
    for content in [*good, *(x[: len(x) // 2] for x in good), b""]:  # what is imported late is imported now
        path.write_bytes(content)
        try:
            check(path)
        except DataError:
            continue
    seen: list[str] = []
    inside[0] = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "compile" and arguments[1] == "<unknown>":  # NumPy parses a header, which runs nothing
            return
        if inside[0] and (event.startswith(FORBIDDEN) or (event == "open" and str(arguments[1])[:1] in "wax+")):
            seen.append(f"{event} {arguments}"[:300])

    sys.addaudithook(hook)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + HEADROOM, used + HEADROOM))
    refused = right = 0
    faults: list[str] = []
    files = (odd if reader == "odd_checkpoint" else damaged)(good, generator(seed, "fuzz", reader))
    for number in range(count):
        content = next(files)
        path.unlink()  # else some file systems write the cut file to the disk each time
        path.write_bytes(content)
        fault = ""
        inside[0] = True
        try:
            if check(path):
                right += 1
            else:
                fault = "taken, but wrong"
        except DataError as error:
            refused += 1
            if path.name not in str(error):
                fault = f"the error does not name the file: {error}"
            elif "MemoryError" in str(error) or "allocate" in str(error):
                fault = f"memory: {error}"
        except BaseException:
            fault = traceback.format_exc(limit=-3)
        inside[0] = False
        if seen:
            fault += f" did {seen[:3]}"
            seen.clear()
        if fault:
            faults.append(f"{number}: {fault.strip()[-600:]}; file {content[:200]!r}")
    print(json.dumps({"refused": refused, "right": right, "faults": len(faults), "examples": faults[:5]}))


if __name__ == "__main__":
    main()
