"""The roofline: a float32 matrix product with all threads, by NumPy's BLAS or PyTorch's."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from protocol import peak_memory, serve, timed


class Product:
    def build(self, library: str, size: int, threads: int) -> dict[str, Any]:
        rng = np.random.default_rng(0)
        a, b = (rng.standard_normal((size, size), dtype=np.float32) for _ in range(2))
        if library == "torch":
            import torch

            torch.set_num_threads(threads)
            x, y = torch.from_numpy(a), torch.from_numpy(b)
            self.product = lambda: (x @ y)[0, 0]
            found, versions = torch.get_num_threads(), {"PyTorch": torch.__version__}
        else:
            self.product = lambda: (a @ b)[0, 0]
            found, versions = int(os.environ["OMP_NUM_THREADS"]), {"NumPy": np.__version__}
        return {"threads": found, "versions": versions, "remarks": {"size": size}, "memory": peak_memory()}

    def step(self, count: int, warm: int = 1, seconds: float = 0) -> dict[str, Any]:
        return timed(self.product, count, warm, seconds)


if __name__ == "__main__":
    serve(Product())
