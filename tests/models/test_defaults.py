"""What is chosen where nobody chooses: the network by the image, the length of a training; when a training has gone
wrong, and whether the advice that is then given helps."""

import math
import re
from functools import cache

import numpy as np
import pytest
from kernel_sets import NEEDS_EVAL

from autoencoders import VAE, Autoencoder
from autoencoders.cli.settings import OPTIONS, new_model
from autoencoders.conv_autoencoder import from_config
from autoencoders.data import Dataset
from autoencoders.evaluation import diagnosis
from autoencoders.evaluation.diagnosis import diagnose
from autoencoders.evaluation.metrics import measure
from autoencoders.layers import SoftBound
from autoencoders.network import network_for
from autoencoders.training import DivergedError, advice as advice_of
from autoencoders.training.advice import STEPS, more_epochs, remedies
from minigrad import Tensor, optim
from minigrad.testing import gradcheck

# ---- the network ----


@pytest.mark.parametrize(
    ("shape", "filters", "kernels", "strides"),
    [
        ((28, 28, 1), (32, 64, 64, 64), (3, 3, 3, 3), (1, 2, 2, 1)),
        ((32, 32, 3), (32, 64, 64, 64), (3, 4, 4, 3), (1, 2, 2, 1)),
        ((8, 8, 1), (32, 64), (3, 3), (1, 1)),
        ((9, 5, 1), (32, 64, 64), (3, 4, 3), (1, 2, 1)),
        ((96, 128, 3), (16, 32, 64, 64, 64, 64), (3, 4, 4, 4, 4, 3), (1, 2, 2, 2, 2, 1)),
    ],
)
def test_the_network_follows_the_image(shape, filters, kernels, strides):
    assert network_for(shape) == (filters, kernels, strides)
    model = VAE(shape)
    assert (model.conv_filters, model.conv_kernels, model.conv_strides) == (filters, kernels, strides)


@pytest.mark.parametrize(("channels", "likelihood"), [(1, "bernoulli"), (2, "gaussian-learned")])
def test_the_likelihood_follows_the_channels_unless_it_is_given(channels, likelihood):
    sizes = (8, 8, channels), (2,), 3, 2
    assert VAE(*sizes).likelihood == likelihood
    assert VAE(*sizes, likelihood="gaussian").likelihood == "gaussian"
    old = {name: value for name, value in VAE(*sizes).config.items() if name != "likelihood"}
    assert from_config(old).likelihood == "bernoulli", "the default of the versions that did not record it"
    settings = {name.replace("-", "_"): default for name, (default, _, _) in OPTIONS.items()}
    assert new_model(settings, sizes[0], 0.9).likelihood == likelihood
    assert new_model(settings | {"binarise": True}, sizes[0], 0.9).likelihood == "bernoulli"


@pytest.mark.parametrize("cls", [VAE, Autoencoder])
@pytest.mark.parametrize("side", [1, 7, 16, 30, 31, 33, 48, 100])
def test_every_size_ends_in_a_small_map_and_comes_back(cls, side):
    model = cls((side, max(1, side - 3), 3))
    assert max(model._encoded_shape[:2]) <= 8
    assert min(side, 5) <= max(model._encoded_shape[:2])  # and not in a needlessly small one
    assert model.reconstruct(np.zeros((1, *model.input_shape), np.uint8))[0].shape == (1, *model.input_shape)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"filters": (16, 32)}, ((16, 32), (3, 3), (2, 2))),
        ({"filters": 16, "kernels": 3, "strides": 2}, ((16,), (3,), (2,))),
        ({"filters": (16, 32), "kernels": 5}, ((16, 32), (5, 5), (2, 2))),
        ({"filters": (8, 8, 8, 8, 8), "kernels": 5}, (5 * (8,), 5 * (5,), (1, 2, 2, 1, 1))),
        ({"strides": (2, 2, 2, 2)}, ((32, 64, 64, 64), (3, 3, 3, 3), (2, 2, 2, 2))),
        ({"strides": 2}, ((32, 64, 64, 64), (3, 3, 3, 3), (2, 2, 2, 2))),
        ({"kernels": (5, 3, 3)}, ((32, 64, 64), (5, 3, 3), (1, 2, 2))),
    ],
)
def test_what_is_given_is_kept_and_the_rest_follows(given, expected):
    assert network_for((28, 28, 1), **given) == expected


@pytest.mark.parametrize("stride", [2, 3, (1, 2), (2, 3)])
def test_a_kernel_is_a_multiple_of_its_stride(stride):
    """A transposed convolution with ones gives the same number everywhere inside: no grid."""
    (kernel,) = network_for((60, 60, 1), (1,), None, (stride,))[1]
    model = Autoencoder((60, 60, 1), (1,), None, (stride,))
    assert model.conv_kernels == (kernel,)
    layer = model.network.layers["decoder_conv_transpose_layer_1"]
    layer.weight.data[...] = 1
    y = layer(Tensor(np.ones((1, *model._encoded_shape), np.float32))).data[0, 8:-8, 8:-8, 0]
    assert y.min() == y.max() > 0


