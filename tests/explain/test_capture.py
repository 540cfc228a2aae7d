"""A capture of a training step: its arrays, sums, memory, kernels and checks are those of an ordinary step."""

from __future__ import annotations

import inspect
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernel_sets import CPU_KERNELS

import minigrad
from autoencoders import VAE
from autoencoders.training import TrainingOptions
from autoencoders.training.steps import Steps
from minigrad import Function, Tensor, nn, ops, optim
from minigrad.backend.cpu.numpy_kernels import NumpyBackend
from minigrad.tools.explain.capture import Capture, Stop


class Network(nn.Module):
    """Features that two heads read, as in the VAE, so that two gradients meet."""

    def __init__(self) -> None:
        self.conv, self.norm = nn.Conv2D(2, 4, 3, stride=2), nn.BatchNorm(4)
        self.left, self.right = nn.Dense(36, 3), nn.Dense(36, 3)

    def results(self, x: Tensor) -> list[Tensor]:
        """The results of all operations, the loss last."""
        results = [ops.conv2d(x, self.conv.weight, self.conv.bias, stride=2, padding="same")]
        results.append(ops.relu(results[-1]))
        results.append(ops.batch_norm(results[-1], self.norm.gamma, self.norm.beta))
        features = results[-1].reshape(2, 36)
        left, right = self.left(features), self.right(features)
        return [*results, features, left, right, ops.mse(left, right)]


def made() -> tuple[Network, optim.Adam, Tensor]:
    network = Network()
    network.initialize(seed=1)
    k = minigrad.backend.default_backend()
    images = k.from_host(np.random.default_rng(0).normal(size=(2, 6, 6, 2)).astype("f4"))
    return network, optim.Adam(network.parameters(), 1e-2), Tensor(images)


def captured(work: Any) -> Capture:
    capture = Capture()
    with capture.capturing():
        work()
    return capture


def of(capture: Capture, name: str, direction: str) -> list[Stop]:
    return [stop for stop in capture.stops if (stop.what.__name__, stop.direction) == (name, direction)]


def test_the_arrays_are_those_of_an_ordinary_step(backend: Any) -> None:
    network, adam, x = made()
    results = network.results(x)
    for y in results:
        y.retain_grad()
    results[-1].backward()
    before = backend.to_host(adam.flat.values).copy()
    adam.step()
    ordinary = [(backend.to_host(y.data), backend.to_host(y.grad)) for y in results]
    gradients = backend.to_host(adam.flat.gradients)

    network, again, x = made()

    def step() -> None:
        network.results(x)[-1].backward()
        again.step()

    capture = captured(step)
    forward, backward = (
        [stop for stop in capture.stops if stop.direction == direction] for direction in ("forward", "backward")
    )
    assert len(forward) == len(backward) == len(ordinary)
    for (y, gy), there, back in zip(ordinary, forward, reversed(backward), strict=True):
        assert there.arrays[-1][1].sample.tobytes() == y.tobytes()
        assert back.arrays[0][1].sample.tobytes() == gy.tobytes()
    assert capture.consistent
    update = capture.stops[-1]
    assert [u.name for u in update.updates] == [name for name, _ in network.named_parameters()]
    expected = {"value before": before, "gradient": gradients}
    expected["first moment m"], expected["second moment v"] = map(backend.to_host, adam.moments.values())
    expected["value after"] = backend.to_host(adam.flat.values)
    expected["update"] = backend.to_host(adam.flat.values) - before
    for name, x in expected.items():
        assert np.concatenate([u.arrays[name].sample.ravel() for u in update.updates]).tobytes() == x.tobytes()
    assert backend.to_host(again.flat.values).tobytes() == backend.to_host(adam.flat.values).tobytes()


