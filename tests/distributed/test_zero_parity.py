"""ZeRO 0 to 3 train as one plain PyTorch process does."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.engine_worker import case_config
from tests.distributed.spawn import run_ranks
from tests.distributed.towers import train_plainly

STEPS = 20
CASES = [
    {"stage": stage, "precision": precision, **variant}
    for precision in ("fp32", "bf16")
    for stage in (0, 1, 2, 3)
    for variant in ({"accumulation": 2, "clip": 0.5}, {"accumulation": 1, "clip": 0.0})
]
CASES_ON_FOUR = [
    case
    for case in CASES
    if (case["stage"], case["precision"]) in ((0, "fp32"), (3, "fp32"), (2, "bf16")) and case["clip"]
]


def label(case: dict[str, Any]) -> str:
    return "-".join(f"{key}{value}" for key, value in case.items())


@cache
def trained(ranks: int) -> list[dict[str, Any]]:
    return run_ranks(
        "tests.distributed.engine_worker:parity", ranks, CASES if ranks == 2 else CASES_ON_FOUR, timeout=240
    )[0]


@cache
def plain(precision: str, accumulation: int, clip: float) -> tuple[list[float], list[float]]:
    case = {"stage": 0, "precision": precision, "accumulation": accumulation, "clip": clip}
    return train_plainly(case_config(case, 1), accumulation, STEPS)


def compare(case: dict[str, Any], result: dict[str, Any]) -> None:
    losses, norms = plain(case["precision"], case["accumulation"], case["clip"])
    assert all(result["applied"])
    assert len(result["losses"]) == STEPS
    if case["precision"] == "fp32":
        assert result["losses"] == pytest.approx(losses, rel=1e-5)
        assert result["norms"] == pytest.approx(norms, rel=1e-4)
    else:
        assert result["losses"] == pytest.approx(losses, abs=5e-3)
        assert result["norms"] == pytest.approx(norms, rel=3e-2)
    half_at_0 = case["stage"] == 0 and case["precision"] != "fp32"
    assert result["stage"] == (1 if half_at_0 else case["stage"])
    assert any("runs as ZeRO-1" in note for note in result["notes"]) == half_at_0


@pytest.mark.parametrize("index", range(len(CASES)), ids=[label(case) for case in CASES])
def test_two_ranks_train_as_one_process(index: int) -> None:
    compare(CASES[index], trained(2)[index])


@pytest.mark.parametrize("index", range(len(CASES_ON_FOUR)), ids=[label(case) for case in CASES_ON_FOUR])
def test_four_ranks_train_as_one_process(index: int) -> None:
    compare(CASES_ON_FOUR[index], trained(4)[index])


WRITERS = [{"stage": 0}, {"stage": 1}, {"stage": 3}, {"stage": 2, "precision": "bf16"}]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("state")
    payload = {"folder": str(folder), "cases": WRITERS}
    return folder, run_ranks("tests.distributed.engine_worker:write_state", 2, payload, timeout=120)[0]


def test_state_read_by_every_stage_goes_on_alike(written: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, uninterrupted = written
    cases: list[dict[str, Any]] = [
        {"from": 0, "stage": 0},
        {"from": 0, "stage": 3, "warm": True},
        {"from": 1, "stage": 1},
        {"from": 1, "stage": 2},
        {"from": 2, "stage": 3, "warm": True},
        {"from": 2, "stage": 1},
        {"from": 2, "stage": 0, "warm": True},
        {"from": 3, "stage": 2, "precision": "bf16"},
        {"from": 3, "stage": 3, "precision": "bf16"},
        {"from": 3, "stage": 0, "precision": "bf16"},
    ]
    results = run_ranks(
        "tests.distributed.engine_worker:read_state", 2, {"folder": str(folder), "cases": cases}, timeout=120
    )[0]
    for case, result in zip(cases, results, strict=True):
        before = uninterrupted[case["from"]]
        assert result["changed"] == [], case
        same_layout = case["stage"] == WRITERS[case["from"]]["stage"]
        if same_layout:
            assert result["losses"] == before["losses"], case
            assert (result["raw"], result["average"]) == (before["raw"], before["average"]), case
        else:
            assert result["losses"] == pytest.approx(before["losses"], rel=1e-6 if "precision" not in case else 1e-3), (
                case
            )


@pytest.mark.parametrize("ranks", [1, 4])
def test_state_read_on_another_number_of_ranks_goes_on_alike(
    written: tuple[Path, list[dict[str, Any]]], ranks: int
) -> None:
    folder, uninterrupted = written
    cases: list[dict[str, Any]] = [{"from": 2, "stage": 3}, {"from": 2, "stage": 2}, {"from": 1, "stage": 0}]
    payload = {"folder": str(folder), "cases": cases}
    for case, result in zip(
        cases, run_ranks("tests.distributed.engine_worker:read_state", ranks, payload, timeout=120)[0], strict=True
    ):
        assert result["changed"] == [], case
        assert result["losses"] == pytest.approx(uninterrupted[case["from"]]["losses"], rel=1e-5), case
