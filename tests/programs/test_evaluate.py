"""The program that measures."""

import hashlib
import html
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
from minigrad.random import generator

pytestmark = pytest.mark.usefixtures("working_folder")


KEYS = """mse psnr ssim bce neg_elbo neg_elbo_se reconstruction kl kl_per_dim active_units iw_nll iw_nll_se
    aggregate_mean aggregate_std probe_accuracy knn_accuracy fd data_entropy pca_mse diagnosis
    versions seed command"""


@pytest.mark.parametrize("kind", ["vae", "ae"])
def test_evaluate_writes_its_figures(kind, call, trained):
    words = ("--model-dir", trained(kind), "--out", "measured", "--iw-samples", 2)
    done = call(EVALUATE, *words).ok()
    found = measured("measured")
    assert set(KEYS.split()) <= set(found)
    model, data = autoencoders.load(trained(kind)), load_dataset("fashion-mnist-sample")
    x = data.test_images.astype(np.float64) / 255
    z = model.encode(data.test_images)
    error = model.decode(z).astype(np.float64) - x
    mse = float(np.sum(error * error) / error.size)
    assert found["mse"] == pytest.approx(mse, rel=1e-6)
    assert found["psnr"] == pytest.approx(10 * np.log10(1 / mse), rel=1e-6)
    assert found["seed"] == 0
    assert found["command"].endswith(f"scripts/evaluate.py {shlex.join(map(str, words))}")
    assert found["data"] == {"name": "fashion-mnist-sample", "content_hash": data.content_hash}
    assert found["model_sha256"] == hashlib.sha256((trained(kind) / "model.safetensors").read_bytes()).hexdigest()
    assert found["environment"]["device"] == "cpu"
    if kind == "vae":
        mu, log_variance = (a.astype(np.float64) for a in model.encode_distribution(data.test_images))
        kl = np.mean(0.5 * (np.exp(log_variance) + mu**2 - 1 - log_variance), axis=0)
        np.testing.assert_allclose(found["kl_per_dim"], kl, rtol=1e-6)
        assert found["kl"] == pytest.approx(kl.sum(), rel=1e-5)
        assert found["neg_elbo"] == pytest.approx(found["reconstruction"] + found["kl"], rel=1e-12)
        assert found["iw_nll"] > 0
        assert "but the model was not trained on such images" in done.out
    else:
        assert (found["kl"], found["iw_nll"], found["fd"]) == (None, None, None)
        assert "iw_nll" not in done.out
    assert re.search(rf"mse +{mse:.5g} +per pixel", done.out)
    assert found["verdict"] in done.out
    findings = [finding[part] for finding in found["diagnosis"] for part in ("why", "option")]
    for told in (*findings, *found["notes"], str(Path("measured/evaluation.json"))):
        assert told in done.out
    at_the_end = record(trained(kind))["test"]  # with another number of threads, and one draw of the latent
    for name, value in at_the_end.items():
        one_draw = 0.01 if name in ("neg_elbo", "reconstruction") else 1e-5
        assert name.endswith("_se") or value == pytest.approx(found[name], rel=one_draw), name


def test_evaluate_draws_its_noise_from_the_seed(call, trained):
    found = []
    for seed in (0, 0, 1):
        words = ("--model-dir", trained(), "--out", "out", "--seed", seed, "--iw-samples", 2)
        assert call(EVALUATE, *words).code == 0
        found.append(measured("out"))
    assert found[0] == found[1]
    for name in ("reconstruction", "iw_nll", "fd", "mse", "kl"):
        assert (found[0][name] == found[2][name]) == (name in ("mse", "kl"))


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
    pytest.importorskip("jinja2")
    shutil.copytree(trained("ae"), "run")
    words = ("--model-dir", "run", "--out", "out")
    assert call(EVALUATE, *words).code == 0
    assert "data:image/gif" in Path("out/report.html").read_text()
    for frame in Path("run/film").iterdir():
        frame.write_text("damaged")
    call(EVALUATE, *words).ok("no film: ")
    assert "data:image/gif" not in Path("out/report.html").read_text()


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
    pytest.importorskip("jinja2")
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
