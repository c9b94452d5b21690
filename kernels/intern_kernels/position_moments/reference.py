"""Mean and deviation over the channels of each position, in plain torch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor

from intern_kernels.precision import at_least_fp32


def with_position_moments(x_bhwc: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """x itself, and for each position its mean over channels and 1 / sqrt(variance + eps): [b, h, w], at least fp32."""
    wide_bhwc = at_least_fp32(x_bhwc)
    var_bhw, mean_bhw = torch.var_mean(wide_bhwc, dim=-1, correction=0)
    return x_bhwc, mean_bhw, torch.rsqrt(var_bhw + eps)
