# %% [markdown]
# # 8. From the autoencoder to the VAE
#
# An autoencoder copies, but it cannot invent: nothing says which codes mean something. A variational autoencoder gives
# the codes a prior, p(z) = N(0, I), and its encoder answers with a distribution, q(z | x) = N(mu, s^2).
#
# **The loss.** Write E_q for the mean over z from q. KL(q || p) = E_q[log q - log p] is never negative. For every z,
# log p(x) = log p(x | z) + log p(z) - log p(z | x). Add and subtract log q, and take E_q:
# $\log p(x) = E_q[\log p(x | z)] - KL(q \| p(z)) + KL(q \| p(z | x))$. Without the last KL it is a lower bound. So the
# loss is lesson 7's, averaged over z, plus $KL = \frac{1}{2} \sum (\mu^2 + s^2 - 1 - \log s^2)$. With v = log s^2 its
# gradient is mu for mu and (e^v - 1) / 2 for v. Both vanish only where mu = 0 and s = 1: there q *is* the prior.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from autoencoders.data import load_dataset


def kl(mu, v):
    return 0.5 * np.sum(mu**2 + np.exp(v) - 1 - v)


rng, mu, v = np.random.default_rng(0), np.array([0.5, -1.0]), np.array([-1.0, 0.3])
z = mu + np.exp(v / 2) * rng.standard_normal((200_000, 2))
log_ratio = np.sum(0.5 * (z**2 - (z - mu) ** 2 / np.exp(v) - v), axis=1)  # log q(z) - log p(z)
print(f"KL {kl(mu, v):.4f}, as the mean of log q - log p over samples {log_ratio.mean():.4f}")
assert abs(log_ratio.mean() - kl(mu, v)) < 4 * log_ratio.std() / len(z) ** 0.5

# %% [markdown]
# **The reparameterisation.** We need d/dmu of E_q[f(z)], but samples of z come from q, which changes with mu. Write
# z = mu + s eps with eps from N(0, 1). Now the distribution is fixed, and the derivative moves inside the mean:
# d/dmu E[f(mu + s eps)] = E[f'(z)], and since ds/dv = s / 2, d/dv E[f(mu + s eps)] = E[f'(z) s eps / 2].
#
# **Check** with f(z) = z^3, where E f = mu^3 + 3 mu s^2 is known: the derivatives are 3 mu^2 + 3 s^2 and 3 mu s^2. The
# other way, E[f(z) d log q / dmu] with d log q / dmu = (z - mu) / s^2, needs no f', but more samples: see its error.

# %%
m, s, eps = 0.5, 0.6, rng.standard_normal(100_000)
z, by_mu, by_v = m + s * eps, 3 * m**2 + 3 * s**2, 3 * m * s**2
samples = {"d/dmu": 3 * z**2, "d/dv": 3 * z**2 * s * eps / 2, "d/dmu by log q": z**3 * (z - m) / s**2}
for (name, values), exact in zip(samples.items(), (by_mu, by_v, by_mu), strict=True):
    error = values.std() / len(values) ** 0.5
    print(f"{name:14} {values.mean():.4f} +- {error:.4f}, exact {exact:.4f}")
    assert abs(values.mean() - exact) < 4 * error

# %% [markdown]
# **The model**, with dense layers to be short. The gradient gz of z = mu + exp(v / 2) eps is also that of mu, and times
# eps exp(v / 2) / 2 that of v. There each meets the KL's gradient, and both meet again at the features: sums at forks.


# %%
def losses_and_gradients(x, eps, w1, w_mu, w_v, w3, b3, w4):  # x (N, 784), eps (N, 2)
    features = np.maximum(x @ w1, 0)
    mu, v = features @ w_mu, features @ w_v
    z = mu + np.exp(v / 2) * eps
    logits = (up := np.maximum(z @ w3 + b3, 0)) @ w4
    g = (1 / (1 + np.exp(-logits)) - x) / len(x)  # and back
    gup = (g @ w4.T) * (up > 0)
    gz = gup @ w3.T
    gmu, gv = gz + mu / len(x), gz * eps * np.exp(v / 2) / 2 + (np.exp(v) - 1) / 2 / len(x)
    ghidden = (gmu @ w_mu.T + gv @ w_v.T) * (features > 0)  # the sum at the fork, then the ReLU
    losses = np.array([np.sum(np.logaddexp(0, logits) - logits * x), kl(mu, v)]) / len(x)
    gradients = [x.T @ ghidden, features.T @ gmu, features.T @ gv, z.T @ gup, gup.sum(axis=0, keepdims=True), up.T @ g]
    return losses, gradients


