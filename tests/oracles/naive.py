"""The oracle: every public operation of minigrad.ops once more, as index loops over single Python floats.

Slow and plain on purpose, and independent: nothing of the package is imported, formulas that the package
rearranges for safety stand here as they are defined and are evaluated with 60 decimal digits, sums are exact
(math.fsum), and the "same" rule is TensorFlow's text (by the remainder of the size), not the package's formula.
NumPy serves as a container only. Every function takes and returns float64 arrays.
"""

from __future__ import annotations

import builtins
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from fractions import Fraction
from typing import Any

import numpy as np

PRECISE = Context(prec=60, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])  # overflow gives Infinity, as wanted
Index = tuple[int, ...]


def indices(shape: Iterable[int]) -> Iterator[Index]:
    return itertools.product(*map(range, shape))


def array(x: Any) -> np.ndarray:
    return np.array(x, dtype=np.float64)


# ---- elementwise ----


def broadcast_shape(*shapes: Index) -> Index:
    """NumPy's rule: align at the right; sizes are equal or 1."""
    out = []
    for back in range(builtins.max(map(len, shapes), default=0), 0, -1):
        sizes = {shape[-back] for shape in shapes if len(shape) >= back}
        wide = sizes - {1}
        if len(wide) > 1:
            raise ValueError(f"{shapes} do not broadcast")
        out.append(wide.pop() if wide else 1)
    return tuple(out)


def pick(x: np.ndarray, index: Index) -> float:
    """The element of x that broadcasting puts at this index of the output."""
    own = index[len(index) - x.ndim :]
    return float(x[tuple(0 if size == 1 else i for i, size in zip(own, x.shape, strict=True))])


def elementwise(f: Callable[..., float], *operands: Any) -> np.ndarray:
    arrays = [array(x) for x in operands]
    y = np.empty(broadcast_shape(*(x.shape for x in arrays)))
    for index in indices(y.shape):
        y[index] = f(*(pick(x, index) for x in arrays))
    return y


def each(f: Callable[..., float]) -> Callable[..., np.ndarray]:
    """The operation that is f of single numbers."""
    return lambda *operands: elementwise(f, *operands)


add = each(lambda u, v: u + v)
sub = each(lambda u, v: u - v)
mul = each(lambda u, v: u * v)
div = each(lambda u, v: u / v)
maximum = each(lambda u, v: u if u > v else v)
minimum = each(lambda u, v: u if u < v else v)
where = each(lambda condition, u, v: u if condition else v)
neg = each(lambda u: -u)
abs = each(lambda u: u if u >= 0 else -u)
relu = each(lambda u: u if u > 0 else 0.0)
exp, log, sqrt, sin, cos = map(each, (math.exp, math.log, math.sqrt, math.sin, math.cos))


def pow(x: Any, exponent: float) -> np.ndarray:
    return elementwise(lambda u: math.pow(u, exponent), x)


def clip(x: Any, low: float = -math.inf, high: float = math.inf) -> np.ndarray:
    return elementwise(lambda u: low if u < low else high if u > high else u, x)


def leaky_relu(x: Any, slope: float = 0.01) -> np.ndarray:
    return elementwise(lambda u: u if u > 0 else slope * u, x)


def precise_exp(u: float) -> Decimal:
    return Decimal(u).exp(PRECISE)


def precise_sigmoid(u: float) -> float:
    return float(PRECISE.divide(Decimal(1), PRECISE.add(Decimal(1), precise_exp(-u))))


def precise_softplus(u: float) -> float:
    if u > 200:  # u + exp(-u) - ..., and exp(-200) is far below the last digit of u
        return u
    if u < -40:  # log(1 + e) = e - e^2 / 2 + ..., where e < 5e-18
        return math.exp(u)
    return float(PRECISE.add(Decimal(1), precise_exp(u)).ln(PRECISE))


