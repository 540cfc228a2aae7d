"""Signals that end a training after the running step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

# signals that end a program: of Ctrl-C, of kill, and of a terminal that is closed (not on Windows)
STOPS = tuple(signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def catch_signals(signals: tuple[signal.Signals, ...]) -> Iterator[list[int]]:
    """Collect signals, which would otherwise end the process, so that a step can be finished and saved. A second signal
    stops at once."""
    received: list[int] = []

    def handler(number: int, _: Any) -> None:
        if received:
            raise KeyboardInterrupt(number)
        received.append(number)

    with _handled(signals, handler, (signal.SIG_DFL, signal.default_int_handler, interrupt)):
        yield received


def raise_signals() -> AbstractContextManager[None]:
    """Every signal of STOPS raises KeyboardInterrupt, as SIGINT does, so that what was begun can be recorded."""
    return _handled(STOPS, interrupt, (signal.SIG_DFL,))


def interrupt(number: int, _: Any) -> None:
    """A handler of signals: KeyboardInterrupt with the signal's number."""
    raise KeyboardInterrupt(number)


@contextmanager
def _handled(signals: tuple[signal.Signals, ...], handler: Any, usual: tuple[Any, ...]) -> Iterator[None]:
    """Handle those of the signals that have one of the usual handlers. Outside the main thread nothing is changed."""
    main = threading.current_thread() is threading.main_thread()
    previous = {s: signal.signal(s, handler) for s in signals if main and signal.getsignal(s) in usual}
    try:
        yield
    finally:
        for s, old in previous.items():
            signal.signal(s, old)
