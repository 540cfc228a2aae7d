"""The CUDA kernel set: kernels.py launches those of source/."""
