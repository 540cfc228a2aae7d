"""The files of Keras 3: opened by Keras, and read back; and files that Keras has written."""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
from exchange_cases import MODELS, assert_heads, assert_images, expected_of, images_of, model_of

import autoencoders
from autoencoders import VAE, Autoencoder, export
from minigrad.serialize import DataError

h5py = pytest.importorskip("h5py")
QUIET = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras with PyTorch


@pytest.fixture(scope="module")
def keras(tmp_path_factory):
    os.environ.setdefault("KERAS_BACKEND", "torch")
    os.environ.setdefault("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))  # it writes there when it is imported
    found = pytest.importorskip("keras")
    if found.backend.backend() == "torch" and tuple(map(int, found.__version__.split(".")[:2])) < (3, 15):
        pytest.skip("Keras before 3.15 computes transposed convolutions wrongly with PyTorch")
    return found


@pytest.fixture
def exported(tmp_path):
    def exported(name):
        (path,) = export(model_of(name), "keras", tmp_path)
        return path

    return exported


def assert_same_weights(found, model):
    """No bit differs. The likelihood is not part of the file."""
    ours, theirs = model.network.state_dict(), found.network.state_dict()
    for key in (ours.keys() | theirs.keys()) - {"likelihood.log_variance"}:
        assert (ours[key].dtype, ours[key].tobytes()) == (theirs[key].dtype, theirs[key].tobytes()), key


@QUIET
@pytest.mark.keras
@pytest.mark.parametrize("name", MODELS)
def test_keras_opens_the_file_and_predicts_the_same(name, exported, keras, tmp_path):
    theirs = keras.saving.load_model(exported(name), safe_mode=True)
    images, labels = images_of(name)
    heads, reconstructed = expected_of(name, images, labels)
    given = [] if labels is None else [np.eye(model_of(name).classes, dtype="f4")[labels]]
    encoder, decoder = theirs.get_layer("encoder"), theirs.get_layer("decoder")
    found = encoder.predict([images, *given] if given else images, verbose=0)
    assert_heads(found if len(heads) > 1 else [found], heads)
    assert_images(decoder.predict([heads[0], *given] if given else heads[0], verbose=0), reconstructed)
    assert_images(theirs.predict([images, *given] if given else images, verbose=0), reconstructed)
    theirs.save(tmp_path / "again.keras")
    assert_same_weights(autoencoders.load(tmp_path / "again.keras"), model_of(name))


@pytest.mark.parametrize("name", MODELS)
def test_a_round_trip_changes_no_bit(name, exported):
    model, path = model_of(name), exported(name)
    back = autoencoders.load(path)
    assert_same_weights(back, model)
    kept = ("kind", "input_shape", "conv_filters", "latent_space_dim", "momentum", "classes", "log_variance_bounds")
    for key in kept:
        assert back.config.get(key) == model.config.get(key), key


# ---- files that Keras has written ----

SIZES = [(28, 28, 1), (8, 16, 16, 16), (3, 3, 3, 3), (1, 2, 2, 1), 2]


def original_in_keras(keras, kind):
    """The original's model, built by the calls that it makes, with random weights. The layers without weights have the
    names that Keras gives them."""
    L, (shape, filters, kernels, strides, latent) = keras.layers, SIZES
    x = start = keras.Input(shape, name="encoder_input")
    for i, (f, k, s) in enumerate(zip(filters, kernels, strides, strict=True), 1):
        x = L.Conv2D(filters=f, kernel_size=k, strides=s, padding="same", name=f"encoder_conv_layer_{i}")(x)
        x = L.ReLU(name=f"encoder_relu_{i}")(x)
        x = L.BatchNormalization(name=f"encoder_bn_{i}")(x)
    encoded = x.shape[1:]
    x = L.Flatten()(x)
    if kind == "ae":
        heads = L.Dense(latent, name="encoder_output")(x)
    else:
        heads = [L.Dense(latent, name="mu")(x), L.Dense(latent, name="log_variance")(x)]
    encoder = keras.Model(start, heads, name="encoder")
    x = start = keras.Input((latent,), name="decoder_input")
    x = L.Reshape(encoded)(L.Dense(int(np.prod(encoded)), name="decoder_dense")(x))
    for i in range(1, 4):
        x = L.Conv2DTranspose(filters[-i], kernels[-i], strides=strides[-i], padding="same",
                              name=f"decoder_conv_transpose_layer_{i}")(x)  # fmt: skip
        x = L.ReLU(name=f"decoder_relu_{i}")(x)
        x = L.BatchNormalization(name=f"decoder_bn_{i}")(x)
    x = L.Conv2DTranspose(1, 3, strides=1, padding="same", name="decoder_conv_transpose_layer_4")(x)
    decoder = keras.Model(start, L.Activation("sigmoid", name="sigmoid_layer")(x), name="decoder")
    start = keras.Input(shape)
    found = encoder(start)
    model = keras.Model(start, decoder(found if kind == "ae" else found[0]), name="autoencoder")
    rng = np.random.default_rng(1)
    for w in model.weights:
        w.assign(rng.uniform(0.5, 2, w.shape) if "variance" in w.path.rpartition("/")[2] else
                 np.asarray(keras.ops.convert_to_numpy(w)) + 0.05 * rng.standard_normal(w.shape))  # fmt: skip
    return model, encoder


@QUIET
@pytest.mark.filterwarnings("ignore:Gradients do not exist for variables:UserWarning")  # those of log_variance
@pytest.mark.keras
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("kind", "cls"), [("ae", Autoencoder), ("vae", VAE)])
def test_files_of_keras_are_read(kind, cls, compiled, keras, tmp_path):
    theirs, encoder = original_in_keras(keras, kind)
    images, _ = images_of("ae")
    if compiled:
        theirs.compile(keras.optimizers.Adam(1e-3), "mse")
        theirs.fit(images, images, epochs=1, verbose=0)
    reconstructed, found = theirs.predict(images, verbose=0), encoder.predict(images, verbose=0)
    theirs.save(tmp_path / "model.keras")
    theirs.save_weights(tmp_path / "model.weights.h5")
    ours = autoencoders.load(tmp_path / "model.keras")
    assert type(ours) is cls
    assert ours.config["momentum"] == 0.99
    assert_images(ours.decode(ours.encode(images)), reconstructed)
    assert_heads([ours.encode(images)] if kind == "ae" else ours.encode_distribution(images),
                 [found] if kind == "ae" else found)  # fmt: skip
    for name, layer in ours.network.layers.items():
        if hasattr(layer, "weight"):
            kernel = next(w for w in theirs.weights if f"{name}/kernel" in w.path)
            assert layer.weight.numpy().tobytes() == keras.ops.convert_to_numpy(kernel).tobytes(), name
    with pytest.raises(DataError, match=r"model.weights.h5: holds weights alone"):
        autoencoders.load(tmp_path / "model.weights.h5")
    again = cls(*SIZES, **({"log_variance_bounds": None} if kind == "vae" else {}))
    again.load_weights(tmp_path / "model.weights.h5")
    assert_same_weights(again, ours)
    (tmp_path / "parameters.pkl").write_bytes(pickle.dumps(SIZES))  # as the original writes it
    assert_same_weights(autoencoders.load(tmp_path / "model.weights.h5"), ours)


