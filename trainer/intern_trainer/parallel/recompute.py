"""Blocks that keep their input and are computed once more in the backward pass: memory for time."""

from __future__ import annotations

from typing import Literal

from intern_zoo.metanet.recompute import set_recompute
from torch import nn

from intern_trainer.blocks import blocks_of, repeats_cheaply
from intern_trainer.errors import ConfigError

Recompute = Literal["none", "selective", "full"]


def recompute(model: nn.Module, mode: Recompute) -> None:
    """Apply `mode` to the blocks of both towers, in place. Losses and gradients are those of the plain model: the
    second pass draws the same numbers and leaves running statistics alone. It has the collectives of the first.

    Raises:
        ConfigError: there is no block of the kind that `mode` is about.
    """
    if mode == "none":
        return
    chosen = [block for _, block in blocks_of(model) if mode == "full" or repeats_cheaply(block)]
    if not chosen:
        raise ConfigError(
            "parallel.recompute is selective, and no block of this model has a depthwise convolution without attention",
            "`selective` repeats the blocks whose memory costs little time to free",
            "parallel.recompute=full, or none",
        )
    for block in chosen:
        set_recompute(block)
