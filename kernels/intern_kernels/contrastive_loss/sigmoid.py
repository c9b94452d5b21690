"""The pairwise sigmoid loss, differentiable. Memory: b x block scores, and the gradients themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from intern_kernels.contrastive_loss.reference import sigmoid_terms


def sigmoid_loss(
    query_be: Tensor, key_ge: Tensor, scale: Tensor, bias: Tensor, first_positive: int, block: int = 1024
) -> tuple[Tensor, Tensor]:
    """SigLIP's loss (arXiv 2303.15343): each pair by itself is told to belong together or not; the sum over all pairs
    divided by the number of queries.

    Args:
        query_be: [b, e], key_ge: [g, e], unit norm.
        scale: [1], inverse temperature. bias: [1], added to all scores.
        first_positive: row of `key_ge` that belongs to the first query; the next rows belong to the next queries.
        block: keys whose scores are held at once.

    Returns:
        the loss (0-dim), and the number of queries whose own key scores highest (0-dim, no gradient).
    """
    with torch.no_grad():
        terms = sigmoid_terms(query_be, key_ge, scale, bias, first_positive, block)
        gradients = [gradient / len(query_be) for gradient in terms.gradients]
    loss = with_gradients(terms.total / len(query_be), (query_be, key_ge, scale, bias), gradients)
    return loss, terms.best.hits(first_positive)


def with_gradients(value: Tensor, inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """`value` (0-dim) as a function of `inputs` whose gradients are known already."""
    return _Known.apply(value, gradients, *inputs)


class _Known(Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [x.dtype for x in inputs]
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        found = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return None, None, *((grads[0] * gradient).to(dtype) for gradient, dtype in found)
