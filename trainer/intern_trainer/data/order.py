"""Which sample is the n-th of the run: a function of (seed, shard sizes, weights, lanes, window), and of nothing else.

Ranks, workers and nodes do not appear here, so they may change at any step. Nothing is remembered either:
`Order.at(position)` costs the same at the first sample and at the ten-billionth. Memory grows with the number of shards
(the permutation of the epochs in use: 12 bytes a shard) and with the lanes that are asked for (one shuffled window
each), never with samples.

    p              position in the run: sample p of the endless global sequence; batch s holds p in [s B, (s+1) B)
    l = p mod L    lane, a virtual reader; j = p // L is the lane's own count of draws
    s, c           the source of the lane's j-th draw, and how many the lane took from that source before (`Mixture`)
    i = c L + l    position in that source's own sequence; e = i // N its epoch
    q              place in the epoch: each lane takes a contiguous segment of it, and so reads its shards in turn

One epoch of a source is: shards in a permuted order, joined to one line of N samples that is turned by a random offset
(so that the cuts between lanes differ each epoch), then permuted inside blocks of `window` samples. Each sample comes
exactly once an epoch; no remainder is dropped.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np

T = TypeVar("T")
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_RING = 1 << 61


def mix(*values: int) -> int:
    """A 64-bit hash of integers (chained splitmix64): the same on every machine and library version."""
    state = 0
    for value in values:
        state = (state ^ (value & _MASK)) + _GOLDEN & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state


def permutation(length: int, seed: int) -> np.ndarray:
    """A permutation of range(length), int64, by sorting hashes: a generator's `shuffle` may change between versions."""
    with np.errstate(over="ignore"):
        key = np.arange(length, dtype=np.uint64) * np.uint64(_GOLDEN) + np.uint64(seed & _MASK)
        key = (key ^ key >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        key = (key ^ key >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        key ^= key >> np.uint64(31)
    return np.argsort(key, kind="stable")


def floor_sum(n: int, m: int, a: int, b: int) -> int:
    """Sum over k < n of floor((a k + b) / m), for integers of any size and sign of b, in O(log m)."""
    total = 0
    while n > 0:
        total += (a // m) * (n * (n - 1) // 2) + (b // m) * n
        a, b = a % m, b % m
        top = a * n + b
        if top < m:
            break
        n, b, m, a = top // m, top % m, a, m
    return total


@dataclass(frozen=True)
class Place:
    """A sample: number `index` in shard `shard` of source `source`."""

    source: int
    shard: int
    index: int


class _Recent:
    """The last few results of a function, so that a sequence of neighbours costs one evaluation."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: OrderedDict[Hashable, object] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        if key in self._values:
            self._values.move_to_end(key)
        else:
            self._values[key] = make()
            if len(self._values) > self._limit:
                self._values.popitem(last=False)
        return self._values[key]  # type: ignore[return-value]


class SourceOrder:
    """The endless sequence of one source.

    Args:
        counts: samples of each shard.
        seed: of this source. lanes, window: as in the module's text.
    """

    def __init__(self, counts: Sequence[int] | np.ndarray, seed: int, lanes: int, window: int) -> None:
        self.counts = np.asarray(counts, dtype=np.int64)
        self.total = int(self.counts.sum())
        if self.total <= 0:
            raise ValueError("a source without samples has no order")
        self.seed, self.lanes, self.window = seed, lanes, window
        self._epochs = _Recent(3)
        self._windows: dict[int, tuple[tuple[int, int], np.ndarray]] = {}  # the one that each lane is in

    def at(self, lane: int, count: int) -> tuple[int, int]:
        """(shard, index in it) of the sample that `lane` takes after `count` samples of this source."""
        epoch, line = self.place_in_epoch(lane, count)
        return self._resolve(epoch, self._shuffled(epoch, line, lane))

    def substitute(self, lane: int, count: int, attempt: int) -> tuple[int, int]:
        """Another sample for the same slot: attempts 1 to 8 are of the same window, later ones of the whole source."""
        epoch, line = self.place_in_epoch(lane, count)
        draw = mix(self.seed, 3, epoch, line, attempt)
        start = line - line % self.window
        length = min(self.window, self.total - start)
        if attempt <= 8 and length > 1:
            line = start + (line - start + 1 + draw % (length - 1)) % length
        else:
            line = draw % self.total
        return self._resolve(epoch, self._shuffled(epoch, line, lane))

    def place_in_epoch(self, lane: int, count: int) -> tuple[int, int]:
        """(epoch, q): lane l's share of epoch e starts behind the shares of the lanes before it."""
        epoch = (count * self.lanes + lane) // self.total
        first, last = epoch * self.total, (epoch + 1) * self.total
        before = self._below(last, lane) - self._below(first, lane)
        taken = count - -(
            (lane - first) // self.lanes
        )  # ceil((first - lane) / lanes) draws of this lane lie in earlier epochs
        return epoch, before + taken

    def _below(self, end: int, lane: int) -> int:
        """How many i < end have i mod lanes < lane."""
        return end // self.lanes * lane + min(end % self.lanes, lane)

    def _shuffled(self, epoch: int, line: int, lane: int) -> int:
        block, offset = divmod(line, self.window)
        key = (epoch, block)
        if self._windows.get(lane, ((-1, -1), None))[0] != key:
            length = min(self.window, self.total - block * self.window)
            order = permutation(length, mix(self.seed, 2, epoch, block))
            self._windows[lane] = key, order.astype(np.min_scalar_type(length))
        return block * self.window + int(self._windows[lane][1][offset])

    def _resolve(self, epoch: int, line: int) -> tuple[int, int]:
        shards, ends, turn = self._epochs.get(epoch, lambda: self._layout(epoch))
        line = (line + turn) % self.total
        slot = int(np.searchsorted(ends, line, side="right"))
        shard = int(shards[slot])
        return shard, line - int(ends[slot]) + int(self.counts[shard])

    def _layout(self, epoch: int) -> tuple[np.ndarray, np.ndarray, int]:
        shards = permutation(len(self.counts), mix(self.seed, 0, epoch)).astype(np.uint32)
        return shards, np.cumsum(self.counts[shards]), mix(self.seed, 1, epoch) % self.total


class Mixture:
    """Which source a lane's j-th draw comes from: a golden-ratio sequence on a ring that the weights cut into arcs.

    Every stretch of draws holds each source in proportion. Lane l starts l / L round the ring, so at any j the lanes
    together do too. How often a source came up before j is a sum of floors with a closed form: no replay to seek.
    """

    def __init__(self, weights: Sequence[float], lanes: int) -> None:
        total, passed = sum(weights), 0.0
        self.bounds = [0]
        for weight in weights:
            passed += weight
            self.bounds.append(round(passed / total * _RING))
        self.bounds[-1] = _RING
        self.lanes = lanes
        self._step = (_GOLDEN >> 3) | 1

    def source(self, lane: int, draw: int) -> int:
        return bisect_right(self.bounds, (self._offset(lane) + draw * self._step) % _RING) - 1

    def counts(self, lane: int, draw: int) -> list[int]:
        """How many of the lane's first `draw` draws came from each source."""
        sums = [floor_sum(draw, _RING, self._step, self._offset(lane) - bound) for bound in self.bounds]
        return [low - high for low, high in pairwise(sums)]

    def _offset(self, lane: int) -> int:
        return lane * _RING // self.lanes


class Order:
    """The global sequence of samples over all sources."""

    def __init__(
        self,
        counts: Sequence[Sequence[int] | np.ndarray],
        weights: Sequence[float],
        seed: int,
        lanes: int,
        window: int,
    ) -> None:
        self.lanes, self.seed = lanes, seed
        self.sources = [SourceOrder(c, mix(seed, 7, s), lanes, window) for s, c in enumerate(counts)]
        self._mixture = Mixture(weights, lanes)
        self._cursors: dict[int, tuple[int, list[int]]] = {}

    def at(self, position: int) -> Place:
        """The sample at `position` of the run."""
        lane, source, count = self._draw(position)
        return Place(source, *self.sources[source].at(lane, count))

    def warm(self, position: int) -> None:
        """Make each source's permutation of the epoch that it is in at `position`: what is forked later shares it."""
        draw, lane = divmod(position, self.lanes)
        for source, count in zip(self.sources, self._mixture.counts(lane, draw), strict=True):
            source.at(lane, count)

    def substitute(self, position: int, attempt: int) -> Place:
        """What takes the place of an unusable sample at `position`; `attempt` counts from 1."""
        lane, source, count = self._draw(position)
        return Place(source, *self.sources[source].substitute(lane, count, attempt))

    def augmentation_seed(self, position: int) -> int:
        """Seed of the random draws for the sample at `position`, whatever rank and worker reads it."""
        return mix(self.seed, 11, position)

    def _draw(self, position: int) -> tuple[int, int, int]:
        draw, lane = divmod(position, self.lanes)
        if len(self.sources) == 1:
            return lane, 0, draw
        at, counts = self._cursors.get(lane, (-1, []))
        if at == draw - 1 and at >= 0:  # the usual case, one further
            counts[self._mixture.source(lane, at)] += 1
        elif at != draw:
            counts = self._mixture.counts(lane, draw)
        self._cursors[lane] = (draw, counts)
        source = self._mixture.source(lane, draw)
        return lane, source, counts[source]


def rank_offsets(global_batch: int, lanes: int, accumulation: int, world_size: int, rank: int) -> list[np.ndarray]:
    """Which slots of every global batch fall to a rank, one array a micro-batch, in the order of its rows.

    The slots of one micro-step are ordered by lane and dealt to the ranks in even pieces: each rank reads a few lanes
    as a whole where the world size divides the lanes, and shares a lane with its neighbour where it does not. Together
    the ranks' rows are, in rank order, those of a single rank.
    """
    size = global_batch // accumulation
    share = size // world_size
    offsets = []
    for micro in range(accumulation):
        slots = np.arange(micro * size, (micro + 1) * size)
        slots = slots[np.argsort(slots % lanes, kind="stable")]
        offsets.append(slots[rank * share : (rank + 1) * share])
    return offsets
