"""Copies by copy.deepcopy and pickle: they hold what the original holds, share what it shares, and live by themselves.

The project never unpickles anything; whoever does so with a file of somebody else runs what is in it.
"""

from __future__ import annotations

import copy
import functools
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import naive
import numpy as np
import pytest

import autoencoders
import minigrad
from autoencoders import VAE, Autoencoder
from minigrad import Tensor, nn, ops, optim
from minigrad.nn import Module, Parameter

COPIES = {"deepcopy": copy.deepcopy}
COPIES |= {f"pickle {n}": lambda x, n=n: pickle.loads(pickle.dumps(x, n)) for n in (2, pickle.HIGHEST_PROTOCOL)}
OPTIMIZERS = {
    "momentum": lambda p: optim.SGD(p, optim.step_schedule(0.1, 2), momentum=0.9, nesterov=True),
    "adam": lambda p: optim.Adam(p, optim.cosine_schedule(1e-2, 9, warmup=2)),
    "adamw": lambda p: optim.AdamW(p, 1e-2, weight_decay=0.1),
}

copies = pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)


class Shared(Module):
    """A fused chain and a Sequential over the same layers, a weight under two names, and a buffer."""

    def __init__(self):
        layers = {"conv": nn.Conv2D(1, 2, 3), "relu": nn.ReLU(), "norm": nn.BatchNorm(2), "last": nn.Conv2D(2, 2, 3)}
        self.chain = nn.fuse(layers)
        self.plain = nn.Sequential(layers)
        self.head = nn.Dense(2, 2)
        self.again = self.head.weight
        self.count = Tensor(np.zeros(1, "float32"))

    def forward(self, x):
        return self.head(self.chain(x).mean(axis=(1, 2))) @ self.again


def arrays_of(model: Module, optimizer: optim.Optimizer | None = None) -> list[np.ndarray]:
    """Copies on the host of all that a step changes."""
    found = list(model.state_dict().values())
    return found if optimizer is None else found + [np.asarray(x) for x in optimizer.state_dict().values()]


def train(model: Module, optimizer: optim.Optimizer, steps: range) -> None:
    k = minigrad.backend_of(model.parameters()[0].data)
    for step in steps:
        x = np.random.default_rng(step).normal(size=(4, 5, 5, 1)).astype(model.parameters()[0].dtype)
        optimizer.zero_grad()
        y = model(Tensor(k.from_host(x)))
        (y * y).sum().backward()
        optim.clip_grad_norm(optimizer, 5.0)
        optimizer.step()


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


# ---- models and optimisers ----


def check_pair(make, copied, dtype: str = "float32") -> None:
    """A copy of a model and its optimiser trains on as the original would, and by itself."""
    model = Shared()
    model.to(dtype=dtype)
    optimizer = make(model.parameters())
    train(model, optimizer, range(3))
    model.chain.layers["conv"].links["conv"][0].bias.requires_grad = False
    before = arrays_of(model, optimizer)

    twin, its = copied((model, optimizer))
    assert same(arrays_of(twin, its), before)
    train(twin, its, range(3, 6))
    assert same(arrays_of(model, optimizer), before)  # it is the copy's arrays that have moved
    train(model, optimizer, range(3, 6))
    assert same(arrays_of(twin, its), arrays_of(model, optimizer))
    assert not same(arrays_of(model, optimizer), before)
    assert [id(p) for p in its.flat.parameters] == [id(p) for p in twin.parameters()]
    its.flat.gradients[...] = 7
    its.flat.values[...] = 8
    assert all(float(p.grad.min()) == 7 and float(p.data.min()) == 8 for p in twin.parameters())


@copies
@pytest.mark.parametrize(("name", "dtype"), [("momentum", "float64"), ("adam", "float32"), ("adamw", "float32")])
def test_a_copied_pair_trains_on_by_itself_with_the_same_bits(name, dtype, copied):
    check_pair(OPTIMIZERS[name], copied, dtype)


@pytest.mark.usefixtures("backend")
def test_a_copied_pair_on_every_backend():
    check_pair(OPTIMIZERS["adam"], COPIES["pickle 5"])


