# %% [markdown]
# # 1. A number with a gradient
#
# The derivative dy/dx says how fast y changes when x changes. Training needs the derivative of one loss with respect to
# every parameter, and there may be millions. Backpropagation finds all of them in one pass, for a small multiple of the
# cost of one evaluation of the loss. For single numbers the whole method is 30 lines.
#
# **Idea.** An operation knows its inputs and one *local derivative* for each of them: y = a * b has dy/da = b and
# dy/db = a. The chain rule combines them. Along a path from x to y, local derivatives are multiplied. If there are
# several paths, their products are added.

# %%
import itertools
import math

import numpy as np


class Number:
    """A value that remembers how it was computed: pairs (input, local derivative)."""

    count = itertools.count()

    def __init__(self, value, inputs=()):
        self.value, self.inputs, self.gradient = value, inputs, 0.0
        self.order = next(Number.count)  # greater than that of its inputs, which were made before

    def __add__(self, other):
        return Number(self.value + other.value, [(self, 1.0), (other, 1.0)])

    def __mul__(self, other):
        return Number(self.value * other.value, [(self, other.value), (other, self.value)])


def exp(x):
    y = math.exp(x.value)
    return Number(y, [(x, y)])  # the derivative of exp is exp


# %% [markdown]
# **Backward.** Start with dy/dy = 1. Visit the numbers in the *reverse* of the order in which they were made. Each
# passes `its gradient * local derivative` to its inputs, which add what they receive. In this order a number has
# received everything from its later uses before it passes its gradient on, so one visit of each is enough.


# %%
def backward(y):
    """Set x.gradient to dy/dx for every x that y was computed from. Call it once: old gradients are not cleared."""
    found, waiting = {y.order: y}, [y]
    while waiting:
        for x, _ in waiting.pop().inputs:
            if x.order not in found:
                found[x.order] = x
                waiting.append(x)
    y.gradient = 1.0
    for order in sorted(found, reverse=True):
        for x, derivative in found[order].inputs:
            x.gradient += found[order].gradient * derivative


# %% [markdown]
# **A fork.** Here f is used by two terms, as the features of a VAE's encoder are used by two layers. The gradient at f
# is the *sum* of what its uses send back: a from the left term, and f + f from the product, which uses f twice.

# %%
x, w, a = Number(0.5), Number(1.2), Number(3.0)
f = exp(x * w)
y = f * a + f * f
backward(y)
print(f"y = {y.value:.6f}, gradient at the fork {f.gradient:.6f} = {a.value:.6f} + {2 * f.value:.6f}")
assert f.gradient == a.value + 2 * f.value

# %% [markdown]
# **Check.** A difference quotient needs two evaluations for *each* input, and rounding costs it about a third of the
# digits or more. It is too slow for training, but it knows nothing of the code above, so it is a good test.

# %%
h = 1e-6
plus, minus = math.exp((0.5 + h) * 1.2), math.exp((0.5 - h) * 1.2)
slope = ((plus * 3 + plus**2) - (minus * 3 + minus**2)) / (2 * h)
print(f"dy/dx = {x.gradient:.9f}, by differences {slope:.9f}")
assert math.isclose(x.gradient, slope, rel_tol=1e-7)

# %% [markdown]
# **minigrad** does the same with arrays (`minigrad/tensor.py`). Left out here: arrays (lesson 2), releasing what is
# saved for backward (minigrad does it for each operation as soon as its backward has run), in-place changes, devices
# and derivatives of derivatives.

# %%
import minigrad
from minigrad import Tensor, ops

minigrad.use(kernels="plain")  # the readable kernels; nothing is compiled
tensors = [Tensor(np.array(value), requires_grad=True) for value in (0.5, 1.2, 3.0)]
features = ops.exp(tensors[0] * tensors[1])
(features * tensors[2] + features * features).backward()
np.testing.assert_allclose([x.gradient, w.gradient, a.gradient], [t.grad for t in tensors], rtol=1e-15)
print("the gradients are those of minigrad")

# %% [markdown]
# ## Exercise
# Write `sum_over_paths(y, x)`: dy/dx without `backward`, by recursion from y to its inputs. It follows every path. How
# many paths are there after n steps of `y = y + y`, and how many visits does `backward` need? (Answers: solutions.py)


# %%
def check_sum_over_paths(sum_over_paths):
    x, other = Number(0.7), Number(2.0)
    y = x * x
    for _ in range(4):
        y = y * other + y
    answers = [sum_over_paths(y, leaf) for leaf in (x, other)]  # before `backward`, which fills in the gradients
    backward(y)
    for name, leaf, found in zip(("x", "other"), (x, other), answers, strict=True):
        assert math.isclose(found, leaf.gradient), f"dy/d{name} is {leaf.gradient}, not {found}"
    return "sum_over_paths: right"


sum_over_paths = None  # write `def sum_over_paths(y, x): ...` here
print(check_sum_over_paths(sum_over_paths) if sum_over_paths else "sum_over_paths: not written yet")
