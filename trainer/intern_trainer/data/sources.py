"""From what the configuration names to shards with known numbers of samples."""

from __future__ import annotations

import glob
import itertools
import logging
import os
import re
import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np

from intern_trainer.config.schema import Source
from intern_trainer.data import catalogue, embedded, index
from intern_trainer.data.catalogue import Catalogue, ShardNames
from intern_trainer.data.storage import Storage, is_remote
from intern_trainer.errors import DataError
from intern_trainer.ranks import Ranks

log = logging.getLogger(__name__)
INDEX_AT_START = 1000
"""A source of more shards than this is not looked through while a cluster waits: it needs its catalogue."""
_BRACE = re.compile(r"\{([^{}]*)\}")


def expand(storage: Storage, locations: list[str]) -> list[str]:
    """Every shard that the locations name, in their order; the matches of a glob sorted.

    Raises:
        DataError: a pattern matches nothing, or no location is given.
    """
    shards: list[str] = []
    for pattern in patterns(locations):
        if pattern.startswith("embedded:"):
            shards += [str(path) for path in embedded.shards(pattern.removeprefix("embedded:"))]
        elif not any(c in pattern for c in "*?["):
            shards.append(pattern)
        else:
            found = storage.glob(pattern) if is_remote(pattern) else sorted(glob.glob(pattern))
            if not found:
                raise DataError(
                    f"{pattern} matches no file", "every location of a source names shards", "correct the location"
                )
            shards += found
    if not shards:
        raise DataError("a source names no shards", "every source has at least one", "give data.train a location")
    return shards


def patterns(locations: list[str]) -> Iterator[str]:
    """The locations with their braces written out, and globs as they are; paths are absolute."""
    for location in locations:
        if is_remote(location) or location.startswith("embedded:"):
            yield from _braces(location)
        else:
            yield from _braces(os.path.abspath(os.path.expanduser(location)))


def catalogues(sources: list[Source], index_dir: Path | None, ranks: Ranks) -> list[Catalogue]:
    """All sources with their counts. Collective: rank 0 reads the catalogues of large sources; of the others each rank
    looks at (and where needed indexes) its share of the shards.

    Raises:
        DataError: on every rank alike; names the shards that cannot be used.
    """
    storage = Storage()
    try:
        known: list[Catalogue | list[str]] = ranks.on_main(lambda: _catalogued_or_listed(storage, sources, index_dir))
        listed = [shard for one in known if isinstance(one, list) for shard in one]
        counts, sizes = _measure(storage, listed, index_dir, ranks)
    finally:
        storage.close()
    found, first = [], 0
    for one, source, name in zip(known, sources, _names(sources), strict=True):
        if isinstance(one, list):
            own = slice(first, first + len(one))
            first = own.stop
            one = Catalogue(name, source.weight, ShardNames.of(one), counts[own], sizes[own])
        found.append(one)
    return found


def _catalogued_or_listed(
    storage: Storage, sources: list[Source], index_dir: Path | None
) -> list[Catalogue | list[str]]:
    """Of each source its catalogue if it is large, else its shards. A catalogue spares listing them, too."""
    known: list[Catalogue | list[str]] = []
    for source, name in zip(sources, _names(sources), strict=True):
        if len({is_remote(location) for location in source.location}) > 1:
            raise DataError(
                f"{name} names files and addresses: {shlex.join(source.location)}",
                "the shards of a source are read in one way",
                "a source for the files and one for the addresses, each with its number of samples as its weight",
            )
        kept = catalogue.find(patterns(source.location), index_dir, name, source.weight)
        if kept is not None and len(kept[0].shards) > INDEX_AT_START:
            found, path, age = kept
            shards, samples = len(found.shards), found.total
            log.info("%s: %d shards, %d samples by %s (%.1f days old)", name, shards, samples, path, age)
            _ = found.digest  # seconds for a million shards: once, here, then it travels with the catalogue
            known.append(found)
            continue
        listed = expand(storage, source.location)
        if len(listed) > INDEX_AT_START:
            where = f" --index-dir {shlex.quote(str(index_dir))}" if index_dir else ""
            raise DataError(
                f"the {len(listed)} shards of {name} have no catalogue",
                f"above {INDEX_AT_START} shards, indexes and their catalogue are made before the run, not while its "
                "GPUs wait",
                f"intern-trainer data index {shlex.join(source.location)}{where} (on any machine that sees the shards)",
            )
        known.append(listed)
    return known


def _measure(
    storage: Storage, shards: list[str], index_dir: Path | None, ranks: Ranks
) -> tuple[np.ndarray, np.ndarray]:
    """Samples and bytes of each shard, by its index, which is made where there is none. Collective."""
    mine = shards[ranks.rank :: ranks.world_size]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda shard: _attempt(storage, shard, index_dir), mine))
    _raise_together(ranks, [one for one in found if isinstance(one, DataError)])
    measured = np.zeros((2, len(shards)), dtype=np.int64)
    own = np.array([one for one in found if isinstance(one, tuple)], dtype=np.int64).reshape(-1, 2)
    for rank, part in enumerate(ranks.gather(own)):
        measured[:, rank :: ranks.world_size] = part.T
    return measured[0], measured[1]


def _attempt(storage: Storage, shard: str, index_dir: Path | None) -> tuple[int, int] | DataError:
    try:
        found = index.find_or_build(storage, shard, index_dir)
        return len(found), found.end
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
