"""What the metrics of metrics.py say in words: which fault a model has, on which metrics that rests, what to change.

Each rule is a function of the metrics and returns None, or what is wrong, the metrics that say so, and what to change
if that differs from what helps most models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from ..training.advice import STEPS, remedies
from .mixture import NORMAL

Metrics = dict[str, Any]
Finding = dict[str, str]
Fault = tuple[str, ...] | None  # of a rule
Rule = Callable[[Metrics], Fault]

# A good VAE's samples vary about as much as its reconstructions: 0.92 times with 2 dimensions, 0.75 with 10 and 0.79
# with 32 (short trainings). The original program has 0.010 / 0.226 = 0.04, a VAE with beta 0.001 also 0.04. A VAE after
# a few hundred steps has 0.19 to 0.43: its samples are pale, but show different clothes.
DEAD_PRIOR, PALE_PRIOR = 0.15, 0.5
# Pixels that vary less do so by rounding only: the images are one image, and what they are encoded to one point.
ALIKE = 1e-6
# Reconstructions from two dimensions already vary 0.8 times as much as the images; 0.1 is next to nothing.
IGNORED_LATENT = 0.1
# exp(-17 / 2) = 2e-4 of the prior's width is 8 nats in one dimension, which tells 3,000 images apart by itself;
# exp(5 / 2) is 12 times as wide as the prior, where an idle dimension has exactly its width. The seed's: -77 and -88.
LOG_VARIANCE_RANGE = (-17.0, 5.0)
# Of z over the test set; the goal is mean within 0.1 and std from 0.9 to 1.1, and this is far outside.
AGGREGATE_MEAN, AGGREGATE_STD = 0.5, (0.67, 1.5)
# 0.01 is expected by construction; short trainings have 0.03 to 0.22, one with beta 0.001 has 0.70.
PRIOR_HOLES = 0.33
# From there on a verdict advises a mixture, which has about 0.01: of full trainings none has more than 0.05.
MANY_HOLES = 0.1
# Test error over training error: 1.01 to 1.02 with 6,000 images or more, 1.28 after 60 epochs of 400 images.
OVERFITTED = 1.25
# How much the mean samples of the classes differ, relative to the mean images: 0.61 to 1 in short trainings that work,
# 0.05 and 0.14 where the samples of all classes look alike.
IGNORED_CLASS = 0.25
ERRORS = 3  # standard errors of z that are no fault, because few test images give a rough mean and std
MORE_IMAGES = "more images, or flipped and shifted copies of them (--augment)"


def diagnose(metrics: Metrics) -> list[Finding]:
    """The findings, the worst first; none for a model without a known fault, or where the test images are all alike.
    Those of a model that is useless leave out lesser faults, because what helps against these is beside the point.

    Args:
        metrics: those of `metrics.METRICS`, None where not measured; `model`, the model's configuration; and where
            known, `training`: learning_rate, epochs and steps; `test_images`, how many there are; and `prior`, what
            samples come from, as `mixture.prior_of` says it.
    Returns:
        each {"finding": what is wrong, "why": the metrics it rests on, "option": what to change}.
    """
    return _apply(FATAL, metrics) or _apply(FAULTS, metrics)


def fatal(metrics: Metrics) -> list[Finding]:
    """Those of the findings that make a model useless. They need what `metrics.quick_metrics` measures."""
    return _apply(FATAL, {"kl": None, "active_units": None, "log_variance_per_dim": None, **metrics})  # if it is no VAE


def _apply(rules: Iterable[Rule], metrics: Metrics) -> list[Finding]:
    found: list[Finding] = []
    for rule in rules if metrics["image_std"] >= ALIKE else ():
        if fault := rule(metrics):
            finding, why, *option = fault
            option = option or [_remedy(metrics, rule in FATAL)]
            found.append({"finding": finding, "why": why, "option": option[0]})
    return found


def verdict(metrics: Metrics) -> str:
    """One sentence: whether the model works, and the findings or the metrics that say so. If a mixture would help its
    samples, that is added."""
    kind = "VAE" if metrics["model"]["kind"] == "vae" else "autoencoder"
    if metrics["image_std"] < ALIKE:
        return f"this {kind} cannot be judged: the test images are all alike"
    findings = [finding["finding"] for finding in diagnose(metrics)]
    if fatal(metrics):
        return f"this is not a working {kind}: {', '.join(findings)}"
    advice, holes = "", metrics["prior_holes"] or 0
    if holes > MANY_HOLES and metrics.get("prior") == NORMAL and not metrics["model"].get("classes"):
        fits = "`generate --mixture-components 50` fits a better prior"
        advice = f"; {holes:.0%} of the samples of {NORMAL} lie where no image does, but {fits}"
    if findings:
        return f"this {kind} works, but: {', '.join(findings)}{advice}"
    reasons = [f"mse {metrics['mse']:.4f}"]
    if metrics["pca_mse"] is not None:
        reasons[0] += f" (PCA {metrics['pca_mse']:.4f})"
    if metrics["train_mse"]:
        reasons.append(f"{metrics['mse'] / metrics['train_mse']:.2f} times that on training images")
    if kind == "VAE":
        reasons.append(f"{metrics['active_units']} of {metrics['model']['latent_space_dim']} units active")
        reasons.append(
            f"samples vary {_ratio(metrics, 'sample_std', 'reconstruction_std'):.2f} times as much as reconstructions"
        )
    return f"no fault found in this {kind}: {', '.join(reasons)}{advice}"


# ---- what makes a model useless ----


def posterior_collapse(metrics: Metrics) -> Fault:
    """No unit tells images apart."""
    if metrics["active_units"] != 0:
        return None
    why = f"kl is {metrics['kl']:.3g} nats, 0 of {metrics['model']['latent_space_dim']} units are active"
    return "posterior collapse: the latent says nothing about the image", why


def ignored_latent(metrics: Metrics) -> Fault:
    """The latent tells images apart, but the decoder does not listen."""
    varies = _ratio(metrics, "reconstruction_std", "image_std")
    if varies >= IGNORED_LATENT or posterior_collapse(metrics):
        return None
    why = f"reconstructions vary {varies:.3f} times as much as the images"
    if metrics["active_units"] is not None:
        why += f", although {metrics['active_units']} of {metrics['model']['latent_space_dim']} units are active"
    return "ignored latent: reconstructions are all alike", why


def no_better_than_the_mean(metrics: Metrics) -> Fault:
    """Reconstructions differ, but one and the same picture for every image would have smaller errors."""
    if metrics["mse"] < metrics["mean_mse"] or posterior_collapse(metrics) or ignored_latent(metrics):
        return None
    return (
        "reconstructions are no better than the mean image",
        f"mse is {metrics['mse']:.4f}; the mean of the training images gives {metrics['mean_mse']:.4f}",
    )


def dead_prior(metrics: Metrics) -> Fault:
    """Reconstructions differ, samples of the prior do not: the encoder does not use the region where the prior is."""
    if metrics["kl"] is None or posterior_collapse(metrics) or ignored_latent(metrics):
        return None
    varies = _ratio(metrics, "sample_std", "reconstruction_std")
    if varies >= DEAD_PRIOR:
        return None
    return (
        "dead prior: samples are all alike",
        f"pixels vary by {metrics['sample_std']:.3f} across samples, by {metrics['reconstruction_std']:.3f} across "
        f"reconstructions; kl is {metrics['kl']:.4g} nats; z has std {_numbers(metrics['aggregate_std'])}",
    )


def diverged_variance(metrics: Metrics) -> Fault:
    """q(z | x) is a point, or far wider than the prior."""
    values = metrics["log_variance_per_dim"]
    low, high = LOG_VARIANCE_RANGE
    if values is None or all(low <= value <= high for value in values):
        return None
    return (
        "diverged variance: q(z | x) is no distribution to sample from",
        f"mean log_variance {_numbers(values)}, outside {low:g} to {high:g}; kl is {metrics['kl']:.4g} nats",
    )


# ---- what makes it worse than it could be ----


def prior_mismatch(metrics: Metrics) -> Fault:
    """Images are encoded elsewhere than the prior lies, so that samples are worse than reconstructions."""
    mean, std, holes = (metrics[name] for name in ("aggregate_mean", "aggregate_std", "prior_holes"))
    if mean is None or dead_prior(metrics):
        return None
    (low, high), error = AGGREGATE_STD, ERRORS / math.sqrt(metrics.get("test_images", math.inf))  # of the mean
    share = error / math.sqrt(2)  # of the std
    varies = _ratio(metrics, "sample_std", "reconstruction_std")
    normal = metrics.get("prior", NORMAL) == NORMAL  # and no mixture, which follows the latents wherever they are
    places = []
    wide = max(std) > high * (1 + share) or max(map(abs, mean)) > AGGREGATE_MEAN + error
    if (normal and wide) or varies < PALE_PRIOR:
        places.append("many images are encoded where samples are seldom drawn")
    if (normal and min(std) < low * (1 - share)) or (holes or 0) > PRIOR_HOLES:
        places.append("samples are drawn where few images are encoded")
    if not places:
        return None
    whose = "prior's" if normal else "mixture's"
    empty = f"; {holes:.0%} of the {whose} samples lie where no image does" if (holes or 0) > PRIOR_HOLES else ""
    return (
        f"prior mismatch: {' and '.join(places)}",
        f"z has mean {_numbers(mean)} and std {_numbers(std)}; samples vary {varies:.2f} times as much as "
        f"reconstructions{empty}",
    )


def ignored_class(metrics: Metrics) -> Fault:
    """The samples of a conditional model do not depend on the class that is asked for."""
    if metrics["sample_class_std"] is None:
        return None
    differ = _ratio(metrics, "sample_class_std", "image_class_std")
    if differ >= IGNORED_CLASS:
        return None
    return (
        "ignored class: samples of all classes look alike",
        f"the mean samples of the classes differ {differ:.2f} times as much as the mean images",
    )


def over_regularised(metrics: Metrics) -> Fault:
    """The KL counts for more than in the ELBO, and a linear map keeps more of the image."""
    pca, model = metrics["pca_mse"], metrics["model"]
    weight = _kl_weight(metrics)
    if pca is None or weight <= 1 or metrics["mse"] <= pca:
        return None
    finding = "over-regularised: the KL term has too much weight, so reconstructions are blurred"
    why = f"mse is {metrics['mse']:.4f}, but PCA with as many dimensions has {pca:.4f}; beta {model['beta']:g}"
    if model["likelihood"] != "gaussian":
        return finding, why
    why += f" and pixel variance {model['variance']:g} weight the KL {weight:.3g} times"
    return finding, why, "a variance that is learned (--likelihood gaussian-learned)"


def blurred(metrics: Metrics) -> Fault:
    """Worse than a linear map to as many dimensions as are used."""
    key = "pca_mse" if metrics["active_units"] is None else "pca_mse_active"
    pca = metrics[key]
    if pca is None or metrics["mse"] <= pca:
        return None
    others = posterior_collapse, ignored_latent, no_better_than_the_mean, over_regularised, over_fitting
    if any(rule(metrics) for rule in others):
        return None
    used = metrics["active_units"] or metrics["model"]["latent_space_dim"]
    return (
        "blurred: a linear map reconstructs better",
        f"mse is {metrics['mse']:.4f}, but PCA with {used} component{'s' if used > 1 else ''} has {pca:.4f}",
    )


def over_fitting(metrics: Metrics) -> Fault:
    """Training images are reconstructed much better than others."""
    if not metrics["train_mse"] or metrics["mse"] / metrics["train_mse"] <= OVERFITTED:
        return None
    why = f"mse {metrics['mse']:.4f}, on training images {metrics['train_mse']:.4f}"
    if metrics["neg_elbo"] is not None and metrics["neg_elbo"] > metrics["train_neg_elbo"]:
        why += f"; -ELBO {metrics['neg_elbo']:.1f}, on training images {metrics['train_neg_elbo']:.1f}"
    return "over-fitting: training images are reconstructed much better than others", why, MORE_IMAGES


FATAL: tuple[Rule, ...] = (posterior_collapse, ignored_latent, no_better_than_the_mean, dead_prior, diverged_variance)
FAULTS: tuple[Rule, ...] = (prior_mismatch, ignored_class, over_regularised, blurred, over_fitting)


def _remedy(metrics: Metrics, fatal: bool = False) -> str:
    """What to change. A smaller learning rate helps a model that does not work in spite of a long training; more steps
    do not help one that works and over-fits."""
    if not fatal and len(fault := over_regularised(metrics) or ()) > 2:
        return fault[2]  # and no larger beta
    training = metrics.get("training", {})
    rate, epochs, steps = (training.get(name) for name in ("learning_rate", "epochs", "steps"))
    enough = not fatal and over_fitting(metrics) is not None
    steps = 0 if enough else steps or 0
    found = remedies(metrics["model"], rate, epochs or 0, steps, diverged=fatal and steps >= STEPS)
    longer = f"a longer training (--epochs{f' {2 * epochs}' if epochs else ''})"
    return ", ".join(found) or (MORE_IMAGES if enough else longer)


def _ratio(metrics: Metrics, part: str, whole: str) -> float:
    return metrics[part] / metrics[whole] if metrics[whole] else math.inf


def _kl_weight(metrics: Metrics) -> float:
    """How much the KL counts beside what the ELBO of the errors found would give it.

    A Gaussian with a fixed variance divides the squared error by it; the variance that fits is the error itself.
    """
    model = metrics["model"]
    if model["kind"] != "vae":
        return 0.0
    fixed = model["likelihood"] == "gaussian" and metrics["mse"]
    return model["beta"] * (model["variance"] / metrics["mse"] if fixed else 1.0)


def _numbers(values: list[float]) -> str:
    """One number as it is, several as their range."""
    low, high = min(values), max(values)
    return f"{low:.3g}" if len(values) == 1 else f"{low:.3g} to {high:.3g}"
