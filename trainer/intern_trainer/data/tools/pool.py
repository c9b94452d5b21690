"""Work on many pieces at once, in processes, behind one progress bar."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from intern_trainer.errors import EnvironmentFault

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 4
"""Pieces handed out for each worker beyond those whose results were taken: what bounds the memory."""


def default_workers() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def each(work: Callable[[T], R], items: Sequence[T], workers: int, what: str) -> Iterator[R]:
    """`work(item)` of every item, in their order. A bar on stderr shows how far it is, where that is a terminal.

    Args:
        work: a function that can be pickled; made for one process, called by several (1 worker: by this one).
        what: the word before the bar.

    Raises:
        EnvironmentFault: a worker died. And whatever `work` raises.
    """
    workers = min(workers, len(items))
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        # the processes are forked before the bar's thread starts: it could hold a lock just then
        progress.stop()
        results = map(work, items) if workers <= 1 else _spread(work, items, workers)
        bar = progress.add_task(what, total=len(items))
        for result in results:
            progress.start()
            progress.advance(bar)
            yield result


def _spread(work: Callable[[T], R], items: Sequence[T], workers: int) -> Iterator[R]:
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _begin) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise EnvironmentFault(
                "a worker process died",
                "killed by the system, most often for want of memory",
                "fewer --workers",
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _begin() -> None:
    """In a worker: Ctrl-C ends it at once and without a word; the main process has the words."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
