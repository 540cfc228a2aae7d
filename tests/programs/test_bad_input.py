"""Bad input: an exit code, one clear line, and nothing written."""

import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from faults import started
from program_cases import content, raising, record, script
from programs import GENERATE, NETWORK, PROGRAMS, READERS, SCRIPTS, TINY, TRAIN

from autoencoders.cli.program import run_program
from autoencoders.pictures import canvas, charts
from autoencoders.runs import run as run_module
from autoencoders.training import DivergedError, latest_checkpoint
from minigrad import DeviceError
from minigrad.serialize import DataError, load_state, save_state

pytestmark = pytest.mark.usefixtures("working_folder")


LONG = [SCRIPTS / "train_conv_autoencoder.py", *TINY, "--epochs", "60", "--save-every", "1", "--out", "run"]
HANGUP = pytest.param(getattr(signal, "SIGHUP", None), marks=pytest.mark.skipif(os.name == "nt", reason="has none"))


BAD_OPTIONS = [
    (2, ["--likelihood", "poisson"], "--likelihood", "gaussian-learned"),
    (2, ["--hidden", "0"], "--hidden", "a whole number >= 1"),
    (2, ["--filters"], "--filters"),
    (2, ["--epochs", "-1"], "--epochs is -1", ">= 1"),
    (2, ["--threads", "1000000"], "--threads is 1000000", "from 1 to 1024"),
    (2, ["--shards", "3"], "--shards is 3 but must be a power of two"),
    (2, ["--shards", "0"], "--shards is 0", "from 1 to 1024"),
    (2, ["--out", ""], "--out is empty"),
    (2, ["--clip-norm", "inf"], "--clip-norm is inf", "finite"),
    (2, ["--strides", "9" * 30, "2"], "--strides must be whole numbers"),
    (2, ["--patience", "2"], "validation"),
    (2, ["--model", "ae", "--conditional"], "--conditional belongs to --model vae"),
    (2, ["--binarise", "--denoise", "0.1"], "--denoise is 0.1", "binarise"),
    (2, ["--model", "ae", "--iw-samples", "2"], "--iw-samples belongs to --model vae"),
    (2, ["--iw-samples", "2", "--beta", "2"], "--iw-samples above 1", "beta 1"),
    (3, ["--validation", "64"], "validation", "64 of 64"),
    (2, ["--lr", "nan"], "--lr is nan"),
    (2, ["--backend", "fast"], "'fast'", "numpy", "plain"),
    (4, ["--precision", "tf32"], "needs a GPU (--device cuda)"),
    (4, ["--backend", "cuda"], "needs a GPU (--device cuda)"),
    (2, ["--memory-limit", "nan"], "--memory-limit is nan but must be a number of GiB above 0"),
    (2, ["--device", "tpu"], "'tpu'", "cuda"),
    (2, ["--memory-limit", "1"], "--memory-limit limits the memory of a GPU"),
    (3, ["--dataset", "gone.npz"], "gone.npz", "nothing of that name"),
    (3, ["--config", "gone.toml"], "gone.toml"),
    (2, ["--resume"], "--resume takes", "--filters"),
]


@pytest.mark.parametrize(
    ("code", "words", "fragments"), [(c, w, f) for c, w, *f in BAD_OPTIONS], ids=lambda x: str(x)[:30]
)
def test_a_bad_option(code, words, fragments, call):
    call(TRAIN, *TINY, "--epochs", 1, *words).failed(code, *fragments)
    assert os.listdir() == []


@pytest.mark.parametrize(
    ("code", "text", "told"),
    [
        (3, b"epochs = = 3", "my.toml: cannot be read as TOML (Invalid value (at line 1"),
        (3, b'dataset = "\xe9"', "my.toml: cannot be read as TOML"),
        (3, b"filters = " + 5000 * b"[" + 5000 * b"]", "my.toml: cannot be read as TOML"),
        (3, b"epoch = 3", "did you mean epochs?"),
        (3, b'epochs = "3"', "epochs is '3' but must be of type int"),
        (3, b"conditional = 1", "conditional is 1 but must be of type bool"),
        (3, b'lr = "fast"', "lr is 'fast' but must be of type float"),
        (3, b"lr = 1" + 400 * b"0", "my.toml: lr is not a finite number"),
        (3, b'filters = [32, "x"]', "filters is [32, 'x'] but must be a list of whole numbers"),
        (3, b'likelihood = "bernouli"', "did you mean bernoulli?"),
        (2, b'model = "ae"\nconditional = true', "error: my.toml: --conditional belongs to --model vae"),
        (2, b'model = "ae"\nbeta = 2.0\niw-samples = 1', "error: my.toml: --beta belongs to --model vae"),
    ],
    ids=lambda x: str(x)[:30],
)
def test_a_bad_config_file(code, text, told, call):
    Path("my.toml").write_bytes(text)
    call(TRAIN, "--config", "my.toml").failed(code, "my.toml", told)
    assert os.listdir() == ["my.toml"]


