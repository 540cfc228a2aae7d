"""Both models from outside: construction, arrays in and out, likelihoods, files, and their gradients as a whole."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from kernel_sets import CPU_KERNELS

import autoencoders
import minigrad
from autoencoders import VAE, Autoencoder
from autoencoders.conv_autoencoder import BATCH, from_config
from autoencoders.evaluation.metrics import quick_metrics
from autoencoders.saved import MODEL_FILE
from autoencoders.standardize import standardize
from minigrad import Tensor, nn, no_grad, ops
from minigrad.serialize import DataError, load_state, save_state
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


@pytest.mark.parametrize("cls", [Autoencoder, VAE])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"filters": ()}, "need one entry for each convolution, found 0, 2 and 2"),
        ({"filters": (2, 3, 4)}, "need one entry for each convolution, found 3, 2 and 2"),
        ({"kernels": (3,)}, "found 2, 1 and 2"),
        ({"strides": (1,)}, "found 2, 2 and 1"),
        ({"filters": (), "kernels": (), "strides": ()}, "found 0, 0 and 0"),
        ({"shape": (8, 8)}, r"^input_shape must be \(H, W, C\).* \(8, 8\)$"),
        ({"shape": (8, 8, 1, 1)}, r"^input_shape must be \(H, W, C\)"),
        ({"shape": (0, 8, 1)}, r"^input_shape .* whole numbers >= 1, found \(0, 8, 1\)$"),
        ({"shape": (8, 8.0, 1)}, "whole numbers >= 1"),
        ({"filters": (2, 0)}, r"^conv_filters must be whole numbers >= 1, found \(2, 0\)$"),
        ({"filters": (2, -3)}, "whole numbers >= 1"),
        ({"latent": 0}, "^latent_space_dim must be a whole number >= 1, found 0$"),
        ({"latent": 2.5}, "whole number >= 1, found 2.5"),
        ({"latent": True}, "whole number >= 1, found True"),
        ({"kernels": (3, 0)}, "conv_kernels and conv_strides.*found 0"),
        ({"kernels": (3, -1)}, "found -1"),
        ({"kernels": (3, 2.5)}, r"found 2\.5"),
        ({"kernels": (3, (3,))}, r"found \(3,\)"),
        ({"kernels": (3, (3, 3, 3))}, "conv_kernels and conv_strides"),
        ({"kernels": (3, "33")}, "found '33'"),
        ({"strides": (1, 0)}, "found 0"),
        ({"strides": (1, (2, 0))}, r"found \(2, 0\)"),
        ({"strides": (1, None)}, "found None"),
        ({"seed": -1}, "seed is -1"),
        ({"momentum": 1.0}, r"momentum is 1\.0 but must lie in"),
        ({"momentum": -0.1}, "momentum is"),
        ({"momentum": math.nan}, "momentum is nan"),
    ],
    ids=str,
)
def test_bad_arguments_are_told(cls, change, message):
    with pytest.raises(ValueError, match=message):
        new(cls, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"likelihood": "normal"}, "'normal' but must be bernoulli, gaussian or gaussian-learned"),
        ({"beta": -0.1}, "^beta must be >= 0 and finite, found -0.1$"),
        ({"beta": math.inf}, "found inf"),
        ({"beta": math.nan}, "found nan"),
        ({"variance": 0}, "^variance must be > 0 and finite, found 0$"),
        ({"variance": -1}, "found -1"),
        ({"variance": math.nan}, "found nan"),
        ({"classes": -1}, "classes must be a whole number >= 0.* found -1"),
        ({"classes": 2.0}, "classes must be a whole number"),
        ({"classes": True}, "classes must be a whole number"),
        ({"classes": 3, "class_names": ("a", "b")}, "one for each class, found 3 and 2 names"),
        ({"class_names": ("a",)}, "found 0 and 1 names"),
    ],
    ids=str,
)
def test_bad_options_of_the_vae_are_told(change, message):
    with pytest.raises(ValueError, match=message):
        new(VAE, **change)


GEOMETRIES = [
    ((27, 29, 1), (2, 3), (3, 3), (2, 2)),
    ((29, 30, 3), (2, 2, 2), (3, 2, 4), (2, 1, 2)),
    ((33, 27, 1), (2, 2), (5, 3), (2, 3)),
    ((30, 33, 2), (2,), (3,), (4,)),
    ((5, 3, 1), (2, 2), (3, 3), (7, 2)),  # a stride larger than the size
    ((8, 8, 1), (2, 2), ((3, 1), (2, 4)), ((1, 2), (3, 1))),  # rectangular
    ((7, 6, 3), (3,), ((1, 5),), (2,)),
    ((1, 1, 1), (1,), (1,), (1,)),
    ((6, 9, 1), (2,), (1,), ((4, 5),)),  # strides larger than the kernel
]


@pytest.mark.parametrize("cls", [Autoencoder, VAE])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_any_geometry_returns_to_the_size_of_the_image(cls, geometry):
    shape, filters, kernels, strides = geometry
    model = cls(shape, filters, kernels, strides, 3)
    x = images(2, shape)
    y, z = model.reconstruct(x)
    assert (y.shape, z.shape) == (x.shape, (2, 3))
    model.compile(1e-3)
    history = model.train(x, 2, 1, progress=False)
    assert math.isfinite(history["loss"][0])
    # each decoder stage returns to what the encoder's stage received: ceil(size / stride) backwards
    sizes = [shape[:2]]
    for stride in strides:
        SH, SW = (stride, stride) if isinstance(stride, int) else stride
        sizes.append((math.ceil(sizes[-1][0] / SH), math.ceil(sizes[-1][1] / SW)))
    h = Tensor(np.zeros((1, 3), "float32"))
    found = []
    with model.evaluating():
        for name, layer in model.network.layers.items():
            if name.startswith("decoder"):
                h = layer(h)
                found += [h.shape[1:3]] if "reshape" in name or "conv" in name else []
    assert found == sizes[::-1]


def test_numpy_numbers_are_taken_and_can_be_saved(tmp_path):
    n = np.int64
    model = new(
        VAE,
        (n(8), n(8), n(1)),
        [n(2)],
        [(n(3), n(2))],
        np.array([2]),
        n(2),
        beta=np.float32(0.5),
        variance=np.float32(0.25),
    )
    model.save(tmp_path)
    same = autoencoders.load(tmp_path)
    assert (
        same.config
        == model.config
        == {**new(VAE, filters=(2,), kernels=((3, 2),), strides=(2,)).config, "beta": 0.5, "variance": 0.25}
    )


def test_the_seed_makes_the_weights():
    a, b, c = loaded(new(seed=1)), loaded(new(seed=1)), loaded(new(seed=2))
    assert all(a[name].tobytes() == b[name].tobytes() for name in a)
    for name in a:
        assert name.endswith(".weight") == (not np.array_equal(a[name], c[name])), name


COMMON = [f"encoder_conv_layer_{i}.{part}" for i in (1, 2) for part in ("weight", "bias")]
COMMON += [f"encoder_bn_{i}.{part}" for i in (1, 2) for part in ("gamma", "beta", "moving_mean", "moving_variance")]
COMMON += ["decoder_dense.weight", "decoder_dense.bias"]
COMMON += [f"decoder_conv_transpose_layer_{i}.{part}" for i in (1, 2) for part in ("weight", "bias")]
COMMON += [f"decoder_bn_1.{part}" for part in ("gamma", "beta", "moving_mean", "moving_variance")]


@pytest.mark.parametrize(
    ("model", "further"),
    [
        (new(), ["encoder_output.weight", "encoder_output.bias"]),
        (new(VAE), ["mu.weight", "mu.bias", "log_variance.weight", "log_variance.bias"]),
        (
            new(VAE, likelihood="gaussian-learned"),
            ["mu.weight", "mu.bias", "log_variance.weight", "log_variance.bias", "likelihood.log_variance"],
        ),
    ],
    ids=["ae", "vae", "learned"],
)
def test_state_names_are_those_of_the_seed(model, further):
    assert sorted(loaded(model)) == sorted(COMMON + further)


def test_state_shapes():
    """Weights are (KH, KW, in, out) and for the transposed convolution (KH, KW, out, in); the decoder is a mirror."""
    state = loaded(new(shape=(8, 6, 3), filters=(2, 4), kernels=((3, 2), 5), strides=(1, 2), latent=7))
    expected = {
        "encoder_conv_layer_1.weight": (3, 2, 3, 2),
        "encoder_conv_layer_2.weight": (5, 5, 2, 4),
        "encoder_output.weight": (4 * 3 * 4, 7),
        "decoder_dense.weight": (7, 4 * 3 * 4),
        "decoder_conv_transpose_layer_1.weight": (
            5,
            5,
            4,
            4,
        ),  # filters backwards, as in the original: 4, then the image's
        "decoder_conv_transpose_layer_2.weight": (3, 2, 3, 4),
        "decoder_conv_transpose_layer_2.bias": (3,),
        "decoder_bn_1.gamma": (4,),
    }
    assert {name: state[name].shape for name in expected} == expected


# ---- arrays in, arrays out ----


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cls", [Autoencoder, VAE])
def test_shapes_ranges_and_dtypes(cls, dtype):
    model = shaken(new(cls, shape=(8, 6, 3)))
    model.to(dtype=dtype)
    x = images(4, (8, 6, 3))
    outputs = {
        "reconstruct": (model.reconstruct(x)[0], (4, 8, 6, 3)),
        "decode": (model.decode(np.zeros((3, 2))), (3, 8, 6, 3)),
        "interpolate": (model.interpolate(x[:2], x[2:], 5), (2, 5, 8, 6, 3)),
    }
    if cls is VAE:
        outputs["sample"] = (model.sample(6), (6, 8, 6, 3))
        outputs["sampled"] = (model.reconstruct(x, sample=True)[0], (4, 8, 6, 3))
    latents = {"encode": model.encode(x), "latents": model.reconstruct(x)[1]}
    if cls is VAE:
        latents |= {"mu": model.encode_distribution(x)[0], "log_variance": model.encode_distribution(x)[1]}
        latents |= {"z": model.reconstruct(x, sample=True)[1]}
    for name, (y, shape) in outputs.items():
        assert (type(y), y.dtype, y.shape) == (np.ndarray, dtype, shape), name
        assert y.min() >= 0, name
        assert y.max() <= 1, name
        assert y.std() > 1e-3, name
    for name, z in latents.items():
        assert (type(z), z.dtype, z.shape) == (np.ndarray, dtype, (4, 2)), name
        assert np.isfinite(z).all(), name


@pytest.mark.parametrize("cls", [Autoencoder, VAE])
def test_the_same_call_gives_the_same_bits(cls):
    model, x = shaken(new(cls)), images()
    calls = {
        "encode": lambda: model.encode(x),
        "reconstruct": lambda: model.reconstruct(x)[0],
        "interpolate": lambda: model.interpolate(x[:2], x[2:4]),
    }
    if cls is VAE:
        calls["sample"] = lambda: model.sample(4, seed=3)
        calls["reconstruct sampled"] = lambda: model.reconstruct(x, sample=True, seed=3)[0]
        assert not np.array_equal(model.sample(4, seed=3), model.sample(4, seed=4))
        assert not np.array_equal(model.sample(4), model.sample(4, seed=3))
        np.testing.assert_array_equal(model.sample(4)[:2], model.sample(2))
        a, b = (model.reconstruct(x, sample=True, seed=seed)[1] for seed in (0, 1))
        assert not np.array_equal(a, b)
        np.testing.assert_array_equal(model.reconstruct(x, sample=True)[1], a)
    before = loaded(model)
    for name, call in calls.items():
        assert call().tobytes() == call().tobytes(), name
    assert all(x.tobytes() == before[name].tobytes() for name, x in loaded(model).items())  # statistics included
    assert not model.network.parameters()[0].grad.any()


def test_reconstruct_is_encode_then_decode():
    for model in (shaken(new()), shaken(new(VAE))):
        x = images()
        y, z = model.reconstruct(x)
        np.testing.assert_array_equal(z, model.encode(x))
        np.testing.assert_array_equal(y, model.decode(z))
    np.testing.assert_array_equal(model.encode(x), model.encode_distribution(x)[0])  # the means
    y, z = model.reconstruct(x, sample=True)
    np.testing.assert_array_equal(y, model.decode(z))


def test_bytes_and_floats_are_the_same_images():
    model, x = shaken(new(VAE)), images()
    for same in (x.astype("float32") / 255, x / 255, (x / 255).tolist()):
        np.testing.assert_allclose(model.encode(same), model.encode(x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.encode(np.full((1, *SHAPE), 255, np.uint8)), model.encode(np.ones((1, *SHAPE))))
    assert not np.allclose(model.encode(np.ones((1, *SHAPE))), model.encode(np.zeros((1, *SHAPE))))
    strided = np.zeros((10, 16, 8, 1), np.uint8)[::2, ::2]
    strided[...] = x
    np.testing.assert_array_equal(model.encode(strided), model.encode(x))


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
    for message, arguments in [
        ("found 2, 1, 8", (x[:2], x[:1])),
        ("steps >= 2.*found 2, 2, 1", (x[:2], x[:2], 1)),
        ("there are none", (x[:0], x[:0])),
    ]:
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


BAD_IMAGES = [
    (np.zeros((2, 8, 8), "float32"), r"expected \(N, 8, 8, 1\), found \(2, 8, 8\); add the channel axis"),
    (np.zeros((8, 8, 1), "float32"), r"found \(8, 8, 1\); images\[None\] makes one image a batch"),
    (np.zeros((2, 8, 8, 3), "float32"), r"expected \(N, 8, 8, 1\), found \(2, 8, 8, 3\)$"),
    (np.zeros((2, 1, 8, 8), "float32"), r"found \(2, 1, 8, 8\); images\.transpose\(0, 2, 3, 1\)"),
    (np.zeros((2, 64), "float32"), r"found \(2, 64\); images\.reshape\(-1, 8, 8, 1\)"),
    (np.zeros((2, 9, 8, 1), "float32"), r"found \(2, 9, 8, 1\)$"),
    (np.zeros((0, 8, 8, 1), "float32"), "there are none"),
    (np.float32(3), r"expected \(N, 8, 8, 1\), found \(\)"),
    (None, r"expected \(N, 8, 8, 1\), found \(\)"),
    ([[1], [1, 2]], "cannot be read: .* inhomogeneous"),
    (np.full((2, 8, 8, 1), 255), r"found int64; np\.asarray\(images, np\.uint8\)"),
    (np.full((2, 8, 8, 1), 256), "found 256 to 256; divide by the value of white"),
    (np.zeros((2, 8, 8, 1), bool), r"found bool; np\.asarray\(images, np\.float32\)"),
    (np.ones((2, 8, 8, 1), "uint8"), r"found only 0 and 1, but.*images\.astype\('float32'\)"),
    (np.zeros((2, 8, 8, 1), complex), "expected uint8, or floats in .*, found complex128"),
    (np.full((2, 8, 8, 1), "x"), "found <U1"),
    (np.full((2, 8, 8, 1), None), "found object"),
    (np.ma.zeros((2, 8, 8, 1)), "expected plain arrays, found a masked one"),
    (np.full((2, 8, 8, 1), 255.0), "found 255 to 255; divide by 255"),
    (np.full((2, 8, 8, 1), -0.5), r"found -0\.5 to -0\.5; undo the standardisation or offset"),
    (np.full((2, 8, 8, 1), 1.001), r"found 1\.001 to 1\.001; images\.clip"),
    (np.full((2, 8, 8, 1), np.nan), "found NaN; leave out"),
    (np.full((2, 8, 8, 1), np.inf), "found infinity; leave out"),
    (np.where(np.arange(128).reshape(2, 8, 8, 1) == 77, np.nan, 0.5), "found NaN"),
    (np.where(np.arange(128).reshape(2, 8, 8, 1) == 77, -np.inf, 0.5), "found infinity"),
]


@pytest.mark.parametrize("case", BAD_IMAGES, ids=lambda case: case[1][:60])
def test_bad_images_are_told_by_every_method(case):
    bad, message = case
    model = new(VAE)
    model.compile(1e-3)
    calls = [
        lambda: model.encode(bad),
        lambda: model.reconstruct(bad),
        lambda: model.encode_distribution(bad),
        lambda: model.train(bad, 2, 1, progress=False),
        lambda: quick_metrics(model, bad),
    ]
    if isinstance(bad, np.ndarray):
        calls.append(lambda: model.interpolate(bad, bad))
    before = loaded(model)
    for call in calls:
        with pytest.raises(DataError, match=f"^images: .*{message}"):
            call()
    assert all(x.tobytes() == before[name].tobytes() for name, x in loaded(model).items())


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (np.zeros(2), r"expected \(N, 2\) with N >= 1, found \(2,\)"),
        (np.zeros((3, 3)), r"expected \(N, 2\).*found \(3, 3\)"),
        (np.zeros((0, 2)), r"found \(0, 2\)"),
        (np.zeros((1, 2, 1)), r"found \(1, 2, 1\)"),
        (np.array([[0, np.nan]]), "expected finite numbers, found NaN"),
        (np.array([[0, np.inf]]), "expected finite numbers"),
        (np.array([[0, 1e300]]), "expected finite numbers"),  # too large for float32
        (np.array([["a", "b"]]), "expected real numbers, found <U1"),
        (np.array([[None, 1]]), "expected real numbers, found object"),
        (np.array([[1j, 1]]), "expected real numbers, found complex128"),
    ],
    ids=str,
)
def test_bad_latents_are_told(latents, message):
    with pytest.raises(DataError, match=f"^latents: .*{message}"):
        new().decode(latents)


@pytest.mark.parametrize("dtype", ["uint8", "int64", "int8", "float16", "float64", ">f4"])
def test_latents_of_every_real_dtype_mean_the_same(dtype):
    """Also uint8, which for images means 0 to 255 of the unit range."""
    model = shaken(new())
    z = np.array([[3, 1], [0, 2]])
    np.testing.assert_array_equal(model.decode(z.astype(dtype)), model.decode(z.astype("float32")))


@pytest.mark.parametrize("count", [0, -1])
def test_a_sample_of_none_is_refused(count):
    with pytest.raises(DataError, match=f"count is {count} but must be at least 1"):
        new(VAE).sample(count)


# ---- a conditional VAE ----


def test_a_label_is_a_bias_of_its_own():
    """For images of one class the model is an unconditional one whose biases hold the weights of that class."""
    model, plain, c = shaken(new(VAE, classes=3)), new(VAE), 1
    state = loaded(model)
    for name in ("mu", "log_variance", "decoder_dense"):
        weight = state[f"{name}.weight"]
        assert len(weight) == len(loaded(plain)[f"{name}.weight"]) + 3
        state[f"{name}.bias"] = state[f"{name}.bias"] + weight[len(weight) - 3 + c]
        state[f"{name}.weight"] = weight[:-3]
    plain.network.load_state_dict(state)
    x, z, labels = images(), np.random.default_rng(1).normal(size=(5, 2)), np.full(5, c)
    near = {"rtol": 1e-5, "atol": 1e-6}
    for ours, theirs in zip(
        [*model.encode_distribution(x, labels=labels), *model.reconstruct(x, labels=labels)],
        [*plain.encode_distribution(x), *plain.reconstruct(x)],
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, **near)
    np.testing.assert_allclose(model.decode(z, labels=labels), plain.decode(z), **near)
    np.testing.assert_allclose(model.sample(5, 3, labels=labels), plain.sample(5, 3), **near)
    np.testing.assert_allclose(
        model.interpolate(x[:2], x[2:4], labels=(labels[:2], labels[2:4])), plain.interpolate(x[:2], x[2:4]), **near
    )
    batch, noise = Tensor((x / 255).astype("float32")), z.astype("float32")
    found, expected = (
        [part.item() for part in m.losses(batch, noise, 1.0, given)[1]]
        for m, given in ((model, model.one_hot(labels, 5)), (plain, None))
    )
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_label_matters():
    model, x = shaken(new(VAE, classes=3)), images(3)
    latents = [model.encode(x, labels=np.full(3, c)) for c in range(3)]
    decoded = [model.decode(np.zeros((3, 2)), labels=np.full(3, c)) for c in range(3)]
    for values in (latents, decoded):
        assert min(np.abs(values[a] - values[b]).max() for a, b in ((0, 1), (0, 2), (1, 2))) > 1e-3
    mixed = model.decode(np.zeros((3, 2)), labels=[2, 0, 1])
    np.testing.assert_allclose(mixed, [decoded[2][0], decoded[0][1], decoded[1][2]], atol=1e-6)


def test_interpolation_goes_from_label_to_label():
    model, x = shaken(new(VAE, classes=3)), images(4)
    rows = model.interpolate(x[:2], x[2:], 5, labels=([0, 1], [2, 2]))
    for ends, labels, at in ((x[:2], [0, 1], 0), (x[2:], [2, 2], -1)):
        np.testing.assert_allclose(rows[:, at], model.reconstruct(ends, labels=labels)[0], atol=1e-6)
    assert np.abs(rows[:, 2] - rows[:, 0]).max() > 1e-3


def test_labels_of_every_kind_of_whole_numbers_mean_the_same():
    model, x = new(VAE, classes=3), images()
    expected = model.encode(x, labels=[0, 1, 2, 0, 1])
    for labels in (np.float64([0, 1, 2, 0, 1]), np.uint8([[0], [1], [2], [0], [1]]), (0, 1, np.int16(2), 0, 1)):
        np.testing.assert_array_equal(model.encode(x, labels=labels), expected)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "a conditional model needs the class of each image, 0 to 2"),
        ([0, 1, 3, 0, 0], "expected 0 to 2, found 3"),
        ([0, 1, -1, 0, 0], r"expected whole numbers .*\(5,\), found -1"),
        ([0, 1], r"found shape \(2,\)"),
        ([0, 1.5, 0, 0, 0], r"found 1\.5"),
        ([0, np.nan, 0, 0, 0], "found nan"),
        ([0, None, 0, 0, 0], "found object"),
        ([0, [1, 2], 0, 0, 0], "cannot be read: .* inhomogeneous"),
        (list("abcde"), "found <U1; number the classes from 0"),
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


def test_sampled_latents_have_the_distribution_that_encode_gives():
    """4,000 draws for each of three images: mean within 5 standard errors, variance exp(log_var) within 5.

    exp(log_var) is made to lie far from 1, so that sigma = exp(log_var) or sigma = 1 fails by far.
    """
    model = shaken(new(VAE))
    model.network.layers["log_variance"].bias.data[...] = [-2.0, 1.5]
    x = np.repeat(images(3), 4000, axis=0)
    mu, log_variance = (v[::4000].astype(float) for v in model.encode_distribution(x))
    assert (np.abs(log_variance) > 0.5).all()
    _, z = model.reconstruct(x, sample=True, seed=11)
    z = z.astype(float).reshape(3, 4000, 2)
    sigma = np.exp(log_variance / 2)
    assert (np.abs(z.mean(axis=1) - mu) < 5 * sigma / math.sqrt(4000)).all()
    assert (np.abs(z.var(axis=1) / np.exp(log_variance) - 1) < 5 * math.sqrt(2 / 4000)).all()
    standard = (z - mu[:, None]) / sigma[:, None]
    assert abs(np.corrcoef(standard[..., 0].ravel(), standard[..., 1].ravel())[0, 1]) < 5 / math.sqrt(12000)


def test_the_training_loss_uses_the_same_distribution():
    """The z that `losses` decodes is mu + exp(log_var / 2) * noise: read it at the decoder's entrance."""
    model = shaken(new(VAE))
    model.to(dtype="float64")
    x, noise = images(4) / 255, np.random.default_rng(0).normal(size=(4, 2))
    seen = []
    decoder = model.decoder
    model.decoder = lambda z: seen.append(z.numpy().copy()) or decoder(z)
    with model.evaluating():
        model.losses(Tensor(x), noise, 1.0)
    model.decoder = decoder
    mu, log_variance = model.encode_distribution(x)
    np.testing.assert_allclose(seen[0], mu + np.sqrt(np.exp(log_variance)) * noise, rtol=1e-12)


