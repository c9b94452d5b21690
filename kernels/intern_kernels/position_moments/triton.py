"""Kernels of `position_moments`: mean and deviation of each row, and one pass that carries their gradient back."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from intern_kernels import tiles
from intern_kernels.launch import Config, launch, require_contiguous
from intern_kernels.tiles import load_fp32, program_channels, program_rows
from intern_kernels.tuning import pick


@triton.jit
def position_moments_forward(
    x_ptr, mean_ptr, rstd_ptr, rows, eps, C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """Moments of each chunk of channels about its own mean, joined by Chan's rule: one load, no digits lost."""
    first = tl.program_id(0).to(tl.int64) * BLOCK_R
    r = tl.arange(0, BLOCK_R)
    r_inside = r < rows - first
    x_ptr += first * C
    mean = tl.zeros((BLOCK_R,), tl.float32)
    away = tl.zeros((BLOCK_R,), tl.float32)
    for start in range(0, C, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        inside = r_inside[:, None] & (c < C)[None, :]
        x = load_fp32(x_ptr + r[:, None] * C + c[None, :], inside)
        count = tl.minimum(C - start, BLOCK_C).to(tl.float32)
        chunk_mean = tl.sum(x, 1) / count
        d = tl.where(inside, x - chunk_mean[:, None], 0.0)
        apart = chunk_mean - mean
        mean += apart * (count / (start + count))
        away += tl.sum(d * d, 1) + apart * apart * (start * count / (start + count))
    tl.store(mean_ptr + first + r, mean, r_inside)
    tl.store(rstd_ptr + first + r, 1.0 / tl.sqrt(away / C + eps), r_inside)


@triton.jit
def position_moments_backward(
    grad_ptr, x_ptr, mean_ptr, rstd_ptr, grad_mean_ptr, grad_rstd_ptr, dx_ptr, rows, each,
    C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dx = grad + grad_mean / C - grad_rstd rstd^3 (x - mean) / C; each gradient without a pointer is 0."""
    c, c_inside = program_channels(C, BLOCK_C)
    first, count = program_rows(rows, each)
    for start in range(0, count, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        r_inside = r < count
        inside = r_inside[:, None] & c_inside[None, :]
        at = first * C + (r[:, None] * C + c[None, :])
        dx = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
        if grad_ptr is not None:
            dx += load_fp32(grad_ptr + at, inside)
        if grad_mean_ptr is not None:
            dx += (load_fp32(grad_mean_ptr + first + r, r_inside) / C)[:, None]
        if grad_rstd_ptr is not None:
            mean = load_fp32(mean_ptr + first + r, r_inside)
            rstd = load_fp32(rstd_ptr + first + r, r_inside)
            slope = load_fp32(grad_rstd_ptr + first + r, r_inside) * rstd * rstd * rstd / C
            dx -= slope[:, None] * (load_fp32(x_ptr + at, inside) - mean[:, None])
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), inside)


def _config(c: int, num_warps: int = 4, elements: int = 16) -> Config:
    """Rows as a whole up to 512 channels, then chunks of 512: one reduction over threads for each."""
    block_c = min(512, triton.next_power_of_2(c))
    return Config({"BLOCK_R": max(1, 32 * num_warps * elements // block_c), "BLOCK_C": block_c}, num_warps)


def forward(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(mean, rstd) of each row of x [..., c]: fp32."""
    require_contiguous(x=x)
    c = x.shape[-1]
    space = [_config(c, num_warps, elements) for num_warps in (4, 8) for elements in (8, 16, 32)]
    config = pick("position_moments_forward", (c, str(x.dtype)), _config(c), lambda: space)
    mean = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    rstd = torch.empty_like(mean)
    grid = (triton.cdiv(mean.numel(), config["BLOCK_R"]),)
    launch(position_moments_forward, grid, (x, mean, rstd, mean.numel(), eps), config, C=c)
    return mean, rstd


def backward(
    grad: Tensor | None,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    grad_mean: Tensor | None,
    grad_rstd: Tensor | None,
) -> Tensor:
    """The gradient of x, from those of its moments and, if given, of x's other uses."""
    require_contiguous(grad=grad, x=x, mean=mean, rstd=rstd, grad_mean=grad_mean, grad_rstd=grad_rstd)
    plan = tiles.plan("position_moments_backward", x, elements=16)
    dx = torch.empty_like(x)
    arguments = (grad, x, mean, rstd, grad_mean, grad_rstd, dx, plan.rows, plan.each)
    launch(position_moments_backward, (plan.columns, plan.programs), arguments, plan.config, C=x.shape[-1])
    return dx
