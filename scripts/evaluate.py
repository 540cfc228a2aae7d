#!/usr/bin/env python
"""Measure a saved model on the test images and write a report. The same as `autoencoders evaluate`."""

from autoencoders.cli import evaluate
from autoencoders.cli.program import Program, start

if __name__ == "__main__":
    start(lambda: evaluate.main(program=Program.of_script(__file__)))
