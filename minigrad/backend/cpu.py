from .reference import Backend
import numpy as np
class CpuBackend(Backend):
    kernels="numpy"
    def __init__(self, threads): super().__init__(np)
