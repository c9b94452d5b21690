"""Bytes on one rank at the two heights of a step: in the backward pass, and in the update."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from intern_trainer.plan import states
from intern_trainer.plan.measure import OUTSIDE, Cost
from intern_trainer.plan.model import Weights
from intern_trainer.plan.settings import Settings
from intern_trainer.plan.states import Bytes

RECOMPUTE = ("none", "selective", "full")
ON_HOST = {"fp32 masters", "moments", "average", "fp32 gradients"}
"""What goes to the host with the optimizer."""


@dataclass(frozen=True)
class Memory:
    """Attributes:
    resident: from the first update on. backward, update: besides, at these times. host: on the host instead.
    context: what is not PyTorch's.
    """

    resident: Bytes
    backward: Bytes
    update: Bytes
    host: Bytes
    context: int

    @property
    def parts(self) -> Bytes:
        """What is there at the higher of the two heights."""
        higher = max(self.backward, self.update, key=lambda held: sum(held.values()))
        return {**self.resident, **higher, "context": self.context}

    @property
    def peak(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Activations:
    """Bytes of one micro-batch: kept for the backward pass, and the most that it needs besides."""

    saved: int
    working: int


def recomputed(cost: Cost, mode: str) -> frozenset[str]:
    """Units that are computed again: all, or those that `parallel.recompute: selective` takes."""
    units = [unit for unit in cost.units if unit.name != OUTSIDE]
    if mode == "none":
        return frozenset()
    return frozenset(unit.name for unit in units if mode == "full" or unit.cheap)


def activations(cost: Cost, again: Collection[str], samples: int) -> Activations:
    """Of `samples` at once. A unit that is computed again keeps its input, and its inside for a moment in backward."""
    saved = sum(unit.given if unit.name in again else unit.saved for unit in cost.units)
    inside = max((unit.saved for unit in cost.units if unit.name in again), default=0)
    share = samples / cost.samples
    fixed = min(cost.working, cost.largest_gradient)
    return Activations(round(saved * share), round(fixed + (cost.working - fixed + inside) * share))


def memory(
    weights: Weights,
    settings: Settings,
    ranks: int,
    held: Activations,
    batch: int,
    loss: int,
    context: float,
    travelling: int = 0,
    keeps_whole: bool = False,
) -> Memory:
    """Args:
    held: of a micro-batch, or of all that are in flight. batch: bytes of its tensors. loss: see `loss_bytes`.
    context: of the device. travelling: bytes that are on their way to and from other stages.
    keeps_whole: see `states.in_backward`.
    """
    resident = states.resident(weights, settings, ranks)
    backward = states.in_backward(weights, settings, ranks, keeps_whole)
    backward |= {"activations": held.saved, "backward's own": held.working, "batch": batch, "loss": loss}
    backward |= {"between stages": travelling}
    update = states.in_update(weights, settings, ranks)
    host: Bytes = {}
    names = (ON_HOST if settings.offload_optimizer else set()) | ({"parameters"} if settings.offload_weights else set())
    for place in (resident, update):
        for name in names & place.keys():
            host[name] = place.pop(name)
    return Memory(_shown(resident), _shown(backward), _shown(update), host, round(context))


def _shown(held: Bytes) -> Bytes:
    return {name: size for name, size in held.items() if size}
