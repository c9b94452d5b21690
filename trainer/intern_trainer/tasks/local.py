"""The local phase: a second phase of stage 1 that makes the image tower's maps useful for dense tasks.

INTERN names such a phase (Up-A-L) and does not describe it: the method is our choice. Two overlapping views of a
picture show the same thing at places that are known. At such a pair of places the projected maps shall agree
(invariance), while over all places of the batch each channel keeps its spread (variance) and channels do not repeat
each other (covariance): VICReg's loss (arXiv 2105.04906) between places, as VICRegL has it (arXiv 2210.01571). The
contrastive loss of the first phase goes on beside it, so that pictures keep their place among captions.

No negatives, since many places of a picture show the same (sky, paper); no second model and no queue, which ZeRO would
have to shard; statistics over all ranks are one vector and one d x d matrix a level, whatever the batch.

b batch, d width of the projectors, k x k points that are compared in a pair of views, n points of the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from intern_kernels.precision import at_least_fp32
from intern_zoo.errors import ModelConfigError
from intern_zoo.local import LocalOutput, LocalTowers
from intern_zoo.two_tower import TwoTower
from torch import Tensor

from intern_trainer.batch import Batch
from intern_trainer.collectives import all_reduce
from intern_trainer.data import Views
from intern_trainer.errors import ConfigError
from intern_trainer.observe.places import place
from intern_trainer.tasks.base import Forward, Outputs
from intern_trainer.tasks.contrastive import ContrastiveTask

POINTS = "points"
"""Outputs of this name and a number hold a level's points."""


class LocalTask(ContrastiveTask):
    """The contrastive task on the first view and the caption, and agreement of the two views place by place."""

    name = "local"
    _input_names = ("image", "image2", "text")

    @property
    def views(self) -> Views:
        return replace(super().views, images=2, overlap=self.config.local.overlap, boxes=True)

    @property
    def towers(self) -> Callable[..., TwoTower]:
        return self._towers

    def _towers(self, *towers: Any, **options: Any) -> LocalTowers:
        local = self.config.local
        try:
            return LocalTowers(*towers, **options, strides=local.strides, width=local.width)
        except ModelConfigError as error:
            raise ConfigError(f"local.strides is {local.strides}", error.rule, error.fix) from error

    def forward(self, model: Forward, batch: Batch) -> Outputs:
        """What the contrastive task gives, and of each level the two views at the points that they share,
        [b, 2, k x k, d].
        """
        out: LocalOutput = model(**self.inputs(batch))
        places = shared_places(batch.tensors["boxes"], self.config.local.points)
        levels = {f"{POINTS}{number}": at_places(x_2bdhw, places) for number, x_2bdhw in enumerate(out.maps)}
        towers = {name: tensor for name, tensor in out._asdict().items() if name != "maps" and tensor is not None}
        return towers | levels

    @place("loss")
    def loss(self, outputs: Outputs) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of the contrastive loss and, mean over levels, the three terms of the local one."""
        weights = self.config.local
        contrastive, metrics = super().loss(outputs)
        levels = [vicreg(tensor, self.ranks.world_size, self.ranks.group) for name, tensor in outputs.items() if name.startswith(POINTS)]
        terms = {name: torch.stack([level[name] for level in levels]).mean() for name in levels[0]}
        local = torch.stack([getattr(weights, name) * term for name, term in terms.items()]).sum()
        return weights.contrastive * contrastive + local, {
            **metrics,
            "contrastive": contrastive.detach(),
            **{name: term.detach() for name, term in terms.items()},
        }


def shared_places(boxes_b24: Tensor, points: int) -> Tensor:
    """The middles of `points` x `points` equal parts of what two views share, row by row: [b, 2, points², 2], as x and
    y within each view, 0 to 1 from its left and upper edge.

    Args:
        boxes_b24: where the views lie in the picture, see `Views.boxes`; they overlap.
    """
    low_b22 = torch.minimum(boxes_b24[..., :2], boxes_b24[..., 2:])
    high_b22 = torch.maximum(boxes_b24[..., :2], boxes_b24[..., 2:])
    low_b12, high_b12 = low_b22.amax(dim=1, keepdim=True), high_b22.amin(dim=1, keepdim=True)
    middles = (torch.arange(points, device=boxes_b24.device) + 0.5) / points
    y, x = torch.meshgrid(middles, middles, indexing="ij")
    share_n2 = torch.stack([x.flatten(), y.flatten()], dim=1)
    picture_b1n2 = (low_b12 + (high_b12 - low_b12) * share_n2).unsqueeze(1)
    start_b212, end_b212 = boxes_b24[..., None, :2], boxes_b24[..., None, 2:]
    return (picture_b1n2 - start_b212) / (end_b212 - start_b212)


def at_places(x_2bdhw: Tensor, places_b2n2: Tensor) -> Tensor:
    """The maps of first and second views at places of each, between cells by bilinear interpolation: [b, 2, n, d]."""
    grid = (places_b2n2 * 2 - 1).transpose(0, 1).flatten(0, 1).unsqueeze(2)
    x_2bdhw = at_least_fp32(x_2bdhw)
    x_2bdn1 = F.grid_sample(x_2bdhw, grid.to(x_2bdhw.dtype), padding_mode="border", align_corners=False)
    return torch.stack(x_2bdn1.squeeze(3).transpose(1, 2).chunk(2), dim=1)


def vicreg(z_b2nd: Tensor, world_size: int, group: dist.ProcessGroup | None = None) -> dict[str, Tensor]:
    """VICReg's terms (arXiv 2105.04906, equations 1 to 5): `invariance`, mean squared distance of a pair in a channel;
    `variance`, mean shortfall of the channels' standard deviation below 1; `covariance`, sum over d of the squared
    covariances of different channels. The last two are means of both views', over the points of all ranks.
    """
    exact_b2nd = at_least_fp32(z_b2nd)
    z_2nd = exact_b2nd.transpose(0, 1).flatten(1, 2)
    count, width = z_2nd.shape[1] * world_size, z_2nd.shape[2]
    centred_2nd = z_2nd - all_reduce(z_2nd.sum(dim=1, keepdim=True), group) / count
    covariance_2dd = all_reduce(centred_2nd.transpose(1, 2) @ centred_2nd, group) / (count - 1)
    variance_2d = covariance_2dd.diagonal(dim1=1, dim2=2)
    deviation_2d = (variance_2d + 1e-4).sqrt()
    return {
        "invariance": (z_2nd[0] - z_2nd[1]).square().mean(),
        "variance": (1 - deviation_2d).relu().mean(),
        "covariance": (covariance_2dd.square().sum() - variance_2d.square().sum()) / (2 * width),
    }
