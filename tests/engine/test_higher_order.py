"""Gradients of gradients: differences of first gradients, and what users do with them."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import op_cases
import pytest
import test_ops

import autoencoders
import minigrad
from autoencoders.minimal import VAE
from minigrad import Function, Tensor, ops, testing


def check_second_derivatives(function, inputs: list[np.ndarray], parameters=(), step: float = 1e-5) -> None:
    """In a random direction of all inputs, parameters and gy: of the sum of gradient * random vector, by `grad` twice
    and by differences of first gradients."""
    rng = np.random.default_rng(0)
    xs = [Tensor(x, requires_grad=True) for x in inputs]
    gy = Tensor(rng.normal(size=function(*xs).shape), requires_grad=True)
    firsts = [*xs, *parameters]
    leaves = [*firsts, gy]
    vectors, direction = ([rng.normal(size=x.shape) / max(x.size, 1) ** 0.5 for x in leaves] for _ in range(2))

    def total(create_graph: bool, shift: float = 0) -> Tensor:
        for x, d in zip(leaves, direction, strict=True):
            x.data[...] += shift * d
        gradients = minigrad.grad(function(*xs), firsts, gy, create_graph)
        found = sum((ops.sum(g * v) for g, v in zip(gradients, vectors, strict=False)), Tensor(np.zeros(())))
        for x, d in zip(leaves, direction, strict=True):
            x.data[...] -= shift * d  # only now, because a gradient may be a view of gy
        return found

    again = total(create_graph=True)
    assert again.item() == pytest.approx(total(create_graph=False).item(), rel=1e-9, abs=1e-12)
    found = 0.0
    for x, d in zip(leaves, direction, strict=True):
        try:
            found += float((minigrad.grad(again, x).data * d).sum())
        except RuntimeError as error:  # linear in x
            if "does not depend" not in str(error):
                raise
    values = [total(create_graph=False, shift=sign * step).item() for sign in (1, -1)]
    scale = max(1.0, *map(abs, values))
    assert found == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5, abs=1e-5 * scale)


@pytest.mark.parametrize("case", [case for cases in op_cases.BY_OP.values() for case in cases[:3]], ids=str)
def test_second_derivatives_are_the_slopes_of_the_first(case):
    check_second_derivatives(case.run, case.inputs())


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ["stack", "block", "transposed block", "chain", "layer norm", "pooling"])
def test_second_derivatives_of_layers(name, training):
    """Fused blocks too: the second reading runs the plain text of the chain."""
    make, shape = test_ops.LAYERS[name]
    model = make()
    model.to(dtype="float64")
    rng = np.random.default_rng(2)
    for _, tensor in model.named_tensors():
        tensor.data[...] += rng.uniform(0.2, 0.8, tensor.shape)
    model.train(training)
    check_second_derivatives(model, [op_cases.values(rng, shape)], model.parameters())


def test_gradgradcheck_finds_a_wrong_second_derivative():
    x = Tensor(np.random.default_rng(0).normal(size=(2, 2)), requires_grad=True)
    testing.gradgradcheck(lambda x: ops.sum(Cubed()(x)), x)

    class Constant(Cubed):
        def backward(self, gy):
            return (3 * (self.squares.data if isinstance(self.squares, Tensor) else self.squares) * gy,)

    with pytest.raises(AssertionError, match="gradcheck: parameter 0 of shape"):
        testing.gradgradcheck(lambda x: ops.sum(Constant()(x)), x)


def test_derivatives_of_any_order():
    x = Tensor([0.5, 2.0], requires_grad=True)
    y = ops.sum(x**5)
    for factor, power in ((5, 4), (20, 3), (60, 2), (120, 1), (120, 0)):
        (y,) = minigrad.grad(y, [x], create_graph=True)
        np.testing.assert_allclose(y.numpy(), factor * x.numpy() ** power, rtol=1e-6)
        y = ops.sum(y)
    assert x.grad is None


def test_the_graph_can_be_used_again_and_is_gone_with_its_result():
    x = Tensor(np.ones((3, 4)), requires_grad=True)
    y = ops.sum(ops.exp(x) * x)
    first = minigrad.grad(y, x)
    again = minigrad.grad(y, x, create_graph=True)
    np.testing.assert_array_equal(first.numpy(), again.numpy())
    assert not first.requires_grad
    second = minigrad.grad(again, x, np.ones((3, 4)))
    np.testing.assert_allclose(second.numpy(), 3 * np.e)
    y.backward()
    np.testing.assert_array_equal(x.grad, first.numpy())
    watched = weakref.ref(again)
    del y, again
    gc.collect()
    assert watched() is None


def test_backward_with_a_retained_graph_adds_up():
    x = Tensor(2.0, requires_grad=True)
    y = x * x * x
    y.backward(retain_graph=True)
    y.backward()
    assert float(x.grad) == 24
    with pytest.raises(RuntimeError, match=r"was used before and released; .*retain_graph=True"):
        y.backward()
    with pytest.raises(RuntimeError, match="was used before and released"):
        minigrad.grad(y, x)


def test_grad_of_results_on_the_way_and_of_y_itself():
    x = Tensor([1.0, 2.0], requires_grad=True)
    h = x * x
    y = ops.sum(h * h)
    by_h, by_x, by_y = minigrad.grad(y, (h, x, y))
    assert by_h.numpy().tolist() == [2, 8]
    assert by_x.numpy().tolist() == [4, 32]
    assert by_y.item() == 1
    twice = minigrad.grad(y, (x for _ in range(2)))
    assert [g.numpy().tolist() for g in twice] == [[4, 32], [4, 32]]


def test_grad_computes_only_what_leads_to_the_wanted(monkeypatch):
    """The penalty of a gradient with respect to images needs no gradient of the weights on the way."""
    seen = []
    plain = ops.conv.Conv2D.backward

    def backward(self, gy):
        seen.append(self.needs)
        return plain(self, gy)

    monkeypatch.setattr(ops.conv.Conv2D, "backward", backward)
    images, weight = (Tensor(np.ones(shape), requires_grad=True) for shape in ((1, 4, 4, 1), (3, 3, 1, 2)))
    y = ops.sum(ops.conv2d(images, weight))
    minigrad.grad(y, images, create_graph=True)
    minigrad.grad(y, images)
    assert seen == [(True, False, False)] * 2


@pytest.mark.parametrize("create_graph", [False, True])
def test_what_cannot_be_differentiated_is_told(create_graph):
    x, other = Tensor([1.0], requires_grad=True), Tensor([1.0], requires_grad=True)
    for y, wanted in ((x * 2, other), (Tensor([1.0]), x), (x.detach() * 2, x)):
        with pytest.raises(RuntimeError, match=r"grad: y does not depend on xs\[0\] \(1,\), or that requires no grad"):
            minigrad.grad(y, wanted, create_graph=create_graph)
    for y, wanted in ((2.0, x), (x, [1.0]), (x, np.ones(1))):
        with pytest.raises(TypeError, match=r"^grad: y and xs must be Tensors, found a float"):
            minigrad.grad(y, wanted, create_graph=create_graph)
    with pytest.raises(ValueError, match=r"grad: a tensor of shape \(3,\) needs gy"):
        minigrad.grad(ops.stack([x, x, x]).reshape(3), x, create_graph=create_graph)


class Rounded(Function):
    """It leaves the array library's functions of self.k.xp."""

    def forward(self, x):
        self.x = x
        return np.sin(x)

    def backward(self, gy):
        return (gy * np.cos(self.x),)


