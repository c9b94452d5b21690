"""Sums over all positions for each channel, in plain torch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor

from intern_kernels.precision import at_least_fp32


def channel_sums(x_bhwc: Tensor, origin_c: Tensor) -> Tensor:
    """[2, c]: the sums of x - origin and of (x - origin)^2 over all but the last axis, in at least fp32.

    Sums about an origin near the mean (the running mean) keep their digits where the mean is large against the
    deviation: mean = origin + s / n, variance = q / n - (s / n)^2.
    """
    away_nc = (at_least_fp32(x_bhwc) - origin_c).flatten(0, -2)
    return torch.stack([away_nc.sum(0), away_nc.square().sum(0)])


def with_channel_sums(x_bhwc: Tensor, origin_c: Tensor) -> tuple[Tensor, Tensor]:
    """x itself and its sums."""
    return x_bhwc, channel_sums(x_bhwc, origin_c)
