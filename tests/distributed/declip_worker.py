"""One rank of DeCLIP's task: the same global batches, cut over the ranks, in fp64."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from intern_trainer.batch import Batch
from intern_trainer.config.schema import Config
from intern_trainer.ranks import Ranks
from intern_trainer.tasks import build_task
from intern_zoo.declip import NOTHING, DeclipOutput
from intern_zoo.feature_queue import FeatureQueue
from torch import Tensor, nn

GLOBAL_BATCH, WIDTH, LENGTH, WORDS, QUEUE, STEPS = 8, 5, 6, 11, 20, 3
SHAPES = {"image": (7, WIDTH), "text": (4, WIDTH), "project": (WIDTH, 6), "predict": (6, 6), "words": (4, WORDS)}
FEATURES = ("image", "text", "project", "predict", "words", "scale")


def parameters() -> dict[str, Tensor]:
    """The weights of the least that has everything DeCLIP's loss is made of."""
    generator = torch.Generator().manual_seed(0)
    made = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}
    return {**made, "scale": torch.tensor([1.5], dtype=torch.float64)}


def global_batch(step: int) -> dict[str, Tensor]:
    """Pictures are vectors, texts [g, l, 4] are vectors of words. The last quarter of the texts has no masked word."""
    generator = torch.Generator().manual_seed(1 + step)
    batch = {
        "image": torch.randn(GLOBAL_BATCH, 7, generator=generator, dtype=torch.float64),
        "image2": torch.randn(GLOBAL_BATCH, 7, generator=generator, dtype=torch.float64),
        "text": torch.randn(GLOBAL_BATCH, LENGTH, 4, generator=generator, dtype=torch.float64),
        "text2": torch.randn(GLOBAL_BATCH, LENGTH, 4, generator=generator, dtype=torch.float64),
    }
    labels = torch.randint(0, WORDS, (GLOBAL_BATCH, LENGTH), generator=generator)
    hidden = torch.rand(GLOBAL_BATCH, LENGTH, generator=generator) < torch.linspace(0.8, 0.1, GLOBAL_BATCH)[:, None]
    hidden[-GLOBAL_BATCH // 4 :] = False
    return {**batch, "text_labels": labels.masked_fill(~hidden, NOTHING)}


class LinearViews(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterDict(parameters())
        self.heads = nn.Module()
        self.heads.queue = FeatureQueue(QUEUE, WIDTH, block=6).double()

    def forward(self, image: Tensor, image2: Tensor, text: Tensor, text2: Tensor, text_labels: Tensor) -> DeclipOutput:
        w, normalize = self.weights, nn.functional.normalize
        images = torch.cat([image, image2]) @ w["image"]
        texts = torch.cat([text, text2]).mean(dim=1) @ w["text"]
        projected = images @ w["project"]
        return DeclipOutput(
            *normalize(images, dim=1).chunk(2),
            *normalize(texts, dim=1).chunk(2),
            w["scale"].exp(),
            projected,
            projected @ w["predict"],
            text[text_labels != NOTHING] @ w["words"],
        )


def losses_and_gradients(ranks: Ranks, payload: list[dict[str, float]]) -> list[list[dict[str, Any]]]:
    """For each choice of weights, at each step: mean loss and terms over ranks, and the mean of the gradients, as every
    data-parallel engine takes it; the queue is the same on every rank."""
    return [_steps(ranks, weights) for weights in payload]


def _steps(ranks: Ranks, weights: dict[str, float]) -> list[dict[str, Any]]:
    settings = {"loss": {"kind": "declip", "block": 3, "declip": weights}, "train": {"global_batch": GLOBAL_BATCH}}
    task, model = build_task(Config.model_validate(settings), ranks), LinearViews()
    rows = GLOBAL_BATCH // ranks.world_size
    mine, steps = slice(ranks.rank * rows, (ranks.rank + 1) * rows), list[dict[str, Any]]()
    for step in range(STEPS):
        tensors = {name: tensor[mine] for name, tensor in global_batch(step).items()}
        loss, metrics = task.loss(task.forward(model, Batch(tensors, [""] * rows)))
        model.zero_grad()
        loss.backward()
        found = {"loss": loss.detach(), **{name: metrics[name] for name in ("clip", "nearest", "simsiam", "mlm")}}
        found |= {name: model.weights[name].grad.clone() for name in FEATURES}
        together = torch.cat([value.flatten() for value in found.values()])
        dist.all_reduce(together)
        means = (together / ranks.world_size).split([value.numel() for value in found.values()])
        step_found = {n: mean.view(v.shape).tolist() for (n, v), mean in zip(found.items(), means, strict=True)}
        steps.append({**step_found, "queue": _queue(model)})
    return steps


def _queue(model: LinearViews) -> list[list[float]]:
    """The oldest first."""
    queue, pushed = model.heads.queue, int(model.heads.queue.pushed)
    return queue.features.roll(-pushed, 0)[-min(pushed, QUEUE) :].tolist()
