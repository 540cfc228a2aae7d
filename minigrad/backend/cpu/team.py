"""Threads that wait for compiled work in compiled code.

A sleeping thread of Python takes some 60 microseconds to begin: the system has to wake it, and it needs the interpreter
lock. A training step of the default model hands over work 16 times. So the threads here look for work for a while
before they sleep. They do so without the interpreter, and begin within a microsecond.

A desk is a row of numbers that a caller and one thread share. The caller writes a function, its arguments and its part
of the shards there, and then the number of the job. The thread waits for that number to change, does its part and
writes the number of the job that is done, which the caller waits for.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .compiling import compiled

Array = Any
LOOKS = 3_000  # some 50 microseconds; then a thread sleeps
# the numbers of a desk; those that the caller writes and those that the thread writes are in different cache lines
JOB, FUNCTION, ARGUMENTS, THREAD, FIRST, STOP, THREAD_SLEEPS, THREAD_BELL = range(8)
DONE, FAILED, CALLER_SLEEPS, CALLER_BELL = range(16, 20)
DESK = 32
I64 = ir.IntType(64)
PART = ir.FunctionType(I64, [I64] * 4)  # (address of the arguments, thread, first shard, last shard + 1) -> failed
PYTHON = ctypes.pythonapi
PYTHON.PyThread_allocate_lock.restype = ctypes.c_void_p
PYTHON.PyThread_acquire_lock.argtypes = [ctypes.c_void_p, ctypes.c_int]
ISB = "llvm.aarch64.isb", 15
REST = {"x86_64": ("llvm.x86.sse2.pause",), "aarch64": ISB, "arm64": ISB}  # instructions that take a while
acquire_lock: Any = types.ExternalFunction("PyThread_acquire_lock", types.int32(types.intp, types.int32))
release_lock: Any = types.ExternalFunction("PyThread_release_lock", types.void(types.intp))


# ---- instructions ----

instruction: Any = intrinsic  # a call leaves out the context, which mypy does not know


@instruction
def exchange(context: Any, address: Any, value: Any) -> Any:
    """Write a number; returns the one before. No thread sees anything that was written before it later than it."""

    def code(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], I64.as_pointer())
        return builder.atomic_rmw("xchg", place, arguments[1], "seq_cst")

    return types.intp(types.intp, types.intp), code


@instruction
def look(context: Any, address: Any) -> Any:
    """The number at an address, as the other thread wrote it last."""

    def code(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(arguments[0], I64.as_pointer()), "seq_cst", 8)

    return types.intp(types.intp), code


@instruction
def address_of(context: Any, value: Any) -> Any:
    """The address of a copy of the value, which lives until the function ends."""

    def code(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.ptrtoint(cgutils.alloca_once_value(builder, arguments[0]), I64)

    return types.intp(value), code


@instruction
def part_of(context: Any, loop: Any, arguments: Any) -> Any:
    """The address of a function of the type PART: it calls loop(thread, first, stop, *arguments)."""
    kinds = (*[types.intp] * 3, *arguments.types)
    loop.dispatcher.compile(kinds)
    compiled_loop = loop.dispatcher.overloads[kinds]

    def code(target: Any, builder: Any, _: Any, __: Any) -> Any:
        target.add_linking_libs([compiled_loop.library])
        callee = target.declare_function(builder.module, compiled_loop.fndesc)
        function = ir.Function(builder.module, PART, builder.module.get_unique_name("part"))
        function.linkage = "internal"
        inside = ir.IRBuilder(function.append_basic_block())
        address, *numbers = function.args
        values = inside.load(inside.inttoptr(address, target.get_value_type(arguments).as_pointer()))
        given = [*numbers, *cgutils.unpack_tuple(inside, values)]
        status, _ = target.call_conv.call_function(inside, callee, types.none, kinds, given)
        inside.ret(inside.zext(status.is_error, I64))
        return builder.ptrtoint(function, I64)

    return types.intp(loop, arguments), code


@instruction
def call(context: Any, function: Any, arguments: Any, thread: Any, first: Any, stop: Any) -> Any:
    """Call a function of the type PART at an address."""

    def code(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.call(builder.inttoptr(arguments[0], PART.as_pointer()), arguments[1:])

    return types.intp(*[types.intp] * 5), code


@instruction
def pause(context: Any) -> Any:
    """Let the core rest for some cycles."""

    def code(target: Any, builder: Any, _: Any, __: Any) -> Any:
        machine = builder.module.triple.split("-")[0]
        if machine in REST:
            name, *numbers = REST[machine]
            values = [ir.IntType(32)(number) for number in numbers]
            kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, name), values)
        return target.get_dummy_value()

    return types.void(), code


# ---- waiting ----


@compiled
def await_change(number: int, before: int, sleeps: int, bell: int) -> int:
    """The number at that address once it is not `before`; after LOOKS looks in sleep. All but `before` are addresses:
    sleeps is 1 while somebody sleeps, and then the one who changes the number rings the bell, a lock."""
    while True:
        for _ in range(LOOKS):
            found = look(number)
            if found != before:
                return found
            pause()
        exchange(sleeps, 1)
        if look(number) == before or exchange(sleeps, 0) == 0:
            acquire_lock(bell, 1)  # unless the number changed and nobody has seen that we sleep


@compiled
def change(number: int, value: int, sleeps: int, bell: int) -> None:
    """Write the number, and wake the one who sleeps."""
    exchange(number, value)
    if exchange(sleeps, 0):
        release_lock(bell)


@compiled
def serve(desk: Array) -> None:
    """Do what comes to a desk, until a job has no function."""
    job, at = 0, desk.ctypes.data
    while True:
        job = await_change(at + 8 * JOB, job, at + 8 * THREAD_SLEEPS, desk[THREAD_BELL])
        if desk[FUNCTION] == 0:
            return
        desk[FAILED] = call(desk[FUNCTION], desk[ARGUMENTS], desk[THREAD], desk[FIRST], desk[STOP])
        change(at + 8 * DONE, job, at + 8 * CALLER_SLEEPS, desk[CALLER_BELL])


@compiled
def hand_over(desk: Array, function: int, arguments: int, thread: int, first: int, stop: int) -> None:
    """Give a desk a job; one without a function ends its thread."""
    desk[FUNCTION], desk[ARGUMENTS], desk[THREAD], desk[FIRST], desk[STOP] = function, arguments, thread, first, stop
    at = desk.ctypes.data
    change(at + 8 * JOB, desk[JOB] + 1, at + 8 * THREAD_SLEEPS, desk[THREAD_BELL])


@compiled
def share(desks: Array, threads: int, shards: int, function: int, arguments: int) -> None:
    """Call a function of the type PART once for each of the parts of `threads` threads: the last ones at the desks, the
    others here. Returns when all have ended."""
    failed, apart = 0, threads - min(len(desks), threads - 1)  # the first part at a desk
    for thread in range(threads - 1, -1, -1):
        first, stop = thread * shards // threads, (thread + 1) * shards // threads
        if thread >= apart:
            hand_over(desks[thread - apart], function, arguments, thread, first, stop)
        else:
            failed |= call(function, arguments, thread, first, stop)
    for i in range(threads - apart):
        desk = desks[i]
        at = desk.ctypes.data
        await_change(at + 8 * DONE, desk[JOB] - 1, at + 8 * CALLER_SLEEPS, desk[CALLER_BELL])
        failed |= desk[FAILED]
    if failed:
        raise MemoryError("a thread has no memory for its part of the images")


# ---- threads ----


class Team:
    """The threads beside the caller, `size` of them, which begin with the first job."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._served: list[Array] = []  # the desks that have a thread
        self._begin()
        weakref.finalize(self, _end, self._served)

    def _begin(self) -> None:
        self._busy, self._process, self._desks = threading.Lock(), os.getpid(), np.zeros((0, DESK), np.int64)
        self._served.clear()

    def run(self, loop: Any, threads: int, shards: int, *arguments: Any) -> None:
        """Call loop(desks, threads, shards, *arguments), which uses `share`. If another thread is using the team, the
        caller does all parts by itself; the result is the same."""
        if self._process != os.getpid():  # a fork has no threads of its parent
            self._begin()
        if threads == 1 or not self._busy.acquire(blocking=False):
            loop(self._desks[:0], threads, shards, *arguments)
            return
        try:
            if not len(self._desks):
                self._hire()
            loop(self._desks, threads, shards, *arguments)
        finally:
            self._busy.release()

    def _hire(self) -> None:
        desks = np.zeros((self.size, DESK), np.int64)
        for desk in desks:
            desk[THREAD_BELL], desk[CALLER_BELL] = _bell(), _bell()
            try:
                threading.Thread(target=serve, args=(desk,), name="minigrad", daemon=True).start()
            except RuntimeError as error:  # the system has no memory for another thread, or allows no more threads
                _end(self._served)
                raise MemoryError(str(error)) from error
            self._served.append(desk)
        self._desks = desks


def _bell() -> int:
    """A lock that is taken, so that the next one who takes it waits until it is released."""
    bell = PYTHON.PyThread_allocate_lock()
    if not bell:
        raise MemoryError("the system has no memory for a lock")
    PYTHON.PyThread_acquire_lock(bell, 1)
    return int(bell)


def _end(desks: list[Array]) -> None:
    """End the threads at these desks, and forget them."""
    while desks:
        hand_over(desks.pop(), 0, 0, 0, 0, 0)
