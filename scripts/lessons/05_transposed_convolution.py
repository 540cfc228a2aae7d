# %% [markdown]
# # 5. The transposed convolution is the adjoint
#
# An encoder makes images smaller with convolutions of stride 2, and a decoder makes them larger again. Its layer is
# called transposed convolution. It does not invert the convolution; the name says exactly what it is.
#
# **Idea.** A convolution is linear in x, so there is a matrix A with y = A x. The gradient with respect to x is A^T gy,
# as for every linear map (lesson 2). The transposed convolution applies this A^T as a forward operation. So a library
# needs no new arithmetic: the forward pass of one is the backward pass of the other. A^T is also called the adjoint of
# A, and <a, b> below is the sum of a * b.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np


def taps(w, stride, size):
    """For each tap of the kernel its weights (C, F) and the pixels that it meets, one for each output pixel."""
    for i, j in np.ndindex(w.shape[:2]):
        rows = slice(i, i + size[0] - w.shape[0] + 1, stride)
        columns = slice(j, j + size[1] - w.shape[1] + 1, stride)
        yield w[i, j], (slice(None), rows, columns)


def conv(x, w, stride):
    """(N, H, W, C) -> (N, OH, OW, F): each output pixel *gathers* from the pixels under the kernel."""
    return sum(x[pixels] @ weights for weights, pixels in taps(w, stride, x.shape[1:3]))


def transposed(g, w, stride, size):
    """(N, OH, OW, F) -> (N, H, W, C), size = (H, W): each pixel of g *scatters* to the pixels under the kernel."""
    x = np.zeros((len(g), *size, w.shape[2]))
    for weights, pixels in taps(w, stride, size):
        x[pixels] += g @ weights.T
    return x


# %% [markdown]
# **The matrix.** Column k of A is the convolution of an image that is 1 at pixel k and 0 elsewhere. For 7 x 7 pixels, a
# 3 x 3 kernel and stride 2, A is (9, 49). Each row of A holds the kernel once. Nobody stores A: it is nearly all zeros.

# %%
rng = np.random.default_rng(0)
w = rng.uniform(0.5, 1.5, (3, 3, 1, 1))
A = conv(np.eye(49).reshape(49, 7, 7, 1), w, 2).reshape(49, 9).T
back = transposed(np.eye(9).reshape(9, 3, 3, 1), w, 2, (7, 7)).reshape(9, 49).T  # (49, 9), from unit vectors as well
assert np.array_equal(back, A.T)

# %% [markdown]
# **The test without a matrix.** A^T is the only map with `<A x, g> = <x, A^T g>` for all x and g.

# %%
x, g, w_many = rng.standard_normal((4, 9, 7, 3)), rng.standard_normal((4, 4, 3, 5)), rng.standard_normal((3, 3, 3, 5))
left, right = np.sum(conv(x, w_many, 2) * g), np.sum(x * transposed(g, w_many, 2, (9, 7)))
print(f"<A x, g> = {left:.12f}, <x, A^T g> = {right:.12f}")
assert np.isclose(left, right, rtol=1e-12)

# %% [markdown]
# **Not the inverse.** A makes 9 numbers of 49, so x cannot come back. A^T A x only has the right size, and the decoder
# learns weights of its own. Stride 2 with a kernel of 3 reaches some pixels from one tap and others from two or four:
# the result can show a checkerboard (Odena et al., 2016). If the stride divides the kernel size, no inner pixel is
# special.

# %%
reached = {K: transposed(np.ones((1, 8, 8, 1)), np.ones((K, K, 1, 1)), 2, (14 + K,) * 2)[0, ..., 0] for K in (3, 4)}
print(
    "taps that reach a pixel in the middle:", {K: np.unique(count[4:-4, 4:-4]).tolist() for K, count in reached.items()}
)
pictures = {"A (9, 49)": A, "A^T (49, 9)": A.T, "kernel 3, stride 2": reached[3], "kernel 4, stride 2": reached[4]}
_, axes = plt.subplots(1, 4, figsize=(14, 4), layout="constrained", width_ratios=[3, 1, 1.7, 1.7])
for axis, (title, picture) in zip(axes, pictures.items(), strict=True):
    drawn = axis.imshow(picture, aspect="auto", interpolation="none")
    axis.set_title(title if "A" in title else f"taps that reach a pixel:\n{title}")
    if "A" not in title:
        plt.colorbar(drawn, ax=axis, ticks=[1, 2, 4])
Path("runs/lessons").mkdir(parents=True, exist_ok=True)
plt.savefig("runs/lessons/05_transposed_convolution.png")

# %% [markdown]
# **minigrad** builds both layers and their gradients from three kernels (`minigrad/ops/conv.py`); the third is the
# gradient of the weights. Left out here: padding, and the choice of `size`, because several sizes give the same OH.

# %%
import minigrad
from minigrad import Tensor, ops

minigrad.use(kernels="plain")  # the readable kernels; nothing is compiled
image = Tensor(x, requires_grad=True)
ops.conv2d(image, w_many, stride=2).backward(g)
up = ops.conv2d_transpose(g, w_many, stride=2)
np.testing.assert_allclose(image.grad, transposed(g, w_many, 2, (9, 7)), rtol=1e-10, atol=1e-12)
np.testing.assert_allclose(up.numpy(), image.grad, rtol=1e-10, atol=1e-12)
print("transposed convolution and gradient are those of minigrad")

# %% [markdown]
# ## Exercise
# Write `by_conv(g, w, stride)`: the transposed convolution to (N, (OH - 1) * stride + KH, ...) by `conv` with stride 1:
# put stride - 1 zeros between the pixels of g, pad with KH - 1 zeros above and below and KW - 1 at the left and right,
# turn the kernel by 180 degrees and swap C and F. It is a good picture of what happens, and slow: most products are
# with zeros.


# %%
def check_by_conv(by_conv):
    g, w = np.arange(24.0).reshape(2, 3, 2, 2), np.arange(36.0).reshape(3, 3, 2, 2) - 9
    for stride in (1, 2, 3):
        expected = transposed(g, w, stride, (2 * stride + 3, stride + 3))
        y = by_conv(g, w, stride)
        assert y.shape == expected.shape, f"stride {stride}: the shape is {expected.shape}, not {y.shape}"
        assert np.allclose(y, expected), f"stride {stride}: wrong values"
    return "by_conv: right"


by_conv = None  # write `def by_conv(g, w, stride): ...` here
print(check_by_conv(by_conv) if by_conv else "by_conv: not written yet")
