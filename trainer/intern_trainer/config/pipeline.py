"""Rules of a pipeline."""

from __future__ import annotations

from collections.abc import Iterator

from intern_trainer.config.schema import Config
from intern_trainer.errors import ConfigError


def data_ranks(config: Config, world_size: int) -> int:
    """Ranks of one stage, among which the batch is divided."""
    return max(1, world_size // config.parallel.pipeline)


def check_pipeline(config: Config) -> Iterator[ConfigError]:
    """What can be known without the number of ranks and without the model."""
    parallel = config.parallel
    stages, chunks, cut = parallel.pipeline, parallel.chunks, parallel.cut
    interleaved = parallel.schedule == "interleaved"
    if stages == 1:
        set_ = [name for name, is_set in (("cut", cut is not None), ("schedule=interleaved", interleaved)) if is_set]
        for name in [*set_, *(["chunks"] if chunks > 1 and not interleaved else [])]:
            yield ConfigError(
                f"parallel.{name} with parallel.pipeline=1", "without a pipeline nothing is cut", "parallel.pipeline=2"
            )
        return
    if interleaved != (chunks > 1):
        yield ConfigError(
            f"parallel.schedule is {parallel.schedule} and parallel.chunks is {chunks}",
            "interleaved runs two pieces of the model or more on each rank; the other schedules run one",
            "parallel.chunks=2" if interleaved else "parallel.schedule=interleaved, or parallel.chunks=1",
        )
    if cut is not None and len(cut) != stages * chunks:
        yield ConfigError(
            f"parallel.cut has {len(cut)} pieces for {stages} stage(s) of {chunks} chunk(s)",
            "there are parallel.pipeline x parallel.chunks pieces",
            f"{stages * chunks} numbers, or leave it out: the cost model balances them",
        )
