"""Micro-batches that share a loss leave what they would leave if all their graphs were kept, under every ZeRO stage."""

from __future__ import annotations

from typing import Any

import pytest

from tests.distributed.spawn import run_ranks

CASES: list[dict[str, Any]] = [*({"stage": stage} for stage in range(4)), {"stage": 3, "kind": "siglip"}]
HALF: list[dict[str, Any]] = [
    *({"stage": stage, "precision": "bf16"} for stage in (1, 3)),
    *({"stage": s, "precision": "fp16", "ds": {"fp16": {"initial_scale_power": 8}}} for s in (2, 3)),
]


def run(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return run_ranks("tests.distributed.cached_worker:steps", 2, cases, timeout=400)[0]


@pytest.fixture(scope="module")
def results() -> list[dict[str, Any]]:
    return run(CASES + HALF)


def check(found: dict[str, Any], tolerance: float) -> None:
    differences = found["differences"]
    assert {"0 loss", "0 logit_scale", "1 logit_scale"} <= differences.keys()
    assert any("running_mean" in name for name in differences)
    assert max(differences.values()) < tolerance, differences
    assert found["norms"] == pytest.approx([1, 1], rel=1e-5)


@pytest.mark.parametrize("index", range(len(CASES)), ids=str)
def test_loss_gradients_statistics_and_draws(index: int, results: list[dict[str, Any]]) -> None:
    check(results[index], 5e-6)


@pytest.mark.slow
def test_the_real_towers() -> None:
    check(run([{"stage": 3, "real": True}])[0], 1e-3)  # thirty layers on noise make more of a rounding


@pytest.mark.parametrize("index", range(len(HALF)), ids=str)
def test_scales_of_half_precision_cancel(index: int, results: list[dict[str, Any]]) -> None:
    found = results[len(CASES) + index]
    assert found["norms"] == pytest.approx([1, 1], rel=5e-2)
    assert found["differences"]["0 loss"] < 5e-3
