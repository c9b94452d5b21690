"""How long a loader process spends on which part of its work."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

STAGES = ("read", "decode", "transform", "collate", "finish")
"""Bytes from storage; bytes to pixels; crops and colours; captions to tensors, and all of a micro-batch together. In
the training process: floats on the device."""


class Stages:
    """Seconds by stage since the last `take`. Threads of one process may share it: theirs add up."""

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

    def take(self) -> dict[str, float]:
        with self._lock:
            taken, self._seconds = self._seconds, dict.fromkeys(STAGES, 0.0)
        return taken
