"""One process of a training that mpirun starts. Its argument is JSON: folder, save_every, and perhaps a fault that
comes at a step in one of the processes.

It prints "pid RANK PID" at the start and "step N" after each step, if it is the first one.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import minigrad
from autoencoders import VAE, Callback, TrainingOptions
from autoencoders.cli.program import run_program
from autoencoders.training import Trainer, latest_checkpoint, load_checkpoint
from autoencoders.training.signals import STOPS
from minigrad import serialize
from minigrad.distributed import ALONE, Group, world

IMAGES = np.random.default_rng(0).integers(0, 256, (83, 12, 9, 1), dtype=np.uint8)
STEPS = 6 * 8  # the last batch of an epoch has 3 images


class Faulty(Callback):
    """Tells steps, slowly enough that a fault comes between two of them; and does what the options say."""

    def __init__(self, fault: dict[str, Any] | None, rank: int) -> None:
        self.fault, self.rank = fault, rank

    def on_batch_end(self, trainer: Trainer) -> None:
        step = trainer.progress.step
        if self.rank == 0:
            os.write(1, f"step {step}\n".encode())
        time.sleep(0.01)
        if not self.fault or self.fault["step"] != step or self.fault["rank"] != self.rank:
            return
        kind, weights = self.fault["kind"], trainer.optimizer.flat.values
        if kind == "error":
            raise ValueError("of this process alone")
        if kind == "flipped bit":
            weights.view(np.uint32)[7] ^= 1 << 20  # the next update could round a low bit away
        if kind == "full disk":
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            mock.patch.object(serialize.os, "fsync", side_effect=full).start()
        if kind == "divergence":
            weights[...] = np.nan


def train(group: Group, folder: Path, save_every: int, fault: dict[str, Any] | None) -> Trainer:
    minigrad.use(kernels="numpy", threads=1)
    model = VAE(IMAGES.shape[1:], (8, 16), (3, 5), (2, 1), 3, momentum=0.9)  # with more than WHOLE_NUMBERS
    model.compile(1e-2)
    options = TrainingOptions(batch_size=16, epochs=8, save_every=save_every)
    trainer = Trainer(
        model,
        IMAGES,
        options,
        folder=None if group.rank else folder,
        callbacks=[Faulty(fault, group.rank)],
        progress=False,
        signals=STOPS,
        group=group,
    )
    found = group.first(lambda: load_checkpoint(folder)[:2] if latest_checkpoint(folder) else None)
    if found:
        trainer.restore(*found)
    trainer.run()
    return trainer


def main() -> int:
    options = json.loads(sys.argv[1])
    group = ALONE

    def body() -> None:
        nonlocal group
        group = world()
        os.write(1, f"pid {group.rank} {os.getpid()}\n".encode())
        with group.together():
            train(group, Path(options["folder"]), options["save_every"], options.get("fault"))

    code = run_program(body, debug=False, group=lambda: group)
    group.leave(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
