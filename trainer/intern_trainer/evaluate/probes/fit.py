"""Training of a probe's head: the same batches of scenes on any number of ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from intern_trainer.data.order import mix, permutation
from intern_trainer.evaluate.probes.features import SceneFeatures
from intern_trainer.ranks import Ranks


@dataclass(frozen=True)
class Protocol:
    """How a probe is made. Figures of two models compare only under the same one.

    Attributes:
        side: of the scenes, pixels.
        train, test: numbers of scenes. steps, batch, lr: of the head's training (AdamW, one cosine to zero).
        seed: of scenes, batches and the head's weights.
    """

    side: int
    train: int = 1024
    test: int = 384
    steps: int = 400
    batch: int = 32
    lr: float = 5e-3
    seed: int = 0


def fit(
    head: nn.Module,
    loss_b: Callable[[list[Tensor], list[int]], Tensor],
    features: SceneFeatures,
    protocol: Protocol,
    ranks: Ranks,
) -> None:
    """Minimise the mean over scenes of `loss_b`, in place. Collective.

    Args:
        head: with the same weights on every rank.
        loss_b: (maps, rows of `features`) -> the head's loss of each of these scenes.
    """
    head.train()
    parameters = list(head.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=protocol.lr, weight_decay=1e-3)
    row_of = {number: row for row, number in enumerate(features.numbers)}
    batch = min(protocol.batch, protocol.train)
    epoch_steps = protocol.train // batch
    for step in range(protocol.steps):
        order = permutation(protocol.train, mix(protocol.seed, step // epoch_steps))
        chosen = order[step % epoch_steps * batch :][:batch]
        rows = [row_of[number] for number in chosen.tolist() if number in row_of]
        loss = sum((parameter.sum() * 0 for parameter in parameters), torch.zeros((), device=ranks.device))
        if rows:
            loss = loss + loss_b(features.maps(rows, ranks.device), rows).sum() / batch
        gradients = torch.autograd.grad(loss, parameters)
        if ranks.world_size > 1:
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat, group=ranks.group)
            gradients = tuple(
                part.view_as(p) for part, p in zip(flat.split([p.numel() for p in parameters]), parameters, strict=True)
            )
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        for group in optimizer.param_groups:
            group["lr"] = protocol.lr * (1 + math.cos(math.pi * step / protocol.steps)) / 2
        optimizer.step()
    head.eval()
