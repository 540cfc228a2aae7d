"""What the figures say in words: each rule where it fires and where it does not, and on models that have the fault."""

import re
from pathlib import Path

import numpy as np
import pytest

from autoencoders import VAE, Autoencoder
from autoencoders.cli import generate, train
from autoencoders.cli.program import Program
from autoencoders.data import Dataset, load_dataset
from autoencoders.evaluation import metrics
from autoencoders.evaluation.diagnosis import FATAL, FAULTS, diagnose, verdict
from autoencoders.evaluation.metrics import METRICS, measure

HEALTHY = {  # of the VAE that the README shows
    **dict.fromkeys(METRICS),
    "mse": 0.0274, "train_mse": 0.0271, "mean_mse": 0.0867, "pca_mse": 0.0461, "pca_mse_active": 0.0461,
    "neg_elbo": 261.1, "train_neg_elbo": 257.7, "kl": 6.16, "active_units": 2, "log_variance_per_dim": [-5.78, -5.82],
    "aggregate_mean": [-0.02, -0.07], "aggregate_std": [1.15, 1.18], "prior_holes": 0.03,
    "image_std": 0.274, "reconstruction_std": 0.220, "sample_std": 0.203,
    "model": {
        "kind": "vae", "latent_space_dim": 2, "beta": 1.0, "likelihood": "bernoulli", "variance": 0.1,
        "input_shape": (28, 28, 1), "conv_filters": (32, 64, 64, 64), "conv_strides": (1, 2, 2, 1),
    },
    "training": {"learning_rate": 0.002, "epochs": 8, "steps": 3752},
}  # fmt: skip
SEED = {  # the original's VAE, measured
    **HEALTHY, "mse": 0.02525, "train_mse": 0.0250, "neg_elbo": 1737.6, "train_neg_elbo": 1730, "kl": 1485.6,
    "log_variance_per_dim": [-77, -88], "aggregate_mean": [3.1, -2.2], "aggregate_std": [30.0, 41.0],
    "prior_holes": 0.0, "reconstruction_std": 0.226, "sample_std": 0.010,
}  # fmt: skip
AE = {
    **dict.fromkeys(METRICS),
    "mse": 0.0286, "train_mse": 0.0283, "mean_mse": 0.0867, "pca_mse": 0.0461, "image_std": 0.274,
    "reconstruction_std": 0.22,
    "model": {"kind": "ae", "latent_space_dim": 2, "input_shape": (28, 28, 1),
        "conv_filters": (32, 64, 64, 64), "conv_strides": (1, 2, 2, 1)},
}  # fmt: skip
RULES = {rule.__name__: rule for rule in (*FATAL, *FAULTS)}


def model(**options):
    return HEALTHY["model"] | options


def names(figures):
    """The rules that fire."""
    return {name for name, rule in RULES.items() if rule(figures)}


@pytest.mark.parametrize("figures", [HEALTHY, AE], ids=["vae", "ae"])
def test_no_fault_in_a_healthy_model(figures):
    assert diagnose(figures) == []
    text = verdict(figures)
    assert text.startswith("no fault found")
    assert f"mse {figures['mse']:.4f} (PCA 0.0461)" in text
    assert ("2 of 2 units active" in text) == (figures is HEALTHY)
    assert ("samples vary 0.92 times" in text) == (figures is HEALTHY)


def test_the_seed_is_not_a_working_vae():
    found = diagnose(SEED)
    assert [finding["finding"].split(":")[0] for finding in found] == ["dead prior", "diverged variance"]
    assert verdict(SEED).startswith("this is not a working VAE: dead prior: samples are all alike")
    for figure in ("0.010", "0.226", "1486"):
        assert figure in found[0]["why"]
    for figure in ("-88 to -77", "1486"):
        assert figure in found[1]["why"]
    assert all(set(finding) == {"finding", "why", "option"} for finding in found)


