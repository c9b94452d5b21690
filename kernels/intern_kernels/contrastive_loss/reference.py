"""InfoNCE in plain torch.

Legend: b local queries, g keys over all ranks, e embedding width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(query_be: Tensor, key_ge: Tensor, scale: Tensor, first_positive: int) -> tuple[Tensor, Tensor]:
    """Mean cross entropy of picking each query's own key among all keys (van den Oord et al., arXiv 1807.03748; CLIP,
    arXiv 2103.00020).

    Never holds more than b x g logits. Products are summed, and the softmax is taken, in fp32 at least.

    Args:
        query_be: [b, e] queries, unit norm.
        key_ge: [g, e] keys, unit norm, b <= g.
        scale: [1], inverse temperature.
        first_positive: row of `key_ge` that belongs to the first query; the next rows belong to the next queries.

    Returns:
        the loss (0-dim), and the number of queries whose own key scores highest (0-dim, no gradient).
    """
    work = torch.promote_types(query_be.dtype, torch.float32)
    logits_bg = scale.to(work) * (query_be.to(work) @ key_ge.to(work).t())
    positive_b = torch.arange(first_positive, first_positive + query_be.shape[0], device=query_be.device)
    hits = (logits_bg.detach().argmax(dim=1) == positive_b).sum()
    return F.cross_entropy(logits_bg, positive_b), hits
