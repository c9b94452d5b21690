"""One rank of the contrastive task: the same global batch, cut over the ranks."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from intern_trainer.batch import Batch
from intern_trainer.config.schema import Config
from intern_trainer.ranks import Ranks
from intern_trainer.tasks.contrastive import ContrastiveTask
from torch import Tensor, nn

GLOBAL_BATCH, WIDTH = 12, 16


class Features(NamedTuple):
    image_features: Tensor
    text_features: Tensor
    logit_scale: Tensor
    logit_bias: Tensor | None


class LinearTowers(nn.Module):
    """The least that has two towers, a temperature and a bias; in fp64."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.image = nn.Parameter(torch.randn(8, WIDTH, generator=generator, dtype=torch.float64))
        self.text = nn.Parameter(torch.randn(6, WIDTH, generator=generator, dtype=torch.float64))
        self.scale = nn.Parameter(torch.tensor([2.5], dtype=torch.float64))
        if kind == "siglip":
            self.bias = nn.Parameter(torch.tensor([-2.0], dtype=torch.float64))

    def forward(self, image: Tensor, text: Tensor) -> Features:
        normalize = nn.functional.normalize
        image_features, text_features = normalize(image @ self.image, dim=1), normalize(text @ self.text, dim=1)
        return Features(image_features, text_features, self.scale.exp(), getattr(self, "bias", None))


def whole_batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {"image": (GLOBAL_BATCH, 8), "text": (GLOBAL_BATCH, 6)}
    return {name: torch.randn(*shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


def losses_and_gradients(ranks: Ranks, payload: Any) -> dict[str, dict[str, Any]]:
    """By kind of loss: mean loss over ranks, and gradients averaged over ranks as every data-parallel engine does."""
    rows = GLOBAL_BATCH // ranks.world_size
    mine = {name: x[ranks.rank * rows : (ranks.rank + 1) * rows] for name, x in whole_batch().items()}
    found = {}
    for kind in ("clip", "siglip"):
        model = LinearTowers(kind)
        task = ContrastiveTask(Config.model_validate({"loss": {"kind": kind, "block": 5}}), ranks)
        loss, metrics = task.loss(task.forward(model, Batch(mine, [""] * rows)))
        loss.backward()
        results = {"loss": loss.detach(), "hits": (metrics["batch_accuracy"] * rows).round().double()}
        results |= {name: p.grad for name, p in model.named_parameters()}
        for value in results.values():
            dist.all_reduce(value)
            value /= ranks.world_size
        found[kind] = {name: value.tolist() for name, value in results.items()}
    return found
