"""The losses of a model on images that it is not trained on."""

from __future__ import annotations

import numpy as np

from minigrad import Tensor
from minigrad.distributed import ALONE, Group

from .trainable import Trainable


def mean_losses(
    model: Trainable,
    images: np.ndarray,
    rng: np.random.Generator,
    batch: int = 256,
    *,
    one_hot: np.ndarray | None = None,
    targets: np.ndarray | None = None,
    iw_samples: int = 1,
    group: Group = ALONE,
) -> dict[str, float]:
    """The model's losses in evaluation mode, averaged over images, with iw_samples draws of noise per image. With 2 or
    more draws, the importance-weighted "bound" with beta 1 comes last.

    one_hot: the labels as rows of `one_hot`, for a conditional model. targets: as for `losses`. group: the processes
    that do this together, each some of the batches.
    """
    k = model.backend
    names = model.loss_names if iw_samples == 1 else (*model.loss_names, "bound")
    starts = range(0, len(images), batch)
    sums = np.zeros((len(starts), len(names)))
    with model.evaluating():
        for i, start in enumerate(starts):
            rows = slice(start, min(start + batch, len(images)))
            count = rows.stop - start
            shape = (count, model.noise_dim) if iw_samples == 1 else (count, iw_samples, model.noise_dim)
            draws = rng.standard_normal(shape)  # also for other processes, so that the next ones are the same
            if i % group.size != group.rank:
                continue
            x = k.unit_range(k.from_host(images[rows]), model.dtype)
            noise = k.from_host(draws.astype(model.dtype))
            labels = None if one_hot is None else k.from_host(one_hot[rows])
            clean = None if targets is None else Tensor(k.from_host(targets[rows]))
            loss, parts = model.losses(Tensor(x), noise, 1.0, labels, clean)
            sums[i] = count * np.array([part.item() for part in (*parts, loss)[: len(names)]])
    batches = np.arange(len(starts))
    totals = group.gather(sums)[batches % group.size, batches].cumsum(axis=0)[-1]  # one after another
    return dict(zip(names, (totals / len(images)).tolist(), strict=True))
