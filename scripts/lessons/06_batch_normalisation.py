# %% [markdown]
# # 6. Batch normalisation and its three terms
#
# Batch normalisation gives each feature mean 0 and variance 1 over the batch, then a learnt scale and shift:
# z = (x - mean) / s with s = sqrt(variance + epsilon), and y = gamma z + beta.
#
# **Idea.** Mean and variance depend on *every* x of the batch. So if one x_i grows, the loss changes in three ways:
# through its own z_i, through the mean, which moves all z, and through the variance, which scales all z. The gradient
# has three terms, and each can be measured alone by differences, if the other two ways are held fixed.

# %%
import numpy as np

EPSILON = 1e-3


def normalise(x, mean, variance):
    return (x - mean) / np.sqrt(variance + EPSILON)


def forward(x, gamma, beta):
    """x (M, C): M values for each of C features -> y (M, C)."""
    return gamma * normalise(x, x.mean(axis=0), x.var(axis=0)) + beta


# %% [markdown]
# **The terms**, with gz = gamma gy, the gradient of z:
# 1. z_i grows by dx / s. Term: gz_i / s.
# 2. The mean grows by dx / M, and every z_j falls by dx / (M s). Term: -sum(gz) / (M s). It leaves the variance alone
#    to first order, because the deviations sum to 0.
# 3. The variance grows by 2 (x_i - mean) dx / M = 2 s z_i dx / M, and dz_j/dvariance = -z_j / (2 s^2). So every z_j
#    changes by -z_i z_j dx / (M s). Term: -z_i sum(gz z) / (M s).


# %%
def backward(gy, x, gamma):
    """The three terms of gx, then ggamma and gbeta."""
    M, s, z = len(x), np.sqrt(x.var(axis=0) + EPSILON), normalise(x, x.mean(axis=0), x.var(axis=0))
    gz = gamma * gy
    own = gz / s
    by_mean = np.broadcast_to(-gz.sum(axis=0) / (M * s), x.shape)
    by_variance = -z * (gz * z).sum(axis=0) / (M * s)
    return (own, by_mean, by_variance), (gy * z).sum(axis=0), gy.sum(axis=0)


# %% [markdown]
# **Measured.** `loss` takes the x of each way separately. Differences along one of them give one term.


# %%
def loss(own, for_mean, for_variance):
    return np.sum(gy * (gamma * normalise(own, for_mean.mean(axis=0), for_variance.var(axis=0)) + beta))


def differences(way, h=1e-6):
    """The derivative of the loss with respect to each x, if x changes only in one of the three places."""
    slopes = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        for step in (h, -h):
            xs = [x.copy() for _ in range(3)]
            xs[way][place] += step
            slopes[place] += loss(*xs) / (2 * step)
    return slopes


rng = np.random.default_rng(0)
x, gy = rng.normal(3, 2, (8, 2)), rng.standard_normal((8, 2))
gamma, beta = np.array([1.5, -0.5]), np.array([0.1, 0.2])
terms, ggamma, gbeta = backward(gy, x, gamma)
for way, name in enumerate(["own z", "mean", "variance"]):
    error = np.abs(differences(way) - terms[way]).max()
    print(f"term by {name:8}: norm {np.linalg.norm(terms[way]):.4f}, largest difference {error:.0e}")
    assert error < 1e-8

# %% [markdown]
# **What the two other terms do.** They remove from the gradient what normalisation makes ineffective: adding a constant
# to a feature does not change y, so gx sums to 0. Scaling x about its mean hardly changes y (only through epsilon), so
# gx has almost no part along z.

# %%
gx = sum(terms)
z = normalise(x, x.mean(axis=0), x.var(axis=0))
for name, values in {"gx": gx, "gx * z": gx * z, "the first term * z": terms[0] * z}.items():
    print(f"sum of {name}: {np.array2string(values.sum(axis=0), precision=1)}")

# %% [markdown]
# **minigrad** (`batch_norm_grad` in `minigrad/backend/reference.py`) adds the terms in one formula. Images are
# normalised per channel, over batch, height and width. Left out here: the moving statistics used after training.

# %%
import minigrad
from minigrad import Tensor, ops

minigrad.use(kernels="plain")  # the readable kernels; nothing is compiled
tensors = [Tensor(value, requires_grad=True) for value in (x, gamma, beta)]
y = ops.batch_norm(*tensors, epsilon=EPSILON)
y.backward(gy)
np.testing.assert_allclose(forward(x, gamma, beta), y.numpy(), rtol=1e-10)
for mine, tensor in zip((gx, ggamma, gbeta), tensors, strict=True):
    np.testing.assert_allclose(mine, tensor.grad, rtol=1e-10, atol=1e-12)
print("output and gradients are those of minigrad")

# %% [markdown]
# ## Exercise
# After training, mean and variance are constants, and the layer can disappear into the dense layer before it. Write
# `fold(weight, bias, gamma, beta, mean, variance)`: the weight and bias of one dense layer that computes both.


# %%
def check_fold(fold):
    rng = np.random.default_rng(1)
    x, weight, (bias, gamma, beta, mean) = rng.normal(size=(5, 3)), rng.normal(size=(3, 4)), rng.normal(size=(4, 4))
    expected = gamma * normalise(x @ weight + bias, mean, mean**2) + beta
    new_weight, new_bias = fold(weight, bias, gamma, beta, mean, mean**2)
    assert np.allclose(x @ new_weight + new_bias, expected), "one layer and both layers give different numbers"
    return "fold: right"


fold = None  # write `def fold(weight, bias, gamma, beta, mean, variance): ...` here
print(check_fold(fold) if fold else "fold: not written yet")
