"""The fault campaign, part 3: every operation on drawn shapes and memory layouts, in float32 and float64.

Values against loops, gradients against PyTorch where it is installed; the accuracy of the transcendental functions over
the whole float32 range; what comes of NaN and infinity, against PyTorch.
"""

from __future__ import annotations

import math
import traceback
import zlib
from collections.abc import Callable
from typing import Any

import naive
import numpy as np
import pytest
from drawn_cases import DRAWN
from faults import Campaign
from hypothesis import HealthCheck, given, seed, settings, strategies as st
from kernel_sets import BACKENDS, CPU_KERNELS
from op_cases import INTEGER, Case
from test_backends import LAYOUTS
from test_ops import F32, F64, LINEAR, check_close

import minigrad
from minigrad import Backend, Tensor, ops
from minigrad.backend.chain import ChainBackend

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
SUMS = {case.op for case in LINEAR}
OPERATIONS = [op for op in ops.__all__ if op not in INTEGER]


def laid(x: np.ndarray, layout: str, backend: Backend) -> Any:
    """The array on the backend in one of the LAYOUTS; a single number has one only."""
    there = backend.from_host(x)
    return LAYOUTS[layout](there, backend.xp) if x.ndim else there


def terms(case: Case) -> int:
    """How many products or numbers are added up to one number of the result."""
    x, *weight = case.shapes
    if case.op in ("sum", "mean"):
        return math.prod(x)
    if case.op in ("conv2d", "conv2d_transpose"):
        KH, KW, *_ = weight[0]
        return KH * KW * x[3]
    return x[-1]


def drawn(campaign: Campaign, op: str, count: int, check: Callable[[Case, np.dtype, str], None]) -> tuple[int, int]:
    """Run a check on so many drawn calls of an operation in either precision; Hypothesis shrinks one that fails.
    Returns (the number of both, in how many of the precisions one has failed)."""

    def run(data: st.DataObject, dtype: np.dtype) -> None:
        check(DRAWN[op](data.draw), dtype, data.draw(st.sampled_from(sorted(LAYOUTS))))

    quiet = settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    failed = 0
    for dtype in (np.dtype("f4"), np.dtype("f8")):
        try:
            seed(campaign.seed)(quiet(given(data=st.data(), dtype=st.just(dtype))(run)))()
        except Exception:
            traceback.print_exc()
            failed += 1
    return 2 * count, failed


@pytest.fixture(params=[*CPU_KERNELS, pytest.param("cuda", marks=pytest.mark.gpu)])
def backend(request: pytest.FixtureRequest, restored_backends: None) -> Backend:
    """Each kernel set once, made the default."""
    if request.param == "cuda":
        return BACKENDS["cuda"]()
    return minigrad.use(kernels=request.param, threads=None if request.param == "plain" else 2)


@pytest.mark.parametrize("op", OPERATIONS)
def test_values_of_drawn_calls(campaign: Campaign, op: str, backend: Backend) -> None:
    def check(case: Case, dtype: np.dtype, layout: str) -> None:
        inputs = [x.astype(dtype) for x in case.inputs()]
        tensors = [Tensor(laid(x, layout, backend)) for x in inputs]
        before = [x.copy() for x in inputs]
        y = case.run(*tensors)
        assert y.dtype == dtype
        expected = case.expected(naive, inputs, str(dtype))
        if op in SUMS and dtype == np.float32:
            magnitudes = case.expected(naive, [np.abs(x) for x in inputs])
            error = np.abs(y.numpy() - expected)
            assert (error <= 4 * 2.0**-23 * math.sqrt(max(terms(case), 1)) * magnitudes).all()
        check_close(y.numpy(), expected, F64 if dtype == np.float64 else F32)
        for x, tensor in zip(before, tensors, strict=True):
            np.testing.assert_array_equal(x, tensor.numpy())

    counts = drawn(campaign, op, campaign.count(3, 100), check)
    campaign.survived(f"values of drawn calls of operations, against loops ({backend.kernels})", *counts)


@pytest.mark.torch
@pytest.mark.parametrize("op", OPERATIONS)
def test_gradients_of_drawn_calls(campaign: Campaign, op: str, backend: Backend) -> None:
    torch = pytest.importorskip("torch")
    from test_torch import Torch, check_close as close

    def check(case: Case, dtype: np.dtype, layout: str) -> None:
        arrays = [x.astype(dtype) for x in case.inputs()]
        mine = [Tensor(laid(x, layout, backend), requires_grad=True) for x in arrays]
        theirs = [torch.tensor(x, requires_grad=True) for x in arrays]
        further = [torch.tensor(x) for x in case.further(str(dtype))]
        y = case.run(*mine)
        z = case.call(Torch, theirs, further)
        relative = 1e-12 if dtype == np.float64 else 1e-5
        close(y.numpy(), z, relative, "value")
        gy = np.random.default_rng(zlib.crc32(str(case).encode())).normal(size=y.shape).astype(dtype)
        y.backward(laid(gy, layout, backend))
        z.backward(torch.tensor(gy))
        largest = max(float(t.grad.abs().max()) if t.grad.numel() else 0.0 for t in theirs)
        for i, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            close(backend.to_host(a.grad), b.grad, relative, f"gradient of input {i}", relative * largest)
        for i, a in enumerate(mine):
            a.grad[...] = i
        for i, a in enumerate(mine):  # none shares memory with another one
            assert (backend.to_host(a.grad) == i).all()

    counts = drawn(campaign, op, campaign.count(3, 100), check)
    campaign.survived(f"gradients of drawn calls of operations, against PyTorch ({backend.kernels})", *counts)


