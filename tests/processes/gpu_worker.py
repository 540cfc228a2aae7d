"""One process of a training on several GPUs, with the doubles of CuPy and NCCL. Its arguments: what to do, a folder for
what it finds, and the number of GPUs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import strict_cupy
import strict_nccl

import minigrad
from autoencoders import VAE, Autoencoder, TrainingOptions
from autoencoders.training import Trainer
from minigrad.distributed import Group, world

IMAGES = np.random.default_rng(0).integers(0, 256, (29, 8, 6, 1), dtype=np.uint8)
OPTIONS: dict[str, Any] = {"batch_size": 4, "epochs": 1, "clip_norm": 0.5}  # the last batch has one image
MODELS = {"autoencoder": Autoencoder, "vae": VAE}
COUNTED = "to_device", "to_host", "synchronisations"


class Counting(Trainer):
    """Counts how often the steps copy between host and device, or wait."""

    copies = 0

    def step(self, *arguments: Any) -> Any:
        before = sum(getattr(strict_cupy.counters, name) for name in COUNTED)
        losses = super().step(*arguments)
        self.copies += sum(getattr(strict_cupy.counters, name) for name in COUNTED) - before
        return losses


def trainer_of(group: Group, kind: str, dtype: str, **options: Any) -> Counting:
    model = MODELS[kind](IMAGES.shape[1:], (4, 6), (3, 3), (2, 1), 3, momentum=0.9)
    model.to(dtype=dtype)
    model.compile(1e-2)
    return Counting(model, IMAGES, TrainingOptions(**{**OPTIONS, **options}), progress=False, group=group)


def train(group: Group) -> dict[str, Any]:
    """The state after trainings, their losses, and what they launched."""
    found: dict[str, Any] = {}
    for kind, dtype, capture in (
        ("autoencoder", "float64", True),
        ("vae", "float64", True),
        ("vae", "float64", False),
        ("vae", "float32", True),
    ):
        trainer, case = trainer_of(group, kind, dtype), f"{kind}, {dtype}{', captured' if capture else ''}"
        trainer.capture = capture
        counters = strict_cupy.reset()
        trainer.run()
        losses = [value for name, value in trainer.history.rows[-1].items() if name in trainer.columns]
        facts = trainer.copies, counters.launches["graph"], counters.launches["allGather"]
        found |= {f"{case}/{name}": x for name, x in trainer.state().items()}
        found |= {f"{case}/losses": losses, f"{case}: copies, graphs, exchanges": facts}
    return found


def normalise(group: Group) -> dict[str, Any]:
    """batch_norm by itself, of rows far from zero, and its gradient for a loss that is the mean over the processes."""
    k, rng = minigrad.backend.default_backend(), np.random.default_rng(1)
    group.check(k, 8)
    x, gy = rng.standard_normal((2, 8, 5, 3))
    x += np.arange(120).reshape(x.shape) + 1000.0
    x, gy, gamma, beta = (k.from_host(a) for a in (x, gy, rng.standard_normal(3), rng.standard_normal(3)))
    with group.sharing(k, len(x)) as rows:
        y, mean, variance = k.batch_norm(x[rows], gamma, beta, 1e-3)
        gx, ggamma, gbeta = k.batch_norm_grad(gy[rows] * group.size, x[rows], gamma, mean, variance, 1e-3)
    of_all = {"mean": mean, "variance": variance, "ggamma": ggamma, "gbeta": gbeta}
    found = {**of_all, "rows of y": y, "rows of gx": gx / group.size}
    return {f"batch_norm: {name}": k.to_host(a) for name, a in found.items()}


def refusals(group: Group) -> dict[str, Any]:
    """What is said of trainings that cannot be."""

    def told(kernels: str = "cuda", batch: int = 4, device: str = "cuda") -> str:
        minigrad.use(group.device(device), kernels)
        try:
            trainer_of(group, "vae", "float32", batch_size=batch)
        except (minigrad.DeviceError, ValueError) as error:
            return str(error)
        return ""

    found = {"kernels": told(kernels="plain"), "batch": told(batch=5), "one GPU": told(device="cuda:0")}
    sys.modules["cupy.cuda.nccl"] = strict_nccl.module(available=False)
    found["no NCCL"] = told()
    sys.modules["cupy.cuda.nccl"] = strict_nccl.module()
    return {**found, "nothing": told()}


def main(what: str, folder: str, devices: str) -> None:
    strict_nccl.install()
    strict_cupy.reset(devices=int(devices))
    group = world()
    minigrad.use(group.device("cuda"))
    place = Path(folder) / f"{what}-{group.size}-{group.rank}"
    if what == "refuse":
        place.with_suffix(".json").write_text(json.dumps(refusals(group)))
    else:
        np.savez(place, **train(group), **normalise(group))
    group.leave(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