@pytest.mark.parametrize(
    ("rule", "change", "base"),
    [
        ("posterior_collapse", {"active_units": 0, "kl": 0.001}, HEALTHY),
        ("ignored_latent", {"reconstruction_std": 0.02}, AE),
        ("no_better_than_the_mean", {"mse": 0.09, "train_mse": 0.09}, AE),
        ("over_regularised", {"mse": 0.05, "train_mse": 0.05, "model": model(beta=4.0)}, HEALTHY),
        ("over_regularised", {"mse": 0.05, "train_mse": 0.05, "model": model(likelihood="gaussian")}, HEALTHY),
        ("blurred", {"mse": 0.05, "train_mse": 0.05}, HEALTHY),
        ("blurred", {"mse": 0.05, "train_mse": 0.05}, AE),
        ("blurred", {"mse": 0.05, "train_mse": 0.05, "pca_mse": 0.03, "pca_mse_active": 0.0461}, HEALTHY),
        ("blurred", {"mse": 0.05, "train_mse": 0.05, "model": model(beta=0.5)}, HEALTHY),
        ("blurred", {"mse": 0.05, "train_mse": 0.05, "model": model(likelihood="gaussian-learned")}, HEALTHY),
        ("blurred", {"mse": 0.05, "train_mse": 0.05, "model": model(likelihood="gaussian", variance=0.01)}, HEALTHY),
        ("ignored_latent", {"reconstruction_std": 0.0273}, HEALTHY),  # just beyond each limit
        ("no_better_than_the_mean", {"mse": 0.0867, "train_mse": 0.0867}, HEALTHY),
        ("dead_prior", {"sample_std": 0.0329}, HEALTHY),
        ("diverged_variance", {"log_variance_per_dim": [-17.1, 0]}, HEALTHY),
        ("diverged_variance", {"log_variance_per_dim": [0, 5.1]}, HEALTHY),
        ("prior_mismatch", {"sample_std": 0.0331}, HEALTHY),
        ("prior_mismatch", {"sample_std": 0.1099}, HEALTHY),
        ("prior_mismatch", {"aggregate_mean": [0, -0.51]}, HEALTHY),
        ("prior_mismatch", {"aggregate_std": [1, 1.51]}, HEALTHY),
        ("prior_mismatch", {"aggregate_std": [0.66, 1]}, HEALTHY),
        ("prior_mismatch", {"prior_holes": 0.34}, HEALTHY),
        ("prior_mismatch", {"aggregate_mean": [0, -0.81], "test_images": 100}, HEALTHY),
        ("prior_mismatch", {"aggregate_std": [1, 1.82], "test_images": 100}, HEALTHY),
        ("prior_mismatch", {"aggregate_std": [0.52, 1], "test_images": 100}, HEALTHY),
        ("ignored_class", {"image_class_std": 0.2, "sample_class_std": 0.049}, HEALTHY),
        ("over_fitting", {"train_mse": 0.0219}, HEALTHY),
        ("over_fitting", {"train_mse": 0.0219}, AE),
    ],
)
def test_a_rule_fires_alone(rule, change, base):
    figures = base | change
    assert names(figures) == {rule}
    fatal = rule in {r.__name__ for r in FATAL}
    kind = "VAE" if base is HEALTHY else "autoencoder"
    assert verdict(figures).startswith(f"this is not a working {kind}: " if fatal else f"this {kind} works, but: ")


