"""JAX's side: pure functions of a dictionary of arrays, the whole training step jitted with its state donated."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from protocol import (
    Arrays,
    Program,
    Service,
    Spec,
    decoder_layers,
    encoded_shape,
    encoder_layers,
    is_last,
    serve,
)

LAYOUT = ("NHWC", "HWIO", "NHWC")
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8
Statistics = dict[str, jax.Array]  # the moving ones of BatchNorm
Weights = dict[str, jax.Array]


class Network:
    """The model as functions; training collects new moving statistics in `moved`."""

    def __init__(self, spec: Spec, weights: Weights, statistics: Statistics, training: bool) -> None:
        self.spec, self.weights, self.statistics, self.training = spec, weights, statistics, training
        self.moved: Statistics = {}

    def dense(self, x: jax.Array, name: str) -> jax.Array:
        return x @ self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def relu_and_norm(self, x: jax.Array, name: str) -> jax.Array:
        x = jax.nn.relu(x)
        names = f"{name}.moving_mean", f"{name}.moving_variance"
        mean, variance = (self.statistics[n] for n in names)
        if self.training:
            momentum = self.spec["momentum"]
            mean, variance = jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))
            for n, value in zip(names, (mean, variance), strict=True):
                self.moved[n] = momentum * self.statistics[n] + (1 - momentum) * lax.stop_gradient(value)
        scale = self.weights[f"{name}.gamma"] * lax.rsqrt(variance + self.spec["epsilon"])
        return (x - mean) * scale + self.weights[f"{name}.beta"]

    def encode(self, x: jax.Array) -> jax.Array:
        for i, _, _, _, stride in encoder_layers(self.spec):
            name = f"encoder_conv_layer_{i}"
            weight = self.weights[f"{name}.weight"]
            x = lax.conv_general_dilated(x, weight, (stride, stride), "SAME", dimension_numbers=LAYOUT)
            x = self.relu_and_norm(x + self.weights[f"{name}.bias"], f"encoder_bn_{i}")
        return x.reshape(len(x), -1)

    def decode(self, z: jax.Array) -> jax.Array:
        x = self.dense(z, "decoder_dense").reshape(-1, *encoded_shape(self.spec))
        for i, _, _, _, stride in decoder_layers(self.spec):
            name = f"decoder_conv_transpose_layer_{i}"
            weight = self.weights[f"{name}.weight"]
            x = lax.conv_transpose(x, weight, (stride, stride), "SAME", dimension_numbers=LAYOUT, transpose_kernel=True)
            x = x + self.weights[f"{name}.bias"]
            if not is_last(i, self.spec):
                x = self.relu_and_norm(x, f"decoder_bn_{i}")
        return x

    def loss(self, x: jax.Array, noise: jax.Array) -> jax.Array:
        features = self.encode(x)
        if self.spec["kind"] == "ae":
            return jnp.mean(jnp.square(jax.nn.sigmoid(self.decode(self.dense(features, "encoder_output"))) - x))
        mu, log_variance = self.dense(features, "mu"), self.dense(features, "log_variance")
        logits = self.decode(mu + jnp.exp(log_variance / 2) * noise)
        reconstruction = jnp.sum(jax.nn.softplus(logits) - logits * x)
        kl = -0.5 * jnp.sum(1 + log_variance - jnp.square(mu) - jnp.exp(log_variance))
        return (reconstruction + kl) / len(x)

    def reconstruct(self, x: jax.Array) -> jax.Array:
        head = "mu" if self.spec["kind"] == "vae" else "encoder_output"
        return jax.nn.sigmoid(self.decode(self.dense(self.encode(x), head)))


class JaxProgram(Program):
    """options: threads, which the driver sets by the cores it leaves us."""

    def __init__(
        self, spec: Spec, weights: Arrays, images: np.ndarray, noise: np.ndarray, options: dict[str, Any]
    ) -> None:
        self.images, self.noise = jnp.asarray(images), jnp.asarray(noise)
        statistics = {name: jnp.asarray(x) for name, x in weights.items() if ".moving_" in name}
        trained = {name: jnp.asarray(x) for name, x in weights.items() if name not in statistics}
        means, variances = jax.tree.map(jnp.zeros_like, trained), jax.tree.map(jnp.zeros_like, trained)
        self.state = trained, statistics, means, variances, jnp.zeros((), jnp.int32)
        self.compiled_step = jax.jit(partial(train_step, spec), donate_argnums=0)
        self.compiled_predict = jax.jit(lambda w, s, x: Network(spec, w, s, training=False).reconstruct(x))
        self.versions = {"JAX": jax.__version__}

    def step(self) -> jax.Array:
        loss, self.state = self.compiled_step(self.state, self.images, self.noise)
        return loss

    def inputs(self, images: np.ndarray) -> jax.Array:
        return jnp.asarray(images)

    def predict(self, x: jax.Array) -> np.ndarray:
        return np.asarray(self.compiled_predict(*self.state[:2], x))


def train_step(spec: Spec, state: Any, images: jax.Array, noise: jax.Array) -> tuple[jax.Array, Any]:
    """(loss, new state): one step of Adam."""
    weights, statistics, means, variances, steps = state

    def loss_of(weights: Weights) -> tuple[jax.Array, Statistics]:
        network = Network(spec, weights, statistics, training=True)
        return network.loss(images, noise), network.moved

    (loss, statistics), gradients = jax.value_and_grad(loss_of, has_aux=True)(weights)
    steps = steps + 1
    means = jax.tree.map(lambda m, g: BETA_1 * m + (1 - BETA_1) * g, means, gradients)
    variances = jax.tree.map(lambda v, g: BETA_2 * v + (1 - BETA_2) * g * g, variances, gradients)
    correct_1, correct_2 = 1 / (1 - BETA_1**steps), 1 / (1 - BETA_2**steps)
    weights = jax.tree.map(
        lambda w, m, v: w - spec["learning_rate"] * m * correct_1 / (jnp.sqrt(v * correct_2) + EPSILON),
        weights,
        means,
        variances,
    )
    return loss, (weights, statistics, means, variances, steps)


if __name__ == "__main__":
    serve(Service(JaxProgram))
