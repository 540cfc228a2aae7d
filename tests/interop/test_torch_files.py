"""The files for PyTorch, run by PyTorch, and read back."""

from __future__ import annotations

import doctest
import importlib.util
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from exchange_cases import MODELS, assert_equal, assert_heads, assert_images, expected_of, images_of, model_of

import autoencoders
from autoencoders import VAE, Autoencoder, export
from autoencoders.export import FILES
from autoencoders.training import DivergedError
from minigrad import nn
from minigrad.interop import torch as torch_files
from minigrad.interop.torch import from_torch_state, torch_state
from minigrad.serialize import DataError, read_safetensors, write_safetensors


@pytest.fixture
def exported(tmp_path):
    def exported(name: str) -> Path:
        assert export(model_of(name), "torch", tmp_path) == [
            tmp_path / "autoencoder.py",
            tmp_path / "autoencoder.safetensors",
        ]
        return tmp_path

    return exported


def module_of(folder: Path):
    spec = importlib.util.spec_from_file_location("exported", folder / "autoencoder.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.torch
@pytest.mark.parametrize("name", MODELS)
def test_the_module_computes_the_same_and_comes_back(name, exported):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    folder = exported(name)
    module = module_of(folder)
    theirs = module.Autoencoder()
    theirs.load_state_dict(load_file(folder / "autoencoder.safetensors"), strict=True)
    theirs.eval()
    images, labels = images_of(name)
    heads, reconstructed = expected_of(name, images, labels)
    x = torch.tensor(images).permute(0, 3, 1, 2)
    y = None if labels is None else torch.tensor(labels)
    with torch.no_grad():
        assert_heads(theirs.encode(x, y), heads)
        assert_images(theirs.decode(torch.tensor(heads[0]), y).permute(0, 2, 3, 1), reconstructed)
        again, latents = theirs(x, y)
    assert_heads([latents], heads[:1])
    assert_images(again.permute(0, 2, 3, 1), reconstructed)
    assert theirs.encoder_bn_1.momentum == pytest.approx(0.2)
    theirs.save(folder / "from_torch.safetensors")
    back = autoencoders.load(folder / "from_torch.safetensors")
    assert back.config == model_of(name).config | {"variance": back.config["variance"]} if "variance" in back.config \
        else model_of(name).config  # fmt: skip
    assert_equal(back, model_of(name))


@pytest.mark.torch
def test_a_step_of_training_in_torch_is_read(exported):
    torch = pytest.importorskip("torch")
    folder = exported("cvae_odd")
    theirs = module_of(folder).Autoencoder()
    images, labels = images_of("cvae_odd")
    optimizer = torch.optim.Adam(theirs.parameters())
    x, y = torch.tensor(images).permute(0, 3, 1, 2), torch.tensor(labels)
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(theirs(x, y)[0], x).backward()
        optimizer.step()
    theirs.save(folder / "trained.safetensors")
    ours = autoencoders.load(folder / "trained.safetensors")
    theirs.eval()
    with torch.no_grad():
        reconstructed, latents = (part.numpy() for part in theirs(x, y))
    found = ours.reconstruct(images, labels=labels)
    assert_images(found[0], reconstructed.transpose(0, 2, 3, 1))
    assert_heads([found[1]], [latents])


@pytest.mark.parametrize("name", MODELS)
def test_a_round_trip_changes_no_bit(name, exported):
    folder = exported(name)
    assert_equal(autoencoders.load(folder / "autoencoder.safetensors"), model_of(name))
    weights = folder / "weights.safetensors"  # as `safetensors.torch.save_file(state, path)` writes them
    write_safetensors(weights, read_safetensors(folder / "autoencoder.safetensors")[0], {"format": "pt"})
    cls, arguments, options = MODELS[name]
    model = cls(*arguments, **options)
    if "likelihood" in model.network.layers:
        model.network.layers["likelihood"].log_variance.data[...] = -1.234
    model.load_weights(weights)
    assert_equal(model, model_of(name))
    with pytest.raises(DataError, match=r"weights.safetensors: holds weights alone; make a model of these sizes"):
        autoencoders.load(weights)


def test_the_file_may_have_the_name_that_our_models_have(exported):
    folder = exported("vae")
    (folder / "autoencoder.safetensors").rename(folder / "model.safetensors")
    for path in (folder, folder / "model.safetensors"):
        assert_equal(autoencoders.load(path), model_of("vae"))


def test_float64_stays_float64(tmp_path):
    model = VAE((8, 8, 1), (3,), (3,), (2,), 2)
    model.to(dtype="float64")
    export(model, "torch", tmp_path)
    assert_equal(autoencoders.load(tmp_path / "autoencoder.safetensors"), model)


@pytest.mark.parametrize("name", MODELS)
def test_the_module_is_a_short_plain_file(name, exported):
    text = (exported(name) / "autoencoder.py").read_text()
    assert text.count("\n") <= 80
    compile(text, name, "exec")


def test_a_deep_model_is_a_short_file_too(tmp_path):
    export(Autoencoder((8, 8, 1), (1,) * 30, 3, (2, 2, *(1,) * 28)), "torch", tmp_path)
    text = (tmp_path / "autoencoder.py").read_text()
    assert text.count("\n") <= 80
    compile(text, "deep", "exec")


@pytest.mark.torch
def test_every_layer_with_weights_has_its_place_in_a_state_dict():
    torch = pytest.importorskip("torch")
    ours = nn.Sequential(
        {
            "conv": nn.Conv2D(4, 6, (3, 2), stride=2, padding=1, groups=2),
            "back": nn.Conv2DTranspose(6, 4, (2, 3), groups=2, padding=0),
            "norm": nn.BatchNorm(4),
            "group": nn.GroupNorm(2, 4),
            "dense": nn.Dense(4, 5),
            "layer": nn.LayerNorm(5),
            "table": nn.Embedding(7, 3),
        }
    )
    theirs = torch.nn.ModuleDict(
        {
            "conv": torch.nn.Conv2d(4, 6, (3, 2), 2, 1, groups=2),
            "back": torch.nn.ConvTranspose2d(6, 4, (2, 3), groups=2),
            "norm": torch.nn.BatchNorm2d(4),
            "group": torch.nn.GroupNorm(2, 4),
            "dense": torch.nn.Linear(4, 5),
            "layer": torch.nn.LayerNorm(5),
            "table": torch.nn.Embedding(7, 3),
        }
    )
    state = torch_state(ours)
    theirs.load_state_dict({name: torch.tensor(x) for name, x in state.items()}, strict=True)
    back = from_torch_state({name: x.numpy() for name, x in theirs.state_dict().items()}, ours)
    for name, x in ours.state_dict().items():
        assert back[name].tobytes() == x.tobytes(), name


def test_the_example_is_right():
    assert doctest.testmod(torch_files, extraglobs={"nn": nn}) == (0, 1)


# ---- wrong files ----


def changed(folder: Path, **arrays: np.ndarray | None) -> Path:
    """The exported weights with some arrays replaced, or left out if they are None."""
    state, metadata = read_safetensors(folder / "autoencoder.safetensors")
    state |= {name.replace("__", "."): x for name, x in arrays.items()}
    state = {name: x for name, x in state.items() if x is not None}
    write_safetensors(folder / "changed.safetensors", state, metadata)
    return folder / "changed.safetensors"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu__weight": None}, "missing mu.weight"),
        ({"more": np.zeros(2, "f4")}, "unexpected more"),
        ({"mu__bias": np.zeros(3, "f4")}, r"mu.bias is float32 \(3,\) but must be float32 \(2,\)"),
        ({"mu__bias": np.zeros(2, "f2")}, r"mu.bias is float16 \(2,\) but must be float32"),
        ({"mu__bias": np.zeros(2, "i4")}, r"mu.bias is int32 \(2,\) but must be float32"),
        ({f"x{i}": np.zeros(1, "f4") for i in range(9)}, "unexpected x4; and 4 more"),
    ],
)
def test_weights_that_do_not_fit_are_named(arrays, message, exported):
    path = changed(exported("vae"), **arrays)
    with pytest.raises(DataError, match=f"changed.safetensors: not the state of this module: .*{message}"):
        autoencoders.load(path)
    before = VAE(*MODELS["vae"][1])
    model = VAE(*MODELS["vae"][1])
    with pytest.raises(DataError, match=r"changed.safetensors: not the state of this module"):
        model.load_weights(path)
    assert_equal(model, before)


