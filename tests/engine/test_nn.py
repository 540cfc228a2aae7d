"""Modules: order and names, state, addresses that never change, initial values, sizes."""

from __future__ import annotations

import itertools
import math
from functools import partial

import naive
import numpy as np
import pytest

from minigrad import Tensor, init, nn, no_grad, ops, optim
from minigrad.nn import Module, Parameter
from minigrad.nn.module import format_summary
from minigrad.random import generator
from minigrad.serialize import load_state, save_state
from minigrad.testing import gradcheck


class Tiny(Module):
    """Parameters, a buffer and nested modules, assigned in a telling order."""

    def __init__(self):
        self.scale = Parameter((2,), init.ones)
        self.encoder = nn.Sequential({"conv": nn.Conv2D(1, 2, 3), "bn": nn.BatchNorm(2), "act": nn.ReLU()})
        self.counter = Tensor(np.zeros(1, "float32"))
        self.head = nn.Dense(2, 3)

    def forward(self, x):
        return self.head(self.encoder(x).mean(axis=(1, 2)) * self.scale)


NORM = [f"encoder.bn.{name}" for name in ("gamma", "beta", "moving_mean", "moving_variance")]
NAMES = ["scale", "counter", "encoder.conv.weight", "encoder.conv.bias", *NORM, "head.weight", "head.bias"]
BUFFERS = {"counter", *NORM[2:]}


def same(a: Module, b: Module | dict) -> bool:
    """Whether both hold the same numbers."""
    first, second = (x.state_dict() if isinstance(x, Module) else x for x in (a, b))
    return first.keys() == second.keys() and all(np.array_equal(x, second[name]) for name, x in first.items())


def batch(seed=0, shape=(4, 5, 5, 1)):
    return Tensor(np.random.default_rng(seed).normal(size=shape).astype("float32"))


def all_arrays(model: Module) -> dict[str, np.ndarray]:
    """The data and gradient arrays themselves, by name."""
    arrays = {name: x.data for name, x in model.named_tensors()}
    return arrays | {f"{name} gradient": p.grad for name, p in model.named_parameters()}


# ---- order and names ----


def test_names_follow_attributes_in_order_of_assignment():
    model = Tiny()
    assert [name for name, _ in model.named_tensors()] == NAMES
    assert [name for name, _ in model.named_parameters()] == [name for name in NAMES if name not in BUFFERS]
    assert [id(p) for p in model.parameters()] == [id(p) for _, p in model.named_parameters()]
    assert list(model.state_dict()) == NAMES


def test_modules_come_parents_first_with_full_names():
    found = [(name, type(m).__name__) for name, m in Tiny().modules()]
    assert found[:3] == [("", "Tiny"), ("encoder", "Sequential"), ("encoder.conv", "Conv2D")]
    assert found[3:] == [("encoder.bn", "BatchNorm"), ("encoder.act", "ReLU"), ("head", "Dense")]
    model = nn.Sequential(nn.Dense(2, 3), nn.Sequential(nn.Tanh(), nn.Dense(3, 1)))
    assert [name for name, _ in model.named_tensors()] == ["0.weight", "0.bias", "1.1.weight", "1.1.bias"]


@pytest.mark.parametrize(
    ("layer", "oracle"),
    [
        (nn.ReLU(), naive.relu),
        (nn.LeakyReLU(0.3), lambda x: naive.leaky_relu(x, 0.3)),
        (nn.Sigmoid(), naive.sigmoid),
        (nn.Tanh(), naive.tanh),
        (nn.Softplus(), naive.softplus),
        (nn.Flatten(), lambda x: naive.reshape(x, 2, 12)),
        (nn.Sequential(nn.ReLU(), nn.Tanh()), lambda x: naive.tanh(naive.relu(x))),
        (nn.Reshape(4, 3), lambda x: naive.reshape(x, 2, 4, 3)),
        (nn.Reshape((4, np.int64(3))), lambda x: naive.reshape(x, 2, 4, 3)),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, Module) else "",
)
def test_layers_without_weights(layer, oracle):
    x = np.random.default_rng(0).normal(size=(2, 3, 4))
    np.testing.assert_allclose(layer(Tensor(x)).numpy(), oracle(x), rtol=1e-14)
    assert layer.parameters() == []


