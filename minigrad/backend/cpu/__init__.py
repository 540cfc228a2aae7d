"""The CPU kernel sets: numpy_kernels.py, and numba_kernels.py, which compiles the work between matrix products."""
