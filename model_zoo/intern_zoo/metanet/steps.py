"""The steps that MetaNet's blocks are made of: what belongs together when passes over memory are counted.

Legend: h_bchw, x_bchw maps, channels-last in memory; x_bnc tokens, the same storage.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from intern_zoo.metanet.layers import Drawn, as_tokens


def position_norm(x_bchw: torch.Tensor, position: nn.Module, norm: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """x + position(x), and norm of its tokens [b, n, c]."""
    x_bchw = x_bchw + position(x_bchw)
    return x_bchw, norm(as_tokens(x_bchw))


def add_branch(
    residual: torch.Tensor,
    x: torch.Tensor,
    branch: Callable[[torch.Tensor], torch.Tensor],
    last: nn.Module,
    drawn: Drawn | None,
) -> torch.Tensor:
    """residual + last(branch(x)), of the samples that stochastic depth has drawn; all of them where `drawn` is None.

    Maps [b, c, h, w] or tokens [b, n, c]; `branch` takes any number of rows.
    """
    if drawn is None:
        return residual + last(branch(x))
    if drawn.rows_k is None:
        return residual + last(branch(x)) * drawn.factor_b.view(-1, *(1,) * (residual.dim() - 1))
    y = last(branch(_channels_first(_channels_last(x).index_select(0, drawn.rows_k))))
    dtype, scale = torch.result_type(residual, y), len(x) / len(drawn.rows_k)
    summed = torch.index_add(
        _channels_last(residual).to(dtype), 0, drawn.rows_k, _channels_last(y).to(dtype), alpha=scale
    )
    return _channels_first(summed)


def add_branch_norm(
    residual_bnc: torch.Tensor,
    x_bnc: torch.Tensor,
    branch: Callable[[torch.Tensor], torch.Tensor],
    last: nn.Module,
    drawn: Drawn | None,
    norm: nn.Module,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`add_branch` on tokens, and norm of the sum."""
    summed_bnc = add_branch(residual_bnc, x_bnc, branch, last, drawn)
    return summed_bnc, norm(summed_bnc)


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    """[b, c, h, w] -> [b, h, w, c], contiguous as it lies (rows taken of [b, c, h, w] would lie channels-first)."""
    return x.permute(0, 2, 3, 1) if x.dim() == 4 else x


def _channels_first(x: torch.Tensor) -> torch.Tensor:
    """`_channels_last` undone."""
    return x.permute(0, 3, 1, 2) if x.dim() == 4 else x
