"""The CPU kernels with the work between matrix products compiled by Numba (extra `fast`); see layer_loops.py.

Faster because a thread computes its images in one compiled call, without the interpreter, and because one pass over a
block does all operations, where NumPy makes one pass for each. NumPy's BLAS still computes the matrix products.
Measured by benchmarks/ops.py and benchmarks/train.py.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..chain import Layer
from ..geometry import ConvGeometry
from ..reference import AdamOptions
from . import layer_loops, row_loops
from .numpy_channels import Moments
from .numpy_kernels import FUNCTION_NUMBERS, CpuBackend
from .numpy_layers import InferenceLayer, Planner, coverage_of, images_per_block
from .pixel_loops import STEP
from .plan import THIN, adjoint, convolution, phases
from .threads import Pool, blas_libraries
from .winograd import AXIS, winograd

Array = Any
NAMES = (  # (prefix, suffix, integer type) of the functions of BLAS; the names in NumPy's wheels come first
    ("scipy_", "64_", ctypes.c_int64),
    ("", "64_", ctypes.c_int64),
    ("scipy_", "", ctypes.c_int),
    ("", "", ctypes.c_int),
)
NO_STEPS, NO_AXES = np.zeros(0, STEP), np.zeros(0, AXIS)


class CompiledPlan(NamedTuple):
    """A plan as `layer_loops.convolve` takes it: products over columns, or else a Winograd algorithm."""

    output_size: tuple[int, int]
    channels: int
    work: tuple[int, int]  # numbers in the columns and in the product of one image
    taps: Array  # of the algorithm, or empty
    steps: Array
    axes: Array
    matrices: Array

    def numbers(self, _: int) -> int:
        """Numbers that one image takes at work."""
        return sum(self.work)


class NumbaLayers:
    """Runs layers on the threads of a pool, as NumpyLayers does; faster because a thread does all of its images in one
    call, without the interpreter."""

    block_bytes = 1 << 19

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def plan(self, planner: Planner, weight: Array, geometry: ConvGeometry) -> CompiledPlan:
        """Faster because 3x3 layers with many channels take fewer multiplications; see winograd.py."""
        C, F = weight.shape[2:]
        back = planner is adjoint
        size, channels = (geometry.input_size, C) if back else (geometry.output_size, F)
        algorithm = winograd(geometry, C, F)
        if algorithm is not None:
            x_numbers, y_numbers = algorithm.numbers(C, F)
            work = (y_numbers, x_numbers) if back else (x_numbers, y_numbers)
            axes, taps = algorithm.back_axes if back else algorithm.axes, algorithm.taps.astype(weight.dtype)
            with self.pool.single_threaded_blas:
                return CompiledPlan(size, channels, work, taps, NO_STEPS, axes, algorithm.matrices(weight, back))
        columns, steps, order = _steps(planner, geometry, weight.shape)
        matrices = np.ascontiguousarray(weight).reshape(-1)
        if order is not None:
            matrices = matrices.take(order)
        work, taps = (columns, math.prod(size) * channels), np.empty((0, 9), weight.dtype)
        return CompiledPlan(size, channels, work, taps, steps, NO_AXES, matrices)

    def run(
        self,
        planner: Planner,
        x: Array,
        weight: Array,
        bias_image: Array | None,
        geometry: ConvGeometry,
        relu: bool,
    ) -> tuple[Array, Moments]:
        """(y, moments): y is the planner's convolution of all images plus bias. With relu, y is its ReLU and moments
        are those of y."""
        plan = self.plan(planner, weight, geometry)
        y = np.empty((len(x), *plan.output_size, plan.channels), x.dtype)
        moments = Moments(self.pool.threads, plan.channels)
        images = images_per_block(self, plan, x)
        x, bias = np.ascontiguousarray(x), _or_empty(bias_image, 3, x.dtype)

        def task(shard: int, part: slice) -> None:
            results = y[part], moments.shifts[shard], moments.sums[shard]
            scratch = self._scratch(min(images, len(x[part])), (*plan.work, 0), x.dtype)
            gemm = compiled_gemm(x.dtype)
            layer_loops.conv_layer(gemm, x[part], *plan[4:], bias, relu, *results, images, scratch)
            moments.counts[shard] = (part.stop - part.start) * math.prod(plan.output_size)

        self.pool.run(task, len(x), len(x))
        return y, moments

    def gradients(
        self, gy: Array, grad_rows: Array | None, y: Array, x: Array, layer: Layer, needs_gx: bool
    ) -> tuple[Array | None, Array, Array]:
        """What NumpyLayers.gradients computes."""
        weight, _, geometry, transposed = layer
        gy, y, x, weight = _contiguous(gy, y, x, weight)
        threads, F = self.pool.threads, weight.shape[3]
        forward = self.plan(convolution, weight, geometry)
        back = self.plan(adjoint, weight, geometry) if needs_gx and not transposed else forward
        numbers = [max(sizes) for sizes in zip(forward.work, back.work, strict=True)]
        images = images_per_block(self, forward, x)
        gx = np.empty(x.shape if needs_gx else (0,) * 4, x.dtype)
        matrix = weight.reshape(-1, F)
        gweights = np.zeros((threads, *matrix.shape), x.dtype)
        totals = np.zeros((threads, math.prod(y.shape[1:])), x.dtype)
        rows = _or_empty(grad_rows, 2, x.dtype)

        def task(shard: int, part: slice) -> None:
            plans = forward.steps, forward.axes, forward.taps, matrix, transposed, back.steps, back.matrices
            results = gx[part], gweights[shard], totals[shard]
            scratch = self._scratch(min(images, len(x[part])), (*numbers, y[:1].size), x.dtype)
            arrays = gy[part], rows, y[part], x[part]
            layer_loops.conv_layer_grad(compiled_gemm(x.dtype), *arrays, *plans, *results, images, scratch)

        self.pool.run(task, len(x), len(x))
        gweights, totals = gweights.reshape(-1, *weight.shape), totals.reshape(threads, -1, y.shape[3])
        return gx if needs_gx else None, gweights, totals

    def fold(self, rows: Array, layer: Layer) -> tuple[Array, Array]:
        """What NumpyLayers.fold computes."""
        weight, bias, geometry, transposed = layer
        coverage = coverage_of(geometry, transposed, weight.dtype)
        folded, bias_image = np.empty(weight.shape, weight.dtype), np.empty((len(coverage), len(bias)), weight.dtype)
        rows, weight, bias = _contiguous(rows, weight, bias)
        arguments = rows, weight, bias, coverage, transposed, folded, bias_image
        with self.pool.single_threaded_blas:
            layer_loops.fold(compiled_gemm(weight.dtype), *arguments)
        return folded, bias_image.reshape(*layer.output_size, -1)

    def unfold(
        self, rows: Array | None, layer: Layer, gweights: Array, totals: Array
    ) -> tuple[Array | None, Array, Array]:
        """What NumpyLayers.unfold computes."""
        weight, _, geometry, transposed = layer
        dtype, coverage = weight.dtype, coverage_of(geometry, transposed, weight.dtype)
        gweight, gbias = np.empty(weight.shape, dtype), np.empty(totals.shape[2], dtype)
        sums = np.zeros((2, weight.shape[3 if transposed else 2]))
        arguments = _or_empty(rows, 2, dtype), np.ascontiguousarray(weight), gweights, totals, coverage, transposed
        with self.pool.single_threaded_blas:
            layer_loops.unfold(compiled_gemm(dtype), *arguments, sums, gweight, gbias)
        return None if rows is None else sums.astype(dtype), gweight, gbias

    def chain(self, links: list[InferenceLayer]) -> Callable[[Array, Array], None]:
        """A function (x, y) that runs the block x through the layers in one call and writes the result into y."""
        table = np.zeros(len(links), layer_loops.LAYER)
        arrays = [(plan.steps, plan.axes, plan.matrices, bias_image.reshape(-1)) for plan, bias_image, _, _ in links]
        starts = [0, 0, 0, 0]
        for record, (plan, _, relu, images), parts in zip(table, links, arrays, strict=True):
            record["output_size"], record["channels"], record["relu"] = plan.output_size, plan.channels, relu
            record["images"] = images
            stops = [start + len(part) for start, part in zip(starts, parts, strict=True)]
            record["steps"], record["axes"], record["matrices"], record["bias"] = zip(starts, stops, strict=True)
            starts = stops
        joined = [_joined(parts) for parts in zip(*arrays, strict=True)]
        pixels = [math.prod(plan.output_size) * plan.channels for plan, *_ in links]

        def infer(x: Array, y: Array) -> None:
            columns, product = (max(images * plan.work[i] for plan, *_, images in links) for i in (0, 1))
            *scratch, even, odd = self._scratch(1, (columns, product, *2 * (len(x) * max(pixels),)), x.dtype)
            arguments = np.ascontiguousarray(x), table, *joined, y, (even, odd), (*scratch, even)
            layer_loops.chain(compiled_gemm(x.dtype), *arguments)

        return infer

    def _scratch(self, images: int, numbers: tuple[int, ...], dtype: Any) -> tuple[Array, ...]:
        """Scratch arrays of this thread, in the order of layer_loops.COLUMNS, PRODUCT, GRADIENT, ...

        numbers: the size of each array for one image.
        """
        return tuple(self.pool.scratch(f"flat {i}", (images * count,), dtype) for i, count in enumerate(numbers))


class NumbaChannels:
    """What NumpyChannels does, in one pass over a block."""

    def per_channel(self, values: Array, x: Array) -> Array:
        """Values (..., C) in the form in which these methods want them."""
        return np.ascontiguousarray(values)

    def normalise(self, x: Array, rows: Array, y: Array) -> None:
        """y = (x - mean) * scale + beta."""
        row_loops.normalise(_rows(x), rows, _rows(y))

    def add_moments(self, x: Array, moments: Moments, shard: int) -> None:
        """Add the values of a block to the moments."""
        sums, shift = moments.begin(x, shard)
        row_loops.add_moments(_rows(x), shift, sums)

    def gradient_sums(self, gy: Array, x: Array, mean: Array, sums: Array) -> None:
        """sums (2, C) += sum of gy, and of gy * (x - mean)."""
        row_loops.gradient_sums(_rows(gy), _rows(x), mean, sums)

    def norm_gradient(self, gy: Array, x: Array, grad_rows: Array, gx: Array) -> None:
        """gx = scale * (gy - offset - (x - mean) * slope)."""
        row_loops.norm_gradient(_rows(gy), _rows(x), grad_rows, _rows(gx))


class JitBackend(CpuBackend):
    """The kernels on `threads` threads; None: the cores that this process may use."""

    kernels = "numba"

    def __init__(self, threads: int | None = None) -> None:
        self.prepare(np.dtype("float32"))
        super().__init__(threads)
        self.layers, self.channels = NumbaLayers(self.pool), NumbaChannels()

    def prepare(self, dtype: Any) -> None:
        """Compile the loops for a dtype, or load them from Numba's cache on disk."""
        compiled_gemm(dtype)

    def adam_step_(
        self,
        parameters: Array,
        first_moment: Array,
        second_moment: Array,
        gradients: Array,
        scalars: Array,
        options: AdamOptions,
    ) -> None:
        """Faster because one pass on threads does all."""
        numbers = np.array(options, parameters.dtype)

        def task(_: int, block: slice) -> None:
            arrays = parameters[block], first_moment[block], second_moment[block], gradients[block]
            row_loops.adam(*arrays, scalars, *numbers)

        self.pool.run(task, len(parameters), len(parameters), least=FUNCTION_NUMBERS)


