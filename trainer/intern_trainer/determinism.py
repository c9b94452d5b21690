"""Seeds, and deterministic algorithms where asked for."""

from __future__ import annotations

import os
import random

import numpy as np
import torch

from intern_trainer.config.schema import Config


def seed_all(seed: int) -> None:
    """Seed every generator of this process: Python's, numpy's, torch's on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_of_rank(config: Config, rank: int) -> int:
    """Seed of one rank's dropout and stochastic depth; different on each rank, and none is the seed that weights are
    made with.
    """
    return config.train.seed * 1_000_003 + 1 + rank


def set_deterministic(config: Config) -> None:
    """`train.deterministic`: only deterministic algorithms; an operation without one raises an error that names it."""
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS demands it; read when its handle is made
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(config.train.deterministic)
