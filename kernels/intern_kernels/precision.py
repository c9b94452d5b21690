"""The precision that sums and losses are made in."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_fp32(x: Tensor) -> Tensor:
    """`x` in fp32, or in its own type where that is finer."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
