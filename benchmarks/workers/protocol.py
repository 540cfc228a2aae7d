"""What all workers share: one JSON request a line on stdin, one JSON reply a line on stdout.

A worker measures one program, which it builds from the arrays and the description that the driver (driver.py) sends.
Workers run under the interpreter of the library that they measure, so they import nothing of the driver's.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

Spec = dict[str, Any]  # of a model: the arguments of minigrad's classes, and kind, learning_rate, momentum, epsilon
Arrays = dict[str, np.ndarray]  # weights and moving statistics by minigrad's names
RECONSTRUCT_BATCH = 256


class Program:
    """A model in training on one batch: `Program(spec, weights, images (N, H, W, C), noise (N, Z), options)`."""

    threads: int | None = None  # that the library says it uses; None: it cannot tell
    versions: dict[str, str]
    remarks: Mapping[str, Any] = MappingProxyType({})  # settings that belong into the record

    def step(self) -> Any:
        """Train on the images once; the loss, which `float` reads."""
        raise NotImplementedError

    def inputs(self, images: np.ndarray) -> Any:
        """Images (N, H, W, C) as `predict` takes them; made once, outside of what is measured."""
        return images

    def predict(self, x: Any) -> np.ndarray:
        """Images after a round trip through the latent space, in evaluation mode, in the program's own layout."""
        raise NotImplementedError

    def outputs(self, y: np.ndarray) -> np.ndarray:
        """What `predict` returned as (N, H, W, C)."""
        return y

    def reconstruct(self, x: Any) -> np.ndarray:
        """`predict` of any number of images."""
        parts = [self.predict(x[i : i + RECONSTRUCT_BATCH]) for i in range(0, len(x), RECONSTRUCT_BATCH)]
        return np.concatenate(parts)


Build = Callable[[Spec, Arrays, np.ndarray, np.ndarray, dict[str, Any]], Program]


class Service:
    """The requests about a program. Each public method is one; it takes the request's fields and returns the reply."""

    def __init__(self, build: Build) -> None:
        self._build = build

    def build(self, spec: Spec, arrays: str, options: dict[str, Any]) -> dict[str, Any]:
        with np.load(arrays) as file:
            loaded = {name: file[name] for name in file.files}
        images, noise = loaded.pop("images"), loaded.pop("noise")
        self.program = self._build(spec, loaded, images, noise, options)
        self.x = self.program.inputs(images)
        p = self.program
        about = {"threads": p.threads, "versions": p.versions, "remarks": dict(p.remarks)}
        return {**about, "memory": held_memory()}

    def check(self, steps: int, out: str) -> dict[str, Any]:
        """Predict, train, predict: the losses; the predictions are written to a file."""
        before = self.program.outputs(self.program.predict(self.x))
        losses = [float(self.program.step()) for _ in range(steps)]
        after = self.program.outputs(self.program.predict(self.x))
        np.savez(out, before=before, after=after)
        return {"losses": losses}

    def step(self, count: int, warm: int = 1, seconds: float = 0) -> dict[str, Any]:
        return timed(self.program.step, count, warm, seconds)

    def predict(self, count: int, warm: int = 1, seconds: float = 0) -> dict[str, Any]:
        return timed(lambda: self.program.predict(self.x)[(0,) * 4], count, warm, seconds)

    def reconstruct(self, images: int, warm: int = 1) -> dict[str, Any]:
        """Reconstruct this many images: the ones that there are, repeated."""
        if not hasattr(self, "many"):
            times = -(-images // len(self.x))
            x = self.program.outputs(np.asarray(self.x))
            self.many = self.program.inputs(np.concatenate([x] * times)[:images])
        return timed(lambda: self.program.reconstruct(self.many)[(0,) * 4], 1, warm)

    def memory(self) -> dict[str, Any]:
        return {"memory": peak_memory()}


def timed(call: Callable[[], Any], count: int, warm: int = 1, seconds: float = 0) -> dict[str, Any]:
    """Seconds of one of `count` calls in a row, or of as many as fill `seconds`, after `warm` calls that are not
    measured."""
    for _ in range(warm):
        start = time.perf_counter()
        float(call())
        count = max(count, math.ceil(seconds / (time.perf_counter() - start)))
    start = time.perf_counter()
    for _ in range(count):
        result = call()
    float(result)  # waits for libraries that compute behind our back
    return {"seconds": (time.perf_counter() - start) / count}


def serve(service: Any, requests: Iterable[str] = sys.stdin, answers: bool = True) -> None:
    """Answer requests until they end. What libraries print goes to stderr."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in requests:
        request = json.loads(line)
        reply = getattr(service, request.pop("do"))(**request)
        if answers:
            print(json.dumps(reply), file=replies, flush=True)


def held_memory() -> int:
    """The bytes that this process holds now; from here on `peak_memory` counts anew. Without /proc both are the most so
    far."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM becomes VmRSS
    return peak_memory()


def peak_memory() -> int:
    """The most bytes that this process has held, as `VmHWM` of /proc counts them."""
    with contextlib.suppress(OSError):  # ru_maxrss would include what the driver held when it started us
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# ---- the model's layers, for those who build it anew ----


def encoder_layers(spec: Spec) -> Iterator[tuple[int, int, int, int, int]]:
    """(number, channels, filters, kernel size, stride) of each convolution."""
    sizes = spec["conv_filters"], spec["conv_kernels"], spec["conv_strides"]
    channels = spec["input_shape"][2]
    for i, (filters, kernel, stride) in enumerate(zip(*sizes, strict=True), 1):
        yield i, channels, filters, kernel, stride
        channels = filters


def decoder_layers(spec: Spec) -> Iterator[tuple[int, int, int, int, int]]:
    """The same of each transposed convolution; the last has neither ReLU nor BatchNorm."""
    channels = spec["conv_filters"][-1]
    filters = [*reversed(spec["conv_filters"][1:]), spec["input_shape"][2]]
    sizes = filters, reversed(spec["conv_kernels"]), reversed(spec["conv_strides"])
    for i, (F, kernel, stride) in enumerate(zip(*sizes, strict=True), 1):
        yield i, channels, F, kernel, stride
        channels = F


def is_last(i: int, spec: Spec) -> bool:
    return i == len(spec["conv_filters"])


def encoded_shape(spec: Spec) -> tuple[int, int, int]:
    """(H, W, F) between encoder and latent space."""
    H, W, _ = spec["input_shape"]
    for stride in spec["conv_strides"]:
        H, W = -(-H // stride), -(-W // stride)
    return H, W, spec["conv_filters"][-1]


def features(spec: Spec) -> int:
    return math.prod(encoded_shape(spec))


def heads(spec: Spec) -> tuple[str, ...]:
    """Names of the dense layers from features to latents."""
    return ("mu", "log_variance") if spec["kind"] == "vae" else ("encoder_output",)
