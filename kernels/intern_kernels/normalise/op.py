"""The kernels of `normalise` as ops that autograd and torch.compile know."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from intern_kernels.norm_gradients import norm_gradients, wanted


@torch.library.custom_op("intern::normalise", mutates_args=())
def normalise_forward(
    x_bhwc: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    weight_c: Tensor | None,
    bias_c: Tensor | None,
    act: str,
    residual_bhwc: Tensor | None,
    factor_b: Tensor | None,
) -> Tensor:
    """As `normalise`."""
    from intern_kernels.normalise import triton

    return triton.forward(x_bhwc, mean, rstd, weight_c, bias_c, act, residual_bhwc, factor_b)


@torch.library.custom_op("intern::normalise_backward", mutates_args=())
def normalise_backward(
    grad_bhwc: Tensor,
    x_bhwc: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    weight_c: Tensor | None,
    bias_c: Tensor | None,
    act: str,
    factor_b: Tensor | None,
    want_x: bool,
    want_sums: bool,
    want_row_sums: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, sums, row sums) as in `norm_gradients`, of one pass; empty where not wanted."""
    from intern_kernels.normalise import triton

    wants = (want_x, want_sums, want_row_sums)
    made = triton.backward(grad_bhwc, x_bhwc, mean, rstd, weight_c, bias_c, act, factor_b, *wants)
    dx, sums, row_sums = (x_bhwc.new_empty(0) if tensor is None else tensor for tensor in made)
    return dx, sums, row_sums


@normalise_forward.register_fake
def _(x_bhwc: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x_bhwc)


@normalise_backward.register_fake
def _(grad_bhwc: Tensor, x_bhwc: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    want_x, want_sums, want_row_sums = rest[-3:]
    exact = x_bhwc.new_empty(0, dtype=torch.float32)
    return (
        torch.empty_like(x_bhwc) if want_x else x_bhwc.new_empty(0),
        exact.new_empty(2, x_bhwc.shape[-1]) if want_sums else x_bhwc.new_empty(0),
        exact.new_empty(2, *x_bhwc.shape[:-1]) if want_row_sums else x_bhwc.new_empty(0),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x_bhwc, mean, rstd, weight_c, bias_c, ctx.act, _, factor_b = inputs
    ctx.save_for_backward(x_bhwc, mean, rstd, weight_c, bias_c, factor_b)


def _backward(ctx: Any, grad_bhwc: Tensor) -> tuple[Tensor | None, ...]:
    x_bhwc, mean, rstd, weight_c, bias_c, factor_b = ctx.saved_tensors
    need_x, *needs, _, need_residual, _ = ctx.needs_input_grad
    dresidual_bhwc = grad_bhwc if need_residual else None
    if not (need_x or any(needs)):
        return None, None, None, None, None, None, dresidual_bhwc, None
    norm = (mean, rstd, weight_c, bias_c)
    dx_bhwc, sums, row_sums = normalise_backward(
        grad_bhwc.contiguous(), x_bhwc, *norm, ctx.act, factor_b, need_x, *wanted(mean, needs)
    )
    dnorm = norm_gradients(needs, rstd, weight_c, sums, row_sums)
    return dx_bhwc if need_x else None, *dnorm, None, dresidual_bhwc, None


normalise_forward.register_autograd(_backward, setup_context=_keep)


def normalise(
    x_bhwc: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    weight_c: Tensor | None,
    bias_c: Tensor | None,
    act: str = "none",
    residual_bhwc: Tensor | None = None,
    factor_b: Tensor | None = None,
) -> Tensor:
    """residual + factor act((x - mean) rstd weight + bias), in the dtype of x.

    Args:
        x_bhwc: contiguous, fp32, bf16 or fp16.
        mean, rstd: fp32, [c] (batch normalisation) or [b, h, w] (layer normalisation); None: no normalisation.
        weight_c, bias_c: of any floating-point dtype; None without a normalisation.
        act: "none", "gelu", "gelu_tanh".
        residual_bhwc: in the dtype of x; None: nothing is added.
        factor_b: fp32, of each sample's branch (stochastic depth); None: 1. It gets no gradient.
    """
    made: Tensor = normalise_forward(x_bhwc, mean, rstd, weight_c, bias_c, act, residual_bhwc, factor_b)
    return made
