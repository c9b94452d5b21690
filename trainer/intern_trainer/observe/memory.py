"""Memory of this process: on its accelerator where it has one, else of the process on the host."""

from __future__ import annotations

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


def show_bytes(count: float) -> str:
    """`812 MiB`, `4.2 GiB`."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
