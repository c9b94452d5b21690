"""Normalisations inside kernels: v = (x - mean) rstd weight + bias. The constant NORM says what the statistics are of.

NONE: there is no normalisation, v = x. CHANNEL: mean and rstd belong to channels [c] (batch normalisation), they are
loaded once a program. POSITION: they belong to rows (layer normalisation over channels), they are loaded with each row.
In kernels statistics broadcast against blocks [rows, channels].
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from intern_kernels.tiles import load_fp32

NONE, CHANNEL, POSITION = 0, 1, 2
Norm = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
"""mean, rstd, weight, bias."""


def form(mean: Tensor | None) -> int:
    """NORM, by the shape of the statistics."""
    return NONE if mean is None else CHANNEL if mean.dim() == 1 else POSITION


@triton.jit
def channel_norm(mean_ptr, rstd_ptr, weight_ptr, bias_ptr, c, inside, NORM: tl.constexpr):
    """(mean, rstd, weight, bias) as far as they belong to channels [1, c]; 0, 1, 1, 0 in place of the others."""
    mean, rstd, weight, bias = 0.0, 1.0, 1.0, 0.0
    if NORM == 1:
        mean, rstd = load_fp32(mean_ptr + c, inside)[None, :], load_fp32(rstd_ptr + c, inside)[None, :]
    if NORM > 0:
        weight, bias = load_fp32(weight_ptr + c, inside)[None, :], load_fp32(bias_ptr + c, inside)[None, :]
    return mean, rstd, weight, bias


@triton.jit
def row_statistics(mean, rstd, mean_ptr, rstd_ptr, rows, inside, NORM: tl.constexpr):
    """(mean, rstd) for a block of rows: [rows, 1] where they belong to rows, else the channels', handed in."""
    if NORM == 2:
        mean, rstd = load_fp32(mean_ptr + rows, inside)[:, None], load_fp32(rstd_ptr + rows, inside)[:, None]
    return mean, rstd
