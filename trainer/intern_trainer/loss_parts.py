"""The loss of several micro-batches, taken apart into what each of them must carry back; means over losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from intern_kernels.precision import at_least_fp32
from torch import Tensor

if TYPE_CHECKING:
    from intern_trainer.tasks.base import Outputs


class Means:
    """Of loss and metrics over the losses of a step."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, loss: Tensor, metrics: Mapping[str, Tensor]) -> None:
        self._count += 1
        for name, value in {"loss": loss.detach(), **metrics}.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def values(self) -> dict[str, Tensor]:
        return {name: total / self._count for name, total in self._sums.items()}


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
