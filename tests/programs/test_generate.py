"""The program that draws."""

import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from program_cases import (
    AE_PICTURES,
    VAE_PICTURES,
    change_record,
    content,
    measured,
    no_pictures,
    photos,
    pictures,
    raising,
    script,
)
from programs import EVALUATE, GENERATE, NETWORK, SAMPLE, TINY, TRAIN

import autoencoders
from autoencoders.data import load_dataset
from autoencoders.evaluation.bounds import binarised, draws_of, importance_weighted_nll, neg_elbo
from autoencoders.evaluation.metrics import pixel_std
from autoencoders.evaluation.mixture import load_mixture
from autoencoders.pictures import gallery, sheets
from autoencoders.runs.record import read_record, trained_on
from minigrad.serialize import DataError

pytestmark = pytest.mark.usefixtures("working_folder")


@pytest.mark.parametrize(
    ("model", "latent", "expected"),
    [
        ("vae", 1, VAE_PICTURES),
        ("vae", 2, VAE_PICTURES | {"manifold"}),
        ("vae", 3, VAE_PICTURES),
        ("ae", 2, AE_PICTURES),
    ],
)
def test_the_generator_draws_what_the_model_has(model, latent, expected, call, trained):
    folder = trained(model, latent)
    before = content(folder)
    done = call(GENERATE, "--model-dir", folder, "--out", "drawn").ok()
    assert pictures(Path("drawn")) == expected
    assert f"drew {len(expected)} pictures in drawn{os.sep}\n" in done.out
    if model == "ae":
        done = call(GENERATE, "--model-dir", folder, "--out", "again", "--verbose")
        assert all(f"drew {Path('again') / name}.png\n" in done.out for name in expected)
    assert content(folder) == before


def test_what_the_generator_shows_comes_from_the_model_and_the_test_set(call, trained, spied):
    assert call(GENERATE, "--model-dir", trained(), "--samples", 7, "--seed", 3).code == 0
    model, data = autoencoders.load(trained()), load_dataset("fashion-mnist-sample")
    places = {image.tobytes(): i for i, image in enumerate(data.test_images)}
    originals, reconstructed, labels, names = spied["reconstructions"]
    chosen = [places[image.tobytes()] for image in originals]
    assert len(set(chosen)) == len(chosen) == 20, "no image twice"
    np.testing.assert_array_equal(labels, data.test_labels[chosen])
    np.testing.assert_array_equal(np.bincount(labels, minlength=10), np.full(10, 2))
    assert list(names) == list(data.class_names)
    np.testing.assert_array_equal(reconstructed, model.reconstruct(originals)[0])

    latents, labels, names = spied["latent_scatter"]
    np.testing.assert_array_equal(latents, model.encode(data.test_images))
    np.testing.assert_array_equal(labels, data.test_labels)
    assert list(names) == list(data.class_names)

    np.testing.assert_array_equal(*spied["samples"], model.sample(7, 3))
    np.testing.assert_array_equal(*spied["manifold_grid"], model.decode(sheets.manifold_points()))
    (rows,) = spied["interpolations"]
    assert rows.shape == (8, 10, 28, 28, 1)


@pytest.mark.parametrize(("count", "seed"), [(10, 0), (23, 2), (400, 3)])
def test_images_are_picked_at_random_without_repetition_as_many_of_each_class_as_there_are(count, seed):
    labels = np.random.default_rng(5).permutation(np.repeat(np.arange(10), [3, 40, 40, 40, 40, 40, 40, 40, 40, 40]))
    picked = gallery.pick_images(labels, count, len(labels), seed)
    assert len(np.unique(picked)) == len(picked) == min(count, len(labels))
    each = np.bincount(labels[picked], minlength=10)
    assert ((each >= max(each) - 1) | (each == np.bincount(labels))).all()
    assert (np.diff(labels[picked]) >= 0).all(), "ordered by class"
    np.testing.assert_array_equal(picked, gallery.pick_images(labels, count, len(labels), seed))
    if count < len(labels):
        assert set(picked) != set(gallery.pick_images(labels, count, len(labels), seed + 1))
    unlabelled = gallery.pick_images(None, count, 300, seed)
    assert len(set(unlabelled.tolist())) == min(count, 300)
    assert count > 300 or set(unlabelled) != set(range(count))


