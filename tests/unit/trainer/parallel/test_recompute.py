"""Blocks that are computed again: the same numbers for less memory, as much less as the plan says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from intern_trainer import parallel
from intern_trainer.blocks import blocks_of
from intern_trainer.config.schema import Config
from intern_trainer.errors import ConfigError
from intern_trainer.plan.measure import measure
from intern_trainer.plan.memory import activations, recomputed
from intern_zoo.two_tower import create_two_tower
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from tests.unit.trainer.doubles import ONE_RANK

SAMPLES = 4
TEXT = {"width": 32, "layers": 2, "heads": 2, "context_length": 16}
MODES = ("none", "selective", "full")
CHEAP = ["2.blocks.0", "3.downsample", "3.blocks.0", "3.blocks.1"]


def towers(mode: str, image: str = "metanet_debug", **options: Any) -> Any:
    torch.manual_seed(1)
    text = TEXT | {"pack": options.pop("pack", False)}
    model = create_two_tower(image, 64, 32, text, options)
    return parallel.apply(model, Config.model_validate({"parallel": {"recompute": mode}}), ONE_RANK)


def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1, 49000, (SAMPLES, 16), generator=generator)
    ids[:, -1] = 49407
    return {"image": torch.randn(SAMPLES, 3, 64, 64, generator=generator), "text": ids}


def outcome(model: nn.Module) -> dict[str, Tensor]:
    """Of a step: features, gradients, buffers, and the next random number."""
    torch.manual_seed(3)
    out = model.train()(**inputs())
    loss = (out.image_features @ out.text_features.T * torch.arange(16.0).view(4, 4)).sum()
    loss.backward()
    found = {"image": out.image_features, "text": out.text_features, "draw": torch.rand(1)}
    return found | {n: p.grad for n, p in model.named_parameters() if p.grad is not None} | dict(model.named_buffers())


def saved_bytes(model: nn.Module) -> int:
    """Of the distinct storages that a forward pass saves, parameters and buffers aside."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor  # alive: no other can have its address
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        model.train()(**inputs())
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


@pytest.mark.parametrize("options", [{"drop_path_rate": 0.5}, {"drop_path_rate": 0.5, "drop_path_mode": "rows"}])
def test_every_bit_is_that_of_the_plain_model(options: dict[str, Any]) -> None:
    plain = outcome(towers("none", **options))
    assert any("running_mean" in name for name in plain)
    for mode in MODES[1:]:
        found = outcome(towers(mode, **options))
        assert found.keys() == plain.keys()
        assert [name for name in plain if not torch.equal(found[name], plain[name])] == []


@pytest.mark.parametrize("image", ["resnet18", "mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_blocks_of_other_networks_and_packed_captions_too(image: str) -> None:
    options = {"pack": True} | ({"img_size": 64} if image.startswith("vit") else {})
    plain, again = (outcome(towers(mode, image, **options)) for mode in ("none", "full"))
    assert [name for name in plain if not torch.equal(again[name], plain[name])] == []
    model = towers("none", image, **options)
    names = [name for name, _ in blocks_of(model)]
    inside = [p for _, block in blocks_of(model) for p in block.parameters()]
    assert len(names) == len(set(names)) > 8
    assert len({id(p) for p in inside}) == len(inside)  # none inside another
    assert saved_bytes(towers("full", image, **options)) < 0.6 * saved_bytes(model)


def test_saved_bytes_fall_as_the_plan_says() -> None:
    with torch.device("meta"):
        model = towers("none")
    cost = measure(model, inputs, blocks_of(model), torch.float32)
    saved = {mode: saved_bytes(towers(mode)) for mode in MODES}
    planned = {mode: activations(cost, recomputed(cost, mode), SAMPLES).saved for mode in MODES}
    assert saved == pytest.approx(planned, rel=0.02)
    assert saved["full"] < 0.6 * saved["selective"] < 0.5 * saved["none"]


def test_selective_takes_the_blocks_without_attention() -> None:
    model = towers("selective")
    repeated = [name for name, block in blocks_of(model) if "forward" in block.__dict__]
    assert repeated == [f"image.trunk.stages.{name}" for name in CHEAP]


def test_selective_with_nothing_to_select_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"recompute=full"):
        towers("selective", "resnet18")
