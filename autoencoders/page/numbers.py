"""The numbers of the page: the four at the top, and all of them in groups, each rounded to its error."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from ..evaluation.metrics import meaning_of, says_something

Metrics = dict[str, Any]
GROUPS = {
    "Reconstruction": (
        "mse", "train_mse", "mean_mse", "pca_mse", "pca_mse_active", "psnr", "ssim", "bce", "data_entropy",
        "image_std", "reconstruction_std",
    ),
    "Latent space": (
        "active_units", "kl_per_dim", "log_variance_per_dim", "aggregate_mean", "aggregate_std",
        "aggregate_correlation", "prior_holes", "probe_accuracy", "knn_accuracy",
    ),
    "Samples": ("sample_std", "image_class_std", "sample_class_std", "fd", "fd_floor"),
    "Likelihood": ("neg_elbo", "neg_elbo_se", "bits_per_dim", "train_neg_elbo", "reconstruction", "kl",
                   "mixture_neg_elbo", "iw_nll", "mixture_nll"),
}  # fmt: skip
ERRORS = {
    "mse": "mse_se",
    "neg_elbo": "neg_elbo_image_se",
    "iw_nll": "iw_nll_se",
    "mixture_nll": "mixture_nll_se",
}  # of a metric, the standard error
DIGITS = {  # of a metric, the error of the one that it is compared with
    **dict.fromkeys(("train_mse", "mean_mse", "pca_mse", "pca_mse_active"), "mse_se"),
    **dict.fromkeys(("train_neg_elbo", "reconstruction", "kl", "mixture_neg_elbo"), "neg_elbo_image_se"),
}


class Headline(NamedTuple):
    """A number at the top: what it is, its value with error, its unit, and what to compare it with."""

    name: str
    value: str
    unit: str
    comparison: str


def rounded(value: float, error: float | None = None) -> str:
    """A number to the digits that its error leaves, and the error; without one to three significant digits.

    >>> rounded(274.2031, 2.66), rounded(0.033969, 0.00041)
    ('274.2 ± 2.7', '0.0340 ± 0.0004')
    """
    if not error or not math.isfinite(error):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    leading = math.floor(math.log10(error))
    digits = max(0, -leading + (error / 10.0**leading < 2.95))  # two digits of an error that begins with 1 or 2
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def error_of(name: str, metrics: Metrics) -> float | None:
    """The standard error of a metric over the test images, if it is known."""
    if name in ("probe_accuracy", "knn_accuracy") and metrics.get("test_images"):
        share = metrics[name]
        return math.sqrt(share * (1 - share) / metrics["test_images"])
    return metrics.get(ERRORS.get(name, ""))


def headlines(metrics: Metrics, chance: float | None) -> list[Headline]:
    """Four numbers that say how good the model is, or fewer where fewer were measured.

    chance: the share of the most frequent class, the accuracy of a guess.
    """
    m, found = metrics, []
    model = m["model"]

    def add(key: str, name: str, unit: str, comparison: str, scale: float = 1.0) -> None:
        if m.get(key) is not None:
            error = error_of(key, m)
            found.append(Headline(name, rounded(scale * m[key], error and scale * error), unit, comparison))

    versus = [f"PCA {m['pca_mse']:.2g}"] if m.get("pca_mse") is not None else []
    versus += [f"mean image {m['mean_mse']:.2g}"] if m.get("mean_mse") is not None else []
    add("mse", "Reconstruction error", "squared error per pixel", ", ".join(versus))
    elbo = rounded(m["train_neg_elbo"], m.get("neg_elbo_image_se")).split(" ±")[0] if m.get("train_neg_elbo") else ""
    add("neg_elbo", "Negative ELBO", "nats per image", f"training images {elbo}")
    if says_something("fd_floor", m):
        floor = rounded(m["fd_floor"])
        add("fd", "Distance of samples to test images", "FD in our own features", f"training images {floor}")
    elif m.get("sample_std") is not None and m.get("reconstruction_std"):
        name = "Variety of samples"
        share = m["sample_std"] / m["reconstruction_std"]
        found.append(Headline(name, f"{share:.2f}", "times that of reconstructions", "a good model: 0.75 to 1"))
    guess = "" if chance is None else f"guessing {100 * chance:.0f} %"
    add("knn_accuracy", "Class found from the latent", "%, 5 nearest neighbours", guess, 100)
    if m.get("active_units") is not None:
        Z = model["latent_space_dim"]
        kl = rounded(m["kl"])
        found.append(Headline("Latent dimensions in use", str(m["active_units"]), f"of {Z}", f"KL {kl} nats per image"))
    better = f"PCA {-10 * math.log10(m['pca_mse']):.1f} dB" if m.get("pca_mse") else ""
    add("psnr", "Signal to noise", "dB, peak", better)
    if m.get("train_mse") and m.get("mse"):
        ratio = f"{m['mse'] / m['train_mse']:.2f}"
        found.append(Headline("Test over training error", ratio, "times", "over-fitting: above 1.25"))
    return found[:4]


def groups(metrics: Metrics) -> dict[str, list[tuple[str, str, str]]]:
    """(name, value, unit and meaning) of all that was measured and says something, in groups."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    for group, names in GROUPS.items():
        for name in names:
            if not says_something(name, metrics):
                continue
            value = metrics[name]
            if isinstance(value, list):
                text = ", ".join(rounded(x) for x in value)
            else:
                error = metrics.get(DIGITS.get(name, "")) or error_of(name, metrics)
                text = str(value) if isinstance(value, int) else rounded(value, error)
                text = text.partition(" ±")[0] if name in DIGITS else text
            found.setdefault(group, []).append((name, text, meaning_of(name, metrics)))
    return found