def test_a_plain_autoencoder_draws_from_the_mixture_in_its_folder(call, spied):
    pytest.importorskip("sklearn")
    words = ("--model", "ae", "--epochs", 1, "--out", "run")
    with no_pictures():
        assert call(TRAIN, *TINY, *words).code == 0
    call(GENERATE, "--model-dir", "run", "--mixture-components", -1).failed(2, "--mixture-components")
    done = call(GENERATE, "--model-dir", "run")
    assert (done.code, "samples" in spied, "--mixture-components 50" in done.out) == (0, False, True)
    call(GENERATE, "--model-dir", "run", "--mixture-components", 4).ok(
        "fitting 4 Gaussians to the latents of 64 training images\n",
        "new images come from the mixture of 4 Gaussians\n",
    )
    path = Path("run") / "mixture.safetensors"
    before, first = path.read_bytes(), spied.pop("samples")[0]
    assert first.shape == (48, 28, 28, 1)
    assert "fitting" not in call(GENERATE, "--model-dir", "run").out
    np.testing.assert_array_equal(spied.pop("samples")[0], first)
    assert call(GENERATE, "--model-dir", "run", "--mixture-components", 4).code == 0
    assert path.read_bytes() == before
    assert call(GENERATE, "--model-dir", "run", "--mixture-components", 4, "--seed", 2**40 + 1).code == 0
    assert path.read_bytes() != before, "its seed draws where the fit begins"
    assert path.exists()
    with no_pictures():
        assert call(TRAIN, *TINY, *words, "--overwrite").code == 0
    assert not path.exists(), "it belonged to the old run"


@pytest.mark.parametrize("binarise", [False, True])
def test_the_mixture_of_a_vae_replaces_its_prior(binarise, call, spied):
    pytest.importorskip("sklearn")
    with no_pictures():
        words = ("--epochs", 1, "--out", "run", *["--binarise"] * binarise)
        assert call(TRAIN, *TINY, *words).code == 0
    call(GENERATE, "--model-dir", "run", "--mixture-components", 3).ok(
        "fitting 3 Gaussians to the latents of 64 training"
    )
    model, mixture, data = autoencoders.load("run"), load_mixture(Path("run")), load_dataset("fashion-mnist-sample")
    images = data.train_images[trained_on(Path("run"), data)]
    images = binarised(images) if binarise else images
    z = draws_of(model, images)
    assert mixture.log_density(z).mean() > -0.5 * (z**2 + np.log(2 * np.pi)).sum(axis=1).mean()
    np.testing.assert_allclose(mixture.weights @ mixture.means, z.mean(axis=0), atol=1e-5)
    np.testing.assert_array_equal(spied["samples"][0], model.decode(mixture.sample(48, 0)))
    call(EVALUATE, "--model-dir", "run", "--iw-samples", 2).ok("mixture_nll")
    found = read_record(Path("run"), "evaluation.json")
    expected = importance_weighted_nll(model, binarised(data.test_images)[:1000], 2, mixture=mixture).mean(axis=1)
    assert [found["iw_nll"], found["mixture_nll"]] == pytest.approx(expected)
    assert found["prior"] == "mixture of 3 Gaussians"
    assert found["mixture_neg_elbo"] == neg_elbo(model, data.test_images, 0, mixture=mixture)["mixture_neg_elbo"]
    assert found["sample_std"] == pytest.approx(pixel_std(model.decode(mixture.sample(1000, 0))))


