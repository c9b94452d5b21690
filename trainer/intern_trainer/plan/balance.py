"""Where to cut a chain so that the ranks of a pipeline are busy for equally long. Pure arithmetic.

Legend: n links, k pieces, a piece is the links [i, j) of the chain; rank r of p holds the pieces r, r + p, ...
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from itertools import accumulate, pairwise

EQUAL = 1e-3
"""Loads that differ by less count as equal: the cost model is not that exact."""

PieceCost = Callable[[int, int, int], float]
"""Of the links [i, j) as piece number k."""


def cut_chain(n: int, k: int, cost: PieceCost, allowed: Collection[int]) -> list[int] | None:
    """The cut into k pieces, none empty, whose costliest piece costs least: the first link of each piece, and n. Exact,
    by dynamic programming; None where no cut has a finite cost.

    Args:
        allowed: places before links at which the chain may be cut.
    """
    places = [0, *sorted(set(allowed) - {0, n}), n]
    best: list[dict[int, tuple[float, int]]] = [{0: (-math.inf, 0)}]  # by where the pieces so far end
    for piece in range(k):
        ends: dict[int, tuple[float, int]] = {}
        for begin, (before, _) in best[-1].items():
            for end in places:
                if end > begin:
                    highest = max(before, cost(piece, begin, end))
                    if highest < ends.get(end, (math.inf, 0))[0]:
                        ends[end] = (highest, begin)
        best.append(ends)
    if n not in best[k]:
        return None
    cut = [n]
    for piece in range(k, 0, -1):
        cut.append(best[piece][cut[-1]][1])
    return cut[::-1]


def balance(
    seconds: Sequence[float],
    state: Sequence[float],
    memory: Sequence[float],
    in_flight: Sequence[Sequence[int]],
    allowed: Collection[int],
) -> list[int] | None:
    """The cut whose busiest rank is least busy; of those equal in that, one whose fullest rank is least full.

    With one piece a rank it is exact. With more, any p pieces in a row belong to different ranks, so that the best
    places of the cuts between them, all others as they are, are exact again: sweeps of that, until none helps.

    Args:
        seconds, state, memory: of each link: for a micro-batch; bytes that are always there; bytes that each
            micro-batch in flight keeps.
        in_flight: micro-batches of each rank's chunks, [p][chunks].
        allowed: see `cut_chain`.

    Returns:
        links in each piece, or None where there are too few places to cut at.
    """
    n, ranks, chunks = len(seconds), len(in_flight), len(in_flight[0])
    times, always, held = ([0.0, *accumulate(of_links)] for of_links in (seconds, state, memory))

    def time(_: int, i: int, j: int) -> float:
        return times[j] - times[i]

    def kept(k: int, i: int, j: int) -> float:
        return always[j] - always[i] + in_flight[k % ranks][k // ranks] * (held[j] - held[i])

    cut = cut_chain(n, ranks * chunks, time, allowed)
    if cut is None:
        return None
    improved = True
    while improved:
        improved = False
        for first in range(ranks * (chunks - 1) + 1):
            better = _between(cut, first, ranks, _with_others(cut, first, ranks, time), allowed)
            if rank_loads(better, ranks, time) < rank_loads(cut, ranks, time):
                cut, improved = better, True
    most = (1 + EQUAL) * rank_loads(cut, ranks, time)[0]
    for first in range(ranks * (chunks - 1) + 1):
        busy, full = (_with_others(cut, first, ranks, cost) for cost in (time, kept))
        cut = _between(cut, first, ranks, _under(full, busy, most), allowed)
    return [end - begin for begin, end in pairwise(cut)]


def _between(cut: Sequence[int], first: int, ranks: int, cost: PieceCost, allowed: Collection[int]) -> list[int]:
    """The pieces `first` to `first + ranks` cut anew, all others as they are."""
    begin, end = cut[first], cut[first + ranks]
    inside = cut_chain(
        end - begin,
        ranks,
        lambda k, i, j: cost(first + k, begin + i, begin + j),
        [place - begin for place in allowed if begin < place < end],
    )
    assert inside is not None, "the cut as it is, is one"
    return [*cut[:first], *(begin + place for place in inside), *cut[first + ranks + 1 :]]


def _with_others(cut: Sequence[int], first: int, ranks: int, cost: PieceCost) -> PieceCost:
    """What a piece among `first` to `first + ranks` costs together with its rank's other pieces."""
    others = _others(cut, first, ranks, cost)
    return lambda k, i, j: others[k % ranks] + cost(k, i, j)


def _under(cost: PieceCost, limited: PieceCost, most: float) -> PieceCost:
    return lambda k, i, j: cost(k, i, j) if limited(k, i, j) <= most else math.inf


def _others(cut: Sequence[int], first: int, ranks: int, cost: PieceCost) -> list[float]:
    """Of each rank, all pieces but those from `first` to `first + ranks`."""
    loads = [0.0] * ranks
    for k, (i, j) in enumerate(pairwise(cut)):
        if not first <= k < first + ranks:
            loads[k % ranks] += cost(k, i, j)
    return loads


def rank_loads(cut: Sequence[int], ranks: int, cost: PieceCost) -> list[float]:
    """Of all pieces, by rank, the highest first."""
    return sorted(_others(cut, len(cut), ranks, cost), reverse=True)
