"""Random numbers are a function of a seed and a name, and of nothing else."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from philox import philox

from autoencoders import VAE
from minigrad import init, nn
from minigrad.random import generator

GOLDEN = [[17514667841123299542, 2580431761963045723], [15211461722633852083, 8173726813494438215]]
# The canonical texts, written out by hand.
TEXTS = {
    (0,): "[0]",
    (7, "shuffle", 3): '[7, "shuffle", 3]',
    (0, "init", "encoder_conv_layer_1.weight"): '[0, "init", "encoder_conv_layer_1.weight"]',
    (2**70, "a"): '[1180591620717411303424, "a"]',
    (1, 'quo"te', -2): '[1, "quo\\"te", -2]',
    (1, "ü"): '[1, "\\u00fc"]',
}


@pytest.mark.parametrize("key", TEXTS, ids=str)
def test_values_are_those_of_philox_keyed_by_blake2(key):
    expected, found = philox(TEXTS[key]), generator(*key)
    np.testing.assert_array_equal(found.standard_normal(5), expected.standard_normal(5))
    np.testing.assert_array_equal(found.permutation(9), expected.permutation(9))
    np.testing.assert_array_equal(found.integers(0, 2**60, 3), expected.integers(0, 2**60, 3))


def test_first_values_stay_what_they_are():
    """Raw 64-bit words, written down once: checkpoints of older versions rely on them."""
    assert generator(0).bit_generator.random_raw(2).tolist() == GOLDEN[0]
    assert generator(7, "shuffle", 3).bit_generator.random_raw(2).tolist() == GOLDEN[1]


def test_different_keys_differ():
    """Also those that would be one text if the parts were just joined."""
    keys = [(0,), (1,), (0, "a"), (0, "b"), (0, "a", 0), (0, "a", 1), (0, 1), (0, "1"), (0, "1", "2"), (0, "12")]
    keys += [(0, "a", "b"), (0, "ab"), (0, "a, b"), (0, 'a", "b'), (0, "b", "a"), (1, "a"), (10, "a"), (0, 0, 0)]
    keys += [(0, 0), (0, ""), *((seed, "shuffle", epoch) for seed in range(2, 12) for epoch in range(10))]
    draws = [tuple(generator(*key).bit_generator.random_raw(2).tolist()) for key in keys]
    for (i, a), (j, b) in itertools.combinations(enumerate(draws), 2):
        assert a != b, (keys[i], keys[j])


@pytest.mark.parametrize(
    "key", [("0",), (0.0,), (None,), (True,), (0, None), (0, 1.5), (0, ("a",)), (0, b"a"), (0, False), (np.float64(1),)]
)
def test_other_types_are_refused(key):
    with pytest.raises(TypeError, match="generator: seed must be an int and keys ints or strings"):
        generator(*key)


def test_numbers_of_numpy_are_numbers():
    assert generator(np.uint8(7), "a", np.int64(2)).random() == generator(7, "a", 2).random()
    config = VAE((8, 8, 1), (2,), (3,), (2,), 2, seed=np.int64(3)).config
    assert (type(config["seed"]), config["seed"]) == (int, 3)


def test_negative_seeds_are_refused():
    with pytest.raises(ValueError, match="seed is -1 but must not be negative"):
        generator(-1, "a")


def test_initial_weights_are_named_draws():
    """Each parameter has its own stream, so adding a layer changes no other."""
    small = nn.Sequential({"a": nn.Dense(3, 2)})
    large = nn.Sequential({"b": nn.Dense(3, 2), "a": nn.Dense(3, 2)})
    for model in (small, large):
        model.initialize(4)
    expected = init.glorot_uniform(philox('[4, "init", "a.weight"]'), (3, 2), 3, 2).astype("float32")
    for model in (small, large):
        np.testing.assert_array_equal(model.state_dict()["a.weight"], expected)
    assert not np.array_equal(large.state_dict()["b.weight"], expected)


def train() -> dict[str, np.ndarray]:
    images = np.random.default_rng(0).random((12, 8, 8, 1)).astype("float32")
    model = VAE((8, 8, 1), (2,), (3,), (2,), 2)
    model.compile(1e-2)
    model.train(images, 5, 2, validation=3, progress=False)
    sample = model.sample(3)
    return {**model.network.state_dict(), "sample": sample, "drawn": model.reconstruct(images, sample=True)[0]}


def global_state() -> list[bytes]:
    name, words, *rest = np.random.get_state()  # noqa: NPY002
    return [name.encode(), words.tobytes(), repr(rest).encode()]


def test_training_neither_reads_nor_changes_the_global_generators():
    import random

    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    first, before, python = train(), global_state(), random.getstate()
    np.random.seed(1)  # noqa: NPY002
    assert before == global_state()
    random.seed(1)
    assert python == random.getstate()
    np.random.seed(2)  # noqa: NPY002
    random.seed(2)
    second = train()
    assert first.keys() == second.keys()
    for name, x in first.items():
        assert x.tobytes() == second[name].tobytes(), name