@pytest.mark.parametrize("config", ["", "5", "[1]", '{"kind": "vae"}', '{"kind": "lambda"}', "[" * 10_000])
def test_a_wrong_config_is_one_error(config, exported):
    folder = exported("vae")
    state, _ = read_safetensors(folder / "autoencoder.safetensors")
    write_safetensors(folder / "wrong.safetensors", state, {"format": "pt", "config": config})
    with pytest.raises(DataError):
        autoencoders.load(folder / "wrong.safetensors")


def test_absurd_sizes_are_refused_before_memory_is_taken(exported):
    folder = exported("vae")
    state, metadata = read_safetensors(folder / "autoencoder.safetensors")
    config = json.loads(metadata["config"]) | {"latent_space_dim": 10**9}
    write_safetensors(folder / "wrong.safetensors", state, {"config": json.dumps(config)})
    with pytest.raises(DataError, match="weights, but the file holds"):
        autoencoders.load(folder / "wrong.safetensors")


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F8_E5M2", "C64"])
def test_dtypes_that_numpy_does_not_have_are_named(dtype, tmp_path):
    size = {"BF16": 2, "C64": 8}.get(dtype, 1)
    header = json.dumps({"mu.weight": {"dtype": dtype, "shape": [3], "data_offsets": [0, 3 * size]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(3 * size))
    for read in (autoencoders.load, fresh().load_weights):
        with pytest.raises(DataError, match=f"x.safetensors: mu.weight is {dtype}, which is not read; save it as fl"):
            read(tmp_path / "x.safetensors")


OTHERS = [
    ({"conv_strides": ((1, 2), (2, 1))}, r"conv_strides is \(\(2, 1\), \(1, 2\)\) in the file but \(\(1, 2\), "),
    ({"hidden": 5}, r"hidden is None in the file but 5 in the model"),
    ({"input_shape": (8, 7, 1)}, r"input_shape is \(8, 8, 1\) in the file but \(8, 7, 1\) in the model"),
]


@pytest.mark.parametrize("format", ["own", "torch", "keras"])
@pytest.mark.parametrize(("other", "message"), OTHERS, ids=["strides", "hidden", "shape"])
def test_weights_of_another_architecture_are_refused_though_they_fit(format, other, message, tmp_path):
    if format == "keras":
        pytest.importorskip("h5py")
    sizes = {"input_shape": (8, 8, 1), "conv_filters": (2, 3), "conv_kernels": 3, "conv_strides": ((2, 1), (1, 2))}
    model = VAE(**sizes, latent_space_dim=2, seed=1)
    path = tmp_path / "model.safetensors"
    if format == "own":
        model.save(tmp_path)
    else:
        path = export(model, format, tmp_path)[-1]
    same, target = VAE(**sizes, log_variance_bounds=None), VAE(**sizes | other)
    same.load_weights(path)
    assert_equal(same, model)
    with pytest.raises(DataError, match=f"{path.name}: {message}"):
        target.load_weights(path)
    assert_equal(target, VAE(**sizes | other))


@pytest.mark.parametrize("config", ["{}", '{"input_shape": 5}', '{"input_shape": [8, 8, 1], "conv_kernels": {}}'])
def test_a_wrong_config_is_one_error_of_load_weights(config, exported):
    folder = exported("vae")
    state, _ = read_safetensors(folder / "autoencoder.safetensors")
    write_safetensors(path := folder / "wrong.safetensors", state, {"config": config})
    with pytest.raises(DataError, match=r"wrong.safetensors: "):
        VAE(*MODELS["vae"][1]).load_weights(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [(None, "holds weights alone"), ("record", ""), ("config", ""), (5, ""), ([], ""), ({"config": 5}, "")],
)
def test_metadata_of_another_type_is_one_error(metadata, message, exported):
    folder = exported("one")
    content = (folder / "autoencoder.safetensors").read_bytes()
    length = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:length]) | {"__metadata__": metadata}).encode()
    (folder / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + content[length:])
    with pytest.raises(DataError, match=f"x.safetensors: .*{message}"):
        autoencoders.load(folder / "x.safetensors")


