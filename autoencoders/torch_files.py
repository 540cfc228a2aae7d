"""Models for PyTorch: an `nn.Module` that is equal, as a Python file, and its weights as safetensors. And back."""

from __future__ import annotations

import json
import math
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from minigrad import nn
from minigrad.backend.geometry import conv_geometry
from minigrad.interop.torch import torch_state
from minigrad.serialize import DataError, parse_json, safetensors_content

from .network import map_shapes, pair

LIKELIHOOD = "likelihood."  # the weights that other programs do not get; the configuration has the variance
MOST_LOG_VARIANCE = 700  # its exponential and that of the negative are numbers in float64
MOST_ROWS = 5  # of each table in SOURCE, so that the file has at most 80 lines
SOURCE = Template('''\
"""$title, for PyTorch.

    model = Autoencoder()
    model.load_state_dict(safetensors.torch.load_file("autoencoder.safetensors"))
    images, latents = model.eval()(images)  # (N, $C, $H, $W) in [0, 1]$labels

`autoencoders.load(path)` reads what model.save(path) writes.
"""

import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F

# For each convolution: inputs, filters, kernel, stride; zeros around the image (left, right, top, bottom).
ENCODER = [
$encoder
]
# For each transposed convolution: the same; rows and columns that no filter reaches; what is cut off.
DECODER = [
$decoder
]
HEADS, LATENT, CLASSES, ENCODED, SIZE, HIDDEN = $heads, $Z, $K, $encoded, $size, $hidden
NORM = {"eps": $epsilon, "momentum": 1 - $momentum}
CONFIG = $config


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        for i, (inputs, filters, kernel, stride, _) in enumerate(ENCODER, 1):
            self.add_module(f"encoder_conv_layer_{i}", nn.Conv2d(inputs, filters, kernel, stride))
            self.add_module(f"encoder_bn_{i}", nn.BatchNorm2d(filters, **NORM))
        if HIDDEN:
            self.encoder_hidden, self.decoder_hidden = nn.Linear(SIZE, HIDDEN), nn.Linear(LATENT + CLASSES, HIDDEN)
        for head in HEADS:
            self.add_module(head, nn.Linear((HIDDEN or SIZE) + CLASSES, LATENT))
        self.decoder_dense = nn.Linear(HIDDEN or LATENT + CLASSES, SIZE)
        for i, (inputs, filters, kernel, stride, rest, _) in enumerate(DECODER, 1):
            layer = nn.ConvTranspose2d(inputs, filters, kernel, stride, output_padding=rest)
            self.add_module(f"decoder_conv_transpose_layer_{i}", layer)
            if i < len(DECODER):
                self.add_module(f"decoder_bn_{i}", nn.BatchNorm2d(filters, **NORM))

    def encode(self, x, labels=None):
        """$latents"""
        for i, (*_, pads) in enumerate(ENCODER, 1):
            x = F.relu(getattr(self, f"encoder_conv_layer_{i}")(F.pad(x, pads)))
            x = getattr(self, f"encoder_bn_{i}")(x)
        x = x.permute(0, 2, 3, 1).flatten(1)  # rows, columns, channels: the order of the weights
        x = F.relu(self.encoder_hidden(x)) if HIDDEN else x
        x = torch.cat([x, F.one_hot(labels, CLASSES)], 1) if CLASSES else x
$heads_of_x

    def decode(self, z, labels=None):
        """Images from latents (N, LATENT)."""
        z = torch.cat([z, F.one_hot(labels, CLASSES)], 1) if CLASSES else z
        z = F.relu(self.decoder_hidden(z)) if HIDDEN else z
        x = self.decoder_dense(z).unflatten(1, ENCODED).permute(0, 3, 1, 2)
        for i, (*_, cut) in enumerate(DECODER, 1):
            x = F.pad(getattr(self, f"decoder_conv_transpose_layer_{i}")(x), cut)
            if i < len(DECODER):
                x = getattr(self, f"decoder_bn_{i}")(F.relu(x))
        return torch.sigmoid(x)

    def forward(self, images, labels=None):
        """(images after a round trip, their latents)."""
        latents = self.encode(images, labels)[0]
        return self.decode(latents, labels), latents

    def save(self, path):
        safetensors.torch.save_file(self.state_dict(), path, {"format": "pt", "config": CONFIG})
''')


