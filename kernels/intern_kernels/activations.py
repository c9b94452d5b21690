"""Activations and their slopes inside kernels, in fp32: built into each kernel by the constant ACT.

What they are in plain torch: v, F.gelu(v), F.gelu(v, approximate="tanh").
"""

from __future__ import annotations

import triton
import triton.language as tl

ACTS = {"none": 0, "gelu": 1, "gelu_tanh": 2}
"""ACT of each name of an activation."""


@triton.jit
def _tanh_gate(v):
    # 0.5 (1 + tanh(u)) = 1 / (1 + exp(-2u)), u = sqrt(2 / pi) (v + 0.044715 v^3): no cancellation, and an exponential
    # that overflows gives 0. The constants hold -2 / ln 2, for a power of two.
    return 1.0 / (1.0 + tl.exp2(v * (-2.3022081986 - 0.1029432396 * v * v)))


@triton.jit
def activate(v, ACT: tl.constexpr):
    """act(v), of an fp32 block."""
    if ACT == 1:
        return 0.5 * v * (1.0 + tl.erf(0.7071067811865476 * v))
    elif ACT == 2:
        return v * _tanh_gate(v)
    else:
        return v


@triton.jit
def activation_slope(v, ACT: tl.constexpr):
    """The derivative of act at v, of an fp32 block."""
    if ACT == 1:
        density = 0.3989422804014327 * tl.exp(-0.5 * v * v)
        return 0.5 * (1.0 + tl.erf(0.7071067811865476 * v)) + v * density
    elif ACT == 2:
        gate = _tanh_gate(v)
        return gate + v * (gate - gate * gate) * (1.5957691216057308 + 0.21406444881780074 * v * v)
    else:
        return tl.full(v.shape, 1.0, tl.float32)
