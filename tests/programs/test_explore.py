"""`autoencoders explore`: the live page of a model without an evaluation."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import webbrowser
from pathlib import Path

import pytest
from program_cases import content
from programs import EVALUATE, TINY, TRAIN

from autoencoders.cli import explore
from autoencoders.cli.explore import main
from autoencoders.cli.program import Program

pytestmark = pytest.mark.usefixtures("working_folder")


class Explore:
    """The program as the fixture `call` calls it."""

    main = staticmethod(main)


@pytest.fixture
def opened(monkeypatch):
    addresses: list[str] = []
    monkeypatch.setattr(webbrowser, "open", addresses.append)
    return addresses


@pytest.mark.parametrize(("kind", "words"), [("vae", []), ("ae", []), ("vae", ["--conditional"])])
def test_explore_writes_the_page_of_a_run_and_nothing_else(kind, words, call, trained, opened):
    shutil.copytree(trained(kind, 3, *words), "run")
    before = content(Path("run"))
    call(Explore, "--model-dir", "run").ok("wrote run/explore.html")
    after = content(Path("run"))
    text = Path("run/explore.html").read_text()
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"explore.html"}
    assert "All numbers" not in text
    for name in ("plane", "decoded", "sliders", "epoch"):
        assert f'id="{name}"' in text
    assert opened == [], "there is no display"


def test_a_training_names_the_command_that_explores_its_model(call, undrawn, opened):
    told = call(TRAIN, *TINY, "--epochs", "1", "--out", "a run").ok().out.splitlines()
    (command,) = [line for line in told if line.startswith(f"  {Program.installed('explore')} ")]
    words = command.removeprefix(f"  {Program.installed('explore')} ")
    call(Explore, *shlex.split(words)).ok("wrote a run/explore.html")


@pytest.mark.parametrize("activated", [False, True])
def test_a_printed_command_starts_whether_the_environment_is_activated_or_not(activated, monkeypatch):
    folder = Path(sys.executable).parent
    monkeypatch.setenv("PATH", os.pathsep.join([str(folder), os.defpath] if activated else [os.defpath]))
    words = shlex.split(str(Program.installed("explore")))
    assert (words == ["autoencoders", "explore"]) == (activated and (folder / "autoencoders").exists())
    done = subprocess.run([*words, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: autoencoders explore ")


def test_explore_opens_the_page_unless_asked_not_to(call, trained, opened, monkeypatch):
    monkeypatch.setattr(explore, "has_display", lambda: True)
    call(Explore, "--model-dir", trained(), "--out", "new/page.html", "--no-open").ok()
    assert opened == []
    call(Explore, "--model-dir", trained(), "--out", "new/page.html", "--quiet").ok()
    assert opened == [Path("new/page.html").resolve().as_uri()]


def test_explore_replaces_only_its_own_page(call, trained, opened):
    Path("mine.html").write_text("<p>mine</p>")
    call(Explore, "--model-dir", trained(), "--out", "mine.html").failed(1, "mine.html exists", "--overwrite")
    assert Path("mine.html").read_text() == "<p>mine</p>"
    call(Explore, "--model-dir", trained(), "--out", "mine.html", "--overwrite").ok()
    call(Explore, "--model-dir", trained(), "--out", "mine.html").ok()


def test_explore_refuses_what_it_cannot_use(call, trained):
    call(Explore, "--model-dir", trained(), "--out", "page.pdf").failed(2, "'page.pdf' but must end in .html")
    call(Explore, "--model-dir", "none").failed(3, "there is no such model")
    assert not Path("page.pdf").exists()


@pytest.mark.parametrize("program", [Explore, EVALUATE], ids=["explore", "evaluate"])
def test_two_runs_are_compared(program, call, trained, opened):
    one, other = trained("vae", 2), trained("vae", 3, "--conditional")
    before = content(other)
    out = ("--out", "new" if program is EVALUATE else "new/report.html")
    call(program, "--model-dir", one, "--compare", other, *out).ok()
    text = Path("new/report.html").read_text()
    for said in ("vae2", "vae3--conditional", "latent_space_dim", 'class="curve run-1 training"'):
        assert said in text
    assert str(one.parent) not in text
    assert content(other) == before


@pytest.mark.parametrize("program", [Explore, EVALUATE], ids=["explore", "evaluate"])
def test_runs_that_cannot_be_compared_are_refused_before_anything_is_written(program, call, trained, opened):
    shutil.copytree(trained(), "run")
    shutil.copytree("run", "cut")
    Path("cut/history.jsonl").write_bytes(Path("run/history.jsonl").read_bytes()[:-9])
    before = content(Path())
    for other, code, told in (
        ("run", 2, "--compare names the run of --model-dir"),
        ("run/model.safetensors", 2, "--compare names the run of --model-dir"),
        ("none", 3, "none/run.json: there is no such run; there is one in "),
        ("run/checkpoints", 3, "checkpoints/run.json: there is no such run"),
        ("cut", 3, "cut/history.jsonl: no losses that can be drawn"),
        (trained("ae"), 3, "ae2: its losses are in squared error per value, but those of run in nats per image"),
    ):
        call(program, "--model-dir", "run", "--compare", other).failed(code, told)
    assert content(Path()) == before


def test_a_film_that_cannot_be_read_is_left_out(call, trained, opened):
    shutil.copytree(trained(), "run")
    for frame in Path("run/film").iterdir():
        frame.write_text("damaged")
    call(Explore, "--model-dir", "run").ok("warning: no film: ")
    text = Path("run/explore.html").read_text()
    assert 'id="film-data"' not in text
    assert 'class="curve run-0 training"' in text