def test_an_option_on_the_command_line_is_not_one_of_the_config_file(call):
    Path("my.toml").write_text('model = "ae"\nbeta = 2.0\n')
    call(TRAIN, *TINY, "--config", "my.toml", "--beta", 3).failed(2, "error: --beta belongs to --model vae")


@PROGRAMS
def test_cuda_without_cupy_names_what_to_install(program, call, trained, monkeypatch):
    words = TINY if program is TRAIN else ("--model-dir", trained(), "--out", "out")
    monkeypatch.setitem(sys.modules, "cupy", None)
    call(program, *words, "--device", "cuda").failed(4, "CuPy", "[cuda12]", "[cuda13]")
    assert os.listdir() == []


def test_a_warm_up_longer_than_the_training_is_told(call, undrawn):
    call(TRAIN, *TINY, "--epochs", 1, "--warmup-steps", 9, "--kl-warmup", 3, "--out", "run").ok(
        "--warmup-steps 9 is more than all 2 steps: --lr is not reached",
        "--kl-warmup 3 is more than all 1 epochs: --beta is not reached",
    )


@PROGRAMS
@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nowhere"])
def test_a_folder_that_cannot_be_written(program, place, call, trained):
    if place.startswith("/proc") and not Path("/proc/self").exists():
        pytest.skip("no /proc here")
    words = (*TINY, "--epochs", 1) if program is TRAIN else ("--model-dir", trained())
    Path("file").write_text("mine")
    call(program, *words, "--out", place).failed(3, place, "cannot be written")
    assert content(Path()) == {"file": b"mine"}


@READERS
def test_a_model_file_that_is_missing_or_damaged_is_named(program, call, trained):
    good = trained()
    content_of_model = (good / "model.safetensors").read_bytes()
    Path("bad").mkdir()
    path = Path("bad/model.safetensors")
    made = "autoencoders train --out bad makes one"
    call(program, "--model-dir", "bad").failed(3, str(path), "there is no such model; autoencoders train", made)
    call(program, "--model-dir", "nowhere").failed(3, "nowhere/model.safetensors", "--out nowhere makes one")
    flipped = bytearray(content_of_model)
    flipped[-5] ^= 1
    for damaged in (bytes(flipped), content_of_model[:-9], content_of_model[:50], b"", b"not a model" * 9):
        path.write_bytes(damaged)
        call(program, "--model-dir", "bad").failed(3, str(path))
    assert content(Path()) == {str(path): damaged}


def test_a_damaged_model_is_saved_again_by_resume(call, trained, undrawn):
    shutil.copytree(trained(), "run")
    whole = Path("run/model.safetensors").read_bytes()
    Path("run/model.safetensors").write_bytes(whole[:-9])
    call(GENERATE, "--model-dir", "run").failed(3, "run/model.safetensors", "--out run --resume saves it again")
    assert call(TRAIN, "--out", "run", "--resume").code == 0
    assert Path("run/model.safetensors").read_bytes() == whole


@READERS
@pytest.mark.parametrize(
    "text",
    [
        "{", "[1]", '{"data": 5}', '{"data": {"name": 5}}', '{"data": {"data_dir": []}}', "[" * 100_000,
        '{"commands": 5}', '{"commands": "train"}', '{"commands": [5]}', '{"earlier_environments": ["x"]}',
    ],
)  # fmt: skip
def test_a_damaged_record_is_named(program, text, call, trained):
    Path("bad").mkdir()
    Path("bad/model.safetensors").write_bytes((trained() / "model.safetensors").read_bytes())
    Path("bad/run.json").write_text(text)
    before = content(Path())
    call(program, "--model-dir", "bad").failed(3, "bad/run.json")
    assert content(Path()) == before


