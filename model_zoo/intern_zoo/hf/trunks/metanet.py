"""MetaNets, whose source travels inside the exported modelling file."""

from __future__ import annotations

from typing import Any

from torch import nn

from intern_zoo.metanet.config import MetaNetConfig
from intern_zoo.metanet.model import MetaNet


def build_trunk(options: dict[str, Any]) -> nn.Module:
    """`options`: the fields of MetaNetConfig, as JSON keeps them."""
    return MetaNet(MetaNetConfig(**options))


BLOCK_CLASSES = (
    "MBConv",
    "FusedMBConv",
    "AttentionBlock",
    "AttentionTransition",
    "LocalDownsample",
    "LocalGlobalDownsample",
)
"""Modules that accelerate keeps on one device each."""