@pytest.mark.parametrize("shape", [(0, 3, 2), (1, 1, 1), (3,)])
def test_flatten_keeps_the_batch_axis(shape):
    assert nn.Flatten()(Tensor(np.zeros(shape))).shape == (shape[0], math.prod(shape[1:]))


HALVED = {"stride": 2, "padding": "same"}


@pytest.mark.parametrize(
    ("layer", "shape", "oracle"),
    [
        (nn.Dense(3, 2), (4, 3), naive.dense),
        (nn.Conv2D(2, 3, (3, 2), stride=2), (1, 5, 4, 2), partial(naive.conv2d, **HALVED)),
        (nn.Conv2DTranspose(2, 3, 3, stride=2), (1, 5, 4, 2), partial(naive.conv2d_transpose, **HALVED)),
    ],
)
def test_layers_with_weights_use_them(layer, shape, oracle):
    rng = np.random.default_rng(0)
    layer.to(dtype="float64")
    x, layer.bias.data[...] = rng.normal(size=shape), rng.normal(size=layer.bias.shape)
    expected = oracle(x, layer.weight.data, layer.bias.data)
    np.testing.assert_allclose(layer(Tensor(x)).numpy(), expected, rtol=1e-12, atol=1e-13)


# ---- batch normalisation ----


def test_batch_norm_in_evaluation_uses_and_keeps_the_moving_statistics():
    layer = nn.BatchNorm(2)
    values = {"gamma": [2, 3], "beta": [1, -1], "moving_mean": [1, 2], "moving_variance": [4, 9]}
    layer.load_state_dict({name: np.array(value) for name, value in values.items()})
    layer.to(dtype="float64")
    layer.eval()
    before = layer.state_dict()
    x = np.random.default_rng(0).normal(size=(3, 2))
    expected = naive.batch_norm_inference(x, *values.values())
    np.testing.assert_allclose(layer(Tensor(x)).numpy(), expected, rtol=1e-13)
    assert same(layer, before)


def test_train_and_eval_reach_every_module():
    model = Tiny()
    for mode in (False, True):
        model.train(mode)
        assert {module.training for _, module in model.modules()} == {mode}
    model.eval()
    assert not model.encoder.layers["bn"].training


# ---- state ----


def test_state_round_trip_is_exact_and_holds_copies():
    source, target = Tiny(), Tiny()
    source.initialize(5)
    source(batch())
    state = source.state_dict()
    target.load_state_dict(state)
    assert same(source, target)
    source.eval()
    target.eval()
    assert np.array_equal(source(batch(1)).numpy(), target(batch(1)).numpy())
    for value in state.values():
        value += 1
    assert same(source, target)


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("spoil", "texts"),
    [
        (lambda s: without(s, "head.bias"), ["missing head.bias"]),
        (lambda s: s | {"head.wieght": np.zeros(1)}, ["unexpected head.wieght"]),
        (lambda s: s | {"head.weight": np.zeros((3, 2))}, [r"head.weight is \(3, 2\) but must be \(2, 3\)"]),
        (lambda s: s | {"head.bias": np.zeros(())}, [r"head.bias is \(\) but must be \(3,\)"]),
        (lambda s: without(s, "scale") | {"x": np.zeros(1), "counter": np.zeros(2)}, ["scale", "x", "counter"]),
        (lambda s: {}, NAMES),
        (lambda s: s | {"head.bias": np.array(["a", "b", "c"])}, ["head.bias"]),
        (lambda s: s | {"head.bias": np.array([1j, 2, 3])}, ["head.bias"]),
    ],
)
def test_load_state_dict_changes_nothing_unless_everything_fits(spoil, texts):
    model, other = Tiny(), Tiny()
    other.initialize(9)
    other(batch())
    before = model.state_dict()
    with pytest.raises(ValueError, match="^load_state_dict: .*" + ".*".join(texts)):
        model.load_state_dict(spoil(other.state_dict()))
    assert same(model, before)


