"""Memory of this process: on its accelerator where it has one, else of the process on the host; and of the machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch


def memory_bytes(device: torch.device) -> int:
    """The most that PyTorch has reserved on the device since the last call (GPU), or what the process holds now
    (CPU).
    """
    if device.type == "cuda":
        peak = torch.cuda.max_memory_reserved(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    return psutil.Process().memory_info().rss


class Peak:
    """The most memory that this process has held since this object was made.

    Attributes:
        of: what `bytes` are, in words.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._before = device, psutil.Process().memory_info().rss
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.of = "allocated on the GPU"
        else:
            with suppress(OSError):  # else the peak is that of the process's whole life
                Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak begins anew
            self.of = "resident beyond what was there before the model"

    def bytes(self) -> int:
        """On a GPU all of PyTorch's tensors, else what is resident beyond what was there before."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return max(_highest_resident() - self._before, 0)


def _highest_resident() -> int:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return int(psutil.Process().memory_info().rss)  # no Linux: what is there now


def show_bytes(count: float) -> str:
    """`812 MiB`, `4.2 GiB`."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


RESERVE = 0.1
"""Share of a machine's memory that stays free for what is not foreseen."""


@dataclass(frozen=True)
class HostMemory:
    """Bytes of memory that the processes of a machine may use, and how many of them are free."""

    total: int
    free: int

    def holds(self, size: float) -> bool:
        """Whether so many bytes more leave the reserve free."""
        return size <= self.free - RESERVE * self.total


def host_memory(root: Path = Path("/")) -> HostMemory:
    """Of this machine: the kernel's figures, or those of the tightest control group that this process is in (a
    container's, a job's), whose page cache counts as free as the kernel's does.

    Args:
        root: of the file system; for tests.
    """
    machine = psutil.virtual_memory()
    total, free = machine.total, machine.available
    for folder, names in _control_groups(root):
        with suppress(OSError, ValueError):  # no such file, or "max": no limit there
            limit = int((folder / names[0]).read_text())
            used = int((folder / names[1]).read_text())
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            total, free = min(total, limit), min(free, limit - used + int(statistics[names[2]]))
    return HostMemory(total, max(free, 0))


def _control_groups(root: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Folders of the groups that this process is in, innermost first, and their files for limit and use, and the name
    of the cache (docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/memory.html).
    """
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                mount, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
            elif "memory" in controllers.split(","):
                mount = root / "sys/fs/cgroup/memory"
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            else:
                continue
            inner = mount / path.lstrip("/")
            for folder in (inner, *inner.parents):
                if folder.is_relative_to(mount):
                    yield folder, names
