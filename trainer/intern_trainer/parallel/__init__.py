"""What makes a model run on many ranks, applied from outside: model code knows nothing of it."""

from __future__ import annotations

from torch import nn

from intern_trainer.config.schema import Config
from intern_trainer.parallel.draws import Draws
from intern_trainer.parallel.grid import Grid, make_grid
from intern_trainer.parallel.stage import Placement, alone, cut_out
from intern_trainer.parallel.sync_batch_norm import sync_batch_norm
from intern_trainer.ranks import Ranks


def apply(model: nn.Module, config: Config, ranks: Ranks) -> nn.Module:
    """Prepare `model`, in place, before the engine takes it.

    Args:
        ranks: the data-parallel ones.

    Raises:
        ConfigError: the model holds something that cannot be trained in parallel.
    """
    sync_batch_norm(model, ranks.group, share=config.parallel.sync_batch_norm and ranks.world_size > 1)
    return model


__all__ = ["Draws", "Grid", "Placement", "alone", "apply", "cut_out", "make_grid", "sync_batch_norm"]