@QUIET
@pytest.mark.keras
def test_another_model_of_keras_is_refused_by_name(keras, tmp_path):
    L = keras.layers
    x = start = keras.Input((8, 8, 1))
    for make, message in [
        (lambda: keras.Sequential([start, L.Flatten(), L.Dense(3)]), "it is a Sequential and not a functional model"),
        (lambda: keras.Model(start, L.Dense(3)(L.Flatten()(x))), "it has no layer encoder_conv_layer_1"),
        (lambda: keras.Model(start, L.GlobalMaxPool2D(name="top")(x)), "top is a GlobalMaxPooling2D layer"),
        (
            lambda: keras.Model(start, L.Lambda(lambda x: x, name="sampling")(x)),
            "sampling is a Lambda layer, which the original does not have, and its code is never run",
        ),
    ]:
        make().save(tmp_path / "model.keras")
        with pytest.raises(DataError, match=f"model.keras: not the original's architecture: {message}"):
            autoencoders.load(tmp_path / "model.keras")


# ---- wrong files ----


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(path, contents):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def layers_of(config):
    """All layers of config.json by their names."""
    found = {}
    for layer in config["config"]["layers"]:
        found[layer["name"]] = layer
        if "layers" in layer["config"]:
            found |= layers_of(layer)
    return found


