"""Matrix products whose results stay in vector registers while they are summed.

The innermost loop is written in LLVM's vector instructions, which Numba compiles. It sums a tile of the result, some
rows times one or two vectors. In turn k each row i of the tile adds a[i, k] * b[k], a number times a row of b. The
numbers of a are read one by one, so a row of a may be anywhere: the pixels that a filter meets are read where they are
in the image, and no im2col is needed. The rows of b and of the result are read and written by vectors.

A tile of R rows and 2 vectors holds 2 R sums, 2 vectors of b, and one number of a in every lane: 2 R + 3 registers.

A result of few channels has no vectors. There the sum goes along a, whose numbers are then read by vectors, too: each
lane sums every 16th product, and at the end the lanes are added.

A BLAS packs its matrices first and has its tiles for large ones; for the sizes of a convolution this is faster, and so
is not writing the columns (benchmarks/ops.py).
"""

from __future__ import annotations

import platform
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numpy.lib.stride_tricks import as_strided

from .compiling import compiled

Array = Any
FEATURES = llvm.get_host_cpu_features()
VECTOR = 64 if FEATURES.get("avx512f") else 32 if FEATURES.get("avx") else 16  # bytes
MANY_REGISTERS = VECTOR == 64 or platform.machine() in ("aarch64", "arm64")  # 32 vectors, not 16
ROWS = (14, 9, 7, 4, 2, 1) if MANY_REGISTERS else (6, 3, 2, 1)  # heights of tiles; 9 is a filter of 3 x 3
DOT_ROWS = 9  # the most of dot products; the addresses of more rows would not fit into the registers
INNER = 256  # turns of `matmul` at a time: so many rows of a panel of b stay in the first cache
I32, I64 = ir.IntType(32), ir.IntType(64)


