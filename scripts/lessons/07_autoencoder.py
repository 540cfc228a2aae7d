# %% [markdown]
# # 7. An autoencoder
#
# An autoencoder learns to copy its input through a bottleneck. Here an image of 784 pixels becomes a code of 16 numbers
# and is drawn again from the code. It needs no labels, because the image is its own target.
#
# **Idea.** The decoder mirrors the encoder: where the encoder halves with a convolution, the decoder doubles with the
# transposed one (lesson 5). These two and the gradient of their weights are all the arithmetic besides the dense
# layers, and in the backward pass the two change places. All kernels are 4 x 4, with stride 2 and padding 1.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from autoencoders.data import load_dataset


def patches(x):  # (N, H, W, C) -> (N, H/2, W/2, C, 4, 4), a view of the padded images
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return np.lib.stride_tricks.sliding_window_view(padded, (4, 4), axis=(1, 2))[:, ::2, ::2]


def conv(x, w):  # (N, H, W, C) -> (N, H/2, W/2, F), with w (4, 4, C, F)
    return np.tensordot(patches(x), w, axes=((3, 4, 5), (2, 0, 1)))  # a sum over c, i, j: im2col and one product


def transposed(g, w):  # (N, OH, OW, F) -> (N, 2*OH, 2*OW, C), with the same w
    N, OH, OW, _ = g.shape
    x = np.zeros((N, 2 * OH + 2, 2 * OW + 2, w.shape[2]), g.dtype)
    columns = np.tensordot(g, w, axes=(3, 3))  # (N, OH, OW, 4, 4, C)
    for i, j in np.ndindex(4, 4):
        x[:, i : i + 2 * OH : 2, j : j + 2 * OW : 2] += columns[:, :, :, i, j]
    return x[:, 1:-1, 1:-1]


def weight_gradient(x, g):  # of conv from x to g; of transposed, if x is the gradient of its output and g its input
    return np.tensordot(patches(x), g, axes=((0, 1, 2), (0, 1, 2))).transpose(1, 2, 0, 3)


# %% [markdown]
# **The loss** is -log p(x | code) in nats per image. Each pixel is treated as a Bernoulli variable with p = sigmoid(l):
# -x log p - (1 - x) log(1 - p) = log(1 + e^l) - l x. For a grey x even its minimum is above 0.


# %%
def loss_and_gradients(x, w1, w2, w3, w4, w5, w6):
    a1 = np.maximum(conv(x, w1), 0)  # (N, 14, 14, 8)
    a2 = np.maximum(conv(a1, w2), 0)  # (N, 7, 7, 16)
    code = a2.reshape(-1, 784) @ w3  # (N, 16), the bottleneck
    a4 = np.maximum(code @ w4, 0).reshape(-1, 7, 7, 16)
    a5 = np.maximum(transposed(a4, w5), 0)  # (N, 14, 14, 8)
    logits = transposed(a5, w6)  # (N, 28, 28, 1)
    g = (1 / (1 + np.exp(-logits)) - x) / len(x)  # sigmoid(l) - x; each line below takes g one step back
    gw6, g = weight_gradient(g, a5), conv(g, w6) * (a5 > 0)
    gw5, g = weight_gradient(g, a4), (conv(g, w5) * (a4 > 0)).reshape(-1, 784)
    gw4, g = code.T @ g, g @ w4.T
    gw3, g = a2.reshape(-1, 784).T @ g, (g @ w3.T).reshape(a2.shape) * (a2 > 0)
    gw2, g = weight_gradient(a1, g), transposed(g, w2) * (a1 > 0)
    loss = np.sum(np.logaddexp(0, logits) - logits * x) / len(x)
    return loss, [weight_gradient(x, g), gw2, gw3, gw4, gw5, gw6], logits


# %%
# The first values have variance 2 / inputs, as in lesson 3. A pixel that `transposed` makes gets 4 of the 16 taps.
shapes = [(4, 4, 1, 8), (4, 4, 8, 16), (784, 16), (16, 784), (4, 4, 8, 16), (4, 4, 1, 8)]
rng, inputs = np.random.default_rng(0), [16, 128, 784, 16, 64, 32]
start = [rng.normal(0, np.sqrt(2 / n), shape).astype("f4") for n, shape in zip(inputs, shapes, strict=True)]
weights, velocity, losses = [w.copy() for w in start], [0 * w for w in start], []
x = load_dataset("fashion-mnist-sample").train_images / np.float32(255)
for step in range(240):  # three passes over 4,000 images
    loss, gradients, _ = loss_and_gradients(x[step % 80 :: 80], *weights)
    losses.append(loss)
    for w, v, g in zip(weights, velocity, gradients, strict=True):
        v[...] = 0.9 * v + g  # momentum: a moving sum of gradients
        w -= 1e-3 * v
print(f"{losses[0]:.0f} -> {np.mean(losses[-20:]):.0f} nats per image")
drawn = 1 / (1 + np.exp(-loss_and_gradients(x[:10], *weights)[2]))
Path("runs/lessons").mkdir(parents=True, exist_ok=True)
plt.figure(figsize=(10, 2.3), layout="constrained").suptitle("ten images, and what is drawn from their 16 numbers")
plt.imshow(np.hstack(np.hstack([x[:10], drawn])[..., 0]), cmap="gray")
plt.savefig("runs/lessons/07_autoencoder.png")

# %% [markdown]
# **minigrad** computes the same first loss and gradients. Left out here: biases, batch normalisation.

# %%
import minigrad
from minigrad import Tensor, ops

minigrad.use(kernels="plain")  # the readable kernels; nothing is compiled
w1, w2, w3, w4, w5, w6 = tensors = [Tensor(w, requires_grad=True) for w in start]
y = ops.relu(ops.conv2d(x[::80], w1, stride=2, padding=1))
y = ops.relu(ops.conv2d(y, w2, stride=2, padding=1)).reshape(-1, 784) @ w3
y = ops.relu(ops.conv2d_transpose(ops.relu(y @ w4).reshape(-1, 7, 7, 16), w5, stride=2, padding=1))
loss = ops.bce_with_logits(ops.conv2d_transpose(y, w6, stride=2, padding=1), x[::80])
loss.backward()
assert np.isclose(losses[0], loss.item(), rtol=1e-5)
for gradient, tensor in zip(loss_and_gradients(x[::80], *start)[1], tensors, strict=True):
    np.testing.assert_allclose(gradient, tensor.grad, rtol=1e-3, atol=1e-4 * np.abs(gradient).max())
print("loss and gradients are those of minigrad")

# %% [markdown]
# ## Exercise: without the ReLUs
# Principal component analysis is the best *linear* autoencoder under the squared error. Write `pca(x, Z)`, a copy of
# x (N, D): subtract the mean, project onto the first Z right singular vectors, and back.


# %%
def check_pca(pca):
    x = np.random.default_rng(1).normal(2, np.arange(1, 7), (40, 6))
    dropped = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
    for Z in (1, 3, 6):
        assert np.isclose(np.sum((pca(x, Z) - x) ** 2), np.sum(dropped[Z:] ** 2)), f"Z = {Z}: not the best copy"
    return "pca: right"


pca = None  # write `def pca(x, Z): ...` here
print(check_pca(pca) if pca else "pca: not written yet")
