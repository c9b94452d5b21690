"""What every task answers: model, loss and metrics. The loop knows no more than this."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn

from intern_trainer.batch import Batch

Forward = Callable[..., Any]
"""The engine, or a bare model: called with keyword tensors, gives what the model's `forward` gives."""


class Task(Protocol):
    name: str

    def build_model(self) -> nn.Module:
        """The model with its fresh weights; frozen parameters have requires_grad False. With ZeRO-3 the ranks but
        the first call it on the meta device."""
        ...

    def loss(self, forward: Forward, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of this rank's micro-batch (0-dim; its mean over ranks is the loss of the step) and metrics (0-dim,
        detached; averaged alike).

        Calls `forward` exactly once, with the same modules on every rank, because ZeRO-3 gathers parameters module by
        module on all ranks together.
        """
        ...