def test_load_state_dict_accepts_the_other_float_dtype():
    model = nn.Dense(2, 2)
    model.load_state_dict({"weight": np.full((2, 2), 0.1), "bias": np.array([1, 2])})
    assert model.weight.dtype == "float32"
    assert model.weight.data.tolist() == [[np.float32(0.1)] * 2] * 2
    assert model.bias.data.tolist() == [1.0, 2.0]


# ---- addresses ----


@pytest.mark.parametrize(
    "make", [lambda p: optim.SGD(p, 0.1, momentum=0.9), lambda p: optim.Adam(p, 0.1), lambda p: optim.AdamW(p, 0.1)]
)
def test_addresses_never_change(make):
    """Data, gradients and moving statistics keep their arrays, so that a captured step can be replayed."""
    model = Tiny()
    optimizer = make(model.parameters())
    arrays = all_arrays(model) | optimizer.moments | vars(optimizer.flat)
    pointers = {name: a.ctypes.data for name, a in arrays.items() if isinstance(a, np.ndarray)}
    before = model.state_dict()

    for seed in range(2):
        optimizer.zero_grad()
        (model(batch(seed)) * 2.0).sum().backward()
        optim.clip_grad_norm(optimizer, 0.5)
        optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not np.array_equal(before[name], value)}
    assert changed == set(NAMES) - {"counter"}
    model.load_state_dict(before)
    model.initialize(3)
    model.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
    model.eval()
    model.train()

    after = all_arrays(model) | optimizer.moments | vars(optimizer.flat)
    assert all(after[name] is a for name, a in arrays.items())
    assert {name: a.ctypes.data for name, a in after.items() if isinstance(a, np.ndarray)} == pointers


def test_parameters_and_gradients_are_views_of_flat_arrays_in_order():
    model = Tiny()
    values = np.concatenate([p.data.ravel() for p in model.parameters()])
    optimizer = optim.SGD(model.parameters(), 0.1)
    flat = optimizer.flat
    assert np.array_equal(flat.values, values)
    start = 0
    for p in model.parameters():
        for view, whole in ((p.data, flat.values), (p.grad, flat.gradients)):
            assert view.ctypes.data == whole.ctypes.data + start * 4
            assert view.shape == p.shape
            assert view.flags.c_contiguous
        start += p.size
    assert start == flat.values.size == flat.gradients.size
    flat.gradients[...] = 1
    assert all((p.grad == 1).all() for p in model.parameters())
    model.zero_grad()
    assert (flat.gradients == 0).all()


def test_gradients_made_before_the_optimizer_are_kept():
    model = nn.Dense(2, 1)
    for _ in range(3):  # they start at zero and add up
        model(Tensor(np.ones((1, 2), "float32"))).sum().backward()
    optim.SGD(model.parameters(), 0.1)
    assert model.weight.grad.tolist() == [[3.0], [3.0]]


def test_to_dtype_converts_everything_and_gives_new_arrays():
    model = Tiny()
    before, old = model.state_dict(), all_arrays(model)
    model.to(dtype="float64")
    assert {str(a.dtype) for a in all_arrays(model).values()} == {"float64"}
    assert not any(np.shares_memory(a, old[name]) for name, a in all_arrays(model).items())
    assert same(model, before)
    with no_grad():
        assert model(Tensor(np.ones((1, 4, 4, 1)))).dtype == "float64"


