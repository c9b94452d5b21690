"""In which order a pipeline's ranks work on the micro-batches of a step.

The model is cut into `stages * chunks` pieces; rank r of the pipeline holds pieces r, r + stages, r + 2 stages, ...
Within a piece forward passes go by the number of the micro-batch, and so do backward passes; so each neighbour knows
what comes next, and nothing but tensors has to be sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

GPIPE, ONE_F_ONE_B, INTERLEAVED = "gpipe", "1f1b", "interleaved"


class Action(NamedTuple):
    """The forward or the backward pass of a micro-batch through a piece of the model."""

    forward: bool
    piece: int
    micro: int


def actions(kind: str, stages: int, chunks: int, stage: int, micro_batches: int) -> list[Action]:
    """What the rank of `stage` does, in order.

    `gpipe` (arXiv 1811.06965): all forward passes, then all backward passes. `1f1b` (PipeDream-Flush, arXiv
    2006.09503): as few forward passes ahead as keep all stages busy, so at most `stages` micro-batches are held.
    `interleaved` (arXiv 2104.04473): 1f1b of several pieces a rank, whose bubble is `chunks` times smaller; the
    number of micro-batches is a multiple of `stages`.
    """
    total = micro_batches * chunks
    forwards = [Action(True, *_place(i, stages, chunks, stage)) for i in range(total)]
    backwards = [Action(False, *_place(i, stages, chunks, stage, back=True)) for i in range(total)]
    if kind == GPIPE:
        ahead = total
    elif chunks == 1:
        ahead = stages - 1 - stage
    else:
        ahead = 2 * (stages - 1 - stage) + (chunks - 1) * stages
    return _one_each(forwards, backwards, min(ahead, total))


def forward_only(stages: int, chunks: int, stage: int, micro_batches: int) -> list[Action]:
    """As `actions` has the forward passes; any number of micro-batches."""
    return [
        Action(True, chunk * stages + stage, micro)
        for first in range(0, micro_batches, stages)
        for chunk in range(chunks)
        for micro in range(first, min(first + stages, micro_batches))
    ]


def _place(index: int, stages: int, chunks: int, stage: int, back: bool = False) -> tuple[int, int]:
    """Piece and micro-batch of the rank's pass number `index`: `stages` micro-batches through one piece, the same ones
    through its next piece, and so on, then the next `stages` micro-batches.
    """
    if chunks == 1:
        return stage, index
    group, within = divmod(index, stages * chunks)
    chunk, micro = divmod(within, stages)
    chunk = chunks - 1 - chunk if back else chunk
    return chunk * stages + stage, group * stages + micro


def _one_each(forwards: Sequence[Action], backwards: Sequence[Action], ahead: int) -> list[Action]:
    """`ahead` forward passes, then one forward and one backward by turns, then the rest of the backward passes."""
    steady = [action for pair in zip(forwards[ahead:], backwards, strict=False) for action in pair]
    return [*forwards[:ahead], *steady, *backwards[len(forwards) - ahead :]]


def span(kind: str, stages: int, chunks: int, micro_batches: int, seconds: Callable[[Action], float]) -> float:
    """How long a step lasts where a pass takes `seconds` and sending nothing.

    Raises:
        RuntimeError: the ranks would wait for each other for ever.
    """
    waiting = [actions(kind, stages, chunks, stage, micro_batches) for stage in range(stages)]
    last, done = stages * chunks - 1, dict[Action, float]()
    clocks, at = [0.0] * stages, [0] * stages
    while any(at[stage] < len(waiting[stage]) for stage in range(stages)):
        moved = False
        for stage in range(stages):
            while at[stage] < len(waiting[stage]):
                action = waiting[stage][at[stage]]
                before = _before(action, last)
                if before is not None and before not in done:
                    break
                begin = max(clocks[stage], done[before] if before else 0.0)
                clocks[stage] = done[action] = begin + seconds(action)
                at[stage], moved = at[stage] + 1, True
        if not moved:
            raise RuntimeError(f"{kind} on {stages} stages x {chunks} pieces, {micro_batches} micro-batches: no end")
    return max(clocks)


def _before(action: Action, last: int) -> Action | None:
    """What must be done for it elsewhere."""
    if action.forward:
        return Action(True, action.piece - 1, action.micro) if action.piece else None
    return Action(False, action.piece + 1, action.micro) if action.piece < last else None


def bubble(stages: int, chunks: int, micro_batches: int) -> float:
    """Share of a step's computing time that a rank waits for others, if all passes last alike:
    (p - 1) / (v m + p - 1). Narayanan et al. (arXiv 2104.04473, section 2.2) give it over the working time."""
    return (stages - 1) / (chunks * micro_batches + stages - 1)
