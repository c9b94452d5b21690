"""A copy of what a rank saves, in host memory, from which it is written while training changes the state."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from intern_trainer.slices import Slice

BLOCK_BYTES = 256 << 20
"""Pinned memory is handed out in powers of two, so a block of such a size wastes none."""
SMALLEST_BYTES = 1 << 20
ALIGNMENT = 8
"""Bytes of the widest element."""


class Snapshot:
    """Host memory that is taken once and used again at each save; pinned for a GPU, which then copies at full speed.

    Args:
        device: where the state is.
    """

    def __init__(self, device: torch.device) -> None:
        self._pinned = device.type == "cuda"
        self._blocks: list[Tensor] = []

    def take(self, slices: Iterable[Slice], total: int) -> list[Slice]:
        """Copies of the slices, cut where a block ends. They hold until the next `take`; the live state may change as
        soon as this returns.

        Args:
            total: bytes of all slices.
        """
        copies: list[Slice] = []
        index, offset = 0, 0
        for whole in slices:
            size, done = whole.tensor.element_size(), 0
            if whole.tensor.numel() == 0:
                copies.append(replace(whole, tensor=whole.tensor.cpu()))
            while done < whole.tensor.numel():
                block = self._block(index, total)
                count = min(whole.tensor.numel() - done, (len(block) - offset) // size)
                if count == 0:
                    index, offset = index + 1, 0
                    continue
                copy = block[offset : offset + count * size].view(whole.tensor.dtype)
                copy.copy_(whole.tensor[done : done + count], non_blocking=True)
                copies.append(replace(whole, start=whole.start + done, tensor=copy))
                done += count
                offset += -(-count * size // ALIGNMENT) * ALIGNMENT
        if self._pinned:
            torch.cuda.synchronize()
        return copies

    def _block(self, index: int, total: int) -> Tensor:
        if index == len(self._blocks):
            left = max(total - sum(map(len, self._blocks)), SMALLEST_BYTES)
            size = min(-(-left // SMALLEST_BYTES) * SMALLEST_BYTES, BLOCK_BYTES)
            self._blocks.append(torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned))
        return self._blocks[index]
