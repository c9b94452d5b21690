"""How a run's checkpoints will be written: beside training, or while it waits. The rule is the run's own."""

from __future__ import annotations

from dataclasses import dataclass

from intern_trainer.config.schema import Config
from intern_trainer.observe.memory import HostMemory
from intern_trainer.plan.estimate import Estimate
from intern_trainer.plan.hardware import Cluster
from intern_trainer.plan.model import Weights


@dataclass(frozen=True)
class Saves:
    """Attributes:
    state: bytes of a checkpoint. snapshot: of them on each rank, which a background save copies to host memory.
    host_free, host_total: bytes of a node's memory, and how many of them are left beside what the run keeps there.
    seconds: that writing takes. measured: whether they are. waits: seconds of them for which training waits.
    """

    state: int
    snapshot: int
    host_free: int
    host_total: int
    in_background: bool
    seconds: float
    measured: bool
    waits: float


def saves_of(
    config: Config, weights: Weights, estimate: Estimate, cluster: Cluster, seconds: float | None = None
) -> Saves:
    """Args:
    seconds: that a save was measured to take; None: from its bytes and the disk's speed.
    """
    settings, kept = estimate.settings, estimate.memory
    moments = 4 * (1 + settings.moments + settings.average)
    state = moments * weights.trained + settings.weight * sum(weights.frozen) + weights.buffer_bytes
    snapshot = -(-state // cluster.devices)
    on_host = sum(kept.host.values()) + (kept.peak if cluster.device.cores else 0)
    total = round(cluster.node_memory)
    host = HostMemory(total, max(0, total - on_host * cluster.ranks_of_a_node))
    choice = config.checkpoint.background
    beside = choice == "always" or (choice == "auto" and host.holds(snapshot * cluster.ranks_of_a_node))
    writing = state / (cluster.disk * cluster.nodes) if seconds is None else seconds
    waits = snapshot / cluster.to_host if beside else writing
    return Saves(state, snapshot, host.free, host.total, beside, writing, seconds is not None, waits)
