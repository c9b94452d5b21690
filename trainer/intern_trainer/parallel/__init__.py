"""What makes a model run on many ranks, applied from outside: model code knows nothing of it."""

from __future__ import annotations

from torch import nn

from intern_trainer.config.schema import Config
from intern_trainer.parallel.compile import compile_blocks
from intern_trainer.parallel.recompute import recompute
from intern_trainer.parallel.sync_batch_norm import sync_batch_norm
from intern_trainer.ranks import Ranks


def apply(model: nn.Module, config: Config, ranks: Ranks) -> nn.Module:
    """Prepare `model`, in place, before the engine takes it.

    Raises:
        ConfigError: the model holds something that cannot be trained in parallel, or nothing to recompute.
        EnvironmentFault: this machine cannot compile.
    """
    sync_batch_norm(model, share=config.parallel.sync_batch_norm and ranks.world_size > 1)
    compile_blocks(model, config.parallel.compile, ranks.device)
    recompute(model, config.parallel.recompute)
    return model


__all__ = ["apply", "compile_blocks", "recompute", "sync_batch_norm"]
