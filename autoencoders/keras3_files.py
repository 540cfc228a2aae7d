"""Models in files of Keras 3: written as functional models, and read if they have the original's architecture.

What is read is compared, layer by layer, with what would be written for a model of the same sizes. So a layer that
computes anything else is found and named, and nothing is made from what a file says.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minigrad.backend.geometry import conv_geometry
from minigrad.interop.keras import Config, Functional, Place, keras_content, read_keras, read_keras_weights
from minigrad.serialize import DataError

from .network import map_shapes, pair

CONVOLUTION = {"data_format": "channels_last", "dilation_rate": [1, 1], "activation": "linear", "use_bias": True}
EPSILON = 1e-3  # of every BatchNorm of the models
WEIGHTS = {2: ("weight", "bias"), 4: ("gamma", "beta", "moving_mean", "moving_variance")}  # in Keras' order


def keras_config(model: Config) -> Config:
    """config.json of a model with this configuration: a functional model of images, and of one-hot labels for a
    conditional model, with the parts "encoder" and "decoder". Its output is the images after a round trip."""
    whole = Functional("autoencoder")
    images = whole.input("images", tuple(model["input_shape"]))
    labels = [whole.input("labels", (model["classes"],))] if model.get("classes") else []
    latents, *_ = whole.part(*_encoder(model, [images, *labels]))
    return whole.config(whole.part(*_decoder(model, [latents, *labels])))


def _steps(model: Config) -> list[tuple[Any, Any, Any, Any]]:
    """(shape before, shape after, kernel, stride) of each convolution of the encoder."""
    shapes = map_shapes(model["input_shape"], model["conv_filters"], model["conv_strides"])
    kernels, strides = map(pair, model["conv_kernels"]), map(pair, model["conv_strides"])
    return list(zip(shapes[:-1], shapes[1:], kernels, strides, strict=True))


def _with_labels(part: Functional, x: Place, model: Config) -> Place:
    if not model.get("classes"):
        return x
    labels = part.input(f"{part.name}_labels", (model["classes"],))
    shape = (x.shape[0] + model["classes"],)
    return part.add("Concatenate", f"{part.name}_with_labels", [x, labels], shape, axis=-1)


def _encoder(model: Config, sources: list[Place]) -> tuple[Functional, list[Place], list[Place]]:
    part = Functional("encoder")
    x = part.input("encoder_input", tuple(model["input_shape"]))
    for i, (_, shape, kernel, stride) in enumerate(_steps(model), 1):
        sizes = {"filters": shape[2], "kernel_size": list(kernel), "strides": list(stride), "groups": 1}
        x = part.add("Conv2D", f"encoder_conv_layer_{i}", [x], shape, padding="same", **sizes, **CONVOLUTION)
        x = _relu_and_norm(part, x, f"encoder_{{}}_{i}", model)
    x = part.add("Flatten", "encoder_flatten", [x], (math.prod(x.shape),), data_format="channels_last")
    x = _hidden(part, "encoder_hidden", x, model)
    x = _with_labels(part, x, model)
    bounds = model.get("log_variance_bounds")
    names = ("mu", "log_variance") if model["kind"] == "vae" else ("encoder_output",)
    heads: dict[str, Place] = {}
    # Keras numbers layers from the inputs to the outputs, and its weights by these numbers: the longer way comes first
    for head in sorted(names, key=lambda head: bounds is None or head != "log_variance"):
        heads[head] = _dense(part, head, x, model["latent_space_dim"])
        if head == "log_variance" and bounds is not None:
            heads[head] = _bounded(part, heads[head], *bounds)
    return part, sources, [heads[head] for head in names]


def _decoder(model: Config, sources: list[Place]) -> tuple[Functional, list[Place], list[Place]]:
    part = Functional("decoder")
    back = _steps(model)[::-1]
    encoded = back[0][1]
    x = _with_labels(part, part.input("decoder_input", (model["latent_space_dim"],)), model)
    x = _hidden(part, "decoder_hidden", x, model)
    x = _dense(part, "decoder_dense", x, math.prod(encoded))
    x = part.add("Reshape", "decoder_reshape", [x], encoded, target_shape=list(encoded))
    for i, ((H, W, C), (*_, filters), kernel, stride) in enumerate(back, 1):
        shape = (H, W, filters if i < len(back) else C)
        x = _transposed(part, f"decoder_conv_transpose_layer_{i}", x, shape, kernel, stride)
        if i < len(back):
            x = _relu_and_norm(part, x, f"decoder_{{}}_{i}", model)
    return part, sources, [part.add("Activation", "sigmoid_layer", [x], x.shape, activation="sigmoid")]


def _transposed(part: Functional, name: str, x: Place, shape: Any, kernel: Any, stride: Any) -> Place:
    """With "same" Keras gives sides of input * stride. For other sides: all that the filters reach, cut."""
    sizes = {"filters": shape[2], "kernel_size": list(kernel), "strides": list(stride), "output_padding": None}
    if (x.shape[0] * stride[0], x.shape[1] * stride[1]) == shape[:2]:
        return part.add("Conv2DTranspose", name, [x], shape, padding="same", **sizes, **CONVOLUTION)
    full = tuple(size * S + max(K - S, 0) for size, S, K in zip(x.shape, stride, kernel, strict=False))
    pads = conv_geometry(shape[:2], kernel, stride, "same").pads
    cut = [[p, all_ - p - size] for (p, _), all_, size in zip(pads, full, shape[:2], strict=True)]
    x = part.add("Conv2DTranspose", name, [x], (*full, shape[2]), padding="valid", **sizes, **CONVOLUTION)
    name = name.replace("conv_transpose_layer", "crop")
    return part.add("Cropping2D", name, [x], shape, cropping=cut, data_format="channels_last")


def _hidden(part: Functional, name: str, x: Place, model: Config) -> Place:
    return _relu(part, f"{name}_relu", _dense(part, name, x, model["hidden"])) if model.get("hidden") else x


def _relu(part: Functional, name: str, x: Place) -> Place:
    return part.add("ReLU", name, [x], x.shape, max_value=None, negative_slope=0.0, threshold=0.0)


def _relu_and_norm(part: Functional, x: Place, name: str, model: Config) -> Place:
    x = _relu(part, name.format("relu"), x)
    options = {"axis": -1, "momentum": model["momentum"], "epsilon": EPSILON, "center": True, "scale": True}
    return part.add("BatchNormalization", name.format("bn"), [x], x.shape, **options)


def _dense(part: Functional, name: str, x: Place, units: int) -> Place:
    return part.add("Dense", name, [x], (units,), units=units, activation="linear", use_bias=True)


def _bounded(part: Functional, x: Place, low: float, high: float) -> Place:
    """`layers.SoftBound` in layers of Keras: what is inside the bounds, and softsign(x) = x / (1 + |x|) of the rest."""
    low, high = low + 1, high - 1
    inside = part.add("Rescaling", "log_variance_from_low", [x], x.shape, scale=1.0, offset=-low)
    limits = {"max_value": high - low, "negative_slope": 0.0, "threshold": 0.0}
    inside = part.add("ReLU", "log_variance_between", [inside], x.shape, **limits)
    inside = part.add("Rescaling", "log_variance_inside", [inside], x.shape, scale=1.0, offset=low)
    rest = part.add("Subtract", "log_variance_outside", [x, inside], x.shape)
    rest = part.add("Activation", "log_variance_softsign", [rest], x.shape, activation="softsign")
    return part.add("Add", "log_variance_bounded", [inside, rest], x.shape)


def keras3_content(model: Any) -> bytes:
    """The model as the content of a .keras file, with weights in float32.

    Raises:
        ImportError: h5py is not installed.
    """
    state, weights = model.network.state_dict(), {}
    for name in model.network.layers:
        if names := next((n for n in WEIGHTS.values() if f"{name}.{n[0]}" in state), ()):
            weights[name] = [state[f"{name}.{what}"].astype(np.float32) for what in names]
    return keras_content(keras_config(model.config), weights)


# ---- reading ----

# the options of a layer that change what it computes
OPTIONS = {
    "InputLayer": (),
    "Functional": (),
    "Conv2D": ("filters", "kernel_size", "strides", "padding", "groups", *CONVOLUTION),
    "Conv2DTranspose": ("filters", "kernel_size", "strides", "padding", "output_padding", *CONVOLUTION),
    "ReLU": ("max_value", "negative_slope", "threshold"),
    "BatchNormalization": ("axis", "momentum", "epsilon", "center", "scale"),
    "Flatten": ("data_format",),
    "Reshape": ("target_shape",),
    "Dense": ("units", "activation", "use_bias"),
    "Activation": ("activation",),
    "Cropping2D": ("cropping", "data_format"),
    "Concatenate": ("axis",),
    "Rescaling": ("scale", "offset"),
    "Subtract": (),
    "Add": (),
}
NAMELESS = ("Flatten", "Reshape", "Activation")  # layers of the original that have no names of their own
OWN_NAMES = ("log_variance_softsign",)


def arrays_of(weights: dict[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
    """The weights by our names.

    Raises:
        ValueError: a layer has another number of weights.
    """
    found: dict[str, np.ndarray] = {}
    for layer, arrays in weights.items():
        if len(arrays) not in WEIGHTS:
            raise ValueError(f"{layer} has {len(arrays)} weights, but a layer of the original has 2 or 4")
        found |= {f"{layer}.{what}": x for what, x in zip(WEIGHTS[len(arrays)], arrays, strict=True)}
    return found


def read_keras3_weights(path: Path) -> dict[str, np.ndarray]:
    """The weights by our names of a .weights.h5 file.

    Raises:
        DataError: the file is missing or damaged, or has other layers. ImportError: h5py is not installed.
    """
    try:
        return arrays_of(read_keras_weights(path))
    except ValueError as error:
        raise error if isinstance(error, DataError) else DataError(f"{path}: {error}") from error


class Layer(NamedTuple):
    """A layer as the file describes it, or as it must be. sources: the layers that it is applied to, and the shapes of
    the model's inputs."""

    kind: str
    options: Config
    sources: list[Any]


