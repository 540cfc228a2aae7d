"""Signals that end a training after the running step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# signals that end a program: of Ctrl-C, of kill, and of a terminal that is closed (not on Windows)
STOPS = tuple(signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def catch_signals(signals: tuple[signal.Signals, ...]) -> Iterator[list[int]]:
    """Collect signals, which would otherwise end the process, so that a step can be finished and saved. A second signal
    stops at once.

    Nothing is changed outside the main thread, or for a signal that already has a handler.
    """
    received: list[int] = []

    def handler(number: int, _: Any) -> None:
        if received:
            raise KeyboardInterrupt(number)
        received.append(number)

    usual = (signal.SIG_DFL, signal.default_int_handler, interrupt)
    mine = [
        s for s in signals if threading.current_thread() is threading.main_thread() and signal.getsignal(s) in usual
    ]
    previous = {s: signal.signal(s, handler) for s in mine}
    try:
        yield received
    finally:
        for s, old in previous.items():
            signal.signal(s, old)


def interrupt(number: int, _: Any) -> None:
    """A handler of signals: KeyboardInterrupt with the signal's number."""
    raise KeyboardInterrupt(number)


@contextmanager
def raise_signals() -> Iterator[None]:
    """Every signal of STOPS raises KeyboardInterrupt, as SIGINT does, so that what was begun can be told and recorded.

    Outside the main thread, and where somebody else already handles a signal, nothing is changed.
    """
    main = threading.current_thread() is threading.main_thread()
    mine = [number for number in STOPS if main and signal.getsignal(number) == signal.SIG_DFL]
    for number in mine:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)
