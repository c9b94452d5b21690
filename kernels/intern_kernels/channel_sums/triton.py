"""Kernels of `channel_sums`: the sums, and one pass that carries their gradient back."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from intern_kernels import tiles
from intern_kernels.launch import launch, require_contiguous
from intern_kernels.tiles import load_fp32, program_channels, program_rows


@triton.jit
def channel_sums_forward(
    x_ptr, origin_ptr, partial_ptr, rows, each, C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """partial[program, 0 | 1, c] = sum of (x - origin), of its square, over the program's rows."""
    c, c_inside = program_channels(C, BLOCK_C)
    first, count = program_rows(rows, each)
    origin = load_fp32(origin_ptr + c, c_inside)[None, :]
    x_ptr += first * C
    sums = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    squares = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for start in range(0, count, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        inside = (r < count)[:, None] & c_inside[None, :]
        away = tl.where(inside, load_fp32(x_ptr + r[:, None] * C + c[None, :], inside) - origin, 0.0)
        sums += away
        squares += away * away
    partial_ptr += tl.program_id(1) * 2 * C + c
    tl.store(partial_ptr, tl.sum(sums, 0), c_inside)
    tl.store(partial_ptr + C, tl.sum(squares, 0), c_inside)


@triton.jit
def channel_sums_backward(
    grad_ptr, x_ptr, origin_ptr, grad_sums_ptr, dx_ptr, rows, each,
    C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dx = grad + grad_sums[0] + 2 (x - origin) grad_sums[1]; no grad_ptr: grad is 0."""
    c, c_inside = program_channels(C, BLOCK_C)
    first, count = program_rows(rows, each)
    origin = load_fp32(origin_ptr + c, c_inside)[None, :]
    of_sum = load_fp32(grad_sums_ptr + c, c_inside)[None, :]
    of_square = 2.0 * load_fp32(grad_sums_ptr + C + c, c_inside)[None, :]
    for start in range(0, count, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        inside = (r < count)[:, None] & c_inside[None, :]
        at = first * C + (r[:, None] * C + c[None, :])
        dx = of_sum + (load_fp32(x_ptr + at, inside) - origin) * of_square
        if grad_ptr is not None:
            dx += load_fp32(grad_ptr + at, inside)
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), inside)


def forward(x: Tensor, origin: Tensor) -> Tensor:
    """`channel_sums` of x [..., c] about origin [c]: fp32 [2, c]."""
    require_contiguous(x=x, origin=origin)
    plan = tiles.plan("channel_sums_forward", x, elements=16)
    partial = torch.empty(plan.programs, 2, x.shape[-1], dtype=torch.float32, device=x.device)
    arguments = (x, origin, partial, plan.rows, plan.each)
    launch(channel_sums_forward, (plan.columns, plan.programs), arguments, plan.config, C=x.shape[-1])
    return partial.sum(0)


def backward(grad: Tensor | None, x: Tensor, origin: Tensor, grad_sums: Tensor) -> Tensor:
    """The gradient of x, from that of the sums [2, c] and, if given, of x's other uses."""
    require_contiguous(grad=grad, x=x, origin=origin, grad_sums=grad_sums)
    plan = tiles.plan("channel_sums_backward", x, elements=16)
    dx = torch.empty_like(x)
    arguments = (grad, x, origin, grad_sums, dx, plan.rows, plan.each)
    launch(channel_sums_backward, (plan.columns, plan.programs), arguments, plan.config, C=x.shape[-1])
    return dx
