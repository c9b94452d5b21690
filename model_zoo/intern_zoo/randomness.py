"""Where a model draws random numbers in training."""

from __future__ import annotations

from collections.abc import Iterator

from timm.layers.drop import DropPath as TimmDropPath
from timm.layers.patch_dropout import PatchDropout
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from intern_zoo.metanet.layers import DropPath

_PER_CALL = (_DropoutNd, TimmDropPath, PatchDropout)


def draw_points(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules, with their names, whose forward pass begins at a place of its own in the random numbers: dropouts, and
    blocks with stochastic depth (a block draws more than once, so its `DropPath` is no such place).
    """
    for name, module in model.named_modules():
        branches = [child for child in module.children() if isinstance(child, DropPath)]
        if any(child.rate > 0 for child in branches) or (isinstance(module, _PER_CALL) and _share(module) > 0):
            yield name, module


def _share(module: nn.Module) -> float:
    for name in ("p", "drop_prob", "prob"):
        if hasattr(module, name):
            return float(getattr(module, name) or 0.0)
    return 1.0
