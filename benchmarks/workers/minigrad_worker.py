"""minigrad's side: the public models, trained by their own Trainer; on several processes, if mpirun starts them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from protocol import Arrays, Program, Service, Spec, serve

import autoencoders
import minigrad
from autoencoders.training import Trainer
from autoencoders.training.checkpoints import libraries
from minigrad.backend.memory import keep_freed_memory
from minigrad.distributed import world


class MinigradProgram(Program):
    """options: kernels, threads, dtype."""

    def __init__(
        self, spec: Spec, weights: Arrays, images: np.ndarray, noise: np.ndarray, options: dict[str, Any]
    ) -> None:
        kept = keep_freed_memory()  # as scripts/ do
        backend = minigrad.use(kernels=options["kernels"], threads=options["threads"])
        arguments = {name: value for name, value in spec.items() if name not in ("kind", "learning_rate", "epsilon")}
        self.model = {"ae": autoencoders.Autoencoder, "vae": autoencoders.VAE}[spec["kind"]](**arguments)
        self.model.to(dtype=options.get("dtype", "float32"))
        self.model.network.load_state_dict(weights)
        self.model.compile(spec["learning_rate"])
        chosen = autoencoders.TrainingOptions(batch_size=len(images))
        self.images = self.inputs(images)
        self.noise = noise.astype(self.model.dtype) if self.model.noise_dim else None
        self.trainer = Trainer(self.model, self.images, chosen, progress=False, group=world())
        self.threads = None if options["kernels"] == "plain" else backend.threads  # plain leaves threads to BLAS
        blas = (libraries(backend) or ["unknown"])[0]
        self.versions = {"minigrad": minigrad.__version__, "NumPy": np.__version__, "BLAS": blas}
        if options["kernels"] == "numba":
            import numba

            self.versions["Numba"] = numba.__version__
        self.remarks = {"backend": backend.describe(), "freed memory is kept": kept}

    def step(self) -> float:
        """What Trainer does for a step, besides shuffling and telling."""
        optimizer = self.trainer.optimizer
        optimizer.steps += 1
        scalars = np.array([self.model.beta, *optimizer.scalars(optimizer.steps)], dtype=self.model.dtype)
        return self.trainer.step(self.images, self.noise, scalars).sum()  # beta is 1

    def inputs(self, images: np.ndarray) -> np.ndarray:
        return images.astype(self.model.dtype)

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.model.reconstruct(x)[0]

    def reconstruct(self, x: np.ndarray) -> np.ndarray:
        return self.predict(x)  # which takes any number


class Processes(Service):
    """The requests about a program that several processes run."""

    def waited(self) -> dict[str, Any]:
        """The seconds that this process has waited for others since it started."""
        return {"seconds": getattr(world(), "seconds", 0.0)}


def requests() -> Iterator[str]:
    """The lines that the first process reads, in all of them."""
    while line := world().first(sys.stdin.readline):
        yield line


if __name__ == "__main__":
    serve(Processes(MinigradProgram), requests(), world().rank == 0)
