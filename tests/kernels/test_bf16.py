"""--precision bf16: what is stored, what is rounded, and what is not. The products themselves: test_cuda.py.

A chain of layers is run as a model runs it. Each kernel's result is compared with the plain kernel in float64 on what
that kernel read; so a bound has the roundings of one kernel only, and by induction the whole chain is checked.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable
from typing import Any

import cuda_on_cpu
import numpy as np
import pytest
import strict_cupy
from faults import Campaign
from test_backends import PLAIN, _magnitude, _statistics, is_nested, rebuilt, rng, tolerance
from test_cuda import (
    PLANTED,
    _fault,
    compare_products,
    large_tiles,
    run_of,
    small_tiles,
    some_of,
    trained,
    trainer_on_the_device,
)

import minigrad
from autoencoders.training.memory import step_memory
from minigrad import Tensor
from minigrad.backend import Backend
from minigrad.backend.chain import Layer, Norm, Source
from minigrad.backend.cuda import kernels as cuda
from minigrad.backend.geometry import conv_geometry
from minigrad.ops import conv_chain

U, EPS = 2.0**-8, float(np.finfo("f4").eps)  # a rounding to bf16 errs by at most U of the number

# C of the images; of each layer filters, kernel size, stride, whether it is transposed; whether a batch_norm ends it
CHAINS: dict[str, tuple[int, list[tuple[int, int, int, bool]], bool]] = {
    "an encoder": (1, [(32, 3, 1, False), (64, 3, 2, False), (33, 3, 2, False)], True),
    "a decoder": (64, [(64, 3, 2, True), (24, 3, 1, True), (1, 3, 1, True)], False),
    "few channels": (6, [(3, 3, 2, True), (1, 2, 1, False), (5, 3, 2, False), (2, 3, 1, False)], True),
    "four channels": (4, [(8, 3, 1, False), (4, 3, 1, False), (9, 2, 1, False)], False),
    "one layer": (9, [(34, 3, 1, False)], True),
    "one layer alone": (3, [(40, 3, 1, False)], False),
}
Calls = list[tuple[str, dict[str, Any], Any]]


def decoded(x: Any) -> Any:
    """An array of the device in float64; one of uint16 as the upper halves of float32 numbers."""
    if hasattr(x, "get"):
        host = x.get()
        return ((host.astype("u4") << 16).view("f4") if host.dtype == "uint16" else host).astype(np.float64)
    return rebuilt(x, [decoded(part) for part in x]) if is_nested(x) else x


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Of each kernel here its name, what it is given, by the parameters' names, and what it returns."""
    found: Calls = []
    for name in ("_launch", *CHECKS):
        method = getattr(cuda.CudaBackend, name)

        def call(*given: Any, method: Any = method, name: str = name, **options: Any) -> Any:
            result = method(*given, **options)
            bound = inspect.signature(method).bind(*given, **options)
            bound.apply_defaults()
            found.append((name, bound.arguments, result))
            return result

        monkeypatch.setattr(cuda.CudaBackend, name, call)
    return found


def run_chain(k: Backend, name: str, N: int, infer: bool = False) -> tuple[Tensor, Tensor]:
    """(x, y) after forward and backward, or with infer after inference."""
    r = rng("chain", name, N)
    C, layers, normed = CHAINS[name]

    def tensor(*shape: int, size: float = 1.0) -> Tensor:
        return Tensor(k.from_host((size * r.normal(size=shape)).astype("f4")), requires_grad=True)

    x = tensor(N, 9, 7, C)
    links, arrays = [], []
    for i, (F, kernel, stride, transposed) in enumerate(layers):
        links.append(conv_chain.Link((stride, stride), "same", transposed, None, 1e-3))
        channels = (F, C) if transposed else (C, F)
        arrays += [tensor(kernel, kernel, *channels, size=(kernel * kernel * C) ** -0.5), tensor(F, size=0.3)]
        vectors = [tensor(F), tensor(F), tensor(F), tensor(F) ** 2][: 4 if infer else 2]
        arrays += vectors if normed or i + 1 < len(layers) else [None] * len(vectors)
        C = F
    if infer:
        with minigrad.no_grad():
            return x, conv_chain.ConvChainInference(links)(x, *arrays)
    y = conv_chain.ConvChain(links)(x, *arrays)
    y.backward(k.from_host(r.normal(size=y.shape).astype("f4")))
    return x, y


def within(found: Any, wanted: np.ndarray, bound: Any, what: str) -> None:
    """Whether an array of the device errs by no more than the bound."""
    error = np.abs(decoded(found) - wanted)
    assert (error <= bound).all(), f"bf16, {what}: {(error - bound).max():.2e} beyond a bound of {np.max(bound):.2e}"


