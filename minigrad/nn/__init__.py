"""Neural-network layers. Read module.py, then layers.py."""

from .layers import (
    BatchNorm,
    Conv2D,
    Conv2DTranspose,
    ConvBlock,
    Dense,
    Flatten,
    LeakyReLU,
    ReLU,
    Reshape,
    Sigmoid,
    Softplus,
    Tanh,
    fuse,
)
from .module import Module, Parameter, Sequential

__all__ = [
    "BatchNorm",
    "Conv2D",
    "Conv2DTranspose",
    "ConvBlock",
    "Dense",
    "Flatten",
    "LeakyReLU",
    "Module",
    "Parameter",
    "ReLU",
    "Reshape",
    "Sequential",
    "Sigmoid",
    "Softplus",
    "Tanh",
    "fuse",
]
