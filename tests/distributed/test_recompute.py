"""Recompute on two ranks, batch norms over both: the same numbers under every ZeRO stage, and with a cached loss."""

from __future__ import annotations

from typing import Any

import pytest

from tests.distributed.spawn import run_ranks

FAST: list[dict[str, Any]] = [
    {"stage": 0},
    {"stage": 0, "recompute": "full"},
    {"stage": 3, "recompute": "full"},
    {"stage": 3, "recompute": "full", "together": 2},
    {"stage": 0, "together": 2},
]
MORE: list[dict[str, Any]] = [
    {"stage": 0, "mode": "rows"},
    {"stage": 0, "mode": "rows", "recompute": "selective"},
    {"stage": 1, "mode": "rows", "recompute": "full"},
    {"stage": 2, "mode": "rows", "recompute": "full"},
    {"stage": 3, "mode": "rows", "recompute": "selective"},
]


def run(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return run_ranks("tests.distributed.recompute_worker:steps", 2, cases, timeout=400)[0]


def check(found: dict[str, Any], plain: dict[str, Any]) -> None:
    assert found["batches"] == plain["batches"] == [4]  # of two steps of two micro-batches, each counted once
    assert found["draw"] == plain["draw"]
    assert found["losses"] == pytest.approx(plain["losses"], rel=1e-5)
    assert found["statistics"] == pytest.approx(plain["statistics"], rel=1e-6)
    assert found["norms"] == pytest.approx(plain["norms"], rel=1e-4)  # shared norms sum about another mean by then


def test_numbers_are_those_of_the_plain_run() -> None:
    plain, same, sharded, cached, plain_cached = run(FAST)
    check(same, plain)
    check(sharded, plain)
    check(cached, plain_cached)


@pytest.mark.slow
def test_every_other_stage_and_selective() -> None:
    plain, *others = run(MORE)
    for found in others:
        check(found, plain)
