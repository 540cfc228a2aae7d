#!/usr/bin/env python
"""Train a convolutional autoencoder or VAE, and save it with pictures. The same as `autoencoders train`."""

from autoencoders.cli import train
from autoencoders.cli.program import Program, start

if __name__ == "__main__":
    start(lambda: train.main(program=Program.of_script(__file__)))