def precise_tanh(u: float) -> float:
    if u > 50 or u < -50:
        return 1.0 if u > 0 else -1.0
    up, down = precise_exp(u), precise_exp(-u)
    return float(PRECISE.divide(PRECISE.subtract(up, down), PRECISE.add(up, down)))


def precise_gelu(u: float) -> float:
    """u / 2 * (1 + tanh v) with v = sqrt(2 / pi) * (u + 0.044715 u^3), where 1 + tanh v = 2 e^v / (e^v + e^-v)."""
    if u > 30 or u < -30:
        return u if u > 0 else -0.0
    x = Decimal(u)
    inner = (x + Decimal("0.044715") * x**3) * Decimal(2 / math.pi).sqrt(PRECISE)
    up, down = inner.exp(PRECISE), (-inner).exp(PRECISE)
    return float(PRECISE.multiply(x, PRECISE.divide(up, PRECISE.add(up, down))))


sigmoid, softplus, tanh, gelu = map(each, (precise_sigmoid, precise_softplus, precise_tanh, precise_gelu))
silu = each(lambda u: u * precise_sigmoid(u))


def dropout(x: Any, kept: Any, *, rate: float) -> np.ndarray:
    return elementwise(lambda u, c: u / (1 - rate) if c else 0.0, x, kept)


# ---- shapes and reductions ----


def reshape(x: Any, *shape: Any) -> np.ndarray:
    x = array(x)
    sizes = list(shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape)
    if -1 in sizes:
        known = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = math.prod(x.shape) // known
    y = np.empty(sizes)
    for source, target in zip(indices(x.shape), indices(sizes), strict=True):  # both run in row-major order
        y[target] = x[source]
    return y


def transpose(x: Any, *axes: Any) -> np.ndarray:
    x = array(x)
    order = axes[0] if len(axes) == 1 and isinstance(axes[0], tuple) else axes
    order = [a % x.ndim for a in order] if order else list(range(x.ndim))[::-1]
    y = np.empty([x.shape[a] for a in order])
    for source in indices(x.shape):
        y[tuple(source[a] for a in order)] = x[source]
    return y


def swapaxes(x: Any, axis_1: int, axis_2: int) -> np.ndarray:
    x = array(x)
    order = list(range(x.ndim))
    order[axis_1], order[axis_2] = order[axis_2], order[axis_1]
    return transpose(x, tuple(order))


def reduction(f: Callable[[list[float]], float], x: Any, axis: Any, keepdims: bool) -> np.ndarray:
    """f of the list of elements along the axes."""
    x = array(x)
    axes = list(range(x.ndim)) if axis is None else [axis] if isinstance(axis, int) else list(axis)
    axes = [a + x.ndim if a < 0 else a for a in axes]
    kept = [a for a in range(x.ndim) if a not in axes]
    y = np.empty([x.shape[a] if a in kept else 1 for a in range(x.ndim) if a in kept or keepdims])
    for outer in indices(x.shape[a] for a in kept):
        values = []
        for inner in indices(x.shape[a] for a in axes):
            index = [0] * x.ndim
            for a, i in [*zip(kept, outer, strict=True), *zip(axes, inner, strict=True)]:
                index[a] = i
            values.append(float(x[tuple(index)]))
        target = tuple(outer[kept.index(a)] if a in kept else 0 for a in range(x.ndim)) if keepdims else outer
        y[target] = f(values)
    return y


def sum(x: Any, axis: Any = None, keepdims: bool = False) -> np.ndarray:
    return reduction(math.fsum, x, axis, keepdims)


def max(x: Any, axis: Any = None, keepdims: bool = False) -> np.ndarray:
    return reduction(lambda values: sorted(values)[-1], x, axis, keepdims)


def min(x: Any, axis: Any = None, keepdims: bool = False) -> np.ndarray:
    return reduction(lambda values: sorted(values)[0], x, axis, keepdims)


def argmax(x: Any, axis: Any = None, keepdims: bool = False) -> np.ndarray:
    return reduction(lambda values: values.index(sorted(values)[-1]), x, axis, keepdims).astype(int)


