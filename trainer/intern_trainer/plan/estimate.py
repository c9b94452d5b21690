"""A recipe's model, weighed and measured once; then any number of ranks, ZeRO stage, micro-batch and recompute mode is
a matter of arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from intern_zoo.metanet.norm import BatchNorm
from torch import Tensor, nn

from intern_trainer.blocks import blocks_of
from intern_trainer.config.checks import BatchPlan, batch_plan
from intern_trainer.config.phases import Phases, Span
from intern_trainer.config.schema import Config
from intern_trainer.data import Views
from intern_trainer.observe.flops import count_flops
from intern_trainer.plan import states
from intern_trainer.plan.hardware import Cluster
from intern_trainer.plan.loss import loss_bytes
from intern_trainer.plan.measure import Cost, measure
from intern_trainer.plan.memory import Memory, activations, memory, recomputed
from intern_trainer.plan.model import Weights, weigh
from intern_trainer.plan.settings import BYTES, Settings
from intern_trainer.plan.speed import Pace, pace
from intern_trainer.plan.traffic import Collective, traffic

MEASURED = 4
"""Samples of the micro-batch that is measured; what it takes grows in proportion."""
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class HasModel(Protocol):
    """What a plan asks of a task."""

    @property
    def views(self) -> Views: ...
    def build_model(self) -> nn.Module: ...


@dataclass(frozen=True)
class Estimate:
    """One way of running one phase."""

    settings: Settings
    recompute: str
    batch: BatchPlan
    memory: Memory
    pace: Pace
    collectives: list[Collective]


class Estimator:
    """Args:
    config, task: what is to be run. shared_norms: whether batch norms share statistics over ranks, which keeps more for
        their backward passes.

    Attributes:
        weights: the model's. costs, flops: of a micro-batch, and of a sample's forward pass, by the picture's side.
    """

    def __init__(self, config: Config, task: HasModel, shared_norms: bool) -> None:
        self.config, self.spans = config, Phases(config).spans
        with torch.device("meta"):
            self.weights: Weights = weigh(task.build_model(), config)
        self.flops = count_flops(config, task)
        sides = sorted({span.image_size for span in self.spans})
        self.costs: dict[int, Cost] = {side: _measure(config, task, side, shared_norms) for side in sides}

    def estimate(
        self, span: Span, settings: Settings, recompute: str, cluster: Cluster, micro: int | None = None
    ) -> Estimate:
        """One phase of the run on all of the cluster's devices; `micro` in place of the recipe's.

        Raises:
            ConfigError: the batch cannot be divided so.
        """
        config, cost = self.config, self.costs[span.image_size]
        batch = batch_plan(config, cluster.devices, span)
        if micro is not None:
            together = max(1, batch.micro * batch.together // micro) if config.train.cached_micro_batches else 1
            batch = BatchPlan(micro, batch.per_rank // micro, batch.world_size, together)
        again = recomputed(cost, recompute)
        norms = [width for unit in cost.units if unit.name in again for width in unit.norm_widths]
        collectives = traffic(config, self.weights, settings, batch, norms)
        held = memory(
            self.weights,
            settings,
            batch.world_size,
            activations(cost, again, batch.micro),
            self.batch_bytes(span.image_size, batch.micro),
            loss_bytes(config, batch.micro * batch.together, batch.micro, batch.world_size),
            cluster.device.context,
        )
        part = states.updated(self.weights, settings, batch.world_size)
        speed = pace(
            cost, again, batch, collectives, settings, part, self.flops[span.image_size], cluster,
            config.train.precision,
        )  # fmt: skip
        return Estimate(settings, recompute, batch, held, speed, collectives)

    def batch_bytes(self, side: int, samples: int) -> int:
        """Pictures in fp32 and in the precision of the run, and token ids, of all views."""
        picture = 3 * side * side * (4 + BYTES[self.config.train.precision])
        return samples * self.views[0] * picture + samples * self.views[1] * 8 * self.config.model.text.context_length

    @property
    def views(self) -> tuple[int, int]:
        """Pictures and captions of a sample."""
        two_pictures = self.config.loss.kind == "declip" or self.config.task == "local"
        return (2 if two_pictures else 1), (2 if self.config.loss.kind == "declip" else 1)


def _measure(config: Config, task: HasModel, side: int, shared_norms: bool) -> Cost:
    """The towers on all views of `MEASURED` samples. Captions are taken as full, and what only a loss adds (DeCLIP's
    heads, the local phase's) as small."""
    with torch.device("meta"):
        model = task.build_model()
    for module in model.modules():
        if shared_norms and isinstance(module, BatchNorm):
            module.reduce_stats = torch.clone  # as a sum over ranks, it makes a new vector
    views, length = task.views, config.model.text.context_length

    def inputs() -> dict[str, Tensor]:
        pictures = torch.zeros(MEASURED * views.images, 3, side, side)
        return {"image": pictures, "text": torch.zeros(MEASURED * views.captions, length, dtype=torch.long)}

    cost = measure(model, inputs, blocks_of(model), TYPES[config.train.precision])
    cost.samples = MEASURED
    return cost
