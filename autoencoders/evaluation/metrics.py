"""How good a model is, in full: what `evaluate` measures on the test images.

Quantities in nats are per image. What scikit-learn and scikit-image compute comes from them (the extra `eval`);
without them those metrics are None and the rest is measured all the same.

Read next: diagnosis.py, what the metrics say in words.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Callable
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np

from minigrad.random import generator

from ..conv_autoencoder import BATCH, VAE, Autoencoder
from ..data import Dataset
from ..training import DivergedError
from ..training.divergence import TRY_AGAIN
from .bounds import (
    DRAWS,
    at_the_mean,
    bernoulli_entropy,
    binarised,
    bits_per_dim,
    distribution_of,
    draws_of,
    importance_weighted_nll,
    latents_of,
    neg_elbo,
    psnr,
    standard_error,
    to_unit_range,
)
from .diagnosis import fatal
from .features import INPUT_SHAPE, frechet_distance, load_classifier
from .mixture import NORMAL, Mixture

ACTIVE = 0.01  # variance of mu over the images above which a unit is active (Burda et al. 2015)
IW_IMAGES = 1_000  # of the importance-weighted NLL on a CPU; all on a GPU
PROBE_IMAGES, NEIGHBOUR_IMAGES, NEIGHBOURS = 10_000, 60_000, 5
HOLE_POINTS, FEWEST_HOLE_POINTS = 10_000, 100  # latents compared with each other; fewer say nothing about holes
FEW_DIMENSIONS, KEPT = 4, 0.75  # so few that keep less of the pixels' variance get a note
SSIM_SIDE = 11  # pixels that the Gaussian window is wide

# every figure in the order of the table: its unit and what it is
METRICS = {
    "mse": "per pixel, of the reconstruction from the mean latent",
    "mse_se": "per pixel, its standard error over images",
    "train_mse": "per pixel, the same on training images",
    "mean_mse": "per pixel, the mean of the training images instead of any reconstruction",
    "pca_mse": "per pixel, PCA with as many components as the latent has dimensions",
    "pca_mse_active": "per pixel, PCA with as many components as there are active units",
    "psnr": "dB",
    "ssim": "structural similarity, 1 for equal images",
    "bce": "nats per image, cross-entropy of the reconstruction from the mean latent",
    "data_entropy": "nats per image, the Bernoulli entropy of the images: no bce can be lower",
    "neg_elbo": "nats per image, reconstruction + kl",
    "neg_elbo_se": "nats per image, its Monte Carlo error",
    "neg_elbo_image_se": "nats per image, its standard error over images",
    "mixture_neg_elbo": "nats per image, neg_elbo with the mixture as the prior",
    "bits_per_dim": "bits per value of an image, neg_elbo; of 256 levels if the likelihood is Gaussian",
    "train_neg_elbo": "nats per image, on training images",
    "reconstruction": "nats per image",
    "kl": "nats per image",
    "kl_per_dim": "nats per image",
    "iw_nll": "nats per image, importance-weighted, binarised images",
    "iw_nll_se": "nats per image, its standard error over images",
    "mixture_nll": "nats per image, iw_nll with the mixture as the prior",
    "mixture_nll_se": "nats per image, its standard error over images",
    "active_units": "latent dimensions in which the means vary",
    "log_variance_per_dim": "mean log_variance of q(z | x)",
    "aggregate_mean": "of z over the test set; 0 in N(0, I)",
    "aggregate_std": "of z over the test set; 1 in N(0, I)",
    "aggregate_correlation": "largest between two dimensions of z; 0 in N(0, I)",
    "prior_holes": "share of samples of the prior where no image lies; 0.01 is ideal",
    "image_std": "of pixels across the test images",
    "reconstruction_std": "of pixels across their reconstructions",
    "sample_std": "of pixels across samples of the prior",
    "image_class_std": "of pixels across the mean test images of the classes",
    "sample_class_std": "of pixels across the mean samples of the classes",
    "probe_accuracy": "linear probe of the latents",
    "knn_accuracy": f"{NEIGHBOURS} nearest neighbours of the latents",
    "fd": "Fréchet distance of samples to test images, in our features (no FID)",
    "fd_floor": "the same of training images to test images",
}
FEWEST_IMAGES = 200  # of a Fréchet distance: with fewer, chance in its 64 features is larger than what it measures


def measure(
    model: Autoencoder,
    dataset: Dataset,
    *,
    seed: int = 0,
    iw_samples: int = 500,
    trained: np.ndarray | None = None,
    mixture: Mixture | None = None,
    progress: bool = True,
) -> tuple[dict[str, Any], list[str]]:
    """(all of METRICS, None where one does not apply; notes on those that are None or need a remark).

    Args:
        seed: of the latent noise, prior samples and what scikit-learn draws.
        iw_samples: importance samples an image; 0 leaves iw_nll out.
        trained: indices of the training images that the model was trained on; None: all.
        mixture: what samples are drawn from; without it those of a VAE are drawn from N(0, I), and a plain autoencoder
            has none. For a VAE it is also the prior of mixture_neg_elbo and mixture_nll.
        progress: show a bar (only on a terminal) while iw_nll is computed.
    Raises:
        DataError: the images do not fit the model. DivergedError: it gives numbers that are not finite.
    """
    images = model.check_images(dataset.test_images)
    train_images = model.check_images(dataset.train_images)
    labels, train_labels = dataset.test_labels, dataset.train_labels
    if trained is None:
        trained = np.arange(len(train_images))
    found, made = _quick(model, images, labels, train_images, seed, DRAWS, mixture)
    metrics: dict[str, Any] = dict.fromkeys(METRICS) | found
    notes: list[str] = []
    metrics["data_entropy"] = bernoulli_entropy(images)
    pairs = zip(images, made.reconstructed, strict=True)
    metrics["mse_se"] = standard_error(np.array([((to_unit_range(x) - y) ** 2).mean() for x, y in pairs]))
    chosen = trained[some(len(trained), len(images), seed, "seen")]
    seen, seen_labels = train_images[chosen], None if train_labels is None else train_labels[chosen]
    metrics["train_mse"] = at_the_mean(model, seen, latents_of(model, seen, seen_labels), seen_labels)[0]
    if isinstance(model, VAE) and made.z is not None:
        points = made.z[some(len(images), HOLE_POINTS, seed, "holes")]
        if len(points) >= FEWEST_HOLE_POINTS:
            prior = generator(seed, "prior").standard_normal(points.shape)
            metrics["prior_holes"] = prior_holes(points, mixture.sample(len(points), seed) if mixture else prior)
        else:
            notes.append(f"prior_holes needs at least {FEWEST_HOLE_POINTS} test images")
        metrics["aggregate_correlation"] = largest_correlation(made.z)
        metrics["train_neg_elbo"] = neg_elbo(model, seen, seed, draws=1, labels=seen_labels)["neg_elbo"]
    if made.samples is not None:
        if model.input_shape != INPUT_SHAPE:
            notes.append("fd is measured for images of 28 x 28 x 1 only")
        elif min(len(images), len(train_images)) < 2:
            notes.append("fd needs at least two test and two training images")
        else:
            classifier = load_classifier()
            features = classifier.features(images)
            floor = train_images[some(len(train_images), len(images), seed, "floor")]
            metrics["fd"] = frechet_distance(classifier.features(made.samples), features)
            metrics["fd_floor"] = frechet_distance(classifier.features(floor), features)
    if isinstance(model, VAE):
        if iw_samples and model.likelihood == "bernoulli":
            limit = IW_IMAGES if model.backend.on_host else None
            binary, given = binarised(images)[:limit], None if labels is None else labels[:limit]
            how: dict[str, Any] = {"labels": given, "mixture": mixture}
            bounds = importance_weighted_nll(model, binary, iw_samples, seed, progress, **how)
            for name, rows in zip(("iw_nll", "mixture_nll"), np.atleast_2d(bounds), strict=False):
                metrics |= {name: float(rows.mean()), f"{name}_se": standard_error(rows)}
            if len(binary) < len(images):
                notes.append(f"iw_nll is of the first {len(binary):,} test images")
            _check_finite(metrics)
        elif iw_samples:
            notes.append("iw_nll is measured for the Bernoulli likelihood only")
        if model.classes and labels is not None and made.samples is not None:
            metrics["image_class_std"] = class_std(images, labels)
            metrics["sample_class_std"] = class_std(made.samples, labels)
            notes.append("the model was told the class of every image and sample: its metrics are of p(x | class)")
    Z, lost = model.latent_space_dim, metrics["mse"] / max(metrics["mean_mse"], 1e-12)
    if Z <= FEW_DIMENSIONS and 1 - KEPT < lost < 1 and not fatal(metrics | {"model": model.config}):
        kept = f"{Z} latent dimension{'s keep' if Z > 1 else ' keeps'} {1 - lost:.0%}"
        notes.append(f"{kept} of the pixels' variance; --latent-dim 16 gives sharper pictures")
    notes += _library_metrics(model, dataset, images, train_images, made, metrics, seed)
    return metrics, notes


class _Made(NamedTuple):
    """What a model makes of test images: latents and reconstructions, draws z of q(z | x), and samples."""

    latents: np.ndarray
    reconstructed: np.ndarray
    z: np.ndarray | None
    samples: np.ndarray | None


def quick_metrics(
    model: Autoencoder,
    images: np.ndarray,
    seed: int = 0,
    *,
    labels: np.ndarray | None = None,
    train_images: np.ndarray | None = None,
) -> dict[str, Any]:
    """Those of METRICS that a training records of its test images, in seconds: the errors, the losses of a VAE with one
    draw, and all that tells whether the model works.

    train_images: of which mean_mse takes the mean; None: the images themselves.

    Raises:
        DataError: images or labels do not fit the model. DivergedError: it gives numbers that are not finite.
    """
    images = model.check_images(images)
    return _quick(model, images, labels, images if train_images is None else train_images, seed, draws=1)[0]


def _quick(
    model: Autoencoder,
    images: np.ndarray,
    labels: np.ndarray | None,
    train_images: np.ndarray,
    seed: int,
    draws: int,
    mixture: Mixture | None = None,
) -> tuple[dict[str, Any], _Made]:
    latents, z, samples = latents_of(model, images, labels), None, None
    mse, bce, reconstructed = at_the_mean(model, images, latents, labels)
    metrics: dict[str, Any] = {"mse": mse, "psnr": psnr(mse), "bce": bce, "mean_mse": mean_mse(train_images, images)}
    metrics |= {"image_std": pixel_std(images), "reconstruction_std": pixel_std(reconstructed)}
    if isinstance(model, VAE):
        mu, log_variance = distribution_of(model, images, labels)
        z = draws_of(model, images, labels, seed)
        metrics |= {
            **neg_elbo(model, images, seed, draws, labels=labels, mixture=mixture),
            "active_units": active_units(mu),
            "log_variance_per_dim": log_variance.mean(axis=0).tolist(),
            "aggregate_mean": z.mean(axis=0).tolist(),
            "aggregate_std": z.std(axis=0).tolist(),
        }
        metrics["bits_per_dim"] = bits_per_dim(model, metrics["neg_elbo"])
        samples = model.sample(len(images), seed, labels=labels)
    if mixture is not None:
        samples = model.decode(mixture.sample(len(images), seed))
    if samples is not None:
        metrics["sample_std"] = pixel_std(samples)
    _check_finite(metrics)
    return metrics, _Made(latents, reconstructed, z, samples)


def some(total: int, count: int, seed: int, what: str) -> np.ndarray:
    """Indices of so many of total things, all if there are no more, in order. Drawn at random: where images are sorted
    by class, the first ones are not of the same kind as all."""
    return np.sort(generator(seed, what).permutation(total)[:count])


def _check_finite(metrics: dict[str, Any]) -> None:
    """Raise DivergedError if a figure is not finite: latents, too, that no image is encoded to can be too large for the
    decoder, and such numbers have no place in a JSON file."""
    wrong = [name for name, value in metrics.items() if value is not None and not np.isfinite(value).all()]
    if wrong:
        raise DivergedError(f"the model diverged: {', '.join(wrong)} not finite; {TRY_AGAIN}")


def _library_metrics(
    model: Autoencoder,
    dataset: Dataset,
    images: np.ndarray,
    train_images: np.ndarray,
    made: _Made,
    metrics: dict[str, Any],
    seed: int,
) -> list[str]:
    """Set what scikit-image and scikit-learn compute; returns notes on what could not be."""
    notes, missing = [], []
    if min(model.input_shape[:2]) < SSIM_SIDE:
        notes.append(f"ssim needs images of at least {SSIM_SIDE} x {SSIM_SIDE} pixels")
    else:
        try:
            metrics["ssim"] = ssim(images, made.reconstructed)
        except ImportError:
            missing.append("ssim")
    try:
        errors = pca_errors(train_images, images, model.latent_space_dim, seed)
        metrics["pca_mse"] = errors[-1]
        if metrics["active_units"] is not None:
            metrics["pca_mse_active"] = errors[min(metrics["active_units"], len(errors) - 1)]
    except ImportError:
        missing += ["pca_mse", "pca_mse_active"]
    if dataset.train_labels is None or dataset.test_labels is None or len(np.unique(dataset.train_labels)) < 2:
        notes.append("probe_accuracy and knn_accuracy need labels of at least two classes")
    else:
        known = some(len(train_images), NEIGHBOUR_IMAGES, seed, "known")
        train_labels = dataset.train_labels[known]
        train_latents = latents_of(model, train_images[known], train_labels)
        try:
            metrics |= accuracies(train_latents, train_labels, made.latents, dataset.test_labels, seed)
        except ImportError:
            missing += ["probe_accuracy", "knn_accuracy"]
    if missing:
        notes.append(f'{", ".join(missing)} need the extra eval: pip install ".[eval]"')
    return notes


# ---- the latent space ----


def active_units(mu: np.ndarray) -> int:
    """How many latent dimensions tell images apart: those in which mu (N, Z) has a variance above ACTIVE.

    Source: Burda, Grosse and Salakhutdinov, Importance Weighted Autoencoders, 2015, section 5.2.
    """
    return int((mu.var(axis=0) > ACTIVE).sum())


def largest_correlation(z: np.ndarray) -> float | None:
    """The largest absolute correlation between two dimensions of z (N, Z); None where there are no two that vary."""
    z = z[:, z.std(axis=0) > 0]
    if z.shape[1] < 2 or len(z) < 2:
        return None
    correlation = np.corrcoef(z, rowvar=False)
    return float(np.abs(correlation - np.eye(len(correlation))).max())


def prior_holes(z: np.ndarray, prior: np.ndarray) -> float:
    """The share of prior samples in regions that no image is encoded to: those farther from the nearest z than 99 % of
    z are from their nearest other z. It is 0.01 if z is distributed as the prior, up to sampling.

    Shapes: z (N, Z), N >= 2, prior (M, Z).
    """
    limit = np.quantile(nearest(z, z, skip_self=True)[1], 0.99)
    return float((nearest(prior, z)[1] > limit).mean())


def nearest(
    points: np.ndarray, others: np.ndarray, *, skip_self: bool = False, batch: int = 500
) -> tuple[np.ndarray, np.ndarray]:
    """(index of the nearest of the others, distance to it) of each point, both (M,); a batch of others at a time.

    Shapes: points (M, ...), others (N, ...): latents, or images, whose pixels are taken in [0, 1].

    Args:
        skip_self: the others are the points, and none is the nearest to itself.
    """
    x = to_unit_range(points).reshape(len(points), -1)
    squares = (x**2).sum(axis=1)[:, None]
    best, least = np.zeros(len(x), int), np.full(len(x), np.inf)
    for start in range(0, len(others), batch):
        y = to_unit_range(others[start : start + batch]).reshape(-1, x.shape[1])
        distances = squares - 2 * x @ y.T + (y**2).sum(axis=1)  # (M, batch)
        if skip_self:
            distances[np.arange(start, start + len(y)), np.arange(len(y))] = np.inf
        found = distances.argmin(axis=1)
        value = distances[np.arange(len(x)), found]
        best, least = np.where(value < least, start + found, best), np.minimum(least, value)
    return best, np.sqrt(np.maximum(least, 0))


def accuracies(
    train_latents: np.ndarray, train_labels: np.ndarray, latents: np.ndarray, labels: np.ndarray, seed: int = 0
) -> dict[str, float]:
    """What the latents tell about the classes: test accuracy of a linear classifier and of the nearest neighbours.

    probe_accuracy: logistic regression on standardised latents of PROBE_IMAGES random training images.
    knn_accuracy: the majority of the NEIGHBOURS nearest training latents.

    Shapes: latents (N, Z), labels (N,).
    Raises:
        ImportError: scikit-learn is not installed.
    """
    from sklearn.neighbors import KNeighborsClassifier

    neighbours = KNeighborsClassifier(min(NEIGHBOURS, len(train_latents)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # slow convergence and many classes: the accuracy says what came of it
        neighbours.fit(train_latents, train_labels)
        probe = linear_probe(train_latents, train_labels, seed)
    return {
        "probe_accuracy": float(probe.score(latents.astype(np.float64), labels)),
        "knn_accuracy": float(neighbours.score(latents, labels)),
    }


def linear_probe(latents: np.ndarray, labels: np.ndarray, seed: int = 0) -> Any:
    """The classifier of scikit-learn whose accuracy is `probe_accuracy`."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    chosen = generator(seed, "probe").permutation(len(latents))[:PROBE_IMAGES]
    if len(np.unique(labels[chosen])) < 2:
        chosen = np.arange(len(latents))
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, random_state=seed % 2**32))
    return probe.fit(latents[chosen].astype(np.float64), labels[chosen])