@pytest.mark.parametrize("move", [lambda m: m.to(dtype="float64"), lambda m: optim.SGD(m.parameters(), 0.1)])
def test_a_moved_model_invalidates_its_optimizer(move):
    model = Tiny()
    optimizer = optim.Adam(model.parameters())
    move(model)
    with pytest.raises(RuntimeError, match=r"the parameters have moved .* make a new optimizer"):
        optimizer.step()
    assert optimizer.steps == 0


# ---- initial values ----


@pytest.mark.parametrize("name", ["glorot_uniform", "glorot_normal", "he_uniform", "he_normal"])
@pytest.mark.parametrize(
    ("make", "fan_in", "fan_out"),
    [
        (lambda i: nn.Dense(80, 300, initializer=i), 80, 300),
        (lambda i: nn.Conv2D(16, 64, (5, 3), initializer=i), 5 * 3 * 16, 5 * 3 * 64),
        (lambda i: nn.Conv2DTranspose(16, 64, (5, 3), initializer=i), 5 * 3 * 16, 5 * 3 * 64),
    ],
    ids=["dense", "conv", "transposed"],
)
def test_initial_variance(make, fan_in, fan_out, name):
    """Over n >= 15,000 draws the variance errs by a relative sqrt(2 / n) < 1.2 % (normal), so 6 % is five sigmas."""
    layer = make(getattr(init, name))
    values = layer.weight.numpy().astype("float64")
    assert values.size >= 15_000
    expected = 2 / (fan_in + fan_out if "glorot" in name else fan_in)
    assert np.mean(values**2) == pytest.approx(expected, rel=0.06)
    assert abs(np.mean(values)) < 5 * math.sqrt(expected / values.size)
    if "uniform" in name:
        limit = math.sqrt(3 * expected)
        assert 0.999 * limit < np.abs(values).max() <= limit * (1 + 1e-7)
    else:  # the fourth moment of a normal variable is three squared variances, of a uniform one 1.8
        assert np.mean(values**4) == pytest.approx(3 * expected**2, rel=0.25)
    assert (layer.bias.numpy() == 0).all()


# ---- summary ----


def test_summary_leaves_the_model_alone():
    """test_autoencoder.py has the numbers."""
    model = nn.Sequential({"conv": nn.Conv2D(3, 8, 3, stride=2), "bn": nn.BatchNorm(8), "flat": nn.Flatten()})
    model.layers["flat"].training = False
    before = model.state_dict()
    model.summary((9, 8, 3))  # must not show its zero image to the moving statistics
    assert same(model, before)
    assert [m.training for _, m in model.modules()] == [True, True, True, False]
    assert all((p.grad == 0).all() for p in model.parameters())
    assert format_summary([]).splitlines()[-1].split() == ["total", "0", "0", "0"]


def test_module_without_forward():
    with pytest.raises(NotImplementedError):
        Module()(ops.exp(0.0))


@pytest.mark.parametrize("shape", [np.zeros((2, 3), "float32"), np.array([2, 3]), Tensor(np.zeros((2, 3)))])
def test_a_parameter_is_not_made_of_an_array(shape):
    with pytest.raises(
        TypeError, match=r"^Parameter: shape must be a tuple of whole numbers, found a (ndarray|Tensor) of"
    ):
        Parameter(shape)


def test_layers_made_alone_start_differently(monkeypatch):
    """In the same way in each process: it depends on how many parameters were made before."""
    runs = []
    for _ in range(2):
        monkeypatch.setattr(nn.module, "_parameters_made", itertools.count())
        runs.append([nn.Dense(3, 3).weight.numpy(), nn.Dense(3, 3).weight.numpy()])
    assert not np.array_equal(*runs[0])
    np.testing.assert_array_equal(*runs)


# ---- one tensor under several names ----


class TwoWays(Module):
    """One layer as two attributes."""

    def __init__(self):
        self.first = nn.Dense(3, 3)
        self.norm = nn.BatchNorm(3)
        self.second, self.other_norm = self.first, self.norm

    def forward(self, x):
        return self.other_norm(self.second(ops.tanh(self.norm(self.first(x)))))


