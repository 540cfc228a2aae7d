"""The weights with the best validation loss, which early stopping restores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from minigrad.serialize import DataError, load_state, save_state

from .trainable import Trainable

BEST = "checkpoints/best.safetensors"


class BestWeights:
    """The best weights so far: `state`, and a copy in the run's folder, if there is one, for a resumed run."""

    def __init__(self, model: Trainable, folder: Path | None) -> None:
        self.model, self.config, self.folder = model, model.config, folder
        self.state: dict[str, np.ndarray] | None = None

    def keep(self, best: dict[str, Any]) -> dict[str, Any]:
        """Keep the model's weights; returns `best` (epoch and loss), with the file's SHA-256 if there is one."""
        self.state = self.model.network.state_dict()
        if self.folder is None:
            return best
        return {**best, "sha256": save_state(self.folder / BEST, self.state, {"model": self.config, "best": best})}

    def load(self, best: dict[str, Any] | None) -> dict[str, np.ndarray] | None:
        """The weights for which `keep` returned `best`; None if there are none, or their file is lost or damaged."""
        if self.folder is None or best is None:
            return None
        try:
            state, _, digest = load_state(self.folder / BEST, self.folder)
        except DataError:
            return None
        return state if digest == best["sha256"] else None
