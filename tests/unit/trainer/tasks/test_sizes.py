"""Progressive resolution with models whose parameters depend on the picture's size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from intern_trainer.config.schema import Config
from intern_trainer.errors import ConfigError
from intern_trainer.tasks.sizes import check_picture_sizes
from intern_zoo import create_model
from torch.utils.flop_counter import FlopCounterMode


def config(image: str, sides: list[int], **options: Any) -> Config:
    ends = [(number + 1) / (len(sides) + 1) for number in range(len(sides))]
    phases = [{"until": end, "image_size": side} for end, side in zip(ends, sides, strict=True)]
    model = {"image": image, "image_size": 64, "image_options": options}
    return Config.model_validate({"model": model, "train": {"phases": phases}})


def test_metanets_take_any_size_and_a_vit_without_phases_its_own() -> None:
    check_picture_sizes(config("metanet_debug", [32, 41]))
    check_picture_sizes(config("resnet18", [32]))
    check_picture_sizes(config("vit_tiny_patch16_224", [64]))
    check_picture_sizes(config("vit_tiny_patch16_224", [48], depht=2))  # told where the model is built


def test_a_vit_takes_other_sizes_by_interpolated_positions() -> None:
    with pytest.raises(ConfigError, match=r"pictures of 48 pixels, and vit_tiny_patch16_224: Input height") as raised:
        check_picture_sizes(config("vit_tiny_patch16_224", [48]))
    assert "dynamic_img_size: true" in raised.value.fix
    check_picture_sizes(config("vit_tiny_patch16_224", [48], dynamic_img_size=True))
    with pytest.raises(ConfigError, match=r"pictures of 40 pixels, and .* divisible by patch size"):
        check_picture_sizes(config("vit_tiny_patch16_224", [48, 40], dynamic_img_size=True))


def test_a_vit_drops_patches_in_training_alone() -> None:
    """FLIP (arXiv 2212.00794), by timm's own option: `model.image_options={patch_drop_rate: 0.5}`."""
    trunk = create_model("vit_tiny_patch16_224", num_classes=0, img_size=64, patch_drop_rate=0.5)
    spent = []
    for training in (True, False):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            trunk.train(training)(torch.zeros(2, 3, 64, 64))
        spent.append(counter.get_total_flops())
    assert spent[0] < 0.6 * spent[1]
