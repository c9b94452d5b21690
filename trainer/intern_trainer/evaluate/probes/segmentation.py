"""Segmentation probe: one linear layer from the frozen maps to the class of each pixel."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from intern_trainer.data.embedded import categories
from intern_trainer.data.scenes import Layout
from intern_trainer.evaluate.probes.features import SceneFeatures, Standardise
from intern_trainer.evaluate.probes.fit import Protocol, fit
from intern_trainer.ranks import Ranks

EXTENT = (0.5, 1.0)


def layout(protocol: Protocol) -> Layout:
    """One picture of the embedded set on a background, as large as the scene at most."""
    return Layout(protocol.side, objects=(1, 1), extent=EXTENT)


class LinearSegmenter(nn.Module):
    """Scores [b, classes + 1, h, w] at the finest level's size; class 0 is the background.

    A linear layer on all levels, enlarged and joined, is the sum of one linear layer a level, enlarged: so maps are
    enlarged when they have few channels. Starts at zero: the problem is convex, and needs no draws.
    """

    def __init__(self, norms: list[Standardise], classes: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(norms)
        self.layers = nn.ModuleList(nn.Conv2d(len(norm.mean_c), classes + 1, 1) for norm in norms)
        for parameter in self.layers.parameters():
            nn.init.zeros_(parameter)

    def forward(self, maps: list[Tensor]) -> Tensor:
        size = maps[0].shape[2:]
        scores = [layer(norm(x_bchw)) for x_bchw, norm, layer in zip(maps, self.norms, self.layers, strict=True)]
        return torch.stack([_resized(score, size) for score in scores]).sum(dim=0)


def probe(train: SceneFeatures, test: SceneFeatures, protocol: Protocol, ranks: Ranks) -> dict[str, float]:
    """`mIoU`: intersection over union, mean over the background and the classes; `foreground_IoU`: of objects, whatever
    their class. Pixels of all test scenes and ranks are counted together. Collective.
    """
    classes = len(categories())
    head = LinearSegmenter([Standardise(level, ranks) for level in train.levels], classes).to(ranks.device)
    labels_bhw = torch.from_numpy(np.stack([one.semantic() for one in train.scenes])).long()

    def loss_b(maps: list[Tensor], rows: list[int]) -> Tensor:
        scores = head(maps)
        target = F.interpolate(labels_bhw[rows][:, None].float(), scores.shape[2:], mode="nearest-exact")[:, 0].long()
        return F.cross_entropy(scores, target.to(ranks.device), reduction="none").mean(dim=(1, 2))

    fit(head, loss_b, train, protocol, ranks)
    metric = MulticlassConfusionMatrix(classes + 1).to(ranks.device)  # integers, added up over ranks
    with torch.no_grad():
        for first in range(0, len(test.scenes), protocol.batch):
            rows = range(first, min(first + protocol.batch, len(test.scenes)))
            scores = _resized(head(test.maps(rows, ranks.device)), (protocol.side, protocol.side))
            labels = torch.from_numpy(np.stack([test.scenes[row].semantic() for row in rows])).long()
            metric.update(scores.argmax(dim=1), labels.to(ranks.device))
    return ious(metric.compute())


def ious(confusion: Tensor) -> dict[str, float]:
    """From pixel counts [true, predicted]; a class that neither has is left out of the mean."""
    confusion = confusion.double()
    right = confusion.diagonal()
    union = confusion.sum(dim=0) + confusion.sum(dim=1) - right
    hit, any_object = confusion[1:, 1:].sum(), confusion.sum() - confusion[0, 0]
    return {
        "mIoU": float((right / union)[union > 0].mean()),
        "foreground_IoU": float(hit / any_object) if any_object else 0.0,
    }


def _resized(x_bchw: Tensor, size: tuple[int, ...]) -> Tensor:
    return F.interpolate(x_bchw, size, mode="bilinear", align_corners=False)
