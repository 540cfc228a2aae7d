"""Convolutional autoencoders built on minigrad. Read conv_autoencoder.py, training.py, data.py."""

from .conv_autoencoder import VAE, Autoencoder, load
from .training import Callback, DivergedError, History, TrainingOptions

__all__ = ["VAE", "Autoencoder", "Callback", "DivergedError", "History", "TrainingOptions", "load"]
