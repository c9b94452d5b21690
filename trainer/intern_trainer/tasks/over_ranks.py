"""Contrastive losses whose batch is that of all ranks; b rows of pairs are this rank's, and every rank has as many.

The mean over ranks of what is returned is the loss of the global batch of g pairs, and the gradient of each rank's
features is that of the sum over ranks, as `collectives` has it.
"""

from __future__ import annotations

import torch
from intern_kernels.contrastive_loss import Best, log_sums, sigmoid_loss, sigmoid_terms, with_gradients
from intern_kernels.precision import at_least_fp32
from torch import Tensor

from intern_trainer.collectives import log_sum_exp, pass_on
from intern_trainer.ranks import Ranks


def clip_loss(image_be: Tensor, text_ge: Tensor, scale: Tensor, ranks: Ranks, block: int) -> tuple[Tensor, Tensor]:
    """CLIP's loss (arXiv 2103.00020): half picture -> caption, half caption -> picture.

    Both directions come from this rank's rows of the g x g scores, made once: captions see the other ranks' pictures
    through log-sum-exps of columns, g numbers, so that pictures need not be gathered.

    Args:
        image_be: pictures of this rank. text_ge: captions of all ranks, from `all_gather`.
        scale: [1]. block: captions whose scores are held at once.

    Returns:
        the loss (0-dim), and how many of this rank's pictures like their own caption best (0-dim).
    """
    own = slice(ranks.rank * len(image_be), (ranks.rank + 1) * len(image_be))
    sums = log_sums(image_be, text_ge, scale, own.start, block)
    column_b = log_sum_exp(sums.column_g, ranks.group)[own]
    return (sums.row_b + column_b - 2 * sums.own_b).mean() / 2, sums.hits


def siglip_loss(
    image_be: Tensor, text_be: Tensor, scale: Tensor, bias: Tensor, ranks: Ranks, block: int
) -> tuple[Tensor, Tensor]:
    """SigLIP's loss (arXiv 2303.15343): the sum over all pairs of -log sigmoid(+-(scale x.y + bias)), divided by g.

    The captions travel round the ranks, and their gradients with them, until both are home: a rank holds its own rows
    and those of one other rank. Value and gradients are made in that one round, so `backward` waits for nobody; it
    must be called with the same factor on every rank.

    Returns:
        the loss (0-dim), and how many of this rank's pictures like their own caption best (0-dim).
    """
    b, size = len(image_be), ranks.world_size
    if size == 1:
        return sigmoid_loss(image_be, text_be, scale, bias, 0, block)
    with torch.no_grad():
        visitors_be, owed_be = text_be, torch.zeros_like(at_least_fp32(text_be))
        best, sums = Best(image_be), [torch.zeros((), device=image_be.device) for _ in range(4)]
        for hop in range(size):
            home = (ranks.rank - hop) % size
            arrived = pass_on(visitors_be, owed_be, group=ranks.group)
            terms = sigmoid_terms(image_be, visitors_be, scale, bias, 0 if hop == 0 else b, block)
            best.update(terms.best.score_b, terms.best.key_b, home * b)
            parts = (terms.total, terms.query_be, terms.scale, terms.bias)
            sums = [so_far + part for so_far, part in zip(sums, parts, strict=True)]
            visitors_be, owed_be = arrived()
            owed_be += terms.key_ge
        (text_grad_be,) = pass_on(owed_be, group=ranks.group)()
        total, image_grad_be, scale_grad, bias_grad = sums
        gradients = [grad / b for grad in (image_grad_be, text_grad_be, scale_grad, bias_grad)]
    loss = with_gradients(total / b, (image_be, text_be, scale, bias), gradients)
    return loss, best.hits(ranks.rank * b)
