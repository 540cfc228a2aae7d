"""What a Trainer needs of a model."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from minigrad import Backend, Tensor, nn, optim
from minigrad.backend import Array


class Trainable(Protocol):
    """A model that a Trainer can train. The models of conv_autoencoder.py are the only ones here.

    Attributes:
        network: all layers by name.
        loss_names: names of the parts of the loss. unit: of the losses.
        beta: weight of the KL term. noise_dim: size of the latent noise, 0 if there is none.
        optimizer, learning_rate: set by `compile`. trained_steps: steps of all its optimisers.
        config: the arguments that make the model again.
    """

    network: nn.Sequential
    loss_names: tuple[str, ...]
    unit: str
    input_shape: Any
    beta: float
    learning_rate: float
    trained_steps: int
    optimizer: optim.Adam | None

    @property
    def dtype(self) -> Any:
        """That of the parameters."""

    @property
    def backend(self) -> Backend:
        """That of the parameters."""

    def evaluating(self) -> AbstractContextManager[None]:
        """A context in which it evaluates with the kernels of its device."""

    @property
    def noise_dim(self) -> int: ...

    @property
    def config(self) -> dict[str, Any]: ...

    def losses(
        self,
        images: Tensor,
        noise: Array | None,
        beta: Array,
        labels: Array | None = None,
        targets: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """(what is minimised, its parts in the order of loss_names) for a batch of images in [0, 1]."""

    def implausible(self, losses: dict[str, float]) -> str | None:
        """What is wrong with finite mean losses that are far too large; None if nothing is."""

    def check_images(self, images: Any) -> np.ndarray:
        """The images as uint8, or as floats in [0, 1]."""

    def one_hot(self, labels: Any, count: int) -> np.ndarray | None:
        """Labels as rows of 0 and 1; None if the model needs none."""