@pytest.mark.parametrize(
    ("layer", "change", "message"),
    [
        ("encoder_conv_layer_1", {"activation": "relu"}, "encoder_conv_layer_1: activation is relu but must be linear"),
        ("encoder_conv_layer_2", {"padding": "valid"}, "encoder_conv_layer_2: padding is valid but must be same"),
        ("encoder_conv_layer_2", {"filters": 5}, "decoder_conv_transpose_layer_3: filters is 16 but must be 5"),
        ("encoder_conv_layer_1", {"filters": "x"}, "TypeError|filters"),
        ("encoder_conv_layer_1", {"strides": [0, 0]}, "ZeroDivisionError"),
        ("encoder_conv_layer_1", {"kernel_size": [10**6, 10**6]}, "kernel_size|larger"),
        ("encoder_bn_2", {"epsilon": 1e-5}, "encoder_bn_2: epsilon is 1e-05 but must be 0.001"),
        ("encoder_bn_2", {"axis": 1}, "encoder_bn_2: axis is 1 but must be -1"),
        ("encoder_relu_1", {"negative_slope": 0.1}, "encoder_relu_1: negative_slope is 0.1 but must be 0.0"),
        ("encoder_relu_1", {"name": "other"}, "encoder_bn_1 is applied to a layer that is not before it"),
        ("mu", {"units": 10**9}, "log_variance: units is 2 but must be 1000000000"),
        ("sigmoid_layer", {"activation": "tanh"}, "Activation: activation is tanh but must be sigmoid"),
        ("decoder_reshape", {"target_shape": [16, 7, 7]}, "Reshape: target_shape"),
        ("log_variance_inside", {"offset": 3.0}, "log_variance_inside: offset is 3.0"),
    ],
)  # fmt: skip
def test_a_layer_that_differs_is_named(layer, change, message, exported, tmp_path):
    contents = members(exported("vae"))
    config = json.loads(contents["config.json"])
    layers_of(config)[layer]["config"] |= change
    path = zipped(tmp_path / "changed.keras", {**contents, "config.json": json.dumps(config)})
    with pytest.raises(DataError, match=f"changed.keras: (not the original's architecture: )?.*({message})"):
        autoencoders.load(path)


def test_a_further_layer_is_named(exported, tmp_path):
    contents = members(exported("vae"))
    config = json.loads(contents["config.json"])
    layers = layers_of(config)["encoder"]["config"]["layers"]
    layers.append(json.loads(json.dumps(layers_of(config)["mu"]).replace('"mu"', '"classes"')))
    path = zipped(tmp_path / "changed.keras", {**contents, "config.json": json.dumps(config)})
    with pytest.raises(DataError, match="not the original's architecture: it also has a layer classes"):
        autoencoders.load(path)


@pytest.mark.parametrize("kind", ["Lambda", "MyLayer"])
def test_layers_of_other_kinds_are_refused_by_name(kind, exported, tmp_path):
    contents = members(exported("vae"))
    config = json.loads(contents["config.json"])
    layers_of(config)["encoder_relu_1"]["class_name"] = kind
    path = zipped(tmp_path / "changed.keras", {**contents, "config.json": json.dumps(config)})
    with pytest.raises(DataError, match=f"encoder_relu_1 is a {kind} layer, which the original does not have"):
        autoencoders.load(path)


@pytest.mark.parametrize(
    ("layer", "old", "new", "message"),
    [
        ("encoder_bn_1", "encoder_relu_1", "encoder_conv_layer_1", "encoder_bn_1: source is .'encoder_conv_layer_1'"),
        ("decoder", '["encoder", 0, 0]', '["encoder", 0, 1]', "decoder_dense: source is .'log_variance_bounded'.*'mu'"),
        ("encoder", '[["mu", 0, 0],', '[["log_variance", 0, 0],', "decoder_dense: source is .'log_variance'"),
        ("decoder", '["sigmoid_layer", 0, 0]', '["decoder_relu_1", 0, 0]', "the output: source is .'decoder_relu_1'"),
    ],
)
def test_other_connections_are_named(layer, old, new, message, exported, tmp_path):
    contents = members(exported("vae"))
    config = json.loads(contents["config.json"])
    found = layers_of(config)[layer]
    assert old in json.dumps(found)
    found |= json.loads(json.dumps(found).replace(old, new))
    path = zipped(tmp_path / "changed.keras", {**contents, "config.json": json.dumps(config)})
    with pytest.raises(DataError, match=f"changed.keras: not the original's architecture: {message}"):
        autoencoders.load(path)


