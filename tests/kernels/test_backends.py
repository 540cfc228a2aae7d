"""Every kernel of every backend against `Backend(np)`, the specification.

What is compared: values in float64 and float32, for batches of 1 and of sizes that the threads do not divide, in
every memory layout; that a kernel gives the same bits twice, leaves its inputs alone, and returns memory that nothing
else uses. INPUTS says for each kernel what to call it with; a kernel without an entry fails.

Tolerances. A sum of K terms computed in any order errs by at most lambda * sqrt(K) * u * (sum of the terms'
magnitudes), except with a probability that falls like exp(-lambda^2 / 2), where u is half of eps (Higham and Mary, A
New Approach to Probabilistic Rounding Error Analysis, 2019). With lambda = 8 that is 4 * eps * sqrt(K), and a
chain of up to 8 roundings for an element stays below it too (K = 1). In float64 it is below 1e-12 for all K here, which
is the bound used there. The oracle is the specification in float64 on the same inputs, so in float32 the error of one
side only is measured. For the kernels that are sums of products ("linear") the sum of magnitudes is the kernel applied
to the inputs' magnitudes; for the others it is the largest magnitude of the result, or what the entry says.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import math
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from faults import Campaign
from kernel_sets import BACKENDS, MARKS, NEEDS_NUMBA

import minigrad.backend
from minigrad.backend import Backend
from minigrad.backend.catalogue import CatalogueBackend
from minigrad.backend.chain import ChainBackend, FastBackend, Layer, Norm, Source, Statistics
from minigrad.backend.cpu import numpy_kernels as cpu
from minigrad.backend.cuda import kernels as cuda
from minigrad.backend.geometry import ConvGeometry, conv_geometry
from minigrad.backend.reference import AdamOptions
from minigrad.backend.sharing import strictly

PLAIN = ChainBackend(np)
PLAIN_CLASSES = Backend, CatalogueBackend, ChainBackend
DTYPE = object()  # among a case's arguments: the dtype that is tested
SIZES = (1, 4, 7)  # batches; three threads divide none of them evenly
EMPTY = ((0, 5, 4, 3),)  # no images
NOT_KERNELS = {"device_of", "from_host", "to_host", "capture", "next_draw_"}  # they compute nothing


def rng(*key: Any) -> np.random.Generator:
    return np.random.default_rng([ord(c) for c in repr(key)])


# ---- what to call each kernel with ----


@dataclass
class Case:
    """Arguments of one call: float64 arrays, which the tests convert, and options. The first `written` are outputs."""

    name: str
    arguments: tuple[Any, ...]
    terms: int = 1  # K: how many terms the longest sum has
    linear: bool = False
    written: int = 0
    scales: tuple[float, ...] | None = None  # of each result, where the docstring's two rules do not hold


GEOMETRIES = [
    conv_geometry((6, 5), (3, 3), 1, "same"),
    conv_geometry((7, 6), (3, 3), 2, "same"),
    conv_geometry((5, 8), (2, 4), (1, 3), "valid"),
    conv_geometry((4, 4), (2, 1), 3, 1),  # stride larger than the kernel
    conv_geometry((1, 1), (3, 2), 2, (1, 1)),
    conv_geometry((8, 8), (1, 1), 1, 0),
    conv_geometry((8, 5), (3, 3), (2, 1), "same"),
    conv_geometry((1, 10), (1, 1), 4, 1),  # no pixel of the only row meets a tap
    conv_geometry((2, 3), (1, 1), 9, 3),  # all windows end before the first pixel
]
CHANNELS = ((1, 40), (8, 3), (9, 8), (32, 33))  # the last: enough for Winograd's algorithms


def _shapes(N: int) -> list[tuple[int, ...]]:
    return [(N, 5, 4, 3), (N, 6, 3, 9), (N, 3, 3, 1), (N, 7), (N, 2, 5)]


GAPS = [  # dilated, grouped, both: fast kernels leave these to the plain ones
    conv_geometry((9, 8), (3, 2), (1, 2), "same", (2, 3)),
    conv_geometry((6, 5), (3, 3), 2, 1, groups=2),
    conv_geometry((7, 7), (2, 3), 1, "valid", 2, groups=4),
]


def conv_cases(r: np.random.Generator, N: int, g: ConvGeometry, C: int, F: int) -> dict[str, Case]:
    """A call of each kernel of a convolution, by name; C and F are the channels and filters of a group."""
    x, gy = r.normal(size=(N, *g.input_size, C * g.groups)), r.normal(size=(N, *g.output_size, F * g.groups))
    weight, bias = r.normal(size=(*g.kernel_size, C, F * g.groups)), r.normal(size=F * g.groups)
    taps = math.prod(g.kernel_size)
    cases = [
        Case("conv2d", (x, weight, bias, g), taps * C + 1, linear=True),
        Case("conv2d_grad_input", (gy, weight, g), taps * F, linear=True),
        Case("conv2d_grad_weight", (x, gy, g), N * math.prod(g.output_size), linear=True),
    ]
    return {case.name: case for case in cases}


def without_bias(case: Case) -> Case:
    x, weight, _, g = case.arguments
    return replace(case, arguments=(x, weight, None, g))


def _convolution(name: str) -> Callable[[np.random.Generator, int], Iterator[Case]]:
    def cases(r: np.random.Generator, N: int) -> Iterator[Case]:
        whole = [*itertools.product(GEOMETRIES, CHANNELS), (GEOMETRIES[0], (0, 5))]
        for g, channels in [*whole, *itertools.product(GAPS, ((1, 1), (3, 2)))]:
            if channels[0] or name == "conv2d_grad_input":  # whose result may have no channels
                yield (case := conv_cases(r, N, g, *channels)[name])
                if name == "conv2d":
                    yield without_bias(case)

    return cases


def _im2col(r: np.random.Generator, N: int) -> Iterator[Case]:
    for g in GEOMETRIES:
        yield Case("im2col", (r.normal(size=(N, *g.input_size, 3)), g))


def _col2im(r: np.random.Generator, N: int) -> Iterator[Case]:
    for g in GEOMETRIES:
        taps = math.prod(g.kernel_size)
        columns = r.normal(size=(N * math.prod(g.output_size), taps * 3))
        yield Case("col2im", (columns, N, 3, g), taps, linear=True)


def _unit_range(r: np.random.Generator, N: int) -> Iterator[Case]:
    images, rows = r.integers(0, 256, (9, 5, 4, 3), dtype=np.uint8), r.integers(0, 9, N)
    yield Case("unit_range", (images, DTYPE))
    yield Case("unit_range", (images, DTYPE, rows))
    yield Case("unit_range", (images, DTYPE, rows.astype(np.int32)))
    yield Case("unit_range", (images[:, :, :, :0], DTYPE, rows))
    yield Case("unit_range", (r.uniform(size=(9, 5, 4, 3)), DTYPE, rows))


def _add_all_(r: np.random.Generator, N: int) -> Iterator[Case]:
    for count in (N, 70):  # some are one number
        shapes = [(3, i % 50, 2) if i % 7 else () for i in range(count)]
        totals, values = ([np.array(r.normal(size=shape)) for shape in shapes] for _ in range(2))
        scales = tuple(float((np.abs(a) + np.abs(b)).max(initial=0)) for a, b in zip(totals, values, strict=True))
        yield Case("add_all_", (totals, values), written=1, scales=scales)


def _elementwise(name: str, arrays: int = 1) -> Callable[[np.random.Generator, int], Iterator[Case]]:
    def cases(r: np.random.Generator, N: int) -> Iterator[Case]:
        for shape in [*_shapes(N), *EMPTY, (N,), ()]:  # a single number has no axes
            yield Case(name, tuple(np.array(3 * r.normal(size=shape)) for _ in range(arrays)))

    return cases


def _add_bias(r: np.random.Generator, N: int) -> Iterator[Case]:
    for shape in [*_shapes(N), *EMPTY]:
        yield Case("add_bias", (r.normal(size=shape), r.normal(size=shape[-1])))


def _matmul(r: np.random.Generator, N: int) -> Iterator[Case]:
    for M, K, columns in (
        (N, 5, 3),
        (400 * N, 70, 50),
        (300, 70 * N, 2),  # few columns
        (3, 70 * N, 300),  # few rows
        (5, 70, 4),
        (5, 70, 5),
        (4, 70, 9),
        (5, 70, 9),
        (3, 1300, 5),  # a sum in many shares
        (3, 0, 5),
    ):
        yield Case("matmul", (r.normal(size=(M, K)), r.normal(size=(K, columns))), max(K, 1), linear=True)
    for a, b in (((2, N, 4), (4, 3)), ((1, N, 4), (5, 4, 2))):
        yield Case("matmul", (r.normal(size=a), r.normal(size=b)), a[-1], linear=True)


def _dense_grad_weight(r: np.random.Generator, N: int) -> Iterator[Case]:
    for M, D, F in ((N, 5, 3), (16 * N, 300, 40), (17, 20_000, 7), (8, 70, 1), (0, 5, 3), (3, 0, 5), (3, 5, 0)):
        yield Case("dense_grad_weight", (r.normal(size=(M, D)), r.normal(size=(M, F))), max(M, 1), linear=True)


def _channel_sum(r: np.random.Generator, N: int) -> Iterator[Case]:
    for shape in [*_shapes(N), (N, 40, 40, 2)]:  # 1,600 rows an image: more than one chunk of a blocked sum
        yield Case("channel_sum", (r.normal(size=shape) + 0.3,), math.prod(shape[:-1]), linear=True)


def _sum(r: np.random.Generator, N: int) -> Iterator[Case]:
    for axes in (None, (0,), (1,), (2,), (0, 1), (2, 1), (0, 2)):
        x = r.normal(size=(N, 40, 3))
        yield Case("sum", (x, axes, N == 1), x.size // x.sum(axes).size, linear=True)


def _bernoulli_nll(r: np.random.Generator, N: int) -> Iterator[Case]:
    for shape in _shapes(N):
        yield Case("bernoulli_nll", (5 * r.normal(size=shape), r.uniform(size=shape)), math.prod(shape))


def _statistics(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = x.reshape(-1, x.shape[-1])
    return rows.mean(axis=0), rows.var(axis=0)


def _norm_arrays(r: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """(x, gamma, beta) with channel means near 1."""
    C = shape[-1]
    return r.normal(size=shape) + r.uniform(0.5, 1.5, C), r.uniform(0.5, 2, C), r.normal(size=C)


def _batch_norm(r: np.random.Generator, N: int) -> Iterator[Case]:
    for shape in [*_shapes(N), (N, 30, 30, 2)]:
        x, gamma, beta = _norm_arrays(r, shape)
        mean, variance = _statistics(x)
        # an error e of the mean (relative to L, the largest x) moves the variance by 2 * deviation * e, and y by
        # e / sqrt(variance + epsilon) and by half of what the variance moved over its third power
        L, total = np.abs(x).max(), variance + 1e-3
        moved = 2 * np.sqrt(variance) * L + variance
        far = (np.abs(x) + np.abs(mean)) / np.sqrt(total) + np.abs(x - mean) / np.sqrt(total) * moved / total / 2
        scales = (gamma * far + np.abs(beta)).max(), L, moved.max()
        yield Case("batch_norm", (x, gamma, beta, 1e-3), math.prod(shape[:-1]), scales=scales)


def _batch_norm_apply(r: np.random.Generator, N: int) -> Iterator[Case]:
    for shape in _shapes(N):
        x, gamma, beta = _norm_arrays(r, shape)
        mean, variance = r.normal(size=shape[-1]), r.uniform(0.5, 2, shape[-1])
        L = _magnitude(x, np.stack([mean, gamma / np.sqrt(variance + 1e-3), beta])).max()
        yield Case("batch_norm_apply", (x, gamma, beta, mean, variance, 1e-3), scales=(L,))


def _batch_norm_grad(r: np.random.Generator, N: int) -> Iterator[Case]:
    for shape in [*_shapes(N), (N, 30, 30, 2)]:
        x, gamma, _ = _norm_arrays(r, shape)
        gy = r.normal(size=shape)
        gx, *scales = _batch_norm_grad_magnitudes(gy, x, gamma)
        arguments = gy, x, gamma, *_statistics(x), 1e-3
        yield Case("batch_norm_grad", arguments, math.prod(shape[:-1]), scales=(gx.max(), *scales))


def _batch_norm_grad_magnitudes(gy: np.ndarray, x: np.ndarray, gamma: np.ndarray) -> tuple[np.ndarray, float, float]:
    """The terms' magnitudes in gx, ggamma and gbeta. The three terms of gx cancel for small batches."""
    mean, variance = _statistics(x)
    inverse = 1 / np.sqrt(variance + 1e-3)
    axes = tuple(range(x.ndim - 1))
    z = (np.abs(x) + np.abs(mean)) * inverse
    gx = gamma * inverse * (np.abs(gy) + np.abs(gy).mean(axis=axes) + z * (np.abs(gy) * z).mean(axis=axes))
    return gx, (np.abs(gy) * z).sum(axis=axes).max(), np.abs(gy).sum(axis=axes).max()


