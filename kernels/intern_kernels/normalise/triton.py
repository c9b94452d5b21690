"""Kernels of `normalise`: one pass forward, one pass backward."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from intern_kernels import normal, tiles
from intern_kernels.activations import ACTS, activate, activation_slope
from intern_kernels.launch import launch, require_contiguous
from intern_kernels.normal import channel_norm, row_statistics
from intern_kernels.tiles import load_fp32, program_channels, program_rows


@triton.jit
def _factors(factor_ptr, first, r, r_inside, positions):
    # [rows, 1]: each row's sample's factor. The 64-bit division is done once a program.
    sample = first // positions
    r = (first - sample * positions).to(tl.int32) + r
    return load_fp32(factor_ptr + sample + r // positions, r_inside)[:, None]


@triton.jit
def normalise_forward(
    x_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, residual_ptr, factor_ptr, out_ptr, rows, each, positions,
    C: tl.constexpr, NORM: tl.constexpr, ACT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out = residual + factor act(v); no pointer: no residual, no factor. `positions`: rows of a sample."""
    c, c_inside = program_channels(C, BLOCK_C)
    first, count = program_rows(rows, each)
    channel_mean, channel_rstd, weight, bias = channel_norm(mean_ptr, rstd_ptr, weight_ptr, bias_ptr, c, c_inside, NORM)
    for start in range(0, count, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        r_inside = r < count
        inside = r_inside[:, None] & c_inside[None, :]
        at = first * C + (r[:, None] * C + c[None, :])
        v = load_fp32(x_ptr + at, inside)
        if NORM > 0:
            mean, rstd = row_statistics(channel_mean, channel_rstd, mean_ptr, rstd_ptr, first + r, r_inside, NORM)
            v = (v - mean) * (rstd * weight) + bias
        out = activate(v, ACT)
        if factor_ptr is not None:
            out *= _factors(factor_ptr, first, r, r_inside, positions)
        if residual_ptr is not None:
            out += load_fp32(residual_ptr + at, inside)
        tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), inside)


@triton.jit
def normalise_backward(
    grad_ptr, x_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, factor_ptr, dx_ptr, partial_ptr, row_ptr,
    rows, each, positions,
    C: tl.constexpr, NORM: tl.constexpr, ACT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dv = grad factor act'(v), and of it: dx = dv weight rstd; partial[program, 0 | 1, c] = sums of dv, dv (x - mean)
    rstd over rows; row[column, 0 | 1, r] = sums of dv weight, dv weight (x - mean) over channels. No pointer: not asked
    for.
    """
    c, c_inside = program_channels(C, BLOCK_C)
    first, count = program_rows(rows, each)
    channel_mean, channel_rstd, weight, bias = channel_norm(mean_ptr, rstd_ptr, weight_ptr, bias_ptr, c, c_inside, NORM)
    if partial_ptr is not None:
        total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
        along = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for start in range(0, count, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        r_inside = r < count
        inside = r_inside[:, None] & c_inside[None, :]
        at = first * C + (r[:, None] * C + c[None, :])
        dv = load_fp32(grad_ptr + at, inside)
        if factor_ptr is not None:
            dv *= _factors(factor_ptr, first, r, r_inside, positions)
        if NORM > 0:
            mean, rstd = row_statistics(channel_mean, channel_rstd, mean_ptr, rstd_ptr, first + r, r_inside, NORM)
            away = load_fp32(x_ptr + at, inside) - mean
            dv *= activation_slope(away * (rstd * weight) + bias, ACT)
            if partial_ptr is not None:
                total += dv
                along += dv * (away * rstd)
            dv *= weight
            if row_ptr is not None:
                row = row_ptr + tl.program_id(0).to(tl.int64) * 2 * rows + first + r
                tl.store(row, tl.sum(dv, 1), r_inside)
                tl.store(row + rows, tl.sum(dv * away, 1), r_inside)
            dv *= rstd
        else:
            dv *= activation_slope(load_fp32(x_ptr + at, inside), ACT)
        if dx_ptr is not None:
            tl.store(dx_ptr + at, dv.to(dx_ptr.dtype.element_ty), inside)
    if partial_ptr is not None:
        partial_ptr += tl.program_id(1) * 2 * C + c
        tl.store(partial_ptr, tl.sum(total, 0), c_inside)
        tl.store(partial_ptr + C, tl.sum(along, 0), c_inside)


def forward(
    x: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    act: str,
    residual: Tensor | None,
    factor: Tensor | None,
) -> Tensor:
    """`normalise` of x [b, ..., c]."""
    require_contiguous(x=x, mean=mean, rstd=rstd, weight=weight, bias=bias, residual=residual, factor=factor)
    plan = tiles.plan("normalise_forward", x, elements=16)
    out = torch.empty_like(x)
    arguments = (x, mean, rstd, weight, bias, residual, factor, out, plan.rows, plan.each, _positions(x))
    constants = {"C": x.shape[-1], "NORM": normal.form(mean), "ACT": ACTS[act]}
    launch(normalise_forward, (plan.columns, plan.programs), arguments, plan.config, **constants)
    return out


def backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    act: str,
    factor: Tensor | None,
    want_x: bool,
    want_channels: bool,
    want_rows: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """What is wanted of: dx; sums [2, c] of dv and dv (x - mean) rstd; those [2, ...] of dv weight and
    dv weight (x - mean) over the channels of each position.
    """
    require_contiguous(grad=grad, x=x, mean=mean, rstd=rstd, weight=weight, bias=bias, factor=factor)
    plan = tiles.plan("normalise_backward", x, elements=8)
    c = x.shape[-1]
    dx = torch.empty_like(x) if want_x else None
    partial = torch.empty(plan.programs, 2, c, dtype=torch.float32, device=x.device) if want_channels else None
    row = torch.empty(plan.columns, 2, *x.shape[:-1], dtype=torch.float32, device=x.device) if want_rows else None
    arguments = (grad, x, mean, rstd, weight, bias, factor, dx, partial, row, plan.rows, plan.each, _positions(x))
    constants = {"C": c, "NORM": normal.form(mean), "ACT": ACTS[act]}
    launch(normalise_backward, (plan.columns, plan.programs), arguments, plan.config, **constants)
    return dx, None if partial is None else partial.sum(0), None if row is None else row.sum(0)


def _positions(x: Tensor) -> int:
    return x.shape[1:-1].numel()
