# %% [markdown]
# # 3. A dense network learns
#
# A network is a function of its input and of parameters. Training reduces the mean loss over examples by steps against
# the gradient: parameter -= rate * gradient. Here two dense layers learn to name the clothes of Fashion-MNIST.
#
# **Idea.** Each layer is a function that returns its output and a function `pull`, which turns the gradient of the
# output into those of the inputs. Lessons 1 and 2 call these functions automatically. From here on we call them by
# hand, in reverse order, so that every gradient is in sight.

# %%
import math

import numpy as np

from autoencoders.data import load_dataset

CLASSES, HIDDEN, BATCH, RATE = 10, 32, 50, 0.1


def dense(x, weight, bias):
    """y = x @ weight + bias, with one example in each row: (N, D) -> (N, F)."""
    return x @ weight + bias, lambda gy: (gy @ weight.T, x.T @ gy, gy.sum(axis=0))


def relu(x):
    """y = max(x, 0). Without it two dense layers would be one, because a product of two matrices is a matrix."""
    return np.maximum(x, 0), lambda gy: gy * (x > 0)


# %% [markdown]
# **The loss.** The network returns one score per class, its logit. softmax turns logits into probabilities,
# $p_c = e^{l_c} / \sum_k e^{l_k}$, and the loss is the mean of $-\log p_{label}$ in nats (natural logarithms).
# This is $\log \sum_k e^{l_k} - l_{label}$, and the derivative of the first term by $l_c$ is $p_c$. So the gradient is
# $p_c - 1$ for the label and $p_c$ for the other classes. Subtracting the largest logit first changes no probability
# and prevents overflow.


# %%
def cross_entropy(logits, labels):
    """The mean of -log softmax(logits)[label] over the rows (N, classes)."""
    logits = logits - logits.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    one_hot = np.eye(logits.shape[1])[labels]
    return -log_p[one_hot == 1].mean(), lambda gy: (np.exp(log_p) - one_hot) * (gy / len(labels))


def loss_and_gradients(x, labels, weight_1, bias_1, weight_2, bias_2):
    hidden, pull_dense_1 = dense(x, weight_1, bias_1)
    active, pull_relu = relu(hidden)
    logits, pull_dense_2 = dense(active, weight_2, bias_2)
    loss, pull_loss = cross_entropy(logits, labels)
    glogits = pull_loss(1.0)  # and back
    gactive, gweight_2, gbias_2 = pull_dense_2(glogits)
    ghidden = pull_relu(gactive)
    _, gweight_1, gbias_1 = pull_dense_1(ghidden)
    return loss, [gweight_1, gbias_1, gweight_2, gbias_2]


# %% [markdown]
# **First values.** With zeros in every weight, nothing but the last bias would ever change. A ReLU passes on about half
# of the mean square. Random weights of variance 2 / inputs make up for it, layer after layer (He et al., 2015).

# %%
data = load_dataset("fashion-mnist-sample")
x, x_test = (images.reshape(len(images), -1) / 255 for images in (data.train_images, data.test_images))
rng = np.random.default_rng(0)
start = [rng.normal(0, math.sqrt(2 / 784), (784, HIDDEN)), np.zeros(HIDDEN)]
start += [rng.normal(0, math.sqrt(2 / HIDDEN), (HIDDEN, CLASSES)), np.zeros(CLASSES)]

parameters, losses = [p.copy() for p in start], []
for _epoch in range(6):
    for first in range(0, len(x), BATCH):  # in the order of the file, for brevity; a real training shuffles
        rows = slice(first, first + BATCH)
        loss, gradients = loss_and_gradients(x[rows], data.train_labels[rows], *parameters)
        losses.append(loss)
        for p, g in zip(parameters, gradients, strict=True):
            p -= RATE * g
scores = dense(relu(dense(x_test, *parameters[:2])[0])[0], *parameters[2:])[0]
accuracy = np.mean(scores.argmax(axis=1) == data.test_labels)
print(f"loss {losses[0]:.2f} -> {np.mean(losses[-80:]):.2f} nats, {accuracy:.0%} of 1,000 new images named correctly")
assert accuracy > 0.7

# %% [markdown]
# **minigrad** takes the same first 40 steps from the same weights. Left out here: batches in random order (lesson 10).

# %%
import minigrad
from minigrad import nn, ops, optim

minigrad.use(kernels="plain")  # the readable kernels; nothing is compiled
model = nn.Sequential(nn.Dense(784, HIDDEN), nn.ReLU(), nn.Dense(HIDDEN, CLASSES))
model.to(dtype="float64")
for p, value in zip(model.parameters(), start, strict=True):
    p.data[...] = value
optimizer = optim.SGD(model.parameters(), RATE)
for step in range(40):
    rows = slice(step * BATCH, (step + 1) * BATCH)
    loss = ops.softmax_cross_entropy(model(x[rows]), data.train_labels[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    np.testing.assert_allclose(losses[step], loss.item(), rtol=1e-9)
print("the first 40 losses are those of minigrad")

# %% [markdown]
# ## Exercise
# Write `leaky_relu(x, slope)`: x if x > 0, else slope * x. It returns the output and its `pull`, as `relu` does.


# %%
def check_leaky_relu(leaky_relu):
    y, pull = leaky_relu(np.array([[-2.0, 3.0]]), 2.0)
    assert np.allclose(y, [[-4.0, 3.0]]), f"leaky_relu([[-2, 3]], 2) is [[-4, 3]], not {y}"
    assert np.allclose(pull(np.array([[5.0, 7.0]])), [[10.0, 7.0]]), "gy = [[5, 7]] gives [[10, 7]]"
    return "leaky_relu: right"


leaky_relu = None  # write `def leaky_relu(x, slope): ...` here
print(check_leaky_relu(leaky_relu) if leaky_relu else "leaky_relu: not written yet")