@pytest.mark.parametrize("kernels", CPU_KERNELS)
def test_a_chain_layer_by_layer_gives_the_gradients_of_the_training(kernels: str) -> None:
    minigrad.use(kernels=kernels)
    vae = VAE((8, 8, 1), (3, 4), (3, 3), (2, 2))
    vae.compile(1e-3)
    images = np.random.default_rng(0).random((4, 8, 8, 1), dtype=np.float32)
    steps = Steps(vae, images, TrainingOptions(batch_size=4, epochs=1))
    arguments, state, at = steps.arguments(*steps.sample_epoch()), steps.state(), deepcopy(steps.progress)
    losses = steps.step(*arguments)
    usual, values = vae.optimizer.flat.gradients.copy(), vae.optimizer.flat.values.copy()
    steps.go_to(state, at)
    capture = captured(lambda: steps.step(*arguments))
    assert losses.size == 2
    assert [s.what.__name__ for s in capture.stops[:6]] == 2 * ["Conv2D", "ReLU", "BatchNorm"]
    assert {n.path[-1][1] for n in capture.nodes[1:7]} == {
        f"encoder_{what}_{i}" for what in ("conv_layer", "relu", "bn") for i in (1, 2)
    }
    here = vae.optimizer.flat
    if kernels == "plain":
        assert here.gradients.tobytes() == usual.tobytes()
        assert here.values.tobytes() == values.tobytes()
    else:  # the fast kernels put each normalisation into the weights of the next layer, which rounds otherwise
        assert np.linalg.norm(here.gradients - usual) < 1e-5 * np.linalg.norm(usual)


def test_partial_sums_are_shown_where_gradients_meet() -> None:
    x = Tensor(np.float32([2.0, -1.0]), requires_grad=True)
    y = x * 1.0  # used three times
    capture = captured(lambda: (y * 2.0 + y * 3.0 + y * y).sum().backward())
    meetings = [m for stop in capture.stops for m in stop.meetings if m.receiver == 0]
    found = [[s and s.sample.tolist() for s in (m.before, m.sent, m.after)] for m in meetings]
    # y * y runs backward first, and sends y's gradient twice: as a and as b
    assert found == [
        [None, [2.0, -1.0], [2.0, -1.0]],
        [[2.0, -1.0], [2.0, -1.0], [4.0, -2.0]],
        [[4.0, -2.0], [3.0, 3.0], [7.0, 1.0]],
        [[7.0, 1.0], [2.0, 2.0], [9.0, 3.0]],
    ]
    assert x.grad.tolist() == [9.0, 3.0]
    assert capture.consistent


def test_a_gradient_that_is_not_the_sum_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    x = Tensor(np.float32([2.0]), requires_grad=True)
    walk = minigrad.tensor.walk
    monkeypatch.setattr("minigrad.tensor.walk", lambda last, gy, run, add: walk(last, gy, run, lambda a, b: a - b))

    def step() -> None:
        y = ops.exp(x)
        (y * y).backward()

    assert not captured(step).consistent


def test_memory_is_counted_and_what_is_freed_is_named() -> None:
    x = Tensor(np.ones(1000, "f4"), requires_grad=True)  # 4 kB

    def step() -> None:
        ops.relu(ops.exp(x).reshape(10, 100)).sum().backward()

    capture = captured(step)
    exp, reshape, relu, total, *back = capture.stops
    assert [stop.alive for stop in (exp, reshape, relu, total)] == [8000, 8000, 12000, 12004], "a view takes none"
    assert [(s.name, s.same_as, s.shot.nbytes) for s in exp.saved] == [("y", "y", 4000)]
    assert [stop.what.__name__ for stop in back] == ["Sum", "ReLU", "Reshape", "Exp"]
    assert ("the result of ReLU (stop 3)", 4000) in [(held.name, held.nbytes) for held in back[1].freed]
    assert exp.saved[0].held in back[3].freed
    assert exp.saved[0].held.name == "the result of Exp (stop 1)"
    assert back[3].alive == 4000, "x itself"


def test_only_the_slice_counts_of_data_from_outside() -> None:
    noise = np.ones((1000, 2, 5), "f4")
    x = Tensor(np.ones((2, 5), "f4"), requires_grad=True)
    results: list[Tensor] = []
    capture = captured(lambda: results.append(x * noise[3]))
    assert [stop.alive for stop in capture.stops] == [3 * 40]
    assert sorted(held.name for held in capture.left) == ["the data", "the data x", "the result of Mul (stop 1)"]


def test_the_line_and_the_names_of_the_caller_are_noted() -> None:
    def step() -> Tensor:
        mean, noise = Tensor(np.ones(3, "f4"), requires_grad=True), np.ones(3, "f4")
        return ops.exp(mean * 0.5) * noise

    nodes = captured(step).nodes
    assert [(n.name, n.variable) for n in nodes if n.name == "data"] == [("data", "mean"), ("data", "noise")]
    made = [n.origin for n in nodes if n.name != "data"]
    assert {o.text for o in made} == {"return ops.exp(mean * 0.5) * noise"}
    parts = [o.text[o.start : o.end] for o in made]
    assert parts == ["mean * 0.5", "ops.exp(mean * 0.5)", "ops.exp(mean * 0.5) * noise"]
    assert made[0].place.startswith("explain/test_capture.py:")


