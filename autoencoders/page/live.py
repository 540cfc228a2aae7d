"""What the page needs to run the decoder by itself: its weights, the latents of test images, and the images."""

from __future__ import annotations

import base64
from typing import Any, NamedTuple

import numpy as np

from minigrad import nn
from minigrad.backend.geometry import transposed_geometry

from ..conv_autoencoder import Autoencoder, from_config
from ..data import Dataset
from ..data.dataset import pick_images
from ..evaluation.bounds import latents_of, to_unit_range
from ..pictures.canvas import shown_images
from ..pictures.charts import plane_of
from ..pictures.film import plane_of_film
from ..pictures.images import errors_of, labels_of, names_of
from .markup import sheet

MOST_WEIGHTS = 2 << 20  # bytes of a decoder that runs in a page
MOST_IMAGES, IMAGE_BYTES = 2000, 2 << 20  # test images in a page, and what they and their latents take at most
CLOSE = 5e-4  # largest difference that rounding the weights may make in an image
LARGEST = 64  # pixels of the longer side of a picture; larger ones are reduced by a whole factor
COLUMNS = 40  # of the sheet that holds the images


class Shown(NamedTuple):
    """The test images of a page: the images, their labels if there are any, latents, reconstructions and errors.

    Shapes: images, reconstructed (N, H, W, C) in [0, 1]; labels (N,); latents (N, Z); errors (N,) per pixel
    """

    images: np.ndarray
    labels: np.ndarray | None
    latents: np.ndarray
    reconstructed: np.ndarray
    errors: np.ndarray


