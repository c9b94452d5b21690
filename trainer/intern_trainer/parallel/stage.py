"""The part of a model that one rank of a pipeline holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from intern_zoo.chain import Carry, Link, links, prune
from torch import nn

from intern_trainer.parallel.grid import Grid, make_grid
from intern_trainer.ranks import Ranks


@dataclass(frozen=True)
class Placement:
    """This rank's place, and how the chain is cut.

    Attributes:
        cut: links in each piece, in order; piece k is that of stage k modulo the number of stages. chunks: pieces a
            stage. text: where the text tower stands in the chain, "first" or "last". schedule: order of the passes.
    """

    grid: Grid
    cut: tuple[int, ...] = ()
    chunks: int = 1
    text: str = "last"
    schedule: str = "1f1b"


def alone(ranks: Ranks) -> Placement:
    """Without a pipeline."""
    return Placement(make_grid(ranks))


class StageModule(nn.Module):
    """Pieces of a chain by number; each runs its links one after another."""

    def __init__(self, pieces: Mapping[int, Sequence[Link]]) -> None:
        super().__init__()
        self.pieces: Any = nn.ModuleDict({str(number): nn.ModuleList(chain) for number, chain in pieces.items()})

    def forward(self, piece: int, carry: Carry, towers: Sequence[str] = ("image", "text")) -> Carry:
        """`towers`: those whose input is there; the others' links are passed over."""
        for link in self.pieces[str(piece)]:
            if link.tower in (*towers, "join"):
                carry = link(carry)
        return carry


def cut_out(model: Any, place: Placement) -> nn.Module:
    """What this rank runs of `model`: all of it, or its stage's pieces; the rest is then taken out of `model`, whose
    names stay.

    Raises:
        NoChainError: the model cannot be cut.
    """
    if place.grid.stages == 1:
        return model
    chain = links(model, place.text)
    own = own_pieces(chain, place.cut, place.grid.stage, place.grid.stages)
    prune(model, [link for piece in own.values() for link in piece])
    return StageModule(own)


def own_pieces(chain: Sequence[Link], cut: Sequence[int], stage: int, stages: int) -> dict[int, list[Link]]:
    """By number, the pieces of `stage` among those that `cut` makes of the chain."""
    ends = list(accumulate(cut))
    assert ends[-1] == len(chain), f"the cut is of {ends[-1]} links, the chain has {len(chain)}"
    return {
        number: list(chain[end - size : end])
        for number, (size, end) in enumerate(zip(cut, ends, strict=True))
        if number % stages == stage
    }