def _block_arrays(r: np.random.Generator, N: int) -> Iterator[tuple[Any, ...]]:
    """(x, weight, shape of the output, geometry, transposed) of fused blocks."""
    for g in GEOMETRIES:
        for C, F in CHANNELS:
            weight = r.normal(size=(*g.kernel_size, C, F))
            yield r.normal(size=(N, *g.input_size, C)), weight, (N, *g.output_size, F), g, False
            yield r.normal(size=(N, *g.output_size, F)), weight, (N, *g.input_size, C), g, True


def _magnitude(x: np.ndarray, norm: np.ndarray | None) -> np.ndarray:
    """Of the terms of x normalised."""
    return np.abs(x) if norm is None else (np.abs(x) + np.abs(norm[0])) * np.abs(norm[1]) + np.abs(norm[2])


def _norms(r: np.random.Generator, C: int, i: int) -> np.ndarray | None:
    """mean, scale and beta of the layer before, in two cases of three."""
    return np.stack([r.normal(size=C), r.normal(size=C), r.normal(size=C)]) if i % 3 else None


def _conv_layer(r: np.random.Generator, N: int) -> Iterator[Case]:
    for i, (x, weight, shape, g, transposed) in enumerate(_block_arrays(r, N)):
        norm, bias = _norms(r, x.shape[3], i), r.normal(size=shape[-1])
        after = Norm(r.normal(size=shape[-1]), r.normal(size=shape[-1]), 1e-3) if i % 4 else None
        arguments = Source(x, norm), Layer(weight, bias, g, transposed), after
        # an error e of the convolution (relative to L, its terms' magnitudes) moves the mean by e, the variance by
        # 2 * deviation * e, and gamma / sqrt(variance + epsilon) by half of that over its third power
        kernel = PLAIN.conv2d_grad_input if transposed else PLAIN.conv2d
        sizes = _magnitude(x, norm), np.abs(weight)
        L = (kernel(*sizes, *((g,) if transposed else (None, g))) + np.abs(bias)).max()
        scales = [L]
        if after is not None:
            variance = PLAIN.conv_layer(*arguments)[2]
            moved, scale = 2 * np.sqrt(variance) * L + variance, np.abs(after[0]) / np.sqrt(variance + 1e-3)
            moved_scale = (scale * (1 + moved / (variance + 1e-3) / 2)).max()
            scales += [L, moved.max(), max(L, moved_scale, np.abs(after[1]).max())]
        terms = max(weight[..., 0].size, weight[..., 0, :].size) + math.prod(shape[:-1])
        yield Case("conv_layer", arguments, terms, scales=tuple(scales))


def _conv_chain_inference(r: np.random.Generator, N: int) -> Iterator[Case]:
    """One layer, with and without a norm; three, transposed ones behind the first; and four of one size: magnitudes
    multiply."""
    kernels = PLAIN.conv2d, PLAIN.conv2d_grad_input
    chains = [
        (x, [weight], [shape], [g], [transposed], [i % 4 > 0])
        for i, (x, weight, shape, g, transposed) in enumerate(_block_arrays(r, N))
    ]
    down, same = conv_geometry((7, 6), (3, 3), 2, "same"), conv_geometry((7, 6), (3, 2), 1, "same")
    for last in (True, False):
        weights = [r.normal(size=shape) for shape in ((3, 3, 2, 5), (3, 3, 4, 5), (3, 2, 1, 4))]
        shapes = [(N, 4, 3, 5), (N, 7, 6, 4), (N, 7, 6, 1)]
        options = [down, down, same], [False, True, True], [True, True, last]
        chains.append((r.normal(size=(N, 7, 6, 2)), weights, shapes, *options))
    thin = [r.normal(size=(3, 2, 3, 3)) for _ in range(4)]  # nothing may be written where it is still read
    chains.append((r.normal(size=(N, 7, 6, 3)), thin, [(N, 7, 6, 3)] * 4, [same] * 4, [False] * 4, [True] * 4))
    for x, weights, shapes, geometries, transposed, normed in chains:
        biases = [r.normal(size=shape[-1]) for shape in shapes]
        norms = [r.normal(size=(3, len(bias))) if given else None for bias, given in zip(biases, normed, strict=True)]
        L, terms = np.abs(x), 0
        for weight, bias, norm, g, back in zip(weights, biases, norms, geometries, transposed, strict=True):
            L = _magnitude(kernels[back](L, np.abs(weight), *((g,) if back else (None, g))) + np.abs(bias), norm)
            terms += max(weight[..., 0].size, weight[..., 0, :].size) + 4
        layers = [Layer(*parts) for parts in zip(weights, biases, geometries, transposed, strict=True)]
        arguments = x, layers, norms
        yield Case("conv_chain_inference", arguments, terms, scales=(L.max(),))


