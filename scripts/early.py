"""Imported first by the programs here: a signal ends them without a traceback until `run_script` takes over."""

import os
import signal

for number in (signal.SIGINT, signal.SIGTERM):
    if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, lambda number, _: os._exit(128 + number))  # there is nothing to save yet
