"""A batch norm whose parameters are frozen keeps its statistics, in a tower that is otherwise trained."""

from __future__ import annotations

import torch
from intern_trainer import parallel
from intern_trainer.config.schema import Config
from torch import nn

from tests.unit.trainer.doubles import ONE_RANK


def test_only_frozen_norms_keep_their_statistics() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    model[0].requires_grad_(False)
    parallel.sync_batch_norm(model, share=False)
    model.train()(torch.randn(4, 3, 5, 5) + 2)
    assert torch.equal(model[0].running_mean, torch.zeros(3))
    assert model[2].running_mean.abs().min() > 0


def test_apply_takes_the_recipes_word() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    parallel.apply(model, Config(), ONE_RANK)
    assert not model[0].frozen
