"""One rank of the contrastive task: the same global batch, cut over the ranks."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from intern_trainer.batch import Batch
from intern_trainer.config.schema import Config
from intern_trainer.ranks import Ranks
from intern_trainer.tasks import ContrastiveTask
from torch import Tensor, nn

GLOBAL_BATCH, WIDTH = 12, 16


class Features(NamedTuple):
    image_features: Tensor
    text_features: Tensor
    logit_scale: Tensor


class LinearTowers(nn.Module):
    """The least that has two towers and a temperature."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.image = nn.Parameter(torch.randn(8, WIDTH, generator=generator))
        self.text = nn.Parameter(torch.randn(6, WIDTH, generator=generator))
        self.scale = nn.Parameter(torch.tensor([2.5]))

    def forward(self, image: Tensor, text: Tensor) -> Features:
        normalize = nn.functional.normalize
        return Features(normalize(image @ self.image, dim=1), normalize(text @ self.text, dim=1), self.scale.exp())


def loss_and_gradients(ranks: Ranks, payload: Any) -> dict[str, Any]:
    """Mean loss over ranks, and gradients averaged over ranks as every data-parallel engine does."""
    generator = torch.Generator().manual_seed(1)
    image, text = torch.randn(GLOBAL_BATCH, 8, generator=generator), torch.randn(GLOBAL_BATCH, 6, generator=generator)
    rows = GLOBAL_BATCH // ranks.world_size
    mine = slice(ranks.rank * rows, (ranks.rank + 1) * rows)
    model = LinearTowers()
    batch = Batch({"image": image[mine], "text": text[mine]}, [str(i) for i in range(rows)])
    task = ContrastiveTask(Config(), ranks)
    loss, metrics = task.loss(task.forward(model, batch))
    loss.backward()
    results = {"loss": loss.detach(), "accuracy": metrics["batch_accuracy"]}
    results |= {name: p.grad for name, p in model.named_parameters()}
    for value in results.values():
        dist.all_reduce(value)
        value /= ranks.world_size
    return {name: value.tolist() for name, value in results.items()}
