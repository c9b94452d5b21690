"""`intern-trainer data index`: the indexes of shards, made before a run instead of at its start."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from intern_trainer.data import catalogue, index, sources
from intern_trainer.data.storage import Storage
from intern_trainer.data.tools.pool import each
from intern_trainer.errors import DataError


@dataclass(frozen=True)
class Indexed:
    """Shards and how large they are: `counts` in samples, `sizes` in bytes; 0 for those in `failures`, by location."""

    counts: list[int]
    sizes: list[int]
    failures: dict[str, DataError]


def index_command(locations: list[str], index_dir: Path | None = None, workers: int = 1) -> int:
    """Make the indexes that are missing, and the catalogue of a large source; say how many samples there are.

    Returns:
        The exit code.

    Raises:
        DataError: names every shard that could not be indexed; the others are done all the same.
    """
    storage = Storage()
    try:
        shards = sources.expand(storage, locations)
    finally:
        storage.close()
    done = make_indexes(shards, index_dir, workers)
    print(f"indexed: {len(shards) - len(done.failures):,} shard(s), {sum(done.counts):,} samples")
    if done.failures:
        named = "\n    ".join(error.found for error in done.failures.values())
        fix = "copy or make them again, or leave them out"
        raise DataError(f"{len(done.failures)} shard(s) cannot be used:\n    {named}", "", fix)
    if len(shards) > sources.INDEX_AT_START:
        print(catalogue.keep(sources.patterns(locations), index_dir, shards, done.counts, done.sizes))
    return 0


def make_indexes(shards: list[str], index_dir: Path | None, workers: int) -> Indexed:
    """Find the index of each shard, or make it."""
    done = Indexed([], [], {})
    for shard, outcome in zip(shards, each(partial(_measure, index_dir), shards, workers, "indexes"), strict=True):
        if isinstance(outcome, DataError):
            done.failures[shard] = outcome
        count, size = (0, 0) if isinstance(outcome, DataError) else outcome
        done.counts.append(count)
        done.sizes.append(size)
    return done


def _measure(index_dir: Path | None, shard: str) -> tuple[int, int] | DataError:
    storage = Storage()
    try:
        found = index.find_or_build(storage, shard, index_dir)
        return len(found), found.end
    except DataError as error:
        return error
    finally:
        storage.close()
