"""timm's models, made by timm: a folder exported with one needs timm where it is loaded."""

from __future__ import annotations

from typing import Any

import timm
from torch import nn


def build_trunk(options: dict[str, Any]) -> nn.Module:
    """`options`: the arguments of `timm.create_model`."""
    return timm.create_model(pretrained=False, **options)


BLOCK_CLASSES = ("Block", "BasicBlock", "Bottleneck", "InvertedResidual", "DepthwiseSeparableConv", "EdgeResidual")
"""Modules that accelerate keeps on one device each."""
