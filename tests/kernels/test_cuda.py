"""The CUDA backend without a GPU: the CUDA source compiled for one, and executed on the CPU (cuda_on_cpu.py).

That its kernels compute what the plain ones do is tested in test_backends.py (`cuda-on-cpu`); here is what is special
to CUDA: that threads wait for each other where they must, that faults would be seen, what the compiler makes of it.
"""

from __future__ import annotations

import gc
import importlib
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from copy import copy
from pathlib import Path
from typing import Any

import cuda_on_cpu
import numpy as np
import pytest
import strict_cupy
import test_backends
from faults import Campaign

import minigrad
from autoencoders import VAE, Autoencoder, TrainingOptions
from autoencoders.training import Trainer
from autoencoders.training.memory import step_memory
from minigrad.backend import PRECISIONS, Backend
from minigrad.backend.cuda import kernels as cuda
from minigrad.backend.geometry import conv_geometry
from minigrad.backend.sharing import strictly

SOURCE = cuda._source()
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")


@pytest.fixture
def on_cpu(cupy_double: object) -> cuda.CudaBackend:
    """The CUDA kernels on the strict double of CuPy."""
    backend = minigrad.use(device="cuda")
    assert type(backend) is cuda.CudaBackend
    return backend


# ---- the emulator of CUDA threads ----

EXCHANGES = """
extern "C" __global__ void exchange(const float *x, double *sums, float *neighbours, int lanes, int lane_mask) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (threadIdx.x % 32 >= lanes) return;
    double sum = x[i];
    for (int half = 16; half; half /= 2) sum += __shfl_xor_sync(0xffffffff, sum, half);
    sums[i] = sum;
    if (threadIdx.x < 32) return;  // a warp may end while others go on
    neighbours[i] = __shfl_xor_sync(0xffffffff, x[i], lane_mask);
}
extern "C" __global__ void mixed(float *x) {
    if (threadIdx.x < 7) mma(x, x, x, x);
    else __shfl_xor_sync(0xffffffff, 1.f, 1);
}
extern "C" __global__ void part_of_a_warp(float *x) { __shfl_xor_sync(0xffff, 1.f, 1); }
extern "C" __global__ void unordered(const float *x, float *y) {
    __shared__ float s[128];
    s[threadIdx.x] = x[threadIdx.x];
    __shfl_xor_sync(0xffffffff, 1.f, 1);
    y[threadIdx.x] = s[127 - threadIdx.x];
}
extern "C" __global__ void fragments(const float *a, const float *b, float *c) {
    int i = threadIdx.x;
    mma(&c[4 * i], &c[4 * i + 2], &a[4 * i], &b[2 * i]);
}
extern "C" __global__ void pairs(const float *a, const float *b, float *c) {
    const int i = threadIdx.x;
    unsigned of_a[4], of_b[2];
    for (int n = 0; n < 4; n++) of_a[n] = pack_bf16(a[8 * i + 2 * n], a[8 * i + 2 * n + 1]);
    for (int n = 0; n < 2; n++) of_b[n] = pack_bf16(b[4 * i + 2 * n], b[4 * i + 2 * n + 1]);
    mma(&c[4 * i], &c[4 * i + 2], of_a, of_b);
}
"""


def test_lanes_exchange_values() -> None:
    kernel, x = cuda_on_cpu.compile_kernels(EXCHANGES)["exchange"], np.arange(192, dtype=np.float32) ** 2
    sums, neighbours = np.zeros(192), np.zeros(192, np.float32)
    kernel((2,), (96,), (x, sums, neighbours, np.int32(32), np.int32(5)))
    np.testing.assert_array_equal(sums.reshape(6, 32), np.repeat(x.reshape(6, 32).sum(axis=1)[:, None], 32, axis=1))
    wanted = x[np.arange(192) ^ 5].reshape(2, 3, 32)
    wanted[:, 0] = 0
    np.testing.assert_array_equal(neighbours.reshape(2, 3, 32), wanted)


def test_an_exchange_that_misses_lanes_is_an_error() -> None:
    kernels, x = cuda_on_cpu.compile_kernels(EXCHANGES), np.zeros(64, np.float32)
    arguments = x, np.zeros(64), x, np.int32(32), np.int32(1)
    few = (*arguments[:3], np.int32(31), np.int32(1))
    faults = ("exchange", 64, few), ("exchange", 48, arguments), ("mixed", 32, (x,)), ("part_of_a_warp", 32, (x,))
    for name, threads, given in faults:
        with pytest.raises(RuntimeError, match=f"{name}: not all lanes of a warp reached an exchange"):
            kernels[name]((1,), (threads,), given)
    kernels["exchange"]((1,), (64,), arguments)  # works on


def test_an_exchange_is_no_barrier() -> None:
    """Between warps it orders nothing."""
    kernel, x, y = cuda_on_cpu.compile_kernels(EXCHANGES)["unordered"], np.ones(128, np.float32), np.zeros(128, "f4")
    kernel((1,), (128,), (x, y))
    kernel((1,), (128,), (2 * x, y))
    assert set(y) == {1, 2}, "some threads read what others had not written yet"


