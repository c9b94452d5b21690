"""The recipes that ship are valid, divide over the GPUs that their headers name, and build on meta in their size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from intern_trainer.config.checks import batch_plan
from intern_trainer.config.load import load_config
from intern_trainer.tasks import build_task

from tests.unit.trainer.checkpoint.fakes import ALONE

RECIPES = Path(__file__).parents[4] / "configs" / "stage1"
KNOWN = {  # name: ranks of the header, accumulation, millions of parameters of the image and the text tower
    "debug": (2, 1, None, None),
    "debug_fast": (2, 1, None, None),
    "emoji": (2, 1, None, None),
    "declip_debug": (2, 1, None, None),
    "local_debug": (2, 1, None, None),
    "b4": (8, 1, 31, 63),
    "declip_b4": (8, 1, 31, 63),
    "b15": (64, 8, 1003, 124),
    "1b_cpu": (2, 1, 999, 3),
    "10b": (128, 32, 10019, 695),
}


def test_every_recipe_is_tested():
    assert {path.stem for path in RECIPES.glob("*.yaml")} == KNOWN.keys()


@pytest.mark.parametrize("name", KNOWN)
def test_recipe(name):
    ranks, accumulation, image, text = KNOWN[name]
    path = RECIPES / f"{name}.yaml"
    config = load_config(path)
    assert batch_plan(config, ranks).accumulation == accumulation
    assert config.data.lanes % ranks == 0
    with torch.device("meta"):
        model = build_task(config, ALONE).build_model()
    assert all(parameter.ndim > 0 for parameter in model.parameters())
    for tower, millions in ((model.image, image), (model.text, text)):
        if millions is not None:
            assert round(sum(parameter.numel() for parameter in tower.parameters()) / 1e6) == millions
    assert "Hardware:" in path.read_text()
    assert f"configs/stage1/{name}.yaml" in path.read_text() or name == "debug"