def change_weights(folder, name, value):
    path = Path(folder) / "model.safetensors"
    arrays, fields, _ = load_state(path)
    fields.pop("format")
    save_state(path, {**arrays, name: np.full_like(arrays[name], value)}, fields)


@READERS
@pytest.mark.parametrize(("kind", "name"), [("vae", "mu.bias"), ("ae", "decoder_dense.weight")])
def test_a_model_whose_numbers_are_not_finite_has_diverged(program, kind, name, call, trained):
    shutil.copytree(trained(kind), "run")
    change_weights("run", name, np.nan)
    call(program, "--model-dir", "run", "--out", "out").failed(5, "the model diverged", "not finite")
    assert not list(Path("out").glob("**/*.*"))


def test_a_mixture_of_latents_that_are_not_finite(call, trained):
    shutil.copytree(trained("ae"), "run")
    change_weights("run", "encoder_output.weight", 3e38)
    call(GENERATE, "--model-dir", "run", "--mixture-components", 2).failed(5, "the model diverged", "not finite")
    assert not Path("run/mixture.safetensors").exists()


@READERS
def test_data_of_another_shape_or_of_no_name(program, call, trained):
    np.savez("rgb.npz", train_images=np.zeros((20, 5, 4, 3), np.uint8))
    for code, words, *told in (
        (3, ("--dataset", "rgb.npz", "--out", "out"), "rgb.npz: does not fit", "(N, 28, 28, 1)", "(18, 5, 4, 3)"),
        (3, ("--dataset", "nope"), "nope", "fashion-mnist"),
        (2, ("--seed", -1), "--seed is -1 but must be a whole number >= 0"),
        (2, ("--data-dir", "nope"), "--data-dir is of no use with --dataset fashion-mnist-sample; leave it out"),
    ):
        call(program, "--model-dir", trained(), *words).failed(code, *told)
    assert os.listdir() == ["rgb.npz"]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DataError("x"), 3, "x"), (DeviceError("x"), 4, "x"), (DivergedError("x"), 5, "x"), (ValueError("x"), 1, "x"),
        (OSError("x"), 3, "x"), (FileExistsError("x"), 1, "x"), (RuntimeError(), 1, "RuntimeError"),
        (FileNotFoundError(2, "No such file", "a\nb"), 3, r"a\nb: No such file"),
        (RuntimeError("one\n   two\n"), 1, "one two"), (FileNotFoundError("weights: no"), 3, "weights: no"),
        (MemoryError("x"), 4, "out of memory: x; a smaller model, batch or data set needs less"),
        (KeyboardInterrupt(), 130, ""), (KeyboardInterrupt(signal.SIGTERM), 143, ""),
    ],
)  # fmt: skip
def test_an_error_is_an_exit_code_and_one_line(error, code, line, capsys):
    assert run_program(raising(error), debug=False, what_remains=lambda _: " here\r") == code
    assert capsys.readouterr().err == (f"error: {line}" if line else "interrupted") + " here\\r\n"


