"""The Gaussian mixture that is fitted to latents: what is fitted, drawn and saved, and its density."""

import sys
from pathlib import Path

import numpy as np
import pytest

from autoencoders import VAE, Autoencoder, export
from autoencoders.evaluation.mixture import MIXTURE_FILE, Mixture, fit_mixture, load_mixture, save_mixture
from minigrad.serialize import DataError, save_state

WEIGHTS = np.array([0.2, 0.5, 0.3])
MEANS = np.array([[0.0, 5.0], [4.0, -3.0], [-6.0, 1.0]])
COVARIANCES = np.array([[[1.0, 0.6], [0.6, 0.5]], [[0.3, -0.2], [-0.2, 0.4]], [[2.0, 0.0], [0.0, 0.1]]])
KNOWN = Mixture(WEIGHTS, MEANS, COVARIANCES)


def log_density(mixture: Mixture, z: np.ndarray) -> np.ndarray:
    """log p(z) of rows, by the formula with determinants and inverses."""
    total = np.zeros(len(z))
    for weight, mean, covariance in zip(mixture.weights, mixture.means, mixture.covariances, strict=True):
        away = z - mean
        square = np.einsum("ni,ij,nj->n", away, np.linalg.inv(covariance), away)
        total += weight * np.exp(-square / 2) / np.sqrt(np.linalg.det(2 * np.pi * covariance))
    return np.log(total)


def test_draws_have_the_moments_of_every_component():
    z = KNOWN.sample(30_000, seed=1)
    nearest = ((z[:, None] - MEANS) ** 2).sum(axis=2).argmin(axis=1)  # they lie far apart
    for k in range(3):
        mine = z[nearest == k]
        count = len(mine)
        assert abs(count / len(z) - WEIGHTS[k]) < 5 * np.sqrt(WEIGHTS[k] * (1 - WEIGHTS[k]) / len(z))
        variance = np.diag(COVARIANCES[k])
        assert (np.abs(mine.mean(axis=0) - MEANS[k]) < 5 * np.sqrt(variance / count)).all()
        error = np.sqrt((np.outer(variance, variance) + COVARIANCES[k] ** 2) / count)  # Wishart
        assert (np.abs(np.cov(mine.T) - COVARIANCES[k]) < 5 * error).all()
    np.testing.assert_array_equal(KNOWN.sample(30_000, seed=1), z)
    assert not np.array_equal(KNOWN.sample(30_000, seed=2), z)


def test_the_fit_is_that_of_scikit_learn_and_finds_what_was_drawn():
    sklearn = pytest.importorskip("sklearn.mixture")
    z = KNOWN.sample(3_000).astype(np.float32).astype(float)
    mixture = fit_mixture(z.astype(np.float32), 3)
    theirs = sklearn.GaussianMixture(3, random_state=0).fit(z)
    assert log_density(mixture, z).mean() == pytest.approx(theirs.score(z), rel=1e-9)
    new, _ = theirs.sample(20_000)
    both = log_density(mixture, mixture.sample(20_000)).mean(), log_density(mixture, new).mean()
    assert both[0] == pytest.approx(both[1], abs=0.05)
    order = np.argsort(mixture.weights)
    np.testing.assert_allclose(mixture.weights[order], [0.2, 0.3, 0.5], atol=0.05)
    np.testing.assert_allclose(mixture.means[order], MEANS[[0, 2, 1]], atol=0.2)
    again = fit_mixture(z, 3)
    assert all(np.array_equal(a, b) for a, b in zip(vars(mixture).values(), vars(again).values(), strict=True))


def test_the_density_is_that_of_the_formula():
    z = np.concatenate([KNOWN.sample(50), np.random.default_rng(0).normal(0, 5, (50, 2))])
    np.testing.assert_allclose(KNOWN.log_density(z), log_density(KNOWN, z), rtol=1e-9)
    one = Mixture(np.array([0.0, 1.0]), np.array([[7.0], [0.0]]), np.ones((2, 1, 1)))
    far = np.array([[0.0], [100.0]])  # whose density is 0 in floats
    np.testing.assert_allclose(one.log_density(far), -(far[:, 0] ** 2 + np.log(2 * np.pi)) / 2)


@pytest.mark.parametrize("components", [0, 6])
def test_too_many_components_are_told(components):
    with pytest.raises(DataError, match=f"{components} components cannot be fitted to 5 latents"):
        fit_mixture(np.zeros((5, 2)), components)