class OneWeight(Module):
    """Two layers with one weight, and a buffer under two names."""

    def __init__(self):
        self.first, self.second = nn.Dense(3, 3), nn.Dense(3, 3)
        self.second.weight = self.first.weight
        self.count = self.total = Tensor(np.zeros(1, "float32"))

    def forward(self, x):
        return self.second(ops.tanh(self.first(x)))


class Transposed(Module):
    """A decoder with the encoder's weight, transposed."""

    def __init__(self):
        self.encoder = nn.Dense(3, 2)
        self.code = self.encoder.weight
        self.bias = Parameter((3,))

    def forward(self, x):
        return ops.tanh(self.encoder(x)) @ self.code.transpose() + self.bias


def used_twice(wrap):
    layer = nn.Dense(3, 3)
    return nn.Sequential(wrap(layer), nn.Tanh(), wrap(layer))


TIED = {  # name: (model, parameters, further names of tensors)
    "twice in a Sequential": (lambda: used_twice(lambda layer: layer), 2, 2),
    "in two Sequentials": (lambda: used_twice(nn.Sequential), 2, 2),
    "two attributes": (TwoWays, 4, 6),
    "one weight": (OneWeight, 3, 2),
    "transposed": (Transposed, 3, 1),
}


@pytest.mark.parametrize("name", TIED)
def test_a_tensor_with_two_names_counts_once(name, tmp_path):
    make, parameters, more = TIED[name]
    model = make()
    assert len(model.parameters()) == len({id(p) for p in model.parameters()}) == parameters
    tensors, every = list(model.named_tensors()), list(model.named_tensors(every_name=True))
    assert len(every) == len(tensors) + more == len(model.state_dict())
    assert [n for n, _ in tensors] == [n for i, (n, x) in enumerate(every) if not any(x is y for _, y in every[:i])]
    assert list(model.state_dict()) == [n for n, _ in every]

    model.initialize(3)
    for full_name, p in model.named_parameters():
        expected = p.initializer(generator(3, "init", full_name), p.shape, *p.fans).astype("float32")
        assert np.array_equal(p.data, expected)
    model.to(dtype="float64")
    assert {str(x.dtype) for _, x in every} == {"float64"}
    gradcheck(model, Tensor(np.random.default_rng(0).normal(size=(4, 3))), parameters=model.parameters())

    optimizer = optim.Adam(model.parameters(), 0.1)
    x = Tensor(np.random.default_rng(0).normal(size=(4, 3)))
    (model(x) * model(x)).sum().backward()
    optimizer.step()
    assert [id(y) for _, y in model.named_tensors(every_name=True)] == [id(y) for _, y in every]

    save_state(tmp_path / "state", model.state_dict(), {})
    state, other = load_state(tmp_path / "state")[0], make()
    other.to(dtype="float64")
    other.load_state_dict(state)
    assert same(other, state)
    assert np.array_equal(other(x).numpy(), model(x).numpy())

    second = next(n for n, y in every if n not in dict(tensors))
    first = next(n for n, y in tensors if y is dict(every)[second])
    before = other.state_dict()
    for spoil in (lambda a: a + 1, lambda a: np.full_like(a, np.nan)):
        with pytest.raises(
            ValueError, match=f"^load_state_dict: {second} and {first} are one tensor here but have diff"
        ):
            other.load_state_dict(state | {second: spoil(state[second])})
    assert same(other, before)
    with pytest.raises(ValueError, match=f"missing {second}"):
        other.load_state_dict(without(state, second))
    nothing = np.full_like(state[second], np.nan)
    other.load_state_dict(state | {first: nothing, second: nothing.astype("float32")})  # equal, and no contradiction


