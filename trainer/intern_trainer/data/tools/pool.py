"""Work on many pieces at once, in processes, behind one progress bar."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
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


def each(
    work: Callable[[T], R], items: Sequence[T], workers: int, what: str, size: Callable[[T], int] = lambda _: 1
) -> Iterator[R]:
    """`work(item)` of every item, in their order. A bar on stderr shows how far it is, where that is a terminal.

    Args:
        work: a function that can be pickled; called in `workers` processes (1: in this one).
        what: the word before the bar. size: how much of the bar an item is.

    Raises:
        EnvironmentFault: a worker died. And whatever `work` raises.
    """
    sizes = [size(item) for item in items]
    workers = min(workers, len(items))
    if workers <= 1:
        yield from _shown(map(work, items), sizes, what)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _begin) as pool:
        rest = iter(items)
        # the first one forks all processes, before the bar's thread is there, which could hold a lock just then
        waiting = deque(pool.submit(work, item) for item in islice(rest, AHEAD * workers))
        try:
            yield from _shown(_results(pool, work, waiting, rest), sizes, what)
        except BrokenProcessPool as error:
            raise EnvironmentFault(
                "a worker process died",
                "killed by the system, most often for want of memory",
                "fewer --workers",
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _results(
    pool: ProcessPoolExecutor, work: Callable[[T], R], waiting: deque[Future[R]], rest: Iterator[T]
) -> Iterator[R]:
    while waiting:
        result = waiting.popleft().result()
        waiting.extend(pool.submit(work, item) for item in islice(rest, 1))
        yield result


def _shown(results: Iterator[R], sizes: list[int], what: str) -> Iterator[R]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(what, total=sum(sizes))
        for result, size in zip(results, sizes, strict=True):
            progress.advance(bar, size)
            yield result


def _begin() -> None:
    """In a worker: Ctrl-C ends it at once and without a word; the main process has the words."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
