"""PyTorch's side on several processes: DistributedDataParallel over gloo, one process for each that mpirun starts.

Its BatchNorm takes the statistics of each process's own images, as is usual.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch.distributed as dist
from protocol import Arrays, Service, Spec, serve
from torch.nn.parallel import DistributedDataParallel
from torch_worker import TorchProgram

RANK, SIZE = int(os.environ["PMI_RANK"]), int(os.environ["PMI_SIZE"])  # of MPICH's mpirun


class ParallelProgram(TorchProgram):
    def __init__(
        self, spec: Spec, weights: Arrays, images: np.ndarray, noise: np.ndarray, options: dict[str, Any]
    ) -> None:
        super().__init__(spec, weights, images[RANK::SIZE].copy(), noise[RANK::SIZE].copy(), options)
        self.loss = DistributedDataParallel(self.model)


def requests() -> Iterator[str]:
    """The lines that the first process reads, in all of them."""
    while True:
        line = [sys.stdin.readline() if RANK == 0 else ""]
        dist.broadcast_object_list(line)
        if not line[0]:
            return
        yield line[0]


if __name__ == "__main__":
    dist.init_process_group("gloo", rank=RANK, world_size=SIZE)
    serve(Service(ParallelProgram), requests(), RANK == 0)
