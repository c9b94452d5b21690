"""The kernels of `channel_sums` as ops that autograd and torch.compile know."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@torch.library.custom_op("intern::channel_sums", mutates_args=())
def channel_sums(x_bhwc: Tensor, origin_c: Tensor) -> Tensor:
    """fp32 [2, c]: the sums of x - origin and of (x - origin)^2 over all but the last axis.

    Args:
        x_bhwc: contiguous, fp32, bf16 or fp16.
        origin_c: fp32; gets no gradient.
    """
    from intern_kernels.channel_sums import triton

    return triton.forward(x_bhwc, origin_c)


@torch.library.custom_op("intern::channel_sums_backward", mutates_args=())
def channel_sums_backward(grad_bhwc: Tensor | None, x_bhwc: Tensor, origin_c: Tensor, grad_sums: Tensor) -> Tensor:
    """grad + grad_sums[0] + 2 (x - origin) grad_sums[1], in one pass."""
    from intern_kernels.channel_sums import triton

    return triton.backward(grad_bhwc, x_bhwc, origin_c, grad_sums)


@channel_sums.register_fake
def _(x_bhwc: Tensor, origin_c: Tensor) -> Tensor:
    return x_bhwc.new_empty(2, x_bhwc.shape[-1], dtype=torch.float32)


@channel_sums_backward.register_fake
def _(grad_bhwc: Tensor | None, x_bhwc: Tensor, origin_c: Tensor, grad_sums: Tensor) -> Tensor:
    return torch.empty_like(x_bhwc)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_sums: Tensor) -> tuple[Tensor, None]:
    return channel_sums_backward(None, *ctx.saved_tensors, grad_sums.contiguous()), None


channel_sums.register_autograd(_backward, setup_context=_keep)


class _WithChannelSums(torch.autograd.Function):
    """x passes through, so that its gradient and that of its sums come to the same place, and one pass adds them."""

    @staticmethod
    def forward(ctx: Any, x_bhwc: Tensor, origin_c: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x_bhwc, origin_c)
        return x_bhwc.view_as(x_bhwc), channel_sums(x_bhwc, origin_c)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_bhwc: Tensor | None, grad_sums: Tensor | None) -> tuple[Tensor | None, None]:
        if grad_sums is None:
            return grad_bhwc, None
        grad_bhwc = None if grad_bhwc is None else grad_bhwc.contiguous()
        return channel_sums_backward(grad_bhwc, *ctx.saved_tensors, grad_sums.contiguous()), None


def with_channel_sums(x_bhwc: Tensor, origin_c: Tensor) -> tuple[Tensor, Tensor]:
    """(x, its `channel_sums`): whoever goes on with this x pays one pass for both gradients, 3 maps moved, not 6."""
    return _WithChannelSums.apply(x_bhwc, origin_c)