@pytest.fixture
def fitted(call, trained, monkeypatch):
    """The folder of a VAE with a mixture of two Gaussians; `evaluate` draws nothing."""
    pytest.importorskip("sklearn")
    monkeypatch.setattr(EVALUATE.module, "all_pictures", lambda *_: {})
    monkeypatch.setattr(EVALUATE.module, "write_report", lambda *_: None)
    shutil.copytree(trained(), "run")
    call(GENERATE, "--model-dir", "run", "--mixture-components", 2).ok(f"saved {Path('run/mixture.safetensors')}")
    return Path("run")


def test_a_mixture_is_where_the_results_are(fitted, call, spied):
    before, words = content(fitted), ("--model-dir", "run")
    np.savez("own.npz", x_train=np.random.default_rng(0).integers(0, 256, (10, 28, 28), np.uint8))
    other = (*words, "--mixture-components", 1, "--dataset", "own.npz")
    call(GENERATE, *other).failed(2, "--out is needed")
    call(GENERATE, *other, "--out", "run").failed(2, "another --out is needed")
    call(GENERATE, *other, "--out", "own").ok("fitting 1 Gaussian to the latents of 9 images\n")
    call(GENERATE, *other, "--out", "own").failed(1, "own holds mixture.safetensors", "--overwrite")
    for out, prior in (("own", "mixture of 1 Gaussian"), ("elsewhere", "mixture of 2 Gaussians")):
        call(GENERATE, *words, "--out", out, "--overwrite").ok(f"new images come from the {prior}\n")
        call(EVALUATE, *words, "--out", out).ok(f"samples of the {prior}".split()[-1])
        assert measured(out)["prior"] == prior
    assert content(fitted) == before


def test_zero_components_bring_the_prior_back(fitted, call, spied):
    words = ("--model-dir", "run", "--mixture-components", 0)
    call(GENERATE, *words, "--out", "out").ok("new images come from N(0, I)\n")
    assert Path("run/mixture.safetensors").exists(), "it is in another folder"
    call(GENERATE, *words).ok("new images come from N(0, I)\n", f"removed {Path('run/mixture.safetensors')}")
    np.testing.assert_array_equal(spied["samples"][0], autoencoders.load("run").sample(48))
    assert not Path("run/mixture.safetensors").exists()
    assert "removed" not in call(GENERATE, *words).ok().out
    call(EVALUATE, "--model-dir", "run").ok("of N(0, I)")
    assert (measured("run")["prior"], measured("run")["mixture_neg_elbo"]) == ("N(0, I)", None)


def test_a_mixture_stays_if_the_command_fails(fitted, call, spied, monkeypatch):
    before, words = content(fitted), ("--model-dir", "run", "--mixture-components")
    for components in (3, 0):
        with monkeypatch.context() as patch:
            patch.setattr(GENERATE.module, "draw", raising(DataError("no pictures")))
            call(GENERATE, *words, components).failed(3, "no pictures")
    monkeypatch.setattr(GENERATE.module, "fit_mixture", lambda *_: pytest.fail("fits"))
    call(GENERATE, *words, 65).failed(2, "--mixture-components is 65 but must be at most 64")
    Path("file").write_text("mine")
    call(GENERATE, *words, 3, "--out", "file/out").failed(3, "file/out: cannot be written")
    for name, more in (("image", "a.png"), ("encode", "z.csv")):
        call(GENERATE, *words, 3, f"--{name}", more).failed(2, f"--{name} and --mixture-components", "--dataset")
    change_record("run", "data", name=str(Path("own.npz").absolute()))
    call(GENERATE, *words, 3).failed(2, "fitting needs training images, which --dataset names", "own.npz")
    assert {**content(fitted), "run.json": None} == {**before, "run.json": None}


@pytest.mark.parametrize("latent", [2, 3])
def test_a_mixture_of_other_weights_is_not_used(latent, fitted, call, trained, spied):
    shutil.copy(trained("vae", latent, "--seed", "7") / "model.safetensors", "run")
    told = f"warning: {Path('run/mixture.safetensors')} is not used: it was fitted to other weights"
    call(GENERATE, "--model-dir", "run").ok(told, "--mixture-components 0 removes it", "new images come from N(0, I)")
    call(EVALUATE, "--model-dir", "run").ok(told)
    assert measured("run")["prior"] == "N(0, I)"


