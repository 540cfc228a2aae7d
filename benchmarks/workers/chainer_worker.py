"""Chainer's side, on NumPy: the closest relative of minigrad; on the mirrored problem (mirrored.py)."""

from __future__ import annotations

from typing import Any

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
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


class Model(chainer.Chain):
    """Both models; links have minigrad's names."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        H, W, C = encoded_shape(spec)
        self.kind, self.encoded = spec["kind"], (C, H, W)
        norm = {"decay": spec["momentum"], "eps": spec["epsilon"]}
        self.encoder, self.decoder = [], []  # pairs of names: convolution and norm
        with self.init_scope():
            for i, channels, filters, kernel, stride in encoder_layers(spec):
                names = f"encoder_conv_layer_{i}", f"encoder_bn_{i}"
                setattr(self, names[0], L.Convolution2D(channels, filters, kernel, stride, kernel // 2))
                setattr(self, names[1], L.BatchNormalization(filters, **norm))
                self.encoder.append(names)
            for name in heads(spec):
                setattr(self, name, L.Linear(features(spec), spec["latent_space_dim"]))
            self.decoder_dense = L.Linear(spec["latent_space_dim"], features(spec))
            for i, channels, filters, kernel, stride in decoder_layers(spec):
                H, W = H * stride, W * stride
                names = f"decoder_conv_transpose_layer_{i}", f"decoder_bn_{i}"
                setattr(
                    self,
                    names[0],
                    L.Deconvolution2D(channels, filters, kernel, stride, kernel // 2, outsize=(H, W)),
                )
                if not is_last(i, spec):
                    setattr(self, names[1], L.BatchNormalization(filters, **norm))
                self.decoder.append(names)

    def encode(self, x: Any) -> Any:
        for conv, norm in self.encoder:
            x = self[norm](F.relu(self[conv](x)))
        return x

    def decode(self, z: Any) -> Any:
        x = self.decoder_dense(z)
        x = x.reshape(len(x), *self.encoded)
        for conv, norm in self.decoder[:-1]:
            x = self[norm](F.relu(self[conv](x)))
        return self[self.decoder[-1][0]](x)

    def loss(self, x: np.ndarray, noise: np.ndarray) -> Any:
        y = self.encode(x)
        if self.kind == "ae":
            return F.mean_squared_error(F.sigmoid(self.decode(self.encoder_output(y))), x)
        mu, log_variance = self.mu(y), self.log_variance(y)
        logits = self.decode(mu + F.exp(log_variance / 2) * noise)
        return (F.bernoulli_nll(x, logits) + F.gaussian_kl_divergence(mu, log_variance)) / len(x)


class ChainerProgram(Program):
    """options: threads, which the driver sets by environment variables of BLAS."""

    def __init__(
        self, spec: Spec, weights: Arrays, images: np.ndarray, noise: np.ndarray, options: dict[str, Any]
    ) -> None:
        check_sizes(spec)
        chainer.config.type_check = False
        self.model = Model(spec)
        names = {"W": "weight", "b": "bias", "avg_mean": "moving_mean", "avg_var": "moving_variance"}
        for name, x in mirrored_weights(weights, spec).items():
            layer, attribute = name.split(".")
            theirs = next((its for its, mine in names.items() if mine == attribute), attribute)
            value = getattr(self.model[layer], theirs)
            getattr(value, "array", value)[...] = x
        self.optimizer = chainer.optimizers.Adam(alpha=spec["learning_rate"], eps=1e-8).setup(self.model)
        self.images, self.noise = self.inputs(images), noise
        self.versions = {"Chainer": chainer.__version__, "NumPy": np.__version__}

    def step(self) -> float:
        loss = self.model.loss(self.images, self.noise)
        self.model.cleargrads()
        loss.backward()
        self.optimizer.update()
        return loss.array

    def inputs(self, images: np.ndarray) -> np.ndarray:
        return mirrored_images(images)

    def predict(self, x: np.ndarray) -> np.ndarray:
        head = self.model.mu if self.model.kind == "vae" else self.model.encoder_output
        with chainer.using_config("train", False), chainer.no_backprop_mode():
            return F.sigmoid(self.model.decode(head(self.model.encode(x)))).array

    def outputs(self, y: np.ndarray) -> np.ndarray:
        return mirrored_back(y)


if __name__ == "__main__":
    serve(Service(ChainerProgram))
