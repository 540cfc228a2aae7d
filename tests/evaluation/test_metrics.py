"""The figures of the full evaluation, each against a formula of its own, and the classifier behind FD."""

import importlib.util
import math
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
from kernel_sets import NEEDS_EVAL
from philox import philox
from trainings import unconditional

import minigrad
from autoencoders import VAE, Autoencoder, DivergedError
from autoencoders.data import Dataset, load_dataset
from autoencoders.evaluation import bounds, features, metrics
from autoencoders.evaluation.features import Classifier, load_classifier
from autoencoders.evaluation.mixture import Mixture
from minigrad import Tensor
from minigrad.serialize import DataError, load_state

SHAPE = (12, 12, 1)
LIKELIHOODS = ("bernoulli", "gaussian", "gaussian-learned")


_spec = importlib.util.spec_from_file_location(
    "train_features", Path(__file__).parents[2] / "benchmarks/train_features.py"
)
train_features = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(train_features)


@pytest.fixture(autouse=True)
def _backends(restored_backends):
    """Those of before, whatever a test chose."""


def tiny(cls=VAE, latent=2, shape=SHAPE, dtype="float64", **options):
    """A model whose parameters and statistics are all moved away from 0 and 1."""
    model = cls(shape, (2, 3), (3, 3), (1, 2), latent, **options)
    rng = np.random.default_rng(1)
    state = model.network.state_dict()
    for name, x in state.items():
        low, high = (0.5, 1.5) if "moving_variance" in name else (-0.5, 0.5)
        state[name] = x + rng.uniform(low, high, x.shape).astype(x.dtype)
    model.network.load_state_dict(state)
    model.to(dtype=dtype)
    return model