# ---- each kernel against the plain one; a: its arguments; thin: it was a kernel that rounds no factors ----


def check_correlate(a: dict[str, Any], result: Any, thin: bool) -> None:
    """A factor that bf16 does not hold errs by U, a sum as in test_backends.py, and a result that is stored by U."""
    x, norm, weight, bias = (decoded(a[name]) for name in ("x", "norm", "weight", "bias"))
    g, y = a["geometry"], result[0]

    def apply(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return PLAIN.conv2d_grad_input(x, weight, g) if a["adjoint"] else PLAIN.conv2d(x, weight, None, g)

    z = PLAIN.normalise(x, norm)
    wanted, sizes = apply(z, weight), apply(np.abs(z), np.abs(weight))
    inexact = 1 + (norm is not None or a["x"].dtype != "uint16")
    terms = weight[..., 0, :].size if a["adjoint"] else weight[..., 0].size
    bound = tolerance(terms, "float32") * apply(_magnitude(x, norm), np.abs(weight)).max()
    bound = bound + (0 if thin else 1.01 * inexact * U * sizes)
    if bias is not None:
        wanted, bound = wanted + bias, bound + EPS * np.abs(bias)
    wanted = np.maximum(wanted, 0) if a["relu"] else wanted
    if y.dtype == "uint16":
        bound = bound + U * (np.abs(wanted) + bound)
    within(y, wanted, bound, "y")


def check_weight_gradient(a: dict[str, Any], result: Any, thin: bool) -> None:
    """As y, but it is not stored in bf16."""
    pairs = [(decoded(a[name]), decoded(a[f"{name}_norm"]), a[name].dtype) for name in ("x", "g")]
    z = [PLAIN.normalise(x, norm) for x, norm, _ in pairs]
    wanted = PLAIN.conv2d_grad_weight(*z, a["geometry"])
    sizes = PLAIN.conv2d_grad_weight(*map(np.abs, z), a["geometry"])
    inexact = sum(norm is not None or dtype != "uint16" for _, norm, dtype in pairs)
    scale = PLAIN.conv2d_grad_weight(*(_magnitude(x, norm) for x, norm, _ in pairs), a["geometry"]).max()
    bound = tolerance(z[1][..., 0].size, "float32") * scale + (0 if thin else 1.01 * inexact * U * sizes)
    assert result.dtype == "float32"
    within(result.sum(axis=0), wanted, bound, "gweight")


def check_norm_gradient(a: dict[str, Any], result: Any, _: bool) -> None:
    """g, and the sum of what is stored."""
    gy, y, (mean, scale, offset, slope) = (decoded(a[name]) for name in ("gy", "y", "rows"))
    g, partials = result
    assert g.dtype == a["y"].dtype == "uint16"
    wanted = scale * (gy - offset - (y - mean) * slope) * (y > 0)
    sizes = np.abs(scale) * (np.abs(gy) + np.abs(offset) + (np.abs(y) + np.abs(mean)) * np.abs(slope))
    within(g, wanted, U * np.abs(wanted) + 8 * EPS * sizes, "g")
    stored = decoded(g)
    within(partials[:, 0].sum(axis=0), stored.sum(axis=(0, 1, 2)), 1e-12 * np.abs(stored).sum(), "the sum of g")


def check_conv_layer(a: dict[str, Any], result: Any, _: bool) -> None:
    """The statistics are those of what is stored."""
    norm = decoded(a["norm"])
    assert result.y.dtype == ("float32" if norm is None else "uint16")
    if norm is not None:
        y = decoded(result.y)
        mean, variance = _statistics(y)
        within(result.mean, mean, 2 * EPS * np.abs(y).max(), "mean")
        within(result.variance, variance, 2 * EPS * variance, "variance")
        rows = PLAIN.norm_rows(*norm[:2], mean, variance, norm.epsilon)
        within(result.rows, rows, 8 * EPS * np.maximum(np.abs(rows), np.abs(y).max()), "rows")


def check_conv_layer_grad(a: dict[str, Any], result: Any, _: bool) -> None:
    """The sums that the batch_norm before the layer needs are those of gx as it is stored."""
    source = decoded(a["source"])
    x, _, previous = source
    if previous is None:
        assert result.gx.dtype == "float32", "what leaves the chain"
        return
    assert result.gx.dtype == a["source"].x.dtype == "uint16"
    gx, M = decoded(result.gx), x.size // x.shape[3]
    sums = PLAIN.batch_norm_sums(gx, x, previous.mean)
    wanted = PLAIN.norm_grad_rows(sums, *previous, M)
    sizes = PLAIN.batch_norm_sums(np.abs(gx), np.abs(x) + np.abs(previous.mean), 0 * previous.mean)
    scales = PLAIN.norm_grad_rows(sizes, *map(np.abs, previous), M)
    for found, w, scale in zip((result.grad_rows, result.ggamma, result.gbeta), wanted, scales, strict=True):
        within(found, w, 8 * EPS * scale, "the sums of gx")


CHECKS: dict[str, Callable[[dict[str, Any], Any, bool], None]] = {
    "_correlate": check_correlate,
    "_weight_gradient": check_weight_gradient,
    "_norm_gradient": check_norm_gradient,
    "conv_layer": check_conv_layer,
    "conv_layer_grad": check_conv_layer_grad,
}


def check(calls: Calls) -> None:
    """All calls; a kernel was launched right before it returned."""
    thin = False
    for name, arguments, result in calls:
        if name == "_launch":
            thin = "thin" in arguments["name"]
        else:
            CHECKS[name](arguments, result, thin)


@pytest.mark.parametrize(("tiles", "N"), [(small_tiles, 1), (large_tiles, 6)])
@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_equals_the_specification(
    name: str, tiles: Any, N: int, cuda_device: str, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    k = tiles("bf16", monkeypatch)
    x, y = run_chain(k, name, N)
    assert x.grad is not None
    assert y.dtype == x.grad.dtype == "float32"
    check(calls)
    stored = [result.y.dtype for called, _, result in calls if called == "conv_layer"]
    calls.clear()
    _, y = run_chain(k, name, N, infer=True)
    assert y.dtype == "float32"
    check(calls)
    assert [result[0].dtype for called, _, result in calls if called == "_correlate"] == stored


def test_single_convolutions_take_and_give_what_is_stored(cuda_device: str, calls: Calls) -> None:
    """As benchmarks/referee.py calls them."""
    k, r, g = minigrad.use("cuda", precision="bf16"), rng("single"), conv_geometry((9, 7), (3, 3), 2, "same")
    x, gy = (k.from_host(r.integers(0x3E00, 0x4080, (3, *shape), "u2")) for shape in ((9, 7, 12), (5, 4, 33)))
    weight = k.from_host(r.normal(size=(3, 3, 12, 33)).astype("f4"))
    results = k.conv2d(x, weight, None, g), k.conv2d_grad_input(gy, weight, g), k.conv2d_grad_weight(x, gy, g)
    assert [y.dtype for y in results] == ["uint16", "uint16", "float32"]
    check(calls)


def test_what_is_not_finite_is_stored(cupy_double: object) -> None:
    """In tiles and in the thin kernels. What is beyond the largest number of bf16 becomes infinite."""
    k = minigrad.use("cuda", precision="bf16")
    x, weight = np.ones((1, 5, 5, 8), "f4"), np.ones((3, 3, 8, 32), "f4")
    x[0, 0, 0, 0], x[0, 4, 4, 1], x[0, 0, 4, 2] = np.inf, -np.inf, np.nan
    of_tiles = [[np.inf, 72, np.nan], [72, 72, 72], [72, 72, 0]]
    huge = np.array([np.inf, np.nan, -np.inf, 3.3961e38, 3.3962e38, 1e-45], "f4").reshape(1, 1, 6, 1)
    of_huge = [[np.inf, np.nan, 0, 255 * 2.0**120, np.inf, 0]]
    ones = k.from_host(np.ones(32, "f4"))
    for images, weights, wanted in ((x, weight, of_tiles), (huge, np.ones((1, 1, 1, 32), "f4"), of_huge)):
        geometry = conv_geometry(images.shape[1:3], weights.shape[:2], 1, "valid")
        layer = Layer(k.from_host(weights), 0 * ones, geometry, False)
        y = k.conv_layer(Source(k.from_host(images)), layer, Norm(ones, ones, 1e-3)).y
        assert y.dtype == "uint16"
        np.testing.assert_array_equal(decoded(y)[0, :, :, 31], wanted)


# ---- memory ----


def test_a_chain_keeps_half_of_the_bytes(cupy_double: object, calls: Calls) -> None:
    """Of the results that the backward pass needs; without its gradients."""
    kept = {}
    for precision in ("fp32", "bf16"):
        k, pool = minigrad.use("cuda", precision=precision), strict_cupy.cupy.get_default_memory_pool()
        calls.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Tensor, "backward", lambda *_: None)
            x, y = run_chain(k, "an encoder", 4)
        sizes = [result.y.size for name, _, result in calls if name == "conv_layer"]
        calls.clear()
        gc.collect()
        kept[precision] = pool.used_bytes()
        del x, y
        gc.collect()
    assert kept["fp32"] - kept["bf16"] == 2 * sum(sizes)


@pytest.mark.parametrize("filters", [(8, 16), (32, 64)])
def test_the_memory_of_an_image_is_known_before(filters: Any, cupy_double: object, monkeypatch: Any) -> None:
    """What a larger batch adds to the peak, without partial sums; and at most 10 % more."""
    monkeypatch.setattr(cuda, "MOST_BLOCKS", 1)
    monkeypatch.setattr(cuda, "FILL", 1)
    peaks = []
    for N in (20, 60):
        trainer = trainer_on_the_device(N, filters=filters, precision="bf16")
        trainer.capture = False
        gc.collect()
        before = strict_cupy.cupy.get_default_memory_pool().used_bytes()
        strict_cupy.reset()
        trainer.run()
        peaks.append(strict_cupy.counters.peak_memory - before)
    of_an_image = (peaks[1] - peaks[0]) / 40
    assert of_an_image <= step_memory(trainer.model)[1] <= 1.1 * of_an_image


# ---- training ----


def test_bf16_trains_as_fp32(cuda_device: str) -> None:
    """The first loss within one rounding; later ones are apart as runs with other roundings are (2 % is twice what was
    found, and what TF32 gives), and on average closer."""
    fp32, bf16 = (trained("cuda", "cuda", "float32", 40, precision).sum(axis=1) for precision in ("fp32", "bf16"))
    apart = abs(bf16 - fp32) / fp32
    assert 0 < apart[0] <= U
    assert apart.max() <= 0.02
    assert apart.mean() <= 0.01
    assert bf16[-5:].mean() < 0.9 * bf16[0], "it trains"


def test_the_order_of_threads_does_not_matter(cupy_double: object, monkeypatch: pytest.MonkeyPatch) -> None:
    first = trained("cuda", "cuda", "float32", 2, "bf16", (33, 8, 64))
    for seed in (0, 1):
        monkeypatch.setattr(cuda_on_cpu.Kernel, "seed", seed)
        assert (trained("cuda", "cuda", "float32", 2, "bf16", (33, 8, 64)) == first).all()


def test_a_captured_run_gives_the_same_bits(cuda_device: str) -> None:
    eager, captured = (run_of(3, capture=capture, precision="bf16")[1] for capture in (False, True))
    assert (eager["losses"] != run_of(3, capture=False)[1]["losses"]).any(), "fp32 gives others"
    for name, value in eager.items():
        np.testing.assert_array_equal(captured[name], value, err_msg=name)


# ---- faults in the kernels are seen ----

# what stands in the CUDA source, and the same with a fault that only bf16 meets
PRODUCT_FAULTS = {
    "rows of a that are written twice": ("line % 2 * 4 + line % 8 / 2", "line % 2 * 4 + line % 4 / 2"),
    "the order of the k of b": ("4 - 2 * turn : threads", "4 : threads"),
    "half of the k": ("k += 2 * HALF", "k += 4 * HALF"),
}
CHAIN_FAULTS = {
    "the halves of a pair": ("to = {pack_bf16(n.v[0], n.v[1])", "to = {pack_bf16(n.v[1], n.v[0])"),
    "the second number of a pair": ("__uint_as_float(n.pairs[0] & 0xffff0000)", "__uint_as_float(n.pairs[0] << 16)"),
    "a number of four": ("pairs[e / 2] >> e % 2 * 16", "pairs[e / 2] >> e / 2 * 16"),
    "a number put among four": ("e % 2 ? (pairs[e / 2] & 0xffff)", "e % 2 ? (pairs[e / 2] & 0xff)"),
    "what is read": ("__uint_as_float((unsigned)bits << 16)", "__uint_as_float((unsigned)(bits & 0xfffe) << 16)"),
    "moments of what is not stored": ("value = reals(stored);", ""),
    "thin moments of what is not stored": ("(double)real(value) - shift", "(double)(acc[i] + b) - shift"),
    "a sum of what is not stored": ("total[0] += real(stored);", "total[0] += value;"),
    "the input of the sums": ("reals(others[i])", "reals(others[0])"),
    "numbers cut off": (": bits(pack_bf16(x, 0)) {}", "{ bits = (const unsigned &)x >> 16; }"),
}


def compare_chains(k: Backend, calls: Calls) -> None:
    for name in CHAINS:
        run_chain(k, name, 6)
        check(calls)


@pytest.mark.parametrize("what", some_of(PRODUCT_FAULTS | CHAIN_FAULTS))
def test_a_fault_of_bf16_is_found(
    what: str, campaign: Campaign, cupy_double: object, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _fault(*(PRODUCT_FAULTS | CHAIN_FAULTS)[what])
    monkeypatch.setattr(cuda, "_source", lambda: source)
    k = large_tiles("bf16", monkeypatch)
    with pytest.raises(AssertionError, match="bf16"):
        compare_products(k, 10) if what in PRODUCT_FAULTS else compare_chains(k, calls)
    campaign.survived(PLANTED, 1)
