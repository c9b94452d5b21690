"""Loader processes: what they do to live and die with their parent, and how their errors travel."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from intern_trainer.errors import DataError, EnvironmentFault
from intern_trainer.signals import STOP_SIGNALS

_PR_SET_PDEATHSIG = 1


class Parts(IterableDataset):
    """Runs `make(worker, workers)` in each loader process; the loader takes the results from the workers in turn."""

    def __init__(self, make: Callable[[int, int], Iterator[Any]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        try:
            yield from self._make(worker.id, worker.num_workers) if worker else self._make(0, 1)
        except DataError as error:  # as a value: the loader would wrap an exception in the worker's stack trace
            yield error


class Feed:
    """The values of `Parts`, in order, from `workers` processes (0: from this one)."""

    def __init__(
        self, make: Callable[[int, int], Iterator[Any]], workers: int, prefetch: int, pin_memory: bool = False
    ) -> None:
        options: dict[str, Any] = {}
        if workers:
            options = {"prefetch_factor": prefetch, "worker_init_fn": _begin, "multiprocessing_context": "fork"}
        # a private generator: DataLoader draws a base seed at each start, which would move the run's random state
        loader = DataLoader(
            Parts(make),
            batch_size=None,
            num_workers=workers,
            pin_memory=pin_memory,
            generator=torch.Generator(),
            **options,
        )
        _Parent.pid = os.getpid()
        before = signal.getsignal(signal.SIGCHLD)
        self._values: Any = iter(loader)
        if threading.current_thread() is threading.main_thread():
            # the loader's handler raises wherever the main process happens to be when a worker dies; without it the
            # death shows up at the next value, a few seconds later
            signal.signal(signal.SIGCHLD, before)
        self._at_exit = _closer(weakref.ref(self))
        atexit.register(self._at_exit)  # now, so that it runs before what the loader registered: that waits in vain

    def __iter__(self) -> Feed:
        return self

    def __next__(self) -> Any:
        try:
            value = next(self._values)
        except (RuntimeError, ConnectionError, EOFError) as error:  # the last two: it died while handing over a batch
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            raise EnvironmentFault(
                f"a loader process died: {str(error) or type(error).__name__}",
                "killed by the system, most often for want of memory",
                "fewer data.workers, or a smaller data.prefetch or data.shuffle_window",
            ) from error
        if isinstance(value, DataError):
            raise value
        return value

    def close(self) -> None:
        """End the loader processes. They stop at their next sample; one that hangs is killed, as it ignores SIGTERM."""
        atexit.unregister(self._at_exit)
        processes = list(getattr(self._values, "_workers", []))
        if processes:
            with contextlib.suppress(RuntimeError):  # a worker that had died already
                self._values._shutdown_workers()
        for process in processes:
            process.kill()


def _closer(feed: weakref.ref[Feed]) -> Callable[[], None]:
    def close() -> None:
        alive = feed()
        if alive is not None:
            alive.close()

    return close


class _Parent:
    pid = 0


def _begin(_: int) -> None:
    """In a new loader process: leave the run's signals to the main process, and end when it ends."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != _Parent.pid:  # the parent died before the line above took effect
        os._exit(1)
    torch.set_num_threads(1)
