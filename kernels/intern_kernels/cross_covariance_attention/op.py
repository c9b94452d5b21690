"""Cross-covariance attention as operators that torch knows, `intern::cross_covariance_attention` and its backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

WIDEST = {torch.bfloat16: 128, torch.float16: 64, torch.float32: 64}
"""Channels of a head whose matrices fit into a program's registers."""


def limit(q_bnhd: Tensor, v_bnhe: Tensor) -> str | None:
    """What of the shapes is beyond the kernels; None where they take them."""
    width, widest = max(q_bnhd.shape[-1], v_bnhe.shape[-1]), WIDEST.get(q_bnhd.dtype, 0)
    return f"heads have {width} channels, and kernels take {widest} in {q_bnhd.dtype}" if width > widest else None


def cross_covariance_attention(q_bnhd: Tensor, k_bnhe: Tensor, v_bnhe: Tensor, temperature_h11: Tensor) -> Tensor:
    """As `reference.cross_covariance_attention`. q, k, v may be slices of one tensor; channels must lie side by side.

    Raises:
        ValueError: they do not.
    """
    for name, tensor in (("q_bnhd", q_bnhd), ("k_bnhe", k_bnhe), ("v_bnhe", v_bnhe)):
        if tensor.stride(-1) != 1:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)} and strides {tensor.stride()}: this kernel takes channels "
                f"side by side, stride 1; call {name}.contiguous()"
            )
    return _forward(q_bnhd, k_bnhe, v_bnhe, temperature_h11.flatten())


@torch.library.custom_op("intern::cross_covariance_attention", mutates_args=())
def _forward(q_bnhd: Tensor, k_bnhe: Tensor, v_bnhe: Tensor, temperature_h: Tensor) -> Tensor:
    from intern_kernels.cross_covariance_attention import triton

    return triton.forward(q_bnhd, k_bnhe, v_bnhe, temperature_h)


@torch.library.custom_op("intern::cross_covariance_attention_backward", mutates_args=())
def _backward(
    grad_bnhd: Tensor, q_bnhd: Tensor, k_bnhe: Tensor, v_bnhe: Tensor, temperature_h: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from intern_kernels.cross_covariance_attention import triton

    return triton.backward(grad_bnhd.contiguous(), q_bnhd, k_bnhe, v_bnhe, temperature_h)


@_forward.register_fake
def _(q_bnhd: Tensor, k_bnhe: Tensor, v_bnhe: Tensor, temperature_h: Tensor) -> Tensor:
    return torch.empty_like(q_bnhd, memory_format=torch.contiguous_format)


@_backward.register_fake
def _(
    grad_bnhd: Tensor, q_bnhd: Tensor, k_bnhe: Tensor, v_bnhe: Tensor, temperature_h: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q_bnhd, k_bnhe, v_bnhe))
    return dq, dk, dv, torch.empty_like(temperature_h, dtype=torch.float32)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grad_bnhd: Tensor) -> tuple[Tensor | None, ...]:
    *grads, dt_h = _backward(grad_bnhd, *ctx.saved_tensors)
    grads.append(dt_h.to(ctx.saved_tensors[-1].dtype))
    return tuple(grad if asked else None for grad, asked in zip(grads, ctx.needs_input_grad, strict=True))


_forward.register_autograd(_gradients, setup_context=_save)


@register_flop_formula(torch.ops.intern.cross_covariance_attention)
def _forward_flops(q_shape: tuple[int, ...], k_shape: tuple[int, ...], *_: Any, **__: Any) -> int:
    b, n, heads, d = q_shape
    return 4 * b * n * heads * d * k_shape[-1]


@register_flop_formula(torch.ops.intern.cross_covariance_attention_backward)
def _backward_flops(_: Any, q_shape: tuple[int, ...], k_shape: tuple[int, ...], *__: Any, **___: Any) -> int:
    """The correlation again, and a product each for the mixture and for q, k and v."""
    b, n, heads, d = q_shape
    return 10 * b * n * heads * d * k_shape[-1]
