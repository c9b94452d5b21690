"""Seconds of a step, images a second and utilisation."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from intern_trainer.config.checks import BatchPlan
from intern_trainer.observe.mfu import utilisation
from intern_trainer.plan.hardware import Cluster
from intern_trainer.plan.measure import Cost, Operation
from intern_trainer.plan.settings import Settings
from intern_trainer.plan.traffic import Collective

HOST_LINK = 25e9
"""Bytes a second between a device and its host: PCIe 4 x16 in practice, 32 GB/s by its specification."""


@dataclass(frozen=True)
class Pace:
    """Seconds of one step. Attributes:
    compute: forward and backward, what is computed again included. update: of the optimizer.
    communication: all of it. exposed: the part that nothing hides. bubble: share of `compute` in which a stage waits
        for others while the pipeline fills and empties.
    """

    compute: float
    update: float
    communication: float
    exposed: float
    samples: int
    mfu: float
    bubble: float = 0.0

    @property
    def step(self) -> float:
        return self.compute + self.update + self.exposed

    @property
    def images_per_second(self) -> float:
        return self.samples / self.step


def seconds(operations: Iterable[Operation], cluster: Cluster, precision: str) -> float:
    """By the roofline: of each operation the longer of arithmetic and memory, over the assumed efficiency."""
    device = cluster.device
    rate, copies = device.product_rate(precision), device.copy_rate
    return sum(max(op.flops / rate, op.moved / copies) for op in operations) / cluster.efficiency


def pace(
    cost: Cost,
    again: Collection[str],
    batch: BatchPlan,
    collectives: Sequence[Collective],
    settings: Settings,
    part: int,
    flops: int,
    cluster: Cluster,
    precision: str,
) -> Pace:
    """Args:
    again: units that are computed again. part: parameters that a rank updates. flops: of a sample's forward pass.
    """
    forward = seconds((op for unit in cost.units for op in unit.forward), cluster, precision)
    repeated = seconds((op for unit in cost.units if unit.name in again for op in unit.forward), cluster, precision)
    passes = forward * (2 if batch.together > 1 else 1) + repeated + seconds(cost.backward, cluster, precision)
    compute = passes * batch.per_rank / cost.samples
    hidden = sum(c.seconds(cluster) for c in collectives if c.overlaps)
    open_ = sum(c.seconds(cluster) for c in collectives if not c.overlaps)
    exposed = open_ + max(0.0, hidden - cluster.overlap * compute)
    update = _update(settings, part, cluster)
    total = compute + update + exposed
    samples = batch.per_rank * batch.world_size
    rate = utilisation(flops, samples / total, cluster.devices, cluster.device.peak(precision))
    return Pace(compute, update, hidden + open_, exposed, samples, rate or 0.0)


def _update(settings: Settings, part: int, cluster: Cluster) -> float:
    """Gradients are read and brought to fp32, masters and moments read and written, weights and the average written."""
    moved = 2 * settings.gradient + 8 + 8 + 8 * settings.moments + settings.weight + (12 if settings.average else 0)
    if settings.offload_optimizer:
        return part * (moved + settings.gradient + settings.weight) / HOST_LINK
    return part * moved / cluster.device.copy_rate