def argmin(x: Any, axis: Any = None, keepdims: bool = False) -> np.ndarray:
    return reduction(lambda values: values.index(sorted(values)[0]), x, axis, keepdims).astype(int)


def variance(values: list[float], correction: float) -> float:
    center = math.fsum(values) / len(values)
    return math.fsum((v - center) ** 2 for v in values) / (len(values) - correction)


def var(x: Any, axis: Any = None, keepdims: bool = False, *, correction: float = 0) -> np.ndarray:
    return reduction(lambda values: variance(values, correction), x, axis, keepdims)


def std(x: Any, axis: Any = None, keepdims: bool = False, *, correction: float = 0) -> np.ndarray:
    return reduction(lambda values: math.sqrt(variance(values, correction)), x, axis, keepdims)


def log_softmax(x: Any, axis: Any = -1) -> np.ndarray:
    x = array(x)
    return elementwise(lambda u, total: u - total, x, logsumexp(x, axis, keepdims=True))


def softmax(x: Any, axis: Any = -1) -> np.ndarray:
    return elementwise(math.exp, log_softmax(x, axis))


def squeeze(x: Any, axis: Any = None) -> np.ndarray:
    x = array(x)
    axes = list(range(x.ndim)) if axis is None else [axis] if isinstance(axis, int) else list(axis)
    axes = [a + x.ndim if a < 0 else a for a in axes]
    return reshape(x, tuple(n for a, n in enumerate(x.shape) if a not in axes or n != 1))


def expand_dims(x: Any, axis: int) -> np.ndarray:
    shape = list(array(x).shape)
    shape.insert(axis if axis >= 0 else axis + len(shape) + 1, 1)
    return reshape(x, tuple(shape))


def einsum(subscripts: str, *operands: Any) -> np.ndarray:
    """A loop over every combination of indices of all letters."""
    arrays = [array(x) for x in operands]
    before, result = subscripts.replace(" ", "").split("->")
    inputs = before.split(",")
    sizes = {letter: n for part, x in zip(inputs, arrays, strict=True) for letter, n in zip(part, x.shape, strict=True)}
    y = np.zeros([sizes[letter] for letter in result])
    for index in indices(sizes.values()):
        at = dict(zip(sizes, index, strict=True))
        product = 1.0
        for part, x in zip(inputs, arrays, strict=True):
            product *= float(x[tuple(at[letter] for letter in part)])
        y[tuple(at[letter] for letter in result)] += product
    return y


def embedding(weight: Any, ids: Any) -> np.ndarray:
    weight = array(weight)
    y = np.empty((*ids.shape, weight.shape[1]))
    for index in indices(ids.shape):
        for d in range(weight.shape[1]):
            y[(*index, d)] = weight[int(ids[index]), d]
    return y


def mean(x: Any, axis: Any = None, keepdims: bool = False) -> np.ndarray:
    return reduction(lambda values: math.fsum(values) / len(values), x, axis, keepdims)


def precise_logsumexp(values: list[float]) -> float:
    total = Decimal(0)
    for value in values:
        total = PRECISE.add(total, precise_exp(value))
    return float(total.ln(PRECISE))


def logsumexp(x: Any, axis: Any = None, keepdims: bool = False) -> np.ndarray:
    return reduction(precise_logsumexp, x, axis, keepdims)


# ---- matrix products ----


def matmul(a: Any, b: Any) -> np.ndarray:
    a, b = array(a), array(b)
    leading = broadcast_shape(a.shape[:-2], b.shape[:-2])
    y = np.empty((*leading, a.shape[-2], b.shape[-1]))
    for index in indices(leading):
        own_a = tuple(0 if n == 1 else i for i, n in zip(index[len(index) - a.ndim + 2 :], a.shape[:-2], strict=True))
        own_b = tuple(0 if n == 1 else i for i, n in zip(index[len(index) - b.ndim + 2 :], b.shape[:-2], strict=True))
        for i, k in indices(y.shape[-2:]):
            y[(*index, i, k)] = math.fsum(a[(*own_a, i, j)] * b[(*own_b, j, k)] for j in range(a.shape[-1]))
    return y


