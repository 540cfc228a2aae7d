"""capture: a training step recorded once as a CUDA graph and then replayed, for one launch instead of hundreds.

What is recorded are the kernels and the addresses they work on. So a step can be captured if it is a function of
arrays:

- What it reads besides its arguments, and what it writes, stays at its address: parameters and gradients (optim.py),
  moments, moving statistics.
- Numbers that change from step to step, such as the learning rate, come as an array: `scalars` in training/steps.py.
  Every Python number is frozen. If a callback freezes a parameter, the trainer captures the step anew.
- It reads nothing back (the trainer fetches the losses later) and copies nothing from the host (training/feed.py puts
  images, noise and scalars on the device).

The kernels of a replay are those of an ordinary call, in the same order: the results are equal bit for bit. Python code
does not run again, so a replay does not call `mark_written`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ..errors import DeviceError

Array = Any
Step = Callable[..., Array]  # takes arrays or None, returns one array
WARM_UP = 3  # ordinary calls before the recording, in which kernels are compiled and memory is found


class Recording:
    """The calls with arguments of certain shapes."""

    def __init__(self) -> None:
        self.calls = 0
        self.inputs: list[Array | None] = []
        self.result: Array = None
        self.graph: Any = None


class Captured:
    """The step, to be called like it. For each kind of shapes (an epoch may end with a short batch):

    - Calls 1 to 3 are ordinary calls: kernels are compiled, and memory is found.
    - Call 4 records the step. This computes nothing, so the call then does what later ones do.
    - Later calls copy their arguments into the recorded inputs and launch the graph.

    Everything runs on a stream of its own, because the default one cannot be recorded. That stream first waits for the
    work queued before the call, and work queued after the call waits for that stream.
    """

    def __init__(self, xp: Any, step: Step) -> None:
        self.xp, self.step = xp, step
        self.stream = xp.cuda.Stream(non_blocking=True)
        self.pool = xp.cuda.MemoryPool()  # the graph works on its addresses, so nobody else may have them
        others = xp.get_default_memory_pool()
        if others.get_limit():
            self.pool.set_limit(size=max(1, others.get_limit() - others.used_bytes()))
        self.recordings: dict[Any, Recording] = {}

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
        kind = tuple(None if x is None else (x.shape, x.dtype.char) for x in arrays)
        recording = self.recordings.setdefault(kind, Recording())
        recording.calls += 1
        if recording.calls <= WARM_UP:
            # In the graph's memory, which is free between the replays; other memory would be needed besides.
            with self.xp.cuda.using_allocator(self.pool.malloc):
                recording.inputs = [None if x is None else x.copy() for x in arrays]
                return self.step(*recording.inputs).copy()
        if recording.graph is None:
            self._record(recording)
        for mine, given in zip(recording.inputs, arrays, strict=True):
            if mine is not None:
                mine[...] = given
        recording.graph.launch(self.stream)
        return recording.result.copy()

    def _record(self, recording: Recording) -> None:
        with self.xp.cuda.using_allocator(self.pool.malloc):
            self.stream.begin_capture()
            try:
                recording.result = self.step(*recording.inputs)
            except BaseException as fault:  # Ctrl-C, too: a stream that still records fails when it is freed
                with suppress(Exception):
                    self.stream.end_capture()
                if not isinstance(fault, Exception):
                    raise
                raise DeviceError(
                    f"the training step cannot be captured as a CUDA graph: {fault}; run it without (--no-capture)"
                ) from fault
            recording.graph = self.stream.end_capture()
