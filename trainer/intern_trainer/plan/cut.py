"""Where a pipeline cuts a model: stages that take equally long, by the cost model.

A stage's time is that of a micro-batch, forward and backward, over its links; with several pieces a rank, over all of
them. Everything follows from the configuration, so that all ranks of a launch find the same cut by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise

from intern_zoo.chain import Link, links
from torch import nn

from intern_trainer.blocks import blocks_of
from intern_trainer.config.checks import BatchPlan, batch_plan
from intern_trainer.config.phases import Phases, Span
from intern_trainer.config.pipeline import data_ranks
from intern_trainer.config.schema import Config
from intern_trainer.errors import ConfigError
from intern_trainer.parallel.schedule import actions
from intern_trainer.plan import states
from intern_trainer.plan.balance import balance
from intern_trainer.plan.built import TYPES, HasModel, build_on_meta, inputs_of, with_full_captions
from intern_trainer.plan.hardware import GIB, Cluster
from intern_trainer.plan.links import LinkCost, chain_cost, measure_links
from intern_trainer.plan.measure import Cost
from intern_trainer.plan.memory import recomputed
from intern_trainer.plan.model import weigh
from intern_trainer.plan.settings import settings_of
from intern_trainer.plan.speed import seconds

MEASURED = 4
"""Samples of the micro-batch that is measured where the recipe names none; what it takes grows in proportion."""


@dataclass(frozen=True)
class Piece:
    """Links [begin, end) of the chain, of the ranks of `stage`."""

    stage: int
    begin: int
    end: int


@dataclass(frozen=True)
class Cut:
    """Attributes:
    pieces: links in each, in order. text: where the text tower stands in the chain, "first" or "last".
    seconds: of each stage, for a micro-batch forward and backward. bytes: that each stage's rank keeps: its part of the
        training state, and activations of the micro-batches in flight.
    names: of the links.
    """

    pieces: list[int]
    text: str
    seconds: list[float]
    bytes: list[int]
    names: list[str]

    @property
    def stages(self) -> int:
        return len(self.seconds)

    @property
    def imbalance(self) -> float:
        """The busiest stage's time over the mean."""
        return max(self.seconds) * self.stages / sum(self.seconds)

    def placed(self) -> list[Piece]:
        return placed(self.pieces, self.stages)

    def table(self) -> str:
        """Stages, what they begin and end with, their time and memory; then the keys that set this cut."""
        rows = [("piece", "stage", "links", "from", "to", "ms of its stage", "GiB of its stage")]
        for number, piece in enumerate(self.placed()):
            spent, kept = self.seconds[piece.stage] * 1e3, self.bytes[piece.stage] / GIB
            ends = self.names[piece.begin], self.names[piece.end - 1]
            rows.append(
                (str(number), str(piece.stage), str(piece.end - piece.begin), *ends, f"{spent:.4g}", f"{kept:.3g}")
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        cut = ",".join(map(str, self.pieces))
        keys = f"parallel.text={self.text} parallel.cut=[{cut}]"
        return "\n".join([*lines, f"busiest over mean {self.imbalance:.3f}; {keys}"])


def placed(pieces: Sequence[int], stages: int) -> list[Piece]:
    """Pieces of so many links, dealt out to the stages in turn."""
    ends = [0, *accumulate(pieces)]
    return [Piece(number % stages, begin, end) for number, (begin, end) in enumerate(pairwise(ends))]


class Chain:
    """A recipe's model as a chain, measured: with its text tower last, from which the other order follows.

    Attributes:
        costs: of the links, text last. blocks: names of those that can be computed again.
    """

    def __init__(self, config: Config, task: HasModel, side: int, samples: int, shared_norms: bool) -> None:
        self.config, self.samples = config, samples
        self.model = build_on_meta(task, shared_norms)
        self._links = links(self.model)  # type: ignore[arg-type]
        self.blocks = {name for name, _ in blocks_of(self.model)}
        measured = links(build_on_meta(task, shared_norms))  # type: ignore[arg-type]
        for link in measured:
            with_full_captions(link, config)
        self.costs = measure_links(measured, inputs_of(config, task, side, samples), TYPES[config.train.precision])
        self._text = [i for i, cost in enumerate(self.costs) if cost.tower == "text"]
        self._image = [i for i, cost in enumerate(self.costs) if cost.tower == "image"]
        self.first_of_pictures = self.costs[self._image[0]].unit.name
        self._join = [i for i, cost in enumerate(self.costs) if cost.tower == "join"]

    def order(self, text: str) -> list[int]:
        """Links, by their place with the text last."""
        towers = (self._text, self._image) if text == "first" else (self._image, self._text)
        return [*towers[0], *towers[1], *self._join]

    def links(self, text: str) -> list[Link]:
        return [self._links[i] for i in self.order(text)]

    def ordered(self, text: str) -> list[LinkCost]:
        """What the first tower has made travels with the second's tensors."""
        if text == "last":
            return self.costs
        image, both = self.costs[self._image[-1]], self.costs[self._text[-1]]
        changed = {i: _travels(self.costs[i], -image.sent, -image.owed) for i in self._text}
        made = both.sent - image.sent, both.owed - image.owed
        changed |= {i: _travels(self.costs[i], *made) for i in self._image}
        return [changed.get(i, self.costs[i]) for i in self.order(text)]

    def again(self, recompute: str) -> frozenset[str]:
        """Links that are computed again."""
        return recomputed(self.cost_of_blocks, recompute)

    @cached_property
    def cost_of_blocks(self) -> Cost:
        return chain_cost([cost for cost in self.costs if cost.unit.name in self.blocks], self.samples)


def _travels(cost: LinkCost, sent: int, owed: int) -> LinkCost:
    return replace(cost, sent=cost.sent + sent, owed=cost.owed + owed)


def in_flight(config: Config, stage: int, micro_batches: int) -> list[int]:
    """Micro-batches of each chunk of `stage` whose activations are there at once, when they are most."""
    parallel = config.parallel
    if parallel.schedule == "gpipe":
        return [micro_batches]
    stages, chunks = parallel.pipeline, parallel.chunks
    enough = min(micro_batches, 4 * stages)  # from then on it repeats
    now, most = [0] * chunks, [0] * chunks
    for action in actions(parallel.schedule, stages, chunks, stage, enough):
        now[action.piece // stages] += 1 if action.forward else -1
        if sum(now) > sum(most):
            most = list(now)
    return most


def cut_of(config: Config, task: HasModel, cluster: Cluster, recompute: str = "none") -> Cut:
    """The cut that `config` asks for, or the best one, for the phase with the largest pictures.

    Args:
        cluster: all ranks of the run. Its device's ceilings weigh arithmetic against memory; a launch takes one of the
            table, the same on all ranks.

    Raises:
        ConfigError: the batch cannot be divided, or `parallel.cut` does not fit the model.
    """
    span = widest(Phases(config).spans)
    batch = batch_plan(config, data_ranks(config, cluster.devices), span)
    shared_norms = config.parallel.sync_batch_norm and batch.world_size > 1
    chain = Chain(config, task, span.image_size, measured_samples(span), shared_norms)
    return best_cut(chain, batch, cluster, recompute)


def widest(spans: Sequence[Span]) -> Span:
    """The phase whose pictures are largest."""
    return max(spans, key=lambda span: span.image_size)


def measured_samples(span: Span) -> int:
    """Of the micro-batch that a chain is measured on: the recipe's, if it names one. Small ones are busier with reading
    weights, which shifts the balance."""
    return span.micro_batch or MEASURED


def best_cut(chain: Chain, batch: BatchPlan, cluster: Cluster, recompute: str) -> Cut:
    """See `cut_of`."""
    wanted = chain.config.parallel.text
    found, errors = [], []
    for text in ("first", "last") if wanted == "auto" else (wanted,):
        try:
            found.append(_cut(chain, text, batch, cluster, recompute))
        except ConfigError as error:
            errors.append(error)
    if not found:
        raise errors[0]
    return min(found, key=lambda cut: (max(cut.seconds), max(cut.bytes)))


def _cut(chain: Chain, text: str, batch: BatchPlan, cluster: Cluster, recompute: str) -> Cut:
    config, costs, parts = chain.config, chain.ordered(text), chain.links(text)
    parallel, again = config.parallel, chain.again(recompute)
    spent = [link_seconds(cost, again, batch, cluster, config.train.precision) for cost in costs]
    weights, settings = weigh(chain.model, config), settings_of(config)
    of_a_weight = sum(states.resident(weights, settings, batch.world_size).values()) / weights.total
    state = [of_a_weight * sum(p.numel() for p in link.parameters()) for link in parts]
    kept = [_kept(cost, again) * batch.micro / chain.samples for cost in costs]
    flying = [in_flight(config, stage, batch.accumulation) for stage in range(parallel.pipeline)]
    if parallel.cut is not None:
        pieces = parallel.cut
        check_cut(pieces, parts, parallel.pipeline, parallel.chunks)
    else:
        balanced = balance(spent, state, kept, flying, allowed_places(parts))
        if balanced is None:
            raise ConfigError(
                f"parallel.pipeline {parallel.pipeline} x parallel.chunks {parallel.chunks} of a model of "
                f"{len(allowed_places(parts)) + 1} pieces at most",
                "every piece has a link of the model's chain or more, and those that share a parameter are in one",
                "fewer stages or chunks",
            )
        pieces = balanced
    loads, held = [0.0] * parallel.pipeline, [0.0] * parallel.pipeline
    for number, piece in enumerate(placed(pieces, parallel.pipeline)):
        of_piece = slice(piece.begin, piece.end)
        loads[piece.stage] += sum(spent[of_piece])
        held[piece.stage] += sum(state[of_piece])
        held[piece.stage] += flying[piece.stage][number // parallel.pipeline] * sum(kept[of_piece])
    names = [cost.unit.name or cost.tower for cost in costs]
    return Cut(pieces, text, loads, [round(size) for size in held], names)


def link_seconds(cost: LinkCost, again: frozenset[str], batch: BatchPlan, cluster: Cluster, precision: str) -> float:
    """Of a micro-batch of the recipe, forward and backward, with the forward pass of a cached loss."""
    passes = 1 + (batch.together > 1) + (cost.unit.name in again)
    return passes * seconds(cost.unit.forward, cluster, precision) + seconds(cost.unit.backward, cluster, precision)


def _kept(cost: LinkCost, again: frozenset[str]) -> int:
    return cost.unit.given if cost.unit.name in again else cost.unit.saved


def allowed_places(parts: Sequence[nn.Module]) -> list[int]:
    """Places before links where no parameter is needed on both sides."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for place, link in enumerate(parts):
        for parameter in link.parameters():
            first.setdefault(id(parameter), place)
            last[id(parameter)] = place
    torn = {place for key in first for place in range(first[key] + 1, last[key] + 1)}
    return [place for place in range(1, len(parts)) if place not in torn]


def check_cut(pieces: Sequence[int], parts: Sequence[Link], pipeline: int, chunks: int) -> None:
    """Whether `pieces` cut the chain `parts`.

    Raises:
        ConfigError: they are too many or too few, of another number of links, or part links that share a parameter.
    """
    remove = "or leave parallel.cut out: the cost model balances it"
    if len(pieces) != pipeline * chunks:
        raise ConfigError(
            f"parallel.cut has {len(pieces)} pieces for {pipeline} stage(s) of {chunks} chunk(s)",
            "there are parallel.pipeline x parallel.chunks pieces",
            f"{pipeline * chunks} numbers, {remove}",
        )
    if sum(pieces) != len(parts):
        raise ConfigError(
            f"parallel.cut is of {sum(pieces)} links, and the model's chain has {len(parts)}",
            "every link is in one piece",
            f"numbers whose sum is {len(parts)}, {remove}",
        )
    allowed = set(allowed_places(parts))
    for end in list(accumulate(pieces))[:-1]:
        if end not in allowed:
            raise ConfigError(
                f"parallel.cut cuts before {parts[end].unit or parts[end].tower}, inside of what shares a parameter",
                "a parameter lives in one stage",
                f"another place, {remove}",
            )
