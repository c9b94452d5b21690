"""Normalise, activate, scale, add to a residual, in plain torch: the definition.

A normalisation is handed over as mean, rstd, weight, bias: statistics [c] (batch normalisation) or [b, h, w] (layer
normalisation over the channels of each position), weight and bias [c]; all None: x stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from intern_kernels.precision import at_least_fp32

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda v: v,
    "gelu": F.gelu,
    "gelu_tanh": lambda v: F.gelu(v, approximate="tanh"),
}


def activated(
    x_bhwc: Tensor, mean: Tensor | None, rstd: Tensor | None, weight_c: Tensor | None, bias_c: Tensor | None, act: str
) -> Tensor:
    """act((x - mean) rstd weight + bias), in at least fp32."""
    v_bhwc = at_least_fp32(x_bhwc)
    if mean is not None and rstd is not None and weight_c is not None and bias_c is not None:
        if mean.dim() > 1:
            mean, rstd = mean.unsqueeze(-1), rstd.unsqueeze(-1)
        v_bhwc = (v_bhwc - mean) * rstd * at_least_fp32(weight_c) + at_least_fp32(bias_c)
    return ACTIVATIONS[act](v_bhwc)


def normalise(
    x_bhwc: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    weight_c: Tensor | None,
    bias_c: Tensor | None,
    act: str = "none",
    residual_bhwc: Tensor | None = None,
    factor_b: Tensor | None = None,
) -> Tensor:
    """residual + factor act((x - mean) rstd weight + bias), computed in at least fp32, in the dtype of x."""
    out_bhwc = activated(x_bhwc, mean, rstd, weight_c, bias_c, act)
    if factor_b is not None:
        out_bhwc = out_bhwc * factor_b.view(-1, *(1,) * (x_bhwc.dim() - 1))
    if residual_bhwc is not None:
        out_bhwc = at_least_fp32(residual_bhwc) + out_bhwc
    return out_bhwc.to(x_bhwc.dtype)