# ---- the bound of log_variance ----


def test_the_bound_is_the_identity_inside_and_holds_outside():
    inside = np.linspace(-19, 9, 1001).astype(np.float32)
    np.testing.assert_array_equal(SoftBound(-20, 10)(Tensor(inside)).data, inside)
    outside = np.array([-1e30, -40, -19.5, 9.5, 30, 1e30])
    expected = [-20, -19 - 21 / 22, -19 - 0.5 / 1.5, 9 + 0.5 / 1.5, 9 + 21 / 22, 10]
    np.testing.assert_allclose(SoftBound(-20, 10)(Tensor(outside)).data, expected, rtol=1e-12)
    assert np.isnan(SoftBound(-20, 10)(Tensor(np.array([np.nan, np.inf, -np.inf]))).data).all()  # diverging is seen


def test_the_gradient_of_the_bound():
    x = np.array([-1e3, -40.0, -19.5, -18.99, 0.0, 8.99, 9.5, 12.0, 1e3])
    gradcheck(lambda x: SoftBound(-20, 10)(x), Tensor(x, requires_grad=True))


def test_a_vae_bounds_its_log_variance_and_an_old_one_does_not():
    new = VAE((8, 8, 1), (2,), 3, 2)
    old = from_config({name: value for name, value in new.config.items() if name != "log_variance_bounds"})
    state = new.network.state_dict()
    state["log_variance.bias"] += 100
    for model, least, most in ((new, 9, 10), (old, 90, 110), (from_config(old.config), 90, 110)):
        model.network.load_state_dict(state)
        found = model.encode_distribution(np.zeros((1, 8, 8, 1), np.uint8))[1]
        assert least < found.min() <= found.max() < most
    for wrong in ((0, 2), (1, -1), (-math.inf, 3), (1, 2, 3)):
        with pytest.raises(ValueError, match="log_variance_bounds must be two finite numbers"):
            VAE((8, 8, 1), (2,), 3, 2, log_variance_bounds=wrong)


# ---- trainings that went wrong, and the advice ----


