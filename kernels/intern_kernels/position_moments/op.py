"""The kernels of `position_moments` as ops that torch.compile knows, and the autograd node that joins them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@torch.library.custom_op("intern::position_moments", mutates_args=())
def position_moments(x_bhwc: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(mean, 1 / sqrt(variance + eps)) over the channels of each position: fp32 [b, h, w]."""
    from intern_kernels.position_moments import triton

    return triton.forward(x_bhwc, eps)


@torch.library.custom_op("intern::position_moments_backward", mutates_args=())
def position_moments_backward(
    grad_bhwc: Tensor | None,
    x_bhwc: Tensor,
    mean_bhw: Tensor,
    rstd_bhw: Tensor,
    grad_mean_bhw: Tensor | None,
    grad_rstd_bhw: Tensor | None,
) -> Tensor:
    """grad + grad_mean / c - grad_rstd rstd^3 (x - mean) / c, in one pass."""
    from intern_kernels.position_moments import triton

    return triton.backward(grad_bhwc, x_bhwc, mean_bhw, rstd_bhw, grad_mean_bhw, grad_rstd_bhw)


@position_moments.register_fake
def _(x_bhwc: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    mean_bhw = x_bhwc.new_empty(x_bhwc.shape[:-1], dtype=torch.float32)
    return mean_bhw, torch.empty_like(mean_bhw)


@position_moments_backward.register_fake
def _(
    grad_bhwc: Tensor | None,
    x_bhwc: Tensor,
    mean_bhw: Tensor,
    rstd_bhw: Tensor,
    grad_mean_bhw: Tensor | None,
    grad_rstd_bhw: Tensor | None,
) -> Tensor:
    return torch.empty_like(x_bhwc)


class _WithPositionMoments(torch.autograd.Function):
    """x passes through, so that its gradient and that of its moments come to the same place, and one pass adds them."""

    @staticmethod
    def forward(ctx: Any, x_bhwc: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        mean_bhw, rstd_bhw = position_moments(x_bhwc, eps)
        ctx.save_for_backward(x_bhwc, mean_bhw, rstd_bhw)
        return x_bhwc.view_as(x_bhwc), mean_bhw, rstd_bhw

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None]:
        grad_bhwc, grad_mean_bhw, grad_rstd_bhw = (None if grad is None else grad.contiguous() for grad in grads)
        if grad_mean_bhw is None and grad_rstd_bhw is None:
            return grad_bhwc, None
        return position_moments_backward(grad_bhwc, *ctx.saved_tensors, grad_mean_bhw, grad_rstd_bhw), None


def with_position_moments(x_bhwc: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(x, mean, 1 / sqrt(variance + eps)): whoever goes on with this x pays one pass for all gradients.

    Args:
        x_bhwc: contiguous, fp32, bf16 or fp16. The moments, over the channels of each position, are fp32 [b, h, w].
    """
    return _WithPositionMoments.apply(x_bhwc, eps)
