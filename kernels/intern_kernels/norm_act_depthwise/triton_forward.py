"""The forward kernel of `norm_act_depthwise` (G1)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from intern_kernels import normal
from intern_kernels.activations import ACTS, activate
from intern_kernels.launch import launch, require_contiguous
from intern_kernels.norm_act_depthwise import strips
from intern_kernels.norm_act_depthwise.strips import strip_starts
from intern_kernels.normal import Norm, channel_norm, row_statistics
from intern_kernels.tiles import load_fp32, program_channels, program_rows


@triton.jit
def load_taps(kernel_ptr, dy: tl.constexpr, c, c_inside, C: tl.constexpr):
    """The three taps [1, c] of the kernel's row dy."""
    kernel_ptr += 3 * dy * C + c
    left, middle = load_fp32(kernel_ptr, c_inside), load_fp32(kernel_ptr + C, c_inside)
    return left[None, :], middle[None, :], load_fp32(kernel_ptr + 2 * C, c_inside)[None, :]


@triton.jit
def _activated(
    x_ptr, mean_ptr, rstd_ptr, position, inside, c, c_inside, channel_mean, channel_rstd, weight, bias,
    C: tl.constexpr, NORM: tl.constexpr, ACT: tl.constexpr,
):  # fmt: skip
    # phi [strips, c] at one position a strip; 0 where that is outside of the map.
    v = load_fp32(x_ptr + (position[:, None] * C + c[None, :]), inside[:, None] & c_inside[None, :])
    if NORM > 0:
        mean, rstd = row_statistics(channel_mean, channel_rstd, mean_ptr, rstd_ptr, position, inside, NORM)
        v = (v - mean) * (rstd * weight) + bias
    return tl.where(inside[:, None], activate(v, ACT), 0.0)


@triton.jit
def _row(
    x_ptr, mean_ptr, rstd_ptr, first, y, x, inside, h, w, c, c_inside, channel_mean, channel_rstd, weight, bias,
    C: tl.constexpr, NORM: tl.constexpr, ACT: tl.constexpr,
):  # fmt: skip
    # phi in row y and columns x - 1, x, x + 1; `first`: the sample's first position.
    inside = inside & (y >= 0) & (y < h)
    at = first + (y * w + x)
    left = _activated(
        x_ptr, mean_ptr, rstd_ptr, at - 1, inside & (x > 0), c, c_inside, channel_mean, channel_rstd, weight, bias,
        C, NORM, ACT,
    )  # fmt: skip
    middle = _activated(
        x_ptr, mean_ptr, rstd_ptr, at, inside, c, c_inside, channel_mean, channel_rstd, weight, bias, C, NORM, ACT
    )
    right = _activated(
        x_ptr, mean_ptr, rstd_ptr, at + 1, inside & (x + 1 < w), c, c_inside, channel_mean, channel_rstd, weight, bias,
        C, NORM, ACT,
    )  # fmt: skip
    return left, middle, right


@triton.jit
def norm_act_depthwise_forward(
    x_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, kernel_ptr, origin_ptr, y_ptr, partial_ptr,
    strips, each, height, parts, h, w, out_h, out_w,
    C: tl.constexpr, STRIDE: tl.constexpr, NORM: tl.constexpr, ACT: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """y = dw3x3(phi); partial[program, 0 | 1, c] = sums of y - origin, of its square, over the program's strips, of y
    as it is stored; no pointers: no sums.

    Each row of phi is added to all outputs that it belongs to. `now` becomes the output that the row at hand completes,
    `next` the one below; with stride 2 an output ends and another begins at every other row.
    """
    c, c_inside = program_channels(C, BLOCK_C)
    first, count = program_rows(strips, each)
    channel_mean, channel_rstd, weight, bias = channel_norm(mean_ptr, rstd_ptr, weight_ptr, bias_ptr, c, c_inside, NORM)
    k0, k1, k2 = load_taps(kernel_ptr, 0, c, c_inside, C)
    k3, k4, k5 = load_taps(kernel_ptr, 1, c, c_inside, C)
    k6, k7, k8 = load_taps(kernel_ptr, 2, c, c_inside, C)
    if partial_ptr is not None:
        origin = load_fp32(origin_ptr + c, c_inside)[None, :]
        sums = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
        squares = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for begin in range(0, count, BLOCK_R):
        r = begin + tl.arange(0, BLOCK_R)
        r_inside = r < count
        sample, top, column = strip_starts(first.to(tl.int32) + r, height, parts, out_w)
        start, x = sample * (h * w), column * STRIDE
        now = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
        next = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
        for step in range(STRIDE - 3, height):  # below 0 there are only rows that the first outputs need
            out = top + step
            if STRIDE == 2:
                left, middle, right = _row(
                    x_ptr, mean_ptr, rstd_ptr, start, 2 * out, x, r_inside & (step >= 0), h, w, c, c_inside,
                    channel_mean, channel_rstd, weight, bias, C, NORM, ACT,
                )  # fmt: skip
                now += left * k3 + middle * k4 + right * k5
            left, middle, right = _row(
                x_ptr, mean_ptr, rstd_ptr, start, STRIDE * out + 1, x, r_inside, h, w, c, c_inside,
                channel_mean, channel_rstd, weight, bias, C, NORM, ACT,
            )  # fmt: skip
            y = (now + (left * k6 + middle * k7 + right * k8)).to(y_ptr.dtype.element_ty)
            inside = (r_inside & (step >= 0) & (out < out_h))[:, None] & c_inside[None, :]
            at = sample * (out_h * out_w) + (out * out_w + column)
            tl.store(y_ptr + (at[:, None] * C + c[None, :]), y, inside)
            if partial_ptr is not None:
                away = tl.where(inside, y.to(tl.float32) - origin, 0.0)
                sums += away
                squares += away * away
            if STRIDE == 1:
                now = next + (left * k3 + middle * k4 + right * k5)
                next = left * k0 + middle * k1 + right * k2
            else:
                now = left * k0 + middle * k1 + right * k2
    if partial_ptr is not None:
        partial_ptr += tl.program_id(1) * 2 * C + c
        tl.store(partial_ptr, tl.sum(sums, 0), c_inside)
        tl.store(partial_ptr + C, tl.sum(squares, 0), c_inside)


def forward(
    x: Tensor, norm: Norm, act: str, kernel: Tensor, stride: int, origin: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """`norm_act_depthwise` of x [b, h, w, c]: y, and sums [2, c] where there is an origin."""
    mean, rstd, weight, bias = norm
    require_contiguous(x=x, mean=mean, rstd=rstd, weight=weight, bias=bias, kernel=kernel, origin=origin)
    b, h, w, c = x.shape
    y = torch.empty(b, triton.cdiv(h, stride), triton.cdiv(w, stride), c, dtype=x.dtype, device=x.device)
    plan = strips.plan("norm_act_depthwise_forward", y, stride, elements=16 // x.element_size())
    partial = None if origin is None else torch.empty(plan.programs, 2, c, dtype=torch.float32, device=x.device)
    sizes = (plan.strips, plan.each, plan.height, plan.parts, h, w, *y.shape[1:3])
    constants = {"C": c, "STRIDE": stride, "NORM": normal.form(mean), "ACT": ACTS[act]}
    arguments = (x, *norm, kernel, origin, y, partial, *sizes)
    launch(norm_act_depthwise_forward, (plan.columns, plan.programs), arguments, plan.config, **constants)
    return y, None if partial is None else partial.sum(0)
