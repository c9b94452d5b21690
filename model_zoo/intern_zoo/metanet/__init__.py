"""MetaNet and UniNet: the convolution-attention networks of INTERN. See README.md."""

from intern_zoo.metanet.config import MetaNetConfig
from intern_zoo.metanet.model import MetaNet
from intern_zoo.metanet.variants import INPUT_SIZES, VARIANTS

__all__ = ["INPUT_SIZES", "VARIANTS", "MetaNet", "MetaNetConfig"]