@copies
def test_a_copied_optimizer_brings_its_parameters(copied):
    model = nn.Dense(2, 2)
    optimizer = optim.SGD(model.parameters(), 0.5)
    before = arrays_of(model)
    twin = copied(optimizer)
    twin.flat.gradients[...] = 1
    twin.step()
    assert same([p.data for p in twin.flat.parameters], [x - np.float32(0.5) for x in before])
    assert same(arrays_of(model), before)
    assert (twin.steps, optimizer.steps) == (1, 0)


@copies
@pytest.mark.parametrize("order", [1, -1])
def test_an_optimizer_that_has_lost_its_parameters_takes_none_of_the_copies(order, copied):
    model = nn.Dense(2, 2)
    old, new = optim.Adam(model.parameters()), optim.Adam(model.parameters())
    pair = copied([old, new][::order])[::order]
    for stale, working in ((old, new), pair):
        working.step()
        with pytest.raises(RuntimeError, match="make a new optimizer"):
            stale.step()


@copies
def test_what_is_shared_stays_shared_in_a_copy(copied):
    twin = copied(Shared())
    conv, relu, norm = twin.chain.layers["conv"].links["conv"]
    assert [conv, relu, norm] == [twin.plain.layers[name] for name in ("conv", "relu", "norm")]
    assert twin.again is twin.head.weight
    assert len(twin.parameters()) == len(Shared().parameters()) == 8


def test_a_shallow_copy_shares_the_parameters():
    model = nn.Dense(2, 2)
    optimizer = optim.Adam(model.parameters())
    assert copy.copy(model).weight is model.weight
    assert copy.copy(model.weight).data is model.weight.data
    copy.copy(optimizer).step()
    optimizer.step()


# ---- tensors ----


@copies
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_copied_tensor(dtype, copied):
    x = Tensor(np.arange(3, dtype=dtype), requires_grad=True)
    (x * 2.0).sum().backward()
    twin = copied(x)
    assert same([twin.data, twin.grad], [x.data, x.grad])
    assert (twin.dtype, twin.requires_grad) == (dtype, True)
    twin.data[...] = twin.grad[...] = 9
    assert (x.data.tolist(), x.grad.tolist()) == ([0, 1, 2], [2, 2, 2])
    p = copied(Parameter((2,), functools.partial(filled, 3.0)))
    p.data[...] = 0
    p.initialize(np.random.default_rng(0))
    assert p.data.tolist() == [3, 3]


def filled(value, rng, shape, fan_in, fan_out):
    return np.full(shape, value)


@copies
def test_a_tensor_of_a_graph_is_refused(copied):
    """However long it is."""
    y = nn.Dense(2, 1)(Tensor(np.ones((1, 2), "float32")))
    for _ in range(2000):
        y = ops.exp(y * 0.001)
    with pytest.raises(RuntimeError, match=r"^copy: a tensor made by Exp is part of a graph.*detach"):
        copied({"y": y})
    assert same([copied(y.detach()).data], [y.data])
    y.sum().backward()  # the graph is unharmed


def test_arrays_of_a_file_are_copied(tmp_path):
    """joblib, which ships large arrays to its workers as files that cannot be written into."""
    joblib = pytest.importorskip("joblib")
    model = Shared()
    optimizer = optim.Adam(model.parameters())
    train(model, optimizer, range(1))
    joblib.dump((model, optimizer), tmp_path / "both")
    twin, its = joblib.load(tmp_path / "both", mmap_mode="r")
    train(twin, its, range(1, 3))
    train(model, optimizer, range(1, 3))
    assert same(arrays_of(twin, its), arrays_of(model, optimizer))
    joblib.dump(model, tmp_path / "model")
    alone = joblib.load(tmp_path / "model", mmap_mode="r")
    alone(Tensor(np.ones((2, 5, 5, 1), "float32"))).sum().backward()
    alone.load_state_dict(model.state_dict())
    assert all(type(x.data) is np.ndarray for _, x in alone.named_tensors())


# ---- schedules and backends ----


