"""InfoNCE, in one direction or both, differentiable. Memory: b x block scores, and the gradients themselves.

Legend: b local queries, g keys over all ranks, e embedding width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from intern_kernels.contrastive_loss import reference
from intern_kernels.contrastive_loss.reference import LogSums


def info_nce(
    query_be: Tensor, key_ge: Tensor, scale: Tensor, first_positive: int, block: int = 1024
) -> tuple[Tensor, Tensor]:
    """Mean cross entropy of picking each query's own key among all keys (van den Oord et al., arXiv 1807.03748; CLIP,
    arXiv 2103.00020).

    Args:
        query_be: [b, e] queries, unit norm.
        key_ge: [g, e] keys, unit norm, b <= g.
        scale: [1], inverse temperature.
        first_positive: row of `key_ge` that belongs to the first query; the next rows belong to the next queries.
        block: keys whose scores are held at once.

    Returns:
        the loss (0-dim), and the number of queries whose own key scores highest (0-dim, no gradient).
    """
    sums = _log_sums(query_be, key_ge, scale, first_positive, block, False)
    return (sums.row_b - sums.own_b).mean(), sums.hits


def log_sums(query_be: Tensor, key_ge: Tensor, scale: Tensor, first_positive: int, block: int = 1024) -> LogSums:
    """What both directions of InfoNCE need, from one pass over the scores z = scale * q . k.

    Arguments as of `info_nce`. Keys -> queries asks for the log-sum-exp of whole columns; where the queries of other
    ranks are missing here, combine the ranks' `column_g` by another log-sum-exp.
    """
    return _log_sums(query_be, key_ge, scale, first_positive, block, True)


def _log_sums(query_be: Tensor, key_ge: Tensor, scale: Tensor, first: int, block: int, columns: bool) -> LogSums:
    return LogSums(*_LogSums.apply(query_be, key_ge, scale, first, block, columns))


class _LogSums(Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, scale: Tensor, first: int, block: int, columns: bool) -> LogSums:
        sums = reference.log_sums(query, key, scale, first, block, columns)
        ctx.save_for_backward(query, key, scale, *sums)
        ctx.mark_non_differentiable(sums.hits)
        ctx.first, ctx.block = first, block
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, scale, *sums = ctx.saved_tensors
        found = reference.log_sums_backward(query, key, scale, ctx.first, ctx.block, LogSums(*sums), LogSums(*grads))
        return *found, None, None, None
