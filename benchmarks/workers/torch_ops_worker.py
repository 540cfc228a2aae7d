"""PyTorch's side of ops.py: one operation at a time, on channels_last images, which are NHWC in memory.

Arrays come by the names that minigrad's kernels give them. Images and kernels are mirrored (see mirrored.py), so that
"same" padding costs nothing here. A gradient is autograd's, of a graph that is built once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from protocol import serve, timed

Tensors = dict[str, torch.Tensor]
Operation = Callable[[Tensors, dict[str, Any]], torch.Tensor]


def conv2d(t: Tensors, o: dict[str, Any]) -> torch.Tensor:
    return F.conv2d(t["x"], t["weight"], t.get("bias"), o["stride"], o["padding"])


def conv2d_transpose(t: Tensors, o: dict[str, Any]) -> torch.Tensor:
    extra = o["output_padding"]
    return F.conv_transpose2d(t["x"], t["weight"], t.get("bias"), o["stride"], o["padding"], extra)


def conv_relu(t: Tensors, o: dict[str, Any]) -> Tensors:
    y = conv2d_transpose(t, o) if o["transposed"] else conv2d(t, o)
    return {**t, "x": F.relu(y)}


def conv_layer(t: Tensors, o: dict[str, Any]) -> torch.Tensor:
    """A layer with its batch statistics, which minigrad's kernel takes for the next layer to apply."""
    y = conv_relu(t, o)["x"]
    torch.var_mean(y, dim=(0, 2, 3), correction=0)
    return y


def batch_norm(t: Tensors, o: dict[str, Any]) -> torch.Tensor:
    return F.batch_norm(t["x"], None, None, t["gamma"], t["beta"], training=True, eps=o["epsilon"])


def batch_norm_inference(t: Tensors, o: dict[str, Any]) -> torch.Tensor:
    return F.batch_norm(t["x"], t["mean"], t["variance"], t["gamma"], t["beta"], eps=o["epsilon"])


OPERATIONS: dict[str, Operation] = {
    "matmul": lambda t, o: t["a"] @ t["b"],
    "conv2d": conv2d,
    "conv2d_transpose": conv2d_transpose,
    "conv_layer": conv_layer,
    "conv_block_inference": lambda t, o: batch_norm_inference(conv_relu(t, o), o),
    "relu": lambda t, o: F.relu(t["x"]),
    "sigmoid": lambda t, o: torch.sigmoid(t["x"]),
    "softplus": lambda t, o: F.softplus(t["x"]),
    "sum": lambda t, o: t["x"].sum(),
    "channel_sum": lambda t, o: t["x"].sum((0, 2, 3)),
    "add_bias": lambda t, o: t["x"] + t["bias"][:, None, None],
    "bernoulli_nll": lambda t, o: F.binary_cross_entropy_with_logits(t["logits"], t["targets"], reduction="sum"),
    "batch_norm": batch_norm,
    "batch_norm_inference": batch_norm_inference,
}


class Operations:
    def build(self, threads: int) -> dict[str, Any]:
        torch.set_num_threads(threads)
        return {"threads": torch.get_num_threads(), "versions": {"PyTorch": torch.__version__}}

    def prepare(self, arrays: str, name: str, options: dict[str, Any], out: str) -> dict[str, Any]:
        """Load the operation, run it and write its first result, in minigrad's layout.

        options: needs, the inputs whose gradients are wanted (none: the operation itself); and the operation's own.
        """
        with np.load(arrays) as file:
            tensors = {key: self.tensor(key, file[key]) for key in file.files}
        self.call = self.adam(tensors) if name == "adam" else self.operation(name, tensors, options)
        result = self.call()
        result = (result[0] if isinstance(result, tuple) else result).detach().numpy()
        if result.ndim == 4 and "weight" in options.get("needs", ())[:1]:
            result = result.transpose(2, 3, 1, 0)[::-1, ::-1]
        elif result.ndim == 4:
            result = result.transpose(0, 2, 3, 1)[:, ::-1, ::-1]
        np.save(out, result)
        return {}

    def operation(self, name: str, tensors: Tensors, options: dict[str, Any]) -> Callable[[], Any]:
        wanted: Sequence[str] = options.get("needs", ())
        operation = OPERATIONS[name]
        if not wanted:
            return torch.inference_mode()(lambda: operation(tensors, options))
        for key in wanted:
            tensors[key].requires_grad_()
        inputs = [tensors[key] for key in wanted]
        y = operation(tensors, options)
        gy = tensors["gradient"]
        return lambda: torch.autograd.grad(y, inputs, gy, retain_graph=True)

    def adam(self, tensors: Tensors) -> Callable[[], torch.Tensor]:
        parameters = tensors["parameters"].requires_grad_()
        parameters.grad = tensors["gradients"]
        optimizer = torch.optim.Adam([parameters], fused=True)

        def step() -> torch.Tensor:
            optimizer.step()
            return parameters

        return step

    def tensor(self, name: str, array: np.ndarray) -> torch.Tensor:
        if array.ndim == 4 and name == "weight":
            return torch.from_numpy(array[::-1, ::-1].transpose(3, 2, 0, 1).copy()).contiguous(
                memory_format=torch.channels_last
            )
        if array.ndim == 4:
            return torch.from_numpy(array[:, ::-1, ::-1].copy()).permute(0, 3, 1, 2)
        return torch.from_numpy(array)

    def step(self, count: int, warm: int = 1) -> dict[str, Any]:
        def call() -> int:
            self.call()
            return 0

        return timed(call, count, warm)


if __name__ == "__main__":
    serve(Operations())