def test_a_mixture_is_fitted_without_the_images_held_out(fitted, call, spied):
    change_record("run", "options", validation=0.25)
    call(GENERATE, "--model-dir", "run", "--mixture-components", 2).ok("the latents of 48 training images\n")


def test_a_conditional_model_draws_a_row_for_each_class_or_one_class(call, trained, spied):
    folder = trained("vae", 2, "--conditional")
    model, data = autoencoders.load(folder), load_dataset("fashion-mnist-sample")
    assert (model.classes, model.class_names) == (10, data.class_names)
    call(GENERATE, "--model-dir", folder, "--samples", 25, "--seed", 3).ok()
    (drawn,) = spied["samples"]
    assert len(drawn) == 30
    for c in range(10):
        np.testing.assert_array_equal(drawn[3 * c : 3 * c + 3], model.sample(3, 3, labels=[c, c, c]))
    assert "manifold_grid" not in spied
    assert call(GENERATE, "--model-dir", folder, "--samples", 1).code == 0
    expected = [model.sample(1, 0, labels=[c])[0] for c in range(10)]
    np.testing.assert_allclose(spied["samples"][0], expected, atol=1e-6)
    np.testing.assert_array_equal(spied["latent_scatter"][0], model.encode(data.test_images, labels=data.test_labels))
    for word in ("Ankle boot", "ankle BOOT", "9"):
        assert call(GENERATE, "--model-dir", folder, "--samples", 4, "--class", word).code == 0
        np.testing.assert_array_equal(spied["samples"][0], model.sample(4, 0, labels=[9] * 4))


def test_what_the_model_cannot_draw(call, trained):
    words = ("--model-dir", trained("vae", 2, "--conditional"), "--out", "drawn")
    for wrong in ("Boot", "10", "-1"):
        call(GENERATE, *words, f"--class={wrong}").failed(2, f"'{wrong}'", "T-shirt/top, Trouser", "Bag, Ankle boot")
    call(GENERATE, *words, "--class=").failed(2, "--class is empty")
    call(GENERATE, *words, "--class=ankel boot").failed(2, "did you mean Ankle boot?")
    call(GENERATE, "--model-dir", trained(), "--class", "Bag").failed(2, "--class needs a conditional model")
    for components in (5, 0):
        call(GENERATE, *words, "--mixture-components", components).failed(2, "a conditional model", "for each class")
    call(GENERATE, "--model-dir", trained(), "--samples", 0).failed(2, "--samples is 0", "from 1 to 1000")
    assert os.listdir() == []


@pytest.mark.usefixtures("undrawn")
def test_a_conditional_model_needs_labels_and_takes_numbers_for_names(call):
    arrays = {"train_images": np.random.default_rng(0).integers(0, 256, (24, 6, 5), dtype=np.uint8)}
    np.savez("own.npz", **arrays)
    words = (*NETWORK, "--dataset", "own.npz", "--epochs", 1, "--conditional", "--out", "run")
    call(TRAIN, *words).failed(3, "own.npz", "needs labels")
    np.savez("own.npz", **arrays, train_labels=np.arange(24) % 4)
    assert call(TRAIN, *words).code == 0
    model = autoencoders.load("run")
    assert (model.classes, model.class_names) == (4, ())
    assert call(EVALUATE, "--model-dir", "run", "--dataset", "own.npz", "--iw-samples", 2).code == 0
    call(GENERATE, "--model-dir", "run", "--class", 4).failed(2, "'4'", "0 to 3")
    call(GENERATE, "--model-dir", "run", *SAMPLE).failed(3, "images: expected")


