"""From what the configuration names to shards with known numbers of samples."""

from __future__ import annotations

import glob
import hashlib
import itertools
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from intern_trainer.config.schema import Source
from intern_trainer.data import embedded, index
from intern_trainer.data.storage import Storage, is_remote
from intern_trainer.errors import DataError
from intern_trainer.ranks import Ranks

INDEX_AT_START = 1000
"""More shards than this are not indexed while a cluster waits."""
_BRACE = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Catalogue:
    """One source: its shards and how many samples each holds."""

    name: str
    weight: float
    shards: list[str]
    counts: np.ndarray

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    def stem(self, shard: int) -> str:
        return PurePosixPath(self.shards[shard]).name.removesuffix(".tar")

    def fingerprint(self) -> dict[str, Any]:
        """What the order of samples depends on: names and sizes of the shards, not the folder that they lie in."""
        digest = hashlib.sha256()
        for shard, count in enumerate(self.counts.tolist()):
            digest.update(f"{self.stem(shard)}:{count}\n".encode())
        return {
            "name": self.name,
            "weight": self.weight,
            "shards": len(self.shards),
            "samples": self.total,
            "digest": digest.hexdigest()[:32],
        }


def expand(storage: Storage, locations: list[str]) -> list[str]:
    """Every shard that the locations name, in their order; the matches of a glob sorted.

    Raises:
        DataError: a pattern matches nothing, or no location is given.
    """
    shards: list[str] = []
    for location in locations:
        if location.startswith("embedded:"):
            shards += [str(path) for path in embedded.shards(location.removeprefix("embedded:"))]
            continue
        for pattern in _braces(location):
            if not any(c in pattern for c in "*?["):
                shards.append(pattern if is_remote(pattern) else str(Path(pattern).expanduser()))
                continue
            found = storage.glob(pattern) if is_remote(pattern) else sorted(glob.glob(str(Path(pattern).expanduser())))
            if not found:
                raise DataError(
                    f"{pattern} matches no file", "every location of a source names shards", "correct the location"
                )
            shards += found
    if not shards:
        raise DataError("a source names no shards", "every source has at least one", "give data.train a location")
    return shards


def catalogues(sources: list[Source], index_dir: Path | None, ranks: Ranks) -> list[Catalogue]:
    """All sources with their counts. Collective: each rank looks at (and where needed indexes) its share of the shards.

    Raises:
        DataError: on every rank alike; names the shards that cannot be used.
    """
    storage = Storage()
    try:
        shards = ranks.on_main(lambda: [expand(storage, source.location) for source in sources])
        flat = [shard for group in shards for shard in group]
        counts = _counts(storage, flat, index_dir, ranks)
    finally:
        storage.close()
    ends = np.cumsum([0] + [len(group) for group in shards])
    return [
        Catalogue(name, source.weight, group, counts[ends[s] : ends[s + 1]])
        for s, (source, group, name) in enumerate(zip(sources, shards, _names(sources), strict=True))
    ]


def _counts(storage: Storage, shards: list[str], index_dir: Path | None, ranks: Ranks) -> np.ndarray:
    mine = shards[ranks.rank :: ranks.world_size]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda shard: _attempt(index.find, storage, shard, index_dir), mine))
        missing = [n for n, one in enumerate(found) if one is None]
        _raise_together(ranks, [one for one in found if isinstance(one, DataError)])
        without = sum(ranks.gather(len(missing)))
        if without and len(shards) > INDEX_AT_START:
            raise DataError(
                f"{without} of {len(shards)} shards have no index",
                f"above {INDEX_AT_START} shards, indexes are made before the run, not while its GPUs wait",
                "intern-trainer data index SHARDS... (on any machine that sees them; the same data.index_dir)",
            )
        made = pool.map(lambda n: _attempt(index.find_or_build, storage, mine[n], index_dir), missing)
        for n, one in zip(missing, made, strict=True):
            found[n] = one
    _raise_together(ranks, [one for one in found if isinstance(one, DataError)])
    counts = np.zeros(len(shards), dtype=np.int64)
    for rank, part in enumerate(
        ranks.gather(np.array([len(one) for one in found if isinstance(one, index.ShardIndex)], dtype=np.int64))
    ):
        counts[rank :: ranks.world_size] = part
    return counts


def _attempt(action: Any, storage: Storage, shard: str, index_dir: Path | None) -> index.ShardIndex | DataError | None:
    try:
        return action(storage, shard, index_dir)
    except DataError as error:
        return error


def _raise_together(ranks: Ranks, errors: list[DataError]) -> None:
    """If one rank met an error all raise, so that none waits for ever."""
    together = [error for part in ranks.gather(errors[:5]) for error in part]
    if len(together) == 1:
        raise together[0]
    if together:
        found = "\n    ".join(error.found for error in together[:5])
        raise DataError(f"several shards cannot be used, among them:\n    {found}", together[0].rule, together[0].fix)


def _braces(pattern: str) -> Iterator[str]:
    """`{00..03}` counts with leading zeros, `{a,b}` lists; several multiply."""
    parts = _BRACE.split(pattern)
    choices = [_alternatives(part) if n % 2 else [part] for n, part in enumerate(parts)]
    return ("".join(chosen) for chosen in itertools.product(*choices))


def _alternatives(inside: str) -> list[str]:
    span = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if not span:
        return inside.split(",") if "," in inside else [f"{{{inside}}}"]
    first, last = span.groups()
    if int(last) < int(first):
        rule = "a range goes from the smaller to the larger number"
        raise DataError(f"{{{inside}}} counts down", rule, f"write {{{last}..{first}}}")
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]


def _names(sources: list[Source]) -> list[str]:
    """A short name a source, each different."""
    names: list[str] = []
    for source in sources:
        first = source.location[0] if source.location else ""
        folder = first.replace(":", "-") if first.startswith("embedded:") else PurePosixPath(first).parent.name
        name = source.name or folder or "data"
        taken = {*names, *(other.name for other in sources)} - {source.name}
        numbered = (f"{name}-{number}" for number in itertools.count(2))
        names.append(name if name not in taken and name not in names else next(n for n in numbered if n not in taken))
    return names
