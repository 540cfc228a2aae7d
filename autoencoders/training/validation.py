"""The losses of a model on images that it is not trained on."""

from __future__ import annotations

import numpy as np

from minigrad import Tensor, backend_of

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
) -> dict[str, float]:
    """The model's losses in evaluation mode, averaged over images, with iw_samples draws of noise per image. With 2 or
    more draws, the importance-weighted "bound" with beta 1 comes last.

    one_hot: the labels as rows of `one_hot`, for a conditional model. targets: as for `losses`.
    """
    k = backend_of(model.network.parameters()[0].data)
    names = model.loss_names if iw_samples == 1 else (*model.loss_names, "bound")
    totals = np.zeros(len(names))
    with model.evaluating():
        for start in range(0, len(images), batch):
            rows = slice(start, start + batch)
            x = k.unit_range(k.from_host(images[rows]), model.dtype)
            shape = (len(x), model.noise_dim) if iw_samples == 1 else (len(x), iw_samples, model.noise_dim)
            noise = k.from_host(rng.standard_normal(shape).astype(model.dtype))
            labels = None if one_hot is None else k.from_host(one_hot[rows])
            clean = None if targets is None else Tensor(k.from_host(targets[rows]))
            loss, parts = model.losses(Tensor(x), noise, 1.0, labels, clean)
            totals += len(x) * np.array([part.item() for part in (*parts, loss)[: len(names)]])
    return dict(zip(names, (totals / len(images)).tolist(), strict=True))