@pytest.mark.parametrize("words", [[], ["--conditional"], ["--conditional", "--class", "bag"]], ids=str)
def test_new_images_are_written_one_by_one_and_as_arrays(words, call, trained):
    folder = trained("vae", 3, *words[:1])
    options = ("--model-dir", folder, "--samples", 12, "--seed", 5, *words[1:])
    assert call(GENERATE, *options, "--format", "npz", "--out", "out").code == 0
    with np.load("out/samples.npz") as file:
        images, labels = file["images"], file["labels"] if words else None
    model = autoencoders.load(folder)
    each = 2 if words == ["--conditional"] else 12
    if words:
        np.testing.assert_array_equal(labels, np.repeat(range(10), 2) if each == 2 else np.full(12, 8))
    new = model.sample(each, 5, labels=labels[-each:] if words else None)
    np.testing.assert_array_equal(images[-each:], np.round(255 * new))
    Path("out/samples").mkdir()
    Path("out/samples/0099.png").write_text("of an earlier call")
    call(GENERATE, *options, "--format", "png", "--out", "out").failed(1, "out holds", "--overwrite")
    assert call(GENERATE, *options, "--format", "png", "--out", "out", "--overwrite").code == 0
    files = sorted(Path("out/samples").iterdir())
    assert [path.name for path in files] == [f"{i:04d}.png" for i in range(1, len(images) + 1)]
    for path, image in zip(files, images, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), image[..., 0])
    call(GENERATE, *options, "--samples", 1001).failed(2, "--samples is 1001", "--format")


@pytest.mark.parametrize("kind", ["vae", "ae"])
def test_latents_are_written_as_csv_or_npz(kind, call, trained):
    model, data = autoencoders.load(trained(kind)), load_dataset("fashion-mnist-sample")
    options = ("--model-dir", trained(kind), "--encode")
    assert call(GENERATE, *options, "z.csv").code == 0
    lines = [line.split(",") for line in Path("z.csv").read_text().splitlines()]
    assert lines[0] == ["part", "index", "label", "class", "z1", "z2"]
    wanted = [["test", str(i), str(y), data.class_names[y]] for i, y in enumerate(data.test_labels)]
    assert [line[:4] for line in lines[1:]] == wanted
    np.testing.assert_array_equal(
        np.array([line[4:] for line in lines[1:]], np.float32), model.encode(data.test_images)
    )
    assert call(GENERATE, *options, "z.npz", *SAMPLE).code == 0
    with np.load("z.npz") as file:
        assert set(file) == {"part", "index", "label", "class", "z", *(["log_variance"] if kind == "vae" else [])}
        assert np.array_equal(file["part"], ["train"] * 4000 + ["test"] * 1000)
        np.testing.assert_array_equal(file["z"][:4000], model.encode(data.train_images))
        np.testing.assert_array_equal(file["label"][4000:], data.test_labels)
    call(GENERATE, *options, "z.csv").failed(1, "z.csv exists", "--overwrite")
    call(GENERATE, *options, "z.txt").failed(2, "--encode is 'z.txt' but must end in .csv or .npz")
    call(GENERATE, *options, "z.csv", "--format", "npz").failed(2, "--encode and --format cannot be combined")
    assert {path.name for path in Path().iterdir()} == {"z.csv", "z.npz"}, "and nothing is drawn"


