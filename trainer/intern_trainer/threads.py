"""How many CPU threads this process takes."""

from __future__ import annotations

import os

import torch

from intern_trainer.config.schema import Config
from intern_trainer.ranks import local_ranks


def set_threads(config: Config) -> None:
    """`train.threads`, or on a machine without GPUs the cores divided by the ranks on it: more threads than cores,
    summed over ranks, make every one of them wait."""
    if config.train.threads or not torch.cuda.is_available():
        torch.set_num_threads(config.train.threads or cores_a_rank())


def cores_a_rank() -> int:
    """The cores that this process may use, divided by the ranks that share them."""
    return max(1, len(os.sched_getaffinity(0)) // local_ranks(with_srun=False))
