"""Phases of a run announce themselves, and how long they took."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

durations: dict[str, float] = {}
"""Seconds that each finished phase of this process took, in order; kept in run.json."""


@contextmanager
def phase(what: str) -> Iterator[None]:
    """`with phase("building the model"):` says so before, and the seconds after. Says nothing after a failure: the
    error speaks.
    """
    log.info("· %s ...", what)
    started = time.perf_counter()
    yield
    durations[what] = round(time.perf_counter() - started, 3)
    log.info("· %s: %s", what, show_seconds(durations[what]))


def show_seconds(seconds: float) -> str:
    """A duration for people: `0.2 s`, `4 min 05 s`, `3 h 07 min`, `2 d 03 h`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, whole = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {whole:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours:02d} h"