def dense(x: Any, weight: Any, bias: Any = None) -> np.ndarray:
    x, weight = array(x), array(weight)
    y = np.empty((*x.shape[:-1], weight.shape[1]))
    for *place, f in indices(y.shape):
        products = [x[(*place, d)] * weight[d, f] for d in range(x.shape[-1])]
        y[(*place, f)] = math.fsum([*products, 0.0 if bias is None else float(bias[f])])
    return y


# ---- convolution ----


def pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def pads_and_output(size: int, kernel: int, stride: int, padding: Any, axis: int) -> tuple[int, int]:
    """(zeros before, output size) of one axis of a convolution.

    "same", after TensorFlow's guide ("Neural network > Notes on padding"): the output has ceil(size / stride)
    pixels; max(kernel - stride, 0) zeros in all if the stride divides the size, else max(kernel - size mod stride, 0);
    half of them, rounded down, come before.
    """
    if padding == "same":
        rest = size % stride
        total = builtins.max(kernel - (rest if rest else stride), 0)
        return total // 2, math.ceil(size / stride)
    before = 0 if padding == "valid" else pair(padding)[axis]
    # count the positions at which the whole kernel lies within the padded input
    return before, len([start for start in range(0, size + 2 * before, stride) if start + kernel <= size + 2 * before])


def span(kernel: int, dilation: int) -> int:
    """How many pixels there are from the first that the kernel reads to the last."""
    return [i * dilation for i in range(kernel)][-1] + 1


def conv_positions(
    sizes: Index, kernel: Index, stride: Any, padding: Any, dilation: Any = 1
) -> tuple[tuple[int, int], list[list[tuple[int, int, int]]]]:
    """Output sizes, and per axis every (output position, kernel position, input position) that meet."""
    outputs, meetings = [], []
    for axis, (H, K, S, D) in enumerate(zip(sizes, kernel, pair(stride), pair(dilation), strict=True)):
        before, count = pads_and_output(H, span(K, D), S, padding, axis)
        outputs.append(count)
        found = [(p, i, p * S + i * D - before) for p in range(count) for i in range(K)]
        meetings.append([(p, i, h) for p, i, h in found if 0 <= h < H])
    return (outputs[0], outputs[1]), meetings


