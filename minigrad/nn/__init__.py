"""Neural-network layers. Read module.py, then layers.py."""

from .catalogue import AvgPool2D, MaxPool2D, Resize, UpSample2D
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
    "AvgPool2D",
    "BatchNorm",
    "Conv2D",
    "Conv2DTranspose",
    "ConvChain",
    "Dense",
    "Flatten",
    "LeakyReLU",
    "MaxPool2D",
    "Module",
    "Parameter",
    "ReLU",
    "Reshape",
    "Resize",
    "Sequential",
    "Sigmoid",
    "Softplus",
    "Tanh",
    "UpSample2D",
    "fuse",
    "training",
]