# ---- the whole float32 range ----

EXACT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "tanh": np.tanh,
    "sigmoid": lambda x: np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x)))),
    "softplus": lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
}


@pytest.mark.parametrize("op", EXACT)
def test_accuracy_over_the_whole_float32_range(campaign: Campaign, op: str, backend: Backend) -> None:
    """Every n-th of the 2^32 bit patterns, of all signs and exponents, against float64: 8 roundings, or 2 of the
    smallest normal numbers where the result is smaller than those."""
    count, wrong = inaccurate(op, EXACT[op], campaign.count(65_537, 17), backend)
    what = "float32 numbers, every 17th, through exp, log, sqrt, tanh, sigmoid, softplus: off by more than 8 roundings"
    campaign.survived(f"{what} ({backend.kernels})", count, wrong)


def inaccurate(op: str, exact: Callable[[np.ndarray], np.ndarray], stride: int, backend: Backend) -> tuple[int, int]:
    """(how many numbers were tried, for how many the operation was wrong). stride: odd, so that all low bits come."""
    tiny, eps = float(np.finfo("f4").tiny), float(np.finfo("f4").eps)
    wrong = count = 0
    for block in range(0, 2**32, 2**26):
        bits = np.arange(block + (-block) % stride, block + 2**26, stride, dtype=np.uint64).astype(np.uint32)
        x = bits.view(np.float32)
        x = x[np.isfinite(x)]
        if op in ("log", "sqrt"):  # a GPU takes subnormal numbers for zeros
            x = x[x > 0] if backend.on_host else x[x >= tiny]
        expected = exact(x.astype(np.float64))
        y = getattr(ops, op)(Tensor(backend.from_host(x))).numpy().astype(np.float64)
        top = float(np.finfo("f4").max)
        error = np.abs(y - expected)
        fine = error <= 8 * eps * np.abs(expected) + 2 * tiny
        wrong += int((~np.where(expected > top * (1 - eps), y >= top * (1 - 8 * eps), fine)).sum())
        count += len(x)
    return count, wrong


def _bernoulli(x: float, t: float) -> tuple[float, float]:
    positive, rest = max(x, 0.0), math.log1p(math.exp(-abs(x)))
    if t in (0, 1):  # one of the two products is zero and the other one cancels exactly
        return max(-x if t else x, 0.0) + rest, max(-x if t else x, 0.0) + rest
    return positive - x * t + rest, positive + abs(x * t) + rest


def _gaussian(mean: float, t: float, log_variance: float) -> tuple[float, float]:
    square = (mean - t) ** 2 * math.exp(-log_variance)
    rest = math.log(2 * math.pi)
    return 0.5 * (square + log_variance + rest), 0.5 * (square + abs(log_variance) + rest)


def _categorical(first: float, second: float, label: float) -> tuple[float, float]:
    logits = (first, second)
    most = max(logits)
    total = math.log(sum(math.exp(x - most) for x in logits))
    return most - logits[int(label)] + total, most - logits[int(label)] + 1


def _divergence(mean: float, v: float) -> tuple[float, float]:
    grown = math.expm1(min(v, 700.0))
    return 0.5 * (mean * mean + (grown - v)), 0.5 * (mean * mean + abs(grown) + abs(v))


ANY, SHARE, EXPONENT, LABEL = "any float32", "0 ... 1", "-80 ... 80", "0 or 1"
LOSSES: dict[str, tuple[Callable[..., tuple[float, float]], tuple[str, ...]]] = {
    "mse": (lambda x, t: ((x - t) ** 2, (x - t) ** 2), (ANY, ANY)),
    "bce_with_logits": (_bernoulli, (ANY, SHARE)),
    "gaussian_nll": (_gaussian, (ANY, ANY, EXPONENT)),
    "softmax_cross_entropy": (_categorical, (ANY, ANY, LABEL)),
    "kl_to_standard_normal": (_divergence, (ANY, ANY)),
}
"""From float64 numbers: the loss, and the sum of the magnitudes of its terms. Then what its arguments may be."""


def numbers(kind: str, count: int, rng: np.random.Generator) -> np.ndarray:
    if kind == LABEL:
        return rng.integers(0, 2, count).astype("f4")
    if kind == SHARE:
        grey = rng.integers(0, 256, count) / 255
        return rng.permuted([np.zeros(count), np.ones(count), grey, rng.random(count)], axis=0)[0].astype("f4")
    if kind == EXPONENT:
        return rng.uniform(-80, 80, count).astype("f4")
    x = rng.integers(0, 2**32, count, dtype=np.uint64).astype(np.uint32).view(np.float32)  # all signs and exponents
    return np.where(np.isfinite(x), x, np.float32(1))