def conv2d(
    x: Any, weight: Any, bias: Any = None, *, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> np.ndarray:
    """Filter f reads the channels of group f * groups // F."""
    x, weight = array(x), array(weight)
    N, H, W, _ = x.shape
    KH, KW, C, F = weight.shape
    (OH, OW), (rows, columns) = conv_positions((H, W), (KH, KW), stride, padding, dilation)
    pixels, kernel = x.tolist(), weight.tolist()
    start = [0.0] * F if bias is None else [float(value) for value in bias]
    y = [[[list(start) for _ in range(OW)] for _ in range(OH)] for _ in range(N)]
    for n in range(N):
        for p, i, h in rows:
            for q, j, w in columns:
                for c in range(C):
                    for f in range(F):
                        y[n][p][q][f] += pixels[n][h][w][f * groups // F * C + c] * kernel[i][j][c][f]
    return array(y).reshape(N, OH, OW, F)


def conv2d_transpose(
    x: Any, weight: Any, bias: Any = None, *, stride: Any = 1, padding: Any = 0, output_size: Any = None,
    dilation: Any = 1, groups: int = 1
) -> np.ndarray:  # fmt: skip
    """Every input pixel stamps its kernel into the output."""
    x, weight = array(x), array(weight)
    N, OH, OW, F = x.shape
    KH, KW, C, _ = weight.shape
    if output_size is None:
        output_size = []
        for axis, (size, kernel, S, D) in enumerate(zip((OH, OW), (KH, KW), pair(stride), pair(dilation), strict=True)):
            K = span(kernel, D)
            if padding == "same":
                output_size.append(size * S)
            elif padding == "valid":
                output_size.append(size * S + builtins.max(K - S, 0))
            else:
                output_size.append((size - 1) * S + K - 2 * pair(padding)[axis])
    H, W = output_size
    reached, (rows, columns) = conv_positions((H, W), (KH, KW), stride, padding, dilation)
    assert reached == (OH, OW)
    y = np.zeros((N, H, W, C * groups))
    for n, g, c in indices((N, groups, C)):
        out = g * C + c
        for h, w in indices((H, W)):
            y[n, h, w, out] = 0.0 if bias is None else float(bias[out])
        for p, i, h in rows:
            for q, j, w in columns:
                for f in range(g * F // groups, (g + 1) * F // groups):
                    y[n, h, w, out] += float(x[n, p, q, f]) * float(weight[i, j, c, f])
    return y


# ---- normalisation ----


def batch_norm_inference(
    x: Any, gamma: Any, beta: Any, mean: Any, variance: Any, *, epsilon: float = 1e-3
) -> np.ndarray:
    x = array(x)
    y = np.empty(x.shape)
    for index in indices(x.shape):
        c = index[-1]
        deviation = math.sqrt(float(variance[c]) + epsilon)
        y[index] = (float(x[index]) - float(mean[c])) / deviation * float(gamma[c]) + float(beta[c])
    return y


def batch_statistics(x: Any) -> tuple[np.ndarray, np.ndarray]:
    x = array(x)
    means, variances = [], []
    for c in range(x.shape[-1]):
        values = [float(x[(*index, c)]) for index in indices(x.shape[:-1])]
        center = math.fsum(values) / len(values)
        means.append(center)
        variances.append(math.fsum((v - center) ** 2 for v in values) / len(values))
    return array(means), array(variances)


def batch_norm(x: Any, gamma: Any, beta: Any, *, epsilon: float = 1e-3) -> np.ndarray:
    return batch_norm_inference(x, gamma, beta, *batch_statistics(x), epsilon=epsilon)


def layer_norm(x: Any, gamma: Any, beta: Any, *, epsilon: float = 1e-3) -> np.ndarray:
    x, gamma, beta = array(x), array(gamma), array(beta)
    y, leading = np.empty(x.shape), x.ndim - gamma.ndim
    for outer in indices(x.shape[:leading]):
        values = [float(x[(*outer, *inner)]) for inner in indices(gamma.shape)]
        center, deviation = math.fsum(values) / len(values), math.sqrt(variance(values, 0) + epsilon)
        for inner, value in zip(indices(gamma.shape), values, strict=True):
            y[(*outer, *inner)] = (value - center) / deviation * float(gamma[inner]) + float(beta[inner])
    return y


def group_norm(x: Any, gamma: Any, beta: Any, *, groups: int, epsilon: float = 1e-3) -> np.ndarray:
    x = array(x)
    y, size = np.empty(x.shape), x.shape[-1] // groups
    for n, g in indices((x.shape[0], groups)):
        places = [(n, *pixel, c) for pixel in indices(x.shape[1:-1]) for c in range(g * size, (g + 1) * size)]
        values = [float(x[place]) for place in places]
        center, deviation = math.fsum(values) / len(values), math.sqrt(variance(values, 0) + epsilon)
        for place, value in zip(places, values, strict=True):
            y[place] = (value - center) / deviation * float(gamma[place[-1]]) + float(beta[place[-1]])
    return y


# ---- losses ----


def mse(x: Any, targets: Any) -> np.ndarray:
    x, targets = array(x), array(targets)
    squares = [(float(x[i]) - float(targets[i])) ** 2 for i in indices(x.shape)]
    return array(math.fsum(squares) / len(squares))


def bce_with_logits(logits: Any, targets: Any) -> np.ndarray:
    """-log of p^t * (1 - p)^(1 - t) with p = sigmoid(logit): t * softplus(-logit) + (1 - t) * softplus(logit)."""
    logits, targets = array(logits), array(targets)
    terms = []
    for i in indices(logits.shape):
        u, t = float(logits[i]), float(targets[i])
        terms.append(t * precise_softplus(-u) + (1 - t) * precise_softplus(u))
    return array(math.fsum(terms) / logits.shape[0])


def gaussian_nll(mean: Any, targets: Any, log_variance: Any = 0.0) -> np.ndarray:
    """-log of the normal density exp(-(t - m)^2 / (2 v)) / sqrt(2 pi v)."""
    mean, targets, log_variance = array(mean), array(targets), array(log_variance)
    terms = []
    for i in indices(mean.shape):
        m, t, v = float(mean[i]), float(targets[i]), math.exp(pick(log_variance, i))
        terms.append((t - m) ** 2 / (2 * v) + math.log(math.sqrt(2 * math.pi * v)))
    return array(math.fsum(terms) / mean.shape[0])


def softmax_cross_entropy(logits: Any, labels: Any) -> np.ndarray:
    logits = array(logits)
    terms = []
    for n in range(logits.shape[0]):
        row = [float(u) for u in logits[n]]
        terms.append(precise_logsumexp(row) - row[int(labels[n])])
    return array(math.fsum(terms) / len(terms))


def kl_to_standard_normal(mean: Any, log_variance: Any) -> np.ndarray:
    mean, log_variance = array(mean), array(log_variance)
    terms = []
    for i in indices(mean.shape):
        m, s = float(mean[i]), float(log_variance[i])
        terms.append((m * m + math.exp(s) - 1 - s) / 2)
    return array(math.fsum(terms) / mean.shape[0])


# ---- pooling and resizing ----


def pool(f: Callable[[list[float], int], float], x: Any, window: Any, stride: Any, padding: Any) -> np.ndarray:
    """f of the list of the real pixels of each window, and of the number of all its pixels."""
    x = array(x)
    N, H, W, C = x.shape
    KH, KW = pair(window)
    (OH, OW), (rows, columns) = conv_positions((H, W), (KH, KW), window if stride is None else stride, padding)
    y = np.empty((N, OH, OW, C))
    for n, p, q, c in indices(y.shape):
        inside = itertools.product([h for o, _, h in rows if o == p], [w for o, _, w in columns if o == q])
        y[n, p, q, c] = f([float(x[n, h, w, c]) for h, w in inside], KH * KW)
    return y


def max_pool2d(x: Any, window: Any, *, stride: Any = None, padding: Any = 0) -> np.ndarray:
    return pool(lambda pixels, _: sorted(pixels)[-1], x, window, stride, padding)


def avg_pool2d(
    x: Any, window: Any, *, stride: Any = None, padding: Any = 0, count_include_pad: bool = False
) -> np.ndarray:
    def average(pixels: list[float], count: int) -> float:
        return math.fsum(pixels) / (count if count_include_pad else len(pixels))

    return pool(average, x, window, stride, padding)


def upsample_nearest(x: Any, factor: Any) -> np.ndarray:
    x = array(x)
    N, H, W, C = x.shape
    FH, FW = pair(factor)
    y = np.empty((N, H * FH, W * FW, C))
    for n, h, w, c in indices(x.shape):
        for i, j in indices((FH, FW)):
            y[n, h * FH + i, w * FW + j, c] = x[n, h, w, c]
    return y


def neighbours(size: int, new_size: int) -> list[list[tuple[int, float]]]:
    """For each new pixel the old ones between whose centres its own centre is, and their weights; exact fractions."""
    found = []
    for p in range(new_size):
        centre = Fraction(2 * p + 1, 2) * Fraction(size, new_size)
        if centre <= Fraction(1, 2):
            found.append([(0, 1.0)])
        elif centre >= size - Fraction(1, 2):
            found.append([(size - 1, 1.0)])
        else:
            below = math.floor(centre - Fraction(1, 2))
            share = centre - Fraction(1, 2) - below
            found.append([(below, float(1 - share)), (below + 1, float(share))][: 2 if share else 1])
    return found


def resize_bilinear(x: Any, size: Any) -> np.ndarray:
    x = array(x)
    N, H, W, C = x.shape
    OH, OW = pair(size)
    rows, columns = neighbours(H, OH), neighbours(W, OW)
    y = np.empty((N, OH, OW, C))
    for n, p, q, c in indices(y.shape):
        y[n, p, q, c] = math.fsum(u * v * float(x[n, h, w, c]) for h, u in rows[p] for w, v in columns[q])
    return y


# ---- indexing and joining ----


def getitem(x: Any, key: Any) -> np.ndarray:
    """NumPy says which elements a key means; by their numbers, so that nothing but the choice is NumPy's."""
    x = array(x)
    numbers = np.array(np.arange(x.size).reshape(x.shape)[key])
    y, elements = np.empty(numbers.shape), [float(x[index]) for index in indices(x.shape)]
    for index in indices(y.shape):
        y[index] = elements[numbers[index]]
    return y


def flip(x: Any, axis: Any = None) -> np.ndarray:
    x = array(x)
    axes = range(x.ndim) if axis is None else [axis] if isinstance(axis, int) else axis
    axes = [a + x.ndim if a < 0 else a for a in axes]
    y = np.empty(x.shape)
    for index in indices(x.shape):
        y[tuple(n - 1 - i if a in axes else i for a, (i, n) in enumerate(zip(index, x.shape, strict=True)))] = x[index]
    return y


def concatenate(xs: Any, axis: int = 0) -> np.ndarray:
    xs = [array(x) for x in xs]
    axis = axis + xs[0].ndim if axis < 0 else axis
    shape = list(xs[0].shape)
    shape[axis] = 0
    for x in xs:
        shape[axis] += x.shape[axis]
    y, start = np.empty(shape), 0
    for x in xs:
        for index in indices(x.shape):
            y[(*index[:axis], start + index[axis], *index[axis + 1 :])] = x[index]
        start += x.shape[axis]
    return y


def stack(xs: Any, axis: int = 0) -> np.ndarray:
    xs = [array(x) for x in xs]
    axis = axis + xs[0].ndim + 1 if axis < 0 else axis
    y = np.empty((*xs[0].shape[:axis], len(xs), *xs[0].shape[axis:]))
    for i, x in enumerate(xs):
        for index in indices(x.shape):
            y[(*index[:axis], i, *index[axis:])] = x[index]
    return y


def split(x: Any, sections: Any, axis: int = 0) -> list[np.ndarray]:
    x = array(x)
    axis = axis + x.ndim if axis < 0 else axis
    size = x.shape[axis]
    starts = [size * i // sections for i in range(1, sections)] if isinstance(sections, int) else list(sections)
    found = []
    for start, stop in zip([0, *starts], [*starts, size], strict=True):
        chosen = list(range(size))[start:stop]
        part = np.empty((*x.shape[:axis], len(chosen), *x.shape[axis + 1 :]))
        for index in indices(part.shape):
            part[index] = x[(*index[:axis], chosen[index[axis]], *index[axis + 1 :])]
        found.append(part)
    return found


def pad(x: Any, widths: Any, value: float = 0.0) -> np.ndarray:
    x = array(x)
    if isinstance(widths, int):
        widths = [(widths, widths)] * x.ndim
    elif isinstance(widths[0], int):
        widths = [widths] * x.ndim
    y = np.empty([before + n + after for (before, after), n in zip(widths, x.shape, strict=True)])
    for index in indices(y.shape):
        source = [i - before for i, (before, _) in zip(index, widths, strict=True)]
        inside = all(0 <= i < n for i, n in zip(source, x.shape, strict=True))
        y[index] = x[tuple(source)] if inside else value
    return y
