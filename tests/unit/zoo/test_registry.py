"""Models by name: ours and timm's behind the same calls."""

from __future__ import annotations

import copy

import pytest
import torch
from intern_zoo import ModelConfigError, UnknownModelError, create_model, flops, list_models
from intern_zoo.metanet import VARIANTS


def test_list_models() -> None:
    assert list_models("metanet*") == sorted(name for name in VARIANTS if name.startswith("metanet"))
    assert set(VARIANTS) <= set(list_models())
    for name in ("resnet50", "mobilenetv3_small_100", "vit_base_patch16_224", "efficientnet_b0"):
        assert name in list_models()
    assert list_models("no such*") == []


def test_an_unknown_name_gets_suggestions() -> None:
    with pytest.raises(UnknownModelError, match="metanet_b15") as caught:
        create_model("metanet-b15")
    assert isinstance(caught.value, ValueError)
    with pytest.raises(UnknownModelError, match="list_models"):
        create_model("zzzzzzzz")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("metanet_debug", {}),
        ("resnet18", {}),
        ("mobilenetv3_small_050", {}),
        ("vit_tiny_patch16_224", {"img_size": 64}),
        ("efficientnet_b0", {}),
    ],
)
def test_every_family_answers_the_same_verbs(name: str, options: dict[str, int]) -> None:
    torch.manual_seed(0)
    model = create_model(name, num_classes=0, **options).eval()
    x = torch.randn(2, 3, 64, 64)
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    assert pooled.shape == (2, model.num_features)
    assert torch.equal(model(x), pooled)
    spared = copy.deepcopy(model).no_weight_decay()
    assert {n for n, p in model.named_parameters() if p.dim() <= 1} <= spared
    assert any(p.dim() > 1 and n not in spared for n, p in model.named_parameters())
    model.set_grad_checkpointing(True)
    model.reset_classifier(4)
    assert model(x).shape == (2, 4)
    assert model.num_features == pooled.shape[1]


def test_flops_of_a_timm_model() -> None:
    assert flops(create_model("resnet18"), 224) == pytest.approx(2 * 1.814e9, rel=5e-3)


def test_options_that_timm_refuses() -> None:
    with pytest.raises(ModelConfigError, match="resnet18"):
        create_model("resnet18", no_such_option=1)
