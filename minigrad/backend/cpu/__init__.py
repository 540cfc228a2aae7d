"""The CPU kernel sets: numpy_kernels.py, and numba_kernels.py, whose convolution layers are compiled."""
