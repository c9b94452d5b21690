"""A recipe's model, weighed and measured once; then any number of ranks, ZeRO stage, micro-batch and recompute mode is
a matter of arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from intern_trainer.blocks import blocks_of
from intern_trainer.config.checks import BatchPlan, batch_plan
from intern_trainer.config.phases import Phases, Span
from intern_trainer.config.pipeline import data_ranks
from intern_trainer.config.schema import Config
from intern_trainer.observe.flops import count_flops
from intern_trainer.plan import states
from intern_trainer.plan.built import TYPES, HasModel, build_on_meta, inputs_of
from intern_trainer.plan.cut import MEASURED, Chain, Cut, best_cut, measured_samples, widest
from intern_trainer.plan.gathers import backward_gathers
from intern_trainer.plan.hardware import Cluster
from intern_trainer.plan.loss import loss_bytes
from intern_trainer.plan.measure import Cost, measure
from intern_trainer.plan.memory import RECOMPUTE, Memory, memory, recomputed
from intern_trainer.plan.model import Weights, weigh
from intern_trainer.plan.settings import BYTES, Settings
from intern_trainer.plan.speed import Pace, pace
from intern_trainer.plan.stages import Part, in_turn, parts_of, whole_part
from intern_trainer.plan.traffic import Collective, traffic


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
        self.chains: dict[int, Chain] = {}
        self._cuts: dict[str, Cut] = {}
        self._parts: dict[str, list[Part]] = {}
        if config.parallel.pipeline == 1:
            costs = {side: _measure(config, task, side, shared_norms) for side in sides}
            self._parts = {mode: [whole_part(self.weights, costs)] for mode in RECOMPUTE}
        else:
            self.chains = {
                span.image_size: Chain(config, task, span.image_size, measured_samples(span), shared_norms)
                for span in self.spans
            }

    def cut(self, recompute: str, cluster: Cluster) -> Cut:
        """Of a pipeline, balanced once, on the first cluster that is asked about."""
        if recompute not in self._cuts:
            span = widest(self.spans)
            batch = batch_plan(self.config, data_ranks(self.config, cluster.devices), span)
            self._cuts[recompute] = best_cut(self.chains[span.image_size], batch, cluster, recompute)
        return self._cuts[recompute]

    def parts(self, recompute: str, cluster: Cluster) -> list[Part]:
        """What each stage holds."""
        if recompute not in self._parts:
            self._parts[recompute] = parts_of(self.cut(recompute, cluster), self.chains)
        return self._parts[recompute]

    def estimate(
        self, span: Span, settings: Settings, recompute: str, cluster: Cluster, micro: int | None = None
    ) -> Estimate:
        """One phase of the run on all of the cluster's devices, by the stage that holds most; `micro` in place of the
        recipe's.

        Raises:
            ConfigError: the batch cannot be divided so.
        """
        found = self.estimates(span, settings, recompute, cluster, micro)
        return max(found, key=lambda estimate: estimate.memory.peak)

    def estimates(
        self, span: Span, settings: Settings, recompute: str, cluster: Cluster, micro: int | None = None
    ) -> list[Estimate]:
        """See `estimate`; of every stage. The pace is the whole pipeline's."""
        config = self.config
        batch = batch_plan(config, data_ranks(config, cluster.devices), span)
        if micro is not None:
            together = max(1, batch.micro * batch.together // micro) if config.train.cached_micro_batches else 1
            batch = BatchPlan(micro, batch.per_rank // micro, batch.world_size, together)
        parts = self.parts(recompute, cluster)
        found = [self._of(part, span.image_size, settings, recompute, cluster, batch) for part in parts]
        waited = in_turn([estimate.pace for estimate in found], config, batch)
        return [replace(estimate, pace=waited) for estimate in found]

    def _of(
        self, part: Part, side: int, settings: Settings, recompute: str, cluster: Cluster, batch: BatchPlan
    ) -> Estimate:
        """Of one stage, as if it ran by itself."""
        config, cost, weights = self.config, part.whole(side), part.weights
        again = self.chains[side].again(recompute) if self.chains else recomputed(cost, recompute)
        weights_again = sum(unit.parameters for unit in cost.units if unit.name in again)
        gathers = backward_gathers(config, part.stage, batch.accumulation)
        norms = [width for unit in cost.units if unit.name in again for width in unit.norm_widths]
        collectives = [
            *traffic(config, weights, settings, batch, norms, weights_again, gathers, part.has_loss),
            *part.sends(config, side, batch),
        ]
        held = memory(
            weights,
            settings,
            batch.world_size,
            part.held(config, side, again, batch),
            self.batch_bytes(side, batch.micro, part.has_pictures),
            loss_bytes(config, batch.micro * batch.together, batch.micro, batch.world_size) if part.has_loss else 0,
            cluster.device.context,
            part.travelling(side, batch),
            keeps_whole=gathers is not None and not again,
        )
        updated = states.updated(weights, settings, batch.world_size)
        speed = pace(
            cost, again, batch, collectives, settings, updated, self.flops[side], cluster, config.train.precision
        )
        return Estimate(settings, recompute, batch, held, speed, collectives)

    def batch_bytes(self, side: int, samples: int, pictures: bool = True) -> int:
        """Pictures in fp32 and in the precision of the run, and token ids, of all views."""
        picture = 3 * side * side * (4 + BYTES[self.config.train.precision]) if pictures else 0
        return samples * self.views[0] * picture + samples * self.views[1] * 8 * self.config.model.text.context_length

    @property
    def views(self) -> tuple[int, int]:
        """Pictures and captions of a sample."""
        two_pictures = self.config.loss.kind == "declip" or self.config.task == "local"
        return (2 if two_pictures else 1), (2 if self.config.loss.kind == "declip" else 1)


def _measure(config: Config, task: HasModel, side: int, shared_norms: bool) -> Cost:
    """The towers on all views of `MEASURED` samples. What only a loss adds (DeCLIP's heads, the local phase's) is taken
    as small."""
    model = build_on_meta(task, shared_norms)
    cost = measure(model, inputs_of(config, task, side, MEASURED), blocks_of(model), TYPES[config.train.precision])
    cost.samples = MEASURED
    return cost
