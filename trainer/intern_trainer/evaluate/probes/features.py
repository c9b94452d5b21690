"""Scenes and what a frozen image model makes of them: the maps that heads of probes are trained on.

b scenes, c channels of a level, h, w its height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from intern_trainer.config.schema import Config
from intern_trainer.data.scenes import Layout, Scene, scene
from intern_trainer.data.transforms import normalise
from intern_trainer.evaluate.features import sum_over_ranks
from intern_trainer.ranks import Ranks

LEVELS = 4
"""A probe reads the last four levels: strides 4, 8, 16 and 32 of a MetaNet, the last four blocks of a ViT."""


@dataclass
class SceneFeatures:
    """This rank's scenes of a set: those whose number leaves `rank` when divided by the number of ranks.

    Attributes:
        numbers: of the scenes. levels: maps [n, c, h, w] on the CPU, from fine to coarse.
    """

    numbers: list[int]
    scenes: list[Scene]
    levels: list[Tensor]

    def maps(self, rows: Sequence[int], device: torch.device) -> list[Tensor]:
        return [level[list(rows)].to(device) for level in self.levels]


def scene_features(
    trunk: Any, split: str, layout: Layout, count: int, seed: int, config: Config, ranks: Ranks
) -> SceneFeatures:
    """Scenes 0 to `count` of a split, and `trunk`'s maps of them.

    Args:
        trunk: an image model of the zoo in evaluation mode, whole on this rank's device.
    """
    numbers = list(range(ranks.rank, count, ranks.world_size))
    scenes = [scene(split, layout, seed, number) for number in numbers]
    parts: list[list[Tensor]] = []
    with torch.no_grad():
        for first in range(0, len(scenes), config.evaluate.batch):
            pixels = [torch.from_numpy(one.pixels)[None] for one in scenes[first : first + config.evaluate.batch]]
            image = normalise(pixels, config.data.mean, config.data.std, ranks.device)
            maps = trunk.forward_intermediates(image, indices=LEVELS, output_fmt="NCHW", intermediates_only=True)
            parts.append([level.float().cpu() for level in maps])
    return SceneFeatures(numbers, scenes, [torch.cat(level) for level in zip(*parts, strict=True)])


class Standardise(nn.Module):
    """(x - mean) / deviation by channel, with the figures of the training scenes on all ranks. Collective to make.

    So the scale of a model's features, which training moves freely, has no influence on how fast a head learns.
    """

    mean_c: Tensor
    deviation_c: Tensor

    def __init__(self, x_bchw: Tensor, ranks: Ranks) -> None:
        super().__init__()
        sums = torch.zeros(3, x_bchw.shape[1], dtype=torch.float64)
        for x_chw in x_bchw:  # one scene at a time: all of them in fp64 would be twice the features' memory
            x_cn = x_chw.double().flatten(1)
            sums += torch.stack([x_cn.sum(dim=1), x_cn.square().sum(dim=1), torch.ones_like(x_cn).sum(dim=1)])
        total, square, count = sum_over_ranks(sums, ranks)
        mean_c = total / count
        deviation_c = (square / count - mean_c.square()).clamp_min(0).sqrt().clamp_min(1e-6)
        self.register_buffer("mean_c", mean_c.float())
        self.register_buffer("deviation_c", deviation_c.float())

    def forward(self, x_bchw: Tensor) -> Tensor:
        return (x_bchw - self.mean_c[:, None, None]) / self.deviation_c[:, None, None]
