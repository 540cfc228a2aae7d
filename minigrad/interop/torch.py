"""State dicts of PyTorch: the weights of a Module as the equal `torch.nn.Module` names and orders them, and back.

Only axes are moved, so no bit of a weight changes. PyTorch itself is not needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..nn import BatchNorm, Conv2D, Conv2DTranspose, Dense, GroupNorm, LayerNorm, Module
from ..serialize import DataError

Axes = tuple[int, ...]
WEIGHTS: dict[type[Module], Axes] = {  # the axes of our weight in PyTorch's order
    Conv2D: (3, 2, 0, 1),  # (KH, KW, C, F) -> (F, C, KH, KW)
    Conv2DTranspose: (3, 2, 0, 1),  # (KH, KW, out, in) -> (in, out, KH, KW)
    Dense: (1, 0),  # (in, out) -> (out, in)
}
NAMES = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
COUNT = "num_batches_tracked"  # of PyTorch's BatchNorm: used only where its momentum is None


def torch_state(module: Module) -> dict[str, np.ndarray]:
    """The weights of a module under PyTorch's names and in its order of axes, as for `load_state_dict(strict=True)`.

    >>> sorted(torch_state(nn.Dense(3, 2)))
    ['bias', 'weight']

    Images are (N, C, H, W) there. The rows of a dense layer after a Flatten stay in our order (H, W, C), so the other
    program flattens `x.permute(0, 2, 3, 1)`.
    """
    state = module.state_dict()
    found = {theirs: np.ascontiguousarray(_moved(state[ours], axes)) for ours, theirs, axes in _names(module)}
    for name in [name for name in found if name.endswith("running_var")]:
        found[name.replace("running_var", COUNT)] = np.array(0, np.int64)
    return found


def from_torch_state(state: dict[str, np.ndarray], module: Module) -> dict[str, np.ndarray]:
    """The way back: what `module.load_state_dict` takes, from a state dict of the equal PyTorch module.

    Raises:
        DataError: names are missing or unexpected, or an array has another shape or dtype; the first few are named.
    """
    own, found = module.state_dict(), {}
    faults = [f"unexpected {name}" for name in state.keys() - torch_state(module).keys()]
    for ours, theirs, axes in _names(module):
        x, shape = state.get(theirs), tuple(np.array(own[ours].shape)[list(axes)]) if axes else own[ours].shape
        if x is None:
            faults.append(f"missing {theirs}")
        elif x.shape != shape or x.dtype not in ("float32", "float64"):
            faults.append(f"{theirs} is {x.dtype} {x.shape} but must be float32 {tuple(map(int, shape))}")
        else:
            found[ours] = np.ascontiguousarray(_moved(x, tuple(np.argsort(axes))))
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise DataError(f"not the state of this module: {'; '.join(sorted(faults)[:5])}{more}")
    return found


def _moved(x: np.ndarray, axes: Axes) -> np.ndarray:
    return x.transpose(axes) if axes else x


def _names(module: Module) -> Iterator[tuple[str, str, Axes]]:
    """(our name, PyTorch's name, the axes of ours in PyTorch's order or none) of each tensor."""
    layers = dict(module.modules())
    for name, _ in module.named_tensors():
        place, _, what = name.rpartition(".")
        layer = layers[place]
        axes: Any = next((axes for kind, axes in WEIGHTS.items() if isinstance(layer, kind) and what == "weight"), ())
        if isinstance(layer, BatchNorm | LayerNorm | GroupNorm):
            what = NAMES[what]
        yield name, f"{place}.{what}" if place else what, axes
