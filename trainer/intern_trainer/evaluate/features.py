"""Features of a set over all ranks. Ranks may hold different numbers of samples, and still make the same calls of the
model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from intern_trainer.batch import Batch
from intern_trainer.data import EvalPairs
from intern_trainer.lockstep import agree
from intern_trainer.ranks import Ranks

T = TypeVar("T")


@contextmanager
def inference(forward: Any) -> Iterator[None]:
    """Evaluation mode without gradients; back to training mode where it was in it. `forward` is an engine or a
    model.
    """
    was_training = getattr(forward, "module", forward).training
    forward.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if was_training:
            forward.train()


def in_lockstep(items: Iterable[T], ranks: Ranks) -> Iterator[T | None]:
    """This rank's items, then None for as long as other ranks still have some: under ZeRO-3 every rank calls the model
    equally often.

    Raises:
        UserError: what reading raises on any rank, on all ranks.
    """
    iterator = iter(items)
    while True:
        item, error = None, None
        try:
            item = next(iterator, None)
        except Exception as caught:  # all ranks are told of it, or they would wait for this one
            error = caught
        left = torch.tensor(float(item is not None), device=ranks.device)
        if agree(ranks, {"left": left}, [], None, error).metrics["left"] == 0:
            return
        yield item


def batches_in_lockstep(pairs: EvalPairs, ranks: Ranks) -> Iterator[Batch | None]:
    """`in_lockstep` of a set's batches; after the last one the ranks agree on how many of its samples were bad.

    Raises:
        DataError: too many, or the set cannot be read.
    """
    yield from in_lockstep(pairs, ranks)
    pairs.agree()


def gather_rows(rows: Tensor, ranks: Ranks) -> Tensor:
    """Rows [n_rank, ...] of all ranks, one after another in rank order; n may differ from rank to rank and be 0."""
    if ranks.world_size == 1:
        return rows
    counts = ranks.gather(rows.shape[0])
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: rows.shape[0]] = rows
    pieces = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(pieces, padded, group=ranks.group)
    return torch.cat([piece[:count] for piece, count in zip(pieces, counts, strict=True)])


def first_row(count: int, ranks: Ranks) -> int:
    """Where this rank's rows begin among those that `gather_rows` gives."""
    return sum(ranks.gather(count)[: ranks.rank])


def sum_over_ranks(counts: Tensor, ranks: Ranks) -> Tensor:
    """Integer counts added up, exactly."""
    counts = counts.to(ranks.device)
    if ranks.world_size > 1:
        dist.all_reduce(counts, group=ranks.group)
    return counts