# ---- pictures ----


def pixel_std(images: np.ndarray) -> float:
    """The standard deviation of a pixel in [0, 1] across images (N, H, W, C), averaged over pixels: 0 if all images are
    alike."""
    return float(np.sqrt(_squares(images, images) / len(images)).mean())


def class_std(images: np.ndarray, labels: np.ndarray) -> float:
    """The standard deviation of a pixel in [0, 1] across the means of the classes, averaged over pixels: 0 if the
    classes have the same mean image."""
    return pixel_std(np.stack([_mean(images[labels == label]) for label in np.unique(labels)]))


def mean_mse(train_images: np.ndarray, images: np.ndarray) -> float:
    """The mean squared error per pixel in [0, 1] of images (N, H, W, C) if each is taken for the mean of the training
    images."""
    return float(_squares(train_images, images).sum() / images.size)


def _squares(train_images: np.ndarray, images: np.ndarray) -> np.ndarray:
    """The sum (H, W, C) of (pixel - its mean over the training images)^2 over the images, of pixels in [0, 1]."""
    mean = _mean(train_images)
    batches = (to_unit_range(images[start : start + BATCH]) for start in range(0, len(images), BATCH))
    return np.sum([((batch - mean) ** 2).sum(axis=0) for batch in batches], axis=0)


