"""What the ranks send each other in one optimizer step, by collective.

Counted on gloo ranks, call by call, against these formulae (tests/distributed/test_plan.py). DeepSpeed 0.19.8's ZeRO-1
and 2 sum gradients by all-reduce over all ranks (`use_multi_rank_bucket_allreduce`), which moves twice what a
reduce-scatter would.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from intern_trainer.config.checks import BatchPlan
from intern_trainer.config.schema import Config
from intern_trainer.plan import states
from intern_trainer.plan.hardware import Cluster
from intern_trainer.plan.model import Weights
from intern_trainer.plan.settings import BYTES, Settings

FP32 = 4
LATENCY = 30e-6
"""Seconds of a small collective over nodes: 270 of a step's batch norms took 5 to 10 ms by the reference cost model."""
FACTORS = {"all_reduce": 2.0, "all_gather": 1.0, "reduce_scatter": 1.0, "send": 1.0, "to stages": 1.0}
"""Times the share (n - 1) / n of the full tensor that crosses each rank's wire in a ring of n (`send`, `to stages`: all
of it)."""


@dataclass(frozen=True)
class Collective:
    """Attributes:
    kind: of `FACTORS`. what: is sent. payload: bytes of the full tensors, all calls of a step together.
    calls: of a step, where they are small and many (1: large, in buckets). ranks: that take part; `to stages`, each
        rank sends to one that is so many ranks away.
    overlaps: whether it runs while the model computes.
    """

    kind: str
    what: str
    payload: int
    ranks: int
    overlaps: bool = True
    calls: int = 1

    @property
    def wire(self) -> float:
        """Bytes that each rank sends."""
        share = 1.0 if self.kind in ("send", "to stages") else (self.ranks - 1) / self.ranks
        return FACTORS[self.kind] * share * self.payload

    def seconds(self, cluster: Cluster) -> float:
        rate = cluster.between(self.ranks) if self.kind == "to stages" else cluster.bandwidth(self.ranks)
        return self.wire / rate + self.calls * LATENCY


def traffic(
    config: Config,
    weights: Weights,
    settings: Settings,
    batch: BatchPlan,
    recomputed_norms: Sequence[int] = (),
    recomputed_weights: int = 0,
    backward_gathers: float | None = None,
    loss: bool = True,
) -> list[Collective]:
    """Of one step of the run's batch, among the ranks that divide it.

    Args:
        recomputed_norms: channels of each batch norm in a block that is computed again. recomputed_weights: of those
            blocks. backward_gathers: see there. loss: whether it is made here.
    """
    if batch.world_size == 1:
        return []
    found = [
        *_state(config, weights, settings, batch, recomputed_weights, backward_gathers),
        *_norms(config, weights, batch, recomputed_norms),
    ]
    found += _loss(config, batch) if loss else ()
    return [collective for collective in found if collective.payload]


def _state(
    config: Config, weights: Weights, settings: Settings, batch: BatchPlan, recomputed: int, backward: float | None
) -> Iterator[Collective]:
    n, passes = batch.world_size, batch.accumulation
    reduced = passes if config.parallel.pipeline == 1 else 1  # a pipeline reduces its gradients once a step
    if settings.stage == 0:
        yield Collective("all_reduce", "gradients", FP32 * weights.trained, n, overlaps=False)
        return
    if settings.stage < 3:
        times = 1 if settings.stage == 1 else reduced
        yield Collective("all_reduce", "gradients", settings.weight * weights.trained * times, n, settings.two_buckets)
        updated = states.resident(weights, settings, n)["parameters"] - settings.weight * sum(weights.frozen)
        yield Collective("all_gather", "updated weights", updated, n, overlaps=False)
        return
    movable, kept = states.movable(weights, settings), states.kept_for_backward(weights, settings)
    if config.parallel.pipeline > 1 and (backward is not None or batch.together > 1):
        kept = 0  # no use is forecast: DeepSpeed lets go at once
    again = 1 if batch.together > 1 else 0  # the cached loss's first forward pass
    yield Collective("all_gather", "weights, forward", settings.weight * movable * passes * (1 + again), n)
    moved: float = (movable - kept) * passes if backward is None else weights.total * backward
    near = settings.hpz if settings.hpz > 1 else n
    yield Collective("all_gather", "weights, backward", settings.weight * round(moved), near)
    if kept == 0:  # else what is computed again is still whole when its backward pass follows
        yield Collective("all_gather", "weights, recompute", settings.weight * min(recomputed, movable) * passes, near)
    yield Collective("reduce_scatter", "gradients", settings.weight * weights.trained * reduced, n)
    yield Collective("all_gather", "small weights", settings.weight * states.persistent(weights, settings), n, False)


def _norms(config: Config, weights: Weights, batch: BatchPlan, again: Sequence[int]) -> Iterator[Collective]:
    """Sums, sums of squares and a count, forward, and once more where that is computed again; their gradients,
    backward."""
    if config.parallel.sync_batch_norm and weights.norm_widths:
        passes = batch.accumulation * (3 if batch.together > 1 else 2)
        widths = [*weights.norm_widths * passes, *tuple(again) * batch.accumulation]
        payload, calls = FP32 * sum(2 * width + 1 for width in widths), len(widths)
        yield Collective("all_reduce", "batch norms", payload, batch.world_size, overlaps=False, calls=calls)


def _loss(config: Config, batch: BatchPlan) -> Iterator[Collective]:
    n, losses = batch.world_size, batch.accumulation // batch.together
    width = FP32 if batch.together > 1 else BYTES[config.train.precision]
    features = batch.of_a_loss * config.model.embed_dim * losses
    if config.loss.kind == "siglip":
        hops = features // n * (n * (width + FP32) + FP32)
        yield Collective("send", "features on their round", hops, n, overlaps=False, calls=(n + 1) * losses)
        return
    views, neighbours = (2, 2) if config.loss.kind == "declip" else (1, 0)
    gathered = width * features * (views + neighbours)
    yield Collective("all_gather", "features", gathered, n, False, (views + neighbours) * losses)
    pairs = views * views
    gradients = 0 if "text" in config.model.freeze else width * features * views
    sums = 3 * FP32 * batch.of_a_loss * pairs * losses  # largest scores, sums, gradients of the sums
    yield Collective("all_reduce", "features' gradients", gradients + sums, n, False, 4 * pairs * losses)
