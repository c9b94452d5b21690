"""`squeeze_excitation` as two autograd nodes around the gate, which is ordinary modules in ordinary autograd.

    x ──► Pool ──► u ──► gate(u) ──► Scale ──► y
            └───── x, messages ────────┘

Backward, autograd runs Scale, the gate, Pool, in this order. The nodes have a private protocol, which saves passes over
the map: what Scale hands back as "gradients" is not one. In place of x's it hands g, the gradient of y, itself; in
place of the messages' (which forward carry nothing: a single 0 seen as [k, b, c]) the gate's values and the sums that
it has made anyway. Pool, which then has the gradient of u as well, makes the gradients of x and of the normalisation
from these. Nobody else sees x and the messages of Pool, so all that `squeeze_excitation` lets out is right. As
everything travels as tensors along autograd's edges, nothing is shared between the nodes but these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from intern_kernels.norm_gradients import norm_gradients, wanted


@torch.library.custom_op("intern::pool_activated", mutates_args=())
def pool_activated(
    x_bhwc: Tensor, mean: Tensor | None, rstd: Tensor | None, weight_c: Tensor | None, bias_c: Tensor | None, act: str
) -> Tensor:
    """The mean over positions of act(v), v = (x - mean) rstd weight + bias: [b, c], in the dtype of x."""
    from intern_kernels.squeeze_excitation import triton_forward

    return triton_forward.pool(x_bhwc, (mean, rstd, weight_c, bias_c), act)


@torch.library.custom_op("intern::gate_activated", mutates_args=())
def gate_activated(
    x_bhwc: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    weight_c: Tensor | None,
    bias_c: Tensor | None,
    act: str,
    gate_bc: Tensor,
) -> Tensor:
    """act(v) gate, in the dtype of x."""
    from intern_kernels.squeeze_excitation import triton_forward

    return triton_forward.scale(x_bhwc, (mean, rstd, weight_c, bias_c), act, gate_bc)


@torch.library.custom_op("intern::gated_sums", mutates_args=())
def gated_sums(
    grad_bhwc: Tensor,
    x_bhwc: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    weight_c: Tensor | None,
    bias_c: Tensor | None,
    act: str,
    all_five: bool,
) -> Tensor:
    """fp32 [5 or 1, b, c]: sums over positions of g phi, g phi', phi', g phi' x̂, phi' x̂, with phi = act(v)."""
    from intern_kernels.squeeze_excitation import triton_backward

    return triton_backward.sums(grad_bhwc, x_bhwc, (mean, rstd, weight_c, bias_c), act, all_five)


@torch.library.custom_op("intern::gated_gradient", mutates_args=())
def gated_gradient(
    grad_bhwc: Tensor,
    x_bhwc: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    weight_c: Tensor | None,
    bias_c: Tensor | None,
    act: str,
    gate_bc: Tensor,
    grad_mean_bc: Tensor,
    want_x: bool,
    want_row_sums: bool,
) -> tuple[Tensor, Tensor]:
    """(dx, row sums as in `norm_gradients`) of dv = act'(v) (g gate + grad_mean / positions); empty if not wanted."""
    from intern_kernels.squeeze_excitation import triton_backward

    norm = (mean, rstd, weight_c, bias_c)
    made = triton_backward.gradient(grad_bhwc, x_bhwc, norm, act, gate_bc, grad_mean_bc, want_x, want_row_sums)
    dx_bhwc, row_sums = (x_bhwc.new_empty(0) if tensor is None else tensor for tensor in made)
    return dx_bhwc, row_sums


@pool_activated.register_fake
def _(x_bhwc: Tensor, *_: Any) -> Tensor:
    return x_bhwc.new_empty(x_bhwc.shape[0], x_bhwc.shape[-1])


@gate_activated.register_fake
def _(x_bhwc: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x_bhwc)


@gated_sums.register_fake
def _(grad_bhwc: Tensor, x_bhwc: Tensor, *rest: Any) -> Tensor:
    return x_bhwc.new_empty(5 if rest[-1] else 1, x_bhwc.shape[0], x_bhwc.shape[-1], dtype=torch.float32)