@pytest.mark.parametrize("op", LOSSES)
def test_accuracy_of_losses_over_the_whole_float32_range(campaign: Campaign, op: str, backend: Backend) -> None:
    """One number at a time, so that none hides behind a larger one, against float64: 8 roundings of the largest term,
    or 2 of the smallest normal numbers."""
    exact, kinds = LOSSES[op]
    count = campaign.count(500, 30_000, gpu=(500, 5_000))
    rng, top = campaign.rng(op), float(np.finfo("f4").max)
    tiny, eps = float(np.finfo("f4").tiny), float(np.finfo("f4").eps)
    wrong = checked = 0
    for row in zip(*(numbers(kind, count, rng) for kind in kinds), strict=True):
        if op == "gaussian_nll" and not tiny <= (float(row[0]) - float(row[1])) ** 2 <= top:
            continue  # the square is taken before it is scaled
        expected, magnitude = exact(*map(float, row))
        if op == "softmax_cross_entropy":
            arguments = np.array([row[:2]]), np.array([int(row[2])])
        else:
            arguments = tuple(np.array([[x]]) for x in row)
        x, *more = map(backend.from_host, arguments)
        y = getattr(ops, op)(Tensor(x), *more).item()
        if 2 * magnitude > top * (1 - 8 * eps):  # sums are halved at the end, so they may overflow a factor of 2 before
            wrong += not y >= min(expected, top) - 8 * eps * min(magnitude, top)
        else:
            wrong += not abs(y - expected) <= 8 * eps * magnitude + 2 * tiny
        checked += 1
    assert checked >= count / 8
    what = "losses of drawn float32 numbers: off by more than 8 roundings of the largest term"
    campaign.survived(f"{what} ({backend.kernels})", checked, wrong)


# ---- NaN and infinity ----

# Of an infinity PyTorch's formulas, x * a + b for (x - mean) * scale + beta and (1 - target) * logit for
# softplus(logit) - logit * target, make NaN where ours keep it, or the other way round: what is finite is the same.
INFINITIES_MEET = ("batch_norm", "batch_norm_inference", "bce_with_logits", "group_norm")
PRODUCTS = ("conv2d", "conv2d_transpose", "resize_bilinear")  # what is not finite spreads by products with zeros


@pytest.mark.torch
@pytest.mark.parametrize("op", [op for op in OPERATIONS if op not in PRODUCTS])
def test_what_is_not_finite_goes_where_it_goes_in_torch(campaign: Campaign, op: str, backend: Backend) -> None:
    """NaN, infinity and minus infinity planted in the inputs: the results are NaN or infinite at the same places."""
    torch = pytest.importorskip("torch")
    from test_torch import Torch

    planted = []

    def check(case: Case, dtype: np.dtype, _: str) -> None:
        rng = np.random.default_rng(zlib.crc32(f"{case} {campaign.seed}".encode()))
        arrays = [x.astype(dtype) for x in case.inputs()]
        for x in arrays:
            if x.size:
                x.flat[rng.integers(x.size)] = rng.choice([np.nan, np.inf, -np.inf])
        planted.append(any(x.size for x in arrays))
        further = [torch.tensor(x) for x in case.further(str(dtype))]
        with np.errstate(all="ignore"):
            y = case.run(*(Tensor(backend.from_host(x)) for x in arrays)).numpy()
            z = case.call(Torch, [torch.tensor(x) for x in arrays], further).numpy()
        kinds = [np.where(np.isnan(a), 2.0, np.where(np.isinf(a), np.sign(a), 0.0)) for a in (y, z)]
        if op in INFINITIES_MEET:
            kinds = [kind != 0 for kind in kinds]
        np.testing.assert_array_equal(*kinds)

    counts = drawn(campaign, op, campaign.count(6, 100), check)
    what = "drawn calls with a NaN or an infinity in each input: not finite at other places than in PyTorch"
    campaign.survived(f"{what} ({backend.kernels})", *counts, effective=sum(planted))


# ---- what is wrong is counted ----


def test_a_wrong_result_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """By the counters of drawn calls and of the float32 range."""
    campaign = Campaign("test", full=False, seed=0, gpu=False)

    def check(case: Case, dtype: np.dtype, _: str) -> None:
        assert dtype == np.float64

    assert drawn(campaign, "exp", 3, check) == (6, 1)
    assert "Draw 1: " in capsys.readouterr().err  # the example to which Hypothesis has shrunk it
    plain = ChainBackend(np)
    assert inaccurate("tanh", EXACT["tanh"], 9_999_991, plain)[1] == 0
    assert inaccurate("tanh", lambda x: np.tanh(x) * (1 + 2e-6), 9_999_991, plain)[1] > 100