def test_a_picture_shows_the_first_of_very_many_classes(call, spied):
    images, labels = np.random.default_rng(0).integers(0, 256, (70, 8, 8), np.uint8), np.arange(70)
    np.savez("own.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    words = ("--epochs", 1, "--limit-train", 70, "--conditional", "--dataset", "own.npz", "--threads", 1)
    assert call(TRAIN, *NETWORK, *words, "--out", "run").code == 0
    assert spied["samples"][0].shape == (50, 8, 8, 1)
    assert record(Path("run"))["status"] == "finished"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_outputs_are_no_errors(closed):
    script(TRAIN, *TINY, "--smoke", "--out", "run", shell=f'exec "$@" {closed}').ok()
    assert record(Path("run"))["status"] == "finished"


@pytest.mark.parametrize("number", [signal.SIGTERM, HANGUP])
def test_a_signal_ends_every_program_with_a_line(number, capsys):
    assert run_program(lambda: os.kill(os.getpid(), number), debug=False) == 128 + number
    assert capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(number) == signal.SIG_DFL


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs terminals")
def test_a_terminal_that_is_closed_loses_no_step():
    code = """if True:
        import fcntl, os, sys, termios
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        os.execv(sys.argv[1], sys.argv[1:])
    """
    command = [sys.executable, "-c", code, sys.executable, *LONG]
    terminal, its_end = os.openpty()
    with subprocess.Popen(command, stdin=its_end, stdout=its_end, stderr=its_end) as process:
        os.close(its_end)
        seen = b""
        while b"epoch 2/60" not in seen:
            seen += os.read(terminal, 1000)
        os.close(terminal)
        assert process.wait(60) == 129
    assert record(Path("run"))["status"] == "interrupted"
    assert int(latest_checkpoint(Path("run")).stem[5:]) >= 2


def test_a_reader_that_goes_away_is_told_of(tmp_path):
    with started([sys.executable, *LONG], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        for line in process.stdout:
            if line.startswith("epoch 2/"):
                break
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(60) == 1
    told = r"error: the program that reads the output has ended; the checkpoints are kept\. .*:\n  .* --resume\n"
    assert re.fullmatch(told, err)
    assert latest_checkpoint(Path("run"))


def test_a_window_system_that_is_not_here_does_not_matter():
    script(TRAIN, "--help", MPLBACKEND="module://matplotlib_inline.backend_inline").ok()


def test_what_is_left_after_an_error(call, monkeypatch, undrawn):
    """An error tells what is saved, what goes on with it, and where the run lies that it should have replaced."""
    assert call(TRAIN, *TINY, "--epochs", 1, "--out", "run").code == 0
    old = (Path("run") / "model.safetensors").read_bytes()
    real = run_module.Run._finish

    monkeypatch.setattr(run_module.Run, "_finish", raising(DataError("run/model.safetensors: no space")))
    done = call(TRAIN, *TINY, "--epochs", 1, "--seed", 1, "--overwrite", "--out", "run")
    where = str(Path("run/old-1"))
    done.failed(3, "no space; the checkpoints are kept; the replaced run is in", where, "--out run --resume")
    assert (Path(where) / "model.safetensors").read_bytes() == old
    assert "there is no finished model; using checkpoints/step-00000002" in call(GENERATE, "--model-dir", "run").out
    monkeypatch.setattr(run_module.Run, "_finish", real)
    assert call(TRAIN, "--resume", "--out", "run").code == 0
    assert (Path(where) / "model.safetensors").read_bytes() == old


@pytest.mark.parametrize("rate", ["1e6", "1e30"])  # finite weights whose losses are not; weights that are not
def test_a_model_that_diverges_in_its_last_step_replaces_none(call, undrawn, rate):
    words = (*TINY, "--limit-train", 32, "--epochs", 1, "--schedule", "constant", "--warmup-steps", 0, "--out", "run")
    assert call(TRAIN, *words).code == 0
    before = content(Path("run"))
    done = call(TRAIN, *words, "--lr", rate, "--overwrite")
    done.failed(5, "diverged", "not finite", "try a smaller learning rate")
    assert "--resume" not in done.err
    assert content(Path("run")) == before


def test_letters_that_the_font_lacks_are_no_warning(capsys):
    def body():
        names = ("\u65e5\u672c", "\u0928\u092e", "\u05d0")
        canvas.save(charts.latent_scatter(np.zeros((3, 2)), np.arange(3), names), Path("chart.png"))

    assert run_program(body, debug=False) == 0
    assert capsys.readouterr().err == ""
    assert run_program(lambda: warnings.warn("another", stacklevel=1), debug=False) == 1, "that one is an error here"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_output_is_named():
    done = script(TRAIN, *TINY, "--out", "run", shell='exec "$@" > /dev/full')
    done.failed(3, "No space left on device: the standard output, or the working folder")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--latent-dim", 50_000_000), "a model with at least 3,200,000,972 weights"),
        (("--kernels", 5001, 3), "im2col"),
        (("--filters", 4, 8, "--kernels", 3, 3, "--latent-dim", 54_000), "a checkpoint needs about"),
    ],
    ids=str,
)
def test_too_little_memory_ends_with_4_before_it_is_taken(words, told):
    done = script(TRAIN, *TINY, *words, "--out", "run", shell='ulimit -v 3000000 && exec "$@"')
    done.failed(4, told, "GiB are free; take fewer latent dimensions")
    assert not Path("run").exists()
