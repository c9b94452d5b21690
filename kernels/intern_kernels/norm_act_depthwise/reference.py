"""Normalise, activate, convolve each channel by itself with 3x3, sum the result, in plain torch: the definition."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from intern_kernels.channel_sums.reference import channel_sums
from intern_kernels.normalise.reference import activated
from intern_kernels.precision import at_least_fp32


def norm_act_depthwise(
    x_bhwc: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    weight_c: Tensor | None,
    bias_c: Tensor | None,
    act: str,
    kernel_9c: Tensor,
    stride: int = 1,
    origin_c: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(y, sums): y = dw3x3(act((x - mean) rstd weight + bias)), computed in at least fp32, in the dtype of x.

    kernel_9c[3 i + j] belongs to the neighbour i - 1 rows down and j - 1 columns to the right; outside of the map the
    activated values are 0. Sums [2, c] of y about the origin as in `channel_sums`, of y as it is stored; [0] without.
    """
    phi_bchw = activated(x_bhwc, mean, rstd, weight_c, bias_c, act).permute(0, 3, 1, 2)
    kernel_c133 = at_least_fp32(kernel_9c).T.reshape(-1, 1, 3, 3)
    y_bchw = F.conv2d(phi_bchw, kernel_c133, stride=stride, padding=1, groups=phi_bchw.shape[1])
    y_bhwc = y_bchw.permute(0, 2, 3, 1).to(x_bhwc.dtype).contiguous()
    return y_bhwc, y_bhwc.new_empty(0) if origin_c is None else channel_sums(y_bhwc, origin_c)
