"""A command and the memory that each of its processes held at most; and the same of a piece of this process."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from intern_trainer.errors import EnvironmentFault
from intern_trainer.heap import give_back
from intern_trainer.observe.memory import host_memory, show_bytes

EVERY = 0.1
"""Seconds between two looks."""
FLOOR = 400 << 20
"""Bytes of free memory below which a command is ended, before the system ends something else."""


@dataclass
class Peak:
    """Bytes. `anonymous`: what the process itself made (weights, activations, heap), seen every `EVERY` seconds.
    `resident`: with the files that it maps (libraries, a checkpoint it reads), by the kernel's own mark; those the
    system takes back when memory is short.
    """

    anonymous: int = 0
    resident: int = 0

    def see(self, status: dict[str, int]) -> None:
        self.anonymous = max(self.anonymous, status["RssAnon"] + status["RssShmem"])
        self.resident = max(self.resident, status["VmHWM"])


@dataclass
class Watched:
    """Of a command that ended well: how long it took, and the peaks of its processes by name: `rank 0`, or the name of
    the program's file.
    """

    seconds: float
    peaks: dict[str, Peak]


def watch(command: Sequence[str | Path], cwd: Path, name: str = "launcher") -> Watched:
    """Run a command to its end.

    Args:
        name: of its first process.

    Raises:
        RuntimeError: it failed. EnvironmentFault: memory ran short, and it was ended.
    """
    print("+", *command, flush=True)
    began, peaks = time.monotonic(), dict[str, Peak]()
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}  # as the recipe says: freed memory goes back
    process = subprocess.Popen([str(part) for part in command], cwd=cwd, env=environment)
    try:
        while process.poll() is None:
            for pid in _tree(process.pid):
                with suppress(OSError, KeyError):  # it has just ended, or not yet begun
                    status = parse_status(Path(f"/proc/{pid}/status").read_text())
                    peaks.setdefault(name if pid == process.pid else _name(pid), Peak()).see(status)
            if host_memory().free < FLOOR:
                raise EnvironmentFault(
                    f"{show_bytes(host_memory().free)} of memory were left, and the run was ended",
                    "nothing else may need much memory while this is measured",
                    "run it when the machine is free",
                )
            time.sleep(EVERY)
    finally:
        if process.poll() is None:
            _end(process)
    if process.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: exit code {process.returncode}")
    return Watched(time.monotonic() - began, peaks)


def parse_status(text: str) -> dict[str, int]:
    """The sizes in /proc/PID/status, in bytes."""
    return {line.split(":")[0]: int(line.split()[1]) << 10 for line in text.splitlines() if line.endswith(" kB")}


def _tree(pid: int) -> list[int]:
    with suppress(psutil.NoSuchProcess):
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    return []


def _name(pid: int) -> str:
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    for entry in environment:
        if entry.startswith(b"RANK="):
            return f"rank {entry[5:].decode()}"
    arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    return next((Path(argument).stem for argument in arguments if argument.endswith(".py")), Path(arguments[0]).name)


def _end(process: subprocess.Popen[bytes]) -> None:
    """The whole tree: a launcher that is killed leaves its ranks."""
    processes = [psutil.Process(pid) for pid in _tree(process.pid)]
    for one in processes:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(processes, timeout=10)


@dataclass
class Stretch:
    """Seconds, and bytes of resident memory beyond those at its beginning: at most, and still held at its end."""

    seconds: float = 0.0
    most: int = 0
    kept: int = 0


@contextmanager
def stretch() -> Iterator[Stretch]:
    """Measure a piece of this process. The kernel's high-water mark is set back at its beginning (Linux)."""
    status = Path("/proc/self/status")
    give_back()  # else memory freed before would be taken again unseen
    Path("/proc/self/clear_refs").write_text("5")
    before, found = parse_status(status.read_text())["VmRSS"], Stretch()
    began = time.monotonic()
    yield found
    found.seconds = time.monotonic() - began
    after = parse_status(status.read_text())
    found.most, found.kept = max(0, after["VmHWM"] - before), max(0, after["VmRSS"] - before)