def _rows(x: Array) -> Array:
    """(..., C) -> (rows, C), contiguous."""
    return np.ascontiguousarray(x).reshape(-1, x.shape[-1])


def _contiguous(*arrays: Array) -> Iterator[Array]:
    """The arrays, contiguous: Numba compiles for one layout."""
    return map(np.ascontiguousarray, arrays)


def _or_empty(array: Array | None, axes: int, dtype: Any) -> Array:
    """The array, contiguous, or an empty one for None: Numba compiles for one type."""
    return np.empty((0,) * axes, dtype) if array is None else np.ascontiguousarray(array)


def _joined(arrays: tuple[Array, ...]) -> Array:
    """One after another; as bytes, because NumPy compares the fields of records one by one."""
    return np.concatenate([array.view(np.uint8) for array in arrays]).view(arrays[0].dtype)


@lru_cache(maxsize=256)
def _steps(planner: Planner, geometry: ConvGeometry, shape: tuple[int, ...]) -> tuple[int, Array, Array | None]:
    """(columns, steps, order) for a weight of this shape.

    columns: how many numbers the im2col columns of one image hold. steps: the products, as records of STEP. order: the
    indices that gather the products' matrices from the flat weight; None if it is used as it is. They are found by
    planning with a weight of 0, 1, 2, ...
    """
    numbers = np.arange(math.prod(shape)).reshape(shape)
    plan = phases(numbers, geometry) if planner is adjoint else convolution(numbers, geometry)
    steps: list[tuple[Any, ...]] = []
    matrices: list[Array] = []
    for number, (window, products) in enumerate(plan.parts):
        for product in products:
            taps, start = product.taps.start or 0, sum(matrix.size for matrix in matrices)
            steps.append(
                (
                    number,
                    window.output_size,
                    window.kernel_size,
                    window.stride,
                    window.start,
                    (taps, taps + len(product.matrix)),
                    (product.rows.start or 0, product.columns.start or 0),
                    (product.rows.step or 1, product.columns.step or 1),
                    (start, start + product.matrix.size),
                )
            )
            matrices.append(product.matrix.T if plan.channels < THIN else product.matrix)
    order = np.concatenate([matrix.reshape(-1) for matrix in matrices])
    columns = plan.numbers(shape[3 if planner is adjoint else 2]) - math.prod(plan.output_size) * plan.channels
    return columns, np.array(steps, STEP), None if np.array_equal(order, numbers.reshape(-1)) else order