def test_kernels_are_compared_with_the_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    minigrad.use(kernels="numpy", threads=1)
    x = Tensor(np.float32([[1.0, -2.0]]), requires_grad=True)
    (stop,) = of(captured(lambda: ops.relu(x)), "ReLU", "forward")
    (call,) = stop.run.calls
    assert (call.name, [f.__qualname__ for f in call.plain], call.difference) == ("relu", ["Backend.relu"], 0.0)
    assert call.fast.__qualname__.endswith(".relu")
    monkeypatch.setattr(NumpyBackend, "relu", lambda self, x: np.maximum(x, 0) + np.float32(0.25))
    (stop,) = of(captured(lambda: ops.relu(x)), "ReLU", "forward")
    assert (stop.run.calls[0].difference, stop.run.calls[0].size) == (0.25, 1.0)


def test_the_lines_that_run_are_noted() -> None:
    a, b = Tensor(np.float32([3.0]), requires_grad=True), Tensor(np.float32([4.0]))
    capture = captured(lambda: ops.relu(a * b).backward())
    lines = Path(inspect.getsourcefile(ops.relu)).read_text().split("\n")
    (relu,), (mul,) = of(capture, "ReLU", "forward"), of(capture, "Mul", "backward")
    assert "self.k.relu(x)" in lines[relu.run.calls[0].line - 1]
    assert [lines[i - 1].split()[0] for i in relu.run.lines] == ["self.y", "return"]
    assert [lines[i - 1].split()[0] for i in mul.run.lines] == ["ga", "gb", "return"]


class Wrong(Function):
    """y = 2 x.  gx = 2.02 gy, which is wrong."""

    def forward(self, x: Any) -> Any:
        return 2 * x

    def backward(self, gy: Any) -> tuple[Any, ...]:
        return (gy * np.float32(2.02),)


def test_each_gradient_is_checked_by_differences() -> None:
    network, _, x = made()
    capture = captured(lambda: network.results(x)[-1].backward())
    for stop in capture.stops:
        if stop.direction == "backward":
            assert isinstance(stop.checks, list)
            assert stop.checks
            assert max(check.error for check in stop.checks) < 1e-5, stop
    x = Tensor(np.ones(5, "f4"), requires_grad=True)
    (check,) = of(captured(lambda: Wrong()(x).sum().backward()), "Wrong", "backward")[0].checks
    assert check.error > 1e-3


def test_the_checks_do_not_depend_on_what_ran_before() -> None:
    def checks() -> Any:
        x = Tensor(np.ones(5, "f4"), requires_grad=True)
        return of(captured(lambda: Wrong()(x).sum().backward()), "Wrong", "backward")[0].checks

    assert checks() == checks()


def test_a_kink_is_left_out_of_the_check() -> None:
    x = Tensor(np.float32([0.0, 1.0, -1.0, 0.0]), requires_grad=True)
    (check,) = of(captured(lambda: ops.relu(x).sum().backward()), "ReLU", "backward")[0].checks
    assert check.kinks == 2
    assert check.error < 1e-6


def test_what_cannot_be_checked_says_why() -> None:
    x = Tensor(np.ones(50, "f4"), requires_grad=True)
    dropout = nn.Dropout(0.5)
    (stop,) = of(captured(lambda: dropout(x).sum().backward()), "Dropout", "backward")
    assert str(stop.checks).startswith("not checked")


def test_nothing_of_it_stays() -> None:
    before = Function.__call__, Function.run_backward, nn.Module.__call__, sys.gettrace()
    k = minigrad.use(kernels="numpy")
    attributes = set(vars(k))
    with pytest.raises(TypeError), Capture().capturing():
        ops.relu(Tensor([1.0])) + "x"
    assert before == (Function.__call__, Function.run_backward, nn.Module.__call__, sys.gettrace())
    assert set(vars(k)) == attributes


def test_it_ends_with_the_first_update() -> None:
    network, adam, x = made()

    def steps() -> None:
        for _ in range(2):
            network.results(x)[-1].backward()
            adam.step()

    capture = captured(steps)
    assert [stop.direction for stop in capture.stops].count("update") == 1
    assert capture.stops[-1].direction == "update"
