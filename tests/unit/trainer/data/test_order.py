"""The order of samples: exactly once an epoch, seekable, the same for any division over ranks."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from intern_trainer.data.order import Mixture, Order, SourceOrder, floor_sum, mix, permutation, rank_offsets


@pytest.mark.parametrize(
    ("counts", "lanes", "window"), [([5, 1, 17, 8], 4, 6), ([3], 8, 2), ([50, 50], 1, 1000), ([7, 9, 11], 6, 1)]
)
def test_each_sample_comes_once_an_epoch(counts: list[int], lanes: int, window: int) -> None:
    order, total = Order([counts], [1.0], seed=1, lanes=lanes, window=window), sum(counts)
    for epoch in range(3):
        seen = Counter(order.at(p) for p in range(epoch * total, (epoch + 1) * total))
        assert set(seen.values()) == {1}
        assert len(seen) == total


def test_the_permutations_of_all_sources_are_made_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    order = Order([[900, 800], [700, 600, 500], [400]], [3.0, 1.0, 1.0], seed=1, lanes=4, window=6)
    order.warm(20_400)
    monkeypatch.delattr(SourceOrder, "_layout")
    assert {order.at(20_400 + n).source for n in range(40)} == {0, 1, 2}


def test_epochs_and_seeds_differ() -> None:
    def epoch(seed: int, number: int) -> list:
        order = Order([[20, 20]], [1.0], seed, lanes=4, window=8)
        return [order.at(p) for p in range(number * 40, number * 40 + 40)]

    assert epoch(0, 0) == epoch(0, 0)
    assert epoch(0, 0) != epoch(0, 1)
    assert epoch(0, 0) != epoch(1, 0)


def test_sources_follow_their_weights_at_every_stretch_and_lose_nothing() -> None:
    counts, weights, lanes = [[30, 40], [25], [13]], [6.0, 3.0, 1.0], 8
    order = Order(counts, weights, seed=2, lanes=lanes, window=16)
    places = [order.at(p) for p in range(4000)]
    for start in (0, 801, 3000):
        share = Counter(place.source for place in places[start : start + 400])
        assert [share[s] / 400 for s in range(3)] == pytest.approx([0.6, 0.3, 0.1], abs=0.02)
    for source in range(
        3
    ):  # in whole epochs of a source every sample came equally often, but for the lanes' small lead or lag
        often = Counter(place for place in places if place.source == source)
        assert len(often) == sum(counts[source])
        assert max(often.values()) - min(often.values()) <= 2


def test_a_seek_gives_what_running_gives() -> None:
    make = lambda: Order([[30, 40], [25]], [2.0, 1.0], seed=5, lanes=6, window=10)  # noqa: E731
    running = make()
    sequence = [running.at(p) for p in range(2000)]
    for position in (1999, 7, 800, 801, 0):
        assert make().at(position) == sequence[position]


def test_closed_forms_equal_sums() -> None:
    for n, m, a, b in [(0, 7, 3, 1), (10, 7, 3, -20), (25, 16, 45, 5), (13, 1, 2, 3)]:
        assert floor_sum(n, m, a, b) == sum((a * k + b) // m for k in range(n))
    mixture = Mixture([0.2, 0.5, 0.3], lanes=5)
    for lane in range(5):
        drawn = [mixture.source(lane, j) for j in range(137)]
        assert mixture.counts(lane, 137) == [drawn.count(s) for s in range(3)]


def test_lanes_read_their_shards_in_turn() -> None:
    order = SourceOrder([100] * 40, seed=0, lanes=4, window=50)
    for lane in range(4):
        shards = [order.at(lane, c)[0] for c in range(1000)]
        # a lane of 1000 samples touches its own ten or so shards, and no window more than two or three of them
        assert len(set(shards)) <= 12
        assert max(len(set(shards[at : at + 50])) for at in range(0, 950, 50)) <= 3


def test_substitutes_are_others_of_the_window_and_of_the_same_source() -> None:
    order = Order([[100] * 10], [1.0], seed=0, lanes=4, window=20)
    for position in (0, 17, 5000):
        first = order.at(position)
        others = [order.substitute(position, attempt) for attempt in range(1, 9)]
        assert first not in others
        assert others == [order.substitute(position, attempt) for attempt in range(1, 9)]
        assert len({place.shard for place in [first, *others]}) <= 2


def test_hashes_and_permutations_never_change() -> None:
    """A resumed run depends on them, whatever numpy it finds: these numbers are part of the checkpoint format."""
    assert mix(0, 1, 2) == 0x5DEF8C1F8A9E3322
    assert permutation(8, 42).tolist() == [5, 2, 7, 3, 4, 0, 1, 6]
    assert sorted(permutation(1000, 42).tolist()) == list(range(1000))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6])
@pytest.mark.parametrize(("lanes", "accumulation"), [(4, 1), (12, 2), (24, 4), (2, 1)])
def test_ranks_together_hold_the_global_batch(world_size: int, lanes: int, accumulation: int) -> None:
    alone = rank_offsets(48, lanes, accumulation, 1, 0)
    shared = [rank_offsets(48, lanes, accumulation, world_size, rank) for rank in range(world_size)]
    for micro in range(accumulation):
        assert len({len(rank[micro]) for rank in shared}) == 1
        np.testing.assert_array_equal(np.concatenate([rank[micro] for rank in shared]), alone[micro])
    if lanes % world_size == 0:
        held = [{int(s) % lanes for part in rank for s in part} for rank in shared]
        assert sum(len(each) for each in held) == lanes


def test_a_million_shards_start_anywhere_in_seconds() -> None:
    counts = np.full(1_000_000, 10_000)
    began = time.perf_counter()
    order = Order([counts], [1.0], seed=0, lanes=4096, window=2048)
    order.at(7_000_000_000)
    assert time.perf_counter() - began < 10
