"""Whether a step of a training runs here, and which processes share its batch: what the kernels of CPU and GPU ask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_step: ContextVar[Any] = ContextVar("minigrad_step", default=None)  # inside `strictly` its group, or False


@contextmanager
def strictly(group: Any = None) -> Iterator[None]:
    """A step of a training: each sum over a batch is taken by shards, even of small arrays. With a group of processes,
    arrays hold this process's rows of the batch, and sums are those of all."""
    token = _step.set(group or False)
    try:
        yield
    finally:
        _step.reset(token)


def is_strict() -> bool:
    """Whether this is inside `strictly`."""
    return _step.get() is not None


def sharers() -> Any:
    """The group of processes that share the batch of the step; None: this process has all of it."""
    return _step.get() or None


def added(parts: Any) -> Any:
    """The sum over the first axis, a power of two, added as a balanced binary tree: ((0 + 1) + (2 + 3)) + ..."""
    while len(parts) > 1:
        parts = parts[::2] + parts[1::2]
    return parts[0]
