"""Requests to stop a run: signals to any rank, and a launcher that is gone.

A handler only notes what came. The loop asks `StopSignals` at each step boundary, the ranks agree (`lockstep.agree`),
save and end together; so one signal to one rank is enough, and saving never happens inside a handler. A run that was
stopped this way exits with 0: launchers replace any other code (torchrun ends with 1 whatever the rank said) and take
it for a crash. `status` in RUN/run.json tells a finished run from a stopped one.

What a request reaches, by launcher (tried with torch 2.14 and DeepSpeed 0.19):

    python       INT, TERM, USR1, HUP to the process.
    torchrun     INT, TERM, HUP to torchrun reach all ranks. USR1 needs
                 `--signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1`; without it torchrun dies of USR1, which
                 its ranks then notice. torchrun kills ranks that have not ended after 30 s: raise `--shutdown-timeout`
                 above a step plus a save. It exits with 1.
    srun         one task a rank: signals reach the tasks themselves.
    deepspeed    dies of the signal (`kill`, USR1) and leaves its ranks running, or (Ctrl-C) tells them to end and kills
                 them 30 s later. A rank whose launcher has gone takes that as a request to stop.

While the ranks still wait for each other at the start, any of the signals ends the process at once.

What cannot be delivered: SIGKILL to a rank; a step plus its saves that last longer than the launcher waits
(`checkpoint.announce_slow_saves` warns of it at the start); a request while a rank waits for a peer that has died,
which ends at the process group's timeout. The last checkpoint is then what there is.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import psutil

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
IMPATIENCE = 0.5
"""Seconds after which another SIGINT is a second one: `timeout` sends one to a process and again to its group."""


class StopSignals:
    """Why this rank has been asked to stop. Handlers are in place until `close`, or the end of a `with` block.

    A second SIGINT ends the process at once, with code 130.

    Args:
        clock: seconds that only go forward.
        end: ends the process with a code, from inside the handler.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, end: Callable[[int], Any] = os._exit) -> None:
        self._clock, self._end = clock, end
        self._reason: str | None = None
        self._interrupted: float | None = None
        self._launchers = launchers()
        self._before: dict[signal.Signals, Any] = {}
        for number in STOP_SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup: the run is meant to outlive its terminal
            self._before[number] = signal.signal(number, self._note)

    def requested(self) -> str | None:
        """None, or the first reason: "SIGTERM", "its launcher (process 4711) is gone". Cheap enough for every step."""
        if self._reason is None:
            gone = next((process for process in self._launchers if not _is_alive(process)), None)
            if gone is not None:
                self._reason = f"its launcher (process {gone.pid}) is gone"
        return self._reason

    @contextmanager
    def fatal(self) -> Iterator[None]:
        """Meanwhile a signal ends the process at once. For a wait inside C++, during which Python runs no handler, at a
        time when there is nothing to save."""
        numbers = list(self._before)
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
        try:
            yield
        finally:
            for number in numbers:
                signal.signal(number, self._note)

    def close(self) -> None:
        """Put back the handlers that were there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before.clear()

    def __enter__(self) -> StopSignals:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            now = self._clock()
            if self._interrupted is not None and now - self._interrupted > IMPATIENCE:
                os.write(2, b"\ninterrupted twice: ending without a save\n")
                self._end(128 + signal.SIGINT)
            self._interrupted = self._interrupted if self._interrupted is not None else now
        self._reason = self._reason or signal.Signals(number).name


def launchers() -> list[psutil.Process]:
    """This rank's launcher, and that one's (`deepspeed` starts a process that starts the ranks); none for plain python.

    A shell or a batch script is no launcher: a run may outlive those.
    """
    found = []
    try:
        for process in psutil.Process().parents():
            if not is_launcher(process.cmdline()):
                break
            found.append(process)
    except psutil.Error:  # it ended while we looked, or is not ours to look at
        return found
    return found


def is_launcher(command: list[str]) -> bool:
    """Whether a command line is that of torchrun or DeepSpeed's launcher, by script or by module."""
    names = [os.path.basename(word) for word in command[:5]]
    if names and names[0].startswith("python"):
        words = [word for word in names[1:] if not word.startswith("-")]
    else:
        words = names
    modules = (
        "torch.distributed.run",
        "torch.distributed.launch",
        "deepspeed.launcher.launch",
        "deepspeed.launcher.runner",
    )
    return bool(words) and words[0] in ("torchrun", "deepspeed", "ds", *modules)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def outlive_readers() -> None:
    """Let this process go on writing when nobody reads its output any more.

    Ctrl-C on `torchrun ... | tee log` also ends `tee`, and a closed terminal takes its output with it; the error of
    the next line printed must not
    keep the run from saving. Output without a reader is dropped.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        try:
            descriptor = stream.fileno()
        except (AttributeError, OSError, ValueError):  # replaced by something that is no file: not ours to guard
            continue
        stream.flush()
        raw = io.BufferedWriter(_Forgiving(descriptor, "w", closefd=False))
        wrapped = io.TextIOWrapper(raw, stream.encoding, stream.errors, line_buffering=True, write_through=True)
        setattr(sys, name, wrapped)


class _Forgiving(io.FileIO):
    """A file that turns into a sink when its reader has gone (EPIPE, EIO)."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except (BrokenPipeError, OSError):
            sink = os.open(os.devnull, os.O_WRONLY)
            os.dup2(sink, self.fileno())
            os.close(sink)
            return len(data)
