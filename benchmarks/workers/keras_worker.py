"""Keras' side, on TensorFlow: functional models, the whole training step as one tf.function."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from keras import layers
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


def build_models(spec: Spec) -> tuple[keras.Model, keras.Model]:
    """(images -> outputs of the heads by name, latents -> logits); layers have minigrad's names."""

    def relu_and_norm(x: Any, part: str, i: int) -> Any:
        x = layers.ReLU(name=f"{part}_relu_{i}")(x)
        norm = layers.BatchNormalization(momentum=spec["momentum"], epsilon=spec["epsilon"], name=f"{part}_bn_{i}")
        return norm(x)

    x = images = keras.Input(spec["input_shape"])
    for i, _, filters, kernel, stride in encoder_layers(spec):
        name = f"encoder_conv_layer_{i}"
        x = relu_and_norm(layers.Conv2D(filters, kernel, stride, padding="same", name=name)(x), "encoder", i)
    x = layers.Flatten()(x)
    encoder = keras.Model(images, {name: layers.Dense(spec["latent_space_dim"], name=name)(x) for name in heads(spec)})
    x = latents = keras.Input((spec["latent_space_dim"],))
    x = layers.Reshape(encoded_shape(spec))(layers.Dense(features(spec), name="decoder_dense")(x))
    for i, _, filters, kernel, stride in decoder_layers(spec):
        name = f"decoder_conv_transpose_layer_{i}"
        x = layers.Conv2DTranspose(filters, kernel, stride, padding="same", name=name)(x)
        if not is_last(i, spec):
            x = relu_and_norm(x, "decoder", i)
    return encoder, keras.Model(latents, x)


class KerasProgram(Program):
    """options: threads."""

    def __init__(
        self, spec: Spec, weights: Arrays, images: np.ndarray, noise: np.ndarray, options: dict[str, Any]
    ) -> None:
        tf.config.threading.set_intra_op_parallelism_threads(options["threads"])
        tf.config.threading.set_inter_op_parallelism_threads(options["threads"])
        self.kind, self.code = spec["kind"], heads(spec)[0]
        self.encoder, self.decoder = build_models(spec)
        names = {"kernel": "weight"}
        self.variables = [*self.encoder.trainable_variables, *self.decoder.trainable_variables]
        for variable in [*self.encoder.variables, *self.decoder.variables]:
            layer, attribute = variable.path.split("/")[-2:]
            variable.assign(weights[f"{layer}.{names.get(attribute, attribute)}"])
        self.optimizer = keras.optimizers.Adam(spec["learning_rate"], epsilon=1e-8)
        self.optimizer.build(self.variables)
        self.images, self.noise = tf.constant(images), tf.constant(noise)
        self.threads = tf.config.threading.get_intra_op_parallelism_threads()
        self.versions = {"Keras": keras.__version__, "TensorFlow": tf.__version__}

    def step(self) -> tf.Tensor:
        return self.compiled_step(self.images, self.noise)

    @tf.function
    def compiled_step(self, images: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = self.loss(images, noise)
        self.optimizer.apply(tape.gradient(loss, [v.value for v in self.variables]), self.variables)
        return loss

    def loss(self, images: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
        outputs = self.encoder(images, training=True)
        if self.kind == "ae":
            reconstruction = tf.sigmoid(self.decoder(outputs["encoder_output"], training=True))
            return tf.reduce_mean(tf.square(reconstruction - images))
        mu, log_variance = outputs["mu"], outputs["log_variance"]
        logits = self.decoder(mu + tf.exp(log_variance / 2) * noise, training=True)
        reconstruction = tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(labels=images, logits=logits))
        kl = -0.5 * tf.reduce_sum(1 + log_variance - tf.square(mu) - tf.exp(log_variance))
        return (reconstruction + kl) / len(images)

    def inputs(self, images: np.ndarray) -> tf.Tensor:
        return tf.constant(images)

    def predict(self, x: tf.Tensor) -> np.ndarray:
        return self.compiled_predict(x).numpy()

    @tf.function
    def compiled_predict(self, x: tf.Tensor) -> tf.Tensor:
        latents = self.encoder(x, training=False)[self.code]
        return tf.sigmoid(self.decoder(latents, training=False))


if __name__ == "__main__":
    serve(Service(KerasProgram))
