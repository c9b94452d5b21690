"""The backward kernel of `norm_act_depthwise` (G5): everything in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from intern_kernels import normal
from intern_kernels.activations import ACTS, activate, activation_slope
from intern_kernels.launch import launch, require_contiguous
from intern_kernels.norm_act_depthwise import strips
from intern_kernels.norm_act_depthwise.strips import strip_starts
from intern_kernels.norm_act_depthwise.triton_forward import load_taps
from intern_kernels.normal import Norm, channel_norm, row_statistics
from intern_kernels.tiles import load_fp32, program_channels, program_rows


@triton.jit
def _gradient(grad_ptr, y_ptr, at, inside, c, c_inside, origin, of_sum, of_square, C: tl.constexpr):
    # dy [strips, c] at one position a strip, with what comes through the sums; 0 where that is outside of the map.
    inside = inside[:, None] & c_inside[None, :]
    offset = at[:, None] * C + c[None, :]
    if y_ptr is None:
        return load_fp32(grad_ptr + offset, inside)
    else:
        dy = of_sum + (load_fp32(y_ptr + offset, inside) - origin) * of_square
        if grad_ptr is not None:
            dy += load_fp32(grad_ptr + offset, inside)
        return tl.where(inside, dy, 0.0)


@triton.jit
def _element(
    dphi, x_ptr, mean_ptr, rstd_ptr, dx_ptr, row_ptr, positions, at, inside, c, c_inside,
    channel_mean, channel_rstd, weight, bias, C: tl.constexpr, NORM: tl.constexpr, ACT: tl.constexpr,
):  # fmt: skip
    # (phi, dv, dv x̂) [strips, c] at one position a strip, 0 where that is outside of the map; dx and row sums go out.
    c_and_inside = inside[:, None] & c_inside[None, :]
    offset = at[:, None] * C + c[None, :]
    away = load_fp32(x_ptr + offset, c_and_inside)
    v, rstd = away, 1.0
    if NORM > 0:
        mean, rstd = row_statistics(channel_mean, channel_rstd, mean_ptr, rstd_ptr, at, inside, NORM)
        away -= mean
        v = away * (rstd * weight) + bias
    phi = tl.where(inside[:, None], activate(v, ACT), 0.0)
    dv = tl.where(inside[:, None], dphi * activation_slope(v, ACT), 0.0)
    dn = dv * weight
    if row_ptr is not None:
        row = row_ptr + tl.program_id(0).to(tl.int64) * 2 * positions + at
        tl.store(row, tl.sum(dn, 1), inside)
        tl.store(row + positions, tl.sum(dn * away, 1), inside)
    if dx_ptr is not None:
        tl.store(dx_ptr + offset, (dn * rstd).to(dx_ptr.dtype.element_ty), c_and_inside)
    return phi, dv, dv * (away * rstd)


@triton.jit
def norm_act_depthwise_backward(
    grad_ptr, y_ptr, origin_ptr, grad_sums_ptr, x_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, kernel_ptr,
    dx_ptr, dkernel_ptr, partial_ptr, row_ptr, strips, each, height, parts, positions, h, w, out_h, out_w,
    C: tl.constexpr, STRIDE: tl.constexpr, NORM: tl.constexpr, ACT: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dy = grad + grad_sums[0] + 2 (y - origin) grad_sums[1] (no grad: 0; no y: grad alone), dphi = dy convolved with
    the kernel turned round, dv = dphi act'(v), and of these: dx = dv weight rstd; dkernel[program, tap, c] = sums of
    phi dy; partial[program, 0 | 1, c] = sums of dv, dv (x - mean) rstd over positions; row[column, 0 | 1, position] =
    sums of dv weight, dv weight (x - mean) over channels. No pointer: not asked for. `positions`: all there are of x.

    With stride 1 a strip has one position of x for each output, whose neighbours' dy, nine, lie in registers; a step
    loads a row of three. With stride 2 it has two by two, which four dy touch; a step loads two.
    """
    c, c_inside = program_channels(C, BLOCK_C)
    first, count = program_rows(strips, each)
    channel_mean, channel_rstd, weight, bias = channel_norm(mean_ptr, rstd_ptr, weight_ptr, bias_ptr, c, c_inside, NORM)
    k0, k1, k2 = load_taps(kernel_ptr, 0, c, c_inside, C)
    k3, k4, k5 = load_taps(kernel_ptr, 1, c, c_inside, C)
    k6, k7, k8 = load_taps(kernel_ptr, 2, c, c_inside, C)
    origin, of_sum, of_square = 0.0, 0.0, 0.0
    if y_ptr is not None:
        origin = load_fp32(origin_ptr + c, c_inside)[None, :]
        of_sum = load_fp32(grad_sums_ptr + c, c_inside)[None, :]
        of_square = 2.0 * load_fp32(grad_sums_ptr + C + c, c_inside)[None, :]
    zero = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    d0, d1, d2, d3, d4, d5, d6, d7, d8 = zero, zero, zero, zero, zero, zero, zero, zero, zero
    total, along = zero, zero
    for begin in range(0, count, BLOCK_R):
        r = begin + tl.arange(0, BLOCK_R)
        r_inside = r < count
        sample, top, column = strip_starts(first.to(tl.int32) + r, height, parts, out_w)
        start, out_start = sample * (h * w), sample * (out_h * out_w)
        right_inside = r_inside & (column + 1 < out_w)
        # dy to the left, at and to the right of the strip: above, at and below its output at hand
        above_left, above, above_right = zero, zero, zero
        left, middle, right = zero, zero, zero
        for step in range(STRIDE - 3, height):  # below 0 only rows of dy are loaded
            out = top + step
            row_inside = (out + 1 >= 0) & (out + 1 < out_h)
            at = out_start + ((out + 1) * out_w + column)
            below = _gradient(grad_ptr, y_ptr, at, r_inside & row_inside, c, c_inside, origin, of_sum, of_square, C)
            below_right = _gradient(
                grad_ptr, y_ptr, at + 1, right_inside & row_inside, c, c_inside, origin, of_sum, of_square, C
            )
            inside = r_inside & (step >= 0) & (out < out_h)
            if STRIDE == 1:
                below_left = _gradient(
                    grad_ptr, y_ptr, at - 1, r_inside & row_inside & (column > 0), c, c_inside, origin, of_sum,
                    of_square, C,
                )  # fmt: skip
                dphi = above_left * k8 + above * k7 + above_right * k6 + left * k5 + middle * k4 + right * k3
                dphi += below_left * k2 + below * k1 + below_right * k0
                phi, dv, dv_along = _element(
                    dphi, x_ptr, mean_ptr, rstd_ptr, dx_ptr, row_ptr, positions, start + (out * w + column), inside,
                    c, c_inside, channel_mean, channel_rstd, weight, bias, C, NORM, ACT,
                )  # fmt: skip
                total += dv
                along += dv_along
                d0 += phi * below_right
                d1 += phi * below
                d2 += phi * below_left
                d3 += phi * right
                d4 += phi * middle
                d5 += phi * left
                d6 += phi * above_right
                d7 += phi * above
                d8 += phi * above_left
                above_left, above, above_right = left, middle, right
                left = below_left
            else:
                x_right = inside & (2 * column + 1 < w)
                x_below = 2 * out + 1 < h
                at = start + (2 * out * w + 2 * column)
                phi, dv, dv_along = _element(
                    middle * k4, x_ptr, mean_ptr, rstd_ptr, dx_ptr, row_ptr, positions, at, inside,
                    c, c_inside, channel_mean, channel_rstd, weight, bias, C, NORM, ACT,
                )  # fmt: skip
                total += dv
                along += dv_along
                d4 += phi * middle
                phi, dv, dv_along = _element(
                    right * k3 + middle * k5, x_ptr, mean_ptr, rstd_ptr, dx_ptr, row_ptr, positions, at + 1, x_right,
                    c, c_inside, channel_mean, channel_rstd, weight, bias, C, NORM, ACT,
                )  # fmt: skip
                total += dv
                along += dv_along
                d3 += phi * right
                d5 += phi * middle
                phi, dv, dv_along = _element(
                    below * k1 + middle * k7, x_ptr, mean_ptr, rstd_ptr, dx_ptr, row_ptr, positions, at + w,
                    inside & x_below, c, c_inside, channel_mean, channel_rstd, weight, bias, C, NORM, ACT,
                )  # fmt: skip
                total += dv
                along += dv_along
                d1 += phi * below
                d7 += phi * middle
                phi, dv, dv_along = _element(
                    below_right * k0 + below * k2 + right * k6 + middle * k8,
                    x_ptr, mean_ptr, rstd_ptr, dx_ptr, row_ptr, positions, at + w + 1,
                    x_right & x_below, c, c_inside, channel_mean, channel_rstd, weight, bias, C, NORM, ACT,
                )  # fmt: skip
                total += dv
                along += dv_along
                d0 += phi * below_right
                d2 += phi * below
                d6 += phi * right
                d8 += phi * middle
            middle, right = below, below_right
    if partial_ptr is not None:
        partial_ptr += tl.program_id(1) * 2 * C + c
        tl.store(partial_ptr, tl.sum(total, 0), c_inside)
        tl.store(partial_ptr + C, tl.sum(along, 0), c_inside)
    if dkernel_ptr is not None:
        dkernel_ptr += tl.program_id(1) * 9 * C + c
        tl.store(dkernel_ptr, tl.sum(d0, 0), c_inside)
        tl.store(dkernel_ptr + C, tl.sum(d1, 0), c_inside)
        tl.store(dkernel_ptr + 2 * C, tl.sum(d2, 0), c_inside)
        tl.store(dkernel_ptr + 3 * C, tl.sum(d3, 0), c_inside)
        tl.store(dkernel_ptr + 4 * C, tl.sum(d4, 0), c_inside)
        tl.store(dkernel_ptr + 5 * C, tl.sum(d5, 0), c_inside)
        tl.store(dkernel_ptr + 6 * C, tl.sum(d6, 0), c_inside)
        tl.store(dkernel_ptr + 7 * C, tl.sum(d7, 0), c_inside)
        tl.store(dkernel_ptr + 8 * C, tl.sum(d8, 0), c_inside)


