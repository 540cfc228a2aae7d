"""Neural-network layers. Read module.py, then layers.py."""

from .catalogue import (
    GELU,
    AvgPool2D,
    Dropout,
    Embedding,
    GroupNorm,
    LayerNorm,
    LeakyReLU,
    MaxPool2D,
    Resize,
    Sigmoid,
    SiLU,
    Softplus,
    Tanh,
    UpSample2D,
)
from .conv_chain import ConvChain, fuse
from .layers import (
    BatchNorm,
    Conv2D,
    Conv2DTranspose,
    Dense,
    Flatten,
    ReLU,
    Reshape,
)
from .module import Module, Parameter, Sequential, training

__all__ = [
    "GELU",
    "AvgPool2D",
    "BatchNorm",
    "Conv2D",
    "Conv2DTranspose",
    "ConvChain",
    "Dense",
    "Dropout",
    "Embedding",
    "Flatten",
    "GroupNorm",
    "LayerNorm",
    "LeakyReLU",
    "MaxPool2D",
    "Module",
    "Parameter",
    "ReLU",
    "Reshape",
    "Resize",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softplus",
    "Tanh",
    "UpSample2D",
    "fuse",
    "training",
]
