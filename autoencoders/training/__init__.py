"""The training loop of both models: options, history, checkpoints, exact resume, early stopping, callbacks."""

from .checkpoints import latest_checkpoint, load_checkpoint
from .divergence import DivergedError
from .history import History
from .options import TrainingOptions
from .progress import Progress
from .trainer import Callback, Trainer

__all__ = [
    "Callback",
    "DivergedError",
    "History",
    "Progress",
    "Trainer",
    "TrainingOptions",
    "latest_checkpoint",
    "load_checkpoint",
]
