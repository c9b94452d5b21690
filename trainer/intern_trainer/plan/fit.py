"""What fits, and what to take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from intern_trainer.config.phases import Span
from intern_trainer.config.pipeline import data_ranks
from intern_trainer.plan.estimate import Estimate, Estimator
from intern_trainer.plan.hardware import GIB, Cluster
from intern_trainer.plan.memory import RECOMPUTE
from intern_trainer.plan.settings import Settings

MOST_DEVICES = 4096


@dataclass(frozen=True)
class Fits:
    """Attributes:
    largest_micro: samples at once with the recipe's ZeRO stage and recompute mode; 0: none fits.
    smallest: devices that hold the recipe as it is, micro-batch and all; None: none up to `MOST_DEVICES`.
    """

    largest_micro: int
    smallest: int | None


def divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def fits(estimator: Estimator, span: Span, settings: Settings, recompute: str, cluster: Cluster) -> Fits:
    sizes = [
        micro
        for micro in _sizes(estimator, span, cluster)
        if _fit(estimator.estimate(span, settings, recompute, cluster, micro), cluster)
    ]
    micro = estimator.estimate(span, settings, recompute, cluster).batch.micro
    return Fits(max(sizes, default=0), _smallest(estimator, span, settings, recompute, cluster, micro))


def _smallest(
    estimator: Estimator, span: Span, settings: Settings, recompute: str, cluster: Cluster, micro: int
) -> int | None:
    devices = 1
    stages = estimator.config.parallel.pipeline
    while devices <= MOST_DEVICES:
        smaller = replace(cluster, devices=devices * stages)
        divides = span.global_batch % (devices * micro) == 0 and micro in _sizes(estimator, span, smaller)
        if divides and _fit(estimator.estimate(span, _on(settings, devices), recompute, smaller, micro), smaller):
            return smaller.devices
        devices *= 2
    return None


def _sizes(estimator: Estimator, span: Span, cluster: Cluster) -> list[int]:
    """Micro-batches that divide a rank's share; of an interleaved pipeline, in groups of as many as it has stages."""
    config = estimator.config
    share, stages = span.global_batch // data_ranks(config, cluster.devices), config.parallel.pipeline
    grouped = stages if config.parallel.schedule == "interleaved" else 1
    return [micro for micro in divisors(share) if share // micro % grouped == 0]


def _on(settings: Settings, devices: int) -> Settings:
    return settings if devices % settings.hpz == 0 else replace(settings, hpz=1)


def _fit(estimate: Estimate, cluster: Cluster) -> bool:
    return estimate.memory.peak <= cluster.budget


def best(estimator: Estimator, span: Span, settings: Settings, cluster: Cluster) -> Estimate | None:
    """The fastest way that fits; of those within 1 % of it, the one with the simplest settings and most room."""
    found = [e for e in _ways(estimator, span, settings, cluster) if _fit(e, cluster)]
    if not found:
        return None
    fastest = min(e.pace.step for e in found)
    near = [e for e in found if e.pace.step <= 1.01 * fastest]
    return min(near, key=lambda e: (RECOMPUTE.index(e.recompute), e.settings.stage, e.settings.hpz, e.memory.peak))


def _ways(estimator: Estimator, span: Span, settings: Settings, cluster: Cluster) -> Iterator[Estimate]:
    first = 0 if settings.weight == 4 else 1  # half precision at ZeRO-0 runs as ZeRO-1
    stages = [replace(settings, stage=stage, hpz=1) for stage in range(first, 4)]
    ranks = data_ranks(estimator.config, cluster.devices)
    if ranks > cluster.per_node and ranks % cluster.per_node == 0:
        stages.append(replace(settings, stage=3, hpz=cluster.per_node))
    sizes = _sizes(estimator, span, cluster)
    for way in stages:
        for recompute in RECOMPUTE:
            for micro in sizes:
                yield estimator.estimate(span, way, recompute, cluster, micro)


def name_of(settings: Settings) -> str:
    return f"ZeRO-{settings.stage}" + (f" with hpZ-{settings.hpz}" if settings.hpz > 1 else "")


def advice(estimate: Estimate | None, days: float, samples: float, cluster: Cluster) -> str:
    """The recommendation and its reason, in a line."""
    if estimate is None:
        return (
            f"nothing fits into {cluster.device.memory / GIB:.0f} GiB: take more devices, smaller pictures, or "
            "offload (configs/ds/zero3_offload.json)"
        )
    batch, step = estimate.batch, estimate.pace
    again = "" if estimate.recompute == "none" else f", recompute {estimate.recompute}"
    return (
        f"{name_of(estimate.settings)}, micro-batch {batch.micro}{again}: "
        f"{estimate.memory.peak / GIB:.0f} of {cluster.device.memory / GIB:.0f} GiB, {days:.3g} days for "
        f"{samples / 1e9:.3g} B samples on {cluster.devices} {cluster.device.name}; the fastest that fits "
        f"({step.images_per_second:,.0f} images/s, {step.exposed / step.step:.0%} of a step waits for communication); "
        f"a loss is of {batch.of_a_loss:,} pairs"
    )
