"""`autoencoders export`, and models of other programs as what the programs start from."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from program_cases import content, record
from programs import GENERATE, SAMPLE, TINY, TRAIN

import autoencoders
from autoencoders.cli import export
from autoencoders.cli.program import Program
from autoencoders.export import FILES
from minigrad.serialize import load_state

pytestmark = pytest.mark.usefixtures("working_folder")


class Export:
    """The console command, called as GENERATE is."""

    __name__ = "export"

    @staticmethod
    def main(argv: list[str]) -> int:
        return export.main(argv, Program.installed("export"))


EXPORT = Export()


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.onnx if name == "onnx" else ()) for name in FILES])
def format(request):
    if request.param != "torch":
        pytest.importorskip({"onnx": "onnx", "keras": "h5py"}[request.param])
    return request.param


def test_the_files_are_written_beside_the_model_and_kept(format, call, trained):
    shutil.copytree(trained(), "run")
    call(EXPORT, "--model-dir", "run", "--format", format).ok(
        "Variational autoencoder with 2 latent dimensions", *(f"wrote run/export/{name}" for name in FILES[format])
    )
    before = content(Path("run"))
    assert {f"export/{name}" for name in FILES[format]} == before.keys() - content(trained()).keys()
    call(EXPORT, "--model-dir", "run", "--format", format).failed(1, "exists; use --overwrite to replace it")
    assert content(Path("run")) == before
    call(EXPORT, "--model-dir", "run", "--format", format, "--overwrite").ok()
    assert content(Path("run")) == before, "equal models give equal files"
    call(EXPORT, "--model-dir", "run", "--format", format, "--out", "new").ok(f"wrote new/{FILES[format][0]}")


@pytest.mark.parametrize("name", ["autoencoder.safetensors", "autoencoder.keras"])
def test_a_file_of_another_program_is_a_model(name, call, trained, undrawn):
    if name.endswith("keras"):
        pytest.importorskip("h5py")
    shutil.copytree(trained(), "run")
    call(EXPORT, "--model-dir", "run", "--format", "keras" if name.endswith("keras") else "torch", "--out", "new").ok()
    path = Path("new") / name
    images = np.random.default_rng(0).random((5, 28, 28, 1))
    expected = autoencoders.load("run").reconstruct(images)
    for found, y in zip(autoencoders.load(path).reconstruct(images), expected, strict=True):
        assert np.array_equal(found, y)
    call(EXPORT, "--model-dir", path, "--format", "torch").failed(2, "--out is needed")
    call(GENERATE, "--model-dir", path, *SAMPLE, "--encode", "z.csv", "--out", "drawn").ok("wrote")
    words = (*SAMPLE, "--limit-train", 64, "--threads", 1, "--epochs", 1)
    assert call(TRAIN, "--init-from", path, *words, "--out", "further").code == 0
    assert record(Path("further"))["init_from"]["file"] == str(path.absolute())
    assert load_state(Path("further/model.safetensors"))[1]["trained_steps"] > 1


def test_a_new_run_takes_the_files_of_the_old_one_away(call, trained, undrawn):
    shutil.copytree(trained(), "run")
    call(EXPORT, "--model-dir", "run", "--format", "torch").ok()
    assert call(TRAIN, *TINY, "--epochs", 1, "--out", "run", "--overwrite").code == 0
    assert sorted(path.name for path in Path("run/old-1/export").iterdir()) == list(FILES["torch"])
    assert not list(Path("run").glob("export/*"))


def test_help_has_every_option_and_examples_that_parse(call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done = call(EXPORT, "--help").ok(*(f" --{name} " for name in ("model-dir", "format", "out", "device", "quiet")))
    assert max(map(len, done.out.splitlines())) <= 80
    parser = export.build_parser(Program.installed("export"))
    for line in done.out.partition("examples:")[2].split("\n")[1:3]:
        parser.parse_args(shlex.split(line.strip().removeprefix("autoencoders export ")))
    assert all("default:" in action.help for action in parser._actions if action.nargs != 0)


def test_wrong_words_and_missing_models_are_one_line(call):
    call(EXPORT, "--format", "tf").failed(2, "--format is 'tf' but must be one of onnx, torch, keras")
    call(EXPORT, "--model-dir", "nowhere").failed(3, "nowhere/model.safetensors", "there is no such model")
    call(EXPORT, "--model-dri", "x").failed(2, "did you mean --model-dir or --model?")
    Path("x.pt").write_bytes(b"")
    call(EXPORT, "--model-dir", "x.pt", "--out", "new").failed(3, "x.pt: a pickle can run code, so it is not read")
    Path("x.keras").write_bytes(b"PK")
    call(EXPORT, "--model-dir", "x.keras", "--out", "new").failed(3, "x.keras: not a .keras file, or damaged")
    assert content(Path()) == {"x.pt": b"", "x.keras": b"PK"}


@pytest.mark.parametrize(("format", "package"), [("onnx", "onnx"), ("keras", "h5py")])
def test_the_extra_is_named_where_it_is_missing(format, package, call, trained, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    call(EXPORT, "--model-dir", trained(), "--format", format, "--out", "new").failed(1, f'pip install ".[{format}]"')
    assert not list(Path().iterdir())


def test_a_link_in_a_model_s_folder_is_not_followed(call, trained):
    shutil.copytree(trained(), "run")
    Path("elsewhere").mkdir()
    Path("run/export").symlink_to("../elsewhere")
    call(EXPORT, "--model-dir", "run", "--format", "torch").failed(3, "run/export: expected a folder, found a link")
    assert not list(Path("elsewhere").iterdir())
    call(EXPORT, "--model-dir", "run", "--format", "torch", "--out", "run/export").ok("autoencoder.py")


def test_a_folder_that_cannot_be_written_is_one_line(call, trained):
    Path("file").write_text("mine")
    call(EXPORT, "--model-dir", trained(), "--format", "torch", "--out", "file/new").failed(3, "cannot be written")
    assert content(Path()) == {"file": b"mine"}
