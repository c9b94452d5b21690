"""What every task answers: model, forward pass, loss and metrics. The loop knows no more than this."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn

from intern_trainer.batch import Batch
from intern_trainer.data import Views

Forward = Callable[..., Any]
"""The engine, or a bare model: called with keyword tensors, gives what the model's `forward` gives."""

Outputs = dict[str, Tensor]
"""What a forward pass leaves behind for the loss, by name. Tensors are row-wise, [b, ...]: row i belongs to sample i of
the micro-batch; only those that `Task.shared` names are the same for every micro-batch of a step."""


class Task(Protocol):
    """A step is `forward` of a micro-batch, then `loss`. Both are apart, so that a loss can be of the rows of several
    forward passes: everything that it needs passes through `Outputs`. Those are held at once, so what can be summed up
    in a number a sample, such as the loss of its masked words, should be."""

    name: str
    shared: frozenset[str]
    """Names of outputs that do not belong to samples, such as a learned temperature [1]."""

    @property
    def views(self) -> Views:
        """What it wants of each sample: `build_train_data` makes it.

        Raises:
            ConfigError: something that the configuration names for it is not there.
        """
        ...

    def build_model(self) -> nn.Module:
        """The model with its fresh weights; frozen parameters have requires_grad False. With ZeRO-3 large
        weights are filled after it, so it does not compute with them."""
        ...

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """What the model is called with, by name. In a pipeline, pictures are only where they enter the model."""
        ...

    def forward(self, model: Forward, batch: Batch) -> Outputs:
        """What the loss needs of a micro-batch.

        Calls `model` exactly once, on `inputs`, with the same modules on every rank, because ZeRO-3 gathers parameters module by
        module on all ranks together. May be called twice with the same batch: it changes nothing but the model's own
        buffers.
        """
        ...

    def loss(self, outputs: Outputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the rows of this rank (0-dim; its mean over ranks is the loss of the step) and metrics (0-dim,
        detached; averaged alike).

        Collective: all ranks give equally many rows. Gradients reach the model through `outputs` alone. What a loss
        changes, such as a queue of features, it changes once a call.
        """
        ...
