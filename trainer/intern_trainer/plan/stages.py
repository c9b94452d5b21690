"""What each stage of a pipeline holds, sends and waits for. A run without one is a single stage that holds all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from intern_trainer.config.checks import BatchPlan
from intern_trainer.config.schema import Config
from intern_trainer.parallel.schedule import bubble
from intern_trainer.plan.cut import Chain, Cut, in_flight
from intern_trainer.plan.links import chain_cost
from intern_trainer.plan.measure import Cost
from intern_trainer.plan.memory import Activations, activations
from intern_trainer.plan.model import Weights, weigh
from intern_trainer.plan.speed import Pace
from intern_trainer.plan.traffic import Collective


@dataclass(frozen=True)
class Part:
    """Of the model, on the ranks of one stage.

    Attributes:
        costs: of its pieces in the order in which they run, by the picture's side; whole: of all of them.
        borders: bytes of a sample whose gradients its pieces owe to other stages, and that they hand on, by the
            picture's side.
        has_pictures, has_loss: whether pictures enter here, and the loss is made here.
    """

    stage: int
    weights: Weights
    costs: dict[int, list[Cost]]
    borders: dict[int, tuple[float, float]]
    has_pictures: bool = True
    has_loss: bool = True

    def whole(self, side: int) -> Cost:
        pieces = self.costs[side]
        units = [unit for piece in pieces for unit in piece.units]
        working = max(piece.working for piece in pieces)
        return Cost(pieces[0].samples, units, working, max(piece.largest_gradient for piece in pieces))

    def held(self, config: Config, side: int, again: frozenset[str], batch: BatchPlan) -> Activations:
        """Activations of all micro-batches in flight; the backward pass is of one."""
        flying = in_flight(config, self.stage, batch.accumulation) if config.parallel.pipeline > 1 else [1]
        kept = [activations(piece, again, batch.micro) for piece in self.costs[side]]
        saved = sum(count * piece.saved for count, piece in zip(flying, kept, strict=True))
        return Activations(saved, max(piece.working for piece in kept))

    def travelling(self, side: int, batch: BatchPlan) -> int:
        """A tensor and a gradient at each border."""
        return round(2 * sum(self.borders[side]) * batch.micro)

    def sends(self, config: Config, side: int, batch: BatchPlan) -> list[Collective]:
        """In a step: on to the next stage, twice for a cached loss; and gradients back."""
        if config.parallel.pipeline == 1:
            return []
        forwards = 1 + (batch.together > 1)
        owed, handed_on = self.borders[side]
        calls = config.parallel.chunks * batch.accumulation
        sizes = {"features to the next stage": forwards * handed_on, "their gradients": owed}
        return [
            Collective("to stages", what, round(size * batch.per_rank), batch.world_size, False, calls)
            for what, size in sizes.items()
            if size
        ]


def whole_part(weights: Weights, costs: dict[int, Cost]) -> Part:
    return Part(0, weights, {side: [cost] for side, cost in costs.items()}, dict.fromkeys(costs, (0.0, 0.0)))


def parts_of(cut: Cut, chains: dict[int, Chain]) -> list[Part]:
    """Of each stage, from the model's chains by the picture's side."""
    chain = next(iter(chains.values()))
    links, pieces, parts = chain.links(cut.text), cut.placed(), []
    for stage in range(cut.stages):
        own = [piece for piece in pieces if piece.stage == stage]
        modules = [link for piece in own for link in links[piece.begin : piece.end]]
        costs, borders = {}, {}
        for side, measured in chains.items():
            ordered = measured.ordered(cut.text)
            costs[side] = [chain_cost(ordered[piece.begin : piece.end], measured.samples) for piece in own]
            owed = sum(ordered[piece.begin - 1].owed for piece in own if piece.begin > 0)
            handed_on = sum(ordered[piece.end - 1].sent for piece in own if piece.end < len(links))
            borders[side] = owed / measured.samples, handed_on / measured.samples
        begins = {link.unit for link in modules}
        pictures = chain.first_of_pictures in begins
        parts.append(
            Part(stage, weigh(chain.model, chain.config, modules), costs, borders, pictures, own[-1].end == len(links))
        )
    return parts


def in_turn(paces: Sequence[Pace], config: Config, batch: BatchPlan) -> Pace:
    """The run's pace from those that its stages would have by themselves: all wait for the slowest, and while the
    pipeline fills and empties."""
    waiting = bubble(config.parallel.pipeline, config.parallel.chunks, batch.accumulation)
    slowest = max(paces, key=lambda pace: pace.compute)
    together = replace(
        slowest,
        compute=slowest.compute / (1 - waiting),
        update=max(pace.update for pace in paces),
        communication=max(pace.communication for pace in paces),
        exposed=max(pace.exposed for pace in paces),
        bubble=waiting,
    )
    return replace(together, mfu=slowest.mfu * slowest.step / together.step)


def bubble_line(config: Config, micro_batches: int) -> str:
    """How long the stages wait for each other, in words; and what to do where they cannot all be busy at once."""
    stages, chunks = config.parallel.pipeline, config.parallel.chunks
    line = (
        f"{micro_batches} micro-batch(es) of a step in {stages} stages by {config.parallel.schedule}: "
        f"{bubble(stages, chunks, micro_batches):.1%} of the computing time is filling and emptying the pipeline"
    )
    if micro_batches >= stages:
        return line
    return f"{line}; a smaller train.micro_batch, or fewer stages, leaves less"
