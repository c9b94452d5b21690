"""Collectives that gradients flow through, over the whole world or a group of ranks.

torch.distributed.nn's all_gather fails in backward on gloo for groups that are not the world, so these are our own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def all_gather(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Concatenate `x` [b, ...] of all ranks in rank order: [ranks * b, ...]. All ranks hold the same b.

    Gradient: the sum over ranks of what each of them asks for this rank's rows. So if every rank's loss is a part of
    one global sum, the gradient of this rank's `x` is that of the sum.
    """
    if dist.get_world_size(group) == 1:
        return x
    return _AllGather.apply(x, group)


def all_reduce(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Sum of `x` over ranks; its gradient is the sum of the ranks' gradients, since every rank's loss depends on every
    rank's `x`."""
    if dist.get_world_size(group) == 1:
        return x
    return _AllReduce.apply(x, group)


def log_sum_exp(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """log of the sum over ranks of exp(x), entry by entry."""
    if dist.get_world_size(group) == 1:
        return x
    top = x.detach().clone()
    dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
    return top + all_reduce(torch.exp(x - top), group).log()


def pass_on(*tensors: Tensor, group: dist.ProcessGroup | None = None) -> Callable[[], list[Tensor]]:
    """Send `tensors` to the next rank of the ring of the group's ranks while something else is computed. The tensors must not
    change until the function that is returned has waited; it gives those of the rank before. No gradients.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    after, before = (_of_run((rank + step) % size, group) for step in (1, -1))
    leaving = [tensor.contiguous() for tensor in tensors]
    arriving = [torch.empty_like(tensor) for tensor in leaving]
    operations = []
    for i, (sent, place) in enumerate(zip(leaving, arriving, strict=True)):
        operations.append(dist.P2POp(dist.isend, sent, after, group, tag=i))
        operations.append(dist.P2POp(dist.irecv, place, before, group, tag=i))
    works = dist.batch_isend_irecv(operations)

    def wait() -> list[Tensor]:
        for work in works:
            work.wait()
        leaving.clear()  # held until now: a copy that was made here must live while it is read
        return arriving

    return wait


def _of_run(rank: int, group: dist.ProcessGroup | None) -> int:
    return rank if group is None else dist.get_global_rank(group, rank)


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        pieces = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size(group))]
        dist.all_gather(pieces, x.contiguous(), group=group)
        return torch.cat(pieces)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        rows = total.shape[0] // dist.get_world_size(ctx.group)
        return total.narrow(0, dist.get_rank(ctx.group) * rows, rows), None


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        total = x.contiguous().clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None
