"""Imported first by the programs here: a signal ends them without a traceback until `run_script` takes over."""

import os
import signal
import sys

for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # Windows lacks the last one
    number = getattr(signal, name, None)
    if number is not None and signal.getsignal(number) != signal.SIG_IGN and not sys.flags.inspect:
        signal.signal(number, lambda number, _: os._exit(128 + number))  # there is nothing to save yet
