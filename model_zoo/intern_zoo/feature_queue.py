"""The last features that were seen, and the nearest among them (NNCLR, arXiv 2104.14548; DeCLIP, arXiv 2110.05208).

b queries, n new features, e their width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FeatureQueue(nn.Module):
    """First in, first out: the `size` newest features, in buffers, so that they are saved with the model.

    Whoever pushes pushes the same rows in the same order on every rank; then the queue is the same on all of them.

    Args:
        size: features kept. width: e. block: of these, how many are compared with the queries at once.
    """

    features: Tensor
    pushed: Tensor

    def __init__(self, size: int, width: int, block: int = 4096) -> None:
        super().__init__()
        self.size, self.block = size, block
        self.register_buffer("features", torch.zeros(size, width))
        self.register_buffer("pushed", torch.zeros(1, dtype=torch.int64))  # the next one's place is pushed % size

    @torch.no_grad()
    def nearest(self, query_be: Tensor) -> Tensor:
        """Of each query the feature with the largest dot product, [b, e]; the query itself while the queue is empty.

        Never holds more than b x block products.
        """
        query_be, asked_dtype = query_be.to(self.features.dtype), query_be.dtype
        best_b = query_be.new_full((len(query_be),), -torch.inf)
        place_b = torch.zeros(len(query_be), dtype=torch.int64, device=query_be.device)
        filled = self.pushed.clamp(max=self.size)  # stays on the device: nothing waits for it
        for first in range(0, self.size, self.block):
            entries_ne = self.features[first : first + self.block]
            places_n = torch.arange(first, first + len(entries_ne), device=query_be.device)
            scores_bn = (query_be @ entries_ne.T).masked_fill(places_n >= filled, -torch.inf)
            score_b, index_b = scores_bn.max(dim=1)
            place_b = torch.where(score_b > best_b, places_n[index_b], place_b)
            best_b = torch.maximum(score_b, best_b)
        return torch.where(self.pushed > 0, self.features[place_b], query_be).to(asked_dtype)

    @torch.no_grad()
    def push(self, new_ne: Tensor) -> None:
        """Put these behind the others, in the place of the oldest."""
        newest_ne = new_ne[-self.size :]
        self.pushed += len(new_ne) - len(newest_ne)
        places_n = (self.pushed + torch.arange(len(newest_ne), device=new_ne.device)) % self.size
        self.features.index_copy_(0, places_n, newest_ne.to(self.features.dtype))
        self.pushed += len(newest_ne)

    def extra_repr(self) -> str:
        return f"{self.size}, {self.features.shape[1]}"
