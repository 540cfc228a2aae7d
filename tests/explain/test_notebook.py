"""Tensors, modules, functions and models in notebooks and terminals."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from autoencoders import VAE
from autoencoders.training import History
from minigrad import Tensor, nn, ops


def pictures(html: str) -> list[tuple[int, int]]:
    """The sizes of the pictures in HTML."""
    found = re.findall(r"data:image/png;base64,([^\"]+)", html)
    return [Image.open(io.BytesIO(base64.b64decode(data))).size for data in found]


def test_a_tensor_is_a_picture() -> None:
    x = Tensor(np.ones((2, 5, 4, 1), "f4"), requires_grad=True)
    assert pictures(x._repr_html_()) == [(10, 6)]
    assert "2 x 5 x 4 x 1, float32, cpu" in x._repr_html_()
    y = ops.exp(x).sum()
    y.backward()
    assert len(pictures(x._repr_html_())) == 2, "and its gradient"
    assert y._repr_html_() == "<code>Tensor(108.731)</code> float32, cpu, made by Sum"
    assert "no elements" in Tensor(np.ones((0, 3), "f4"))._repr_html_()


def test_a_module_is_a_table_of_its_layers() -> None:
    model = nn.Sequential({"<first>": nn.Conv2D(1, 4, 3), "act": nn.ReLU(), "last": nn.BatchNorm(4)})
    html = model._repr_html_()
    assert len(pictures(html)) == 6
    assert "&lt;first&gt;" in html
    assert "<first>" not in html
    assert repr(model).split("\n") == [
        "Sequential()",
        "  <first>: Conv2D(weight (3, 3, 1, 4), bias (4,))",
        "  act: ReLU()",
        "  last: BatchNorm(gamma (4,), beta (4,), moving_mean (4,), moving_variance (4,))",
    ]
    model.layers["act"] = model
    assert repr(model).count("\n") == 2, "a module that contains itself is there once"


def test_a_function_shows_its_formula() -> None:
    x = Tensor(np.ones((2, 3), "f4"), requires_grad=True)
    y = x @ Tensor(np.ones((3, 1), "f4"))
    function = y.creator
    assert repr(function) == "<MatMul of (2, 3), (3, 1)>"
    assert "<msub><mi>g</mi><mi>a</mi></msub>" in function._repr_html_()
    y.backward(np.ones((2, 1), "f4"))
    assert repr(function) == "<MatMul, used>"
    assert repr(ops.elementwise.ReLU()) == "<ReLU>"


def test_a_model_shows_its_outline_and_layers() -> None:
    html = VAE((8, 8, 1), (3,), 3, 2)._repr_html_()
    assert "8x8x1 -&gt; 4x4x3" in html
    assert len(pictures(html)) == 14


@pytest.mark.parametrize(("losses", "drawn"), [([3.0, 2.0, 1.0], True), ([3.0], False), ([2.0, 2.0], False)])
def test_a_history_draws_its_loss(losses: list[float], drawn: bool) -> None:
    html = History([{"epoch": i, "loss": x} for i, x in enumerate(losses, 1)])._repr_html_()
    assert ("<polyline" in html) is drawn
    assert 'points="0,4.0 1,32.0 2,60.0"' in html or not drawn