def shown_of(model: Autoencoder, dataset: Dataset, seed: int = 0) -> Shown:
    """At most MOST_IMAGES test images, fewer if they are large, as many of each class as possible."""
    pixels = as_bytes(dataset.test_images[:1])
    each = pixels.size // (4 if pixels.shape[3] == 3 else 1) + 4 * model.latent_space_dim  # colour as a JPEG
    count = max(20, min(MOST_IMAGES, IMAGE_BYTES // each))
    rows = pick_images(dataset.test_labels, count, len(dataset.test_images), seed)
    images, labels = dataset.test_images[rows], labels_of(dataset.test_labels, rows)
    latents = latents_of(model, images, labels)
    reconstructed = model.decode(latents, labels=labels)
    errors = errors_of(reconstructed, images)
    return Shown(to_unit_range(images).astype(model.dtype), labels, latents, reconstructed, errors)


def as_bytes(images: np.ndarray) -> np.ndarray:
    """Images (..., H, W, C) as they are shown: uint8 with one or three channels, reduced if they are large.

    Blocks of k x k pixels are averaged, with the smallest k that gives at most LARGEST pixels; what is left over at the
    edges is cut off.
    """
    x = shown_images(images)
    *N, H, W, C = x.shape
    k = reduction(x.shape)
    KH, KW = min(k, H), min(k, W)
    blocks = x[..., : H // KH * KH, : W // KW * KW, :].reshape(*N, H // KH, KH, W // KW, KW, C)
    return np.round(255 * blocks.mean(axis=(-4, -2))).astype(np.uint8)


def reduction(shape: tuple[int, ...]) -> int:
    """The factor by which images (..., H, W, C) are reduced."""
    return -(-max(shape[-3:-1]) // LARGEST)


class Plane(NamedTuple):
    """The plane on which latents are drawn: z of a place (u, v) is centre + (u, v) @ axes.T.

    Shapes: axes (Z, 2), orthonormal; centre (Z,); points (N, 2) of the latents; middle (2,) and half, of the square
    that is drawn
    """

    axes: np.ndarray
    centre: np.ndarray
    points: np.ndarray
    middle: np.ndarray
    half: float


def plane_for(latents: np.ndarray) -> Plane:
    """The plane of `charts.plane_of`. A single dimension gets a height that only spreads the points."""
    N, Z = latents.shape
    z = latents.astype(np.float64)
    axes, _ = plane_of(z)
    centre = z.mean(axis=0) if Z > 2 else np.zeros(Z)
    points = (z - centre) @ axes
    low, high = np.quantile(points, 0.004, axis=0), np.quantile(points, 0.996, axis=0)
    half = max(0.54 * float((high - low).max()), 1e-3)
    if Z == 1:
        spread = np.arange(N) * 0.618034 % 1  # evenly, whatever the order of the images
        points[:, 1] = (2 * spread - 1) * 0.9 * half
    return Plane(axes, centre, points, np.append((low + high)[: min(Z, 2)] / 2, np.zeros(2 - min(Z, 2))), half)


def live_data(model: Autoencoder, shown: Shown, plane: Plane, kl: np.ndarray | None) -> dict[str, Any]:
    """All that the page's script uses, as JSON. `layers` is missing where the decoder is too large for a page.

    kl: the KL divergence of each dimension, which sorts the sliders; None: the variance of the latents does.
    """
    order = np.argsort(-(shown.latents.var(axis=0) if kl is None else kl), kind="stable")
    far = np.quantile(np.abs(shown.latents - plane.centre), 0.999, axis=0)
    images = as_bytes(shown.images)
    data = {
        "shape": model.input_shape,
        "tile": images.shape[1:3],
        "order": order.tolist(),
        "kl": None if kl is None else kl.tolist(),
        "centre": plane.centre.tolist(),
        "reach": np.maximum(far, 1e-3 if kl is None else 3.0).tolist(),
        "axes": plane.axes.tolist(),
        "points": np.round(plane.points, 4).tolist(),
        "middle": plane.middle.tolist(),
        "half": plane.half,
        "labels": shown.labels.tolist() if model.classes and shown.labels is not None else None,
        "latents": _text(shown.latents.astype("<f4").tobytes()),
        "sheet": sheet(images, COLUMNS),
        "columns": COLUMNS,
        "classes": names_of(model),
    }
    if (packed := pack_decoder(model, shown)) is not None:
        data |= packed
    return data


def pack_decoder(model: Autoencoder, shown: Shown) -> dict[str, Any] | None:
    """The layers of the decoder and their weights: in half precision, or in single precision if rounding would show.
    BatchNorm becomes a scale and a shift. None if they take more than MOST_WEIGHTS."""
    size = sum(x.size for name, x in model.network.named_tensors() if name.startswith("decoder_"))
    if 2 * size > MOST_WEIGHTS:
        return None
    half = _rounding(model, shown) <= CLOSE
    if 4 * size > MOST_WEIGHTS and not half:
        return None
    blob, layers = bytearray(), []

    def keep(x: np.ndarray, kind: str = "<f4") -> list[Any]:
        blob.extend(b"\0" * (-len(blob) % 4))
        where = [len(blob), int(x.size), kind[1:]]
        blob.extend(np.ascontiguousarray(x, kind).tobytes())
        return where

    shape: tuple[int, ...] = ()
    for name, layer in model.network.layers.items():
        if not name.startswith("decoder_"):
            continue
        state = {key: x.numpy() for key, x in layer.named_tensors()}
        packed: dict[str, Any] | None = None
        if isinstance(layer, nn.Reshape):
            shape = layer.shape
        elif isinstance(layer, nn.BatchNorm):
            scale = state["gamma"] / np.sqrt(state["moving_variance"] + layer.epsilon)
            shift = state["beta"] - state["moving_mean"] * scale
            packed = {"kind": "scale", "scale": keep(scale), "shift": keep(shift)}
        elif isinstance(layer, nn.ReLU):
            packed = {"kind": "relu"}
        elif "weight" in state:
            weight = keep(state["weight"], "<f2" if half else "<f4")
            packed = {"kind": "dense", "weight": weight, "bias": keep(state["bias"])}
        if packed and isinstance(layer, nn.Conv2DTranspose):
            H, W = layer.output_size or (0, 0)
            KH, KW, F, _ = state["weight"].shape
            geometry = transposed_geometry(shape[:2], (KH, KW), layer.stride, layer.padding, (H, W))
            (top, _), (left, _) = geometry.pads
            new = (H, W, F)
            packed |= {"kind": "conv", "from": shape, "to": new, "kernel": (KH, KW), "stride": geometry.stride}
            packed["pads"], shape = (top, left), new
        if packed:
            layers.append(packed)
    return {"layers": layers, "weights": _text(bytes(blob))}


def _rounding(model: Autoencoder, shown: Shown) -> float:
    """The largest change of some reconstructions if the decoder's large arrays have half precision."""
    state = model.network.state_dict()
    for name, x in state.items():
        if name.startswith("decoder_") and name.endswith("weight"):
            with np.errstate(over="ignore"):  # infinite, so that single precision is used
                state[name] = x.astype(np.float16).astype(x.dtype)
    if not all(np.isfinite(x).all() for x in state.values()):
        return float("inf")
    other = from_config(model.config)
    other.to(dtype=str(model.dtype))
    other.network.load_state_dict(state)
    rows = slice(None, None, -(-len(shown.latents) // 64))
    labels = labels_of(shown.labels, rows)
    return float(np.abs(other.decode(shown.latents[rows], labels=labels) - shown.reconstructed[rows]).max())


class Film(NamedTuple):
    """The frames of a training for the page.

    data: what the script needs, as JSON: the places of the encoded images on one plane are 16-bit numbers, 1000 at its
    edge. sheet: the address of a picture, the images in the first row and their reconstructions of each epoch below.
    places: (M, 2), where the images are in the end, 1 at the edge.
    """

    data: dict[str, Any]
    sheet: str
    places: np.ndarray


def film_of(
    originals: np.ndarray, frames: list[tuple[dict[str, np.ndarray], dict[str, Any]]], index: np.ndarray | None
) -> Film:
    """The film of these frames.

    Shapes: originals (N, H, W, C), uint8 or in [0, 1]; index (M,), the class of each encoded image.
    """
    axes, limits = plane_of_film([arrays["latents"] for arrays, _ in frames])
    middle, half = np.mean(limits, axis=1), np.ptp(limits, axis=1).max() / 2
    places = np.stack([(arrays["latents"] @ axes - middle) / half for arrays, _ in frames])
    rows = [as_bytes(originals), *(as_bytes(arrays["reconstructed"]) for arrays, _ in frames)]
    data = {
        "shape": rows[0].shape[1:3],
        "count": len(originals),
        "epochs": [record["epoch"] for _, record in frames],
        "points": _text((1000 * places.clip(-30, 30)).astype("<i2").tobytes()),
        "index": [0] * places.shape[1] if index is None else index.tolist(),
    }
    return Film(data, sheet(np.concatenate(rows), len(originals)), places[-1])


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()
