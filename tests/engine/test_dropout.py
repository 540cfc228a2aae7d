"""Dropout: when it acts, which numbers it draws, and that a resumed training draws the same."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import minigrad
from minigrad import Tensor, evaluation, nn, ops, optim
from minigrad.random import generator
from minigrad.serialize import load_state, save_state


def dropout(rate, seed, call=0):
    """A layer with this seed before that call."""
    layer = nn.Dropout(rate)
    layer.draws.data[0], layer.draws.data[1] = seed, call
    return layer


def ones(*shape, k=None):
    x = np.ones(shape, np.float32)
    return Tensor(x if k is None else k.from_host(x))


def test_it_zeroes_the_share_and_scales_the_rest(backend):
    y = dropout(0.3, 1)(ones(200, 300, k=backend)).numpy()
    assert set(np.unique(y)) == {np.float32(0), np.float32(1) * np.float32(1 / 0.7)}
    assert abs((y == 0).mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / y.size)  # four standard deviations
    assert nn.Dropout(0.0)(ones(5)).numpy().tolist() == [1.0] * 5


def test_every_call_draws_the_numbers_of_its_name(backend):
    layer = dropout(0.5, 7)
    for call in range(3):
        expected = generator(7, "dropout", call).random((4, 3, 2), dtype=np.float32) >= 0.5
        assert np.array_equal(layer(ones(4, 3, 2, k=backend)).numpy() > 0, expected)
    masks = [layer(ones(8, 8)).numpy().tobytes() for _ in range(20)] if backend.on_host else range(20)
    assert len(set(masks)) == 20


def test_a_row_depends_on_its_place_and_not_on_the_number_of_rows():
    """So a shard has the rows of the whole batch."""
    layers = dropout(0.5, 3), dropout(0.5, 3)
    whole, part = layers[0](ones(32, 7, 3)).numpy(), layers[1](ones(13, 7, 3)).numpy()
    assert np.array_equal(whole[:13], part)


def test_evaluation_changes_nothing():
    layer, x = dropout(0.5, 5), ones(4, 4)
    before = layer.state_dict()
    with evaluation():
        assert layer(x) is x
    layer.eval()
    assert layer(x) is x
    layer.train(None)  # inside a Trainer only
    assert layer(x) is x
    assert all(np.array_equal(value, before[name]) for name, value in layer.state_dict().items())
    with nn.training():
        assert not np.array_equal(layer(x).numpy(), x.numpy())


def test_new_layers_differ_from_each_other():
    found = [nn.Dropout(0.5)(ones(9, 9)).numpy() for _ in range(2)]
    assert not np.array_equal(*found)


def test_initialize_gives_each_layer_the_draws_of_its_name():
    """So two models that start from one seed train alike, whatever was made before them."""
    models = [nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5)) for _ in range(3)]
    models[1](ones(4, 4))
    for model, seed in zip(models, (1, 1, 2), strict=True):
        model.initialize(seed)
    draws = [[layer.draws.data.tolist() for layer in model.layers.values()] for model in models]
    assert draws[0] == draws[1]
    assert len({seed for pair in (draws[0], draws[2]) for seed, _ in pair}) == 4
    assert draws[0][0] == [int(generator(1, "draws", "0").integers(2**24)), 0]
    first, second = (model(ones(9, 9)).numpy() for model in models[:2])
    assert np.array_equal(first, second)
    models[0].to(dtype="float32")
    assert models[0].layers["0"].draws.data.tolist() == [draws[0][0][0], 1]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_resumed_training_has_the_same_bits(dtype, tmp_path, backend):
    def make():
        model = nn.Sequential(nn.Dense(6, 8), nn.Dropout(0.5), nn.ReLU(), nn.Dropout(0.2), nn.Dense(8, 1))
        model.initialize(1)
        model.to(dtype=dtype)
        return model

    def step(model, i):
        model.zero_grad()
        x = backend.from_host(generator(0, "x", i).normal(size=(5, 6)).astype(dtype))
        ops.mse(model(Tensor(x)), backend.xp.ones((5, 1), dtype=dtype)).backward()
        optim.SGD(model.parameters(), 0.1).step()

    model = make()
    for i in range(3):
        step(model, i)
    save_state(tmp_path / "state", model.state_dict(), {})
    resumed = make()
    resumed.initialize(2)  # its layers have other seeds until the state is loaded
    resumed.load_state_dict(load_state(tmp_path / "state")[0])
    copied = copy.deepcopy(model)
    for i in range(3, 6):
        for each in (model, resumed, copied):
            step(each, i)
    states = [each.state_dict() for each in (model, resumed, copied)]
    for name, value in states[0].items():
        assert value.tobytes() == states[1][name].tobytes() == states[2][name].tobytes(), name
    assert states[0]["1.draws"].tolist()[1] == 6


def test_large_seeds_and_counts_are_exact():
    layer = dropout(0.5, 2**53)
    layer.draws.data[1] = 2**52 + 1
    expected = generator(2**53, "dropout", 2**52 + 1).random((3, 3), dtype=np.float32) >= 0.5
    assert np.array_equal(layer(ones(3, 3)).numpy() > 0, expected)
    assert layer.draws.data.tolist() == [2**53, 2**52 + 2]


def test_threads_never_share_a_call():
    layer, threads, calls = dropout(0.5, 2), 8, 50
    with ThreadPoolExecutor(threads) as pool:
        masks = list(pool.map(lambda _: layer(ones(8, 8)).numpy().tobytes(), range(threads * calls)))
    alone = dropout(0.5, 2)
    assert sorted(masks) == sorted(alone(ones(8, 8)).numpy().tobytes() for _ in range(threads * calls))
    assert layer.draws.data.tolist() == [2, threads * calls]


@pytest.mark.usefixtures("cupy_double", "restored_backends")
def test_it_moves_to_a_gpu_with_its_count():
    layer = dropout(0.5, 4)
    layer(ones(2, 2))
    k = minigrad.use(device="cuda", kernels="plain")
    layer.to("cuda")
    expected = generator(4, "dropout", 1).random((3, 4), dtype=np.float32) >= 0.5
    assert np.array_equal(layer(ones(3, 4, k=k)).numpy() > 0, expected)