def test_damaged_files_are_refused(exported):
    folder = exported("one")
    content = (folder / "autoencoder.safetensors").read_bytes()
    for cut in (0, 4, 100, len(content) - 1):
        (folder / "cut.safetensors").write_bytes(content[:cut])
        with pytest.raises(DataError, match=r"cut.safetensors: "):
            autoencoders.load(folder / "cut.safetensors")
    (folder / "model.pt").write_bytes(pickle.dumps({"mu.weight": [1]}))
    with pytest.raises(DataError, match=r"model.pt: a pickle can run code, so it is not read; .*torch.save_file"):
        autoencoders.load(folder / "model.pt")


def fresh(**options) -> VAE:
    return VAE((8, 8, 1), (3, 4), (3, 3), (1, 2), 2, **options)


@pytest.mark.parametrize("format", FILES)
@pytest.mark.parametrize("name", ["mu.weight", "encoder_bn_1.moving_mean", "likelihood.log_variance"])
def test_weights_that_are_not_finite_are_not_exported(format, name, tmp_path):
    model = fresh(likelihood="gaussian-learned")
    dict(model.network.named_tensors())[name].data.flat[0] = np.nan
    with pytest.raises(DivergedError, match=f"export: {name} is not finite; nothing was written"):
        export(model, format, tmp_path / "new")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("log_variance", [-800, 800])
