"""The CUDA kernels: those of source/ on the arrays of CuPy.

None of them reads anything back from the device, uses an atomic operation or depends on the number of the GPU's
processors: the same call gives the same bits on every device of one kind.

Compared with the plain kernels by tests/kernels/test_backends.py, on a GPU and, by running source/ on the CPU, without
one.
Measured by benchmarks/gpu.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..chain import FastBackend, Layer, LayerGradients, LayerOutput, Norm, Source, without_gaps
from ..errors import DeviceError
from ..geometry import ConvGeometry
from ..reference import AdamOptions
from ..sharing import sharers
from .capture import Captured

Array = Any
MOST_NUMBERS = 2**31 - 2**20  # in an array: the kernels count in 32 bits, and their last step goes beyond the end
MOST_BLOCKS = 512  # blocks of threads for a pass over all numbers of an array
FEW_ROWS = 256  # up to this many rows are summed by one block of threads
FILL = 132  # multiprocessors of a large GPU; in float, each of them runs `resident` blocks of a kernel at a time
NAMES = "common", "tiles", "correlate", "weight_gradient", "thin", "products", "rows", "elementwise"
SOURCES = [Path(__file__).parent / f"source/{name}.cu" for name in NAMES]  # one text, in this order
THIN, PIXELS, LANES, WINDOW, RUN, GROUP, LISTED = (
    16,
    64,
    16,
    3,
    16,
    8,
    64,
)  # as in source/, and so are LARGE and FEW_COLUMNS
LARGE = {"float32": 128, "float64": 64}  # pixels of a large tile; for the weight gradient, taps times channels
FEW = 4  # a convolution to at most this many channels has its own kernel
FEW_COLUMNS = 4  # a matrix product with at most this many columns has its own kernel
ADDITIONS = np.dtype([("total", "u8", LISTED), ("value", "u8", LISTED), ("size", "i4", LISTED), ("end", "i4", LISTED)])
NULL = np.uint64(0)  # an array that is absent
BF16 = np.dtype("uint16")  # NumPy has none: of the arrays that hold it
C_TYPES = {"float32": "float", "float64": "double", BF16.name: "bf16"}


def _computed(dtype: Any) -> Any:
    """The dtype in which numbers stored as that one are computed."""
    return np.dtype("float32") if dtype == BF16 else dtype


@cache
def _source() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)


class CudaBackend(FastBackend):
    """The kernels on the current CUDA device.

    Args:
        precision: `fp32`, `tf32`, `tf32x3` or `bf16`. With tf32, convolutions of float32 arrays round their factors to
            a mantissa of 10 bits instead of 23; sums are not rounded. With tf32x3, a factor is the sum of two such
            numbers, high and low, and a product is high * high + high * low + low * high, which errs by at most
            3 * 2^-22 of itself; an infinite factor gives NaN. With bf16, factors are rounded to a mantissa of 7 bits.
            Convolutions with few taps times channels, or with a result of few channels, have other kernels and never
            round factors.

    With bf16, the arrays between the layers of a chain, and their gradients, are also stored as bf16: arrays of uint16,
    half the memory. Statistics are those of the stored numbers. All else stays float32.

    Raises:
        DeviceError: the device has no such tensor cores.
    """

    kernels = "cuda"

    def __init__(self, xp: Any, precision: str = "fp32") -> None:
        super().__init__(xp)
        if precision != "fp32" and int(xp.cuda.Device().compute_capability) < 80:
            raise DeviceError(f"precision {precision} needs a GPU of compute capability 8.0 or higher; choose fp32")
        self.precision = precision
        self._modules: dict[Any, Any] = {}  # by the dtypes of x and y
        self._functions: dict[tuple[str, Any], Any] = {}

    def _launch(self, name: str, dtypes: Any, grid: tuple[int, ...], threads: int, *arguments: Any) -> None:
        """Run a kernel. dtypes: of x and y in source/, or that of all. Integers become `int`, floats `real`; None is a
        null pointer; the rest is passed as it is."""
        dtypes = dtypes if isinstance(dtypes, tuple) else (dtypes, dtypes)
        real = _computed(dtypes[0])
        function = self._functions.get((name, dtypes))
        if function is None:
            if dtypes not in self._modules:
                kinds = zip(("REAL", "X_REAL", "Y_REAL"), (real, *dtypes), strict=True)
                options = ["-std=c++17", *(f"-D{name}={C_TYPES[kind.name]}" for name, kind in kinds)]
                options.append(f"-DPRECISION={(self.precision if real == 'float32' else 'fp32').upper()}")
                self._modules[dtypes] = self.xp.RawModule(code=_source(), options=tuple(options))
            function = self._functions[name, dtypes] = self._modules[dtypes].get_function(name)
        given = tuple(self._argument(value, real) for value in arguments)
        function(tuple(max(1, size) for size in grid), (threads,), given)

    def _argument(self, value: Any, dtype: Any) -> Any:
        if value is None:
            return NULL
        if isinstance(value, int):
            return np.int32(value)
        if type(value) is float:
            return dtype.type(value)
        if isinstance(value, self.xp.ndarray) and value.size > MOST_NUMBERS:
            raise MemoryError(f"the cuda kernels take arrays of at most {MOST_NUMBERS} numbers, found {value.shape}")
        return value

    def describe(self) -> str:
        return super().describe() + (f", precision {self.precision}" if self.precision != "fp32" else "")

    def _contiguous(self, *arrays: Array | None) -> Any:
        return tuple(None if x is None else self.xp.ascontiguousarray(x) for x in arrays)

    def capture(self, step: Callable[..., Array]) -> Callable[..., Array]:
        """Faster because a call is one launch of a CUDA graph; see capture.py."""
        return Captured(self.xp, step)

    def _quads(self, *arrays: Array | None) -> bool:
        """Whether four channels of each array may be read at once."""
        return all(x is None or (x.shape[-1] % 4 == 0 and x.data.ptr % 16 == 0) for x in arrays)

    # ---- images and gradients ----

    def unit_range(self, images: Array, dtype: Any, rows: Array | None = None) -> Array:
        """Faster as one launch that reads the bytes where they are."""
        if rows is None or images.dtype != "uint8" or rows.dtype != "int64":
            return super().unit_range(images, dtype, rows)
        images, rows = self._contiguous(images, rows)
        x = self.xp.empty((len(rows), *images.shape[1:]), dtype=dtype)
        size = x.size // max(len(x), 1)
        grid = len(rows), -(-size // 256)
        self._launch("unit_range", x.dtype, grid, 256, images, rows, x, size)
        return x

    def add_all_(self, totals: list[Array], values: list[Array]) -> None:
        """Faster as one launch for all of them."""
        dtype = totals[0].dtype
        if any(total.dtype != dtype or not total.flags.c_contiguous for total in totals):
            return super().add_all_(totals, values)
        values = self._contiguous(*values)
        for start in range(0, len(totals), LISTED):
            rows = slice(start, start + LISTED)
            sizes = [total.size for total in totals[rows]]
            table = np.zeros(1, ADDITIONS)
            for name, numbers in {
                "total": [total.data.ptr for total in totals[rows]],
                "value": [value.data.ptr for value in values[rows]],
                "size": sizes,
                "end": np.cumsum([-(-size // 256) for size in sizes]),
            }.items():
                table[name][0, : len(sizes)] = numbers
            self._launch("add_all", dtype, (int(table["end"].max()),), 256, table)
        return None

    # ---- products ----

    def matmul(self, a: Array, b: Array) -> Array:
        """Faster because a long sum is shared by many blocks of threads; a transposed matrix is read where it lies."""
        if a.ndim != 2 or b.ndim != 2:
            return super().matmul(a, b)
        (M, K), (_, N) = a.shape, b.shape
        a, *a_strides = self._strided(a)
        b, *b_strides = self._strided(b)
        shape, y_strides = (M, N), (N, 1)
        if M < N and M <= FEW_COLUMNS:  # the transposed product of the transposed matrices has few columns
            y_strides = 1, N
            M, N, a, b, a_strides, b_strides = N, M, b, a, b_strides[::-1], a_strides[::-1]
        thin = N <= FEW_COLUMNS
        name, rows, columns = ("matrix_product_thin", 256, FEW_COLUMNS) if thin else ("matrix_product", 32, 32)
        tiles = -(-M // rows) * -(-N // columns)
        shares = max(1, min(-(-4 * FILL // max(tiles, 1)), -(-K // 64)))
        partial = self.xp.empty((shares, *shape), dtype=a.dtype)
        k_a_share = -(-K // shares)
        grid = -(-M // rows), -(-N // columns), shares
        strides = *a_strides, *b_strides, *y_strides
        self._launch(name, a.dtype, grid, 256, a, b, partial, M, K, N, *strides, k_a_share)
        return self._added(partial)

    def _strided(self, matrix: Array) -> tuple[Array, int, int]:
        """(contiguous array, steps from row to row and from column to column in it)."""
        if matrix.T.flags.c_contiguous:
            return matrix.T, 1, matrix.shape[0]
        return self.xp.ascontiguousarray(matrix), matrix.shape[1], 1

    def _added(self, shares: Array) -> Array:
        """The sum over the first axis."""
        if len(shares) == 1:
            return shares[0]
        total = self.xp.empty(shares.shape[1:], dtype=shares.dtype)
        self._launch("add_shares", total.dtype, (-(-total.size // 64),), 512, shares, total, len(shares), total.size)
        return total

    # ---- convolution ----

    @without_gaps
    def conv2d(self, x: Array, weight: Array, bias: Array | None, geometry: ConvGeometry) -> Array:
        """Faster because no columns are written: the product reads its numbers from x."""
        return self._correlate(x, None, weight, bias, geometry, adjoint=False)[0]

    @without_gaps
    def conv2d_grad_input(self, gy: Array, weight: Array, geometry: ConvGeometry) -> Array:
        """Faster because nothing is scattered: a pixel gathers from the outputs that it took part in."""
        return self._correlate(gy, None, weight, None, geometry, adjoint=True)[0]

    @without_gaps
    def conv2d_grad_weight(self, x: Array, gy: Array, geometry: ConvGeometry) -> Array:
        """Faster because no columns are written, and the pixels are shared by many blocks of threads."""
        return self._added(self._weight_gradient(x, None, gy, None, geometry))

    def _correlate(
        self,
        x: Array,
        norm: Array | None,
        weight: Array,
        bias: Array | None,
        geometry: ConvGeometry,
        adjoint: bool,
        relu: bool = False,
        other: Array | None = None,
        sums: bool = False,
        y_dtype: Any = None,
    ) -> tuple[Array, Array | None]:
        """(y, partials) of the convolution of the normalised x, or its adjoint, + bias, and its ReLU if asked for; and
        with sums the partial sums of y and of y * other (y * y without other). y has x's dtype, or the one given,
        which is also that of other."""
        x, norm, weight, bias, other = self._contiguous(x, norm, weight, bias, other)
        (KH, KW), (SH, SW), ((top, _), (left, _)) = geometry.kernel_size, geometry.stride, geometry.pads
        N, H, W, C = x.shape
        OH, OW = geometry.input_size if adjoint else geometry.output_size
        F, phases = (weight.shape[2], SH * SW) if adjoint else (weight.shape[3], 1)
        y = self.xp.empty((N, OH, OW, F), dtype=y_dtype or x.dtype)
        dtypes = x.dtype, y.dtype
        pixels = N * (-(-OH // SH) * -(-OW // SW) if adjoint else OH * OW)  # of the largest phase
        sizes = N, H, W, C, OH, OW, F, KH, KW, SH, SW, top, left
        x_quads = self._quads(x, norm)
        neighbours = max(KH, KW) <= WINDOW and (adjoint or SW == 1)
        if F <= FEW and not sums and C <= 4 * LANES and neighbours and x_quads:
            grid = min(-(-pixels * LANES // (256 * RUN)), 8 * MOST_BLOCKS), 1, phases
            arrays = x, norm, weight, bias, y
            self._launch("correlate_thin_output", dtypes, grid, 256, *arrays, *sizes, adjoint, relu)
            return y, None
        thin = KH * KW * C <= THIN and not adjoint
        large = LARGE[weight.dtype.name]
        if thin:
            name, rows, columns, threads, resident = "correlate_thin_input", PIXELS, 32, 256, 3
        elif -(-pixels // large) * -(-F // 64) * phases >= FILL:
            name, rows, columns, threads, resident = "correlate_large", large, 64, 256, 2
            if F <= 32:
                name, columns, threads, resident = "correlate_narrow", 32, 128, 3
        else:
            name, rows, columns, threads, resident = "correlate_small", 64, 32, 128, 4
        blocks = max(1, min(-(-pixels // rows), resident * FILL // max(1, -(-F // columns))))
        partials = self.xp.empty((phases * blocks, 2, F), dtype="float64") if sums else None
        everything = x, norm, weight, bias, other, y, partials
        w_quads = C % 4 == 0 and weight.data.ptr % 16 == 0  # of the adjoint, which reads channels of x in a row
        options = (relu,) if thin else (adjoint, relu, x_quads, w_quads, self._quads(y, other))
        self._launch(name, dtypes, (blocks, -(-F // columns), phases), threads, *everything, *sizes, *options)
        return y, partials

    def _weight_gradient(
        self, x: Array, x_norm: Array | None, g: Array, g_norm: Array | None, geometry: ConvGeometry
    ) -> Array:
        """Shares (any number, KH, KW, C, F) whose sum is gweight, from x (N, H, W, C) and g (N, OH, OW, F), each
        normalised if it has a norm."""
        x, x_norm, g, g_norm = self._contiguous(x, x_norm, g, g_norm)
        (KH, KW), (SH, SW), ((top, _), (left, _)) = geometry.kernel_size, geometry.stride, geometry.pads
        N, H, W, C = x.shape
        _, OH, OW, F = g.shape
        K, M, thin = KH * KW * C, N * OH * OW, KH * KW * C <= THIN
        dtypes, real = (x.dtype, g.dtype), _computed(x.dtype)
        large = LARGE[real.name]
        tiles, resident = (-(-F // 32), 3) if thin else (-(-K // large) * -(-F // 64), 2)
        at_once = PIXELS if thin else 32  # pixels that a block reads
        shares = max(1, min(resident * FILL // max(tiles, 1), -(-M // PIXELS)))
        share = -(-M // (shares * at_once)) * at_once
        shares = max(1, -(-M // max(share, 1)))
        gweights = self.xp.empty((shares, KH, KW, C, F), dtype=real)
        arrays = x, x_norm, g, g_norm, gweights
        sizes = N, H, W, C, OH, OW, F, KH, KW, SH, SW, top, left
        if thin:
            grid = 1, tiles, shares
            self._launch("weight_gradient_thin_input", dtypes, grid, 256, *arrays, *sizes, share)
        else:
            grid, quads = (-(-K // large), -(-F // 64), shares), (self._quads(x, x_norm), self._quads(g, g_norm))
            self._launch("weight_gradient", dtypes, grid, 256, *arrays, *sizes, *quads, share)
        return gweights

    # ---- layers of a chain ----

    def conv_layer(self, source: Source, layer: Layer, norm: Norm | None) -> LayerOutput:
        """Faster because x is normalised while it is read, and bias, ReLU and the sums of the moments are taken before
        y is written."""
        relu = norm is not None
        sums = relu and layer.bias.dtype == "float32"  # for float64 they would not be exact enough
        y, partials = self._correlate(
            source.x, source.rows, *layer, relu, sums=sums, y_dtype=self._between(layer, relu)
        )
        if norm is None:
            return LayerOutput(y)
        if partials is None:
            shift = self._first_row(y)
            return LayerOutput(y, *self._moments(self._row_sums(y, None, shift), y, shift, norm))
        return LayerOutput(y, *self._moments(partials, y, layer.bias, norm, relu=True))

    def conv_layer_grad(
        self, gy: Array, grad_rows: Array | None, y: Array, source: Source, layer: Layer, needs_gx: bool
    ) -> LayerGradients:
        """Faster because x is normalised while it is read, and the sums are taken while gx is written."""
        x, rows, previous = source
        if grad_rows is None:
            g, g_sums = gy, self._row_sums(gy, None, None)
        else:
            g, g_sums = self._norm_gradient(gy, y, grad_rows, relu=True)
        gx = partials = None
        if needs_gx:
            back, other = not layer.transposed, None if previous is None else x
            arguments = g, None, layer.weight, None, layer.geometry, back, False, other
            gx, partials = self._correlate(*arguments, previous is not None, x.dtype)
        if layer.transposed:
            shares = self._weight_gradient(g, None, x, rows, layer.geometry)
        else:
            shares = self._weight_gradient(x, rows, g, None, layer.geometry)
        gradients = gx, *self._finished(shares, g_sums)
        if previous is None or partials is None:
            return LayerGradients(*gradients)
        return LayerGradients(*gradients, *self._norm_grad_rows(partials, *previous, x.size // x.shape[3]))

    def _finished(self, shares: Array, partials: Array) -> tuple[Array, Array]:
        """(the sum of the shares, the first of the sums from the partial ones)."""
        blocks, _, C = partials.shape
        total, sums = (self.xp.empty(shape, dtype=shares.dtype) for shape in (shares.shape[1:], C))
        grid = (-(-C // GROUP) + -(-total.size // 64),)
        sizes = len(shares), total.size, blocks, C
        self._launch("finish_gradients", total.dtype, grid, 512, shares, total, partials, sums, *sizes)
        return total, sums

    def conv_chain_inference(self, x: Array, layers: list[Layer], rows: list[Array | None]) -> Array:
        """Faster because each layer normalises what it reads from the one before."""
        before = None
        for layer, after in zip(layers, rows, strict=True):
            relu = after is not None
            x, _ = self._correlate(x, before, *layer, relu, y_dtype=self._between(layer, relu))
            before = after
        return self.normalise(x, before)

    def _between(self, layer: Layer, relu: bool) -> Any:
        """The dtype in which a layer's result is stored. Without a ReLU it is the last of a chain."""
        dtype = layer.weight.dtype
        return BF16 if relu and self.precision == "bf16" and dtype == "float32" else dtype

    # ---- sums over all axes but the last ----

    def _row_sums(self, x: Array, other: Array | None, shift: Array | None) -> Array:
        """The partial sums of x and of x * other; without other those of x (less the shift) and of its square."""
        x, other, shift = self._contiguous(x, other, shift)
        M, C, blocks = self._rows(x)
        partials = self.xp.empty((blocks, 2, C), dtype="float64")
        dtypes = x.dtype, x.dtype if other is None else other.dtype
        self._launch("row_sums", dtypes, (blocks, -(-C // 32)), 256, x, other, shift, partials, M, C)
        return partials

    def _rows(self, x: Array) -> tuple[int, int, int]:
        """(M, C, blocks) of x as rows."""
        C = x.shape[-1]
        M = x.size // max(C, 1)
        return M, C, max(1, min(-(-M // 8), MOST_BLOCKS))

    def _sums(self, partials: Array, mean: Array | None, dtype: Any) -> Array:
        """(2, C) from partial sums; the second less mean times the first."""
        blocks, _, C = partials.shape
        (mean,) = self._contiguous(mean)
        sums = self.xp.empty((2, C), dtype=dtype)
        self._launch("finish_sums", sums.dtype, (-(-C // GROUP),), 512, partials, mean, sums, blocks, C)
        return sums

    def _of_all(self, partials: Array, dtype: Any) -> Array:
        """The partial sums themselves; or where processes share the batch, and each has the mean loss of its own rows,
        those (processes, 2, C) whose sum is the mean of the processes' sums, as in `Pool.total`."""
        group = sharers()
        if group is None:
            return partials
        blocks, _, C = partials.shape
        mine = self.xp.empty((2, C), dtype="float64")
        self._launch("share_sums", dtype, (-(-C // GROUP),), 512, partials, mine, blocks, C, np.float64(1 / group.size))
        return group.gather(mine)

    def _moments(
        self,
        partials: Array,
        x: Array,
        shift: Array,
        after: Norm | None = None,
        relu: bool = False,
    ) -> tuple[Array, Array, Array | None]:
        """(mean, variance, norm_rows if a batch_norm comes after) from the partial sums of x less the shift (its ReLU,
        if so), and of its squares."""
        dtype = shift.dtype
        partials = self._of_all(partials, dtype)
        blocks, _, C = partials.shape
        mean, variance = self.xp.empty(C, dtype=dtype), self.xp.empty(C, dtype=dtype)
        norm = None if after is None else self.xp.empty((3, C), dtype=dtype)
        gamma, beta, epsilon = after or (None, None, 0.0)
        arrays = partials, *self._contiguous(shift, gamma, beta), mean, variance, norm
        sizes = blocks, C, np.float64(x.size // max(C, 1)), np.float64(epsilon)
        self._launch("finish_moments", dtype, (-(-C // GROUP),), 512, *arrays, relu, *sizes)
        return mean, variance, norm

    def _first_row(self, x: Array) -> Array:
        """What the sums are shifted by where nothing better is known; the same in all processes."""
        row, group = self.xp.ascontiguousarray(x.reshape(-1, x.shape[-1])[0]), sharers()
        return row if group is None else group.gather(row)[0]

    def channel_sum(self, x: Array) -> Array:
        """Faster on a GPU because many rows are shared by many blocks of threads."""
        M, C, _ = self._rows(x)
        if M > FEW_ROWS:
            return self._sums(self._row_sums(x, None, None), None, x.dtype)[0]
        (x,), sums = self._contiguous(x), self.xp.empty(C, dtype=x.dtype)
        self._launch("few_row_sums", x.dtype, (-(-C // 32),), 256, x, sums, M, C)
        return sums

    def moments(self, x: Array) -> tuple[Array, Array]:
        """Faster because one pass takes both sums, of the values less those of the first row: as exact as two."""
        shift = self._first_row(x)
        mean, variance, _ = self._moments(self._row_sums(x, None, shift), x, shift)
        return mean, variance

    def batch_norm_sums(self, gy: Array, x: Array, mean: Array) -> Array:
        """Faster in one pass."""
        return self._sums(self._of_all(self._row_sums(gy, x, None), gy.dtype), mean, gy.dtype)

    # ---- batch normalisation ----

    def norm_rows(self, gamma: Array, beta: Array, mean: Array, variance: Array, epsilon: float) -> Array:
        """Faster as one launch."""
        arrays = self._contiguous(gamma, beta, mean, variance)
        norm = self.xp.empty((3, len(gamma)), dtype=gamma.dtype)
        grid = (-(-len(gamma) // 256),)
        self._launch("norm_rows", gamma.dtype, grid, 256, *arrays, norm, len(gamma), float(epsilon))
        return norm

    def normalise(self, x: Array, rows: Array | None) -> Array:
        """Faster as one launch."""
        if rows is None:
            return x
        x, rows = self._contiguous(x, rows)
        y = self.xp.empty(x.shape, dtype=rows.dtype)
        M, C, blocks = self._rows(x)
        self._launch("normalise", (x.dtype, y.dtype), (blocks, -(-C // 32)), 256, x, rows, y, M, C)
        return y

    def norm_grad_rows(
        self, sums: Array, gamma: Array, mean: Array, variance: Array, epsilon: float, M: int
    ) -> tuple[Array, Array, Array]:
        """Faster as one launch."""
        arrays = self._contiguous(sums, gamma, mean, variance)
        C, dtype = len(gamma), gamma.dtype
        results = tuple(self.xp.empty(shape, dtype=dtype) for shape in ((4, C), C, C))
        self._launch("norm_grad_rows", dtype, (-(-C // 256),), 256, *arrays, *results, C, float(epsilon), float(M))
        return results

    def _norm_grad_rows(
        self, partials: Array, gamma: Array, mean: Array, variance: Array, epsilon: float, M: int
    ) -> tuple[Array, Array, Array]:
        """norm_grad_rows from the partial sums of gy and of gy * x."""
        partials = self._of_all(partials, gamma.dtype)
        blocks, _, C = partials.shape
        arrays, dtype = self._contiguous(gamma, mean, variance), gamma.dtype
        results = tuple(self.xp.empty(shape, dtype=dtype) for shape in ((4, C), C, C))
        sizes = blocks, C, float(epsilon), float(M)
        self._launch("finish_norm_grad", dtype, (-(-C // GROUP),), 512, partials, *arrays, *results, *sizes)
        return results

    def norm_gradient(self, gy: Array, x: Array, rows: Array) -> Array:
        """Faster as one launch."""
        return self._norm_gradient(gy, x, rows, relu=False)[0]

    def _norm_gradient(self, gy: Array, y: Array, rows: Array, relu: bool) -> tuple[Array, Array]:
        """(g, partials): the gradient before the batch_norm, and before the ReLU if there is one; and its sums."""
        gy, y, rows = self._contiguous(gy, y, rows)
        g = self.xp.empty(y.shape, dtype=y.dtype)
        M, C, blocks = self._rows(y)
        partials = self.xp.empty((blocks, 2, C), dtype="float64")
        self._launch(
            "norm_gradient", (gy.dtype, y.dtype), (blocks, -(-C // 32)), 256, gy, y, rows, g, partials, M, C, relu
        )
        return g, partials

    def batch_norm_update_(
        self, moving_mean: Array, moving_variance: Array, mean: Array, variance: Array, momentum: float
    ) -> None:
        """Faster as one launch."""
        C = len(mean)
        arrays = moving_mean, moving_variance, *self._contiguous(mean, variance)
        momentum = float(momentum)
        self._launch("batch_norm_update", mean.dtype, (-(-C // 256),), 256, *arrays, C, momentum, 1 - momentum)

    # ---- losses and optimisers ----

    def sigmoid(self, x: Array) -> Array:
        """Faster as one launch."""
        y = self.xp.empty(x.shape, dtype=x.dtype)  # of the shape () too, which _contiguous makes (1,)
        (x,) = self._contiguous(x)
        self._launch("sigmoid", x.dtype, (-(-x.size // 256),), 256, x, y, x.size)
        return y

    def bernoulli_nll(self, logits: Array, targets: Array) -> Array:
        """Faster in one pass."""
        logits, targets = self._contiguous(logits, targets)
        blocks = max(1, min(-(-logits.size // 256), MOST_BLOCKS))
        partials = self.xp.empty((blocks, 2, 1), dtype="float64")
        self._launch("bernoulli_nll", logits.dtype, (blocks,), 256, logits, targets, partials, logits.size)
        return self._sums(partials, None, logits.dtype)[0, 0]

    def adam_step_(
        self,
        parameters: Array,
        first_moment: Array,
        second_moment: Array,
        gradients: Array,
        scalars: Array,
        options: AdamOptions,
    ) -> None:
        """Faster in one pass."""
        size = len(parameters)
        arrays = parameters, first_moment, second_moment, *self._contiguous(gradients, scalars)
        beta_1, beta_2, epsilon, weight_decay = options
        numbers = beta_1, 1 - beta_1, beta_2, 1 - beta_2, epsilon, weight_decay
        self._launch("adam_step", parameters.dtype, (-(-size // 256),), 256, *arrays, size, *map(float, numbers))
