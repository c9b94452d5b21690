"""The pairwise sigmoid loss, differentiable. Memory: b x block scores, and the gradients themselves."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from intern_kernels.contrastive_loss.reference import sigmoid_terms

BLOCK = 1024


def sigmoid_loss(
    query_be: Tensor, key_ge: Tensor, scale: Tensor, bias: Tensor, first_positive: int, block: int = BLOCK
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
    loss, hits = _SigmoidLoss.apply(query_be, key_ge, scale, bias, first_positive, block)
    return loss, hits


class _SigmoidLoss(Function):
    """Gradients are made with the value, three products in all; making the scores again would be a fourth."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, scale: Tensor, bias: Tensor, first: int, block: int
    ) -> tuple[Tensor, Tensor]:
        terms = sigmoid_terms(query, key, scale, bias, first, block)
        ctx.save_for_backward(*(grad.div_(len(query)) for grad in terms.gradients))
        ctx.dtypes = [x.dtype for x in (query, key, scale, bias)]
        hits = terms.best.hits(first)
        ctx.mark_non_differentiable(hits)
        return terms.total / len(query), hits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        found = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return *((grads[0] * grad).to(dtype) for grad, dtype in found), None, None