# The lanes' parts of c (16, 8) += a (16, K) b (K, 8), as the PTX ISA has them for mma.m16n8k8 with .tf32 (K = 8) and
# mma.m16n8k16 with .bf16 (K = 16): of the lane with group = lane / 4 and t = lane % 4, (row, column) of each number.
LANES = [(lane // 4, lane % 4) for lane in range(32)]
A_OF_LANE = {
    8: [[(group + 8 * (i % 2), t + 4 * (i // 2)) for i in range(4)] for group, t in LANES],
    16: [[(group + 8 * (i // 2 % 2), 2 * t + i % 2 + 8 * (i // 4)) for i in range(8)] for group, t in LANES],
}
B_OF_LANE = {
    8: [[(t + 4 * i, group) for i in range(2)] for group, t in LANES],
    16: [[(2 * t + i % 2 + 8 * (i // 2), group) for i in range(4)] for group, t in LANES],
}
C_OF_LANE = [[(group + 8 * (i // 2), 2 * t + i % 2) for i in range(4)] for group, t in LANES]


@pytest.mark.parametrize(("kernel", "K"), [("fragments", 8), ("pairs", 16)])
def test_lanes_multiply_matrices(kernel: str, K: int) -> None:
    rng = np.random.default_rng(0)
    a, b, c = (rng.integers(-9, 9, shape).astype(np.float32) for shape in ((16, K), (K, 8), (16, 8)))
    lanes = (a, A_OF_LANE[K]), (b, B_OF_LANE[K]), (c, C_OF_LANE)
    parts = [np.array([[m[place] for place in lane] for lane in of_lane]) for m, of_lane in lanes]
    cuda_on_cpu.compile_kernels(EXCHANGES)[kernel]((1,), (32,), tuple(parts))
    wanted = c + a @ b
    np.testing.assert_array_equal(parts[2], [[wanted[place] for place in lane] for lane in C_OF_LANE])


# ---- faults in the kernels are seen ----

# (method whose inputs show it, what stands in the CUDA source, the same with an off-by-one in its index arithmetic)
FAULTS = {
    "a phase's first row": ("conv2d_grad_input", "(phase + before - first) / S", "(phase + before - first) / S + 1"),
    "a pixel's column": ("conv2d", "col = cols.in + p.col * cols.stride;", "col = cols.in + p.col * cols.stride + 1;"),
    "a quotient": ("conv2d", "+ d - 1) / d", "- 1) / d"),
    "the last channels of a tap": ("conv2d", "if (c0 >= o.C)", "if (c0 > o.C)"),
    "four numbers at once": ("conv2d", "if (n < N) values = *(const F", "if (n < N - 4) values = *(const F"),
    "the norm of a channel": ("conv_layer", "norm.read(o.norm, held,", "norm.read(o.norm, held ? held - 4 : 0,"),
    "the norm of a pixel outside": ("conv_layer", "if (inside >> i & 1) norm.apply(a[i]);\n ", "norm.apply(a[i]);\n "),
    "the weights of a tap": ("conv2d", "cols.tap + u * cols.apart", "cols.tap + (u + 1) % cols.taps * cols.apart"),
    "the last step of the product": ("conv2d", "step <= steps; step++", "step < steps; step++"),
    "the sums of a warp": ("conv_layer", "apart < 32; apart *= 2", "apart < 16; apart *= 2"),
    "the block of the sums": ("conv_layer", "partials[(block * 2 + s) * o.F +", "partials[(block * 2 + 1 - s) * o.F +"),
    "the window of weight_gradient": ("conv2d_grad_weight", "= k / C % KW - left", "= k / C % KW - left + 1"),
    "weight_gradient's channels": ("conv_layer_grad", "x_norm[2 * C + c]", "x_norm[2 * C + (c ? c - 1 : 0)]"),
    "weight_gradient's barrier": ("conv2d_grad_weight", "        __syncthreads();\n        read();", "        read();"),
    "the share of weight_gradient": ("conv2d_grad_weight", "m0 < last; m0 += GM", "m0 < last - GM; m0 += GM"),
    "correlate_thin_input's window": ("conv2d", "col = p.col * SW + tap - tap_r", "col = p.col * SW + 1 + tap - tap_r"),
    "weight_gradient_thin_input's share": ("conv2d_grad_weight", "first < last; first", "first < last - 1; first"),
    "correlate_thin_output's taps": ("conv2d_grad_input", "? left_of - j : j", "? j : left_of - j"),
    "correlate_thin_output's last rows": ("conv2d_grad_input", "(row + i) < H;", "(row + i) < H + 1;"),
    "add_shares": ("conv2d_grad_weight", "s < count; s += 8", "s < count - 1; s += 8"),
    "matrix_product's rows": ("matmul", "int k = ak == 1 ? i % BK : i / BM", "int k = ak == 1 ? i % 15 : i / BM"),
    "matrix_product_thin's places": ("matmul", "(size_t)m * ym + (size_t)n * yn]", "(size_t)m * N + n]"),
    "the shares of a row": ("matmul", "s < count; s += 8", "s < count; s += 9"),
    "matrix_product's last step": ("matmul", "k0 + k < last && n0", "k0 + k < last - 1 && n0"),
    "rows that a block goes over": ("channel_sum", "gridDim.x * 8) row(", "gridDim.x * 8 + 1) row("),
    "row_sums": ("batch_norm_sums", "real(other[i]) : value", "real(other[i ? i - 1 : 0]) : value"),
    "few_row_sums": ("channel_sum", "m += 8) total", "m += 9) total"),
    "finish_gradients": ("conv_layer_grad", "sums[c] = both[0]", "sums[c] = both[1]"),
    "sigmoid": ("sigmoid", "real e = exp(-fabs(x[i]))", "real e = exp(-fabs(x[i ? i - 1 : 0]))"),
    "normalise": ("normalise", "beta = norm[2 * C + c];", "beta = norm[2 * C + (c ? c - 1 : 0)];"),
    "norm_gradient": ("norm_gradient", "grad_rows[2 * C + c]", "grad_rows[2 * C + c - 1]"),
    "finish_sums": ("channel_sum", "block += ROWS", "block += ROWS + 1"),
    "share_sums": ("moments", "= total[s] * share", "= total[1 - s] * share"),
    "finish_moments": ("moments", ": shift[c]) + m", ": shift[c ? c - 1 : 0]) + m"),
    "norm_rows": ("norm_rows", "norm[2 * C + c] = beta;", "norm[2 * C + (c ? c - 1 : 0)] = beta;"),
    "norm_grad_rows": ("norm_grad_rows", "sums[C + c]);", "sums[C + c - 1]);"),
    "finish_norm_grad": ("conv_layer_grad", "- mean[c] * total[0]);", "- mean[c ? c - 1 : 0] * total[0]);"),
    "unit_range": ("unit_range", "rows[blockIdx.x] * size", "rows[blockIdx.x ? blockIdx.x - 1 : 0] * size"),
    "add_all": ("add_all_", "+= list.value[array][i]", "+= list.value[array][i ? i - 1 : 0]"),
    "batch_norm_update": ("batch_norm_update_", "rest * variance[c]", "rest * variance[c ? c - 1 : 0]"),
    "bernoulli_nll": ("bernoulli_nll", "threadIdx.x < half", "threadIdx.x < half - 1"),
    "adam_step": ("adam_step_", "gradients[i]", "gradients[i ? i - 1 : 0]"),
}


def _fault(old: str, new: str) -> str:
    assert SOURCE.count(old) >= 1, f"the source no longer holds {old!r}"
    return SOURCE.replace(old, new, 1)


def compare_all(k: Backend, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As test_backends.py does: tiles of both sizes, and blocks that go through several of them."""
    for N in test_backends.SIZES:
        for case in test_backends.INPUTS[name](test_backends.rng(name, N), N):
            test_backends.compare(k, case, "float32")
    test_backends.small_blocks(k, monkeypatch)
    for case in test_backends.INPUTS[name](test_backends.rng(name, "blocks"), 7):
        test_backends.compare(k, case, "float32")


MADE = re.findall(r"^(CORRELATE|PRODUCT)\((\w+), (.*?)\)$", re.sub(r"\)  //.*", ")", SOURCE), re.MULTILINE)


def test_every_kernel_has_a_fault() -> None:
    """A kernel that is added needs a fault of its own above; those that a macro makes are found by the faults of it."""
    names = set(re.findall(r'extern "C" __global__ void(?: __launch_bounds__\(.*?\))? (\w+)\(', SOURCE)) - {"NAME"}
    covered = " ".join(FAULTS)
    assert not {name for name in names if name not in covered}
    made = [name for _, name, _ in MADE]
    large = ["correlate_large", "correlate_narrow", "correlate_small"]
    assert made == [*large, "matrix_product", "matrix_product_thin"]


def test_cuda_py_and_the_kernels_have_the_same_sizes(on_cpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("THIN", "PIXELS", "LANES", "WINDOW", "RUN", "GROUP", "LISTED"):
        assert re.findall(rf"[ ,]{name} = (\d+)[,;]", SOURCE) == [str(getattr(cuda, name))], name
    assert f"LARGE = sizeof(real) == 4 ? {cuda.LARGE['float32']} : {cuda.LARGE['float64']};" in SOURCE
    assert f"PRODUCT(matrix_product_thin, 256, {cuda.FEW_COLUMNS}," in SOURCE
    launched: dict[str, int] = {}  # threads of a block
    plain = cuda.CudaBackend._launch

    def launch(self: Any, name: str, dtype: Any, grid: Any, threads: int, *arguments: Any) -> None:
        assert launched.setdefault(name, threads) == threads
        plain(self, name, dtype, grid, threads, *arguments)

    monkeypatch.setattr(cuda.CudaBackend, "_launch", launch)
    monkeypatch.setattr(test_backends, "SIZES", (4,))
    for kernel in ("matmul", "conv_layer", "conv_layer_grad", "conv2d", "conv2d_grad_input", "conv2d_grad_weight"):
        with pytest.MonkeyPatch.context() as patch:
            compare_all(on_cpu, kernel, patch)
    bounds = {name: int(threads) for threads, name in re.findall(r"__launch_bounds__\((\d+).*?\) (\w+)\(", SOURCE)}
    for macro, name, values in MADE:
        bounds[name] = int(values.split(", ")[5]) if macro == "CORRELATE" else 256
    assert set(bounds) - {"NAME"} >= {"correlate_small", "weight_gradient", "matrix_product_thin", "add_shares"}
    for name, threads in launched.items():
        assert bounds[name] == threads, name


def test_an_array_beyond_32_bits_is_refused(on_cpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "MOST_NUMBERS", 10)
    with pytest.raises(MemoryError, match=r"at most 10 numbers, found \(3, 4\)"):
        on_cpu.sigmoid(on_cpu.from_host(np.zeros((3, 4), np.float32)))


@pytest.mark.parametrize("beside", ["nothing", "x", "weight", "gy"])
def test_four_numbers_are_read_at_once_only_where_a_gpu_can(beside: str, on_cpu: Any, monkeypatch: Any) -> None:
    """At multiples of 16 bytes: elsewhere it stops with an error. Nothing is run here."""
    launched: dict[str, tuple[Any, ...]] = {}

    def launch(_: Any, name: str, dtype: Any, grid: Any, threads: int, *arguments: Any) -> None:
        launched[name] = arguments

    def array(name: str, *shape: int) -> Any:
        first = 1 if name == beside else 0
        memory = on_cpu.from_host(np.ones(math.prod(shape) + 4, np.float32))
        return memory[first : first + math.prod(shape)].reshape(shape)

    monkeypatch.setattr(cuda.CudaBackend, "_launch", launch)
    g = conv_geometry((5, 4), (3, 3), 1, "same")
    x, weight, gy = array("x", 2, 5, 4, 8), array("weight", 3, 3, 8, 8), array("gy", 2, 5, 4, 8)
    assert all((a.data.ptr % 16 == 0) == (name != beside) for name, a in (("x", x), ("weight", weight), ("gy", gy)))
    on_cpu.conv2d(x, weight, None, g)
    assert launched["correlate_small"][-3:-1] == (beside != "x", beside != "weight")
    on_cpu.conv2d_grad_input(gy, weight, g)
    assert launched["correlate_small"][-3:-1] == (beside != "gy", beside != "weight")
    on_cpu.conv2d_grad_weight(x, gy, g)
    assert launched["weight_gradient"][-3:-1] == (beside != "x", beside != "gy")
    on_cpu.conv2d(x[..., :6], weight[:, :, :6], None, g)
    assert launched["correlate_small"][-3:-1] == (False, False), "six channels"


def some_of(faults: dict[str, Any]) -> list[Any]:
    """Every fourth in the usual tests, all of them in the campaign: a source of its own is compiled for each."""
    return [pytest.param(what, marks=[pytest.mark.campaign] * (i % 4 > 0)) for i, what in enumerate(faults)]


PLANTED = "faults planted in the CUDA source that its tests do not find"


@pytest.mark.parametrize("what", some_of(FAULTS))
def test_an_off_by_one_is_found(what: str, campaign: Campaign, on_cpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name, old, new = FAULTS[what]
    monkeypatch.setattr(cuda, "_source", lambda: _fault(old, new))
    sharing = strictly(SharesWithNobody()) if what == "share_sums" else nullcontext()
    with sharing, pytest.raises(AssertionError, match=name):
        compare_all(on_cpu, name, monkeypatch)
    campaign.survived(PLANTED, 1)


@pytest.mark.parametrize("name", ["moments", "batch_norm_sums", "conv_layer", "conv_layer_grad"])
def test_sums_that_are_exchanged_with_nobody_stay_what_they_are(name: str, on_cpu: Any, monkeypatch: Any) -> None:
    with strictly(SharesWithNobody()):
        compare_all(on_cpu, name, monkeypatch)


class SharesWithNobody:
    """A group of one process whose kernels exchange their sums all the same."""

    size = 1

    def gather(self, x: Any) -> Any:
        return x[None]


# ---- TF32 and bf16 ----

ROUND = """
extern "C" __global__ void round_all(const float *x, float *y, int size) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < size) y[i] = PRECISION == TF32 ? tf32(x[i]) : float(bf16(x[i]));
}
"""
BITS = {"tf32": 10, "tf32x3": 10, "bf16": 7}  # after the point


def rounded(x: np.ndarray, precision: str) -> np.ndarray:
    """x to so many bits, ties to even, in float64. A subnormal has the smallest normal's steps."""
    _, exponent = np.frexp(x.astype(np.float64))
    step = np.ldexp(1.0, np.maximum(exponent, -125) - 1 - BITS[precision])
    return np.copysign(np.rint(np.abs(x) / step) * step, x)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_numbers_are_rounded(precision: str, cuda_device: str) -> None:
    """Bit for bit: numbers of every exponent, ties and their neighbours, and what is not finite."""
    k = minigrad.use("cuda")
    if precision == "tf32" and int(k.xp.cuda.Device().compute_capability) < 90:
        pytest.skip("rounds ties away from zero")
    bits = np.random.default_rng(0).integers(0, 2**32, 60_000, dtype=np.uint32)
    half = np.uint32(1 << (22 - BITS[precision]))
    ties = (bits[:30_000] & ~(2 * half - 1)) | half
    special = np.array([0, -0.0, np.inf, -np.inf, np.nan, 3.4028235e38, -3.4028235e38, 1e-45, 1.1754942e-38], "f4")
    x = np.concatenate([np.concatenate([bits, ties - 1, ties, ties + 1]).view(np.float32), special])
    y = k.xp.empty(x.shape, dtype="float32")
    module = k.xp.RawModule(code=SOURCE + ROUND, options=options_of("float", precision))
    module.get_function("round_all")((-(-len(x) // 256),), (256,), (k.from_host(x), y, np.int32(len(x))))
    finite, found = np.isfinite(x), k.to_host(y)
    with np.errstate(over="ignore"):
        wanted = rounded(x[finite], precision).astype(np.float32)
    np.testing.assert_array_equal(found[finite].view(np.uint32), wanted.view(np.uint32))
    np.testing.assert_array_equal(found[~finite], x[~finite])
    assert np.isinf(wanted).any(), "the largest numbers round to infinity"


def options_of(real: str, precision: str, x_real: str = "", y_real: str = "") -> tuple[str, ...]:
    """For the compiler."""
    kinds = {"REAL": real, "X_REAL": x_real or real, "Y_REAL": y_real or real, "PRECISION": precision.upper()}
    return ("-std=c++17", *(f"-D{name}={kind}" for name, kind in kinds.items()))


def products(count: int) -> Iterator[test_backends.Case]:
    """Convolutions of random geometries in large tiles, sometimes two beside each other, and their gradients."""
    r = test_backends.rng("tf32")
    for _ in range(count):
        g = test_backends.random_geometry(r)
        N, F = int(r.integers(1, 6)), int(r.integers(20, 80))
        C = int(r.integers(1, 40)) + 16 // math.prod(g.kernel_size)  # sums of more than 16 terms: no thin convolution
        x, y = (r.normal(size=(N, *size, C)).astype("f4") for size in (g.input_size, g.output_size))
        gy = r.normal(size=(N, *g.output_size, F)).astype("f4")
        weight = r.normal(size=(*g.kernel_size, C, F)).astype("f4")
        terms = C * math.prod(g.kernel_size)
        yield test_backends.Case("conv2d", (x, weight, None, g), terms)
        yield test_backends.Case("conv2d_grad_input", (y, weight.swapaxes(2, 3).copy(), g), terms)
        yield test_backends.Case("conv2d_grad_weight", (x, gy, g), N * math.prod(g.output_size))


def compare_products(k: Backend, count: int) -> None:
    """With the specification in float64 on rounded inputs, and that they were rounded; for tf32x3 on the inputs.

    A product of two TF32 numbers has 22 bits, one of bf16 numbers 16. It is exact in float32, so only sums err: what
    bounds them in float32 (test_backends.py), 4 eps sqrt(K) of the magnitudes' sum for K terms, bounds them here. A GPU
    adds 8 terms at once to the sum so far and cuts off what lies below the last bit of the largest: 9 times up to
    eps / 2 of it. With terms near 1 of random signs the largest is about sqrt(k) after k of them. In K / 8 steps that
    makes at most 0.4 eps K^1.5, a tenth of the bound 4 eps K^1.5. With bf16 it is 17 times in each of K / 16 steps.

    With tf32x3 a factor errs by 2^-22, and the product of the low parts, which is left out, is at most 2^-22 of the
    whole: together 3 * 2^-22 of each product.
    """
    once = k.precision != "tf32x3"
    for case in products(count):
        call = getattr(test_backends.PLAIN, case.name)
        versions = (np.float64, lambda x: rounded(x, k.precision), lambda x: abs(rounded(x, k.precision)))
        exact, wanted, sizes = (
            call(*(convert(a) if isinstance(a, np.ndarray) else a for a in case.arguments)) for convert in versions
        )
        (found,) = test_backends.results_of(k, case, test_backends.inputs_of(k, case, "float32"))
        bound = (test_backends.tolerance(case.terms, "float32") + 3 * 2**-22 * (not once)) * sizes.max()
        what = f"{k.precision} {case.name}{[x.shape for x in case.arguments[:2]]}"
        error, others = (abs(k.to_host(found) - y).max() for y in (wanted, exact))
        if not once:
            error, others = others, error
        assert error <= bound, f"{what}: error {error:.2e} but at most {bound:.2e}"
        assert others > bound or not wanted.any(), f"{what}: the inputs were {'not ' * once}rounded"


def large_tiles(precision: str, monkeypatch: pytest.MonkeyPatch) -> cuda.CudaBackend:
    """The kernels in this precision; two blocks of threads take everything, in large tiles."""
    k = minigrad.use("cuda", precision=precision)
    test_backends.small_blocks(k, monkeypatch)
    return k


def small_tiles(precision: str, _: pytest.MonkeyPatch) -> cuda.CudaBackend:
    """The kernels in this precision; so little work is done in small tiles."""
    return minigrad.use("cuda", precision=precision)


ROUNDING = "tf32", "tf32x3", "bf16"


@pytest.mark.parametrize("precision", ROUNDING)
@pytest.mark.parametrize("tiles", [large_tiles, small_tiles])
def test_tf32_equals_the_specification_of_rounded_numbers(
    tiles: Any, precision: str, cuda_device: str, monkeypatch: Any
) -> None:
    compare_products(tiles(precision, monkeypatch), 50)


ADDED = {"tf32": 1.01 * 2**-10, "tf32x3": 3.01 * 2**-22, "bf16": 1.01 * 2**-7}
ROUNDED = "conv2d", "conv2d_grad_input", "conv2d_grad_weight", "conv_layer_grad", "conv_layer"


@pytest.mark.parametrize(
    ("precision", "added", "name"),  # conv_layer of bf16 gives no float32 numbers: test_bf16.py
    [(p, added, name) for p, added in ADDED.items() for name in ROUNDED if (p, name) != ("bf16", "conv_layer")],
)
def test_tf32_kernels_equal_the_specification(
    name: str, precision: str, added: float, cupy_double: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With bias, ReLU, sums and norms: two factors that err by 2^-11 each add 2^-10 of the magnitudes' sum; with bf16
    they err by 2^-8."""
    bound = test_backends.tolerance
    monkeypatch.setattr(test_backends, "tolerance", lambda *arguments: bound(*arguments) + added)
    monkeypatch.setattr(test_backends, "SIZES", (4,))
    compare_all(minigrad.use("cuda", precision=precision), name, monkeypatch)


@pytest.mark.parametrize("precision", ROUNDING)
def test_what_is_not_finite_passes_the_tensor_cores(precision: str, cupy_double: object) -> None:
    """It stays where it is. With tf32x3 an infinity becomes NaN, because its rest is."""
    k, geometry = minigrad.use("cuda", precision=precision), conv_geometry((5, 5), (3, 3), 1, "valid")
    x, weight = np.ones((1, 5, 5, 8), "f4"), np.ones((3, 3, 8, 32), "f4")
    x[0, 0, 0, 0], x[0, 4, 4, 1], x[0, 0, 4, 2] = np.inf, -np.inf, np.nan
    found = k.to_host(k.conv2d(k.from_host(x), k.from_host(weight), None, geometry))[0, :, :, 0]
    of_infinity = np.nan if precision == "tf32x3" else np.inf
    np.testing.assert_array_equal(found, [[of_infinity, 72, np.nan], [72, 72, 72], [72, 72, -of_infinity]])


@pytest.mark.parametrize("precision", ROUNDING)
def test_thin_convolutions_and_float64_are_not_rounded(
    precision: str, cuda_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits in both precisions: few taps times channels, or a result of few channels, need no tensor cores."""
    fp32, tf32 = minigrad.use("cuda"), minigrad.use("cuda", precision=precision)
    r, g = test_backends.rng("thin"), conv_geometry((9, 7), (3, 3), 2, "same")
    x, y, weight = r.normal(size=(2, 9, 7, 1)), r.normal(size=(2, 5, 4, 40)), r.normal(size=(3, 3, 1, 40))
    thin = [
        test_backends.Case("conv2d", (x, weight, None, g), 9),
        test_backends.Case("conv2d_grad_input", (y, weight, g), 360),
        test_backends.Case("conv2d_grad_weight", (x, y, g), 40),
    ]
    cases = [(case, "float32") for case in thin] + [(case, "float64") for case in products(4)]
    for case, dtype in cases:
        if dtype == "float64":
            test_backends.small_blocks(tf32, monkeypatch)
        a, b = (test_backends.results_of(k, case, test_backends.inputs_of(k, case, dtype)) for k in (fp32, tf32))
        np.testing.assert_array_equal(fp32.to_host(a[0]), tf32.to_host(b[0]))


# what stands in the CUDA source, and the same with a fault that only TF32 meets
TF32_FAULTS = {
    "numbers that are not rounded": ("found.v[e] = tf32(found.v[e])", "found.v[e] = found.v[e]"),
    "a warp's columns": ("x / 4 * 4 * TN + j / 2 * 8 + x % 4", "x / 4 * 4 * TN + j / 2 * 8 + (x + 1) % 4"),
    "a thread's rows": ("y / 8 * 8 * TM + i * 8 + y % 8", "y / 8 * 8 * TM + i * 8 + y % 7"),
    "a's rows": ("matrix % 2 * 8 + line][matrix / 2 * HALF]", "matrix / 2 * 8 + line][matrix / 2 * HALF]"),
    "b's k": ("line][matrix % 2 * HALF]", "line][matrix / 2 * HALF]"),
    "half of the k": ("k < BK; k += 2 * HALF", "k < BK - 2 * HALF; k += 2 * HALF"),
    "a barrier of correlate": ("store();\n            __syncthreads();", "store();"),
    "a barrier of weight_gradient": ("        __syncthreads();\n        read();", "        read();"),
}
TF32X3_FAULTS = {
    "no low parts of b": ("mma(upper, lower, a_now, &low_b[h]);", ""),
    "no low parts of a": ("mma(upper, lower, low_a, &b_now[h]);", ""),
    "low parts of the wrong sign": ("tf32(numbers[i] - high)", "tf32(high - numbers[i])"),
}


@pytest.mark.parametrize("what", some_of(TF32_FAULTS | TF32X3_FAULTS))
def test_a_fault_of_tf32_is_found(
    what: str, campaign: Campaign, cupy_double: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    precision, faults = ("tf32", TF32_FAULTS) if what in TF32_FAULTS else ("tf32x3", TF32X3_FAULTS)
    monkeypatch.setattr(cuda, "_source", lambda: _fault(*faults[what]))
    with pytest.raises(AssertionError, match=precision):
        compare_products(large_tiles(precision, monkeypatch), 10)
    campaign.survived(PLANTED, 1)


# ---- what the compiler for GPUs makes of it ----


def whole_source(folder: Path) -> Path:
    """A file of all that is compiled."""
    (folder / "kernels.cu").write_text(SOURCE)
    return folder / "kernels.cu"


@needs_nvcc
@pytest.mark.parametrize(
    ("real", "precision", "x_real", "y_real"),
    [
        *(("float", precision, "float", "float") for precision in PRECISIONS),
        *(("float", "bf16", *pair) for pair in (("float", "bf16"), ("bf16", "bf16"), ("bf16", "float"))),
        ("double", "fp32", "double", "double"),
    ],
)
def test_it_compiles_without_spilling_registers(
    real: str, precision: str, x_real: str, y_real: str, tmp_path: Any
) -> None:
    """Spilled registers live in memory, as do arrays with an index that is computed. In float two blocks of 256 threads
    fit a multiprocessor: one alone would wait for memory."""
    command = ["nvcc", "-arch=sm_90", "--cubin", *options_of(real, precision, x_real, y_real), "-Xptxas", "-v"]
    command.append(str(whole_source(tmp_path)))
    done = subprocess.run([*command, "-o", tmp_path / "k.cubin"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = re.findall(r"Compiling entry function '(\w+)'", done.stderr)
    assert len(names) == len(set(names)) >= 20
    assert set(re.findall(r"(\d+) bytes spill", done.stderr)) == {"0"}, done.stderr
    assert set(re.findall(r"(\d+) bytes stack frame", done.stderr)) == {"0"}, done.stderr
    registers = dict(zip(names, map(int, re.findall(r"Used (\d+) registers", done.stderr)), strict=True))
    most = {"correlate_narrow": 168} if real == "float" else {}  # three blocks of 128 threads
    for name, count in registers.items():
        assert count <= most.get(name, 128 if real == "float" else 255), name


# ---- a training step ----


def trained(
    device: str, kernels: str, dtype: str, steps: int, precision: str = "fp32", filters: tuple[int, ...] = (8, 8, 8)
) -> np.ndarray:
    """The losses (steps, 2) of a small VAE, trained on the same images and noise everywhere."""
    k = minigrad.use(device, kernels, precision=precision)
    vae = VAE((8, 8, 1), filters, (3, 3, 3), (1, 2, 2), 2)
    vae.to(device, dtype)
    vae.compile(1e-3)
    rng = np.random.default_rng(0)
    images, noise = rng.integers(0, 256, (6, 8, 8, 1), dtype=np.uint8), rng.standard_normal((steps, 6, 2)).astype(dtype)
    trainer = Trainer(vae, images, TrainingOptions(batch_size=6, epochs=1), progress=False)
    vae.network.train()
    scalars = np.array([[1.0, *vae.optimizer.scalars(step + 1)] for step in range(steps)], dtype)
    noise, scalars, images = k.from_host(noise), k.from_host(scalars), k.unit_range(k.from_host(images), dtype)
    counters = strict_cupy.reset()
    losses = [trainer.step(images, noise[step], scalars[step]) for step in range(steps)]
    trained.counters = copy(counters)
    return np.stack([k.to_host(row) for row in losses])


def test_float64_trains_as_on_the_cpu(cuda_device: str) -> None:
    expected, found = trained("cpu", "plain", "float64", 30), trained("cuda", "cuda", "float64", 30)
    assert (abs(found - expected) <= 1e-8 * abs(expected)).all()
    assert expected[-1, 0] < expected[0, 0], "it trains"


def test_float32_trains_as_on_the_cpu(cuda_device: str) -> None:
    """In 30 steps rounding errors grow, by no more than between two sets of kernels on the CPU, times two. The largest
    of all steps is compared: in a single step two sets may agree to the last bit by chance."""
    expected, other = trained("cpu", "plain", "float32", 30), trained("cpu", "numpy", "float32", 30)
    found = trained("cuda", "cuda", "float32", 30)
    assert (abs(found[0] - expected[0]) <= 1e-5 * abs(expected[0])).all()
    assert (abs(found - expected).max(axis=0) <= 2 * abs(other - expected).max(axis=0)).all()


def test_the_same_step_twice_gives_the_same_bits(cuda_device: str) -> None:
    assert (trained("cuda", "cuda", "float32", 3) == trained("cuda", "cuda", "float32", 3)).all()


def test_the_order_of_threads_does_not_matter(cupy_double: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """A barrier that is missing would let threads read what others have not written yet."""
    first = trained("cuda", "cuda", "float32", 3)
    for seed in (1, 2):
        monkeypatch.setattr(cuda_on_cpu.Kernel, "seed", seed)
        assert (trained("cuda", "cuda", "float32", 3) == first).all()


def test_a_step_keeps_its_budget(cupy_double: object) -> None:
    """Launches cost the host's time; a transfer or a wait would stop it."""
    trained("cuda", "cuda", "float32", 1)
    counters = trained.counters
    assert counters.launches.total() <= 107, counters.launches  # 8 of them for the bounds of log_variance
    assert (counters.to_device, counters.to_host, counters.synchronisations) == (0, 0, 0)
    assert {name for _, name in counters.float64} <= {"empty"}, "only partial sums are float64"


@pytest.mark.parametrize(("precision", "bytes_of_all"), [("fp32", 1.03 * 4), ("bf16", 1.08 * 2)])
def test_a_step_reads_and_writes_each_result_ten_times(
    precision: str, bytes_of_all: float, cupy_double: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward a layer's result is written and read. Its gradient and it are read, and the gradient behind the ReLU is
    written; for the input's gradient that is read and the input (for the sums), and one is written; for the weight's
    both are read again: 10 times the bytes of all results. Without partial sums, which do not grow with the batch. With
    bf16 the ends of the chains are float32."""
    monkeypatch.setattr(cuda, "MOST_BLOCKS", 1)
    monkeypatch.setattr(cuda, "FILL", 1)
    minigrad.use(device="cuda", precision=precision)
    vae = VAE((28, 28, 1), (32, 64, 64, 64), (3, 3, 3, 3), (1, 2, 2, 1), 2)
    vae.compile(1e-3)
    vae.network.train()
    k, found = vae.optimizer.k, []
    for batch in (2, 4):
        images, noise = np.zeros((batch, 28, 28, 1), np.float32), k.from_host(np.zeros((batch, 2), np.float32))
        trainer = Trainer(vae, images, TrainingOptions(batch_size=batch), progress=False)
        scalars = k.from_host(np.array([1.0, *vae.optimizer.scalars(1)], np.float32))
        counters = strict_cupy.reset()
        trainer.step(k.from_host(images), noise, scalars)
        found.append(counters.bytes)
    results = 28 * 28 * 32 + 14 * 14 * 64 + 2 * 7 * 7 * 64 + 2 * 7 * 7 * 64 + 14 * 14 * 64 + 28 * 28 * 64 + 28 * 28
    assert (found[1] - found[0]) / 2 <= 10 * bytes_of_all * results


# ---- capture ----


def run_of(
    epochs: int, capture: bool, batch_size: int = 6, model: Any = (), precision: str = "fp32", **options: Any
) -> tuple[Trainer, dict[str, np.ndarray]]:
    """A whole run of a small VAE on the device, with a short last batch, and what it leaves."""
    minigrad.use(device="cuda", precision=precision)
    vae = VAE((8, 8, 1), (4, 8), (3, 3), (2, 1), 2, **{"beta": 0.5, **dict(model)})
    vae.compile(1e-3)
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (20, 8, 8, 1), dtype=np.uint8), rng.integers(0, 3, 20)
    chosen = {"kl_warmup": 1, "warmup_steps": 3, "clip_norm": 100.0, **options}
    trainer = Trainer(
        vae, images, TrainingOptions(batch_size=batch_size, epochs=epochs, **chosen), labels=labels, progress=False
    )
    trainer.capture = capture
    trainer.run()
    losses = np.array([list(row.values())[1:3] for row in trainer.history.rows])
    return trainer, {**vae.network.state_dict(), **vae.optimizer.state_dict(), "losses": losses}


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"model": {"classes": 3}},
        {"binarise": True},
        {"denoise": 0.3},
        {"augment": True},
        {"model": {"beta": 1.0, "classes": 3}, "iw_samples": 3},
    ],
    ids=str,
)
def test_a_captured_run_gives_the_same_bits(kind: Any, cuda_device: str) -> None:
    """Rates, the KL weight and Adam's corrections change from step to step: a frozen number would show."""
    eager = run_of(3, capture=False, **kind)[1]
    counters = strict_cupy.reset()
    captured = run_of(3, capture=True, **kind)[1]
    assert cuda_device == "gpu" or counters.launches["graph"] == 3 * 3 - 3, "all whole batches but the warm-up"
    assert list(captured) == list(eager)
    for name, value in eager.items():
        np.testing.assert_array_equal(captured[name], value, err_msg=name)


def test_a_replay_is_a_handful_of_launches(cupy_double: object) -> None:
    trainer, _ = run_of(2, capture=True, batch_size=5)
    take_step, counters = trainer.k.capture(trainer.step), strict_cupy.reset()
    order, noise, scalars = trainer.sample_epoch()
    for i in (0, 1, 2, 3, 0, 1, 2, 3):
        if i == 0:
            counters = strict_cupy.reset()  # in the second epoch all are replays
        rows = slice(5 * i, 5 * i + 5)
        images = trainer.k.unit_range(trainer.feed.images, trainer.feed.dtype, order[rows])
        take_step(images, noise[rows], scalars[i])
    assert counters.launches["graph"] == 4
    assert counters.launches.total() <= 4 * 8, counters.launches


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(lambda k, x: float(x.sum()), id="reads back"),
        pytest.param(lambda k, x: k.xp.asarray([1.0]), id="copies from the host"),
        pytest.param(lambda k, x: k.xp.matmul(x[:, None], x[None]), id="calls cuBLAS"),
    ],
)
def test_a_step_that_cannot_be_captured_says_why(fault: Any, cuda_device: str) -> None:
    k = minigrad.use(device="cuda")

    def step(x: Any) -> Any:
        fault(k, x)
        return x * 2.0

    x = k.from_host(np.ones(3, np.float32))
    take_step = k.capture(step)
    for _ in range(3):
        take_step(x)
    with pytest.raises(minigrad.DeviceError, match=r"cannot be captured as a CUDA graph: .*--no-capture"):
        take_step(x)
    assert k.to_host(k.capture(lambda x: x * 2.0)(x)).tolist() == [2, 2, 2], "the device works on"


def test_ctrl_c_while_a_step_is_recorded_ends_the_recording(cuda_device: str) -> None:
    """A stream that still records fails when it is freed, and says so at the end of the program."""
    k = minigrad.use(device="cuda")
    calls = iter(range(10))

    def step(x: Any) -> Any:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return x * 2.0

    x = k.from_host(np.ones(3, np.float32))
    take_step = k.capture(step)
    for _ in range(3):
        take_step(x)
    with pytest.raises(KeyboardInterrupt):
        take_step(x)
    assert k.to_host(take_step(x)).tolist() == [2, 2, 2]


def test_each_size_of_batch_is_recorded(cuda_device: str) -> None:
    """Also where the first batch is the short one, as in a run that is resumed at the end of an epoch."""
    k = minigrad.use(device="cuda")
    numbers = iter(range(20))
    take_step = k.capture(lambda x: x.sum() + float(next(numbers)))
    found = [float(k.to_host(take_step(k.from_host(np.zeros(n, np.float32))))) for n in [2] + 5 * [3] + 4 * [2]]
    assert found == [0, 1, 2, 3, 4, 4, 5, 6, 7, 7]


@pytest.mark.parametrize("missing", ["before the step", "after the step"])
def test_a_wait_that_is_missing_is_seen(missing: str, cupy_double: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the first the step reads what is not there yet, without the second whoever takes its result does."""
    wait, default = strict_cupy.Stream.wait_event, strict_cupy.cupy.cuda.get_current_stream()

    def wait_event(stream: Any, event: Any) -> None:
        if (stream is default) != (missing == "after the step"):
            wait(stream, event)

    monkeypatch.setattr(strict_cupy.Stream, "wait_event", wait_event)
    with pytest.raises(RuntimeError, match="nothing orders the two"):
        run_of(2, capture=True)


def test_a_captured_step_keeps_what_it_was_given_and_gave(cuda_device: str) -> None:
    """Whoever calls it may hold the arguments and results of all calls and write on them: nothing is shared, before the
    recording and after it, with the recorded memory. None stays None, and other shapes or dtypes run as they are."""
    k = minigrad.use(device="cuda")
    take_step, keep = k.capture(lambda x, none, y: x * 2.0 + y if none is None else x), k.capture(lambda x: x)
    counters = strict_cupy.reset()
    given: list[Any] = []
    results, wanted = [], []
    for i in range(9):
        shape, dtype = (2 if i == 4 else 3), ("float64" if i == 6 else "float32")
        x, y = (np.full(shape, number, dtype) for number in (i, 0.5))
        given += [(k.from_host(x), x), (k.from_host(y), y)]
        results.append(take_step(given[-2][0], None, given[-1][0]))
        wanted.append(2 * x + y)
        if i % 2:
            results[-1] += 1.0
            wanted[-1] += 1
        results.append(keep(given[-2][0]))
        wanted.append(x)
    for found, host in [*given, *zip(results, wanted, strict=True)]:
        assert found.dtype == host.dtype
        np.testing.assert_array_equal(k.to_host(found), host)
    assert cuda_device == "gpu" or counters.launches["graph"] == 2 * (9 - 3 - 2)


def test_what_a_failing_step_has_written_can_be_read(cuda_device: str) -> None:
    """Whoever saves a model after an error reads what the step was writing."""
    k = minigrad.use(device="cuda")
    x, one = (k.from_host(np.full(3, number, np.float32)) for number in (0, 1))

    def step(a: Any) -> Any:
        x[...] = a
        raise MemoryError("no more")

    with pytest.raises(MemoryError, match="no more"):
        k.capture(step)(one)
    assert k.to_host(x).tolist() == [1, 1, 1]


def test_a_graph_gets_the_memory_that_others_leave(cupy_double: object) -> None:
    k = minigrad.use(device="cuda")
    held = k.from_host(np.zeros(1000, np.float32))
    assert k.capture(lambda x: x).pool.get_limit() == 0, "no limit"
    gc.collect()
    used = strict_cupy.cupy.get_default_memory_pool().used_bytes()
    for limit, left in ((used + 5000, 5000), (used - 1, 1)):
        k.limit_memory(limit)
        assert k.capture(lambda x: x).pool.get_limit() == left
    k.limit_memory(0)
    inside: list[bool] = []

    def step(x: Any) -> Any:
        inside.append(strict_cupy._own_memory)
        return x * 2.0

    take_step = k.capture(step)
    for _ in range(6):
        take_step(held)
    assert inside == 4 * [True], "three times in that memory before it is recorded there"


def test_on_the_cpu_a_step_is_called_as_it_is() -> None:
    step = lambda x: x  # noqa: E731
    assert minigrad.use(kernels="numpy").capture(step) is step


# ---- benchmarks/gpu.py ----


def test_the_gpu_benchmark_runs(cupy_double: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    """Every measurement once, on the double: that the program works when a GPU is at hand."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    gpu = importlib.import_module("gpu")
    small = {"conv_filters": (4, 4), "conv_kernels": (3, 3), "conv_strides": (2, 2)}
    monkeypatch.setattr(gpu.driver, "DEFAULT_MODEL", gpu.driver.DEFAULT_MODEL | small)
    monkeypatch.setattr(gpu, "LAYERS", gpu.LAYERS[:1])
    monkeypatch.setitem(sys.modules, "torch", None)
    assert gpu.main(["--quick", "--batches", "2", "--out", str(tmp_path / "gpu.json")]) == 0
    out = capsys.readouterr().out
    for precision in PRECISIONS:
        for program in ("minigrad eager", gpu.WITH_NCCL):
            assert re.search(rf"batch +2  {precision}  {re.escape(program)} +\d+ us a step\n", out), out
    assert importlib.import_module("report").main(["--results", str(tmp_path)]) == 0
    text = (tmp_path / "gpu.md").read_text()
    assert "default VAE on double 0" in text
    for precision in PRECISIONS:
        row = rf"\| \*\*minigrad eager\*\* \| \*\*2\*\* \| \*\*{precision}\*\* \| \*\*[\d,]+\*\* \|"
        assert re.search(row, text), text
        assert f"| conv 28 1-32: backward, batch 2 | {precision} |" in text
    assert (tmp_path / "gpu.png").stat().st_size > 5000


def test_the_gpu_benchmark_says_that_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    gpu = importlib.import_module("gpu")
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert gpu.main(["--quick"]) == 4
    assert "device cuda needs CuPy" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "cudnn", None)
    assert importlib.import_module("referee").main([]) == 4
    assert "cudnn" in capsys.readouterr().err


# ---- memory ----


def trainer_on_the_device(
    batch: int,
    model: type = VAE,
    filters: Any = (8, 16),
    strides: Any = (1, 2),
    precision: str = "fp32",
    **options: Any,
) -> Trainer:
    minigrad.use(device="cuda", precision=precision)
    made = model((12, 12, 1), filters, (3,) * len(filters), strides, 2)
    made.compile(1e-3)
    images = np.random.default_rng(0).integers(0, 256, (batch, 12, 12, 1), dtype=np.uint8)
    return Trainer(made, images, TrainingOptions(batch_size=batch, epochs=1, **options), progress=False)


OPTIONS = ({"iw_samples": 5}, {"denoise": 0.3}, {"binarise": True}, {"augment": True})
CHAINS = [((8, 16), (1, 2)), ((4,), (1,)), ((4, 4, 32), (2, 1, 1))]


@pytest.mark.parametrize(
    ("model", "chain", "options"),
    [
        *((VAE, chain, {}) for chain in CHAINS),
        (Autoencoder, CHAINS[0], {}),
        *((VAE, CHAINS[0], o) for o in OPTIONS),
    ],
    ids=str,
)
def test_the_memory_of_a_step_is_known_before(model: Any, chain: Any, options: Any, cupy_double: object) -> None:
    """At least what the arrays hold at the peak, and at most half as much again; the workspace apart."""
    trainer = trainer_on_the_device(40, model, *chain, **options)
    trainer.capture = False
    gc.collect()
    before = strict_cupy.cupy.get_default_memory_pool().used_bytes()
    strict_cupy.reset()
    trainer.run()
    held = strict_cupy.counters.peak_memory - before
    fixed, bytes_per_image = step_memory(trainer.model, trainer.options.iw_samples)
    assert held - fixed / 4 <= 40 * bytes_per_image <= 1.5 * held, (held, bytes_per_image)


def test_a_batch_that_does_not_fit_is_refused_before_the_first_step(cupy_double: object) -> None:
    trainer = trainer_on_the_device(40)
    fixed, bytes_per_image = step_memory(trainer.model)
    used = strict_cupy.cupy.get_default_memory_pool().used_bytes()
    trainer.k.limit_memory(used + fixed + 10 * bytes_per_image)
    with pytest.raises(minigrad.DeviceError, match=r"40 images needs about 0.0\d GiB on cuda:0.*fits is \d+ \(--batch"):
        trainer.run()
    trainer.k.limit_memory(used + fixed)
    with pytest.raises(minigrad.DeviceError, match="not even one image fits"):
        trainer.run()
    assert trainer.progress.step == 0


@pytest.mark.parametrize("capture", [False, True])
def test_running_out_of_memory_says_what_to_do(capture: bool, cupy_double: object, monkeypatch: Any) -> None:
    trainer = trainer_on_the_device(40)
    trainer.capture = capture
    monkeypatch.setattr("autoencoders.training.steps.check_memory", lambda *_: None)
    trainer.k.limit_memory(strict_cupy.cupy.get_default_memory_pool().used_bytes() + 100_000)
    with pytest.raises(minigrad.DeviceError, match=r"out of memory in a step on 40 images: .*try --batch-size 20"):
        trainer.run()