x = load_dataset("fashion-mnist-sample").train_images.reshape(-1, 784) / 255
weights = [rng.normal(0, 0.5 / n**0.5, (n, f)) for n, f in ((784, 64), (64, 2), (64, 2), (2, 64), (1, 64), (64, 784))]
speeds, history = [0 * w for w in weights], []
for step in range(800):  # ten passes over 4,000 images
    losses, gradients = losses_and_gradients(x[step % 80 :: 80], rng.standard_normal((50, 2)), *weights)
    history.append(losses)
    for w, speed, g in zip(weights, speeds, gradients, strict=True):
        speed[...] = 0.9 * speed + g
        w -= 1e-3 * speed
print("reconstruction {:.0f}, KL {:.1f} nats per image".format(*np.mean(history[-80:], axis=0)))
grid = np.stack(np.meshgrid(np.linspace(-11 / 6, 11 / 6, 12), np.linspace(-11 / 6, 11 / 6, 12)), axis=-1)
images = 1 / (1 + np.exp(-np.maximum(grid.reshape(-1, 2) @ weights[3] + weights[4], 0) @ weights[5]))
plt.figure(figsize=(6, 6), layout="constrained").suptitle("decoded from z: z[0] to the right, z[1] down")
plt.imshow(images.reshape(12, 12, 28, 28).swapaxes(1, 2).reshape(336, 336), cmap="gray", extent=(-2, 2, 2, -2))
Path("runs/lessons").mkdir(parents=True, exist_ok=True)
plt.savefig("runs/lessons/08_vae.png")

# %% [markdown]
# **minigrad** computes the same losses and gradients. `autoencoders/minimal.py` is this lesson with convolutions.

# %%
import minigrad
from minigrad import Tensor, ops

minigrad.use(kernels="plain")  # the readable kernels; nothing is compiled
losses, gradients = losses_and_gradients(x[:50], eps := rng.standard_normal((50, 2)), *weights)
w1, w_mu, w_v, w3, b3, w4 = tensors = [Tensor(w, requires_grad=True) for w in weights]
features = ops.relu(x[:50] @ w1)
mu, v = features @ w_mu, features @ w_v
z = mu + ops.exp(v * 0.5) * eps
parts = ops.bce_with_logits(ops.relu(z @ w3 + b3) @ w4, x[:50]), ops.kl_to_standard_normal(mu, v)
(parts[0] + parts[1]).backward()
assert np.allclose(losses, [part.item() for part in parts], rtol=1e-10)
assert all(np.allclose(g, tensor.grad, rtol=1e-8, atol=1e-10) for g, tensor in zip(gradients, tensors, strict=True))
print("losses and gradients are those of minigrad")

# %% [markdown]
# ## Exercise
# Write `kl_between(mu_1, v_1, mu_2, v_2)`: KL(q_1 || q_2) of N(mu_1, e^v_1) and N(mu_2, e^v_2), summed over dimensions.


# %%
def check_kl_between(kl_between):
    mu, v, zero = np.array([0.5, -1.0]), np.array([-1.0, 0.3]), np.zeros(2)
    assert np.isclose(kl_between(mu, v, zero, zero), kl(mu, v)), "to N(0, 1) it is the KL above"
    assert np.isclose(kl_between(mu, v, v, mu), 4.0255085511), "wrong between two other normal distributions"
    return "kl_between: right"


kl_between = None  # write `def kl_between(mu_1, v_1, mu_2, v_2): ...` here
print(check_kl_between(kl_between) if kl_between else "kl_between: not written yet")
