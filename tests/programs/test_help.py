"""`--help`, and typing mistakes."""

import os
import re
import shlex
from pathlib import Path

import pytest
from programs import EVALUATE, GENERATE, PROGRAMS, TRAIN

import minigrad.backend
from autoencoders.cli.main import main
from autoencoders.cli.program import Program
from autoencoders.cli.settings import OPTIONS

pytestmark = pytest.mark.usefixtures("working_folder")


@PROGRAMS
def test_help_shows_every_option_its_default_and_examples_that_parse(program, call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done = call(program, "--help").ok()
    assert max(map(len, done.out.splitlines())) <= 80
    text = " ".join(done.out.split())
    parser = program.module.build_parser(Program.of_script(str(program.file)))
    for action in parser._actions:
        if action.nargs != 0 and action.dest != "config":  # flags are off, and there is no file
            assert "default:" in action.help or action.dest in ("dataset", "data_dir"), action.option_strings
        assert f"{action.option_strings[-1]} " in text
    examples = re.findall(r"^  python scripts/(\S+) (.*)$", done.out.partition("examples:")[2], re.MULTILINE)
    assert len(examples) >= 2
    for name, words in examples:
        assert name == f"{program.__name__}.py"
        parser.parse_args(shlex.split(words))
    common = ["--device", "--backend", "--threads", "--precision", "--quiet", "--verbose", "--debug", "--version"]
    groups = re.findall(r"^(\w+):\n((?:  .*\n)+)", done.out, re.MULTILINE)
    assert groups[0][0] == "options"
    assert all(f"  {name} " in "".join(lines for title, lines in groups if title != "options") for name in common)


def test_the_help_of_the_training_shows_the_defaults(call):
    text = " ".join(call(TRAIN, "--help").out.split()).split(" options: ")[1]
    for name, (default, kind, _) in OPTIONS.items():
        if default is not None:
            shown = " ".join(map(str, default)) if kind is list else str(default)
            assert re.search(rf" --{name} [^-].*?\(default: ([^)]*)\)", text)[1] == shown, name


@PROGRAMS
def test_a_usage_error_is_one_line_that_points_to_the_help(program, call):
    call(program, "--wat").failed(2, "--wat", "--help")
    call(program, "--seed", "x").failed(2, "--seed", "'x'", "--help")
    assert call(program, "--version").out.endswith(f".py {minigrad.__version__}\n")
    assert os.listdir() == []


@pytest.mark.parametrize(
    ("program", "words", "told"),
    [
        (TRAIN, "--epoch 3", "no option --epoch; did you mean --epochs?"),
        (TRAIN, "--latent_dim 3", "did you mean --latent-dim?"),
        (TRAIN, "--learning-rate 1", "did you mean --lr?"),
        (TRAIN, "--gpu", "did you mean --device cuda?"),
        (TRAIN, "--data x", "did you mean --dataset or --data-dir?"),
        (TRAIN, "--model VAE", "--model is 'VAE' but must be one of ae, vae; did you mean vae?"),
        (TRAIN, "--filters 3,4", "--filters is '3,4' but must be a whole number; put spaces between"),
        (TRAIN, "images", "'images' belongs to no option; write --dataset images"),
        (TRAIN, "--config my.toml", "did you mean epochs?"),
        (TRAIN, "--dataset fashion_mnist", "did you mean fashion-mnist"),
        (EVALUATE, "runs/x", "'runs/x' belongs to no option; write --model-dir runs/x"),
        (GENERATE, "--sample 3", "did you mean --samples?"),
        (GENERATE, "--threads 0", "--threads is 0 but must be a whole number from 1 to 1024"),
    ],
)  # fmt: skip
def test_a_typing_mistake_is_answered_with_what_may_be_meant(program, words, told, call):
    Path("my.toml").write_text("epoch = 3\n")
    done = call(program, *words.split())
    done.failed(done.code, told)
    assert done.code in (2, 3)


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("trian", "no program 'trian'; did you mean train?"),
        ("runs/x", "no program 'runs/x' ("),
        ("--modle", "there is no option --modle"),
    ],
)
def test_the_console_command_names_the_program_that_may_be_meant(word, told, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["autoencoders", word])
    with pytest.raises(SystemExit, match="2"):
        main()
    said = capsys.readouterr().err
    assert told in said
    assert "autoencoders --help" in said
    assert said.count("\n") == 1