@cache
def compiled_gemm(dtype: Any) -> Any:
    """BLAS's matrix product for a dtype. The first call also compiles the loops that use it."""
    gemm = matrix_products()[dtype]
    layer_loops.prepare(gemm, dtype)
    return gemm


@cache
def matrix_products() -> dict[Any, Any]:
    """The general matrix product of NumPy's BLAS for each dtype, as a C function.

    Raises:
        ImportError: no BLAS library of this process has it under a known name.
    """
    size, pointer = ctypes.c_int, ctypes.c_void_p
    for library in blas_libraries():
        functions = ctypes.CDLL(library.filepath)
        for prefix, suffix, integer in NAMES:
            found = {}
            for letter, number in (("s", ctypes.c_float), ("d", ctypes.c_double)):
                gemm = getattr(functions, f"{prefix}cblas_{letter}gemm{suffix}", None)
                if gemm is None:
                    break
                gemm.restype = None
                matrix = [pointer, integer]
                gemm.argtypes = [*3 * [size], *3 * [integer], number, *matrix, *matrix, number, *matrix]
                found[np.dtype(number)] = gemm
            if len(found) == 2:
                return found
    names = ", ".join(library.filepath for library in blas_libraries()) or "none"
    raise ImportError(f"cblas_sgemm is not found in the BLAS libraries of this process ({names})")