def _mean(images: np.ndarray) -> np.ndarray:
    """The mean (H, W, C) of images, of pixels in [0, 1]."""
    return images.mean(axis=0, dtype=np.float64) / (255 if images.dtype == np.uint8 else 1)


def ssim(images: np.ndarray, others: np.ndarray) -> float:
    """The mean structural similarity of pairs of images (N, H, W, C) in [0, 1], with the paper's Gaussian window.

    Raises:
        ImportError: scikit-image is not installed.
    Source: Wang et al., Image quality assessment: from error visibility to structural similarity, 2004.
    """
    from skimage.metrics import structural_similarity

    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    similar: Callable[..., Any] = structural_similarity
    values = [
        similar(to_unit_range(a), b.astype(np.float64), data_range=1.0, channel_axis=-1, **window)
        for a, b in zip(images, others, strict=True)
    ]
    return float(np.mean(values))


def pca_errors(train_images: np.ndarray, images: np.ndarray, components: int, seed: int = 0) -> list[float]:
    """The mean squared error per pixel of images after projection on 0, 1, ... components of the training images.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    from sklearn.decomposition import PCA

    x, y = (
        (a.astype(np.float32) / (255 if a.dtype == np.uint8 else 1)).reshape(len(a), -1) for a in (train_images, images)
    )
    most = min(components, len(x) - 1, x.shape[1])  # N images vary in N - 1 directions; a further one would be chance
    axes = PCA(most, random_state=seed % 2**32).fit(x).components_ if most else x[:0]
    centred = y - x.mean(axis=0, dtype=np.float64)
    total = np.sum(centred**2)
    explained = np.sum((centred @ axes.T) ** 2, axis=0)  # the components are orthonormal
    errors = (total - np.concatenate([[0.0], np.cumsum(explained)])) / y.size
    return np.maximum(errors, 0).tolist()


# ---- what is shown ----


def meaning_of(name: str, metrics: dict[str, Any]) -> str:
    """The unit and meaning of a metric; `prior`, if it is given, says what samples come from."""
    prior = metrics.get("prior") or NORMAL
    return METRICS[name].replace("of the prior", f"of {'the ' * (prior != NORMAL)}{prior}")


def says_something(name: str, metrics: dict[str, Any]) -> bool:
    """Whether a metric was measured and says something about this `model` on so many `test_images`, where given."""
    if metrics.get(name) is None:
        return False
    if name in ("bce", "data_entropy"):  # which take grey values for probabilities
        return metrics.get("model", {}).get("likelihood", "bernoulli") == "bernoulli"
    return name not in ("fd", "fd_floor") or metrics.get("test_images", FEWEST_IMAGES) >= FEWEST_IMAGES


def table(metrics: dict[str, Any]) -> str:
    """What was measured and says something, of METRICS all or some, as lines of text for 80 columns."""
    rows = [(name, text, textwrap.wrap(meaning, 38)) for name, text, meaning in lines_of(metrics)]
    return "\n".join(f"  {name:<22}{text:<18}{f'{chr(10):<43}'.join(meaning)}" for name, text, meaning in rows)


def lines_of(metrics: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(name, value, unit and meaning) of all that was measured and says something; long lists as their range."""
    lines = []
    for name in METRICS:
        if not says_something(name, metrics):
            continue
        value = metrics[name]
        if not isinstance(value, list):
            text = f"{value:.5g}"
        elif len(value) <= 2:
            text = " ".join(f"{x:.3g}" for x in value)
        else:
            text = f"{min(value):.3g} to {max(value):.3g}"
        lines.append((name, text, meaning_of(name, metrics)))
    return lines


def library_versions() -> dict[str, str | None]:
    """The versions of the libraries of the extra `eval`; None: not installed."""
    found: dict[str, str | None] = {}
    for name in ("scikit-learn", "scikit-image", "scipy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found
