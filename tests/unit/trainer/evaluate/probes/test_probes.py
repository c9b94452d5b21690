"""Probes: an oracle's maps score near 1, maps that know nothing do not; targets and figures on cases by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from intern_trainer.config.schema import Config
from intern_trainer.data.scenes import Scene
from intern_trainer.evaluate.probes import PROBES, Protocol
from intern_trainer.evaluate.probes.detection import assign, average_precision, cell_targets, centres, detection_loss
from intern_trainer.evaluate.probes.features import SceneFeatures, scene_features
from intern_trainer.evaluate.probes.segmentation import ious
from intern_zoo import create_model

from tests.unit.trainer.doubles import ONE_RANK

CLASSES, SIDE = 20, 32


def scene_of(boxes: list[list[int]], classes: list[int]) -> Scene:
    masks = np.zeros((len(boxes), SIDE, SIDE), bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    return Scene(pixels, np.array(classes), np.array(boxes, np.float32), masks, ["x"] * len(boxes), "")


def scenes(count: int, seed: int) -> list[Scene]:
    """One rectangle each, its edges on the cells of stride 4."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        width, height = 4 * rng.integers(3, 7, 2)
        left, top = 4 * rng.integers(0, (SIDE - width) // 4 + 1), 4 * rng.integers(0, (SIDE - height) // 4 + 1)
        found.append(scene_of([[left, top, left + width, top + height]], [int(rng.integers(0, 3))]))
    return found


def maps(found: list[Scene], knows: bool) -> SceneFeatures:
    """Levels of strides 4 to 32: of an oracle (each cell's class, and how far the box's edges are), or noise."""
    levels = []
    for stride in (4, 8, 16, 32):
        cells = SIDE // stride
        middle = (np.arange(cells) + 0.5) * stride
        level = np.zeros((len(found), 3 + 4, cells, cells), np.float32)
        for n, one in enumerate(found):
            left, top, right, bottom = one.boxes[0]
            inside = np.outer((middle > top) & (middle < bottom), (middle > left) & (middle < right))
            level[n, one.classes[0]] = inside
            for k, distance in enumerate((middle - left, right - middle)):
                level[n, 3 + k] = np.log(np.clip(distance, 1, None)) * inside
            for k, distance in enumerate((middle - top, bottom - middle)):
                level[n, 5 + k] = np.log(np.clip(distance, 1, None))[:, None] * inside
        noise = np.random.default_rng(stride).normal(size=level.shape).astype(np.float32)
        levels.append(torch.from_numpy(level if knows else noise))
    return SceneFeatures(list(range(len(found))), found, levels)


PROTOCOL = Protocol(SIDE, train=96, test=48, batch=24, lr=0.02)


@pytest.mark.parametrize(("task", "figure", "good"), [("segmentation", "mIoU", 0.9), ("detection", "AP50", 0.9)])
def test_an_oracles_maps_score_near_one_and_noise_near_nothing(task: str, figure: str, good: float) -> None:
    train, test = scenes(96, 0), scenes(48, 1)

    def result(knows: bool) -> float:
        steps = 150 if knows else 20
        protocol = replace(PROTOCOL, steps=steps)
        return PROBES[task].probe(maps(train, knows), maps(test, knows), protocol, ONE_RANK)[figure]

    assert result(knows=True) > good
    assert result(knows=False) < 0.35


def test_intersection_over_union_by_hand() -> None:
    confusion = torch.tensor([[6, 1, 0], [1, 3, 1], [0, 0, 0]])  # 12 pixels; class 2 is never true, once said
    found = ious(confusion)
    assert found["mIoU"] == pytest.approx((6 / 8 + 3 / 6 + 0 / 1) / 3)
    assert found["foreground_IoU"] == pytest.approx(4 / 6)
    assert ious(torch.tensor([[6, 1, 0], [1, 3, 0], [0, 0, 0]]))["mIoU"] == pytest.approx((6 / 8 + 3 / 5) / 2)


def test_cells_answer_for_the_smallest_object_near_whose_centre_they_lie() -> None:
    middles = centres((4, 4), SIDE)  # 4, 12, 20, 28 each way
    assert middles[1].tolist() == [12, 4]
    owner = assign(middles, torch.tensor([[6.0, 6, 26, 26], [8, 8, 16, 16], [29, 29, 31, 31]]), 8.0).view(4, 4)
    assert owner.tolist() == [
        [-1, -1, -1, -1],
        [-1, 1, 0, -1],  # (20, 12) lies outside the small one
        [-1, 0, 0, -1],
        [-1, -1, -1, 2],  # no cell's middle lies in the smallest: the nearest answers
    ]


def test_the_right_answer_costs_least() -> None:
    truth = scene_of([[0, 0, 16, 16]], [2])
    labels, boxes = (t[None] for t in cell_targets(centres((4, 4), SIDE), truth, 8.0))
    assert (labels >= 0).sum() == 4
    sure = torch.full((1, 16, CLASSES), -12.0)
    sure[labels >= 0, 2] = 12.0
    best = detection_loss(sure, boxes, labels, boxes)
    assert float(best) < 1e-3
    assert float(detection_loss(sure, boxes + 4, labels, boxes)) > float(best) + 0.3
    assert float(detection_loss(sure.flip(2), boxes, labels, boxes)) > float(best) + 1


def test_average_precision_of_perfect_and_of_misnamed_boxes() -> None:
    truth = {"boxes": torch.tensor([[0.0, 0, 10, 10]]), "labels": torch.tensor([1])}
    other = {"boxes": torch.tensor([[5.0, 5, 20, 20]]), "labels": torch.tensor([2])}
    perfect: list[Any] = [({**one, "scores": torch.tensor([0.9])}, one) for one in (truth, other)]
    assert average_precision(perfect, "macro")["map"] == pytest.approx(1)
    misnamed = [({**found, "labels": found["labels"] + 1}, one) for found, one in perfect]
    assert average_precision(misnamed, "macro")["map_50"] == pytest.approx(0)
    assert average_precision(misnamed, "micro")["map_50"] == pytest.approx(1)


@pytest.mark.parametrize("image", ["metanet_debug", "resnet18", "vit_tiny_patch16_224"])
def test_maps_of_a_model_fit_their_scenes(image: str) -> None:
    options = {"img_size": 32} if image.startswith("vit") else {}
    trunk = create_model(image, num_classes=0, **options).eval()
    protocol = Protocol(32)
    for probe in PROBES.values():
        found = scene_features(trunk, "test", probe.layout(protocol), 3, 0, Config(), ONE_RANK)
        assert len(found.scenes) == 3
        assert len(found.levels) == 4
        assert all(level.shape[0] == 3 for level in found.levels)
