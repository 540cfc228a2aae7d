"""One solution of each exercise. `tests/project/test_lessons.py` runs them through the checks of the lessons."""

import numpy as np

# ---- 1. A number with a gradient ----


def sum_over_paths(y, x):
    """n steps of y = y + y have 2^n paths, while `backward` visits n + 1 numbers."""
    return 1.0 if y is x else sum(derivative * sum_over_paths(i, x) for i, derivative in y.inputs)


# ---- 2. Broadcasting, and why gradients are summed ----


def divide(a, b):
    """d(a / b) = da / b - a db / b^2."""
    y = a.value / b.value
    return type(a)(y, [(a, lambda gy: gy / b.value), (b, lambda gy: -gy * y / b.value)])


# ---- 3. A dense network learns ----


def leaky_relu(x, slope):
    """The derivative is 1 or slope."""
    factor = np.where(x > 0, 1, slope)
    return x * factor, lambda gy: gy * factor


# ---- 4. Convolution as a matrix product ----


def pad(x):
    """A 3 x 3 filter loses one pixel on each side."""
    return np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


# ---- 5. The transposed convolution is the adjoint ----


def by_conv(g, w, stride):
    """y[h] takes g[p] times w[h - p * stride]: a convolution with the turned kernel of g with zeros in between."""
    N, OH, OW, F = g.shape
    KH, KW = w.shape[:2]
    spread = np.zeros((N, (OH - 1) * stride + 1, (OW - 1) * stride + 1, F))
    spread[:, ::stride, ::stride] = g
    padded = np.pad(spread, ((0, 0), (KH - 1, KH - 1), (KW - 1, KW - 1), (0, 0)))
    # in the lesson: return conv(padded, w[::-1, ::-1].swapaxes(2, 3), 1)
    patches = np.lib.stride_tricks.sliding_window_view(padded, (KH, KW), axis=(1, 2))  # (N, H, W, F, KH, KW)
    return np.einsum("nhwfij,ijcf->nhwc", patches, w[::-1, ::-1])


# ---- 6. Batch normalisation and its three terms ----


def fold(weight, bias, gamma, beta, mean, variance):
    """gamma (x @ weight + bias - mean) / s + beta, sorted by what x multiplies. Epsilon is the lesson's."""
    scale = gamma / np.sqrt(variance + 1e-3)
    return weight * scale, (bias - mean) * scale + beta


# ---- 7. An autoencoder ----


def pca(x, Z):
    """The code of a row is (row - mean) @ directions.T."""
    mean = x.mean(axis=0)
    directions = np.linalg.svd(x - mean, full_matrices=False)[2][:Z]
    return (x - mean) @ directions.T @ directions + mean


# ---- 8. From the autoencoder to the VAE ----


def kl_between(mu_1, v_1, mu_2, v_2):
    """The mean of (z - mu_2)^2 over q_1 is (mu_1 - mu_2)^2 + e^v_1, and that of (z - mu_1)^2 is e^v_1."""
    return 0.5 * np.sum(v_2 - v_1 - 1 + (np.exp(v_1) + (mu_1 - mu_2) ** 2) / np.exp(v_2))


# ---- 9. Adam, and why it corrects a bias ----


def adamw_step(p, m, v, g, t, rate, decay):
    """The decay uses p before the step."""
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    update = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return p - rate * update - rate * decay * p, m, v


# ---- 10. How a run resumes to the bit ----


def key_bytes(*key):
    """Each part begins with its type and its length, so it is known where it ends."""
    parts = [(type(part).__name__, str(part).encode()) for part in key]
    return b"".join(f"{kind} {len(text)} ".encode() + text for kind, text in parts)
