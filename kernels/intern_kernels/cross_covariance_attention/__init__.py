"""Cross-covariance attention (XCA): attention between channels instead of between positions. See README.md."""

from __future__ import annotations

from torch import Tensor

from intern_kernels import dispatch
from intern_kernels.cross_covariance_attention import op, reference

__all__ = ["cross_covariance_attention"]


def cross_covariance_attention(q_bnhd: Tensor, k_bnhd: Tensor, v_bnhd: Tensor, temperature_h11: Tensor) -> Tensor:
    """`reference.cross_covariance_attention`, which says what it is, or its kernels."""
    inputs = (q_bnhd, k_bnhd, v_bnhd, temperature_h11)
    if dispatch.chosen("cross_covariance_attention", *inputs, limit=op.limit(q_bnhd, v_bnhd)):
        return op.cross_covariance_attention(*inputs)
    return reference.cross_covariance_attention(*inputs)