@pytest.mark.parametrize("copied", [copy.deepcopy, COPIES["pickle 5"]], ids=["deepcopy", "pickle"])
def test_a_copied_backend_computes_the_same(copied, backend):
    twin = copied(backend)
    ours, its = ((type(k), k.kernels, k.threads, k.precision) for k in (backend, twin))
    assert its == ours
    a = np.random.default_rng(0).normal(size=(3, 4))
    product = backend.to_host(twin.matmul(twin.from_host(a), twin.from_host(a.T.copy())))
    np.testing.assert_allclose(product, naive.matmul(a, a.T), rtol=1e-12)
    assert minigrad.backend.default_backend() is backend


# ---- whole models ----

MODELS = {
    "ae": (Autoencoder, {}),
    "bernoulli": (VAE, {}),
    "gaussian": (VAE, {"likelihood": "gaussian", "beta": 2.0}),
    "learned": (VAE, {"likelihood": "gaussian-learned"}),
    "conditional": (VAE, {"classes": 3, "class_names": ("a", "b", "c")}),
}
IMAGES = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 1), dtype=np.uint8)
LABELS = np.arange(10) % 3


def outputs(model: Autoencoder) -> list[np.ndarray]:
    return list(model.reconstruct(IMAGES, labels=LABELS))


STATES = [(name, "trained", "float32") for name in MODELS]
STATES += [("ae", "new", "float32"), ("bernoulli", "compiled", "float32"), ("learned", "trained", "float64")]


@pytest.mark.parametrize("copied", [copy.deepcopy, COPIES["pickle 5"]], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize(("name", "state", "dtype"), STATES)
def test_a_copied_model(name, state, dtype, copied):
    cls, options = MODELS[name]
    model = cls((8, 8, 1), (2, 3), (3, 3), (1, 2), 2, momentum=0.9, **options)
    model.network.to(dtype=dtype)
    if state != "new":
        model.compile(1e-2)
    if state == "trained":
        model.train(IMAGES, 4, 1, labels=LABELS, progress=False)
    before = outputs(model)
    twin = copied(model)
    assert (type(twin), twin.config) == (cls, model.config)
    assert same(outputs(twin), before)
    assert {id(x) for _, x in twin.network.named_tensors()} >= {id(x) for _, x in twin.encoder.named_tensors()}
    for one in (twin, model):
        if state == "new":
            one.compile(1e-2)
        history = one.train(IMAGES, 4, 2, labels=LABELS, progress=False)
        assert len(history) == 2
        if one is twin:
            assert same(outputs(model), before)
    assert same(arrays_of(twin.network, twin.optimizer), arrays_of(model.network, model.optimizer))
    assert not same(outputs(model), before)


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_model_in_another_process(method):
    """Its methods go there as well, and a trained model comes back."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {method}")
    minigrad.use(kernels="numpy", threads=2)
    model = VAE((8, 8, 1), (2,), (3,), (2,), 2, momentum=0.9, likelihood="gaussian-learned")
    model.compile(1e-2)
    here = model.reconstruct(IMAGES)
    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
        there = pool.submit(model.reconstruct, IMAGES).result()
        back = pool.submit(trained, model).result()
    np.testing.assert_allclose(there[0], here[0], rtol=1e-5, atol=1e-6)  # another process, perhaps other kernels
    assert back.optimizer.steps == 3
    assert model.optimizer.steps == 0
    back.train(IMAGES, 4, 1, progress=False)
    assert same(list(model.reconstruct(IMAGES)), list(here))


def trained(model: Autoencoder) -> Autoencoder:
    """For another process."""
    model.train(IMAGES, 4, 1, progress=False)
    return model


@copies
def test_the_best_model_so_far_is_copied_by_a_callback(copied):
    """Without the training that goes on: its images, callbacks and progress bar."""

    class Keep(autoencoders.training.Callback):  # which pickle would refuse: it is a local class
        def on_epoch_end(self, trainer):
            kept.append((copied(trainer.model), outputs(trainer.model)))

    kept: list[tuple[Autoencoder, list[np.ndarray]]] = []
    model = VAE((8, 8, 1), (2,), (3,), (2,), 2, momentum=0.9)
    model.compile(1e-2)
    model.train(IMAGES, 4, 2, callbacks=[Keep()], schedule="cosine", progress=False)
    assert len(kept) == 2
    for twin, expected in kept:
        assert same(outputs(twin), expected)
        assert len(pickle.dumps(twin)) < 40_000
        twin.train(IMAGES, 4, 1, progress=False)
