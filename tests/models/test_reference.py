"""Golden numbers from Keras 3.15.1 on TensorFlow 2.21, computed in float64: convolutions and batch normalisation.

tests/oracles/reference/ holds the files; how they were made stands in tests/oracles/reference/README.md.
"""

import functools
import json
from pathlib import Path

import numpy as np
import pytest

from minigrad import Tensor, nn, ops

REFERENCE = Path(__file__).parents[1] / "oracles/reference"
DTYPES = pytest.mark.parametrize(("dtype", "relative"), [("float64", 1e-10), ("float32", 1e-5)])


@functools.cache
def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(REFERENCE / f"{name}.npz") as file:
        return dict(file)


CONVOLUTIONS = json.loads(str(golden("keras_conv")["meta"]))


def check(k, actual, expected: np.ndarray, relative: float) -> None:
    """Within `relative` of the expected tensor's largest magnitude."""
    actual = np.asarray(k.to_host(actual.data if isinstance(actual, Tensor) else actual))
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= relative * np.abs(expected).max()


def test_the_goldens_hold_every_kind():
    kinds = {(case["kind"], case["padding"]) for case in CONVOLUTIONS}
    assert kinds == {(kind, padding) for kind in ("conv2d", "conv2d_transpose") for padding in ("same", "valid")}
    assert len(CONVOLUTIONS) == 40


@DTYPES
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda case: case["key"])
def test_convolution(case, dtype, relative, backend):
    g = {name: golden("keras_conv")[f"{case['key']}/{name}"] for name in ("x", "W", "b", "y", "g", "dx", "dW", "db")}
    x, weight, bias = (Tensor(backend.from_host(g[name].astype(dtype)), requires_grad=True) for name in ("x", "W", "b"))
    y = getattr(ops, case["kind"])(x, weight, bias, stride=case["stride"], padding=case["padding"])
    check(backend, y, g["y"], relative)
    y.backward(backend.from_host(g["g"].astype(dtype)))
    for tensor, name in ((x, "dx"), (weight, "dW"), (bias, "db")):
        check(backend, tensor.grad, g[name], relative)


@DTYPES
def test_batch_norm(dtype, relative, backend):
    g = golden("keras_batchnorm")
    layer = nn.BatchNorm(len(g["gamma"]), momentum=float(g["momentum"]), epsilon=float(g["epsilon"]))
    layer.to(dtype=dtype)
    layer.gamma.data[...] = backend.from_host(g["gamma"].astype(dtype))
    layer.beta.data[...] = backend.from_host(g["beta"].astype(dtype))
    for step in range(3):
        x = Tensor(backend.from_host(g[f"{step}/x"].astype(dtype)), requires_grad=True)
        y = layer(x)
        check(backend, y, g[f"{step}/y"], relative)
        layer.zero_grad()
        y.backward(backend.from_host(g[f"{step}/g"].astype(dtype)))
        for actual, name in (
            (x.grad, "dx"),
            (layer.gamma.grad, "dgamma"),
            (layer.beta.grad, "dbeta"),
            (layer.moving_mean, "moving_mean"),
            (layer.moving_variance, "moving_variance"),
        ):
            check(backend, actual, g[f"{step}/{name}"], relative)
    layer.eval()
    check(backend, layer(Tensor(backend.from_host(g["eval/x"].astype(dtype)))), g["eval/y"], relative)
