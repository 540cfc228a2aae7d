"""Both models from outside: construction, arrays in and out, likelihoods, files, and their gradients as a whole."""

import copy
import itertools
import math
from functools import partial

import numpy as np
import pytest
from philox import philox
from trainings import unconditional

import autoencoders
import minigrad
from autoencoders import VAE, Autoencoder
from autoencoders.conv_autoencoder import BATCH
from autoencoders.evaluation.bounds import neg_elbo
from autoencoders.evaluation.metrics import quick_metrics
from autoencoders.saved import MODEL_FILE
from autoencoders.standardize import fit_variance, standardize
from minigrad import Tensor, nn
from minigrad.serialize import DataError, save_state
from minigrad.testing import gradcheck

SHAPE = (8, 8, 1)
LIKELIHOODS = ("bernoulli", "gaussian", "gaussian-learned")


def new(cls=Autoencoder, shape=SHAPE, filters=(2, 3), kernels=(3, 3), strides=(1, 2), latent=2, **options):
    return cls(shape, filters, kernels, strides, latent, **options)


def images(count=5, shape=SHAPE, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def shaken(model: Autoencoder, seed: int = 0) -> Autoencoder:
    """The model with every parameter and statistic moved, so that no bias is 0 and no gamma 1."""
    rng = np.random.default_rng(seed)
    for name, x in model.network.named_tensors():
        low = 0.5 if name.endswith("variance") and "moving" in name else -0.5
        x.data[...] += rng.uniform(low, 0.5 if low < 0 else 1.5, x.shape).astype(x.dtype)
    return model


def loaded(model: Autoencoder) -> dict[str, np.ndarray]:
    return model.network.state_dict()


# ---- construction ----


BAD_ARGUMENTS = [
    ({"filters": ()}, "need one entry for each convolution, found 0, 2 and 2"),
    ({"strides": (1,)}, "found 2, 2 and 1"),
    ({"filters": (), "kernels": (), "strides": ()}, "found 0, 0 and 0"),
    ({"shape": (8, 8)}, r"^input_shape must be \(H, W, C\).* \(8, 8\)$"),
    ({"shape": (0, 8, 1)}, r"^input_shape .* whole numbers >= 1, found \(0, 8, 1\)$"),
    ({"filters": (2, 0)}, r"^conv_filters must be whole numbers >= 1, found \(2, 0\)$"),
    ({"latent": 0}, "^latent_space_dim must be a whole number >= 1, found 0$"),
    ({"latent": 2.5}, "whole number >= 1, found 2.5"),
    ({"latent": True}, "whole number >= 1, found True"),
    ({"kernels": (3, 0)}, "conv_kernels and conv_strides.*found 0"),
    ({"kernels": (3, (3, 3, 3))}, "conv_kernels and conv_strides"),
    ({"kernels": (3, "33")}, "found '33'"),
    ({"strides": (1, (2, 0))}, r"found \(2, 0\)"),
    ({"hidden": 0}, "^hidden must be None or a whole number >= 1, found 0$"),
    ({"hidden": 2.0}, "^hidden must be None or a whole number >= 1, found 2.0$"),
    ({"seed": -1}, "seed is -1"),
    ({"momentum": 1.0}, r"momentum is 1\.0 but must lie in"),
    ({"momentum": math.nan}, "momentum is nan"),
    ({"likelihood": "normal"}, "'normal' but must be bernoulli, gaussian or gaussian-learned"),
    ({"beta": -0.1}, "^beta must be >= 0 and finite, found -0.1$"),
    ({"beta": math.inf}, "found inf"),
    ({"variance": 0}, "^variance must be > 0 and finite, found 0$"),
    ({"variance": math.nan}, "found nan"),
    ({"classes": -1}, "classes must be a whole number >= 0.* found -1"),
    ({"classes": 3, "class_names": ("a", "b")}, "one for each class, found 3 and 2 names"),
]


@pytest.mark.parametrize(("change", "message"), BAD_ARGUMENTS, ids=str)
def test_bad_arguments_are_told(change, message):
    with pytest.raises(ValueError, match=message):
        new(VAE, **change)


GEOMETRIES = [
    ((27, 29, 1), (2, 3), (3, 3), (2, 2)),
    ((29, 30, 3), (2, 2, 2), (3, 2, 4), (2, 1, 2)),
    ((5, 3, 1), (2, 2), (3, 3), (7, 2)),  # a stride larger than the size
    ((8, 8, 1), (2, 2), ((3, 1), (2, 4)), ((1, 2), (3, 1))),  # rectangular
    ((1, 1, 1), (1,), (1,), (1,)),
    ((6, 9, 1), (2,), (1,), ((4, 5),)),  # strides larger than the kernel
]


@pytest.mark.parametrize("cls", [Autoencoder, VAE])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_any_geometry_returns_to_the_size_of_the_image(cls, geometry):
    shape, _, _, strides = geometry
    model, x = cls(*geometry, 3), images(2, shape)
    y, z = model.reconstruct(x)
    assert (y.shape, z.shape) == (x.shape, (2, 3))
    model.compile(1e-3)
    assert math.isfinite(model.train(x, 2, 1, progress=False)["loss"][0])
    # each decoder stage returns to what the encoder's stage received: ceil(size / stride) backwards
    sizes = [shape[:2]]
    for SH, SW in (stride if isinstance(stride, tuple) else (stride, stride) for stride in strides):
        sizes.append((math.ceil(sizes[-1][0] / SH), math.ceil(sizes[-1][1] / SW)))
    h, found = Tensor(np.zeros((1, 3), "float32")), []
    with model.evaluating():
        for name, layer in model.network.layers.items():
            if name.startswith("decoder"):
                h = layer(h)
                found += [h.shape[1:3]] if "reshape" in name or "conv" in name else []
    assert found == sizes[::-1]


def test_numpy_numbers_are_taken_and_can_be_saved(tmp_path):
    n = np.int64
    sizes = (n(8), n(8), n(1)), [n(2)], [(n(3), n(2))], np.array([2]), n(2)
    model = VAE(*sizes, beta=np.float32(0.5), variance=np.float32(0.25))
    model.save(tmp_path)
    plain = VAE((8, 8, 1), (2,), ((3, 2),), (2,), 2, beta=0.5, variance=0.25)
    assert autoencoders.load(tmp_path).config == model.config == plain.config


# Weights are (KH, KW, in, out) and for the transposed convolution (KH, KW, out, in). The decoder is a mirror.
STATE = {
    "encoder_conv_layer_1": {"weight": (3, 2, 3, 2), "bias": (2,)},
    "encoder_bn_1": dict.fromkeys(("gamma", "beta", "moving_mean", "moving_variance"), (2,)),
    "encoder_conv_layer_2": {"weight": (5, 5, 2, 4), "bias": (4,)},
    "encoder_bn_2": dict.fromkeys(("gamma", "beta", "moving_mean", "moving_variance"), (4,)),
    "decoder_dense": {"weight": (7, 4 * 3 * 4), "bias": (4 * 3 * 4,)},
    "decoder_conv_transpose_layer_1": {"weight": (5, 5, 4, 4), "bias": (4,)},  # filters backwards: 4, then the image's
    "decoder_bn_1": dict.fromkeys(("gamma", "beta", "moving_mean", "moving_variance"), (4,)),
    "decoder_conv_transpose_layer_2": {"weight": (3, 2, 3, 4), "bias": (3,)},
}


HEADS = {head: {"weight": (4 * 3 * 4, 7), "bias": (7,)} for head in ("mu", "log_variance")}
HIDDEN = {head: {"weight": (5, 7), "bias": (7,)} for head in ("mu", "log_variance")}
HIDDEN |= {"encoder_hidden": {"weight": (48, 5), "bias": (5,)}, "decoder_hidden": {"weight": (7, 5), "bias": (5,)}}
HIDDEN |= {"decoder_dense": {"weight": (5, 48), "bias": (48,)}}


@pytest.mark.parametrize(
    ("cls", "options", "further"),
    [
        (Autoencoder, {}, {"encoder_output": HEADS["mu"]}),
        (VAE, {"likelihood": "bernoulli"}, HEADS),
        (VAE, {"likelihood": "gaussian-learned"}, {**HEADS, "likelihood": {"log_variance": (1,)}}),
        (VAE, {"likelihood": "bernoulli", "hidden": 5}, HIDDEN),
    ],
    ids=["ae", "vae", "learned", "hidden"],
)
def test_state_names_and_shapes_are_those_of_the_original(cls, options, further):
    model = new(cls, shape=(8, 6, 3), filters=(2, 4), kernels=((3, 2), 5), latent=7, **options)
    expected = {f"{layer}.{part}": s for layer, parts in {**STATE, **further}.items() for part, s in parts.items()}
    assert {name: x.shape for name, x in loaded(model).items()} == expected


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cls", [Autoencoder, VAE])
def test_shapes_ranges_dtypes_and_repeated_calls(cls, dtype):
    model, x = shaken(new(cls, shape=(8, 6, 3))), images(4, (8, 6, 3))
    model.to(dtype=dtype)
    calls = {
        "reconstruct": (lambda: model.reconstruct(x)[0], (4, 8, 6, 3)),
        "decode": (lambda: model.decode(np.zeros((3, 2))), (3, 8, 6, 3)),
        "interpolate": (lambda: model.interpolate(x[:2], x[2:], 5), (2, 5, 8, 6, 3)),
        "encode": (lambda: model.encode(x), (4, 2)),
    }
    if cls is VAE:
        calls |= {
            "sample": (lambda: model.sample(6, seed=3), (6, 8, 6, 3)),
            "sampled": (lambda: model.reconstruct(x, sample=True, seed=3)[0], (4, 8, 6, 3)),
            "z": (lambda: model.reconstruct(x, sample=True)[1], (4, 2)),
            "log_variance": (lambda: model.encode_distribution(x)[1], (4, 2)),
        }
    before = loaded(model)
    for name, (call, shape) in calls.items():
        y = call()
        assert (type(y), y.dtype, y.shape) == (np.ndarray, dtype, shape), name
        assert call().tobytes() == y.tobytes(), name
        assert np.isfinite(y).all(), name
        if len(shape) > 2:
            assert 0 <= y.min() <= y.max() <= 1, name
            assert y.std() > 1e-3, name
    assert all(x.tobytes() == before[name].tobytes() for name, x in loaded(model).items())  # statistics included
    assert not model.network.parameters()[0].grad.any()


def test_the_seed_makes_the_draws():
    model, x = shaken(new(VAE)), images()
    np.testing.assert_array_equal(model.sample(4)[:2], model.sample(2))
    for draw in (lambda **seed: model.sample(4, **seed), lambda **seed: model.reconstruct(x, sample=True, **seed)[1]):
        np.testing.assert_array_equal(draw(), draw(seed=0))
        assert not np.array_equal(draw(seed=3), draw(seed=4))


def test_the_seed_makes_the_weights():
    a, b, c = (loaded(new(seed=seed)) for seed in (1, 1, 2))
    for name in a:
        assert a[name].tobytes() == b[name].tobytes()
        assert name.endswith(".weight") == (not np.array_equal(a[name], c[name])), name


# ---- arrays in, arrays out ----


def test_reconstruct_is_encode_then_decode():
    x = images()
    for model in (shaken(new()), shaken(new(VAE))):
        y, z = model.reconstruct(x)
        np.testing.assert_array_equal(z, model.encode(x))
        np.testing.assert_array_equal(y, model.decode(z))
    np.testing.assert_array_equal(model.encode(x), model.encode_distribution(x)[0])  # the means
    y, z = model.reconstruct(x, sample=True)
    np.testing.assert_array_equal(y, model.decode(z))


def test_bytes_and_floats_are_the_same_images():
    model, x = shaken(new(VAE)), images()
    expected, strided = model.encode(x), np.zeros((10, 16, 8, 1), np.uint8)[::2, ::2]
    for same in (x.astype("float32") / 255, x / 255, (x / 255).tolist()):
        np.testing.assert_allclose(model.encode(same), expected, rtol=1e-5, atol=1e-6)
    strided[...] = x
    np.testing.assert_array_equal(model.encode(strided), expected)


@pytest.mark.parametrize("cls", [Autoencoder, VAE])
def test_one_image_or_many_at_a_time_is_the_same(cls):
    """More than one internal batch, and the batch's own statistics play no part."""
    model = shaken(new(cls, filters=(2,), kernels=(3,), strides=(2,)))
    count = BATCH + 44
    x = images(count)
    y, z = model.reconstruct(x)
    assert len(y) == len(z) == count
    for i in (0, 1, BATCH - 1, BATCH, count - 1):
        one, latent = model.reconstruct(x[i : i + 1])
        np.testing.assert_allclose(latent[0], z[i], rtol=0, atol=1e-6)
        np.testing.assert_allclose(one[0], y[i], rtol=0, atol=1e-6)
    rows = model.interpolate(x[:40], x[40:80], 7)  # 280 images
    np.testing.assert_allclose(rows[39], model.interpolate(x[39:40], x[79:80], 7)[0], rtol=0, atol=1e-6)


def test_interpolation_is_a_straight_line_in_latent_space():
    model, x = shaken(new()), images(4)
    rows = model.interpolate(x[:2], x[2:], 5)
    z = model.encode(x)
    for n, step in np.ndindex(2, 5):
        point = z[n] + (z[n + 2] - z[n]) * (step / 4)
        np.testing.assert_allclose(rows[n, step], model.decode(point[None])[0], rtol=0, atol=1e-6)
    for message, *arguments in (
        ("found 2, 1, 8", x[:2], x[:1]), ("steps >= 2.*found 2, 2, 1", x[:2], x[:2], 1), ("are none", x[:0], x[:0]),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            model.interpolate(*arguments)


@pytest.mark.parametrize("training", [True, False])
def test_use_leaves_the_mode_as_it_was(training):
    model = new(VAE)
    model.network.train(training)
    model.reconstruct(images())
    model.sample(2)
    with pytest.raises(DataError):
        model.encode(images(shape=(7, 8, 1)))
    with pytest.raises(RuntimeError, match="broken"), model.evaluating():
        raise RuntimeError("broken")
    assert {layer.training for layer in model.network.layers.values()} == {training}
    y = model.network.layers["mu"](Tensor(np.zeros((1, 48), "float32")))
    assert y.requires_grad  # graphs are recorded again


BAD_IMAGES = [  # what is said of other values is in test_arrays.py
    (np.zeros((2, 8, 8), "float32"), r"expected \(N, 8, 8, 1\), found \(2, 8, 8\); add the channel axis"),
    (np.zeros((8, 8, 1), "float32"), r"found \(8, 8, 1\); images\[None\] makes one image a batch"),
    (np.zeros((2, 8, 8, 3), "float32"), r"expected \(N, 8, 8, 1\), found \(2, 8, 8, 3\)$"),
    (np.zeros((2, 1, 8, 8), "float32"), r"found \(2, 1, 8, 8\); images\.transpose\(0, 2, 3, 1\)"),
    (np.zeros((2, 64), "float32"), r"found \(2, 64\); images\.reshape\(-1, 8, 8, 1\)"),
    (np.zeros((0, 8, 8, 1), "float32"), "there are none"),
    (None, r"expected \(N, 8, 8, 1\), found \(\)"),
    ([[1], [1, 2]], "cannot be read: .* inhomogeneous"),
    (np.full((2, 8, 8, 1), 255), r"found int64; np\.asarray\(images, np\.uint8\)"),
    (np.full((2, 8, 8, 1), 256), "found 256 to 256; divide by the value of white"),
    (np.zeros((2, 8, 8, 1), bool), r"found bool; np\.asarray\(images, np\.float32\)"),
    (np.ones((2, 8, 8, 1), "uint8"), r"found only 0 and 1, but.*images\.astype\('float32'\)"),
    (np.ma.zeros((2, 8, 8, 1)), "expected plain arrays, found a masked one"),
    (np.full((2, 8, 8, 1), 255.0), "found 255 to 255; divide by 255"),
    (np.where(np.arange(128).reshape(2, 8, 8, 1) == 77, np.nan, 0.5), "found NaN; leave out"),
]


@pytest.mark.parametrize("case", BAD_IMAGES, ids=lambda case: case[1][:60])
def test_bad_images_are_told_by_every_method(case):
    bad, message = case
    model = new(VAE)
    model.compile(1e-3)
    calls = [model.encode, model.reconstruct, model.encode_distribution, partial(quick_metrics, model)]
    calls.append(lambda bad: model.train(bad, 2, 1, progress=False))
    if isinstance(bad, np.ndarray):
        calls.append(lambda bad: model.interpolate(bad, bad))
    before = loaded(model)
    for call in calls:
        with pytest.raises(DataError, match=f"^images: .*{message}"):
            call(bad)
    assert all(x.tobytes() == before[name].tobytes() for name, x in loaded(model).items())


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (np.zeros(2), r"expected \(N, 2\) with N >= 1, found \(2,\)"),
        (np.zeros((3, 3)), r"expected \(N, 2\).*found \(3, 3\)"),
        (np.zeros((0, 2)), r"found \(0, 2\)"),
        (np.array([[0, np.nan]]), "expected finite numbers, found NaN"),
        (np.array([[0, 1e300]]), "expected finite numbers"),  # too large for float32
        (np.array([["a", "b"]]), "expected real numbers, found <U1"),
        (np.array([[1j, 1]]), "expected real numbers, found complex128"),
    ],
    ids=str,
)
def test_bad_latents_are_told(latents, message):
    with pytest.raises(DataError, match=f"^latents: .*{message}"):
        new().decode(latents)


