"""How long a loader process spends on which part of its work."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

STAGES = ("read", "decode", "transform", "collate")
"""Bytes from storage; bytes to pixels; crops and colours; captions to tensors, and all of a micro-batch together."""


class Stages:
    """Seconds by stage since the last `take`. Threads may share it, see `concurrent`."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._lock = threading.Lock()

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self._seconds[stage] += time.perf_counter() - started

    @contextmanager
    def concurrent(self) -> Iterator[None]:
        """Meanwhile several threads may be in stages at once: the time that passes is shared out among the stages in
        proportion to what the threads spent in each, so that seconds remain those of the process. Nothing was counted
        since the last `take`.
        """
        started = time.perf_counter()
        yield
        passed = time.perf_counter() - started
        with self._lock:
            spent = sum(self._seconds.values())
            self._seconds = {stage: seconds * passed / (spent or 1.0) for stage, seconds in self._seconds.items()}

    def take(self) -> dict[str, float]:
        with self._lock:
            taken, self._seconds = self._seconds, dict.fromkeys(STAGES, 0.0)
        return taken
