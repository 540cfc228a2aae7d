"""What is seen of a running training: a bar on a terminal or in a notebook, and lines about epochs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .history import epoch_line
from .options import TrainingOptions
from .progress import Progress

LINES = 50  # a long training prints a line for about this many epochs


class Display:
    """The bar of a training and its lines.

    Args:
        show: whether to show them. images: how many are trained on in an epoch.
    """

    def __init__(self, show: bool, options: TrainingOptions, images: int) -> None:
        self.show, self.options, self.images = show, options, images
        self.bar: Any = None

    @contextmanager
    def shown(self, at: Progress) -> Iterator[None]:
        """Show the bar from where a run begins or goes on.

        It is removed while signals are still collected: an exception that a signal raises in its __del__ would be lost.
        """
        done = at.epoch * self.images + min(at.batch * self.options.batch_size, self.images)
        self.bar = progress_bar(self.options.epochs * self.images, " images", self.show, done, self._title(at, ""))
        try:
            yield
        finally:
            self.bar.close()
            self.bar = None

    def loss(self, at: Progress, loss: str) -> None:
        """Show the mean loss of the epoch so far."""
        self.bar.set_description_str(self._title(at, loss), refresh=False)

    def epoch(self, row: dict[str, Any]) -> None:
        """Print the line of an epoch; of a long training only some epochs get one."""
        epochs, epoch = self.options.epochs, row["epoch"]
        if epoch == epochs or not epoch % max(1, epochs // LINES):
            self.line(epoch_line(row, epochs))

    def line(self, text: str) -> None:
        """Print a line above the bar.

        Raises:
            OSError: nobody can read it, because the terminal is closed for example.
        """
        if self.show:
            self.bar.clear()
            print(text, flush=True)

    def _title(self, at: Progress, loss: str) -> str:
        """Epoch and loss, as text of constant width."""
        last = str(self.options.epochs)
        epoch = min(at.epoch + 1, self.options.epochs)
        return f"epoch {epoch:{len(last)}}/{last}  loss {loss:>7}"


def progress_bar(total: int, unit: str, show: bool, done: int = 0, before: str = "") -> Any:
    """A bar with fields of fixed width: a notebook's in a notebook, otherwise only on a terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a notebook without ipywidgets gets no bar
        from tqdm.autonotebook import tqdm
    in_notebook = tqdm.__module__ == "tqdm.notebook"
    return tqdm(
        desc=before,
        total=total,
        initial=done,
        unit=unit,
        unit_scale=True,
        disable=(False if in_notebook else None) if show else True,  # None: only on a terminal
        leave=False,
        dynamic_ncols=True,
        smoothing=0.05,
        bar_format="{desc} {bar} {percentage:3.0f}% {remaining:>8} left {rate_noinv_fmt:>15}",
    )
