"""ZeRO 0 to 3 train as one plain PyTorch process does, and state goes from any of them to any other."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from intern_trainer.ranks import Ranks

from tests.distributed.engine_worker import build_debug, case_config, debug_batch, debug_config
from tests.distributed.spawn import run_ranks
from tests.distributed.towers import train_plainly

STEPS = 20
Case = dict[str, Any]

PARITY: list[Case] = [
    {"stage": stage, "precision": precision, **variant}
    for precision in ("fp32", "bf16")
    for stage in (0, 1, 2, 3)
    for variant in ({"accumulation": 2, "clip": 0.5}, {"accumulation": 1, "clip": 0.0})
]
PARITY_ON_FOUR = [
    case
    for case in PARITY
    if (case["stage"], case["precision"]) in ((0, "fp32"), (3, "fp32"), (2, "bf16")) and case["clip"]
]
DEBUG: list[Case] = [
    {"stage": stage, "precision": precision, "accumulation": 1, "steps": 4}
    for stage, precision in ((0, "fp32"), (3, "fp32"), (1, "bf16"))
]
WRITERS: list[Case] = [{"stage": 0}, {"stage": 1}, {"stage": 3}, {"stage": 2, "precision": "bf16"}]
READERS: list[Case] = [
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
READERS_ON_OTHERS: list[Case] = [{"from": 2, "stage": 3}, {"from": 2, "stage": 2}, {"from": 1, "stage": 0}]


def labels(cases: list[Case]) -> list[str]:
    return ["-".join(f"{key}={value}" for key, value in case.items()) for case in cases]


def run(ranks: int, *parts: tuple[str, Any]) -> list[Any]:
    return run_ranks("tests.distributed.engine_worker:several", ranks, list(parts), timeout=420)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def on_two(folder: Path) -> list[Any]:
    """Results of parity, of the real model, of writing and of reading."""
    written = {"folder": str(folder), "cases": WRITERS}
    read = {"folder": str(folder), "cases": READERS}
    return run(2, ("parity", PARITY), ("debug_parity", DEBUG), ("write_state", written), ("read_state", read))


@pytest.fixture(scope="module")
def on_four(folder: Path, on_two: list[Any]) -> list[Any]:
    return run(4, ("parity", PARITY_ON_FOUR), ("read_state", {"folder": str(folder), "cases": READERS_ON_OTHERS}))


@cache
def plain(precision: str, accumulation: int, clip: float) -> tuple[list[float], list[float]]:
    case = {"stage": 0, "precision": precision, "accumulation": accumulation, "clip": clip}
    return train_plainly(case_config(case, 1), accumulation, STEPS)


@cache
def plain_debug(precision: str, accumulation: int, steps: int) -> tuple[list[float], list[float]]:
    config = debug_config({"stage": 0, "precision": precision, "accumulation": accumulation}, 1)
    build = partial(build_debug, config, Ranks(0, 1, 0, torch.device("cpu")))
    return train_plainly(config, accumulation, steps, build, debug_batch)


def compare(case: Case, result: dict[str, Any], expected: tuple[list[float], list[float]]) -> None:
    losses, norms = expected
    assert all(result["applied"])
    assert len(result["losses"]) == len(losses)
    if case["precision"] == "fp32":
        assert result["losses"] == pytest.approx(losses, rel=1e-5)
        assert result["norms"] == pytest.approx(norms, rel=1e-4)
    else:
        assert result["losses"] == pytest.approx(losses, abs=5e-3)
        assert result["norms"] == pytest.approx(norms, rel=5e-2)


@pytest.mark.parametrize("index", range(len(PARITY)), ids=labels(PARITY))
def test_two_ranks_train_as_one_process(index: int, on_two: list[Any]) -> None:
    case, result = PARITY[index], on_two[0][index]
    compare(case, result, plain(case["precision"], case["accumulation"], case["clip"]))
    half_at_0 = case["stage"] == 0 and case["precision"] != "fp32"
    assert result["stage"] == (1 if half_at_0 else case["stage"])
    assert any("runs as ZeRO-1" in note for note in result["notes"]) == half_at_0


@pytest.mark.parametrize("index", range(len(PARITY_ON_FOUR)), ids=labels(PARITY_ON_FOUR))
def test_four_ranks_train_as_one_process(index: int, on_four: list[Any]) -> None:
    case = PARITY_ON_FOUR[index]
    compare(case, on_four[0][index], plain(case["precision"], case["accumulation"], case["clip"]))


@pytest.mark.slow
def test_four_ranks_train_as_one_process_in_every_other_stage_and_precision() -> None:
    cases = [case for case in PARITY if case["clip"] and case not in PARITY_ON_FOUR]
    for case, result in zip(cases, run(4, ("parity", cases))[0], strict=True):
        compare(case, result, plain(case["precision"], case["accumulation"], case["clip"]))


@pytest.mark.parametrize("index", range(len(DEBUG)), ids=labels(DEBUG))
def test_the_real_towers_train_as_in_one_process(index: int, on_two: list[Any]) -> None:
    case = DEBUG[index]
    compare(case, on_two[1][index], plain_debug(case["precision"], case["accumulation"], case["steps"]))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_the_real_towers_train_as_in_one_process_over_20_steps(ranks: int) -> None:
    cases = [{"stage": stage, "precision": "fp32", "accumulation": 2, "steps": STEPS} for stage in range(4)]
    for case, result in zip(cases, run(ranks, ("debug_parity", cases))[0], strict=True):
        compare(case, result, plain_debug("fp32", 2, STEPS))


@pytest.mark.parametrize("index", range(len(READERS)), ids=labels(READERS))
def test_state_read_by_every_stage_goes_on_alike(index: int, on_two: list[Any]) -> None:
    case, result = READERS[index], on_two[3][index]
    before = on_two[2][case["from"]]
    assert result["changed"] == []
    if case["stage"] == WRITERS[case["from"]]["stage"]:  # the same layout: to the bit
        assert result["losses"] == before["losses"]
        assert (result["raw"], result["average"]) == (before["raw"], before["average"])
    else:
        assert result["losses"] == pytest.approx(before["losses"], rel=1e-3 if "precision" in case else 1e-6)


@pytest.mark.parametrize("index", range(len(READERS_ON_OTHERS)), ids=labels(READERS_ON_OTHERS))
def test_state_of_two_ranks_goes_on_alike_on_four(index: int, on_two: list[Any], on_four: list[Any]) -> None:
    result = on_four[1][index]
    assert result["changed"] == []
    assert result["losses"] == pytest.approx(on_two[2][READERS_ON_OTHERS[index]["from"]]["losses"], rel=1e-5)


def test_state_of_two_ranks_goes_on_alike_on_one(folder: Path, on_two: list[Any]) -> None:
    (results,) = run(1, ("read_state", {"folder": str(folder), "cases": READERS_ON_OTHERS}))
    for case, result in zip(READERS_ON_OTHERS, results, strict=True):
        assert result["changed"] == []
        assert result["losses"] == pytest.approx(on_two[2][case["from"]]["losses"], rel=1e-5)
