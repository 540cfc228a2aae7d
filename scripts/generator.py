#!/usr/bin/env python
"""Draw what a saved model does. The same as `autoencoders generate`."""

from autoencoders.cli import generate
from autoencoders.cli.program import Program, start

if __name__ == "__main__":
    start(lambda: generate.main(program=Program.of_script(__file__)))
