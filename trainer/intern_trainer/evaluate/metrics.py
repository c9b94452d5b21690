"""Exact counts behind the evaluation's figures.

Ties count against the model: the rank of the right answer is the number of candidates that score at least as high as
    it, itself included. So a model
that gives every candidate the same score (collapsed features) is last everywhere, not first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from intern_trainer.errors import TrainingError


def strict_ranks(scores_qn: Tensor, own_q: Tensor) -> Tensor:
    """Rank (1 is best) of candidate `own_q[i]` in row i: int64 [q]."""
    own = scores_qn.gather(1, own_q[:, None])
    return (scores_qn >= own).sum(dim=1)


def retrieval_ranks(queries_qe: Tensor, gallery_ne: Tensor, own_q: Tensor, block: int = 1024) -> Tensor:
    """Rank of each query's own item among the whole gallery: int64 [q]. Holds `block` x n scores at most.

    Raises:
        TrainingError: a feature is not finite; a comparison with NaN would count as a success.
    """
    if not (queries_qe.isfinite().all() and gallery_ne.isfinite().all()):
        raise TrainingError("the model gives features that are not finite", "evaluation needs numbers")
    blocks = zip(queries_qe.split(block), own_q.split(block), strict=True)
    ranks = [strict_ranks(rows @ gallery_ne.T, own) for rows, own in blocks]
    return torch.cat(ranks) if ranks else own_q.new_zeros(0)


def hits(ranks_q: Tensor, ks: Sequence[int]) -> Tensor:
    """How many ranks are at most k, for each k: int64 [len(ks)]."""
    return torch.stack([(ranks_q <= k).sum() for k in ks])


def chance_levels(results: dict[str, float]) -> dict[str, float]:
    """What guessing gives, for every result that has a chance level: k / classes for `top<k>`, k / count for
    `R@<k>`.
    """
    levels = {}
    for name in results:
        benchmark, metric = name.rsplit("/", 1)
        if metric.startswith("top"):
            levels[name] = min(1.0, int(metric[3:]) / results[f"{benchmark}/classes"])
        elif "R@" in metric:
            levels[name] = min(1.0, int(metric.split("@")[1]) / results[f"{benchmark}/count"])
        elif metric == "mean_per_class":
            levels[name] = 1 / results[f"{benchmark}/classes"]
    return levels


def binomial_interval(probability: float, count: int, coverage: float = 0.95) -> tuple[float, float]:
    """The central interval of the share of successes among `count` independent draws: at most (1 - coverage) / 2 of
    the mass lies beyond each end.
    """
    tail, cumulative, low = (1 - coverage) / 2, 0.0, None
    for successes in range(count + 1):
        cumulative += math.comb(count, successes) * probability**successes * (1 - probability) ** (count - successes)
        if low is None and cumulative > tail:
            low = successes
        if cumulative >= 1 - tail:
            return (low or 0) / count, successes / count
    return (low or 0) / count, 1.0
