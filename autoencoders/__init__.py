"""Convolutional autoencoders built on minigrad."""
