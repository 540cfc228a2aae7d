"""Neural-network layers. Read module.py, then layers.py."""

from .conv_chain import ConvChain, fuse
from .layers import (
    BatchNorm,
    Conv2D,
    Conv2DTranspose,
    Dense,
    Flatten,
    LeakyReLU,
    ReLU,
    Reshape,
    Sigmoid,
    Softplus,
    Tanh,
)
from .module import Module, Parameter, Sequential, training

__all__ = [
    "BatchNorm",
    "Conv2D",
    "Conv2DTranspose",
    "ConvChain",
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
    "training",
]
