"""Models that the original has saved: read without unpickling, with the numbers that Keras gives.

reference/seed_ae and seed_vae were saved by tf_keras 2 from the original's architecture with random weights and
statistics;
golden.npz holds what it made of three images.
"""

import os
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import autoencoders
from autoencoders import VAE, Autoencoder
from autoencoders.keras_files import LARGEST, read_parameters, read_weights
from minigrad.serialize import DataError

REFERENCE = Path(__file__).parents[1] / "oracles/reference"
SIZES = [(28, 28, 1), (32, 64, 64, 64), (3, 3, 3, 3), (1, 2, 2, 1), 2]


@pytest.fixture
def parameters(tmp_path):
    def write(content: bytes) -> Path:
        path = tmp_path / "parameters.pkl"
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_sizes_are_read_from_every_protocol(parameters, protocol):
    found = read_parameters(parameters(pickle.dumps(SIZES, protocol)))
    assert list(found.values()) == SIZES
    assert list(found) == ["input_shape", "conv_filters", "conv_kernels", "conv_strides", "latent_space_dim"]


def test_large_numbers_and_shared_tuples(parameters):
    three = (3, 70_000)
    sizes = [(300, 2**40, 1), three, three, three, 2**31]
    assert list(read_parameters(parameters(pickle.dumps(sizes))).values()) == sizes


class Evil:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    "content",
    [
        *(pickle.dumps(x) for x in (Evil(), {"input_shape": 1}, [1, 2, 3, 4], 5)),
        *(pickle.dumps([x, 1, 2, 3, 4]) for x in (Evil(), print, "x", 5.0, None)),
        pickle.dumps(SIZES)[:-1],
        pickle.dumps(SIZES)[:20],
        pickle.dumps(SIZES) + bytes(LARGEST),
        b"",
        b"cos\nsystem\n(S'true'\ntR.",
    ],
)
def test_everything_else_is_refused_and_nothing_runs(parameters, content, capsys):
    path = parameters(content)
    with pytest.raises(DataError, match=f"{path}: not the original's parameters"):
        read_parameters(path)
    assert "executed" not in capsys.readouterr().out


def test_shared_tuples_with_too_many_leaves_are_refused(parameters):
    doubled = b"".join(b"q%ch%c\x86" % (i, i) for i in range(40))  # each a pair of the one before: 2^40 leaves
    path = parameters(b"\x80\x02K\x01" + doubled + b".")
    with pytest.raises(DataError, match="something else than whole numbers in short tuples"):
        read_parameters(path)
    with pytest.raises(DataError, match="something else than whole numbers in short tuples"):
        read_parameters(parameters(pickle.dumps([*SIZES[:4], (1,) * 101])))


@pytest.mark.parametrize("reader", [read_parameters, read_weights])
def test_special_files_are_refused_and_not_waited_for(tmp_path, reader):
    if reader is read_weights:
        pytest.importorskip("h5py")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in ("pipe", "zeros"):
        with pytest.raises(DataError, match=rf"{name}: kind: expected a file, found a special file"):
            reader(tmp_path / name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"parameters.pkl: cannot be read: No such file"):
        read_parameters(tmp_path / "parameters.pkl")
    with pytest.raises(DataError, match=r"model.safetensors: there is no such model"):
        autoencoders.load(tmp_path)


# ---- whole models ----


@pytest.mark.parametrize(("name", "kind"), [("seed_ae", Autoencoder), ("seed_vae", VAE)])
def test_a_model_of_the_original_computes_what_keras_computes(name, kind):
    pytest.importorskip("h5py")
    model = autoencoders.load(REFERENCE / name)
    assert type(model) is kind
    with np.load(REFERENCE / name / "golden.npz") as golden:
        reconstructed, latents = model.reconstruct(golden["images"])
        # float32 on both sides: some ten roundings of the largest magnitude
        np.testing.assert_allclose(latents, golden["latents"], atol=2e-6 * np.abs(golden["latents"]).max(), rtol=0)
        np.testing.assert_allclose(reconstructed, golden["reconstructed"], atol=2e-6, rtol=0)


def test_weights_that_do_not_fit_the_sizes_are_refused(tmp_path):
    pytest.importorskip("h5py")
    shutil.copytree(REFERENCE / "seed_ae", tmp_path / "model")
    sizes = [(12, 12, 1), (2, 3, 3), (3, 3, 3), (1, 2, 2), 2]
    for changed in ([*sizes[:4], 3], [*sizes[:4], 10**9], [(12, 12, 2), *sizes[1:]], [*sizes[:1], (2, 3), *sizes[2:]]):
        (tmp_path / "model/parameters.pkl").write_bytes(pickle.dumps(changed))
        with pytest.raises(DataError, match=r"weights.h5: "):
            autoencoders.load(tmp_path / "model")


def test_damaged_weights_are_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    (tmp_path / "secret").write_bytes(bytes(4000))
    with h5py.File(tmp_path / "weights.h5", "w") as file:  # numbers that lie in another file
        elsewhere = [(str(tmp_path / "secret"), 0, h5py.h5f.UNLIMITED)]
        file.create_dataset("encoder/mu/kernel:0", (10, 10), "f4", external=elsewhere)
    with pytest.raises(DataError, match=r"weights.h5: .*mu/kernel:0 is not an array of floats in the file itself"):
        read_weights(tmp_path / "weights.h5")
    with h5py.File(tmp_path / "weights.h5", "w") as file:  # a chunk is not there, and would be gigabytes of zeros
        file.create_dataset("encoder/mu/kernel:0", (10**5, 10**5), "f4", chunks=(10, 10))
    with pytest.raises(DataError, match="is not an array of floats in the file itself"):
        read_weights(tmp_path / "weights.h5")


def test_without_h5py_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r'weights.h5: reading it needs h5py, .*: pip install "\.\[keras\]"'):
        autoencoders.load(REFERENCE / "seed_ae")
