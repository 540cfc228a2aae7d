"""The convolutional autoencoder and its variational form.

The encoder has a convolution, ReLU and BatchNorm for each entry of conv_filters, then a dense layer to the latent
space. The decoder mirrors it with transposed convolutions. The last one gives logits, whose sigmoid is the image.
Public methods take and return NumPy arrays on any device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from minigrad import Backend, Tensor, backend_of, evaluation, nn, no_grad, ops, optim
from minigrad.nn.summary import format_summary
from minigrad.random import generator
from minigrad.serialize import DataError, save_state

from .guards import ELSEWHERE, check_count, check_images, check_latents, one_hot, refuse
from .layers import BoundedDense, LogVariance, append
from .network import decoder_layers, encoder_layers, is_size, likelihood_for, map_shapes, network_for
from .saved import MODEL_FILE, check_architecture, check_finite, put_weights, read_saved, source_of
from .shipped import as_folder
from .training import Callback, History, Trainer, TrainingOptions
from .training.memory import check_size, least_weights

Array = Any
BATCH = 256  # images that are computed at a time outside training, at most
BATCH_VALUES = 1 << 22  # numbers that those images may have together, so fewer large images are taken at a time
BOUNDS = (-20.0, 10.0)  # the default bounds of log_variance


class Autoencoder:
    """A deterministic autoencoder, trained on the mean squared error.

    Args:
        input_shape: (H, W, C) of one image, any sizes.
        conv_filters, conv_kernels, conv_strides: one entry for each convolution; kernels and strides are ints or
            (height, width) pairs. One number stands for all kernels or strides, and None for what suits the image:
            `network.network_for`.
        latent_space_dim: Z >= 1.
        hidden: units of a dense layer with a ReLU on both sides of the latent; None: no such layer, as in the original.
        momentum: of the moving statistics of BatchNorm. They are what evaluation uses and need some 5 / (1 - momentum)
            steps to follow, so take less than 0.99 for shorter trainings.
        seed: of the initial weights.

    Raises:
        ValueError: the lengths differ or a value is out of range. DeviceError: it does not fit into the free memory.
    """

    kind = "ae"
    name = "Autoencoder"
    loss_names: tuple[str, ...] = ("reconstruction",)
    loss_words = "mean squared error per pixel"
    unit = "squared error per value"
    beta = 1.0  # the weight of the KL term, which only the VAE has
    classes = 0  # the number of classes of a conditional model; only the VAE can be one
    class_names: tuple[str, ...] = ()
    trained_steps = 0  # the number of training steps, over all optimisers

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        conv_filters: int | Sequence[int] | None = None,
        conv_kernels: int | Sequence[Any] | None = None,
        conv_strides: int | Sequence[Any] | None = None,
        latent_space_dim: int = 2,
        *,
        hidden: int | None = None,
        momentum: float = 0.99,
        seed: int = 0,
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum} but must lie in [0, 1)")
        if len(input_shape) != 3 or not all(map(is_size, input_shape)):
            raise ValueError(f"input_shape must be (H, W, C), whole numbers >= 1, found {tuple(input_shape)}")
        self.input_shape = tuple(map(int, input_shape))
        convolutions = network_for(input_shape, conv_filters, conv_kernels, conv_strides)
        self.conv_filters, self.conv_kernels, self.conv_strides = convolutions
        if not is_size(latent_space_dim):
            raise ValueError(f"latent_space_dim must be a whole number >= 1, found {latent_space_dim}")
        if not (hidden is None or is_size(hidden)):
            raise ValueError(f"hidden must be None or a whole number >= 1, found {hidden}")
        self.latent_space_dim, self.hidden = int(latent_space_dim), None if hidden is None else int(hidden)
        self.momentum, self.seed = float(momentum), seed.item() if isinstance(seed, np.generic) else seed
        check_size(self.config)
        shapes = map_shapes(self.input_shape, self.conv_filters, self.conv_strides)
        self._encoded_shape = shapes[-1]
        encoder = encoder_layers(shapes, *convolutions[1:], momentum, self.hidden)
        self.features = (self.hidden or math.prod(self._encoded_shape)) + self.classes
        self.heads = self._build_heads(self.features)  # features (N, D) -> latents
        decoder = decoder_layers(self.latent_space_dim + self.classes, shapes, *convolutions[1:], momentum, self.hidden)
        # network holds all layers by name, for saving, moving and training; it is never called. encoder, heads and
        # decoder are called.
        self.network = nn.Sequential({**encoder, **self.heads, **decoder})
        # fuse runs a chain of convolutions, ReLUs and BatchNorms as one operation, for speed. The values are those of
        # the layers one after another, so the reading path leaves minigrad/nn/conv_chain.py out.
        self.encoder = nn.fuse(encoder)  # images -> features
        self.decoder = nn.fuse(decoder)  # latents -> logits of the image
        for part in (self.network, self.encoder, self.decoder):
            part.train(None)  # only in a Trainer's step
        self.network.initialize(seed)
        self.learning_rate = 0.0
        self.optimizer: optim.Adam | None = None

    def __getattr__(self, name: str) -> Any:
        hint = f"; use {ELSEWHERE[name]}" if name in ELSEWHERE else ""
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{hint}")

    # ---- the network ----

    def _build_heads(self, features: int) -> dict[str, nn.Module]:
        return {"encoder_output": nn.Dense(features, self.latent_space_dim)}

    def losses(
        self,
        images: Tensor,
        noise: Array | None,
        beta: Array,
        labels: Array | None = None,
        targets: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """(what is minimised, its parts in the order of loss_names) for a batch.

        Only the VAE uses noise, (N, Z) or (N, K, Z) for K samples, beta, and labels, rows of `one_hot`. The encoder
        sees images. The decoder should give targets; None: the images.
        """
        latents = self.heads["encoder_output"](self.encoder(images))
        reconstruction = ops.mse(ops.sigmoid(self.decoder(latents)), images if targets is None else targets)
        return reconstruction, [reconstruction]

    @property
    def noise_dim(self) -> int:
        """Standard normal numbers that one image needs in training."""
        return 0

    def implausible(self, losses: dict[str, float]) -> str | None:
        """What is wrong with the mean losses of an epoch, which are finite but far too large; None if nothing."""
        return None  # a squared error is at most 1

    # ---- training ----

    def compile(self, learning_rate: float = 5e-4, **others: Any) -> None:
        """Set the optimiser: Adam with this learning rate, a number."""
        refuse("compile", others)
        if callable(learning_rate):
            raise TypeError(
                "compile: learning_rate must be a number; choose a schedule in train(..., schedule='cosine')"
            )
        self.optimizer = optim.Adam(self.network.parameters(), learning_rate)
        self.learning_rate = float(learning_rate)

    def train(
        self,
        x_train: np.ndarray,
        batch_size: int = 128,
        num_epochs: int = 8,
        *,
        labels: np.ndarray | None = None,
        folder: str | Path | None = None,
        callbacks: Sequence[Callback] = (),
        progress: bool = True,
        **options: Any,
    ) -> History:
        """Train on images. By default it writes no files and holds out no images for validation.

        Args:
            x_train: (N, H, W, C), uint8 or floats in [0, 1].
            labels, folder, callbacks, progress: as for `training.Trainer`.
            options: the other fields of `training.TrainingOptions`.
        Returns:
            the history: one row an epoch.
        Raises:
            DataError: the images do not fit. DivergedError: a loss or weight is no longer finite; the model is then in
                its last good state. RuntimeError: compile was not called. FileExistsError: the folder holds checkpoints
                of another run.
            KeyboardInterrupt: on Ctrl-C, after the step, with a checkpoint if there is a folder.
        """
        refuse("train", options, set(TrainingOptions.__dataclass_fields__) - {"epochs"})
        chosen = TrainingOptions(batch_size=batch_size, epochs=num_epochs, **options)
        return Trainer(
            self, x_train, chosen, labels=labels, folder=folder, callbacks=callbacks, progress=progress
        ).run()

    # ---- use; labels are the classes (N,) of the images, which a conditional model needs and others ignore ----

    def reconstruct(self, images: np.ndarray, *, labels: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(images after a round trip through the latent space, their latents): (N, H, W, C) in [0, 1] and (N, Z)."""
        latents = self.encode(images, labels=labels)
        return self.decode(latents, labels=labels), latents

    def encode(self, images: np.ndarray, *, labels: np.ndarray | None = None) -> np.ndarray:
        """The latents (N, Z) of images (N, H, W, C); for a VAE their means."""
        return self._encode(images, labels)[0]

    def decode(self, latents: np.ndarray, *, labels: np.ndarray | None = None) -> np.ndarray:
        """Images (N, H, W, C) in [0, 1] from latents (N, Z).

        Raises:
            DataError: latents have another shape or are not finite; a conditional model has no fitting labels.
        """
        latents = check_latents(latents, self.latent_space_dim, self.dtype)
        return self._decode(latents, self.one_hot(labels, len(latents)))

    def interpolate(
        self,
        start: np.ndarray,
        end: np.ndarray,
        steps: int = 8,
        *,
        labels: tuple[np.ndarray | None, np.ndarray | None] = (None, None),
    ) -> np.ndarray:
        """Images on the straight line in latent space between each pair: (N, H, W, C) twice -> (N, steps, H, W, C).

        labels: (the labels of start, the labels of end). A conditional model interpolates between their one-hot rows.
        """
        if len(start) != len(end) or steps < 2:
            raise DataError(
                f"interpolate: needs as many ends as starts, and steps >= 2; found {len(start)}, {len(end)}, {steps}"
            )
        share = np.linspace(0, 1, steps, dtype=np.float32)[:, None]  # (steps, 1)

        def line(first: np.ndarray, last: np.ndarray) -> np.ndarray:  # (N, D) twice -> (N * steps, D)
            return (first[:, None] * (1 - share) + last[:, None] * share).reshape(-1, first.shape[1])

        z = line(self.encode(start, labels=labels[0]), self.encode(end, labels=labels[1]))
        rows = [self.one_hot(x, len(start)) for x in labels]
        between = None if rows[0] is None or rows[1] is None else line(rows[0], rows[1])
        return self._decode(z, between).reshape(len(start), steps, *self.input_shape)

    @property
    def title(self) -> str:
        """What it is."""
        told = f", {self.classes} classes" if self.classes else ""
        plural = "s" if self.latent_space_dim > 1 else ""
        return f"{self.name} with {self.latent_space_dim} latent dimension{plural}{told}"

    def __repr__(self) -> str:
        return f"<{self.title}>"

    def _repr_html_(self) -> str:
        from minigrad.tools.explain.notebook import module_html

        return f"<pre>{escape(self.outline())}</pre>{module_html(self.network)}"

    def outline(self) -> str:
        """The model in a few lines; `summary` shows every layer."""
        image, code = ("x".join(map(str, shape)) for shape in (self.input_shape, self._encoded_shape))
        count = len(self.conv_filters)
        plural = "s" if count > 1 else ""
        size = sum(p.size for p in self.network.parameters())
        into, out = (f" -> {self.hidden}", f"{self.hidden} -> ") if self.hidden else ("", "")
        return (
            f"model       {self.title}\n"
            f"encoder     {count} convolution{plural}, {image} -> {code}{into}\n"
            f"decoder     {count} transposed convolution{plural}, {out}{code} -> {image}\n"
            f"parameters  {size:,} ({4 * size / 1e6:.2g} MB)\n"
            f"loss        {self.loss_words}"
        )

    def summary(self) -> str:
        """A table of all layers for one image; the heads are side by side."""
        layers = self.network.layers.items()
        encoder = nn.Sequential({n: x for n, x in layers if n.startswith("encoder_") and n not in self.heads})
        decoder = nn.Sequential({n: x for n, x in layers if n.startswith("decoder_")})
        rows = encoder.summary_rows(self.input_shape)
        for name, head in self.heads.items():
            rows += nn.Sequential({name: head}).summary_rows((self.features,))
        rows += decoder.summary_rows((self.latent_space_dim + self.classes,))
        return format_summary(rows + [(n, x, (1,), 0) for n, x in layers if n == "likelihood"])

    def to(self, device: str | None = None, dtype: str | None = None) -> None:
        """Move to a device ("cpu", "cuda") or dtype ("float32", "float64"); call compile afterwards."""
        self.network.to(device, dtype)
        self.optimizer = None

    @property
    def config(self) -> dict[str, Any]:
        """What `from_config` needs to build this model again, as JSON."""
        names = ("input_shape", "conv_filters", "conv_kernels", "conv_strides", "latent_space_dim", "momentum", "seed")
        hidden = {"hidden": self.hidden} if self.hidden else {}  # models without are recorded as by earlier versions
        return {"kind": self.kind, **{name: getattr(self, name) for name in names}, **hidden}

    def save(self, folder: str | Path) -> str:
        """Write folder/model.safetensors (configuration and weights together, atomically); returns its SHA-256.

        Raises:
            DivergedError: a weight is not finite. DataError: the file cannot be written.
        """
        check_finite(self.network.state_dict(), "save")
        record = {"model": self.config, "trained_steps": self.trained_steps}
        return save_state(Path(folder) / MODEL_FILE, self.network.state_dict(), record)

    @classmethod
    def load(cls, folder: str | Path) -> Autoencoder:
        """The model that `save` wrote, as an object of this class.

        Raises:
            DataError: there is none, it is damaged, or it is of another kind.
        """
        model = load(folder, cls)
        if not isinstance(model, cls):
            raise DataError(f"{folder}: holds a {type(model).__name__}, not a {cls.__name__}")
        return model

    def load_weights(self, path: str | Path) -> None:
        """Set the weights from a shipped model or a file, also one of Keras 3 or PyTorch, with the same sizes.

        Raises:
            DataError: the file is missing or damaged, or its weights or the sizes that it records do not fit; then
                nothing changes.
        """
        arrays, record = read_saved(source_of(as_folder(path)))
        try:
            if "model" in record:
                check_architecture(self.config, record["model"])
            put_weights(self.network, arrays, record)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise DataError(f"{path}: {error}") from error

    # ---- arrays in, arrays out ----

    def check_images(self, images: Any) -> np.ndarray:
        """The images as uint8 or as floats of the model's dtype in [0, 1].

        Raises:
            DataError: wrong shape, dtype or range, not finite, or none at all.
        """
        return check_images(images, self.input_shape, self.dtype)

    def one_hot(self, labels: Any, count: int) -> np.ndarray | None:
        """The labels of `count` images as rows of 0 and 1 (count, classes), which a conditional model takes.

        None for a model that is not conditional, whatever the labels.

        Raises:
            DataError: there are no labels, not one for each image, or they lie outside 0 ... classes - 1.
        """
        return one_hot(labels, count, self.classes, self.dtype) if self.classes else None

    @property
    def dtype(self) -> Any:
        return self._first_weight.dtype

    @property
    def backend(self) -> Backend:
        """The backend of its weights."""
        return backend_of(self._first_weight)

    @property
    def _first_weight(self) -> Array:
        return next(iter(self.heads.values())).parameters()[0].data  # all are of one kind

    def _encode(self, images: np.ndarray, labels: np.ndarray | None) -> list[np.ndarray]:
        def heads(x: Tensor, given: Array | None) -> tuple[Tensor, ...]:
            features = append(self.encoder(x), given)
            return tuple(head(features) for head in self.heads.values())

        images = self.check_images(images)
        return self._map(heads, images, self.one_hot(labels, len(images)))

    def _decode(self, latents: np.ndarray, one_hot: np.ndarray | None) -> np.ndarray:
        return self._map(lambda z, given: (ops.sigmoid(self.decoder(append(z, given))),), latents, one_hot)[0]

    def batches(self, count: int) -> Iterator[slice]:
        """Slices that cut `count` images into the batches that are computed together outside training."""
        size = max(1, min(BATCH, BATCH_VALUES // math.prod(self.input_shape)))
        return (slice(start, min(start + size, count)) for start in range(0, count, size))

    def _map(
        self,
        function: Callable[[Tensor, Array | None], tuple[Tensor, ...]],
        rows: np.ndarray,
        one_hot: np.ndarray | None,
    ) -> list[np.ndarray]:
        """The outputs of function over all rows, a batch at a time, in evaluation mode."""
        with self.evaluating():
            k = self.backend
            outputs = []
            for batch in self.batches(len(rows)):
                x = k.unit_range(k.from_host(np.ascontiguousarray(rows[batch])), self.dtype)
                given = None if one_hot is None else k.from_host(one_hot[batch])
                outputs.append([k.to_host(y.data) for y in function(Tensor(x), given)])
        return [np.concatenate(parts) for parts in zip(*outputs, strict=True)]

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """A context in evaluation mode that records no graph. It changes nothing, so any thread may use the model."""
        with evaluation(), no_grad(), self.backend.session():
            yield


class VAE(Autoencoder):
    """A variational autoencoder: q(z | x) = N(mu, exp(log_variance)), prior N(0, I), trained on -ELBO.

    The loss is E_q[-log p(x | z)] + beta * KL(q(z | x) || N(0, I)) in nats per image, with one sample of
    z = mu + exp(log_variance / 2) * noise for each image and step.

    With noise for K samples per image the loss is the importance-weighted bound, which is closer to -log p(x):
    -log (1/K) sum over k of p(x | z_k) * (p(z_k) / q(z_k | x))^beta, averaged over images. Its parts are then those of
    -ELBO with the same samples: the mean of -log p(x | z_k), and the KL. With beta 1 their sum is above the loss, on
    average over the noise.

    Args:
        beta: the weight of the KL term; 1 is the ELBO.
        likelihood: of a pixel given the latent. "bernoulli": logits, grey values count as probabilities;
            "gaussian": mean sigmoid(logits) and the fixed `variance`; "gaussian-learned": one variance for all
            pixels, trained, starting from `variance`. None: bernoulli for grey images, gaussian-learned for coloured.
        variance: in squared units of a pixel in [0, 1]. None: 0.1, and for gaussian-learned 0.01, because training
            moves its logarithm by no more than the learning rate in a step.
        classes: the number of classes of a conditional VAE, q(z | x, class) and p(x | z, class); 0: not conditional.
            The label, a one-hot row, is appended to the encoder's features and to z.
        class_names: kept with the model; one for each class, or none.
        log_variance_bounds: (lowest, highest) log_variance, which `SoftBound` keeps; None: no bounds.

    Source: Kingma and Welling, Auto-Encoding Variational Bayes, 2014; beta: Higgins et al., beta-VAE, 2017; classes:
    Sohn, Lee and Yan, Learning Structured Output Representation using Deep Conditional Generative Models, 2015;
    K samples: Burda, Grosse and Salakhutdinov, Importance Weighted Autoencoders, 2015, equation 8.
    """

    kind = "vae"
    name = "Variational autoencoder"
    loss_names = ("reconstruction", "kl")
    unit = "nats per image"

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        conv_filters: int | Sequence[int] | None = None,
        conv_kernels: int | Sequence[Any] | None = None,
        conv_strides: int | Sequence[Any] | None = None,
        latent_space_dim: int = 2,
        *,
        beta: float = 1.0,
        likelihood: str | None = None,
        variance: float | None = None,
        classes: int = 0,
        class_names: Sequence[str] = (),
        log_variance_bounds: tuple[float, float] | None = BOUNDS,
        hidden: int | None = None,
        momentum: float = 0.99,
        seed: int = 0,
    ) -> None:
        likelihood = likelihood or likelihood_for(input_shape)
        if likelihood not in ("bernoulli", "gaussian", "gaussian-learned"):
            raise ValueError(f"likelihood is {likelihood!r} but must be bernoulli, gaussian or gaussian-learned")
        if not 0 <= beta < math.inf:
            raise ValueError(f"beta must be >= 0 and finite, found {beta}")
        if variance is None:
            variance = 0.01 if likelihood == "gaussian-learned" else 0.1
        if not 0 < variance < math.inf:
            raise ValueError(f"variance must be > 0 and finite, found {variance}")
        if not (classes == 0 or is_size(classes)) or len(class_names) not in (0, classes):
            raise ValueError(
                "classes must be a whole number >= 0, and class_names none or one for each class, found "
                f"{classes} and {len(class_names)} names"
            )
        bounds = log_variance_bounds
        if bounds is not None and not (len(bounds) == 2 and -math.inf < bounds[0] + 2 < bounds[1] < math.inf):
            expected = "two finite numbers, the second more than 2 larger"
            raise ValueError(f"log_variance_bounds must be {expected}; found {bounds}")
        self.log_variance_bounds = None if bounds is None else (float(bounds[0]), float(bounds[1]))
        self.beta, self.likelihood, self.variance = float(beta), likelihood, float(variance)
        self.classes, self.class_names = int(classes), tuple(map(str, class_names))
        architecture = input_shape, conv_filters, conv_kernels, conv_strides, latent_space_dim
        super().__init__(*architecture, hidden=hidden, momentum=momentum, seed=seed)
        if likelihood == "gaussian-learned":
            self.network.layers["likelihood"] = LogVariance(math.log(variance))

    def _build_heads(self, features: int) -> dict[str, nn.Module]:
        sizes = features, self.latent_space_dim
        return {"mu": nn.Dense(*sizes), "log_variance": BoundedDense(*sizes, self.log_variance_bounds)}

    @property
    def noise_dim(self) -> int:
        return self.latent_space_dim

    @property
    def loss_words(self) -> str:  # type: ignore[override]
        weight = "" if self.beta == 1 else f"{self.beta:g} x "
        return f"nats per image: reconstruction ({self.likelihood}) + {weight}KL divergence"

    def losses(
        self,
        images: Tensor,
        noise: Array | None,
        beta: Array,
        labels: Array | None = None,
        targets: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        targets = images if targets is None else targets
        features = append(self.encoder(images), labels)
        mu, log_variance = self.heads["mu"](features), self.heads["log_variance"](features)
        kl = ops.kl_to_standard_normal(mu, log_variance)
        if noise is not None and noise.ndim == 3:
            bound, reconstruction = self._weighted_bound(mu, log_variance, noise, beta, labels, targets)
            return bound, [reconstruction, kl]
        z = mu + ops.exp(log_variance * 0.5) * noise
        logits = self.decoder(append(z, labels))
        if self.likelihood == "bernoulli":
            reconstruction = ops.bce_with_logits(logits, targets)
        else:
            reconstruction = ops.gaussian_nll(ops.sigmoid(logits), targets, self.pixel_log_variance)
        return reconstruction + kl * beta, [reconstruction, kl]

    def _weighted_bound(
        self, mu: Tensor, log_variance: Tensor, noise: Array, beta: Array, labels: Array | None, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(the importance-weighted bound, the mean of -log p(x | z_k)), in nats per image.

        With z = mu + exp(log_variance / 2) * noise, log p(z) - log q(z | x) is the sum over the latent dimensions of
        (noise^2 + log_variance - z^2) / 2.
        """
        N, K, Z = noise.shape
        log_variance = log_variance.reshape(N, 1, Z)
        z = mu.reshape(N, 1, Z) + ops.exp(log_variance * 0.5) * noise
        log_ratio = ((log_variance - z * z + noise * noise) * 0.5).sum(axis=2)  # (N, K)
        if labels is not None:  # once for each sample
            labels = backend_of(labels).xp.broadcast_to(labels[:, None], (N, K, self.classes)).reshape(N * K, -1)
        logits = self.decoder(append(z.reshape(N * K, Z), labels)).reshape(N, K, *self.input_shape)
        x = targets.reshape(N, 1, *self.input_shape)
        if self.likelihood == "bernoulli":
            nll = ops.softplus(logits) - logits * x  # not split as in the kernel: |logit| has no gradient at 0
        else:
            difference, spread = ops.sigmoid(logits) - x, self.pixel_log_variance
            precision = ops.exp(-spread) if isinstance(spread, Tensor) else math.exp(-spread)
            nll = (difference * difference * precision + spread + math.log(2 * math.pi)) * 0.5
        nll = nll.sum(axis=(2, 3, 4))  # (N, K)
        return math.log(K) - ops.logsumexp(log_ratio * beta - nll, axis=1).mean(), nll.mean()

    def implausible(self, losses: dict[str, float]) -> str | None:
        """A message if -ELBO is 100 times that of an untrained model, or if the KL is too large for the latents and
        -ELBO is no better than untrained; None otherwise."""
        untrained = math.prod(self.input_shape) * (1.0 if self.likelihood == "bernoulli" else 1 + 0.2 / self.variance)
        kl, bound = losses["kl"], losses["reconstruction"] + losses["kl"]
        if bound > 100 * untrained:
            return f"-ELBO is {bound:.3g} nats per image, but at most {untrained:.3g} for an untrained model"
        if kl > max(1000, 20 * self.latent_space_dim) and bound > untrained:
            return f"the KL is {kl:.3g} nats per image"
        return None

    @property
    def pixel_log_variance(self) -> Any:
        """The logarithm of the Gaussian likelihood's variance: a number, or the trained parameter."""
        layer = self.network.layers.get("likelihood")
        return math.log(self.variance) if layer is None else layer.log_variance  # type: ignore[attr-defined]

    @property
    def config(self) -> dict[str, Any]:
        names = ("beta", "likelihood", "variance", "classes", "class_names", "log_variance_bounds")
        return {**super().config, **{name: getattr(self, name) for name in names}}

    def encode_distribution(
        self, images: np.ndarray, *, labels: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(mu, log_variance) of q(z | x), each (N, Z)."""
        mu, log_variance = self._encode(images, labels)
        return mu, log_variance

    def reconstruct(
        self, images: np.ndarray, sample: bool = False, seed: int = 0, *, labels: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(images after a round trip, their latents). The latents are the means of q(z | x), or with
        sample=True draws from it."""
        mu, log_variance = self.encode_distribution(images, labels=labels)
        if sample:
            noise = generator(seed, "reconstruct").standard_normal(mu.shape)
            with np.errstate(all="ignore"):  # what is not finite is refused by decode
                mu = (mu + np.exp(log_variance / 2) * noise).astype(mu.dtype)
        return self.decode(mu, labels=labels), mu

    def sample(self, count: int, seed: int = 0, *, labels: np.ndarray | None = None) -> np.ndarray:
        """New images (count, H, W, C) decoded from draws of the prior N(0, I): the means of the pixels.

        Equal seeds give equal images.

        Raises:
            DataError: count is not a whole number >= 1, or a conditional model has no labels.
        """
        shape = check_count(count), self.latent_space_dim
        return self.decode(generator(seed, "sample").standard_normal(shape), labels=labels)


def from_config(
    config: dict[str, Any], arrays: dict[str, np.ndarray] | None = None, cls: type[Autoencoder] | None = None
) -> Autoencoder:
    """A new model of the class and options that `config` records.

    Args:
        arrays: those in the file of the record. If they are too few for the model, it is refused before memory is
            allocated.
        cls: the class to make for a record of its kind.
    Raises:
        DataError: the record does not describe a model.
    """

    def tuples(value: Any) -> Any:
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    try:
        arguments = {name: tuples(value) for name, value in config.items()}
        kind = arguments.pop("kind")
        if kind == "vae":
            arguments = {"log_variance_bounds": None, "likelihood": "bernoulli", **arguments}  # as in earlier versions
        if cls is None or cls.kind != kind:
            cls = {"ae": Autoencoder, "vae": VAE}[kind]
        if arrays is not None:
            held, least = sum(x.size for x in arrays.values()), least_weights(arguments)
            if least > held:
                raise ValueError(f"it has at least {least} weights, but the file holds {held} numbers")
        return cls(**arguments)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, MemoryError) as error:
        raise DataError(f"model record: not a model of this version ({type(error).__name__}: {error})") from error


def load(folder: str | Path, cls: type[Autoencoder] | None = None) -> Autoencoder:
    """The Autoencoder or VAE that is saved in a folder, or a trained one that comes with the package.

        vae = autoencoders.load("vae16")  # one that comes with the package
        images = vae.sample(16, seed=1)  # (16, 28, 28, 1), from 0 to 1

    If there is a file or folder named `folder`, the model is read from there, even if a shipped model has that name:
    what you have trained is never replaced by something else. Otherwise `folder` is the name of a shipped model. Its
    files must have the SHA-256 that the package records; nothing is downloaded, and nothing in them is run.

    In a folder, the model is read from model.safetensors; if that is missing, from the original's parameters.pkl and
    weights.h5; if they are missing, from the newest valid checkpoint of an unfinished run, which a message then says.
    `folder` may also be the path of the file itself, or of a file of Keras 3 or PyTorch: see the README.

    Args:
        cls: the class to make for a record of its kind.
    Raises:
        DataError: the file is missing, damaged, or does not fit its own configuration.
    """
    path = source_of(as_folder(folder))
    arrays, record = read_saved(path)
    if "program" in record and "model" not in record:
        raise DataError(f"{path}: holds weights alone; make a model of these sizes and call its load_weights(path)")
    try:
        model = from_config(record.get("model", {}), arrays, cls)
        if {x.dtype.str for x in arrays.values() if x.dtype.kind == "f"} == {"<f8"}:
            model.to(dtype="float64")
        put_weights(model.network, arrays, record)
        at = record.get("progress", {"step": 1})  # models of older versions do not record their steps; more than 0
        steps = record.get("trained_steps", at.get("draws_after", 0) + at["step"])
        if type(steps) is not int or steps < 0:
            raise ValueError(f"trained_steps is {steps!r} but must be a whole number >= 0")
        model.trained_steps = steps
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: {error}") from error
    return model
