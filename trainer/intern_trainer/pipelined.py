"""`steps.accumulate` in a pipeline: the same losses of the same micro-batches, whose passes go from stage to stage.

A loss of one micro-batch is made and carried back where its last piece is. One of several micro-batches needs the
outputs of all of them before the first can go back: so all go forward once without graphs, the last stage makes the
loss and the gradients of the outputs, and then the schedule runs with each micro-batch's part of them (GradCache, as
without a pipeline; it holds no more activations than the schedule does by itself).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from intern_zoo.metanet.norm import statistics_kept
from torch import Tensor

from intern_trainer.batch import Batch
from intern_trainer.loss_parts import Means, gradients_of, joined, split, surrogate

if TYPE_CHECKING:
    from intern_trainer.engine import Engine
    from intern_trainer.parallel.pipeline import Pipeline
    from intern_trainer.parallel.transport import Carry
    from intern_trainer.tasks import Task
    from intern_trainer.tasks.base import Outputs

Finish = Callable[[int, "Outputs"], Tensor | None]
"""`finish(micro_batch, outputs)`: what the last piece's outputs become."""


def accumulate(
    task: Task, engine: Engine, pipeline: Pipeline, micro_batches: list[Batch], together: int, device: torch.device
) -> dict[str, Tensor]:
    """See `steps.accumulate`; every rank of the chain gets the means."""
    count, means = len(micro_batches), Means()

    def step(piece: int, micro: int, received: Carry, finish: Finish) -> Carry | Tensor | None:
        engine.micro_batch(micro)
        batch = micro_batches[micro].to(device)
        if piece < pipeline.last:
            return engine.piece(piece, task.inputs(batch), received)
        return finish(micro, task.forward(_LastPiece(engine, piece, received), batch))

    def loss_of_one(micro: int, outputs: Outputs) -> Tensor:
        loss, metrics = task.loss(outputs)
        means.add(loss, metrics)
        return loss / count

    if together == 1:
        with engine.gradients_of_a_step():
            pipeline.train(count, partial(step, finish=loss_of_one), engine.back_from)
        return _told(means, pipeline)

    parts: list[Outputs] = []
    pipeline.infer(count, partial(step, finish=lambda _, outputs: parts.append(outputs)))
    owed: list[Outputs] = []
    for first in range(0, len(parts), together):
        outputs = joined(parts[first : first + together], task.shared)
        loss, metrics = task.loss(outputs)
        rows = [len(batch) for batch in micro_batches[first : first + together]]
        owed += split(gradients_of(loss, outputs), rows, task.shared)
        means.add(loss, metrics)

    def part_of_several(micro: int, outputs: Outputs) -> Tensor:
        return surrogate(outputs, owed[micro]) * (together / count)

    with statistics_kept(), engine.gradients_of_a_step():  # they have seen these batches
        pipeline.train(count, partial(step, finish=part_of_several), engine.back_from)
    return _told(means, pipeline)


class _LastPiece:
    """Stands for the model where a task calls it."""

    def __init__(self, engine: Engine, piece: int, received: Carry) -> None:
        self.module = engine.module
        self._engine, self._piece, self._received = engine, piece, received

    def __call__(self, **inputs: Tensor) -> Any:
        return self.module.output(**self._engine.piece(self._piece, inputs, self._received))  # type: ignore[operator]


def _told(means: Means, pipeline: Pipeline) -> dict[str, Tensor]:
    """The last stage's means, on every rank of the chain."""
    pipe = pipeline.grid.pipe
    last, values = pipe.world_size - 1, means.values() if pipeline.grid.is_last else {}
    names = pipe.broadcast(list(values), last)
    numbers = torch.zeros(len(names), dtype=torch.float32, device=pipe.device)
    if values:
        numbers = torch.stack([values[name].float() for name in names])
    dist.broadcast(numbers, pipe.of_run(last), group=pipe.group)
    return dict(zip(names, numbers.unbind(), strict=True))
