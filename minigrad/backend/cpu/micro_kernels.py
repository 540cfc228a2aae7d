"""Matrix products whose results stay in vector registers while they are summed.

The innermost loop is written in LLVM's vector instructions, which Numba compiles. It sums a tile of the result, some
rows times one or two vectors. In turn k each row i of the tile adds a[i, k] * b[k], a number times a row of b. The
numbers of a are read one by one, so a row of a may be anywhere: the pixels that a filter meets are read where they are
in the image, and no im2col is needed. The rows of b and of the result are read and written by vectors, and may be
anywhere, too.

A tile of R rows and 2 vectors holds 2 R sums, 2 vectors of b, and one number of a in every lane: 2 R + 3 registers.

A result of few channels has no vectors. There the sum goes along a, whose numbers are then read by vectors, too: each
lane sums one product of every vector, and at the end the lanes are added.

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

from .compiling import compiled
from .threads import LINE

Array = Any
FEATURES = llvm.get_host_cpu_features()
VECTOR = 64 if FEATURES.get("avx512f") else 32 if FEATURES.get("avx") else 16  # bytes
MANY_REGISTERS = VECTOR == 64 or platform.machine() in ("aarch64", "arm64")  # 32 vectors, not 16
ROWS = (14, 9, 7, 4, 2, 1) if MANY_REGISTERS else (6, 3, 2, 1)  # heights of tiles; 9 is a filter of 3 x 3
FEW = ROWS[-3]  # fewer rows take as long as these, because each sum waits for the one before
DOT_ROWS = 9  # the most of dot products; the addresses of more rows would not fit into the registers
I32, I64 = ir.IntType(32), ir.IntType(64)


@intrinsic
def tile(
    context: Any, rows: Any, vectors: Any, a: Any, a_rows: Any, turns: Any, K: Any, b: Any, c: Any, c_rows: Any,
    add: Any, one: Any
) -> Any:  # fmt: skip
    """c (rows, vectors) = a (rows, K) @ b (K, vectors); if add, c += that.

    rows: one of ROWS. vectors: 1 or 2; or 0 for a vector for each number of a and one number for each row of c: there
    c[i] is the sum of a[i, k] * b[k] over k and over the lanes, and rows is at most DOT_ROWS.
    K: at least 1. one: any number of the dtype, which says what a, b and c hold.
    a, b, c and the tables a_rows, turns and c_rows of int64 are addresses. turns holds a pair for each k: a[i, k] is
    a_rows[i] + turns[k, 0] numbers after a, and the row b[k] is turns[k, 1] numbers after b. The row c[i] is c_rows[i]
    numbers after c. One pair after turns is read, too, but not used.
    """
    signature = types.void(*[types.intp] * 9, types.boolean, one)

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
    a, a_rows, turns, K, b, c, c_rows, add = arguments
    size = 8 if number == ir.DoubleType() else 4
    W, dot, vectors = VECTOR // size, vectors == 0, max(vectors, 1)
    vector = ir.VectorType(number, W)
    zeros, undefined = ir.Constant(vector, None), ir.Constant(vector, ir.Undefined)
    everywhere = ir.Constant(ir.VectorType(I32, W), None)
    a, b, c = (builder.inttoptr(address, number.as_pointer()) for address in (a, b, c))
    a_rows, turns, c_rows = (builder.inttoptr(table, I64.as_pointer()) for table in (a_rows, turns, c_rows))

    def entry(table: Any, i: Any) -> Any:
        return builder.load(builder.gep(table, [i]))

    def vector_at(pointer: Any, v: int) -> Any:
        return builder.bitcast(builder.gep(pointer, [I64(v * W)]), vector.as_pointer())

    def hidden(value: Any) -> Any:
        """The same number, passed through an empty piece of assembly: no instruction, but LLVM no longer knows where it
        comes from. The pair of turn k + 1 is read in turn k, so that the addresses are there when its turn begins. If
        LLVM saw that, it would move the reading back, expect the numbers of a late, load all of them first, and run
        out of registers, which takes twice the time."""
        return builder.asm(ir.FunctionType(I64, [I64]), "", "=r,0", [value], side_effect=False)

    a_pointers = [builder.gep(a, [entry(a_rows, I64(i))]) for i in range(rows)]
    c_pointers = [builder.gep(c, [entry(c_rows, I64(i))]) for i in range(rows)]
    before, first_turn = builder.block, [hidden(entry(turns, I64(i))) for i in range(2)]
    turn, done, adding, storing, end = map(builder.append_basic_block, ("turn", "done", "adding", "storing", "end"))
    builder.branch(turn)

    builder.position_at_end(turn)
    first = [(I64, I64(0)), *((I64, place) for place in first_turn), *[(vector, zeros)] * (rows * vectors)]
    k, column, row, *sums = variables = [builder.phi(kind) for kind, _ in first]
    b_row = builder.gep(b, [row])
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
    next_turn = builder.gep(turns, [builder.mul(next_k, I64(2))])
    following = [next_k, *(hidden(entry(next_turn, I64(i))) for i in range(2)), *totals]
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


@intrinsic
def ask_for(context: Any, address: Any) -> Any:
    """Ask for the cache line at an address, without waiting for it."""

    def code(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [place.type, I32, I32, I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(function, [place, I32(0), I32(2), I32(1)])  # to read; into the second cache; data
        return target.get_dummy_value()

    return types.void(types.intp), code


@compiled
def fetch(x: Array) -> None:
    """Ask for all of an array, whose numbers will be needed in another order than that in memory."""
    for place in range(x.ctypes.data, x.ctypes.data + x.size * x.itemsize, LINE):
        ask_for(place)  # type: ignore[call-arg]


@compiled
def height_of(rows: int, most: int) -> int:
    """The height of the next tile, if so many rows are left: at most `most`, and such that no few rows remain."""
    for height in ROWS:
        if height <= most and (height == rows or rows - height >= FEW):
            return height
    return 1


@compiled
def tiles(
    a: int, a_rows: Array, turns: Array, b: int, c: Array, c_rows: Array, left: int, width: int, add: bool
) -> None:  # fmt: skip
    """c = a @ b, or c += a @ b if add, in the columns left ... left + width - 1 of c, at most two vectors.

    a is an address, and b that of the first of its columns that belong to these; c is flat; the rest is as in `tile`.
    b must be readable to the end of its last vector.
    """
    size, vectors = c.itemsize, (width * c.itemsize + VECTOR - 1) // VECTOR
    if len(turns) == 0:
        if not add:
            for at in c_rows:
                c[at + left : at + left + width] = 0
    elif width * size == vectors * VECTOR:
        _tiles(vectors, ROWS[0], a, a_rows, turns, b, c.ctypes.data + left * size, c_rows, add, c.dtype.type(1))
    else:  # a vector reaches beyond the columns, so a tile goes to a spare place first
        step = vectors * VECTOR // size
        edge, rows = np.empty((ROWS[0], step), c.dtype), np.arange(ROWS[0]) * step
        for i in range(0, len(a_rows), ROWS[0]):
            some = a_rows[i : i + ROWS[0]]
            _tiles(vectors, ROWS[0], a, some, turns, b, edge.ctypes.data, rows, False, c.dtype.type(1))
            for r in range(len(some)):
                at = c_rows[i + r] + left
                for j in range(width):
                    c[at + j] = edge[r, j] + c[at + j] if add else edge[r, j]


@compiled
def dots(a: int, a_rows: Array, turns: Array, b: int, c: int, c_rows: Array, one: float) -> None:
    """The dot products of `tile`: a number of c for each row of a; there is at least one turn. a, b and c are addresses
    of numbers like `one`."""
    _tiles(0, DOT_ROWS, a, a_rows, turns, b, c, c_rows, False, one)


@compiled
def _tiles(
    vectors: int, most: int, a: int, a_rows: Array, turns: Array, b: int, c: int, c_rows: Array, add: bool, one: float
) -> None:
    """Tiles of at most so many rows, one below the other; there are turns."""
    rows, targets, i = a_rows.ctypes.data, c_rows.ctypes.data, 0  # 8 bytes each
    while i < len(a_rows):
        height = height_of(len(a_rows) - i, most)
        places, to = rows + 8 * i, targets + 8 * i
        tile(height, vectors, a, places, turns.ctypes.data, len(turns), b, c, to, add, one)  # type: ignore[call-arg]
        i += height
