"""Checks for a new operation: is its gradient right, and is its adjoint right?

    x = Tensor(np.random.default_rng(0).normal(size=(3, 4)), requires_grad=True)  # float64
    gradcheck(my_operation, x)

Read next: ../tests/engine/test_ops.py, which does this for every operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from .backend import Array, backend_of, default_backend
from .higher_order import grad
from .random import generator
from .tensor import Tensor

ROUNDING = 2.0**-52  # of float64


def gradcheck(
    function: Callable[..., Tensor],
    *inputs: Any,
    parameters: Iterable[Tensor] = (),
    seed: int = 0,
    epsilon: float = 1e-5,
    tolerance: float = 1e-6,
) -> None:
    """Compare the gradients that `backward` gives with central differences, element by element.

    For random gy and each element x_i of each tensor that requires a gradient, with h = epsilon,
    g_i must equal sum(gy * (y(x_i + h) - y(x_i - h))) / 2h within tolerance * (|g_i| + max |g|).

    The difference is off by h^2 / 6 * y''' from truncation, 2e-11 * y''', and by some ROUNDING * |y| / h from
    rounding, 2e-11 * |y|; h = 1e-5 is where the two are alike, and both lie four orders below the tolerance as
    long as y and y''' are at most some thousand times as large as the gradient. The rounding part is granted on
    top, as 8 * ROUNDING * sum |gy * y| / h, because a gradient that is exactly zero differs from zero by that much.
    gy is random because with gy = 1 the gradients of softmax and BatchNorm vanish, and any error passes.

    Shapes: any. Each check runs function twice per element, so keep inputs small.
    Args:
        function: called as function(*inputs); returns one tensor. It must give the same result every time.
        inputs: tensors (float64 where they require a gradient) and whatever else function takes.
        parameters: further tensors to check that function uses without taking them, e.g. `model.parameters()`.
        seed: of gy. epsilon: the step; inputs must lie further than that from kinks.
    Raises:
        AssertionError: a gradient is wrong; tells which input, which index, and both values.
        TypeError: a tensor to check is not float64. ValueError: there is none.

    Data and `grad` of all tensors are restored at the end.
    """
    named = [(f"input {i}", x) for i, x in enumerate(inputs)]
    named += [(f"parameter {i}", x) for i, x in enumerate(parameters)]
    checked = [(name, x) for name, x in named if isinstance(x, Tensor) and x.requires_grad]
    if not checked:
        raise ValueError("gradcheck: no input requires a gradient")
    for name, x in checked:
        if x.dtype != "float64":
            raise TypeError(f"gradcheck: {name} is {x.dtype} but differences need float64")

    y = function(*inputs)
    gy = generator(seed, "gradcheck").normal(size=y.shape)
    rounding = 8 * ROUNDING / epsilon * float(np.sum(np.abs(gy * y.numpy())))
    analytic = _gradients(y, gy, [x for _, x in checked])
    for (name, x), g in zip(checked, analytic, strict=True):
        numeric = _differences(lambda: function(*inputs), x, gy, epsilon)
        bound = tolerance * (np.abs(numeric) + np.abs(numeric).max(initial=0.0)) + rounding
        wrong = ~(np.abs(g - numeric) <= bound)  # also where one is NaN
        if wrong.any():
            index = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise AssertionError(
                f"gradcheck: {name} of shape {x.shape} at {list(index)}: analytic {g[index]:.9g} but numeric "
                f"{numeric[index]:.9g} (bound {bound[index]:.1e}; {int(wrong.sum())} of {x.size} elements are wrong)"
            )


def gradgradcheck(
    function: Callable[..., Tensor], *inputs: Any, parameters: Iterable[Tensor] = (), seed: int = 0
) -> None:
    """Compare second derivatives with central differences of the first: `gradcheck` of each gradient of function, as a
    function of all inputs and of gy.

    Args, Raises: as for `gradcheck`.
    """
    checked = [x for x in (*inputs, *parameters) if isinstance(x, Tensor) and x.requires_grad]
    y = function(*inputs)
    random = generator(seed, "gradgradcheck").normal(size=y.shape)
    gy = Tensor(backend_of(y.data).from_host(random), requires_grad=True)
    for x in checked:
        gradcheck(lambda x=x: grad(function(*inputs), x, gy, create_graph=True), parameters=[*checked, gy], seed=seed)


def _gradients(y: Tensor, gy: np.ndarray, tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """What y.backward(gy) adds to each tensor's grad, which is put back."""
    k = backend_of(y.data)
    before = [x.grad for x in tensors]
    for x in tensors:
        x.grad = None if x.grad is None else k.xp.zeros_like(x.data)
    try:
        y.backward(k.from_host(gy))
        return [np.zeros(x.shape) if x.grad is None else np.array(k.to_host(x.grad)) for x in tensors]
    finally:
        for x, grad in zip(tensors, before, strict=True):
            x.grad = grad


def _differences(function: Callable[[], Tensor], x: Tensor, gy: np.ndarray, epsilon: float) -> np.ndarray:
    """The central difference of sum(gy * function()) in each element of x, which is changed in place and restored."""
    k = backend_of(x.data)
    original = np.array(k.to_host(x.data))
    numeric = np.empty(x.shape)

    def value(index: tuple[int, ...], changed: float) -> np.ndarray:
        moved = original.copy()
        moved[index] = changed
        x.data[...] = k.from_host(moved)
        return np.array(function().numpy())

    try:
        for index in np.ndindex(x.shape):
            high, low = float(original[index] + epsilon), float(original[index] - epsilon)
            change = value(index, high) - value(index, low)  # before the sum, so that other outputs cancel exactly
            numeric[index] = np.sum(gy * change) / (high - low)  # the step as it was rounded
    finally:
        x.data[...] = k.from_host(original)
    return numeric


def adjoint_check(
    linear_map: Callable[[Array], Array],
    adjoint: Callable[[Array], Array],
    x_shape: tuple[int, ...],
    y_shape: tuple[int, ...],
    *,
    seed: int = 0,
    tolerance: float = 1e-12,
) -> None:
    """Check <A x, y> = <x, A^T y> for random x and y, i.e. that adjoint is the gradient of linear_map.

    Both sides are sums of the same products in another order, so in float64 they agree to rounding:
    |<A x, y> - <x, A^T y>| <= tolerance * max(|A x| |y|, |x| |A^T y|), with Euclidean lengths.

    Shapes: linear_map takes a float64 array of x_shape to one of y_shape, adjoint the other way.
    Raises:
        AssertionError: a shape is wrong or the two sides differ; tells both values.
    """
    k, rng = default_backend(), generator(seed, "adjoint_check")
    x, y = rng.normal(size=x_shape), rng.normal(size=y_shape)
    Ax, Ay = (np.asarray(k.to_host(f(k.from_host(v)))) for f, v in ((linear_map, x), (adjoint, y)))
    if Ax.shape != y_shape or Ay.shape != x_shape:
        raise AssertionError(
            f"adjoint_check: A x is {Ax.shape}, not y_shape {y_shape}, or A^T y is {Ay.shape}, not x_shape {x_shape}"
        )
    left, right = float(np.sum(Ax * y)), float(np.sum(x * Ay))
    lengths = [float(np.sqrt(np.sum(v * v))) for v in (Ax, y, x, Ay)]
    bound = tolerance * max(lengths[0] * lengths[1], lengths[2] * lengths[3])
    if not abs(left - right) <= bound:
        raise AssertionError(f"adjoint_check: <A x, y> = {left:.17g} but <x, A^T y> = {right:.17g} (bound {bound:.1e})")
