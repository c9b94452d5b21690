"""Detection probe: a small anchor-free head on the frozen maps, as FCOS has it (arXiv 1904.01355).

b scenes, k cells of the grid (row by row), c classes, n objects of a scene, w width of the head.
"""

from __future__ import annotations

import io
import math
from contextlib import redirect_stdout
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.detection import MeanAveragePrecision
from torchvision.ops import batched_nms, generalized_box_iou_loss, sigmoid_focal_loss

from intern_trainer.data.embedded import categories
from intern_trainer.data.scenes import Layout, Scene
from intern_trainer.evaluate.probes.features import SceneFeatures, Standardise
from intern_trainer.evaluate.probes.fit import Protocol, fit
from intern_trainer.ranks import Ranks

WIDTH = 64
GRID_LEVEL = 1
"""The head's cells are those of the second finest level: stride 8 of a MetaNet."""
CENTRE = 1.5
"""A cell is responsible for an object if it lies within so many cells of its centre."""
RARE = 0.01
"""Score of every class that the head starts with; most cells are background."""
KEPT = 100
NMS_IOU = 0.6


def layout(protocol: Protocol) -> Layout:
    """One to four cut-outs anywhere."""
    return Layout(protocol.side)


class Detector(nn.Module):
    """Class scores [b, k, c] and boxes [b, k, 4] (left, top, right, bottom, pixels) of the cells."""

    def __init__(self, norms: list[Standardise], classes: int, grid: tuple[int, int], side: int) -> None:
        super().__init__()
        self.norms, self.grid = nn.ModuleList(norms), grid
        self.lateral = nn.ModuleList(nn.Conv2d(len(norm.mean_c), WIDTH, 1) for norm in norms)
        self.mix = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.classes, self.sides = nn.Conv2d(WIDTH, classes, 1), nn.Conv2d(WIDTH, 4, 1)
        nn.init.constant_(self.classes.bias, math.log(RARE / (1 - RARE)))  # type: ignore[arg-type]
        nn.init.zeros_(self.sides.weight)
        nn.init.constant_(self.sides.bias, math.log(side / 5))  # type: ignore[arg-type]
        self.register_buffer("centres_k2", centres(grid, side), persistent=False)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        joined = torch.stack(
            [self._on_grid(layer(norm(x))) for x, norm, layer in zip(maps, self.norms, self.lateral, strict=True)]
        ).sum(dim=0)
        x_bwk = F.gelu(self.mix(F.gelu(joined)))
        scores_bkc = self.classes(x_bwk).flatten(2).transpose(1, 2)
        sides_bk4 = self.sides(x_bwk).flatten(2).transpose(1, 2).clamp(max=10).exp()
        centres_k2: Any = self.centres_k2
        return scores_bkc, torch.cat([centres_k2 - sides_bk4[..., :2], centres_k2 + sides_bk4[..., 2:]], dim=-1)

    def _on_grid(self, x_bchw: Tensor) -> Tensor:
        if x_bchw.shape[2] > self.grid[0]:
            return F.adaptive_avg_pool2d(x_bchw, self.grid)
        return F.interpolate(x_bchw, self.grid, mode="bilinear", align_corners=False)