@intrinsic
def tile(
    context: Any, rows: Any, vectors: Any, a: Any, a_rows: Any, a_columns: Any, K: Any, b: Any, b_step: Any, c: Any,
    c_rows: Any, add: Any, one: Any
) -> Any:  # fmt: skip
    """c (rows, vectors) = a (rows, K) @ b (K, vectors); if add, c += that.

    rows: one of ROWS. vectors: 1 or 2; or 0 for a vector for each number of a and one number for each row of c: there
    c[i] is the sum of a[i, k] * b[k] over k and over the lanes, and rows is at most DOT_ROWS.
    K: at least 1. one: any number of the dtype, which says what a, b and c hold.
    a, b, c and the tables a_rows, a_columns and c_rows of int64 are addresses. a[i, k] is a_rows[i] + a_columns[k]
    numbers after a, the row b[k] is k * b_step numbers after b, and the row c[i] is c_rows[i] numbers after c. One
    entry after a_columns is read, too, but not used.
    """
    signature = types.void(*[types.intp] * 10, types.boolean, one)

    def code(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = target.get_data_type(signature.args[-1])
        end = builder.append_basic_block("end")
        switch = builder.switch(builder.add(builder.mul(arguments[0], I64(3)), arguments[1]), end)
        for height in ROWS:
            for width in (0, 1, 2) if height <= DOT_ROWS else (1, 2):
                block = builder.append_basic_block(f"tile_{height}_{width}")
                switch.add_case(I64(3 * height + width), block)
                builder.position_at_end(block)
                _tile(builder, number, height, width, arguments[2:-1])
                builder.branch(end)
        builder.position_at_end(end)
        return target.get_dummy_value()

    return signature, code


def _tile(builder: Any, number: Any, rows: int, vectors: int, arguments: Any) -> None:
    """The instructions of one tile."""
    a, a_rows, a_columns, K, b, b_step, c, c_rows, add = arguments
    size = 8 if number == ir.DoubleType() else 4
    W, dot, vectors = VECTOR // size, vectors == 0, max(vectors, 1)
    vector = ir.VectorType(number, W)
    zeros, undefined = ir.Constant(vector, None), ir.Constant(vector, ir.Undefined)
    everywhere = ir.Constant(ir.VectorType(I32, W), None)
    a, b, c = (builder.inttoptr(address, number.as_pointer()) for address in (a, b, c))
    a_rows, a_columns, c_rows = (builder.inttoptr(table, I64.as_pointer()) for table in (a_rows, a_columns, c_rows))

    def entry(table: Any, i: Any) -> Any:
        return builder.load(builder.gep(table, [i]))

    def vector_at(pointer: Any, v: int) -> Any:
        return builder.bitcast(builder.gep(pointer, [I64(v * W)]), vector.as_pointer())

    def hidden(value: Any) -> Any:
        """The same number, passed through an empty piece of assembly: no instruction, but LLVM no longer knows where it
        comes from. The column of turn k + 1 is read in turn k, so that the address in a is there when its turn begins.
        If LLVM saw that, it would move the reading back, expect the numbers of a late, load all of them first, and run
        out of registers, which takes twice the time."""
        return builder.asm(ir.FunctionType(I64, [I64]), "", "=r,0", [value], side_effect=False)

    a_pointers = [builder.gep(a, [entry(a_rows, I64(i))]) for i in range(rows)]
    c_pointers = [builder.gep(c, [entry(c_rows, I64(i))]) for i in range(rows)]
    before, first_column = builder.block, hidden(entry(a_columns, I64(0)))
    turn, done, adding, storing, end = map(builder.append_basic_block, ("turn", "done", "adding", "storing", "end"))
    builder.branch(turn)

    builder.position_at_end(turn)
    first = [(I64, I64(0)), (I64, first_column), (b.type, b), *[(vector, zeros)] * (rows * vectors)]
    k, column, b_row, *sums = variables = [builder.phi(kind) for kind, _ in first]
    b_vectors = [builder.load(vector_at(b_row, v), align=size) for v in range(vectors)]
    totals = []
    for i in range(rows):
        place = builder.gep(a_pointers[i], [column])
        if dot:
            x = builder.load(vector_at(place, 0), align=size)
        else:
            x = builder.insert_element(undefined, builder.load(place), I32(0))
            x = builder.shuffle_vector(x, undefined, everywhere)
        for v in range(vectors):
            product = builder.fmul(x, b_vectors[v], flags=("contract",))  # with the sum one rounding
            totals.append(builder.fadd(product, sums[i * vectors + v], flags=("contract",)))
    next_k = builder.add(k, I64(1))
    next_column = hidden(entry(a_columns, next_k))
    following = [next_k, next_column, builder.gep(b_row, [b_step]), *totals]
    for variable, (_, at_first), then in zip(variables, first, following, strict=True):
        variable.add_incoming(at_first, before)
        variable.add_incoming(then, turn)
    builder.cbranch(builder.icmp_signed("<", next_k, K), turn, done)

    builder.position_at_end(done)
    if dot:
        name, kind = f"llvm.vector.reduce.fadd.v{W}f{8 * size}", ir.FunctionType(number, [number, vector])
        lanes = cgutils.get_or_insert_function(builder.module, kind, name)
        totals = [builder.call(lanes, [ir.Constant(number, 0.0), sums], fastmath=("reassoc",)) for sums in totals]
    builder.cbranch(add, adding, storing)
    for block in (adding, storing):
        builder.position_at_end(block)
        for i in range(rows):
            for v in range(vectors):
                result = totals[i * vectors + v]
                target = c_pointers[i] if dot else vector_at(c_pointers[i], v)
                if block is adding:
                    result = builder.fadd(builder.load(target, align=size), result)
                builder.store(result, target, align=size)
        builder.branch(end)
    builder.position_at_end(end)


@compiled
def tiles(
    a: int, a_rows: Array, a_columns: Array, b: int, b_step: int, c: Array, c_rows: Array, left: int, width: int,
    add: bool
) -> None:  # fmt: skip
    """c = a @ b, or c += a @ b if add, in the columns left ... left + width - 1 of c, at most two vectors.

    a is an address, and b that of the first of its columns that belong to these; c is flat; the rest is as in `tile`.
    b must be readable to the end of its last vector.
    """
    size, one = c.itemsize, c.dtype.type(1)
    W = VECTOR // size
    vectors, K, columns, i = (width + W - 1) // W, len(a_columns), a_columns.ctypes.data, 0
    if K == 0:
        if not add:
            for at in c_rows:
                c[at + left : at + left + width] = 0
        return
    edge, edge_rows = np.empty((ROWS[0], 2 * W), c.dtype), np.arange(ROWS[0]) * (2 * W)
    inside = width == vectors * W  # else a vector reaches beyond the columns, and the tile goes to a spare place first
    for height in ROWS:
        while len(a_rows) - i >= height:
            target, places = (c.ctypes.data + left * size, c_rows[i:]) if inside else (edge.ctypes.data, edge_rows)
            rows, place = a_rows[i:].ctypes.data, places.ctypes.data
            tile(height, vectors, a, rows, columns, K, b, b_step, target, place, add and inside, one)  # type: ignore[call-arg]
            for r in range(0 if inside else height):
                for j in range(width):
                    at = c_rows[i + r] + left + j
                    c[at] = edge[r, j] + c[at] if add else edge[r, j]
            i += height


@compiled
def dots(a: int, a_rows: Array, a_columns: Array, b: int, c: Array, c_rows: Array) -> None:
    """The dot products of `tile`: a number of the flat c for each row of a. a and b are addresses."""
    one, K, columns, i = c.dtype.type(1), len(a_columns), a_columns.ctypes.data, 0
    for height in ROWS:
        while height <= DOT_ROWS and len(a_rows) - i >= height:
            rows, places = a_rows[i:].ctypes.data, c_rows[i:].ctypes.data
            step = VECTOR // c.itemsize
            tile(height, 0, a, rows, columns, K, b, step, c.ctypes.data, places, False, one)  # type: ignore[call-arg]
            i += height


@compiled
def matmul(a: Array, b: Array, add: bool, out: Array) -> None:
    """out = a @ b, or out += a @ b if add; the rows of out must be contiguous."""
    _matmul(as_strided(a, a.shape, a.strides), as_strided(b, b.shape, b.strides), add, out)


@compiled
def _matmul(a: Array, b: Array, add: bool, out: Array) -> None:
    """matmul for arrays without a known layout, so that one compilation serves transposed ones, too."""
    (M, K), N, size = a.shape, b.shape[1], a.itemsize
    width = 2 * VECTOR // size
    rows, columns = np.arange(M) * (a.strides[0] // size), np.arange(K + 1) * (a.strides[1] // size)
    c_rows = np.arange(M) * N
    panel, results = np.zeros((INNER, width), a.dtype), out.reshape(-1)
    for start in range(0, max(K, 1), INNER):
        part = columns[start : min(start + INNER, K)]
        for left in range(0, N, width):
            for k in range(len(part)):
                for j in range(min(width, N - left)):
                    panel[k, j] = b[start + k, left + j]
            tiles(
                a.ctypes.data, rows, part, panel.ctypes.data, width, results, c_rows, left, min(width, N - left),
                add or start > 0
            )  # fmt: skip
