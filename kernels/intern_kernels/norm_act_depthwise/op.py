"""The kernels of `norm_act_depthwise` as ops that autograd and torch.compile know."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from intern_kernels.norm_gradients import norm_gradients, wanted


@torch.library.custom_op("intern::norm_act_depthwise", mutates_args=())
def _forward(
    x_bhwc: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    weight_c: Tensor | None,
    bias_c: Tensor | None,
    act: str,
    kernel_9c: Tensor,
    stride: int,
    origin_c: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """As `norm_act_depthwise`."""
    from intern_kernels.norm_act_depthwise import triton_forward

    norm = (mean, rstd, weight_c, bias_c)
    y_bhwc, sums = triton_forward.forward(x_bhwc, norm, act, kernel_9c, stride, origin_c)
    return y_bhwc, x_bhwc.new_empty(0) if sums is None else sums


@torch.library.custom_op("intern::norm_act_depthwise_backward", mutates_args=())
def _backward(
    grad_bhwc: Tensor | None,
    y_bhwc: Tensor,
    origin_c: Tensor | None,
    grad_sums: Tensor | None,
    x_bhwc: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    weight_c: Tensor | None,
    bias_c: Tensor | None,
    act: str,
    kernel_9c: Tensor,
    stride: int,
    want_x: bool,
    want_kernel: bool,
    want_sums: bool,
    want_row_sums: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dx, dkernel in fp32, sums and row sums as in `norm_gradients`), of one pass; empty where not wanted."""
    from intern_kernels.norm_act_depthwise import triton_backward

    norm, wants = (mean, rstd, weight_c, bias_c), (want_x, want_kernel, want_sums, want_row_sums)
    made = triton_backward.backward(
        grad_bhwc, y_bhwc, origin_c, grad_sums, x_bhwc, norm, act, kernel_9c, stride, *wants
    )
    dx, dkernel, sums, row_sums = (x_bhwc.new_empty(0) if tensor is None else tensor for tensor in made)
    return dx, dkernel, sums, row_sums


@_forward.register_fake
def _(x_bhwc: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    b, h, w, c = x_bhwc.shape
    stride, origin_c = rest[-2:]
    y_bhwc = x_bhwc.new_empty(b, (h + stride - 1) // stride, (w + stride - 1) // stride, c)
    return y_bhwc, x_bhwc.new_empty(0) if origin_c is None else x_bhwc.new_empty(2, c, dtype=torch.float32)


@_backward.register_fake
def _(
    grad_bhwc: Tensor | None, y_bhwc: Tensor, origin_c: Tensor | None, grad_sums: Tensor | None, x_bhwc: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    want_x, want_kernel, want_sums, want_row_sums = rest[-4:]
    nothing, exact, c = x_bhwc.new_empty(0), x_bhwc.new_empty(0, dtype=torch.float32), x_bhwc.shape[-1]
    return (
        torch.empty_like(x_bhwc) if want_x else nothing,
        exact.new_empty(9, c) if want_kernel else nothing.clone(),
        exact.new_empty(2, c) if want_sums else nothing.clone(),
        exact.new_empty(2, *x_bhwc.shape[:-1]) if want_row_sums else nothing.clone(),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x_bhwc, mean, rstd, weight_c, bias_c, ctx.act, kernel_9c, ctx.stride, origin_c = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[0], origin_c, x_bhwc, mean, rstd, weight_c, bias_c, kernel_9c)


def _gradients(ctx: Any, grad_bhwc: Tensor | None, grad_sums: Tensor | None) -> tuple[Tensor | None, ...]:
    y_bhwc, origin_c, x_bhwc, *norm, kernel_9c = ctx.saved_tensors
    need_x, *needs, _, need_kernel, _, _ = ctx.needs_input_grad
    grad_sums = None if origin_c is None else grad_sums
    if grad_bhwc is None and grad_sums is None:
        return (None,) * 9
    grad_bhwc, grad_sums = (None if grad is None else grad.contiguous() for grad in (grad_bhwc, grad_sums))
    mean, rstd, weight_c, _ = norm
    dx_bhwc, dkernel_9c, sums, row_sums = _backward(
        grad_bhwc, y_bhwc, origin_c, grad_sums, x_bhwc, *norm, ctx.act, kernel_9c, ctx.stride,
        need_x, need_kernel, *wanted(mean, needs),
    )  # fmt: skip
    dnorm = norm_gradients(needs, rstd, weight_c, sums, row_sums)
    dkernel_9c = dkernel_9c.to(kernel_9c.dtype) if need_kernel else None
    return dx_bhwc if need_x else None, *dnorm, None, dkernel_9c, None, None


_forward.register_autograd(_gradients, setup_context=_keep)


@register_flop_formula(torch.ops.intern.norm_act_depthwise)
def _forward_flops(*_: Any, out_shape: tuple[torch.Size, torch.Size], **__: Any) -> int:
    """Nine multiply-adds an output."""
    return 18 * out_shape[0].numel()


@register_flop_formula(torch.ops.intern.norm_act_depthwise_backward)
def _backward_flops(_: Any, y_shape: torch.Size, *rest: Any, **__: Any) -> int:
    """As many for what goes to x, and for what goes to the kernel."""
    want_x, want_kernel, want_sums, want_row_sums = rest[-4:]
    return 18 * y_shape.numel() * ((want_x or want_sums or want_row_sums) + want_kernel)


def norm_act_depthwise(
    x_bhwc: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    weight_c: Tensor | None,
    bias_c: Tensor | None,
    act: str,
    kernel_9c: Tensor,
    stride: int = 1,
    origin_c: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(y, sums): y [b, h', w', c] = dw3x3(act((x - mean) rstd weight + bias)), in the dtype of x.

    Args:
        x_bhwc: contiguous, fp32, bf16 or fp16.
        mean, rstd, weight_c, bias_c, act: as in `normalise`.
        kernel_9c: of any floating-point dtype; kernel[3 i + j] belongs to the neighbour i - 1 rows down and j - 1
            columns to the right. Outside of the map the activated values are 0.
        stride: 1, or 2: h' = ceil(h / 2).
        origin_c: fp32; gets no gradient. None: no sums.

    Returns:
        y, and fp32 [2, c]: sums of y - origin and of its square, of y as it is stored, as in `channel_sums`; [0]
        without an origin. With their gradient the backward pass reads y as well.

    Raises:
        ValueError: another stride, or a tensor that is not contiguous.
    """
    if stride not in (1, 2):
        raise ValueError(f"stride is {stride}, and this op knows 1 or 2")
    made: tuple[Tensor, Tensor] = _forward(x_bhwc, mean, rstd, weight_c, bias_c, act, kernel_9c, stride, origin_c)
    return made