def test_sample_decodes_standard_normal_draws():
    model = new(VAE)
    seen = []
    model.decode = lambda z, labels: seen.append(z) or np.zeros((len(z), *SHAPE))
    model.sample(20_000, seed=5)
    z = np.asarray(seen[0])
    assert z.shape == (20_000, 2)
    assert np.abs(z.mean(axis=0)).max() < 5 / math.sqrt(20_000)
    assert np.abs(z.var(axis=0) - 1).max() < 5 * math.sqrt(2 / 20_000)


def part_losses(model: VAE, x: np.ndarray, noise: np.ndarray, beta=1.0) -> tuple[float, float, float]:
    with model.evaluating():
        loss, (reconstruction, kl) = model.losses(Tensor(x), noise, beta)
    return loss.item(), reconstruction.item(), kl.item()


def float64_vae(**options) -> VAE:
    model = shaken(new(VAE, **options))
    model.to(dtype="float64")
    return model


def test_the_kl_is_that_of_monte_carlo():
    """E_q[log q(z) - log p(z)] over 200,000 draws for each of two images, within 5 standard errors."""
    model, x = float64_vae(), images(2) / 255
    mu, log_variance = model.encode_distribution(x)
    _, _, kl = part_losses(model, x, np.zeros((2, 2)))
    noise = np.random.default_rng(1).normal(size=(200_000, 2, 2))
    z = mu + np.exp(log_variance / 2) * noise
    log_q = (-0.5 * (noise**2 + log_variance + math.log(2 * math.pi))).sum(axis=2)
    log_p = (-0.5 * (z**2 + math.log(2 * math.pi))).sum(axis=2)
    difference = (log_q - log_p).mean(axis=1)
    error = difference.std() / math.sqrt(len(difference))
    assert error < 0.02 * kl
    assert abs(difference.mean() - kl) < 5 * error


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_reconstruction_is_the_log_density_summed_by_loops(likelihood):
    model, x = float64_vae(likelihood=likelihood, variance=0.3), images(3) / 255
    noise = np.random.default_rng(2).normal(size=(3, 2))
    mu, log_variance = model.encode_distribution(x)
    means = model.decode(mu + np.exp(log_variance / 2) * noise)
    variance = 0.3
    if likelihood == "gaussian-learned":
        state = loaded(model)["likelihood.log_variance"]
        assert state[0] != math.log(0.3)  # shaken
        variance = math.exp(state[0])
    total = 0.0
    for index in np.ndindex(x.shape):
        mean, pixel = float(means[index]), float(x[index])
        if likelihood == "bernoulli":
            total -= pixel * math.log(mean) + (1 - pixel) * math.log(1 - mean)
        else:
            total -= math.log(math.exp(-((pixel - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance))
    kl = 0.0
    for n, i in np.ndindex(3, 2):
        kl += 0.5 * (mu[n, i] ** 2 + math.exp(log_variance[n, i]) - 1 - log_variance[n, i])
    loss, reconstruction, found_kl = part_losses(model, x, noise, 0.7)
    assert reconstruction == pytest.approx(total / 3, rel=1e-10)
    assert found_kl == pytest.approx(kl / 3, rel=1e-10)
    assert loss == pytest.approx(total / 3 + 0.7 * kl / 3, rel=1e-10)


@pytest.mark.parametrize("beta", [1.0, 0.4])
@pytest.mark.parametrize("K", [1, 6])
@pytest.mark.parametrize("likelihood", [*LIKELIHOODS, "conditional"])
def test_the_importance_weighted_bound_is_the_mean_of_the_weights(likelihood, K, beta):
    """From the densities, one image and sample at a time, without the identities that the model uses."""
    conditional = likelihood == "conditional"
    options = {"classes": 3} if conditional else {"likelihood": likelihood}
    model = shaken(float64_vae(**options))
    rng = np.random.default_rng(2)
    x, noise, labels = rng.random((4, *SHAPE)), rng.normal(size=(4, K, 2)), np.array([2, 0, 1, 1])
    mu, log_variance = model.encode_distribution(x, labels=labels)
    log_of_pixels = np.log(model.variance)
    if likelihood == "gaussian-learned":
        log_of_pixels = loaded(model)["likelihood.log_variance"][0]
    bounds, reconstructions = [], []
    for n in range(4):
        log_weights = []
        for k in range(K):
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
    with model.evaluating():
        loss, parts = model.losses(Tensor(x), noise, beta, model.one_hot(labels, 4))
    assert loss.item() == pytest.approx(np.mean(bounds), rel=1e-10)
    kl = 0.5 * (mu**2 + np.exp(log_variance) - 1 - log_variance).sum(axis=1).mean()
    assert [part.item() for part in parts] == pytest.approx([np.mean(reconstructions), kl], rel=1e-10)


def test_more_samples_tighten_the_bound():
    model, rng = shaken(float64_vae()), np.random.default_rng(0)
    x = Tensor(rng.random((4, *SHAPE)))
    with model.evaluating():
        losses = [model.losses(x, rng.normal(size=(4, K, 2)), 1.0) for K in (1, 10, 1000)]
    bounds = [loss.item() for loss, _ in losses]
    assert bounds[0] > bounds[1] > bounds[2]
    assert bounds[2] < sum(part.item() for part in losses[2][1])


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


def test_losses_do_not_depend_on_the_batch_size():
    """Nats per image: a batch twice gives the same loss."""
    for likelihood in LIKELIHOODS:
        model, x = float64_vae(likelihood=likelihood), images(3) / 255
        noise = np.random.default_rng(2).normal(size=(3, 2))
        once = part_losses(model, x, noise)
        twice = part_losses(model, np.concatenate([x, x]), np.concatenate([noise, noise]))
        np.testing.assert_allclose(once, twice, rtol=1e-12)


def test_beta_weighs_only_the_kl():
    model, x = float64_vae(), images(3) / 255
    noise = np.random.default_rng(2).normal(size=(3, 2))
    parts = {beta: part_losses(model, x, noise, beta) for beta in (0.0, 1.0, 4.0)}
    for beta, (loss, reconstruction, kl) in parts.items():
        assert (reconstruction, kl) == parts[1.0][1:]
        assert loss == pytest.approx(reconstruction + beta * kl, rel=1e-14)

    def gradients(beta):
        model.network.zero_grad()
        model.network.eval()
        model.losses(Tensor(x), noise, beta)[0].backward()
        return {name: p.grad.copy() for name, p in model.network.named_parameters()}

    zero, one, four = (gradients(beta) for beta in (0.0, 1.0, 4.0))
    for name in zero:
        np.testing.assert_allclose(four[name] - zero[name], 4 * (one[name] - zero[name]), rtol=1e-9, atol=1e-12)
        assert name.startswith("decoder") == (not np.abs(four[name] - zero[name]).max() > 1e-9), name


def test_the_learned_variance_is_trained_and_saved(tmp_path):
    """On images of a constant grey the errors go to 0, so the variance must fall; "gaussian" has no such parameter."""
    model = new(VAE, likelihood="gaussian-learned", variance=0.5)
    assert loaded(model)["likelihood.log_variance"] == pytest.approx(math.log(0.5))
    model.compile(2e-2)
    model.train(np.full((16, *SHAPE), 128, np.uint8), 8, 10, progress=False)
    trained = loaded(model)["likelihood.log_variance"][0]
    assert trained < math.log(0.5) - 0.1
    model.save(tmp_path)
    same = autoencoders.load(tmp_path)
    assert loaded(same)["likelihood.log_variance"][0] == trained
    assert same.variance == 0.5
    assert same.pixel_log_variance.item() == pytest.approx(trained)
    assert "likelihood.log_variance" not in loaded(new(VAE, likelihood="gaussian"))


# ---- files ----

MODELS = {
    "ae": lambda: new(shape=(7, 8, 3), kernels=((3, 2), 3), momentum=0.9, seed=5),
    "vae": lambda: new(VAE, beta=0.25, momentum=0.5, seed=6),
    "gaussian": lambda: new(VAE, likelihood="gaussian", variance=0.2),
    "learned": lambda: new(VAE, likelihood="gaussian-learned"),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_saved_model_comes_back_bitwise(tmp_path, kind, dtype):
    model = shaken(MODELS[kind]())
    if dtype == "float64":
        model.to(dtype=dtype)
        shaken(model, seed=1)
    digest = model.save(tmp_path / "a" / "b")
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == [MODEL_FILE]
    same = autoencoders.load(tmp_path / "a" / "b")
    assert type(same) is type(model)
    assert same.config == model.config
    before, after = loaded(model), loaded(same)
    assert list(before) == list(after)
    for name, x in before.items():
        assert (x.dtype, x.tobytes()) == (after[name].dtype, after[name].tobytes()), name
    x = images(3, model.input_shape)
    for a, b in zip(model.reconstruct(x), same.reconstruct(x), strict=True):
        assert a.tobytes() == b.tobytes()
    assert same.save(tmp_path) == digest
    assert type(type(model).load(tmp_path)) is type(model)


def test_a_loaded_model_can_be_trained_on(tmp_path):
    new(VAE).save(tmp_path)
    model = VAE.load(tmp_path)
    with pytest.raises(RuntimeError, match="compile"):
        model.train(images(), 2, 1)
    model.compile(1e-3)
    assert math.isfinite(model.train(images(), 2, 1, progress=False)["loss"][0])


@pytest.mark.parametrize("steps", [1, None, -1, "2"], ids=str)
def test_a_loaded_model_does_not_repeat_its_random_numbers(tmp_path, steps):
    """Files of older versions do not say how many steps were trained: at least not none."""
    model = new(VAE)
    model.compile(1e-3)
    first = model.train(images(), 2, 1, progress=False).rows[0]["reconstruction"]
    model.save(tmp_path)
    record = load_state(tmp_path / MODEL_FILE)[1]
    assert record.pop("trained_steps") == model.trained_steps == -(-len(images()) // 2)
    record = {"model": record["model"]} | ({} if steps is None else {"trained_steps": steps})
    save_state(tmp_path / MODEL_FILE, new(VAE).network.state_dict(), record)
    if steps not in (1, None):
        with pytest.raises(DataError, match=f"{MODEL_FILE}: trained_steps is {steps!r} but must be"):
            autoencoders.load(tmp_path)
        return
    model = autoencoders.load(tmp_path)
    model.compile(1e-3)
    assert model.train(images(), 2, 1, progress=False).rows[0]["reconstruction"] != first
    assert model.trained_steps == 1 + -(-len(images()) // 2)


def test_the_other_class_is_told(tmp_path):
    new().save(tmp_path)
    with pytest.raises(DataError, match="holds a Autoencoder, not a VAE"):
        VAE.load(tmp_path)
    new(VAE).save(tmp_path)
    assert type(Autoencoder.load(tmp_path)) is VAE  # a VAE is an Autoencoder


def test_a_missing_or_damaged_file_is_told(tmp_path):
    made = "there is no such model; autoencoders train --out .*nowhere makes one"
    with pytest.raises(DataError, match=f"{MODEL_FILE}: {made}"):
        autoencoders.load(tmp_path / "nowhere")
    new().save(tmp_path)
    path = tmp_path / MODEL_FILE
    content = bytearray(path.read_bytes())
    content[-3] ^= 16
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{MODEL_FILE}: damaged"):
        autoencoders.load(tmp_path)
    path.write_bytes(content[:500])
    with pytest.raises(DataError, match=f"{MODEL_FILE}: not a minigrad state file"):
        autoencoders.load(tmp_path)


TAMPERED = [
    {"latent_space_dim": 3},
    {"latent_space_dim": 2.0},
    {"latent_space_dim": "2"},
    {"latent_space_dim": None},
    {"latent_space_dim": 10**30},
    {"conv_filters": [2, 4]},
    {"conv_filters": [2]},
    {"conv_filters": 3},
    {"conv_filters": "ab"},
    {"conv_filters": []},
    {"conv_kernels": [3, 10**9]},
    {"conv_kernels": [10**9, 3]},  # no memory holds its weights
    {"conv_kernels": [3, 5]},
    {"conv_kernels": [3, [3]]},
    {"conv_kernels": [3, 0]},
    {"conv_strides": [1, 1]},
    {"conv_strides": [0, 0]},
    {"conv_strides": [None, None]},
    {"input_shape": [8, 8]},
    {"input_shape": [8, 8, 2]},
    {"input_shape": {"H": 8, "W": 8, "C": 1}},
    {"input_shape": [10**12, 10**12, 1]},
    {"kind": "vae"},
    {"kind": "os.system"},
    {"kind": ["ae"]},
    {"kind": None},
    {"seed": -1},
    {"seed": "x"},
    {"extra": 1},
    {"beta": 1.0},
]


@pytest.mark.parametrize("change", TAMPERED, ids=str)
def test_a_changed_configuration_is_told(tmp_path, change):
    """Written with a digest that fits, so that only its meaning is wrong."""
    model = new()
    save_state(tmp_path / MODEL_FILE, loaded(model), {"model": {**model.config, **change}})
    with pytest.raises(DataError, match=MODEL_FILE):
        autoencoders.load(tmp_path)


@pytest.mark.parametrize(
    "record", [{}, {"model": None}, {"model": []}, {"model": {}}, {"model": "vae"}, {"model": {"kind": "ae"}}], ids=str
)
def test_a_file_without_a_model_is_told(tmp_path, record):
    save_state(tmp_path / MODEL_FILE, loaded(new()), record)
    with pytest.raises(DataError, match=rf"{MODEL_FILE}: model record: not a model of this version"):
        autoencoders.load(tmp_path)


def test_weights_that_do_not_fit_are_listed(tmp_path):
    model = new()
    state = loaded(model)
    dense = state.pop("decoder_dense.bias")
    state |= {"stranger": dense, "encoder_output.bias": np.zeros(3, "float32")}
    save_state(tmp_path / MODEL_FILE, state, {"model": model.config})
    with pytest.raises(
        DataError, match=r"missing decoder_dense\.bias; unexpected stranger; encoder_output\.bias is \(3,\) but"
    ):
        autoencoders.load(tmp_path)


def test_the_record_rebuilds_the_model(tmp_path):
    model = MODELS["ae"]()
    model.save(tmp_path)
    record = load_state(tmp_path / MODEL_FILE)[1]["model"]
    assert from_config(record).config == model.config
    assert record["conv_kernels"] == [[3, 2], 3]
    assert from_config(record).conv_kernels == ((3, 2), 3)


# ---- the network as a whole ----


def pre_activations(model: Autoencoder, x: np.ndarray, noise: np.ndarray | None) -> float:
    """The smallest magnitude that enters a ReLU, layer by layer, in the mode that the model is in."""
    smallest = math.inf
    state = loaded(model)

    def run(layers, h):
        nonlocal smallest
        for name, layer in layers.items():
            if "relu" in name:
                smallest = min(smallest, float(np.abs(h.numpy()).min()))
            h = layer(h)
        return h

    layers = model.network.layers
    with no_grad():
        h = run({n: x for n, x in layers.items() if n.startswith("encoder_") and n != "encoder_output"}, Tensor(x))
        if model.classes:  # the labels that check_gradients gives
            given = np.eye(3)[[2, 0]]
            h = Tensor(np.concatenate([h.numpy(), given], axis=1))
        if isinstance(model, VAE):
            mu, scale = layers["mu"](h), ops.exp(layers["log_variance"](h) * 0.5)
            if noise.ndim == 3:
                z = Tensor((mu.numpy()[:, None] + scale.numpy()[:, None] * noise).reshape(-1, noise.shape[2]))
            else:
                z = mu + scale * noise
        else:
            z = layers["encoder_output"](h)
        if model.classes:
            z = Tensor(np.concatenate([z.numpy(), given], axis=1))
        run({n: x for n, x in layers.items() if n.startswith("decoder_")}, z)
    model.network.load_state_dict(state)  # training mode moved the statistics
    return smallest


def away_from_kinks(make, training: bool, samples: tuple[int, ...] = ()) -> tuple[Autoencoder, np.ndarray, np.ndarray]:
    """A float64 model and inputs, redrawn until no pre-activation lies within 1e-4 of ReLU's kink."""
    for seed in range(200):
        model = make()
        model.to(dtype="float64")
        shaken(model, seed)
        model.network.train(training)
        rng = np.random.default_rng(seed)
        x, noise = rng.random((2, *model.input_shape)), rng.normal(size=(2, *samples, model.latent_space_dim))
        if pre_activations(model, x, noise) > 1e-4:
            return model, x, noise
    raise AssertionError("no inputs away from the kinks were found")


SMALL = {"filters": (2, 3), "kernels": (3, (2, 3)), "strides": (2, (1, 2))}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("kind", ["ae", *LIKELIHOODS, "conditional"])
def test_gradients_of_the_whole_model(kind, training, restored_backends):
    """Every parameter, and for the likelihoods everything that leads to them; beta is not 1."""
    minigrad.use(kernels="plain")
    check_gradients(kind, training)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian-learned"])
def test_gradients_of_the_importance_weighted_bound(likelihood, training, restored_backends):
    minigrad.use(kernels="plain")
    check_gradients(likelihood, training, samples=(3,))


@pytest.mark.parametrize("kernels", CPU_KERNELS[1:])
@pytest.mark.parametrize("kind", ["ae", "bernoulli"])
def test_gradients_of_the_whole_model_on_threads(kind, kernels, restored_backends):
    minigrad.use(kernels=kernels, threads=2)
    check_gradients(kind, True)


def check_gradients(kind: str, training: bool, samples: tuple[int, ...] = ()) -> None:
    labels = np.eye(3)[[2, 0]] if kind == "conditional" else None

    def make():
        if kind == "conditional":
            return new(VAE, classes=3, **SMALL)
        return new(**SMALL) if kind == "ae" else new(VAE, likelihood=kind, **SMALL)

    model, x, noise = away_from_kinks(make, training, samples)
    target = Tensor(x)

    def loss():
        return model.losses(target, noise if kind != "ae" else None, 0.7, labels)[0]

    parameters = model.network.parameters()
    assert len(parameters) == len(list(model.network.named_parameters()))
    gradcheck(loss, parameters=parameters)


@pytest.mark.parametrize("kernels", CPU_KERNELS)
@pytest.mark.parametrize("cls", [Autoencoder, VAE])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_fused_blocks_equal_the_layers_one_by_one(cls, kernels, training, restored_backends):
    """`nn.fuse` changes nothing: loss, all gradients and moving statistics, in float64 to 1e-12."""
    minigrad.use(kernels=kernels, threads=2 if kernels != "plain" else None)

    def run(fused: bool):
        model = new(cls, shape=(9, 7, 2), filters=(3, 4, 2), kernels=(3, 2, (3, 2)), strides=(2, 1, (1, 2)))
        model.to(dtype="float64")
        shaken(model)
        model.network.train(training)
        if not fused:
            layers = model.network.layers
            heads = set(model.heads)
            model.encoder = nn.Sequential(
                {n: x for n, x in layers.items() if n.startswith("encoder_") and n not in heads}
            )
            model.decoder = nn.Sequential({n: x for n, x in layers.items() if n.startswith("decoder_")})
        kinds = [type(layer).__name__ for layer in [*model.encoder.layers.values(), *model.decoder.layers.values()]]
        assert kinds.count("ConvChain") == (2 if fused else 0)
        rng = np.random.default_rng(3)
        x, noise = rng.random((5, 9, 7, 2)), rng.normal(size=(5, 2))
        loss, _ = model.losses(Tensor(x), noise, 0.5)
        loss.backward()
        gradients = {f"gradient of {name}": p.grad.copy() for name, p in model.network.named_parameters()}
        return {"loss": loss.numpy(), **gradients, **loaded(model)}

    fused, plain = run(True), run(False)
    assert fused.keys() == plain.keys()
    for name, x in plain.items():
        assert np.abs(fused[name] - x).max() <= 1e-12 * max(np.abs(x).max(), 1.0), name
        assert "gradient" not in name or np.abs(x).max() > 1e-8, name


@pytest.mark.parametrize("cls", [Autoencoder, VAE])
@pytest.mark.parametrize("momentum", [0.99, 0.8])
def test_training_moves_the_statistics_and_use_reads_them(cls, momentum):
    model, x = new(cls, **({} if momentum == 0.99 else {"momentum": momentum})), images(6)
    before = loaded(model)
    np.testing.assert_array_equal(before["encoder_bn_1.moving_mean"], 0)
    model.compile(0.0)  # weights stay
    model.train(x, 6, 1, progress=False)
    after = loaded(model)
    layer = model.network.layers["encoder_conv_layer_1"]
    active = np.maximum(layer(Tensor((x / 255).astype("float32"))).numpy(), 0).astype(float)
    mean, variance = active.mean(axis=(0, 1, 2)), active.var(axis=(0, 1, 2))
    np.testing.assert_allclose(after["encoder_bn_1.moving_mean"], (1 - momentum) * mean, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(after["encoder_bn_1.moving_variance"], momentum + (1 - momentum) * variance, rtol=1e-5)
    encoded = model.encode(x)
    model.network.layers["encoder_bn_1"].moving_mean.data += 1
    assert not np.allclose(model.encode(x), encoded)


def test_moving_and_compiling():
    model = new()
    model.compile(1e-3)
    model.to(dtype="float64")
    with pytest.raises(RuntimeError, match="compile"):
        model.train(images(), 2, 1)
    model.compile(1e-3)
    model.train(images(), 2, 1, progress=False)
    assert {x.dtype for x in loaded(model).values()} == {np.dtype("float64")}


# ---- the summary ----


def test_the_summary_of_the_autoencoder_by_hand():
    """8x8x1 -> 3x3 conv to 2 (8x8) -> 3x3 conv, stride 2, to 3 (4x4) -> 2, and back."""
    rows = {line.split()[0]: line for line in new().summary().splitlines() if line.strip("-")}
    expected = {  # parameters, multiply-adds, bytes
        "encoder_conv_layer_1": ("(8, 8, 2)", 9 * 1 * 2 + 2, 64 * 18, 8 * 8 * 2 * 4),
        "encoder_bn_1": ("(8, 8, 2)", 4, 0, 512),
        "encoder_conv_layer_2": ("(4, 4, 3)", 9 * 2 * 3 + 3, 16 * 54, 4 * 4 * 3 * 4),
        "encoder_bn_2": ("(4, 4, 3)", 6, 0, 192),
        "encoder_flatten": ("(48,)", 0, 0, 192),
        "encoder_output": ("(2,)", 48 * 2 + 2, 96, 8),
        "decoder_dense": ("(48,)", 2 * 48 + 48, 96, 192),
        "decoder_reshape": ("(4, 4, 3)", 0, 0, 192),
        "decoder_conv_transpose_layer_1": ("(8, 8, 3)", 9 * 3 * 3 + 3, 16 * 81, 768),
        "decoder_bn_1": ("(8, 8, 3)", 6, 0, 768),
        "decoder_conv_transpose_layer_2": ("(8, 8, 1)", 9 * 3 * 1 + 1, 64 * 27, 256),
    }
    for name, (shape, *numbers) in expected.items():
        line = rows.pop(name)
        assert shape in line, line
        assert [int(cell.replace(",", "")) for cell in line.split()[-3:]] == numbers, line
    total = [int(cell.replace(",", "")) for cell in rows.pop("total").split()[-3:]]
    assert total[0] == 20 + 4 + 57 + 6 + 98 + 144 + 84 + 6 + 28
    assert total[1] == 1152 + 864 + 96 + 96 + 1296 + 1728
    assert set(rows) == {"layer", "encoder_relu_1", "encoder_relu_2", "decoder_relu_1"}
    assert total[0] == sum(p.size for p in new().network.parameters())


def test_the_summary_of_the_vae_has_both_heads():
    model = new(VAE)
    text = model.summary()
    names = [line.split()[0] for line in text.splitlines() if line.strip("-")]
    assert names.index("encoder_flatten") + 1 == names.index("mu") == names.index("log_variance") - 1
    assert names[-1] == "total"
    total = int(text.splitlines()[-1].split()[1].replace(",", ""))
    assert total == sum(p.size for p in model.network.parameters()) == 447 + 98
    assert len({len(line) for line in text.splitlines()}) == 1


def test_large_images_are_computed_fewer_at_a_time():
    small, large, huge = (Autoencoder((side, side, 1), (2,), (3,), (4,), 2) for side in (28, 256, 4096))
    assert [(s.start, s.stop) for s in small.batches(600)] == [(0, 256), (256, 512), (512, 600)]
    assert [s.stop - s.start for s in large.batches(100)] == [64, 36]
    assert [s.stop - s.start for s in huge.batches(2)] == [1, 1]
    assert list(small.batches(0)) == []


@pytest.mark.parametrize(
    "options",
    [{}, {"classes": 3}, {"likelihood": "gaussian-learned"}, {"beta": 4.0}, {"log_variance_bounds": None}],
    ids=str,
)
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
    for i, (shift, scale) in itertools.product(range(3), [(0.1, 1), (-0.1, 1), (0, 1.1), (0, 0.9)]):
        moved, wider = new_mu.copy(), new_log_variance.copy()  # any other shift or scale costs more
        moved[:, i], wider[:, i] = scale * moved[:, i] + shift, wider[:, i] + 2 * np.log(scale)
        assert kl(moved, wider) > before - gain
    assert standardize(vae, images, labels=labels, least=0.01) == 0, "once is enough"


def test_a_model_that_has_diverged_is_not_standardized():
    vae = VAE((8, 8, 1), (4,), 3, 2)
    vae.heads["mu"].weight.data[...] = np.float32(3e38)
    before = vae.heads["mu"].bias.numpy().copy()
    assert standardize(vae, np.ones((4, 8, 8, 1), np.float32)) == 0
    np.testing.assert_array_equal(vae.heads["mu"].bias.numpy(), before)
