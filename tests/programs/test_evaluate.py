"""The program that measures."""

import hashlib
import html
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from kernel_sets import NEEDS_EVAL
from program_cases import change_record, content, measured, record
from programs import EVALUATE, GENERATE

import autoencoders
from autoencoders.data import load_dataset
from autoencoders.evaluation import metrics
from autoencoders.runs.record import trained_on
from minigrad.random import generator

pytestmark = pytest.mark.usefixtures("working_folder")


@pytest.mark.parametrize("kind", ["vae", "ae"])
def test_evaluate_writes_its_figures(kind, call, trained):
    words = ("--model-dir", trained(kind), "--out", "measured", "--iw-samples", 2, "--seed", 1)
    done = call(EVALUATE, *words).ok()
    found = measured("measured")
    model, data = autoencoders.load(trained(kind)), load_dataset("fashion-mnist-sample")
    ran = record(trained(kind))
    expected, notes = metrics.measure(model, data, iw_samples=2, seed=1, trained=trained_on(trained(kind), data))
    assert {name: found[name] for name in expected} == json.loads(json.dumps(expected))
    assert set(notes) <= set(found["notes"])
    assert found["seed"] == 1
    assert found["command"].endswith(f"scripts/evaluate.py {shlex.join(map(str, words))}")
    assert found["data"] == {"name": "fashion-mnist-sample", "content_hash": data.content_hash}
    assert found["model_sha256"] == hashlib.sha256((trained(kind) / "model.safetensors").read_bytes()).hexdigest()
    assert found["environment"]["device"] == "cpu"
    assert ("but the model was not trained on such images" in done.out) == ("iw_nll" in done.out) == (kind == "vae")
    assert re.search(rf"mse +{found['mse']:.5g} +per pixel", done.out)
    findings = [finding[part] for finding in found["diagnosis"] for part in ("why", "option")]
    for told in (*findings, *found["notes"], found["verdict"], str(Path("measured/evaluation.json"))):
        assert told in done.out
    for name in ("mse", "psnr", "bce", "mean_mse", "reconstruction_std"):  # with another seed and number of threads
        assert ran["test"][name] == pytest.approx(found[name], rel=1e-5), name


@pytest.mark.parametrize(("limit", "validation"), [(64, 0), (None, 0), (64, 0.25)])
def test_evaluate_compares_with_the_images_that_were_trained_on(limit, validation, call, trained):
    shutil.copytree(trained("ae"), "run")
    assert record(Path("run"))["data"]["limit_train"] == 64
    change_record("run", "data", limit_train=limit)
    change_record("run", "options", validation=validation)
    assert call(EVALUATE, "--model-dir", "run").code == 0
    model, images = autoencoders.load("run"), load_dataset("fashion-mnist-sample").train_images[:limit]
    if validation:
        images = images[np.sort(generator(0, "split").permutation(64)[16:])]
    seen = images[generator(0, "seen").permutation(len(images))[:1000]]
    mse = np.mean((model.reconstruct(seen)[0].astype(np.float64) - seen / 255) ** 2)
    assert measured("run")["train_mse"] == pytest.approx(mse, rel=1e-6)


def test_the_film_of_an_earlier_report_is_not_shown_again(call, trained):
    shutil.copytree(trained("ae"), "run")
    words = ("--model-dir", "run", "--out", "out")
    assert call(EVALUATE, *words).code == 0
    assert 'id="film-data"' in Path("out/report.html").read_text()
    for frame in Path("run/film").iterdir():
        frame.write_text("damaged")
    call(EVALUATE, *words).ok("no film: ")
    assert 'id="film-data"' not in Path("out/report.html").read_text()


@pytest.mark.parametrize(
    ("program", "step", "words"),
    [
        (EVALUATE, "measure", []),
        (EVALUATE, "all_pictures", []),
        (GENERATE, "draw", []),
        pytest.param(GENERATE, "fit_mixture", ["--mixture-components", 2], marks=NEEDS_EVAL),
    ],
)
@pytest.mark.parametrize("removed", [False, True, None])  # None: a checkpoint was taken, and now there is a model
def test_a_model_that_is_replaced_meanwhile_gets_no_results_of_the_old_one(
    program, step, words, removed, call, trained, monkeypatch
):
    shutil.copytree(trained("ae"), "run")
    if removed is None:
        Path("run/model.safetensors").unlink()
    real = getattr(program.module, step)

    def step_meanwhile(*args, **options):
        result = real(*args, **options)
        if removed:
            Path("run/model.safetensors").unlink()
        else:
            shutil.copy(trained() / "model.safetensors", "run")
        return result

    monkeypatch.setattr(program.module, step, step_meanwhile)
    before = set(content(Path("run")))
    call(program, "--model-dir", "run", *words).failed(1, "run: the model was changed while this program ran", "again")
    written = set(content(Path("run"))) - before - {"model.safetensors"}
    assert written == ({"evaluation.json"} if step == "all_pictures" else set()), "what was right when it was written"


def test_evaluate_takes_every_name_of_a_folder(call, trained):
    shutil.copytree(trained("ae"), os.fsdecode(b"r\xffun"))
    call(EVALUATE, "--model-dir", os.fsdecode(b"r\xffun"), "--out", os.fsdecode(b"o\xffut")).ok()
    assert r"--out 'o\udcffut'" in html.unescape(Path(os.fsdecode(b"o\xffut/report.html")).read_text(encoding="utf-8"))


def test_evaluate_refuses_what_it_cannot_use(call, trained):
    for many, told in ((-1, "--iw-samples is -1"), (10**11, "from 0 to 1000000")):
        call(EVALUATE, "--model-dir", trained(), "--iw-samples", many).failed(2, told)
    shutil.copytree(trained(), "run")
    change_record("run", "options", binarise=True)  # so the test images are binarised for iw_nll, too
    done = call(EVALUATE, "--model-dir", "run", "--iw-samples", 0)
    assert ("not trained" in done.out, "iw_nll" in done.out, measured("run")["iw_nll"]) == (False, False, None)
    assert "not trained" not in call(EVALUATE, "--model-dir", "run", "--iw-samples", 2).out
    for part, name, wrong in (("options", "denoise", -1), ("data", "limit_train", "all")):
        change_record("run", part, **{name: wrong})
        call(EVALUATE, "--model-dir", "run").failed(3, "run.json", name, repr(wrong))
