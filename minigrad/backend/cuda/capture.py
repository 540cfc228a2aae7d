"""capture: a training step recorded once as a CUDA graph and then replayed, for one launch instead of hundreds.

What is recorded are the kernels and the addresses they work on. So a step can be captured if it is a function of
arrays: what it reads besides its arguments and what it writes (parameters, moments, statistics) must stay where it is,
and every Python number in it is frozen. It may not read anything back, or copy anything from the host.

The kernels of a replay are those of an ordinary call, in the same order: the results are equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ..errors import DeviceError

Array = Any
Step = Callable[..., Array]  # takes arrays or None, returns one array
WARM_UP = 3  # ordinary calls before the recording, in which kernels are compiled and memory is found


class Captured:
    """The step, to be called like it.

    - Calls 1 to 3 are ordinary calls: kernels are compiled, and memory is found.
    - Call 4 records the step, which computes nothing, copies its arguments into the recorded inputs and launches.
    - Later calls copy their arguments and launch. Python code of the step does not run again.
    - Calls with other shapes than the first one's, such as the short last batch of an epoch, are ordinary calls.

    Everything runs on a stream of its own, because the default one cannot be recorded; it waits for what was asked for
    before the call, and what follows waits for it.
    """

    def __init__(self, xp: Any, step: Step) -> None:
        self.xp, self.step = xp, step
        self.stream = xp.cuda.Stream(non_blocking=True)
        self.pool = xp.cuda.MemoryPool()  # the graph works on its addresses, so nobody else may have them
        others = xp.get_default_memory_pool()
        if others.get_limit():
            self.pool.set_limit(size=max(1, others.get_limit() - others.used_bytes()))
        self.kind: list[Any] | None = None
        self.calls = 0
        self.inputs: list[Array | None] = []
        self.result: Array = None
        self.graph: Any = None

    def __call__(self, *arrays: Array | None) -> Array:
        """One step.

        Raises:
            DeviceError: the step cannot be captured.
        """
        outside = self.xp.cuda.get_current_stream()
        self.stream.wait_event(outside.record())
        try:
            with self.stream:
                return self._run(arrays)
        finally:  # also after an error: what the step has written is read then
            outside.wait_event(self.stream.record())

    def _run(self, arrays: tuple[Array | None, ...]) -> Array:
        kind = [None if x is None else (x.shape, x.dtype) for x in arrays]
        self.kind = self.kind or kind
        self.calls += kind == self.kind
        if kind != self.kind or self.calls <= WARM_UP:
            # In the graph's memory, which is free between the replays; other memory would be needed besides.
            with self.xp.cuda.using_allocator(self.pool.malloc):
                inputs = [None if x is None else x.copy() for x in arrays]
                result = self.step(*inputs)
            if kind == self.kind:
                self.inputs = inputs
            return result.copy()
        if self.graph is None:
            self._record()
        for mine, given in zip(self.inputs, arrays, strict=True):
            if mine is not None:
                mine[...] = given
        self.graph.launch(self.stream)
        return self.result.copy()

    def _record(self) -> None:
        with self.xp.cuda.using_allocator(self.pool.malloc):
            self.stream.begin_capture()
            try:
                self.result = self.step(*self.inputs)
            except BaseException as fault:  # Ctrl-C, too: a stream that still records fails when it is freed
                with suppress(Exception):
                    self.stream.end_capture()
                if not isinstance(fault, Exception):
                    raise
                raise DeviceError(
                    f"the training step cannot be captured as a CUDA graph: {fault}; run it without (--no-capture)"
                ) from fault
            self.graph = self.stream.end_capture()
