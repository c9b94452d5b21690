"""Forward kernels of `squeeze_excitation`: the mean of each channel (G2), and the gated map (G3).

With phi = act(v). The grid is (columns of channels, parts of a sample, samples).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from intern_kernels import normal, tiles
from intern_kernels.activations import ACTS, activate
from intern_kernels.launch import launch, require_contiguous
from intern_kernels.normal import Norm, channel_norm, row_statistics
from intern_kernels.tiles import load_fp32, program_channels, program_rows


@triton.jit
def pool_activated_kernel(
    x_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, out_ptr, rows, each, scale,
    C: tl.constexpr, NORM: tl.constexpr, ACT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out[part, sample, c] = scale * sum of phi over the program's rows."""
    c, c_inside = program_channels(C, BLOCK_C)
    first, count = program_rows(rows, each)
    sample = tl.program_id(2)
    channel_mean, channel_rstd, weight, bias = channel_norm(mean_ptr, rstd_ptr, weight_ptr, bias_ptr, c, c_inside, NORM)
    first += sample.to(tl.int64) * rows
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for start in range(0, count, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        r_inside = r < count
        inside = r_inside[:, None] & c_inside[None, :]
        v = load_fp32(x_ptr + first * C + (r[:, None] * C + c[None, :]), inside)
        if NORM > 0:
            mean, rstd = row_statistics(channel_mean, channel_rstd, mean_ptr, rstd_ptr, first + r, r_inside, NORM)
            v = (v - mean) * (rstd * weight) + bias
        total += tl.where(inside, activate(v, ACT), 0.0)
    out_ptr += (tl.program_id(1) * tl.num_programs(2) + sample) * C + c
    tl.store(out_ptr, (tl.sum(total, 0) * scale).to(out_ptr.dtype.element_ty), c_inside)


@triton.jit
def gate_activated_kernel(
    x_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, gate_ptr, out_ptr, rows, each,
    C: tl.constexpr, NORM: tl.constexpr, ACT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out = phi gate[sample, c]."""
    c, c_inside = program_channels(C, BLOCK_C)
    first, count = program_rows(rows, each)
    sample = tl.program_id(2)
    channel_mean, channel_rstd, weight, bias = channel_norm(mean_ptr, rstd_ptr, weight_ptr, bias_ptr, c, c_inside, NORM)
    gate = load_fp32(gate_ptr + sample * C + c, c_inside)[None, :]
    first += sample.to(tl.int64) * rows
    for start in range(0, count, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        r_inside = r < count
        inside = r_inside[:, None] & c_inside[None, :]
        at = first * C + (r[:, None] * C + c[None, :])
        v = load_fp32(x_ptr + at, inside)
        if NORM > 0:
            mean, rstd = row_statistics(channel_mean, channel_rstd, mean_ptr, rstd_ptr, first + r, r_inside, NORM)
            v = (v - mean) * (rstd * weight) + bias
        tl.store(out_ptr + at, (activate(v, ACT) * gate).to(out_ptr.dtype.element_ty), inside)


def pool(x: Tensor, norm: Norm, act: str) -> Tensor:
    """Mean of phi over the positions of each sample: [b, c], in the dtype of x."""
    mean, rstd, weight, bias = norm
    require_contiguous(x=x, mean=mean, rstd=rstd, weight=weight, bias=bias)
    b, c = x.shape[0], x.shape[-1]
    plan = tiles.plan("pool_activated", x, elements=16, samples=b)
    whole = plan.programs == 1
    out = torch.empty(plan.programs, b, c, dtype=x.dtype if whole else torch.float32, device=x.device)
    arguments = (x, *norm, out, plan.rows, plan.each, 1.0 / max(1, plan.rows))
    constants = {"C": c, "NORM": normal.form(mean), "ACT": ACTS[act]}
    launch(pool_activated_kernel, (plan.columns, plan.programs, b), arguments, plan.config, **constants)
    return out.view(b, c) if whole else out.sum(0).to(x.dtype)


def scale(x: Tensor, norm: Norm, act: str, gate: Tensor) -> Tensor:
    """phi gate, in the dtype of x."""
    mean, rstd, weight, bias = norm
    require_contiguous(x=x, mean=mean, rstd=rstd, weight=weight, bias=bias, gate=gate)
    plan = tiles.plan("gate_activated", x, elements=16, samples=x.shape[0])
    out = torch.empty_like(x)
    arguments = (x, *norm, gate, out, plan.rows, plan.each)
    constants = {"C": x.shape[-1], "NORM": normal.form(mean), "ACT": ACTS[act]}
    launch(gate_activated_kernel, (plan.columns, plan.programs, x.shape[0]), arguments, plan.config, **constants)
    return out
