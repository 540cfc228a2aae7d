"""Whole epochs of real data beside PyTorch: the same weights, order of the images, noise and learning rate.

    python benchmarks/parity.py [--epochs 2] [--batch 128] [--quick] [--out FILE]

Both train the default VAE, minigrad through its own Trainer, PyTorch as its users write it. The mean loss of each epoch
must agree within 5e-3 of itself: in float32 the paths part after some hundred steps, because Adam turns the smallest
differences of small gradients into steps of full size, but what is learnt must not. The very first loss, before any
step, is compared by itself. (Step by step both sides are compared in float64, by the tests.)
"""

from __future__ import annotations

import argparse
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import driver
import numpy as np
from driver import BenchmarkError

import minigrad
from autoencoders import Callback, TrainingOptions
from autoencoders.data import load_dataset
from autoencoders.training import Trainer
from minigrad.random import generator

# Of the mean loss of an epoch; of the first loss as in train.py: PyTorch's is 1.1e-5 from that in float64, ours 6e-8.
EPOCH_TOLERANCE, FIRST_TOLERANCE = 5e-3, 1e-4
FEW_STEPS = 50  # the mean of fewer is no mean: the path of the first steps is the wildest
RATE, SEED = 5e-4, 0


class Losses(Callback):
    """The loss of each step, read at once."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_fit_begin(self, trainer: Trainer) -> None:
        step = trainer.step

        def recorded(*arrays: Any) -> Any:
            losses = step(*arrays)
            self.values.append(float(losses.sum()))  # beta is 1
            return losses

        trainer.step = recorded  # type: ignore[method-assign]


def ours(model: Any, images: np.ndarray, options: TrainingOptions) -> list[float]:
    """The losses of all steps by minigrad."""
    model.compile(RATE)
    losses = Losses()
    Trainer(model, images, options, callbacks=[losses]).run()
    return losses.values


def theirs(weights: dict[str, np.ndarray], images: np.ndarray, options: TrainingOptions, epsilon: float) -> list[float]:
    """The losses of all steps by PyTorch, with the shuffle and the noise that the Trainer draws."""
    import torch
    from tqdm import tqdm

    sys.path.insert(0, str(driver.FOLDER / "workers"))
    from mirrored import mirrored_images, mirrored_weights
    from torch_worker import Model, load

    spec = driver.DEFAULT_MODEL
    torch.set_num_threads(minigrad.get_num_threads())
    model = Model(spec, channels_last=True)
    load(model, mirrored_weights(weights, spec, True))
    model.to(memory_format=torch.channels_last)
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), RATE, eps=epsilon)
    found: list[float] = []
    batches = -(-len(images) // options.batch_size)
    with tqdm(total=options.epochs * batches, unit=" steps", disable=None) as bar:
        for epoch in range(options.epochs):
            order = generator(options.seed, "shuffle", epoch).permutation(len(images))
            shape = len(images), spec["latent_space_dim"]
            noise = generator(options.seed, "noise", epoch).standard_normal(shape, dtype=np.float32)
            for start in range(0, len(images), options.batch_size):
                rows = slice(start, start + options.batch_size)
                x = torch.from_numpy(mirrored_images(images[order[rows]].astype(np.float32) / 255))
                optimizer.zero_grad()
                loss = model(x.contiguous(memory_format=torch.channels_last), torch.from_numpy(noise[rows]))
                loss.backward()
                optimizer.step()
                found.append(loss.item())
                bar.update()
    return found


def compare(mine: list[float], others: list[float], epochs: int) -> tuple[list[dict[str, Any]], list[str]]:
    """(a row an epoch, what differs too much).

    Raises:
        BenchmarkError: a loss is not finite; a comparison with NaN would find no difference.
    """
    if not np.isfinite([mine, others]).all():
        raise BenchmarkError("a loss is not finite")
    faults = []
    if abs(mine[0] - others[0]) > FIRST_TOLERANCE * abs(others[0]):
        faults.append(f"first loss: {mine[0]:.8g} and {others[0]:.8g}")
    rows = []
    by_epoch = (np.split(np.array(losses), epochs) for losses in (mine, others))
    for epoch, (a, b) in enumerate(zip(*by_epoch, strict=True)):
        difference = abs(a.mean() - b.mean()) / abs(b.mean())
        rows.append({"epoch": epoch + 1, "minigrad": a.mean(), "torch": b.mean(), "difference": difference})
        if difference > EPOCH_TOLERANCE and len(a) > FEW_STEPS:
            faults.append(f"epoch {epoch + 1}: loss {a.mean():.6g} and {b.mean():.6g}")
    return rows, faults


def main(argv: list[str] | None = None) -> int:
    """Train both and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", metavar="N", type=driver.positive, default=2, help="(default: %(default)s)")
    parser.add_argument("--batch", metavar="N", type=driver.positive, default=128, help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that all works; writes no result")
    parser.add_argument("--out", metavar="FILE", type=Path, help="the result (default: benchmarks/results/parity.json)")
    args = parser.parse_args(argv)

    def body() -> int:
        if find_spec("torch") is None:
            raise BenchmarkError("parity.py needs PyTorch: pip install torch")
        dataset = load_dataset("auto")
        images = dataset.train_images[: 12 * args.batch if args.quick else None]
        images = images[: len(images) // args.batch * args.batch]  # epochs of equal steps
        if not len(images):
            raise BenchmarkError(f"a batch of {args.batch} needs as many images")
        backend = minigrad.use("cpu")
        print(f"{dataset.source}; {backend.describe()}")
        options = TrainingOptions(batch_size=args.batch, epochs=args.epochs, seed=SEED)
        model = driver.model_of(driver.DEFAULT_MODEL)
        weights = {name: x.copy() for name, x in model.network.state_dict().items()}
        start = time.perf_counter()
        mine = ours(model, images, options)
        middle = time.perf_counter()
        rows, faults = compare(mine, theirs(weights, images, options, model.optimizer.epsilon), args.epochs)
        seconds = {"minigrad": middle - start, "torch": time.perf_counter() - middle}
        for row in rows:
            print("epoch {epoch}: minigrad {minigrad:.4f}, PyTorch {torch:.4f}, apart {difference:.1e}".format(**row))
        print(*faults, sep="\n", end="\n" * bool(faults))
        settings = {"epochs": args.epochs, "batch": args.batch, "images": len(images), "learning_rate": RATE}
        record = driver.record_of("parity.py", sys.argv[1:] if argv is None else argv, settings=settings)
        data = {"name": dataset.name, "content_hash": dataset.content_hash}
        versions = driver.versions_of([backend.kernels]) | {"PyTorch": version("torch")}
        record |= {"versions": versions, "data": data, "seconds": seconds}
        record |= {"first": mine[0], "rows": rows, "faults": faults}
        if args.out or not args.quick:
            driver.write_record(args.out or driver.RESULTS / "parity.json", record)
        return 1 if faults else 0

    return driver.run_main(body)


if __name__ == "__main__":
    sys.exit(main())
