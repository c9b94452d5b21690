from __future__ import annotations

from pathlib import Path

import pytest
import torch
from intern_trainer.errors import CheckpointError
from intern_trainer.evaluate.stored import _take
from torch import nn


@pytest.mark.parametrize("change", [{"bias": None}, {"more": torch.zeros(1)}, {"weight": torch.zeros(2, 2)}])
def test_weights_of_another_model_are_an_error_in_words(change: dict[str, torch.Tensor | None]) -> None:
    weights = {**nn.Linear(3, 2).state_dict(), **change}
    with pytest.raises(CheckpointError, match=f"1 tensors do not fit, such as {next(iter(change))}"):
        _take(nn.Linear(3, 2), {name: value for name, value in weights.items() if value is not None}, Path("step"))


def test_the_models_own_weights_are_taken() -> None:
    model, weights = nn.Linear(3, 2), nn.Linear(3, 2).state_dict()
    _take(model, weights, Path("step"))
    assert torch.equal(model.weight, weights["weight"])
