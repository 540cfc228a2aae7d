# %% [markdown]
# # 2. Broadcasting, and why gradients are summed
#
# With arrays a local derivative is no longer a number but a linear map: a change dx causes a change dy = J dx. Write gy
# for the gradient of the loss with respect to y. The loss changes by gy . dy = gy . (J dx) = (J^T gy) . dx, so gx is
# J^T gy: backward applies the *transpose*. No J is ever stored. Each operation has a function `pull` that applies J^T.
#
# **Idea.** Adding a bias (3,) to an array (4, 3) copies the bias into every row. Copying is a linear map, and its
# transpose is adding: the bias changes every row, so its gradient is the sum over all rows.

# %%
import itertools

import numpy as np

rng = np.random.default_rng(0)
columns = [np.broadcast_to(unit, (4, 3)).ravel() for unit in np.eye(3)]  # where each unit vector is copied to
copying = np.stack(columns, axis=1)  # (12, 3), the matrix of copying (3,) into (4, 3)
gy = rng.standard_normal((4, 3))
print(copying.astype(int).T)
assert np.allclose(copying.T @ gy.ravel(), gy.sum(axis=0))

# %% [markdown]
# NumPy aligns shapes at the right. An axis that is missing, or whose size is 1, is copied. The gradient is summed over
# exactly these axes, and then it has the shape of the input.


# %%
def unbroadcast(gy, shape):
    """The transpose of broadcasting an array of this shape to the shape of gy."""
    gy = gy.sum(axis=tuple(range(gy.ndim - len(shape))))  # axes that are missing
    return gy.sum(axis=tuple(i for i, size in enumerate(shape) if size == 1), keepdims=True)


for shape in [(3,), (1, 3), (4, 1), (1, 1), (), (4, 3)]:
    x = rng.standard_normal(shape)  # B copies: <B x, gy> = <x, B^T gy>, where <a, b> is the sum of a * b
    assert np.isclose(np.sum(np.broadcast_to(x, (4, 3)) * gy), np.sum(x * unbroadcast(gy, shape)))

# %% [markdown]
# **The tape with arrays** is lesson 1 with `pull` instead of the local derivative. `backward` undoes all broadcasting.


# %%
class Array:
    """An array that remembers how it was computed: pairs (input, pull)."""

    count = itertools.count()

    def __init__(self, value, inputs=()):
        self.value, self.inputs = np.asarray(value, float), inputs
        self.gradient, self.order = np.zeros_like(self.value), next(Array.count)

    def __add__(self, other):
        return Array(self.value + other.value, [(self, lambda gy: gy), (other, lambda gy: gy)])

    def __mul__(self, other):
        a, b = self.value, other.value
        return Array(a * b, [(self, lambda gy: gy * b), (other, lambda gy: gy * a)])

    def __matmul__(self, other):
        a, b = self.value, other.value
        return Array(a @ b, [(self, lambda gy: gy @ b.T), (other, lambda gy: a.T @ gy)])

    def sum(self):
        return Array(self.value.sum(), [(self, lambda gy: np.broadcast_to(gy, self.value.shape))])


def backward(y):
    """Set x.gradient to dy/dx for every x that the number y was computed from. Call it once, as in lesson 1."""
    found, waiting = {y.order: y}, [y]
    while waiting:
        new = {x.order: x for x, _ in waiting.pop().inputs if x.order not in found}
        found |= new
        waiting += new.values()
    y.gradient = np.ones(())
    for order in sorted(found, reverse=True):
        for x, pull in found[order].inputs:
            x.gradient = x.gradient + unbroadcast(pull(found[order].gradient), x.value.shape)


# %% [markdown]
# The sum of an array has the opposite rule: its gradient is *copied* to every element. Summing and copying are
# transposes of each other. In the product y[i, j] = sum over k of a[i, k] b[k, j], the element b[k, j] meets a[i, k]
# for every i, so its gradient is the sum over i of a[i, k] gy[i, j], which is a^T @ gy.

# %%
x, weight, bias, scale = [Array(rng.standard_normal(shape)) for shape in [(4, 5), (5, 3), (3,), (4, 1)]]
backward(((x @ weight + bias) * scale).sum())

# %% [markdown]
# **minigrad** has this in `minigrad/ops/elementwise.py`. Left out: stacks of matrices.

# %%
import minigrad
from minigrad import Tensor

minigrad.use(kernels="plain")  # the readable kernels; nothing is compiled
tensors = [Tensor(array.value, requires_grad=True) for array in (x, weight, bias, scale)]
((tensors[0] @ tensors[1] + tensors[2]) * tensors[3]).sum().backward()
for array, tensor in zip((x, weight, bias, scale), tensors, strict=True):
    np.testing.assert_allclose(array.gradient, tensor.grad, rtol=1e-12)
    print(f"shape {tensor.shape}: the gradient is that of minigrad")

# %% [markdown]
# ## Exercise
# Write `divide(a, b)`: a / b of two Arrays that broadcast.


# %%
def check_divide(divide):
    a, b, gy = Array([[1, -2, 3]]), Array([[2], [4]]), Array([[1, 2, 3], [4, 5, 6]])
    backward(((y := divide(a, b)) * gy).sum())
    assert np.allclose(y.value, a.value / b.value), f"{a.value} / {b.value} is not {y.value}"
    for x, expected in zip((a, b), [[[1.5, 2.25, 3.0]], [[-1.5], [-0.75]]], strict=True):
        assert np.allclose(x.gradient, expected), f"the gradient of {x.value} is {expected}, not {x.gradient}"
    return "divide: right"


divide = None  # write `def divide(a, b): ...` here
print(check_divide(divide) if divide else "divide: not written yet")