@pytest.mark.parametrize("config", ["", "5", "[]", "{}", "[" * 10**5, '{"class_name": "Functional", "config": 5}',
                                    '{"class_name": "Functional", "config": {"layers": [5]}}'])  # fmt: skip
def test_another_config_is_one_error(config, exported, tmp_path):
    path = zipped(tmp_path / "changed.keras", {**members(exported("one")), "config.json": config})
    with pytest.raises(DataError, match=r"changed.keras: not "):
        autoencoders.load(path)


def test_damaged_archives_are_refused(exported, tmp_path):
    content, path = exported("one").read_bytes(), tmp_path / "cut.keras"
    for cut in (0, 1, 30, 200, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(DataError, match=r"cut.keras: not a .keras file, or damaged"):
            autoencoders.load(path)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        start = archive.getinfo("model.weights.h5").header_offset + 200
    flipped = bytearray(content)
    flipped[start] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(DataError, match=r"cut.keras: not a .keras file, or damaged \(Bad CRC-32"):
        autoencoders.load(path)
    for missing in ("config.json", "model.weights.h5"):
        contents = {name: x for name, x in members(io.BytesIO(content)).items() if name != missing}
        with pytest.raises(DataError, match=f"no item named '{missing}'"):
            autoencoders.load(zipped(path, contents))


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
@pytest.mark.parametrize("states", [10**7, 100])
def test_what_is_compressed_is_refused_before_it_is_unpacked(method, states, exported, tmp_path):
    contents = members(exported("one"))
    for name in ("config.json", "model.weights.h5"):
        stored = {key: x for key, x in contents.items() if key != name}
        bomb = zipped(tmp_path / "bomb.keras", stored)
        with zipfile.ZipFile(bomb, "a", method) as archive:
            archive.writestr(name, bytes(10**7))
        bomb.write_bytes(bomb.read_bytes().replace((10**7).to_bytes(4, "little"), states.to_bytes(4, "little")))
        tracemalloc.start()
        with pytest.raises(DataError, match=f"{name} is compressed, but Keras stores it as it is"):
            autoencoders.load(bomb)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 * 10**6


def test_paths_in_an_archive_lead_nowhere(exported, tmp_path):
    contents = members(exported("one"))
    path = zipped(tmp_path / "odd.keras", {"../outside": b"x", "/etc/x": b"x", **contents, "assets/../../y": b"y"})
    assert_same_weights(autoencoders.load(path), model_of("one"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["autoencoder.keras", "odd.keras"]


def hdf5(change):
    """The bytes of an HDF5 file that `change` fills."""
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        change(file)
    return content.getvalue()


def variables(file, name="mu", place="dense"):
    group = file.create_group(f"layers/{place}/vars")
    group.attrs["name"] = name
    return group


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (lambda f, secret: f.create_dataset("layers/dense/vars/0", data=[1.0]), "a layer with a name of its own"),
        (lambda f, secret: variables(f, 5).create_dataset("0", data=[1.0]), "a layer with a name of its own"),
        (lambda f, secret: variables(f).create_dataset("a", data=[1.0]), "a layer with a name of its own"),
        (
            lambda f, secret: [variables(f, "mu", x).create_dataset("0", (1,), "f4") for x in ("dense", "dense_1")],
            "a layer with a name of its own",
        ),
        (lambda f, secret: variables(f).create_group("0"), "is not an array of float32 in the file itself"),
        (lambda f, secret: variables(f).create_dataset("0", data=[1]), "is not an array of float32 in the file itself"),
        (
            lambda f, secret: variables(f).create_dataset("0", (10**5, 10**5), "f4", chunks=(9, 9)),
            "is not an array of float32 in the file itself",
        ),
        (
            lambda f, secret: variables(f).create_dataset("0", (10**5, 10**5), "f4"),
            "is not an array of float32 in the file itself",
        ),
        (
            lambda f, secret: variables(f).create_dataset("0", (9,), "f4", external=[(secret, 0, 36)]),
            "is not an array of float32 in the file itself",
        ),
        (
            lambda f, secret: variables(f).__setitem__("0", h5py.ExternalLink(secret, "x")),
            "a layer with a name of its own",
        ),
        (lambda f, secret: variables(f).__setitem__("0", h5py.SoftLink("/x")), "a layer with a name of its own"),
    ],
)  # fmt: skip
def test_hostile_weights_are_refused(fill, message, exported, tmp_path):
    with h5py.File(tmp_path / "secret", "w") as file:
        variables(file).create_dataset("0", data=np.zeros(9, "f4"))
        file.create_dataset("x", data=np.zeros(9, "f4"))
    content = hdf5(lambda file: fill(file, str(tmp_path / "secret")))
    (tmp_path / "x.weights.h5").write_bytes(content)
    model = VAE((8, 8, 1), (3,), (3,), (2,), 2)
    with pytest.raises(DataError, match=f"x.weights.h5: not weights of Keras 3.6.0 or later, or damaged .*{message}"):
        model.load_weights(tmp_path / "x.weights.h5")
    path = zipped(tmp_path / "x.keras", {**members(exported("one")), "model.weights.h5": content})
    with pytest.raises(DataError, match=f"x.keras: not weights of Keras 3.6.0 or later, or damaged .*{message}"):
        autoencoders.load(path)


@pytest.mark.parametrize("link", [h5py.ExternalLink, lambda file, place: h5py.SoftLink(place)])
def test_links_to_layers_are_not_followed(link, tmp_path):
    with h5py.File(tmp_path / "secret", "w") as file:
        variables(file).create_dataset("0", data=np.zeros(9, "f4"))
    content = hdf5(lambda file: file.__setitem__("other", link(str(tmp_path / "secret"), "/layers")))
    (tmp_path / "x.weights.h5").write_bytes(content)
    with pytest.raises(DataError, match=r"x.weights.h5: load_state_dict: missing encoder_conv_layer_1.weight"):
        VAE((8, 8, 1), (3,), (3,), (2,), 2).load_weights(tmp_path / "x.weights.h5")


def test_many_names_for_one_array_do_not_fill_the_memory(tmp_path):
    def fill(file):
        data = file.create_dataset("data", data=np.zeros(10_000, "f4"))
        for i in range(100):
            group = file.create_group(f"layers/dense_{i}/vars")
            group.attrs["name"] = f"layer {i}"
            group["0"] = data

    (tmp_path / "x.weights.h5").write_bytes(hdf5(fill))
    with pytest.raises(DataError, match="is not an array of float32 in the file itself"):
        VAE((8, 8, 1), (3,), (3,), (2,), 2).load_weights(tmp_path / "x.weights.h5")


@pytest.mark.parametrize("dtype", [h5py.string_dtype(), np.dtype("i8")])
def test_an_array_as_a_name_is_not_read(dtype, tmp_path):
    with h5py.File(tmp_path / "x.weights.h5", "w", libver="latest") as file:
        group = file.create_group("layers/dense/vars")
        group["0"] = np.zeros(2, "f4")
        kind, space = h5py.h5t.py_create(dtype, logical=True), h5py.h5s.create_simple((10**6,))
        h5py.h5a.create(group.id, b"name", kind, space)  # 8 MB or more in memory
    model = VAE((8, 8, 1), (3,), (3,), (2,), 2)
    tracemalloc.start()
    with pytest.raises(DataError, match="a layer with a name of its own"):
        model.load_weights(tmp_path / "x.weights.h5")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 10**6


def test_weights_of_other_layers_are_named(tmp_path):
    def fill(file, count):
        group = variables(file)
        for i in range(count):
            group[str(i)] = np.zeros(2, "f4")

    model = VAE((8, 8, 1), (3,), (3,), (2,), 2)
    for count, message in ((2, "load_state_dict: missing encoder_conv_layer_1.weight"), (3, "mu has 3 weights")):
        (tmp_path / "x.weights.h5").write_bytes(hdf5(lambda file, count=count: fill(file, count)))
        with pytest.raises(DataError, match=f"x.weights.h5: {message}"):
            model.load_weights(tmp_path / "x.weights.h5")


def test_a_missing_file_is_named(tmp_path):
    for name in ("no.keras", "no.weights.h5", "no.safetensors"):
        with pytest.raises(DataError, match=f"{name}: no such file"):
            autoencoders.load(tmp_path / name)


def test_without_h5py_the_extra_is_named(exported, monkeypatch, tmp_path):
    path = exported("one")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r'autoencoder.keras: reading it needs h5py, .*: pip install "\.\[keras\]"'):
        autoencoders.load(path)
    with pytest.raises(ImportError, match=r'needs h5py, which is not installed: pip install "\.\[keras\]"'):
        export(model_of("one"), "keras", tmp_path / "new")
