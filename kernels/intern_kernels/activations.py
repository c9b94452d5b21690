"""Activations and their slopes inside kernels, in fp32: built into each kernel by the constant ACT.

What they are in plain torch: v, F.gelu(v), F.gelu(v, approximate="tanh").
"""

from __future__ import annotations

import triton
import triton.language as tl

ACTS = {"none": 0, "gelu": 1, "gelu_tanh": 2}
"""ACT of each name of an activation."""


@triton.jit
def _tanh_inner(v):
    # tanh(u) of the tanh form, u = sqrt(2 / pi) (v + 0.044715 v^3), through exp: exp(2u) = inf gives 1, 0 gives -1.
    doubled = 1.5957691216057308 * v * (1.0 + 0.044715 * v * v)
    return 1.0 - 2.0 / (tl.exp(doubled) + 1.0)


@triton.jit
def activate(v, ACT: tl.constexpr):
    """act(v), of an fp32 block."""
    if ACT == 1:
        return 0.5 * v * (1.0 + tl.erf(0.7071067811865476 * v))
    elif ACT == 2:
        return 0.5 * v * (1.0 + _tanh_inner(v))
    else:
        return v


@triton.jit
def activation_slope(v, ACT: tl.constexpr):
    """The derivative of act at v, of an fp32 block."""
    if ACT == 1:
        density = 0.3989422804014327 * tl.exp(-0.5 * v * v)
        return 0.5 * (1.0 + tl.erf(0.7071067811865476 * v)) + v * density
    elif ACT == 2:
        t = _tanh_inner(v)
        slope = 0.7978845608028654 * (1.0 + 0.134145 * v * v)
        return 0.5 * (1.0 + t) + 0.5 * v * (1.0 - t * t) * slope
    else:
        return tl.full(v.shape, 1.0, tl.float32)
