"""Recompute a block's inside in the backward pass, switched on from outside the block."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from intern_zoo.metanet.norm import statistics_kept


def _contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For the forward pass and for the second one: the second must not move running statistics again."""
    return nullcontext(), statistics_kept()


def _forward_recomputed(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return checkpoint(type(block).forward, block, x, use_reentrant=False, context_fn=_contexts)


def set_recompute(block: nn.Module, enable: bool = True) -> None:
    """Keep only the input of `block` for its backward pass, or undo that. Parameter names do not change."""
    if enable:
        block.forward = partial(_forward_recomputed, block)
    else:
        block.__dict__.pop("forward", None)