def exchanged_config(model: Any) -> dict[str, Any]:
    """The configuration of a model with the present variance of the likelihood, which is no weight elsewhere.

    Raises:
        DataError: the variance is no positive, finite number in float64.
    """
    config = model.config
    if f"{LIKELIHOOD}log_variance" in model.network.state_dict():
        log_variance = float(model.pixel_log_variance.item())
        if not abs(log_variance) <= MOST_LOG_VARIANCE:
            raise DataError(
                f"export: {LIKELIHOOD}log_variance is {log_variance:g} but must be within -{MOST_LOG_VARIANCE} and "
                f"{MOST_LOG_VARIANCE}, because the file holds the variance; train the model again"
            )
        config["variance"] = math.exp(log_variance)
    return config


def exchanged_layers(network: nn.Sequential) -> nn.Sequential:
    """The layers of a model without its likelihood."""
    return nn.Sequential({name: x for name, x in network.layers.items() if not f"{name}.".startswith(LIKELIHOOD)})


def torch_contents(model: Any) -> list[bytes]:
    """The contents of autoencoder.py and autoencoder.safetensors."""
    config = json.dumps(exchanged_config(model))
    state = torch_state(exchanged_layers(model.network))
    weights = safetensors_content(state, {"format": "pt", "config": config})
    return [source_of_module(model, config).encode(), weights]


def source_of_module(model: Any, config: str) -> str:
    """The text of autoencoder.py."""
    layers = model.network.layers
    shapes = map_shapes(model.input_shape, model.conv_filters, model.conv_strides)
    encoder: list[Any] = []
    decoder: list[Any] = []
    for i, (shape, kernel, stride) in enumerate(zip(shapes, model.conv_kernels, model.conv_strides, strict=False), 1):
        geometry = conv_geometry(shape[:2], pair(kernel), pair(stride), "same")
        (top, bottom), (left, right) = geometry.pads
        sides = zip(geometry.input_size, geometry.pads, geometry.kernel_size, geometry.stride, strict=True)
        rest = tuple((size + sum(pads) - K) % S for size, pads, K, S in sides)
        C, F = layers[f"encoder_conv_layer_{i}"].weight.shape[2:]
        encoder.append((C, F, geometry.kernel_size, geometry.stride, (left, right, top, bottom)))
        back = layers[f"decoder_conv_transpose_layer_{len(shapes) - i}"].weight.shape
        cut = (-left, -right, -top, -bottom)
        decoder.insert(0, (back[3], back[2], geometry.kernel_size, geometry.stride, rest, cut))
    heads, bounds = tuple(model.heads), vars(model).get("log_variance_bounds")
    if bounds is None:
        of_x = ["return tuple(getattr(self, head)(x) for head in HEADS)"]
    else:
        of_x = [
            "mu, log_variance = self.mu(x), self.log_variance(x)",
            f"inside = log_variance.clamp({bounds[0] + 1}, {bounds[1] - 1})",
            "return mu, inside + F.softsign(log_variance - inside)  # within one unit of a bound it saturates",
        ]
    H, W, C = model.input_shape
    names = "The mean and the logarithm of the variance of q(z | x)" if len(heads) == 2 else "The latents"
    return SOURCE.substitute(
        title=model.title,
        C=C, H=H, W=W, Z=model.latent_space_dim, K=model.classes,
        labels="; labels (N,) follow them" if model.classes else "",
        encoder=_rows(encoder),
        decoder=_rows(decoder),
        heads=heads,
        encoded=shapes[-1],
        size=math.prod(shapes[-1]),
        hidden=model.hidden or 0,
        epsilon=layers["encoder_bn_1"].epsilon,
        momentum=model.momentum,
        config=repr(config),
        latents=f"{names} of images: a tuple, each (N, {model.latent_space_dim}).",
        heads_of_x="\n".join(f"        {line}" for line in of_x),
    )  # fmt: skip


def _rows(entries: list[tuple[Any, ...]]) -> str:
    """One entry a line, or several if there are many."""
    count = -(-len(entries) // MOST_ROWS)
    starts = range(0, len(entries), count)
    return "\n".join("    " + " ".join(f"{entry}," for entry in entries[start : start + count]) for start in starts)


def config_of(metadata: dict[str, str], path: Path) -> dict[str, Any]:
    """{"model": the configuration} if the file has one, as `save` of the exported module writes it.

    Raises:
        DataError: it cannot be read.
    """
    if "config" not in metadata:
        return {}
    try:
        return {"model": dict(parse_json(metadata["config"]))}
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: its config cannot be read ({error})") from error


def with_likelihood(arrays: dict[str, np.ndarray], network: nn.Sequential) -> dict[str, np.ndarray]:
    """Arrays from another program with the likelihood's own, for `network.load_state_dict`."""
    return {name: x for name, x in network.state_dict().items() if name.startswith(LIKELIHOOD)} | arrays