def shapes(count: int, side: int = 16) -> np.ndarray:
    """Grey pictures of a bright ellipse on dark ground, which a small model learns in seconds."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:side, :side] / side
    a, b, r = (rng.uniform(low, high, (count, 1, 1)) for low, high in ((0.3, 0.7), (0.3, 0.7), (0.15, 0.3)))
    images = 1 / (1 + np.exp(40 * (np.hypot((x - a) * rng.uniform(0.6, 1.6, (count, 1, 1)), y - b) - r)))
    return (255 * images).astype(np.uint8)[..., None]


IMAGES, TEST = shapes(512), shapes(64 + 512)[512:]
LARGE, TEST_LARGE = ((x > 128).sum(axis=(1, 2, 3)) > 36 for x in (IMAGES, TEST))  # the classes: small and large
WORKING = {
    "lr": 2e-3,
    "epochs": 40,
    "beta": 1.0,
    "likelihood": "bernoulli",
    "augment": False,
    "images": 512,
    "z": 2,
    "classes": 0,
}
# a case: what is changed of that, which then has a fault; and the option of its advice, which is then followed
CASES = {
    "rate": ({"lr": 0.5}, "diverged", "lr"),
    "beta": ({"beta": 500.0}, "posterior collapse", "beta"),
    "no beta": ({"beta": 0.0, "lr": 0.02}, "dead prior", "beta"),
    "small beta": ({"beta": 0.05}, "prior mismatch", "beta"),
    "large beta": ({"beta": 20.0, "z": 8}, "over-regularised", "beta"),
    "steps": ({"epochs": 2}, "reconstructions are no better", "epochs"),
    "few steps": ({"epochs": 4, "z": 8}, "blurred", "epochs"),
    "ignored class": ({"beta": 0.01, "z": 16, "classes": 2}, "ignored class", "beta"),
    "few images": ({"images": 48, "epochs": 120, "z": 8}, "over-fitting", "augment"),
    "fixed variance": ({"likelihood": "gaussian", "z": 8, "beta": 10.0}, "over-regularised", "likelihood"),
}


@cache
def outcome(**s) -> tuple[float, dict[str, str]]:
    """(test error, infinite where the training diverged; advice by fault) of a training with these settings."""
    images = IMAGES[: s["images"]]
    labels = LARGE[: s["images"]].astype(int) if s["classes"] else None
    named = {name: s[name] for name in ("beta", "likelihood", "classes")}
    model = VAE((16, 16, 1), (8, 16), latent_space_dim=s["z"], momentum=0.9, **named)
    model.compile(s["lr"])
    steps = s["epochs"] * -(-len(images) // 32)
    how = {"schedule": "cosine", "warmup_steps": min(50, steps // 2), "augment": s["augment"], "progress": False}
    try:
        model.train(images, 32, s["epochs"], labels=labels, **how)
    except DivergedError as error:
        return math.inf, {"diverged": str(error)}
    test_labels = TEST_LARGE.astype(int) if s["classes"] else None
    dataset = Dataset("shapes", images, labels, TEST, test_labels, (), "")
    figures, _ = measure(model, dataset, iw_samples=0, progress=False)
    figures |= {
        "test_images": len(TEST),
        "model": model.config,
        "training": {"learning_rate": s["lr"], "epochs": s["epochs"], "steps": steps},
    }
    return figures["mse"], {x["finding"].partition(":")[0]: x["option"] for x in diagnose(figures)}


@NEEDS_EVAL
@pytest.mark.parametrize("case", CASES)
def test_the_advice_helps(case, monkeypatch):
    for module in (advice_of, diagnosis):
        monkeypatch.setattr(module, "STEPS", 640)  # enough for these small pictures
    changed, fault, option = CASES[case]
    settings = {**WORKING, **changed}
    before, faults = outcome(**settings)
    (advice,) = [text for name, text in faults.items() if name.startswith(fault)]
    found = re.search(rf"--{option}(?: ([a-z0-9.-]+))?", advice)
    assert found, advice
    after, left = outcome(**settings | {option: type(WORKING[option])(found[1] or True)})
    assert after < before or fault in ("prior mismatch", "ignored class")  # which are faults of the samples
    assert not any(name.startswith(fault) for name in left) or fault == "over-fitting"


def test_a_training_with_the_defaults_has_no_fault():
    assert outcome(**WORKING)[1] == {}


def test_the_advice_names_values():
    model = VAE((64, 64, 1), (4,), None, 1, beta=4).config
    assert remedies(model, 0.01, 2, 100, diverged=False) == [
        "beta 1 (--beta 1 instead of 4)",
        "a last feature map of 8 pixels, not 64 (leave out --strides)",
        "a smaller learning rate (--lr 0.002 instead of 0.01)",
        f"more steps (--epochs 40 for about {STEPS:,})",
    ]
    usual = VAE((28, 28, 1)).config
    assert remedies(usual, 0.001, 8, 3752, diverged=False) == []
    assert remedies(usual, 0.001, 8, 3752, diverged=True) == ["a smaller learning rate (--lr 0.00025 instead of 0.001)"]


@pytest.mark.parametrize(
    ("epochs", "steps", "before", "wanted"),
    [(1, 3, 0, 667), (20, 200, 0, 200), (20, 200, 700, 130), (1, 1000, 0, None), (1, 1, STEPS, None), (0, 0, 0, None)],
)
def test_a_training_of_less_than_half_the_steps_is_short(epochs, steps, before, wanted):
    """STEPS is 2,000, also with those from before."""
    assert more_epochs(epochs, steps, before) == wanted


@pytest.mark.parametrize(
    ("losses", "what"),
    [
        ({"reconstruction": 30_000.0, "kl": 10.0}, "-ELBO"),
        ({"reconstruction": 200.0, "kl": 9e4}, "-ELBO"),
        ({"reconstruction": 200.0, "kl": 1500.0}, "KL is 1.5e[+]03 nats"),
        ({"reconstruction": 250.0, "kl": 5.0}, None),
        ({"reconstruction": 900.0, "kl": 500.0}, None),
    ],
)
def test_absurd_losses(losses, what):
    found = VAE((16, 16, 1)).implausible(losses)
    assert found is None if what is None else re.search(what, found)
    assert Autoencoder((16, 16, 1)).implausible({"reconstruction": 0.3}) is None


# ---- words of other libraries ----


@pytest.mark.parametrize(
    ("call", "hint"),
    [
        (lambda m: m.compile(lr=1e-3), "unknown argument 'lr'; use learning_rate"),
        (lambda m: m.compile(learnin_rate=1e-3), "did you mean learning_rate"),
        (lambda m: m.train(IMAGES, lr=1e-3), "unknown argument 'lr'; use learning_rate"),
        (lambda m: m.train(IMAGES, epochs=3), "unknown argument 'epochs'; use num_epochs"),
        (lambda m: m.train(IMAGES, verbose=0), "use progress"),
        (lambda m: m.train(IMAGES, sede=0), "did you mean seed"),
        (lambda m: m.fit(IMAGES), "no attribute 'fit'; use train"),
        (lambda m: m.predict(IMAGES), "use reconstruct"),
        (lambda m: m.unheard_of, "no attribute 'unheard_of'$"),
        (lambda m: optim.Adam(m.network.parameters(), lr=1e-3), "lr is called learning_rate"),
    ],
)
def test_words_of_other_libraries_get_a_hint(call, hint):
    with pytest.raises((TypeError, AttributeError), match=hint):
        call(VAE((16, 16, 1), 2, 3, 2))


def test_layers_are_found_by_name_and_number():
    network = VAE((16, 16, 1), 2, 3, 2).network
    assert network[0] is network["encoder_conv_layer_1"] is network[:1][0] is next(iter(network))
    assert network[-1] is network["decoder_conv_transpose_layer_1"]
    for wrong, error in ((99, IndexError), ("nope", KeyError)):
        with pytest.raises(error):
            network[wrong]
