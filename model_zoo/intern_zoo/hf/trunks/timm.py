"""timm's models, made by timm: a folder exported with one needs timm where it is loaded."""

from __future__ import annotations

from typing import Any

import timm
from torch import nn


def build_trunk(options: dict[str, Any]) -> nn.Module:
    """`options`: the arguments of `timm.create_model`."""
    model = timm.create_model(pretrained=False, **options)
    model.num_features = model.head_hidden_size  # the width after pooling, as the zoo's own registry has it
    return model


BLOCK_CLASSES = ("Block", "BasicBlock", "Bottleneck", "InvertedResidual", "DepthwiseSeparableConv", "EdgeResidual")
"""Modules that accelerate keeps on one device each."""
