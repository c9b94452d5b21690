"""What the log says of memory after the first step, and where its figures come from."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from intern_trainer.callbacks.memory import FirstStep
from intern_trainer.config.schema import Config
from intern_trainer.observe.memory import Peak
from intern_trainer.observe.storages import storages
from intern_trainer.parallel import alone
from intern_trainer.planned import Expected, expect
from intern_trainer.ranks import Ranks
from intern_trainer.state import State
from torch import nn

CPU = Ranks(0, 1, 0, torch.device("cpu"))
MIB = 2**20


def test_storages_count_once_wherever_they_are_reached() -> None:
    model = nn.Linear(4, 8)
    model.weight.grad = torch.zeros(8, 4)
    moments = {model.weight: {"exp_avg": torch.zeros(100)[:10]}}
    engine = SimpleNamespace(
        module=model, tied=[model.weight, model.weight[0]], optimizer=SimpleNamespace(state=moments)
    )
    found = storages(engine)
    assert sum(found.values()) == 4 * (8 * 4 + 8 + 8 * 4 + 100)


def test_the_first_step_is_told_once_with_what_the_plan_says(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    engine: Any = SimpleNamespace(weights=torch.zeros(5 * MIB))
    peak = Peak(CPU.device)
    held = torch.ones(16 * MIB)
    expected = Expected(21 * MIB, {Config().model.image_size: 90 * MIB})
    callback, state = FirstStep(engine, expected, peak), State(Config(), tmp_path, CPU, 10, step=1)
    with caplog.at_level(logging.INFO, logger="intern_trainer"):
        callback.on_step(state)
        callback.on_step(state)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "21 MiB of training state by the plan, 20 MiB found" in line
    assert line.endswith("resident beyond what was there before the model (plan: 90 MiB)")
    assert peak.bytes() >= 0.9 * held.nbytes


def test_state_alone_needs_no_pass_and_full_has_a_peak_above_it() -> None:
    model = {
        "image": "metanet_debug", "image_size": 32, "embed_dim": 32,
        "text": {"width": 32, "layers": 1, "heads": 2, "context_length": 16},
    }  # fmt: skip
    config = Config.model_validate(
        {"model": model, "train": {"global_batch": 8, "precision": "fp32"}, "data": {"lanes": 4}}
    )
    state = expect(config, alone(CPU), full=False)
    full = expect(config, alone(CPU), full=True)
    assert state.peak == {}
    assert state.state == full.state
    assert full.peak[32] > 4 / 3 * full.state  # gradients are as large as weights, moments twice so
