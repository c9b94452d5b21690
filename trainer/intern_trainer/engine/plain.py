"""ZeRO-0 inside a pipeline: the bare module and optimizer, and gradients averaged over the stage's ranks by ourselves.

DeepSpeed's own ZeRO-0 takes no gradient from a later stage.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from intern_trainer.ranks import Ranks

BUCKET = 1 << 24
"""Elements that are averaged at once."""


class PlainStage:
    """Answers what `Engine` asks of a DeepSpeed engine."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks) -> None:
        self.module, self.optimizer, self._ranks = module, optimizer, ranks
        self.micro_steps = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def train(self) -> None:
        self.module.train()

    def eval(self) -> None:
        self.module.eval()

    def gradient_accumulation_steps(self) -> int:
        return 1

    def scale(self, loss: Tensor) -> Tensor:
        return loss

    def average_gradients(self) -> None:
        """Over the data-parallel ranks, a bucket at a time. Collective."""
        if self._ranks.world_size == 1:
            return
        for bucket in self._buckets():
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            dist.all_reduce(flat, group=self._ranks.group)
            flat /= self._ranks.world_size
            for gradient, mean in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(mean.view(gradient.shape))

    def step(self) -> None:
        self.optimizer.step()
        self.zero_grad()

    def zero_grad(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def destroy(self) -> None:
        pass

    def _buckets(self) -> Iterator[list[Tensor]]:
        """A parameter that no micro-batch used counts as one whose gradient is 0, as DeepSpeed has it."""
        bucket: list[Tensor] = []
        for parameter in (p for group in self.optimizer.param_groups for p in group["params"]):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            bucket.append(parameter.grad)
            if sum(gradient.numel() for gradient in bucket) >= BUCKET:
                yield bucket
                bucket = []
        if bucket:
            yield bucket
