"""From the micro-batches of a step to gradients in the engine: a loss for each, or one for several together.

One loss of several micro-batches has the memory of a single one (GradCache; Gao et al., arXiv 2101.06983). The loss
needs no more than the outputs of the model, so: forward passes without graphs; the loss and its gradients with respect
to the outputs of all; each forward pass once more, with its graph and the same random draws, and those gradients
carried back through it. It costs a second forward pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from intern_zoo.metanet.norm import statistics_kept
from torch import Tensor

from intern_trainer import pipelined
from intern_trainer.batch import Batch
from intern_trainer.loss_parts import Means, gradients_of, joined, split, surrogate

if TYPE_CHECKING:
    from intern_trainer.engine import Engine
    from intern_trainer.tasks import Task


def accumulate(
    task: Task, engine: Engine, micro_batches: list[Batch], together: int, device: torch.device
) -> dict[str, Tensor]:
    """Bring the gradients of all micro-batches of a step to the engine.

    Args:
        together: micro-batches that are of one loss; it divides their number.

    Returns:
        `loss` and the task's metrics, means over the losses of the step (0-dim, no gradient).
    """
    if engine.pipeline is not None:
        return pipelined.accumulate(task, engine, engine.pipeline, micro_batches, together, device)
    means = Means()
    for first in range(0, len(micro_batches), together):
        group = micro_batches[first : first + together]
        loss, metrics = (
            _plain(task, engine, first, group[0].to(device))
            if together == 1
            else _cached(task, engine, first, group, device)
        )
        means.add(loss, metrics)
    return means.values()


def _plain(task: Task, engine: Engine, number: int, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    engine.micro_batch(number)
    loss, metrics = task.loss(task.forward(engine, batch))
    engine.backward(loss)
    return loss, metrics


def _cached(
    task: Task, engine: Engine, first: int, batches: list[Batch], device: torch.device
) -> tuple[Tensor, dict[str, Tensor]]:
    parts = []
    with torch.no_grad():
        for number, batch in enumerate(batches, first):
            engine.micro_batch(number)
            parts.append(task.forward(engine, batch.to(device)))
    outputs = joined(parts, task.shared)
    loss, metrics = task.loss(outputs)
    pieces = split(gradients_of(loss, outputs), [len(batch) for batch in batches], task.shared)
    for number, (batch, part) in enumerate(zip(batches, pieces, strict=True), first):
        engine.micro_batch(number)
        with statistics_kept():  # they have seen this batch
            again = task.forward(engine, batch.to(device))
            engine.backward(len(batches) * surrogate(again, part))  # the engine takes the mean over micro-batches
    return loss, metrics