def backward(
    grad: Tensor | None,
    y: Tensor,
    origin: Tensor | None,
    grad_sums: Tensor | None,
    x: Tensor,
    norm: Norm,
    act: str,
    kernel: Tensor,
    stride: int,
    want_x: bool,
    want_kernel: bool,
    want_channels: bool,
    want_rows: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """What is wanted of: dx; fp32 dkernel [9, c]; sums [2, c] of dv and dv (x - mean) rstd; those [2, b, h, w] of
    dv weight and dv weight (x - mean) over the channels of each position. Of grad and grad_sums one may be None.
    """
    mean, rstd, weight, bias = norm
    require_contiguous(
        grad=grad, y=y, origin=origin, grad_sums=grad_sums, x=x, mean=mean, rstd=rstd, weight=weight, bias=bias,
        kernel=kernel,
    )  # fmt: skip
    c = x.shape[-1]
    plan = strips.plan("norm_act_depthwise_backward", y, stride, elements=4)

    def exact(first: int, *shape: int) -> Tensor:
        return torch.empty(first, *shape, dtype=torch.float32, device=x.device)

    dx = torch.empty_like(x) if want_x else None
    dkernel = exact(plan.programs, 9, c) if want_kernel else None
    partial = exact(plan.programs, 2, c) if want_channels else None
    row = exact(plan.columns, 2, *x.shape[:-1]) if want_rows else None
    through_sums = (None, None, None) if grad_sums is None else (y, origin, grad_sums)
    sizes = (plan.strips, plan.each, plan.height, plan.parts, x.shape[:-1].numel(), *x.shape[1:3], *y.shape[1:3])
    constants = {"C": c, "STRIDE": stride, "NORM": normal.form(mean), "ACT": ACTS[act]}
    arguments = (grad, *through_sums, x, *norm, kernel, dx, dkernel, partial, row, *sizes)
    launch(norm_act_depthwise_backward, (plan.columns, plan.programs), arguments, plan.config, **constants)
    dkernel, partial, row = (None if parts is None else parts.sum(0) for parts in (dkernel, partial, row))
    return dx, dkernel, partial, row