def test_a_fused_chain_that_uses_a_layer_twice():
    conv, norm = nn.Conv2D(2, 2, 3), nn.BatchNorm(2)
    layers = {"a": conv, "a_relu": nn.ReLU(), "a_norm": norm, "b": conv, "b_relu": nn.ReLU(), "b_norm": norm, "c": conv}
    nn.Sequential(layers).to(dtype="float64")
    found = []
    for model in (nn.fuse(layers), nn.Sequential(layers)):
        norm.load_state_dict(nn.BatchNorm(2).state_dict())
        assert len(model.parameters()) == 4
        model.zero_grad()
        y = model(Tensor(np.random.default_rng(0).normal(size=(3, 4, 4, 2))))
        (y * y).sum().backward()
        found.append([y.numpy(), *(p.grad.copy() for p in model.parameters()), norm.moving_mean.numpy().copy()])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


def test_a_module_inside_itself_is_found_once():
    class Node(Module):
        def __init__(self, parent=None):
            self.weight = Parameter((2,))
            self.me, self.parent, self.all = self, parent, [parent, self]

    root = Node()
    root.child = Node(root)
    assert [name for name, _ in root.modules()] == ["", "child"]
    assert [name for name, _ in root.named_parameters()] == list(root.state_dict()) == ["weight", "child.weight"]
    root.train(False)
    root.to(dtype="float64")
    root.load_state_dict(root.state_dict())
    assert (root.child.training, root.child.weight.dtype) == (False, "float64")


def test_a_summary_counts_a_parameter_once():
    layer, tied = nn.Dense(3, 3), nn.Dense(3, 3)
    tied.weight = layer.weight
    model = nn.Sequential(layer, layer, tied)
    lines = [line.split() for line in model.summary((3,)).splitlines()[2:]]
    assert [line[3] for line in lines if line[1:2] == ["Dense"]] == ["12", "0", "3"]
    assert lines[-1][1:3] == ["15", "27"]  # its multiplications are done as often as it is used


def test_trainable_freezes_all_parameters_of_a_module():
    model = nn.Sequential(nn.Dense(2, 2), nn.BatchNorm(2))
    model.layers["1"].trainable = False
    assert [p.requires_grad for p in model.parameters()] == [True, True, False, False]
    assert (model.trainable, model.layers["0"].trainable, model.layers["1"].trainable) == (False, True, False)
    x = Tensor(np.float32([[1, 2], [3, 5]]))
    model.layers["1"](x)
    assert not model.layers["1"].moving_mean.numpy().any()
    model.trainable = np.True_
    assert [p.requires_grad for p in model.parameters()] == 4 * [True]


# ---- modules in containers ----


class Blocks(Module):
    def __init__(self):
        self.blocks = [nn.Dense(3, 3), nn.BatchNorm(3)]
        self.heads = {"mean": nn.Dense(3, 1), "pair": (nn.Dense(3, 2), nn.Tanh())}
        self.sizes, self.options = [1, 2], {"a": "b"}

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.heads["mean"](x) + self.heads["pair"][1](self.heads["pair"][0](x)).sum(axis=1, keepdims=True)


def test_modules_in_lists_tuples_and_dicts_are_found():
    model = Blocks()
    names = ["blocks.0", "blocks.1", "heads.mean", "heads.pair.0", "heads.pair.1"]
    assert [name for name, _ in model.modules()] == ["", *names]
    assert [name for name, _ in model.named_parameters()] == [
        "blocks.0.weight", "blocks.0.bias", "blocks.1.gamma", "blocks.1.beta", "heads.mean.weight", "heads.mean.bias",
        "heads.pair.0.weight", "heads.pair.0.bias",
    ]  # fmt: skip
    model.eval()
    assert [module.training for _, module in model.modules()] == 6 * [False]
    model.initialize(1)
    other = Blocks()
    other.load_state_dict(model.state_dict())
    other.eval()
    x = batch(0, (4, 3))
    assert np.array_equal(model(x).numpy(), other(x).numpy())
    model.to(dtype="float64")
    model.train()
    gradcheck(model, Tensor(np.random.default_rng(0).normal(size=(4, 3))), parameters=model.parameters())
