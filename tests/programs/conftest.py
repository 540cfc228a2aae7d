"""Fixtures of the three programs."""

from functools import partial
from pathlib import Path

import pytest
from program_cases import Done, no_pictures
from programs import TINY, TRAIN, Script

from autoencoders.pictures import canvas, charts, sheets
from autoencoders.runs import run as run_module


@pytest.fixture
def working_folder(tmp_path, monkeypatch, restored_backends, hangup):
    """A working folder of its own, no data but the sample, no display."""
    monkeypatch.chdir(tmp_path)
    for name in ("MINIGRAD_DATA", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MINIGRAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(run_module, "fatal", lambda figures: [])  # no model of a few steps works
    monkeypatch.setattr(run_module, "standardize", lambda *_, **__: 0.0)  # a model is that of its last step


@pytest.fixture
def call(capsys):
    def call(program: Script, *argv: object) -> Done:
        capsys.readouterr()
        try:
            code = program.main([str(word) for word in argv])
        except SystemExit as stop:
            code = stop.code
        return Done(code, *capsys.readouterr())

    return call


@pytest.fixture
def undrawn():
    with no_pictures() as patch:
        yield patch


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def trained(shelf, call):
    """The folder of a finished run, made when first asked for. Not to be changed."""

    def trained(model: str = "vae", latent: int = 2, *words: str) -> Path:
        folder = shelf / "".join((model, str(latent), *words))
        if not folder.exists():
            words = ("--model", model, "--latent-dim", str(latent), "--epochs", "2", *words)
            with no_pictures():
                done = call(TRAIN, *TINY, *words, "--out", folder)
            assert done.code == 0, done.err
        return folder

    return trained


@pytest.fixture
def spied(monkeypatch):
    """What the functions that draw are given, by their names."""
    seen: dict[str, tuple] = {}

    def spy(name, real, *args, **options):
        seen[name] = args
        return real(*args, **options)

    for name in ("reconstructions", "latent_scatter", "samples", "interpolations", "manifold_grid"):
        where = charts if name == "latent_scatter" else sheets
        monkeypatch.setattr(where, name, partial(spy, name, getattr(where, name)))
    monkeypatch.setattr(canvas, "save", lambda _, path: path)
    return seen