def read_keras3(path: Path) -> tuple[dict[str, np.ndarray], Config]:
    """(weights by our names, the model's configuration) of a .keras file.

    Raises:
        DataError: the file is missing or damaged, or the model has another architecture than the original.
    """
    config, weights = read_keras(path)
    try:
        layers = _layers(config)
        model = _configuration(layers)
        _compare(layers, _layers(keras_config(model)))
        return arrays_of({name: arrays for name, arrays in weights.items() if name in layers}), model
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        text = error if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise DataError(f"{path}: not the original's architecture: {text}") from error


def _layers(config: Config) -> dict[str, Layer]:
    """All layers that compute something by their names, and the model's output; those with names of no importance by
    their kind. Functional models inside are followed from their inputs to their outputs."""
    found: dict[str, Layer] = {}

    def walk(model: Config, given: list[Any] | None) -> list[Any]:
        """Note the layers of a model that is applied to the given tensors; returns what its outputs are called."""
        if model["class_name"] != "Functional":
            raise ValueError(f"it is a {model['class_name']!s:.99} and not a functional model")
        inputs, outputs = (_ends(model["config"][key]) for key in ("input_layers", "output_layers"))
        tensors: dict[Any, Any] = {}  # what the output number i of a layer is called: (name, i)
        for layer in model["config"]["layers"]:
            kind, options, calls = layer["class_name"], layer["config"], layer["inbound_nodes"]
            name = options["name"]
            if kind not in OPTIONS:
                why = ", and its code is never run" if kind == "Lambda" else ""
                raise ValueError(f"{name!s:.99} is a {kind!s:.99} layer, which the original does not have{why}")
            if kind == "InputLayer":
                shape = tuple(options["batch_shape"][1:])
                tensors[name, 0] = shape if given is None else given[inputs.index((name, 0))]
                continue
            known = kind if kind in NAMELESS and name not in OWN_NAMES else name
            if known in found or len(calls) != 1:
                raise ValueError(f"{known!s:.99} is there or applied more than once")
            sources = [tensors.get(source) for source in _sources(calls)]
            if None in sources:
                raise ValueError(f"{known!s:.99} is applied to a layer that is not before it")
            if kind == "Functional":
                tensors |= {(name, i): tensor for i, tensor in enumerate(walk(layer, sources))}
                continue
            found[known] = Layer(kind, {key: options.get(key) for key in OPTIONS[kind]}, sources)
            tensors[name, 0] = known
        return [tensors[end] for end in outputs]

    found["the output"] = Layer("output", {}, walk(config, None)[:1])
    return found


