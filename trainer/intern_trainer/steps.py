"""From the micro-batches of a step to gradients in the engine: a loss for each, or one for several together.

One loss of several micro-batches has the memory of a single one (GradCache; Gao et al., arXiv 2101.06983). The loss
needs no more than the outputs of the model, so: forward passes without graphs; the loss and its gradients with respect
to the outputs of all; each forward pass once more, with its graph and the same random draws, and those gradients
carried back through it. It costs a second forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from intern_kernels.precision import at_least_fp32
from intern_zoo.metanet.norm import statistics_kept
from torch import Tensor

from intern_trainer.batch import Batch

if TYPE_CHECKING:
    from intern_trainer.engine import Engine
    from intern_trainer.tasks import Task
    from intern_trainer.tasks.base import Outputs


def accumulate(
    task: Task, engine: Engine, micro_batches: list[Batch], together: int, device: torch.device
) -> dict[str, Tensor]:
    """Bring the gradients of all micro-batches of a step to the engine.

    Args:
        together: micro-batches that are of one loss; it divides their number.

    Returns:
        `loss` and the task's metrics, means over the losses of the step (0-dim, no gradient).
    """
    sums: dict[str, Tensor] = {}
    groups = [micro_batches[i : i + together] for i in range(0, len(micro_batches), together)]
    for group in groups:
        loss, metrics = (
            _plain(task, engine, group[0].to(device)) if together == 1 else _cached(task, engine, group, device)
        )
        for name, value in {"loss": loss.detach(), **metrics}.items():
            sums[name] = sums[name] + value if name in sums else value
    return {name: total / len(groups) for name, total in sums.items()}


def _plain(task: Task, engine: Engine, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    loss, metrics = task.loss(task.forward(engine, batch))
    engine.backward(loss)
    return loss, metrics


def _cached(task: Task, engine: Engine, batches: list[Batch], device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
    draws, parts = [], []
    with torch.no_grad():
        for batch in batches:
            draws.append(random_state(device))
            parts.append(task.forward(engine, batch.to(device)))
    outputs = joined(parts, task.shared)
    loss, metrics = task.loss(outputs)
    gradients = gradients_of(loss, outputs)
    afterwards, rows = random_state(device), [len(batch) for batch in batches]
    for batch, state, part in zip(batches, draws, split(gradients, rows, task.shared), strict=True):
        set_random_state(state, device)
        with statistics_kept():  # they have seen this batch
            again = task.forward(engine, batch.to(device))
            engine.backward(len(batches) * surrogate(again, part))  # the engine takes the mean over micro-batches
    set_random_state(afterwards, device)
    return loss, metrics


def joined(parts: Sequence[Outputs], shared: frozenset[str]) -> Outputs:
    """The outputs of several micro-batches as those of one, and as leaves of a new graph. In fp32 at least: their
    gradients are not scaled as fp16 needs it.
    """
    outputs = {}
    for name, first in parts[0].items():
        tensor = first if name in shared else torch.cat([part[name] for part in parts])
        if tensor.is_floating_point():
            tensor = at_least_fp32(tensor.detach()).requires_grad_()
        outputs[name] = tensor
    return outputs


def gradients_of(loss: Tensor, outputs: Outputs) -> Outputs:
    """By name, for those outputs that the loss depends on."""
    leaves = {name: tensor for name, tensor in outputs.items() if tensor.requires_grad}
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(leaves, found, strict=True) if gradient is not None}


def split(gradients: Outputs, rows: list[int], shared: frozenset[str]) -> list[Outputs]:
    """Each micro-batch's part: its rows, and an equal share of what all have in common."""
    pieces = {
        name: [gradient / len(rows)] * len(rows) if name in shared else list(gradient.split(rows))
        for name, gradient in gradients.items()
    }
    return [{name: piece[i] for name, piece in pieces.items()} for i in range(len(rows))]


def surrogate(outputs: Outputs, gradients: Outputs) -> Tensor:
    """A number whose gradient with respect to `outputs` is `gradients`."""
    terms = [
        (outputs[name].to(gradient.dtype) * gradient).sum()
        for name, gradient in gradients.items()
        if outputs[name].requires_grad
    ]
    return torch.stack(terms).sum()


def random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Of the generators that a model draws from: the CPU's and the device's."""
    own = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)
    return torch.get_rng_state(), own


def set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.get_device_module(device).set_rng_state(state[1], device)
