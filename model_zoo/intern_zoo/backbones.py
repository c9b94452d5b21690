"""Both ways between timm and this zoo: timm's ResNet, MobileNet, ViT and EfficientNet here, MetaNet there."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import timm
from timm.models import build_model_with_cfg, register_model
from torch import nn

from intern_zoo.errors import ModelConfigError
from intern_zoo.metanet import INPUT_SIZES, VARIANTS, MetaNet
from intern_zoo.registry import register_all
from intern_zoo.weight_decay import offsets_and_factors

TIMM_FAMILIES = ("resnet*", "mobilenet*", "vit_*", "efficientnet*")
"""Patterns of the timm models that `create_model` makes; each family is tested for the verbs that we need."""

TIMM_OWN_OPTIONS = ("img_size", "act_layer", "norm_layer", "device", "dtype")
"""Options that timm's tools pass to every model and that a MetaNet decides itself or does not need."""

default_cfgs: dict[str, dict[str, Any]] = {
    name: {
        "url": "",
        "input_size": (3, side, side),
        "fixed_input_size": False,
        "num_classes": VARIANTS[name].num_classes,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "pool_size": (-(-side // 32), -(-side // 32)),
        "first_conv": "stem.conv",
        "classifier": "classifier",
        "license": "apache-2.0",
    }
    for name, side in INPUT_SIZES.items()
}
"""What timm knows of our models. It reads this name in the module of the entry points."""


def _create_metanet(name: str, **overrides: Any) -> nn.Module:
    return MetaNet(VARIANTS[name].changed(**overrides))


def _create_timm(name: str, **overrides: Any) -> nn.Module:
    """A timm model without pretrained weights, made to answer as ours do.

    `num_features` becomes the width of what `forward_head` pools (timm's MobileNetV3 widens its features once more
    after pooling and calls that width `head_hidden_size`), and `no_weight_decay()` names norms and biases too.
    """
    try:
        model = timm.create_model(name, pretrained=False, **overrides)
    except TypeError as error:
        raise ModelConfigError(f"{name} (of timm) was refused its options {overrides}:", f"{error}.", "") from error
    if model.num_features != model.head_hidden_size:
        model.num_features_of_map = model.num_features
        model.reset_classifier = MethodType(_reset_classifier, model)
        model.num_features = model.head_hidden_size
    model.no_weight_decay = MethodType(_no_weight_decay, model)
    return model


def _reset_classifier(model: nn.Module, num_classes: int, global_pool: str | None = None) -> None:
    """timm's own, which wants to find timm's own `num_features`."""
    model.num_features = model.num_features_of_map
    type(model).reset_classifier(model, num_classes, global_pool)  # type: ignore[attr-defined]
    model.num_features = model.head_hidden_size


def _no_weight_decay(model: nn.Module) -> set[str]:
    """What the model's own class names (position embeddings, tokens), norms and biases."""
    own = getattr(type(model), "no_weight_decay", None)
    return (set(own(model)) if own else set()) | offsets_and_factors(model)


def _timm_entry_point(name: str) -> Callable[..., nn.Module]:
    """What timm calls for `timm.create_model(name, ...)`."""

    def entry_point(pretrained: bool = False, **options: Any) -> nn.Module:
        if pretrained:
            raise ModelConfigError(
                f"Pretrained weights of {name} were asked for.",
                "None are published with this zoo.",
                "Create it without them and load a file with intern_zoo.metanet.state_dict.",
            )
        return build_model_with_cfg(
            lambda **overrides: _create_metanet(name, **overrides),
            name,
            pretrained,
            feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
            kwargs_filter=TIMM_OWN_OPTIONS,
            **options,
        )

    entry_point.__name__ = entry_point.__qualname__ = name
    return entry_point


for _name in VARIANTS:
    register_model(_timm_entry_point(_name))
register_all(VARIANTS, _create_metanet)
register_all((name for family in TIMM_FAMILIES for name in timm.list_models(family)), _create_timm)