def _ends(keys: list[Any]) -> list[tuple[str, int]]:
    """(layer, number of its output) of each of a model's inputs or outputs: one is written without a list around it."""
    return [(key[0], key[2]) for key in ([keys] if isinstance(keys[0], str) else keys)]


def _sources(call: Any) -> list[tuple[str, int]]:
    """(layer, number of its output) of each tensor in the arguments of a call."""
    if isinstance(call, list):
        return [source for part in call for source in _sources(part)]
    if not isinstance(call, dict):
        return []
    if call.get("class_name") == "__keras_tensor__":
        return _ends(call["config"]["keras_history"])
    return _sources(list(call.values()))


def _configuration(layers: dict[str, Layer]) -> Config:
    """The configuration of the model that has these layers."""
    kind = "vae" if "mu" in layers else "ae"
    head = "mu" if kind == "vae" else "encoder_output"
    for name in ("encoder_conv_layer_1", "encoder_bn_1", head, "decoder_dense"):
        if name not in layers:
            raise ValueError(f"it has no layer {name}; has it other names?")
    count = next(i for i in range(1, len(layers) + 1) if f"encoder_conv_layer_{i + 1}" not in layers)
    convolutions = [layers[f"encoder_conv_layer_{i}"].options for i in range(1, count + 1)]
    model = {
        "kind": kind,
        "input_shape": layers["encoder_conv_layer_1"].sources[0],
        "conv_filters": tuple(options["filters"] for options in convolutions),
        "conv_kernels": tuple(tuple(options["kernel_size"]) for options in convolutions),
        "conv_strides": tuple(tuple(options["strides"]) for options in convolutions),
        "latent_space_dim": layers[head].options["units"],
        "momentum": layers["encoder_bn_1"].options["momentum"],
    }
    if "encoder_hidden" in layers:
        model["hidden"] = layers["encoder_hidden"].options["units"]
    if kind == "vae":
        joined = layers.get("decoder_with_labels")
        model["classes"] = joined.sources[1][0] if joined else 0
        model["log_variance_bounds"] = None
        if "log_variance_from_low" in layers:
            low = -layers["log_variance_from_low"].options["offset"]
            high = low + layers["log_variance_between"].options["max_value"]
            model["log_variance_bounds"] = (low - 1, high + 1)
    return model


def _compare(found: dict[str, Layer], wanted: dict[str, Layer]) -> None:
    """Raise ValueError unless the layers compute the same."""
    for name in [*wanted, *found]:
        if name not in found or name not in wanted:
            raise ValueError(f"it {'has no' if name in wanted else 'also has a'} layer {name!s:.99}")
        ours, theirs = wanted[name], found[name]
        pairs: dict[str, tuple[Any, Any]] = {"kind": (theirs.kind, ours.kind), "source": (theirs.sources, ours.sources)}
        pairs |= {key: (theirs.options.get(key), value) for key, value in ours.options.items()}
        for key, (has, needs) in pairs.items():
            if _plain(has) != _plain(needs):
                raise ValueError(f"{name}: {key} is {has!s:.99} but must be {needs!s:.99}")


def _plain(value: Any) -> Any:
    return list(map(_plain, value)) if isinstance(value, tuple | list) else value
