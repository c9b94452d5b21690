"""Whether the data keeps the device waiting, which stage of the loader is to blame, and what to change."""

from __future__ import annotations

import math
from importlib.util import find_spec

from intern_trainer.config.schema import Data

WORTH_SAYING = 0.1
"""Share of the time spent waiting from which on it is said."""
SHOWN = 0.1
"""Stages that take less than this share of a picture's time are left out."""
PREFIX, SUFFIX = "data_", "_ms"
"""How the time that one picture takes in one loader process is named in a record: `data_decode_ms`."""


def stage_times(record: dict[str, float]) -> dict[str, float]:
    """Milliseconds a picture by stage, longest first."""
    times = {
        key.removeprefix(PREFIX).removesuffix(SUFFIX): value
        for key, value in record.items()
        if key.startswith(PREFIX) and key.endswith(SUFFIX)
    }
    return dict(sorted(times.items(), key=lambda item: -item[1]))


def verdict(record: dict[str, float]) -> str | None:
    """`data-bound: 38 % waiting; decode 31 ms, read 4 ms`; None where waiting is not worth a word."""
    if record["data_wait"] < WORTH_SAYING:
        return None
    times = stage_times(record)
    least = SHOWN * sum(times.values())
    shown = ", ".join(f"{name} {ms:.{0 if ms >= 10 else 1}f} ms" for name, ms in times.items() if ms > least)
    return f"data-bound: {100 * record['data_wait']:.0f} % waiting" + (f"; {shown}" if shown else "")


def advice(record: dict[str, float], data: Data, images_a_rank: float, cores: int) -> str:
    """What to change, by the stage that takes longest.

    Args:
        images_a_rank: pictures of one optimizer step on one rank. cores: of the machine, for each rank on it.
    """
    times = stage_times(record)
    worst = next(iter(times), "read")
    busy = sum(times.values()) / 1e3 * images_a_rank
    needed = math.ceil(busy / max(record["step_seconds"] * (1 - record["data_wait"]), 1e-9))
    more = f"data.workers={max(needed, data.workers + 1)} (now {data.workers})"
    if worst == "read":
        return f"faster or nearer storage, data.cache_dir on a local disk, or {more}"
    too_many = f"more cores: {needed} workers would keep up, {cores} cores are there a rank"
    ways = [more if needed <= cores else too_many]
    if worst == "decode":
        if data.decoder != "simplejpeg" and find_spec("simplejpeg") is None:
            ways.append("pip install simplejpeg")
        ways.append("smaller pictures in the shards")
    if worst == "transform":
        ways.append("a lighter data.augment")
    return ", or ".join(ways)