def centres(grid: tuple[int, int], side: int) -> Tensor:
    """[k, 2]: x and y of the middle of each cell, pixels."""
    y, x = torch.meshgrid(*((torch.arange(n) + 0.5) * side / n for n in grid), indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def assign(centres_k2: Tensor, boxes_n4: Tensor, cell: float) -> Tensor:
    """[k]: the object that each cell answers for, -1 for none; of several the smallest.

    A cell answers for an object if its middle lies in the box and within `CENTRE` cells of the box's centre, or if it
    is the cell nearest to that centre.
    """
    x_k1, y_k1 = centres_k2.unsqueeze(1).unbind(dim=2)
    left, top, right, bottom = boxes_n4.unbind(dim=1)
    inside_kn = (x_k1 > left) & (x_k1 < right) & (y_k1 > top) & (y_k1 < bottom)
    middle_n2 = (boxes_n4[:, :2] + boxes_n4[:, 2:]) / 2
    near_kn = (centres_k2[:, None] - middle_n2).abs().amax(dim=2) <= CENTRE * cell
    nearest_kn = torch.cdist(centres_k2, middle_n2).argmin(dim=0) == torch.arange(len(centres_k2))[:, None]
    area_n = (right - left) * (bottom - top)
    cost_kn = torch.where(inside_kn & near_kn | nearest_kn, area_n, math.inf)
    least, owner = cost_kn.min(dim=1)
    return owner.masked_fill(least.isinf(), -1)


def probe(train: SceneFeatures, test: SceneFeatures, protocol: Protocol, ranks: Ranks) -> dict[str, float]:
    """COCO's figures over all test scenes: `mAP` (mean over IoU 0.5 to 0.95 and classes), `AP50`, and `objects_AP50`,
    for which the class does not count. Collective; the same on every rank.
    """
    classes, side = len(categories()), protocol.side
    grid = (train.levels[GRID_LEVEL].shape[2], train.levels[GRID_LEVEL].shape[3])
    norms = [Standardise(level, ranks) for level in train.levels]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(protocol.seed)
        head = Detector(norms, classes, grid, side)
    head.to(ranks.device)
    middles = centres(grid, side)
    targets = [cell_targets(middles, one, side / grid[1]) for one in train.scenes]
    labels_bk, wanted_bk4 = (torch.stack(each) for each in zip(*targets, strict=True))

    def loss_b(maps: list[Tensor], rows: list[int]) -> Tensor:
        scores_bkc, boxes_bk4 = head(maps)
        return detection_loss(
            scores_bkc, boxes_bk4, labels_bk[rows].to(ranks.device), wanted_bk4[rows].to(ranks.device)
        )

    fit(head, loss_b, train, protocol, ranks)
    found: dict[int, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}
    with torch.no_grad():
        for first in range(0, len(test.scenes), protocol.batch):
            rows = range(first, min(first + protocol.batch, len(test.scenes)))
            for row, scores_kc, boxes_k4 in zip(rows, *head(test.maps(rows, ranks.device)), strict=True):
                truth = test.scenes[row]
                target = {"boxes": torch.from_numpy(truth.boxes), "labels": torch.from_numpy(truth.classes)}
                found[test.numbers[row]] = (detections(scores_kc, boxes_k4, side), target)
    everything = {number: pair for part in ranks.gather(found) for number, pair in part.items()}
    pairs = [everything[number] for number in sorted(everything)]
    by_class, any_class = average_precision(pairs, "macro"), average_precision(pairs, "micro")
    return {"mAP": by_class["map"], "AP50": by_class["map_50"], "objects_AP50": any_class["map_50"]}


def cell_targets(centres_k2: Tensor, truth: Scene, cell: float) -> tuple[Tensor, Tensor]:
    """For each cell the class, -1 for background, and the box that it shall find: [k], [k, 4]."""
    owner_k = assign(centres_k2, torch.from_numpy(truth.boxes), cell)
    nobody = owner_k < 0
    labels_k = torch.from_numpy(truth.classes)[owner_k.clamp_min(0)].masked_fill(nobody, -1)
    return labels_k, torch.from_numpy(truth.boxes)[owner_k.clamp_min(0)]


def detection_loss(scores_bkc: Tensor, boxes_bk4: Tensor, labels_bk: Tensor, wanted_bk4: Tensor) -> Tensor:
    """[b]: focal loss of all cells and generalised IoU of those that answer for an object, over the number of these."""
    answers_bk = labels_bk >= 0
    target_bkc = F.one_hot(labels_bk.clamp_min(0), scores_bkc.shape[2]).to(scores_bkc.dtype) * answers_bk[..., None]
    classes_b = sigmoid_focal_loss(scores_bkc, target_bkc).sum(dim=(1, 2))
    boxes_bk = generalized_box_iou_loss(boxes_bk4, wanted_bk4) * answers_bk
    return (classes_b + boxes_bk.sum(dim=1)) / answers_bk.sum(dim=1)


def detections(scores_kc: Tensor, boxes_k4: Tensor, side: int) -> dict[str, Tensor]:
    """The best boxes of a scene after suppression, on the CPU, as torchmetrics takes them."""
    best = scores_kc.sigmoid().flatten().topk(min(KEPT * 3, scores_kc.numel()))
    cell, label = best.indices // scores_kc.shape[1], best.indices % scores_kc.shape[1]
    boxes = boxes_k4[cell].clamp(0, side)
    kept = batched_nms(boxes, best.values, label, NMS_IOU)[:KEPT]
    return {"boxes": boxes[kept].cpu(), "scores": best.values[kept].cpu(), "labels": label[kept].cpu()}


def average_precision(pairs: list[tuple[dict[str, Tensor], dict[str, Tensor]]], average: Any) -> dict[str, float]:
    """COCO's figures (`map`, `map_50`, ...) of (detections, truth) of all scenes; no collective."""
    metric = MeanAveragePrecision(backend="faster_coco_eval", average=average, sync_on_compute=False)
    metric.update([detected for detected, _ in pairs], [truth for _, truth in pairs])
    with redirect_stdout(io.StringIO()):
        return {name: float(value) for name, value in metric.compute().items() if value.numel() == 1}
