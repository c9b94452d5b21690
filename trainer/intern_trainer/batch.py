"""What the loader gives to a task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


def total(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The parts' sums by key."""
    sums: dict[str, float] = {}
    for part in parts:
        for key, value in part.items():
            sums[key] = sums.get(key, 0.0) + value
    return sums


@dataclass
class Batch:
    """One micro-batch of one rank.

    Attributes:
        tensors: by name. Image-text: `image` float [b, 3, h, w] normalised, channels-last; `text` int64 [b,
            context_length]. Those that `finish` makes are not among them yet.
        ids: one id a sample, `source/shard-stem/key`, in the order of the tensors' rows.
        extras: things that are not tensors (captions, categories), lists of length b.
        seconds: what the making of it took, by stage, all loader processes together.
        finish: makes the rest of the tensors on a device. Until then the batch holds what they are made of: pictures
            in 8 bits, in the host's memory. None: `tensors` is whole.
    """

    tensors: dict[str, Tensor]
    ids: list[str]
    extras: dict[str, list] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    finish: Callable[[torch.device], dict[str, Tensor]] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> Batch:
        """A batch with all its tensors, on `device`; this one stays as small as it is."""
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in self.tensors.items()}
        made = self.finish(device) if self.finish else {}
        return replace(self, tensors={**moved, **made}, finish=None)