def _conv_layer_grad(r: np.random.Generator, N: int) -> Iterator[Case]:
    for i, (x, weight, shape, g, transposed) in enumerate(_block_arrays(r, N)):
        y, gy = np.maximum(r.normal(size=shape), 0), r.normal(size=shape)
        norm, needs_gx, C = _norms(r, x.shape[3], i), i % 4 > 0, x.shape[3]
        before = None if norm is None else Statistics(r.normal(size=C), norm[0], r.uniform(0.5, 2, C), 1e-3)
        grad_rows = r.normal(size=(4, shape[-1])) if i % 5 else None
        magnitudes = np.abs(gy)
        if grad_rows is not None:
            mean, scale, offset, slope = np.abs(grad_rows)
            magnitudes = scale * (magnitudes + offset + (y + mean) * slope) * (y > 0)
        sizes = np.abs(weight), magnitudes, _magnitude(x, norm)
        if transposed:
            gx, gweight = PLAIN.conv2d(sizes[1], sizes[0], None, g), PLAIN.conv2d_grad_weight(sizes[1], sizes[2], g)
        else:
            gx, gweight = (
                PLAIN.conv2d_grad_input(sizes[1], sizes[0], g),
                PLAIN.conv2d_grad_weight(sizes[2], sizes[1], g),
            )
        scales = [gx.max()] if needs_gx else []
        scales += [gweight.max(), magnitudes.reshape(-1, shape[-1]).sum(axis=0).max()]
        if needs_gx and before is not None:
            sums = PLAIN.batch_norm_sums(gx, np.abs(x) + np.abs(norm[0]), np.zeros(C))
            sizes = [np.abs(v) if isinstance(v, np.ndarray) else v for v in before]
            scales += [rows.max() for rows in PLAIN.norm_grad_rows(sums, *sizes, x.size // C)]
        layer = Layer(weight, r.normal(size=shape[-1]), g, transposed)
        arguments = gy, grad_rows, y, Source(x, norm, before), layer, needs_gx
        terms = weight.size + x[..., 0].size + gy[..., 0].size
        yield Case("conv_layer_grad", arguments, terms, scales=tuple(scales))


def _moments(r: np.random.Generator, N: int) -> Iterator[Case]:
    for shape in _shapes(N):
        x = r.normal(size=shape)
        scales = np.abs(x).max(), 2 * (x**2).max()
        yield Case("moments", (x,), x[..., 0].size, scales=scales)


def _normalise(r: np.random.Generator, N: int) -> Iterator[Case]:
    for shape in [*_shapes(N), *EMPTY]:
        x, norm = r.normal(size=shape), r.normal(size=(3, shape[-1]))
        yield Case("normalise", (x, norm), scales=(_magnitude(x, norm).max(initial=0),))


def _norm_rows(r: np.random.Generator, N: int) -> Iterator[Case]:
    for C in (N, 9):
        yield Case("norm_rows", (*(r.normal(size=C) for _ in range(3)), r.uniform(0.5, 2, C), 1e-3))


def _norm_grad_rows(r: np.random.Generator, N: int) -> Iterator[Case]:
    for C in (N, 9):
        vectors = r.normal(size=C), r.normal(size=C), r.uniform(0.5, 2, C)
        yield Case("norm_grad_rows", (r.normal(size=(2, C)), *vectors, 1e-3, 7))


def _norm_gradient(r: np.random.Generator, N: int) -> Iterator[Case]:
    for shape in [*_shapes(N), *EMPTY]:
        gy, x, rows = r.normal(size=shape), r.normal(size=shape), r.normal(size=(4, shape[-1]))
        mean, scale, offset, slope = np.abs(rows)
        L = (scale * (np.abs(gy) + offset + (np.abs(x) + mean) * slope)).max(initial=0)
        yield Case("norm_gradient", (gy, x, rows), scales=(L,))


def _batch_norm_sums(r: np.random.Generator, N: int) -> Iterator[Case]:
    for shape in _shapes(N):
        gy, x, mean = r.normal(size=shape), r.normal(size=shape), r.normal(size=shape[-1])
        scale = PLAIN.batch_norm_sums(np.abs(gy), np.abs(x) + np.abs(mean), np.zeros(shape[-1])).max()
        yield Case("batch_norm_sums", (gy, x, mean), x[..., 0].size, scales=(scale,))


def _batch_norm_update_(r: np.random.Generator, N: int) -> Iterator[Case]:
    for C in (N, 9):
        arrays = r.normal(size=C), r.uniform(0.5, 2, C), r.normal(size=C), r.uniform(0.5, 2, C)
        mean, variance, batch_mean, batch_variance = map(np.abs, arrays)
        for momentum in (0.99, 0, 1):
            pairs = (mean, batch_mean), (variance, batch_variance)
            scales = tuple((momentum * a + (1 - momentum) * b).max() for a, b in pairs)
            yield Case("batch_norm_update_", (*arrays, momentum), written=2, scales=scales)


def _sgd_step_(r: np.random.Generator, N: int) -> Iterator[Case]:
    for momentum, nesterov in ((0.0, False), (0.9, False), (0.9, True)):
        arrays = (r.normal(size=100 * N + 1) for _ in range(3))
        yield Case("sgd_step_", (*arrays, np.array([0.05]), momentum, nesterov), written=2)


def _adam_step_(r: np.random.Generator, N: int) -> Iterator[Case]:
    for decay, epsilon, least in ((0.0, 1e-8, 0.1), (0.01, 1e-8, 0.1), (0.0, 0.1, 0.0)):
        D = 100 * N + 1
        arrays = r.normal(size=D), r.normal(size=D), r.uniform(least, 1, D), r.normal(size=D)
        scalars = np.array([1e-3, 1 / (1 - 0.9**3), 1 / (1 - 0.999**3)])
        yield Case("adam_step_", (*arrays, scalars, AdamOptions(0.9, 0.999, epsilon, decay)), written=3)


WINDOWS = [
    conv_geometry((6, 5), (3, 2), 1, "same"),
    conv_geometry((7, 6), (3, 3), 2, (1, 0)),
    conv_geometry((5, 8), (2, 4), (3, 5), "valid"),
]


def _max_pool(r: np.random.Generator, N: int) -> Iterator[Case]:
    for g in WINDOWS:
        yield Case("max_pool", (r.normal(size=(N, *g.input_size, 3)), g))


def _windows(name: str) -> Callable[[np.random.Generator, int], Iterator[Case]]:
    """What goes from images to windows or back, some with the number of a pixel in each window."""

    def cases(r: np.random.Generator, N: int) -> Iterator[Case]:
        for g in [*WINDOWS, *GEOMETRIES]:
            back, C = name in ("put_windows", "spread_windows"), CHANNELS[0][0]
            taps = math.prod(g.kernel_size)
            numbered = name in ("take_windows", "put_windows")
            winners = [r.integers(0, taps, (N, *g.output_size, C), dtype=np.int32)] if numbered else []
            x = r.normal(size=(N, *(g.output_size if back else g.input_size), C))
            yield Case(name, (x, *winners, g), taps, linear=True)

    return cases


KEYS = [
    (slice(None, None, 2), ...),
    (..., None, 0),
    (np.array([1, 0, 1]), ...),
    (slice(None), np.array([[1, 1], [0, 3]]), ...),
    (..., np.array([0, 0]), slice(1, 3), np.array([[1], [2]])),
    (np.array([True, False, True, False, True]), ...),
    (..., np.array([0, 1, 2, 0, 0])),
]


def _take(r: np.random.Generator, N: int) -> Iterator[Case]:
    for key in KEYS[2:]:
        yield Case("take", (r.normal(size=(5, 4, 3 + N, 3)), key))


def _add_at(r: np.random.Generator, N: int) -> Iterator[Case]:
    shape = (5, 4, 3 + N, 3)
    for key in [*KEYS, (r.integers(0, 5, (40, N)), ...)]:
        gy = r.normal(size=np.empty(shape)[key].shape)
        yield Case("add_at", (gy, key, shape), gy.size, linear=True)


def _add_rows(r: np.random.Generator, N: int) -> Iterator[Case]:
    for M, count in ((40 * N, 5), (40 * N, 1), (3, 300), (1, 1)):  # many equal places, and few
        places = r.integers(0, count, M)
        yield Case("add_rows", (r.normal(size=(M, 3)), places, count), M, linear=True)


def _over_axes(name: str) -> Callable[[np.random.Generator, int], Iterator[Case]]:
    """Reductions that keep the axes, and the softmax."""

    def cases(r: np.random.Generator, N: int) -> Iterator[Case]:
        for shape in _shapes(N):
            for axes in {(0,), (len(shape) - 1,), tuple(range(len(shape)))}:
                terms = math.prod(shape[a] for a in axes)
                yield Case(name, (r.normal(size=shape), axes), terms, linear=name == "centred")

    return cases


INPUTS: dict[str, Callable[[np.random.Generator, int], Iterator[Case]]] = {
    **{name: _convolution(name) for name in ("conv2d", "conv2d_grad_input", "conv2d_grad_weight")},
    **{name: _elementwise(name) for name in ("relu", "sigmoid", "softplus")},
    "relu_grad": _elementwise("relu_grad", 2),
    **{name: _windows(name) for name in ("take_windows", "put_windows", "sum_windows", "spread_windows")},
    **{name: _over_axes(name) for name in ("largest", "smallest", "softmax", "log_softmax", "centred")},
}
for _cases in (
    _unit_range, _add_all_, _matmul, _dense_grad_weight, _im2col, _col2im, _add_bias, _channel_sum, _sum,
    _bernoulli_nll, _batch_norm, _batch_norm_apply, _batch_norm_grad, _moments, _normalise, _batch_norm_sums,
    _norm_rows, _norm_grad_rows, _norm_gradient, _conv_layer, _conv_chain_inference, _conv_layer_grad,
    _batch_norm_update_, _sgd_step_, _adam_step_, _max_pool, _take, _add_at, _add_rows,
):  # fmt: skip
    INPUTS[_cases.__name__[1:]] = _cases


# ---- which kernels and backends there are ----


def kernels_of(cls: type) -> list[str]:
    """The public methods defined in this class that take arrays."""
    found = []
    for name, value in vars(cls).items():
        if not name.startswith("_") and inspect.isfunction(value) and name not in NOT_KERNELS:
            annotations = [str(p.annotation) for p in inspect.signature(value).parameters.values()]
            if any(word in annotation for annotation in annotations for word in ("Array", "Layer")):
                found.append(name)
    return found


def subclasses(cls: type = ChainBackend) -> list[type]:
    """All backends that inherit from the plain one, from every module of minigrad.backend that can be imported."""
    for module in pkgutil.walk_packages(minigrad.backend.__path__, "minigrad.backend."):
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            if error.name not in ("numba", "llvmlite", "cupy"):
                raise
    children = [c for c in cls.__subclasses__() if c.__module__.startswith("minigrad.backend.")]
    return [*children, *(grandchild for child in children for grandchild in subclasses(child))]


def test_every_kernel_has_inputs() -> None:
    for cls in [*PLAIN_CLASSES, *subclasses()]:
        missing = set(kernels_of(cls)) - set(INPUTS)
        assert not missing, f"{cls.__name__}: add an entry to INPUTS for {sorted(missing)}"
    for name, cases in INPUTS.items():
        assert any(name in kernels_of(cls) for cls in PLAIN_CLASSES), f"INPUTS[{name!r}] has no kernel"
        assert {case.name for case in cases(rng(name), 1)} == {name}, f"INPUTS[{name!r}] calls another kernel, or none"


def test_overrides_are_found_documented_and_compatible() -> None:
    assert "NumpyBackend" in {cls.__name__ for cls in subclasses()}
    for cls in subclasses():
        overrides = [name for name in kernels_of(cls) if hasattr(ChainBackend, name)]
        assert overrides, f"{cls.__name__} overrides no kernel"
        for name in overrides:
            method = getattr(cls, name)
            assert method.__doc__, f"{cls.__name__}.{name}: the docstring says why it is faster"
            mine, plain = inspect.signature(method), inspect.signature(getattr(ChainBackend, name))
            assert list(mine.parameters) == list(plain.parameters), f"{cls.__name__}.{name}: other parameters"


def test_every_backend_class_runs_here(backend: Backend) -> None:
    """The fixture's backends are what the tests below compare; a new class needs a new parameter of the fixture."""
    assert type(backend) in {ChainBackend, *subclasses()}
    assert len(subclasses(FastBackend)) <= len({name.split("-")[0] for name in BACKENDS} - {"plain", "cupy"}), (
        f"{subclasses()}: add a parameter to the backend fixture"
    )


# ---- layouts ----


def _f_order(x: Any) -> Any:
    order = tuple(reversed(range(x.ndim)))
    return x.transpose(order).copy().transpose(order)


def _every_second(x: Any, xp: Any) -> Any:
    wide = xp.zeros((*x.shape[:-1], 2 * x.shape[-1]), dtype=x.dtype)
    wide[..., ::2] = x
    return wide[..., ::2]


def _part_of_rows(x: Any, xp: Any) -> Any:
    wide = xp.zeros((x.shape[0], *(n + 1 for n in x.shape[1:])), dtype=x.dtype)
    inside = wide[(slice(None), *(slice(1, None) for _ in x.shape[1:]))]
    inside[...] = x
    return inside


def _reversed(x: Any) -> Any:
    backwards = (slice(None, None, -1),) * x.ndim
    return x[backwards].copy()[backwards]


LAYOUTS: dict[str, Callable[[Any, Any], Any]] = {
    "C": lambda x, xp: x,
    "F": lambda x, xp: _f_order(x),
    "every second": _every_second,
    "part of rows": _part_of_rows,
    "reversed": lambda x, xp: _reversed(x),
}


# ---- running a kernel ----



def runs_its_own(cls: type, name: str, seen: frozenset[str] = frozenset()) -> bool:
    """Whether a call of this kernel runs anything but the text of the plain ones."""
    plain = getattr(ChainBackend, name, None)
    if getattr(cls, name, None) is not plain:
        return True
    called = re.findall(r"self\.(\w+)", inspect.getsource(plain)) if inspect.isfunction(plain) else []
    return any(runs_its_own(cls, other, seen | {name}) for other in called if other not in seen | {name})


CLASSES = {cls.kernels: cls for cls in subclasses(FastBackend)}
TEXTS = {"numpy-3": "numpy", "numba-3": "numba", "cuda-on-cpu": "cuda"}  # with the arrays of plain and cupy-double
FAST = [*TEXTS, "cuda"]
ON_THREADS = ["numpy-3", "numba-3"]


def each_kernel(*backends: str) -> pytest.MarkDecorator:
    """The parameters `name` and `backend`: all kernels on the plain sets and a GPU, on the others their own texts."""
    pairs = [
        pytest.param(name, which, marks=MARKS.get(which, ()), id=f"{which}-{name}")
        for which in backends
        for name in INPUTS
        if which not in TEXTS or runs_its_own(CLASSES.get(TEXTS[which], ChainBackend), name)
    ]
    return pytest.mark.parametrize(("name", "backend"), pairs, indirect=["backend"])


ALL = "plain", "cupy-double", *FAST


def inputs_of(backend: Backend, case: Case, dtype: str, layout: str = "C") -> list[Any]:
    """The case's arguments on the backend: new arrays, those that are only read in the given layout."""

    def convert(value: Any, written: bool) -> Any:
        if is_nested(value):
            return rebuilt(value, [convert(part, written) for part in value])
        if value is DTYPE:
            return np.dtype(dtype)
        if isinstance(value, np.ndarray):
            value = backend.from_host(value.astype(dtype) if value.dtype.kind == "f" else value.copy())
            if not written and value.ndim:
                value = LAYOUTS[layout](value, backend.xp)
        return value

    return [convert(value, i < case.written) for i, value in enumerate(case.arguments)]


def is_nested(value: Any) -> bool:
    """Whether this is a list, a tuple, or one of the nouns of chain.py, and no geometry."""
    return type(value) in (list, tuple) or isinstance(value, Layer | Norm | Source | Statistics)


def rebuilt(value: Any, parts: list[Any]) -> Any:
    """The same kind of thing with other parts."""
    return type(value)(parts) if type(value) in (list, tuple) else type(value)(*parts)


def flat(values: Iterable[Any]) -> list[Any]:
    """The values, with those of what is nested in their place."""
    return [part for value in values for part in (flat(value) if is_nested(value) else [value])]


def results_of(backend: Backend, case: Case, arguments: list[Any]) -> list[Any]:
    """The arrays that the kernel returns, or for an in-place kernel those that it writes."""
    result = getattr(backend, case.name)(*arguments)
    if case.written:
        assert result is None, f"{case.name} writes in place and returns nothing"
        return flat(arguments[: case.written])
    return [y for y in result if y is not None] if isinstance(result, tuple) else [result]


def expected_of(case: Case, dtype: str) -> tuple[list[np.ndarray], list[float]]:
    """(the specification's results in float64 on these inputs, as they are rounded to dtype; scale of each)."""
    rounded = inputs_of(PLAIN, replace(case, arguments=tuple(inputs_of(PLAIN, case, dtype))), "float64")
    if case.linear:
        sizes = [np.abs(v) if isinstance(v, np.ndarray) else v for v in rounded]
        scales = [float(np.abs(y).max(initial=0)) for y in results_of(PLAIN, case, sizes)]
    results = [np.asarray(y) for y in results_of(PLAIN, case, [_copied(v) for v in rounded])]
    if case.scales is not None:
        scales = list(case.scales)
    elif not case.linear:
        scales = [float(np.abs(y).max(initial=0)) for y in results]
    return results, scales


def _copied(value: Any) -> Any:
    if is_nested(value):
        return rebuilt(value, [_copied(part) for part in value])
    return value.copy() if isinstance(value, np.ndarray) else value


def tolerance(terms: int, dtype: str) -> float:
    """Relative to the sum of magnitudes; the module's docstring says why."""
    bound = 4 * float(np.finfo(dtype).eps) * math.sqrt(max(terms, 1))
    assert dtype == "float32" or bound <= 1e-12
    return bound if dtype == "float32" else 1e-12


def compare(backend: Backend, case: Case, dtype: str, layout: str = "C") -> list[np.ndarray]:
    """Run the kernel, check everything that can be seen from one call, and return its results on the host."""
    arguments = inputs_of(backend, case, dtype, layout)
    read = [a for a in flat(arguments[case.written :]) if hasattr(a, "dtype")]
    before = [backend.to_host(a).copy() for a in read]
    results = results_of(backend, case, arguments)
    for a, host in zip(read, before, strict=True):
        assert (backend.to_host(a) == host).all(), f"{case.name} changed an input"
    found = [np.array(backend.to_host(y) if getattr(y, "shape", ()) else y.item()) for y in results]
    dtypes = [y.dtype for y in results]
    if not case.written:  # nothing that is returned may share memory with an input
        for a in read:
            a[...] = 77
        for y, host in zip(results, found, strict=True):
            now = backend.to_host(y) if getattr(y, "shape", ()) else y.item()
            assert np.array_equal(now, host, equal_nan=True), f"{case.name} returns a view of an input"
    expected, scales = expected_of(case, dtype)
    bound = tolerance(case.terms, dtype)
    shapes = [getattr(x, "shape", x) for x in flat(case.arguments)]
    for i, (y, wanted, scale) in enumerate(zip(found, expected, scales, strict=True)):
        what = f"{case.name}{shapes}, result {i}, {dtype}, layout {layout}"
        assert y.shape == wanted.shape, what
        assert dtypes[i] == (dtype if wanted.dtype.kind == "f" else wanted.dtype), what
        error = float(np.abs(y - wanted).max(initial=0))
        assert error <= bound * scale, f"{what}: error {error:.2e} but at most {bound * scale:.2e}"
    return found


@each_kernel(*ON_THREADS)
def test_kernel_equals_the_specification_in_a_training(backend: Backend, name: str) -> None:
    """Where each sum over a batch is that of its shards."""
    with strictly():
        for N in (1, 3, 8):
            for case in INPUTS[name](rng(name, N), N):
                compare(backend, case, "float32")


@each_kernel(*ALL)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_kernel_equals_the_specification(backend: Backend, name: str, dtype: str) -> None:
    for N in SIZES if dtype == "float32" else SIZES[-1:]:
        for case in INPUTS[name](rng(name, N), N):
            compare(backend, case, dtype)


@each_kernel(*BACKENDS)
def test_kernel_equals_the_specification_on_drawn_shapes(
    backend: Backend, name: str, campaign: Campaign, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other geometries, channels, shapes, batches, dtypes and layouts than those of the table."""
    wanted, done, number = campaign.count(1, 1000 if backend.on_host else 3500), 0, 0
    here = sys.modules[__name__]
    while done < wanted:
        r = campaign.rng(name, number)
        number += 1
        shapes = [tuple(int(n) for n in r.integers(1, 9, r.integers(1, 4))) for _ in range(3)]
        monkeypatch.setattr(here, "GEOMETRIES", [random_geometry(r)])
        monkeypatch.setattr(here, "CHANNELS", [tuple(int(n) for n in np.exp2(r.uniform(0, 5.3, 2)))])
        monkeypatch.setattr(here, "_shapes", lambda N, shapes=shapes: [(N, *shape) for shape in shapes])
        dtype, layout = r.choice(["float32", "float64"]), r.choice(list(LAYOUTS))
        for case in INPUTS[name](r, int(r.integers(1, 12))):
            compare(backend, case, str(dtype), str(layout))
            done += 1
    which = request.node.callspec.params["backend"]
    campaign.survived(f"kernel calls of drawn shapes against the specification ({which})", done)


@each_kernel(*ALL)
def test_kernel_takes_any_layout(backend: Backend, name: str) -> None:
    """All that a CUDA kernel does is to copy: there each case has one layout in turn."""
    layouts = [layout for layout in LAYOUTS if layout != "C"]
    for i, case in enumerate(INPUTS[name](rng(name, "layout"), 4)):
        for layout in [layouts[i % len(layouts)]] if isinstance(backend, cuda.CudaBackend) else layouts:
            compare(backend, case, "float32", layout)


def small_blocks(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU kernels take one image at a time, and little work for each thread, and two blocks of CUDA threads
    everything, in large tiles."""
    if isinstance(backend, cuda.CudaBackend):
        monkeypatch.setattr(cuda, "MOST_BLOCKS", 2)
        monkeypatch.setattr(cuda, "FILL", 1)
        return
    if hasattr(backend, "layers"):
        monkeypatch.setattr(backend.layers, "block_bytes", 1)
        monkeypatch.setattr(backend.passes, "function_numbers", 4)
    monkeypatch.setattr(cpu, "PASS_BYTES", 1)
    monkeypatch.setattr(cpu, "FUNCTION_NUMBERS", 4)
    monkeypatch.setattr(cpu, "MATMUL_PRODUCTS", 1)
    if "minigrad.backend.cpu.numba_kernels" in sys.modules:
        monkeypatch.setattr("minigrad.backend.cpu.numba_kernels.FUNCTION_NUMBERS", 4)


@each_kernel(*FAST)
def test_kernel_works_in_blocks_of_one_image(backend: Backend, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast kernels cut a batch into blocks; small ones show errors at their borders."""
    small_blocks(backend, monkeypatch)
    for case in INPUTS[name](rng(name, "blocks"), 7):
        compare(backend, case, "float64")


@each_kernel(*ALL)
def test_kernel_gives_the_same_bits_twice_in_memory_of_its_own(backend: Backend, name: str) -> None:
    cases = list(INPUTS[name](rng(name, "twice"), 7))
    others = list(INPUTS[name](rng(name, "others"), 7))
    for case, other in zip(cases, others, strict=True):
        first = results_of(backend, case, inputs_of(backend, case, "float32"))
        bits = [_bits(backend, y) for y in first]
        results_of(backend, other, inputs_of(backend, other, "float32"))
        assert [_bits(backend, y) for y in first] == bits, f"{name}: a later call changed an earlier result"
        again = results_of(backend, case, inputs_of(backend, case, "float32"))
        assert [_bits(backend, y) for y in again] == bits, f"{name}: the same call gave other bits"


def _bits(backend: Backend, y: Any) -> bytes:
    return np.ascontiguousarray(backend.to_host(y)).tobytes()


class Schedule:
    """Stands in for a worker: runs its shard before the first one (`early`), or after it, the last worker first."""

    def __init__(self, early: bool) -> None:
        self.early = early
        self.waiting: list[Callable[[], None]] = []

    def submit(self, job: Callable[[], None]) -> Callable[[], None]:
        if self.early:
            job()
        else:
            self.waiting.append(job)
        return self.wait

    def wait(self) -> None:
        while self.waiting:
            self.waiting.pop()()


@each_kernel(*ON_THREADS)
def test_results_do_not_depend_on_timing(backend: Backend, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever thread ends first, the bits are the same: in float64 another order of a sum would show."""
    small_blocks(backend, monkeypatch)
    for case in INPUTS[name](rng(name, "timing"), 7):
        bits = set()
        real = backend.pool._workers
        for workers in (real, [Schedule(early=True)] * 9, [Schedule(early=False)] * 9):
            backend.pool._workers = workers
            bits.add(
                b"".join(_bits(backend, y) for y in results_of(backend, case, inputs_of(backend, case, "float64")))
            )
        backend.pool._workers = real
        assert len(bits) == 1, f"{name}: the result depends on the order in which threads work"


@each_kernel(*ON_THREADS)
def test_results_do_not_depend_on_the_number_of_threads(
    name: str, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch is cut into the same shards on any of them."""
    kernels = backend.kernels
    for N in (7, 19):
        for case in INPUTS[name](rng(name, "threads"), N):
            bits = set()
            for threads in (1, 2, 3, 8):
                backend = minigrad.use(kernels=kernels, threads=threads)
                small_blocks(backend, monkeypatch)
                results = results_of(backend, case, inputs_of(backend, case, "float32"))
                bits.add(b"".join(_bits(backend, y) for y in results))
            assert len(bits) == 1, f"{name}: the result depends on the number of threads"


def test_gradients_are_added_where_they_are(backend: Backend) -> None:
    """Also to arrays that are parts of others, of two dtypes, and from any layout."""
    wide = [backend.from_host(np.zeros((4, 6), dtype)) for dtype in ("float32", "float32", "float64")]
    totals = [wide[0][:, ::2], wide[1][1:3], wide[2].T]
    values = [np.arange(total.size, dtype=str(total.dtype)).reshape(total.shape) for total in totals]
    backend.add_all_(totals, [backend.from_host(value) for value in values])
    backend.add_all_(totals[:1], [backend.from_host(values[0].T.copy()).T])
    for total, value, times in zip(totals, values, (2, 1, 1), strict=True):
        np.testing.assert_array_equal(backend.to_host(total), times * value)
    assert sum(float(backend.to_host(x).sum()) for x in wide) == sum(map(np.sum, values)) + values[0].sum()


def test_kernels_take_broadcast_gradients(backend: Backend) -> None:
    """The gradient of a sum is one number seen everywhere: strides 0, and read-only on the CPU."""
    g, r, xp = GEOMETRIES[1], rng("broadcast"), backend.xp
    x, weight = r.normal(size=(4, 7, 6, 3)), r.normal(size=(3, 3, 3, 5))
    y = r.normal(size=(4, *g.output_size, 5))
    for name, gy_shape, make in (
        ("conv2d_grad_input", y.shape, lambda gy: (gy, weight, g)),
        ("conv2d_grad_weight", y.shape, lambda gy: (x, gy, g)),
        ("relu_grad", y.shape, lambda gy: (gy, y)),
        ("channel_sum", y.shape, lambda gy: (gy,)),
        ("batch_norm_grad", y.shape, lambda gy: (gy, y, np.ones(5), *_statistics(y), 1e-3)),
    ):
        number = np.full((1, 1, 1, 1), 1.5)
        wanted = getattr(PLAIN, name)(*make(np.full(gy_shape, 1.5)))
        arguments = [backend.from_host(a) if isinstance(a, np.ndarray) else a for a in make(number)]
        arguments = [xp.broadcast_to(a, gy_shape) if getattr(a, "shape", 0) == (1, 1, 1, 1) else a for a in arguments]
        found = getattr(backend, name)(*arguments)
        pairs = zip(found, wanted, strict=True) if isinstance(found, tuple) else [(found, wanted)]
        for a, b in pairs:
            assert np.abs(backend.to_host(a) - b).max() <= 1e-12 * 50, name


def test_kernels_may_run_on_several_python_threads(backend: Backend) -> None:
    """Two training threads share a backend; scratch of one must not reach the other."""
    if not backend.on_host:
        pytest.skip("one stream")
    cases = [case for i in range(4) for case in INPUTS["conv2d_grad_input"](rng("parallel", i), 7)]
    alone = [_bits(backend, results_of(backend, c, inputs_of(backend, c, "float32"))[0]) for c in cases]

    def run(case: Case) -> bytes:
        return _bits(backend, results_of(backend, case, inputs_of(backend, case, "float32"))[0])

    with ThreadPoolExecutor(4) as executor:
        assert list(executor.map(run, cases)) == alone


def test_sums_over_rows_do_not_lose_more_with_more_rows(backend: Backend) -> None:
    """At most 512 rows are added in float32. Equal numbers are rounded the same way each time, so errors would add up:
    a float32 sum of the sums of 512 each would be off by some 300 eps here."""
    x = np.tile(np.float32([0.1, 0.7, 1.3, 2.3]), (2**11, 2**10, 1))
    exact = x.reshape(-1, 4).sum(axis=0, dtype=np.float64)
    images, zeros = backend.from_host(x), backend.from_host(np.zeros(4, np.float32))
    mean, variance = backend.moments(images)
    bound = tolerance(512, "float32")
    for found, wanted in (
        (backend.channel_sum(images), exact),
        (backend.batch_norm_sums(images, images, zeros)[0], exact),
        (mean, exact / 2**21),
    ):
        np.testing.assert_allclose(backend.to_host(found), wanted, rtol=bound)
    assert (backend.to_host(variance) >= 0).all()
    assert (backend.to_host(variance) <= (np.finfo("float32").eps * x[0, 0]) ** 2).all()


@pytest.mark.parametrize(("offset", "dtype"), [(0, "float32"), (3, "float32"), (0, "float64")])
def test_statistics_keep_their_digits_when_the_mean_is_large(backend: Backend, offset: int, dtype: str) -> None:
    """Means 1,000 deviations away: a variance as E[x^2] - E[x]^2 in float32 would be off by a factor of 100.

    4 eps is the bound that the project promises; the truth is that of the float32 numbers, in float64. Sums of squares
    may be shifted by the mean of the first image: if that lies `offset` away, they are larger than the variance needs,
    and so are their roundings, 1 + (offset / deviation)^2 times. In float64 the sums themselves are rounded, too.
    """
    r, C = rng("far"), 8
    x = (1000 + r.normal(size=(24, 28, 28, C)) * np.linspace(0.5, 2, C)).astype(dtype)
    x[0] += offset
    truth = x.reshape(-1, C).astype(np.float64)
    ones, zeros = np.ones(C, dtype), np.zeros(C, dtype)
    g = conv_geometry((28, 28), (1, 1), 1, 0)
    identity = np.eye(C, dtype=dtype).reshape(1, 1, C, C)  # so that `active` is x
    bound = 4 * np.finfo(dtype).eps * (1 if dtype == "float32" else math.sqrt(len(truth)))
    *arrays, gamma, beta = (backend.from_host(a) for a in (x, identity, zeros, ones, zeros))
    images, weight, bias = arrays
    for mean, variance in (
        backend.batch_norm(images, gamma, beta, 1e-3)[1:],
        backend.moments(images),
        backend.conv_layer(Source(images), Layer(weight, bias, g, False), Norm(gamma, beta, 1e-3))[1:3],
        backend.conv_layer(Source(images), Layer(weight, bias, g, True), Norm(gamma, beta, 1e-3))[1:3],
    ):
        errors = np.abs(backend.to_host(variance) / truth.var(axis=0) - 1)
        np.testing.assert_allclose(backend.to_host(mean), truth.mean(axis=0), rtol=bound)
        assert (errors <= bound * (1 + offset**2 / truth.var(axis=0))).all()


# ---- convolution over random geometries ----


def random_geometry(r: np.random.Generator, kernels: tuple[int, int] = (1, 5), strides: int = 4) -> ConvGeometry:
    """Kernels 1 to 5, strides 1 to 4, sides 1 to 12, every kind of padding."""
    while True:
        size = tuple(int(v) for v in r.integers(1, 13, 2))
        kernel = tuple(int(v) for v in r.integers(kernels[0], kernels[1] + 1, 2))
        stride = tuple(int(v) for v in r.integers(1, strides + 1, 2))
        pair = tuple(int(v) for v in r.integers(0, 4, 2))
        padding = ("same", "valid", pair[0], pair)[r.integers(4)]
        if padding == "same" or all(H + 2 * 3 * (padding != "valid") >= K for H, K in zip(size, kernel, strict=True)):
            try:
                return conv_geometry(size, kernel, stride, padding)  # type: ignore[arg-type]
            except ValueError:  # the kernel exceeds the padded input
                continue


@pytest.mark.parametrize("block", ["one image", "default"])
def test_convolutions_over_random_geometries(backend: Backend, block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU kernels work in blocks of images; blocks of one image show errors at their borders."""
    if block == "one image":
        if type(backend) is ChainBackend:
            pytest.skip("the plain kernels have no blocks")
        small_blocks(backend, monkeypatch)
    r = rng("geometries", block)
    larger_stride, count = 0, 60 if isinstance(backend, cuda.CudaBackend) else 200  # the emulator is slow
    for i in range(count):
        wide = i % 4 == 3  # some channels more than two vectors
        g = random_geometry(r, (3, 3), 2) if wide else random_geometry(r)
        larger_stride += any(S > K for S, K in zip(g.stride, g.kernel_size, strict=True))
        N, (C, F) = int(r.integers(1, 6)), (int(v) for v in r.integers(1, 10, 2))
        C, F = (1 if i % 10 == 0 else C), (1 if i % 10 == 5 else F)
        if wide:
            C, F = C + 31, F + 31
        for name, case in conv_cases(r, N, g, C, F).items():
            case = case if i % 2 or name != "conv2d" else without_bias(case)
            compare(backend, case, "float32" if i % 3 == 0 else "float64")
    assert larger_stride > count / 10


@pytest.mark.parametrize("stride", [1, 2])
def test_nan_reaches_the_outputs_that_it_reaches_in_the_specification(backend: Backend, stride: int) -> None:
    g, r = conv_geometry((8, 8), (3, 3), stride, "same"), rng("nan", stride)
    weight = r.normal(size=(3, 3, 32, 32))
    kernels = ("conv2d", g.input_size, (weight, None, g)), ("conv2d_grad_input", g.output_size, (weight, g))
    for name, size, more in kernels:
        for pixel in np.ndindex(size):
            x = r.normal(size=(1, *size, 32))
            x[(0, *pixel)] = np.nan
            wanted = np.isnan(getattr(PLAIN, name)(x, *more))
            case = Case(name, (x, *more))
            (found,) = results_of(backend, case, inputs_of(backend, case, "float32"))
            np.testing.assert_array_equal(np.isnan(backend.to_host(found)), wanted, f"{name}, NaN at {pixel}")


def test_scratch_of_one_geometry_does_not_reach_another(backend: Backend) -> None:
    """Large, small, large again, with NaN in between: borders that are never written stay zero. The last two geometries
    have padded images of one size, and other borders."""
    r = rng("scratch")
    for i in range(44):
        g = GEOMETRIES[int(r.integers(len(GEOMETRIES)))]
        if i >= 40:
            g = conv_geometry((6, 5), (3, 4), 1, "same") if i in (40, 43) else conv_geometry((5, 6), (4, 3), 1, "same")
        C, F = CHANNELS[int(r.integers(len(CHANNELS)))]
        N = int(r.integers(1, 8)) if i < 40 else 3
        C, F = (C, F) if i < 40 else (5, 6)
        for case in conv_cases(r, N, g, C, F).values():
            if i % 2 == (i < 40):
                nan = tuple(a * np.nan if isinstance(a, np.ndarray) else a for a in case.arguments)
                results_of(backend, case, inputs_of(backend, replace(case, arguments=nan), "float64"))
            else:
                compare(backend, case, "float64")


@each_kernel(*FAST)
def test_what_is_not_finite_shows_in_what_depends_on_it(backend: Backend, name: str, monkeypatch: Any) -> None:
    """A training that diverges is noticed because NaN and infinity stay. One number of an input is not finite: where
    the specification gives NaN for NaN, there is NaN; where it gives infinity for infinity, nothing finite; and for NaN
    in the first input, finite numbers where it gives those, but in gradients of weights.

    Winograd's sums of inputs reach more of these, and make NaN of infinity. A kernel that skips the zeros around an
    image reaches less: so a result depends on a number only if it changes with it.
    """
    small_blocks(backend, monkeypatch)
    seen = 0
    for i, case in enumerate(INPUTS[name](rng(name, "not finite"), 3)):
        r, arguments = rng(name, "not finite", i), flat(case.arguments)
        places = [k for k, x in enumerate(arguments) if isinstance(x, np.ndarray) and x.dtype.kind == "f" and x.size]
        for place in {*places[:1], *r.permutation(places)[:3]}:
            index = tuple(int(r.integers(n)) for n in arguments[place].shape)
            bad = float(r.choice([np.nan, np.nan, np.inf, -np.inf]))
            with np.errstate(all="ignore"):
                wanted = _with_number(PLAIN, case, place, index, bad)
                few, many = (_with_number(PLAIN, case, place, index, number) for number in (1e3, -2e3))
                found = _with_number(backend, case, place, index, bad)
            for j, (y, right, a, b) in enumerate(zip(found, wanted, few, many, strict=True)):
                what = f"{name}, case {i}: result {j} for {bad} at {index} of argument {place}"
                kept = np.isnan if np.isnan(bad) else np.isinf
                depends = (a != b) & kept(right)
                assert not np.isfinite(y[depends]).any(), what
                assert not np.isnan(bad) or np.isnan(y[depends]).all(), what
                seen += int(depends.sum())
                spreads = name == "conv2d_grad_weight" or (name == "conv_layer_grad" and j)
                if place == 0 and np.isnan(bad) and not spreads:
                    np.testing.assert_array_equal(np.isfinite(y), np.isfinite(right), what)
    assert seen > 0 or name == "unit_range", "no result depends on an input"


def _with_number(backend: Backend, case: Case, place: int, index: tuple[int, ...], number: float) -> list[np.ndarray]:
    """The results in float32 on the host, with the number put into the argument at this place."""
    arguments = [_copied(value) for value in case.arguments]
    flat(arguments)[place][index] = number
    if case.name == "conv_layer_grad" and arguments[3].previous:
        arguments[3].previous.mean[...] = arguments[3].rows[0]  # the same mean, given twice
    changed = replace(case, arguments=tuple(arguments))
    results = results_of(backend, changed, inputs_of(backend, changed, "float32"))
    return [np.array(backend.to_host(y) if getattr(y, "shape", ()) else y.item()) for y in results]


@NEEDS_NUMBA
def test_no_loop_is_compiled_for_finite_numbers_only() -> None:
    """LLVM's flags `nnan`, `ninf` and `fast` let a compiler drop what is not finite, on some machines."""
    importlib.import_module("minigrad.backend.cpu.numba_kernels")
    modules = [module for name, module in sys.modules.items() if name.startswith("minigrad.")]
    loops = {x for module in modules for x in vars(module).values() if hasattr(x, "targetoptions")}
    assert len(loops) > 10
    for loop in loops:
        flags = loop.targetoptions.get("fastmath", set())
        assert isinstance(flags, set | frozenset), loop
        assert flags <= {"contract", "reassoc"}, loop


@NEEDS_NUMBA
def test_all_loops_are_compiled_before_the_first_step(restored_backends: None) -> None:
    """`prepare` names the types of all arguments: with others, a loop would be compiled in the middle of a training."""
    backend = minigrad.use(kernels="numba", threads=3)
    loops = importlib.import_module("minigrad.backend.cpu.layer_loops")
    for dtype in ("float32", "float64"):
        backend.prepare(np.dtype(dtype))
        for layout in ("C", "F"):
            for name in INPUTS:
                for case in list(INPUTS[name](rng(name, "compiled"), 3))[-9:]:
                    results_of(backend, case, inputs_of(backend, case, dtype, layout))
    for loop, _ in loops._examples(np.ones):
        # the optimiser's arrays, which are contiguous in a model, are not in other tests
        rows = [any((getattr(x, "ndim", 0), getattr(x, "layout", "")) == (1, "A") for x in s) for s in loop.signatures]
        single = [*vars(loops.function_loops).values(), *vars(loops.team).values()]
        dtypes = 1 if loop in single else 2  # those are for float32 only, or have no dtype
        assert rows.count(False) == dtypes, loop


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_clipping_passes_on_what_is_not_finite(backend: Backend, bad: float) -> None:
    """A NaN makes all gradients NaN; an infinite one becomes NaN and those beside it 0."""
    tensor = minigrad.Tensor(backend.from_host(np.zeros(4, np.float32)), requires_grad=True)
    optimizer = minigrad.optim.SGD([tensor], 0.1)
    tensor.grad += backend.from_host(np.array([1, bad, 2, 3], np.float32))
    with np.errstate(invalid="ignore"):
        norm = minigrad.optim.clip_grad_norm(optimizer, 1.0)
    np.testing.assert_array_equal(backend.to_host(norm), [abs(bad)])
    clipped = [np.nan] * 4 if np.isnan(bad) else [0, np.nan, 0, 0]
    np.testing.assert_array_equal(backend.to_host(tensor.grad), clipped)


@pytest.mark.parametrize("name", ["relu", "relu_grad", "sigmoid", "softplus", "add_bias", "channel_sum"])
def test_numbers_that_are_not_finite_pass_as_in_the_specification(backend: Backend, name: str) -> None:
    """A diverging training must look alike everywhere: NaN, infinities and their neighbours, bit for bit; where exp is
    taken, within 3 roundings (of exp, sum and quotient), because the C library's and NumPy's differ in the last bit."""
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 200.0, -200.0, 3e38], "float32")
    a, b = (np.ascontiguousarray(v) for v in np.meshgrid(special, special, indexing="ij"))  # (10, 10): every pair
    arguments = {"relu_grad": (a, np.maximum(b, 0)), "add_bias": (a, special)}.get(name, (a,))
    with np.errstate(all="ignore"):
        wanted = getattr(PLAIN, name)(*arguments)
        found = backend.to_host(getattr(backend, name)(*(backend.from_host(v) for v in arguments)))
    rounding = 3 * np.finfo("float32").eps if name in ("sigmoid", "softplus") else 0
    np.testing.assert_allclose(found, wanted, rtol=rounding, atol=0)


@NEEDS_NUMBA
def test_compiled_functions_are_exact_to_a_few_roundings_for_all_numbers():
    """Against NumPy in float64, by other formulas; also where results are smaller than the smallest normal number."""
    loops = importlib.import_module("minigrad.backend.cpu.function_loops")
    small = np.logspace(-30, 0, 3001)
    x = np.concatenate([np.linspace(-120, 120, 200_001), small, -small]).astype(np.float32)
    y, exact = np.empty_like(x), x.astype(np.float64)
    loops.sigmoid(x, y)
    np.testing.assert_allclose(y, (1 + np.tanh(exact / 2)) / 2, rtol=0, atol=2e-7)
    np.testing.assert_allclose(y, np.exp(-np.logaddexp(0, -exact)), rtol=2.5e-7, atol=3e-45)
    for target in (0, 1):
        loops.bernoulli_nll(x, np.full_like(x, target), y)
        np.testing.assert_allclose(y, np.logaddexp(0, exact * (1 - 2 * target)), rtol=2.5e-7, atol=3e-45)


@NEEDS_NUMBA
def test_a_damaged_cache_of_numba_is_told_of_and_not_used(tmp_path, monkeypatch, caplog):
    numba, loops = importlib.import_module("numba"), importlib.import_module("minigrad.backend.cpu.layer_loops")
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")  # whatever NUMBA_CACHE_DIR says
    text = "from minigrad.backend.cpu.compiling import compiled\n@compiled\ndef twice(x):\n    return 2 * x\n"
    (tmp_path / "twice_of.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    modules = loops, loops.function_loops, loops.micro_kernels, loops.row_loops
    for loop in {x for module in modules for x in vars(module).values() if hasattr(x, "_cache")}:
        monkeypatch.setattr(loop, "_cache", loop._cache)  # kept for the other tests
    for damage in (b"", b"random bytes", None):
        monkeypatch.delitem(sys.modules, "twice_of", raising=False)
        twice = importlib.import_module("twice_of").twice
        monkeypatch.setattr(loops, "twice", twice, raising=False)
        if damage is None:

            def full(*_):
                raise OSError(28, "No space left on device")

            monkeypatch.setattr(twice._cache, "save_overload", full)
        elif not list(tmp_path.rglob("*.nbi")):
            twice(1.0)
            assert twice.stats.cache_misses
            monkeypatch.delitem(sys.modules, "twice_of")
            twice = importlib.import_module("twice_of").twice
            monkeypatch.setattr(loops, "twice", twice)
        for path in tmp_path.rglob("*.nbi"):
            path.unlink() if damage is None else path.write_bytes(damage)
        monkeypatch.setattr(loops, "_examples", lambda *_, twice=twice: [(twice, (1.0,))])
        caplog.clear()
        loops.prepare("float64")
        (told,) = caplog.messages
        assert told.startswith("minigrad: Numba's cache fails (")
        assert told.endswith(f"delete the folder {tmp_path / '__pycache__'}")
        assert twice(3.0) == 6.0


@NEEDS_NUMBA
def test_a_missing_folder_for_numbas_cache_is_told_of(tmp_path, monkeypatch, caplog):
    numba, loops = importlib.import_module("numba"), importlib.import_module("minigrad.backend.cpu.layer_loops")
    for cached in (True, False):
        if not cached:
            njit = numba.njit

            def without(loop, *, cache=False, njit=njit, **options):
                if cache:
                    raise RuntimeError("cannot cache function: no locator available")
                return njit(loop, **options)

            monkeypatch.setattr(numba, "njit", without)
        (tmp_path / f"thrice_{cached}.py").write_text(
            "from minigrad.backend.cpu.compiling import compiled\n@compiled\ndef thrice(x):\n    return 3 * x\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        thrice = importlib.import_module(f"thrice_{cached}").thrice
        monkeypatch.setattr(loops, "_examples", lambda *_, thrice=thrice: [(thrice, (1.0,))])
        loops.prepare("float64")
        often = "once on this machine" if cached else "in every process, because Numba has no cache folder; set NUMBA"
        (told,) = caplog.messages
        assert told.startswith(f"minigrad: compiling the numba kernels for float64 (15 s), {often}")
        caplog.clear()


@NEEDS_NUMBA
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("float64", 1e-14)])
def test_the_compiled_product_for_every_size_of_its_tiles(dtype: str, bound: float) -> None:
    """Rows and columns around the sizes of tiles and vectors. Rows of all three matrices lie in any order, and nothing
    is written beside those of the result."""
    micro_kernels = importlib.import_module("minigrad.backend.cpu.micro_kernels")
    most, r = 2 * micro_kernels.VECTOR // np.dtype(dtype).itemsize, rng("tiles")
    for M in range(1, 2 * micro_kernels.ROWS[0] + 2):
        for N in {1, 2, 3, most // 2 - 1, most // 2, most // 2 + 1, most - 1, most}:
            K = int(r.choice([0, 1, 2, 7, 64, 300]))
            a, b = r.normal(size=(2 * M, 3 * K)).astype(dtype), r.normal(size=(2 * K + 1, most + 5)).astype(dtype)
            rows, columns, b_rows, c_rows = (r.permutation(size) for size in (2 * M, 3 * K, 2 * K, M))
            turns = np.zeros((K + 1, 2), np.int64)
            turns[:K] = np.stack([columns[:K], b_rows[:K] * b.shape[1]], axis=1)
            chosen = a[rows[:M]][:, columns[:K]].astype("float64"), b[b_rows[:K], :N].astype("float64")
            for add in (False, True):
                c = np.full((M, N + 7), 3, dtype)
                arguments = rows[:M] * 3 * K, turns[:K], b.ctypes.data, c.reshape(-1), c_rows * (N + 7)
                micro_kernels.tiles(a.ctypes.data, *arguments, 4, N, add)
                wanted = chosen[0] @ chosen[1] + 3 * add
                terms = np.abs(chosen[0]) @ np.abs(chosen[1]) + 3
                assert (np.abs(c[c_rows, 4 : 4 + N] - wanted) <= bound * terms).all(), (M, N, K, add)
                assert (np.delete(c, range(4, 4 + N), axis=1) == 3).all(), (M, N, K, add)


@NEEDS_NUMBA
@pytest.mark.parametrize("framed", [True, False])
def test_compiled_convolutions_with_and_without_a_frame(framed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sizes of tables and tiles decide whether a convolution has one; here all have one, or none."""
    direct, backend, r = importlib.import_module("minigrad.backend.cpu.direct"), BACKENDS["numba-3"](), rng("frames")
    monkeypatch.setattr(direct, "MOST_TURNS", -1 if framed else 1 << 30)
    monkeypatch.setattr(direct, "FEW_CHANNELS", 0)
    plans = direct.direct, direct.weight_sums, direct.chained
    try:
        for plan in plans:
            plan.cache_clear()
        for i in range(100):
            g = random_geometry(r, (1, 9)) if i % 2 else random_geometry(r, (3, 3), 2)
            C, F = (int(v) for v in r.integers(1, 10, 2) + 31 * (i % 3 == 0))
            for case in conv_cases(r, int(r.integers(1, 6)), g, C, F).values():
                compare(backend, case, "float64")
    finally:
        for plan in plans:
            plan.cache_clear()


@NEEDS_NUMBA
@pytest.mark.parametrize("side", [1, 4, 28, 64])
@pytest.mark.parametrize("kernel", [1, 3, 11, 31, 64])
@pytest.mark.parametrize(("C", "F"), [(1, 1), (3, 64), (64, 64), (64, 3)])
def test_compiled_convolutions_plan_with_tables_no_larger_than_their_arrays(
    side: int, kernel: int, C: int, F: int
) -> None:
    """Also where a kernel is as large as the image, and each pixel has other taps inside it."""
    direct, block, pair = importlib.import_module("minigrad.backend.cpu.direct"), 1 << 17, 16  # bytes
    g, shape = conv_geometry((side, side), (kernel, kernel), 1, "same"), (kernel, kernel, C, F)
    taps = kernel**2 * max(C, F, 16)
    for plan in (direct.direct(back, g, shape, block, 32) for back in (False, True)):
        assert plan.images == 1 or plan.images * plan.padded <= block
        most = plan.images * side**2 + taps + direct.MOST_TURNS
        assert plan.pixels.nbytes + plan.turns.nbytes <= pair * most
    plan = direct.weight_sums(g, shape, block)
    assert plan.images == 1 or plan.images * plan.padded <= block
    assert plan.rows.nbytes + plan.turns.nbytes <= pair * (plan.images * side**2 + taps + direct.MOST_TURNS)


@NEEDS_NUMBA
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("float64", 1e-14)])
def test_the_compiled_dot_products_for_every_number_of_rows(dtype: str, bound: float) -> None:
    micro_kernels = importlib.import_module("minigrad.backend.cpu.micro_kernels")
    vector, r = micro_kernels.VECTOR // np.dtype(dtype).itemsize, rng("dots")
    for M in range(1, 2 * micro_kernels.DOT_ROWS + 2):
        for K in (1, 2, 9, 40):  # vectors
            a, b = (r.normal(size=(size, 2 * K, vector)).astype(dtype) for size in (M, 1))
            columns, b_rows = r.permutation(2 * K), r.permutation(2 * K)
            turns = np.zeros((K + 1, 2), np.int64)
            turns[:K] = np.stack([columns[:K], b_rows[:K]], axis=1) * vector
            c, c_rows = np.full(3 * M, 3, dtype), 3 * r.permutation(M)
            places = c.ctypes.data, c_rows, np.dtype(dtype).type(1)
            micro_kernels.dots(a.ctypes.data, np.arange(M) * a[0].size, turns[:K], b.ctypes.data, *places)
            products = a[:, columns[:K]].astype("float64") * b[:, b_rows[:K]]
            wanted, terms = (numbers.sum(axis=(1, 2)) for numbers in (products, np.abs(products)))
            assert (np.abs(c[c_rows] - wanted) <= bound * terms).all(), (M, K)
            assert (np.delete(c, c_rows) == 3).all(), (M, K)
