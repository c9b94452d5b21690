"""Products of tiles inside kernels, on tensor cores."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from intern_kernels.dispatch import interpreted

INTERPRETED = tl.constexpr(interpreted())


@triton.jit
def dot(a: Any, b: Any, sum: Any, PRECISION: tl.constexpr) -> Any:
    """sum + a b, in fp32."""
    if INTERPRETED:  # which holds bf16 as integers, and multiplies those
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sum, input_precision=PRECISION)


def dot_precision() -> str:
    """How fp32 is multiplied: in one product of TF32 where torch may do so, too
    (`torch.set_float32_matmul_precision`), else in three, whose error is that of fp32.
    """
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"
