"""Saves beside training: training waits for a copy of the state to host memory, a thread writes that copy.

A thread, because neither CUDA nor a process group survives a fork; writing and SHA-256 let Python go on. It calls no
collective, which would meet those of training. So the ranks agree on the training thread, at step boundaries, whether
all have written (then rank 0's thread finishes the checkpoint), and whether it is finished: one number on the host a
step, and only while a save is under way. Polling the folder instead would need no collective, but a shared file system
may show a new file a minute late, and an error on one rank would reach the others at different steps.
"""

from __future__ import annotations

import logging
import platform
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intern_trainer.checkpoint.progress import Progress
from intern_trainer.checkpoint.protocol import HasState
from intern_trainer.checkpoint.retain import clear, retain
from intern_trainer.checkpoint.snapshot import Snapshot
from intern_trainer.checkpoint.verify import remember_verified
from intern_trainer.checkpoint.write import Draft, in_bytes, save, state_bytes
from intern_trainer.config.schema import Config
from intern_trainer.errors import UserError
from intern_trainer.observe.memory import host_memory
from intern_trainer.observe.places import place
from intern_trainer.ranks import Ranks
from intern_trainer.slices import Slice

log = logging.getLogger(__name__)


@dataclass
class _UnderWay:
    """Attributes:
    job: of this rank's thread: its files, then (`written`) the finishing. began: when it was begun. waited: seconds for
        which it has held up training.
    """

    draft: Draft
    began: float
    job: Future[Any]
    written: bool = False
    waited: float = 0.0


class Saver:
    """The saves of a run, at most one at a time, and which of its checkpoints stay. Made, and called, on all ranks.

    Every error is raised on all ranks, at the same step; the older checkpoints are then as they were.
    """

    def __init__(self, engine: HasState, run_dir: Path, ranks: Ranks, cfg: Config) -> None:
        self._engine, self._run_dir, self._ranks, self._cfg = engine, run_dir, ranks, cfg
        self._snapshot = Snapshot(ranks.device)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="save")
        self._dropped = threading.Event()
        self._in_background: bool | None = None
        self._under_way: _UnderWay | None = None

    @place("save")
    def save(self, progress: Progress, wait: bool = False) -> Path | None:
        """Save the state as it is now; the newest checkpoint that was completed meanwhile, if any. Collective.

        Args:
            wait: return when it is complete; always so where host memory does not hold a copy of the state.

        Raises:
            as `checkpoint.save`, also for the save before this one, which is completed first.
        """
        completed = self.finish()
        self._thread.submit(lambda: None).result()  # what retention removed is gone before room is looked for
        if wait or not self._beside():
            path = save(self._engine, progress, self._run_dir, self._ranks, self._cfg)
            self._retain(path, progress)
            return path
        began = time.perf_counter()
        draft = Draft(self._engine, progress, self._run_dir, self._ranks, self._cfg)
        copies: list[Slice] = []
        draft.agreed(lambda: copies.extend(self._snapshot.take(self._engine.slices(), state_bytes(self._engine))))
        job = self._thread.submit(draft.write, self._until_dropped(copies))
        self._under_way = _UnderWay(draft, began, job, waited=time.perf_counter() - began)
        return completed

    def poll(self) -> Path | None:
        """At a step boundary: the checkpoint that has been completed since the last one, if any. Collective."""
        under_way, began = self._under_way, time.perf_counter()
        if under_way is None:
            return None
        done = self._ranks.all(under_way.job.done())
        under_way.waited += time.perf_counter() - began
        return self._advance(under_way) if done else None

    @place("save")
    def finish(self) -> Path | None:
        """Wait for the save under way, if any; its checkpoint. Collective."""
        path = None
        while self._under_way is not None:
            path = self._advance(self._under_way)
        return path

    def close(self) -> None:
        """Drop the save under way, if any: what it has written is cleared by the next start. Not collective."""
        self._dropped.set()
        self._under_way = None
        self._thread.shutdown()

    def _advance(self, under_way: _UnderWay) -> Path | None:
        """Wait for this part of the save on all ranks, and begin the next."""
        began = time.perf_counter()
        try:
            results = under_way.draft.agreed(under_way.job.result)
        except UserError:
            self._under_way = None
            raise
        draft = under_way.draft
        if not under_way.written:
            under_way.job, under_way.written = self._thread.submit(draft.finish, results), True
            under_way.waited += time.perf_counter() - began
            return None
        self._under_way = None
        remember_verified(draft.final)
        self._retain(draft.final, draft.progress)
        now = time.perf_counter()
        if self._ranks.is_main:
            log.info(
                "saved %s: %s; training waited %.2f s, it was complete after %.1f s",
                draft.final, in_bytes(draft.needed), under_way.waited + now - began, now - under_way.began,
            )  # fmt: skip
        return draft.final

    def _retain(self, path: Path, progress: Progress) -> None:
        """Renames on the training thread, so that nobody there meets a checkpoint that goes; the thread deletes."""
        keep = self._cfg.checkpoint
        scores = progress.scores(keep.best_metric)
        retain(path, keep.keep_last, keep.keep_best, scores, self._ranks, self._clear)

    def _clear(self, gone: Path) -> None:
        self._thread.submit(clear, gone)

    def _until_dropped(self, copies: Iterable[Slice]) -> Iterator[Slice]:
        for copy in copies:
            if self._dropped.is_set():
                raise InterruptedError("the save was dropped")
            yield copy

    def _beside(self) -> bool:
        """Whether saves are written in the background, the same on all ranks; found out at the first one, when all that
        a run holds is there.
        """
        if self._in_background is None:
            choice = self._cfg.checkpoint.background
            fits, why = self._fits() if choice == "auto" else (choice == "always", f"checkpoint.background={choice}")
            how = "are written in the background" if fits else "hold up training while they are written"
            if self._ranks.is_main:
                log.info("checkpoints %s: %s", how, why)
            self._in_background = fits
        return self._in_background

    def _fits(self) -> tuple[bool, str]:
        """Whether host memory holds a copy of what is saved, on every machine, and the figures of that with most of it
        or too little. Collective.
        """
        needs: dict[str, int] = {}
        memory = {}
        for node, size, host in self._ranks.gather((platform.node(), state_bytes(self._engine), host_memory())):
            needs[node] = needs.get(node, 0) + size
            memory[node] = host
        tight = next((node for node, size in needs.items() if not memory[node].holds(size)), None)
        node = tight or max(needs, key=needs.__getitem__)
        size, free, total = (in_bytes(count) for count in (needs[node], memory[node].free, memory[node].total))
        return tight is None, (
            f"a copy of the state takes {size} on {node}, where {free} of {total} are free; a tenth is to stay free"
        )
