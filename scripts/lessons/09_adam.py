# %% [markdown]
# # 9. Adam, and why it corrects a bias
#
# One rate for all parameters is a compromise: where the loss is steep, a step must be short, and where it is flat, such
# a step takes for ever.
#
# **Idea.** Divide each gradient by its own usual size. Adam (Kingma and Ba, 2015) keeps two moving averages for each
# parameter, m of the gradient and v of its square, and takes steps of $rate \cdot m / (\sqrt{v} + \epsilon)$. Here m
# averages out the noise of single batches, v is the usual squared size, and epsilon prevents a division by 0. A step is
# about as long as the rate where gradients agree, and shorter where they are noise, whatever the scale of the loss.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


def averages(m, v, g):
    return BETA_1 * m + (1 - BETA_1) * g, BETA_2 * v + (1 - BETA_2) * g * g


# %% [markdown]
# **The bias.** The averages start at 0, so at first they are too small. Written out,
# $m_t = (1 - \beta) \sum_{i=1}^{t} \beta^{t-i} g_i$, and the weights add up to $1 - \beta^t$, not to 1. So
# $E[m_t] = (1 - \beta^t) E[g]$ if the distribution of g does not change. Dividing by $1 - \beta^t$ removes the bias.

# %%
g = np.random.default_rng(0).normal(1, 2, (20_000, 20))  # 20,000 runs of 20 steps; E[g] = 1 and E[g^2] = 1 + 4
m, v = np.zeros(20_000), np.zeros(20_000)
for t in range(1, 21):
    m, v = averages(m, v, g[:, t - 1])
    correction_1, correction_2 = 1 - BETA_1**t, 1 - BETA_2**t
    if t in (1, 2, 5, 20):
        print(f"step {t:2}: mean of m {m.mean():.3f}, corrected {(m / correction_1).mean():.3f}; ", end="")
        print(f"mean of v {v.mean():.4f}, corrected {(v / correction_2).mean():.3f}")
    assert abs((m / correction_1).mean() - 1) < 4 * (m / correction_1).std() / 20_000**0.5
    assert abs((v / correction_2).mean() - 5) < 4 * (v / correction_2).std() / 20_000**0.5

# %% [markdown]
# **m and sqrt(v) are wrong by different factors**, which do not cancel. If the gradient is constant, a step without the
# corrections is $(1 - \beta_1^t) / \sqrt{1 - \beta_2^t}$ times the rate: 3.2 times in the first step, 6.6 times around
# the twelfth, and still 1.26 times in the thousandth. Early steps, from random weights, are the worst to be too long.


# %%
def adam_step(p, m, v, g, t, rate):
    """The parameter and both averages after step t = 1, 2, ..."""
    m, v = averages(m, v, g)
    return p - rate * (m / (1 - BETA_1**t)) / (np.sqrt(v / (1 - BETA_2**t)) + EPSILON), m, v


t = np.arange(1, 5001)
too_long = (1 - BETA_1**t) / np.sqrt(1 - BETA_2**t)
print(f"without correction: {too_long[0]:.2f}, at most {too_long.max():.2f} in step {t[too_long.argmax()]}")
for scale in (1e-4, 1.0, 1e4):  # corrected, the first step is the rate, for a loss of any scale
    assert np.isclose(adam_step(0.0, 0.0, 0.0, -scale, 1, 0.01)[0], 0.01, rtol=1e-3)

# %% [markdown]
# **A ravine.** f(a, b) = (100 a^2 + b^2) / 2 is 100 times as steep in a as in b. A plain step multiplies a by 1 - 100
# rate, so it diverges if the rate exceeds 2 / 100, and b comes down slowly. Adam treats both alike.

# %%
steepness = np.array([100.0, 1.0])
plain, adam, m, v = [np.ones(2)], [np.ones(2)], 0.0, 0.0
for step in range(1, 101):
    plain.append(plain[-1] - 0.018 * steepness * plain[-1])
    p, m, v = adam_step(adam[-1], m, v, steepness * adam[-1], step, 0.05)
    adam.append(p)
_, axes = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
axes[0].semilogx(t, too_long)
axes[0].axhline(1, color="gray")
axes[0].set(title="length of step t without correction, in rates", xlabel="t", ylim=0)
for name, path in {"plain, rate 0.018": plain, "Adam, rate 0.05": adam}.items():
    loss = 0.5 * np.sum(steepness * np.square(path), axis=1)
    print(f"{name}: loss {loss[0]:.1f} -> {loss[-1]:.5f}")
    axes[1].plot(*np.transpose(path), ".-", label=name, linewidth=0.5)
axes[1].set(title="100 steps in a ravine", xlabel="a (steep)", ylabel="b (flat)")
axes[1].legend()
Path("runs/lessons").mkdir(parents=True, exist_ok=True)
plt.savefig("runs/lessons/09_adam.png")

# %% [markdown]
# **minigrad** moves all parameters into one flat array and takes this step at once (`minigrad/optim.py`). Left out
# here: weight decay (below) and rates that change. On noisy gradients Adam needs a falling rate to converge.

# %%
import minigrad
from minigrad import Tensor, optim

minigrad.use(kernels="plain")  # the readable kernels; nothing is compiled
theirs, mine, m, v = Tensor(np.ones(3), requires_grad=True), np.ones(3), 0.0, 0.0
optimizer = optim.Adam([theirs], 0.01)
for step, g in enumerate(np.random.default_rng(1).standard_normal((100, 3)), 1):
    theirs.grad[...] = g
    optimizer.step()
    mine, m, v = adam_step(mine, m, v, g, step, 0.01)
    np.testing.assert_allclose(mine, theirs.data, rtol=1e-12)
print("100 steps are those of minigrad")

# %% [markdown]
# ## Exercise
# Weight decay pulls parameters towards 0. Added to the gradient, it would be divided by sqrt(v) as well. Write AdamW
# instead, `adamw_step(p, m, v, g, t, rate, decay)`: the step of Adam and, apart from it, p -= rate * decay * p.


# %%
def check_adamw_step(adamw_step):
    p, m, v = np.array([2.0, -1.0]), np.array([0.1, 0.2]), np.array([0.3, 0.1])
    for g in (np.zeros(2), np.array([1.0, 50.0])):
        found, expected = adamw_step(p, m, v, g, 3, 0.01, 0.5), adam_step(p, m, v, g, 3, 0.01)
        assert np.allclose(found[0], expected[0] - [0.01, -0.005]), f"with the gradient {g}, p is {found[0]}"
        assert np.allclose(found[1:], expected[1:]), "the averages are those of the gradient alone"
    return "adamw_step: right"


adamw_step = None  # write `def adamw_step(p, m, v, g, t, rate, decay): ...` here
print(check_adamw_step(adamw_step) if adamw_step else "adamw_step: not written yet")
