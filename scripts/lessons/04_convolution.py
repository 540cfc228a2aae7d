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


def three_loops(x, w, y):  # a patch as a row, times a matrix (KH*KW*C, F): all sums and filters of a pixel
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


def winograd(x, w, y):  # 2 x 2 pixels from 4 x 4: 16 products for each channel instead of 36, but more sums
    A, G = np.float32([[1, 1, 1, 0], [0, 1, -1, -1]]), np.float32([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]) / 2
    B = np.float32([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
    tiles = np.lib.stride_tricks.sliding_window_view(x, (4, 4), axis=(1, 2))[:, ::2, ::2]  # (N, 13, 13, C, 4, 4)
    sums = np.einsum("ai,npqcij,bj->abnpqc", B, tiles, B, optimize=True).reshape(4, 4, -1, x.shape[3])
    products = (sums @ np.einsum("ai,ijcf,bj->abcf", G, w, G)).reshape(4, 4, len(x), 13, 13, -1)
    y += np.einsum("ia,abnpqf,jb->npiqjf", A, products, A, optimize=True).reshape(y.shape)


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
steps = {seven_loops: 1, three_loops: 8, two_loops: 64, one_product: 64, blocks: 64, winograd: 64}
results = [measure(f.__name__, f, x[:images], w, 1 if images == 1 else 9) for f, images in steps.items()]

# %% [markdown]
# With `columns = im2col(x)`, `W = w.reshape(-1, F)` and gy (N*OH*OW, F), `columns.T @ gy` is the gradient of W and
# `gy @ W.T` that of the columns, whose copies are added to their pixels (lesson 5). In **minigrad**, `plain` takes one
# product, `numpy` blocks; `numba` and `cuda` have no im2col. Winograd's sums cost more here than its products save.

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
# ## Exercise: write `pad(x)`, which puts zeros around the images, so that the result is as large as they are


# %%
def check_pad(pad):
    x, w, y = np.ones((1, 28, 28, 2), "f4"), np.arange(36, dtype="f4").reshape(3, 3, 2, 2), np.zeros((1, 28, 28, 2))
    one_product(pad(x), w, y)
    assert np.allclose(y, ops.conv2d(x, w, padding="same").numpy()), "not the numbers of 'same' padding"
    return "pad: right"


pad = None  # write `def pad(x): ...` here
print(check_pad(pad) if pad else "pad: not written yet")
