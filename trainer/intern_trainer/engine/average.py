"""Exponential moving average of the fp32 masters, divided over the ranks as they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Average:
    """`average <- d * average + (1 - d) * master` after each applied step, with d = min(decay, (1 + n) / (10 + n))
    for the n-th update.

    The smaller decay at the start (as TensorFlow's ExponentialMovingAverage has it) lets the average forget the
    random initial weights.
    """

    def __init__(self, masters: Sequence[Tensor], decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.values = [master.detach().clone() for master in masters]

    @torch.no_grad()
    def update(self, masters: Sequence[Tensor]) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.values, [master.detach() for master in masters], 1 - decay)
        self.updates += 1

    @torch.no_grad()
    def restart(self, masters: Sequence[Tensor]) -> None:
        """Begin again at these weights."""
        self.updates = 0
        for value, master in zip(self.values, masters, strict=True):
            value.copy_(master)

    @torch.no_grad()
    def exchange(self, masters: Sequence[Tensor]) -> None:
        """Swap values with the masters; done twice, nothing has changed, to the bit."""
        for value, master in zip(self.values, masters, strict=True):
            kept = master.detach().clone()
            master.copy_(value)
            value.copy_(kept)