def test_latents_of_every_real_dtype_mean_the_same():
    """Also uint8, which for images means 0 to 255 of the unit range."""
    model, z = shaken(new()), np.array([[3, 1], [0, 2]])
    for dtype in ("uint8", "int8", "float16", "float64", ">f4"):
        np.testing.assert_array_equal(model.decode(z.astype(dtype)), model.decode(z.astype("float32")))


def test_a_sample_of_none_is_refused():
    for count in (0, -1, 1.5):
        with pytest.raises(DataError, match=f"count is {count} but must be a whole number >= 1"):
            new(VAE).sample(count)


# ---- a conditional VAE ----


def test_a_label_is_a_bias_of_its_own():
    """Each image and latent gets what the model of its own class makes of it, and between two classes that of both."""
    model, x, z = shaken(new(VAE, classes=3)), images(), np.random.default_rng(1).normal(size=(5, 2))
    labels = np.array([2, 0, 1, 1, 0])

    def results(m: VAE, row: int, **labels) -> list:
        arrays = [*m.encode_distribution(x, **labels), *m.reconstruct(x, **labels)]
        return [array[row] for array in (*arrays, m.decode(z, **labels), m.sample(5, 3, **labels))]

    for row, label in enumerate(labels):
        plain = unconditional(model, np.eye(3)[label])
        for found, expected in zip(results(model, row, labels=labels), results(plain, row), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    start, middle, end = model.interpolate(x[:1], x[1:2], 3, labels=(labels[:1], labels[1:2]))[0]
    z, both = model.encode(x[:2], labels=labels[:2]), unconditional(model, np.array([0.5, 0, 0.5]))
    np.testing.assert_allclose([start, end], model.decode(z, labels=labels[:2]), atol=1e-6)
    np.testing.assert_allclose(middle, both.decode(z.mean(axis=0, keepdims=True))[0], atol=1e-6)


def test_labels_of_every_kind_of_whole_numbers_mean_the_same():
    model, x = new(VAE, classes=3), images()
    expected = model.encode(x, labels=[0, 1, 2, 0, 1])
    for labels in (np.float64([0, 1, 2, 0, 1]), np.uint8([[0], [1], [2], [0], [1]]), (0, 1, np.int16(2), 0, 1)):
        np.testing.assert_array_equal(model.encode(x, labels=labels), expected)


@pytest.mark.parametrize(  # what is said of other labels is in test_arrays.py
    ("labels", "message"),
    [
        (None, "a conditional model needs the class of each image, 0 to 2"),
        ([0, 1, 3, 0, 0], "expected 0 to 2, found 3"),
        ([0, 1, -1, 0, 0], r"expected whole numbers .*\(5,\), found -1"),
        ([0, 1], r"found shape \(2,\)"),
        ([0, [1, 2], 0, 0, 0], "cannot be read: .* inhomogeneous"),
        (np.ma.zeros(5, int), "found a masked array"),
        (np.zeros((5, 3), int), r"found shape \(5, 3\); labels\.argmax\(axis=1\)"),
    ],
    ids=str,
)
def test_bad_labels_are_told_by_every_method(labels, message):
    model, x = new(VAE, classes=3), images()
    model.compile(1e-3)
    calls = [
        lambda: model.encode(x, labels=labels),
        lambda: model.encode_distribution(x, labels=labels),
        lambda: model.reconstruct(x, labels=labels),
        lambda: model.decode(np.zeros((5, 2)), labels=labels),
        lambda: model.sample(5, labels=labels),
        lambda: model.interpolate(x, x, labels=(labels, labels)),
        lambda: model.train(x, 2, 1, labels=labels, progress=False),
        lambda: quick_metrics(model, x, labels=labels),
    ]
    for call in calls:
        with pytest.raises(DataError, match=f"^labels: .*{message}"):
            call()


def test_a_conditional_model_is_saved_with_its_names(tmp_path):
    model = shaken(new(VAE, classes=np.int64(3), class_names=["a", "b", np.str_("c")]))
    model.save(tmp_path)
    same = autoencoders.load(tmp_path)
    assert (same.classes, same.class_names) == (3, ("a", "b", "c"))
    np.testing.assert_array_equal(same.sample(2, labels=[0, 2]), model.sample(2, labels=[0, 2]))
    assert "(51,)" not in model.summary(), "labels are no layer"
    assert f"{2 * (48 + 3 + 1):,}" in model.summary()  # parameters of a head


# ---- the VAE's distributions ----


def test_sampled_latents_are_normal_draws():
    """Those of the prior, and those that encode gives: mean + standard deviation * noise."""
    model, x = shaken(new(VAE)), images(3)
    model.network.layers["log_variance"].bias.data[...] = [-2.0, 1.5]  # far from a variance of 1
    mu, log_variance = model.encode_distribution(x)
    expected = mu + np.exp(log_variance / 2) * philox('[11, "reconstruct"]').standard_normal((3, 2))
    np.testing.assert_allclose(model.reconstruct(x, sample=True, seed=11)[1], expected, rtol=1e-5)
    drawn = philox('[5, "sample"]').standard_normal((20, 2))
    np.testing.assert_array_equal(model.sample(20, seed=5), model.decode(drawn))


def float64_vae(**options) -> VAE:
    model = shaken(new(VAE, **options))
    model.to(dtype="float64")
    return model


@pytest.mark.parametrize("beta", [1.0, 0.4])
@pytest.mark.parametrize("K", [None, 1, 6])
@pytest.mark.parametrize("likelihood", [*LIKELIHOODS, "conditional"])
def test_the_loss_is_that_of_the_densities(likelihood, K, beta):
    """From the densities, one image and sample at a time, without the identities that the model uses. Without K it is
    the mean of reconstruction + beta * KL, else the importance-weighted bound."""
    options = {"classes": 3} if likelihood == "conditional" else {"likelihood": likelihood, "variance": 0.3}
    model = float64_vae(**options)
    rng = np.random.default_rng(2)
    x, noise, labels = rng.random((4, *SHAPE)), rng.normal(size=(4, K or 1, 2)), np.array([2, 0, 1, 1])
    mu, log_variance = model.encode_distribution(x, labels=labels)
    log_of_pixels = loaded(model).get("likelihood.log_variance", [np.log(0.3)])[0]
    bounds, reconstructions = [], []
    for n in range(4):
        log_weights = []
        for k in range(K or 1):
            variance = np.exp(log_variance[n])
            z = mu[n] + np.sqrt(variance) * noise[n, k]
            p = model.decode(z[None], labels=labels[n : n + 1])[0]
            if likelihood in ("bernoulli", "conditional"):
                log_likelihood = (x[n] * np.log(p) + (1 - x[n]) * np.log(1 - p)).sum()
            else:
                away = (x[n] - p) ** 2 / np.exp(log_of_pixels)
                log_likelihood = -0.5 * (away + log_of_pixels + np.log(2 * np.pi)).sum()
            log_prior = -0.5 * (z**2 + np.log(2 * np.pi)).sum()
            log_q = -0.5 * ((z - mu[n]) ** 2 / variance + np.log(2 * np.pi * variance)).sum()
            reconstructions.append(-log_likelihood)
            log_weights.append(log_likelihood + beta * (log_prior - log_q))
        top = max(log_weights)
        bounds.append(-top - np.log(np.mean(np.exp(np.array(log_weights) - top))))
    kl = 0.5 * (mu**2 + np.exp(log_variance) - 1 - log_variance).sum(axis=1).mean()
    expected = np.mean(bounds) if K else np.mean(reconstructions) + beta * kl
    with model.evaluating():
        loss, parts = model.losses(Tensor(x), noise if K else noise[:, 0], beta, model.one_hot(labels, 4))
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    assert [part.item() for part in parts] == pytest.approx([np.mean(reconstructions), kl], rel=1e-10)


def test_weights_that_differ_by_thousands_of_nats_stay_finite():
    model = new(VAE)
    model.network.layers["decoder_dense"].weight.data *= 1e4
    model.network.train()
    noise = np.random.default_rng(0).standard_normal((5, 4, 2)).astype("float32")
    loss, _ = model.losses(Tensor((images() / 255).astype("float32")), noise, 1.0)
    loss.backward()
    assert np.isfinite(loss.item())
    assert all(np.isfinite(p.grad).all() for p in model.network.parameters())


def test_the_loss_of_the_autoencoder_is_the_mean_squared_error():
    model, x = shaken(new()), images(3) / 255
    model.to(dtype="float64")
    y, _ = model.reconstruct(x)
    total = sum((float(y[i]) - float(x[i])) ** 2 for i in np.ndindex(x.shape))
    with model.evaluating():
        loss, parts = model.losses(Tensor(x), None, 1.0)
    assert loss.item() == pytest.approx(total / x.size, rel=1e-12)
    assert parts == [loss]


# ---- files ----

MODELS = {
    "ae": lambda: new(shape=(7, 8, 3), filters=(6, 2), kernels=((3, 2), 3), momentum=0.9, seed=5),
    "vae": lambda: new(VAE, beta=0.25, momentum=0.5, seed=6),
    "gaussian": lambda: new(VAE, likelihood="gaussian", variance=0.2),
    "learned": lambda: new(VAE, likelihood="gaussian-learned"),
    "hidden": lambda: new(VAE, hidden=5),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_saved_model_comes_back_bitwise(tmp_path, kind, dtype):
    model = shaken(MODELS[kind]())
    model.to(dtype=dtype)
    shaken(model, seed=1)
    digest = model.save(tmp_path / "a" / "b")
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == [MODEL_FILE]
    same = autoencoders.load(tmp_path / "a" / "b")
    assert (type(same), same.config) == (type(model), model.config)
    before, after = ([(name, x.dtype, x.tobytes()) for name, x in loaded(m).items()] for m in (model, same))
    assert before == after
    x = images(3, model.input_shape)
    for a, b in zip(model.reconstruct(x), same.reconstruct(x), strict=True):
        assert a.tobytes() == b.tobytes()
    assert same.save(tmp_path) == digest
    assert type(type(model).load(tmp_path)) is type(model)


@pytest.mark.parametrize("recorded", [True, False])
def test_a_loaded_model_does_not_repeat_its_random_numbers(tmp_path, recorded):
    """Files of older versions do not say how many steps were trained: at least not none."""
    model = new(VAE)
    model.compile(1e-3)
    first = model.train(images(), 2, 1, progress=False).rows[0]["reconstruction"]
    steps = {"trained_steps": 1} if recorded else {}
    save_state(tmp_path / MODEL_FILE, new(VAE).network.state_dict(), {"model": model.config, **steps})
    model = autoencoders.load(tmp_path)
    model.compile(1e-3)
    assert model.train(images(), 2, 1, progress=False).rows[0]["reconstruction"] != first
    assert model.trained_steps == 1 + -(-len(images()) // 2)


CONFIG = new().config
NO_MODELS = [
    *({"model": CONFIG, "trained_steps": steps} for steps in (-1, "2")),
    *({}, {"model": None}, {"model": []}, {"model": {"kind": "ae"}}),
    *({"model": CONFIG | {"latent_space_dim": size}} for size in (3, 2.0, "2", 10**30)),
    *({"model": CONFIG | {"conv_filters": filters}} for filters in ([2, 4], [2], "ab")),
    *({"model": CONFIG | {"conv_kernels": sizes}} for sizes in ([3, 10**9], [3, [3]], [3, 0])),  # no memory holds some
    *({"model": CONFIG | {"input_shape": shape}} for shape in ([8, 8, 2], [10**12, 10**12, 1])),
    *({"model": CONFIG | {"kind": kind}} for kind in ("vae", "os.system", ["ae"])),
    *({"model": CONFIG | more} for more in ({"conv_strides": [1, 1]}, {"seed": -1}, {"extra": 1}, {"beta": 1.0})),
]


@pytest.mark.parametrize("record", NO_MODELS, ids=str)
def test_a_record_that_is_not_of_these_weights_is_told(tmp_path, record):
    """Written with a digest that fits, so that only its meaning is wrong."""
    save_state(tmp_path / MODEL_FILE, loaded(new()), record)
    with pytest.raises(DataError, match=MODEL_FILE):
        autoencoders.load(tmp_path)


def layer_by_layer(model: Autoencoder) -> Autoencoder:
    """The model without fused blocks."""
    layers = {name: x for name, x in model.network.layers.items() if name not in model.heads}
    model.encoder = nn.Sequential({name: x for name, x in layers.items() if name.startswith("encoder_")})
    model.decoder = nn.Sequential({name: x for name, x in layers.items() if name.startswith("decoder_")})
    return model


def test_weights_that_do_not_fit_are_listed(tmp_path):
    model = new()
    state = loaded(model)
    dense = state.pop("decoder_dense.bias")
    state |= {"stranger": dense, "encoder_output.bias": np.zeros(3, "float32")}
    save_state(tmp_path / MODEL_FILE, state, {"model": model.config})
    told = r"missing decoder_dense\.bias; unexpected stranger; encoder_output\.bias is \(3,\) but"
    with pytest.raises(DataError, match=told):
        autoencoders.load(tmp_path)


# ---- the network as a whole ----


def smallest_kink(model: Autoencoder, *arguments) -> float:
    """The smallest magnitude that enters a ReLU when a copy of the model computes its losses."""
    seen, real = [], nn.ReLU.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.ReLU, "forward", lambda relu, h: seen.append(np.abs(h.numpy()).min()) or real(relu, h))
        layer_by_layer(copy.deepcopy(model)).losses(*arguments)
    assert len(seen) == (5 if model.hidden else 3)
    return min(seen)


def away_from_kinks(make, training: bool, samples: tuple[int, ...], labels) -> tuple:
    """A float64 model and inputs, redrawn until no input of a ReLU is within 1e-4 of its kink."""
    for seed in range(200):
        model = make()
        model.to(dtype="float64")
        shaken(model, seed).network.train(training)
        rng = np.random.default_rng(seed)
        x, noise = rng.random((2, *model.input_shape)), rng.normal(size=(2, *samples, model.latent_space_dim))
        if smallest_kink(model, Tensor(x), noise, 1.0, labels) > 1e-4:
            return model, x, noise
    raise AssertionError("no inputs away from the kinks were found")


WHOLE = [
    *itertools.product(("ae", *LIKELIHOODS, "conditional", "hidden"), [()], (True, False), ["plain"]),
    *itertools.product(("bernoulli", "gaussian-learned"), [(3,)], (True, False), ["plain"]),
    *itertools.product(("ae", "bernoulli"), [()], [True], ("numpy", "numba")),
]


@pytest.mark.parametrize(("kind", "samples", "training", "kernels"), WHOLE, ids=str)
def test_gradients_of_the_whole_model(kind, samples, training, kernels):
    """Every parameter, and for the likelihoods everything that leads to them; beta is not 1."""
    if kernels == "numba":
        pytest.importorskip("numba")
    minigrad.use(kernels=kernels, threads=None if kernels == "plain" else 2)
    further = {"conditional": {"classes": 3}, "hidden": {"classes": 3, "hidden": 6}}
    labels = np.eye(3)[[2, 0]] if kind in further else None

    def make():
        options = {"filters": (2, 3), "kernels": (3, (2, 3)), "strides": (2, (1, 2))}
        if kind == "ae":
            return new(**options)
        return new(VAE, **options, **further.get(kind, {"likelihood": kind}))

    model, x, noise = away_from_kinks(make, training, samples, labels)
    blocks = [*model.encoder.layers.values(), *model.decoder.layers.values()]
    assert [type(block).__name__ for block in blocks].count("ConvChain") == 2
    target, parameters = Tensor(x), model.network.parameters()
    assert len(parameters) == len(list(model.network.named_parameters()))
    gradcheck(lambda: model.losses(target, noise, 0.7, labels)[0], parameters=parameters)


def test_the_summary_by_hand():
    """8x8x1 -> 3x3 conv to 2 (8x8) -> 3x3 conv, stride 2, to 3 (4x4) -> 2, and back."""
    expected = {  # parameters, multiply-adds, bytes
        "encoder_conv_layer_1": ("(8, 8, 2)", 9 * 1 * 2 + 2, 64 * 18, 8 * 8 * 2 * 4),
        "encoder_bn_1": ("(8, 8, 2)", 4, 0, 512),
        "encoder_conv_layer_2": ("(4, 4, 3)", 9 * 2 * 3 + 3, 16 * 54, 4 * 4 * 3 * 4),
        "encoder_flatten": ("(48,)", 0, 0, 192),
        "mu": ("(2,)", 48 * 2 + 2, 96, 8),
        "log_variance": ("(2,)", 48 * 2 + 2, 96, 8),
        "decoder_dense": ("(48,)", 2 * 48 + 48, 96, 192),
        "decoder_conv_transpose_layer_1": ("(8, 8, 3)", 9 * 3 * 3 + 3, 16 * 81, 768),
        "decoder_conv_transpose_layer_2": ("(8, 8, 1)", 9 * 3 * 1 + 1, 64 * 27, 256),
    }
    model = new(VAE)
    lines = [line for line in model.summary().splitlines() if line.strip("-")]
    rows = {line.split()[0]: line for line in lines}
    numbers = {name: [int(cell.replace(",", "")) for cell in row.split()[-3:]] for name, row in [*rows.items()][1:]}
    for name, (shape, *wanted) in expected.items():
        assert shape in rows[name], name
        assert numbers[name] == wanted, name
    names = [*rows]
    assert names == ["layer", *(name for name in model.network.layers), "total"]
    assert numbers["total"][0] == sum(p.size for p in model.network.parameters()) == 447 + 98
    assert numbers["total"][1] == 1152 + 864 + 3 * 96 + 1296 + 1728
    assert len({len(line) for line in lines}) == 1


# ---- the summary ----


def test_large_images_are_computed_fewer_at_a_time():
    small, large, huge = (Autoencoder((side, side, 1), (2,), (3,), (4,), 2) for side in (28, 256, 4096))
    assert [(s.start, s.stop) for s in small.batches(600)] == [(0, 256), (256, 512), (512, 600)]
    assert [s.stop - s.start for s in large.batches(100)] == [64, 36]
    assert [s.stop - s.start for s in huge.batches(2)] == [1, 1]
    assert list(small.batches(0)) == []


@pytest.mark.parametrize(
    "options",
    [{}, {"classes": 3}, {"likelihood": "gaussian-learned"}, {"beta": 4.0}, {"log_variance_bounds": None},
     {"hidden": 400, "classes": 3}],
    ids=str,
)  # fmt: skip
def test_standardized_latents_have_the_mean_and_variance_of_the_prior(options):
    vae = VAE((12, 10, 3), (4, 8), 3, 2, 3, **options)
    rng = np.random.default_rng(0)
    for name in ("mu", "log_variance"):
        for parameter in vae.heads[name].parameters():
            parameter.data[...] = rng.normal(0.02, 0.03, parameter.shape)
    images = rng.random((40, 12, 10, 3), np.float32)
    labels = np.arange(40) % 3 if "classes" in options else None

    def kl(mu: np.ndarray, log_variance: np.ndarray) -> float:
        return float((mu**2 + np.exp(log_variance) - 1 - log_variance).sum(axis=1).mean() / 2)

    mu, log_variance = vae.encode_distribution(images, labels=labels)
    before, reconstructed = kl(mu, log_variance), vae.reconstruct(images, labels=labels)[0]
    assert standardize(vae, images, labels=labels, least=0.99) == 0
    np.testing.assert_array_equal(vae.encode(images, labels=labels), mu)
    gain = standardize(vae, images, labels=labels)
    new_mu, new_log_variance = vae.encode_distribution(images, labels=labels)
    np.testing.assert_allclose(new_mu.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(new_mu.var(axis=0) + np.exp(new_log_variance).mean(axis=0), 1, rtol=1e-4)
    np.testing.assert_allclose(vae.reconstruct(images, labels=labels)[0], reconstructed, atol=1e-5)
    assert gain > 0.05
    assert kl(new_mu, new_log_variance) == pytest.approx(before - gain, rel=1e-4)
    assert standardize(vae, images, labels=labels, least=0.01) == 0, "once is enough"


@pytest.mark.parametrize("classes", [0, 3])
def test_no_other_variance_of_the_pixels_makes_the_images_likelier(classes):
    vae = VAE((12, 10, 3), (4, 8), 3, 2, 3, likelihood="gaussian-learned", classes=classes)
    images, labels = np.random.default_rng(0).random((2000, 12, 10, 3), np.float32), np.arange(2000) % 3

    def bound(log_variance: float) -> float:
        """With other noise than that of the fit."""
        vae.pixel_log_variance.data[...] = log_variance
        return neg_elbo(vae, images, 5, labels=labels)["neg_elbo"]

    before, made = bound(math.log(0.01)), vae.reconstruct(images, labels=labels)[0]
    gain = fit_variance(vae, images, labels=labels)
    found = vae.pixel_log_variance.item()
    assert before - bound(found) == pytest.approx(gain, rel=1e-3)
    assert bound(found) < min(bound(found - 0.02), bound(found + 0.02))
    np.testing.assert_array_equal(vae.reconstruct(images, labels=labels)[0], made)
    vae.pixel_log_variance.requires_grad = False
    assert fit_variance(vae, images, labels=labels) == 0, "a frozen one stays as it is"


def test_a_model_that_has_diverged_is_not_adjusted():
    vae = VAE((8, 8, 1), (4,), 3, 2, likelihood="gaussian-learned")
    vae.heads["mu"].weight.data[...] = np.float32(3e38)
    before = vae.heads["mu"].bias.numpy().copy(), vae.pixel_log_variance.item()
    assert standardize(vae, np.ones((4, 8, 8, 1), np.float32)) == 0
    assert fit_variance(vae, np.ones((4, 8, 8, 1), np.float32)) == 0
    np.testing.assert_array_equal(vae.heads["mu"].bias.numpy(), before[0])
    assert vae.pixel_log_variance.item() == before[1]


def test_a_loaded_model_must_be_compiled(tmp_path):
    model = new(VAE)
    for dtype in ("float32", "float64"):
        model.to(dtype=dtype)
        model.save(tmp_path)
        for uncompiled in (model, VAE.load(tmp_path)):
            with pytest.raises(RuntimeError, match="compile"):
                uncompiled.train(images(), 2, 1)
        model.compile(1e-3)
        model.train(images(), 2, 1, progress=False)
        assert {x.dtype for x in loaded(model).values()} == {np.dtype(dtype)}