def test_a_variance_that_no_file_can_hold_is_not_exported(log_variance, tmp_path):
    model = fresh(likelihood="gaussian-learned")
    model.network.layers["likelihood"].log_variance.data[...] = log_variance
    with pytest.raises(DataError, match=f"export: likelihood.log_variance is {log_variance} but must be within"):
        export(model, "torch", tmp_path / "new")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("mu.weight", np.nan, "mu.weight is not finite"),
        ("decoder_dense.bias", np.inf, "decoder_dense.bias is not finite"),
        ("encoder_bn_1.running_var", -1, "encoder_bn_1.running_var is a variance, but holds a number below 0"),
    ],
)
def test_weights_that_compute_nothing_are_not_read(name, value, message, exported):
    folder = exported("vae")
    x = read_safetensors(folder / "autoencoder.safetensors")[0][name].copy()
    x.flat[-1] = value
    path, model = changed(folder, **{name: x}), VAE(*MODELS["vae"][1])
    for read in (autoencoders.load, model.load_weights):
        with pytest.raises(DataError, match=f"changed.safetensors: {message}"):
            read(path)
    assert_equal(model, VAE(*MODELS["vae"][1]))


@pytest.mark.parametrize("format", FILES)
def test_nothing_is_written_where_a_folder_has_the_name_of_a_file(format, tmp_path):
    last = tmp_path / FILES[format][-1]
    last.mkdir()
    with pytest.raises(DataError, match=f"{last.name}: expected a file or none, found a folder"):
        export(model_of("one"), format, tmp_path, overwrite=True)
    assert list(tmp_path.iterdir()) == [last]
    for first in FILES[format][:-1]:
        (tmp_path / first).mkdir()
        with pytest.raises(DataError, match=f"{first}: expected a file or none, found a folder"):
            export(model_of("one"), format, tmp_path, overwrite=True)
        (tmp_path / first).rmdir()


def test_nothing_is_written_before_all_contents_are_made(tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr("autoencoders.torch_files.source_of_module", fail)
    with pytest.raises(MemoryError):
        export(model_of("one"), "torch", tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_an_existing_file_is_kept(tmp_path):
    (tmp_path / "autoencoder.safetensors").write_text("mine")
    with pytest.raises(FileExistsError, match=r"autoencoder.safetensors exists"):
        export(model_of("one"), "torch", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["autoencoder.safetensors"]
    export(model_of("one"), "torch", tmp_path, overwrite=True)
    assert_equal(autoencoders.load(tmp_path / "autoencoder.safetensors"), model_of("one"))
    with pytest.raises(ValueError, match="export: format is 'tf' but must be one of onnx, torch, keras"):
        export(model_of("one"), "tf", tmp_path)
