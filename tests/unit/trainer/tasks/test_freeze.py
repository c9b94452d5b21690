"""Frozen parameters by tower or pattern."""

from __future__ import annotations

import pytest
from intern_trainer.errors import ConfigError
from intern_trainer.tasks.freeze import freeze
from torch import nn


def _model() -> nn.Module:
    return nn.ModuleDict({"image": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "text": nn.Linear(2, 2)})


def _trained(model: nn.Module) -> list[str]:
    return [name for name, p in model.named_parameters() if p.requires_grad]


def test_a_tower_and_a_pattern() -> None:
    model = _model()
    freeze(model, ["image"])
    assert _trained(model) == ["text.weight", "text.bias"]
    model = _model()
    freeze(model, ["image.[0]*", "*.bias"])
    assert _trained(model) == ["image.1.weight", "text.weight"]


@pytest.mark.parametrize(
    ("patterns", "found"), [(["imag"], "matches no parameter"), (["image", "text"], "nothing to train")]
)
def test_useless_patterns_are_refused(patterns: list[str], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        freeze(_model(), patterns)
