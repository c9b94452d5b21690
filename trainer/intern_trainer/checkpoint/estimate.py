"""How long a save will last, told before it matters."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from intern_trainer.checkpoint.agree import agreed
from intern_trainer.checkpoint.protocol import HasState
from intern_trainer.checkpoint.shards import write_slices
from intern_trainer.checkpoint.write import in_bytes, in_words, state_bytes
from intern_trainer.ranks import Ranks
from intern_trainer.slices import BUFFER, Slice

log = logging.getLogger(__name__)

LAUNCHERS_PATIENCE = 30.0
"""Seconds between asking a rank to end and killing it: DeepSpeed's launcher, and torchrun unless told otherwise."""
PROBE_BYTES = 32 << 20
TOO_SMALL_TO_ASK = 256 << 20
"""A rank's state below this takes seconds at any speed that one would train at."""


def announce_slow_saves(
    engine: HasState, run_dir: Path, ranks: Ranks, saves: int = 1, limit: float = LAUNCHERS_PATIENCE
) -> float | None:
    """Estimate the seconds that a save takes, and warn if launchers do not wait that long. Collective, at the start.

    All ranks write a small file at once, through the code that writes checkpoints. None where the state is too small
    to matter.

    Args:
        saves: that a run which is told to stop may have to write: with one in the background, two.
    """
    sizes = agreed(ranks, lambda: state_bytes(engine), lambda error: in_words(error, run_dir, 0))
    if max(sizes) < TOO_SMALL_TO_ASK:
        return None
    speeds = agreed(ranks, lambda: write_speed(run_dir), lambda error: in_words(error, run_dir, PROBE_BYTES))
    seconds = max(size / speed for size, speed in zip(sizes, speeds, strict=True))
    if saves * seconds > limit and ranks.is_main:
        log.warning(
            "a save will take about %.0f s (%s at %s/s), and a stop waits for up to %d, longer than the %.0f s that "
            "DeepSpeed's launcher, and torchrun without --shutdown-timeout, leave a run that is told to stop: send the "
            "signal to a rank instead, or raise torchrun's --shutdown-timeout",
            seconds, in_bytes(sum(sizes)), in_bytes(sum(speeds)), saves, limit,
        )  # fmt: skip
    return seconds


def write_speed(folder: Path) -> float:
    """Bytes a second that this process writes, checksummed and fsynced."""
    folder.mkdir(parents=True, exist_ok=True)

    def probe() -> Iterator[Slice]:
        data = torch.zeros(PROBE_BYTES // 4)
        yield Slice(BUFFER, "probe", tuple(data.shape), 0, data)

    with TemporaryDirectory(prefix=".speed-", dir=folder) as scratch:
        began = time.perf_counter()
        write_slices(probe(), Path(scratch), 0)
        return PROBE_BYTES / (time.perf_counter() - began)
