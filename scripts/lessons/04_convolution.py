# %% [markdown]
# # 4. Convolution as a matrix product
#
# A convolution applies the same filters to every patch of an image. For N images of H x W pixels and C channels,
# (N, H, W, C), and F filters of KH x KW taps, (KH, KW, C, F), without padding and with stride 1, it is
# $y[n, p, q, f] = \sum_{i, j, c} x[n, p + i, q + j, c] \, w[i, j, c, f]$.
#
# **Idea.** Give these seven loops to NumPy, one after the other, until one matrix product is left. Measure each step.

# %%
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from threadpoolctl import threadpool_limits

from autoencoders.data import load_dataset

threadpool_limits(1, user_api="blas")  # one thread for every step
times = {}


def seven_loops(x, w, y):  # each function adds the convolution to y, which begins with zeros
    for n, p, q, f in np.ndindex(y.shape):
        for i, j, c in np.ndindex(w.shape[:3]):
            y[n, p, q, f] += x[n, p + i, q + j, c] * w[i, j, c, f]


def four_loops(x, w, y):  # i, j and c become one sum over a patch
    for n, p, q, f in np.ndindex(y.shape):
        y[n, p, q, f] += np.sum(x[n, p : p + 3, q : q + 3] * w[..., f])


def three_loops(x, w, y):  # all filters at once: the patch as a row, times a matrix (KH*KW*C, F)
    for n, p, q in np.ndindex(y.shape[:3]):
        y[n, p, q] += x[n, p : p + 3, q : q + 3].ravel() @ w.reshape(-1, w.shape[3])


def two_loops(x, w, y):  # all pixels at once, for one tap (i, j) of the kernel after another
    for i, j in np.ndindex(w.shape[:2]):
        y += x[:, i : i + y.shape[1], j : j + y.shape[2]] @ w[i, j]


def im2col(x):  # the patch under each output pixel as one row: (N, H, W, C) -> (N*OH*OW, 3*3*C)
    patches = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))  # (N, OH, OW, C, 3, 3), no copy
    return np.ascontiguousarray(patches.transpose(0, 1, 2, 4, 5, 3)).reshape(-1, 9 * x.shape[3])


def one_product(x, w, y):  # each pixel is copied nine times, and one call of BLAS does all the arithmetic
    y += (im2col(x) @ w.reshape(-1, w.shape[3])).reshape(y.shape)


def blocks(x, w, y):  # the copies of four images fit into the cache, those of a whole batch do not
    for first in range(0, len(x), 4):
        one_product(x[first : first + 4], w, y[first : first + 4])


def measure(name, function, x, w, repeats):  # keeps the shortest time; the first run may have to compile
    for _ in range(repeats):
        y = np.zeros((len(x), 26, 26, 16), "f4")
        start = time.perf_counter()
        function(x, w, y)
        times[name] = min((time.perf_counter() - start) / len(x) * 1e6, times.get(name, np.inf))
    print(f"{name:12} {times[name]:10,.0f} us per image: {times['seven_loops'] / times[name]:8,.0f} times as fast")
    return y


x = np.repeat(load_dataset("fashion-mnist-sample").train_images[:64] / np.float32(255), 8, axis=3)  # (64, 28, 28, 8)
w = np.random.default_rng(0).standard_normal((3, 3, 8, 16)).astype("f4")
steps = {seven_loops: 1, four_loops: 1, three_loops: 8, two_loops: 64, one_product: 64, blocks: 64}
results = [measure(f.__name__, f, x[:images], w, 1 if images == 1 else 9) for f, images in steps.items()]

# %% [markdown]
# With `columns = im2col(x)`, `W = w.reshape(-1, F)` and gy (N*OH*OW, F), `columns.T @ gy` is the gradient of W and
# `gy @ W.T` that of the columns, whose copies are added to their pixels (lesson 5). In **minigrad**, `plain` copies tap
# by tap, then takes one product, `numpy` works in blocks, `numba` and `cuda` have no im2col. Left out: padding, stride.

# %%
import minigrad
from minigrad import ops

for device, sets in minigrad.available().items():
    for kernels in reversed(sets):
        k = minigrad.use(device, kernels, threads=1)
        there = k.from_host(x), k.from_host(w)
        results += [measure(f"{device} {kernels}", lambda x, w, y: np.copyto(y, ops.conv2d(x, w).numpy()), *there, 9)]
for y in results:
    np.testing.assert_allclose(y[:1], results[0], rtol=1e-4, atol=1e-4)
print("the results are those of minigrad")
columns = im2col(x[:1, :, :, :1])  # (676, 9): nine shifted copies of the first channel, each as one column
edges = columns @ np.float32([1, 0, -1, 2, 0, -2, 1, 0, -1])  # Sobel's filter: left minus right
titles = ["x", "im2col(x): one patch per row", "im2col(x) @ w: edges", "microseconds per image"]
_, axes = plt.subplots(1, 4, figsize=(14, 4), layout="constrained", width_ratios=[1, 1, 1, 1.3])
for axis, title, picture in zip(axes, titles, [x[0, :, :, 0], columns, edges.reshape(26, 26)], strict=False):
    axis.imshow(picture, aspect="auto", cmap="gray", interpolation="none")
    axis.set_title(title)
axes[3].bar_label(axes[3].barh(list(times)[::-1], list(times.values())[::-1], log=True), fmt="{:,.0f}", padding=3)
axes[3].set(title=titles[3], xlim=(10, 1e8))
Path("runs/lessons").mkdir(parents=True, exist_ok=True)
plt.savefig("runs/lessons/04_convolution.png")

# %% [markdown]
# ## Exercise: fewer products (Winograd)
# A filter g of 3 taps makes two outputs of four inputs d, (d0 g0 + d1 g1 + d2 g2, d1 g0 + d2 g1 + d3 g2), with six
# products. With constant matrices four are enough: A @ ((B @ d) * (G @ g)) for all d and g. Write `winograd()`, which
# returns A (2, 4), B (4, 4), G (4, 3). Two of the products are (d0 - d2) g0 and (d1 - d3) g2.


# %%
def check_winograd(winograd):
    A, B, G = map(np.asarray, winograd())
    assert (A.shape, B.shape, G.shape) == ((2, 4), (4, 4), (4, 3)), f"shapes {A.shape}, {B.shape}, {G.shape}"
    for d, g in [(d, g) for d in np.eye(4) for g in np.eye(3)]:
        assert np.allclose(A @ ((B @ d) * (G @ g)), np.correlate(d, g)), f"wrong for d = {d} and g = {g}"
    return "winograd: right"


winograd = None  # write `def winograd(): ...` here
print(check_winograd(winograd) if winograd else "winograd: not written yet")