@pytest.mark.parametrize(
    ("change", "base"),
    [
        ({"active_units": 1}, HEALTHY),
        ({"reconstruction_std": 0.0275, "sample_std": 0.0275}, HEALTHY),
        ({"reconstruction_std": 0.028}, AE),
        ({"sample_std": 0.1101}, HEALTHY),
        ({"log_variance_per_dim": [-16.9, 4.9]}, HEALTHY),
        ({"aggregate_mean": [0.49, -0.49], "aggregate_std": [0.68, 1.49], "prior_holes": 0.32}, HEALTHY),
        ({"aggregate_mean": [0.79, -0.79], "aggregate_std": [0.53, 1.81], "test_images": 100}, HEALTHY),
        ({"aggregate_mean": [-0.7, 0.4], "aggregate_std": [0.2, 1.4], "test_images": 4}, HEALTHY),
        ({"prior_holes": None}, HEALTHY),
        ({"image_class_std": 0.2, "sample_class_std": 0.051}, HEALTHY),
        ({"image_class_std": 0.0, "sample_class_std": 0.0}, HEALTHY),  # all test images are of one class
        ({"mse": 0.046, "train_mse": 0.046, "model": model(beta=4.0)}, HEALTHY),
        ({"mse": 0.05, "train_mse": 0.05, "pca_mse": None, "pca_mse_active": None}, HEALTHY),
        # 64 dimensions of which 15 are used: worse than PCA with 64 components, better than with 15
        ({"mse": 0.0114, "train_mse": 0.0112, "pca_mse": 0.0104, "pca_mse_active": 0.0208}, HEALTHY),
        ({"train_mse": 0.02193}, HEALTHY),
        ({"mse": 0.0866, "train_mse": 0.0866, "pca_mse": None, "pca_mse_active": None}, HEALTHY),
        ({"image_std": 2e-6, "reconstruction_std": 2e-6, "sample_std": 2e-6}, HEALTHY),
        ({"train_mse": 0.0}, AE),
    ],
)
def test_no_rule_fires(change, base):
    assert names(base | change) == set()
    assert verdict(base | change).startswith("no fault found")


@pytest.mark.parametrize("base", [HEALTHY, AE], ids=["vae", "ae"])
@pytest.mark.parametrize("std", [0.0, 1e-17, 9e-7])
def test_test_images_that_are_all_alike_tell_nothing(std, base):
    """One image, or many of which all are the same: a good model, too, gives them one latent."""
    alike = {"image_std": std, "reconstruction_std": 0.0}
    if base is HEALTHY:
        alike |= {"active_units": 0, "aggregate_std": [0.01, 0.02], "aggregate_mean": [1, 2], "sample_std": 0.2}
    assert diagnose(base | alike) == []
    kind = "VAE" if base is HEALTHY else "autoencoder"
    assert verdict(base | alike) == f"this {kind} cannot be judged: the test images are all alike"


@pytest.mark.parametrize(
    ("change", "wide", "narrow"),
    [
        ({"aggregate_std": [3.0, 1.6]}, True, False),
        ({"sample_std": 0.04}, True, False),
        ({"aggregate_std": [0.6, 1.0]}, False, True),
        ({"prior_holes": 0.4}, False, True),
        ({"aggregate_mean": [6.0, 6.0], "prior_holes": 1.0}, True, True),
    ],
)
def test_a_mismatch_says_where_images_and_samples_are(change, wide, narrow):
    (found,) = diagnose(HEALTHY | change)
    assert ("many images are encoded where samples are seldom drawn" in found["finding"]) == wide
    assert ("samples are drawn where few images are encoded" in found["finding"]) == narrow


def test_several_faults_are_told_worst_first_with_their_figures():
    figures = HEALTHY | {"prior_holes": 0.4, "mse": 0.05, "train_mse": 0.03, "model": model(beta=4.0)}
    found = diagnose(figures)
    assert [finding["finding"].split(":")[0] for finding in found] == [
        "prior mismatch", "over-regularised", "over-fitting",
    ]  # fmt: skip
    assert "40% of the prior's samples lie where no image does" in found[0]["why"]
    assert found[1]["why"] == "mse is 0.0500, but PCA with as many dimensions has 0.0461; beta 4"
    assert found[2]["why"] == "mse 0.0500, on training images 0.0300; -ELBO 261.1, on training images 257.7"
    (found,) = diagnose(HEALTHY | {"mse": 0.09, "train_mse": 0.09})
    assert found["why"] == "mse is 0.0900; the mean of the training images gives 0.0867"
    assert "1.01 times that on training images" in verdict(HEALTHY)
    (found,) = diagnose(HEALTHY | {"mse": 0.05, "train_mse": 0.05, "active_units": 1})
    assert found["why"] == "mse is 0.0500, but PCA with 1 component has 0.0461"


