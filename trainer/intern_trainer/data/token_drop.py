"""Dropping tokens of captions at random: less work a caption, more captions a second (FLIP, arXiv 2212.00794)."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from intern_trainer.data.order import mix


@dataclass(frozen=True)
class TokenDrop:
    """Leaves out `share` of a caption's tokens, rounded down, drawn by its sample's seed; start and end stay, the rest
    moves up. Saves work where captions are packed (`model.text.pack`)."""

    share: float
    start_id: int | None
    end_id: int

    def __call__(self, text_bl: Tensor, seeds: list[int]) -> Tensor:
        """Token ids [b, l] to the same shape; behind the end stand ends."""
        shorter = torch.full_like(text_bl, self.end_id)
        for row, (ids, seed) in enumerate(zip(text_bl.tolist(), seeds, strict=True)):
            end = ids.index(self.end_id)
            first = 1 if ids[0] == self.start_id else 0
            count = end - first - int(self.share * (end - first))
            kept = sorted(random.Random(mix(seed, 6)).sample(range(first, end), count))
            shorter[row, : first + count] = text_bl[row, [*range(first), *kept]]
        return shorter
