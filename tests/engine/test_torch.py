"""Every operation against PyTorch, in float64: values and gradients to 1e-12 of the largest magnitude, and the second
and third derivatives to 1e-10. test_ops.py compares float32 with float64.

Images are NHWC here and NCHW there; "same" padding is done by an explicit pad there, after TensorFlow's rule.
"""

from __future__ import annotations

import functools
import zlib

import naive
import numpy as np
import pytest
from op_cases import CASES

import minigrad
from minigrad import Tensor, ops

torch = pytest.importorskip("torch")
F = torch.nn.functional
pytestmark = pytest.mark.torch


def axes_of(x, axis):
    return tuple(range(x.ndim)) if axis is None else axis if isinstance(axis, tuple) else (axis,)


def images(x):
    return x.permute(0, 3, 1, 2)  # NHWC -> NCHW


def filters_first(weight):
    return weight.permute(3, 2, 0, 1).contiguous()  # (KH, KW, C, F) -> (F, C, KH, KW)


def pads_around(sizes, kernel, stride, padding, dilation=1):
    """((top, bottom), (left, right)) with which PyTorch's unpadded convolution has the wanted output size."""
    found = []
    spans = [naive.span(K, D) for K, D in zip(kernel, naive.pair(dilation), strict=True)]
    for axis, (size, K, S) in enumerate(zip(sizes, spans, naive.pair(stride), strict=True)):
        before, count = naive.pads_and_output(size, K, S, padding, axis)
        found.append((before, max((count - 1) * S + K - size - before, 0) if padding == "same" else before))
    return found


def pooled(pool, x, window, stride, padding, value):
    """A pooling of PyTorch, which pads by itself but for "same"."""
    window, stride = naive.pair(window), naive.pair(window if stride is None else stride)
    if padding == "same":
        (top, bottom), (left, right) = pads_around(x.shape[1:3], window, stride, padding)
        y = pool(F.pad(images(x), (left, right, top, bottom), value=value), window, stride)
    else:
        y = pool(images(x), window, stride, 0 if padding == "valid" else padding)
    return y.permute(0, 2, 3, 1)


def reduction(function):
    """One of PyTorch's, for which () means all axes, while it means none here."""

    def reduced(x, axis=None, keepdims=False):
        axes = axes_of(x, axis)
        return function(x, axes, keepdim=bool(keepdims)) if axes else x.clone()

    return reduced


