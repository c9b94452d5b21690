"""Sources cut into pieces of work: which samples of which shard, and how they are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np

from intern_trainer.config.schema import Data
from intern_trainer.data import captions, decode, index
from intern_trainer.data.captions import CaptionRules
from intern_trainer.data.order import mix, permutation
from intern_trainer.data.sources import expand
from intern_trainer.data.storage import Storage
from intern_trainer.data.tools.index import make_indexes
from intern_trainer.errors import DataError

PIECE = 1000
"""Samples of one piece of work."""
SAMPLED_SHARDS = 512
"""A sample is drawn from this many shards at most: indexes of all shards of a huge source need not exist for it."""
ALL_CAPTIONS = "json.captions"
"""Where a sample keeps several captions."""
BLOCK_BYTES = 8 << 20
GAP_BYTES = 64 << 10


@dataclass(frozen=True)
class Piece:
    """Some samples of one shard, by their numbers in it, rising."""

    shard: str
    samples: Sequence[int]

    def __len__(self) -> int:
        return len(self.samples)


@dataclass(frozen=True)
class Member:
    """One sample as it lies in its shard: the members that matter, and sizes in bytes of all."""

    key: str
    content: dict[str, bytes]
    sizes: dict[str, int]


@dataclass(frozen=True)
class Chosen:
    """What a verb looks at.

    Attributes:
        pieces: its work. shards: how many were named. opened: how many were indexed for it. samples: in those.
        failures: why shards could not be opened, by location.
    """

    pieces: list[Piece]
    shards: int
    opened: int
    samples: int
    failures: dict[str, DataError]


def choose(locations: list[str], data: Data, workers: int, sample: int | None = None, seed: int = 0) -> Chosen:
    """All samples of the shards, or `sample` of them drawn evenly from at most `SAMPLED_SHARDS` shards.

    Raises:
        DataError: a pattern matches nothing. Shards that cannot be used are in `failures`.
    """
    storage = Storage()
    try:
        looked_at = shards = expand(storage, locations)
    finally:
        storage.close()
    if sample is not None and len(shards) > SAMPLED_SHARDS:
        looked_at = [shards[n] for n in sorted(permutation(len(shards), mix(seed, 1))[:SAMPLED_SHARDS].tolist())]
    done = make_indexes(looked_at, data.index_dir, workers)
    counts = done.counts
    if sample is None or sample >= sum(counts):
        pieces = [
            Piece(shard, range(first, min(first + PIECE, count)))
            for shard, count in zip(looked_at, counts, strict=True)
            for first in range(0, count, PIECE)
        ]
    else:
        pieces = _drawn(looked_at, counts, sample, seed)
    return Chosen(pieces, len(shards), len(looked_at) - len(done.failures), sum(counts), done.failures)


def read(piece: Piece, data: Data) -> Iterator[Member]:
    """The samples of a piece, by reads of a few MB that take neighbours together.

    Raises:
        DataError: the shard cannot be read.
    """
    storage, extensions = Storage(), {*decode.PICTURES, *CaptionRules.of(data).members}
    try:
        found = index.find_or_build(storage, piece.shard, data.index_dir)
        for block in _blocks(found, piece.samples, extensions):
            spans = [span for _, wanted, _ in block for span in wanted.values()]
            start = min((offset for offset, _ in spans), default=0)
            end = max((offset + size for offset, size in spans), default=0)
            content = storage.read(piece.shard, start, end - start) if spans else b""
            for key, wanted, sizes in block:
                cut = {ext: content[offset - start : offset - start + size] for ext, (offset, size) in wanted.items()}
                yield Member(key, cut, sizes)
    finally:
        storage.close()


def every_caption(member: Member, data: Data) -> dict[str, list[str]]:
    """All captions of a sample by language, those of its json too where training takes the `txt` alone.

    Raises:
        BadSample: there is none that can be used.
    """
    rules = CaptionRules.of(data)
    rules = replace(rules, keys=(ALL_CAPTIONS, *rules.keys))
    return captions.captions(member.content, captions.record(member.content), rules)


def sample_id(shard: str, key: str) -> str:
    """`00042/000420017`: shard and sample, as the training log names them after the name of the source."""
    return f"{PurePosixPath(shard).name.removesuffix('.tar')}/{key}"


_Spans = dict[str, tuple[int, int]]
_Entry = tuple[str, _Spans, dict[str, int]]


def _blocks(found: index.ShardIndex, samples: Sequence[int], extensions: set[str]) -> Iterator[list[_Entry]]:
    """Samples whose members lie side by side, at most about `BLOCK_BYTES` together."""
    block: list[_Entry] = []
    start = end = 0
    for sample in samples:
        members = found.members(sample)
        wanted = {ext: span for ext, span in members.items() if ext in extensions}
        first = min((offset for offset, _ in wanted.values()), default=end)
        last = max((offset + size for offset, size in wanted.values()), default=end)
        if block and not (start <= first <= end + GAP_BYTES and last - start <= BLOCK_BYTES):
            yield block
            block = []
        if not block:
            start = first
        end = last
        block.append((found.key(sample), wanted, {ext: size for ext, (_, size) in members.items()}))
    if block:
        yield block


def _drawn(shards: list[str], counts: list[int], sample: int, seed: int) -> list[Piece]:
    ends = np.cumsum(counts)
    places = np.sort(np.random.default_rng(seed).choice(int(ends[-1]), sample, replace=False))
    pieces = []
    for shard, last, count in zip(shards, ends.tolist(), counts, strict=True):
        low, high = np.searchsorted(places, [last - count, last])
        taken = (places[low:high] - (last - count)).tolist()
        pieces += [Piece(shard, taken[first : first + PIECE]) for first in range(0, len(taken), PIECE)]
    return pieces
