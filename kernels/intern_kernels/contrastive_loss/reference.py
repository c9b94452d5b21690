"""The contrastive losses and their gradients in plain torch, a block of keys at a time.

No function here holds more scores than b x block. What is summed, is summed in fp32 at least.
Legend: b queries, g keys, c keys of one block, e embedding width; z = scale * q . k (+ bias) is the score of a pair.
The own key of query i is key `first_positive + i`; it need not be among the keys given.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from intern_kernels.precision import at_least_fp32


def score_blocks(query_be: Tensor, key_ge: Tensor, scale: Tensor, block: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Columns of a block, its keys [c, e], and its scores [b, c], which the caller may overwrite."""
    for start in range(0, key_ge.shape[0], block):
        key_ce = key_ge[start : start + block].to(query_be.dtype)
        yield slice(start, start + key_ce.shape[0]), key_ce, (query_be @ key_ce.t()).mul_(scale)


def own_pairs(score_bc: Tensor, columns: slice, first_positive: int) -> tuple[slice, Tensor]:
    """Rows whose own key is in the block, and a view of their own entries."""
    first, last = columns.start - first_positive, columns.stop - first_positive
    rows = slice(max(0, first), max(0, first, min(score_bc.shape[0], last)))
    return rows, score_bc[rows].diagonal(rows.start - first)


class Best:
    """The highest score of each query so far, and the key that it is of; the first of several."""

    def __init__(self, query_be: Tensor) -> None:
        self.score_b = at_least_fp32(query_be.new_full(query_be.shape[:1], -torch.inf))
        self.key_b = torch.zeros_like(self.score_b, dtype=torch.long)

    def update(self, score_b: Tensor, key_b: Tensor, first_key: int) -> None:
        """The best of further keys, counted from `first_key`."""
        self.key_b = torch.where(score_b > self.score_b, key_b + first_key, self.key_b)
        self.score_b = torch.maximum(self.score_b, score_b)

    def hits(self, first_positive: int) -> Tensor:
        """How many queries like their own key best (0-dim)."""
        own_b = torch.arange(len(self.key_b), device=self.key_b.device) + first_positive
        return (self.key_b == own_b).sum()


class LogSums(NamedTuple):
    """row_b: log sum_j exp(z_ij). column_g: log sum_i exp(z_ij); empty where it was not asked for. own_b: z of the own
    pairs. hits: queries whose own key scores highest (0-dim, no gradient)."""

    row_b: Tensor
    column_g: Tensor
    own_b: Tensor
    hits: Tensor


def log_sums(
    query_be: Tensor, key_ge: Tensor, scale: Tensor, first_positive: int, block: int, columns: bool
) -> LogSums:
    """Both directions' log-sum-exp from one pass over the scores; the rows' sum grows from block to block."""
    query_be, scale = at_least_fp32(query_be), at_least_fp32(scale)
    best, sum_b = Best(query_be), torch.zeros_like(query_be[:, 0])
    own_b = torch.zeros_like(sum_b)
    column_g = query_be.new_empty(key_ge.shape[0] if columns else 0)
    for span, _, z_bc in score_blocks(query_be, key_ge, scale, block):
        rows, own = own_pairs(z_bc, span, first_positive)
        own_b[rows] = own
        if columns:
            column_g[span] = z_bc.logsumexp(dim=0)
        before_b = best.score_b
        best.update(*z_bc.max(dim=1), span.start)
        sum_b *= torch.exp(before_b - best.score_b)
        sum_b += z_bc.sub_(best.score_b[:, None]).exp_().sum(dim=1)
    return LogSums(best.score_b + sum_b.log(), column_g, own_b, best.hits(first_positive))


def log_sums_backward(
    query_be: Tensor, key_ge: Tensor, scale: Tensor, first_positive: int, block: int, sums: LogSums, grads: LogSums
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and scale from those of `LogSums`; each block's scores are computed again.

    dz_ij = d row_i exp(z_ij - row_i) + d column_j exp(z_ij - column_j) + [j own of i] d own_i
    """
    query, factor = at_least_fp32(query_be), at_least_fp32(scale)
    dots_be, key_grad_ge = torch.zeros_like(query), torch.empty_like(key_ge)
    for span, key_ce, z_bc in score_blocks(query, key_ge, factor, block):
        grad_bc = torch.exp(z_bc - sums.row_b[:, None]).mul_(grads.row_b[:, None])
        if len(sums.column_g):
            grad_bc += z_bc.sub_(sums.column_g[span]).exp_().mul_(grads.column_g[span])
        rows, own = own_pairs(grad_bc, span, first_positive)
        own += grads.own_b[rows]
        dots_be += grad_bc @ key_ce
        key_grad_ge[span] = (grad_bc.t() @ query).mul_(factor)
    scale_grad = (dots_be * query).sum()
    return dots_be.mul_(factor).to(query_be.dtype), key_grad_ge, scale_grad.to(scale.dtype).view_as(scale)


class SigmoidTerms(NamedTuple):
    """total: sum over the pairs of -log sigmoid(+-z), + for own pairs (0-dim); the other tensors are its gradients, in
    fp32 at least, shaped as what they belong to. best: see `Best`; keys are counted within those given."""

    total: Tensor
    query_be: Tensor
    key_ge: Tensor
    scale: Tensor
    bias: Tensor
    best: Best

    @property
    def gradients(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.query_be, self.key_ge, self.scale, self.bias


def sigmoid_terms(
    query_be: Tensor, key_ge: Tensor, scale: Tensor, bias: Tensor, first_positive: int, block: int
) -> SigmoidTerms:
    """Value and gradients from the same blocks: unlike a softmax, a pair's gradient needs no other pair."""
    query, factor = at_least_fp32(query_be), at_least_fp32(scale)
    best, total_b, bias_grad = Best(query), torch.zeros_like(query[:, 0]), torch.zeros_like(query[0, 0])
    dots_be, key_grad_ge = torch.zeros_like(query), query.new_empty(key_ge.shape)
    for span, key_ce, z_bc in score_blocks(query, key_ge, factor, block):
        z_bc += at_least_fp32(bias)
        best.update(*z_bc.max(dim=1), span.start)
        own_pairs(z_bc, span, first_positive)[1].neg_()  # then every pair's term is softplus(z)
        total_b += F.softplus(z_bc).sum(dim=1)
        grad_bc = z_bc.sigmoid_()
        own_pairs(grad_bc, span, first_positive)[1].neg_()
        bias_grad += grad_bc.sum()
        dots_be += grad_bc @ key_ce
        key_grad_ge[span] = (grad_bc.t() @ query).mul_(factor)
    scale_grad = (dots_be * query).sum()
    return SigmoidTerms(
        total_b.sum(), dots_be.mul_(factor), key_grad_ge, scale_grad.view_as(scale), bias_grad.view_as(bias), best
    )
