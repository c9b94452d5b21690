"""Batch normalisation that works in every precision and on every device, with statistics over all data-parallel ranks.

torch's SyncBatchNorm refuses CPU tensors, and its BatchNorm refuses a bf16 map with fp32 statistics on CPU. The zoo's
BatchNorm computes in fp32 and asks a function for sums over ranks; here it takes the place of the others, and gets
that function.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.distributed as dist
from intern_zoo.metanet.norm import BatchNorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from intern_trainer.collectives import all_reduce
from intern_trainer.errors import ConfigError


class _BatchNormAct(BatchNorm):
    """timm's BatchNormAct2d: the same, followed by dropout and activation."""

    act: Callable[[Tensor], Tensor]
    drop: Callable[[Tensor], Tensor]

    def forward(self, x_bchw: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x_bchw)))


def sync_batch_norm(model: nn.Module, group: dist.ProcessGroup | None = None, share: bool = True) -> int:
    """Give every batch norm of `model` the zoo's arithmetic, in place, and statistics over `group` when `share`.
    Names do not change.

    Returns:
        how many batch norms there are.

    Raises:
        ConfigError: one normalises something else than maps, or keeps no running statistics.
    """
    found = 0
    shared = share and dist.get_world_size(group) > 1
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            _adopt(name, module)
        if hasattr(module, "reduce_stats"):
            found += 1
            module.reduce_stats = partial(all_reduce, group=group) if shared else None
            module.frozen = module.frozen or not module.weight.requires_grad  # a frozen norm keeps its statistics, too
    return found


def _adopt(name: str, module: Any) -> None:
    if isinstance(module, BatchNorm):
        return
    with_activation = hasattr(module, "act") and hasattr(module, "drop")
    is_map = isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm)
    if not is_map or not module.affine or not module.track_running_stats:
        raise ConfigError(
            f"`{name}` is a {type(module).__name__} (affine {module.affine}, "
            f"running statistics {module.track_running_stats})",
            "batch norms that are trained here normalise maps, with weights and running statistics",
            "another norm in that model, such as model.image_options={norm: layer}",
        )
    module.__class__ = _BatchNormAct if with_activation else BatchNorm
    module.frozen, module.reduce_stats = False, None
