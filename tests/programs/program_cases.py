"""What the tests of the three programs share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from programs import Script

from autoencoders.runs import run as run_module
from minigrad.serialize import load_state

VAE_PICTURES = {"reconstructions", "latent_space", "interpolations", "samples"}
AE_PICTURES = {"reconstructions", "latent_space", "interpolations"}


@dataclass
class Done:
    code: int
    out: str
    err: str

    def ok(self, *fragments: str) -> Done:
        """It ended well, with nothing on stderr and the fragments on stdout."""
        assert (self.code, self.err) == (0, "")
        for fragment in fragments:
            assert fragment in self.out, self.out
        return self

    def failed(self, code: int, *fragments: str) -> None:
        """It ended with the code and one line on stderr that holds the fragments, after which a command may stand."""
        compiling = "minigrad: compiling the numba kernels"  # the first program on a machine says so
        lines = [line for line in self.err.splitlines() if not line.startswith((compiling, "  "))]
        assert (self.code, len(lines)) == (code, 1), self.err
        assert lines[0].startswith("error: ")
        for fragment in fragments:
            assert fragment in self.err, self.err


def script(program: Script, *words: object, shell: str = 'exec "$@"', **environment: str) -> Done:
    """The program as a process of its own, started by a line of the shell in which "$@" is the command."""
    command = ["sh", "-c", shell, "sh", sys.executable, str(program.file), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    return Done(done.returncode, done.stdout, done.stderr)


def raising(error: BaseException) -> Callable[..., None]:
    """A function that raises the error, whatever it is given."""

    def raise_it(*_: object, **__: object) -> None:
        raise error

    return raise_it


@contextmanager
def no_pictures():
    """Training draws nothing, which takes most of a short run's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "draw", lambda *_, **__: {})
        patch.setattr(run_module, "save_pictures", lambda *_: [])
        yield patch


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def weights(folder: Path) -> tuple[dict, str]:
    """What a saved model holds, and its SHA-256. (safetensors orders the header of equal files by chance.)"""
    arrays, saved, digest = load_state(folder / "model.safetensors")
    return {name: x.tobytes() for name, x in arrays.items()} | saved["model"], digest


def record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def change_record(folder: str | Path, part: str | None = None, **changes: object) -> None:
    """Change entries of a run's record, or of a part of it."""
    found = record(Path(folder))
    (found[part] if part else found).update(changes)
    (Path(folder) / "run.json").write_text(json.dumps(found))


def losses(folder: Path) -> list[dict]:
    """The history without what depends on time."""
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]


def pictures(folder: Path) -> set[str]:
    for path in folder.iterdir():
        assert path.suffix == ".png"
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert np.asarray(picture.convert("L")).std() > 1, f"{path.name} is blank"
    return {path.stem for path in folder.iterdir()}


def photos(folder: str, count: int) -> Path:
    """Coloured pictures of two classes and sizes, and a broken one."""
    rng = np.random.default_rng(count)
    for i in range(count):
        path = Path(folder) / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20 + 8 * (i % 2), 24, 3), np.uint8)).save(path)
    (path.parent / "broken.jpg").write_bytes(b"")
    return Path(folder)


def measured(folder: str | Path) -> dict:
    return json.loads((Path(folder) / "evaluation.json").read_text())
