"""Events for TensorBoard: `tensorboard --logdir runs` shows them while the training runs."""

from __future__ import annotations

from pathlib import Path

from .trainer import Callback, Trainer

SHOWN = 8  # images whose reconstructions are shown


class TensorBoard(Callback):
    """Writes every number of the history and some reconstructions after each epoch.

    folder: where the events go.

    Raises:
        ImportError: tensorboardX is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            hint = 'the extra tensorboard: pip install ".[tensorboard]"'
            raise ImportError(f"events for TensorBoard need {hint}") from error
        self.folder, self.open = str(folder), SummaryWriter

    def on_fit_begin(self, trainer: Trainer) -> None:
        at = trainer.progress
        # what an interrupted run wrote beyond this epoch is not shown any more; the suffix keeps names apart
        self.writer = self.open(self.folder, purge_step=at.epoch + 1, filename_suffix=f".{at.step}")

    def on_epoch_end(self, trainer: Trainer) -> None:
        row = trainer.progress.rows[-1]
        for name in set(row) - {"epoch"}:
            self.writer.add_scalar(name, row[name], row["epoch"])
        images, one_hot = trainer.k.to_host(trainer.feed.images[:SHOWN]), trainer.feed.labels
        labels = None if one_hot is None else trainer.k.to_host(one_hot[:SHOWN]).argmax(axis=1)
        shown, _ = trainer.model.reconstruct(images, labels=labels)
        self.writer.add_images("reconstructions", shown, row["epoch"], dataformats="NHWC")
        self.writer.flush()

    def on_fit_end(self, trainer: Trainer) -> None:
        self.writer.close()
