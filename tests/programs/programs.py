"""The three programs, called as their scripts call them, in this process."""

from pathlib import Path
from types import ModuleType

import pytest

from autoencoders.cli import evaluate, generate, train
from autoencoders.cli.program import Program

SCRIPTS = Path(__file__).parents[2] / "scripts"


class Script:
    """A script in scripts/. module: the program that it starts, where tests replace names."""

    def __init__(self, name: str, module: ModuleType) -> None:
        self.__name__, self.file, self.module = name, SCRIPTS / f"{name}.py", module

    def main(self, argv: list[str]) -> int:
        """What the script does with these arguments; returns the exit code."""
        return self.module.main(argv, Program.of_script(str(self.file)))


TRAIN = Script("train_conv_autoencoder", train)
GENERATE, EVALUATE = Script("generator", generate), Script("evaluate", evaluate)
SAMPLE = ("--dataset", "fashion-mnist-sample")
NETWORK = ("--filters", "4", "8", "--kernels", "3", "3", "--strides", "2", "2", "--batch-size", "32")
TINY = (*NETWORK, *SAMPLE, "--limit-train", "64", "--threads", "1")
PROGRAMS = pytest.mark.parametrize("program", [TRAIN, GENERATE, EVALUATE], ids=lambda p: p.__name__)
READERS = pytest.mark.parametrize("program", [GENERATE, EVALUATE], ids=lambda p: p.__name__)
