"""The three programs, called as their scripts call them, in this process."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

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
