"""Convolutional autoencoders built on minigrad. Read minimal.py, conv_autoencoder.py and training/trainer.py."""

from .conv_autoencoder import VAE, Autoencoder, load
from .export import export
from .training import Callback, DivergedError, History, TrainingOptions

__all__ = ["VAE", "Autoencoder", "Callback", "DivergedError", "History", "TrainingOptions", "export", "load"]
