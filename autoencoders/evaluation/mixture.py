"""A Gaussian mixture that is fitted to latents.

A plain autoencoder generates images from it: its latents follow no known distribution, so decoded draws of N(0, I)
would not look like images. For a VAE it is a better prior: training brings the draws of q(z | x) of all images, taken
together, close to N(0, I), but not onto it. With the mixture in its place the images are likelier.

Source: Ghosh et al., From Variational to Deterministic Autoencoders, 2020 (ex-post density estimation).
"""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minigrad.random import generator
from minigrad.serialize import DataError, is_state_file, load_state, read_file, save_state

from ..conv_autoencoder import VAE, Autoencoder
from ..guards import check_count
from ..saved import folder_of, read_saved, source_of

MIXTURE_FILE = "mixture.safetensors"
NORMAL = "N(0, I)"
FARTHEST = 1e9  # from zero: no latent or variance is


@dataclass(frozen=True, eq=False, repr=False)
class Mixture:
    """p(z) = sum over k of weights[k] * N(z; means[k], covariances[k]).

    Shapes: weights (K,), means (K, Z), covariances (K, Z, Z)
    """

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    def __repr__(self) -> str:
        K, Z = self.means.shape
        return f"Mixture({K} component{'s' * (K != 1)}, {Z} dimension{'s' * (Z != 1)})"

    def __str__(self) -> str:
        return f"mixture of {len(self.weights)} Gaussian{'s' * (len(self.weights) != 1)}"

    def sample(self, count: int, seed: int = 0) -> np.ndarray:
        """Latents (count, Z) drawn from the mixture. Equal seeds give equal latents.

        Raises:
            DataError: count is not a whole number >= 1.
        """
        count, rng = check_count(count), generator(seed, "mixture")
        component = rng.choice(len(self.weights), size=count, p=self.weights / self.weights.sum())
        noise = rng.standard_normal((count, self.means.shape[1], 1))
        scale = np.linalg.cholesky(self.covariances)  # (K, Z, Z)
        return self.means[component] + (scale[component] @ noise)[..., 0]

    def log_density(self, z: np.ndarray) -> np.ndarray:
        """log p(z) of each row: (M, Z) -> (M,)."""
        scale = np.linalg.cholesky(self.covariances)
        log_det = 2 * np.log(np.diagonal(scale, axis1=1, axis2=2)).sum(axis=1)
        whitened = (((z - m) @ w.T) for m, w in zip(self.means, np.linalg.inv(scale), strict=True))  # K times (M, Z)
        squares = np.stack([(x**2).sum(axis=1) for x in whitened], axis=1)  # (M, K)
        with np.errstate(divide="ignore"):  # a weight may be 0
            logs = np.log(self.weights) - (squares + log_det + z.shape[1] * math.log(2 * math.pi)) / 2
        largest = logs.max(axis=1)
        return largest + np.log(np.exp(logs - largest[:, None]).sum(axis=1))


def fit_mixture(latents: np.ndarray, components: int = 50, seed: int = 0) -> Mixture:
    """The mixture of so many Gaussians with full covariances that expectation maximisation finds for latents (N, Z).

    Raises:
        DataError: there are fewer latents than components. ModuleNotFoundError: scikit-learn is not installed.
    """
    if not 1 <= components <= len(latents):
        raise DataError(f"mixture: {components} components cannot be fitted to {len(latents)} latents")
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "fitting a mixture needs scikit-learn, which is not installed; pip install -e '.[eval]'"
        ) from error
    found = GaussianMixture(components, covariance_type="full", random_state=seed % 2**32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # after 100 rounds what is still gained is little
        found.fit(np.asarray(latents, np.float64))
    return Mixture(found.weights_, found.means_, found.covariances_)


def prior_of(model: Autoencoder, mixture: Mixture | None) -> str | None:
    """What samples of a model come from; None for a plain autoencoder without a mixture, which has no samples."""
    return str(mixture) if mixture else NORMAL if isinstance(model, VAE) else None


def save_mixture(model: str | Path, mixture: Mixture, folder: str | Path | None = None) -> Path:
    """Write a mixture, and the SHA-256 of the model whose latents it was fitted to, into a folder.

    Args:
        model: the model's folder, or its file. folder: None: the model's.
    Raises:
        DataError: there is no model, or the file cannot be written.
    """
    source = source_of(model, lambda _: None)
    path = Path(folder or folder_of(source)) / MIXTURE_FILE
    save_state(path, vars(mixture), {"kind": "mixture", "fitted_to": _read(source)[0]})
    return path


def load_mixture(model: str | Path, folder: str | Path | None = None) -> Mixture | None:
    """The mixture in a folder; None if there is none, or one that was fitted to other weights than those of the model.

    Args:
        model: the model's folder, or its file. folder: None: the model's.
    Raises:
        DataError: there is no model, or the mixture is damaged, or no mixture of latents of the model.
    """
    source = source_of(model, lambda _: None)
    (digest, Z), folder = _read(source), Path(folder or folder_of(source))
    path = folder / MIXTURE_FILE
    if not os.path.lexists(path):
        return None
    try:
        arrays, record, _ = load_state(path, folder)
        if record.get("kind") != "mixture" or set(arrays) != set(Mixture.__dataclass_fields__):
            raise DataError(f"{path}: not a mixture")
        if record.get("fitted_to") != digest:
            return None
        if not _is_mixture(Z, **arrays):
            expected = f"weights (K,) whose sum is 1, means (K, {Z}) and positive definite covariances (K, {Z}, {Z})"
            raise DataError(f"{path}: expected {expected}, found others")
    except DataError as error:
        raise DataError(f"{error}; remove it, and fit another one if you need it") from error
    return Mixture(**arrays)


def _read(source: Path) -> tuple[str, int]:
    """(SHA-256 that identifies a model's weights, its latent dimensions) from the file of `source_of`."""
    Z = read_saved(source)[1]["model"]["latent_space_dim"]
    own = is_state_file(source)
    return load_state(source)[2] if own else hashlib.sha256(read_file(source)).hexdigest(), Z


def _is_mixture(Z: int, weights: np.ndarray, means: np.ndarray, covariances: np.ndarray) -> bool:
    K = weights.size
    if (weights.shape, means.shape, covariances.shape) != ((K,), (K, Z), (K, Z, Z)):
        return False
    if not all(x.dtype.kind == "f" and (abs(x) < FARTHEST).all() for x in (weights, means, covariances)):
        return False
    try:
        np.linalg.cholesky(covariances)
    except np.linalg.LinAlgError:
        return False
    return bool((weights >= 0).all()) and bool(abs(weights.sum() - 1) < 1e-6)
