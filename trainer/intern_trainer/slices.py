"""The unit in which an engine gives its state to a checkpoint, and takes it back.

A slice is a contiguous piece of one flattened tensor, addressed by what it is, the parameter's (or buffer's) name in
the model, and its place. Nothing in it depends on the ZeRO stage or the number of ranks that it came from, so any
layout can read what any other wrote.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

PARAM = "param"
"""fp32 master weights of trainable parameters."""
FROZEN = "frozen"
"""Parameters that are not trained, in the type that the model holds them in."""
BUFFER = "buffer"
"""Persistent buffers, in their own type."""
EMA = "ema"
"""fp32 exponential moving average of trainable parameters."""
OPTIM = "optim."
"""Prefix of the optimizer's states of trainable parameters: `optim.exp_avg`, `optim.exp_avg_sq`,
`optim.momentum_buffer`.
"""

Read = Callable[[str, str, int, int], Tensor]
"""`read(kind, name, start, length)`: that piece of the flattened full tensor, 1-D, on the CPU, in the type it was
saved in. Raises `KeyError` for a kind and name that are not there."""


@dataclass(frozen=True)
class Slice:
    """Elements `start : start + tensor.numel()` of the flattened full tensor `name`.

    Attributes:
        kind: `param`, `frozen`, `buffer`, `ema` or `optim.<key>`.
        name: the parameter's or buffer's name in the bare model's state dict.
        shape: shape of the full tensor; `()` for a tensor of one element without dimensions.
        start: position of the first element in the flattened full tensor.
        tensor: the elements, 1-D and contiguous. It may alias live state: copy it before the next optimizer step.
    """

    kind: str
    name: str
    shape: tuple[int, ...]
    start: int
    tensor: Tensor

    @property
    def end(self) -> int:
        return self.start + self.tensor.numel()
