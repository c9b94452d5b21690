"""Normalisations to test ops with: statistics, weights and biases that belong to no particular map."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.unit.kernels.checking import noise

FORMS = ("none", "channel", "position")
"""No normalisation, statistics of channels (batch normalisation), statistics of positions (layer normalisation)."""


def norm_inputs(form: str, b: int, h: int, w: int, c: int, dtype: torch.dtype) -> dict[str, Tensor | None]:
    """mean, rstd (fp32), weight and bias (`dtype`), each a leaf that asks for its gradient."""
    if form == "none":
        return {"mean": None, "rstd": None, "weight_c": None, "bias_c": None}
    shape = (c,) if form == "channel" else (b, h, w)
    return {
        "mean": noise(*shape, dtype=torch.float32, seed=2, scale=0.3, shift=0.5),
        "rstd": noise(*shape, dtype=torch.float32, seed=3, scale=0.1, shift=0.8),
        "weight_c": noise(c, dtype=dtype, seed=4, scale=0.3, shift=1.0),
        "bias_c": noise(c, dtype=dtype, seed=5, scale=0.3),
    }