def test_many_holes_are_answered_with_a_mixture_where_one_helps():
    told = "32% of the samples of N(0, I) lie where no image does, but `generate --mixture-components 50` fits"
    many = HEALTHY | {"prior_holes": 0.32}
    normal, mixture = {"prior": "N(0, I)"}, {"prior": "mixture of 50 Gaussians"}
    assert told in verdict(many | normal)
    assert verdict(many | normal | {"train_mse": 0.01}).startswith("this VAE works, but: over-fitting")
    assert told in verdict(many | normal | {"train_mse": 0.01})
    for other in (HEALTHY | normal, many | mixture, many | normal | {"model": model(classes=3)}, AE | {"prior": None}):
        assert "mixture" not in verdict(other)


def test_latents_far_from_the_normal_prior_are_no_fault_with_a_mixture():
    far = HEALTHY | {"aggregate_mean": [6.0, 6.0], "aggregate_std": [0.1, 3.0]}
    assert (names(far), names(far | {"prior": "mixture of 2 Gaussians"})) == ({"prior_mismatch"}, set())
    (found,) = diagnose(far | {"prior": "mixture of 2 Gaussians", "prior_holes": 0.4})
    assert "40% of the mixture's samples lie where no image does" in found["why"]


def random_figures(rng):
    """Metrics of no model in particular, each often beyond a limit."""
    figures, Z = HEALTHY | {"test_images": 1000}, int(rng.integers(1, 6))
    for name in ("mse", "train_mse", "mean_mse", "pca_mse", "pca_mse_active", "reconstruction_std", "sample_std", "kl"):
        figures[name] = HEALTHY[name] * float(np.exp(rng.normal(0, 1.2)))
    figures["active_units"] = int(rng.integers(0, Z + 1))
    for name in ("log_variance_per_dim", "aggregate_mean", "aggregate_std"):
        figures[name] = (np.abs(rng.normal(0, 2, Z)) * (-3 if name[0] == "l" else 1)).tolist()
    options = {"beta": float(rng.choice([0.1, 0.5, 1, 4])), "latent_space_dim": Z}
    options |= {"likelihood": str(rng.choice(["bernoulli", "gaussian"])), "variance": float(rng.choice([0.01, 1.0]))}
    return figures | {"model": model(**options), "training": {"learning_rate": 0.002, "epochs": 8, "steps": 3752}}


def test_no_diagnosis_contradicts_itself():
    rng, several = np.random.default_rng(0), 0
    for _ in range(3000):
        figures = random_figures(rng)
        found = diagnose(figures)
        text = " ".join(finding["finding"] + finding["why"] for finding in found)
        options = [finding["option"] for finding in found]
        several += len(found) > 1
        assert ("posterior collapse" in text) == (figures["active_units"] == 0), "or some units are active"
        assert ("over-regularised" in text) <= (
            not any(f"instead of {b}" in x for x in options for b in ("0.1", "0.5"))
        )
        assert ("over-fitting" in text) <= (not any("longer training" in option for option in options))
        fatal_names = {rule(figures)[0] for rule in FATAL if rule(figures)}
        assert not fatal_names or {finding["finding"] for finding in found} == fatal_names
        assert len({part for option in options for part in re.findall(r"--lr \S+", option)}) <= 1
    assert several > 100


def test_the_option_depends_on_beta():
    (found,) = diagnose(HEALTHY | {"sample_std": 0.01, "model": model(beta=0.001)})
    assert found["option"].startswith("beta 1 (--beta 1 instead of 0.001)")
    assert not any("beta" in finding["option"] for finding in diagnose(SEED))


def test_a_model_that_over_fits_is_not_trained_longer():
    for training, words in ((HEALTHY["training"], "--epochs 16"), ({"epochs": 9, "steps": 600}, "--epochs 30 ")):
        figures = HEALTHY | {"prior_holes": 0.4, "training": training}
        assert [words in finding["option"] for finding in diagnose(figures)] == [True]
        found = diagnose(figures | {"train_mse": 0.0219})
        assert ["--augment" in finding["option"] for finding in found] == [True, True]


def test_the_options_exist():
    parsers = [program.build_parser(Program.installed("it")) for program in (train, generate)]
    known = {name for parser in parsers for action in parser._actions for name in action.option_strings}
    package = Path(__file__).parents[2] / "autoencoders"
    places = package / "evaluation/diagnosis.py", package / "training/advice.py"
    named = {option for place in places for option in re.findall(r"--[a-z][a-z-]+", place.read_text())}
    assert len(named) >= 6
    assert named <= known


