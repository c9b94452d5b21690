"""A profile of a few steps: what ran when, and what held memory."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from intern_trainer.callbacks.base import Callback
from intern_trainer.config.schema import Profile
from intern_trainer.state import State

log = logging.getLogger(__name__)


class Profiler(Callback):
    """Traces steps `first`..`last` of rank 0 into `folder`: `trace.json` for chrome://tracing or ui.perfetto.dev,
    `operators.txt`, and on a GPU
    `memory.pickle` for pytorch.org/memory_viz (on a CPU the trace holds the allocations)."""

    def __init__(self, settings: Profile, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        self._profiler: profile | None = None

    def on_start(self, state: State) -> None:
        self._start_if_due(state)

    def on_step(self, state: State) -> None:
        if self._profiler is not None and state.step >= self.settings.last:
            self._finish(state)
        self._start_if_due(state)

    def on_stop(self, state: State) -> None:
        if self._profiler is not None:
            self._finish(state)

    def _start_if_due(self, state: State) -> None:
        if not state.ranks.is_main or state.step + 1 != self.settings.first:
            return
        activities = [ProfilerActivity.CPU]
        if state.ranks.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.memory._record_memory_history(max_entries=200_000)
        self._profiler = profile(activities=activities, profile_memory=True, record_shapes=True)
        self._profiler.__enter__()

    def _finish(self, state: State) -> None:
        assert self._profiler is not None
        self._profiler.__exit__(None, None, None)
        self.folder.mkdir(exist_ok=True)
        self._profiler.export_chrome_trace(str(self.folder / "trace.json"))
        table = self._profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=40)
        if state.ranks.device.type == "cuda":
            table = self._profiler.key_averages().table(sort_by="self_cuda_time_total", row_limit=40)
            torch.cuda.memory._dump_snapshot(str(self.folder / "memory.pickle"))
            torch.cuda.memory._record_memory_history(enabled=None)
        (self.folder / "operators.txt").write_text(table, encoding="utf-8")
        self._profiler = None
        log.info("profile of steps %d to %d: %s", self.settings.first, state.step, self.folder)
