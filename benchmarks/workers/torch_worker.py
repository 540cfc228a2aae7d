"""PyTorch's side, as its users write it: nn.Module, Adam, autograd; on the mirrored problem (mirrored.py)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mirrored import check_sizes, mirrored_back, mirrored_images, mirrored_weights
from protocol import (
    Arrays,
    Program,
    Service,
    Spec,
    decoder_layers,
    encoded_shape,
    encoder_layers,
    features,
    heads,
    is_last,
    serve,
)
from torch import nn


class Model(nn.Module):
    """Both models; layers have minigrad's names."""

    def __init__(self, spec: Spec, channels_last: bool) -> None:
        super().__init__()
        self.kind, self.channels_last = spec["kind"], channels_last
        H, W, C = encoded_shape(spec)
        self.encoded = (H, W, C) if channels_last else (C, H, W)
        norm = {"eps": spec["epsilon"], "momentum": 1 - spec["momentum"]}
        self.encoder, self.decoder = nn.Sequential(), nn.Sequential()
        for i, channels, filters, kernel, stride in encoder_layers(spec):
            conv = nn.Conv2d(channels, filters, kernel, stride, padding=kernel // 2)
            self.encoder.add_module(f"encoder_conv_layer_{i}", conv)
            self.encoder.add_module(f"encoder_relu_{i}", nn.ReLU())
            self.encoder.add_module(f"encoder_bn_{i}", nn.BatchNorm2d(filters, **norm))
        self.heads = nn.ModuleDict({name: nn.Linear(features(spec), spec["latent_space_dim"]) for name in heads(spec)})
        self.decoder_dense = nn.Linear(spec["latent_space_dim"], features(spec))
        for i, channels, filters, kernel, stride in decoder_layers(spec):
            conv = nn.ConvTranspose2d(channels, filters, kernel, stride, padding=kernel // 2, output_padding=stride - 1)
            self.decoder.add_module(f"decoder_conv_transpose_layer_{i}", conv)
            if not is_last(i, spec):
                self.decoder.add_module(f"decoder_relu_{i}", nn.ReLU())
                self.decoder.add_module(f"decoder_bn_{i}", nn.BatchNorm2d(filters, **norm))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        y = self.encoder(x)
        if self.channels_last:
            y = y.permute(0, 2, 3, 1)  # so that flattening copies nothing
        return y.flatten(1)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        x = self.decoder_dense(z).unflatten(1, self.encoded)
        return self.decoder(x.permute(0, 3, 1, 2) if self.channels_last else x)

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """The loss."""
        y = self.encode(x)
        if self.kind == "ae":
            return F.mse_loss(torch.sigmoid(self.decode(self.heads["encoder_output"](y))), x)
        mu, log_variance = self.heads["mu"](y), self.heads["log_variance"](y)
        logits = self.decode(mu + torch.exp(log_variance / 2) * noise)
        reconstruction = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        kl = -0.5 * torch.sum(1 + log_variance - mu.square() - log_variance.exp())
        return (reconstruction + kl) / len(x)

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.decode(next(iter(self.heads.values()))(self.encode(x))))


class TorchProgram(Program):
    """options: threads, channels_last, compile, fused (Adam as one kernel)."""

    def __init__(
        self, spec: Spec, weights: Arrays, images: np.ndarray, noise: np.ndarray, options: dict[str, Any]
    ) -> None:
        torch.set_num_threads(options["threads"])
        check_sizes(spec)
        self.channels_last = options.get("channels_last", False)
        self.model = Model(spec, self.channels_last)
        load(self.model, mirrored_weights(weights, spec, self.channels_last))
        if self.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.images, self.noise = self.inputs(images), torch.from_numpy(noise)
        self.optimizer = torch.optim.Adam(self.model.parameters(), spec["learning_rate"], fused=options.get("fused"))
        self.loss, self.through = self.model, self.model.reconstruct
        if options.get("compile"):
            self.loss, self.through = torch.compile(self.model), torch.compile(self.model.reconstruct)
        self.threads, self.versions = torch.get_num_threads(), {"PyTorch": torch.__version__}

    def step(self) -> torch.Tensor:
        if not self.model.training:  # a training sets this once
            self.model.train()
        self.optimizer.zero_grad()
        loss = self.loss(self.images, self.noise)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def inputs(self, images: np.ndarray) -> torch.Tensor:
        x = torch.from_numpy(mirrored_images(images))
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x

    @torch.inference_mode()
    def predict(self, x: torch.Tensor) -> np.ndarray:
        self.model.eval()
        return self.through(x).numpy()

    def outputs(self, y: np.ndarray) -> np.ndarray:
        return mirrored_back(y)


def load(model: Model, weights: Arrays) -> None:
    """Set all weights and statistics from arrays by minigrad's names."""
    names = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
    state = model.state_dict()
    for name in state:
        layer, attribute = name.split(".")[-2:]
        if attribute != "num_batches_tracked":
            if "_bn_" in layer:
                attribute = names[attribute]
            state[name] = torch.from_numpy(weights[f"{layer}.{attribute}"])
    model.load_state_dict(state)


if __name__ == "__main__":
    serve(Service(TorchProgram))