# ---- models that have the fault ----


@pytest.fixture(scope="module")
def data():
    whole = load_dataset("fashion-mnist-sample")
    return Dataset(
        "part", whole.train_images[:2000], whole.train_labels[:2000], whole.test_images[:400], whole.test_labels[:400],
        whole.class_names, "a part of the sample",
    )  # fmt: skip


def trained(data, cls=VAE, count=2000, epochs=8, **options):
    small = cls((28, 28, 1), (8, 16), (3, 3), (2, 2), 2, momentum=0.9, **options)
    small.compile(5e-3)
    small.train(data.train_images[:count], 50, epochs, progress=False)
    return small


@pytest.fixture(scope="module")
def vae(data):
    return trained(data)


def change(vae, changes):
    """A copy with some of its arrays replaced: {name: function of the array}."""
    state = vae.network.state_dict()
    other = VAE((28, 28, 1), (8, 16), (3, 3), (2, 2), 2, momentum=0.9)
    other.network.load_state_dict({name: changes.get(name, lambda x: x)(x) for name, x in state.items()})
    return other


def findings(model, data, **options):
    figures, _ = measure(model, data, iw_samples=0, **options)
    figures |= {"model": model.config}
    return names(figures), verdict(figures)


def test_a_vae_has_none_of_the_fatal_faults_after_few_steps(data):
    """Its samples are pale, but of different clothes; few dimensions that lose much get a note."""
    small = trained(data, epochs=2)
    figures, notes = measure(small, data, iw_samples=0)
    assert not names(figures | {"model": small.config}) & {rule.__name__ for rule in FATAL}
    kept = f"{1 - figures['mse'] / figures['mean_mse']:.0%}"
    assert f"2 latent dimensions keep {kept} of the pixels' variance; --latent-dim 16 gives sharper pictures" in notes


@pytest.mark.parametrize(("name", "value"), [("KEPT", 0.01), ("FEW_DIMENSIONS", 1)])
def test_dimensions_that_keep_much_or_are_many_get_no_note(name, value, vae, data, monkeypatch):
    monkeypatch.setattr(metrics, name, value)
    monkeypatch.setattr(metrics, "_library_metrics", lambda *_: [])
    assert "sharper pictures" not in "".join(measure(vae, data, iw_samples=0)[1])


def test_an_untrained_model_does_not_work(data):
    for cls in (VAE, Autoencoder):
        _, text = findings(cls((28, 28, 1), (8, 16), (3, 3), (2, 2), 2), data)
        assert text.startswith("this is not a working")


def test_weights_like_the_seeds_are_not_a_working_vae(vae, data):
    """Latents spread 40 times as far as the prior with no variance of their own: it reconstructs as before."""
    like_the_seed = change(
        vae,
        {
            "mu.weight": lambda x: x * 40,
            "mu.bias": lambda x: x * 40,
            "decoder_dense.weight": lambda x: x / 40,
            "log_variance.weight": lambda x: x * 0,
            "log_variance.bias": lambda x: x * 0 - 80,
        },
    )
    np.testing.assert_allclose(
        like_the_seed.reconstruct(data.test_images)[0], vae.reconstruct(data.test_images)[0], atol=1e-3
    )
    found, text = findings(like_the_seed, data)
    assert {"dead_prior", "diverged_variance"} <= found
    assert text.startswith("this is not a working VAE: dead prior: samples are all alike, diverged variance")


def test_a_decoder_that_ignores_the_latent_is_no_posterior_collapse(vae, data):
    found, text = findings(change(vae, {"decoder_dense.weight": lambda x: x * 0}), data)
    assert "ignored_latent" in found
    assert not {"posterior_collapse", "dead_prior"} & found  # samples are alike because everything is
    assert text.startswith("this is not a working VAE: ignored latent")


def test_a_posterior_that_is_the_prior_is_posterior_collapse(vae, data):
    heads = ("mu.weight", "mu.bias", "log_variance.weight", "log_variance.bias")
    found, _ = findings(change(vae, dict.fromkeys(heads, lambda x: x * 0)), data)
    assert "posterior_collapse" in found
