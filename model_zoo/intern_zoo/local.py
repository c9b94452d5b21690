"""Two towers with projectors on the image model's maps, for a loss between places of a picture.

b batch, c channels of a level, d width of the projectors, e width of the common space, h, w size of a level's map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intern_zoo.errors import ModelConfigError
from intern_zoo.metanet.layers import Pointwise
from intern_zoo.metanet.norm import MapLayerNorm
from intern_zoo.text import TextTransformer
from intern_zoo.two_tower import TwoTower, TwoTowerOutput


class LocalOutput(NamedTuple):
    """What a training step leaves behind: features of first view and caption [b, e], unit norm; [1], exp'd and bounded;
    [1] or None; and a projected map a level, [2b, d, h, w], those of the first views before those of the second.
    """

    image_features: Tensor
    text_features: Tensor
    logit_scale: Tensor
    logit_bias: Tensor | None
    maps: list[Tensor]


class LocalTowers(TwoTower):
    """A `TwoTower` that also gives maps of two views of each picture. With one view it is that `TwoTower`.

    Args:
        image, text, embed_dim, bounds: see `TwoTower`.
        strides: pixels a cell of the levels that are projected.
        width: d.

    Raises:
        ModelConfigError: the image model has no level of one of these strides.
    """

    def __init__(
        self,
        image: Any,
        text: TextTransformer,
        embed_dim: int,
        *,
        strides: Sequence[int],
        width: int = 256,
        **bounds: Any,
    ) -> None:
        super().__init__(image, text, embed_dim, **bounds)
        self.levels = sorted({_level(image, stride) for stride in strides})  # as the trunk gives their maps
        self.heads = nn.ModuleList(_projector(image.feature_info[level]["num_chs"], width) for level in self.levels)

    def forward(  # type: ignore[override]  # another view, more outputs
        self, image: Tensor | None = None, text: Tensor | None = None, image2: Tensor | None = None
    ) -> TwoTowerOutput | LocalOutput:
        """Both views are one batch to the trunk: its parameters are gathered once."""
        if image is None or text is None or image2 is None:
            return super().forward(image, text)
        trunk = self.image.trunk
        top, maps = trunk.forward_intermediates(torch.cat([image, image2]), indices=self.levels, output_fmt="NCHW")
        pooled_bf = trunk.forward_head(top)[: len(image)]
        return LocalOutput(
            F.normalize(self.image.projection(pooled_bf), dim=-1),
            self.encode_text(text),
            *super().forward()[2:],
            [project(x_2bchw) for project, x_2bchw in zip(self.heads, maps, strict=True)],
        )


def _projector(channels: int, width: int) -> nn.Sequential:
    """At each place by itself. Layer norms, so that a place's vector does not depend on the batch that it came with."""
    return nn.Sequential(
        Pointwise(channels, width), MapLayerNorm(width), nn.GELU(), Pointwise(width, width), MapLayerNorm(width),
        nn.GELU(), Pointwise(width, width),
    )  # fmt: skip


def _level(image: Any, stride: int) -> int:
    """The last of the image model's levels with this stride."""
    strides = [info["reduction"] for info in image.feature_info]
    if stride not in strides:
        raise ModelConfigError(
            f"A level of stride {stride} was asked for.",
            f"The image model's levels have the strides {', '.join(map(str, sorted(set(strides))))}.",
            "Ask for some of these.",
        )
    return len(strides) - 1 - strides[::-1].index(stride)