def test_latents_name_their_images(call, undrawn):
    folder = photos("own", 30)
    words = (*NETWORK, "--dataset", folder, "--image-size", 8, "--skip-broken", "--epochs", 1, "--out", "run")
    assert call(TRAIN, *words).code == 0
    done = call(GENERATE, "--model-dir", "run", "--dataset", folder, "--encode", "mine.csv")
    assert "latents (means) of 30 images to mine.csv: part, path, label, class, z1 to z2" in done.out
    rows = list(csv.DictReader(Path("mine.csv").read_text().splitlines()))
    assert sorted(row["path"] for row in rows) == sorted(f"{'ab'[i % 2]}/{i}.png" for i in range(30))
    assert all(row["path"][0] == row["class"] == "ab"[int(row["label"])] for row in rows)
    assert [row["part"] for row in rows] == ["train"] * 27 + ["test"] * 3
    dataset, model = load_dataset(folder, image_size=8, skip_broken=True), autoencoders.load("run")
    z = dict(zip(dataset.train_names, model.encode(dataset.train_images), strict=True))
    for row in rows[:27]:
        np.testing.assert_array_equal(np.float32([row["z1"], row["z2"]]), z[row["path"]])
    # other images: nobody has trained on them, and their order is that of their names
    other = ("--dataset", photos("other", 12))
    done = call(GENERATE, "--model-dir", "run", *other, "--encode", "other.npz")
    assert done.out.rstrip().endswith("other.npz: path, label, class, z, log_variance")
    with np.load("other.npz") as found:
        assert list(found["path"]) == sorted(f"{'ab'[i % 2]}/{i}.png" for i in range(12))
    np.savez("arrays.npz", images=np.full((25, 8, 8, 3), 9, np.uint8), labels=np.arange(25) % 2)
    assert call(GENERATE, "--model-dir", "run", "--dataset", "arrays.npz", "--encode", "arrays.csv").code == 0
    rows = list(csv.reader(Path("arrays.csv").read_text().splitlines()))
    assert rows[0] == ["index", "label", "z1", "z2"]
    assert [row[:2] for row in rows[1:]] == [[str(i), str(i % 2)] for i in range(25)]


def test_results_of_other_images_take_no_place_of_the_run(call, trained):
    shutil.copytree(trained(), "run")
    before = content(Path("run"))
    np.savez("other.npz", images=np.random.default_rng(0).integers(0, 256, (40, 28, 28), np.uint8))
    words = ("--model-dir", "run", "--dataset", "other.npz")
    (photos("broken", 6) / "a/x.png").write_bytes(b"")
    for program in (EVALUATE, GENERATE):
        other = ("--model-dir", "run", "--dataset", "broken", "--out", "new")
        call(program, *other).failed(3, "x.png", "--skip-broken")
        assert call(program, *other, "--skip-broken").code == 0
        shutil.rmtree("new")
        call(program, *words).failed(2, "--out is needed", "its own images, not to other.npz")
        assert content(Path("run")) == before
        assert call(program, *words, "--out", "elsewhere").code == 0
        assert content(Path("run")) == before
    shutil.copytree("run/checkpoints", "copies")
    newest = max(Path("run/checkpoints").glob("step-*"))
    newest.rename(newest.with_name("step-000099999.safetensors"))
    done = call(GENERATE, "--model-dir", "run", "--image", *photos("own", 2).glob("a/0.png"))
    assert "the run continued after run/model.safetensors was saved" in done.out


def test_new_images_need_no_data_set(call, undrawn):
    np.savez("own.npz", images=np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8))
    assert call(TRAIN, *NETWORK, "--dataset", "own.npz", "--epochs", 1, "--out", "run").code == 0
    undrawn.undo()
    for words in ([], ["--format", "npz"]):
        call(GENERATE, "--model-dir", "run", *words).ok(
            "left out are reconstructions, latent space and interpolations",
            f"add --dataset {Path('own.npz').absolute()}",
        )
    assert {path.stem for path in Path("run/figures").iterdir()} == {"samples", "manifold", "progress"}
    call(GENERATE, "--model-dir", "run", "--encode", "z.csv").failed(3, "names images by a path", "--dataset")
    call(GENERATE, "--model-dir", "run", "--dataset", "gone.npz").failed(3, "gone.npz")
    assert call(GENERATE, "--model-dir", "run", "--dataset", "own.npz", "--format", "png").code == 0
    assert call(TRAIN, *NETWORK, "--dataset", "own.npz", "--epochs", 1, "--overwrite", "--out", "run").code == 0
    assert not list(Path("run").glob("figures/samples*/*.*")), "they are not of the new model"


def test_show_without_a_display_says_so_after_the_pictures_are_written(trained):
    words = ("--model-dir", trained(), "--out", "drawn", "--show")
    script(GENERATE, *words, MPLBACKEND="agg").failed(1, "no display")
    assert pictures(Path("drawn")) == VAE_PICTURES | {"manifold"}
