"""Recompute a block's inside in the backward pass, switched on from outside the block."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from intern_zoo.metanet.norm import statistics_kept


def _contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For the forward pass and for the second one: the second must not move running statistics again."""
    return nullcontext(), statistics_kept()


def _recomputed(block: nn.Module, given: Callable[..., Any] | None, *inputs: Any, **named: Any) -> Any:
    forward = given or partial(type(block).forward, block)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=_contexts, **named)


def set_recompute(block: nn.Module, enable: bool = True) -> None:
    """Keep only the inputs of `block` for its backward pass, or undo that. Parameter names do not change, and a forward
    that was given to the block before (a compiled one) is what runs twice.
    """
    given = block.__dict__.pop("forward", None)
    if isinstance(given, partial) and given.func is _recomputed:
        given = given.args[1]
    if enable:
        block.forward = partial(_recomputed, block, given)
    elif given is not None:
        block.forward = given
