"""Trains in children of one process that has everything imported: hundreds of processes can be killed in a minute.

Reads a line of JSON for each training (folder, kind, kernels, steps ...) and prints, a line each: "pid N", "step N M"
after every step, with the bytes that CuPy's memory pool holds, "save" before and "saved N" after a save, with the
signals that came during it, what the child says on stderr, and "exit N" when it has gone: its exit code, or minus the
signal that ended it. (An empty line before it ends one that a kill cut short.)
"""

import json
import os
import resource
import signal
import sys
import time
import traceback
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

import minigrad
from autoencoders import VAE, Autoencoder, Callback, TrainingOptions
from autoencoders.cli.program import run_program
from autoencoders.conv_autoencoder import from_config
from autoencoders.training import Trainer, checkpoints, latest_checkpoint, load_checkpoint

with suppress(ImportError):  # for its children; only they may touch a device, because CUDA does not survive a fork
    import cupy  # noqa: F401

STEPS_PER_EPOCH, BATCH = 10, 4


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())  # one whole line, whatever else happens


class Watched(Trainer):
    """Tells when it saves. `plant` is a fault of its own, to see that the campaign counts what it loses: a save that is
    not "atomic", none after a "signal", other "bits" in every process, or a "leak" of files."""

    plant: str | None = None

    def save_checkpoint(self) -> None:
        if self.plant == "signal" and self.received:
            return
        before = len(self.received)
        say("save")
        super().save_checkpoint()
        if self.plant == "atomic" and (path := latest_checkpoint(self.folder)):
            content = path.read_bytes()
            with path.open("wb", buffering=0) as file:
                for start in range(0, len(content), 1 << 16):
                    file.write(content[start : start + (1 << 16)])
                    time.sleep(0.005)
        say(f"saved {len(self.received) - before}")

    def planted(self) -> None:
        if self.plant == "bits":
            self.optimizer.flat.values[0] += 1e-6 * os.getpid()
        if self.plant == "leak":
            self.files.append(open(os.devnull))  # noqa: SIM115


class Tell(Callback):
    def on_batch_end(self, trainer: Trainer) -> None:
        held = 0
        if not trainer.k.on_host:
            pool = trainer.k.xp.get_default_memory_pool()
            held = pool.used_bytes() + pool.free_bytes()
        trainer.planted()
        say(f"step {trainer.progress.step} {held}")


def train(
    folder: str,
    kind: str,
    kernels: str,
    steps: int,
    save_every: int = 1,
    headroom: int | None = None,
    side: int = 8,
    threads: int = 1,
    keep: int = checkpoints.KEPT_CHECKPOINTS,
    capture: bool = True,
    plant: str | None = None,
) -> None:
    """Start the run of a folder, or go on with it; with so many more bytes of memory, with so many
    checkpoints kept, on a GPU without capturing the step, or with a planted fault."""
    minigrad.use("cuda" if kernels == "cuda" else "cpu", kernels, threads)
    checkpoints.KEPT_CHECKPOINTS = keep
    images = np.random.default_rng(0).integers(0, 256, (STEPS_PER_EPOCH * BATCH, side, side, 1), dtype=np.uint8)
    options = TrainingOptions(BATCH, epochs=steps // STEPS_PER_EPOCH, save_every=save_every, validation=0)
    found = load_checkpoint(folder, say) if latest_checkpoint(Path(folder)) else None
    if found:
        model = from_config(found[1]["model"])
    else:
        # with its moments 2 MB: a kill can hit the middle of a write
        model = (VAE if kind == "vae" else Autoencoder)((side, side, 1), (8, 64), (3, 3), (2, 1), 64)
    model.compile(1e-2)
    trainer = Watched(
        model,
        images,
        options,
        folder=folder,
        callbacks=[Tell()],
        progress=False,
        signals=(signal.SIGINT, signal.SIGTERM),
    )
    trainer.capture, trainer.plant, trainer.files = capture, plant, []
    if found:
        trainer.restore(*found)
    if headroom is not None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + headroom, used + headroom))
    try:
        trainer.run()
    except KeyboardInterrupt as stop:
        if traceback.extract_tb(stop.__traceback__)[-1].name == "handler":
            say("interrupted at once")
        raise


def main() -> None:
    for line in sys.stdin:
        options = json.loads(line)
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.dup2(1, 2)
            os._exit(run_program(partial(train, **options), debug=False))
        say(f"pid {child}")
        say(f"\nexit {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # that is for the children
    main()