class Cubed(Function):
    """Written as Function's docstring says."""

    def forward(self, x):
        self.squares = x * x
        return self.squares * x

    def backward(self, gy):
        return (3 * self.squares * gy,)


def test_a_function_of_ones_own_is_read_again_or_named():
    x = Tensor([2.0], requires_grad=True)
    slope = minigrad.grad(Cubed()(x), x, create_graph=True)
    assert minigrad.grad(slope, x).item() == 12, "what forward keeps depends on x, too"
    y = Rounded()(x)
    assert minigrad.grad(y, x).item() == pytest.approx(np.cos(2), rel=1e-6)
    with pytest.raises(RuntimeError, match="the gradient of Rounded cannot be differentiated: "):
        minigrad.grad(y, x, create_graph=True)


@pytest.mark.parametrize("kind", ["minimal", "ae", "vae"])
def test_second_derivatives_of_a_whole_model(kind):
    """With all its losses."""
    rng = np.random.default_rng(0)
    size = 28 if kind == "minimal" else 8
    x, noise = Tensor(rng.uniform(size=(2, size, size, 1))), rng.normal(size=(2, 2))
    if kind == "minimal":
        model = network = VAE()
    else:
        cls = {"ae": autoencoders.Autoencoder, "vae": autoencoders.VAE}[kind]
        model = cls((8, 8, 1), (3, 4), (3, 3), (1, 2), 2)
        network = model.network
    network.initialize(0)  # other weights for each order of the tests would meet kinks of the ReLU now and then
    model.to(dtype="float64")
    network.train()
    parameters = network.parameters()

    def loss() -> Tensor:
        if kind == "minimal":
            return sum(model(x, noise))
        return model.losses(x, noise if kind == "vae" else None, 1.0)[0]

    check_second_derivatives(loss, [], parameters, step=1e-6)  # fewer units of a ReLU change their side
