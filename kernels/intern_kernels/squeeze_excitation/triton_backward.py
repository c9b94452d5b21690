"""Backward kernels of `squeeze_excitation`: all sums in one pass (G4), then the gradient of the map.

With phi = act(v), phi' its slope at v, g the gradient of the output. The grid is (columns of channels, parts of a
sample, samples).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from intern_kernels import normal, tiles
from intern_kernels.activations import ACTS, activate, activation_slope
from intern_kernels.launch import launch, require_contiguous
from intern_kernels.normal import Norm, channel_norm, row_statistics
from intern_kernels.tiles import load_fp32, program_channels, program_rows


@triton.jit
def gated_sums_kernel(
    grad_ptr, x_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, out_ptr, rows, each,
    C: tl.constexpr, NORM: tl.constexpr, ACT: tl.constexpr, SUMS: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out[part, :, sample, c] = sums over the program's rows of g phi and, with SUMS = 5, of g phi', phi', g phi' x̂
    and phi' x̂, x̂ = (x - mean) rstd.
    """
    c, c_inside = program_channels(C, BLOCK_C)
    first, count = program_rows(rows, each)
    sample = tl.program_id(2)
    channel_mean, channel_rstd, weight, bias = channel_norm(mean_ptr, rstd_ptr, weight_ptr, bias_ptr, c, c_inside, NORM)
    first += sample.to(tl.int64) * rows
    gated = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    if SUMS == 5:
        by_grad = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
        by_pool = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
        by_grad_along = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
        by_pool_along = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for start in range(0, count, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        r_inside = r < count
        inside = r_inside[:, None] & c_inside[None, :]
        at = first * C + (r[:, None] * C + c[None, :])
        g = load_fp32(grad_ptr + at, inside)
        v = load_fp32(x_ptr + at, inside)
        if NORM > 0:
            mean, rstd = row_statistics(channel_mean, channel_rstd, mean_ptr, rstd_ptr, first + r, r_inside, NORM)
            along = (v - mean) * rstd
            v = along * weight + bias
        gated += g * activate(v, ACT)
        if SUMS == 5:
            slope = tl.where(inside, activation_slope(v, ACT), 0.0)
            by_grad += g * slope
            by_pool += slope
            by_grad_along += g * slope * along
            by_pool_along += slope * along
    lane = tl.num_programs(2) * C
    out_ptr += tl.program_id(1) * SUMS * lane + sample * C + c
    tl.store(out_ptr, tl.sum(gated, 0), c_inside)
    if SUMS == 5:
        tl.store(out_ptr + lane, tl.sum(by_grad, 0), c_inside)
        tl.store(out_ptr + 2 * lane, tl.sum(by_pool, 0), c_inside)
        tl.store(out_ptr + 3 * lane, tl.sum(by_grad_along, 0), c_inside)
        tl.store(out_ptr + 4 * lane, tl.sum(by_pool_along, 0), c_inside)


@triton.jit
def gated_gradient_kernel(
    grad_ptr, x_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, gate_ptr, grad_mean_ptr, dx_ptr, row_ptr, rows, each,
    C: tl.constexpr, NORM: tl.constexpr, ACT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dv = phi' (g gate[sample, c] + grad_mean[sample, c] / rows), and of it: dx = dv weight rstd;
    row[column, 0 | 1, r] = sums of dv weight, dv weight (x - mean) over channels. No pointer: not asked for.
    """
    c, c_inside = program_channels(C, BLOCK_C)
    first, count = program_rows(rows, each)
    sample = tl.program_id(2)
    channel_mean, channel_rstd, weight, bias = channel_norm(mean_ptr, rstd_ptr, weight_ptr, bias_ptr, c, c_inside, NORM)
    gate = load_fp32(gate_ptr + sample * C + c, c_inside)[None, :]
    pooled = load_fp32(grad_mean_ptr + sample * C + c, c_inside)[None, :] / rows
    first += sample.to(tl.int64) * rows
    for start in range(0, count, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        r_inside = r < count
        inside = r_inside[:, None] & c_inside[None, :]
        at = first * C + (r[:, None] * C + c[None, :])
        dv = load_fp32(grad_ptr + at, inside) * gate + pooled
        x = load_fp32(x_ptr + at, inside)
        if NORM > 0:
            mean, rstd = row_statistics(channel_mean, channel_rstd, mean_ptr, rstd_ptr, first + r, r_inside, NORM)
            away = x - mean
            dv *= activation_slope(away * (rstd * weight) + bias, ACT) * weight
            if row_ptr is not None:
                row = row_ptr + tl.program_id(0).to(tl.int64) * 2 * rows * tl.num_programs(2) + first + r
                tl.store(row, tl.sum(dv, 1), r_inside)
                tl.store(row + rows * tl.num_programs(2), tl.sum(dv * away, 1), r_inside)
            dv *= rstd
        else:
            dv *= activation_slope(x, ACT)
        if dx_ptr is not None:
            tl.store(dx_ptr + at, dv.to(dx_ptr.dtype.element_ty), inside)


def sums(grad: Tensor, x: Tensor, norm: Norm, act: str, all_five: bool) -> Tensor:
    """fp32 [5 or 1, b, c]: per sample and channel the sums of g phi, g phi', phi', g phi' x̂, phi' x̂."""
    mean, rstd, weight, bias = norm
    require_contiguous(grad=grad, x=x, mean=mean, rstd=rstd, weight=weight, bias=bias)
    b, c, kept = x.shape[0], x.shape[-1], 5 if all_five else 1
    plan = tiles.plan("gated_sums", x, elements=8, samples=b)
    out = torch.empty(plan.programs, kept, b, c, dtype=torch.float32, device=x.device)
    arguments = (grad, x, *norm, out, plan.rows, plan.each)
    constants = {"C": c, "NORM": normal.form(mean), "ACT": ACTS[act], "SUMS": kept}
    launch(gated_sums_kernel, (plan.columns, plan.programs, b), arguments, plan.config, **constants)
    return out.view(kept, b, c) if plan.programs == 1 else out.sum(0)


def gradient(
    grad: Tensor, x: Tensor, norm: Norm, act: str, gate: Tensor, grad_mean: Tensor, want_x: bool, want_rows: bool
) -> tuple[Tensor | None, Tensor | None]:
    """What is wanted of: dx; sums [2, b, h, w] of dv weight and dv weight (x - mean) over channels."""
    mean, rstd, weight, bias = norm
    require_contiguous(grad=grad, x=x, mean=mean, rstd=rstd, weight=weight, bias=bias, gate=gate, grad_mean=grad_mean)
    plan = tiles.plan("gated_gradient", x, elements=16, samples=x.shape[0])
    dx = torch.empty_like(x) if want_x else None
    row = torch.empty(plan.columns, 2, *x.shape[:-1], dtype=torch.float32, device=x.device) if want_rows else None
    arguments = (grad, x, *norm, gate, grad_mean, dx, row, plan.rows, plan.each)
    constants = {"C": x.shape[-1], "NORM": normal.form(mean), "ACT": ACTS[act]}
    launch(gated_gradient_kernel, (plan.columns, plan.programs, x.shape[0]), arguments, plan.config, **constants)
    return dx, None if row is None else row.sum(0)