@gated_gradient.register_fake
def _(grad_bhwc: Tensor, x_bhwc: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    want_x, want_row_sums = rest[-2:]
    row_sums = x_bhwc.new_empty(2, *x_bhwc.shape[:-1], dtype=torch.float32)
    return torch.empty_like(x_bhwc) if want_x else x_bhwc.new_empty(0), row_sums if want_row_sums else x_bhwc.new_empty(
        0
    )


class _Pool(torch.autograd.Function):
    """(u, x, and the two messages: for the gate's values, for the sums of the normalisation's gradient)."""

    @staticmethod
    def forward(
        ctx: Any,
        x_bhwc: Tensor,
        mean: Tensor | None,
        rstd: Tensor | None,
        weight_c: Tensor | None,
        bias_c: Tensor | None,
        act: str,
    ) -> tuple[Tensor | None, ...]:
        norm = (mean, rstd, weight_c, bias_c)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x_bhwc, *norm)
        ctx.act = act
        u_bc = pool_activated(x_bhwc, *norm, act)
        nothing = torch.zeros((), dtype=torch.float32, device=x_bhwc.device)
        want_sums, _ = wanted(mean, ctx.needs_input_grad[1:5])
        return (
            u_bc,
            x_bhwc.view_as(x_bhwc),
            nothing.expand(u_bc.shape),
            nothing.expand(4, *u_bc.shape) if want_sums else None,
        )

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, du_bc: Tensor | None, g_bhwc: Tensor, gate_bc: Tensor, by_4bc: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x_bhwc, *norm = ctx.saved_tensors
        mean, rstd, weight_c, _ = norm
        need_x, *needs, _ = ctx.needs_input_grad
        du_bc = torch.zeros_like(gate_bc) if du_bc is None else du_bc.float().contiguous()
        _, want_row_sums = wanted(mean, needs)
        dx_bhwc, row_sums = gated_gradient(g_bhwc, x_bhwc, *norm, ctx.act, gate_bc, du_bc, need_x, want_row_sums)
        sums = row_sums  # not looked at unless the messages say more
        if by_4bc is not None:
            by_grad_2bc, by_pool_2bc = by_4bc.unflatten(0, (2, 2)).unbind(1)
            sums = (gate_bc * by_grad_2bc + du_bc / x_bhwc.shape[1:-1].numel() * by_pool_2bc).sum(1)
        return dx_bhwc if need_x else None, *norm_gradients(needs, rstd, weight_c, sums, row_sums), None


class _Scale(torch.autograd.Function):
    """y = act(v) gate."""

    @staticmethod
    def forward(
        ctx: Any,
        x_bhwc: Tensor,
        gate_bc: Tensor,
        for_gate: Tensor,
        for_sums: Tensor | None,
        mean: Tensor | None,
        rstd: Tensor | None,
        weight_c: Tensor | None,
        bias_c: Tensor | None,
        act: str,
    ) -> Tensor:
        norm = (mean, rstd, weight_c, bias_c)
        ctx.save_for_backward(x_bhwc, gate_bc, *norm)
        ctx.act, ctx.want_sums = act, for_sums is not None
        return gate_activated(x_bhwc, *norm, act, gate_bc)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_bhwc: Tensor) -> tuple[Tensor | None, ...]:
        x_bhwc, gate_bc, *norm = ctx.saved_tensors
        need_pool, need_gate, *_ = ctx.needs_input_grad
        g_bhwc = g_bhwc.contiguous()
        dgate_bc = by_4bc = None
        if need_gate or ctx.want_sums:
            sums = gated_sums(g_bhwc, x_bhwc, *norm, ctx.act, ctx.want_sums)
            dgate_bc = sums[0].to(gate_bc.dtype) if need_gate else None
            by_4bc = sums[1:] if ctx.want_sums else None
        to_pool = (g_bhwc, gate_bc.float()) if need_pool else (None, None)
        return to_pool[0], dgate_bc, to_pool[1], by_4bc, None, None, None, None, None


def squeeze_excitation(
    x_bhwc: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    weight_c: Tensor | None,
    bias_c: Tensor | None,
    act: str,
    gate: Callable[[Tensor], Tensor],
) -> Tensor:
    """phi gate(mean of phi over positions), phi = act((x - mean) rstd weight + bias), in the dtype of x.

    Args:
        x_bhwc: contiguous, fp32, bf16 or fp16.
        mean, rstd, weight_c, bias_c, act: as in `normalise`.
        gate: maps the means [b, c], in the dtype of x, to [b, c]; called once, and differentiated by autograd.
    """
    norm = (mean, rstd, weight_c, bias_c)
    u_bc, x_bhwc, *messages = _Pool.apply(x_bhwc, *norm, act)
    return _Scale.apply(x_bhwc, gate(u_bc).contiguous(), *messages, *norm, act)