class Torch:
    """The counterparts, with the signatures of minigrad.ops; each made of PyTorch's own function. There is no object of
    this class, and no self: it is a list of functions."""

    add, sub, mul, div, neg = torch.add, torch.sub, torch.mul, torch.div, torch.neg
    exp, log, sqrt, abs, tanh = torch.exp, torch.log, torch.sqrt, torch.abs, torch.tanh
    relu, sigmoid, matmul, pow = torch.relu, torch.sigmoid, torch.matmul, torch.pow
    sin, cos, silu, einsum, where = torch.sin, torch.cos, F.silu, torch.einsum, torch.where
    maximum, minimum, expand_dims = torch.maximum, torch.minimum, torch.unsqueeze
    concatenate, stack, mse, softmax_cross_entropy = torch.cat, torch.stack, F.mse_loss, F.cross_entropy

    def clip(x, low=-np.inf, high=np.inf):
        return torch.clamp(x, low, high)

    def leaky_relu(x, slope=0.01):
        return F.leaky_relu(x, slope)

    def softplus(x):
        return F.softplus(x, threshold=1e9)  # PyTorch's default replaces it by x above 20

    def reshape(x, *shape):
        return x.reshape(*shape)

    def transpose(x, *axes):
        order = axes[0] if axes and isinstance(axes[0], tuple) else axes
        return x.permute(order or tuple(range(x.ndim))[::-1])

    sum, mean, logsumexp = reduction(torch.sum), reduction(torch.mean), reduction(torch.logsumexp)
    max, min = reduction(torch.amax), reduction(torch.amin)

    def _spread(function, x, axis, keepdims, correction):
        axes = axes_of(x, axis)
        if not axes:  # of one number each
            return x * 0
        if not x.numel():  # PyTorch warns
            return torch.sum(x, axes, keepdim=bool(keepdims))
        return function(x, axes, correction=correction, keepdim=bool(keepdims))

    def var(x, axis=None, keepdims=False, *, correction=0):
        return Torch._spread(torch.var, x, axis, keepdims, correction)

    def std(x, axis=None, keepdims=False, *, correction=0):
        return Torch._spread(torch.std, x, axis, keepdims, correction)

    def _softmax(function, x, axis):
        """Of axes that are moved to the end and made one."""
        axes = [a % x.ndim for a in axes_of(x, axis)] if x.ndim else []
        last = [a for a in range(x.ndim) if a not in axes] + axes
        moved = x.permute(last)
        shape = moved.shape
        rows = moved.reshape(*shape[: x.ndim - len(axes)], int(np.prod(shape[x.ndim - len(axes) :])))
        return function(rows, -1).reshape(shape).permute(*np.argsort(last).tolist())

    def softmax(x, axis=-1):
        return Torch._softmax(torch.softmax, x, axis)

    def log_softmax(x, axis=-1):
        return Torch._softmax(torch.log_softmax, x, axis)

    argmax, argmin = torch.argmax, torch.argmin

    def gelu(x):
        return F.gelu(x, approximate="tanh")

    def squeeze(x, axis=None):
        return torch.squeeze(x) if axis is None else torch.squeeze(x, axes_of(x, axis)) if axis != () else x.clone()

    swapaxes = torch.swapaxes

    def dropout(x, kept, *, rate):
        return torch.where(kept, x / (1 - rate), 0)

    def embedding(weight, ids):
        return F.embedding(ids.long(), weight)

    def layer_norm(x, gamma, beta, *, epsilon=1e-3):
        return F.layer_norm(x, gamma.shape, gamma, beta, eps=epsilon)

    def group_norm(x, gamma, beta, *, groups, epsilon=1e-3):
        y = F.group_norm(torch.movedim(x, -1, 1), groups, gamma, beta, eps=epsilon)
        return torch.movedim(y, 1, -1)

    def dense(x, weight, bias=None):
        return F.linear(x, weight.T, bias)

    def conv2d(x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1):
        (top, bottom), (left, right) = pads_around(x.shape[1:3], weight.shape[:2], stride, padding, dilation)
        padded = F.pad(images(x), (left, right, top, bottom))
        return F.conv2d(padded, filters_first(weight), bias, stride, 0, dilation, groups).permute(0, 2, 3, 1)

    def conv2d_transpose(x, weight, bias=None, *, stride=1, padding=0, output_size=None, dilation=1, groups=1):
        """Unpadded there, then cut: the rows and columns that fall on the padding are thrown away."""
        strides, kernel = naive.pair(stride), weight.shape[:2]
        if output_size is None:
            shape = naive.conv2d_transpose(
                np.zeros((1, *x.shape[1:3], 1)),
                np.zeros((*kernel, 1, 1)),
                stride=stride,
                padding=padding,
                dilation=dilation,
            ).shape
            output_size = shape[1:3]
        (top, _), (left, _) = pads_around(output_size, kernel, stride, padding, dilation)
        full = F.conv_transpose2d(images(x), filters_first(weight), None, strides, 0, 0, groups, dilation)
        missing = [max(n + b - m, 0) for n, b, m in zip(output_size, (top, left), full.shape[2:], strict=True)]
        full = F.pad(full, (0, missing[1], 0, missing[0]))  # rows that no kernel reaches are zero
        y = full[:, :, top : top + output_size[0], left : left + output_size[1]].permute(0, 2, 3, 1)
        return y if bias is None else y + bias

    def batch_norm(x, gamma, beta, *, epsilon=1e-3):
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) == 1:  # refused by PyTorch: one value a channel has no variance
            return (rows - rows.mean(0)).mul(gamma).add(beta).reshape(x.shape)
        return F.batch_norm(rows, None, None, gamma, beta, training=True, eps=epsilon).reshape(x.shape)

    def batch_norm_inference(x, gamma, beta, mean, variance, *, epsilon=1e-3):
        rows = x.reshape(-1, x.shape[-1])
        return F.batch_norm(rows, mean, variance, gamma, beta, training=False, eps=epsilon).reshape(x.shape)

    def bce_with_logits(logits, targets):
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(logits)

    def gaussian_nll(mean, targets, log_variance=0.0):
        variance = torch.exp(torch.as_tensor(log_variance, dtype=mean.dtype)).expand(mean.shape)
        return F.gaussian_nll_loss(mean, targets, variance, full=True, eps=0, reduction="sum") / len(mean)

    def kl_to_standard_normal(mean, log_variance):
        normal = functools.partial(torch.distributions.Normal, validate_args=False)  # NaN, too, shall have its result
        posterior = normal(mean, torch.exp(log_variance / 2))
        prior = normal(torch.zeros_like(mean), torch.ones_like(mean))
        return torch.distributions.kl_divergence(posterior, prior).sum() / len(mean)

    def max_pool2d(x, window, *, stride=None, padding=0):
        if not x.numel():  # refused by PyTorch without channels
            return (
                x.new_zeros(naive.max_pool2d(x.detach().numpy(), window, stride=stride, padding=padding).shape)
                + x.sum()
            )
        return pooled(F.max_pool2d, x, window, stride, padding, -np.inf)

    def avg_pool2d(x, window, *, stride=None, padding=0, count_include_pad=False):
        if not x.numel():
            return (
                x.new_zeros(naive.avg_pool2d(x.detach().numpy(), window, stride=stride, padding=padding).shape)
                + x.sum()
            )
        if padding == "same" and not count_include_pad:
            total = functools.partial(F.avg_pool2d, divisor_override=1)
            sums = [pooled(total, z, window, stride, padding, 0) for z in (x, torch.ones_like(x))]
            return sums[0] / sums[1]
        pool = functools.partial(F.avg_pool2d, count_include_pad=count_include_pad)
        return pooled(pool, x, window, stride, padding, 0)

    def upsample_nearest(x, factor):
        size = [n * f for n, f in zip(x.shape[1:3], naive.pair(factor), strict=True)]
        return F.interpolate(images(x), size=size, mode="nearest").permute(0, 2, 3, 1)

    def resize_bilinear(x, size):
        size = naive.pair(size)
        if not x.shape[3]:  # refused by PyTorch
            return x.new_zeros((x.shape[0], *size, 0)) + x.sum()
        return F.interpolate(images(x), size=size, mode="bilinear", align_corners=False).permute(0, 2, 3, 1)

    def getitem(x, key):
        """By numbers of elements, because PyTorch has no negative steps and other rules for several arrays."""
        return torch.take(x, torch.tensor(np.array(np.arange(x.numel()).reshape(x.shape)[key])))

    def flip(x, axis=None):
        return torch.flip(x, axes_of(x, axis))

    def split(x, sections, axis=0):
        return torch.tensor_split(x, sections, axis)

    def pad(x, widths, value=0.0):
        pairs = np.broadcast_to(np.array(widths), (x.ndim, 2)).tolist()
        return F.pad(x, [n for pair in reversed(pairs) for n in pair], value=value)


