"""One rank of the local phase: the same global batch, cut over the ranks; and probes, whose scenes are cut likewise."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from intern_trainer.config.schema import Config
from intern_trainer.evaluate.probes import Protocol, probe
from intern_trainer.ranks import Ranks
from intern_trainer.tasks import build_task

GLOBAL_BATCH = 6


class Trunk(torch.nn.Module):
    """Maps without parameters: the picture itself, at four sizes."""

    def forward_intermediates(self, x: torch.Tensor, **_: Any) -> list[torch.Tensor]:
        return [torch.nn.functional.avg_pool2d(x, 2**n) for n in range(2, 6)]


def loss_and_gradients(ranks: Ranks, payload: Any) -> dict[str, Any]:
    """Mean loss over ranks, and gradients of all rows as data-parallel training averages them."""
    generator = torch.Generator().manual_seed(1)

    def rows(*shape: int) -> torch.Tensor:
        return torch.randn(GLOBAL_BATCH, *shape, generator=generator, dtype=torch.float64)

    whole = {
        "image_features": torch.nn.functional.normalize(rows(4), dim=1),
        "text_features": torch.nn.functional.normalize(rows(4), dim=1),
        "points0": rows(2, 4, 3) * 0.5,
        "points1": rows(2, 4, 3) * 0.5 + 1,
    }
    share = GLOBAL_BATCH // ranks.world_size
    mine = slice(ranks.rank * share, (ranks.rank + 1) * share)
    outputs = {name: tensor[mine].clone().requires_grad_() for name, tensor in whole.items()}
    task = build_task(Config.model_validate({"task": "local", "local": {"covariance": 1.0}}), ranks)
    loss, metrics = task.loss({**outputs, "logit_scale": torch.tensor([5.0], dtype=torch.float64)})
    loss.backward()
    results = {"loss": loss.detach(), **{name: metrics[name] for name in ("invariance", "variance", "covariance")}}
    for name, tensor in outputs.items():
        results[name] = torch.zeros_like(whole[name])
        results[name][mine] = tensor.grad
    for value in results.values():
        dist.all_reduce(value)
        value /= ranks.world_size
    return {name: value.tolist() for name, value in results.items()}


def probes(ranks: Ranks, payload: Any) -> dict[str, dict[str, float]]:
    protocol = Protocol(32, train=10, test=7, steps=6, batch=5)
    return {name: probe(Trunk(), name, protocol, Config(), ranks) for name in ("segmentation", "detection")}
