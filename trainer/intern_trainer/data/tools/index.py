"""`intern-trainer data index`: the indexes of shards, made before a run instead of at its start."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from intern_trainer.data import catalogue, index, sources
from intern_trainer.data.storage import Storage
from intern_trainer.data.tools.pool import each
from intern_trainer.errors import DataError, EnvironmentFault


@dataclass(frozen=True)
class Indexed:
    """Shards and how large they are: `counts` in samples, `sizes` in bytes; 0 for those in `failures`, by location.
    unkept: why indexes have no place to lie in.
    """

    counts: list[int]
    sizes: list[int]
    failures: dict[str, DataError]
    unkept: list[OSError]


def index_command(locations: list[str], index_dir: Path | None = None, workers: int = 1) -> int:
    """Make the missing indexes of a source, and its catalogue if it is large; say how many samples there are.

    Returns:
        The exit code.

    Raises:
        DataError: names every shard that could not be indexed; the others are done all the same.
        EnvironmentFault: what was made cannot be kept.
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
    if done.unkept:
        raise _homeless(f"{len(done.unkept)} of the indexes", done.unkept[0])
    if len(shards) > sources.INDEX_AT_START:
        try:
            print(catalogue.keep(sources.patterns(locations), index_dir, shards, done.counts, done.sizes))
        except OSError as error:
            raise _homeless("the catalogue", error) from error
    return 0


def _homeless(what: str, error: OSError) -> EnvironmentFault:
    return EnvironmentFault(
        f"{what} cannot be kept: {error}",
        "they lie beside the shards, or else in --index-dir, where the run finds them",
        "give an --index-dir that you may write to, and data.index_dir to the run",
    )


def make_indexes(shards: list[str], index_dir: Path | None, workers: int) -> Indexed:
    """Find the index of each shard, or make it."""
    done = Indexed([], [], {}, [])
    for shard, outcome in zip(shards, each(partial(_measure, index_dir), shards, workers, "indexes"), strict=True):
        if isinstance(outcome, DataError):
            done.failures[shard] = outcome
        count, size, unkept = (0, 0, None) if isinstance(outcome, DataError) else outcome
        done.counts.append(count)
        done.sizes.append(size)
        if unkept is not None:
            done.unkept.append(unkept)
    return done


def _measure(index_dir: Path | None, shard: str) -> tuple[int, int, OSError | None] | DataError:
    """Samples, bytes, and why the index is not kept."""
    storage, unkept = Storage(), None
    try:
        found = index.find(storage, shard, index_dir)
        if found is None:
            found = index.build(storage, shard)
            try:
                index.keep(found, shard, index_dir)
            except OSError as error:
                unkept = error
        return len(found), found.end, unkept
    except DataError as error:
        return error
    finally:
        storage.close()