def check_close(actual, expected, relative, what, floor=0.0):
    actual, expected = np.asarray(actual, "float64"), expected.detach().numpy().astype("float64")
    assert actual.shape == expected.shape, what
    assert np.abs(actual - expected).max(initial=0) <= max(relative * np.abs(expected).max(initial=0), floor), what


@pytest.mark.parametrize("name", ops.__all__)
def test_every_operation_has_a_counterpart(name):
    assert callable(getattr(Torch, name, None))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(case):
    relative = 1e-12
    mine, theirs = ([make(x, requires_grad=True) for x in case.inputs()] for make in (Tensor, torch.tensor))
    further = [torch.tensor(x) for x in case.further("float64")]
    y = case.run(*mine)
    z = case.call(Torch, theirs, further)
    check_close(y.numpy(), z, relative, "value")
    gy = np.random.default_rng(zlib.crc32(str(case).encode())).normal(size=y.shape)
    y.backward(gy)
    z.backward(torch.tensor(gy))
    largest = max(float(t.grad.abs().max()) if t.grad.numel() else 0.0 for t in theirs)
    for i, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        # relative to the largest of all its gradients, because one of them may be zero but for rounding
        check_close(a.grad, b.grad, relative, f"gradient of input {i}", relative * largest)


class Composed:
    """Of operators, where the third derivative of PyTorch's own function is wrong (2.13.0)."""

    def batch_norm(x, gamma, beta, *, epsilon=1e-3):
        return Composed.standardised(x.reshape(-1, x.shape[-1]), 0, epsilon).reshape(x.shape) * gamma + beta

    def layer_norm(x, gamma, beta, *, epsilon=1e-3):
        return Composed.standardised(x, tuple(range(-gamma.ndim, 0)), epsilon) * gamma + beta

    def standardised(x, axis, epsilon):
        deviations = x - x.mean(axis, keepdim=True)
        return deviations / torch.sqrt((deviations**2).mean(axis, keepdim=True) + epsilon)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_second_and_third_derivatives(case):
    """In each order, of the sum of the gradients before * random vectors, with respect to each input and to gy."""
    rng = np.random.default_rng(zlib.crc32(str(case).encode()))
    arrays = case.inputs()
    mine, theirs = ([make(x, requires_grad=True) for x in arrays] for make in (Tensor, torch.tensor))
    y = case.run(*mine)
    further = [torch.tensor(x) for x in case.further("float64")]
    z = case.call(Composed if hasattr(Composed, case.op) else Torch, theirs, further)
    if case.op == "embedding" and not y.size:
        pytest.skip("PyTorch cannot differentiate it twice")
    gy, largest = rng.normal(size=y.shape), 0.0
    ours = minigrad.grad(y, mine, last := Tensor(gy, requires_grad=True), create_graph=True)
    others = torch.autograd.grad(z, theirs, their_last := torch.tensor(gy, requires_grad=True), create_graph=True)
    mine, theirs = [*mine, last], [*theirs, their_last]
    for order in (2, 3):
        vectors = [rng.normal(size=tuple(g.shape)) for g in ours]
        total = sum((ops.sum(g * v) for g, v in zip(ours, vectors, strict=True)), Tensor(np.zeros(())))
        their_total = sum((g * torch.tensor(v)).sum() for g, v in zip(others, vectors, strict=True))
        others = len(theirs) * [None]  # no derivative of this order
        if their_total.requires_grad:
            others = torch.autograd.grad(their_total, theirs, allow_unused=True, create_graph=True)
        zeros = [torch.zeros(x.shape, dtype=torch.float64) for x in mine]
        others = [zero if g is None else zero + g for zero, g in zip(zeros, others, strict=True)]
        ours = [derivative(total, x) for x in mine]
        largest = max([largest, *(float(g.detach().abs().max()) for g in others if g.numel())])
        for i, (found, right) in enumerate(zip(ours, others, strict=True)):
            check_close(found.numpy(), right, 1e-10, f"derivative {order} of input {i}", 1e-10 * largest)


def derivative(y, x):
    """The gradient; zeros where y does not depend on x."""
    try:
        return minigrad.grad(y, x, create_graph=True)
    except RuntimeError as error:
        if "does not depend" not in str(error):
            raise
        return Tensor(np.zeros(x.shape))
