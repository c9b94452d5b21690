"""What makes a model run on many ranks, applied from outside: model code knows nothing of it."""

from __future__ import annotations

from torch import nn

from intern_trainer.config.schema import Config
from intern_trainer.parallel.sync_batch_norm import sync_batch_norm
from intern_trainer.ranks import Ranks


def apply(model: nn.Module, config: Config, ranks: Ranks) -> nn.Module:
    """Prepare `model`, in place, before the engine takes it.

    Raises:
        ConfigError: the model holds something that cannot be trained in parallel.
    """
    sync_batch_norm(model, share=config.parallel.sync_batch_norm and ranks.world_size > 1)
    return model


__all__ = ["apply", "sync_batch_norm"]
