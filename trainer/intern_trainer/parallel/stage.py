"""The part of a model that one rank of a pipeline holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from intern_zoo.chain import Carry, Link
from torch import nn


class StageModule(nn.Module):
    """Pieces of a chain by number; each runs its links one after another."""

    def __init__(self, pieces: Mapping[int, Sequence[Link]]) -> None:
        super().__init__()
        self.pieces: Any = nn.ModuleDict({str(number): nn.ModuleList(links) for number, links in pieces.items()})

    def forward(self, piece: int, carry: Carry) -> Carry:
        for link in self.pieces[str(piece)]:
            carry = link(carry)
        return carry


def own_pieces(links: Sequence[Link], cut: Sequence[int], stage: int, stages: int) -> dict[int, list[Link]]:
    """Of the pieces that `cut` (links in each) makes of the chain, those of `stage`."""
    ends = list(accumulate(cut))
    assert ends[-1] == len(links), f"the cut is of {ends[-1]} links, the chain has {len(links)}"
    return {
        number: list(links[end - size : end])
        for number, (size, end) in enumerate(zip(cut, ends, strict=True))
        if number % stages == stage
    }
