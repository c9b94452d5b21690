"""Stochastic depth that computes the kept rows alone, sharded, over ranks that drop other rows, and recomputed."""

from __future__ import annotations

import math

import pytest

from tests.distributed.spawn import run_ranks

CASES = [
    {"stage": 0, "mode": "rows"},
    {"stage": 3, "mode": "rows"},
    {"stage": 2, "mode": "rows", "recompute": True},
    {"stage": 0, "mode": "mask"},
    {"stage": 1, "mode": "rows", "precision": "bf16"},
]


@pytest.mark.slow
def test_rows_drop_alike_under_every_zero_stage() -> None:
    first, second = run_ranks("tests.distributed.drop_path_worker:losses", ranks=2, payload=CASES, timeout=400)
    assert first == second
    plain, sharded, recomputed, masked, half = first
    assert sharded == pytest.approx(plain, rel=1e-5)  # same seeds, same draws
    assert recomputed == pytest.approx(plain, rel=1e-5)
    assert masked != pytest.approx(plain, rel=1e-5)  # the rows do drop
    assert half == pytest.approx(plain, rel=0.02)
    assert all(math.isfinite(loss) for loss in plain)