def grey(count=6, shape=SHAPE, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def dataset_of(train, test, train_labels=None, test_labels=None):
    return Dataset("made", train, train_labels, test, test_labels, (), "made here")


# ---- likelihoods ----


def nll_by_hand(means, targets, likelihood, variance):
    found = []
    for mean, target in zip(means, targets, strict=True):
        pairs = [(float(m), float(t)) for m, t in zip(mean.reshape(-1), target.reshape(-1), strict=True)]
        if likelihood == "bernoulli":
            found.append(-sum(t * math.log(m) + (1 - t) * math.log1p(-m) for m, t in pairs))
        else:
            found.append(sum(0.5 * ((m - t) ** 2 / variance + math.log(2 * math.pi * variance)) for m, t in pairs))
    return np.array(found)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_nll_rows_equal_loops(likelihood, monkeypatch):
    model = tiny(likelihood=likelihood, variance=0.2)
    x, z, index = grey(), np.random.default_rng(2).standard_normal((6, 2)), np.array([3, 3, 0, 5, 1, 1])
    expected = nll_by_hand(model.decode(z), x / 255, likelihood, variance_of(model))
    np.testing.assert_allclose(bounds.nll_rows(model, x, z), expected)
    monkeypatch.setattr("autoencoders.conv_autoencoder.BATCH", 4)  # and over more than one batch
    np.testing.assert_allclose(bounds.nll_rows(model, x, z), expected)
    expected = nll_by_hand(model.decode(z), x[index] / 255, likelihood, variance_of(model))
    np.testing.assert_allclose(bounds.nll_rows(model, x, z, index=index), expected)


def test_at_the_mean_equals_loops():
    model, x = tiny(Autoencoder), grey()
    images, z = model.reconstruct(x)
    mse, bce, reconstructed = bounds.at_the_mean(model, x, z)
    np.testing.assert_array_equal(reconstructed, images)
    errors = [(float(images[i]) - x[i] / 255) ** 2 for i in np.ndindex(x.shape)]
    assert mse == pytest.approx(sum(errors) / len(errors), rel=1e-12)
    assert bce == pytest.approx(nll_by_hand(images, x / 255, "bernoulli", 0).mean(), rel=1e-12)


def variance_of(model):
    return math.exp(model.network.state_dict().get("likelihood.log_variance", [math.log(0.2)])[0])


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_neg_elbo_equals_loops(likelihood):
    model, x = tiny(likelihood=likelihood, variance=0.2, beta=3.0), grey()
    found = bounds.neg_elbo(model, x, seed=5, draws=3)
    mu, log_variance = model.encode_distribution(x)
    values = []
    for draw in range(3):
        noise = bounds.generator(5, "evaluation", draw).standard_normal((6, 2))
        means = model.decode(mu + np.exp(log_variance / 2) * noise)
        values.append(nll_by_hand(means, x / 255, likelihood, variance_of(model)))
    kl = [[0.5 * (m * m + math.exp(v) - 1 - v) for m, v in zip(*row, strict=True)] for row in zip(mu, log_variance)]  # noqa: B905
    assert found["reconstruction"] == pytest.approx(np.mean(values), rel=1e-10)
    assert found["kl"] == pytest.approx(np.sum(kl) / 6, rel=1e-10)
    assert found["kl_per_dim"] == pytest.approx(np.mean(kl, axis=0), rel=1e-10)
    assert found["neg_elbo"] == pytest.approx(found["reconstruction"] + found["kl"], rel=1e-12)
    of_draws = [statistics.variance(draws) / 3 for draws in np.transpose(values).tolist()]  # of each image's mean
    assert found["neg_elbo_se"] == pytest.approx(math.sqrt(sum(of_draws)) / 6, rel=1e-10)
    of_image = np.mean(values, axis=0) + np.sum(kl, axis=1)
    assert found["neg_elbo_image_se"] == pytest.approx(np.std(of_image, ddof=1) / math.sqrt(6), rel=1e-10)


@pytest.mark.parametrize("std", [0.01, 0.05, 0.3])
def test_bits_of_a_gaussian_are_those_of_the_probabilities_of_256_levels(std):
    """The probability of a level is the integral of the density over the distance between two."""
    model = tiny(likelihood="gaussian", variance=std**2)
    x, means = grey(), model.decode(np.zeros((6, 2)))
    cdf = np.vectorize(statistics.NormalDist(0, std).cdf)
    levels = cdf((x + 0.5) / 255 - means) - cdf((x - 0.5) / 255 - means)
    likely = levels > 1e-9  # others are differences of two numbers that are almost equal
    density = 0.5 * ((x / 255 - means)[likely] / std) ** 2 + math.log(std * math.sqrt(2 * math.pi))
    found = bounds.bits_per_dim(model, float(density.mean()) * x[0].size)
    assert found == pytest.approx(-np.log2(levels[likely]).mean(), rel=0.02 if std < 0.05 else 0.001)


def test_bits_of_a_bernoulli_model_that_knows_nothing_are_one_for_each_pixel():
    model = tiny(shape=(5, 4, 3), likelihood="bernoulli")
    assert bounds.bits_per_dim(model, 60 * math.log(2)) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("kind", ["ae", *LIKELIHOODS])
def test_quick_figures_are_those_of_the_full_evaluation(kind):
    model, x = tiny(Autoencoder) if kind == "ae" else tiny(likelihood=kind), grey()
    found = metrics.quick_metrics(model, x, seed=5)
    mse, bce, _ = bounds.at_the_mean(model, x, model.encode(x))
    assert found["mse"] == mse == pytest.approx(((model.reconstruct(x)[0] - x / 255.0) ** 2).mean())
    assert (found["bce"], found["psnr"]) == (bce, pytest.approx(10 * math.log10(1 / mse)))
    losses = {} if kind == "ae" else bounds.neg_elbo(model, x, seed=5, draws=1)
    losses |= {} if kind == "ae" else {"bits_per_dim": bounds.bits_per_dim(model, losses["neg_elbo"])}
    whole, _ = metrics.measure(model, dataset_of(x, x), seed=5, iw_samples=0)
    assert found == {name: losses.get(name, whole[name]) for name in found}
    also = {"mean_mse", "image_std", "reconstruction_std"} | (set() if kind == "ae" else {"sample_std"})
    assert found.keys() >= also | losses.keys()
    assert bounds.psnr(0.0) is None  # infinity is not JSON


def test_nats_are_summed_in_float64():
    """Some thousand nats in float32 would be known to four digits behind the point, their mean to fewer."""
    for options in ({}, {"likelihood": "gaussian"}):
        model, x = tiny(dtype="float32", **options), grey()
        assert bounds.nll_rows(model, x, model.encode(x)).dtype == np.float64
        figures = bounds.neg_elbo(model, x, 0)
        assert float(np.float32(figures["reconstruction"])) != figures["reconstruction"]


def exact_nll(model, image, prior=((1.0, 0.0, 1.0),)):
    """-log of the integral over one latent of p(z) p(image | z), by the trapezium rule.

    prior: (weight, mean, variance) of each Gaussian of p(z).
    """
    z = np.linspace(-9, 9, 6001)
    means = model.decode(z[:, None]).reshape(len(z), -1)
    pixels = image.reshape(-1) / 255
    log_joint = np.log(means) @ pixels + np.log1p(-means) @ (1 - pixels)
    log_joint += np.log(sum(w * np.exp(-0.5 * (z - m) ** 2 / v) / math.sqrt(2 * math.pi * v) for w, m, v in prior))
    largest = log_joint.max()
    return -(largest + math.log(np.trapezoid(np.exp(log_joint - largest), z)))


def test_importance_weighted_nll_is_the_integral_over_the_latent():
    model = tiny(latent=1)
    heads = {"mu.weight": 0.02, "mu.bias": 1, "log_variance.weight": 0.02, "log_variance.bias": 1}
    for name, x in model.network.named_tensors():  # a proposal about as wide as the prior: its weights vary less
        x.data[...] *= heads.get(name, 1)
    x = bounds.binarised(grey(5))
    exact = np.array([exact_nll(model, image) for image in x])
    many = bounds.importance_weighted_nll(model, x, 20_000)
    np.testing.assert_allclose(many, exact, atol=0.03)
    prior = (0.3, -1.0, 0.5), (0.7, 0.4, 2.0)
    weights, means, variances = map(np.array, zip(*prior, strict=True))
    mixture = Mixture(weights, means[:, None], variances[:, None, None])
    both = bounds.importance_weighted_nll(model, x, 20_000, mixture=mixture)
    np.testing.assert_array_equal(both[0], many)
    np.testing.assert_allclose(both[1], [exact_nll(model, image, prior) for image in x], atol=0.03)
    bound = bounds.neg_elbo(model, x, seed=0, draws=200)["neg_elbo"]
    one, few = (
        np.mean([bounds.importance_weighted_nll(model, x, samples, seed).mean() for seed in range(100)])
        for samples in (1, 4)
    )
    assert one == pytest.approx(bound, abs=0.5)  # one sample: the ELBO
    assert exact.mean() < few < one - 0.5  # more samples: nearer to the integral, from above


def test_importance_weights_do_not_depend_on_how_many_are_held(monkeypatch):
    model, x = tiny(), grey(5)
    whole = bounds.importance_weighted_nll(model, x, 7, seed=3)
    assert whole.shape == (5,)
    monkeypatch.setattr(bounds, "IW_ROWS", 15)  # two images at a time
    monkeypatch.setattr("autoencoders.conv_autoencoder.BATCH", 4)
    np.testing.assert_allclose(bounds.importance_weighted_nll(model, x, 7, seed=3), whole, rtol=1e-12)
    for held in (5, 1):  # of one image not all
        monkeypatch.setattr(bounds, "IW_ROWS", held)
        np.testing.assert_allclose(bounds.importance_weighted_nll(model, x, 7, seed=3), whole, rtol=1e-12)
    assert not np.allclose(bounds.importance_weighted_nll(model, x, 7, seed=4), whole, rtol=1e-6)


def test_importance_weights_far_below_the_smallest_float(monkeypatch):
    """log-sum-exp: -log p of some 7,000 nats, whose exponential is 0."""
    model, x = tiny(shape=(96, 96, 1)), grey(2, (96, 96, 1))
    found = bounds.importance_weighted_nll(model, x, 4)
    assert np.isfinite(found).all()
    assert found.min() > 2000


def test_binarised_images_are_always_the_same_draw():
    """And the same in every version: figures of binarised images are compared with older ones."""
    x = grey(5)
    drawn = philox('[0, "binarise"]').random(x.shape, dtype=np.float32) < x / 255
    for images in (x, x / 255, x[:3]):  # fewer images are the first of all
        np.testing.assert_array_equal(bounds.binarised(images), 255 * drawn[: len(images)])


def test_entropy_by_hand():
    x = grey(3)
    x[0, 0, :2, 0] = 0, 255
    p = [float(value) / 255 for value in x.reshape(-1)]
    expected = -sum(q * math.log(q) for value in p for q in (value, 1 - value) if q) / 3
    assert bounds.bernoulli_entropy(x) == pytest.approx(expected, rel=1e-12)
    assert bounds.at_the_mean(tiny(), x, tiny().encode(x))[1] > bounds.bernoulli_entropy(x)


# ---- the latent space ----


def test_active_units_are_those_whose_mean_varies():
    sign = np.array([[1.0], [-1.0]] * 50)
    mu = sign * np.sqrt([0.0099, 0.0101, 0, 4]) + [5, 0, 3, 0]  # variances around the threshold; means do not matter
    assert metrics.active_units(mu) == 2
    assert metrics.active_units(mu[:, [0, 2]]) == 0


def test_the_largest_correlation():
    a, b = np.array([1.0, -1, 1, -1]), np.array([1.0, 1, -1, -1])  # uncorrelated
    z = np.stack([a, b, -0.6 * a + 0.8 * b, np.full(4, 7.0)], axis=1)  # and one that is constant
    assert metrics.largest_correlation(z) == pytest.approx(0.8, rel=1e-12)
    assert metrics.largest_correlation(z[:, [0, 1]]) == pytest.approx(0, abs=1e-12)
    assert metrics.largest_correlation(z[:, [0, 3]]) is None


def test_prior_holes():
    z, prior = np.random.default_rng(0).standard_normal((2, 60, 2))
    z, prior = z * [1, 0.2], prior[:50]
    nearest = [min(math.dist(a, b) for j, b in enumerate(z) if i != j) for i, a in enumerate(z)]
    limit = np.quantile(nearest, 0.99)
    expected = np.mean([min(math.dist(a, b) for b in z) > limit for a in prior])
    assert 0 < expected < 1
    assert metrics.prior_holes(z, prior) == pytest.approx(expected)


@NEEDS_EVAL
def test_the_figures_of_many_images_are_of_so_many(monkeypatch):
    """What each figure is measured on where there are more images than it takes, seen where the work is done."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    seen = {}

    def spy(where, name, key):
        real = getattr(where, name)
        monkeypatch.setattr(where, name, lambda *a, **k: seen.update({key: a}) or real(*a, **k))

    spy(LogisticRegression, "fit", "probe")
    spy(KNeighborsClassifier, "fit", "neighbours")
    for name in ("prior_holes", "importance_weighted_nll", "pca_errors"):
        spy(metrics, name, name)
    monkeypatch.setattr(metrics, "nearest", lambda points, *_, **__: (None, np.zeros(len(points))))
    few, many = grey(100, (4, 4, 1), 1), grey(60_007, (4, 4, 1), 2)
    test, marks = many[:10_007], many.sum(axis=(1, 2, 3)) % 3
    model = tiny(shape=(4, 4, 1), dtype="float32")
    figures, _ = metrics.measure(model, dataset_of(many, test, marks, marks[:10_007]), iw_samples=1)
    binary = np.where(philox('[0, "binarise"]').random(test.shape, np.float32) < test / 255, 255, 0)
    np.testing.assert_array_equal(seen["importance_weighted_nll"][1], binary[:1000])
    assert [len(points) for points in seen["prior_holes"]] == [10_000, 10_000]
    assert len(seen["pca_errors"][0]) == 60_007
    label_of = {z.tobytes(): label for z, label in zip(model.encode(many), marks, strict=True)}
    neighbours, z, labels = seen["neighbours"]
    assert (len(z), neighbours.n_neighbors) == (60_000, 5)
    assert [label_of[row.tobytes()] for row in z] == labels.tolist()
    probe, standardised, labels = seen["probe"]
    assert (standardised.shape, probe.C, probe.fit_intercept) == ((10_000, 2), 1, True)
    np.testing.assert_allclose((standardised.mean(axis=0), standardised.std(axis=0)), ([0, 0], [1, 1]), atol=1e-9)
    chosen = z[philox('[0, "probe"]').permutation(60_000)[:10_000]]
    assert labels.tolist() == [label_of[row.tobytes()] for row in chosen]
    z, asked = model.encode(test), marks[:10_007]
    right = probe.predict((z - chosen.mean(axis=0, dtype=float)) / chosen.std(axis=0, dtype=float)) == asked
    assert figures["probe_accuracy"] == pytest.approx(right.mean(), abs=1e-3)
    assert figures["knn_accuracy"] == pytest.approx(np.mean(neighbours.predict(z) == asked))
    metrics.measure(model, dataset_of(few, few), iw_samples=1)
    assert len(seen["importance_weighted_nll"][1]) == 100


# ---- pictures ----


@NEEDS_EVAL
def test_ssim_is_the_papers_formula_in_a_gaussian_window():
    a, noise = grey(2, (14, 13, 3)), np.random.default_rng(1).normal(0, 0.2, (2, 14, 13, 3))
    b = np.clip(a / 255 + noise, 0, 1)
    bell = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    weights = np.outer(bell, bell) / bell.sum() ** 2
    values = []
    for image, row, column, channel in np.ndindex(2, 4, 3, 3):  # where the window fits
        x, y = (z[image, row : row + 11, column : column + 11, channel] for z in (a / 255, b))
        mx, my = (weights * x).sum(), (weights * y).sum()
        vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
        common = (weights * (x - mx) * (y - my)).sum()
        parts = (2 * mx * my + 1e-4) / (mx**2 + my**2 + 1e-4), (2 * common + 9e-4) / (vx + vy + 9e-4)
        values.append(parts[0] * parts[1])
    assert metrics.ssim(a, b) == pytest.approx(np.mean(values), rel=1e-9)


@NEEDS_EVAL
def test_pca_errors_are_those_of_the_singular_value_decomposition():
    train, test = grey(40, (4, 4, 1), 1), grey(15, (4, 4, 1), 2)
    for count in (40, 3, 1):  # of three images there are two directions from their mean
        found = metrics.pca_errors(train[:count], test, 5)
        x, mean = flat(train[:count]), flat(train[:count]).mean(axis=0)
        axes, away = np.linalg.svd(x - mean, full_matrices=False)[2], flat(test) - mean
        back = [away @ axes[:n].T @ axes[:n] for n in range(min(5, count - 1) + 1)]
        assert found == pytest.approx([np.mean((away - rows) ** 2) for rows in back], rel=1e-5)
    assert len(metrics.pca_errors(train, test, 50)) == 17  # no more components than pixels
    assert metrics.pca_errors(train / 255, test / 255, 5) == pytest.approx(metrics.pca_errors(train, test, 5), rel=1e-5)


# ---- FD ----


def fd_by_eigenvalues(a, b):
    """The trace of the root of C_a C_b is the sum of the roots of its eigenvalues, which are real and not negative."""
    of_a, of_b = np.cov(a.T), np.cov(b.T)
    roots = np.sqrt(np.maximum(np.linalg.eigvals(of_a @ of_b).real, 0))
    return np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2) + np.trace(of_a) + np.trace(of_b) - 2 * roots.sum()


def with_moments(mean, covariance, seed):
    """300 points whose sample mean and covariance are exactly these."""
    x = np.random.default_rng(seed).standard_normal((300, len(mean)))
    x -= x.mean(axis=0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return x @ np.linalg.cholesky(covariance).T + mean


def test_frechet_distance_of_normal_distributions():
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
    a, b = np.array([1, 4, 9, 0.25]), np.array([4, 4, 1, 1])
    one = with_moments(np.zeros(4), q @ np.diag(a) @ q.T, 1)
    two = with_moments(np.array([1, 0, -2, 0]), q @ np.diag(b) @ q.T, 2)
    expected = 5 + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)  # the covariances commute
    assert features.frechet_distance(one, two) == pytest.approx(expected, rel=1e-9)
    assert features.frechet_distance(one, one) == pytest.approx(0, abs=1e-9)
    m, n = np.array([[2.0, 0.7], [0.7, 1.0]]), np.array([[1.0, -0.5], [-0.5, 3.0]])  # and these do not
    root = math.sqrt(np.trace(m @ n) + 2 * math.sqrt(np.linalg.det(m @ n)))  # of 2 x 2: trace of the root
    found = features.frechet_distance(with_moments([3, 3], m, 3), with_moments([3, 3], n, 4))
    assert found == pytest.approx(np.trace(m) + np.trace(n) - 2 * root, rel=1e-9)
    x = one[:50]
    x[:, 1] = 0  # a feature that never fires
    assert features.frechet_distance(x, x + [0, 2, 0, 0]) == pytest.approx(4, rel=1e-9)


@pytest.fixture(scope="module")
def sample():
    return load_dataset("fashion-mnist-sample")


def test_the_shipped_classifier_knows_the_classes(sample):
    classifier = load_classifier()
    assert classifier.accuracy(sample.test_images, sample.test_labels) > 0.89
    _, record, _ = load_state(features.WEIGHTS)
    assert record["test_accuracy"] >= 0.9
    made_by = (record["seed"], record["epochs"])
    assert made_by == (train_features.SEED, train_features.EPOCHS)
    assert features.WEIGHTS.stat().st_size < 300_000
    found = classifier.features(sample.test_images[:300])
    assert (found.shape, found.dtype) == ((300, 64), np.float64)
    np.testing.assert_allclose(found, classifier.features(sample.test_images[:300] / np.float32(255)), rtol=1e-6)
    scores = classifier.scores(Tensor(found.astype(np.float32))).numpy()
    assert np.mean(scores.argmax(axis=1) == sample.test_labels[:300]) > 0.86


def test_the_recipe_trains_a_classifier(sample):
    trained = train_features.train_classifier(sample.train_images, sample.train_labels, 3)
    assert trained.accuracy(sample.test_images, sample.test_labels) > 0.6
    assert Classifier().accuracy(sample.test_images, sample.test_labels) < 0.3


# ---- all of it ----


def small_data(shape=SHAPE, train=40, test=30, labels=True):
    marks = np.arange(100) % 3
    return dataset_of(
        grey(train, shape, 1), grey(test, shape, 2),
        marks[:train] if labels else None, marks[:test] if labels else None,
    )  # fmt: skip


OF_A_VAE = {
    "bits_per_dim",
    "neg_elbo", "neg_elbo_se", "neg_elbo_image_se", "train_neg_elbo", "reconstruction", "kl", "kl_per_dim",
    "active_units", "log_variance_per_dim", "aggregate_mean", "aggregate_std", "aggregate_correlation", "prior_holes",
    "sample_std", "image_class_std", "sample_class_std", "iw_nll", "iw_nll_se", "fd", "fd_floor", "pca_mse_active",
    "mixture_neg_elbo", "mixture_nll", "mixture_nll_se",
}  # fmt: skip
OF_CLASSES = {"image_class_std", "sample_class_std"}  # of a conditional model
OF_A_MIXTURE = {"mixture_neg_elbo", "mixture_nll", "mixture_nll_se"}  # of a VAE with one
OF_LIBRARIES = {"ssim", "pca_mse", "pca_mse_active", "probe_accuracy", "knn_accuracy"}


@pytest.mark.parametrize(("accuracy", "code"), [(0.8999, 3), (0.9, 0)])
def test_the_recipe_as_a_program_writes_nothing_below_nine_in_ten(
    accuracy, code, sample, monkeypatch, tmp_path, capsys
):
    shipped, written = load_classifier(), tmp_path / "written.safetensors"
    monkeypatch.setattr(train_features, "load_dataset", lambda name: sample)
    monkeypatch.setattr(train_features, "WEIGHTS", written)
    monkeypatch.setattr(train_features, "train_classifier", lambda images, labels: shipped)
    monkeypatch.setattr(Classifier, "accuracy", lambda *_: accuracy)
    assert train_features.main([]) == code
    out = capsys.readouterr()
    assert f"test accuracy {accuracy:.2%}" in out.out
    assert written.exists() == (code == 0)
    assert ("below 90%; nothing was written" in out.err) == (code == 3)
    if code == 0:
        found = load_state(written)[0]
        for name, x in shipped.state_dict().items():
            np.testing.assert_array_equal(found[name], x)


def missing(figures):
    return {name for name, value in figures.items() if value is None}


def seen_of(total, count):
    """Which training images are compared with the test images."""
    return np.sort(bounds.generator(0, "seen").permutation(total)[:count])


@NEEDS_EVAL
def test_every_figure_of_a_vae_is_measured(monkeypatch):
    """Each of two seeds by another formula, or by functions that are tested above."""
    monkeypatch.setattr(metrics, "FEWEST_HOLE_POINTS", 30)
    data, model = small_data((28, 28, 1)), tiny(shape=(28, 28, 1), dtype="float32")
    x, train = data.test_images, data.train_images
    found, notes = zip(*(metrics.measure(model, data, iw_samples=3, seed=seed) for seed in (0, 1)), strict=True)
    assert (missing(found[0]), notes, set(found[0])) == (OF_CLASSES | OF_A_MIXTURE, ([], []), set(metrics.METRICS))
    f, z = load_classifier().features, (model.encode(train), model.encode(x))
    axes = np.linalg.svd(flat(train) - flat(train).mean(axis=0), full_matrices=False)[2][:2]  # two latent dimensions
    away = flat(x) - flat(train).mean(axis=0)
    errors = np.array([np.mean((model.reconstruct(image[None])[0][0] - image / 255) ** 2) for image in x])
    for seed, figures in enumerate(found):
        weighted = bounds.importance_weighted_nll(model, bounds.binarised(x), 3, seed=seed)
        chosen = philox(f'[{seed}, "floor"]').permutation(40)[:30]  # as many as there are test images
        expected = {
            "psnr": 10 * math.log10(1 / figures["mse"]),
            "mse_se": pytest.approx(errors.std(ddof=1) / math.sqrt(30), rel=1e-5),
            "iw_nll": weighted.mean(),
            "iw_nll_se": np.std(weighted, ddof=1) / math.sqrt(30),
            "fd": pytest.approx(fd_by_eigenvalues(f(model.sample(30, seed)), f(x)), rel=1e-4),
            "fd_floor": pytest.approx(fd_by_eigenvalues(f(train[chosen]), f(x)), rel=1e-4),
            "sample_std": pytest.approx(model.sample(30, seed).std(axis=0).mean(), rel=1e-5),
            "pca_mse": pytest.approx(np.mean((away - away @ axes.T @ axes) ** 2), rel=1e-3),
            "pca_mse_active": metrics.pca_errors(train, x, 2, seed)[figures["active_units"]],
            "data_entropy": bounds.bernoulli_entropy(x),
            "ssim": metrics.ssim(x, model.reconstruct(x)[0]),
            **metrics.accuracies(z[0], data.train_labels, z[1], data.test_labels),
        }
        for name, value in expected.items():
            assert figures[name] == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value), name
    assert found[0]["aggregate_mean"] != found[1]["aggregate_mean"]
    for rows, options in ((seen_of(40, 30), {}), (np.array([1, 4, 7]), {"trained": np.array([1, 4, 7])})):
        figures, _ = metrics.measure(model, data, iw_samples=0, **options)
        assert figures["train_mse"] == pytest.approx(
            bounds.at_the_mean(model, train[rows], model.encode(train[rows]))[0]
        )
        assert figures["iw_nll"] is None


def test_the_aggregate_posterior_has_the_moments_of_a_mixture():
    """Its draws have the mean of the means, and the variance of the means plus the mean of the variances."""
    model, data = tiny(shape=(8, 8, 1)), small_data((8, 8, 1), test=4000, labels=False)
    figures, _ = metrics.measure(model, data, iw_samples=0)
    mu, log_variance = model.encode_distribution(data.test_images)
    covariance = np.cov(mu.T, ddof=0) + np.diag(np.exp(log_variance).mean(axis=0))
    std = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(figures["aggregate_mean"], mu.mean(axis=0), atol=5 * std.max() / math.sqrt(4000))
    np.testing.assert_allclose(figures["aggregate_std"], std, rtol=5 / math.sqrt(2 * 4000))
    correlation = abs(covariance[0, 1]) / std.prod()
    assert figures["aggregate_correlation"] == pytest.approx(correlation, abs=5 / math.sqrt(4000))
    assert np.exp(log_variance).mean() > 0.1 * std.max() ** 2, "the noise counts"
    z = mu + np.exp(log_variance / 2) * philox('[0, "aggregate"]').standard_normal(mu.shape)
    limit = np.quantile([np.partition(((point - z) ** 2).sum(axis=1), 1)[1] ** 0.5 for point in z], 0.99)
    drawn = philox('[0, "prior"]').standard_normal(mu.shape)
    holes = np.mean([((point - z) ** 2).sum(axis=1).min() ** 0.5 > limit for point in drawn])
    assert 0.02 < holes < 0.98
    like_z = Mixture(np.ones(1), z.mean(axis=0)[None], np.cov(z.T)[None])
    assert metrics.measure(model, data, iw_samples=0, mixture=like_z)[0]["prior_holes"] < 0.02 < holes
    images, mean = data.test_images / 255, (data.train_images / 255).mean(axis=0)
    seen = bounds.neg_elbo(model, data.train_images[seen_of(40, 40)], 0, draws=1)
    expected = {
        "prior_holes": holes,
        "image_std": images.std(axis=0).mean(),
        "mean_mse": np.mean((images - mean) ** 2),
        "reconstruction_std": model.reconstruct(data.test_images)[0].std(axis=0).mean(),
        "sample_std": model.sample(4000, 0).std(axis=0).mean(),
        "train_neg_elbo": seen["neg_elbo"],
        "log_variance_per_dim": log_variance.mean(axis=0),
    }
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value, rel=1e-9), name


def flat(images):
    return images.reshape(len(images), -1) / 255


@NEEDS_EVAL
def test_what_an_autoencoder_lacks_and_what_a_mixture_adds():
    """Without a mixture it has no likelihood and no samples."""
    model, data = tiny(Autoencoder, shape=(28, 28, 1), dtype="float32"), small_data((28, 28, 1))
    mixture = Mixture(np.array([0.5, 0.5]), np.array([[1.0, 2.0], [-3.0, 0.5]]), np.stack([np.eye(2), 2 * np.eye(2)]))
    figures, notes = metrics.measure(model, data)
    assert (missing(figures), notes) == (OF_A_VAE, [])
    figures, notes = metrics.measure(model, data, mixture=mixture)
    assert (missing(figures), notes) == (OF_A_VAE - {"sample_std", "fd", "fd_floor"}, [])
    new, f = model.decode(mixture.sample(30, 0)), load_classifier().features
    assert figures["sample_std"] == pytest.approx(new.std(axis=0).mean(), rel=1e-5)
    assert figures["fd"] == pytest.approx(features.frechet_distance(f(new), f(data.test_images)), rel=1e-9)


@NEEDS_EVAL
def test_more_classes_than_scikit_learn_expects_are_no_warning_and_one_has_no_accuracy():
    for labels, probed in ((np.arange(30), True), (np.zeros(30, int), False)):
        figures, _ = metrics.measure(tiny(), dataset_of(grey(30), grey(30), labels, labels), iw_samples=0)
        for name in ("probe_accuracy", "knn_accuracy"):
            assert (figures[name] is not None) == probed, name


@NEEDS_EVAL
def test_what_cannot_be_measured_is_told():
    shape = (10, 12, 1)
    figures, notes = metrics.measure(tiny(likelihood="gaussian", shape=shape), small_data(shape, labels=False))
    lost = {"prior_holes", "fd", "fd_floor", "iw_nll", "iw_nll_se", "ssim", "probe_accuracy", "knn_accuracy"}
    assert missing(figures) == lost | OF_CLASSES | OF_A_MIXTURE
    assert len(notes) == 5
    for words in ("100 test images", "28 x 28 x 1", "Bernoulli", "11 x 11", "labels"):
        assert words in "\n".join(notes)
    for train, test in ((40, 1), (1, 30)):
        figures, notes = metrics.measure(tiny(shape=(28, 28, 1)), small_data((28, 28, 1), train, test), iw_samples=2)
        assert {"fd", "fd_floor"} <= missing(figures)
        assert "fd needs at least two test and two training images" in notes


def test_without_the_extra_the_rest_is_measured(monkeypatch):
    monkeypatch.setattr(metrics, "FEWEST_HOLE_POINTS", 30)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "skimage", None)
    for name in [name for name in sys.modules if name.startswith(("sklearn.", "skimage."))]:
        monkeypatch.setitem(sys.modules, name, None)
    figures, notes = metrics.measure(tiny(shape=(28, 28, 1)), small_data((28, 28, 1)), iw_samples=2)
    assert missing(figures) == OF_LIBRARIES | OF_CLASSES | OF_A_MIXTURE
    assert notes == [
        'ssim, pca_mse, pca_mse_active, probe_accuracy, knn_accuracy need the extra eval: pip install ".[eval]"'
    ]


def test_a_conditional_model_is_measured_with_the_class_of_every_image(monkeypatch):
    monkeypatch.setattr(metrics, "IW_IMAGES", 20)
    shape = (28, 28, 1)
    model, data = tiny(shape=shape, classes=3), small_data(shape)
    x, labels, seen = data.test_images, data.test_labels, seen_of(40, 30)
    figures, notes = metrics.measure(model, data, iw_samples=3)
    assert any("told the class" in note for note in notes)
    first = bounds.importance_weighted_nll(model, bounds.binarised(x)[:20], 3, labels=labels[:20])
    assert figures["iw_nll"] == pytest.approx(first.mean())
    for name, pixels in (("image_class_std", x / 255), ("sample_class_std", model.sample(30, 0, labels=labels))):
        means = [pixels[labels == label].mean(axis=0) for label in range(3)]
        assert figures[name] == pytest.approx(np.std(means, axis=0).mean(), rel=1e-9)
    parts = [unconditional(model, label) for label in np.eye(3)]
    for name, images, classes in (("mse", x, labels), ("train_mse", data.train_images[seen], data.train_labels[seen])):
        rebuilt = np.stack([parts[c].reconstruct(images[i : i + 1])[0][0] for i, c in enumerate(classes)])
        assert figures[name] == pytest.approx(np.mean((rebuilt - images / 255) ** 2), rel=1e-9)
    noise = [bounds.generator(0, "evaluation", draw).standard_normal((30, 2)) for draw in range(4)]
    nll = 0.0
    for i, c in enumerate(labels):
        mu, log_variance = parts[c].encode_distribution(x[i : i + 1])
        z = np.concatenate([mu + np.exp(log_variance / 2) * draw[i] for draw in noise])
        nll += nll_by_hand(parts[c].decode(z), np.repeat(x[i : i + 1] / 255, 4, axis=0), "bernoulli", 0).mean() / 30
    assert figures["reconstruction"] == pytest.approx(nll, rel=1e-9)
    kl = [bounds.neg_elbo(parts[c], x[i : i + 1], 0, 1)["kl"] for i, c in enumerate(labels)]
    assert figures["kl"] == pytest.approx(np.mean(kl), rel=1e-9)
    ones = x[labels == 1]
    weighted = bounds.importance_weighted_nll(model, ones, 5, labels=labels[labels == 1])
    np.testing.assert_allclose(weighted, bounds.importance_weighted_nll(parts[1], ones, 5), rtol=1e-9)
    with pytest.raises(DataError, match="conditional model needs the class"):
        metrics.measure(model, small_data(shape, labels=False))


@pytest.mark.usefixtures("cupy_double")
@pytest.mark.parametrize(("device", "count"), [("cpu", 4), ("cuda", 30)])
def test_a_cpu_weighs_the_first_images_only_and_a_gpu_all(device, count, monkeypatch):
    """Of a size for which everything is measured, on both."""
    monkeypatch.setattr(metrics, "IW_IMAGES", 4)
    minigrad.use(device=device, kernels="plain")
    model, data = tiny(shape=(28, 28, 1)), small_data((28, 28, 1))
    rows = bounds.importance_weighted_nll(model, bounds.binarised(data.test_images)[:count], 3)
    assert metrics.measure(model, data, iw_samples=3)[0]["iw_nll"] == pytest.approx(rows.mean())


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"mu.weight": 3e38}, "encoder"),
        ({"log_variance.bias": 300}, "variance"),
        ({"decoder_dense.bias": 3e38, "decoder_conv_transpose_layer_1.weight": 9}, "decoder"),
        # finite at the mean: a variance of 0 whose KL is infinite; latents of the prior too large for the decoder
        ({"mu.weight": 0, "mu.bias": 0, "log_variance.weight": -3e38}, "neg_elbo"),
        ({"mu.weight": 0, "mu.bias": 0, "decoder_dense.weight": 3e38}, "sample_std"),
    ],
)
def test_a_model_that_diverged_is_told(changes, where):
    model = tiny(shape=(28, 28, 1), dtype="float32", log_variance_bounds=None)
    state = model.network.state_dict()
    model.network.load_state_dict(state | {name: np.full_like(state[name], x) for name, x in changes.items()})
    with np.errstate(all="ignore"), pytest.raises(DivergedError, match=f"the model diverged: .*{where}.* not finite"):
        metrics.measure(model, small_data((28, 28, 1)), iw_samples=2)


def test_the_bound_with_a_mixture_is_that_of_the_formula():
    """-ELBO = E[-log p(x | z) + log q(z | x) - log p(z)], with the KL to N(0, I) exact."""
    model, x = tiny(), grey(20)
    normal = Mixture(np.ones(1), np.zeros((1, 2)), np.eye(2)[None])
    both = bounds.neg_elbo(model, x, 3, mixture=normal)
    assert both["mixture_neg_elbo"] == pytest.approx(both["neg_elbo"], rel=1e-12)
    mixture = Mixture(np.array([0.3, 0.7]), np.array([[1.0, 2.0], [-1, 0.5]]), np.stack([np.eye(2), 2 * np.eye(2)]))
    found = bounds.neg_elbo(model, x, 3, draws=4, mixture=mixture)
    assert {name: value for name, value in found.items() if name != "mixture_neg_elbo"} == bounds.neg_elbo(model, x, 3)
    mu, log_variance = (part.astype(float) for part in model.encode_distribution(x))
    gains = []
    for draw in range(4):
        z = mu + np.exp(log_variance / 2) * philox(f'[3, "evaluation", {draw}]').standard_normal(mu.shape)
        density = sum(
            weight * np.exp(-((z - mean) ** 2).sum(axis=1) / (2 * scale)) / (2 * np.pi * scale)
            for weight, mean, scale in zip(mixture.weights, mixture.means, (1, 2), strict=True)
        )
        gains.append(np.log(density) - np.log(np.exp(-(z**2).sum(axis=1) / 2) / (2 * np.pi)))
    assert found["mixture_neg_elbo"] == pytest.approx(found["neg_elbo"] - np.mean(gains), rel=1e-9)


@pytest.mark.parametrize(
    ("more", "holes"),
    [
        ({}, "of N(0, I)"),
        ({"prior": "N(0, I)"}, "of N(0, I)"),
        ({"prior": "mixture of 50 Gaussians"}, "of the mixture"),
    ],
)
def test_the_table_says_what_samples_come_from_and_leaves_out_what_says_nothing(more, holes):
    figures = {"bce": 1.0, "data_entropy": 1.0, "prior_holes": 0.1, "sample_std": 0.2, "fd": 3.0, "fd_floor": 1.0}
    text = " ".join(metrics.table(figures | more).split())
    assert f"0.1 share of samples {holes}" in text
    assert f"across samples {holes}" in text
    text = metrics.table(figures | more | {"model": {"likelihood": "gaussian"}, "test_images": 199})
    assert {line.split()[0] for line in text.splitlines()} & set(figures) == {"prior_holes", "sample_std"}


def test_the_table_shows_what_was_measured():
    figures = dict.fromkeys(metrics.METRICS) | {"mse": 0.0123456, "kl": 3.5, "kl_per_dim": [1.234, 2.0]}
    figures |= {"aggregate_mean": [-0.717, -0.228, -0.598, -0.773], "aggregate_std": [0.5, 1, 1, 1, 2.0]}
    lines = metrics.table(figures).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines.pop(1).strip() == "the mean latent"
    shown = [
        "mse 0.012346 ",
        "kl 3.5 ",
        "kl_per_dim 1.23 2 ",
        "aggregate_mean -0.773 to -0.228 ",
        "aggregate_std 0.5 to 2 ",
    ]
    for line, start in zip(lines, shown, strict=True):
        assert " ".join(line.split()).startswith(start)
    assert "per pixel" in lines[0]