def test_fifty_components_are_fitted_unless_told_and_as_many_as_there_are_latents_can_be():
    pytest.importorskip("sklearn.mixture")
    assert len(fit_mixture(KNOWN.sample(60)).weights) == 50
    assert len(fit_mixture(KNOWN.sample(4), 4).weights) == 4


def test_a_mixture_stays_with_the_weights_it_was_fitted_to(tmp_path):
    model = Autoencoder((8, 8, 1), (2,), (3,), (2,), 2)
    model.save(tmp_path)
    assert load_mixture(tmp_path) is None
    save_mixture(tmp_path, KNOWN)
    found = load_mixture(tmp_path)
    assert found is not None
    for name in ("weights", "means", "covariances"):
        np.testing.assert_array_equal(getattr(found, name), getattr(KNOWN, name))
    np.testing.assert_array_equal(found.sample(5), KNOWN.sample(5))
    Autoencoder((8, 8, 1), (2,), (3,), (2,), 2, seed=1).save(tmp_path)
    assert load_mixture(tmp_path) is None
    path = tmp_path / MIXTURE_FILE
    for arrays, kind in (({"weights": WEIGHTS}, "mixture"), (vars(KNOWN), "frame")):
        save_state(path, arrays, {"kind": kind})
        with pytest.raises(DataError, match=f"{MIXTURE_FILE}: not a mixture; remove it, and fit another one"):
            load_mixture(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=MIXTURE_FILE):
        load_mixture(tmp_path)


@pytest.mark.parametrize("count", [0, -1, 2.5, True, None, "3"])
def test_a_count_that_is_none_is_told_as_by_a_vae(count):
    for sample in (KNOWN.sample, VAE((8, 8, 1), (2,), (3,), (2,), 2).sample):
        with pytest.raises(DataError, match=rf"^sample: count is {count} but must be a whole number >= 1$"):
            sample(count)
    assert len(KNOWN.sample(np.int64(3))) == 3


def test_a_mixture_says_how_large_it_is():
    one = Mixture(np.ones(1), np.zeros((1, 1)), np.ones((1, 1, 1)))
    assert (repr(KNOWN), str(KNOWN)) == ("Mixture(3 components, 2 dimensions)", "mixture of 3 Gaussians")
    assert (repr(one), str(one)) == ("Mixture(1 component, 1 dimension)", "mixture of 1 Gaussian")


def test_a_path_without_a_model_is_an_error(tmp_path):
    Autoencoder((8, 8, 1), (2,), (3,), (2,), 2).save(tmp_path / "run")
    path = save_mixture(str(tmp_path / "run"), KNOWN)
    assert load_mixture(str(tmp_path / "run" / "model.safetensors")) is not None
    with pytest.raises(DataError, match="expected a model, found a mixture"):
        load_mixture(path)
    (tmp_path / "run" / "notes.txt").write_text("mine")
    for wrong, told in ((tmp_path / "gone", "no such model"), (tmp_path / "run" / "notes.txt", "notes.txt")):
        with pytest.raises(DataError, match=told):
            load_mixture(wrong)


def test_a_model_of_another_program_has_a_mixture_too(tmp_path):
    export(Autoencoder((8, 8, 1), (2,), (3,), (2,), 2), "torch", tmp_path)
    model, folder = tmp_path / "autoencoder.safetensors", tmp_path / "out"
    folder.mkdir()
    save_mixture(model, KNOWN, folder)
    assert (load_mixture(model), repr(load_mixture(model, folder))) == (None, repr(KNOWN))
    export(Autoencoder((8, 8, 1), (2,), (3,), (2,), 2, seed=1), "torch", tmp_path, overwrite=True)
    assert load_mixture(model, folder) is None


def test_drawing_needs_no_scikit_learn_and_fitting_names_the_extra(monkeypatch):
    for name in ("sklearn", "sklearn.mixture"):
        monkeypatch.setitem(sys.modules, name, None)
    assert KNOWN.sample(3).shape == (3, 2)
    with pytest.raises(ModuleNotFoundError, match=r"^fitting a mixture needs scikit-learn.*\[eval\]"):
        fit_mixture(np.zeros((9, 2)), 2)
    assert "eval = [" in (Path(__file__).parents[2] / "pyproject.toml").read_text()
