"""`autoencoders`, the console command: it starts one of the programs."""

from __future__ import annotations

import sys
from typing import NoReturn

import minigrad

from ..data.dataset import did_you_mean
from . import evaluate, explore, export, generate, train
from .options import Parser
from .program import Program, start

PROGRAMS = {"train": train, "generate": generate, "evaluate": evaluate, "explore": explore, "export": export}


def main() -> NoReturn:
    """Start the program that the first word names."""
    about = "\n".join(f"  {name:9} {' '.join(str(module.__doc__).split())}" for name, module in PROGRAMS.items())
    parser = Parser(f"Convolutional autoencoders and VAEs. The programs:\n\n{about}", Program(()))
    parser.usage = f"autoencoders {{{','.join(PROGRAMS)}}} [options]"
    parser.epilog = "autoencoders train --help shows the options of a program."
    parser.add_argument("--version", action="version", version=f"%(prog)s {minigrad.__version__}")
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in PROGRAMS:
        if not name:
            parser.print_help()
            sys.exit(0)
        if not name.startswith("-"):
            parser.error(f"there is no program {name!r}{did_you_mean(name, PROGRAMS)}")
        parser.parse_args(sys.argv[1:])
    start(lambda: PROGRAMS[name].main(sys.argv[2:], Program.installed(name)))
