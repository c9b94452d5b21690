"""Stochastic depth and dropout as functions of a place: seed, step, data-parallel rank, micro-batch and module.

So they do not depend on which rank holds a module, in which order micro-batches pass, or how often: a pipeline of any
depth draws what a single process draws, and a pass that is repeated (GradCache, recompute) draws again what it drew.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from intern_zoo.randomness import draw_points
from torch import nn


class Draws:
    """Seeds torch's generators before each of the model's `draw_points`, in training, once a place is given."""

    def __init__(self, model: nn.Module, seed: int, rank: int) -> None:
        """`rank`: among the data-parallel ranks."""
        self._seed, self._rank = seed, rank
        self._place: tuple[int, int] | None = None
        for name, module in draw_points(model):
            module.register_forward_pre_hook(self._hook(name))

    def at(self, step: int, micro_batch: int) -> None:
        """Forward passes from here on are of this micro-batch."""
        self._place = step, micro_batch

    def _hook(self, name: str) -> Any:
        def seed(module: nn.Module, inputs: Any) -> None:
            if module.training and self._place is not None:
                place = f"{self._seed}/{self._rank}/{self._place}/{name}".encode()
                torch.manual_seed(int.from_bytes(hashlib.blake2b(place, digest_size=8).digest(), "little") >> 1)

        return seed
